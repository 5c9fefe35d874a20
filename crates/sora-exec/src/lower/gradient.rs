//! Patterns of gradients that one kernel computes.

use sora_ir::ops::{BinaryKind, Conv, Distribution, MaxPoolIndices, Random, Reduction, ScatterElements};
use sora_ir::{Node, NodeId, Op, ValueId};
use sora_tensor::DType;

use super::Lowering;
use super::chain::Chain;
use super::elementwise::axes;
use super::layout::Layout;
use crate::steps::gradient::{ColumnSums, Correlate, CorrelateDepthwise, Gate, MaxGradient, Uniform};
use crate::steps::movement::{CopyView, View};
use crate::steps::window::{Geometry, Windows};

/// Channels below which neighbouring taps of windows without padding are read as one piece.
const NARROW: usize = 16;

impl Lowering<'_> {
    /// Whether `v` exchanges the first two axes and only convolutions between computed values read it: the operands of
    /// the gradient with respect to a convolution's weights, which [`Lowering::correlation`] reads as they were.
    pub(crate) fn is_correlated(&self, v: ValueId, perm: &[usize]) -> bool {
        let exchange = perm.len() > 2 && perm[..2] == [1, 0] && perm[2..].iter().copied().eq(2..perm.len());
        let mut readers = self.uses[v.index()].iter().filter_map(|&id| self.graph.node(id));
        let live = |node: &Node| node.inputs.iter().flatten().all(|&v| !self.is_constant(v));
        let correlates = |node: &Node| match &node.op {
            Op::Conv(_) => live(node),
            // The groups of a depthwise one.
            Op::Reshape(_) => node.outputs.iter().flat_map(|y| &self.uses[y.index()]).all(|&id| {
                self.graph
                    .node(id)
                    .is_some_and(|node| matches!(&node.op, Op::Conv(op) if op.group > 1 && live(node)))
            }),
            _ => false,
        };
        exchange && self.dtype(v) == DType::F32 && !self.is_output[v.index()] && readers.all(correlates)
    }

    /// The gradient of a convolution with respect to its weights, which the graph writes as a convolution of channels
    /// over samples with the whole gradient as its window.
    pub(crate) fn correlation(&mut self, op: &Conv, id: NodeId, node: &Node, chain: &Chain) -> Option<()> {
        let (&[Some(x), Some(dy)], &[y]) = (&node.inputs[..], &node.outputs[..]) else { return None };
        let exchanged = |v: ValueId| {
            let (source, view) = self.views.get(&v)?;
            let mut perm: Vec<usize> = (0..view.shape.len()).collect();
            perm.swap(0, 1);
            (*view == View::of(&self.shape(*source)).permuted(&perm)).then_some(*source)
        };
        let dy = exchanged(dy)?;
        let depthwise = op.group > 1;
        // The channels of a depthwise convolution are the groups, side by side.
        let x = match self.graph.producer(x) {
            Some((_, Node { op: Op::Reshape(_), inputs, .. }, _)) if depthwise => {
                exchanged((*inputs.first()?)?)?
            }
            _ => exchanged(x)?,
        };
        let (input, steps, result) = (self.shape(x), self.shape(dy), self.shape(y));
        let (images, channels, n) = (input[0], input[1], steps[1]);
        if chain.nodes.len() > 1 || depthwise && (channels != op.group || n != channels) {
            return None;
        }
        let (pads, kernel) = (&op.pads[..op.strides.len()], &result[2..]);
        let mut geometry = Geometry {
            input: input[2..].to_vec(),
            kernel: kernel.to_vec(),
            strides: op.dilations.clone(),
            dilations: op.strides.clone(),
            pads: pads.to_vec(),
            output: steps[2..].to_vec(),
        };
        let (width, dilation) = (*kernel.last()?, *op.strides.last()?);
        let whole = geometry.pads.iter().chain(&geometry.pads_behind()).all(|&pad| pad == 0);
        let merged = if whole && dilation == 1 && channels < NARROW && !depthwise { width } else { 1 };
        *geometry.kernel.last_mut()? = width / merged;
        let windows = Windows::new(&geometry, images, channels, channels * merged, true)?;

        let (layout, dy_layout) = (self.last(x), self.last(dy));
        let (x, dy) = (self.exact(x, layout)?, self.exact(dy, dy_layout)?);
        let taps: usize = kernel.iter().product();
        let channels = if depthwise { 1 } else { channels };
        let sums = self.build.arena(taps * channels * n * 4);
        if depthwise {
            let info = self.info("correlate_depthwise.f32", &[id], Some(y), DType::F32);
            self.build.step(info, CorrelateDepthwise { windows }, &[x, dy], &[sums]);
        } else {
            let info = self.info("correlate.f32", &[id], Some(y), DType::F32);
            self.build.step(info, Correlate { windows, n }, &[x, dy], &[sums]);
        }
        // Sums are [taps, channels, n]; the result is [channels, n, taps], and mostly exchanged again.
        let view = View::of(&[taps, channels, n]).permuted(&[1, 2, 0]);
        let again = self.only_use(y).filter(|id| !self.claimed.contains(id));
        let again = again.and_then(|id| Some((id, self.graph.node(id)?)));
        let (view, result) = match again {
            Some((id, Node { op: Op::Transpose(op), outputs, .. }))
                if op.perm.len() > 2
                    && op.perm[..2] == [1, 0]
                    && op.perm[2..].iter().copied().eq(2..op.perm.len()) =>
            {
                self.claimed.insert(id);
                (view.permuted(&[1, 0, 2]), *outputs.first()?)
            }
            _ => (view, y),
        };
        let buf = self.fresh(result, DType::F32);
        let info = self.conversion(result, "transpose", DType::F32);
        self.build.step(info, CopyView { view: view.collapsed(), size: 4 }, &[sums], &[buf]);
        self.define_exact(result, buf, Layout::Plain);
        Some(())
    }

    /// The gradient of a maximum pool, which the graph writes as an addition of what flows back at the positions of the
    /// maxima, in a line of zeros that takes the shape of the input behind.
    pub(crate) fn scatter(&mut self, op: &ScatterElements, id: NodeId, node: &Node) -> Option<()> {
        let (&[Some(zeros), Some(positions), Some(sent)], &[line]) = (&node.inputs[..], &node.outputs[..])
        else {
            return None;
        };
        let behind = |v: ValueId| match self.graph.producer(v)?.1 {
            Node { op: Op::Reshape(_), inputs, .. } => *inputs.first()?,
            _ => None,
        };
        let (positions, dy) = (behind(positions)?, behind(sent)?);
        let Node { op: Op::MaxPoolIndices(pool), inputs, .. } = self.graph.producer(positions)?.1 else {
            return None;
        };
        let MaxPoolIndices { kernel, strides, pads, dilations, column_major, .. } = pool;
        let x = (*inputs.first()?)?;
        let shaped = self.only_use(line).filter(|id| !self.claimed.contains(id))?;
        let (op_behind, result) = match self.graph.node(shaped)? {
            Node { op: Op::Reshape(_), outputs, .. } => (shaped, *outputs.first()?),
            _ => return None,
        };
        let adds = op.reduction == Reduction::Add && op.axis == 0 && !column_major && self.is_zero(zeros);
        if !adds || self.dtype(x) != DType::F32 || self.shape(result) != self.shape(x) {
            return None;
        }
        let (input, steps) = (self.shape(x), self.shape(positions));
        // What flows back may have any shape by images.
        if self.shape(dy).first() != input.first() {
            return None;
        }
        let geometry = Geometry {
            input: input[2..].to_vec(),
            kernel: kernel.clone(),
            strides: strides.clone(),
            dilations: dilations.clone(),
            pads: pads[..kernel.len()].to_vec(),
            output: steps[2..].to_vec(),
        };
        let windows = Windows::new(&geometry, input[0], input[1], input[1], true)?;
        let layout = self.last(x);
        let (from, dy) = (self.exact(x, layout)?, self.exact(dy, layout)?);
        let buf = self.fresh(result, DType::F32);
        let info = self.info("maxpool_gradient.f32", &[id, op_behind], Some(result), DType::F32);
        self.build.step(info, MaxGradient { windows }, &[from, dy], &[buf]);
        self.claimed.insert(op_behind);
        self.define_exact(result, buf, layout);
        Some(())
    }

    /// Whether every element of a value is 0: a constant, or one that is repeated.
    pub(super) fn is_zero(&self, v: ValueId) -> bool {
        let source = match self.graph.producer(v) {
            Some((_, Node { op: Op::Expand(_), inputs, .. }, _)) => inputs.first().copied().flatten(),
            _ => Some(v),
        };
        let tensor = source.and_then(|v| self.graph.const_value(v));
        tensor.is_some_and(|tensor| tensor.to_f64s().iter().all(|&x| x == 0.0))
    }

    /// What flows back through a ReLU, or one of the bounds of a clip: the operand of `Where` whose condition compares another value with a number.
    pub(crate) fn gate(&mut self, id: NodeId, node: &Node) -> Option<()> {
        let (&[Some(condition), Some(dy), Some(zero)], &[result]) = (&node.inputs[..], &node.outputs[..])
        else {
            return None;
        };
        let compare = self.graph.producer(condition)?.1;
        let Op::Binary(op) = &compare.op else { return None };
        let (y, limit) = ((*compare.inputs.first()?)?, (*compare.inputs.get(1)?)?);
        let limit = self.graph.const_value(limit).filter(|t| t.len() == 1 && t.dtype() == DType::F32)?;
        let limit = *limit.to_f32s().first()?;
        let greater = match op.kind {
            BinaryKind::Greater => true,
            BinaryKind::Less => false,
            _ => return None,
        };
        let shapes = self.shape(y) == self.shape(result) && self.shape(dy) == self.shape(result);
        if !shapes || self.dtype(dy) != DType::F32 || !self.is_zero(zero) {
            return None;
        }
        let layout = self.some_layout(dy);
        let (y, dy) = (self.exact(y, layout)?, self.exact(dy, layout)?);
        let buf = self.fresh(result, DType::F32);
        let info = self.info("gate.f32", &[id], Some(result), DType::F32);
        self.build.step(info, Gate { greater, limit }, &[y, dy], &[buf]);
        self.define_exact(result, buf, layout);
        Some(())
    }

    /// A sum over the axes that lie outermost in memory: of each column of a matrix.
    pub(crate) fn reduce_columns(
        &mut self,
        [x, y]: [ValueId; 2],
        reduced: &[usize],
        squared: bool,
        mean: bool,
        chain: &Chain,
    ) -> Option<()> {
        let shape = self.shape(x);
        let layout = match self.some_layout(x) {
            layout if layout == self.last(x) => layout,
            _ => Layout::Plain,
        };
        let order = axes(shape.len(), layout);
        let (outer, kept) = order.split_at(reduced.len());
        let outermost = outer.iter().all(|axis| reduced.contains(axis));
        if self.dtype(x) != DType::F32 || !outermost || kept.is_empty() || !kept.is_sorted() {
            return None;
        }
        let cols: usize = kept.iter().map(|&axis| shape[axis]).product();
        let factor = if mean { cols as f32 / self.len(x) as f32 } else { 1.0 };
        let (from, buf) = (self.exact(x, layout)?, self.fresh(y, DType::F32));
        let info = self.info("reduce_columns.f32", &chain.nodes, Some(y), DType::F32);
        self.build.step(info, ColumnSums { cols, squared, factor }, &[from], &[buf]);
        self.define_exact(y, buf, Layout::Plain);
        Some(())
    }

    /// Uniform random numbers, other ones in every run that is given another integer.
    pub(crate) fn random(&mut self, op: &Random, id: NodeId, node: &Node) -> Option<()> {
        let y = *node.outputs.first()?;
        if op.from != Distribution::Uniform || op.dtype != DType::F32 {
            return None;
        }
        let run = match node.inputs.get(1).copied().flatten() {
            Some(run) => vec![self.plain(run)?],
            None => Vec::new(),
        };
        let buf = self.fresh(y, DType::F32);
        let info = self.info("random.f32", &[id], Some(y), DType::F32);
        self.build.step(info, Uniform { op: op.clone() }, &run, &[buf]);
        self.define_exact(y, buf, Layout::Plain);
        Some(())
    }
}
