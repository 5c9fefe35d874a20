//! Exchange of pruned weights while a network is trained: those of least magnitude go, those that the loss asks for most come back.
//!
//! Source: Evci et al. 2020 (RigL). What the loss asks for is the mean of gradients that the optimizer keeps, as in Dettmers &
//! Zettlemoyer 2019 (sparse momentum), and not the gradient of one batch: it is there already, and less noisy.

use sora_ir::Mismatch;
use sora_tensor::Tensor;

use crate::TrainError;
use crate::pruning::{Pruning, greatest};

/// The slots of optimizers that are a mean of gradients, pruned weights' included.
pub(crate) const MEANS: [&str; 2] = ["mean", "velocity"];

impl Pruning {
    /// The share of the weights of a layer that is exchanged before a step of `all`: falls along half a cosine from
    /// [`Pruning::regrow`] to 0 at [`Pruning::end`].
    pub(crate) fn exchanged(&self, step: u64, all: u64) -> f64 {
        let part = (step as f64 / (self.end * all as f64).max(1.0)).min(1.0);
        self.regrow / 2.0 * (1.0 + (std::f64::consts::PI * part).cos())
    }
}

/// The mask of a layer after an exchange of a share of its weights: as many ones as before. A weight comes back as 0 unless it went in
/// the same exchange.
///
/// # Errors
/// [`TrainError`] when there is no memory for a mask.
pub(crate) fn exchange(
    weight: &Tensor,
    mask: &Tensor,
    mean: &Tensor,
    share: f64,
) -> Result<Tensor, TrainError> {
    let flags: Vec<bool> = mask.to_f32s().iter().map(|m| *m != 0.0).collect();
    let kept = flags.iter().filter(|kept| **kept).count();
    let count = ((share * kept as f64).round() as usize).min(kept);
    // What is not a candidate scores below all that are.
    let scores = |tensor: &Tensor, candidates: &dyn Fn(usize) -> bool| -> Vec<f32> {
        let score = |(i, x): (usize, &f32)| if candidates(i) { x.abs() } else { -1.0 };
        tensor.to_f32s().iter().enumerate().map(score).collect()
    };
    let stay = greatest(&scores(weight, &|i| flags[i]), kept - count);
    let come = greatest(&scores(mean, &|i| !stay[i]), count);
    let ones: Vec<f32> =
        stay.iter().zip(come).map(|(&stays, comes)| if stays || comes { 1.0 } else { 0.0 }).collect();
    Ok(Tensor::from_slice(mask.shape(), &ones).map_err(Mismatch::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PruningScope;

    #[test]
    fn the_least_weights_go_and_those_of_greatest_gradients_come() {
        let weight = Tensor::vector(&[0.5f32, -0.1, 0.0, 2.0, 0.0, 0.3, 0.0]);
        let mask = Tensor::vector(&[1f32, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
        let mean = Tensor::vector(&[9f32, 0.1, -0.7, 9.0, 0.2, 0.0, 0.6]);
        let after = |share| exchange(&weight, &mask, &mean, share).unwrap().to_f32s();
        assert_eq!(after(0.0), mask.to_f32s());
        assert_eq!(after(0.25), [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
        assert_eq!(after(0.5), [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
        // What has just gone may come back.
        assert_eq!(after(0.75), [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn fewer_are_exchanged_the_nearer_the_end_is() {
        let pruning = Pruning {
            sparsity: 0.8,
            initial: 0.8,
            begin: 0.0,
            end: 0.5,
            every: 10,
            scope: PruningScope::Layer,
            regrow: 0.3,
        };
        for (step, expected) in [(0, 0.3), (25, 0.15), (50, 0.0), (75, 0.0)] {
            assert!((pruning.exchanged(step, 100) - expected).abs() < 1e-9, "{step}");
        }
    }
}
