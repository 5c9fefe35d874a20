//! What a new input shape costs a model that is loaded already: `shapes MODEL [BATCHES]`.
//!
//! Prints the time to load the model and to make its first program, with all weights packed, then the time to make
//! programs for further batch sizes.

use std::time::Instant;

use sora::Model;
use sora::exec::Options;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, rest @ ..] = &args[..] else { return Err("usage: shapes MODEL [BATCHES]".into()) };
    let batches: usize = rest.first().map_or(Ok(7), |b| b.parse())?;
    let start = Instant::now();
    let model = Model::load(path)?;
    let read = start.elapsed();
    let inputs: Vec<(String, Vec<usize>)> =
        model.shapes_at_one().into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect();
    let session = model.session(Options::default())?;
    let optimized = start.elapsed();
    let shapes = |batch: usize| -> Vec<(&str, Vec<usize>)> {
        let with = |shape: &[usize]| {
            shape.iter().enumerate().map(|(i, &n)| if i == 0 { batch } else { n }).collect()
        };
        inputs.iter().map(|(name, shape)| (name.as_str(), with(shape))).collect()
    };
    session.program(&shapes(1))?;
    let loaded = start.elapsed();
    println!(
        "load {loaded:.1?}: read {read:.1?}, optimized {:.1?}, planned and packed {:.1?}",
        optimized - read,
        loaded - optimized
    );
    for batch in 2..2 + batches {
        let start = Instant::now();
        session.program(&shapes(batch))?;
        let took = start.elapsed();
        let share = 100.0 * took.as_secs_f64() / loaded.as_secs_f64();
        println!("batch {batch}: {took:.2?}, {share:.1} % of loading");
    }
    Ok(())
}
