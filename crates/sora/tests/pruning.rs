//! Structured pruning of whole networks: the zoo's, and those in the files of other frameworks.

use std::collections::HashSet;
use std::path::Path;

use sora::compress::prune;
use sora::exec::{Options, Session};
use sora::ir::{Graph, Node};
use sora::tensor::Tensor;
use sora::zoo::ENTRIES;

/// What a graph gives for random inputs, the same for the same seed.
fn run(graph: &Graph, seed: u64) -> Vec<Tensor> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let inputs: Vec<(String, Tensor)> = (graph.inputs().iter())
        .map(|&id| {
            let ty = graph.ty(id);
            let shape: Vec<usize> = (ty.shape.iter().enumerate())
                .map(|(axis, dim)| dim.known().unwrap_or(if axis == 0 { 2 } else { 32 }))
                .collect();
            let float = ty.dtype.is_float();
            let mut draw = || if float { rng.f64() * 2.0 - 1.0 } else { rng.u32(0..2).into() };
            let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw()).collect();
            (graph.value(id).name.clone(), Tensor::from_f64s(ty.dtype, &shape, &values).unwrap())
        })
        .collect();
    let session = Session::new(graph.clone(), Options::default()).unwrap();
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
    session.run(&given).unwrap().into_iter().map(|(_, tensor)| tensor).collect()
}

/// Multiply-adds of a node, with extents that are open taken as 1.
fn macs(node: &Node, graph: &Graph) -> f64 {
    let inputs: Vec<_> = node.inputs.iter().map(|v| v.map(|v| graph.ty(v))).collect();
    let outputs: Vec<_> = node.outputs.iter().map(|&v| graph.ty(v)).collect();
    node.op.macs(&inputs, &outputs).eval(&|_| Some(1)).unwrap() as f64
}

/// Half of the units of each group, taken out, are as good as silenced; and every layer loses units or says why not.
/// Gives the share of multiply-adds that is left.
fn check(name: &str, mut graph: Graph) -> f64 {
    sora_rewrite::optimize(&mut graph, &Default::default()).unwrap();
    graph.compact().unwrap();
    let groups = prune::groups(&graph).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let keep = groups.groups.iter().map(|group| {
        let mut keep: Vec<bool> = (0..group.units.len()).map(|i| i % 2 == 0).collect();
        rng.shuffle(&mut keep);
        keep
    });
    let keep: Vec<Vec<bool>> = keep.collect();
    let pruned = prune::remove(&graph, &groups, &keep).unwrap_or_else(|e| panic!("{name}: {e}"));
    sora::ir::verify(&pruned).unwrap();
    let silent = prune::silence(&graph, &groups, &keep).unwrap();
    for (a, b) in run(&pruned, 3).iter().zip(run(&silent, 3)) {
        assert_eq!(a.shape(), b.shape(), "{name}");
        let (a, b) = (a.to_f64s(), b.to_f64s());
        let most = b.iter().fold(1e-3, |most: f64, v| most.max(v.abs()));
        let apart = a.iter().zip(&b).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
        assert!(apart <= 1e-3 * most, "{name}: {apart} apart, of {most}");
    }
    let all = |graph: &Graph| graph.nodes().map(|(_, node)| macs(node, graph)).sum::<f64>();
    let left = all(&pruned) / all(&graph);
    let named: HashSet<&String> = (groups.groups.iter().flat_map(|group| &group.layers))
        .chain(groups.forbidden.iter().map(|forbidden| &forbidden.layer))
        .collect();
    let weights = |node: &Node| {
        let constants = node.inputs.iter().flatten().filter_map(|&v| graph.const_value(v));
        macs(node, &graph) > 0.0 && constants.into_iter().any(|t| t.rank() > 1)
    };
    for (_, node) in graph.nodes().filter(|(_, node)| weights(node)) {
        assert!(named.contains(&node.name), "{name}: nothing is said of `{}`", node.name);
    }
    println!("{name}: {} groups, {left:.2} of the multiply-adds left", groups.groups.len());
    for forbidden in &groups.forbidden {
        println!("  {}: {}", forbidden.layer, forbidden.why);
        assert!(forbidden.why.contains('`'), "{name}: {forbidden:?} names nothing");
    }
    left
}

#[test]
fn every_network_of_the_zoo_prunes() {
    for entry in ENTRIES {
        let left = check(entry.name, entry.network(0).unwrap().into_graph());
        assert!(left < 0.6, "{}: {left} is left", entry.name);
    }
}

#[test]
fn networks_of_other_frameworks_prune() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    files.sort();
    assert!(files.len() > 10);
    for path in files {
        let left =
            check(&path.file_stem().unwrap().to_string_lossy(), sora::Model::load(&path).unwrap().graph);
        assert!(left < 0.9, "{}: {left} is left", path.display());
    }
}
