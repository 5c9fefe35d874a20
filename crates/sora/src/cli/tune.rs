//! `sora bench --tune`.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use sora::exec::{Found, tune as measure};
use sora::tensor::Tensor;
use sora::{Model, save_tuning};

use super::args::Bench;
use super::bench::random_inputs;
use super::{Printed, check_output, engine_failure, one_line, progress, warn};
use sora::table;

/// Measures the alternatives of a model's steps and writes those that make it faster.
pub(super) fn tune(path: &Path, output: &Path, args: &Bench) -> Printed {
    check_output(output, &[path])?;
    let model = Model::load(path)?;
    warn(&model.warnings);
    let inputs = random_inputs(&model, args)?;
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let (options, time) = (args.engine.untuned(), Duration::from_secs_f64(args.seconds));
    let tuned = measure(&model.graph, &given, &options, time, &progress::interrupted);
    progress::check()?;
    let tuned = tuned.map_err(engine_failure(path))?;
    save_tuning(output, &tuned.tuning)?;
    let kept = !tuned.tuning.choices.is_empty();
    Ok(if args.json {
        let found: Vec<_> = tuned.found.iter().map(found_json).collect();
        let network = tuned.network.map(|ns| ns.map(milliseconds));
        one_line(&json!({
            "found": found, "before_ms": network.map(|n| n[0]), "after_ms": network.map(|n| n[1]), "kept": kept,
            "machine": tuned.tuning.machine, "output": output.display().to_string(),
        }))
    } else {
        text(&tuned.found, tuned.network, kept)
    })
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

fn found_json(found: &Found) -> serde_json::Value {
    let ([from, to], [before, after]) = (found.alternatives, found.nanoseconds.map(milliseconds));
    json!({
        "key": found.key, "steps": found.steps, "from": from, "to": to, "before_ms": before, "after_ms": after,
    })
}

fn text(found: &[Found], network: Option<[u64; 2]>, kept: bool) -> String {
    let Some([before, after]) = network else {
        return "the cost model chose as well as measuring does: the file has no choices".to_owned();
    };
    let row = |f: &Found| {
        let [from, to] = f.alternatives.map(str::to_owned);
        let [before, after] = f.nanoseconds.map(|ns| format!("{:.4}", milliseconds(ns)));
        vec![f.key.clone(), f.steps.to_string(), from, to, before, after]
    };
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    let verdict = match kept {
        true => "the file keeps these choices",
        false => "not faster beyond noise: the file has no choices",
    };
    format!(
        "{}\nnetwork: least {:.4} ms by the cost model, {:.4} ms so; {verdict}",
        table(&["step", "times", "cost model", "faster", "ms", "ms then"], &rows),
        milliseconds(before),
        milliseconds(after),
    )
}
