//! Sums of integers whose rows were each quantized over their own range.

use crate::{
    Kernels,
    isa::per_isa,
    math,
    operands::Output,
    vector::{self, Vector, load, per_vector},
};

use super::{Activation, Clamped, Finish, Place, Residual, Scratch, finish, padded, validate_residual};

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
