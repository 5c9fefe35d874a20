//! Writing elements by index.

use sora_tensor::{DType, Tensor};

use super::gather::resolve_index;
use super::movement::{either_end, offset};
use super::{GatherElements, Reduction, attrs, for_each_index, strides};
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// The data (input 0) with each update (input 2) at its own place, except that on one axis it is where its integer
    /// index (input 1) says; negative indices count from the end. Indices and updates have one shape, nowhere larger
    /// than the data but on that axis. Source: ONNX ScatterElements.
    pub struct ScatterElements {
        /// The axis that indices count on, negative from the end.
        axis: i64,
        /// How an update meets what is there; updates apply in row-major order.
        reduction: Reduction,
    }
}

impl OpDef for ScatterElements {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(3..=3)?;
        let (x, indices, updates) = (cx.ty(0)?, cx.ty(1)?, cx.ty(2)?);
        self.reduction.check(x, updates)?;
        ensure!(indices.dtype.is_int(), "indices must be integers, found {indices}");
        ensure!(x.rank() == indices.rank(), "data {x} and indices {indices} differ in rank");
        let same = indices.rank() == updates.rank()
            && indices.shape.iter().zip(&updates.shape).all(|(a, b)| a.compatible(b));
        ensure!(same, "indices {indices} and updates {updates} differ in shape");
        let axis = resolve_axis(self.axis, x.rank())?;
        let fits = (x.shape.iter().zip(&indices.shape).enumerate())
            .all(|(i, (d, n))| i == axis || d.known().zip(n.known()).is_none_or(|(d, n)| n <= d));
        ensure!(fits, "indices {indices} are larger than data {x}");
        Ok(vec![x.clone()])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        cx.infer(self)?;
        let (x, indices, updates) = (cx.get(0)?, cx.get(1)?, cx.get(2)?);
        let axis = resolve_axis(self.axis, x.rank())?;
        let resolve = |index| resolve_index(index, x.shape()[axis]);
        let positions = indices.to_i64s().into_iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
        let (steps, mut pairs) = (strides(x.shape()), Vec::with_capacity(positions.len()));
        for_each_index(indices.shape(), |index| {
            let from = pairs.len();
            let elsewhere = offset(index, &steps) - index[axis] * steps[axis];
            pairs.push((elsewhere + positions[from] * steps[axis], from));
        });
        Ok(vec![self.reduction.apply(x, updates, 1, &pairs)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        self.reduction.gradients(cx, self.clone().into(), GatherElements { axis: self.axis }.into())
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
            let (reduction, dtype) = Reduction::any(g);
            let op = ScatterElements { axis: either_end(g, axis, rank), reduction };
            let (x, updates) = (g.tensor(dtype, &shape), g.tensor(dtype, &index_shape));
            cases.push(Case::new(op, [Arg::Var(x), indices, Arg::Var(updates)]));
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::{iota, run};
    use super::*;

    #[test]
    fn updates_go_where_indices_say() {
        let x = Tensor::from_slice(&[2, 3], &[1i64, 2, 3, 4, 5, 6]).unwrap();
        let indices = Tensor::from_slice(&[2, 2], &[1i64, 1, -1, 0]).unwrap();
        let updates = Tensor::from_slice(&[2, 2], &[10i64, 20, 30, 40]).unwrap();
        let scatter = |axis, reduction| {
            run(ScatterElements { axis, reduction }, &[&x, &indices, &updates]).unwrap().to_i64s()
        };
        assert_eq!(scatter(1, Reduction::Replace), [1, 20, 3, 40, 5, 30]);
        assert_eq!(scatter(1, Reduction::Add), [1, 32, 3, 44, 5, 36]);
        assert_eq!(scatter(-2, Reduction::Mul), [1, 80, 3, 1200, 100, 6]);
        assert_eq!(scatter(1, Reduction::Min), [1, 2, 3, 4, 5, 6]);
        assert_eq!(scatter(1, Reduction::Max), [1, 20, 3, 40, 5, 30]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (x, op) = (iota(&[2, 2]), ScatterElements { axis: 0, reduction: Reduction::Replace });
        let wrong = |shape: &[usize], v: i64, updates: &[usize]| {
            let indices = Tensor::from_slice(shape, &vec![v; shape.iter().product()]).unwrap();
            run(op.clone(), &[&x, &indices, &iota(updates)]).is_err()
        };
        assert!(wrong(&[1, 2], 2, &[1, 2]) && wrong(&[1, 2], i64::MIN, &[1, 2]));
        assert!(wrong(&[1, 3], 0, &[1, 3]) && wrong(&[1, 2], 0, &[2, 1]) && wrong(&[2], 0, &[2]));
        assert!(!wrong(&[5, 1], -2, &[5, 1]));
    }
}
