//! Algebra of elementwise operators and constants.

use sora_ir::case::Gen;
use sora_ir::ops::{Binary, BinaryKind, Unary, UnaryKind};
use sora_ir::{EvalCx, Graph, IrError, Node, Op, ValueId};
use sora_tensor::{DType, Tensor};

use super::Rule;
use super::sample::Sketch;
use crate::view::{input, output};
use crate::{Patch, View};

pub(crate) const REMOVE_NEUTRAL_OPERAND: Rule = Rule {
    name: "remove_neutral_operand",
    doc: "x+0, x-0, x·1, x/1 and x^1 are x, if x has the shape of the result.",
    exact: true,
    apply: remove_neutral_operand,
    sample: sample_neutral,
    near_misses: &[miss_neutral_that_broadcasts, miss_zero_minus, miss_nearly_one],
};

pub(crate) const SUBTRACT_TO_ADD: Rule = Rule {
    name: "subtract_to_add",
    doc: "x - c becomes x + (-c) for a float constant c, so that other rules need to know sums only.",
    exact: true,
    apply: subtract_to_add,
    sample: sample_subtract,
    near_misses: &[miss_zero_minus],
};

pub(crate) const DIVIDE_TO_MULTIPLY: Rule = Rule {
    name: "divide_to_multiply",
    doc: "x / c becomes x · (1/c) where c is a power of two, whose reciprocal is exact.",
    exact: true,
    apply: divide_to_multiply,
    sample: sample_divide,
    near_misses: &[miss_divide_by_three],
};

pub(crate) const MERGE_CONSTANT_OPERANDS: Rule = Rule {
    name: "merge_constant_operands",
    doc: "(x + a) + b becomes x + (a+b), and (x · a) · b becomes x · (a·b), for float constants a and b.",
    exact: false,
    apply: merge_constant_operands,
    sample: sample_two_constants,
    near_misses: &[miss_outer_product_of_constants, miss_sum_of_product],
};

pub(crate) const SQUARE_TO_PRODUCT: Rule = Rule {
    name: "square_to_product",
    doc: "x² becomes x·x, which needs no power function.",
    exact: false,
    apply: square_to_product,
    sample: sample_square,
    near_misses: &[miss_cube],
};

pub(crate) const SQUARE_ROOT_OF_POWER: Rule = Rule {
    name: "square_root_of_power",
    doc: "x^½ becomes the square root of x.",
    exact: false,
    apply: square_root_of_power,
    sample: sample_root,
    near_misses: &[miss_cube],
};

fn binary(node: &Node) -> Option<(BinaryKind, ValueId, ValueId)> {
    let Op::Binary(Binary { kind }) = node.op else { return None };
    Some((kind, input(node, 0)?, input(node, 1)?))
}

fn remove_neutral_operand(view: &View, node: &Node) -> Option<Patch> {
    let (kind, a, b) = binary(node)?;
    let y = output(node)?;
    let is = |value, neutral: f64| view.uniform(value) == Some(neutral);
    let kept = match kind {
        BinaryKind::Add if is(b, 0.0) => a,
        BinaryKind::Add if is(a, 0.0) => b,
        BinaryKind::Sub if is(b, 0.0) => a,
        BinaryKind::Mul if is(b, 1.0) => a,
        BinaryKind::Mul if is(a, 1.0) => b,
        BinaryKind::Div | BinaryKind::Pow if is(b, 1.0) => a,
        _ => return None,
    };
    (view.ty(kept) == view.ty(y)).then(|| Patch::forward(y, kept))
}

/// Replaces the second operand by `map` of it under another function.
fn with_constant(
    view: &View,
    node: &Node,
    (from, to): (BinaryKind, BinaryKind),
    map: impl Fn(f64) -> f64,
) -> Option<Patch> {
    let (kind, x, c) = binary(node)?;
    let tensor = view.constant(c).filter(|t| kind == from && t.dtype().is_float())?;
    let values: Vec<f64> = tensor.to_f64s().into_iter().map(map).collect();
    let mut patch = Patch::new();
    let name = format!("{}.constant", node.name);
    let c = patch.constant(&name, Tensor::from_f64s(tensor.dtype(), tensor.shape(), &values).ok()?);
    let y = patch.node(&node.name, Binary { kind: to }, [x.into(), c]);
    Some(patch.replace(output(node)?, y))
}

fn subtract_to_add(view: &View, node: &Node) -> Option<Patch> {
    with_constant(view, node, (BinaryKind::Sub, BinaryKind::Add), |c| -c)
}

fn divide_to_multiply(view: &View, node: &Node) -> Option<Patch> {
    let (.., c) = binary(node)?;
    let tensor = view.constant(c).filter(|t| t.dtype().is_float())?;
    // The range keeps the reciprocal normal in every float type.
    let exact =
        |v: f64| v.to_bits().trailing_zeros() >= 52 && (2f64.powi(-14)..=2f64.powi(14)).contains(&v.abs());
    tensor.to_f64s().into_iter().all(exact).then_some(())?;
    with_constant(view, node, (BinaryKind::Div, BinaryKind::Mul), f64::recip)
}

fn merge_constant_operands(view: &View, node: &Node) -> Option<Patch> {
    let split = |node: &Node| {
        let (kind, a, b) = binary(node)?;
        match (view.constant(a), view.constant(b)) {
            (None, Some(c)) => Some((kind, a, c)),
            (Some(c), None) => Some((kind, b, c)),
            _ => None,
        }
    };
    let (kind, inner, outer_constant) = split(node)?;
    matches!(kind, BinaryKind::Add | BinaryKind::Mul).then_some(())?;
    let (op, before) = view.made_only_by::<Binary>(inner)?;
    let (_, x, inner_constant) = split(before).filter(|_| op.kind == kind)?;

    let inputs = [Some(inner_constant), Some(outer_constant)];
    let merged = Op::from(Binary { kind }).eval(&EvalCx { inputs: &inputs }).ok()?.pop()?;
    let small = merged.len() <= inner_constant.len().max(outer_constant.len());
    let finite = merged.dtype().is_float() && merged.to_f64s().iter().all(|v| v.is_finite());
    (small && finite).then_some(())?;
    let mut patch = Patch::new();
    let merged = patch.constant(&format!("{}.constant", node.name), merged);
    let y = patch.node(&node.name, Binary { kind }, [x.into(), merged]);
    Some(patch.replace(output(node)?, y))
}

/// The base of a power whose exponent is this number everywhere.
fn power(view: &View, node: &Node, exponent: f64) -> Option<ValueId> {
    let (kind, x, c) = binary(node)?;
    let float = view.ty(x).dtype.is_float();
    (kind == BinaryKind::Pow && float && view.uniform(c) == Some(exponent)).then_some(x)
}

fn square_to_product(view: &View, node: &Node) -> Option<Patch> {
    let x = power(view, node, 2.0)?;
    Some(Patch::one(output(node)?, &node.name, Binary { kind: BinaryKind::Mul }, [x, x]))
}

fn square_root_of_power(view: &View, node: &Node) -> Option<Patch> {
    let x = power(view, node, 0.5)?;
    Some(Patch::one(output(node)?, &node.name, Unary { kind: UnaryKind::Sqrt }, [x]))
}

fn sample_neutral(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[4]);
    let kind =
        s.rng.pick(&[BinaryKind::Add, BinaryKind::Sub, BinaryKind::Mul, BinaryKind::Div, BinaryKind::Pow]);
    let neutral = if matches!(kind, BinaryKind::Add | BinaryKind::Sub) { 0.0 } else { 1.0 };
    let c = if s.rng.flag() { s.scalar(neutral) } else { s.between(&[4], neutral, neutral) };
    let commutes = matches!(kind, BinaryKind::Add | BinaryKind::Mul);
    let y = if commutes { s.either(kind, x, c)? } else { s.binary(kind, x, c)? };
    s.done(y)
}

fn miss_neutral_that_broadcasts(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, c) = (s.input(&[3, 1]), s.constant(Tensor::zeros(DType::F32, &[4]).expect("small")));
    let y = s.binary(BinaryKind::Add, x, c)?;
    s.done(y)
}

fn miss_zero_minus(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, c) = (s.batched(&[4]), s.scalar(0.0));
    let y = s.binary(BinaryKind::Sub, c, x)?;
    s.done(y)
}

fn miss_nearly_one(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, c) = (s.batched(&[2]), s.constant(Tensor::vector(&[1f32, 1.0001])));
    let y = s.binary(BinaryKind::Mul, x, c)?;
    s.done(y)
}

fn sample_subtract(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, c) = (s.batched(&[4]), s.weights(&[4]));
    let y = s.binary(BinaryKind::Sub, x, c)?;
    s.done(y)
}

fn sample_divide(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[3]);
    let powers: Vec<f32> = (0..3).map(|_| s.rng.pick(&[0.25f32, -0.5, 2.0, 8.0, -64.0])).collect();
    let c = s.constant(Tensor::vector(&powers));
    let y = s.binary(BinaryKind::Div, x, c)?;
    s.done(y)
}

fn miss_divide_by_three(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, c) = (s.batched(&[2]), s.constant(Tensor::vector(&[2f32, 3.0])));
    let y = s.binary(BinaryKind::Div, x, c)?;
    s.done(y)
}

fn sample_two_constants(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let kind = s.rng.pick(&[BinaryKind::Add, BinaryKind::Mul]);
    let x = s.batched(&[3, 4]);
    let shapes: [&[usize]; 3] = [&[], &[4], &[3, 4]];
    let (a, b) = (s.rng.pick(&shapes), s.rng.pick(&shapes));
    let (a, b) = (s.weights(a), s.weights(b));
    let inner = s.either(kind, x, a)?;
    let y = s.either(kind, inner, b)?;
    s.done(y)
}

fn miss_outer_product_of_constants(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, a, b) = (s.batched(&[3, 4]), s.weights(&[3, 1]), s.weights(&[4]));
    let inner = s.binary(BinaryKind::Mul, x, a)?;
    let y = s.binary(BinaryKind::Mul, inner, b)?;
    s.done(y)
}

fn miss_sum_of_product(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, a, b) = (s.batched(&[4]), s.weights(&[4]), s.weights(&[4]));
    let inner = s.binary(BinaryKind::Mul, x, a)?;
    let y = s.binary(BinaryKind::Add, inner, b)?;
    s.done(y)
}

fn power_of(rng: &mut Gen, exponent: f64) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, c) = (s.batched(&[4]), s.scalar(exponent));
    let y = s.binary(BinaryKind::Pow, x, c)?;
    s.done(y)
}

fn sample_square(rng: &mut Gen) -> Result<Graph, IrError> {
    power_of(rng, 2.0)
}

fn sample_root(rng: &mut Gen) -> Result<Graph, IrError> {
    power_of(rng, 0.5)
}

fn miss_cube(rng: &mut Gen) -> Result<Graph, IrError> {
    power_of(rng, 3.0)
}
