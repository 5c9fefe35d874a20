//! Repetition.

use sora_tensor::Tensor;

use super::movement::{any_var, list, list_extent, remap, signed};
use super::{ReduceKind, attrs};
use crate::case::{Case, Gen};
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, ensure};

attrs! {
    /// The first input repeated as a whole along each axis, as often as the list in the second input says.
    /// Source: ONNX Tile.
    pub struct Tile {}
}

impl OpDef for Tile {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=2)?;
        let (x, count) = (cx.ty(0)?, list_extent(cx, 1)?);
        ensure!(count.compatible(&Dim::from(x.rank())), "{count} repeats do not fit {x}");
        let repeats = cx.content(1);
        if let Some(repeats) = repeats {
            let negative = repeats.iter().any(|r| r.constant().is_some_and(|v| v < 0));
            ensure!(repeats.len() == x.rank() && !negative, "repeats {repeats:?} do not fit {x}");
        }
        let extent = |(axis, dim): (usize, &Dim)| match repeats {
            Some(repeats) => dim.clone() * repeats[axis].clone(),
            None => cx.unknown(axis),
        };
        Ok(vec![TensorType { dtype: x.dtype, shape: x.shape.iter().enumerate().map(extent).collect() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (_, shape) = cx.output(self)?;
        let x = cx.get(0)?;
        Ok(vec![remap(x, &shape, shape.len(), |axis, i| i % x.shape()[axis])?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (shape, dy) = (cx.shape(cx.input(0)?)?, cx.grad()?);
        let tiled = cx.shape(dy)?;
        // Each axis as repeats × extent, summed over the repeats.
        let repeats = shape.iter().zip(&tiled).map(|(&d, &t)| [t.checked_div(d).unwrap_or(0), d]);
        let pairs: Vec<usize> = repeats.flatten().collect();
        let axes: Vec<usize> = (0..shape.len()).map(|axis| 2 * axis).collect();
        let pairs = cx.reshape(dy, &pairs)?;
        let sum = cx.reduce(ReduceKind::Sum, pairs, &axes)?;
        Ok(vec![Some(cx.reshape(sum, &shape)?)])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in 0..=4 {
            for _ in 0..3 {
                let shape = g.shape(rank);
                let repeats: Vec<i64> = shape.iter().map(|_| signed(g.size(0, 9).div_ceil(3))).collect();
                cases.push(Case::new(Tile {}, [any_var(g, &shape), list(repeats)]));
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
    fn wholes_repeat() {
        let tile = |repeats: &[i64]| run(Tile {}, &[&iota(&[2, 2]), &Tensor::vector(repeats)]);
        assert_eq!(tile(&[1, 2]).unwrap().to_i64s(), [0, 1, 0, 1, 2, 3, 2, 3]);
        assert_eq!(tile(&[2, 1]).unwrap().to_i64s(), [0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(tile(&[0, 1]).unwrap().shape(), [0, 2]);
        for repeats in [&[2][..], &[-1, 1], &[i64::MAX, 1], &[1 << 62, 1 << 62]] {
            assert!(tile(repeats).is_err());
        }
    }
}
