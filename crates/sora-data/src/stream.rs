//! Opening files that may be compressed, and reading no more than a header promised.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::{DataError, ErrorKind};

/// Memory reserved before any byte has been seen; beyond it a vector grows only with real data.
const MAX_RESERVE: usize = 1 << 24;

/// Opens `path` and decompresses it when its name ends in `.gz`.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read>, DataError> {
    let file = File::open(path).map_err(|e| DataError::io(path, &e))?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        let what = "this is a folder, not a file";
        let hint = "give the path of a file";
        return Err(DataError::new(ErrorKind::Usage, what, path.display().to_string(), hint));
    }
    let buffered = BufReader::with_capacity(1 << 16, file);
    Ok(match path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz")) {
        true => Box::new(MultiGzDecoder::new(buffered)),
        false => Box::new(buffered),
    })
}

/// Reads exactly `expected` bytes up to the end of `reader`, and stops at the first byte beyond them: a
/// compressed file cannot make us hold more than its header promised.
pub(crate) fn read_promised(reader: impl Read, expected: usize, where_: &str) -> Result<Vec<u8>, DataError> {
    let limit = u64::try_from(expected).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::with_capacity(expected.min(MAX_RESERVE));
    reader.take(limit).read_to_end(&mut bytes).map_err(|e| DataError::stream(where_, &e))?;
    let found = bytes.len();
    if found < expected {
        let what = format!("the header promises {expected} bytes of data, but the file ends after {found}");
        return Err(DataError::malformed(what, where_));
    }
    if found > expected {
        let what = format!("the file holds more than the {expected} bytes of data that its header promises");
        return Err(DataError::malformed(what, where_));
    }
    Ok(bytes)
}

/// Passes bytes through until `left` are used up or one line grows too long, then fails: the guard of
/// formats whose header promises no size.
pub(crate) struct Limited<R> {
    inner: R,
    left: u64,
    line: usize,
}

impl<R: Read> Limited<R> {
    /// The longest line in bytes: room for a million values.
    pub(crate) const MAX_LINE: usize = 1 << 25;

    pub(crate) fn new(inner: R, limit: u64) -> Self {
        Limited { inner, left: limit, line: 0 }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let read = buffer.get(..count).unwrap_or_default();
        self.line = match read.iter().rposition(|&b| b == b'\n') {
            Some(last) => count.saturating_sub(last),
            None => self.line.saturating_add(count),
        };
        if self.line > Self::MAX_LINE {
            return Err(io::Error::other(format!("a line is longer than {} bytes", Self::MAX_LINE)));
        }
        let used = u64::try_from(count).unwrap_or(u64::MAX);
        self.left = self.left.checked_sub(used).ok_or_else(|| {
            io::Error::new(io::ErrorKind::FileTooLarge, "more text than the memory limit allows")
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_kept_exactly() {
        let data = [7u8; 10];
        assert_eq!(read_promised(&data[..], 10, "f").unwrap(), data);
        assert!(read_promised(&data[..], 11, "f").unwrap_err().what.contains("ends after 10"));
        assert!(read_promised(&data[..], 9, "f").unwrap_err().what.contains("more than the 9"));
        assert!(read_promised(&data[..], usize::MAX, "f").is_err());
    }

    #[test]
    fn endless_streams_stop() {
        let bomb = Limited::new(io::repeat(b'1'), u64::MAX);
        assert!(io::copy(&mut { bomb }, &mut io::sink()).is_err());
        let lines = Limited::new(io::repeat(b'\n'), 1000);
        assert!(io::copy(&mut { lines }, &mut io::sink()).is_err());
    }
}
