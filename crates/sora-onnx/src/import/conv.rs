//! Convolution and pooling.

use sora_ir::ops::{AveragePool, Conv, ConvTranspose, MaxPool, Reduce, ReduceKind};
use sora_ir::{Dim, ValueId};

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
    onnx("GlobalLpPool", |cx| match cx.int("p", 2) {
        1 => global(cx, ReduceKind::L1),
        2 => global(cx, ReduceKind::L2),
        p => Err(Refusal::new(format!("p={p} is not supported"))),
    }),
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
fn spatial<'a>(cx: &'a NodeCx, x: ValueId) -> Result<&'a [Dim], Refusal> {
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

/// The second output, the positions of the maxima, is not computed.
fn max_pool(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let window = Window::read(cx, x, cx.sizes("kernel_shape", Vec::new())?)?;
    let op = MaxPool {
        kernel: window.kernel,
        strides: window.strides,
        pads: window.pads,
        dilations: window.dilations,
        ceil_mode: cx.flag("ceil_mode", false),
    };
    cx.add(op, [x])
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
