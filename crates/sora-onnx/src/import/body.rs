//! Graphs of the file inside of operators.
//!
//! A body of the file sees every value around it by name. A body of the graph is closed, so what it uses of the values
//! around it becomes inputs, behind the formal ones; small constants are copied into it.

use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;

use sora_ir::{Dim, Graph, Subgraph, TensorType, ValueId};

use super::Importer;
use super::node::NodeCx;
use super::slot::Slot;
use crate::error::Refusal;
use crate::proto::{GraphProto, NodeProto};
use crate::tensor;

/// A name that a body uses, with what it stands for in the graph around it.
#[derive(Clone)]
pub(super) struct Capture {
    pub(super) name: String,
    pub(super) slot: Slot,
}

/// The values of captures, in the order in which a body takes them.
pub(super) fn values_of(captures: &[Capture]) -> Vec<ValueId> {
    captures.iter().flat_map(|c| c.slot.values()).copied().collect()
}

/// A graph of the file, with the names that it uses and does not define.
#[derive(Clone)]
pub(super) struct Body {
    pub(super) proto: GraphProto,
    pub(super) free: BTreeSet<String>,
}

impl Body {
    /// What the body uses of the values around it. Names that do not exist are left to the import of the body.
    pub(super) fn free_in(&self, cx: &NodeCx) -> Vec<Capture> {
        let found = self.free.iter().filter_map(|name| {
            let slot = cx.scope.get(name)?.clone();
            Some(Capture { name: name.clone(), slot })
        });
        found.collect()
    }

    /// The number of nodes, those of inner graphs included.
    pub(super) fn size(&self) -> usize {
        size_of(&self.proto)
    }
}

fn size_of(graph: &GraphProto) -> usize {
    let inner = graph.node.iter().flat_map(|n| &n.attribute).filter_map(|a| a.g.as_deref());
    graph.node.len() + inner.map(size_of).sum::<usize>()
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
    pub(super) fn body(&self, name: &str) -> Result<Body, Refusal> {
        let graph = self.attribute(name).and_then(|a| a.g.as_deref());
        let proto = graph.cloned().ok_or_else(|| Refusal::new(format!("it has no graph `{name}`")))?;
        let free = free_names(&proto);
        Ok(Body { proto, free })
    }

    /// The type of a value whose extents may change from one iteration to the next.
    pub(super) fn vague(&self, value: ValueId) -> TensorType {
        let ty = self.ty(value);
        let unknown =
            |axis| Dim::symbol(&format!("?{}.{}.{axis}", self.name.replace('\'', ""), value.index()));
        TensorType { dtype: ty.dtype, shape: (0..ty.rank()).map(unknown).collect() }
    }

    /// A graph of the file by itself, and what its outputs are; `formals` are the types of its inputs where the file
    /// does not give them. It takes the formal inputs, then the values of the captures.
    pub(super) fn graph_of(
        &mut self,
        part: &str,
        proto: &GraphProto,
        formals: &[TensorType],
        captures: &[Capture],
    ) -> Result<(Graph, Vec<Slot>), Refusal> {
        // A body is a string in the text of what is around it, where what escapes its quotes doubles on each level.
        const DEEPEST: usize = 8;
        // Names in the body begin with that of its node.
        const LONGEST: usize = 256;
        if self.depth >= DEEPEST {
            return Err(Refusal::new(format!("its body is nested more than {DEEPEST} levels deep")));
        }
        let mut inner = Importer::new(proto, self.opset, Rc::clone(self.functions), *self.calls);
        inner.depth = self.depth + 1;
        inner.budget = *self.budget;
        inner.prefix = format!("{:.LONGEST$}/{part}/", self.name);
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
            let values: Vec<ValueId> = capture.slot.values().to_vec();
            let single = matches!(capture.slot, Slot::Value(_));
            let inputs = values.into_iter().enumerate().map(|(i, value)| {
                let name = if single { capture.name.clone() } else { format!("{}.{i}", capture.name) };
                self.capture(&mut inner.graph, &name, value)
            });
            let inputs: Vec<ValueId> = inputs.collect();
            let slot = capture.slot.with(&mut inputs.into_iter());
            inner.define(&capture.name, slot, &capture.name, "Input");
        }
        inner.nodes(proto, self.external);
        let outputs = inner.outputs(proto);
        *self.budget = inner.budget;
        *self.calls = inner.calls;
        if !inner.issues.is_empty() {
            self.issues.append(&mut inner.issues);
            return Err(Refusal::new(format!("its {part} cannot be imported")));
        }
        Ok((inner.graph, outputs))
    }

    /// A value of this graph as an input of an inner one; a small constant as a constant.
    fn capture(&self, inner: &mut Graph, name: &str, value: ValueId) -> ValueId {
        const SMALL: usize = 64;
        let ty = self.ty(value).clone();
        let small = ty.known_len().is_some_and(|len| len <= SMALL);
        let input = inner.input(name, ty);
        let constant = if small { self.constant(value) } else { None };
        constant.map_or(input, |tensor| inner.constant(&format!("{name}'"), tensor))
    }

    /// A graph of the file as a body, all of whose outputs are tensors; see [`NodeCx::graph_of`].
    pub(super) fn subgraph(
        &mut self,
        part: &str,
        proto: &GraphProto,
        formals: &[TensorType],
        captures: &[Capture],
    ) -> Result<Subgraph, Refusal> {
        let (graph, outputs) = self.graph_of(part, proto, formals, captures)?;
        if let Some(odd) = outputs.iter().find(|slot| !matches!(slot, Slot::Value(_))) {
            let why = format!("an output of its {part} is {}, not a tensor", odd.describe());
            return Err(Refusal::new(why).hint("give the lengths of sequences and fix what they depend on"));
        }
        Subgraph::new(graph).map_err(|e| Refusal::new(e.0))
    }

    /// The nodes of a graph of the file in place of this node. Its inputs are given as captures of their names.
    pub(super) fn inline(
        &mut self,
        part: &str,
        body: &Body,
        captures: &[Capture],
    ) -> Result<Vec<Slot>, Refusal> {
        let proto = GraphProto { input: Vec::new(), ..body.proto.clone() };
        let (graph, outputs) = self.graph_of(part, &proto, &[], captures)?;
        let names = &mut *self.names;
        let spliced = self.graph.splice(&graph, &values_of(captures), &mut |name| names.fresh(name))?;
        let mut values = Vec::new();
        for value in spliced {
            values.push(self.settled(value));
        }
        let mut values = values.into_iter();
        Ok(outputs.iter().map(|slot| slot.with(&mut values)).collect())
    }
}
