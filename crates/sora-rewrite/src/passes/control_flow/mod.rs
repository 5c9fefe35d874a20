//! Makes control flow cheaper: what is known is decided, what does not change is computed once, what nothing needs is
//! dropped, and bodies are simplified as any graph.

mod hoist;
mod parts;
#[cfg(test)]
mod tests;
mod trim;
mod unroll;

use sora_ir::{Graph, Node, NodeId, Op, ValueId};

use crate::manager::{RewriteError, check_change};
use crate::{Options, Report};
use parts::Parts;

/// What becomes of an output of an operator.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// An output of the new operator.
    New(usize),
    /// A value that is there already.
    Old(ValueId),
    /// Nothing reads it.
    Dead,
}

/// Simplifies a body in place.
pub(crate) type Simplify<'a> = dyn FnMut(&mut Graph, &mut Report) -> Result<(), RewriteError> + 'a;

/// Visits every If, Loop and Scan once; `simplify` is applied to their bodies.
pub(crate) fn simplify_control_flow(
    graph: &mut Graph,
    simplify: &mut Simplify,
    options: &Options,
    report: &mut Report,
) -> Result<(), RewriteError> {
    let bodies = |graph: &Graph, id| graph.node(id).is_some_and(|node| !node.op.bodies().is_empty());
    let found: Vec<NodeId> = graph.order()?.into_iter().filter(|&id| bodies(graph, id)).collect();
    for id in found {
        let before = graph.clone();
        let mut fired = Report::default();
        let name = graph.node(id).map(|node| node.name.clone()).unwrap_or_default();
        let changed = visit(graph, id, simplify, options, &mut fired)?;
        // A change that types do not bear out is not made.
        if changed && graph.infer_all().is_ok() {
            report.fired.append(&mut fired.fired);
            check_change(graph, options.check, "simplify_control_flow", &name)?;
        } else {
            *graph = before;
        }
    }
    Ok(())
}

fn visit(
    graph: &mut Graph,
    id: NodeId,
    simplify: &mut Simplify,
    options: &Options,
    report: &mut Report,
) -> Result<bool, RewriteError> {
    let Some(node) = graph.node(id).cloned() else { return Ok(false) };
    if let Op::If(_) = node.op
        && expand(graph, id, &node, options, report)
    {
        return Ok(true);
    }
    let Some(mut parts) = Parts::of(graph, &node) else {
        return Ok(expand(graph, id, &node, options, report));
    };
    let uses = graph.uses();
    let is_result = |value: ValueId| graph.outputs().iter().any(|output| output.value == value);
    let read: Vec<bool> =
        node.outputs.iter().map(|&value| !uses[value.index()].is_empty() || is_result(value)).collect();
    let mut outcomes: Vec<Outcome> = (0..node.outputs.len()).map(Outcome::New).collect();
    let mut changed = false;
    if let Some((trimmed, detail)) = trim::trim(graph, &mut parts, &read) {
        report.push("trim_bodies", &node.name, detail);
        outcomes = trimmed;
        changed = true;
    }
    let hoists: [(&str, hoist::Hoist); 2] = [
        ("hoist_loop_invariants", hoist::hoist_invariants),
        ("hoist_common_subexpressions", hoist::hoist_common),
    ];
    for (rule, hoist) in hoists.into_iter().filter(|(rule, _)| options.allows(rule)) {
        if let Some(moved) = hoist(graph, &mut parts) {
            report.push(rule, &node.name, moved);
            changed = true;
        }
    }
    for body in &mut parts.bodies {
        let before = report.fired.len();
        simplify(body, report)?;
        changed |= report.fired.len() > before;
    }
    if !changed {
        // Once its body is as simple as it gets: rules may know the loop as a whole by then.
        return Ok(expand(graph, id, &node, options, report));
    }
    let Some((op, inputs)) = parts.join() else { return Ok(false) };
    let Ok(new) = graph.add(&node.name, op, inputs) else { return Ok(false) };
    replace(graph, id, &outcomes, &new);
    Ok(true)
}

/// Puts a branch or iterations in place of a node, if it is known which and how many.
fn expand(graph: &mut Graph, id: NodeId, node: &Node, options: &Options, report: &mut Report) -> bool {
    let Some((rule, detail, values)) = unroll::expand(graph, node, options) else { return false };
    let outcomes: Vec<Outcome> = values.into_iter().map(Outcome::Old).collect();
    report.push(rule, &node.name, detail);
    replace(graph, id, &outcomes, &[]);
    true
}

/// Makes readers of a node use what takes its place, which gets the names of before, and removes the node.
fn replace(graph: &mut Graph, id: NodeId, outcomes: &[Outcome], new: &[ValueId]) {
    let outputs = graph.node(id).map(|node| node.outputs.clone()).unwrap_or_default();
    for (old, outcome) in outputs.into_iter().zip(outcomes) {
        match outcome {
            Outcome::Dead => {}
            Outcome::Old(value) => graph.replace_uses(old, *value),
            Outcome::New(index) => {
                let Some(&value) = new.get(*index) else { continue };
                let name = graph.value(old).name.clone();
                graph.replace_uses(old, value);
                graph.rename(value, &name);
            }
        }
    }
    graph.remove(id);
}
