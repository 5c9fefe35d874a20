//! Random graphs in Sora and in onnxruntime.

use crate::python::{Packages, environment};
use crate::shell::{Outcome, conformance, folder, program, text};

/// Graphs that lie on the disk at one time.
const AT_ONCE: u64 = 2000;

/// Compares some graphs, made from consecutive seeds: `[COUNT] [SEED]`.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let number = |text: &String| text.parse::<u64>().map_err(|_| format!("`{text}` is no number"));
    match arguments {
        [] => compare(10_000, 0),
        [count] => compare(number(count)?, 0),
        [count, seed] => compare(number(count)?, number(seed)?),
        other => Err(format!("takes the number of graphs and the first seed, found {other:?}")),
    }
}

/// Compares `count` graphs, made from the seeds from `first` on.
pub(crate) fn compare(count: u64, first: u64) -> Outcome {
    let python = environment("onnxruntime-env", &[Packages::Whole("requirements.txt")])?;
    let makers = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    for start in (first..first + count).step_by(AT_ONCE as usize) {
        let end = (first + count).min(start + AT_ONCE);
        let graphs = folder("onnxruntime-graphs")?;
        let make = |maker: u64| {
            let (from, to) =
                (start + (end - start) * maker / makers, start + (end - start) * (maker + 1) / makers);
            let range = ["--seed", &from.to_string(), "--count", &(to - from).to_string()];
            let script = [".ci/python/make_graphs.py", &text(&graphs)];
            program(&python, &[&script[..], &range].concat()).run()
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..makers).map(|maker| scope.spawn(move || make(maker))).collect();
            running
                .into_iter()
                .try_for_each(|maker| maker.join().map_err(|_| "a thread failed".to_owned())?)
        })?;
        conformance("ort-cases", "random_graphs")
            .env("SORA_GRAPHS", &graphs)
            .run()
            .map_err(|why| format!("seeds {start} to {end}, in {}: {why}", graphs.display()))?;
    }
    Ok(())
}
