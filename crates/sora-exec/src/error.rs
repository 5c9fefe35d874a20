//! What can go wrong when a graph is compiled or run.

use sora_ir::IrError;
use sora_kernels::IsaError;

/// Why a program could not be compiled or run. Names are those of the user's file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// The chosen instruction set does not exist or does not run here; lists those that do.
    #[error("{0}")]
    Isa(IsaError),
    /// The graph is inconsistent or does not take these inputs.
    #[error(transparent)]
    Ir(#[from] IrError),
    /// A pass over the graph failed.
    #[error("optimizing the graph: {0}")]
    Rewrite(String),
    /// An input of the graph was not given.
    #[error("input `{name}` ({expected}) is missing")]
    MissingInput {
        /// Name of the input.
        name: String,
        /// Its type.
        expected: String,
    },
    /// A name was given that is no input of the graph.
    #[error("there is no input `{name}`; the inputs are: {inputs}")]
    UnknownInput {
        /// Name given.
        name: String,
        /// Names that exist.
        inputs: String,
    },
    /// A tensor does not fit an input.
    #[error("input `{name}` takes {expected}, found {found}")]
    Input {
        /// Name of the input.
        name: String,
        /// Its type.
        expected: String,
        /// Type given.
        found: String,
    },
    /// Intermediate tensors do not fit memory.
    #[error("the network's intermediate tensors need {bytes} bytes, more than there is memory")]
    Memory {
        /// Bytes needed.
        bytes: usize,
    },
    /// A step failed on these inputs, for example by an index out of bounds.
    #[error("step `{step}`: {why}")]
    Step {
        /// Name of the step.
        step: String,
        /// What went wrong.
        why: String,
    },
    /// A tensor cannot stay in memory between runs.
    #[error("state `{name}`: {why}")]
    State {
        /// Name of the input.
        name: String,
        /// What does not fit.
        why: String,
    },
    /// Worker threads could not be started.
    #[error("cannot start {threads} threads: {why}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// The operating system's reason.
        why: String,
    },
}

impl From<IsaError> for ExecError {
    fn from(error: IsaError) -> Self {
        ExecError::Isa(error)
    }
}
