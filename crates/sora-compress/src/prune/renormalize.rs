//! Batch normalizations that are not folded into a layer, over the values of a network that was changed.

use std::collections::HashMap;

use sora_data::{Dataset, Preprocess};
use sora_exec::{Options, Session};
use sora_ir::ops::{BinaryKind, Op};
use sora_ir::{Dim, Graph, Node, ValueId};
use sora_tensor::Tensor;

use super::observe::BATCH;
use super::{Groups, silence};
use crate::feed::{Feed, head};
use crate::{CompressError, Progress};

/// What is left of a batch normalization in an optimized graph: each channel of a computed value times a number, plus another.
struct Affine {
    x: ValueId,
    /// The axis of the channels.
    axis: usize,
    factor: ValueId,
    shift: ValueId,
}

/// Mean and variance of each channel.
type Statistics = Vec<[f64; 2]>;

/// The least variance of a channel, as a share of that of all, that a factor is found for.
const LEAST: f64 = 1e-6;

/// `changed`, whose batch normalizations take the mean and variance of each channel that they see on `samples` of `data` when what `keep`
/// denies is gone, to where they took those of `original`, of which `changed` differs only in constants. One behind another is estimated
/// when that is done. Layers whose normalization is folded into them have none of their own; networks without any stay as they are.
///
/// Where a channel had mean `μ` and deviation `σ`, and has `μ'` and `σ'`, factor and shift `a, b` become `a' = a σ / σ'` and
/// `b' = b + a μ − a' μ'`: what estimating the running statistics anew gives, in the measure of how they have moved.
///
/// Sources: Ioffe & Szegedy 2015; after pruning, Li et al. 2020 (EagleEye).
///
/// # Errors
/// As [`observe`](super::observe()).
pub fn renormalize(
    original: &Graph,
    mut changed: Graph,
    (groups, keep): (&Groups, &[Vec<bool>]),
    data: (&Dataset, &Preprocess),
    samples: &[usize],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Graph, CompressError> {
    let affines = affines(&changed)?;
    if affines.is_empty() {
        return Ok(changed);
    }
    let watched: HashMap<ValueId, usize> = affines.iter().map(|affine| (affine.x, affine.axis)).collect();
    let mut silent = silence(&changed, groups, keep)?;
    progress
        .stage("Estimating batch normalizations anew", Some((samples.len() * (1 + affines.len())) as u64));
    let before = statistics(original, &watched, data, samples, options, progress)?;
    for Affine { x, axis, factor, shift } in affines {
        let now = statistics(&silent, &[(x, axis)].into(), data, samples, options, progress)?;
        let (Some(was), Some(is)) = (before.get(&x), now.get(&x)) else { continue };
        let (Some(factors), Some(shifts)) = (changed.const_value(factor), changed.const_value(shift)) else {
            continue;
        };
        let (factors, shifts) = (factors.clone(), shifts.clone());
        let least = LEAST * is.iter().map(|[_, variance]| variance).sum::<f64>() / is.len().max(1) as f64;
        let (mut a, mut b) = (factors.to_f64s(), shifts.to_f64s());
        for ((a, b), (&[mean, variance], &[now, varies])) in a.iter_mut().zip(&mut b).zip(was.iter().zip(is))
        {
            if varies > least && [mean, variance] != [now, varies] {
                let scaled = *a * (variance / varies).sqrt();
                *b += *a * mean - scaled * now;
                *a = scaled;
            }
        }
        for (value, old, new) in [(factor, factors, a), (shift, shifts, b)] {
            let new = Tensor::from_f64s(old.dtype(), old.shape(), &new)?;
            silent.set_const(value, new.clone())?;
            changed.set_const(value, new)?;
        }
    }
    Ok(changed)
}

/// The normalizations of a graph, in its order.
fn affines(graph: &Graph) -> Result<Vec<Affine>, CompressError> {
    let uses = graph.uses();
    // The other operand of a node that takes a number for each channel of it, with the axis.
    let by_channel = |node: &Node, kind: BinaryKind| -> Option<(ValueId, usize, ValueId)> {
        let Op::Binary(op) = &node.op else { return None };
        let [Some(a), Some(b)] = node.inputs[..] else { return None };
        let (x, constant) = if graph.const_value(b).is_some() { (a, b) } else { (b, a) };
        let shape = graph.const_value(constant)?.shape();
        let along = shape.iter().position(|&extent| extent > 1)?;
        let axis = (along + graph.ty(x).rank()).checked_sub(shape.len()).filter(|&axis| axis > 0)?;
        let fits = shape.iter().skip(along + 1).all(|&extent| extent == 1)
            && graph.ty(x).shape.get(axis).and_then(Dim::known) == Some(shape[along])
            && graph.producer(x).is_some()
            && uses[constant.index()].len() == 1;
        (op.kind == kind && fits).then_some((x, axis, constant))
    };
    let mut found = Vec::new();
    for id in graph.order()? {
        let Some(node) = graph.node(id) else { continue };
        let Some((x, axis, factor)) = by_channel(node, BinaryKind::Mul) else { continue };
        let &[reader] = node.outputs.first().map_or(&[][..], |y| uses[y.index()].as_slice()) else {
            continue;
        };
        let reader = graph.node(reader).and_then(|reader| by_channel(reader, BinaryKind::Add));
        if let Some((y, same, shift)) = reader
            && node.outputs.contains(&y)
            && same == axis
        {
            found.push(Affine { x, axis, factor, shift });
        }
    }
    Ok(found)
}

/// The statistics of values along an axis each, over samples and positions.
fn statistics(
    graph: &Graph,
    watched: &HashMap<ValueId, usize>,
    (data, preprocess): (&Dataset, &Preprocess),
    samples: &[usize],
    options: &Options,
    progress: &dyn Progress,
) -> Result<HashMap<ValueId, Statistics>, CompressError> {
    let feed = Feed::new(graph, data, preprocess)?;
    // What comes behind the last of them does not run.
    let mut cut = graph.clone();
    cut.set_outputs(Vec::new());
    let session = Session::watching(cut, watched.keys().copied().collect(), options.clone())?;
    let mut sums: HashMap<ValueId, (f64, Statistics)> = HashMap::new();
    feed.observe(&session, samples, BATCH, progress, |value, tensor, len| {
        let Some(&axis) = watched.get(&value) else { return Ok(()) };
        let tensor = head(tensor, len)?;
        let (extent, inner) = (tensor.shape()[axis], tensor.shape()[axis + 1..].iter().product::<usize>());
        let (count, sums) = sums.entry(value).or_insert_with(|| (0.0, vec![[0.0; 2]; extent]));
        *count += tensor.len() as f64 / extent.max(1) as f64;
        for (at, line) in tensor.to_f32s().chunks(inner.max(1)).enumerate() {
            let [sum, square] = &mut sums[at % extent];
            for &x in line {
                *sum += f64::from(x);
                *square += f64::from(x) * f64::from(x);
            }
        }
        Ok(())
    })?;
    let moments = |count: f64, sums: Statistics| {
        let of = |[sum, square]: [f64; 2]| {
            let mean = sum / count.max(1.0);
            [mean, (square / count.max(1.0) - mean * mean).max(0.0)]
        };
        sums.into_iter().map(of).collect()
    };
    Ok(sums.into_iter().map(|(value, (count, sums))| (value, moments(count, sums))).collect())
}
