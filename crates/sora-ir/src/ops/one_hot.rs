//! One-hot encoding.

use sora_tensor::{DType, Tensor};

use super::gather::resolve_index;
use super::movement::{MAX_RANK, any_dtype, assemble, either_end, is_single, offset};
use super::{attrs, strides};
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// Each index becomes a line of `depth` elements: "on" where it points, "off" elsewhere. Inputs: indices,
    /// depth (one number), values (`[off, on]`). Negative indices count from the end; an index outside gives
    /// all "off". Source: ONNX OneHot.
    pub struct OneHot {
        /// Position of the new axis in the result, negative from its end.
        axis: i64,
    }
}

impl OpDef for OneHot {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(3..=3)?;
        let (indices, depth, values) = (cx.ty(0)?, cx.ty(1)?, cx.ty(2)?);
        ensure!(indices.dtype != DType::Bool, "indices must be numbers, found {indices}");
        ensure!(depth.dtype != DType::Bool && is_single(depth), "depth must be one number, found {depth}");
        let two = Dim::from(2usize);
        ensure!(values.rank() == 1 && values.shape[0].compatible(&two), "values must be two, found {values}");
        let rank = indices.rank() + 1;
        ensure!(rank <= MAX_RANK, "a rank of {rank} is above the limit of {MAX_RANK}");
        let axis = resolve_axis(self.axis, rank)?;
        let constant = cx.constant(1).filter(|t| t.len() == 1).map(|t| Dim::from(t.to_i64s()[0]));
        let extent = constant.or_else(|| cx.content(1)?.first().cloned());
        let extent = extent.unwrap_or_else(|| cx.unknown(axis));
        ensure!(extent.constant().is_none_or(|v| v > 0), "depth must be positive, found {extent}");
        let mut shape = indices.shape.clone();
        shape.insert(axis, extent);
        Ok(vec![TensorType { dtype: values.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (indices, values) = (cx.get(0)?, cx.get(2)?);
        let axis = resolve_axis(self.axis, shape.len())?;
        let on: Vec<Option<usize>> =
            indices.to_i64s().into_iter().map(|i| resolve_index(i, shape[axis]).ok()).collect();
        let steps = strides(indices.shape());
        Ok(vec![assemble(dtype, &shape, shape.len(), |index| {
            let at = offset(&index[..axis], &steps) + offset(&index[axis + 1..], &steps[axis..]);
            Some((values, usize::from(on[at] == Some(index[axis]))))
        })?])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in 0..=3 {
            for axis in 0..=rank {
                let (shape, depth) = (g.shape(rank), g.size(1, 9));
                // One beyond the range on either side.
                let bound = depth as f64 + 2.0;
                let dtype = g.pick(&[DType::I64, DType::I64, DType::I32, DType::F32]);
                let indices = g.uniform(dtype, &shape, -bound, bound);
                let one: &[usize] = if g.flag() { &[] } else { &[1] };
                let depth = Tensor::from_f64s(g.pick(&[DType::I64, DType::F32]), one, &[depth as f64]);
                let (depth, dtype) = (depth.expect("one element"), any_dtype(g));
                let values = g.tensor(dtype, &[2]);
                let inputs = [Arg::Var(indices), Arg::Const(depth), Arg::Const(values)];
                cases.push(Case::new(OneHot { axis: either_end(g, axis, rank + 1) }, inputs));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::run;
    use super::*;

    fn one_hot(axis: i64, indices: &[i64], depth: i64) -> Result<Tensor, Mismatch> {
        let values = Tensor::vector(&[0u8, 1]);
        run(OneHot { axis }, &[&Tensor::vector(indices), &Tensor::scalar(depth), &values])
    }

    #[test]
    fn lines_point() {
        let lines = one_hot(-1, &[0, -1, 5, -4], 3).unwrap();
        assert_eq!(lines.shape(), [4, 3]);
        assert_eq!(lines.to_i64s(), [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(one_hot(0, &[1, 0, 2], 3).unwrap().to_i64s(), [0, 1, 0, 1, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn hostile_depths_are_refused() {
        for depth in [0, -1, i64::MIN, i64::MAX] {
            assert!(one_hot(0, &[1, 2], depth).is_err());
        }
        assert!(one_hot(2, &[1], 3).is_err());
        let wide = Tensor::vector(&[0u8, 1, 2]);
        assert!(run(OneHot { axis: 0 }, &[&wide, &Tensor::scalar(3i64), &wide]).is_err());
    }
}
