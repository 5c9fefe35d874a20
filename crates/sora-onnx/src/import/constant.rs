//! Constants, and nodes that pass their input on.

use sora_ir::ops::{Expand, Range};
use sora_tensor::Tensor;

use super::node::{Built, NodeCx};
use super::rows::{Row, onnx};
use crate::error::Refusal;

pub(super) const ROWS: &[Row] = &[
    onnx("Constant", constant),
    onnx("ConstantOfShape", constant_of_shape),
    onnx("Range", |cx| cx.add(Range {}, cx.inputs_to(3))),
];

fn constant(cx: &mut NodeCx) -> Built {
    let Some(attribute) =
        cx.node.attribute.iter().find(|a| a.name.starts_with("value") || a.name == "sparse_value")
    else {
        return Err(Refusal::new("it has no value"));
    };
    let tensor = match attribute.name.as_str() {
        "value" => match &attribute.t {
            Some(proto) => cx.tensor(proto)?,
            None => return Err(Refusal::new("its value is not a tensor")),
        },
        "value_float" => Tensor::scalar(attribute.f.unwrap_or(0.0)),
        "value_floats" => Tensor::vector(&attribute.floats),
        "value_int" => Tensor::scalar(attribute.i.unwrap_or(0)),
        "value_ints" => Tensor::vector(&attribute.ints),
        other => return Err(Refusal::new(format!("a constant given by `{other}` is not supported"))),
    };
    Ok(vec![cx.make("value", tensor)])
}

fn constant_of_shape(cx: &mut NodeCx) -> Built {
    let value = match cx.attribute("value").and_then(|a| a.t.as_deref()) {
        Some(proto) => cx.tensor(proto)?,
        None => Tensor::scalar(0f32),
    };
    let scalar = value.reshape(&[]).map_err(|_| Refusal::new("its value must have one element"))?;
    let scalar = cx.make("value", scalar);
    cx.add(Expand {}, [scalar, cx.input(0)?])
}
