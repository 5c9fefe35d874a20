//! Seams of a network: values whose channels can be scaled where they are made and scaled back where they are read, so that the
//! network computes the same; and the scales at which rounding them costs least.

use std::collections::{BTreeSet, HashMap};

use sora_ir::ops::{Activation, ActivationKind, Binary, BinaryKind, Op, ReduceKind, Unary, UnaryKind};
use sora_ir::{Graph, Node, NodeId, ValueId};
use sora_tensor::Tensor;

use crate::CompressError;
use crate::bias_correct::input_channel;
use crate::layers::{Layer, Network};
use crate::method::{Channels, Observations};

/// A value by channel, from the constants that scale it to the products that read it.
pub(crate) struct Seam {
    /// Constants whose elements along an axis scale a channel each.
    made_by: Vec<(ValueId, usize)>,
    /// The channels.
    channels: usize,
    /// Layers that read it, each with the number of its inputs that one channel becomes.
    readers: Vec<(usize, usize)>,
    /// A bound on the way beyond which values are cut.
    bound: Option<f32>,
}

/// Uses of all values, to look constants and readers up.
struct Uses<'a> {
    graph: &'a Graph,
    uses: Vec<Vec<NodeId>>,
    results: BTreeSet<ValueId>,
}

impl<'a> Uses<'a> {
    fn new(graph: &'a Graph) -> Self {
        Uses { graph, uses: graph.uses(), results: graph.outputs().iter().map(|o| o.value).collect() }
    }

    /// A constant that one node reads, once.
    fn own(&self, value: ValueId) -> Option<&'a Tensor> {
        let tensor = self.graph.const_value(value)?;
        let own = self.uses[value.index()].len() == 1 && !self.results.contains(&value);
        (own && tensor.dtype() == sora_tensor::DType::F32).then_some(tensor)
    }

    /// Whether scaling a constant changes nothing.
    fn is_zero(&self, value: ValueId) -> bool {
        self.graph.const_value(value).is_some_and(|t| t.to_f32s().iter().all(|v| *v == 0.0))
    }
}

/// The seams behind linear layers.
pub(crate) fn behind_products(network: &Network) -> Vec<Seam> {
    let uses = Uses::new(&network.graph);
    let seam = |layer: &Layer| {
        let linear = layer.linear()?;
        let first = *layer.nodes.first()?;
        let node = network.graph.node(first)?;
        let channel_axis = match node.op {
            Op::Conv(_) => 1,
            Op::MatMul(_) => network.graph.ty(*node.outputs.first()?).rank().checked_sub(1)?,
            _ => return None,
        };
        let weight = uses.own(linear.weight)?;
        let channels = *weight.shape().get(linear.axis)?;
        let mut made_by = vec![(linear.weight, linear.axis)];
        let mut last = node;
        if let Some((id, slot)) = linear.bias {
            last = network.graph.node(id)?;
            if let Some(bias) = last.inputs.get(slot).copied().flatten().filter(|&bias| !uses.is_zero(bias)) {
                let tensor = uses.own(bias)?;
                made_by.push((bias, tensor.rank().checked_sub(1)?));
            }
        }
        follow(network, &uses, *last.outputs.first()?, channel_axis, made_by, channels)
    };
    network.layers.iter().filter_map(seam).collect()
}

/// The seams behind normalizations and multiplications by a constant, which have a scale for each channel already.
pub(crate) fn behind_scales(network: &Network) -> Vec<Seam> {
    let (graph, uses) = (&network.graph, Uses::new(&network.graph));
    let seam = |(_, node): (NodeId, &Node)| {
        let output = *node.outputs.first()?;
        let rank = graph.ty(output).rank();
        let slot = |slot: usize| node.inputs.get(slot).copied().flatten();
        let (axis, slots): (usize, Vec<usize>) = match &node.op {
            Op::LayerNorm(norm)
                if norm.axis == -1 || usize::try_from(norm.axis) == Ok(rank.checked_sub(1)?) =>
            {
                (rank - 1, vec![1, 2])
            }
            Op::BatchNorm(_) => (1, vec![1, 2]),
            Op::Binary(Binary { kind: BinaryKind::Mul }) => {
                let at = (0..2).find(|&at| slot(at).is_some_and(|v| graph.const_value(v).is_some()))?;
                (rank.checked_sub(1)?, vec![at])
            }
            _ => return None,
        };
        let channels = graph.ty(output).shape.get(axis)?.known()?;
        let mut made_by = Vec::new();
        for constant in slots.iter().enumerate().map(|(i, &at)| (i, slot(at))) {
            match constant {
                (0, None) => return None,
                (_, None) => {}
                (i, Some(value)) if i > 0 && uses.is_zero(value) => {}
                (_, Some(value)) => {
                    let tensor = uses.own(value).filter(|t| t.len() == channels && t.rank() > 0)?;
                    let along = tensor.shape().iter().position(|&extent| extent == channels)?;
                    // Its elements lie along the axis of the channels.
                    (matches!(node.op, Op::BatchNorm(_)) || tensor.rank() - along == rank - axis)
                        .then_some(())?;
                    made_by.push((value, along));
                }
            }
        }
        follow(network, &uses, output, axis, made_by, channels)
    };
    graph.nodes().filter_map(seam).collect()
}

/// Follows a value through whatever keeps its channels and their scales to the products that read it; `None` where something else
/// reads it, too.
fn follow(
    network: &Network,
    uses: &Uses,
    value: ValueId,
    axis: usize,
    made_by: Vec<(ValueId, usize)>,
    channels: usize,
) -> Option<Seam> {
    let mut seam = Seam { made_by, channels, readers: Vec::new(), bound: None };
    let mut averaged = false;
    let mut open = vec![(value, axis, 1)];
    while let Some((value, axis, copies)) = open.pop() {
        if uses.results.contains(&value) || uses.uses[value.index()].is_empty() {
            return None;
        }
        for &id in &uses.uses[value.index()] {
            let node = network.graph.node(id)?;
            let index = network.layer_of(id)?;
            let layer = &network.layers[index];
            let starts = layer.nodes.first() == Some(&id) && layer.reads.first() == Some(&value);
            if let Some(linear) = layer.linear().filter(|_| starts) {
                let once = node.inputs.iter().filter(|v| **v == Some(value)).count() == 1;
                let weight = uses.own(linear.weight)?;
                let reads = input_channel(&node.op, weight.shape(), linear.axis)?;
                let inputs = (0..weight.len()).map(reads).max()? + 1;
                (once && linear.input_axis == axis && inputs == seam.channels * copies).then_some(())?;
                seam.readers.push((index, copies));
                continue;
            }
            let output = *node.outputs.first()?;
            let (before, after) = (network.graph.ty(value), network.graph.ty(output));
            let (axis, copies) = match &node.op {
                Op::Unary(Unary { kind: UnaryKind::Relu }) => (axis, copies),
                Op::Activation(Activation { kind: ActivationKind::LeakyRelu, .. }) => (axis, copies),
                Op::Activation(Activation { kind: ActivationKind::Clip, alpha, beta }) if alpha.0 == 0.0 => {
                    seam.bound = Some(seam.bound.map_or(beta.0, |bound| bound.min(beta.0)));
                    (axis, copies)
                }
                Op::MaxPool(_) => (axis, copies),
                Op::AveragePool(_) => {
                    averaged = true;
                    (axis, copies)
                }
                Op::Reduce(reduce) if matches!(reduce.kind, ReduceKind::Mean | ReduceKind::Max) => {
                    averaged |= reduce.kind == ReduceKind::Mean;
                    let reduced = reduce.reduced(before.rank()).ok()?;
                    (!reduced[..=axis].contains(&true)).then_some((axis, copies))?
                }
                Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) => {
                    let inner = |shape: &[sora_ir::Dim]| -> Option<usize> {
                        shape.iter().map(sora_ir::Dim::known).product()
                    };
                    let (all, each) =
                        (inner(before.shape.get(axis..)?)?, inner(before.shape.get(axis + 1..)?)?);
                    let joined = axis == 1 && after.rank() == 2 && after.shape[1].known() == Some(all);
                    joined.then_some((1, copies * each))?
                }
                _ => return None,
            };
            open.push((output, axis, copies));
        }
    }
    // Where values are cut and then averaged, how far they go is no longer seen.
    let lost = averaged && seam.bound.is_some();
    (!seam.readers.is_empty() && !lost).then_some(seam)
}

/// Shares of the range of a channel that move into the weights that read it.
const ALPHAS: [f64; 7] = [0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0];

/// The share of the expected error that scaling must save to be worth it.
const WORTH: f64 = 0.03;

/// Limits of a scale.
const SCALES: (f64, f64) = (1e-6, 1e6);

/// A channel that is cut somewhere may fill this share of the room below the bound.
const ROOM: f64 = 0.5;

/// One reader of a seam: its weights and the channels that they meet.
struct Reading<'a> {
    values: &'a [f32],
    /// The input channel of the weight at a position.
    input: Box<dyn Fn(usize) -> usize>,
    outputs: usize,
    /// Weights from one output to the next.
    inner: usize,
    copies: usize,
    seen: &'a Channels,
}

impl<'a> Reading<'a> {
    fn new(network: &'a Network, seen: &'a Observations, (index, copies): (usize, usize)) -> Option<Self> {
        let layer = &network.layers[index];
        let linear = layer.linear()?;
        let tensor = network.graph.const_value(linear.weight)?;
        let op = &network.graph.node(*layer.nodes.first()?)?.op;
        let input = input_channel(op, tensor.shape(), linear.axis)?;
        let outputs = *tensor.shape().get(linear.axis)?;
        let inner: usize = tensor.shape()[linear.axis + 1..].iter().product();
        let seen = seen.channels.get(&(*layer.reads.first()?, linear.input_axis))?;
        Some(Reading { values: tensor.as_slice().ok()?, input, outputs, inner, copies, seen })
    }

    /// Each weight with its output and its input channel.
    fn weights(&self) -> impl Iterator<Item = (usize, usize, f64)> {
        let weight =
            |(at, &w): (usize, &f32)| (at / self.inner % self.outputs, (self.input)(at), f64::from(w));
        self.values.iter().enumerate().map(weight)
    }

    /// The greatest magnitude of each channel.
    fn magnitude(&self, channel: usize) -> f64 {
        let inputs = channel * self.copies..(channel + 1) * self.copies;
        let magnitude = |i: usize| f64::from(self.seen.greatest[i].max(-self.seen.least[i]));
        inputs.map(magnitude).fold(0.0, f64::max)
    }

    /// The noise over signal of each output when the input and the weights are rounded to 8 bits, with channels divided by `scales`,
    /// on the mean over the outputs. Inputs count as uncorrelated.
    fn noise(&self, scales: &[f64]) -> f64 {
        let scale = |input: usize| scales[input / self.copies];
        let end = |ends: &[f32]| {
            ends.iter().enumerate().map(|(i, &v)| f64::from(v) / scale(i)).collect::<Vec<f64>>()
        };
        let greatest = end(&self.seen.greatest).into_iter().fold(0.0, f64::max);
        let least = end(&self.seen.least).into_iter().fold(0.0, f64::min);
        let step = (greatest - least) / 255.0;
        let energy = |i: usize| self.seen.squares[i] / (scale(i) * scale(i));
        let rounded = |i: usize| (step * step / 12.0).min(energy(i));
        // Of each output: signal, noise of inputs, energy that errors of weights meet, greatest weight.
        let mut sums = vec![(0.0, 0.0, 0.0, 0f64); self.outputs];
        for (output, input, weight) in self.weights() {
            let (scaled, sum) = (weight * scale(input), &mut sums[output]);
            sum.0 += scaled * scaled * energy(input);
            sum.1 += scaled * scaled * rounded(input);
            sum.2 += energy(input);
            sum.3 = sum.3.max(scaled.abs());
        }
        let ratio = |&(signal, noise, met, greatest): &(f64, f64, f64, f64)| {
            let step: f64 = greatest / 127.0;
            if signal > 0.0 { (noise + met * step * step / 12.0) / signal } else { 0.0 }
        };
        sums.iter().map(ratio).sum::<f64>() / self.outputs.max(1) as f64
    }
}

impl Seam {
    /// What to divide each channel by so that rounding costs least; `None` where that is nothing.
    fn scales(&self, network: &Network, seen: &Observations) -> Option<Vec<f64>> {
        let readings: Option<Vec<Reading>> =
            self.readers.iter().map(|&reader| Reading::new(network, seen, reader)).collect();
        let readings =
            readings.filter(|r| r.iter().all(|r| r.seen.means.len() == self.channels * r.copies))?;
        let ranges: Vec<f64> = (0..self.channels)
            .map(|channel| readings.iter().map(|r| r.magnitude(channel)).fold(0.0, f64::max))
            .collect();
        let weights = self.weights(&readings);
        let noise = |scales: &[f64]| readings.iter().map(|r| r.noise(scales)).sum::<f64>();
        let whole = ranges.iter().copied().fold(0.0, f64::max);
        let before = noise(&vec![1.0; self.channels]);
        let mut best: Option<(f64, Vec<f64>)> = None;
        for alpha in ALPHAS {
            let scale = |(&range, &weight): (&f64, &f64)| match range > 0.0 {
                true => range.powf(alpha) / weight.powf(1.0 - alpha),
                false => 0.0,
            };
            let raw: Vec<f64> = ranges.iter().zip(&weights).map(scale).collect();
            // The greatest channel keeps its range.
            let divided = ranges.iter().zip(&raw).filter(|(_, s)| **s > 0.0).map(|(range, s)| range / s);
            let unit = divided.fold(0.0, f64::max) / whole;
            let fit = |(&raw, &range): (&f64, &f64)| match self.bound.map(f64::from) {
                _ if raw == 0.0 || !unit.is_normal() => 1.0,
                // What is cut at times stays where it is.
                Some(bound) if range > ROOM * bound => 1.0,
                Some(bound) => (raw * unit).clamp(SCALES.0, SCALES.1).max(range / (ROOM * bound)),
                None => (raw * unit).clamp(SCALES.0, SCALES.1),
            };
            let scales: Vec<f64> = raw.iter().zip(&ranges).map(fit).collect();
            let after = noise(&scales);
            if best.as_ref().is_none_or(|(least, _)| after < *least) {
                best = Some((after, scales));
            }
        }
        let (after, scales) = best?;
        let exact: Vec<f64> = scales.into_iter().map(|scale| f64::from(scale as f32)).collect();
        (after < (1.0 - WORTH) * before).then_some(exact)
    }

    /// The greatest weight that each channel meets, as a share of the greatest one of the same output: each output has a scale of
    /// its own.
    fn weights(&self, readings: &[Reading]) -> Vec<f64> {
        let mut shares = vec![0f64; self.channels];
        for reading in readings {
            let mut greatest = vec![0f64; reading.outputs];
            for (output, _, w) in reading.weights() {
                greatest[output] = greatest[output].max(w.abs());
            }
            for (output, input, w) in reading.weights() {
                let share = &mut shares[input / reading.copies];
                *share = share.max(w.abs() / greatest[output].max(f64::MIN_POSITIVE));
            }
        }
        shares.into_iter().map(|share| share.max(1e-6)).collect()
    }

    fn apply(&self, network: &Network, graph: &mut Graph, scales: &[f64]) -> Result<(), CompressError> {
        for &(value, axis) in &self.made_by {
            scale(graph, value, |shape, at| {
                let inner: usize = shape[axis + 1..].iter().product();
                1.0 / scales[at / inner % self.channels]
            })?;
        }
        for &(index, copies) in &self.readers {
            let layer = &network.layers[index];
            let op = layer.nodes.first().and_then(|&id| network.graph.node(id)).map(|node| &node.op);
            let (Some(linear), Some(op)) = (layer.linear(), op) else { continue };
            let Some(tensor) = graph.const_value(linear.weight) else { continue };
            if let Some(input) = input_channel(op, tensor.shape(), linear.axis) {
                scale(graph, linear.weight, |_, at| scales[input(at) / copies])?;
            }
        }
        Ok(())
    }
}

/// Multiplies each element of a constant by `factor(shape, position)`.
fn scale(
    graph: &mut Graph,
    value: ValueId,
    factor: impl Fn(&[usize], usize) -> f64,
) -> Result<(), CompressError> {
    let Some(tensor) = graph.const_value(value).cloned() else { return Ok(()) };
    let scaled = |(at, v): (usize, f32)| (f64::from(v) * factor(tensor.shape(), at)) as f32;
    let values: Vec<f32> = tensor.to_f32s().into_iter().enumerate().map(scaled).collect();
    Ok(graph.set_const(value, Tensor::from_slice(tensor.shape(), &values)?)?)
}

/// The network with the channels of all seams scaled where that makes rounding cost less, if there is such a seam.
pub(crate) fn scaled(
    network: &Network,
    seen: &Observations,
    seams: &[Seam],
) -> Result<Option<Network>, CompressError> {
    // The scales of a seam do not depend on those of others: each output has its own scale of weights.
    let found: HashMap<usize, Vec<f64>> =
        seams.iter().enumerate().filter_map(|(at, seam)| Some((at, seam.scales(network, seen)?))).collect();
    if found.is_empty() {
        return Ok(None);
    }
    let mut scaled = network.clone();
    for (at, seam) in seams.iter().enumerate() {
        if let Some(scales) = found.get(&at) {
            seam.apply(network, &mut scaled.graph, scales)?;
        }
    }
    Ok(Some(scaled))
}
