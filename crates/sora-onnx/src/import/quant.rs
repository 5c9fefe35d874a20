//! Quantized operators: float operators between QuantizeLinear and DequantizeLinear.

use sora_ir::ops::{
    Activation, ActivationKind, Binary, BinaryKind, Cast, Concat, DequantizeLinear, DynamicQuantizeLinear,
    MatMul, QuantizeLinear, ReduceKind, Softmax, Squeeze, Unary, UnaryKind,
};
use sora_ir::{Op, Real, ValueId};
use sora_tensor::{DType, Tensor};

use super::conv::{average_pool, conv_of, global_of};
use super::math::{scaled, transposed};
use super::node::{Built, NodeCx};
use super::rows::{Row, microsoft, onnx, sora};
use crate::error::Refusal;

pub(super) const ROWS: &[Row] = &[
    onnx("DynamicQuantizeLinear", |cx| {
        let x = cx.input(0)?;
        cx.add(DynamicQuantizeLinear { rows: false }, [x])
    }),
    sora("DynamicQuantizeRows", |cx| {
        let x = cx.input(0)?;
        cx.add(DynamicQuantizeLinear { rows: true }, [x])
    }),
    onnx("QLinearConv", qlinear_conv),
    onnx("QLinearMatMul", qlinear_mat_mul),
    onnx("ConvInteger", conv_integer),
    onnx("MatMulInteger", mat_mul_integer),
    microsoft("QGemm", qgemm),
    microsoft("MatMulIntegerToFloat", mat_mul_integer_to_float),
    microsoft("DynamicQuantizeMatMul", dynamic_mat_mul),
    microsoft("QLinearAdd", |cx| qlinear_binary(cx, BinaryKind::Add)),
    microsoft("QLinearMul", |cx| qlinear_binary(cx, BinaryKind::Mul)),
    microsoft("QLinearConcat", qlinear_concat),
    microsoft("QLinearAveragePool", |cx| qlinear_unary(cx, average_pool)),
    microsoft("QLinearGlobalAveragePool", |cx| {
        qlinear_unary(cx, |cx, x| {
            let op = global_of(cx, x, ReduceKind::Mean)?;
            cx.op(op, [x])
        })
    }),
    microsoft("QLinearLeakyRelu", |cx| {
        qlinear_unary(cx, |cx, x| {
            let alpha = Real(cx.float("alpha", 0.01));
            cx.op(Activation { kind: ActivationKind::LeakyRelu, alpha, beta: Real(0.0) }, [x])
        })
    }),
    microsoft("QLinearSigmoid", |cx| {
        qlinear_unary(cx, |cx, x| cx.op(Unary { kind: UnaryKind::Sigmoid }, [x]))
    }),
    microsoft("QLinearSoftmax", |cx| {
        qlinear_unary(cx, |cx, x| match (cx.int("opset", 13), cx.int("axis", -1)) {
            (13.., axis) => cx.op(Softmax { axis, log: false }, [x]),
            (_, axis) if cx.axis(axis, x)? + 1 == cx.rank(x) => cx.op(Softmax { axis: -1, log: false }, [x]),
            (opset, axis) => Err(Refusal::new(format!("axis={axis} of opset {opset} is not supported"))),
        })
    }),
];

pub(super) fn trimmed(inputs: &[Option<ValueId>]) -> Vec<Option<ValueId>> {
    let present = inputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    inputs.iter().take(present).copied().collect()
}

/// A list of one element as a scalar: per tensor, whatever the axis is.
pub(super) fn one_scale(cx: &mut NodeCx, value: ValueId) -> Result<ValueId, Refusal> {
    if cx.ty(value).known_shape().as_deref() != Some(&[1]) {
        return Ok(value);
    }
    match cx.graph.const_value(value).map(|tensor| tensor.reshape(&[])) {
        Some(Ok(scalar)) => Ok(cx.make("scalar", scalar)),
        _ => cx.step("scalar", Squeeze { axes: vec![0] }, [value]),
    }
}

/// Scale and zero-point of a quantized operand.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub(super) scale: ValueId,
    pub(super) zero_point: Option<ValueId>,
}

impl Scale {
    /// Those at two neighbouring inputs.
    fn at(cx: &NodeCx, index: usize) -> Result<Self, Refusal> {
        Ok(Scale { scale: cx.input(index)?, zero_point: cx.opt(index + 1) })
    }
}

/// The float value of a quantized operand; `axis` counts if the scale is a vector.
pub(super) fn real(cx: &mut NodeCx, x: ValueId, by: Scale, axis: i64) -> Result<ValueId, Refusal> {
    let scale = one_scale(cx, by.scale)?;
    let zero_point = by.zero_point.map(|zero| one_scale(cx, zero)).transpose()?;
    cx.step("dequantize", DequantizeLinear { axis }, trimmed(&[Some(x), Some(scale), zero_point]))
}

/// The float value quantized, as the node's own output.
fn quantized(cx: &mut NodeCx, x: ValueId, by: Scale) -> Result<ValueId, Refusal> {
    let to = by.zero_point.map_or(DType::U8, |zero| cx.dtype(zero));
    let scale = one_scale(cx, by.scale)?;
    let zero_point = by.zero_point.map(|zero| one_scale(cx, zero)).transpose()?;
    cx.op(QuantizeLinear { axis: 1, to }, trimmed(&[Some(x), Some(scale), zero_point]))
}

/// The product of two scales, computed now if both are constant.
fn product(cx: &mut NodeCx, a: ValueId, b: ValueId) -> Result<ValueId, Refusal> {
    let (a, b) = (one_scale(cx, a)?, one_scale(cx, b)?);
    let (Some(x), Some(y)) = (cx.constant(a), cx.constant(b)) else {
        return cx.binary(BinaryKind::Mul, a, b);
    };
    let op = Op::from(Binary { kind: BinaryKind::Mul });
    let values =
        op.eval(&sora_ir::EvalCx { inputs: &[Some(&x), Some(&y)] }).map_err(|e| Refusal::new(e.0))?;
    let value = values.into_iter().next().ok_or_else(|| Refusal::new("the scales have no product"))?;
    Ok(cx.make("scale", value))
}

/// A 32-bit bias, whose scale is that of the products.
fn real_bias(cx: &mut NodeCx, bias: ValueId, a: ValueId, b: ValueId) -> Result<ValueId, Refusal> {
    let scale = product(cx, a, b)?;
    real(cx, bias, Scale { scale, zero_point: None }, 0)
}

fn qlinear_conv(cx: &mut NodeCx) -> Built {
    let (x, w) = (cx.input(0)?, cx.input(3)?);
    let (x_by, w_by, y_by) = (Scale::at(cx, 1)?, Scale::at(cx, 4)?, Scale::at(cx, 6)?);
    let x = real(cx, x, x_by, 1)?;
    let (op, x) = conv_of(cx, x, w)?;
    let mut inputs = vec![x, real(cx, w, w_by, 0)?];
    if let Some(bias) = cx.opt(8) {
        inputs.push(real_bias(cx, bias, x_by.scale, w_by.scale)?);
    }
    let y = cx.step("conv", op, inputs)?;
    Ok(vec![quantized(cx, y, y_by)?])
}

fn qlinear_mat_mul(cx: &mut NodeCx) -> Built {
    let (a_by, b_by, y_by) = (Scale::at(cx, 1)?, Scale::at(cx, 4)?, Scale::at(cx, 6)?);
    let a = real(cx, cx.input(0)?, a_by, -2)?;
    let b = real(cx, cx.input(3)?, b_by, -1)?;
    let y = cx.step("matmul", MatMul {}, [a, b])?;
    Ok(vec![quantized(cx, y, y_by)?])
}

/// The value of an integer operand as a float: its scale is 1, with as many elements as the zero-point.
fn whole(cx: &mut NodeCx, x: ValueId, zero_point: Option<ValueId>, axis: i64) -> Result<ValueId, Refusal> {
    const MOST: usize = 1 << 24;
    let zero_point = zero_point.map(|zero| one_scale(cx, zero)).transpose()?;
    let shape = match zero_point.map(|zero| cx.ty(zero)) {
        None => Some(Vec::new()),
        Some(ty) => ty.known_shape().filter(|_| ty.known_len().is_some_and(|len| len <= MOST)),
    };
    let shape = shape.ok_or_else(|| Refusal::new("its zero-point has no fixed shape"))?;
    let ones = vec![1f32; shape.iter().product()];
    let ones = Tensor::from_slice(&shape, &ones).map_err(|e| Refusal::new(e.to_string()))?;
    let scale = cx.make("one", ones);
    real(cx, x, Scale { scale, zero_point }, axis)
}

/// The sums are computed in `f32`: exact up to 2^24, with a relative error of 2^-24 above.
fn conv_integer(cx: &mut NodeCx) -> Built {
    let (x, w) = (cx.input(0)?, cx.input(1)?);
    let x = whole(cx, x, cx.opt(2), 1)?;
    let (op, x) = conv_of(cx, x, w)?;
    let w = whole(cx, w, cx.opt(3), 0)?;
    let y = cx.step("conv", op, [x, w])?;
    cx.add(Cast { to: DType::I32 }, [y])
}

/// As [`conv_integer`].
fn mat_mul_integer(cx: &mut NodeCx) -> Built {
    let a = whole(cx, cx.input(0)?, cx.opt(2), -2)?;
    let b = whole(cx, cx.input(1)?, cx.opt(3), -1)?;
    let y = cx.step("matmul", MatMul {}, [a, b])?;
    cx.add(Cast { to: DType::I32 }, [y])
}

/// `alpha · A·B + C`; without an output scale the result stays a float.
fn qgemm(cx: &mut NodeCx) -> Built {
    let (a_by, b_by) = (Scale::at(cx, 1)?, Scale::at(cx, 4)?);
    let (trans_a, trans_b) = (cx.flag("transA", false), cx.flag("transB", false));
    let mut a = real(cx, cx.input(0)?, a_by, 0)?;
    let mut b = real(cx, cx.input(3)?, b_by, if trans_b { 0 } else { 1 })?;
    if trans_a {
        a = transposed(cx, a)?;
    }
    if trans_b {
        b = transposed(cx, b)?;
    }
    let mut y = cx.step("matmul", MatMul {}, [a, b])?;
    let alpha = cx.float("alpha", 1.0);
    if alpha != 1.0 {
        y = scaled(cx, y, alpha, "alpha")?;
    }
    if let Some(bias) = cx.opt(6) {
        let mut bias = real_bias(cx, bias, a_by.scale, b_by.scale)?;
        if alpha != 1.0 {
            bias = scaled(cx, bias, alpha, "alpha")?;
        }
        y = cx.binary(BinaryKind::Add, y, bias)?;
    }
    match cx.opt(7) {
        None => Ok(vec![y]),
        Some(_) => {
            let by = Scale::at(cx, 7)?;
            Ok(vec![quantized(cx, y, by)?])
        }
    }
}

/// Inputs: A, B, A's scale, B's scale, A's zero-point, B's zero-point, bias.
fn mat_mul_integer_to_float(cx: &mut NodeCx) -> Built {
    let a = real(cx, cx.input(0)?, Scale { scale: cx.input(2)?, zero_point: cx.opt(4) }, -2)?;
    let b = real(cx, cx.input(1)?, Scale { scale: cx.input(3)?, zero_point: cx.opt(5) }, -1)?;
    biased_product(cx, a, b, cx.opt(6))
}

/// Inputs: A (float), B, B's scale, B's zero-point, bias.
fn dynamic_mat_mul(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let a = rounded(cx, x)?;
    let b_by = Scale::at(cx, 2)?;
    let b = real(cx, cx.input(1)?, b_by, -1)?;
    biased_product(cx, a, b, cx.opt(4))
}

fn biased_product(cx: &mut NodeCx, a: ValueId, b: ValueId, bias: Option<ValueId>) -> Built {
    let Some(bias) = bias else { return cx.add(MatMul {}, [a, b]) };
    let y = cx.step("matmul", MatMul {}, [a, b])?;
    cx.add(Binary { kind: BinaryKind::Add }, [y, bias])
}

fn qlinear_binary(cx: &mut NodeCx, kind: BinaryKind) -> Built {
    let (a_by, b_by, y_by) = (Scale::at(cx, 1)?, Scale::at(cx, 4)?, Scale::at(cx, 6)?);
    let a = real(cx, cx.input(0)?, a_by, 1)?;
    let b = real(cx, cx.input(3)?, b_by, 1)?;
    let y = cx.binary(kind, a, b)?;
    Ok(vec![quantized(cx, y, y_by)?])
}

/// An operator of one operand. Inputs: x, its scale and zero-point, the result's scale and zero-point.
fn qlinear_unary(
    cx: &mut NodeCx,
    function: impl Fn(&mut NodeCx, ValueId) -> Result<ValueId, Refusal>,
) -> Built {
    cx.only_int("channels_last", 0)?;
    let (x_by, y_by) = (Scale::at(cx, 1)?, Scale::at(cx, 3)?);
    let x = real(cx, cx.input(0)?, x_by, 1)?;
    let y = function(cx, x)?;
    Ok(vec![quantized(cx, y, y_by)?])
}

/// Inputs: the result's scale and zero-point, then three for each operand.
fn qlinear_concat(cx: &mut NodeCx) -> Built {
    let y_by = Scale::at(cx, 0)?;
    let mut parts = Vec::new();
    for index in (2..cx.inputs.len()).step_by(3) {
        let by = Scale::at(cx, index + 1)?;
        parts.push(real(cx, cx.input(index)?, by, 1)?);
    }
    let y = cx.step("concat", Concat { axis: cx.int("axis", 1) }, parts)?;
    Ok(vec![quantized(cx, y, y_by)?])
}

/// The value rounded to 8 bits over its range.
pub(super) fn rounded(cx: &mut NodeCx, x: ValueId) -> Result<ValueId, Refusal> {
    let quantized = cx.steps("quantize", DynamicQuantizeLinear { rows: false }, [x])?;
    let &[q, scale, zero_point] = &quantized[..] else {
        return Err(Refusal::new("its input cannot be quantized"));
    };
    real(cx, q, Scale { scale, zero_point: Some(zero_point) }, 0)
}
