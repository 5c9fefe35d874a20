//! The parts of a model as messages.

use sora_ir::{Dim, Op, TensorType};
use sora_tensor::Tensor;

use super::node::{NodeWriter, Writer};
use super::{integer, operators};
use crate::error::OnnxError;
use crate::proto::{
    DimensionProto, Extent, LOCATION_EXTERNAL, StringStringEntryProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::tensor;

pub(super) fn embed(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto { raw_data: Some(tensor::raw_bytes(tensor)), ..tensor::header(name, tensor) }
}

pub(super) fn refer(name: &str, tensor: &Tensor, file: &str, offset: usize) -> TensorProto {
    let length = tensor::stored_len(tensor);
    let external_data = vec![
        entry("location", file),
        entry("offset", &offset.to_string()),
        entry("length", &length.to_string()),
    ];
    TensorProto { external_data, data_location: Some(LOCATION_EXTERNAL), ..tensor::header(name, tensor) }
}

pub(super) fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: key.to_owned(), value: value.to_owned() }
}

/// Writes the nodes of the writer's graph.
pub(super) fn nodes(writer: &mut Writer) -> Result<(), OnnxError> {
    let graph = writer.graph;
    let needed = integer::needed(graph)?;
    for id in graph.order()? {
        let Some(node) = graph.node(id) else { continue };
        let conversion = matches!(node.op, Op::DequantizeLinear(_) | Op::DynamicQuantizeLinear(_));
        if conversion && !node.outputs.iter().any(|v| needed.contains(v)) {
            continue;
        }
        operators::write(&mut NodeWriter { writer, node })?;
    }
    Ok(())
}

pub(super) fn info(name: &str, ty: &TensorType) -> ValueInfoProto {
    let shape = TensorShapeProto { dim: ty.shape.iter().map(dimension).collect() };
    let tensor_type = TensorTypeProto { elem_type: tensor::code_of(ty.dtype), shape: Some(shape) };
    let r#type = TypeProto { tensor_type: Some(tensor_type), ..TypeProto::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

/// Symbols by their names, expressions printed; symbols that inference made up stay unknown.
fn dimension(dim: &Dim) -> DimensionProto {
    let value = match (dim.constant(), dim.as_symbol()) {
        (Some(extent), _) => Some(Extent::Value(extent)),
        (None, Some(symbol)) if symbol.starts_with('?') => None,
        (None, Some(symbol)) => Some(Extent::Param(symbol.to_owned())),
        (None, None) => Some(Extent::Param(dim.to_string())),
    };
    DimensionProto { value }
}
