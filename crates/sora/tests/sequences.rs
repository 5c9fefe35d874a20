//! Layers over sequences: which steps count, and that the others change nothing.

use std::collections::BTreeMap;

use sora::exec::{Options, Session};
use sora::ir::{Graph, ValueId, evaluate};
use sora::layers::*;
use sora::tensor::Tensor;
use sora::train::{Loss, Optimizer, Recipe, Trainer};

/// A network over sequences of words below 9 with these layers.
fn words(steps: usize, layers: &[&dyn Layer]) -> (Network, ValueId) {
    let mut net = Network::as_trained("test", 1);
    let x = net.input("x", &[steps], Samples::Index { below: 9 });
    let y = net.sequence(x, layers).unwrap();
    net.output("y", y);
    (net, y)
}

/// The result on the reference evaluator, which that on the engine must be near to.
fn run(graph: &Graph, x: &Tensor) -> Vec<f32> {
    let expected = evaluate(graph, &[("x", x)]).unwrap().remove(0).to_f32s();
    let session = Session::new(graph.clone(), Options::default()).unwrap();
    let found = session.run(&[("x", x)]).unwrap().remove(0).1.to_f32s();
    near(&found, &expected);
    expected
}

fn near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 1e-5, "{f} instead of {e}");
    }
}

#[test]
fn steps_count_up_to_the_last_word_or_the_last_value() {
    let (mut net, y) = words(4, &[&Embedding::new(9, 2).masked(), &Dense::new(3)]);
    net.output("lengths", net.lengths(y).unwrap());
    let x = Tensor::from_slice(&[3, 4], &[3i64, 0, 5, 0, 0, 0, 0, 0, 1, 2, 3, 4]).unwrap();
    let found = evaluate(&net.into_graph(), &[("x", &x)]).unwrap();
    // A sequence of padding counts as one step.
    assert_eq!(found[1].to_i64s(), [3, 1, 4]);

    let mut net = Network::new("test", 1);
    let x = net.input("x", &[3, 2], Samples::UNIT);
    let y = net.layer(x, &Masking).unwrap();
    net.output("lengths", net.lengths(y).unwrap());
    let values = [0f32, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-9, 0.0];
    let x = Tensor::from_slice(&[2, 3, 2], &values).unwrap();
    assert_eq!(evaluate(&net.into_graph(), &[("x", &x)]).unwrap()[0].to_i64s(), [1, 3]);
}

/// The same words with padding behind them give the same result: recurrent layers begin to read backwards at the last
/// step that counts, attention and pooling leave the others out.
#[test]
fn padding_changes_nothing() {
    let table = Embedding::new(9, 4).masked();
    let encoder = TransformerEncoderLayer {
        attention: MultiHeadAttention::new(2),
        feed_forward: 6,
        epsilon: 1e-3,
        dropout: 0.1,
    };
    let both_ways = Lstm::new(3).levels(2).bidirectional();
    let stacks: &[&[&dyn Layer]] = &[
        &[&table, &Lstm::new(3).bidirectional().last()],
        &[&table, &both_ways, &both_ways.last()],
        &[&table, &Gru::new(3).bidirectional(), &LayerNorm::new(1e-3), &SimpleRnn::new(2).last()],
        &[&table, &encoder, &Dropout::new(0.2), &encoder, &GlobalAvgPool1d],
        &[&table, &Activation::Tanh, &Dense::new(3), &GlobalAvgPool1d],
        &[&table, &GlobalMaxPool1d],
    ];
    for layers in stacks {
        let short = Tensor::from_slice(&[2, 3], &[4i64, 1, 7, 2, 0, 3]).unwrap();
        let long = Tensor::from_slice(&[2, 5], &[4i64, 1, 7, 0, 0, 2, 0, 3, 0, 0]).unwrap();
        let graph = |steps| words(steps, layers).0.into_graph();
        near(&run(&graph(5), &long), &run(&graph(3), &short));
        // Without the mask the padding is read.
        let plain: &dyn Layer = &Embedding::new(9, 4);
        let unmasked = [&[plain], &layers[1..]].concat();
        let read = run(&words(5, &unmasked).0.into_graph(), &long);
        assert!(read.iter().zip(run(&graph(3), &short)).any(|(a, b)| (a - b).abs() > 1e-3));
    }
}

#[test]
fn the_mean_is_over_the_steps_that_count() {
    let (net, _) = words(3, &[&Embedding::new(9, 2).masked(), &GlobalAvgPool1d]);
    let table = net.graph().const_value(net.parameters()[0].value).unwrap().to_f32s();
    let row = |word: usize, i: usize| table[2 * word + i];
    let x = Tensor::from_slice(&[2, 3], &[5i64, 0, 2, 6, 0, 0]).unwrap();
    let mean = |i| (row(5, i) + row(0, i) + row(2, i)) / 3.0;
    near(&run(net.graph(), &x), &[mean(0), mean(1), row(6, 0), row(6, 1)]);
}

#[test]
fn positions_and_residual_sums_are_what_they_say() {
    let mut net = Network::as_trained("test", 1);
    let x = net.input("x", &[2, 2], Samples::UNIT);
    let layers: Vec<Box<dyn Layer>> = vec![Box::new(Dense::new(3).without_bias())];
    let shortcut: Vec<Box<dyn Layer>> = vec![Box::new(Dense::new(3).without_bias())];
    let placed = net.layer(x, &Positions).unwrap();
    let sum = net.layer(placed, &Residual::new(layers).shortcut(shortcut)).unwrap();
    let y = net.layer(sum, &Residual::new(vec![Box::new(Activation::Relu)])).unwrap();
    net.output("y", y);
    let names: Vec<&str> = net.parameters().iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["positions.weight", "residual.dense.weight", "residual.shortcut.dense.weight"]);
    let of = |i: usize| net.graph().const_value(net.parameters()[i].value).unwrap().to_f32s();
    let (places, a, b) = (of(0), of(1), of(2));
    let values = [0.5f32, -1.0, 2.0, 0.25];
    let mut expected = Vec::new();
    for step in 0..2 {
        for unit in 0..3 {
            let channel = |c: usize| values[2 * step + c] + places[2 * step + c];
            let sum: f32 = (0..2).map(|c| channel(c) * (a[3 * c + unit] + b[3 * c + unit])).sum();
            expected.push(sum + sum.max(0.0));
        }
    }
    near(&run(net.graph(), &Tensor::from_slice(&[1, 2, 2], &values).unwrap()), &expected);
}

/// Over sequences `[2, 5, 3]`, against plain loops.
#[test]
fn convolutions_and_pools_slide_along_the_steps() {
    let mut rng = fastrand::Rng::with_seed(3);
    let values: Vec<f32> = (0..30).map(|_| rng.f32() - 0.5).collect();
    let at = |n: usize, t: usize, c: usize| values[(n * 5 + t) * 3 + c];
    let x = Tensor::from_slice(&[2, 5, 3], &values).unwrap();
    let of = |layer: &dyn Layer| {
        let mut net = Network::as_trained("test", 1);
        let x = net.input("x", &[5, 3], Samples::UNIT);
        let y = net.layer(x, layer).unwrap();
        net.output("y", y);
        let parameters: Vec<Vec<f32>> =
            net.parameters().iter().map(|p| net.graph().const_value(p.value).unwrap().to_f32s()).collect();
        (net.into_graph(), parameters)
    };
    // Stride 2 over 5 steps with a window of 4, padded to 3 results: 1 step before, 2 behind.
    let (graph, parameters) = of(&Conv1d::new(2, 4).strides(2).padding(Padding::Same));
    let mut expected = Vec::new();
    for (n, t, f) in (0..2).flat_map(|n| (0..3).flat_map(move |t| (0..2).map(move |f| (n, t, f)))) {
        let taps = (0..4).flat_map(|k| (0..3).map(move |c| (k, c)));
        let tap = |(k, c): (usize, usize)| match (2 * t + k).checked_sub(1) {
            Some(step) if step < 5 => at(n, step, c) * parameters[0][(f * 3 + c) * 4 + k],
            _ => 0.0,
        };
        expected.push(taps.map(tap).sum::<f32>() + parameters[1][f]);
    }
    near(&run(&graph, &x), &expected);

    let pairs = |of: fn(f32, f32) -> f32| -> Vec<f32> {
        let places = (0..2).flat_map(|n| (0..2).flat_map(move |t| (0..3).map(move |c| (n, t, c))));
        places.map(|(n, t, c)| of(at(n, 2 * t, c), at(n, 2 * t + 1, c))).collect()
    };
    near(&run(&of(&MaxPool1d::new(2)).0, &x), &pairs(f32::max));
    near(&run(&of(&AvgPool1d::new(2)).0, &x), &pairs(|a, b| (a + b) / 2.0));
    let greatest = |n, c| (0..5).map(|t| at(n, t, c)).fold(f32::MIN, f32::max);
    let expected: Vec<f32> = (0..2).flat_map(|n| (0..3).map(move |c| greatest(n, c))).collect();
    near(&run(&of(&GlobalMaxPool1d).0, &x), &expected);

    let (graph, parameters) = of(&BatchNorm::new(1e-3));
    let [scale, bias, mean, variance] = &parameters[..] else { panic!("{parameters:?}") };
    let normal = |(i, x): (usize, &f32)| {
        let c = i % 3;
        (x - mean[c]) / (variance[c] + 1e-3).sqrt() * scale[c] + bias[c]
    };
    near(&run(&graph, &x), &values.iter().enumerate().map(normal).collect::<Vec<_>>());
}

/// Thirty steps on one batch lower the loss, and move every parameter.
#[test]
fn every_layer_learns() {
    let table = Embedding::new(9, 4).masked();
    let encoder = TransformerEncoderLayer {
        attention: MultiHeadAttention::new(2),
        feed_forward: 6,
        epsilon: 1e-3,
        dropout: 0.0,
    };
    let residual = Residual::new(vec![Box::new(Dense::new(6))]).shortcut(vec![Box::new(Dense::new(6))]);
    let stacks: &[&[&dyn Layer]] = &[
        &[&table, &Lstm::new(5).bidirectional().last()],
        &[&table, &Gru::new(5), &SimpleRnn::new(4).bidirectional().last()],
        &[&table, &Positions, &encoder, &GlobalAvgPool1d],
        &[&table, &residual, &GlobalAvgPool1d],
        &[&table, &Conv1d::new(6, 3).padding(Padding::Same), &Activation::Tanh, &GlobalMaxPool1d],
        &[&table, &Conv1d::new(6, 2).without_bias(), &BatchNorm::new(1e-3), &MaxPool1d::new(2), &Flatten],
        &[&table, &AvgPool1d::new(2), &Flatten, &Dense::new(6).without_bias(), &BatchNorm::new(1e-3)],
    ];
    let x = Tensor::from_slice(&[4, 5], &[4i64, 1, 7, 0, 0, 2, 0, 3, 0, 0, 8, 5, 6, 1, 2, 0, 0, 0, 0, 0]);
    let (x, target) = (x.unwrap(), Tensor::vector(&[0i64, 1, 2, 1]));
    for layers in stacks {
        let mut net = Network::new("test", 2);
        let input = net.input("x", &[5], Samples::Index { below: 9 });
        let y = net.sequence(input, layers).unwrap();
        let y = net.sequence(y, &[&Dense::new(3), &Activation::Softmax]).unwrap();
        net.output("y", y);
        let none = BTreeMap::new();
        let loss = Loss::new("sparse_categorical_crossentropy", &none).unwrap();
        let optimizer = Optimizer::new("adam", &none).unwrap();
        let recipe = Recipe { clip: None, seed: 1, ..Recipe::new(loss, optimizer) };
        let parameters = net.parameters().to_vec();
        let network = net.into_trainable();
        let of = |name: &str| network.graph.const_value(network.graph.find(name).unwrap()).unwrap().to_f32s();
        let before: Vec<Vec<f32>> = parameters.iter().map(|p| of(&p.name)).collect();
        let mut trainer = Trainer::new(network, 4, recipe, Options::default()).unwrap();
        let losses: Vec<f64> = (0..30)
            .map(|_| trainer.step(4, &[("x", &x)], std::slice::from_ref(&target), 0.02).unwrap().loss)
            .collect();
        assert!(losses[29] < 0.7 * losses[0], "{losses:?}");
        let state = trainer.state().unwrap();
        for (parameter, before) in parameters.iter().zip(before) {
            let after = &state.iter().find(|(name, _)| *name == parameter.name).unwrap().1;
            assert_ne!(after.to_f32s(), before, "{}", parameter.name);
        }
    }
}
