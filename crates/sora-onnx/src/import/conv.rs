//! Convolution and pooling.

use sora_ir::ValueId;
use sora_ir::ops::{
    AveragePool, BinaryKind, Concat, Conv, ConvTranspose, Expand, MaxPool, MaxPoolIndices, Pad, PadMode,
    Reduce, ReduceKind, Reduction, ScatterElements, Shape, UnaryKind,
};
use sora_tensor::DType;

use super::node::{Built, NodeCx, size};
use super::rows::{Row, onnx};
use super::window::{Window, kernel_of, spatial};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[
    onnx("Conv", conv),
    onnx("ConvTranspose", conv_transpose),
    onnx("AveragePool", |cx| Ok(vec![average_pool(cx, cx.input(0)?)?])),
    onnx("MaxPool", max_pool),
    onnx("GlobalAveragePool", |cx| global(cx, ReduceKind::Mean)),
    onnx("GlobalMaxPool", |cx| global(cx, ReduceKind::Max)),
    onnx("GlobalLpPool", |cx| match norm_order(cx) {
        1.0 => global(cx, ReduceKind::L1),
        2.0 => global(cx, ReduceKind::L2),
        p => {
            let x = cx.input(0)?;
            let powers = powers(cx, x, p)?;
            let op = global_of(cx, x, ReduceKind::Sum)?;
            let sum = cx.step("sum", op, [powers])?;
            Ok(vec![root(cx, sum, p)?])
        }
    }),
    onnx("LpPool", lp_pool),
    onnx("MaxUnpool", max_unpool),
];

/// The convolution that the attributes describe, for weights of any dtype, and what it slides over: `x`, perhaps padded.
pub(super) fn conv_of(cx: &mut NodeCx, x: ValueId, weights: ValueId) -> Result<(Conv, ValueId), Refusal> {
    let kernel = kernel_of(cx, weights)?;
    let (Window { strides, dilations, pads, .. }, x) = Window::over(cx, x, kernel, 0.0)?;
    let group = size(cx.int("group", 1), "group")?;
    Ok((Conv { strides, pads, dilations, group }, x))
}

fn conv(cx: &mut NodeCx) -> Built {
    let (op, x) = conv_of(cx, cx.input(0)?, cx.input(1)?)?;
    cx.add(op, [Some(x), cx.opt(1), cx.opt(2)])
}

/// Padding may also be given by the output's shape, or by the rule that output = input · stride.
fn conv_transpose(cx: &mut NodeCx) -> Built {
    let (x, weights) = (cx.input(0)?, cx.input(1)?);
    let kernel = kernel_of(cx, weights)?;
    let rank = spatial(cx, x)?.len();
    let strides = cx.sizes("strides", vec![1; rank])?;
    let dilations = cx.sizes("dilations", vec![1; rank])?;
    let mut output_padding = cx.sizes("output_padding", vec![0; rank])?;
    if [&kernel, &strides, &dilations].iter().any(|list| list.len() != rank || list.contains(&0))
        || output_padding.len() != rank
    {
        return Err(Refusal::new(format!(
            "kernel, strides, dilations and output_padding must have {rank} entries"
        )));
    }
    let auto_pad = cx.text("auto_pad", "NOTSET").into_owned();
    let wanted = cx.ints("output_shape").map(|shape| {
        // Older files include batch and channels.
        shape.get(shape.len().saturating_sub(rank)..).unwrap_or_default().to_vec()
    });
    let pads = match (&wanted, auto_pad.as_str()) {
        (None, "NOTSET" | "") => cx.sizes("pads", vec![0; 2 * rank])?,
        (None, "VALID") => vec![0; 2 * rank],
        (wanted, _) => {
            let (mut before, mut after) = (Vec::new(), Vec::new());
            for (axis, extent) in spatial(cx, x)?.iter().enumerate() {
                let at = |list: &[usize]| signed(list.get(axis).copied().unwrap_or(1));
                let reach = (at(&kernel) - 1).saturating_mul(at(&dilations)) + 1 + at(&output_padding);
                let total = match wanted.as_ref().map(|w| w.get(axis).copied()) {
                    None => reach - at(&strides),
                    Some(Some(wanted)) => {
                        let extent = extent.constant().ok_or_else(|| {
                            Refusal::new(format!("output_shape needs the extent {extent} as a number"))
                        })?;
                        (extent - 1).saturating_mul(at(&strides)).saturating_add(reach).saturating_sub(wanted)
                    }
                    Some(None) => return Err(Refusal::new(format!("output_shape must have {rank} entries"))),
                };
                // A wanted extent beyond the last window's end is filled after it.
                if let (1.., Some(padding)) = (-total, output_padding.get_mut(axis)) {
                    *padding += size(-total, "the output's padding")?;
                }
                let total = size(total.max(0), "the total padding")?;
                let half = if auto_pad == "SAME_UPPER" { total / 2 } else { total.div_ceil(2) };
                before.push(half);
                after.push(total - half);
            }
            before.extend(after);
            before
        }
    };
    let group = size(cx.int("group", 1), "group")?;
    let op = ConvTranspose { strides, pads, dilations, output_padding, group };
    cx.add(op, cx.inputs_to(3))
}

/// The mean of each window over the spatial axes of `x`.
pub(super) fn average_pool(cx: &mut NodeCx, x: ValueId) -> Result<ValueId, Refusal> {
    let counted = cx.flag("count_include_pad", false);
    let (op, around) = average(cx, x, counted)?;
    let mean = cx.op(op, [around])?;
    if counted || around == x {
        return Ok(mean);
    }
    // The padding is part of what is averaged: the mean of ones padded alike is the part of each window that counts.
    let (one, single) = (cx.scalar("one", cx.dtype(x), 1.0), cx.make_ints("single", &[1, 1]));
    let extents = cx.step("extents", Shape { start: 2, end: None }, [x])?;
    let shape = cx.step("shape", Concat { axis: 0 }, [single, extents])?;
    let ones = cx.step("ones", Expand {}, [one, shape])?;
    let (op, around) = average(cx, ones, counted)?;
    let share = cx.step("share", op, [around])?;
    cx.binary(BinaryKind::Div, mean, share)
}

/// The pooling that the attributes describe, and what it slides over: `x`, perhaps padded.
fn average(cx: &mut NodeCx, x: ValueId, counted: bool) -> Result<(AveragePool, ValueId), Refusal> {
    let kernel = cx.sizes("kernel_shape", Vec::new())?;
    let (Window { kernel, strides, dilations, pads }, around) = Window::over(cx, x, kernel, 0.0)?;
    let (ceil_mode, count_include_pad) = (cx.flag("ceil_mode", false), counted || around != x);
    Ok((AveragePool { kernel, strides, pads, dilations, ceil_mode, count_include_pad }, around))
}

/// The second output, the positions of the maxima, is an operator of its own.
fn max_pool(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let kernel = cx.sizes("kernel_shape", Vec::new())?;
    let (Window { kernel, strides, dilations, pads }, around) =
        Window::over(cx, x, kernel, f64::NEG_INFINITY)?;
    let ceil_mode = cx.flag("ceil_mode", false);
    if cx.reads(1) && around != x {
        let why = "positions of maxima under auto_pad need the input's extents as numbers";
        return Err(Refusal::new(why).hint("fix the input's height and width when exporting the model"));
    }
    let indices = cx.reads(1).then(|| MaxPoolIndices {
        kernel: kernel.clone(),
        strides: strides.clone(),
        pads: pads.clone(),
        dilations: dilations.clone(),
        ceil_mode,
        column_major: cx.flag("storage_order", false),
    });
    let mut outputs = cx.add(MaxPool { kernel, strides, pads, dilations, ceil_mode }, [around])?;
    if let Some(indices) = indices {
        outputs.push(cx.step("indices", indices, [x])?);
    }
    Ok(outputs)
}

/// Elements scattered over zeros by their offsets into the image that was pooled. One that is wanted larger gets zeros
/// after its end.
fn max_unpool(cx: &mut NodeCx) -> Built {
    let (x, indices) = (cx.input(0)?, cx.input(1)?);
    let kernel = cx.sizes("kernel_shape", Vec::new())?;
    let (window, _) = Window::over(cx, x, kernel, 0.0)?;
    let known = cx.ty(x).known_shape();
    let shape = known.ok_or_else(|| {
        Refusal::new(format!("it needs the extents of its input {} as numbers", cx.ty(x)))
            .hint("fix the input's batch, height and width when exporting the model")
    })?;
    let rank = window.kernel.len();
    let mut image: Vec<i64> = shape.iter().copied().map(signed).collect();
    for (axis, extent) in image.iter_mut().skip(2).enumerate() {
        let at = |list: &[usize], i: usize| signed(list.get(i).copied().unwrap_or(0));
        let pads = at(&window.pads, axis) + at(&window.pads, rank + axis);
        let spread = extent.saturating_sub(1).saturating_mul(at(&window.strides, axis));
        *extent = spread.saturating_sub(pads).saturating_add(at(&window.kernel, axis));
    }
    let len = image.iter().try_fold(1i64, |n, &d| n.checked_mul(size(d, "an extent").ok().map(signed)?));
    let len = len.ok_or_else(|| Refusal::new(format!("an image {image:?} is too large")))?;
    let (zero, extent) = (cx.scalar("zero", cx.dtype(x), 0.0), cx.make_ints("len", &[len]));
    let zeros = cx.step("zeros", Expand {}, [zero, extent])?;
    let (indices, values) = (cx.reshape(indices, &[-1])?, cx.reshape(x, &[-1])?);
    let op = ScatterElements { axis: 0, reduction: Reduction::Replace };
    let flat = cx.step("scatter", op, [zeros, indices, values])?;
    let unpooled = cx.reshape(flat, &image)?;
    let Some(target) = cx.opt(2) else { return Ok(vec![unpooled]) };
    let target = cx.cast(target, DType::I64)?;
    let extents = cx.make_ints("image", &image);
    let after = cx.binary(BinaryKind::Sub, target, extents)?;
    let before = cx.make_ints("before", &vec![0; image.len()]);
    let pads = cx.step("pads", Concat { axis: 0 }, [before, after])?;
    cx.add(Pad { mode: PadMode::Constant }, [unpooled, pads])
}

/// The order of a norm; a float in the oldest opset.
fn norm_order(cx: &NodeCx) -> f32 {
    match cx.attribute("p") {
        Some(p) => p.f.unwrap_or_else(|| i16::try_from(p.i.unwrap_or(0)).map_or(f32::INFINITY, f32::from)),
        None => 2.0,
    }
}

/// `|x|^p`.
fn powers(cx: &mut NodeCx, x: ValueId, p: f32) -> Result<ValueId, Refusal> {
    let order = match p {
        p if p > 0.0 && p.is_finite() => cx.scalar("p", cx.dtype(x), f64::from(p)),
        p => return Err(Refusal::new(format!("p={p} is no order of a norm"))),
    };
    let magnitude = cx.unary(UnaryKind::Abs, x)?;
    cx.binary(BinaryKind::Pow, magnitude, order)
}

/// `sum^(1/p)`.
fn root(cx: &mut NodeCx, sum: ValueId, p: f32) -> Result<ValueId, Refusal> {
    let order = cx.scalar("order", cx.dtype(sum), 1.0 / f64::from(p));
    cx.binary(BinaryKind::Pow, sum, order)
}

/// The mean of powers over windows that count their padding, times the number of a window's elements. A window that
/// may overhang gets as much more padding, since a mean leaves out what overhangs.
fn lp_pool(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let kernel = cx.sizes("kernel_shape", Vec::new())?;
    let p = norm_order(cx);
    let powers = powers(cx, x, p)?;
    let (mut window, powers) = Window::over(cx, powers, kernel, 0.0)?;
    if cx.flag("ceil_mode", false) {
        let rank = window.kernel.len();
        for (axis, after) in window.pads.iter_mut().skip(rank).enumerate() {
            let at = |list: &[usize]| list.get(axis).copied().unwrap_or(1);
            let reach = (at(&window.kernel) - 1).saturating_mul(at(&window.dilations));
            *after = reach.min(*after + at(&window.strides) - 1);
        }
    }
    let count = window.kernel.iter().fold(1.0, |n, &k| n * f64::from(u32::try_from(k).unwrap_or(u32::MAX)));
    let op = AveragePool {
        kernel: window.kernel,
        strides: window.strides,
        pads: window.pads,
        dilations: window.dilations,
        ceil_mode: false,
        count_include_pad: true,
    };
    let mean = cx.step("mean", op, [powers])?;
    let count = cx.scalar("count", cx.dtype(x), count);
    let sum = cx.binary(BinaryKind::Mul, mean, count)?;
    Ok(vec![root(cx, sum, p)?])
}

fn global(cx: &mut NodeCx, kind: ReduceKind) -> Built {
    let x = cx.input(0)?;
    let op = global_of(cx, x, kind)?;
    cx.add(op, [x])
}

/// A reduction over all spatial axes that keeps them.
pub(super) fn global_of(cx: &NodeCx, x: ValueId, kind: ReduceKind) -> Result<Reduce, Refusal> {
    let rank = signed(spatial(cx, x)?.len());
    Ok(Reduce { kind, axes: (2..2 + rank).collect(), keep_dims: true })
}
