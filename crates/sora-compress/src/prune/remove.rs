//! Taking units out of a graph.

use std::collections::HashMap;

use sora_ir::ops::Where;
use sora_ir::{Def, Dim, Graph, IrError, Node, TensorType, ValueId};
use sora_tensor::{Buffer, DType, Tensor, TensorError};

use super::{Axis, Groups, extents};
use crate::CompressError;

/// For the axes that lose elements: which stay.
pub(super) type Kept = HashMap<Axis, Vec<bool>>;

/// What is left of every axis when `keep` says which units of each group stay.
///
/// # Errors
/// [`CompressError::Option`] when `keep` is not as long as the groups, or keeps none of a group.
pub(super) fn kept(graph: &Graph, groups: &Groups, keep: &[Vec<bool>]) -> Result<Kept, CompressError> {
    let wrong = |what: String| Err(CompressError::Option { what });
    if keep.len() != groups.groups.len() {
        return wrong(format!("{} decisions do not fit {} groups of units", keep.len(), groups.groups.len()));
    }
    let mut kept = Kept::new();
    for (group, keep) in groups.groups.iter().zip(keep) {
        let layers = group.layers.join(", ");
        if keep.len() != group.units.len() {
            return wrong(format!(
                "{} decisions do not fit {} units of {layers}",
                keep.len(),
                group.units.len()
            ));
        }
        if !keep.contains(&true) {
            return wrong(format!("none of {} units of {layers} would be left", keep.len()));
        }
        if !keep.contains(&false) {
            continue;
        }
        for (at, &(value, axis)) in group.axes.iter().enumerate() {
            let extent = graph.ty(value).shape.get(axis).and_then(Dim::known).unwrap_or(0);
            let stay = kept.entry((value, axis)).or_insert_with(|| vec![true; extent]);
            let removed = group.units.iter().zip(keep).filter(|(_, keep)| !**keep);
            removed.flat_map(|(unit, _)| &unit[at]).for_each(|&position| stay[position] = false);
        }
    }
    Ok(kept)
}

/// The graph without the units that `keep` denies, for each group and unit: constants are cut, shapes inferred anew.
/// Names stay. The result computes what `graph` does with the [sinks](super::Sink) of those units at zero.
///
/// # Errors
/// [`CompressError::Option`] when `keep` does not fit the groups or keeps none of one, [`CompressError::Ir`] when a node
/// refuses what is left.
pub fn remove(graph: &Graph, groups: &Groups, keep: &[Vec<bool>]) -> Result<Graph, CompressError> {
    let kept = kept(graph, groups, keep)?;
    let ty = |value: ValueId| -> TensorType {
        let mut ty = graph.ty(value).clone();
        for (axis, dim) in ty.shape.iter_mut().enumerate() {
            if let Some(stay) = kept.get(&(value, axis)) {
                *dim = Dim::from(stay.iter().filter(|stay| **stay).count());
            }
        }
        ty
    };
    let mut new = Graph::new(&graph.name);
    let mut map: Vec<Option<ValueId>> = vec![None; graph.values().count()];
    for &id in graph.inputs() {
        map[id.index()] = Some(new.input(&graph.value(id).name, ty(id)));
    }
    for (id, value) in graph.values() {
        if let Def::Const(tensor) = &value.def {
            let cuts = (0..tensor.rank()).filter_map(|axis| Some((axis, kept.get(&(id, axis))?.as_slice())));
            map[id.index()] = Some(new.constant(&value.name, cut(tensor, cuts)?));
        }
    }
    for id in graph.order()? {
        let Some(node) = graph.node(id) else { continue };
        let mut inputs: Vec<Option<ValueId>> =
            node.inputs.iter().map(|v| v.and_then(|v| map[v.index()])).collect();
        let types: Vec<_> = node.inputs.iter().map(|v| v.map(ty)).collect();
        let outputs: Vec<TensorType> = node.outputs.iter().map(|&v| ty(v)).collect();
        let list = extents::listed(&node.op).and_then(|slot| Some((slot, inputs.get(slot).copied()??)));
        if let (Some((slot, list)), Some(wanted)) = (list, outputs.first()) {
            inputs[slot] = Some(relisted(&mut new, node, list, wanted)?);
        }
        let given: Vec<_> = types.iter().map(Option::as_ref).collect();
        let op = node.op.narrowed(&given, &outputs.iter().collect::<Vec<_>>());
        let made = new.add(&node.name, op, inputs)?;
        for ((&old, id), expected) in node.outputs.iter().zip(made).zip(&outputs) {
            if !new.ty(id).accepts(expected) {
                let (value, declared) = (graph.value(old).name.clone(), expected.to_string());
                return Err(IrError::Type { value, declared, inferred: new.ty(id).to_string() }.into());
            }
            new.rename(id, &graph.value(old).name);
            map[old.index()] = Some(id);
        }
    }
    for output in graph.outputs() {
        if let Some(value) = map[output.value.index()] {
            new.output(&output.name, value);
        }
    }
    Ok(new)
}

/// The graph with the [sinks](super::Sink) of the units that `keep` denies at zero: what [`remove`] gives, in the old shapes.
///
/// # Errors
/// [`CompressError::Option`] when `keep` does not fit the groups or keeps none of one.
pub fn silence(graph: &Graph, groups: &Groups, keep: &[Vec<bool>]) -> Result<Graph, CompressError> {
    let kept = kept(graph, groups, keep)?;
    let mut silent = graph.clone();
    for sink in groups.groups.iter().flat_map(|group| &group.sinks) {
        let Some(stay) = kept.get(&sink.weight) else { continue };
        let value = silent.node(sink.node).and_then(|node| node.inputs.get(sink.slot).copied().flatten());
        let Some((value, weights)) = value.and_then(|v| Some((v, silent.const_value(v)?.clone()))) else {
            continue;
        };
        let name = silent.fresh_name(&format!("{}_silenced", silent.value(value).name));
        let value = silent.constant(&name, zeroed(weights, sink.weight.1, stay));
        silent.set_input(sink.node, sink.slot, value);
    }
    Ok(silent)
}

/// The tensor with zeros in place of the elements that do not stay along an axis.
fn zeroed(mut tensor: Tensor, axis: usize, stay: &[bool]) -> Tensor {
    let run = tensor.shape().iter().skip(axis + 1).product::<usize>() * tensor.dtype().size();
    for (at, row) in tensor.bytes_mut().chunks_exact_mut(run.max(1)).enumerate() {
        if !stay[at % stay.len()] {
            row.fill(0);
        }
    }
    tensor
}

/// A list of extents in which those that are not `wanted` are replaced. -1 and 0 stay: they follow from the rest.
fn relisted(
    new: &mut Graph,
    node: &Node,
    list: ValueId,
    wanted: &TensorType,
) -> Result<ValueId, CompressError> {
    let Some(content) = new.value(list).content.clone() else { return Ok(list) };
    let skip = wanted.rank() - content.len().min(wanted.rank());
    let wrong: Vec<Option<i64>> = (content.iter().zip(&wanted.shape[skip..]))
        .map(|(given, wanted)| {
            let (given, wanted) = (given.constant()?, wanted.constant()?);
            (given > 1 && given != wanted).then_some(wanted)
        })
        .collect();
    if wrong.iter().all(Option::is_none) {
        return Ok(list);
    }
    let dtype = new.ty(list).dtype;
    let given = content.iter().map(|dim| dim.constant().unwrap_or(0));
    let numbers: Vec<i128> =
        wrong.iter().zip(given).map(|(wrong, given)| wrong.unwrap_or(given).into()).collect();
    let numbers = Tensor::from_i128s(dtype, &[wrong.len()], &numbers)?;
    let name = new.fresh_name(&format!("{}_extents", node.name));
    let numbers = new.constant(&name, numbers);
    if new.const_value(list).is_some() {
        return Ok(numbers);
    }
    // Some of the extents are known only when the network runs.
    let which: Vec<i128> = wrong.iter().map(|wrong| i128::from(wrong.is_some())).collect();
    let which =
        new.constant(&format!("{name}_which"), Tensor::from_i128s(DType::Bool, &[wrong.len()], &which)?);
    Ok(new.op(&format!("{name}_chosen"), Where {}, [which, numbers, list])?)
}

/// The tensor without the elements that do not stay along some axes.
pub(super) fn cut<'k>(
    tensor: &Tensor,
    cuts: impl Iterator<Item = (usize, &'k [bool])>,
) -> Result<Tensor, TensorError> {
    let mut tensor = tensor.clone();
    for (axis, stay) in cuts {
        let mut shape = tensor.shape().to_vec();
        let run = shape[axis + 1..].iter().product::<usize>() * tensor.dtype().size();
        let mut bytes = Vec::with_capacity(tensor.byte_len());
        for (at, row) in tensor.bytes().chunks_exact(run.max(1)).enumerate() {
            if stay[at % stay.len()] {
                bytes.extend_from_slice(row);
            }
        }
        shape[axis] = stay.iter().filter(|stay| **stay).count();
        tensor = Tensor::new(tensor.dtype(), &shape, Buffer::copy_of(&bytes))?;
    }
    Ok(tensor)
}
