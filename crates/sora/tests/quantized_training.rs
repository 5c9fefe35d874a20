//! Compression that trains the quantized network, and that goes on after it was killed.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::fast_bytes;
use serde_json::Value;
use sora::data::{Dataset, Loader, LoaderOptions, Preprocess};
use sora::exec::Options;
use sora::layers::{Activation, Dense, Layer, Network, Samples};
use sora::tensor::{DType, Tensor};
use sora::train::{Checkpoint, Loss, Optimizer, Plan, Recipe, Schedule, Trainer, Watch, fit};

struct Nobody;

impl Watch for Nobody {}

/// Writes a ring and what is inside, in two axes among ten, and a network that tells them apart.
fn prepare(folder: &Path) {
    let mut rng = fastrand::Rng::with_seed(4);
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..1200 {
        let sample: Vec<f32> = (0..10).map(|_| rng.f32() * 2.0 - 1.0).collect();
        labels.push(i64::from(sample[0] * sample[0] + sample[1] * sample[1] > 0.6));
        values.extend(sample);
    }
    let x = Tensor::from_slice(&[1200, 10], &values).unwrap();
    let mut bytes = Vec::new();
    sora::data::npz::write(&mut bytes, &[("x", &x), ("y", &Tensor::vector(&labels))]).unwrap();
    std::fs::write(folder.join("rings.npz"), bytes).unwrap();
    let labels = labels.iter().map(|&label| label as usize).collect();
    let data = Dataset::from_arrays(vec![(None, x)], Some(labels)).unwrap();

    let mut net = Network::new("net", 3);
    let x = net.input("x", &[10], Samples::UNIT);
    let layers: [&dyn Layer; 5] =
        [&Dense::new(24), &Activation::Relu, &Dense::new(24), &Activation::Relu, &Dense::new(2)];
    let y = net.sequence(x, &layers).unwrap();
    net.output("y", y);
    let none = BTreeMap::new();
    let loss = Loss::new("sparse_categorical_crossentropy", &none).unwrap();
    let recipe = Recipe::new(loss, Optimizer::new("adam", &none).unwrap());
    let schedule = Schedule::new("cosine", &none).unwrap();
    let plan = Plan {
        epochs: 40,
        rate: 0.01,
        schedule,
        patience: None,
        swa: None,
        save_every: None,
        teacher: None,
        name: String::new(),
    };
    let indices: Vec<usize> = (0..1200).collect();
    let options = LoaderOptions { batch: 64, ..LoaderOptions::default() };
    let loader = Loader::new(&data, &indices, None, &Preprocess::default(), options).unwrap();
    let mut trainer = Trainer::new(net.into_trainable(), 64, recipe, Options::default()).unwrap();
    let fitted = fit(&mut trainer, &plan, &loader, None, None, &mut Nobody).unwrap();
    sora::Model::of(trainer.graph_of(&fitted.state)).save(folder.join("m.onnx")).unwrap();
}

fn command(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sora"));
    command.current_dir(folder);
    command.args(["compress", "m.onnx", "--data", "rings.npz", "--train", "rings.npz", "--json"]).args(more);
    command
}

/// The object that a command ends with, and whether it succeeded.
fn run(folder: &Path, more: &[&str]) -> (Value, bool) {
    let output = command(folder, more).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{text}")), output.status.success())
}

fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn quantized_networks_learn_what_rounding_cost() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let text = "weight_bits = 3\n\n[training]\nepochs = 20\nbatch = 64\nrate = 0.005\n";
    std::fs::write(folder.join("plain.toml"), text).unwrap();
    std::fs::write(folder.join("trained.toml"), format!("{text}quantized = true\n")).unwrap();
    let follow =
        |recipe: &str, out: &str| run(folder, &["--recipe", recipe, "-o", out, "--save-recipe", "r.toml"]).0;
    let plain = follow("plain.toml", "plain.txt");
    let trained = follow("trained.toml", "trained.txt");
    let accuracy = |found: &Value| found["after"]["accuracy"].as_f64().unwrap();
    assert!(accuracy(&trained) > accuracy(&plain) + 0.02, "{plain} {trained}");
    // The levels are those of 3 bits, and the file is a quantized network as any other.
    let graph = sora::Model::load(folder.join("trained.txt")).unwrap().graph;
    let weights = graph.values().filter_map(|(id, _)| graph.const_value(id));
    let weights: Vec<&Tensor> = weights.filter(|t| t.dtype() == DType::I8 && t.rank() == 2).collect();
    assert_eq!(weights.len(), 3);
    assert!(weights.iter().all(|w| w.to_i64s().iter().all(|level| level.abs() <= 3)));
    assert_ne!(read(folder, "plain.txt"), read(folder, "trained.txt"));
    // What was saved gives the same again.
    assert!(read(folder, "r.toml").contains("quantized = true"), "{}", read(folder, "r.toml"));
    follow("r.toml", "again.txt");
    assert!(read(folder, "trained.txt") == read(folder, "again.txt"));
    // Layers may differ in bits.
    let graph = sora::Model::load(folder.join("m.onnx")).unwrap().graph;
    let last = graph.nodes().filter(|(_, node)| node.op.name() == "MatMul").last().unwrap().1.name.clone();
    let mixed = format!("{text}quantized = true\n\n[bits]\n\"{last}\" = 6\n");
    std::fs::write(folder.join("mixed.toml"), mixed).unwrap();
    follow("mixed.toml", "mixed.txt");
    let graph = sora::Model::load(folder.join("mixed.txt")).unwrap().graph;
    let weights = graph.values().filter_map(|(id, _)| graph.const_value(id));
    let weights = weights.filter(|t| t.dtype() == DType::I8 && t.rank() == 2);
    let most = weights.map(|w| w.to_i64s().into_iter().map(i64::abs).max().unwrap_or(0));
    let mut most: Vec<i64> = most.collect();
    most.sort_unstable();
    assert!(most[1] <= 3 && most[2] > 3 && most[2] <= 31, "{most:?}");
}

#[test]
fn the_search_trains_before_it_gives_bits_back_and_goes_on_after_it_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let search = [
        "--prefer",
        "size",
        "--max-drop",
        "0.01",
        "--epochs",
        "12",
        "--rate",
        "0.005",
        "-o",
        "out.sora",
        "-o",
        "out.txt",
        "--save-recipe",
        "r.toml",
    ];
    // Times of such small layers are not the same twice.
    let table = fast_bytes(&folder.join("m.onnx").display().to_string(), folder);
    let search = [&search[..], &["--for", &table]].concat();
    let (whole, ok) = run(folder, &search);
    assert!(ok && whole["met"] == true, "{whole}");
    let steps = whole["steps"].to_string();
    assert!(steps.contains("trained with weights of"), "{steps}");
    let expected = read(folder, "out.txt");
    // The recipe makes the same network, trained or not.
    run(folder, &["--recipe", "r.toml", "-o", "again.txt"]);
    assert!(read(folder, "again.txt") == expected, "{} {steps}", read(folder, "r.toml"));

    let kept = [&search[..], &["--checkpoint", "kept"]].concat();
    let trainings = || -> Vec<Checkpoint> {
        let files = std::fs::read_dir(folder.join("kept")).into_iter().flatten();
        let files = files
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "npz"));
        files.map(|path| Checkpoint::load(&path).unwrap()).collect()
    };
    // Killed in the first training, and in a later one.
    for many in [1, 3] {
        let mut child = command(folder, &kept).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while trainings().len() < many && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            trainings().iter().any(|training| training.progress.epoch < 12),
            "it was over before it was killed"
        );
    }
    let done = trainings().iter().filter(|training| training.progress.epoch == 12).count();
    assert!(done >= 2, "{done}");
    // Another compression does not go on from there.
    let other = [&kept[..], &["--seed", "1"]].concat();
    let (refused, ok) = run(folder, &other);
    assert!(!ok && refused["error"]["what"].as_str().unwrap().contains("differs in: seed"), "{refused}");
    assert!(refused["error"]["where"].as_str().unwrap().contains("kept"), "{refused}");

    let (found, ok) = run(folder, &kept);
    assert!(ok && found["steps"] == whole["steps"], "{found} {whole}");
    assert!(read(folder, "out.txt") == expected);
    assert!(!folder.join("kept").exists(), "what is complete is not kept");
    // Channels that are taken out would have no times in the table.
    let (refused, ok) = run(folder, &["--for", &table, "-o", "fast.sora"]);
    assert!(!ok && refused.to_string().contains("--prefer size"), "{refused}");
    // A folder with anything else in it is left alone.
    std::fs::create_dir(folder.join("mine")).unwrap();
    std::fs::write(folder.join("mine/a.npz"), "a").unwrap();
    let (refused, ok) = run(folder, &[&search[..], &["--checkpoint", "mine"]].concat());
    assert!(!ok && refused.to_string().contains("holds something else"), "{refused}");
}
