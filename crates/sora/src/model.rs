//! A network with what travels beside it, from and to files.

use std::path::Path;
use std::rc::Rc;

use sora_data::{Dataset, Preprocess};
use sora_exec::{ExecError, Options, PackedWeights, Session};
use sora_ir::{Graph, text};
use sora_tensor::DType;

use crate::metadata::Onnx;
use crate::{Draft, Failure, Metadata, format, write_together};

/// The file formats, by ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `.onnx`
    Onnx,
    /// `.sora`
    Sora,
    /// `.txt`: the text form of [`sora_ir::text`].
    Text,
}

impl Kind {
    /// The format that the ending of `path` names.
    ///
    /// # Errors
    /// [`Failure`] listing the endings.
    pub fn of(path: &Path) -> Result<Kind, Failure> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("onnx") => Ok(Kind::Onnx),
            Some("sora") => Ok(Kind::Sora),
            Some("txt") => Ok(Kind::Text),
            _ => Err(Failure::new(
                "The ending of the file names no model format.",
                path.display().to_string(),
                "Use .onnx, .sora or .txt.",
            )),
        }
    }
}

/// A graph with its metadata and the size of its file.
#[derive(Clone, Debug)]
pub struct Model {
    /// The network.
    pub graph: Graph,
    /// What travels beside it.
    pub metadata: Metadata,
    /// Size in bytes of the file or files it came from.
    pub bytes: u64,
    /// What a user should know about the import.
    pub warnings: Vec<String>,
    /// Weights packed for the kernels of one machine, if the file holds them.
    pub packed: Option<PackedWeights>,
}

/// The ONNX metadata property that holds [`Metadata`] as JSON.
const PROPERTY: &str = "sora.metadata";

impl Model {
    /// A graph that comes from no file.
    pub fn of(graph: Graph) -> Model {
        Model { graph, metadata: Metadata::default(), bytes: 0, warnings: Vec::new(), packed: None }
    }

    /// Reads a model in the format that its ending names.
    ///
    /// # Errors
    /// [`Failure`] that names the file, all unsupported nodes, or what is damaged; also for weights that are
    /// not finite.
    pub fn load(path: impl AsRef<Path>) -> Result<Model, Failure> {
        let path = path.as_ref();
        let kind = Kind::of(path)?;
        let bytes = regular_file(path)?;
        let model = match kind {
            Kind::Onnx => Self::load_onnx(path, bytes)?,
            Kind::Sora => {
                let (graph, metadata, packed) = format::read(path)?;
                let warnings = packed.iter().filter_map(foreign).collect();
                Model { graph, metadata, bytes, warnings, packed }
            }
            Kind::Text => {
                let text =
                    std::fs::read_to_string(path).map_err(|e| Failure::io("read the model", path, &e))?;
                let graph = text::parse(&text).map_err(|e| {
                    let place = format!("{}, line {}", path.display(), e.line);
                    Failure::new(format!("The text is no graph: {}.", e.what), place, "Correct the line.")
                })?;
                Model { graph, metadata: Metadata::default(), bytes, warnings: Vec::new(), packed: None }
            }
        };
        model.refuse_non_finite_weights(path)?;
        Ok(model)
    }

    /// The nodes of an ONNX file that Sora cannot run; none for the other formats, which hold no such nodes.
    ///
    /// # Errors
    /// [`Failure`] when there is no such file.
    pub fn unsupported(path: &Path) -> Result<Vec<sora_onnx::NodeIssue>, Failure> {
        let kind = Kind::of(path)?;
        regular_file(path)?;
        Ok(if kind == Kind::Onnx { sora_onnx::check(path).unwrap_or_default() } else { Vec::new() })
    }

    fn load_onnx(path: &Path, bytes: u64) -> Result<Model, Failure> {
        let imported = sora_onnx::load(path).map_err(|error| onnx_failure(path, &error))?;
        let property = imported.metadata.iter().find(|(key, _)| key == PROPERTY);
        let mut warnings = imported.warnings;
        let mut metadata = match property.map(|(_, json)| serde_json::from_str(json)) {
            Some(Ok(metadata)) => metadata,
            Some(Err(error)) => {
                warnings
                    .push(format!("the file's property {PROPERTY} cannot be read and is ignored: {error}"));
                Metadata::default()
            }
            None => Metadata::default(),
        };
        let properties = imported.metadata.into_iter().filter(|(key, _)| key != PROPERTY).collect();
        metadata.onnx = Some(Onnx { opset: imported.opset, properties, about: imported.about });
        // External data lies in files of its own; the weights then outweigh the model's file.
        let consts = imported.graph.values().filter_map(|(id, _)| imported.graph.const_value(id));
        let weights: u64 = consts.map(|tensor| tensor.byte_len() as u64).sum();
        let bytes = if weights > bytes { bytes + weights } else { bytes };
        Ok(Model { graph: imported.graph, metadata, bytes, warnings, packed: None })
    }

    /// A file with NaN or infinite weights has no meaning that compression could keep.
    fn refuse_non_finite_weights(&self, path: &Path) -> Result<(), Failure> {
        const LARGE: usize = 16 << 20;
        // Masks hold infinities on purpose; a NaN, or an infinity in a layer's weights, is damage.
        for (_, node) in self.graph.nodes() {
            let linear = matches!(node.op.quant(), sora_ir::QuantRule::Linear { .. });
            for &input in node.inputs.iter().flatten() {
                let Some(tensor) = self.graph.const_value(input).filter(|t| t.dtype().is_float()) else {
                    continue;
                };
                // Coded weights are decoded for this alone.
                let finite = tensor.dtype() == DType::F32 && all_finite(tensor.detached().raw());
                // What will be packed next is read once more, and let go of then, unless so much would pile up.
                if !linear || self.packed.is_some() || tensor.byte_len() > LARGE {
                    tensor.release();
                }
                if finite {
                    continue;
                }
                let fine = |v: f64| v.is_finite() || (!linear && !v.is_nan());
                let values = tensor.to_f64s();
                if let Some(at) = values.iter().position(|&v| !fine(v)) {
                    let name = &self.graph.value(input).name;
                    return Err(Failure::new(
                        format!("The weights `{name}` hold {} at element {at}.", values[at]),
                        format!("{}: node `{}` ({})", path.display(), node.name, node.op.label()),
                        "The training diverged or the file is damaged: export the model again from a good checkpoint.",
                    ));
                }
            }
        }
        Ok(())
    }

    /// The files that the model is written to: the one at `path`, in the format that its ending names, and `NAME.data`
    /// beside it for the weights of an ONNX model that exceeds 2 GB.
    ///
    /// # Errors
    /// [`Failure`] naming a node that the format cannot express.
    pub fn drafts(&self, path: &Path) -> Result<Vec<Draft<'_>>, Failure> {
        Ok(match Kind::of(path)? {
            Kind::Sora => {
                let encoded = format::Encoded::new(&self.graph, &self.metadata, self.packed.as_ref())?;
                vec![Draft::new(path, encoded.len(), move |out| encoded.write(out))]
            }
            Kind::Text => vec![Draft::of(path, text::print(&self.graph))],
            Kind::Onnx => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let export = sora_onnx::Export::new(&self.graph, &name, &self.export_options()?);
                let export = export.map_err(|e| {
                    Failure::new(
                        format!("Cannot write the model as ONNX: {e}."),
                        &self.graph.name,
                        "Write .sora instead.",
                    )
                })?;
                let export = Rc::new(export);
                let mut drafts = Vec::new();
                if let Some(data) = export.data_name() {
                    let data = path.with_file_name(data);
                    let export = Rc::clone(&export);
                    drafts
                        .push(Draft::new(data, export.data_len() as u64, move |out| export.write_data(out)));
                }
                drafts.push(Draft::new(path, export.model_len() as u64, move |out| export.write_model(out)));
                drafts
            }
        })
    }

    fn export_options(&self) -> Result<sora_onnx::ExportOptions, Failure> {
        let defaults = sora_onnx::ExportOptions::default();
        let (opset_from, mut metadata, about) = match self.metadata.onnx.clone() {
            Some(onnx) => (onnx.opset, onnx.properties, onnx.about),
            None => (defaults.opset_from, Vec::new(), defaults.about.clone()),
        };
        let own = Metadata { onnx: None, ..self.metadata.clone() };
        let json = serde_json::to_string(&own).map_err(|e| {
            Failure::new(format!("Cannot write the metadata: {e}."), PROPERTY, "Report this.")
        })?;
        metadata.push((PROPERTY.to_owned(), json));
        Ok(sora_onnx::ExportOptions { opset_from, metadata, about, ..defaults })
    }

    /// Writes the model to the [files](Model::drafts) of `path`, whole or not at all, and tells their bytes.
    ///
    /// # Errors
    /// [`Failure`] naming the file, or the node that the format cannot express.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<u64, Failure> {
        let drafts = self.drafts(path.as_ref())?;
        let bytes = drafts.iter().map(Draft::len).sum();
        write_together(drafts)?;
        Ok(bytes)
    }

    /// A session that runs the model, with the packed weights that its file may hold.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(self, options: Options) -> Result<Session, ExecError> {
        match self.packed {
            Some(packed) => Session::with_weights(self.graph, packed, options),
            None => Session::new(self.graph, options),
        }
    }

    /// Optimizes the graph and packs its weights for the kernels that `options` ask for, so that a `.sora` file
    /// of the model starts faster, and takes twice the space. Open extents of inputs count as 1.
    ///
    /// # Errors
    /// [`ExecError`] when the graph cannot be compiled.
    pub fn pack(&mut self, options: Options) -> Result<(), ExecError> {
        let rewrite = sora_rewrite::Options::default();
        sora_rewrite::optimize(&mut self.graph, &rewrite).map_err(|e| ExecError::Rewrite(e.to_string()))?;
        let session = Session::new(self.graph.clone(), options)?;
        session.program(&self.shapes_at_one())?;
        self.packed = Some(session.packed_weights());
        Ok(())
    }

    /// The shapes of the inputs by name, open extents taken as 1.
    pub fn shapes_at_one(&self) -> Vec<(&str, Vec<usize>)> {
        let shape = |&id: &sora_ir::ValueId| {
            let value = self.graph.value(id);
            let shape: Vec<usize> = value.ty.shape.iter().map(|d| d.known().unwrap_or(1)).collect();
            (value.name.as_str(), shape)
        };
        self.graph.inputs().iter().map(shape).collect()
    }

    /// How `data` becomes this model's input: `given` where the user said so, else what the model's file says,
    /// with the rest implied by the model's input shape.
    ///
    /// # Errors
    /// [`Failure`] naming both the model's input and the data's samples when they cannot fit.
    pub fn preprocess_for(&self, data: &Dataset, given: Option<Preprocess>) -> Result<Preprocess, Failure> {
        let base = given.or_else(|| self.metadata.preprocess.clone()).unwrap_or_default();
        let inputs = self.graph.inputs();
        let [input] = inputs else { return Ok(base) };
        let shape: Vec<Option<usize>> = self.graph.ty(*input).shape.iter().map(|d| d.known()).collect();
        Ok(base.infer(&shape, &data.sample_kind())?)
    }
}

/// A remark on weights that are packed for other kernels than this machine's best.
fn foreign(packed: &PackedWeights) -> Option<String> {
    let here = PackedWeights::packing_for(&Options::default()).ok()?;
    (packed.packing != here).then(|| {
        format!("its weights are packed for `{}`, not for `{here}`: they are packed anew", packed.packing)
    })
}

/// Whether none of these `f32` numbers, at any address, is infinite or NaN.
fn all_finite(bytes: &[u8]) -> bool {
    /// Numbers per block: the loop over a block has no exit, so it runs in vectors.
    const BLOCK: usize = 4096;
    const EXPONENT: u32 = 0x7f80_0000;
    bytes.chunks(BLOCK * size_of::<f32>()).all(|block| {
        let (numbers, _) = block.as_chunks::<4>();
        let special = |n: &[u8; 4]| u32::from(u32::from_ne_bytes(*n) & EXPONENT == EXPONENT);
        numbers.iter().map(special).sum::<u32>() == 0
    })
}

/// The size of a file that is neither a folder nor a pipe or device, which would make the command wait forever.
fn regular_file(path: &Path) -> Result<u64, Failure> {
    use std::io::{Error, ErrorKind};
    let failed = |error: Error| Failure::io("read the model", path, &error);
    let metadata = std::fs::metadata(path).map_err(failed)?;
    match () {
        () if metadata.is_dir() => Err(failed(ErrorKind::IsADirectory.into())),
        () if !metadata.is_file() => Err(failed(Error::other("this is no regular file"))),
        () => Ok(metadata.len()),
    }
}

fn onnx_failure(path: &Path, error: &sora_onnx::OnnxError) -> Failure {
    let hint = match error {
        sora_onnx::OnnxError::Nodes(_) => {
            "Each line says what would help; `sora inspect` lists them as well."
        }
        _ => "Export the model again, or see whether the file arrived whole.",
    };
    Failure::new(format!("Cannot read the ONNX model: {error}"), path.display().to_string(), hint)
}

impl From<sora_data::DataError> for Failure {
    fn from(error: sora_data::DataError) -> Self {
        Failure::new(error.what, error.where_, error.hint)
    }
}
