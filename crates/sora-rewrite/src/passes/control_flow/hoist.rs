//! Moves work out of bodies.

use std::collections::HashMap;

use sora_ir::{Graph, Node, Op, ValueId};

use super::parts::Parts;

/// Moves work out of the bodies of an operator of the graph; tells what it moved.
pub(super) type Hoist = fn(&mut Graph, &mut Parts) -> Moved;

/// What was moved.
type Moved = Option<String>;

/// Moves what depends on captures only in front of a loop, where it is computed once. A loop may run zero times, so only
/// what cannot fail is moved, unless the body certainly runs.
pub(super) fn hoist_invariants(graph: &mut Graph, parts: &mut Parts) -> Moved {
    if matches!(parts.op, Op::If(_)) {
        return None;
    }
    let runs = parts.runs(graph);
    let body = parts.bodies.first()?.clone();
    let mut outer: HashMap<ValueId, ValueId> = captured(parts, &body);
    let mut lifted: HashMap<ValueId, ValueId> = HashMap::new();
    let mut moved = Vec::new();
    for id in body.order().ok()? {
        let node = body.node(id)?;
        let known = |v: &ValueId| outer.contains_key(v) || body.const_value(*v).is_some();
        let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
        let invariant = inputs.iter().all(known) && inputs.iter().any(|v| outer.contains_key(v));
        if !invariant || !worth_moving(node) || !(runs || cannot_fail(node, &body)) {
            continue;
        }
        let Some(results) = move_out(graph, &body, node, &outer, &mut lifted) else { continue };
        outer.extend(node.outputs.iter().copied().zip(results));
        moved.push(id);
    }
    let details = describe(&body, moved.iter().copied());
    for id in &moved {
        give(parts, 0, body.node(*id)?, &outer);
    }
    (!moved.is_empty()).then_some(details)
}

/// Moves what both branches compute from the same values in front of them.
pub(super) fn hoist_common(graph: &mut Graph, parts: &mut Parts) -> Moved {
    let (Op::If(_), [one, other]) = (&parts.op, parts.bodies.as_slice()) else { return None };
    let (one, other) = (one.clone(), other.clone());
    let mut outer: HashMap<ValueId, ValueId> = captured(parts, &one);
    let mut others: HashMap<ValueId, ValueId> = captured(parts, &other);
    let mut lifted = HashMap::new();
    let mut pairs = Vec::new();
    for id in one.order().ok()? {
        let node = one.node(id)?;
        if node.inputs.iter().flatten().all(|&v| one.const_value(v).is_some()) {
            continue;
        }
        let same_value = |a: &Option<ValueId>, b: &Option<ValueId>| match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => match (outer.get(a), others.get(b)) {
                (Some(a), Some(b)) => a == b,
                _ => {
                    let constant = one.const_value(*a);
                    constant.is_some() && constant == other.const_value(*b)
                }
            },
            _ => false,
        };
        let twin = other.nodes().find(|(_, twin)| {
            let fits = twin.op == node.op && twin.inputs.len() == node.inputs.len();
            fits && !others.contains_key(&twin.outputs[0])
                && node.inputs.iter().zip(&twin.inputs).all(|(a, b)| same_value(a, b))
        });
        let Some((twin, twin_node)) = twin else { continue };
        let Some(results) = move_out(graph, &one, node, &outer, &mut lifted) else { continue };
        outer.extend(node.outputs.iter().copied().zip(results.iter().copied()));
        others.extend(twin_node.outputs.iter().copied().zip(results));
        pairs.push((id, twin));
    }
    let details = describe(&one, pairs.iter().map(|&(id, _)| id));
    for (id, twin) in &pairs {
        let node = one.node(*id)?;
        // Both branches take the same captures, whichever of them uses one.
        let inner: Vec<Vec<ValueId>> = [node, other.node(*twin)?].map(|n| n.outputs.clone()).into();
        for (slot, &output) in node.outputs.iter().enumerate() {
            parts.captures.push(*outer.get(&output)?);
            for (body, outputs) in parts.bodies.iter_mut().zip(&inner) {
                let value = outputs[slot];
                let (name, ty) = (body.value(value).name.clone(), body.ty(value).clone());
                let input = body.input(&name, ty);
                body.replace_uses(value, input);
            }
        }
    }
    (!pairs.is_empty()).then_some(details)
}

/// The captures, by the inputs of a body.
fn captured(parts: &Parts, body: &Graph) -> HashMap<ValueId, ValueId> {
    let inputs = body.inputs().iter().skip(parts.formals).copied();
    inputs.zip(parts.captures.iter().copied()).collect()
}

/// The outputs of a node of a body, computed in the graph around it.
fn move_out(
    graph: &mut Graph,
    body: &Graph,
    node: &Node,
    outer: &HashMap<ValueId, ValueId>,
    lifted: &mut HashMap<ValueId, ValueId>,
) -> Option<Vec<ValueId>> {
    let mut inputs = Vec::new();
    for input in &node.inputs {
        inputs.push(match input {
            None => None,
            Some(value) => Some(match (outer.get(value), body.const_value(*value)) {
                (Some(&value), _) => value,
                (None, Some(tensor)) => *lifted.entry(*value).or_insert_with(|| {
                    let name = graph.fresh_name(&body.value(*value).name);
                    graph.constant(&name, tensor.clone())
                }),
                (None, None) => return None,
            }),
        });
    }
    let results = graph.add(&node.name, node.op.clone(), inputs).ok()?;
    for (&inner, &result) in node.outputs.iter().zip(&results) {
        let name = graph.fresh_name(&body.value(inner).name);
        graph.rename(result, &name);
    }
    Some(results)
}

/// Makes a body take the outputs of a node as captures.
fn give(parts: &mut Parts, body: usize, node: &Node, outer: &HashMap<ValueId, ValueId>) {
    let Some(body) = parts.bodies.get_mut(body) else { return };
    for output in &node.outputs {
        if let Some(&value) = outer.get(output) {
            let (name, ty) = (body.value(*output).name.clone(), body.ty(*output).clone());
            let input = body.input(&name, ty);
            body.replace_uses(*output, input);
            parts.captures.push(value);
        }
    }
}

fn describe(body: &Graph, moved: impl Iterator<Item = sora_ir::NodeId>) -> String {
    let names = moved.filter_map(|id| body.node(id)).map(|n| n.op.label().into_owned());
    format!("{} moved out of its body", names.collect::<Vec<_>>().join(", "))
}

/// Integers behind DequantizeLinear stay next to the product that reads them.
fn worth_moving(node: &Node) -> bool {
    !matches!(node.op, Op::DequantizeLinear(_)) && node.op.bodies().is_empty()
}

/// Whether a node gives a result for all values of the types that it verified with.
fn cannot_fail(node: &Node, body: &Graph) -> bool {
    let definite = |v: &ValueId| body.ty(*v).known_shape().is_some();
    let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
    let float = inputs.iter().all(|&v| body.ty(v).dtype.is_float());
    let constant = |from: usize| inputs.iter().skip(from).all(|&v| body.const_value(v).is_some());
    match &node.op {
        Op::Unary(_) | Op::Activation(_) | Op::Cast(_) | Op::Transpose(_) | Op::Softmax(_) | Op::Shape(_) => {
            true
        }
        // Integers may be divided by zero, and extents that are not known may not fit.
        Op::Binary(_) => float && inputs.iter().chain(&node.outputs).all(definite),
        Op::MatMul(_) | Op::Concat(_) | Op::LayerNorm(_) | Op::Where(_) | Op::Conv(_) | Op::Reduce(_) => {
            inputs.iter().chain(&node.outputs).all(definite)
        }
        Op::Reshape(_)
        | Op::Unsqueeze(_)
        | Op::Squeeze(_)
        | Op::Flatten(_)
        | Op::Slice(_)
        | Op::Gather(_)
        | Op::Expand(_)
        | Op::Split(_) => constant(1) && inputs.iter().chain(&node.outputs).all(definite),
        _ => false,
    }
}
