//! `sora inspect --support`: for each node, what runs it, and whether it can be quantized.

use std::collections::HashMap;

use serde_json::{Value, json};
use sora::Model;
use sora::exec::{ExecError, Program};
use sora::ir::{Graph, Node, QuantRule};
use sora::tensor::DType;

use sora::table;

/// What is said of one node.
struct Line {
    /// With the nodes that it is in the bodies of.
    node: String,
    op: String,
    how: How,
    /// The kernel of the step that it is part of, or what became of it and why.
    runs: String,
    int8: bool,
    /// How it is quantized, or why not.
    why: &'static str,
}

/// What runs a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Kernel,
    Reference,
    /// It is compiled when a run knows the shapes, for a kernel where one does it.
    Later,
    /// Nothing: other nodes do what it did, or it was done when the program was made.
    Gone,
    Unknown,
}

impl How {
    /// The word that scripts see.
    fn name(self) -> &'static str {
        match self {
            How::Kernel => "kernel",
            How::Reference => "reference",
            How::Later => "later",
            How::Gone => "optimized away",
            How::Unknown => "unknown",
        }
    }
}

/// The program of the model for the shapes in question, or why there is none.
type Compiled<'a> = Result<&'a Program, &'a ExecError>;

/// The lines of a model's nodes, in order, those in bodies behind the nodes that have them.
fn lines(model: &Model, program: Compiled) -> Vec<Line> {
    let mut kernels: HashMap<&str, &str> = HashMap::new();
    for step in program.map_or(&[][..], |program| program.steps()) {
        for node in &step.nodes {
            kernels.insert(node, &step.kernel);
        }
    }
    let runs = |graph: &Graph, node: &Node| match (program, kernels.get(node.name.as_str())) {
        (Err(error), _) => (How::Unknown, format!("not known: {error} (give --shape)")),
        (_, None) => (How::Gone, "optimized away".to_owned()),
        (_, Some(kernel)) => match kernel.split_once(':') {
            Some(("reference", _)) => (How::Reference, format!("reference: {}", no_kernel(graph, node))),
            Some(("later", _)) => (How::Later, "later: its shapes depend on data".to_owned()),
            _ => (How::Kernel, (*kernel).to_owned()),
        },
    };
    let mut lines = Vec::new();
    add_lines(&model.graph, "", &runs, &mut lines);
    lines
}

/// Adds the lines of a graph and of the bodies in it.
fn add_lines(
    graph: &Graph,
    prefix: &str,
    runs: &dyn Fn(&Graph, &Node) -> (How, String),
    lines: &mut Vec<Line>,
) {
    for node in graph.order().unwrap_or_default().into_iter().filter_map(|id| graph.node(id)) {
        // Import names most nodes in bodies after the node around them.
        let own = if node.name.starts_with(prefix) { "" } else { prefix };
        let name = format!("{own}{}", node.name);
        let ((int8, why), (how, text)) = (quantizable(graph, node), runs(graph, node));
        lines.push(Line { node: name.clone(), op: node.op.label().into_owned(), how, runs: text, int8, why });
        for body in node.op.bodies() {
            let inside = |_: &Graph, _: &Node| {
                (How::Later, "later: in a body, compiled when it first runs".to_owned())
            };
            add_lines(body.graph(), &format!("{}/", node.name), &inside, lines);
        }
    }
}

/// Why a node runs on the reference evaluator.
fn no_kernel(graph: &Graph, node: &Node) -> String {
    let types = node.inputs.iter().flatten().map(|&id| graph.ty(id).to_string());
    format!("no kernel for this {} of {}", node.op.label(), types.collect::<Vec<_>>().join(", "))
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
        QuantRule::Passthrough if node.op.name() == "Gather" && input(0).is_some_and(constant) => {
            (true, "a table of bytes, whose rows become real as they are read")
        }
        QuantRule::Passthrough | QuantRule::Unify => (true, "moves 8-bit values between quantized layers"),
        QuantRule::Arithmetic => (true, "between quantized layers, each operand with its scale"),
        QuantRule::Lut => (true, "a table of 256 entries between quantized layers"),
    }
}

/// The lines as JSON.
pub(super) fn as_json(model: &Model, program: Compiled) -> Value {
    let line = |l: Line| json!({"node": l.node, "op": l.op, "how": l.how.name(), "runs": l.runs, "int8": l.int8, "why": l.why});
    lines(model, program).into_iter().map(line).collect()
}

/// The lines as a table, with a summary in front.
pub(super) fn text(model: &Model, program: Compiled) -> String {
    let lines = lines(model, program);
    let count = |how| lines.iter().filter(|line| line.how == how).count();
    let parts = [
        (How::Kernel, "run in kernels"),
        (How::Reference, "run on the slow reference evaluator"),
        (How::Later, "are compiled when the model runs, in kernels where there are some"),
        (How::Gone, "are optimized away"),
        (How::Unknown, "are not known"),
    ];
    let parts = parts.map(|(how, what)| (count(how), what));
    let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let int8 = lines.iter().filter(|line| line.int8).count();
    let parts: Vec<String> = parts.collect();
    let summary = format!("{} nodes: {}; {int8} have an 8-bit form\n", lines.len(), parts.join(", "));
    let yes_no = |int8| if int8 { "yes: " } else { "no: " };
    let rows: Vec<Vec<String>> = lines
        .into_iter()
        .map(|l| vec![l.node, l.op, l.runs, format!("{}{}", yes_no(l.int8), l.why)])
        .collect();
    summary + &table(&["node", "operator", "runs as", "8 bits"], &rows)
}
