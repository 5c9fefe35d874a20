//! `sora train` and `sora fine-tune`.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value, json};
use sora::data::{DataError, Dataset, OpenOptions, Preprocess};
use sora::exec::Options;
use sora::train::{
    Checkpoint, Epoch, Fitted, Head, Link, Samples, Target, TrainError, Trainer, Watch, assess, fit,
    label_error_rate,
};
use sora::training::{
    Checkpoints, Config, Data, Imported, Named, OptimizerSpec, Prepared, Stopping, Training, open_options,
};
use sora::{Failure, Metadata, Model, check_writable, compress, write_atomically};

use super::args::{FineTune, Train, TrainingRun};
use super::evaluate::compression_failure;
use super::progress::{Bars, interrupted};
use super::{Printed, one_line};

pub(super) fn train(args: &Train) -> Printed {
    let mut config = Config::load(&args.config)?;
    if let Some(output) = &args.output {
        config.output.clone_from(output);
    }
    let place = args.config.display().to_string();
    if args.summary {
        let summary = config.untrained(&place)?.summary();
        return Ok(if args.run.json { one_line(&json!(summary)) } else { summary.to_string() });
    }
    run(&config, &place, &args.run)
}

pub(super) fn fine_tune(args: &FineTune) -> Printed {
    let validation = Some(args.validation).filter(|&share| share > 0.0);
    let config = Config {
        output: args.output.clone(),
        history: None,
        seed: args.seed,
        data: Data {
            train: args.data.data.clone(),
            validation,
            test: args.test.clone(),
            preprocess: args.data.preprocess.clone(),
            ..Data::default()
        },
        network: None,
        model: Some(Imported {
            file: args.model.clone(),
            freeze: args.freeze.clone(),
            classes: args.classes.map(|classes| classes as usize),
            rate: args.old_rate,
            batch_statistics: args.batch_statistics,
        }),
        training: Training { epochs: args.epochs, batch: args.batch as usize, ..Training::default() },
        loss: Named::of("sparse_categorical_crossentropy", &[]),
        outputs: Vec::new(),
        optimizer: OptimizerSpec { name: "adam".to_owned(), rate: args.rate, numbers: BTreeMap::new() },
        schedule: Named::of("cosine", &[("warmup", 0.1)]),
        pruning: None,
        early_stopping: validation.map(|_| Stopping { patience: args.epochs }),
        checkpoint: args.checkpoint.clone().map(|path| Checkpoints { path, every: Some(500) }),
    };
    let place = args.model.display().to_string();
    run(&config, &place, &args.run)
}

/// Trains, and writes what a configuration asks for; `place` is where it comes from.
fn run(config: &Config, place: &str, args: &TrainingRun) -> Printed {
    let begun = Instant::now();
    sora::Kind::of(&config.output)?;
    let checkpoint = config.checkpoint.as_ref().map(|checkpoint| checkpoint.path.clone());
    for path in [Some(&config.output), config.history.as_ref(), checkpoint.as_ref()].into_iter().flatten() {
        check_writable(path)?;
    }
    if let Some(path) = &config.history {
        history(path, config, &[])?;
    }
    let failed = training_failure(place);
    let Prepared { network, recipe, plan, data, train, validation, preprocess, metadata } =
        config.prepare(place)?;
    let classes = metadata.labels.clone().or(data.classes().map(<[String]>::to_vec));
    let open = OpenOptions { classes, text: metadata.text.clone(), ..open_options(&recipe.heads) };
    let test = config.data.test.as_ref().map(|path| Dataset::open(path, &open)).transpose()?;
    let heads = recipe.heads.clone();
    let options = Options { threads: usize::from(args.parallel.threads), ..Options::default() };
    let mut trainer =
        Trainer::new(network, config.training.batch, recipe, options.clone()).map_err(&failed)?;
    let from = checkpoint.as_deref().filter(|path| !args.restart && path.exists());
    let from = from.map(Checkpoint::load).transpose().map_err(&failed)?;
    let part = |indices| Samples { data: &data, indices, preprocess: &preprocess };
    let validation = Some(validation).filter(|indices| !indices.is_empty()).map(part);
    let mut watch = Line {
        epochs: plan.epochs,
        checkpoint,
        terminal: std::io::stderr().is_terminal(),
        tick: Instant::now(),
        skipped: 0,
    };
    let fitted = fit(&mut trainer, &plan, &train, validation.as_ref(), from, &mut watch).map_err(&failed)?;
    let Fitted { state, progress, stopped } = fitted;
    if stopped {
        let hint = match &watch.checkpoint {
            Some(path) => format!("Start the command again to continue from {}.", path.display()),
            None => "Add [checkpoint] to the configuration to be able to continue.".to_owned(),
        };
        return Err(Failure::new("Interrupted.", "Ctrl-C", hint));
    }

    let mut metrics = Map::new();
    if let Some(last) = progress.history.last() {
        metrics.extend(figures(last));
    }
    let labels = data.classes().or_else(|| test.as_ref()?.classes()).map(<[String]>::to_vec);
    let labels = metadata.labels.clone().or(labels);
    let metadata = Metadata { preprocess: Some(preprocess.clone()), labels, ..metadata };
    let model = Model { metadata, ..Model::of(trainer.graph_of(&state)) };
    if let Some(test) = &test {
        metrics.extend(measure(&model, &heads, test, &preprocess, &options, &failed)?);
    }
    model.save(&config.output)?;
    if let Some(path) = &config.history {
        write_atomically(path, history(path, config, &progress.history)?.as_bytes())?;
    }
    // What is complete must not be continued.
    if let Some(path) = &watch.checkpoint {
        let _ = std::fs::remove_file(path);
    }
    let steps = trainer.steps().map_err(&failed)?;
    let seconds = begun.elapsed().as_secs_f64();
    if args.json {
        let object = json!({
            "metrics": metrics, "seconds": seconds, "steps": steps, "output": config.output,
            "training_seconds": progress.seconds, "epochs": progress.history.len(), "skipped": watch.skipped,
        });
        return Ok(one_line(&object));
    }
    let accuracy = metrics.get("accuracy").and_then(Value::as_f64);
    let errors = metrics.get("label_error_rate").and_then(Value::as_f64);
    let accuracy = accuracy.map_or(String::new(), |a| format!("accuracy {:.2} %, ", 100.0 * a));
    let accuracy = errors.map_or(accuracy, |e| format!("label error rate {:.2} %, ", 100.0 * e));
    Ok(format!("{accuracy}{steps} steps in {seconds:.1} s\nwritten to {}", config.output.display()))
}

/// What the model comes to on samples that it was not trained on.
fn measure(
    model: &Model,
    heads: &[Head],
    test: &Dataset,
    preprocess: &Preprocess,
    options: &Options,
    failed: &dyn Fn(TrainError) -> Failure,
) -> Result<Map<String, Value>, Failure> {
    let mut metrics = Map::new();
    metrics.insert("samples".into(), json!(test.len()));
    if let [Head { target: None, loss, .. }] = heads
        && (loss.row.from == Link::Softmax || loss.row.from == Link::Sigmoid && of_two_classes(&model.graph))
    {
        let result = compress::evaluate(&model.graph, test, preprocess, None, options, &Bars::new());
        let result = result.map_err(|e| compression_failure(&e))?;
        metrics.extend(super::evaluate::metrics(&result));
        metrics.insert("ci95".into(), json!(result.ci95));
        return Ok(metrics);
    }
    let samples = Samples { data: test, indices: (0..test.len()).collect(), preprocess };
    let found = assess(&model.graph, heads, &samples, options).map_err(failed)?;
    metrics.insert("test_loss".into(), json!(found.loss));
    found.accuracy.into_iter().for_each(|accuracy| drop(metrics.insert("accuracy".into(), json!(accuracy))));
    for (head, found) in heads.iter().zip(&found.heads) {
        let mut own = Map::new();
        own.insert("loss".into(), json!(found.loss));
        found.accuracy.into_iter().for_each(|accuracy| drop(own.insert("accuracy".into(), json!(accuracy))));
        if head.loss.row.target == Target::Sequence {
            let rate = label_error_rate(&model.graph, head, &samples, options).map_err(failed)?;
            own.insert("label_error_rate".into(), json!(rate));
        }
        match (heads.len(), &head.output) {
            (2.., Some(name)) => drop(metrics.insert(name.clone(), Value::Object(own))),
            _ => metrics.extend(own.into_iter().filter(|(name, _)| name != "loss")),
        }
    }
    Ok(metrics)
}

/// Whether the first output is one number for each sample.
fn of_two_classes(graph: &sora::ir::Graph) -> bool {
    let output = graph.outputs().first().map(|output| &graph.ty(output.value).shape);
    output.is_some_and(|shape| shape.len() > 1 && shape[1..].iter().all(|extent| extent.known() == Some(1)))
}

/// The course of a training as the ending of its file says: JSON, or a page of curves.
fn history(path: &Path, config: &Config, epochs: &[Epoch]) -> Result<String, Failure> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("json") => {
            let epochs: Vec<Value> = epochs.iter().map(|epoch| Value::Object(figures(epoch))).collect();
            Ok(json!(epochs).to_string())
        }
        Some("html") => {
            let name = config.output.file_name().unwrap_or_default().to_string_lossy();
            let producer = concat!("sora ", env!("CARGO_PKG_VERSION"));
            Ok(sora::report::history(&name, epochs, producer))
        }
        _ => {
            let hint = "Give it a name that ends with .json, or with .html for a page of curves.";
            Err(Failure::new("The history has no format.", path.display().to_string(), hint))
        }
    }
}

/// The figures of an epoch by name.
fn figures(epoch: &Epoch) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("loss".into(), json!(epoch.loss));
    for (name, value) in [
        ("training_accuracy", epoch.accuracy),
        ("validation_loss", epoch.validation_loss),
        ("validation_accuracy", epoch.validation_accuracy),
    ] {
        value.into_iter().for_each(|value| drop(map.insert(name.into(), json!(value))));
    }
    if !epoch.heads.is_empty() {
        map.insert("heads".into(), json!(epoch.heads));
    }
    map.insert("rate".into(), json!(epoch.rate));
    map.insert("epoch_seconds".into(), json!(epoch.seconds));
    map
}

fn training_failure(place: &str) -> impl Fn(TrainError) -> Failure + '_ {
    move |error| match error {
        TrainError::Data(error) => error.into(),
        error => {
            let hint = match &error {
                TrainError::Checkpoint(_) => "Give --restart to begin anew, or the checkpoint another name.",
                TrainError::Diverged { .. } => {
                    "Lower `rate`, add warm-up to the schedule or set `clip_norm`."
                }
                TrainError::Class { .. } => {
                    "Give the network as many classes as the data has; `--classes` or `classes` in [model] do."
                }
                TrainError::NotDifferentiable { .. } => {
                    "Freeze the parameters before it, or export the model without it."
                }
                _ => "Correct the configuration.",
            };
            Failure::new(error.to_string(), place, hint)
        }
    }
}

/// Writes a line on standard error behind every epoch, and a moving one on a terminal; keeps checkpoints.
struct Line {
    epochs: u32,
    checkpoint: Option<PathBuf>,
    terminal: bool,
    /// When the moving line was last written.
    tick: Instant,
    /// Samples that could not be read.
    skipped: usize,
}

impl Line {
    fn text(&self, figures: &Epoch) -> String {
        let mut text = format!("loss {:.4}", figures.loss);
        let percent = |name: &str, value: Option<f64>| {
            value.map_or(String::new(), |v| format!(" - {name} {:.2} %", 100.0 * v))
        };
        text += &percent("accuracy", figures.accuracy);
        text += &figures.validation_loss.map_or(String::new(), |v| format!(" - val loss {v:.4}"));
        text += &percent("val accuracy", figures.validation_accuracy);
        text
    }
}

impl Watch for Line {
    fn step(&mut self, epoch: u32, step: u64, steps: u64, so_far: &Epoch) {
        if !self.terminal || self.tick.elapsed().as_millis() < 100 && step < steps {
            return;
        }
        self.tick = Instant::now();
        const WIDTH: u64 = 24;
        let done = (step * WIDTH / steps.max(1)) as usize;
        let bar = "=".repeat(done) + &".".repeat(WIDTH as usize - done);
        let each = 1e3 * so_far.seconds / step.max(1) as f64;
        let left = so_far.seconds / step.max(1) as f64 * (steps - step) as f64;
        let text = self.text(so_far);
        let _ = write!(
            std::io::stderr(),
            "\repoch {}/{} {step}/{steps} [{bar}] {left:.0} s left - {each:.1} ms/step - {text}\x1b[K",
            epoch + 1,
            self.epochs
        );
    }

    fn skipped(&mut self, why: &DataError) {
        self.skipped += 1;
        let _ = writeln!(std::io::stderr(), "left out: {why}");
    }

    fn epoch(&mut self, epoch: u32, figures: &Epoch) {
        let start = if self.terminal { "\r" } else { "" };
        let end = if self.terminal { "\x1b[K" } else { "" };
        let text = self.text(figures);
        let (epoch, epochs, seconds) = (epoch + 1, self.epochs, figures.seconds);
        let _ = writeln!(std::io::stderr(), "{start}epoch {epoch}/{epochs} {seconds:.1} s - {text}{end}");
    }

    fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), String> {
        let Some(path) = &self.checkpoint else { return Ok(()) };
        let bytes = checkpoint.to_bytes().map_err(|e| e.to_string())?;
        write_atomically(Path::new(path), &bytes).map_err(|e| e.to_string())
    }

    fn stops(&self) -> bool {
        interrupted()
    }
}
