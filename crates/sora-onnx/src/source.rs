//! Where bytes come from: the model's file, and the files beside it that hold external data.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use prost::Message;
use prost::bytes::Bytes;
use sora_tensor::Buffer;

use crate::error::{OnnxError, Refusal};
use crate::proto::{ModelProto, StringStringEntryProto};

/// A mapped file that [`Bytes`] can share.
struct Mapped(Buffer);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Maps a file and decodes it; tensors' raw bytes stay in the mapping, which comes along.
pub(crate) fn read_model(path: &Path) -> Result<(ModelProto, Buffer), OnnxError> {
    let io = |source| OnnxError::io(path, source);
    let file = File::open(path).map_err(io)?;
    let buffer = Buffer::map(&file).map_err(io)?;
    Ok((decode(Bytes::from_owner(Mapped(buffer.clone())))?, buffer))
}

/// Beginnings of files that people mistake for ONNX: offset, bytes, what it is.
const OTHER_FORMATS: &[(usize, &[u8], &str)] = &[
    (0, b"PK\x03\x04", "a zip archive, such as a PyTorch checkpoint, a .keras or an .npz file"),
    (0, b"\x89HDF", "an HDF5 file, such as a Keras .h5 model"),
    (0, b"\x80\x02", "a Python pickle, such as an old PyTorch checkpoint"),
    (0, b"\x1f\x8b", "a gzip file; unpack it first"),
    (0, b"GGUF", "a GGUF file"),
    (4, b"TFL3", "a TensorFlow Lite file"),
    (0, b"ORTM", "an onnxruntime .ort file"),
    (4, b"ORTM", "an onnxruntime .ort file"),
    (0, b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull` to get the real file"),
    (0, b"<", "a text file"),
    (8, b"{\"", "a safetensors file"),
];

/// Decodes a model and refuses what cannot be one.
pub(crate) fn decode(bytes: Bytes) -> Result<ModelProto, OnnxError> {
    if bytes.is_empty() {
        return Err(OnnxError::NotOnnx("the file is empty".to_owned()));
    }
    let looks_like = |&&(offset, magic, _): &&(usize, &[u8], &str)| {
        bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic))
    };
    let other = OTHER_FORMATS.iter().find(looks_like).map(|&(_, _, name)| name);
    let refuse = |why: String| match other {
        Some(name) => OnnxError::NotOnnx(format!("it looks like {name}")),
        None => OnnxError::NotOnnx(why),
    };
    let model = ModelProto::decode(bytes.clone())
        .map_err(|e| refuse(format!("{e}; the file may be truncated or of another format")))?;
    if model.graph.is_none() {
        return Err(refuse("it holds no graph".to_owned()));
    }
    Ok(model)
}

/// The files with external data in a model's folder, each mapped once.
pub(crate) struct External {
    folder: Option<PathBuf>,
    files: HashMap<String, Buffer>,
    /// The model's own file, if it is mapped.
    model: Option<Buffer>,
}

impl External {
    /// External data is looked for in `folder` only; `None` refuses all of it.
    pub(crate) fn new(folder: Option<&Path>) -> Self {
        External { folder: folder.map(Path::to_owned), files: HashMap::new(), model: None }
    }

    /// The same beside a model in this mapped file.
    pub(crate) fn beside(self, model: Buffer) -> Self {
        External { model: Some(model), ..self }
    }

    /// Raw bytes of the model: where they lie in its mapped file, else a copy.
    pub(crate) fn raw(&self, raw: &[u8]) -> Buffer {
        self.model.as_ref().and_then(|file| file.part(raw)).unwrap_or_else(|| Buffer::copy_of(raw))
    }

    /// The bytes that a tensor's `external_data` entries describe; `expected` is what its shape needs.
    pub(crate) fn read(
        &mut self,
        entries: &[StringStringEntryProto],
        expected: usize,
    ) -> Result<Buffer, Refusal> {
        let entry = |key: &str| entries.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => text
                .parse::<usize>()
                .map(Some)
                .map_err(|_| Refusal::new(format!("external data has the {key} `{text}`, which is no size"))),
        };
        let location = entry("location").ok_or_else(|| Refusal::new("external data names no file"))?;
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?.unwrap_or(expected);
        if length != expected {
            return Err(Refusal::new(format!(
                "external data has {length} bytes, the shape needs {expected}"
            )));
        }
        if !self.files.contains_key(location) {
            let mapped = self.map(location)?;
            self.files.insert(location.to_owned(), mapped);
        }
        let file = self.files.get(location).ok_or_else(|| Refusal::new("external data is not mapped"))?;
        let end = offset.checked_add(length);
        end.and_then(|end| file.slice(offset..end)).ok_or_else(|| {
            let size = file.len();
            Refusal::new(format!(
                "external data at bytes {offset}+{length} is outside of `{location}`, which has {size} bytes"
            ))
            .hint("the data file may be truncated or belong to another model")
        })
    }

    /// Maps a file after checking that it lies inside the folder.
    fn map(&self, location: &str) -> Result<Buffer, Refusal> {
        let folder = self.folder.as_deref().ok_or_else(|| {
            Refusal::new(format!("its data is in the file `{location}`, and no folder was given"))
        })?;
        let outside = || {
            Refusal::new(format!("external data `{location}` lies outside of the model's folder"))
                .hint("only files in the model's folder are read")
        };
        let relative = Path::new(location);
        let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || !relative.components().all(plain) {
            return Err(outside());
        }
        let cannot = |e: std::io::Error| {
            Refusal::new(format!("external data `{location}`: {e}")).hint("put the file beside the model")
        };
        let root = folder.canonicalize().map_err(cannot)?;
        let path = root.join(relative).canonicalize().map_err(cannot)?;
        if !path.starts_with(&root) {
            return Err(outside());
        }
        if !path.is_file() {
            return Err(Refusal::new(format!("external data `{location}` is no file")));
        }
        let file = File::open(&path).map_err(cannot)?;
        Buffer::map(&file).map_err(cannot)
    }
}
