//! Control flow: bodies run on programs of their own and give what the reference gives.

use sora_exec::{Options, Profile, Session};
use sora_ir::ops::{
    Binary, BinaryKind, Cast, Concat, If, Loop, MatMul, Reduce, ReduceKind, Scan, Softmax, Unary, UnaryKind,
};
use sora_ir::{Dim, Graph, Subgraph, TensorType, ValueId, evaluate};
use sora_tensor::{Bool, DType, Tensor};

/// Runs a graph under several options, compares with the reference, and returns the last profile.
fn check(graph: &Graph, given: &[(&str, &Tensor)]) -> Profile {
    let expected = evaluate(graph, given).unwrap();
    let mut last = Profile::default();
    for (optimize, threads) in [(false, 1), (true, 2), (true, 1)] {
        let session =
            Session::new(graph.clone(), Options { optimize, threads, ..Options::default() }).unwrap();
        for _ in 0..2 {
            let (found, profile) = session.run_profiled(given).unwrap();
            assert_eq!(found.len(), expected.len());
            for ((name, found), expected) in found.iter().zip(&expected) {
                close(found, expected, name);
            }
            last = profile;
        }
    }
    last
}

fn close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{what}");
    for (i, (a, b)) in found.to_f64s().iter().zip(expected.to_f64s()).enumerate() {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{what}: element {i} is {a}, expected {b}");
    }
}

fn kernels(profile: &Profile) -> Vec<&str> {
    profile.steps.iter().map(|step| step.step.kernel.as_str()).collect()
}

fn f32s(shape: &[usize]) -> TensorType {
    TensorType::new(DType::F32, shape.iter().copied())
}

fn flag() -> TensorType {
    TensorType::new(DType::Bool, [0usize; 0])
}

fn number() -> TensorType {
    TensorType::new(DType::I64, [0usize; 0])
}

fn waves(shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| (i as f32 * 0.61).cos() * 0.5).collect();
    Tensor::from_slice(shape, &values).unwrap()
}

fn binary(kind: BinaryKind) -> Binary {
    Binary { kind }
}

fn body(inputs: &[TensorType], build: impl FnOnce(&mut Graph, &[ValueId]) -> Vec<ValueId>) -> Subgraph {
    let mut graph = Graph::new("body");
    let ids: Vec<_> =
        inputs.iter().enumerate().map(|(i, ty)| graph.input(&format!("x{i}"), ty.clone())).collect();
    let outputs = build(&mut graph, &ids);
    outputs.into_iter().enumerate().for_each(|(i, value)| graph.output(&format!("y{i}"), value));
    Subgraph::new(graph).unwrap()
}

#[test]
fn a_branch_for_other_shapes_leaves_its_node_to_kernels() {
    // One weight for inputs of eight columns, one for those of four, as networks have them for two sampling rates.
    let open = TensorType { dtype: DType::F32, shape: vec![Dim::from(2usize), Dim::symbol("N")] };
    let branch = |columns: usize| {
        body(std::slice::from_ref(&open), |graph, x| {
            let w = graph.constant("w", waves(&[columns, 3]));
            vec![graph.op("product", MatMul {}, [x[0], w]).unwrap()]
        })
    };
    let mut graph = Graph::new("rates");
    let (wide, x) = (graph.input("wide", flag()), graph.input("x", open.clone()));
    let op = If { then_branch: branch(8), else_branch: branch(4) };
    let y = graph.op("if", op, [wide, x]).unwrap();
    graph.output("y", y);
    for (wide, columns) in [(true, 8), (false, 4)] {
        let (right, wrong) = (Tensor::scalar(Bool::from(wide)), Tensor::scalar(Bool::from(!wide)));
        let x = waves(&[2, columns]);
        let profile = check(&graph, &[("wide", &right), ("x", &x)]);
        assert_eq!(kernels(&profile), ["if"]);
        let session = Session::new(graph.clone(), Options::default()).unwrap();
        let error = session.run(&[("wide", &wrong), ("x", &x)]).unwrap_err().to_string();
        assert!(error.contains("`if`") && error.contains("product"), "{error}");
    }
}

/// A step of `h ← tanh(h · w + x)`, which also gives `h` to be stacked.
fn recurrence(hidden: usize) -> Subgraph {
    let types = [number(), flag(), f32s(&[2, hidden]), f32s(&[hidden, hidden]), f32s(&[2, hidden])];
    body(&types, |graph, x| {
        let product = graph.op("product", MatMul {}, [x[2], x[3]]).unwrap();
        let sum = graph.op("sum", binary(BinaryKind::Add), [product, x[4]]).unwrap();
        let h = graph.op("h", Unary { kind: UnaryKind::Tanh }, [sum]).unwrap();
        vec![x[1], h, h]
    })
}

#[test]
fn a_loop_runs_its_body_on_kernels_with_captured_weights() {
    let mut graph = Graph::new("recurrence");
    let trips = graph.input("trips", number());
    let h = graph.input("h", f32s(&[2, 16]));
    let w = graph.constant("w", waves(&[16, 16]));
    let x = graph.input("x", f32s(&[2, 16]));
    let inputs = [Some(trips), None, Some(h), Some(w), Some(x)];
    let outputs = graph.add("loop", Loop { body: recurrence(16), carried: 1 }, inputs).unwrap();
    let y = graph.op("y", Softmax { axis: -1, log: false }, [outputs[1]]).unwrap();
    graph.output("last", outputs[0]);
    graph.output("y", y);
    for trips in [0i64, 1, 5, -2] {
        let given = [("trips", &Tensor::scalar(trips)), ("h", &waves(&[2, 16])), ("x", &waves(&[2, 16]))];
        let profile = check(&graph, &given);
        let kernels = kernels(&profile);
        assert!(kernels.contains(&"loop"), "{kernels:?}");
        assert!(!kernels.iter().any(|k| k.starts_with("reference:Loop")), "{kernels:?}");
    }
}

#[test]
fn a_loop_of_known_shapes_is_a_step_of_the_program() {
    let types = [number(), flag(), f32s(&[3]), f32s(&[3])];
    // Carried values that change places: what one iteration reads must not be overwritten by it.
    let swap = body(&types, |graph, x| {
        let sum = graph.op("sum", binary(BinaryKind::Add), [x[2], x[3]]).unwrap();
        vec![x[1], x[3], sum]
    });
    let keep = body(&types, |_, x| vec![x[1], x[3], x[2]]);
    for body in [swap, keep] {
        let mut graph = Graph::new("loop");
        let trips = graph.input("trips", number());
        let [a, b] = ["a", "b"].map(|name| graph.input(name, f32s(&[3])));
        let inputs = [Some(trips), None, Some(a), Some(b)];
        let outputs = graph.add("loop", Loop { body, carried: 2 }, inputs).unwrap();
        let y = graph.op("y", Unary { kind: UnaryKind::Relu }, [outputs[0]]).unwrap();
        graph.output("y", y);
        graph.output("b", outputs[1]);
        for trips in [0i64, 1, 2, 7] {
            let given = [
                ("trips", &Tensor::scalar(trips)),
                ("a", &Tensor::vector(&[1f32, -2.0, 3.0])),
                ("b", &Tensor::vector(&[0.5f32, 4.0, -1.0])),
            ];
            let profile = check(&graph, &given);
            assert_eq!(kernels(&profile)[0], "loop");
        }
        let session = Session::new(graph, Options::default()).unwrap();
        let program = session.program(&[]).unwrap();
        assert!(program.steps().iter().any(|step| step.kernel == "loop"));
        assert!(!program.steps().iter().any(|step| step.kernel.starts_with("later:")));
    }
}

/// What a loop carries grows by two rows an iteration; it ends by its condition.
#[test]
fn shapes_change_between_iterations() {
    let types = [
        number(),
        flag(),
        TensorType { dtype: DType::F32, shape: vec![Dim::symbol("rows"), Dim::from(4usize)] },
        f32s(&[2, 4]),
        number(),
    ];
    let grow = body(&types, |graph, x| {
        let longer = graph.op("longer", Concat { axis: 0 }, [x[2], x[3]]).unwrap();
        let soft = graph.op("soft", Softmax { axis: 0, log: false }, [longer]).unwrap();
        let go_on = graph.op("go_on", binary(BinaryKind::Less), [x[0], x[4]]).unwrap();
        let mean = Reduce { kind: ReduceKind::Mean, axes: vec![0], keep_dims: false };
        let mean = graph.op("mean", mean, [soft]).unwrap();
        vec![go_on, soft, mean]
    });
    let mut graph = Graph::new("growing");
    let begin = graph.input("begin", flag());
    let a = graph.input("a", f32s(&[1, 4]));
    let b = graph.input("b", f32s(&[2, 4]));
    let bound = graph.input("bound", number());
    let inputs = [None, Some(begin), Some(a), Some(b), Some(bound)];
    let outputs = graph.add("loop", Loop { body: grow, carried: 1 }, inputs).unwrap();
    let y = graph.op("y", Unary { kind: UnaryKind::Exp }, [outputs[0]]).unwrap();
    graph.output("y", y);
    graph.output("means", outputs[1]);
    for (begin, bound) in [(true, 12i64), (true, 0), (false, 3), (true, 3)] {
        let given = [
            ("begin", &Tensor::scalar(Bool::from(begin))),
            ("a", &waves(&[1, 4])),
            ("b", &waves(&[2, 4])),
            ("bound", &Tensor::scalar(bound)),
        ];
        let profile = check(&graph, &given);
        assert!(kernels(&profile).contains(&"loop"), "{:?}", kernels(&profile));
    }
}

/// A loop in a branch in a loop, each with a captured value of the outermost graph.
#[test]
fn bodies_nest() {
    let types = [number(), flag(), f32s(&[2, 4]), f32s(&[4, 4]), number()];
    let inner = body(&[number(), flag(), f32s(&[2, 4]), f32s(&[4, 4])], |graph, x| {
        let product = graph.op("product", MatMul {}, [x[2], x[3]]).unwrap();
        let next = graph.op("next", Unary { kind: UnaryKind::Tanh }, [product]).unwrap();
        vec![x[1], next]
    });
    let then = body(&[f32s(&[2, 4]), f32s(&[4, 4]), number()], |graph, x| {
        let inputs = [Some(x[2]), None, Some(x[0]), Some(x[1])];
        graph.add("inner", Loop { body: inner, carried: 1 }, inputs).unwrap()
    });
    let otherwise = body(&[f32s(&[2, 4]), f32s(&[4, 4]), number()], |graph, x| {
        vec![graph.op("double", binary(BinaryKind::Add), [x[0], x[0]]).unwrap()]
    });
    let outer = body(&types, |graph, x| {
        let one = graph.constant("one", Tensor::scalar(1i64));
        let late = graph.op("late", binary(BinaryKind::Greater), [x[0], one]).unwrap();
        let branch = If { then_branch: then, else_branch: otherwise };
        let next = graph.op("branch", branch, [late, x[2], x[3], x[4]]).unwrap();
        let number = graph.op("number", Cast { to: DType::F32 }, [x[0]]).unwrap();
        vec![x[1], next, number]
    });
    let mut graph = Graph::new("nested");
    let trips = graph.input("trips", number());
    let x = graph.input("x", f32s(&[2, 4]));
    let w = graph.constant("w", waves(&[4, 4]));
    let depth = graph.input("depth", number());
    let inputs = [Some(trips), None, Some(x), Some(w), Some(depth)];
    let outputs = graph.add("outer", Loop { body: outer, carried: 1 }, inputs).unwrap();
    graph.output("y", outputs[0]);
    graph.output("numbers", outputs[1]);
    for (trips, depth) in [(5i64, 3i64), (0, 3), (4, 0)] {
        let given =
            [("trips", &Tensor::scalar(trips)), ("x", &waves(&[2, 4])), ("depth", &Tensor::scalar(depth))];
        assert_eq!(kernels(&check(&graph, &given)), ["loop"]);
    }
}

#[test]
fn branches_may_differ_in_shape() {
    let types = [f32s(&[2, 3])];
    let then = body(&types, |graph, x| vec![graph.op("twice", Concat { axis: 0 }, [x[0], x[0]]).unwrap()]);
    let otherwise = body(&types, |_, x| vec![x[0]]);
    let mut graph = Graph::new("branches");
    let condition = graph.input("condition", flag());
    let x = graph.input("x", f32s(&[2, 3]));
    let branch = If { then_branch: then, else_branch: otherwise };
    let y = graph.op("branch", branch, [condition, x]).unwrap();
    let y = graph.op("y", Softmax { axis: -1, log: false }, [y]).unwrap();
    graph.output("y", y);
    for condition in [true, false] {
        let given = [("condition", &Tensor::scalar(Bool::from(condition))), ("x", &waves(&[2, 3]))];
        let profile = check(&graph, &given);
        let kernels = kernels(&profile);
        assert_eq!(kernels[0], "if");
        assert!(kernels.iter().any(|k| k.starts_with("softmax")), "{kernels:?}");
    }
    let error = Session::new(graph, Options::default()).unwrap().run(&[("x", &waves(&[2, 3]))]).unwrap_err();
    assert!(error.to_string().contains("condition"), "{error}");
}

#[test]
fn scans_read_and_write_along_any_axis_and_either_way() {
    let cell = || {
        body(&[f32s(&[3]), f32s(&[3]), f32s(&[3])], |graph, x| {
            let product = graph.op("product", binary(BinaryKind::Mul), [x[0], x[2]]).unwrap();
            let sum = graph.op("sum", binary(BinaryKind::Add), [product, x[1]]).unwrap();
            let out = graph.op("out", Unary { kind: UnaryKind::Exp }, [sum]).unwrap();
            vec![sum, out]
        })
    };
    for (axis, reverse) in [(0i64, false), (0, true), (1, false), (-1, true)] {
        for steps in [300usize, 5, 1, 0] {
            let shape = if axis == 0 { [steps, 3] } else { [3, steps] };
            let mut graph = Graph::new("scan");
            let state = graph.input("state", f32s(&[3]));
            let x = graph.input("x", f32s(&shape));
            let w = graph.constant("w", waves(&[3]));
            let scan = Scan {
                body: cell(),
                states: 1,
                input_axes: vec![axis],
                input_reverse: vec![reverse],
                output_axes: vec![-1 - axis],
                output_reverse: vec![!reverse],
            };
            let Ok(outputs) = graph.add("scan", scan, [state, x, w]) else {
                panic!("{axis} {steps}");
            };
            graph.output("state", outputs[0]);
            graph.output("y", outputs[1]);
            let profile = check(&graph, &[("state", &waves(&[3])), ("x", &waves(&shape))]);
            // Few steps are unrolled.
            if steps == 300 {
                assert_eq!(kernels(&profile)[0], "scan");
            }
        }
    }
}

#[test]
fn a_body_that_fails_is_an_error_that_names_its_step() {
    // Gathering behind the end fails in the third iteration.
    let types = [number(), flag(), f32s(&[1]), f32s(&[2])];
    let gather = body(&types, |graph, x| {
        let picked = graph.op("picked", sora_ir::ops::Gather { axis: 0 }, [x[3], x[0]]).unwrap();
        let sum = graph.op("sum", binary(BinaryKind::Add), [x[2], picked]).unwrap();
        vec![x[1], sum]
    });
    let mut graph = Graph::new("failing");
    let trips = graph.input("trips", number());
    let a = graph.input("a", f32s(&[1]));
    let b = graph.input("b", f32s(&[2]));
    let inputs = [Some(trips), None, Some(a), Some(b)];
    let y = graph.op("failing", Loop { body: gather, carried: 1 }, inputs).unwrap();
    graph.output("y", y);
    let session = Session::new(graph, Options::default()).unwrap();
    let (a, b) = (Tensor::vector(&[1f32]), Tensor::vector(&[1f32, 2.0]));
    let run = |trips: i64| session.run(&[("trips", &Tensor::scalar(trips)), ("a", &a), ("b", &b)]);
    assert_eq!(run(2).unwrap()[0].1.to_f32s(), [4.0]);
    let error = run(3).unwrap_err().to_string();
    assert!(error.contains("failing") && error.contains("picked"), "{error}");
    assert_eq!(run(1).unwrap()[0].1.to_f32s(), [2.0]);
}

#[test]
fn threads_share_bodies() {
    let mut graph = Graph::new("recurrence");
    let trips = graph.input("trips", number());
    let h = graph.input("h", f32s(&[2, 16]));
    let w = graph.constant("w", waves(&[16, 16]));
    let inputs = [Some(trips), None, Some(h), Some(w), Some(h)];
    let outputs = graph.add("loop", Loop { body: recurrence(16), carried: 1 }, inputs).unwrap();
    graph.output("last", outputs[0]);
    graph.output("all", outputs[1]);
    let h = waves(&[2, 16]);
    let expected: Vec<_> = (0..6i64)
        .map(|trips| evaluate(&graph, &[("trips", &Tensor::scalar(trips)), ("h", &h)]).unwrap())
        .collect();
    for threads in [1, 2] {
        let session = Session::new(graph.clone(), Options { threads, ..Options::default() }).unwrap();
        std::thread::scope(|scope| {
            for worker in 0..4usize {
                let (session, expected, h) = (&session, &expected, &h);
                scope.spawn(move || {
                    for i in 0..100 {
                        let trips = (worker + i) % 6;
                        let given = [("trips", &Tensor::scalar(trips as i64)), ("h", h)];
                        let found = session.run(&given).unwrap();
                        for ((name, found), expected) in found.iter().zip(&expected[trips]) {
                            close(found, expected, name);
                        }
                    }
                });
            }
        });
    }
}
