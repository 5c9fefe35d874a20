//! The model as bytes and as files, written piece by piece: weights are never in memory a second time.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use prost::Message;
use sora_ir::Graph;
use sora_tensor::Tensor;
use tempfile::NamedTempFile;

use super::function::domain;
use super::node::Writer;
use super::write::{entry, info, nodes, refer};
use super::{ExportOptions, MICROSOFT, choose_opset, ir_version};
use crate::error::OnnxError;
use crate::import::SORA;
use crate::proto::{GraphProto, ModelProto, ValueInfoProto};
use crate::tensor;

/// The bytes that a protobuf message may have: what readers accept.
const MOST: usize = (1 << 31) - 1;
/// Constants smaller than this stay in the model when others leave it only because of the limit.
const SMALL: usize = 1024;
/// Alignment of constants in the data file: that of a cache line, as the mapped bytes are computed with.
const ALIGNMENT: usize = 64;

/// The model as the bytes of one file. Names of inputs and outputs are the graph's.
///
/// # Errors
/// [`OnnxError::Export`] naming a node that ONNX cannot express, or when the model exceeds the format's limit
/// of 2 GB; [`OnnxError::Version`] for an opset that cannot be written.
pub fn to_bytes(graph: &Graph, options: &ExportOptions) -> Result<Vec<u8>, OnnxError> {
    let options = ExportOptions { external_above: Some(usize::MAX), ..options.clone() };
    let export = Export::new(graph, "", &options)?;
    let mut bytes = Vec::with_capacity(export.model_len());
    export.write_model(&mut bytes).map_err(|source| OnnxError::io(Path::new("memory"), source))?;
    Ok(bytes)
}

/// Writes the model to a file, and large constants to `NAME.data` beside it where [`ExportOptions`] says so. Both
/// appear complete or not at all.
///
/// # Errors
/// As [`Export::new`], and [`OnnxError::Io`] with the path.
pub fn save(graph: &Graph, path: impl AsRef<Path>, options: &ExportOptions) -> Result<(), OnnxError> {
    let path = path.as_ref();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let export = Export::new(graph, &name, options)?;
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OnnxError::io(&path, source)
    };
    let model = filled(path, |file| export.write_model(file)).map_err(io(path))?;
    if let Some(data) = export.data_name() {
        let data = path.with_file_name(data);
        let file = filled(&data, |file| export.write_data(file)).map_err(io(&data))?;
        file.persist(&data).map_err(|e| io(&data)(e.error))?;
    }
    model.persist(path).map_err(|e| io(path)(e.error))?;
    Ok(())
}

/// A file beside its place, on disk, so that no reader sees a part of it. It has the permissions that a new file of
/// the user has.
fn filled(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let file = builder.prefix(".sora-").tempfile_in(folder)?;
    let mut writer = BufWriter::new(file.reopen()?);
    fill(&mut writer)?;
    writer.into_inner()?.sync_all()?;
    Ok(file)
}

/// A model that is ready to be written: one file, and a second one for large constants.
pub struct Export {
    /// Everything but the graph, encoded.
    frame: Vec<u8>,
    /// The graph without its constants, encoded.
    graph: Vec<u8>,
    constants: Vec<Constant>,
    /// Name of the second file, if there is one.
    data: Option<String>,
}

/// A constant of the model.
struct Constant {
    /// Its message without elements, encoded.
    header: Vec<u8>,
    tensor: Tensor,
    /// Where the elements begin in the second file, if they lie there.
    offset: Option<usize>,
}

/// The first byte of a field that holds bytes or a message, as protobuf encodes them.
const fn field(number: u8) -> u8 {
    number << 3 | 2
}
/// `ModelProto.graph`
const GRAPH: u8 = field(7);
/// `GraphProto.initializer`
const INITIALIZER: u8 = field(5);
/// `TensorProto.raw_data`
const RAW_DATA: u8 = field(9);

/// The bytes of a field of so many bytes, with its own first bytes.
fn field_len(len: usize) -> usize {
    1usize.saturating_add(prost::length_delimiter_len(len)).saturating_add(len)
}

/// Begins a field of so many bytes.
fn begin(out: &mut impl Write, field: u8, len: usize) -> io::Result<()> {
    let mut first = vec![field];
    prost::encode_length_delimiter(len, &mut first)?;
    out.write_all(&first)
}

impl Constant {
    /// The length of its message.
    fn len(&self) -> usize {
        let raw = if self.offset.is_none() { field_len(tensor::stored_len(&self.tensor)) } else { 0 };
        self.header.len().saturating_add(raw)
    }
}

impl Export {
    /// Puts a graph into the form of ONNX. `name`: that of the model's file, which a second one is named after.
    ///
    /// # Errors
    /// [`OnnxError::Export`] naming a node that ONNX cannot express, or when the model exceeds the format's limit of
    /// 2 GB though large constants leave it; [`OnnxError::Version`] for an opset that cannot be written.
    pub fn new(graph: &Graph, name: &str, options: &ExportOptions) -> Result<Self, OnnxError> {
        Self::within(MOST, graph, name, options)
    }

    /// As [`Export::new`], of a model file of at most `most` bytes.
    fn within(most: usize, graph: &Graph, name: &str, options: &ExportOptions) -> Result<Self, OnnxError> {
        let opset = choose_opset(graph, options)?;
        let mut writer = Writer::new(graph, opset);
        nodes(&mut writer)?;
        writer.outputs()?;
        let Writer { nodes, constants, functions, .. } = writer;
        let mut domains = vec![domain("", opset)];
        if !functions.is_empty() {
            domains.push(domain(SORA, 1));
        }
        if nodes.iter().any(|node| node.domain == MICROSOFT) {
            domains.push(domain(MICROSOFT, 1));
        }
        let about = &options.about;
        let frame = ModelProto {
            ir_version: Some(ir_version(opset)),
            producer_name: about.producer.clone(),
            producer_version: about.producer_version.clone(),
            domain: about.domain.clone(),
            model_version: about.version,
            doc_string: about.doc.clone(),
            opset_import: domains,
            metadata_props: options.metadata.iter().map(|(key, value)| entry(key, value)).collect(),
            graph: None,
            functions: functions.iter().map(|function| function.proto(opset)).collect(),
        };
        let described = |name: &str, ty| {
            let doc = about.value_docs.iter().find(|(of, _)| of == name).map(|(_, doc)| doc.clone());
            ValueInfoProto { doc_string: doc.unwrap_or_default(), ..info(name, ty) }
        };
        let inputs = graph.inputs().iter().map(|&id| described(&graph.value(id).name, graph.ty(id)));
        let outputs = graph.outputs().iter().map(|output| described(&output.name, graph.ty(output.value)));
        let proto = GraphProto {
            name: if graph.name.is_empty() { "graph".to_owned() } else { graph.name.clone() },
            node: nodes,
            doc_string: about.graph_doc.clone(),
            input: inputs.collect(),
            output: outputs.collect(),
            ..GraphProto::default()
        };
        let (frame, proto) = (frame.encode_to_vec(), proto.encode_to_vec());
        let mut export = Export { frame, graph: proto, constants: Vec::new(), data: None };
        export.place(&constants, options.external_above.unwrap_or(usize::MAX), name);
        if export.model_len() > most && options.external_above.is_none() {
            export.place(&constants, SMALL, name);
        }
        if export.model_len() > most {
            let why =
                format!("its file would have {} bytes, and the format ends at {most}", export.model_len());
            return Err(OnnxError::Export { node: graph.name.clone(), why });
        }
        Ok(export)
    }

    /// Sends constants of at least `threshold` bytes to the second file.
    fn place(&mut self, constants: &[(String, Tensor)], threshold: usize, name: &str) {
        let data = format!("{name}.data");
        let mut end = 0usize;
        let place = |(name, tensor): &(String, Tensor)| {
            let size = tensor::stored_len(tensor);
            let offset = (size >= threshold.max(1)).then(|| end.next_multiple_of(ALIGNMENT));
            let proto = match offset {
                None => tensor::header(name, tensor),
                Some(offset) => {
                    end = offset.saturating_add(size);
                    refer(name, tensor, &data, offset)
                }
            };
            Constant { header: proto.encode_to_vec(), tensor: tensor.clone(), offset }
        };
        self.constants = constants.iter().map(place).collect();
        self.data = (end > 0).then_some(data);
    }

    /// The name of the second file, if there is one; it belongs beside the first.
    pub fn data_name(&self) -> Option<&str> {
        self.data.as_deref()
    }

    /// The length of the model's file in bytes.
    pub fn model_len(&self) -> usize {
        self.frame.len().saturating_add(field_len(self.graph_len()))
    }

    fn graph_len(&self) -> usize {
        let constants = self.constants.iter().map(|constant| field_len(constant.len()));
        constants.fold(self.graph.len(), usize::saturating_add)
    }

    /// The length of the second file in bytes.
    pub fn data_len(&self) -> usize {
        let end = |c: &Constant| Some(c.offset?.saturating_add(tensor::stored_len(&c.tensor)));
        self.constants.iter().filter_map(end).max().unwrap_or(0)
    }

    /// Writes the model's file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_model(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.frame)?;
        begin(out, GRAPH, self.graph_len())?;
        out.write_all(&self.graph)?;
        for constant in &self.constants {
            begin(out, INITIALIZER, constant.len())?;
            out.write_all(&constant.header)?;
            if constant.offset.is_none() {
                begin(out, RAW_DATA, tensor::stored_len(&constant.tensor))?;
                tensor::write_raw(&constant.tensor, out)?;
            }
        }
        Ok(())
    }

    /// Writes the second file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_data(&self, out: &mut impl Write) -> io::Result<()> {
        let mut written = 0usize;
        for constant in &self.constants {
            let Some(offset) = constant.offset else { continue };
            out.write_all(&vec![0; offset.saturating_sub(written)])?;
            tensor::write_raw(&constant.tensor, out)?;
            written = offset.saturating_add(tensor::stored_len(&constant.tensor));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sora_ir::TensorType;
    use sora_ir::ops::{Binary, BinaryKind};
    use sora_tensor::DType;

    use super::*;

    /// A chain of additions of constants of these lengths.
    fn sums(lengths: &[usize]) -> Graph {
        let mut graph = Graph::new("sums");
        let mut sum = graph.input("x", TensorType::new(DType::F32, [1usize]));
        for (i, &len) in lengths.iter().enumerate() {
            let constant = Tensor::computed(DType::F32, &[len], move |bytes| bytes.fill(i as u8)).unwrap();
            let constant = graph.constant(&format!("c{i}"), constant);
            sum = graph.op(&format!("sum{i}"), Binary { kind: BinaryKind::Add }, [sum, constant]).unwrap();
        }
        graph.output("y", sum);
        graph
    }

    fn written(export: &Export) -> (Vec<u8>, Vec<u8>) {
        let (mut model, mut data) = (Vec::new(), Vec::new());
        export.write_model(&mut model).unwrap();
        export.write_data(&mut data).unwrap();
        assert_eq!((model.len(), data.len()), (export.model_len(), export.data_len()));
        (model, data)
    }

    #[test]
    fn constants_leave_a_model_that_would_exceed_the_limit_and_no_other() {
        let (graph, options) = (sums(&[500, 1, 500]), ExportOptions::default());
        let whole = Export::new(&graph, "net.onnx", &options).unwrap();
        assert_eq!(whole.data_name(), None);
        let len = whole.model_len();
        assert_eq!(len, to_bytes(&graph, &options).unwrap().len());
        assert_eq!(Export::within(len, &graph, "net.onnx", &options).unwrap().data_name(), None);

        let split = Export::within(len - 1, &graph, "net.onnx", &options).unwrap();
        assert_eq!((split.data_name(), split.data_len()), (Some("net.onnx.data"), 2048 + 2000));
        let folder = tempfile::tempdir().unwrap();
        let (model, data) = written(&split);
        assert!(model.len() < len - 3800, "{} of {len}", model.len());
        std::fs::write(folder.path().join("net.onnx"), model).unwrap();
        std::fs::write(folder.path().join("net.onnx.data"), data).unwrap();
        let again = crate::load(folder.path().join("net.onnx")).unwrap().graph;
        for (_, value) in graph.values() {
            let Some(tensor) = graph.const_value(graph.find(&value.name).unwrap()) else { continue };
            assert_eq!(again.const_value(again.find(&value.name).unwrap()), Some(tensor));
        }
    }

    #[test]
    fn what_exceeds_the_limit_without_its_constants_or_must_not_be_split_is_refused() {
        let (graph, options) = (sums(&[500]), ExportOptions::default());
        let refused = |most, options| {
            let error = Export::within(most, &graph, "net.onnx", options).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("format ends at"), "{error}");
        };
        refused(100, &options);
        refused(2000, &ExportOptions { external_above: Some(usize::MAX), ..options.clone() });
    }
}
