//! Developer tasks: `cargo xtask NAME`.
#![forbid(unsafe_code)]

mod aarch64;
mod onnxruntime;
mod shell;

use std::process::ExitCode;

use shell::{Outcome, cargo};

/// A task: name, what it does, and the function.
type Task = (&'static str, &'static str, fn() -> Outcome);

const TASKS: &[Task] = &[
    (
        "onnxruntime",
        "compare import, engine and compressed models with onnxruntime (part of CI)",
        onnxruntime::compare,
    ),
    ("threads", "run the thread pool's protocol in every order of events", threads),
    ("aarch64", "test the NEON kernels and what runs on them under emulation", aarch64::test),
    (
        "extended",
        "everything too long for CI: the comparison, many more rounds of conformance, threads, AArch64",
        extended,
    ),
];

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let Some((name, _, task)) = TASKS.iter().find(|(name, ..)| *name == wanted) else {
        eprintln!("usage: cargo xtask NAME, where NAME is one of");
        for (name, what, _) in TASKS {
            eprintln!("  {name:12} {what}");
        }
        return ExitCode::from(2);
    };
    match task() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask {name}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn extended() -> Outcome {
    onnxruntime::compare()?;
    cargo(&["test", "--release", "--locked", "-p", "sora-conformance"]).env("SORA_ROUNDS", "60").run()?;
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
