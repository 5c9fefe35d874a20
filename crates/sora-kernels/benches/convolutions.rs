//! Speed of the convolutions of a ResNet-50: `cargo bench -p sora-kernels --bench convolutions [-- NAME]`.
//!
//! Weights come from memory, as they do in a network larger than the caches: each call uses another
//! copy of them.

use std::time::Instant;

use sora_kernels::{
    ARows, Activation, Dense, Dequant, EpilogueF32, EpilogueI32, Images, Indirect, Kernels, MatMut, Output,
    PackedF32, PackedI8, PackedWinograd, Quant, Residual, TileEdge, gemm_f32, gemm_u8i8, winograd_f32,
};

/// Bytes of weights to go around in.
const COLD: usize = 96 << 20;

/// Prints the rate of calls of `f`, which is given the number of the copy to use.
fn report(name: &str, macs: usize, copies: usize, mut f: impl FnMut(usize)) {
    if std::env::args().skip(1).find(|a| !a.starts_with('-')).is_some_and(|w| !name.contains(&w)) {
        return;
    }
    let begin = Instant::now();
    let mut times = Vec::new();
    while begin.elapsed().as_secs_f64() < 0.15 || times.len() < copies {
        let start = Instant::now();
        f(times.len() % copies);
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let [least, median] = [0, times.len() / 2].map(|i| times[i]);
    let rate = macs as f64 / 1e9;
    println!(
        "{name:<34} least {:8.1} us {:6.1} Gmac/s   median {:8.1} us {:6.1} Gmac/s",
        least * 1e6,
        rate / least,
        median * 1e6,
        rate / median
    );
}

fn pointwise(k: Kernels, m: usize, depth: usize, n: usize, shortcut: bool) {
    let name = format!("1x1 {m}x{depth}x{n}{}", if shortcut { " +" } else { "" });
    let copies = (COLD / (depth * n * 4)).clamp(1, 64);
    let packed: Vec<_> =
        (0..copies).map(|_| PackedF32::pack(k, 1, depth, n, |i, j| ((i * j) % 5) as f32)).collect();
    let (x, residual, bias) = (vec![0.5f32; m * depth], vec![0.5f32; m * n], vec![0.5; n]);
    let mut y = vec![0.0f32; m * n];
    let residual = shortcut.then_some(Residual::F32 { data: &residual, ld: n });
    let ep = EpilogueF32 { bias: Some(&bias), residual, activation: Activation::Relu };
    let a = ARows::Dense(Dense { data: &x, rows: m, stride: depth, k: depth });
    report(&name, m * depth * n, copies, |i| {
        gemm_f32(k, &a, &packed[i], 0, &ep, Output::F32(MatMut::new(&mut y, m, n, n)));
    });
}

fn pointwise_bytes(k: Kernels, m: usize, depth: usize, n: usize, shortcut: bool) {
    let name = format!("1x1 u8 {m}x{depth}x{n}{}", if shortcut { " +" } else { "" });
    let copies = (COLD / (depth * n)).clamp(1, 64);
    let packed: Vec<_> =
        (0..copies).map(|_| PackedI8::pack(k, 1, depth, n, |i, j| ((i * j) % 5) as i8)).collect();
    let (x, residual, bias) = (vec![99u8; m * depth], vec![77u8; m * n], vec![-5; n]);
    let (scale, mut y) = (vec![1e-3; n], vec![0u8; m * n]);
    let [product, input] = [0.1, 0.2].map(|scale| Dequant { scale, zero_point: 9 });
    let sum = Residual::QuantizedSum { product, data: &residual, ld: n, input };
    let residual = shortcut.then_some(sum);
    let ep = EpilogueI32 {
        bias: Some(&bias),
        scale: &scale,
        offset: None,
        residual,
        activation: Activation::Relu,
    };
    let a = ARows::Dense(Dense { data: &x, rows: m, stride: depth, k: depth });
    report(&name, m * depth * n, copies, |i| {
        let out = Output::U8(MatMut::new(&mut y, m, n, n), Quant::new(0.3, 0));
        gemm_u8i8(k, &a, &packed[i], 0, &ep, out);
    });
}

/// A first layer: windows of few channels, read from the image by rows of the window.
fn stem_bytes(k: Kernels, side: usize, kernel: usize, n: usize) {
    let (image, row) = (side + kernel, (side + kernel) * 3);
    let (m, kc) = ((side / 2).pow(2), kernel * 3);
    let pixel = |i: usize| (i / (side / 2) * 2, i % (side / 2) * 6);
    let offsets: Vec<u32> = (0..m * kernel)
        .map(|i| (i / kernel, i % kernel))
        .map(|(i, tap)| ((pixel(i).0 + tap) * row + pixel(i).1) as u32)
        .collect();
    let (x, pad) = (vec![99u8; image * row], vec![0u8; kc]);
    let packed = PackedI8::pack(k, kernel, kc, n, |i, j| ((i * j) % 5) as i8);
    let (scale, mut y) = (vec![1e-3; n], vec![0u8; m * n]);
    let ep =
        EpilogueI32 { bias: None, scale: &scale, offset: None, residual: None, activation: Activation::Relu };
    let a = Indirect { base: &x, offsets: &offsets, taps: kernel, kc, pad: &pad };
    report(&format!("stem u8 {side}, {kernel}x{kernel}x3x{n}"), m * kernel * kc * n, 1, |_| {
        let out = Output::U8(MatMut::new(&mut y, m, n, n), Quant::new(0.3, 0));
        gemm_u8i8(k, &ARows::Indirect(a), &packed, 0, &ep, out);
    });
}

fn winograd(k: Kernels, edge: TileEdge, images: usize, size: usize, channels: usize) {
    let name = format!("winograd {edge:?} {images}x{size}x{size}x{channels}");
    let copies = (COLD / (edge.elements() * channels * channels * 4)).clamp(1, 64);
    let weights = vec![0.25; channels * channels * 9];
    let packed: Vec<_> =
        (0..copies).map(|_| PackedWinograd::pack(k, edge, channels, channels, &weights, |w| w)).collect();
    let pixels = images * size * size;
    let data = vec![0.5f32; pixels * channels];
    let (bias, mut y) = (vec![0.5; channels], vec![0.0f32; pixels * channels]);
    let ep = EpilogueF32 { bias: Some(&bias), residual: None, activation: Activation::Relu };
    let x = Images { data: &data, images, input: [size; 2], channels, pad: [1, 1], output: [size; 2] };
    let rows = x.tile_rows(edge);
    let mut scratch = vec![0.0; packed[0].scratch_len(rows * size.div_ceil(edge.pixels()))];
    report(&name, pixels * channels * channels * 9, copies, |i| {
        let out = MatMut::new(&mut y, pixels, channels, channels);
        winograd_f32(k, &x, 0..rows, &packed[i], 0, &ep, &mut scratch, out);
    });
}

fn main() {
    let k = Kernels::selected().expect("an instruction set of this machine");
    println!("{}", k.isa());
    pointwise(k, 3136, 64, 64, false);
    pointwise(k, 3136, 64, 256, true);
    pointwise(k, 3136, 256, 64, false);
    pointwise(k, 784, 128, 512, true);
    pointwise(k, 784, 512, 128, false);
    pointwise(k, 196, 256, 1024, true);
    pointwise(k, 196, 1024, 256, false);
    pointwise(k, 49, 512, 2048, true);
    pointwise(k, 49, 2048, 512, false);
    pointwise(k, 125, 64, 64, false);
    pointwise(k, 8 * 3136, 64, 256, true);
    pointwise(k, 8 * 3136, 256, 64, false);
    pointwise(k, 8 * 784, 128, 512, true);
    for images in [1, 8] {
        for (side, depth) in [(56, 64), (28, 128), (14, 256), (7, 512)] {
            let m = images * side * side;
            pointwise_bytes(k, m, depth, 4 * depth, true);
            pointwise_bytes(k, m, depth, 4 * depth, false);
            pointwise_bytes(k, m, 4 * depth, depth, false);
        }
    }
    stem_bytes(k, 224, 7, 64);
    stem_bytes(k, 224, 3, 32);
    pointwise_bytes(k, 12544, 16, 96, false);
    pointwise_bytes(k, 3136, 24, 144, false);
    pointwise_bytes(k, 3136, 144, 24, true);
    pointwise_bytes(k, 128, 384, 1536, false);
    for (size, channels) in [(56, 64), (28, 128), (14, 256), (7, 512)] {
        for images in [1, 8] {
            winograd(k, TileEdge::Four, images, size, channels);
            if size < 28 {
                winograd(k, TileEdge::Two, images, size, channels);
            }
        }
    }
}
