//! Graph and metadata → bytes.

use std::io::{self, Seek, SeekFrom, Write};

use flate2::Compression;
use flate2::write::DeflateEncoder;
use sora_exec::PackedWeights;
use sora_ir::{Graph, text};
use sora_tensor::Tensor;

use super::coding::{self, Coding};
use super::{ALIGNMENT, ENTRY, HEADER, INFLATION, MAGIC, VERSION, VERSION_CODED, VERSION_PACKED, tag};
use crate::{Failure, Metadata};

/// The bytes of a `.sora` file.
///
/// # Errors
/// [`Failure`] when the metadata cannot be written as JSON.
pub fn to_bytes(
    graph: &Graph,
    metadata: &Metadata,
    packed: Option<&PackedWeights>,
) -> Result<Vec<u8>, Failure> {
    let mut file = io::Cursor::new(Vec::new());
    let encoded = Encoded::new(graph, metadata, packed)?;
    encoded
        .write(&mut file)
        .map_err(|e| Failure::io("write the model", std::path::Path::new("memory"), &e))?;
    Ok(file.into_inner())
}

/// A model in the form of a `.sora` file, but for its weights, which stay where they are until they are written.
pub struct Encoded<'a> {
    version: u32,
    sections: Vec<([u8; 4], Vec<Piece<'a>>)>,
}

/// A part of a section; each begins at a multiple of [`ALIGNMENT`].
enum Piece<'a> {
    Bytes(Vec<u8>),
    /// A tensor with its coding, and the bytes that this takes. They are made when they are written: no second copy of
    /// the weights lies in memory.
    Tensor(Tensor, Coding, usize),
    Packed(&'a [u8]),
}

impl Piece<'_> {
    /// A tensor in the coding that takes the fewest bytes.
    fn of(tensor: Tensor) -> Self {
        let chosen = coding::choose(tensor.detached().raw(), tensor.dtype().size());
        tensor.release();
        let (coding, len) = chosen.unwrap_or((Coding::Raw, tensor.byte_len()));
        Piece::Tensor(tensor, coding, len)
    }

    fn len(&self) -> usize {
        match self {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::Tensor(_, _, len) => *len,
            Piece::Packed(part) => part.len(),
        }
    }

    /// Gives the bytes to `write`, and lets go of what reading them took.
    fn give(&self, write: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Piece::Bytes(bytes) => write(bytes),
            Piece::Tensor(tensor, coding, _) => {
                let elements = tensor.detached();
                match coding::encode(elements.raw(), tensor.dtype().size(), *coding) {
                    Some(coded) => write(&coded)?,
                    None => write(elements.raw())?,
                }
                tensor.release();
                Ok(())
            }
            Piece::Packed(part) => write(part),
        }
    }
}

/// A text in the format Deflate (RFC 1951), at most [`INFLATION`] times as long as that.
fn deflated(text: &[u8]) -> Vec<u8> {
    let deflate = |level| {
        let mut encoder = DeflateEncoder::new(Vec::new(), level);
        // Memory takes whatever it is given.
        let _ = encoder.write_all(text);
        encoder.finish().unwrap_or_default()
    };
    let small = deflate(Compression::best());
    if text.len() <= INFLATION * small.len() { small } else { deflate(Compression::none()) }
}

/// Where the pieces begin in their section, and where it ends.
fn offsets(pieces: &[Piece]) -> (Vec<usize>, usize) {
    let mut end = 0usize;
    let place = |piece: &Piece| {
        let start = end.next_multiple_of(ALIGNMENT);
        end = start + piece.len();
        start
    };
    (pieces.iter().map(place).collect(), end)
}

impl<'a> Encoded<'a> {
    /// Encodes a model.
    ///
    /// # Errors
    /// [`Failure`] when the metadata cannot be written as JSON.
    pub fn new(
        graph: &Graph,
        metadata: &Metadata,
        packed: Option<&'a PackedWeights>,
    ) -> Result<Self, Failure> {
        let (graph_text, tensors) = text::print_with_table(graph);
        let json = serde_json::to_vec(metadata).map_err(|e| {
            Failure::new(format!("Cannot write the metadata: {e}."), "META", "Report this as a defect.")
        })?;
        let data: Vec<Piece> = tensors.into_iter().map(Piece::of).collect();
        let is_coded =
            data.iter().any(|piece| matches!(piece, Piece::Tensor(_, coding, _) if *coding != Coding::Raw));
        let version = match (is_coded, packed) {
            (true, _) => VERSION_CODED,
            (false, Some(_)) => VERSION_PACKED,
            (false, None) => VERSION,
        };
        let text = |bytes: Vec<u8>| if version == VERSION_CODED { deflated(&bytes) } else { bytes };
        let mut sections = vec![
            (tag::GRAPH, vec![Piece::Bytes(text(graph_text.into_bytes()))]),
            (tag::TENSORS, vec![Piece::Bytes(records(&data, version))]),
            (tag::DATA, data),
            (tag::METADATA, vec![Piece::Bytes(text(json))]),
        ];
        sections.extend(packed.map(|packed| (tag::PACKED, packed_section(packed))));
        Ok(Encoded { version, sections })
    }

    /// The length of the file in bytes.
    pub fn len(&self) -> u64 {
        self.places().last().map_or(0, |&(start, len)| (start + len) as u64)
    }

    /// Whether there is nothing to write, which never is so.
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// Where each section begins, and how long it is.
    fn places(&self) -> Vec<(usize, usize)> {
        let mut end = HEADER + ENTRY * self.sections.len() + 4;
        let place = |(_, pieces): &(_, Vec<Piece>)| {
            let (start, len) = (end.next_multiple_of(ALIGNMENT), offsets(pieces).1);
            end = start + len;
            (start, len)
        };
        self.sections.iter().map(place).collect()
    }

    /// Writes the file: the sections, then what stands before them, their checksums.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut (impl Write + Seek)) -> io::Result<()> {
        let places = self.places();
        let mut header = Vec::new();
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&self.version.to_le_bytes());
        header.extend_from_slice(&(self.sections.len() as u32).to_le_bytes());
        header.extend_from_slice(&self.len().to_le_bytes());
        let mut written = header.len() + ENTRY * self.sections.len() + 4;
        out.write_all(&vec![0; written])?;
        for ((tag, pieces), &(start, len)) in self.sections.iter().zip(&places) {
            out.write_all(&vec![0; start - written])?;
            let checksum = section(pieces, out)?;
            written = start + len;
            header.extend_from_slice(tag);
            header.extend_from_slice(&checksum.to_le_bytes());
            header.extend_from_slice(&(start as u64).to_le_bytes());
            header.extend_from_slice(&(len as u64).to_le_bytes());
        }
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&header)
    }
}

/// Writes the pieces of a section and tells their checksum.
fn section(pieces: &[Piece], out: &mut impl Write) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut written = 0;
    for (piece, start) in pieces.iter().zip(offsets(pieces).0) {
        let mut write = |bytes: &[u8]| {
            hasher.update(bytes);
            out.write_all(bytes)
        };
        write(&vec![0; start - written])?;
        piece.give(write)?;
        written = start + piece.len();
    }
    Ok(hasher.finalize())
}

/// Per tensor: length of the dtype's name, the name, the rank, the extents, the offset in the data section, and for
/// coded tensors the coding and its bytes.
fn records(data: &[Piece], version: u32) -> Vec<u8> {
    let mut records = Vec::new();
    records.extend_from_slice(&(data.len() as u32).to_le_bytes());
    for (piece, offset) in data.iter().zip(offsets(data).0) {
        let Piece::Tensor(tensor, coding, len) = piece else { continue };
        let dtype = tensor.dtype().to_string();
        records.push(dtype.len() as u8);
        records.extend_from_slice(dtype.as_bytes());
        records.push(tensor.rank() as u8);
        for &extent in tensor.shape() {
            records.extend_from_slice(&(extent as u64).to_le_bytes());
        }
        records.extend_from_slice(&(offset as u64).to_le_bytes());
        if version == VERSION_CODED {
            records.push(*coding as u8);
            records.extend_from_slice(&(*len as u64).to_le_bytes());
        }
    }
    records
}

/// The packing, then per entry: its name, the number of buffers, the length and offset of each; then the buffers.
fn packed_section(packed: &PackedWeights) -> Vec<Piece<'_>> {
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    };
    let records = |base: usize| {
        let mut records = Vec::new();
        text(&mut records, &packed.packing);
        records.extend_from_slice(&(packed.entries.len() as u32).to_le_bytes());
        let mut offset = base;
        for (name, buffers) in &packed.entries {
            text(&mut records, name);
            records.extend_from_slice(&(buffers.len() as u32).to_le_bytes());
            for buffer in buffers {
                let len = buffer.as_ref().len();
                records.extend_from_slice(&(len as u64).to_le_bytes());
                records.extend_from_slice(&(offset as u64).to_le_bytes());
                offset = (offset + len).next_multiple_of(ALIGNMENT);
            }
        }
        records
    };
    // Offsets have a fixed size, so the records of a first pass tell where the buffers begin.
    let records = records(records(0).len().next_multiple_of(ALIGNMENT));
    let buffers = packed.entries.values().flatten().map(|part| Piece::Packed(part.as_ref()));
    [Piece::Bytes(records)].into_iter().chain(buffers).collect()
}
