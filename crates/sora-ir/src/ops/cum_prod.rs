//! Cumulative product.

use sora_tensor::Tensor;

use super::attrs;
use super::cum_sum::{self, Order};
use crate::case::{Case, Gen};
use crate::{EvalCx, InferCx, Mismatch, OpDef, TensorType};

attrs! {
    /// Running products along one axis. Inputs: x and the axis, one `i32` or `i64` element that may be negative. Integers
    /// wrap. Source: ONNX CumProd.
    pub struct CumProd {
        /// Whether a product leaves out the element at its own position.
        exclusive: bool,
        /// Whether to begin at the end.
        reverse: bool,
    }
}

impl OpDef for CumProd {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cum_sum::infer(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let order = Order { exclusive: self.exclusive, reverse: self.reverse };
        order.accumulate(cx, (1.0, |a, b| a * b), (1, i128::wrapping_mul))
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        cum_sum::cases(g, |exclusive, reverse| CumProd { exclusive, reverse }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_run_either_way_with_or_without_their_own_element() {
        let (x, axis) = (Tensor::vector(&[2i32, 3, 4]), Tensor::scalar(0i64));
        let run = |exclusive, reverse| {
            let op = CumProd { exclusive, reverse };
            op.eval(&EvalCx { inputs: &[Some(&x), Some(&axis)] }).unwrap()[0].to_i64s()
        };
        assert_eq!(run(false, false), [2, 6, 24]);
        assert_eq!(run(true, false), [1, 2, 6]);
        assert_eq!(run(false, true), [24, 12, 4]);
        assert_eq!(run(true, true), [12, 4, 1]);
    }
}
