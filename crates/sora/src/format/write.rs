//! Graph and metadata → bytes.

use sora_ir::{Graph, text};
use sora_tensor::Tensor;

use super::{ALIGNMENT, ENTRY, HEADER, MAGIC, VERSION, tag};
use crate::{Failure, Metadata};

/// The bytes of a `.sora` file.
///
/// # Errors
/// [`Failure`] when the metadata cannot be written as JSON.
pub fn to_bytes(graph: &Graph, metadata: &Metadata) -> Result<Vec<u8>, Failure> {
    let (graph_text, tensors) = text::print_with_table(graph);
    let (records, data) = tensor_sections(&tensors);
    let json = serde_json::to_vec(metadata).map_err(|e| {
        Failure::new(format!("Cannot write the metadata: {e}."), "META", "Report this as a defect.")
    })?;
    let sections = [
        (tag::GRAPH, graph_text.into_bytes()),
        (tag::TENSORS, records),
        (tag::DATA, data),
        (tag::METADATA, json),
    ];

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
    file.extend_from_slice(&VERSION.to_le_bytes());
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
