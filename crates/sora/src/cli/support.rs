//! `sora inspect --support`: for each node, what runs it, and whether it can be quantized.

use std::collections::HashMap;

use serde_json::{Value, json};
use sora::Model;
use sora::exec::{Options, Program};
use sora::ir::{Graph, Node, QuantRule};
use sora::tensor::DType;

use super::table::table;

/// What is said of one node.
struct Line {
    node: String,
    op: String,
    /// The kernel of the step that it is part of, `reference:Op`, or what became of it.
    runs: String,
    int8: bool,
    /// How it is quantized, or why not.
    why: &'static str,
}

/// The lines of a model's nodes, in order; open extents are taken as 1.
fn lines(model: &Model) -> Vec<Line> {
    let graph = &model.graph;
    let program = Program::compile(graph, &model.shapes_at_one(), &Options::default());
    let mut kernels: HashMap<String, String> = HashMap::new();
    for step in program.as_ref().map_or(&[][..], |program| program.steps()) {
        for node in &step.nodes {
            kernels.insert(node.clone(), step.kernel.clone());
        }
    }
    let order = graph.order().unwrap_or_default();
    let nodes = order.into_iter().filter_map(|id| graph.node(id));
    let line = |node: &Node| {
        let (int8, why) = quantizable(graph, node);
        let runs = match (&program, kernels.get(&node.name)) {
            (Err(_), _) => "not known: its extents do not fit when open ones are 1".to_owned(),
            (_, Some(kernel)) => kernel.clone(),
            (_, None) => "optimized away".to_owned(),
        };
        Line { node: node.name.clone(), op: node.op.label().into_owned(), runs, int8, why }
    };
    nodes.map(line).collect()
}

/// Whether the quantizer has a form for the node, and the reason.
fn quantizable(graph: &Graph, node: &Node) -> (bool, &'static str) {
    let input = |index: usize| node.inputs.get(index).copied().flatten();
    let float = input(0).is_some_and(|id| graph.ty(id).dtype == DType::F32);
    let conversion =
        matches!(node.op.name(), "QuantizeLinear" | "DequantizeLinear" | "DynamicQuantizeLinear");
    let constant = |id| match graph.producer(id) {
        None => graph.const_value(id).is_some(),
        Some((_, producer, _)) => producer.op.name() == "DequantizeLinear",
    };
    match node.op.quant() {
        _ if conversion => (false, "converts between reals and integers"),
        QuantRule::Float => (false, "the operator has no 8-bit form"),
        _ if !float => (false, "works on another type than f32"),
        QuantRule::Linear { .. } if input(1).is_some_and(constant) => (true, "weights per channel"),
        QuantRule::Linear { .. } => (false, "its weights are computed when the network runs"),
        QuantRule::Recurrent => (true, "weights per channel, the state by rows as it comes"),
        QuantRule::Passthrough | QuantRule::Unify => (true, "moves 8-bit values between quantized layers"),
        QuantRule::Arithmetic => (true, "between quantized layers, each operand with its scale"),
        QuantRule::Lut => (true, "a table of 256 entries between quantized layers"),
    }
}

/// The lines as JSON.
pub(super) fn as_json(model: &Model) -> Value {
    let lines = lines(model).into_iter();
    lines.map(|l| json!({"node": l.node, "op": l.op, "runs": l.runs, "int8": l.int8, "why": l.why})).collect()
}

/// The lines as a table, with a summary in front.
pub(super) fn text(model: &Model) -> String {
    let lines = lines(model);
    let count = |wanted: &dyn Fn(&Line) -> bool| lines.iter().filter(|line| wanted(line)).count();
    let reference = count(&|line| line.runs.starts_with("reference:"));
    let away = count(&|line| line.runs == "optimized away");
    let int8 = count(&|line| line.int8);
    let summary = format!(
        "{} nodes: {} run in kernels, {reference} on the slow reference evaluator, {away} are optimized away; \
         {int8} have an 8-bit form\n",
        lines.len(),
        lines.len() - reference - away,
    );
    let yes_no = |int8| if int8 { "yes: " } else { "no: " };
    let rows: Vec<Vec<String>> = lines
        .into_iter()
        .map(|l| vec![l.node, l.op, l.runs, format!("{}{}", yes_no(l.int8), l.why)])
        .collect();
    summary + &table(&["node", "operator", "runs as", "8 bits"], &rows)
}
