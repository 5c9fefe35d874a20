//! Operations along contiguous rows.

use core::f32::consts::LOG2_E;

use crate::{
    isa::per_isa,
    lanes::{Add, Greatest, fold, greater, greatest, lesser, map_join, sum, zip_join},
    math,
};

/// What [`reduce`] computes of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// Σ x
    Sum,
    /// Σ x / n
    Mean,
    /// The greatest element; NaN if any is.
    Max,
    /// The least element; NaN if any is.
    Min,
    /// Σ x²
    SumSquare,
}

/// Panics unless `x` and `out` are the same whole number of rows.
fn check(x: &[f32], cols: usize, out: &[f32]) {
    assert_eq!(x.len(), out.len(), "input and output differ in length");
    check_rows(x, cols);
}

fn check_rows(x: &[f32], cols: usize) {
    assert!(
        if cols == 0 { x.is_empty() } else { x.len().is_multiple_of(cols) },
        "{} elements are not rows of {cols}",
        x.len()
    );
}

/// Panics unless an optional vector has one element per column.
fn check_vector(v: Option<&[f32]>, cols: usize) {
    assert!(v.is_none_or(|v| v.len() == cols), "one parameter per column");
}

per_isa! {
    /// eˣ / Σeˣ of each row of `cols`, shifted by the row's maximum.
    ///
    /// # Panics
    /// When `x` and `out` are not the same whole number of rows.
    pub fn softmax(x: &[f32], cols: usize, out: &mut [f32]) {
        check(x, cols, out);
        for (x, out) in x.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(cols.max(1))) {
            let max = greatest(x);
            for (y, &x) in out.iter_mut().zip(x) {
                *y = (x - max) * LOG2_E;
            }
        }
        for out in out.chunks_mut((cols * BLOCK).max(1)) {
            normalize(out, cols, &[0.0; BLOCK]);
        }
    }
}

per_isa! {
    /// Softmax of `factor · x + mask` for each row of `cols` in place; row `r` adds `mask[r * step..][..cols]`,
    /// and an empty mask nothing. Weights below 2⁻¹²⁶ of the row's largest are zero.
    ///
    /// # Panics
    /// When `x` is not a whole number of rows, or the mask is too short for them.
    pub fn softmax_scores(x: &mut [f32], cols: usize, factor: f32, mask: &[f32], step: usize) {
        check_rows(x, cols);
        let factor = factor * LOG2_E;
        for (b, x) in x.chunks_mut((cols * BLOCK).max(1)).enumerate() {
            let mut max = [0.0; BLOCK];
            for (r, (x, max)) in x.chunks_exact_mut(cols.max(1)).zip(&mut max).enumerate() {
                *max = if mask.is_empty() {
                    map_join::<Greatest>(x, |x| x * factor)
                } else {
                    let mask = &mask[(b * BLOCK + r) * step..][..x.len()];
                    zip_join::<Greatest>(x, mask, |x, m| x * factor + m * LOG2_E)
                };
            }
            normalize(x, cols, &max);
        }
    }
}

/// Rows that one pass of a function goes over before the next: within a row each pass waits for the one
/// number that the pass before ends with.
const BLOCK: usize = 16;

/// 2ˣ⁻ᵐᵃˣ of the elements of up to [`BLOCK`] rows, divided by their sum in each row. What is NaN makes all of
/// its row NaN.
#[inline(always)]
fn normalize(x: &mut [f32], cols: usize, max: &[f32; BLOCK]) {
    let mut total = [0.0; BLOCK];
    for ((x, &max), total) in x.chunks_exact_mut(cols.max(1)).zip(max).zip(&mut total) {
        *total = map_join::<Add>(x, |x| math::exp2_below_one(x - max));
    }
    for (x, total) in x.chunks_exact_mut(cols.max(1)).zip(total) {
        let scale = 1.0 / total;
        for y in x {
            *y *= scale;
        }
    }
}

per_isa! {
    /// x − ln Σeˣ of each row of `cols`, shifted by the row's maximum.
    ///
    /// # Panics
    /// When `x` and `out` are not the same whole number of rows.
    pub fn log_softmax(x: &[f32], cols: usize, out: &mut [f32]) {
        check(x, cols, out);
        for (x, out) in x.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(cols.max(1))) {
            let max = fold(x, f32::NEG_INFINITY, |x| x, greater);
            let total = math::log(sum(x, |x| math::exp(x - max)));
            for (y, &x) in out.iter_mut().zip(x) {
                *y = (x - max) - total;
            }
        }
    }
}

#[inline(always)]
fn affine(out: &mut [f32], gamma: Option<&[f32]>, beta: Option<&[f32]>) {
    if let Some(gamma) = gamma {
        for (y, g) in out.iter_mut().zip(gamma) {
            *y *= g;
        }
    }
    if let Some(beta) = beta {
        for (y, b) in out.iter_mut().zip(beta) {
            *y += b;
        }
    }
}

per_isa! {
    /// (x − mean) / √(variance + eps) · gamma + beta of each row of `cols`.
    ///
    /// # Panics
    /// When `x` and `out` are not the same whole number of rows, or a parameter is not `cols` long.
    pub fn layer_norm(x: &[f32], cols: usize, gamma: Option<&[f32]>, beta: Option<&[f32]>, eps: f32, out: &mut [f32]) {
        check(x, cols, out);
        check_vector(gamma, cols);
        check_vector(beta, cols);
        let n = cols as f32;
        for (x, out) in x.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(cols.max(1))) {
            let mean = sum(x, |x| x) / n;
            let variance = sum(x, |x| (x - mean) * (x - mean)) / n;
            let scale = 1.0 / math::sqrt(variance + eps);
            for (y, &x) in out.iter_mut().zip(x) {
                *y = (x - mean) * scale;
            }
            affine(out, gamma, beta);
        }
    }
}

per_isa! {
    /// x / √(mean x² + eps) · gamma of each row of `cols`.
    ///
    /// # Panics
    /// When `x` and `out` are not the same whole number of rows, or `gamma` is not `cols` long.
    pub fn rms_norm(x: &[f32], cols: usize, gamma: Option<&[f32]>, eps: f32, out: &mut [f32]) {
        check(x, cols, out);
        check_vector(gamma, cols);
        for (x, out) in x.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(cols.max(1))) {
            let scale = 1.0 / math::sqrt(sum(x, |x| x * x) / cols as f32 + eps);
            for (y, &x) in out.iter_mut().zip(x) {
                *y = x * scale;
            }
            affine(out, gamma, None);
        }
    }
}

per_isa! {
    /// One value per row of `cols`.
    ///
    /// # Panics
    /// When `x` is not `out.len()` rows.
    pub fn reduce(op: Reduce, x: &[f32], cols: usize, out: &mut [f32]) {
        assert_eq!(x.len(), cols * out.len(), "{} rows of {cols}", out.len());
        for (i, y) in out.iter_mut().enumerate() {
            let x = &x[i * cols..][..cols];
            *y = match op {
                Reduce::Sum => sum(x, |x| x),
                Reduce::Mean => sum(x, |x| x) / cols as f32,
                Reduce::Max => fold(x, f32::NEG_INFINITY, |x| x, greater),
                Reduce::Min => fold(x, f32::INFINITY, |x| x, lesser),
                Reduce::SumSquare => sum(x, |x| x * x),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernels;
    use alloc::{vec, vec::Vec};
    use fastrand::Rng;

    fn close(got: &[f32], want: impl Fn(usize) -> f64, scale: f64) {
        for (i, &got) in got.iter().enumerate() {
            let want = want(i);
            let bound = 3e-6 * (want.abs() + scale);
            assert!((f64::from(got) - want).abs() <= bound, "[{i}] {got} {want}");
        }
    }

    #[test]
    fn every_isa_matches_double_precision_and_the_others() {
        let mut rng = Rng::with_seed(6);
        for cols in [1, 2, 15, 16, 31, 32, 33, 64, 100, 257] {
            let rows = 3 + cols % 16;
            let x: Vec<f32> = (0..rows * cols).map(|_| rng.f32() * 8.0 - 4.0).collect();
            let gamma: Vec<f32> = (0..cols).map(|_| rng.f32()).collect();
            let beta: Vec<f32> = (0..cols).map(|_| rng.f32()).collect();
            let row = |i: usize| x[i / cols * cols..][..cols].iter().map(|&v| f64::from(v));
            let at = |i: usize| f64::from(x[i]);
            let total = |i: usize| row(i).map(f64::exp).sum::<f64>();
            let mean = |i: usize| row(i).sum::<f64>() / cols as f64;
            let var = |i: usize| row(i).map(|v| (v - mean(i)).powi(2)).sum::<f64>() / cols as f64;
            let square = |i: usize| row(i).map(|v| v * v).sum::<f64>();
            let mut seen: Option<Vec<f32>> = None;
            for k in Kernels::all_available() {
                let mut all = Vec::new();
                let mut y = vec![0.0; x.len()];
                softmax(k, &x, cols, &mut y);
                close(&y, |i| at(i).exp() / total(i), 0.0);
                all.extend_from_slice(&y);
                log_softmax(k, &x, cols, &mut y);
                close(&y, |i| at(i) - total(i).ln(), 1.0);
                all.extend_from_slice(&y);
                layer_norm(k, &x, cols, Some(&gamma), Some(&beta), 1e-3, &mut y);
                let normal = |i: usize| (at(i) - mean(i)) / (var(i) + 1e-3).sqrt();
                close(&y, |i| normal(i) * f64::from(gamma[i % cols]) + f64::from(beta[i % cols]), 2.0);
                all.extend_from_slice(&y);
                rms_norm(k, &x, cols, Some(&gamma), 1e-3, &mut y);
                let rms = |i: usize| (square(i) / cols as f64 + 1e-3).sqrt();
                close(&y, |i| at(i) / rms(i) * f64::from(gamma[i % cols]), 0.0);
                all.extend_from_slice(&y);
                let mut y = vec![0.0; rows];
                for (op, want) in [
                    (Reduce::Sum, &(|i: usize| row(i * cols).sum()) as &dyn Fn(usize) -> f64),
                    (Reduce::Mean, &|i| mean(i * cols)),
                    (Reduce::Max, &|i| row(i * cols).fold(f64::MIN, f64::max)),
                    (Reduce::Min, &|i| row(i * cols).fold(f64::MAX, f64::min)),
                    (Reduce::SumSquare, &|i| square(i * cols)),
                ] {
                    reduce(k, op, &x, cols, &mut y);
                    close(&y, want, 50.0);
                    all.extend_from_slice(&y);
                }
                assert_eq!(*seen.get_or_insert_with(|| all.clone()), all);
            }
        }
    }

    #[test]
    fn scores_are_scaled_masked_and_normalized() {
        let mut rng = Rng::with_seed(8);
        for cols in [1, 3, 31, 32, 33, 64, 100, 257] {
            for step in [0, cols, cols + 3] {
                let rows = rng.usize(1..40);
                let x: Vec<f32> = (0..rows * cols).map(|_| rng.f32() * 80.0 - 40.0).collect();
                let masked = [0.0, 0.0, 1.5, -1e4, f32::NEG_INFINITY];
                let mut mask: Vec<f32> =
                    (0..rows * step + cols).map(|_| masked[rng.usize(0..masked.len())]).collect();
                (0..rows).for_each(|r| mask[r * step] = 0.0);
                let factor = rng.f32() + 0.1;
                for mask in [&mask[..], &[]] {
                    let score = |r: usize, j: usize| {
                        let shift = if mask.is_empty() { 0.0 } else { f64::from(mask[r * step + j]) };
                        f64::from(x[r * cols + j]) * f64::from(factor) + shift
                    };
                    let mut seen: Option<Vec<f32>> = None;
                    for k in Kernels::all_available() {
                        let mut y = x.clone();
                        softmax_scores(k, &mut y, cols, factor, mask, step);
                        for r in 0..rows {
                            let max = (0..cols).map(|j| score(r, j)).fold(f64::MIN, f64::max);
                            let total: f64 = (0..cols).map(|j| (score(r, j) - max).exp()).sum();
                            for (j, &got) in y[r * cols..][..cols].iter().enumerate() {
                                let want = (score(r, j) - max).exp() / total;
                                // Scores of magnitude 50 in binary are rounded by up to 4e-6 thrice.
                                let bound = 1.2e-5 * want + 1e-30;
                                assert!((f64::from(got) - want).abs() <= bound, "[{r}][{j}] {got} {want}");
                            }
                        }
                        assert_eq!(*seen.get_or_insert_with(|| y.clone()), y);
                    }
                }
            }
        }
    }

    #[test]
    fn nan_reaches_the_result() {
        for k in Kernels::all_available() {
            for at in [0, 5, 40] {
                let mut x = [1.0f32; 41];
                x[at] = f32::NAN;
                for op in [Reduce::Sum, Reduce::Max, Reduce::Min] {
                    let mut y = [0.0];
                    reduce(k, op, &x, 41, &mut y);
                    assert!(y[0].is_nan(), "{op:?}");
                }
            }
        }
    }
}
