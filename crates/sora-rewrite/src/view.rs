//! What rules see of a graph, and the questions they ask.

use sora_ir::{Dim, Graph, Node, NodeId, Op, TensorType, ValueId, ops};
use sora_tensor::Tensor;

/// Who reads each value: computed once per sweep and kept up to date by it, so that a change costs no look at all nodes.
#[derive(Clone, Debug)]
pub(crate) struct Uses {
    /// By value index: reading nodes, once per reading input.
    pub(crate) readers: Vec<Vec<NodeId>>,
    /// By value index: the positions of the results that it is.
    pub(crate) results: Vec<Vec<usize>>,
}

impl Uses {
    pub(crate) fn of(graph: &Graph) -> Self {
        let readers = graph.uses();
        let mut results = vec![Vec::new(); readers.len()];
        for (position, output) in graph.outputs().iter().enumerate() {
            results[output.value.index()].push(position);
        }
        Uses { readers, results }
    }

    pub(crate) fn count(&self, value: ValueId) -> usize {
        self.readers[value.index()].len() + self.results[value.index()].len()
    }

    /// Makes room for values that the graph has now.
    pub(crate) fn grow(&mut self, values: usize) {
        self.readers.resize(values, Vec::new());
        self.results.resize(values, Vec::new());
    }

    /// Makes every reader and result that uses `old` use `new`. What has no room here is not followed.
    pub(crate) fn replace(&mut self, graph: &mut Graph, old: ValueId, new: ValueId) {
        let readers = std::mem::take(&mut self.readers[old.index()]);
        let results = std::mem::take(&mut self.results[old.index()]);
        readers.iter().for_each(|&reader| graph.redirect(reader, old, new));
        results.iter().for_each(|&position| graph.set_output(position, new));
        if let (Some(all), Some(positions)) =
            (self.readers.get_mut(new.index()), self.results.get_mut(new.index()))
        {
            all.extend(readers);
            positions.extend(results);
        }
    }
}

/// A graph with the knowledge of who reads what.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The graph.
    pub graph: &'a Graph,
    pub(crate) uses: &'a Uses,
}

impl<'a> View<'a> {
    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &'a TensorType {
        self.graph.ty(value)
    }

    /// Whether exactly one input or result reads the value, so that nothing else is left when it goes.
    pub fn single_use(&self, value: ValueId) -> bool {
        self.uses.count(value) == 1
    }

    /// The operator and node behind a value, if it is the only output of an operator of type `T`.
    pub fn made_by<T: Kind>(&self, value: ValueId) -> Option<(&'a T, &'a Node)> {
        let (_, node, _) = self.graph.producer(value)?;
        Some((T::of(&node.op)?, node)).filter(|(_, node)| node.outputs.len() == 1)
    }

    /// As [`View::made_by`], for a value that nothing else reads.
    pub fn made_only_by<T: Kind>(&self, value: ValueId) -> Option<(&'a T, &'a Node)> {
        self.made_by(value).filter(|_| self.single_use(value))
    }

    /// The tensor of a constant.
    pub fn constant(&self, value: ValueId) -> Option<&'a Tensor> {
        self.graph.const_value(value)
    }

    /// The value of a constant of one element, whatever its rank.
    pub fn scalar(&self, value: ValueId) -> Option<f64> {
        let tensor = self.constant(value).filter(|t| t.len() == 1)?;
        tensor.to_f64s().first().copied()
    }

    /// The value of a float or integer constant all of whose elements are equal.
    pub fn uniform(&self, value: ValueId) -> Option<f64> {
        let tensor = self.constant(value)?;
        // Wide integers would be rounded by the comparison.
        let elements =
            if tensor.dtype().is_float() || tensor.len() == 1 { tensor.to_f64s() } else { return None };
        let (first, rest) = elements.split_first()?;
        rest.iter().all(|v| v == first).then_some(*first)
    }

    /// The elements of an integer input where all of them are known, from a constant or from shapes.
    pub fn integers(&self, value: ValueId) -> Option<Vec<i64>> {
        match self.constant(value) {
            Some(tensor) => (!tensor.dtype().is_float()).then(|| tensor.to_i64s()),
            None => self.graph.value(value).content.as_ref()?.iter().map(Dim::constant).collect(),
        }
    }
}

/// The n-th input of a node, if present.
pub(crate) fn input(node: &Node, slot: usize) -> Option<ValueId> {
    node.inputs.get(slot).copied().flatten()
}

/// The only output of a node.
pub(crate) fn output(node: &Node) -> Option<ValueId> {
    match node.outputs.as_slice() {
        [output] => Some(*output),
        _ => None,
    }
}

/// An operator type that an [`Op`] may hold.
pub trait Kind: Sized {
    /// The operator, if it is of this type.
    fn of(op: &Op) -> Option<&Self>;
}

macro_rules! kinds {
    ($($name:ident),* $(,)?) => {
        $(impl Kind for ops::$name {
            fn of(op: &Op) -> Option<&Self> {
                match op { Op::$name(op) => Some(op), _ => None }
            }
        })*
    };
}

kinds! {
    Activation, AveragePool, BatchNorm, Binary, Cast, Concat, Conv, ConvTranspose, DequantizeLinear, Expand, Flatten, Gather,
    LayerNorm, MatMul, Pad, QuantizeLinear, Reduce, Reshape, Slice, Softmax, Squeeze, Tile, Transpose, Unary, Unsqueeze,
}
