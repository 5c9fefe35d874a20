//! Resizing of images, in the layout that they have.

use sora_ir::ops::{Interpolation, Resize, Taps};
use sora_ir::{Node, NodeId};
use sora_kernels::resize::Pixels;
use sora_tensor::DType;

use super::Lowering;
use super::elementwise::axes;
use super::layout::{Encoding, Form, Layout};
use crate::steps::resize::{Axis, Element, Resize as Step};

/// The elements along an axis, if each is made of one or two; all as they are without taps.
fn pairs(extent: usize, taps: Option<&Vec<Taps>>) -> Option<Axis> {
    let mut axis = Axis::default();
    let mut push = |low: usize, high: usize, weight: f64| {
        axis.low.push(u32::try_from(low).ok()?);
        axis.high.push(u32::try_from(high).ok()?);
        axis.weight.push(weight as f32);
        Some(())
    };
    match taps {
        None => (0..extent).try_for_each(|at| push(at, at, 0.0))?,
        Some(taps) => {
            for taps in taps {
                match taps[..] {
                    [(at, _)] => push(at, at, 0.0)?,
                    [(low, _), (high, weight)] => push(low, high, weight)?,
                    _ => return None,
                }
            }
        }
    }
    Some(axis)
}

impl Lowering<'_> {
    /// Nearest elements of any encoding, and linear interpolation of two neighbours along one or two adjacent axes.
    pub(crate) fn resize(&mut self, op: &Resize, id: NodeId, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let mut given = [None, None, None];
        for (given, input) in given.iter_mut().zip(node.inputs.iter().skip(1)) {
            if let Some(v) = input {
                *given = Some(self.constant(*v)?);
            }
        }
        let (before, after) = (self.shape(x), self.shape(y));
        let taps = op.taps(&before, &after, given.each_ref().map(Option::as_ref)).ok()?;
        let nearest = op.interpolation == Interpolation::Nearest;
        let encoding = match nearest {
            true => self.any_encoding(x),
            false if self.dtype(x) == DType::F32 => Encoding::Exact,
            false => return None,
        };
        // Bytes that are to be interpolated would have to be rounded again: numbers are exact.
        let layout = self.some_layout(x);
        let layout = if layout == self.last(x) && before.len() > 2 { layout } else { Layout::Plain };
        let order = axes(before.len(), layout);
        let resized: Vec<usize> = (0..order.len()).filter(|&at| taps[order[at]].is_some()).collect();
        let (first, second) = match resized[..] {
            [] => (before.len().checked_sub(2)?, before.len() - 1),
            [at] if at > 0 => (at - 1, at),
            [at] if order.len() > 1 => (at, at + 1),
            [a, b] if b == a + 1 => (a, b),
            _ => return None,
        };
        let axis = |at: usize| pairs(before[order[at]], taps[order[at]].as_ref());
        let (rows, columns) = (axis(first)?, axis(second)?);
        let from = match nearest {
            true => self.encoded(x, layout, encoding)?,
            false => self.exact(x, layout)?,
        };
        let dtype = self.stored(y, encoding);
        let element = if nearest { Element::Nearest(dtype.size()) } else { Element::F32 };
        let inner = order[second + 1..].iter().map(|&a| before[a]).product();
        let from_pixels = Pixels { height: before[order[first]], width: before[order[second]], inner };
        let work = Step { from: from_pixels, rows, columns, element };
        let buf = self.fresh(y, dtype);
        let kernel = if nearest { "resize.nearest" } else { "resize.linear" };
        let info = self.info(kernel, &[id], Some(y), dtype);
        self.build.step(info, work, &[from], &[buf]);
        let layout = if layout == Layout::Plain { Layout::Plain } else { self.last(y) };
        self.define(y, Form { buf, layout, encoding });
        Some(())
    }
}
