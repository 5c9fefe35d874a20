//! Compression inside an accuracy budget: pruning with training in the loop, 8-bit quantization, explanations.
//!
//! With samples to train on, [`compress`] first prunes weights, step by step, as long as what is left learns to do the same. Then it
//! observes the network on a part of the data, quantizes everything that its operators allow, and gives
//! precision back where the metric on a second part says so or where a layer measures slower than before. What
//! it reports comes from a third part that no decision saw.
//!
//! A [`Method`](method::Method) is two functions, what to observe and how to apply it; all methods share one
//! calibration run. The result is a graph in the one canonical form: explicit QuantizeLinear and DequantizeLinear
//! around floating-point operators.
#![forbid(unsafe_code)]

mod bias_correct;
mod calibrate;
mod dynamic;
mod error;
mod explain;
mod feed;
pub mod histogram;
mod journal;
pub mod layers;
mod measure;
pub mod method;
mod outcome;
mod outputs;
pub mod placement;
pub mod prune;
mod quantize;
pub mod range;
mod recipe;
mod reduce;
mod search;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod train_quantized;
mod tutor;
pub mod weights;

pub use calibrate::distributions;
pub use error::CompressError;
pub use explain::{LayerReport, LayerTimes, Precision, Reason};
pub use journal::forget;
pub use measure::{Evaluation, Latency, evaluate};
pub use outcome::{Measured, Outcome, SplitSizes, compress};
pub use outputs::outputs;
pub use recipe::{Format, Recipe, Trainings};
pub use reduce::Reduction;
pub use search::SearchStep;
pub use sora_data::Drop;
pub use tutor::Training;

use std::path::PathBuf;

use serde::Serialize;
use sora_kernels::Isa;

/// What to prefer where size and speed disagree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefer {
    /// No layer may be slower than before.
    #[default]
    Latency,
    /// Layers with weights stay small even where their 8-bit kernel is slower.
    Size,
}

/// How to compress.
#[derive(Clone, Debug)]
pub struct Options {
    /// How far the metric may fall, as a fraction: 0.01 is one point of accuracy.
    pub max_drop: f64,
    /// What to prefer where size and speed disagree.
    pub prefer: Prefer,
    /// Threads of every run; 0 means one per core.
    pub threads: usize,
    /// Chooses how the data is divided.
    pub seed: u64,
    /// Samples that run at once, unless the network fixes its batch.
    pub batch: usize,
    /// Instruction set of the kernels; `None` takes the one that `SORA_ISA` names, else the machine's best.
    pub isa: Option<Isa>,
    /// Whether quantized weights may have fewer than 8 bits where the budget allows. Their kernels stay the same; files that code
    /// what they store, as `.sora`, become smaller.
    pub fewer_bits: bool,
    /// What to do instead of a search.
    pub recipe: Option<Recipe>,
    /// What to train with while weights are pruned and quantized; without it, nothing is trained.
    pub training: Option<Training>,
    /// The folder where trainings are kept, so that the same compression continues from there; see [`forget`].
    pub checkpoint: Option<PathBuf>,
}

impl Default for Options {
    /// One point of accuracy, one thread, batches of 64.
    fn default() -> Self {
        Options {
            max_drop: 0.01,
            prefer: Prefer::Latency,
            threads: 1,
            seed: 0,
            batch: 64,
            isa: None,
            fewer_bits: false,
            recipe: None,
            training: None,
            checkpoint: None,
        }
    }
}

/// Is told how far the work is, and may stop it.
pub trait Progress: Sync {
    /// A part of the work begins, of `total` units if known.
    fn stage(&self, name: &str, total: Option<u64>);
    /// `n` more units of the current part are done.
    fn advance(&self, n: u64);
    /// Whether to stop, which gives [`CompressError::Cancelled`].
    fn cancelled(&self) -> bool;
}

/// Tells nobody and never stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _name: &str, _total: Option<u64>) {}

    fn advance(&self, _n: u64) {}

    fn cancelled(&self) -> bool {
        false
    }
}
