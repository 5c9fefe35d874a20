//! Analytic gradients are what differences say: every differentiable operator, on its random cases, in `f64`.

use std::collections::BTreeMap;

use sora_ir::case::{Arg, Case, Gen};
use sora_ir::ops::{Binary, BinaryKind, Reduce, ReduceKind};
use sora_ir::{Graph, Op, TensorType, ValueId, evaluate};
use sora_tensor::{DType, Tensor};
use sora_train::{TrainError, differentiate};

/// Distance of the points that a difference is taken between, and the largest error relative to the larger of the slope
/// and 1: the error of a central difference of smooth functions is of the order of the square of the distance.
const STEP: f64 = 1e-4;
const BOUND: f64 = 1e-5;

/// Operators of floats that have no gradient; every other one must pass.
const WITHOUT: &[&str] =
    &["CumProd", "Det", "GridSample", "Late", "MaxRoiPool", "OneHot", "RecurrentGrad", "RoiAlign"];

/// What came of an operator's cases.
#[derive(Default, Debug)]
struct Outcome {
    /// Derivatives compared.
    compared: usize,
    /// Derivatives left out: the function bends between the points.
    bends: usize,
    /// Cases whose gradient was refused, by reason.
    refused: BTreeMap<String, usize>,
}

/// The case with its floats as variables of `f64` and its integers as constants; `None` when no float is differentiable.
fn in_f64(case: &Case) -> Option<Case> {
    let mut floats = 0;
    let inputs = case.inputs.iter().map(|arg| match arg.tensor() {
        Some(tensor) if matches!(tensor.dtype(), DType::F32 | DType::F64) => {
            floats += 1;
            Some(Arg::Var(tensor.cast(DType::F64)))
        }
        Some(tensor) if tensor.dtype().is_float() => None,
        Some(tensor) => Some(Arg::Const(tensor.clone())),
        None => Some(Arg::Absent),
    });
    let inputs = inputs.collect::<Option<Vec<_>>>()?;
    (floats > 0).then(|| Case { inputs, ..case.clone() })
}

/// Adds the sum of all float outputs, each element times a random weight.
fn weighted_sum(graph: &mut Graph, g: &mut Gen) -> Option<ValueId> {
    let mut total = None;
    for (i, output) in graph.outputs().to_vec().into_iter().enumerate() {
        let ty = graph.ty(output.value).clone();
        if !ty.dtype.is_float() {
            continue;
        }
        let weights = g.uniform(ty.dtype, &ty.known_shape()?, 0.5, 1.5);
        let weights = graph.constant(&format!("weights{i}"), weights);
        let name = format!("sum{i}");
        let product = graph.op(&name, Binary { kind: BinaryKind::Mul }, [output.value, weights]).ok()?;
        let sum = Reduce { kind: ReduceKind::Sum, axes: Vec::new(), keep_dims: false };
        let sum = graph.op(&name, sum, [product]).ok()?;
        total = Some(match total {
            None => sum,
            Some(before) => graph.op(&name, Binary { kind: BinaryKind::Add }, [before, sum]).ok()?,
        });
    }
    total
}

fn check(case: &Case, g: &mut Gen, outcome: &mut Outcome) {
    let Ok((mut graph, given)) = case.graph() else { return };
    // A result of fewer digits is a staircase to small differences.
    if graph
        .outputs()
        .iter()
        .any(|o| graph.ty(o.value).dtype.is_float() && graph.ty(o.value).dtype != DType::F64)
    {
        return;
    }
    let Some(loss) = weighted_sum(&mut graph, g) else { return };
    let wrt: Vec<ValueId> = graph.inputs().to_vec();
    graph.set_outputs(Vec::new());
    graph.output("loss", loss);
    let mut with_gradients = graph.clone();
    let grads = match differentiate(&mut with_gradients, loss, &wrt) {
        Ok(grads) => grads,
        Err(TrainError::NotDifferentiable { why, .. }) => {
            *outcome.refused.entry(why).or_default() += 1;
            return;
        }
        Err(error) => panic!("{case:?}: {error}"),
    };
    grads.iter().enumerate().for_each(|(i, &v)| with_gradients.output(&format!("g{i}"), v));
    sora_ir::verify(&with_gradients).unwrap();
    let run = |graph: &Graph, given: &[(String, Tensor)]| {
        let given: Vec<_> = given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        evaluate(graph, &given).unwrap_or_else(|e| panic!("{case:?}: {e}"))
    };
    let results = run(&with_gradients, &given);
    let middle = results[0].to_f64s()[0];
    for (i, (_, x)) in given.iter().enumerate() {
        assert_eq!(TensorType::of(x), TensorType::of(&results[1 + i]), "{case:?}");
        let analytic = results[1 + i].to_f64s();
        for _ in 0..x.len().min(6) {
            let at = g.size(0, x.len() - 1);
            let moved = |by: f64| {
                let mut values = x.to_f64s();
                values[at] += by;
                let mut given = given.clone();
                given[i].1 = Tensor::from_f64s(DType::F64, x.shape(), &values).unwrap();
                run(&graph, &given)[0].to_f64s()[0]
            };
            let (before, after) = (moved(-STEP), moved(STEP));
            let (left, right) = ((middle - before) / STEP, (after - middle) / STEP);
            let slope = (after - before) / (2.0 * STEP);
            // NaN: the point lies at the end of the function's domain.
            if slope.is_nan() || (left - right).abs() > 0.02 * slope.abs().max(1.0) {
                outcome.bends += 1;
                continue;
            }
            outcome.compared += 1;
            let error = (analytic[at] - slope).abs() / slope.abs().max(1.0);
            assert!(
                error < BOUND,
                "input {i}, element {at}: gradient {}, difference {slope}\n{case:?}",
                analytic[at]
            );
        }
    }
}

#[test]
fn gradients_are_what_differences_say() {
    let mut without = Vec::new();
    for name in Op::NAMES {
        let mut outcome = Outcome::default();
        for seed in 0..6 {
            let mut g = Gen::new(seed);
            for case in Op::cases(name, &mut g).iter().filter_map(in_f64) {
                check(&case, &mut g, &mut outcome);
            }
        }
        println!("{name}: {outcome:?}");
        if outcome.compared == 0 {
            if !outcome.refused.is_empty() {
                without.push(*name);
            }
            continue;
        }
        assert!(outcome.bends * 4 < outcome.compared, "{name} bends too often: {outcome:?}");
    }
    assert_eq!(without, WITHOUT);
}
