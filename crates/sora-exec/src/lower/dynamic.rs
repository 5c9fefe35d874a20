//! Values quantized over ranges found at run time.
//!
//! A `DequantizeLinear` of such bytes costs nothing here: products read the bytes and the scales
//! ([`Lowering::dynamic`]), and real numbers come into being when someone asks for them.

use sora_ir::ops::DynamicQuantizeLinear;
use sora_ir::{Node, NodeId, Op, ValueId, resolve_axis};
use sora_tensor::{DType, Tensor};

use super::Lowering;
use super::build::Buf;
use super::layout::Layout;
use crate::steps::dynamic::{DynamicDequantize, DynamicQuantize};

/// Unsigned bytes in plain order with scale and zero point of each row, or one of each for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dynamic {
    pub(crate) bytes: Buf,
    pub(crate) scales: Buf,
    pub(crate) zero_points: Buf,
    /// Elements that share a scale.
    pub(crate) cols: usize,
}

impl Dynamic {
    /// What a step reads.
    pub(crate) fn reads(&self) -> [Buf; 3] {
        [self.bytes, self.scales, self.zero_points]
    }
}

impl Lowering<'_> {
    pub(crate) fn dynamic_quantize(
        &mut self,
        op: &DynamicQuantizeLinear,
        id: NodeId,
        node: &Node,
    ) -> Option<()> {
        let (x, &[q, scale, zero_point]) = ((*node.inputs.first()?)?, &node.outputs[..]) else { return None };
        let cols = if op.rows { *self.shape(x).last()? } else { self.len(x) };
        let from = self.plain(x)?;
        let writes = [(q, DType::U8), (scale, DType::F32), (zero_point, DType::U8)];
        let writes = writes.map(|(v, dtype)| (v, self.fresh(v, dtype)));
        let info = self.info("quantize.dynamic", &[id], Some(q), DType::U8);
        self.build.step(info, DynamicQuantize { cols }, &[from], &writes.map(|(_, buf)| buf));
        for (v, buf) in writes {
            self.define_exact(v, buf, Layout::Plain);
        }
        Some(())
    }

    /// A `DequantizeLinear` whose scale is known at run time only, one for all or one per row.
    pub(crate) fn dynamic_dequantize(&mut self, node: &Node) -> Option<()> {
        let Op::DequantizeLinear(op) = &node.op else { return None };
        let input = |slot: usize| node.inputs.get(slot).copied().flatten();
        let (x, scale, y) = (input(0)?, input(1)?, *node.outputs.first()?);
        let shape = self.shape(x);
        let cols = match (self.len(scale), shape.last()) {
            (1, _) => self.len(x),
            // Blocks of whole rows: of a scale's last axis one is left.
            (_, Some(&last))
                if shape.len() > 1 && self.shape(scale) == [&shape[..shape.len() - 1], &[1]].concat() =>
            {
                (resolve_axis(op.axis, shape.len()).ok()? + 1 == shape.len()).then_some(last)?
            }
            _ => return None,
        };
        if self.dtype(x) != DType::U8 || self.dtype(scale) != DType::F32 {
            return None;
        }
        let zero_points = match input(2) {
            Some(zero_point) => self.plain(zero_point)?,
            None => self.build.constant(Tensor::zeros(DType::U8, &self.shape(scale)).ok()?),
        };
        let (bytes, scales) = (self.plain(x)?, self.plain(scale)?);
        self.dynamics.insert(y, Dynamic { bytes, scales, zero_points, cols });
        Some(())
    }

    /// The bytes behind a value, if it was quantized at run time.
    pub(crate) fn dynamic(&self, v: ValueId) -> Option<Dynamic> {
        self.dynamics.get(&v).copied()
    }

    /// Makes the real numbers of a value that was quantized at run time.
    pub(crate) fn materialize_dynamic(&mut self, v: ValueId, dynamic: Dynamic) {
        let to = self.fresh(v, DType::F32);
        let info = self.conversion(v, "dequantize.dynamic", DType::F32);
        self.build.step(info, DynamicDequantize { cols: dynamic.cols }, &dynamic.reads(), &[to]);
        self.define_exact(v, to, Layout::Plain);
    }
}
