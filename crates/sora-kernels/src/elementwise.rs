//! Functions of one or two reals, element by element.

use crate::{
    epilogue::Activation,
    isa::per_isa,
    lanes::{greater, lesser},
    math,
};

/// A function of one real. Bounds on the error are stated in ulp of the exact result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    /// A function that layers can fuse.
    Activation(Activation),
    /// x, or alpha·(eˣ − 1) below zero
    Elu {
        /// Factor below zero.
        alpha: f32,
    },
    /// eˣ, 2 ulp
    Exp,
    /// ln x, 2 ulp
    Log,
    /// √x, exact
    Sqrt,
    /// 1/√x, 2 ulp
    Rsqrt,
    /// 1/x, exact
    Reciprocal,
    /// The error function, 4 ulp
    Erf,
    /// The tanh approximation of GELU
    GeluTanh,
    /// ln(1 + eˣ), 4 ulp
    Softplus,
    /// x/(1 + |x|)
    Softsign,
    /// −x
    Neg,
    /// |x|
    Abs,
    /// x²
    Square,
    /// −1, 0 or 1
    Sign,
    /// Rounded down
    Floor,
    /// Rounded up
    Ceil,
    /// Rounded to nearest, ties to even
    Round,
    /// sin x, by scalar calls
    Sin,
    /// cos x, by scalar calls
    Cos,
}

/// e^x − 1 for x ≤ 0 through tanh, which is accurate near zero: 2t/(1 − t), t = tanh(x/2).
#[inline(always)]
fn expm1(x: f32) -> f32 {
    let t = math::tanh(0.5 * x);
    2.0 * t / (1.0 - t)
}

#[inline(always)]
fn sign(x: f32) -> f32 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        x
    }
}

per_isa! {
    /// `x[i] = op(x[i])`.
    pub fn unary_inplace(op: Unary, x: &mut [f32]) {
        #[inline(always)]
        fn each(x: &mut [f32], f: impl Fn(f32) -> f32) {
            for x in x {
                *x = f(*x);
            }
        }
        match op {
            Unary::Activation(activation) => activation.apply(x),
            Unary::Elu { alpha } => each(x, |x| {
                let below = alpha * expm1(math::at_most(x, 0.0));
                if x < 0.0 { below } else { x }
            }),
            Unary::Exp => each(x, math::exp),
            Unary::Log => each(x, math::log),
            Unary::Sqrt => each(x, math::sqrt),
            Unary::Rsqrt => each(x, |x| 1.0 / math::sqrt(x)),
            Unary::Reciprocal => each(x, |x| 1.0 / x),
            Unary::Erf => each(x, math::erf),
            Unary::GeluTanh => each(x, math::gelu_tanh),
            Unary::Softplus => each(x, math::softplus),
            Unary::Softsign => each(x, |x| x / (1.0 + x.abs())),
            Unary::Neg => each(x, |x| -x),
            Unary::Abs => each(x, f32::abs),
            Unary::Square => each(x, |x| x * x),
            Unary::Sign => each(x, sign),
            Unary::Floor => each(x, math::floor),
            Unary::Ceil => each(x, math::ceil),
            Unary::Round => each(x, math::round_ties_even),
            Unary::Sin => each(x, libm::sinf),
            Unary::Cos => each(x, libm::cosf),
        }
    }
}

/// Elements that pass through the first-level cache at a time.
const BLOCK: usize = 1024;

/// `out[i] = op(x[i])`.
///
/// # Panics
/// When the lengths differ.
pub fn unary(kernels: crate::Kernels, op: Unary, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "input and output differ in length");
    for (x, out) in x.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
        out.copy_from_slice(x);
        unary_inplace(kernels, op, out);
    }
}

/// A function of two reals, `lhs op rhs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// lhs + rhs
    Add,
    /// lhs − rhs
    Sub,
    /// rhs − lhs
    RSub,
    /// lhs · rhs
    Mul,
    /// lhs / rhs
    Div,
    /// rhs / lhs
    RDiv,
    /// The lesser; NaN if either is
    Min,
    /// The greater; NaN if either is
    Max,
    /// lhs to the power of rhs, by scalar calls
    Pow,
    /// rhs to the power of lhs, by scalar calls
    RPow,
}

/// The right operand of [`binary`], and how it is broadcast.
#[derive(Clone, Copy, Debug)]
pub enum Rhs<'a, T = f32> {
    /// One value per element.
    Same(&'a [T]),
    /// One value for all.
    Scalar(T),
    /// Repeated: element i is `v[i % v.len()]`.
    Row(&'a [T]),
    /// Each value held for `period` elements: element i is `values[i / period]`.
    Column {
        /// The values.
        values: &'a [T],
        /// Elements per value.
        period: usize,
    },
}

impl<T: Copy> Rhs<'_, T> {
    /// Panics unless the operand serves exactly `len` elements.
    pub(crate) fn check(&self, len: usize) {
        let fits = match self {
            Rhs::Same(v) => v.len() == len,
            Rhs::Scalar(_) => true,
            Rhs::Row(v) => len == 0 || (!v.is_empty() && len.is_multiple_of(v.len())),
            Rhs::Column { values, period } => values.len() * period == len,
        };
        assert!(fits, "the right operand does not broadcast to {len} elements");
    }
}

/// One piece of a broadcast right operand.
#[derive(Clone, Copy)]
pub(crate) enum Piece<'a, T> {
    /// One value per element.
    Each(&'a [T]),
    /// One value for all elements.
    All(T),
}

/// The pieces of `x` that see a slice or one value of `rhs`, each with it.
///
/// # Panics
/// When `rhs` does not broadcast to `x`.
#[inline(always)]
pub(crate) fn broadcast<'a, X, T: Copy>(
    x: &'a mut [X],
    rhs: Rhs<'a, T>,
) -> impl Iterator<Item = (&'a mut [X], Piece<'a, T>)> {
    rhs.check(x.len());
    let len = match rhs {
        Rhs::Same(v) | Rhs::Row(v) => v.len(),
        Rhs::Scalar(_) => x.len(),
        Rhs::Column { period, .. } => period,
    };
    x.chunks_exact_mut(len.max(1)).enumerate().map(move |(i, x)| {
        let piece = match rhs {
            Rhs::Same(v) | Rhs::Row(v) => Piece::Each(v),
            Rhs::Scalar(v) => Piece::All(v),
            Rhs::Column { values, .. } => Piece::All(values[i]),
        };
        (x, piece)
    })
}

#[inline(always)]
fn apply(a: &mut [f32], b: Rhs<'_>, f: impl Fn(f32, f32) -> f32) {
    for (a, b) in broadcast(a, b) {
        match b {
            Piece::Each(b) => {
                for (a, &b) in a.iter_mut().zip(b) {
                    *a = f(*a, b);
                }
            }
            Piece::All(b) => {
                for a in a {
                    *a = f(*a, b);
                }
            }
        }
    }
}

per_isa! {
    /// `a[i] = a[i] op b[i]`, `b` broadcast.
    ///
    /// # Panics
    /// When `b` does not broadcast to `a`.
    pub fn binary_inplace(op: Binary, a: &mut [f32], b: Rhs<'_>) {
        match op {
            Binary::Add => apply(a, b, |a, b| a + b),
            Binary::Sub => apply(a, b, |a, b| a - b),
            Binary::RSub => apply(a, b, |a, b| b - a),
            Binary::Mul => apply(a, b, |a, b| a * b),
            Binary::Div => apply(a, b, |a, b| a / b),
            Binary::RDiv => apply(a, b, |a, b| b / a),
            Binary::Min => apply(a, b, lesser),
            Binary::Max => apply(a, b, greater),
            Binary::Pow => match b {
                Rhs::Scalar(2.0) => apply(a, b, |a, _| a * a),
                Rhs::Scalar(0.5) => apply(a, b, |a, _| math::sqrt(a)),
                Rhs::Scalar(3.0) => apply(a, b, |a, _| a * a * a),
                _ => apply(a, b, math::powf),
            },
            Binary::RPow => apply(a, b, |a, b| math::powf(b, a)),
        }
    }
}

/// `out[i] = a[i] op b[i]`, `b` broadcast.
///
/// # Panics
/// When the lengths of `a` and `out` differ, or `b` does not broadcast to them.
pub fn binary(kernels: crate::Kernels, op: Binary, a: &[f32], b: Rhs<'_>, out: &mut [f32]) {
    assert_eq!(a.len(), out.len(), "input and output differ in length");
    out.copy_from_slice(a);
    binary_inplace(kernels, op, out, b);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernels;
    use alloc::{vec, vec::Vec};
    use fastrand::Rng;

    type Case = (Unary, fn(f64) -> f64);

    const CASES: &[Case] = &[
        (Unary::Activation(Activation::None), |x| x),
        (Unary::Activation(Activation::Relu), |x| x.max(0.0)),
        (Unary::Activation(Activation::Clip { min: -1.0, max: 2.0 }), |x| x.clamp(-1.0, 2.0)),
        (Unary::Activation(Activation::LeakyRelu { alpha: 0.25 }), |x| x.max(0.25 * x)),
        (Unary::Activation(Activation::HardSwish), |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        (Unary::Activation(Activation::HardSigmoid { alpha: 0.25, beta: 0.5 }), |x| {
            (0.25 * x + 0.5).clamp(0.0, 1.0)
        }),
        (Unary::Activation(Activation::Sigmoid), |x| 1.0 / (1.0 + (-x).exp())),
        (Unary::Activation(Activation::Tanh), f64::tanh),
        (Unary::Activation(Activation::Silu), |x| x / (1.0 + (-x).exp())),
        (Unary::Activation(Activation::Gelu), |x| {
            0.5 * x * libm::erfc(-x * core::f64::consts::FRAC_1_SQRT_2)
        }),
        (Unary::Elu { alpha: 0.5 }, |x| if x < 0.0 { 0.5 * x.exp_m1() } else { x }),
        (Unary::Exp, f64::exp),
        (Unary::Log, f64::ln),
        (Unary::Sqrt, f64::sqrt),
        (Unary::Rsqrt, |x| 1.0 / x.sqrt()),
        (Unary::Reciprocal, |x| 1.0 / x),
        (Unary::Erf, libm::erf),
        (Unary::GeluTanh, |x| 0.5 * x * (1.0 + (0.7978845608 * (x + 0.044715 * x * x * x)).tanh())),
        (Unary::Softplus, |x| x.max(0.0) + (-x.abs()).exp().ln_1p()),
        (Unary::Softsign, |x| x / (1.0 + x.abs())),
        (Unary::Neg, |x| -x),
        (Unary::Abs, f64::abs),
        (Unary::Square, |x| x * x),
        (Unary::Sign, |x| if x == 0.0 { 0.0 } else { x.signum() }),
        (Unary::Floor, f64::floor),
        (Unary::Ceil, f64::ceil),
        (Unary::Round, f64::round_ties_even),
        (Unary::Sin, f64::sin),
        (Unary::Cos, f64::cos),
    ];

    #[test]
    fn unary_functions_match_double_precision_and_each_other() {
        let mut rng = Rng::with_seed(9);
        let mut x: Vec<f32> = (0..3000).map(|_| (rng.f32() - 0.5) * 24.0).collect();
        x.extend([0.0, -0.0, 1.0, 0.5, 1.5, 2.5, -0.5, 1e-6, -1e-6]);
        for &(op, exact) in CASES {
            let mut seen: Option<Vec<u32>> = None;
            for k in Kernels::all_available() {
                let mut y = vec![0.0; x.len()];
                unary(k, op, &x, &mut y);
                for (&x, &y) in x.iter().zip(&y) {
                    let want = exact(f64::from(x));
                    let got = f64::from(y);
                    let same = got == want || (got.is_nan() && want.is_nan());
                    // GELU cancels in its negative tail: its error is relative to x there.
                    let size = want.abs()
                        + if matches!(op, Unary::GeluTanh) || op == Unary::Activation(Activation::Gelu) {
                            x.abs().into()
                        } else {
                            0.0
                        };
                    assert!(
                        same || (got - want).abs() <= 6e-7 * size + 1e-38,
                        "{op:?}({x}) = {got}, not {want}"
                    );
                }
                let bits: Vec<u32> = y.iter().map(|y| if y.is_nan() { !0 } else { y.to_bits() }).collect();
                assert_eq!(*seen.get_or_insert_with(|| bits.clone()), bits, "{op:?}");
            }
        }
    }

    #[test]
    fn binary_functions_broadcast() {
        let mut rng = Rng::with_seed(10);
        let (rows, cols) = (7, 45);
        let a: Vec<f32> = (0..rows * cols).map(|_| rng.f32() * 4.0 + 0.1).collect();
        let b: Vec<f32> = (0..rows * cols).map(|_| rng.f32() * 4.0 + 0.1).collect();
        type Exact = fn(f32, f32) -> f32;
        let ops: [(Binary, Exact); 10] = [
            (Binary::Add, |a, b| a + b),
            (Binary::Sub, |a, b| a - b),
            (Binary::RSub, |a, b| b - a),
            (Binary::Mul, |a, b| a * b),
            (Binary::Div, |a, b| a / b),
            (Binary::RDiv, |a, b| b / a),
            (Binary::Min, f32::min),
            (Binary::Max, f32::max),
            (Binary::Pow, |a, b| f64::from(a).powf(b.into()) as f32),
            (Binary::RPow, |a, b| f64::from(b).powf(a.into()) as f32),
        ];
        for k in Kernels::all_available() {
            for (op, f) in ops {
                for scalar in [2.0, 3.0, 0.5, 1.7] {
                    for (rhs, index) in [
                        (Rhs::Same(&b[..]), &(|i| b[i]) as &dyn Fn(usize) -> f32),
                        (Rhs::Scalar(scalar), &|_| scalar),
                        (Rhs::Row(&b[..cols]), &|i| b[i % cols]),
                        (Rhs::Column { values: &b[..rows], period: cols }, &|i| b[i / cols]),
                    ] {
                        let mut y = vec![0.0; a.len()];
                        binary(k, op, &a, rhs, &mut y);
                        for i in 0..a.len() {
                            let want = f(a[i], index(i));
                            let close = (y[i] - want).abs() <= 3e-7 * want.abs();
                            assert!(close, "{op:?} {} {} = {} not {want}", a[i], index(i), y[i]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "broadcast")]
    fn a_row_that_does_not_divide_is_refused() {
        binary_inplace(Kernels::best(), Binary::Add, &mut [0.0; 5], Rhs::Row(&[1.0, 2.0]));
    }
}
