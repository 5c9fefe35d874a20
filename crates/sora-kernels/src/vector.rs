//! Vectors of reals, for kernels that one generic body serves on every instruction set.

/// Real arithmetic on one number or several, the same bits from every implementation: each operation
/// rounds once, as that on `f32` does.
///
/// # Safety
/// Every method: the instruction set of the type must run here.
pub(crate) trait Reals: Copy {
    unsafe fn splat(x: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// max(self, low); NaN stays.
    unsafe fn at_least(self, low: Self) -> Self;
    /// min(self, high); NaN stays.
    unsafe fn at_most(self, high: Self) -> Self;
    /// Adds the low nine bits of `integer` to sign and exponent: a multiplication by 2ⁿ.
    unsafe fn add_exponent(self, integer: Self) -> Self;
}

/// A register of reals.
///
/// Bodies generic over it must be `#[inline(always)]` up to a function that enables the
/// features of the vector, or its operations become calls.
///
/// # Safety
/// Every method: the instruction set of the vector must run here. Those that take pointers:
/// [`Vector::LANES`] elements, or the first `n` where a number is given, must be readable or writable.
pub(crate) trait Vector: Reals {
    /// Elements.
    const LANES: usize;
    unsafe fn load(from: *const f32) -> Self;
    /// The first `n < LANES` elements, zeros behind.
    unsafe fn load_first(from: *const f32, n: usize) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Stores the first `n < LANES` elements.
    unsafe fn store_first(self, to: *mut f32, n: usize);
    /// `sums - factor · others`, in wrapping integers, then as reals.
    unsafe fn load_difference(sums: *const i32, factor: i32, others: *const i32) -> Self;
    /// `self + factor · x`, rounded once or twice.
    unsafe fn add_scaled(self, factor: f32, x: Self) -> Self;
    /// `factor · self`.
    unsafe fn scale(self, factor: f32) -> Self;
    /// min(max(self, low), high); NaN stays.
    unsafe fn clamp(self, low: Self, high: Self) -> Self;
    /// `self · b + c`, rounded once or twice.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self / d` within 2 ulp, for |d| from 2⁻¹²⁶ to 2¹²⁶.
    unsafe fn quotient(self, d: Self) -> Self;
}

/// [`Vector::load`] or [`Vector::load_first`]: functions instead of closures, which would be compiled
/// without the vector's features.
///
/// # Safety
/// As theirs.
#[inline(always)]
pub(crate) unsafe fn load<V: Vector, const WHOLE: bool>(from: *const f32, n: usize) -> V {
    // SAFETY: by the contract.
    unsafe { if WHOLE { V::load(from) } else { V::load_first(from, n) } }
}

/// [`Vector::store`] or [`Vector::store_first`].
///
/// # Safety
/// As theirs.
#[inline(always)]
pub(crate) unsafe fn store<V: Vector, const WHOLE: bool>(y: V, to: *mut f32, n: usize) {
    // SAFETY: by the contract.
    unsafe { if WHOLE { y.store(to) } else { y.store_first(to, n) } }
}

/// Defines a function whose body, generic over a [`Vector`], is compiled for the vectors of each
/// instruction set and chosen by the handle in its first argument.
macro_rules! per_vector {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident<$v:ident>($($arg:ident : $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis unsafe fn $name(kernels: $crate::Kernels, $($arg: $ty),*) {
            #[inline(always)]
            unsafe fn body<$v: $crate::vector::Vector>($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2($($arg: $ty),*) {
                    // SAFETY: by the contract of the function defined.
                    unsafe { body::<core::arch::x86_64::__m256>($($arg),*) }
                }
                #[target_feature(enable = "avx512f")]
                unsafe fn avx512($($arg: $ty),*) {
                    // SAFETY: as above.
                    unsafe { body::<core::arch::x86_64::__m512>($($arg),*) }
                }
                if kernels.isa().includes($crate::Isa::Avx512) {
                    // SAFETY: as above, and the handle proves that the instruction set runs here.
                    return unsafe { avx512($($arg),*) };
                }
                if kernels.isa().includes($crate::Isa::Avx2) {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            let _ = kernels;
            // SAFETY: as above.
            unsafe { body::<[f32; 4]>($($arg),*) }
        }
    };
}
pub(crate) use per_vector;

/// Asks for the cache line of an address, which need not be readable.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, part of the target's baseline, that cannot fault.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// One number.
impl Reals for f32 {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        x
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self + other
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self - other
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self * other
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        f32::abs(self)
    }

    #[inline(always)]
    unsafe fn at_least(self, low: Self) -> Self {
        crate::math::at_least(self, low)
    }

    #[inline(always)]
    unsafe fn at_most(self, high: Self) -> Self {
        crate::math::at_most(self, high)
    }

    #[inline(always)]
    unsafe fn add_exponent(self, integer: Self) -> Self {
        f32::from_bits(self.to_bits().wrapping_add(integer.to_bits().wrapping_shl(23)))
    }
}

/// Defines methods of an array by those of its elements, in loops: closures would be compiled without
/// the elements' features.
macro_rules! each_element {
    ($($name:ident($($other:ident)?);)*) => {$(
        #[inline(always)]
        unsafe fn $name(mut self $(, $other: Self)?) -> Self {
            for i in 0..K {
                // SAFETY: the same contract.
                self[i] = unsafe { self[i].$name($($other[i])?) };
            }
            self
        }
    )*};
}

/// Several side by side, whose latencies overlap.
impl<R: Reals, const K: usize> Reals for [R; K] {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the same contract.
        [unsafe { R::splat(x) }; K]
    }

    each_element! {
        add(other);
        sub(other);
        mul(other);
        abs();
        at_least(other);
        at_most(other);
        add_exponent(other);
    }
}

/// `a + b · c`: rounded once on aarch64, whose every processor can, else twice.
#[inline(always)]
fn add_product(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: NEON belongs to aarch64, and arrays of four reals are its vectors.
    unsafe {
        use core::arch::aarch64::{vfmaq_f32, vld1q_f32, vst1q_f32};
        let mut sum = [0.0; 4];
        let (a, b, c) = (vld1q_f32(a.as_ptr()), vld1q_f32(b.as_ptr()), vld1q_f32(c.as_ptr()));
        vst1q_f32(sum.as_mut_ptr(), vfmaq_f32(a, b, c));
        sum
    }
    #[cfg(not(target_arch = "aarch64"))]
    core::array::from_fn(|i| a[i] + b[i] * c[i])
}

/// Four lanes in plain Rust, which every target has vectors for.
impl Vector for [f32; 4] {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: readable, by the contract; an array of reals needs the alignment of one.
        unsafe { from.cast::<Self>().read() }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        // SAFETY: the first `n` are readable, by the contract.
        core::array::from_fn(|i| if i < n { unsafe { *from.add(i) } } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: writable, by the contract.
        unsafe { to.cast::<Self>().write(self) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        for (i, &x) in self.iter().enumerate().take(n) {
            // SAFETY: the first `n` are writable, by the contract.
            unsafe { *to.add(i) = x };
        }
    }

    #[inline(always)]
    unsafe fn load_difference(sums: *const i32, factor: i32, others: *const i32) -> Self {
        // SAFETY: readable, by the contract.
        let (sums, others) = unsafe { (sums.cast::<[i32; 4]>().read(), others.cast::<[i32; 4]>().read()) };
        core::array::from_fn(|i| sums[i].wrapping_sub(factor.wrapping_mul(others[i])) as f32)
    }

    #[inline(always)]
    unsafe fn add_scaled(self, factor: f32, x: Self) -> Self {
        add_product(self, [factor; 4], x)
    }

    #[inline(always)]
    unsafe fn scale(self, factor: f32) -> Self {
        self.map(|x| factor * x)
    }

    #[inline(always)]
    unsafe fn clamp(self, low: Self, high: Self) -> Self {
        core::array::from_fn(|i| crate::math::clamp(self[i], low[i], high[i]))
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        add_product(c, self, b)
    }

    #[inline(always)]
    unsafe fn quotient(self, d: Self) -> Self {
        core::array::from_fn(|i| self[i] / d[i])
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use super::{Reals, Vector};

    /// A mask of the first `n` of eight lanes.
    #[inline(always)]
    unsafe fn first(n: usize) -> __m256i {
        const MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: n ≤ 8, so eight elements remain.
        unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - n.min(8)).cast()) }
    }

    impl Reals for __m256 {
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the instruction set runs here, by the contract; so in all below.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_add_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_sub_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_mul_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn abs(self) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self) }
        }

        #[inline(always)]
        unsafe fn at_least(self, low: Self) -> Self {
            // SAFETY: as above. Where an operand is NaN the second is the result.
            unsafe { _mm256_max_ps(low, self) }
        }

        #[inline(always)]
        unsafe fn at_most(self, high: Self) -> Self {
            // SAFETY: as above. Where an operand is NaN the second is the result.
            unsafe { _mm256_min_ps(high, self) }
        }

        #[inline(always)]
        unsafe fn add_exponent(self, integer: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(integer));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self), exponent))
            }
        }
    }

    /// AVX2 with FMA.
    impl Vector for __m256 {
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above, and readable by the contract.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_first(from: *const f32, n: usize) -> Self {
            // SAFETY: as above; the mask keeps it to what is readable.
            unsafe { _mm256_maskload_ps(from, first(n)) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above, and writable by the contract.
            unsafe { _mm256_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn store_first(self, to: *mut f32, n: usize) {
            // SAFETY: as above; the mask keeps it to what is writable.
            unsafe { _mm256_maskstore_ps(to, first(n), self) }
        }

        #[inline(always)]
        unsafe fn load_difference(sums: *const i32, factor: i32, others: *const i32) -> Self {
            // SAFETY: as above, and readable by the contract.
            unsafe {
                let others = _mm256_mullo_epi32(_mm256_set1_epi32(factor), _mm256_loadu_si256(others.cast()));
                _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_loadu_si256(sums.cast()), others))
            }
        }

        #[inline(always)]
        unsafe fn add_scaled(self, factor: f32, x: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_fmadd_ps(_mm256_set1_ps(factor), x, self) }
        }

        #[inline(always)]
        unsafe fn scale(self, factor: f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_mul_ps(_mm256_set1_ps(factor), self) }
        }

        #[inline(always)]
        unsafe fn clamp(self, low: Self, high: Self) -> Self {
            // SAFETY: as above. Where an operand is NaN the second is the result.
            unsafe { _mm256_min_ps(high, _mm256_max_ps(low, self)) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_fmadd_ps(self, b, c) }
        }

        #[inline(always)]
        unsafe fn quotient(self, d: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_div_ps(self, d) }
        }
    }

    impl Reals for __m512 {
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the instruction set runs here, by the contract; so in all below.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_add_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_sub_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_mul_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn abs(self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_abs_ps(self) }
        }

        #[inline(always)]
        unsafe fn at_least(self, low: Self) -> Self {
            // SAFETY: as above. Where an operand is NaN the second is the result.
            unsafe { _mm512_max_ps(low, self) }
        }

        #[inline(always)]
        unsafe fn at_most(self, high: Self) -> Self {
            // SAFETY: as above. Where an operand is NaN the second is the result.
            unsafe { _mm512_min_ps(high, self) }
        }

        #[inline(always)]
        unsafe fn add_exponent(self, integer: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(integer));
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self), exponent))
            }
        }
    }

    /// AVX-512.
    impl Vector for __m512 {
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above, and readable by the contract.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_first(from: *const f32, n: usize) -> Self {
            // SAFETY: as above; the mask keeps it to what is readable.
            unsafe { _mm512_maskz_loadu_ps((1 << n) - 1, from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above, and writable by the contract.
            unsafe { _mm512_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn store_first(self, to: *mut f32, n: usize) {
            // SAFETY: as above; the mask keeps it to what is writable.
            unsafe { _mm512_mask_storeu_ps(to, (1 << n) - 1, self) }
        }

        #[inline(always)]
        unsafe fn load_difference(sums: *const i32, factor: i32, others: *const i32) -> Self {
            // SAFETY: as above, and readable by the contract.
            unsafe {
                let others = _mm512_mullo_epi32(_mm512_set1_epi32(factor), _mm512_loadu_si512(others.cast()));
                _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(sums.cast()), others))
            }
        }

        #[inline(always)]
        unsafe fn add_scaled(self, factor: f32, x: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_fmadd_ps(_mm512_set1_ps(factor), x, self) }
        }

        #[inline(always)]
        unsafe fn scale(self, factor: f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_mul_ps(_mm512_set1_ps(factor), self) }
        }

        #[inline(always)]
        unsafe fn clamp(self, low: Self, high: Self) -> Self {
            // SAFETY: as above. Where an operand is NaN the second is the result.
            unsafe { _mm512_min_ps(high, _mm512_max_ps(low, self)) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_fmadd_ps(self, b, c) }
        }

        #[inline(always)]
        unsafe fn quotient(self, d: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                // Within 2⁻¹⁴, then one step of Newton's method.
                let r = _mm512_rcp14_ps(d);
                let r = _mm512_fmadd_ps(_mm512_fnmadd_ps(d, r, _mm512_set1_ps(1.0)), r, r);
                _mm512_mul_ps(self, r)
            }
        }
    }
}
