//! Times the training step of a network of the zoo, with Adam, beside its limit: three times the multiply-adds of the
//! network at this machine's peak.
//!
//! ```text
//! cargo run --release --example training_step -- cnn32 [batch] [threads] [seconds]
//! ```

use std::collections::BTreeMap;
use std::time::Instant;

use sora::exec::{Options, Program};
use sora::tensor::Tensor;
use sora::train::{Loss, Optimizer, Recipe, Trainer};
use sora::zoo::Entry;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: f64| args.get(at).map_or(Ok(default), |text| text.parse::<f64>());
    let (batch, threads, seconds) = (number(1, 32.0)? as usize, number(2, 1.0)? as usize, number(3, 3.0)?);
    let entry = args.first().and_then(|name| Entry::find(name)).ok_or("name a network of the zoo")?;
    let network = entry.network(0)?.into_trainable();
    let mut inputs = Vec::new();
    for &id in network.graph.inputs() {
        let value = network.graph.value(id);
        let shape: Vec<usize> = value.ty.shape.iter().map(|dim| dim.known().unwrap_or(batch)).collect();
        let count = shape.iter().product::<usize>();
        let values: Vec<f64> = (0..count).map(|i| (i as f64 * 0.7).sin()).collect();
        inputs.push((value.name.clone(), Tensor::from_f64s(value.ty.dtype, &shape, &values)?));
    }
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let classes: Vec<i64> = (0..batch as i64).map(|i| i % 10).collect();
    let target = Tensor::vector(&classes);
    let none = BTreeMap::new();
    let recipe = Recipe {
        loss: Loss::new("sparse_categorical_crossentropy", &none)?,
        optimizer: Optimizer::new("adam", &none)?,
        clip: None,
        momentum: 0.99,
        seed: 0,
        average: None,
    };
    let options = Options { threads, ..Options::default() };
    let shapes: Vec<(&str, Vec<usize>)> =
        inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.shape().to_vec())).collect();
    let forward = Program::compile(&network.graph, &shapes, &Options { optimize: false, ..options.clone() })?;
    let macs: u64 = forward.steps().iter().map(|step| step.macs).sum();
    let mut trainer = Trainer::new(network, batch, recipe, options.clone())?;
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < 5 || begun.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        trainer.step(batch, &given, &target, 1e-3)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let (_, profile) = trainer.step_profiled(batch, &given, &target, 1e-3)?;
    let mut steps: Vec<_> = profile.steps.iter().collect();
    steps.sort_by_key(|step| std::cmp::Reverse(step.nanoseconds));
    for step in steps.iter().take(25) {
        let (time, macs) = (step.nanoseconds as f64 / 1e6, step.step.macs as f64);
        println!(
            "{time:8.4} ms {:6.1} Gmac/s {:24} {} {:?}",
            macs / time / 1e6,
            step.step.kernel,
            step.step.name,
            step.step.shape
        );
    }
    let rest: u64 = steps.iter().skip(25).map(|step| step.nanoseconds).sum();
    println!("{:8.4} ms in {} further steps", rest as f64 / 1e6, steps.len().saturating_sub(25));
    times.sort_by(f64::total_cmp);
    println!(
        "least {:.3} ms, median {:.3} ms over {} steps; 3 × {:.1} M multiply-adds; with them at 50 Gmac/s a thread {:.3} ms",
        times[0],
        times[times.len() / 2],
        times.len(),
        macs as f64 / 1e6,
        3.0 * macs as f64 / 50e6 / threads as f64
    );
    Ok(())
}
