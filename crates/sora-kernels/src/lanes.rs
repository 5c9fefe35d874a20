//! Reductions with a fixed shape, so that every instruction set sums in the same order.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{
    __m128, _mm_add_ps, _mm_cvtss_f32, _mm_loadu_ps, _mm_max_ps, _mm_movehl_ps, _mm_shuffle_ps,
};

/// Partial results kept side by side; element `i` goes to lane `i % LANES`.
pub(crate) const LANES: usize = 32;

/// Folds `x` into [`LANES`] partial results and those, pairwise, into one.
#[inline(always)]
pub(crate) fn fold(x: &[f32], start: f32, map: impl Fn(f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut partial = partials(x, start, map, &join);
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            partial[j] = join(partial[j], partial[j + width]);
        }
        width /= 2;
    }
    partial[0]
}

#[inline(always)]
fn partials(x: &[f32], start: f32, map: impl Fn(f32) -> f32, join: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
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
    partial
}

/// A way to join partial results that registers of four know.
pub(crate) trait Join {
    /// What changes nothing.
    const NEUTRAL: f32;
    fn join(a: f32, b: f32) -> f32;
    #[cfg(target_arch = "x86_64")]
    fn join4(a: __m128, b: __m128) -> __m128;
}

/// a + b
pub(crate) struct Add;

/// The greater number; one that is no NaN where there is one on the left.
pub(crate) struct Greatest;

impl Join for Add {
    const NEUTRAL: f32 = 0.0;

    #[inline(always)]
    fn join(a: f32, b: f32) -> f32 {
        a + b
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn join4(a: __m128, b: __m128) -> __m128 {
        // SAFETY: every x86-64 processor has SSE.
        unsafe { _mm_add_ps(a, b) }
    }
}

impl Join for Greatest {
    const NEUTRAL: f32 = f32::NEG_INFINITY;

    #[inline(always)]
    fn join(a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn join4(a: __m128, b: __m128) -> __m128 {
        // SAFETY: every x86-64 processor has SSE.
        unsafe { _mm_max_ps(a, b) }
    }
}

/// Joins partial results pairwise in the order of [`fold`]. Written for registers: the compiler
/// takes a loop over halves of an array apart.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn across<J: Join>(partial: &[f32; LANES]) -> f32 {
    let join = J::join4;
    // SAFETY: every x86-64 processor has SSE, and each load is of four of the 32 elements.
    unsafe {
        let quad = |i: usize| _mm_loadu_ps(partial.as_ptr().add(4 * i));
        let half = |i: usize| join(quad(i), quad(i + 4));
        let q = join(join(half(0), half(2)), join(half(1), half(3)));
        let q = join(q, _mm_movehl_ps(q, q));
        _mm_cvtss_f32(join(q, _mm_shuffle_ps::<1>(q, q)))
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn across<J: Join>(partial: &[f32; LANES]) -> f32 {
    let mut partial = *partial;
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            partial[j] = J::join(partial[j], partial[j + width]);
        }
        width /= 2;
    }
    partial[0]
}

/// Replaces every element by `map(x)` and joins the results as [`fold`] does.
#[inline(always)]
pub(crate) fn map_join<J: Join>(x: &mut [f32], map: impl Fn(f32) -> f32) -> f32 {
    let mut partial = [J::NEUTRAL; LANES];
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for j in 0..LANES {
            chunk[j] = map(chunk[j]);
            partial[j] = J::join(partial[j], chunk[j]);
        }
    }
    for (p, x) in partial.iter_mut().zip(tail) {
        *x = map(*x);
        *p = J::join(*p, *x);
    }
    across::<J>(&partial)
}

/// [`map_join`] for a function of two rows, of which the first is replaced.
#[inline(always)]
pub(crate) fn zip_join<J: Join>(x: &mut [f32], y: &[f32], map: impl Fn(f32, f32) -> f32) -> f32 {
    let mut partial = [J::NEUTRAL; LANES];
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    let (others, other_tail) = y.as_chunks::<LANES>();
    for (chunk, other) in chunks.iter_mut().zip(others) {
        for j in 0..LANES {
            chunk[j] = map(chunk[j], other[j]);
            partial[j] = J::join(partial[j], chunk[j]);
        }
    }
    for ((p, x), &y) in partial.iter_mut().zip(tail).zip(other_tail) {
        *x = map(*x, y);
        *p = J::join(*p, *x);
    }
    across::<J>(&partial)
}

/// Σ map(x).
#[inline(always)]
pub(crate) fn sum(x: &[f32], map: impl Fn(f32) -> f32) -> f32 {
    across::<Add>(&partials(x, 0.0, map, Add::join))
}

/// The greatest element of a row without NaN.
#[inline(always)]
pub(crate) fn greatest(x: &[f32]) -> f32 {
    across::<Greatest>(&partials(x, Greatest::NEUTRAL, |x| x, Greatest::join))
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
