//! Inverted residuals too large for a cache run as one step, which changes no bit.

use fastrand::Rng;
use sora_exec::{Options, Precision, Session, with_outputs};
use sora_ir::ops::{
    Activation, ActivationKind, Binary, BinaryKind, Conv, DequantizeLinear, QuantizeLinear, Unary, UnaryKind,
};
use sora_ir::{Graph, Op, TensorType, ValueId, evaluate};
use sora_kernels::Isa;
use sora_tensor::{DType, Tensor};

/// A graph under construction, of real numbers or of quantized ones.
struct Maker {
    rng: Rng,
    graph: Graph,
    count: usize,
    quantized: bool,
}

impl Maker {
    fn op(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        self.count += 1;
        self.graph.op(&format!("n{}", self.count), op.into(), inputs.iter().copied().map(Some)).unwrap()
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.count += 1;
        self.graph.constant(&format!("c{}", self.count), tensor)
    }

    fn reals(&mut self, shape: &[usize], magnitude: f32) -> Tensor {
        let len = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..len).map(|_| (self.rng.f32() * 2.0 - 1.0) * magnitude).collect();
        Tensor::from_slice(shape, &values).unwrap()
    }

    /// Quantizes to bytes and back, if this graph is quantized.
    fn rounded(&mut self, v: ValueId, scale: f32, zero: i32) -> ValueId {
        if !self.quantized {
            return v;
        }
        let (scale, zero) = (Tensor::scalar(scale), Tensor::scalar(zero as u8));
        let (scale, zero) = (self.constant(scale), self.constant(zero));
        let q = self.op(QuantizeLinear { axis: 1, to: DType::U8 }, &[v, scale, zero]);
        self.op(DequantizeLinear { axis: 1 }, &[q, scale, zero])
    }

    /// A convolution with bias, of windows padded by half.
    fn conv(&mut self, x: ValueId, out: usize, group: usize, kernel: usize, stride: usize) -> ValueId {
        let channels = self.graph.ty(x).known_shape().unwrap()[1];
        let shape = [out, channels / group, kernel, kernel];
        let magnitude = 2.0 / ((channels / group * kernel * kernel) as f32).sqrt();
        let weights = match self.quantized {
            false => self.reals(&shape, magnitude),
            true => {
                let values: Vec<i8> =
                    (0..shape.iter().product::<usize>()).map(|_| self.rng.i8(-127..=127)).collect();
                Tensor::from_slice(&shape, &values).unwrap()
            }
        };
        let mut weights = self.constant(weights);
        if self.quantized {
            let scales: Vec<f32> = (0..out).map(|_| magnitude / 127.0 * (0.5 + self.rng.f32())).collect();
            let scales = self.constant(Tensor::vector(&scales));
            weights = self.op(DequantizeLinear { axis: 0 }, &[weights, scales]);
        }
        let mut inputs = vec![x, weights];
        if !self.quantized {
            let bias = self.reals(&[out], 0.5);
            inputs.push(self.constant(bias));
        }
        let op = Conv { pads: vec![kernel / 2; 4], strides: vec![stride; 2], group, ..Conv::new(2) };
        self.op(op, &inputs)
    }
}

/// Perhaps a convolution of windows, then an inverted residual; with its input, and the values between.
fn network(seed: u64, quantized: bool) -> (Graph, Tensor, Vec<ValueId>) {
    let graph = Graph::new("inverted");
    let mut maker = Maker { rng: Rng::with_seed(seed), graph, count: 0, quantized };
    let [images, narrow] = [maker.rng.usize(1..3), maker.rng.usize(3..20)];
    let size = maker.rng.usize(40..60);
    let head = maker.rng.bool();
    let extent = if head { 2 * size } else { size };
    let shape = [images, if head { 3 } else { narrow }, extent, extent - maker.rng.usize(0..4)];
    let input = maker.reals(&shape, 2.0);
    let mut values = Vec::new();
    let x = maker.graph.input("x", TensorType::of(&input));
    let mut y = maker.rounded(x, 4.0 / 255.0, 128);
    if head {
        y = maker.conv(y, narrow, 1, 3, 2);
        y = maker.op(Unary { kind: UnaryKind::Relu }, &[y]);
        y = maker.rounded(y, 4.0 / 255.0, 0);
        values.push(y);
    }
    let short = y;
    // Bytes are fewer than what real numbers take.
    let wide = if quantized { 256 } else { 64 } + maker.rng.usize(0..40);
    let (kernel, stride) = (*maker.rng.choice(&[3, 5]).unwrap(), maker.rng.usize(1..3));
    for (group, kernel, stride) in [(1, 1, 1), (wide, kernel, stride)] {
        y = maker.conv(y, wide, group, kernel, stride);
        y = match maker.rng.u8(0..3) {
            0 if !quantized => maker.op(Unary { kind: UnaryKind::Silu }, &[y]),
            1 => maker.op(Unary { kind: UnaryKind::Relu }, &[y]),
            _ => {
                let [alpha, beta] = [0.0f32, 2.0].map(Into::into);
                maker.op(Activation { kind: ActivationKind::Clip, alpha, beta }, &[y])
            }
        };
        y = maker.rounded(y, 2.0 / 255.0, 0);
        values.push(y);
    }
    y = maker.conv(y, narrow, 1, 1, 1);
    if stride == 1 {
        y = maker.rounded(y, 4.0 / 255.0, 128);
        y = maker.op(Binary { kind: BinaryKind::Add }, &[y, short]);
    }
    y = maker.rounded(y, 6.0 / 255.0, 128);
    maker.graph.output("y", y);
    (maker.graph, input, values)
}

/// Runs a graph, and gives the result with the largest number of convolutions that one step computes.
fn run(graph: &Graph, input: &Tensor, options: &Options) -> (Tensor, usize) {
    let session = Session::new(graph.clone(), options.clone()).unwrap();
    let program = session.program(&[("x", input.shape().to_vec())]).unwrap();
    let joined = program.steps().iter().map(|step| step.kernel.split('+').count()).max();
    (session.run(&[("x", input)]).unwrap().remove(0).1, joined.unwrap())
}

#[test]
fn regions_change_no_bit() {
    for (quantized, precision) in [(false, Precision::F32), (false, Precision::Bf16), (true, Precision::F32)]
    {
        let mut most = 0;
        for seed in 0..4 {
            let (graph, input, values) = network(seed, quantized);
            let expected = evaluate(&graph, &[("x", &input)]).unwrap()[0].to_f64s();
            let largest = expected.iter().fold(1e-3f64, |a, v| a.max(v.abs()));
            // What is a result itself cannot stay within a step.
            let apart = with_outputs(&graph, &values);
            for &isa in Isa::available() {
                for threads in [1, 2] {
                    let options = Options { isa: Some(isa), threads, precision, ..Options::default() };
                    let (found, joined) = run(&graph, &input, &options);
                    most = most.max(joined);
                    // As a result, a value is not rounded to bf16.
                    if precision == Precision::F32 {
                        let apart = run(&apart, &input, &options).0;
                        assert!(found == apart, "seed {seed}, {isa}, {threads} threads");
                    }
                    let found = found.to_f64s();
                    let worst = found.iter().zip(&expected).fold(0.0f64, |w, (a, b)| w.max((a - b).abs()));
                    let bound = match (precision, quantized) {
                        (_, true) => 3.0 * 6.0 / 255.0,
                        (Precision::F32, _) => 3e-5 * largest,
                        (Precision::Bf16, _) => 5e-2 * largest,
                    };
                    assert!(worst <= bound, "seed {seed}, {isa}, {threads} threads: {worst} of {largest}");
                }
            }
        }
        assert!(most >= 3, "{most} steps at most were joined, {quantized} {precision:?}");
    }
}
