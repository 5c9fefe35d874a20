//! Losses.

use sora_ir::ValueId;
use sora_ir::ops::{BinaryKind, GatherElements, ReduceKind, Softmax, UnaryKind};

use super::node::NodeCx;
use super::rows::{Row, onnx};
use crate::error::Refusal;

pub(super) const ROWS: &[Row] = &[
    onnx("NegativeLogLikelihoodLoss", |cx| {
        let x = cx.input(0)?;
        Ok(vec![likelihood(cx, x)?])
    }),
    onnx("SoftmaxCrossEntropyLoss", |cx| {
        let x = cx.input(0)?;
        let log = cx.step("log_softmax", Softmax { axis: 1, log: true }, [x])?;
        Ok(vec![likelihood(cx, log)?, log])
    }),
];

/// Minus the logarithms `[N, C, …]` at the classes in input 1, `[N, …]`, times the weights of the classes in input 2,
/// `[C]`; their sum, or their sum over that of the weights, where `reduction` says so. Places that have the class
/// `ignore_index` count nothing.
fn likelihood(cx: &mut NodeCx, log: ValueId) -> Result<ValueId, Refusal> {
    let target = cx.input(1)?;
    let ignored = match cx.attribute("ignore_index") {
        None => None,
        Some(_) => {
            let index = cx.int("ignore_index", 0);
            let index = sora_tensor::Tensor::scalar(index).cast(cx.dtype(target));
            let index = cx.make("ignored", index);
            Some(cx.binary(BinaryKind::Equal, target, index)?)
        }
    };
    // What is ignored need not be a class.
    let class = match ignored {
        None => target,
        Some(ignored) => {
            let zero = cx.scalar("zero", cx.dtype(target), 0.0);
            cx.select(ignored, zero, target)?
        }
    };
    let place = cx.unsqueeze(class, &[1])?;
    let chosen = cx.step("chosen", GatherElements { axis: 1 }, [log, place])?;
    let chosen = cx.squeeze(chosen, &[1])?;
    let mut loss = cx.unary(UnaryKind::Neg, chosen)?;
    let dtype = cx.dtype(log);
    let mut weight = match cx.opt(2) {
        None => None,
        Some(weights) => Some(cx.gather(weights, class, 0)?),
    };
    if let Some(ignored) = ignored {
        let (zero, one) = (cx.scalar("zero", dtype, 0.0), cx.scalar("one", dtype, 1.0));
        loss = cx.select(ignored, zero, loss)?;
        weight = Some(cx.select(ignored, zero, weight.unwrap_or(one))?);
    }
    if cx.opt(2).is_some()
        && let Some(weight) = weight
    {
        loss = cx.binary(BinaryKind::Mul, loss, weight)?;
    }
    match (cx.text("reduction", "mean").as_ref(), weight) {
        ("none", _) => Ok(loss),
        ("sum", _) => cx.reduced(ReduceKind::Sum, loss, &[], false),
        ("mean", None) => cx.reduced(ReduceKind::Mean, loss, &[], false),
        ("mean", Some(weight)) => {
            let total = cx.reduced(ReduceKind::Sum, loss, &[], false)?;
            let weight = cx.reduced(ReduceKind::Sum, weight, &[], false)?;
            cx.binary(BinaryKind::Div, total, weight)
        }
        (other, _) => Err(Refusal::new(format!("reduction=`{other}` is not known"))),
    }
}
