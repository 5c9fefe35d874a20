//! Sums of reals that only a bias, a residual and bounds or SiLU follow: finished in one pass, or in the registers that
//! summed them.

use crate::{
    Kernels, math,
    operands::Output,
    vector::{self, Vector, load, per_vector},
};

use super::{Activation, EpilogueF32, Place, Residual};

/// What a tile of real sums becomes where all that follows them is a bias, a real residual, and bounds or SiLU:
/// `to = clamp(sum + bias + residual)`, or SiLU of that.
pub(crate) struct Clamped {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bias: Option<*const f32>,
    /// First element, and distance between rows.
    pub(crate) residual: Option<(*const f32, usize)>,
    pub(crate) low: f32,
    pub(crate) high: f32,
    pub(crate) silu: bool,
    pub(crate) to: *mut f32,
    /// Distance between rows of the output.
    pub(crate) ld: usize,
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
