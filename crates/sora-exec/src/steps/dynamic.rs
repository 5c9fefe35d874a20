//! Quantization over ranges found at run time, and products with what it gives.

use std::sync::Arc;

use sora_kernels::{
    ARows, Activation, Dense, Dequant, EpilogueRows, Kernels, MatMut, Output, PackedI8, Quant,
    gemm_u8i8_rows, quantize,
};

use super::gemm::{ResidualKind, Store, bands, residual_from};
use super::{Cx, Io, Work};
use crate::threads::MOVE_COST;

/// Quantizes rows of `cols` values over their own ranges; the whole tensor is one row.
///
/// Input: `f32`. Outputs: bytes, then scale and zero point of each row.
pub(crate) struct DynamicQuantize {
    pub(crate) cols: usize,
}

impl Work for DynamicQuantize {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let x = io.input::<f32>(0);
        let (out, scales, zero_points) = (io.output::<u8>(), io.output_at::<f32>(1), io.output_at::<u8>(2));
        let (k, cols, parts) = (cx.kernels, self.cols, cx.threads.parts(x.len() * MOVE_COST));
        if parts == 1 {
            quantize::dynamic_rows_u8(k, x, cols, out, scales, zero_points);
        } else if scales.len() > 1 {
            let rows = scales.len().div_ceil(parts);
            let params = scales.chunks_mut(rows).zip(zero_points.chunks_mut(rows));
            let bands = x.chunks(rows * cols).zip(out.chunks_mut(rows * cols)).zip(params);
            cx.threads.each(bands, |((x, out), (scales, zero_points))| {
                quantize::dynamic_rows_u8(k, x, cols, out, scales, zero_points);
            });
        } else {
            let part = x.len().div_ceil(parts);
            let mut ranges = vec![[0.0f32; 2]; parts];
            cx.threads.each(x.chunks(part).zip(&mut ranges), |(x, range)| {
                *range = quantize::range(k, x);
            });
            let range = ranges.iter().fold([0.0f32; 2], |[low, high], r| [low.min(r[0]), high.max(r[1])]);
            let Dequant { scale, zero_point } = quantize::dynamic_scale(range);
            (scales[0], zero_points[0]) = (scale, zero_point as u8);
            cx.threads.each(x.chunks(part).zip(out.chunks_mut(part)), |(x, out)| {
                quantize::quantize_u8(k, x, scale, zero_point, out);
            });
        }
        Ok(())
    }
}

/// Back to real numbers. Inputs: bytes, scale and zero point of each row.
pub(crate) struct DynamicDequantize {
    pub(crate) cols: usize,
}

impl Work for DynamicDequantize {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, scales, zero_points) = (io.input::<u8>(0), io.input::<f32>(1), io.input::<u8>(2));
        let (cols, out) = (self.cols, io.output::<f32>());
        cx.threads.chunks(x.len() * MOVE_COST, cols, out, |start, out| {
            for (i, out) in out.chunks_mut(cols).enumerate() {
                let row = start / cols + i;
                let input = Dequant { scale: scales[row], zero_point: i32::from(zero_points[row]) };
                quantize::dequantize_u8(cx.kernels, &x[row * cols..][..out.len()], input, out);
            }
        });
        Ok(())
    }
}

/// Byte weights for rows with scales of their own.
pub(crate) struct RowBytes {
    pub(crate) packed: Arc<PackedI8>,
    /// Weight scale by column.
    pub(crate) scale: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
}

/// `store(activation(rows · weights + bias + residual))` for rows quantized at run time.
///
/// Inputs: bytes, scales and zero points of the rows (or one for all), the residual. Output: `[rows][cols]`.
pub(crate) struct DynamicProduct {
    pub(crate) rows: usize,
    pub(crate) weights: RowBytes,
    pub(crate) residual: Option<ResidualKind>,
    pub(crate) activation: Activation,
    pub(crate) store: Store,
    /// Multiply-adds in all, for the decision to split.
    pub(crate) macs: usize,
}

impl RowBytes {
    /// Columns `n0..` of `out` from rows `a`, whose scales are `row_scales`.
    pub(crate) fn multiply(
        &self,
        k: Kernels,
        a: &[u8],
        (row_scales, zero_points): (&[f32], &[u8]),
        n0: usize,
        (residual, activation): (Option<sora_kernels::Residual<'_>>, Activation),
        out: Output<'_>,
    ) {
        let depth = self.packed.kc();
        let a = ARows::Dense(Dense { data: a, rows: out.rows(), stride: depth, k: depth });
        let bias = self.bias.as_deref();
        let epilogue =
            EpilogueRows { row_scales, zero_points, scale: &self.scale, bias, residual, activation };
        gemm_u8i8_rows(k, &a, &self.packed, n0, &epilogue, out);
    }
}

/// Scales and zero points of some rows; one for all stays as it is.
pub(crate) fn of_rows<'a>(
    (scales, zero_points): (&'a [f32], &'a [u8]),
    first: usize,
    rows: usize,
) -> (&'a [f32], &'a [u8]) {
    match scales.len() {
        1 => (scales, zero_points),
        _ => (&scales[first..first + rows], &zero_points[first..first + rows]),
    }
}

impl Work for DynamicProduct {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (rows, cols, depth) = (self.rows, self.weights.packed.n(), self.weights.packed.kc());
        let (x, params) = (io.input::<u8>(0), (io.input::<f32>(1), io.input::<u8>(2)));
        let residual = if self.residual.is_some() { io.ins[3] } else { &[] };
        let out = match self.store {
            Store::Real => Output::F32(MatMut::new(io.output(), rows, cols, cols)),
            Store::Bf16 => Output::Bf16(MatMut::new(io.output(), rows, cols, cols)),
            Store::Bytes(a) => {
                Output::U8(MatMut::new(io.output(), rows, cols, cols), Quant::new(a.scale, a.zero_point))
            }
        };
        let part = |first: usize, n0: usize, out: Output<'_>| {
            let residual = self.residual.map(|kind| residual_from(kind, residual, first * cols, cols));
            let (x, params) = (&x[first * depth..], of_rows(params, first, out.rows()));
            self.weights.multiply(cx.kernels, x, params, n0, (residual, self.activation), out);
        };
        let (parts, granule) = (cx.threads.parts(self.macs), self.weights.packed.col_granule());
        match parts {
            1 => part(0, 0, out),
            _ => cx.threads.each(bands(out, parts, Some(granule)), |(first, n0, band)| part(first, n0, band)),
        }
        Ok(())
    }

    fn weight_bytes(&self) -> usize {
        self.weights.packed.bytes()
    }
}
