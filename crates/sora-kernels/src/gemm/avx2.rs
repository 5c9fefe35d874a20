//! Tiles for AVX2 with FMA: f32, and bytes through 16-bit products.

use core::arch::x86_64::*;

use super::{F32Tiles, I8Tiles, TileArgs, tap_rows, tiles, widen_bytes};

/// Vectors of 8 lanes per panel row.
const NV: usize = 2;
const NR: usize = 8 * NV;

pub(crate) static F32: F32Tiles = tiles!(f32_tile: 1 2 3 4 5 6);
pub(crate) static U8I8: I8Tiles = tiles!(u8i8_tile, Some(widen_bytes); 1 2 3 4 5 6);

/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_tile<const MR: usize, const NP: usize>(args: &TileArgs<f32, f32>, tile: *mut f32) {
    let mut acc = [[[_mm256_setzero_ps(); NV]; NP]; MR];
    // SAFETY: pieces of `kc` elements and panels of `taps * kc * NR` elements are readable,
    // and the tile holds MR rows of NP * NR elements, by the contract.
    unsafe {
        let mut panel = args.panel;
        for t in 0..args.taps {
            let rows = tap_rows::<MR, _, _>(args, t);
            for k in 0..args.kc {
                for p in 0..NP {
                    let at = panel.add(p * args.panel_stride);
                    let b = [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))];
                    for i in 0..MR {
                        let a = _mm256_set1_ps(*rows[i].add(k));
                        for v in 0..NV {
                            acc[i][p][v] = _mm256_fmadd_ps(a, b[v], acc[i][p][v]);
                        }
                    }
                }
                panel = panel.add(NR);
            }
        }
        for i in 0..MR {
            for p in 0..NP {
                for v in 0..NV {
                    _mm256_storeu_ps(tile.add((i * NP + p) * NR + 8 * v), acc[i][p][v]);
                }
            }
        }
    }
}

/// Products of pairs of 16-bit numbers are summed in 32 bits, exactly.
///
/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "avx2")]
unsafe fn u8i8_tile<const MR: usize, const NP: usize>(args: &TileArgs<u8, i8>, tile: *mut i32) {
    const STEP: usize = 2 * NR;
    let mut acc = [[[_mm256_setzero_si256(); NV]; NP]; MR];
    // SAFETY: one widened piece of `kc` elements per row and panels of `kc * NR` elements are
    // readable, and the tile holds MR rows of NP * NR elements, by the contract.
    unsafe {
        let mut panel = args.panel;
        let rows = tap_rows::<MR, _, _>(args, 0);
        for pair in 0..args.kc / 2 {
            for p in 0..NP {
                let at = panel.add(p * args.panel_stride).cast::<__m128i>();
                let b = [
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(at)),
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(at.add(1))),
                ];
                for i in 0..MR {
                    let a = rows[i].cast::<i32>().add(pair).read_unaligned();
                    let a = _mm256_set1_epi32(a);
                    for v in 0..NV {
                        acc[i][p][v] = _mm256_add_epi32(acc[i][p][v], _mm256_madd_epi16(a, b[v]));
                    }
                }
            }
            panel = panel.add(STEP);
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
