//! Quantization to integers, and how scales lie along a tensor.

use sora_tensor::{DType, Tensor};

use super::attrs;
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::ops::{BinaryKind, UnaryKind};
use crate::{EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// `saturate(round(x / scale) + zero_point)`, halves rounded to even; for a small float type
    /// `saturate(round(x / scale + zero_point))`. Inputs: x, scale of the same float type (not `f64`), optional zero
    /// point of the type `to` (0 where absent). Scale and zero point have one shape: one element for the whole tensor,
    /// `[C]` for slices along `axis`, or the shape of x with another extent of `axis`: one element for each block of
    /// a line along the axis. All blocks but the last have `⌈extent / blocks⌉` elements; one block is a whole line.
    /// The quotient is computed in `f32`, as runtimes do, so that values next to a rounding boundary fall on the same
    /// side; NaN becomes the zero point, or NaN where there is one. Source: ONNX QuantizeLinear.
    pub struct QuantizeLinear {
        /// The axis of a `[C]` scale, or the one along which a scale of the rank of x has one element a block;
        /// negative counts from the end. Ignored for a scale of one element.
        axis: i64,
        /// The type of the result: an integer of up to 16 bits, i32, or a small float other than f8e8m0.
        to: DType,
    }
}

/// The types that have scales.
pub(crate) const QUANTIZED: [DType; 14] = [
    DType::I8,
    DType::U8,
    DType::I16,
    DType::U16,
    DType::I32,
    DType::I4,
    DType::U4,
    DType::I2,
    DType::U2,
    DType::F8E4M3FN,
    DType::F8E4M3FNUZ,
    DType::F8E5M2,
    DType::F8E5M2FNUZ,
    DType::F4E2M1,
];

/// How many elements of an axis share one of `count` scales; `None` when they do not divide so.
fn block(extent: usize, count: usize) -> Option<usize> {
    let block = extent.div_ceil(count.max(1)).max(1);
    (extent.div_ceil(block) == count || extent == 0 && count == 1).then_some(block)
}

/// Checks that scale and zero point fit a tensor `x` whose elements, or those it becomes, have type `quantized`.
pub(crate) fn check_scale(
    x: &TensorType,
    scale: &TensorType,
    zero_point: Option<&TensorType>,
    quantized: DType,
    axis: i64,
) -> Result<(), Mismatch> {
    ensure!(QUANTIZED.contains(&quantized), "{quantized} is none of the quantized types {QUANTIZED:?}");
    ensure!(
        matches!(scale.dtype, DType::F32 | DType::F16 | DType::BF16),
        "the scale must be f32, f16 or bf16, found {scale}"
    );
    if scale.known_len() != Some(1) {
        let at = resolve_axis(axis, x.rank())?;
        if scale.rank() == x.rank() {
            let others = (0..x.rank()).filter(|&i| i != at);
            let fits = others.into_iter().all(|i| scale.shape[i].compatible(&x.shape[i]))
                && match (x.shape[at].known(), scale.shape[at].known()) {
                    (Some(extent), Some(count)) => block(extent, count).is_some(),
                    _ => true,
                };
            ensure!(fits, "scale {scale} does not fit blocks along axis {axis} of {x}");
        } else {
            let fits = scale.rank() == 1 && scale.shape[0].compatible(&x.shape[at]);
            ensure!(fits, "scale {scale} does not fit axis {axis} of {x}");
        }
    }
    if let Some(zero_point) = zero_point {
        let expected = TensorType { dtype: quantized, shape: scale.shape.clone() };
        ensure!(expected.accepts(zero_point), "the zero point must be {expected}, found {zero_point}");
    }
    Ok(())
}

/// Calls `visit` with each element's offset and the offset of its scale.
pub(crate) fn for_each_scaled(
    x: &Tensor,
    scale: &Tensor,
    axis: i64,
    mut visit: impl FnMut(usize, usize),
) -> Result<(), Mismatch> {
    if x.is_empty() || scale.len() == 1 {
        (0..x.len()).for_each(|i| visit(i, 0));
        return Ok(());
    }
    let axis = resolve_axis(axis, x.rank())?;
    let (inner, extent): (usize, usize) = (x.shape()[axis + 1..].iter().product(), x.shape()[axis]);
    let count = if scale.rank() == x.rank() { scale.shape()[axis] } else { scale.len() };
    let block = block(extent, count).ok_or_else(|| Mismatch::new("the scale does not fit"))?;
    for i in 0..x.len() {
        let along = i / inner % extent / block;
        visit(
            i,
            if scale.rank() == 1 {
                along
            } else {
                (i / (inner * extent) * count + along) * inner + i % inner
            },
        );
    }
    Ok(())
}

impl OpDef for QuantizeLinear {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=3)?;
        let (x, scale) = (cx.ty(0)?, cx.ty(1)?);
        ensure!(x.dtype == scale.dtype, "{x} and scale {scale} differ in dtype");
        check_scale(x, scale, cx.opt(2), self.to, self.axis)?;
        Ok(vec![TensorType { dtype: self.to, shape: x.shape.clone() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (x, scale) = (cx.get(0)?, cx.get(1)?);
        let (values, scales) = (x.to_f32s(), scale.to_f32s());
        if self.to.is_float() {
            let zero_points = cx.opt(2).map(Tensor::to_f32s);
            let mut out = vec![0.0; x.len()];
            for_each_scaled(x, scale, self.axis, |i, slice| {
                let zero_point = zero_points.as_ref().map_or(0.0, |z| z[slice]);
                out[i] = f64::from(values[i] / scales[slice] + zero_point);
            })?;
            return Ok(vec![Tensor::from_f64s(self.to, x.shape(), &out)?]);
        }
        let (low, high) = self.to.int_range().unwrap_or_default();
        let zero_points = cx.opt(2).map(Tensor::to_i128s);
        let mut out = vec![0; x.len()];
        for_each_scaled(x, scale, self.axis, |i, slice| {
            let rounded = (values[i] / scales[slice]).round_ties_even() as i128;
            let zero_point = zero_points.as_ref().map_or(0, |z| z[slice]);
            out[i] = rounded.saturating_add(zero_point).clamp(low, high);
        })?;
        Ok(vec![Tensor::from_i128s(self.to, x.shape(), &out)?])
    }

    /// Levels carry gradients as if they were not rounded, and none where they saturate (the straight-through estimator of Bengio et
    /// al. 2013). Together with that of DequantizeLinear, the gradient of the scale is that of a learnt step size. Source: Esser et
    /// al. 2020 (LSQ), equations 3 and 5.
    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let Some((low, high)) = self.to.int_range() else {
            return Err(Mismatch::new(format!("has no gradient through {}", self.to)));
        };
        let (x, scale, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let line = cx.along(scale, x, self.axis)?;
        let quotient = cx.div(x, line)?;
        let mut bounds = [cx.number(low as f64, x)?, cx.number(high as f64, x)?];
        if let Some(zero_point) = cx.opt(2) {
            let dtype = cx.dtype(x);
            let zero_point = cx.cast(zero_point, dtype)?;
            let zero_point = cx.along(zero_point, x, self.axis)?;
            for bound in &mut bounds {
                *bound = cx.sub(*bound, zero_point)?;
            }
        }
        let above = cx.binary(BinaryKind::Greater, quotient, bounds[0])?;
        let below = cx.binary(BinaryKind::Less, quotient, bounds[1])?;
        let kept = cx.keep(above, dy)?;
        let kept = cx.keep(below, kept)?;
        let dx = cx.div(kept, line)?;
        let dscale = if cx.wants(1) {
            let product = cx.mul(dx, quotient)?;
            let sum = cx.sum_to_line(product, scale, self.axis)?;
            Some(cx.unary(UnaryKind::Neg, sum)?)
        } else {
            None
        };
        Ok(vec![Some(dx), dscale, None])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for to in QUANTIZED {
            for (lie, with_zero_point) in
                [Lie::Whole, Lie::Slices, Lie::Blocks].into_iter().flat_map(|lie| [(lie, false), (lie, true)])
            {
                let rank = g.size(1, 4);
                let shape = g.shape(rank);
                let axis = g.size(0, rank - 1);
                let (scale, zero_point) = random_scale(g, to, &shape, axis, lie, with_zero_point);
                let x = Tensor::zeros(DType::F32, &shape).unwrap_or_else(|_| Tensor::scalar(0f32));
                // Levels over the range and a little beyond. The fraction stays away from one half, where the
                // rounding of the quotient would decide.
                let (low, high) = to.int_range().unwrap_or((-8, 8));
                let reach = (high - low).min(200_000) as f64;
                let middle = if low == 0 { reach / 2.0 } else { 0.0 };
                let (scales, zero_points) = (scale.to_f64s(), zero_point.as_ref().map(Tensor::to_f64s));
                let mut values = vec![0f32; x.len()];
                let axis = i64::try_from(axis).unwrap_or(0);
                let filled = for_each_scaled(&x, &scale, axis, |i, slice| {
                    let zero_point = zero_points.as_ref().map_or(0.0, |z| z[slice]);
                    let level = g.real(-0.6 * reach, 0.6 * reach).round() + middle - zero_point;
                    values[i] = ((level + g.real(-0.4, 0.4)) * scales[slice]) as f32;
                });
                if let (Ok(()), Ok(x)) = (filled, Tensor::from_slice(&shape, &values)) {
                    let zero_point = zero_point.map_or(Arg::Absent, Arg::Const);
                    let op = QuantizeLinear { axis, to };
                    cases.push(Case::new(op, [Arg::Var(x), Arg::Const(scale), zero_point]));
                }
            }
        }
        cases
    }
}

/// How a random scale lies along its tensor.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Lie {
    Whole,
    Slices,
    Blocks,
}

/// A scale for a tensor of `shape`, with or without a zero point. Accumulators (i32) have none, as ONNX asks, and 8-bit
/// floats have 0.
pub(crate) fn random_scale(
    g: &mut Gen,
    quantized: DType,
    shape: &[usize],
    axis: usize,
    lie: Lie,
    with_zero_point: bool,
) -> (Tensor, Option<Tensor>) {
    let shape: Vec<usize> = match lie {
        Lie::Whole => Vec::new(),
        Lie::Slices => vec![shape[axis]],
        Lie::Blocks => {
            let size = g.size(1, shape[axis]);
            let blocks =
                |(i, &extent): (usize, &usize)| if i == axis { extent.div_ceil(size) } else { extent };
            shape.iter().enumerate().map(blocks).collect()
        }
    };
    let scale = g.uniform(DType::F32, &shape, 0.005, 0.1);
    let (low, high) = quantized.int_range().unwrap_or((0, 0));
    let (low, high) = (low.max(-100) as f64, high.min(100) as f64);
    let with_zero_point = with_zero_point && quantized != DType::I32;
    let zero_point = with_zero_point.then(|| g.uniform(quantized, &shape, low, high));
    (scale, zero_point)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantize(to: DType, axis: i64, x: &Tensor, scale: &Tensor, zero_point: Option<&Tensor>) -> Vec<i128> {
        let op = QuantizeLinear { axis, to };
        op.eval(&EvalCx { inputs: &[Some(x), Some(scale), zero_point] }).unwrap().remove(0).to_i128s()
    }

    #[test]
    fn ties_go_to_even_before_the_zero_point_is_added_and_the_range_saturates() {
        let x = Tensor::vector(&[1f32, 3., -1., -3., 1000., -1000., f32::INFINITY, f32::NAN]);
        let (two, one) = (Tensor::scalar(2f32), Tensor::scalar(1u8));
        assert_eq!(quantize(DType::U8, 0, &x, &two, Some(&one)), [1, 3, 1, 0, 255, 0, 255, 1]);
        assert_eq!(quantize(DType::I8, 0, &x, &two, None), [0, 2, 0, -2, 127, -128, 127, 0]);
        assert_eq!(quantize(DType::I16, 0, &x, &two, None), [0, 2, 0, -2, 500, -500, 32767, 0]);
    }

    /// In `f64` the quotient lies below the tie and would round down; its nearest `f32` is the tie.
    #[test]
    fn the_quotient_is_that_of_f32() {
        let mut g = Gen::new(1);
        let mut differ = 0;
        for _ in 0..200_000 {
            let scale = g.real(0.001, 1.0) as f32;
            let x = ((g.size(0, 60) as f64 * 2.0 + 0.5) * f64::from(scale)) as f32;
            let (single, double) = (x / scale, f64::from(x) / f64::from(scale));
            if f64::from(single.round_ties_even()) == double.round_ties_even() {
                continue;
            }
            differ += 1;
            let (x, scale) = (Tensor::vector(&[x]), Tensor::scalar(scale));
            assert_eq!(quantize(DType::U8, 0, &x, &scale, None), [single.round_ties_even() as i128]);
        }
        assert!(differ > 0);
    }

    #[test]
    fn blocks_along_an_axis_have_their_own_scale() {
        let x = Tensor::from_slice(&[1, 5], &[1f32, 2., 3., 4., 5.]).unwrap();
        let scale = Tensor::from_slice(&[1, 3], &[1f32, 0.5, 0.25]).unwrap();
        assert_eq!(quantize(DType::I4, 1, &x, &scale, None), [1, 2, 6, 7, 7]);
        let floats = QuantizeLinear { axis: 1, to: DType::F4E2M1 };
        let found = floats.eval(&EvalCx { inputs: &[Some(&x), Some(&scale)] }).unwrap();
        assert_eq!(found[0].to_f64s(), [1., 2., 6., 6., 6.]);
    }

    #[test]
    fn slices_along_an_axis_have_their_own_scale() {
        let x = Tensor::from_slice(&[2, 3], &[1f32, 2., 3., 4., 5., 6.]).unwrap();
        let (columns, zero) = (Tensor::vector(&[1f32, 2., 3.]), Tensor::vector(&[10i8, 20, 30]));
        assert_eq!(quantize(DType::I8, -1, &x, &columns, Some(&zero)), [11, 21, 31, 14, 22, 32]);
        let rows = Tensor::vector(&[1f32, 0.5]);
        assert_eq!(quantize(DType::I8, 0, &x, &rows, None), [1, 2, 3, 8, 10, 12]);
        // Lines along the last axis are the slices of the first one, and the other way round.
        let lines = Tensor::from_slice(&[2, 1], &[1f32, 0.5]).unwrap();
        assert_eq!(quantize(DType::I8, -1, &x, &lines, None), quantize(DType::I8, 0, &x, &rows, None));
        let lines = Tensor::from_slice(&[1, 3], &[1f32, 2., 3.]).unwrap();
        assert_eq!(quantize(DType::I8, 0, &x, &lines, None), quantize(DType::I8, 1, &x, &columns, None));
        let op = QuantizeLinear { axis: 1, to: DType::I8 };
        let refuse = |scale: &Tensor, zero_point: Option<&Tensor>| {
            EvalCx { inputs: &[Some(&x), Some(scale), zero_point] }.infer(&op).is_err()
        };
        assert!(refuse(&rows, None));
        assert!(refuse(&lines, None));
        assert!(refuse(&columns, Some(&Tensor::vector(&[0u8, 0, 0]))));
        assert!(refuse(&columns, Some(&Tensor::scalar(0i8))));
        assert!(!refuse(&columns, Some(&zero)));
    }
}
