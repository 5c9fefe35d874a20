//! Training steps timed beside TensorFlow's.

use serde_json::Value;

use crate::python::{Packages, environment};
use crate::shell::{Outcome, cargo, program, root, text};

const USAGE: &str = "usage: cargo xtask training [ROUNDS [SECONDS]]";

/// Measures every network with 1 and 2 threads, both programs in turn, and prints a row of docs/PERFORMANCE.md for each.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let (rounds, seconds) = match arguments {
        [] => (3, "3"),
        [rounds] => (rounds.parse().map_err(|_| USAGE.to_owned())?, "3"),
        [rounds, seconds] => (rounds.parse().map_err(|_| USAGE.to_owned())?, seconds.as_str()),
        _ => return Err(USAGE.to_owned()),
    };
    let python = environment("peers/keras-env", &[Packages::Whole("peers/keras.txt")])?;
    cargo(&["build", "--release", "--locked", "-p", "sora", "--example", "training_step"]).run()?;
    let ours = text(&root().join("target/release/examples/training_step"));
    let script = text(&root().join(".ci/python/training/step.py"));
    println!("| network, batch 32 | threads | Sora, ms | TensorFlow, ms | ratio | memory, MB |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for network in ["cnn32", "lstm", "mobilenet_v2"] {
        for threads in ["1", "2"] {
            let (mut here, mut there) = (Best::default(), Best::default());
            for _ in 0..rounds {
                here.add(&program(&ours, &[network, "32", threads, seconds, "--json"]).output()?)?;
                there
                    .add(&program(&python, &[script.as_str(), network, "32", threads, seconds]).output()?)?;
            }
            let (sora, peer) = (here.median(), there.median());
            println!(
                "| {network} | {threads} | {sora:.1} | {peer:.1} | {:.2} | {:.0}, {:.0} |",
                sora / peer,
                here.peak,
                there.peak
            );
        }
    }
    Ok(())
}

/// What some runs of a program came to.
#[derive(Default)]
struct Best {
    medians: Vec<f64>,
    peak: f64,
}

impl Best {
    fn add(&mut self, output: &str) -> Outcome {
        let line = output.lines().last().unwrap_or_default();
        let found: Value = serde_json::from_str(line).map_err(|e| format!("{e} in {output:?}"))?;
        let number = |key: &str| found[key].as_f64().ok_or_else(|| format!("no {key} in {line}"));
        self.medians.push(number("median_ms")?);
        self.peak = self.peak.max(number("peak_mb")?);
        Ok(())
    }

    /// The middle of the medians.
    fn median(&mut self) -> f64 {
        self.medians.sort_by(f64::total_cmp);
        self.medians.get(self.medians.len() / 2).copied().unwrap_or(f64::NAN)
    }
}
