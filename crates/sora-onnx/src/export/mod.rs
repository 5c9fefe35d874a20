//! From a graph to an ONNX model.

mod control;
mod file;
mod function;
mod integer;
mod node;
mod operators;
mod quantize;
mod vision;
mod write;

use sora_ir::Graph;

pub use file::{Export, save, to_bytes};

use crate::About;
use crate::error::OnnxError;
use crate::import::MAX_OPSET;

/// The domain of onnxruntime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// How a model is written.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Opset of the default domain, from 17 on; `None` takes the oldest that is not below `opset_from` and has the
    /// graph's operators.
    pub opset: Option<i64>,
    /// The opset that the graph was read from: it is kept where it is one that can be written, or raised.
    pub opset_from: i64,
    /// What the file says of itself.
    pub about: About,
    /// Metadata, kept in this order.
    pub metadata: Vec<(String, String)>,
    /// Constants of at least this many bytes go to a second file `NAME.data` beside the model; `None` does so,
    /// from 1024 bytes on, only with models that exceed the format's limit of 2 GB.
    pub external_above: Option<usize>,
}

impl Default for ExportOptions {
    fn default() -> Self {
        ExportOptions {
            opset: None,
            opset_from: BASE_OPSET,
            about: About {
                producer: "sora".to_owned(),
                producer_version: env!("CARGO_PKG_VERSION").to_owned(),
                ..About::default()
            },
            metadata: Vec::new(),
            external_above: None,
        }
    }
}

/// The opset written by default, and the oldest that can be chosen.
const BASE_OPSET: i64 = 17;

/// The opset for a graph: the wanted one if it has all the graph's operators, else the oldest that has.
fn choose_opset(graph: &Graph, options: &ExportOptions) -> Result<i64, OnnxError> {
    let needs = graph.nodes().map(|(_, node)| (operators::since(graph, node), node));
    let most = needs.max_by_key(|(opset, _)| *opset);
    let needed = most.as_ref().map_or(BASE_OPSET, |(opset, _)| *opset);
    match (options.opset, most) {
        (Some(wanted), _) if !(BASE_OPSET..=MAX_OPSET).contains(&wanted) => Err(OnnxError::Version(format!(
            "opset {wanted} cannot be written, only {BASE_OPSET} to {MAX_OPSET}"
        ))),
        (Some(wanted), Some((needed, node))) if wanted < needed => Err(OnnxError::Export {
            node: node.name.clone(),
            why: format!("{} needs opset {needed}, {wanted} was asked for", node.op.label()),
        }),
        (Some(wanted), _) => Ok(wanted),
        (None, _) => Ok(needed.max(options.opset_from.clamp(BASE_OPSET, MAX_OPSET))),
    }
}

/// The version of the file format that came with an opset: readers of that opset understand it.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}
