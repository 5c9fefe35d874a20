//! Imported models against stored outputs of onnxruntime, run by the reference and by every engine.
//!
//! `SORA_ORT_CASES` names a folder of pairs `NAME.onnx` and `NAME.npz`, the latter with the inputs under their
//! names and the outputs under `out:` and their names; `.ci/python/make_cases.py` writes it. Each model is
//! compared as imported, and again after export and a second import.

use std::path::PathBuf;

use sora_conformance::{engines, reference, run};
use sora_ir::Graph;
use sora_onnx::ExportOptions;
use sora_tensor::Tensor;

fn cases() -> Vec<PathBuf> {
    let folder = std::env::var("SORA_ORT_CASES")
        .expect("SORA_ORT_CASES must name the folder that .ci/python/make_cases.py wrote");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("SORA_ORT_CASES={folder}: {e}"));
    let mut models: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    models.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    assert!(!models.is_empty(), "SORA_ORT_CASES={folder} holds no models");
    models
}

/// The greatest difference, relative to the greatest magnitude expected; in steps for 8-bit values.
fn error(expected: &Tensor, found: &Tensor) -> f64 {
    let (a, b) = (expected.to_f64s(), found.to_f64s());
    let difference = a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    let magnitude = a.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    match expected.dtype().size() {
        1 => difference,
        _ => difference / magnitude.max(1e-6),
    }
}

/// The worst error of `found`, the graph's outputs in order.
fn compare(graph: &Graph, found: &[Tensor], stored: &[(String, Tensor)]) -> Result<f64, String> {
    let mut worst: f64 = 0.0;
    for (output, found) in graph.outputs().iter().zip(found) {
        let name = format!("out:{}", output.name);
        let (_, expected) = stored.iter().find(|(n, _)| *n == name).ok_or(format!("{name} is not stored"))?;
        if expected.dtype() != found.dtype() || expected.shape() != found.shape() {
            return Err(format!("{name}: expected {:?}, found {:?}", expected.shape(), found.shape()));
        }
        worst = worst.max(error(expected, found));
    }
    Ok(worst)
}

/// Quantized models may round differently in a few places, which later layers amplify to about two steps of the
/// coarsest of them; everything else agrees up to the order of additions. The outputs of `quantized_elements` are bytes:
/// onnxruntime rounds some of them in fixed point, one step apart where a result lies between two.
fn tolerance(name: &str) -> f64 {
    match name {
        "quantized_elements" => 1.0,
        _ if name.starts_with("quantized") => 2e-2,
        _ => 1e-4,
    }
}

#[test]
fn imported_models_agree_with_onnxruntime() {
    let mut failures = Vec::new();
    for path in cases() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let stored = sora_data::npz::read(&path.with_extension("npz"), 1 << 30).unwrap();
        let first = sora_onnx::load(&path).unwrap_or_else(|e| panic!("{name}: {e}")).graph;
        let exported = sora_onnx::to_bytes(&first, &ExportOptions::default());
        let second = exported.and_then(|bytes| sora_onnx::from_bytes(bytes, None));
        let second = second.unwrap_or_else(|e| panic!("{name}, second import: {e}")).graph;
        let inputs: Vec<(String, Tensor)> =
            stored.iter().filter(|(n, _)| !n.starts_with("out:")).cloned().collect();
        for (graph, import) in [(&first, "first import"), (&second, "second import")] {
            sora_ir::verify(graph).unwrap_or_else(|e| panic!("{name}, {import}: {e}"));
            let mut check = |found: &[Tensor], by: &str| match compare(graph, found, &stored) {
                Ok(error) if error <= tolerance(&name) => println!("{name}, {import}, {by}: {error:.1e}"),
                Ok(error) => failures.push(format!("{name}, {import}, {by}: differs by {error:.1e}")),
                Err(e) => failures.push(format!("{name}, {import}, {by}: {e}")),
            };
            check(&reference(graph, &inputs), "reference");
            for options in engines() {
                check(&run(graph, &inputs, &options), &format!("{options:?}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
