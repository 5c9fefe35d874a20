//! Real models in Sora and in onnxruntime, on real inputs; see `.ci/python/models`.

use std::path::{Path, PathBuf};

use crate::python::{Packages, environment};
use crate::shell::{Outcome, cargo, program, root, text};

/// The fonts of the pictures of text, and the program that speaks.
const SYSTEM: [(&str, &str); 2] = [
    ("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", "fonts-dejavu-core"),
    ("/usr/bin/espeak-ng", "espeak-ng"),
];

/// Compares every model, and prints the table; the arguments are those of `check.py`.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let python = python()?;
    cargo(&["build", "--release", "--locked", "-p", "sora", "--bin", "sora", "--example", "replay"]).run()?;
    let release = root().join("target/release");
    let (sora, replay) = (text(&release.join("sora")), text(&release.join("examples/replay")));
    let given: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let script = [".ci/python/models/check.py", sora.as_str(), replay.as_str()];
    program(&python, &[&script[..], &given].concat()).run()
}

/// The Python of the environment with the models, beside what draws and speaks their inputs.
pub(crate) fn python() -> Outcome<PathBuf> {
    let missing: Vec<&str> =
        SYSTEM.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        program("apt-get", &["update"]).run()?;
        let install = ["install", "--yes", "--no-install-recommends"];
        program("apt-get", &[&install[..], &missing].concat()).run()?;
    }
    packages()
}

/// The Python of the environment with the models.
fn packages() -> Outcome<PathBuf> {
    environment(
        "models-env",
        &[Packages::Whole("models/requirements.txt"), Packages::Alone("models/alone.txt")],
    )
}

/// Prints what each part of optimizing control flow is worth.
pub(crate) fn control() -> Outcome {
    let home = "import sys, sysconfig; sys.stdout.write(sysconfig.get_paths()['purelib'])";
    let home = program(packages()?, &["-c", home]).output()?;
    let model = format!("{home}/silero_vad/data/silero_vad.onnx");
    let example = ["run", "--release", "--locked", "-p", "sora", "--example", "control_flow", "--"];
    cargo(&[&example[..], &[model.as_str()]].concat()).run()
}

/// As [`run`], without measuring.
pub(crate) fn compare() -> Outcome {
    run(&["--seconds".to_owned(), "0".to_owned()])
}
