//! Square blocks of reals, transposed in registers: how rows become columns and columns rows.

use crate::vector::Vector;

/// A vector of which [`Vector::LANES`] make a square.
///
/// # Safety
/// The instruction set of the vector must run here, and a vector be readable at the first [`Vector::LANES`] addresses.
pub(super) trait Square: Vector {
    /// The rows of a square, given where its columns lie; zeros behind.
    unsafe fn load_columns(columns: [*const f32; 8]) -> [Self; 8];
}

impl Square for [f32; 4] {
    #[inline(always)]
    unsafe fn load_columns(columns: [*const f32; 8]) -> [Self; 8] {
        let mut rows = [[0.0; 4]; 8];
        #[cfg(target_arch = "x86_64")]
        // SAFETY: by the contract; SSE belongs to x86-64.
        unsafe {
            use core::arch::x86_64::*;
            let [a, b, c, d, ..] = columns;
            let (a, b, c, d) = (_mm_loadu_ps(a), _mm_loadu_ps(b), _mm_loadu_ps(c), _mm_loadu_ps(d));
            let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
            _mm_storeu_ps(rows[0].as_mut_ptr(), _mm_movelh_ps(ab, cd));
            _mm_storeu_ps(rows[1].as_mut_ptr(), _mm_movehl_ps(cd, ab));
            let (ab, cd) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
            _mm_storeu_ps(rows[2].as_mut_ptr(), _mm_movelh_ps(ab, cd));
            _mm_storeu_ps(rows[3].as_mut_ptr(), _mm_movehl_ps(cd, ab));
        }
        #[cfg(not(target_arch = "x86_64"))]
        // SAFETY: by the contract.
        unsafe {
            let columns: [[f32; 4]; 4] = [0, 1, 2, 3].map(|i: usize| columns[i].cast::<[f32; 4]>().read());
            for i in 0..4 {
                rows[i] = [columns[0][i], columns[1][i], columns[2][i], columns[3][i]];
            }
        }
        rows
    }
}

#[cfg(target_arch = "x86_64")]
impl Square for core::arch::x86_64::__m256 {
    #[inline(always)]
    unsafe fn load_columns(columns: [*const f32; 8]) -> [Self; 8] {
        use core::arch::x86_64::*;
        // SAFETY: by the contract.
        unsafe {
            let mut rows = [_mm256_setzero_ps(); 8];
            for half in [0, 4] {
                // Half a column in each half of a register: joined by loads, they cost no permutations.
                let mut pairs = [_mm256_setzero_ps(); 4];
                for i in 0..4 {
                    let low = _mm256_castps128_ps256(_mm_loadu_ps(columns[i].add(half)));
                    pairs[i] = _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(columns[i + 4].add(half)));
                }
                let [a, b, c, d] = pairs;
                let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                rows[half] = _mm256_shuffle_ps::<0x44>(ab, cd);
                rows[half + 1] = _mm256_shuffle_ps::<0xee>(ab, cd);
                let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                rows[half + 2] = _mm256_shuffle_ps::<0x44>(ab, cd);
                rows[half + 3] = _mm256_shuffle_ps::<0xee>(ab, cd);
            }
            rows
        }
    }
}

/// As [`crate::vector::per_vector`], for squares: those of AVX2 are the widest.
macro_rules! per_square {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident<$v:ident>($($arg:ident : $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis unsafe fn $name(kernels: $crate::Kernels, $($arg: $ty),*) {
            #[inline(always)]
            unsafe fn body<$v: $crate::sparse::square::Square>($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2($($arg: $ty),*) {
                    // SAFETY: by the contract of the function defined.
                    unsafe { body::<core::arch::x86_64::__m256>($($arg),*) }
                }
                if kernels.isa().includes($crate::Isa::Avx2) {
                    // SAFETY: as above, and the handle proves that the instruction set runs here.
                    return unsafe { avx2($($arg),*) };
                }
            }
            let _ = kernels;
            // SAFETY: as above.
            unsafe { body::<[f32; 4]>($($arg),*) }
        }
    };
}
pub(super) use per_square;
