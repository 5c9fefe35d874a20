//! From quantized integers back to floats.

use sora_tensor::{DType, Tensor};

use super::attrs;
use super::quantize_linear::{Lie, QUANTIZED, check_scale, for_each_scaled, random_scale};
use crate::case::{Arg, Case, Gen};
use crate::{EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, TensorType};

attrs! {
    /// `(x - zero_point) · scale`, of the scale's type. Inputs: x (of a type that QuantizeLinear gives), scale,
    /// optional zero point of the type of x (0 where absent). Scale and zero point lie along x as QuantizeLinear says.
    /// The difference is exact, the product is computed in `f32`. Source: ONNX DequantizeLinear.
    pub struct DequantizeLinear {
        /// As in QuantizeLinear.
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
        let (values, scales, zero_points) = (x.to_f64s(), scale.to_f32s(), cx.opt(2).map(Tensor::to_f64s));
        let mut out = vec![0.0; x.len()];
        for_each_scaled(x, scale, self.axis, |i, slice| {
            let zero_point = zero_points.as_ref().map_or(0.0, |z| z[slice]);
            out[i] = f64::from((values[i] - zero_point) as f32 * scales[slice]);
        })?;
        Ok(vec![Tensor::from_f64s(scale.dtype(), x.shape(), &out)?])
    }

    /// Levels have a gradient, too, of the type of the result: see QuantizeLinear.
    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (scale, y, dy) = (cx.input(1)?, cx.output(0)?, cx.grad()?);
        let line = cx.along(scale, y, self.axis)?;
        let dx = cx.mul(dy, line)?;
        let dscale = if cx.wants(1) {
            let product = cx.mul(dy, y)?;
            let product = cx.div(product, line)?;
            Some(cx.sum_to_line(product, scale, self.axis)?)
        } else {
            None
        };
        Ok(vec![Some(dx), dscale, None])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for dtype in QUANTIZED {
            for (lie, with_zero_point) in
                [Lie::Whole, Lie::Slices, Lie::Blocks].into_iter().flat_map(|lie| [(lie, false), (lie, true)])
            {
                let rank = g.size(1, 4);
                let shape = g.shape(rank);
                let axis = g.size(0, rank - 1);
                let (scale, zero_point) = random_scale(g, dtype, &shape, axis, lie, with_zero_point);
                let x = g.tensor(dtype, &shape);
                // Weights are constants, activations are not.
                let x = if lie != Lie::Whole && g.flag() { Arg::Const(x) } else { Arg::Var(x) };
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
