//! How operators with graphs inside are written.

use sora_ir::Subgraph;
use sora_ir::ops::{If, Loop, Scan};

use super::node::{NodeWriter, Writer, graph, int, integers};
use super::write::{embed, info, nodes};
use crate::error::OnnxError;
use crate::proto::{AttributeProto, GraphProto};
use crate::tensor::signed;

pub(super) fn if_(w: &mut NodeWriter, op: &If) -> Result<(), OnnxError> {
    let attributes = vec![
        graph("then_branch", body(w, "then_branch", &op.then_branch, 0, 1)?),
        graph("else_branch", body(w, "else_branch", &op.else_branch, 0, 1)?),
    ];
    write(w, "If", 1, attributes);
    Ok(())
}

pub(super) fn loop_(w: &mut NodeWriter, op: &Loop) -> Result<(), OnnxError> {
    let attributes = vec![graph("body", body(w, "body", &op.body, 2 + op.carried, 2 + op.carried)?)];
    write(w, "Loop", 2 + op.carried, attributes);
    Ok(())
}

pub(super) fn scan(w: &mut NodeWriter, op: &Scan) -> Result<(), OnnxError> {
    let formal = op.states + op.input_axes.len();
    let directions = |flags: &[bool]| flags.iter().map(|&reverse| i64::from(reverse)).collect::<Vec<_>>();
    let attributes = vec![
        graph("body", body(w, "body", &op.body, formal, formal)?),
        int("num_scan_inputs", signed(op.input_axes.len())),
        integers("scan_input_axes", &op.input_axes),
        integers("scan_input_directions", &directions(&op.input_reverse)),
        integers("scan_output_axes", &op.output_axes),
        integers("scan_output_directions", &directions(&op.output_reverse)),
    ];
    write(w, "Scan", formal, attributes);
    Ok(())
}

/// Writes the node with its first `formal` inputs: bodies see the others by name.
fn write(w: &mut NodeWriter, op: &str, formal: usize, attributes: Vec<AttributeProto>) {
    let mut inputs: Vec<String> = (0..formal).map(|i| w.input(i)).collect();
    while inputs.last().is_some_and(String::is_empty) {
        inputs.pop();
    }
    w.write_with(op, inputs, attributes);
}

/// A body, called `part`, whose inputs from `formal` on are the node's from `captured` on. Its names are new in the whole file.
fn body(
    w: &mut NodeWriter,
    part: &str,
    body: &Subgraph,
    formal: usize,
    captured: usize,
) -> Result<GraphProto, OnnxError> {
    let outer: Vec<String> = (captured..w.node.inputs.len()).map(|i| w.input(i)).collect();
    let graph = body.graph();
    let names = std::mem::take(&mut w.writer.names);
    let node_names = std::mem::take(&mut w.writer.node_names);
    let mut inner = Writer::unnamed(graph, w.writer.opset, names, node_names);
    inner.prefix = format!("{}/{part}/", w.node.name);
    let mut inputs = Vec::new();
    for (i, &id) in graph.inputs().iter().enumerate() {
        let name = match i.checked_sub(formal).and_then(|i| outer.get(i)) {
            Some(name) => name.clone(),
            None => inner.names.fresh(&graph.value(id).name),
        };
        if i < formal {
            inputs.push(info(&name, graph.ty(id)));
        }
        inner.value_names.insert(id, name);
    }
    nodes(&mut inner)?;
    let mut outputs = Vec::new();
    for output in graph.outputs() {
        let (source, name) = (inner.name(output.value), inner.fresh(&output.name));
        outputs.push(info(&name, graph.ty(output.value)));
        inner.push(&name, "Identity", vec![source], vec![name.clone()], Vec::new());
    }
    let Writer { nodes, constants, functions, names, node_names, .. } = inner;
    (w.writer.names, w.writer.node_names) = (names, node_names);
    for function in functions {
        if !w.writer.functions.contains(&function) {
            w.writer.functions.push(function);
        }
    }
    Ok(GraphProto {
        name: if graph.name.is_empty() { "body".to_owned() } else { graph.name.clone() },
        node: nodes,
        initializer: constants.iter().map(|(name, tensor)| embed(name, tensor)).collect(),
        input: inputs,
        output: outputs,
        ..GraphProto::default()
    })
}
