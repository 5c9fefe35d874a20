//! Operators whose axes or sizes are known only while the model runs.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sora_tensor::{DType, Tensor};

use super::movement::{MAX_RANK, either_end, signed};
use super::{Op, Reduce, ReduceKind, Split, Squeeze, Unsqueeze, attrs};
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

/// An operator without the numbers that come late.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LateOp {
    /// [`Reduce`] without its axes.
    Reduce {
        /// Which function.
        kind: ReduceKind,
        /// Whether reduced axes stay, with extent 1.
        keep_dims: bool,
        /// Whether no axes mean none instead of all.
        none_if_empty: bool,
    },
    /// [`Split`] without its sizes.
    Split {
        /// The axis to cut, negative from the end.
        axis: i64,
        /// The number of parts.
        outputs: usize,
    },
    /// [`Squeeze`] without its axes.
    Squeeze,
    /// [`Unsqueeze`] without its axes.
    Unsqueeze,
}

attrs! {
    /// An operator whose axes, or sizes of parts, are its second input: a list of integers, of known length so that the
    /// rank of the result is known. Source: the ONNX operators Reduce…, Split, Squeeze and Unsqueeze.
    pub struct Late {
        /// The operator.
        op: LateOp,
    }
}

impl Late {
    /// The operator with its numbers; `None` when it gives its input unchanged.
    ///
    /// # Errors
    /// [`Mismatch`] for a negative size.
    pub fn with(&self, numbers: &[i64]) -> Result<Option<Op>, Mismatch> {
        let axes = numbers.to_vec();
        Ok(Some(match self.op {
            LateOp::Reduce { none_if_empty: true, .. } if axes.is_empty() => return Ok(None),
            LateOp::Reduce { kind, keep_dims, .. } => Reduce { kind, axes, keep_dims }.into(),
            LateOp::Squeeze => Squeeze { axes }.into(),
            LateOp::Unsqueeze => Unsqueeze { axes }.into(),
            LateOp::Split { axis, outputs } => {
                let size = |&n: &i64| {
                    usize::try_from(n).map_err(|_| Mismatch::new(format!("the size {n} is negative")))
                };
                ensure!(numbers.len() == outputs, "{} sizes do not fit {outputs} parts", numbers.len());
                let sizes = numbers.iter().map(size).collect::<Result<_, _>>()?;
                Split { axis, outputs, sizes }.into()
            }
        }))
    }
}

/// The context of the operator without the late numbers.
fn first_only<'a>(cx: &InferCx<'a>) -> InferCx<'a> {
    InferCx {
        node: cx.node,
        types: vec![cx.opt(0)],
        constants: vec![cx.constant(0)],
        contents: vec![cx.content(0).map(<[Dim]>::to_vec)],
    }
}

impl OpDef for Late {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=2)?;
        let (x, numbers) = (cx.ty(0)?, cx.ty(1)?);
        ensure!(
            matches!(numbers.dtype, DType::I64 | DType::I32) && numbers.rank() == 1,
            "the numbers must be a list of i64 or i32, found {numbers}"
        );
        let constant = cx.constant(1).map(Tensor::to_i64s);
        let known = constant.or_else(|| cx.content(1)?.iter().map(Dim::constant).collect());
        let known = known.or_else(|| (numbers.known_len() == Some(0)).then(Vec::new));
        if let Some(known) = known {
            return match self.with(&known)? {
                Some(op) => op.infer(&first_only(cx)),
                None => Ok(vec![x.clone()]),
            };
        }
        let unknown = |rank| TensorType::new(x.dtype, (0..rank).map(|axis| cx.unknown(axis)));
        let count = numbers.known_len();
        let counted = || count.ok_or_else(|| Mismatch::new(format!("the length of {numbers} is not known")));
        match self.op {
            LateOp::Reduce { kind, keep_dims, .. } => {
                // That the function takes the type does not depend on the axes.
                Reduce { kind, axes: Vec::new(), keep_dims }.infer(&first_only(cx))?;
                let left = if keep_dims { Some(x.rank()) } else { x.rank().checked_sub(counted()?) };
                let left = left.ok_or_else(|| Mismatch::new(format!("{x} has fewer axes than {numbers}")))?;
                Ok(vec![unknown(left)])
            }
            LateOp::Squeeze => {
                let left = x.rank().checked_sub(counted()?);
                let left = left.ok_or_else(|| Mismatch::new(format!("{x} has fewer axes than {numbers}")))?;
                Ok(vec![unknown(left)])
            }
            LateOp::Unsqueeze => {
                let rank = x.rank().saturating_add(counted()?);
                ensure!(rank <= MAX_RANK, "a rank of {rank} is above the limit of {MAX_RANK}");
                Ok(vec![unknown(rank)])
            }
            LateOp::Split { axis, outputs } => {
                let axis = resolve_axis(axis, x.rank())?;
                ensure!(
                    outputs <= 1 << 16 && count.is_none_or(|count| count == outputs),
                    "sizes {numbers} do not fit {outputs} parts"
                );
                let part = |output| {
                    let mut ty = x.clone();
                    ty.shape[axis] = cx.unknown_at(output, axis);
                    ty
                };
                Ok((0..outputs).map(part).collect())
            }
        }
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        match self.with(&cx.get(1)?.to_i64s())? {
            Some(op) => op.eval(&EvalCx { inputs: &[Some(x)] }),
            None => Ok(vec![x.clone()]),
        }
    }

    fn label(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(match self.op {
            LateOp::Reduce { kind, .. } => kind.name(),
            LateOp::Split { .. } => "Split",
            LateOp::Squeeze => "Squeeze",
            LateOp::Unsqueeze => "Unsqueeze",
        }))
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut case = |g: &mut Gen, op: LateOp, shape: &[usize], numbers: Vec<i64>| {
            let x = Arg::Var(g.tensor(DType::F32, shape));
            let numbers = Tensor::vector(&numbers);
            let numbers = if g.size(0, 3) == 0 { Arg::Const(numbers) } else { Arg::Var(numbers) };
            cases.push(Case::new(Late { op }, [x, numbers]));
        };
        for kind in [ReduceKind::Max, ReduceKind::Mean, ReduceKind::Sum, ReduceKind::L1] {
            for (keep_dims, none_if_empty) in [(false, false), (false, true), (true, false), (true, true)] {
                let rank = g.size(1, 4);
                let shape = g.shape(rank);
                let axes: Vec<usize> = (0..rank).filter(|_| g.flag()).collect();
                let axes = axes.into_iter().map(|axis| either_end(g, axis, rank)).collect();
                case(g, LateOp::Reduce { kind, keep_dims, none_if_empty }, &shape, axes);
            }
        }
        for rank in 1..=4 {
            let mut shape = g.shape(rank);
            let axes: Vec<usize> = (0..rank).filter(|_| g.flag()).collect();
            let numbers: Vec<i64> = axes.iter().map(|&axis| either_end(g, axis, rank)).collect();
            let positions = axes.iter().map(|&axis| either_end(g, axis, rank + axes.len())).collect();
            case(g, LateOp::Unsqueeze, &shape, positions);
            axes.iter().for_each(|&axis| shape[axis] = 1);
            case(g, LateOp::Squeeze, &shape, numbers);
            let (axis, sizes) = (g.size(0, rank - 1), [g.size(0, 3), g.size(1, 3)]);
            shape[axis] = sizes.iter().sum();
            let op = LateOp::Split { axis: either_end(g, axis, rank), outputs: 2 };
            case(g, op, &shape, sizes.map(signed).to_vec());
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::iota;
    use super::*;

    #[test]
    fn numbers_that_do_not_fit_are_refused_while_the_model_runs() {
        let run = |op: LateOp, x: &Tensor, numbers: &[i64]| {
            Op::from(Late { op }).eval(&EvalCx { inputs: &[Some(x), Some(&Tensor::vector(numbers))] })
        };
        let sum = |none_if_empty| LateOp::Reduce { kind: ReduceKind::Sum, keep_dims: false, none_if_empty };
        let x = iota(&[2, 3]);
        assert_eq!(run(sum(false), &x, &[-1]).unwrap()[0].shape(), [2]);
        assert_eq!(run(sum(false), &x, &[]).unwrap()[0].shape(), [0usize; 0]);
        assert_eq!(run(sum(true), &x, &[]).unwrap()[0].shape(), [2, 3]);
        assert!(run(sum(false), &x, &[2]).is_err() && run(sum(false), &x, &[0, 0]).is_err());
        let split = || LateOp::Split { axis: 1, outputs: 2 };
        assert_eq!(run(split(), &x, &[1, 2]).unwrap()[1].shape(), [2, 2]);
        for sizes in [&[1, 1][..], &[4, -1], &[3], &[i64::MAX, 4]] {
            assert!(run(split(), &x, sizes).is_err(), "{sizes:?}");
        }
        assert!(run(LateOp::Squeeze, &x, &[0]).is_err());
        assert!(run(LateOp::Unsqueeze, &x, &[4]).is_err());
    }
}
