//! Products of bytes that skip blocks of zeros.
//!
//! A block is what a micro-kernel multiplies at a time: some depths of the columns of a panel. Of each row, the depths
//! that the blocks of a panel need are put side by side; then the micro-kernel of the dense product runs on them. So
//! every instruction set has this product, with exactly the integers of the dense one.

use alloc::{vec, vec::Vec};

use crate::{
    Kernels,
    aligned::Aligned,
    epilogue::{EpilogueI32, Finish, Place, Scratch, finish_i32},
    gemm::{I8Tiles, MAX_TILE, TileArgs, driver::row_tiles},
    operands::{ARows, Output},
    pack::PackedI8,
    table::Tile,
};

/// Bytes of the left operand that stay in the second-level cache while all panels pass by.
const BLOCK_BYTES: usize = 256 * 1024;

/// Right operand of [`sparse_u8i8`]: of each panel the blocks that are not all zero.
#[derive(Debug)]
pub struct SparseI8 {
    tile: Tile,
    tiles: &'static I8Tiles,
    taps: usize,
    kc: usize,
    n: usize,
    /// Where the blocks of each panel begin, and where those of the last one end.
    starts: Vec<usize>,
    /// The depth of each block, in blocks.
    steps: Vec<u32>,
    /// `[blocks][nr][k_granule]`
    data: Aligned<i8>,
    sums: Aligned<i32>,
}

impl SparseI8 {
    /// The same operand without its blocks of zeros.
    pub fn of(packed: &PackedI8) -> Self {
        let panels = &packed.panels;
        let Tile { nr, k_granule, .. } = panels.tile;
        let (mut starts, mut steps, mut data) = (vec![0], Vec::new(), Vec::new());
        for panel in panels.data.as_slice().chunks_exact(panels.stride().max(1)) {
            for (step, block) in (0..).zip(panel.chunks_exact(nr * k_granule)) {
                if block.iter().any(|&b| b != 0) {
                    steps.push(step);
                    data.extend_from_slice(block);
                }
            }
            starts.push(steps.len());
        }
        starts.resize(panels.n.div_ceil(nr) + 1, steps.len());
        let mut aligned = Aligned::zeroed(data.len());
        aligned.as_mut_slice().copy_from_slice(&data);
        let mut sums = Aligned::zeroed(packed.sums.as_slice().len());
        sums.as_mut_slice().copy_from_slice(packed.sums.as_slice());
        let (tile, tiles) = (panels.tile, panels.tiles);
        Self {
            tile,
            tiles,
            taps: panels.taps,
            kc: panels.kc,
            n: panels.n,
            starts,
            steps,
            data: aligned,
            sums,
        }
    }

    /// Number of columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Blocks that are not all zero, and all.
    pub fn blocks(&self) -> [usize; 2] {
        let each = self.taps * self.kc.div_ceil(self.tile.k_granule);
        [self.steps.len(), each * self.n.div_ceil(self.tile.nr)]
    }

    /// Work is split between columns only at multiples of it.
    pub fn col_granule(&self) -> usize {
        self.tile.nr
    }

    /// Σₖ B\[k\]\[n\] for each of the `n` columns.
    pub fn col_sums(&self) -> &[i32] {
        &self.sums.as_slice()[..self.n]
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(self.data.as_slice()) + size_of_val(&self.steps[..])
    }
}

/// What [`sparse_u8i8`] takes for `m` rows, in multiply-adds of the dense product: roughly, and as measured by
/// `sora bench --sparsity`.
pub fn sparse_blocks_cost(m: usize, b: &SparseI8) -> usize {
    let Tile { nr, k_granule, .. } = b.tile;
    m * (b.steps.len() * nr * k_granule * PICKED / 4 + b.taps * b.kc * PREPARED)
}

/// Quarters of a multiply-add of the dense product that one takes here.
const PICKED: usize = 9;

/// Multiply-adds in the time that an element of a row takes to be prepared.
const PREPARED: usize = 4;

/// `out = epilogue(A · B)`, as [`crate::gemm_u8i8`] computes it, for B without its blocks of zeros.
///
/// # Panics
/// When the shapes of `a`, `b`, `ep` and `out` disagree, or `n0` is not a multiple of [`SparseI8::col_granule`].
pub fn sparse_u8i8(
    kernels: Kernels,
    a: &ARows<'_, u8>,
    b: &SparseI8,
    n0: usize,
    ep: &EpilogueI32<'_>,
    mut out: Output<'_>,
) {
    let (m, n) = (out.rows(), out.cols());
    let Tile { nr, k_granule, .. } = b.tile;
    assert_eq!(a.rows(), m, "A and the output differ in rows");
    let (taps, kc) = (a.taps(), a.kc());
    assert!((taps, kc) == (b.taps, b.kc), "A has {taps}x{kc} depth, B {}x{}", b.taps, b.kc);
    let end = n0 + n;
    let aligned = n0.is_multiple_of(nr) && end <= b.n;
    assert!(aligned, "columns {n0}..{end} of {} do not start at a multiple of {nr}", b.n);
    if m == 0 || n == 0 {
        return;
    }
    a.validate(kernels);
    ep.validate(m, end);
    let finish = match nr {
        8 => finish_i32::<8>,
        16 => finish_i32::<16>,
        _ => finish_i32::<32>,
    };

    let places = kc.next_multiple_of(k_granule);
    let depth = taps * places;
    let element = if b.tiles.widen.is_some() { size_of::<i16>() } else { 1 };
    let mr = b.tiles.by_rows.len();
    let per_block = (BLOCK_BYTES / (depth * element).max(1)).max(1).next_multiple_of(mr).min(m);
    let mut wide = vec![0i16; if element == 2 { per_block * depth } else { 0 }];
    let mut bytes = vec![0u8; if element == 1 { per_block * depth } else { 0 }];
    let most = b.starts.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap_or(0);
    let row_bytes = most * k_granule * element;
    let mut picked = vec![0u8; mr * row_bytes];
    let mut scratch = Scratch::new(0);
    for first in (0..m).step_by(per_block) {
        let rows = per_block.min(m - first);
        let prepared: *const u8 = match b.tiles.widen {
            Some(widen) => {
                widen(kernels, a, first, &mut wide[..rows * depth], depth);
                wide.as_ptr().cast()
            }
            None => {
                for (row, to) in bytes.chunks_exact_mut(depth.max(1)).enumerate().take(rows) {
                    for (tap, to) in to.chunks_exact_mut(places.max(1)).enumerate() {
                        to[..kc].copy_from_slice(a.piece(first + row, tap));
                    }
                }
                bytes.as_ptr()
            }
        };
        for col in (0..n).step_by(nr) {
            let panel = (n0 + col) / nr;
            let blocks = b.starts[panel]..b.starts[panel + 1];
            let steps = &b.steps[blocks.clone()];
            let data = &b.data.as_slice()[blocks.start * nr * k_granule..blocks.end * nr * k_granule];
            // Tiles of one panel are finished together, as many as the scratch memory holds.
            let together = MAX_TILE / nr / mr * mr;
            for group in (0..rows).step_by(together) {
                let count = together.min(rows - group);
                for (row, height) in row_tiles(count, mr) {
                    let from = prepared.wrapping_add((group + row) * depth * element);
                    let mut pointers = [core::ptr::null::<u8>(); 16];
                    for (i, pointer) in pointers[..height].iter_mut().enumerate() {
                        *pointer = picked[i * row_bytes..].as_ptr();
                    }
                    let to = picked.as_mut_ptr();
                    // SAFETY: steps lie in the depth, of which so many rows were prepared; there is room for the
                    // steps of as many rows.
                    unsafe {
                        match k_granule * element {
                            1 => pick::<1>(from, depth * element, height, steps, to, row_bytes),
                            2 => pick::<2>(from, depth * element, height, steps, to, row_bytes),
                            4 => pick::<4>(from, depth * element, height, steps, to, row_bytes),
                            _ => pick::<8>(from, depth * element, height, steps, to, row_bytes),
                        }
                    }
                    let args = TileArgs {
                        rows: pointers.as_ptr(),
                        step: 0,
                        taps: 1,
                        kc: steps.len() * k_granule,
                        panel: data.as_ptr(),
                        panel_stride: data.len(),
                        ahead: data.as_ptr().wrapping_add(data.len()),
                        ahead_step: 0,
                        sums: b.sums.as_slice()[panel * nr..].as_ptr(),
                        begin: core::ptr::null(),
                    };
                    let tile = &mut scratch.acc[row * nr..][..height * nr];
                    // SAFETY: the operand was packed for a handle, so the kernel's instruction set runs here; the
                    // rows and the panel have the steps, in the form that the kernel reads; the tile has room for
                    // these rows.
                    unsafe { b.tiles.by_rows[height - 1](&args, tile.as_mut_ptr()) };
                }
                let place = Place { row: first + group, rows: count, col, cols: nr.min(n - col), n0 };
                finish(kernels, ep, &mut scratch, 0, place, &mut out);
            }
        }
    }
}

/// Puts pieces of `N` bytes of each row side by side.
///
/// # Safety
/// The pieces must be readable in each of `height` rows, and rows of as many pieces be writable.
#[inline(always)]
unsafe fn pick<const N: usize>(
    from: *const u8,
    stride: usize,
    height: usize,
    steps: &[u32],
    to: *mut u8,
    to_stride: usize,
) {
    // SAFETY: by the contract; bytes have no alignment.
    unsafe {
        for row in 0..height {
            let (from, to) = (from.add(row * stride), to.add(row * to_stride));
            for (i, &step) in steps.iter().enumerate() {
                let piece = from.add(step as usize * N).cast::<[u8; N]>().read();
                to.add(i * N).cast::<[u8; N]>().write(piece);
            }
        }
    }
}
