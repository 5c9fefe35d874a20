//! Operators that read or write at computed places.

use sora_ir::ValueId;
use sora_ir::ops::{
    BinaryKind, Cast, Expand, Gather, GatherNd, NonZero, Reduction, ScatterElements, ScatterNd, Squeeze,
    Unique, Where,
};

use super::node::{Built, NodeCx, size};
use super::rows::{Row, onnx};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[
    onnx("Compress", compress),
    onnx("EyeLike", eye_like),
    onnx("GatherND", |cx| {
        let batch_dims = size(cx.int("batch_dims", 0), "batch_dims")?;
        cx.add(GatherNd { batch_dims }, [cx.input(0)?, cx.input(1)?])
    }),
    onnx("NonZero", |cx| cx.add(NonZero {}, [cx.input(0)?])),
    onnx("ReverseSequence", reverse_sequence),
    // The name before opset 11.
    onnx("Scatter", scatter_elements),
    onnx("ScatterElements", scatter_elements),
    onnx("ScatterND", |cx| {
        let reduction = reduction(cx)?;
        cx.add(ScatterNd { reduction }, cx.inputs_to(3))
    }),
    onnx("TensorScatter", tensor_scatter),
    onnx("Unique", |cx| {
        let axis = cx.attribute("axis").map(|a| a.i.unwrap_or(0));
        cx.add(Unique { axis, sorted: cx.flag("sorted", true) }, [cx.input(0)?])
    }),
];

fn reduction(cx: &NodeCx) -> Result<Reduction, Refusal> {
    Ok(match cx.text("reduction", "none").as_ref() {
        "none" => Reduction::Replace,
        "add" => Reduction::Add,
        "mul" => Reduction::Mul,
        "max" => Reduction::Max,
        "min" => Reduction::Min,
        other => return Err(Refusal::new(format!("reduction=`{other}` is not known"))),
    })
}

fn scatter_elements(cx: &mut NodeCx) -> Built {
    let op = ScatterElements { axis: cx.int("axis", 0), reduction: reduction(cx)? };
    cx.add(op, cx.inputs_to(3))
}

/// The slices, or elements of the flattened tensor, whose condition holds.
fn compress(cx: &mut NodeCx) -> Built {
    let (x, condition) = (cx.input(0)?, cx.input(1)?);
    if cx.rank(condition) != 1 {
        return Err(Refusal::new(format!("its condition {} is not a list", cx.ty(condition))));
    }
    let (x, axis) = match cx.attribute("axis") {
        Some(_) => (x, cx.int("axis", 0)),
        None => (cx.reshape(x, &[-1])?, 0),
    };
    let places = cx.step("places", NonZero {}, [condition])?;
    let places = cx.step("list", Squeeze { axes: vec![0] }, [places])?;
    cx.add(Gather { axis }, [x, places])
}

/// Ones where the column is the row plus k.
fn eye_like(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    if cx.rank(x) != 2 {
        return Err(Refusal::new(format!("its input {} is not a matrix", cx.ty(x))));
    }
    let to = match cx.attribute("dtype") {
        Some(_) => cx.dtype_named_by("dtype", 0)?,
        None => cx.dtype(x),
    };
    let (rows, columns) = (cx.extent(x, 0)?, cx.extent(x, 1)?);
    let (rows, columns) = (cx.count_to(rows)?, cx.count_to(columns)?);
    let k = cx.make_ints("k", &[cx.int("k", 0)]);
    let diagonal = cx.binary(BinaryKind::Add, rows, k)?;
    let diagonal = cx.unsqueeze(diagonal, &[1])?;
    let equal = cx.binary(BinaryKind::Equal, diagonal, columns)?;
    cx.add(Cast { to }, [equal])
}

/// Each sequence of a batch backwards over its own length: step t comes from step `length - 1 - t`.
fn reverse_sequence(cx: &mut NodeCx) -> Built {
    let (x, lengths) = (cx.input(0)?, cx.input(1)?);
    let batch = cx.axis(cx.int("batch_axis", 1), x)?;
    let time = cx.axis(cx.int("time_axis", 0), x)?;
    if batch == time {
        return Err(Refusal::new(format!("batch and time are both axis {batch}")));
    }
    let steps = cx.extent(x, time)?;
    let steps = cx.count_to(steps)?;
    let lengths = cx.unsqueeze(lengths, &[1])?;
    let one = cx.make_ints("one", &[1]);
    let last = cx.binary(BinaryKind::Sub, lengths, one)?;
    let backwards = cx.binary(BinaryKind::Sub, last, steps)?;
    let inside = cx.binary(BinaryKind::Less, steps, lengths)?;
    let places = cx.step("places", Where {}, [inside, backwards, steps])?;
    let places = cx.unsqueeze(places, &[2])?;
    let others = (0..cx.rank(x)).filter(|&axis| axis != batch && axis != time);
    let perm: Vec<usize> = [batch, time].into_iter().chain(others).collect();
    let moved = cx.transpose(x, &perm)?;
    let reversed = cx.op(GatherNd { batch_dims: 1 }, [moved, places])?;
    let back: Vec<usize> =
        (0..perm.len()).filter_map(|axis| perm.iter().position(|&from| from == axis)).collect();
    Ok(vec![cx.transpose(reversed, &back)?])
}

/// A cache with an update written from each sample's index on, around its end when circular.
fn tensor_scatter(cx: &mut NodeCx) -> Built {
    let (cache, update) = (cx.input(0)?, cx.input(1)?);
    let (axis, rank) = (cx.axis(cx.int("axis", -2), cache)?, cx.rank(cache));
    if axis == 0 {
        return Err(Refusal::new("its axis is that of the batch"));
    }
    let circular = match cx.text("mode", "linear").as_ref() {
        "linear" => false,
        "circular" => true,
        other => return Err(Refusal::new(format!("mode=`{other}` is not known"))),
    };
    let length = cx.extent(update, axis)?;
    let mut places = cx.count_to(length)?;
    if let Some(first) = cx.opt(2) {
        let first = cx.unsqueeze(first, &[1])?;
        places = cx.binary(BinaryKind::Add, first, places)?;
        if circular {
            let extent = cx.extent(cache, axis)?;
            places = cx.binary(BinaryKind::Mod, places, extent)?;
        }
    }
    // [batch or nothing, length] among the axes of the update.
    let between = if cx.rank(places) == 2 { 1..axis } else { 0..axis };
    let places = spread(cx, places, between.chain(axis + 1..rank))?;
    let shape = cx.shape_of(update)?;
    let places = cx.step("expand", Expand {}, [places, shape])?;
    cx.add(ScatterElements { axis: signed(axis), reduction: Reduction::Replace }, [cache, places, update])
}

/// The value with axes of extent 1 at these places, if any.
fn spread(cx: &mut NodeCx, x: ValueId, axes: impl Iterator<Item = usize>) -> Result<ValueId, Refusal> {
    let axes: Vec<i64> = axes.map(signed).collect();
    if axes.is_empty() { Ok(x) } else { cx.unsqueeze(x, &axes) }
}
