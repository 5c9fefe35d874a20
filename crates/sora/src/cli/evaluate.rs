//! `sora evaluate`.

use std::path::Path;

use serde_json::{Map, Value, json};
use sora::compress::Evaluation;
use sora::data::{Dataset, OpenOptions, PerClass, Preprocess};
use sora::{Failure, Metadata, Model, compress, write_atomically};

use super::args::{Data, Evaluate};
use super::progress::Bars;
use super::{Printed, check_output, npz_bytes, one_line, robust, warn};

pub(super) fn evaluate(args: &Evaluate) -> Printed {
    if let Some(path) = &args.outputs {
        check_output(path, &[&args.model, &args.data.data])?;
    }
    let model = Model::load(&args.model)?;
    warn(&model.warnings);
    let (data, preprocess) = open(&model, &args.data)?;
    let options = args.engine.options()?;
    let bars = Bars::new();
    let result = compress::evaluate(&model.graph, &data, &preprocess, None, &options, &bars);
    let result = result.map_err(|e| compression_failure(&e))?;
    if let Some(path) = &args.outputs {
        let outputs = compress::outputs(&model.graph, &data, &preprocess, &options, &bars);
        write_atomically(path, &npz_bytes(path, &outputs.map_err(|e| compression_failure(&e))?)?)?;
    }
    let robustness = robust::wanted(&args.robust, None)
        .map(|robust| compress::robustness(&model.graph, &data, &preprocess, &robust, &options, &bars));
    let robustness = robustness.transpose().map_err(|e| compression_failure(&e))?;
    drop(bars);
    let [low, high] = result.ci95;
    if args.json {
        let class = |class: &PerClass| {
            json!({
                "samples": class.total, "precision": class.precision(), "recall": class.recall(), "f1": class.f1(),
            })
        };
        let mut object = json!({
            "samples": result.samples, "metrics": metrics(&result), "ci95": {"accuracy": [low, high]},
            "per_class": result.per_class.iter().map(class).collect::<Vec<_>>(),
            "confusion": result.confusion, "preprocess": preprocess,
        });
        if let Some(robustness) = robustness {
            object["robustness"] = json!(robustness);
        }
        return Ok(one_line(&object));
    }
    let corrupted =
        robustness.map(|robustness| format!("\n\n{}", robust::text(&robustness))).unwrap_or_default();
    let top5 = result.top5.map(|v| format!(", top-5 {:.2} %", 100.0 * v)).unwrap_or_default();
    let auc = result.auc.map(|auc| format!(", AUC {auc:.4}")).unwrap_or_default();
    Ok(format!(
        "accuracy {:.2} % (95 % interval {:.2} to {:.2}){top5} on {} samples\nmacro F1 {:.4}{auc}\npreprocessing {preprocess}{corrupted}",
        100.0 * result.accuracy,
        100.0 * low,
        100.0 * high,
        result.samples,
        result.macro_f1,
    ))
}

/// The figures of a classifier by name.
pub(super) fn metrics(result: &Evaluation) -> Map<String, Value> {
    let mut metrics = Map::new();
    metrics.insert("accuracy".into(), json!(result.accuracy));
    metrics.insert("macro_f1".into(), json!(result.macro_f1));
    for (name, value) in [("top5", result.top5), ("auc", result.auc)] {
        value.into_iter().for_each(|value| drop(metrics.insert(name.into(), json!(value))));
    }
    metrics
}

/// The data set, its classes and texts as the model has them.
pub(super) fn open_samples(model: &Model, path: &Path) -> Result<Dataset, Failure> {
    let Metadata { labels: classes, text, .. } = model.metadata.clone();
    Ok(Dataset::open(path, &OpenOptions { classes, text, ..OpenOptions::default() })?)
}

/// The data set, and how its samples become the model's input.
pub(super) fn open(model: &Model, args: &Data) -> Result<(Dataset, Preprocess), Failure> {
    let data = open_samples(model, &args.data)?;
    let given = args.preprocess.as_deref().map(Preprocess::from_argument).transpose()?;
    let preprocess = model.preprocess_for(&data, given)?;
    Ok((data, preprocess))
}

/// A failure of the compression crate in its three parts.
pub(super) fn compression_failure(error: &compress::CompressError) -> Failure {
    match error {
        compress::CompressError::Cancelled => super::progress::interruption(),
        error => Failure::new(error.what(), error.where_(), error.hint()),
    }
}
