//! The official test cases of ONNX: those that a release stores, and those that a newer one holds as code.

use crate::python::{Packages, environment};
use crate::shell::{Outcome, conformance, folder, program, text};

/// The folders of small cases below a release's test data.
const STORED: [&str; 4] = ["node", "simple", "pytorch-operator", "pytorch-converted"];

/// Runs all cases against the lists in `conformance/onnx`; `bless` writes the lists anew.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let bless = match arguments {
        [] => "0",
        [only] if only == "bless" => "1",
        other => return Err(format!("takes nothing or `bless`, found {other:?}")),
    };
    let python = environment("onnxruntime-env", &[Packages::Whole("requirements.txt")])?;
    let data = "import onnx.backend.test as t, os; print(os.path.join(os.path.dirname(t.__file__), 'data'))";
    let data = program(&python, &["-c", data]).output()?;
    let stored: Vec<String> = STORED.iter().map(|name| format!("{}/{name}", data.trim())).collect();
    let light = format!("{}/light", data.trim());
    let newest = environment("onnx-env", &[Packages::Whole("requirements-onnx.txt")])?;
    let made = folder("onnx-cases")?;
    program(&newest, &[".ci/python/onnx_cases.py", &text(&made)]).run()?;
    for (list, folders) in [("1.18.0", stored.join(":")), ("1.18.0-light", light), ("1.23.2", text(&made))] {
        conformance("onnx-cases", "onnx_backend")
            .env("SORA_ONNX_CASES", folders)
            .env("SORA_ONNX_CORRECTED", text(&made))
            .env("SORA_ONNX_LIST", text(&crate::shell::root().join(format!("conformance/onnx/{list}.txt"))))
            .env("SORA_BLESS", bless)
            .run()?;
    }
    Ok(())
}
