//! Comparison with onnxruntime, in a Python environment with pinned packages that this task makes itself.

use std::path::Path;

use serde_json::Value;

use crate::graphs;
use crate::python::{Packages, environment};
use crate::shell::{Outcome, cargo, conformance, folder, program, root, tested_sora, text};

const EXAMPLE: &str = "examples/fashion-mnist";

/// Random graphs that are compared in CI.
const GRAPHS: u64 = 300;

/// Checks the import and the engine on a set of models, and the example before and after compression.
pub(crate) fn compare() -> Outcome {
    let python = environment("onnxruntime-env", &[Packages::Whole("requirements.txt")])?;
    let cases = folder("onnxruntime-cases")?;
    program(&python, &[".ci/python/make_cases.py", &text(&cases)]).output()?;
    conformance("ort-cases", "onnxruntime").env("SORA_ORT_CASES", &cases).run()?;
    graphs::compare(GRAPHS, 0)?;
    let sora = tested_sora()?;
    zoo(&sora, &python)?;
    example(&sora, &python).map(|_| ())
}

/// Prints the latency of the example in Sora and in onnxruntime, in f32 and in int8, both as they are released.
pub(crate) fn latency() -> Outcome {
    let python = environment("onnxruntime-env", &[Packages::Whole("requirements.txt")])?;
    cargo(&["build", "--release", "--locked", "-p", "sora", "--bin", "sora"]).run()?;
    let sora = root().join("target/release/sora");
    let [model, compressed, qdq] = example(&sora, &python)?;
    in_turns("f32", &sora, &model, &python, &model)?;
    in_turns("int8", &sora, &compressed, &python, &qdq)
}

/// Every network of the zoo gives the same in Sora and in onnxruntime, up to the order of additions.
fn zoo(sora: &Path, python: &Path) -> Outcome {
    let out = folder("onnxruntime-zoo")?;
    let list: Value = serde_json::from_str(&program(sora, &["zoo", "--json"]).output()?)
        .map_err(|e| format!("sora zoo --json: {e}"))?;
    let names =
        list["networks"].as_array().into_iter().flatten().filter_map(|network| network["name"].as_str());
    for name in names {
        let file = |ending: &str| text(&out.join(format!("{name}{ending}")));
        let model = file(".onnx");
        let written = program(sora, &["zoo", name, "-o", &model, "--json"]).output()?;
        let written: Value = serde_json::from_str(&written).map_err(|e| format!("sora zoo {name}: {e}"))?;
        let inputs = written["inputs"].to_string();
        // The script prints what it wrote, one argument of `sora run` a line.
        let outputs = ["outputs", &model, "--inputs", &inputs, "--out", &file("")];
        let given = program(python, &[&[".ci/python/compare.py"], &outputs[..]].concat()).output()?;
        let (ours, theirs) = (file("-sora.npz"), file("-onnxruntime.npz"));
        let mut run = vec!["run", &model, "--output", &ours];
        run.extend(given.lines().flat_map(|input| ["--input", input]));
        program(sora, &run).run()?;
        let agree = ["agree", &ours, &theirs, "--rel", "1e-3", "--min-agreement", "0.99"];
        program(python, &[&[".ci/python/compare.py"], &agree[..]].concat()).run()?;
    }
    Ok(())
}

/// The f32 import agrees with onnxruntime, and so does the exported QDQ model; the budget and the size hold. Returns the files of
/// the model, of what it was compressed to, and of the latter as ONNX.
fn example(sora: &Path, python: &Path) -> Outcome<[String; 3]> {
    let out = folder("onnxruntime-example")?;
    let file = |name: &str| text(&out.join(name));
    let (model, data) = (format!("{EXAMPLE}/model.onnx"), format!("{EXAMPLE}/test"));
    let compare = |arguments: &[&str]| {
        let script = [".ci/python/compare.py"].into_iter().chain(arguments.iter().copied());
        program(python, &script.collect::<Vec<_>>()).run()
    };

    program(sora, &["evaluate", &model, "--data", &data, "--outputs", &file("f32.npz")]).run()?;
    compare(&["logits", &model, "--data", &data, "--out", &file("f32-onnxruntime.npz")])?;
    compare(&["agree", &file("f32.npz"), &file("f32-onnxruntime.npz"), "--rel", "1e-4"])?;

    let (compressed, qdq) = (file("fashion.sora"), file("fashion.onnx"));
    // For size, so that every machine compares the same network: which layers are faster in 8 bits depends on it.
    let budget = ["--data", &data, "--max-drop", "0.005", "--prefer", "size"];
    let outputs = ["-o", &compressed, "-o", &qdq, "--json"];
    let compress = [&["compress", &model][..], &budget, &outputs].concat();
    let result: Value =
        serde_json::from_str(&program(sora, &compress).output()?).map_err(|e| e.to_string())?;
    check(&result)?;
    for (model, outputs) in [(&compressed, "int8.npz"), (&qdq, "int8-from-onnx.npz")] {
        program(sora, &["evaluate", model, "--data", &data, "--outputs", &file(outputs)]).run()?;
    }
    compare(&["agree", &file("int8.npz"), &file("int8-from-onnx.npz"), "--min-agreement", "1"])?;
    compare(&["logits", &qdq, "--data", &data, "--out", &file("int8-onnxruntime.npz")])?;
    compare(&["agree", &file("int8.npz"), &file("int8-onnxruntime.npz"), "--min-agreement", "0.995"])?;
    Ok([model, compressed, qdq])
}

/// Prints the latency of one sample in Sora and in onnxruntime, one thread, taken in turns: the median of five
/// medians each. Recorded, not judged.
fn in_turns(name: &str, sora: &Path, ours: &str, python: &Path, theirs: &str) -> Outcome {
    let median_ms = |printed: String| -> Outcome<f64> {
        let object: Value = serde_json::from_str(&printed).map_err(|e| e.to_string())?;
        object["median_ms"].as_f64().ok_or(format!("no median in {printed}"))
    };
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        a.push(median_ms(program(sora, &["bench", ours, "--seconds", "0.3", "--json"]).output()?)?);
        let script = [".ci/python/compare.py", "latency", theirs, "--seconds", "0.3"];
        b.push(median_ms(program(python, &script).output()?)?);
    }
    a.sort_by(f64::total_cmp);
    b.sort_by(f64::total_cmp);
    eprintln!("{name}: Sora {:.4} ms, onnxruntime {:.4} ms, ratio {:.2}", a[2], b[2], a[2] / b[2]);
    Ok(())
}

fn check(result: &Value) -> Outcome {
    let number = |path: &str| {
        result.pointer(path).and_then(Value::as_f64).ok_or(format!("{path} is missing: {result}"))
    };
    let drop = number("/before/accuracy")? - number("/after/accuracy")?;
    let size = number("/after/bytes")? / number("/before/bytes")?;
    let latency = number("/after/median_ms")? / number("/before/median_ms")?;
    eprintln!("drop {:.2} points, size {size:.3}, latency {latency:.3} of the original", 100.0 * drop);
    // Time is recorded, not judged: the machine may be busy.
    match result["met"] == true && drop <= 0.005 && size <= 0.27 {
        true => Ok(()),
        false => Err(format!("the example is outside its bounds: {result}")),
    }
}
