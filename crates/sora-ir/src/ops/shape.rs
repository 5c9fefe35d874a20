//! The shape of a tensor as a tensor.

use sora_tensor::{DType, Tensor};

use super::attrs;
use super::movement::{any_var, signed};
use crate::case::{Case, Gen};
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, TensorType};

attrs! {
    /// The extents of the input's axes `start..end` as a list of `i64`. Negative bounds count from the end,
    /// bounds outside are moved to the ends. Source: ONNX Shape.
    pub struct Shape {
        /// First axis.
        start: i64,
        /// One after the last axis; absent for all.
        end: Option<i64>,
    }
}

impl Shape {
    /// The axes whose extents it lists, of a tensor of this rank.
    pub fn axes(&self, rank: usize) -> std::ops::Range<usize> {
        let resolve = |axis: i64| {
            let from_start = if axis < 0 { axis.saturating_add(signed(rank)) } else { axis };
            usize::try_from(from_start).unwrap_or(0).min(rank)
        };
        let (start, end) = (resolve(self.start), self.end.map_or(rank, resolve));
        start..end.max(start)
    }
}

impl OpDef for Shape {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        Ok(vec![TensorType::new(DType::I64, [self.axes(cx.ty(0)?.rank()).len()])])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        let extents: Vec<i64> = x.shape()[self.axes(x.rank())].iter().map(|&d| signed(d)).collect();
        Ok(vec![Tensor::vector(&extents)])
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        let x = cx.opt(0)?;
        Some(x.shape[self.axes(x.rank())].to_vec())
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in 0..=4 {
            for _ in 0..3 {
                let shape = g.shape(rank);
                let bound = |g: &mut Gen| signed(g.size(0, 12)) - 6;
                let start = if g.flag() { 0 } else { bound(g) };
                let end = g.flag().then(|| bound(g));
                cases.push(Case::new(Shape { start, end }, [any_var(g, &shape)]));
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
    fn bounds_are_clamped() {
        let shape = |start, end| run(Shape { start, end }, &[&iota(&[2, 3, 4])]).unwrap().to_i64s();
        assert_eq!(shape(0, None), [2, 3, 4]);
        assert_eq!(shape(-2, None), [3, 4]);
        assert_eq!(shape(1, Some(-1)), [3]);
        assert!(shape(2, Some(1)).is_empty());
        assert_eq!(shape(i64::MIN, Some(i64::MAX)), [2, 3, 4]);
    }
}
