//! Operators that move elements: reshapes cost nothing, the rest copies bytes in whatever encoding they have.

use sora_ir::ops::{Concat, Gather, Pad, PadMode, Split, Transpose};
use sora_ir::{Node, NodeId, Op, ValueId, resolve_axis};
use sora_tensor::DType;

use super::Lowering;
use super::build::Buf;
use super::elementwise::axes;
use super::layout::{Encoding, Form, Layout};
use crate::steps::movement::{CopyView, Frame, Join, Pick, PickReal, Remap, View};

/// A value in memory, with its axes in the graph's order.
struct Seen {
    buf: Buf,
    encoding: Encoding,
    layout: Layout,
    view: View,
}

impl Lowering<'_> {
    /// Another shape for the same elements. Channels-last bytes stay as they are while the first extent does.
    pub(crate) fn reshape(&mut self, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        if let Some((source, view)) = self.views.get(&x).cloned() {
            // Who reads it through the view leaves this copy unused, which drops it.
            let from = self.plain(source)?;
            let buf = self.fresh(y, DType::F32);
            let info = self.conversion(y, "transpose", DType::F32);
            self.build.step(info, CopyView { view: view.collapsed(), size: 4 }, &[from], &[buf]);
            self.define_exact(y, buf, Layout::Plain);
            return Some(());
        }
        let keeps_images = self.shape(x).first() == self.shape(y).first() && self.shape(y).len() > 1;
        let carried = |form: &Form| form.layout == Layout::Plain || keeps_images;
        let mut forms: Vec<Form> = self.forms(x).into_iter().filter(carried).collect();
        if forms.is_empty() {
            let encoding = self.any_encoding(x);
            let buf = self.encoded(x, Layout::Plain, encoding)?;
            forms.push(Form { buf, layout: Layout::Plain, encoding });
        }
        forms.into_iter().for_each(|form| self.define(y, form));
        Some(())
    }

    pub(crate) fn transpose(&mut self, op: &Transpose, id: NodeId, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let rank = self.shape(x).len();
        let perm = self.permutation(op, rank)?;
        let to_last: Vec<usize> = axes(rank, Layout::Last(0));
        let from_last: Vec<usize> =
            (0..rank).map(|i| if i == 1 { rank - 1 } else { i.saturating_sub(usize::from(i > 1)) }).collect();
        let (last, forms) = (self.last(x), self.forms(x));
        // Channels-last bytes are what the transpose to channels-last asks for, and the other way round.
        let (wanted, given) = match perm {
            _ if rank < 3 => (None, Layout::Plain),
            _ if perm == to_last => (Some(last), Layout::Plain),
            _ if perm == from_last => (Some(Layout::Plain), self.last(y)),
            _ => (None, Layout::Plain),
        };
        let mut aliased = false;
        for form in forms.into_iter().filter(|f| Some(f.layout) == wanted) {
            self.define(y, Form { layout: given, ..form });
            aliased = true;
        }
        if aliased {
            return Some(());
        }
        let view = View::of(&self.shape(x)).permuted(&perm);
        let viewed = self.is_operand(y, &view) || self.is_correlated(y, &perm);
        if viewed && self.affine(x).is_none() {
            self.views.insert(y, (x, view));
            return Some(());
        }
        let encoding = self.any_encoding(x);
        let buf = self.encoded(x, Layout::Plain, encoding)?;
        let seen = Seen { buf, encoding, layout: Layout::Plain, view: View::of(&self.shape(x)) };
        self.copy("transpose", id, &seen, view, Layout::Plain, y)
    }

    /// Whether only products of two run-time operands read the value, and can read it through the view.
    fn is_operand(&self, v: ValueId, view: &View) -> bool {
        let readers = self.uses[v.index()].iter().filter_map(|&id| self.graph.node(id));
        let product = |node: &Node| {
            let inputs: Vec<ValueId> = node.inputs.iter().copied().flatten().collect();
            let variable = !inputs.iter().any(|&i| self.is_constant(i));
            // The left operand needs contiguous rows, the right one contiguous rows or columns.
            let left = inputs.first() == Some(&v);
            let contiguous = match view.strides[..] {
                [.., _, 1] => true,
                [.., 1, _] => !left,
                _ => false,
            };
            matches!(node.op, Op::MatMul(_)) && variable && contiguous
        };
        self.dtype(v) == DType::F32 && !self.is_output[v.index()] && readers.clone().all(product)
    }

    fn permutation(&self, op: &Transpose, rank: usize) -> Option<Vec<usize>> {
        if op.perm.is_empty() {
            return Some((0..rank).rev().collect());
        }
        (op.perm.len() == rank).then(|| op.perm.clone())
    }

    pub(crate) fn slice(&mut self, id: NodeId, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let (shape, rank) = (self.shape(x), self.shape(x).len());
        let numbers = |this: &Self, slot: usize| {
            let v = node.inputs.get(slot).copied().flatten();
            v.map(|v| this.constant(v).map(|t| t.to_i64s()))
        };
        let starts = numbers(self, 1)??;
        let listed = match numbers(self, 3) {
            Some(axes) => axes?,
            None => (0..starts.len() as i64).collect(),
        };
        let steps = match numbers(self, 4) {
            Some(steps) => steps?,
            None => vec![1; starts.len()],
        };
        let seen = self.seen(x)?;
        let mut view = seen.view.clone();
        let result = self.shape(y);
        let mut start = view.start as isize;
        for ((&first, &axis), &step) in starts.iter().zip(&listed).zip(&steps) {
            let axis = resolve_axis(axis, rank).ok()?;
            let extent = shape[axis] as i64;
            let first = if first < 0 { first.saturating_add(extent) } else { first };
            let first = first.clamp(0, if step < 0 { extent - 1 } else { extent });
            start += first as isize * view.strides[axis];
            view.strides[axis] = view.strides[axis].checked_mul(isize::try_from(step).ok()?)?;
        }
        view.start = usize::try_from(start).ok()?;
        view.shape = result;
        self.copy_seen("slice", id, &seen, view, y)
    }

    pub(crate) fn split(&mut self, op: &Split, id: NodeId, node: &Node) -> Option<()> {
        let x = (*node.inputs.first()?)?;
        let axis = resolve_axis(op.axis, self.shape(x).len()).ok()?;
        let seen = self.seen(x)?;
        let mut first = 0;
        for &y in &node.outputs {
            let mut view = seen.view.clone();
            view.start += first * usize::try_from(view.strides[axis]).ok()?;
            view.shape = self.shape(y);
            first += view.shape[axis];
            self.copy_seen("split", id, &seen, view, y)?;
        }
        Some(())
    }

    pub(crate) fn expand(&mut self, id: NodeId, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let encoding = self.any_encoding(x);
        let buf = self.encoded(x, Layout::Plain, encoding)?;
        let seen = Seen { buf, encoding, layout: Layout::Plain, view: View::of(&self.shape(x)) };
        let view = seen.view.broadcast(&self.shape(y));
        self.copy("expand", id, &seen, view, Layout::Plain, y)
    }

    pub(crate) fn tile(&mut self, id: NodeId, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let encoding = self.any_encoding(x);
        let buf = self.encoded(x, Layout::Plain, encoding)?;
        let whole = View::of(&self.shape(x));
        // Each axis becomes two: the repetition, which does not move, and the axis itself.
        let mut view = View { start: 0, shape: Vec::new(), strides: Vec::new() };
        for ((&extent, &result), &stride) in whole.shape.iter().zip(&self.shape(y)).zip(&whole.strides) {
            view.shape.extend([result / extent, extent]);
            view.strides.extend([0, stride]);
        }
        let seen = Seen { buf, encoding, layout: Layout::Plain, view: whole };
        self.copy("tile", id, &seen, view, Layout::Plain, y)
    }

    pub(crate) fn concat(&mut self, op: &Concat, id: NodeId, node: &Node) -> Option<()> {
        let mut inputs: Vec<ValueId> = node.inputs.iter().copied().collect::<Option<_>>()?;
        inputs.retain(|&v| self.len(v) > 0);
        let (&first, y) = (inputs.first()?, *node.outputs.first()?);
        let shape = self.shape(y);
        let axis = resolve_axis(op.axis, shape.len()).ok()?;
        let mut encoding = self.any_encoding(first);
        for &v in &inputs[1..] {
            if self.any_encoding(v) != encoding {
                encoding = Encoding::Exact;
            }
        }
        let seen = self.seen(first)?;
        let layout = if seen.layout == Layout::Plain { Layout::Plain } else { self.last(y) };
        let order = axes(shape.len(), layout);
        let position = order.iter().position(|&a| a == axis)?;
        let size = self.stored(first, encoding).size();
        let (mut bufs, mut rows) = (Vec::new(), Vec::new());
        for &v in &inputs {
            let own = if layout == Layout::Plain { Layout::Plain } else { self.last(v) };
            bufs.push(match encoding {
                Encoding::Exact => self.exact(v, own)?,
                _ => self.encoded(v, own, encoding)?,
            });
            let extents = self.shape(v);
            rows.push(order[position..].iter().map(|&a| extents[a]).product::<usize>() * size);
        }
        let dtype = self.stored(y, encoding);
        let buf = self.fresh(y, dtype);
        let info = self.info("concat", &[id], Some(y), dtype);
        self.build.step(info, Join { rows }, &bufs, &[buf]);
        self.define(y, Form { buf, layout, encoding });
        Some(())
    }

    pub(crate) fn pad(&mut self, op: &Pad, id: NodeId, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let rank = self.shape(x).len();
        let pads = self.constant((*node.inputs.get(1)?)?)?.to_i64s();
        let listed = match node.inputs.get(3).copied().flatten() {
            Some(v) => self.constant(v)?.to_i64s(),
            None => (0..rank as i64).collect(),
        };
        if pads.iter().any(|&p| p < 0) || pads.len() != 2 * listed.len() {
            return None;
        }
        let mut before = vec![0; rank];
        let mut behind = vec![0; rank];
        for (i, &axis) in listed.iter().enumerate() {
            let axis = resolve_axis(axis, rank).ok()?;
            before[axis] = usize::try_from(pads[i]).ok()?;
            behind[axis] = usize::try_from(pads[listed.len() + i]).ok()?;
        }
        if op.mode != PadMode::Constant {
            return self.pad_with_own(op, id, [x, y], &before);
        }
        let given = match node.inputs.get(2).copied().flatten() {
            Some(v) => Some(self.constant(v)?),
            None => None,
        };
        let zero = given.as_ref().is_none_or(|t| t.to_f64s().iter().all(|&v| v == 0.0));
        let mut seen = self.seen(x)?;
        let value = match (seen.encoding, &given) {
            (Encoding::Affine(affine), _) if zero => vec![u8::try_from(affine.zero_point).ok()?],
            (Encoding::Exact, Some(tensor)) => tensor.bytes().to_vec(),
            (Encoding::Exact, None) => vec![0; self.dtype(x).size()],
            _ => {
                seen.buf = self.exact(x, seen.layout)?;
                seen.encoding = Encoding::Exact;
                given.map_or(vec![0; self.dtype(x).size()], |t| t.bytes().to_vec())
            }
        };
        let layout = if seen.layout == Layout::Plain { Layout::Plain } else { self.last(y) };
        let order = axes(rank, layout);
        let reordered = |values: &[usize]| order.iter().map(|&a| values[a]).collect::<Vec<_>>();
        let shape = self.shape(x);
        let work = Frame::new(&reordered(&shape), &reordered(&before), &reordered(&behind), value);
        let dtype = self.stored(y, seen.encoding);
        let buf = self.fresh(y, dtype);
        let info = self.info("pad", &[id], Some(y), dtype);
        self.build.step(info, work, &[seen.buf], &[buf]);
        self.define(y, Form { buf, layout, encoding: seen.encoding });
        Some(())
    }

    /// Padding with elements of the value itself; `before` counts those in front of each axis.
    fn pad_with_own(&mut self, op: &Pad, id: NodeId, [x, y]: [ValueId; 2], before: &[usize]) -> Option<()> {
        let (shape, result) = (self.shape(x), self.shape(y));
        let mut positions = Vec::new();
        for ((&extent, &result), &before) in shape.iter().zip(&result).zip(before) {
            let source = |at: usize| op.source(at as i128 - before as i128, extent);
            positions.push((0..result).map(source).collect::<Option<Vec<_>>>()?);
        }
        let encoding = self.any_encoding(x);
        let from = self.encoded(x, Layout::Plain, encoding)?;
        let dtype = self.stored(y, encoding);
        let buf = self.fresh(y, dtype);
        let info = self.info("pad", &[id], Some(y), dtype);
        self.build.step(info, Remap::new(&shape, positions, dtype.size()), &[from], &[buf]);
        self.define(y, Form { buf, layout: Layout::Plain, encoding });
        Some(())
    }

    pub(crate) fn gather(&mut self, op: &Gather, id: NodeId, node: &Node) -> Option<()> {
        let (x, indices, y) = ((*node.inputs.first()?)?, (*node.inputs.get(1)?)?, *node.outputs.first()?);
        let shape = self.shape(x);
        let axis = resolve_axis(op.axis, shape.len()).ok()?;
        let long = match self.dtype(indices) {
            DType::I64 => true,
            DType::I32 => false,
            _ => return None,
        };
        // Of a table in bytes, only the rows that are asked for become real.
        if let (0, &[extent, cols]) = (axis, &shape[..])
            && cols > 0
            && self.dtype(y) == DType::F32
            && let Some(table) = self.byte_weights(x, 1)
        {
            let work = PickReal { extent, long, scales: (0..cols).map(|n| table.scale(n)).collect() };
            let (from, picks) = (self.build.constant(table.tensor()), self.plain(indices)?);
            let buf = self.fresh(y, DType::F32);
            let info = self.info("gather.i8", &[id], Some(y), DType::F32);
            self.build.step(info, work, &[from, picks], &[buf]);
            self.define_exact(y, buf, Layout::Plain);
            return Some(());
        }
        let encoding = self.any_encoding(x);
        // Slices are only copied: a table in a file is read where it lies, whatever its address.
        let from = match self.graph.const_value(x) {
            Some(table) if encoding == Encoding::Exact => self.build.constant(table.detached().as_u8()),
            _ => self.encoded(x, Layout::Plain, encoding)?,
        };
        let picks = self.plain(indices)?;
        let dtype = self.stored(x, encoding);
        let buf = self.fresh(y, dtype);
        let work = Pick {
            outer: shape[..axis].iter().product(),
            extent: shape[axis],
            bytes: shape[axis + 1..].iter().product::<usize>() * dtype.size(),
            long,
        };
        let info = self.info("gather", &[id], Some(y), dtype);
        self.build.step(info, work, &[from, picks], &[buf]);
        self.define(y, Form { buf, layout: Layout::Plain, encoding });
        Some(())
    }

    /// The value as it lies in memory, in its first usable layout and encoding.
    fn seen(&mut self, v: ValueId) -> Option<Seen> {
        let encoding = self.any_encoding(v);
        let shape = self.shape(v);
        let form = self.forms(v).into_iter().find(|f| f.encoding == encoding)?;
        let last = form.layout == self.last(v) && shape.len() > 2;
        let layout = if last { form.layout } else { Layout::Plain };
        let buf = self.encoded(v, layout, encoding)?;
        let order = axes(shape.len(), layout);
        let stored: Vec<usize> = order.iter().map(|&a| shape[a]).collect();
        let mut inverse = vec![0; order.len()];
        order.iter().enumerate().for_each(|(i, &a)| inverse[a] = i);
        Some(Seen { buf, encoding, layout, view: View::of(&stored).permuted(&inverse) })
    }

    /// Copies `view` of a value to `y` in the layout that the value has.
    fn copy_seen(&mut self, kernel: &str, id: NodeId, seen: &Seen, view: View, y: ValueId) -> Option<()> {
        let layout = if seen.layout == Layout::Plain { Layout::Plain } else { self.last(y) };
        let view = view.permuted(&axes(view.shape.len(), layout));
        self.copy(kernel, id, seen, view, layout, y)
    }

    fn copy(
        &mut self,
        kernel: &str,
        id: NodeId,
        seen: &Seen,
        view: View,
        layout: Layout,
        y: ValueId,
    ) -> Option<()> {
        let dtype = self.stored(y, seen.encoding);
        let buf = self.fresh(y, dtype);
        let info = self.info(kernel, &[id], Some(y), dtype);
        let work = CopyView { view: view.collapsed(), size: dtype.size() };
        self.build.step(info, work, &[seen.buf], &[buf]);
        self.define(y, Form { buf, layout, encoding: seen.encoding });
        Some(())
    }
}
