//! What happens to an accumulator tile after the micro-kernel: bias, scale,
//! residual, activation, and the store in the output's type.
//!
//! Every step rounds separately, in one fixed order, on every instruction set;
//! nothing is folded or fused. That is what makes integer layers return the
//! same bytes everywhere.

#[cfg(target_arch = "x86_64")]
use crate::requantize::requantize;
use crate::{
    Kernels, bf16,
    gemm::MAX_TILE,
    isa::per_isa,
    math,
    operands::{Dequant, MatMut, Output, Quant},
    vector::prefetch,
};

mod activation;
mod real;
mod rows;

pub use activation::Activation;
pub(crate) use activation::{activate_and_quantize, byte_bounds};
pub(crate) use real::{Clamped, finish_real};
pub use rows::EpilogueRows;
pub(crate) use rows::{FinishRows, finish_rows};

/// A tensor added before the activation; element (r, n) is `data[r * ld + n]`,
/// rows counted from the call's first row, columns absolute like the bias.
#[derive(Clone, Copy, Debug)]
pub enum Residual<'a> {
    /// Real values.
    F32 {
        /// The elements.
        data: &'a [f32],
        /// Leading dimension.
        ld: usize,
    },
    /// Bits of bf16.
    Bf16 {
        /// The elements.
        data: &'a [u16],
        /// Leading dimension.
        ld: usize,
    },
    /// Unsigned bytes standing for `(q - zero_point) * scale`.
    U8 {
        /// The elements.
        data: &'a [u8],
        /// Leading dimension.
        ld: usize,
        /// Real value of one step.
        scale: f32,
        /// The byte that stands for zero.
        zero_point: i32,
    },
    /// Signed bytes standing for `(q - zero_point) * scale`.
    I8 {
        /// The elements.
        data: &'a [i8],
        /// Leading dimension.
        ld: usize,
        /// Real value of one step.
        scale: f32,
        /// The byte that stands for zero.
        zero_point: i32,
    },
    /// Unsigned bytes that stand for real numbers, added to the product rounded to such bytes: the
    /// sum of two quantized tensors.
    QuantizedSum {
        /// What the bytes mean that the product is rounded to.
        product: Dequant,
        /// The elements.
        data: &'a [u8],
        /// Leading dimension.
        ld: usize,
        /// What they mean.
        input: Dequant,
    },
}

/// Finish of a real accumulator: `activation(acc + bias[n] + residual)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct EpilogueF32<'a> {
    /// One value per column.
    pub bias: Option<&'a [f32]>,
    /// A tensor of the output's shape.
    pub residual: Option<Residual<'a>>,
    /// Applied last.
    pub activation: Activation,
}

/// Finish of an integer accumulator:
/// `activation(f32(acc + bias[n]) * scale[n] + offset[n] + residual)`.
#[derive(Clone, Copy, Debug)]
pub struct EpilogueI32<'a> {
    /// One value per column, usually with the input's zero point folded in
    /// ([`crate::fold_zero_point`]); the sum wraps.
    pub bias: Option<&'a [i32]>,
    /// Input scale × weight scale, one value per column.
    pub scale: &'a [f32],
    /// One value per column: a bias that is no multiple of the scale.
    pub offset: Option<&'a [f32]>,
    /// A tensor of the output's shape.
    pub residual: Option<Residual<'a>>,
    /// Applied last.
    pub activation: Activation,
}

/// Turns one row of accumulators into real values.
pub(crate) trait Finish<C>: Copy {
    /// Panics unless columns `..n` have parameters and `rows` rows have residuals.
    fn validate(&self, rows: usize, n: usize);

    /// Per-column parameters of up to `N` columns from `first`, in fixed-size arrays so that
    /// the arithmetic runs without tails.
    type Columns<const N: usize>: Copy;
    fn columns<const N: usize>(&self, first: usize, cols: usize) -> Self::Columns<N>;
    /// The reals of row `row`, counted from the call's first one.
    fn scale_and_shift<const N: usize>(
        &self,
        c: &Self::Columns<N>,
        row: usize,
        acc: &[C; N],
        y: &mut [f32; N],
    );
    fn residual(&self) -> Option<Residual<'_>>;
    fn activation(&self) -> Activation;

    /// Asks for the memory that finishing a tile will touch.
    fn prefetch(&self, _place: Place, _out: &mut Output<'_>) {}
}

#[inline(always)]
fn padded<T: Copy, const N: usize>(values: &[T], fill: T) -> [T; N] {
    // Of known length, a copy is a few instructions and no call.
    if let Some(whole) = values.first_chunk() {
        return *whole;
    }
    let mut out = [fill; N];
    out[..values.len()].copy_from_slice(values);
    out
}

fn validate_residual(residual: &Option<Residual<'_>>, rows: usize, n: usize) {
    let (len, ld) = match residual {
        None => return,
        Some(Residual::F32 { data, ld }) => (data.len(), *ld),
        Some(Residual::Bf16 { data, ld }) => (data.len(), *ld),
        Some(Residual::U8 { data, ld, .. }) => (data.len(), *ld),
        Some(Residual::I8 { data, ld, .. }) => (data.len(), *ld),
        Some(Residual::QuantizedSum { data, ld, .. }) => (data.len(), *ld),
    };
    assert!(
        rows == 0 || n == 0 || (rows - 1) * ld + n <= len,
        "residual of {len} elements is too short for {rows}x{n} at {ld}"
    );
}

impl Finish<f32> for EpilogueF32<'_> {
    fn validate(&self, rows: usize, n: usize) {
        if let Some(bias) = self.bias {
            assert!(bias.len() >= n, "{} biases for {n} columns", bias.len());
        }
        validate_residual(&self.residual, rows, n);
    }

    type Columns<const N: usize> = Option<[f32; N]>;

    #[inline(always)]
    fn columns<const N: usize>(&self, first: usize, cols: usize) -> Self::Columns<N> {
        self.bias.map(|b| padded(&b[first..first + cols], 0.0))
    }

    #[inline(always)]
    fn scale_and_shift<const N: usize>(
        &self,
        c: &Self::Columns<N>,
        _: usize,
        acc: &[f32; N],
        y: &mut [f32; N],
    ) {
        match c {
            None => *y = *acc,
            Some(bias) => {
                for j in 0..N {
                    y[j] = acc[j] + bias[j];
                }
            }
        }
    }

    #[inline(always)]
    fn residual(&self) -> Option<Residual<'_>> {
        self.residual
    }

    #[inline(always)]
    fn activation(&self) -> Activation {
        self.activation
    }

    #[inline(always)]
    fn prefetch(&self, place: Place, out: &mut Output<'_>) {
        let Output::F32(m) = out else { return };
        for row in place.row..place.row + place.rows {
            let to = m.ptr_at(row, place.col);
            (0..place.cols).step_by(LINE).for_each(|c| prefetch(to.wrapping_add(c)));
            if let Some(Residual::F32 { data, ld }) = self.residual {
                let from = data.as_ptr().wrapping_add(row * ld + place.n0 + place.col);
                (0..place.cols).step_by(LINE).for_each(|c| prefetch(from.wrapping_add(c)));
            }
        }
    }
}

impl Finish<i32> for EpilogueI32<'_> {
    fn validate(&self, rows: usize, n: usize) {
        if let Some(bias) = self.bias {
            assert!(bias.len() >= n, "{} biases for {n} columns", bias.len());
        }
        let scales = self.scale.len();
        assert!(scales >= n, "{scales} scales for {n} columns");
        if let Some(offset) = self.offset {
            assert!(offset.len() >= n, "{} offsets for {n} columns", offset.len());
        }
        validate_residual(&self.residual, rows, n);
    }

    type Columns<const N: usize> = ([i32; N], [f32; N], Option<[f32; N]>);

    #[inline(always)]
    fn columns<const N: usize>(&self, first: usize, cols: usize) -> Self::Columns<N> {
        let range = first..first + cols;
        let bias = self.bias.map_or(&[][..], |b| &b[range.clone()]);
        let offset = self.offset.map(|offset| padded(&offset[range.clone()], 0.0));
        (padded(bias, 0), padded(&self.scale[range], 0.0), offset)
    }

    #[inline(always)]
    fn scale_and_shift<const N: usize>(
        &self,
        c: &Self::Columns<N>,
        _: usize,
        acc: &[i32; N],
        y: &mut [f32; N],
    ) {
        for j in 0..N {
            y[j] = acc[j].wrapping_add(c.0[j]) as f32 * c.1[j];
        }
        if let Some(offset) = &c.2 {
            for j in 0..N {
                y[j] += offset[j];
            }
        }
    }

    #[inline(always)]
    fn residual(&self) -> Option<Residual<'_>> {
        self.residual
    }

    #[inline(always)]
    fn activation(&self) -> Activation {
        self.activation
    }
}

/// `(q - zero_point) * scale` added to `y`.
#[inline(always)]
fn add_dequantized<T: Copy + Into<i32>>(y: &mut [f32], q: &[T], scale: f32, zero_point: i32) {
    for (y, &q) in y.iter_mut().zip(q) {
        *y += (q.into() - zero_point) as f32 * scale;
    }
}

#[inline(always)]
fn add_residual<const N: usize>(
    y: &mut [f32; N],
    residual: &Residual<'_>,
    row: usize,
    first: usize,
    cols: usize,
) {
    match *residual {
        Residual::F32 { data, ld } => {
            let data = &data[row * ld + first..][..cols];
            for (y, &r) in y.iter_mut().zip(data) {
                *y += r;
            }
        }
        Residual::Bf16 { data, ld } => {
            let data = &data[row * ld + first..][..cols];
            for (y, &r) in y.iter_mut().zip(data) {
                *y += bf16::widen(r);
            }
        }
        Residual::U8 { data, ld, scale, zero_point } => {
            add_dequantized(y, &data[row * ld + first..][..cols], scale, zero_point);
        }
        Residual::I8 { data, ld, scale, zero_point } => {
            add_dequantized(y, &data[row * ld + first..][..cols], scale, zero_point);
        }
        Residual::QuantizedSum { product, data, ld, input } => {
            round_to_bytes(y, product);
            add_dequantized(y, &data[row * ld + first..][..cols], input.scale, input.zero_point);
        }
    }
}

/// The numbers that unsigned bytes nearest to `y` stand for.
#[inline(always)]
fn round_to_bytes(y: &mut [f32], grid: Dequant) {
    let quant = Quant::new(grid.scale, grid.zero_point);
    let (bottom, top) = byte_bounds((f32::NEG_INFINITY, f32::INFINITY), quant, 0);
    for y in y {
        let v = *y * quant.inv_scale;
        let v = if v > bottom { v } else { bottom };
        let v = if v < top { v } else { top };
        *y = math::round_to_i32(v) as f32 * grid.scale;
    }
}

/// Reals of a cache line.
const LINE: usize = 16;

/// Where a tile lies in the output.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// First row, within the output.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// First column, within the output.
    pub(crate) col: usize,
    pub(crate) cols: usize,
    /// What to add to an output column to get an absolute one.
    pub(crate) n0: usize,
}

/// Buffers of one tile, reused from tile to tile.
#[repr(C, align(64))]
pub(crate) struct Scratch<C> {
    /// What the micro-kernel wrote.
    pub(crate) acc: [C; MAX_TILE],
    reals: [f32; MAX_TILE],
    bytes: [u8; MAX_TILE],
}

impl<C: Copy> Scratch<C> {
    pub(crate) fn new(zero: C) -> Self {
        Self { acc: [zero; MAX_TILE], reals: [0.0; MAX_TILE], bytes: [0; MAX_TILE] }
    }
}

/// Finishes the tile of rows of `N` accumulators that starts at `start` in the scratch.
///
/// Works in passes over the whole tile, which stays in the first-level cache: long loops of
/// run-time length vectorize reliably on every instruction set, where unrolled rows do not.
#[inline(always)]
fn finish<const N: usize, C: Copy, E: Finish<C>>(
    e: &E,
    scratch: &mut Scratch<C>,
    start: usize,
    place: Place,
    out: &mut Output<'_>,
) {
    let first = place.n0 + place.col;
    let columns = e.columns::<N>(first, place.cols);
    let (tile, _) = scratch.acc[start..].as_chunks::<N>();
    let (rows, _) = scratch.reals.as_chunks_mut::<N>();
    for (i, (y, acc)) in rows.iter_mut().zip(tile).take(place.rows).enumerate() {
        e.scale_and_shift(&columns, place.row + i, acc, y);
    }
    if let Some(residual) = &e.residual() {
        for (i, y) in rows.iter_mut().enumerate().take(place.rows) {
            add_residual(y, residual, place.row + i, first, place.cols);
        }
    }
    let y = &mut scratch.reals[..place.rows * N];
    let q = &mut scratch.bytes[..place.rows * N];
    match out {
        Output::F32(m) => {
            e.activation().apply(y);
            store::<N, _, _>(m, place, y, |y| y);
        }
        Output::Bf16(m) => {
            e.activation().apply(y);
            store::<N, _, _>(m, place, y, bf16::round);
        }
        Output::U8(m, quant) => {
            activate_and_quantize(y, e.activation(), *quant, 0, q);
            store::<N, _, _>(m, place, q, |q| q);
        }
        Output::I8(m, quant) => {
            activate_and_quantize(y, e.activation(), *quant, -128, q);
            store::<N, _, _>(m, place, q, |q| q as i8);
        }
    }
}

/// Elements copied at a time: no wider than what wrote them, so that the stores forward.
const PIECE: usize = 16;

/// Copies the rows of a finished tile to their place.
#[inline(always)]
fn store<const N: usize, A: Copy, B: Copy>(
    m: &mut MatMut<'_, B>,
    place: Place,
    tile: &[A],
    convert: impl Fn(A) -> B,
) {
    let (rows, _) = tile.as_chunks::<N>();
    for (i, from) in rows.iter().enumerate() {
        let to = &mut m.row_mut(place.row + i)[place.col..place.col + place.cols];
        let (to_pieces, to_tail) = to.as_chunks_mut::<PIECE>();
        let (pieces, _) = from.as_chunks::<PIECE>();
        for (to, from) in to_pieces.iter_mut().zip(pieces) {
            *to = from.map(&convert);
        }
        let done = place.cols - to_tail.len();
        for (to, &from) in to_tail.iter_mut().zip(&from[done..]) {
            *to = convert(from);
        }
    }
}

per_isa! {
    pub(crate) fn finish_f32 [const N: usize] (e: &EpilogueF32<'_>, scratch: &mut Scratch<f32>, start: usize, place: Place, out: &mut Output<'_>) {
        finish::<N, f32, _>(e, scratch, start, place, out);
    }
}

per_isa! {
    fn finish_i32_in_passes [const N: usize] (e: &EpilogueI32<'_>, scratch: &mut Scratch<i32>, start: usize, place: Place, out: &mut Output<'_>) {
        finish::<N, i32, _>(e, scratch, start, place, out);
    }
}

pub(crate) fn finish_i32<const N: usize>(
    kernels: Kernels,
    e: &EpilogueI32<'_>,
    scratch: &mut Scratch<i32>,
    start: usize,
    place: Place,
    out: &mut Output<'_>,
) {
    #[cfg(target_arch = "x86_64")]
    {
        let acc = &scratch.acc[start..];
        let done = match out {
            Output::F32(_) | Output::Bf16(_) => false,
            Output::U8(m, quant) => requantize::<N, _>(kernels, e, acc, place, m, *quant, 0),
            Output::I8(m, quant) => requantize::<N, _>(kernels, e, acc, place, m, *quant, -128),
        };
        if done {
            return;
        }
    }
    finish_i32_in_passes::<N>(kernels, e, scratch, start, place, out);
}
