//! Tiles in plain Rust for any target.

use super::{F32Tiles, I8Tiles, TileArgs, tap_rows, tiles};

const NR: usize = 8;

pub(crate) static F32: F32Tiles = tiles!(f32_tile: 1 2 3 4);
pub(crate) static U8I8: I8Tiles = tiles!(u8i8_tile: 1 2 3 4);

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

/// Depth over which sums of byte products stay below 2²⁴, where f32 is exact.
const EXACT: usize = 512;

/// Bytes multiplied and summed as reals, exactly: every target has fast f32 lanes, few have
/// fast integer products.
///
/// # Safety
/// See [`super::TileFn`].
unsafe fn u8i8_tile<const MR: usize, const NP: usize>(args: &TileArgs<u8, i8>, tile: *mut i32) {
    for p in 0..NP {
        let mut total = [[0i32; NR]; MR];
        // SAFETY: pieces of `kc` elements and panels of `taps * kc * NR` elements are readable,
        // and the tile holds MR rows of NP * NR elements, by the contract.
        unsafe {
            let mut panel = args.panel.add(p * args.panel_stride);
            for t in 0..args.taps {
                let rows = tap_rows::<MR, _, _>(args, t);
                for start in (0..args.kc).step_by(EXACT) {
                    let mut acc = [[0.0f32; NR]; MR];
                    for k in start..args.kc.min(start + EXACT) {
                        let b = (*panel.cast::<[i8; NR]>()).map(f32::from);
                        for i in 0..MR {
                            let a = f32::from(*rows[i].add(k));
                            for j in 0..NR {
                                acc[i][j] += a * b[j];
                            }
                        }
                        panel = panel.add(NR);
                    }
                    for i in 0..MR {
                        for j in 0..NR {
                            total[i][j] = total[i][j].wrapping_add(acc[i][j] as i32);
                        }
                    }
                }
            }
            for (i, row) in total.iter().enumerate() {
                tile.add((i * NP + p) * NR).cast::<[i32; NR]>().write(*row);
            }
        }
    }
}
