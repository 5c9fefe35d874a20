//! Graphs of many nodes: a change costs no look at all of them.

use std::time::{Duration, Instant};

use sora_ir::ops::{Binary, BinaryKind, Unary, UnaryKind};
use sora_ir::{Graph, TensorType, ValueId};
use sora_rewrite::{Options, optimize};
use sora_tensor::{DType, Tensor};

const NODES: usize = 40_000;

/// Far above the second or two that this takes, far below the minutes where every change looks at all nodes.
const BOUND: Duration = Duration::from_secs(20);

/// Optimizes [`NODES`] nodes, made from an input, a constant and the node before, which all are results or the last is.
fn optimized(all: bool, node: impl Fn(&mut Graph, &str, [ValueId; 3]) -> ValueId) -> Graph {
    let mut graph = Graph::new("large");
    let x = graph.input("x", TensorType::new(DType::F32, [2usize]));
    let constant = graph.constant("c", Tensor::vector(&[0.5f32, -1.0]));
    let mut last = x;
    for i in 0..NODES {
        let name = format!("n{i}");
        last = node(&mut graph, &name, [x, constant, last]);
        if all || i + 1 == NODES {
            graph.output(&name, last);
        }
    }
    let start = Instant::now();
    // A check after every change looks at all nodes.
    optimize(&mut graph, &Options { check: false, ..Options::default() }).unwrap();
    let took = start.elapsed();
    assert!(took < BOUND, "{NODES} nodes took {took:?}");
    graph
}

#[test]
fn equal_nodes_become_one() {
    let graph = optimized(true, |g, name, [x, ..]| g.op(name, Unary { kind: UnaryKind::Neg }, [x]).unwrap());
    assert_eq!((graph.nodes().count(), graph.outputs().len()), (1, NODES));
}

#[test]
fn a_chain_is_shortened() {
    let relu = |g: &mut Graph, name: &str, [.., last]: [ValueId; 3]| {
        g.op(name, Unary { kind: UnaryKind::Relu }, [last]).unwrap()
    };
    assert_eq!(optimized(false, relu).nodes().count(), 1);
}

#[test]
fn constant_nodes_are_folded() {
    let add = Binary { kind: BinaryKind::Add };
    let sum = |g: &mut Graph, name: &str, [_, c, _]: [ValueId; 3]| g.op(name, add.clone(), [c, c]).unwrap();
    let graph = optimized(true, sum);
    assert_eq!((graph.nodes().count(), graph.outputs().len()), (0, NODES));
}

#[test]
fn a_chain_over_one_constant_stays() {
    let add = Binary { kind: BinaryKind::Min };
    let min = |g: &mut Graph, name: &str, [x, c, last]: [ValueId; 3]| {
        let first = g.op(&format!("{name}.0"), add.clone(), [last, c]).unwrap();
        g.op(name, Binary { kind: BinaryKind::Sub }, [first, x]).unwrap()
    };
    assert_eq!(optimized(false, min).nodes().count(), 2 * NODES);
}
