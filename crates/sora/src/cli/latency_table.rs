//! `sora bench MODEL --table`: times of layers, for choices on another machine.

use std::path::Path;

use serde_json::json;
use sora::compress::LatencyTable;
use sora::{Failure, Model, table, write_atomically};

use super::args::Bench;
use super::bench::random_inputs;
use super::evaluate::compression_failure;
use super::progress::Bars;
use super::{Printed, check_output, one_line, warn};

/// Times a model's layers in each of their formats and writes the times.
pub(super) fn latency_table(path: &Path, output: &Path, args: &Bench) -> Printed {
    check_output(output, &[path])?;
    let model = Model::load(path)?;
    warn(&model.warnings);
    let inputs = random_inputs(&model, args)?;
    let options = args.engine.options()?;
    let bars = Bars::new();
    let found = LatencyTable::measure(&model.graph, &inputs, &options, &bars);
    drop(bars);
    let found = found.map_err(|e| compression_failure(&e))?;
    let text = toml::to_string(&found)
        .map_err(|e| Failure::new(e.to_string(), "the table", "Report this as a defect."))?;
    let head = "# sora compress MODEL --data DATA --for THIS -o OUT\n\n";
    write_atomically(output, format!("{head}{text}").as_bytes())?;
    if args.json {
        let machine = &found.machine;
        let object = json!({
            "machine": machine, "f32": found.f32, "int8": found.int8, "int8-by-rows": found.by_rows,
            "output": output.display().to_string(),
        });
        return Ok(one_line(&object));
    }
    let cell = |ms: Option<&f64>| ms.map_or("–".to_owned(), |ms| format!("{ms:.4}"));
    let row = |(shape, ms): (&String, &f64)| {
        let own = [Some(ms), found.int8.get(shape), found.by_rows.get(shape)];
        [vec![shape.clone()], own.map(cell).to_vec()].concat()
    };
    let rows: Vec<Vec<String>> = found.f32.iter().map(row).collect();
    let heads = ["layer", "f32 ms", "int8 ms", "int8 by rows"];
    Ok(format!("{}\n{}\nwrote {}", table(&heads, &rows), found.machine, output.display()))
}

/// Reads what [`latency_table`] wrote.
pub(super) fn read_table(path: &Path) -> Result<LatencyTable, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io("read the latency table", path, &e))?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        let place = format!("{}, line {line}", path.display());
        Failure::new(error.message(), place, "`sora bench MODEL --table -o FILE` writes such files.")
    })
}
