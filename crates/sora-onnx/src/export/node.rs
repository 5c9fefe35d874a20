//! The model while it is written: names, nodes and constants.

use std::collections::HashMap;

use prost::bytes::Bytes;
use sora_ir::{Def, Graph, Node, TensorType, ValueId};
use sora_tensor::Tensor;

use super::function::Function;
use crate::error::OnnxError;
use crate::import::SORA;
use crate::names::Names;
use crate::proto::{AttributeProto, GraphProto, NodeProto, attribute_type};
use crate::tensor::signed;

/// The parts of a model, in order.
pub(super) struct Writer<'a> {
    pub(super) graph: &'a Graph,
    pub(super) opset: i64,
    pub(super) nodes: Vec<NodeProto>,
    /// Constants with their names, in order of first use.
    pub(super) constants: Vec<(String, Tensor)>,
    pub(super) value_names: HashMap<ValueId, String>,
    pub(super) names: Names,
    pub(super) node_names: Names,
    /// Those that nodes call.
    pub(super) functions: Vec<Function>,
    /// What import put in front of the names of nodes, inside of a body.
    pub(super) prefix: String,
}

impl<'a> Writer<'a> {
    /// Gives inputs and outputs the names that callers know; every other value keeps its own if that is free.
    pub(super) fn new(graph: &'a Graph, opset: i64) -> Self {
        let mut writer = Writer::unnamed(graph, opset, Names::default(), Names::default());
        for &input in graph.inputs() {
            writer.names.reserve(&graph.value(input).name);
            writer.value_names.insert(input, graph.value(input).name.clone());
        }
        for output in graph.outputs() {
            writer.names.reserve(&output.name);
            if let Def::Node(..) = graph.value(output.value).def {
                writer.value_names.entry(output.value).or_insert_with(|| output.name.clone());
            }
        }
        writer
    }

    /// Nothing has a name yet but what `names` and `node_names` know.
    pub(super) fn unnamed(graph: &'a Graph, opset: i64, names: Names, node_names: Names) -> Self {
        Writer {
            graph,
            opset,
            nodes: Vec::new(),
            constants: Vec::new(),
            value_names: HashMap::new(),
            names,
            node_names,
            functions: Vec::new(),
            prefix: String::new(),
        }
    }

    /// The name of a value in the file. A constant enters the file when it is first asked for.
    pub(super) fn name(&mut self, value: ValueId) -> String {
        if let Some(name) = self.value_names.get(&value) {
            return name.clone();
        }
        let name = self.names.fresh(&self.graph.value(value).name);
        if let Some(tensor) = self.graph.const_value(value) {
            self.constants.push((name.clone(), tensor.clone()));
        }
        self.value_names.insert(value, name.clone());
        name
    }

    /// Adds a constant that the graph does not have.
    pub(super) fn constant(&mut self, base: &str, tensor: Tensor) -> String {
        let name = self.names.fresh(base);
        self.constants.push((name.clone(), tensor));
        name
    }

    /// A name for a value that the graph does not have.
    pub(super) fn fresh(&mut self, base: &str) -> String {
        self.names.fresh(base)
    }

    /// Adds a node.
    pub(super) fn push(
        &mut self,
        name: &str,
        op: &str,
        inputs: Vec<String>,
        outputs: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) {
        let name = self.node_names.fresh(name.strip_prefix(&self.prefix).unwrap_or(name));
        let op_type = op.to_owned();
        self.nodes.push(NodeProto {
            name,
            op_type,
            input: inputs,
            output: outputs,
            attribute,
            ..Default::default()
        });
    }

    /// Adds the Identity nodes of outputs that are not the value computed under their name.
    pub(super) fn outputs(&mut self) -> Result<(), OnnxError> {
        for output in self.graph.outputs() {
            let source = self.name(output.value);
            if source == output.name {
                continue;
            }
            if self.graph.inputs().iter().any(|&id| self.graph.value(id).name == output.name) {
                return Err(OnnxError::Export {
                    node: output.name.clone(),
                    why: "an output has the name of another input".to_owned(),
                });
            }
            self.push(&output.name, "Identity", vec![source], vec![output.name.clone()], Vec::new());
        }
        Ok(())
    }
}

/// One node of the graph while it is written, perhaps as several.
pub(super) struct NodeWriter<'w, 'g> {
    pub(super) writer: &'w mut Writer<'g>,
    pub(super) node: &'g Node,
}

impl<'g> NodeWriter<'_, 'g> {
    pub(super) fn ty(&self, index: usize) -> Option<&'g TensorType> {
        let value = self.node.inputs.get(index).copied().flatten()?;
        Some(self.writer.graph.ty(value))
    }

    /// The name of an input; empty when absent.
    pub(super) fn input(&mut self, index: usize) -> String {
        let value = self.node.inputs.get(index).copied().flatten();
        value.map(|value| self.writer.name(value)).unwrap_or_default()
    }

    /// All inputs, without trailing absent ones.
    pub(super) fn inputs(&mut self) -> Vec<String> {
        let mut names: Vec<String> = (0..self.node.inputs.len()).map(|i| self.input(i)).collect();
        while names.last().is_some_and(String::is_empty) {
            names.pop();
        }
        names
    }

    pub(super) fn outputs(&mut self) -> Vec<String> {
        self.node.outputs.iter().map(|&value| self.writer.name(value)).collect()
    }

    /// Writes the node itself with other inputs than the graph's.
    pub(super) fn write_with(&mut self, op: &str, inputs: Vec<String>, attributes: Vec<AttributeProto>) {
        let outputs = self.outputs();
        self.writer.push(&self.node.name, op, inputs, outputs, attributes);
    }

    /// Writes the node itself.
    pub(super) fn write(&mut self, op: &str, attributes: Vec<AttributeProto>) {
        let inputs = self.inputs();
        self.write_with(op, inputs, attributes);
    }

    /// Puts the node that was written last into a domain.
    pub(super) fn of_domain(&mut self, domain: &str) {
        if let Some(node) = self.writer.nodes.last_mut() {
            node.domain = domain.to_owned();
        }
    }

    /// Writes the node as a call of a function that comes with the file.
    pub(super) fn call(&mut self, function: Function, attributes: Vec<AttributeProto>) {
        self.write(function.name, attributes);
        self.of_domain(SORA);
        if !self.writer.functions.contains(&function) {
            self.writer.functions.push(function);
        }
    }

    /// Writes a part of the node and gives the name of its result.
    pub(super) fn step(&mut self, op: &str, inputs: Vec<String>, attributes: Vec<AttributeProto>) -> String {
        let name = format!("{}/{op}", self.node.name);
        let output = self.writer.fresh(&name);
        self.writer.push(&name, op, inputs, vec![output.clone()], attributes);
        output
    }

    /// Adds a constant named after the node.
    pub(super) fn constant(&mut self, part: &str, tensor: Tensor) -> String {
        self.writer.constant(&format!("{}/{part}", self.node.name), tensor)
    }

    /// Adds a one-dimensional integer constant named after the node.
    pub(super) fn ints(&mut self, part: &str, values: &[i64]) -> String {
        self.constant(part, Tensor::vector(values))
    }

    pub(super) fn refuse(&self, why: impl Into<String>) -> OnnxError {
        OnnxError::Export { node: self.node.name.clone(), why: why.into() }
    }
}

fn attribute(name: &str, code: i32) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: Some(code), ..AttributeProto::default() }
}

pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, attribute_type::INT) }
}

pub(super) fn graph(name: &str, value: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(Box::new(value)), ..attribute(name, attribute_type::GRAPH) }
}

pub(super) fn flag(name: &str, value: bool) -> AttributeProto {
    int(name, i64::from(value))
}

pub(super) fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, attribute_type::FLOAT) }
}

pub(super) fn text(name: &str, value: &'static str) -> AttributeProto {
    AttributeProto {
        s: Some(Bytes::from_static(value.as_bytes())),
        ..attribute(name, attribute_type::STRING)
    }
}

pub(super) fn texts(name: &str, values: &[&'static str]) -> AttributeProto {
    let strings = values.iter().map(|v| Bytes::from_static(v.as_bytes())).collect();
    AttributeProto { strings, ..attribute(name, attribute_type::STRINGS) }
}

pub(super) fn integers(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, attribute_type::INTS) }
}

pub(super) fn sizes(name: &str, values: &[usize]) -> AttributeProto {
    let values: Vec<i64> = values.iter().copied().map(signed).collect();
    integers(name, &values)
}
