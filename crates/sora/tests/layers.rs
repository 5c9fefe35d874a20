//! The layers: what they compute, what they are called, and what they refuse.

use sora::ir::{ValueId, evaluate};
use sora::layers::*;
use sora::tensor::Tensor;

/// A network of one input and these layers.
fn chain(shape: &[usize], layers: &[&dyn Layer]) -> Result<(Network, ValueId), LayerError> {
    let mut net = Network::new("test", 1);
    let x = net.input("x", shape, Samples::UNIT);
    let y = net.sequence(x, layers)?;
    net.output("y", y);
    Ok((net, y))
}

fn run(net: Network, shape: &[usize], values: &[f32]) -> Tensor {
    let x = Tensor::from_slice(shape, values).unwrap();
    evaluate(&net.into_graph(), &[("x", &x)]).unwrap().remove(0)
}

#[test]
fn a_network_of_each_kind_has_the_shape_that_the_field_expects() {
    let same = |strides| Conv2d::new(8, 3).strides(strides).padding(Padding::Same);
    let cases: &[(&[usize], &[&dyn Layer], &str)] = &[
        (&[3, 9, 12], &[&Conv2d::new(8, (3, 5))], "f32[batch,8,7,8]"),
        (&[3, 9, 12], &[&same(1)], "f32[batch,8,9,12]"),
        (&[3, 9, 12], &[&same(2)], "f32[batch,8,5,6]"),
        (&[3, 10, 10], &[&Conv2d::new(8, 3).strides(2).padding(Padding::Each(1))], "f32[batch,8,5,5]"),
        (&[6, 9, 9], &[&Conv2d::depthwise(3)], "f32[batch,6,7,7]"),
        (&[6, 9, 9], &[&MaxPool2d::new(2), &AvgPool2d::new(2)], "f32[batch,6,2,2]"),
        (&[6, 9, 9], &[&GlobalAvgPool2d, &Flatten, &Dense::new(4)], "f32[batch,4]"),
        (&[6, 4], &[&Reshape(vec![3, -1]), &Activation::Tanh], "f32[batch,3,8]"),
        (&[5, 12], &[&Lstm::new(7).levels(2)], "f32[batch,5,7]"),
        (&[5, 12], &[&Gru::new(7).levels(2).bidirectional()], "f32[batch,5,14]"),
        (&[5, 12], &[&SimpleRnn::new(7).bidirectional().last()], "f32[batch,14]"),
        (&[5, 12], &[&MultiHeadAttention::new(3), &LayerNorm::new(1e-5)], "f32[batch,5,12]"),
    ];
    for (shape, layers, expected) in cases {
        let (net, y) = chain(shape, layers).unwrap();
        assert_eq!(net.ty(y).to_string(), *expected);
        sora::ir::verify(net.graph()).unwrap();
    }
}

#[test]
fn the_odd_row_of_padding_comes_last() {
    // One row and one column of padding in all for 4×4, stride 2, kernel 3: TensorFlow puts them at the end.
    let (net, _) = chain(&[1, 4, 4], &[&MaxPool2d::new(3).strides(2).padding(Padding::Same)]).unwrap();
    let values: Vec<f32> = (0..16).map(|v| v as f32).collect();
    assert_eq!(run(net, &[1, 1, 4, 4], &values).to_f32s(), [10.0, 11.0, 14.0, 15.0]);
}

/// Each pixel adds its window to the result, 2 apart, of which `Same` cuts off what is beyond 2·2 at the end first.
#[test]
fn transposed_and_separable_convolutions_are_what_loops_say() {
    let x: [f32; 4] = [1.0, -2.0, 0.5, 3.0];
    let layer = Conv2dTranspose::new(1, 3).strides(2).padding(Padding::Same).without_bias();
    let (net, _) = chain(&[1, 2, 2], &[&layer]).unwrap();
    let weight = net.graph().const_value(net.parameters()[0].value).unwrap().to_f32s();
    let mut expected = [0f32; 25];
    for (i, value) in x.iter().enumerate() {
        for (k, w) in weight.iter().enumerate() {
            expected[(2 * (i / 2) + k / 3) * 5 + 2 * (i % 2) + k % 3] += value * w;
        }
    }
    let expected: Vec<f32> = (0..16).map(|i| expected[i / 4 * 5 + i % 4]).collect();
    let found = run(net, &[1, 1, 2, 2], &x).to_f32s();
    assert!(found.iter().zip(&expected).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?} {expected:?}");

    let (net, _) = chain(&[2, 1, 2], &[&SeparableConv2d::new(2, (1, 2))]).unwrap();
    let of = |i: usize| net.graph().const_value(net.parameters()[i].value).unwrap().to_f32s();
    let (depth, point) = (of(0), of(1));
    assert_eq!((net.parameters().len(), depth.len(), point.len()), (3, 4, 4));
    let channel = |c: usize| x[2 * c] * depth[2 * c] + x[2 * c + 1] * depth[2 * c + 1];
    let expected = [0, 1].map(|f| channel(0) * point[2 * f] + channel(1) * point[2 * f + 1]);
    let found = run(net, &[1, 2, 1, 2], &x).to_f32s();
    assert!(found.iter().zip(&expected).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?} {expected:?}");
}

#[test]
fn weights_are_penalized_and_biases_are_not() {
    let penalty = Penalty { l1: 0.0, l2: 0.5 };
    let conv = Penalized::new(Box::new(Conv1d::new(2, 3)), penalty);
    let lstm = Penalized::new(Box::new(Lstm::new(3)), penalty);
    let (net, _) = chain(&[6, 4], &[&conv, &BatchNorm::new(1e-3), &lstm, &Dense::new(2)]).unwrap();
    let priced = net.parameters().iter().filter(|p| p.penalty == penalty).map(|p| p.name.as_str());
    assert_eq!(priced.collect::<Vec<_>>(), ["conv1d.weight", "lstm.weight_ih_0", "lstm.weight_hh_0"]);
}

#[test]
fn a_summary_lists_layers_and_what_they_read() {
    let mut net = Network::new("test", 1);
    let (x, other) = (net.input("x", &[6, 4], Samples::UNIT), net.input("other", &[6, 4], Samples::UNIT));
    let both = net.add(x, other).unwrap();
    let residual = Residual::new(vec![Box::new(Dense::new(4))]);
    let y = net.sequence(both, &[&residual, &BatchNorm::new(1e-3), &Lstm::new(30).last()]).unwrap();
    net.output("y", y);
    // 4·4 + 4, 4·4, and 4·30·(4 + 30 + 2).
    let expected = "\
layer                              output  parameters           reads
─────────────────────────  ──────────────  ──────────  ──────────────
x (input)                  f32[batch,6,4]           0
other (input)              f32[batch,6,4]           0
residual (residual)        f32[batch,6,4]          20        x, other
batch_norm (batch_norm)    f32[batch,6,4]          16        residual
lstm (lstm)                 f32[batch,30]       4,320      batch_norm
4,356 parameters: 4,348 trainable, 8 fixed";
    let found = net.summary().to_string();
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&found)[8..], words(expected)[8..], "{found}");
}

#[test]
fn a_fresh_network_normalizes_by_nothing_and_adds_no_bias() {
    let (net, _) = chain(&[2, 1, 1], &[&BatchNorm2d::new(0.0)]).unwrap();
    assert_eq!(run(net, &[1, 2, 1, 1], &[3.0, -4.0]).to_f32s(), [3.0, -4.0]);
    let (net, _) = chain(&[2], &[&Dense::new(3)]).unwrap();
    assert_eq!(run(net, &[1, 2], &[0.0, 0.0]).to_f32s(), [0.0; 3]);
}

#[test]
fn statistics_as_trained_are_those_of_the_samples() {
    let mut net = Network::as_trained("test", 4);
    let x = net.input("x", &[2, 40, 40], Samples::Normal { mean: 5.0, std: 3.0 });
    // The second normalization must see what the first one made.
    for _ in 0..2 {
        net.layer(x, &BatchNorm2d::new(1e-5)).unwrap();
    }
    let y = net.sequence(x, &[&BatchNorm2d::new(1e-5), &Activation::Relu, &BatchNorm2d::new(1e-5)]).unwrap();
    net.output("y", y);
    let of = |name: &str| {
        let found = net.parameters().iter().find(|p| p.name == name).unwrap_or_else(|| panic!("no {name}"));
        net.graph().const_value(found.value).unwrap().to_f64s()
    };
    for (mean, variance) in of("batch_norm2d.running_mean").iter().zip(of("batch_norm2d.running_var")) {
        assert!((mean - 5.0).abs() < 0.2 && (variance - 9.0).abs() < 0.7, "{mean} {variance}");
    }
    for (mean, scale) in of("batch_norm2d_3.running_mean").iter().zip(of("batch_norm2d_2.weight")) {
        // The mean of a rectified normal value is 0.4 standard deviations.
        assert!((mean / scale - 0.4).abs() < 0.15, "{mean} {scale}");
    }
}

#[test]
fn attention_ignores_what_the_mask_hides() {
    let mut net = Network::as_trained("test", 2);
    let x = net.input("x", &[4, 6], Samples::UNIT);
    let mask = net.input("mask", &[4], Samples::Index { below: 2 });
    let mask = attention_mask(&mut net, mask).unwrap();
    let y = net.layer(x, &MultiHeadAttention::new(2).mask(mask)).unwrap();
    net.output("y", y);
    let graph = net.into_graph();
    let mask = Tensor::from_slice(&[1, 4], &[1i64, 1, 1, 0]).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut values: Vec<f32> = (0..24).map(|_| rng.f32() - 0.5).collect();
    let mut first_words = || {
        values[18..].fill_with(|| rng.f32());
        let x = Tensor::from_slice(&[1, 4, 6], &values).unwrap();
        evaluate(&graph, &[("x", &x), ("mask", &mask)]).unwrap()[0].to_f32s()[..18].to_vec()
    };
    assert_eq!(first_words(), first_words());
}

#[test]
fn parameters_depend_on_their_own_name_only() {
    let weights = |layers: &[&dyn Layer]| {
        let (net, _) = chain(&[3, 8, 8], layers).unwrap();
        let first = net.parameters()[0].clone();
        (first.name, net.graph().const_value(first.value).unwrap().to_f32s())
    };
    let conv = Conv2d::new(4, 3);
    assert_eq!(weights(&[&conv]), weights(&[&conv, &Conv2d::new(9, 1), &Flatten, &Dense::new(2)]));
    let (net, _) = chain(&[3, 8, 8], &[&conv, &conv]).unwrap();
    let names: Vec<&str> = net.parameters().iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["conv2d.weight", "conv2d.bias", "conv2d_1.weight", "conv2d_1.bias"]);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let refused = |shape: &[usize], layer: &dyn Layer, words: &[&str]| {
        let Err(error) = chain(shape, &[layer]) else { panic!("{} took {shape:?}", layer.name()) };
        let error = error.to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(&[3, 8], &Conv2d::new(4, 3), &["conv2d", "f32[batch,3,8]"]);
    refused(&[3, 8, 8], &Conv2d::new(4, 3).groups(2), &["conv2d", "2 groups"]);
    refused(&[3, 1, 1], &Conv2d::new(4, 3), &["conv2d", "too small"]);
    refused(&[8], &MaxPool2d::new(2), &["max_pool2d"]);
    refused(&[8], &Lstm::new(2), &["lstm", "[N, T, C]"]);
    refused(&[5, 8], &MultiHeadAttention::new(3), &["attention", "3 heads"]);
    refused(
        &[3, 8, 8],
        &Normalization { scale: 1.0, mean: vec![0.0], std: vec![1.0] },
        &["normalization", "3"],
    );
}
