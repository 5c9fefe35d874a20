//! Operators of onnxruntime's domain that its optimizer and its converters write.

use sora_ir::ops::{Binary, BinaryKind, MatMul, Unary, UnaryKind};

use super::elementwise::gated;
use super::math::{scaled, transposed};
use super::node::{Built, NodeCx};
use super::rows::{Row, microsoft};

pub(super) const ROWS: &[Row] = &[
    microsoft("BiasGelu", |cx| biased(cx, UnaryKind::Gelu)),
    microsoft("FastGelu", |cx| biased(cx, UnaryKind::GeluTanh)),
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

fn fused_mat_mul(cx: &mut NodeCx) -> Built {
    cx.only_int("transBatchA", 0)?;
    cx.only_int("transBatchB", 0)?;
    let (mut a, mut b) = (cx.input(0)?, cx.input(1)?);
    // Vectors stay as they are.
    if cx.flag("transA", false) && cx.rank(a) > 1 {
        a = transposed(cx, a)?;
    }
    if cx.flag("transB", false) && cx.rank(b) > 1 {
        b = transposed(cx, b)?;
    }
    let product = cx.op(MatMul {}, [a, b])?;
    match cx.float("alpha", 1.0) {
        1.0 => Ok(vec![product]),
        alpha => Ok(vec![scaled(cx, product, alpha, "alpha")?]),
    }
}
