//! Values rounded to bf16 where [`Precision::Bf16`] asks for it.
//!
//! Products of real operands read both rounded and sum in `f32`. A result that only such readers wait for is stored
//! rounded, in half the memory; every other value stays `f32`.

use sora_ir::ops::{BinaryKind, ReduceKind};
use sora_ir::{Node, Op, ValueId};
use sora_tensor::DType;

use super::Lowering;
use super::build::Buf;
use super::layout::{Encoding, Form, Layout};
use crate::Precision;
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
                    _ => self.reads_bf16(node, v),
                })
            })
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
                let depthwise = node.inputs.get(1).copied().flatten().is_some_and(|w| self.shape(w)[1] == 1);
                first && constant(1) && !(depthwise && op.group > 1)
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
