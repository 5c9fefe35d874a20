//! How closely a changed model follows the original one: for data without labels.

use serde::{Deserialize, Serialize};
use sora_tensor::Tensor;

use crate::{DataError, ErrorKind};

/// Compares outputs of two models batch by batch.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    samples: usize,
    same_top: usize,
    same: Vec<bool>,
    signal: f64,
    other: f64,
    dot: f64,
    noise: f64,
    max_abs: f64,
}

/// What an [`Agreement`] found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgreementSummary {
    /// Number of samples.
    pub samples: usize,
    /// Part of the samples whose highest output lies at the same place in both.
    pub top1: f64,
    /// Wilson interval of `top1`.
    pub top1_ci95: crate::Interval,
    /// Euclidean norm of the difference over the norm of the original; 0 when both are zero.
    pub relative_error: f64,
    /// Cosine of the angle between the outputs of all samples; 1 when both are zero.
    pub cosine: f64,
    /// Greatest absolute difference.
    pub max_abs: f64,
}

impl Agreement {
    /// Adds the outputs of both models for one batch, `[samples, …]`. A NaN in either makes its sample disagree
    /// and every error NaN.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] when the shapes differ or hold no sample.
    pub fn add(&mut self, original: &Tensor, changed: &Tensor) -> Result<(), DataError> {
        let samples = original.shape().first().copied().unwrap_or(0);
        if original.shape() != changed.shape() || original.is_empty() {
            let what = format!(
                "outputs of shape {:?} and {:?} cannot be compared",
                original.shape(),
                changed.shape()
            );
            let hint = "run both models on the same samples";
            return Err(DataError::new(ErrorKind::Mismatch, what, "the comparison of two models", hint));
        }
        let (a, b) = (original.to_f64s(), changed.to_f64s());
        let row = a.len() / samples;
        for (a, b) in a.chunks_exact(row).zip(b.chunks_exact(row)) {
            let same = argmax(a).is_some_and(|top| argmax(b) == Some(top));
            self.same_top += usize::from(same);
            self.same.push(same);
            for (&x, &y) in a.iter().zip(b) {
                let error = x - y;
                self.signal += x * x;
                self.other += y * y;
                self.dot += x * y;
                self.noise += error * error;
                // A NaN stays: nothing compares greater.
                if error.is_nan() || error.abs() > self.max_abs {
                    self.max_abs = error.abs();
                }
            }
        }
        self.samples += samples;
        Ok(())
    }

    /// Whether each sample's highest output lies at the same place, in the order added.
    pub fn same(&self) -> &[bool] {
        &self.same
    }

    /// Everything found so far.
    pub fn summary(&self) -> AgreementSummary {
        let ratio = |above: f64, below: f64, equal: f64| if above == below { equal } else { above / below };
        let norms = (self.signal * self.other).sqrt();
        AgreementSummary {
            samples: self.samples,
            top1: self.same_top as f64 / self.samples.max(1) as f64,
            top1_ci95: crate::wilson(self.same_top, self.samples),
            relative_error: if self.noise == 0.0 { 0.0 } else { (self.noise / self.signal).sqrt() },
            cosine: ratio(self.dot, norms, 1.0),
            max_abs: self.max_abs,
        }
    }
}

/// The first place of the greatest value; `None` when one is NaN.
fn argmax(values: &[f64]) -> Option<usize> {
    if values.iter().any(|v| v.is_nan()) {
        return None;
    }
    let greater = |best: usize, i: usize| if values[i] > values[best] { i } else { best };
    (0..values.len()).reduce(greater)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_outputs_agree_fully() {
        let mut agreement = Agreement::default();
        let outputs = Tensor::from_slice(&[2, 2], &[1f32, 2.0, -3.0, 0.5]).unwrap();
        agreement.add(&outputs, &outputs).unwrap();
        let AgreementSummary { top1, relative_error, cosine, max_abs, .. } = agreement.summary();
        assert_eq!((top1, relative_error, cosine, max_abs), (1.0, 0.0, 1.0, 0.0));
    }

    #[test]
    fn differences_are_measured_over_all_batches() {
        let mut agreement = Agreement::default();
        let tensor = |values: &[f32]| Tensor::from_slice(&[1, 2], values).unwrap();
        agreement.add(&tensor(&[3.0, 0.0]), &tensor(&[3.0, 1.0])).unwrap();
        agreement.add(&tensor(&[0.0, 4.0]), &tensor(&[2.0, 0.0])).unwrap();
        let found = agreement.summary();
        assert_eq!((found.samples, found.top1, found.max_abs), (2, 0.5, 4.0));
        assert!((found.relative_error - (21f64 / 25.0).sqrt()).abs() < 1e-12);
        assert!((found.cosine - 9.0 / (25f64 * 14.0).sqrt()).abs() < 1e-12);
        assert_eq!(agreement.same(), [true, false]);
        assert!(agreement.add(&tensor(&[0.0, 1.0]), &Tensor::vector(&[1f32])).is_err());
        agreement.add(&tensor(&[f32::NAN, 0.0]), &tensor(&[1.0, 0.0])).unwrap();
        assert!(agreement.summary().max_abs.is_nan() && agreement.summary().relative_error.is_nan());
    }
}
