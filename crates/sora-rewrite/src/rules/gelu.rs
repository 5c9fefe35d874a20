//! Gelu in its common spellings.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use sora_ir::case::Gen;
use sora_ir::ops::{BinaryKind, Unary, UnaryKind};
use sora_ir::{Graph, IrError, Node, Op, ValueId};

use super::Rule;
use super::product::{Product, minus_offset};
use super::sample::Sketch;
use crate::view::{input, output};
use crate::{Patch, View};

pub(crate) const FUSE_GELU: Rule = Rule {
    name: "fuse_gelu",
    doc: "½·x·(1 + erf(x/√2)), with its factors in any order, is Gelu.",
    exact: false,
    apply: |view, node| fuse(view, node, UnaryKind::Erf, UnaryKind::Gelu, is_erf_argument),
    sample: sample_gelu,
    near_misses: &[miss_gelu_of_another, miss_gelu_of_wrong_scale],
};

pub(crate) const FUSE_GELU_TANH: Rule = Rule {
    name: "fuse_gelu_tanh",
    doc: "½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), with its factors in any order, is the tanh form of Gelu.",
    exact: false,
    apply: |view, node| fuse(view, node, UnaryKind::Tanh, UnaryKind::GeluTanh, is_tanh_argument),
    sample: sample_gelu_tanh,
    near_misses: &[miss_tanh_of_plain_x],
};

fn fuse(
    view: &View,
    node: &Node,
    gate: UnaryKind,
    fused: UnaryKind,
    is_argument: fn(&View, ValueId, ValueId) -> bool,
) -> Option<Patch> {
    let Op::Binary(_) = node.op else { return None };
    let y = output(node)?;
    for (x, factor) in Product::of(view, y).pairs(0.5) {
        let argument = minus_offset(view, factor, 1.0)
            .and_then(|value| view.made_only_by::<Unary>(value))
            .filter(|(op, _)| op.kind == gate)
            .and_then(|(_, node)| input(node, 0));
        if argument.is_some_and(|argument| is_argument(view, argument, x)) && view.ty(x) == view.ty(y) {
            return Some(Patch::one(y, &node.name, Unary { kind: fused }, [x]));
        }
    }
    None
}

fn is_erf_argument(view: &View, argument: ValueId, x: ValueId) -> bool {
    Product::of(view, argument).is_power(FRAC_1_SQRT_2, x, 1)
}

/// Whether `argument` is `√(2/π)·(x + 0.044715·x³)` or `√(2/π)·x·(1 + 0.044715·x²)`.
fn is_tanh_argument(view: &View, argument: ValueId, x: ValueId) -> bool {
    const CUBIC: f64 = 0.044715;
    let product = Product::of(view, argument);
    let scale = FRAC_2_PI.sqrt();
    let sum = Product { scale: product.scale / scale, ..product.clone() };
    match sum.factors[..] {
        [sum_of_powers] if super::product::near(sum.scale, 1.0) => {
            let Some((op, node)) = view.made_by::<sora_ir::ops::Binary>(sum_of_powers) else { return false };
            let (Some(a), Some(b)) = (input(node, 0), input(node, 1)) else { return false };
            let cubic = |v| Product::of(view, v).is_power(CUBIC, x, 3);
            op.kind == BinaryKind::Add && ((a == x && cubic(b)) || (b == x && cubic(a)))
        }
        _ => product.pairs(scale).into_iter().any(|(a, b)| {
            let square = minus_offset(view, b, 1.0);
            a == x && square.is_some_and(|v| Product::of(view, v).is_power(CUBIC, x, 2))
        }),
    }
}

/// `½·x·f` in a random order.
fn half_product(s: &mut Sketch, x: ValueId, f: ValueId) -> Result<ValueId, IrError> {
    let half = s.scalar_of_rank_0(0.5);
    let (a, b, c) = s.rng.pick(&[(x, f, half), (x, half, f), (f, half, x)]);
    let inner = s.either(BinaryKind::Mul, a, b)?;
    s.either(BinaryKind::Mul, inner, c)
}

fn gelu(rng: &mut Gen, divisor: f64, other_argument: bool) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, z) = (s.batched(&[5]), s.batched(&[5]));
    let argument = if other_argument { z } else { x };
    let scaled = if s.rng.flag() {
        let c = s.scalar_of_rank_0(divisor);
        s.binary(BinaryKind::Div, argument, c)?
    } else {
        let c = s.scalar_of_rank_0(divisor.recip());
        s.either(BinaryKind::Mul, argument, c)?
    };
    let erf = s.unary(UnaryKind::Erf, scaled)?;
    let one = s.scalar_of_rank_0(1.0);
    let gate = s.either(BinaryKind::Add, erf, one)?;
    let y = half_product(&mut s, x, gate)?;
    s.done(y)
}

fn sample_gelu(rng: &mut Gen) -> Result<Graph, IrError> {
    gelu(rng, std::f64::consts::SQRT_2, false)
}

fn miss_gelu_of_another(rng: &mut Gen) -> Result<Graph, IrError> {
    gelu(rng, std::f64::consts::SQRT_2, true)
}

fn miss_gelu_of_wrong_scale(rng: &mut Gen) -> Result<Graph, IrError> {
    gelu(rng, 1.5, false)
}

fn sample_gelu_tanh(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[5]);
    let (c, scale, one) =
        (s.scalar_of_rank_0(0.044715), s.scalar_of_rank_0(FRAC_2_PI.sqrt()), s.scalar_of_rank_0(1.0));
    let power = |s: &mut Sketch, n: f64| match s.rng.flag() {
        true => {
            let n = s.scalar_of_rank_0(n);
            s.binary(BinaryKind::Pow, x, n)
        }
        false => {
            let square = s.binary(BinaryKind::Mul, x, x)?;
            if n == 2.0 { Ok(square) } else { s.either(BinaryKind::Mul, square, x) }
        }
    };
    let argument = if s.rng.flag() {
        let cube = power(&mut s, 3.0)?;
        let cubic = s.either(BinaryKind::Mul, cube, c)?;
        let sum = s.either(BinaryKind::Add, x, cubic)?;
        s.either(BinaryKind::Mul, sum, scale)?
    } else {
        let square = power(&mut s, 2.0)?;
        let quadratic = s.either(BinaryKind::Mul, square, c)?;
        let sum = s.either(BinaryKind::Add, quadratic, one)?;
        let scaled = s.either(BinaryKind::Mul, x, scale)?;
        s.either(BinaryKind::Mul, scaled, sum)?
    };
    let tanh = s.unary(UnaryKind::Tanh, argument)?;
    let gate = s.either(BinaryKind::Add, tanh, one)?;
    let y = half_product(&mut s, x, gate)?;
    s.done(y)
}

fn miss_tanh_of_plain_x(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[5]);
    let tanh = s.unary(UnaryKind::Tanh, x)?;
    let one = s.scalar_of_rank_0(1.0);
    let gate = s.binary(BinaryKind::Add, tanh, one)?;
    let y = half_product(&mut s, x, gate)?;
    s.done(y)
}
