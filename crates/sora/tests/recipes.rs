//! What recipes and configurations of trainings do beyond a plain step for one output.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sora::data::{Dataset, Loader, LoaderOptions, Preprocess};
use sora::exec::Options;
use sora::ir::{ValueId, evaluate};
use sora::layers::{Activation, BatchNorm2d, Conv2d, Dense, Flatten, Layer, Network, Samples};
use sora::tensor::Tensor;
use sora::train::{
    Head, Loss, MixedPrecision, Optimizer, Plan, Recipe, Schedule, TrainError, Trainable, Trainer, Watch,
    fit, training_step,
};

fn loss(name: &str) -> Loss {
    Loss::new(name, &BTreeMap::new()).unwrap()
}

fn recipe(optimizer: &str) -> Recipe {
    let optimizer = Optimizer::new(optimizer, &BTreeMap::new()).unwrap();
    Recipe::new(loss("sparse_categorical_crossentropy"), optimizer)
}

fn trainable(build: impl Fn(&mut Network, ValueId) -> ValueId) -> Trainable {
    let mut net = Network::new("net", 3);
    let x = net.input("x", &[6], Samples::UNIT);
    let y = build(&mut net, x);
    net.output("y", y);
    net.into_trainable()
}

fn dense() -> Trainable {
    let layers: [&dyn Layer; 3] = [&Dense::new(8), &Activation::Relu, &Dense::new(3)];
    trainable(|net, x| net.sequence(x, &layers).unwrap())
}

/// `count` samples, and their classes among three.
fn samples(count: usize, seed: u64) -> (Tensor, Tensor) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let values: Vec<f32> = (0..count * 6).map(|_| rng.f32() * 2.0 - 1.0).collect();
    let classes: Vec<i64> = (0..count).map(|_| rng.i64(0..3)).collect();
    (Tensor::from_slice(&[count, 6], &values).unwrap(), Tensor::vector(&classes))
}

fn trainer(network: &Trainable, batch: usize, recipe: &Recipe) -> Trainer {
    Trainer::new(network.clone(), batch, recipe.clone(), Options::default()).unwrap()
}

fn weights(trainer: &Trainer) -> Vec<(String, Vec<f64>)> {
    let state = trainer.state().unwrap();
    let parameters = state.iter().filter(|(name, _)| name.ends_with("weight") || name.ends_with("bias"));
    parameters.map(|(name, tensor)| (name.clone(), tensor.to_f64s())).collect()
}

fn near(a: &[(String, Vec<f64>)], b: &[(String, Vec<f64>)], bound: f64) {
    for ((name, a), (_, b)) in a.iter().zip(b) {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= bound * b.abs().max(1e-2), "{name}: {a} instead of {b}");
        }
    }
}

#[test]
fn gradients_of_two_steps_together_are_those_of_one_over_both() {
    let network = dense();
    for optimizer in ["momentum", "adam"] {
        let plain = recipe(optimizer);
        let mut whole = trainer(&network, 8, &plain);
        let mut halves = trainer(&network, 4, &Recipe { accumulate: 2, ..plain });
        for seed in 0..3 {
            let (x, classes) = samples(8, seed);
            whole.step(8, &[("x", &x)], std::slice::from_ref(&classes), 0.05).unwrap();
            let (values, classes) = (x.to_f32s(), classes.to_i64s());
            for half in 0..2 {
                let before = weights(&halves);
                let x = Tensor::from_slice(&[4, 6], &values[half * 24..][..24]).unwrap();
                let classes = Tensor::vector(&classes[half * 4..][..4]);
                halves.step(4, &[("x", &x)], &[classes], 0.05).unwrap();
                assert_eq!(before == weights(&halves), half == 0);
            }
            near(&weights(&halves), &weights(&whole), 1e-4);
        }
    }
}

#[test]
fn several_heads_share_a_loss_by_their_weights() {
    let mut net = Network::new("two", 3);
    let x = net.input("x", &[6], Samples::UNIT);
    let trunk = net.sequence(x, &[&Dense::new(8), &Activation::Tanh]).unwrap();
    for (name, units) in [("kind", 3), ("size", 1)] {
        let y = net.layer(trunk, &Dense::new(units)).unwrap();
        net.output(name, y);
    }
    let network = net.into_trainable();
    let head = |name: &str, loss_name: &str, weight| Head {
        output: Some(name.to_owned()),
        weight,
        ..Head::new(loss(loss_name))
    };
    let heads =
        vec![head("size", "mean_squared_error", 0.25), head("kind", "sparse_categorical_crossentropy", 2.0)];
    let recipe = Recipe { heads, ..recipe("sgd") };
    let mut trainer = trainer(&network, 4, &recipe);
    let (x, classes) = samples(4, 1);
    let sizes = Tensor::from_slice(&[4, 1], &[0.5f32, -1.0, 2.0, 0.0]).unwrap();
    let mut losses = Vec::new();
    for _ in 0..60 {
        let outcome = trainer.step(4, &[("x", &x)], &[sizes.clone(), classes.clone()], 0.1).unwrap();
        let [size, kind] = outcome.heads[..] else { panic!("two heads") };
        assert!((outcome.loss - (0.25 * size.loss + 2.0 * kind.loss)).abs() < 1e-5 * outcome.loss);
        assert!(size.correct.is_none() && kind.correct.is_some());
        losses.push([size.loss, kind.loss]);
    }
    assert!((0..2).all(|i| losses[59][i] < 0.3 * losses[0][i]), "{losses:?}");
    let unknown = Recipe { heads: vec![head("sise", "huber", 1.0)], ..recipe };
    let error = training_step(&network, 4, &unknown).err().unwrap().to_string();
    assert!(error.contains("no output `sise`"), "{error}");
}

/// Operands are rounded to 8 and 11 bits, so steps are near those in f32 and not equal; programs do what the reference does.
#[test]
fn mixed_precision_rounds_products_and_keeps_weights() {
    let network = dense();
    let (x, classes) = samples(4, 5);
    let (x, targets) = ([("x", &x)], std::slice::from_ref(&classes));
    let mut plain = trainer(&network, 4, &recipe("sgd"));
    plain.step(4, &x, targets, 0.1).unwrap();
    for (precision, bound) in [(MixedPrecision::Bf16, 2e-2), (MixedPrecision::F16, 2e-3)] {
        let recipe = Recipe { precision, ..recipe("sgd") };
        let mut short = trainer(&network, 4, &recipe);
        short.step(4, &x, targets, 0.1).unwrap();
        near(&weights(&short), &weights(&plain), bound);
        assert_ne!(weights(&short), weights(&plain));
        let step = training_step(&network, 4, &recipe).unwrap();
        let rate = Tensor::scalar(0.1f32);
        let mut given = vec![x[0], ("train/target/0", &classes), ("train/rate", &rate)];
        given.extend(step.states.iter().map(|state| state.input.as_str()).zip(&step.initial));
        let outputs = evaluate(&step.graph, &given).unwrap();
        let expected = &outputs[outputs.len() - step.states.len()..];
        for ((name, found), expected) in short.state().unwrap().iter().zip(expected) {
            for (f, e) in found.to_f64s().iter().zip(expected.to_f64s()) {
                assert!((f - e).abs() <= 1e-5 * e.abs().max(0.1), "{precision:?} {name}: {f} instead of {e}");
            }
        }
    }
}

/// A gradient that overflows in f16 changes nothing but the scale, which is halved until it does not.
#[test]
fn the_scale_of_the_loss_follows_the_gradients() {
    let network = dense();
    let head = Head { weight: 1e4, ..Head::new(loss("sparse_categorical_crossentropy")) };
    let recipe = Recipe { precision: MixedPrecision::F16, heads: vec![head], ..recipe("adam") };
    let mut trainer = trainer(&network, 4, &recipe);
    let (x, classes) = samples(4, 5);
    let scale = |trainer: &Trainer| {
        trainer.state().unwrap().iter().find(|(name, _)| name == "train/scale").unwrap().1.to_f64s()[0]
    };
    let (before, first) = (weights(&trainer), scale(&trainer));
    let mut overflows = 0;
    loop {
        trainer.step(4, &[("x", &x)], std::slice::from_ref(&classes), 1e-3).unwrap();
        if weights(&trainer) != before {
            break;
        }
        overflows += 1;
        assert_eq!(scale(&trainer), first / 2f64.powi(overflows));
    }
    assert!(overflows > 3 && scale(&trainer) == first / 2f64.powi(overflows), "{overflows}");
    assert!(weights(&trainer).iter().all(|(_, values)| values.iter().all(|x| x.is_finite())));
}

/// Pictures of 4×4 in two classes, the second brighter.
fn pictures(count: usize) -> Dataset {
    let mut rng = fastrand::Rng::with_seed(2);
    let labels: Vec<usize> = (0..count).map(|_| rng.usize(0..2)).collect();
    let pixels: Vec<f32> = labels
        .iter()
        .flat_map(|&label| [(); 16].map(|()| label as f32))
        .map(|l| l + rng.f32() * 2.0)
        .collect();
    let x = Tensor::from_slice(&[count, 1, 4, 4], &pixels).unwrap();
    Dataset::from_arrays(vec![(None, x)], Some(labels)).unwrap()
}

struct Silent;

impl Watch for Silent {}

fn plan(epochs: u32, rate: f64, swa: Option<u32>) -> Plan {
    let schedule = Schedule::new("constant", &BTreeMap::new()).unwrap();
    Plan { epochs, rate, schedule, patience: None, swa, save_every: None, teacher: None, name: String::new() }
}

#[test]
fn averaged_weights_are_the_mean_of_epochs_and_statistics_are_theirs() {
    let data = pictures(24);
    let mut net = Network::new("net", 3);
    let x = net.input("x", &[1, 4, 4], Samples::UNIT);
    let layers: [&dyn Layer; 5] =
        [&Conv2d::new(3, 2), &BatchNorm2d::new(1e-3), &Activation::Relu, &Flatten, &Dense::new(2)];
    let y = net.sequence(x, &layers).unwrap();
    net.output("y", y);
    let network = net.into_trainable();
    let indices: Vec<usize> = (0..24).collect();
    let options = LoaderOptions { batch: 10, ..LoaderOptions::default() };
    let loader = Loader::new(&data, &indices, None, &Preprocess::default(), options).unwrap();
    let train = |epochs, swa| {
        let mut trainer = trainer(&network, 10, &recipe("momentum"));
        let fitted = fit(&mut trainer, &plan(epochs, 0.05, swa), &loader, None, None, &mut Silent).unwrap();
        (trainer, fitted.state)
    };
    let of = |state: &[(String, Tensor)], name: &str| {
        state.iter().find(|(known, _)| known == name).unwrap().1.to_f64s()
    };
    let (swa_trainer, swa) = train(4, Some(2));
    let [third, fourth] = [train(3, None).1, train(4, None).1];
    for name in ["conv2d.weight", "batch_norm2d.weight", "dense.bias"] {
        let mean: Vec<f64> =
            of(&third, name).iter().zip(of(&fourth, name)).map(|(a, b)| (a + b) / 2.0).collect();
        let found = of(&swa, name);
        assert!(found.iter().zip(&mean).all(|(f, m)| (f - m).abs() < 1e-6), "{name}: {found:?} {mean:?}");
        assert_ne!(found, of(&fourth, name));
    }
    // The mean of a channel over all pixels of all samples, by the convolution of the averaged weights.
    let graph = swa_trainer.graph_of(&swa);
    let conv = graph.find("conv2d").unwrap();
    let mut front = graph.clone();
    front.set_outputs(Vec::new());
    front.output("conv", conv);
    let all = &data.batch(&indices, &Preprocess::default()).unwrap().inputs[0].1;
    let found = evaluate(&front.specialize(&[("x", &[24, 1, 4, 4])]).unwrap(), &[("x", all)]).unwrap();
    let values = found[0].to_f64s();
    for (channel, running) in of(&swa, "batch_norm2d.running_mean").into_iter().enumerate() {
        let own = values.chunks(27).flat_map(|sample| &sample[channel * 9..][..9]);
        let mean = own.sum::<f64>() / (24.0 * 9.0);
        assert!((running - mean).abs() < 1e-5, "{running} instead of {mean}");
    }
}

#[test]
fn a_loss_that_is_no_number_is_traced_to_its_node() {
    let data = pictures(24);
    let indices: Vec<usize> = (0..24).collect();
    let options = LoaderOptions { batch: 10, ..LoaderOptions::default() };
    let loader = Loader::new(&data, &indices, None, &Preprocess::default(), options).unwrap();
    let mut net = Network::new("net", 3);
    let x = net.input("x", &[1, 4, 4], Samples::UNIT);
    let x = net.layer(x, &Flatten).unwrap();
    let layers: [&dyn Layer; 3] = [&Dense::new(4), &Dense::new(4), &Dense::new(2)];
    let y = net.sequence(x, &layers).unwrap();
    net.output("y", y);
    let network = net.into_trainable();
    let error = |rate| {
        let mut trainer = trainer(&network, 10, &recipe("sgd"));
        fit(&mut trainer, &plan(100, rate, None), &loader, None, None, &mut Silent).unwrap_err()
    };
    let TrainError::Diverged { step, first, .. } = error(1e12) else { panic!("it should diverge") };
    assert!(
        step > 1 && (first.contains("node `dense") || first.contains("parameter `dense")),
        "{step} {first}"
    );
}

/// Writes `data.npz` in a folder.
fn save(folder: &Path, arrays: &[(&str, &Tensor)]) {
    let mut bytes = Vec::new();
    sora::data::npz::write(&mut bytes, arrays).unwrap();
    std::fs::write(folder.join("data.npz"), bytes).unwrap();
}

/// Runs a configuration in a folder, and gives the object that it ends with.
fn run(folder: &Path, config: &str) -> Value {
    std::fs::write(folder.join("train.toml"), config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sora"));
    let output = command.current_dir(folder).args(["train", "train.toml", "--json"]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        panic!("{}", String::from_utf8_lossy(&output.stderr));
    })
}

const END: &str = r#"
    [training]
    epochs = 30
    batch = 16
    [optimizer]
    name = "adam"
    rate = 0.01
"#;

/// A number and a sequence tell two things: which is greater, and the sum's sign. An array that nothing reads is left alone.
#[test]
fn several_inputs_and_outputs_are_a_matter_of_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let count = 200;
    let numbers: Vec<f32> = (0..count * 2).map(|_| rng.f32() * 2.0 - 1.0).collect();
    let words: Vec<i64> = (0..count * 3).map(|_| rng.i64(1..5)).collect();
    let greater: Vec<i64> = numbers.chunks(2).map(|pair| i64::from(pair[0] > pair[1])).collect();
    let even: Vec<i64> =
        words.chunks(3).map(|words| i64::from(words.iter().all(|&word| word != 2))).collect();
    let arrays = [
        ("pair", Tensor::from_slice(&[count, 2], &numbers).unwrap()),
        ("words", Tensor::from_slice(&[count, 3], &words).unwrap()),
        ("greater", Tensor::vector(&greater)),
        ("y", Tensor::vector(&even)),
        ("unread", Tensor::vector(&even)),
    ];
    let arrays: Vec<(&str, &Tensor)> = arrays.iter().map(|(name, tensor)| (*name, tensor)).collect();
    save(folder.path(), &arrays);
    let config = r#"
        output = "two.onnx"
        [data]
        train = "data.npz"
        validation = 0.2
        test = "data.npz"
        [network.inputs]
        pair = [2]
        words = [3]
        [[network.parts]]
        name = "read"
        from = "words"
        layers = [{ layer = "embedding", rows = 5, units = 8 }, { layer = "global_avg_pool1d" }]
        [[network.parts]]
        name = "both"
        from = ["pair", "read"]
        layers = [{ layer = "dense", units = 16, activation = "relu" }]
        [[network.parts]]
        name = "which"
        from = "both"
        layers = [{ layer = "dense", units = 2, activation = "softmax" }]
        [[network.parts]]
        name = "none"
        from = "both"
        layers = [{ layer = "dense", units = 2, activation = "softmax" }]
        [[outputs]]
        part = "which"
        target = "greater"
        [[outputs]]
        part = "none"
        weight = 0.5
    "#;
    let result = run(folder.path(), &format!("{config}{END}"));
    for name in ["which", "none"] {
        assert!(result["metrics"][name]["accuracy"].as_f64().unwrap() > 0.9, "{result}");
        assert!(result["metrics"]["heads"][name]["validation_accuracy"].as_f64().unwrap() > 0.8, "{result}");
    }
    let graph = sora::Model::load(folder.path().join("two.onnx")).unwrap().graph;
    let names: Vec<&str> = graph.outputs().iter().map(|output| output.name.as_str()).collect();
    assert_eq!((graph.inputs().len(), names), (2, vec!["which", "none"]));
    for (good, bad, part) in [
        ("from = \"words\"", "from = \"word\"", "no part or input `word`"),
        ("target = \"greater\"", "target = \"grater\"", "`grater`"),
        ("part = \"none\"", "part = \"nine\"", "`nine`"),
    ] {
        let result = run(folder.path(), &format!("{}{END}", config.replace(good, bad)));
        let text = result["error"].to_string();
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn texts_are_trained_on_by_their_words_and_the_model_reads_them_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(4);
    let mut lines = String::new();
    for _ in 0..200 {
        let good = rng.bool();
        let filler = ["the", "film", "was", "a"][rng.usize(0..4)];
        let word = if good { ["fine", "lovely"][rng.usize(0..2)] } else { ["dull", "poor"][rng.usize(0..2)] };
        let label = if good { "good" } else { "bad" };
        lines += &format!("{{\"text\": \"{filler} {word} {filler}\", \"label\": \"{label}\"}}\n");
    }
    std::fs::write(folder.path().join("texts.jsonl"), &lines).unwrap();
    let config = r#"
        output = "mood.sora"
        [data]
        train = "texts.jsonl"
        test = "texts.jsonl"
        [data.text]
        vocabulary = 50
        length = 6
        [network]
        input = [6]
        layers = [
            { layer = "embedding", rows = 50, units = 8 },
            { layer = "gru", units = 8, bidirectional = true },
            { layer = "dense", units = 2, activation = "softmax" },
        ]
    "#;
    let result = run(folder.path(), &format!("{config}{}", END.replace("30", "10")));
    assert_eq!(result["metrics"]["accuracy"], 1.0, "{result}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sora"));
    command.current_dir(folder.path()).args(["evaluate", "mood.sora", "--data", "texts.jsonl", "--json"]);
    let result: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    assert_eq!((&result["metrics"]["accuracy"], &result["samples"]), (&1.0.into(), &200.into()), "{result}");
}

/// Sequences of three symbols, each shown for two or three steps, are written out.
#[test]
fn sequences_of_labels_are_learned_without_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(4);
    let (count, steps) = (240usize, 12usize);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let labels: Vec<usize> = (0..rng.usize(1..4)).map(|_| rng.usize(0..3)).collect();
        let mut shown: Vec<Option<usize>> = Vec::new();
        for &label in &labels {
            shown.extend(vec![None; rng.usize(1..3)]);
            shown.extend(vec![Some(label); rng.usize(1..3)]);
        }
        shown.resize(steps, None);
        for label in shown {
            x.extend((0..3).map(|class| f32::from(u8::from(label == Some(class))) + 0.3 * rng.f32()));
        }
        y.extend((0..3).map(|at| labels.get(at).map_or(-1, |&label| label as i64)));
    }
    let (x, y) =
        (Tensor::from_slice(&[count, steps, 3], &x).unwrap(), Tensor::from_slice(&[count, 3], &y).unwrap());
    save(folder.path(), &[("x", &x), ("y", &y)]);
    let config = r#"
        output = "read.onnx"
        [data]
        train = "data.npz"
        test = "data.npz"
        [network]
        input = [12, 3]
        layers = [
            { layer = "gru", units = 12, bidirectional = true, sequences = true },
            { layer = "dense", units = 4, activation = "softmax" },
        ]
        [loss]
        name = "ctc"
    "#;
    let result = run(folder.path(), &format!("{config}{END}"));
    assert!(result["metrics"]["label_error_rate"].as_f64().unwrap() < 0.02, "{result}");
}

/// `y` holds numbers where the loss compares numbers.
#[test]
fn numbers_are_told_from_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(6);
    let x: Vec<f32> = (0..600).map(|_| rng.f32() * 2.0 - 1.0).collect();
    let y: Vec<f32> = x.chunks(3).map(|row| 2.0 * row[0] - row[1] + 0.5).collect();
    let arrays = [Tensor::from_slice(&[200, 3], &x).unwrap(), Tensor::vector(&y)];
    save(folder.path(), &[("x", &arrays[0]), ("y", &arrays[1])]);
    let config = r#"
        output = "sum.onnx"
        [data]
        train = "data.npz"
        test = "data.npz"
        [network]
        input = [3]
        layers = [{ layer = "dense", units = 1 }]
        [loss]
        name = "mean_squared_error"
    "#;
    let result = run(folder.path(), &format!("{config}{END}"));
    assert!(result["metrics"]["test_loss"].as_f64().unwrap() < 0.05, "{result}");
}
