//! Graph → text.

use std::fmt::Write;

use sora_tensor::{DType, Tensor};

use crate::{Def, Graph, Op};

/// Prints `graph` whole: [`super::parse`] gives it back, constants bit for bit.
pub fn print(graph: &Graph) -> String {
    print_constants(graph, elements)
}

/// Prints `graph` for people: constants of more than `longest` elements become `…`, which does not parse.
pub fn print_elided(graph: &Graph, longest: usize) -> String {
    print_constants(graph, |tensor| if tensor.len() > longest { "…".to_owned() } else { elements(tensor) })
}

/// Prints `graph` with larger constants moved to a table, as files do.
pub fn print_with_table(graph: &Graph) -> (String, Vec<Tensor>) {
    const LONGEST_INLINE: usize = 8;
    let mut table = Vec::new();
    let text = print_constants(graph, |tensor| {
        if tensor.len() <= LONGEST_INLINE {
            return elements(tensor);
        }
        table.push(tensor.clone());
        format!("@{}", table.len() - 1)
    });
    (text, table)
}

fn print_constants(graph: &Graph, mut show: impl FnMut(&Tensor) -> String) -> String {
    let mut text = format!("graph {}\n", quote(&graph.name));
    let value =
        |id: crate::ValueId| format!("%{} {} {}", id.index(), quote(&graph.value(id).name), graph.ty(id));
    for &id in graph.inputs() {
        let _ = writeln!(text, "input {}", value(id));
    }
    for (id, v) in graph.values() {
        if let Def::Const(tensor) = &v.def {
            let _ = writeln!(text, "const {} = {}", value(id), show(tensor));
        }
    }
    // A graph without an order prints in order of insertion; parsing it back names the cycle.
    let order = graph.order().unwrap_or_else(|_| graph.nodes().map(|(id, _)| id).collect());
    for node in order.into_iter().filter_map(|id| graph.node(id)) {
        let outputs: Vec<_> = node.outputs.iter().map(|&id| value(id)).collect();
        let inputs = node.inputs.iter().map(|id| id.map_or("_".to_owned(), |id| format!("%{}", id.index())));
        let inputs: Vec<_> = inputs.collect();
        let (name, attributes) = (quote(&node.name), attributes(&node.op));
        let _ = writeln!(
            text,
            "{} = {} {name} ({}) {attributes}",
            outputs.join(", "),
            node.op.name(),
            inputs.join(", ")
        );
    }
    for output in graph.outputs() {
        let _ = writeln!(text, "output {} %{}", quote(&output.name), output.value.index());
    }
    text
}

/// The attributes as a JSON object, without the operator's name around it.
fn attributes(op: &Op) -> String {
    let tagged = serde_json::to_value(op).unwrap_or_default();
    tagged.get(op.name()).map_or_else(|| "{}".to_owned(), ToString::to_string)
}

fn quote(name: &str) -> String {
    serde_json::Value::from(name).to_string()
}

/// A list where decimal numbers are exact, bytes in hexadecimal otherwise.
fn elements(tensor: &Tensor) -> String {
    let finite = !tensor.dtype().is_float() || tensor.to_f64s().iter().all(|v| v.is_finite());
    if !finite {
        let hex: String = tensor.bytes().iter().map(|b| format!("{b:02x}")).collect();
        return format!("0x{hex}");
    }
    let list: Vec<String> = match tensor.dtype() {
        DType::F64 => tensor.to_f64s().iter().map(f64::to_string).collect(),
        dtype if dtype.is_float() => tensor.to_f32s().iter().map(f32::to_string).collect(),
        _ => tensor.to_i128s().iter().map(i128::to_string).collect(),
    };
    format!("[{}]", list.join(","))
}
