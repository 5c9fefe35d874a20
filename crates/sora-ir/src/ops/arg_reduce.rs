//! The position of an extreme element.

use std::borrow::Cow;

use sora_tensor::{DType, Tensor};

use super::attrs;
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// The index, `i64`, of the greatest or least number along one axis. NaN is never chosen over a number before
    /// it. Source: ONNX ArgMax and ArgMin.
    pub struct ArgReduce {
        /// The axis to search; negative counts from the end.
        axis: i64,
        /// Whether the axis stays, with extent 1.
        keep_dims: bool,
        /// Whether to find the greatest; otherwise the least.
        largest: bool,
        /// Whether the last of equal elements wins; otherwise the first.
        select_last: bool,
    }
}

impl OpDef for ArgReduce {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        ensure!(x.dtype != DType::Bool, "takes numbers, found {x}");
        let axis = resolve_axis(self.axis, x.rank())?;
        ensure!(x.shape[axis].constant() != Some(0), "axis {axis} of {x} has no element to choose");
        let mut shape = x.shape.clone();
        match self.keep_dims {
            true => shape[axis] = Dim::from(1usize),
            false => drop(shape.remove(axis)),
        }
        Ok(vec![TensorType { dtype: DType::I64, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (_, shape) = cx.output(self)?;
        let x = cx.get(0)?;
        let axis = resolve_axis(self.axis, x.rank())?;
        if x.is_empty() {
            return Ok(vec![Tensor::zeros(DType::I64, &shape)?]);
        }
        let (extent, inner) = (x.shape()[axis], x.shape()[axis + 1..].iter().product());
        let found = match x.dtype().is_float() {
            true => self.search(&x.to_f64s(), extent, inner),
            false => self.search(&x.to_i128s(), extent, inner),
        };
        Ok(vec![Tensor::from_slice(&shape, &found)?])
    }

    fn label(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(if self.largest { "ArgMax" } else { "ArgMin" }))
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for dtype in [DType::F32, DType::F32, DType::I64, DType::I8, DType::F16] {
            for largest in [true, false] {
                let rank = g.size(1, 4);
                let axis = i64::try_from(g.size(0, rank - 1)).unwrap_or(0);
                let op = ArgReduce {
                    axis: if g.flag() { axis } else { axis - i64::try_from(rank).unwrap_or(0) },
                    keep_dims: g.flag(),
                    largest,
                    select_last: g.flag(),
                };
                let shape = g.shape(rank);
                // A small range makes equal elements likely.
                let x = g.uniform(DType::I8, &shape, -4.0, 4.0).cast(dtype);
                cases.push(Case::new(op, [Arg::Var(x)]));
            }
        }
        cases
    }
}

impl ArgReduce {
    fn search<T: Copy + PartialOrd>(&self, values: &[T], extent: usize, inner: usize) -> Vec<i64> {
        let wins = |a: T, b: T| match self.largest {
            true => a > b || self.select_last && a == b,
            false => a < b || self.select_last && a == b,
        };
        let blocks = values.chunks_exact(extent * inner);
        let lines = blocks.flat_map(|block| (0..inner).map(move |first| (block, first)));
        lines
            .map(|(block, first)| {
                let at = |i: usize| block[i * inner + first];
                let best = (1..extent).fold(0, |best, i| if wins(at(i), at(best)) { i } else { best });
                i64::try_from(best).unwrap_or(i64::MAX)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_first_or_the_last() {
        let x = Tensor::from_slice(&[2, 3], &[3f32, 1., 3., 1., 1., 3.]).unwrap();
        let check = |axis, largest, select_last, expected: &[i64]| {
            let op = ArgReduce { axis, keep_dims: false, largest, select_last };
            let found = op.eval(&EvalCx { inputs: &[Some(&x)] }).unwrap().remove(0);
            assert_eq!(found, Tensor::vector(expected), "{op:?}");
        };
        check(1, true, false, &[0, 2]);
        check(-1, true, true, &[2, 2]);
        check(1, false, false, &[1, 0]);
        check(1, false, true, &[1, 1]);
        check(0, true, false, &[0, 0, 0]);
        check(0, false, true, &[1, 1, 1]);
    }
}
