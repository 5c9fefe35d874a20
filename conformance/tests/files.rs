//! Every operator survives its text form and ONNX: what comes back computes the same.

use sora_conformance::{all_cases, reference};
use sora_ir::{Op, text};

#[test]
fn text_form_parses_back() {
    for (seed, case) in all_cases() {
        let (graph, _) = case.graph().unwrap();
        let printed = text::print(&graph);
        let again = text::parse(&printed).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{printed}"));
        assert_eq!(text::print(&again), printed);
    }
}

#[test]
fn onnx_reads_back_equal() {
    for (seed, case) in all_cases() {
        let (graph, given) = case.graph().unwrap();
        let written = sora_onnx::to_bytes(&graph, &sora_onnx::ExportOptions::default());
        if let Op::RecurrentGrad(_) = &case.op {
            let why = written.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(why.contains("ONNX has no gradients"), "{why}");
            continue;
        }
        let bytes = written.unwrap_or_else(|e| panic!("seed {seed}, {:?}: {e}", case.op));
        let imported =
            sora_onnx::from_bytes(bytes, None).unwrap_or_else(|e| panic!("seed {seed}, {:?}: {e}", case.op));
        let (found, expected) = (reference(&imported.graph, &given), reference(&graph, &given));
        for (found, expected) in found.iter().zip(&expected) {
            let what = || format!("seed {seed}, {:?}", case.op);
            sora_conformance::assert_close(found, expected, 1e-6, &what);
        }
    }
}
