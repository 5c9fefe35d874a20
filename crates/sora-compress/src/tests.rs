//! The whole job on small networks.

use sora_data::{Dataset, Preprocess};
use sora_exec::Options as ExecOptions;
use sora_ir::ops::{MatMul, Op, Unary, UnaryKind};
use sora_ir::{Graph, ValueId, evaluate as reference};
use sora_tensor::{DType, Tensor};

use crate::testing::{Net, Random, Silent};
use crate::{
    CompressError, LatencyTable, Options, Outcome, Precision, Prefer, Progress, Reason, compress, evaluate,
};

pub(crate) const CLASSES: usize = 6;
pub(crate) const SHAPE: [usize; 3] = [3, 8, 8];

/// Pictures around one random picture for each class.
pub(crate) fn blobs(samples: usize, noise: f64) -> (Tensor, Vec<usize>) {
    let size = SHAPE.iter().product();
    let mut random = Random::new(17);
    let centers: Vec<Vec<f64>> = (0..CLASSES).map(|_| (0..size).map(|_| random.normal()).collect()).collect();
    let labels: Vec<usize> = (0..samples).map(|i| i % CLASSES).collect();
    let values: Vec<f32> = labels
        .iter()
        .flat_map(|&l| centers[l].iter().map(|c| (c + noise * random.normal()) as f32).collect::<Vec<_>>())
        .collect();
    let shape = [&[samples], &SHAPE[..]].concat();
    (Tensor::from_slice(&shape, &values).unwrap(), labels)
}

pub(crate) fn dataset(samples: usize, noise: f64, labelled: bool) -> Dataset {
    let (x, labels) = blobs(samples, noise);
    Dataset::from_arrays(vec![(None, x)], labelled.then_some(labels)).unwrap()
}

/// Adds the dense layer that tells the classes apart by the distance to their mean features, which are measured.
pub(crate) fn with_classifier(mut net: Net, features: ValueId, depth: usize) -> Graph {
    let mut probe = net.graph.clone();
    probe.output("features", features);
    let (x, labels) = blobs(CLASSES * 4, 0.0);
    let found = reference(&probe, &[("x", &x)]).unwrap();
    let rows = found[0].to_f32s();
    let (mut w, mut b) = (vec![0f32; depth * CLASSES], vec![0f32; CLASSES]);
    for (row, &label) in rows.chunks(depth).zip(&labels).take(CLASSES) {
        for (i, &v) in row.iter().enumerate() {
            w[i * CLASSES + label] = v;
            b[label] -= v * v / 2.0;
        }
    }
    let w = net.graph.constant("head.w", Tensor::from_slice(&[depth, CLASSES], &w).unwrap());
    let b = net.graph.constant("head.b", Tensor::vector(&b));
    let product = net.op("head", MatMul {}, &[features, w]);
    let scores = net.add("head.add", product, b);
    net.done(scores)
}

/// Convolution, pooling, a residual block and a dense layer.
pub(crate) fn cnn() -> Graph {
    let (mut net, x) = Net::new(21, &SHAPE);
    let a = net.conv("a", x, 16);
    let a = net.relu("a.relu", a);
    let a = net.pool("pool", a);
    let b = net.conv("b", a, 16);
    let b = net.relu("b.relu", b);
    let c = net.conv("c", b, 16);
    let c = net.add("sum", c, a);
    let c = net.relu("c.relu", c);
    let features = net.flatten("flat", c, 256);
    with_classifier(net, features, 256)
}

/// A network whose convolution `loud` has one channel a thousand times above the others. Its reader ignores that
/// channel, but on the scale that the channel dictates nothing is left of the others; and what activates them does not let scales
/// pass, so that they cannot be equalized.
fn pathological() -> Graph {
    let (mut net, x) = Net::new(22, &SHAPE);
    let a = net.conv("calm", x, 8);
    let a = net.relu("calm.relu", a);
    let mut w = net.random.tensor(&[8, 8, 3, 3], 0.17);
    w.as_mut_slice::<f32>().unwrap()[..72].iter_mut().for_each(|v| *v *= 1e4);
    let loud = net.conv_of("loud", a, w, Tensor::zeros(DType::F32, &[8]).unwrap());
    let loud = net.op("silu", Unary { kind: UnaryKind::Silu }, &[loud]);
    let mut w = net.random.tensor(&[8, 8, 3, 3], 0.17);
    for output in w.as_mut_slice::<f32>().unwrap().chunks_mut(72) {
        output[..9].fill(0.0);
    }
    let victim = net.conv_of("victim", loud, w, Tensor::zeros(DType::F32, &[8]).unwrap());
    let victim = net.relu("victim.relu", victim);
    let features = net.flatten("flat", victim, 512);
    with_classifier(net, features, 512)
}

pub(crate) fn run(graph: &Graph, data: &Dataset, max_drop: f64, prefer: Prefer) -> Outcome {
    // By size, no decision is to depend on how fast kernels are here.
    let table = (prefer == Prefer::Size).then(|| LatencyTable::of_fast_bytes(graph, data));
    let options = Options { max_drop, prefer, table, ..Options::default() };
    compress(graph, data, &Preprocess::default(), &options, &Silent).unwrap()
}

pub(crate) fn precision(outcome: &Outcome, name: &str) -> Precision {
    outcome.layers.iter().find(|l| l.name == name).unwrap().precision
}

#[test]
fn a_network_is_quantized_within_the_budget() {
    let data = dataset(900, 1.0, true);
    let graph = cnn();
    let outcome = run(&graph, &data, 0.02, Prefer::Size);
    assert!(outcome.met, "{:?} {:?}", outcome.note, outcome.steps);
    assert!(outcome.before.accuracy > 0.8 && outcome.drop.drop <= 0.02, "{:?}", outcome.before);
    for name in ["a", "b", "c", "head"] {
        assert_eq!(precision(&outcome, name), Precision::Int8, "{name}");
        let layer = outcome.layers.iter().find(|l| l.name == name).unwrap();
        assert!(layer.sqnr_db.unwrap() > 20.0, "{layer:?}");
        assert!(layer.bytes_after * 2 < layer.bytes_before, "{layer:?}");
    }
    assert!(outcome.after.weight_bytes * 3 < outcome.before.weight_bytes);
    // The residual is added and the result stays real: no rounding between the sum and its convolution.
    sora_ir::verify(&outcome.graph).unwrap();
    let out = outcome.graph.producer(outcome.graph.outputs()[0].value).unwrap().1;
    assert!(!matches!(out.op, Op::DequantizeLinear(_)));
    assert!(outcome.graph.find("c_quantize").is_none() && outcome.graph.find("c.relu_quantize").is_some());
    assert!(
        outcome.graph.values().all(|(_, v)| !matches!(v.name.as_str(), "a.w" | "b.w" | "c.w" | "head.w"))
    );
    assert_eq!(outcome.graph.outputs()[0].name, "y");
    // The report is made of samples that neither calibrated nor decided.
    let sizes = outcome.split;
    assert_eq!((sizes.calibration, sizes.decision, sizes.report), (90, 360, 450));
    let json = serde_json::to_value(&outcome).unwrap();
    assert_eq!(json["layers"][0]["precision"], "int8");
    assert_eq!(json["metric"], "accuracy");
}

#[test]
fn weights_get_fewer_bits_where_the_budget_allows() {
    let data = dataset(900, 1.0, true);
    let bits = |max_drop| {
        let options = Options { max_drop, prefer: Prefer::Size, fewer_bits: true, ..Options::default() };
        let outcome = compress(&cnn(), &data, &Preprocess::default(), &options, &Silent).unwrap();
        let most = outcome.layers.iter().filter_map(|layer| layer.weight_bits).max().unwrap();
        let levels = outcome.graph.values().filter_map(|(id, _)| outcome.graph.const_value(id));
        let levels = levels.filter(|tensor| tensor.dtype() == sora_tensor::DType::I8 && tensor.rank() > 1);
        let greatest = levels.flat_map(|tensor| tensor.to_i64s()).map(i64::abs).max().unwrap();
        assert!(greatest < 1 << (most - 1));
        most
    };
    assert!(bits(0.3) <= 4 && bits(-1.0) == 8);
}

#[test]
fn the_same_seed_gives_the_same_graph() {
    let data = dataset(300, 1.5, true);
    let graph = cnn();
    let print = || sora_ir::text::print(&run(&graph, &data, 0.05, Prefer::Size).graph);
    assert_eq!(print(), print());
}

#[test]
fn kernels_and_reference_agree_on_the_result() {
    let data = dataset(120, 1.0, true);
    let outcome = run(&cnn(), &data, 0.1, Prefer::Size);
    let (x, _) = blobs(12, 1.0);
    let exact = &reference(&outcome.graph, &[("x", &x)]).unwrap()[0];
    let session = sora_exec::Session::new(outcome.graph.clone(), sora_exec::Options::default()).unwrap();
    let fast = &session.run(&[("x", &x)]).unwrap()[0].1;
    let scale = exact.to_f32s().iter().fold(0f32, |m, v| m.max(v.abs()));
    for (a, b) in exact.to_f32s().iter().zip(fast.to_f32s()) {
        assert!((a - b).abs() < 0.02 * scale, "{a} {b}");
    }
}

#[test]
fn precision_returns_to_the_layer_that_needs_it() {
    let data = dataset(900, 1.0, true);
    let outcome = run(&pathological(), &data, 0.01, Prefer::Size);
    let first = &outcome.steps[0];
    assert!(first.drop > 0.05, "quantizing everything should hurt: {:?}", outcome.steps);
    assert!(outcome.met, "{:?} {:?}", outcome.note, outcome.steps);
    assert_eq!(precision(&outcome, "victim"), Precision::Int8Weights);
    for name in ["calm", "loud", "head"] {
        assert_eq!(precision(&outcome, name), Precision::Int8, "{name}: {:?}", outcome.steps);
    }
    let victim = outcome.layers.iter().find(|l| l.name == "victim").unwrap();
    // Its activations are to blame, not its weights.
    let Reason::WeightsOnly { because } = &victim.reason_code else { panic!("{victim:?}") };
    assert!(matches!(**because, Reason::CostsAccuracy { regained } if regained > 0.05));
}

#[test]
fn an_impossible_budget_is_admitted() {
    let data = dataset(300, 1.5, true);
    let outcome = run(&cnn(), &data, -1.0, Prefer::Size);
    assert!(!outcome.met);
    let note = outcome.note.unwrap();
    for name in ["`a`", "`b`", "`c`", "`head`"] {
        assert!(note.contains(name), "{note}");
    }
    // The nearest result is still quantized.
    assert!(outcome.layers.iter().any(|l| l.precision != Precision::F32));
}

#[test]
fn no_layer_ships_that_measures_slower() {
    let data = dataset(300, 1.5, true);
    let outcome = run(&cnn(), &data, 0.5, Prefer::Latency);
    for layer in outcome.layers.iter().filter(|l| l.precision == Precision::F32) {
        assert!(!layer.reason.is_empty());
    }
    assert!(outcome.met && outcome.after.median_ms > 0.0 && outcome.before.p90_ms > 0.0);
    if outcome.layers.iter().all(|l| l.precision == Precision::F32) {
        assert!(outcome.note.is_some());
    }
}

#[test]
fn a_quantized_network_is_left_alone() {
    let data = dataset(300, 1.0, true);
    let once = run(&cnn(), &data, 0.1, Prefer::Size);
    let twice = run(&once.graph, &data, 0.1, Prefer::Size);
    let note = twice.note.as_deref().unwrap_or_default();
    assert!(twice.met && note.contains("already"), "{note} {:?} {:?}", twice.steps, twice.layers);
    assert_eq!(precision(&twice, "b"), Precision::Int8);
    assert!(twice.after.weight_bytes <= once.after.weight_bytes);
}

#[test]
fn steps_are_fused_across_the_residual() {
    let outcome = run(&cnn(), &dataset(120, 1.0, true), 0.5, Prefer::Size);
    let session = sora_exec::Session::new(outcome.graph, sora_exec::Options::default()).unwrap();
    let program = session.program(&[("x", vec![1, 3, 8, 8])]).unwrap();
    let fused = program.steps().iter().find(|s| s.nodes.iter().any(|n| n == "c")).unwrap();
    assert_eq!(fused.nodes, ["c", "sum", "c.relu", "c.relu_quantize"]);
    assert!(program.steps().iter().all(|s| !s.kernel.starts_with("reference")), "{:?}", program.steps());
}

#[test]
fn unlabelled_data_measures_agreement() {
    let outcome = run(&cnn(), &dataset(300, 1.0, false), 0.1, Prefer::Size);
    assert_eq!((outcome.metric, outcome.before.accuracy), ("agreement", 1.0));
    assert!(outcome.after.accuracy > 0.9);
}

#[test]
fn a_network_without_weights_stays_as_it_is() {
    let (mut net, x) = Net::new(23, &[CLASSES]);
    let y = net.relu("relu", x);
    let y = net.softmax("softmax", y);
    let graph = net.done(y);
    let x = Random::new(1).tensor(&[50, CLASSES], 1.0);
    let data = Dataset::from_arrays(vec![(None, x)], Some((0..50).map(|i| i % CLASSES).collect())).unwrap();
    let outcome = run(&graph, &data, 0.0, Prefer::Latency);
    assert!(outcome.met && outcome.note.unwrap().contains("no layer"));
    assert!(outcome.layers.iter().all(|l| l.precision == Precision::F32));
}

#[test]
fn bad_input_is_named() {
    let options = Options::default();
    let try_with = |graph: &Graph, data: &Dataset, options: &Options| {
        compress(graph, data, &Preprocess::default(), options, &Silent).unwrap_err()
    };
    let good = dataset(60, 1.0, true);

    let (mut net, x) = Net::new(24, &SHAPE);
    let mut w = net.random.tensor(&[4, 3, 3, 3], 1.0);
    w.as_mut_slice::<f32>().unwrap()[5] = f32::NAN;
    let y = net.conv_of("a", x, w, Tensor::zeros(DType::F32, &[4]).unwrap());
    let y = net.flatten("flat", y, 256);
    let error = try_with(&net.done(y), &good, &options);
    assert!(
        matches!(&error, CompressError::NonFiniteWeights { constant, count: 1, of: 108 } if constant == "a.w")
    );
    assert!(!error.what().is_empty() && error.where_().contains("a.w") && !error.hint().is_empty());

    let error = try_with(&cnn(), &dataset(9, 1.0, true), &options);
    assert!(error.to_string().contains("9 samples"), "{error}");

    let (x, mut labels) = blobs(60, 1.0);
    labels[7] = 60;
    let data = Dataset::from_arrays(vec![(None, x)], Some(labels)).unwrap();
    let error = try_with(&cnn(), &data, &options);
    assert!(error.to_string().contains("60") && error.to_string().contains('7'), "{error}");

    let x = Random::new(1).tensor(&[60, 7], 1.0);
    let data = Dataset::from_arrays(vec![(None, x)], Some(vec![0; 60])).unwrap();
    assert!(matches!(
        try_with(&cnn(), &data, &options),
        CompressError::Data(_) | CompressError::Input { .. }
    ));

    let nan = Options { max_drop: f64::NAN, ..Options::default() };
    assert!(matches!(try_with(&cnn(), &good, &nan), CompressError::Option { .. }));
    let unlabelled = evaluate(
        &cnn(),
        &dataset(60, 1.0, false),
        &Preprocess::default(),
        None,
        &ExecOptions::default(),
        &Silent,
    );
    assert!(matches!(unlabelled, Err(CompressError::Unlabelled { .. })));
}

#[test]
fn activations_that_overflow_are_named() {
    let (mut net, x) = Net::new(25, &SHAPE);
    let mut w = net.random.tensor(&[4, 3, 3, 3], 1.0);
    w.as_mut_slice::<f32>().unwrap().iter_mut().for_each(|v| *v = 3e38f32.copysign(*v));
    let y = net.conv_of("huge", x, w, Tensor::zeros(DType::F32, &[4]).unwrap());
    let y = net.conv("next", y, 4);
    let y = net.flatten("flat", y, 256);
    let graph = net.done(y);
    let error =
        compress(&graph, &dataset(60, 1.0, true), &Preprocess::default(), &Options::default(), &Silent);
    let error = error.unwrap_err();
    assert!(
        matches!(&error, CompressError::NonFiniteActivations { value, .. } if value == "huge"),
        "{error}"
    );
}

struct Stop;

impl Progress for Stop {
    fn stage(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn cancelled(&self) -> bool {
        true
    }
}

#[test]
fn work_stops_when_asked() {
    let error = compress(&cnn(), &dataset(60, 1.0, true), &Preprocess::default(), &Options::default(), &Stop);
    assert_eq!(error.unwrap_err(), CompressError::Cancelled);
}

#[test]
fn evaluation_counts_what_the_reference_says() {
    let graph = cnn();
    let (x, labels) = blobs(100, 2.0);
    let data = Dataset::from_arrays(vec![(None, x.clone())], Some(labels.clone())).unwrap();
    let found =
        evaluate(&graph, &data, &Preprocess::default(), None, &ExecOptions::default(), &Silent).unwrap();
    let scores = reference(&graph, &[("x", &x)]).unwrap()[0].to_f32s();
    let right = scores
        .chunks(CLASSES)
        .zip(&labels)
        .filter(|(row, label)| row.iter().enumerate().all(|(i, v)| i == **label || *v < row[**label]));
    let right = right.count();
    assert!((found.accuracy - right as f64 / 100.0).abs() < 0.011);
    assert!(found.ci95[0] < found.accuracy && found.accuracy < found.ci95[1]);
    assert!(found.top5.unwrap() >= found.accuracy && found.samples == 100);
    assert_eq!(found.correct.iter().filter(|c| **c).count(), (found.accuracy * 100.0).round() as usize);
    let few =
        evaluate(&graph, &data, &Preprocess::default(), Some(&[3, 4, 5]), &ExecOptions::default(), &Silent)
            .unwrap();
    assert_eq!(few.correct, found.correct[3..6]);
}

/// Sequences of 12 steps, each class with the pattern of its own; a recurrent layer and a dense one on its last state.
fn sequences() -> (Graph, Dataset) {
    const STEPS: usize = 12;
    const FEATURES: usize = 8;
    const HIDDEN: usize = 24;
    let mut random = Random::new(31);
    let centers: Vec<Tensor> = (0..CLASSES).map(|_| random.tensor(&[STEPS * FEATURES], 1.0)).collect();
    let samples = 600;
    let labels: Vec<usize> = (0..samples).map(|i| i % CLASSES).collect();
    let noisy = |label: usize, noise: f64, random: &mut Random| -> Vec<f32> {
        centers[label].to_f32s().iter().map(|c| c + (noise * random.normal()) as f32).collect()
    };
    let (mut net, x) = Net::new(32, &[STEPS, FEATURES]);
    let time_first = net.op("time_first", sora_ir::ops::Transpose { perm: vec![1, 0, 2] }, &[x]);
    let direction = sora_ir::ops::Direction::Forward;
    let mut matrix = |name: &str, shape: &[usize], deviation| {
        let tensor = net.random.tensor(shape, deviation);
        net.graph.constant(name, tensor)
    };
    let w = matrix("lstm.w", &[1, 4 * HIDDEN, FEATURES], 0.5);
    let r = matrix("lstm.r", &[1, 4 * HIDDEN, HIDDEN], 0.2);
    let lstm = sora_ir::ops::Lstm { hidden: HIDDEN, direction, quantize_state: false };
    let outputs = net.graph.add("lstm", lstm, [time_first, w, r]).unwrap();
    let features = net.op("last", sora_ir::ops::Squeeze { axes: vec![0] }, &[outputs[1]]);

    // The dense layer tells the classes apart by the distance to their features without noise.
    let mut probe = net.graph.clone();
    probe.output("features", features);
    let clean: Vec<f32> = (0..CLASSES).flat_map(|label| noisy(label, 0.0, &mut random)).collect();
    let clean = Tensor::from_slice(&[CLASSES, STEPS, FEATURES], &clean).unwrap();
    let rows = reference(&probe, &[("x", &clean)]).unwrap()[0].to_f32s();
    let (mut w, mut b) = (vec![0f32; HIDDEN * CLASSES], vec![0f32; CLASSES]);
    for (label, row) in rows.chunks(HIDDEN).enumerate() {
        for (i, &v) in row.iter().enumerate() {
            w[i * CLASSES + label] = v;
            b[label] -= v * v / 2.0;
        }
    }
    let w = net.graph.constant("head.w", Tensor::from_slice(&[HIDDEN, CLASSES], &w).unwrap());
    let b = net.graph.constant("head.b", Tensor::vector(&b));
    let product = net.op("head", MatMul {}, &[features, w]);
    let scores = net.add("head.add", product, b);
    let values: Vec<f32> = labels.iter().flat_map(|&l| noisy(l, 0.3, &mut random)).collect();
    let x = Tensor::from_slice(&[samples, STEPS, FEATURES], &values).unwrap();
    (net.done(scores), Dataset::from_arrays(vec![(None, x)], Some(labels)).unwrap())
}

#[test]
fn recurrent_layers_round_what_comes() {
    let (graph, data) = sequences();
    let outcome = run(&graph, &data, 0.02, Prefer::Size);
    assert!(outcome.met && outcome.before.accuracy > 0.8, "{:?} {:?}", outcome.before, outcome.steps);
    let layer = outcome.layers.iter().find(|l| l.name == "lstm").unwrap();
    assert_eq!((layer.precision, &layer.reason_code), (Precision::Int8, &Reason::ByRows));
    assert!(layer.sqnr_db.unwrap() > 20.0, "{layer:?}");
    assert!(layer.bytes_after * 3 < layer.bytes_before, "{layer:?}");
    let rounds = |op: &Op| matches!(op, Op::Lstm(lstm) if lstm.quantize_state);
    assert!(outcome.graph.nodes().any(|(_, node)| rounds(&node.op)));
    assert!(outcome.graph.find("lstm.w").is_none() && outcome.graph.find("lstm.r").is_none());
    sora_ir::verify(&outcome.graph).unwrap();
}

#[test]
fn products_get_ranges_by_rows_before_they_get_precision_back() {
    let (graph, _) = sequences();
    let network = crate::layers::Network::new(graph).unwrap();
    let head = network.layers.iter().position(|l| l.name == "head").unwrap();
    let reason = || Reason::CostsAccuracy { regained: 0.0 };
    let plan = crate::placement::Plan::default().relieving(&network, head, reason());
    let placement = crate::placement::Placement::without_ranges(&network, &plan);
    assert!(placement.dynamic[head] && !placement.int8[head] && placement.sources.is_empty());
    let observations = crate::method::Observations::default();
    let cx = crate::method::Cx {
        network: &network,
        placement: &placement,
        observations: &observations,
        rounding: None,
    };
    let graph = crate::method::apply(&cx).unwrap();
    let count = |name: &str| graph.nodes().filter(|(_, node)| node.op.name() == name).count();
    // For the layer and the product, each with its own activations.
    assert_eq!((count("DynamicQuantizeLinear"), count("QuantizeLinear")), (2, 0));
    let x = Random::new(5).tensor(&[3, 12, 8], 1.0);
    let (exact, rounded) = (reference(&network.graph, &[("x", &x)]), reference(&graph, &[("x", &x)]));
    for (a, b) in exact.unwrap()[0].to_f32s().iter().zip(rounded.unwrap()[0].to_f32s()) {
        assert!((a - b).abs() < 0.05, "{a} {b}");
    }
    // Then the weights alone are quantized, and then nothing.
    let plan = plan.relieving(&network, head, reason());
    let placement = crate::placement::Placement::without_ranges(&network, &plan);
    assert!(!placement.in_bytes(head) && placement.stores_bytes(head));
    let plan = plan.relieving(&network, head, reason());
    assert!(!crate::placement::Placement::without_ranges(&network, &plan).stores_bytes(head));
}
