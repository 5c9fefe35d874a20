//! Matrix products, reductions and sums along an axis.

use sora_ir::ValueId;
use sora_ir::ops::{
    ArgReduce, Binary, BinaryKind, CumProd, CumSum, Det, Flatten, Late, LateOp, MatMul, OneHot, Reduce,
    ReduceKind, Softmax, TopK, Transpose,
};
use sora_tensor::Tensor;

use super::node::{Built, NodeCx};
use super::rows::{Row, onnx};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[
    onnx("MatMul", |cx| cx.add(MatMul {}, [cx.input(0)?, cx.input(1)?])),
    onnx("Gemm", gemm),
    onnx("ReduceL1", |cx| reduce(cx, ReduceKind::L1)),
    onnx("ReduceL2", |cx| reduce(cx, ReduceKind::L2)),
    onnx("ReduceLogSum", |cx| reduce(cx, ReduceKind::LogSum)),
    onnx("ReduceLogSumExp", |cx| reduce(cx, ReduceKind::LogSumExp)),
    onnx("ReduceMax", |cx| reduce(cx, ReduceKind::Max)),
    onnx("ReduceMean", |cx| reduce(cx, ReduceKind::Mean)),
    onnx("ReduceMin", |cx| reduce(cx, ReduceKind::Min)),
    onnx("ReduceProd", |cx| reduce(cx, ReduceKind::Prod)),
    onnx("ReduceSum", |cx| reduce(cx, ReduceKind::Sum)),
    onnx("ReduceSumSquare", |cx| reduce(cx, ReduceKind::SumSquare)),
    onnx("ArgMax", |cx| arg_reduce(cx, true)),
    onnx("ArgMin", |cx| arg_reduce(cx, false)),
    onnx("CumProd", cum_prod),
    onnx("CumSum", cum_sum),
    onnx("Det", |cx| cx.add(Det {}, [cx.input(0)?])),
    onnx("Hardmax", hardmax),
    onnx("TopK", top_k),
    onnx("Softmax", |cx| softmax(cx, false)),
    onnx("LogSoftmax", |cx| softmax(cx, true)),
];

/// `alpha · A·B + beta · C` with A and B optionally transposed.
fn gemm(cx: &mut NodeCx) -> Built {
    Ok(vec![product_of(cx)?])
}

/// As [`gemm`].
pub(super) fn product_of(cx: &mut NodeCx) -> Result<ValueId, Refusal> {
    let (a, b, c) = (cx.input(0)?, cx.input(1)?, cx.opt(2));
    for operand in [a, b] {
        if cx.rank(operand) != 2 {
            return Err(Refusal::new(format!("its operand {} must be a matrix", cx.ty(operand))));
        }
    }
    let a = if cx.flag("transA", false) { cx.transpose(a, &[1, 0])? } else { a };
    let b = if cx.flag("transB", false) { cx.transpose(b, &[1, 0])? } else { b };
    let (alpha, beta) = (cx.float("alpha", 1.0), cx.float("beta", 1.0));
    let c = c.filter(|_| beta != 0.0);
    if alpha == 1.0 && c.is_none() {
        return cx.op(MatMul {}, [a, b]);
    }
    let mut product = cx.step("matmul", MatMul {}, [a, b])?;
    if alpha != 1.0 {
        product = scaled(cx, product, alpha, "alpha")?;
    }
    match c {
        None => Ok(product),
        Some(c) => {
            let c = if beta == 1.0 { c } else { scaled(cx, c, beta, "beta")? };
            cx.op(Binary { kind: BinaryKind::Add }, [product, c])
        }
    }
}

/// The value times a number.
pub(super) fn scaled(cx: &mut NodeCx, x: ValueId, by: f32, part: &str) -> Result<ValueId, Refusal> {
    let by = cx.scalar(part, cx.dtype(x), f64::from(by));
    cx.binary(BinaryKind::Mul, x, by)
}

/// The value with its last two axes exchanged.
pub(super) fn transposed(cx: &mut NodeCx, x: ValueId) -> Result<ValueId, Refusal> {
    let rank = cx.rank(x);
    let mut perm: Vec<usize> = (0..rank).collect();
    match rank.checked_sub(2) {
        Some(at) => perm.swap(at, at + 1),
        None => return Err(Refusal::new(format!("cannot transpose its operand {}", cx.ty(x)))),
    }
    cx.step("transpose", Transpose { perm }, [x])
}

/// The axes moved to an input: for ReduceSum in opset 13, for the others in 18.
fn reduce(cx: &mut NodeCx, kind: ReduceKind) -> Built {
    let x = cx.input(0)?;
    let since = if kind == ReduceKind::Sum { 13 } else { 18 };
    let (keep_dims, none_if_empty) = (cx.flag("keepdims", true), cx.flag("noop_with_empty_axes", false));
    if let Some(axes) = cx.late(1, since) {
        return cx.add(Late { op: LateOp::Reduce { kind, keep_dims, none_if_empty } }, [x, axes]);
    }
    let axes = cx.ints_at("axes", 1, since)?.unwrap_or_default();
    if axes.is_empty() && none_if_empty {
        return Ok(vec![x]);
    }
    cx.add(Reduce { kind, axes, keep_dims }, [x])
}

fn arg_reduce(cx: &mut NodeCx, largest: bool) -> Built {
    let op = ArgReduce {
        axis: cx.int("axis", 0),
        keep_dims: cx.flag("keepdims", true),
        largest,
        select_last: cx.flag("select_last_index", false),
    };
    cx.add(op, [cx.input(0)?])
}

fn cum_sum(cx: &mut NodeCx) -> Built {
    let op = CumSum { exclusive: cx.flag("exclusive", false), reverse: cx.flag("reverse", false) };
    cx.add(op, [cx.input(0)?, cx.input(1)?])
}

fn cum_prod(cx: &mut NodeCx) -> Built {
    let op = CumProd { exclusive: cx.flag("exclusive", false), reverse: cx.flag("reverse", false) };
    cx.add(op, [cx.input(0)?, cx.input(1)?])
}

/// Before opset 10 the number was an attribute. The sorted form is one of those that the unsorted one allows.
fn top_k(cx: &mut NodeCx) -> Built {
    let k = if cx.opset < 10 { cx.make_ints("k", &[cx.int("k", 1)]) } else { cx.input(1)? };
    cx.add(TopK { axis: cx.int("axis", -1), largest: cx.flag("largest", true) }, [cx.input(0)?, k])
}

fn softmax(cx: &mut NodeCx, log: bool) -> Built {
    along_axis(cx, |cx, x, axis| cx.op(Softmax { axis, log }, [x]))
}

/// One where the first of the largest elements is, else zero.
fn hardmax(cx: &mut NodeCx) -> Built {
    along_axis(cx, |cx, x, axis| {
        let op = ArgReduce { axis, keep_dims: false, largest: true, select_last: false };
        let place = cx.step("argmax", op, [x])?;
        let depth = cx.extent(x, cx.axis(axis, x)?)?;
        let values = cx.make("values", Tensor::vector(&[0f32, 1.0]).cast(cx.dtype(x)));
        cx.op(OneHot { axis }, [place, depth, values])
    })
}

/// A function along an axis. Before opset 13 the input was read as a matrix, split at the axis.
fn along_axis(
    cx: &mut NodeCx,
    function: impl Fn(&mut NodeCx, ValueId, i64) -> Result<ValueId, Refusal>,
) -> Built {
    let x = cx.input(0)?;
    if cx.opset >= 13 {
        let axis = cx.int("axis", -1);
        return Ok(vec![function(cx, x, axis)?]);
    }
    let axis = cx.int("axis", 1);
    let rank = cx.rank(x);
    let at = if rank == 1 && axis == 1 { 0 } else { cx.axis(axis, x)? };
    if at + 1 == rank {
        return Ok(vec![function(cx, x, -1)?]);
    }
    let flat = cx.step("flatten", Flatten { axis: signed(at) }, [x])?;
    let result = function(cx, flat, 1)?;
    Ok(vec![cx.reshape_like(result, x)?])
}
