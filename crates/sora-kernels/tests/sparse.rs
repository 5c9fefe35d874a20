//! Every sparse row of the table against naive loops, on random shapes and shares of zeros.

use fastrand::Rng;
use sora_kernels::{
    ARows, Activation, Contract, Dense, EpilogueF32, EpilogueI32, Family, Indirect, KERNELS, Kernels, MatMut,
    Output, PAD, PackedI8, Quant, Residual, SparseF32, SparseI8, gemm_u8i8, sparse_f32, sparse_u8i8,
};

fn reals(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.f32() * 2.0 - 1.0).collect()
}

/// A left operand of `m` rows of `taps` pieces, gathered or dense, with its rows written out.
struct Left<T> {
    base: Vec<T>,
    offsets: Vec<u32>,
    pad: Vec<T>,
    m: usize,
    taps: usize,
    kc: usize,
    rows: Vec<T>,
}

impl<T: Copy> Left<T> {
    fn random(rng: &mut Rng, value: impl Fn(&mut Rng) -> T) -> Self {
        let some = |rng: &mut Rng, n: usize| (0..n).map(|_| value(rng)).collect::<Vec<T>>();
        let m = *rng.choice(&[1, 1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 49, 64, 65, 100, 129, 200]).unwrap();
        let taps = *rng.choice(&[1, 1, 2, 9]).unwrap();
        let kc = *rng.choice(&[1, 2, 3, 5, 8, 16, 30, 64, 130]).unwrap();
        let (pad, mut base, mut offsets) = (some(rng, kc), some(rng, m * kc), Vec::new());
        let mut rows = base.clone();
        if taps > 1 {
            // Exactly as long as the furthest piece, so that a read past the end is a crash away.
            base.truncate(kc + rng.usize(0..=base.len() - kc));
            rows.clear();
            for _ in 0..m * taps {
                let at = rng.usize(0..=base.len() - kc);
                let padded = rng.u8(0..4) == 0;
                offsets.push(if padded { PAD } else { at as u32 });
                rows.extend_from_slice(if padded { &pad } else { &base[at..at + kc] });
            }
        }
        Left { base, offsets, pad, m, taps, kc, rows }
    }

    /// Rows from `first` on.
    fn part(&self, first: usize, rows: usize) -> ARows<'_, T> {
        let &Left { taps, kc, .. } = self;
        match taps {
            1 => ARows::Dense(Dense { data: &self.base[first * kc..], rows, stride: kc, k: kc }),
            _ => ARows::Indirect(Indirect {
                base: &self.base,
                offsets: &self.offsets[first * taps..(first + rows) * taps],
                taps,
                kc,
                pad: &self.pad,
            }),
        }
    }
}

/// A matrix with columns of zeros, or of nothing else.
fn weights(rng: &mut Rng, k: usize, n: usize) -> Vec<f32> {
    let share = *rng.choice(&[0.0, 0.5, 0.9, 0.98, 1.0]).unwrap();
    let empty: Vec<bool> = (0..n).map(|_| rng.u8(0..5) == 0).collect();
    let zero = |rng: &mut Rng, j: usize| empty[j] || rng.f64() < share;
    (0..k * n).map(|i| if zero(rng, i % n) { 0.0 } else { rng.f32() * 2.0 - 1.0 }).collect()
}

#[test]
fn real_rows_match_naive_loops() {
    let mut rng = Rng::with_seed(1);
    for row in KERNELS.iter().filter(|row| row.family == Family::SparseF32) {
        let Ok(kernels) = Kernels::for_isa(row.isa) else { continue };
        assert_eq!(row.contract, Contract::DotProduct);
        for _ in 0..200 {
            let left = Left::random(&mut rng, |rng| rng.f32() * 2.0 - 1.0);
            let (m, k) = (left.m, left.taps * left.kc);
            let n = *rng.choice(&[1, 3, 8, 15, 16, 17, 31, 40, 70]).unwrap();
            let b = weights(&mut rng, k, n);
            let packed = SparseF32::pack(kernels, left.taps, left.kc, n, |i, j| b[i * n + j]);
            assert_eq!(packed.nonzeros(), b.iter().filter(|&&b| b != 0.0).count());
            assert_eq!((packed.n(), packed.col_granule()), (n, row.tile.nr), "{}", row.name);
            let (bias, residual) = (reals(&mut rng, n), reals(&mut rng, m * n));
            let activation = *rng.choice(&[Activation::None, Activation::Relu, Activation::Gelu]).unwrap();
            let ep = EpilogueF32 {
                bias: rng.bool().then_some(&bias[..]),
                residual: rng.bool().then_some(Residual::F32 { data: &residual, ld: n }),
                activation,
            };
            let ld = n + 3;
            let mut c = vec![f32::NAN; m * ld];
            for (r0, band) in Output::F32(MatMut::new(&mut c, m, n, ld)).split_rows(rng.usize(1..4)) {
                let (a, residual) = (left.part(r0, band.rows()), &residual[r0 * n..]);
                let residual = ep.residual.map(|_| Residual::F32 { data: residual, ld: n });
                let ep = EpilogueF32 { residual, ..ep };
                for (n0, part) in band.split_cols(rng.usize(1..4), row.tile.nr) {
                    sparse_f32(kernels, &a, &packed, n0, &ep, part);
                }
            }
            for i in 0..m {
                for j in 0..n {
                    let products = (0..k).map(|x| f64::from(left.rows[i * k + x]) * f64::from(b[x * n + j]));
                    let (mut sum, mut size) = products.fold((0.0, 0.0), |(s, z), p| (s + p, z + p.abs()));
                    sum += ep.bias.map_or(0.0, |b| f64::from(b[j]));
                    sum += ep.residual.map_or(0.0, |_| f64::from(residual[i * n + j]));
                    size += 4.0;
                    let want = match activation {
                        Activation::Relu => sum.max(0.0),
                        Activation::Gelu => 0.5 * sum * (1.0 + libm::erf(sum / 2f64.sqrt())),
                        _ => sum,
                    };
                    let bound = 1.2 * (k as f64 + 4.0) * size * f64::from(f32::EPSILON);
                    let got = f64::from(c[i * ld + j]);
                    let name = row.name;
                    assert!((got - want).abs() <= bound, "{name} {m}x{n}x{k} [{i},{j}]: {got} != {want}");
                }
                assert!(c[i * ld + n..(i + 1) * ld].iter().all(|x| x.is_nan()));
            }
            // The epilogue that is not finished in registers stores the same sums.
            let (mut reals, mut bytes) = (vec![0.0; m * n], vec![0; m * n]);
            let plain = EpilogueF32 { residual: None, activation: Activation::None, ..ep };
            let (a, quant) = (left.part(0, m), Quant::new(0.05, 128));
            sparse_f32(kernels, &a, &packed, 0, &plain, Output::F32(MatMut::new(&mut reals, m, n, n)));
            sparse_f32(kernels, &a, &packed, 0, &plain, Output::U8(MatMut::new(&mut bytes, m, n, n), quant));
            for (x, q) in reals.iter().zip(bytes) {
                assert!((x / 0.05 + 128.0).clamp(0.0, 255.0) - f32::from(q) <= 0.5001);
            }
        }
    }
}

/// Zeros in blocks of all sizes, and extreme weights among the others.
fn bytes_in_blocks(rng: &mut Rng, k: usize, n: usize) -> Vec<i8> {
    let share = *rng.choice(&[0.0, 0.5, 0.8, 0.95, 1.0]).unwrap();
    let [depths, columns] = [rng.usize(1..10), *rng.choice(&[1, 8, 16, 32]).unwrap()];
    let zero: Vec<bool> = (0..k.div_ceil(depths) * n.div_ceil(columns)).map(|_| rng.f64() < share).collect();
    let extreme = rng.bool();
    let value = |rng: &mut Rng| if extreme { -128 } else { rng.i8(..) };
    let is_zero = |i: usize, j: usize| zero[i / depths * n.div_ceil(columns) + j / columns];
    (0..k * n).map(|i| if is_zero(i / n, i % n) { 0 } else { value(rng) }).collect()
}

#[test]
fn bytes_without_blocks_of_zeros_give_the_integers_of_the_dense_product() {
    let mut rng = Rng::with_seed(4);
    for row in KERNELS.iter().filter(|row| row.family == Family::GemmU8I8) {
        let Ok(kernels) = Kernels::for_isa(row.isa) else { continue };
        for _ in 0..200 {
            let left = Left::random(&mut rng, |rng| rng.u8(..));
            let (m, k) = (left.m, left.taps * left.kc);
            let n = *rng.choice(&[1, 3, 8, 16, 17, 33, 40, 70]).unwrap();
            let b = bytes_in_blocks(&mut rng, k, n);
            let dense = PackedI8::pack(kernels, left.taps, left.kc, n, |i, j| b[i * n + j]);
            let sparse = SparseI8::of(&dense);
            assert_eq!((sparse.n(), sparse.col_granule()), (n, row.tile.nr), "{}", row.name);
            assert_eq!(sparse.col_sums(), dense.col_sums());
            let [kept, all] = sparse.blocks();
            assert!(kept <= all && (kept == 0) == b.iter().all(|&b| b == 0));
            let (scale, residual) = (vec![0.01; n], (0..m * n).map(|_| rng.u8(..)).collect::<Vec<_>>());
            let ep = EpilogueI32 {
                bias: None,
                scale: &scale,
                offset: None,
                residual: Some(Residual::U8 { data: &residual, ld: n, scale: 0.01, zero_point: 3 }),
                activation: Activation::Relu,
            };
            let plain =
                EpilogueI32 { residual: None, activation: Activation::None, scale: &vec![1.0; n], ..ep };
            let quant = Quant::new(0.02, 100);
            let (mut q, mut sums) =
                ([vec![0u8; m * n], vec![0u8; m * n]], [vec![0.0; m * n], vec![0.0; m * n]]);
            gemm_u8i8(
                kernels,
                &left.part(0, m),
                &dense,
                0,
                &ep,
                Output::U8(MatMut::new(&mut q[0], m, n, n), quant),
            );
            gemm_u8i8(
                kernels,
                &left.part(0, m),
                &dense,
                0,
                &plain,
                Output::F32(MatMut::new(&mut sums[0], m, n, n)),
            );
            sparse_u8i8(
                kernels,
                &left.part(0, m),
                &sparse,
                0,
                &plain,
                Output::F32(MatMut::new(&mut sums[1], m, n, n)),
            );
            let out = Output::U8(MatMut::new(&mut q[1], m, n, n), quant);
            for (r0, band) in out.split_rows(rng.usize(1..4)) {
                let a = left.part(r0, band.rows());
                let data = &residual[r0 * n..];
                let residual = Some(Residual::U8 { data, ld: n, scale: 0.01, zero_point: 3 });
                let ep = EpilogueI32 { residual, ..ep };
                for (n0, part) in band.split_cols(rng.usize(1..4), row.tile.nr) {
                    sparse_u8i8(kernels, &a, &sparse, n0, &ep, part);
                }
            }
            assert!(q[0] == q[1] && sums[0] == sums[1], "{} {m}x{n}x{k}", row.name);
        }
    }
}

#[test]
fn products_without_rows_columns_or_depth_are_fine() {
    for kernels in Kernels::all_available() {
        for (m, n, k) in [(0, 5, 3), (4, 0, 3), (3, 40, 0), (1, 20, 0)] {
            let a = vec![1.0; m * k];
            let rows = ARows::Dense(Dense { data: &a, rows: m, stride: k, k });
            let packed = SparseF32::pack(kernels, 1, k, n, |_, _| 1.0);
            let bias = vec![2.5; n];
            let ep = EpilogueF32 { bias: Some(&bias), ..Default::default() };
            let mut c = vec![0.0; m * n];
            sparse_f32(kernels, &rows, &packed, 0, &ep, Output::F32(MatMut::new(&mut c, m, n, n)));
            assert!(k > 0 || c.iter().all(|&c| c == 2.5));

            let a = vec![1; m * k];
            let rows = ARows::Dense(Dense { data: &a, rows: m, stride: k, k });
            let packed = SparseI8::of(&PackedI8::pack(kernels, 1, k, n, |_, _| 1));
            let (scale, offset) = (vec![0.5; n], vec![1.5; n]);
            let (bias, activation) = (None, Activation::None);
            let ep = EpilogueI32 { bias, scale: &scale, offset: Some(&offset), residual: None, activation };
            sparse_u8i8(kernels, &rows, &packed, 0, &ep, Output::F32(MatMut::new(&mut c, m, n, n)));
            assert!(k > 0 || c.iter().all(|&c| c == 1.5));
        }
    }
}

#[test]
#[should_panic(expected = "multiple")]
fn a_column_inside_a_panel_is_refused() {
    let kernels = Kernels::best();
    let packed = SparseF32::pack(kernels, 1, 1, 40, |_, _| 1.0);
    let a = ARows::Dense(Dense { data: &[1.0], rows: 1, stride: 1, k: 1 });
    let mut c = [0.0];
    let out = Output::F32(MatMut::new(&mut c, 1, 1, 1));
    sparse_f32(kernels, &a, &packed, 3, &EpilogueF32::default(), out);
}
