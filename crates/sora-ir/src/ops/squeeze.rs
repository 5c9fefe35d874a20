//! Removing axes of extent one.

use sora_tensor::Tensor;

use super::attrs;
use super::movement::{any_var, distinct_axes, either_end};
use crate::case::{Case, Gen};
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

attrs! {
    /// The input without some axes of extent one. Source: ONNX Squeeze.
    pub struct Squeeze {
        /// Axes to remove, negative from the end; empty for all whose extent is the number one.
        axes: Vec<i64>,
    }
}

impl OpDef for Squeeze {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        let one = Dim::from(1usize);
        let axes = match self.axes.is_empty() {
            true => (0..x.rank()).filter(|&axis| x.shape[axis] == one).collect(),
            false => distinct_axes(&self.axes, x.rank())?,
        };
        for &axis in &axes {
            ensure!(x.shape[axis].compatible(&one), "axis {axis} of {x} is not of extent 1");
        }
        let kept = (0..x.rank()).filter(|axis| !axes.contains(axis)).map(|axis| x.shape[axis].clone());
        Ok(vec![TensorType::new(x.dtype, kept)])
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
        cx.content(0).map(<[Dim]>::to_vec)
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        ensure!(!self.axes.is_empty(), "drops whatever axes have one element");
        cx.reshaped()
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in 0..=5 {
            for all in [true, false, false] {
                let mut shape = g.shape(rank);
                let mut axes: Vec<usize> = (0..rank).filter(|_| g.flag()).collect();
                axes.iter().for_each(|&axis| shape[axis] = 1);
                axes.reverse();
                let axes = if all { vec![] } else { axes.iter().map(|&a| either_end(g, a, rank)).collect() };
                cases.push(Case::new(Squeeze { axes }, [any_var(g, &shape)]));
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
    fn only_extents_of_one_go() {
        let x = iota(&[1, 2, 1]);
        assert_eq!(run(Squeeze { axes: vec![] }, &[&x]).unwrap().shape(), [2]);
        assert_eq!(run(Squeeze { axes: vec![-1] }, &[&x]).unwrap().shape(), [1, 2]);
        for axes in [vec![1], vec![0, -3], vec![3], vec![i64::MIN]] {
            assert!(run(Squeeze { axes }, &[&x]).is_err());
        }
    }
}
