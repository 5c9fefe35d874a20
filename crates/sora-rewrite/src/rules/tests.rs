//! Every rule on samples, both sides through the reference evaluator.

use std::collections::{BTreeSet, HashMap};

use sora_ir::case::Gen;
use sora_ir::{Dim, Graph, Op, TensorType, evaluate, verify};
use sora_tensor::Tensor;

use crate::manager::optimize_with;
use crate::passes::apply_rules;
use crate::{Options, RULES, Report, Rule, optimize};

/// Random tensors for the inputs of `graph`, symbols bound to random extents.
pub(crate) fn random_inputs(graph: &Graph, g: &mut Gen) -> Vec<(String, Tensor)> {
    let mut extents: HashMap<String, usize> = HashMap::new();
    let ids = graph.inputs().to_vec();
    ids.into_iter()
        .map(|id| {
            let value = graph.value(id);
            let shape: Vec<usize> = value
                .ty
                .shape
                .iter()
                .map(|dim: &Dim| match dim.as_symbol() {
                    Some(name) => *extents.entry(name.to_owned()).or_insert_with(|| g.size(1, 3)),
                    None => dim.known().unwrap(),
                })
                .collect();
            (value.name.clone(), g.tensor(value.ty.dtype, &shape))
        })
        .collect()
}

fn run(graph: &Graph, inputs: &[(String, Tensor)]) -> Vec<Tensor> {
    let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    evaluate(graph, &inputs).unwrap_or_else(|e| panic!("{e}\n{}", show(graph)))
}

fn show(graph: &Graph) -> String {
    sora_ir::text::print_elided(graph, 8)
}

/// The contract with the caller: names and types of inputs and outputs.
fn contract(graph: &Graph) -> Vec<(String, TensorType)> {
    let inputs = graph.inputs().iter().map(|&id| (graph.value(id).name.clone(), graph.ty(id).clone()));
    inputs.chain(graph.outputs().iter().map(|o| (o.name.clone(), graph.ty(o.value).clone()))).collect()
}

/// Whether the contract is kept: types may say what could not be known before.
fn keeps_contract(before: &Graph, after: &Graph) -> bool {
    let (before, after) = (contract(before), contract(after));
    let same = |(a, b): (&Dim, &Dim)| a == b || a.is_unknown();
    before.len() == after.len()
        && before.iter().zip(&after).all(|((name, old), (renamed, new))| {
            name == renamed && old.accepts(new) && old.shape.iter().zip(&new.shape).all(same)
        })
}

/// Whether `b` equals `a`: element for element if `exact` (and then 0 equals -0), else up to rounding relative to
/// the largest magnitude.
fn assert_agree(a: &Tensor, b: &Tensor, exact: bool, context: &str) {
    assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()), "{context}");
    let (a, b) = (a.to_f64s(), b.to_f64s());
    let scale = a.iter().filter(|v| v.is_finite()).fold(1e-3, |m: f64, v| m.max(v.abs()));
    let bound = if exact { 0.0 } else { 1e-5 * scale };
    for (i, (x, y)) in a.iter().zip(&b).enumerate() {
        let same = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= bound;
        assert!(same, "element {i}: {x} became {y}\n{context}");
    }
}

fn assert_same_function(before: &Graph, after: &Graph, exact: bool, g: &mut Gen, what: &str) {
    let context = format!("{what}\nbefore:\n{}after:\n{}", show(before), show(after));
    verify(after).unwrap_or_else(|e| panic!("{e}\n{context}"));
    assert!(keeps_contract(before, after), "{context}");
    let inputs = random_inputs(before, g);
    for (a, b) in run(before, &inputs).iter().zip(&run(after, &inputs)) {
        assert_agree(a, b, exact, &context);
    }
}

fn fires(rule: &Rule, graph: &mut Graph) -> bool {
    let mut report = Report::default();
    apply_rules(graph, &[rule], true, &mut report).unwrap_or_else(|e| panic!("{e}\n{}", show(graph)));
    !report.fired.is_empty()
}

#[test]
fn every_rule_fires_on_its_samples_and_keeps_their_results() {
    for rule in RULES {
        let mut g = Gen::new(7);
        for i in 0..60 {
            let before = (rule.sample)(&mut g).unwrap_or_else(|e| panic!("{}: {e}", rule.name));
            let mut after = before.clone();
            assert!(fires(rule, &mut after), "{} sample {i} does not fire on\n{}", rule.name, show(&before));
            assert_same_function(&before, &after, rule.exact, &mut g, rule.name);
        }
    }
}

#[test]
fn no_rule_fires_on_its_near_misses() {
    for rule in RULES {
        let mut g = Gen::new(8);
        for (i, sample) in rule.near_misses.iter().enumerate() {
            for _ in 0..20 {
                let mut graph = sample(&mut g).unwrap_or_else(|e| panic!("{} miss {i}: {e}", rule.name));
                let before = show(&graph);
                assert!(!fires(rule, &mut graph), "{} fires on near miss {i}\n{before}", rule.name);
            }
        }
    }
}

/// All passes and rules together, on every sample and near miss: the fixed point is reached, nothing changes the
/// function, and a second run finds nothing to do.
#[test]
fn optimizing_any_sample_settles_and_keeps_its_results() {
    let options = Options { check: true, ..Options::default() };
    let mut g = Gen::new(9);
    for rule in RULES {
        for sample in [rule.sample].iter().chain(rule.near_misses).cycle().take(20) {
            let before = sample(&mut g).unwrap();
            for exact_only in [false, true] {
                let mut after = before.clone();
                optimize(&mut after, &Options { exact_only, ..options.clone() }).unwrap();
                assert_same_function(&before, &after, exact_only, &mut g, rule.name);
                let again = optimize(&mut after, &options_of(exact_only)).unwrap();
                assert!(again.fired.is_empty(), "{again}\n{}{}", show(&before), show(&after));
            }
        }
    }
}

fn options_of(exact_only: bool) -> Options {
    Options { check: true, exact_only, ..Options::default() }
}

/// Random cases of every operator: no pass may change what a single node computes.
#[test]
fn optimizing_any_operator_keeps_its_results() {
    let mut g = Gen::new(10);
    for name in Op::NAMES {
        for case in (0..3).flat_map(|_| Op::cases(name, &mut g)) {
            let (before, _) = case.graph().unwrap();
            let mut after = before.clone();
            let rules: Vec<&Rule> = RULES.iter().collect();
            optimize_with(&mut after, &rules, &options_of(false)).unwrap();
            verify(&after).unwrap();
            let given = case.graph().unwrap().1;
            for (a, b) in run(&before, &given).iter().zip(&run(&after, &given)) {
                let scale =
                    a.to_f64s().iter().filter(|v| v.is_finite()).fold(1e-3, |m: f64, v| m.max(v.abs()));
                for (x, y) in a.to_f64s().iter().zip(b.to_f64s()) {
                    let bound = scale * case.tolerance;
                    let same = *x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= bound;
                    assert!(same, "{x} became {y}\n{}{}", show(&before), show(&after));
                }
            }
        }
    }
}

#[test]
fn rules_are_named_and_described_once() {
    let names: BTreeSet<_> = RULES.iter().map(|rule| rule.name).collect();
    assert_eq!(names.len(), RULES.len());
    assert!(RULES.iter().all(|rule| rule.doc.ends_with('.') && rule.doc.len() > 20));
}
