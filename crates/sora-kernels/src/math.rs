//! Scalar functions written so that the autovectorizer turns a loop over them into SIMD.
//!
//! No branches with side effects, no calls, and separate multiplications and
//! additions, so that every instruction set returns the same bits. Polynomials
//! are Chebyshev interpolants of the stated functions, computed in 40-digit
//! arithmetic. Each function states its error against the exact result; NaN
//! goes in, NaN comes out.

use core::f32::consts::{FRAC_2_SQRT_PI, LN_2, LOG2_E};

use crate::{
    Kernels,
    vector::{Reals, Vector, per_vector},
};

/// Adding and subtracting 1.5·2²³ rounds to the nearest integer, ties to even.
const MAGIC: f32 = 12_582_912.0;
/// ln 2 to 17 bits: products with |n| < 128 are exact.
const LN2_HI: f32 = 0.693_145_75;
/// ln 2 − [`LN2_HI`].
const LN2_LO: f32 = 1.428_606_8e-6;

/// The nearest integer, ties to even; exact.
#[inline(always)]
pub(crate) fn round_ties_even(x: f32) -> f32 {
    let rounded = ((x.abs() + 8_388_608.0) - 8_388_608.0).copysign(x);
    if x.abs() < 8_388_608.0 { rounded } else { x }
}

/// `round_ties_even(x)` as an integer, for |x| < 2²².
#[inline(always)]
pub(crate) fn round_to_i32(x: f32) -> i32 {
    ((x + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32)
}

#[inline(always)]
pub(crate) fn floor(x: f32) -> f32 {
    let r = round_ties_even(x);
    (if r > x { r - 1.0 } else { r }).copysign(x)
}

#[inline(always)]
pub(crate) fn ceil(x: f32) -> f32 {
    let r = round_ties_even(x);
    (if r < x { r + 1.0 } else { r }).copysign(x)
}

#[inline(always)]
pub(crate) fn sqrt(x: f32) -> f32 {
    #[cfg(feature = "std")]
    return x.sqrt();
    #[cfg(not(feature = "std"))]
    return libm::sqrtf(x);
}

#[inline(always)]
pub(crate) fn powf(x: f32, y: f32) -> f32 {
    libm::powf(x, y)
}

/// max with the operand order that keeps NaN in `x`.
#[inline(always)]
pub(crate) fn at_least(x: f32, low: f32) -> f32 {
    if x < low { low } else { x }
}

/// min with the operand order that keeps NaN in `x`.
#[inline(always)]
pub(crate) fn at_most(x: f32, high: f32) -> f32 {
    if x > high { high } else { x }
}

/// `yes` or `no` by masks, both computed: a branch here would keep loops scalar.
#[inline(always)]
fn select(which: bool, yes: f32, no: f32) -> f32 {
    let mask = u32::from(which).wrapping_neg();
    f32::from_bits((yes.to_bits() & mask) | (no.to_bits() & !mask))
}

/// min(max(x, low), high); NaN stays.
#[inline(always)]
pub(crate) fn clamp(x: f32, low: f32, high: f32) -> f32 {
    at_most(at_least(x, low), high)
}

/// 2ⁿ for −126 ≤ n ≤ 127, infinity for 128.
#[inline(always)]
fn exp2i(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32).wrapping_shl(23))
}

/// Splits x = n·ln 2 + r with |r| ≤ ln 2 / 2; returns (n, eʳ − 1).
#[inline(always)]
fn reduce_exp(x: f32) -> (i32, f32) {
    let shifted = x * LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let q = ((((1.989_098e-4 * r + 1.393_364_2e-3) * r + 8.333_31e-3) * r + 4.166_646_7e-2) * r
        + 1.666_666_7e-1)
        * r
        + 0.5;
    let integer = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    (integer, r + r * r * q)
}

/// eˣ within 2 ulp, including overflow to infinity and gradual underflow.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let (n, p) = reduce_exp(clamp(x, -104.0, 89.0));
    let half = n >> 1;
    (1.0 + p) * exp2i(half) * exp2i(n.wrapping_sub(half))
}

/// tanh within 4 ulp: with e = exp(2|x|) − 1 it is ± e / (e + 2).
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let (n, p) = reduce_exp(2.0 * at_most(x.abs(), 10.0));
    let s = exp2i(n);
    let e = s * p + (s - 1.0);
    (e / (e + 2.0)).copysign(x)
}

/// 1 + e⁻ˣ, infinity below −88.3; no step is denormal, which would be slow.
#[inline(always)]
fn one_plus_exp_neg(x: f32) -> f32 {
    let (n, p) = reduce_exp(clamp(-x, -87.0, 89.0));
    1.0 + (1.0 + p) * exp2i(n)
}

/// 1 / (1 + e⁻ˣ) within 4 ulp, and 0 below −88.3.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / one_plus_exp_neg(x)
}

/// x·sigmoid(x) within 4 ulp, and 0 below −88.3.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / one_plus_exp_neg(x)
}

/// [`silu`] of a vector, within 4 ulp from −87 on and 2e-36 below. Roundings differ between instruction sets.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
pub(crate) unsafe fn silu_of<V: Vector>(x: V) -> V {
    // SAFETY: by the contract.
    unsafe {
        let x = x.at_least(V::splat(-87.0));
        let y = x.at_most(V::splat(87.0));
        // −x = n·ln 2 − s
        let shifted = y.mul_add(V::splat(-LOG2_E), V::splat(MAGIC));
        let n = shifted.sub(V::splat(MAGIC));
        let s = n.mul_add(V::splat(LN2_LO), n.mul_add(V::splat(LN2_HI), y));
        let mut p = V::splat(-1.989_098e-4);
        for c in [1.393_364_2e-3, -8.333_31e-3, 4.166_646_7e-2, -1.666_666_7e-1, 0.5, -1.0, 1.0] {
            p = p.mul_add(s, V::splat(c));
        }
        x.quotient(p.add_exponent(shifted).add(V::splat(1.0)))
    }
}

per_vector! {
    /// `to[i] = silu(from[i])`, as [`silu_of`]; the two may be the same.
    ///
    /// # Safety
    /// `len` elements must be readable and writable.
    unsafe fn silu_all<V>(from: *const f32, to: *mut f32, len: usize) {
        // SAFETY: by the contract.
        unsafe {
            let mut i = 0;
            while i + V::LANES <= len {
                silu_of(V::load(from.add(i))).store(to.add(i));
                i += V::LANES;
            }
            if i < len {
                silu_of(V::load_first(from.add(i), len - i)).store_first(to.add(i), len - i);
            }
        }
    }
}

/// Applies [`silu_of`] to every element.
pub(crate) fn silu_inplace(kernels: Kernels, x: &mut [f32]) {
    let at = x.as_mut_ptr();
    // SAFETY: the elements of `x`, which the call has for itself.
    unsafe { silu_all(kernels, at, at, x.len()) }
}

/// erf within 4 ulp: x·P(x²) below 1, 1 − exp(−|x|·Q(|x|)) above.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let a = at_most(x.abs(), 4.0);
    let z = a * a;
    let p = (((((7.875_875e-5 * z - 8.016_864_3e-4) * z + 5.189_087e-3) * z - 2.685_421_1e-2) * z
        + 1.128_359_4e-1)
        * z
        - 3.761_262_6e-1)
        * z
        + FRAC_2_SQRT_PI;
    let q = (((((1.634_093_1e-5 * a - 3.696_536e-4) * a + 3.808_230_4e-3) * a - 2.404_252_3e-2) * a
        + 1.064_584_85e-1)
        * a
        + 6.350_939e-1)
        * a
        + 1.128_640_5;
    let far = 1.0 - exp(-(a * q));
    select(a < 1.0, a * p, far).copysign(x)
}

/// atanh(s) / s = 1 + s²·P(s²) for s² ≤ 1/9, to 3e-10; returns s²·P(s²).
#[inline(always)]
fn atanh_series(s: f32) -> f32 {
    let z = s * s;
    z * (((((1.039_641_9e-1 * z + 8.731_7e-2) * z + 1.113_241_2e-1) * z + 1.428_515_2e-1) * z
        + 2.000_000_5e-1)
        * z
        + 3.333_333_4e-1)
}

/// The natural logarithm within 2 ulp; −∞ at zero, NaN below.
#[inline(always)]
pub(crate) fn log(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 8_388_608.0 } else { x };
    let bits = scaled.to_bits() as i32;
    // Mantissa in [√½, √2).
    let e = bits.wrapping_sub(0x3f35_04f3) >> 23;
    let f = f32::from_bits(bits.wrapping_sub(e << 23) as u32) - 1.0;
    let n = e as f32 - if tiny { 23.0 } else { 0.0 };
    let s = f / (2.0 + f);
    let half_square = 0.5 * f * f;
    let tail = half_square - (s * (half_square + 2.0 * atanh_series(s)) + n * LN2_LO);
    let y = n * LN2_HI + (f - tail);
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    let y = if x < 0.0 { f32::NAN } else { y };
    if x < f32::INFINITY { y } else { x }
}

/// ln(1 + eˣ) within 4 ulp.
#[inline(always)]
pub(crate) fn softplus(x: f32) -> f32 {
    let y = exp(-x.abs());
    let s = y / (2.0 + y);
    at_least(x, 0.0) + 2.0 * (s + s * atanh_series(s))
}

/// `c₀ + x·(c₁ + x·(c₂ + …))`.
///
/// # Safety
/// As [`Reals`].
#[inline(always)]
unsafe fn polynomial<R: Reals, const N: usize>(x: R, c: [f32; N]) -> R {
    // SAFETY: by the contract.
    unsafe {
        let mut y = R::splat(c[N - 1]);
        for i in (0..N - 1).rev() {
            y = R::splat(c[i]).add(x.mul(y));
        }
        y
    }
}

/// 2ᵗ within 2 ulp for −126 ≤ t ≤ 126.
///
/// # Safety
/// As [`Reals`].
#[inline(always)]
unsafe fn exp2_of<R: Reals>(t: R) -> R {
    // SAFETY: by the contract.
    unsafe {
        let shifted = t.add(R::splat(MAGIC));
        let r = t.sub(shifted.sub(R::splat(MAGIC)));
        let z = r.mul(r);
        let even = polynomial(z, [LN_2, 5.550_357e-2, 1.339_086_7e-3]);
        let odd = polynomial(z, [2.402_265e-1, 9.618_057e-3, 1.546_144_7e-4]);
        // The integer in the lowest bits goes to the exponent, and nothing else of the shifted number.
        R::splat(1.0).add(r.mul(even.add(r.mul(odd)))).add_exponent(shifted)
    }
}

/// [`exp2_of`] one number.
#[inline(always)]
fn exp2(t: f32) -> f32 {
    // SAFETY: every machine has `f32`.
    unsafe { exp2_of(t) }
}

/// 2ᵗ within 2 ulp for t ≤ 0; zero below −126.
#[inline(always)]
pub(crate) fn exp2_below_one(t: f32) -> f32 {
    select(t < -126.0, 0.0, exp2(at_least(t, -126.0)))
}

/// x·Φ(x) = max(x, 0) − ½|x|·erfc(|x|/√2), the last factor as 2^(|x|·Q(|x|)): within 2.5e-7 of
/// max(|x|, 1), and within 2e-6 of the result above −3, where 1 + erf would cancel.
///
/// # Safety
/// As [`Reals`].
#[inline(always)]
pub(crate) unsafe fn gelu_of<R: Reals>(x: R) -> R {
    // SAFETY: by the contract.
    unsafe {
        let a = x.abs().at_most(R::splat(6.0));
        let z = a.mul(a);
        let even =
            polynomial(z, [-1.151_118_9, -5.283_492_4e-2, -4.285_064e-4, 2.282_081_7e-5, 8.405_011e-8]);
        let odd = polynomial(z, [-4.590_885_6e-1, 7.501_184e-3, -8.451_487_5e-5, -2.234_036_9e-6]);
        let half = R::splat(0.5).mul(a);
        x.at_least(R::splat(0.0)).sub(half.mul(exp2_of(a.mul(even.add(a.mul(odd))))))
    }
}

/// [`gelu_of`] one number.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    // SAFETY: every machine has `f32`.
    unsafe { gelu_of(x) }
}

/// The tanh approximation of [`gelu`].
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    // (1 + tanh(u)) / 2 = σ(2u), which does not cancel where the result is tiny.
    x * sigmoid(2.0 * 0.797_884_6 * (x + 0.044_715 * x * x * x))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest relative error over a sweep of positive and negative arguments.
    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, low: f32, high: f32) -> f64 {
        let mut worst = 0.0f64;
        for i in 0..200_000 {
            let x = low + (high - low) * (i as f32 / 200_000.0);
            let want = exact(f64::from(x));
            if want.abs() > 1e-37 {
                worst = worst.max((f64::from(f(x)) / want - 1.0).abs());
            }
        }
        worst
    }

    const ULP: f64 = 1.2e-7;

    #[test]
    fn stated_bounds_hold() {
        assert!(worst(exp, f64::exp, -86.0, 88.7) < 2.0 * ULP);
        assert!(worst(tanh, f64::tanh, -12.0, 12.0) < 4.0 * ULP);
        assert!(worst(tanh, f64::tanh, -1e-2, 1e-2) < 4.0 * ULP);
        assert!(worst(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 80.0) < 4.0 * ULP);
        assert!(worst(silu, |x| x / (1.0 + (-x).exp()), -85.0, 85.0) < 4.0 * ULP);
        for kernels in Kernels::all_available() {
            let silu = |x| {
                let mut x = [x; 17];
                silu_inplace(kernels, &mut x);
                assert_eq!(x[0].to_bits(), x[16].to_bits());
                x[0]
            };
            assert!(worst(silu, |x| x / (1.0 + (-x).exp()), -85.0, 85.0) < 4.0 * ULP);
            assert!(silu(f32::NAN).is_nan());
            assert!(silu(-200.0).abs() < 2e-36 && silu(f32::NEG_INFINITY).abs() < 2e-36);
            assert_eq!((silu(0.0), silu(200.0), silu(f32::INFINITY)), (0.0, 200.0, f32::INFINITY));
        }
        assert!(worst(erf, libm::erf, -5.0, 5.0) < 4.0 * ULP);
        assert!(worst(erf, libm::erf, -1e-3, 1e-3) < 4.0 * ULP);
        assert!(worst(log, f64::ln, 1e-3, 4.0) < 2.0 * ULP);
        assert!(worst(log, f64::ln, 1.0, 1e9) < 2.0 * ULP);
        assert!(worst(softplus, |x| x.exp().ln_1p(), -80.0, 80.0) < 4.0 * ULP);
        assert!(worst(exp, f64::exp, -104.0, -80.0) < 2.0 * ULP);
        assert!(worst(exp2_below_one, f64::exp2, -126.0, 0.0) < 2.0 * ULP);
        let exact = |x: f64| 0.5 * x * libm::erfc(-x * core::f64::consts::FRAC_1_SQRT_2);
        assert!(worst(gelu, exact, -3.0, 10.0) < 2e-6);
        for i in -200_000..200_000 {
            let x = i as f32 * 1e-4;
            assert!((f64::from(gelu(x)) - exact(f64::from(x))).abs() < 2.5e-7 * f64::from(x.abs().max(1.0)));
        }
    }

    #[test]
    fn special_values() {
        for f in [exp, tanh, sigmoid, silu, erf, log, softplus, gelu, gelu_tanh] {
            assert!(f(f32::NAN).is_nan());
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp2_below_one(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2_below_one(0.0), 1.0);
        assert!(exp2_below_one(f32::NAN).is_nan());
        assert!((exp(-103.0) - 1e-45).abs() < 2e-45);
        assert_eq!(log(0.0), f32::NEG_INFINITY);
        assert_eq!(log(1.0), 0.0);
        assert_eq!(log(f32::INFINITY), f32::INFINITY);
        assert!(log(-1.0).is_nan());
        assert!((log(1e-42) - (1e-42f64 as f32 as f64).ln() as f32).abs() < 1e-5);
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert_eq!(erf(40.0), 1.0);
        assert_eq!(sigmoid(-200.0), 0.0);
        assert_eq!(sigmoid(200.0), 1.0);
        assert_eq!(silu(-200.0), 0.0);
        assert_eq!(silu(200.0), 200.0);
        assert_eq!(softplus(100.0), 100.0);
    }

    #[test]
    fn rounding_matches_std() {
        for i in -2000..2000 {
            let x = i as f32 / 8.0;
            assert_eq!(round_ties_even(x), x.round_ties_even());
            assert_eq!(round_to_i32(x), x.round_ties_even() as i32);
            assert_eq!(floor(x), x.floor());
            assert_eq!(ceil(x), x.ceil());
        }
        for x in [1e9, -1e9, 8_388_607.5, -0.0, f32::INFINITY] {
            assert_eq!(round_ties_even(x).to_bits(), x.round_ties_even().to_bits());
            assert_eq!(floor(x).to_bits(), x.floor().to_bits());
            assert_eq!(ceil(x).to_bits(), x.ceil().to_bits());
        }
    }
}
