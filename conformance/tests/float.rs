//! The engine against the reference: every operator, every ISA, one thread and two, optimized or not.

use sora_conformance::{all_cases, assert_close, engines, reference, run};
use sora_rewrite::optimize;

#[test]
fn every_engine_agrees_with_the_reference() {
    let mut count = 0;
    for (seed, case) in all_cases() {
        let (graph, given) = case.graph().unwrap();
        let expected = reference(&graph, &given);
        for options in engines() {
            let found = run(&graph, &given, &options);
            for (found, expected) in found.iter().zip(&expected) {
                let what = || format!("seed {seed}, {options:?}, {:?}", case.op);
                assert_close(found, expected, case.tolerance, &what);
            }
            count += 1;
        }
    }
    assert!(count > 1000);
}

#[test]
fn optimizing_changes_nothing() {
    for (seed, case) in all_cases() {
        let (graph, given) = case.graph().unwrap();
        let expected = reference(&graph, &given);
        let mut optimized = graph.clone();
        optimize(&mut optimized, &sora_rewrite::Options::default()).unwrap();
        sora_ir::verify(&optimized).unwrap();
        for (found, expected) in reference(&optimized, &given).iter().zip(&expected) {
            assert_close(found, expected, case.tolerance, &|| format!("seed {seed}, {:?}", case.op));
        }
    }
}
