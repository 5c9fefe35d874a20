//! Products with rows quantized one by one, and products of single rows, against naive loops.

use fastrand::Rng;
use sora_kernels::{
    ARows, Activation, Dense, EpilogueRows, Family, KERNELS, Kernels, MatMut, Output, PackedBf16, PackedF32,
    PackedI8, Residual, Unary, bf16, elementwise, gemm_u8i8_rows, gemv_bf16, gemv_f32, gemv_u8i8,
};

/// Depths and widths around every tile's.
const DEPTHS: [usize; 10] = [1, 2, 3, 4, 5, 31, 64, 129, 256, 515];
const WIDTHS: [usize; 9] = [1, 7, 32, 33, 64, 127, 128, 300, 1024];

#[test]
fn rows_have_scales_and_zero_points_of_their_own() {
    let mut rng = Rng::with_seed(31);
    for _ in 0..120 {
        let (m, n) = (rng.usize(1..40), *rng.choice(&WIDTHS[..8]).unwrap());
        let k = *rng.choice(&DEPTHS).unwrap();
        let a: Vec<u8> = (0..m * k).map(|_| rng.u8(..)).collect();
        let b: Vec<i8> = (0..k * n).map(|_| rng.i8(..)).collect();
        let count = if rng.bool() { m } else { 1 };
        let row_scales: Vec<f32> = (0..count).map(|_| 0.01 + rng.f32()).collect();
        let zero_points: Vec<u8> = (0..count).map(|_| rng.u8(..)).collect();
        let scale: Vec<f32> = (0..n).map(|_| 1e-3 * (0.1 + rng.f32())).collect();
        let bias: Option<Vec<f32>> = rng.bool().then(|| (0..n).map(|_| rng.f32() - 0.5).collect());
        let residual: Option<Vec<f32>> = rng.bool().then(|| (0..m * n).map(|_| rng.f32() - 0.5).collect());
        let activation =
            *rng.choice(&[Activation::None, Activation::Relu, Activation::Gelu, Activation::Silu]).unwrap();
        let mut seen: Option<Vec<u32>> = None;
        for row in KERNELS.iter().filter(|r| r.family == Family::GemmU8I8) {
            let Ok(kernels) = Kernels::for_isa(row.isa) else { continue };
            let packed = PackedI8::from_kn(kernels, &b, k, n, n);
            let mut y = vec![f32::NAN; m * n];
            let out = Output::F32(MatMut::new(&mut y, m, n, n));
            for (first, band) in out.split_rows(rng.usize(1..4)) {
                let rows = band.rows();
                let part = |len: usize| if len == 1 { 0..1 } else { first..first + rows };
                let ep = EpilogueRows {
                    row_scales: &row_scales[part(count)],
                    zero_points: &zero_points[part(count)],
                    scale: &scale,
                    bias: bias.as_deref(),
                    residual: residual.as_ref().map(|r| Residual::F32 { data: &r[first * n..], ld: n }),
                    activation,
                };
                let a = ARows::Dense(Dense { data: &a[first * k..], rows, stride: k, k });
                for (n0, part) in band.split_cols(rng.usize(1..4), row.tile.nr) {
                    gemm_u8i8_rows(kernels, &a, &packed, n0, &ep, part);
                }
            }
            for i in 0..m {
                let r = i % count;
                for j in 0..n {
                    let sum: i32 = (0..k)
                        .map(|x| {
                            (i32::from(a[i * k + x]) - i32::from(zero_points[r])) * i32::from(b[x * n + j])
                        })
                        .sum();
                    let mut want =
                        sum as f32 * (row_scales[r] * scale[j]) + bias.as_ref().map_or(0.0, |b| b[j]);
                    want += residual.as_ref().map_or(0.0, |r| r[i * n + j]);
                    let at = [want];
                    let mut exact = [0.0];
                    elementwise::unary(kernels, Unary::Activation(activation), &at, &mut exact);
                    assert_eq!(y[i * n + j], exact[0], "{} {m}x{n}x{k} {activation:?}", row.name);
                }
            }
            let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
            assert_eq!(*seen.get_or_insert_with(|| bits.clone()), bits, "{}", row.name);
        }
    }
}

#[test]
fn single_rows_match_naive_loops_in_both_directions() {
    let mut rng = Rng::with_seed(32);
    for _ in 0..60 {
        let (k, n) = (*rng.choice(&DEPTHS).unwrap(), *rng.choice(&WIDTHS).unwrap());
        let x: Vec<f32> = (0..k).map(|_| rng.f32() - 0.5).collect();
        let q: Vec<u8> = (0..k).map(|_| rng.u8(..)).collect();
        let b: Vec<f32> = (0..k * n).map(|_| rng.f32() - 0.5).collect();
        let w: Vec<i8> = (0..k * n).map(|_| rng.i8(..)).collect();
        for kernels in Kernels::all_available() {
            let (packed, bytes) =
                (PackedF32::from_kn(kernels, &b, k, n, n), PackedI8::from_kn(kernels, &w, k, n, n));
            let n0 = packed.col_granule() * rng.usize(0..=(n - 1) / packed.col_granule());
            let mut y = vec![f32::NAN; n - n0];
            gemv_f32(kernels, &x, &packed, n0, rng.bool(), &mut y);
            for (j, &y) in y.iter().enumerate() {
                let products = (0..k).map(|i| f64::from(x[i]) * f64::from(b[i * n + n0 + j]));
                let size: f64 = products.clone().map(f64::abs).sum();
                let bound = k as f64 * size * f64::from(f32::EPSILON);
                assert!((f64::from(y) - products.sum::<f64>()).abs() <= bound, "{kernels:?} {k}x{n} [{j}]");
            }
            let (a, w16): (Vec<u16>, Vec<u16>) =
                (x.iter().map(|&x| bf16::round(x)).collect(), b.iter().map(|&b| bf16::round(b)).collect());
            let packed = PackedBf16::from_kn(kernels, &w16, k, n, n);
            let n0 = packed.col_granule() * rng.usize(0..=(n - 1) / packed.col_granule());
            let mut y = vec![f32::NAN; n - n0];
            gemv_bf16(kernels, &a, &packed, n0, rng.bool(), &mut y);
            for (j, &y) in y.iter().enumerate() {
                let wide = |bits: u16| f64::from(bf16::widen(bits));
                let products = (0..k).map(|i| wide(a[i]) * wide(w16[i * n + n0 + j]));
                let size: f64 = products.clone().map(f64::abs).sum();
                let bound = k as f64 * (size * f64::from(f32::EPSILON) + f64::from(f32::MIN_POSITIVE));
                assert!((f64::from(y) - products.sum::<f64>()).abs() <= bound, "{kernels:?} {k}x{n} [{j}]");
            }
            let n0 = bytes.col_granule() * rng.usize(0..=(n - 1) / bytes.col_granule());
            let mut sums = vec![-1; n - n0];
            gemv_u8i8(kernels, &q, &bytes, n0, rng.bool(), &mut sums);
            for (j, &sum) in sums.iter().enumerate() {
                let want: i32 = (0..k).map(|i| i32::from(q[i]) * i32::from(w[i * n + n0 + j])).sum();
                assert_eq!(sum, want, "{kernels:?} {k}x{n} [{j}]");
            }
        }
    }
}
