//! The forms in which a graph value exists in memory, and the conversions between them.

use sora_ir::{Def, EvalCx, Node, Op, ValueId};
use sora_tensor::{DType, Tensor};

use super::Lowering;
use super::build::Buf;
use crate::steps::movement::{CopyView, TransposeImages, View};
use crate::steps::quantize::{Dequantize, Flip, WidenBf16};

/// The order of a value's elements in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Row-major, as the graph says.
    Plain,
    /// Channels last: `[n][pixels][channels]` where the graph says `[n][channels][pixels]`; `n` is the first
    /// extent, and the rest of the shape may be anything (it may have been flattened since).
    Last(usize),
}

/// What the bytes mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Encoding {
    /// The value's elements.
    Exact,
    /// Elements of an `f32` value rounded to bf16.
    Bf16,
    /// Elements of an `i8` value plus 128, as unsigned bytes.
    Shifted,
    /// Unsigned bytes that stand for real numbers.
    Affine(Affine),
}

/// Bytes `q` that stand for `(q - zero_point) * scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Affine {
    pub(crate) scale: f32,
    pub(crate) zero_point: i32,
}

/// One copy of a value in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Form {
    pub(crate) buf: Buf,
    pub(crate) layout: Layout,
    pub(crate) encoding: Encoding,
}

/// The elements of an `f32` tensor where they lie in the file, at any address.
pub(crate) fn numbers(tensor: &Tensor) -> &[[u8; 4]] {
    tensor.raw().as_chunks().0
}

impl Lowering<'_> {
    /// The concrete shape of a value.
    pub(crate) fn shape(&self, v: ValueId) -> Vec<usize> {
        self.graph.ty(v).known_shape().unwrap_or_default()
    }

    /// The number of elements of a value.
    pub(crate) fn len(&self, v: ValueId) -> usize {
        self.graph.ty(v).known_len().unwrap_or(0)
    }

    /// The dtype of a value.
    pub(crate) fn dtype(&self, v: ValueId) -> DType {
        self.graph.ty(v).dtype
    }

    /// The dtype in memory of a value under an encoding.
    pub(crate) fn stored(&self, v: ValueId, encoding: Encoding) -> DType {
        match encoding {
            Encoding::Exact => self.dtype(v),
            Encoding::Bf16 => DType::BF16,
            Encoding::Shifted | Encoding::Affine(_) => DType::U8,
        }
    }

    /// Whether the value is used once, by one node, and is no result.
    pub(crate) fn only_use(&self, v: ValueId) -> Option<sora_ir::NodeId> {
        match (self.uses[v.index()].as_slice(), self.is_output[v.index()]) {
            (&[only], false) => Some(only),
            _ => None,
        }
    }

    /// Whether [`Lowering::constant`] would give the value, without the cost of dequantizing it.
    pub(crate) fn is_constant(&self, v: ValueId) -> bool {
        self.graph.const_value(v).is_some() || self.dequantized(v).is_some()
    }

    /// The value as a constant: given, or dequantized from one.
    pub(crate) fn constant(&self, v: ValueId) -> Option<Tensor> {
        if let Some(tensor) = self.graph.const_value(v) {
            return Some(tensor.detached());
        }
        let (node, inputs) = self.dequantized(v)?;
        node.op.eval(&EvalCx { inputs: &inputs }).ok()?.pop()
    }

    /// The `DequantizeLinear` of constants that computes the value, with its inputs.
    fn dequantized(&self, v: ValueId) -> Option<(&Node, Vec<Option<&Tensor>>)> {
        let (_, node, _) = self.graph.producer(v)?;
        let Op::DequantizeLinear(_) = node.op else { return None };
        let inputs = node.inputs.iter().flatten().map(|&i| self.graph.const_value(i).map(Some));
        Some((node, inputs.collect::<Option<_>>()?))
    }

    /// The value as `f32` numbers, if it is a constant of that dtype.
    pub(crate) fn constant_f32(&self, v: ValueId) -> Option<Vec<f32>> {
        let tensor = self.constant(v).filter(|t| t.dtype() == DType::F32)?;
        let numbers = numbers(&tensor).iter().map(|&n| f32::from_ne_bytes(n)).collect();
        tensor.release();
        Some(numbers)
    }

    /// The channels-last layout of a value of rank 2 and more.
    pub(crate) fn last(&self, v: ValueId) -> Layout {
        Layout::Last(self.shape(v).get(1).copied().unwrap_or(1))
    }

    /// Images, channels and pixels of a value under a channels-last layout.
    pub(crate) fn images(&self, v: ValueId, channels: usize) -> (usize, usize, usize) {
        let images = self.shape(v).first().copied().unwrap_or(1);
        let pixels = self.len(v) / (images * channels).max(1);
        (images, channels, pixels)
    }

    /// Whether two layouts put the value's elements in the same order.
    pub(crate) fn same_order(&self, v: ValueId, a: Layout, b: Layout) -> bool {
        let trivial = |layout| match layout {
            Layout::Plain => true,
            Layout::Last(channels) => channels == 1 || self.images(v, channels).2 == 1,
        };
        a == b || trivial(a) && trivial(b)
    }

    /// Records that the value exists in a form.
    pub(crate) fn define(&mut self, v: ValueId, form: Form) {
        self.forms[v.index()].push(form);
    }

    /// Records a new exact form.
    pub(crate) fn define_exact(&mut self, v: ValueId, buf: Buf, layout: Layout) {
        self.define(v, Form { buf, layout, encoding: Encoding::Exact });
    }

    /// A new buffer for all elements of the value, stored as `dtype`.
    pub(crate) fn fresh(&mut self, v: ValueId, dtype: DType) -> Buf {
        let bytes = self.len(v) * dtype.size();
        self.build.arena(bytes)
    }

    /// The forms that exist; a constant or a view comes into being here.
    pub(crate) fn forms(&mut self, v: ValueId) -> Vec<Form> {
        if self.forms[v.index()].is_empty() {
            if let Some((source, view)) = self.views.remove(&v) {
                self.materialize(v, source, &view);
            } else if let Some(dynamic) = self.dynamic(v) {
                self.materialize_dynamic(v, dynamic);
            } else if let (false, Some(tensor)) = (self.is_input(v), self.constant(v)) {
                let buf = self.build.constant(tensor);
                self.define_exact(v, buf, Layout::Plain);
            }
        }
        self.forms[v.index()].clone()
    }

    fn is_input(&self, v: ValueId) -> bool {
        matches!(self.graph.value(v).def, Def::Input)
    }

    fn materialize(&mut self, v: ValueId, source: ValueId, view: &View) -> Option<()> {
        let (from, dtype) = (self.plain(source)?, self.dtype(v));
        let to = self.fresh(v, dtype);
        let work = CopyView { view: view.collapsed(), size: dtype.size() };
        let info = self.conversion(v, "transpose", dtype);
        self.build.step(info, work, &[from], &[to]);
        self.define_exact(v, to, Layout::Plain);
        Some(())
    }

    /// The affine encoding of the value, if it exists in one.
    pub(crate) fn affine(&self, v: ValueId) -> Option<Affine> {
        self.forms[v.index()].iter().find_map(|form| match form.encoding {
            Encoding::Affine(affine) => Some(affine),
            _ => None,
        })
    }

    /// The layout to compute a layout-blind function of the value in: one it exists in.
    pub(crate) fn some_layout(&mut self, v: ValueId) -> Layout {
        let forms = self.forms(v);
        let exact = forms.iter().find(|f| f.encoding == Encoding::Exact);
        exact.or(forms.first()).map_or(Layout::Plain, |f| f.layout)
    }

    /// The value's bytes under this layout and encoding; converts the layout when needed, never the encoding.
    pub(crate) fn encoded(&mut self, v: ValueId, layout: Layout, encoding: Encoding) -> Option<Buf> {
        let forms = self.forms(v);
        let matching = || forms.iter().filter(|f| f.encoding == encoding);
        if let Some(found) = matching().find(|f| self.same_order(v, f.layout, layout)) {
            return Some(found.buf);
        }
        let from = *matching().next()?;
        let plain = match (from.layout, layout) {
            // Two different channels-last orders meet in the plain one.
            (Layout::Last(_), Layout::Last(_)) => self.encoded(v, Layout::Plain, encoding)?,
            _ => from.buf,
        };
        let channels = match (from.layout, layout) {
            (_, Layout::Last(channels)) | (Layout::Last(channels), Layout::Plain) => channels,
            (Layout::Plain, Layout::Plain) => return Some(from.buf),
        };
        let (images, channels, pixels) = self.images(v, channels);
        let dtype = self.stored(v, encoding);
        let (rows, cols) = if layout == Layout::Plain { (pixels, channels) } else { (channels, pixels) };
        let to = self.fresh(v, dtype);
        let work = TransposeImages { images, rows, cols, size: dtype.size() };
        let kernel = if layout == Layout::Plain { "channels-first" } else { "channels-last" };
        let info = self.conversion(v, kernel, dtype);
        self.build.step(info, work, &[plain], &[to]);
        self.define(v, Form { buf: to, layout, encoding });
        Some(to)
    }

    /// The value's elements in this layout.
    pub(crate) fn exact(&mut self, v: ValueId, layout: Layout) -> Option<Buf> {
        if let Some(buf) = self.encoded(v, layout, Encoding::Exact) {
            return Some(buf);
        }
        let dtype = self.dtype(v);
        let form = self.forms(v).first().copied()?;
        let from = self.encoded(v, layout, form.encoding)?;
        let to = self.fresh(v, dtype);
        match form.encoding {
            Encoding::Affine(affine) => {
                let info = self.conversion(v, "dequantize.u8", dtype);
                self.build.step(info, Dequantize { affine }, &[from], &[to]);
            }
            Encoding::Bf16 => {
                let info = self.conversion(v, "widen.bf16", dtype);
                self.build.step(info, WidenBf16, &[from], &[to]);
            }
            Encoding::Exact | Encoding::Shifted => {
                let info = self.conversion(v, "flip.i8", dtype);
                self.build.step(info, Flip, &[from], &[to]);
            }
        }
        self.define_exact(v, to, layout);
        Some(to)
    }

    /// The value's elements in the graph's order.
    pub(crate) fn plain(&mut self, v: ValueId) -> Option<Buf> {
        self.exact(v, Layout::Plain)
    }

    /// The value's affine bytes in this layout, if it exists in an affine encoding.
    pub(crate) fn quantized(&mut self, v: ValueId, layout: Layout) -> Option<(Buf, Affine)> {
        let affine = self.affine(v)?;
        Some((self.encoded(v, layout, Encoding::Affine(affine))?, affine))
    }
}
