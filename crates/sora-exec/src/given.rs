//! A value on its way into a program or out of it.

use sora_tensor::{Buffer, DType, Tensor};

use crate::ExecError;

/// A value that somebody else owns: a tensor, or bytes that lie in an arena.
#[derive(Clone, Copy)]
pub(crate) enum Given<'a> {
    /// A tensor, which may be shared instead of copied.
    Tensor(&'a Tensor),
    /// Elements, aligned for their dtype.
    Bytes { dtype: DType, shape: &'a [usize], bytes: &'a [u8] },
}

/// Takes the outputs of a run by position, each once.
pub(crate) type Give<'g> = dyn FnMut(usize, Given<'_>) -> Result<(), ExecError> + 'g;

impl<'a> Given<'a> {
    /// The type of the elements.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Given::Tensor(tensor) => tensor.dtype(),
            Given::Bytes { dtype, .. } => *dtype,
        }
    }

    /// The extents.
    pub(crate) fn shape(&self) -> &'a [usize] {
        match self {
            Given::Tensor(tensor) => tensor.shape(),
            Given::Bytes { shape, .. } => shape,
        }
    }

    /// The elements.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        match self {
            Given::Tensor(tensor) => tensor.bytes(),
            Given::Bytes { bytes, .. } => bytes,
        }
    }

    /// The value as a tensor of its own.
    ///
    /// # Errors
    /// A sentence when the bytes do not fit the shape or memory.
    pub(crate) fn tensor(&self) -> Result<Tensor, String> {
        match self {
            Given::Tensor(tensor) => Ok((*tensor).clone()),
            Given::Bytes { dtype, shape, bytes } => {
                let mut buffer = Buffer::try_zeroed(bytes.len())
                    .ok_or_else(|| format!("{} bytes are more than there is memory", bytes.len()))?;
                buffer.bytes_mut().copy_from_slice(bytes);
                Tensor::new(*dtype, shape, buffer).map_err(|e| e.to_string())
            }
        }
    }

    /// As [`Given::tensor`], in the memory of `old` where that has the right size.
    ///
    /// # Errors
    /// As [`Given::tensor`].
    pub(crate) fn tensor_in(&self, old: Option<Tensor>) -> Result<Tensor, String> {
        match (self, old) {
            (Given::Bytes { dtype, shape, bytes }, Some(mut old))
                if old.dtype() == *dtype && old.shape() == *shape =>
            {
                old.bytes_mut().copy_from_slice(bytes);
                Ok(old)
            }
            _ => self.tensor(),
        }
    }
}

/// Makes the error of a step of what went wrong in it.
pub(crate) fn failed(step: &str) -> impl Fn(String) -> ExecError {
    move |why| ExecError::Step { step: step.to_owned(), why }
}
