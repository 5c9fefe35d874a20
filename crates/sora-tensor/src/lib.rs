//! Dtypes, shapes and aligned contiguous tensors.
//!
//! A [`Tensor`] is a dtype, a shape and row-major bytes aligned to 64; copies share the bytes and
//! mutation copies them first when they are shared. Bytes may also come from a memory-mapped file.

mod buffer;
mod dtype;
mod tensor;

pub use buffer::{ALIGNMENT, Buffer};
pub use dtype::{Bool, DType, Element, ParseDTypeError};
pub use half::{bf16, f16};
pub use tensor::{Tensor, TensorError, element_count};
