//! Values rounded to bf16 where [`Precision::Bf16`] asks for it.
//!
//! Products of real operands read both rounded and sum in `f32`. A result that only readers of bf16 wait for is stored
//! rounded, in half the memory: products, depthwise convolutions, pooling, factors per channel. Every other value stays
//! `f32`, as do the operands of Winograd's algorithm, which is taken where it beats a direct product of bf16.

use sora_ir::ops::{BinaryKind, ReduceKind};
use sora_ir::{Node, Op, ValueId};
use sora_tensor::DType;

use super::Lowering;
use super::build::Buf;
use super::chain::Chain;
use super::layout::{Encoding, Form, Layout};
use crate::Precision;
use crate::steps::elementwise::ScaleColumns;
use crate::steps::quantize::RoundBf16;

impl Lowering<'_> {
    /// Whether products multiply bf16.
    pub(crate) fn multiplies_bf16(&self) -> bool {
        self.precision == Precision::Bf16
    }

    /// The value rounded to bf16, in this layout.
    pub(crate) fn rounded(&mut self, v: ValueId, layout: Layout) -> Option<Buf> {
        if let Some(buf) = self.encoded(v, layout, Encoding::Bf16) {
            return Some(buf);
        }
        let from = self.exact(v, layout)?;
        let to = self.fresh(v, DType::BF16);
        let info = self.conversion(v, "round.bf16", DType::BF16);
        self.build.step(info, RoundBf16, &[from], &[to]);
        self.define(v, Form { buf: to, layout, encoding: Encoding::Bf16 });
        Some(to)
    }

    /// Whether the value exists rounded to bf16.
    pub(crate) fn is_rounded(&self, v: ValueId) -> bool {
        self.forms[v.index()].iter().any(|form| form.encoding == Encoding::Bf16)
    }

    /// Whether a product may store the value rounded to bf16: whoever reads it takes it so.
    pub(crate) fn stores_bf16(&self, v: ValueId) -> bool {
        let readers = self.uses[v.index()].iter().map(|&id| (id, self.graph.node(id)));
        let mut found = readers.peekable();
        self.multiplies_bf16()
            && self.dtype(v) == DType::F32
            && !self.is_output[v.index()]
            && found.peek().is_some()
            && found.all(|(id, node)| {
                node.is_some_and(|node| match &node.op {
                    Op::Binary(op) if op.kind == BinaryKind::Add => {
                        self.claimed.contains(&id) || self.follows_product(node, v)
                    }
                    _ => self.reads_bf16(node, v) || self.gates_bf16(node, v),
                })
            })
    }

    /// Whether a node scales the channels of `v`, by one factor for each of every image, for products to read.
    pub(crate) fn gates_bf16(&self, node: &Node, v: ValueId) -> bool {
        let (Op::Binary(op), &[y]) = (&node.op, &node.outputs[..]) else { return false };
        let factor = node.inputs.iter().copied().flatten().find(|&other| other != v);
        let per_channel = factor.is_some_and(|factor| self.shape(factor) == self.channels(v));
        op.kind == BinaryKind::Mul
            && per_channel
            && self.multiplies_bf16()
            && !self.is_output[y.index()]
            && !self.uses[y.index()].is_empty()
            && self.uses[y.index()]
                .iter()
                .all(|&id| self.graph.node(id).is_some_and(|node| self.reads_bf16(node, y)))
    }

    /// The shape of one number per channel and image.
    fn channels(&self, v: ValueId) -> Vec<usize> {
        let axes = |(axis, extent)| if axis < 2 { extent } else { 1 };
        self.shape(v).into_iter().enumerate().map(axes).collect()
    }

    /// A multiplication that [`Lowering::gates_bf16`], of a value that exists rounded.
    pub(super) fn gate_bf16(&mut self, node: &Node, chain: &Chain) -> Option<()> {
        let inputs = [(*node.inputs.first()?)?, (*node.inputs.get(1)?)?];
        let y = *node.outputs.first()?;
        let (v, factor) = match inputs.map(|v| self.shape(v) == self.shape(y)) {
            [true, false] => (inputs[0], inputs[1]),
            [false, true] => (inputs[1], inputs[0]),
            _ => return None,
        };
        if chain.nodes.len() > 1 || !self.is_rounded(v) || !self.gates_bf16(node, v) {
            return None;
        }
        let layout = self.last(v);
        let from = [self.rounded(v, layout)?, self.plain(factor)?];
        let to = self.fresh(y, DType::BF16);
        let (_, channels, pixels) = self.images(v, self.shape(v)[1]);
        let info = self.info("scale.bf16", &chain.nodes, Some(y), DType::BF16);
        self.build.step(info, ScaleColumns { channels, pixels }, &from, &[to]);
        self.define(y, Form { buf: to, layout, encoding: Encoding::Bf16 });
        Some(())
    }

    /// Whether a sum of `v` and a product, which will fuse it as its residual.
    fn follows_product(&self, node: &Node, v: ValueId) -> bool {
        let product = |other: ValueId| {
            let producer = self.graph.producer(other).map(|(_, node, _)| &node.op);
            matches!(producer, Some(Op::Conv(_) | Op::ConvTranspose(_))) && self.only_use(other).is_some()
        };
        node.inputs.iter().copied().flatten().any(|other| other != v && product(other))
    }

    fn reads_bf16(&self, node: &Node, v: ValueId) -> bool {
        let constant =
            |slot: usize| node.inputs.get(slot).copied().flatten().is_some_and(|i| self.is_constant(i));
        let first = node.inputs.first() == Some(&Some(v));
        match &node.op {
            Op::Conv(op) => {
                let weights = node.inputs.get(1).copied().flatten();
                let depthwise = op.group > 1 && weights.is_some_and(|w| self.shape(w)[1] == 1);
                first
                    && constant(1)
                    && (!depthwise || self.shape(v).len() == 4)
                    && !self.convolves_f32(op, node)
            }
            Op::ConvTranspose(_) | Op::MatMul(_) => first && constant(1),
            Op::MaxPool(_) => node.outputs.len() == 1,
            Op::Reduce(op) => {
                let rank = self.shape(v).len();
                op.kind == ReduceKind::Mean && rank > 2 && op.axes.len() == rank - 2
            }
            _ => false,
        }
    }
}
