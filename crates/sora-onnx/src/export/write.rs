//! The model as bytes and as files.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use prost::Message;
use sora_ir::{Dim, Graph, Op, TensorType};
use sora_tensor::Tensor;
use tempfile::NamedTempFile;

use super::function::{Function, domain};
use super::node::{NodeWriter, Writer};
use super::{ExportOptions, MICROSOFT, choose_opset, integer, ir_version, operators};
use crate::error::OnnxError;
use crate::import::SORA;
use crate::proto::{
    DimensionProto, Extent, GraphProto, LOCATION_EXTERNAL, ModelProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::tensor;

/// Protobuf messages end below 2^31 bytes; the rest is for nodes and names.
const MOST_EMBEDDED: usize = (1 << 31) - (64 << 20);
/// Constants smaller than this stay in the model when others leave it only because of the limit.
const SMALL: usize = 1024;
/// Alignment of constants in the data file: that of a cache line, as the mapped bytes are computed with.
const ALIGNMENT: usize = 64;

/// The model as the bytes of one file. Names of inputs and outputs are the graph's.
///
/// # Errors
/// [`OnnxError::Export`] naming a node that ONNX cannot express, or when the constants exceed the format's limit
/// of 2 GB; [`OnnxError::Version`] for an opset that cannot be written.
pub fn to_bytes(graph: &Graph, options: &ExportOptions) -> Result<Vec<u8>, OnnxError> {
    Ok(Parts::of(graph, options)?.model(graph, options, "", usize::MAX)?.encode_to_vec())
}

/// Writes the model to a file, and large constants to `NAME.data` beside it where [`ExportOptions`] says so. Both
/// appear complete or not at all.
///
/// # Errors
/// As [`to_bytes`], and [`OnnxError::Io`] with the path.
pub fn save(graph: &Graph, path: impl AsRef<Path>, options: &ExportOptions) -> Result<(), OnnxError> {
    let path = path.as_ref();
    let parts = Parts::of(graph, options)?;
    let everything = parts.embedded_below(usize::MAX);
    let automatic = if everything > MOST_EMBEDDED { SMALL } else { usize::MAX };
    let threshold = options.external_above.unwrap_or(automatic);
    let data_name = format!("{}.data", path.file_name().unwrap_or_default().to_string_lossy());
    let model = parts.model(graph, options, &data_name, threshold)?.encode_to_vec();
    if parts.embedded_below(threshold) < everything {
        replace(&path.with_file_name(&data_name), |file| parts.write_data(file, threshold))?;
    }
    replace(path, |file| file.write_all(&model))
}

/// Writes a file beside its place and moves it there, so that no reader sees a part of it.
fn replace(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), OnnxError> {
    let write = || {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = new_file(folder)?;
        fill(file.as_file_mut())?;
        file.as_file_mut().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(|source| OnnxError::io(path, source))
}

/// A temporary file with the permissions that a new file of the user has.
fn new_file(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.prefix(".sora-").tempfile_in(folder)
}

pub(super) fn embed(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto { raw_data: Some(tensor::raw_bytes(tensor)), ..tensor::header(name, tensor) }
}

fn refer(name: &str, tensor: &Tensor, file: &str, offset: usize) -> TensorProto {
    let length = tensor::stored_len(tensor);
    let external_data = vec![
        entry("location", file),
        entry("offset", &offset.to_string()),
        entry("length", &length.to_string()),
    ];
    TensorProto { external_data, data_location: Some(LOCATION_EXTERNAL), ..tensor::header(name, tensor) }
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
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

/// What the graph turned into.
struct Parts {
    opset: i64,
    nodes: Vec<crate::proto::NodeProto>,
    constants: Vec<(String, Tensor)>,
    functions: Vec<Function>,
}

impl Parts {
    fn of(graph: &Graph, options: &ExportOptions) -> Result<Self, OnnxError> {
        let opset = choose_opset(graph, options)?;
        let mut writer = Writer::new(graph, opset);
        nodes(&mut writer)?;
        writer.outputs()?;
        let Writer { nodes, constants, functions, .. } = writer;
        Ok(Parts { opset, nodes, constants, functions })
    }

    /// Bytes of the constants that are smaller than `threshold`.
    fn embedded_below(&self, threshold: usize) -> usize {
        self.constants
            .iter()
            .map(|(_, tensor)| tensor::stored_len(tensor))
            .filter(|&size| size < threshold)
            .sum()
    }

    /// Where each constant of at least `threshold` bytes begins in the data file.
    fn offsets(&self, threshold: usize) -> Vec<Option<usize>> {
        let mut end = 0usize;
        let place = |(_, tensor): &(String, Tensor)| {
            let size = tensor::stored_len(tensor);
            (size >= threshold).then(|| {
                let start = end.next_multiple_of(ALIGNMENT);
                end = start.saturating_add(size);
                start
            })
        };
        self.constants.iter().map(place).collect()
    }

    fn write_data(&self, file: &mut File, threshold: usize) -> io::Result<()> {
        let mut written = 0;
        for ((_, tensor), offset) in self.constants.iter().zip(self.offsets(threshold)) {
            let Some(offset) = offset else { continue };
            file.write_all(&vec![0; offset - written])?;
            file.write_all(&tensor::raw_bytes(tensor))?;
            written = offset + tensor::stored_len(tensor);
        }
        Ok(())
    }

    /// The operator sets that the nodes belong to.
    fn domains(&self) -> Vec<OperatorSetIdProto> {
        let mut domains = vec![domain("", self.opset)];
        if !self.functions.is_empty() {
            domains.push(domain(SORA, 1));
        }
        if self.nodes.iter().any(|node| node.domain == MICROSOFT) {
            domains.push(domain(MICROSOFT, 1));
        }
        domains
    }

    /// The model with constants of at least `threshold` bytes referring to the file `data`.
    fn model(
        &self,
        graph: &Graph,
        options: &ExportOptions,
        data: &str,
        threshold: usize,
    ) -> Result<ModelProto, OnnxError> {
        if self.embedded_below(threshold) > MOST_EMBEDDED {
            let why = "constants of more than 2 GB need a second file".to_owned();
            return Err(OnnxError::Export { node: graph.name.clone(), why });
        }
        let constants = self.constants.iter().zip(self.offsets(threshold));
        let initializer = constants.map(|((name, tensor), offset)| match offset {
            None => embed(name, tensor),
            Some(offset) => refer(name, tensor, data, offset),
        });
        let inputs = graph.inputs().iter().map(|&id| info(&graph.value(id).name, graph.ty(id)));
        let outputs = graph.outputs().iter().map(|output| info(&output.name, graph.ty(output.value)));
        Ok(ModelProto {
            ir_version: Some(ir_version(self.opset)),
            producer_name: options.producer.clone(),
            producer_version: options.producer_version.clone(),
            opset_import: self.domains(),
            metadata_props: options.metadata.iter().map(|(key, value)| entry(key, value)).collect(),
            graph: Some(GraphProto {
                name: if graph.name.is_empty() { "graph".to_owned() } else { graph.name.clone() },
                node: self.nodes.clone(),
                initializer: initializer.collect(),
                input: inputs.collect(),
                output: outputs.collect(),
                sparse_initializer: Vec::new(),
            }),
            functions: self.functions.iter().map(|function| function.proto(self.opset)).collect(),
        })
    }
}

pub(super) fn info(name: &str, ty: &TensorType) -> ValueInfoProto {
    let shape = TensorShapeProto { dim: ty.shape.iter().map(dimension).collect() };
    let tensor_type = TensorTypeProto { elem_type: tensor::code_of(ty.dtype), shape: Some(shape) };
    let r#type = TypeProto { tensor_type: Some(tensor_type), ..TypeProto::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type) }
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
