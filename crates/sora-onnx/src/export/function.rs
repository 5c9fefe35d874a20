//! Functions in ONNX's own operators, for what ONNX has no operator for. They come with the file, in the domain
//! `ai.sora`: other runtimes run their bodies, and Sora reads calls back as what they were.

use super::node::{flag, float, int};
use crate::import::SORA;
use crate::proto::{AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto, attribute_type};
use crate::tensor::code_of;
use sora_tensor::DType;

/// A function, by what makes its body for an opset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Function {
    pub(super) name: &'static str,
    inputs: &'static [&'static str],
    outputs: &'static [&'static str],
    /// Attributes with their type codes, which the body's nodes take over.
    attributes: &'static [(&'static str, i32)],
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    QuantizeRows,
    /// The layer of ONNX of the same name.
    Layer,
}

/// As DynamicQuantizeLinear, each row along the last axis over its own range.
pub(super) const DYNAMIC_QUANTIZE_ROWS: Function = Function {
    name: "DynamicQuantizeRows",
    inputs: &["x"],
    outputs: &["y", "scale", "zero_point"],
    attributes: &[],
    kind: Kind::QuantizeRows,
};

/// LSTM whose state is rounded to 8 bits before it meets its weights; elsewhere it is not.
pub(super) const LSTM: Function = Function {
    name: "LSTM",
    inputs: &["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"],
    outputs: &["Y", "Y_h", "Y_c"],
    attributes: &[("hidden_size", attribute_type::INT), ("direction", attribute_type::STRING)],
    kind: Kind::Layer,
};

/// GRU, likewise.
pub(super) const GRU: Function = Function {
    name: "GRU",
    inputs: &["X", "W", "R", "B", "sequence_lens", "initial_h"],
    outputs: &["Y", "Y_h"],
    attributes: &[
        ("hidden_size", attribute_type::INT),
        ("direction", attribute_type::STRING),
        ("linear_before_reset", attribute_type::INT),
    ],
    kind: Kind::Layer,
};

/// An operator set.
pub(super) fn domain(name: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: name.to_owned(), version }
}

fn node(op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    NodeProto {
        op_type: op.to_owned(),
        input: names(inputs),
        output: names(outputs),
        attribute,
        ..NodeProto::default()
    }
}

impl Function {
    /// The function in the operators of an opset.
    pub(super) fn proto(&self, opset: i64) -> FunctionProto {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        FunctionProto {
            name: self.name.to_owned(),
            domain: SORA.to_owned(),
            input: names(self.inputs),
            output: names(self.outputs),
            attribute: self.attributes.iter().map(|(name, _)| (*name).to_owned()).collect(),
            node: match self.kind {
                Kind::QuantizeRows => quantize_rows(opset),
                Kind::Layer => vec![self.layer()],
            },
            opset_import: vec![domain("", opset)],
            ..FunctionProto::default()
        }
    }

    fn layer(&self) -> NodeProto {
        let attributes = self.attributes.iter().map(|&(name, code)| AttributeProto {
            name: name.to_owned(),
            ref_attr_name: name.to_owned(),
            r#type: Some(code),
            ..AttributeProto::default()
        });
        node(self.name, self.inputs, self.outputs, attributes.collect())
    }
}

/// Line by line what the operator's definition says.
fn quantize_rows(opset: i64) -> Vec<NodeProto> {
    let number = |name, value| node("Constant", &[], &[name], vec![float("value_float", value)]);
    let cast = |from, to| node("Cast", &[from], &[to], vec![int("to", i64::from(code_of(DType::U8)))]);
    let plain = |op, inputs: &[&str], output| node(op, inputs, &[output], Vec::new());
    // The axes are an input since opset 18.
    let extreme = |op, output| match opset {
        ..18 => {
            node(op, &["x"], &[output], vec![super::node::integers("axes", &[-1]), flag("keepdims", true)])
        }
        _ => node(op, &["x", "last"], &[output], vec![flag("keepdims", true)]),
    };
    let last = node("Constant", &[], &["last"], vec![super::node::integers("value_ints", &[-1])]);
    vec![
        number("zero", 0.0),
        number("one", 1.0),
        number("steps", 255.0),
        last,
        extreme("ReduceMin", "lowest"),
        extreme("ReduceMax", "highest"),
        plain("Min", &["lowest", "zero"], "low"),
        plain("Max", &["highest", "zero"], "high"),
        plain("Sub", &["high", "low"], "range"),
        plain("Div", &["range", "steps"], "step"),
        plain("Equal", &["step", "zero"], "empty"),
        plain("Where", &["empty", "one", "step"], "scale"),
        plain("Neg", &["low"], "minus_low"),
        plain("Div", &["minus_low", "scale"], "offset"),
        plain("Clip", &["offset", "zero", "steps"], "clipped_offset"),
        plain("Round", &["clipped_offset"], "whole_offset"),
        cast("whole_offset", "zero_point"),
        plain("Div", &["x", "scale"], "quotient"),
        plain("Round", &["quotient"], "whole"),
        plain("Add", &["whole", "whole_offset"], "shifted"),
        plain("Clip", &["shifted", "zero", "steps"], "clipped"),
        cast("clipped", "y"),
    ]
}
