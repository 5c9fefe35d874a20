//! What each part of optimizing control flow is worth: `control_flow [SILERO_VAD.onnx]` prints the table in
//! `docs/PERFORMANCE.md`. `cargo xtask control` runs it with all models.
//!
//! Every row runs one model on one input, with a part and without it in turn, and checks that both give the same.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use sora::Model;
use sora::exec::{Options, Session};
use sora::ir::ops::{Binary, BinaryKind, Gather, If, Loop, MatMul, Reduce, ReduceKind, Unary, UnaryKind};
use sora::ir::{Graph, IrError, Subgraph, TensorType, ValueId};
use sora::rewrite;
use sora::tensor::{DType, Tensor};

/// Seconds that a row is measured for.
const SECONDS: f64 = 3.0;

/// Largest difference of results, relative to the largest magnitude.
const BOUND: f64 = 1e-4;

/// Whole bodies run on the reference evaluator without it, and so does what is around them.
const COMPILED: &str = "compiled bodies";

/// The model that has it, and what is left out before and after.
struct Row {
    part: &'static str,
    model: String,
    graph: Graph,
    shapes: Vec<(&'static str, Vec<usize>)>,
    /// An input that is not drawn.
    given: Option<(&'static str, Tensor)>,
    /// What is not applied, so that it does not take the place of the part.
    both: &'static [&'static str],
}

fn main() -> Result<(), Box<dyn Error>> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models");
    let cells = Model::load(models.join("keras_cells.onnx"))?.graph;
    let tagger = Model::load(models.join("keras_tagger.onnx"))?.graph;
    let row = |part, name: &str, graph: &Graph, words: usize, both| {
        let model = format!("`{name}`, {words} words");
        Row { part, model, graph: graph.clone(), shapes: vec![("x", vec![1, words])], given: None, both }
    };
    let mut rows = vec![
        row(COMPILED, "keras_cells", &cells, 30, &["fuse_cells"]),
        row("hoist_loop_invariants", "keras_tagger", &tagger, 100, &["fuse_cells"]),
        row("fuse_cells", "keras_cells", &cells, 9, &[]),
        row("fuse_cells", "keras_cells", &cells, 100, &[]),
        row("fuse_cells", "keras_tagger", &tagger, 100, &[]),
    ];
    if let Some(path) = std::env::args().nth(1) {
        let rate = Tensor::scalar(16_000i64);
        let mut graph = Model::load(path)?.graph;
        let input = graph.find("sr").ok_or("the model has no input `sr`")?;
        let known = graph.constant("known rate", rate.clone());
        graph.replace_uses(input, known);
        rows.push(Row {
            part: "take_branch",
            model: "`silero_vad`, its rate known".to_owned(),
            graph,
            shapes: vec![("input", vec![1, 576]), ("state", vec![2, 1, 128])],
            given: Some(("sr", rate)),
            both: &[],
        });
    }
    for (part, steps) in [("hoist_loop_invariants", 100), ("unroll_loop", 8)] {
        rows.push(Row {
            part,
            model: format!("generated: {steps} steps with a product that stays"),
            graph: rolled(steps)?,
            shapes: vec![("x", vec![steps, 1, WIDTH]), ("a", vec![1, WIDTH]), ("h", vec![1, WIDTH])],
            given: None,
            both: &["fuse_cells"],
        });
    }
    rows.push(Row {
        part: "hoist_common_subexpressions",
        model: "generated: both branches and what is around them begin alike".to_owned(),
        graph: branches()?,
        shapes: vec![("x", vec![8, WIDTH])],
        given: None,
        both: &[],
    });
    println!("| part | model | without, ms | with, ms | ratio |");
    println!("|---|---|---:|---:|---:|");
    for row in rows {
        let [without, with] = measure(&row)?;
        println!("| {} | {} | {without:.4} | {with:.4} | {:.2} |", row.part, row.model, with / without);
    }
    Ok(())
}

/// Median milliseconds without the part and with it.
fn measure(row: &Row) -> Result<[f64; 2], Box<dyn Error>> {
    let both: Vec<String> = row.both.iter().map(|&name| name.to_owned()).collect();
    let graph = row.graph.clone();
    let left_out = match row.part {
        COMPILED => Options { reference_only: true, ..Options::default() },
        part => {
            let shapes: Vec<(&str, &[usize])> = row.shapes.iter().map(|(n, s)| (*n, s.as_slice())).collect();
            let options = rewrite::Options { without: both.clone(), ..rewrite::Options::default() };
            let fires = rewrite::optimize(&mut graph.specialize(&shapes)?, &options)?;
            if !fires.counts().contains_key(part) {
                return Err(format!("{} has nothing for {part}", row.model).into());
            }
            Options { without: [&both[..], &[part.to_owned()]].concat(), ..Options::default() }
        }
    };
    let applied = Options { without: both, ..Options::default() };
    let sessions = [Session::new(graph.clone(), left_out)?, Session::new(graph, applied)?];
    let inputs = inputs(&row.graph, &row.shapes)?;
    let drawn = inputs.iter().map(|(name, tensor)| (*name, tensor));
    let given: Vec<(&str, &Tensor)> = drawn.chain(row.given.iter().map(|(name, t)| (*name, t))).collect();
    let [a, b] = [sessions[0].run(&given)?, sessions[1].run(&given)?];
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        let (a, b) = (a.to_f64s(), b.to_f64s());
        let most = a.iter().fold(1e-3, |most: f64, v| most.max(v.abs()));
        if a.len() != b.len() || a.iter().zip(&b).any(|(a, b)| (a - b).abs() > BOUND * most) {
            return Err(format!("{}: `{name}` differs with {}", row.model, row.part).into());
        }
    }
    let (mut times, begun) = ([Vec::new(), Vec::new()], Instant::now());
    while times[0].len() < 3 || begun.elapsed().as_secs_f64() < SECONDS {
        for (session, times) in sessions.iter().zip(&mut times) {
            let start = Instant::now();
            session.run(&given)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}

/// Numbers for all inputs: ids below 100, or reals around 0.
fn inputs<'a>(
    graph: &Graph,
    shapes: &'a [(&'static str, Vec<usize>)],
) -> Result<Vec<(&'a str, Tensor)>, Box<dyn Error>> {
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 24)
    };
    let mut inputs = Vec::new();
    for (name, shape) in shapes {
        let id = graph.find(name).ok_or(format!("the model has no input `{name}`"))?;
        let dtype = graph.ty(id).dtype;
        let values: Vec<f64> = (0..shape.iter().product())
            .map(|_| if dtype.is_float() { random() - 0.5 } else { (random() * 100.0).floor() })
            .collect();
        inputs.push((*name, Tensor::from_f64s(dtype, shape, &values)?));
    }
    Ok(inputs)
}

const WIDTH: usize = 64;

/// A square matrix of small numbers.
fn matrix(graph: &mut Graph, name: &str) -> Result<ValueId, Box<dyn Error>> {
    let values: Vec<f32> = (0..WIDTH * WIDTH).map(|i| (i as f32 * 0.61).cos() * 0.1).collect();
    Ok(graph.constant(name, Tensor::from_slice(&[WIDTH, WIDTH], &values)?))
}

/// So many steps of `h ← tanh(h · w + a · u + x)`.
fn rolled(steps: usize) -> Result<Graph, Box<dyn Error>> {
    let ty = |shape: &[usize]| TensorType::new(DType::F32, shape.iter().copied());
    let mut graph = Graph::new("rolled");
    let x = graph.input("x", ty(&[steps, 1, WIDTH]));
    let (a, h) = (graph.input("a", ty(&[1, WIDTH])), graph.input("h", ty(&[1, WIDTH])));
    let (w, u) = (matrix(&mut graph, "w")?, matrix(&mut graph, "u")?);
    let trips = graph.constant("trips", Tensor::scalar(i64::try_from(steps)?));

    let mut body = Graph::new("step");
    let number = body.input("number", TensorType::new(DType::I64, [0usize; 0]));
    let go_on = body.input("go_on", TensorType::new(DType::Bool, [0usize; 0]));
    let state = body.input("h", ty(&[1, WIDTH]));
    let inner = [("x", x), ("a", a), ("w", w), ("u", u)]
        .map(|(name, outer)| body.input(name, graph.ty(outer).clone()));
    let [sequence, inner_a, inner_w, inner_u] = inner;
    let slice = body.op("slice", Gather { axis: 0 }, [sequence, number])?;
    let product = body.op("product", MatMul {}, [state, inner_w])?;
    let stays = body.op("stays", MatMul {}, [inner_a, inner_u])?;
    let sum = body.op("sum", Binary { kind: BinaryKind::Add }, [product, stays])?;
    let sum = body.op("sum_x", Binary { kind: BinaryKind::Add }, [sum, slice])?;
    let next = body.op("next", Unary { kind: UnaryKind::Tanh }, [sum])?;
    body.output("go_on", go_on);
    body.output("next", next);
    let op = Loop { body: Subgraph::new(body).map_err(|e| e.0)?, carried: 1 };
    let outputs = graph.add("steps", op, [Some(trips), None, Some(h), Some(x), Some(a), Some(w), Some(u)])?;
    graph.output("y", outputs[0]);
    Ok(graph)
}

/// `tanh(x · w)`.
fn features(graph: &mut Graph, x: ValueId, w: ValueId) -> Result<ValueId, IrError> {
    let product = graph.op("product", MatMul {}, [x, w])?;
    graph.op("features", Unary { kind: UnaryKind::Tanh }, [product])
}

/// Features that are a result, and of which each of two branches makes something else after computing them again.
fn branches() -> Result<Graph, Box<dyn Error>> {
    let mut graph = Graph::new("branches");
    let x = graph.input("x", TensorType::new(DType::F32, [8, WIDTH]));
    let w = matrix(&mut graph, "w")?;
    let branch = |kind| -> Result<Subgraph, Box<dyn Error>> {
        let mut body = Graph::new("branch");
        let x = body.input("x", TensorType::new(DType::F32, [8, WIDTH]));
        let w = body.input("w", TensorType::new(DType::F32, [WIDTH, WIDTH]));
        let y = features(&mut body, x, w)?;
        let y = body.op("own", Binary { kind }, [y, x])?;
        body.output("y", y);
        Ok(Subgraph::new(body).map_err(|e| e.0)?)
    };
    let op = If { then_branch: branch(BinaryKind::Add)?, else_branch: branch(BinaryKind::Mul)? };
    let common = features(&mut graph, x, w)?;
    let sum = Reduce { kind: ReduceKind::Sum, axes: vec![0, 1], keep_dims: false };
    let sum = graph.op("sum", sum, [common])?;
    let zero = graph.constant("zero", Tensor::scalar(0f32));
    let condition = graph.op("positive", Binary { kind: BinaryKind::Greater }, [sum, zero])?;
    let y = graph.op("branches", op, [condition, x, w])?;
    graph.output("features", common);
    graph.output("y", y);
    Ok(graph)
}
