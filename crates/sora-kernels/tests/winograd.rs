//! Every Winograd row of the table against naive loops, on random shapes.

use fastrand::Rng;
use sora_kernels::{
    Activation, Contract, EpilogueF32, Family, Images, KERNELS, Kernels, MatMut, PackedWinograd, Residual,
    TileEdge, winograd_f32,
};

fn reals(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.f32() * 2.0 - 1.0).collect()
}

struct Case {
    images: usize,
    input: [usize; 2],
    pad: [usize; 2],
    output: [usize; 2],
    channels: usize,
    n: usize,
    x: Vec<f32>,
    w: Vec<f32>,
}

impl Case {
    fn random(rng: &mut Rng) -> Self {
        let images = rng.usize(1..4);
        let input = [rng.usize(1..18), rng.usize(1..18)];
        let pad = [rng.usize(0..3), rng.usize(0..3)];
        // Whatever padding behind makes a window fit.
        let output = [0, 1].map(|a| (input[a] + pad[a] + rng.usize(0..3)).saturating_sub(2).max(1));
        let channels = *rng.choice(&[1, 3, 4, 8, 15, 16, 17, 31, 40, 70]).unwrap();
        let n = *rng.choice(&[1, 3, 8, 15, 16, 31, 32, 33, 47, 65, 100]).unwrap();
        let x = reals(rng, images * input[0] * input[1] * channels);
        let w = reals(rng, n * channels * 9);
        Case { images, input, pad, output, channels, n, x, w }
    }

    fn images(&self) -> Images<'_> {
        let &Case { images, input, pad, output, channels, .. } = self;
        Images { data: &self.x, images, input, channels, pad, output }
    }

    fn pixels(&self) -> usize {
        self.images * self.output[0] * self.output[1]
    }

    /// The sum of column `n` at an output pixel.
    fn exact(&self, pixel: usize, n: usize) -> f64 {
        let (image, within) =
            (pixel / (self.output[0] * self.output[1]), pixel % (self.output[0] * self.output[1]));
        let at = [within / self.output[1], within % self.output[1]];
        let mut sum = 0.0;
        for tap in 0..9 {
            let y = (at[0] + tap / 3).wrapping_sub(self.pad[0]);
            let x = (at[1] + tap % 3).wrapping_sub(self.pad[1]);
            if y < self.input[0] && x < self.input[1] {
                let from = ((image * self.input[0] + y) * self.input[1] + x) * self.channels;
                for c in 0..self.channels {
                    sum += f64::from(self.x[from + c]) * f64::from(self.w[(n * self.channels + c) * 9 + tap]);
                }
            }
        }
        sum
    }
}

/// Computes rows `rows` of tiles and columns from `n0` into a matrix that begins there.
#[allow(clippy::too_many_arguments)]
fn run(
    k: Kernels,
    case: &Case,
    packed: &PackedWinograd,
    rows: std::ops::Range<usize>,
    n0: usize,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    activation: Activation,
    out: MatMut<'_, f32>,
) {
    let x = case.images();
    let edge = packed.edge();
    let tiles = rows.len() * case.output[1].div_ceil(edge.pixels());
    let mut scratch = vec![f32::NAN; packed.scratch_len(tiles)];
    let skip = x.first_pixel(edge, rows.start) * case.n;
    let residual = residual.map(|r| Residual::F32 { data: &r[skip..], ld: case.n });
    winograd_f32(k, &x, rows, packed, n0, &EpilogueF32 { bias, residual, activation }, &mut scratch, out);
}

#[test]
fn winograd_rows_match_naive_loops() {
    let mut rng = Rng::with_seed(11);
    for row in KERNELS.iter().filter(|r| r.family == Family::WinogradF32) {
        let Ok(kernels) = Kernels::for_isa(row.isa) else { continue };
        assert_eq!(row.contract, Contract::Winograd);
        for _ in 0..60 {
            let case = Case::random(&mut rng);
            let (n, pixels) = (case.n, case.pixels());
            let bias = reals(&mut rng, n);
            let residual = reals(&mut rng, pixels * n);
            let (bias, residual) = (rng.bool().then_some(&bias[..]), rng.bool().then_some(&residual[..]));
            let activation = *rng
                .choice(&[
                    Activation::None,
                    Activation::Relu,
                    Activation::Clip { min: -1.0, max: 1.5 },
                    Activation::LeakyRelu { alpha: 0.25 },
                ])
                .unwrap();
            for edge in [TileEdge::Two, TileEdge::Four] {
                let packed = PackedWinograd::pack(kernels, edge, case.channels, n, &case.w, |w| w);
                let x = case.images();
                let ld = n + 3;
                let mut whole = vec![f32::NAN; pixels * ld];
                let rows = x.tile_rows(edge);
                let out = MatMut::new(&mut whole, pixels, n, ld);
                run(kernels, &case, &packed, 0..rows, 0, bias, residual, activation, out);
                // However the work is split, the same bits come out.
                let mut split = vec![f32::NAN; pixels * ld];
                let out = MatMut::new(&mut split, pixels, n, ld);
                let cut = rng.usize(0..=rows);
                let at = (n / packed.col_granule()).min(1) * packed.col_granule();
                let (top, bottom) = out.split_at_row(x.first_pixel(edge, cut));
                for (rows, band) in [(0..cut, top), (cut..rows, bottom)] {
                    let (left, right) = band.split_at_col(at);
                    run(kernels, &case, &packed, rows.clone(), 0, bias, residual, activation, left);
                    run(kernels, &case, &packed, rows, at, bias, residual, activation, right);
                }
                assert!(whole.iter().zip(&split).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", row.name);
                for i in 0..pixels {
                    for j in 0..n {
                        let sum = case.exact(i, j)
                            + bias.map_or(0.0, |b| f64::from(b[j]))
                            + residual.map_or(0.0, |r| f64::from(r[i * n + j]));
                        let want = match activation {
                            Activation::Relu => sum.max(0.0),
                            Activation::Clip { .. } => sum.clamp(-1.0, 1.5),
                            Activation::LeakyRelu { .. } if sum < 0.0 => 0.25 * sum,
                            _ => sum,
                        };
                        let weights = &case.w[j * case.channels * 9..][..case.channels * 9];
                        let size: f32 = weights.iter().map(|w| w.abs()).sum();
                        let bound = (case.channels + 24) as f32 * edge.error_factor() * size * f32::EPSILON;
                        let got = f64::from(whole[i * ld + j]);
                        assert!(
                            (got - want).abs() <= f64::from(bound),
                            "{} {edge:?} {:?} pad {:?} {} to {n} [{i},{j}]: {got} != {want}",
                            row.name,
                            case.input,
                            case.pad,
                            case.channels
                        );
                    }
                    assert!(whole[i * ld + n..(i + 1) * ld].iter().all(|x| x.is_nan()));
                }
            }
        }
    }
}

/// What networks see: errors far below the stated bound.
#[test]
fn the_usual_error_is_small() {
    let mut rng = Rng::with_seed(12);
    let (input, channels, n) = ([12, 12], 128, 32);
    let (x, w) = (reals(&mut rng, 144 * channels), reals(&mut rng, n * channels * 9));
    let case = Case { images: 1, input, pad: [1, 1], output: input, channels, n, x, w };
    for kernels in Kernels::all_available() {
        for (edge, limit) in [(TileEdge::Two, 1e-6), (TileEdge::Four, 5e-6)] {
            let packed = PackedWinograd::pack(kernels, edge, channels, n, &case.w, |w| w);
            let mut y = vec![0.0; 144 * n];
            let out = MatMut::new(&mut y, 144, n, n);
            let rows = case.images().tile_rows(edge);
            run(kernels, &case, &packed, 0..rows, 0, None, None, Activation::None, out);
            let (mut error, mut norm) = (0.0, 0.0);
            for (i, &y) in y.iter().enumerate() {
                let want = case.exact(i / n, i % n);
                error += (f64::from(y) - want).powi(2);
                norm += want * want;
            }
            let relative = (error / norm).sqrt();
            println!("{} {edge:?} {relative:e}", kernels.isa());
            assert!(relative < limit, "{} {edge:?}: {relative:e}", kernels.isa());
        }
    }
}

/// NaN and infinity spread at most over the tile, and never vanish.
#[test]
fn nan_stays() {
    let mut rng = Rng::with_seed(13);
    let (input, channels, n) = ([9, 9], 5, 7);
    let (mut x, w) = (reals(&mut rng, 81 * channels), reals(&mut rng, n * channels * 9));
    x[40 * channels + 2] = f32::NAN;
    let case = Case { images: 1, input, pad: [1, 1], output: input, channels, n, x, w };
    for kernels in Kernels::all_available() {
        for edge in [TileEdge::Two, TileEdge::Four] {
            let packed = PackedWinograd::pack(kernels, edge, channels, n, &case.w, |w| w);
            let mut y = vec![0.0; 81 * n];
            let out = MatMut::new(&mut y, 81, n, n);
            run(
                kernels,
                &case,
                &packed,
                0..case.images().tile_rows(edge),
                0,
                None,
                None,
                Activation::Relu,
                out,
            );
            for at in [30, 31, 32, 39, 40, 41, 48, 49, 50] {
                assert!(
                    y[at * n..(at + 1) * n].iter().all(|y| y.is_nan()),
                    "{} {edge:?} {at}",
                    kernels.isa()
                );
            }
            assert!(y[..n].iter().all(|y| y.is_finite()));
        }
    }
}
