//! Tiles for AArch64: f32, bytes through widening products, through `sdot` and through `usmmla`.

use core::arch::aarch64::*;

use super::{F32Tiles, I8Tiles, TileArgs, tail_bytes, tap_rows, tiles};

/// Vectors of 4 lanes per panel row.
const NV: usize = 4;
const NR: usize = 4 * NV;

pub(crate) static F32: F32Tiles = tiles!(f32_tile: 1 2 3 4 5 6);
pub(crate) static U8I8: I8Tiles = tiles!(u8i8_tile: 1 2 3 4 5 6);
pub(crate) static U8I8_DOT: I8Tiles = tiles!(dot_tile: 1 2 3 4 5 6);
pub(crate) static U8I8_MM: I8Tiles = tiles!(mm_tile: 1 2 3 4 5 6);

/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "neon")]
unsafe fn f32_tile<const MR: usize, const NP: usize>(args: &TileArgs<f32, f32>, tile: *mut f32) {
    let mut acc = [[[vdupq_n_f32(0.0); NV]; NP]; MR];
    // SAFETY: pieces of `kc` elements and panels of `taps * kc * NR` elements are readable,
    // and the tile holds MR rows of NP * NR elements, by the contract.
    unsafe {
        let mut panel = args.panel;
        for t in 0..args.taps {
            let rows = tap_rows::<MR, _, _>(args, t);
            for k in 0..args.kc {
                for p in 0..NP {
                    let at = panel.add(p * args.panel_stride);
                    let b =
                        [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))];
                    for i in 0..MR {
                        let a = vdupq_n_f32(*rows[i].add(k));
                        for v in 0..NV {
                            acc[i][p][v] = vfmaq_f32(acc[i][p][v], a, b[v]);
                        }
                    }
                }
                panel = panel.add(NR);
            }
        }
        for i in 0..MR {
            for p in 0..NP {
                for v in 0..NV {
                    vst1q_f32(tile.add((i * NP + p) * NR + 4 * v), acc[i][p][v]);
                }
            }
        }
    }
}

/// # Safety
/// The tile must hold MR rows of NP * NR elements.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store<const MR: usize, const NP: usize>(acc: &[[[int32x4_t; NV]; NP]; MR], tile: *mut i32) {
    for i in 0..MR {
        for p in 0..NP {
            for v in 0..NV {
                // SAFETY: within the tile, by the contract.
                unsafe { vst1q_s32(tile.add((i * NP + p) * NR + 4 * v), acc[i][p][v]) };
            }
        }
    }
}

/// Bytes are widened to 16 bits and multiplied into 32 bits, exactly.
///
/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "neon")]
unsafe fn u8i8_tile<const MR: usize, const NP: usize>(args: &TileArgs<u8, i8>, tile: *mut i32) {
    let mut acc = [[[vdupq_n_s32(0); NV]; NP]; MR];
    // SAFETY: pieces of `kc` elements and panels of `taps * kc * NR` elements are readable,
    // and the tile holds MR rows of NP * NR elements, by the contract.
    unsafe {
        let mut panel = args.panel;
        for t in 0..args.taps {
            let rows = tap_rows::<MR, _, _>(args, t);
            for k in 0..args.kc {
                for p in 0..NP {
                    let b = vld1q_s8(panel.add(p * args.panel_stride));
                    let low = vmovl_s8(vget_low_s8(b));
                    let high = vmovl_high_s8(b);
                    for i in 0..MR {
                        let a = i16::from(*rows[i].add(k));
                        let a4 = vdup_n_s16(a);
                        let a8 = vdupq_n_s16(a);
                        let c = &mut acc[i][p];
                        c[0] = vmlal_s16(c[0], vget_low_s16(low), a4);
                        c[1] = vmlal_high_s16(c[1], low, a8);
                        c[2] = vmlal_s16(c[2], vget_low_s16(high), a4);
                        c[3] = vmlal_high_s16(c[3], high, a8);
                    }
                }
                panel = panel.add(NR);
            }
        }
        store(&acc, tile);
    }
}

/// Sums of four signed byte products per lane, added to `acc`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn sdot(acc: int32x4_t, b: int8x16_t, a: int8x16_t) -> int32x4_t {
    let mut acc = acc;
    // SAFETY: one register instruction of the enabled feature; no memory, no flags.
    unsafe {
        core::arch::asm!(
            "sdot {acc:v}.4s, {b:v}.16b, {a:v}.16b",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// One step of four depth elements.
///
/// # Safety
/// The step of every panel must be readable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot_step<const MR: usize, const NP: usize>(
    acc: &mut [[[int32x4_t; NV]; NP]; MR],
    a: [u32; MR],
    panel: *const i8,
    panel_stride: usize,
) {
    for p in 0..NP {
        // SAFETY: by the contract.
        let b = unsafe {
            let at = panel.add(p * panel_stride);
            [vld1q_s8(at), vld1q_s8(at.add(16)), vld1q_s8(at.add(32)), vld1q_s8(at.add(48))]
        };
        for i in 0..MR {
            // Flipping the top bit subtracts 128 from each unsigned byte.
            let a = vreinterpretq_s8_u32(vdupq_n_u32(a[i] ^ 0x8080_8080));
            for v in 0..NV {
                acc[i][p][v] = sdot(acc[i][p][v], b[v], a);
            }
        }
    }
}

/// `sdot` is signed × signed, so it multiplies a − 128; the accumulators start at
/// 128 · Σb to make up for it.
///
/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot_tile<const MR: usize, const NP: usize>(args: &TileArgs<u8, i8>, tile: *mut i32) {
    const STEP: usize = 4 * NR;
    let mut acc = [[[vdupq_n_s32(0); NV]; NP]; MR];
    // SAFETY: pieces of `kc` elements, panels with `kc` rounded up to the granule and NP * NR
    // column sums are readable, and the tile holds MR rows of NP * NR elements, by the contract.
    unsafe {
        for p in 0..NP {
            for v in 0..NV {
                let start = vshlq_n_s32::<7>(vld1q_s32(args.sums.add(p * NR + 4 * v)));
                for row in &mut acc {
                    row[p][v] = start;
                }
            }
        }
        let mut panel = args.panel;
        let tail = args.kc % 4;
        let whole = args.kc - tail;
        for t in 0..args.taps {
            let rows = tap_rows::<MR, _, _>(args, t);
            let mut k = 0;
            while k < whole {
                let mut a = [0u32; MR];
                for i in 0..MR {
                    a[i] = rows[i].add(k).cast::<u32>().read_unaligned();
                }
                dot_step(&mut acc, a, panel, args.panel_stride);
                panel = panel.add(STEP);
                k += 4;
            }
            if tail > 0 {
                let mut a = [0u32; MR];
                for i in 0..MR {
                    a[i] = u32::from_le_bytes(tail_bytes(rows[i].add(whole), tail));
                }
                dot_step(&mut acc, a, panel, args.panel_stride);
                panel = panel.add(STEP);
            }
        }
        store(&acc, tile);
    }
}

/// `acc += a · bᵀ` for 2×8 unsigned by 2×8 signed bytes: a 2×2 product, rows first.
#[inline]
#[target_feature(enable = "neon,i8mm")]
pub(crate) fn usmmla(acc: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    let mut acc = acc;
    // SAFETY: one register instruction of the enabled feature; no memory, no flags.
    unsafe {
        core::arch::asm!(
            "usmmla {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// Pairs of rows times pairs of columns, eight depth elements at a time. The second row of an odd
/// tile's last pair is zero.
///
/// # Safety
/// See [`super::TileFn`].
#[target_feature(enable = "neon,i8mm")]
unsafe fn mm_tile<const MR: usize, const NP: usize>(args: &TileArgs<u8, i8>, tile: *mut i32) {
    const STEP: usize = 8 * NR;
    const PAIRS: usize = NR / 2;
    // Pairs of rows of the highest tile.
    const ROWS: usize = 3;
    let pairs = MR.div_ceil(2);
    for p in 0..NP {
        let mut acc = [[vdupq_n_s32(0); PAIRS]; ROWS];
        // SAFETY: pieces of `kc` elements and panels with `kc` rounded up to the granule are
        // readable, and the tile holds MR rows of NP * NR elements, by the contract.
        unsafe {
            let mut panel = args.panel.add(p * args.panel_stride);
            for t in 0..args.taps {
                let rows = tap_rows::<MR, _, _>(args, t);
                for k in (0..args.kc).step_by(8) {
                    let left = args.kc - k;
                    let eight = |i: usize| {
                        if i >= MR {
                            vdup_n_u8(0)
                        } else if left >= 8 {
                            vld1_u8(rows[i].add(k))
                        } else {
                            vld1_u8(tail_bytes::<8>(rows[i].add(k), left).as_ptr())
                        }
                    };
                    let mut a = [vdupq_n_u8(0); ROWS];
                    for i in 0..pairs {
                        a[i] = vcombine_u8(eight(2 * i), eight(2 * i + 1));
                    }
                    for v in 0..PAIRS {
                        let b = vld1q_s8(panel.add(16 * v));
                        for i in 0..pairs {
                            acc[i][v] = usmmla(acc[i][v], a[i], b);
                        }
                    }
                    panel = panel.add(STEP);
                }
            }
            for i in 0..MR {
                for v in 0..PAIRS {
                    let sums = acc[i / 2][v];
                    let row = if i % 2 == 0 { vget_low_s32(sums) } else { vget_high_s32(sums) };
                    vst1_s32(tile.add((i * NP + p) * NR + 2 * v), row);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Kernels;

    /// Tests skip the levels that are not detected; a run that names one must not pass without it.
    #[test]
    fn the_level_that_the_environment_names_is_detected() {
        if let Err(error) = Kernels::selected() {
            panic!("{error}");
        }
    }
}
