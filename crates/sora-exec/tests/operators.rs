//! Every operator's cases: programs give what the reference evaluator gives, on every instruction set and
//! with several threads.

use sora_exec::{Options, Session};
use sora_ir::case::{Case, Gen};
use sora_ir::{Op, evaluate};
use sora_kernels::Isa;
use sora_tensor::Tensor;

/// Asserts that `found` is `expected` up to `tolerance` of its largest magnitude.
fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, context: &str) {
    assert_eq!(found.dtype(), expected.dtype(), "{context}");
    assert_eq!(found.shape(), expected.shape(), "{context}");
    if !expected.dtype().is_float() {
        assert!(found == expected, "{context}\nfound {found:?}\nexpected {expected:?}");
        return;
    }
    let expected = expected.to_f64s();
    // A floor for results that are tiny by cancellation.
    let largest = expected.iter().filter(|v| v.is_finite()).fold(1e-2f64, |a, v| a.max(v.abs()));
    for (i, (a, b)) in found.to_f64s().iter().zip(&expected).enumerate() {
        let same = a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= tolerance * largest;
        assert!(same, "{context}\nelement {i}: found {a}, expected {b}");
    }
}

fn check(case: &Case) {
    let (graph, given) = case.graph().unwrap_or_else(|e| panic!("{e}\n{case:?}"));
    let given: Vec<_> = given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let expected = evaluate(&graph, &given).unwrap_or_else(|e| panic!("{e}\n{case:?}"));
    for &isa in Isa::available() {
        for threads in [1, 2] {
            let options = Options { isa: Some(isa), threads, ..Options::default() };
            let session = Session::new(graph.clone(), options).unwrap();
            let context = format!("{isa}, {threads} threads: {case:?}");
            let found = session.run(&given).unwrap_or_else(|e| panic!("{e}\n{context}"));
            for ((_, found), expected) in found.iter().zip(&expected) {
                assert_close(found, expected, case.tolerance, &context);
            }
        }
    }
}

#[test]
fn programs_agree_with_the_reference() {
    let only = std::env::var("SORA_TEST_OP").ok();
    for name in Op::NAMES.iter().filter(|name| only.as_deref().is_none_or(|only| only == **name)) {
        let mut g = Gen::new(29);
        for _ in 0..3 {
            Op::cases(name, &mut g).iter().for_each(check);
        }
    }
}

/// The kernels of truth values and integers, and of computed places.
#[test]
fn masks_and_counts_have_kernels() {
    use sora_ir::ops::{ReduceKind, Reduction, UnaryKind};
    use sora_tensor::DType;
    let fast = |case: &Case| {
        let dtype = case.inputs[0].tensor().map(Tensor::dtype);
        let number = matches!(dtype, Some(DType::F32 | DType::I32 | DType::I64));
        match &case.op {
            Op::Unary(op) => op.kind == UnaryKind::Not,
            Op::Reduce(op) => {
                number && matches!(op.kind, ReduceKind::Sum | ReduceKind::Max | ReduceKind::Min)
            }
            Op::ScatterElements(op) => number && op.reduction == Reduction::Replace,
            _ => number,
        }
    };
    for name in ["Unary", "Reduce", "TopK", "ScatterElements"] {
        let mut g = Gen::new(37);
        let cases: Vec<Case> = (0..4).flat_map(|_| Op::cases(name, &mut g)).filter(fast).collect();
        assert!(!cases.is_empty(), "{name} has no cases");
        for case in cases {
            let (graph, given) = case.graph().unwrap();
            if graph.outputs().iter().any(|o| graph.ty(o.value).known_len() == Some(0)) {
                continue;
            }
            let session = Session::new(graph, Options::default()).unwrap();
            let shapes: Vec<_> = given.iter().map(|(n, t)| (n.as_str(), t.shape().to_vec())).collect();
            let program = session.program(&shapes).unwrap();
            let slow = program.steps().iter().find(|s| s.kernel.starts_with("reference:"));
            assert!(slow.is_none(), "{slow:?} in {case:?}");
        }
    }
}

/// The cases that must run on kernels, not on the reference evaluator.
#[test]
fn common_operators_have_kernels() {
    use sora_tensor::DType;
    let fast = ["Conv", "ConvTranspose", "MatMul", "MaxPool", "AveragePool", "Softmax", "Transpose"];
    for name in fast {
        let mut g = Gen::new(31);
        for case in Op::cases(name, &mut g) {
            let (graph, given) = case.graph().unwrap();
            let real = case.inputs.iter().filter_map(|i| i.tensor()).all(|t| t.dtype() == DType::F32);
            let constant = !matches!(name, "Conv" | "ConvTranspose") || given.len() == 1;
            if !real || !constant {
                continue;
            }
            let session = Session::new(graph, Options::default()).unwrap();
            let shapes: Vec<_> = given.iter().map(|(n, t)| (n.as_str(), t.shape().to_vec())).collect();
            let program = session.program(&shapes).unwrap();
            let slow = program.steps().iter().find(|s| s.kernel.starts_with("reference:"));
            let axis = case.op != sora_ir::Op::from(sora_ir::ops::Softmax { axis: -1, log: false });
            assert!(slow.is_none() || name == "Softmax" && axis, "{slow:?} in {case:?}");
        }
    }
}
