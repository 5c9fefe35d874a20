//! Random control flow before and after, through the reference.

use sora_ir::case::Gen;
use sora_ir::ops::{Binary, BinaryKind, If, Loop, MatMul, Scan, Unary, UnaryKind};
use sora_ir::{Graph, Subgraph, TensorType, ValueId, evaluate, verify};
use sora_tensor::{Bool, DType, Tensor};

use crate::{Options, Report, optimize};

const ADD: Binary = Binary { kind: BinaryKind::Add };
const MUL: Binary = Binary { kind: BinaryKind::Mul };
const TANH: Unary = Unary { kind: UnaryKind::Tanh };

fn f32s(shape: &[usize]) -> TensorType {
    TensorType::new(DType::F32, shape.iter().copied())
}

fn scalar(dtype: DType) -> TensorType {
    TensorType::new(dtype, [0usize; 0])
}

fn body(inputs: &[TensorType], build: impl FnOnce(&mut Graph, &[ValueId]) -> Vec<ValueId>) -> Subgraph {
    let mut graph = Graph::new("body");
    let ids: Vec<_> =
        inputs.iter().enumerate().map(|(i, ty)| graph.input(&format!("x{i}"), ty.clone())).collect();
    let outputs = build(&mut graph, &ids);
    outputs.into_iter().enumerate().for_each(|(i, value)| graph.output(&format!("y{i}"), value));
    Subgraph::new(graph).unwrap()
}

/// Optimizes, and checks that the outputs stay on these inputs and that what was done includes `expected`.
fn check(before: &Graph, inputs: &[(&str, Tensor)], expected: &[&str]) -> (Graph, Report) {
    let mut after = before.clone();
    let options = Options { check: true, ..Options::default() };
    let report = optimize(&mut after, &options).unwrap_or_else(|e| panic!("{e}"));
    verify(&after).unwrap();
    let show = || {
        let print = |graph| sora_ir::text::print_elided(graph, 8);
        format!("before:\n{}\nafter:\n{}\n{report}", print(before), print(&after))
    };
    for rule in expected {
        assert!(report.fired.iter().any(|fired| fired.rule == *rule), "{rule} did not fire\n{}", show());
    }
    let again = optimize(&mut after.clone(), &options).unwrap();
    assert!(again.fired.is_empty(), "a second run finds more: {again}\n{}", show());
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let [a, b] =
        [before, &after].map(|graph| evaluate(graph, &given).unwrap_or_else(|e| panic!("{e}\n{}", show())));
    let names = |graph: &Graph| graph.outputs().iter().map(|o| o.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(before), names(&after), "{}", show());
    for (a, b) in a.iter().zip(&b) {
        assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()), "{}", show());
        for (x, y) in a.to_f64s().into_iter().zip(b.to_f64s()) {
            assert!((x - y).abs() <= 1e-5 * x.abs().max(1.0), "{x} became {y}\n{}", show());
        }
    }
    (after, report)
}

/// A loop with one carried sum, one carried value that stays, one that nobody reads, two equal captures, one that is not
/// used, and a product of captures.
fn wasteful(trips: Option<i64>, n: usize) -> Graph {
    let ty = f32s(&[n, n]);
    let types = [
        scalar(DType::I64),
        scalar(DType::Bool),
        ty.clone(),
        ty.clone(),
        ty.clone(),
        ty.clone(),
        ty.clone(),
        ty.clone(),
        ty.clone(),
    ];
    let body = body(&types, |graph, x| {
        let product = graph.op("product", MatMul {}, [x[5], x[6]]).unwrap();
        let bounded = graph.op("bounded", TANH, [product]).unwrap();
        let term = graph.op("term", MUL, [bounded, x[3]]).unwrap();
        let sum = graph.op("sum", ADD, [x[2], term]).unwrap();
        let dead = graph.op("dead", ADD, [x[4], x[7]]).unwrap();
        vec![x[1], sum, x[3], dead, sum, dead]
    });
    let mut graph = Graph::new("wasteful");
    let count = match trips {
        Some(trips) => graph.constant("n", Tensor::scalar(trips)),
        None => graph.input("n", scalar(DType::I64)),
    };
    let names = ["sum", "factor", "unread", "a", "unused"];
    let [sum, factor, unread, a, unused] = names.map(|name| graph.input(name, ty.clone()));
    let inputs = [Some(count), None].into_iter().chain([sum, factor, unread, a, a, a, unused].map(Some));
    let outputs = graph.add("loop", Loop { body, carried: 3 }, inputs).unwrap();
    for (name, output) in [("last", 0), ("same", 1), ("sums", 3)] {
        graph.output(name, outputs[output]);
    }
    graph
}

fn inputs_of(graph: &Graph, g: &mut Gen, trips: i64) -> Vec<(String, Tensor)> {
    let tensors = graph.inputs().iter().map(|&id| {
        let value = graph.value(id);
        let tensor = match value.ty.dtype {
            DType::I64 => Tensor::scalar(trips),
            DType::Bool => Tensor::scalar(Bool::from(trips % 2 == 0)),
            dtype => g.tensor(dtype, &value.ty.known_shape().unwrap()),
        };
        (value.name.clone(), tensor)
    });
    tensors.collect()
}

fn borrow(inputs: &[(String, Tensor)]) -> Vec<(&str, Tensor)> {
    inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect()
}

fn only_loop(graph: &Graph) -> Loop {
    let mut loops = graph.nodes().filter_map(|(_, node)| match &node.op {
        sora_ir::Op::Loop(op) => Some(op.clone()),
        _ => None,
    });
    loops.next().expect("there is a loop")
}

#[test]
fn loops_keep_only_what_changes_and_is_read() {
    let mut g = Gen::new(1);
    for trips in 0..4 {
        let graph = wasteful(None, g.size(1, 3));
        let inputs = inputs_of(&graph, &mut g, trips);
        let (after, _) = check(&graph, &borrow(&inputs), &["trim_bodies", "hoist_loop_invariants"]);
        let op = only_loop(&after);
        assert_eq!((op.carried, op.body.inputs(), op.body.outputs()), (1, 4, 3));
        // The product is computed once, in front of the loop.
        assert_eq!(op.body.graph().nodes().count(), 1);
    }
}

#[test]
fn short_loops_are_unrolled_and_long_ones_are_not() {
    let mut g = Gen::new(2);
    for (trips, rule) in [(1, "unroll_loop"), (3, "unroll_loop"), (1000, "trim_bodies")] {
        let graph = wasteful(Some(trips), 2);
        let inputs = inputs_of(&graph, &mut g, trips);
        let (after, report) = check(&graph, &borrow(&inputs), &[rule]);
        assert_eq!(report.counts().contains_key("unroll_loop"), trips < 1000);
        assert_eq!(after.nodes().any(|(_, node)| !node.op.bodies().is_empty()), trips == 1000);
    }
}

/// Reads an input's rows backwards, with a running sum.
fn scan(steps: usize, reverse: bool) -> Graph {
    let row = f32s(&[2]);
    let body = body(&[row.clone(), row.clone(), row.clone(), row.clone()], |graph, x| {
        let doubled = graph.op("doubled", ADD, [x[3], x[3]]).unwrap();
        let term = graph.op("term", MUL, [x[1], doubled]).unwrap();
        let sum = graph.op("sum", ADD, [x[0], term]).unwrap();
        vec![sum, sum, term]
    });
    let scan = Scan {
        body,
        states: 1,
        input_axes: vec![0, -1],
        input_reverse: vec![reverse, false],
        output_axes: vec![-1, 0],
        output_reverse: vec![false, reverse],
    };
    let mut graph = Graph::new("scan");
    let types = [f32s(&[2]), f32s(&[steps, 2]), f32s(&[2, steps]), f32s(&[2])];
    let ids: Vec<_> =
        types.into_iter().enumerate().map(|(i, ty)| graph.input(&format!("x{i}"), ty)).collect();
    let outputs = graph.add("scan", scan, ids).unwrap();
    outputs.into_iter().enumerate().for_each(|(i, value)| graph.output(&format!("y{i}"), value));
    graph
}

#[test]
fn scans_are_trimmed_and_short_ones_unrolled() {
    let mut g = Gen::new(3);
    for reverse in [false, true] {
        for (steps, rule) in [(4, "unroll_scan"), (400, "hoist_loop_invariants")] {
            let graph = scan(steps, reverse);
            let inputs = inputs_of(&graph, &mut g, 0);
            check(&graph, &borrow(&inputs), &[rule]);
        }
    }
}

/// Both branches compute `tanh(a b)`; one adds, the other multiplies, and one output is the same in both.
fn fork(condition: Option<bool>) -> Graph {
    let ty = f32s(&[2, 2]);
    let flag = scalar(DType::Bool);
    let branch = |kind: BinaryKind| {
        body(&[ty.clone(), ty.clone(), flag.clone()], |graph, x| {
            let product = graph.op("product", MatMul {}, [x[0], x[1]]).unwrap();
            let bounded = graph.op("bounded", TANH, [product]).unwrap();
            let own = graph.op("own", Binary { kind }, [bounded, x[1]]).unwrap();
            vec![own, bounded, x[2]]
        })
    };
    let (then_branch, else_branch) = (branch(BinaryKind::Add), branch(BinaryKind::Mul));
    let mut graph = Graph::new("fork");
    let flag = match condition {
        Some(value) => graph.constant("flag", Tensor::scalar(Bool::from(value))),
        None => graph.input("flag", flag),
    };
    let (a, b) = (graph.input("a", ty.clone()), graph.input("b", ty.clone()));
    let outputs = graph.add("if", If { then_branch, else_branch }, [flag, a, b, flag]).unwrap();
    outputs.into_iter().enumerate().for_each(|(i, value)| graph.output(&format!("y{i}"), value));
    graph
}

#[test]
fn branches_share_what_both_compute() {
    let mut g = Gen::new(4);
    for trips in [0, 1] {
        let graph = fork(None);
        let inputs = inputs_of(&graph, &mut g, trips);
        let (after, _) = check(&graph, &borrow(&inputs), &["hoist_common_subexpressions", "trim_bodies"]);
        let sizes: Vec<usize> = after
            .nodes()
            .flat_map(|(_, node)| node.op.bodies())
            .map(|body| body.graph().nodes().count())
            .collect();
        assert_eq!(sizes, [1, 1]);
    }
}

#[test]
fn known_conditions_take_their_branch() {
    let mut g = Gen::new(5);
    for condition in [true, false] {
        let graph = fork(Some(condition));
        let inputs = inputs_of(&graph, &mut g, 0);
        let (after, _) = check(&graph, &borrow(&inputs), &["take_branch"]);
        assert_eq!(after.nodes().count(), 3);
    }
}

#[test]
fn the_operators_own_cases_stay_what_they_are() {
    use sora_ir::OpDef;
    let mut g = Gen::new(6);
    for _ in 0..10 {
        let cases = [If::cases(&mut g), Loop::cases(&mut g), Scan::cases(&mut g)];
        for case in cases.into_iter().flatten() {
            let (graph, inputs) = case.graph().unwrap();
            check(&graph, &borrow(&inputs), &[]);
        }
    }
}

/// What may fail stays inside of a loop that may not run.
#[test]
fn gathers_by_computed_positions_stay_in_loops_that_may_not_run() {
    let table = f32s(&[2, 2]);
    let types = [scalar(DType::I64), scalar(DType::Bool), f32s(&[2]), table.clone(), scalar(DType::I64)];
    let body = body(&types, |graph, x| {
        let row = graph.op("row", sora_ir::ops::Gather { axis: 0 }, [x[3], x[4]]).unwrap();
        let sum = graph.op("sum", ADD, [x[2], row]).unwrap();
        vec![x[1], sum]
    });
    let mut graph = Graph::new("g");
    let n = graph.input("n", scalar(DType::I64));
    let start = graph.input("start", f32s(&[2]));
    let table = graph.input("table", table);
    let at = graph.input("at", scalar(DType::I64));
    let inputs = [Some(n), None, Some(start), Some(table), Some(at)];
    let y = graph.add("loop", Loop { body, carried: 1 }, inputs).unwrap()[0];
    graph.output("y", y);
    let given = [
        ("n", Tensor::scalar(2i64)),
        ("start", Tensor::vector(&[1f32, 2.0])),
        ("table", Tensor::vector(&[1f32, 2.0, 3.0, 4.0]).reshape(&[2, 2]).unwrap()),
        ("at", Tensor::scalar(1i64)),
    ];
    let (after, _) = check(&graph, &given, &[]);
    assert_eq!(only_loop(&after).body.graph().nodes().count(), 2);
}
