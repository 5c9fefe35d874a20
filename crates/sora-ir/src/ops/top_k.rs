//! The largest or smallest elements along an axis.

use sora_tensor::{DType, Tensor};

use super::{Reduction, ScatterElements, attrs};
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// The k largest or smallest elements along one axis, best first, and their `i64` positions. Of equal elements
    /// the one of lower position comes first; a NaN ranks above every number. Inputs: x and k, one `i64` element.
    /// Source: ONNX TopK, whose unsorted form may have any order.
    pub struct TopK {
        /// Axis to select along, counted from the end when negative.
        axis: i64,
        /// Whether to select the largest.
        largest: bool,
    }
}

impl OpDef for TopK {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=2)?;
        let (x, k) = (cx.ty(0)?, cx.ty(1)?);
        let axis = resolve_axis(self.axis, x.rank())?;
        ensure!(x.dtype != DType::Bool, "takes numbers, found {x}");
        ensure!(
            k.dtype == DType::I64
                && k.rank() <= 1
                && k.shape.iter().all(|d| d.constant().is_none_or(|n| n == 1)),
            "k must be one i64 element, found {k}"
        );
        let count = match cx.content(1) {
            Some([count]) => count.clone(),
            _ => cx.unknown(axis),
        };
        if let (Some(count), Some(extent)) = (count.constant(), x.shape[axis].constant()) {
            ensure!(
                (0..=extent).contains(&count),
                "k is {count}, but axis {axis} of {x} has {extent} elements"
            );
        }
        let mut shape: Vec<Dim> = x.shape.clone();
        shape[axis] = count;
        let positions = TensorType { dtype: DType::I64, shape: shape.clone() };
        Ok(vec![TensorType { dtype: x.dtype, shape }, positions])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (x, (dtype, shape)) = (cx.get(0)?, cx.output(self)?);
        let axis = resolve_axis(self.axis, x.rank())?;
        let (extent, count) = (x.shape()[axis], shape[axis]);
        let inner: usize = x.shape()[axis + 1..].iter().product();
        // Order by value; integers go through i128, so that large ones stay apart.
        let (floats, ints) = (x.to_f64s(), x.to_i128s());
        let ascending = |a: usize, b: usize| match dtype.is_float() {
            true => floats[a].partial_cmp(&floats[b]).unwrap_or(floats[a].is_nan().cmp(&floats[b].is_nan())),
            false => ints[a].cmp(&ints[b]),
        };
        let len: usize = shape.iter().product();
        let mut sources = vec![0; len];
        let mut positions = vec![0i64; len];
        for lane in 0..len.checked_div(count).unwrap_or(0) {
            let at = |i: usize| (lane / inner * extent + i) * inner + lane % inner;
            let mut order: Vec<usize> = (0..extent).collect();
            order.sort_by(|&a, &b| match self.largest {
                true => ascending(at(b), at(a)),
                false => ascending(at(a), at(b)),
            });
            for (rank, &i) in order.iter().take(count).enumerate() {
                let to = (lane / inner * count + rank) * inner + lane % inner;
                sources[to] = at(i);
                positions[to] = i as i64;
            }
        }
        let values = match dtype.is_float() {
            true => {
                Tensor::from_f64s(dtype, &shape, &sources.iter().map(|&i| floats[i]).collect::<Vec<_>>())?
            }
            false => {
                Tensor::from_i128s(dtype, &shape, &sources.iter().map(|&i| ints[i]).collect::<Vec<_>>())?
            }
        };
        Ok(vec![values, Tensor::from_slice(&shape, &positions)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (x, positions, dy) = (cx.input(0)?, cx.output(1)?, cx.grad()?);
        let zeros = cx.zeros_like(x)?;
        let add = ScatterElements { axis: self.axis, reduction: Reduction::Add };
        Ok(vec![Some(cx.op(add, [zeros, positions, dy])?), None])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let case = |&dtype: &DType| {
            let rank = g.size(1, 4);
            let shape = g.shape(rank);
            let axis = g.size(0, rank - 1);
            let signed = axis as i64 - if g.flag() { rank as i64 } else { 0 };
            let k = Tensor::vector(&[g.size(0, shape[axis]) as i64]);
            let op = TopK { axis: signed, largest: g.flag() };
            Case::new(op, [Arg::Var(g.tensor(dtype, &shape)), Arg::Const(k)])
        };
        [DType::F32, DType::F32, DType::I64, DType::U8, DType::F16].iter().map(case).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_elements_keep_their_order_and_nan_ranks_highest() {
        let x = Tensor::vector(&[1f32, 3.0, f32::NAN, 3.0, 2.0]);
        let k = Tensor::vector(&[3i64]);
        let run = |largest| {
            let inputs = [Some(&x), Some(&k)];
            TopK { axis: -1, largest }.eval(&EvalCx { inputs: &inputs }).unwrap()[1].to_i64s()
        };
        assert_eq!(run(true), [2, 1, 3]);
        assert_eq!(run(false), [0, 4, 1]);
    }
}
