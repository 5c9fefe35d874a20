//! A short way to write down the graphs that rules are sampled on.

use sora_ir::case::Gen;
use sora_ir::ops::{Binary, BinaryKind, Transpose, Unary, UnaryKind};
use sora_ir::{Dim, Graph, IrError, Op, TensorType, ValueId};
use sora_tensor::{DType, Tensor};

/// A graph under construction, its constants random.
pub(crate) struct Sketch<'a> {
    pub(crate) rng: &'a mut Gen,
    graph: Graph,
    batch: Dim,
    count: usize,
}

impl<'a> Sketch<'a> {
    pub(crate) fn new(rng: &'a mut Gen) -> Self {
        let batch = if rng.flag() { Dim::symbol("N") } else { Dim::from(rng.size(1, 3)) };
        Sketch { rng, graph: Graph::new("sample"), batch, count: 0 }
    }

    fn name(&mut self, base: &str) -> String {
        self.count += 1;
        format!("{base}{}", self.count)
    }

    /// An `f32` input of this shape.
    pub(crate) fn input(&mut self, shape: &[usize]) -> ValueId {
        self.shaped(shape.iter().copied().map(Dim::from))
    }

    /// An `f32` input of this shape behind a batch dimension, which in half of the graphs is the symbol `N`.
    pub(crate) fn batched(&mut self, shape: &[usize]) -> ValueId {
        self.shaped([self.batch.clone()].into_iter().chain(shape.iter().copied().map(Dim::from)))
    }

    /// An `f32` input of this symbolic shape.
    pub(crate) fn shaped(&mut self, shape: impl IntoIterator<Item = Dim>) -> ValueId {
        let name = self.name("x");
        self.graph.input(&name, TensorType::new(DType::F32, shape))
    }

    /// A constant of typical values.
    pub(crate) fn weights(&mut self, shape: &[usize]) -> ValueId {
        self.between(shape, -2.0, 2.0)
    }

    /// A constant of values in `low..high`.
    pub(crate) fn between(&mut self, shape: &[usize], low: f64, high: f64) -> ValueId {
        let tensor = self.rng.uniform(DType::F32, shape, low, high);
        self.constant(tensor)
    }

    pub(crate) fn constant(&mut self, tensor: Tensor) -> ValueId {
        let name = self.name("c");
        self.graph.constant(&name, tensor)
    }

    /// An `f32` constant of one element, of rank 0 or 1.
    pub(crate) fn scalar(&mut self, value: f64) -> ValueId {
        let shape: &[usize] = if self.rng.flag() { &[] } else { &[1] };
        let tensor = Tensor::from_f64s(DType::F32, shape, &[value]).expect("one element");
        self.constant(tensor)
    }

    /// An `f32` constant of rank 0.
    pub(crate) fn scalar_of_rank_0(&mut self, value: f64) -> ValueId {
        let tensor = Tensor::from_f64s(DType::F32, &[], &[value]).expect("one element");
        self.constant(tensor)
    }

    /// A vector of integers, as shapes and axes are given.
    pub(crate) fn integers(&mut self, values: &[i64]) -> ValueId {
        self.constant(Tensor::vector(values))
    }

    pub(crate) fn op<I: Into<Option<ValueId>>>(
        &mut self,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = I>,
    ) -> Result<ValueId, IrError> {
        let name = self.name("n");
        self.graph.op(&name, op, inputs)
    }

    pub(crate) fn unary(&mut self, kind: UnaryKind, x: ValueId) -> Result<ValueId, IrError> {
        self.op(Unary { kind }, [x])
    }

    pub(crate) fn binary(&mut self, kind: BinaryKind, a: ValueId, b: ValueId) -> Result<ValueId, IrError> {
        self.op(Binary { kind }, [a, b])
    }

    /// As [`Sketch::binary`], the operands in either order.
    pub(crate) fn either(&mut self, kind: BinaryKind, a: ValueId, b: ValueId) -> Result<ValueId, IrError> {
        if self.rng.flag() { self.binary(kind, a, b) } else { self.binary(kind, b, a) }
    }

    pub(crate) fn transpose(&mut self, perm: &[usize], x: ValueId) -> Result<ValueId, IrError> {
        self.op(Transpose { perm: perm.to_vec() }, [x])
    }

    /// A random order of `rank` axes other than the identity.
    pub(crate) fn permutation(&mut self, rank: usize) -> Vec<usize> {
        loop {
            let mut perm: Vec<usize> = (0..rank).collect();
            for i in (1..rank).rev() {
                perm.swap(i, self.rng.size(0, i));
            }
            if !perm.is_sorted() {
                return perm;
            }
        }
    }

    /// Makes a value a result of the graph besides [`Sketch::done`].
    pub(crate) fn also(&mut self, value: ValueId) {
        let name = self.name("also");
        self.graph.output(&name, value);
    }

    /// The graph whose result is `value`, half of the time behind one more node.
    pub(crate) fn done(mut self, value: ValueId) -> Result<Graph, IrError> {
        let float = self.graph.ty(value).dtype.is_float();
        let value = if float && self.rng.flag() { self.unary(UnaryKind::Abs, value)? } else { value };
        self.graph.output("y", value);
        Ok(self.graph)
    }

    /// The graph whose result is `value` itself.
    pub(crate) fn done_plainly(mut self, value: ValueId) -> Graph {
        self.graph.output("y", value);
        self.graph
    }
}
