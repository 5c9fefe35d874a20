//! The command line's grammar.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sora::compress::Bound;

/// Makes trained neural networks small and fast.
#[derive(Debug, Parser)]
#[command(name = "sora", version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show a model's operators, shapes, parameters, multiply-adds and size.
    Inspect(Inspect),
    /// Run a model on tensors from NumPy files.
    Run(Run),
    /// Measure a model's accuracy on a data set.
    Evaluate(Evaluate),
    /// Make a model smaller and faster inside an accuracy budget.
    Compress(Compress),
    /// Show one layer: what was chosen for it and why, and the distributions of its weights and activations.
    Explain(Explain),
    /// Train a network that a TOML file describes.
    Train(Train),
    /// Train a trained model further on other data, perhaps for other classes.
    FineTune(FineTune),
    /// Measure a model's latency on this machine.
    Bench(Bench),
    /// Convert between model formats, by file ending: .onnx, .sora, .txt (text form).
    Convert(Convert),
    /// Write a standard network with random weights, to measure speed with; without a name, list them.
    Zoo(Zoo),
}

impl Command {
    /// Whether the caller wants one JSON object on standard output.
    pub(super) fn json(&self) -> bool {
        match self {
            Command::Inspect(args) => args.json,
            Command::Run(_) | Command::Convert(_) => false,
            Command::Evaluate(args) => args.json,
            Command::Compress(args) => args.json,
            Command::Explain(args) => args.json,
            Command::Train(args) => args.run.json,
            Command::FineTune(args) => args.run.json,
            Command::Bench(args) => args.json,
            Command::Zoo(args) => args.json,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The model: .onnx, .sora or .txt
    pub(super) model: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
    /// Also list what graph optimization does to the model
    #[arg(long)]
    pub(super) explain: bool,
    /// Say of each node which kernel runs it, and whether and how it can be quantized
    #[arg(long)]
    pub(super) support: bool,
    /// Say what the model has otherwise than this one: sizes, inputs, outputs, nodes and weights by name
    #[arg(long, value_name = "OLD", conflicts_with_all = ["explain", "support", "shapes"])]
    pub(super) diff: Option<PathBuf>,
    /// Shape of an input as NAME=1x3x224x224, for what depends on it; else open extents count as 1
    #[arg(long = "shape", value_name = "NAME=DxD")]
    pub(super) shapes: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The model: .onnx, .sora or .txt
    pub(super) model: PathBuf,
    /// An input tensor as NAME=FILE.npy; repeat for each input
    #[arg(long = "input", value_name = "NAME=FILE.npy", required = true)]
    pub(super) inputs: Vec<String>,
    /// Where the outputs go, by name
    #[arg(long, value_name = "OUT.npz")]
    pub(super) output: PathBuf,
    #[command(flatten)]
    pub(super) engine: Engine,
}

#[derive(Debug, Args)]
pub(super) struct Evaluate {
    /// The model: .onnx, .sora or .txt
    pub(super) model: PathBuf,
    #[command(flatten)]
    pub(super) data: Data,
    #[command(flatten)]
    pub(super) robust: Robust,
    /// Also write the model's outputs for all samples, in order
    #[arg(long, value_name = "OUT.npz")]
    pub(super) outputs: Option<PathBuf>,
    #[command(flatten)]
    pub(super) engine: Engine,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Compress {
    /// The model: .onnx, .sora or .txt
    pub(super) model: PathBuf,
    #[command(flatten)]
    pub(super) data: Data,
    /// Accuracy that may be lost, as a share: 0.01 is one point of a hundred [default: 0.01; with a bound on time or size alone: what
    /// it takes]
    #[arg(long, value_parser = share)]
    pub(super) max_drop: Option<f64>,
    /// The most time that one sample may take, as 2.5ms, or as a share of the original's: 0.5x. The result loses as little accuracy
    /// as that allows
    #[arg(long, value_name = "MS|RATIO", value_parser = latency)]
    pub(super) max_latency: Option<Bound>,
    /// Choose for another machine, whose times of this model's layers `sora bench MODEL --table` wrote there, in place of measuring here;
    /// with --train only beside --prefer size
    #[arg(long = "for", value_name = "T.toml", conflicts_with = "recipe")]
    pub(super) table: Option<PathBuf>,
    /// The most bytes that the file may have, as 500kB, or as a share of the original's: 0.1x
    #[arg(long, value_name = "BYTES|RATIO", value_parser = size)]
    pub(super) max_size: Option<Bound>,
    /// Write up to N networks to pick from, none of which beats another in accuracy, size and time: OUT-1.sora and so on, each with
    /// its recipe
    #[arg(long, value_name = "N", conflicts_with = "recipe", value_parser = clap::value_parser!(u8).range(2..=64))]
    pub(super) pareto: Option<u8>,
    #[command(flatten)]
    pub(super) robust: Robust,
    /// Mean accuracy on corrupted samples that may be lost, a budget beside --max-drop
    #[arg(long, value_name = "SHARE", requires = "robust", value_parser = share)]
    pub(super) max_robust_drop: Option<f64>,
    /// What to prefer where speed and size disagree
    #[arg(long, value_enum, default_value_t = Prefer::Latency)]
    pub(super) prefer: Prefer,
    /// Also prune weights, as far as those that are left learn on these samples to do the same, and train the quantized network
    /// where rounding costs too much; --data stays unseen
    #[arg(long, value_name = "DATA")]
    pub(super) train: Option<PathBuf>,
    /// Passes over the samples of --train each time [default: 2, of few samples as many as make 500 steps]
    #[arg(long, requires = "train", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) epochs: Option<u32>,
    /// Change the samples of --train at random, as `augment` in this file of `sora train` says
    #[arg(long, value_name = "T.toml", requires = "train")]
    pub(super) augment: Option<PathBuf>,
    /// Learning rate of Adam with --train
    #[arg(long, default_value_t = 1e-3, requires = "train", value_parser = rate)]
    pub(super) rate: f64,
    /// Keep trainings and measured times in this folder; the same command continues from there when it was interrupted
    #[arg(long, value_name = "FOLDER", requires = "train")]
    pub(super) checkpoint: Option<PathBuf>,
    /// Do what a recipe says instead of searching: the file that --save-recipe wrote, or one of your own
    #[arg(long, value_name = "R.toml", conflicts_with_all = ["prefer", "epochs", "augment", "rate", "seed", "max_latency", "max_size"])]
    pub(super) recipe: Option<PathBuf>,
    /// Also write what was chosen as a recipe that gives the same result again
    #[arg(long, value_name = "R.toml")]
    pub(super) save_recipe: Option<PathBuf>,
    /// Where the result goes: .sora or .onnx (QDQ); repeat for both
    #[arg(short, long = "output", value_name = "OUT", required = true)]
    pub(super) output: Vec<PathBuf>,
    /// Also write a report that opens in any browser
    #[arg(long, value_name = "R.html")]
    pub(super) report: Option<PathBuf>,
    /// Seed of the split of the data into calibration, decision and report
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Also list what graph optimization did and what the search tried
    #[arg(long)]
    pub(super) explain: bool,
    #[command(flatten)]
    pub(super) parallel: Threads,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The model: .onnx, .sora or .txt
    pub(super) model: PathBuf,
    /// The layer, by the name that reports and `sora inspect --support` give it
    pub(super) layer: String,
    /// Samples whose activations are shown, as `sora evaluate` takes them
    #[arg(long, value_name = "DATA")]
    pub(super) data: Option<PathBuf>,
    /// How a sample becomes an input, as in `sora evaluate`
    #[arg(long, value_name = "SPEC", requires = "data")]
    pub(super) preprocess: Option<String>,
    /// The report or the JSON that `sora compress` wrote, of which is shown what else was tried for the layer
    #[arg(long, value_name = "R.html|R.json")]
    pub(super) report: Option<PathBuf>,
    /// How many of the samples
    #[arg(long, default_value_t = 256, requires = "data", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) samples: u32,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Train {
    /// What to train, on which data, how: see examples/fashion-mnist/train.toml. Paths in it count from its folder
    pub(super) config: PathBuf,
    /// Where the trained model goes, in place of what the file says: .onnx or .sora
    #[arg(short, long, value_name = "OUT")]
    pub(super) output: Option<PathBuf>,
    /// Print the network layer by layer instead of training it; needs no data
    #[arg(long)]
    pub(super) summary: bool,
    #[command(flatten)]
    pub(super) run: TrainingRun,
}

#[derive(Debug, Args)]
pub(super) struct TrainingRun {
    /// Begin anew even if there is a checkpoint to continue from
    #[arg(long)]
    pub(super) restart: bool,
    #[command(flatten)]
    pub(super) parallel: Threads,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct FineTune {
    /// The model: .onnx or .sora, of floats
    pub(super) model: PathBuf,
    #[command(flatten)]
    pub(super) data: Data,
    /// Where the trained model goes: .onnx or .sora
    #[arg(short, long, value_name = "OUT")]
    pub(super) output: PathBuf,
    /// Data that the trained model is measured on
    #[arg(long, value_name = "DATA")]
    pub(super) test: Option<PathBuf>,
    /// Share of the data that is kept from training; the weights of the epoch that predicts it best are the result
    #[arg(long, default_value_t = 0.1, value_parser = share)]
    pub(super) validation: f64,
    /// Passes over the data
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) epochs: u32,
    /// Samples of a step
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) batch: u32,
    /// Learning rate of Adam; it rises over the first tenth of the steps and falls along a cosine
    #[arg(long, default_value_t = 1e-3)]
    pub(super) rate: f64,
    /// Learning rate of all but a new last layer, as a share of the other one
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    pub(super) old_rate: f64,
    /// Parameters that stay as they are: names, in which * stands for any letters; repeat for several
    #[arg(long, value_name = "PATTERN")]
    pub(super) freeze: Vec<String>,
    /// Put a new last layer of so many classes in place of the old one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub(super) classes: Option<u32>,
    /// Batch normalization takes the statistics of each batch instead of those that it has
    #[arg(long)]
    pub(super) batch_statistics: bool,
    /// The order of the samples and the weights of a new layer follow from it
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Keep checkpoints here; the same command continues from there when it was interrupted
    #[arg(long, value_name = "FILE.npz")]
    pub(super) checkpoint: Option<PathBuf>,
    #[command(flatten)]
    pub(super) run: TrainingRun,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Prefer {
    /// No layer may become slower
    Latency,
    /// A layer may become slower where that makes the file smaller
    Size,
}

#[derive(Debug, Args)]
pub(super) struct Bench {
    /// The model: .onnx, .sora or .txt
    #[arg(required_unless_present_any = ["peak", "sparsity"])]
    pub(super) model: Option<PathBuf>,
    /// Extent of the symbolic first dimension of every input
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) batch: u32,
    /// Shape of an input as NAME=1x3x224x224; repeat for each input whose shape the file leaves open
    #[arg(long = "shape", value_name = "NAME=DxD")]
    pub(super) shapes: Vec<String>,
    /// Print the time of each step, and how close it comes to this machine's peak
    #[arg(long)]
    pub(super) profile: bool,
    /// Measure this machine's peaks: multiply-adds, memory, hand-off between threads; needs no model
    #[arg(long)]
    pub(super) peak: bool,
    /// Measure at which share of zeros layers of known networks get faster, and by how much; takes no model
    #[arg(long, conflicts_with_all = ["model", "profile", "peak", "tune", "table"])]
    pub(super) sparsity: bool,
    /// Measure which kernels are fastest for this model on this machine, and write them to a file for --tuning
    #[arg(long, requires_all = ["model", "output"], conflicts_with_all = ["profile", "peak", "tuning"])]
    pub(super) tune: bool,
    /// Time the model's layers in f32 and in int8, and write that to a file with which `sora compress --for` chooses for this machine
    #[arg(long, requires_all = ["model", "output"], conflicts_with_all = ["profile", "peak", "tune"])]
    pub(super) table: bool,
    /// Where the choices of --tune or the times of --table go
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Seconds to measure for, after warming up
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub(super) seconds: f64,
    #[command(flatten)]
    pub(super) engine: Engine,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Convert {
    /// The model to read
    pub(super) input: PathBuf,
    /// The file to write
    pub(super) output: PathBuf,
    /// Optimize the graph and keep the weights packed for this machine, too: the .sora file starts faster and is
    /// about twice as large. Another machine packs them anew
    #[arg(long)]
    pub(super) pack: bool,
}

#[derive(Debug, Args)]
pub(super) struct Zoo {
    /// The network to write
    #[arg(requires = "output")]
    pub(super) name: Option<String>,
    /// The file to write: .onnx, .sora or .txt
    #[arg(short, long, value_name = "OUT", requires = "name")]
    pub(super) output: Option<PathBuf>,
    /// Seed of the weights: the same seed writes the same file
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Fix the batch, for tools that take no open extent; default: any batch
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) batch: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Data {
    /// Image folder (class = folder), .npz (x, y), .csv[.gz], or IDX folder
    #[arg(long, value_name = "DATA")]
    pub(super) data: PathBuf,
    /// How a sample becomes an input: text such as resize=256,crop=224,layout=nchw,scale=1/255, or a .toml
    /// file with the same keys. Default: what the model file says, else what its input shape implies
    #[arg(long, value_name = "SPEC")]
    pub(super) preprocess: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Robust {
    /// Also measure on corrupted samples: pictures with 15 common corruptions, sounds with noise and reverberation, texts
    /// with typos, at five severities each
    #[arg(long)]
    pub(super) robust: bool,
    /// Samples for each corruption and severity
    #[arg(long, default_value_t = 500, value_name = "N", requires = "robust", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) robust_samples: u32,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Threads {
    /// Threads to run the network with
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) threads: u16,
}

#[derive(Debug, Args)]
pub(super) struct Engine {
    #[command(flatten)]
    pub(super) parallel: Threads,
    /// What products of real numbers multiply: f32, or bf16 with sums in f32
    #[arg(long, value_name = "f32|bf16", default_value_t)]
    pub(super) precision: sora::exec::Precision,
    /// Kernel choices that `sora bench --tune` wrote on this machine [default: the file that SORA_TUNE names]
    #[arg(long, value_name = "FILE")]
    pub(super) tuning: Option<PathBuf>,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

/// A number behind which one of these units stands, or `x`: a share of the original's.
fn bound(text: &str, units: &[(&str, f64)]) -> Option<Bound> {
    let number =
        |text: &str| text.trim().parse::<f64>().ok().filter(|value| *value > 0.0 && value.is_finite());
    if let Some(share) = text.strip_suffix('x').and_then(number) {
        return Some(Bound::Share(share));
    }
    let of = |(unit, factor): &(&str, f64)| Some(Bound::Value(factor * number(text.strip_suffix(unit)?)?));
    units.iter().find_map(of)
}

fn latency(text: &str) -> Result<Bound, String> {
    let found = bound(text, &[("ms", 1.0), ("us", 1e-3), ("", 1.0)]);
    found
        .ok_or_else(|| "expected milliseconds as 2.5ms, or a share of the original's time as 0.5x".to_owned())
}

fn size(text: &str) -> Result<Bound, String> {
    let found = bound(text, &[("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("B", 1.0), ("", 1.0)]);
    found.ok_or_else(|| "expected bytes as 500kB, or a share of the original's size as 0.1x".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number above 0".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 3600.0 => Ok(value),
        _ => Err("expected a number of seconds above 0 and up to 3600".to_owned()),
    }
}
