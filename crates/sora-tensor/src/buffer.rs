//! Aligned bytes, owned or mapped from a file.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

/// Alignment in bytes of every owned buffer: one cache line, one AVX-512 register.
pub const ALIGNMENT: usize = 64;

/// The unit of allocation of owned buffers: as much alignment as the system gives zeroed memory for without
/// writing it.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(16))]
struct Block([u8; 16]);

/// Immutable-when-shared bytes, aligned to [`ALIGNMENT`] when owned.
#[derive(Clone)]
pub struct Buffer(Storage);

enum Storage {
    /// The bytes begin `start` bytes behind the first block.
    Owned {
        blocks: Vec<Block>,
        start: usize,
        len: usize,
    },
    Mapped {
        map: Arc<Mmap>,
        range: Range<usize>,
    },
}

impl Clone for Storage {
    fn clone(&self) -> Self {
        match self {
            // Elsewhere, the lines may begin at another block.
            Storage::Owned { .. } => Buffer::copy_of(self.bytes()).0,
            Storage::Mapped { map, range } => Storage::Mapped { map: Arc::clone(map), range: range.clone() },
        }
    }
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        match self {
            Storage::Owned { blocks, start, len } => &bytemuck::cast_slice(blocks)[*start..start + len],
            Storage::Mapped { map, range } => &map[range.clone()],
        }
    }
}

impl Buffer {
    /// `len` zero bytes; panics when memory runs out.
    pub fn zeroed(len: usize) -> Self {
        Self::try_zeroed(len).unwrap_or_else(|| panic!("no memory for {len} bytes"))
    }

    /// `len` zero bytes, or `None` when memory does not suffice: for sizes that come from a file. The system hands
    /// large ones out untouched: what nobody writes takes no memory.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        let size = if len == 0 { 0 } else { len.checked_add(ALIGNMENT)? };
        let blocks = bytemuck::try_zeroed_vec::<Block>(size.div_ceil(size_of::<Block>())).ok()?;
        let address = blocks.as_ptr().addr();
        let start = if len == 0 { 0 } else { address.next_multiple_of(ALIGNMENT) - address };
        Some(Buffer(Storage::Owned { blocks, start, len }))
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.bytes_mut().copy_from_slice(bytes);
        buffer
    }

    /// Maps a whole file read-only.
    ///
    /// # Errors
    /// When the operating system refuses the mapping. An empty file gives an empty buffer.
    pub fn map(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self::zeroed(0));
        }
        // SAFETY: the mapping is private to this process and read-only. As with every mapped file, another
        // process that truncates or rewrites the file while it is mapped breaks the contract; all parsers
        // above treat the bytes as hostile, so changed bytes give wrong values, not invalid ones.
        let map = unsafe { Mmap::map(file)? };
        let range = 0..map.len();
        Ok(Buffer(Storage::Mapped { map: Arc::new(map), range }))
    }

    /// Lets go of the memory that holds a mapped file's bytes; they are read again when used again. Owned bytes
    /// stay. Call it after a pass over bytes that will not be needed for long, to keep the process small.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Storage::Mapped { map, range } = &self.0 {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the mapping is of a file and never written, so dropped pages come back from the file
            // with the same bytes (see `map` for a file that changes).
            let advised = unsafe { map.unchecked_advise_range(advice, range.start, range.len()) };
            // Refused advice costs memory, nothing else.
            drop(advised);
        }
    }

    /// The part of this mapped buffer that `bytes` is; `None` for bytes from elsewhere, and for owned buffers.
    pub fn part(&self, bytes: &[u8]) -> Option<Self> {
        let start = bytes.as_ptr().addr().checked_sub(self.as_ptr().addr())?;
        match &self.0 {
            Storage::Owned { .. } => None,
            Storage::Mapped { .. } => self.slice(start..start.checked_add(bytes.len())?),
        }
    }

    /// The part `range` of this buffer; shares a mapping, copies owned bytes. `None` when out of bounds.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        let bytes = self.get(range.clone())?;
        Some(match &self.0 {
            Storage::Owned { .. } => Self::copy_of(bytes),
            Storage::Mapped { map, range: whole } => Buffer(Storage::Mapped {
                map: Arc::clone(map),
                range: whole.start + range.start..whole.start + range.end,
            }),
        })
    }

    /// Mutable bytes; a mapped buffer is copied into memory first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        if let Storage::Mapped { .. } = self.0 {
            *self = Self::copy_of(self);
        }
        match &mut self.0 {
            Storage::Owned { blocks, start, len } => {
                &mut bytemuck::cast_slice_mut(blocks)[*start..*start + *len]
            }
            Storage::Mapped { .. } => &mut [],
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}
