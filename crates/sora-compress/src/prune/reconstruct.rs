//! Weights that make up for what is removed, without training.

use std::collections::HashSet;

use sora_ir::ops::{BinaryKind, Op};
use sora_ir::{Graph, NodeId, ValueId};
use sora_tensor::Tensor;

use super::remove::kept;
use super::{Activations, Groups, Moments, Sink, ridge};
use crate::CompressError;

/// The penalty of [`reconstruct`] that suits networks in general, as a fraction of the mean variance.
pub const RIDGE: f64 = 1e-3;

/// The graph with the weights behind what `keep` denies changed, so that [`remove`](super::remove()) changes their outputs
/// least: each input that goes is estimated by those that stay, and its weights are added to theirs in that measure.
///
/// With inputs `x_r` that go and `x_k` that stay, the estimate is that of least squares over the observed samples,
/// `x_r ≈ A x_k + c`, `A = Σ_rk (Σ_kk + λI)⁻¹`. Then `W_k ← W_k + W_r A`, and the bias takes `W_r c`. For a product of
/// matrices, that is the ridge regression of its outputs on what is left of its inputs; in a convolution, all taps of the
/// window share one estimate of the channel. Without a bias there is no `c`, and moments are not centered.
/// Weights that several nodes read, and those shared by groups of channels, stay as they are.
///
/// Source: Y. He et al., "Channel pruning for accelerating very deep neural networks", ICCV 2017, section 3.1 (least
/// squares on the outputs); here by second moments of the inputs, observed once.
///
/// # Errors
/// [`CompressError::Option`] when `keep` does not fit the groups.
pub fn reconstruct(
    graph: &Graph,
    groups: &Groups,
    keep: &[Vec<bool>],
    seen: &Activations,
    penalty: f64,
) -> Result<Graph, CompressError> {
    let kept = kept(graph, groups, keep)?;
    let uses = graph.uses();
    let mut new = graph.clone();
    let mut done: HashSet<(NodeId, usize)> = HashSet::new();
    for sink in groups.groups.iter().flat_map(|group| &group.sinks) {
        let (Some(stay), Some(moments)) = (kept.get(&sink.input), seen.get(&sink.input)) else { continue };
        let ty = graph.ty(sink.weight.0);
        let fits = ty.shape[sink.weight.1].known() == Some(stay.len()) && moments.sums.len() == stay.len();
        let own = uses[sink.weight.0.index()].len() == 1;
        if !fits || !own || moments.products.is_empty() || !done.insert((sink.node, sink.slot)) {
            continue;
        }
        let bias = bias(graph, &uses, sink);
        if let Some(estimate) = estimate(moments, stay, bias.is_some(), penalty) {
            apply(&mut new, sink, bias, &estimate)?;
        }
    }
    Ok(new)
}

/// Inputs that go, as a linear function of those that stay.
struct Estimate {
    gone: Vec<usize>,
    stay: Vec<usize>,
    /// For each input that stays, its factor in each that goes.
    factors: Vec<f64>,
    /// For each input that goes.
    constants: Vec<f64>,
}

fn estimate(moments: &Moments, stay: &[bool], centered: bool, penalty: f64) -> Option<Estimate> {
    let (left, gone): (Vec<usize>, Vec<usize>) = (0..stay.len()).partition(|&i| stay[i]);
    let covariance = |i: usize, j: usize| {
        let means = if centered { moments.mean(i) * moments.mean(j) } else { 0.0 };
        moments.mean_product(i, j) - means
    };
    let matrix = left.iter().flat_map(|&i| left.iter().map(move |&j| (i, j)));
    let matrix: Vec<f64> = matrix.map(|(i, j)| covariance(i, j)).collect();
    let factors = left.iter().flat_map(|&i| gone.iter().map(move |&j| (i, j)));
    let mut factors: Vec<f64> = factors.map(|(i, j)| covariance(i, j)).collect();
    if gone.is_empty() || !ridge::solve(matrix, left.len(), penalty, &mut factors) {
        return None;
    }
    let constant = |(at, &r): (usize, &usize)| {
        let known = left.iter().enumerate().map(|(i, &k)| factors[i * gone.len() + at] * moments.mean(k));
        if centered { moments.mean(r) - known.sum::<f64>() } else { 0.0 }
    };
    let constants = gone.iter().enumerate().map(constant).collect();
    Some(Estimate { gone, stay: left, factors, constants })
}

/// The constant that is added to the outputs of a sink, one element an output, and nowhere else.
fn bias(graph: &Graph, uses: &[Vec<NodeId>], sink: &Sink) -> Option<ValueId> {
    let node = graph.node(sink.node)?;
    let own = |value: ValueId, outputs: Option<usize>| {
        let tensor = graph.const_value(value)?;
        let line = tensor.shape().last().copied() == outputs && Some(tensor.len()) == outputs;
        (line && uses[value.index()].len() == 1).then_some(value)
    };
    let shape = &graph.ty(sink.weight.0).shape;
    match &node.op {
        Op::Conv(conv) if conv.group == 1 => own(node.inputs.get(2).copied()??, shape[0].known()),
        Op::MatMul(_) if sink.slot == 1 && shape.len() == 2 => {
            let &[reader] = uses[node.outputs.first()?.index()].as_slice() else { return None };
            let reader = graph.node(reader)?;
            let adds = matches!(&reader.op, Op::Binary(op) if op.kind == BinaryKind::Add);
            let other = reader.inputs.iter().flatten().find(|v| Some(*v) != node.outputs.first())?;
            adds.then(|| own(*other, shape[1].known())).flatten()
        }
        _ => None,
    }
}

fn apply(
    graph: &mut Graph,
    sink: &Sink,
    bias: Option<ValueId>,
    estimate: &Estimate,
) -> Result<(), CompressError> {
    let Some(weights) = graph.const_value(sink.weight.0).cloned() else { return Ok(()) };
    let (axis, dtype) = (sink.weight.1, weights.dtype());
    let (extent, inner) = (weights.shape()[axis], weights.shape()[axis + 1..].iter().product::<usize>());
    let mut values = weights.to_f64s();
    let outer = values.len() / (extent * inner).max(1);
    // Outputs are the first axis of a convolution's weights, the last of a matrix.
    let first = axis > 0;
    let mut shift = vec![0.0; if first { outer } else { inner }];
    let gone = estimate.gone.len();
    let mut lines = vec![0.0; gone];
    for (o, block) in values.chunks_exact_mut((extent * inner).max(1)).enumerate() {
        for i in 0..inner {
            lines.iter_mut().zip(&estimate.gone).for_each(|(to, r)| *to = block[r * inner + i]);
            let dot = |factors: &[f64]| lines.iter().zip(factors).map(|(w, f)| w * f).sum::<f64>();
            for (k, factors) in estimate.stay.iter().zip(estimate.factors.chunks_exact(gone)) {
                block[k * inner + i] += dot(factors);
            }
            shift[if first { o } else { i }] += dot(&estimate.constants);
        }
    }
    graph.set_const(sink.weight.0, Tensor::from_f64s(dtype, weights.shape(), &values)?)?;
    if let Some((value, tensor)) = bias.and_then(|b| Some((b, graph.const_value(b)?.clone()))) {
        let moved: Vec<f64> = tensor.to_f64s().iter().zip(&shift).map(|(b, s)| b + s).collect();
        graph.set_const(value, Tensor::from_f64s(tensor.dtype(), tensor.shape(), &moved)?)?;
    }
    Ok(())
}
