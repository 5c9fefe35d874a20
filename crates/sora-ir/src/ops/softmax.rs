//! Softmax.

use std::borrow::Cow;

use sora_tensor::{DType, Tensor};

use super::{ReduceKind, UnaryKind, attrs};
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, TensorType, TieCx, ensure};

attrs! {
    /// `exp(x) / sum(exp(x))` along one axis, or its logarithm. Source: ONNX Softmax and LogSoftmax, opset 13 on.
    pub struct Softmax {
        /// The axis whose elements sum to one; negative counts from the end.
        axis: i64,
        /// Whether to return the logarithm.
        log: bool,
    }
}

impl OpDef for Softmax {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        ensure!(x.dtype.is_float(), "takes floats, found {x}");
        resolve_axis(self.axis, x.rank())?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        if x.is_empty() {
            return Ok(vec![x.clone()]);
        }
        let axis = resolve_axis(self.axis, x.rank())?;
        let (extent, inner) = (x.shape()[axis], x.shape()[axis + 1..].iter().product::<usize>());
        let mut values = x.to_f64s();
        for block in values.chunks_exact_mut(extent * inner) {
            for first in 0..inner {
                let along = || (first..block.len()).step_by(inner);
                // Subtracting the maximum changes nothing but keeps the exponential from overflowing.
                let max = along().map(|i| block[i]).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = along().map(|i| (block[i] - max).exp()).sum();
                for i in (first..block.len()).step_by(inner) {
                    let shifted = block[i] - max;
                    block[i] = if self.log { shifted - sum.ln() } else { shifted.exp() / sum };
                }
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &values)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (y, dy) = (cx.output(0)?, cx.grad()?);
        let axis = resolve_axis(self.axis, cx.shape(y)?.len())?;
        let dx = if self.log {
            // dy - exp(y) · sum(dy)
            let sum = cx.reduce(ReduceKind::Sum, dy, &[axis])?;
            let probability = cx.unary(UnaryKind::Exp, y)?;
            let share = cx.mul(probability, sum)?;
            cx.sub(dy, share)?
        } else {
            // y · (dy - sum(y · dy))
            let weighted = cx.mul(y, dy)?;
            let sum = cx.reduce(ReduceKind::Sum, weighted, &[axis])?;
            let centred = cx.sub(dy, sum)?;
            cx.mul(y, centred)?
        };
        Ok(vec![Some(dx)])
    }

    fn label(&self) -> Option<Cow<'static, str>> {
        self.log.then_some(Cow::Borrowed("LogSoftmax"))
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let summed = resolve_axis(self.axis, cx.ty(0)?.rank())?;
        cx.same_axes(|axis| axis == summed)
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for log in [false, true] {
            for dtype in [DType::F32, DType::F32, DType::F32, DType::F64] {
                let rank = g.size(1, 4);
                let axis = i64::try_from(g.size(1, rank)).map_or(-1, |from_end| -from_end);
                let axis = if g.flag() { -1 } else { axis };
                let mut shape = g.shape(rank);
                shape[rank - 1] = g.size(1, 70);
                let x = g.uniform(dtype, &shape, -8.0, 8.0);
                cases.push(Case::new(Softmax { axis, log }, [Arg::Var(x)]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_tensor_stays_empty_however_wide() {
        let x = Tensor::zeros(DType::F32, &[0, 1 << 40, 1 << 40]).unwrap();
        let y = Softmax { axis: 0, log: false }.eval(&EvalCx { inputs: &[Some(&x)] }).unwrap().remove(0);
        assert_eq!(y, x);
    }

    #[test]
    fn large_values_do_not_overflow_and_either_axis_sums_to_one() {
        let third = 3f32.ln();
        let x = Tensor::from_slice(&[2, 2], &[1000f32, 1000. + third, 1000. + third, 1000.]).unwrap();
        for axis in [0, 1, -1] {
            let eval = |log| {
                let op = Softmax { axis, log };
                op.eval(&EvalCx { inputs: &[Some(&x)] }).unwrap().remove(0).to_f32s()
            };
            for (i, expected) in [0.25f32, 0.75, 0.75, 0.25].into_iter().enumerate() {
                assert!((eval(false)[i] - expected).abs() < 1e-4);
                assert!((eval(true)[i] - expected.ln()).abs() < 1e-4);
            }
        }
    }
}
