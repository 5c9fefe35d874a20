//! Matrix products by register tiles. One micro-kernel serves dense products and
//! convolutions: it reads each row of A through a pointer per tap.

pub(crate) mod bf16;
pub(crate) mod driver;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) mod narrow;
pub(crate) mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;

pub use driver::{gemm_bf16, gemm_f32, gemm_u8i8, gemm_u8i8_rows, gemv_bf16, gemv_f32, gemv_u8i8};

use narrow::Narrow;

use crate::{Kernels, epilogue::Clamped, isa::per_isa, operands::ARows};

/// What a micro-kernel reads: `mr` rows of A and one or more panels of packed B.
#[derive(Debug)]
pub(crate) struct TileArgs<A, B> {
    /// `[taps][mr]` starts of pieces of `kc` elements, or `[mr]` with a step; of `i16` where
    /// [`Tiles::widen`] is given, with one tap and an even `kc`.
    pub(crate) rows: *const *const A,
    /// Distance between the pieces of a row, all of which `rows` has one start for; 0 where it has one for each.
    pub(crate) step: usize,
    pub(crate) taps: usize,
    pub(crate) kc: usize,
    /// `[taps][kc / k_granule, rounded up][nr][k_granule]`.
    pub(crate) panel: *const B,
    /// Distance to the next panel, in elements.
    pub(crate) panel_stride: usize,
    /// Where in the weights that are needed next to begin to prefetch.
    pub(crate) ahead: *const B,
    /// Elements to prefetch per step of the depth.
    pub(crate) ahead_step: usize,
    /// Column sums of the panels (integer products only).
    #[cfg_attr(not(any(target_arch = "aarch64", target_arch = "x86_64")), expect(dead_code))]
    pub(crate) sums: *const i32,
    /// `[mr]`, what the sums of each row begin with; kernels of [`narrow::Form`]s only.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    pub(crate) begin: *const i32,
}

/// A micro-kernel: overwrites a row-major accumulator tile.
///
/// # Safety
/// The instruction set of the kernel's row must run here; all pieces and panels
/// that [`TileArgs`] describes must be readable; the tile must have room for
/// `mr × panels·nr` elements.
pub(crate) type TileFn<A, B, C> = unsafe fn(&TileArgs<A, B>, *mut C);

/// A micro-kernel that finishes its sums in registers and stores results instead of accumulators.
///
/// # Safety
/// As of [`TileFn`], with a place of `mr` rows instead of a tile, whose columns are whole vectors, at most `nr`.
pub(crate) type ClampedFn<A, B> = unsafe fn(&TileArgs<A, B>, &Clamped);

/// Panels per call of a single-row kernel: enough independent sums to hide latency.
pub(crate) const WIDE: usize = 4;

/// Elements of the largest accumulator tile: 16 × 32.
pub(crate) const MAX_TILE: usize = 16 * 32;

/// Writes rows `first..` of the left operand as 16-bit numbers into rows of a given stride, each
/// piece taking a number of places that is a multiple of the kernel's granule.
pub(crate) type Widen<A> = fn(Kernels, &ARows<'_, A>, usize, &mut [i16], usize);

/// The instances of one micro-kernel.
#[derive(Debug)]
pub struct Tiles<A: 'static, B: 'static, C: 'static> {
    /// `by_rows[i]` computes `i + 1` rows by one panel.
    pub(crate) by_rows: &'static [TileFn<A, B, C>],
    /// The same for the first half of the panel's columns; empty where nothing is gained by that.
    pub(crate) half: &'static [TileFn<A, B, C>],
    /// One row by [`WIDE`] panels.
    pub(crate) wide: TileFn<A, B, C>,
    /// As `by_rows`, for results that are [`Clamped`]; empty where there are no such kernels.
    pub(crate) clamped: &'static [ClampedFn<A, B>],
    /// As `half`, likewise.
    pub(crate) clamped_half: &'static [ClampedFn<A, B>],
    /// Whether the kernels step from piece to piece by themselves ([`TileArgs::step`]). With fewer bytes to
    /// multiply than pointers to make that gains; kernels of reals have no register left for it.
    pub(crate) steps: bool,
    /// Prepares the left operand for kernels that multiply 16-bit numbers: once for all panels,
    /// with the taps joined to one piece.
    pub(crate) widen: Option<Widen<A>>,
    /// Other forms of the left operand that are tried before widening.
    pub(crate) narrow: Option<&'static Narrow<A, B, C>>,
}

/// Tiles of real products.
pub type F32Tiles = Tiles<f32, f32, f32>;
/// Tiles of bf16 products.
pub type Bf16Tiles = Tiles<u16, u16, f32>;
/// Tiles of byte products.
pub type I8Tiles = Tiles<u8, i8, i32>;

/// Lists the instances `$f::<MR, panels>` of a micro-kernel for each `MR`, and those of half a panel and for clamped
/// results if there are.
macro_rules! tiles {
    ($f:ident: $($mr:literal)*) => {
        $crate::gemm::tiles!($f, None; $($mr)*)
    };
    ($f:ident / $half:ident + $clamped:ident / $clamped_half:ident: $($mr:literal)*) => {
        $crate::gemm::Tiles {
            half: &[$($half::<$mr, 1>),*],
            clamped: &[$($clamped::<$mr>),*],
            clamped_half: &[$($clamped_half::<$mr>),*],
            ..$crate::gemm::tiles!($f, None; $($mr)*)
        }
    };
    ($f:ident, $widen:expr; $($mr:literal)*) => {
        $crate::gemm::Tiles {
            by_rows: &[$($f::<$mr, 1>),*],
            half: &[],
            wide: $f::<1, { $crate::gemm::WIDE }>,
            clamped: &[],
            clamped_half: &[],
            steps: false,
            widen: $widen,
            narrow: None,
        }
    };
}
pub(crate) use tiles;

/// Starts of the pieces of tap `t`.
///
/// # Safety
/// `args.rows` must hold `(t + 1) * MR` pointers.
#[inline(always)]
pub(crate) unsafe fn tap_rows<const MR: usize, A, B>(args: &TileArgs<A, B>, t: usize) -> [*const A; MR] {
    // SAFETY: by contract the array holds [taps][MR] pointers.
    unsafe { *args.rows.add(t * MR).cast::<[*const A; MR]>() }
}

/// As [`tap_rows`], for [`Tiles::steps`]: also the element behind the pointers that the pieces begin at.
///
/// # Safety
/// `args.rows` must hold `(t + 1) * MR` pointers, or `MR` where there is a step.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
pub(crate) unsafe fn tap_steps<const MR: usize, A, B>(
    args: &TileArgs<A, B>,
    t: usize,
) -> ([*const A; MR], usize) {
    let table = if args.step == 0 { t } else { 0 };
    // SAFETY: by contract the array holds so many pointers.
    (unsafe { tap_rows(args, table) }, t * args.step)
}

/// The last `n` bytes (fewer than `N`) of a piece, with zeros behind.
///
/// # Safety
/// `n` bytes must be readable.
#[inline(always)]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), expect(dead_code))]
pub(crate) unsafe fn tail_bytes<const N: usize>(at: *const u8, n: usize) -> [u8; N] {
    let mut bytes = [0; N];
    for (j, byte) in bytes.iter_mut().enumerate().take(n) {
        // SAFETY: j < n.
        *byte = unsafe { *at.add(j) };
    }
    bytes
}

/// The one to three bytes of a piece of `kc` behind its whole words, as the low bytes of a word.
///
/// # Safety
/// `kc` bytes must be readable, and `kc` must be no multiple of four.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn tail_word(piece: *const u8, kc: usize) -> i32 {
    let n = kc % 4;
    // SAFETY: the last four bytes, or all of them.
    unsafe {
        if kc > 4 {
            let last = piece.add(kc - 4).cast::<[u8; 4]>().read_unaligned();
            (u32::from_le_bytes(last) >> (32 - 8 * n)) as i32
        } else {
            i32::from_le_bytes(tail_bytes(piece, n))
        }
    }
}

per_isa! {
    /// [`Widen`] for bytes; places that round a piece up keep what they hold.
    pub(crate) fn widen_bytes(a: &ARows<'_, u8>, first: usize, out: &mut [i16], stride: usize) {
        match a {
            ARows::Dense(d) if d.stride == stride && d.k == stride => {
                widen(&d.data[first * stride..][..out.len()], out);
            }
            // What convolutions of few channels have: a known length spares the loops.
            _ if a.kc() == 4 => widen_pieces::<2>(a, first, out, stride, |from, out| {
                if let (Some(from), Some(out)) = (from.first_chunk::<4>(), out.first_chunk_mut::<4>()) {
                    *out = from.map(i16::from);
                }
            }),
            _ => widen_pieces::<2>(a, first, out, stride, widen),
        }
    }
}

#[cfg(target_arch = "x86_64")]
per_isa! {
    /// As [`widen_bytes`], of each four bytes the first and third before the second and fourth.
    pub(crate) fn widen_halves(a: &ARows<'_, u8>, first: usize, out: &mut [i16], stride: usize) {
        widen_pieces::<4>(a, first, out, stride, |from, out| {
            let (fours, tail) = from.as_chunks::<4>();
            let (to, rest) = out.split_at_mut(4 * fours.len());
            for (to, &[a, b, c, d]) in to.as_chunks_mut::<4>().0.iter_mut().zip(fours) {
                *to = [a, c, b, d].map(i16::from);
            }
            for (&x, place) in tail.iter().zip([0, 2, 1]) {
                rest[place] = i16::from(x);
            }
        });
    }
}

/// Applies `widen` to every piece and its places, whose number is a multiple of `GRANULE`.
#[inline(always)]
fn widen_pieces<const GRANULE: usize>(
    a: &ARows<'_, u8>,
    first: usize,
    out: &mut [i16],
    stride: usize,
    widen: impl Fn(&[u8], &mut [i16]),
) {
    let places = a.kc().next_multiple_of(GRANULE);
    for (row, out) in out.chunks_exact_mut(stride.max(1)).enumerate() {
        for (tap, out) in out.chunks_exact_mut(places.max(1)).enumerate() {
            widen(a.piece(first + row, tap), out);
        }
    }
}

#[inline(always)]
fn widen(from: &[u8], to: &mut [i16]) {
    let (from, to) = widen_chunks::<16>(from, to);
    let (from, to) = widen_chunks::<4>(from, to);
    widen_chunks::<1>(from, to);
}

/// Widens whole groups of `N` and returns what is left.
#[inline(always)]
fn widen_chunks<'a, 'b, const N: usize>(from: &'a [u8], to: &'b mut [i16]) -> (&'a [u8], &'b mut [i16]) {
    let (chunks, rest) = from.as_chunks::<N>();
    let (to, to_rest) = to.split_at_mut(chunks.len() * N);
    let (to, _) = to.as_chunks_mut::<N>();
    for (to, from) in to.iter_mut().zip(chunks) {
        for j in 0..N {
            to[j] = i16::from(from[j]);
        }
    }
    (rest, to_rest)
}

#[cfg(test)]
mod tests {
    use super::widen_bytes;
    use crate::{
        Kernels,
        operands::{ARows, Dense, Indirect, PAD},
    };
    use alloc::{vec, vec::Vec};

    #[test]
    fn widened_rows_are_the_pieces_side_by_side() {
        let mut rng = fastrand::Rng::with_seed(7);
        let data: Vec<u8> = (0..2000).map(|_| rng.u8(..)).collect();
        for kc in 1..40 {
            let (rows, taps) = (9, rng.usize(1..4));
            let offsets: Vec<u32> =
                (0..rows * taps).map(|i| if i % 5 == 0 { PAD } else { rng.u32(0..1900) }).collect();
            let pad = &data[1900..];
            for a in [
                ARows::Dense(Dense { data: &data, rows, stride: kc, k: kc }),
                ARows::Dense(Dense { data: &data, rows, stride: kc + 1, k: kc }),
                ARows::Indirect(Indirect { base: &data, offsets: &offsets, taps, kc, pad }),
            ] {
                let places = kc.next_multiple_of(2);
                let stride = a.taps() * places;
                let first = rng.usize(0..rows);
                for kernels in Kernels::all_available() {
                    let mut out = vec![-1i16; (rows - first) * stride];
                    widen_bytes(kernels, &a, first, &mut out, stride);
                    for (i, piece) in out.chunks_exact(places).enumerate() {
                        let from = a.piece(first + i / a.taps(), i % a.taps());
                        assert!(piece.iter().zip(from).all(|(&w, &b)| w == i16::from(b)), "{kc} {kernels:?}");
                        assert!(kc == places || piece[kc] == -1);
                    }
                }
            }
        }
    }
}
