//! Values stored in files of their own (`.pb`), as ONNX's test data has them.

use prost::Message;

use sora_tensor::Tensor;

use crate::error::{OnnxError, Refusal};
use crate::proto::{OptionalProto, SequenceProto, TensorProto};
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

/// Reads the tensors of a stored value: one for a tensor, the elements of a sequence, those of an optional's value or
/// none.
///
/// # Errors
/// [`OnnxError::NotOnnx`] when the bytes hold no such value, or one whose elements are not supported.
pub fn read_stored(bytes: Vec<u8>, kind: StoredKind) -> Result<Vec<Tensor>, OnnxError> {
    let broken = |e: prost::DecodeError| OnnxError::NotOnnx(e.to_string());
    let bytes = prost::bytes::Bytes::from(bytes);
    let tensors = match kind {
        StoredKind::Tensor => vec![TensorProto::decode(bytes).map_err(broken)?],
        StoredKind::Sequence => SequenceProto::decode(bytes).map_err(broken)?.tensor_values,
        StoredKind::Optional => {
            let optional = OptionalProto::decode(bytes).map_err(broken)?;
            let sequence = optional.sequence_value.into_iter().flat_map(|s| s.tensor_values);
            optional.tensor_value.into_iter().chain(sequence).collect()
        }
    };
    let read = |proto: &TensorProto| tensor::from_proto(proto, &mut External::new(None));
    tensors.iter().map(read).collect::<Result<_, Refusal>>().map_err(|r| OnnxError::NotOnnx(r.why))
}

/// The names of a model's inputs, in order, without those that have a default value in the file.
///
/// # Errors
/// As [`crate::load`] when the file as a whole is unreadable.
pub fn input_names(path: impl AsRef<std::path::Path>) -> Result<Vec<String>, OnnxError> {
    let (model, _) = crate::source::read_model(path.as_ref())?;
    let graph = model.graph.unwrap_or_default();
    let given = |name: &String| !graph.initializer.iter().any(|init| init.name == *name);
    Ok(graph.input.iter().map(|input| input.name.clone()).filter(given).collect())
}
