//! Padding and cropping.

use serde::{Deserialize, Serialize};
use sora_tensor::Tensor;

use super::movement::{
    any_dtype, assemble, distinct_axes, either_end, is_single, leading, list, list_extent, numbers, signed,
};
use super::{attrs, strides};
use crate::case::{Arg, Case, Gen};
use crate::op::infer_concrete;
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

/// What stands in the padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PadMode {
    /// One value.
    Constant,
    /// The nearest element.
    Edge,
    /// The elements mirrored at the first and last one, which are not repeated.
    Reflect,
    /// The elements from the other end.
    Wrap,
}

attrs! {
    /// The data with elements added before and after some axes. Inputs: data, pads (befores, then afters, one
    /// each per axis), value? (one element, default 0), axes? (default all). A negative pad crops, in constant
    /// mode only. Source: ONNX Pad.
    pub struct Pad {
        /// What stands in the padding.
        mode: PadMode,
    }
}

/// Elements before and after one axis, where known.
type Sides = (Option<Dim>, Option<Dim>);

impl Pad {
    /// What is added to each axis; `None` while the axes are not known.
    fn pads(&self, cx: &InferCx) -> Result<Option<Vec<Sides>>, Mismatch> {
        cx.arity(2..=4)?;
        let (x, count) = (cx.ty(0)?, list_extent(cx, 1)?);
        let axes = match cx.opt(3) {
            None => (0..x.rank()).collect(),
            Some(_) => {
                list_extent(cx, 3)?;
                match numbers(cx, 3) {
                    Some(axes) => distinct_axes(&axes, x.rank())?,
                    None => return Ok(None),
                }
            }
        };
        ensure!(
            count.compatible(&Dim::from(2 * axes.len())),
            "{count} pads do not fit {} axes of {x}",
            axes.len()
        );
        let zero = Some(Dim::from(0usize));
        let mut pads = vec![(zero.clone(), zero); x.rank()];
        let at = |i: usize| cx.content(1).and_then(|c| c.get(i).cloned());
        for (i, &axis) in axes.iter().enumerate() {
            pads[axis] = (at(i), at(axes.len() + i));
        }
        Ok(Some(pads))
    }

    /// The position in an axis of `extent` that the padded position `at`, relative to the first element,
    /// shows; `None` for the constant.
    pub fn source(&self, at: i128, extent: usize) -> Option<usize> {
        let n = extent as i128;
        let position = match self.mode {
            PadMode::Constant => at,
            PadMode::Edge => at.clamp(0, (n - 1).max(0)),
            PadMode::Wrap => at.rem_euclid(n.max(1)),
            PadMode::Reflect => {
                let last = n - 1;
                last - (at.rem_euclid((2 * last).max(1)) - last).abs()
            }
        };
        usize::try_from(position).ok().filter(|&p| p < extent)
    }
}

impl OpDef for Pad {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        let pads = self.pads(cx)?;
        let x = cx.ty(0)?;
        if let Some(value) = cx.opt(2) {
            ensure!(value.dtype == x.dtype && is_single(value), "value {value} does not fit {x}");
        }
        let Some(pads) = pads else {
            let shape: Vec<Dim> = (0..x.rank()).map(|axis| cx.unknown(axis)).collect();
            return Ok(vec![TensorType { dtype: x.dtype, shape }]);
        };
        let mut shape = Vec::with_capacity(pads.len());
        for (axis, (dim, pads)) in x.shape.iter().zip(pads).enumerate() {
            let (Some(before), Some(after)) = pads else {
                shape.push(cx.unknown(axis));
                continue;
            };
            for pad in [&before, &after].into_iter().filter_map(Dim::constant) {
                let plain = self.mode == PadMode::Constant;
                ensure!(
                    plain || pad >= 0,
                    "{:?} padding of {pad} would crop; only Constant crops",
                    self.mode
                );
                let empty = dim.constant() == Some(0);
                ensure!(plain || pad == 0 || !empty, "axis {axis} of {x} has nothing to pad with");
            }
            shape.push(dim.clone() + before + after);
        }
        Ok(vec![TensorType { dtype: x.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (x, value) = (cx.get(0)?, cx.opt(2));
        let number = |pad: Option<Dim>| pad.and_then(|p| p.constant());
        let pads = infer_concrete(cx.inputs, |cx| self.pads(cx))?.unwrap_or_default();
        let befores: Option<Vec<i64>> = pads.into_iter().map(|(before, _)| number(before)).collect();
        let befores = befores.ok_or_else(|| Mismatch::new("the pads are not known"))?;
        // A value is one element, so that the axes are walked to the last where one may be needed.
        let visited = match value {
            Some(_) => shape.len(),
            None => leading(shape.len(), |axis| befores[axis] != 0 || shape[axis] != x.shape()[axis]),
        };
        let steps = strides(x.shape());
        Ok(vec![assemble(dtype, &shape, visited, |index| {
            let inside = index.iter().enumerate().try_fold(0, |offset, (axis, &i)| {
                let at = i as i128 - i128::from(befores[axis]);
                Some(offset + self.source(at, x.shape()[axis])? * steps[axis])
            });
            inside.map(|offset| (x, offset)).or(value.map(|value| (value, 0)))
        })?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        ensure!(
            self.mode == PadMode::Constant,
            "has a gradient in constant mode only, found {:?}",
            self.mode
        );
        cx.refuse(2, "the value of the padding")?;
        let dy = cx.grad()?;
        let back: Vec<i64> = cx.numbers(cx.input(1)?)?.iter().map(|n| -n).collect();
        let (back, axes) = (cx.list(&back), cx.opt(3));
        Ok(vec![Some(cx.op(self.clone(), [Some(dy), Some(back), None, axes])?), None, None, None])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let pads = self.pads(cx)?.ok_or_else(|| Mismatch::new("pads axes that are not known"))?;
        let zero = |side: &Option<Dim>| side.as_ref().is_some_and(|pad| pad.constant() == Some(0));
        cx.same_axes(|axis| pads.get(axis).is_none_or(|(before, after)| !zero(before) || !zero(after)))
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for mode in [PadMode::Constant, PadMode::Constant, PadMode::Edge, PadMode::Reflect, PadMode::Wrap] {
            for rank in [1, 2, 3, 4, 4] {
                let (shape, dtype) = (g.shape(rank), any_dtype(g));
                let first = g.size(0, rank - 1);
                let mut pads = [Vec::new(), Vec::new()];
                for &extent in &shape[first..] {
                    for side in &mut pads {
                        side.push(match mode {
                            // Crops at most a part of the axis on both sides together.
                            PadMode::Constant => signed(g.size(0, 4)) - signed((extent - 1) / 2).min(2),
                            PadMode::Reflect => signed(g.size(0, extent - 1)),
                            _ => signed(g.size(0, extent)),
                        });
                    }
                }
                let axes: Vec<i64> = (first..rank).map(|axis| either_end(g, axis, rank)).collect();
                let mut inputs = vec![Arg::Var(g.tensor(dtype, &shape)), list(pads.concat())];
                let value = g.flag() && mode == PadMode::Constant;
                inputs.push(if value { Arg::Const(g.tensor(dtype, &[])) } else { Arg::Absent });
                if first > 0 || g.flag() {
                    inputs.push(list(axes));
                }
                cases.push(Case::new(Pad { mode }, inputs));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::{iota, run};
    use super::*;

    fn pad(mode: PadMode, extent: usize, before: i64, after: i64) -> Result<Vec<i64>, Mismatch> {
        let (x, pads, value) = (iota(&[extent]), Tensor::vector(&[before, after]), Tensor::scalar(9i64));
        Ok(run(Pad { mode }, &[&x, &pads, &value])?.to_i64s())
    }

    #[test]
    fn modes_differ_in_what_they_show() {
        assert_eq!(pad(PadMode::Constant, 3, 2, 1).unwrap(), [9, 9, 0, 1, 2, 9]);
        assert_eq!(pad(PadMode::Edge, 3, 2, 1).unwrap(), [0, 0, 0, 1, 2, 2]);
        assert_eq!(pad(PadMode::Reflect, 3, 2, 1).unwrap(), [2, 1, 0, 1, 2, 1]);
        assert_eq!(pad(PadMode::Reflect, 1, 1, 1).unwrap(), [0, 0, 0]);
        assert_eq!(pad(PadMode::Wrap, 3, 2, 1).unwrap(), [1, 2, 0, 1, 2, 0]);
        assert_eq!(pad(PadMode::Constant, 4, -1, -2).unwrap(), [1]);
        assert_eq!(pad(PadMode::Constant, 4, -2, 1).unwrap(), [2, 3, 9]);
        assert_eq!(pad(PadMode::Constant, 0, 1, 1).unwrap(), [9, 9]);
    }

    #[test]
    fn hostile_pads_are_refused() {
        assert!(pad(PadMode::Edge, 3, -1, 0).unwrap_err().0.contains("Edge"));
        assert!(pad(PadMode::Wrap, 0, 1, 0).is_err());
        assert!(pad(PadMode::Constant, 3, -2, -2).is_err());
        assert!(pad(PadMode::Constant, 3, i64::MAX, i64::MAX).is_err());
        assert!(pad(PadMode::Constant, 3, i64::MIN, 0).is_err());
        assert!(run(Pad { mode: PadMode::Edge }, &[&iota(&[3]), &Tensor::vector(&[1i64])]).is_err());
    }

    #[test]
    fn listed_axes_are_padded_alone() {
        let (x, pads, axes) = (iota(&[2, 2]), Tensor::vector(&[1i64, 0]), Tensor::vector(&[-1i64]));
        let inputs = [Some(&x), Some(&pads), None, Some(&axes)];
        let y = crate::Op::from(Pad { mode: PadMode::Constant }).eval(&EvalCx { inputs: &inputs }).unwrap();
        assert_eq!(y[0].to_i64s(), [0, 0, 1, 0, 2, 3]);
    }
}
