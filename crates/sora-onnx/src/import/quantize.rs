//! QuantizeLinear and DequantizeLinear with every way that a scale can lie along its tensor.

use sora_ir::ops::{
    BinaryKind, CastFloat8, DequantizeLinear, Expand, Gather, QuantizeLinear, Shape, Unsqueeze,
};
use sora_ir::{Dim, ValueId};
use sora_tensor::{DType, PowerRounding};

use super::node::{Built, NodeCx, size};
use super::quant::{one_scale, trimmed};
use super::rows::{Row, microsoft, onnx};
use crate::error::Refusal;
use crate::tensor::{dtype_of, signed};

pub(super) const ROWS: &[Row] = &[
    onnx("QuantizeLinear", quantize),
    onnx("DequantizeLinear", dequantize),
    microsoft("QuantizeLinear", quantize),
    microsoft("DequantizeLinear", dequantize),
];

/// The type that a value is computed with where the operators take no other: ONNX allows integers and powers of two.
fn computable(cx: &mut NodeCx, value: ValueId) -> Result<ValueId, Refusal> {
    match cx.dtype(value) {
        DType::F32 | DType::F16 | DType::BF16 => Ok(value),
        _ => cx.cast(value, DType::F32),
    }
}

fn quantize(cx: &mut NodeCx) -> Built {
    let zero_point = cx.opt(2).map(|id| cx.dtype(id));
    let to = match (zero_point, cx.int("output_dtype", 0)) {
        (None, 0) => DType::U8,
        (None, code) => dtype_of(code)?,
        (Some(dtype), 0) => dtype,
        (Some(dtype), code) if dtype_of(code)? == dtype => dtype,
        (Some(dtype), code) => {
            return Err(Refusal::new(format!("output_dtype={code} differs from the zero point's {dtype}")));
        }
    };
    let (x, scale) = (cx.input(0)?, cx.input(1)?);
    let scale = computable(cx, scale)?;
    let scale = aligned(cx, x, scale)?;
    let zero_point = cx.opt(2).map(|zero| aligned(cx, x, zero)).transpose()?;
    let axis = cx.int("axis", 1);
    let precision = match cx.int("precision", 0) {
        0 => cx.dtype(scale),
        code => dtype_of(code)?,
    };
    let (x, scale) = (cx.cast(x, precision)?, cx.cast(scale, precision)?);
    let saturate = cx.flag("saturate", true) || !to.is_float() || to == DType::F4E2M1;
    if saturate && (cx.attribute("precision").is_none() || precision == DType::F32) {
        return cx.add(QuantizeLinear { axis, to }, trimmed(&[Some(x), Some(scale), zero_point]));
    }
    // The quotient by itself: rounded to its precision, or not saturated.
    let divisor = spread(cx, x, scale)?;
    let quotient = cx.binary(BinaryKind::Div, x, divisor)?;
    if saturate {
        let one = ones(cx, zero_point, precision)?;
        return cx.add(QuantizeLinear { axis, to }, trimmed(&[Some(quotient), Some(one), zero_point]));
    }
    let shifted = match zero_point {
        Some(zero) => {
            let zero = cx.cast(zero, precision)?;
            let zero = spread(cx, x, zero)?;
            cx.binary(BinaryKind::Add, quotient, zero)?
        }
        None => quotient,
    };
    cx.add(CastFloat8 { to, saturate: false, rounding: PowerRounding::Up }, [shifted])
}

/// Ones in the shape of the zero point.
fn ones(cx: &mut NodeCx, zero_point: Option<ValueId>, dtype: DType) -> Result<ValueId, Refusal> {
    let one = cx.scalar("one", dtype, 1.0);
    match zero_point.filter(|&zero| cx.rank(zero) > 0) {
        None => Ok(one),
        Some(zero) => {
            let shape = cx.step("shape", Shape { start: 0, end: None }, [zero])?;
            cx.step("ones", Expand {}, [one, shape])
        }
    }
}

fn dequantize(cx: &mut NodeCx) -> Built {
    let (x, scale) = (cx.input(0)?, cx.input(1)?);
    let scale = computable(cx, scale)?;
    // The product is computed in `f32` and rounded once, to the type that was asked for.
    let to = match cx.int("output_dtype", 0) {
        0 => cx.dtype(scale),
        code => dtype_of(code)?,
    };
    let scale = if to == cx.dtype(scale) { scale } else { cx.cast(scale, DType::F32)? };
    let scale = aligned(cx, x, scale)?;
    let zero_point = cx.opt(2).map(|zero| aligned(cx, x, zero)).transpose()?;
    let values =
        cx.add(DequantizeLinear { axis: cx.int("axis", 1) }, trimmed(&[Some(x), Some(scale), zero_point]))?;
    values.into_iter().map(|value| cx.cast(value, to)).collect()
}

/// A scale or zero point as the core takes it: a scalar for one element, else with blocks of the size that follows from
/// their number. Blocks of another size get one element for each element of the axis.
fn aligned(cx: &mut NodeCx, x: ValueId, scale: ValueId) -> Result<ValueId, Refusal> {
    let scale = one_scale(cx, scale)?;
    let wanted = size(cx.int("block_size", 0), "block_size")?;
    if wanted == 0 || cx.rank(scale) == 0 {
        return Ok(scale);
    }
    let axis = cx.axis(cx.int("axis", 1), x)?;
    if cx.rank(scale) != cx.rank(x) {
        return Err(Refusal::new(format!(
            "block_size={wanted} of {} with the scale {}",
            cx.ty(x),
            cx.ty(scale)
        )));
    }
    let at = |value| cx.ty(value).shape.get(axis).and_then(Dim::known);
    let (Some(extent), Some(blocks)) = (at(x), at(scale)) else {
        return Err(Refusal::new(format!("block_size={wanted} needs the extent of axis {axis} as a number")));
    };
    if extent.div_ceil(wanted) != blocks {
        return Err(Refusal::new(format!(
            "block_size={wanted} does not make {blocks} blocks of {extent} elements"
        )));
    }
    match extent.div_ceil(blocks.max(1)) == wanted || blocks == 1 {
        true => Ok(scale),
        false => repeated(cx, scale, axis, extent, wanted),
    }
}

/// Each slice of the axis repeated, up to an extent.
fn repeated(
    cx: &mut NodeCx,
    value: ValueId,
    axis: usize,
    extent: usize,
    times: usize,
) -> Result<ValueId, Refusal> {
    const MOST: usize = 1 << 24;
    if extent > MOST {
        return Err(Refusal::new(format!("an axis of {extent} elements in blocks is not supported")));
    }
    let slices: Vec<i64> = (0..extent).map(|i| signed(i / times.max(1))).collect();
    let slices = cx.make_ints("slices", &slices);
    cx.step("repeat", Gather { axis: signed(axis) }, [value, slices])
}

/// A scale or zero point in a shape that broadcasts to `x`.
fn spread(cx: &mut NodeCx, x: ValueId, scale: ValueId) -> Result<ValueId, Refusal> {
    if cx.rank(scale) == 0 {
        return Ok(scale);
    }
    let axis = cx.axis(cx.int("axis", 1), x)?;
    if cx.rank(scale) < cx.rank(x) {
        let axes: Vec<i64> = (1..cx.rank(x) - axis).map(signed).collect();
        return if axes.is_empty() { Ok(scale) } else { cx.step("spread", Unsqueeze { axes }, [scale]) };
    }
    let at = |value| cx.ty(value).shape.get(axis).and_then(Dim::known);
    match (at(x), at(scale)) {
        (Some(extent), Some(blocks)) if blocks > 1 => {
            repeated(cx, scale, axis, extent, extent.div_ceil(blocks))
        }
        _ => Ok(scale),
    }
}
