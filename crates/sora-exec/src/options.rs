//! How a program is compiled and run.

use sora_kernels::{Isa, Kernels};

use crate::ExecError;

/// How a program is compiled and run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Instruction set of the kernels; `None` takes the one that `SORA_ISA` names, else the machine's best.
    pub isa: Option<Isa>,
    /// Threads that share the work of one run, at most one per core; 0 means one per core.
    pub threads: usize,
    /// Runs every operator on the reference evaluator: slow, and right by definition.
    pub reference_only: bool,
    /// Runs the optimization passes of `sora-rewrite` before lowering.
    pub optimize: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { isa: None, threads: 1, reference_only: false, optimize: true }
    }
}

impl Options {
    /// The kernels to use.
    ///
    /// # Errors
    /// [`ExecError::Isa`] when the instruction set is unknown or does not run here.
    pub(crate) fn kernels(&self) -> Result<Kernels, ExecError> {
        Ok(match self.isa {
            Some(isa) => Kernels::for_isa(isa)?,
            None => Kernels::selected()?,
        })
    }
}
