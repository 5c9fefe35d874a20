//! Layer normalization recognized from its parts.

use sora_ir::case::Gen;
use sora_ir::ops::{Binary, BinaryKind, LayerNorm, Reduce, ReduceKind, Unary, UnaryKind};
use sora_ir::{Graph, IrError, Node, Op, ValueId, resolve_axis};

use super::Rule;
use super::product::Product;
use super::sample::Sketch;
use crate::view::{input, output};
use crate::{Patch, View};

pub(crate) const FUSE_LAYER_NORM: Rule = Rule {
    name: "fuse_layer_norm",
    doc: "(x - mean) / √(variance + ε), both over the last axes, is LayerNorm without scale and bias.",
    exact: false,
    apply: fuse_layer_norm,
    sample: sample_layer_norm,
    near_misses: &[miss_norm_over_first_axis, miss_variance_over_other_axes],
};

pub(crate) const FOLD_INTO_LAYER_NORM: Rule = Rule {
    name: "fold_into_layer_norm",
    doc: "A product and then a sum with constants of the normalized shape are LayerNorm's scale and bias.",
    exact: false,
    apply: fold_into_layer_norm,
    sample: sample_scaled_layer_norm,
    near_misses: &[miss_layer_norm_scaled_per_row, miss_product_after_bias],
};

fn operands(view: &View, value: ValueId, kind: BinaryKind) -> Option<(ValueId, ValueId)> {
    let (_, node) = view.made_by::<Binary>(value).filter(|(op, _)| op.kind == kind)?;
    Some((input(node, 0)?, input(node, 1)?))
}

/// What a mean over the last axes reads, and the first of these axes.
fn mean(view: &View, value: ValueId) -> Option<(ValueId, usize)> {
    let (op, node) = view.made_by::<Reduce>(value)?;
    let x = input(node, 0)?;
    let rank = view.ty(x).rank();
    (op.kind == ReduceKind::Mean && op.keep_dims).then_some(())?;
    let mut axes: Vec<usize> =
        op.axes.iter().map(|&axis| resolve_axis(axis, rank).ok()).collect::<Option<_>>()?;
    axes.sort_unstable();
    let first = rank.checked_sub(axes.len())?;
    axes.iter().copied().eq(first..rank).then_some((x, first)).filter(|_| first < rank)
}

/// The centered value if `divisor` is its deviation: `√(mean(d²) + ε)`. Gives d, the first axis, and ε.
fn deviation(view: &View, root: ValueId) -> Option<(ValueId, usize, f64)> {
    let (op, node) = view.made_by::<Unary>(root)?;
    (op.kind == UnaryKind::Sqrt).then_some(())?;
    let (a, b) = operands(view, input(node, 0)?, BinaryKind::Add)?;
    let (variance, epsilon) = match (view.scalar(a), view.scalar(b)) {
        (None, Some(epsilon)) => (a, epsilon),
        (Some(epsilon), None) => (b, epsilon),
        _ => return None,
    };
    let (square, first) = mean(view, variance)?;
    let product = Product::of(view, square);
    let d = *product.factors.first()?;
    product.is_power(1.0, d, 2).then_some((d, first, epsilon))
}

fn fuse_layer_norm(view: &View, node: &Node) -> Option<Patch> {
    let y = output(node)?;
    let (d, root) = match operands(view, y, BinaryKind::Div) {
        Some(operands) => operands,
        // d · (1/√…)
        None => {
            let (a, b) = operands(view, y, BinaryKind::Mul)?;
            let reciprocal = |v| {
                let (op, node) = view.made_by::<Unary>(v)?;
                (op.kind == UnaryKind::Reciprocal).then_some(input(node, 0)?)
            };
            match (reciprocal(a), reciprocal(b)) {
                (_, Some(root)) => (a, root),
                (Some(root), _) => (b, root),
                _ => return None,
            }
        }
    };
    let (centered, first, epsilon) = deviation(view, root)?;
    let (x, average) = operands(view, centered, BinaryKind::Sub)?;
    let averaged = mean(view, average)?;
    (centered == d && averaged == (x, first)).then_some(())?;
    #[allow(clippy::cast_possible_truncation, reason = "attributes are f32, as in the file it came from")]
    let epsilon = (epsilon as f32).into();
    let axis = i64::try_from(first).ok()? - i64::try_from(view.ty(x).rank()).ok()?;
    Some(Patch::one(y, &node.name, LayerNorm { axis, epsilon }, [x]))
}

fn fold_into_layer_norm(view: &View, node: &Node) -> Option<Patch> {
    let Op::Binary(Binary { kind }) = node.op else { return None };
    let (a, b, y) = (input(node, 0)?, input(node, 1)?, output(node)?);
    let (normalized, c) = match (view.constant(a), view.constant(b)) {
        (None, Some(_)) => (a, b),
        (Some(_), None) => (b, a),
        _ => return None,
    };
    let (op, norm) = view.made_only_by::<LayerNorm>(normalized)?;
    let x = input(norm, 0)?;
    let axis = resolve_axis(op.axis, view.ty(x).rank()).ok()?;
    (view.ty(c).shape == view.ty(x).shape[axis..]).then_some(())?;
    let (scale, bias) = match (kind, input(norm, 1), input(norm, 2)) {
        (BinaryKind::Mul, None, None) => (Some(c), None),
        (BinaryKind::Add, scale, None) => (scale, Some(c)),
        _ => return None,
    };
    let mut inputs = vec![Some(x), scale, bias];
    if bias.is_none() {
        inputs.pop();
    }
    let mut patch = Patch::new();
    let new = patch.node_with_optional(&node.name, op.clone(), inputs.into_iter().map(|v| v.map(Into::into)));
    Some(patch.replace(y, new))
}

/// The parts of a normalization of `x` over these axes, the variance over those.
fn parts(s: &mut Sketch, x: ValueId, axes: &[i64], variance_axes: &[i64]) -> Result<ValueId, IrError> {
    let reduce = |axes: &[i64]| Reduce { kind: ReduceKind::Mean, axes: axes.to_vec(), keep_dims: true };
    let average = s.op(reduce(axes), [x])?;
    let d = s.binary(BinaryKind::Sub, x, average)?;
    let square = if s.rng.flag() {
        s.binary(BinaryKind::Mul, d, d)?
    } else {
        let two = s.scalar(2.0);
        s.binary(BinaryKind::Pow, d, two)?
    };
    let variance = s.op(reduce(variance_axes), [square])?;
    let epsilon = s.scalar(1e-2);
    let sum = s.either(BinaryKind::Add, variance, epsilon)?;
    let root = s.unary(UnaryKind::Sqrt, sum)?;
    if s.rng.flag() {
        return s.binary(BinaryKind::Div, d, root);
    }
    let reciprocal = s.unary(UnaryKind::Reciprocal, root)?;
    s.either(BinaryKind::Mul, d, reciprocal)
}

fn sample_layer_norm(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[3, 5]);
    let axes: &[i64] = s.rng.pick(&[&[-1][..], &[2], &[1, 2], &[-1, -2]]);
    let y = parts(&mut s, x, axes, axes)?;
    s.done(y)
}

fn miss_norm_over_first_axis(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[3, 5]);
    let y = parts(&mut s, x, &[1], &[1])?;
    s.done(y)
}

fn miss_variance_over_other_axes(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[3, 5]);
    let y = parts(&mut s, x, &[2], &[1, 2])?;
    s.done(y)
}

fn normalized(s: &mut Sketch) -> Result<ValueId, IrError> {
    let x = s.batched(&[3, 5]);
    s.op(LayerNorm { axis: -1, epsilon: 1e-2.into() }, [x])
}

fn sample_scaled_layer_norm(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (mut y, scale, bias) = (normalized(&mut s)?, s.weights(&[5]), s.weights(&[5]));
    let kinds = s.rng.size(1, 3);
    if kinds & 1 > 0 {
        y = s.either(BinaryKind::Mul, y, scale)?;
    }
    if kinds & 2 > 0 {
        y = s.either(BinaryKind::Add, y, bias)?;
    }
    s.done(y)
}

fn miss_layer_norm_scaled_per_row(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (y, c) = (normalized(&mut s)?, s.weights(&[3, 1]));
    let y = s.binary(BinaryKind::Mul, y, c)?;
    s.done(y)
}

fn miss_product_after_bias(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, bias, c) = (s.batched(&[3, 5]), s.weights(&[5]), s.weights(&[5]));
    let op = LayerNorm { axis: -1, epsilon: 1e-2.into() };
    let y = s.op(op, [Some(x), None, Some(bias)])?;
    let y = s.binary(BinaryKind::Mul, y, c)?;
    s.done(y)
}
