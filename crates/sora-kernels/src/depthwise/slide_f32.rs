//! Kernels that slide real weights along a row of pixels, stored in `f32` or in bf16.

use super::sliding::{SlideArgs, SlideBf16Kernels, SlideF32Kernels, Slides, slide_width};
use crate::bf16;

/// Bounds of the results.
#[derive(Clone, Copy, Debug)]
pub struct Clamp {
    pub(crate) low: f32,
    pub(crate) high: f32,
}

type Args<T> = SlideArgs<T, f32, Clamp>;

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
    /// The numbers that bits of bf16 stand for.
    ///
    /// # Safety
    /// See [`Reals::load`].
    unsafe fn widen(at: *const u16) -> Self;
    /// Stores what [`bf16::round`] gives.
    ///
    /// # Safety
    /// See [`Reals::store`].
    #[inline(always)]
    unsafe fn narrow(self, at: *mut u16) {
        let mut wide = [0.0; 16];
        const { assert!(Self::LANES <= 16) };
        // SAFETY: `wide` has room for the lanes, and `at` by the contract.
        unsafe {
            self.store(wide.as_mut_ptr());
            for (i, &x) in wide[..Self::LANES].iter().enumerate() {
                *at.add(i) = bf16::round(x);
            }
        }
    }
}

/// How pixels are stored.
trait Stored<L> {
    type Element: Copy;

    /// # Safety
    /// A vector's elements must be readable, and the instruction set must run here.
    unsafe fn load(at: *const Self::Element) -> L;
    /// # Safety
    /// A vector's elements must be writable, and the instruction set must run here.
    unsafe fn store(x: L, at: *mut Self::Element);
}

impl<L: Reals> Stored<L> for f32 {
    type Element = f32;

    #[inline(always)]
    unsafe fn load(at: *const f32) -> L {
        // SAFETY: the same contract.
        unsafe { L::load(at) }
    }

    #[inline(always)]
    unsafe fn store(x: L, at: *mut f32) {
        // SAFETY: the same contract.
        unsafe { x.store(at) }
    }
}

/// Bits of bf16.
struct Bf16;

impl<L: Reals> Stored<L> for Bf16 {
    type Element = u16;

    #[inline(always)]
    unsafe fn load(at: *const u16) -> L {
        // SAFETY: the same contract.
        unsafe { L::widen(at) }
    }

    #[inline(always)]
    unsafe fn store(x: L, at: *mut u16) {
        // SAFETY: the same contract.
        unsafe { x.narrow(at) }
    }
}

/// `P` pixels at `out`, whose windows begin at `columns`. Parameters: bias, then weights by tap, of the block's
/// channels.
///
/// # Safety
/// See [`super::sliding::SlideFn`]; blocks of `V` vectors.
#[inline(always)]
unsafe fn tile<L: Reals, T: Stored<L>, const K: usize, const S: usize, const V: usize, const P: usize>(
    a: &Args<T::Element>,
    mut columns: *const *const T::Element,
    out: *mut T::Element,
) {
    // SAFETY: all reads and writes are those that the contract allows.
    unsafe {
        let lanes = V * L::LANES;
        // Loops, no closures: those are functions of their own, without the features of the caller.
        let mut bias = [L::load(a.weights); V];
        for v in 1..V {
            bias[v] = L::load(a.weights.add(v * L::LANES));
        }
        let mut sums = [bias; P];
        let mut weights = a.weights.add(lanes);
        for _ in 0..a.rows {
            let mut w = [bias; K];
            for kx in 0..K {
                for v in 0..V {
                    w[kx][v] = L::load(weights.add(kx * lanes + v * L::LANES));
                }
            }
            for col in 0..(P - 1) * S + K {
                let at = (*columns.add(col)).add(a.channel);
                for v in 0..V {
                    let x = T::load(at.add(v * L::LANES));
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
            for v in 0..V {
                T::store(sums[i][v].clamp(low, high), out.add(i * a.stride + v * L::LANES));
            }
        }
    }
}

/// Rows, each in the fewest tiles of at most `P` pixels, of nearly equal width.
///
/// # Safety
/// See [`super::sliding::SlideFn`]; blocks of `V` vectors.
#[inline(always)]
unsafe fn rows<L: Reals, T: Stored<L>, const K: usize, const S: usize, const V: usize, const P: usize>(
    a: &Args<T::Element>,
) {
    const { assert!(P <= 8) };
    // Windows two pixels apart share less of what they read, and wide tiles of them were slower.
    let most = const { if S == 2 && V == 2 && P > 4 { 4 } else { P } };
    let tiles = a.pixels.div_ceil(most);
    let (narrow, wider) = (a.pixels / tiles, a.pixels % tiles);
    for y in 0..a.height {
        // SAFETY: the same contract; the tiles make up the row.
        unsafe {
            let (mut columns, mut out) = (a.columns.add(y * a.step), a.out.add(y * a.row));
            for i in 0..tiles {
                let pixels = narrow + usize::from(i < wider);
                match pixels {
                    1 => tile::<L, T, K, S, V, 1>(a, columns, out),
                    2 => tile::<L, T, K, S, V, 2>(a, columns, out),
                    3 if P >= 3 => tile::<L, T, K, S, V, 3>(a, columns, out),
                    4 if P >= 4 => tile::<L, T, K, S, V, 4>(a, columns, out),
                    5 if most >= 5 => tile::<L, T, K, S, V, 5>(a, columns, out),
                    6 if most >= 6 => tile::<L, T, K, S, V, 6>(a, columns, out),
                    7 if P >= 7 => tile::<L, T, K, S, V, 7>(a, columns, out),
                    8 if P >= 8 => tile::<L, T, K, S, V, 8>(a, columns, out),
                    _ => {}
                }
                (columns, out) = (columns.add(pixels * S), out.add(pixels * a.stride));
            }
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

    #[inline(always)]
    unsafe fn widen(at: *const u16) -> Self {
        // SAFETY: readable by the contract; any alignment.
        unsafe { at.cast::<[u16; 8]>().read_unaligned() }.map(bf16::widen)
    }
}

/// Rows of pixels stored as `$stored`, in vectors of `$vector`.
macro_rules! rows {
    ($(#[$feature:meta])? $name:ident, $vector:ty, $stored:ty) => {
        /// # Safety
        /// See [`crate::depthwise::sliding::SlideFn`].
        $(#[$feature])?
        unsafe fn $name<const K: usize, const S: usize, const V: usize, const P: usize>(
            a: &Args<<$stored as Stored<$vector>>::Element>,
        ) {
            // SAFETY: the same contract.
            unsafe { rows::<$vector, $stored, K, S, V, P>(a) }
        }
    };
}

rows!(portable, [f32; 8], f32);
rows!(portable_bf16, [f32; 8], Bf16);

pub(crate) static PORTABLE: SlideF32Kernels = Slides { widths: &[slide_width!(8, portable, 1, 2)], rows: 1 };
pub(crate) static PORTABLE_BF16: SlideBf16Kernels =
    Slides { widths: &[slide_width!(8, portable_bf16, 1, 2)], rows: 1 };

/// Implements [`Reals`] by intrinsics: load, store, splat, multiply-add with the addend last, max, min, widen.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! reals {
    ($vector:ty, $lanes:literal, $load:ident, $store:ident, $splat:ident, |$a:ident, $b:ident, $c:ident| $mul_add:expr, $max:ident, $min:ident, |$at:ident| $widen:expr) => {
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

            #[inline(always)]
            unsafe fn widen($at: *const u16) -> Self {
                // SAFETY: by the contract.
                unsafe { $widen }
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
        _mm256_min_ps,
        |at| _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())), 16))
    );
    reals!(
        __m512,
        16,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        |a, b, c| _mm512_fmadd_ps(a, b, c),
        _mm512_max_ps,
        _mm512_min_ps,
        |at| _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())), 16))
    );

    /// Bits of bf16, rounded by the processor.
    struct Native;

    impl Stored<__m512> for Native {
        type Element = u16;

        #[inline(always)]
        unsafe fn load(at: *const u16) -> __m512 {
            // SAFETY: the same contract.
            unsafe { __m512::widen(at) }
        }

        #[inline(always)]
        unsafe fn store(x: __m512, at: *mut u16) {
            // SAFETY: writable by the contract; any alignment.
            unsafe { at.cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(x)) }
        }
    }

    rows!(
        #[target_feature(enable = "avx2,fma")]
        avx2,
        __m256,
        f32
    );
    rows!(
        #[target_feature(enable = "avx2,fma")]
        avx2_bf16,
        __m256,
        Bf16
    );
    rows!(
        #[target_feature(enable = "avx512f,avx2,fma")]
        avx512,
        __m512,
        f32
    );
    rows!(
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
        avx512_bf16,
        __m512,
        Bf16
    );
    rows!(
        #[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
        native_bf16,
        __m512,
        Native
    );

    pub(crate) static AVX2: SlideF32Kernels =
        Slides { widths: &[slide_width!(16, avx2, 2, 4), slide_width!(8, avx2, 1, 4)], rows: 1 };
    pub(crate) static AVX2_BF16: SlideBf16Kernels =
        Slides { widths: &[slide_width!(16, avx2_bf16, 2, 4), slide_width!(8, avx2_bf16, 1, 4)], rows: 1 };
    pub(crate) static AVX512: SlideF32Kernels =
        Slides { widths: &[slide_width!(32, avx512, 2, 6), slide_width!(16, avx512, 1, 8)], rows: 1 };
    pub(crate) static AVX512_BF16: SlideBf16Kernels = Slides {
        widths: &[slide_width!(32, avx512_bf16, 2, 4), slide_width!(16, avx512_bf16, 1, 8)],
        rows: 1,
    };
    pub(crate) static NATIVE_BF16: SlideBf16Kernels = Slides {
        widths: &[slide_width!(32, native_bf16, 2, 4), slide_width!(16, native_bf16, 1, 8)],
        rows: 1,
    };
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
        vminq_f32,
        |at| vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(at), 16))
    );

    rows!(
        #[target_feature(enable = "neon")]
        neon,
        float32x4_t,
        f32
    );
    rows!(
        #[target_feature(enable = "neon")]
        neon_bf16,
        float32x4_t,
        Bf16
    );

    pub(crate) static NEON: SlideF32Kernels =
        Slides { widths: &[slide_width!(8, neon, 2, 4), slide_width!(4, neon, 1, 4)], rows: 1 };
    pub(crate) static NEON_BF16: SlideBf16Kernels =
        Slides { widths: &[slide_width!(8, neon_bf16, 2, 4), slide_width!(4, neon_bf16, 1, 4)], rows: 1 };
}
