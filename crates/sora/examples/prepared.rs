//! Writes samples as a model takes them, with their labels: what `cargo xtask headline` gives other runtimes.
//!
//! `prepared MODEL DATA OUT.npz [PREPROCESS]` writes `x`, the first axis being the sample, `y` where there are labels, and `part`, how
//! `sora compress` divides the data: 0 for calibration, 1 for decisions, 2 for the report.

use std::fs::File;
use std::io::BufWriter;

use sora::Model;
use sora::data::{Dataset, OpenOptions, Preprocess, SplitOptions, npz, split};
use sora::tensor::Tensor;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, data, out, rest @ ..] = &args[..] else {
        return Err("usage: prepared MODEL DATA OUT.npz [PREPROCESS]".into());
    };
    let model = Model::load(model)?;
    let (classes, text) = (model.metadata.labels.clone(), model.metadata.text.clone());
    let data = Dataset::open(data, &OpenOptions { classes, text, ..OpenOptions::default() })?;
    let given = rest.first().map(|text| Preprocess::from_argument(text)).transpose()?;
    let preprocess = model.preprocess_for(&data, given)?;
    let every: Vec<usize> = (0..data.len()).collect();
    let batch = data.batch(&every, &preprocess)?;
    let [(_, x)] = &batch.inputs[..] else { return Err("the model has several inputs".into()) };
    let labels: Vec<i64> =
        batch.labels.iter().map(|&label| i64::try_from(label)).collect::<Result<_, _>>()?;
    let y = Tensor::vector(&labels);
    let parts = split(data.len(), data.labels(), &SplitOptions::default())?;
    let mut part = vec![0i64; data.len()];
    for (number, samples) in [(1, &parts.decision), (2, &parts.report)] {
        samples.iter().for_each(|&sample| part[sample] = number);
    }
    let part = Tensor::vector(&part);
    let arrays = [("x", x), ("part", &part), ("y", &y)];
    npz::write(BufWriter::new(File::create(out)?), if labels.is_empty() { &arrays[..2] } else { &arrays })?;
    Ok(())
}
