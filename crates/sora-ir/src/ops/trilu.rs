//! Triangles of matrices.

use sora_tensor::{DType, Tensor};

use super::movement::{any_var, assemble, is_single, offset, signed};
use super::{attrs, strides};
use crate::case::{Arg, Case, Gen};
use crate::{EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, ensure};

attrs! {
    /// The upper or lower triangle of the last two axes, zero elsewhere. Inputs: data of rank 2 or more, k?
    /// (one integer, default 0), the diagonal where the triangle ends, counted to the right of the main one.
    /// Source: ONNX Trilu.
    pub struct Trilu {
        /// Whether to keep what lies on the diagonal and above, instead of on it and below.
        upper: bool,
    }
}

impl OpDef for Trilu {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=2)?;
        let x = cx.ty(0)?;
        ensure!(x.rank() >= 2, "a triangle needs two axes, found {x}");
        if let Some(k) = cx.opt(1) {
            ensure!(k.dtype.is_int() && is_single(k), "k must be one integer, found {k}");
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let x = cx.get(0)?;
        let diagonal = cx.opt(1).map_or(0, |k| k.to_i128s()[0]);
        let steps = strides(&shape);
        Ok(vec![assemble(dtype, &shape, shape.len(), |index| {
            let [.., row, column] = *index else { return None };
            let right = column as i128 - row as i128;
            let kept = if self.upper { right >= diagonal } else { right <= diagonal };
            kept.then(|| (x, offset(index, &steps)))
        })?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let dy = cx.grad()?;
        let diagonal = cx.opt(1);
        Ok(vec![Some(cx.op(self.clone(), [Some(dy), diagonal])?), None])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in 2..=4 {
            for upper in [false, true] {
                for given in [false, true] {
                    let shape = g.shape(rank);
                    let mut inputs = vec![any_var(g, &shape)];
                    if given {
                        let k = signed(g.size(0, 8)) - 4;
                        let dims: &[usize] = if g.flag() { &[] } else { &[1] };
                        let k = Tensor::from_i128s(DType::I64, dims, &[k.into()]).expect("one element");
                        inputs.push(Arg::Const(k));
                    }
                    cases.push(Case::new(Trilu { upper }, inputs));
                }
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::{iota, run};
    use super::*;

    #[test]
    fn diagonals_shift() {
        let x = iota(&[1, 3, 3]);
        let triangle = |upper, k: i64| run(Trilu { upper }, &[&x, &Tensor::scalar(k)]).unwrap().to_i64s();
        assert_eq!(triangle(true, 0), [0, 1, 2, 0, 4, 5, 0, 0, 8]);
        assert_eq!(triangle(true, 1), [0, 1, 2, 0, 0, 5, 0, 0, 0]);
        assert_eq!(triangle(false, -1), [0, 0, 0, 3, 0, 0, 6, 7, 0]);
        assert_eq!(triangle(true, i64::MIN), x.to_i64s());
        assert_eq!(triangle(true, i64::MAX), [0; 9]);
        assert!(run(Trilu { upper: true }, &[&iota(&[3])]).is_err());
        assert!(run(Trilu { upper: true }, &[&x, &Tensor::vector(&[0i64, 1])]).is_err());
    }
}
