//! Pooling and reductions.

use sora_ir::ops::{ArgReduce, AveragePool, MaxPool, Reduce, ReduceKind};
use sora_ir::{Node, NodeId, ValueId, resolve_axis};
use sora_kernels::elementwise::Unary;
use sora_kernels::{Activation, rows};
use sora_tensor::DType;

use super::Lowering;
use super::chain::Chain;
use super::layout::{Encoding, Form, Layout};
use crate::steps::elementwise;
use crate::steps::movement::{CopyView, View};
use crate::steps::pool::{Average, GlobalAverage, Max, MaxElement, MeanElement};
use crate::steps::rows::{ReduceIntegers, ReduceRows, Search};
use crate::steps::window::{Geometry, Windows};

impl Lowering<'_> {
    pub(crate) fn max_pool(&mut self, op: &MaxPool, id: NodeId, node: &Node) -> Option<()> {
        let (x, &[y]) = ((*node.inputs.first()?)?, &node.outputs[..]) else { return None };
        let geometry = self.pool_geometry(x, y, &op.kernel, &op.strides, &op.dilations, &op.pads);
        // The greatest byte stands for the greatest number.
        let encoding = self.any_encoding(x);
        let dtype = self.stored(x, encoding);
        let element = match dtype {
            DType::F32 => MaxElement::F32,
            DType::BF16 => MaxElement::Bf16,
            DType::U8 => MaxElement::U8,
            DType::I8 => MaxElement::I8,
            _ => return None,
        };
        let (images, channels) = (self.shape(x)[0], self.shape(x)[1]);
        let windows = Windows::new(&geometry, images, channels, channels, true)?;
        let layout = self.last(x);
        let (from, buf) = (self.encoded(x, layout, encoding)?, self.fresh(y, dtype));
        let kernel = format!("maxpool.{dtype}");
        let info = self.info(&kernel, &[id], Some(y), dtype);
        self.build.step(info, Max { windows, element }, &[from], &[buf]);
        self.define(y, Form { buf, layout: self.last(y), encoding });
        Some(())
    }

    pub(crate) fn average_pool(&mut self, op: &AveragePool, node: &Node, chain: &Chain) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        if self.dtype(x) != DType::F32 || chain.activation != Activation::None {
            return None;
        }
        let rank = op.kernel.len();
        let geometry = self.pool_geometry(x, y, &op.kernel, &op.strides, &op.dilations, &op.pads);
        let divisors = match op.count_include_pad {
            false => geometry.taps_inside(),
            // Padding counts as input; what a rounded-up output extent adds beyond it does not.
            true => {
                let padded = Geometry {
                    input: (0..rank).map(|i| geometry.input[i] + op.pads[i] + op.pads[rank + i]).collect(),
                    pads: vec![0; rank],
                    ..geometry.clone()
                };
                padded.taps_inside()
            }
        };
        let (images, channels) = (self.shape(x)[0], self.shape(x)[1]);
        let windows = Windows::new(&geometry, images, channels, channels, true)?;
        let divisors: Vec<f32> = divisors.iter().map(|&d| d.max(1) as f32).collect();
        let layout = self.last(x);
        let (bytes, from) = self.pool_operand(x, layout, chain)?;
        let (buf, _, dtype) = self.store(chain, self.last(y));
        let work = Average { windows, divisors: divisors.repeat(images), bytes };
        let info = self.info(&format!("avgpool.{dtype}"), &chain.nodes, Some(chain.result), dtype);
        self.build.step(info, work, &[from], &[buf]);
        Some(())
    }

    pub(crate) fn reduce(&mut self, op: &Reduce, node: &Node, chain: &Chain) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let shape = self.shape(x);
        let dtype = self.dtype(x);
        let integers = matches!(dtype, DType::I32 | DType::I64)
            && matches!(op.kind, ReduceKind::Sum | ReduceKind::Max | ReduceKind::Min);
        if !(dtype == DType::F32 || integers) || chain.activation != Activation::None {
            return None;
        }
        let axes: Option<Vec<usize>> =
            op.axes.iter().map(|&axis| resolve_axis(axis, shape.len()).ok()).collect();
        let axes = axes.filter(|a| !a.is_empty()).unwrap_or_else(|| (0..shape.len()).collect());
        let spatial = shape.len() > 2 && axes.len() == shape.len() - 2 && axes.iter().all(|&a| a >= 2);
        let last = self.last(x);
        if op.kind == ReduceKind::Mean && !integers && spatial && self.some_layout(x) == last {
            let (images, channels) = (shape[0], shape[1]);
            let pixels = self.len(x) / (images * channels);
            let (element, from) = if chain.quantize.is_none() && self.is_rounded(x) {
                (MeanElement::Bf16, self.rounded(x, last)?)
            } else {
                let (bytes, from) = self.pool_operand(x, last, chain)?;
                (bytes.map_or(MeanElement::F32, MeanElement::Bytes), from)
            };
            let (buf, _, dtype) = self.store(chain, Layout::Plain);
            let work = GlobalAverage { pixels, channels, element };
            let info = self.info(&format!("globalavgpool.{dtype}"), &chain.nodes, Some(chain.result), dtype);
            self.build.step(info, work, &[from], &[buf]);
            return Some(());
        }
        if chain.nodes.len() > 1 {
            return None;
        }
        // Some reductions are another one between two functions of each element.
        let (before, function, after) = match op.kind {
            ReduceKind::Sum => (None, rows::Reduce::Sum, None),
            ReduceKind::Mean => (None, rows::Reduce::Mean, None),
            ReduceKind::Max => (None, rows::Reduce::Max, None),
            ReduceKind::Min => (None, rows::Reduce::Min, None),
            ReduceKind::SumSquare => (None, rows::Reduce::SumSquare, None),
            ReduceKind::L1 => (Some(Unary::Abs), rows::Reduce::Sum, None),
            ReduceKind::L2 => (None, rows::Reduce::SumSquare, Some(Unary::Sqrt)),
            ReduceKind::LogSum => (None, rows::Reduce::Sum, Some(Unary::Log)),
            ReduceKind::LogSumExp | ReduceKind::Prod => return None,
        };
        let kept: Vec<usize> = (0..shape.len()).filter(|axis| !axes.contains(axis)).collect();
        let cols = axes.iter().map(|&axis| shape[axis]).product();
        let mut sorted = axes.clone();
        sorted.sort_unstable();
        let order = [kept, sorted].concat();
        if before.is_none()
            && after.is_none()
            && matches!(op.kind, ReduceKind::Sum | ReduceKind::Mean | ReduceKind::SumSquare)
        {
            let (squared, mean) = (op.kind == ReduceKind::SumSquare, op.kind == ReduceKind::Mean);
            if let Some(done) = self.reduce_columns([x, y], &axes, squared, mean, chain) {
                return Some(done);
            }
        }
        let mut from = self.plain(x)?;
        if !order.is_sorted() {
            let view = View::of(&shape).permuted(&order).collapsed();
            let moved = self.fresh(x, dtype);
            let info = self.conversion(x, "transpose", dtype);
            self.build.step(info, CopyView { view, size: dtype.size() }, &[from], &[moved]);
            from = moved;
        }
        if integers {
            let buf = self.fresh(y, dtype);
            let info = self.info(&format!("reduce.{dtype}"), &chain.nodes, Some(y), dtype);
            self.build.step(info, ReduceIntegers { kind: op.kind, dtype, cols }, &[from], &[buf]);
            self.define_exact(y, buf, Layout::Plain);
            return Some(());
        }
        if let Some(op) = before {
            let mapped = self.fresh(x, DType::F32);
            let info = self.conversion(x, "unary.f32", DType::F32);
            self.build.step_in_place(info, elementwise::Unary { op }, &[from], &[mapped]);
            from = mapped;
        }
        let mut buf = self.fresh(y, DType::F32);
        let info = self.info("reduce.f32", &chain.nodes, Some(y), DType::F32);
        self.build.step(info, ReduceRows { op: function, cols }, &[from], &[buf]);
        if let Some(op) = after {
            let mapped = self.fresh(y, DType::F32);
            let info = self.info("unary.f32", &chain.nodes, Some(y), DType::F32);
            self.build.step_in_place(info, elementwise::Unary { op }, &[buf], &[mapped]);
            buf = mapped;
        }
        self.define_exact(y, buf, Layout::Plain);
        Some(())
    }

    pub(crate) fn arg_reduce(&mut self, op: &ArgReduce, id: NodeId, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let shape = self.shape(x);
        let axis = resolve_axis(op.axis, shape.len()).ok()?;
        if self.dtype(x) != DType::F32 {
            return None;
        }
        let (from, buf) = (self.plain(x)?, self.fresh(y, DType::I64));
        let work = Search {
            extent: shape[axis],
            inner: shape[axis + 1..].iter().product(),
            largest: op.largest,
            last: op.select_last,
        };
        let info = self.info("search.f32", &[id], Some(y), DType::I64);
        self.build.step(info, work, &[from], &[buf]);
        self.define_exact(y, buf, Layout::Plain);
        Some(())
    }

    /// The operand of an average: bytes where the chain quantizes bytes again, else numbers. `None` where only
    /// one of both sides is quantized, so that the nodes are better emitted one by one.
    #[allow(clippy::type_complexity)]
    fn pool_operand(
        &mut self,
        x: ValueId,
        layout: Layout,
        chain: &Chain,
    ) -> Option<(Option<[super::layout::Affine; 2]>, super::build::Buf)> {
        match chain.quantize {
            Some(quantized) => {
                let (from, affine) = self.quantized(x, layout)?;
                Some((Some([affine, quantized.affine]), from))
            }
            None => Some((None, self.exact(x, layout)?)),
        }
    }

    /// The encoding to move or compare a value in: bytes where it exists in bytes.
    pub(crate) fn any_encoding(&mut self, v: ValueId) -> Encoding {
        let forms = self.forms(v);
        let affine = forms.iter().find(|f| matches!(f.encoding, Encoding::Affine(_)));
        affine.or(forms.first()).map_or(Encoding::Exact, |f| f.encoding)
    }

    fn pool_geometry(
        &self,
        x: ValueId,
        y: ValueId,
        kernel: &[usize],
        strides: &[usize],
        dilations: &[usize],
        pads: &[usize],
    ) -> Geometry {
        Geometry {
            input: self.shape(x)[2..].to_vec(),
            kernel: kernel.to_vec(),
            strides: strides.to_vec(),
            dilations: dilations.to_vec(),
            pads: pads[..kernel.len()].to_vec(),
            output: self.shape(y)[2..].to_vec(),
        }
    }
}
