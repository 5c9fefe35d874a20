//! Matrix products: with constant weights, or of two run-time operands.

use sora_ir::{Node, ValueId};
use sora_kernels::{Activation, PackedBf16, PackedF32, PackedI8, bf16};
use sora_tensor::DType;

use super::Lowering;
use super::chain::Chain;
use super::dynamic::Dynamic;
use super::layout::{Encoding, Layout, numbers};
use crate::steps::dynamic::{DynamicProduct, RowBytes};
use crate::steps::gemm::{Bytes, Half, Product, Real, Rows, SparseBytes, Weights};
use crate::steps::matmul::{BatchProduct, Order, Right};
use crate::steps::movement::View;

impl Lowering<'_> {
    pub(crate) fn matmul(&mut self, node: &Node, chain: &Chain) -> Option<()> {
        let (a, b) = ((*node.inputs.first()?)?, (*node.inputs.get(1)?)?);
        if self.dtype(a) != DType::F32 {
            return None;
        }
        let matrix = self.shape(b);
        let flat = matrix.len() >= 2 && matrix[..matrix.len() - 2].iter().all(|&d| d == 1);
        // A matrix of higher rank would raise the rank of the result.
        let plain_rank = matrix.len() <= self.shape(a).len().max(2);
        if self.attention(chain).is_some() {
            return Some(());
        }
        match self.is_constant(b) && flat && plain_rank {
            true => self.weighted(a, b, chain),
            false => self.batched(a, b, chain),
        }
    }

    fn weighted(&mut self, a: ValueId, b: ValueId, chain: &Chain) -> Option<()> {
        let shape = self.shape(b);
        let [.., k, n] = shape[..] else { return None };
        let axis = shape.len() - 1;
        let rows = self.len(a) / k.max(1);
        let kernels = self.kernels;

        if let (Some(dynamic), Some(weights)) = (self.dynamic(a), self.byte_weights(b, axis)) {
            let bias = match chain.bias {
                Some(bias) => Some(self.per_channel(bias, n)?),
                None => None,
            };
            let pack = || PackedI8::from_kn(kernels, weights.values(), k, n, n);
            let packed = self.weights.get(weights.source(), &weights.order("KN"), (1, k, n), pack);
            let scale = (0..n).map(|n| weights.scale(n)).collect();
            return self.dynamic_product(&dynamic, rows, RowBytes { packed, scale, bias }, chain);
        }
        if let (Some(affine), Some(weights)) = (self.affine(a), self.byte_weights(b, axis)) {
            let steps = (0..n).map(|n| weights.step(affine, n)).collect();
            if let Some(columns) = self.byte_columns(chain.bias, steps) {
                let layout = self.row_layout(a, Encoding::Affine(affine));
                let (x, _) = self.quantized(a, layout)?;
                let order = self.weight_rows(a, k, layout);
                let pack = || {
                    let values = weights.values();
                    match &order {
                        None => PackedI8::from_kn(kernels, values, k, n, n),
                        Some(order) => PackedI8::pack(kernels, 1, k, n, |i, j| values[order[i] * n + j]),
                    }
                };
                let arranged = weights.order(&format!("KN {layout:?}"));
                if let Some(packed) = self.sparse_bytes(&weights, &arranged, pack)
                    && self.skips_blocks(weights.source(), rows, k, &packed, chain)
                {
                    let columns = columns.with_zeros(packed.col_sums(), affine.zero_point);
                    let group = SparseBytes { packed, columns };
                    return self.dense("gemm.sparse.u8i8", x, rows, k, n, group, chain);
                }
                let packed = self.weights.get(weights.source(), &arranged, (1, k, n), pack);
                let columns = columns.with_zeros(packed.col_sums(), affine.zero_point);
                let group = Bytes { packed, columns };
                return self.dense("gemm.u8i8", x, rows, k, n, group, chain);
            }
        }
        let weights = self.constant(b).filter(|b| b.dtype() == DType::F32)?;
        let bias = match chain.bias {
            Some(bias) => Some(self.per_channel(bias, n)?),
            None => None,
        };
        if self.multiplies_bf16() {
            let layout = self.row_layout(a, Encoding::Bf16);
            let x = self.rounded(a, layout)?;
            let pack = || {
                let (values, round) = (numbers(&weights), |w| bf16::round(f32::from_ne_bytes(w)));
                match self.weight_rows(a, k, layout) {
                    None => PackedBf16::from_strided(kernels, (1, k, n), values, 0, [1, n, 0], round),
                    Some(order) => PackedBf16::pack(kernels, 1, k, n, |i, j| round(values[order[i] * n + j])),
                }
            };
            let packed = self.weights.get(&weights, &format!("KN {layout:?}"), (1, k, n), pack);
            weights.release();
            return self.dense("gemm.bf16", x, rows, k, n, Half { packed, bias }, chain);
        }
        let layout = self.row_layout(a, Encoding::Exact);
        let x = self.exact(a, layout)?;
        if self.skips_zeros(&weights, rows, [k, n], chain) {
            let (order, values) = (self.weight_rows(a, k, layout), numbers(&weights));
            let row = |i: usize| order.as_ref().map_or(i, |order| order[i]);
            let value = |i, j| f32::from_ne_bytes(values[row(i) * n + j]);
            let group = self.sparse(&weights, &format!("KN {layout:?}"), (1, k, n), bias, value);
            weights.release();
            return self.dense("gemm.sparse.f32", x, rows, k, n, group, chain);
        }
        let pack = || {
            let (values, number) = (numbers(&weights), f32::from_ne_bytes);
            match self.weight_rows(a, k, layout) {
                None => PackedF32::from_strided(kernels, (1, k, n), values, 0, [1, n, 0], number),
                Some(order) => PackedF32::pack(kernels, 1, k, n, |i, j| number(values[order[i] * n + j])),
            }
        };
        let packed = self.weights.get(&weights, &format!("KN {layout:?}"), (1, k, n), pack);
        weights.release();
        self.dense("gemm.f32", x, rows, k, n, Real { packed, bias }, chain)
    }

    /// The layout to read rows in. Flattened channels-last images are read as they are, and the rows of the
    /// weights are permuted instead.
    fn row_layout(&mut self, a: ValueId, encoding: Encoding) -> Layout {
        let forms = self.forms(a);
        let usable = forms.iter().filter(|f| f.encoding == encoding).chain(&forms).map(|f| f.layout);
        let mut usable = usable.collect::<Vec<_>>();
        usable.dedup();
        let plain = usable.iter().any(|&layout| self.same_order(a, layout, Layout::Plain));
        match usable.first() {
            Some(&layout) if !plain && self.shape(a).len() == 2 => layout,
            _ => Layout::Plain,
        }
    }

    /// The row of the weights that each element of a row in this layout meets; `None` when they go in step.
    fn weight_rows(&self, a: ValueId, k: usize, layout: Layout) -> Option<Vec<usize>> {
        let channels = match layout {
            Layout::Last(channels) if self.shape(a).len() == 2 => channels.max(1),
            _ => 1,
        };
        let pixels = k / channels;
        (channels > 1 && pixels > 1).then(|| (0..k).map(|i| (i % channels) * pixels + i / channels).collect())
    }

    #[allow(clippy::too_many_arguments)]
    fn dense<W: Weights + 'static>(
        &mut self,
        kernel: &str,
        x: super::build::Buf,
        rows: usize,
        k: usize,
        n: usize,
        weights: W,
        chain: &Chain,
    ) -> Option<()> {
        let residual = self.residual(chain, Layout::Plain)?;
        let (out, store, dtype) = self.store_rounded(chain, Layout::Plain);
        let info = self.info(kernel, &chain.nodes, Some(chain.result), dtype);
        let reads: Vec<_> = [x].into_iter().chain(residual.map(|r| r.0)).collect();
        let work = Product {
            rows: Rows::Dense { rows, k },
            groups: vec![weights],
            group_cols: n,
            cols: n,
            pad: Vec::new(),
            residual: residual.map(|r| r.1),
            activation: chain.activation,
            store,
            lines: None,
            macs: usize::try_from(info.macs).unwrap_or(usize::MAX),
        };
        self.build.step(info, work, &reads, &[out]);
        Some(())
    }

    fn dynamic_product(&mut self, x: &Dynamic, rows: usize, weights: RowBytes, chain: &Chain) -> Option<()> {
        let residual = self.residual(chain, Layout::Plain)?;
        let (out, store, dtype) = self.store(chain, Layout::Plain);
        let info = self.info("gemm.dynamic", &chain.nodes, Some(chain.result), dtype);
        let reads: Vec<_> = x.reads().into_iter().chain(residual.map(|r| r.0)).collect();
        let work = DynamicProduct {
            rows,
            weights,
            residual: residual.map(|r| r.1),
            activation: chain.activation,
            store,
            macs: usize::try_from(info.macs).unwrap_or(usize::MAX),
        };
        self.build.step(info, work, &reads, &[out]);
        Some(())
    }

    /// Both operands known at run time only: `b` is packed anew in every run.
    fn batched(&mut self, a: ValueId, b: ValueId, chain: &Chain) -> Option<()> {
        let plain =
            chain.nodes.len() == 1 && chain.activation == Activation::None && chain.quantize.is_none();
        if !plain {
            return None;
        }
        let (source_a, left) = self.matrices(a, false);
        let (source_b, right) = self.matrices(b, true);
        let (a_batch, &[m, k]) = left.shape.split_last_chunk::<2>()?;
        let (b_batch, &[_, n]) = right.shape.split_last_chunk::<2>()?;
        let batch = joint(a_batch, b_batch);
        let products = starts(&left, &batch).into_iter().zip(starts(&right, &batch)).collect();
        let work = BatchProduct::new([m, k, n], row_step(&left)?, right_operand(&right)?, products);
        let (a, b) = (self.plain(source_a)?, self.plain(source_b)?);
        let (out, _, dtype) = self.store(chain, Layout::Plain);
        let info = self.info("matmul.f32", &chain.nodes, Some(chain.result), dtype);
        self.build.step(info, work, &[a, b], &[out]);
        Some(())
    }

    /// The value to read and the view of it that holds the matrices of `v`: one-dimensional operands are a row
    /// on the left and a column on the right; the result has the same elements.
    pub(crate) fn matrices(&self, v: ValueId, on_the_right: bool) -> (ValueId, View) {
        let (source, mut view) = match self.views.get(&v) {
            Some((source, view)) => (*source, view.clone()),
            None => (v, View::of(&self.shape(v))),
        };
        if view.shape.len() == 1 {
            let at = usize::from(on_the_right);
            view.shape.insert(at, 1);
            view.strides.insert(at, at as isize);
        }
        (source, view)
    }
}

/// The joint extents of two batches of matrices, by NumPy's rule.
pub(crate) fn joint(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let extent = |shape: &[usize], i: usize| (i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    (0..rank).map(|i| extent(a, i).max(extent(b, i))).collect()
}

/// Where each matrix of a joint batch begins.
pub(crate) fn starts(view: &View, batch: &[usize]) -> Vec<usize> {
    let rank = view.shape.len() - 2;
    let (shape, strides) = (view.shape[..rank].to_vec(), view.strides[..rank].to_vec());
    View { start: view.start, shape, strides }.broadcast(batch).offsets()
}

/// The distance between the rows of matrices with contiguous rows.
pub(crate) fn row_step(view: &View) -> Option<usize> {
    match (&view.strides[..], view.shape.last()) {
        ([.., step, 1], _) | ([.., step, _], Some(1)) => usize::try_from(*step).ok(),
        _ => None,
    }
}

/// How matrices lie that stand on the right of a product.
pub(crate) fn right_operand(view: &View) -> Option<Right> {
    let (order, step) = match view.strides[..] {
        [.., step, 1] => (Order::Rows, step),
        [.., 1, step] => (Order::Columns, step),
        _ => return None,
    };
    Some(Right { order, step: usize::try_from(step).ok()? })
}
