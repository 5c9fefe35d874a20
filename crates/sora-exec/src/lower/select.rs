//! The best elements along an axis, and elements written at places that are computed.

use sora_ir::ops::{Reduction, ScatterElements, ScatterNd, TopK};
use sora_ir::{Node, NodeId, ValueId, resolve_axis};
use sora_tensor::DType;

use super::Lowering;
use super::layout::Layout;
use crate::steps::movement::View;
use crate::steps::select::{AddSlices, Best, Place};

impl Lowering<'_> {
    pub(crate) fn top_k(&mut self, op: &TopK, id: NodeId, node: &Node) -> Option<()> {
        let x = (*node.inputs.first()?)?;
        let &[values, positions] = &node.outputs[..] else { return None };
        let (shape, dtype) = (self.shape(x), self.dtype(x));
        let axis = resolve_axis(op.axis, shape.len()).ok().filter(|_| Best::takes(dtype))?;
        let work = Best {
            dtype,
            extent: shape[axis],
            count: self.shape(values)[axis],
            inner: shape[axis + 1..].iter().product(),
            largest: op.largest,
        };
        let from = self.plain(x)?;
        let to = [self.fresh(values, dtype), self.fresh(positions, DType::I64)];
        let info = self.info(&format!("top_k.{dtype}"), &[id], Some(values), dtype);
        self.build.step(info, work, &[from], &to);
        self.define_exact(values, to[0], Layout::Plain);
        self.define_exact(positions, to[1], Layout::Plain);
        Some(())
    }

    pub(crate) fn scatter_elements(&mut self, op: &ScatterElements, id: NodeId, node: &Node) -> Option<()> {
        let &[Some(x), Some(indices), Some(updates)] = &node.inputs[..] else { return None };
        let y = *node.outputs.first()?;
        let (shape, dtype) = (self.shape(x), self.dtype(x));
        let axis = resolve_axis(op.axis, shape.len()).ok()?;
        let long = self.is_long(indices)?;
        if op.reduction != Reduction::Replace || ![1, 2, 4, 8].contains(&dtype.size()) {
            return None;
        }
        let mut places = View::of(&shape);
        let stride = std::mem::take(&mut places.strides[axis]) as usize;
        places.shape = self.shape(indices);
        let work = Place { places, axis: (shape[axis], stride), size: dtype.size(), long };
        let reads = [self.plain(x)?, self.plain(indices)?, self.plain(updates)?];
        let buf = self.fresh(y, dtype);
        let info = self.info("scatter", &[id], Some(y), dtype);
        self.build.step(info, work, &reads, &[buf]);
        self.define_exact(y, buf, Layout::Plain);
        Some(())
    }

    /// Slices that are added, as the gradient of a table of vectors has them.
    pub(crate) fn scatter_nd(&mut self, op: &ScatterNd, id: NodeId, node: &Node) -> Option<()> {
        let &[Some(x), Some(indices), Some(updates)] = &node.inputs[..] else { return None };
        let y = *node.outputs.first()?;
        let (shape, long) = (self.shape(x), self.is_long(indices)?);
        let taken = *self.shape(indices).last()?;
        if op.reduction != Reduction::Add || self.dtype(x) != DType::F32 || taken == 0 {
            return None;
        }
        let (extents, run) = (shape[..taken].to_vec(), shape[taken..].iter().product());
        let zeros = self.is_zero(x);
        let mut reads = if zeros { Vec::new() } else { vec![self.plain(x)?] };
        reads.extend([self.plain(indices)?, self.plain(updates)?]);
        let buf = self.fresh(y, DType::F32);
        let info = self.info("add_slices.f32", &[id], Some(y), DType::F32);
        self.build.step(info, AddSlices { extents, run, long, zeros }, &reads, &[buf]);
        self.define_exact(y, buf, Layout::Plain);
        Some(())
    }

    /// Whether indices are `i64`, else `i32`.
    fn is_long(&self, indices: ValueId) -> Option<bool> {
        match self.dtype(indices) {
            DType::I64 => Some(true),
            DType::I32 => Some(false),
            _ => None,
        }
    }
}
