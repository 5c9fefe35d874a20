//! Kernels that slide byte weights along a row of pixels, summing exactly.
//!
//! A column of the window is read as words of four bytes, or two 16-bit numbers, per channel: rows
//! interleaved within 16 bytes. Narrowing the sums undoes the interleaving, so results come out in order.

use super::sliding::{SlideArgs, SlideI8Kernels, Slides, slide_width};
use crate::{math, operands::Quant};

/// How sums become bytes.
#[derive(Clone, Copy, Debug)]
pub struct Requant {
    pub(crate) inv_scale: f32,
    /// Upper bound before rounding; what exceeds it could leave the integers.
    pub(crate) top: f32,
    pub(crate) zero_point: i16,
    /// Lower bound of the results.
    pub(crate) low: u8,
    /// Whether a real number per channel, which lies behind the scales, is added to the scaled sums.
    pub(crate) offset: bool,
}

impl Requant {
    /// Clamping commutes with rounding, both being monotone.
    pub(crate) fn new((min, max): (f32, f32), quant: Quant) -> Self {
        let Quant { inv_scale, zero_point } = quant;
        let top = math::at_most(max * inv_scale, (255 - zero_point) as f32);
        let bottom = math::at_most(math::at_least(min * inv_scale, -zero_point as f32), top);
        let low = (math::round_to_i32(bottom) + zero_point).clamp(0, 255) as u8;
        Self { inv_scale, top, zero_point: zero_point as i16, low, offset: false }
    }
}

type Args = SlideArgs<u8, i32, Requant>;

/// Four vectors that together hold a word per channel of a block.
trait Bytes {
    /// Channels of a block.
    const LANES: usize;
    /// Rows of the window that a word holds.
    const ROWS: usize;
    type Words: Copy;

    /// The words of the pixels `at(0..ROWS)`.
    ///
    /// # Safety
    /// `LANES` bytes must be readable from each; the instruction set must run here; so for the others.
    unsafe fn column(at: impl Fn(usize) -> *const u8) -> Self::Words;
    /// # Safety
    /// `LANES` words must be readable.
    unsafe fn load(at: *const i32) -> Self::Words;
    /// `sums + x · w`, word by word.
    ///
    /// # Safety
    /// `LANES` words must be readable from `w`.
    unsafe fn mac(sums: &mut Self::Words, x: Self::Words, w: *const i32);
    /// Scales, rounds and narrows; `scale` holds the bits of reals, and of the offsets behind them.
    ///
    /// # Safety
    /// `LANES` scales must be readable, as many offsets where there are any, and as many bytes writable.
    unsafe fn finish(sums: Self::Words, scale: *const i32, q: &Requant, out: *mut u8);
}

/// `P` pixels at `out`, whose windows begin at `columns`. Parameters: bias, scales, perhaps offsets, then words by
/// group of rows and column.
///
/// # Safety
/// See [`super::sliding::SlideFn`].
#[inline(always)]
unsafe fn tile<L: Bytes, const K: usize, const S: usize, const P: usize>(
    a: &Args,
    columns: *const *const u8,
    out: *mut u8,
) {
    // SAFETY: all reads and writes are those that the contract allows; rows beyond the window meet zero
    // weights, and read its last row.
    unsafe {
        let mut sums: [L::Words; P] = [L::load(a.weights); P];
        let scale = a.weights.add(L::LANES);
        let mut weights = scale.add(if a.finish.offset { 2 * L::LANES } else { L::LANES });
        let mut first = 0;
        while first < a.rows {
            let rows: [*const *const u8; 4] =
                core::array::from_fn(|r| columns.add((first + r).min(a.rows - 1) * a.pitch));
            for col in 0..(P - 1) * S + K {
                let x = L::column(|r| (*rows[r].add(col)).add(a.channel));
                for i in 0..P {
                    if col >= i * S && col - i * S < K {
                        L::mac(&mut sums[i], x, weights.add((col - i * S) * L::LANES));
                    }
                }
            }
            weights = weights.add(K * L::LANES);
            first += L::ROWS;
        }
        for i in 0..P {
            L::finish(sums[i], scale, &a.finish, out.add(i * a.stride));
        }
    }
}

/// Rows, `P` pixels at a time.
///
/// # Safety
/// See [`super::sliding::SlideFn`].
#[inline(always)]
unsafe fn rows<L: Bytes, const K: usize, const S: usize, const P: usize>(a: &Args) {
    // SAFETY: the same contract; no tile goes beyond the row.
    unsafe {
        for y in 0..a.height {
            let (columns, out) = (a.columns.add(y * a.step), a.out.add(y * a.row));
            let mut px = 0;
            while px + P <= a.pixels {
                tile::<L, K, S, P>(a, columns.add(px * S), out.add(px * a.stride));
                px += P;
            }
            if P > 2 && px + 2 <= a.pixels {
                tile::<L, K, S, 2>(a, columns.add(px * S), out.add(px * a.stride));
                px += 2;
            }
            if px < a.pixels {
                tile::<L, K, S, 1>(a, columns.add(px * S), out.add(px * a.stride));
            }
        }
    }
}

/// Sixteen words in plain Rust.
struct Plain;

impl Bytes for Plain {
    const LANES: usize = 16;
    const ROWS: usize = 2;
    type Words = [i32; 16];

    #[inline(always)]
    unsafe fn column(at: impl Fn(usize) -> *const u8) -> [i32; 16] {
        // SAFETY: readable by the contract; any alignment.
        let [a, b] = [0, 1].map(|r| unsafe { at(r).cast::<[u8; 16]>().read_unaligned() });
        core::array::from_fn(|i| i32::from(a[i]) | i32::from(b[i]) << 16)
    }

    #[inline(always)]
    unsafe fn load(at: *const i32) -> [i32; 16] {
        // SAFETY: readable by the contract; any alignment.
        unsafe { at.cast::<[i32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn mac(sums: &mut [i32; 16], x: [i32; 16], w: *const i32) {
        // SAFETY: readable by the contract.
        let w = unsafe { Self::load(w) };
        for i in 0..16 {
            let low = i32::from(x[i] as i16) * i32::from(w[i] as i16);
            let high = (x[i] >> 16) * (w[i] >> 16);
            sums[i] = sums[i].wrapping_add(low + high);
        }
    }

    #[inline(always)]
    unsafe fn finish(sums: [i32; 16], scale: *const i32, q: &Requant, out: *mut u8) {
        // SAFETY: readable by the contract.
        let (scale, offset) =
            unsafe { (Self::load(scale), q.offset.then(|| Self::load(scale.add(Self::LANES)))) };
        let bottom = f32::from(i16::from(q.low) - q.zero_point);
        let bytes: [u8; 16] = core::array::from_fn(|i| {
            let y = sums[i] as f32 * f32::from_bits(scale[i] as u32);
            let y = offset.map_or(y, |offset| y + f32::from_bits(offset[i] as u32));
            let v = y * q.inv_scale;
            let v = if v > bottom { v } else { bottom };
            let v = if v < q.top { v } else { q.top };
            (math::round_to_i32(v) + i32::from(q.zero_point)) as u8
        });
        // SAFETY: writable by the contract; any alignment.
        unsafe { out.cast::<[u8; 16]>().write_unaligned(bytes.map(|b| b.max(q.low))) }
    }
}

/// # Safety
/// See [`super::sliding::SlideFn`].
unsafe fn portable<const K: usize, const S: usize>(a: &Args) {
    // SAFETY: the same contract.
    unsafe { rows::<Plain, K, S, 2>(a) }
}

pub(crate) static PORTABLE: SlideI8Kernels = Slides { widths: &[slide_width!(16, portable)], rows: 2 };

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use core::arch::x86_64::*;

    use super::*;

    /// `f` of 0 to 3, written out: a closure is a function of its own without the features of the caller, and where
    /// it is not inlined every intrinsic in it becomes a call.
    macro_rules! each {
        (|$j:ident| $f:expr) => {
            [
                {
                    let $j = 0;
                    $f
                },
                {
                    let $j = 1;
                    $f
                },
                {
                    let $j = 2;
                    $f
                },
                {
                    let $j = 3;
                    $f
                },
            ]
        };
    }

    /// The interleaving of one vector type: bytes of four rows to words, or of two rows to 16-bit pairs.
    macro_rules! interleave {
        (4, $at:ident, $load:ident, $zero:ident, $lo8:ident, $hi8:ident, $lo16:ident, $hi16:ident) => {{
            let [a, b, c, d] = each!(|r| $load($at(r).cast()));
            let [low, high] = [$lo8(a, b), $hi8(a, b)];
            let [low2, high2] = [$lo8(c, d), $hi8(c, d)];
            [$lo16(low, low2), $hi16(low, low2), $lo16(high, high2), $hi16(high, high2)]
        }};
        (2, $at:ident, $load:ident, $zero:ident, $lo8:ident, $hi8:ident, $lo16:ident, $hi16:ident) => {{
            let (a, b) = ($load($at(0).cast()), $load($at(1).cast()));
            let [low, high] = [$lo8(a, b), $hi8(a, b)];
            let zero = $zero();
            [$lo8(low, zero), $hi8(low, zero), $lo8(high, zero), $hi8(high, zero)]
        }};
    }

    macro_rules! bytes {
        ($name:ident, $vector:ty, $lanes:literal, $rows:tt, |$s:ident, $x:ident, $w:ident| $mac:expr;
         $load:ident $store:ident $zero:ident $lo8:ident $hi8:ident $lo16:ident $hi16:ident
         $to_ps:ident $as_ps:ident $mul:ident $add_ps:ident $min:ident $set_ps:ident $to_i32:ident
         $packs32:ident $adds16:ident $set16:ident $packus:ident $max8:ident $set8:ident) => {
            struct $name;

            impl Bytes for $name {
                const LANES: usize = $lanes;
                const ROWS: usize = $rows;
                type Words = [$vector; 4];

                #[inline(always)]
                unsafe fn column(at: impl Fn(usize) -> *const u8) -> [$vector; 4] {
                    // SAFETY: readable by the contract.
                    unsafe { interleave!($rows, at, $load, $zero, $lo8, $hi8, $lo16, $hi16) }
                }

                #[inline(always)]
                unsafe fn load(at: *const i32) -> [$vector; 4] {
                    // SAFETY: readable by the contract.
                    unsafe { each!(|j| $load(at.add(j * $lanes / 4).cast())) }
                }

                #[inline(always)]
                unsafe fn mac(sums: &mut [$vector; 4], x: [$vector; 4], w: *const i32) {
                    // SAFETY: readable by the contract.
                    unsafe {
                        for (j, $w) in Self::load(w).into_iter().enumerate() {
                            let ($s, $x) = (sums[j], x[j]);
                            sums[j] = $mac;
                        }
                    }
                }

                #[inline(always)]
                unsafe fn finish(sums: [$vector; 4], scale: *const i32, q: &Requant, out: *mut u8) {
                    // SAFETY: readable and writable by the contract. A product that is no number
                    // passes the minimum, and converts to the least integer.
                    unsafe {
                        let (inv_scale, top) = ($set_ps(q.inv_scale), $set_ps(q.top));
                        let scales = Self::load(scale);
                        let mut y = each!(|j| $mul($to_ps(sums[j]), $as_ps(scales[j])));
                        if q.offset {
                            let offsets = Self::load(scale.add($lanes));
                            y = each!(|j| $add_ps(y[j], $as_ps(offsets[j])));
                        }
                        let words = each!(|j| $to_i32($min(top, $mul(y[j], inv_scale))));
                        let zero_point = $set16(q.zero_point);
                        let low = $adds16($packs32(words[0], words[1]), zero_point);
                        let high = $adds16($packs32(words[2], words[3]), zero_point);
                        let bytes = $max8($packus(low, high), $set8(q.low as i8));
                        $store(out.cast(), bytes);
                    }
                }
            }
        };
    }

    macro_rules! bytes128 {
        ($name:ident, $rows:tt, |$s:ident, $x:ident, $w:ident| $mac:expr) => {
            bytes! { $name, __m128i, 16, $rows, |$s, $x, $w| $mac;
            _mm_loadu_si128 _mm_storeu_si128 _mm_setzero_si128 _mm_unpacklo_epi8 _mm_unpackhi_epi8
            _mm_unpacklo_epi16 _mm_unpackhi_epi16 _mm_cvtepi32_ps _mm_castsi128_ps _mm_mul_ps _mm_add_ps
            _mm_min_ps _mm_set1_ps _mm_cvtps_epi32 _mm_packs_epi32 _mm_adds_epi16 _mm_set1_epi16
            _mm_packus_epi16 _mm_max_epu8 _mm_set1_epi8 }
        };
    }
    macro_rules! bytes256 {
        ($name:ident, $rows:tt, |$s:ident, $x:ident, $w:ident| $mac:expr) => {
            bytes! { $name, __m256i, 32, $rows, |$s, $x, $w| $mac;
            _mm256_loadu_si256 _mm256_storeu_si256 _mm256_setzero_si256 _mm256_unpacklo_epi8
            _mm256_unpackhi_epi8 _mm256_unpacklo_epi16 _mm256_unpackhi_epi16 _mm256_cvtepi32_ps
            _mm256_castsi256_ps _mm256_mul_ps _mm256_add_ps _mm256_min_ps _mm256_set1_ps _mm256_cvtps_epi32
            _mm256_packs_epi32 _mm256_adds_epi16 _mm256_set1_epi16 _mm256_packus_epi16
            _mm256_max_epu8 _mm256_set1_epi8 }
        };
    }
    macro_rules! bytes512 {
        ($name:ident, $rows:tt, |$s:ident, $x:ident, $w:ident| $mac:expr) => {
            bytes! { $name, __m512i, 64, $rows, |$s, $x, $w| $mac;
            _mm512_loadu_si512 _mm512_storeu_si512 _mm512_setzero_si512 _mm512_unpacklo_epi8
            _mm512_unpackhi_epi8 _mm512_unpacklo_epi16 _mm512_unpackhi_epi16 _mm512_cvtepi32_ps
            _mm512_castsi512_ps _mm512_mul_ps _mm512_add_ps _mm512_min_ps _mm512_set1_ps _mm512_cvtps_epi32
            _mm512_packs_epi32 _mm512_adds_epi16 _mm512_set1_epi16 _mm512_packus_epi16
            _mm512_max_epu8 _mm512_set1_epi8 }
        };
    }

    bytes128!(Madd16, 2, |s, x, w| _mm_add_epi32(s, _mm_madd_epi16(x, w)));
    bytes256!(Madd32, 2, |s, x, w| _mm256_add_epi32(s, _mm256_madd_epi16(x, w)));
    bytes512!(Madd64, 2, |s, x, w| _mm512_add_epi32(s, _mm512_madd_epi16(x, w)));
    bytes128!(Vnni16, 4, |s, x, w| _mm_dpbusd_epi32(s, x, w));
    bytes256!(Vnni32, 4, |s, x, w| _mm256_dpbusd_epi32(s, x, w));
    bytes512!(Vnni64, 4, |s, x, w| _mm512_dpbusd_epi32(s, x, w));

    /// Defines `$name<K, S>` for a feature set: rows of `$lanes`, `$pixels` at a time.
    macro_rules! slides {
        ($($name:ident $features:literal $lanes:ident $pixels:literal;)*) => {$(
            /// # Safety
            /// See [`crate::depthwise::sliding::SlideFn`].
            #[target_feature(enable = $features)]
            unsafe fn $name<const K: usize, const S: usize>(a: &Args) {
                // SAFETY: the same contract.
                unsafe { rows::<$lanes, K, S, $pixels>(a) }
            }
        )*};
    }
    slides! {
        avx2_16 "avx2,fma" Madd16 2;
        avx2_32 "avx2,fma" Madd32 2;
        avx512_16 "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma" Madd16 4;
        avx512_32 "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma" Madd32 4;
        avx512_64 "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma" Madd64 4;
        vnni_16 "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma" Vnni16 4;
        vnni_32 "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma" Vnni32 4;
        vnni_64 "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma" Vnni64 4;
    }

    pub(crate) static AVX2: SlideI8Kernels =
        Slides { widths: &[slide_width!(32, avx2_32), slide_width!(16, avx2_16)], rows: 2 };
    pub(crate) static AVX512: SlideI8Kernels = Slides {
        widths: &[slide_width!(64, avx512_64), slide_width!(32, avx512_32), slide_width!(16, avx512_16)],
        rows: 2,
    };
    pub(crate) static AVX512_VNNI: SlideI8Kernels = Slides {
        widths: &[slide_width!(64, vnni_64), slide_width!(32, vnni_32), slide_width!(16, vnni_16)],
        rows: 4,
    };
}
