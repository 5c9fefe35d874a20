//! `sora compress`: the main job.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sora::compress::{self, Outcome, Precision};
use sora::data::{Dataset, Preprocess};
use sora::report::{self, Report};
use sora::training::Config;
use sora::{Draft, Failure, Kind, Measurement, Metadata, Model, Recipe, RecipeLayer, write_together};

use super::args::{Compress, Prefer};
use super::evaluate::{compression_failure, open, open_samples};
use super::goals::{budget, file_size, max_bytes, max_drop};
use super::latency_table::read_table;
use super::pareto::{numbered, pareto};
use super::progress::{self, Bars};
use super::{Printed, check_output, human_bytes, one_line, robust, warn};
use sora::table;

const PRODUCER: &str = concat!("sora ", env!("CARGO_PKG_VERSION"));

pub(super) fn compress(args: &Compress) -> Printed {
    for path in &args.output {
        Kind::of(path)?;
    }
    let files = |own: &Compress| {
        own.output.iter().chain(&own.report).chain(&own.save_recipe).cloned().collect::<Vec<PathBuf>>()
    };
    let outputs = match args.pareto {
        Some(count) => (1..=usize::from(count)).flat_map(|number| files(&numbered(args, number))).collect(),
        None => files(args),
    };
    for (i, path) in outputs.iter().enumerate() {
        check_output(path, &[&args.model, &args.data.data])?;
        if outputs[..i].contains(path) {
            let hint = "Give each output a name of its own.";
            return Err(Failure::new("Two outputs have the same name.", path.display().to_string(), hint));
        }
    }
    if args.table.is_some() && args.train.is_some() && matches!(args.prefer, Prefer::Latency) {
        let what = "Training takes channels out of layers, whose times the table does not have then.";
        let hint =
            "Add `--prefer size`, which leaves layers their shapes, or leave out `--for` or `--train`.";
        return Err(Failure::new(what, "--for, --train".to_owned(), hint));
    }
    let model = Model::load(&args.model)?;
    warn(&model.warnings);
    let (data, preprocess) = open(&model, &args.data)?;
    let recipe = args.recipe.as_deref().map(read_recipe).transpose()?;
    // An ONNX file stores a byte for each weight, however few levels there are.
    let coded = args.output.iter().any(|path| Kind::of(path).is_ok_and(|kind| kind == Kind::Sora));
    let by_size = matches!(args.prefer, Prefer::Size) || args.max_size.is_some() || args.pareto.is_some();
    let options = compress::Options {
        max_drop: max_drop(args),
        max_latency: args.max_latency,
        max_bytes: max_bytes(args, &model),
        table: args.table.as_deref().map(read_table).transpose()?,
        file_size: Some(file_size(args, &model, &preprocess)),
        prefer: match args.prefer {
            Prefer::Latency => compress::Prefer::Latency,
            Prefer::Size => compress::Prefer::Size,
        },
        threads: usize::from(args.parallel.threads),
        seed: recipe.as_ref().map_or(args.seed, |recipe| recipe.seed),
        // With training, what bits fewer lose can be made up for, and no kernel is slower for them.
        fewer_bits: coded && (by_size || args.train.is_some()),
        training: args
            .train
            .as_deref()
            .map(|path| training(args, recipe.as_ref(), &model, path))
            .transpose()?,
        robust: robust::wanted(&args.robust, args.max_robust_drop),
        recipe,
        checkpoint: args.checkpoint.clone(),
        ..compress::Options::default()
    };
    if let Some(count) = args.pareto {
        return pareto(args, &model, (&data, &preprocess), &options, usize::from(count));
    }
    let bars = Bars::new();
    let outcome = compress::compress(&model.graph, &data, &preprocess, &options, &bars);
    drop(bars);
    let outcome = outcome.map_err(|e| match (&e, &args.checkpoint) {
        (compress::CompressError::Cancelled, Some(folder)) => {
            let hint = format!("Start the command again to continue from {}.", folder.display());
            Failure::new("Interrupted.", "Ctrl-C", hint)
        }
        _ => compression_failure(&e),
    })?;

    let result = result(args, &model, &data, &preprocess, &outcome);
    let (mut drafts, bytes_after) = drafts(args, &result)?;
    let report = describe(args, &model, &preprocess.to_string(), &outcome, bytes_after);
    progress::check()?;
    drafts.extend(args.report.iter().map(|path| Draft::of(path, report::html(&report))));
    if let Some(path) = &args.save_recipe {
        drafts.push(Draft::of(path, recipe_text(&outcome.recipe)?));
    }
    write_together(drafts)?;
    finished(args);
    Ok(if args.json { one_line(&to_json(args, &report)) } else { to_text(args, &report) })
}

/// Forgets what a compression could have been continued from: what is complete must not be continued.
pub(super) fn finished(args: &Compress) {
    if let Some(folder) = &args.checkpoint {
        let _ = compress::forget(folder);
    }
}

/// The network with what travels with it.
pub(super) fn result(
    args: &Compress,
    model: &Model,
    data: &Dataset,
    preprocess: &Preprocess,
    outcome: &Outcome,
) -> Model {
    let measured = Measurement {
        samples: outcome.split.report,
        accuracy: outcome.after.accuracy,
        ci95: outcome.after.ci95,
        original_accuracy: outcome.before.accuracy,
    };
    let classes = data.classes().map(<[String]>::to_vec);
    let metadata = metadata(model, preprocess, classes, measured, record(args, outcome));
    Model { metadata, ..Model::of(outcome.graph.clone()) }
}

/// The outputs, and the bytes of the first. Everything is encoded before anything is written: a failure leaves no half of the
/// outputs behind.
pub(super) fn drafts<'a>(args: &Compress, result: &'a Model) -> Result<(Vec<Draft<'a>>, u64), Failure> {
    let drafts = args.output.iter().map(|path| result.drafts(path));
    let drafts = drafts.collect::<Result<Vec<Vec<Draft>>, Failure>>()?;
    let bytes = drafts.first().map_or(0, |files| files.iter().map(Draft::len).sum());
    Ok((drafts.into_iter().flatten().collect(), bytes))
}

/// What travels with the result.
pub(super) fn metadata(
    model: &Model,
    preprocess: &Preprocess,
    classes: Option<Vec<String>>,
    measured: Measurement,
    recipe: Recipe,
) -> Metadata {
    let Metadata { labels, text, onnx, .. } = model.metadata.clone();
    let (producer, labels) = (PRODUCER.to_owned(), classes.or(labels));
    let (measured, recipe, preprocess) = (Some(measured), Some(recipe), Some(preprocess.clone()));
    Metadata { producer, labels, measured, recipe, preprocess, text, onnx }
}

/// The share of zeros from which on weights count as pruned.
const SPARSE: f64 = 0.25;

/// What to train with while weights are pruned.
fn training(
    args: &Compress,
    recipe: Option<&compress::Recipe>,
    model: &Model,
    path: &Path,
) -> Result<compress::Training, Failure> {
    let data = open_samples(model, path)?;
    Ok(match recipe.and_then(|recipe| recipe.training.clone()) {
        Some(compress::Trainings { epochs, batch, rate, features, average, swa, augment, .. }) => {
            compress::Training { data, epochs, batch, rate, features, average, swa, augment }
        }
        None => {
            let epochs = args.epochs.unwrap_or_else(|| compress::Training::epochs(data.len(), BATCH));
            let augment = args.augment.as_deref().map(Config::load).transpose()?;
            let augment = augment.map_or(Vec::new(), |config| config.data.augment);
            compress::Training { augment, ..compress::Training::new(data, epochs, BATCH, args.rate) }
        }
    })
}

/// Samples of a step of training.
const BATCH: usize = 64;

fn read_recipe(path: &Path) -> Result<compress::Recipe, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io("read the recipe", path, &e))?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        let place = format!("{}, line {line}", path.display());
        Failure::new(error.message(), place, "`sora compress --save-recipe` writes such files.")
    })
}

/// A recipe as a file, with what to do with it.
pub(super) fn recipe_text(recipe: &compress::Recipe) -> Result<String, Failure> {
    let text = toml::to_string(recipe)
        .map_err(|e| Failure::new(e.to_string(), "the recipe", "Report this as a defect."))?;
    let train = if recipe.training.is_some() { " --train SAMPLES" } else { "" };
    Ok(format!("# sora compress MODEL --data DATA{train} --recipe THIS -o OUT\n\n{text}"))
}

fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::Int8 => "int8",
        Precision::Int8Weights => "int8-weights",
        Precision::F32 => "f32",
    }
}

/// What the files say of how they were made.
fn record(args: &Compress, outcome: &Outcome) -> Recipe {
    let layers = outcome.layers.iter().map(|layer| RecipeLayer {
        name: layer.name.clone(),
        precision: precision(layer.precision).to_owned(),
        reason: layer.reason.clone(),
    });
    Recipe { max_drop: max_drop(args), seed: args.seed, layers: layers.collect() }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

pub(super) fn describe(
    args: &Compress,
    model: &Model,
    preprocess: &str,
    outcome: &Outcome,
    bytes_after: u64,
) -> Report {
    let side = |measured: &compress::Measured, bytes: u64| report::Side {
        accuracy: measured.accuracy,
        ci95: measured.ci95,
        top5: measured.top5,
        bytes,
        median_ms: measured.median_ms,
    };
    let layers = outcome.layers.iter().map(|layer| report::Layer {
        name: layer.name.clone(),
        op: layer.op.clone(),
        precision: precision(layer.precision).to_owned(),
        sqnr_db: layer.sqnr_db,
        before_ms: layer.ms_before,
        after_ms: layer.ms_after,
        before_bytes: layer.bytes_before as u64,
        after_bytes: layer.bytes_after as u64,
        zeros: layer.zeros,
        weight_bits: layer.weight_bits,
        reason: layer.reason.clone(),
        reason_code: code(&layer.reason_code),
        tried: layer.alternatives.iter().map(tried).collect(),
        rungs: outcome.rungs.iter().filter_map(|trial| rung(trial, &layer.name)).collect(),
        not_pruned: layer.not_pruned.clone(),
    });
    Report {
        model: file_name(&args.model),
        outputs: args.output.iter().map(|p| file_name(p)).collect(),
        data: args.data.data.display().to_string(),
        preprocess: preprocess.to_owned(),
        max_drop: max_drop(args),
        budget: budget(args),
        met: outcome.met && max_bytes(args, model).is_none_or(|most| bytes_after <= most),
        note: outcome.note.clone(),
        metric: outcome.metric.to_string(),
        before: side(&outcome.before, model.bytes),
        after: side(&outcome.after, bytes_after),
        drop: outcome.drop.drop,
        drop_ci95: outcome.drop.ci95,
        split: [outcome.split.calibration, outcome.split.decision, outcome.split.report],
        tried_samples: outcome.tried_samples,
        times_from: args.table.as_deref().map(file_name),
        isa: outcome.isa.to_string(),
        threads: usize::from(args.parallel.threads),
        layers: layers.collect(),
        decision_drop: outcome.decision_drop,
        choices: Vec::new(),
        steps: outcome.steps.iter().map(|step| step.what.clone()).collect(),
        robustness: outcome.robustness.clone(),
        rewrites: outcome
            .rewrites
            .counts()
            .into_iter()
            .map(|(rule, n)| (rule.replace('_', " "), n))
            .collect(),
        producer: PRODUCER.to_owned(),
    }
}

/// The word for programs.
fn code(reason: &compress::Reason) -> String {
    let value = serde_json::to_value(reason).unwrap_or_default();
    value["code"].as_str().unwrap_or_default().to_owned()
}

fn tried(alternative: &compress::Alternative) -> report::Tried {
    let compress::Alternative { format, weight_bits, output_sqnr_db, drop, ms, bytes } = *alternative;
    let mut name = format.name().to_owned();
    if let Some(bits) = weight_bits.filter(|&bits| bits < 8) {
        name += &format!(", {bits}-bit weights");
    }
    report::Tried { format: name, output_sqnr_db, drop, ms, bytes }
}

fn rung(trial: &compress::RungTrial, layer: &str) -> Option<report::Rung> {
    let compress::LayerTrial { sqnr_db, .. } = trial.layers.iter().find(|of| of.layer == layer)?;
    Some(report::Rung { name: trial.rung.to_owned(), sqnr_db: *sqnr_db, kept: trial.kept })
}

pub(super) fn to_json(args: &Compress, report: &Report) -> Value {
    let side = |side: &report::Side| {
        json!({
            "accuracy": side.accuracy, "bytes": side.bytes, "median_ms": side.median_ms,
            "ci95": {"accuracy": side.ci95}, "top5": side.top5,
        })
    };
    let outputs: Vec<String> = args.output.iter().map(|p| p.display().to_string()).collect();
    json!({
        "met": report.met,
        "before": side(&report.before),
        "after": side(&report.after),
        "drop": report.drop,
        "drop_ci95": report.drop_ci95,
        "decision_drop": report.decision_drop,
        "max_drop": report.max_drop,
        "budget": report.budget,
        "metric": report.metric,
        "tried_samples": report.tried_samples,
        "split": {"calibration": report.split[0], "decision": report.split[1], "report": report.split[2]},
        "preprocess": report.preprocess,
        "layers": report.layers,
        "steps": report.steps,
        "note": report.note,
        "robustness": report.robustness,
        "output": outputs.first(),
        "recipe": args.save_recipe.as_ref().map(|path| path.display().to_string()),
        "outputs": outputs,
    })
}

fn to_text(args: &Compress, report: &Report) -> String {
    let (before, after) = (&report.before, &report.after);
    let percent = |side: &report::Side| {
        format!("{:.2} % ({:.2}–{:.2})", 100.0 * side.accuracy, 100.0 * side.ci95[0], 100.0 * side.ci95[1])
    };
    let rows = [
        vec![
            report.metric.clone(),
            percent(before),
            percent(after),
            format!("{:+.2} points", report.change()),
        ],
        vec![
            "file size".to_owned(),
            human_bytes(before.bytes),
            human_bytes(after.bytes),
            format!("{:.2}×", after.bytes as f64 / before.bytes.max(1) as f64),
        ],
        vec![
            "latency".to_owned(),
            format!("{:.4} ms", before.median_ms),
            format!("{:.4} ms", after.median_ms),
            format!("{:.2}×", after.median_ms / before.median_ms.max(1e-12)),
        ],
    ];
    let mut text = table(&["", "before", "after", "change"], &rows);
    text += &format!(
        "\nfigures from {} samples that no decision saw; {} served calibration, {} decisions\n\
         latency of one sample, {}; preprocessing {}\n\n",
        report.split[2],
        report.split[0],
        report.split[1],
        report.machine(),
        report.preprocess
    );
    let pruned = report.layers.iter().any(|layer| layer.zeros.is_some_and(|share| share >= SPARSE));
    let layers: Vec<Vec<String>> = report
        .layers
        .iter()
        .map(|layer| {
            let ms = |v: Option<f64>| v.map_or("–".to_owned(), |v| format!("{v:.4}"));
            let sqnr = layer.sqnr_db.map_or("–".to_owned(), |v| format!("{v:.1}"));
            let (before, after) = (ms(layer.before_ms), ms(layer.after_ms));
            let mut row = vec![layer.name.clone(), layer.op.clone(), layer.format(), sqnr, before, after];
            row.extend(
                pruned
                    .then(|| layer.zeros.map_or("–".to_owned(), |share| format!("{:.1} %", 100.0 * share))),
            );
            row
        })
        .collect();
    let heads = ["layer", "operator", "precision", "SQNR dB", "ms before", "ms after", "zeros"];
    text += &table(&heads[..if pruned { 7 } else { 6 }], &layers);
    for layer in &report.layers {
        text += &format!("  {}: {}\n", layer.name, layer.reason);
        text.extend(layer.not_pruned.iter().map(|why| format!("    not pruned: {why}\n")));
        if args.explain {
            text.extend(layer.tried.iter().map(|tried| format!("    alone in {}\n", tried.words())));
            text.extend(layer.rungs.iter().map(|rung| format!("    {}\n", rung.words())));
        }
    }
    if let Some(robustness) = &report.robustness {
        text += &format!("\n{}", robust::text(robustness));
    }
    if args.explain {
        text += "\nGraph optimization\n";
        text.extend(report.rewrites.iter().map(|(rule, count)| format!("  {count} × {rule}\n")));
        text += "\nSearch\n";
        text.extend(report.steps.iter().map(|step| format!("  {step}\n")));
    }
    if let Some(note) = &report.note {
        text += &format!("\n{note}\n");
    }
    let verdict = if report.met { "met" } else { "NOT met: this is the nearest result" };
    text += &format!("\nbudget of {}: {verdict}\n", report.budget);
    for path in args.output.iter().chain(&args.report).chain(&args.save_recipe) {
        text += &format!("wrote {}\n", path.display());
    }
    text
}
