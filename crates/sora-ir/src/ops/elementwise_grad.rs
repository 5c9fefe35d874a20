//! The gradients of the elementwise families: one arm per function.
//!
//! `x` is the operand, `y` the result, `dy` its gradient. Functions of steps, whose derivative is zero wherever there is
//! one, pass no gradient on. At a kink the derivative is that of one side.

use super::elementwise::{Binary, BinaryKind, Unary, UnaryKind};
use super::{Activation, ActivationKind};
use crate::{GradCx, Gradients, Mismatch, ValueId};

impl Unary {
    pub(crate) fn gradient(&self, cx: &mut GradCx) -> Gradients {
        use UnaryKind::{
            Abs, Acos, Acosh, Asin, Asinh, Atan, Atanh, Ceil, Cos, Cosh, Erf, Exp, Floor, Gelu, GeluTanh,
            HardSwish, Identity, Log, Neg, Not, Reciprocal, Relu, Round, Sigmoid, Sign, Silu, Sin, Sinh,
            Softplus, Softsign, Sqrt, Tan, Tanh,
        };
        let (x, y, dy) = (cx.input(0)?, cx.output(0)?, cx.grad()?);
        let dx = match self.kind {
            Ceil | Floor | Not | Round | Sign => return Ok(vec![None]),
            Identity => dy,
            Neg => cx.unary(Neg, dy)?,
            Abs => {
                let sign = cx.unary(Sign, x)?;
                cx.mul(dy, sign)?
            }
            Acos | Asin => {
                let d = root(cx, x, -1.0, 1.0)?;
                let dx = cx.div(dy, d)?;
                if self.kind == Acos { cx.unary(Neg, dx)? } else { dx }
            }
            Acosh => {
                let d = root(cx, x, 1.0, -1.0)?;
                cx.div(dy, d)?
            }
            Asinh => {
                let d = root(cx, x, 1.0, 1.0)?;
                cx.div(dy, d)?
            }
            Atan => {
                let d = square(cx, x, 1.0, 1.0)?;
                cx.div(dy, d)?
            }
            Atanh => {
                let d = square(cx, x, -1.0, 1.0)?;
                cx.div(dy, d)?
            }
            Cos => {
                let sin = cx.unary(Sin, x)?;
                let dx = cx.mul(dy, sin)?;
                cx.unary(Neg, dx)?
            }
            Cosh | Sin | Sinh => {
                let kind = match self.kind {
                    Cosh => Sinh,
                    Sin => Cos,
                    _ => Cosh,
                };
                let d = cx.unary(kind, x)?;
                cx.mul(dy, d)?
            }
            Erf => {
                let d = bell(cx, x, -1.0, std::f64::consts::FRAC_2_SQRT_PI)?;
                cx.mul(dy, d)?
            }
            Exp => cx.mul(dy, y)?,
            Gelu => {
                // Φ(x) + x · φ(x)
                let scaled = cx.times(x, std::f64::consts::FRAC_1_SQRT_2)?;
                let erf = cx.unary(Erf, scaled)?;
                let half = cx.times(erf, 0.5)?;
                let cdf = cx.plus(half, 0.5)?;
                let density = bell(cx, x, -0.5, std::f64::consts::TAU.sqrt().recip())?;
                let slope = cx.mul(x, density)?;
                let d = cx.add(cdf, slope)?;
                cx.mul(dy, d)?
            }
            GeluTanh => {
                // y = x · s for s = (1 + tanh u) / 2 = σ(2u), so dy/dx = s + x · 2u' · s · (1 - s).
                let factor = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
                let slope = square(cx, x, 3.0 * 0.044715 * factor, factor)?;
                let inner = square(cx, x, 0.044715 * factor, factor)?;
                let u = cx.mul(x, inner)?;
                let s = cx.unary(Sigmoid, u)?;
                let rise = cx.mul(x, slope)?;
                let d = gated(cx, s, rise)?;
                cx.mul(dy, d)?
            }
            Silu => {
                let s = cx.unary(Sigmoid, x)?;
                let d = gated(cx, s, x)?;
                cx.mul(dy, d)?
            }
            HardSwish => {
                // x/3 + 1/2 between the bends, 0 before and 1 behind.
                let third = cx.times(x, 1.0 / 3.0)?;
                let line = cx.plus(third, 0.5)?;
                let below = cx.compare(x, BinaryKind::Greater, -3.0)?;
                let line = cx.keep(below, line)?;
                let inside = cx.compare(x, BinaryKind::Less, 3.0)?;
                let one = cx.number(1.0, x)?;
                let d = cx.select(inside, line, one)?;
                cx.mul(dy, d)?
            }
            Log => cx.div(dy, x)?,
            Reciprocal => {
                let d = cx.mul(y, y)?;
                let dx = cx.mul(dy, d)?;
                cx.unary(Neg, dx)?
            }
            Relu => {
                let active = cx.compare(y, BinaryKind::Greater, 0.0)?;
                cx.keep(active, dy)?
            }
            Sigmoid => {
                let squared = cx.mul(y, y)?;
                let d = cx.sub(y, squared)?;
                cx.mul(dy, d)?
            }
            Softplus => {
                let d = cx.unary(Sigmoid, x)?;
                cx.mul(dy, d)?
            }
            Softsign => {
                let size = cx.unary(Abs, x)?;
                let root = cx.plus(size, 1.0)?;
                let d = cx.mul(root, root)?;
                cx.div(dy, d)?
            }
            Sqrt => {
                let dx = cx.div(dy, y)?;
                cx.times(dx, 0.5)?
            }
            Tan => {
                let d = square(cx, y, 1.0, 1.0)?;
                cx.mul(dy, d)?
            }
            Tanh => {
                let d = square(cx, y, -1.0, 1.0)?;
                cx.mul(dy, d)?
            }
        };
        Ok(vec![Some(dx)])
    }
}

/// `a · x² + b`.
fn square(cx: &mut GradCx, x: ValueId, a: f64, b: f64) -> Result<ValueId, Mismatch> {
    let squared = cx.mul(x, x)?;
    let scaled = if a == 1.0 { squared } else { cx.times(squared, a)? };
    cx.plus(scaled, b)
}

/// `sqrt(a · x² + b)`.
fn root(cx: &mut GradCx, x: ValueId, a: f64, b: f64) -> Result<ValueId, Mismatch> {
    let squared = square(cx, x, a, b)?;
    cx.unary(UnaryKind::Sqrt, squared)
}

/// `factor · exp(a · x²)`.
fn bell(cx: &mut GradCx, x: ValueId, a: f64, factor: f64) -> Result<ValueId, Mismatch> {
    let squared = cx.mul(x, x)?;
    let scaled = cx.times(squared, a)?;
    let exp = cx.unary(UnaryKind::Exp, scaled)?;
    cx.times(exp, factor)
}

/// `s + rise · s · (1 - s)`: the derivative of what a sigmoid `s` gates.
fn gated(cx: &mut GradCx, s: ValueId, rise: ValueId) -> Result<ValueId, Mismatch> {
    let squared = cx.mul(s, s)?;
    let slope = cx.sub(s, squared)?;
    let moved = cx.mul(rise, slope)?;
    cx.add(s, moved)
}

impl Binary {
    pub(crate) fn gradient(&self, cx: &mut GradCx) -> Gradients {
        use BinaryKind::{
            Add, And, Div, Equal, Fmod, Greater, GreaterOrEqual, Less, LessOrEqual, Max, Min, Mod, Mul, Or,
            PRelu, Pow, ShiftLeft, ShiftRight, Sub, Xor,
        };
        let (a, b, y, dy) = (cx.input(0)?, cx.input(1)?, cx.output(0)?, cx.grad()?);
        let (da, db) = match self.kind {
            And | Equal | Greater | GreaterOrEqual | Less | LessOrEqual | Or | ShiftLeft | ShiftRight
            | Xor => {
                return Ok(vec![None, None]);
            }
            Add => (Some(dy), Some(dy)),
            Sub => {
                let db = if cx.wants(1) { Some(cx.unary(UnaryKind::Neg, dy)?) } else { None };
                (Some(dy), db)
            }
            Mul => {
                let da = if cx.wants(0) { Some(cx.mul(dy, b)?) } else { None };
                let db = if cx.wants(1) { Some(cx.mul(dy, a)?) } else { None };
                (da, db)
            }
            Div => {
                let da = cx.div(dy, b)?;
                let product = cx.mul(da, y)?;
                (Some(da), Some(cx.unary(UnaryKind::Neg, product)?))
            }
            Max | Min => {
                let kind = if self.kind == Max { GreaterOrEqual } else { LessOrEqual };
                let first = cx.binary(kind, a, b)?;
                let zero = cx.number(0.0, dy)?;
                (Some(cx.select(first, dy, zero)?), Some(cx.select(first, zero, dy)?))
            }
            // y = a - b · q with q constant between steps.
            Mod | Fmod => {
                cx.refuse(1, "the divisor")?;
                (Some(dy), None)
            }
            Pow => {
                let less = cx.plus(b, -1.0)?;
                let power = cx.binary(Pow, a, less)?;
                let slope = cx.mul(b, power)?;
                let da = cx.mul(dy, slope)?;
                let db = if cx.wants(1) {
                    let log = cx.unary(UnaryKind::Log, a)?;
                    let slope = cx.mul(y, log)?;
                    Some(cx.mul(dy, slope)?)
                } else {
                    None
                };
                (Some(da), db)
            }
            PRelu => {
                let negative = cx.compare(a, Less, 0.0)?;
                let scaled = cx.mul(dy, b)?;
                let da = cx.select(negative, scaled, dy)?;
                let product = cx.mul(dy, a)?;
                (Some(da), Some(cx.keep(negative, product)?))
            }
        };
        let mut to_input = |grad: Option<ValueId>, index: usize| match grad {
            Some(grad) if cx.wants(index) => cx.sum_to_input(grad, index).map(Some),
            _ => Ok(None),
        };
        Ok(vec![to_input(da, 0)?, to_input(db, 1)?])
    }
}

impl Activation {
    pub(crate) fn gradient(&self, cx: &mut GradCx) -> Gradients {
        use ActivationKind::{Celu, Clip, Elu, HardSigmoid, LeakyRelu, Selu, ThresholdedRelu};
        let (x, y, dy) = (cx.input(0)?, cx.output(0)?, cx.grad()?);
        let (alpha, beta) = (f64::from(self.alpha.0), f64::from(self.beta.0));
        let dx = match self.kind {
            Celu => {
                let scaled = cx.times(x, 1.0 / alpha)?;
                let exp = cx.unary(UnaryKind::Exp, scaled)?;
                let slope = cx.mul(dy, exp)?;
                let negative = cx.compare(x, BinaryKind::Less, 0.0)?;
                cx.select(negative, slope, dy)?
            }
            Clip => {
                let above = cx.compare(y, BinaryKind::Greater, alpha)?;
                let kept = cx.keep(above, dy)?;
                let below = cx.compare(y, BinaryKind::Less, beta)?;
                cx.keep(below, kept)?
            }
            // The slope of alpha · (exp(x) - 1) is y + alpha.
            Elu => {
                let rise = cx.plus(y, alpha)?;
                let slope = cx.mul(dy, rise)?;
                let negative = cx.compare(x, BinaryKind::Less, 0.0)?;
                cx.select(negative, slope, dy)?
            }
            HardSigmoid => {
                let above = cx.compare(y, BinaryKind::Greater, 0.0)?;
                let kept = cx.keep(above, dy)?;
                let below = cx.compare(y, BinaryKind::Less, 1.0)?;
                let kept = cx.keep(below, kept)?;
                cx.times(kept, alpha)?
            }
            LeakyRelu => {
                let slope = cx.times(dy, alpha)?;
                let negative = cx.compare(x, BinaryKind::Less, 0.0)?;
                cx.select(negative, slope, dy)?
            }
            Selu => {
                let rise = cx.plus(y, alpha * beta)?;
                let slope = cx.mul(dy, rise)?;
                let line = cx.times(dy, beta)?;
                let positive = cx.compare(x, BinaryKind::Greater, 0.0)?;
                cx.select(positive, line, slope)?
            }
            ThresholdedRelu => {
                let active = cx.compare(x, BinaryKind::Greater, alpha)?;
                cx.keep(active, dy)?
            }
        };
        Ok(vec![Some(dx)])
    }
}
