//! The one table of kernels: selection, tests, benches and the quantizer read it.

use crate::{
    Isa, Kernels,
    depthwise::{
        self, DwF32Tiles, DwI8Tiles, slide_f32, slide_u8,
        sliding::{SlideBf16Kernels, SlideF32Kernels, SlideI8Kernels},
    },
    gemm::{Bf16Tiles, F32Tiles, I8Tiles, bf16, portable},
    winograd::{self, WinogradTiles, bytes::WinogradI8Tiles},
};

/// What a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// f32 × f32 → f32 matrix product.
    GemmF32,
    /// bf16 × bf16 → f32 matrix product.
    GemmBf16,
    /// u8 × i8 → i32 matrix product.
    GemmU8I8,
    /// f32 × f32 → f32 depthwise convolution.
    DepthwiseF32,
    /// u8 × i8 → i32 depthwise convolution.
    DepthwiseU8I8,
    /// Transforms of f32 3×3 convolutions with fewer multiplications.
    WinogradF32,
    /// u8 × i8 → i32 convolution of 3×3 windows by Winograd's algorithm; not on every instruction set.
    WinogradU8I8,
    /// f32 × f32 → f32 depthwise convolution that slides along rows of pixels.
    SlideF32,
    /// bf16 × f32 → bf16 depthwise convolution that slides along rows of pixels.
    SlideBf16,
    /// u8 × i8 → u8 depthwise convolution that slides along rows of pixels.
    SlideU8I8,
    /// f32 × f32 → f32 matrix product that skips the zeros of its right operand.
    SparseF32,
    /// Plain loops compiled once per instruction set: epilogues, pooling, row
    /// operations, elementwise functions, quantization, recurrent cells, layout.
    Loops,
}

/// How close a kernel's result is to exact arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// The same bits on every instruction set.
    BitExact,
    /// |result − exact| ≤ depth · (2⁻²³ · Σ|aᵢ·bᵢ| + 2⁻¹²⁶): the bound of any order of summation, whether or
    /// not subnormal sums count as zero.
    DotProduct,
    /// The bound that [`crate::TileEdge::error_factor`] states.
    Winograd,
}

/// The shape of a micro-kernel's tile and of the operand packed for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Most rows per call.
    pub mr: usize,
    /// Columns of one panel.
    pub nr: usize,
    /// Consecutive depth steps stored together in a panel.
    pub k_granule: usize,
}

/// The code of a row.
#[derive(Clone, Copy, Debug)]
pub enum KernelFn {
    /// Matrix product of reals.
    GemmF32(&'static F32Tiles),
    /// Matrix product of bf16.
    GemmBf16(&'static Bf16Tiles),
    /// Matrix product of bytes.
    GemmU8I8(&'static I8Tiles),
    /// Depthwise convolution of reals.
    DepthwiseF32(&'static DwF32Tiles),
    /// Depthwise convolution of bytes.
    DepthwiseU8I8(&'static DwI8Tiles),
    /// Transforms of tiles, up to `mr` pixels wide, of vectors of `nr` channels.
    WinogradF32(&'static WinogradTiles),
    /// Convolution of bytes by Winograd's algorithm.
    WinogradU8I8(&'static WinogradI8Tiles),
    /// Depthwise convolution of reals along rows.
    SlideF32(&'static SlideF32Kernels),
    /// Depthwise convolution of bf16 that slides along rows of pixels.
    SlideBf16(&'static SlideBf16Kernels),
    /// Depthwise convolution of bytes along rows.
    SlideU8I8(&'static SlideI8Kernels),
    /// Product of reals without the zeros of the right operand, by up to `mr` rows and `nr` columns.
    SparseF32,
    /// Everything else that the dispatch macro instantiates.
    Loops,
}

/// One kernel.
#[derive(Clone, Copy, Debug)]
pub struct KernelRow {
    /// Unique name: family, instruction set, tile.
    pub name: &'static str,
    /// What it computes.
    pub family: Family,
    /// What it needs.
    pub isa: Isa,
    /// How it is tiled.
    pub tile: Tile,
    /// How exact it is.
    pub contract: Contract,
    /// The code.
    pub kernel: KernelFn,
}

const fn tile(mr: usize, nr: usize, k_granule: usize) -> Tile {
    Tile { mr, nr, k_granule }
}

macro_rules! rows {
    ($($(#[$cfg:meta])* $name:literal $family:ident $isa:ident ($mr:expr, $nr:expr, $kg:expr) $contract:ident $kernel:expr;)*) => {
        /// Every kernel of this build, each family in ascending order of instruction set.
        pub static KERNELS: &[KernelRow] = &[$(
            $(#[$cfg])*
            KernelRow {
                name: $name,
                family: Family::$family,
                isa: Isa::$isa,
                tile: tile($mr, $nr, $kg),
                contract: Contract::$contract,
                kernel: $kernel,
            },
        )*];
    };
}

#[cfg(target_arch = "aarch64")]
use crate::gemm::neon;
#[cfg(target_arch = "x86_64")]
use crate::{
    depthwise::x86,
    gemm::{avx2, avx512},
};

rows! {
    "gemm_f32_portable_4x8" GemmF32 Portable (4, 8, 1) DotProduct KernelFn::GemmF32(&portable::F32);
    #[cfg(target_arch = "x86_64")]
    "gemm_f32_avx2_6x16" GemmF32 Avx2 (6, 16, 1) DotProduct KernelFn::GemmF32(&avx2::F32);
    #[cfg(target_arch = "x86_64")]
    "gemm_f32_avx512_14x32" GemmF32 Avx512 (14, 32, 1) DotProduct KernelFn::GemmF32(&avx512::F32);
    #[cfg(target_arch = "aarch64")]
    "gemm_f32_neon_6x16" GemmF32 Neon (6, 16, 1) DotProduct KernelFn::GemmF32(&neon::F32);

    "gemm_bf16_portable_4x8" GemmBf16 Portable (4, 8, 2) DotProduct KernelFn::GemmBf16(&bf16::PORTABLE);
    #[cfg(target_arch = "x86_64")]
    "gemm_bf16_avx2_6x16" GemmBf16 Avx2 (6, 16, 2) DotProduct KernelFn::GemmBf16(&bf16::AVX2);
    #[cfg(target_arch = "x86_64")]
    "gemm_bf16_avx512_12x32" GemmBf16 Avx512 (12, 32, 2) DotProduct KernelFn::GemmBf16(&bf16::AVX512);
    #[cfg(target_arch = "x86_64")]
    "gemm_bf16_avx512bf16_14x32" GemmBf16 Avx512Bf16 (14, 32, 2) DotProduct KernelFn::GemmBf16(&bf16::AVX512_DOT);
    #[cfg(target_arch = "aarch64")]
    "gemm_bf16_neon_6x16" GemmBf16 Neon (6, 16, 2) DotProduct KernelFn::GemmBf16(&bf16::NEON);

    "gemm_u8i8_portable_6x8" GemmU8I8 Portable (6, 8, 2) BitExact KernelFn::GemmU8I8(&portable::U8I8);
    #[cfg(target_arch = "x86_64")]
    "gemm_u8i8_avx2_5x16" GemmU8I8 Avx2 (5, 16, 4) BitExact KernelFn::GemmU8I8(&avx2::U8I8);
    #[cfg(target_arch = "x86_64")]
    "gemm_u8i8_avxvnni_6x16" GemmU8I8 AvxVnni (6, 16, 4) BitExact KernelFn::GemmU8I8(&avx2::U8I8_VNNI);
    #[cfg(target_arch = "x86_64")]
    "gemm_u8i8_avx512_12x32" GemmU8I8 Avx512 (12, 32, 2) BitExact KernelFn::GemmU8I8(&avx512::U8I8);
    #[cfg(target_arch = "x86_64")]
    "gemm_u8i8_avx512vnni_12x32" GemmU8I8 Avx512Vnni (12, 32, 4) BitExact KernelFn::GemmU8I8(&avx512::U8I8_VNNI);
    #[cfg(target_arch = "aarch64")]
    "gemm_u8i8_neon_6x16" GemmU8I8 Neon (6, 16, 1) BitExact KernelFn::GemmU8I8(&neon::U8I8);
    #[cfg(target_arch = "aarch64")]
    "gemm_u8i8_neondot_6x16" GemmU8I8 NeonDot (6, 16, 4) BitExact KernelFn::GemmU8I8(&neon::U8I8_DOT);
    #[cfg(target_arch = "aarch64")]
    "gemm_u8i8_neoni8mm_6x16" GemmU8I8 NeonI8mm (6, 16, 8) BitExact KernelFn::GemmU8I8(&neon::U8I8_MM);

    "depthwise_f32_portable_4x8" DepthwiseF32 Portable (depthwise::PIXELS, 8, 1) BitExact KernelFn::DepthwiseF32(&depthwise::PORTABLE_F32);
    #[cfg(target_arch = "x86_64")]
    "depthwise_f32_avx2_4x16" DepthwiseF32 Avx2 (depthwise::PIXELS, 16, 1) BitExact KernelFn::DepthwiseF32(&x86::AVX2_F32);
    #[cfg(target_arch = "x86_64")]
    "depthwise_f32_avx512_4x32" DepthwiseF32 Avx512 (depthwise::PIXELS, 32, 1) BitExact KernelFn::DepthwiseF32(&x86::AVX512_F32);

    "depthwise_u8i8_portable_4x8" DepthwiseU8I8 Portable (depthwise::PIXELS, 8, 1) BitExact KernelFn::DepthwiseU8I8(&depthwise::PORTABLE_U8I8);
    #[cfg(target_arch = "x86_64")]
    "depthwise_u8i8_avx2_4x16" DepthwiseU8I8 Avx2 (depthwise::PIXELS, 16, 1) BitExact KernelFn::DepthwiseU8I8(&x86::AVX2_U8I8);
    #[cfg(target_arch = "x86_64")]
    "depthwise_u8i8_avx512_4x32" DepthwiseU8I8 Avx512 (depthwise::PIXELS, 32, 1) BitExact KernelFn::DepthwiseU8I8(&x86::AVX512_U8I8);

    "winograd_f32_portable_4x4" WinogradF32 Portable (4, 4, 1) Winograd KernelFn::WinogradF32(&winograd::PORTABLE);
    #[cfg(target_arch = "x86_64")]
    "winograd_f32_avx2_4x8" WinogradF32 Avx2 (4, 8, 1) Winograd KernelFn::WinogradF32(&winograd::AVX2);
    #[cfg(target_arch = "x86_64")]
    "winograd_f32_avx512_4x16" WinogradF32 Avx512 (4, 16, 1) Winograd KernelFn::WinogradF32(&winograd::AVX512);

    #[cfg(target_arch = "x86_64")]
    "winograd_u8i8_avx2_6x16" WinogradU8I8 Avx2 (6, 16, 2) BitExact KernelFn::WinogradU8I8(&winograd::bytes::AVX2);
    #[cfg(target_arch = "x86_64")]
    "winograd_u8i8_avx512_12x32" WinogradU8I8 Avx512 (12, 32, 2) BitExact KernelFn::WinogradU8I8(&winograd::bytes::AVX512);
    #[cfg(target_arch = "x86_64")]
    "winograd_u8i8_avx512vnni_12x32" WinogradU8I8 Avx512Vnni (12, 32, 2) BitExact KernelFn::WinogradU8I8(&winograd::bytes::AVX512_VNNI);

    "slide_f32_portable_2x8" SlideF32 Portable (2, 8, 1) DotProduct KernelFn::SlideF32(&slide_f32::PORTABLE);
    #[cfg(target_arch = "x86_64")]
    "slide_f32_avx2_4x16" SlideF32 Avx2 (4, 16, 1) DotProduct KernelFn::SlideF32(&slide_f32::x86::AVX2);
    #[cfg(target_arch = "x86_64")]
    "slide_f32_avx512_6x32" SlideF32 Avx512 (6, 32, 1) DotProduct KernelFn::SlideF32(&slide_f32::x86::AVX512);
    #[cfg(target_arch = "aarch64")]
    "slide_f32_neon_4x8" SlideF32 Neon (4, 8, 1) DotProduct KernelFn::SlideF32(&slide_f32::neon::NEON);

    "slide_bf16_portable_2x8" SlideBf16 Portable (2, 8, 1) DotProduct KernelFn::SlideBf16(&slide_f32::PORTABLE_BF16);
    #[cfg(target_arch = "x86_64")]
    "slide_bf16_avx2_4x16" SlideBf16 Avx2 (4, 16, 1) DotProduct KernelFn::SlideBf16(&slide_f32::x86::AVX2_BF16);
    #[cfg(target_arch = "x86_64")]
    "slide_bf16_avx512_4x32" SlideBf16 Avx512 (4, 32, 1) DotProduct KernelFn::SlideBf16(&slide_f32::x86::AVX512_BF16);
    #[cfg(target_arch = "x86_64")]
    "slide_bf16_avx512bf16_4x32" SlideBf16 Avx512Bf16 (4, 32, 1) DotProduct KernelFn::SlideBf16(&slide_f32::x86::NATIVE_BF16);
    #[cfg(target_arch = "aarch64")]
    "slide_bf16_neon_4x8" SlideBf16 Neon (4, 8, 1) DotProduct KernelFn::SlideBf16(&slide_f32::neon::NEON_BF16);

    "slide_u8i8_portable_2x16" SlideU8I8 Portable (2, 16, 2) BitExact KernelFn::SlideU8I8(&slide_u8::PORTABLE);
    #[cfg(target_arch = "x86_64")]
    "slide_u8i8_avx2_2x32" SlideU8I8 Avx2 (2, 32, 2) BitExact KernelFn::SlideU8I8(&slide_u8::x86::AVX2);
    #[cfg(target_arch = "x86_64")]
    "slide_u8i8_avx512_4x64" SlideU8I8 Avx512 (4, 64, 2) BitExact KernelFn::SlideU8I8(&slide_u8::x86::AVX512);
    #[cfg(target_arch = "x86_64")]
    "slide_u8i8_avx512vnni_4x64" SlideU8I8 Avx512Vnni (4, 64, 4) BitExact KernelFn::SlideU8I8(&slide_u8::x86::AVX512_VNNI);

    "sparse_f32_portable_32x16" SparseF32 Portable (32, 16, 1) DotProduct KernelFn::SparseF32;
    #[cfg(target_arch = "x86_64")]
    "sparse_f32_avx2_64x16" SparseF32 Avx2 (64, 16, 1) DotProduct KernelFn::SparseF32;
    #[cfg(target_arch = "x86_64")]
    "sparse_f32_avx512_128x16" SparseF32 Avx512 (128, 16, 1) DotProduct KernelFn::SparseF32;
    #[cfg(target_arch = "aarch64")]
    "sparse_f32_neon_32x16" SparseF32 Neon (32, 16, 1) DotProduct KernelFn::SparseF32;

    "loops_portable" Loops Portable (1, 1, 1) BitExact KernelFn::Loops;
    #[cfg(target_arch = "x86_64")]
    "loops_avx2" Loops Avx2 (1, 1, 1) BitExact KernelFn::Loops;
    #[cfg(target_arch = "x86_64")]
    "loops_avx512" Loops Avx512 (1, 1, 1) BitExact KernelFn::Loops;
}

/// The best row of `family` that the handle's instruction set includes.
pub fn select(kernels: Kernels, family: Family) -> Option<&'static KernelRow> {
    KERNELS.iter().rev().find(|row| row.family == family && kernels.isa().includes(row.isa))
}

/// The code of the best row that the handle includes and `pick` accepts.
fn best<T>(kernels: Kernels, pick: impl Fn(KernelFn) -> Option<T>) -> (Tile, T) {
    KERNELS
        .iter()
        .rev()
        .filter(|row| kernels.isa().includes(row.isa))
        .find_map(|row| Some((row.tile, pick(row.kernel)?)))
        .expect("every family has a portable row")
}

pub(crate) fn gemm_f32_tiles(kernels: Kernels) -> (Tile, &'static F32Tiles) {
    best(kernels, |kernel| match kernel {
        KernelFn::GemmF32(tiles) => Some(tiles),
        _ => None,
    })
}

pub(crate) fn gemm_bf16_tiles(kernels: Kernels) -> (Tile, &'static Bf16Tiles) {
    best(kernels, |kernel| match kernel {
        KernelFn::GemmBf16(tiles) => Some(tiles),
        _ => None,
    })
}

pub(crate) fn gemm_u8i8_tiles(kernels: Kernels) -> (Tile, &'static I8Tiles) {
    best(kernels, |kernel| match kernel {
        KernelFn::GemmU8I8(tiles) => Some(tiles),
        _ => None,
    })
}

pub(crate) fn depthwise_f32_tiles(kernels: Kernels) -> (Tile, &'static DwF32Tiles) {
    best(kernels, |kernel| match kernel {
        KernelFn::DepthwiseF32(tiles) => Some(tiles),
        _ => None,
    })
}

pub(crate) fn depthwise_u8i8_tiles(kernels: Kernels) -> (Tile, &'static DwI8Tiles) {
    best(kernels, |kernel| match kernel {
        KernelFn::DepthwiseU8I8(tiles) => Some(tiles),
        _ => None,
    })
}

pub(crate) fn winograd_f32_tiles(kernels: Kernels) -> (Tile, &'static WinogradTiles) {
    best(kernels, |kernel| match kernel {
        KernelFn::WinogradF32(tiles) => Some(tiles),
        _ => None,
    })
}

/// `None` without a row for the handle.
pub(crate) fn winograd_u8i8_tiles(kernels: Kernels) -> Option<(Tile, &'static WinogradI8Tiles)> {
    let row = select(kernels, Family::WinogradU8I8)?;
    match row.kernel {
        KernelFn::WinogradU8I8(tiles) => Some((row.tile, tiles)),
        _ => None,
    }
}

pub(crate) fn slide_f32_kernels(kernels: Kernels) -> (Tile, &'static SlideF32Kernels) {
    best(kernels, |kernel| match kernel {
        KernelFn::SlideF32(slides) => Some(slides),
        _ => None,
    })
}

pub(crate) fn slide_bf16_kernels(kernels: Kernels) -> (Tile, &'static SlideBf16Kernels) {
    best(kernels, |kernel| match kernel {
        KernelFn::SlideBf16(slides) => Some(slides),
        _ => None,
    })
}

pub(crate) fn slide_u8i8_kernels(kernels: Kernels) -> (Tile, &'static SlideI8Kernels) {
    best(kernels, |kernel| match kernel {
        KernelFn::SlideU8I8(slides) => Some(slides),
        _ => None,
    })
}

pub(crate) fn sparse_f32_tile(kernels: Kernels) -> Tile {
    best(kernels, |kernel| matches!(kernel, KernelFn::SparseF32).then_some(())).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn names_are_unique_and_say_what_the_row_is() {
        let mut names: Vec<_> = KERNELS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KERNELS.len());
        for row in KERNELS {
            assert!(row.name.contains(row.isa.name()), "{}", row.name);
            if row.family != Family::Loops {
                let tile = alloc::format!("_{}x{}", row.tile.mr, row.tile.nr);
                assert!(row.name.ends_with(&tile), "{}", row.name);
            }
            let (mr, nr) = match row.kernel {
                KernelFn::GemmF32(tiles) => (tiles.by_rows.len(), [8, 16, 32]),
                KernelFn::GemmBf16(tiles) => (tiles.by_rows.len(), [8, 16, 32]),
                KernelFn::GemmU8I8(tiles) => (tiles.by_rows.len(), [8, 16, 32]),
                KernelFn::SlideF32(slides) => {
                    assert_eq!(row.tile.nr, slides.widths[0].lanes, "{}", row.name);
                    continue;
                }
                KernelFn::SlideBf16(slides) => {
                    assert_eq!(row.tile.nr, slides.widths[0].lanes, "{}", row.name);
                    continue;
                }
                KernelFn::SlideU8I8(slides) => {
                    let tile = (row.tile.nr, row.tile.k_granule);
                    assert_eq!(tile, (slides.widths[0].lanes, slides.rows), "{}", row.name);
                    continue;
                }
                _ => continue,
            };
            assert_eq!(row.tile.mr, mr, "{}", row.name);
            assert!(nr.contains(&row.tile.nr), "{}", row.name);
        }
    }

    /// Tests of kernels run what each instruction set selects, so no other row would ever be tested.
    #[test]
    fn every_row_is_selected_on_its_own_instruction_set() {
        for row in KERNELS {
            let Ok(kernels) = Kernels::for_isa(row.isa) else { continue };
            assert_eq!(select(kernels, row.family).map(|chosen| chosen.name), Some(row.name));
        }
    }

    #[test]
    fn selection_takes_the_highest_included_row() {
        for kernels in Kernels::all_available() {
            for family in [
                Family::GemmF32,
                Family::GemmBf16,
                Family::GemmU8I8,
                Family::DepthwiseF32,
                Family::DepthwiseU8I8,
                Family::WinogradF32,
                Family::SlideF32,
                Family::SlideBf16,
                Family::SlideU8I8,
                Family::SparseF32,
                Family::Loops,
            ] {
                let chosen = select(kernels, family).unwrap();
                assert!(kernels.isa().includes(chosen.isa));
                for row in KERNELS.iter().filter(|r| r.family == family) {
                    assert!(row.isa <= chosen.isa || !kernels.isa().includes(row.isa));
                }
            }
        }
    }
}
