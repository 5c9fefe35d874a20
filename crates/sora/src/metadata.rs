//! What travels with a model beside its graph.

use serde::{Deserialize, Serialize};
use sora_data::{Preprocess, TextInput};
use sora_onnx::About;

/// What a user of the model must know, and how it was made. Unknown keys are refused, so that a newer file is
/// never half understood.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// The program that wrote the file, with its version.
    #[serde(default)]
    pub producer: String,
    /// How a stored sample becomes an input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocess>,
    /// How texts become the tokens that are the input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextInput>,
    /// Names of the classes, by index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// What the model scored when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measurement>,
    /// How it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
    /// What the ONNX file that the model came from says beside its graph.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onnx: Option<Onnx>,
}

/// What an ONNX file holds beside its graph; kept when the model is written as ONNX again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Onnx {
    /// Opset of the default domain.
    pub opset: i64,
    /// Keys and values of the file's metadata, in its order, without Sora's own.
    pub properties: Vec<(String, String)>,
    /// What the file says of itself.
    #[serde(default, with = "AboutForm")]
    pub about: About,
}

/// The form of [`About`] in files.
#[derive(Serialize, Deserialize)]
#[serde(remote = "About", deny_unknown_fields)]
struct AboutForm {
    producer: String,
    producer_version: String,
    domain: String,
    version: i64,
    doc: String,
    graph_doc: String,
    value_docs: Vec<(String, String)>,
}

/// Accuracy on samples that no decision saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// Number of samples.
    pub samples: usize,
    /// Share of right answers, 0 to 1.
    pub accuracy: f64,
    /// 95 % Wilson confidence interval of the accuracy.
    pub ci95: [f64; 2],
    /// The same of the model before compression.
    pub original_accuracy: f64,
}

/// What made the model from its original.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The accuracy budget, 0 to 1.
    pub max_drop: f64,
    /// Seed of the data split.
    pub seed: u64,
    /// What was chosen for each layer.
    pub layers: Vec<RecipeLayer>,
}

/// The choice for one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeLayer {
    /// The layer's name in the user's file.
    pub name: String,
    /// Its precision.
    pub precision: String,
    /// Why, in words.
    pub reason: String,
}
