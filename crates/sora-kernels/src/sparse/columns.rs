//! Sums of columns, zeros skipped one by one.

use super::{
    Entry,
    square::{Square, per_square},
};
use crate::{
    epilogue::Clamped,
    vector::{Vector, load, per_vector, store},
};

/// Vectors of rows whose sums are taken at once: as many as hide the latency of an addition, where all of the left
/// operand's depth by so many rows stays in the first-level cache.
pub(super) const VECTORS: usize = 8;

/// Vectors of rows otherwise; entries count in them.
pub(super) const FEW_VECTORS: usize = 4;

/// Columns of a sparse operand by rows of a transposed one.
pub(super) struct Columns<'a> {
    /// Where the entries of each column begin, and where those of the last one end.
    pub(super) starts: &'a [u32],
    pub(super) entries: &'a [Entry],
    /// What each column's sums begin with.
    pub(super) bias: Option<*const f32>,
    /// `[depth][stride]`, the first `rows` of each filled to whole vectors; on a cache line.
    pub(super) from: *const f32,
    pub(super) rows: usize,
    /// [`VECTORS`] or [`FEW_VECTORS`].
    pub(super) stride: usize,
    /// Memory for `[columns][stride]`, on a cache line.
    pub(super) to: *mut f32,
}

per_square! {
    /// Writes pieces, `[taps][rows]`, transposed: `[taps * kc][stride]`, each filled to `filled` rows.
    ///
    /// # Safety
    /// `kc` elements must be readable from each piece, and `taps * kc * stride` be writable; `filled` must be a
    /// multiple of eight, no less than the rows given and no more than the stride.
    pub(super) unsafe fn gather<V>(
        pieces: &[*const f32],
        extents: (usize, usize),
        given: (usize, usize),
        stride: usize,
        to: *mut f32,
    ) {
        let ((taps, kc), (rows, filled)) = (extents, given);
        // SAFETY: by the contract; rows beyond the last one repeat it.
        unsafe {
            for tap in 0..taps {
                let pieces = &pieces[tap * rows..][..rows];
                let to = to.add(tap * kc * stride);
                for r in (0..filled).step_by(V::LANES) {
                    let mut from = [pieces[rows - 1]; 8];
                    for i in 0..V::LANES {
                        from[i] = pieces[(r + i).min(rows - 1)];
                    }
                    match stride {
                        16 => gather_rows::<V, 16>(&from, kc, to.add(r)),
                        32 => gather_rows::<V, 32>(&from, kc, to.add(r)),
                        64 => gather_rows::<V, 64>(&from, kc, to.add(r)),
                        _ => gather_rows::<V, 128>(&from, kc, to.add(r)),
                    }
                }
            }
        }
    }
}

/// Writes rows of `len` elements as columns of a matrix of this stride; known strides cost no registers.
///
/// # Safety
/// `len` elements must be readable from each row, and a vector be writable in each of `len` rows of the matrix.
#[inline(always)]
unsafe fn gather_rows<V: Square, const STRIDE: usize>(from: &[*const f32; 8], len: usize, to: *mut f32) {
    // SAFETY: by the contract.
    unsafe {
        let mut k = 0;
        while k + V::LANES <= len {
            let square = V::load_columns(from.map(|row| row.wrapping_add(k)));
            for i in 0..V::LANES {
                square[i].store(to.add((k + i) * STRIDE));
            }
            k += V::LANES;
        }
        while k < len {
            for i in 0..V::LANES {
                *to.add(k * STRIDE + i) = *from[i].add(k);
            }
            k += 1;
        }
    }
}

per_square! {
    /// Writes columns of sums, `[columns][stride]`, as rows of a tile, `nr` apart. Beyond the columns and rows, to
    /// whole vectors, both have unspecified numbers.
    ///
    /// # Safety
    /// Columns and rows must be readable and writable, filled to multiples of eight.
    pub(super) unsafe fn write_tile<V>(sums: *const f32, stride: usize, extents: (usize, usize), tile: *mut f32, nr: usize) {
        let (rows, cols) = extents;
        // SAFETY: by the contract.
        unsafe {
            for col in (0..cols).step_by(V::LANES) {
                for row in (0..rows).step_by(V::LANES) {
                    let square = square_at::<V>(sums.add(col * stride + row), stride);
                    for i in 0..V::LANES {
                        square[i].store(tile.add((row + i) * nr + col));
                    }
                }
            }
        }
    }
}

per_square! {
    /// Finishes sums, `[columns][stride]`, that contain the bias.
    ///
    /// # Safety
    /// The sums, filled to multiples of eight, must be readable, and what the tile describes must be there.
    pub(super) unsafe fn clamp_columns<V>(t: &Clamped, sums: *const f32, stride: usize) {
        // SAFETY: by the contract.
        unsafe {
            match stride {
                16 => clamp_vectors::<V, 16>(t, sums),
                32 => clamp_vectors::<V, 32>(t, sums),
                64 => clamp_vectors::<V, 64>(t, sums),
                _ => clamp_vectors::<V, 128>(t, sums),
            }
        }
    }
}

/// # Safety
/// As of [`clamp_columns`].
#[inline(always)]
unsafe fn clamp_vectors<V: Square, const STRIDE: usize>(t: &Clamped, sums: *const f32) {
    // SAFETY: by the contract.
    unsafe {
        for col in (0..t.cols).step_by(V::LANES) {
            let sums = sums.add(col * STRIDE);
            match (t.cols - col >= V::LANES, t.residual) {
                (true, None) => clamp_vector::<V, true, STRIDE>(t, col, sums, None),
                (true, residual) => clamp_vector::<V, true, STRIDE>(t, col, sums, residual),
                (false, residual) => clamp_vector::<V, false, STRIDE>(t, col, sums, residual),
            }
        }
    }
}

/// Finishes a vector of columns, and adds a residual.
///
/// # Safety
/// As of [`clamp_columns`].
#[inline(always)]
unsafe fn clamp_vector<V: Square, const WHOLE: bool, const STRIDE: usize>(
    t: &Clamped,
    col: usize,
    sums: *const f32,
    residual: Option<(*const f32, usize)>,
) {
    let n = t.cols - col;
    // SAFETY: by the contract.
    unsafe {
        let (low, high) = (V::splat(t.low), V::splat(t.high));
        for row in (0..t.rows).step_by(V::LANES) {
            let square = square_at::<V>(sums.add(row), STRIDE);
            let mut to = t.to.add(row * t.ld + col);
            let mut from = residual.map(|(data, ld)| (data.add(row * ld + col), ld));
            // Of whole squares, the rows need no counting.
            let rows = V::LANES.min(t.rows - row);
            for i in 0..V::LANES {
                if rows < V::LANES && i >= rows {
                    break;
                }
                let mut y = square[i];
                if let Some((data, ld)) = &mut from {
                    y = y.add(load::<V, WHOLE>(*data, n));
                    *data = data.wrapping_add(*ld);
                }
                store::<V, WHOLE>(y.clamp(low, high), to, n);
                to = to.wrapping_add(t.ld);
            }
        }
    }
}

/// The square of columns that begins there, as rows.
///
/// # Safety
/// The columns must be readable.
#[inline(always)]
unsafe fn square_at<V: Square>(at: *const f32, stride: usize) -> [V; 8] {
    let mut columns = [at; 8];
    for i in 0..V::LANES {
        columns[i] = at.wrapping_add(i * stride);
    }
    // SAFETY: by the contract.
    unsafe { V::load_columns(columns) }
}

per_vector! {
    /// Writes the sums of rows, filled to whole vectors.
    ///
    /// # Safety
    /// Starts must be in order and within the entries, whose depths lie in `from`; columns of the stride, which is
    /// [`VECTORS`] or [`FEW_VECTORS`], must be writable.
    pub(super) unsafe fn sum_columns<V>(t: &Columns<'_>) {
        // SAFETY: by the contract.
        unsafe {
            // So many sums that the latency of an addition is hidden.
            if t.stride == VECTORS * V::LANES {
                match t.rows.div_ceil(V::LANES) {
                    1 | 2 => sums::<V, 2, 4, 2>(t),
                    3 | 4 => sums::<V, 4, 2, 2>(t),
                    5 | 6 => sums::<V, 6, 1, 2>(t),
                    _ => sums::<V, VECTORS, 1, 2>(t),
                }
            } else {
                match t.rows.div_ceil(V::LANES) {
                    1 => sums::<V, 1, 4, 1>(t),
                    2 => sums::<V, 2, 4, 1>(t),
                    3 => sums::<V, 3, 2, 1>(t),
                    _ => sums::<V, FEW_VECTORS, 2, 1>(t),
                }
            }
        }
    }
}

/// Sums of `N` vectors of rows for each column, as `SETS` partial ones; depths lie `UNITS` times [`FEW_VECTORS`]
/// apart.
///
/// # Safety
/// As of [`sum_columns`].
#[inline(always)]
unsafe fn sums<V: Vector, const N: usize, const SETS: usize, const UNITS: usize>(t: &Columns<'_>) {
    // SAFETY: by the contract.
    unsafe {
        let bounds = t.starts.iter().zip(&t.starts[1..]);
        for (column, (&start, &end)) in bounds.enumerate() {
            let mut acc = [[V::splat(0.0); N]; SETS];
            if let Some(bias) = t.bias {
                acc[0] = [V::splat(*bias.add(column)); N];
            }
            let mut next = t.entries.as_ptr().add(start as usize);
            let end = t.entries.as_ptr().add(end as usize);
            let whole = next.add(end.offset_from_unsigned(next) / SETS * SETS);
            while next < whole {
                for s in 0..SETS {
                    add::<V, N, UNITS>(&mut acc[s], t.from, *next.add(s));
                }
                next = next.add(SETS);
            }
            for s in 0..SETS - 1 {
                if next < end {
                    add::<V, N, UNITS>(&mut acc[s], t.from, *next);
                    next = next.add(1);
                }
            }
            let to = t.to.add(column * t.stride);
            for v in 0..N {
                let mut sum = acc[0][v];
                for s in 1..SETS {
                    sum = sum.add(acc[s][v]);
                }
                sum.store(to.add(v * V::LANES));
            }
        }
    }
}

/// Adds the products of one entry.
///
/// # Safety
/// As of [`sum_columns`].
#[inline(always)]
unsafe fn add<V: Vector, const N: usize, const UNITS: usize>(
    acc: &mut [V; N],
    from: *const f32,
    entry: Entry,
) {
    // SAFETY: by the contract.
    unsafe {
        let at = from.add(entry.place as usize * UNITS);
        for v in 0..N {
            acc[v] = acc[v].add_scaled(entry.value, V::load(at.add(v * V::LANES)));
        }
    }
}

/// Sums of one row: `out[j]` is that of the column whose entries begin at `starts[j]`, and count in `unit`s.
pub(super) fn sum_row(x: &[f32], starts: &[u32], entries: &[Entry], unit: usize, out: &mut [f32]) {
    const SETS: usize = 4;
    let shift = unit.trailing_zeros();
    let product = |entry: &Entry| entry.value * x[(entry.place >> shift) as usize];
    for ((&start, &end), out) in starts.iter().zip(&starts[1..]).zip(out) {
        let mut acc = [0.0f32; SETS];
        let (groups, rest) = entries[start as usize..end as usize].as_chunks::<SETS>();
        for group in groups {
            for s in 0..SETS {
                acc[s] += product(&group[s]);
            }
        }
        for (sum, entry) in acc.iter_mut().zip(rest) {
            *sum += product(entry);
        }
        *out = (acc[0] + acc[1]) + (acc[2] + acc[3]);
    }
}
