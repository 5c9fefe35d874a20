//! `sora compress --pareto N`: several networks to pick from, none of which beats another in accuracy, size and time.

use std::path::{Path, PathBuf};

use serde_json::json;
use sora::compress::{self, Options, Outcome};
use sora::data::{Dataset, Preprocess};
use sora::report::{self, Choice, Report};
use sora::{Draft, Model, table, write_together};

use super::args::Compress;
use super::compress::{describe, drafts, finished, recipe_text, result, to_json};
use super::evaluate::compression_failure;
use super::progress::{self, Bars};
use super::{Printed, human_bytes, one_line};

/// Finds up to `count` networks and writes each with its recipe, and its report if asked for.
pub(super) fn pareto(
    args: &Compress,
    model: &Model,
    (data, preprocess): (&Dataset, &Preprocess),
    options: &Options,
    count: usize,
) -> Printed {
    let bars = Bars::new();
    let outcomes = compress::pareto(&model.graph, data, preprocess, options, count, &bars);
    drop(bars);
    let outcomes: Vec<Outcome> = outcomes.map_err(|e| compression_failure(&e))?;
    let own: Vec<Compress> = (1..=outcomes.len()).map(|number| numbered(args, number)).collect();
    let results: Vec<Model> = own
        .iter()
        .zip(&outcomes)
        .map(|(own, outcome)| result(own, model, data, preprocess, outcome))
        .collect();
    let mut files: Vec<Draft> = Vec::new();
    let mut reports: Vec<Report> = Vec::new();
    for ((own, outcome), result) in own.iter().zip(&outcomes).zip(&results) {
        let (drafts, bytes) = drafts(own, result)?;
        reports.push(describe(own, model, &preprocess.to_string(), outcome, bytes));
        files.extend(drafts);
        if let Some(path) = &own.save_recipe {
            files.push(Draft::of(path, recipe_text(&outcome.recipe)?));
        }
    }
    let choices: Vec<Choice> = reports.iter().map(Choice::of).collect();
    for report in &mut reports {
        report.choices.clone_from(&choices);
    }
    progress::check()?;
    for (own, report) in own.iter().zip(&reports) {
        files.extend(own.report.iter().map(|path| Draft::of(path, report::html(report))));
    }
    write_together(files)?;
    finished(args);
    if args.json {
        let each = own.iter().zip(&reports).map(|(own, report)| to_json(own, report)).collect::<Vec<_>>();
        return Ok(one_line(&json!({"pareto": each})));
    }
    let rows: Vec<Vec<String>> = choices.iter().map(row).collect();
    let heads = ["network", "change", "95 % interval", "file size", "latency", "in int8"];
    let mut text = table(&heads, &rows);
    text += &format!(
        "\nnone beats another in drop, size and time on the samples for decisions; changes are those on {} unseen samples\n",
        reports.first().map_or(0, |report| report.split[2])
    );
    let written = own.iter().flat_map(|own| own.output.iter().chain(&own.report).chain(&own.save_recipe));
    text.extend(written.map(|path| format!("wrote {}\n", path.display())));
    Ok(text)
}

/// The arguments for one of the networks: its files have its number, and there is a recipe in any case.
pub(super) fn numbered(args: &Compress, number: usize) -> Compress {
    let recipe = args.save_recipe.clone().or_else(|| Some(args.output.first()?.with_extension("toml")));
    Compress {
        output: args.output.iter().map(|path| with_number(path, number)).collect(),
        report: args.report.as_ref().map(|path| with_number(path, number)),
        save_recipe: recipe.map(|path| with_number(&path, number)),
        ..args.clone()
    }
}

/// `OUT.sora` as `OUT-1.sora`.
fn with_number(path: &Path, number: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{number}{ending}"))
}

fn row(choice: &Choice) -> Vec<String> {
    vec![
        choice.output.clone(),
        format!("{:+.2} points", 0.0 - 100.0 * choice.drop),
        format!("{:+.2} to {:+.2}", -100.0 * choice.drop_ci95[1], -100.0 * choice.drop_ci95[0]),
        human_bytes(choice.bytes),
        format!("{:.4} ms", choice.median_ms),
        format!("{} of {}", choice.int8, choice.layers),
    ]
}
