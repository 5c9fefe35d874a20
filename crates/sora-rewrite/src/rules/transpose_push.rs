//! Transposes that sink through other operators towards the results, so that those of one layout region meet and
//! cancel. Every rule moves a Transpose down and none moves one up, which is why they end.

use sora_ir::case::Gen;
use sora_ir::ops::{
    Activation, ActivationKind, BinaryKind, Cast, Concat, DequantizeLinear, QuantizeLinear, Reduce,
    ReduceKind, Softmax, Transpose, UnaryKind,
};
use sora_ir::{Graph, IrError, Node, Op, ValueId, resolve_axis};
use sora_tensor::{DType, Tensor};

use super::Rule;
use super::sample::Sketch;
use super::transpose::{inverse, transposed};
use crate::view::{input, output};
use crate::{Patch, Term, View};

pub(crate) const PUSH_TRANSPOSE_THROUGH_ELEMENTWISE: Rule = Rule {
    name: "push_transpose_through_elementwise",
    doc: "A function of each element comes before a Transpose, not after.",
    exact: true,
    apply: push_through_elementwise,
    sample: sample_elementwise,
    near_misses: &[miss_shared_transpose],
};

pub(crate) const PUSH_TRANSPOSE_THROUGH_BINARY: Rule = Rule {
    name: "push_transpose_through_binary",
    doc: "A function of two operands that are transposed alike, or one of them constant, comes before the Transpose.",
    exact: true,
    apply: push_through_binary,
    sample: sample_binary,
    near_misses: &[miss_different_transposes, miss_constant_that_grows],
};

pub(crate) const PUSH_TRANSPOSE_THROUGH_AXIS: Rule = Rule {
    name: "push_transpose_through_axis",
    doc: "A reduction or Softmax along an axis comes before a Transpose, along the axis it came from.",
    exact: false,
    apply: push_through_axis,
    sample: sample_axis,
    near_misses: &[miss_shared_before_reduce],
};

pub(crate) const PUSH_TRANSPOSE_THROUGH_CONCAT: Rule = Rule {
    name: "push_transpose_through_concat",
    doc: "A Concat of values that are transposed alike comes before the Transpose.",
    exact: true,
    apply: push_through_concat,
    sample: sample_concat,
    near_misses: &[miss_concat_of_different],
};

/// The permutation and the input of the Transpose that makes `value` and nothing else.
fn sinking<'a>(view: &View<'a>, value: ValueId) -> Option<(&'a Transpose, &'a Node, ValueId)> {
    let (transpose, node) = view.made_only_by::<Transpose>(value)?;
    Some((transpose, node, input(node, 0)?))
}

/// Ends a patch with `op` on `inputs` and the Transpose after it.
fn sink(
    mut patch: Patch,
    node: &Node,
    op: Op,
    inputs: impl IntoIterator<Item = Option<Term>>,
    (perm, name): (Vec<usize>, &str),
) -> Option<Patch> {
    let mut y = patch.node_with_optional(&node.name, op, inputs);
    if !perm.is_sorted() {
        y = patch.node(name, Transpose { perm }, [y]);
    }
    Some(patch.replace(output(node)?, y))
}

fn push_through_elementwise(view: &View, node: &Node) -> Option<Patch> {
    let (Transpose { perm }, before, x) = sinking(view, input(node, 0)?)?;
    // A scale per axis follows its axis; a scale per block is tied to the layout.
    let moved_axis = |axis: i64| match view.ty(input(node, 1)?).rank() {
        0 => Some(axis),
        1 => i64::try_from(perm[resolve_axis(axis, perm.len()).ok()?]).ok(),
        _ => None,
    };
    let op: Op = match &node.op {
        Op::Unary(_) | Op::Activation(_) | Op::Cast(_) => node.op.clone(),
        Op::QuantizeLinear(op) => QuantizeLinear { axis: moved_axis(op.axis)?, ..op.clone() }.into(),
        Op::DequantizeLinear(op) => DequantizeLinear { axis: moved_axis(op.axis)? }.into(),
        _ => return None,
    };
    let rest = node.inputs.iter().skip(1).map(|v| v.map(Into::into));
    let inputs = [Some(x.into())].into_iter().chain(rest);
    sink(Patch::new(), node, op, inputs, (perm.clone(), &before.name))
}

fn push_through_binary(view: &View, node: &Node) -> Option<Patch> {
    let Op::Binary(_) = node.op else { return None };
    let (a, b) = (input(node, 0)?, input(node, 1)?);
    let mut patch = Patch::new();
    let ((perm, name), inputs) = match (view.constant(a), view.constant(b)) {
        (None, None) => {
            let (first, before, x) = made_by_transpose(view, a)?;
            let (second, _, z) = made_by_transpose(view, b)?;
            // The Transposes must go with this node: one Transpose of a value used twice here counts.
            let only_here =
                if a == b { view.uses.count(a) == 2 } else { view.single_use(a) && view.single_use(b) };
            (first == second && only_here).then_some(())?;
            ((&first.perm, &before.name), [Some(x.into()), Some(z.into())])
        }
        (None, Some(c)) => {
            let (perm, name, x) = beside_constant(view, node, a)?;
            let c = patch.constant(&format!("{}.constant", node.name), aligned(c, perm)?);
            ((perm, name), [Some(x.into()), Some(c)])
        }
        (Some(c), None) => {
            let (perm, name, x) = beside_constant(view, node, b)?;
            let c = patch.constant(&format!("{}.constant", node.name), aligned(c, perm)?);
            ((perm, name), [Some(c), Some(x.into())])
        }
        _ => return None,
    };
    sink(patch, node, node.op.clone(), inputs, (perm.clone(), name))
}

fn made_by_transpose<'a>(view: &View<'a>, value: ValueId) -> Option<(&'a Transpose, &'a Node, ValueId)> {
    let (transpose, node) = view.made_by::<Transpose>(value)?;
    Some((transpose, node, input(node, 0)?))
}

/// The Transpose that makes the variable operand, unless the constant one makes the result larger.
fn beside_constant<'a>(
    view: &View<'a>,
    node: &Node,
    value: ValueId,
) -> Option<(&'a Vec<usize>, &'a String, ValueId)> {
    let (transpose, before, x) = sinking(view, value)?;
    let same_shape = view.ty(value).shape == view.ty(output(node)?).shape;
    same_shape.then_some((&transpose.perm, &before.name, x))
}

/// A constant as it must be beside the value that `perm` has not yet transposed.
fn aligned(constant: &Tensor, perm: &[usize]) -> Option<Tensor> {
    if constant.rank() == 0 {
        return Some(constant.clone());
    }
    let mut shape = vec![1; perm.len().checked_sub(constant.rank())?];
    shape.extend(constant.shape());
    transposed(&constant.reshape(&shape).ok()?, &inverse(perm))
}

fn push_through_axis(view: &View, node: &Node) -> Option<Patch> {
    let (Transpose { perm }, before, x) = sinking(view, input(node, 0)?)?;
    let rank = perm.len();
    let source = |axis: i64| i64::try_from(perm[resolve_axis(axis, rank).ok()?]).ok();
    let inputs = [Some(x.into())];
    match &node.op {
        Op::Softmax(op) => {
            let op = Softmax { axis: source(op.axis)?, ..op.clone() };
            sink(Patch::new(), node, op.into(), inputs, (perm.clone(), &before.name))
        }
        Op::Reduce(op) => {
            let mut axes: Vec<i64> = op.axes.iter().map(|&axis| source(axis)).collect::<Option<_>>()?;
            axes.sort_unstable();
            let gone = |axis: usize| {
                !op.keep_dims && (axes.is_empty() || axes.iter().any(|&a| usize::try_from(a) == Ok(axis)))
            };
            // What is left keeps its order, with the numbers closing up.
            let left: Vec<usize> = perm.iter().copied().filter(|&axis| !gone(axis)).collect();
            let rest = left.iter().map(|&axis| left.iter().filter(|&&other| other < axis).count()).collect();
            let op = Reduce { axes: axes.clone(), ..op.clone() };
            sink(Patch::new(), node, op.into(), inputs, (rest, &before.name))
        }
        _ => None,
    }
}

fn push_through_concat(view: &View, node: &Node) -> Option<Patch> {
    let Op::Concat(Concat { axis }) = &node.op else { return None };
    let parts: Vec<_> = node.inputs.iter().map(|&part| sinking(view, part?)).collect::<Option<Vec<_>>>()?;
    let (first, before, _) = *parts.first()?;
    parts.iter().all(|(transpose, ..)| *transpose == first).then_some(())?;
    let axis = i64::try_from(first.perm[resolve_axis(*axis, first.perm.len()).ok()?]).ok()?;
    let inputs = parts.iter().map(|&(.., x)| Some(x.into()));
    sink(Patch::new(), node, Concat { axis }.into(), inputs, (first.perm.clone(), &before.name))
}

/// A transposed input of rank 3 with its permutation.
fn moved(s: &mut Sketch) -> Result<(ValueId, Vec<usize>), IrError> {
    let x = s.batched(&[2, 3]);
    let perm = s.permutation(3);
    Ok((s.transpose(&perm, x)?, perm))
}

fn sample_elementwise(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.input(&[2, 3, 4]);
    let perm = s.permutation(3);
    let x = s.transpose(&perm, x)?;
    let y = match s.rng.size(0, 3) {
        0 => s.unary(UnaryKind::Relu, x)?,
        1 => {
            let kind = ActivationKind::LeakyRelu;
            s.op(Activation { kind, alpha: 0.1.into(), beta: 0.0.into() }, [x])?
        }
        2 => s.op(Cast { to: DType::F64 }, [x])?,
        _ => {
            let axis = s.rng.size(0, 2);
            let extent = [2, 3, 4][perm[axis]];
            let shape: &[usize] = if s.rng.flag() { &[] } else { &[extent] };
            let axis = i64::try_from(axis).unwrap_or(0);
            let (scale, zero) = (s.between(shape, 0.01, 0.1), s.rng.tensor(DType::U8, shape));
            let zero = s.constant(zero);
            let q = s.op(QuantizeLinear { axis, to: DType::U8 }, [x, scale, zero])?;
            s.op(DequantizeLinear { axis }, [q, scale, zero])?
        }
    };
    s.done(y)
}

fn miss_shared_transpose(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, _) = moved(&mut s)?;
    s.also(x);
    let y = s.unary(UnaryKind::Relu, x)?;
    Ok(s.done_plainly(y))
}

fn sample_binary(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let kind = s.rng.pick(&[BinaryKind::Add, BinaryKind::Sub, BinaryKind::Mul]);
    let perm = s.permutation(3);
    let (a, b) = (s.batched(&[2, 3]), s.batched(&[2, 3]));
    let x = s.transpose(&perm, a)?;
    let y = match s.rng.size(0, 2) {
        0 => {
            let z = s.transpose(&perm, b)?;
            s.binary(kind, x, z)?
        }
        1 => s.binary(kind, x, x)?,
        _ => {
            // Aligned to the end, with the extent of the result or 1 everywhere.
            let last = [1, 2, 3][perm[2]];
            let shape = s.rng.pick(&[vec![], vec![1], vec![last], vec![1, last], vec![1, 1, last]]);
            let c = s.weights(&shape);
            s.either(kind, x, c)?
        }
    };
    s.done(y)
}

fn miss_different_transposes(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (a, b) = (s.input(&[3, 3, 3]), s.input(&[3, 3, 3]));
    let (a, b) = (s.transpose(&[0, 2, 1], a)?, s.transpose(&[2, 1, 0], b)?);
    let y = s.binary(BinaryKind::Add, a, b)?;
    Ok(s.done_plainly(y))
}

fn miss_constant_that_grows(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (a, c) = (s.input(&[3, 1]), s.weights(&[4, 1]));
    let a = s.transpose(&[1, 0], a)?;
    let y = s.binary(BinaryKind::Add, a, c)?;
    Ok(s.done_plainly(y))
}

fn sample_axis(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, _) = moved(&mut s)?;
    let y = if s.rng.flag() {
        let axis = s.rng.pick(&[0, 1, 2, -1]);
        s.op(Softmax { axis, log: false }, [x])?
    } else {
        let axes: &[i64] = s.rng.pick(&[&[][..], &[0], &[1], &[-1], &[0, 2], &[1, 0]]);
        let kind = s.rng.pick(&[ReduceKind::Mean, ReduceKind::Max, ReduceKind::Sum]);
        let keep_dims = s.rng.flag();
        s.op(Reduce { kind, axes: axes.to_vec(), keep_dims }, [x])?
    };
    s.done(y)
}

fn miss_shared_before_reduce(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, _) = moved(&mut s)?;
    s.also(x);
    let y = s.op(Softmax { axis: 0, log: false }, [x])?;
    s.done(y)
}

fn sample_concat(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let perm = s.permutation(3);
    let mut parts = Vec::new();
    for _ in 0..s.rng.size(1, 3) {
        let x = s.input(&[2, 3, 4]);
        parts.push(s.transpose(&perm, x)?);
    }
    let axis = s.rng.pick(&[0, 1, 2, -1]);
    let y = s.op(Concat { axis }, parts)?;
    s.done(y)
}

fn miss_concat_of_different(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (a, b) = (s.input(&[3, 3, 3]), s.input(&[3, 3, 3]));
    let (a, b) = (s.transpose(&[0, 2, 1], a)?, s.transpose(&[2, 1, 0], b)?);
    let y = s.op(Concat { axis: 0 }, [a, b])?;
    Ok(s.done_plainly(y))
}
