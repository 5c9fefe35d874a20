//! Rungs keep the function of a network, and meet budgets that plain 8 bits do not.

use sora_data::{Dataset, Preprocess};
use sora_exec::Options as ExecOptions;
use sora_ir::ops::{
    Activation, ActivationKind, AveragePool, BatchNorm, Binary, BinaryKind, Conv, LayerNorm, MatMul, Reduce,
    ReduceKind,
};
use sora_ir::{Graph, Real, ValueId, evaluate};
use sora_tensor::{DType, Tensor};

use super::{Bases, Calibration, RUNGS};
use crate::feed::Feed;
use crate::layers::Network;
use crate::placement::Plan;
use crate::testing::{Net, Random, Silent};
use crate::tests::{SHAPE, cnn, dataset, precision, run, with_classifier};
use crate::{Bound, LatencyTable, Options, Outcome, Precision, Prefer, compress};

/// The network that a rung makes of a graph, calibrated on `x`; `None` where it finds nothing to do.
fn rewritten(graph: &Graph, x: &Tensor, rung: &str) -> Option<Graph> {
    let network = Network::new(graph.clone()).unwrap();
    let data = Dataset::from_arrays(vec![(None, x.clone())], None).unwrap();
    let feed = Feed::new(&network.graph, &data, &Preprocess::default()).unwrap();
    let samples: Vec<usize> = (0..x.shape()[0]).collect();
    let exec = ExecOptions::default();
    let calibration =
        Calibration { feed: &feed, samples: &samples, batch: 16, exec: &exec, progress: &Silent };
    let bases = Bases::new(&network, calibration).unwrap();
    let index = RUNGS.iter().position(|r| r.name == rung).unwrap();
    let plan = Plan { rungs: [index].into(), ..Plan::default() };
    let base = bases.of(&plan).unwrap();
    (!std::rc::Rc::ptr_eq(&base, &bases.of(&Plan::default()).unwrap())).then(|| base.network.graph.clone())
}

/// How far two networks are apart on `x`, as a share of the greatest output.
fn distance(a: &Graph, b: &Graph, x: &Tensor) -> f64 {
    let [a, b] = [a, b].map(|graph| evaluate(graph, &[("x", x)]).unwrap()[0].to_f64s());
    let greatest = a.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    a.iter().zip(&b).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs())) / greatest
}

/// Values whose channels along axis 1 have very different ranges.
fn uneven(random: &mut Random, shape: &[usize], axis: usize, decades: f64) -> Tensor {
    let mut tensor = random.tensor(shape, 0.5);
    let factors: Vec<f32> =
        (0..shape[axis]).map(|_| 10f64.powf(random.uniform(-decades, decades)) as f32).collect();
    let inner: usize = shape[axis + 1..].iter().product();
    let values = tensor.as_mut_slice::<f32>().unwrap();
    values.iter_mut().enumerate().for_each(|(i, v)| *v *= factors[i / inner % shape[axis]]);
    tensor
}

fn conv(net: &mut Net, name: &str, x: ValueId, w: Tensor, group: usize) -> ValueId {
    let (outputs, kernel) = (w.shape()[0], w.shape()[2]);
    let b = uneven(&mut net.random, &[outputs], 0, 1.0);
    let (w, b) = (net.graph.constant(&format!("{name}.w"), w), net.graph.constant(&format!("{name}.b"), b));
    net.op(name, Conv { pads: vec![kernel / 2; 4], group, ..Conv::new(2) }, &[x, w, b])
}

/// Convolutions of all kinds with what may lie between them, and what may not.
fn random_convolutions(seed: u64) -> (Graph, Tensor) {
    let (mut net, input) = Net::new(seed, &[3, 8, 8]);
    let (mut x, mut channels) = (input, 3);
    for layer in 0..4 {
        let name = |part: &str| format!("{part}{layer}");
        let depthwise = layer > 0 && net.random.below(2) == 0;
        let (outputs, group) =
            if depthwise { (channels, channels) } else { (4 + 2 * net.random.below(3), 1) };
        let kernel = 1 + 2 * net.random.below(2);
        let w = uneven(&mut net.random, &[outputs, channels / group, kernel, kernel], 0, 1.5);
        x = conv(&mut net, &name("conv"), x, w, group);
        channels = outputs;
        let activation = |kind, alpha, beta| Activation { kind, alpha: Real(alpha), beta: Real(beta) };
        x = match net.random.below(5) {
            0 => net.relu(&name("relu"), x),
            1 => net.op(&name("leaky"), activation(ActivationKind::LeakyRelu, 0.1, 0.0), &[x]),
            2 => net.op(&name("clip"), activation(ActivationKind::Clip, 0.0, 6.0), &[x]),
            3 => net.op(&name("hard"), activation(ActivationKind::HardSigmoid, 0.2, 0.5), &[x]),
            _ => x,
        };
        if layer == 1 && net.random.below(2) == 0 {
            x = net.pool("pool", x);
        } else if layer == 1 {
            let (kernel, strides, pads) = (vec![2; 2], vec![2; 2], vec![0; 4]);
            let (dilations, ceil_mode, count_include_pad) = (vec![1; 2], false, false);
            x = net.op(
                "mean",
                AveragePool { kernel, strides, pads, dilations, ceil_mode, count_include_pad },
                &[x],
            );
        }
    }
    let (features, flat) = match net.random.below(2) {
        0 => (16 * channels, net.flatten("flat", x, 16 * channels)),
        _ => {
            let mean = Reduce { kind: ReduceKind::Mean, axes: vec![2, 3], keep_dims: false };
            (channels, net.op("pooled", mean, &[x]))
        }
    };
    assert_eq!(net.graph.ty(flat).shape[1].known(), Some(features));
    let y = net.dense("y", flat, 5);
    let x = net.random.tensor(&[12, 3, 8, 8], 1.0);
    (net.done(y), x)
}

#[test]
fn equalization_keeps_the_function() {
    let mut changed = 0;
    for seed in 0..30 {
        let (graph, x) = random_convolutions(seed);
        let Some(equalized) = rewritten(&graph, &x, "cross-layer equalization") else { continue };
        changed += 1;
        assert!(distance(&graph, &equalized, &x) < 1e-5, "seed {seed}");
    }
    assert!(changed > 20, "{changed}");
}

#[test]
fn what_is_cut_is_not_scaled_into_its_bound() {
    let (mut net, x) = Net::new(7, &[3, 6, 6]);
    let mut w = net.random.tensor(&[4, 3, 1, 1], 1.0);
    // Channel 0 is cut, channel 1 far from it.
    w.as_mut_slice::<f32>().unwrap()[..3].iter_mut().for_each(|v| *v *= 20.0);
    w.as_mut_slice::<f32>().unwrap()[3..6].iter_mut().for_each(|v| *v *= 0.01);
    let w = net.graph.constant("a.w", w);
    let a = net.op("a", Conv::new(2), &[x, w]);
    let clip = Activation { kind: ActivationKind::Clip, alpha: Real(0.0), beta: Real(6.0) };
    let a = net.op("clip", clip, &[a]);
    let w = net.random.tensor(&[4, 1, 3, 3], 0.5);
    let b = conv(&mut net, "b", a, w, 4);
    let y = net.flatten("y", b, 144);
    let x = net.random.tensor(&[20, 3, 6, 6], 1.0);
    let graph = net.done(y);
    let equalized = rewritten(&graph, &x, "cross-layer equalization").unwrap();
    let weights = |graph: &Graph| graph.const_value(graph.find("a.w").unwrap()).unwrap().to_f32s();
    let (before, after) = (weights(&graph), weights(&equalized));
    assert_eq!(before[..3], after[..3]);
    assert!(after[3].abs() > 5.0 * before[3].abs());
    assert!(distance(&graph, &equalized, &x) < 1e-5);
    // The same on all samples that go up to twice as far.
    let twice: Vec<f32> = x.to_f32s().iter().map(|v| 1.5 * v).collect();
    let twice = Tensor::from_slice(x.shape(), &twice).unwrap();
    assert!(distance(&graph, &equalized, &twice) < 1e-5);
}

/// Values with outliers in a few channels: behind a layer norm, a batch norm with a ReLU, or a multiplication.
fn random_scales(seed: u64) -> (Graph, Tensor) {
    let (mut net, x) = Net::new(seed, &[6, 16]);
    let outliers = |net: &mut Net, name: &str, shape: &[usize]| {
        let axis = shape.iter().position(|&extent| extent > 1).unwrap();
        let tensor = uneven(&mut net.random, shape, axis, 1.5);
        net.graph.constant(name, tensor)
    };
    let scale = outliers(&mut net, "scale", &[16]);
    let normed = match seed % 3 {
        0 => {
            let bias = outliers(&mut net, "bias", &[16]);
            net.op("norm", LayerNorm { axis: -1, epsilon: Real(1e-5) }, &[x, scale, bias])
        }
        1 => net.op("norm", LayerNorm { axis: 2, epsilon: Real(1e-5) }, &[x, scale]),
        _ => net.op("norm", Binary { kind: BinaryKind::Mul }, &[x, scale]),
    };
    let product = |net: &mut Net, name: &str, x: ValueId| {
        let w = net.random.tensor(&[16, 8], 0.3);
        let w = net.graph.constant(&format!("{name}.w"), w);
        net.op(name, MatMul {}, &[x, w])
    };
    let (q, k) = (product(&mut net, "q", normed), product(&mut net, "k", normed));
    let y = net.add("sum", q, k);
    let x = net.random.tensor(&[30, 6, 16], 1.0);
    (net.done(y), x)
}

#[test]
fn smoothing_keeps_the_function() {
    for seed in 0..12 {
        let (graph, x) = random_scales(seed);
        let smooth = rewritten(&graph, &x, "SmoothQuant").unwrap();
        assert!(distance(&graph, &smooth, &x) < 1e-5, "seed {seed}");
    }
    let (mut net, input) = Net::new(50, &[8, 6, 6]);
    let parts = ["scale", "bias", "mean", "variance"].map(|name| {
        let values = uneven(&mut net.random, &[8], 0, 1.0);
        let values: Vec<f32> =
            values.to_f32s().iter().map(|v| if name == "variance" { v.abs() + 0.1 } else { *v }).collect();
        net.graph.constant(name, Tensor::vector(&values))
    });
    let inputs = [&[input][..], &parts].concat();
    let a = net.op("norm", BatchNorm { epsilon: Real(1e-5) }, &inputs);
    let a = net.relu("relu", a);
    let y = net.conv("y", a, 4);
    let x = net.random.tensor(&[30, 8, 6, 6], 1.0);
    let graph = net.done(y);
    let smooth = rewritten(&graph, &x, "SmoothQuant").unwrap();
    assert!(distance(&graph, &smooth, &x) < 1e-5);
}

#[test]
fn values_that_others_read_stay_as_they_are() {
    let (mut net, x) = Net::new(51, &[6, 16]);
    let scale = uneven(&mut net.random, &[16], 0, 1.5);
    let scale = net.graph.constant("scale", scale);
    let normed = net.op("norm", LayerNorm { axis: -1, epsilon: Real(1e-5) }, &[x, scale]);
    let w = net.random.tensor(&[16, 16], 0.3);
    let w = net.graph.constant("w", w);
    let product = net.op("product", MatMul {}, &[normed, w]);
    let y = net.add("residual", product, normed);
    let x = net.random.tensor(&[20, 6, 16], 1.0);
    assert!(rewritten(&net.done(y), &x, "SmoothQuant").is_none());
}

fn kept(outcome: &Outcome) -> Vec<&'static str> {
    outcome.rungs.iter().filter(|trial| trial.kept).map(|trial| trial.rung).collect()
}

/// The same network again from its recipe.
fn follows(graph: &Graph, data: &Dataset, outcome: &Outcome, options: Options) {
    let options = Options { recipe: Some(outcome.recipe.clone()), ..options };
    let again = compress(graph, data, &Preprocess::default(), &options, &Silent).unwrap();
    assert_eq!(sora_ir::text::print(&again.graph), sora_ir::text::print(&outcome.graph));
}

/// Depthwise convolutions between others, channels of ranges that differ by orders of magnitude.
fn depthwise() -> Graph {
    let (mut net, x) = Net::new(61, &SHAPE);
    let a = net.conv("a", x, 16);
    let a = net.relu("a.relu", a);
    let w = net.random.tensor(&[16, 1, 3, 3], 0.5);
    let zeros = || Tensor::zeros(DType::F32, &[16]).unwrap();
    let w = net.graph.constant("b.w", w);
    let bias = net.graph.constant("b.b", zeros());
    let b = net.op("b", Conv { pads: vec![1; 4], group: 16, ..Conv::new(2) }, &[a, w, bias]);
    let b = net.relu("b.relu", b);
    let w = net.random.tensor(&[16, 16, 3, 3], 0.15);
    let c = net.conv_of("c", b, w, zeros());
    let c = net.relu("c.relu", c);
    let features = net.flatten("flat", c, 1024);
    let mut graph = with_classifier(net, features, 1024);
    // The same function, its channels scaled and scaled back.
    let mut random = Random::new(62);
    let mut uneven = |made: [&str; 2], read: &str, depthwise: bool| {
        let factors: Vec<f32> = (0..16).map(|_| 10f64.powf(random.uniform(-2.5, 2.5)) as f32).collect();
        for (name, factor) in made.iter().map(|name| (*name, 1.0)).chain([(read, -1.0)]) {
            let value = graph.find(name).unwrap();
            let mut tensor = graph.const_value(value).unwrap().clone();
            let each = tensor.len() / 16;
            for (i, v) in tensor.as_mut_slice::<f32>().unwrap().iter_mut().enumerate() {
                let channel = if name == read && !depthwise { i / 9 % 16 } else { i / each };
                *v *= if factor > 0.0 { factors[channel] } else { 1.0 / factors[channel] };
            }
            graph.set_const(value, tensor).unwrap();
        }
    };
    uneven(["a.w", "a.b"], "b.w", true);
    uneven(["b.w", "b.b"], "c.w", false);
    graph
}

#[test]
fn equalization_meets_the_budget_of_depthwise_networks() {
    let (data, graph) = (dataset(900, 2.0, true), depthwise());
    let outcome = run(&graph, &data, 0.02, Prefer::Size);
    assert!(outcome.steps[0].drop > 0.05, "{:?}", outcome.steps);
    assert!(outcome.met, "{:?}", outcome.steps);
    assert_eq!(kept(&outcome), ["cross-layer equalization"], "{:?}", outcome.steps);
    for name in ["a", "b", "c", "head"] {
        assert_eq!(precision(&outcome, name), Precision::Int8, "{name}");
    }
    let better = |layer: &crate::LayerTrial| layer.layer == "c" && layer.sqnr_db[1] > layer.sqnr_db[0] + 6.0;
    assert!(outcome.rungs[0].layers.iter().any(better), "{:?}", outcome.rungs);
    assert!(outcome.methods.contains(&"cross-layer equalization"));
    follows(&graph, &data, &outcome, Options { max_drop: 0.02, prefer: Prefer::Size, ..Options::default() });
}

/// Where the bound on time leaves every layer in 8 bits, the ladder makes up for what that loses.
#[test]
fn within_bounds_the_ladder_is_climbed_where_the_budget_is_missed() {
    let (data, graph) = (dataset(900, 2.0, true), depthwise());
    let bounded = |max_drop| Options {
        max_drop,
        max_latency: Some(Bound::Share(0.55)),
        table: Some(LatencyTable::of_fast_bytes(&graph, &data)),
        ..Options::default()
    };
    let run =
        |max_drop| compress(&graph, &data, &Preprocess::default(), &bounded(max_drop), &Silent).unwrap();
    let without = run(1.0);
    assert!(without.decision_drop > 0.05 && without.rungs.is_empty(), "{:?}", without.steps);
    let outcome = run(0.02);
    assert!(outcome.met && outcome.after.median_ms <= 0.55 * outcome.before.median_ms, "{:?}", outcome.steps);
    assert_eq!(kept(&outcome), ["cross-layer equalization"], "{:?}", outcome.steps);
    follows(&graph, &data, &outcome, bounded(0.02));
}

#[test]
fn smoothing_meets_the_budget_of_outliers() {
    let (mut net, x) = Net::new(63, &SHAPE);
    let flat = net.flatten("flat", x, 192);
    let (mut scale, mut w) = (vec![1f32; 192], net.random.tensor(&[192, 48], 0.1));
    for channel in [17, 95, 140] {
        scale[channel] = 400.0;
        w.as_mut_slice::<f32>().unwrap()[channel * 48..][..48].iter_mut().for_each(|v| *v /= 400.0);
    }
    let scale = net.graph.constant("scale", Tensor::vector(&scale));
    let normed = net.op("norm", LayerNorm { axis: -1, epsilon: Real(1e-5) }, &[flat, scale]);
    let w = net.graph.constant("w", w);
    let product = net.op("product", MatMul {}, &[normed, w]);
    let features = net.relu("relu", product);
    let graph = with_classifier(net, features, 48);
    let data = dataset(900, 1.0, true);
    let outcome = run(&graph, &data, 0.02, Prefer::Size);
    assert!(outcome.steps[0].drop > 0.05, "{:?}", outcome.steps);
    assert!(outcome.met && kept(&outcome) == ["SmoothQuant"], "{:?}", outcome.steps);
    assert_eq!(precision(&outcome, "product"), Precision::Int8);
    follows(&graph, &data, &outcome, Options { max_drop: 0.02, prefer: Prefer::Size, ..Options::default() });
}

#[test]
fn better_levels_need_fewer_bits() {
    let (data, graph) = (dataset(900, 2.0, true), cnn());
    let options = |max_drop, recipe| Options {
        max_drop,
        prefer: Prefer::Size,
        fewer_bits: true,
        recipe,
        ..Options::default()
    };
    let with = |options: &Options| compress(&graph, &data, &Preprocess::default(), options, &Silent).unwrap();
    let mut recipe = run(&graph, &data, 0.5, Prefer::Size).recipe;
    recipe.weight_bits = 3;
    let nearest = with(&options(0.5, Some(recipe.clone())));
    recipe.rungs = vec!["GPTQ".to_owned()];
    let better = with(&options(0.5, Some(recipe)));
    for name in ["c", "head"] {
        let [before, after] = [&nearest, &better]
            .map(|outcome| outcome.layers.iter().find(|layer| layer.name == name).unwrap().sqnr_db.unwrap());
        assert!(after > before + 1.0, "{name}: {before} dB, {after} dB");
    }
    assert!(better.decision_drop < nearest.decision_drop);
    // Where the budget lies between the two, the search finds that out.
    let found = (0..8).map(|i| options(0.066 + 0.002 * f64::from(i), None)).find_map(|options| {
        let outcome = with(&options);
        let rescues =
            |what: &str| what.contains("3 bits in the file by GPTQ") && what.ends_with("within the budget");
        outcome.steps.iter().any(|step| rescues(&step.what)).then_some((options, outcome))
    });
    let (options, outcome) = found.unwrap();
    assert!(outcome.recipe.rungs.contains(&"GPTQ".to_owned()));
    follows(&graph, &data, &outcome, options);
}

#[test]
fn unknown_rungs_of_a_recipe_are_named() {
    let data = dataset(120, 1.0, true);
    let mut recipe = run(&cnn(), &data, 0.5, Prefer::Size).recipe;
    recipe.rungs = vec!["GPTQ2".to_owned()];
    let options = Options { recipe: Some(recipe), ..Options::default() };
    let error = compress(&cnn(), &data, &Preprocess::default(), &options, &Silent).unwrap_err();
    assert!(error.to_string().contains("`GPTQ2`") && error.to_string().contains("`GPTQ`"), "{error}");
}
