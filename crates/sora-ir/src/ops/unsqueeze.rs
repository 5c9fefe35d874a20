//! Inserting axes of extent one.

use sora_tensor::Tensor;

use super::attrs;
use super::movement::{MAX_RANK, any_var, distinct_axes, either_end};
use crate::case::{Case, Gen};
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

attrs! {
    /// The input with axes of extent one inserted. Source: ONNX Unsqueeze.
    pub struct Unsqueeze {
        /// Positions of the new axes in the result, negative from its end.
        axes: Vec<i64>,
    }
}

impl OpDef for Unsqueeze {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        let rank = x.rank() + self.axes.len();
        ensure!(rank <= MAX_RANK, "a rank of {rank} is above the limit of {MAX_RANK}");
        let axes = distinct_axes(&self.axes, rank)?;
        let mut old = x.shape.iter().cloned();
        let mut dim = |axis| if axes.contains(&axis) { Some(Dim::from(1usize)) } else { old.next() };
        Ok(vec![TensorType { dtype: x.dtype, shape: (0..rank).filter_map(&mut dim).collect() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (_, shape) = cx.output(self)?;
        Ok(vec![cx.get(0)?.reshape(&shape)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (shape, dy) = (cx.shape(cx.input(0)?)?, cx.grad()?);
        Ok(vec![Some(cx.reshape(dy, &shape)?)])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        let rank = cx.opt(0)?.rank() + self.axes.len();
        (rank <= 1).then(|| cx.content(0).map(<[Dim]>::to_vec))?
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        cx.reshaped()
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in 0..=4 {
            for new in 0..=2 {
                let shape = g.shape(rank);
                let total = rank + new;
                let first = g.size(0, total.saturating_sub(1));
                // Neighbours, wrapping round, in descending order when they do.
                let axes = (0..new).map(|i| either_end(g, (first + i) % total, total)).collect();
                cases.push(Case::new(Unsqueeze { axes }, [any_var(g, &shape)]));
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
    fn axes_count_in_the_result() {
        let x = iota(&[2, 3]);
        assert_eq!(run(Unsqueeze { axes: vec![-1, 0] }, &[&x]).unwrap().shape(), [1, 2, 3, 1]);
        assert_eq!(run(Unsqueeze { axes: vec![2, 1] }, &[&x]).unwrap().shape(), [2, 1, 1, 3]);
        for axes in [vec![3], vec![0, -4], vec![0; 100]] {
            assert!(run(Unsqueeze { axes }, &[&x]).is_err());
        }
    }
}
