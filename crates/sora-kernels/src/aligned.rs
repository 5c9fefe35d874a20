//! Memory that starts on a cache line: owned, or kept by somebody else.

use alloc::{
    alloc::{alloc_zeroed, handle_alloc_error},
    sync::Arc,
    vec::Vec,
};
use core::{alloc::Layout, fmt, marker::PhantomData};

/// Alignment of [`Aligned`]: a cache line.
const LINE: usize = 64;

/// The unit of allocation of [`Aligned`]: as much alignment as the system gives zeroed memory for without
/// writing it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
struct Block([u8; 16]);

/// Types that any bytes make up and that may be read as bytes.
///
/// # Safety
/// No padding, no invalid bit patterns, alignment at most 64.
pub(crate) unsafe trait Plain: Copy {
    const ZERO: Self;
}
// SAFETY: primitive numbers.
unsafe impl Plain for f32 {
    const ZERO: Self = 0.0;
}
// SAFETY: as above.
unsafe impl Plain for u16 {
    const ZERO: Self = 0;
}
// SAFETY: as above.
unsafe impl Plain for i8 {
    const ZERO: Self = 0;
}
// SAFETY: as above.
unsafe impl Plain for i16 {
    const ZERO: Self = 0;
}
// SAFETY: as above.
unsafe impl Plain for u32 {
    const ZERO: Self = 0;
}
// SAFETY: as above.
unsafe impl Plain for i32 {
    const ZERO: Self = 0;
}

/// A growable buffer that starts on a cache line.
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    memory: Memory,
    len: usize,
    element: PhantomData<T>,
}

#[derive(Debug)]
enum Memory {
    /// The elements begin `start` bytes behind the first block.
    Owned {
        blocks: Vec<Block>,
        start: usize,
    },
    Shared(SharedBytes),
}

/// Bytes that somebody else keeps, such as a part of a mapped file.
#[derive(Clone)]
pub struct SharedBytes(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl SharedBytes {
    /// Takes part in keeping `bytes`.
    pub fn new(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self(Arc::new(bytes))
    }

    fn get(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({})", self.get().len())
    }
}

impl<T: Plain> Aligned<T> {
    /// Zeros that the system hands out untouched, where filling a vector would write each page first.
    pub(crate) fn zeroed(len: usize) -> Self {
        let owned =
            |blocks, start| Self { memory: Memory::Owned { blocks, start }, len, element: PhantomData };
        if len == 0 {
            return owned(Vec::new(), 0);
        }
        let count = (len * size_of::<T>() + LINE).div_ceil(size_of::<Block>());
        let layout = Layout::array::<Block>(count).expect("a tensor in memory has an addressable size");
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: the global allocator gave `count` blocks of this layout, and zeros make up a block.
        let blocks = unsafe { Vec::from_raw_parts(memory.cast(), count, count) };
        owned(blocks, memory.addr().next_multiple_of(LINE) - memory.addr())
    }

    /// Elements in memory of somebody else; `None` unless it begins on a cache line and holds whole elements.
    pub(crate) fn shared(bytes: SharedBytes) -> Option<Self> {
        let given = bytes.get();
        let fits = given.as_ptr().addr().is_multiple_of(LINE) && given.len().is_multiple_of(size_of::<T>());
        let len = given.len() / size_of::<T>();
        fits.then(|| Self { memory: Memory::Shared(bytes), len, element: PhantomData })
    }

    /// Changes the length; the contents become unspecified.
    pub(crate) fn resize(&mut self, len: usize) {
        match &self.memory {
            Memory::Owned { blocks, start } if start + len * size_of::<T>() <= size_of_val(&blocks[..]) => {
                self.len = len;
            }
            _ => *self = Self::zeroed(len),
        }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        let start = match &self.memory {
            Memory::Owned { blocks, start } => blocks.as_ptr().cast::<u8>().wrapping_add(*start),
            Memory::Shared(bytes) => {
                let given = bytes.get();
                // Whoever keeps the bytes might not give the same ones each time.
                assert!(
                    given.len() >= self.len * size_of::<T>() && given.as_ptr().addr().is_multiple_of(LINE)
                );
                given.as_ptr()
            }
        };
        // SAFETY: from `start` on, the memory holds at least `len` initialized elements of plain data, and it
        // starts on a cache line (or nothing is read).
        unsafe { core::slice::from_raw_parts(start.cast(), self.len) }
    }

    /// The elements to write; shared ones are copied first.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        if let Memory::Shared(_) = self.memory {
            let mut copy = Self::zeroed(self.len);
            copy.as_mut_slice().copy_from_slice(self.as_slice());
            *self = copy;
        }
        let start = match &mut self.memory {
            Memory::Owned { blocks, start } => blocks.as_mut_ptr().cast::<u8>().wrapping_add(*start),
            Memory::Shared(_) => return &mut [],
        };
        // SAFETY: as in `as_slice`, and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(start.cast(), self.len) }
    }

    /// The elements as bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        let elements = self.as_slice();
        // SAFETY: plain data may be read as bytes.
        unsafe { core::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_read_in_place_and_copied_before_writing() {
        let mut source = Aligned::<f32>::zeroed(40);
        source.as_mut_slice().iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
        let copy = source.as_bytes().to_vec();
        struct Skewed(Aligned<i8>, usize);
        impl AsRef<[u8]> for Skewed {
            fn as_ref(&self) -> &[u8] {
                &self.0.as_bytes()[self.1..]
            }
        }
        let keep = |skew: usize| {
            let mut bytes = Aligned::<i8>::zeroed(skew + copy.len());
            for (to, &from) in bytes.as_mut_slice()[skew..].iter_mut().zip(&copy) {
                *to = from as i8;
            }
            SharedBytes::new(Skewed(bytes, skew))
        };
        assert!(Aligned::<f32>::shared(keep(4)).is_none());
        let mut shared = Aligned::<f32>::shared(keep(64)).unwrap();
        assert_eq!(shared.as_slice(), source.as_slice());
        shared.as_mut_slice()[3] = 7.0;
        assert_eq!((shared.as_slice()[3], shared.as_slice()[39]), (7.0, 39.0));
        shared.resize(3);
        assert_eq!(shared.as_slice().len(), 3);
    }
}
