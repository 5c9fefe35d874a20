//! Selection.

use sora_tensor::{DType, Tensor};

use super::movement::{MAX_CONTENT, any_dtype, assemble};
use super::{attrs, broadcast_offset};
use crate::case::{Arg, Case, Gen};
use crate::op::broadcast;
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, TensorType, TieCx, ensure};

attrs! {
    /// The elements of the second input where the first, truth values, holds; of the third elsewhere. All
    /// three broadcast by NumPy's rule. Source: ONNX Where.
    pub struct Where {}
}

impl OpDef for Where {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(3..=3)?;
        let (condition, x, y) = (cx.ty(0)?, cx.ty(1)?, cx.ty(2)?);
        ensure!(condition.dtype == DType::Bool, "the condition must be bool, found {condition}");
        ensure!(x.dtype == y.dtype, "choices {x} and {y} differ in dtype");
        let shape = broadcast(&broadcast(&condition.shape, &x.shape)?, &y.shape)?;
        Ok(vec![TensorType { dtype: x.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (condition, x, y) = (cx.get(0)?, cx.get(1)?, cx.get(2)?);
        let truths = condition.bytes();
        Ok(vec![assemble(dtype, &shape, shape.len(), |index| {
            let holds = truths[broadcast_offset(index, condition.shape())] != 0;
            let chosen = if holds { x } else { y };
            Some((chosen, broadcast_offset(index, chosen.shape())))
        })?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (condition, dy) = (cx.input(0)?, cx.grad()?);
        let zero = cx.number(0.0, dy)?;
        let mut grads = vec![None; 3];
        if cx.wants(1) {
            let da = cx.select(condition, dy, zero)?;
            grads[1] = Some(cx.sum_to_input(da, 1)?);
        }
        if cx.wants(2) {
            let db = cx.select(condition, zero, dy)?;
            grads[2] = Some(cx.sum_to_input(db, 2)?);
        }
        Ok(grads)
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        let condition = cx.constant(0).filter(|c| c.rank() <= 1 && c.len() <= MAX_CONTENT)?.to_i64s();
        let (x, y) = (cx.content(1)?, cx.content(2)?);
        let len = self.infer(cx).ok()?.first()?.known_len()?;
        let at = |n: usize, i: usize| if n == 1 { 0 } else { i };
        let element = |i| match condition.get(at(condition.len(), i))? {
            0 => y.get(at(y.len(), i)).cloned(),
            _ => x.get(at(x.len(), i)).cloned(),
        };
        (len <= MAX_CONTENT).then(|| (0..len).map(element).collect())?
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        cx.broadcast()
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in 0..=4 {
            for _ in 0..4 {
                let (shape, dtype) = (g.shape(rank), any_dtype(g));
                // Any of the three may lack leading axes and have extents of one.
                let operand = |g: &mut Gen, dtype| {
                    let from = if g.flag() { 0 } else { g.size(0, rank) };
                    let thin: Vec<usize> =
                        shape[from..].iter().map(|&d| if g.size(0, 3) == 0 { 1 } else { d }).collect();
                    let tensor = g.tensor(dtype, &thin);
                    if g.size(0, 3) == 0 { Arg::Const(tensor) } else { Arg::Var(tensor) }
                };
                let inputs = [operand(g, DType::Bool), operand(g, dtype), operand(g, dtype)];
                cases.push(Case::new(Where {}, inputs));
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
    fn all_three_broadcast() {
        let condition = Tensor::vector(&[1i64, 0]).cast(DType::Bool);
        let y = run(Where {}, &[&condition, &Tensor::scalar(7i64), &iota(&[2, 1])]).unwrap();
        assert_eq!((y.shape(), y.to_i64s()), (&[2, 2][..], vec![7, 0, 7, 1]));
        assert!(run(Where {}, &[&condition, &iota(&[3]), &iota(&[2])]).is_err());
        assert!(run(Where {}, &[&iota(&[2]), &iota(&[2]), &iota(&[2])]).is_err());
        assert!(run(Where {}, &[&condition, &Tensor::scalar(7i32), &iota(&[2])]).is_err());
    }
}
