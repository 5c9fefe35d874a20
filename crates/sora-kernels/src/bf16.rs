//! bfloat16, the upper half of an `f32`: operands of half the size, rounded to eight significant bits.
//!
//! One rounding serves every instruction set, that of the conversions of AVX-512-BF16: to nearest, ties to
//! even, subnormal numbers to zero. So matrix products multiply the same operands everywhere and differ only
//! by the rounding of their sums.

use crate::{Kernels, isa::per_isa};

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

/// Elements of a block.
const BLOCK: usize = 1024;

per_isa! {
    /// `out[r][c] = a[r][c] · b[c]`, rounded, for rows as long as `b`.
    ///
    /// # Panics
    /// When the lengths of `a` and `out` differ, or `b` does not divide them.
    pub fn scale_columns(a: &[u16], b: &[f32], out: &mut [u16]) {
        assert_eq!(a.len(), out.len(), "one result per element");
        assert!(!b.is_empty() && a.len().is_multiple_of(b.len()), "{} elements in rows of {}", a.len(), b.len());
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
            let by: Vec<f32> = (0..61).map(|_| rng.f32()).collect();
            scale_columns(kernels, &x, &by, &mut y);
            assert!((0..x.len()).all(|i| y[i] == round(widen(x[i]) * by[i % 61])));
        }
    }
}
