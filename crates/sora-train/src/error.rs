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
    /// A name that is in no table.
    #[error("there is no {what} `{name}`; {hint}")]
    Unknown {
        /// What kind of thing it should name.
        what: &'static str,
        /// The name.
        name: String,
        /// The nearest name, or all.
        hint: String,
    },
    /// A sample of a class that the network does not know.
    #[error("the data has class {label}, but the network tells {classes} apart, from 0 on")]
    Class {
        /// The class.
        label: usize,
        /// Those of the network.
        classes: usize,
    },
    /// The network cannot be trained as it is.
    #[error("{0}")]
    Network(String),
    /// A checkpoint that does not belong to this training.
    #[error("the checkpoint does not fit this training: {0}")]
    Checkpoint(String),
    /// The loss is no number any more.
    #[error("the loss is {loss} at step {step}; what is first not finite is {first}")]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// The loss.
        loss: f64,
        /// What was not finite first: a parameter or a node.
        first: String,
    },
    /// A program could not be compiled or run.
    #[error(transparent)]
    Exec(#[from] sora_exec::ExecError),
    /// Data could not be read.
    #[error(transparent)]
    Data(#[from] sora_data::DataError),
}

impl From<sora_ir::Mismatch> for TrainError {
    fn from(why: sora_ir::Mismatch) -> Self {
        TrainError::Network(why.0)
    }
}
