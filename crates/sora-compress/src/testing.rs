//! What several test modules share.

use sora_ir::ops::{Binary, BinaryKind, Conv, MatMul, MaxPool, Op, Reshape, Softmax, Unary, UnaryKind};
use sora_ir::{Graph, TensorType, ValueId};
use sora_tensor::{DType, Tensor};

use crate::Progress;

/// A seeded source of random numbers.
pub(crate) struct Random(fastrand::Rng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(fastrand::Rng::with_seed(seed))
    }

    /// Uniform in `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0.usize(0..n)
    }

    /// Uniform in `low..high`.
    pub(crate) fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.0.f64()
    }

    /// Standard normal, by Box and Muller's transform.
    pub(crate) fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.0.f64(), self.0.f64());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Normal values of this standard deviation.
    pub(crate) fn tensor(&mut self, shape: &[usize], deviation: f64) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| (self.normal() * deviation) as f32).collect();
        Tensor::from_slice(shape, &values).unwrap()
    }
}

/// Ignores everything.
pub(crate) struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}

/// Builds small networks on an input `x`, node by node.
pub(crate) struct Net {
    pub(crate) graph: Graph,
    pub(crate) random: Random,
}

impl Net {
    /// A network on `x` of `[batch, shape…]` with a symbolic batch.
    pub(crate) fn new(seed: u64, shape: &[usize]) -> (Self, ValueId) {
        let mut graph = Graph::new("net");
        let dims = std::iter::once(sora_ir::Dim::symbol("batch")).chain(shape.iter().map(|&d| d.into()));
        let x = graph.input("x", TensorType::new(DType::F32, dims));
        (Net { graph, random: Random::new(seed) }, x)
    }

    pub(crate) fn op(&mut self, name: &str, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        self.graph.op(name, op, inputs.iter().copied()).unwrap()
    }

    /// A 3×3 convolution with padding, He-scaled weights and a bias.
    pub(crate) fn conv(&mut self, name: &str, x: ValueId, channels: usize) -> ValueId {
        let depth = self.graph.ty(x).shape[1].known().unwrap();
        let w = self.random.tensor(&[channels, depth, 3, 3], (2.0 / (9 * depth) as f64).sqrt());
        let b = self.random.tensor(&[channels], 0.1);
        self.conv_of(name, x, w, b)
    }

    /// A 3×3 convolution with padding.
    pub(crate) fn conv_of(&mut self, name: &str, x: ValueId, w: Tensor, b: Tensor) -> ValueId {
        let w = self.graph.constant(&format!("{name}.w"), w);
        let b = self.graph.constant(&format!("{name}.b"), b);
        self.op(name, Conv { pads: vec![1; 4], ..Conv::new(2) }, &[x, w, b])
    }

    pub(crate) fn relu(&mut self, name: &str, x: ValueId) -> ValueId {
        self.op(name, Unary { kind: UnaryKind::Relu }, &[x])
    }

    pub(crate) fn add(&mut self, name: &str, a: ValueId, b: ValueId) -> ValueId {
        self.op(name, Binary { kind: BinaryKind::Add }, &[a, b])
    }

    /// 2×2 maximum pooling.
    pub(crate) fn pool(&mut self, name: &str, x: ValueId) -> ValueId {
        let (kernel, strides) = (vec![2; 2], vec![2; 2]);
        let op = MaxPool { kernel, strides, pads: vec![0; 4], dilations: vec![1; 2], ceil_mode: false };
        self.op(name, op, &[x])
    }

    /// `[batch, …]` to `[batch, features]`.
    pub(crate) fn flatten(&mut self, name: &str, x: ValueId, features: usize) -> ValueId {
        let features = i64::try_from(features).unwrap();
        let shape = self.graph.constant(&format!("{name}.shape"), Tensor::vector(&[-1i64, features]));
        self.op(name, Reshape { allow_zero: false }, &[x, shape])
    }

    /// A dense layer: a product and a bias.
    pub(crate) fn dense(&mut self, name: &str, x: ValueId, features: usize) -> ValueId {
        let depth = self.graph.ty(x).shape[1].known().unwrap();
        let w = self.random.tensor(&[depth, features], (2.0 / depth as f64).sqrt());
        let b = self.random.tensor(&[features], 0.1);
        let w = self.graph.constant(&format!("{name}.w"), w);
        let b = self.graph.constant(&format!("{name}.b"), b);
        let product = self.op(name, MatMul {}, &[x, w]);
        self.add(&format!("{name}.add"), product, b)
    }

    pub(crate) fn softmax(&mut self, name: &str, x: ValueId) -> ValueId {
        self.op(name, Softmax { axis: -1, log: false }, &[x])
    }

    /// The network with `y` as its output.
    pub(crate) fn done(mut self, y: ValueId) -> Graph {
        self.graph.output("y", y);
        sora_ir::verify(&self.graph).unwrap();
        self.graph
    }
}
