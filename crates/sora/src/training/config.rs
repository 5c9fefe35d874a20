//! The file that says what to train.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sora_data::{
    Augmentation, Dataset, Loader, LoaderOptions, OpenOptions, Order, Preprocess, SplitOptions, TextInput,
    TextOptions, Texts, Tokenizer, nearest,
};
use sora_train::{
    FineTuning, Head, Loss, MixedPrecision, Optimizer, Plan, Pruning, Recipe, TrainError, Trainable,
};

use super::network::NetworkSpec;
use crate::layers::Network;
use crate::{Failure, Metadata, Model};

/// A training. Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the trained model goes: .onnx or .sora.
    pub output: PathBuf,
    /// Where the history goes: .json, or .html for a page of curves.
    pub history: Option<PathBuf>,
    /// Weights, the order of the samples and dropout follow from it.
    #[serde(default)]
    pub seed: u64,
    /// The samples.
    pub data: Data,
    /// A network of layers.
    pub network: Option<NetworkSpec>,
    /// A network that was trained before.
    pub model: Option<Imported>,
    /// How to train it.
    pub training: Training,
    /// The loss: `name` and its numbers. Default: `sparse_categorical_crossentropy`.
    #[serde(default = "default_loss")]
    pub loss: Named,
    /// What is trained, where it is not the first output for the class of each sample with that loss alone.
    #[serde(default)]
    pub outputs: Vec<OutputSpec>,
    /// The optimizer: `name`, `rate` and its numbers.
    pub optimizer: OptimizerSpec,
    /// The schedule of the learning rate: `name` and its numbers. Default: `constant`.
    #[serde(default = "default_schedule")]
    pub schedule: Schedule,
    /// The weights that become 0 on the way.
    pub pruning: Option<Pruning>,
    /// When to end early.
    pub early_stopping: Option<Stopping>,
    /// Where to keep checkpoints; without it there are none.
    pub checkpoint: Option<Checkpoints>,
}

/// The samples of a training.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// What to train on, as `sora evaluate --data` takes it.
    pub train: PathBuf,
    /// The share of these samples, by class, that is kept from training and looked at behind every epoch.
    pub validation: Option<f64>,
    /// What the trained network is measured on.
    pub test: Option<PathBuf>,
    /// How a sample becomes an input, as `--preprocess` takes it.
    pub preprocess: Option<String>,
    /// How texts become numbers, where the samples are texts.
    pub text: Option<TextSpec>,
    /// Random changes of the samples to train on: `name` and its numbers, in order.
    #[serde(default)]
    pub augment: Vec<Augmentation>,
    /// Their order in an epoch.
    #[serde(default)]
    pub order: Order,
    /// Whether samples that cannot be read are left out instead of ending the training.
    #[serde(default)]
    pub skip_unreadable: bool,
    /// Threads that prepare batches; 0: one for each core.
    #[serde(default)]
    pub workers: usize,
}

/// Texts of a `.jsonl` or `.csv` file as tokens.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSpec {
    /// Words that are told apart: so many of the most frequent ones of the texts to train on.
    pub vocabulary: Option<usize>,
    /// What makes tokens of texts instead: a `tokenizer.json`, or a list of words.
    pub tokenizer: Option<PathBuf>,
    /// Tokens of a text that are kept; shorter ones are filled up.
    pub length: usize,
    /// The column or key of the text.
    #[serde(default = "text")]
    pub column: String,
    /// The column or key of the label.
    #[serde(default = "label")]
    pub label: String,
}

/// An output that is trained.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// The part of the network, or the output of a model, that gives it.
    pub part: String,
    /// The array of the data that it is compared with; by default the class of each sample, or `y` for losses that compare numbers.
    pub target: Option<String>,
    /// Its loss; by default that of the configuration.
    pub loss: Option<Named>,
    /// Its share of the loss of the network.
    #[serde(default = "whole")]
    pub weight: f64,
}

/// A network that was trained before.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imported {
    /// The model: .onnx or .sora.
    pub file: PathBuf,
    /// Parameters that stay: names, in which `*` stands for any letters.
    #[serde(default)]
    pub freeze: Vec<String>,
    /// Classes of a new last layer in place of the old one.
    pub classes: Option<usize>,
    /// The learning rate of all but the new layer, as a share.
    #[serde(default = "whole")]
    pub rate: f64,
    /// Whether batch normalization takes the statistics of each batch instead of those that it has.
    #[serde(default)]
    pub batch_statistics: bool,
}

/// How long and in what steps to train. Default: one epoch in batches of 32.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Passes over the samples.
    pub epochs: u32,
    /// Samples of a step.
    pub batch: usize,
    /// The largest norm that all gradients together may have.
    pub clip_norm: Option<f64>,
    /// The share of batch normalization's running averages that a step keeps.
    #[serde(default = "momentum")]
    pub batch_norm_momentum: f64,
    /// The share that a moving average of the weights, which is then the result, keeps in a step.
    pub average: Option<f64>,
    /// The share of the epochs behind which weights begin to go into their mean, which is then the result.
    pub swa: Option<f64>,
    /// Steps whose gradients are averaged before weights change.
    #[serde(default = "one")]
    pub accumulate: u32,
    /// The precision of products.
    #[serde(default)]
    pub precision: MixedPrecision,
    /// What the loss of a sample counts, by its class.
    pub class_weights: Option<Vec<f64>>,
}

impl Default for Training {
    fn default() -> Self {
        Training {
            epochs: 1,
            batch: 32,
            clip_norm: None,
            batch_norm_momentum: momentum(),
            average: None,
            swa: None,
            accumulate: one(),
            precision: MixedPrecision::default(),
            class_weights: None,
        }
    }
}

/// A row of a table, with its numbers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Named {
    /// The row.
    pub name: String,
    /// Its numbers.
    #[serde(flatten)]
    pub numbers: BTreeMap<String, f64>,
}

impl Named {
    /// A row with these numbers.
    pub fn of(name: &str, numbers: &[(&str, f64)]) -> Self {
        let numbers = numbers.iter().map(|&(name, number)| (name.to_owned(), number)).collect();
        Named { name: name.to_owned(), numbers }
    }
}

/// A schedule, with its numbers.
pub type Schedule = Named;

/// An optimizer, with its numbers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OptimizerSpec {
    /// The row.
    pub name: String,
    /// The learning rate.
    pub rate: f64,
    /// Its numbers.
    #[serde(flatten)]
    pub numbers: BTreeMap<String, f64>,
}

/// When to end early.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stopping {
    /// Epochs to wait for a better validation; the best weights are kept.
    pub patience: u32,
}

/// Where to keep checkpoints.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoints {
    /// The file.
    pub path: PathBuf,
    /// Steps between two, besides the one behind every epoch.
    pub every: Option<u64>,
}

fn whole() -> f64 {
    1.0
}

fn one() -> u32 {
    1
}

fn text() -> String {
    "text".to_owned()
}

fn label() -> String {
    "label".to_owned()
}

fn momentum() -> f64 {
    0.99
}

fn default_loss() -> Named {
    Named::of("sparse_categorical_crossentropy", &[])
}

fn default_schedule() -> Named {
    Named::of("constant", &[])
}

/// What [`sora_train::fit`] takes.
#[derive(Debug)]
pub struct Prepared {
    /// The network.
    pub network: Trainable,
    /// How its weights change.
    pub recipe: Recipe,
    /// How long.
    pub plan: Plan,
    /// All samples to train with.
    pub data: Dataset,
    /// Those to train on.
    pub train: Loader,
    /// Which of them to look at behind every epoch.
    pub validation: Vec<usize>,
    /// How they become inputs.
    pub preprocess: Preprocess,
    /// What the file of an imported model says beside its graph.
    pub metadata: Metadata,
}

impl Config {
    /// Reads a configuration; its paths then count from where the caller is.
    ///
    /// # Errors
    /// [`Failure`] naming the line, and for unknown keys and names the nearest that there is.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let text =
            std::fs::read_to_string(path).map_err(|e| Failure::io("read the configuration", path, &e))?;
        let mut config = Self::parse(&text).map_err(|(what, line, hint)| {
            let place = line.map_or(String::new(), |line| format!(", line {line}"));
            Failure::new(what, format!("{}{place}", path.display()), hint)
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let below = |path: &mut PathBuf| *path = folder.join(&path);
        config.model.iter_mut().for_each(|model| below(&mut model.file));
        below(&mut config.output);
        below(&mut config.data.train);
        config.data.test.iter_mut().for_each(below);
        config.data.text.iter_mut().flat_map(|text| &mut text.tokenizer).for_each(below);
        config.history.iter_mut().for_each(below);
        config.checkpoint.iter_mut().for_each(|checkpoint| below(&mut checkpoint.path));
        Ok(config)
    }

    /// Reads the text of a configuration; an error is what is wrong, its line and what to do.
    fn parse(text: &str) -> Result<Self, (String, Option<usize>, String)> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1));
            let message = error.message();
            (message.to_owned(), line, hint(message))
        })
    }

    /// Opens the data and builds the network.
    ///
    /// # Errors
    /// [`Failure`] when the data cannot be read, a layer does not fit, or a name or number is unknown.
    pub fn prepare(&self, place: &str) -> Result<Prepared, Failure> {
        let refused = |what: String, hint: &str| Failure::new(what, place, hint);
        let unknown = |error: TrainError| refused(error.to_string(), "Correct it in the configuration.");
        let Training {
            epochs,
            batch,
            clip_norm,
            batch_norm_momentum,
            average,
            swa,
            accumulate,
            precision,
            ..
        } = self.training;
        let heads = self.heads().map_err(unknown)?;
        let optimizer = Optimizer::new(&self.optimizer.name, &self.optimizer.numbers).map_err(unknown)?;
        let (clip, momentum, seed) = (clip_norm, batch_norm_momentum, self.seed);
        let pruning = self.pruning;
        let mut recipe =
            Recipe { heads, optimizer, clip, momentum, seed, average, accumulate, precision, pruning };
        let schedule =
            sora_train::Schedule::new(&self.schedule.name, &self.schedule.numbers).map_err(unknown)?;
        for (name, value, fits) in [
            ("training.batch", batch as f64, (1..=65_536).contains(&batch)),
            ("training.epochs", f64::from(epochs), epochs > 0),
            ("training.clip_norm", clip_norm.unwrap_or(1.0), clip_norm.is_none_or(|norm| norm > 0.0)),
            (
                "training.average",
                average.unwrap_or(0.5),
                average.is_none_or(|share| share > 0.0 && share < 1.0),
            ),
            ("training.swa", swa.unwrap_or(0.5), swa.is_none_or(|share| (0.0..1.0).contains(&share))),
            ("training.accumulate", f64::from(accumulate), accumulate > 0),
            ("training.batch_norm_momentum", batch_norm_momentum, (0.0..=1.0).contains(&batch_norm_momentum)),
            (
                "optimizer.rate",
                self.optimizer.rate,
                self.optimizer.rate > 0.0 && self.optimizer.rate.is_finite(),
            ),
        ] {
            if !fits {
                return Err(refused(format!("{value} makes no sense for `{name}`"), "Correct the number."));
            }
        }
        if let Some((name, number)) = pruning.and_then(|pruning| pruning.trouble()) {
            return Err(refused(
                format!("{number} makes no sense for `pruning.{name}`"),
                "Correct the number.",
            ));
        }
        if swa.is_some() && (average.is_some() || self.early_stopping.is_some()) {
            let what = "`swa` gives the mean of the last epochs, not a moving average or the best epoch";
            return Err(refused(what.to_owned(), "Leave out `average` and [early_stopping], or `swa`."));
        }
        let (network, mut metadata) = self.network(place)?;
        let options = OpenOptions { text: self.text(&mut metadata)?, ..open_options(&recipe.heads) };
        let data = Dataset::open(&self.data.train, &options)?;
        for head in &mut recipe.heads {
            let target = data.targets().iter().find(|(name, _)| head.target.as_ref() == Some(name));
            head.labels = target.and_then(|(_, array)| array.shape().get(1).copied()).unwrap_or(0);
        }
        let (train, validation) = self.split(&data)?;
        for (what, needed) in [
            ("early stopping", self.early_stopping.is_some()),
            ("the schedule `plateau`", schedule.needs_validation()),
        ] {
            if needed && validation.is_empty() {
                let hint = "Add `validation = 0.1` to [data].";
                return Err(refused(format!("{what} needs validation"), hint));
            }
        }
        let model = Model { metadata, ..Model::of(network.graph.clone()) };
        let given = self.data.preprocess.as_deref().map(Preprocess::from_argument).transpose()?;
        let preprocess = model.preprocess_for(&data, given)?;
        let Data { augment, order, skip_unreadable, workers, .. } = self.data.clone();
        let options = LoaderOptions {
            batch,
            seed: self.seed,
            order,
            workers,
            skip_unreadable,
            augment,
            ..LoaderOptions::default()
        };
        let train = Loader::new(&data, &train, None, &preprocess, options)?;
        let plan = Plan {
            epochs,
            rate: self.optimizer.rate,
            schedule,
            patience: self.early_stopping.as_ref().map(|stopping| stopping.patience),
            swa: swa.map(|share| (share * f64::from(epochs)).round().min(f64::from(epochs - 1)) as u32),
            save_every: self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.every),
            teacher: None,
            name: self.name(data.len()),
        };
        let metadata = model.metadata;
        Ok(Prepared { network, recipe, plan, data, train, validation, preprocess, metadata })
    }

    /// All that decides the weights, in words. Where files lie and when checkpoints are written does not.
    fn name(&self, samples: usize) -> String {
        let Config {
            seed,
            data,
            network,
            model,
            training,
            loss,
            outputs,
            optimizer,
            schedule,
            pruning,
            early_stopping,
            ..
        } = self;
        let Data { validation, preprocess, text, augment, order, .. } = data;
        format!(
            "{samples} {seed} {validation:?} {preprocess:?} {text:?} {augment:?} {order:?} {network:?} {model:?} {training:?} \
             {loss:?} {outputs:?} {optimizer:?} {schedule:?} {pruning:?} {early_stopping:?}"
        )
    }

    /// What is trained.
    fn heads(&self) -> Result<Vec<Head>, TrainError> {
        let weighted = |loss: &Named| {
            let loss = Loss::new(&loss.name, &loss.numbers)?;
            match &self.training.class_weights {
                Some(weights) => loss.with_class_weights(weights),
                None => Ok(loss),
            }
        };
        let head = |output: Option<&OutputSpec>| {
            let loss = weighted(output.and_then(|output| output.loss.as_ref()).unwrap_or(&self.loss))?;
            let numbers = !loss.row.takes_classes();
            let named = output.and_then(|output| output.target.clone());
            let target = named.or_else(|| numbers.then(|| "y".to_owned()));
            let (part, weight) = (output.map(|output| output.part.clone()), output.map_or(1.0, |o| o.weight));
            Ok(Head { output: part, target, weight, ..Head::new(loss) })
        };
        if self.outputs.is_empty() {
            return Ok(vec![head(None)?]);
        }
        self.outputs.iter().map(|output| head(Some(output))).collect()
    }

    /// How texts become numbers: as the model says, or by the words of the texts to train on, which it then says.
    fn text(&self, metadata: &mut Metadata) -> Result<Option<TextInput>, Failure> {
        let Some(TextSpec { vocabulary, tokenizer, length, column, label }) = self.data.text.clone() else {
            return Ok(metadata.text.clone());
        };
        if metadata.text.is_none() {
            let tokenizer = match (vocabulary, tokenizer) {
                (Some(size), None) => {
                    let options = TextOptions { text: column.clone(), label: None, ..TextOptions::default() };
                    let texts = Texts::open(&self.data.train, &options)?;
                    Tokenizer::words(texts.texts().iter().map(String::as_str), size)
                }
                (None, Some(path)) => Tokenizer::load(&path)?,
                _ => {
                    let what = "texts need either a vocabulary or a tokenizer";
                    let hint = "Give [data.text] `vocabulary`, the number of words, or `tokenizer`, a file.";
                    return Err(Failure::new(what, self.data.train.display().to_string(), hint));
                }
            };
            metadata.text = Some(TextInput { tokenizer, length, column, label });
        }
        Ok(metadata.text.clone())
    }

    /// The samples to train on, and those to look at behind every epoch.
    fn split(&self, data: &Dataset) -> Result<(Vec<usize>, Vec<usize>), Failure> {
        let Some(share) = self.data.validation.filter(|&share| share > 0.0) else {
            return Ok(((0..data.len()).collect(), Vec::new()));
        };
        let half = share / 2.0;
        let options =
            SplitOptions { seed: self.seed, calibration: half, decision: half, max_calibration: data.len() };
        let parts = sora_data::split(data.len(), data.labels(), &options)?;
        let mut kept = [parts.calibration, parts.decision].concat();
        kept.sort_unstable();
        Ok((parts.report, kept))
    }

    /// The network of layers, before training.
    ///
    /// # Errors
    /// [`Failure`] when a layer does not fit, or the network is one that was trained before.
    pub fn untrained(&self, place: &str) -> Result<Network, Failure> {
        let (Some(spec), None) = (&self.network, &self.model) else {
            let (what, hint) = match &self.model {
                Some(_) if self.network.is_none() => {
                    ("the network is not one of layers, but of a file", "`sora inspect` describes files.")
                }
                _ => (
                    "there must be one network, of layers or from a file",
                    "Keep either [network] or [model].",
                ),
            };
            return Err(Failure::new(what, place, hint));
        };
        let wanted: Vec<&str> = self.outputs.iter().map(|output| output.part.as_str()).collect();
        spec.build(self.seed, &wanted).map_err(|(what, hint)| Failure::new(what, place, hint))
    }

    /// The network, and what its file says beside.
    fn network(&self, place: &str) -> Result<(Trainable, Metadata), Failure> {
        match (&self.network, &self.model) {
            (None, Some(model)) => self.imported(model),
            _ => Ok((self.untrained(place)?.into_trainable(), Metadata::default())),
        }
    }

    fn imported(&self, from: &Imported) -> Result<(Trainable, Metadata), Failure> {
        let model = Model::load(&from.file)?;
        let Imported { freeze, classes, rate, batch_statistics, .. } = from.clone();
        let tuning = FineTuning { freeze, rate, batch_statistics, classes, seed: self.seed };
        let network = Trainable::imported(model.graph, &tuning).map_err(|error| {
            let hint = "`sora inspect` lists the model's layers.";
            Failure::new(error.to_string(), from.file.display().to_string(), hint)
        })?;
        let labels = model.metadata.labels.filter(|_| classes.is_none());
        Ok((network, Metadata { labels, ..model.metadata }))
    }
}

/// How data sets are opened to train these heads: what they are compared with besides classes is no input.
pub fn open_options(heads: &[Head]) -> OpenOptions {
    let targets = heads.iter().filter_map(|head| head.target.clone()).collect();
    OpenOptions { targets, ..OpenOptions::default() }
}

/// What to do about an error of the parser: `unknown field `x`, expected one of `a`, `b``.
fn hint(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown");
    let (Some(given), true) = (quoted.next(), unknown) else {
        return "Correct the line; examples/fashion-mnist/train.toml shows every key.".to_owned();
    };
    let known: Vec<&str> = quoted.collect();
    match nearest(given, &known) {
        Some(near) => format!("Did you mean `{near}`?"),
        None => format!("There are {}.", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        output = "m.onnx"
        [data]
        train = "d"
        [network]
        input = [1, 8, 8]
        layers = [{ layer = "flatten" }, { layer = "dense", units = 3, activation = "softmax" }]
        [training]
        epochs = 1
        batch = 4
        [optimizer]
        name = "adam"
        rate = 0.1
        beta1 = 0.8
    "#;

    #[test]
    fn files_are_read_and_errors_say_what_is_near() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.optimizer.numbers, BTreeMap::from([("beta1".to_owned(), 0.8)]));
        for (good, bad, line, hint) in [
            ("epochs", "epoch", 9, "`epochs`"),
            ("[training]", "[trainnig]", 8, "`training`"),
            ("units", "unit", 7, "`units`"),
            ("\"dense\"", "\"desne\"", 7, "`dense`"),
            ("softmax", "sofmax", 7, "`softmax`"),
        ] {
            let (what, found, to_do) = Config::parse(&GOOD.replace(good, bad)).unwrap_err();
            assert!(to_do.contains(hint), "{what} {to_do}");
            assert_eq!(found, Some(line), "{what}");
        }
    }
}
