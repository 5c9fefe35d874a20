//! Every GEMM row of the table against naive loops, on random shapes.

use fastrand::Rng;
use sora_kernels::{
    ARows, Activation, Binary, Contract, Dense, Dequant, EpilogueF32, EpilogueI32, Family, Indirect, Isa,
    KERNELS, Kernels, MatMut, Output, PAD, PackedBf16, PackedF32, PackedI8, Quant, Residual, Rhs, Stepped,
    bf16, fold_zero_point, gemm_bf16, gemm_f32, gemm_u8i8, quantize::binary_u8,
};

fn reals(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.f32() * 2.0 - 1.0).collect()
}

/// A random left operand: its storage, its offsets if gathered, and its rows written out.
struct Case<T> {
    base: Vec<T>,
    offsets: Vec<u32>,
    /// Between pieces, where offsets are those of first ones.
    step: Option<usize>,
    pad: Vec<T>,
    m: usize,
    taps: usize,
    kc: usize,
    n: usize,
    stride: usize,
    dense: Vec<T>,
}

impl<T: Copy> Case<T> {
    fn random(rng: &mut Rng, mut value: impl FnMut(&mut Rng) -> T) -> Self {
        let m = *rng.choice(&[1, 1, 2, 3, 5, 13, 14, 15, 29, 40]).unwrap();
        let n = *rng.choice(&[1, 3, 8, 16, 17, 31, 32, 33, 65, 127, 128, 200]).unwrap();
        let gathered = rng.bool();
        let taps = if gathered { rng.usize(1..=9) } else { 1 };
        let kc = *rng.choice(&[1, 2, 3, 4, 5, 7, 16, 30, 64, 255, 257, 515]).unwrap();
        let mut case = Case {
            base: Vec::new(),
            offsets: Vec::new(),
            step: (gathered && rng.bool()).then(|| rng.usize(1..50)),
            pad: (0..kc).map(|_| value(rng)).collect(),
            m,
            taps,
            kc,
            n,
            stride: kc + rng.usize(0..3),
            dense: Vec::new(),
        };
        if let Some(step) = case.step {
            let whole = (taps - 1) * step + kc;
            case.base = (0..whole + rng.usize(0..200)).map(|_| value(rng)).collect();
            for _ in 0..m {
                let at = rng.usize(0..=case.base.len() - whole);
                case.offsets.push(at as u32);
                for tap in 0..taps {
                    case.dense.extend_from_slice(&case.base[at + tap * step..][..kc]);
                }
            }
        } else if gathered {
            // Exactly as long as the furthest piece, so that a read past the end is a crash away.
            case.base = (0..kc + rng.usize(0..200)).map(|_| value(rng)).collect();
            for _ in 0..m * taps {
                let pad = rng.usize(0..4) == 0;
                let at = rng.usize(0..=case.base.len() - kc);
                case.offsets.push(if pad { PAD } else { at as u32 });
                let from = if pad { &case.pad[..] } else { &case.base[at..at + kc] };
                case.dense.extend_from_slice(from);
            }
        } else {
            case.base = (0..(m - 1) * case.stride + kc).map(|_| value(rng)).collect();
            for r in 0..m {
                case.dense.extend_from_slice(&case.base[r * case.stride..][..kc]);
            }
        }
        case
    }

    fn a(&self) -> ARows<'_, T> {
        if self.offsets.is_empty() {
            ARows::Dense(Dense { data: &self.base, rows: self.m, stride: self.stride, k: self.kc })
        } else if let Some(step) = self.step {
            let Self { base, offsets, taps, kc, .. } = self;
            ARows::Stepped(Stepped { base, offsets, taps: *taps, step, kc: *kc })
        } else {
            ARows::Indirect(Indirect {
                base: &self.base,
                offsets: &self.offsets,
                taps: self.taps,
                kc: self.kc,
                pad: &self.pad,
            })
        }
    }

    /// Rows `first..first + rows` of [`Self::a`].
    fn rows(&self, first: usize, rows: usize) -> ARows<'_, T> {
        match self.a() {
            ARows::Dense(d) => ARows::Dense(Dense { data: &d.data[first * d.stride..], rows, ..d }),
            ARows::Indirect(x) => ARows::Indirect(Indirect {
                offsets: &x.offsets[first * x.taps..(first + rows) * x.taps],
                ..x
            }),
            ARows::Stepped(s) => ARows::Stepped(Stepped { offsets: &s.offsets[first..first + rows], ..s }),
        }
    }

    fn depth(&self) -> usize {
        self.taps * self.kc
    }
}

#[test]
fn f32_rows_match_naive_loops() {
    let mut rng = Rng::with_seed(1);
    for row in KERNELS.iter().filter(|r| r.family == Family::GemmF32) {
        let Ok(kernels) = Kernels::for_isa(row.isa) else { continue };
        assert_eq!(row.contract, Contract::DotProduct);
        for _ in 0..150 {
            let case = Case::random(&mut rng, |r| r.f32() * 2.0 - 1.0);
            let (m, n, k) = (case.m, case.n, case.depth());
            let b = reals(&mut rng, k * n);
            let packed = PackedF32::pack(kernels, case.taps, case.kc, n, |i, j| b[i * n + j]);
            assert_eq!(packed.col_granule(), row.tile.nr, "{}", row.name);
            let bias = reals(&mut rng, n);
            let residual = reals(&mut rng, m * n);
            let ep = EpilogueF32 {
                bias: rng.bool().then_some(&bias[..]),
                residual: rng.bool().then_some(Residual::F32 { data: &residual, ld: n }),
                activation: Activation::LeakyRelu { alpha: 0.25 },
            };
            let ld = n + 3;
            let mut c = vec![f32::NAN; m * ld];
            let out = Output::F32(MatMut::new(&mut c, m, n, ld));
            gemm_f32(kernels, &case.a(), &packed, 0, &ep, out);
            // However the work is split, the same bits come out.
            let mut split = vec![f32::NAN; m * ld];
            let out = Output::F32(MatMut::new(&mut split, m, n, ld));
            for (r0, band) in out.split_rows(rng.usize(1..4)) {
                let (a, rows) = (case.rows(r0, band.rows()), &residual[r0 * n..]);
                let residual = ep.residual.map(|_| Residual::F32 { data: rows, ld: n });
                let ep = EpilogueF32 { residual, ..ep };
                for (n0, part) in band.split_cols(rng.usize(1..4), row.tile.nr) {
                    gemm_f32(kernels, &a, &packed, n0, &ep, part);
                }
            }
            assert!(c.iter().zip(&split).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", row.name);
            for i in 0..m {
                for j in 0..n {
                    let (mut sum, mut size) = (0.0f64, 0.0f64);
                    for x in 0..k {
                        let p = f64::from(case.dense[i * k + x]) * f64::from(b[x * n + j]);
                        sum += p;
                        size += p.abs();
                    }
                    sum += ep.bias.map_or(0.0, |b| f64::from(b[j]));
                    sum += ep.residual.map_or(0.0, |_| f64::from(residual[i * n + j]));
                    let want = if sum < 0.0 { 0.25 * sum } else { sum };
                    let bound = (k as f64 * size + 4.0) * f64::from(f32::EPSILON);
                    let got = f64::from(c[i * ld + j]);
                    assert!(
                        (got - want).abs() <= bound,
                        "{} m={m} n={n} k={k} [{i},{j}]: {got} != {want}",
                        row.name
                    );
                }
                assert!(c[i * ld + n..(i + 1) * ld].iter().all(|x| x.is_nan()));
            }
        }
    }
}

#[test]
fn bf16_rows_match_naive_loops_on_rounded_operands() {
    let mut rng = Rng::with_seed(4);
    for row in KERNELS.iter().filter(|r| r.family == Family::GemmBf16) {
        let Ok(kernels) = Kernels::for_isa(row.isa) else { continue };
        assert_eq!(row.contract, Contract::DotProduct);
        for round in 0..150 {
            // Some cases are so small that products and sums are subnormal.
            let size = if round % 10 == 0 { 1e-19 } else { 1.0 };
            let real = |r: &mut Rng| bf16::round(size * (r.f32() * 2.0 - 1.0));
            let case = Case::random(&mut rng, real);
            let (m, n, k) = (case.m, case.n, case.depth());
            let b: Vec<u16> = (0..k * n).map(|_| real(&mut rng)).collect();
            let packed = PackedBf16::pack(kernels, case.taps, case.kc, n, |i, j| b[i * n + j]);
            assert_eq!(packed.col_granule(), row.tile.nr, "{}", row.name);
            let bias = reals(&mut rng, n);
            let residual: Vec<u16> = (0..m * n).map(|_| real(&mut rng)).collect();
            let ep = EpilogueF32 {
                bias: rng.bool().then_some(&bias[..]),
                residual: rng.bool().then_some(Residual::Bf16 { data: &residual, ld: n }),
                activation: *rng
                    .choice(&[Activation::None, Activation::Relu, Activation::Silu, Activation::HardSwish])
                    .unwrap(),
            };
            let mut c = vec![f32::NAN; m * n];
            gemm_bf16(kernels, &case.a(), &packed, 0, &ep, Output::F32(MatMut::new(&mut c, m, n, n)));
            let ld = n + 3;
            let mut rounded = vec![7; m * ld];
            for (r0, band) in Output::Bf16(MatMut::new(&mut rounded, m, n, ld)).split_rows(rng.usize(1..4)) {
                let (a, rows) = (case.rows(r0, band.rows()), &residual[r0 * n..]);
                let ep =
                    EpilogueF32 { residual: ep.residual.map(|_| Residual::Bf16 { data: rows, ld: n }), ..ep };
                for (n0, part) in band.split_cols(rng.usize(1..4), row.tile.nr) {
                    gemm_bf16(kernels, &a, &packed, n0, &ep, part);
                }
            }
            let wide = |x: u16| f64::from(bf16::widen(x));
            for i in 0..m {
                for j in 0..n {
                    let (mut sum, mut size) = (0.0f64, 0.0f64);
                    for x in 0..k {
                        let p = wide(case.dense[i * k + x]) * wide(b[x * n + j]);
                        sum += p;
                        size += p.abs();
                    }
                    let dot = f64::from(f32::EPSILON) * size + f64::from(f32::MIN_POSITIVE);
                    let terms = [
                        sum,
                        ep.bias.map_or(0.0, |b| f64::from(b[j])),
                        ep.residual.map_or(0.0, |_| wide(residual[i * n + j])),
                    ];
                    let sum: f64 = terms.iter().sum();
                    let adds: f64 = terms.iter().map(|t| 2.0 * t.abs() * f64::from(f32::EPSILON)).sum();
                    let want = match ep.activation {
                        Activation::Relu => sum.max(0.0),
                        Activation::Silu => sum / (1.0 + (-sum).exp()),
                        Activation::HardSwish => sum * (sum / 6.0 + 0.5).clamp(0.0, 1.0),
                        _ => sum,
                    };
                    // The smooth ones are no steeper than 1.5 where they add an error of their own.
                    let bound = 1.5 * (k as f64 * dot + adds) + 1e-6 * want.abs();
                    let got = f64::from(c[i * n + j]);
                    assert!(
                        (got - want).abs() <= bound,
                        "{} {m}x{n}x{k} [{i},{j}]: {got} != {want}",
                        row.name
                    );
                    // Split or not, the same sum is rounded.
                    let (found, sum) = (rounded[i * ld + j], c[i * n + j]);
                    if ep.activation == Activation::Silu {
                        // By 2⁻⁸, after an approximation within 2⁻¹².
                        let off = (bf16::widen(found) - sum).abs();
                        assert!(off <= sum.abs() / 240.0 + 1e-35, "{}: {off} of {sum}", row.name);
                    } else {
                        assert_eq!(found, bf16::round(sum), "{}", row.name);
                    }
                }
                assert!(rounded[i * ld + n..(i + 1) * ld].iter().all(|&x| x == 7));
            }
        }
    }
}

#[test]
fn integer_rows_are_exact_and_equal_on_every_isa() {
    let mut rng = Rng::with_seed(2);
    for _ in 0..250 {
        let extreme = rng.bool();
        // Some kernels multiply mostly small bytes, or such near to the middle, in a way of their own.
        let usual = rng.choice([0..=255, 255..=255, 0..=110, 90..=170]).unwrap();
        let case = Case::random(&mut rng, |r| match r.u8(..) {
            0 => *r.choice(&[0, 128, 255]).unwrap(),
            _ => r.u8(usual.clone()),
        });
        let (m, n, k) = (case.m, case.n, case.depth());
        let b: Vec<i8> = (0..k * n).map(|_| if extreme { -128 } else { rng.i8(..) }).collect();
        let zp = i32::from(rng.u8(..));
        let bias: Vec<i32> = (0..n).map(|_| rng.i32(-5000..5000)).collect();
        let scale: Vec<f32> = (0..n).map(|_| 1e-4 * (rng.f32() + 0.1)).collect();
        let offset: Option<Vec<f32>> = rng.bool().then(|| (0..n).map(|_| rng.f32() - 0.5).collect());
        let residual: Vec<u8> = (0..m * n).map(|_| rng.u8(..)).collect();
        let activation = *rng
            .choice(&[
                Activation::None,
                Activation::Relu,
                Activation::Clip { min: -0.5, max: 1.0 },
                Activation::Silu,
                Activation::HardSwish,
            ])
            .unwrap();
        let quant = Quant::new(0.02, 100);
        let mut bytes: Option<Vec<u8>> = None;
        for row in KERNELS.iter().filter(|r| r.family == Family::GemmU8I8) {
            let Ok(kernels) = Kernels::for_isa(row.isa) else { continue };
            let packed = PackedI8::pack(kernels, case.taps, case.kc, n, |i, j| b[i * n + j]);
            assert_eq!(packed.col_granule(), row.tile.nr, "{}", row.name);
            let folded = fold_zero_point(Some(&bias), packed.col_sums(), zp);

            // With unit scales the accumulators themselves come out, where f32 holds them.
            let ones = vec![1.0; n];
            let plain = EpilogueI32 {
                bias: Some(&folded),
                scale: &ones,
                offset: None,
                residual: None,
                activation: Activation::None,
            };
            let mut c = vec![0.0f32; m * n];
            let out = Output::F32(MatMut::new(&mut c, m, n, n));
            gemm_u8i8(kernels, &case.a(), &packed, 0, &plain, out);
            for i in 0..m {
                for j in 0..n {
                    let want: i32 = (0..k)
                        .map(|x| (i32::from(case.dense[i * k + x]) - zp) * i32::from(b[x * n + j]))
                        .sum::<i32>()
                        + bias[j];
                    assert_eq!(c[i * n + j], want as f32, "{} {m}x{n}x{k}", row.name);
                }
            }

            let full = EpilogueI32 {
                bias: Some(&folded),
                scale: &scale,
                offset: offset.as_deref(),
                residual: Some(Residual::U8 { data: &residual, ld: n, scale: 0.01, zero_point: 3 }),
                activation,
            };
            let mut q = vec![0u8; m * n];
            for (r0, part) in Output::U8(MatMut::new(&mut q, m, n, n), quant).split_rows(2) {
                let a = case.rows(r0, part.rows());
                let data = &residual[r0 * n..];
                let residual = Residual::U8 { data, ld: n, scale: 0.01, zero_point: 3 };
                let ep = EpilogueI32 { residual: Some(residual), ..full };
                gemm_u8i8(kernels, &a, &packed, 0, &ep, part);
            }
            let first = bytes.get_or_insert_with(|| q.clone());
            assert_eq!(*first, q, "{} differs from portable", row.name);

            // A sum of quantized tensors is the product's bytes and the residual's, added.
            let product = Dequant { scale: 0.015, zero_point: rng.i32(0..256) };
            let input = Dequant { scale: 0.01, zero_point: 3 };
            let sum = Residual::QuantizedSum { product, data: &residual, ld: n, input };
            let alone = EpilogueI32 { residual: None, activation: Activation::None, ..full };
            let (mut rounded, mut sums) = (vec![0u8; m * n], vec![0u8; m * n]);
            let out =
                Output::U8(MatMut::new(&mut rounded, m, n, n), Quant::new(product.scale, product.zero_point));
            gemm_u8i8(kernels, &case.a(), &packed, 0, &alone, out);
            let out = Output::U8(MatMut::new(&mut sums, m, n, n), quant);
            gemm_u8i8(kernels, &case.a(), &packed, 0, &EpilogueI32 { residual: Some(sum), ..full }, out);
            let mut want = vec![0u8; m * n];
            let rhs = Rhs::Same(&residual[..]);
            binary_u8(kernels, Binary::Add, &rounded, product, rhs, input, activation, &mut want, quant);
            assert_eq!(sums, want, "{} {m}x{n}x{k} {activation:?}", row.name);

            // Signed residuals and outputs are the unsigned ones shifted.
            let signed: Vec<i8> = residual.iter().map(|r| (r ^ 128) as i8).collect();
            let residual = Residual::I8 { data: &signed, ld: n, scale: 0.01, zero_point: -125 };
            let full = EpilogueI32 { residual: Some(residual), ..full };
            let mut s = vec![0i8; m * n];
            let out = Output::I8(MatMut::new(&mut s, m, n, n), Quant::new(0.02, -28));
            gemm_u8i8(kernels, &case.a(), &packed, 0, &full, out);
            assert!(q.iter().zip(&s).all(|(&u, &i)| i32::from(u) - 128 == i32::from(i)));
        }
    }
}

#[test]
fn transposed_and_row_major_packing_agree() {
    let mut rng = Rng::with_seed(3);
    for &isa in Isa::available() {
        let kernels = Kernels::for_isa(isa).unwrap();
        let (k, n, m) = (19, 37, 6);
        let a = reals(&mut rng, m * k);
        let b = reals(&mut rng, k * n);
        let bt: Vec<f32> = (0..n * k).map(|i| b[(i % k) * n + i / k]).collect();
        let rows = ARows::Dense(Dense { data: &a, rows: m, stride: k, k });
        let mut results = Vec::new();
        let mut reused = PackedF32::from_kn(kernels, &[0.5; 1000], 10, 100, 100);
        reused.repack_nk(&bt, k, n, k);
        for packed in
            [PackedF32::from_kn(kernels, &b, k, n, n), PackedF32::from_nk(kernels, &bt, k, n, k), reused]
        {
            let mut c = vec![0.0; m * n];
            let out = Output::F32(MatMut::new(&mut c, m, n, n));
            gemm_f32(kernels, &rows, &packed, 0, &EpilogueF32::default(), out);
            results.push(c);
        }
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
    }
}

#[test]
fn rounding_is_half_to_even_and_saturates() {
    for &isa in Isa::available() {
        let kernels = Kernels::for_isa(isa).unwrap();
        let values = [0.5f32, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0, 1e30, -1e30, f32::NAN];
        let a = ARows::Dense(Dense { data: &values, rows: values.len(), stride: 1, k: 1 });
        let one = PackedF32::from_kn(kernels, &[1.0], 1, 1, 1);
        let mut q = [0u8; 10];
        let out = Output::U8(MatMut::new(&mut q, 10, 1, 1), Quant::new(1.0, 10));
        gemm_f32(kernels, &a, &one, 0, &EpilogueF32::default(), out);
        assert_eq!(q, [10, 12, 12, 10, 8, 255, 0, 255, 0, 0], "{isa}");
    }
}

#[test]
fn empty_shapes_are_fine_and_an_empty_sum_is_zero() {
    for &isa in Isa::available() {
        let kernels = Kernels::for_isa(isa).unwrap();
        for (m, n, k) in [(0, 5, 3), (4, 0, 3), (3, 40, 0), (1, 200, 0)] {
            let a = vec![1.0; m * k];
            let bias = vec![2.5; n];
            let rows = ARows::Dense(Dense { data: &a, rows: m, stride: k, k });
            let packed = PackedF32::from_kn(kernels, &vec![1.0; k * n], k, n, n);
            let ep = EpilogueF32 { bias: Some(&bias), ..Default::default() };
            let mut c = vec![0.0; m * n];
            gemm_f32(kernels, &rows, &packed, 0, &ep, Output::F32(MatMut::new(&mut c, m, n, n)));
            assert!(k > 0 || c.iter().all(|&c| c == 2.5));

            let a = vec![1u8; m * k];
            let rows = ARows::Dense(Dense { data: &a, rows: m, stride: k, k });
            let packed = PackedI8::from_kn(kernels, &vec![1; k * n], k, n, n);
            assert!(packed.col_sums().iter().all(|&s| s == k as i32));
            let ep = EpilogueI32 {
                bias: Some(&vec![3; n]),
                scale: &vec![0.5; n],
                offset: None,
                residual: None,
                activation: Activation::None,
            };
            gemm_u8i8(kernels, &rows, &packed, 0, &ep, Output::F32(MatMut::new(&mut c, m, n, n)));
            assert!(k > 0 || c.iter().all(|&c| c == 1.5));
        }
    }
}

#[test]
#[should_panic(expected = "out of range")]
fn a_piece_past_the_input_is_refused() {
    let kernels = Kernels::best();
    let packed = PackedF32::from_kn(kernels, &[1.0; 4], 4, 1, 1);
    let a = Indirect { base: &[0.0; 7], offsets: &[4], taps: 1, kc: 4, pad: &[] };
    let mut c = [0.0];
    let out = Output::F32(MatMut::new(&mut c, 1, 1, 1));
    gemm_f32(kernels, &ARows::Indirect(a), &packed, 0, &EpilogueF32::default(), out);
}

#[test]
#[should_panic(expected = "out of range")]
fn a_stepped_piece_past_the_input_is_refused() {
    let kernels = Kernels::best();
    let packed = PackedF32::pack(kernels, 2, 4, 1, |_, _| 1.0);
    let a = Stepped { base: &[0.0; 14], offsets: &[0, 1], taps: 2, step: 10, kc: 4 };
    let mut c = [0.0; 2];
    let out = Output::F32(MatMut::new(&mut c, 2, 1, 1));
    gemm_f32(kernels, &ARows::Stepped(a), &packed, 0, &EpilogueF32::default(), out);
}

#[test]
#[should_panic(expected = "multiple")]
fn a_column_inside_a_panel_is_refused() {
    let kernels = Kernels::best();
    let packed = PackedF32::from_kn(kernels, &[1.0; 40], 1, 40, 40);
    let a = ARows::Dense(Dense { data: &[1.0], rows: 1, stride: 1, k: 1 });
    let mut c = [0.0];
    let out = Output::F32(MatMut::new(&mut c, 1, 1, 1));
    gemm_f32(kernels, &a, &packed, 3, &EpilogueF32::default(), out);
}

#[test]
fn operands_cross_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<(PackedF32, PackedBf16, PackedI8, Kernels)>();
    shared::<(Output<'_>, ARows<'_, f32>, ARows<'_, u8>)>();
}
