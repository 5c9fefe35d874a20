//! Tiles for AVX-512: f32, bytes through 16-bit products, bytes through VNNI.

use core::arch::x86_64::*;

use crate::{epilogue::Clamped, vector::prefetch};

use super::{F32Tiles, I8Tiles, TileArgs, tail_word, tap_rows, tap_steps, tiles, widen_bytes};

/// Vectors of 16 lanes per panel row.
const NV: usize = 2;
const NR: usize = 16 * NV;

pub(crate) static F32: F32Tiles =
    tiles!(f32_tile / f32_half + f32_clamped / f32_clamped_half: 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
pub(crate) static U8I8: I8Tiles = tiles!(u8i8_tile, Some(widen_bytes); 1 2 3 4 5 6 7 8 9 10 11 12);
/// More rows would not gain: their pointers no longer fit the registers.
pub(crate) static U8I8_VNNI: I8Tiles =
    I8Tiles { steps: true, ..tiles!(vnni_tile: 1 2 3 4 5 6 7 8 9 10 11 12) };

/// Sums of the first `V` vectors of a panel's columns.
///
/// # Safety
/// See [`super::TileFn`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn f32_sums<const MR: usize, const NP: usize, const V: usize>(
    args: &TileArgs<f32, f32>,
) -> [[[__m512; V]; NP]; MR] {
    let mut acc = [[[_mm512_setzero_ps(); V]; NP]; MR];
    // SAFETY: pieces of `kc` elements and panels of `taps * kc * NR` elements are readable, by the contract.
    unsafe {
        let (mut panel, mut ahead) = (args.panel, args.ahead);
        for t in 0..args.taps {
            let rows = tap_rows::<MR, _, _>(args, t);
            for k in 0..args.kc {
                prefetch(ahead);
                prefetch(ahead.wrapping_add(16));
                ahead = ahead.wrapping_add(args.ahead_step);
                for p in 0..NP {
                    let at = panel.add(p * args.panel_stride);
                    let mut b = [_mm512_setzero_ps(); V];
                    for v in 0..V {
                        b[v] = _mm512_loadu_ps(at.add(16 * v));
                    }
                    for i in 0..MR {
                        let a = _mm512_set1_ps(*rows[i].add(k));
                        for v in 0..V {
                            acc[i][p][v] = _mm512_fmadd_ps(a, b[v], acc[i][p][v]);
                        }
                    }
                }
                panel = panel.add(NR);
            }
        }
    }
    acc
}

/// # Safety
/// See [`super::TileFn`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn f32_store<const MR: usize, const NP: usize, const V: usize>(
    args: &TileArgs<f32, f32>,
    tile: *mut f32,
) {
    // SAFETY: the same contract; the tile holds MR rows of NP * NR elements.
    unsafe {
        let acc = f32_sums::<MR, NP, V>(args);
        for i in 0..MR {
            for p in 0..NP {
                for v in 0..V {
                    _mm512_storeu_ps(tile.add((i * NP + p) * NR + 16 * v), acc[i][p][v]);
                }
            }
        }
    }
}

/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "avx512f")]
unsafe fn f32_tile<const MR: usize, const NP: usize>(args: &TileArgs<f32, f32>, tile: *mut f32) {
    // SAFETY: the same contract.
    unsafe { f32_store::<MR, NP, NV>(args, tile) }
}

/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "avx512f")]
unsafe fn f32_half<const MR: usize, const NP: usize>(args: &TileArgs<f32, f32>, tile: *mut f32) {
    // SAFETY: the same contract.
    unsafe { f32_store::<MR, NP, { NV / 2 }>(args, tile) }
}

/// # Safety
/// See [`super::ClampedFn`].
#[target_feature(enable = "avx512f")]
unsafe fn f32_clamped<const MR: usize>(args: &TileArgs<f32, f32>, to: &Clamped) {
    // SAFETY: the same contract.
    unsafe { to.store(f32_sums::<MR, 1, NV>(args)) }
}

/// # Safety
/// See [`super::ClampedFn`].
#[target_feature(enable = "avx512f")]
unsafe fn f32_clamped_half<const MR: usize>(args: &TileArgs<f32, f32>, to: &Clamped) {
    // SAFETY: the same contract.
    unsafe { to.store(f32_sums::<MR, 1, { NV / 2 }>(args)) }
}

/// # Safety
/// The tile must hold MR rows of NP * NR elements.
#[inline(always)]
unsafe fn store<const MR: usize, const NP: usize>(acc: &[[[__m512i; NV]; NP]; MR], tile: *mut i32) {
    for i in 0..MR {
        for p in 0..NP {
            for v in 0..NV {
                // SAFETY: within the tile, by the contract; any alignment.
                unsafe {
                    let at = tile.add((i * NP + p) * NR + 16 * v);
                    at.cast::<__m512i>().write_unaligned(acc[i][p][v]);
                }
            }
        }
    }
}

/// One step of the four depth elements from `from` on, or of the last, fewer ones of the `k` from there:
/// `acc += a · b` for every row and panel.
///
/// Each row's word is broadcast where it is used; gathered first, the words are moved to vectors that
/// displace accumulators.
///
/// # Safety
/// `k` bytes of every row from `from` on must be readable, and the step of every panel.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn vnni_step<const MR: usize, const NP: usize, const WHOLE: bool>(
    acc: &mut [[[__m512i; NV]; NP]; MR],
    rows: &[*const u8; MR],
    (from, k): (usize, usize),
    panel: *const i8,
    panel_stride: usize,
) {
    for p in 0..NP {
        // SAFETY: by the contract.
        let b = unsafe {
            let at = panel.add(p * panel_stride).cast::<__m512i>();
            [_mm512_loadu_si512(at), _mm512_loadu_si512(at.add(1))]
        };
        for i in 0..MR {
            // SAFETY: by the contract.
            let a = unsafe {
                let at = rows[i].add(from);
                if WHOLE { at.cast::<i32>().read_unaligned() } else { tail_word(at, k) }
            };
            let a = _mm512_set1_epi32(a);
            for v in 0..NV {
                acc[i][p][v] = _mm512_dpbusd_epi32(acc[i][p][v], a, b[v]);
            }
        }
    }
}

/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn vnni_tile<const MR: usize, const NP: usize>(args: &TileArgs<u8, i8>, tile: *mut i32) {
    const STEP: usize = 4 * NR;
    let mut acc = [[[_mm512_setzero_si512(); NV]; NP]; MR];
    // SAFETY: pieces of `kc` elements and panels with `kc` rounded up to the granule are
    // readable, and the tile holds MR rows of NP * NR elements, by the contract.
    unsafe {
        let (mut panel, mut ahead) = (args.panel, args.ahead);
        let tail = args.kc % 4;
        let whole = args.kc - tail;
        for t in 0..args.taps {
            let (rows, from) = tap_steps::<MR, _, _>(args, t);
            for k in (from..from + whole).step_by(4) {
                prefetch(ahead);
                prefetch(ahead.wrapping_add(64));
                ahead = ahead.wrapping_add(4 * args.ahead_step);
                vnni_step::<MR, NP, true>(&mut acc, &rows, (k, 4), panel, args.panel_stride);
                panel = panel.add(STEP);
            }
            if tail > 0 {
                vnni_step::<MR, NP, false>(&mut acc, &rows, (from, args.kc), panel, args.panel_stride);
                panel = panel.add(STEP);
            }
        }
        store(&acc, tile);
    }
}

/// Products of pairs of 16-bit numbers are summed in 32 bits, exactly.
///
/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn u8i8_tile<const MR: usize, const NP: usize>(args: &TileArgs<u8, i8>, tile: *mut i32) {
    const STEP: usize = 2 * NR;
    let mut acc = [[[_mm512_setzero_si512(); NV]; NP]; MR];
    // SAFETY: one widened piece of `kc` elements per row and panels of `kc * NR` elements are
    // readable, and the tile holds MR rows of NP * NR elements, by the contract.
    unsafe {
        let mut panel = args.panel;
        let rows = tap_rows::<MR, _, _>(args, 0);
        for pair in 0..args.kc / 2 {
            for p in 0..NP {
                let at = panel.add(p * args.panel_stride).cast::<__m256i>();
                let b = [
                    _mm512_cvtepi8_epi16(_mm256_loadu_si256(at)),
                    _mm512_cvtepi8_epi16(_mm256_loadu_si256(at.add(1))),
                ];
                for i in 0..MR {
                    let a = rows[i].cast::<i32>().add(pair).read_unaligned();
                    let a = _mm512_set1_epi32(a);
                    for v in 0..NV {
                        acc[i][p][v] = _mm512_add_epi32(acc[i][p][v], _mm512_madd_epi16(a, b[v]));
                    }
                }
            }
            panel = panel.add(STEP);
        }
        store(&acc, tile);
    }
}
