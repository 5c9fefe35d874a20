//! Layers whose activations are quantized as they come: near the reference of the same graph, the same numbers
//! on every ISA and number of threads, and run by the integer kernels.

use sora_conformance::{assert_close, engines, reference, run};
use sora_exec::{Options, Session};
use sora_ir::case::Gen;
use sora_ir::ops::{
    Binary, BinaryKind, DequantizeLinear, Direction, DynamicQuantizeLinear, Gru, Lstm, MatMul,
};
use sora_ir::{Dim, Graph, Op, TensorType, ValueId};
use sora_tensor::{DType, Tensor};

fn input(graph: &mut Graph, given: &mut Vec<(String, Tensor)>, name: &str, tensor: Tensor) -> ValueId {
    given.push((name.to_owned(), tensor.clone()));
    graph.input(name, TensorType::of(&tensor))
}

/// A value rounded to 8 bits over its range.
fn rounded(graph: &mut Graph, x: ValueId, rows: bool) -> ValueId {
    let q = graph.add("q", DynamicQuantizeLinear { rows }, [x]).unwrap();
    graph.op("dq", DequantizeLinear { axis: -1 }, q).unwrap()
}

/// Bytes with a scale for every line along `axis`, as real numbers.
fn weights(graph: &mut Graph, g: &mut Gen, shape: &[usize], axis: usize, name: &str) -> ValueId {
    let q = graph.constant(&format!("{name}.q"), g.tensor(DType::I8, shape));
    let mut lines = shape.to_vec();
    lines[axis] = 1;
    let scale = graph.constant(&format!("{name}.s"), g.uniform(DType::F32, &lines, 0.001, 0.004));
    graph.op(name, DequantizeLinear { axis: axis as i64 }, [q, scale]).unwrap()
}

/// Checks a graph everywhere. A value next to a rounding boundary may fall on its other side where the reference
/// computed it with more digits, hence the tolerance; between engines there is none if all products are of bytes.
fn check(graph: &Graph, given: &[(String, Tensor)], tolerance: f64, bytes: bool, kernel: &str) {
    sora_ir::verify(graph).unwrap();
    let expected = reference(graph, given);
    let mut first: Option<Vec<Tensor>> = None;
    for options in engines() {
        let found = run(graph, given, &options);
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(found, expected, tolerance, &|| format!("{options:?}\n{}", show(graph)));
        }
        let first = first.get_or_insert_with(|| found.clone());
        assert!(!bytes || *first == found, "{options:?}: other numbers\n{}", show(graph));
    }
    let session = Session::new(graph.clone(), Options::default()).unwrap();
    let program = session.program(&[]).unwrap();
    let kernels: Vec<&str> = program.steps().iter().map(|step| step.kernel.as_str()).collect();
    assert!(kernels.contains(&kernel), "{kernels:?}\n{}", show(graph));
    assert!(!kernels.iter().any(|k| k.starts_with("reference:")), "{kernels:?}\n{}", show(graph));
}

fn show(graph: &Graph) -> String {
    sora_ir::text::print_elided(graph, 8)
}

#[test]
fn products_of_rows_and_of_whole_tensors() {
    for seed in 0..40 {
        let g = &mut Gen::new(seed);
        let (mut graph, mut given) = (Graph::new("product"), Vec::new());
        let (m, k, n) = (g.size(1, 40), g.size(1, 130), g.size(1, 70));
        let x = input(&mut graph, &mut given, "x", g.uniform(DType::F32, &[2, m, k], -1.0, 3.0));
        let x = rounded(&mut graph, x, g.flag());
        let w = weights(&mut graph, g, &[k, n], 0, "w");
        let mut y = graph.op("y", MatMul {}, [x, w]).unwrap();
        let add = Binary { kind: BinaryKind::Add };
        if g.flag() {
            let bias = graph.constant("bias", g.uniform(DType::F32, &[n], -1.0, 1.0));
            y = graph.op("biased", add.clone(), [y, bias]).unwrap();
        }
        if g.flag() {
            let z = input(&mut graph, &mut given, "z", g.uniform(DType::F32, &[2, m, n], -1.0, 1.0));
            y = graph.op("sum", add, [z, y]).unwrap();
        }
        graph.output("y", y);
        // Read as real numbers too, which then come into being.
        if g.flag() {
            graph.output("x", x);
        }
        // The bytes are those of the reference, and their sums exact.
        check(&graph, &given, 2e-6, true, "gemm.dynamic");
    }
}

/// A recurrent layer on X that is quantized by rows, as a whole or not at all.
fn layer(seed: u64, gates: usize, op: impl Fn(&mut Gen, usize, Direction) -> Op, kernel: &str) {
    let g = &mut Gen::new(seed);
    let (mut graph, mut given) = (Graph::new("layer"), Vec::new());
    let (steps, batch, features) = (g.size(1, 12), g.size(1, 3), g.size(1, 50));
    let hidden = g.size(1, 70);
    let direction = g.pick(&Direction::ALL);
    let d = direction.count();
    let op = op(g, hidden, direction);
    let mut x =
        input(&mut graph, &mut given, "x", g.uniform(DType::F32, &[steps, batch, features], -1.0, 2.0));
    let bytes = g.size(0, 2) > 0;
    if bytes {
        x = rounded(&mut graph, x, g.flag());
    }
    let w = weights(&mut graph, g, &[d, gates * hidden, features], 2, "w");
    let r = weights(&mut graph, g, &[d, gates * hidden, hidden], 2, "r");
    let mut inputs = vec![Some(x), Some(w), Some(r)];
    let bias = g.uniform(DType::F32, &[d, 2 * gates * hidden], -0.5, 0.5);
    let bias = graph.constant("bias", bias);
    inputs.push(g.flag().then_some(bias));
    inputs.push(None);
    let states = if gates == 4 { 2 } else { 1 };
    for s in 0..states {
        let state = g.uniform(DType::F32, &[d, batch, hidden], -1.0, 1.0);
        inputs.push(g.flag().then(|| input(&mut graph, &mut given, &format!("s{s}"), state)));
    }
    if gates == 4 && g.flag() {
        let peepholes = g.uniform(DType::F32, &[d, 3 * hidden], -0.5, 0.5);
        inputs.push(Some(graph.constant("peepholes", peepholes)));
    }
    for (i, y) in graph.add("layer", op, inputs).unwrap().into_iter().enumerate() {
        graph.output(&format!("y{i}"), y);
    }
    check(&graph, &given, 3e-2, bytes, kernel);
}

#[test]
fn lstm_in_every_direction() {
    for seed in 0..40 {
        let op = |_: &mut Gen, hidden, direction| Lstm { hidden, direction, quantize_state: true }.into();
        layer(seed, 4, op, "lstm.dynamic");
    }
}

#[test]
fn gru_with_either_way_to_reset() {
    for seed in 0..40 {
        let op = |g: &mut Gen, hidden, direction| {
            Gru { hidden, direction, linear_before_reset: g.flag(), quantize_state: true }.into()
        };
        layer(seed, 3, op, "gru.dynamic");
    }
}

/// What a symbolic batch becomes when its extent is known has rows all the same.
#[test]
fn rows_of_a_symbolic_batch() {
    let mut graph = Graph::new("batch");
    let x =
        graph.input("x", TensorType { dtype: DType::F32, shape: vec![Dim::symbol("N"), Dim::from(24usize)] });
    let g = &mut Gen::new(5);
    let x = rounded(&mut graph, x, true);
    let w = weights(&mut graph, g, &[24, 10], 0, "w");
    let y = graph.op("y", MatMul {}, [x, w]).unwrap();
    graph.output("y", y);
    let rows = g.uniform(DType::F32, &[5, 24], -1.0, 1.0);
    let all = run(&graph, &[("x".to_owned(), rows.clone())], &Options::default());
    // Each row is what it is alone.
    for (row, expected) in rows.to_f32s().chunks(24).zip(all[0].to_f32s().chunks(10)) {
        let row = Tensor::from_slice(&[1, 24], row).unwrap();
        let alone = run(&graph, &[("x".to_owned(), row)], &Options::default());
        assert_eq!(alone[0].to_f32s(), expected);
    }
}
