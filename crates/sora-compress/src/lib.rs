//! Compression inside an accuracy budget: pruning with training in the loop, 8-bit quantization, explanations.
//!
//! With samples to train on, [`compress`] first prunes weights, step by step, as long as what is left learns to do the same. Then it
//! observes the network on a part of the data, quantizes everything that its operators allow, climbs the [`ladder`] of methods that
//! make rounding cost less while the budget is exceeded, and gives
//! precision back where the metric on a second part says so or where a layer measures slower than before. What
//! it reports comes from a third part that no decision saw.
//!
//! A [`Method`](method::Method) is two functions, what to observe and how to apply it; all methods share one
//! calibration run. The result is a graph in the one canonical form: explicit QuantizeLinear and DequantizeLinear
//! around floating-point operators.
#![forbid(unsafe_code)]

mod bias_correct;
mod bounds;
mod calibrate;
pub mod choose;
mod dynamic;
mod error;
mod explain;
mod feed;
pub mod histogram;
mod journal;
pub mod ladder;
mod latency;
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
mod refine;
mod robust;
mod search;
mod sensitivity;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod train_quantized;
mod tutor;
pub mod weights;
mod weights_only;

pub use calibrate::distributions;
pub use error::CompressError;
pub use explain::{LayerReport, LayerTimes, Precision, Reason};
pub use journal::forget;
pub use ladder::{LayerTrial, RungTrial};
pub use latency::LatencyTable;
pub use measure::{Evaluation, Latency, evaluate};
pub use outcome::{Measured, Outcome, SplitSizes, compress, pareto};
pub use outputs::outputs;
pub use recipe::{Format, Recipe, Trainings};
pub use reduce::Reduction;
pub use robust::{Corrupted, Robust, Robustness, robustness};
pub use search::SearchStep;
pub use sensitivity::Alternative;
pub use sora_data::Drop;
pub use tutor::Training;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use sora_ir::Graph;
use sora_kernels::Isa;

/// What to prefer where size and speed disagree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefer {
    /// No layer may be slower than before.
    #[default]
    Latency,
    /// Tables stay small even where reading them is slower, and layers in 8 bits even where the network is not faster for them.
    Size,
}

/// A limit on what a network takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// In ms.
    Value(f64),
    /// As a share of what the original takes.
    Share(f64),
}

/// Says how many bytes the file of a network has.
#[derive(Clone)]
pub struct FileSize(pub Arc<dyn Fn(&Graph) -> u64 + Send + Sync>);

impl std::fmt::Debug for FileSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FileSize")
    }
}

/// How to compress.
#[derive(Clone, Debug)]
pub struct Options {
    /// How far the metric may fall, as a fraction: 0.01 is one point of accuracy.
    pub max_drop: f64,
    /// The most time that one run may take. With this bound or the next one, the result is the network of least drop within them.
    pub max_latency: Option<Bound>,
    /// The most bytes that the file may have.
    pub max_bytes: Option<u64>,
    /// What makes a file of the result, to count its bytes; without it, bytes of constants count.
    pub file_size: Option<FileSize>,
    /// Times of layers on the machine that the result is for; without them, times are measured here.
    pub table: Option<LatencyTable>,
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
    /// What to measure on corrupted samples, and how much may be lost there.
    pub robust: Option<Robust>,
}

impl Default for Options {
    /// One point of accuracy, one thread, batches of 64.
    fn default() -> Self {
        Options {
            max_drop: 0.01,
            max_latency: None,
            max_bytes: None,
            file_size: None,
            table: None,
            prefer: Prefer::Latency,
            threads: 1,
            seed: 0,
            batch: 64,
            isa: None,
            fewer_bits: false,
            recipe: None,
            training: None,
            checkpoint: None,
            robust: None,
        }
    }
}

impl Options {
    /// Whether there is a bound on time or size.
    pub fn is_bounded(&self) -> bool {
        self.max_latency.is_some() || self.max_bytes.is_some()
    }

    /// Which bound these figures exceed: times of the original and of the result in ms, bytes of the result.
    pub(crate) fn exceeded(&self, [before, after]: [f64; 2], bytes: u64) -> Option<String> {
        let most = self.max_latency.map(|bound| match bound {
            Bound::Value(ms) => ms,
            Bound::Share(share) => share * before,
        });
        if let Some(most) = most.filter(|most| after > *most) {
            return Some(format!("it takes {after:.4} ms, more than {most:.4}"));
        }
        let most = self.max_bytes.filter(|most| bytes > *most)?;
        Some(format!("it has {bytes} bytes, more than {most}"))
    }

    /// The size in bytes that bounds speak of.
    pub(crate) fn bytes(&self, graph: &Graph) -> u64 {
        match &self.file_size {
            Some(FileSize(size)) => size(graph),
            None => outcome::weight_bytes(graph) as u64,
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
