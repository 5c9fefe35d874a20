//! Sessions: programs per shape, observed values, sharing between threads, and what they refuse.

use sora_exec::{ExecError, Options, Program, Session};
use sora_ir::ops::{Binary, BinaryKind, MatMul, Softmax, Unary, UnaryKind};
use sora_ir::{Dim, Graph, TensorType, ValueId, evaluate_with};
use sora_tensor::{DType, Tensor};

/// `softmax(relu(x · w) + x · w)` for `x` of `[n, 6]`, with the value of every node.
fn network() -> (Graph, Vec<ValueId>) {
    let mut graph = Graph::new("network");
    let x =
        graph.input("x", TensorType { dtype: DType::F32, shape: vec![Dim::symbol("n"), Dim::from(6usize)] });
    let weights: Vec<f32> = (0..30).map(|i| (i as f32 * 0.7).sin()).collect();
    let w = graph.constant("w", Tensor::from_slice(&[6, 5], &weights).unwrap());
    let product = graph.op("product", MatMul {}, [x, w]).unwrap();
    let relu = graph.op("relu", Unary { kind: UnaryKind::Relu }, [product]).unwrap();
    let sum = graph.op("sum", Binary { kind: BinaryKind::Add }, [relu, product]).unwrap();
    let y = graph.op("y", Softmax { axis: -1, log: false }, [sum]).unwrap();
    graph.output("y", y);
    (graph, vec![product, relu, sum, y, x])
}

fn input(rows: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * 6).map(|i| (i as f32).cos()).collect();
    Tensor::from_slice(&[rows, 6], &values).unwrap()
}

#[test]
fn programs_are_kept_per_shape_and_the_oldest_goes_first() {
    let session = Session::new(network().0, Options::default()).unwrap();
    let program = |rows: usize| session.program(&[("x", vec![rows, 6])]).unwrap();
    let first = program(1);
    for rows in 2..=8 {
        session.run(&[("x", &input(rows))]).unwrap();
        assert!(std::sync::Arc::ptr_eq(&first, &program(1)), "{rows}");
    }
    let second = program(2);
    for rows in 9..=16 {
        program(rows);
    }
    assert!(!std::sync::Arc::ptr_eq(&second, &program(2)));
}

#[test]
fn observed_values_are_those_of_the_reference() {
    let (graph, watched) = network();
    let session = Session::watching(graph.clone(), watched.clone(), Options::default()).unwrap();
    let x = input(3);
    let mut expected = std::collections::HashMap::from([(watched[4], x.clone())]);
    evaluate_with(&graph, &[("x", &x)], |id, tensor| drop(expected.insert(id, tensor.clone()))).unwrap();
    let mut seen = Vec::new();
    let outputs = session
        .run_observed(&[("x", &x)], &mut |id, tensor| {
            assert_eq!(tensor.shape(), expected[&id].shape());
            for (a, b) in tensor.to_f64s().iter().zip(expected[&id].to_f64s()) {
                assert!((a - b).abs() < 1e-5, "{id:?}: {a} for {b}");
            }
            seen.push(id);
        })
        .unwrap();
    assert_eq!(seen, watched);
    assert_eq!(outputs.len(), 1);
    assert_eq!(session.run(&[("x", &x)]).unwrap().len(), 1);
}

#[test]
fn threads_share_a_session() {
    let session = Session::new(network().0, Options { threads: 2, ..Options::default() }).unwrap();
    let expected: Vec<_> = (1..5).map(|rows| session.run(&[("x", &input(rows))]).unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for i in 0..200 {
                    let rows = 1 + i % 4;
                    assert_eq!(session.run(&[("x", &input(rows))]).unwrap(), expected[rows - 1]);
                }
            });
        }
    });
}

#[test]
fn threads_share_a_program_and_its_helpers() {
    // Rows enough that every step is worth a trial, which goes on while the threads run.
    let (graph, shapes) = (network().0, [("x", vec![3000, 6])]);
    let x = input(3000);
    let expected = Session::new(graph.clone(), Options::default()).unwrap().run(&[("x", &x)]).unwrap();
    let options = Options { threads: 2, ..Options::default() };
    let program = Program::compile(&graph, &shapes, &options).unwrap();
    let session = Session::new(graph, options).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut arena = program.arena().unwrap();
                for _ in 0..100 {
                    assert_eq!(program.run(&mut arena, &[("x", &x)]).unwrap(), expected);
                    assert_eq!(session.run(&[("x", &x)]).unwrap(), expected);
                }
            });
        }
    });
}

#[test]
fn profiles_and_reference_programs_name_every_node() {
    let (graph, _) = network();
    for reference_only in [false, true] {
        let options = Options { reference_only, ..Options::default() };
        let session = Session::new(graph.clone(), options).unwrap();
        let (outputs, profile) = session.run_profiled(&[("x", &input(4))]).unwrap();
        assert_eq!(outputs[0].1.shape(), [4, 5]);
        let nodes: Vec<&str> = profile.steps.iter().flat_map(|s| &s.step.nodes).map(String::as_str).collect();
        assert_eq!(nodes, ["product", "relu", "sum", "y"]);
        assert_eq!(profile.steps.iter().all(|s| s.step.kernel.starts_with("reference:")), reference_only);
        assert!(profile.total_nanoseconds() > 0);
        assert_eq!(profile.steps[0].step.macs, 4 * 6 * 5);
    }
}

#[test]
fn wrong_inputs_are_errors_that_name_them() {
    let (graph, _) = network();
    let session = Session::new(graph.clone(), Options::default()).unwrap();
    let x = input(2);
    let wrong = Tensor::vector(&[1.0f32; 6]);
    let integers = Tensor::from_slice(&[1, 6], &[1i32; 6]).unwrap();
    assert!(matches!(session.run(&[]), Err(ExecError::MissingInput { name, .. }) if name == "x"));
    assert!(matches!(
        session.run(&[("x", &x), ("z", &x)]),
        Err(ExecError::UnknownInput { name, .. }) if name == "z"
    ));
    for given in [&wrong, &integers] {
        let error = session.run(&[("x", given)]).unwrap_err().to_string();
        assert!(error.contains("`x`"), "{error}");
    }
    let program = Program::compile(&graph, &[("x", vec![2, 6])], &Options::default()).unwrap();
    let mut arena = program.arena().unwrap();
    assert!(matches!(program.run(&mut arena, &[("x", &input(3))]), Err(ExecError::Input { .. })));
    assert!(program.run(&mut arena, &[("x", &x)]).is_ok());
}

#[test]
fn an_instruction_set_of_another_machine_is_refused_with_what_is_available() {
    use sora_kernels::{Isa, isa::ALL_ISAS};
    for isa in ALL_ISAS.into_iter().filter(|isa| !Isa::available().contains(isa)) {
        let options = Options { isa: Some(isa), ..Options::default() };
        let Err(error) = Session::new(network().0, options) else { panic!("{isa} was accepted") };
        let text = error.to_string();
        assert!(text.contains(isa.name()) && text.contains("portable"), "{text}");
    }
}
