//! What can be wrong with an ONNX file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use sora_ir::IrError;

use crate::proto::{AttributeProto, NodeProto};

/// One part of a model that cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIssue {
    /// Name of the node, initializer, input or output.
    pub node: String,
    /// Operator, with its domain unless that is ONNX's own; or `Initializer`, `Input`, `Output`.
    pub op: String,
    /// The attribute that is to blame; empty where none is.
    pub attribute: String,
    /// What is wrong.
    pub why: String,
    /// What the user can do.
    pub hint: String,
}

impl fmt::Display for NodeIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`: {} ({})", self.op, self.node, self.why, self.hint)
    }
}

/// Why a file could not be imported or exported.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The operating system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// The bytes are no ONNX model.
    #[error("this is not a valid ONNX model: {0}")]
    NotOnnx(String),
    /// The model is readable but uses a version that Sora does not know.
    #[error("unsupported model: {0}")]
    Version(String),
    /// Nodes, initializers, inputs or outputs that are broken or unsupported: all of them.
    #[error("{} of the model's nodes cannot be imported:\n{}", .0.len(), list(.0))]
    Nodes(Vec<NodeIssue>),
    /// The graph as a whole is inconsistent.
    #[error(transparent)]
    Graph(#[from] IrError),
    /// A node has no form in ONNX.
    #[error("node `{node}` cannot be written as ONNX: {why}")]
    Export {
        /// Name of the node.
        node: String,
        /// Reason.
        why: String,
    },
}

impl OnnxError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        OnnxError::Io { path: path.to_owned(), source }
    }
}

fn list(issues: &[NodeIssue]) -> String {
    let lines: Vec<String> = issues.iter().map(|issue| format!("  {issue}")).collect();
    lines.join("\n")
}

/// Why one node, initializer or input cannot be imported; becomes a [`NodeIssue`] once its name is known.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) why: String,
    pub(crate) hint: String,
}

impl Refusal {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Refusal { why: why.into(), hint: String::new() }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Refusal { hint: hint.into(), ..self }
    }

    pub(crate) fn at(self, node: &str, op: &str) -> NodeIssue {
        let (node, op) = (node.to_owned(), op.to_owned());
        let hint = match self.hint.is_empty() {
            true => "export the model again, or simplify it with onnxsim".to_owned(),
            false => self.hint,
        };
        NodeIssue { node, op, attribute: String::new(), why: self.why, hint }
    }

    /// As [`Refusal::at`], of a node of the file: the reason tells which of its attributes is to blame, by naming it. Names
    /// that are words of prose as well, which are short, count only at the beginning and before a value.
    pub(crate) fn of(self, proto: &NodeProto, node: &str, op: &str) -> NodeIssue {
        const SHORT: usize = 3;
        let words = || self.why.split(|c: char| !c.is_alphanumeric() && c != '_');
        let names = |attribute: &&AttributeProto| {
            let name = attribute.name.as_str();
            let word =
                if name.len() > SHORT { words().any(|w| w == name) } else { words().next() == Some(name) };
            !name.is_empty() && (word || self.why.contains(&format!(" {name}=")))
        };
        let found = proto.attribute.iter().find(names).map(|attribute| attribute.name.clone());
        match found {
            None => self.at(node, op),
            Some(attribute) if self.hint.is_empty() => {
                let hint = format!("export the model with another {attribute}");
                NodeIssue { attribute, ..self.hint(hint).at(node, op) }
            }
            Some(attribute) => NodeIssue { attribute, ..self.at(node, op) },
        }
    }
}

impl From<IrError> for Refusal {
    fn from(error: IrError) -> Self {
        match error {
            IrError::Infer { inputs, why, .. } => {
                Refusal::new(format!("{why} [inputs {}]", inputs.join(", ")))
            }
            other => Refusal::new(other.to_string()),
        }
    }
}
