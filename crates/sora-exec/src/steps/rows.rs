//! Functions of contiguous rows.

use bytemuck::Pod;
use sora_ir::ops::ReduceKind;
use sora_kernels::rows;
use sora_tensor::DType;

use super::{Cx, Io, Work};
use crate::threads::MOVE_COST;

/// What is done to each row.
pub(crate) enum RowFunction {
    Softmax,
    LogSoftmax,
    LayerNorm { scale: Option<Vec<f32>>, bias: Option<Vec<f32>>, epsilon: f32 },
}

/// A function of rows that keeps their length.
pub(crate) struct MapRows {
    pub(crate) function: RowFunction,
    pub(crate) cols: usize,
}

impl Work for MapRows {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, out) = (io.input::<f32>(0), io.output::<f32>());
        let (k, cols) = (cx.kernels, self.cols);
        cx.threads.chunks(out.len() * MOVE_COST, cols, out, |start, out| {
            let x = &x[start..][..out.len()];
            match &self.function {
                RowFunction::Softmax => rows::softmax(k, x, cols, out),
                RowFunction::LogSoftmax => rows::log_softmax(k, x, cols, out),
                RowFunction::LayerNorm { scale, bias, epsilon } => {
                    rows::layer_norm(k, x, cols, scale.as_deref(), bias.as_deref(), *epsilon, out);
                }
            }
        });
        Ok(())
    }
}

/// One number for each row.
pub(crate) struct ReduceRows {
    pub(crate) op: rows::Reduce,
    pub(crate) cols: usize,
}

impl Work for ReduceRows {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, out) = (io.input::<f32>(0), io.output::<f32>());
        let cols = self.cols;
        cx.threads.chunks(x.len() * MOVE_COST, 1, out, |start, out| {
            rows::reduce(cx.kernels, self.op, &x[start * cols..][..out.len() * cols], cols, out);
        });
        Ok(())
    }
}

/// The sum, the greatest or the least element of each row of integers; sums wrap.
pub(crate) struct ReduceIntegers {
    pub(crate) kind: ReduceKind,
    pub(crate) dtype: DType,
    pub(crate) cols: usize,
}

impl Work for ReduceIntegers {
    fn run(&self, cx: &Cx, io: Io) -> Result<(), String> {
        match (self.dtype, self.kind) {
            (DType::I32, ReduceKind::Sum) => self.fold(cx, io, i32::wrapping_add),
            (DType::I32, ReduceKind::Max) => self.fold(cx, io, i32::max),
            (DType::I32, _) => self.fold(cx, io, i32::min),
            (_, ReduceKind::Sum) => self.fold(cx, io, i64::wrapping_add),
            (_, ReduceKind::Max) => self.fold(cx, io, i64::max),
            _ => self.fold(cx, io, i64::min),
        }
        Ok(())
    }
}

impl ReduceIntegers {
    fn fold<T: Pod + Send + Sync>(&self, cx: &Cx, mut io: Io, f: impl Fn(T, T) -> T + Sync) {
        let (x, out) = (io.input::<T>(0), io.output::<T>());
        cx.threads.chunks(x.len() * MOVE_COST, 1, out, |start, out| {
            for (slot, row) in out.iter_mut().zip(x[start * self.cols..].chunks_exact(self.cols)) {
                *slot = row[1..].iter().fold(row[0], |a, &b| f(a, b));
            }
        });
    }
}

/// The position of the extreme element along an axis: of `[outer][extent][inner]`, `[outer][inner]`.
pub(crate) struct Search {
    pub(crate) extent: usize,
    pub(crate) inner: usize,
    pub(crate) largest: bool,
    /// Whether the last of equal elements wins.
    pub(crate) last: bool,
}

impl Work for Search {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, out) = (io.input::<f32>(0), io.output::<i64>());
        let (extent, inner) = (self.extent, self.inner);
        cx.threads.chunks(x.len() * MOVE_COST, inner, out, |start, out| {
            let x = &x[start * extent..][..out.len() * extent];
            for (block, out) in x.chunks_exact(extent * inner).zip(out.chunks_exact_mut(inner)) {
                // Row by row: the best so far of every column at once.
                let mut best = block[..inner].to_vec();
                out.fill(0);
                for (i, row) in block.chunks_exact(inner).enumerate().skip(1) {
                    for ((best, slot), &value) in best.iter_mut().zip(&mut *out).zip(row) {
                        let wins = if self.largest { value > *best } else { value < *best };
                        if wins || self.last && value == *best {
                            (*best, *slot) = (value, i as i64);
                        }
                    }
                }
            }
        });
        Ok(())
    }
}
