//! Recurrent layers large enough that threads share their steps: near the reference, and the same bits however many
//! threads there are.

use sora_exec::{Options, Precision, Session};
use sora_ir::case::Gen;
use sora_ir::ops::{Direction, Gru, Lstm, Rnn, RnnActivation};
use sora_ir::{Graph, Op, TensorType, evaluate};
use sora_kernels::Isa;
use sora_tensor::{DType, Tensor};

/// A layer with inputs that are given.
struct Layer {
    graph: Graph,
    given: Vec<(String, Tensor)>,
}

fn layer(g: &mut Gen, gates: usize, batch: usize, op: impl Fn(usize, Direction) -> Op) -> Layer {
    let (mut graph, mut given) = (Graph::new("layer"), Vec::new());
    let (steps, features, hidden) = (g.size(1, 6), g.size(1, 40), g.size(184, 260));
    let direction = g.pick(&Direction::ALL);
    let d = direction.count();
    let mut input = |graph: &mut Graph, name: &str, tensor: Tensor| {
        given.push((name.to_owned(), tensor.clone()));
        graph.input(name, TensorType::of(&tensor))
    };
    let x = input(&mut graph, "x", g.uniform(DType::F32, &[steps, batch, features], -1.0, 1.0));
    let w = g.uniform(DType::F32, &[d, gates * hidden, features], -0.3, 0.3);
    let r = g.uniform(DType::F32, &[d, gates * hidden, hidden], -0.1, 0.1);
    let bias = g.uniform(DType::F32, &[d, 2 * gates * hidden], -0.5, 0.5);
    let [w, r, bias] =
        [("w", w), ("r", r), ("bias", bias)].map(|(name, tensor)| graph.constant(name, tensor));
    let mut inputs = vec![Some(x), Some(w), Some(r), g.flag().then_some(bias)];
    let lengths: Vec<i32> = (0..batch).map(|_| i32::try_from(g.size(0, steps)).unwrap()).collect();
    inputs.push(g.flag().then(|| input(&mut graph, "lengths", Tensor::vector(&lengths))));
    for s in 0..if gates == 4 { 2 } else { 1 } {
        let state = g.uniform(DType::F32, &[d, batch, hidden], -1.0, 1.0);
        inputs.push(g.flag().then(|| input(&mut graph, &format!("s{s}"), state)));
    }
    if gates == 4 && g.flag() {
        let peepholes = g.uniform(DType::F32, &[d, 3 * hidden], -0.5, 0.5);
        inputs.push(Some(graph.constant("peepholes", peepholes)));
    }
    for (i, y) in graph.add("layer", op(hidden, direction), inputs).unwrap().into_iter().enumerate() {
        graph.output(&format!("y{i}"), y);
    }
    Layer { graph, given }
}

/// Checks a layer in every precision and on every instruction set.
fn check(Layer { graph, given }: &Layer, what: &str) {
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let expected = evaluate(graph, &given).unwrap();
    for (precision, bound) in [(Precision::F32, 2e-5), (Precision::Bf16, 3e-2)] {
        for &isa in Isa::available() {
            let mut first: Option<Vec<Vec<f32>>> = None;
            for threads in [1, 2, 3] {
                let options = Options { isa: Some(isa), threads, precision, ..Options::default() };
                let session = Session::new(graph.clone(), options).unwrap();
                let shapes: Vec<_> = given.iter().map(|(name, t)| (*name, t.shape().to_vec())).collect();
                let program = session.program(&shapes).unwrap();
                assert!(program.steps().iter().all(|s| !s.kernel.starts_with("reference:")), "{what}");
                // The first runs try both ways in turn.
                for _ in 0..if threads == 1 { 1 } else { 4 } {
                    let found: Vec<_> =
                        session.run(&given).unwrap().iter().map(|(_, y)| y.to_f32s()).collect();
                    for (found, expected) in found.iter().zip(&expected) {
                        let expected = expected.to_f32s();
                        assert_eq!(found.len(), expected.len());
                        for (a, b) in found.iter().zip(expected) {
                            assert!((a - b).abs() <= bound * b.abs().max(1.0), "{what}, {isa}: {a} for {b}");
                        }
                    }
                    let first = first.get_or_insert_with(|| found.clone());
                    assert!(*first == found, "{what}, {isa}, {precision:?}: other bits on {threads} threads");
                }
            }
        }
    }
}

#[test]
fn threads_share_the_steps_of_every_cell() {
    for seed in 0..8 {
        let g = &mut Gen::new(seed);
        for batch in [1, g.size(2, 4)] {
            let lstm = |hidden, direction| Lstm { hidden, direction, quantize_state: false }.into();
            check(&layer(g, 4, batch, lstm), &format!("LSTM, seed {seed}"));
            let linear_before_reset = seed % 2 == 0;
            let gru = |hidden, direction| {
                Gru { hidden, direction, linear_before_reset, quantize_state: false }.into()
            };
            check(&layer(g, 3, batch, gru), &format!("GRU, seed {seed}"));
            let activation = g.pick(&[RnnActivation::Tanh, RnnActivation::Relu, RnnActivation::Sigmoid]);
            let rnn = |hidden, direction| Rnn { hidden, direction, activation }.into();
            check(&layer(g, 1, batch, rnn), &format!("RNN, seed {seed}"));
        }
    }
}

/// Threads that run a session at once have one pool, which attends one of them.
#[test]
fn sessions_run_by_several_threads_share_no_state() {
    let g = &mut Gen::new(9);
    let lstm = |hidden, direction| Lstm { hidden, direction, quantize_state: false }.into();
    let Layer { graph, given } = layer(g, 4, 1, lstm);
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let session = Session::new(graph, Options { threads: 2, ..Options::default() }).unwrap();
    let want = session.run(&given).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    for ((_, found), (_, want)) in session.run(&given).unwrap().iter().zip(&want) {
                        assert_eq!(found.to_f32s(), want.to_f32s());
                    }
                }
            });
        }
    });
}
