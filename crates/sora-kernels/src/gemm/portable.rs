//! Tiles for the baseline of any target.

use super::{F32Tiles, I8Tiles, TileArgs, tap_rows, tiles, widen_bytes};

const NR: usize = 8;

pub(crate) static F32: F32Tiles = tiles!(f32_tile: 1 2 3 4);
pub(crate) static U8I8: I8Tiles = tiles!(u8i8_tile, Some(widen_bytes); 1 2 3 4 5 6);

/// # Safety
/// See [`super::TileFn`].
unsafe fn f32_tile<const MR: usize, const NP: usize>(args: &TileArgs<f32, f32>, tile: *mut f32) {
    for p in 0..NP {
        let mut acc = [[0.0f32; NR]; MR];
        // SAFETY: pieces of `kc` elements and panels of `taps * kc * NR` elements are readable,
        // and the tile holds MR rows of NP * NR elements, by the contract.
        unsafe {
            let mut panel = args.panel.add(p * args.panel_stride);
            for t in 0..args.taps {
                let rows = tap_rows::<MR, _, _>(args, t);
                for k in 0..args.kc {
                    let b = *panel.cast::<[f32; NR]>();
                    for i in 0..MR {
                        let a = *rows[i].add(k);
                        for j in 0..NR {
                            acc[i][j] += a * b[j];
                        }
                    }
                    panel = panel.add(NR);
                }
            }
            for (i, row) in acc.iter().enumerate() {
                tile.add((i * NP + p) * NR).cast::<[f32; NR]>().write(*row);
            }
        }
    }
}

/// Products of pairs of 16-bit numbers, summed in 32 bits, exactly.
///
/// # Safety
/// See [`super::TileFn`].
unsafe fn u8i8_tile<const MR: usize, const NP: usize>(args: &TileArgs<u8, i8>, tile: *mut i32) {
    let mut acc = [[[pairs::ZERO; NR / 4]; NP]; MR];
    // SAFETY: one widened piece of `kc` elements per row and panels of `kc * NR` elements are
    // readable, and the tile holds MR rows of NP * NR elements, by the contract.
    unsafe {
        let rows = tap_rows::<MR, _, _>(args, 0);
        let mut panel = args.panel;
        for pair in 0..args.kc / 2 {
            for p in 0..NP {
                let b = pairs::widen(*panel.add(p * args.panel_stride).cast::<[i8; 2 * NR]>());
                for i in 0..MR {
                    let a = pairs::splat(rows[i].cast::<[i16; 2]>().add(pair).read_unaligned());
                    for v in 0..NR / 4 {
                        acc[i][p][v] = pairs::add_products(acc[i][p][v], a, b[v]);
                    }
                }
            }
            panel = panel.add(2 * NR);
        }
        for i in 0..MR {
            for p in 0..NP {
                let row = acc[i][p].map(pairs::sums);
                tile.add((i * NP + p) * NR).cast::<[[i32; 4]; NR / 4]>().write(row);
            }
        }
    }
}

/// Four sums of products of pairs, as arrays for any target.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod plain {
    pub(super) type Words = [i16; 8];
    pub(super) type Sums = [i32; 4];
    pub(super) const ZERO: Sums = [0; 4];

    #[inline(always)]
    pub(super) fn widen(b: [i8; 16]) -> [Words; 2] {
        let half = |h: usize| core::array::from_fn(|j| i16::from(b[8 * h + j]));
        [half(0), half(1)]
    }

    #[inline(always)]
    pub(super) fn splat([low, high]: [i16; 2]) -> Words {
        [low, high, low, high, low, high, low, high]
    }

    #[inline(always)]
    pub(super) fn add_products(mut acc: Sums, a: Words, b: Words) -> Sums {
        for j in 0..4 {
            let low = i32::from(a[2 * j]) * i32::from(b[2 * j]);
            let high = i32::from(a[2 * j + 1]) * i32::from(b[2 * j + 1]);
            acc[j] = acc[j].wrapping_add(low.wrapping_add(high));
        }
        acc
    }

    #[inline(always)]
    pub(super) fn sums(acc: Sums) -> [i32; 4] {
        acc
    }
}
#[cfg(not(target_arch = "x86_64"))]
use plain as pairs;

/// The same by SSE2, which every x86-64 has: vectorizers miss its product of pairs.
#[cfg(target_arch = "x86_64")]
mod sse2 {
    use core::{arch::x86_64::*, mem::transmute};

    pub(super) type Words = __m128i;
    pub(super) type Sums = __m128i;
    // SAFETY: plain bits of equal size.
    pub(super) const ZERO: Sums = unsafe { transmute::<[i32; 4], __m128i>([0; 4]) };

    #[inline(always)]
    pub(super) fn widen(b: [i8; 16]) -> [Words; 2] {
        // SAFETY: plain bits of equal size; SSE2 belongs to x86-64.
        unsafe {
            let b = transmute::<[i8; 16], __m128i>(b);
            let sign = _mm_cmpgt_epi8(ZERO, b);
            [_mm_unpacklo_epi8(b, sign), _mm_unpackhi_epi8(b, sign)]
        }
    }

    #[inline(always)]
    pub(super) fn splat(pair: [i16; 2]) -> Words {
        // SAFETY: plain bits of equal size; SSE2 belongs to x86-64.
        unsafe { _mm_set1_epi32(transmute::<[i16; 2], i32>(pair)) }
    }

    #[inline(always)]
    pub(super) fn add_products(acc: Sums, a: Words, b: Words) -> Sums {
        // SAFETY: SSE2 belongs to x86-64.
        unsafe { _mm_add_epi32(acc, _mm_madd_epi16(a, b)) }
    }

    #[inline(always)]
    pub(super) fn sums(acc: Sums) -> [i32; 4] {
        // SAFETY: plain bits of equal size.
        unsafe { transmute::<__m128i, [i32; 4]>(acc) }
    }
}
#[cfg(target_arch = "x86_64")]
use sse2 as pairs;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::{plain, sse2};

    #[test]
    fn plain_and_sse2_products_agree() {
        let mut rng = fastrand::Rng::with_seed(5);
        for round in 0..1000 {
            let b: [i8; 16] = core::array::from_fn(|_| if round == 0 { -128 } else { rng.i8(..) });
            let (mut left, mut right) = (plain::ZERO, sse2::ZERO);
            for _ in 0..3 {
                let a: [i16; 2] = core::array::from_fn(|_| if round == 0 { 255 } else { rng.i16(0..256) });
                for h in 0..2 {
                    left = plain::add_products(left, plain::splat(a), plain::widen(b)[h]);
                    right = sse2::add_products(right, sse2::splat(a), sse2::widen(b)[h]);
                }
            }
            assert_eq!(plain::sums(left), sse2::sums(right));
        }
    }
}
