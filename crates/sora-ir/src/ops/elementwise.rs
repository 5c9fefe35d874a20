//! The elementwise families: one table row per function.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sora_tensor::{DType, Tensor};

use super::{attrs, broadcast_offset, for_each_index};
use crate::case::{Arg, Case, Gen};
use crate::op::broadcast;
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

/// Which element types a function takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Domain {
    /// Floating point only.
    Float,
    /// Floating point and integers.
    Number,
    /// Truth values only.
    Bool,
    /// Truth values, and integers as rows of bits.
    Bits,
    /// Integers only.
    Integer,
    /// Everything.
    Any,
}

impl Domain {
    fn holds(self, dtype: DType) -> bool {
        match self {
            Domain::Float => dtype.is_float(),
            Domain::Number => dtype != DType::Bool,
            Domain::Bool => dtype == DType::Bool,
            Domain::Bits => !dtype.is_float(),
            Domain::Integer => dtype.is_int(),
            Domain::Any => true,
        }
    }

    /// A representative sample of dtypes for test cases.
    fn sample(self) -> &'static [DType] {
        match self {
            Domain::Float => &[DType::F32, DType::F32, DType::F64, DType::F16, DType::BF16],
            Domain::Number => &[DType::F32, DType::F32, DType::I64, DType::I32, DType::U8, DType::F16],
            Domain::Bool => &[DType::Bool],
            Domain::Bits => &[DType::Bool, DType::Bool, DType::I32, DType::I64, DType::U8],
            Domain::Integer => &[DType::I32, DType::I64, DType::I8, DType::U8, DType::U16],
            Domain::Any => &[DType::F32, DType::I64, DType::Bool, DType::I8],
        }
    }
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident($domain:ident, $quant:ident, $low:expr, $high:expr, $float:expr, $int:expr);)*) => {
        /// A function of one element.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum UnaryKind { $($(#[$doc])* $name),* }

        impl UnaryKind {
            /// Every function, in table order.
            pub const ALL: &[UnaryKind] = &[$(UnaryKind::$name),*];

            /// The function's name, as ONNX has it where ONNX has one.
            pub fn name(self) -> &'static str {
                match self { $(UnaryKind::$name => stringify!($name)),* }
            }

            fn row(self) -> UnaryRow {
                match self { $(UnaryKind::$name => UnaryRow {
                    domain: Domain::$domain, quant: QuantRule::$quant, low: $low, high: $high, float: $float, int: $int,
                }),* }
            }
        }
    };
}

struct UnaryRow {
    domain: Domain,
    quant: QuantRule,
    /// Range of arguments in test cases.
    low: f64,
    high: f64,
    float: fn(f64) -> f64,
    int: fn(i128) -> i128,
}

/// Never called: the row's domain holds no integers.
fn no_int(v: i128) -> i128 {
    v
}

unary! {
    /// Magnitude.
    Abs(Number, Lut, -3.0, 3.0, f64::abs, i128::abs);
    /// Angle of a cosine, in radians.
    Acos(Float, Float, -1.0, 1.0, f64::acos, no_int);
    /// Inverse hyperbolic cosine.
    Acosh(Float, Float, 1.0, 9.0, f64::acosh, no_int);
    /// Angle of a sine, in radians.
    Asin(Float, Float, -1.0, 1.0, f64::asin, no_int);
    /// Inverse hyperbolic sine.
    Asinh(Float, Lut, -9.0, 9.0, f64::asinh, no_int);
    /// Angle of a tangent, in radians.
    Atan(Float, Lut, -9.0, 9.0, f64::atan, no_int);
    /// Inverse hyperbolic tangent.
    Atanh(Float, Float, -0.99, 0.99, f64::atanh, no_int);
    /// Smallest integer not below.
    Ceil(Float, Lut, -3.0, 3.0, f64::ceil, no_int);
    /// Cosine of radians.
    Cos(Float, Float, -9.0, 9.0, f64::cos, no_int);
    /// Hyperbolic cosine.
    Cosh(Float, Float, -6.0, 6.0, f64::cosh, no_int);
    /// Gauss error function.
    Erf(Float, Lut, -4.0, 4.0, libm::erf, no_int);
    /// Natural exponential.
    Exp(Float, Lut, -6.0, 6.0, f64::exp, no_int);
    /// Largest integer not above.
    Floor(Float, Lut, -3.0, 3.0, f64::floor, no_int);
    /// `x · Φ(x)`, Φ the normal distribution function. Source: Hendrycks & Gimpel 2016.
    Gelu(Float, Lut, -6.0, 6.0, |x| 0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)), no_int);
    /// The tanh approximation of [`UnaryKind::Gelu`].
    GeluTanh(Float, Lut, -6.0, 6.0, |x| {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
    }, no_int);
    /// `x · max(0, min(1, x/6 + 1/2))`. Source: Howard et al. 2019, MobileNetV3.
    HardSwish(Float, Lut, -6.0, 6.0, |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0), no_int);
    /// The same value.
    Identity(Any, Passthrough, -3.0, 3.0, |x| x, |x| x);
    /// Natural logarithm.
    Log(Float, Float, 0.01, 9.0, f64::ln, no_int);
    /// The other truth value.
    Not(Bool, Float, 0.0, 2.0, |x| x, |x| i128::from(x == 0));
    /// Additive inverse.
    Neg(Number, Lut, -3.0, 3.0, |x| -x, |x| -x);
    /// `1 / x`.
    Reciprocal(Float, Float, 0.1, 4.0, f64::recip, no_int);
    /// `max(0, x)`.
    Relu(Number, Lut, -3.0, 3.0, |x| if x < 0.0 { 0.0 } else { x }, |x| x.max(0));
    /// The nearest integer, halves to even.
    Round(Float, Lut, -3.0, 3.0, f64::round_ties_even, no_int);
    /// `1 / (1 + exp(-x))`.
    Sigmoid(Float, Lut, -9.0, 9.0, |x| 1.0 / (1.0 + (-x).exp()), no_int);
    /// -1, 0 or 1.
    Sign(Number, Lut, -3.0, 3.0, |x| if x == 0.0 { 0.0 } else { x.signum() }, i128::signum);
    /// `x / (1 + exp(-x))`, also called swish. Source: Elfwing et al. 2017.
    Silu(Float, Lut, -9.0, 9.0, |x| x / (1.0 + (-x).exp()), no_int);
    /// Sine of radians.
    Sin(Float, Float, -9.0, 9.0, f64::sin, no_int);
    /// Hyperbolic sine.
    Sinh(Float, Float, -6.0, 6.0, f64::sinh, no_int);
    /// `ln(1 + exp(x))`.
    Softplus(Float, Lut, -9.0, 9.0, |x| x.max(0.0) + (-x.abs()).exp().ln_1p(), no_int);
    /// `x / (1 + |x|)`.
    Softsign(Float, Lut, -9.0, 9.0, |x| x / (1.0 + x.abs()), no_int);
    /// Square root.
    Sqrt(Float, Float, 0.0, 9.0, f64::sqrt, no_int);
    /// Tangent of radians.
    Tan(Float, Float, -1.5, 1.5, f64::tan, no_int);
    /// Hyperbolic tangent.
    Tanh(Float, Lut, -6.0, 6.0, f64::tanh, no_int);
}

attrs! {
    /// A function applied to every element; shape and dtype stay. Source: the ONNX operator of that name.
    pub struct Unary {
        /// Which function.
        kind: UnaryKind,
    }
}

impl OpDef for Unary {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        ensure!(self.kind.row().domain.holds(x.dtype), "{} does not take {x}", self.kind.name());
        Ok(vec![x.clone()])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (x, row) = (cx.get(0)?, self.kind.row());
        Ok(vec![map(x, row.float, row.int)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        self.gradient(cx)
    }

    fn quant(&self) -> QuantRule {
        self.kind.row().quant
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        (self.kind == UnaryKind::Identity).then(|| cx.content(0).map(<[Dim]>::to_vec))?
    }

    fn label(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(self.kind.name()))
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        cx.same_axes(|_| false)
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let case = |g: &mut Gen, kind: UnaryKind, dtype| {
            let row = kind.row();
            let rank = g.size(0, 4);
            let shape = g.shape(rank);
            Case::new(Unary { kind }, [Arg::Var(g.uniform(dtype, &shape, row.low, row.high))])
        };
        let all = UnaryKind::ALL.iter();
        all.flat_map(|&kind| kind.row().domain.sample().iter().map(move |&d| (kind, d)))
            .map(|(kind, dtype)| case(g, kind, dtype))
            .collect()
    }
}

/// Applies a function element by element in the scalar domain of the dtype.
pub(crate) fn map(
    x: &Tensor,
    float: impl Fn(f64) -> f64,
    int: impl Fn(i128) -> i128,
) -> Result<Tensor, Mismatch> {
    Ok(if x.dtype().is_float() {
        let values: Vec<f64> = x.to_f64s().into_iter().map(float).collect();
        Tensor::from_f64s(x.dtype(), x.shape(), &values)?
    } else {
        let values: Vec<i128> = x.to_i128s().into_iter().map(int).collect();
        Tensor::from_i128s(x.dtype(), x.shape(), &values)?
    })
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident($domain:ident, $quant:ident, $out:ident, $float:expr, $int:expr);)*) => {
        /// A function of two elements.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum BinaryKind { $($(#[$doc])* $name),* }

        impl BinaryKind {
            /// Every function, in table order.
            pub const ALL: &[BinaryKind] = &[$(BinaryKind::$name),*];

            /// The function's name, as ONNX has it where ONNX has one.
            pub fn name(self) -> &'static str {
                match self { $(BinaryKind::$name => stringify!($name)),* }
            }

            fn row(self) -> BinaryRow {
                match self { $(BinaryKind::$name => BinaryRow {
                    domain: Domain::$domain, quant: QuantRule::$quant, result: Result_::$out, float: $float, int: $int,
                }),* }
            }
        }
    };
}

/// What a binary function returns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Result_ {
    /// The operands' dtype.
    Same,
    /// Truth values; the float function returns 0 or 1.
    Truth,
}

struct BinaryRow {
    domain: Domain,
    quant: QuantRule,
    result: Result_,
    float: fn(f64, f64) -> f64,
    int: fn(i128, i128) -> i128,
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// Never called: the row's domain holds no floats.
fn no_float(a: f64, _: f64) -> f64 {
    a
}

/// The remainder that has the divisor's sign.
fn floor_mod(a: f64, b: f64) -> f64 {
    let rest = a % b;
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
}

/// A number of bits to shift by, unless it is negative or beyond every width.
fn shift_bits(by: i128) -> Option<u32> {
    u32::try_from(by).ok().filter(|&by| by < 64)
}

/// Integer power that wraps; a negative exponent gives the truncated quotient.
fn int_pow(base: i128, exponent: i128) -> i128 {
    match u32::try_from(exponent) {
        Ok(exponent) => base.wrapping_pow(exponent),
        Err(_) if base == 1 => 1,
        Err(_) if base == -1 => {
            if exponent % 2 == 0 {
                1
            } else {
                -1
            }
        }
        Err(_) => 0,
    }
}

binary! {
    /// Sum.
    Add(Number, Arithmetic, Same, |a, b| a + b, i128::wrapping_add);
    /// And, of truth values or of the bits of integers.
    And(Bits, Float, Same, no_float, |a, b| a & b);
    /// Quotient; integers truncate towards zero, and a zero divisor gives 0.
    Div(Number, Float, Same, |a, b| a / b, |a, b| a.checked_div(b).unwrap_or(0));
    /// Equality.
    Equal(Any, Float, Truth, |a, b| truth(a == b), |a, b| i128::from(a == b));
    /// Remainder with the sign of the dividend (ONNX Mod with fmod = 1).
    Fmod(Number, Float, Same, |a, b| a % b, |a, b| a.checked_rem(b).unwrap_or(0));
    /// Strictly greater.
    Greater(Number, Float, Truth, |a, b| truth(a > b), |a, b| i128::from(a > b));
    /// Greater or equal.
    GreaterOrEqual(Number, Float, Truth, |a, b| truth(a >= b), |a, b| i128::from(a >= b));
    /// Strictly less.
    Less(Number, Float, Truth, |a, b| truth(a < b), |a, b| i128::from(a < b));
    /// Less or equal.
    LessOrEqual(Number, Float, Truth, |a, b| truth(a <= b), |a, b| i128::from(a <= b));
    /// The greater; NaN if either is.
    Max(Number, Float, Same, |a, b| if a.is_nan() || a > b { a } else { b }, |a, b| a.max(b));
    /// The lesser; NaN if either is.
    Min(Number, Float, Same, |a, b| if a.is_nan() || a < b { a } else { b }, |a, b| a.min(b));
    /// Remainder with the sign of the divisor (ONNX Mod with fmod = 0).
    Mod(Number, Float, Same, floor_mod, |a, b| {
        a.checked_rem(b).map_or(0, |r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r })
    });
    /// Product.
    Mul(Number, Arithmetic, Same, |a, b| a * b, i128::wrapping_mul);
    /// Or, of truth values or of the bits of integers.
    Or(Bits, Float, Same, no_float, |a, b| a | b);
    /// The first to the power of the second.
    Pow(Number, Float, Same, f64::powf, int_pow);
    /// `a` where positive, else `a · b`: the leaky rectifier with slope `b`. Source: ONNX PRelu.
    PRelu(Number, Float, Same, |a, b| if a < 0.0 { a * b } else { a }, |a, b| if a < 0 { a.wrapping_mul(b) } else { a });
    /// Bits moved towards the higher; those beyond the width are lost. A shift by a negative number or by the width or
    /// more gives 0.
    ShiftLeft(Integer, Float, Same, no_float, |a, b| shift_bits(b).map_or(0, |b| a << b));
    /// Bits moved towards the lower, where copies of the sign come in. A shift by a negative number or by the width or
    /// more leaves nothing but the sign.
    ShiftRight(Integer, Float, Same, no_float, |a, b| a >> shift_bits(b).unwrap_or(127));
    /// Difference.
    Sub(Number, Arithmetic, Same, |a, b| a - b, i128::wrapping_sub);
    /// Exclusive or, of truth values or of the bits of integers.
    Xor(Bits, Float, Same, no_float, |a, b| a ^ b);
}

attrs! {
    /// A function of two operands, which broadcast by NumPy's rule and have one dtype. Source: the ONNX
    /// operator of that name.
    pub struct Binary {
        /// Which function.
        kind: BinaryKind,
    }
}

impl OpDef for Binary {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=2)?;
        let (a, b, row) = (cx.ty(0)?, cx.ty(1)?, self.kind.row());
        ensure!(a.dtype == b.dtype, "operands {a} and {b} differ in dtype");
        ensure!(row.domain.holds(a.dtype), "{} does not take {}", self.kind.name(), a.dtype);
        let dtype = if row.result == Result_::Truth { DType::Bool } else { a.dtype };
        Ok(vec![TensorType { dtype, shape: broadcast(&a.shape, &b.shape)? }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (a, b, row) = (cx.get(0)?, cx.get(1)?, self.kind.row());
        let offsets = |visit: &mut dyn FnMut(usize, usize)| {
            for_each_index(&shape, |i| visit(broadcast_offset(i, a.shape()), broadcast_offset(i, b.shape())));
        };
        Ok(vec![if a.dtype().is_float() {
            let (x, y) = (a.to_f64s(), b.to_f64s());
            let mut out = Vec::new();
            offsets(&mut |i, j| out.push((row.float)(x[i], y[j])));
            Tensor::from_f64s(dtype, &shape, &out)?
        } else {
            let (x, y) = (a.to_i128s(), b.to_i128s());
            let mut out = Vec::new();
            offsets(&mut |i, j| out.push((row.int)(x[i], y[j])));
            Tensor::from_i128s(dtype, &shape, &out)?
        }])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        self.gradient(cx)
    }

    fn quant(&self) -> QuantRule {
        self.kind.row().quant
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        let (a, b) = (cx.content(0)?, cx.content(1)?);
        let n = a.len().max(b.len());
        let at = |v: &[Dim], i: usize| if v.len() == 1 { v.first().cloned() } else { v.get(i).cloned() };
        (0..n)
            .map(|i| {
                let (a, b) = (at(a, i)?, at(b, i)?);
                match (self.kind, b.constant()) {
                    (BinaryKind::Add, _) => Some(a + b),
                    (BinaryKind::Sub, _) => Some(a - b),
                    (BinaryKind::Mul, _) => Some(a * b),
                    (BinaryKind::Div, Some(by)) if by > 0 => Some(a.floor_div(by)),
                    _ => None,
                }
            })
            .collect()
    }

    fn label(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(self.kind.name()))
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        cx.broadcast()
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for &kind in BinaryKind::ALL {
            for &dtype in kind.row().domain.sample() {
                let rank = g.size(0, 4);
                let shape = g.shape(rank);
                // Any of: same shape, lower rank, extents of one.
                let thin = |g: &mut Gen, shape: &[usize]| -> Vec<usize> {
                    let from = g.size(0, shape.len());
                    shape[from..].iter().map(|&d| if g.size(0, 3) == 0 { 1 } else { d }).collect()
                };
                let (a, b) = match g.size(0, 2) {
                    0 => (shape.clone(), shape),
                    1 => (shape.clone(), thin(g, &shape)),
                    _ => (thin(g, &shape), shape),
                };
                let (low, high) = match (kind, dtype.is_float()) {
                    (BinaryKind::Pow, _) => (0.1, 3.0),
                    (BinaryKind::Div | BinaryKind::Mod | BinaryKind::Fmod, _) => (1.0, 9.0),
                    (_, true) => (-2.0, 2.0),
                    (_, false) => (0.0, 20.0),
                };
                let x = Arg::Var(g.uniform(dtype, &a, low, high));
                let y = g.uniform(dtype, &b, low, high);
                let y = if g.flag() { Arg::Var(y) } else { Arg::Const(y) };
                cases.push(Case::new(Binary { kind }, [x, y]));
            }
        }
        cases
    }
}
