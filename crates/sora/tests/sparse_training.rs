//! Pruning while training, learning from another network, and compression that does both.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use sora::data::{Dataset, Loader, LoaderOptions, Preprocess};
use sora::exec::Options;
use sora::ir::{Graph, evaluate};
use sora::layers::{Activation, Dense, Layer, Network, Samples};
use sora::tensor::Tensor;
use sora::train::{
    Checkpoint, Epoch, Head, Loss, Optimizer, Plan, Pruning, PruningScope, Recipe, Schedule, Teacher,
    Trainable, Trainer, Watch, fit,
};

/// A ring and what is inside, in two axes among eight of noise.
fn rings(count: usize, labelled: bool) -> Dataset {
    let mut rng = fastrand::Rng::with_seed(4);
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let sample: Vec<f32> = (0..10).map(|_| rng.f32() * 2.0 - 1.0).collect();
        labels.push(usize::from(sample[0] * sample[0] + sample[1] * sample[1] > 0.6));
        values.extend(sample);
    }
    let x = Tensor::from_slice(&[count, 10], &values).unwrap();
    Dataset::from_arrays(vec![(None, x)], labelled.then_some(labels)).unwrap()
}

fn network(units: usize) -> Trainable {
    let mut net = Network::new("net", 3);
    let x = net.input("x", &[10], Samples::UNIT);
    let layers: [&dyn Layer; 3] = [&Dense::new(units), &Activation::Relu, &Dense::new(2)];
    let y = net.sequence(x, &layers).unwrap();
    net.output("y", y);
    net.into_trainable()
}

/// Keeps the checkpoint behind one step and ends there.
struct Until(u64, Option<Checkpoint>);

impl Watch for Until {
    fn step(&mut self, _epoch: u32, _step: u64, _steps: u64, _so_far: &Epoch) {
        self.0 = self.0.saturating_sub(1);
    }

    fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), String> {
        self.1.get_or_insert_with(|| checkpoint.clone());
        Ok(())
    }

    fn stops(&self) -> bool {
        self.0 == 0
    }
}

struct Training {
    data: Dataset,
    recipe: Recipe,
    plan: Plan,
}

impl Training {
    fn new(labelled: bool, pruning: Option<Pruning>, teacher: Option<Arc<Teacher>>) -> Self {
        let none = BTreeMap::new();
        let loss = Loss::new("categorical_crossentropy", &none).unwrap();
        let recipe = Recipe { pruning, ..Recipe::new(loss, Optimizer::new("adam", &none).unwrap()) };
        let schedule = Schedule::new("cosine", &none).unwrap();
        let (patience, swa, save_every) = (None, None, None);
        let plan = Plan {
            epochs: 12,
            rate: 0.01,
            schedule,
            patience,
            swa,
            save_every,
            teacher,
            name: String::new(),
        };
        Training { data: rings(600, labelled), recipe, plan }
    }

    fn run(
        &self,
        network: Trainable,
        from: Option<Checkpoint>,
        watch: &mut dyn Watch,
    ) -> (Graph, Vec<Tensor>) {
        let indices: Vec<usize> = (0..600).collect();
        let options = LoaderOptions { batch: 32, ..LoaderOptions::default() };
        let loader = Loader::new(&self.data, &indices, None, &Preprocess::default(), options).unwrap();
        let mut trainer = Trainer::new(network, 32, self.recipe.clone(), Options::default()).unwrap();
        let fitted = fit(&mut trainer, &self.plan, &loader, None, from, watch).unwrap();
        (trainer.graph_of(&fitted.state), fitted.state.into_iter().map(|(_, tensor)| tensor).collect())
    }
}

fn accuracy(graph: &Graph) -> f64 {
    let data = rings(600, true);
    let found = sora::compress::evaluate(
        graph,
        &data,
        &Preprocess::default(),
        None,
        &Options::default(),
        &sora::compress::Silent,
    );
    found.unwrap().accuracy
}

fn zeros(graph: &Graph) -> f64 {
    let weights = graph.values().filter_map(|(id, _)| graph.const_value(id)).filter(|t| t.rank() == 2);
    let (zeros, all) = weights.fold((0, 0), |(zeros, all), tensor| {
        (zeros + tensor.to_f32s().iter().filter(|w| **w == 0.0).count(), all + tensor.len())
    });
    zeros as f64 / all as f64
}

#[test]
fn pruned_networks_learn_with_the_weights_that_are_left_and_go_on_after_an_interruption() {
    let pruning = Pruning {
        sparsity: 0.8,
        initial: 0.2,
        begin: 0.1,
        end: 0.5,
        every: 7,
        scope: PruningScope::Lamp,
        regrow: 0.0,
    };
    let training = Training::new(true, Some(pruning), None);
    let (graph, whole) = training.run(network(64), None, &mut Until(u64::MAX, None));
    assert!((zeros(&graph) - 0.8).abs() < 0.01, "{}", zeros(&graph));
    let dense = Training::new(true, None, None).run(network(64), None, &mut Until(u64::MAX, None)).0;
    assert!(accuracy(&graph) > accuracy(&dense) - 0.03, "{} {}", accuracy(&graph), accuracy(&dense));
    // Between two times of pruning, and at one.
    for steps in [50, 70] {
        let mut watch = Until(steps, None);
        training.run(network(64), None, &mut watch);
        assert_eq!(training.run(network(64), watch.1, &mut Until(u64::MAX, None)).1, whole);
    }
}

/// Weights of a network that began with the least possible number of them, which magnitudes alone chose.
#[test]
fn exchanged_weights_find_what_the_first_ones_missed() {
    let pruning = Pruning {
        sparsity: 0.95,
        initial: 0.95,
        begin: 0.0,
        end: 0.8,
        every: 5,
        scope: PruningScope::Layer,
        regrow: 0.0,
    };
    let run = |regrow: f64| {
        let training = Training::new(true, Some(Pruning { regrow, ..pruning }), None);
        let found = training.run(network(64), None, &mut Until(u64::MAX, None));
        (training, found)
    };
    let (_, (fixed, _)) = run(0.0);
    let (training, (exchanged, whole)) = run(0.3);
    assert!((zeros(&exchanged) - 0.95).abs() < 0.01, "{}", zeros(&exchanged));
    assert!(accuracy(&exchanged) > accuracy(&fixed) + 0.02, "{} {}", accuracy(&exchanged), accuracy(&fixed));
    let mut watch = Until(52, None);
    training.run(network(64), None, &mut watch);
    assert_eq!(training.run(network(64), watch.1, &mut Until(u64::MAX, None)).1, whole);
}

#[test]
fn moving_averages_and_other_pruned_results_have_as_many_zeros() {
    let pruning = Pruning {
        sparsity: 0.6,
        initial: 0.0,
        begin: 0.0,
        end: 1.0,
        every: 1000,
        scope: PruningScope::Layer,
        regrow: 0.0,
    };
    let mut training = Training::new(true, Some(pruning), None);
    training.recipe.average = Some(0.99);
    let (graph, _) = training.run(network(16), None, &mut Until(u64::MAX, None));
    assert!((zeros(&graph) - 0.6).abs() < 0.01, "{}", zeros(&graph));
}

#[test]
fn a_teacher_stands_in_for_labels() {
    let (teacher, _) = Training::new(true, None, None).run(network(64), None, &mut Until(u64::MAX, None));
    let shared = |share| Some(Arc::new(Teacher::new(teacher.clone(), share, Options::default()).unwrap()));
    // Without labels, and with them.
    for (labelled, share) in [(false, 1.0), (true, 0.5)] {
        let training = Training::new(labelled, None, shared(share));
        let (graph, _) = training.run(network(32), None, &mut Until(u64::MAX, None));
        assert!(accuracy(&graph) > accuracy(&teacher) - 0.04, "{} {}", accuracy(&graph), accuracy(&teacher));
    }
    let mut graph = teacher;
    graph.set_outputs(Vec::new());
    assert!(Teacher::new(graph, 1.0, Options::default()).unwrap_err().to_string().contains("[N, classes]"));
}

/// Keeps the losses of the first step: of all heads, and of the features.
#[derive(Default)]
struct First(Option<[f64; 2]>);

impl Watch for First {
    fn step(&mut self, _epoch: u32, _step: u64, _steps: u64, so_far: &Epoch) {
        let features = so_far.heads.iter().filter(|(name, _)| name.starts_with("feature/"));
        self.0.get_or_insert([so_far.loss, features.map(|(_, head)| head.loss).sum()]);
    }
}

#[test]
fn features_are_learnt_in_shares_of_their_variance() {
    let (graph, _) = Training::new(true, None, None).run(network(32), None, &mut Until(u64::MAX, None));
    let (data, indices) = (rings(600, true), [3, 5, 8, 13, 21, 34, 55, 89]);
    let seen = data.batch(&indices, &Preprocess::default()).unwrap();
    let teacher = Teacher::new(graph.clone(), 0.5, Options::default()).unwrap();
    let teacher = Arc::new(teacher.with_features(&seen).unwrap());
    let mut student = network(32);
    let heads = teacher.feature_heads(&mut student.graph, 0.3).unwrap();
    // What goes into the last product; in a narrower network it has another shape.
    let [head] = &heads[..] else { panic!("{heads:?}") };
    assert!(teacher.feature_heads(&mut network(16).graph, 0.3).unwrap().is_empty());
    let hidden = |graph: &Graph| {
        let mut graph = graph.clone();
        let value = graph.find(head.output.as_ref().unwrap().strip_prefix("feature/").unwrap()).unwrap();
        graph.set_outputs(Vec::new());
        graph.output("hidden", value);
        evaluate(&graph, &[("x", &seen.inputs[0].1)]).unwrap()[0].to_f64s()
    };
    let (taught, own) = (hidden(&graph), hidden(&student.graph));
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / taught.len() as f64;
    let middle = mean(&mut taught.iter().copied());
    let variance = mean(&mut taught.iter().map(|t| (t - middle).powi(2)));
    let apart = mean(&mut taught.iter().zip(&own).map(|(t, s)| (t - s).powi(2)));
    assert!(apart > 0.1 * variance, "{apart} {variance}");

    // One batch, which is the one whose variance was taken.
    let first = |heads: &[Head]| {
        let Training { mut recipe, plan, .. } = Training::new(true, None, Some(Arc::clone(&teacher)));
        recipe.heads.extend(heads.to_vec());
        let options = LoaderOptions { batch: indices.len(), ..LoaderOptions::default() };
        let loader = Loader::new(&data, &indices, None, &Preprocess::default(), options).unwrap();
        let mut trainer = Trainer::new(student.clone(), indices.len(), recipe, Options::default()).unwrap();
        let mut first = First::default();
        fit(&mut trainer, &plan, &loader, None, None, &mut first).unwrap();
        first.0.unwrap()
    };
    let ([alone, _], [both, own]) = (first(&[]), first(&heads));
    let expected = 0.3 * apart / variance;
    assert!((both - alone - expected).abs() < 1e-4 * both, "{both} {alone} {expected}");
    assert!((own - apart).abs() < 1e-4 * apart, "{own} {apart}");

    // Also with a moving average, a training goes on bit for bit.
    let mut training = Training::new(true, None, Some(Arc::clone(&teacher)));
    training.recipe.heads.extend(heads.clone());
    training.recipe.average = Some(0.95);
    let (_, whole) = training.run(student.clone(), None, &mut Until(u64::MAX, None));
    let mut watch = Until(50, None);
    training.run(student.clone(), None, &mut watch);
    assert_eq!(training.run(student.clone(), watch.1, &mut Until(u64::MAX, None)).1, whole);
}

/// Runs the command in a folder; the object that it ends with, and whether it succeeded.
fn sora(folder: &Path, args: &[&str]) -> (Value, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_sora")).current_dir(folder).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{text}")), output.status.success())
}

fn save(path: &Path, data: &Dataset) {
    let indices: Vec<usize> = (0..data.len()).collect();
    let batch = data.batch(&indices, &Preprocess::default()).unwrap();
    let labels: Vec<i64> = batch.labels.iter().map(|&label| label as i64).collect();
    let mut bytes = Vec::new();
    sora::data::npz::write(&mut bytes, &[("x", &batch.inputs[0].1), ("y", &Tensor::vector(&labels))])
        .unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn compression_prunes_what_training_makes_up_for() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    save(&folder.join("rings.npz"), &rings(1200, true));
    let (graph, _) = Training::new(true, None, None).run(network(64), None, &mut Until(u64::MAX, None));
    sora::Model::of(graph).save(folder.join("m.onnx")).unwrap();
    let compress =
        ["compress", "m.onnx", "--data", "rings.npz", "--max-drop", "0.03", "--prefer", "size", "--json"];
    let with = |more: &[&'static str]| sora(folder, &[&compress, more].concat());
    // An ONNX file gets no smaller by zeros; a coded one has some without training, too.
    let (plain, _) = with(&["-o", "plain.onnx"]);
    assert_eq!(plain["layers"][0]["zeros"], 0.0);
    let (coded, _) = with(&["-o", "coded.sora"]);
    assert!(coded["layers"][0]["zeros"].as_f64().unwrap() > 0.2, "{coded}");
    let (pruned, _) = with(&[
        "-o",
        "pruned.sora",
        "-o",
        "pruned.txt",
        "--train",
        "rings.npz",
        "--epochs",
        "4",
        "--rate",
        "0.01",
        "--save-recipe",
        "r.toml",
    ]);
    let args =
        ["compress", "m.onnx", "--data", "rings.npz", "--train", "rings.npz", "--recipe", "r.toml", "--json"];
    sora(folder, &[&args[..], &["-o", "again.txt"]].concat());
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    assert!(read("pruned.txt") == read("again.txt"), "{}", read("r.toml"));
    assert_eq!((&plain["met"], &pruned["met"]), (&json!(true), &json!(true)), "{plain} {pruned}");
    let steps = pruned["steps"].as_array().unwrap();
    let kept = steps.iter().filter(|step| step.as_str().unwrap().contains("which is kept")).count();
    assert!(kept > 0, "{steps:?}");
    // What is said of the layers is so in the file.
    let zeros = pruned["layers"][0]["zeros"].as_f64().unwrap();
    assert!(zeros > 0.4, "{pruned}");
    let written = sora::Model::load(folder.join("pruned.sora")).unwrap().graph;
    let integers = written.values().filter_map(|(id, _)| written.const_value(id)).filter(|t| t.rank() == 2);
    let shares: Vec<f64> = integers
        .map(|tensor| tensor.to_f64s().iter().filter(|w| **w == 0.0).count() as f64 / tensor.len() as f64)
        .collect();
    assert!(shares.iter().any(|share| *share >= zeros - 1e-9), "{shares:?} {zeros}");

    let (refused, ok) = with(&["-o", "x.sora", "--train", "nothing.npz"]);
    assert!(!ok && refused["error"]["where"].as_str().unwrap().contains("nothing.npz"), "{refused}");
    let other = Tensor::from_slice(&[8, 3], &[0f32; 24]).unwrap();
    save(&folder.join("other.npz"), &Dataset::from_arrays(vec![(None, other)], Some(vec![0; 8])).unwrap());
    let (refused, ok) = with(&["-o", "x.sora", "--train", "other.npz"]);
    assert!(!ok && refused.to_string().contains("10"), "{refused}");
    assert!(!folder.join("x.sora").exists());
}

#[test]
fn recipes_take_channels_out_and_train_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    save(&folder.join("rings.npz"), &rings(1200, true));
    let (graph, _) = Training::new(true, None, None).run(network(64), None, &mut Until(u64::MAX, None));
    sora::Model::of(graph).save(folder.join("m.onnx")).unwrap();
    let recipe =
        "[training]\nepochs = 6\nbatch = 32\nrate = 0.01\nsteps = [{ narrow = 0.5 }, { sparse = 0.5 }]\n";
    std::fs::write(folder.join("r.toml"), recipe).unwrap();
    let args = [
        "compress",
        "m.onnx",
        "--data",
        "rings.npz",
        "--train",
        "rings.npz",
        "--recipe",
        "r.toml",
        "--max-drop",
        "0.05",
        "-o",
        "out.sora",
        "--save-recipe",
        "again.toml",
        "--json",
    ];
    let (found, _) = sora(folder, &args);
    assert_eq!(found["met"], true, "{found}");
    let written = sora::Model::load(folder.join("out.sora")).unwrap().graph;
    let weights =
        |id| written.const_value(id).filter(|t: &&Tensor| t.rank() == 2).map(|t| t.shape().to_vec());
    let shapes: Vec<Vec<usize>> = written.values().filter_map(|(id, _)| weights(id)).collect();
    assert!(shapes.contains(&vec![10, 32]) && shapes.contains(&vec![32, 2]), "{shapes:?}");
    assert!(found["layers"][0]["zeros"].as_f64().unwrap() > 0.3, "{found}");
    assert!(std::fs::read_to_string(folder.join("again.toml")).unwrap().contains("narrow = 0.5"));
    std::fs::write(folder.join("r.toml"), recipe.replace("sparse = 0.5", "sparse = 1.5")).unwrap();
    let (refused, ok) = sora(folder, &args);
    assert!(!ok && refused["error"]["what"].as_str().unwrap().contains("1.5"), "{refused}");
    // Features and means of weights, as often as one likes.
    let more = "[training]\nepochs = 3\nbatch = 32\nrate = 0.01\nfeatures = 0.5\naverage = 0.9\nsteps = [{ sparse = 0.5 }]\nquantized = true\n";
    let changes =
        [("none", "none"), ("features = 0.5\n", ""), ("average = 0.9\n", ""), ("average = 0.9", "swa = 2")];
    let networks = changes.map(|(old, new)| {
        std::fs::write(folder.join("r.toml"), more.replace(old, new)).unwrap();
        let network = || {
            sora(folder, &[&args[..], &["-o", "out.txt"]].concat());
            std::fs::read_to_string(folder.join("out.txt")).unwrap()
        };
        let found = network();
        assert_eq!(network(), found);
        let again = std::fs::read_to_string(folder.join("again.toml")).unwrap();
        let kept = ["features = 0.5", "average = 0.9", "swa = 2"].map(|line| again.contains(line));
        assert_eq!(kept, [!old.contains("feat"), !old.contains("ave"), new.contains("swa")], "{again}");
        found
    });
    let different: std::collections::BTreeSet<&String> = networks.iter().collect();
    assert_eq!(different.len(), networks.len(), "{more}");
    for (new, why) in [
        ("1.0", "keep 1 of itself"),
        ("0.9\nswa = 2", "over steps or over epochs"),
        ("0.0\nswa = 4", "the last 4"),
    ] {
        std::fs::write(folder.join("r.toml"), more.replace("0.9", new)).unwrap();
        let (refused, ok) = sora(folder, &args);
        assert!(!ok && refused["error"]["what"].as_str().unwrap().contains(why), "{refused}");
    }
    let flipped = more.replace("features = 0.5", "augment = [{ name = \"horizontal_flip\" }]");
    std::fs::write(folder.join("r.toml"), flipped).unwrap();
    let (refused, ok) = sora(folder, &args);
    assert!(!ok && refused["error"]["what"].as_str().unwrap().contains("horizontal_flip"), "{refused}");
    // Without an epoch nothing is trained, and what is left only makes up for what goes.
    let untrained = recipe.replace("epochs = 6", "epochs = 0").replace(", { sparse = 0.5 }", "");
    std::fs::write(folder.join("r.toml"), untrained).unwrap();
    let (found, _) = sora(folder, &args);
    assert_eq!(found["met"], true, "{found}");
    let written = sora::Model::load(folder.join("out.sora")).unwrap().graph;
    assert!(written.values().any(|(_, v)| v.ty.known_shape() == Some(vec![10, 32])), "{written:?}");
}
