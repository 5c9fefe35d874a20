//! Reductions with a fixed shape, so that every instruction set sums in the same order.

/// Partial results kept side by side; element `i` goes to lane `i % LANES`.
pub(crate) const LANES: usize = 32;

/// Folds `x` into [`LANES`] partial results and those, pairwise, into one.
#[inline(always)]
pub(crate) fn fold(x: &[f32], start: f32, map: impl Fn(f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut partial = [start; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for j in 0..LANES {
            partial[j] = join(partial[j], map(chunk[j]));
        }
    }
    for (p, &x) in partial.iter_mut().zip(tail) {
        *p = join(*p, map(x));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            partial[j] = join(partial[j], partial[j + width]);
        }
        width /= 2;
    }
    partial[0]
}

/// Σ map(x).
#[inline(always)]
pub(crate) fn sum(x: &[f32], map: impl Fn(f32) -> f32) -> f32 {
    fold(x, 0.0, map, |a, b| a + b)
}

/// The greater value; NaN if either is. Without branches, so that loops vectorize.
#[inline(always)]
pub(crate) fn greater(a: f32, b: f32) -> f32 {
    if (a < b) | b.is_nan() { b } else { a }
}

/// The lesser value; NaN if either is.
#[inline(always)]
pub(crate) fn lesser(a: f32, b: f32) -> f32 {
    if (a > b) | b.is_nan() { b } else { a }
}
