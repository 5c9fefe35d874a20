//! Constant weights and biases, as kernels want them.

use sora_ir::{Node, Op, ValueId, resolve_axis};
use sora_tensor::{DType, Tensor};

use super::Lowering;
use super::build::Buf;
use super::chain::Chain;
use super::layout::{Affine, Encoding, Form, Layout};
use crate::steps::gemm::{Columns, ResidualKind, Store};

/// Integer weights whose zero is 0.
pub(crate) struct ByteWeights {
    /// Bytes as the graph has them.
    source: Tensor,
    /// The same with their zero points subtracted, of dtype `i8`.
    centred: Tensor,
    /// What the zero points are, where not all are 0.
    zeros: String,
    /// One for all, or one per output channel.
    scale: Vec<f32>,
}

/// Whoever read them has packed them: where they lie in a file, memory need not hold them any longer.
impl Drop for ByteWeights {
    fn drop(&mut self) {
        self.source.release();
    }
}

impl ByteWeights {
    /// The weights in the order of the graph's tensor. Computes them where zero points are subtracted.
    pub(crate) fn values(&self) -> &[i8] {
        bytemuck::cast_slice(self.centred.raw())
    }

    /// The same as a constant.
    pub(crate) fn tensor(&self) -> Tensor {
        self.centred.clone()
    }

    /// The constant that packed weights are found by, together with [`ByteWeights::order`].
    pub(crate) fn source(&self) -> &Tensor {
        &self.source
    }

    /// An order of elements, and what else than the constant they follow from.
    pub(crate) fn order(&self, order: &str) -> String {
        format!("{order}{}", self.zeros)
    }

    /// Input scale × weight scale of output channel `n`: the value of one accumulator step.
    pub(crate) fn step(&self, input: Affine, n: usize) -> f32 {
        input.scale * self.scale(n)
    }

    /// The weight scale of output channel `n`.
    pub(crate) fn scale(&self, n: usize) -> f32 {
        self.scale.get(n).or(self.scale.first()).copied().unwrap_or(1.0)
    }
}

impl Lowering<'_> {
    /// The weights behind a `DequantizeLinear` of constant bytes with one scale per extent of `axis`, or one
    /// in all.
    pub(crate) fn byte_weights(&self, v: ValueId, axis: usize) -> Option<ByteWeights> {
        let (_, node, _) = self.graph.producer(v)?;
        let Op::DequantizeLinear(op) = &node.op else { return None };
        let q = self.graph.const_value((*node.inputs.first()?)?)?;
        let scale = self.graph.const_value((*node.inputs.get(1)?)?)?;
        let at = resolve_axis(op.axis, q.rank()).ok();
        let per_axis = match scale.rank() {
            0 | 1 => scale.len() == *q.shape().get(axis)? && at == Some(axis),
            // Lines along one axis of a matrix are slices of the other.
            _ => q.rank() == 2 && at.is_some_and(|at| at != axis && scale.shape()[at] == 1),
        };
        (scale.len() == 1 || per_axis).then_some(())?;
        let (inner, extent) = (q.shape()[axis + 1..].iter().product::<usize>(), q.shape()[axis]);
        self.centred(node, q, scale, move |i| i / inner % extent)
    }

    /// As [`Lowering::byte_weights`], with one scale for each line along the last axis, or one in all.
    pub(crate) fn byte_lines(&self, v: ValueId) -> Option<ByteWeights> {
        let (_, node, _) = self.graph.producer(v)?;
        let Op::DequantizeLinear(op) = &node.op else { return None };
        let q = self.graph.const_value((*node.inputs.first()?)?)?;
        let scale = self.graph.const_value((*node.inputs.get(1)?)?)?;
        let (&last, at) = (q.shape().last()?, resolve_axis(op.axis, q.rank()).ok()?);
        let lines = q.len() / last.max(1);
        let per_line = match scale.rank() {
            0 | 1 => scale.len() == lines && at + 2 == q.rank(),
            _ => at + 1 == q.rank() && scale.shape()[at] == 1,
        };
        (scale.len() == 1 || per_line).then_some(())?;
        self.centred(node, q, scale, move |i| i / last)
    }

    /// The bytes `q` of a `DequantizeLinear` with its zero points, one for each slice, subtracted.
    fn centred(
        &self,
        node: &Node,
        q: &Tensor,
        scale: &Tensor,
        slice: impl Fn(usize) -> usize + Send + Sync + 'static,
    ) -> Option<ByteWeights> {
        let scale = scale.as_slice::<f32>().ok()?.to_vec();
        if !matches!(q.dtype(), DType::I8 | DType::U8) {
            return None;
        }
        let zero_points = match node.inputs.get(2).copied().flatten() {
            Some(zero_points) => self.graph.const_value(zero_points)?.to_i64s(),
            None => vec![0],
        };
        let source = q.clone();
        if q.dtype() == DType::I8 && zero_points.iter().all(|&z| z == 0) {
            // Detached, so that what a file holds coded is in memory only until it is packed.
            return Some(ByteWeights { centred: q.detached(), source, zeros: String::new(), scale });
        }
        // Differences of other bytes are as small only if all of them are.
        let middle = q.dtype() == DType::U8 && zero_points.iter().all(|&z| z == 128);
        let zeros = format!(" - {zero_points:?}");
        let (bytes, signed) = (q.detached(), q.dtype() == DType::I8);
        let difference = move |i: usize, byte: u8| {
            let zero_point = if zero_points.len() == 1 { zero_points[0] } else { zero_points[slice(i)] };
            let value = if signed { i64::from(byte.cast_signed()) } else { i64::from(byte) };
            i8::try_from(value - zero_point).ok()
        };
        if !middle && !q.raw().iter().enumerate().all(|(i, &byte)| difference(i, byte).is_some()) {
            return None;
        }
        let centred = Tensor::computed(DType::I8, q.shape(), move |out| {
            for (i, (out, &byte)) in out.iter_mut().zip(bytes.raw()).enumerate() {
                *out = difference(i, byte).unwrap_or(0).cast_unsigned();
            }
        });
        Some(ByteWeights { source, centred: centred.ok()?, zeros, scale })
    }

    /// One `f32` per channel: a constant of `n` numbers, or of one for all.
    pub(crate) fn per_channel(&self, v: ValueId, n: usize) -> Option<Vec<f32>> {
        let values = self.constant_f32(v)?;
        match values.len() {
            1 => Some(vec![values[0]; n]),
            len => (len == n).then_some(values),
        }
    }

    /// What belongs to columns of products of these steps. A bias is counted in steps where it is such numbers, as far
    /// as `f32` tells; otherwise it is added to the scaled sums.
    pub(crate) fn byte_columns(&self, bias: Option<ValueId>, steps: Vec<f32>) -> Option<Columns> {
        let none = vec![0; steps.len()];
        let Some(bias) = bias else { return Some(Columns { scale: steps, bias: none, offset: None }) };
        let reals = self.per_channel(bias, steps.len())?;
        let counted = |(&real, &step): (&f32, &f32)| {
            let (real, step) = (f64::from(real), f64::from(step));
            let count = (real / step).round_ties_even();
            // The scale of the bias, and its product with the integer, were rounded to `f32`.
            let same = (count * step - real).abs() <= real.abs() * 4.0 * f64::from(f32::EPSILON);
            // Room is left for the sums that it is added to.
            (same && count.abs() <= f64::from(i32::MAX / 2)).then_some(count as i32)
        };
        let (bias, offset) = match reals.iter().zip(&steps).map(counted).collect() {
            Some(counts) => (counts, None),
            None => (none, Some(reals)),
        };
        Some(Columns { scale: steps, bias, offset })
    }

    /// The residual of a chain in a layout, with the type it is read in.
    pub(crate) fn residual(&mut self, chain: &Chain, layout: Layout) -> Option<Option<(Buf, ResidualKind)>> {
        let Some(v) = chain.residual else { return Some(None) };
        if let Some((buf, input)) = self.quantized(v, layout) {
            let kind = match chain.rounded {
                None => ResidualKind::Bytes(input),
                Some(product) => ResidualKind::QuantizedSum { product, input },
            };
            return Some(Some((buf, kind)));
        }
        if chain.rounded.is_some() {
            return None;
        }
        if self.is_rounded(v) {
            return Some(Some((self.rounded(v, layout)?, ResidualKind::Bf16)));
        }
        Some(Some((self.exact(v, layout)?, ResidualKind::Real)))
    }

    /// As [`Lowering::store`], for steps that can also round to bf16.
    pub(crate) fn store_rounded(&mut self, chain: &Chain, layout: Layout) -> (Buf, Store, DType) {
        if chain.quantize.is_some() || !self.stores_bf16(chain.result) {
            return self.store(chain, layout);
        }
        let buf = self.fresh(chain.result, DType::BF16);
        self.define(chain.result, Form { buf, layout, encoding: Encoding::Bf16 });
        (buf, Store::Bf16, DType::BF16)
    }

    /// The buffer that a chain's result goes to, and how it is stored there.
    pub(crate) fn store(&mut self, chain: &Chain, layout: Layout) -> (Buf, Store, DType) {
        let v = chain.result;
        match chain.quantize {
            Some(quantized) => {
                let buf = self.fresh(v, DType::U8);
                self.define(v, Form { buf, layout, encoding: quantized.encoding });
                (buf, Store::Bytes(quantized.affine), DType::U8)
            }
            None => {
                let buf = self.fresh(v, DType::F32);
                self.define(v, Form { buf, layout, encoding: Encoding::Exact });
                (buf, Store::Real, DType::F32)
            }
        }
    }
}
