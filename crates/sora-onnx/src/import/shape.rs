//! Operators that move or select elements, and those that compute with shapes.

use sora_ir::ops::{
    Concat, Expand, Flatten, Gather, GatherElements, Late, LateOp, OneHot, Pad, PadMode, Reduce, ReduceKind,
    Reshape, Shape, Slice, Split, Squeeze, Tile, Transpose, Trilu, Unsqueeze,
};
use sora_ir::{Dim, ValueId};
use sora_tensor::Tensor;

use super::node::{Built, NodeCx, size};
use super::rows::{Row, onnx};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[
    onnx("Concat", |cx| cx.add(Concat { axis: cx.int("axis", 1) }, cx.all_inputs()?)),
    onnx("DepthToSpace", depth_to_space),
    onnx("Expand", |cx| cx.add(Expand {}, [cx.input(0)?, cx.input(1)?])),
    onnx("Flatten", |cx| cx.add(Flatten { axis: cx.int("axis", 1) }, [cx.input(0)?])),
    onnx("Gather", |cx| cx.add(Gather { axis: cx.int("axis", 0) }, [cx.input(0)?, cx.input(1)?])),
    onnx("GatherElements", |cx| {
        cx.add(GatherElements { axis: cx.int("axis", 0) }, [cx.input(0)?, cx.input(1)?])
    }),
    onnx("OneHot", |cx| cx.add(OneHot { axis: cx.int("axis", -1) }, cx.inputs_to(3))),
    onnx("Pad", pad),
    onnx("Reshape", reshape),
    onnx("Shape", |cx| {
        let end = cx.attribute("end").map(|a| a.i.unwrap_or(0));
        cx.add(Shape { start: cx.int("start", 0), end }, [cx.input(0)?])
    }),
    onnx("Size", element_count),
    onnx("Slice", slice),
    onnx("SpaceToDepth", space_to_depth),
    onnx("Split", split),
    onnx("Squeeze", |cx| {
        if let Some(axes) = cx.late(1, 13) {
            return cx.add(Late { op: LateOp::Squeeze }, [cx.input(0)?, axes]);
        }
        let axes = cx.ints_at("axes", 1, 13)?.unwrap_or_default();
        cx.add(Squeeze { axes }, [cx.input(0)?])
    }),
    onnx("Tile", tile),
    onnx("Transpose", |cx| {
        let x = cx.input(0)?;
        let perm = cx.sizes("perm", (0..cx.rank(x)).rev().collect())?;
        cx.add(Transpose { perm }, [x])
    }),
    onnx("Trilu", |cx| cx.add(Trilu { upper: cx.flag("upper", true) }, cx.inputs_to(2))),
    onnx("Unsqueeze", |cx| {
        if let Some(axes) = cx.late(1, 13) {
            return cx.add(Late { op: LateOp::Unsqueeze }, [cx.input(0)?, axes]);
        }
        let axes = cx.ints_at("axes", 1, 13)?.ok_or_else(|| Refusal::new("its axes are missing"))?;
        cx.add(Unsqueeze { axes }, [cx.input(0)?])
    }),
];

fn element_count(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    if let Some(known) = cx.ty(x).known_len() {
        return Ok(vec![cx.make("size", Tensor::scalar(signed(known)))]);
    }
    let shape = cx.step("shape", Shape { start: 0, end: None }, [x])?;
    cx.add(Reduce { kind: ReduceKind::Prod, axes: Vec::new(), keep_dims: false }, [shape])
}

/// The shape was an attribute before opset 5.
fn reshape(cx: &mut NodeCx) -> Built {
    let shape = match cx.opset < 5 {
        true => {
            let shape = cx.ints("shape").ok_or_else(|| Refusal::new("its shape is missing"))?;
            cx.make_ints("shape", shape)
        }
        false => cx.input(1)?,
    };
    cx.add(Reshape { allow_zero: cx.flag("allowzero", false) }, [cx.input(0)?, shape])
}

/// Before opset 6, the inputs were a number of copies and the one axis they lie along.
fn tile(cx: &mut NodeCx) -> Built {
    let (x, mut repeats) = (cx.input(0)?, cx.input(1)?);
    if cx.opset < 6 {
        let known = |cx: &NodeCx, value| match cx.known_ints(value).as_deref() {
            Some(&[number]) => Ok(number),
            _ => Err(Refusal::new("its number of tiles and its axis must be constant")),
        };
        let (tiles, axis) = (known(cx, repeats)?, known(cx, cx.input(2)?)?);
        let axis = cx.axis(axis, x)?;
        let list: Vec<i64> = (0..cx.rank(x)).map(|i| if i == axis { tiles } else { 1 }).collect();
        repeats = cx.make_ints("repeats", &list);
    }
    cx.add(Tile {}, [x, repeats])
}

/// Everything but the data was an attribute before opset 11, and `pads` was `paddings` in opset 1.
fn pad(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let mode = match cx.text("mode", "constant").as_ref() {
        "constant" => PadMode::Constant,
        "edge" => PadMode::Edge,
        "reflect" => PadMode::Reflect,
        "wrap" => PadMode::Wrap,
        other => return Err(Refusal::new(format!("mode=`{other}` is not supported"))),
    };
    if cx.opset >= 11 {
        return cx.add(Pad { mode }, cx.inputs_to(4));
    }
    let pads = cx.ints(if cx.opset < 2 { "paddings" } else { "pads" });
    let pads = pads.ok_or_else(|| Refusal::new("its pads are missing"))?;
    let pads = cx.make_ints("pads", pads);
    let value = cx.float("value", 0.0);
    let value = (value != 0.0).then(|| cx.scalar("value", cx.dtype(x), f64::from(value)));
    cx.add(Pad { mode }, [vec![Some(x), Some(pads)], value.map(Some).into_iter().collect()].concat())
}

/// Everything but the data was an attribute before opset 10.
fn slice(cx: &mut NodeCx) -> Built {
    if cx.opset >= 10 {
        return cx.add(Slice {}, cx.inputs_to(5));
    }
    let mut inputs = vec![cx.input(0)?];
    for name in ["starts", "ends", "axes"] {
        match cx.ints(name) {
            Some(values) => inputs.push(cx.make_ints(name, values)),
            None if name == "axes" => {}
            None => return Err(Refusal::new(format!("its {name} are missing"))),
        }
    }
    cx.add(Slice {}, inputs)
}

fn split(cx: &mut NodeCx) -> Built {
    // Opset 1 has both the attribute and the input.
    let since = if cx.opset < 2 && cx.opt(1).is_some() { 1 } else { 13 };
    if let Some(sizes) = cx.late(1, since) {
        let op = LateOp::Split { axis: cx.int("axis", 0), outputs: cx.node.output.len() };
        return cx.add(Late { op }, [cx.input(0)?, sizes]);
    }
    let sizes = cx.ints_at("split", 1, since)?.unwrap_or_default();
    let sizes = sizes.iter().map(|&v| size(v, "split")).collect::<Result<Vec<_>, _>>()?;
    let outputs = match cx.attribute("num_outputs") {
        Some(_) => size(cx.int("num_outputs", 0), "num_outputs")?,
        None => cx.node.output.len(),
    };
    if outputs != cx.node.output.len() || !(sizes.is_empty() || sizes.len() == outputs) {
        return Err(Refusal::new(format!(
            "it has {} outputs and {} sizes for {outputs} parts",
            cx.node.output.len(),
            sizes.len()
        )));
    }
    cx.add(Split { axis: cx.int("axis", 0), outputs, sizes }, [cx.input(0)?])
}

/// One extent of a new shape.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Number(usize),
    /// The extent of an axis of the input, multiplied and divided.
    Axis {
        axis: usize,
        times: usize,
        over: usize,
    },
}

/// A reshape that computes with the input's extents, while the model runs only as far as they are symbolic.
pub(super) fn reshape_by(cx: &mut NodeCx, x: ValueId, parts: &[Part]) -> Result<ValueId, Refusal> {
    let dims = cx.ty(x).shape.clone();
    let known = |part: &Part| match *part {
        Part::Number(n) => Some(n),
        Part::Axis { axis, times, over } => Some(dims.get(axis)?.known()?.saturating_mul(times) / over),
    };
    let unknown = parts.iter().filter(|part| known(part).is_none()).count();
    // Of nothing, no extent follows from the others, and 0 is no sign for an extent that stays.
    let empty = parts.iter().any(|part| known(part) == Some(0));
    if unknown <= 1 && !empty {
        let shape: Vec<i64> = parts.iter().map(|part| known(part).map_or(-1, signed)).collect();
        return cx.reshape(x, &shape);
    }
    let shape = cx.step("shape", Shape { start: 0, end: None }, [x])?;
    let mut extents = Vec::new();
    for part in parts {
        extents.push(match (known(part), *part) {
            (None, Part::Axis { axis, times, over }) => {
                let index = cx.make_ints("axis", &[signed(axis)]);
                let extent = cx.step("extent", Gather { axis: 0 }, [shape, index])?;
                let times = cx.make_ints("times", &[signed(times)]);
                let extent = cx.binary(sora_ir::ops::BinaryKind::Mul, extent, times)?;
                let over = cx.make_ints("over", &[signed(over)]);
                cx.binary(sora_ir::ops::BinaryKind::Div, extent, over)?
            }
            (number, _) => cx.make_ints("extent", &[number.map_or(1, signed)]),
        });
    }
    let target = cx.step("target", Concat { axis: 0 }, extents)?;
    cx.step("reshape", Reshape { allow_zero: true }, [x, target])
}

/// The block of DepthToSpace and SpaceToDepth: its side and its area.
fn block(cx: &NodeCx, x: ValueId) -> Result<(usize, usize), Refusal> {
    let block = size(cx.int("blocksize", 0), "blocksize")?;
    match (cx.ty(x).rank(), block, block.checked_mul(block)) {
        (4, 1.., Some(area)) => Ok((block, area)),
        _ => Err(Refusal::new(format!("blocksize={block} does not fit its input {}", cx.ty(x)))),
    }
}

pub(super) const fn same(axis: usize) -> Part {
    Part::Axis { axis, times: 1, over: 1 }
}

fn depth_to_space(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let (b, area) = block(cx, x)?;
    if let Some(channels) = cx.ty(x).shape.get(1).and_then(Dim::known).filter(|channels| channels % area != 0)
    {
        return Err(Refusal::new(format!("{channels} channels do not split into blocks of {b}x{b}")));
    }
    let depth = Part::Axis { axis: 1, times: 1, over: area };
    let side = Part::Number(b);
    let (parts, perm) = match cx.text("mode", "DCR").as_ref() {
        "DCR" => ([same(0), side, side, depth, same(2), same(3)], [0, 3, 4, 1, 5, 2]),
        "CRD" => ([same(0), depth, side, side, same(2), same(3)], [0, 1, 4, 2, 5, 3]),
        other => return Err(Refusal::new(format!("mode=`{other}` is not known"))),
    };
    let split = reshape_by(cx, x, &parts)?;
    let moved = cx.transpose(split, &perm)?;
    let grown = |axis, by| Part::Axis { axis, times: by, over: 1 };
    // After the transposition the axes are N, C, H, b, W, b.
    Ok(vec![reshape_by(cx, moved, &[same(0), same(1), grown(2, b), grown(4, b)])?])
}

fn space_to_depth(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let (b, area) = block(cx, x)?;
    let shrunk = |axis| Part::Axis { axis, times: 1, over: b };
    let side = Part::Number(b);
    let split = reshape_by(cx, x, &[same(0), same(1), shrunk(2), side, shrunk(3), side])?;
    // And where the channels are then.
    let (perm, channels) = match cx.text("mode", "DCR").as_ref() {
        "DCR" => ([0, 3, 5, 1, 2, 4], 3),
        "CRD" => ([0, 1, 3, 5, 2, 4], 1),
        other => return Err(Refusal::new(format!("mode=`{other}` is not known"))),
    };
    let moved = cx.transpose(split, &perm)?;
    let depth = Part::Axis { axis: channels, times: area, over: 1 };
    Ok(vec![reshape_by(cx, moved, &[same(0), depth, same(4), same(5)])?])
}
