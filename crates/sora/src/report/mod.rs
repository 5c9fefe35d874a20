//! Reports of a compression and of a training: each one HTML file that needs nothing else.

mod history;
mod html;
mod page;

pub use history::history;
pub use html::html;

use serde::{Deserialize, Serialize};
use sora_compress::Robustness;

/// Everything that the report shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// File name of the original model.
    pub model: String,
    /// File names of the results.
    pub outputs: Vec<String>,
    /// Where the samples came from.
    pub data: String,
    /// How a sample becomes an input.
    pub preprocess: String,
    /// The accuracy budget, 0 to 1.
    pub max_drop: f64,
    /// What was asked for, in words.
    pub budget: String,
    /// Whether the result is inside the budget.
    pub met: bool,
    /// Why not, or what else a reader must know.
    pub note: Option<String>,
    /// What `before` and `after` measure: accuracy, or agreement with the original where there are no labels.
    pub metric: String,
    /// The original.
    pub before: Side,
    /// The result.
    pub after: Side,
    /// Accuracy lost on the samples that no decision saw, 0 to 1; negative when it rose.
    pub drop: f64,
    /// 95 % confidence interval of `drop`.
    pub drop_ci95: [f64; 2],
    /// Samples for calibration, for decisions, and for the report.
    pub split: [usize; 3],
    /// Samples for decisions that layers were tried on one by one.
    pub tried_samples: usize,
    /// The file that times were taken from, where they were not measured here.
    pub times_from: Option<String>,
    /// Instruction set that the times were taken with.
    pub isa: String,
    /// Threads that the times were taken with.
    pub threads: usize,
    /// Accuracy lost on the samples for decisions, 0 to 1.
    pub decision_drop: f64,
    /// The networks to pick from, this one among them; none where there was one alone.
    pub choices: Vec<Choice>,
    /// The layers in order of execution.
    pub layers: Vec<Layer>,
    /// What the search did, in words.
    pub steps: Vec<String>,
    /// Both models on corrupted samples, where that was asked for.
    pub robustness: Option<Robustness>,
    /// What graph optimization did: rule and how often.
    pub rewrites: Vec<(String, usize)>,
    /// The program that made the report, with its version.
    pub producer: String,
}

impl Report {
    /// What times were taken with, in words.
    pub fn machine(&self) -> String {
        match &self.times_from {
            Some(table) => format!("by the times of layers in {table}"),
            None => format!("{} thread(s), {}", self.threads, self.isa),
        }
    }

    /// The change of the metric in points: negative when it fell, and never minus zero.
    pub fn change(&self) -> f64 {
        0.0 - 100.0 * self.drop
    }
}

/// One of several networks to pick from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// File name.
    pub output: String,
    /// Accuracy lost on the samples that no decision saw, 0 to 1.
    pub drop: f64,
    /// 95 % confidence interval of `drop`.
    pub drop_ci95: [f64; 2],
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Median latency of one sample in milliseconds.
    pub median_ms: f64,
    /// Layers with weights in 8 bits.
    pub int8: usize,
    /// Layers with weights.
    pub layers: usize,
}

impl Choice {
    /// What a report says of its network.
    pub fn of(report: &Report) -> Choice {
        let weighted = || report.layers.iter().filter(|layer| !layer.tried.is_empty());
        Choice {
            output: report.outputs.first().cloned().unwrap_or_default(),
            drop: report.drop,
            drop_ci95: report.drop_ci95,
            bytes: report.after.bytes,
            median_ms: report.after.median_ms,
            int8: weighted().filter(|layer| layer.precision != "f32").count(),
            layers: weighted().count(),
        }
    }
}

/// One of the two models compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    /// Accuracy on the samples that no decision saw, 0 to 1.
    pub accuracy: f64,
    /// 95 % Wilson confidence interval of the accuracy.
    pub ci95: [f64; 2],
    /// Share of samples whose label is among the five best, where there are more than five classes.
    pub top5: Option<f64>,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Median latency of one sample in milliseconds.
    pub median_ms: f64,
}

/// One layer before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// Name in the user's file.
    pub name: String,
    /// Operator.
    pub op: String,
    /// `int8`, `int8-weights` or `f32`.
    pub precision: String,
    /// Signal-to-quantization-noise ratio of the layer's output in decibels; `None` where it is exact.
    pub sqnr_db: Option<f64>,
    /// Time in milliseconds in the original, as run by Sora.
    pub before_ms: Option<f64>,
    /// Time in milliseconds in the result.
    pub after_ms: Option<f64>,
    /// Bytes of weights in the original.
    pub before_bytes: u64,
    /// Bytes of weights in the result.
    pub after_bytes: u64,
    /// Share of the weights that is 0 in the result; `None` for layers without weights.
    pub zeros: Option<f64>,
    /// Bits of the levels of its weights, where they are quantized.
    pub weight_bits: Option<u32>,
    /// Why this precision, in words.
    pub reason: String,
    /// The same as a word for programs.
    pub reason_code: String,
    /// The formats that the search tried, in which the rest of the network stayed as it was.
    pub tried: Vec<Tried>,
    /// The rungs of the quantization ladder that were tried.
    pub rungs: Vec<Rung>,
    /// What forbids taking channels from it, where that was looked at.
    pub not_pruned: Option<String>,
}

/// A format of one layer, tried alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// `f32`, `int8`, `int8-by-rows` or `int8-weights`, perhaps with the bits of its weights.
    pub format: String,
    /// Signal to noise at the network's output, in decibels; `None` where nothing differs.
    pub output_sqnr_db: Option<f64>,
    /// Accuracy lost on some of the samples for decisions, 0 to 1.
    pub drop: f64,
    /// Time in milliseconds.
    pub ms: Option<f64>,
    /// Bytes of weights in the file.
    pub bytes: u64,
}

impl Tried {
    /// The figures as a clause.
    pub fn words(&self) -> String {
        let db = self.output_sqnr_db.map_or(String::new(), |db| format!(", {db:.1} dB at the output"));
        let ms = self.ms.map_or(String::new(), |ms| format!(", {ms:.4} ms"));
        format!("{}: {:+.2} points{db}{ms}, {} bytes", self.format, 0.0 - 100.0 * self.drop, self.bytes)
    }
}

/// What a rung of the quantization ladder did to one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rung {
    /// Its name.
    pub name: String,
    /// Signal to noise of the layer's own output without and with it, in decibels.
    pub sqnr_db: [f64; 2],
    /// Whether it lowered the network's drop, and so was kept.
    pub kept: bool,
}

impl Rung {
    /// The figures as a clause.
    pub fn words(&self) -> String {
        let [without, with] = self.sqnr_db;
        let kept = if self.kept { "kept" } else { "not kept" };
        format!("{}: from {without:.1} to {with:.1} dB at its output, {kept}", self.name)
    }
}

impl Layer {
    /// Its precision in words: `int8`, `f32`, or with coarser weights `int8, 5-bit weights`.
    pub fn format(&self) -> String {
        match self.weight_bits.filter(|&bits| bits < 8) {
            Some(bits) => format!("{}, {bits}-bit weights", self.precision),
            None => self.precision.clone(),
        }
    }
}
