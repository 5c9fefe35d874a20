//! Depthwise convolution, channels last, one weight per channel and tap.

use alloc::vec::Vec;

use crate::{
    Kernels,
    epilogue::{EpilogueF32, EpilogueI32, Finish, Place, Scratch, finish_f32, finish_i32},
    isa::per_isa,
    operands::{Indirect, Output, PAD},
    table::{Family, select},
};

/// Output pixels computed together, so that a weight is loaded once for all.
pub(crate) const PIXELS: usize = 4;

/// Weights `[channels / nr][taps][nr]`, padded with zeros.
#[derive(Clone, Debug)]
struct Weights<B> {
    data: Vec<B>,
    taps: usize,
    channels: usize,
    nr: usize,
}

impl<B: Copy + Default> Weights<B> {
    fn pack(nr: usize, taps: usize, channels: usize, value: impl Fn(usize, usize) -> B) -> Self {
        let mut data = Vec::with_capacity(channels.next_multiple_of(nr) * taps);
        for first in (0..channels).step_by(nr) {
            for tap in 0..taps {
                for channel in first..first + nr {
                    let inside = channel < channels;
                    data.push(if inside { value(tap, channel) } else { B::default() });
                }
            }
        }
        Self { data, taps, channels, nr }
    }
}

fn lanes(kernels: Kernels, family: Family) -> usize {
    select(kernels, family).map_or(8, |row| row.tile.nr)
}

/// Packed weights of [`depthwise_f32`].
#[derive(Clone, Debug)]
pub struct PackedDwF32(Weights<f32>);

/// Packed weights of [`depthwise_u8i8`]; stored in 16 bits, ready to multiply.
#[derive(Clone, Debug)]
pub struct PackedDwI8 {
    weights: Weights<i16>,
    sums: Vec<i32>,
}

impl PackedDwF32 {
    /// Packs `value(tap, channel)`.
    pub fn pack(kernels: Kernels, taps: usize, channels: usize, value: impl Fn(usize, usize) -> f32) -> Self {
        let nr = lanes(kernels, Family::DepthwiseF32);
        Self(Weights::pack(nr, taps, channels, value))
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.0.data[..])
    }
}

impl PackedDwI8 {
    /// Packs `value(tap, channel)`.
    pub fn pack(kernels: Kernels, taps: usize, channels: usize, value: impl Fn(usize, usize) -> i8) -> Self {
        let nr = lanes(kernels, Family::DepthwiseU8I8);
        let sum = |c| (0..taps).map(|t| i32::from(value(t, c))).sum();
        let sums = (0..channels).map(sum).collect();
        let weights = Weights::pack(nr, taps, channels, |t, c| i16::from(value(t, c)));
        Self { weights, sums }
    }

    /// Σ over the taps, per channel; what [`crate::fold_zero_point`] needs.
    pub fn col_sums(&self) -> &[i32] {
        &self.sums
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.weights.data[..])
    }
}

/// Accumulates `P` pixels by `N` channels; `pieces` is `[taps][P]`.
///
/// # Safety
/// Each pointer must start `N` readable elements.
#[inline(always)]
unsafe fn tile<const P: usize, const N: usize, A: Copy, B: Copy, C: Copy + Default>(
    pieces: &[*const A],
    weights: &[B],
    acc: &mut [C],
    mac: impl Fn(C, A, B) -> C,
) {
    let mut sum = [[C::default(); N]; P];
    let (weights, _) = weights.as_chunks::<N>();
    let (pieces, _) = pieces.as_chunks::<P>();
    for (w, pieces) in weights.iter().zip(pieces) {
        let w = *w;
        for i in 0..P {
            // SAFETY: by the contract; arrays of numbers may be read unaligned.
            let x = unsafe { pieces[i].cast::<[A; N]>().read_unaligned() };
            for j in 0..N {
                sum[i][j] = mac(sum[i][j], x[j], w[j]);
            }
        }
    }
    acc[..P * N].copy_from_slice(sum.as_flattened());
}

/// Pieces of one group of pixels, `[taps][pixels]`.
struct Pieces<'a, A> {
    pieces: Vec<&'a [A]>,
    /// Where the current block of channels starts in each piece.
    starts: Vec<*const A>,
    /// The last, incomplete block of each piece, padded.
    tail: Vec<A>,
}

/// Tiles over all channels of up to [`PIXELS`] pixels, each passed to `finish` with its first
/// channel and its channels.
#[inline(always)]
fn pixels<const N: usize, A: Copy + Default, B: Copy, C: Copy + Default>(
    p: &mut Pieces<'_, A>,
    rows: usize,
    w: &Weights<B>,
    mac: impl Fn(C, A, B) -> C + Copy,
    scratch: &mut Scratch<C>,
    mut finish: impl FnMut(&mut Scratch<C>, usize, usize),
) {
    for (g, weights) in w.data.chunks_exact(w.taps * N).enumerate() {
        let first = g * N;
        let cols = N.min(w.channels - first);
        p.starts.clear();
        if cols == N {
            p.starts.extend(p.pieces.iter().map(|x| x[first..first + N].as_ptr()));
        } else {
            p.tail.clear();
            p.tail.resize(p.pieces.len() * N, A::default());
            for (to, x) in p.tail.chunks_exact_mut(N).zip(&p.pieces) {
                to[..cols].copy_from_slice(&x[first..first + cols]);
            }
            p.starts.extend(p.tail.chunks_exact(N).map(<[A]>::as_ptr));
        }
        let acc = &mut scratch.acc;
        // SAFETY: every start begins a slice of N elements that outlives the call.
        unsafe {
            match rows {
                1 => tile::<1, N, A, B, C>(&p.starts, weights, acc, mac),
                2 => tile::<2, N, A, B, C>(&p.starts, weights, acc, mac),
                3 => tile::<3, N, A, B, C>(&p.starts, weights, acc, mac),
                _ => tile::<PIXELS, N, A, B, C>(&p.starts, weights, acc, mac),
            }
        }
        finish(scratch, first, cols);
    }
}

/// Checks shapes, gathers the pieces of each group of pixels and runs `group`.
fn drive<'a, A, B, C, E: Finish<C>>(
    a: &Indirect<'a, A>,
    w: &Weights<B>,
    ep: &E,
    out: &mut Output<'_>,
    mut group: impl FnMut(&mut Pieces<'a, A>, usize, usize, &mut Output<'_>),
) {
    let (m, channels) = (out.rows(), out.cols());
    assert_eq!(a.rows(), m, "input and output differ in pixels");
    assert!(
        (a.taps, a.kc, channels) == (w.taps, w.channels, w.channels),
        "input has {} taps of {} channels, weights {} of {}, output {channels}",
        a.taps,
        a.kc,
        w.taps,
        w.channels
    );
    a.validate(true);
    ep.validate(m, channels);
    let capacity = PIXELS * w.taps;
    let mut p = Pieces {
        pieces: Vec::with_capacity(capacity),
        starts: Vec::with_capacity(capacity),
        tail: Vec::new(),
    };
    for first in (0..m).step_by(PIXELS) {
        let rows = PIXELS.min(m - first);
        p.pieces.clear();
        for tap in 0..w.taps {
            p.pieces.extend((first..first + rows).map(|row| match a.offsets[row * a.taps + tap] {
                PAD => &a.pad[..a.kc],
                offset => &a.base[offset as usize..][..a.kc],
            }));
        }
        group(&mut p, first, rows, out);
    }
}

per_isa! {
    fn group_f32 [const N: usize] (kernels: Kernels, w: &Weights<f32>, ep: &EpilogueF32<'_>, pieces: &mut Pieces<'_, f32>, row: usize, rows: usize, scratch: &mut Scratch<f32>, out: &mut Output<'_>) {
        let mac = |c: f32, a: f32, b: f32| c + a * b;
        pixels::<N, f32, f32, f32>(pieces, rows, w, mac, scratch, |scratch, col, cols| {
            finish_f32::<N>(kernels, ep, scratch, 0, Place { row, rows, col, cols, n0: 0 }, out);
        });
    }
}

per_isa! {
    fn group_u8i8 [const N: usize] (kernels: Kernels, w: &Weights<i16>, ep: &EpilogueI32<'_>, pieces: &mut Pieces<'_, u8>, row: usize, rows: usize, scratch: &mut Scratch<i32>, out: &mut Output<'_>) {
        // |255 · −128| fits 16 bits.
        let mac = |c: i32, a: u8, b: i16| c + i32::from(i16::from(a) * b);
        pixels::<N, u8, i16, i32>(pieces, rows, w, mac, scratch, |scratch, col, cols| {
            finish_i32::<N>(kernels, ep, scratch, 0, Place { row, rows, col, cols, n0: 0 }, out);
        });
    }
}

/// `out[r][c] = epilogue(Σₜ a[r][t][c] · w[t][c])` in f32; the same bits on every instruction set.
///
/// # Panics
/// When the shapes of `a`, `w`, `ep` and `out` disagree.
pub fn depthwise_f32(
    kernels: Kernels,
    a: &Indirect<'_, f32>,
    w: &PackedDwF32,
    ep: &EpilogueF32<'_>,
    mut out: Output<'_>,
) {
    let group = match w.0.nr {
        8 => group_f32::<8>,
        16 => group_f32::<16>,
        _ => group_f32::<32>,
    };
    let mut scratch = Scratch::new(0.0);
    drive(a, &w.0, ep, &mut out, |pieces, row, rows, out| {
        group(kernels, kernels, &w.0, ep, pieces, row, rows, &mut scratch, out);
    });
}

/// `out[r][c] = epilogue(Σₜ a[r][t][c] · w[t][c])` for unsigned bytes by signed bytes, summed in i32.
///
/// # Panics
/// When the shapes of `a`, `w`, `ep` and `out` disagree.
pub fn depthwise_u8i8(
    kernels: Kernels,
    a: &Indirect<'_, u8>,
    w: &PackedDwI8,
    ep: &EpilogueI32<'_>,
    mut out: Output<'_>,
) {
    let group = match w.weights.nr {
        8 => group_u8i8::<8>,
        16 => group_u8i8::<16>,
        _ => group_u8i8::<32>,
    };
    let mut scratch = Scratch::new(0);
    drive(a, &w.weights, ep, &mut out, |pieces, row, rows, out| {
        group(kernels, kernels, &w.weights, ep, pieces, row, rows, &mut scratch, out);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, MatMut, Quant, fold_zero_point};
    use alloc::vec;
    use fastrand::Rng;

    #[test]
    fn every_isa_matches_naive_loops() {
        let mut rng = Rng::with_seed(5);
        for _ in 0..120 {
            let c = *rng.choice(&[1, 3, 8, 15, 16, 17, 24, 32, 40, 64, 70]).unwrap();
            let (m, taps) = (rng.usize(1..14), rng.usize(1..10));
            let base: Vec<u8> = (0..c * 7 + rng.usize(0..9)).map(|_| rng.u8(..)).collect();
            let offsets: Vec<u32> = (0..m * taps)
                .map(|_| {
                    let at = rng.usize(0..=base.len() - c) as u32;
                    if rng.usize(0..4) == 0 { PAD } else { at }
                })
                .collect();
            let zp = rng.u8(..);
            let pad = vec![zp; c];
            let w: Vec<i8> = (0..taps * c).map(|_| rng.i8(..)).collect();
            let bias: Vec<i32> = (0..c).map(|_| rng.i32(-999..999)).collect();
            let scale: Vec<f32> = (0..c).map(|_| rng.f32() * 1e-2).collect();
            let exact = |r: usize, ch: usize| -> i32 {
                let term = |t: usize| {
                    let x = match offsets[r * taps + t] {
                        PAD => i32::from(zp),
                        o => i32::from(base[o as usize + ch]),
                    };
                    (x - i32::from(zp)) * i32::from(w[t * c + ch])
                };
                (0..taps).map(term).sum()
            };
            let a = Indirect { base: &base, offsets: &offsets, taps, kc: c, pad: &pad };
            let base_f: Vec<f32> = base.iter().map(|&x| f32::from(x) - f32::from(zp)).collect();
            let pad_f = vec![0.0; c];
            let af = Indirect { base: &base_f, offsets: &offsets, taps, kc: c, pad: &pad_f };
            let mut bytes: Option<Vec<u8>> = None;
            for kernels in Kernels::all_available() {
                let packed = PackedDwI8::pack(kernels, taps, c, |t, ch| w[t * c + ch]);
                let folded = fold_zero_point(Some(&bias), packed.col_sums(), i32::from(zp));
                let ep = EpilogueI32 {
                    bias: Some(&folded),
                    scale: &scale,
                    residual: None,
                    activation: Activation::None,
                };
                let mut y = vec![0.0f32; m * c];
                let out = Output::F32(MatMut::new(&mut y, m, c, c));
                depthwise_u8i8(kernels, &a, &packed, &ep, out);
                for r in 0..m {
                    for ch in 0..c {
                        let want = (exact(r, ch) + bias[ch]) as f32 * scale[ch];
                        assert_eq!(y[r * c + ch], want);
                    }
                }
                let mut q = vec![0u8; m * c];
                let out = Output::U8(MatMut::new(&mut q, m, c, c), Quant::new(0.3, 7));
                depthwise_u8i8(kernels, &a, &packed, &ep, out);
                assert_eq!(*bytes.get_or_insert_with(|| q.clone()), q);

                // Integers this small are exact in f32 too.
                let packed = PackedDwF32::pack(kernels, taps, c, |t, ch| f32::from(w[t * c + ch]));
                let mut y = vec![0.0f32; m * c];
                let out = Output::F32(MatMut::new(&mut y, m, c, c));
                depthwise_f32(kernels, &af, &packed, &EpilogueF32::default(), out);
                for r in 0..m {
                    for ch in 0..c {
                        assert_eq!(y[r * c + ch], exact(r, ch) as f32);
                    }
                }
            }
        }
    }
}
