//! Random graphs in Sora and in onnxruntime.
//!
//! `SORA_GRAPHS` names a folder that `.ci/python/make_graphs.py` wrote: models `graph_SEED.onnx`, each with a `.npz` of the
//! inputs, of onnxruntime's outputs under `out:` and their names, and under `tolerance:` of how far each output may be
//! off, which is 0 for integers. Each graph runs as imported on the reference evaluator and on the engine, optimized on
//! the engine of every ISA, and after export and a second import.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sora_conformance::{engines, reference, run};
use sora_exec::Options;
use sora_ir::Graph;
use sora_onnx::ExportOptions;
use sora_tensor::Tensor;

fn models() -> Vec<PathBuf> {
    let folder =
        std::env::var("SORA_GRAPHS").expect("SORA_GRAPHS names what .ci/python/make_graphs.py wrote");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("SORA_GRAPHS={folder}: {e}"));
    let mut models: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    models.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    assert!(!models.is_empty(), "SORA_GRAPHS={folder} holds no models");
    models
}

/// A named array of the file.
fn stored<'a>(arrays: &'a [(String, Tensor)], name: &str) -> &'a Tensor {
    &arrays.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{name} is not stored")).1
}

fn compare(graph: &Graph, found: &[Tensor], arrays: &[(String, Tensor)]) -> Result<(), String> {
    for (output, found) in graph.outputs().iter().zip(found) {
        let name = &output.name;
        let expected = stored(arrays, &format!("out:{name}"));
        let tolerance = stored(arrays, &format!("tolerance:{name}")).to_f64s()[0];
        if (found.dtype(), found.shape()) != (expected.dtype(), expected.shape()) {
            let of = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
            return Err(format!("{name} is {} instead of {}", of(found), of(expected)));
        }
        let fits = |f: f64, e: f64| (f - e).abs() <= tolerance;
        let mut pairs = found.to_f64s().into_iter().zip(expected.to_f64s()).enumerate();
        if let Some((at, (f, e))) = pairs.find(|&(_, (f, e))| !fits(f, e)) {
            return Err(format!("{name}[{at}] is {f} instead of {e} within {tolerance:e}"));
        }
    }
    Ok(())
}

/// What differs, one sentence a way to run the graph.
fn check(path: &Path) -> Vec<String> {
    let arrays = sora_data::npz::read(&path.with_extension("npz"), 1 << 30).unwrap();
    let given: Vec<(String, Tensor)> = arrays.iter().filter(|(n, _)| !n.contains(':')).cloned().collect();
    let mut failures = Vec::new();
    let mut attempt = |how: &str, act: &mut dyn FnMut() -> Result<(), String>| {
        let outcome = catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.or(panic.downcast_ref::<&str>().map(|&s| s.to_owned())).unwrap_or_default())
        });
        failures.extend(outcome.err().map(|why| format!("{how}: {why}")));
    };
    let mut imported = None;
    attempt("import", &mut || {
        imported = Some(sora_onnx::load(path).map_err(|e| e.to_string())?.graph);
        Ok(())
    });
    let Some(graph) = &imported else { return failures };
    attempt("reference", &mut || {
        sora_ir::verify(graph).map_err(|e| e.to_string())?;
        compare(graph, &reference(graph, &given), &arrays)
    });
    let as_written = Options { optimize: false, ..Options::default() };
    for options in engines().into_iter().chain([as_written]) {
        let how = format!("{} thread(s), {:?}, optimize={}", options.threads, options.isa, options.optimize);
        attempt(&how, &mut || compare(graph, &run(graph, &given, &options), &arrays));
    }
    attempt("export", &mut || {
        let bytes = sora_onnx::to_bytes(graph, &ExportOptions::default()).map_err(|e| e.to_string())?;
        let again = sora_onnx::from_bytes(bytes, None).map_err(|e| e.to_string())?.graph;
        compare(&again, &run(&again, &given, &Options::default()), &arrays)
    });
    failures
}

#[test]
fn random_graphs_agree_with_onnxruntime() {
    let models = models();
    std::panic::set_hook(Box::new(|_| {}));
    let wrong = |path: &PathBuf| {
        let failures = check(path);
        let seed = path.file_stem().unwrap().to_str().unwrap().trim_start_matches("graph_");
        let report = || format!("seed {seed}, {}:\n  {}", path.display(), failures.join("\n  "));
        (!failures.is_empty()).then(report)
    };
    let wrong: Vec<String> = models.par_iter().filter_map(wrong).collect();
    let _ = std::panic::take_hook();
    let count = models.len();
    assert!(
        wrong.is_empty(),
        "{} of {count} graphs differ; `cargo xtask graphs 1 SEED` makes the one of a seed\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
