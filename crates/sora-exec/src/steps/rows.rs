//! Functions of contiguous rows.

use sora_kernels::rows;

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
