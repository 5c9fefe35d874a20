//! What a model's file says of itself.

use crate::proto::ModelProto;

/// What a file says of itself, beside its metadata: kept when it is written again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The tool that the model comes from.
    pub producer: String,
    /// Version of that tool.
    pub producer_version: String,
    /// Reverse domain name that the graph's name belongs to.
    pub domain: String,
    /// Version of the model.
    pub version: i64,
    /// Documentation of the model.
    pub doc: String,
    /// Documentation of the graph.
    pub graph_doc: String,
    /// Documentation of inputs and outputs, by name, where there is one.
    pub value_docs: Vec<(String, String)>,
}

impl About {
    pub(crate) fn of(model: &ModelProto) -> Self {
        let graph = model.graph.as_ref();
        let values = graph.iter().flat_map(|graph| graph.input.iter().chain(&graph.output));
        let documented = values.filter(|value| !value.doc_string.is_empty());
        About {
            producer: model.producer_name.clone(),
            producer_version: model.producer_version.clone(),
            domain: model.domain.clone(),
            version: model.model_version,
            doc: model.doc_string.clone(),
            graph_doc: graph.map(|graph| graph.doc_string.clone()).unwrap_or_default(),
            value_docs: documented.map(|value| (value.name.clone(), value.doc_string.clone())).collect(),
        }
    }
}
