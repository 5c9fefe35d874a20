//! Values stored in files of their own (`.pb`), as ONNX's test data has them.

use std::path::Path;

use prost::Message;

use sora_tensor::Tensor;

use crate::error::{OnnxError, Refusal};
use crate::proto::{OptionalProto, SequenceProto, TensorProto, TypeProto, ValueInfoProto};
use crate::source::External;
use crate::tensor;

/// What kind of value a file holds: the file does not say so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredKind {
    /// A `TensorProto`.
    Tensor,
    /// A `SequenceProto` of tensors.
    Sequence,
    /// An `OptionalProto` of a tensor or of a sequence of tensors.
    Optional,
}

/// A value that was stored.
#[derive(Clone, Debug)]
pub enum Stored {
    /// A tensor; also an optional one that is there.
    Tensor(Tensor),
    /// A sequence of tensors; also an optional one that is there.
    Sequence(Vec<Tensor>),
    /// An optional value that is not there.
    Absent,
}

/// Reads a stored value.
///
/// # Errors
/// [`OnnxError::NotOnnx`] when the bytes hold no such value, or one whose elements are not supported.
pub fn read_stored(bytes: Vec<u8>, kind: StoredKind) -> Result<Stored, OnnxError> {
    let broken = |e: prost::DecodeError| OnnxError::NotOnnx(e.to_string());
    let bytes = prost::bytes::Bytes::from(bytes);
    let stored = match kind {
        StoredKind::Tensor => one(&TensorProto::decode(bytes).map_err(broken)?),
        StoredKind::Sequence => many(&SequenceProto::decode(bytes).map_err(broken)?),
        StoredKind::Optional => {
            let optional = OptionalProto::decode(bytes).map_err(broken)?;
            match (&optional.tensor_value, &optional.sequence_value, optional.elem_type) {
                (Some(tensor), ..) => one(tensor),
                (None, Some(sequence), _) => many(sequence),
                (None, None, 0) => Ok(Stored::Absent),
                (None, None, kind) => {
                    Err(Refusal::new(format!("an optional value of kind {kind} is not supported")))
                }
            }
        }
    };
    stored.map_err(|refusal| OnnxError::NotOnnx(refusal.why))
}

fn one(proto: &TensorProto) -> Result<Stored, Refusal> {
    tensor::from_proto(proto, &mut External::new(None)).map(Stored::Tensor)
}

fn many(proto: &SequenceProto) -> Result<Stored, Refusal> {
    let read = |proto: &TensorProto| tensor::from_proto(proto, &mut External::new(None));
    proto.tensor_values.iter().map(read).collect::<Result<_, _>>().map(Stored::Sequence)
}

/// Names of inputs or outputs with the kinds of their values.
pub type Interface = Vec<(String, StoredKind)>;

/// A model's inputs and outputs, in order, without inputs that have a default value in the file.
///
/// # Errors
/// As [`crate::load`] when the file as a whole is unreadable.
pub fn interface(path: impl AsRef<Path>) -> Result<(Interface, Interface), OnnxError> {
    let (model, _) = crate::source::read_model(path.as_ref())?;
    let graph = model.graph.unwrap_or_default();
    let given = |info: &&ValueInfoProto| !graph.initializer.iter().any(|init| init.name == info.name);
    let list = |info: &ValueInfoProto| (info.name.clone(), kind_of(info.r#type.as_ref()));
    Ok((graph.input.iter().filter(given).map(list).collect(), graph.output.iter().map(list).collect()))
}

fn kind_of(ty: Option<&TypeProto>) -> StoredKind {
    match ty {
        Some(ty) if ty.optional_type.is_some() => StoredKind::Optional,
        Some(ty) if ty.sequence_type.is_some() => StoredKind::Sequence,
        _ => StoredKind::Tensor,
    }
}
