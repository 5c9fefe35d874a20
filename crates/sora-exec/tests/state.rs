//! Programs that keep tensors between runs do what feeding each run's outputs to the next one does.

use sora_exec::{ExecError, Options, Program, State};
use sora_ir::ops::{Binary, BinaryKind, Transpose, Unary, UnaryKind};
use sora_ir::{Graph, TensorType, ValueId, evaluate};
use sora_tensor::{DType, Tensor};

const SHAPE: [usize; 2] = [3, 3];

fn binary(graph: &mut Graph, kind: BinaryKind, a: ValueId, b: ValueId) -> ValueId {
    let name = graph.fresh_name("v");
    graph.op(&name, Binary { kind }, [a, b]).unwrap()
}

/// A graph of random nodes over one given input and `count` states, whose replacements and results are any values,
/// often the same ones, or states themselves.
fn random(rng: &mut fastrand::Rng, count: usize) -> (Graph, Vec<State>) {
    let mut graph = Graph::new("g");
    let ty = || TensorType::new(DType::F32, SHAPE);
    let mut values = vec![graph.input("x", ty())];
    values.extend((0..count).map(|i| graph.input(&format!("s{i}"), ty())));
    values.push(graph.constant("c", Tensor::from_slice(&SHAPE, &[0.5f32; 9]).unwrap()));
    for i in 0..rng.usize(1..8) {
        let mut pick = || values[rng.usize(0..values.len())];
        let (a, b) = (pick(), pick());
        let value = match rng.usize(0..5) {
            0 => graph.op(&format!("t{i}"), Transpose { perm: vec![1, 0] }, [a]).unwrap(),
            1 => graph.op(&format!("u{i}"), Unary { kind: UnaryKind::Tanh }, [a]).unwrap(),
            2 => binary(&mut graph, BinaryKind::Sub, a, b),
            _ => binary(&mut graph, BinaryKind::Add, a, b),
        };
        values.push(value);
    }
    let mut states = Vec::new();
    for i in 0..count {
        let (input, next) = (format!("s{i}"), format!("n{i}"));
        graph.output(&next, values[rng.usize(0..values.len())]);
        states.push(State { input, next });
    }
    graph.output("y", values[rng.usize(0..values.len())]);
    (graph, states)
}

#[test]
fn states_follow_each_other_as_outputs_fed_back_do() {
    let mut rng = fastrand::Rng::with_seed(4);
    for round in 0..400 {
        let count = rng.usize(1..4);
        let (graph, states) = random(&mut rng, count);
        let program = Program::with_state(&graph, &states, &Options::default()).unwrap();
        assert_eq!(program.inputs().len(), 1);
        assert_eq!(program.outputs().len(), 1);
        let mut arena = program.arena().unwrap();
        let mut tensor = || Tensor::from_slice(&SHAPE, &[0.0f32; 9].map(|_| rng.f32() - 0.5)).unwrap();
        let mut kept: Vec<Tensor> = states.iter().map(|_| tensor()).collect();
        for (state, tensor) in states.iter().zip(&kept) {
            program.set_state(&mut arena, &state.input, tensor).unwrap();
        }
        for _ in 0..3 {
            let x = tensor();
            let found = program.run(&mut arena, &[("x", &x)]).unwrap();
            let names: Vec<&str> = states.iter().map(|state| state.input.as_str()).collect();
            let given: Vec<_> = [("x", &x)].into_iter().chain(names.into_iter().zip(&kept)).collect();
            let mut expected = evaluate(&graph, &given).unwrap();
            let result = expected.pop().unwrap();
            kept = expected;
            let close = |a: &Tensor, b: &Tensor| {
                a.to_f32s().iter().zip(b.to_f32s()).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0))
            };
            assert!(close(&found[0].1, &result), "round {round}: {graph:?}");
            for (state, expected) in states.iter().zip(&kept) {
                let found = program.state(&arena, &state.input).unwrap();
                assert!(close(&found, expected), "round {round}, {state:?}: {graph:?}");
            }
        }
    }
}

/// A tensor that is updated in place takes no second place in memory, and no step copies it.
#[test]
fn updates_happen_in_place() {
    let mut graph = Graph::new("g");
    let ty = || TensorType::new(DType::F32, [1000usize]);
    let (w, g) = (graph.input("w", ty()), graph.input("g", ty()));
    let next = binary(&mut graph, BinaryKind::Sub, w, g);
    graph.output("next", next);
    let state = State { input: "w".into(), next: "next".into() };
    let program = Program::with_state(&graph, &[state], &Options::default()).unwrap();
    assert_eq!(program.steps().len(), 1);
    assert!(program.arena_bytes() < 2 * 4000);
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let mut graph = Graph::new("g");
    let x = graph.input("x", TensorType::new(DType::F32, [2usize, 3]));
    let y = graph.op("y", Transpose { perm: vec![1, 0] }, [x]).unwrap();
    graph.output("y", y);
    for (input, next) in [("x", "y"), ("x", "z"), ("z", "y")] {
        let state = State { input: input.into(), next: next.into() };
        let error = Program::with_state(&graph, &[state], &Options::default()).err();
        assert!(matches!(error, Some(ExecError::State { .. })), "{error:?}");
    }
}
