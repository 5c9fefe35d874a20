//! Normalizations and softmax.

use sora_ir::ops::{BatchNorm, LayerNorm, Softmax};
use sora_ir::{Node, NodeId, resolve_axis};
use sora_kernels::elementwise::Binary as BinaryOp;
use sora_tensor::{DType, Tensor};

use super::Lowering;
use super::elementwise::{axes, pattern};
use super::layout::Layout;
use crate::steps::elementwise::Binary;
use crate::steps::movement::View;
use crate::steps::rows::{MapRows, RowFunction};

impl Lowering<'_> {
    /// A batch normalization that nothing could absorb: a factor and a shift per channel.
    pub(crate) fn batch_norm(&mut self, op: &BatchNorm, id: NodeId, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let shape = self.shape(x);
        let channels = *shape.get(1)?;
        if self.dtype(x) != DType::F32 {
            return None;
        }
        let mut parameters = Vec::new();
        for input in node.inputs.get(1..5)? {
            parameters.push(self.constant_f32((*input)?).filter(|p| p.len() == channels)?);
        }
        let [scale, bias, mean, variance] = &parameters[..] else { return None };
        let factor: Vec<f32> =
            scale.iter().zip(variance).map(|(s, v)| s / (v + op.epsilon.0).sqrt()).collect();
        let shift: Vec<f32> = bias.iter().zip(mean).zip(&factor).map(|((b, m), f)| b - m * f).collect();

        let mut layout = self.some_layout(x);
        if layout != Layout::Plain && layout != self.last(x) {
            layout = Layout::Plain;
        }
        let mut per_channel = vec![1; shape.len() - 1];
        per_channel[0] = channels;
        let view = View::of(&per_channel).broadcast(&shape).permuted(&axes(shape.len(), layout));
        let broadcast = pattern(&view)?;
        let mut from = self.exact(x, layout)?;
        for (op, values) in [(BinaryOp::Mul, factor), (BinaryOp::Add, shift)] {
            let values = self.build.constant(Tensor::vector(&values));
            let to = self.fresh(y, DType::F32);
            let info = self.info("binary.f32", &[id], Some(y), DType::F32);
            let work = Binary { op, broadcast: broadcast.clone() };
            self.build.step_in_place(info, work, &[from, values], &[to]);
            from = to;
        }
        self.define_exact(y, from, layout);
        Some(())
    }

    pub(crate) fn softmax(&mut self, op: &Softmax, id: NodeId, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let shape = self.shape(x);
        let axis = resolve_axis(op.axis, shape.len()).ok()?;
        let layout = match axis {
            _ if axis + 1 == shape.len() => Layout::Plain,
            1 => self.last(x),
            _ => return None,
        };
        let function = if op.log { RowFunction::LogSoftmax } else { RowFunction::Softmax };
        self.map_rows(function, shape[axis], layout, "softmax.f32", id, [x, y])
    }

    pub(crate) fn layer_norm(&mut self, op: &LayerNorm, id: NodeId, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let shape = self.shape(x);
        let axis = resolve_axis(op.axis, shape.len()).ok()?;
        let cols: usize = shape[axis..].iter().product();
        let mut parameters = [None, None];
        for (parameter, slot) in parameters.iter_mut().zip(1..) {
            if let Some(v) = node.inputs.get(slot).copied().flatten() {
                let (values, own) = (self.constant_f32(v)?, self.shape(v));
                let rank = own.iter().position(|&d| d != 1).map_or(0, |first| own.len() - first);
                if rank > shape.len() - axis {
                    return None;
                }
                let view = View::of(&own[own.len() - rank..]).broadcast(&shape[axis..]);
                *parameter = Some(view.offsets().into_iter().map(|at| values[at]).collect());
            }
        }
        let [scale, bias] = parameters;
        let function = RowFunction::LayerNorm { scale, bias, epsilon: op.epsilon.0 };
        self.map_rows(function, cols, Layout::Plain, "layernorm.f32", id, [x, y])
    }

    fn map_rows(
        &mut self,
        function: RowFunction,
        cols: usize,
        layout: Layout,
        kernel: &str,
        id: NodeId,
        [x, y]: [sora_ir::ValueId; 2],
    ) -> Option<()> {
        if self.dtype(x) != DType::F32 {
            return None;
        }
        let (from, to) = (self.exact(x, layout)?, self.fresh(y, DType::F32));
        let info = self.info(kernel, &[id], Some(y), DType::F32);
        self.build.step(info, MapRows { function, cols }, &[from], &[to]);
        self.define_exact(y, to, layout);
        Some(())
    }
}
