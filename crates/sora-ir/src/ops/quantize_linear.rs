//! Quantization to integers, and how scales lie along a tensor.

use sora_tensor::{DType, Tensor};

use super::attrs;
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// `saturate(round(x / scale) + zero_point)`, halves rounded to even. Inputs: x, scale of the same float type
    /// (not `f64`), optional zero point of the type `to` (0 where absent). Scale and zero point have one shape: one
    /// element for the whole tensor, `[C]` for slices along `axis`, or the shape of x with 1 for the extent of `axis`:
    /// one element for every line along the axis, what ONNX calls a block of the whole extent. The quotient is computed in `f32`, as
    /// runtimes do, so that values next to a rounding boundary fall on the same side; NaN becomes the zero point.
    /// Source: ONNX QuantizeLinear, per tensor, per axis and per line.
    pub struct QuantizeLinear {
        /// The axis of a `[C]` scale, or the one along which a scale of rank 2 or more has extent 1; negative counts
        /// from the end. Ignored for a scale of one element.
        axis: i64,
        /// The type of the result: i8, u8, i16, u16 or i32.
        to: DType,
    }
}

/// The integer types that have scales.
pub(crate) const QUANTIZED: [DType; 5] = [DType::I8, DType::U8, DType::I16, DType::U16, DType::I32];

/// Checks that scale and zero point fit a tensor `x` whose integers have type `integer`.
pub(crate) fn check_scale(
    x: &TensorType,
    scale: &TensorType,
    zero_point: Option<&TensorType>,
    integer: DType,
    axis: i64,
) -> Result<(), Mismatch> {
    ensure!(QUANTIZED.contains(&integer), "{integer} is none of the quantized types {QUANTIZED:?}");
    ensure!(
        matches!(scale.dtype, DType::F32 | DType::F16 | DType::BF16),
        "the scale must be f32, f16 or bf16, found {scale}"
    );
    if scale.rank() > 1 {
        let mut shape = x.shape.clone();
        shape[resolve_axis(axis, x.rank())?] = Dim::from(1usize);
        let expected = TensorType { dtype: scale.dtype, shape };
        ensure!(
            expected.accepts(scale),
            "a scale for lines along axis {axis} of {x} must be {expected}, found {scale}"
        );
    } else if let Some(count) = scale.shape.first().filter(|count| count.constant() != Some(1)) {
        let extent = &x.shape[resolve_axis(axis, x.rank())?];
        ensure!(count.compatible(extent), "scale {scale} does not fit axis {axis} of {x}");
    }
    if let Some(zero_point) = zero_point {
        let expected = TensorType { dtype: integer, shape: scale.shape.clone() };
        ensure!(expected.accepts(zero_point), "the zero point must be {expected}, found {zero_point}");
    }
    Ok(())
}

/// Calls `visit` with each element's offset and its scale and zero point.
pub(crate) fn for_each_scaled(
    x: &Tensor,
    scale: &Tensor,
    zero_point: Option<&Tensor>,
    axis: i64,
    mut visit: impl FnMut(usize, f32, i128),
) -> Result<(), Mismatch> {
    if x.is_empty() {
        return Ok(());
    }
    let (scales, zero_points) = (scale.to_f32s(), zero_point.map(Tensor::to_i128s));
    let (mut inner, mut extent) = (1, 1);
    if scales.len() > 1 {
        let axis = resolve_axis(axis, x.rank())?;
        (inner, extent) = (x.shape()[axis + 1..].iter().product(), x.shape()[axis]);
    }
    let lines = scale.rank() > 1;
    for i in 0..x.len() {
        let slice = if lines { i / (inner * extent) * inner + i % inner } else { i / inner };
        let slice = slice % scales.len();
        visit(i, scales[slice], zero_points.as_ref().map_or(0, |z| z[slice]));
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
        let x = cx.get(0)?;
        let (low, high) = self.to.int_range().unwrap_or_default();
        let (values, mut out) = (x.to_f32s(), Vec::with_capacity(x.len()));
        for_each_scaled(x, cx.get(1)?, cx.opt(2), self.axis, |i, scale, zero_point| {
            let rounded = (values[i] / scale).round_ties_even() as i128;
            out.push(rounded.saturating_add(zero_point).clamp(low, high));
        })?;
        Ok(vec![Tensor::from_i128s(self.to, x.shape(), &out)?])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for to in QUANTIZED {
            for (per_axis, with_zero_point) in [(false, false), (false, true), (true, false), (true, true)] {
                let rank = g.size(1, 4);
                let shape = g.shape(rank);
                let axis = g.size(0, rank - 1);
                let (scale, zero_point) = random_scale(g, to, per_axis.then(|| shape[axis]), with_zero_point);
                let x = Tensor::zeros(DType::F32, &shape).unwrap_or_else(|_| Tensor::scalar(0f32));
                let (low, high) = to.int_range().unwrap_or_default();
                // Levels over the range and a little beyond. The fraction stays away from one half, where the
                // rounding of the quotient would decide.
                let reach = (high - low).min(200_000) as f64;
                let middle = if low == 0 { reach / 2.0 } else { 0.0 };
                let mut values = Vec::new();
                let axis = i64::try_from(axis).unwrap_or(0);
                let filled =
                    for_each_scaled(&x, &scale, zero_point.as_ref(), axis, |_, scale, zero_point| {
                        let level = g.real(-0.6 * reach, 0.6 * reach).round() + middle - zero_point as f64;
                        values.push(((level + g.real(-0.4, 0.4)) * f64::from(scale)) as f32);
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

/// A scale, for `count` slices or the whole tensor, with or without a zero point. Accumulators (i32) have none, as
/// ONNX asks.
pub(crate) fn random_scale(
    g: &mut Gen,
    integer: DType,
    count: Option<usize>,
    with_zero_point: bool,
) -> (Tensor, Option<Tensor>) {
    let shape: Vec<usize> = count.into_iter().collect();
    let scale = g.uniform(DType::F32, &shape, 0.005, 0.1);
    let (low, high) = integer.int_range().unwrap_or_default();
    let (low, high) = (low.max(-100) as f64, high.min(100) as f64);
    let with_zero_point = with_zero_point && integer != DType::I32;
    let zero_point = with_zero_point.then(|| g.uniform(integer, &shape, low, high));
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
