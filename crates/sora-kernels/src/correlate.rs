//! Sums over pixels of products of channels: the gradient of a convolution with respect to its weights.

use alloc::vec;

use crate::{
    Kernels,
    isa::per_isa,
    operands::{Indirect, PAD},
    vector::{Vector, load, per_vector, store},
};

/// Pixels whose operands stay in the nearest caches while all taps read them.
const BLOCK: usize = 128;

/// Rows of the result that one pass over the pixels of a block sums: with two vectors each, as many sums as registers
/// hold and the latency of additions needs.
const ROWS: usize = 6;

/// Channels of a depthwise convolution whose sums stay in registers together.
const LANES: usize = 32;

/// Adds to `out` `[rows][n]`, rows `first..` of `[taps · kc][n]`, the sum over all pixels `p` of
/// `x[p][tap · kc + i] · dy[p][j]` at row `tap · kc + i` and column `j`. The windows `x` are rows of pieces as in a
/// product; `dy` is `[pixels][n]`. Nothing is transposed or packed.
///
/// Pixels are added in order whatever the part of the result asked for.
///
/// # Panics
/// When the operands differ in pixels, or the rows are not in the result.
pub fn correlate_f32(
    kernels: Kernels,
    x: &Indirect<'_, f32>,
    dy: &[f32],
    n: usize,
    first: usize,
    out: &mut [f32],
) {
    x.validate();
    assert_eq!(dy.len(), x.rows() * n, "operands differ in pixels");
    let rows = out.len().checked_div(n).unwrap_or(0);
    assert!(out.len() == rows * n && first + rows <= x.taps * x.kc, "rows outside of the result");
    if out.is_empty() {
        return;
    }
    let zeros = vec![0.0; x.kc];
    let mut pieces = [core::ptr::null(); BLOCK];
    for (block, dy) in dy.chunks(BLOCK * n).enumerate() {
        let count = dy.len() / n;
        let windows = &x.offsets[block * BLOCK * x.taps..];
        for tap in first / x.kc..(first + rows).div_ceil(x.kc) {
            // The rows of this tap that are asked for.
            let from = (tap * x.kc).max(first);
            let to = ((tap + 1) * x.kc).min(first + rows);
            for (piece, window) in pieces[..count].iter_mut().zip(windows.chunks_exact(x.taps)) {
                let whole = match window[tap] {
                    PAD => &zeros[..],
                    offset => &x.base[offset as usize..][..x.kc],
                };
                *piece = whole[from - tap * x.kc..].as_ptr();
            }
            let out = &mut out[(from - first) * n..(to - first) * n];
            // SAFETY: each piece has `to - from` elements left, `dy` `count` rows and `out` `to - from` rows of `n`;
            // the handle proves that the instruction set runs here.
            unsafe { accumulate(kernels, &pieces[..count], to - from, dy.as_ptr(), n, out.as_mut_ptr()) };
        }
    }
}

per_vector! {
    /// Adds the products of the first `rows` elements of every piece with the row of `dy` that belongs to it.
    ///
    /// # Safety
    /// `rows` elements of each piece, a row of `n` elements of `dy` for each, and `rows` rows of `out` must be there.
    unsafe fn accumulate<V>(pieces: &[*const f32], rows: usize, dy: *const f32, n: usize, out: *mut f32) {
        let parts = rows.div_ceil(ROWS);
        let mut first = 0;
        for part in 0..parts {
            let count = (rows - first).div_ceil(parts - part);
            // SAFETY: `count` rows from `first` on are among `rows`.
            unsafe {
                let out = out.add(first * n);
                match count {
                    1 => strip::<V, 1>(pieces, first, dy, n, out),
                    2 => strip::<V, 2>(pieces, first, dy, n, out),
                    3 => strip::<V, 3>(pieces, first, dy, n, out),
                    4 => strip::<V, 4>(pieces, first, dy, n, out),
                    5 => strip::<V, 5>(pieces, first, dy, n, out),
                    _ => strip::<V, ROWS>(pieces, first, dy, n, out),
                }
            }
            first += count;
        }
    }
}

/// All columns of `R` rows.
///
/// # Safety
/// As `accumulate`, for rows `first..first + R` of the pieces, which are those of `out`.
#[inline(always)]
unsafe fn strip<V: Vector, const R: usize>(
    pieces: &[*const f32],
    first: usize,
    dy: *const f32,
    n: usize,
    out: *mut f32,
) {
    let mut j = 0;
    // SAFETY: columns from `j` on, as many as the tile has, are below `n`.
    unsafe {
        while j + 2 * V::LANES <= n {
            tile::<V, R, 2, true>(pieces, first, dy.add(j), n, out.add(j), 0);
            j += 2 * V::LANES;
        }
        while j + V::LANES <= n {
            tile::<V, R, 1, true>(pieces, first, dy.add(j), n, out.add(j), 0);
            j += V::LANES;
        }
        if j < n {
            tile::<V, R, 1, false>(pieces, first, dy.add(j), n, out.add(j), n - j);
        }
    }
}

/// `C` vectors of `R` rows, or `rest` columns of them.
///
/// # Safety
/// As `strip`.
#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const C: usize, const WHOLE: bool>(
    pieces: &[*const f32],
    first: usize,
    dy: *const f32,
    n: usize,
    out: *mut f32,
    rest: usize,
) {
    // SAFETY: by the contract.
    unsafe {
        let mut sums = [[V::splat(0.0); C]; R];
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = load::<V, WHOLE>(out.add(r * n + c * V::LANES), rest);
            }
        }
        for (p, piece) in pieces.iter().enumerate() {
            let mut row = [V::splat(0.0); C];
            for c in 0..C {
                row[c] = load::<V, WHOLE>(dy.add(p * n + c * V::LANES), rest);
            }
            for r in 0..R {
                let x = *piece.add(first + r);
                for c in 0..C {
                    sums[r][c] = sums[r][c].add_scaled(x, row[c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                store::<V, WHOLE>(sums[r][c], out.add(r * n + c * V::LANES), rest);
            }
        }
    }
}

per_isa! {
    /// Adds to `out` `[taps][columns]`, columns `first..` of `[taps][kc]`, the sum over all pixels `p` of `x[p][tap][c] · dy[p][c]`:
    /// the gradient of the weights of a depthwise convolution. `dy` is `[pixels][kc]`.
    ///
    /// # Panics
    /// When the operands differ in pixels, or the columns are not in the result.
    pub fn correlate_depthwise_f32(x: &Indirect<'_, f32>, dy: &[f32], first: usize, out: &mut [f32]) {
        x.validate();
        let columns = out.len() / x.taps;
        assert_eq!(dy.len(), x.rows() * x.kc, "operands differ in pixels");
        assert!(out.len() == columns * x.taps && first + columns <= x.kc, "columns outside of the result");
        for start in (0..columns).step_by(LANES) {
            let (from, count) = (first + start, LANES.min(columns - start));
            // Pixels in blocks, which all taps read while they lie in the nearest cache, and whose number the error does not
            // grow with.
            for (windows, dy) in x.offsets.chunks(BLOCK * x.taps).zip(dy.chunks(BLOCK * x.kc)) {
                for (tap, out) in out.chunks_exact_mut(columns).enumerate() {
                    let mut sums = [0.0f32; LANES];
                    let offsets = windows.chunks_exact(x.taps).map(|window| window[tap]);
                    for (offset, dy) in offsets.zip(dy.chunks_exact(x.kc)) {
                        if offset == PAD {
                            continue;
                        }
                        let (x, dy) = (&x.base[offset as usize + from..], &dy[from..]);
                        if let (Some(x), Some(dy)) = (x.first_chunk::<LANES>(), dy.first_chunk::<LANES>()) {
                            for j in 0..LANES {
                                sums[j] += x[j] * dy[j];
                            }
                        } else {
                            sums.iter_mut().zip(x).zip(dy).for_each(|((sum, x), dy)| *sum += x * dy);
                        }
                    }
                    out[start..start + count].iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_isa_sums_what_plain_loops_sum_whatever_the_part() {
        let mut rng = fastrand::Rng::with_seed(2);
        for round in 0..60 {
            let (taps, kc, n) = (rng.usize(1..4), rng.usize(1..20), rng.usize(1..70));
            let pixels = rng.usize(1..300);
            let base: Vec<f32> = (0..500).map(|_| rng.f32() - 0.5).collect();
            let dy: Vec<f32> = (0..pixels * n).map(|_| rng.f32() - 0.5).collect();
            let mut offset = || if rng.u8(0..5) == 0 { PAD } else { rng.u32(0..(500 - kc) as u32) };
            let offsets: Vec<u32> = (0..pixels * taps).map(|_| offset()).collect();
            let x = Indirect { base: &base, offsets: &offsets, taps, kc, pad: &[] };
            let mut expected = vec![1.0f64; taps * kc * n];
            for (at, sum) in expected.iter_mut().enumerate() {
                let (row, j) = (at / n, at % n);
                for p in 0..pixels {
                    if let Some(from) = Some(offsets[p * taps + row / kc]).filter(|&o| o != PAD) {
                        *sum += f64::from(base[from as usize + row % kc]) * f64::from(dy[p * n + j]);
                    }
                }
            }
            for kernels in Kernels::all_available() {
                let mut whole = vec![1.0f32; taps * kc * n];
                correlate_f32(kernels, &x, &dy, n, 0, &mut whole);
                for (found, expected) in whole.iter().zip(&expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error < 1e-4, "round {round}: {found} instead of {expected}");
                }
                let cut = rng.usize(0..=taps * kc);
                let mut parts = vec![1.0f32; taps * kc * n];
                let (top, bottom) = parts.split_at_mut(cut * n);
                correlate_f32(kernels, &x, &dy, n, 0, top);
                correlate_f32(kernels, &x, &dy, n, cut, bottom);
                assert_eq!(whole, parts);
            }
        }
    }

    #[test]
    fn channels_by_themselves_are_the_diagonal_whatever_the_part() {
        let mut rng = fastrand::Rng::with_seed(5);
        for kc in [1, 5, 32, 33, 70] {
            let (taps, pixels) = (rng.usize(1..10), rng.usize(1..300));
            let base: Vec<f32> = (0..900).map(|_| rng.f32() - 0.5).collect();
            let dy: Vec<f32> = (0..pixels * kc).map(|_| rng.f32() - 0.5).collect();
            let mut offset = || if rng.u8(0..5) == 0 { PAD } else { rng.u32(0..(900 - kc) as u32) };
            let offsets: Vec<u32> = (0..pixels * taps).map(|_| offset()).collect();
            let x = Indirect { base: &base, offsets: &offsets, taps, kc, pad: &[] };
            let mut seen: Option<Vec<f32>> = None;
            for kernels in Kernels::all_available() {
                let mut all = vec![0.0f32; taps * kc];
                let cut = rng.usize(0..=kc);
                for (first, columns) in [(0, cut), (cut, kc - cut)] {
                    let mut part = vec![1.0f32; taps * columns];
                    correlate_depthwise_f32(kernels, &x, &dy, first, &mut part);
                    for (at, &sum) in part.iter().enumerate() {
                        let (tap, c) = (at / columns, first + at % columns);
                        let read = |p: usize| Some(offsets[p * taps + tap]).filter(|&o| o != PAD);
                        let product = |p: usize| {
                            read(p)
                                .map_or(0.0, |o| f64::from(base[o as usize + c]) * f64::from(dy[p * kc + c]))
                        };
                        let expected = 1.0 + (0..pixels).map(product).sum::<f64>();
                        assert!((f64::from(sum) - expected).abs() < 1e-4, "{sum} instead of {expected}");
                        all[tap * kc + c] = sum;
                    }
                }
                assert_eq!(*seen.get_or_insert_with(|| all.clone()), all);
            }
        }
    }
}
