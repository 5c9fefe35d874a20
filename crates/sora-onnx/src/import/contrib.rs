//! Operators of onnxruntime's domain that its optimizer and its converters write.

use sora_ir::ops::{
    Activation, ActivationKind, Binary, BinaryKind, LayerNorm, MatMul, ReduceKind, Unary, UnaryKind,
};
use sora_ir::{Real, ValueId};
use sora_tensor::DType;

use super::conv::conv_of;
use super::elementwise::gated;
use super::math::{product_of, scaled, transposed};
use super::node::{Built, NodeCx};
use super::rows::{Row, microsoft};
use crate::error::Refusal;

pub(super) const ROWS: &[Row] = &[
    microsoft("BiasGelu", |cx| biased(cx, UnaryKind::Gelu)),
    microsoft("EmbedLayerNormalization", embed_layer_norm),
    microsoft("FastGelu", |cx| biased(cx, UnaryKind::GeluTanh)),
    microsoft("FusedConv", fused_conv),
    microsoft("FusedGemm", |cx| {
        let y = product_of(cx)?;
        let parameters =
            ["activation_alpha", "activation_beta"].map(|name| cx.attribute(name).and_then(|a| a.f));
        Ok(vec![activated(cx, y, parameters)?])
    }),
    microsoft("FusedMatMul", fused_mat_mul),
    microsoft("Gelu", |cx| biased(cx, UnaryKind::Gelu)),
    microsoft("QuickGelu", |cx| gated(cx, 1.702)),
];

/// A function of the first input, plus the second if there is one.
fn biased(cx: &mut NodeCx, kind: UnaryKind) -> Built {
    let mut x = cx.input(0)?;
    if let Some(bias) = cx.opt(1) {
        x = cx.step("bias", Binary { kind: BinaryKind::Add }, [x, bias])?;
    }
    cx.add(Unary { kind }, [x])
}

/// The function that the attribute `activation` names, with its parameters where they are given.
fn activated(cx: &mut NodeCx, x: ValueId, [alpha, beta]: [Option<f32>; 2]) -> Result<ValueId, Refusal> {
    let unary = |kind| sora_ir::Op::from(Unary { kind });
    let with = |kind, alpha, beta| Activation { kind, alpha: Real(alpha), beta: Real(beta) }.into();
    let op = match cx.text("activation", "").as_ref() {
        "" => return Ok(x),
        "Relu" => unary(UnaryKind::Relu),
        "Sigmoid" => unary(UnaryKind::Sigmoid),
        "Tanh" => unary(UnaryKind::Tanh),
        "Softplus" => unary(UnaryKind::Softplus),
        "Softsign" => unary(UnaryKind::Softsign),
        "HardSwish" => unary(UnaryKind::HardSwish),
        "LeakyRelu" => with(ActivationKind::LeakyRelu, alpha.unwrap_or(0.01), 0.0),
        "Elu" => with(ActivationKind::Elu, alpha.unwrap_or(1.0), 0.0),
        "ThresholdedRelu" => with(ActivationKind::ThresholdedRelu, alpha.unwrap_or(1.0), 0.0),
        "HardSigmoid" => with(ActivationKind::HardSigmoid, alpha.unwrap_or(0.2), beta.unwrap_or(0.5)),
        "Clip" => {
            with(ActivationKind::Clip, alpha.unwrap_or(f32::NEG_INFINITY), beta.unwrap_or(f32::INFINITY))
        }
        other => return Err(Refusal::new(format!("activation=`{other}` is not supported"))),
    };
    cx.step("activation", op, [x])
}

/// A convolution, to which input 3 is added, and a function of the sum.
fn fused_conv(cx: &mut NodeCx) -> Built {
    let (op, x) = conv_of(cx, cx.input(0)?, cx.input(1)?)?;
    let mut y = cx.op(op, [Some(x), cx.opt(1), cx.opt(2)])?;
    if let Some(other) = cx.opt(3) {
        y = cx.binary(BinaryKind::Add, y, other)?;
    }
    let parameters = cx.attribute("activation_params").map_or(&[][..], |a| &a.floats);
    Ok(vec![activated(cx, y, [parameters.first().copied(), parameters.get(1).copied()])?])
}

fn fused_mat_mul(cx: &mut NodeCx) -> Built {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    let a = arranged(cx, a, "transA", "transBatchA")?;
    let b = arranged(cx, b, "transB", "transBatchB")?;
    let product = cx.op(MatMul {}, [a, b])?;
    match cx.float("alpha", 1.0) {
        1.0 => Ok(vec![product]),
        alpha => Ok(vec![scaled(cx, product, alpha, "alpha")?]),
    }
}

/// An operand of a product: its first axis moved behind those of the batch, and its last two exchanged, where the
/// attributes say so. Vectors stay as they are.
fn arranged(cx: &mut NodeCx, x: ValueId, exchange: &str, batch: &str) -> Result<ValueId, Refusal> {
    let rank = cx.rank(x);
    let mut x = x;
    if cx.flag(batch, false) && rank > 2 {
        let perm: Vec<usize> = (1..rank - 1).chain([0, rank - 1]).collect();
        x = cx.transpose(x, &perm)?;
    }
    if cx.flag(exchange, false) && rank > 1 { transposed(cx, x) } else { Ok(x) }
}

/// Normalized sums of the embeddings of tokens, places and segments. Inputs: tokens `[B, S]`, segments, their three
/// tables in the order tokens, places, segments; scale, bias, mask `[B, S]`, places. Outputs: the result, the number of
/// places of each sequence that the mask shows, the sums.
fn embed_layer_norm(cx: &mut NodeCx) -> Built {
    let tokens = cx.input(0)?;
    let mut sum = cx.gather(cx.input(2)?, tokens, 0)?;
    let places = match cx.opt(8) {
        Some(places) => places,
        None => {
            let steps = cx.extent(tokens, 1)?;
            cx.count_to(steps)?
        }
    };
    let places = cx.gather(cx.input(3)?, places, 0)?;
    sum = cx.binary(BinaryKind::Add, sum, places)?;
    if let (Some(segments), Some(table)) = (cx.opt(1), cx.opt(4)) {
        let segments = cx.gather(table, segments, 0)?;
        sum = cx.binary(BinaryKind::Add, sum, segments)?;
    }
    let op = LayerNorm { axis: -1, epsilon: Real(cx.float("epsilon", 1e-12)) };
    let normal = cx.op(op, [Some(sum), Some(cx.input(5)?), cx.opt(6)])?;
    if !cx.reads(1) {
        return Ok(vec![normal, normal, sum]);
    }
    let shown = match cx.opt(7) {
        None => {
            let (none, batch) = (cx.scalar("none", DType::I32, 0.0), cx.extent(tokens, 0)?);
            cx.expand(none, batch)?
        }
        Some(mask) => {
            let ones = cx.with(BinaryKind::Equal, mask, 1.0)?;
            let ones = cx.cast(ones, DType::I32)?;
            cx.reduced(ReduceKind::Sum, ones, &[1], false)?
        }
    };
    Ok(vec![normal, shown, sum])
}
