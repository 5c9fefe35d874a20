//! Speed of typical layers on every instruction set: `cargo bench -p sora-kernels --bench layers [-- NAME]`.
//!
//! Prints microseconds per call and the rate of what the kernel is limited by.

use std::time::Instant;

use sora_kernels::{
    ARows, Activation, Dense, Dequant, EpilogueF32, EpilogueI32, Indirect, Kernels, MatMut, Output,
    PackedDwF32, PackedDwI8, PackedF32, PackedI8, Quant, Rhs, SlidingF32, SlidingI8, Unary, Window,
    depthwise_f32, depthwise_u8i8, elementwise, gemm_f32, gemm_u8i8, layout, pool, quantize, recurrent, rows,
    slide_f32, slide_u8i8,
};

/// Best seconds per call over about a tenth of a second.
fn seconds(f: &mut dyn FnMut()) -> f64 {
    f();
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed().as_secs_f64() < 0.1 {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Reports `work` units per call.
fn report(kernels: Kernels, name: &str, work: usize, unit: &str, mut f: impl FnMut()) {
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    if wanted.is_some_and(|w| !name.contains(&w)) {
        return;
    }
    let time = seconds(&mut f);
    let rate = work as f64 / time / 1e9;
    println!("{:<11} {name:<26} {:9.2} us {rate:8.2} {unit}", kernels.isa(), time * 1e6);
}

fn convolutions(k: Kernels) {
    let window = Window {
        input: [28, 28],
        pixel_stride: 64,
        kernel: [3, 3],
        stride: [1, 1],
        dilation: [1, 1],
        pad: [1, 1],
        output: [28, 28],
    };
    let offsets = window.offsets();
    let (taps, c, m, n) = (9, 64, 784, 64);
    let (xf, xu) = (vec![0.5f32; m * c], vec![99u8; m * c]);
    let (pf, pu) = (vec![0.0f32; c], vec![7u8; c]);
    let f = Indirect { base: &xf[..], offsets: &offsets, taps, kc: c, pad: &pf };
    let u = Indirect { base: &xu[..], offsets: &offsets, taps, kc: c, pad: &pu };
    let (mut yf, mut yu) = (vec![0.0f32; m * n], vec![0u8; m * n]);
    let quant = Quant::new(0.1, 3);
    let scale = vec![0.01; n];
    let ep =
        EpilogueI32 { bias: None, scale: &scale, offset: None, residual: None, activation: Activation::Relu };
    let real = EpilogueF32 { activation: Activation::Relu, ..Default::default() };

    let wf = PackedF32::pack(k, taps, c, n, |i, j| ((i * j) % 5) as f32);
    let wi = PackedI8::pack(k, taps, c, n, |i, j| ((i * j) % 5) as i8);
    report(k, "conv3x3 f32", m * n * taps * c, "Gmac/s", || {
        let out = Output::F32(MatMut::new(&mut yf, m, n, n));
        gemm_f32(k, &ARows::Indirect(f), &wf, 0, &real, out);
    });
    report(k, "conv3x3 u8", m * n * taps * c, "Gmac/s", || {
        let out = Output::U8(MatMut::new(&mut yu, m, n, n), quant);
        gemm_u8i8(k, &ARows::Indirect(u), &wi, 0, &ep, out);
    });
    let wf = PackedDwF32::pack(k, taps, c, |i, j| ((i * j) % 5) as f32);
    let wi = PackedDwI8::pack(k, taps, c, |i, j| ((i * j) % 5) as i8);
    report(k, "depthwise3x3 f32", m * taps * c, "Gmac/s", || {
        depthwise_f32(k, &f, &wf, &real, Output::F32(MatMut::new(&mut yf, m, c, c)));
    });
    report(k, "depthwise3x3 u8", m * taps * c, "Gmac/s", || {
        depthwise_u8i8(k, &u, &wi, &ep, Output::U8(MatMut::new(&mut yu, m, c, c), quant));
    });
    slides(k);
    report(k, "max pool 3x3 f32", m * taps * c, "Gread/s", || {
        pool::max_f32(k, &f, MatMut::new(&mut yf, m, c, c));
    });
    report(k, "max pool 3x3 u8", m * taps * c, "Gread/s", || {
        pool::max_u8(k, &u, MatMut::new(&mut yu, m, c, c));
    });
    report(k, "global average u8", m * c, "Gread/s", || {
        let input = Dequant { scale: 0.1, zero_point: 3 };
        pool::global_average_u8(k, &xu, m, c, input, &mut yu[..c], quant);
    });
    report(k, "nchw to nhwc f32", m * c, "Gelem/s", || {
        layout::nchw_to_nhwc(k, &xf, c, m, &mut yf);
    });
    report(k, "nchw to nhwc u8", m * c, "Gelem/s", || {
        layout::nchw_to_nhwc(k, &xu, c, m, &mut yu);
    });
    let grey = Window { pixel_stride: 1, ..window };
    let mut columns = vec![0u8; m * 12];
    report(k, "im2col 3x3x1 u8", m * 12, "Gelem/s", || {
        layout::im2col(k, &xu[..m], &grey, 1, 7, 0, 12, &mut columns);
    });
}

/// Depthwise convolutions as mobile networks have them.
fn slides(k: Kernels) {
    for (side, c, kernel, stride) in [
        (112, 32, 3, 1),
        (56, 144, 3, 1),
        (28, 192, 3, 2),
        (14, 384, 3, 1),
        (14, 480, 5, 1),
        (7, 960, 3, 1),
        (7, 1152, 5, 1),
    ] {
        let out = side / stride;
        let window = Window {
            input: [side; 2],
            pixel_stride: c,
            kernel: [kernel; 2],
            stride: [stride; 2],
            dilation: [1, 1],
            pad: [kernel / 2; 2],
            output: [out; 2],
        };
        let macs = out * out * kernel * kernel * c;
        let (xf, xu) = (vec![0.5f32; side * side * c], vec![99u8; side * side * c]);
        let (mut yf, mut yu) = (vec![0.0f32; out * out * c], vec![0u8; out * out * c]);
        let name = |dtype: &str| format!("slide{kernel}x{kernel}/{stride} {side}x{c} {dtype}");
        if let Some(w) = SlidingF32::pack(k, &window, |i, j| ((i * j) % 5) as f32, None) {
            report(k, &name("f32"), macs, "Gmac/s", || {
                slide_f32(k, &xf, side, &w, 0..out, Activation::Relu, &mut yf);
            });
        }
        let (bias, scale) = (vec![1; c], vec![0.01; c]);
        if let Some(w) = SlidingI8::pack(k, &window, 3, |i, j| ((i * j) % 5) as i8, &bias, &scale, None) {
            report(k, &name("u8"), macs, "Gmac/s", || {
                slide_u8i8(&xu, side, &w, 0..out, Activation::Relu, Quant::new(0.1, 3), &mut yu);
            });
        }
    }
}

/// Products so shallow that what follows the sums takes most of the time.
fn finishes(k: Kernels) {
    for (name, activation, m, n, depth) in
        [("shallow relu", Activation::Relu, 676, 32, 12), ("dense gelu", Activation::Gelu, 32, 256, 64)]
    {
        let (xf, xu) = (vec![0.5f32; m * depth], vec![99u8; m * depth]);
        let f = ARows::Dense(Dense { data: &xf, rows: m, stride: depth, k: depth });
        let u = ARows::Dense(Dense { data: &xu, rows: m, stride: depth, k: depth });
        let wf = PackedF32::pack(k, 1, depth, n, |i, j| ((i * j) % 5) as f32);
        let wi = PackedI8::pack(k, 1, depth, n, |i, j| ((i * j) % 5) as i8);
        let (mut yf, mut yu) = (vec![0.0f32; m * n], vec![0u8; m * n]);
        let scale = vec![0.01; n];
        let ep = EpilogueI32 { bias: None, scale: &scale, offset: None, residual: None, activation };
        let real = EpilogueF32 { activation, ..Default::default() };
        report(k, &format!("{name} f32"), m * n, "Gelem/s", || {
            gemm_f32(k, &f, &wf, 0, &real, Output::F32(MatMut::new(&mut yf, m, n, n)));
        });
        report(k, &format!("{name} u8"), m * n, "Gelem/s", || {
            let out = Output::U8(MatMut::new(&mut yu, m, n, n), Quant::new(0.1, 3));
            gemm_u8i8(k, &u, &wi, 0, &ep, out);
        });
    }
}

fn vectors(k: Kernels) {
    const N: usize = 16 * 1024;
    let x: Vec<f32> = (0..N).map(|i| (i % 97) as f32 * 0.1 - 4.0).collect();
    let q: Vec<u8> = (0..N).map(|i| (i % 251) as u8).collect();
    let (mut y, mut p) = (x.clone(), q.clone());
    for (name, op) in [
        ("relu", Unary::Activation(Activation::Relu)),
        ("sigmoid", Unary::Activation(Activation::Sigmoid)),
        ("tanh", Unary::Activation(Activation::Tanh)),
        ("gelu", Unary::Activation(Activation::Gelu)),
        ("hard swish", Unary::Activation(Activation::HardSwish)),
        ("exp", Unary::Exp),
        ("log", Unary::Log),
        ("sqrt", Unary::Sqrt),
    ] {
        report(k, name, N, "Gelem/s", || elementwise::unary(k, op, &x, &mut y));
    }
    report(k, "add row", N, "Gelem/s", || {
        elementwise::binary(k, sora_kernels::Binary::Add, &x, Rhs::Row(&x[..256]), &mut y);
    });
    report(k, "softmax 256", N, "Gelem/s", || rows::softmax(k, &x, 256, &mut y));
    report(k, "layer norm 256", N, "Gelem/s", || {
        rows::layer_norm(k, &x, 256, Some(&x[..256]), Some(&x[..256]), 1e-5, &mut y);
    });
    report(k, "quantize u8", N, "Gelem/s", || quantize::quantize_u8(k, &x, 0.05, 3, &mut p));
    let d = Dequant { scale: 0.1, zero_point: 3 };
    report(k, "dequantize u8", N, "Gelem/s", || quantize::dequantize_u8(k, &q, d, &mut y));
    report(k, "quantized add", N, "Gelem/s", || {
        let (op, rhs, quant) = (sora_kernels::Binary::Add, Rhs::Same(&q[..]), Quant::new(0.1, 9));
        quantize::binary_u8(k, op, &q, d, rhs, d, Activation::Relu, &mut p, quant);
    });
    let mut state = vec![0.1; N / 4];
    let mut hidden = vec![0.1; N / 4];
    report(k, "lstm step", N / 4, "Gelem/s", || {
        recurrent::lstm_step(k, &x, &x, None, &mut state, &mut hidden);
    });
    let mut b = PackedF32::from_nk(k, &x, 64, 256, 64);
    report(k, "repack 64x256 transposed", N, "Gelem/s", || b.repack_nk(&x, 64, 256, 64));
    report(k, "repack 256x64", N, "Gelem/s", || b.repack_kn(&x, 256, 64, 64));
}

fn main() {
    for k in Kernels::all_available() {
        convolutions(k);
        finishes(k);
        vectors(k);
    }
}
