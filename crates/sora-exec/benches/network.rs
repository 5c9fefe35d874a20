//! Time per step of a small convolutional network (that of `examples/fashion-mnist`, with random weights), in
//! `f32` and quantized: `cargo bench -p sora-exec --bench network`.

use std::time::Instant;

use sora_exec::{Options, Session};
use sora_ir::ops::{
    Binary, BinaryKind, Conv, DequantizeLinear, MatMul, MaxPool, QuantizeLinear, Reshape, Softmax, Transpose,
    Unary, UnaryKind,
};
use sora_ir::{Graph, IrError, Op, TensorType, ValueId};
use sora_tensor::{DType, Tensor};

struct Maker {
    graph: Graph,
    rng: fastrand::Rng,
    quantized: bool,
}

impl Maker {
    fn op(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId, IrError> {
        let op = op.into();
        let name = self.graph.fresh_name(op.name());
        self.graph.op(&name, op, inputs.iter().copied().map(Some))
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        let name = self.graph.fresh_name("constant");
        self.graph.constant(&name, tensor)
    }

    fn weights(&mut self, shape: &[usize], axis: usize) -> Result<ValueId, IrError> {
        let len: usize = shape.iter().product();
        if !self.quantized {
            let values: Vec<f32> = (0..len).map(|_| self.rng.f32() * 0.1 - 0.05).collect();
            return Ok(self.constant(Tensor::from_slice(shape, &values).expect("as many values")));
        }
        let values: Vec<i8> = (0..len).map(|_| self.rng.i8(-127..=127)).collect();
        let values = self.constant(Tensor::from_slice(shape, &values).expect("as many values"));
        let scales = self.constant(Tensor::vector(&vec![4e-4f32; shape[axis]]));
        self.op(DequantizeLinear { axis: axis as i64 }, &[values, scales])
    }

    fn quantize(&mut self, v: ValueId) -> Result<ValueId, IrError> {
        if !self.quantized {
            return Ok(v);
        }
        let scale = self.constant(Tensor::scalar(0.01f32));
        let zero = self.constant(Tensor::scalar(0u8));
        let q = self.op(QuantizeLinear { axis: 1, to: DType::U8 }, &[v, scale, zero])?;
        self.op(DequantizeLinear { axis: 1 }, &[q, scale, zero])
    }

    /// Convolution or product, bias, activation.
    fn layer(
        &mut self,
        op: impl Into<Op>,
        x: ValueId,
        weights: &[usize],
        axis: usize,
    ) -> Result<ValueId, IrError> {
        let w = self.weights(weights, axis)?;
        let n = weights[axis];
        let y = self.op(op, &[x, w])?;
        let shape = if weights.len() > 2 { vec![n, 1, 1] } else { vec![n] };
        let bias = self.constant(Tensor::from_slice(&shape, &vec![0.1f32; n]).expect("n values"));
        let y = self.op(Binary { kind: BinaryKind::Add }, &[y, bias])?;
        let y = self.op(Unary { kind: UnaryKind::Relu }, &[y])?;
        self.quantize(y)
    }

    fn pool(&mut self, x: ValueId) -> Result<ValueId, IrError> {
        let (kernel, strides) = (vec![2, 2], vec![2, 2]);
        let op = MaxPool { kernel, strides, pads: vec![0; 4], dilations: vec![1, 1], ceil_mode: false };
        self.op(op, &[x])
    }

    fn network(mut self, batch: usize) -> Result<Graph, IrError> {
        let x = self.graph.input("x", TensorType::new(DType::F32, [batch, 28, 28, 1]));
        let x = self.op(Transpose { perm: vec![0, 3, 1, 2] }, &[x])?;
        let y = self.quantize(x)?;
        let y = self.layer(Conv::new(2), y, &[32, 1, 3, 3], 0)?;
        let y = self.pool(y)?;
        let y = self.layer(Conv::new(2), y, &[64, 32, 3, 3], 0)?;
        let y = self.pool(y)?;
        let y = self.op(Transpose { perm: vec![0, 2, 3, 1] }, &[y])?;
        let shape = self.constant(Tensor::vector(&[batch as i64, 1600]));
        let y = self.op(Reshape { allow_zero: false }, &[y, shape])?;
        let y = self.layer(MatMul {}, y, &[1600, 128], 1)?;
        let y = self.layer(MatMul {}, y, &[128, 10], 1)?;
        let y = self.op(Softmax { axis: -1, log: false }, &[y])?;
        self.graph.output("y", y);
        Ok(self.graph)
    }
}

fn main() {
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (batch, threads) = (number("BATCH", 1), number("THREADS", 1));
    for quantized in [false, true] {
        let maker = Maker { graph: Graph::new("network"), rng: fastrand::Rng::with_seed(1), quantized };
        let graph = maker.network(batch).expect("the network is well formed");
        let session =
            Session::new(graph, Options { threads, ..Options::default() }).expect("the options hold");
        let values: Vec<f32> = (0..batch * 784).map(|i| (i % 17) as f32 / 17.0).collect();
        let input = Tensor::from_slice(&[batch, 28, 28, 1], &values).expect("as many values");
        let given = [("x", &input)];
        let (_, mut best) = session.run_profiled(&given).expect("the network runs");
        let mut times = Vec::new();
        for _ in 0..2000 / batch {
            best.keep_fastest(&session.run_profiled(&given).expect("the network runs").1);
            let start = Instant::now();
            session.run(&given).expect("the network runs");
            times.push(start.elapsed());
        }
        times.sort();
        let program = session.program(&[("x", input.shape().to_vec())]).expect("compiled before");
        println!(
            "{} on {}, batch {batch}, {threads} threads",
            if quantized { "int8" } else { "f32" },
            session.isa()
        );
        println!("{best}");
        println!(
            "median {:?}, least {:?}; arena {} bytes, weights {} bytes\n",
            times[times.len() / 2],
            times[0],
            program.arena_bytes(),
            program.weight_bytes()
        );
    }
}
