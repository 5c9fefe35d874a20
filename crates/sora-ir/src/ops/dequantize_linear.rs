//! From quantized integers back to floats.

use sora_tensor::{DType, Tensor};

use super::attrs;
use super::quantize_linear::{QUANTIZED, check_scale, for_each_scaled, random_scale};
use crate::case::{Arg, Case, Gen};
use crate::{EvalCx, InferCx, Mismatch, OpDef, TensorType};

attrs! {
    /// `(x - zero_point) · scale`, of the scale's type. Inputs: x (i8, u8, i16, u16 or i32), scale, optional zero
    /// point of the type of x (0 where absent). Scale and zero point have one shape: one element for the whole
    /// tensor, `[C]` for slices along `axis`, or the shape of x with 1 for the extent of `axis`: one element for every
    /// line along the axis. The difference is exact, the product is computed in `f32`.
    /// Source: ONNX DequantizeLinear, per tensor, per axis and per line.
    pub struct DequantizeLinear {
        /// The axis of a `[C]` scale, or the one along which a scale of rank 2 or more has extent 1; negative counts
        /// from the end. Ignored for a scale of one element.
        axis: i64,
    }
}

impl OpDef for DequantizeLinear {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=3)?;
        let (x, scale) = (cx.ty(0)?, cx.ty(1)?);
        check_scale(x, scale, cx.opt(2), x.dtype, self.axis)?;
        Ok(vec![TensorType { dtype: scale.dtype, shape: x.shape.clone() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (x, scale) = (cx.get(0)?, cx.get(1)?);
        let (values, mut out) = (x.to_i128s(), Vec::with_capacity(x.len()));
        for_each_scaled(x, scale, cx.opt(2), self.axis, |i, scale, zero_point| {
            out.push(f64::from((values[i] - zero_point) as f32 * scale));
        })?;
        Ok(vec![Tensor::from_f64s(scale.dtype(), x.shape(), &out)?])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for dtype in QUANTIZED {
            for (per_axis, with_zero_point) in [(false, false), (false, true), (true, false), (true, true)] {
                let rank = g.size(1, 4);
                let shape = g.shape(rank);
                let axis = g.size(0, rank - 1);
                let (scale, zero_point) =
                    random_scale(g, dtype, per_axis.then(|| shape[axis]), with_zero_point);
                let x = g.tensor(dtype, &shape);
                // Weights are constants, activations are not.
                let x = if per_axis && g.flag() { Arg::Const(x) } else { Arg::Var(x) };
                let op = DequantizeLinear { axis: i64::try_from(axis).unwrap_or(0) };
                cases.push(Case::new(op, [x, Arg::Const(scale), zero_point.map_or(Arg::Absent, Arg::Const)]));
            }
        }
        for axis in [0, 1, 2, -1] {
            let mut shape = g.shape(3);
            let x = g.tensor(DType::I8, &shape);
            shape[usize::try_from(axis).unwrap_or(2)] = 1;
            let (scale, zero_point) =
                (g.uniform(DType::F32, &shape, 0.005, 0.1), g.uniform(DType::I8, &shape, -100.0, 100.0));
            let x = if g.flag() { Arg::Const(x) } else { Arg::Var(x) };
            cases.push(Case::new(DequantizeLinear { axis }, [x, Arg::Var(scale), Arg::Var(zero_point)]));
        }
        cases.push(Case::new(
            DequantizeLinear { axis: 1 },
            [Arg::Var(g.tensor(DType::I8, &[3, 4])), Arg::Const(g.uniform(DType::F16, &[], 0.01, 0.1))],
        ));
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_point_is_subtracted_first() {
        let x = Tensor::from_slice(&[2, 2], &[-128i8, 127, 0, 5]).unwrap();
        let (scale, zero) = (Tensor::vector(&[0.5f32, 2.]), Tensor::vector(&[127i8, -128]));
        let dequantize = |axis| {
            let cx = EvalCx { inputs: &[Some(&x), Some(&scale), Some(&zero)] };
            DequantizeLinear { axis }.eval(&cx).unwrap().remove(0).to_f32s()
        };
        assert_eq!(dequantize(0), [-127.5, 0., 256., 266.]);
        assert_eq!(dequantize(-1), [-127.5, 510., -63.5, 266.]);
    }
}
