//! What training computes beside the steps of inference.

use sora_ir::ops::Random;
use sora_kernels::{Indirect, column_sums, correlate_depthwise_f32, correlate_f32, max_grad_f32};

use super::window::Windows;
use super::{Cx, Io, Work};
use crate::threads::MOVE_COST;

/// `Σ x[window][channel] · dy[pixel][column]` over all pixels of a batch: `[taps][channels][n]`. Inputs: channels-last
/// images, and the gradient of the convolution's result, channels last.
pub(crate) struct Correlate {
    pub(crate) windows: Windows,
    pub(crate) n: usize,
}

impl Work for Correlate {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, dy, out) = (io.input::<f32>(0), io.input::<f32>(1), io.output::<f32>());
        let (w, n) = (&self.windows, self.n);
        let pixels = w.images * w.rows;
        // Whole pieces, where there are enough of them.
        let granule = if w.taps >= 2 * cx.threads.count() { w.kc * n } else { n };
        cx.threads.chunks(out.len() * pixels, granule, out, |start, out| {
            out.fill(0.0);
            for (range, base, offsets) in w.calls(0, pixels) {
                let rows = Indirect { base: &x[base..], offsets, taps: w.taps, kc: w.kc, pad: &[] };
                correlate_f32(cx.kernels, &rows, &dy[range.start * n..range.end * n], n, start / n, out);
            }
        });
        Ok(())
    }
}

/// [`Correlate`] of each channel with itself: `[taps][channels]`.
pub(crate) struct CorrelateDepthwise {
    pub(crate) windows: Windows,
}

impl Work for CorrelateDepthwise {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, dy, out) = (io.input::<f32>(0), io.input::<f32>(1), io.output::<f32>());
        let w = &self.windows;
        let pixels = w.images * w.rows;
        // Each thread sums some channels, whose results then lie side by side.
        let parts = cx.threads.parts(out.len() * pixels);
        let each = w.kc.div_ceil(parts).next_multiple_of(32);
        let sums = (0..w.kc).step_by(each).map(|first| (first, vec![0.0; w.taps * each.min(w.kc - first)]));
        let mut sums: Vec<(usize, Vec<f32>)> = sums.collect();
        cx.threads.each(&mut sums, |(first, sums)| {
            for (range, base, offsets) in w.calls(0, pixels) {
                let rows = Indirect { base: &x[base..], offsets, taps: w.taps, kc: w.kc, pad: &[] };
                correlate_depthwise_f32(
                    cx.kernels,
                    &rows,
                    &dy[range.start * w.kc..range.end * w.kc],
                    *first,
                    sums,
                );
            }
        });
        for (first, sums) in sums {
            let columns = sums.len() / w.taps;
            for (out, sums) in out.chunks_exact_mut(w.kc).zip(sums.chunks_exact(columns)) {
                out[first..first + columns].copy_from_slice(sums);
            }
        }
        Ok(())
    }
}

/// The gradient of a maximum over windows. Inputs: channels-last images, and the gradient of the pooled ones.
pub(crate) struct MaxGradient {
    pub(crate) windows: Windows,
}

impl Work for MaxGradient {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, dy, out) = (io.input::<f32>(0), io.input::<f32>(1), io.output::<f32>());
        let w = &self.windows;
        cx.threads.chunks(out.len() * MOVE_COST, w.image_len, out, |start, out| {
            out.fill(0.0);
            let (first, images) = (start / w.image_len, out.len() / w.image_len);
            for (range, base, offsets) in w.calls(first * w.rows, (first + images) * w.rows) {
                let count = range.len() / w.rows * w.image_len;
                let rows =
                    Indirect { base: &x[base..base + count], offsets, taps: w.taps, kc: w.kc, pad: &[] };
                let dy = &dy[range.start * w.kc..range.end * w.kc];
                max_grad_f32(cx.kernels, &rows, dy, &mut out[base - start..][..count]);
            }
        });
        Ok(())
    }
}

/// The second input where the first is greater than a number, or less, else 0.
pub(crate) struct Gate {
    pub(crate) greater: bool,
    pub(crate) limit: f32,
}

impl Work for Gate {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (y, dy, out) = (io.input::<f32>(0), io.input::<f32>(1), io.output::<f32>());
        cx.threads.chunks(out.len() * MOVE_COST, 64, out, |start, out| {
            let all = out.iter_mut().zip(&y[start..]).zip(&dy[start..]);
            match self.greater {
                true => all.for_each(|((out, &y), &dy)| *out = if y > self.limit { dy } else { 0.0 }),
                false => all.for_each(|((out, &y), &dy)| *out = if y < self.limit { dy } else { 0.0 }),
            }
        });
        Ok(())
    }
}

/// The sum of each column of a matrix, or of the squares, times a factor.
pub(crate) struct ColumnSums {
    pub(crate) cols: usize,
    pub(crate) squared: bool,
    pub(crate) factor: f32,
}

impl Work for ColumnSums {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, out) = (io.input::<f32>(0), io.output::<f32>());
        cx.threads.chunks(x.len() * MOVE_COST, 16, out, |start, out| {
            column_sums(cx.kernels, x, self.cols, start, self.squared, out);
            if self.factor != 1.0 {
                out.iter_mut().for_each(|sum| *sum *= self.factor);
            }
        });
        Ok(())
    }
}

/// Uniform random numbers. The input, if any, is the integer that they follow from beside the seed.
pub(crate) struct Uniform {
    pub(crate) op: Random,
}

impl Work for Uniform {
    fn run(&self, _: &Cx, mut io: Io) -> Result<(), String> {
        let run = if io.ins.is_empty() { None } else { io.input::<i64>(0).first().copied() };
        self.op.fill_uniform(run, io.output());
        Ok(())
    }
}
