//! What kernels read and write: row sources, output windows, quantization parameters.

use alloc::vec::Vec;
use core::marker::PhantomData;

use crate::{Kernels, isa::per_isa};

/// Offset that stands for "this tap lies in the padding".
pub const PAD: u32 = u32::MAX;

/// Rows of a matrix in memory: row `r` is `data[r * stride..][..k]`.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Number of rows.
    pub rows: usize,
    /// Distance between the starts of consecutive rows, in elements.
    pub stride: usize,
    /// Length of a row.
    pub k: usize,
}

/// Rows gathered from pieces of memory, as convolution and pooling read them.
///
/// Row `r` is the concatenation over `t` in `0..taps` of
/// `base[offsets[r * taps + t]..][..kc]`, or `pad[..kc]` where the offset is
/// [`PAD`]. Offsets count from `base`, so one table serves every image of a
/// batch. The idea is the indirection buffer of Dukhan, "The Indirect
/// Convolution Algorithm" (2019).
#[derive(Clone, Copy, Debug)]
pub struct Indirect<'a, T> {
    /// Where offsets count from.
    pub base: &'a [T],
    /// `[rows][taps]` element offsets into `base`, or [`PAD`].
    pub offsets: &'a [u32],
    /// Pieces per row; at least 1.
    pub taps: usize,
    /// Length of a piece (channels).
    pub kc: usize,
    /// The piece that padding reads; at least `kc` long when any offset is [`PAD`]
    /// (pooling never reads it).
    pub pad: &'a [T],
}

impl<'a, T> Indirect<'a, T> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.offsets.len() / self.taps
    }

    /// Panics unless the offset table is whole rows.
    pub(crate) fn validate(&self) {
        assert!(self.taps > 0, "a row needs at least one tap");
        assert_eq!(self.offsets.len() % self.taps, 0, "ragged offset table");
    }

    /// The `kc` elements of tap `tap` of row `row`.
    ///
    /// # Panics
    /// When they run past the input or the padding row.
    #[inline(always)]
    pub(crate) fn piece(&self, row: usize, tap: usize) -> &'a [T] {
        match self.offsets[row * self.taps + tap] {
            PAD => &self.pad[..self.kc],
            offset => &self.base[offset as usize..][..self.kc],
        }
    }
}

/// Rows gathered from pieces of memory that lie at one distance in all rows, as convolution without padding
/// reads the rows of its windows.
///
/// Row `r` is the concatenation over `t` in `0..taps` of `base[offsets[r] + t * step..][..kc]`: an [`Indirect`]
/// operand with a table, and pointers to make, of one entry for each row.
#[derive(Clone, Copy, Debug)]
pub struct Stepped<'a, T> {
    /// Where offsets count from.
    pub base: &'a [T],
    /// The element offset of each row's first piece.
    pub offsets: &'a [u32],
    /// Pieces per row; at least 1.
    pub taps: usize,
    /// Distance between pieces of a row; at least 1.
    pub step: usize,
    /// Length of a piece.
    pub kc: usize,
}

/// The left operand of a matrix product.
#[derive(Clone, Copy, Debug)]
pub enum ARows<'a, T> {
    /// Rows at a fixed stride.
    Dense(Dense<'a, T>),
    /// Rows gathered through offsets.
    Indirect(Indirect<'a, T>),
    /// Rows gathered at a fixed step.
    Stepped(Stepped<'a, T>),
}

impl<T> ARows<'_, T> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(d) => d.rows,
            Self::Indirect(i) => i.rows(),
            Self::Stepped(s) => s.offsets.len(),
        }
    }

    /// Pieces per row.
    pub fn taps(&self) -> usize {
        match self {
            Self::Dense(_) => 1,
            Self::Indirect(i) => i.taps,
            Self::Stepped(s) => s.taps,
        }
    }

    /// Length of one piece.
    pub fn kc(&self) -> usize {
        match self {
            Self::Dense(d) => d.k,
            Self::Indirect(i) => i.kc,
            Self::Stepped(s) => s.kc,
        }
    }

    /// Length of a row: taps × piece.
    pub fn depth(&self) -> usize {
        self.taps() * self.kc()
    }

    /// Distance between the pieces of every row; 0 where there is no such distance.
    pub(crate) fn step(&self) -> usize {
        match self {
            Self::Stepped(s) => s.step,
            Self::Dense(_) | Self::Indirect(_) => 0,
        }
    }

    /// Panics unless every piece is within the operand.
    pub(crate) fn validate(&self, kernels: Kernels) {
        match self {
            Self::Dense(d) => assert!(
                fits(d.rows, d.k, d.stride, d.data.len()),
                "{} rows of {} at stride {} do not fit {} elements",
                d.rows,
                d.k,
                d.stride,
                d.data.len()
            ),
            Self::Indirect(i) => {
                i.validate();
                let (end, padded) = offset_range(kernels, i.offsets);
                let reach = (end as usize).saturating_sub(1) + i.kc;
                assert!(
                    end == 0 || reach <= i.base.len(),
                    "offset out of range: a piece ends at {reach} of {}",
                    i.base.len()
                );
                assert!(
                    !padded || i.kc <= i.pad.len(),
                    "a padding of {} for pieces of {}",
                    i.pad.len(),
                    i.kc
                );
            }
            Self::Stepped(s) => {
                assert!(s.taps > 0 && s.step > 0, "a row needs at least one tap, and a step");
                let (end, padded) = offset_range(kernels, s.offsets);
                let last = (s.taps - 1).checked_mul(s.step).and_then(|last| last.checked_add(s.kc));
                let reach = last.and_then(|last| last.checked_add((end as usize).saturating_sub(1)));
                assert!(
                    !padded && (end == 0 || reach.is_some_and(|reach| reach <= s.base.len())),
                    "offset out of range: a piece ends at {reach:?} of {}",
                    s.base.len()
                );
            }
        }
    }

    /// Writes where the pieces of rows `first..first + rows` start, `[taps][rows]`, or only the first pieces of
    /// rows that have a [`Self::step`]. Of operands that [`Self::validate`] passed, `kc` elements are readable there.
    pub(crate) fn starts(&self, first: usize, rows: usize, only_first: bool, out: &mut [*const T]) {
        match self {
            Self::Dense(d) => {
                for (row, start) in (first..first + rows).zip(out) {
                    *start = d.data.as_ptr().wrapping_add(row * d.stride);
                }
            }
            Self::Indirect(i) => {
                let table = &i.offsets[first * i.taps..(first + rows) * i.taps];
                let (base, pad) = (i.base.as_ptr(), i.pad.as_ptr());
                for (tap, out) in out.chunks_exact_mut(rows).enumerate() {
                    for (row, start) in table.chunks_exact(i.taps).zip(out) {
                        *start = match row[tap] {
                            PAD => pad,
                            offset => base.wrapping_add(offset as usize),
                        };
                    }
                }
            }
            Self::Stepped(s) => {
                let taps = if only_first { 1 } else { s.taps };
                for (tap, out) in out.chunks_exact_mut(rows).enumerate().take(taps) {
                    let base = s.base.as_ptr().wrapping_add(tap * s.step);
                    for (&offset, start) in s.offsets[first..first + rows].iter().zip(out) {
                        *start = base.wrapping_add(offset as usize);
                    }
                }
            }
        }
    }

    /// The `kc` elements of tap `tap` of row `row`.
    #[inline(always)]
    pub(crate) fn piece(&self, row: usize, tap: usize) -> &[T] {
        match self {
            Self::Dense(d) => &d.data[row * d.stride..][..d.k],
            Self::Indirect(i) => i.piece(row, tap),
            Self::Stepped(s) => &s.base[s.offsets[row] as usize + tap * s.step..][..s.kc],
        }
    }
}

per_isa! {
    /// One more than the greatest offset, or 0 without any; and whether there is a [`PAD`].
    fn offset_range(offsets: &[u32]) -> (u32, bool) {
        let (mut end, mut padded) = (0, false);
        for &offset in offsets {
            end = end.max(offset.wrapping_add(1));
            padded |= offset == PAD;
        }
        (end, padded)
    }
}

/// Whether `rows` rows of `cols` elements, `ld` apart, lie within `len` elements.
fn fits(rows: usize, cols: usize, ld: usize, len: usize) -> bool {
    rows == 0
        || (rows - 1).checked_mul(ld).and_then(|start| start.checked_add(cols)).is_some_and(|end| end <= len)
}

/// A writable window of `rows × cols` elements whose rows lie `ld` apart.
///
/// Unlike a slice it can be split between columns as well as between rows, which
/// is how callers give disjoint parts of one matrix to several threads.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    ptr: *mut T,
    rows: usize,
    cols: usize,
    ld: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: a window owns its elements exclusively, like the `&mut [T]` it came from.
unsafe impl<T: Send> Send for MatMut<'_, T> {}
// SAFETY: a shared window only lends shared access, like `&&mut [T]`.
unsafe impl<T: Sync> Sync for MatMut<'_, T> {}

impl<'a, T> MatMut<'a, T> {
    /// A window over `data`.
    ///
    /// # Panics
    /// When the window does not fit `data`, or rows overlap (`ld < cols`).
    pub fn new(data: &'a mut [T], rows: usize, cols: usize, ld: usize) -> Self {
        assert!(rows <= 1 || ld >= cols, "rows of {cols} overlap at {ld}");
        assert!(
            fits(rows, cols, ld, data.len()),
            "window {rows}x{cols} (leading dimension {ld}) exceeds {} elements",
            data.len()
        );
        Self { ptr: data.as_mut_ptr(), rows, cols, ld, lifetime: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between the starts of rows.
    pub(crate) fn ld(&self) -> usize {
        self.ld
    }

    /// Where element `(i, j)` lies; the whole window may be written from there.
    ///
    /// # Panics
    /// When there is no such element.
    pub(crate) fn ptr_at(&mut self, i: usize, j: usize) -> *mut T {
        assert!(i < self.rows && j < self.cols, "element ({i}, {j}) of {}x{}", self.rows, self.cols);
        self.ptr.wrapping_add(i * self.ld + j)
    }

    /// Row `i`.
    ///
    /// # Panics
    /// When there is no such row.
    #[inline]
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: rows are in bounds and disjoint by construction, and exclusively ours.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.add(i * self.ld), self.cols) }
    }

    /// The start of rows `row..row + rows` and columns `col..col + cols`, and the distance between rows.
    ///
    /// # Panics
    /// When they exceed the window.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    pub(crate) fn window(&mut self, row: usize, rows: usize, col: usize, cols: usize) -> (*mut T, usize) {
        assert!(row + rows <= self.rows && col + cols <= self.cols, "tile outside of the output");
        (self.ptr.wrapping_add(row * self.ld + col), self.ld)
    }

    /// The same window for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_, T> {
        MatMut { lifetime: PhantomData, ..*self }
    }

    /// The rows before `i` and the rows from `i` on.
    ///
    /// # Panics
    /// When `i` exceeds the number of rows.
    pub fn split_at_row(self, i: usize) -> (Self, Self) {
        assert!(i <= self.rows, "row {i} of {}", self.rows);
        let below = Self { ptr: self.ptr.wrapping_add(i * self.ld), rows: self.rows - i, ..self };
        (Self { rows: i, ..self }, below)
    }

    /// The columns before `j` and the columns from `j` on.
    ///
    /// # Panics
    /// When `j` exceeds the number of columns.
    pub fn split_at_col(self, j: usize) -> (Self, Self) {
        assert!(j <= self.cols, "column {j} of {}", self.cols);
        let right = Self { ptr: self.ptr.wrapping_add(j), cols: self.cols - j, ..self };
        (Self { cols: j, ..self }, right)
    }
}

/// How a real value becomes an integer: `clamp(round_ties_even(y * inv_scale) + zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quant {
    /// Reciprocal of the scale; positive.
    pub inv_scale: f32,
    /// The integer that stands for zero.
    pub zero_point: i32,
}

impl Quant {
    /// From a scale and a zero point.
    pub fn new(scale: f32, zero_point: i32) -> Self {
        Self { inv_scale: 1.0 / scale, zero_point }
    }
}

/// How an integer becomes a real value: `(q - zero_point) * scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dequant {
    /// Real value of one step.
    pub scale: f32,
    /// The integer that stands for zero.
    pub zero_point: i32,
}

/// Where a fused kernel stores, and in which type.
#[derive(Debug)]
pub enum Output<'a> {
    /// Real values.
    F32(MatMut<'a, f32>),
    /// Rounded to bits of bf16.
    Bf16(MatMut<'a, u16>),
    /// Quantized to unsigned bytes.
    U8(MatMut<'a, u8>, Quant),
    /// Quantized to signed bytes.
    I8(MatMut<'a, i8>, Quant),
}

/// Applies `$f` to the window of an [`Output`].
macro_rules! each_output {
    ($self:expr, $m:ident => $f:expr) => {
        match $self {
            Output::F32($m) => $f,
            Output::Bf16($m) => $f,
            Output::U8($m, _) => $f,
            Output::I8($m, _) => $f,
        }
    };
}

impl<'a> Output<'a> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        each_output!(self, m => m.rows())
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        each_output!(self, m => m.cols())
    }

    /// The same window for a shorter time.
    pub fn reborrow(&mut self) -> Output<'_> {
        match self {
            Output::F32(m) => Output::F32(m.reborrow()),
            Output::Bf16(m) => Output::Bf16(m.reborrow()),
            Output::U8(m, q) => Output::U8(m.reborrow(), *q),
            Output::I8(m, q) => Output::I8(m.reborrow(), *q),
        }
    }

    /// The rows before `i` and the rows from `i` on.
    ///
    /// # Panics
    /// When `i` exceeds the number of rows.
    pub fn split_at_row(self, i: usize) -> (Self, Self) {
        match self {
            Output::F32(m) => pair(m.split_at_row(i), Output::F32),
            Output::Bf16(m) => pair(m.split_at_row(i), Output::Bf16),
            Output::U8(m, q) => pair(m.split_at_row(i), |m| Output::U8(m, q)),
            Output::I8(m, q) => pair(m.split_at_row(i), |m| Output::I8(m, q)),
        }
    }

    /// The columns before `j` and the columns from `j` on.
    ///
    /// # Panics
    /// When `j` exceeds the number of columns.
    pub fn split_at_col(self, j: usize) -> (Self, Self) {
        match self {
            Output::F32(m) => pair(m.split_at_col(j), Output::F32),
            Output::Bf16(m) => pair(m.split_at_col(j), Output::Bf16),
            Output::U8(m, q) => pair(m.split_at_col(j), |m| Output::U8(m, q)),
            Output::I8(m, q) => pair(m.split_at_col(j), |m| Output::I8(m, q)),
        }
    }

    /// At most `parts` non-empty bands of rows of nearly equal height, each with its first row.
    pub fn split_rows(self, parts: usize) -> Vec<(usize, Output<'a>)> {
        let rows = self.rows();
        let each = rows.div_ceil(parts.max(1)).max(1);
        split(self, rows, each, Output::split_at_row)
    }

    /// At most `parts` non-empty bands of columns, each with its first column, cut only at
    /// multiples of `granule`.
    pub fn split_cols(self, parts: usize, granule: usize) -> Vec<(usize, Output<'a>)> {
        let cols = self.cols();
        let granule = granule.max(1);
        let each = cols.div_ceil(granule).div_ceil(parts.max(1)).max(1) * granule;
        split(self, cols, each, Output::split_at_col)
    }
}

fn pair<M, O>((a, b): (M, M), wrap: impl Fn(M) -> O) -> (O, O) {
    (wrap(a), wrap(b))
}

fn split<'a>(
    whole: Output<'a>,
    len: usize,
    each: usize,
    cut: impl Fn(Output<'a>, usize) -> (Output<'a>, Output<'a>),
) -> Vec<(usize, Output<'a>)> {
    let mut parts = Vec::new();
    let mut rest = whole;
    let mut start = 0;
    while start < len {
        let size = each.min(len - start);
        let (head, tail) = cut(rest, size);
        parts.push((start, head));
        rest = tail;
        start += size;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn splits_partition_the_window() {
        for (rows, cols, pad) in [(1, 1, 0), (5, 7, 2), (3, 64, 0), (0, 4, 0), (4, 0, 0)] {
            let ld = cols + pad;
            for parts in 1..5 {
                let mut data = vec![0.0f32; rows * ld];
                let whole = Output::F32(MatMut::new(&mut data, rows, cols, ld));
                for (_, band) in whole.split_rows(parts) {
                    for (_, cell) in band.split_cols(parts, 4) {
                        let Output::F32(mut m) = cell else { panic!() };
                        for i in 0..m.rows() {
                            m.row_mut(i).iter_mut().for_each(|x| *x += 1.0);
                        }
                    }
                }
                for (i, &x) in data.iter().enumerate() {
                    assert_eq!(x, f32::from(i % ld < cols));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn offsets_are_checked() {
        let rows = Indirect { base: &[0u8; 8], offsets: &[0, 5], taps: 1, kc: 4, pad: &[] };
        assert_eq!(rows.piece(0, 0).len(), 4);
        rows.piece(1, 0);
    }

    #[test]
    #[should_panic(expected = "exceeds")]
    fn windows_are_checked() {
        MatMut::new(&mut [0u8; 8], 3, 2, 4);
    }
}
