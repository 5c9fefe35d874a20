//! Functions of one element or of two.

use sora_ir::ops::{
    Activation, ActivationKind, Binary, BinaryKind, Cast, Unary, UnaryKind, Unsqueeze, Where,
};
use sora_ir::{Real, ValueId};
use sora_tensor::{DType, Tensor};

use super::node::{Built, NodeCx, first};
use super::rows::{Row, onnx};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[
    onnx("Abs", |cx| unary(cx, UnaryKind::Abs)),
    onnx("Acos", |cx| unary(cx, UnaryKind::Acos)),
    onnx("Acosh", |cx| unary(cx, UnaryKind::Acosh)),
    onnx("Asin", |cx| unary(cx, UnaryKind::Asin)),
    onnx("Asinh", |cx| unary(cx, UnaryKind::Asinh)),
    onnx("Atan", |cx| unary(cx, UnaryKind::Atan)),
    onnx("Atanh", |cx| unary(cx, UnaryKind::Atanh)),
    onnx("Ceil", |cx| unary(cx, UnaryKind::Ceil)),
    onnx("Cos", |cx| unary(cx, UnaryKind::Cos)),
    onnx("Cosh", |cx| unary(cx, UnaryKind::Cosh)),
    onnx("Erf", |cx| unary(cx, UnaryKind::Erf)),
    onnx("Exp", |cx| unary(cx, UnaryKind::Exp)),
    onnx("Floor", |cx| unary(cx, UnaryKind::Floor)),
    onnx("Gelu", gelu),
    onnx("HardSwish", |cx| unary(cx, UnaryKind::HardSwish)),
    onnx("Log", |cx| unary(cx, UnaryKind::Log)),
    onnx("Neg", |cx| unary(cx, UnaryKind::Neg)),
    onnx("Not", |cx| unary(cx, UnaryKind::Not)),
    onnx("Reciprocal", |cx| unary(cx, UnaryKind::Reciprocal)),
    onnx("Relu", |cx| unary(cx, UnaryKind::Relu)),
    onnx("Round", |cx| unary(cx, UnaryKind::Round)),
    onnx("Sigmoid", |cx| unary(cx, UnaryKind::Sigmoid)),
    onnx("Sign", |cx| unary(cx, UnaryKind::Sign)),
    onnx("Sin", |cx| unary(cx, UnaryKind::Sin)),
    onnx("Sinh", |cx| unary(cx, UnaryKind::Sinh)),
    onnx("Softplus", |cx| unary(cx, UnaryKind::Softplus)),
    onnx("Softsign", |cx| unary(cx, UnaryKind::Softsign)),
    onnx("Sqrt", |cx| unary(cx, UnaryKind::Sqrt)),
    onnx("Tanh", |cx| unary(cx, UnaryKind::Tanh)),
    onnx("Tan", |cx| unary(cx, UnaryKind::Tan)),
    onnx("Mish", mish),
    onnx("SwiGLU", swi_glu),
    onnx("Swish", swish),
    onnx("IsInf", is_inf),
    onnx("IsNaN", is_nan),
    onnx("Shrink", shrink),
    onnx("Celu", |cx| activation(cx, ActivationKind::Celu, 1.0, None)),
    onnx("Elu", |cx| activation(cx, ActivationKind::Elu, 1.0, None)),
    onnx("HardSigmoid", |cx| activation(cx, ActivationKind::HardSigmoid, 0.2, Some(("beta", 0.5)))),
    onnx("LeakyRelu", |cx| activation(cx, ActivationKind::LeakyRelu, 0.01, None)),
    onnx("Selu", selu),
    onnx("ThresholdedRelu", |cx| activation(cx, ActivationKind::ThresholdedRelu, 1.0, None)),
    onnx("Clip", clip),
    onnx("Add", |cx| binary(cx, BinaryKind::Add)),
    onnx("And", |cx| bits(cx, BinaryKind::And, true)),
    onnx("BitShift", bit_shift),
    onnx("BitwiseAnd", |cx| bits(cx, BinaryKind::And, false)),
    onnx("BitwiseNot", bitwise_not),
    onnx("BitwiseOr", |cx| bits(cx, BinaryKind::Or, false)),
    onnx("BitwiseXor", |cx| bits(cx, BinaryKind::Xor, false)),
    onnx("Div", |cx| binary(cx, BinaryKind::Div)),
    onnx("Equal", |cx| binary(cx, BinaryKind::Equal)),
    onnx("Greater", |cx| binary(cx, BinaryKind::Greater)),
    onnx("GreaterOrEqual", |cx| binary(cx, BinaryKind::GreaterOrEqual)),
    onnx("Less", |cx| binary(cx, BinaryKind::Less)),
    onnx("LessOrEqual", |cx| binary(cx, BinaryKind::LessOrEqual)),
    onnx("Mod", modulo),
    onnx("Mul", |cx| binary(cx, BinaryKind::Mul)),
    onnx("Or", |cx| bits(cx, BinaryKind::Or, true)),
    onnx("Pow", pow),
    onnx("PRelu", p_relu),
    onnx("Sub", |cx| binary(cx, BinaryKind::Sub)),
    onnx("Xor", |cx| bits(cx, BinaryKind::Xor, true)),
    onnx("Max", |cx| variadic(cx, BinaryKind::Max)),
    onnx("Min", |cx| variadic(cx, BinaryKind::Min)),
    onnx("Sum", |cx| variadic(cx, BinaryKind::Add)),
    onnx("Mean", mean),
    onnx("Where", |cx| cx.add(Where {}, cx.inputs_to(3))),
];

fn unary(cx: &mut NodeCx, kind: UnaryKind) -> Built {
    cx.add(Unary { kind }, [cx.input(0)?])
}

fn binary(cx: &mut NodeCx, kind: BinaryKind) -> Built {
    let operands = operands(cx)?;
    cx.add(Binary { kind }, operands)
}

/// Both operands. Before opset 7, the second one's axes lay along those of the first from `axis` on.
fn operands(cx: &mut NodeCx) -> Result<[ValueId; 2], Refusal> {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    if cx.opset >= 7 || !cx.flag("broadcast", false) || cx.attribute("axis").is_none() {
        return Ok([a, b]);
    }
    let axis = cx.axis(cx.int("axis", 0), a)?;
    match cx.rank(a).checked_sub(axis + cx.rank(b)) {
        Some(after) => Ok([a, trailing(cx, b, after)?]),
        None => Err(Refusal::new(format!("axis={axis} does not fit {} and {}", cx.ty(a), cx.ty(b)))),
    }
}

/// The value with `count` more axes of extent 1 at the end.
fn trailing(cx: &mut NodeCx, x: ValueId, count: usize) -> Result<ValueId, Refusal> {
    let rank = cx.rank(x);
    match count {
        0 => Ok(x),
        _ => cx.step("unsqueeze", Unsqueeze { axes: (rank..rank + count).map(signed).collect() }, [x]),
    }
}

/// Before opset 7, a list of slopes was one for each channel.
fn p_relu(cx: &mut NodeCx) -> Built {
    let (x, mut slope) = (cx.input(0)?, cx.input(1)?);
    if cx.opset < 7 && cx.rank(slope) == 1 && cx.ty(slope).known_len() != Some(1) {
        slope = trailing(cx, slope, cx.rank(x).saturating_sub(2))?;
    }
    cx.add(Binary { kind: BinaryKind::PRelu }, [x, slope])
}

fn gelu(cx: &mut NodeCx) -> Built {
    match cx.text("approximate", "none").as_ref() {
        "none" => unary(cx, UnaryKind::Gelu),
        "tanh" => unary(cx, UnaryKind::GeluTanh),
        other => Err(Refusal::new(format!("approximate=`{other}` is not supported"))),
    }
}

/// `x · tanh(softplus(x))`.
fn mish(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let soft = cx.unary(UnaryKind::Softplus, x)?;
    let gate = cx.unary(UnaryKind::Tanh, soft)?;
    cx.add(Binary { kind: BinaryKind::Mul }, [x, gate])
}

/// `x · sigmoid(alpha · x)`.
pub(super) fn swish(cx: &mut NodeCx) -> Built {
    gated(cx, 1.0)
}

/// As [`swish`] under another default of alpha.
pub(super) fn gated(cx: &mut NodeCx, default: f32) -> Built {
    let (x, alpha) = (cx.input(0)?, cx.float("alpha", default));
    if alpha == 1.0 {
        return unary(cx, UnaryKind::Silu);
    }
    let alpha = cx.scalar("alpha", cx.dtype(x), f64::from(alpha));
    let scaled = cx.binary(BinaryKind::Mul, x, alpha)?;
    let gate = cx.unary(UnaryKind::Sigmoid, scaled)?;
    cx.add(Binary { kind: BinaryKind::Mul }, [x, gate])
}

/// `a · sigmoid(alpha · a) · b` of operands of one shape.
fn swi_glu(cx: &mut NodeCx) -> Built {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    if !cx.ty(a).accepts(cx.ty(b)) {
        return Err(Refusal::new(format!("its inputs {} and {} differ", cx.ty(a), cx.ty(b))));
    }
    let gate = first(swish(cx)?)?;
    Ok(vec![cx.binary(BinaryKind::Mul, gate, b)?])
}

/// NaN is the only value that differs from itself.
fn is_nan(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let same = cx.binary(BinaryKind::Equal, x, x)?;
    unary_of(cx, UnaryKind::Not, same)
}

/// Magnitudes or numbers compared with infinity.
fn is_inf(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let (low, high) = (cx.flag("detect_negative", true), cx.flag("detect_positive", true));
    let kind = if low || high { BinaryKind::Equal } else { BinaryKind::Less };
    let left = if low && high { cx.unary(UnaryKind::Abs, x)? } else { x };
    let right = match (low, high) {
        // No number is less than itself.
        (false, false) => x,
        (true, false) => cx.scalar("infinity", cx.dtype(x), f64::NEG_INFINITY),
        (_, true) => cx.scalar("infinity", cx.dtype(x), f64::INFINITY),
    };
    cx.add(Binary { kind }, [left, right])
}

/// Numbers moved towards zero by `bias`, and zero where the magnitude is up to `lambd`.
fn shrink(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let (dtype, lambd) = (cx.dtype(x), f64::from(cx.float("lambd", 0.5)));
    let (low, high) = (cx.scalar("low", dtype, -lambd), cx.scalar("high", dtype, lambd));
    let bias = cx.scalar("bias", dtype, f64::from(cx.float("bias", 0.0)));
    let (raised, lowered) = (cx.binary(BinaryKind::Add, x, bias)?, cx.binary(BinaryKind::Sub, x, bias)?);
    let (below, above) = (cx.binary(BinaryKind::Less, x, low)?, cx.binary(BinaryKind::Greater, x, high)?);
    let zero = cx.scalar("zero", dtype, 0.0);
    let rest = cx.step("where", Where {}, [above, lowered, zero])?;
    cx.add(Where {}, [below, raised, rest])
}

/// A function of truth values, or of the bits of integers.
fn bits(cx: &mut NodeCx, kind: BinaryKind, truth: bool) -> Built {
    let x = cx.input(0)?;
    if (cx.dtype(x) == DType::Bool) != truth {
        return Err(Refusal::new(format!("it does not take {}", cx.ty(x))));
    }
    binary(cx, kind)
}

fn bitwise_not(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let ones = Tensor::from_i128s(cx.dtype(x), &[], &[-1]).map_err(|e| Refusal::new(e.to_string()))?;
    let ones = cx.make("ones", ones);
    cx.add(Binary { kind: BinaryKind::Xor }, [x, ones])
}

fn bit_shift(cx: &mut NodeCx) -> Built {
    match cx.text("direction", "").as_ref() {
        "LEFT" => binary(cx, BinaryKind::ShiftLeft),
        "RIGHT" => binary(cx, BinaryKind::ShiftRight),
        other => Err(Refusal::new(format!("direction=`{other}` is neither LEFT nor RIGHT"))),
    }
}

fn unary_of(cx: &mut NodeCx, kind: UnaryKind, x: ValueId) -> Built {
    cx.add(Unary { kind }, [x])
}

fn activation(cx: &mut NodeCx, kind: ActivationKind, alpha: f32, beta: Option<(&str, f32)>) -> Built {
    let beta = beta.map_or(0.0, |(name, default)| cx.float(name, default));
    let op = Activation { kind, alpha: Real(cx.float("alpha", alpha)), beta: Real(beta) };
    cx.add(op, [cx.input(0)?])
}

/// Opset 6 gave the defaults more digits.
fn selu(cx: &mut NodeCx) -> Built {
    let (alpha, gamma) = if cx.opset < 6 { (1.6732, 1.0507) } else { (1.673_263_2, 1.050_701) };
    activation(cx, ActivationKind::Selu, alpha, Some(("gamma", gamma)))
}

/// Constant bounds of floats make one operator; others become Max and Min. Bounds were attributes before opset 11.
fn clip(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let dtype = cx.dtype(x);
    let (low, high) = match cx.opset < 11 {
        true => {
            let bound = |cx: &mut NodeCx, name: &str| {
                let value = cx.attribute(name).map(|a| f64::from(a.f.unwrap_or(0.0)));
                value.map(|v| cx.scalar(name, dtype, v))
            };
            (bound(cx, "min"), bound(cx, "max"))
        }
        false => (cx.opt(1), cx.opt(2)),
    };
    let exact = |cx: &NodeCx, bound: Option<ValueId>, absent: f32| match bound {
        None => Some(absent),
        Some(id) => {
            let value = cx.constant(id).filter(|t| t.len() == 1)?;
            let narrow = value.to_f32s().first().copied()?;
            (value.to_f64s().first() == Some(&f64::from(narrow))).then_some(narrow)
        }
    };
    let (alpha, beta) = (exact(cx, low, f32::NEG_INFINITY), exact(cx, high, f32::INFINITY));
    if let (true, Some(alpha), Some(beta)) = (dtype.is_float(), alpha, beta) {
        let op = Activation { kind: ActivationKind::Clip, alpha: Real(alpha), beta: Real(beta) };
        return cx.add(op, [x]);
    }
    match (low, high) {
        (None, None) => Ok(vec![x]),
        (Some(low), None) => cx.add(Binary { kind: BinaryKind::Max }, [x, low]),
        (None, Some(high)) => cx.add(Binary { kind: BinaryKind::Min }, [x, high]),
        (Some(low), Some(high)) => {
            let raised = cx.binary(BinaryKind::Max, x, low)?;
            cx.add(Binary { kind: BinaryKind::Min }, [raised, high])
        }
    }
}

fn modulo(cx: &mut NodeCx) -> Built {
    let kind = if cx.flag("fmod", false) { BinaryKind::Fmod } else { BinaryKind::Mod };
    binary(cx, kind)
}

/// The exponent may have another dtype than the base, whose dtype the result has.
fn pow(cx: &mut NodeCx) -> Built {
    let [base, exponent] = operands(cx)?;
    let (to, from) = (cx.dtype(base), cx.dtype(exponent));
    if to == from || to.is_float() {
        let exponent = cx.cast(exponent, to)?;
        return cx.add(Binary { kind: BinaryKind::Pow }, [base, exponent]);
    }
    let wide = if from.is_float() { from } else { DType::I64 };
    let (base, exponent) = (cx.cast(base, wide)?, cx.cast(exponent, wide)?);
    let power = cx.binary(BinaryKind::Pow, base, exponent)?;
    cx.add(Cast { to }, [power])
}

/// Folds any number of operands from the left.
fn variadic(cx: &mut NodeCx, kind: BinaryKind) -> Built {
    Ok(vec![folded(cx, kind)?])
}

fn folded(cx: &mut NodeCx, kind: BinaryKind) -> Result<ValueId, Refusal> {
    let inputs = cx.all_inputs()?;
    let last = inputs.len().saturating_sub(1);
    let mut sum = cx.input(0)?;
    for (i, operand) in inputs.into_iter().enumerate().skip(1) {
        sum = match i == last {
            true => cx.op(Binary { kind }, [sum, operand])?,
            false => cx.binary(kind, sum, operand)?,
        };
    }
    Ok(sum)
}

fn mean(cx: &mut NodeCx) -> Built {
    let count = f64::from(u32::try_from(cx.inputs.len()).unwrap_or(u32::MAX));
    let sum = folded(cx, BinaryKind::Add)?;
    let count = cx.scalar("count", cx.dtype(sum), count);
    Ok(vec![cx.binary(BinaryKind::Div, sum, count)?])
}
