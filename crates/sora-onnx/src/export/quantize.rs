//! QuantizeLinear, DequantizeLinear and conversions to small floats.

use sora_ir::ops::{CastFloat8, DequantizeLinear, QuantizeLinear};
use sora_ir::{Dim, TensorType, resolve_axis};
use sora_tensor::{DType, PowerRounding, Tensor};

use super::node::{NodeWriter, flag, int, text};
use crate::error::OnnxError;
use crate::proto::AttributeProto;
use crate::tensor::{code_of, signed};

/// The oldest opset with a scale as this one, to or from `integer`.
pub(super) fn since(integer: DType, scale: Option<&TensorType>) -> i64 {
    match (integer, scale.map(|ty| ty.dtype)) {
        _ if scale.is_some_and(|ty| ty.rank() > 1) || integer.is_compact() => 21,
        (DType::I16 | DType::U16, _) => 21,
        (_, Some(DType::F16 | DType::BF16)) => 19,
        _ => 13,
    }
}

/// The attributes of a Cast that says what becomes of values beyond the range.
pub(super) fn cast_float8(op: &CastFloat8) -> Vec<AttributeProto> {
    let mut attributes = vec![int("to", i64::from(code_of(op.to))), flag("saturate", op.saturate)];
    if op.to == DType::F8E8M0 {
        attributes.push(text(
            "round_mode",
            match op.rounding {
                PowerRounding::Up => "up",
                PowerRounding::Down => "down",
                PowerRounding::Nearest => "nearest",
            },
        ));
    }
    attributes
}

/// The axis of a scale with one element per slice; a scale of one element has none.
fn scale_axis(w: &NodeWriter, axis: i64) -> Option<i64> {
    let scale = w.ty(1)?;
    if scale.rank() > 1 {
        return Some(axis);
    }
    scale.shape.first().filter(|count| count.constant() != Some(1)).map(|_| axis)
}

/// What says how the scale lies along the tensor: the axis, and the size of the blocks along it.
fn scale_attributes(w: &NodeWriter, axis: Option<i64>) -> Result<Vec<AttributeProto>, OnnxError> {
    let Some(axis) = axis else { return Ok(Vec::new()) };
    let mut attributes = vec![int("axis", axis)];
    if let (Some(x), Some(scale)) = (w.ty(0), w.ty(1)) {
        let resolved = resolve_axis(axis, x.rank()).map_err(|e| w.refuse(e.0))?;
        let at = |ty: &TensorType| ty.shape.get(resolved).and_then(Dim::known);
        let blocked = scale.rank() > 1 || x.rank() == 1 && x.shape != scale.shape;
        match (at(x), at(scale)) {
            (Some(extent), Some(blocks)) if blocked => {
                attributes.push(int("block_size", signed(extent.div_ceil(blocks.max(1)).max(1))));
            }
            _ if blocked => return Err(w.refuse(format!("the extent of axis {axis} of {x} is not fixed"))),
            _ => {}
        }
    }
    Ok(attributes)
}

/// Zeros in the shape of the scale. Runtimes recognize quantized weights by an explicit zero point.
fn zero_point(w: &mut NodeWriter, dtype: DType) -> Option<String> {
    let shape = w.ty(1)?.known_shape()?;
    let zeros = Tensor::zeros(dtype, &shape).ok()?;
    Some(w.constant("zero_point", zeros))
}

pub(super) fn dequantize(w: &mut NodeWriter, op: &DequantizeLinear) -> Result<(), OnnxError> {
    let axis = scale_axis(w, op.axis);
    let mut inputs = w.inputs();
    let dtype = w.ty(0).map_or(DType::U8, |ty| ty.dtype);
    if inputs.len() == 2 && dtype != DType::I32 {
        inputs.extend(zero_point(w, dtype));
    }
    let attributes = scale_attributes(w, axis)?;
    w.write_with("DequantizeLinear", inputs, attributes);
    Ok(())
}

pub(super) fn quantize(w: &mut NodeWriter, op: &QuantizeLinear) -> Result<(), OnnxError> {
    if op.to == DType::I32 {
        return quantize_wide(w, op);
    }
    let axis = scale_axis(w, op.axis);
    let mut inputs = w.inputs();
    if inputs.len() == 2 {
        // The zero point says which type the result has.
        match zero_point(w, op.to) {
            Some(zeros) => inputs.push(zeros),
            None if op.to == DType::U8 => {}
            None => return Err(w.refuse("its scale has no fixed shape")),
        }
    }
    let attributes = scale_attributes(w, axis)?;
    w.write_with("QuantizeLinear", inputs, attributes);
    Ok(())
}

/// ONNX does not quantize to 32 bits: divide, round, convert, and add the zero point.
fn quantize_wide(w: &mut NodeWriter, op: &QuantizeLinear) -> Result<(), OnnxError> {
    let to = int("to", i64::from(code_of(DType::I32)));
    let aligned = |w: &mut NodeWriter, index: usize| -> Result<String, OnnxError> {
        let value = w.input(index);
        let (Some(axis), Some(x), Some(scale), false) =
            (scale_axis(w, op.axis), w.ty(0), w.ty(1), value.is_empty())
        else {
            return Ok(value);
        };
        let axis = resolve_axis(axis, x.rank()).map_err(|e| w.refuse(e.0))?;
        if scale.rank() < x.rank() {
            // A scale for an inner axis gets trailing extents of one.
            let axes: Vec<i64> = (1..signed(x.rank() - axis)).collect();
            if axes.is_empty() {
                return Ok(value);
            }
            let axes = w.ints("axes", &axes);
            return Ok(w.step("Unsqueeze", vec![value, axes], Vec::new()));
        }
        // One for each block becomes one for each element.
        let at = |ty: &TensorType| ty.shape.get(axis).and_then(Dim::known);
        match (at(x), at(scale)) {
            (_, Some(1)) => Ok(value),
            (Some(extent), Some(blocks)) => {
                let size = extent.div_ceil(blocks.max(1)).max(1);
                let slices: Vec<i64> = (0..extent).map(|i| signed(i / size)).collect();
                let slices = w.ints("slices", &slices);
                Ok(w.step("Gather", vec![value, slices], vec![int("axis", signed(axis))]))
            }
            _ => Err(w.refuse(format!("the extent of axis {axis} of {x} is not fixed"))),
        }
    };
    let (scale, zero) = (aligned(w, 1)?, aligned(w, 2)?);
    let x = w.input(0);
    let quotient = w.step("Div", vec![x, scale], Vec::new());
    let rounded = w.step("Round", vec![quotient], Vec::new());
    if zero.is_empty() {
        w.write_with("Cast", vec![rounded], vec![to]);
    } else {
        let whole = w.step("Cast", vec![rounded], vec![to]);
        w.write_with("Add", vec![whole, zero], Vec::new());
    }
    Ok(())
}
