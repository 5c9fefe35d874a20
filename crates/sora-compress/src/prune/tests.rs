use sora_data::{Dataset, Preprocess};
use sora_exec::{Options, Session};
use sora_ir::ops::{Binary, BinaryKind, Concat, Conv};
use sora_ir::{Graph, ValueId, evaluate, verify};
use sora_tensor::Tensor;

use super::*;
use crate::testing::{Net, Random, Silent};

fn run(graph: &Graph, x: &Tensor) -> Vec<f64> {
    evaluate(graph, &[("x", x)]).unwrap()[0].to_f64s()
}

fn most_apart(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(0.0, |most, (a, b)| f64::max(most, (a - b).abs()))
}

/// Convolutions with a shortcut, a depthwise one and a concatenation, then a dense layer.
fn branches(seed: u64) -> Graph {
    let (mut net, x) = Net::new(seed, &[3, 6, 6]);
    let a = net.conv("a", x, 8);
    let a = net.relu("a.relu", a);
    let b = net.conv("b", a, 8);
    let sum = net.add("sum", a, b);
    let w = net.random.tensor(&[16, 1, 3, 3], 0.3);
    let w = net.graph.constant("deep.w", w);
    let deep = net.op("deep", Conv { pads: vec![1; 4], group: 8, ..Conv::new(2) }, &[sum, w]);
    let c = net.conv("c", sum, 6);
    let joined = net.op("joined", Concat { axis: 1 }, &[deep, c]);
    let flat = net.flatten("flat", joined, 22 * 36);
    let y = net.dense("y", flat, 5);
    let y = net.softmax("shares", y);
    net.done(y)
}

#[test]
fn what_goes_together_is_one_group() {
    let graph = branches(1);
    let groups = groups(&graph).unwrap();
    let layers: Vec<(Vec<String>, usize)> =
        groups.groups.iter().map(|g| (g.layers.clone(), g.units.len())).collect();
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    assert_eq!(layers, [(names(&["a", "b", "deep"]), 8), (names(&["c"]), 6)]);
    let [forbidden] = groups.forbidden.as_slice() else { panic!("{:?}", groups.forbidden) };
    assert_eq!(forbidden.layer, "y");
    assert!(forbidden.why.contains("`shares`"), "{forbidden:?}");
    // A channel of `a`: its own filter, one of b and one tap in it, two of `deep`, one in c, and 72 features.
    let pixels = 36.0;
    let first = pixels * (27.0 + 15.0 * 9.0 + 18.0 + 54.0) + 72.0 * 5.0;
    assert_eq!(groups.groups[0].macs, first);
    assert_eq!(groups.groups[1].macs, pixels * 72.0 + pixels * 5.0);
}

#[test]
fn removing_is_silencing() {
    let mut random = Random::new(3);
    for seed in 0..6 {
        let graph = branches(seed);
        let groups = groups(&graph).unwrap();
        let mut keep: Vec<Vec<bool>> = Vec::new();
        for group in &groups.groups {
            keep.push((0..group.units.len()).map(|i| i == 2 || random.below(2) == 0).collect());
        }
        let pruned = remove(&graph, &groups, &keep).unwrap();
        verify(&pruned).unwrap();
        let x = random.tensor(&[2, 3, 6, 6], 1.0);
        let expected = run(&silence(&graph, &groups, &keep).unwrap(), &x);
        assert!(most_apart(&run(&pruned, &x), &expected) < 1e-5);
        keep[0].fill(false);
        assert!(remove(&graph, &groups, &keep).unwrap_err().to_string().contains("deep"));
        assert!(remove(&graph, &groups, &keep[..1]).is_err());
    }
}

/// Where the inputs that go are sums of those that stay, nothing is lost.
#[test]
fn reconstruction_finds_what_is_redundant() {
    let (mut net, x) = Net::new(5, &[2, 5, 5]);
    let w = net.random.tensor(&[6, 2, 3, 3], 0.5).to_f32s();
    let mut twice = w.clone();
    // Channel 4 is the sum of channels 0 and 1, channel 5 half of channel 2, each with a constant.
    (0..18).for_each(|i| twice[4 * 18 + i] = w[i] + w[18 + i]);
    (0..18).for_each(|i| twice[5 * 18 + i] = w[36 + i] / 2.0);
    let w = Tensor::from_slice(&[6, 2, 3, 3], &twice).unwrap();
    let a = net.conv_of("a", x, w, Tensor::vector(&[0.1f32, 0.2, -0.3, 0.4, 0.7, 0.9]));
    let flat = net.flatten("flat", a, 150);
    let y = net.dense("y", flat, 4);
    let graph = net.done(y);
    let groups = groups(&graph).unwrap();
    let samples = Random::new(7).tensor(&[400, 2, 5, 5], 1.0);
    let data = Dataset::from_arrays(vec![(None, samples.clone())], None).unwrap();
    let all: Vec<usize> = (0..400).collect();
    let preprocess = Preprocess::default();
    let seen = observe(&graph, &groups, (&data, &preprocess), &all, &Options::default(), &Silent).unwrap();
    let keep = vec![vec![true, true, true, true, false, false]];
    let plain = remove(&graph, &groups, &keep).unwrap();
    let whole = reconstruct(&graph, &groups, &keep, &seen, 1e-9).unwrap();
    let whole = remove(&whole, &groups, &keep).unwrap();
    let expected = run(&graph, &samples);
    assert!(most_apart(&run(&plain, &samples), &expected) > 0.1);
    assert!(most_apart(&run(&whole, &samples), &expected) < 1e-3);
    // What carries least is removed first, and all at once gives the same.
    let scores = importance(&graph, &groups, Some(&seen));
    assert!((scores[0].iter().sum::<f64>() - 1.0).abs() < 1e-9);
    let pruned = channels(&graph, (&data, &preprocess), &all, 0.5, &Options::default(), &Silent).unwrap();
    // Six channels are less than a vector: all stay.
    assert_eq!(run(&pruned, &samples), expected);
    Session::new(pruned, Options::default()).unwrap();
}

#[test]
fn choices_keep_the_best_in_whole_vectors() {
    let graph = branches(2);
    let mut groups = groups(&graph).unwrap();
    let scores = vec![vec![0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6], vec![1e-9; 6]];
    let keep = uniform(&groups, &scores, 0.5, 1);
    assert_eq!(keep[0], [false, true, false, true, false, true, false, true]);
    assert_eq!(keep[1].iter().filter(|k| **k).count(), 3);
    assert!(uniform(&groups, &scores, 0.5, 8).iter().flatten().all(|k| *k));
    groups.groups[0].width = 2;
    assert_eq!(uniform(&groups, &scores, 0.7, 8)[0].iter().filter(|k| **k).count(), 4);
    // The second group matters little for what it costs: it shrinks to its least before the first is touched.
    let keep = by_saving(&groups, &scores, 0.05, 0.3, 1);
    assert!(keep[0].iter().all(|k| *k), "{keep:?}");
    assert!(keep[1].iter().filter(|k| **k).count() < 6, "{keep:?}");
    let least = by_saving(&groups, &scores, 1.0, 0.5, 1);
    assert!(least.iter().zip([4, 3]).all(|(keep, n)| keep.iter().filter(|k| **k).count() == n), "{least:?}");
}

/// A pre-activation block, whose sums of branches are normalized, and a normalization behind a concatenation.
#[test]
fn normalizations_see_what_they_saw_before() {
    let (mut net, x) = Net::new(11, &[3, 6, 6]);
    let affine = |net: &mut Net, name: &str, x: ValueId, channels: usize| {
        let [factor, shift] = ["factor", "shift"].map(|part| {
            let tensor = net.random.tensor(&[channels, 1, 1], 1.0);
            net.graph.constant(&format!("{name}.{part}"), tensor)
        });
        let scaled = net.op(&format!("{name}.mul"), Binary { kind: BinaryKind::Mul }, &[x, factor]);
        net.op(name, Binary { kind: BinaryKind::Add }, &[scaled, shift])
    };
    let stem = net.conv("stem", x, 8);
    let first = affine(&mut net, "first", stem, 8);
    let first = net.relu("first.relu", first);
    let inner = net.conv("inner", first, 24);
    let inner = net.relu("inner.relu", inner);
    let outer = net.conv("outer", inner, 8);
    let sum = net.add("sum", outer, stem);
    let second = affine(&mut net, "second", sum, 8);
    let second = net.relu("second.relu", second);
    let joined = net.op("joined", Concat { axis: 1 }, &[second, first]);
    let third = affine(&mut net, "third", joined, 16);
    let flat = net.flatten("flat", third, 16 * 36);
    let y = net.dense("y", flat, 4);
    let graph = net.done(y);
    let groups = groups(&graph).unwrap();
    let keep: Vec<Vec<bool>> = groups
        .groups
        .iter()
        .map(|group| (0..group.units.len()).map(|i| group.layers != ["inner"] || i % 3 == 0).collect())
        .collect();
    assert!(keep.iter().flatten().any(|keep| !keep));
    let samples = Random::new(12).tensor(&[96, 3, 6, 6], 1.0);
    let data = Dataset::from_arrays(vec![(None, samples.clone())], None).unwrap();
    let (all, preprocess, options) = ((0..96).collect::<Vec<_>>(), Preprocess::default(), Options::default());
    let plain = remove(&graph, &groups, &keep).unwrap();
    let anew = |changed: &Graph| {
        let (choice, data) = ((&groups, keep.as_slice()), (&data, &preprocess));
        renormalize(&graph, changed.clone(), choice, data, &all, &options, &Silent).unwrap()
    };
    let found = remove(&anew(&graph), &groups, &keep).unwrap();
    // The statistics of what each normalization gives, by the reference evaluator.
    let moments = |graph: &Graph, name: &str| -> Vec<f64> {
        let mut graph = graph.clone();
        let value = graph.find(name).unwrap();
        graph.set_outputs(Vec::new());
        graph.output("seen", value);
        let seen = evaluate(&graph, &[("x", &samples)]).unwrap().remove(0);
        let channels = seen.shape()[1];
        let values = seen.to_f64s();
        let of = |channel: usize| {
            let own: Vec<f64> =
                values.chunks(36).skip(channel).step_by(channels).flatten().copied().collect();
            let mean = own.iter().sum::<f64>() / own.len() as f64;
            [mean, own.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / own.len() as f64]
        };
        (0..channels).flat_map(of).collect()
    };
    for name in ["first", "second", "third"] {
        let name =
            graph.nodes().find(|(_, node)| node.name == name).map(|(_, node)| node.outputs[0]).unwrap();
        let name = &graph.value(name).name;
        let (before, after) = (moments(&graph, name), moments(&found, name));
        assert!(most_apart(&before, &after) < 1e-3, "{name}: {before:?} {after:?}");
        let apart = most_apart(&before, &moments(&plain, name));
        assert_eq!(apart > 0.01, !name.starts_with("first"), "{name}: {apart}");
    }
    // Where nothing was changed, nothing moves.
    let whole: Vec<Vec<bool>> = groups.groups.iter().map(|group| vec![true; group.units.len()]).collect();
    let (choice, data) = ((&groups, whole.as_slice()), (&data, &preprocess));
    let same = renormalize(&graph, graph.clone(), choice, data, &all, &options, &Silent).unwrap();
    assert!(most_apart(&run(&same, &samples), &run(&graph, &samples)) < 1e-4);
}
