//! SIMD kernels on slices: what runs the steps of a program at the speed of the machine.
//!
//! The crate knows slices, not graphs. It never spawns threads: callers split the
//! output ([`Output::split_rows`], [`Output::split_cols`]) and call kernels on the
//! parts. All functions are safe; a wrong length is a bug of the caller and panics.
//!
//! [`Kernels`] is the proof that an instruction set runs here; every kernel takes
//! one, and [`KERNELS`] is the one table of what exists. Integer kernels return the
//! same bytes on every instruction set, and so do all plain loops; real matrix
//! products differ by the rounding of fused multiply-adds
//! ([`Contract::DotProduct`]) but never with the split of the work.
//!
//! ```
//! use sora_kernels::*;
//!
//! let kernels = Kernels::best();
//! let a = [1.0, 2.0, 3.0, 4.0]; // 2×2
//! let b = PackedF32::from_kn(kernels, &[1.0, 0.0, 0.0, 1.0], 2, 2, 2);
//! let mut c = [0.0; 4];
//! gemm_f32(
//!     kernels,
//!     &ARows::Dense(Dense { data: &a, rows: 2, stride: 2, k: 2 }),
//!     &b,
//!     0,
//!     &EpilogueF32 { bias: Some(&[10.0, 20.0]), ..Default::default() },
//!     Output::F32(MatMut::new(&mut c, 2, 2, 2)),
//! );
//! assert_eq!(c, [11.0, 22.0, 13.0, 24.0]);
//! ```
#![cfg_attr(not(feature = "std"), no_std)]
// Index loops over fixed-size arrays are what the vectorizer turns into straight code.
#![allow(clippy::needless_range_loop)]

extern crate alloc;

mod aligned;
pub mod bf16;
mod columns;
mod correlate;
mod depthwise;
pub mod elementwise;
mod epilogue;
mod gemm;
pub mod isa;
mod lanes;
pub mod layout;
mod math;
mod operands;
mod pack;
pub mod peak;
pub mod pool;
mod pool_grad;
pub mod quantize;
pub mod recurrent;
pub mod recurrent_grad;
#[cfg(target_arch = "x86_64")]
mod requantize;
pub mod resize;
pub mod rows;
mod saved;
mod sparse;
mod table;
mod vector;
mod winograd;

pub use aligned::SharedBytes;
pub use columns::column_sums;
pub use correlate::{correlate_depthwise_f32, correlate_f32};
pub use depthwise::sliding::{
    SlideBf16Kernels, SlideF32Kernels, SlideI8Kernels, SlideWidth, Slides, SlidingBf16, SlidingF32,
    SlidingI8, slide_bf16, slide_f32, slide_u8i8,
};
pub use depthwise::{DwF32Tiles, DwI8Tiles, DwTiles, PackedDwF32, PackedDwI8, depthwise_f32, depthwise_u8i8};
pub use elementwise::{Binary, Rhs, Unary};

pub use epilogue::{Activation, EpilogueF32, EpilogueI32, EpilogueRows, Residual};
pub use gemm::{
    Bf16Tiles, F32Tiles, I8Tiles, Tiles, gemm_bf16, gemm_f32, gemm_u8i8, gemm_u8i8_rows, gemv_bf16, gemv_f32,
    gemv_u8i8,
};
pub use isa::{Isa, IsaError, Kernels};
pub use layout::Window;
pub use operands::{ARows, Dense, Dequant, Indirect, MatMut, Output, PAD, Quant, Stepped};
pub use pack::{PackedBf16, PackedF32, PackedI8, fold_zero_point};
pub use pool_grad::max_grad_f32;
pub use quantize::RhsU8;
pub use rows::Reduce;
pub use saved::{Saved, packing};
pub use sparse::blocks::{SparseI8, sparse_blocks_cost, sparse_u8i8};
pub use sparse::{SparseF32, sparse_cost, sparse_f32};
pub use table::{Contract, Family, KERNELS, KernelFn, KernelRow, Tile, select};
pub use winograd::bytes::{ByteImages, PackedWinogradI8, WinogradI8Tiles, winograd_u8i8};
pub use winograd::{Images, PackedWinograd, TileEdge, WinogradTiles, winograd_f32};
