//! Gathering elements by index.

use sora_tensor::{DType, Tensor};

use super::gather::resolve_index;
use super::movement::{any_var, assemble, either_end};
use super::{Reduction, ScatterElements, attrs, strides};
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, ensure};

attrs! {
    /// For each integer index (input 1), the element of the data (input 0) at the index's own place, except
    /// that on one axis it is where the index says. Both have one rank; the indices are nowhere larger than
    /// the data but on that axis. Source: ONNX GatherElements.
    pub struct GatherElements {
        /// The axis that indices count on, negative from the end.
        axis: i64,
    }
}

impl OpDef for GatherElements {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=2)?;
        let (x, indices) = (cx.ty(0)?, cx.ty(1)?);
        ensure!(indices.dtype.is_int(), "indices must be integers, found {indices}");
        ensure!(x.rank() == indices.rank(), "data {x} and indices {indices} differ in rank");
        let axis = resolve_axis(self.axis, x.rank())?;
        let fits = (x.shape.iter().zip(&indices.shape).enumerate())
            .all(|(i, (d, n))| i == axis || d.known().zip(n.known()).is_none_or(|(d, n)| n <= d));
        ensure!(fits, "indices {indices} are larger than data {x}");
        Ok(vec![TensorType { dtype: x.dtype, shape: indices.shape.clone() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (x, indices) = (cx.get(0)?, cx.get(1)?);
        let axis = resolve_axis(self.axis, x.rank())?;
        let resolve = |index| resolve_index(index, x.shape()[axis]);
        let positions = indices.to_i64s().into_iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
        let (steps, mut next) = (strides(x.shape()), positions.into_iter());
        Ok(vec![assemble(dtype, &shape, shape.len(), |index| {
            let position = next.next()?;
            let at = |(i, &own): (usize, &usize)| if i == axis { position } else { own };
            Some((x, index.iter().enumerate().map(at).zip(&steps).map(|(i, step)| i * step).sum()))
        })?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (data, indices, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let zeros = cx.zeros_like(data)?;
        let add = ScatterElements { axis: self.axis, reduction: Reduction::Add };
        Ok(vec![Some(cx.op(add, [zeros, indices, dy])?), None])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in [1, 1, 2, 2, 3, 4] {
            let (shape, axis) = (g.shape(rank), g.size(0, rank - 1));
            let mut index_shape: Vec<usize> = shape.iter().map(|&d| g.size(1, d)).collect();
            index_shape[axis] = g.size(1, 9);
            let extent = shape[axis] as f64;
            let dtype = g.pick(&[DType::I64, DType::I32]);
            let indices = g.uniform(dtype, &index_shape, -extent, extent);
            let indices = if g.flag() { Arg::Const(indices) } else { Arg::Var(indices) };
            let op = GatherElements { axis: either_end(g, axis, rank) };
            cases.push(Case::new(op, [any_var(g, &shape), indices]));
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::{iota, run};
    use super::*;

    #[test]
    fn only_the_axis_moves() {
        let (x, indices) = (iota(&[3, 3]), Tensor::from_slice(&[2, 3], &[1i64, -1, 0, 2, 0, 0]).unwrap());
        assert_eq!(run(GatherElements { axis: 0 }, &[&x, &indices]).unwrap().to_i64s(), [3, 7, 2, 6, 1, 2]);
        assert_eq!(run(GatherElements { axis: 1 }, &[&x, &indices]).unwrap().to_i64s(), [1, 2, 0, 5, 3, 3]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = iota(&[2, 2]);
        let indices =
            |shape: &[usize], v: i64| Tensor::from_slice(shape, &vec![v; shape.iter().product()]).unwrap();
        assert!(run(GatherElements { axis: 0 }, &[&x, &indices(&[1, 2], 2)]).is_err());
        assert!(run(GatherElements { axis: 0 }, &[&x, &indices(&[1, 3], 0)]).is_err());
        assert!(run(GatherElements { axis: 0 }, &[&x, &indices(&[2], 0)]).is_err());
        assert!(run(GatherElements { axis: 0 }, &[&x, &indices(&[5, 1], -2)]).is_ok());
    }
}
