//! NumPy's `.npz`: a zip archive of `.npy` arrays, stored or deflated.
//!
//! Source of the container: PKWARE APPNOTE.TXT 6.3.10, with the zip64 records that NumPy writes.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use flate2::bufread::DeflateDecoder;
use sora_tensor::{Buffer, Tensor};

use crate::stream::read_promised;
use crate::{DataError, ErrorKind, npy};

/// Reads every array of a `.npz` file, in the order of the archive's directory; `max_bytes` bounds the
/// memory of all arrays together.
///
/// # Errors
/// A [`DataError`] when the file cannot be read, is truncated or damaged (checksums are verified), or needs
/// more memory.
pub fn read(path: &Path, max_bytes: u64) -> Result<Vec<(String, Tensor)>, DataError> {
    let file = File::open(path).map_err(|e| DataError::io(path, &e))?;
    let bytes = Buffer::map(&file).map_err(|e| DataError::io(path, &e))?;
    parse(&bytes, &path.display().to_string(), max_bytes)
}

/// Writes named arrays as one uncompressed `.npz` that NumPy loads.
///
/// # Errors
/// When writing fails, an array holds bf16, or the archive would reach 4 GiB.
pub fn write(mut out: impl Write, arrays: &[(&str, &Tensor)]) -> io::Result<()> {
    let too_large = |_| io::Error::other("a .npz of 4 GiB or more is not supported");
    let small = |n: usize| u16::try_from(n).map_err(too_large);
    let (mut directory, mut offset) = (Vec::new(), 0u32);
    for (name, tensor) in arrays {
        let mut data = Vec::new();
        npy::write(&mut data, tensor)?;
        let name = format!("{name}.npy");
        let size = u32::try_from(data.len()).map_err(too_large)?;
        // Version needed, flags (names are UTF-8), method, time, date (1980-01-01), checksum, sizes, lengths.
        let mut common = Vec::new();
        for half in [20u16, 0x0800, 0, 0, 0x0021] {
            common.extend(half.to_le_bytes());
        }
        for word in [crc32fast::hash(&data), size, size] {
            common.extend(word.to_le_bytes());
        }
        common.extend(small(name.len())?.to_le_bytes());
        common.extend([0; 2]);

        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());

        let local = [b"PK\x03\x04", common.as_slice(), name.as_bytes(), data.as_slice()].concat();
        out.write_all(&local)?;
        let written = u32::try_from(local.len()).map_err(too_large)?;
        offset = offset.checked_add(written).ok_or_else(|| io::Error::other("the .npz reaches 4 GiB"))?;
    }
    let count = small(arrays.len())?.to_le_bytes();
    let length = u32::try_from(directory.len()).map_err(too_large)?.to_le_bytes();
    let start = offset.to_le_bytes();
    let end = [&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &length, &start, &[0; 2]].concat();
    out.write_all(&[directory, end].concat())
}

/// One file of the archive, as its directory describes it.
struct Entry<'a> {
    name: &'a str,
    flags: u16,
    method: u16,
    crc: u32,
    packed: u64,
    size: u64,
    offset: u64,
}

fn parse(bytes: &[u8], where_: &str, max_bytes: u64) -> Result<Vec<(String, Tensor)>, DataError> {
    let broken = || DataError::malformed("this is not a complete .npz (zip) archive", where_);
    let mut arrays = Vec::new();
    let mut left = max_bytes;
    let (count, mut at) = directory(bytes).ok_or_else(broken)?;
    for _ in 0..count {
        let (entry, next) = entry(bytes, at).ok_or_else(broken)?;
        at = next;
        let Some(name) = entry.name.strip_suffix(".npy") else { continue };
        let where_ = format!("{where_}, array `{name}`");
        left = left.checked_sub(entry.size).ok_or_else(|| {
            let what = format!("the arrays need more than {max_bytes} bytes of memory");
            DataError::new(ErrorKind::TooLarge, what, &where_, "raise the memory limit or split the file")
        })?;
        arrays.push((name.to_owned(), extract(bytes, &entry, &where_)?));
    }
    Ok(arrays)
}

/// Number of entries and the offset of the first one in the central directory.
fn directory(bytes: &[u8]) -> Option<(u64, usize)> {
    const END: usize = 22;
    const MAX_COMMENT: usize = 0xffff;
    let last = bytes.len().checked_sub(END)?;
    let end = (last.saturating_sub(MAX_COMMENT)..=last).rev().find(|&i| starts(bytes, i, b"PK\x05\x06"))?;
    let (count, start) = (u16_at(bytes, end + 10)?, u32_at(bytes, end + 16)?);
    if count != u16::MAX && start != u32::MAX {
        return Some((count.into(), usize::try_from(start).ok()?));
    }
    let locator = end.checked_sub(20).filter(|&i| starts(bytes, i, b"PK\x06\x07"))?;
    let end64 = usize::try_from(u64_at(bytes, locator + 8)?).ok()?;
    if !starts(bytes, end64, b"PK\x06\x06") {
        return None;
    }
    let field = |n: usize| u64_at(bytes, end64.checked_add(n)?);
    Some((field(32)?, usize::try_from(field(48)?).ok()?))
}

/// The directory entry at `at`, and where the next one starts.
fn entry(bytes: &[u8], at: usize) -> Option<(Entry<'_>, usize)> {
    const FIXED: usize = 46;
    let record = bytes.get(at..)?;
    if !starts(record, 0, b"PK\x01\x02") {
        return None;
    }
    let name_len = usize::from(u16_at(record, 28)?);
    let extra_len = usize::from(u16_at(record, 30)?);
    let comment_len = usize::from(u16_at(record, 32)?);
    let name = std::str::from_utf8(record.get(FIXED..FIXED + name_len)?).ok()?;
    let extra = record.get(FIXED + name_len..FIXED + name_len + extra_len)?;
    // Fields too large for 32 bits stand in the zip64 extra record instead, in this order.
    let mut wide = zip64(extra).unwrap_or_default();
    let mut field = |offset: usize| -> Option<u64> {
        let value = u32_at(record, offset)?;
        if value != u32::MAX {
            return Some(value.into());
        }
        let (first, rest) = wide.split_first_chunk()?;
        wide = rest;
        Some(u64::from_le_bytes(*first))
    };
    let (size, packed, offset) = (field(24)?, field(20)?, field(42)?);
    let (flags, method, crc) = (u16_at(record, 8)?, u16_at(record, 10)?, u32_at(record, 16)?);
    let next = at.checked_add(FIXED + name_len + extra_len + comment_len)?;
    Some((Entry { name, flags, method, crc, packed, size, offset }, next))
}

/// The zip64 record among an entry's extra fields.
fn zip64(mut extra: &[u8]) -> Option<&[u8]> {
    loop {
        let (id, len) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
        let body = extra.get(4..4 + len)?;
        if id == 1 {
            return Some(body);
        }
        extra = extra.get(4 + len..)?;
    }
}

/// Unpacks an entry, verifies its checksum and reads the array in it.
fn extract(bytes: &[u8], entry: &Entry<'_>, where_: &str) -> Result<Tensor, DataError> {
    let packed = packed(bytes, entry)
        .ok_or_else(|| DataError::malformed("the archive ends before the array does", where_))?;
    let size = usize::try_from(entry.size).map_err(|e| DataError::malformed(e.to_string(), where_))?;
    let unpacked: Vec<u8>;
    let data = match (entry.flags & 1, entry.method) {
        (0, 0) if packed.len() == size => packed,
        (0, 0) => return Err(DataError::malformed("the archive contradicts itself about a size", where_)),
        (0, 8) => {
            unpacked = read_promised(DeflateDecoder::new(packed), size, where_)?;
            unpacked.as_slice()
        }
        _ => {
            let what = "the array is encrypted or packed by a method other than deflate";
            let hint = "save it by numpy.savez or numpy.savez_compressed";
            return Err(DataError::malformed(what, where_).with_hint(hint));
        }
    };
    if crc32fast::hash(data) != entry.crc {
        return Err(DataError::malformed("the array is damaged: its checksum differs", where_));
    }
    npy::parse(data, where_)
}

/// The bytes of `entry` behind its local header.
fn packed<'a>(bytes: &'a [u8], entry: &Entry<'_>) -> Option<&'a [u8]> {
    let local = bytes.get(usize::try_from(entry.offset).ok()?..)?;
    if !starts(local, 0, b"PK\x03\x04") {
        return None;
    }
    let skip = 30 + usize::from(u16_at(local, 26)?) + usize::from(u16_at(local, 28)?);
    local.get(skip..)?.get(..usize::try_from(entry.packed).ok()?)
}

fn starts(bytes: &[u8], at: usize, magic: &[u8; 4]) -> bool {
    bytes.get(at..).is_some_and(|b| b.starts_with(magic))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 20;
    /// `numpy.savez_compressed(x=arange(12, dtype=uint8).reshape(3, 2, 2), y=[0, 2, 1])` by NumPy 2.4.
    const BY_NUMPY: &[u8] = include_bytes!("../tests/data/numpy.npz");

    fn sample() -> Vec<u8> {
        let x = Tensor::from_slice(&[2, 3], &[1f32, 2., 3., 4., 5., 6.]).unwrap();
        let y = Tensor::vector(&[0i64, 1]);
        let mut bytes = Vec::new();
        write(&mut bytes, &[("x", &x), ("y", &y)]).unwrap();
        bytes
    }

    #[test]
    fn archives_by_numpy_load() {
        let arrays = parse(BY_NUMPY, "t", LIMIT).unwrap();
        assert_eq!(arrays.len(), 2);
        assert_eq!(arrays[0].0, "x");
        assert_eq!(arrays[0].1.shape(), [3, 2, 2]);
        assert_eq!(arrays[0].1.to_i64s(), (0..12).collect::<Vec<i64>>());
        assert_eq!(arrays[1].1.to_i64s(), [0, 2, 1]);
    }

    #[test]
    fn own_archives_come_back() {
        let arrays = parse(&sample(), "t", LIMIT).unwrap();
        assert_eq!(arrays[0].1.to_f32s(), [1., 2., 3., 4., 5., 6.]);
        assert_eq!(arrays[1], ("y".to_owned(), Tensor::vector(&[0i64, 1])));
    }

    #[test]
    fn truncation_and_damage_are_errors() {
        for whole in [sample(), BY_NUMPY.to_vec()] {
            for cut in 0..whole.len() {
                assert!(parse(&whole[..cut], "t", LIMIT).is_err(), "{cut} bytes");
            }
            for at in 0..whole.len() {
                for value in [0u8, 1, 0x7f, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[at] = value;
                    let _ = parse(&damaged, "t", LIMIT);
                }
            }
        }
        assert_eq!(parse(&sample(), "t", 100).unwrap_err().kind, ErrorKind::TooLarge);
    }

    #[test]
    fn a_bomb_stops_at_the_promised_size() {
        let mut bytes = BY_NUMPY.to_vec();
        let at = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
        bytes[at + 24..at + 28].copy_from_slice(&10u32.to_le_bytes());
        assert!(parse(&bytes, "t", LIMIT).unwrap_err().what.contains("more than the 10"));
    }
}
