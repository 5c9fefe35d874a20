//! Operators of classical machine learning (ai.onnx.ml) on numbers.

use sora_ir::ValueId;
use sora_ir::ops::{ArgReduce, Binary, BinaryKind, Cast, Gather, Reduce, ReduceKind, UnaryKind, Where};
use sora_tensor::{DType, Tensor};

use super::node::{Built, NodeCx};
use super::rows::{Row, learning};
use super::tree;
use crate::error::Refusal;

pub(super) const ROWS: &[Row] = &[
    learning("ArrayFeatureExtractor", array_feature_extractor),
    learning("Binarizer", binarizer),
    learning("LabelEncoder", label_encoder),
    learning("TreeEnsemble", tree::ensemble),
    learning("TreeEnsembleRegressor", tree::regressor),
];

/// Elements of the last axis; a list counts as a matrix of one row.
fn array_feature_extractor(cx: &mut NodeCx) -> Built {
    let (x, places) = (cx.input(0)?, cx.input(1)?);
    let x = if cx.rank(x) == 1 { cx.unsqueeze(x, &[0])? } else { x };
    let places = cx.reshape(places, &[-1])?;
    cx.add(Gather { axis: -1 }, [x, places])
}

fn binarizer(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let threshold = cx.scalar("threshold", cx.dtype(x), f64::from(cx.float("threshold", 0.0)));
    let above = cx.binary(BinaryKind::Greater, x, threshold)?;
    cx.add(Cast { to: cx.dtype(x) }, [above])
}

/// The attribute of keys or of values that is there, as a list.
fn table(cx: &mut NodeCx, of: &str) -> Result<Tensor, Refusal> {
    if cx.attribute(&format!("{of}_strings")).is_some() {
        return Err(Refusal::new(format!("its {of} are text"))
            .hint("cut the text processing off the model and run it in your program"));
    }
    if let Some(a) = cx.attribute(&format!("{of}_int64s")) {
        return Ok(Tensor::vector(&a.ints));
    }
    if let Some(a) = cx.attribute(&format!("{of}_floats")) {
        return Ok(Tensor::vector(&a.floats));
    }
    let tensor = cx.attribute(&format!("{of}_tensor")).and_then(|a| a.t.as_deref());
    let tensor = tensor.ok_or_else(|| Refusal::new(format!("its {of} are missing")))?;
    let tensor = cx.tensor(tensor)?;
    tensor.reshape(&[tensor.len()]).map_err(|e| Refusal::new(e.to_string()))
}

/// The value of the key that each element is, else the default. Of equal keys the last counts, and NaN is NaN.
fn label_encoder(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let (keys, values) = (table(cx, "keys")?, table(cx, "values")?);
    if keys.dtype() != cx.dtype(x) || keys.len() != values.len() || keys.is_empty() {
        let why = format!("{} keys of {} and {} values", keys.len(), keys.dtype(), values.len());
        return Err(Refusal::new(format!("it has {why} for {}", cx.ty(x))));
    }
    let default = match (cx.attribute("default_tensor").and_then(|a| a.t.as_deref()), values.dtype()) {
        (Some(tensor), _) => cx.tensor(tensor)?.reshape(&[]).map_err(|e| Refusal::new(e.to_string()))?,
        (None, dtype) if dtype.is_float() => Tensor::scalar(cx.float("default_float", -0.0)).cast(dtype),
        (None, dtype) => Tensor::scalar(cx.int("default_int64", -1)).cast(dtype),
    };
    let not_a_number = keys.dtype().is_float() && keys.to_f64s().iter().any(|key| key.is_nan());
    let column = cx.unsqueeze(x, &[-1])?;
    let (keys, default) = (cx.make("keys", keys), cx.make("default", default));
    let values = cx.make("values", values);
    let mut equal = cx.binary(BinaryKind::Equal, column, keys)?;
    if not_a_number {
        let is_nan = |cx: &mut NodeCx, value: ValueId| {
            let same = cx.binary(BinaryKind::Equal, value, value)?;
            cx.unary(UnaryKind::Not, same)
        };
        let (nan, nan_key) = (is_nan(cx, column)?, is_nan(cx, keys)?);
        let both = cx.binary(BinaryKind::And, nan, nan_key)?;
        equal = cx.step("equal", Binary { kind: BinaryKind::Or }, [equal, both])?;
    }
    let hits = cx.cast(equal, DType::I32)?;
    let last = ArgReduce { axis: -1, keep_dims: false, largest: true, select_last: true };
    let place = cx.step("place", last, [hits])?;
    let found =
        cx.step("found", Reduce { kind: ReduceKind::Max, axes: vec![-1], keep_dims: false }, [hits])?;
    let found = cx.cast(found, DType::Bool)?;
    let value = cx.step("value", Gather { axis: 0 }, [values, place])?;
    cx.add(Where {}, [found, value, default])
}
