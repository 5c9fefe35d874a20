//! The windows that convolutions and pools slide over images.

use sora_ir::ops::{BinaryKind, Concat, Pad, PadMode, Shape};
use sora_ir::{Dim, ValueId};

use super::node::NodeCx;
use crate::error::Refusal;
use crate::tensor::signed;

/// The geometry that all windowed operators share.
pub(super) struct Window {
    pub(super) kernel: Vec<usize>,
    pub(super) strides: Vec<usize>,
    pub(super) dilations: Vec<usize>,
    pub(super) pads: Vec<usize>,
}

impl Window {
    /// Reads strides, dilations and padding for a window of `kernel` over the spatial axes of `x`, and gives what it slides
    /// over: `x` itself, or, where its padding follows from extents that are known at run time only, `x` with as many
    /// elements `fill` around it.
    pub(super) fn over(
        cx: &mut NodeCx,
        x: ValueId,
        kernel: Vec<usize>,
        fill: f64,
    ) -> Result<(Self, ValueId), Refusal> {
        let extents = spatial(cx, x)?.to_vec();
        let rank = extents.len();
        let strides = cx.sizes("strides", vec![1; rank])?;
        let dilations = cx.sizes("dilations", vec![1; rank])?;
        if [&kernel, &strides, &dilations].iter().any(|list| list.len() != rank || list.contains(&0)) {
            return Err(Refusal::new(format!(
                "kernel {kernel:?}, strides {strides:?} and dilations {dilations:?} must be {rank} positive numbers each"
            )));
        }
        let mut window = Window { kernel, strides, dilations, pads: vec![0; 2 * rank] };
        let lower = match cx.text("auto_pad", "NOTSET").as_ref() {
            "NOTSET" | "" => {
                window.pads = cx.sizes("pads", window.pads)?;
                if window.pads.len() != 2 * rank {
                    let count = window.pads.len();
                    return Err(Refusal::new(format!("{count} pads do not fit {rank} spatial axes")));
                }
                return Ok((window, x));
            }
            "VALID" => return Ok((window, x)),
            "SAME_UPPER" => false,
            "SAME_LOWER" => true,
            other => return Err(Refusal::new(format!("auto_pad=`{other}` is not known"))),
        };
        match window.same(&extents, lower) {
            Some(pads) => Ok((Window { pads, ..window }, x)),
            None => {
                let pads = window.same_at_run_time(cx, x, lower)?;
                let fill = cx.scalar("fill", cx.dtype(x), fill);
                let padded = cx.step("pad", Pad { mode: PadMode::Constant }, [x, pads, fill])?;
                Ok((window, padded))
            }
        }
    }

    /// By axis: the extent of the window less one, and the stride. A window of one element needs no padding with any
    /// stride, as with stride 1.
    fn steps(&self) -> impl Iterator<Item = (usize, usize)> {
        let axes = self.kernel.iter().zip(&self.strides).zip(&self.dilations);
        axes.map(|((&kernel, &stride), &dilation)| match (kernel - 1).saturating_mul(dilation) {
            0 => (0, 1),
            reach => (reach, stride),
        })
    }

    /// The padding that gives `ceil(extent / stride)` positions: an odd one goes after the end, or before the
    /// beginning with `lower`. `None` where it depends on an extent that is not known: with a stride of 1 it does not.
    fn same(&self, extents: &[Dim], lower: bool) -> Option<Vec<usize>> {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (extent, (reach, stride)) in extents.iter().zip(self.steps()) {
            let total = match stride {
                1 => reach,
                _ => {
                    let extent = extent.known()?;
                    let covered = (extent.div_ceil(stride).saturating_sub(1)).saturating_mul(stride);
                    covered.saturating_add(1).saturating_add(reach).saturating_sub(extent)
                }
            };
            let half = if lower { total.div_ceil(2) } else { total / 2 };
            before.push(half);
            after.push(total - half);
        }
        Some([before, after].concat())
    }

    /// As [`Window::same`], as a list for Pad that the extents of `x` give when the network runs. It is written in such
    /// a way that shape inference finds `ceil(extent / stride)` positions.
    fn same_at_run_time(&self, cx: &mut NodeCx, x: ValueId, lower: bool) -> Result<ValueId, Refusal> {
        let list = |f: &dyn Fn(i64, i64) -> i64| -> Vec<i64> {
            self.steps().map(|(reach, stride)| f(signed(reach), signed(stride))).collect()
        };
        let extents = cx.step("extents", Shape { start: 2, end: None }, [x])?;
        let strides = cx.make_ints("strides", &list(&|_, stride| stride));
        let round = cx.make_ints("round", &list(&|_, stride| stride - 1));
        let beyond =
            cx.make_ints("beyond", &list(&|reach, stride| reach.saturating_add(1).saturating_sub(stride)));
        let sum = cx.binary(BinaryKind::Add, extents, round)?;
        let positions = cx.binary(BinaryKind::Div, sum, strides)?;
        let covered = cx.binary(BinaryKind::Mul, positions, strides)?;
        let last = cx.binary(BinaryKind::Add, covered, beyond)?;
        let mut total = cx.binary(BinaryKind::Sub, last, extents)?;
        // Steps longer than the window may leave elements over.
        if self.steps().any(|(reach, stride)| reach + 1 < stride) {
            let zero = cx.make_ints("zero", &[0]);
            total = cx.binary(BinaryKind::Max, total, zero)?;
        }
        let (two, round) = (cx.make_ints("two", &[2]), cx.make_ints("odd", &[i64::from(lower)]));
        let half = cx.binary(BinaryKind::Add, total, round)?;
        let before = cx.binary(BinaryKind::Div, half, two)?;
        let after = cx.binary(BinaryKind::Sub, total, before)?;
        let outer = cx.make_ints("outer", &[0, 0]);
        cx.step("pads", Concat { axis: 0 }, [outer, before, outer, after])
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
pub(super) fn kernel_of(cx: &NodeCx, weights: ValueId) -> Result<Vec<usize>, Refusal> {
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
