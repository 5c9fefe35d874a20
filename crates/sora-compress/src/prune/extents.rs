//! What is computed from the extents of values.

use sora_ir::ops::Op;
use sora_ir::{EvalCx, Graph, Node, NodeId, QuantRule, ValueId};
use sora_tensor::Tensor;

/// The input that lists the extents of the operator's output, which [`remove`](super::remove()) writes anew.
pub(super) fn listed(op: &Op) -> Option<usize> {
    match op {
        Op::Reshape(_) | Op::Expand(_) => Some(1),
        Op::Resize(_) => Some(3),
        _ => None,
    }
}

/// The first node found that computes with the element at position `at` of a list of extents, other than to list
/// the extents of its output.
pub(super) fn reader(graph: &Graph, uses: &[Vec<NodeId>], list: ValueId, at: usize) -> Option<NodeId> {
    if graph.outputs().iter().any(|output| output.value == list) {
        return graph.producer(list).map(|(id, ..)| id);
    }
    for &id in &uses[list.index()] {
        let Some(node) = graph.node(id) else { continue };
        let slots = || node.inputs.iter().enumerate().filter(|(_, input)| **input == Some(list));
        if listed(&node.op).is_some_and(|list| slots().all(|(slot, _)| slot == list)) {
            continue;
        }
        let moves = matches!(node.op.quant(), QuantRule::Passthrough | QuantRule::Unify);
        let moved = (moves || matches!(node.op, Op::Cast(_))).then(|| moved(graph, node, list, at)).flatten();
        let Some(moved) = moved else { return Some(id) };
        for (&output, positions) in node.outputs.iter().zip(moved) {
            if let Some(found) = positions.into_iter().find_map(|at| reader(graph, uses, output, at)) {
                return Some(found);
            }
        }
    }
    None
}

/// For each output of a node that moves elements: where the element at `at` of `list` goes; `None` when that is not known.
fn moved(graph: &Graph, node: &Node, list: ValueId, at: usize) -> Option<Vec<Vec<usize>>> {
    // The node itself tells, given 1 for this element and 0 for all others.
    let concat = matches!(node.op, Op::Concat(_));
    let input = |value: ValueId| {
        if let (Some(tensor), false) = (graph.const_value(value), concat) {
            return Some(tensor.clone());
        }
        let shape = graph.ty(value).known_shape()?;
        let mark = |i: usize| if value == list && i == at { 1.0 } else { 0.0 };
        let values: Vec<f64> = (0..graph.ty(value).known_len()?).map(mark).collect();
        Tensor::from_f64s(graph.ty(value).dtype, &shape, &values).ok()
    };
    let directs = node.inputs.iter().skip(1).any(|v| *v == Some(list));
    if directs && !concat {
        return None;
    }
    let inputs: Option<Vec<Option<Tensor>>> =
        node.inputs.iter().map(|v| v.map_or(Some(None), |v| input(v).map(Some))).collect();
    let inputs = inputs?;
    let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
    let outputs = node.op.eval(&EvalCx { inputs: &inputs }).ok()?;
    let marked = |t: &Tensor| {
        let values = t.to_f64s().into_iter().enumerate();
        values.filter(|(_, v)| *v != 0.0).map(|(i, _)| i).collect()
    };
    Some(outputs.iter().map(marked).collect())
}
