//! The right operand of a matrix product, stored in the order micro-kernels read it.

use alloc::vec::Vec;

use crate::{
    Kernels,
    aligned::{Aligned, Plain, SharedBytes},
    gemm::Tiles,
    table::{Tile, gemm_bf16_tiles, gemm_f32_tiles, gemm_u8i8_tiles},
};

/// Panels `[n / nr][taps][kc / granule][nr][granule]`, padded with zeros.
#[derive(Debug)]
pub(crate) struct Panels<A: 'static, B: 'static, C: 'static> {
    pub(crate) data: Aligned<B>,
    pub(crate) n: usize,
    pub(crate) taps: usize,
    pub(crate) kc: usize,
    pub(crate) tile: Tile,
    pub(crate) tiles: &'static Tiles<A, B, C>,
}

impl<A, B: Plain, C> Panels<A, B, C> {
    pub(crate) fn new(tile: Tile, tiles: &'static Tiles<A, B, C>, taps: usize, kc: usize, n: usize) -> Self {
        let mut panels = Self { data: Aligned::zeroed(0), n, taps, kc, tile, tiles };
        panels.reshape(taps, kc, n);
        panels
    }

    /// Panels of this shape in memory that holds them already; `None` when it has another size.
    pub(crate) fn restore(
        tile: Tile,
        tiles: &'static Tiles<A, B, C>,
        (taps, kc, n): (usize, usize, usize),
        data: SharedBytes,
    ) -> Option<Self> {
        let panels = Self { data: Aligned::shared(data)?, n, taps, kc, tile, tiles };
        (panels.data.as_slice().len() == n.div_ceil(tile.nr) * panels.stride()).then_some(panels)
    }

    fn reshape(&mut self, taps: usize, kc: usize, n: usize) {
        (self.taps, self.kc, self.n) = (taps, kc, n);
        let panels = n.div_ceil(self.tile.nr);
        self.data.resize(panels * self.stride());
    }

    /// Elements per panel.
    pub(crate) fn stride(&self) -> usize {
        self.taps * self.kc.next_multiple_of(self.tile.k_granule) * self.tile.nr
    }

    /// Writes every element, each at `origin + n * strides[0] + channel * strides[1] + tap * strides[2]` of
    /// `source`.
    fn fill_strided<S: Copy>(
        &mut self,
        source: &[S],
        origin: usize,
        strides: [usize; 3],
        convert: impl Fn(S) -> B,
    ) {
        let [of_column, of_channel, of_tap] = strides;
        match (self.tile.k_granule, strides) {
            (1, [1, ..]) => self.fill_rows::<1, S>(source, origin, strides, convert),
            (2, [1, ..]) => self.fill_rows::<2, S>(source, origin, strides, convert),
            (4, [1, ..]) => self.fill_rows::<4, S>(source, origin, strides, convert),
            (8, [1, ..]) => self.fill_rows::<8, S>(source, origin, strides, convert),
            (1, [_, 1, _]) => self.fill_lines::<1, S>(source, origin, strides, convert),
            (2, [_, 1, _]) => self.fill_lines::<2, S>(source, origin, strides, convert),
            (4, [_, 1, _]) => self.fill_lines::<4, S>(source, origin, strides, convert),
            (8, [_, 1, _]) => self.fill_lines::<8, S>(source, origin, strides, convert),
            _ => {
                let convert = &convert;
                self.fill_columns(|tap, col| {
                    let piece = &source[origin + col * of_column + tap * of_tap..];
                    move |k| convert(piece[k * of_channel])
                });
            }
        }
    }

    /// As [`Panels::fill_strided`] where columns are neighbours: reads rows, one depth at a time.
    fn fill_rows<const G: usize, S: Copy>(
        &mut self,
        source: &[S],
        origin: usize,
        [_, of_channel, of_tap]: [usize; 3],
        convert: impl Fn(S) -> B,
    ) {
        let (n, kc, nr) = (self.n, self.kc, self.tile.nr);
        self.each_piece::<G>(|first, tap, cells| {
            let cols = nr.min(n - first);
            let row = |k: usize| &source[origin + first + k * of_channel + tap * of_tap..][..cols];
            for (group, step) in cells.chunks_exact_mut(nr).enumerate() {
                let depth = group * G;
                if depth + G <= kc {
                    let rows: [&[S]; G] = core::array::from_fn(|u| row(depth + u));
                    for (j, cell) in step[..cols].iter_mut().enumerate() {
                        *cell = core::array::from_fn(|u| convert(rows[u][j]));
                    }
                } else {
                    for k in depth..kc {
                        step.iter_mut().zip(row(k)).for_each(|(cell, &x)| cell[k % G] = convert(x));
                    }
                }
            }
        });
    }

    /// As [`Panels::fill_strided`] where channels are neighbours: reads columns, some at a time, so that what is
    /// written stays in registers and the nearest cache.
    fn fill_lines<const G: usize, S: Copy>(
        &mut self,
        source: &[S],
        origin: usize,
        [of_column, _, of_tap]: [usize; 3],
        convert: impl Fn(S) -> B,
    ) {
        const COLUMNS: usize = 4;
        const GROUPS: usize = 16;
        let (n, kc, nr) = (self.n, self.kc, self.tile.nr);
        self.each_piece::<G>(|first, tap, cells| {
            let cols = nr.min(n - first);
            let line = |j: usize| source[origin + (first + j) * of_column + tap * of_tap..][..kc].as_chunks();
            for (block, steps) in cells.chunks_mut(GROUPS * nr).enumerate() {
                let start = block * GROUPS;
                let count = (kc / G).min(start + GROUPS) - start;
                let mut j = 0;
                while j + COLUMNS <= cols {
                    let lines: [&[[S; G]]; COLUMNS] =
                        core::array::from_fn(|c| &line(j + c).0[start..start + count]);
                    for (group, step) in steps.chunks_exact_mut(nr).take(count).enumerate() {
                        let cells: [[B; G]; COLUMNS] =
                            core::array::from_fn(|c| lines[c][group].map(&convert));
                        step[j..j + COLUMNS].copy_from_slice(&cells);
                    }
                    j += COLUMNS;
                }
                for j in j..cols {
                    let groups = line(j).0[start..start + count].iter();
                    for (step, group) in steps.chunks_exact_mut(nr).zip(groups) {
                        step[j] = group.map(&convert);
                    }
                }
                if let Some(step) = steps.chunks_exact_mut(nr).nth(count) {
                    for (j, cell) in step[..cols].iter_mut().enumerate() {
                        let rest: &[S] = line(j).1;
                        cell.iter_mut().zip(rest).for_each(|(to, &x)| *to = convert(x));
                    }
                }
            }
        });
    }

    /// Calls `fill` with the first column, the tap, and the granules `[kc / G][nr]` of every piece of a panel,
    /// zeros where it may leave some.
    fn each_piece<const G: usize>(&mut self, mut fill: impl FnMut(usize, usize, &mut [[B; G]])) {
        let (n, kc, taps, nr, stride) = (self.n, self.kc, self.taps, self.tile.nr, self.stride());
        if stride == 0 {
            return;
        }
        for (first, panel) in (0..n).step_by(nr).zip(self.data.as_mut_slice().chunks_exact_mut(stride)) {
            if n - first < nr || kc % G > 0 {
                panel.fill(B::ZERO);
            }
            let (cells, _) = panel.as_chunks_mut::<G>();
            for (tap, cells) in cells.chunks_exact_mut(stride / taps / G).enumerate() {
                fill(first, tap, cells);
            }
        }
    }

    /// Writes every element; `value(k, n)` with `k = tap * kc + channel`.
    ///
    /// Weights lie column by column in most files, so a column is read some depth at a time: long enough to
    /// use whole cache lines of the source, short enough for the lines written to stay in the first-level cache.
    fn fill(&mut self, value: impl Fn(usize, usize) -> B) {
        let (kc, value) = (self.kc, &value);
        self.fill_columns(|tap, col| move |k| value(tap * kc + k, col));
    }

    /// `column(tap, n)` gives the elements of a piece of column `n` by their depth.
    fn fill_columns<R: Fn(usize) -> B>(&mut self, column: impl Fn(usize, usize) -> R) {
        match self.tile.k_granule {
            1 => self.fill_granules::<1, R>(column),
            2 => self.fill_granules::<2, R>(column),
            4 => self.fill_granules::<4, R>(column),
            8 => self.fill_granules::<8, R>(column),
            granule => panic!("no kernel reads {granule} depths together"),
        }
    }

    fn fill_granules<const G: usize, R: Fn(usize) -> B>(&mut self, column: impl Fn(usize, usize) -> R) {
        const DEPTH: usize = 16;
        let (n, kc, taps, nr, stride) = (self.n, self.kc, self.taps, self.tile.nr, self.stride());
        if stride == 0 {
            return;
        }
        let piece = stride / taps;
        for (first, panel) in (0..n).step_by(nr).zip(self.data.as_mut_slice().chunks_exact_mut(stride)) {
            let cols = nr.min(n - first);
            if cols < nr || kc % G > 0 {
                panel.fill(B::ZERO);
            }
            let (cells, _) = panel.as_chunks_mut::<G>();
            for start in (0..kc).step_by(DEPTH) {
                let end = kc.min(start + DEPTH);
                for j in 0..cols {
                    for tap in 0..taps {
                        let cells = &mut cells[tap * piece / G..][..piece / G];
                        let at = column(tap, first + j);
                        for group in start / G..end / G {
                            cells[group * nr + j] = core::array::from_fn(|u| at(group * G + u));
                        }
                        for k in (end / G * G).max(start)..end {
                            cells[k / G * nr + j][k % G] = at(k);
                        }
                    }
                }
            }
        }
    }
}

/// Packed right operand of [`crate::gemm_f32`].
#[derive(Debug)]
pub struct PackedF32 {
    pub(crate) panels: Panels<f32, f32, f32>,
}

/// Packed right operand of [`crate::gemm_bf16`]: bits of bf16, as [`crate::bf16::round`] makes them.
#[derive(Debug)]
pub struct PackedBf16 {
    pub(crate) panels: Panels<u16, u16, f32>,
}

/// Packed right operand of [`crate::gemm_u8i8`], with its column sums.
#[derive(Debug)]
pub struct PackedI8 {
    pub(crate) panels: Panels<u8, i8, i32>,
    /// Padded with zeros to whole panels.
    pub(crate) sums: Aligned<i32>,
}

/// Forwards the common constructors and accessors of a packed operand to its panels.
macro_rules! packed {
    ($packed:ident, $element:ty) => {
        impl $packed {
            /// Packs B of depth `taps * kc` and `n` columns; `value(k, n)` is element (k, n) with
            /// `k = tap * kc + channel`.
            pub fn pack(
                kernels: Kernels,
                taps: usize,
                kc: usize,
                n: usize,
                value: impl Fn(usize, usize) -> $element,
            ) -> Self {
                let mut packed = Self::empty(kernels, taps, kc, n);
                packed.fill_with(|panels| panels.fill(value));
                packed
            }

            /// Packs elements at fixed strides: that of column `n`, channel `c` and tap `t` is
            /// `convert(source[origin + n * strides[0] + c * strides[1] + t * strides[2]])`.
            ///
            /// # Panics
            /// When `source` is too short.
            #[allow(clippy::too_many_arguments)]
            pub fn from_strided<S: Copy>(
                kernels: Kernels,
                (taps, kc, n): (usize, usize, usize),
                source: &[S],
                origin: usize,
                strides: [usize; 3],
                convert: impl Fn(S) -> $element,
            ) -> Self {
                let mut packed = Self::empty(kernels, taps, kc, n);
                packed.fill_with(|panels| panels.fill_strided(source, origin, strides, convert));
                packed
            }

            /// Packs a row-major `k × n` matrix with leading dimension `ld`.
            pub fn from_kn(kernels: Kernels, data: &[$element], k: usize, n: usize, ld: usize) -> Self {
                let mut packed = Self::empty(kernels, 1, k, n);
                packed.repack_kn(data, k, n, ld);
                packed
            }

            /// Packs the transpose of a row-major `n × k` matrix with leading dimension `ld`.
            pub fn from_nk(kernels: Kernels, data: &[$element], k: usize, n: usize, ld: usize) -> Self {
                let mut packed = Self::empty(kernels, 1, k, n);
                packed.repack_nk(data, k, n, ld);
                packed
            }

            /// Number of columns.
            pub fn n(&self) -> usize {
                self.panels.n
            }

            /// Pieces per row of A.
            pub fn taps(&self) -> usize {
                self.panels.taps
            }

            /// Length of a piece.
            pub fn kc(&self) -> usize {
                self.panels.kc
            }

            /// Columns per panel: work is split between columns only at multiples of it.
            pub fn col_granule(&self) -> usize {
                self.panels.tile.nr
            }

            /// Memory taken.
            pub fn bytes(&self) -> usize {
                size_of_val(self.panels.data.as_slice())
            }
        }
    };
}

packed!(PackedF32, f32);
packed!(PackedBf16, u16);
packed!(PackedI8, i8);

impl PackedF32 {
    fn empty(kernels: Kernels, taps: usize, kc: usize, n: usize) -> Self {
        let (tile, tiles) = gemm_f32_tiles(kernels);
        Self { panels: Panels::new(tile, tiles, taps, kc, n) }
    }

    fn fill_with(&mut self, fill: impl FnOnce(&mut Panels<f32, f32, f32>)) {
        fill(&mut self.panels);
    }

    /// [`Self::from_strided`] into the memory of an earlier operand.
    ///
    /// # Panics
    /// When `source` is too short.
    pub fn repack_strided(
        &mut self,
        (taps, kc, n): (usize, usize, usize),
        source: &[f32],
        origin: usize,
        strides: [usize; 3],
    ) {
        self.panels.reshape(taps, kc, n);
        self.panels.fill_strided(source, origin, strides, |w| w);
    }

    /// [`Self::pack`] into the memory of an earlier operand.
    pub fn repack(&mut self, taps: usize, kc: usize, n: usize, value: impl Fn(usize, usize) -> f32) {
        self.panels.reshape(taps, kc, n);
        self.panels.fill(value);
    }

    /// [`Self::from_kn`] into the memory of an earlier operand.
    ///
    /// # Panics
    /// When the matrix does not fit `data`.
    pub fn repack_kn(&mut self, data: &[f32], k: usize, n: usize, ld: usize) {
        self.panels.reshape(1, k, n);
        let nr = self.panels.tile.nr;
        let panels = self.panels.data.as_mut_slice().chunks_exact_mut((k * nr).max(1));
        for (first, panel) in (0..n).step_by(nr).zip(panels) {
            let cols = nr.min(n - first);
            for (row, step) in panel.chunks_exact_mut(nr).enumerate() {
                step[..cols].copy_from_slice(&data[row * ld + first..][..cols]);
                step[cols..].fill(0.0);
            }
        }
    }

    /// [`Self::from_nk`] into the memory of an earlier operand.
    ///
    /// # Panics
    /// When the matrix does not fit `data`.
    pub fn repack_nk(&mut self, data: &[f32], k: usize, n: usize, ld: usize) {
        self.panels.reshape(1, k, n);
        let nr = self.panels.tile.nr;
        let panels = self.panels.data.as_mut_slice().chunks_exact_mut((k * nr).max(1));
        for (first, panel) in (0..n).step_by(nr).zip(panels) {
            let cols = nr.min(n - first);
            if cols < nr {
                panel.fill(0.0);
            }
            // A few depths at a time, so that the lines written stay in the first-level cache.
            for (block, steps) in panel.chunks_mut(16 * nr).enumerate() {
                let depth = steps.len() / nr;
                for j in 0..cols {
                    let column = &data[(first + j) * ld + 16 * block..][..depth];
                    for (step, &x) in steps.chunks_exact_mut(nr).zip(column) {
                        step[j] = x;
                    }
                }
            }
        }
    }
}

impl PackedBf16 {
    fn empty(kernels: Kernels, taps: usize, kc: usize, n: usize) -> Self {
        let (tile, tiles) = gemm_bf16_tiles(kernels);
        Self { panels: Panels::new(tile, tiles, taps, kc, n) }
    }

    fn fill_with(&mut self, fill: impl FnOnce(&mut Panels<u16, u16, f32>)) {
        fill(&mut self.panels);
    }

    /// [`Self::from_kn`] into the memory of an earlier operand.
    ///
    /// # Panics
    /// When the matrix does not fit `data`.
    pub fn repack_kn(&mut self, data: &[u16], k: usize, n: usize, ld: usize) {
        self.panels.reshape(1, k, n);
        self.fill_with(|panels| panels.fill_strided(data, 0, [1, ld, 0], |w| w));
    }

    /// [`Self::from_nk`] into the memory of an earlier operand.
    ///
    /// # Panics
    /// When the matrix does not fit `data`.
    pub fn repack_nk(&mut self, data: &[u16], k: usize, n: usize, ld: usize) {
        self.panels.reshape(1, k, n);
        self.fill_with(|panels| panels.fill_strided(data, 0, [ld, 1, 0], |w| w));
    }
}

impl PackedI8 {
    fn empty(kernels: Kernels, taps: usize, kc: usize, n: usize) -> Self {
        let (tile, tiles) = gemm_u8i8_tiles(kernels);
        Self { panels: Panels::new(tile, tiles, taps, kc, n), sums: Aligned::zeroed(0) }
    }

    /// Fills the panels and adds up their columns.
    fn fill_with(&mut self, fill: impl FnOnce(&mut Panels<u8, i8, i32>)) {
        fill(&mut self.panels);
        let Tile { nr, k_granule, .. } = self.panels.tile;
        let stride = self.panels.stride();
        self.sums.resize(self.panels.n.next_multiple_of(nr));
        let sums = self.sums.as_mut_slice();
        sums.fill(0);
        if stride == 0 {
            return;
        }
        let panels = self.panels.data.as_slice().chunks_exact(stride);
        for (sums, panel) in sums.chunks_exact_mut(nr).zip(panels) {
            match k_granule {
                1 => add_steps::<1>(panel, sums),
                2 => add_steps::<2>(panel, sums),
                4 => add_steps::<4>(panel, sums),
                _ => add_steps::<8>(panel, sums),
            }
        }
    }

    /// [`Self::from_kn`] into the memory of an earlier operand.
    ///
    /// # Panics
    /// When the matrix does not fit `data`.
    pub fn repack_kn(&mut self, data: &[i8], k: usize, n: usize, ld: usize) {
        self.panels.reshape(1, k, n);
        self.fill_with(|panels| panels.fill_strided(data, 0, [1, ld, 0], |w| w));
    }

    /// [`Self::from_nk`] into the memory of an earlier operand.
    ///
    /// # Panics
    /// When the matrix does not fit `data`.
    pub fn repack_nk(&mut self, data: &[i8], k: usize, n: usize, ld: usize) {
        self.panels.reshape(1, k, n);
        self.fill_with(|panels| panels.fill_strided(data, 0, [ld, 1, 0], |w| w));
    }

    /// Σₖ B\[k\]\[n\] for each of the `n` columns.
    pub fn col_sums(&self) -> &[i32] {
        &self.sums.as_slice()[..self.panels.n]
    }
}

/// Adds a panel's elements, column by column, to `sums`.
fn add_steps<const G: usize>(panel: &[i8], sums: &mut [i32]) {
    let (cells, _) = panel.as_chunks::<G>();
    for step in cells.chunks_exact(sums.len()) {
        for (sum, cell) in sums.iter_mut().zip(step) {
            for &b in cell {
                *sum += i32::from(b);
            }
        }
    }
}

/// Biases that make up for an input whose zero is `zero_point`:
/// `bias[n] − zero_point · col_sums[n]`, wrapping like the accumulators.
pub fn fold_zero_point(bias: Option<&[i32]>, col_sums: &[i32], zero_point: i32) -> Vec<i32> {
    let shifts = col_sums.iter().map(|s| s.wrapping_mul(zero_point));
    match bias {
        None => shifts.map(i32::wrapping_neg).collect(),
        Some(bias) => {
            assert_eq!(bias.len(), col_sums.len(), "one bias per column");
            bias.iter().zip(shifts).map(|(b, s)| b.wrapping_sub(s)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// Every order of the strides, with tails in depth and columns, packs what the closure says.
    #[test]
    fn strided_sources_pack_like_single_elements() {
        let mut rng = fastrand::Rng::with_seed(5);
        for kernels in Kernels::all_available() {
            for round in 0..60 {
                let (taps, kc, n) = (rng.usize(1..4), rng.usize(1..150), rng.usize(1..90));
                let gap = rng.usize(0..3);
                let (strides, len) = match round % 4 {
                    0 => ([1, n + gap, (n + gap) * kc], taps * kc * (n + gap)),
                    1 => ([taps * (kc + gap), 1, kc + gap], n * taps * (kc + gap)),
                    2 => ([kc * taps, taps, 1], n * kc * taps),
                    _ => ([taps, n * taps, 1], n * kc * taps),
                };
                let origin = rng.usize(0..5);
                let source: Vec<u8> = (0..origin + len).map(|_| rng.u8(..)).collect();
                let at = |k: usize, n: usize| {
                    source[origin + n * strides[0] + k % kc * strides[1] + k / kc * strides[2]]
                };
                let extents = (taps, kc, n);
                macro_rules! same {
                    ($packed:ident, $convert:expr) => {
                        let strided =
                            $packed::from_strided(kernels, extents, &source, origin, strides, $convert);
                        let single = $packed::pack(kernels, taps, kc, n, |k, n| $convert(at(k, n)));
                        assert_eq!(
                            strided.panels.data.as_slice(),
                            single.panels.data.as_slice(),
                            "{kernels:?} {extents:?} {strides:?}"
                        );
                    };
                }
                same!(PackedF32, f32::from);
                same!(PackedBf16, u16::from);
                same!(PackedI8, |x: u8| x as i8);
            }
        }
    }
}
