//! The loops around the micro-kernels.

use alloc::vec::Vec;
use core::{mem::MaybeUninit, ops::Range};

#[cfg(target_arch = "x86_64")]
use super::bf16::{Rounded, finish_rounded};
use super::{
    MAX_TILE, TileArgs, WIDE,
    narrow::{Form, Rows},
};
use crate::{
    Kernels,
    aligned::Plain,
    epilogue::{
        Clamped, EpilogueF32, EpilogueI32, EpilogueRows, Finish, FinishRows, Place, Scratch, finish_f32,
        finish_i32, finish_real, finish_rows,
    },
    operands::{ARows, Dense, Output},
    pack::{PackedBf16, PackedF32, PackedI8, Panels},
};

/// Bytes of A that stay in the second-level cache while all panels of B pass by.
const A_BLOCK_BYTES: usize = 256 * 1024;

/// Bytes of B that stay in the second-level cache while all rows of A pass by.
const B_BYTES: usize = 256 * 1024;

/// Bytes of output above which it comes from memory, not from a cache, when it is written.
const DISTANT_BYTES: usize = 4 * 1024 * 1024;

/// Pointers to rows that need no allocation.
const FEW_POINTERS: usize = 512;

/// Bytes of A widened at a time: more, because fewer rows would read B too often.
const WIDE_BLOCK_BYTES: usize = 512 * 1024;

/// `out = epilogue(A · B)` in f32: rows of `a` by columns `n0 .. n0 + out.cols()` of `b`.
///
/// `n0` counts like the epilogue's vectors, in absolute columns of `b`.
///
/// # Panics
/// When the shapes of `a`, `b`, `ep` and `out` disagree, or `n0` is not a multiple of
/// [`PackedF32::col_granule`].
pub fn gemm_f32(
    kernels: Kernels,
    a: &ARows<'_, f32>,
    b: &PackedF32,
    n0: usize,
    ep: &EpilogueF32<'_>,
    mut out: Output<'_>,
) {
    let finish = match b.col_granule() {
        8 => finish_f32::<8>,
        16 => finish_f32::<16>,
        _ => finish_f32::<32>,
    };
    let nr = b.col_granule();
    let finish = |scratch: &mut Scratch<f32>, start: usize, place: Place, out: &mut Output<'_>| {
        if !finish_real(kernels, ep, &scratch.acc[start..], nr, place, out) {
            finish(kernels, ep, scratch, start, place, out);
        }
    };
    let clamped = |place: Place, out: &mut Output<'_>| Clamped::at(ep, place, out);
    drive(kernels, a, &b.panels, &[], n0, ep, &mut out, clamped, finish);
}

/// `out = epilogue(A · B)` for the bits of bf16 ([`crate::bf16`]), summed in f32:
/// rows of `a` by columns `n0 .. n0 + out.cols()` of `b`.
///
/// # Panics
/// When the shapes of `a`, `b`, `ep` and `out` disagree, or `n0` is not a multiple of
/// [`PackedBf16::col_granule`].
pub fn gemm_bf16(
    kernels: Kernels,
    a: &ARows<'_, u16>,
    b: &PackedBf16,
    n0: usize,
    ep: &EpilogueF32<'_>,
    mut out: Output<'_>,
) {
    let finish = match b.col_granule() {
        8 => finish_f32::<8>,
        16 => finish_f32::<16>,
        _ => finish_f32::<32>,
    };
    #[cfg(target_arch = "x86_64")]
    let rounded =
        Rounded::of(ep).filter(|_| kernels.isa().includes(crate::Isa::Avx512Bf16) && b.col_granule() == 32);
    let finish = |scratch: &mut Scratch<f32>, start: usize, place: Place, out: &mut Output<'_>| {
        #[cfg(target_arch = "x86_64")]
        if let (Some(e), Output::Bf16(out)) = (&rounded, &mut *out) {
            // SAFETY: the handle includes the instruction set, so this machine runs it.
            return unsafe { finish_rounded(e, scratch, start, place, out) };
        }
        finish(kernels, ep, scratch, start, place, out);
    };
    drive(kernels, a, &b.panels, &[], n0, ep, &mut out, |_, _| None, finish);
}

/// `out = epilogue(A · B)` for unsigned bytes by signed bytes, summed exactly in i32 (wrapping):
/// rows of `a` by columns `n0 .. n0 + out.cols()` of `b`.
///
/// # Panics
/// When the shapes of `a`, `b`, `ep` and `out` disagree, or `n0` is not a multiple of
/// [`PackedI8::col_granule`].
pub fn gemm_u8i8(
    kernels: Kernels,
    a: &ARows<'_, u8>,
    b: &PackedI8,
    n0: usize,
    ep: &EpilogueI32<'_>,
    mut out: Output<'_>,
) {
    let finish = match b.col_granule() {
        8 => finish_i32::<8>,
        16 => finish_i32::<16>,
        _ => finish_i32::<32>,
    };
    let finish = |scratch: &mut Scratch<i32>, start: usize, place: Place, out: &mut Output<'_>| {
        finish(kernels, ep, scratch, start, place, out);
    };
    drive(kernels, a, &b.panels, b.sums.as_slice(), n0, ep, &mut out, |_, _| None, finish);
}

/// As [`gemm_u8i8`], for rows of A that each have their own scale and zero point.
///
/// # Panics
/// As [`gemm_u8i8`].
pub fn gemm_u8i8_rows(
    kernels: Kernels,
    a: &ARows<'_, u8>,
    b: &PackedI8,
    n0: usize,
    ep: &EpilogueRows<'_>,
    mut out: Output<'_>,
) {
    let finish = match b.col_granule() {
        8 => finish_rows::<8>,
        16 => finish_rows::<16>,
        _ => finish_rows::<32>,
    };
    let ep = FinishRows { epilogue: ep, sums: b.sums.as_slice() };
    let finish = |scratch: &mut Scratch<i32>, start: usize, place: Place, out: &mut Output<'_>| {
        finish(kernels, &ep, scratch, start, place, out);
    };
    drive(kernels, a, &b.panels, b.sums.as_slice(), n0, &ep, &mut out, |_, _| None, finish);
}

/// Row vector times matrix, the bare sums: `out[j] = Σₖ x[k] · B[k][n0 + j]`. Limited by the speed at which B
/// arrives from the caches.
///
/// With `backwards` the columns are walked from the last to the first: a caller that multiplies by one matrix
/// again and again, each time the other way, finds what it read last still in the nearer caches.
///
/// # Panics
/// When `x` has not the depth of `b`, `b` has several taps, or the columns `n0 .. n0 + out.len()` do not lie in
/// `b` and start at a multiple of [`PackedF32::col_granule`].
pub fn gemv_f32(kernels: Kernels, x: &[f32], b: &PackedF32, n0: usize, backwards: bool, out: &mut [f32]) {
    gemv(kernels, x, &b.panels, &[], n0, backwards, out);
}

/// As [`gemv_f32`], for bits of bf16.
///
/// # Panics
/// As [`gemv_f32`].
pub fn gemv_bf16(kernels: Kernels, x: &[u16], b: &PackedBf16, n0: usize, backwards: bool, out: &mut [f32]) {
    gemv(kernels, x, &b.panels, &[], n0, backwards, out);
}

/// As [`gemv_f32`], for unsigned bytes by signed bytes: exact sums in i32 (wrapping).
///
/// # Panics
/// As [`gemv_f32`].
pub fn gemv_u8i8(kernels: Kernels, x: &[u8], b: &PackedI8, n0: usize, backwards: bool, out: &mut [i32]) {
    gemv(kernels, x, &b.panels, b.sums.as_slice(), n0, backwards, out);
}

fn gemv<A: Copy, B: Plain, C: Plain>(
    kernels: Kernels,
    x: &[A],
    b: &Panels<A, B, C>,
    sums: &[i32],
    n0: usize,
    backwards: bool,
    out: &mut [C],
) {
    let nr = b.tile.nr;
    assert!(
        (1, x.len()) == (b.taps, b.kc),
        "a vector of {} elements by {} taps of {}",
        x.len(),
        b.taps,
        b.kc
    );
    assert!(
        n0.is_multiple_of(nr) && n0 + out.len() <= b.n,
        "columns {n0}..{} of {} do not start at a multiple of {nr}",
        n0 + out.len(),
        b.n
    );
    let rows = ARows::Dense(Dense { data: x, rows: 1, stride: x.len(), k: x.len() });
    let mut narrow = Rows::default();
    let mut wide = Vec::new();
    let (mut row, mut kc) = (x.as_ptr(), b.kc);
    let form = b.tiles.narrow.and_then(|n| (n.prepare)(kernels, &rows, (0, 1), &mut narrow));
    if b.tiles.widen.is_some() {
        kc = kc.next_multiple_of(b.tile.k_granule);
    }
    match (form, b.tiles.widen) {
        (Some(_), _) => row = narrow.row(0).cast(),
        (None, Some(widen)) => {
            wide.resize(kc, 0i16);
            widen(kernels, &rows, 0, &mut wide, kc);
            row = wide.as_ptr().cast();
        }
        (None, None) => {}
    }
    let form = form.map(|form| Narrowed { form, rows: &narrow, first: 0 });
    let first = n0 / nr;
    let whole = out.len() / (WIDE * nr);
    let (groups, rest) = out.split_at_mut(whole * WIDE * nr);
    let group = |i: usize, out: &mut [C]| {
        let panels = first + i * WIDE..first + (i + 1) * WIDE;
        run_tile(b, sums, (panels, nr), (&[row], 0), (1, kc), None, &form, out);
    };
    let last = |i: usize, out: &mut [C]| {
        let mut tile = [C::ZERO; MAX_NR];
        let panel = first + whole * WIDE + i;
        run_tile(b, sums, (panel..panel + 1, out.len()), (&[row], 0), (1, kc), None, &form, &mut tile);
        out.copy_from_slice(&tile[..out.len()]);
    };
    let (groups, rest) = (groups.chunks_exact_mut(WIDE * nr).enumerate(), rest.chunks_mut(nr).enumerate());
    match backwards {
        false => {
            groups.for_each(|(i, out)| group(i, out));
            rest.for_each(|(i, out)| last(i, out));
        }
        true => {
            rest.rev().for_each(|(i, out)| last(i, out));
            groups.rev().for_each(|(i, out)| group(i, out));
        }
    }
}

/// Columns of the widest panel.
const MAX_NR: usize = 32;

/// Splits `rows` into the fewest tiles of at most `mr` rows, of nearly equal height.
pub(crate) fn row_tiles(rows: usize, mr: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(mr);
    (0..count).map(move |i| {
        let start = i * rows / count;
        (start, (i + 1) * rows / count - start)
    })
}

/// Computes and finishes all tiles: blocks of rows outside, panels of B inside, so that a block
/// of A, or all of B, stays in the second-level cache and a panel of B in the first.
#[allow(clippy::too_many_arguments)]
fn drive<A: Copy, B: Plain, C: Plain, E: Finish<C>>(
    kernels: Kernels,
    a: &ARows<'_, A>,
    b: &Panels<A, B, C>,
    sums: &[i32],
    n0: usize,
    ep: &E,
    out: &mut Output<'_>,
    clamped: impl Fn(Place, &mut Output<'_>) -> Option<Clamped>,
    finish: impl Fn(&mut Scratch<C>, usize, Place, &mut Output<'_>),
) {
    let (m, n) = (out.rows(), out.cols());
    let nr = b.tile.nr;
    assert_eq!(a.rows(), m, "A and the output differ in rows");
    assert!(
        (a.taps(), a.kc()) == (b.taps, b.kc),
        "A has {}x{} depth, B {}x{}",
        a.taps(),
        a.kc(),
        b.taps,
        b.kc
    );
    assert!(
        n0.is_multiple_of(nr) && n0 + n <= b.n,
        "columns {n0}..{} of {} do not start at a multiple of {nr}",
        n0 + n,
        b.n
    );
    if m == 0 || n == 0 {
        return;
    }
    a.validate(kernels);
    ep.validate(m, n0 + n);

    let mr = b.tiles.by_rows.len();
    // Widened, the taps of a row are one piece.
    let (taps, kc) = match b.tiles.widen {
        None => (b.taps, b.kc),
        Some(_) => (1, b.taps * b.kc.next_multiple_of(b.tile.k_granule)),
    };
    let step = if b.tiles.steps { a.step() } else { 0 };
    // Pointers of a row.
    let starts = if step == 0 { taps } else { 1 };
    let (block_bytes, row_bytes) = match b.tiles.widen {
        None => (A_BLOCK_BYTES, a.depth() * size_of::<A>()),
        Some(_) => (WIDE_BLOCK_BYTES, kc * size_of::<i16>()),
    };
    let panels = n.div_ceil(nr);
    let per_block = match panels * b.stride() * size_of::<B>() <= B_BYTES && b.tiles.widen.is_none() {
        // All of B stays in cache: rows of the output are completed one tile after the other.
        true => 1,
        false => (block_bytes / row_bytes.max(1)).min(FEW_POINTERS / starts).div_ceil(mr).max(1),
    };
    // Made when it is needed: many products finish in registers.
    let mut scratch = None;
    let most_rows = m.min(per_block * mr);
    let (mut narrow, mut wide) = (Rows::default(), Vec::new());
    let mut few = [const { MaybeUninit::uninit() }; FEW_POINTERS];
    let mut many = Vec::new();
    let pointers = match few.get_mut(..most_rows * starts) {
        Some(few) => {
            few.fill(MaybeUninit::new(core::ptr::null::<A>()));
            // SAFETY: all of them were written, and such an element is laid out like a pointer.
            unsafe { &mut *(core::ptr::from_mut(few) as *mut [*const A]) }
        }
        None => {
            many.resize(most_rows * starts, core::ptr::null());
            &mut many[..]
        }
    };

    let distant = m * n * size_of::<f32>() > DISTANT_BYTES;
    // The fewest tiles of nearly equal height; tile `i` covers rows `row(i)..row(i + 1)`.
    let tiles = m.div_ceil(mr);
    let (height, higher) = (m / tiles, m % tiles);
    let row = |i: usize| i * height + i.min(higher);
    // Tiles of one panel are finished together, as many as the scratch memory holds.
    let most_together = MAX_TILE / nr;
    for first_tile in (0..tiles).step_by(per_block) {
        let block = first_tile..tiles.min(first_tile + per_block);
        let block_start = row(block.start);
        let rows = row(block.end) - block_start;
        let form = b.tiles.narrow.and_then(|n| (n.prepare)(kernels, a, (block_start, rows), &mut narrow));
        if let Some(widen) = b.tiles.widen.filter(|_| form.is_none()) {
            wide.resize(most_rows * kc, 0i16);
            widen(kernels, a, block_start, &mut wide[..rows * kc], kc);
        }
        for tile in block.clone() {
            let (start, end) = (row(tile) - block_start, row(tile + 1) - block_start);
            let pointers = &mut pointers[start * starts..end * starts];
            match b.tiles.widen {
                None => a.starts(block_start + start, end - start, step > 0, pointers),
                Some(_) => {
                    for (i, pointer) in pointers.iter_mut().enumerate() {
                        *pointer = match form {
                            Some(_) => narrow.row(start + i).cast(),
                            None => wide[(start + i) * kc..].as_ptr().cast(),
                        };
                    }
                }
            }
        }
        let mut panel = 0;
        while panel < panels {
            let count = if m == 1 && panel + WIDE <= panels { WIDE } else { 1 };
            let mut unfinished = row(block.start);
            for tile in block.clone() {
                let (start, end) = (row(tile), row(tile + 1));
                let pointers = &pointers[(start - block_start) * starts..(end - block_start) * starts];
                let first = n0 / nr + panel;
                if distant {
                    let (rows, col) = (end - start, panel * nr);
                    ep.prefetch(Place { row: start, rows, col, cols: nr.min(n - col), n0 }, out);
                }
                let share = Some((tile - block.start, block.len()));
                let (col, left) = (panel * nr, n - panel * nr);
                let kernels = if 2 * left <= nr { b.tiles.clamped_half } else { b.tiles.clamped };
                if let Some(&kernel) = kernels.get(end - start - 1).filter(|_| count == 1) {
                    let place = Place { row: start, rows: end - start, col, cols: nr.min(left), n0 };
                    if let Some(to) = clamped(place, out).filter(|to| to.in_registers(nr / 2)) {
                        let args = tile_args(b, sums, first..first + 1, (pointers, step), (taps, kc), share);
                        // SAFETY: as in `run_tile`; `to` is a place of these rows and at most `nr` columns.
                        unsafe { kernel(&args, &to) };
                        continue;
                    }
                }
                let scratch = scratch.get_or_insert_with(|| Scratch::new(C::ZERO));
                let columns = (first..first + count, left);
                let form = form.map(|form| Narrowed { form, rows: &narrow, first: start - block_start });
                let to = &mut scratch.acc[(start - unfinished) * nr..];
                run_tile(b, sums, columns, (pointers, step), (taps, kc), share, &form, to);
                let last = tile + 1 == block.end;
                if !last && row(tile + 2) - unfinished <= most_together {
                    continue;
                }
                // Panels of one row lie side by side; finish them one at a time.
                for i in 0..count {
                    let col = (panel + i) * nr;
                    let place =
                        Place { row: unfinished, rows: end - unfinished, col, cols: nr.min(n - col), n0 };
                    finish(scratch, i * nr, place, out);
                }
                unfinished = end;
            }
            panel += count;
        }
    }
}

/// Panels for the rows that `pointers` (`[taps][rows]`, or `[rows]` with a step) start, in pieces of `kc` elements
/// (of 16 bits, if the tiles want that). The share `(call, calls)` says that this is one of so many calls with the
/// same panels, which together prefetch the next ones.
fn tile_args<A, B: Plain, C>(
    b: &Panels<A, B, C>,
    sums: &[i32],
    panels: Range<usize>,
    (pointers, step): (&[*const A], usize),
    (taps, kc): (usize, usize),
    share: Option<(usize, usize)>,
) -> TileArgs<A, B> {
    let (nr, stride) = (b.tile.nr, b.stride());
    let data = &b.data.as_slice()[panels.start * stride..panels.end * stride];
    let sums = if sums.is_empty() { sums } else { &sums[panels.start * nr..panels.end * nr] };
    let (ahead, ahead_step) = match share {
        Some((call, calls)) => (data.len() + call * data.len().div_ceil(calls), nr.div_ceil(calls)),
        None => (0, 0),
    };
    TileArgs {
        rows: pointers.as_ptr(),
        step,
        taps,
        kc,
        panel: data.as_ptr(),
        panel_stride: stride,
        ahead: data.as_ptr().wrapping_add(ahead),
        ahead_step,
        sums: sums.as_ptr(),
        begin: core::ptr::null(),
    }
}

/// The form that the rows of a tile have, and where in them the tile begins.
struct Narrowed<'a, A: 'static, B: 'static, C: 'static> {
    form: &'static Form<A, B, C>,
    rows: &'a Rows,
    first: usize,
}

/// Computes the accumulators of what [`tile_args`] describes, of rows of A or their form; of a single panel, the first `cols` columns at least.
#[allow(clippy::too_many_arguments)]
fn run_tile<A, B: Plain, C>(
    b: &Panels<A, B, C>,
    sums: &[i32],
    (panels, cols): (Range<usize>, usize),
    (pointers, step): (&[*const A], usize),
    (taps, kc): (usize, usize),
    share: Option<(usize, usize)>,
    narrowed: &Option<Narrowed<'_, A, B, C>>,
    tile: &mut [C],
) {
    let rows = if step == 0 { pointers.len() / taps } else { pointers.len() };
    let count = panels.len();
    let mut args = tile_args(b, sums, panels, (pointers, step), (taps, kc), share);
    if let Some(n) = narrowed {
        args.begin = n.rows.begin(n.first);
    }
    let kernel = match (count, narrowed) {
        (1, Some(n)) => n.form.by_rows[rows - 1],
        (_, Some(n)) => n.form.wide,
        (1, None) if 2 * cols <= b.tile.nr && !b.tiles.half.is_empty() => b.tiles.half[rows - 1],
        (1, None) => b.tiles.by_rows[rows - 1],
        (_, None) => b.tiles.wide,
    };
    assert!(rows * count * b.tile.nr <= tile.len() && (count == 1 || (rows, count) == (1, WIDE)));
    // SAFETY: the operand was packed for a handle, so the kernel's instruction set runs here;
    // every pointer starts a piece of `kc` elements in the form that the
    // kernel reads; `data` and `sums` hold
    // `count` whole panels; the tile has room for `rows * count * nr` elements.
    unsafe { kernel(&args, tile.as_mut_ptr()) };
    if let Some(n) = narrowed {
        let rests = n.rows.rests(n.first, n.first + rows);
        // SAFETY: as above; a rest has bytes of a row, and thus a step of the panels.
        unsafe { (n.form.add)(&args, rests, (n.first, count), tile.as_mut_ptr()) };
    }
}
