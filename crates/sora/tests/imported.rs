//! Models that others trained and exported can be trained on.

use std::collections::BTreeMap;
use std::path::Path;

use sora::Model;
use sora::exec::Options;
use sora::ir::ops::{Binary, BinaryKind, If, MatMul, Reduce, ReduceKind, Scan, Unary, UnaryKind};
use sora::ir::{Dim, Graph, Subgraph, TensorType, ValueId, evaluate};
use sora::tensor::{DType, Tensor};
use sora::train::{FineTuning, Loss, Optimizer, Parameter, Penalty, Recipe, Trainable, Trainer};

/// What has no gradient, as the model and the operator.
const REFUSED: &[(&str, &str)] =
    &[("keras_cells.onnx", "has no gradient where the reset comes before the product")];

/// Each exported model gives less where it is asked to give zeros.
#[test]
fn exported_models_learn() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models");
    let mut models: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    models.sort();
    assert!(models.len() >= 17);
    let mut failures = Vec::new();
    for path in models {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let expected = REFUSED.iter().find(|(model, _)| *model == name).map(|(_, why)| *why);
        match (train(&path), expected) {
            (Ok(_), None) => {}
            (Ok(_), Some(_)) => failures.push(format!("{name} is no longer refused")),
            (Err(why), Some(expected)) if why.contains(expected) => {}
            (Err(why), _) => failures.push(format!("{name}: {why}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn train(path: &Path) -> Result<(), String> {
    const BATCH: usize = 2;
    let graph = Model::load(path).map_err(|e| e.to_string())?.graph;
    let tuning =
        FineTuning { freeze: Vec::new(), rate: 1.0, batch_statistics: false, classes: None, seed: 1 };
    let mut network = Trainable::imported(graph, &tuning).map_err(|e| e.to_string())?;
    let mut rng = fastrand::Rng::with_seed(7);
    let mut inputs = Vec::new();
    let mut types = Vec::new();
    for &id in network.graph.inputs() {
        let value = network.graph.value(id);
        let mut shape: Vec<usize> = Vec::new();
        for (axis, dim) in value.ty.shape.iter().enumerate() {
            let open = if axis == 0 {
                BATCH
            } else if value.ty.rank() == 4 {
                32
            } else {
                8
            };
            shape.push(dim.known().unwrap_or(open));
        }
        let count: usize = shape.iter().product();
        let lengths = value.ty.rank() == 1 && value.ty.dtype != DType::F32;
        let values: Vec<f64> = (0..count)
            .map(|_| match value.ty.dtype {
                DType::F32 => rng.f64() - 0.5,
                _ if lengths => 8.0,
                _ => 1.0,
            })
            .collect();
        let extents = shape.iter().map(|&extent| Dim::from(extent));
        types.push((TensorType::new(value.ty.dtype, extents), None));
        let tensor = Tensor::from_f64s(value.ty.dtype, &shape, &values).unwrap();
        inputs.push((value.name.clone(), tensor));
    }
    network.graph = network.graph.with_input_types(&types).map_err(|e| e.to_string())?;
    let none = BTreeMap::new();
    let loss = Loss::new("mean_squared_error", &none).unwrap();
    let recipe = Recipe::new(loss, Optimizer::new("sgd", &none).unwrap());
    let output = network.graph.ty(network.graph.outputs()[0].value).clone();
    let shape = output.known_shape().ok_or(format!("output {output}"))?;
    let target = Tensor::zeros(output.dtype, &shape).unwrap();
    let mut trainer = Trainer::new(network, BATCH, recipe, Options::default()).map_err(|e| e.to_string())?;
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut losses = Vec::new();
    for _ in 0..4 {
        let step = trainer.step(BATCH, &given, std::slice::from_ref(&target), 0.01);
        losses.push(step.map_err(|e| e.to_string())?.loss);
    }
    // A step may be too long; none is lost in the end.
    match losses[3] < losses[0] && losses.iter().all(|loss| loss.is_finite()) {
        true => Ok(()),
        false => Err(format!("losses {losses:?}")),
    }
}

/// A recurrent cell in a Scan, with a branch that depends on data in each step, as `[N, T, C]` becomes `[N, H]`.
fn scanned() -> Trainable {
    const N: usize = 2;
    const T: usize = 5;
    const C: usize = 3;
    const H: usize = 4;
    let ty = |dtype, shape: &[usize]| TensorType::new(dtype, shape.iter().copied());
    let mut rng = fastrand::Rng::with_seed(2);
    let mut graph = Graph::new("scanned");
    let x = graph.input("x", ty(DType::F32, &[N, T, C]));
    let zeros = graph.constant("zeros", Tensor::zeros(DType::F32, &[N, H]).unwrap());
    let parameters: Vec<Parameter> = [("w", [C, H]), ("u", [H, H])]
        .into_iter()
        .map(|(name, shape)| {
            let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| rng.f32() - 0.5).collect();
            let value = graph.constant(name, Tensor::from_slice(&shape, &values).unwrap());
            Parameter {
                name: name.to_owned(),
                value,
                trainable: true,
                rate: 1.0,
                gradient: 1.0,
                penalty: Penalty::default(),
            }
        })
        .collect();
    let (w, u) = (parameters[0].value, parameters[1].value);

    let branch = |scale: f32| {
        let mut branch = Graph::new("branch");
        let h = branch.input("h", ty(DType::F32, &[N, H]));
        let scale = branch.constant("scale", Tensor::scalar(scale));
        let y = branch.op("scaled", Binary { kind: BinaryKind::Mul }, [h, scale]).unwrap();
        branch.output("y", y);
        Subgraph::new(branch).unwrap()
    };
    let mut body = Graph::new("step");
    let (h, x_t) = (body.input("h", ty(DType::F32, &[N, H])), body.input("x_t", ty(DType::F32, &[N, C])));
    let (inner_w, inner_u) =
        (body.input("w", ty(DType::F32, &[C, H])), body.input("u", ty(DType::F32, &[H, H])));
    let of_x = body.op("of_x", MatMul {}, [x_t, inner_w]).unwrap();
    let of_h = body.op("of_h", MatMul {}, [h, inner_u]).unwrap();
    let sum = body.op("sum", Binary { kind: BinaryKind::Add }, [of_x, of_h]).unwrap();
    let new = body.op("new", Unary { kind: UnaryKind::Tanh }, [sum]).unwrap();
    let total = Reduce { kind: ReduceKind::Sum, axes: Vec::new(), keep_dims: false };
    let total = body.op("total", total, [new]).unwrap();
    let zero = body.constant("zero", Tensor::scalar(0f32));
    let positive = body.op("positive", Binary { kind: BinaryKind::Greater }, [total, zero]).unwrap();
    let choice = If { then_branch: branch(1.5), else_branch: branch(0.5) };
    let next = body.op("choice", choice, [positive, new]).unwrap();
    body.output("next", next);
    let scan = Scan {
        body: Subgraph::new(body).unwrap(),
        states: 1,
        input_axes: vec![1],
        input_reverse: vec![false],
        output_axes: vec![],
        output_reverse: vec![],
    };
    let y = graph.op("steps", scan, [zeros, x, w, u]).unwrap();
    graph.output("y", y);
    Trainable { graph, parameters, dropouts: Vec::new() }
}

#[test]
fn gradients_go_through_loops_and_branches() {
    let network = scanned();
    let mut rng = fastrand::Rng::with_seed(5);
    let mut random = |shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.f32() * 2.0 - 1.0).collect();
        Tensor::from_slice(shape, &values).unwrap()
    };
    let (x, target) = (random(&[2, 5, 3]), random(&[2, 4]));
    let none = BTreeMap::new();
    let loss = Loss::new("mean_squared_error", &none).unwrap();
    let recipe = Recipe::new(loss, Optimizer::new("sgd", &none).unwrap());
    let mut trainer = Trainer::new(network.clone(), 2, recipe, Options::default()).unwrap();
    trainer.step(2, &[("x", &x)], std::slice::from_ref(&target), 1.0).unwrap();
    let state = trainer.state().unwrap();
    // The loss as the reference evaluator goes through the loop, with one weight moved.
    let loss = |value: ValueId, at: usize, by: f32| {
        let mut graph = network.graph.clone();
        let mut tensor = graph.const_value(value).unwrap().clone();
        tensor.as_mut_slice::<f32>().unwrap()[at] += by;
        let moved = graph.constant("moved", tensor);
        graph.replace_uses(value, moved);
        let y = evaluate(&graph, &[("x", &x)]).unwrap()[0].to_f64s();
        y.iter().zip(target.to_f64s()).map(|(y, t)| (y - t).powi(2)).sum::<f64>() / y.len() as f64
    };
    for Parameter { name, value, .. } in &network.parameters {
        let before = network.graph.const_value(*value).unwrap().to_f64s();
        let after = state.iter().find(|(known, _)| known == name).unwrap().1.to_f64s();
        for (at, (before, after)) in before.iter().zip(after).enumerate() {
            let slope = (loss(*value, at, 1e-2) - loss(*value, at, -1e-2)) / 2e-2;
            assert!(
                (before - after - slope).abs() < 2e-3,
                "{name}[{at}]: {} instead of {slope}",
                before - after
            );
        }
    }
}
