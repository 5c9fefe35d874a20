//! Bytes → graph and metadata. The file is taken as hostile: every length and offset is checked, every section
//! has a checksum, and what parses is verified like any other graph.
#![deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use flate2::bufread::DeflateDecoder;
use sora_exec::PackedWeights;
use sora_ir::{Graph, text};
use sora_tensor::{Buffer, DType, Tensor, element_count};

use super::coding::{self, Coding};
use super::{ALIGNMENT, ENTRY, HEADER, INFLATION, MAGIC, VERSION, VERSION_CODED, VERSION_PACKED, tag};
use crate::{Failure, Metadata};

/// What a file holds.
type Content = (Graph, Metadata, Option<PackedWeights>);

/// Reads a `.sora` file; its weights stay mapped from the file.
///
/// # Errors
/// [`Failure`] naming the file and what is wrong with it.
pub fn read(path: &Path) -> Result<Content, Failure> {
    mapped(path, read_bytes)
}

/// The bytes that tensors take in a file and in memory, by dtype and coding.
pub type Stored = BTreeMap<(DType, Coding), (u64, u64)>;

/// What a file stores.
///
/// # Errors
/// As [`read`].
pub fn stored(path: &Path) -> Result<Stored, Failure> {
    let mut sums = Stored::new();
    let records = mapped(path, |file| records(&file, &Sections::read(&file)?))?;
    for record in records {
        let (stored, elements) = sums.entry((record.dtype, record.coding)).or_default();
        *stored += u64::try_from(record.stored.len()).unwrap_or(u64::MAX);
        *elements += u64::try_from(record.len).unwrap_or(u64::MAX);
    }
    Ok(sums)
}

fn mapped<T>(path: &Path, read: impl FnOnce(Buffer) -> Result<T, Failure>) -> Result<T, Failure> {
    let buffer = File::open(path).and_then(|file| Buffer::map(&file));
    let buffer = buffer.map_err(|error| Failure::io("read the model", path, &error))?;
    read(buffer).map_err(|mut failure| {
        failure.place = format!("{}: {}", path.display(), failure.place);
        failure
    })
}

/// Reads the bytes of a `.sora` file.
///
/// # Errors
/// [`Failure`] naming the part of the file and what is wrong with it.
pub fn read_bytes(file: Buffer) -> Result<Content, Failure> {
    if cfg!(target_endian = "big") {
        return Err(Failure::new(
            "`.sora` files are little-endian.",
            "header",
            "Use a little-endian machine.",
        ));
    }
    let sections = Sections::read(&file)?;
    let graph_text = sections.text(&file, tag::GRAPH)?;
    let graph_text = std::str::from_utf8(&graph_text)
        .map_err(|e| damaged("GRPH", format!("the graph is not UTF-8: {e}")))?;
    let records = records(&file, &sections)?;
    let tensors = records.into_iter().map(Record::tensor).collect::<Result<Vec<_>, _>>()?;
    let graph = text::parse_with_table(graph_text, &tensors).map_err(|e| damaged("GRPH", e.to_string()))?;
    let metadata = serde_json::from_slice(&sections.text(&file, tag::METADATA)?)
        .map_err(|e| damaged("META", format!("the metadata is not as documented: {e}")))?;
    let packed = match sections.has(tag::PACKED) {
        true => Some(packed_weights(&file, &sections)?),
        false => None,
    };
    file.release();
    Ok((graph, metadata, packed))
}

fn damaged(place: &str, why: String) -> Failure {
    Failure::new(
        format!("The model file is damaged: {why}."),
        place,
        "Copy the file again from where it was made, or run `sora compress` again.",
    )
}

/// The checksum of a part of the file, which is not kept in memory for it.
fn checksum_of(file: &Buffer, range: Range<usize>) -> u32 {
    const PIECE: usize = 4 << 20;
    let mut hasher = crc32fast::Hasher::new();
    for start in range.clone().step_by(PIECE) {
        let piece = file.slice(start..range.end.min(start.saturating_add(PIECE)));
        let Some(piece) = piece else { continue };
        hasher.update(&piece);
        piece.release();
    }
    hasher.finalize()
}

struct Sections {
    version: u32,
    ranges: Vec<([u8; 4], Range<usize>)>,
}

impl Sections {
    fn read(file: &Buffer) -> Result<Self, Failure> {
        let mut header = Cursor { rest: file, place: "header" };
        if header.take(MAGIC.len())? != MAGIC {
            let what = "This is not a .sora file.";
            return Err(Failure::new(
                what,
                "header",
                "Give a file written by `sora compress` or `sora convert`.",
            ));
        }
        let version = header.u32()?;
        if !(VERSION..=VERSION_CODED).contains(&version) {
            let what = format!(
                "The file has format version {version}; this Sora reads versions {VERSION} to {VERSION_CODED}."
            );
            return Err(Failure::new(
                what,
                "header",
                "Use the Sora that wrote it, or convert the model again.",
            ));
        }
        let (count, length) = (header.size32()?, header.size64()?);
        if length != file.len() {
            return Err(damaged("header", format!("it has {} bytes and should have {length}", file.len())));
        }
        let fits = match version {
            VERSION => count == tag::COUNT,
            VERSION_PACKED => count == tag::COUNT + 1,
            _ => (tag::COUNT..=tag::COUNT + 1).contains(&count),
        };
        if !fits {
            return Err(damaged("header", format!("version {version} has not {count} sections")));
        }
        let table_end = HEADER + ENTRY * count;
        let checksum = crc32fast::hash(file.get(..table_end).unwrap_or_default());
        let mut entries = Vec::new();
        for _ in 0..count {
            let tag: [u8; 4] = header.array()?;
            let (checksum, offset, length) = (header.u32()?, header.size64()?, header.size64()?);
            entries.push((tag, checksum, offset, length));
        }
        if header.u32()? != checksum {
            return Err(damaged("header", "its checksum does not match".to_owned()));
        }
        let mut ranges = Vec::new();
        let mut end_of_last = table_end + 4;
        for (tag, checksum, offset, length) in entries {
            let name = String::from_utf8_lossy(&tag).into_owned();
            let range = offset..offset.saturating_add(length);
            if file.get(range.clone()).is_none() {
                return Err(damaged(&name, "it lies outside the file".to_owned()));
            }
            if offset % ALIGNMENT != 0 || offset != end_of_last.next_multiple_of(ALIGNMENT) {
                return Err(damaged(&name, format!("it starts at {offset}, not behind the one before")));
            }
            if file.get(end_of_last..offset).is_none_or(|gap| gap.iter().any(|&b| b != 0)) {
                return Err(damaged(&name, "the padding before it is not zero".to_owned()));
            }
            if checksum_of(file, range.clone()) != checksum {
                return Err(damaged(&name, "its checksum does not match".to_owned()));
            }
            end_of_last = range.end;
            ranges.push((tag, range));
        }
        match end_of_last == file.len() {
            true => Ok(Sections { version, ranges }),
            false => Err(damaged("end", "there is more behind the last section".to_owned())),
        }
    }

    fn has(&self, tag: [u8; 4]) -> bool {
        self.ranges.iter().any(|(t, _)| *t == tag)
    }

    fn range(&self, tag: [u8; 4]) -> Result<Range<usize>, Failure> {
        let found = self.ranges.iter().find(|(t, _)| *t == tag).map(|(_, range)| range.clone());
        found
            .ok_or_else(|| damaged("header", format!("section {} is missing", String::from_utf8_lossy(&tag))))
    }

    fn get<'a>(&self, file: &'a Buffer, tag: [u8; 4]) -> Result<&'a [u8], Failure> {
        Ok(file.get(self.range(tag)?).unwrap_or_default())
    }

    /// A section of text, which is deflated in version 3.
    fn text<'a>(&self, file: &'a Buffer, tag: [u8; 4]) -> Result<Cow<'a, [u8]>, Failure> {
        let bytes = self.get(file, tag)?;
        if self.version != VERSION_CODED {
            return Ok(Cow::Borrowed(bytes));
        }
        let failed = |why: String| damaged(&String::from_utf8_lossy(&tag), why);
        let most = INFLATION.saturating_mul(bytes.len());
        let (mut decoder, mut text) = (DeflateDecoder::new(bytes), Vec::new());
        let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
        decoder.by_ref().take(limit).read_to_end(&mut text).map_err(|e| failed(e.to_string()))?;
        if text.len() > most || usize::try_from(decoder.total_in()).ok() != Some(bytes.len()) {
            return Err(failed("it is not deflated as documented".to_owned()));
        }
        Ok(Cow::Owned(text))
    }
}

/// Where the elements of a tensor lie, and how.
struct Record {
    dtype: DType,
    shape: Vec<usize>,
    /// Bytes of the elements in memory.
    len: usize,
    coding: Coding,
    stored: Buffer,
}

impl Record {
    fn tensor(self) -> Result<Tensor, Failure> {
        let (coding, stored, size) = (self.coding, self.stored, self.dtype.size());
        let tensor = match coding {
            Coding::Raw => Tensor::new(self.dtype, &self.shape, stored),
            _ if !coding::check(&stored, coding, self.len / size, size) => {
                let why = format!("a tensor of shape {:?} is not coded as documented", self.shape);
                return Err(damaged("DATA", why));
            }
            _ => Tensor::computed(self.dtype, &self.shape, move |elements| {
                coding::decode(&stored, coding, size, elements);
                stored.release();
            }),
        };
        tensor.map_err(|e| damaged("TNSR", e.to_string()))
    }
}

fn records(file: &Buffer, sections: &Sections) -> Result<Vec<Record>, Failure> {
    let data = sections.range(tag::DATA)?;
    let mut cursor = Cursor { rest: sections.get(file, tag::TENSORS)?, place: "TNSR" };
    let count = cursor.size32()?;
    let mut records = Vec::new();
    for _ in 0..count {
        let name_length = cursor.u8()?;
        let name = cursor.take(usize::from(name_length))?;
        let dtype: DType = String::from_utf8_lossy(name)
            .parse()
            .map_err(|e: sora_tensor::ParseDTypeError| damaged("TNSR", e.to_string()))?;
        let rank = cursor.u8()?;
        let shape: Vec<usize> = (0..rank).map(|_| cursor.size64()).collect::<Result<_, _>>()?;
        let len = element_count(&shape).and_then(|n| n.checked_mul(dtype.size()));
        let len = len.ok_or_else(|| damaged("TNSR", format!("a tensor has the shape {shape:?}")))?;
        let offset = cursor.size64()?;
        let (coding, stored) = match sections.version {
            VERSION_CODED => (cursor.u8()?, cursor.size64()?),
            _ => (0, len),
        };
        let coding = Coding::of(coding).filter(|&coding| coding != Coding::Raw || stored == len);
        let coding = coding.ok_or_else(|| damaged("TNSR", "a tensor has an unknown coding".to_owned()))?;
        let start = data.start.checked_add(offset).filter(|_| offset % ALIGNMENT == 0);
        let range = start.and_then(|start| Some(start..start.checked_add(stored)?));
        let stored = range.filter(|range| range.end <= data.end).and_then(|range| file.slice(range));
        let stored = stored.ok_or_else(|| {
            damaged("TNSR", format!("a tensor of shape {shape:?} lies outside the data section"))
        })?;
        records.push(Record { dtype, shape, len, coding, stored });
    }
    match cursor.rest.is_empty() {
        true => Ok(records),
        false => Err(damaged("TNSR", "there is more behind the last record".to_owned())),
    }
}

fn packed_weights(file: &Buffer, sections: &Sections) -> Result<PackedWeights, Failure> {
    let section = sections.range(tag::PACKED)?;
    let mut records = Cursor { rest: sections.get(file, tag::PACKED)?, place: "PACK" };
    let packing = records.text()?;
    let count = records.size32()?;
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let name = records.text()?;
        let buffers = records.size32()?;
        let mut parts = Vec::new();
        for _ in 0..buffers {
            let (length, offset) = (records.size64()?, records.size64()?);
            let start = section.start.checked_add(offset).filter(|_| offset % ALIGNMENT == 0);
            let range = start.and_then(|start| Some(start..start.checked_add(length)?));
            let part = range.filter(|range| range.end <= section.end).and_then(|range| file.slice(range));
            let part = part.ok_or_else(|| damaged("PACK", format!("`{name}` lies outside the section")))?;
            parts.push(part.into());
        }
        entries.insert(name, parts);
    }
    Ok(PackedWeights { packing, entries })
}

struct Cursor<'a> {
    rest: &'a [u8],
    place: &'static str,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Failure> {
        match self.rest.split_at_checked(n) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(damaged(self.place, "it ends too early".to_owned())),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Failure> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| damaged(self.place, "it ends too early".to_owned()))
    }

    fn text(&mut self) -> Result<String, Failure> {
        let length = self.size32()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec())
            .map_err(|e| damaged(self.place, format!("a name is not UTF-8: {e}")))
    }

    fn u8(&mut self) -> Result<u8, Failure> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Failure> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn size32(&mut self) -> Result<usize, Failure> {
        let value = self.u32()?;
        usize::try_from(value).map_err(|_| damaged(self.place, format!("{value} is too large")))
    }

    fn size64(&mut self) -> Result<usize, Failure> {
        let value = u64::from_le_bytes(self.array()?);
        usize::try_from(value).map_err(|_| damaged(self.place, format!("{value} is too large")))
    }
}
