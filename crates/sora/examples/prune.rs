//! Takes channels out of a classifier without training: accuracy with and without reconstruction, and the networks as files
//! for `sora bench`.
//!
//! ```text
//! cargo run --release --example prune -- MODEL DATA FOLDER [FRACTION…]
//! ```
//!
//! The first 1024 samples are observed, accuracy is that of all others.

use std::path::Path;

use sora::compress::{Silent, evaluate, prune};
use sora::data::{Dataset, OpenOptions};
use sora::exec::Options;
use sora::ir::Graph;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, folder, fractions @ ..] = args.as_slice() else {
        return Err("give a model, data and a folder".into());
    };
    let mut model = sora::Model::load(model)?;
    sora::rewrite::optimize(&mut model.graph, &Default::default())?;
    model.graph.compact()?;
    let graph = model.graph.clone();
    let data = Dataset::open(data, &OpenOptions::default())?;
    let preprocess = model.preprocess_for(&data, None)?;
    let (seen, rest): (Vec<usize>, Vec<usize>) = (0..data.len()).partition(|&i| i < 1024);
    let options = Options::default();
    let accuracy = |graph: &Graph| -> Result<f64, Box<dyn std::error::Error>> {
        Ok(evaluate(graph, &data, &preprocess, Some(&rest), &options, &Silent)?.accuracy)
    };
    println!("as it was: {:.4}", accuracy(&graph)?);
    let groups = prune::groups(&graph)?;
    let moments = prune::observe(&graph, &groups, (&data, &preprocess), &seen, &options, &Silent)?;
    for fraction in fractions {
        let share: f64 = fraction.parse()?;
        for (how, seen) in [("weights", None), ("activations", Some(&moments))] {
            let scores = prune::importance(&graph, &groups, seen);
            let keep = prune::uniform(&groups, &scores, share, prune::LANES);
            let plain = prune::remove(&graph, &groups, &keep)?;
            println!("without {fraction}, by {how}: {:.4}", accuracy(&plain)?);
            let whole = prune::reconstruct(&graph, &groups, &keep, &moments, prune::RIDGE)?;
            model.graph = prune::remove(&whole, &groups, &keep)?;
            println!("without {fraction}, by {how}, reconstructed: {:.4}", accuracy(&model.graph)?);
        }
        model.save(Path::new(folder).join(format!("pruned-{fraction}.onnx")))?;
    }
    Ok(())
}
