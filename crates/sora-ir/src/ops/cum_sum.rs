//! Cumulative sum, and what the cumulative product shares with it.

use sora_tensor::{DType, Tensor};

use super::attrs;
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{EvalCx, GradCx, Gradients, InferCx, Mismatch, Op, OpDef, TensorType, ensure};

attrs! {
    /// Running sums along one axis. Inputs: x and the axis, one `i32` or `i64` element that may be negative. Integers
    /// wrap. Source: ONNX CumSum.
    pub struct CumSum {
        /// Whether a sum leaves out the element at its own position.
        exclusive: bool,
        /// Whether to sum from the end.
        reverse: bool,
    }
}

impl OpDef for CumSum {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        infer(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let order = Order { exclusive: self.exclusive, reverse: self.reverse };
        order.accumulate(cx, (0.0, |a, b| a + b), (0, i128::wrapping_add))
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (axis, dy) = (cx.input(1)?, cx.grad()?);
        let back = CumSum { exclusive: self.exclusive, reverse: !self.reverse };
        Ok(vec![Some(cx.op(back, [dy, axis])?), None])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        cases(g, |exclusive, reverse| CumSum { exclusive, reverse }.into())
    }
}

/// The types of a running sum or product.
pub(super) fn infer(cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
    cx.arity(2..=2)?;
    let (x, axis) = (cx.ty(0)?, cx.ty(1)?);
    ensure!(x.dtype != DType::Bool, "takes numbers, found {x}");
    ensure!(
        matches!(axis.dtype, DType::I32 | DType::I64)
            && axis.rank() <= 1
            && axis.shape.iter().all(|d| d.constant().is_none_or(|n| n == 1)),
        "the axis must be one i32 or i64 element, found {axis}"
    );
    if let Some(constant) = cx.constant(1) {
        resolve_axis(axis_of(constant)?, x.rank())?;
    }
    Ok(vec![x.clone()])
}

/// Random instances: every order, of several dtypes.
pub(super) fn cases(g: &mut Gen, op: impl Fn(bool, bool) -> Op) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::F32, DType::I64, DType::I32] {
        for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
            let rank = g.size(1, 4);
            let low = -i64::try_from(rank).unwrap_or(0);
            let axis = low + i64::try_from(g.size(0, 2 * rank - 1)).unwrap_or(0);
            let axis = if g.flag() { Tensor::scalar(axis) } else { Tensor::vector(&[axis]) };
            let shape = g.shape(rank);
            let x = Arg::Var(g.tensor(dtype, &shape));
            cases.push(Case::new(op(exclusive, reverse), [x, Arg::Const(axis)]));
        }
    }
    cases
}

fn axis_of(tensor: &Tensor) -> Result<i64, Mismatch> {
    match tensor.to_i64s()[..] {
        [axis] => Ok(axis),
        ref other => Err(Mismatch::new(format!("the axis must be one element, found {}", other.len()))),
    }
}

/// In which order elements accumulate, and from where.
pub(super) struct Order {
    /// Whether a result leaves out the element at its own position.
    pub(super) exclusive: bool,
    /// Whether to begin at the end.
    pub(super) reverse: bool,
}

impl Order {
    /// Input 0 accumulated along the axis that input 1 names, by neutral elements and functions of floats and integers.
    ///
    /// # Errors
    /// [`Mismatch`] when the axis is not one of the tensor's.
    pub(super) fn accumulate(
        &self,
        cx: &EvalCx,
        (zero, float): (f64, impl Fn(f64, f64) -> f64),
        (int_zero, int): (i128, impl Fn(i128, i128) -> i128),
    ) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        let axis = resolve_axis(axis_of(cx.get(1)?)?, x.rank())?;
        if x.is_empty() {
            return Ok(vec![x.clone()]);
        }
        let (extent, inner) = (x.shape()[axis], x.shape()[axis + 1..].iter().product());
        Ok(vec![if x.dtype().is_float() {
            let sums = self.scan(x.to_f64s(), extent, inner, zero, float);
            Tensor::from_f64s(x.dtype(), x.shape(), &sums)?
        } else {
            let sums = self.scan(x.to_i128s(), extent, inner, int_zero, int);
            Tensor::from_i128s(x.dtype(), x.shape(), &sums)?
        }])
    }

    fn scan<T: Copy>(
        &self,
        mut out: Vec<T>,
        extent: usize,
        inner: usize,
        zero: T,
        add: impl Fn(T, T) -> T,
    ) -> Vec<T> {
        for block in out.chunks_exact_mut(extent * inner) {
            for first in 0..inner {
                let mut sum = zero;
                for step in 0..extent {
                    let at = if self.reverse { extent - 1 - step } else { step };
                    let element = &mut block[at * inner + first];
                    let next = add(sum, *element);
                    *element = if self.exclusive { sum } else { next };
                    sum = next;
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_run_either_way_with_or_without_their_own_element() {
        let x = Tensor::from_slice(&[2, 3], &[1i32, 2, 3, 4, 5, 6]).unwrap();
        let check = |axis: i64, exclusive, reverse, expected: [i32; 6]| {
            let axis = Tensor::scalar(axis);
            let op = CumSum { exclusive, reverse };
            let found = op.eval(&EvalCx { inputs: &[Some(&x), Some(&axis)] }).unwrap().remove(0);
            assert_eq!(found, Tensor::from_slice(&[2, 3], &expected).unwrap());
        };
        check(1, false, false, [1, 3, 6, 4, 9, 15]);
        check(-1, true, false, [0, 1, 3, 0, 4, 9]);
        check(1, false, true, [6, 5, 3, 15, 11, 6]);
        check(1, true, true, [5, 3, 0, 11, 6, 0]);
        check(0, false, false, [1, 2, 3, 5, 7, 9]);
    }
}
