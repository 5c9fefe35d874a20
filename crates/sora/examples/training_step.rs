//! Times the training step of a network of the zoo, with Adam, beside its limit: three times the multiply-adds of the
//! network at this machine's peak. `cargo xtask training` does so beside TensorFlow.
//!
//! ```text
//! cargo run --release --example training_step -- cnn32 [batch] [threads] [seconds] [--json]
//! ```
//!
//! MobileNetV2 gets pictures of 96×96.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::json;
use sora::exec::{Options, Profile, Program};
use sora::ir::{Dim, Graph, TensorType};
use sora::tensor::{DType, Tensor};
use sora::train::{Loss, Optimizer, Recipe, Trainer};
use sora::zoo::Entry;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let json = args.iter().position(|arg| arg == "--json").map(|at| args.remove(at)).is_some();
    let number = |at: usize, default: f64| args.get(at).map_or(Ok(default), |text| text.parse::<f64>());
    let (batch, threads, seconds) = (number(1, 32.0)? as usize, number(2, 1.0)? as usize, number(3, 3.0)?);
    let name = args.first().map_or("", String::as_str);
    let entry = Entry::find(name).ok_or("name a network of the zoo")?;
    let mut network = entry.network(0)?.into_trainable();
    if name == "mobilenet_v2" {
        let extents = [Dim::symbol("batch")].into_iter().chain([3usize, 96, 96].map(Dim::from));
        network.graph = network.graph.with_input_types(&[(TensorType::new(DType::F32, extents), None)])?;
    }
    let mut inputs = Vec::new();
    for &id in network.graph.inputs() {
        let value = network.graph.value(id);
        inputs.push((value.name.clone(), wave(&value.ty, batch)?));
    }
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let output = network.graph.ty(network.graph.outputs()[0].value).clone();
    let (loss, target) = match output.rank() {
        2 => {
            let classes = output.shape[1].known().unwrap_or(1) as i64;
            let labels: Vec<i64> = (0..batch as i64).map(|i| i % classes).collect();
            ("sparse_categorical_crossentropy", Tensor::vector(&labels))
        }
        _ => ("mean_squared_error", wave(&output, batch)?),
    };
    let targets = [target];
    let none = BTreeMap::new();
    let recipe = Recipe::new(Loss::new(loss, &none)?, Optimizer::new("adam", &none)?);
    let options = Options { threads, ..Options::default() };
    let macs = multiply_adds(&network.graph, &given)?;
    let mut trainer = Trainer::new(network, batch, recipe, options.clone())?;
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < 5 || begun.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        trainer.step(batch, &given, &targets, 1e-3)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let (least, median) = (times[0], times[times.len() / 2]);
    if json {
        println!(
            "{}",
            json!({ "least_ms": least, "median_ms": median, "peak_mb": peak_mb(), "macs": 3 * macs })
        );
        return Ok(());
    }
    let (_, profile) = trainer.step_profiled(batch, &given, &targets, 1e-3)?;
    print(&profile);
    println!(
        "least {least:.3} ms, median {median:.3} ms over {} steps; 3 × {:.1} M multiply-adds; with them at 50 Gmac/s a thread {:.3} ms",
        times.len(),
        macs as f64 / 1e6,
        3.0 * macs as f64 / 50e6 / threads as f64
    );
    Ok(())
}

/// Numbers between -1 and 1 of a type whose open extent is the batch.
fn wave(ty: &TensorType, batch: usize) -> Result<Tensor, Box<dyn std::error::Error>> {
    let shape: Vec<usize> = ty.shape.iter().map(|dim| dim.known().unwrap_or(batch)).collect();
    let values: Vec<f64> = (0..shape.iter().product::<usize>()).map(|i| (i as f64 * 0.7).sin()).collect();
    Ok(Tensor::from_f64s(ty.dtype, &shape, &values)?)
}

/// Those of the network on these inputs.
fn multiply_adds(graph: &Graph, given: &[(&str, &Tensor)]) -> Result<u64, Box<dyn std::error::Error>> {
    let shapes: Vec<(&str, Vec<usize>)> =
        given.iter().map(|(name, tensor)| (*name, tensor.shape().to_vec())).collect();
    let options = Options { optimize: false, ..Options::default() };
    Ok(Program::compile(graph, &shapes, &options)?.steps().iter().map(|step| step.macs).sum())
}

/// The largest memory that the process had, in megabytes; 0 where the system does not tell.
fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) / 1024.0
}

/// The slowest steps.
fn print(profile: &Profile) {
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
}
