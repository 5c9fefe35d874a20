//! Developer tasks: `cargo xtask NAME`.
#![forbid(unsafe_code)]

mod aarch64;
mod fuzz;
mod graphs;
mod headline;
mod inlined;
mod large;
mod models;
mod onnx;
mod onnxruntime;
mod peers;
mod python;
mod shell;
mod training;

use std::process::ExitCode;

use shell::{Outcome, cargo};

/// What a task runs.
enum Run {
    /// Takes no arguments.
    Plain(fn() -> Outcome),
    /// Takes the rest of the command line.
    With(fn(&[String]) -> Outcome),
}

/// A task: name, what it does, and the function.
type Task = (&'static str, &'static str, Run);

const TASKS: &[Task] = &[
    (
        "onnxruntime",
        "compare import, engine and compressed models with onnxruntime (part of CI)",
        Run::Plain(onnxruntime::compare),
    ),
    (
        "latency",
        "time the example beside onnxruntime, in f32 and int8, as released",
        Run::Plain(onnxruntime::latency),
    ),
    (
        "inlined",
        "check that the released kernels call no SIMD intrinsic as a function (part of CI)",
        Run::Plain(inlined::check),
    ),
    (
        "onnx",
        "run the official test cases of ONNX against conformance/onnx (part of CI); `bless` rewrites the lists",
        Run::With(onnx::run),
    ),
    (
        "models",
        "compare real models with onnxruntime at several shapes: results, export, latency",
        Run::With(models::run),
    ),
    (
        "graphs",
        "compare random graphs with onnxruntime: `cargo xtask graphs COUNT SEED`",
        Run::With(graphs::run),
    ),
    (
        "large",
        "load, run and convert a generated model of 3 GB beside onnxruntime: memory, results (13 GB of disk)",
        Run::Plain(large::run),
    ),
    (
        "control",
        "time models with and without each part of optimizing control flow, for docs/PERFORMANCE.md",
        Run::Plain(models::control),
    ),
    (
        "peers",
        "time other runtimes beside Sora and write the tables of docs/PERFORMANCE.md",
        Run::With(peers::run),
    ),
    (
        "headline",
        "compress networks with Sora and with others: accuracy, size, latency; `cargo xtask headline ROW…`",
        Run::With(headline::run),
    ),
    (
        "training",
        "time training steps beside TensorFlow's: `cargo xtask training ROUNDS SECONDS`",
        Run::With(training::run),
    ),
    (
        "fuzz",
        "fuzz one target, or all, for some minutes each: `cargo xtask fuzz onnx 20`",
        Run::With(fuzz::run),
    ),
    ("threads", "run the thread pool's protocol in every order of events", Run::Plain(threads)),
    ("aarch64", "test the NEON kernels and what runs on them under emulation", Run::Plain(aarch64::test)),
    (
        "extended",
        "everything too long for CI: the comparisons, many more rounds of conformance, threads, AArch64",
        Run::Plain(extended),
    ),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (wanted, rest) = arguments.split_first().map_or(("", &[][..]), |(name, rest)| (name.as_str(), rest));
    let Some((name, _, run)) = TASKS.iter().find(|(name, ..)| *name == wanted) else {
        eprintln!("usage: cargo xtask NAME, where NAME is one of");
        for (name, what, _) in TASKS {
            eprintln!("  {name:12} {what}");
        }
        return ExitCode::from(2);
    };
    let outcome = match run {
        Run::Plain(_) if !rest.is_empty() => Err(format!("takes no arguments, found {rest:?}")),
        Run::Plain(task) => task(),
        Run::With(task) => task(rest),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask {name}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn extended() -> Outcome {
    onnxruntime::compare()?;
    onnxruntime::latency()?;
    graphs::compare(10_000, 0)?;
    models::compare()?;
    large::run()?;
    let released = ["-p", "sora-kernels", "-p", "sora-exec", "-p", "sora-conformance"];
    cargo(&[&["test", "--release", "--locked"], &released[..]].concat()).env("SORA_ROUNDS", "60").run()?;
    threads()?;
    aarch64::test()
}

/// Tests `sora-threads` on loom's threads and atomics instead of the standard library's.
fn threads() -> Outcome {
    cargo(&["test", "--release", "--locked", "-p", "sora-threads", "--lib"])
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", "target/loom")
        .run()
}
