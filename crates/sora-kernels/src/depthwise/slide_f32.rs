//! Kernels that slide real weights along a row of pixels.

use super::sliding::{SlideArgs, SlideF32Kernels, Slides, slide_width};

/// Bounds of the results.
#[derive(Clone, Copy, Debug)]
pub struct Clamp {
    pub(crate) low: f32,
    pub(crate) high: f32,
}

type Args = SlideArgs<f32, f32, Clamp>;

/// A vector of reals.
trait Reals: Copy {
    const LANES: usize;

    /// # Safety
    /// `LANES` elements must be readable, and the instruction set must run here; so for the others.
    unsafe fn load(at: *const f32) -> Self;
    /// # Safety
    /// `LANES` elements must be writable.
    unsafe fn store(self, at: *mut f32);
    /// # Safety
    /// See above.
    unsafe fn splat(x: f32) -> Self;
    /// `self * b + c`
    ///
    /// # Safety
    /// See above.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// NaN stays.
    ///
    /// # Safety
    /// See above.
    unsafe fn clamp(self, low: Self, high: Self) -> Self;
}

/// `P` pixels from pixel `px` on. Parameters: bias, then weights by tap, of the block's channels.
///
/// # Safety
/// See [`super::sliding::SlideFn`]; blocks of `V` vectors.
#[inline(always)]
unsafe fn tile<L: Reals, const K: usize, const S: usize, const V: usize, const P: usize>(
    a: &Args,
    px: usize,
) {
    // SAFETY: all reads and writes are those that the contract allows.
    unsafe {
        let lanes = V * L::LANES;
        let mut sums: [[L; V]; P] = [core::array::from_fn(|v| L::load(a.weights.add(v * L::LANES))); P];
        let mut weights = a.weights.add(lanes);
        let mut columns = a.columns.add(px * S);
        for _ in 0..a.rows {
            let w: [[L; V]; K] = core::array::from_fn(|kx| {
                core::array::from_fn(|v| L::load(weights.add(kx * lanes + v * L::LANES)))
            });
            for col in 0..(P - 1) * S + K {
                let at = (*columns.add(col)).add(a.channel);
                for v in 0..V {
                    let x = L::load(at.add(v * L::LANES));
                    for i in 0..P {
                        if col >= i * S && col - i * S < K {
                            sums[i][v] = x.mul_add(w[col - i * S][v], sums[i][v]);
                        }
                    }
                }
            }
            weights = weights.add(K * lanes);
            columns = columns.add(a.pitch);
        }
        let (low, high) = (L::splat(a.finish.low), L::splat(a.finish.high));
        for i in 0..P {
            let out = a.out.add((px + i) * a.stride);
            for v in 0..V {
                sums[i][v].clamp(low, high).store(out.add(v * L::LANES));
            }
        }
    }
}

/// A row, `P` pixels at a time.
///
/// # Safety
/// See [`super::sliding::SlideFn`]; blocks of `V` vectors.
#[inline(always)]
unsafe fn row<L: Reals, const K: usize, const S: usize, const V: usize, const P: usize>(a: &Args) {
    let mut px = 0;
    // SAFETY: the same contract; no tile goes beyond the row.
    unsafe {
        while px + P <= a.pixels {
            tile::<L, K, S, V, P>(a, px);
            px += P;
        }
        if P > 4 && px + 4 <= a.pixels {
            tile::<L, K, S, V, 4>(a, px);
            px += 4;
        }
        if P > 2 && px + 2 <= a.pixels {
            tile::<L, K, S, V, 2>(a, px);
            px += 2;
        }
        if px < a.pixels {
            tile::<L, K, S, V, 1>(a, px);
        }
    }
}

impl Reals for [f32; 8] {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: readable by the contract; any alignment.
        unsafe { at.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: writable by the contract; any alignment.
        unsafe { at.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        core::array::from_fn(|i| self[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn clamp(self, low: Self, high: Self) -> Self {
        core::array::from_fn(|i| crate::math::clamp(self[i], low[i], high[i]))
    }
}

/// # Safety
/// See [`super::sliding::SlideFn`].
unsafe fn portable<const K: usize, const S: usize>(a: &Args) {
    // SAFETY: the same contract.
    unsafe { row::<[f32; 8], K, S, 1, 2>(a) }
}

pub(crate) static PORTABLE: SlideF32Kernels = Slides { widths: &[slide_width!(8, portable)], rows: 1 };

/// Implements [`Reals`] by intrinsics: load, store, splat, multiply-add with the addend last, max, min.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! reals {
    ($vector:ty, $lanes:literal, $load:ident, $store:ident, $splat:ident, |$a:ident, $b:ident, $c:ident| $mul_add:expr, $max:ident, $min:ident) => {
        impl Reals for $vector {
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn load(at: *const f32) -> Self {
                // SAFETY: by the contract.
                unsafe { $load(at) }
            }

            #[inline(always)]
            unsafe fn store(self, at: *mut f32) {
                // SAFETY: by the contract.
                unsafe { $store(at, self) }
            }

            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                // SAFETY: by the contract.
                unsafe { $splat(x) }
            }

            #[inline(always)]
            unsafe fn mul_add(self, $b: Self, $c: Self) -> Self {
                let $a = self;
                // SAFETY: by the contract.
                unsafe { $mul_add }
            }

            #[inline(always)]
            unsafe fn clamp(self, low: Self, high: Self) -> Self {
                // x86 returns the second operand where either is NaN, and so does NEON with any NaN.
                // SAFETY: by the contract.
                unsafe { $min(high, $max(low, self)) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use core::arch::x86_64::*;

    use super::*;

    reals!(
        __m256,
        8,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        |a, b, c| _mm256_fmadd_ps(a, b, c),
        _mm256_max_ps,
        _mm256_min_ps
    );
    reals!(
        __m512,
        16,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        |a, b, c| _mm512_fmadd_ps(a, b, c),
        _mm512_max_ps,
        _mm512_min_ps
    );

    /// # Safety
    /// See [`crate::depthwise::sliding::SlideFn`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const K: usize, const S: usize, const V: usize, const P: usize>(a: &Args) {
        // SAFETY: the same contract.
        unsafe { row::<__m256, K, S, V, P>(a) }
    }

    /// # Safety
    /// See [`crate::depthwise::sliding::SlideFn`].
    #[target_feature(enable = "avx512f,avx2,fma")]
    unsafe fn avx512<const K: usize, const S: usize, const V: usize, const P: usize>(a: &Args) {
        // SAFETY: the same contract.
        unsafe { row::<__m512, K, S, V, P>(a) }
    }

    pub(crate) static AVX2: SlideF32Kernels =
        Slides { widths: &[slide_width!(16, avx2, 2, 4), slide_width!(8, avx2, 1, 4)], rows: 1 };
    pub(crate) static AVX512: SlideF32Kernels =
        Slides { widths: &[slide_width!(32, avx512, 2, 4), slide_width!(16, avx512, 1, 8)], rows: 1 };
}

#[cfg(target_arch = "aarch64")]
pub(crate) mod neon {
    use core::arch::aarch64::*;

    use super::*;

    reals!(
        float32x4_t,
        4,
        vld1q_f32,
        vst1q_f32,
        vdupq_n_f32,
        |a, b, c| vfmaq_f32(c, a, b),
        vmaxq_f32,
        vminq_f32
    );

    /// # Safety
    /// See [`crate::depthwise::sliding::SlideFn`].
    #[target_feature(enable = "neon")]
    unsafe fn neon<const K: usize, const S: usize, const V: usize, const P: usize>(a: &Args) {
        // SAFETY: the same contract.
        unsafe { row::<float32x4_t, K, S, V, P>(a) }
    }

    pub(crate) static NEON: SlideF32Kernels =
        Slides { widths: &[slide_width!(8, neon, 2, 4), slide_width!(4, neon, 1, 4)], rows: 1 };
}
