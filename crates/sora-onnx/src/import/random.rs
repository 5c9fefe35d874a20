//! Random numbers. Networks are functions: every run of a model draws the same numbers, which follow from the node's seed.

use sora_ir::ops::{
    ArgReduce, Binary, BinaryKind, Cast, Concat, Distribution, Expand, Random, UnaryKind, Where,
};
use sora_ir::{Real, ValueId};
use sora_tensor::DType;

use super::node::{Built, NodeCx, size};
use super::rows::{Row, microsoft, onnx};
use crate::error::Refusal;

pub(super) const ROWS: &[Row] = &[
    onnx("Bernoulli", bernoulli),
    onnx("Dropout", dropout),
    onnx("Multinomial", multinomial),
    onnx("RandomNormal", |cx| listed(cx, Distribution::Normal)),
    onnx("RandomNormalLike", |cx| like(cx, Distribution::Normal)),
    onnx("RandomUniform", |cx| listed(cx, Distribution::Uniform)),
    onnx("RandomUniformLike", |cx| like(cx, Distribution::Uniform)),
    microsoft("BiasDropout", |_| Err(Refusal::new("it is a training operator"))),
];

/// Numbers of the node's stream. Without a seed it follows from the name, so that nodes differ.
fn draw(cx: &mut NodeCx, from: Distribution, dtype: DType, shape: ValueId) -> Result<ValueId, Refusal> {
    let seed = match cx.attribute("seed") {
        Some(_) => cx.float("seed", 0.0),
        None => hash(cx.name),
    };
    cx.step("random", Random { from, dtype, seed: Real(seed) }, [shape])
}

/// FNV-1a, folded to 16 bits.
fn hash(name: &str) -> f32 {
    let hash = name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    let [a, b, c, d] = hash.to_be_bytes();
    f32::from(u16::from_be_bytes([a ^ c, b ^ d]))
}

/// The numbers of a node times a factor plus a term, which its attributes give.
fn scaled(cx: &mut NodeCx, from: Distribution, dtype: DType, shape: ValueId) -> Built {
    let (factor, term) = match from {
        Distribution::Uniform => {
            let (low, high) = (f64::from(cx.float("low", 0.0)), f64::from(cx.float("high", 1.0)));
            (high - low, low)
        }
        Distribution::Normal => (f64::from(cx.float("scale", 1.0)), f64::from(cx.float("mean", 0.0))),
    };
    let mut numbers = draw(cx, from, dtype, shape)?;
    if factor != 1.0 {
        let factor = cx.scalar("scale", dtype, factor);
        numbers = cx.binary(BinaryKind::Mul, numbers, factor)?;
    }
    if term != 0.0 {
        let term = cx.scalar("shift", dtype, term);
        numbers = cx.binary(BinaryKind::Add, numbers, term)?;
    }
    Ok(vec![numbers])
}

fn listed(cx: &mut NodeCx, from: Distribution) -> Built {
    let shape = cx.ints("shape").ok_or_else(|| Refusal::new("its shape is missing"))?;
    let (shape, dtype) = (cx.make_ints("shape", shape), cx.dtype_named_by("dtype", 1)?);
    scaled(cx, from, dtype, shape)
}

/// The dtype that an attribute gives, or that of a value.
fn dtype_or(cx: &NodeCx, like: ValueId) -> Result<DType, Refusal> {
    match cx.attribute("dtype") {
        Some(_) => cx.dtype_named_by("dtype", 0),
        None => Ok(cx.dtype(like)),
    }
}

fn like(cx: &mut NodeCx, from: Distribution) -> Built {
    let x = cx.input(0)?;
    let (shape, dtype) = (cx.shape_of(x)?, dtype_or(cx, x)?);
    scaled(cx, from, dtype, shape)
}

/// One where an even number lies below the probability.
fn bernoulli(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let (shape, to) = (cx.shape_of(x)?, dtype_or(cx, x)?);
    let numbers = draw(cx, Distribution::Uniform, cx.dtype(x), shape)?;
    let hit = cx.binary(BinaryKind::Less, numbers, x)?;
    cx.add(Cast { to }, [hit])
}

/// The class of the largest logarithm of a probability, each raised by a number of Gumbel's distribution, has just these
/// probabilities (Gumbel 1954).
fn multinomial(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    if cx.rank(x) != 2 {
        return Err(Refusal::new(format!("its input {} is not a matrix", cx.ty(x))));
    }
    let (samples, to) = (size(cx.int("sample_size", 1), "sample_size")?, cx.dtype_named_by("dtype", 6)?);
    let (batch, classes) = (cx.extent(x, 0)?, cx.extent(x, 1)?);
    let samples = cx.make_ints("samples", &[crate::tensor::signed(samples)]);
    let shape = cx.step("shape", Concat { axis: 0 }, [batch, samples, classes])?;
    let numbers = draw(cx, Distribution::Uniform, cx.dtype(x), shape)?;
    let log = cx.unary(UnaryKind::Log, numbers)?;
    let log = cx.unary(UnaryKind::Neg, log)?;
    let gumbel = cx.unary(UnaryKind::Log, log)?;
    let x = cx.unsqueeze(x, &[1])?;
    let raised = cx.binary(BinaryKind::Sub, x, gumbel)?;
    let op = ArgReduce { axis: -1, keep_dims: false, largest: true, select_last: false };
    let class = cx.step("argmax", op, [raised])?;
    cx.add(Cast { to }, [class])
}

/// Nothing at inference. In training, elements are dropped where an even number lies below the ratio, and the others are
/// scaled up.
fn dropout(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let training = match cx.opset {
        ..7 if !cx.flag("is_test", false) => Some(cx.scalar("training", DType::Bool, 1.0)),
        ..12 => None,
        _ => cx.opt(2).filter(|&t| cx.constant(t).is_none_or(|t| t.to_i128s().contains(&1))),
    };
    let Some(training) = training else {
        let mut outputs = vec![x];
        if cx.reads(1) {
            // The mask had the input's dtype before opset 10.
            let dtype = if cx.opset < 10 { cx.dtype(x) } else { DType::Bool };
            let (kept, shape) = (cx.scalar("kept", dtype, 1.0), cx.shape_of(x)?);
            outputs.push(cx.step("mask", Expand {}, [kept, shape])?);
        }
        return Ok(outputs);
    };
    // An attribute before opset 12.
    let ratio = match cx.opt(1) {
        Some(ratio) => cx.cast(ratio, DType::F32)?,
        None => cx.scalar("ratio", DType::F32, f64::from(cx.float("ratio", 0.5))),
    };
    let none = cx.scalar("none", DType::F32, 0.0);
    let ratio = cx.step("ratio", Where {}, [training, ratio, none])?;
    let shape = cx.shape_of(x)?;
    let numbers = draw(cx, Distribution::Uniform, DType::F32, shape)?;
    let mask = cx.step("mask", Binary { kind: BinaryKind::GreaterOrEqual }, [numbers, ratio])?;
    let one = cx.scalar("one", DType::F32, 1.0);
    let kept = cx.binary(BinaryKind::Sub, one, ratio)?;
    let kept = cx.cast(kept, cx.dtype(x))?;
    let scaled = cx.binary(BinaryKind::Div, x, kept)?;
    let zero = cx.scalar("zero", cx.dtype(x), 0.0);
    Ok(vec![cx.op(Where {}, [mask, scaled, zero])?, mask])
}
