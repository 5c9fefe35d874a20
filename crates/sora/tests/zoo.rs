//! The zoo: its networks are what they say, from the seed alone, and their values stay in range.

mod common;

use common::{fail, sora, succeed, succeed_json};
use sora::exec::{Options, Session};
use sora::ir::Dim;
use sora::layers::{Network, Samples};
use sora::tensor::Tensor;
use sora::zoo::{ENTRIES, Entry};

fn network(name: &str, seed: u64) -> Network {
    Entry::find(name).unwrap().network(seed).unwrap()
}

/// The numbers that Keras prints for the same networks (`count_params` and its trainable part), except where noted.
#[test]
fn parameters_are_as_many_as_published() {
    let expected = [
        ("resnet50", 25_636_712, 25_583_592),
        ("mobilenet_v2", 3_538_984, 3_504_872),
        // Keras counts one more: how many pictures its normalization has seen.
        ("efficientnet_b0", 5_330_570, 5_288_548),
        // The encoder of all-MiniLM-L6, 10,646,784, plus 8192 words, 128 positions and a normalization of width 384.
        ("minilm", 10_646_784 + (8192 + 128 + 2) * 384, 10_646_784 + (8192 + 128 + 2) * 384),
        // Two biases per gate, as PyTorch and ONNX have it.
        ("lstm", 847_936, 847_936),
        ("ds_cnn", 24_332, 23_180),
        ("cnn32", 315_722, 315_722),
    ];
    assert_eq!(expected.map(|(name, ..)| name), *ENTRIES.iter().map(|e| e.name).collect::<Vec<_>>());
    for (name, all, trainable) in expected {
        let net = network(name, 0);
        assert_eq!((net.count(false), net.count(true)), (all, trainable), "{name}");
    }
}

/// Random samples like those that the network's inputs take.
fn samples(net: &Network, batch: usize) -> Vec<(String, Tensor)> {
    let mut rng = fastrand::Rng::with_seed(8);
    let inputs = net.inputs().iter().map(|(name, samples)| {
        let ty = net.ty(net.graph().find(name).unwrap());
        let shape: Vec<usize> = ty.shape.iter().map(|d| d.known().unwrap_or(batch)).collect();
        let mut draw = || match *samples {
            // The sum of uniform values is nearly normal.
            Samples::Normal { mean, std } => mean + std * ((0..12).map(|_| rng.f64()).sum::<f64>() - 6.0),
            Samples::Index { below } => rng.i64(0..below) as f64,
        };
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw()).collect();
        (name.clone(), Tensor::from_f64s(ty.dtype, &shape, &values).unwrap())
    });
    inputs.collect()
}

/// Root of the mean square.
fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
}

#[test]
fn values_stay_in_range_at_every_depth() {
    for entry in ENTRIES {
        let net = entry.network(1).unwrap();
        let inputs = samples(&net, 2);
        let graph = net.into_graph();
        let watched = graph.nodes().flat_map(|(_, node)| node.outputs.clone()).collect();
        let session = Session::watching(graph, watched, Options::default()).unwrap();
        let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let mut odd = Vec::new();
        let outputs = session.run_observed(&given, &mut |value, tensor| {
            let name = &session.graph().value(value).name;
            let size = rms(&tensor.to_f64s());
            // A mask is large where it hides; shares of one are small by nature.
            let exempt = name.contains("mask") || name.contains("softmax");
            if !exempt && !(0.02..300.0).contains(&size) {
                odd.push(format!("{name}: {size}"));
            }
        });
        assert!(odd.is_empty(), "{}: {odd:?}", entry.name);
        let output = &outputs.unwrap()[0].1;
        let values = output.to_f64s();
        let (first, second) = values.split_at(values.len() / 2);
        let difference: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
        assert!(rms(&difference) > 0.01 * rms(first), "{}: the input does not matter", entry.name);
        if output.rank() == 2 {
            let most = values.iter().fold(0.0, |a: f64, &b| a.max(b));
            assert!(most < 0.9, "{}: {most} is saturated", entry.name);
        }
    }
}

#[test]
fn the_seed_alone_decides() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, seed: &str, isa: Option<&str>| {
        let path = folder.path().join("model.onnx");
        let mut command = sora(&["zoo", name, "-o", path.to_str().unwrap(), "--seed", seed]);
        if let Some(isa) = isa {
            command.env("SORA_ISA", isa);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(path).unwrap()
    };
    for name in ["ds_cnn", "lstm", "cnn32", "mobilenet_v2"] {
        let first = write(name, "7", None);
        assert!(first == write(name, "7", Some("portable")), "{name}: the machine matters");
        assert!(first != write(name, "8", None), "{name}: the seed does not matter");
    }
}

#[test]
fn the_batch_is_open_unless_it_is_fixed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let path = path.to_str().unwrap();
    for entry in ENTRIES {
        if ["resnet50", "efficientnet_b0"].contains(&entry.name) {
            continue;
        }
        for batch in [None, Some("3")] {
            let mut arguments = vec!["zoo", entry.name, "-o", path, "--json"];
            arguments.extend(batch.iter().flat_map(|b| ["--batch", b]));
            let printed = succeed_json(&arguments);
            let model = sora::Model::load(path).unwrap();
            assert_eq!(printed["bytes"], model.bytes);
            let expected = batch.map_or(Dim::symbol("batch"), |b| Dim::parse(b).unwrap());
            let graph = &model.graph;
            let values = graph.inputs().iter().copied().chain(graph.outputs().iter().map(|o| o.value));
            for value in values {
                assert_eq!(graph.ty(value).shape[0], expected, "{} {batch:?}", entry.name);
            }
        }
    }
}

#[test]
fn the_command_lists_and_refuses() {
    let listed = succeed(&["zoo"]);
    let names = succeed_json(&["zoo", "--json"]);
    for (entry, found) in ENTRIES.iter().zip(names["networks"].as_array().unwrap()) {
        assert!(listed.contains(entry.name) && listed.contains(entry.about));
        assert_eq!(found["name"], entry.name);
    }
    assert!(fail(&["zoo", "alexnet", "-o", "x.onnx"]).contains("resnet50"));
    assert!(fail(&["zoo", "cnn32", "-o", "x.bin"]).contains(".onnx"));
    for wrong in
        [&["zoo", "cnn32"][..], &["zoo", "-o", "x.onnx"], &["zoo", "cnn32", "-o", "x.onnx", "--batch", "0"]]
    {
        assert_eq!(sora(wrong).output().unwrap().status.code(), Some(2), "{wrong:?}");
    }
}
