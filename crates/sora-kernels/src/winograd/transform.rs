//! The transforms of F(2×2, 3×3) and F(4×4, 3×3), over vectors of channels.
//!
//! Interpolation points 0, ±1, ∞ for the small tile and 0, ±1, ±2, ∞ for the large one. All
//! matrices are applied along columns, then along rows.

use crate::vector::{Vector, load, store};

/// Elements of a kernel along an axis.
pub(super) const KERNEL: usize = 3;

/// Elements of the larger transformed tile.
pub(super) const MOST: usize = 36;

/// Bᵀ · d for `IN` elements.
#[inline(always)]
unsafe fn input_line<V: Vector, const IN: usize>(d: [V; IN]) -> [V; IN] {
    let mut t = d;
    // SAFETY: the instruction set of the vector runs here, by the callers' contracts.
    unsafe {
        if IN == 4 {
            t[0] = d[0].sub(d[2]);
            t[1] = d[1].add(d[2]);
            t[2] = d[2].sub(d[1]);
            t[3] = d[1].sub(d[3]);
        } else {
            let (even, odd) = (d[4].add_scaled(-4.0, d[2]), d[3].add_scaled(-4.0, d[1]));
            let (near, step) = (d[4].sub(d[2]), d[3].sub(d[1]));
            t[0] = d[4].add_scaled(-5.0, d[2]).add_scaled(4.0, d[0]);
            t[1] = even.add(odd);
            t[2] = even.sub(odd);
            t[3] = near.add_scaled(2.0, step);
            t[4] = near.add_scaled(-2.0, step);
            t[5] = d[5].add_scaled(-5.0, d[3]).add_scaled(4.0, d[1]);
        }
    }
    t
}

/// Aᵀ · m: `IN` products to `OUT` results.
#[inline(always)]
unsafe fn output_line<V: Vector, const OUT: usize, const IN: usize>(m: [V; IN]) -> [V; OUT] {
    // SAFETY: as in `input_line`.
    unsafe {
        let mut y = [m[0]; OUT];
        let (sum, difference) = (m[1].add(m[2]), m[1].sub(m[2]));
        if IN == 4 {
            y[0] = m[0].add(sum);
            y[1] = difference.sub(m[3]);
        } else {
            let (far_sum, far_difference) = (m[3].add(m[4]), m[3].sub(m[4]));
            y[0] = m[0].add(sum).add(far_sum);
            y[1] = difference.add_scaled(2.0, far_difference);
            y[2] = sum.add_scaled(4.0, far_sum);
            y[3] = difference.add_scaled(8.0, far_difference).add(m[5]);
        }
        y
    }
}

/// G · g: the three weights of a line to `IN`.
#[inline(always)]
unsafe fn weight_line<V: Vector, const IN: usize>(g: [V; KERNEL]) -> [V; IN] {
    // SAFETY: as in `input_line`.
    unsafe {
        let mut u = [g[0]; IN];
        u[IN - 1] = g[2];
        let ends = g[0].add(g[2]);
        if IN == 4 {
            u[1] = ends.add(g[1]).scale(0.5);
            u[2] = ends.sub(g[1]).scale(0.5);
        } else {
            u[0] = g[0].scale(0.25);
            u[1] = ends.add(g[1]).scale(-1.0 / 6.0);
            u[2] = ends.sub(g[1]).scale(-1.0 / 6.0);
            let far = g[2].scale(1.0 / 6.0).add_scaled(1.0 / 24.0, g[0]);
            u[3] = far.add_scaled(1.0 / 12.0, g[1]);
            u[4] = far.add_scaled(-1.0 / 12.0, g[1]);
        }
        u
    }
}

/// Transforms `from` (`[IN · IN]` starts of pixels) channel by channel: element `e` of the tile goes
/// to `to[e * stride..]`, in whole vectors.
///
/// # Safety
/// The vector's instruction set must run here; `channels` elements of every pixel must be readable,
/// and `channels` rounded up to whole vectors writable at every element.
#[inline(always)]
pub(super) unsafe fn input_tile<V: Vector, const IN: usize>(
    from: &[*const f32; MOST],
    channels: usize,
    to: *mut f32,
    stride: usize,
) {
    let whole = channels - channels % V::LANES;
    let mut c = 0;
    // SAFETY: by the contract.
    unsafe {
        while c < whole {
            input_vector::<V, IN, true>(from, c, 0, to.add(c), stride);
            c += V::LANES;
        }
        if c < channels {
            input_vector::<V, IN, false>(from, c, channels - c, to.add(c), stride);
        }
    }
}

#[inline(always)]
unsafe fn input_vector<V: Vector, const IN: usize, const WHOLE: bool>(
    from: &[*const f32; MOST],
    c: usize,
    n: usize,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: as in `input_tile`.
    unsafe {
        let mut half = [[V::splat(0.0); IN]; IN];
        for j in 0..IN {
            let mut d = [V::splat(0.0); IN];
            for i in 0..IN {
                d[i] = load::<V, WHOLE>(from[i * IN + j].add(c), n);
            }
            let t = input_line(d);
            for i in 0..IN {
                half[i][j] = t[i];
            }
        }
        for i in 0..IN {
            let t = input_line(half[i]);
            for j in 0..IN {
                t[j].store(to.add((i * IN + j) * stride));
            }
        }
    }
}

/// Where the results of one tile go, and what is done to them on the way.
#[derive(Clone, Copy)]
pub(super) struct Destination {
    /// Columns to store: all those of a panel, or fewer.
    pub(super) cols: usize,
    /// One per column of a whole panel.
    pub(super) bias: *const f32,
    /// The residual of the tile's first pixel, or null.
    pub(super) residual: *const f32,
    /// Distance between pixels of a row, in the output and in the residual.
    pub(super) pixel: [usize; 2],
    /// Distance between rows of pixels.
    pub(super) row: [usize; 2],
    pub(super) low: f32,
    pub(super) high: f32,
    /// Rows and columns of pixels of the tile that the image has.
    pub(super) extent: [usize; 2],
    /// The tile's first pixel.
    pub(super) to: *mut f32,
}

/// Transforms the products of a tile back, adds bias and residual, clamps and stores.
///
/// # Safety
/// The vector's instruction set must run here. Products must be readable in whole panels at
/// `from[e * stride..]`, as must the bias; the pixels within the extent must be writable.
#[inline(always)]
pub(super) unsafe fn output_tile<V: Vector, const OUT: usize, const IN: usize>(
    from: *const f32,
    stride: usize,
    to: &Destination,
) {
    let whole = to.cols - to.cols % V::LANES;
    let mut c = 0;
    // SAFETY: by the contract.
    unsafe {
        while c < whole {
            output_vector::<V, OUT, IN, true>(from, stride, to, c);
            c += V::LANES;
        }
        if c < to.cols {
            output_vector::<V, OUT, IN, false>(from, stride, to, c);
        }
    }
}

#[inline(always)]
unsafe fn output_vector<V: Vector, const OUT: usize, const IN: usize, const WHOLE: bool>(
    from: *const f32,
    stride: usize,
    to: &Destination,
    c: usize,
) {
    let n = to.cols - c;
    // SAFETY: as in `output_tile`.
    unsafe {
        let mut half = [[V::splat(0.0); IN]; OUT];
        for j in 0..IN {
            let mut m = [V::splat(0.0); IN];
            for i in 0..IN {
                m[i] = V::load(from.add((i * IN + j) * stride + c));
            }
            let y = output_line::<V, OUT, IN>(m);
            for i in 0..OUT {
                half[i][j] = y[i];
            }
        }
        let bias = V::load(to.bias.add(c));
        let (low, high) = (V::splat(to.low), V::splat(to.high));
        for i in 0..OUT {
            if i >= to.extent[0] {
                break;
            }
            let y = output_line::<V, OUT, IN>(half[i]);
            for j in 0..OUT {
                if j < to.extent[1] {
                    let mut y = y[j].add(bias);
                    if !to.residual.is_null() {
                        let at = to.residual.add(i * to.row[1] + j * to.pixel[1] + c);
                        y = y.add(load::<V, WHOLE>(at, n));
                    }
                    let at = to.to.add(i * to.row[0] + j * to.pixel[0] + c);
                    store::<V, WHOLE>(y.clamp(low, high), at, n);
                }
            }
        }
    }
}

/// Transforms `lanes` kernels of one input channel, `from[tap * lanes..]`, to `to[e * stride..]`.
///
/// # Safety
/// The vector's instruction set must run here; nine times `lanes` weights must be readable, and
/// `lanes`, which are whole vectors, writable at every element.
#[inline(always)]
pub(super) unsafe fn weight_tile<V: Vector, const IN: usize>(
    from: *const f32,
    lanes: usize,
    to: *mut f32,
    stride: usize,
) {
    let mut c = 0;
    while c < lanes {
        // SAFETY: by the contract.
        unsafe {
            let mut half = [[V::splat(0.0); KERNEL]; IN];
            for j in 0..KERNEL {
                let mut g = [V::splat(0.0); KERNEL];
                for i in 0..KERNEL {
                    g[i] = V::load(from.add((i * KERNEL + j) * lanes + c));
                }
                let u = weight_line::<V, IN>(g);
                for i in 0..IN {
                    half[i][j] = u[i];
                }
            }
            for i in 0..IN {
                let u = weight_line::<V, IN>(half[i]);
                for j in 0..IN {
                    u[j].store(to.add((i * IN + j) * stride + c));
                }
            }
        }
        c += V::LANES;
    }
}
