//! Runs every operator's cases in every mode against the reference evaluator. The tests are in `tests/`, one
//! file a mode; this library holds what they share.
#![forbid(unsafe_code)]

use sora_exec::{Options, Session};
use sora_ir::case::{Case, Gen};
use sora_ir::{Graph, Op, evaluate};
use sora_kernels::Isa;
use sora_tensor::Tensor;

/// Rounds of random cases for each operator: `SORA_ROUNDS`, or 6.
fn rounds() -> u64 {
    std::env::var("SORA_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// Every operator's random cases, with the seed they come from.
pub fn all_cases() -> impl Iterator<Item = (u64, Case)> {
    let seeds = (0..rounds()).map(|seed| seed * 7919 + 1);
    seeds.flat_map(|seed| {
        Op::NAMES.iter().flat_map(move |name| {
            let cases = Op::cases(name, &mut Gen::new(seed));
            assert!(!cases.is_empty(), "{name} has no cases");
            cases.into_iter().map(move |case| (seed, case))
        })
    })
}

/// Every way to run a graph on this machine: each ISA with one thread, the best also with two.
pub fn engines() -> Vec<Options> {
    let one = |&isa: &Isa| Options { isa: Some(isa), threads: 1, ..Options::default() };
    let mut engines: Vec<Options> = Isa::available().iter().map(one).collect();
    engines.push(Options { isa: Some(Isa::best()), threads: 2, ..Options::default() });
    engines
}

/// Named tensors, as graphs take them.
pub fn named(given: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

/// What the reference evaluator says.
///
/// # Panics
/// When it refuses the graph.
pub fn reference(graph: &Graph, given: &[(String, Tensor)]) -> Vec<Tensor> {
    evaluate(graph, &named(given)).unwrap_or_else(|e| panic!("{e}"))
}

/// What the engine says under `options`.
///
/// # Panics
/// When it refuses the graph.
pub fn run(graph: &Graph, given: &[(String, Tensor)], options: &Options) -> Vec<Tensor> {
    let session = Session::new(graph.clone(), options.clone()).unwrap_or_else(|e| panic!("{e}"));
    let outputs = session.run(&named(given)).unwrap_or_else(|e| panic!("{e} under {options:?}"));
    outputs.into_iter().map(|(_, tensor)| tensor).collect()
}

/// Checks that `found` is `expected`: same type and shape; integers equal; floats within `tolerance` of the
/// largest finite magnitude, or of 0.01 where all are smaller (a function such as Gelu that cancels to nearly zero
/// keeps the absolute error of its argument); NaN where NaN is expected.
///
/// # Panics
/// With `what` and the worst element when it is not.
pub fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &dyn Fn() -> String) {
    assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{}", what());
    if !expected.dtype().is_float() {
        assert!(found == expected, "{}\nfound    {found:?}\nexpected {expected:?}", what());
        return;
    }
    let (f, e) = (found.to_f64s(), expected.to_f64s());
    let largest = e.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    let step = match expected.dtype() {
        sora_tensor::DType::F16 => 1.0 / 1024.0,
        sora_tensor::DType::BF16 => 1.0 / 128.0,
        _ => 0.0,
    };
    let bound = tolerance.max(step) * largest.max(1e-2);
    for (i, (f, e)) in f.iter().zip(&e).enumerate() {
        let fits = f == e || (f.is_nan() && e.is_nan()) || (f - e).abs() <= bound;
        assert!(fits, "{}\nelement {i} is {f}, expected {e} within {bound}", what());
    }
}
