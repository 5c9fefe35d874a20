//! Concatenation.

use sora_tensor::Tensor;

use super::movement::{MAX_CONTENT, any_dtype, assemble, either_end, offset};
use super::{Split, attrs, strides};
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{
    Along, Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, Operand, QuantRule, TensorType, TieCx,
    ensure,
};

attrs! {
    /// One or more inputs after each other along one axis; dtype, rank and the other extents are the same.
    /// Source: ONNX Concat.
    pub struct Concat {
        /// The axis to join on, negative from the end.
        axis: i64,
    }
}

impl OpDef for Concat {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        let mut joined = cx.ty(0)?.clone();
        let axis = resolve_axis(self.axis, joined.rank())?;
        for index in 1..cx.types.len() {
            let next = cx.ty(index)?;
            let differ = || Mismatch::new(format!("cannot join {joined} and {next} on axis {axis}"));
            ensure!(next.dtype == joined.dtype && next.rank() == joined.rank(), "{}", differ());
            let shape: Option<Vec<Dim>> = (joined.shape.iter().zip(&next.shape).enumerate())
                .map(|(i, (a, b))| if i == axis { Some(a.clone() + b.clone()) } else { a.unify(b) })
                .collect();
            joined.shape = shape.ok_or_else(differ)?;
        }
        Ok(vec![joined])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let axis = resolve_axis(self.axis, shape.len())?;
        let inputs = (0..cx.inputs.len()).map(|i| cx.get(i)).collect::<Result<Vec<_>, _>>()?;
        let steps: Vec<Vec<usize>> = inputs.iter().map(|x| strides(x.shape())).collect();
        // For each position on the axis: the input that it comes from and the position there.
        let filled = inputs.iter().enumerate().filter(|(_, x)| !x.is_empty());
        let sources: Vec<(usize, usize)> =
            filled.flat_map(|(i, x)| (0..x.shape()[axis]).map(move |at| (i, at))).collect();
        Ok(vec![assemble(dtype, &shape, axis + 1, |index| {
            let (i, at) = sources[index[axis]];
            Some((inputs[i], offset(&index[..axis], &steps[i]) + at * steps[i][axis]))
        })?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let dy = cx.grad()?;
        let axis = resolve_axis(self.axis, cx.shape(dy)?.len())?;
        let extent = |i: usize| Ok::<_, Mismatch>(cx.shape(cx.input(i)?)?[axis]);
        let sizes = (0..cx.arity()).map(extent).collect::<Result<Vec<_>, _>>()?;
        let parts = cx.ops(Split { axis: self.axis, outputs: sizes.len(), sizes }, [dy])?;
        Ok(parts.into_iter().map(Some).collect())
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Unify
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        let mut joined = Vec::new();
        for index in 0..cx.types.len() {
            joined.extend_from_slice(cx.content(index)?);
            if joined.len() > MAX_CONTENT {
                return None;
            }
        }
        Some(joined)
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let joined = resolve_axis(self.axis, cx.out(0)?.rank())?;
        let mut start = Some(0);
        for index in 0..cx.types.len() {
            if let Some(first) = start {
                cx.tie([Along::input(index, joined), Along::output(joined).from(first)]);
            }
            start = start.zip(cx.extent(Operand::Input(index), joined)).map(|(start, extent)| start + extent);
        }
        for axis in (0..cx.out(0)?.rank()).filter(|&axis| axis != joined) {
            let inputs = (0..cx.types.len()).map(|index| Along::input(index, axis));
            cx.tie(std::iter::once(Along::output(axis)).chain(inputs));
        }
        Ok(())
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in [1, 2, 3, 4, 4, 4] {
            for n in [1, 2, 2, 3, 5] {
                let (mut shape, axis, dtype) = (g.shape(rank), g.size(0, rank - 1), any_dtype(g));
                let mut inputs = Vec::new();
                for _ in 0..n {
                    shape[axis] = g.size(0, 5);
                    let x = g.tensor(dtype, &shape);
                    inputs.push(if g.size(0, 3) == 0 { Arg::Const(x) } else { Arg::Var(x) });
                }
                cases.push(Case::new(Concat { axis: either_end(g, axis, rank) }, inputs));
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
    fn inputs_follow_each_other() {
        let (a, b) = (iota(&[2, 1]), iota(&[2, 3]));
        assert_eq!(run(Concat { axis: -1 }, &[&a, &b]).unwrap().to_i64s(), [0, 0, 1, 2, 1, 3, 4, 5]);
        assert_eq!(run(Concat { axis: 0 }, &[&b, &b]).unwrap().shape(), [4, 3]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (a, b, c) = (iota(&[2, 1]), iota(&[3, 1]), iota(&[2]));
        assert!(run(Concat { axis: 1 }, &[&a, &b]).is_err());
        assert!(run(Concat { axis: 0 }, &[&a, &c]).is_err());
        assert!(run(Concat { axis: i64::MIN }, &[&a, &a]).is_err());
        assert!(run(Concat { axis: 0 }, &[&a, &a.cast(sora_tensor::DType::F32)]).is_err());
        assert!(run(Concat { axis: 0 }, &[]).is_err());
    }
}
