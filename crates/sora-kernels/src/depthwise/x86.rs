//! Depthwise tiles for AVX2 and AVX-512. Multiplications and additions stay separate, like
//! those of the portable tiles, so that all return the same bits.

use core::arch::x86_64::*;

use super::{DwF32Tiles, DwI8Tiles, Starts, pixel_tiles};

pub(crate) static AVX2_F32: DwF32Tiles = pixel_tiles!(avx2_f32);
pub(crate) static AVX2_U8I8: DwI8Tiles = pixel_tiles!(avx2_u8i8);
pub(crate) static AVX512_F32: DwF32Tiles = pixel_tiles!(avx512_f32);
pub(crate) static AVX512_U8I8: DwI8Tiles = pixel_tiles!(avx512_u8i8);

/// # Safety
/// See [`super::DwTile`]; 16 lanes.
#[target_feature(enable = "avx2")]
unsafe fn avx2_f32<const P: usize>(x: Starts<'_, f32>, first: usize, w: &[f32], acc: *mut f32) {
    let (taps, _) = w.as_chunks::<16>();
    let mut sum = [[_mm256_setzero_ps(); 2]; P];
    // SAFETY: P starts of `first + 16` elements per tap, and P × 16 accumulators, by the contract.
    unsafe {
        for (t, w) in taps.iter().enumerate() {
            let w = [_mm256_loadu_ps(w.as_ptr()), _mm256_loadu_ps(w.as_ptr().add(8))];
            for i in 0..P {
                let x = x.start(t * P + i, first);
                for v in 0..2 {
                    let product = _mm256_mul_ps(_mm256_loadu_ps(x.add(8 * v)), w[v]);
                    sum[i][v] = _mm256_add_ps(sum[i][v], product);
                }
            }
        }
        for i in 0..P {
            for v in 0..2 {
                _mm256_storeu_ps(acc.add(16 * i + 8 * v), sum[i][v]);
            }
        }
    }
}

/// |255 · −128| fits 16 bits, so the low half of the product is all of it.
///
/// # Safety
/// See [`super::DwTile`]; 16 lanes.
#[target_feature(enable = "avx2")]
unsafe fn avx2_u8i8<const P: usize>(x: Starts<'_, u8>, first: usize, w: &[i16], acc: *mut i32) {
    let (taps, _) = w.as_chunks::<16>();
    let mut sum = [[_mm256_setzero_si256(); 2]; P];
    // SAFETY: P starts of `first + 16` elements per tap, and P × 16 accumulators, by the contract.
    unsafe {
        for (t, w) in taps.iter().enumerate() {
            let w = _mm256_loadu_si256(w.as_ptr().cast());
            for i in 0..P {
                let x = _mm_loadu_si128(x.start(t * P + i, first).cast());
                let product = _mm256_mullo_epi16(_mm256_cvtepu8_epi16(x), w);
                let halves = [_mm256_castsi256_si128(product), _mm256_extracti128_si256::<1>(product)];
                for v in 0..2 {
                    sum[i][v] = _mm256_add_epi32(sum[i][v], _mm256_cvtepi16_epi32(halves[v]));
                }
            }
        }
        for i in 0..P {
            for v in 0..2 {
                _mm256_storeu_si256(acc.add(16 * i + 8 * v).cast(), sum[i][v]);
            }
        }
    }
}

/// # Safety
/// See [`super::DwTile`]; 32 lanes.
#[target_feature(enable = "avx512f")]
unsafe fn avx512_f32<const P: usize>(x: Starts<'_, f32>, first: usize, w: &[f32], acc: *mut f32) {
    let (taps, _) = w.as_chunks::<32>();
    let mut sum = [[_mm512_setzero_ps(); 2]; P];
    // SAFETY: P starts of `first + 32` elements per tap, and P × 32 accumulators, by the contract.
    unsafe {
        for (t, w) in taps.iter().enumerate() {
            let w = [_mm512_loadu_ps(w.as_ptr()), _mm512_loadu_ps(w.as_ptr().add(16))];
            for i in 0..P {
                let x = x.start(t * P + i, first);
                for v in 0..2 {
                    let product = _mm512_mul_ps(_mm512_loadu_ps(x.add(16 * v)), w[v]);
                    sum[i][v] = _mm512_add_ps(sum[i][v], product);
                }
            }
        }
        for i in 0..P {
            for v in 0..2 {
                _mm512_storeu_ps(acc.add(32 * i + 16 * v), sum[i][v]);
            }
        }
    }
}

/// |255 · −128| fits 16 bits, so the low half of the product is all of it.
///
/// # Safety
/// See [`super::DwTile`]; 32 lanes.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn avx512_u8i8<const P: usize>(x: Starts<'_, u8>, first: usize, w: &[i16], acc: *mut i32) {
    let (taps, _) = w.as_chunks::<32>();
    let mut sum = [[_mm512_setzero_si512(); 2]; P];
    // SAFETY: P starts of `first + 32` elements per tap, and P × 32 accumulators, by the contract.
    unsafe {
        for (t, w) in taps.iter().enumerate() {
            let w = _mm512_loadu_si512(w.as_ptr().cast());
            for i in 0..P {
                let x = _mm256_loadu_si256(x.start(t * P + i, first).cast());
                let product = _mm512_mullo_epi16(_mm512_cvtepu8_epi16(x), w);
                let halves = [_mm512_castsi512_si256(product), _mm512_extracti64x4_epi64::<1>(product)];
                for v in 0..2 {
                    sum[i][v] = _mm512_add_epi32(sum[i][v], _mm512_cvtepi16_epi32(halves[v]));
                }
            }
        }
        for i in 0..P {
            for v in 0..2 {
                _mm512_storeu_si512(acc.add(32 * i + 16 * v).cast(), sum[i][v]);
            }
        }
    }
}
