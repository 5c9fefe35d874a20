//! Activation functions recognized from their parts.

use sora_ir::case::Gen;
use sora_ir::ops::{Activation, ActivationKind, Binary, BinaryKind, Unary, UnaryKind};
use sora_ir::{Graph, IrError, Node, Op, ValueId};

use super::Rule;
use super::product::{Product, minus_offset, near};
use super::sample::Sketch;
use crate::view::{input, output};
use crate::{Patch, View};

pub(crate) const MINIMUM_TO_CLIP: Rule = Rule {
    name: "minimum_to_clip",
    doc: "A minimum or maximum with one number is a Clip open on the other side.",
    exact: true,
    apply: minimum_to_clip,
    sample: sample_minimum,
    near_misses: &[miss_minimum_per_channel],
};

pub(crate) const MERGE_CLIPS: Rule = Rule {
    name: "merge_clips",
    doc: "Clips and Relus in a row are one Clip to the common interval.",
    exact: true,
    apply: merge_clips,
    sample: sample_clips,
    near_misses: &[miss_leaky_relu],
};

pub(crate) const CLIP_TO_RELU: Rule = Rule {
    name: "clip_to_relu",
    doc: "A Clip from 0 up without end is Relu.",
    exact: true,
    apply: clip_to_relu,
    sample: sample_open_clip,
    near_misses: &[miss_relu6],
};

pub(crate) const FUSE_SILU: Rule = Rule {
    name: "fuse_silu",
    doc: "x·sigmoid(x) is Silu.",
    exact: false,
    apply: fuse_silu,
    sample: sample_silu,
    near_misses: &[miss_gate],
};

pub(crate) const FUSE_HARD_SWISH: Rule = Rule {
    name: "fuse_hard_swish",
    doc: "x·clip(x+3, 0, 6)/6, spelled with Clip or HardSigmoid, is HardSwish.",
    exact: false,
    apply: fuse_hard_swish,
    sample: sample_hard_swish,
    near_misses: &[miss_other_hard_sigmoid],
};

/// The interval to which a node limits its input.
fn interval(op: &Op) -> Option<(f32, f32)> {
    match op {
        Op::Unary(Unary { kind: UnaryKind::Relu }) => Some((0.0, f32::INFINITY)),
        Op::Activation(Activation { kind: ActivationKind::Clip, alpha, beta }) => Some((alpha.0, beta.0)),
        _ => None,
    }
    .filter(|(low, high)| low <= high)
}

fn clip(low: f32, high: f32) -> Activation {
    Activation { kind: ActivationKind::Clip, alpha: low.into(), beta: high.into() }
}

fn minimum_to_clip(view: &View, node: &Node) -> Option<Patch> {
    let Op::Binary(Binary { kind: kind @ (BinaryKind::Min | BinaryKind::Max) }) = node.op else {
        return None;
    };
    let (a, b, y) = (input(node, 0)?, input(node, 1)?, output(node)?);
    let (x, limit) = match (view.scalar(a), view.scalar(b)) {
        (None, Some(limit)) => (a, limit),
        (Some(limit), None) => (b, limit),
        _ => return None,
    };
    (view.ty(x).dtype.is_float() && view.ty(x) == view.ty(y)).then_some(())?;
    #[allow(clippy::cast_possible_truncation, reason = "checked right below")]
    let narrow = limit as f32;
    (f64::from(narrow) == limit).then_some(())?;
    let op =
        if kind == BinaryKind::Min { clip(f32::NEG_INFINITY, narrow) } else { clip(narrow, f32::INFINITY) };
    Some(Patch::one(y, &node.name, op, [x]))
}

fn merge_clips(view: &View, node: &Node) -> Option<Patch> {
    let (low, high) = interval(&node.op)?;
    let (_, before, _) = view.graph.producer(input(node, 0)?)?;
    let (inner_low, inner_high) = interval(&before.op)?;
    let (x, y) = (input(before, 0)?, output(node)?);
    if node.op == before.op {
        return Some(Patch::forward(y, input(node, 0)?));
    }
    view.ty(x).dtype.is_float().then_some(())?;
    let op: Op = match (inner_low.clamp(low, high), inner_high.clamp(low, high)) {
        (0.0, f32::INFINITY) => Unary { kind: UnaryKind::Relu }.into(),
        (low, high) => clip(low, high).into(),
    };
    Some(Patch::one(y, &node.name, op, [x]))
}

fn clip_to_relu(_: &View, node: &Node) -> Option<Patch> {
    let Op::Activation(_) = node.op else { return None };
    let open = interval(&node.op)? == (0.0, f32::INFINITY);
    let relu = Unary { kind: UnaryKind::Relu };
    open.then(|| Some(Patch::one(output(node)?, &node.name, relu, [input(node, 0)?])))?
}

fn fuse_silu(view: &View, node: &Node) -> Option<Patch> {
    let Op::Binary(Binary { kind: BinaryKind::Mul }) = node.op else { return None };
    let y = output(node)?;
    let gated = |&(x, gate): &(ValueId, ValueId)| {
        let sigmoid = view.made_only_by::<Unary>(gate).filter(|(op, _)| op.kind == UnaryKind::Sigmoid);
        sigmoid.is_some_and(|(_, node)| input(node, 0) == Some(x)) && view.ty(x) == view.ty(y)
    };
    let (x, _) = Product::of(view, y).pairs(1.0).into_iter().find(gated)?;
    Some(Patch::one(y, &node.name, Unary { kind: UnaryKind::Silu }, [x]))
}

fn fuse_hard_swish(view: &View, node: &Node) -> Option<Patch> {
    let Op::Binary(_) = node.op else { return None };
    let y = output(node)?;
    let product = Product::of(view, y);
    let hard_sigmoid = |&(x, gate): &(ValueId, ValueId)| {
        view.made_only_by::<Activation>(gate).is_some_and(|(op, node)| {
            op.kind == ActivationKind::HardSigmoid
                && near(op.alpha.0.into(), 1.0 / 6.0)
                && near(op.beta.0.into(), 0.5)
                && input(node, 0) == Some(x)
        })
    };
    let clipped = |&(x, gate): &(ValueId, ValueId)| {
        view.made_only_by::<Activation>(gate).is_some_and(|(_, node)| {
            let shifted = input(node, 0).and_then(|v| minus_offset(view, v, 3.0));
            interval(&node.op) == Some((0.0, 6.0)) && shifted == Some(x)
        })
    };
    let whole = product.pairs(1.0).into_iter().find(hard_sigmoid);
    let (x, _) = whole.or_else(|| product.pairs(1.0 / 6.0).into_iter().find(clipped))?;
    (view.ty(x) == view.ty(y)).then_some(())?;
    Some(Patch::one(y, &node.name, Unary { kind: UnaryKind::HardSwish }, [x]))
}

fn sample_minimum(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[5]);
    let limit = s.rng.pick(&[0.0, 1.0, -0.5, 6.0]);
    let (limit, kind) = (s.scalar(limit), s.rng.pick(&[BinaryKind::Min, BinaryKind::Max]));
    let y = s.either(kind, x, limit)?;
    s.done(y)
}

fn miss_minimum_per_channel(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, c) = (s.batched(&[5]), s.weights(&[5]));
    let y = s.binary(BinaryKind::Min, x, c)?;
    s.done(y)
}

fn limiter(s: &mut Sketch, x: ValueId) -> Result<ValueId, IrError> {
    if s.rng.flag() {
        return s.unary(UnaryKind::Relu, x);
    }
    let (low, high) = s.rng.pick(&[(0.0, 1.5), (-1.0, 1.0), (0.5, f32::INFINITY), (f32::NEG_INFINITY, -0.5)]);
    s.op(clip(low, high), [x])
}

fn sample_clips(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[5]);
    let inner = limiter(&mut s, x)?;
    if s.rng.flag() {
        s.also(inner);
    }
    let y = limiter(&mut s, inner)?;
    s.done(y)
}

fn miss_leaky_relu(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[5]);
    let kind = ActivationKind::LeakyRelu;
    let inner = s.op(Activation { kind, alpha: 0.1.into(), beta: 0.0.into() }, [x])?;
    let y = s.unary(UnaryKind::Relu, inner)?;
    s.done(y)
}

fn sample_open_clip(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[5]);
    let y = s.op(clip(0.0, f32::INFINITY), [x])?;
    s.done(y)
}

fn miss_relu6(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[5]);
    let y = s.op(clip(0.0, 6.0), [x])?;
    s.done(y)
}

fn sample_silu(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[5]);
    let gate = s.unary(UnaryKind::Sigmoid, x)?;
    let y = s.either(BinaryKind::Mul, x, gate)?;
    s.done(y)
}

fn miss_gate(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, z) = (s.batched(&[5]), s.batched(&[5]));
    let gate = s.unary(UnaryKind::Sigmoid, z)?;
    let y = s.binary(BinaryKind::Mul, x, gate)?;
    s.done(y)
}

fn sample_hard_swish(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[5]);
    if s.rng.flag() {
        return hard_swish_of(s, x, 1.0 / 6.0);
    }
    let (three, six) = (s.scalar_of_rank_0(3.0), s.scalar_of_rank_0(6.0));
    let shifted = s.either(BinaryKind::Add, x, three)?;
    let gate = s.op(clip(0.0, 6.0), [shifted])?;
    let y = if s.rng.flag() {
        let product = s.either(BinaryKind::Mul, x, gate)?;
        s.binary(BinaryKind::Div, product, six)?
    } else {
        let gate = s.binary(BinaryKind::Div, gate, six)?;
        s.either(BinaryKind::Mul, x, gate)?
    };
    s.done(y)
}

fn hard_swish_of(mut s: Sketch, x: ValueId, slope: f32) -> Result<Graph, IrError> {
    let kind = ActivationKind::HardSigmoid;
    let gate = s.op(Activation { kind, alpha: slope.into(), beta: 0.5.into() }, [x])?;
    let y = s.either(BinaryKind::Mul, x, gate)?;
    s.done(y)
}

fn miss_other_hard_sigmoid(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[5]);
    hard_swish_of(s, x, 0.2)
}
