//! Splitting along an axis.

use sora_tensor::Tensor;

use super::movement::{any_var, either_end, remap, signed};
use super::{Concat, attrs};
use crate::case::{Case, Gen};
use crate::op::resolve_axis;
use crate::{
    Along, Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, Operand, QuantRule, TensorType, TieCx,
    ensure,
};

attrs! {
    /// The input cut along one axis into parts that follow each other. Source: ONNX Split.
    pub struct Split {
        /// The axis to cut, negative from the end.
        axis: i64,
        /// The number of parts.
        outputs: usize,
        /// Extent of each part; empty for equal parts, of which the last is smaller when the extent of the
        /// axis does not divide.
        sizes: Vec<usize>,
    }
}

/// More parts than a network splits into; a bound against files that claim any number.
const MAX_OUTPUTS: usize = 1 << 16;

impl Split {
    fn parts(&self, extent: &Dim) -> Result<Vec<Dim>, Mismatch> {
        ensure!(
            (1..=MAX_OUTPUTS).contains(&self.outputs),
            "cannot split into {} parts, only into 1 to {MAX_OUTPUTS}",
            self.outputs
        );
        if self.sizes.is_empty() {
            let n = signed(self.outputs);
            let part = extent.exact_div(&Dim::from(n)).unwrap_or_else(|| extent.ceil_div(n));
            let last = extent.clone() - part.clone() * Dim::from(n - 1);
            ensure!(last.constant().is_none_or(|v| v >= 0), "an extent of {extent} does not make {n} parts");
            let mut parts = vec![part; self.outputs];
            parts[self.outputs - 1] = last;
            return Ok(parts);
        }
        ensure!(
            self.sizes.len() == self.outputs,
            "{} sizes do not fit {} parts",
            self.sizes.len(),
            self.outputs
        );
        let sum = self.sizes.iter().fold(0, |sum: usize, &size| sum.saturating_add(size));
        ensure!(extent.compatible(&Dim::from(sum)), "sizes {:?} do not add up to {extent}", self.sizes);
        Ok(self.sizes.iter().map(|&size| Dim::from(size)).collect())
    }
}

impl OpDef for Split {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        let axis = resolve_axis(self.axis, x.rank())?;
        let parts = self.parts(&x.shape[axis])?.into_iter().map(|part| {
            let mut ty = x.clone();
            ty.shape[axis] = part;
            ty
        });
        Ok(parts.collect())
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        let axis = resolve_axis(self.axis, x.rank())?;
        let mut start = 0;
        let part = |ty: TensorType| {
            let shape = ty.known_shape().ok_or_else(|| Mismatch::new(format!("a part {ty} is not known")))?;
            let first = start;
            start += shape[axis];
            remap(x, &shape, axis + 1, |a, i| if a == axis { first + i } else { i })
        };
        cx.infer(self)?.into_iter().map(part).collect()
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let parts = (0..self.outputs).map(|i| cx.grad_of(i)).collect::<Result<Vec<_>, _>>()?;
        Ok(vec![Some(cx.op(Concat { axis: self.axis }, parts)?)])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        let content = cx.content(0)?;
        let first = self.parts(&Dim::from(content.len())).ok()?.first()?.known()?;
        content.get(..first).map(<[Dim]>::to_vec)
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let cut = resolve_axis(self.axis, cx.ty(0)?.rank())?;
        let mut start = Some(0);
        for part in (0..cx.outputs()).map(Operand::Output) {
            if let Some(first) = start {
                cx.tie([Along::output(cut).of(part), Along::input(0, cut).from(first)]);
            }
            start = start.zip(cx.extent(part, cut)).map(|(start, extent)| start + extent);
        }
        cx.same_axes(|axis| axis == cut)
    }

    fn narrowed(&self, _: &[Option<&TensorType>], outputs: &[&TensorType]) -> Self {
        let extent = |ty: &&TensorType| ty.shape.get(resolve_axis(self.axis, ty.rank()).ok()?)?.known();
        match outputs.iter().map(extent).collect() {
            Some(sizes) => Split { sizes, ..self.clone() },
            None => self.clone(),
        }
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in [1, 2, 3, 4, 4] {
            for given in [false, true] {
                let (mut shape, axis, outputs) = (g.shape(rank), g.size(0, rank - 1), g.size(1, 4));
                let sizes = if given { (0..outputs).map(|_| g.size(0, 3)).collect() } else { vec![] };
                // Of equal parts all but the last are full, and the last is at most as large.
                let part = g.size(1, 3);
                shape[axis] = if given { sizes.iter().sum() } else { part * (outputs - 1) + g.size(1, part) };
                let op = Split { axis: either_end(g, axis, rank), outputs, sizes };
                cases.push(Case::new(op, [any_var(g, &shape)]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    fn split(extent: usize, outputs: usize, sizes: &[usize]) -> Result<Vec<Vec<i64>>, Mismatch> {
        let x = super::super::movement::iota(&[1, extent]);
        let op = Op::from(Split { axis: -1, outputs, sizes: sizes.to_vec() });
        let parts = op.eval(&EvalCx { inputs: &[Some(&x)] })?;
        Ok(parts.iter().map(Tensor::to_i64s).collect())
    }

    #[test]
    fn parts_follow_each_other() {
        assert_eq!(split(5, 3, &[]).unwrap(), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(split(3, 3, &[1, 0, 2]).unwrap(), [vec![0], vec![], vec![1, 2]]);
    }

    #[test]
    fn hostile_parts_are_refused() {
        assert!(split(5, 0, &[]).is_err());
        assert!(split(5, usize::MAX, &[]).is_err());
        assert!(split(5, 4, &[]).is_err());
        assert!(split(5, 2, &[5]).is_err());
        assert!(split(5, 2, &[usize::MAX, 6]).is_err());
    }

    #[test]
    fn symbolic_extents_divide() {
        let op = Split { axis: 0, outputs: 2, sizes: vec![] };
        let n = Dim::symbol("N");
        assert_eq!(op.parts(&(n.clone() * Dim::from(2usize))).unwrap(), [n.clone(), n.clone()]);
        assert_eq!(op.parts(&n).unwrap()[0], n.ceil_div(2));
    }
}
