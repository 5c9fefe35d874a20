//! Pooling, channels last. Taps in the padding are skipped, never read.

use crate::{
    bf16,
    epilogue::{Activation, activate_and_quantize},
    isa::per_isa,
    lanes::greater,
    operands::{Dequant, Indirect, MatMut, PAD, Quant},
};

fn check<A, B>(a: &Indirect<'_, A>, out: &MatMut<'_, B>) {
    assert_eq!(a.rows(), out.rows(), "input and output differ in pixels");
    assert_eq!(a.kc, out.cols(), "input and output differ in channels");
    a.validate();
}

/// Runs `f(first, width)` over blocks of channels: wide ones, then narrow ones, then single ones.
/// Each width is a constant in its own call, so that a block stays in registers.
macro_rules! blocks {
    ($channels:expr, $f:ident($($arg:expr),*)) => {{
        let mut first = 0;
        while first + 64 <= $channels {
            $f::<64, _, _, _>(first, $($arg),*);
            first += 64;
        }
        while first + 16 <= $channels {
            $f::<16, _, _, _>(first, $($arg),*);
            first += 16;
        }
        while first + 8 <= $channels {
            $f::<8, _, _, _>(first, $($arg),*);
            first += 8;
        }
        while first < $channels {
            $f::<1, _, _, _>(first, $($arg),*);
            first += 1;
        }
    }};
}

/// The `N` elements from `at` on.
///
/// # Panics
/// When they run past the end.
#[inline(always)]
fn array_at<const N: usize, A>(x: &[A], at: usize) -> &[A; N] {
    x[at..].first_chunk().expect("an offset runs past the input")
}

/// `join` of each pair, into a new array: conditional stores into the old one would not forward.
#[inline(always)]
fn join_lanes<const N: usize, A: Copy, C: Copy>(
    acc: &[C; N],
    x: &[A; N],
    join: impl Fn(C, A) -> C,
) -> [C; N] {
    core::array::from_fn(|j| join(acc[j], x[j]))
}

/// Folds the taps of `offsets` inside the input for channels `first..first + N` into `out`.
#[inline(always)]
fn block<const N: usize, A: Copy, B: Copy, C: Copy>(
    first: usize,
    base: &[A],
    offsets: &[u32],
    out: &mut [B],
    start: C,
    join: impl Fn(C, A) -> C,
    finish: impl Fn(&[C], &mut [B]),
) {
    let mut acc = [start; N];
    for &offset in offsets {
        if offset == PAD {
            continue;
        }
        acc = join_lanes(&acc, array_at(base, offset as usize + first), &join);
    }
    finish(&acc, &mut out[first..first + N]);
}

/// Runs `finish` on the fold of every block of channels of every row.
#[inline(always)]
fn pool<A: Copy, B: Copy, C: Copy>(
    a: &Indirect<'_, A>,
    out: &mut MatMut<'_, B>,
    start: C,
    join: impl Fn(C, A) -> C + Copy,
    finish: impl Fn(usize, &[C], &mut [B]),
) {
    for row in 0..out.rows() {
        let offsets = &a.offsets[row * a.taps..][..a.taps];
        let finish = |acc: &[C], out: &mut [B]| finish(row, acc, out);
        let out = out.row_mut(row);
        blocks!(a.kc, block(a.base, offsets, out, start, join, finish));
    }
}

macro_rules! max_pool {
    ($name:ident, $t:ty, $least:expr, $join:expr) => {
        per_isa! {
            /// The greatest element over each row's taps, per channel; the type's least value
            /// where a row has no tap inside the input.
            ///
            /// # Panics
            /// When `a` and `out` differ in shape.
            pub fn $name(a: &Indirect<'_, $t>, out: MatMut<'_, $t>) {
                let mut out = out;
                check(a, &out);
                pool(a, &mut out, $least, $join, |_, acc, out| out.copy_from_slice(acc));
            }
        }
    };
}

max_pool!(max_f32, f32, f32::NEG_INFINITY, greater);
max_pool!(max_u8, u8, u8::MIN, |a: u8, b: u8| a.max(b));
max_pool!(max_i8, i8, i8::MIN, |a: i8, b: i8| a.max(b));

per_isa! {
    /// [`max_f32`] on bits of bf16.
    ///
    /// # Panics
    /// When `a` and `out` differ in shape.
    pub fn max_bf16(a: &Indirect<'_, u16>, out: MatMut<'_, u16>) {
        let mut out = out;
        check(a, &out);
        let join = |acc: f32, x: u16| greater(acc, bf16::widen(x));
        pool(a, &mut out, f32::NEG_INFINITY, join, |_, acc, out| {
            for (y, max) in out.iter_mut().zip(acc) {
                *y = (max.to_bits() >> 16) as u16;
            }
        });
    }
}

per_isa! {
    /// Σ over each row's taps / `divisors[row]`, per channel.
    ///
    /// # Panics
    /// When `a`, `divisors` and `out` differ in shape.
    pub fn average_f32(a: &Indirect<'_, f32>, divisors: &[f32], out: MatMut<'_, f32>) {
        let mut out = out;
        check(a, &out);
        assert_eq!(divisors.len(), out.rows(), "one divisor per output pixel");
        pool(a, &mut out, 0.0f32, |acc, x| acc + x, |row, acc, out| {
            for (y, sum) in out.iter_mut().zip(acc) {
                *y = sum / divisors[row];
            }
        });
    }
}

per_isa! {
    /// The real average Σ over each row's taps / `divisors[row]`, requantized; padding counts as
    /// the real zero. Sums are exact: at most 2²³ taps.
    ///
    /// # Panics
    /// When `a`, `divisors` and `out` differ in shape.
    pub fn average_u8(a: &Indirect<'_, u8>, divisors: &[f32], input: Dequant, out: MatMut<'_, u8>, quant: Quant) {
        let mut out = out;
        check(a, &out);
        assert_eq!(divisors.len(), out.rows(), "one divisor per output pixel");
        let join = |acc: i32, x: u8| acc + (i32::from(x) - input.zero_point);
        pool(a, &mut out, 0i32, join, |row, acc, out| {
            requantize(acc, input.scale / divisors[row], out, quant);
        });
    }
}

/// Stores `sums * scale`, quantized.
#[inline(always)]
fn requantize(sums: &[i32], scale: f32, out: &mut [u8], quant: Quant) {
    let mut y = [0.0f32; 64];
    let y = &mut y[..sums.len()];
    for (y, &sum) in y.iter_mut().zip(sums) {
        *y = sum as f32 * scale;
    }
    activate_and_quantize(y, Activation::None, quant, 0, out);
}

/// Column sums of a `hw × c` matrix over channels `first..first + N`, passed to `finish`.
#[inline(always)]
fn column_block<const N: usize, A: Copy, B, C: Copy>(
    first: usize,
    x: &[A],
    c: usize,
    out: &mut [B],
    start: C,
    join: impl Fn(C, A) -> C,
    finish: impl Fn(&mut [C], &mut [B]),
) {
    let mut acc = [start; N];
    for row in x.chunks_exact(c) {
        acc = join_lanes(&acc, array_at(row, first), &join);
    }
    finish(&mut acc, &mut out[first..first + N]);
}

per_isa! {
    /// The mean over all `hw` pixels of each of `c` channels.
    ///
    /// # Panics
    /// When the lengths are not `hw * c` and `c`.
    pub fn global_average_f32(x: &[f32], hw: usize, c: usize, out: &mut [f32]) {
        assert_eq!(x.len(), hw * c, "input of {hw} pixels by {c} channels");
        assert_eq!(out.len(), c, "one output per channel");
        let join = |a: f32, b: f32| a + b;
        let finish = |acc: &mut [f32], out: &mut [f32]| {
            for (y, sum) in out.iter_mut().zip(acc) {
                *y = *sum / hw as f32;
            }
        };
        blocks!(c, column_block(x, c, out, 0.0f32, join, finish));
    }
}

per_isa! {
    /// [`global_average_f32`] of bits of bf16.
    ///
    /// # Panics
    /// When the lengths are not `hw * c` and `c`.
    pub fn global_average_bf16(x: &[u16], hw: usize, c: usize, out: &mut [f32]) {
        assert_eq!(x.len(), hw * c, "input of {hw} pixels by {c} channels");
        assert_eq!(out.len(), c, "one output per channel");
        let join = |a: f32, b: u16| a + bf16::widen(b);
        let finish = |acc: &mut [f32], out: &mut [f32]| {
            for (y, sum) in out.iter_mut().zip(acc) {
                *y = *sum / hw as f32;
            }
        };
        blocks!(c, column_block(x, c, out, 0.0f32, join, finish));
    }
}

per_isa! {
    /// [`global_average_f32`] on bytes, requantized; sums are exact up to 2²³ pixels.
    ///
    /// # Panics
    /// When the lengths are not `hw * c` and `c`.
    pub fn global_average_u8(x: &[u8], hw: usize, c: usize, input: Dequant, out: &mut [u8], quant: Quant) {
        assert_eq!(x.len(), hw * c, "input of {hw} pixels by {c} channels");
        assert_eq!(out.len(), c, "one output per channel");
        let join = |a: i32, b: u8| a + i32::from(b);
        let finish = |acc: &mut [i32], out: &mut [u8]| {
            let shift = (hw as i32).wrapping_mul(input.zero_point);
            acc.iter_mut().for_each(|sum| *sum = sum.wrapping_sub(shift));
            requantize(acc, input.scale / hw as f32, out, quant);
        };
        blocks!(c, column_block(x, c, out, 0i32, join, finish));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernels;
    use alloc::{vec, vec::Vec};
    use fastrand::Rng;

    #[test]
    fn every_isa_matches_naive_loops() {
        let mut rng = Rng::with_seed(7);
        for _ in 0..100 {
            let c = *rng.choice(&[1, 3, 8, 16, 31, 32, 33, 64, 70]).unwrap();
            let (m, taps) = (rng.usize(1..6), rng.usize(1..10));
            let bytes: Vec<u8> = (0..c * 7).map(|_| rng.u8(..)).collect();
            let offsets: Vec<u32> = (0..m * taps)
                .map(|i| {
                    // The first tap stays inside, so that no row is empty.
                    let pad = i % taps > 0 && rng.bool();
                    if pad { PAD } else { rng.u32(0..=(c * 6) as u32) }
                })
                .collect();
            let taps_of = |r: usize, ch: usize| -> Vec<u8> {
                let row = offsets[r * taps..][..taps].iter();
                row.filter(|&&o| o != PAD).map(|&o| bytes[o as usize + ch]).collect()
            };
            let reals: Vec<f32> = bytes.iter().map(|&b| f32::from(b)).collect();
            let signed: Vec<i8> = bytes.iter().map(|&b| (b ^ 128) as i8).collect();
            let divisors: Vec<f32> = (0..m).map(|r| taps_of(r, 0).len() as f32).collect();
            // Bytes have no more than the eight significant bits of bf16.
            let halves: Vec<u16> = reals.iter().map(|&x| crate::bf16::round(x)).collect();
            let ah = Indirect { base: &halves[..], offsets: &offsets, taps, kc: c, pad: &[] };
            let a = Indirect { base: &bytes[..], offsets: &offsets, taps, kc: c, pad: &[] };
            let af = Indirect { base: &reals[..], offsets: &offsets, taps, kc: c, pad: &[] };
            let ai = Indirect { base: &signed[..], offsets: &offsets, taps, kc: c, pad: &[] };
            let input = Dequant { scale: 0.5, zero_point: 3 };
            let quant = Quant::new(0.25, 10);
            for k in Kernels::all_available() {
                let mut u = vec![0u8; m * c];
                let mut i = vec![0i8; m * c];
                let mut f = vec![0f32; m * c];
                let mut h = vec![0u16; m * c];
                max_bf16(k, &ah, MatMut::new(&mut h, m, c, c));
                max_u8(k, &a, MatMut::new(&mut u, m, c, c));
                max_i8(k, &ai, MatMut::new(&mut i, m, c, c));
                max_f32(k, &af, MatMut::new(&mut f, m, c, c));
                for x in 0..m * c {
                    let want = taps_of(x / c, x % c).into_iter().max().unwrap();
                    assert_eq!((u[x], f[x]), (want, f32::from(want)));
                    assert_eq!(crate::bf16::widen(h[x]), f32::from(want));
                    assert_eq!(i[x], (want ^ 128) as i8);
                }
                average_f32(k, &af, &divisors, MatMut::new(&mut f, m, c, c));
                average_u8(k, &a, &divisors, input, MatMut::new(&mut u, m, c, c), quant);
                for x in 0..m * c {
                    let taps = taps_of(x / c, x % c);
                    let sum: f32 = taps.iter().map(|&b| f32::from(b)).sum();
                    assert_eq!(f[x], sum / taps.len() as f32);
                    let real = (sum / taps.len() as f32 - 3.0) * 0.5;
                    let want = (real * 4.0 + 10.0).clamp(0.0, 255.0);
                    assert!((f32::from(u[x]) - want).abs() < 0.501, "{} {want}", u[x]);
                }
                let mut mean = vec![0f32; c];
                let mut q = vec![0u8; c];
                global_average_f32(k, &reals, 7, c, &mut mean);
                let mut half = vec![0f32; c];
                global_average_bf16(k, &halves, 7, c, &mut half);
                assert_eq!(mean, half);
                global_average_u8(k, &bytes, 7, c, input, &mut q, quant);
                for ch in 0..c {
                    let sum: f32 = (0..7).map(|p| reals[p * c + ch]).sum();
                    assert_eq!(mean[ch], sum / 7.0);
                    let want = ((sum / 7.0 - 3.0) * 2.0 + 10.0).clamp(0.0, 255.0);
                    assert!((f32::from(q[ch]) - want).abs() < 0.501);
                }
            }
        }
    }

    #[test]
    fn integers_agree_on_every_isa() {
        let mut rng = Rng::with_seed(8);
        let bytes: Vec<u8> = (0..49 * 65).map(|_| rng.u8(..)).collect();
        let input = Dequant { scale: 0.013, zero_point: 77 };
        let mut seen: Option<Vec<u8>> = None;
        for k in Kernels::all_available() {
            let mut q = vec![0u8; 65];
            global_average_u8(k, &bytes, 49, 65, input, &mut q, Quant::new(0.004, 12));
            assert_eq!(*seen.get_or_insert_with(|| q.clone()), q);
        }
    }
}
