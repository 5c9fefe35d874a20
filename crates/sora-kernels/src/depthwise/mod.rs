//! Depthwise convolution, channels last, one weight per channel and tap.

pub(crate) mod slide_f32;
pub(crate) mod slide_u8;
pub(crate) mod sliding;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

use alloc::vec::Vec;

use crate::{
    Kernels,
    epilogue::{EpilogueF32, EpilogueI32, Finish, Place, Scratch, finish_f32, finish_i32},
    gemm::MAX_TILE,
    operands::{Indirect, Output},
    table::{Tile, depthwise_f32_tiles, depthwise_u8i8_tiles},
};

/// Output pixels computed together, so that a weight is loaded once for all.
pub(crate) const PIXELS: usize = 4;

/// Weights `[channels / nr][taps][nr]`, padded with zeros.
#[derive(Clone, Debug)]
struct Weights<A: 'static, B: 'static, C: 'static> {
    data: Vec<B>,
    taps: usize,
    channels: usize,
    nr: usize,
    tiles: &'static DwTiles<A, B, C>,
}

impl<A, B: Copy + Default, C> Weights<A, B, C> {
    fn pack(
        (tile, tiles): (Tile, &'static DwTiles<A, B, C>),
        taps: usize,
        channels: usize,
        value: impl Fn(usize, usize) -> B,
    ) -> Self {
        let nr = tile.nr;
        let mut data = Vec::with_capacity(channels.next_multiple_of(nr) * taps);
        for first in (0..channels).step_by(nr) {
            for tap in 0..taps {
                for channel in first..first + nr {
                    let inside = channel < channels;
                    data.push(if inside { value(tap, channel) } else { B::default() });
                }
            }
        }
        Self { data, taps, channels, nr, tiles }
    }
}

/// Packed weights of [`depthwise_f32`].
#[derive(Clone, Debug)]
pub struct PackedDwF32(Weights<f32, f32, f32>);

/// Packed weights of [`depthwise_u8i8`]; stored in 16 bits, ready to multiply.
#[derive(Clone, Debug)]
pub struct PackedDwI8 {
    weights: Weights<u8, i16, i32>,
    sums: Vec<i32>,
}

impl PackedDwF32 {
    /// Packs `value(tap, channel)`.
    pub fn pack(kernels: Kernels, taps: usize, channels: usize, value: impl Fn(usize, usize) -> f32) -> Self {
        Self(Weights::pack(depthwise_f32_tiles(kernels), taps, channels, value))
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.0.data[..])
    }
}

impl PackedDwI8 {
    /// Packs `value(tap, channel)`.
    pub fn pack(kernels: Kernels, taps: usize, channels: usize, value: impl Fn(usize, usize) -> i8) -> Self {
        let sum = |c| (0..taps).map(|t| i32::from(value(t, c))).sum();
        let sums = (0..channels).map(sum).collect();
        let weights =
            Weights::pack(depthwise_u8i8_tiles(kernels), taps, channels, |t, c| i16::from(value(t, c)));
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

/// Starts of pieces, `[taps][pixels]`, each of at least `len` readable elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Starts<'a, A> {
    pointers: &'a [*const A],
    len: usize,
}

impl<A> Starts<'_, A> {
    /// Element `first` of piece `i`.
    ///
    /// # Safety
    /// There must be a piece `i` of at least `first` elements.
    #[inline(always)]
    unsafe fn start(&self, i: usize, first: usize) -> *const A {
        // SAFETY: by the contract.
        unsafe { self.pointers.get_unchecked(i).add(first) }
    }
}

/// Overwrites `[pixels][lanes]` accumulators with the sums over all taps of channels from `first`
/// on; weights are `[taps][lanes]`.
///
/// # Safety
/// The instruction set of the kernel's row must run here; there must be a start per tap and pixel
/// with `first + lanes` readable elements, and room for the accumulators.
pub(crate) type DwTile<A, B, C> = unsafe fn(Starts<'_, A>, usize, &[B], *mut C);

/// The instances of one micro-kernel: `by_pixels[i]` computes `i + 1` pixels.
#[derive(Debug)]
pub struct DwTiles<A: 'static, B: 'static, C: 'static> {
    by_pixels: [DwTile<A, B, C>; PIXELS],
}

/// Tiles of real weights.
pub type DwF32Tiles = DwTiles<f32, f32, f32>;
/// Tiles of byte weights, widened to 16 bits.
pub type DwI8Tiles = DwTiles<u8, i16, i32>;

/// The instances of `$f::<PIXELS>`.
macro_rules! pixel_tiles {
    ($f:ident) => {
        $crate::depthwise::DwTiles { by_pixels: [$f::<1>, $f::<2>, $f::<3>, $f::<4>] }
    };
}
#[cfg(target_arch = "x86_64")]
use pixel_tiles;

pub(crate) static PORTABLE_F32: DwF32Tiles = pixel_tiles!(portable_f32);
pub(crate) static PORTABLE_U8I8: DwI8Tiles = pixel_tiles!(portable_u8i8);

/// # Safety
/// See [`DwTile`]; 8 lanes.
#[inline(always)]
unsafe fn portable<const P: usize, A: Copy, B: Copy, C: Copy>(
    x: Starts<'_, A>,
    first: usize,
    w: &[B],
    zero: C,
    acc: *mut C,
    mac: impl Fn(C, A, B) -> C,
) {
    let (taps, _) = w.as_chunks::<8>();
    let mut sum = [[zero; 8]; P];
    for (t, w) in taps.iter().enumerate() {
        for i in 0..P {
            // SAFETY: `first + 8` elements are readable from each start; any alignment.
            let x = unsafe { x.start(t * P + i, first).cast::<[A; 8]>().read_unaligned() };
            for j in 0..8 {
                sum[i][j] = mac(sum[i][j], x[j], w[j]);
            }
        }
    }
    // SAFETY: there is room for P × 8 accumulators.
    unsafe { acc.cast::<[[C; 8]; P]>().write_unaligned(sum) };
}

/// # Safety
/// See [`DwTile`]; 8 lanes.
unsafe fn portable_f32<const P: usize>(x: Starts<'_, f32>, first: usize, w: &[f32], acc: *mut f32) {
    // SAFETY: the same contract.
    unsafe { portable::<P, _, _, _>(x, first, w, 0.0, acc, |c, a, b| c + a * b) }
}

/// # Safety
/// See [`DwTile`]; 8 lanes.
unsafe fn portable_u8i8<const P: usize>(x: Starts<'_, u8>, first: usize, w: &[i16], acc: *mut i32) {
    // |255 · −128| fits 16 bits.
    let mac = |c: i32, a: u8, b: i16| c + i32::from(i16::from(a) * b);
    // SAFETY: the same contract.
    unsafe { portable::<P, _, _, _>(x, first, w, 0, acc, mac) }
}

/// What one group of pixels reads, `[taps][pixels]`.
struct Pieces<'a, A> {
    /// Starts of pieces of all channels of the input.
    pointers: Vec<*const A>,
    /// The last, incomplete block of channels of each piece, padded to a whole one.
    tail: Vec<A>,
    tail_pointers: Vec<*const A>,
    input: Indirect<'a, A>,
}

impl<'a, A: Copy + Default> Pieces<'a, A> {
    fn new(input: &Indirect<'a, A>) -> Self {
        Self {
            pointers: Vec::with_capacity(PIXELS * input.taps),
            tail: Vec::new(),
            tail_pointers: Vec::new(),
            input: *input,
        }
    }

    /// Gathers pixels `first..first + count`.
    fn gather(&mut self, first: usize, count: usize) {
        let input = &self.input;
        self.pointers.clear();
        for tap in 0..input.taps {
            self.pointers.extend((first..first + count).map(|row| input.piece(row, tap).as_ptr()));
        }
    }

    /// The block of `n` channels from `first` on, and where in it they start.
    fn block(&mut self, first: usize, n: usize) -> (Starts<'_, A>, usize) {
        let channels = self.input.kc;
        if first + n <= channels {
            return (Starts { pointers: &self.pointers, len: channels }, first);
        }
        self.tail.clear();
        self.tail.resize(self.pointers.len() * n, A::default());
        for (to, &start) in self.tail.chunks_exact_mut(n).zip(&self.pointers) {
            // SAFETY: `gather` took the start of a slice of `channels` elements of the input.
            let from = unsafe { core::slice::from_raw_parts(start, channels) };
            to[..channels - first].copy_from_slice(&from[first..]);
        }
        self.tail_pointers.clear();
        self.tail_pointers.extend(self.tail.chunks_exact(n).map(<[A]>::as_ptr));
        (Starts { pointers: &self.tail_pointers, len: n }, 0)
    }
}

/// Checks shapes, then computes and finishes all tiles.
fn drive<A: Copy + Default, B: Copy, C: Copy, E: Finish<C>>(
    a: &Indirect<'_, A>,
    w: &Weights<A, B, C>,
    ep: &E,
    zero: C,
    out: &mut Output<'_>,
    finish: impl Fn(&mut Scratch<C>, Place, &mut Output<'_>),
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
    a.validate();
    ep.validate(m, channels);
    let mut scratch = Scratch::new(zero);
    let mut p = Pieces::new(a);
    for row in (0..m).step_by(PIXELS) {
        let rows = PIXELS.min(m - row);
        p.gather(row, rows);
        for (g, weights) in w.data.chunks_exact(w.taps * w.nr).enumerate() {
            let col = g * w.nr;
            let (x, first) = p.block(col, w.nr);
            let tile = w.tiles.by_pixels[rows - 1];
            assert!(x.pointers.len() == rows * w.taps && first + w.nr <= x.len && rows * w.nr <= MAX_TILE);
            // SAFETY: the weights were packed for a handle, so the tile's instruction set runs
            // here; the rest was just checked.
            unsafe { tile(x, first, weights, scratch.acc.as_mut_ptr()) };
            let cols = w.nr.min(channels - col);
            finish(&mut scratch, Place { row, rows, col, cols, n0: 0 }, out);
        }
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
    let finish = match w.0.nr {
        8 => finish_f32::<8>,
        16 => finish_f32::<16>,
        _ => finish_f32::<32>,
    };
    drive(a, &w.0, ep, 0.0, &mut out, |scratch, place, out| finish(kernels, ep, scratch, 0, place, out));
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
    let finish = match w.weights.nr {
        8 => finish_i32::<8>,
        16 => finish_i32::<16>,
        _ => finish_i32::<32>,
    };
    drive(a, &w.weights, ep, 0, &mut out, |scratch, place, out| finish(kernels, ep, scratch, 0, place, out));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, MatMut, PAD, Quant, fold_zero_point};
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
                    offset: None,
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
