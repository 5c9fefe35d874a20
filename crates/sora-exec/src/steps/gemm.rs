//! Products with constant weights: dense, convolution, depthwise; in `f32`, in bf16 and in bytes.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use smallvec::SmallVec;
use sora_kernels::{
    ARows, Activation, Dense, EpilogueF32, EpilogueI32, Indirect, Kernels, MatMut, Output, PackedBf16,
    PackedDwF32, PackedDwI8, PackedF32, PackedI8, Quant, Residual, SparseF32, SparseI8, Stepped,
    depthwise_f32, depthwise_u8i8, fold_zero_point, gemm_bf16, gemm_f32, gemm_u8i8, sparse_f32, sparse_u8i8,
};

use super::quantize::dequant;
use super::region::{Lines, Strip};
use super::window::Windows;
use super::{Cx, Io, Work};
use crate::lower::layout::Affine;
use crate::threads::INLINE;

/// The packed weights of one group, with what belongs to each of its columns.
pub(crate) trait Weights: Send + Sync {
    /// Element of the input.
    type Input: Pod + Send + Sync;

    /// Computes columns `n0..` of `out` from `rows`.
    fn multiply(
        &self,
        kernels: Kernels,
        rows: &ARows<'_, Self::Input>,
        n0: usize,
        finish: Finish<'_>,
        out: Output<'_>,
    );

    /// Columns are split between threads only at multiples of this; `None` for not at all.
    fn granule(&self) -> Option<usize>;

    /// Memory of the weights.
    fn bytes(&self) -> usize;

    /// How many weights are zero and skipped, in percent, where any are skipped.
    fn zeros(&self) -> Option<u8> {
        None
    }
}

/// What follows the product, besides what belongs to columns.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    pub(crate) residual: Option<Residual<'a>>,
    pub(crate) activation: Activation,
}

/// Dense `f32` weights.
pub(crate) struct Real {
    pub(crate) packed: Arc<PackedF32>,
    pub(crate) bias: Option<Vec<f32>>,
}

/// `f32` weights without their zeros.
pub(crate) struct SparseReal {
    pub(crate) packed: Arc<SparseF32>,
    pub(crate) bias: Option<Vec<f32>>,
}

/// Dense bf16 weights.
pub(crate) struct Half {
    pub(crate) packed: Arc<PackedBf16>,
    pub(crate) bias: Option<Vec<f32>>,
}

/// Dense byte weights.
pub(crate) struct Bytes {
    pub(crate) packed: Arc<PackedI8>,
    pub(crate) columns: Columns,
}

/// Byte weights without blocks of zeros.
pub(crate) struct SparseBytes {
    pub(crate) packed: Arc<SparseI8>,
    pub(crate) columns: Columns,
}

/// Depthwise `f32` weights.
pub(crate) struct RealDepthwise {
    pub(crate) packed: PackedDwF32,
    pub(crate) bias: Option<Vec<f32>>,
}

/// Depthwise byte weights.
pub(crate) struct BytesDepthwise {
    pub(crate) packed: PackedDwI8,
    pub(crate) columns: Columns,
}

/// What belongs to the columns of a product of bytes, one each.
#[derive(Clone)]
pub(crate) struct Columns {
    /// Input scale × weight scale.
    pub(crate) scale: Vec<f32>,
    /// In steps of the scale.
    pub(crate) bias: Vec<i32>,
    /// A bias of which not all are such steps, in place of the other.
    pub(crate) offset: Option<Vec<f32>>,
}

impl Columns {
    /// Those of a group.
    pub(crate) fn part(&self, columns: Range<usize>) -> Self {
        Self {
            scale: self.scale[columns.clone()].to_vec(),
            bias: self.bias[columns.clone()].to_vec(),
            offset: self.offset.as_ref().map(|offset| offset[columns].to_vec()),
        }
    }

    /// Those for sums over an input whose zeros are not subtracted.
    pub(crate) fn with_zeros(self, sums: &[i32], zero_point: i32) -> Self {
        Self { bias: fold_zero_point(Some(&self.bias), sums, zero_point), ..self }
    }

    pub(crate) fn finished<'a>(&'a self, Finish { residual, activation }: Finish<'a>) -> EpilogueI32<'a> {
        let Self { scale, bias, offset } = self;
        EpilogueI32 { bias: Some(bias), scale, offset: offset.as_deref(), residual, activation }
    }
}

impl Weights for Real {
    type Input = f32;

    fn multiply(&self, k: Kernels, rows: &ARows<'_, f32>, n0: usize, finish: Finish<'_>, out: Output<'_>) {
        let Finish { residual, activation } = finish;
        gemm_f32(
            k,
            rows,
            &self.packed,
            n0,
            &EpilogueF32 { bias: self.bias.as_deref(), residual, activation },
            out,
        );
    }

    fn granule(&self) -> Option<usize> {
        Some(self.packed.col_granule())
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
    }
}

impl Weights for SparseReal {
    type Input = f32;

    fn multiply(&self, k: Kernels, rows: &ARows<'_, f32>, n0: usize, finish: Finish<'_>, out: Output<'_>) {
        let Finish { residual, activation } = finish;
        let epilogue = EpilogueF32 { bias: self.bias.as_deref(), residual, activation };
        sparse_f32(k, rows, &self.packed, n0, &epilogue, out);
    }

    fn granule(&self) -> Option<usize> {
        Some(self.packed.col_granule())
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    fn zeros(&self) -> Option<u8> {
        let all = self.packed.depth() * self.packed.n();
        Some((100 * (all - self.packed.nonzeros()) / all.max(1)) as u8)
    }
}

impl Weights for Half {
    type Input = u16;

    fn multiply(&self, k: Kernels, rows: &ARows<'_, u16>, n0: usize, finish: Finish<'_>, out: Output<'_>) {
        let Finish { residual, activation } = finish;
        let epilogue = EpilogueF32 { bias: self.bias.as_deref(), residual, activation };
        gemm_bf16(k, rows, &self.packed, n0, &epilogue, out);
    }

    fn granule(&self) -> Option<usize> {
        Some(self.packed.col_granule())
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
    }
}

impl Weights for Bytes {
    type Input = u8;

    fn multiply(&self, k: Kernels, rows: &ARows<'_, u8>, n0: usize, finish: Finish<'_>, out: Output<'_>) {
        gemm_u8i8(k, rows, &self.packed, n0, &self.columns.finished(finish), out);
    }

    fn granule(&self) -> Option<usize> {
        Some(self.packed.col_granule())
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
    }
}

impl Weights for SparseBytes {
    type Input = u8;

    fn multiply(&self, k: Kernels, rows: &ARows<'_, u8>, n0: usize, finish: Finish<'_>, out: Output<'_>) {
        sparse_u8i8(k, rows, &self.packed, n0, &self.columns.finished(finish), out);
    }

    fn granule(&self) -> Option<usize> {
        Some(self.packed.col_granule())
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    fn zeros(&self) -> Option<u8> {
        let [kept, all] = self.packed.blocks();
        Some((100 * (all - kept) / all.max(1)) as u8)
    }
}

impl Weights for RealDepthwise {
    type Input = f32;

    fn multiply(&self, k: Kernels, rows: &ARows<'_, f32>, _: usize, finish: Finish<'_>, out: Output<'_>) {
        let Finish { residual, activation } = finish;
        if let ARows::Indirect(rows) = rows {
            let epilogue = EpilogueF32 { bias: self.bias.as_deref(), residual, activation };
            depthwise_f32(k, rows, &self.packed, &epilogue, out);
        }
    }

    fn granule(&self) -> Option<usize> {
        None
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
    }
}

impl Weights for BytesDepthwise {
    type Input = u8;

    fn multiply(&self, k: Kernels, rows: &ARows<'_, u8>, _: usize, finish: Finish<'_>, out: Output<'_>) {
        if let ARows::Indirect(rows) = rows {
            depthwise_u8i8(k, rows, &self.packed, &self.columns.finished(finish), out);
        }
    }

    fn granule(&self) -> Option<usize> {
        None
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
    }
}

/// How the rows of the left operand lie in the input.
pub(crate) enum Rows {
    /// Contiguous rows of `k` elements.
    Dense { rows: usize, k: usize },
    /// Gathered by windows.
    Windows(Windows),
}

/// The type of a residual input.
#[derive(Clone, Copy)]
pub(crate) enum ResidualKind {
    Real,
    Bf16,
    Bytes(Affine),
    /// The product is rounded to bytes, too, before they are added.
    QuantizedSum {
        product: Affine,
        input: Affine,
    },
}

/// How results are stored.
#[derive(Clone, Copy)]
pub(crate) enum Store {
    Real,
    Bf16,
    Bytes(Affine),
}

impl ResidualKind {
    /// Bytes of an element.
    fn bytes(self) -> usize {
        match self {
            ResidualKind::Real => 4,
            ResidualKind::Bf16 => 2,
            ResidualKind::Bytes(_) | ResidualKind::QuantizedSum { .. } => 1,
        }
    }
}

impl Store {
    /// Bytes of an element.
    fn bytes(self) -> usize {
        match self {
            Store::Real => 4,
            Store::Bf16 => 2,
            Store::Bytes(_) => 1,
        }
    }
}

/// `store(activation(rows · weights + bias + residual))`, for each group of channels.
///
/// Inputs: the rows' source, then the residual. Output: `[rows][cols]`.
pub(crate) struct Product<W: Weights> {
    pub(crate) rows: Rows,
    /// One per group; group `g` reads channels from `g * kc` on and writes columns from `g * group_cols` on.
    pub(crate) groups: Vec<W>,
    pub(crate) group_cols: usize,
    /// Columns of all groups.
    pub(crate) cols: usize,
    /// What padding reads, `kc` elements.
    pub(crate) pad: Vec<W::Input>,
    pub(crate) residual: Option<ResidualKind>,
    pub(crate) activation: Activation,
    pub(crate) store: Store,
    /// Where rows are the pixels of two-dimensional images.
    pub(crate) lines: Option<Lines>,
    /// Multiply-adds in all, for the decision to split.
    pub(crate) macs: usize,
}

/// Cuts `out` into at most `parts` bands of nearly equal size, each with its first row and column: between columns,
/// at multiples of `granule`, or between rows.
///
/// Bands of rows read all weights and their part of the input, bands of columns the other way round: the longer side
/// is cut, so that less is read twice, unless its granules cannot be shared evenly.
pub(crate) fn bands(
    out: Output<'_>,
    parts: usize,
    granule: Option<usize>,
) -> SmallVec<[(usize, usize, Output<'_>); INLINE]> {
    let (rows, cols) = (out.rows(), out.cols());
    let share = |units: usize| units.div_ceil(parts) as f64 / units.max(1) as f64;
    let by_cols = granule.filter(|&granule| {
        let (of_rows, of_cols) = (share(rows), share(cols.div_ceil(granule)));
        of_cols < 0.95 * of_rows || (of_cols < 1.05 * of_rows && cols > rows)
    });
    let (len, step) = match by_cols {
        Some(granule) => (cols, cols.div_ceil(granule).div_ceil(parts) * granule),
        None => (rows, rows.div_ceil(parts)),
    };
    let (mut bands, mut rest, mut start) = (SmallVec::new(), out, 0);
    while start < len {
        let end = len.min(start + step);
        let (band, tail) = match by_cols {
            Some(_) => rest.split_at_col(end - start),
            None => rest.split_at_row(end - start),
        };
        let (first, n0) = if by_cols.is_some() { (0, start) } else { (start, 0) };
        bands.push((first, n0, band));
        (rest, start) = (tail, end);
    }
    bands
}

/// The residual that begins at element `skip` of a buffer.
pub(crate) fn residual_from(kind: ResidualKind, data: &[u8], skip: usize, ld: usize) -> Residual<'_> {
    match kind {
        ResidualKind::Real => Residual::F32 { data: &bytemuck::cast_slice(data)[skip..], ld },
        ResidualKind::Bf16 => Residual::Bf16 { data: &bytemuck::cast_slice(data)[skip..], ld },
        ResidualKind::Bytes(a) => {
            Residual::U8 { data: &data[skip..], ld, scale: a.scale, zero_point: a.zero_point }
        }
        ResidualKind::QuantizedSum { product, input } => Residual::QuantizedSum {
            product: dequant(product),
            data: &data[skip..],
            ld,
            input: dequant(input),
        },
    }
}

impl<W: Weights> Product<W> {
    fn row_count(&self) -> usize {
        match &self.rows {
            Rows::Dense { rows, .. } => *rows,
            Rows::Windows(w) => w.images * w.rows,
        }
    }

    /// Computes the part of the result that begins at row `first` and column `n0`.
    #[allow(clippy::too_many_arguments)]
    fn part(
        &self,
        groups: &[W],
        kernels: Kernels,
        x: &[W::Input],
        residual: &[u8],
        first: usize,
        n0: usize,
        mut out: Output,
    ) {
        match &self.rows {
            Rows::Dense { k, .. } => {
                let rows = ARows::Dense(Dense { data: &x[first * k..], rows: out.rows(), stride: *k, k: *k });
                groups[0].multiply(kernels, &rows, n0, self.finish(residual, first, 0), out);
            }
            Rows::Windows(w) => {
                for (range, base, offsets) in w.calls(first, first + out.rows()) {
                    let (_, rest) = out.reborrow().split_at_row(range.start - first);
                    let (mut band, _) = rest.split_at_row(range.len());
                    if let [only] = groups {
                        let rows = self.indirect(w, &x[base..], offsets);
                        only.multiply(kernels, &rows, n0, self.finish(residual, range.start, 0), band);
                        continue;
                    }
                    for (g, group) in groups.iter().enumerate() {
                        let (_, rest) = band.reborrow().split_at_col(g * self.group_cols);
                        let (cell, _) = rest.split_at_col(self.group_cols);
                        let rows = self.indirect(w, &x[base + g * w.kc..], offsets);
                        let finish = self.finish(residual, range.start, g * self.group_cols);
                        group.multiply(kernels, &rows, 0, finish, cell);
                    }
                }
            }
        }
    }

    /// The whole result, with the weights of these groups.
    pub(crate) fn multiply(&self, groups: &[W], cx: &Cx, x: &[W::Input], residual: &[u8], out: &mut [u8]) {
        let out = self.stored(out, self.row_count());
        let parts = cx.threads.parts(self.macs);
        if parts == 1 {
            return self.part(groups, cx.kernels, x, residual, 0, 0, out);
        }
        let granule = match groups {
            [only] => only.granule(),
            _ => None,
        };
        cx.threads.each(bands(out, parts, granule), |(first, n0, band)| {
            self.part(groups, cx.kernels, x, residual, first, n0, band);
        });
    }

    fn indirect<'a>(&'a self, w: &Windows, base: &'a [W::Input], offsets: &'a [u32]) -> ARows<'a, W::Input> {
        match w.step {
            Some(step) => ARows::Stepped(Stepped { base, offsets, taps: w.taps, step, kc: w.kc }),
            None => ARows::Indirect(Indirect { base, offsets, taps: w.taps, kc: w.kc, pad: &self.pad }),
        }
    }

    /// Rows of the result in memory.
    fn stored<'a>(&self, bytes: &'a mut [u8], rows: usize) -> Output<'a> {
        let cols = self.cols;
        match self.store {
            Store::Real => Output::F32(MatMut::new(bytemuck::cast_slice_mut(bytes), rows, cols, cols)),
            Store::Bf16 => Output::Bf16(MatMut::new(bytemuck::cast_slice_mut(bytes), rows, cols, cols)),
            Store::Bytes(a) => {
                Output::U8(MatMut::new(bytes, rows, cols, cols), Quant::new(a.scale, a.zero_point))
            }
        }
    }

    fn finish<'a>(&self, residual: &'a [u8], row: usize, col: usize) -> Finish<'a> {
        let ld = self.cols;
        let skip = row * ld + col;
        let residual = self.residual.map(|kind| residual_from(kind, residual, skip, ld));
        Finish { residual, activation: self.activation }
    }
}

impl<W: Weights> Work for Product<W> {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let residual = if self.residual.is_some() { io.ins[1] } else { &[] };
        let out = io.output();
        self.multiply(&self.groups, cx, io.input(0), residual, out);
        Ok(())
    }

    fn weight_bytes(&self) -> usize {
        self.groups.iter().map(Weights::bytes).sum()
    }

    fn zeros(&self) -> Option<u8> {
        self.groups.first().and_then(Weights::zeros)
    }

    fn lines(&self) -> Option<Lines> {
        self.lines
    }

    fn run_lines(&self, kernels: Kernels, strip: Strip<'_>, out: &mut [u8]) {
        let Some(Lines { output: [height, row], .. }) = self.lines else { return };
        let width = row / (self.cols * self.store.bytes());
        let residual = match self.residual {
            Some(kind) => &strip.others[0][strip.image * height * width * self.cols * kind.bytes()..],
            None => &[],
        };
        let x = bytemuck::cast_slice(strip.x);
        let Rows::Dense { k, .. } = self.rows else {
            let out = self.stored(out, strip.lines.len() * width);
            return self.part(&self.groups, kernels, x, residual, strip.lines.start * width, 0, out);
        };
        // Pieces of lines that lie side by side.
        let Range { mut start, end } = strip.lines;
        let mut rest = out;
        while start < end {
            let slot = start % strip.slots;
            let count = (end - start).min(strip.slots - slot);
            let (out, behind) = rest.split_at_mut(count * row);
            let data = &x[slot * width * k..];
            let rows = ARows::Dense(Dense { data, rows: count * width, stride: k, k });
            let finish = self.finish(residual, start * width, 0);
            self.groups[0].multiply(kernels, &rows, 0, finish, self.stored(out, count * width));
            (start, rest) = (start + count, behind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_cover_the_result_and_cut_the_longer_side() {
        for (rows, cols, granule, cut_cols) in [
            (1, 1000, Some(32), true),
            (49, 2048, Some(32), true),
            (3136, 64, Some(32), false),
            (100, 128, None, false),
            (40, 96, Some(32), false),
            (1, 20, None, false),
        ] {
            for parts in 2..5 {
                let mut data = vec![0.0f32; rows * cols];
                let bands = bands(Output::F32(MatMut::new(&mut data, rows, cols, cols)), parts, granule);
                assert!(bands.len() <= parts);
                for (first, n0, band) in bands {
                    assert!(!cut_cols || parts != 2 || first == 0);
                    assert!(cut_cols || parts != 2 || n0 == 0);
                    let Output::F32(mut band) = band else { unreachable!() };
                    for i in 0..band.rows() {
                        let value = ((first + i) * cols + n0) as f32;
                        band.row_mut(i).iter_mut().enumerate().for_each(|(j, x)| *x += value + j as f32);
                    }
                }
                assert!(data.iter().enumerate().all(|(i, &x)| x == i as f32));
            }
        }
    }
}
