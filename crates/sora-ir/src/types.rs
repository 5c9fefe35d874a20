//! The types of values: dtype and symbolic shape.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sora_tensor::{DType, Tensor};

use crate::Dim;

/// The type of a value: the dtype of its elements and its symbolic shape.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Type of the elements.
    pub dtype: DType,
    /// Extent of each dimension, outermost first.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// A type of this dtype and shape.
    pub fn new(dtype: DType, shape: impl IntoIterator<Item = impl Into<Dim>>) -> Self {
        TensorType { dtype, shape: shape.into_iter().map(Into::into).collect() }
    }

    /// The type of a concrete tensor.
    pub fn of(tensor: &Tensor) -> Self {
        Self::new(tensor.dtype(), tensor.shape().iter().copied())
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The shape as numbers; `None` while a dimension is symbolic.
    pub fn known_shape(&self) -> Option<Vec<usize>> {
        self.shape.iter().map(Dim::known).collect()
    }

    /// The number of elements; `None` while a dimension is symbolic or when it overflows.
    pub fn known_len(&self) -> Option<usize> {
        sora_tensor::element_count(&self.known_shape()?)
    }

    /// Whether a tensor of type `other` may stand here: same dtype and rank, no two different numbers.
    pub fn accepts(&self, other: &TensorType) -> bool {
        self.dtype == other.dtype
            && self.rank() == other.rank()
            && self.shape.iter().zip(&other.shape).all(|(a, b)| a.compatible(b))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, dim) in self.shape.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{dim}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An `f32` attribute that compares and hashes by its bits, so that operators can be map keys.
#[derive(Clone, Copy, Debug)]
pub struct Real(pub f32);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Real {}

impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl From<f32> for Real {
    fn from(value: f32) -> Self {
        Real(value)
    }
}

/// Numbers, except that infinities and NaN, which JSON lacks, are strings.
impl Serialize for Real {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.is_finite() {
            true => serializer.serialize_f32(self.0),
            false => serializer.serialize_str(&self.0.to_string()),
        }
    }
}

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(f32),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(value) => Ok(Real(value)),
            Form::Text(text) => text.parse().map(Real).map_err(serde::de::Error::custom),
        }
    }
}
