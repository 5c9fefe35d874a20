//! Conversion between element types.

use sora_ir::ValueId;
use sora_ir::ops::{BitCast, Cast, CastFloat8};
use sora_tensor::{DType, PowerRounding};

use super::node::{Built, NodeCx};
use super::rows::{Row, onnx};
use crate::error::Refusal;
use crate::tensor::dtype_named;

pub(super) const ROWS: &[Row] = &[
    onnx("BitCast", |cx| cx.add(BitCast { to: cx.dtype_named_by("to", 0)? }, [cx.input(0)?])),
    onnx("Cast", |cx| {
        // Opset 1 names the type.
        let to = match cx.opset < 6 {
            true => dtype_named(&cx.text("to", ""))?,
            false => cx.dtype_named_by("to", 0)?,
        };
        convert(cx, to)
    }),
    onnx("CastLike", |cx| {
        let to = cx.dtype(cx.input(1)?);
        convert(cx, to)
    }),
];

fn convert(cx: &mut NodeCx, to: DType) -> Built {
    let x = cx.input(0)?;
    let rounding = match cx.text("round_mode", "up").as_ref() {
        "up" => PowerRounding::Up,
        "down" => PowerRounding::Down,
        "nearest" => PowerRounding::Nearest,
        other => return Err(Refusal::new(format!("round_mode=`{other}` is not known"))),
    };
    let saturate = cx.flag("saturate", true);
    let usual = saturate && (to != DType::F8E8M0 || rounding == PowerRounding::Up);
    if to.is_float() && to.size() == 1 && to != DType::F4E2M1 && !usual {
        let x = if cx.dtype(x).is_float() { x } else { cx.cast(x, DType::F64)? };
        return cx.add(CastFloat8 { to, saturate, rounding }, [x]);
    }
    let x = whole(cx, x, to)?;
    cx.add(Cast { to }, [x])
}

/// What lies beyond the range of an integer of fewer than 8 bits is left open. ONNX's own implementation saturated up
/// to opset 23, as Sora does, and keeps the lowest bits since.
fn whole(cx: &mut NodeCx, x: ValueId, to: DType) -> Result<ValueId, Refusal> {
    match cx.opset >= 24 && to.is_int() && to.bits() < 8 && cx.dtype(x).is_float() {
        true => cx.cast(x, DType::I32),
        false => Ok(x),
    }
}
