//! Matrix products whose right operand is packed without its zeros.
//!
//! Zeros are skipped one by one: the left operand is transposed, some rows at a time, and each weight that is not zero
//! multiplies a depth of all these rows at once. The idea is that of Elsen et al., "Fast Sparse ConvNets" (2020).

use alloc::{vec, vec::Vec};

use crate::{
    Kernels,
    aligned::{Aligned, Plain, SharedBytes},
    epilogue::{Clamped, EpilogueF32, Finish, Place, Scratch, finish_f32, finish_real},
    gemm::{MAX_TILE, driver::row_tiles},
    operands::{ARows, Output},
    saved::{Extents, Saved},
    table::{Tile, sparse_f32_tile},
};

pub(crate) mod blocks;
mod columns;
mod square;

use columns::{Columns, FEW_VECTORS, VECTORS, clamp_columns, gather, sum_columns, sum_row, write_tile};

/// Bytes of the transposed left operand that stay in the first-level cache.
const NEAR_BYTES: usize = 32 * 1024;

/// Bytes of output above which it does not come from the second-level cache when it is written.
const DISTANT_BYTES: usize = 512 * 1024;

/// Columns that are finished together.
const NR: usize = 16;

/// A weight that is not zero.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Entry {
    /// Where in the transposed left operand lies what it multiplies: the depth in [`unit`]s.
    place: u32,
    value: f32,
}

// SAFETY: two numbers of four bytes, side by side.
unsafe impl Plain for Entry {
    const ZERO: Self = Entry { place: 0, value: 0.0 };
}

/// Right operand of [`sparse_f32`]: of each column the weights that are not zero, by their depth.
///
/// What a zero would multiply is not read, so that no NaN arises from an infinite element there.
#[derive(Debug)]
pub struct SparseF32 {
    tile: Tile,
    taps: usize,
    kc: usize,
    /// Where the entries of each column begin, and where those of the last one end.
    starts: Aligned<u32>,
    entries: Aligned<Entry>,
}

/// Rows that places count in.
fn unit(tile: Tile) -> usize {
    tile.mr / VECTORS * FEW_VECTORS
}

impl SparseF32 {
    /// Packs B of depth `taps * kc` and `n` columns; `value(k, n)` is element (k, n) with `k = tap * kc + channel`.
    ///
    /// # Panics
    /// When the depth, in units of rows, or the number of weights that are not zero exceeds 2³² − 1.
    pub fn pack(
        kernels: Kernels,
        taps: usize,
        kc: usize,
        n: usize,
        value: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let tile = sparse_f32_tile(kernels);
        let (depth, unit) = (taps * kc, unit(tile));
        assert!(u32::try_from(depth * unit).is_ok(), "a depth of {depth}");
        let mut starts = Aligned::zeroed(n + 1);
        let mut found = Vec::new();
        for (column, start) in starts.as_mut_slice().iter_mut().enumerate() {
            *start = u32::try_from(found.len()).expect("fewer than 2^32 weights");
            if column < n {
                let entries = (0..depth).map(|k| Entry { place: (k * unit) as u32, value: value(k, column) });
                found.extend(entries.filter(|entry| entry.value != 0.0));
            }
        }
        let mut entries = Aligned::zeroed(found.len());
        entries.as_mut_slice().copy_from_slice(&found);
        Self { tile, taps, kc, starts, entries }
    }

    /// Number of rows.
    pub fn depth(&self) -> usize {
        self.taps * self.kc
    }

    /// Number of columns.
    pub fn n(&self) -> usize {
        self.starts.as_slice().len() - 1
    }

    /// Weights that are not zero.
    pub fn nonzeros(&self) -> usize {
        self.entries.as_slice().len()
    }

    /// Work is split between columns only at multiples of it.
    pub fn col_granule(&self) -> usize {
        self.tile.nr
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(self.starts.as_slice()) + size_of_val(self.entries.as_slice())
    }
}

/// What [`sparse_f32`] takes for `m` rows, in multiply-adds of the dense product: roughly, and as measured by
/// `sora bench --sparsity`. Depth and columns are those of B, of which so many elements are not zero.
pub fn sparse_cost(kernels: Kernels, m: usize, [depth, n]: [usize; 2], nonzeros: usize) -> usize {
    let tile = sparse_f32_tile(kernels);
    // Weights are met one after the other, each at an address of its own.
    if m == 1 {
        return LONELY * nonzeros;
    }
    let lanes = tile.mr / VECTORS;
    let (vectors, most) = (m.div_ceil(lanes), stride(tile, depth) / lanes);
    // The entry takes as long as a vector of rows; what comes from the second-level cache takes longer.
    let products = (vectors + vectors.div_ceil(most)) * lanes * nonzeros;
    let ninths = match depth * most * lanes * size_of::<f32>() {
        bytes if bytes <= NEAR_BYTES => 8,
        bytes if bytes <= 2 * NEAR_BYTES => 14,
        _ => 22,
    };
    products * ninths / 9 + m * (depth + n) * MOVE
}

/// Multiply-adds in the time that an entry takes which is met for a single row.
const LONELY: usize = 30;

/// Multiply-adds in the time that an element takes to be transposed and moved.
const MOVE: usize = 10;

/// Rows of a tile: those that stay in the first-level cache, if half of the most do.
fn stride(tile: Tile, depth: usize) -> usize {
    let near = depth * tile.mr * size_of::<f32>() <= NEAR_BYTES;
    if near { tile.mr } else { unit(tile) }
}

impl Saved for SparseF32 {
    const KIND: &'static str = "sparse.f32";
    type Shape = Extents;

    fn buffers(&self) -> Vec<&[u8]> {
        vec![self.starts.as_bytes(), self.entries.as_bytes()]
    }

    /// Kernels follow what the buffers say, so they are copied, lest they change after they have been checked.
    fn restore(kernels: Kernels, (taps, kc, n): Extents, buffers: &[SharedBytes]) -> Option<Self> {
        let [starts, entries] = buffers else { return None };
        let mut starts: Aligned<u32> = Aligned::shared(starts.clone())?;
        let mut entries: Aligned<Entry> = Aligned::shared(entries.clone())?;
        let tile = sparse_f32_tile(kernels);
        let unit = unit(tile);
        let end = taps.checked_mul(kc)?.checked_mul(unit)?;
        let inside =
            |entry: &Entry| (entry.place as usize) < end && (entry.place as usize).is_multiple_of(unit);
        let (given, entries_given) = (starts.as_mut_slice(), entries.as_mut_slice());
        let fits = given.len() == n + 1
            && given[0] == 0
            && given.is_sorted()
            && given[n] as usize == entries_given.len()
            && entries_given.iter().all(inside);
        fits.then_some(Self { tile, taps, kc, starts, entries })
    }
}

/// Memory that starts on a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// `out = epilogue(A · B)` in f32, as [`crate::gemm_f32`] computes it, for B without its zeros.
///
/// # Panics
/// When the shapes of `a`, `b`, `ep` and `out` disagree, or `n0` is not a multiple of [`SparseF32::col_granule`].
pub fn sparse_f32(
    kernels: Kernels,
    a: &ARows<'_, f32>,
    b: &SparseF32,
    n0: usize,
    ep: &EpilogueF32<'_>,
    mut out: Output<'_>,
) {
    let (m, n) = (out.rows(), out.cols());
    assert_eq!(a.rows(), m, "A and the output differ in rows");
    let (taps, kc) = (a.taps(), a.kc());
    assert!((taps, kc) == (b.taps, b.kc), "A has {taps}x{kc} depth, B {}x{}", b.taps, b.kc);
    let end = n0 + n;
    let aligned = n0.is_multiple_of(NR) && end <= b.n();
    assert!(aligned, "columns {n0}..{end} of {} do not start at a multiple of {NR}", b.n());
    if m == 0 || n == 0 {
        return;
    }
    a.validate(kernels);
    ep.validate(m, end);
    let finish = |scratch: &mut Scratch<f32>, place: Place, out: &mut Output<'_>| {
        if !finish_real(kernels, ep, &scratch.acc, NR, place, out) {
            finish_f32::<NR>(kernels, ep, scratch, 0, place, out);
        }
    };
    let mut scratch = Scratch::new(0.0);
    let (starts, entries) = (b.starts.as_slice(), b.entries.as_slice());
    let panels = || (0..n).step_by(NR).map(|col| (col, NR.min(n - col)));
    if m == 1 {
        let mut gathered = Vec::new();
        let x = if taps == 1 {
            a.piece(0, 0)
        } else {
            (0..taps).for_each(|tap| gathered.extend_from_slice(a.piece(0, tap)));
            &gathered
        };
        for (col, cols) in panels() {
            let starts = &starts[n0 + col..=n0 + col + cols];
            sum_row(x, starts, entries, unit(b.tile), &mut scratch.acc[..cols]);
            finish(&mut scratch, Place { row: 0, rows: 1, col, cols, n0 }, &mut out);
        }
        return;
    }

    let distant = m * n * size_of::<f32>() > DISTANT_BYTES;
    let stride = stride(b.tile, taps * kc);
    let lanes = b.tile.mr / VECTORS;
    let mut transposed: Vec<Line> = Vec::with_capacity(taps * kc * stride / 16);
    let mut pieces = vec![core::ptr::null(); taps * stride];
    let mut sums = vec![Line([0.0; 16]); NR * stride / 16];
    // Whole vectors of rows, shared evenly.
    for (first, vectors) in row_tiles(m.div_ceil(lanes), stride / lanes) {
        let row = first * lanes;
        let rows = (vectors * lanes).min(m - row);
        let pieces = &mut pieces[..taps * rows];
        a.starts(row, rows, false, pieces);
        let filled = rows.next_multiple_of(2 * lanes.max(4)).min(stride);
        // SAFETY: there are `rows` pieces of `kc` elements for each tap, and the memory has room for `stride` rows,
        // a multiple of eight, of this depth.
        unsafe {
            gather(kernels, pieces, (taps, kc), (rows, filled), stride, transposed.as_mut_ptr().cast())
        };
        for (col, cols) in panels() {
            let place = Place { row, rows, col, cols, n0 };
            if distant {
                ep.prefetch(place, &mut out);
            }
            let clamped = Clamped::at(ep, place, &mut out).filter(|to| !to.silu);
            let columns = Columns {
                starts: &starts[n0 + col..=n0 + col + cols],
                entries,
                bias: clamped.as_ref().and_then(|to| to.bias),
                from: transposed.as_ptr().cast(),
                rows,
                stride,
                to: sums.as_mut_ptr().cast(),
            };
            // SAFETY: entries lie in the depth, of which `gather` wrote these rows; starts are in order and within
            // the entries, as packing and restoring see to; there is a bias for each column, and room for all.
            unsafe { sum_columns(kernels, &columns) };
            let sums: *const f32 = sums.as_ptr().cast();
            if let Some(to) = clamped {
                // SAFETY: there are `NR` columns of `stride` rows; the place was just described.
                unsafe { clamp_columns(kernels, &to, sums, stride) };
                continue;
            }
            for part in (0..rows).step_by(MAX_TILE / NR) {
                let rows = (MAX_TILE / NR).min(rows - part);
                // SAFETY: as above, and the tile has room for so many rows.
                unsafe {
                    write_tile(kernels, sums.add(part), stride, (rows, cols), scratch.acc.as_mut_ptr(), NR)
                };
                finish(&mut scratch, Place { row: row + part, rows, col, cols, n0 }, &mut out);
            }
        }
    }
}
