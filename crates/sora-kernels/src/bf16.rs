//! bfloat16, the upper half of an `f32`: operands of half the size, rounded to eight significant bits.
//!
//! One rounding serves every instruction set, that of the conversions of AVX-512-BF16: to nearest, ties to
//! even, subnormal numbers to zero. So matrix products multiply the same operands everywhere and differ only
//! by the rounding of their sums.

#[cfg(target_arch = "x86_64")]
use crate::Isa;
use crate::{
    Kernels,
    elementwise::{Unary, unary_inplace},
    epilogue::Activation,
    isa::per_isa,
};

/// The bits of the bf16 nearest to `x`, ties to even; a signed zero below 2⁻¹²⁶, a quiet NaN for NaN.
#[inline(always)]
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let normal = if magnitude < 0x0080_0000 { (bits >> 31) << 15 } else { nearest };
    (if magnitude > 0x7f80_0000 { (bits >> 16) | 0x40 } else { normal }) as u16
}

/// The number that the bits of a bf16 stand for, exactly.
#[inline(always)]
pub fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

per_isa! {
    /// [`round`] for every element.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn round_all(x: &[f32], out: &mut [u16]) {
        assert_eq!(x.len(), out.len(), "one result per element");
        for (out, &x) in out.iter_mut().zip(x) {
            *out = round(x);
        }
    }
}

per_isa! {
    /// [`widen`] for every element.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn widen_all(x: &[u16], out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "one result per element");
        for (out, &x) in out.iter_mut().zip(x) {
            *out = widen(x);
        }
    }
}

/// Applies a function of reals to bits of bf16, blocks of which pass through the first-level cache.
pub fn through_f32(kernels: Kernels, x: &mut [u16], f: impl Fn(&mut [f32])) {
    let mut wide = [0.0; BLOCK];
    for x in x.chunks_mut(BLOCK) {
        let wide = &mut wide[..x.len()];
        widen_all(kernels, x, wide);
        f(wide);
        round_all(kernels, wide, x);
    }
}

/// Applies the function to bits of bf16; SiLU by an approximation within 2⁻¹² of it before it is rounded, where
/// [`Isa::Avx512Bf16`] runs.
pub fn activate(kernels: Kernels, activation: Activation, x: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if activation == Activation::Silu && kernels.isa().includes(Isa::Avx512Bf16) {
        // SAFETY: the handle includes the instruction set, so this machine runs it.
        return unsafe { x86::silu_inplace(x) };
    }
    through_f32(kernels, x, |x| unary_inplace(kernels, Unary::Activation(activation), x));
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use core::{
        arch::x86_64::*,
        f32::consts::{LN_2, LOG2_E},
    };

    /// x / (1 + e⁻ˣ) within 2⁻¹² of itself, ample before rounding to bf16.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn silu(x: __m512) -> __m512 {
        let splat = |x: f32| _mm512_set1_ps(x);
        // e⁻ˣ = 2ⁿ · 2ᶠ, |f| ≤ ½; beyond the bounds 2ⁿ is 0 or infinite. In this order of operands, NaN stays.
        let t = _mm512_mul_ps(x, splat(-LOG2_E));
        let t = _mm512_min_ps(splat(129.0), _mm512_max_ps(splat(-129.0), t));
        let n = _mm512_roundscale_ps::<8>(t);
        let f = _mm512_sub_ps(t, n);
        // Four terms of the series of 2ᶠ leave 2⁻¹⁴.
        let [c2, c3, c4] = [LN_2 * LN_2 / 2.0, LN_2 * LN_2 * LN_2 / 6.0, LN_2 * LN_2 * LN_2 * LN_2 / 24.0];
        let p = _mm512_fmadd_ps(splat(c4), f, splat(c3));
        let p = _mm512_fmadd_ps(p, f, splat(c2));
        let p = _mm512_fmadd_ps(p, f, splat(LN_2));
        let p = _mm512_fmadd_ps(p, f, splat(1.0));
        let d = _mm512_add_ps(_mm512_scalef_ps(p, n), splat(1.0));
        // The reciprocal is within 2⁻¹⁴.
        _mm512_mul_ps(x, _mm512_rcp14_ps(d))
    }

    /// Up to 16 numbers, the others zero.
    ///
    /// # Safety
    /// The machine must run [`crate::Isa::Avx512Bf16`], and the mask's elements be readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(mask: u16, from: *const u16) -> __m512 {
        // SAFETY: by the contract; any alignment.
        let bits = unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
    }

    /// Stores up to 16 numbers, rounded.
    ///
    /// # Safety
    /// The machine must run [`crate::Isa::Avx512Bf16`], and the mask's elements be writable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn store(mask: u16, to: *mut u16, x: __m512) {
        // SAFETY: by the contract; any alignment, and vectors of equal size.
        unsafe {
            let bits = core::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
            _mm256_mask_storeu_epi16(to.cast(), mask, bits);
        }
    }

    /// # Safety
    /// The machine must run [`crate::Isa::Avx512Bf16`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn silu_inplace(x: &mut [u16]) {
        for x in x.chunks_mut(16) {
            let mask = u16::MAX >> (16 - x.len());
            // SAFETY: the mask has the elements of the chunk.
            unsafe { store(mask, x.as_mut_ptr(), silu(load(mask, x.as_ptr()))) };
        }
    }

    /// # Safety
    /// The machine must run [`crate::Isa::Avx512Bf16`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn scale_columns(a: &[u16], b: &[f32], out: &mut [u16]) {
        for (a, out) in a.chunks_exact(b.len()).zip(out.chunks_exact_mut(b.len())) {
            for ((a, b), out) in a.chunks(16).zip(b.chunks(16)).zip(out.chunks_mut(16)) {
                let mask = u16::MAX >> (16 - b.len());
                // SAFETY: the mask has the elements of the chunks, which are of equal length.
                unsafe {
                    let y = _mm512_mul_ps(load(mask, a.as_ptr()), _mm512_maskz_loadu_ps(mask, b.as_ptr()));
                    store(mask, out.as_mut_ptr(), y);
                }
            }
        }
    }
}

/// Elements of a block.
const BLOCK: usize = 1024;

/// `out[r][c] = a[r][c] · b[c]`, rounded, for rows as long as `b`.
///
/// # Panics
/// When the lengths of `a` and `out` differ, or `b` does not divide them.
pub fn scale_columns(kernels: Kernels, a: &[u16], b: &[f32], out: &mut [u16]) {
    assert_eq!(a.len(), out.len(), "one result per element");
    assert!(!b.is_empty() && a.len().is_multiple_of(b.len()), "{} elements in rows of {}", a.len(), b.len());
    #[cfg(target_arch = "x86_64")]
    if kernels.isa().includes(Isa::Avx512Bf16) {
        // SAFETY: the handle includes the instruction set, so this machine runs it.
        return unsafe { x86::scale_columns(a, b, out) };
    }
    scale_each(kernels, a, b, out);
}

per_isa! {
    /// [`scale_columns`], rounded by [`round`].
    fn scale_each(a: &[u16], b: &[f32], out: &mut [u16]) {
        for (a, out) in a.chunks_exact(b.len()).zip(out.chunks_exact_mut(b.len())) {
            for ((&a, &b), out) in a.iter().zip(b).zip(out) {
                *out = round(widen(a) * b);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};

    #[test]
    fn rounding_takes_the_nearest_and_on_a_tie_the_even_one() {
        let mut rng = fastrand::Rng::with_seed(11);
        for _ in 0..100_000 {
            let x = f32::from_bits(rng.u32(..));
            let r = round(x);
            if x.is_nan() {
                assert!(widen(r).is_nan());
                continue;
            }
            if x.abs() < f32::MIN_POSITIVE {
                assert_eq!(widen(r).to_bits(), (0.0f32).copysign(x).to_bits());
                continue;
            }
            let below = (x.to_bits() >> 16) as u16;
            let [d0, d1] = [below, below + 1].map(|b| (f64::from(widen(b)) - f64::from(x)).abs());
            // Beyond the largest finite number the neighbour is infinite, by its bits the next step.
            if widen(below + 1).is_finite() {
                let nearest = if d0 < d1 || d0 == d1 && below.is_multiple_of(2) { below } else { below + 1 };
                assert_eq!(r, nearest, "{x:e}");
            }
        }
        assert_eq!(round(f32::INFINITY), 0x7f80);
        assert_eq!(round(f32::MAX), 0x7f80);
        assert_eq!(round(1.0 + 1.0 / 256.0), 0x3f80);
        assert_eq!(round(1.0 + 3.0 / 256.0), 0x3f82);
    }

    #[test]
    fn slices_convert_alike_on_every_isa() {
        let mut rng = fastrand::Rng::with_seed(12);
        let x: Vec<f32> = (0..1003).map(|_| f32::from_bits(rng.u32(..))).collect();
        for kernels in Kernels::all_available() {
            for n in [0, 1, 15, 33, 1003] {
                let mut rounded = vec![0; n];
                round_all(kernels, &x[..n], &mut rounded);
                assert!(rounded.iter().zip(&x).all(|(&r, &x)| r == round(x)));
                let mut wide = vec![0.0; n];
                widen_all(kernels, &rounded, &mut wide);
                assert!(wide.iter().zip(&rounded).all(|(w, &r)| w.to_bits() == u32::from(r) << 16));
            }
        }
    }

    #[test]
    fn functions_of_bf16_round_what_functions_of_reals_give() {
        let mut rng = fastrand::Rng::with_seed(13);
        for kernels in Kernels::all_available() {
            let x: Vec<u16> = (0..37 * 61).map(|_| round(rng.f32() * 9.0 - 4.0)).collect();
            let mut y = x.clone();
            through_f32(kernels, &mut y, |y| y.iter_mut().for_each(|y| *y *= *y));
            assert!(x.iter().zip(&y).all(|(&x, &y)| y == round(widen(x) * widen(x))));
            for activation in [Activation::Silu, Activation::Tanh, Activation::HardSwish] {
                let mut x: Vec<u16> = x.iter().map(|&x| round(widen(x) * 12.0)).collect();
                x.extend([f32::INFINITY, f32::NAN, -200.0, 0.0, 1e-30].map(round));
                let mut want: Vec<f32> = x.iter().map(|&x| widen(x)).collect();
                unary_inplace(kernels, Unary::Activation(activation), &mut want);
                activate(kernels, activation, &mut x);
                for (y, want) in x.iter().map(|&y| widen(y)).zip(want) {
                    let close = (y - want).abs() <= want.abs() / 240.0 + 1e-35;
                    assert!(
                        close || y == want || y.is_nan() && want.is_nan(),
                        "{activation:?}: {y} for {want}"
                    );
                }
            }
            let by: Vec<f32> = (0..61).map(|_| rng.f32()).collect();
            scale_columns(kernels, &x, &by, &mut y);
            assert!((0..x.len()).all(|i| y[i] == round(widen(x[i]) * by[i % 61])));
        }
    }
}
