//! Convolution and pooling.

use sora_ir::ops::{
    AveragePool, BinaryKind, Concat, Conv, ConvTranspose, Expand, MaxPool, MaxPoolIndices, Pad, PadMode,
    Reduce, ReduceKind, Reduction, ScatterElements, UnaryKind,
};
use sora_ir::{Dim, ValueId};
use sora_tensor::DType;

use super::node::{Built, NodeCx, size};
use super::rows::{Row, onnx};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[
    onnx("Conv", conv),
    onnx("ConvTranspose", conv_transpose),
    onnx("AveragePool", |cx| {
        let op = average_pool_of(cx, cx.input(0)?)?;
        cx.add(op, [cx.input(0)?])
    }),
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

/// The geometry that all windowed operators share.
pub(super) struct Window {
    pub(super) kernel: Vec<usize>,
    pub(super) strides: Vec<usize>,
    pub(super) dilations: Vec<usize>,
    pub(super) pads: Vec<usize>,
}

impl Window {
    /// Reads strides, dilations and padding for a window of `kernel` over the spatial axes of `x`.
    fn read(cx: &NodeCx, x: ValueId, kernel: Vec<usize>) -> Result<Self, Refusal> {
        let rank = spatial(cx, x)?.len();
        let strides = cx.sizes("strides", vec![1; rank])?;
        let dilations = cx.sizes("dilations", vec![1; rank])?;
        if [&kernel, &strides, &dilations].iter().any(|list| list.len() != rank || list.contains(&0)) {
            return Err(Refusal::new(format!(
                "kernel {kernel:?}, strides {strides:?} and dilations {dilations:?} must be {rank} positive numbers each"
            )));
        }
        let window = Window { kernel, strides, dilations, pads: vec![0; 2 * rank] };
        let pads = match cx.text("auto_pad", "NOTSET").as_ref() {
            "NOTSET" | "" => cx.sizes("pads", vec![0; 2 * rank])?,
            "VALID" => vec![0; 2 * rank],
            "SAME_UPPER" => window.same(spatial(cx, x)?, false)?,
            "SAME_LOWER" => window.same(spatial(cx, x)?, true)?,
            other => return Err(Refusal::new(format!("auto_pad=`{other}` is not known"))),
        };
        if pads.len() != 2 * rank {
            return Err(Refusal::new(format!("{} pads do not fit {rank} spatial axes", pads.len())));
        }
        Ok(Window { pads, ..window })
    }

    /// The padding that gives `ceil(extent / stride)` positions: an odd one goes after the end, or before the
    /// beginning with `lower`. The extent matters only where the stride is not 1.
    fn same(&self, extents: &[Dim], lower: bool) -> Result<Vec<usize>, Refusal> {
        let mut before = Vec::new();
        let mut after = Vec::new();
        for (((extent, &kernel), &stride), &dilation) in
            extents.iter().zip(&self.kernel).zip(&self.strides).zip(&self.dilations)
        {
            let reach = (kernel - 1).saturating_mul(dilation);
            let total = match (stride, extent.known()) {
                (1, _) => reach,
                (_, Some(extent)) => {
                    let covered = (extent.div_ceil(stride).saturating_sub(1)) * stride + 1;
                    (covered.saturating_add(reach)).saturating_sub(extent)
                }
                (_, None) => {
                    let why = format!("auto_pad with stride {stride} needs the extent {extent} as a number");
                    let hint = "fix the input's height and width when exporting the model";
                    return Err(Refusal::new(why).hint(hint));
                }
            };
            let half = if lower { total.div_ceil(2) } else { total / 2 };
            before.push(half);
            after.push(total - half);
        }
        before.extend(after);
        Ok(before)
    }
}

/// The extents after batch and channels.
pub(super) fn spatial<'a>(cx: &'a NodeCx, x: ValueId) -> Result<&'a [Dim], Refusal> {
    let ty = cx.ty(x);
    ty.shape.get(2..).filter(|dims| !dims.is_empty()).ok_or_else(|| {
        Refusal::new(format!("its input {ty} must have batch, channels and at least one spatial axis"))
    })
}

/// The window's extents: the attribute, or those of the weights.
fn kernel_of(cx: &NodeCx, weights: ValueId) -> Result<Vec<usize>, Refusal> {
    let ty = cx.ty(weights);
    let extents: Option<Vec<usize>> =
        ty.shape.get(2..).and_then(|dims| dims.iter().map(Dim::known).collect());
    match (cx.attribute("kernel_shape"), extents) {
        (None, Some(extents)) => Ok(extents),
        (None, None) => Err(Refusal::new(format!("its kernel's extents are unknown: weights {ty}"))),
        (Some(_), found) => {
            let kernel = cx.sizes("kernel_shape", Vec::new())?;
            match found {
                Some(found) if found != kernel => {
                    Err(Refusal::new(format!("kernel_shape={kernel:?} differs from the weights {ty}")))
                }
                _ => Ok(kernel),
            }
        }
    }
}

/// The convolution that the attributes describe, for an input and weights of any dtype.
pub(super) fn conv_of(cx: &NodeCx, x: ValueId, weights: ValueId) -> Result<Conv, Refusal> {
    let window = Window::read(cx, x, kernel_of(cx, weights)?)?;
    let group = size(cx.int("group", 1), "group")?;
    Ok(Conv { strides: window.strides, pads: window.pads, dilations: window.dilations, group })
}

fn conv(cx: &mut NodeCx) -> Built {
    let op = conv_of(cx, cx.input(0)?, cx.input(1)?)?;
    cx.add(op, cx.inputs_to(3))
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

/// The pooling that the attributes describe, over the spatial axes of `x`.
pub(super) fn average_pool_of(cx: &NodeCx, x: ValueId) -> Result<AveragePool, Refusal> {
    let window = Window::read(cx, x, cx.sizes("kernel_shape", Vec::new())?)?;
    Ok(AveragePool {
        kernel: window.kernel,
        strides: window.strides,
        pads: window.pads,
        dilations: window.dilations,
        ceil_mode: cx.flag("ceil_mode", false),
        count_include_pad: cx.flag("count_include_pad", false),
    })
}

/// The second output, the positions of the maxima, is an operator of its own.
fn max_pool(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let Window { kernel, strides, dilations, pads } =
        Window::read(cx, x, cx.sizes("kernel_shape", Vec::new())?)?;
    let ceil_mode = cx.flag("ceil_mode", false);
    let indices = cx.reads(1).then(|| MaxPoolIndices {
        kernel: kernel.clone(),
        strides: strides.clone(),
        pads: pads.clone(),
        dilations: dilations.clone(),
        ceil_mode,
        column_major: cx.flag("storage_order", false),
    });
    let mut outputs = cx.add(MaxPool { kernel, strides, pads, dilations, ceil_mode }, [x])?;
    if let Some(indices) = indices {
        outputs.push(cx.step("indices", indices, [x])?);
    }
    Ok(outputs)
}

/// Elements scattered over zeros by their offsets into the image that was pooled. One that is wanted larger gets zeros
/// after its end.
fn max_unpool(cx: &mut NodeCx) -> Built {
    let (x, indices) = (cx.input(0)?, cx.input(1)?);
    let window = Window::read(cx, x, cx.sizes("kernel_shape", Vec::new())?)?;
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
    let mut window = Window::read(cx, x, cx.sizes("kernel_shape", Vec::new())?)?;
    if cx.flag("ceil_mode", false) {
        let rank = window.kernel.len();
        for (axis, after) in window.pads.iter_mut().skip(rank).enumerate() {
            let at = |list: &[usize]| list.get(axis).copied().unwrap_or(1);
            let reach = (at(&window.kernel) - 1).saturating_mul(at(&window.dilations));
            *after = reach.min(*after + at(&window.strides) - 1);
        }
    }
    let p = norm_order(cx);
    let powers = powers(cx, x, p)?;
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
