//! A model of 3 GB: what loading, running and converting it take in time and memory, beside onnxruntime.
//!
//! Pages of a mapped file are no copy: the system takes them back when it needs memory. What counts as a copy is anonymous
//! memory, so both are told apart.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::python::{Packages, environment};
use crate::shell::{Outcome, cargo, folder, program, root, text};

/// The most anonymous memory of commands that compute: the weights as kernels read them, and a tenth.
const COPIES: f64 = 1.1;
/// The most of commands that only read and write, as a share of the weights: one layer's, and what else there is.
const PASSING: f64 = 0.2;

/// The most that a process held, in bytes.
#[derive(Clone, Copy, Default)]
struct Peak {
    anonymous: u64,
    /// Of mapped files.
    mapped: u64,
    /// Of both at once.
    together: u64,
}

/// Watches a process until it ends.
fn watch(mut child: Child) -> Outcome<Peak> {
    let mut peak = Peak::default();
    loop {
        if let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", child.id())) {
            let bytes = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                let number =
                    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
                1024 * number.unwrap_or(0)
            };
            let (anonymous, mapped) = (bytes("RssAnon:"), bytes("RssFile:"));
            peak.anonymous = peak.anonymous.max(anonymous);
            peak.mapped = peak.mapped.max(mapped);
            peak.together = peak.together.max(anonymous + mapped);
        }
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(peak),
            Some(status) => return Err(format!("it failed: {status}")),
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Runs everything, prints the table, and refuses wrong results and second copies.
pub(crate) fn run() -> Outcome {
    let python = environment("onnxruntime-env", &[Packages::Whole("requirements.txt")])?;
    cargo(&["build", "--release", "--locked", "-p", "sora", "--bin", "sora", "--example", "large"]).run()?;
    let release = root().join("target/release");
    let out = folder("large")?;
    let file = |name: &str| text(&out.join(name));
    let result = measure(&release, &python, &file);
    // 13 GB that nobody needs again.
    let _ = std::fs::remove_dir_all(&out);
    result
}

fn measure(release: &Path, python: &Path, file: &dyn Fn(&str) -> String) -> Outcome {
    let sora = release.join("sora");
    let [model, onnx, own, packed] = ["a.onnx", "b.onnx", "c.sora", "d.sora"].map(file);
    let inputs = r#"[{"name": "x", "mean": 0, "std": 1}]"#;
    let ort = |model: &str, name: &str| {
        let script = [".ci/python/compare.py", "outputs", model, "--inputs", inputs, "--out", &file(name)];
        script.map(str::to_owned).to_vec()
    };
    let x = format!("x={}", file("a-x.npy"));
    let run = |model: &str, name: &str| {
        ["run", model, "--input", &x, "--output", &file(name)].map(str::to_owned).to_vec()
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let weights = 12.0 * 8192.0 * 8192.0 * 4.0;
    let rows: [(&str, &Path, Vec<String>, f64); 11] = [
        ("generator", &release.join("examples/large"), words(&[&model]), PASSING),
        ("onnxruntime: load, first result", python, ort(&model, "a"), f64::INFINITY),
        ("sora inspect", &sora, words(&["inspect", &model]), COPIES),
        ("sora run", &sora, run(&model, "a.npz"), COPIES),
        ("sora bench, 3 s", &sora, words(&["bench", &model, "--seconds", "3"]), COPIES),
        ("sora convert to .onnx", &sora, words(&["convert", &model, &onnx]), PASSING),
        ("sora convert to .sora", &sora, words(&["convert", &model, &own]), PASSING),
        ("sora convert --pack to .sora", &sora, words(&["convert", "--pack", &model, &packed]), COPIES),
        ("sora run .sora", &sora, run(&own, "c.npz"), COPIES),
        ("sora run packed .sora", &sora, run(&packed, "d.npz"), PASSING),
        ("onnxruntime: exported model", python, ort(&onnx, "b"), f64::INFINITY),
    ];
    let (mut table, mut wrong) = (Vec::new(), Vec::new());
    for (name, command, arguments, most) in rows {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let start = Instant::now();
        let peak = watch(program(command, &arguments).start()?).map_err(|e| format!("{name}: {e}"))?;
        let seconds = start.elapsed().as_secs_f64();
        let [copies, mapped, together] =
            [peak.anonymous, peak.mapped, peak.together].map(|bytes| bytes as f64 / weights);
        table.push(format!("| {name} | {seconds:.1} | {copies:.2} | {mapped:.2} | {together:.2} |"));
        if copies > most {
            wrong.push(format!("{name} holds {copies:.2} times the weights, at most {most} are allowed"));
        }
    }
    for ours in ["a.npz", "c.npz", "d.npz", "b-onnxruntime.npz"] {
        let agree =
            [".ci/python/compare.py", "agree", &file(ours), &file("a-onnxruntime.npz"), "--rel", "1e-4"];
        program(python, &agree).run()?;
    }
    println!(
        "| 3.2 GB of weights | seconds | anonymous memory ÷ weights | mapped pages ÷ weights | both at once |"
    );
    println!("|---|--:|--:|--:|--:|\n{}", table.join("\n"));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}
