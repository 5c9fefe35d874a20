//! Products that skip the zeros of their weights, against the reference.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastrand::Rng;
use sora_exec::{Isa, Options, Program, Session, Tuning};
use sora_ir::ops::{
    Binary, BinaryKind, Conv, DequantizeLinear, Flatten, MatMul, QuantizeLinear, Unary, UnaryKind,
};
use sora_ir::{Graph, TensorType, ValueId, evaluate};
use sora_tensor::{DType, Tensor};

/// Numbers of which a share is zero.
fn reals(rng: &mut Rng, shape: &[usize], zeros: f64) -> Tensor {
    let len: usize = shape.iter().product();
    let scale = 2.0 / ((len / shape[0]).max(1) as f32).sqrt();
    let value = |rng: &mut Rng| if rng.f64() < zeros { 0.0 } else { scale * (rng.f32() * 2.0 - 1.0) };
    Tensor::from_slice(shape, &(0..len).map(|_| value(rng)).collect::<Vec<f32>>()).unwrap()
}

/// A convolution of any window, one of 1×1 with a shortcut, and a linear layer.
fn network(rng: &mut Rng, zeros: f64, size: usize) -> (Graph, Tensor) {
    let mut graph = Graph::new("sparse");
    let mut count = 0;
    let mut constant = |graph: &mut Graph, tensor: Tensor| -> ValueId {
        count += 1;
        graph.constant(&format!("c{count}"), tensor)
    };
    let (channels, wide) = (size * rng.usize(1..6) + rng.usize(0..4), size * rng.usize(2..7));
    let shape = [rng.usize(1..3), channels, rng.usize(4..12), rng.usize(4..12)];
    let input = reals(rng, &shape, 0.0);
    let x = graph.input("x", TensorType::of(&input));
    let (kernel, stride) = (*rng.choice(&[1, 2, 3, 5]).unwrap(), rng.usize(1..3));
    let w = constant(&mut graph, reals(rng, &[wide, channels, kernel, kernel], zeros));
    let bias = constant(&mut graph, reals(rng, &[wide], 0.0));
    let op = Conv { pads: vec![kernel / 2; 4], strides: vec![stride; 2], ..Conv::new(2) };
    let a = graph.op("a", op, [x, w, bias]).unwrap();
    let a = graph.op("relu", Unary { kind: UnaryKind::Relu }, [a]).unwrap();
    let w = constant(&mut graph, reals(rng, &[wide, wide, 1, 1], zeros));
    let b = graph.op("b", Conv::new(2), [a, w]).unwrap();
    let b = graph.op("sum", Binary { kind: BinaryKind::Add }, [b, a]).unwrap();
    let b = graph.op("silu", Unary { kind: UnaryKind::Silu }, [b]).unwrap();
    let flat = graph.op("flat", Flatten { axis: 1 }, [b]).unwrap();
    let k = graph.ty(flat).known_shape().unwrap()[1];
    let w = constant(&mut graph, reals(rng, &[k, 13], zeros));
    let y = graph.op("y", MatMul {}, [flat, w]).unwrap();
    graph.output("y", y);
    (graph, input)
}

/// The same options with every choice decided for skipping zeros.
fn forced(graph: &Graph, input: &Tensor, options: &Options) -> Options {
    let program = Program::compile(graph, &[("x", input.shape().to_vec())], options).unwrap();
    let keys = program.steps().iter().filter_map(|step| step.choice.as_ref()).map(|c| c.key.clone());
    let choices: BTreeMap<_, _> = keys.map(|key| (key, "sparse".to_owned())).collect();
    let machine = Tuning::machine_for(options).unwrap();
    Options { tuning: Some(Arc::new(Tuning { machine, choices })), ..options.clone() }
}

#[test]
fn products_without_zeros_equal_the_reference() {
    let mut rng = Rng::with_seed(5);
    for round in 0..30 {
        let zeros = [0.6, 0.9, 1.0][round % 3];
        let (graph, input) = network(&mut rng, zeros, 4);
        let expected = evaluate(&graph, &[("x", &input)]).unwrap()[0].to_f32s();
        for &isa in Isa::available() {
            for threads in [1, 2] {
                let options = Options { isa: Some(isa), threads, ..Options::default() };
                let options = forced(&graph, &input, &options);
                let program = Program::compile(&graph, &[("x", input.shape().to_vec())], &options).unwrap();
                let sparse = program.steps().iter().filter(|step| step.zeros.is_some()).count();
                assert_eq!(sparse, 3, "{:?}", program.steps());
                let y = program.run(&mut program.arena().unwrap(), &[("x", &input)]).unwrap();
                for (a, b) in y[0].1.to_f32s().iter().zip(&expected) {
                    assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{isa} {a} {b}");
                }
            }
        }
    }
}

/// Zeros in blocks, as the kernels of the instruction set want them, give the integers of the dense product.
#[test]
fn quantized_products_without_blocks_of_zeros_equal_the_dense_ones() {
    let mut rng = Rng::with_seed(9);
    for round in 0..12 {
        let [kernel, channels, n] = [[1, 2, 3][round % 3], 16 * rng.usize(1..4), 16 * rng.usize(1..5)];
        let mut graph = Graph::new("bytes");
        let input = reals(&mut rng, &[2, channels, 9, 7], 0.0);
        let x = graph.input("x", TensorType::of(&input));
        let step = graph.constant("step", Tensor::scalar(0.02f32));
        let zero = graph.constant("zero", Tensor::scalar(120u8));
        let rounds = QuantizeLinear { axis: 1, to: DType::U8 };
        let q = graph.op("qx", rounds.clone(), [x, step, zero]).unwrap();
        let d = graph.op("dx", DequantizeLinear { axis: 1 }, [q, step, zero]).unwrap();
        // Blocks of all instruction sets divide these: 32 columns and 8 channels.
        let taps = kernel * kernel;
        let weight = |i: usize| {
            let (column, channel, tap) = (i / taps / channels, i / taps % channels, i % taps);
            ((column / 32 * channels / 8 + channel / 8) * taps + tap).is_multiple_of(4)
        };
        let bytes: Vec<i8> =
            (0..n * channels * taps).map(|i| if weight(i) { rng.i8(-127..=127) } else { 0 }).collect();
        let w = Tensor::from_slice(&[n, channels, kernel, kernel], &bytes).unwrap();
        let w = graph.constant("w", w);
        let w = graph.op("dw", DequantizeLinear { axis: 0 }, [w, step]).unwrap();
        let op = Conv { pads: vec![kernel / 2; 4], ..Conv::new(2) };
        let y = graph.op("y", op, [d, w]).unwrap();
        let q = graph.op("qy", rounds, [y, step, zero]).unwrap();
        graph.output("q", q);
        for &isa in Isa::available() {
            let options = Options { isa: Some(isa), ..Options::default() };
            let run = |options: &Options| {
                let program = Program::compile(&graph, &[("x", input.shape().to_vec())], options).unwrap();
                let y = program.run(&mut program.arena().unwrap(), &[("x", &input)]).unwrap();
                let zeros = program.steps().iter().find_map(|step| step.zeros);
                (y[0].1.raw().to_vec(), zeros, program.steps().to_vec())
            };
            let choose = |name: &str| {
                let options = forced(&graph, &input, &options);
                let mut tuning = Tuning::clone(options.tuning.as_ref().unwrap());
                tuning.choices.values_mut().for_each(|choice| *choice = name.to_owned());
                Options { tuning: Some(Arc::new(tuning)), ..options }
            };
            let (dense, none, _) = run(&choose("direct"));
            let (sparse, zeros, steps) = run(&choose("sparse"));
            assert!(none.is_none() && zeros.is_some_and(|z| z >= 50), "{isa} {steps:?}");
            assert!(dense == sparse, "{isa} {kernel} {channels} {n}");
        }
    }
}

/// Where a few zeros would not pay the dense kernel runs; the step tells which of both it is, and how many zeros.
#[test]
fn many_zeros_are_skipped_and_few_are_not() {
    for (zeros, skipped) in [(0.0, false), (0.3, false), (0.9, true)] {
        let mut rng = Rng::with_seed(2);
        let mut graph = Graph::new("one");
        let input = reals(&mut rng, &[1, 64, 16, 16], 0.0);
        let x = graph.input("x", TensorType::of(&input));
        let w = graph.constant("w", reals(&mut rng, &[128, 64, 1, 1], zeros));
        let y = graph.op("y", Conv::new(2), [x, w]).unwrap();
        graph.output("y", y);
        let program =
            Program::compile(&graph, &[("x", input.shape().to_vec())], &Options::default()).unwrap();
        let step = program.steps().iter().find(|step| step.macs > 0).unwrap();
        assert_eq!(step.zeros.is_some(), skipped, "{zeros}: {step:?}");
        assert_eq!(step.kernel == "conv.sparse.f32", skipped);
        if let Some(percent) = step.zeros {
            assert!((85..=95).contains(&percent));
            assert!(step.weight_bytes < 128 * 64 * 4);
        }
    }
}

/// Weights packed without zeros come back from where a file keeps them; a session for other shapes agrees.
#[test]
fn weights_packed_without_zeros_are_kept() {
    let mut rng = Rng::with_seed(8);
    let (graph, input) = network(&mut rng, 0.95, 16);
    let session = Session::new(graph.clone(), Options::default()).unwrap();
    let expected = session.run(&[("x", &input)]).unwrap()[0].1.to_f32s();
    let packed = session.packed_weights();
    assert!(packed.entries.keys().any(|key| key.contains(" sparse.f32 ")), "{:?}", packed.entries.keys());
    let again = Session::with_weights(session.graph().clone(), packed.clone(), Options::default()).unwrap();
    assert_eq!(again.run(&[("x", &input)]).unwrap()[0].1.to_f32s(), expected);
    let keys = |packed: sora_exec::PackedWeights| packed.entries.into_keys().collect::<Vec<_>>();
    assert_eq!(keys(again.packed_weights()), keys(packed));
}
