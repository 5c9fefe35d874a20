//! Tiles for AVX2 with FMA: f32, bytes through 16-bit products, bytes through AVX-VNNI.

use core::arch::x86_64::*;

use crate::{epilogue::Clamped, vector::prefetch};

use super::{F32Tiles, I8Tiles, TileArgs, narrow, tail_word, tap_rows, tap_steps, tiles, widen_halves};

/// Vectors of 8 lanes per panel row.
const NV: usize = 2;
const NR: usize = 8 * NV;

pub(crate) static F32: F32Tiles = tiles!(f32_tile / f32_half + f32_clamped / f32_clamped_half: 1 2 3 4 5 6);
pub(crate) static U8I8: I8Tiles =
    I8Tiles { narrow: Some(&narrow::AVX2), ..tiles!(u8i8_tile, Some(widen_halves); 1 2 3 4 5) };
pub(crate) static U8I8_VNNI: I8Tiles = I8Tiles { steps: true, ..tiles!(vnni_tile: 1 2 3 4 5 6) };

/// Sums of the first `V` vectors of a panel's columns.
///
/// # Safety
/// See [`super::TileFn`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_sums<const MR: usize, const NP: usize, const V: usize>(
    args: &TileArgs<f32, f32>,
) -> [[[__m256; V]; NP]; MR] {
    let mut acc = [[[_mm256_setzero_ps(); V]; NP]; MR];
    // SAFETY: pieces of `kc` elements and panels of `taps * kc * NR` elements are readable, by the contract.
    unsafe {
        let (mut panel, mut ahead) = (args.panel, args.ahead);
        for t in 0..args.taps {
            let rows = tap_rows::<MR, _, _>(args, t);
            for k in 0..args.kc {
                prefetch(ahead);
                ahead = ahead.wrapping_add(args.ahead_step);
                for p in 0..NP {
                    let at = panel.add(p * args.panel_stride);
                    let mut b = [_mm256_setzero_ps(); V];
                    for v in 0..V {
                        b[v] = _mm256_loadu_ps(at.add(8 * v));
                    }
                    for i in 0..MR {
                        let a = _mm256_set1_ps(*rows[i].add(k));
                        for v in 0..V {
                            acc[i][p][v] = _mm256_fmadd_ps(a, b[v], acc[i][p][v]);
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
#[target_feature(enable = "avx2,fma")]
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
                    _mm256_storeu_ps(tile.add((i * NP + p) * NR + 8 * v), acc[i][p][v]);
                }
            }
        }
    }
}

/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_tile<const MR: usize, const NP: usize>(args: &TileArgs<f32, f32>, tile: *mut f32) {
    // SAFETY: the same contract.
    unsafe { f32_store::<MR, NP, NV>(args, tile) }
}

/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_half<const MR: usize, const NP: usize>(args: &TileArgs<f32, f32>, tile: *mut f32) {
    // SAFETY: the same contract.
    unsafe { f32_store::<MR, NP, { NV / 2 }>(args, tile) }
}

/// # Safety
/// See [`super::ClampedFn`].
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_clamped<const MR: usize>(args: &TileArgs<f32, f32>, to: &Clamped) {
    // SAFETY: the same contract.
    unsafe { to.store(f32_sums::<MR, 1, NV>(args)) }
}

/// # Safety
/// See [`super::ClampedFn`].
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_clamped_half<const MR: usize>(args: &TileArgs<f32, f32>, to: &Clamped) {
    // SAFETY: the same contract.
    unsafe { to.store(f32_sums::<MR, 1, { NV / 2 }>(args)) }
}

/// Products of pairs of 16-bit numbers are summed in 32 bits, exactly: of each four bytes the first and third, then
/// the second and fourth, as they lie in 16 bits of the weights.
///
/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "avx2")]
unsafe fn u8i8_tile<const MR: usize, const NP: usize>(args: &TileArgs<u8, i8>, tile: *mut i32) {
    const STEP: usize = 4 * NR;
    let mut acc = [[[_mm256_setzero_si256(); NV]; NP]; MR];
    // SAFETY: one widened piece of `kc` elements per row and panels of `kc * NR` elements are
    // readable, and the tile holds MR rows of NP * NR elements, by the contract.
    unsafe {
        let mut panel = args.panel;
        let rows = tap_rows::<MR, _, _>(args, 0);
        // A loop of two rounds per step: unrolled, the compiler adds both products first, which displaces sums.
        let mut above = _mm_cvtsi32_si128(8);
        for pair in 0..args.kc / 2 {
            for p in 0..NP {
                let at = panel.add(p * args.panel_stride).cast::<__m256i>();
                let mut b = [_mm256_setzero_si256(); NV];
                for v in 0..NV {
                    b[v] = _mm256_srai_epi16::<8>(_mm256_sll_epi16(_mm256_loadu_si256(at.add(v)), above));
                }
                for i in 0..MR {
                    let a = rows[i].cast::<i32>().add(pair).read_unaligned();
                    let a = _mm256_set1_epi32(a);
                    for v in 0..NV {
                        acc[i][p][v] = _mm256_add_epi32(acc[i][p][v], _mm256_madd_epi16(a, b[v]));
                    }
                }
            }
            above = _mm_xor_si128(above, _mm_cvtsi32_si128(8));
            panel = panel.add(pair % 2 * STEP);
        }
        for i in 0..MR {
            for p in 0..NP {
                for v in 0..NV {
                    let at = tile.add((i * NP + p) * NR + 8 * v);
                    _mm256_storeu_si256(at.cast(), acc[i][p][v]);
                }
            }
        }
    }
}

/// One step of four depth elements: `acc += a · b` for every row and panel.
///
/// # Safety
/// The step of every panel must be readable.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn vnni_step<const MR: usize, const NP: usize>(
    acc: &mut [[[__m256i; NV]; NP]; MR],
    a: [i32; MR],
    panel: *const i8,
    panel_stride: usize,
) {
    for p in 0..NP {
        // SAFETY: by the contract.
        let b = unsafe {
            let at = panel.add(p * panel_stride).cast::<__m256i>();
            [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))]
        };
        for i in 0..MR {
            let a = _mm256_set1_epi32(a[i]);
            for v in 0..NV {
                acc[i][p][v] = _mm256_dpbusd_avx_epi32(acc[i][p][v], a, b[v]);
            }
        }
    }
}

/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn vnni_tile<const MR: usize, const NP: usize>(args: &TileArgs<u8, i8>, tile: *mut i32) {
    const STEP: usize = 4 * NR;
    let mut acc = [[[_mm256_setzero_si256(); NV]; NP]; MR];
    // SAFETY: pieces of `kc` elements and panels with `kc` rounded up to the granule are
    // readable, and the tile holds MR rows of NP * NR elements, by the contract.
    unsafe {
        let mut panel = args.panel;
        let tail = args.kc % 4;
        let whole = args.kc - tail;
        for t in 0..args.taps {
            let (rows, from) = tap_steps::<MR, _, _>(args, t);
            for k in (from..from + whole).step_by(4) {
                let mut a = [0i32; MR];
                for i in 0..MR {
                    a[i] = rows[i].add(k).cast::<i32>().read_unaligned();
                }
                vnni_step(&mut acc, a, panel, args.panel_stride);
                panel = panel.add(STEP);
            }
            if tail > 0 {
                let mut a = [0i32; MR];
                for i in 0..MR {
                    a[i] = tail_word(rows[i].add(from), args.kc);
                }
                vnni_step(&mut acc, a, panel, args.panel_stride);
                panel = panel.add(STEP);
            }
        }
        for i in 0..MR {
            for p in 0..NP {
                for v in 0..NV {
                    _mm256_storeu_si256(tile.add((i * NP + p) * NR + 8 * v).cast(), acc[i][p][v]);
                }
            }
        }
    }
}
