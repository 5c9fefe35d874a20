//! What an iteration of a loop costs beyond its kernels: a loop over a body of a few small steps, against the same
//! steps in a row. `cargo bench -p sora-exec --bench control`.

use std::time::Instant;

use sora_exec::{Options, Session};
use sora_ir::ops::{Binary, BinaryKind, Loop, MatMul, Scan, Unary, UnaryKind};
use sora_ir::{Graph, IrError, Op, Subgraph, TensorType, ValueId};
use sora_tensor::{DType, Tensor};

const ITERATIONS: usize = 1000;
const WIDTH: usize = 16;

/// `tanh(h · w + x)`.
fn cell(graph: &mut Graph, h: ValueId, w: ValueId, x: ValueId, at: usize) -> Result<ValueId, IrError> {
    let product = graph.op(&format!("product{at}"), MatMul {}, [h, w])?;
    let sum = graph.op(&format!("sum{at}"), Binary { kind: BinaryKind::Add }, [product, x])?;
    graph.op(&format!("h{at}"), Unary { kind: UnaryKind::Tanh }, [sum])
}

fn tensor(shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| (i as f32 * 0.61).cos() * 0.2).collect();
    Tensor::from_slice(shape, &values).expect("as many values")
}

fn f32s(shape: &[usize]) -> TensorType {
    TensorType::new(DType::F32, shape.iter().copied())
}

/// Least microseconds of a run.
fn time(graph: Graph, inputs: &[(&str, &Tensor)]) -> f64 {
    let session = Session::new(graph, Options::default()).expect("a valid graph");
    let run = || {
        let start = Instant::now();
        session.run(inputs).expect("runs");
        start.elapsed().as_secs_f64() * 1e6
    };
    (0..50).map(|_| run()).fold(f64::INFINITY, f64::min)
}

/// `op` on trip count, condition, state, weights and input, as far as it takes them.
fn one(op: impl Into<Op>, x: &[usize], trips: bool) -> Result<Graph, IrError> {
    let mut graph = Graph::new("loop");
    let state = graph.input("h", f32s(&[1, WIDTH]));
    let w = graph.constant("w", tensor(&[WIDTH, WIDTH]));
    let x = graph.input("x", f32s(x));
    let mut inputs = Vec::new();
    if trips {
        let count = i64::try_from(ITERATIONS).unwrap_or(i64::MAX);
        inputs.extend([Some(graph.constant("trips", Tensor::scalar(count))), None]);
    }
    inputs.extend(if trips { [state, w, x] } else { [state, x, w] }.map(Some));
    let outputs = graph.add("loop", op, inputs)?;
    outputs.iter().enumerate().for_each(|(i, &y)| graph.output(&format!("y{i}"), y));
    Ok(graph)
}

fn body(inputs: &[TensorType], condition: bool, stacked: bool) -> Result<Subgraph, IrError> {
    let mut graph = Graph::new("body");
    let ids: Vec<_> =
        inputs.iter().enumerate().map(|(i, ty)| graph.input(&format!("x{i}"), ty.clone())).collect();
    let [.., h, a, b] = ids[..] else { unreachable!("three inputs at least") };
    let (w, x) = if condition { (a, b) } else { (b, a) };
    let next = cell(&mut graph, h, w, x, 0)?;
    if condition {
        graph.output("go_on", ids[1]);
    }
    graph.output("next", next);
    if stacked {
        graph.output("all", next);
    }
    Ok(Subgraph::new(graph).expect("a valid body"))
}

fn main() -> Result<(), IrError> {
    let (h, x) = (tensor(&[1, WIDTH]), tensor(&[1, WIDTH]));
    let square = f32s(&[WIDTH, WIDTH]);
    let mut unrolled = Graph::new("unrolled");
    let mut state = unrolled.input("h", f32s(&[1, WIDTH]));
    let w = unrolled.constant("w", tensor(&[WIDTH, WIDTH]));
    let input = unrolled.input("x", f32s(&[1, WIDTH]));
    for i in 0..ITERATIONS {
        state = cell(&mut unrolled, state, w, input, i)?;
    }
    unrolled.output("y", state);
    let plain = time(unrolled, &[("h", &h), ("x", &x)]);
    let show = |name: &str, took: f64| {
        let beyond = (took - plain) * 1e3 / ITERATIONS as f64;
        println!(
            "{name:24} {took:9.1} us for {ITERATIONS} iterations, {beyond:7.0} ns an iteration beyond kernels"
        );
    };
    show("steps in a row", plain);

    let types = [TensorType::new(DType::I64, [0usize; 0]), TensorType::new(DType::Bool, [0usize; 0])];
    let types: Vec<_> =
        types.into_iter().chain([f32s(&[1, WIDTH]), square.clone(), f32s(&[1, WIDTH])]).collect();
    for stacked in [false, true] {
        let op = Loop { body: body(&types, true, stacked)?, carried: 1 };
        let took = time(one(op, &[1, WIDTH], true)?, &[("h", &h), ("x", &x)]);
        show(if stacked { "loop, stacking" } else { "loop" }, took);
    }
    let types = [f32s(&[1, WIDTH]), f32s(&[1, WIDTH]), square];
    let op = Scan {
        body: body(&types, false, true)?,
        states: 1,
        input_axes: vec![0],
        input_reverse: vec![false],
        output_axes: vec![0],
        output_reverse: vec![false],
    };
    let sequence = tensor(&[ITERATIONS, 1, WIDTH]);
    show("scan", time(one(op, &[ITERATIONS, 1, WIDTH], false)?, &[("h", &h), ("x", &sequence)]));
    Ok(())
}
