//! Networks whose values stay rounded to bf16 between steps, against the reference.

use fastrand::Rng;
use sora_exec::{Options, Precision, Session};
use sora_ir::ops::{
    Activation, ActivationKind, Binary, BinaryKind, Conv, Reduce, ReduceKind, Unary, UnaryKind,
};
use sora_ir::{Graph, Op, TensorType, ValueId, evaluate};
use sora_kernels::Isa;
use sora_tensor::Tensor;

struct Maker {
    rng: Rng,
    graph: Graph,
    count: usize,
}

impl Maker {
    fn op(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        self.count += 1;
        self.graph.op(&format!("n{}", self.count), op, inputs.iter().copied().map(Some)).unwrap()
    }

    fn reals(&mut self, shape: &[usize], magnitude: f32) -> Tensor {
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| (self.rng.f32() * 2.0 - 1.0) * magnitude).collect();
        Tensor::from_slice(shape, &values).unwrap()
    }

    fn conv(&mut self, x: ValueId, out: usize, kernel: usize, stride: usize, group: usize) -> ValueId {
        let channels = self.graph.ty(x).known_shape().unwrap()[1] / group;
        let magnitude = 2.0 / ((channels * kernel * kernel) as f32).sqrt();
        let weights = self.reals(&[out, channels, kernel, kernel], magnitude);
        let bias = self.reals(&[out], 0.5);
        self.count += 1;
        let weights = self.graph.constant(&format!("w{}", self.count), weights);
        let bias = self.graph.constant(&format!("b{}", self.count), bias);
        let op = Conv { pads: vec![kernel / 2; 4], strides: vec![stride; 2], group, ..Conv::new(2) };
        self.op(op, &[x, weights, bias])
    }

    fn activation(&mut self, smooth: bool, x: ValueId) -> ValueId {
        let relu6 = Activation { kind: ActivationKind::Clip, alpha: 0.0.into(), beta: 6.0.into() };
        match smooth {
            true => self.op(Unary { kind: UnaryKind::Silu }, &[x]),
            false => self.op(relu6, &[x]),
        }
    }
}

/// Expand, depthwise, squeeze and excite, project, add: all but the factors in bf16.
#[test]
fn inverted_bottlenecks_stay_rounded_from_end_to_end() {
    for seed in 0..24 {
        let mut maker = Maker { rng: Rng::with_seed(seed), graph: Graph::new("bottleneck"), count: 0 };
        let smooth = seed % 2 == 0;
        let (narrow, wide) = (maker.rng.usize(3..12), maker.rng.usize(16..70));
        let shape = [maker.rng.usize(1..4), narrow, maker.rng.usize(5..20), maker.rng.usize(5..20)];
        let input = maker.reals(&shape, 2.0);
        let x = maker.graph.input("x", TensorType::of(&input));
        let first = maker.conv(x, narrow, 1, 1, 1);
        let expanded = maker.conv(first, wide, 1, 1, 1);
        let expanded = maker.activation(smooth, expanded);
        let (kernel, stride) = (*maker.rng.choice([3, 5].iter()).unwrap(), 1 + usize::from(seed % 3 == 0));
        let deep = maker.conv(expanded, wide, kernel, stride, wide);
        let deep = maker.activation(smooth, deep);
        let mean = Reduce { kind: ReduceKind::Mean, axes: vec![2, 3], keep_dims: true };
        let squeezed = maker.op(mean, &[deep]);
        let squeezed = maker.conv(squeezed, 6, 1, 1, 1);
        let squeezed = maker.activation(smooth, squeezed);
        let excited = maker.conv(squeezed, wide, 1, 1, 1);
        let factors = maker.op(Unary { kind: UnaryKind::Sigmoid }, &[excited]);
        let operands = if seed % 4 < 2 { [deep, factors] } else { [factors, deep] };
        let scaled = maker.op(Binary { kind: BinaryKind::Mul }, &operands);
        let mut y = maker.conv(scaled, narrow, 1, 1, 1);
        if stride == 1 {
            y = maker.op(Binary { kind: BinaryKind::Add }, &[first, y]);
        }
        maker.graph.output("y", y);
        let expected = evaluate(&maker.graph, &[("x", &input)]).unwrap()[0].to_f64s();
        let largest = expected.iter().fold(0.0f64, |a, v| a.max(v.abs()));
        for &isa in Isa::available() {
            for threads in [1, 3] {
                let options =
                    Options { isa: Some(isa), threads, precision: Precision::Bf16, ..Options::default() };
                let session = Session::new(maker.graph.clone(), options).unwrap();
                let (mut outputs, profile) = session.run_profiled(&[("x", &input)]).unwrap();
                for kernel in ["depthwise.bf16", "scale.bf16"] {
                    assert!(profile.steps.iter().any(|s| s.step.kernel == kernel), "{kernel}: {profile}");
                }
                assert!(profile.steps.iter().all(|s| s.step.kernel != "widen.bf16"), "{profile}");
                let found = outputs.remove(0).1.to_f64s();
                let worst = found.iter().zip(&expected).fold(0.0f64, |w, (a, b)| w.max((a - b).abs()));
                // A handful of roundings, by 2⁻⁸ each.
                assert!(worst <= largest / 40.0, "seed {seed}, {isa}, {threads}: {worst} of {largest}");
            }
        }
    }
}

/// Dense 3×3 convolutions run in f32 by Winograd's algorithm where that is faster, between products of bf16.
#[test]
fn fast_convolutions_stay_reals_between_rounded_products() {
    for seed in 0..6 {
        let mut maker = Maker { rng: Rng::with_seed(seed), graph: Graph::new("bottleneck"), count: 0 };
        let channels = maker.rng.usize(60..80);
        let shape = [maker.rng.usize(1..3), channels, 24, 4 * maker.rng.usize(6..9)];
        let input = maker.reals(&shape, 2.0);
        let x = maker.graph.input("x", TensorType::of(&input));
        let mut y = maker.conv(x, channels, 1, 1, 1);
        let first = maker.activation(false, y);
        y = maker.conv(first, channels, 3, 1, 1);
        if seed % 2 == 0 {
            y = maker.op(Binary { kind: BinaryKind::Add }, &[first, y]);
        }
        y = maker.activation(false, y);
        y = maker.conv(y, channels, 1, 1, 1);
        maker.graph.output("y", y);
        let expected = evaluate(&maker.graph, &[("x", &input)]).unwrap()[0].to_f64s();
        let largest = expected.iter().fold(0.0f64, |a, v| a.max(v.abs()));
        for &isa in Isa::available() {
            let options = Options { isa: Some(isa), precision: Precision::Bf16, ..Options::default() };
            let session = Session::new(maker.graph.clone(), options).unwrap();
            let (mut outputs, profile) = session.run_profiled(&[("x", &input)]).unwrap();
            for kernel in ["winograd.f32", "conv.bf16"] {
                assert!(profile.steps.iter().any(|s| s.step.kernel == kernel), "{kernel}: {profile}");
            }
            let found = outputs.remove(0).1.to_f64s();
            let worst = found.iter().zip(&expected).fold(0.0f64, |w, (a, b)| w.max((a - b).abs()));
            assert!(worst <= largest / 40.0, "seed {seed}, {isa}: {worst} of {largest}");
        }
    }
}
