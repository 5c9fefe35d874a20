//! Random fused chains, in `f32` and quantized: what lowering fuses equals the graph evaluated node by node.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use sora_exec::{Options, Program, Session, Tuning, tune};
use sora_ir::ops::{
    Activation, ActivationKind, AveragePool, Binary, BinaryKind, Concat, Conv, DequantizeLinear, Flatten,
    Gather, MatMul, MaxPool, QuantizeLinear, Reduce, ReduceKind, Reshape, Softmax, Transpose, Unary,
    UnaryKind,
};
use sora_ir::{Graph, Op, TensorType, ValueId, evaluate};
use sora_kernels::Isa;
use sora_tensor::{DType, Tensor};

/// A graph under construction from random choices.
struct Maker {
    rng: Rng,
    graph: Graph,
    count: usize,
    /// The scale of the last quantization.
    step: f32,
    /// Factor on the extents of the input.
    zoom: usize,
}

impl Maker {
    fn new(seed: u64) -> Self {
        Maker { rng: Rng::with_seed(seed), graph: Graph::new("chain"), count: 0, step: 0.0, zoom: 1 }
    }

    fn name(&mut self, kind: &str) -> String {
        self.count += 1;
        format!("{kind}{}", self.count)
    }

    fn shape(&self, v: ValueId) -> Vec<usize> {
        self.graph.ty(v).known_shape().unwrap()
    }

    fn op(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        let op = op.into();
        let name = self.name(op.name());
        self.graph.op(&name, op, inputs.iter().copied().map(Some)).unwrap()
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        let name = self.name("const");
        self.graph.constant(&name, tensor)
    }

    fn reals(&mut self, shape: &[usize], magnitude: f32) -> Tensor {
        let len = shape.iter().product();
        let values: Vec<f32> = (0..len).map(|_| (self.rng.f32() * 2.0 - 1.0) * magnitude).collect();
        Tensor::from_slice(shape, &values).unwrap()
    }

    /// Weights: real, or bytes behind a dequantization.
    fn weights(&mut self, shape: &[usize], axis: usize, quantized: bool) -> ValueId {
        let fan: usize = shape.iter().product::<usize>() / shape[axis];
        let magnitude = 2.0 / (fan as f32).sqrt();
        if !quantized {
            let tensor = self.reals(shape, magnitude);
            return self.constant(tensor);
        }
        let len = shape.iter().product();
        let q: Vec<i8> = (0..len).map(|_| self.rng.i8(-127..=127)).collect();
        let scales: Vec<f32> = (0..shape[axis]).map(|_| magnitude / 127.0 * (0.5 + self.rng.f32())).collect();
        let (q, scales) = (Tensor::from_slice(shape, &q).unwrap(), Tensor::vector(&scales));
        let (q, scales) = (self.constant(q), self.constant(scales));
        self.op(DequantizeLinear { axis: axis as i64 }, &[q, scales])
    }

    /// Quantizes and dequantizes with the parameters of a range; gives the dequantized value.
    fn fake_quantize(&mut self, v: ValueId, low: f32, high: f32) -> ValueId {
        self.step = (high - low) / 255.0;
        let signed = self.rng.u8(0..4) == 0;
        let zero = (-low / self.step).round() as i32;
        let scale = self.constant(Tensor::scalar(self.step));
        let (zero, to) = match signed {
            true => (Tensor::scalar((zero - 128) as i8), DType::I8),
            false => (Tensor::scalar(zero as u8), DType::U8),
        };
        let zero = self.constant(zero);
        let q = self.op(QuantizeLinear { axis: 1, to }, &[v, scale, zero]);
        self.op(DequantizeLinear { axis: 1 }, &[q, scale, zero])
    }

    fn activation(&mut self, v: ValueId) -> ValueId {
        let real = |v: f32| v.into();
        match self.rng.u8(0..6) {
            0 => v,
            1 | 2 => self.op(Unary { kind: UnaryKind::Relu }, &[v]),
            3 => self.op(Activation { kind: ActivationKind::Clip, alpha: real(0.0), beta: real(2.0) }, &[v]),
            4 => self.op(Unary { kind: UnaryKind::HardSwish }, &[v]),
            _ => self
                .op(Activation { kind: ActivationKind::LeakyRelu, alpha: real(0.1), beta: real(0.0) }, &[v]),
        }
    }

    /// Convolution, perhaps bias, perhaps a shortcut, perhaps activation, perhaps quantization.
    fn convolution(&mut self, x: ValueId, quantized: bool) -> ValueId {
        let shape = self.shape(x);
        let rank = shape.len() - 2;
        let channels = shape[1];
        let keeps = self.rng.bool();
        let (group, out) = match self.rng.u8(0..4) {
            0 => (channels, channels),
            _ if keeps => (1, channels),
            _ => (1, self.rng.usize(1..40)),
        };
        let kernel: Vec<usize> = (0..rank).map(|_| if self.rng.bool() { 3 } else { 1 }).collect();
        let pads: Vec<usize> = kernel.iter().map(|k| k / 2).collect();
        let op = Conv { pads: pads.repeat(2), group, ..Conv::new(rank) };
        let weights = self.weights(&[vec![out, channels / group], kernel].concat(), 0, quantized);
        let mut inputs = vec![x, weights];
        let own_bias = self.rng.bool();
        if own_bias {
            let bias = self.reals(&[out], 0.5);
            inputs.push(self.constant(bias));
        }
        let mut y = self.op(op, &inputs);
        if !own_bias && self.rng.bool() {
            let bias = self.reals(&[vec![out], vec![1; rank]].concat(), 0.5);
            let bias = self.constant(bias);
            y = self.op(Binary { kind: BinaryKind::Add }, &[bias, y]);
        }
        let shortcut = match self.rng.u8(0..4) {
            0 | 1 if out == channels => Some(x),
            2 => {
                // A projection: both operands of the sum are products that could take it in.
                let weights = self.weights(&[vec![out, channels], vec![1; rank]].concat(), 0, quantized);
                Some(self.op(Conv::new(rank), &[x, weights]))
            }
            _ => None,
        };
        if let Some(mut shortcut) = shortcut {
            if quantized && self.rng.bool() {
                // The operands of the sum in bytes of their own, as most quantizers write them.
                y = self.fake_quantize(y, -4.0, 4.0);
                if shortcut != x {
                    shortcut = self.fake_quantize(shortcut, -3.0, 5.0);
                }
            }
            let operands = if self.rng.bool() { [y, shortcut] } else { [shortcut, y] };
            y = self.op(Binary { kind: BinaryKind::Add }, &operands);
        }
        y = self.activation(y);
        if quantized && self.rng.u8(0..5) > 0 { self.fake_quantize(y, -4.0, 4.0) } else { y }
    }

    /// Any other layer of a convolutional network.
    fn other(&mut self, x: ValueId, quantized: bool) -> ValueId {
        let shape = self.shape(x);
        let rank = shape.len() - 2;
        let wide = shape[2..].iter().all(|&d| d >= 2);
        match self.rng.u8(0..7) {
            0 if wide => {
                let (kernel, strides) = (vec![2; rank], vec![2; rank]);
                let (pads, dilations) = (vec![0; 2 * rank], vec![1; rank]);
                self.op(MaxPool { kernel, strides, pads, dilations, ceil_mode: false }, &[x])
            }
            1 if wide => {
                let (kernel, strides) = (vec![2; rank], vec![1; rank]);
                let (pads, dilations) = (vec![0; 2 * rank], vec![1; rank]);
                let op = AveragePool {
                    kernel,
                    strides,
                    pads,
                    dilations,
                    ceil_mode: false,
                    count_include_pad: false,
                };
                let y = self.op(op, &[x]);
                if quantized { self.fake_quantize(y, -4.0, 4.0) } else { y }
            }
            2 => {
                let y = self.op(Unary { kind: UnaryKind::Sigmoid }, &[x]);
                if quantized { self.fake_quantize(y, 0.0, 1.0) } else { y }
            }
            3 => {
                let gate = self.op(Unary { kind: UnaryKind::Tanh }, &[x]);
                let gate = if quantized { self.fake_quantize(gate, -1.0, 1.0) } else { gate };
                let y = self.op(Binary { kind: BinaryKind::Mul }, &[gate, x]);
                if quantized { self.fake_quantize(y, -4.0, 4.0) } else { y }
            }
            4 => self.op(Concat { axis: 1 }, &[x, x]),
            5 => {
                let shift = self.reals(&[vec![shape[1]], vec![1; rank]].concat(), 0.5);
                let shift = self.constant(shift);
                let y = self.op(Binary { kind: BinaryKind::Sub }, &[shift, x]);
                if quantized { self.fake_quantize(y, -4.0, 4.0) } else { y }
            }
            _ => {
                let forth: Vec<usize> = [0].into_iter().chain(2..rank + 2).chain([1]).collect();
                let back: Vec<usize> = [0, rank + 1].into_iter().chain(1..rank + 1).collect();
                let y = self.op(Transpose { perm: forth }, &[x]);
                self.op(Transpose { perm: back }, &[y])
            }
        }
    }

    /// A network of random layers with a classifier behind it.
    fn network(mut self, quantized: bool, layers: usize) -> (Graph, Tensor, f32) {
        let rank = self.rng.usize(1..=3);
        let spatial: Vec<usize> = (0..rank).map(|_| self.zoom * self.rng.usize(3..8)).collect();
        let shape = [vec![self.rng.usize(1..3), self.rng.usize(1..20)], spatial].concat();
        let input = self.reals(&shape, 2.0);
        let x = self.graph.input("x", TensorType::of(&input));
        let mut y = if quantized { self.fake_quantize(x, -2.0, 2.0) } else { x };
        for _ in 0..self.rng.usize(1..=layers) {
            y = if self.rng.u8(0..3) > 0 { self.convolution(y, quantized) } else { self.other(y, quantized) };
        }
        if layers > 1 && self.rng.bool() {
            y = match self.rng.bool() {
                true => {
                    let axes = (2..rank as i64 + 2).collect();
                    let y = self.op(Reduce { kind: ReduceKind::Mean, axes, keep_dims: true }, &[y]);
                    if quantized { self.fake_quantize(y, -4.0, 4.0) } else { y }
                }
                false => y,
            };
            let flat = self.op(Flatten { axis: 1 }, &[y]);
            let (k, n) = (self.shape(flat)[1], self.rng.usize(1..50));
            let weights = self.weights(&[k, n], 1, quantized);
            y = self.op(MatMul {}, &[flat, weights]);
            let bias = self.reals(&[n], 0.5);
            let bias = self.constant(bias);
            y = self.op(Binary { kind: BinaryKind::Add }, &[y, bias]);
            y = self.activation(y);
            if quantized {
                y = self.fake_quantize(y, -4.0, 4.0);
            }
        }
        self.graph.output("y", y);
        (self.graph, input, self.step)
    }
}

fn options(isa: Isa, threads: usize) -> Options {
    Options { isa: Some(isa), threads, ..Options::default() }
}

#[test]
fn real_networks_agree_with_the_reference() {
    for seed in 0..150 {
        let (graph, input, _) = Maker::new(seed).network(false, 4);
        let expected = evaluate(&graph, &[("x", &input)]).unwrap()[0].to_f64s();
        let largest = expected.iter().fold(1e-3f64, |a, v| a.max(v.abs()));
        for &isa in Isa::available() {
            for threads in [1, 2] {
                let session = Session::new(graph.clone(), options(isa, threads)).unwrap();
                let found = session.run(&[("x", &input)]).unwrap().remove(0).1.to_f64s();
                let worst = found.iter().zip(&expected).fold(0.0f64, |w, (a, b)| w.max((a - b).abs()));
                assert!(
                    worst <= 3e-5 * largest,
                    "seed {seed}, {isa}, {threads} threads: {worst} of {largest}"
                );
            }
        }
    }
}

/// Checks that a quantized network gives the same bits on every instruction set and with every number of
/// threads; gives the distance from the reference of each value, in steps of the last quantization.
fn steps_off(seed: u64, layers: usize) -> Vec<f64> {
    let (graph, input, step) = Maker::new(seed).network(true, layers);
    let expected = evaluate(&graph, &[("x", &input)]).unwrap()[0].to_f64s();
    let mut first: Option<Tensor> = None;
    for &isa in Isa::available() {
        for threads in [1, 2] {
            let session = Session::new(graph.clone(), options(isa, threads)).unwrap();
            let found = session.run(&[("x", &input)]).unwrap().remove(0).1;
            // Real products may round differently: they are no part of the promise.
            let program = session.program(&[("x", input.shape().to_vec())]).unwrap();
            let real = program
                .steps()
                .iter()
                .any(|s| matches!(s.kernel.as_str(), "conv.f32" | "winograd.f32" | "gemm.f32"));
            if let Some(first) = first.as_ref().filter(|_| !real) {
                assert!(found == *first, "seed {seed}: {isa} with {threads} threads differs");
            }
            first.get_or_insert(found);
        }
    }
    let found = first.unwrap().to_f64s();
    found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / f64::from(step)).collect()
}

#[test]
fn quantized_layers_are_within_one_step() {
    for seed in 0..200 {
        let worst = steps_off(seed, 1).into_iter().fold(0.0, f64::max);
        assert!(worst <= 1.01, "seed {seed}: {worst} steps");
    }
}

/// Each layer may round one value in a thousand the other way, and the next ones amplify it.
#[test]
fn quantized_networks_follow_the_reference() {
    let off: Vec<f64> = (0..150).flat_map(|seed| steps_off(seed, 4)).collect();
    let worst = off.iter().copied().fold(0.0, f64::max);
    let differing = off.iter().filter(|&&d| d > 0.5).count();
    assert!(worst <= 4.0 && differing * 100 < off.len(), "{worst} steps; {differing} of {}", off.len());
}

/// An attention over random extents and operands: shared or other keys, any batch axes, perhaps a factor, a
/// mask of any broadcast, a transpose behind it and a quantization.
fn attention(maker: &mut Maker) -> Vec<(String, Tensor)> {
    let [batch, heads, depth] = [3, 4, 9].map(|n: usize| maker.rng.usize(1..=n));
    let [queries, keys, width] = [40, 70, 40].map(|n: usize| maker.rng.usize(1..=n));
    let mut given = Vec::new();
    let mut input = |maker: &mut Maker, tensor: Tensor| {
        let name = maker.name("in");
        let v = maker.graph.input(&name, TensorType::of(&tensor));
        given.push((name, tensor));
        v
    };
    let mut head = |maker: &mut Maker, rows: usize, cols: usize, columns: bool| {
        let perm = if columns { vec![0, 2, 3, 1] } else { vec![0, 2, 1, 3] };
        if maker.rng.u8(0..4) == 0 {
            let shape = if columns { [batch, heads, cols, rows] } else { [batch, heads, rows, cols] };
            let tensor = maker.reals(&shape, 2.0);
            return input(maker, tensor);
        }
        let tensor = maker.reals(&[batch, rows, heads * cols], 2.0);
        let x = input(maker, tensor);
        let split = [batch, rows, heads, cols].map(|d| d as i64);
        let split = maker.constant(Tensor::vector(&split));
        let y = maker.op(Reshape { allow_zero: false }, &[x, split]);
        maker.op(Transpose { perm }, &[y])
    };
    let q = head(maker, queries, depth, false);
    let k = head(maker, keys, depth, true);
    let v = head(maker, keys, width, false);
    let mut scores = maker.op(MatMul {}, &[q, k]);
    if maker.rng.bool() {
        let kind = if maker.rng.bool() { BinaryKind::Mul } else { BinaryKind::Div };
        let factor = Tensor::scalar(maker.rng.f32() + 0.5);
        let factor = maker.constant(factor);
        scores = maker.op(Binary { kind }, &[scores, factor]);
    }
    if maker.rng.u8(0..4) > 0 {
        let mut shape = [batch, heads, queries, keys];
        (0..3).for_each(|i| {
            if maker.rng.bool() {
                shape[i] = 1
            }
        });
        let first = maker.rng.usize(0..3);
        let masked = [-1e4, f32::NEG_INFINITY][maker.rng.usize(0..2)];
        let values: Vec<f32> = (0..shape[first..].iter().product::<usize>())
            .map(|i| if i % keys > 0 && maker.rng.u8(0..3) == 0 { masked } else { maker.rng.f32() })
            .collect();
        let mask = Tensor::from_slice(&shape[first..], &values).unwrap();
        let mask = if maker.rng.bool() { maker.constant(mask) } else { input(maker, mask) };
        let order = if maker.rng.bool() { [scores, mask] } else { [mask, scores] };
        scores = maker.op(Binary { kind: BinaryKind::Add }, &order);
    }
    let weights = maker.op(Softmax { axis: -1, log: false }, &[scores]);
    let mut y = maker.op(MatMul {}, &[weights, v]);
    if maker.rng.u8(0..4) > 0 {
        y = maker.op(Transpose { perm: vec![0, 2, 1, 3] }, &[y]);
    }
    if maker.rng.bool() {
        let joined = maker.constant(Tensor::vector(&[batch as i64, -1]));
        y = maker.op(Reshape { allow_zero: false }, &[y, joined]);
    }
    if maker.rng.u8(0..3) == 0 {
        y = maker.fake_quantize(y, -2.0, 2.0);
    }
    maker.graph.output("y", y);
    given
}

#[test]
fn attention_is_one_step_and_agrees_with_the_reference() {
    for seed in 0..120 {
        let mut maker = Maker::new(seed);
        let given = attention(&mut maker);
        let given: Vec<_> = given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let expected = evaluate(&maker.graph, &given).unwrap()[0].to_f64s();
        // Where it is quantized, a result between two steps may go to either.
        let bound = 1e-5 + f64::from(maker.step) * 1.01;
        for &isa in Isa::available() {
            for threads in [1, 2, 3] {
                let session = Session::new(maker.graph.clone(), options(isa, threads)).unwrap();
                let (outputs, profile) = session.run_profiled(&given).unwrap();
                for (a, b) in outputs[0].1.to_f64s().iter().zip(&expected) {
                    assert!((a - b).abs() <= bound, "seed {seed}, {isa}, {threads} threads: {a} for {b}");
                }
                let kernels: Vec<_> = profile.steps.iter().map(|s| s.step.kernel.as_str()).collect();
                let rest = ["attention.f32", "dequantize.u8", "flip.i8"];
                assert!(
                    kernels[0] == rest[0] && kernels.iter().all(|k| rest.contains(k)),
                    "{seed} {profile}"
                );
            }
        }
    }
}

/// Networks large enough that steps are split: the same bits with any number of threads.
#[test]
fn splitting_work_changes_nothing() {
    for seed in 0..12 {
        for quantized in [false, true] {
            let mut maker = Maker::new(seed);
            maker.zoom = 5;
            let (graph, input, _) = maker.network(quantized, 4);
            let run = |threads| {
                let session = Session::new(graph.clone(), Options { threads, ..Options::default() }).unwrap();
                session.run(&[("x", &input)]).unwrap().remove(0).1
            };
            let expected = run(1);
            assert!(run(2) == expected && run(3) == expected, "seed {seed}, quantized {quantized}");
        }
    }
}

/// Convolutions of few multiplications, with all that fuses behind them, however many threads there are.
#[test]
fn winograd_agrees_with_the_reference() {
    for seed in 0..8 {
        let mut maker = Maker::new(seed);
        let [images, channels, out] =
            [maker.rng.usize(1..4), maker.rng.usize(32..80), maker.rng.usize(32..80)];
        let spatial: Vec<usize> = (0..2).map(|_| maker.rng.usize(9..24)).collect();
        let input = maker.reals(&[vec![images, channels], spatial].concat(), 1.0);
        let x = maker.graph.input("x", TensorType::of(&input));
        let pads: Vec<usize> = (0..4).map(|_| maker.rng.usize(0..3)).collect();
        let weights = maker.weights(&[out, channels, 3, 3], 0, false);
        let mut y = maker.op(Conv { pads, ..Conv::new(2) }, &[x, weights]);
        let bias = maker.reals(&[out, 1, 1], 0.5);
        let bias = maker.constant(bias);
        y = maker.op(Binary { kind: BinaryKind::Add }, &[y, bias]);
        let shape = maker.shape(y);
        let shortcut = maker.reals(&shape, 1.0);
        let z = maker.graph.input("z", TensorType::of(&shortcut));
        if seed % 2 == 0 {
            y = maker.op(Binary { kind: BinaryKind::Add }, &[y, z]);
        }
        y = maker.activation(y);
        maker.graph.output("y", y);
        maker.graph.output("z", z);
        let given = [("x", &input), ("z", &shortcut)];
        let expected = evaluate(&maker.graph, &given).unwrap()[0].to_f64s();
        for &isa in Isa::available() {
            let mut first: Option<Tensor> = None;
            for threads in [1, 2, 3] {
                let session = Session::new(maker.graph.clone(), options(isa, threads)).unwrap();
                let (mut outputs, profile) = session.run_profiled(&given).unwrap();
                assert!(profile.steps.iter().any(|s| s.step.kernel == "winograd.f32"), "{profile}");
                let found = outputs.remove(0).1;
                for (a, b) in found.to_f64s().iter().zip(&expected) {
                    assert!((a - b).abs() < 5e-5, "seed {seed}, {isa}, {threads} threads: {a} for {b}");
                }
                assert!(
                    first.get_or_insert(found.clone()) == &found,
                    "seed {seed}: {threads} threads differ"
                );
            }
        }
    }
}

/// A tuning decides between algorithms by the keys that steps tell, results stay, and one of another machine or
/// with unknown names changes nothing.
#[test]
fn tunings_decide_where_they_apply() {
    for quantized in [false, true] {
        let mut maker = Maker::new(5);
        let input = maker.reals(&[1, 32, 13, 18], 1.0);
        let x = maker.graph.input("x", TensorType::of(&input));
        let y = if quantized { maker.fake_quantize(x, -2.0, 2.0) } else { x };
        let weights = maker.weights(&[48, 32, 3, 3], 0, quantized);
        let y = maker.op(Conv { pads: vec![1; 4], ..Conv::new(2) }, &[y, weights]);
        maker.graph.output("y", y);
        let given = [("x", &input)];
        let expected = evaluate(&maker.graph, &given).unwrap()[0].to_f64s();
        let options = options(Isa::best(), 1);
        let step = |tuning: Option<Tuning>| {
            let options = Options { tuning: tuning.map(Arc::new), ..options.clone() };
            let session = Session::new(maker.graph.clone(), options).unwrap();
            let (outputs, profile) = session.run_profiled(&given).unwrap();
            for (a, b) in outputs[0].1.to_f64s().iter().zip(&expected) {
                assert!((a - b).abs() < 5e-5, "{a} for {b}");
            }
            profile.steps.into_iter().find(|s| s.step.choice.is_some()).unwrap().step
        };
        let usual = step(None);
        let choice = usual.choice.clone().unwrap();
        let machine = Tuning::machine_for(&options).unwrap();
        let naming = |machine: &str, name: &str| {
            let choices = [(choice.key.clone(), name.to_owned())].into();
            step(Some(Tuning { machine: machine.to_owned(), choices }))
        };
        for &name in choice.alternatives {
            let found = naming(&machine, name);
            let taken = found.choice.unwrap().taken;
            // Without vectors of 16-bit products there is one way only to convolve bytes.
            let applies = !quantized || Isa::best().includes(Isa::Avx2) || name == "direct";
            assert_eq!(taken, if applies { name } else { "direct" });
            assert_eq!(
                found.kernel.starts_with("winograd"),
                taken.starts_with("winograd"),
                "{}",
                found.kernel
            );
            assert_eq!(naming("elsewhere", name), usual);
        }
        assert_eq!(naming(&machine, "unheard"), usual);

        let tuned = tune(&maker.graph, &given, &options, Duration::from_millis(50), &|| false).unwrap();
        assert_eq!(tuned.tuning.machine, machine);
        for found in &tuned.found {
            assert_eq!((&found.key, found.alternatives[0], found.steps), (&choice.key, choice.taken, 1));
            assert!(found.nanoseconds[1] < found.nanoseconds[0] && found.alternatives[1] != choice.taken);
        }
        for (key, name) in &tuned.tuning.choices {
            assert!(tuned.found.iter().any(|f| f.key == *key && f.alternatives[1] == name));
        }
        step(Some(tuned.tuning));
    }
}

/// What stands between a product and what it absorbs may be a change of shape that keeps its columns.
#[test]
fn products_fuse_through_reshapes() {
    for quantized in [false, true] {
        let mut maker = Maker::new(3);
        let x = maker.graph.input("x", TensorType::new(DType::F32, [2usize, 5, 8]));
        let y = if quantized { maker.fake_quantize(x, -2.0, 2.0) } else { x };
        let reshape = |maker: &mut Maker, y: ValueId, shape: &[i64]| {
            let shape = maker.constant(Tensor::vector(shape));
            maker.op(Reshape { allow_zero: false }, &[y, shape])
        };
        let y = reshape(&mut maker, y, &[10, 8]);
        let weights = maker.weights(&[8, 8], 1, quantized);
        let y = maker.op(MatMul {}, &[y, weights]);
        let y = reshape(&mut maker, y, &[2, 5, 8]);
        let bias = maker.reals(&[8], 0.5);
        let bias = maker.constant(bias);
        let y = maker.op(Binary { kind: BinaryKind::Add }, &[y, bias]);
        let y = maker.op(Binary { kind: BinaryKind::Add }, &[x, y]);
        let y = maker.op(Unary { kind: UnaryKind::Gelu }, &[y]);
        let y = reshape(&mut maker, y, &[10, 8]);
        let y = maker.fake_quantize(y, -2.0, 2.0);
        maker.graph.output("y", y);
        let input = maker.reals(&[2, 5, 8], 2.0);
        let session = Session::new(maker.graph.clone(), Options::default()).unwrap();
        let (outputs, profile) = session.run_profiled(&[("x", &input)]).unwrap();
        let kernels: Vec<_> = profile.steps.iter().map(|s| s.step.kernel.as_str()).collect();
        let expected: &[&str] = match quantized {
            true => &["quantize.u8", "gemm.u8i8", "dequantize.u8"],
            false => &["gemm.f32", "dequantize.u8"],
        };
        assert_eq!(kernels[..expected.len()], *expected, "{profile}");
        let expected = evaluate(&maker.graph, &[("x", &input)]).unwrap()[0].to_f64s();
        for (a, b) in outputs[0].1.to_f64s().iter().zip(&expected) {
            assert!((a - b).abs() <= 1.01 * f64::from(maker.step), "{a} for {b}");
        }
    }
}

/// Winograd's algorithm for bytes gives the bits of the direct product, which the portable kernels use.
#[test]
fn winograd_of_bytes_changes_no_bit() {
    for seed in 0..6 {
        let mut maker = Maker::new(seed);
        let [height, width] = [0, 1].map(|_| 4 * maker.rng.usize(4..7) - maker.rng.usize(0..2));
        let input = maker.reals(&[2, 32, height, width], 2.0);
        let x = maker.graph.input("x", TensorType::of(&input));
        let shortcut = maker.fake_quantize(x, -2.0, 1.0);
        let weights = maker.weights(&[32, 32, 3, 3], 0, true);
        let y = maker.op(Conv { pads: vec![1; 4], ..Conv::new(2) }, &[shortcut, weights]);
        let y = maker.fake_quantize(y, -3.0, 3.0);
        let y = maker.op(Binary { kind: BinaryKind::Add }, &[y, shortcut]);
        let y = maker.op(Unary { kind: UnaryKind::Relu }, &[y]);
        let y = maker.fake_quantize(y, 0.0, 4.0);
        maker.graph.output("y", y);
        let mut first: Option<Tensor> = None;
        for &isa in Isa::available() {
            for threads in [1, 2] {
                let session = Session::new(maker.graph.clone(), options(isa, threads)).unwrap();
                let found = session.run(&[("x", &input)]).unwrap().remove(0).1;
                let program = session.program(&[("x", input.shape().to_vec())]).unwrap();
                let chosen = program.steps().iter().any(|s| s.kernel == "winograd.u8i8");
                assert_eq!(chosen, isa.includes(Isa::Avx2), "{isa}");
                assert!(
                    *first.get_or_insert_with(|| found.clone()) == found,
                    "seed {seed}: {isa}, {threads}"
                );
            }
        }
    }
}

#[test]
fn quantized_chains_are_fused() {
    let mut maker = Maker::new(1);
    let x = maker.graph.input("x", TensorType::new(DType::F32, [1usize, 8, 6, 6]));
    let y = maker.fake_quantize(x, -2.0, 2.0);
    let weights = maker.weights(&[16, 8, 3, 3], 0, true);
    let y = maker.op(Conv::new(2), &[y, weights]);
    let y = maker.op(Unary { kind: UnaryKind::Relu }, &[y]);
    let shortcut = maker.fake_quantize(y, 0.0, 4.0);
    let weights = maker.weights(&[16, 16, 1, 1], 0, true);
    let y = maker.op(Conv::new(2), &[shortcut, weights]);
    let y = maker.fake_quantize(y, -3.0, 3.0);
    let y = maker.op(Binary { kind: BinaryKind::Add }, &[shortcut, y]);
    let y = maker.op(Unary { kind: UnaryKind::Relu }, &[y]);
    let y = maker.fake_quantize(y, 0.0, 4.0);
    let pool = MaxPool {
        kernel: vec![2; 2],
        strides: vec![2; 2],
        pads: vec![0; 4],
        dilations: vec![1; 2],
        ceil_mode: false,
    };
    let y = maker.op(pool, &[y]);
    let y = maker.op(Flatten { axis: 1 }, &[y]);
    let weights = maker.weights(&[64, 10], 1, true);
    let y = maker.op(MatMul {}, &[y, weights]);
    maker.graph.output("y", y);
    let program = Program::compile(&maker.graph, &[], &Options::default()).unwrap();
    let kernels: Vec<&str> = program.steps().iter().map(|s| s.kernel.as_str()).collect();
    assert_eq!(
        kernels,
        ["quantize.u8", "channels-last", "conv.u8i8", "conv.u8i8", "maxpool.u8", "gemm.u8i8"]
    );
}

/// Of a table of bytes, one step makes the rows real that are asked for, whatever the types of levels and indices.
#[test]
fn rows_of_tables_are_dequantized_as_they_are_read() {
    for seed in 0..40 {
        let mut maker = Maker::new(500 + seed);
        let (rows, cols) = (maker.rng.usize(1..30), maker.rng.usize(1..40));
        let shape: Vec<usize> = (0..maker.rng.usize(0..3)).map(|_| maker.rng.usize(1..5)).collect();
        let bytes = |maker: &mut Maker, shape: &[usize], low, high, dtype| {
            let values: Vec<f64> =
                (0..shape.iter().product()).map(|_| f64::from(maker.rng.i32(low..high))).collect();
            Tensor::from_f64s(dtype, shape, &values).unwrap()
        };
        let by_column = maker.rng.bool();
        let lie: &[usize] = if by_column { &[cols] } else { &[] };
        let (dtype, low, zero) = match maker.rng.u8(0..3) {
            0 => (DType::U8, 0, (128, 129)),
            1 => (DType::I8, -50, (-50, 50)),
            _ => (DType::I8, -128, (0, 1)),
        };
        let high = if dtype == DType::U8 { 256 } else { -low };
        let levels = bytes(&mut maker, &[rows, cols], low, high, dtype);
        let zeros = bytes(&mut maker, lie, zero.0, zero.1, dtype);
        let scales: Vec<f32> = (0..zeros.len()).map(|_| 0.01 + maker.rng.f32()).collect();
        let inputs = [levels, Tensor::from_slice(lie, &scales).unwrap(), zeros];
        let inputs = inputs.map(|tensor| maker.constant(tensor));
        let table = maker.op(DequantizeLinear { axis: 1 }, &inputs);
        let index = if maker.rng.bool() { DType::I64 } else { DType::I32 };
        let x = bytes(&mut maker, &shape, -(rows as i32), rows as i32, index);
        let input = maker.graph.input("x", TensorType::of(&x));
        let y = maker.op(Gather { axis: 0 }, &[table, input]);
        maker.graph.output("y", y);
        let expected = evaluate(&maker.graph, &[("x", &x)]).unwrap();
        for &isa in Isa::available() {
            let session = Session::new(maker.graph.clone(), options(isa, 1)).unwrap();
            assert_eq!(session.run(&[("x", &x)]).unwrap()[0].1, expected[0], "{seed} {isa}");
            let program = session.program(&[("x", shape.clone())]).unwrap();
            let kernels: Vec<&str> = program.steps().iter().map(|step| step.kernel.as_str()).collect();
            assert_eq!(kernels, ["gather.i8"], "{seed} {isa}");
            let outside = Tensor::from_f64s(index, &shape, &vec![rows as f64; x.len()]).unwrap();
            let error = session.run(&[("x", &outside)]).unwrap_err().to_string();
            assert!(error.contains("outside"), "{error}");
        }
    }
}
