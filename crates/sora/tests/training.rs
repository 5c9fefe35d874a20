//! Training steps compute what the reference evaluator computes, and `sora train` survives being killed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sora::exec::Options;
use sora::ir::evaluate;
use sora::layers::{
    Activation, AvgPool1d, AvgPool2d, BatchNorm, BatchNorm2d, Conv1d, Conv2d, Conv2dTranspose, Dense,
    Dropout, Embedding, Flatten, GlobalAvgPool1d, GlobalAvgPool2d, GlobalMaxPool1d, Gru, Layer, Lstm,
    Masking, MaxPool1d, MaxPool2d, MultiHeadAttention, Network, Padding, Positions, Samples, SeparableConv2d,
    SimpleRnn, TransformerEncoderLayer,
};
use sora::tensor::Tensor;
use sora::train::{Loss, Optimizer, Recipe, Trainable, Trainer, training_step};

/// Rows of the table of networks that begin with one.
const WORDS: i64 = 3;

fn network(input: &[usize], layers: &[&dyn Layer]) -> Trainable {
    let mut net = Network::new("net", 3);
    let words = layers[0].name() == "embedding";
    let x = net.input("x", input, if words { Samples::Index { below: WORDS } } else { Samples::UNIT });
    let y = net.sequence(x, layers).unwrap();
    net.output("y", y);
    net.into_trainable()
}

fn recipe(optimizer: &str, clip: Option<f64>) -> Recipe {
    let none = BTreeMap::new();
    let loss = Loss::new("sparse_categorical_crossentropy", &none).unwrap();
    let recipe = Recipe::new(loss, Optimizer::new(optimizer, &none).unwrap());
    Recipe { clip, momentum: 0.9, seed: 5, average: Some(0.9), ..recipe }
}

/// Three steps of the compiled program, and of the reference evaluator fed with its own results, from the same weights
/// on the same batches.
fn check(
    name: &str,
    network: &Trainable,
    input: &[usize],
    optimizer: &str,
    clip: Option<f64>,
    kernels: &[&str],
) {
    const BATCH: usize = 4;
    let recipe = recipe(optimizer, clip);
    let step = training_step(network, BATCH, &recipe).unwrap();
    let mut rng = fastrand::Rng::with_seed(9);
    let shape = [&[BATCH], input].concat();
    let words = !network.graph.ty(network.graph.inputs()[0]).dtype.is_float();
    let batches: Vec<(Tensor, Tensor)> = (0..3)
        .map(|_| {
            let count = shape.iter().product();
            let x = match words {
                true => {
                    Tensor::from_slice(&shape, &(0..count).map(|_| rng.i64(0..WORDS)).collect::<Vec<_>>())
                }
                false => {
                    Tensor::from_slice(&shape, &(0..count).map(|_| rng.f32() * 2.0 - 1.0).collect::<Vec<_>>())
                }
            };
            let classes: Vec<i64> = (0..BATCH).map(|_| rng.i64(0..3)).collect();
            (x.unwrap(), Tensor::vector(&classes))
        })
        .collect();
    let rate = Tensor::scalar(0.05f32);
    let mut states = step.initial.clone();
    let mut losses = Vec::new();
    for (x, target) in &batches {
        let mut given = vec![("x", x), ("train/target/0", target), ("train/rate", &rate)];
        given.extend(step.states.iter().map(|state| state.input.as_str()).zip(&states));
        let mut results = evaluate(&step.graph, &given).unwrap();
        losses.push(results[0].to_f64s()[0]);
        states = results.split_off(2);
    }
    for threads in [1, 2] {
        let options = Options { threads, ..Options::default() };
        let mut trainer = Trainer::new(network.clone(), BATCH, recipe.clone(), options).unwrap();
        let steps: Vec<String> =
            trainer.compiled().unwrap().steps().iter().map(|s| s.kernel.clone()).collect();
        for kernel in kernels {
            assert!(steps.iter().any(|k| k == kernel), "{name}: no {kernel} in {steps:?}");
        }
        for ((x, target), expected) in batches.iter().zip(&losses) {
            let found = trainer.step(BATCH, &[("x", x)], std::slice::from_ref(target), 0.05).unwrap().loss;
            assert!(
                (found - expected).abs() < 1e-4 * expected.abs().max(1.0),
                "{name}: loss {found}, {expected}"
            );
        }
        let found = trainer.state().unwrap();
        for ((state, expected), (name_found, found)) in step.states.iter().zip(&states).zip(&found) {
            assert_eq!(&state.input, name_found);
            for (f, e) in found.to_f64s().iter().zip(expected.to_f64s()) {
                assert!(
                    (f - e).abs() < 1e-3 * e.abs().max(0.1),
                    "{name}, {}: {f} instead of {e}",
                    state.input
                );
            }
        }
    }
}

#[test]
fn steps_of_programs_are_those_of_the_reference() {
    let relu = Activation::Relu;
    let end: [&dyn Layer; 3] = [&Flatten, &Dense::new(3), &Activation::Softmax];
    let fast =
        ["live_conv.f32", "live_conv_transpose.f32", "correlate.f32", "maxpool_gradient.f32", "gate.f32"];
    let of = |front: &[&dyn Layer], input: &[usize]| network(input, &[front, &end].concat());
    let (conv, second, pool) = (Conv2d::new(5, 3), Conv2d::new(6, 3), MaxPool2d::new(2));

    let plain = of(&[&conv, &relu, &pool, &second, &relu, &pool], &[2, 14, 12]);
    check("plain", &plain, &[2, 14, 12], "momentum", None, &fast);
    check("clipped", &plain, &[2, 14, 12], "adam", Some(0.1), &fast);
    let wide = of(&[&Conv2d::new(20, 3), &relu, &Conv2d::new(17, 2), &relu], &[18, 6, 7]);
    check("wide", &wide, &[18, 6, 7], "nesterov", None, &fast[..3]);
    let same = Conv2d::new(8, 3).padding(Padding::Same).strides(2);
    let strided = of(&[&conv, &same, &relu, &AvgPool2d::new(2)], &[1, 11, 13]);
    check("strided", &strided, &[1, 11, 13], "adamw", None, &["correlate.f32", "live_conv_transpose.f32"]);
    let deep = MaxPool2d::new(3).strides(2).padding(Padding::Each(1));
    // A bias in front of a batch normalization has a gradient of zero: which way it is rounded would decide.
    let free = Conv2d::new(5, 3).without_bias();
    let normal = of(&[&free, &BatchNorm2d::new(1e-3), &relu, &deep, &GlobalAvgPool2d], &[3, 9, 9]);
    check("normal", &normal, &[3, 9, 9], "rmsprop", None, &["correlate.f32", "maxpool_gradient.f32"]);
    let dropped = network(&[6], &[&Dense::new(16), &relu, &Dropout::new(0.4), &Dense::new(3)]);
    check("dropped", &dropped, &[6], "adagrad", None, &["random.f32", "gate.f32"]);
    let recurrent = |layer: &dyn Layer| network(&[6, 5], &[layer, &Dense::new(3)]);
    let lstm = recurrent(&Lstm::new(20).levels(2).last());
    check("lstm", &lstm, &[6, 5], "adam", None, &["live_lstm.f32", "recurrent_grad.f32"]);
    let gru = recurrent(&Gru::new(9).bidirectional().levels(2).last());
    check("gru", &gru, &[6, 5], "sgd", None, &["live_gru.f32", "recurrent_grad.f32"]);
    let rnn = network(&[6, 5], &[&SimpleRnn::new(7), &Flatten, &Dense::new(3)]);
    check("rnn", &rnn, &[6, 5], "sgd", None, &["live_rnn.f32", "recurrent_grad.f32"]);
    let table = Embedding::new(WORDS as usize, 5).masked();
    let counted = network(&[6], &[&table, &Lstm::new(9).bidirectional(), &GlobalAvgPool1d, &Dense::new(3)]);
    check("counted", &counted, &[6], "sgd", None, &["live_lstm.f32", "recurrent_grad.f32", "add_slices.f32"]);
    let encoder = TransformerEncoderLayer {
        attention: MultiHeadAttention::new(2),
        feed_forward: 7,
        epsilon: 1e-3,
        dropout: 0.1,
    };
    let encoder = network(&[5, 6], &[&Masking, &Positions, &encoder, &GlobalAvgPool1d, &Dense::new(3)]);
    check("encoder", &encoder, &[5, 6], "sgd", None, &[]);
    let along = network(
        &[9, 4],
        &[
            &Conv1d::new(8, 3).padding(Padding::Same).without_bias(),
            &BatchNorm::new(1e-3),
            &relu,
            &MaxPool1d::new(2),
            &Conv1d::new(5, 2).strides(2),
            &AvgPool1d::new(2),
            &GlobalMaxPool1d,
            &Dense::new(3),
        ],
    );
    check("along", &along, &[9, 4], "sgd", None, &["live_conv.f32", "correlate.f32", "maxpool_gradient.f32"]);
    let larger = Conv2dTranspose::new(4, 3).strides(2).padding(Padding::Same);
    let larger = of(&[&larger, &relu, &SeparableConv2d::new(6, 3).strides(2)], &[3, 5, 6]);
    check("larger", &larger, &[3, 5, 6], "sgd", None, &["live_conv_transpose.f32", "live_depthwise.f32"]);
    let grouped = of(&[&Conv2d::new(6, 3).groups(2), &relu, &Conv2d::depthwise(3)], &[4, 8, 8]);
    check("grouped", &grouped, &[4, 8, 8], "sgd", None, &[]);
    let depthwise = Conv2d::depthwise(3).strides(2).padding(Padding::Same);
    let depthwise = of(&[&conv, &relu, &depthwise, &relu, &Conv2d::depthwise(2)], &[2, 12, 11]);
    let fast = ["live_depthwise.f32", "live_depthwise_transpose.f32", "correlate_depthwise.f32"];
    check("depthwise", &depthwise, &[2, 12, 11], "sgd", None, &fast);
    let wide =
        of(&[&Conv2d::new(40, 1), &Activation::Relu6, &Conv2d::depthwise(3).without_bias()], &[3, 9, 9]);
    check("wide depthwise", &wide, &[3, 9, 9], "adam", None, &[&fast[..], &["gate.f32"]].concat());
}

/// Steps change running statistics, and the network in the form of inference uses them.
#[test]
fn running_statistics_follow_the_batches() {
    let network = network(&[1, 2, 2], &[&BatchNorm2d::new(1e-3), &Flatten, &Dense::new(2)]);
    let before = network.graph.const_value(network.graph.find("dense.weight").unwrap()).unwrap().to_f64s();
    let mut trainer = Trainer::new(network, 2, recipe("sgd", None), Options::default()).unwrap();
    let x = Tensor::from_slice(&[2, 1, 2, 2], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]).unwrap();
    trainer.step(2, &[("x", &x)], &[Tensor::vector(&[0i64, 1])], 0.1).unwrap();
    let state = trainer.state().unwrap();
    let of = |name: &str| state.iter().find(|(n, _)| n.ends_with(name)).unwrap().1.to_f64s()[0];
    // Mean 4.5 and variance 5.25, of which a tenth is new.
    assert!((of("running_mean") - 0.45).abs() < 1e-6);
    assert!((of("running_var") - (0.9 + 0.525)).abs() < 1e-6);
    let graph = trainer.graph_of(&state);
    assert!(graph.find("batch_norm2d.running_mean").is_some());
    sora::ir::verify(&graph).unwrap();
    // Of the average of the weights, 1 - 2/11 is new; it is what the network then uses.
    let all = |name: &str| state.iter().find(|(n, _)| n == name).unwrap().1.to_f64s();
    let used = graph.const_value(graph.find("dense.weight").unwrap()).unwrap().to_f64s();
    assert_eq!(used, all("dense.weight/average"));
    for ((average, now), before) in used.iter().zip(all("dense.weight")).zip(before) {
        assert!((average - (before + 9.0 / 11.0 * (now - before))).abs() < 1e-6);
    }
}

const CONFIG: &str = r#"
    output = "trained.sora"
    seed = 7
    [data]
    train = "data.npz"
    validation = 0.2
    order = "balanced"
    [network]
    input = [1, 8, 8]
    layers = [
        { layer = "conv2d", filters = 4, kernel = 3 },
        { layer = "batch_norm2d", activation = "relu" },
        { layer = "max_pool2d", size = 2 },
        { layer = "flatten" },
        { layer = "dropout", rate = 0.2 },
        { layer = "dense", units = 2, activation = "softmax" },
    ]
    [training]
    epochs = 20
    batch = 12
    [optimizer]
    name = "adam"
    rate = 0.01
    [schedule]
    name = "cosine"
    [early_stopping]
    patience = 100
    [checkpoint]
    path = "checkpoint.npz"
    every = 3
"#;

/// Pictures whose brighter half says the class, in folder `name` with a configuration.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let class = rng.usize(0..2);
        labels.push(class as i64);
        for at in 0..64 {
            let bright = (at / 32 == class) as u8 as f32;
            pixels.push(0.4 * bright + rng.f32() * 0.8);
        }
    }
    let (x, y) = (Tensor::from_slice(&[200, 8, 8], &pixels).unwrap(), Tensor::vector(&labels));
    let mut bytes = Vec::new();
    sora::data::npz::write(&mut bytes, &[("x", &x), ("y", &y)]).unwrap();
    std::fs::write(folder.path().join("data.npz"), bytes).unwrap();
    let config = folder.path().join("train.toml");
    std::fs::write(&config, CONFIG).unwrap();
    (folder, config)
}

fn command(config: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sora"));
    command.arg("train").arg(config).args(options).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

#[test]
fn what_is_killed_continues_as_if_it_had_not_been() {
    let plateau = "name = \"plateau\"\n    factor = 0.5\n    patience = 1\n    warmup = 0.1";
    for (signal, rate, schedule) in [("-KILL", 0.01, "name = \"cosine\""), ("-INT", 0.2, plateau)] {
        let text =
            CONFIG.replace("name = \"cosine\"", schedule).replace("rate = 0.01", &format!("rate = {rate}"));
        let (whole, config) = folder();
        std::fs::write(&config, &text).unwrap();
        let output = command(&config, &["--json"]).output().unwrap();
        assert!(output.status.success());
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["steps"], 20 * 14);
        assert!(result["metrics"]["validation_accuracy"].as_f64().unwrap() > 0.9, "{result}");
        assert!(result["metrics"]["rate"].as_f64().unwrap() < 0.6 * rate, "{result}");
        let expected = std::fs::read(whole.path().join("trained.sora")).unwrap();
        assert!(!whole.path().join("checkpoint.npz").exists());

        let (folder, config) = folder();
        std::fs::write(&config, &text).unwrap();
        let checkpoint = folder.path().join("checkpoint.npz");
        let mut ends = 0;
        // Each round gets a few steps further before it is ended.
        for _ in 0..6 {
            let before = std::fs::read(&checkpoint).unwrap_or_default();
            let mut child = command(&config, &["--json"]).spawn().unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            while std::fs::read(&checkpoint).unwrap_or_default() == before
                && child.try_wait().unwrap().is_none()
                && Instant::now() < deadline
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            let killed =
                Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success();
            let status = child.wait().unwrap();
            ends += usize::from(killed && !status.success());
            assert!(!killed || status.success() || checkpoint.exists());
        }
        assert!(ends > 0, "{signal} came too late every time");
        assert!(command(&config, &["--json"]).output().unwrap().status.success());
        let found = std::fs::read(folder.path().join("trained.sora")).unwrap();
        assert!(found == expected, "{signal}: other weights");
    }
}

#[test]
fn a_checkpoint_of_another_training_is_refused() {
    let (folder, config) = folder();
    let mut child = command(&config, &[]).spawn().unwrap();
    let checkpoint = folder.path().join("checkpoint.npz");
    while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let kept = std::fs::read(&checkpoint).unwrap();
    child.wait().unwrap();
    std::fs::write(&checkpoint, kept).unwrap();
    std::fs::write(&config, CONFIG.replace("rate = 0.01", "rate = 0.02")).unwrap();
    let output = command(&config, &["--json"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success() && text.contains("--restart"), "{text}");
    assert!(command(&config, &["--restart"]).output().unwrap().status.success());
}

/// With weights that stay where they are, a penalty adds the same to the loss of training and of validation.
#[test]
fn penalties_are_part_of_both_losses() {
    let (_folder, config) = folder();
    let losses = |penalty: &str| {
        let text = CONFIG.replace("rate = 0.01", "rate = 1e-30").replace("epochs = 20", "epochs = 1");
        let text = text.replace("units = 2,", &format!("units = 2, {penalty}"));
        std::fs::write(&config, text).unwrap();
        let output = command(&config, &["--json"]).output().unwrap();
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        ["loss", "validation_loss"].map(|name| result["metrics"][name].as_f64().unwrap())
    };
    let (free, priced) = (losses(""), losses("l1 = 0.01, l2 = 0.1,"));
    let added = [priced[0] - free[0], priced[1] - free[1]];
    assert!(added[0] > 0.1 && (added[0] - added[1]).abs() < 1e-5, "{free:?} {priced:?}");
}

#[test]
fn the_history_is_written_as_its_ending_says() {
    let (folder, config) = folder();
    let write = |history: &str| {
        let text = CONFIG.replace("seed = 7", &format!("seed = 7\nhistory = \"{history}\""));
        std::fs::write(&config, text.replace("epochs = 20", "epochs = 2")).unwrap();
        command(&config, &["--json"]).output().unwrap()
    };
    assert!(write("history.json").status.success() && write("history.html").status.success());
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let epochs: serde_json::Value = serde_json::from_str(&read("history.json")).unwrap();
    assert_eq!(epochs.as_array().unwrap().len(), 2);
    let loss = epochs[1]["loss"].as_f64().unwrap();
    let page = read("history.html");
    assert!(page.contains(&format!("\"loss\":{loss},")) && page.matches("<svg").count() == 3);
    let refused = write("history.txt");
    assert!(!refused.status.success() && String::from_utf8(refused.stdout).unwrap().contains(".html"));
}

/// One probability a sample tells two classes apart, and is measured like two.
#[test]
fn a_probability_is_measured_as_two_classes() {
    let (folder, config) = folder();
    let text = CONFIG.replace("units = 2, activation = \"softmax\"", "units = 1, activation = \"sigmoid\"");
    let text =
        text.replace("[network]", "test = \"data.npz\"\n[loss]\nname = \"binary_crossentropy\"\n[network]");
    std::fs::write(&config, text).unwrap();
    let output = command(&config, &["--json"]).output().unwrap();
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |result: &serde_json::Value, name: &str| result["metrics"][name].as_f64().unwrap();
    assert!(of(&result, "accuracy") > 0.9 && of(&result, "auc") > 0.95, "{result}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sora"));
    command.current_dir(folder.path()).args(["evaluate", "trained.sora", "--data", "data.npz", "--json"]);
    let evaluated: serde_json::Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    for name in ["accuracy", "auc", "macro_f1"] {
        assert_eq!(of(&evaluated, name), of(&result, name), "{name}");
    }
    assert_eq!(evaluated["confusion"][1].as_array().unwrap().len(), 2);
}

#[test]
fn misspelled_keys_are_errors_with_the_nearest_key() {
    let (_folder, config) = folder();
    for (good, bad, near) in [
        ("epochs", "epoch", "`epochs`"),
        ("\"adam\"", "\"adan\"", "`adam`"),
        ("\"cosine\"", "\"plateaus\"", "`plateau`"),
    ] {
        std::fs::write(&config, CONFIG.replace(good, bad)).unwrap();
        let output = command(&config, &["--json"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!output.status.success() && text.contains(near), "{text}");
    }
}

/// A network with batch normalization, trained by nobody, as an ONNX file.
fn model(path: &Path) {
    let mut net = Network::as_trained("old", 4);
    let x = net.input("x", &[1, 8, 8], Samples::UNIT);
    let conv = Conv2d::new(6, 3);
    let layers: [&dyn Layer; 5] =
        [&conv, &BatchNorm2d::new(1e-3), &Activation::Relu, &MaxPool2d::new(2), &Flatten];
    let x = net.sequence(x, &layers).unwrap();
    let y = net.sequence(x, &[&Dense::new(1), &Activation::Softmax]).unwrap();
    net.output("y", y);
    sora::Model::of(net.into_graph()).save(path).unwrap();
}

fn fine_tune(folder: &Path, options: &[&str]) -> (bool, serde_json::Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sora"));
    command.current_dir(folder).args(["fine-tune", "old.onnx", "--data", "data.npz", "-o", "new.onnx"]);
    command.args(["--test", "data.npz", "--epochs", "30", "--batch", "16", "--json"]).args(options);
    let output = command.output().unwrap();
    (output.status.success(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn an_imported_model_learns_other_classes_and_keeps_what_is_frozen() {
    let (folder, _) = folder();
    let at = |name| folder.path().join(name);
    model(&at("old.onnx"));
    for options in [&["--freeze", "conv2d.*"][..], &["--batch-statistics"]] {
        let (done, result) = fine_tune(folder.path(), &[&["--classes", "2"], options].concat());
        assert!(done && result["metrics"]["accuracy"].as_f64().unwrap() > 0.9, "{result}");
        let [old, new] = ["old.onnx", "new.onnx"].map(|name| sora::Model::load(at(name)).unwrap().graph);
        let constant = |graph: &sora::ir::Graph, name: &str| {
            graph.const_value(graph.find(name).unwrap_or_else(|| panic!("no {name}"))).unwrap().clone()
        };
        let same = |name| constant(&old, name) == constant(&new, name);
        let frozen = options.contains(&"--freeze");
        assert_eq!(same("conv2d.weight"), frozen);
        assert!(!same("batch_norm2d.weight"));
        assert_eq!(same("batch_norm2d.running_mean"), frozen);
        assert_eq!(constant(&new, "head.weight").shape(), [54, 2]);
    }
}

#[test]
fn what_cannot_be_fine_tuned_says_why() {
    let (folder, _) = folder();
    model(&folder.path().join("old.onnx"));
    for (options, what) in [
        (&["--freeze", "con.*"][..], "No parameter matches `con.*`; there are conv2d.weight"),
        (&["--freeze", "*"], "no float weights left"),
        (&[], "The data has class 1, but the network tells 1 apart"),
    ] {
        let (done, result) = fine_tune(folder.path(), options);
        let text = result["error"]["what"].as_str().unwrap_or_default().to_owned();
        assert!(!done && text.contains(what), "{result}");
    }
}

/// What the example comments out are keys that there are, too.
#[test]
fn the_example_holds_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/fashion-mnist/train.toml");
    sora::training::Config::load(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let commented =
        |line: &str| line.strip_prefix("# ").is_some_and(|l| l.starts_with('[') || l.contains(" = "));
    let lines: Vec<&str> = text.lines().map(|l| if commented(l) { &l[2..] } else { l }).collect();
    let folder = tempfile::tempdir().unwrap();
    let all = folder.path().join("all.toml");
    std::fs::write(&all, lines.join("\n")).unwrap();
    let config = sora::training::Config::load(&all).unwrap();
    assert!(config.model.is_some() && config.early_stopping.is_some() && config.training.clip_norm.is_some());
}
