//! `sora compress`: the main job.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sora::compress::{self, Outcome, Precision};
use sora::report::{self, Report};
use sora::{Draft, Failure, Kind, Measurement, Metadata, Model, Recipe, RecipeLayer, write_together};

use super::args::{Compress, Prefer};
use super::evaluate::{compression_failure, open, open_samples};
use super::progress::{self, Bars};
use super::{Printed, check_output, human_bytes, one_line, warn};
use sora::table;

const PRODUCER: &str = concat!("sora ", env!("CARGO_PKG_VERSION"));

pub(super) fn compress(args: &Compress) -> Printed {
    for path in &args.output {
        Kind::of(path)?;
    }
    let outputs: Vec<&Path> =
        args.output.iter().chain(&args.report).chain(&args.save_recipe).map(PathBuf::as_path).collect();
    for (i, path) in outputs.iter().enumerate() {
        check_output(path, &[&args.model, &args.data.data])?;
        if outputs[..i].contains(path) {
            let hint = "Give each output a name of its own.";
            return Err(Failure::new("Two outputs have the same name.", path.display().to_string(), hint));
        }
    }
    let model = Model::load(&args.model)?;
    warn(&model.warnings);
    let (data, preprocess) = open(&model, &args.data)?;
    let recipe = args.recipe.as_deref().map(read_recipe).transpose()?;
    let options = compress::Options {
        max_drop: args.max_drop,
        prefer: match args.prefer {
            Prefer::Latency => compress::Prefer::Latency,
            Prefer::Size => compress::Prefer::Size,
        },
        threads: usize::from(args.parallel.threads),
        seed: recipe.as_ref().map_or(args.seed, |recipe| recipe.seed),
        // An ONNX file stores a byte for each weight, however few levels there are.
        fewer_bits: matches!(args.prefer, Prefer::Size)
            && args.output.iter().any(|path| Kind::of(path).is_ok_and(|kind| kind == Kind::Sora)),
        training: args
            .train
            .as_deref()
            .map(|path| training(args, recipe.as_ref(), &model, path))
            .transpose()?,
        recipe,
        checkpoint: args.checkpoint.clone(),
        ..compress::Options::default()
    };
    let bars = Bars::new();
    let outcome = compress::compress(&model.graph, &data, &preprocess, &options, &bars);
    drop(bars);
    let outcome = outcome.map_err(|e| compression_failure(&e))?;

    let result = Model {
        metadata: Metadata {
            producer: PRODUCER.to_owned(),
            labels: data.classes().map(<[String]>::to_vec).or_else(|| model.metadata.labels.clone()),
            measured: Some(Measurement {
                samples: outcome.split.report,
                accuracy: outcome.after.accuracy,
                ci95: outcome.after.ci95,
                original_accuracy: outcome.before.accuracy,
            }),
            recipe: Some(record(args, &outcome)),
            preprocess: Some(preprocess.clone()),
            text: model.metadata.text.clone(),
            onnx: model.metadata.onnx.clone(),
        },
        graph: outcome.graph.clone(),
        bytes: 0,
        warnings: Vec::new(),
        packed: None,
    };
    // Everything is encoded before anything is written: a failure leaves no half of the outputs behind.
    let drafts = args.output.iter().map(|path| result.drafts(path));
    let mut drafts = drafts.collect::<Result<Vec<Vec<Draft>>, Failure>>()?;
    let bytes_after = drafts.first().map_or(0, |files| files.iter().map(Draft::len).sum());
    let report = describe(args, &model, &preprocess.to_string(), &outcome, bytes_after);
    progress::check()?;
    drafts.extend(args.report.iter().map(|path| vec![Draft::of(path, report::html(&report))]));
    if let Some(path) = &args.save_recipe {
        drafts.push(vec![Draft::of(path, recipe_text(&outcome.recipe)?)]);
    }
    write_together(drafts.into_iter().flatten().collect())?;
    // What is complete must not be continued.
    if let Some(folder) = &args.checkpoint {
        let _ = compress::forget(folder);
    }
    Ok(if args.json { one_line(&to_json(args, &report)) } else { to_text(args, &report) })
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
    Ok(match recipe.and_then(|recipe| recipe.training.as_ref()) {
        Some(said) => compress::Training { data, epochs: said.epochs, batch: said.batch, rate: said.rate },
        None => compress::Training { data, epochs: args.epochs, batch: 64, rate: args.rate },
    })
}

fn read_recipe(path: &Path) -> Result<compress::Recipe, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io("read the recipe", path, &e))?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        let place = format!("{}, line {line}", path.display());
        Failure::new(error.message(), place, "`sora compress --save-recipe` writes such files.")
    })
}

/// A recipe as a file, with what to do with it.
fn recipe_text(recipe: &compress::Recipe) -> Result<String, Failure> {
    let text = toml::to_string(recipe)
        .map_err(|e| Failure::new(e.to_string(), "the recipe", "Report this as a defect."))?;
    let train = if recipe.training.is_some() { " --train SAMPLES" } else { "" };
    Ok(format!("# sora compress MODEL --data DATA{train} --recipe THIS -o OUT\n\n{text}"))
}

fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::Int8 => "int8",
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
    Recipe { max_drop: args.max_drop, seed: args.seed, layers: layers.collect() }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

fn describe(args: &Compress, model: &Model, preprocess: &str, outcome: &Outcome, bytes_after: u64) -> Report {
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
    });
    Report {
        model: file_name(&args.model),
        outputs: args.output.iter().map(|p| file_name(p)).collect(),
        data: args.data.data.display().to_string(),
        preprocess: preprocess.to_owned(),
        max_drop: args.max_drop,
        met: outcome.met,
        note: outcome.note.clone(),
        metric: outcome.metric.to_string(),
        before: side(&outcome.before, model.bytes),
        after: side(&outcome.after, bytes_after),
        drop: outcome.drop.drop,
        drop_ci95: outcome.drop.ci95,
        split: [outcome.split.calibration, outcome.split.decision, outcome.split.report],
        isa: outcome.isa.to_string(),
        threads: usize::from(args.parallel.threads),
        layers: layers.collect(),
        steps: outcome.steps.iter().map(|step| step.what.clone()).collect(),
        rewrites: outcome
            .rewrites
            .counts()
            .into_iter()
            .map(|(rule, n)| (rule.replace('_', " "), n))
            .collect(),
        producer: PRODUCER.to_owned(),
    }
}

fn to_json(args: &Compress, report: &Report) -> Value {
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
        "max_drop": report.max_drop,
        "metric": report.metric,
        "split": {"calibration": report.split[0], "decision": report.split[1], "report": report.split[2]},
        "preprocess": report.preprocess,
        "layers": report.layers,
        "steps": report.steps,
        "note": report.note,
        "output": outputs.first(),
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
         latency of one sample, {} thread(s), {}; preprocessing {}\n\n",
        report.split[2], report.split[0], report.split[1], report.threads, report.isa, report.preprocess
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
    text += &format!("\nbudget of {:.2} points: {verdict}\n", 100.0 * report.max_drop);
    for path in args.output.iter().chain(&args.report).chain(&args.save_recipe) {
        text += &format!("wrote {}\n", path.display());
    }
    text
}
