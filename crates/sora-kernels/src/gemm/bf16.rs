//! Tiles for bf16: products of pairs where the instruction set has them; elsewhere operands are widened in
//! registers and multiplied in f32.
//!
//! Every row reads panels of pairs of depth elements, a pair to a 32-bit lane. Widening a pair is a shift for the
//! element in the low half and a mask for that in the high half.

use super::{Bf16Tiles, TileArgs, tap_rows, tiles};
use crate::vector::prefetch;

/// Defines the tiles of module `$ops`, which gives vectors of `LANES` sums and what to do with them.
///
/// Rows' pairs are broadcast where they are used, and tiles without a tail have an instance of their own: gathered
/// first, or kept across a tail, they would push the sums out of registers.
macro_rules! bf16_tiles {
    ($(#[$feature:meta])? $ops:ident, $body:ident, $tile:ident, vectors: $nv:literal) => {
        /// `ODD`: whether pieces have an odd number of elements; the last is then paired with zero.
        ///
        /// # Safety
        /// See [`super::TileFn`].
        #[inline]
        $(#[$feature])?
        unsafe fn $body<const MR: usize, const NP: usize, const ODD: bool>(
            args: &TileArgs<u16, u16>,
            tile: *mut f32,
        ) {
            const NR: usize = $nv * $ops::LANES;
            let mut acc = [[[$ops::zero(); $nv]; NP]; MR];
            // SAFETY: pieces of `kc` elements and panels with `kc` rounded up to the granule are
            // readable, and the tile holds MR rows of NP * NR elements, by the contract.
            unsafe {
                let (mut panel, mut ahead) = (args.panel, args.ahead);
                for t in 0..args.taps {
                    let rows = tap_rows::<MR, _, _>(args, t);
                    for pair in 0..args.kc.div_ceil(2) {
                        // Two depths, in lines of 32. A single row reads its weights faster than it could ask for others.
                        if MR > 1 {
                            (0..NR / 16).for_each(|line| prefetch(ahead.wrapping_add(32 * line)));
                            ahead = ahead.wrapping_add(2 * args.ahead_step);
                        }
                        for p in 0..NP {
                            let at = panel.add(p * args.panel_stride);
                            let mut b = [$ops::load(at); $nv];
                            for v in 1..$nv {
                                b[v] = $ops::load(at.add(2 * $ops::LANES * v));
                            }
                            for i in 0..MR {
                                let a = rows[i].add(2 * pair);
                                let a = if ODD && 2 * pair + 1 == args.kc {
                                    u32::from(*a)
                                } else {
                                    a.cast::<u32>().read_unaligned()
                                };
                                let a = $ops::splat(a);
                                for v in 0..$nv {
                                    acc[i][p][v] = $ops::add_products(acc[i][p][v], a, b[v]);
                                }
                            }
                        }
                        panel = panel.add(2 * NR);
                    }
                }
                for i in 0..MR {
                    for p in 0..NP {
                        for v in 0..$nv {
                            $ops::store(tile.add((i * NP + p) * NR + $ops::LANES * v), acc[i][p][v]);
                        }
                    }
                }
            }
        }

        /// # Safety
        /// See [`super::TileFn`].
        $(#[$feature])?
        unsafe fn $tile<const MR: usize, const NP: usize>(args: &TileArgs<u16, u16>, tile: *mut f32) {
            // SAFETY: the same contract.
            unsafe {
                if args.kc.is_multiple_of(2) {
                    $body::<MR, NP, false>(args, tile);
                } else {
                    $body::<MR, NP, true>(args, tile);
                }
            }
        }
    };
}

pub(crate) static PORTABLE: Bf16Tiles = tiles!(portable_tile: 1 2 3 4);
bf16_tiles!(portable, portable_body, portable_tile, vectors: 2);

mod portable {
    pub(super) const LANES: usize = 4;
    pub(super) type Sums = [f32; LANES];
    pub(super) type Right = [u32; LANES];

    #[inline(always)]
    pub(super) fn zero() -> Sums {
        [0.0; LANES]
    }

    /// # Safety
    /// A pair per lane must be readable.
    #[inline(always)]
    pub(super) unsafe fn load(at: *const u16) -> Right {
        // SAFETY: by the contract; any alignment.
        unsafe { at.cast::<Right>().read_unaligned() }
    }

    #[inline(always)]
    pub(super) fn splat(pair: u32) -> u32 {
        pair
    }

    #[inline(always)]
    pub(super) fn add_products(mut acc: Sums, a: u32, b: Right) -> Sums {
        let (low, high) = (f32::from_bits(a << 16), f32::from_bits(a & 0xffff_0000));
        for j in 0..LANES {
            acc[j] += low * f32::from_bits(b[j] << 16);
            acc[j] += high * f32::from_bits(b[j] & 0xffff_0000);
        }
        acc
    }

    /// # Safety
    /// A vector must be writable.
    #[inline(always)]
    pub(super) unsafe fn store(at: *mut f32, acc: Sums) {
        // SAFETY: by the contract; any alignment.
        unsafe { at.cast::<Sums>().write_unaligned(acc) };
    }
}

/// Operations that widen pairs to two vectors of f32.
#[cfg(target_arch = "x86_64")]
macro_rules! widening {
    ($name:ident, $feature:literal, $lanes:literal, $sums:ident, $bits:ident,
     $zero:ident $load:ident $set:ident $shift:ident $and:ident $cast:ident $fma:ident $store:ident) => {
        mod $name {
            use core::arch::x86_64::*;

            pub(super) const LANES: usize = $lanes;
            pub(super) type Sums = $sums;
            /// Low and high elements of the pairs.
            pub(super) type Right = [$sums; 2];

            #[inline]
            #[target_feature(enable = $feature)]
            pub(super) fn zero() -> Sums {
                $zero()
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn halves(pairs: $bits) -> [$sums; 2] {
                [$cast($shift::<16>(pairs)), $cast($and(pairs, $set(0xffff_0000_u32 as i32)))]
            }

            /// # Safety
            /// A pair per lane must be readable.
            #[inline]
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn load(at: *const u16) -> Right {
                // SAFETY: by the contract; any alignment.
                halves(unsafe { $load(at.cast()) })
            }

            #[inline]
            #[target_feature(enable = $feature)]
            pub(super) fn splat(pair: u32) -> [$sums; 2] {
                halves($set(pair as i32))
            }

            #[inline]
            #[target_feature(enable = $feature)]
            pub(super) fn add_products(acc: Sums, a: [$sums; 2], b: Right) -> Sums {
                $fma(a[1], b[1], $fma(a[0], b[0], acc))
            }

            /// # Safety
            /// A vector must be writable.
            #[inline]
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn store(at: *mut f32, acc: Sums) {
                // SAFETY: by the contract; any alignment.
                unsafe { $store(at, acc) };
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{AVX2, AVX512, AVX512_DOT, Rounded, finish_rounded};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use super::{Bf16Tiles, TileArgs, prefetch, tap_rows, tiles};
    use crate::{
        bf16::x86::silu,
        epilogue::{Activation, EpilogueF32, Place, Residual, Scratch},
        operands::MatMut,
    };

    pub(crate) static AVX2: Bf16Tiles = tiles!(avx2_tile: 1 2 3 4 5 6);
    pub(crate) static AVX512: Bf16Tiles = tiles!(avx512_tile: 1 2 3 4 5 6 7 8 9 10 11 12);
    pub(crate) static AVX512_DOT: Bf16Tiles = tiles!(dot_tile: 1 2 3 4 5 6 7 8 9 10 11 12 13 14);

    widening!(avx2, "avx2,fma", 8, __m256, __m256i, _mm256_setzero_ps _mm256_loadu_si256 _mm256_set1_epi32
        _mm256_slli_epi32 _mm256_and_si256 _mm256_castsi256_ps _mm256_fmadd_ps _mm256_storeu_ps);
    bf16_tiles!(#[target_feature(enable = "avx2,fma")] avx2, avx2_body, avx2_tile, vectors: 2);

    widening!(avx512, "avx512f", 16, __m512, __m512i, _mm512_setzero_ps _mm512_loadu_si512 _mm512_set1_epi32
        _mm512_slli_epi32 _mm512_and_si512 _mm512_castsi512_ps _mm512_fmadd_ps _mm512_storeu_ps);
    bf16_tiles!(#[target_feature(enable = "avx512f")] avx512, avx512_body, avx512_tile, vectors: 2);

    bf16_tiles!(#[target_feature(enable = "avx512f,avx512bf16")] dot, dot_body, dot_tile, vectors: 2);

    /// What a tile of rows of 32 sums needs to become bf16.
    pub(crate) struct Rounded<'a> {
        bias: Option<&'a [f32]>,
        /// The elements of a tensor to add, and its leading dimension.
        residual: Option<(&'a [u16], usize)>,
        activation: Activation,
    }

    impl<'a> Rounded<'a> {
        /// The epilogue, if [`finish_rounded`] does it.
        pub(crate) fn of(e: &EpilogueF32<'a>) -> Option<Self> {
            let residual = match e.residual {
                None => None,
                Some(Residual::Bf16 { data, ld }) => Some((data, ld)),
                Some(_) => return None,
            };
            Some(Self { bias: e.bias, residual, activation: e.activation })
        }
    }

    /// Writes `activation(acc + bias + residual)` as bf16: the same bits as [`crate::epilogue::finish_f32`] does,
    /// with the conversions of the instruction set; but for SiLU, see [`silu`].
    ///
    /// # Safety
    /// The machine must run [`crate::Isa::Avx512Bf16`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
    pub(crate) unsafe fn finish_rounded(
        e: &Rounded<'_>,
        scratch: &mut Scratch<f32>,
        start: usize,
        place: Place,
        out: &mut MatMut<'_, u16>,
    ) {
        let (first, cols) = (place.n0 + place.col, place.cols);
        let mask = u32::MAX >> (32 - cols);
        let halves = [mask as u16, (mask >> 16) as u16];
        let mut bias = [_mm512_setzero_ps(); 2];
        if let Some(values) = e.bias {
            let values = &values[first..first + cols];
            for v in 0..2 {
                // SAFETY: the mask reads `cols` elements in all.
                bias[v] = unsafe { _mm512_maskz_loadu_ps(halves[v], values.as_ptr().wrapping_add(16 * v)) };
            }
        }
        let load = |acc: &[f32; 32]| {
            // SAFETY: 32 elements.
            unsafe { [_mm512_loadu_ps(acc.as_ptr()), _mm512_loadu_ps(acc.as_ptr().add(16))] }
        };
        let sums = |i: usize, acc: &[f32; 32]| {
            let mut y = load(acc);
            if e.bias.is_some() {
                y = [_mm512_add_ps(y[0], bias[0]), _mm512_add_ps(y[1], bias[1])];
            }
            if let Some((data, ld)) = e.residual {
                let row = &data[(place.row + i) * ld + first..][..cols];
                // SAFETY: the mask reads `cols` elements.
                let row = unsafe { _mm512_maskz_loadu_epi16(mask, row.as_ptr().cast()) };
                let wide = [_mm512_castsi512_si256(row), _mm512_extracti64x4_epi64::<1>(row)]
                    .map(|half| _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
                for v in 0..2 {
                    y[v] = _mm512_add_ps(y[v], _mm512_castsi512_ps(wide[v]));
                }
            }
            y
        };
        let mut store = |i: usize, y: [__m512; 2]| {
            let bits = _mm512_cvtne2ps_pbh(y[1], y[0]);
            let to = &mut out.row_mut(place.row + i)[place.col..place.col + cols];
            // SAFETY: the mask writes `cols` elements; vectors of equal size.
            unsafe {
                let bits = core::mem::transmute::<__m512bh, __m512i>(bits);
                _mm512_mask_storeu_epi16(to.as_mut_ptr().cast(), mask, bits);
            }
        };
        let tile = &mut scratch.acc[start..start + 32 * place.rows];
        match (e.activation, e.activation.bounds()) {
            (_, Some((low, high))) => {
                let (low, high) = (_mm512_set1_ps(low), _mm512_set1_ps(high));
                for (i, acc) in tile.as_chunks::<32>().0.iter().enumerate() {
                    // In this order of operands, NaN stays.
                    store(i, sums(i, acc).map(|y| _mm512_min_ps(high, _mm512_max_ps(low, y))));
                }
            }
            (Activation::Silu, _) => {
                for (i, acc) in tile.as_chunks::<32>().0.iter().enumerate() {
                    store(i, sums(i, acc).map(|y| silu(y)));
                }
            }
            _ => {
                for (i, acc) in tile.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    let y = sums(i, acc);
                    for v in 0..2 {
                        // SAFETY: 32 elements.
                        unsafe { _mm512_storeu_ps(acc.as_mut_ptr().add(16 * v), y[v]) };
                    }
                }
                e.activation.apply(tile);
                for (i, acc) in tile.as_chunks::<32>().0.iter().enumerate() {
                    store(i, load(acc));
                }
            }
        }
    }

    /// Products of pairs, added in the instruction: the high elements' first, each rounded to nearest, subnormal
    /// sums to zero.
    mod dot {
        use core::{arch::x86_64::*, mem::transmute};

        pub(super) const LANES: usize = 16;
        pub(super) type Sums = __m512;
        pub(super) type Right = __m512bh;

        #[inline]
        #[target_feature(enable = "avx512f")]
        pub(super) fn zero() -> Sums {
            _mm512_setzero_ps()
        }

        /// # Safety
        /// A pair per lane must be readable.
        #[inline]
        #[target_feature(enable = "avx512f")]
        pub(super) unsafe fn load(at: *const u16) -> Right {
            // SAFETY: by the contract, any alignment; vectors of equal size.
            unsafe { transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.cast())) }
        }

        #[inline]
        #[target_feature(enable = "avx512f")]
        pub(super) fn splat(pair: u32) -> __m512bh {
            // SAFETY: vectors of equal size.
            unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair as i32)) }
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bf16")]
        pub(super) fn add_products(acc: Sums, a: __m512bh, b: Right) -> Sums {
            _mm512_dpbf16_ps(acc, a, b)
        }

        /// # Safety
        /// A vector must be writable.
        #[inline]
        #[target_feature(enable = "avx512f")]
        pub(super) unsafe fn store(at: *mut f32, acc: Sums) {
            // SAFETY: by the contract; any alignment.
            unsafe { _mm512_storeu_ps(at, acc) };
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) static NEON: Bf16Tiles = tiles!(neon_tile: 1 2 3 4 5 6);
#[cfg(target_arch = "aarch64")]
bf16_tiles!(#[target_feature(enable = "neon")] neon, neon_body, neon_tile, vectors: 4);

#[cfg(target_arch = "aarch64")]
mod neon {
    use core::arch::aarch64::*;

    pub(super) const LANES: usize = 4;
    pub(super) type Sums = float32x4_t;
    /// Low and high elements of the pairs.
    pub(super) type Right = [float32x4_t; 2];

    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn zero() -> Sums {
        vdupq_n_f32(0.0)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn halves(pairs: uint32x4_t) -> [float32x4_t; 2] {
        let high = vandq_u32(pairs, vdupq_n_u32(0xffff_0000));
        [vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)), vreinterpretq_f32_u32(high)]
    }

    /// # Safety
    /// A pair per lane must be readable.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn load(at: *const u16) -> Right {
        // SAFETY: by the contract.
        halves(vreinterpretq_u32_u16(unsafe { vld1q_u16(at) }))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn splat(pair: u32) -> [float32x4_t; 2] {
        halves(vdupq_n_u32(pair))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn add_products(acc: Sums, a: [float32x4_t; 2], b: Right) -> Sums {
        vfmaq_f32(vfmaq_f32(acc, a[0], b[0]), a[1], b[1])
    }

    /// # Safety
    /// A vector must be writable.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn store(at: *mut f32, acc: Sums) {
        // SAFETY: by the contract.
        unsafe { vst1q_f32(at, acc) };
    }
}
