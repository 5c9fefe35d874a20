//! How a program is compiled and run.

use std::sync::Arc;

use sora_kernels::{Family, Isa, Kernels, select};

use crate::{ExecError, Tuning};

/// What products of real operands multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// The operands as they are, in `f32`.
    #[default]
    F32,
    /// Operands rounded to bfloat16, eight significant bits; products are summed in `f32`. Twice as fast where the
    /// processor multiplies bf16 ([`Isa::Avx512Bf16`]); elsewhere the same rounded operands are multiplied in
    /// `f32`, so that results agree, which gains nothing.
    ///
    /// Convolutions and matrix products with constant weights are such products; those of recurrent layers and
    /// between computed matrices stay `f32`, and so do the weights of depthwise convolutions that slide along the
    /// rows of images. Between two products values are stored rounded.
    Bf16,
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::Bf16),
            _ => Err(format!("unknown precision `{text}`; there are f32 and bf16")),
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }
}

/// How a program is compiled and run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Instruction set of the kernels; `None` takes the one that `SORA_ISA` names, else the machine's best.
    pub isa: Option<Isa>,
    /// What products of real operands multiply.
    pub precision: Precision,
    /// Threads that share the work of one run, at most one per core; 0 means one per core.
    pub threads: usize,
    /// Runs every operator on the reference evaluator: slow, and right by definition.
    pub reference_only: bool,
    /// Runs the optimization passes of `sora-rewrite` before lowering.
    pub optimize: bool,
    /// What of these passes is left out; see [`sora_rewrite::Options::without`].
    pub without: Vec<String>,
    /// Kernels measured to be faster than what the cost model takes; ignored where measured on another machine.
    pub tuning: Option<Arc<Tuning>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            isa: None,
            precision: Precision::F32,
            threads: 1,
            reference_only: false,
            optimize: true,
            without: Vec::new(),
            tuning: None,
        }
    }
}

/// Columns and depths of the blocks of weights whose zeros products of bytes skip, with these options.
///
/// # Errors
/// [`ExecError::Isa`] for an instruction set that does not run here.
pub fn zero_block(options: &Options) -> Result<[usize; 2], ExecError> {
    let row = select(options.kernels()?, Family::GemmU8I8);
    Ok(row.map_or([1, 1], |row| [row.tile.nr, row.tile.k_granule]))
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
