//! What the machine can do at best, to compare kernels with: loops of nothing but the instruction that the kernels
//! of an instruction set live on, and loops that do nothing but read memory. The caller takes the time.

use core::hint::black_box;

use crate::{Isa, Kernels, isa::per_isa};

/// Arithmetic of matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// `f32` by `f32`.
    F32,
    /// Bytes by bytes, summed in 32 bits without saturation.
    I8,
    /// `bf16` by `bf16`, summed in `f32`.
    Bf16,
}

impl Arithmetic {
    /// All of them.
    pub const ALL: [Arithmetic; 3] = [Arithmetic::F32, Arithmetic::I8, Arithmetic::Bf16];

    /// `f32`, `int8` or `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Arithmetic::F32 => "f32",
            Arithmetic::I8 => "int8",
            Arithmetic::Bf16 => "bf16",
        }
    }
}

/// Defines a loop of `$rounds` times `$chains` independent multiply-adds of `$lanes` each.
macro_rules! chains {
    ($(#[$meta:meta])* $name:ident, $chains:literal, $lanes:literal, $zero:expr, |$acc:ident, $x:ident, $y:ident| $step:expr) => {
        $(#[$meta])*
        #[allow(unused_braces)]
        pub(super) fn $name(rounds: u64) -> u64 {
            // Opaque to the compiler, which would otherwise know the result.
            let ($x, $y) = (black_box($zero), black_box($zero));
            let mut chains = [$zero; $chains];
            for _ in 0..rounds {
                for $acc in &mut chains {
                    *$acc = $step;
                }
            }
            let _ = black_box((chains, $x, $y));
            rounds * $chains * $lanes
        }
    };
}

chains!(portable_f32, 64, 1, 0.0f32, |acc, x, y| *acc * x + y);
chains!(portable_i8, 32, 1, 0i32, |acc, x, y| acc.wrapping_mul(x).wrapping_add(y));

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::black_box;
    use core::arch::x86_64::*;

    chains!(
        #[target_feature(enable = "avx2,fma")]
        avx2_f32,
        12,
        8,
        _mm256_setzero_ps(),
        |acc, x, y| _mm256_fmadd_ps(*acc, x, y)
    );
    chains!(
        #[target_feature(enable = "avx512f")]
        avx512_f32,
        20,
        16,
        _mm512_setzero_ps(),
        |acc, x, y| _mm512_fmadd_ps(*acc, x, y)
    );
    chains!(
        #[target_feature(enable = "avx2")]
        avx2_i8,
        12,
        32,
        _mm256_setzero_si256(),
        |acc, x, y| { _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(*acc, x), y), x) }
    );
    chains!(
        #[target_feature(enable = "avx512f,avx512bw")]
        avx512_i8,
        20,
        32,
        _mm512_setzero_si512(),
        |acc, x, y| { _mm512_add_epi32(_mm512_madd_epi16(*acc, x), y) }
    );
    chains!(
        #[target_feature(enable = "avx2,avxvnni")]
        avxvnni_i8,
        12,
        32,
        _mm256_setzero_si256(),
        |acc, x, y| _mm256_dpbusd_avx_epi32(*acc, x, y)
    );
    chains!(
        #[target_feature(enable = "avx512f,avx512vnni")]
        avx512vnni_i8,
        20,
        64,
        _mm512_setzero_si512(),
        |acc, x, y| _mm512_dpbusd_epi32(*acc, x, y)
    );
    chains!(
        #[target_feature(enable = "avx512f,avx512bf16")]
        avx512bf16,
        20,
        32,
        _mm512_setzero_ps(),
        |acc, x, y| { _mm512_dpbf16_ps(*acc, as_bf16(x), as_bf16(y)) }
    );

    /// The bits of a vector, as pairs of `bf16`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn as_bf16(x: __m512) -> __m512bh {
        // SAFETY: both are 64 bytes without invalid values.
        unsafe { core::mem::transmute(x) }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::black_box;
    use crate::gemm::neon::{sdot, usmmla};
    use core::arch::aarch64::*;

    chains!(
        #[target_feature(enable = "neon")]
        neon_f32,
        20,
        4,
        vdupq_n_f32(0.0),
        |acc, x, y| vfmaq_f32(y, *acc, x)
    );
    chains!(
        #[target_feature(enable = "neon")]
        neon_i8,
        20,
        4,
        vdupq_n_s32(0),
        |acc, x, y| {
            let _ = y;
            vmlal_s16(*acc, vdup_n_s16(0), vreinterpret_s16_s32(vget_low_s32(x)))
        }
    );
    chains!(
        #[target_feature(enable = "neon,dotprod")]
        neondot_i8,
        20,
        16,
        vdupq_n_s32(0),
        |acc, x, y| { sdot(*acc, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(y)) }
    );
    chains!(
        #[target_feature(enable = "neon,i8mm")]
        neoni8mm_i8,
        20,
        32,
        vdupq_n_s32(0),
        |acc, x, y| { usmmla(*acc, vreinterpretq_u8_s32(x), vreinterpretq_s8_s32(y)) }
    );
}

/// Runs `rounds` rounds of multiply-adds on registers, by the fastest instruction of the handle that is exact enough
/// for the kernels; returns how many multiply-adds that were. `None` where the instruction set has none for
/// this arithmetic.
pub fn multiply_add(kernels: Kernels, arithmetic: Arithmetic, rounds: u64) -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a handle exists only for an instruction set that this machine runs.
    unsafe {
        match (arithmetic, kernels.isa()) {
            (Arithmetic::F32, Isa::Avx2 | Isa::AvxVnni) => return Some(x86::avx2_f32(rounds)),
            (Arithmetic::F32, Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16) => {
                return Some(x86::avx512_f32(rounds));
            }
            (Arithmetic::I8, Isa::Avx2) => return Some(x86::avx2_i8(rounds)),
            (Arithmetic::I8, Isa::AvxVnni) => return Some(x86::avxvnni_i8(rounds)),
            (Arithmetic::I8, Isa::Avx512) => return Some(x86::avx512_i8(rounds)),
            (Arithmetic::I8, Isa::Avx512Vnni | Isa::Avx512Bf16) => return Some(x86::avx512vnni_i8(rounds)),
            (Arithmetic::Bf16, Isa::Avx512Bf16) => return Some(x86::avx512bf16(rounds)),
            _ => {}
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a handle exists only for an instruction set that this machine runs.
    unsafe {
        match (arithmetic, kernels.isa()) {
            (Arithmetic::F32, Isa::Neon | Isa::NeonDot | Isa::NeonI8mm) => {
                return Some(arm::neon_f32(rounds));
            }
            (Arithmetic::I8, Isa::Neon) => return Some(arm::neon_i8(rounds)),
            (Arithmetic::I8, Isa::NeonDot) => return Some(arm::neondot_i8(rounds)),
            (Arithmetic::I8, Isa::NeonI8mm) => return Some(arm::neoni8mm_i8(rounds)),
            _ => {}
        }
    }
    match (arithmetic, kernels.isa()) {
        (Arithmetic::F32, Isa::Portable) => Some(portable_f32(rounds)),
        (Arithmetic::I8, Isa::Portable) => Some(portable_i8(rounds)),
        _ => None,
    }
}

per_isa! {
/// Reads all of `data` so many times; returns the (wrapping) sum of what it read.
pub fn read(data: &[u64], times: usize) -> u64 {
    let mut sums = [0u64; 64];
    let mut blocks = data.chunks_exact(64);
    for _ in 0..times {
        blocks = data.chunks_exact(64);
        for block in &mut blocks {
            for (sum, &x) in sums.iter_mut().zip(block) {
                *sum = sum.wrapping_add(x);
            }
        }
    }
    let rest = blocks.remainder().iter().fold(0u64, |sum, &x| sum.wrapping_add(x));
    sums.iter().fold(rest.wrapping_mul(times as u64), |sum, &x| sum.wrapping_add(x))
}
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_instruction_set_has_its_products() {
        for kernels in Kernels::all_available() {
            for arithmetic in Arithmetic::ALL {
                let count = |rounds| multiply_add(kernels, arithmetic, rounds);
                match count(1) {
                    Some(one) => assert!(one > 0 && count(10) == Some(10 * one)),
                    None => assert_eq!(arithmetic, Arithmetic::Bf16),
                }
            }
        }
    }

    #[test]
    fn reading_reads_everything() {
        for len in [0usize, 1, 63, 64, 1000] {
            let data: Vec<u64> = (0..len as u64).map(|i| i << 40 | 1).collect();
            let sum = data.iter().fold(0u64, |sum, &x| sum.wrapping_add(x));
            for kernels in Kernels::all_available() {
                assert_eq!(read(kernels, &data, 3), sum.wrapping_mul(3));
            }
        }
    }
}
