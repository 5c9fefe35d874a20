//! The engine with products of bf16 against the reference: every operator, every ISA.

use sora_conformance::{all_cases, assert_close, engines, reference, run};
use sora_exec::{Options, Precision};
use sora_ir::Op;

/// Both operands of a product are off by up to 2⁻⁸ of themselves, and sums of products mostly by less of the
/// largest sum; this is 2⁻⁶.
const TOLERANCE: f64 = 1.0 / 64.0;

/// A recurrent layer takes what it is off by into its weights again at every step.
const RECURRENT: f64 = 1.0 / 16.0;

#[test]
fn every_engine_agrees_with_the_reference_as_far_as_bf16_goes() {
    for (seed, case) in all_cases() {
        let (graph, given) = case.graph().unwrap();
        let expected = reference(&graph, &given);
        let recurrent = matches!(case.op, Op::Lstm(_) | Op::Gru(_) | Op::Rnn(_));
        let tolerance = case.tolerance.max(if recurrent { RECURRENT } else { TOLERANCE });
        for options in engines() {
            let options = Options { precision: Precision::Bf16, ..options };
            let found = run(&graph, &given, &options);
            for (found, expected) in found.iter().zip(&expected) {
                let what = || format!("seed {seed}, {options:?}, {:?}", case.op);
                assert_close(found, expected, tolerance, &what);
            }
        }
    }
}
