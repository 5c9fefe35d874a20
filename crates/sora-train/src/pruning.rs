//! Magnitude pruning while a network is trained: weights of least magnitude become 0 and stay so.
//!
//! Sources: the schedule is that of Zhu & Gupta 2017 ("To prune, or not to prune"); how zeros are divided among layers is one of
//! [`PruningScope`].

use serde::{Deserialize, Serialize};
use sora_ir::ops::{BinaryKind, Op};
use sora_ir::{Graph, Mismatch, NodeId, ValueId};
use sora_tensor::{DType, Tensor};

use crate::TrainError;
use crate::network::{Parameter, Trainable};

/// How many weights become 0, and when. Weights are what products, convolutions, recurrent layers and tables multiply or look up with;
/// biases and what normalizes stay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pruning {
    /// The share of all weights that are 0 at the end.
    pub sparsity: f64,
    /// The share that is 0 from the first step on.
    #[serde(default)]
    pub initial: f64,
    /// The share of all steps behind which more weights become 0.
    #[serde(default)]
    pub begin: f64,
    /// The share of all steps behind which no more do, so that the rest of the training makes up for them.
    #[serde(default = "half")]
    pub end: f64,
    /// Steps between two times at which weights become 0.
    #[serde(default = "often")]
    pub every: u64,
    /// How the zeros are divided among layers.
    #[serde(default)]
    pub scope: PruningScope,
    /// The share of each layer's weights that is exchanged each time, at first: those of least magnitude for those that are 0 and have
    /// the greatest gradients. It falls along a cosine to 0 at the end. Takes an optimizer that keeps a mean of gradients: adam, adamw,
    /// momentum, nesterov or rmsprop. Source: Evci et al. 2020 (RigL).
    #[serde(default)]
    pub regrow: f64,
}

fn half() -> f64 {
    0.5
}

fn often() -> u64 {
    100
}

/// How zeros are divided among layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PruningScope {
    /// By magnitude relative to what is left of the layer: the score of a weight is its square over the sum of all squares of the
    /// layer that are not less. Source: Lee et al. 2021 (LAMP).
    #[default]
    Lamp,
    /// The least magnitudes of the whole network. Source: Han et al. 2015.
    Global,
    /// The same share of each layer.
    Layer,
    /// More of large layers: a layer keeps weights in proportion to the sum of its extents. Source: Evci et al. 2020
    /// (Erdős–Rényi kernel).
    Erk,
}

impl Pruning {
    /// The share of weights that are 0 at a share of all steps: rises fast at first and ever slower, by a cubic.
    pub fn share(&self, at: f64) -> f64 {
        let part = ((at - self.begin) / (self.end - self.begin).max(1e-9)).clamp(0.0, 1.0);
        self.initial + (self.sparsity - self.initial) * (1.0 - (1.0 - part).powi(3))
    }

    /// The share to prune to before a step of `all`, if any: at the first, at every [`Pruning::every`]th, and for the last time at the
    /// end.
    pub(crate) fn due(&self, step: u64, all: u64) -> Option<f64> {
        let end = ((self.end * all as f64).ceil() as u64).min(all.saturating_sub(1));
        match step {
            _ if step == end => Some(self.sparsity),
            _ if step < end && step.is_multiple_of(self.every.max(1)) => {
                Some(self.share(step as f64 / all as f64))
            }
            _ => None,
        }
    }

    /// What makes no sense in it, if anything: the name of a number, and the number.
    pub fn trouble(&self) -> Option<(&'static str, f64)> {
        let inside = |x: f64| (0.0..1.0).contains(&x);
        [
            ("sparsity", self.sparsity, inside(self.sparsity)),
            ("initial", self.initial, inside(self.initial) && self.initial <= self.sparsity),
            ("begin", self.begin, inside(self.begin)),
            ("end", self.end, self.end > self.begin && self.end <= 1.0),
            ("every", self.every as f64, self.every > 0),
            ("regrow", self.regrow, inside(self.regrow)),
        ]
        .into_iter()
        .find_map(|(name, number, fits)| (!fits).then_some((name, number)))
    }
}

/// What the name of a state ends with that is 1 where a parameter of that name is kept and 0 where it is pruned.
pub(crate) const MASK: &str = "/mask";

/// The weights among the trained parameters of a network, whose values are `inputs`: those of products, convolutions, recurrent
/// layers and tables. Zeros elsewhere would save nothing.
pub(crate) fn prunable(graph: &Graph, parameters: &[Parameter], inputs: &[ValueId]) -> Vec<bool> {
    let uses = graph.uses();
    let each = parameters.iter().zip(inputs);
    each.map(|(parameter, &input)| parameter.trainable && is_weight(graph, &uses, input)).collect()
}

/// The share of zeros among the weights of a network that pruning may take.
pub fn zeros(network: &Trainable) -> f64 {
    let Trainable { graph, parameters, .. } = network;
    let values: Vec<ValueId> = parameters.iter().map(|parameter| parameter.value).collect();
    let weights = values.iter().zip(prunable(graph, parameters, &values)).filter(|(_, weight)| *weight);
    let (mut zeros, mut all) = (0, 0);
    for tensor in weights.filter_map(|(&value, _)| graph.const_value(value)) {
        zeros += tensor.to_f32s().iter().filter(|w| **w == 0.0).count();
        all += tensor.len();
    }
    zeros as f64 / (all as f64).max(1.0)
}

fn is_weight(graph: &Graph, uses: &[Vec<NodeId>], value: ValueId) -> bool {
    let readers = uses[value.index()].iter().filter_map(|&id| graph.node(id));
    readers.flat_map(|node| node.inputs.iter().enumerate().map(move |(slot, input)| (node, slot, input))).any(
        |(node, slot, input)| {
            *input == Some(value)
                && match &node.op {
                    Op::Conv(_) | Op::ConvTranspose(_) => slot == 1,
                    Op::MatMul(_) => true,
                    Op::Lstm(_) | Op::Gru(_) | Op::Rnn(_) => slot == 1 || slot == 2,
                    Op::Gather(_) => slot == 0,
                    // Bounds and roundings of weights behind integers.
                    Op::Binary(op) if matches!(op.kind, BinaryKind::Max | BinaryKind::Min) => {
                        node.outputs.first().is_some_and(|&y| is_weight(graph, uses, y))
                    }
                    Op::Transpose(_) | Op::Reshape(_) | Op::QuantizeLinear(_) | Op::DequantizeLinear(_) => {
                        slot == 0 && node.outputs.first().is_some_and(|&y| is_weight(graph, uses, y))
                    }
                    _ => false,
                }
        },
    )
}

/// Masks of ones and zeros for `weights`, of which a share of all elements is 0. No layer loses its greatest weight.
///
/// # Errors
/// [`TrainError`] when there is no memory for a mask.
pub fn masks(weights: &[&Tensor], share: f64, scope: PruningScope) -> Result<Vec<Tensor>, TrainError> {
    let magnitudes = |tensor: &&Tensor| -> Vec<f32> { tensor.to_f32s().iter().map(|w| w.abs()).collect() };
    let mut scores: Vec<Vec<f32>> = weights.iter().map(magnitudes).collect();
    let kept = |count: usize| ((1.0 - share) * count as f64).round() as usize;
    let flags: Vec<Vec<bool>> = match scope {
        PruningScope::Lamp | PruningScope::Global => {
            if scope == PruningScope::Lamp {
                scores.iter_mut().for_each(|layer| relative(layer));
            }
            let all = scores.concat();
            let mut flags = greatest(&all, kept(all.len()));
            scores.iter().map(|layer| flags.drain(..layer.len()).collect()).collect()
        }
        PruningScope::Layer => scores.iter().map(|layer| greatest(layer, kept(layer.len()))).collect(),
        PruningScope::Erk => {
            let densities = densities(weights, 1.0 - share);
            let counts = densities.iter().zip(&scores).map(|(d, s)| (d * s.len() as f64).round() as usize);
            counts.zip(&scores).map(|(count, layer)| greatest(layer, count)).collect()
        }
    };
    let mask = |((flags, scores), tensor): ((Vec<bool>, &Vec<f32>), &&Tensor)| {
        let flags = if flags.contains(&true) { flags } else { greatest(scores, 1) };
        let ones: Vec<f32> = flags.into_iter().map(|keep| if keep { 1.0 } else { 0.0 }).collect();
        Ok(Tensor::from_slice(tensor.shape(), &ones).map_err(Mismatch::from)?)
    };
    flags.into_iter().zip(&scores).zip(weights).map(mask).collect()
}

/// Squares over the sum of all squares that are not less, in place of magnitudes.
fn relative(layer: &mut [f32]) {
    let mut order: Vec<usize> = (0..layer.len()).collect();
    order.sort_by(|&a, &b| layer[b].total_cmp(&layer[a]).then(a.cmp(&b)));
    let mut sum = 0.0;
    for at in order {
        let square = f64::from(layer[at]).powi(2);
        sum += square;
        layer[at] = if sum > 0.0 { (square / sum) as f32 } else { 0.0 };
    }
}

/// Marks the `count` greatest; of equal ones the first.
pub(crate) fn greatest(scores: &[f32], count: usize) -> Vec<bool> {
    let count = count.min(scores.len());
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count - 1, |&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    }
    let mut flags = vec![false; scores.len()];
    order[..count].iter().for_each(|&at| flags[at] = true);
    flags
}

/// The share of each layer's weights that is kept so that it is `density` of all: in proportion to the sum of a layer's extents
/// over their product, but no more than all.
fn densities(weights: &[&Tensor], density: f64) -> Vec<f64> {
    let raw = |tensor: &&Tensor| tensor.shape().iter().sum::<usize>() as f64 / tensor.len().max(1) as f64;
    let raw: Vec<f64> = weights.iter().map(raw).collect();
    let total: usize = weights.iter().map(|tensor| tensor.len()).sum();
    let mut whole = vec![false; weights.len()];
    // Each round finds a layer that would keep more than it has, or ends.
    loop {
        let open = |dense: bool| whole.iter().enumerate().filter(move |(_, w)| **w == dense).map(|(i, _)| i);
        let taken: usize = open(true).map(|i| weights[i].len()).sum();
        let left = density * total as f64 - taken as f64;
        let each =
            left.max(0.0) / open(false).map(|i| raw[i] * weights[i].len() as f64).sum::<f64>().max(1e-9);
        match open(false).find(|&i| each * raw[i] > 1.0) {
            Some(full) => whole[full] = true,
            None => {
                let share = |i: usize| if whole[i] { 1.0 } else { each * raw[i] };
                return (0..weights.len()).map(share).collect();
            }
        }
    }
}

/// A weight where its mask is 1, else 0.
pub(crate) fn masked(weight: &Tensor, mask: &Tensor) -> Result<Tensor, TrainError> {
    let values: Vec<f64> = weight.to_f64s().iter().zip(mask.to_f64s()).map(|(w, m)| w * m).collect();
    Ok(Tensor::from_f64s(weight.dtype(), weight.shape(), &values).map_err(Mismatch::from)?)
}

/// A mask that keeps everything.
pub(crate) fn whole(dtype: DType, shape: &[usize]) -> Result<Tensor, TrainError> {
    let ones = vec![1.0; shape.iter().product()];
    Ok(Tensor::from_f64s(dtype, shape, &ones).map_err(Mismatch::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPES: [PruningScope; 4] =
        [PruningScope::Lamp, PruningScope::Global, PruningScope::Layer, PruningScope::Erk];

    fn layers() -> Vec<Tensor> {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut layer = |shape: &[usize], size: f32| {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| size * (rng.f32() - 0.5)).collect();
            Tensor::from_slice(shape, &values).unwrap()
        };
        vec![layer(&[8, 1, 3, 3], 2.0), layer(&[40, 100], 0.01), layer(&[10, 40], 1.0)]
    }

    #[test]
    fn as_many_weights_are_kept_as_asked_for_and_the_greatest_of_a_layer() {
        let layers = layers();
        let layers: Vec<&Tensor> = layers.iter().collect();
        let total: usize = layers.iter().map(|t| t.len()).sum();
        for scope in SCOPES {
            for share in [0.0, 0.3, 0.9, 0.99] {
                let masks = masks(&layers, share, scope).unwrap();
                let kept: f64 = masks.iter().flat_map(|m| m.to_f64s()).sum();
                let bound = layers.len() as f64;
                assert!((kept - (1.0 - share) * total as f64).abs() <= bound, "{scope:?} {share}: {kept}");
                for (mask, weight) in masks.iter().zip(&layers) {
                    let pairs = || mask.to_f32s().into_iter().zip(weight.to_f32s());
                    let least =
                        pairs().filter(|(m, _)| *m == 1.0).map(|(_, w)| w.abs()).fold(f32::MAX, f32::min);
                    let most = pairs().filter(|(m, _)| *m == 0.0).map(|(_, w)| w.abs()).fold(0.0, f32::max);
                    assert!(least < f32::MAX && most <= least, "{scope:?} {share}");
                }
            }
        }
    }

    #[test]
    fn scopes_divide_zeros_as_they_say() {
        let layers = layers();
        let layers: Vec<&Tensor> = layers.iter().collect();
        let kept = |scope| -> Vec<f64> {
            let masks = masks(&layers, 0.9, scope).unwrap();
            masks.iter().map(|m| m.to_f64s().iter().sum::<f64>() / m.len() as f64).collect()
        };
        // All of the second layer's weights are smaller than almost all others'.
        assert!(kept(PruningScope::Global)[1] <= 1.0 / 4000.0);
        assert!(kept(PruningScope::Layer).iter().all(|share| (share - 0.1).abs() < 0.01));
        let erk = kept(PruningScope::Erk);
        // In proportion to (8 + 1 + 3 + 3) / 72, 140 / 4000 and 50 / 400.
        assert!(
            (erk[0] / erk[2] - 5.0 / 3.0).abs() < 0.05 && (erk[2] / erk[1] - 25.0 / 7.0).abs() < 0.05,
            "{erk:?}"
        );
        // Scores do not depend on the scale of a layer.
        assert!(kept(PruningScope::Lamp)[1] > 0.03);
    }

    #[test]
    fn the_schedule_rises_from_its_beginning_to_its_end() {
        let pruning = Pruning {
            sparsity: 0.8,
            initial: 0.4,
            begin: 0.2,
            end: 0.6,
            every: 10,
            scope: PruningScope::Lamp,
            regrow: 0.0,
        };
        for (at, expected) in [(0.0, 0.4), (0.2, 0.4), (0.4, 0.4 + 0.4 * 0.875), (0.6, 0.8), (1.0, 0.8)] {
            assert!((pruning.share(at) - expected).abs() < 1e-9, "{at}");
        }
        let times: Vec<u64> = (0..100).filter(|&step| pruning.due(step, 100).is_some()).collect();
        assert_eq!(times, [0, 10, 20, 30, 40, 50, 60]);
        let whole = Pruning { end: 1.0, every: 1000, ..pruning };
        assert_eq!((whole.due(0, 100), whole.due(50, 100), whole.due(99, 100)), (Some(0.4), None, Some(0.8)));
        assert_eq!(pruning.trouble(), None);
        assert_eq!(Pruning { initial: 0.9, ..pruning }.trouble(), Some(("initial", 0.9)));
        assert_eq!(Pruning { sparsity: f64::NAN, ..pruning }.trouble().unwrap().0, "sparsity");
    }
}
