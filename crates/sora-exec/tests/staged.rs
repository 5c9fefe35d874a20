//! Graphs whose shapes depend on data: in stages, on kernels, with the results of the reference.

use sora_exec::{Options, Profile, Session};
use sora_ir::ops::{
    Binary, BinaryKind, Cast, Concat, MatMul, NonZero, Range, Reduce, ReduceKind, Reshape, Slice, Softmax,
    Transpose, Unary, UnaryKind, Unsqueeze,
};
use sora_ir::{Dim, Graph, TensorType, ValueId, evaluate};
use sora_tensor::{DType, Tensor};

fn close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{what}");
    for (i, (a, b)) in found.to_f64s().iter().zip(expected.to_f64s()).enumerate() {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{what}: element {i} is {a}, expected {b}");
    }
}

/// Runs a session, compares with the reference, and returns the profile.
fn check(session: &Session, given: &[(&str, &Tensor)]) -> Profile {
    let expected = evaluate(session.graph(), given).unwrap();
    let (found, profile) = session.run_profiled(given).unwrap();
    assert_eq!(found.len(), expected.len());
    for ((name, found), expected) in found.iter().zip(&expected) {
        close(found, expected, name);
    }
    for ((name, found), expected) in session.run(given).unwrap().iter().zip(&expected) {
        close(found, expected, name);
    }
    profile
}

fn kernels(profile: &Profile) -> Vec<&str> {
    profile.steps.iter().map(|step| step.step.kernel.as_str()).collect()
}

fn constant(graph: &mut Graph, shape: &[usize]) -> ValueId {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| (i as f32 * 0.37).sin()).collect();
    let name = graph.fresh_name("w");
    graph.constant(&name, Tensor::from_slice(shape, &values).unwrap())
}

fn rows(n: usize, columns: usize) -> Tensor {
    let values: Vec<f32> = (0..n * columns).map(|i| (i as f32 * 0.61).cos()).collect();
    Tensor::from_slice(&[n, columns], &values).unwrap()
}

fn add() -> Binary {
    Binary { kind: BinaryKind::Add }
}

/// Rows from `start` on, as many as the input `count` says, through a layer; `count` rows of 5 probabilities.
fn layer_of_range(graph: &mut Graph, count: ValueId, name: &str) -> ValueId {
    let [zero, one] = [0i64, 1].map(|n| graph.constant(&format!("{name}.{n}"), Tensor::scalar(n)));
    let range = graph.op(&format!("{name}.range"), Range {}, [zero, count, one]).unwrap();
    let real = graph.op(&format!("{name}.real"), Cast { to: DType::F32 }, [range]).unwrap();
    let column = graph.op(&format!("{name}.column"), Unsqueeze { axes: vec![1] }, [real]).unwrap();
    let w = constant(graph, &[1, 5]);
    let product = graph.op(&format!("{name}.product"), MatMul {}, [column, w]).unwrap();
    graph.op(&format!("{name}.softmax"), Softmax { axis: -1, log: false }, [product]).unwrap()
}

/// Two stages behind the first: the second range is as long as the sum of what the first gave.
fn two_ranges() -> Graph {
    let mut graph = Graph::new("ranges");
    let count = graph.input("count", TensorType::new(DType::I64, [0usize; 0]));
    let x =
        graph.input("x", TensorType { dtype: DType::F32, shape: vec![Dim::symbol("n"), Dim::from(6usize)] });
    let w = constant(&mut graph, &[6, 5]);
    let head = graph.op("head", MatMul {}, [x, w]).unwrap();
    let first = layer_of_range(&mut graph, count, "first");
    let sum =
        graph.op("sum", Reduce { kind: ReduceKind::Sum, axes: vec![], keep_dims: false }, [first]).unwrap();
    // Rows of probabilities sum to their number, up to rounding.
    let half = graph.constant("half", Tensor::scalar(0.5f32));
    let above = graph.op("above", add(), [sum, half]).unwrap();
    let again = graph.op("again", Cast { to: DType::I64 }, [above]).unwrap();
    let second = layer_of_range(&mut graph, again, "second");
    let joined = graph.op("joined", Concat { axis: 0 }, [head, first, second]).unwrap();
    let y = graph.op("y", Unary { kind: UnaryKind::Relu }, [joined]).unwrap();
    graph.output("y", y);
    graph.output("y_again", y);
    graph.output("count_again", again);
    graph.output("x", x);
    graph
}

#[test]
fn every_stage_runs_on_kernels() {
    let session = Session::new(two_ranges(), Options::default()).unwrap();
    for (count, n) in [(3, 2), (1, 1), (40, 3), (3, 2), (7, 2)] {
        let given = [("count", &Tensor::scalar(count as i64)), ("x", &rows(n, 6))];
        let profile = check(&session, &given);
        let kernels = kernels(&profile);
        let references: Vec<&str> = kernels.iter().copied().filter(|k| k.starts_with("reference:")).collect();
        assert_eq!(references, ["reference:Range", "reference:Range"], "{kernels:?}");
        assert_eq!(kernels.iter().filter(|k| k.starts_with("softmax")).count(), 2, "{kernels:?}");
        assert!(!kernels.iter().any(|k| k.starts_with("later:")), "{kernels:?}");
    }
    let program = session.program(&[("count", vec![]), ("x", vec![2, 6])]).unwrap();
    let planned: Vec<&str> = program.steps().iter().map(|step| step.kernel.as_str()).collect();
    assert!(planned.contains(&"reference:Range") && planned.contains(&"later:Softmax"), "{planned:?}");
}

#[test]
fn ranges_may_be_empty() {
    let session = Session::new(two_ranges(), Options::default()).unwrap();
    for count in [0i64, -3, 2, 0] {
        check(&session, &[("count", &Tensor::scalar(count)), ("x", &rows(2, 6))]);
    }
}

/// A layer, its result in a shape given at run time, and a layer on that.
fn reshaped() -> Graph {
    let mut graph = Graph::new("reshaped");
    let x = graph.input("x", TensorType::new(DType::F32, [4usize, 6]));
    let shape = graph.input("shape", TensorType::new(DType::I64, [2usize]));
    let w = constant(&mut graph, &[6, 6]);
    let before = graph.op("before", MatMul {}, [x, w]).unwrap();
    let turned = graph.op("turned", Reshape { allow_zero: false }, [before, shape]).unwrap();
    let mean = Reduce { kind: ReduceKind::Mean, axes: vec![-1], keep_dims: true };
    let mean = graph.op("mean", mean, [turned]).unwrap();
    let centred = graph.op("centred", Binary { kind: BinaryKind::Sub }, [turned, mean]).unwrap();
    let y = graph.op("y", Softmax { axis: -1, log: false }, [centred]).unwrap();
    graph.output("y", y);
    graph
}

#[test]
fn shapes_come_from_inputs() {
    let session = Session::new(reshaped(), Options::default()).unwrap();
    for shape in [[4i64, 6], [2, 12], [-1, 3], [24, 1], [1, 24], [0, -1], [4, 6], [8, 3], [6, 4], [12, 2]] {
        let profile = check(&session, &[("x", &rows(4, 6)), ("shape", &Tensor::vector(&shape))]);
        let kernels = kernels(&profile);
        assert_eq!(kernels.iter().filter(|k| k.starts_with("reference:")).count(), 1, "{kernels:?}");
    }
    let wrong = [("x", &rows(4, 6)), ("shape", &Tensor::vector(&[5i64, 5]))];
    let error = session.run(&wrong).unwrap_err().to_string();
    assert!(error.contains("turned"), "{error}");
}

#[test]
fn open_inputs_are_compiled_when_they_are_known() {
    let session = Session::new(two_ranges(), Options::default()).unwrap();
    // Inputs left out stay open: such a program takes any shape.
    let program = session.program(&[]).unwrap();
    let mut arena = program.arena().unwrap();
    for n in [1, 3] {
        let (count, x) = (Tensor::scalar(4i64), rows(n, 6));
        let given = [("count", &count), ("x", &x)];
        let expected = evaluate(session.graph(), &given).unwrap();
        let found = program.run(&mut arena, &given).unwrap();
        found.iter().zip(&expected).for_each(|((name, found), expected)| close(found, expected, name));
    }
}

#[test]
fn threads_share_the_stages() {
    for threads in [1, 2] {
        let session = Session::new(two_ranges(), Options { threads, ..Options::default() }).unwrap();
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let session = &session;
                scope.spawn(move || {
                    for i in 0..60 {
                        let (count, n) = (((worker + i) % 11) as i64, 1 + i % 3);
                        check(session, &[("count", &Tensor::scalar(count)), ("x", &rows(n, 6))]);
                    }
                });
            }
        });
    }
}

/// Stages in stages, far more than are compiled: still right, and no stack is exhausted.
#[test]
fn stages_nest_deep() {
    let mut graph = Graph::new("deep");
    let mut value = graph.input("x", TensorType::new(DType::I64, [0usize; 0]));
    let [zero, one] = [0i64, 1].map(|n| graph.constant(&format!("c{n}"), Tensor::scalar(n)));
    for i in 0..120 {
        let range = graph.op(&format!("range{i}"), Range {}, [zero, value, one]).unwrap();
        let sum = Reduce { kind: ReduceKind::Max, axes: vec![], keep_dims: false };
        let largest = graph.op(&format!("largest{i}"), sum, [range]).unwrap();
        value = graph.op(&format!("next{i}"), add(), [largest, one]).unwrap();
    }
    graph.output("y", value);
    let session = Session::new(graph, Options::default()).unwrap();
    for x in [5i64, 3] {
        let profile = check(&session, &[("x", &Tensor::scalar(x))]);
        assert!(profile.steps.len() >= 3 * 120, "{}", profile.steps.len());
    }
}

#[test]
fn what_is_found_in_data_goes_through_kernels() {
    let mut graph = Graph::new("found");
    let x = graph.input("x", TensorType::new(DType::F32, [3usize, 4]));
    let threshold = graph.input("threshold", TensorType::new(DType::F32, [0usize; 0]));
    let mask = graph.op("mask", Binary { kind: BinaryKind::Greater }, [x, threshold]).unwrap();
    let found = graph.op("found", NonZero {}, [mask]).unwrap();
    let rows = graph.op("rows", Transpose { perm: vec![1, 0] }, [found]).unwrap();
    let real = graph.op("real", Cast { to: DType::F32 }, [rows]).unwrap();
    let w = constant(&mut graph, &[2, 8]);
    let product = graph.op("product", MatMul {}, [real, w]).unwrap();
    let y = graph.op("y", Unary { kind: UnaryKind::Relu }, [product]).unwrap();
    graph.output("y", y);
    for optimize in [true, false] {
        let session = Session::new(graph.clone(), Options { optimize, ..Options::default() }).unwrap();
        for threshold in [-2f32, 0.0, 0.5, 2.0, 0.0] {
            let profile = check(&session, &[("x", &rows_of(3)), ("threshold", &Tensor::scalar(threshold))]);
            let kernels = kernels(&profile);
            assert!(kernels.contains(&"reference:NonZero"), "{kernels:?}");
            // Without an element there is nothing for a kernel.
            assert!(
                threshold > 1.0 || kernels.contains(&"gemm.f32") || kernels.contains(&"matmul.f32"),
                "{kernels:?}"
            );
        }
    }
}

fn rows_of(n: usize) -> Tensor {
    rows(n, 4)
}

/// Bounds that come at run time: kernels do large slices, whatever their bounds.
#[test]
fn large_slices_of_open_bounds_have_a_kernel() {
    let mut graph = Graph::new("slices");
    let x = graph.input("x", TensorType::new(DType::F32, [100usize, 80]));
    let [from, to] = ["from", "to"].map(|name| graph.input(name, TensorType::new(DType::I64, [1usize])));
    let cut = graph.op("cut", Slice {}, [x, from, to]).unwrap();
    let y = graph.op("y", Unary { kind: UnaryKind::Exp }, [cut]).unwrap();
    graph.output("y", y);
    let session = Session::new(graph, Options::default()).unwrap();
    for (from, to) in
        [(0i64, 90i64), (1, 91), (2, 92), (3, 93), (4, 94), (5, 95), (0, 90), (3, 4), (9, 5), (-70, 200)]
    {
        let bounds = [from, to].map(|bound| Tensor::vector(&[bound]));
        let profile = check(&session, &[("x", &rows(100, 80)), ("from", &bounds[0]), ("to", &bounds[1])]);
        let kernels = kernels(&profile);
        let large = kernels.iter().filter(|k| k.starts_with("reference:Slice")).count() == 0;
        assert_eq!(large, to - from > 51, "{from}..{to}: {kernels:?}");
    }
}
