//! Every row of Winograd's algorithm for bytes against the direct product, which it equals exactly.

use fastrand::Rng;
use sora_kernels::{
    ARows, Activation, ByteImages, Contract, Dequant, EpilogueI32, Family, Indirect, KERNELS, Kernels,
    MatMut, Output, PAD, PackedI8, PackedWinogradI8, Quant, Residual, fold_zero_point, gemm_u8i8,
    winograd_u8i8,
};

#[test]
fn winograd_rows_equal_the_direct_product() {
    let mut rng = Rng::with_seed(31);
    for row in KERNELS.iter().filter(|r| r.family == Family::WinogradU8I8) {
        let Ok(kernels) = Kernels::for_isa(row.isa) else { continue };
        assert_eq!(row.contract, Contract::BitExact);
        for round in 0..60 {
            let images = rng.usize(1..3);
            let channels = 32 * rng.usize(1..4);
            let n = *rng.choice(&[1, 7, 16, 31, 32, 33, 70]).unwrap();
            let pad = [rng.usize(0..3), rng.usize(0..3)];
            let input = [rng.usize(1..20).max(4), rng.usize(1..20).max(4)];
            let behind = [rng.usize(0..3), rng.usize(0..3)];
            let output = [0, 1].map(|i| input[i] + pad[i] + behind[i] - 2);
            let zero = rng.u8(..);
            // Weights and images of the greatest size now and then.
            let extreme = round % 4 == 0;
            let image = |rng: &mut Rng| if extreme { *rng.choice(&[0, 255]).unwrap() } else { rng.u8(..) };
            let data: Vec<u8> =
                (0..images * input[0] * input[1] * channels).map(|_| image(&mut rng)).collect();
            let magnitude = *rng.choice(&[3i8, 40, 127]).unwrap();
            let w: Vec<i8> = (0..n * channels * 9)
                .map(|_| match extreme {
                    true => *rng.choice(&[-128, 127]).unwrap(),
                    false => rng.i8(-magnitude..=magnitude),
                })
                .collect();
            let weight = |col: usize, c: usize, tap: usize| w[(col * channels + c) * 9 + tap];
            let packed = PackedWinogradI8::pack(kernels, channels, n, weight).unwrap();
            let direct =
                PackedI8::pack(kernels, 9, channels, n, |k, col| weight(col, k % channels, k / channels));
            assert_eq!(packed.col_sums(), direct.col_sums());

            let mut offsets = Vec::new();
            for pixel in 0..images * output[0] * output[1] {
                let (at, x) = (pixel / output[1], pixel % output[1]);
                let (i, y) = (at / output[0], at % output[0]);
                for tap in 0..9 {
                    let (y, x) = ((y + tap / 3).wrapping_sub(pad[0]), (x + tap % 3).wrapping_sub(pad[1]));
                    let inside = y < input[0] && x < input[1];
                    let at = ((i * input[0] + y.min(99)) * input[1] + x.min(99)) * channels;
                    offsets.push(if inside { at as u32 } else { PAD });
                }
            }
            let padding = vec![zero; channels];
            let rows = ARows::Indirect(Indirect {
                base: &data,
                offsets: &offsets,
                taps: 9,
                kc: channels,
                pad: &padding,
            });
            let pixels = images * output[0] * output[1];
            let bias = fold_zero_point(None, direct.col_sums(), i32::from(zero));
            let scale = vec![0.0003; n];
            let residual: Vec<u8> = (0..pixels * n).map(|_| rng.u8(..)).collect();
            let byte = Dequant { scale: 0.1, zero_point: 100 };
            let residual_at = |first: usize| {
                (round % 3 == 0).then(|| Residual::QuantizedSum {
                    product: byte,
                    data: &residual[first * n..],
                    ld: n,
                    input: byte,
                })
            };
            let epilogue = |first: usize| EpilogueI32 {
                bias: Some(&bias),
                scale: &scale,
                offset: (round % 4 == 1).then_some(&scale[..]),
                residual: residual_at(first),
                activation: if round % 2 == 0 { Activation::Relu } else { Activation::Silu },
            };

            let x = ByteImages { data: &data, images, input, channels, pad, zero, output };
            let mut want = vec![f32::NAN; pixels * n];
            gemm_u8i8(
                kernels,
                &rows,
                &direct,
                0,
                &epilogue(0),
                Output::F32(MatMut::new(&mut want, pixels, n, n)),
            );
            let mut found = vec![f32::NAN; pixels * n];
            let mut bytes = vec![0u8; pixels * n];
            // However the rows of tiles are split.
            let cut = rng.usize(0..=x.tile_rows());
            for range in [0..cut, cut..x.tile_rows()] {
                let (first, end) = (x.first_pixel(range.start), x.first_pixel(range.end));
                let mut scratch = vec![rng.i32(..); packed.scratch_len(range.len() * x.across())];
                let out = MatMut::new(&mut found[first * n..end * n], end - first, n, n);
                winograd_u8i8(
                    kernels,
                    &x,
                    range.clone(),
                    &packed,
                    &epilogue(first),
                    &mut scratch,
                    Output::F32(out),
                );
                let out = MatMut::new(&mut bytes[first * n..end * n], end - first, n, n);
                let out = Output::U8(out, Quant::new(0.2, 30));
                winograd_u8i8(kernels, &x, range, &packed, &epilogue(first), &mut scratch, out);
            }
            assert_eq!(found, want, "{} round {round}: {x:?}", row.name);
            let mut want = vec![0u8; pixels * n];
            let out = Output::U8(MatMut::new(&mut want, pixels, n, n), Quant::new(0.2, 30));
            gemm_u8i8(kernels, &rows, &direct, 0, &epilogue(0), out);
            assert_eq!(bytes, want, "{} round {round}", row.name);
        }
    }
}

/// 255 · 9 · channels · 127 must be less than 2²⁵, unless signs cancel.
#[test]
fn weights_that_could_overflow_are_refused() {
    for kernels in Kernels::all_available() {
        let fits = |channels, w: i8| PackedWinogradI8::pack(kernels, channels, 3, |_, _, _| w).is_some();
        let any = KERNELS.iter().any(|r| r.family == Family::WinogradU8I8 && kernels.isa().includes(r.isa));
        assert_eq!(fits(96, 127), any);
        assert!(!fits(128, 127) && !fits(128, -127));
        assert_eq!(fits(128, 110), any);
    }
}

/// The greatest and the least result that the bound admits.
#[test]
fn results_at_the_bound_are_exact() {
    for kernels in Kernels::all_available() {
        for w in [114i8, -114] {
            let channels = 128;
            let Some(packed) = PackedWinogradI8::pack(kernels, channels, 1, |_, _, _| w) else { continue };
            let data = vec![255u8; 36 * channels];
            let x = ByteImages {
                data: &data,
                images: 1,
                input: [6, 6],
                channels,
                pad: [0, 0],
                zero: 0,
                output: [4, 4],
            };
            let ep = EpilogueI32 {
                bias: None,
                scale: &[1.0],
                offset: None,
                residual: None,
                activation: Activation::None,
            };
            let mut out = vec![0.0; 16];
            let mut scratch = vec![0; packed.scratch_len(1)];
            let view = Output::F32(MatMut::new(&mut out, 16, 1, 1));
            winograd_u8i8(kernels, &x, 0..1, &packed, &ep, &mut scratch, view);
            assert_eq!(out, [(255 * 9 * 128 * i32::from(w)) as f32; 16]);
        }
    }
}
