//! Graph and metadata → bytes.

use sora_exec::PackedWeights;
use sora_ir::{Graph, text};
use sora_tensor::Tensor;

use super::{ALIGNMENT, ENTRY, HEADER, MAGIC, VERSION, VERSION_PACKED, tag};
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
    let (graph_text, tensors) = text::print_with_table(graph);
    let (records, data) = tensor_sections(&tensors);
    let json = serde_json::to_vec(metadata).map_err(|e| {
        Failure::new(format!("Cannot write the metadata: {e}."), "META", "Report this as a defect.")
    })?;
    let mut sections = vec![
        (tag::GRAPH, graph_text.into_bytes()),
        (tag::TENSORS, records),
        (tag::DATA, data),
        (tag::METADATA, json),
    ];
    sections.extend(packed.map(|packed| (tag::PACKED, packed_section(packed))));
    let version = if packed.is_some() { VERSION_PACKED } else { VERSION };

    let table_end = HEADER + ENTRY * sections.len();
    let mut body = Vec::new();
    let mut table = Vec::new();
    let base = (table_end + 4).next_multiple_of(ALIGNMENT);
    for (tag, bytes) in &sections {
        body.resize(body.len().next_multiple_of(ALIGNMENT), 0);
        table.extend_from_slice(tag);
        table.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
        table.extend_from_slice(&((base + body.len()) as u64).to_le_bytes());
        table.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        body.extend_from_slice(bytes);
    }

    let mut file = Vec::with_capacity(base + body.len());
    file.extend_from_slice(&MAGIC);
    file.extend_from_slice(&version.to_le_bytes());
    file.extend_from_slice(&(sections.len() as u32).to_le_bytes());
    file.extend_from_slice(&((base + body.len()) as u64).to_le_bytes());
    file.extend_from_slice(&table);
    file.extend_from_slice(&crc32fast::hash(&file).to_le_bytes());
    file.resize(base, 0);
    file.extend_from_slice(&body);
    Ok(file)
}

/// Per tensor: length of the dtype's name, the name, the rank, the extents, the offset in the data section.
fn tensor_sections(tensors: &[Tensor]) -> (Vec<u8>, Vec<u8>) {
    let (mut records, mut data) = (Vec::new(), Vec::new());
    records.extend_from_slice(&(tensors.len() as u32).to_le_bytes());
    for tensor in tensors {
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        let dtype = tensor.dtype().to_string();
        records.push(dtype.len() as u8);
        records.extend_from_slice(dtype.as_bytes());
        records.push(tensor.rank() as u8);
        for &extent in tensor.shape() {
            records.extend_from_slice(&(extent as u64).to_le_bytes());
        }
        records.extend_from_slice(&(data.len() as u64).to_le_bytes());
        data.extend_from_slice(tensor.bytes());
    }
    (records, data)
}

/// The packing, then per entry: its name, the number of buffers, the length and offset of each; then the buffers.
fn packed_section(packed: &PackedWeights) -> Vec<u8> {
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
                records.extend_from_slice(&(buffer.len() as u64).to_le_bytes());
                records.extend_from_slice(&(offset as u64).to_le_bytes());
                offset = (offset + buffer.len()).next_multiple_of(ALIGNMENT);
            }
        }
        records
    };
    // Offsets have a fixed size, so the records of a first pass tell where the buffers begin.
    let mut section = records(records(0).len().next_multiple_of(ALIGNMENT));
    for buffer in packed.entries.values().flatten() {
        section.resize(section.len().next_multiple_of(ALIGNMENT), 0);
        section.extend_from_slice(buffer);
    }
    section
}
