//! Operators with bodies, taken apart.

use std::collections::{HashMap, HashSet};

use sora_ir::ops::{If, Loop, Scan};
use sora_ir::{Graph, IrError, Node, Op, Subgraph, ValueId};
use sora_tensor::Tensor;

/// An operator with bodies, its operands by what they are. A body takes the formal inputs, then the captures.
pub(super) struct Parts {
    pub(super) op: Op,
    /// The operands in front of the captures.
    pub(super) leading: Vec<Option<ValueId>>,
    /// What the bodies take besides their formal inputs: values of the graph around them.
    pub(super) captures: Vec<ValueId>,
    /// The number of formal inputs.
    pub(super) formals: usize,
    /// The number of carried values.
    pub(super) carried: usize,
    /// Where carried values begin, among the operands and the formal inputs.
    pub(super) first_input: usize,
    /// Where carried values begin among the outputs of the body. The operator gives the outputs from there on.
    pub(super) first_output: usize,
    pub(super) bodies: Vec<Graph>,
}

impl Parts {
    /// The parts of a node, the types of captures in its bodies as they are around it; `None` for a node without bodies.
    pub(super) fn of(graph: &Graph, node: &Node) -> Option<Parts> {
        let (leading, formals, carried, first_input, first_output) = match &node.op {
            Op::If(_) => (1, 0, 0, 0, 0),
            Op::Loop(op) => (2 + op.carried, 2 + op.carried, op.carried, 2, 1),
            Op::Scan(op) => {
                (op.states + op.input_axes.len(), op.states + op.input_axes.len(), op.states, 0, 0)
            }
            _ => return None,
        };
        let mut inputs = node.inputs.clone();
        inputs.resize(inputs.len().max(leading), None);
        let captures: Vec<ValueId> = inputs.split_off(leading).into_iter().collect::<Option<_>>()?;
        let body = |body: &Subgraph| {
            let mut given = Vec::new();
            for index in 0..formals {
                given.push((body.input_type(index).ok()?.clone(), None));
            }
            given.extend(captures.iter().map(|&c| (graph.ty(c).clone(), graph.value(c).content.clone())));
            body.typed(&given).ok()
        };
        let bodies = node.op.bodies().into_iter().map(body).collect::<Option<_>>()?;
        Some(Parts {
            op: node.op.clone(),
            leading: inputs,
            captures,
            formals,
            carried,
            first_input,
            first_output,
            bodies,
        })
    }

    /// The operator with these bodies, and its operands.
    pub(super) fn join(self) -> Option<(Op, Vec<Option<ValueId>>)> {
        let mut bodies = Vec::new();
        for graph in self.bodies {
            bodies.push(Subgraph::new(graph).ok()?);
        }
        let mut bodies = bodies.into_iter();
        let op = match self.op {
            Op::If(_) => Op::from(If { then_branch: bodies.next()?, else_branch: bodies.next()? }),
            Op::Loop(_) => Op::from(Loop { body: bodies.next()?, carried: self.carried }),
            Op::Scan(scan) => Op::from(Scan { body: bodies.next()?, states: self.carried, ..scan }),
            _ => return None,
        };
        Some((op, self.leading.into_iter().chain(self.captures.into_iter().map(Some)).collect()))
    }

    /// Whether the body certainly runs.
    pub(super) fn runs(&self, graph: &Graph) -> bool {
        let constant = |slot: usize| self.leading.get(slot).copied().flatten().map(|v| graph.const_value(v));
        let positive = |slot: usize| match constant(slot) {
            None => true,
            Some(known) => known.is_some_and(|t| t.to_i64s().iter().all(|&v| v > 0)),
        };
        match &self.op {
            Op::Loop(_) => positive(0) && positive(1),
            Op::Scan(scan) => {
                let sequence = self.leading.get(self.carried).copied().flatten();
                let steps = sequence.and_then(|s| steps_of(graph, s, *scan.input_axes.first()?));
                steps.is_some_and(|steps| steps > 0)
            }
            _ => false,
        }
    }
}

/// The extent of an axis, if it is known.
pub(super) fn steps_of(graph: &Graph, sequence: ValueId, axis: i64) -> Option<usize> {
    let ty = graph.ty(sequence);
    ty.shape.get(sora_ir::resolve_axis(axis, ty.rank()).ok()?)?.known()
}

/// What stands for an input of a body in its new form.
#[derive(Clone)]
pub(super) enum Source {
    /// A formal input, as before.
    Formal,
    /// A formal input that always has this value.
    Known(Tensor),
    /// A value of the graph around the body.
    Capture(ValueId),
    /// A constant.
    Const(Tensor),
    /// Nothing reads it.
    Unused,
}

/// A body with other inputs: the formal ones that remain, then `captures`; and with these of its outputs.
pub(super) fn rebuilt(
    body: &Graph,
    sources: &[Source],
    captures: &[ValueId],
    outputs: &[usize],
) -> Result<Graph, IrError> {
    let mut fresh = Graph::new(&body.name);
    let own = |index: usize| body.inputs().get(index).map(|&id| body.value(id).clone());
    let mut ids: Vec<Option<ValueId>> = vec![None; sources.len()];
    for (index, source) in sources.iter().enumerate() {
        let Some(value) = own(index) else { continue };
        ids[index] = match source {
            Source::Formal => Some(fresh.input(&value.name, value.ty)),
            Source::Known(tensor) => {
                fresh.input(&value.name, value.ty);
                Some(fresh.constant(&format!("{}'", value.name), tensor.clone()))
            }
            Source::Const(tensor) => Some(fresh.constant(&value.name, tensor.clone())),
            Source::Unused => Some(fresh.constant(&value.name, Tensor::scalar(0f32))),
            Source::Capture(_) => None,
        };
    }
    let mut inner: HashMap<ValueId, ValueId> = HashMap::new();
    for capture in captures {
        let taken = |source: &Source| matches!(source, Source::Capture(other) if other == capture);
        // A branch takes what the other one uses, too.
        let value = sources.iter().position(taken).and_then(own);
        if let Some(value) = value {
            inner.insert(*capture, fresh.input(&value.name, value.ty));
        }
    }
    for (index, source) in sources.iter().enumerate() {
        if let Source::Capture(capture) = source {
            ids[index] = inner.get(capture).copied();
        }
    }
    let ids: Vec<ValueId> = ids.into_iter().flatten().collect();
    let values = fresh.splice(body, &ids, &mut |name| name.to_owned())?;
    for (number, &index) in outputs.iter().enumerate() {
        if let Some(&value) = values.get(index) {
            fresh.output(&format!("y{number}"), value);
        }
    }
    Ok(fresh)
}

/// The values of a body that some of its outputs depend on.
pub(super) fn needed(body: &Graph, outputs: impl Iterator<Item = usize>) -> HashSet<ValueId> {
    let mut open: Vec<ValueId> = outputs.filter_map(|i| body.outputs().get(i)).map(|o| o.value).collect();
    let mut seen: HashSet<ValueId> = HashSet::new();
    while let Some(value) = open.pop() {
        if seen.insert(value)
            && let Some((_, node, _)) = body.producer(value)
        {
            open.extend(node.inputs.iter().flatten());
        }
    }
    seen
}
