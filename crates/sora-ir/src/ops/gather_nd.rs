//! Gathering slices by coordinates.

use sora_tensor::{DType, Tensor};

use super::gather::resolve_index;
use super::movement::{MAX_RANK, any_var, assemble, offset};
use super::{Reduction, ScatterNd, attrs, strides};
use crate::case::{Arg, Case, Gen};
use crate::{EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, ensure};

attrs! {
    /// Slices of the data (input 0): each line of the integer indices (input 1) holds the leading coordinates of one,
    /// after the batch axes that data and indices share. Negative coordinates count from the end.
    /// Source: ONNX GatherND.
    pub struct GatherNd {
        /// The number of leading axes that data and indices share.
        batch_dims: usize,
    }
}

/// How many coordinates a line of the indices holds.
///
/// # Errors
/// [`Mismatch`] unless that is known and the data has that many axes after `batch` ones.
pub(super) fn coordinate_len(indices: &TensorType, x: &TensorType, batch: usize) -> Result<usize, Mismatch> {
    ensure!(indices.dtype.is_int(), "indices must be integers, found {indices}");
    ensure!(batch < indices.rank(), "indices {indices} have no axis after {batch} batch axes");
    let known = indices.shape.last().and_then(crate::Dim::known);
    let taken =
        known.ok_or_else(|| Mismatch::new(format!("the last extent of indices {indices} is open")))?;
    ensure!(taken <= x.rank().saturating_sub(batch) && taken > 0, "indices {indices} do not fit data {x}");
    Ok(taken)
}

/// The offset of the slice of `x` for each line of the indices, and the number of elements of a slice.
///
/// # Errors
/// [`Mismatch`] when a coordinate is outside.
pub(super) fn resolve_coordinates(
    x: &Tensor,
    indices: &Tensor,
    batch: usize,
) -> Result<(Vec<usize>, usize), Mismatch> {
    let taken = indices.shape().last().copied().unwrap_or(0);
    let (inner, steps) = (&x.shape()[batch..], strides(x.shape()));
    // Those of an empty tensor saturate, as its strides do.
    let count = |shape: &[usize]| shape.iter().fold(1, |n: usize, &d| n.saturating_mul(d));
    let (lines, per_batch) = (count(&indices.shape()[batch..indices.rank() - 1]), count(inner));
    let mut offsets = Vec::new();
    for (line, coordinates) in indices.to_i64s().chunks_exact(taken).enumerate() {
        let mut at = line.checked_div(lines).unwrap_or(0) * per_batch;
        for ((&index, &extent), step) in coordinates.iter().zip(inner).zip(&steps[batch..]) {
            at += resolve_index(index, extent)? * step;
        }
        offsets.push(at);
    }
    Ok((offsets, count(&inner[taken..])))
}

/// Random indices: lines of coordinates within `extents`.
pub(super) fn any_coordinates(g: &mut Gen, lines: &[usize], extents: &[usize]) -> Arg {
    let count: usize = lines.iter().product();
    let mut values = Vec::new();
    for _ in 0..count {
        values.extend(extents.iter().map(|&d| g.real(-(d as f64), d as f64).trunc()));
    }
    let dtype = g.pick(&[DType::I64, DType::I32]);
    let shape = [lines, &[extents.len()]].concat();
    let indices = Tensor::from_f64s(dtype, &shape, &values).expect("a line for every index");
    // The number of coordinates must be known, which that of a variable input may not be.
    if extents.len() > 1 || g.flag() { Arg::Const(indices) } else { Arg::Var(indices) }
}

impl OpDef for GatherNd {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=2)?;
        let (x, indices, batch) = (cx.ty(0)?, cx.ty(1)?, self.batch_dims);
        ensure!(batch < x.rank(), "data {x} has no axis after {batch} batch axes");
        let taken = coordinate_len(indices, x, batch)?;
        let shared = x.shape[..batch].iter().zip(&indices.shape).all(|(a, b)| a.compatible(b));
        ensure!(shared, "data {x} and indices {indices} differ in the first {batch} axes");
        let lines = &indices.shape[..indices.rank() - 1];
        let shape = [lines, &x.shape[batch + taken..]].concat();
        ensure!(shape.len() <= MAX_RANK, "a rank of {} is above the limit of {MAX_RANK}", shape.len());
        Ok(vec![TensorType { dtype: x.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (x, indices) = (cx.get(0)?, cx.get(1)?);
        let (offsets, _) = resolve_coordinates(x, indices, self.batch_dims)?;
        let visited = indices.rank() - 1;
        let steps = strides(&indices.shape()[..visited]);
        Ok(vec![assemble(dtype, &shape, visited, |index| Some((x, offsets[offset(index, &steps)])))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        ensure!(self.batch_dims == 0, "has a gradient without batch axes only, found {}", self.batch_dims);
        let (data, indices, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let zeros = cx.zeros_like(data)?;
        Ok(vec![Some(cx.op(ScatterNd { reduction: Reduction::Add }, [zeros, indices, dy])?), None])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in [1, 2, 2, 3, 3, 4] {
            let shape = g.shape(rank);
            let batch_dims = g.size(0, rank - 1);
            let taken = g.size(1, rank - batch_dims);
            let index_rank = g.size(0, 2);
            let lines = [&shape[..batch_dims], &g.shape(index_rank)].concat();
            let indices = any_coordinates(g, &lines, &shape[batch_dims..batch_dims + taken]);
            cases.push(Case::new(GatherNd { batch_dims }, [any_var(g, &shape), indices]));
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::{iota, run};
    use super::*;

    fn gather(batch_dims: usize, shape: &[usize], at: &[usize], v: &[i64]) -> Result<Tensor, Mismatch> {
        let indices = Tensor::from_slice(at, v).unwrap();
        run(GatherNd { batch_dims }, &[&iota(shape), &indices])
    }

    #[test]
    fn lines_name_slices() {
        assert_eq!(gather(0, &[2, 2], &[2, 2], &[0, 0, 1, -1]).unwrap().to_i64s(), [0, 3]);
        assert_eq!(gather(0, &[2, 2], &[2, 1], &[1, 0]).unwrap().to_i64s(), [2, 3, 0, 1]);
        let batches = gather(1, &[2, 3, 2], &[2, 1], &[-1, 0]).unwrap();
        assert_eq!((batches.shape(), batches.to_i64s()), (&[2, 2][..], vec![4, 5, 6, 7]));
        assert_eq!(gather(0, &[0, 2], &[0, 1], &[]).unwrap().shape(), [0, 2]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(gather(0, &[2, 2], &[1, 3], &[0, 0, 0]).is_err());
        assert!(gather(0, &[2, 2], &[1, 2], &[0, 2]).is_err());
        assert!(gather(0, &[2, 2], &[1, 2], &[0, i64::MIN]).is_err());
        assert!(gather(1, &[2, 2], &[3, 1], &[0, 0, 0]).is_err());
        assert!(gather(2, &[2, 2], &[2, 1], &[0, 0]).is_err());
        assert_eq!(
            gather(0, &[2, 1 << 20, 1 << 20, 0], &[1, 1], &[1]).unwrap().shape(),
            [1, 1 << 20, 1 << 20, 0]
        );
        assert!(gather(0, &[], &[1], &[0]).is_err());
        assert!(gather(0, &[0, 2], &[1, 1], &[0]).is_err());
        assert!(gather(0, &[2, 2], &[2, 0], &[]).is_err());
    }
}
