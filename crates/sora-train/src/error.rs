//! What can go wrong.

use sora_ir::IrError;

/// Why a network could not be trained. Names are those of the user's file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TrainError {
    /// A graph is inconsistent.
    #[error(transparent)]
    Ir(#[from] IrError),
    /// A gradient would have to pass an operator that has none.
    #[error("node `{node}` ({op}): {why}; freeze what lies before it or replace it")]
    NotDifferentiable {
        /// Name of the node.
        node: String,
        /// Operator.
        op: String,
        /// What is missing.
        why: String,
    },
    /// Something other than floats was to be differentiated.
    #[error("`{value}` is {ty}; only floats have gradients")]
    NoFloats {
        /// Name of the value.
        value: String,
        /// Its type.
        ty: String,
    },
    /// A gradient was asked for while a shape is open.
    #[error("`{value}` is {ty}; gradients are made for concrete shapes")]
    OpenShape {
        /// Name of the value.
        value: String,
        /// Its type.
        ty: String,
    },
}
