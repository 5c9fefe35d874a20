//! Gathering slices by index.

use sora_tensor::{DType, Tensor};

use super::movement::{MAX_RANK, any_var, assemble, either_end, offset, signed};
use super::{Reduction, ScatterNd, attrs, strides};
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

attrs! {
    /// Slices of the data (input 0) at the positions that integer indices (input 1) name on one axis: that
    /// axis is replaced by the axes of the indices. Negative indices count from the end.
    /// Source: ONNX Gather.
    pub struct Gather {
        /// The axis that indices count on, negative from the end.
        axis: i64,
    }
}

/// The position in an axis of `extent` that an index names, counted from the end when negative.
///
/// # Errors
/// [`Mismatch`] when it is outside.
pub(crate) fn resolve_index(index: i64, extent: usize) -> Result<usize, Mismatch> {
    let resolved = if index < 0 { index.saturating_add(signed(extent)) } else { index };
    let inside = usize::try_from(resolved).ok().filter(|&i| i < extent);
    inside.ok_or_else(|| Mismatch::new(format!("index {index} is outside an axis of {extent}")))
}

impl OpDef for Gather {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=2)?;
        let (x, indices) = (cx.ty(0)?, cx.ty(1)?);
        ensure!(indices.dtype.is_int(), "indices must be integers, found {indices}");
        let axis = resolve_axis(self.axis, x.rank())?;
        let rank = x.rank() - 1 + indices.rank();
        ensure!(rank <= MAX_RANK, "a rank of {rank} is above the limit of {MAX_RANK}");
        if let (Some(extent), Some(content)) = (x.shape[axis].known(), cx.content(1)) {
            for index in content.iter().filter_map(Dim::constant) {
                resolve_index(index, extent)?;
            }
        }
        let shape = [&x.shape[..axis], &indices.shape, &x.shape[axis + 1..]].concat();
        Ok(vec![TensorType { dtype: x.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (x, indices) = (cx.get(0)?, cx.get(1)?);
        let axis = resolve_axis(self.axis, x.rank())?;
        let resolve = |index| resolve_index(index, x.shape()[axis]);
        let positions = indices.to_i64s().into_iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
        let (steps, index_steps) = (strides(x.shape()), strides(indices.shape()));
        Ok(vec![assemble(dtype, &shape, axis + indices.rank(), |index| {
            let (before, at) = index.split_at(axis);
            Some((x, offset(before, &steps) + positions[offset(at, &index_steps)] * steps[axis]))
        })?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (data, indices, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let (shape, mut lines) = (cx.shape(data)?, cx.shape(indices)?);
        let axis = resolve_axis(self.axis, shape.len())?;
        // With the gathered axis in front, every index names one slice to add to.
        let (rank, taken) = (shape.len() + lines.len() - 1, lines.len());
        let forward: Vec<usize> = (axis..axis + taken).chain(0..axis).chain(axis + taken..rank).collect();
        let slices = cx.transpose(dy, &forward)?;
        lines.push(1);
        let indices = cx.reshape(indices, &lines)?;
        let mut turned = shape.clone();
        turned[..=axis].rotate_right(1);
        let dtype = cx.dtype(data);
        let zeros = cx.zeros(dtype, &turned)?;
        let sum = cx.op(ScatterNd { reduction: Reduction::Add }, [zeros, indices, slices])?;
        let back: Vec<usize> = (1..=axis).chain([0]).chain(axis + 1..shape.len()).collect();
        Ok(vec![Some(cx.transpose(sum, &back)?), None])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        let (content, indices) = (cx.content(0)?, cx.content(1)?);
        let at = |index: &Dim| Some(content[resolve_index(index.constant()?, content.len()).ok()?].clone());
        indices.iter().map(at).collect()
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let (x, indices) = (cx.ty(0)?.rank(), cx.ty(1)?.rank());
        let taken = resolve_axis(self.axis, x)?;
        (0..taken).for_each(|axis| cx.same(0, axis, 0, axis));
        (taken + 1..x).for_each(|axis| cx.same(0, axis, 0, axis - 1 + indices));
        (0..indices).for_each(|axis| cx.same(1, axis, 0, taken + axis));
        Ok(())
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in [1, 2, 2, 3, 4] {
            for index_rank in 0..=2 {
                let (shape, index_shape, axis) = (g.shape(rank), g.shape(index_rank), g.size(0, rank - 1));
                let extent = shape[axis] as f64;
                let dtype = g.pick(&[DType::I64, DType::I32]);
                let indices = g.uniform(dtype, &index_shape, -extent, extent);
                let indices = if g.flag() { Arg::Const(indices) } else { Arg::Var(indices) };
                cases.push(Case::new(
                    Gather { axis: either_end(g, axis, rank) },
                    [any_var(g, &shape), indices],
                ));
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
    fn indices_replace_the_axis() {
        let indices = Tensor::from_slice(&[1, 2], &[-1i64, 0]).unwrap();
        let y = run(Gather { axis: 1 }, &[&iota(&[2, 3, 2]), &indices]).unwrap();
        assert_eq!(y.shape(), [2, 1, 2, 2]);
        assert_eq!(y.to_i64s(), [4, 5, 0, 1, 10, 11, 6, 7]);
        assert_eq!(
            run(Gather { axis: 0 }, &[&iota(&[3]), &Tensor::scalar(2i32)]).unwrap(),
            Tensor::scalar(2i64)
        );
    }

    #[test]
    fn indices_outside_are_refused() {
        for index in [3, -4, i64::MIN, i64::MAX] {
            assert!(run(Gather { axis: 0 }, &[&iota(&[3]), &Tensor::vector(&[0, index])]).is_err());
            assert!(run(Gather { axis: 0 }, &[&iota(&[3]), &Tensor::vector(&[index; 100])]).is_err());
        }
        assert!(run(Gather { axis: 0 }, &[&iota(&[3]), &Tensor::scalar(0f32)]).is_err());
        assert!(run(Gather { axis: 0 }, &[&iota(&[]), &Tensor::scalar(0i64)]).is_err());
    }
}
