//! Flattening to a matrix.

use sora_tensor::Tensor;

use super::movement::{any_var, either_end, signed};
use super::{attrs, product};
use crate::case::{Case, Gen};
use crate::{EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

attrs! {
    /// A matrix of the same elements: the axes before `axis` make the rows, the others the columns.
    /// Source: ONNX Flatten.
    pub struct Flatten {
        /// First axis of the columns, in `-rank..=rank`, negative from the end.
        axis: i64,
    }
}

impl OpDef for Flatten {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        let resolved = if self.axis < 0 { self.axis.saturating_add(signed(x.rank())) } else { self.axis };
        let axis = usize::try_from(resolved).unwrap_or(usize::MAX);
        ensure!(axis <= x.rank(), "cannot flatten {x} at axis {}", self.axis);
        let (rows, columns) = x.shape.split_at(axis);
        Ok(vec![TensorType::new(x.dtype, [product(rows), product(columns)])])
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

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        cx.reshaped()
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in 0..=4 {
            for axis in 0..=rank {
                let shape = g.shape(rank);
                // The end itself cannot be counted from the end.
                let axis = if axis < rank { either_end(g, axis, rank) } else { signed(axis) };
                cases.push(Case::new(Flatten { axis }, [any_var(g, &shape)]));
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
    fn both_ends_are_axes() {
        let x = iota(&[2, 3, 4]);
        for (axis, shape) in [(0, [1, 24]), (1, [2, 12]), (3, [24, 1]), (-1, [6, 4]), (-3, [1, 24])] {
            assert_eq!(run(Flatten { axis }, &[&x]).unwrap().shape(), shape);
        }
        for axis in [4, -4, i64::MIN, i64::MAX] {
            assert!(run(Flatten { axis }, &[&x]).is_err());
        }
    }
}
