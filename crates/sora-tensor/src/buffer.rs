//! Aligned bytes, owned or mapped from a file.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

/// Alignment in bytes of every owned buffer: one cache line, one AVX-512 register.
pub const ALIGNMENT: usize = 64;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; ALIGNMENT]);

/// Immutable-when-shared bytes, aligned to [`ALIGNMENT`] when owned.
#[derive(Clone)]
pub struct Buffer(Storage);

#[derive(Clone)]
enum Storage {
    Owned { lines: Vec<Line>, len: usize },
    Mapped { map: Arc<Mmap>, range: Range<usize> },
}

impl Buffer {
    /// `len` zero bytes; aborts like `Vec` when memory runs out.
    pub fn zeroed(len: usize) -> Self {
        let lines = vec![Line([0; ALIGNMENT]); len.div_ceil(ALIGNMENT)];
        Buffer(Storage::Owned { lines, len })
    }

    /// `len` zero bytes, or `None` when memory does not suffice: for sizes that come from a file.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        let count = len.div_ceil(ALIGNMENT);
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).ok()?;
        lines.resize(count, Line([0; ALIGNMENT]));
        Some(Buffer(Storage::Owned { lines, len }))
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
            Storage::Owned { lines, len } => &mut bytemuck::cast_slice_mut(lines)[..*len],
            Storage::Mapped { .. } => &mut [],
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Storage::Owned { lines, len } => &bytemuck::cast_slice(lines)[..*len],
            Storage::Mapped { map, range } => &map[range.clone()],
        }
    }
}
