//! What can be wrong with a graph.

/// An inconsistency of a graph, or tensors that do not fit it. Names are those of the user's file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IrError {
    /// An operator refuses its inputs.
    #[error("node `{node}` ({op}) with inputs [{}]: {why}", .inputs.join(", "))]
    Infer {
        /// Name of the node.
        node: String,
        /// Operator.
        op: String,
        /// Input types, printed.
        inputs: Vec<String>,
        /// What does not fit.
        why: String,
    },
    /// Nodes depend on each other in a circle.
    #[error("node `{0}` depends on its own output")]
    Cycle(String),
    /// A value is used but nothing defines it.
    #[error("value `{0}` is used but nothing defines it")]
    Dangling(String),
    /// A node has another number of outputs than its operator.
    #[error("node `{node}` has {found} outputs, its operator {expected}")]
    OutputCount {
        /// Name of the node.
        node: String,
        /// Outputs of the operator.
        expected: usize,
        /// Outputs of the node.
        found: usize,
    },
    /// A stored type is not the inferred one.
    #[error("value `{value}` is declared {declared} but is {inferred}")]
    Type {
        /// Name of the value.
        value: String,
        /// Stored type.
        declared: String,
        /// Inferred type.
        inferred: String,
    },
    /// Two values or outputs have one name.
    #[error("the name `{0}` is used twice")]
    DuplicateName(String),
    /// A name that the graph does not have.
    #[error("there is no {0}")]
    Unknown(String),
    /// A tensor does not fit the input.
    #[error("input `{input}` takes {expected}, found {found}")]
    InputShape {
        /// Name of the input.
        input: String,
        /// Type of the input.
        expected: String,
        /// Shape or type given.
        found: String,
    },
    /// Evaluation of a node failed.
    #[error("node `{node}` ({op}): {why}")]
    Eval {
        /// Name of the node.
        node: String,
        /// Operator.
        op: String,
        /// What does not fit.
        why: String,
    },
}
