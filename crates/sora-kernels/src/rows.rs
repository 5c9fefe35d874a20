//! Operations along contiguous rows.

use crate::{
    isa::per_isa,
    lanes::{fold, greater, lesser, sum},
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
            let max = fold(x, f32::NEG_INFINITY, |x| x, greater);
            for (y, &x) in out.iter_mut().zip(x) {
                *y = math::exp(x - max);
            }
            let scale = 1.0 / sum(out, |y| y);
            for y in out {
                *y *= scale;
            }
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
            let rows = 3;
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
