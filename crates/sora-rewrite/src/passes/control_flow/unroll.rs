//! Control flow that is decided before the network runs.

use sora_ir::ops::{Concat, Gather, If, Loop, Scan, Unsqueeze, Where};
use sora_ir::{Graph, Node, Op, Subgraph, ValueId, resolve_axis};
use sora_tensor::{Bool, Tensor};

use super::parts::steps_of;
use crate::Options;

/// What a node becomes: the rule, what it did, and the values of the node's outputs.
type Expanded = Option<(&'static str, String, Vec<ValueId>)>;

/// A branch that is always taken, or the iterations of a short loop, in place of the node. The graph may have nodes that
/// nothing reads when it is not done.
pub(super) fn expand(graph: &mut Graph, node: &Node, options: &Options) -> Expanded {
    match &node.op {
        Op::If(op) if options.allows("take_branch") => {
            let taken = take_branch(graph, node, op);
            if taken.is_none() && options.both_branches { take_both(graph, node, op) } else { taken }
        }
        Op::Loop(op) if options.allows("unroll_loop") => unroll_loop(graph, node, op, options),
        Op::Scan(op) if options.allows("unroll_scan") => unroll_scan(graph, node, op, options),
        _ => None,
    }
}

/// The nodes of a body, those of inner ones included.
fn size(body: &Graph) -> usize {
    let inner = body.nodes().flat_map(|(_, node)| node.op.bodies());
    body.nodes().count() + inner.map(|body| size(body.graph())).sum::<usize>()
}

/// Adds a body under names that are not taken.
fn splice(graph: &mut Graph, body: &Subgraph, inputs: &[ValueId]) -> Option<Vec<ValueId>> {
    let taken: std::collections::HashSet<String> = graph.values().map(|(_, v)| v.name.clone()).collect();
    let mut given = taken;
    let mut fresh = |name: &str| {
        let numbered = (1usize..).map(|i| format!("{name}_{i}"));
        let mut names = std::iter::once(name.to_owned()).chain(numbered);
        names.find(|name| given.insert(name.clone())).unwrap_or_default()
    };
    graph.splice(body.graph(), inputs, &mut fresh).ok()
}

fn flag(graph: &Graph, value: ValueId) -> Option<bool> {
    number(graph, value).map(|flag| flag != 0)
}

fn take_branch(graph: &mut Graph, node: &Node, op: &If) -> Expanded {
    let condition = flag(graph, (*node.inputs.first()?)?)?;
    let branch = if condition { &op.then_branch } else { &op.else_branch };
    let inputs: Vec<ValueId> = node.inputs.iter().skip(1).copied().collect::<Option<_>>()?;
    let values = splice(graph, branch, &inputs)?;
    Some(("take_branch", format!("its condition is always {condition}"), values))
}

/// Both branches, and a choice between what they give, where that has one type.
fn take_both(graph: &mut Graph, node: &Node, op: &If) -> Expanded {
    let condition = (*node.inputs.first()?)?;
    let inputs: Vec<ValueId> = node.inputs.iter().skip(1).copied().collect::<Option<_>>()?;
    let [yes, no] = [&op.then_branch, &op.else_branch];
    let outputs = yes.graph().outputs().iter().zip(no.graph().outputs());
    let alike = |graph: &Graph, a: ValueId, other: &Graph, b: ValueId| graph.ty(a) == other.ty(b);
    if graph.ty(condition).rank() != 0
        || outputs.clone().any(|(a, b)| !alike(yes.graph(), a.value, no.graph(), b.value))
    {
        return None;
    }
    let (yes, no) = (splice(graph, yes, &inputs)?, splice(graph, no, &inputs)?);
    let mut values = Vec::new();
    for (a, b) in yes.into_iter().zip(no) {
        let name = graph.fresh_name(&format!("{}.choice", node.name));
        values.push(graph.op(&name, Where {}, [condition, a, b]).ok()?);
    }
    Some(("take_branch", "both, and one of their results".to_owned(), values))
}

/// A number that is constant, or follows from the shapes.
fn number(graph: &Graph, value: ValueId) -> Option<i64> {
    match (graph.const_value(value), graph.value(value).content.as_deref()) {
        (Some(tensor), _) => match tensor.to_i64s().as_slice() {
            &[number] => Some(number),
            _ => None,
        },
        (None, Some([number])) => number.constant(),
        _ => None,
    }
}

fn unroll_loop(graph: &mut Graph, node: &Node, op: &Loop, options: &Options) -> Expanded {
    let operand = |slot: usize| node.inputs.get(slot).copied().flatten();
    let trips = usize::try_from(number(graph, operand(0)?)?.max(0)).ok()?;
    let begin = operand(1).map_or(Some(true), |value| flag(graph, value))?;
    let body = op.body.graph();
    let condition = body.outputs().first()?.value;
    let goes_on = body.inputs().get(1) == Some(&condition) || flag(body, condition) == Some(true);
    let trips = if begin { trips } else { 0 };
    let stacks = body.outputs().len().checked_sub(1 + op.carried)?;
    if !goes_on || size(body).saturating_mul(trips) > options.unrolled_nodes || trips == 0 && stacks > 0 {
        return None;
    }
    let given: Vec<ValueId> = (2..node.inputs.len()).map(operand).collect::<Option<_>>()?;
    let (carried, captures) = given.split_at_checked(op.carried)?;
    let mut carried = carried.to_vec();
    let mut parts = vec![Vec::new(); stacks];
    for trip in 0..trips {
        let number = shaped(Tensor::scalar(i64::try_from(trip).ok()?), body, 0)?;
        let number = graph.constant(&graph.fresh_name(&format!("{}.trip", node.name)), number);
        let go_on = shaped(Tensor::scalar(Bool::from(true)), body, 1)?;
        let flag = graph.constant(&graph.fresh_name(&format!("{}.go_on", node.name)), go_on);
        let inputs = [&[number, flag], &carried[..], captures].concat();
        let mut outputs = splice(graph, &op.body, &inputs)?.into_iter().skip(1);
        carried = outputs.by_ref().take(op.carried).collect();
        parts.iter_mut().zip(outputs).for_each(|(list, value)| list.push(value));
    }
    for list in parts {
        carried.push(stack(graph, &node.name, &list, 0)?);
    }
    Some(("unroll_loop", format!("{trips} iterations one after the other"), carried))
}

/// A scalar in the rank that a body declares for an input.
fn shaped(scalar: Tensor, body: &Graph, input: usize) -> Option<Tensor> {
    let rank = body.ty(*body.inputs().get(input)?).rank();
    scalar.reshape(&vec![1; rank]).ok()
}

/// Values along a new axis.
fn stack(graph: &mut Graph, name: &str, list: &[ValueId], axis: i64) -> Option<ValueId> {
    let mut parts = Vec::new();
    for &value in list {
        let name = graph.fresh_name(&format!("{name}.slice"));
        parts.push(graph.op(&name, Unsqueeze { axes: vec![axis] }, [value]).ok()?);
    }
    graph.op(&graph.fresh_name(&format!("{name}.stack")), Concat { axis }, parts).ok()
}

fn unroll_scan(graph: &mut Graph, node: &Node, op: &Scan, options: &Options) -> Expanded {
    let given: Vec<ValueId> = node.inputs.iter().copied().collect::<Option<_>>()?;
    let (states, rest) = given.split_at_checked(op.states)?;
    let (sequences, captures) = rest.split_at_checked(op.input_axes.len())?;
    let steps = steps_of(graph, *sequences.first()?, *op.input_axes.first()?)?;
    if steps == 0 || size(op.body.graph()).saturating_mul(steps) > options.unrolled_nodes {
        return None;
    }
    let mut states = states.to_vec();
    let mut parts = vec![Vec::new(); op.output_axes.len()];
    for step in 0..steps {
        let mut inputs = std::mem::take(&mut states);
        for ((&sequence, &axis), &reverse) in sequences.iter().zip(&op.input_axes).zip(&op.input_reverse) {
            let at = if reverse { steps - 1 - step } else { step };
            let at = Tensor::scalar(i64::try_from(at).ok()?);
            let at = graph.constant(&graph.fresh_name(&format!("{}.step", node.name)), at);
            let slice = graph.fresh_name(&format!("{}.slice", node.name));
            inputs.push(graph.op(&slice, Gather { axis }, [sequence, at]).ok()?);
        }
        inputs.extend_from_slice(captures);
        let mut outputs = splice(graph, &op.body, &inputs)?.into_iter();
        states = outputs.by_ref().take(op.states).collect();
        parts.iter_mut().zip(outputs).for_each(|(list, value)| list.push(value));
    }
    for ((mut list, &axis), &reverse) in parts.into_iter().zip(&op.output_axes).zip(&op.output_reverse) {
        if reverse {
            list.reverse();
        }
        let rank = graph.ty(*list.first()?).rank() + 1;
        let axis = i64::try_from(resolve_axis(axis, rank).ok()?).ok()?;
        states.push(stack(graph, &node.name, &list, axis)?);
    }
    Some(("unroll_scan", format!("{steps} steps one after the other"), states))
}
