//! Operators whose axes come late, where they turn out to be constant.

use sora_ir::case::Gen;
use sora_ir::ops::{Late, LateOp, ReduceKind};
use sora_ir::{Graph, IrError, Node, Op};

use super::Rule;
use super::sample::Sketch;
use crate::view::{input, output};
use crate::{Patch, View};

pub(crate) const SETTLE_LATE_AXES: Rule = Rule {
    name: "settle_late_axes",
    doc: "A reduction, Squeeze or Unsqueeze whose axes are an input has them as an attribute where they are known.",
    exact: true,
    apply: settle_late_axes,
    sample: sample_known_axes,
    near_misses: &[miss_axes_of_the_caller],
};

fn settle_late_axes(view: &View, node: &Node) -> Option<Patch> {
    let Op::Late(late) = &node.op else { return None };
    let (x, axes, y) = (input(node, 0)?, view.integers(input(node, 1)?)?, output(node)?);
    Some(match late.with(&axes).ok()? {
        Some(op) => Patch::one(y, &node.name, op, [x]),
        None => Patch::forward(y, x),
    })
}

fn sample_known_axes(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[3, 1, 4]);
    let (keep_dims, none_if_empty) = (s.rng.flag(), s.rng.flag());
    let (op, axes): (LateOp, &[i64]) = match s.rng.size(0, 3) {
        0 => (LateOp::Squeeze, &[2]),
        1 => (LateOp::Unsqueeze, &[-1, 0]),
        2 => (LateOp::Reduce { kind: ReduceKind::Max, keep_dims, none_if_empty }, &[]),
        _ => (LateOp::Reduce { kind: ReduceKind::Max, keep_dims, none_if_empty }, &[-1, 1]),
    };
    let axes = s.integers(axes);
    let y = s.op(Late { op }, [x, axes])?;
    s.done(y)
}

fn miss_axes_of_the_caller(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.input(&[3, 1, 4]);
    let one = s.integers(&[1]);
    // A sum over a slice of the data: no constant, whatever it is.
    let sum = s.op(sora_ir::ops::Cast { to: sora_tensor::DType::I64 }, [x])?;
    let start = s.integers(&[0]);
    let flat = s.integers(&[-1]);
    let flat = s.op(sora_ir::ops::Reshape { allow_zero: false }, [sum, flat])?;
    let axes = s.op(sora_ir::ops::Slice {}, [flat, start, one])?;
    let none = s.integers(&[0]);
    let axes = s.binary(sora_ir::ops::BinaryKind::Mul, axes, none)?;
    let reduce = LateOp::Reduce { kind: ReduceKind::Sum, keep_dims: true, none_if_empty: false };
    let y = s.op(Late { op: reduce }, [x, axes])?;
    s.done(y)
}
