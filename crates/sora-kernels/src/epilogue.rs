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
    vector::{self, Vector, load, per_vector, prefetch},
};

/// A function that a layer applies before it stores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// x
    #[default]
    None,
    /// max(x, 0)
    Relu,
    /// min(max(x, min), max)
    Clip {
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// x, or alpha·x below zero
    LeakyRelu {
        /// Slope below zero.
        alpha: f32,
    },
    /// x·min(max(x/6 + 1/2, 0), 1)
    HardSwish,
    /// min(max(alpha·x + beta, 0), 1)
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at zero.
        beta: f32,
    },
    /// 1/(1 + e⁻ˣ)
    Sigmoid,
    /// tanh x
    Tanh,
    /// x·sigmoid(x)
    Silu,
    /// x·Φ(x), by the error function
    Gelu,
}

impl Activation {
    /// The bounds of an activation that only clamps; `None` for the others.
    #[inline(always)]
    pub(crate) fn bounds(self) -> Option<(f32, f32)> {
        match self {
            Self::None => Some((f32::NEG_INFINITY, f32::INFINITY)),
            Self::Relu => Some((0.0, f32::INFINITY)),
            Self::Clip { min, max } => Some((min, max)),
            _ => None,
        }
    }

    /// Whether the function does no more than keep values within bounds.
    pub fn only_clamps(self) -> bool {
        self.bounds().is_some()
    }

    /// Applies the function to every element in place.
    #[inline(always)]
    pub(crate) fn apply(self, x: &mut [f32]) {
        #[inline(always)]
        fn each(x: &mut [f32], f: impl Fn(f32) -> f32) {
            for x in x {
                *x = f(*x);
            }
        }
        match self {
            Self::None => {}
            Self::Relu => each(x, |x| math::at_least(x, 0.0)),
            Self::Clip { min, max } => each(x, |x| math::clamp(x, min, max)),
            Self::LeakyRelu { alpha } => each(x, |x| if x < 0.0 { alpha * x } else { x }),
            Self::HardSwish => each(x, |x| x * unit(x * (1.0 / 6.0) + 0.5)),
            Self::HardSigmoid { alpha, beta } => each(x, |x| unit(alpha * x + beta)),
            Self::Sigmoid => each(x, math::sigmoid),
            Self::Tanh => each(x, math::tanh),
            Self::Silu => each(x, math::silu),
            Self::Gelu => each(x, math::gelu),
        }
    }
}

/// Clamps to [0, 1].
#[inline(always)]
fn unit(x: f32) -> f32 {
    math::clamp(x, 0.0, 1.0)
}

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
/// `activation(f32(acc + bias[n]) * scale[n] + residual)`.
#[derive(Clone, Copy, Debug)]
pub struct EpilogueI32<'a> {
    /// One value per column, usually with the input's zero point folded in
    /// ([`crate::fold_zero_point`]); the sum wraps.
    pub bias: Option<&'a [i32]>,
    /// Input scale × weight scale, one value per column.
    pub scale: &'a [f32],
    /// A tensor of the output's shape.
    pub residual: Option<Residual<'a>>,
    /// Applied last.
    pub activation: Activation,
}

/// Finish of an integer accumulator whose rows of A were each quantized over their own range:
/// `activation(f32(acc − zero_point[r] · col_sum[n]) · (row_scale[r] · scale[n]) + bias[n] + residual)`.
#[derive(Clone, Copy, Debug)]
pub struct EpilogueRows<'a> {
    /// The real value of one step of A, for each row, or one for all rows.
    pub row_scales: &'a [f32],
    /// The byte that stands for zero in A, likewise.
    pub zero_points: &'a [u8],
    /// Weight scale, one value per column.
    pub scale: &'a [f32],
    /// One value per column.
    pub bias: Option<&'a [f32]>,
    /// A tensor of the output's shape.
    pub residual: Option<Residual<'a>>,
    /// Applied last.
    pub activation: Activation,
}

/// An [`EpilogueRows`] with the column sums of B.
#[derive(Clone, Copy)]
pub(crate) struct FinishRows<'a> {
    pub(crate) epilogue: &'a EpilogueRows<'a>,
    pub(crate) sums: &'a [i32],
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
        validate_residual(&self.residual, rows, n);
    }

    type Columns<const N: usize> = ([i32; N], [f32; N]);

    #[inline(always)]
    fn columns<const N: usize>(&self, first: usize, cols: usize) -> Self::Columns<N> {
        let bias = self.bias.map_or(&[][..], |b| &b[first..first + cols]);
        (padded(bias, 0), padded(&self.scale[first..first + cols], 0.0))
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

impl Finish<i32> for FinishRows<'_> {
    fn validate(&self, rows: usize, n: usize) {
        let e = self.epilogue;
        let fits = |len: usize| len == 1 || len == rows;
        let (scales, zeros) = (e.row_scales.len(), e.zero_points.len());
        assert!(fits(scales) && scales == zeros, "{scales} scales and {zeros} zero points for {rows} rows");
        assert!(e.scale.len() >= n, "{} scales for {n} columns", e.scale.len());
        if let Some(bias) = e.bias {
            assert!(bias.len() >= n, "{} biases for {n} columns", bias.len());
        }
        validate_residual(&e.residual, rows, n);
    }

    type Columns<const N: usize> = ([i32; N], [f32; N], [f32; N]);

    #[inline(always)]
    fn columns<const N: usize>(&self, first: usize, cols: usize) -> Self::Columns<N> {
        let range = first..first + cols;
        let bias = self.epilogue.bias.map_or(&[][..], |b| &b[range.clone()]);
        (padded(&self.sums[range.clone()], 0), padded(&self.epilogue.scale[range], 0.0), padded(bias, 0.0))
    }

    #[inline(always)]
    fn scale_and_shift<const N: usize>(
        &self,
        c: &Self::Columns<N>,
        row: usize,
        acc: &[i32; N],
        y: &mut [f32; N],
    ) {
        let row = if self.epilogue.row_scales.len() == 1 { 0 } else { row };
        let (scale, zero_point) = (self.epilogue.row_scales[row], i32::from(self.epilogue.zero_points[row]));
        for j in 0..N {
            let sum = acc[j].wrapping_sub(c.0[j].wrapping_mul(zero_point));
            y[j] = sum as f32 * (scale * c.1[j]) + c.2[j];
        }
    }

    #[inline(always)]
    fn residual(&self) -> Option<Residual<'_>> {
        self.epilogue.residual
    }

    #[inline(always)]
    fn activation(&self) -> Activation {
        self.epilogue.activation
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

/// The bounds of an activation that clamps and those of the bytes from `low` on as one pair, in
/// steps from the zero point.
#[inline(always)]
pub(crate) fn byte_bounds((min, max): (f32, f32), quant: Quant, low: i32) -> (f32, f32) {
    let (inv_scale, zp) = (quant.inv_scale, quant.zero_point);
    let bottom = math::at_least(min * inv_scale, (low - zp) as f32);
    let top = math::at_most(max * inv_scale, (low + 255 - zp) as f32);
    (bottom, top)
}

/// Applies `activation` to `y` and quantizes it into 0..=255 (or −128..=127 shifted by `low`).
/// NaN becomes the low end of what the activation leaves.
///
/// Bounds commute with scaling by a positive number and with rounding, both being monotone, so
/// those of the activation and of the integers become one pair; clamping first also keeps values
/// in the range where rounding by addition is exact.
#[inline(always)]
pub(crate) fn activate_and_quantize(
    y: &mut [f32],
    activation: Activation,
    quant: Quant,
    low: i32,
    out: &mut [u8],
) {
    // No closure here: it would be compiled for the baseline, and the activation with it.
    let bounds = match activation.bounds() {
        Some(bounds) => bounds,
        None => {
            activation.apply(y);
            (f32::NEG_INFINITY, f32::INFINITY)
        }
    };
    let (inv_scale, zp) = (quant.inv_scale, quant.zero_point);
    let (bottom, top) = byte_bounds(bounds, quant, low);
    for (out, &y) in out.iter_mut().zip(&*y) {
        let v = y * inv_scale;
        let v = if v > bottom { v } else { bottom };
        let v = if v < top { v } else { top };
        *out = math::round_to_i32(v).wrapping_add(zp) as u8;
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

per_isa! {
    fn finish_rows_in_passes [const N: usize] (e: &FinishRows<'_>, scratch: &mut Scratch<i32>, start: usize, place: Place, out: &mut Output<'_>) {
        finish::<N, i32, _>(e, scratch, start, place, out);
    }
}

/// Finishes a tile, in one pass where all that follows the scales is a bias, a real residual, and bounds
/// or GELU, and the results are real numbers.
pub(crate) fn finish_rows<const N: usize>(
    kernels: Kernels,
    e: &FinishRows<'_>,
    scratch: &mut Scratch<i32>,
    start: usize,
    place: Place,
    out: &mut Output<'_>,
) {
    let epilogue = e.epilogue;
    let gelu = epilogue.activation == Activation::Gelu;
    let unbounded = (f32::NEG_INFINITY, f32::INFINITY);
    let bounds = if gelu { Some(unbounded) } else { epilogue.activation.bounds() };
    let first = place.n0 + place.col;
    let residual = match epilogue.residual {
        None => Some(None),
        Some(Residual::F32 { data, ld }) => {
            Some(Some((data[place.row * ld + first..][..(place.rows - 1) * ld + place.cols].as_ptr(), ld)))
        }
        Some(_) => None,
    };
    let (Output::F32(m), Some((low, high)), Some(residual)) = (&mut *out, bounds, residual) else {
        return finish_rows_in_passes::<N>(kernels, e, scratch, start, place, out);
    };
    const { assert!(N.is_multiple_of(16) || N == 8) };
    assert!(place.cols <= N && place.row + place.rows <= m.rows() && place.col + place.cols <= m.cols());
    let acc = scratch.acc[start..][..place.rows * N].as_ptr();
    let (sums, scale, bias) = e.columns::<N>(first, place.cols);
    let ld = m.ld();
    let rows = if epilogue.row_scales.len() == 1 { 0..1 } else { place.row..place.row + place.rows };
    let tile = ScaledRows {
        acc,
        nr: N,
        values: Clamped {
            rows: place.rows,
            cols: place.cols,
            bias: Some(bias.as_ptr()),
            residual,
            low,
            high,
            silu: false,
            to: m.ptr_at(place.row, place.col),
            ld,
        },
        sums: sums.as_ptr(),
        scale: scale.as_ptr(),
        row_scales: &epilogue.row_scales[rows.clone()],
        zero_points: &epilogue.zero_points[rows],
        gelu,
    };
    // SAFETY: the accumulators and the columns' parameters are of N columns, whole vectors on every
    // instruction set; the residual and the output have the place's rows and columns.
    unsafe { scale_rows(kernels, &tile) }
}

/// A tile for [`scale_rows`], whose columns all have parameters.
struct ScaledRows<'a> {
    acc: *const i32,
    /// Columns of the accumulators.
    nr: usize,
    values: Clamped,
    sums: *const i32,
    scale: *const f32,
    /// Of each row, or one of all.
    row_scales: &'a [f32],
    zero_points: &'a [u8],
    gelu: bool,
}

per_vector! {
    /// `to = activation((acc − zero_point · sum) · (row_scale · scale) + bias + residual)`.
    ///
    /// # Safety
    /// What the tile describes must be readable, the accumulators and parameters to whole vectors, and
    /// writable.
    unsafe fn scale_rows<V>(t: &ScaledRows<'_>) {
        // SAFETY: by the contract.
        unsafe {
            let mut c = 0;
            while c < t.values.cols {
                match (c + V::LANES <= t.values.cols, t.gelu) {
                    (true, true) => scale_columns::<V, true, true>(t, c),
                    (true, false) => scale_columns::<V, true, false>(t, c),
                    (false, true) => scale_columns::<V, false, true>(t, c),
                    (false, false) => scale_columns::<V, false, false>(t, c),
                }
                c += V::LANES;
            }
        }
    }
}

/// Rows worked on together, so that their latencies overlap.
const TOGETHER: usize = 4;

/// # Safety
/// See [`scale_rows`].
#[inline(always)]
unsafe fn scale_columns<V: Vector, const WHOLE: bool, const GELU: bool>(t: &ScaledRows<'_>, c: usize) {
    let rows = t.values.rows;
    // SAFETY: by the contract.
    unsafe {
        let mut i = 0;
        while i + TOGETHER <= rows {
            scale_piece::<V, WHOLE, GELU, TOGETHER>(t, i, c);
            i += TOGETHER;
        }
        while i < rows {
            scale_piece::<V, WHOLE, GELU, 1>(t, i, c);
            i += 1;
        }
    }
}

/// # Safety
/// See [`scale_rows`].
#[inline(always)]
unsafe fn scale_piece<V: Vector, const WHOLE: bool, const GELU: bool, const ROWS: usize>(
    t: &ScaledRows<'_>,
    first: usize,
    c: usize,
) {
    let v = &t.values;
    let n = v.cols - c;
    let one = t.row_scales.len() == 1;
    // SAFETY: by the contract of `scale_rows`.
    unsafe {
        let scale = V::load(t.scale.add(c));
        let mut y = [V::splat(0.0); ROWS];
        for j in 0..ROWS {
            let i = first + j;
            let row = if one { 0 } else { i };
            let acc = t.acc.add(i * t.nr + c);
            let sum = V::load_difference(acc, i32::from(t.zero_points[row]), t.sums.add(c));
            y[j] = sum.mul(V::splat(t.row_scales[row]).mul(scale));
            if let Some(bias) = v.bias {
                y[j] = y[j].add(V::load(bias.add(c)));
            }
            if let Some((residual, ld)) = v.residual {
                y[j] = y[j].add(load::<V, WHOLE>(residual.add(i * ld + c), n));
            }
        }
        if GELU {
            y = math::gelu_of(y);
        }
        for j in 0..ROWS {
            let y = if GELU { y[j] } else { y[j].clamp(V::splat(v.low), V::splat(v.high)) };
            vector::store::<V, WHOLE>(y, v.to.add((first + j) * v.ld + c), n);
        }
    }
}

/// What a tile of real sums becomes where all that follows them is a bias, a real residual, and bounds or SiLU:
/// `to = clamp(sum + bias + residual)`, or SiLU of that.
pub(crate) struct Clamped {
    rows: usize,
    cols: usize,
    bias: Option<*const f32>,
    /// First element, and distance between rows.
    residual: Option<(*const f32, usize)>,
    low: f32,
    high: f32,
    silu: bool,
    to: *mut f32,
    /// Distance between rows of the output.
    ld: usize,
}

impl Clamped {
    /// `None` where more follows the sums, or the results are not stored as reals. The caller validated the
    /// epilogue.
    #[inline]
    pub(crate) fn at(e: &EpilogueF32<'_>, place: Place, out: &mut Output<'_>) -> Option<Self> {
        let Place { row, rows, col, cols, n0 } = place;
        let silu = e.activation == Activation::Silu;
        let bounds = if silu { Activation::None.bounds() } else { e.activation.bounds() };
        let (Output::F32(m), Some((low, high))) = (out, bounds) else { return None };
        let residual = match e.residual {
            None => None,
            Some(Residual::F32 { data, ld }) => {
                Some((data[row * ld + n0 + col..][..(rows - 1) * ld + cols].as_ptr(), ld))
            }
            Some(_) => return None,
        };
        let bias = e.bias.map(|b| b[n0 + col..][..cols].as_ptr());
        assert!(row + rows <= m.rows() && col + cols <= m.cols());
        let ld = m.ld();
        Some(Self { rows, cols, bias, residual, low, high, silu, to: m.ptr_at(row, col), ld })
    }

    /// Whether [`Clamped::store`] does all of this, for vectors of so many lanes.
    pub(crate) fn in_registers(&self, lanes: usize) -> bool {
        !self.silu && self.cols.is_multiple_of(lanes)
    }

    /// Stores rows of one panel of `NV` vectors that hold the sums. Plain loops, one thing at a time: the
    /// compiler then keeps the sums in registers.
    ///
    /// # Safety
    /// The instruction set of the vector must run here, and [`Clamped::at`] have described a place of `MR` rows,
    /// at most `NV` vectors of columns and [`Clamped::in_registers`], that is still there.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    pub(crate) unsafe fn store<V: Vector, const MR: usize, const NV: usize>(
        &self,
        mut sums: [[[V; NV]; 1]; MR],
    ) {
        // SAFETY: by the contract, as every vector begins before the last column.
        unsafe {
            if let Some(bias) = self.bias {
                for v in 0..NV {
                    if v * V::LANES < self.cols {
                        let bias = V::load(bias.add(v * V::LANES));
                        for i in 0..MR {
                            sums[i][0][v] = sums[i][0][v].add(bias);
                        }
                    }
                }
            }
            if let Some((residual, ld)) = self.residual {
                for v in 0..NV {
                    if v * V::LANES < self.cols {
                        for i in 0..MR {
                            let r = V::load(residual.add(i * ld + v * V::LANES));
                            sums[i][0][v] = sums[i][0][v].add(r);
                        }
                    }
                }
            }
            let (low, high) = (V::splat(self.low), V::splat(self.high));
            for v in 0..NV {
                if v * V::LANES < self.cols {
                    for i in 0..MR {
                        sums[i][0][v].clamp(low, high).store(self.to.add(i * self.ld + v * V::LANES));
                    }
                }
            }
        }
    }
}

/// Finishes a tile of real sums in one pass if it may be [`Clamped`]; otherwise returns false and does nothing.
///
/// `acc` holds the place's rows, `nr` columns each.
#[inline]
pub(crate) fn finish_real(
    kernels: Kernels,
    e: &EpilogueF32<'_>,
    acc: &[f32],
    nr: usize,
    place: Place,
    out: &mut Output<'_>,
) -> bool {
    let Some(tile) = Clamped::at(e, place, out) else { return false };
    assert!(place.rows * nr <= acc.len() && place.cols <= nr);
    // SAFETY: the sums, the bias, the residual and the output have these rows and columns.
    unsafe { clamp_rows(kernels, &tile, acc.as_ptr(), nr) };
    true
}

per_vector! {
    /// Finishes sums that lie `nr` apart.
    ///
    /// # Safety
    /// The sums and what the tile describes must be readable and writable.
    unsafe fn clamp_rows<V>(t: &Clamped, acc: *const f32, nr: usize) {
        // SAFETY: by the contract.
        unsafe {
            match t.silu {
                false => finish_columns::<V, false>(t, acc, nr),
                true => finish_columns::<V, true>(t, acc, nr),
            }
        }
    }
}

/// # Safety
/// See [`clamp_rows`].
#[inline(always)]
unsafe fn finish_columns<V: Vector, const SILU: bool>(t: &Clamped, acc: *const f32, nr: usize) {
    // SAFETY: the same contract.
    unsafe {
        let mut c = 0;
        while c + V::LANES <= t.cols {
            clamp_columns::<V, SILU, true>(t, c, acc, nr);
            c += V::LANES;
        }
        if c < t.cols {
            clamp_columns::<V, SILU, false>(t, c, acc, nr);
        }
    }
}

/// # Safety
/// See [`clamp_rows`].
#[inline(always)]
unsafe fn clamp_columns<V: Vector, const SILU: bool, const WHOLE: bool>(
    t: &Clamped,
    c: usize,
    acc: *const f32,
    nr: usize,
) {
    let n = t.cols - c;
    // SAFETY: by the contract of `clamp_rows`.
    unsafe {
        let (low, high) = (V::splat(t.low), V::splat(t.high));
        let bias = match t.bias {
            Some(bias) => load::<V, WHOLE>(bias.add(c), n),
            None => V::splat(0.0),
        };
        for i in 0..t.rows {
            let mut y = load::<V, WHOLE>(acc.add(i * nr + c), n).add(bias);
            if let Some((residual, ld)) = t.residual {
                y = y.add(load::<V, WHOLE>(residual.add(i * ld + c), n));
            }
            let y = if SILU { math::silu_of(y) } else { y.clamp(low, high) };
            vector::store::<V, WHOLE>(y, t.to.add(i * t.ld + c), n);
        }
    }
}
