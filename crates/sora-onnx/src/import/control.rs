//! Control flow: operators with graphs inside.
//!
//! A body of the file sees every value around it by name. A body of the graph is closed, so what it uses of the values
//! around it becomes inputs, behind the formal ones; small constants are copied into it.

use std::collections::{BTreeSet, HashSet};

use sora_ir::ops::{If, Loop, Scan};
use sora_ir::{Dim, Subgraph, TensorType, ValueId};
use sora_tensor::DType;

use super::node::{Built, NodeCx};
use super::rows::{Row, onnx};
use super::{Importer, Slot};
use crate::error::Refusal;
use crate::proto::{GraphProto, NodeProto};
use crate::tensor;

pub(super) const ROWS: &[Row] = &[onnx("If", if_), onnx("Loop", loop_), onnx("Scan", scan)];

/// Only the branch that is taken needs to be importable when the condition is known.
fn if_(cx: &mut NodeCx) -> Built {
    let condition = cx.input(0)?;
    let known = cx.constant(condition).and_then(|t| t.to_i64s().first().copied());
    if let Some(value) = known {
        let name = if value != 0 { "then_branch" } else { "else_branch" };
        let branch = cx.body(name)?;
        let captures = branch.free_in(cx);
        let body = cx.subgraph(name, &branch.proto, &[], &captures)?;
        return cx.splice(&body, &captures);
    }
    let (a, b) = (cx.body("then_branch")?, cx.body("else_branch")?);
    let mut captures = a.free_in(cx);
    captures.extend(b.free_in(cx).into_iter().filter(|c| !a.free.contains(&c.name)));
    let then_branch = cx.subgraph("then_branch", &a.proto, &[], &captures)?;
    let else_branch = cx.subgraph("else_branch", &b.proto, &[], &captures)?;
    let inputs = std::iter::once(condition).chain(captures.iter().map(|c| c.value));
    cx.add(If { then_branch, else_branch }, inputs.collect::<Vec<_>>())
}

fn loop_(cx: &mut NodeCx) -> Built {
    let body = cx.body("body")?;
    let captures = body.free_in(cx);
    let initial = (2..cx.inputs.len()).map(|i| cx.input(i)).collect::<Result<Vec<_>, _>>()?;
    let scalar = |dtype| TensorType::new(dtype, [0usize; 0]);
    let mut formals = vec![scalar(DType::I64), scalar(DType::Bool)];
    formals.extend(initial.iter().map(|&v| cx.vague(v)));
    let body = cx.subgraph("body", &body.proto, &formals, &captures)?;
    let carried = initial.len();
    let inputs = [cx.opt(0), cx.opt(1)].into_iter().chain(initial.into_iter().map(Some));
    let inputs = inputs.chain(captures.iter().map(|c| Some(c.value)));
    cx.add(Loop { body, carried }, inputs.collect::<Vec<_>>())
}

fn scan(cx: &mut NodeCx) -> Built {
    if cx.opset < 9 {
        return Err(Refusal::new("Scan of opset 8, with a batch axis, is not supported")
            .hint("convert the model to opset 9 or later"));
    }
    let body = cx.body("body")?;
    let captures = body.free_in(cx);
    let inputs = cx.all_inputs()?;
    let sequences = usize::try_from(cx.int("num_scan_inputs", 0)).unwrap_or(0);
    let Some(states) = inputs.len().checked_sub(sequences) else {
        return Err(Refusal::new(format!("num_scan_inputs is {sequences}, of {} inputs", inputs.len())));
    };
    let Some(outputs) = body.proto.output.len().checked_sub(states) else {
        return Err(Refusal::new(format!(
            "its body has {} outputs for {states} states",
            body.proto.output.len()
        )));
    };
    let numbers = |name: &str, count: usize| match cx.ints(name) {
        None => Ok(vec![0; count]),
        Some(values) if values.len() == count => Ok(values.to_vec()),
        Some(values) => Err(Refusal::new(format!("{name} lists {} values, not {count}", values.len()))),
    };
    let flags = |name, count| Ok::<_, Refusal>(numbers(name, count)?.into_iter().map(|v| v != 0).collect());
    let (input_axes, output_axes) =
        (numbers("scan_input_axes", sequences)?, numbers("scan_output_axes", outputs)?);
    let input_reverse = flags("scan_input_directions", sequences)?;
    let output_reverse = flags("scan_output_directions", outputs)?;
    let mut formals = Vec::new();
    for (i, &value) in inputs.iter().enumerate() {
        let mut ty = if i < states { cx.vague(value) } else { cx.ty(value).clone() };
        if let Some(&axis) = i.checked_sub(states).and_then(|i| input_axes.get(i)) {
            ty.shape.remove(cx.axis(axis, value)?);
        }
        formals.push(ty);
    }
    let body = cx.subgraph("body", &body.proto, &formals, &captures)?;
    let op = Scan { body, states, input_axes, input_reverse, output_axes, output_reverse };
    cx.add(op, inputs.into_iter().chain(captures.iter().map(|c| c.value)).collect::<Vec<_>>())
}

/// A value of the graph around a body that the body uses.
pub(super) struct Capture {
    name: String,
    value: ValueId,
}

/// A graph of the file, with the names that it uses and does not define.
struct Body {
    proto: GraphProto,
    free: BTreeSet<String>,
}

impl Body {
    /// What the body uses of the values around it. Names that do not exist are left to the import of the body.
    fn free_in(&self, cx: &NodeCx) -> Vec<Capture> {
        let found = self.free.iter().filter_map(|name| match cx.scope.get(name)? {
            Slot::Value(value) => Some(Capture { name: name.clone(), value: *value }),
            Slot::Poisoned => None,
        });
        found.collect()
    }
}

/// The names that a graph, or one inside of it, uses without defining them.
fn free_names(graph: &GraphProto) -> BTreeSet<String> {
    let defined: HashSet<&String> = (graph.input.iter().map(|i| &i.name))
        .chain(graph.initializer.iter().map(|i| &i.name))
        .chain(graph.node.iter().flat_map(|n| &n.output))
        .collect();
    let mut free: BTreeSet<String> = BTreeSet::new();
    for node in &graph.node {
        free.extend(node.input.iter().cloned());
        free.extend(captured(node));
    }
    free.extend(graph.output.iter().map(|o| o.name.clone()));
    free.retain(|name| !name.is_empty() && !defined.contains(name));
    free
}

/// The names that the bodies of a node use without defining them.
pub(super) fn captured(node: &NodeProto) -> BTreeSet<String> {
    node.attribute.iter().filter_map(|a| a.g.as_deref()).flat_map(free_names).collect()
}

impl NodeCx<'_> {
    /// The graph in an attribute.
    fn body(&self, name: &str) -> Result<Body, Refusal> {
        let graph = self.attribute(name).and_then(|a| a.g.as_deref());
        let proto = graph.cloned().ok_or_else(|| Refusal::new(format!("it has no graph `{name}`")))?;
        let free = free_names(&proto);
        Ok(Body { proto, free })
    }

    /// The type of a value whose extents may change from one iteration to the next.
    fn vague(&self, value: ValueId) -> TensorType {
        let ty = self.ty(value);
        let unknown =
            |axis| Dim::symbol(&format!("?{}.{}.{axis}", self.name.replace('\'', ""), value.index()));
        TensorType { dtype: ty.dtype, shape: (0..ty.rank()).map(unknown).collect() }
    }

    /// A graph of the file as a body; `formals` are the types of its inputs where the file does not give them.
    fn subgraph(
        &mut self,
        part: &str,
        proto: &GraphProto,
        formals: &[TensorType],
        captures: &[Capture],
    ) -> Result<Subgraph, Refusal> {
        const DEEPEST: usize = 16;
        const SMALL: usize = 64;
        if self.depth >= DEEPEST {
            return Err(Refusal::new(format!("its body is nested more than {DEEPEST} levels deep")));
        }
        let mut inner = Importer::new(proto, self.opset);
        inner.depth = self.depth + 1;
        inner.prefix = format!("{}/{part}/", self.name);
        inner.initializers(proto, self.external);
        for (i, info) in proto.input.iter().enumerate() {
            let declared = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
            let ty = match (declared.filter(|t| t.shape.is_some()), formals.get(i)) {
                (None, Some(formal)) => match declared.filter(|t| t.elem_type != 0) {
                    Some(t) => {
                        TensorType { dtype: tensor::dtype_of(i64::from(t.elem_type))?, ..formal.clone() }
                    }
                    None => formal.clone(),
                },
                (Some(_), Some(formal)) if formal.rank() > 0 => formal.clone(),
                _ => inner
                    .input_type(info)
                    .map_err(|r| Refusal::new(format!("its body's input `{}`: {}", info.name, r.why)))?,
            };
            inner.names.reserve(&info.name);
            let value = inner.graph.input(&info.name, ty);
            inner.define(&info.name, Slot::Value(value), &info.name, "Input");
        }
        for capture in captures {
            inner.names.reserve(&capture.name);
            let ty = self.ty(capture.value).clone();
            let input = inner.graph.input(&capture.name, ty.clone());
            let small = ty.known_len().is_some_and(|len| len <= SMALL);
            let constant = if small { self.constant(capture.value) } else { None };
            let known = constant.map(|tensor| inner.graph.constant(&format!("{}'", capture.name), tensor));
            inner.define(&capture.name, Slot::Value(known.unwrap_or(input)), &capture.name, "Input");
        }
        inner.nodes(&proto.node, proto, self.external);
        inner.outputs(proto);
        if !inner.issues.is_empty() {
            self.issues.append(&mut inner.issues);
            return Err(Refusal::new(format!("its {part} cannot be imported")));
        }
        Subgraph::new(inner.graph).map_err(|e| Refusal::new(e.0))
    }

    /// The nodes of a body in place of this node.
    fn splice(&mut self, body: &Subgraph, captures: &[Capture]) -> Built {
        let inputs: Vec<ValueId> = captures.iter().map(|c| c.value).collect();
        let names = &mut *self.names;
        Ok(self.graph.splice(body.graph(), &inputs, &mut |name| names.fresh(name))?)
    }
}
