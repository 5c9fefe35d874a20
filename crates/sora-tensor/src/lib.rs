//! Dtypes, shapes and aligned contiguous tensors.
//!
//! A [`Tensor`] is a dtype, a shape and row-major bytes aligned to 64; copies share the bytes and
//! mutation copies them first when they are shared. Bytes may also come from a memory-mapped file.

mod buffer;
mod compact;
mod dtype;
mod tensor;

pub use buffer::{ALIGNMENT, Buffer};
pub use compact::{F4E2M1, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, I2, I4, PowerRounding, U2, U4};
pub use dtype::{Bool, DType, Element, ParseDTypeError};
pub use half::{bf16, f16};
pub use tensor::{Tensor, TensorError, element_count};
