//! Pooling over channels-last images.

use bytemuck::Pod;
use sora_kernels::{Indirect, Kernels, MatMut, Quant, pool};

use super::quantize::dequant;
use super::window::Windows;
use super::{Cx, Io, Work};
use crate::lower::layout::Affine;

/// Runs `call` on bands of output pixels.
fn bands<T: Pod + Send + Sync, O: Pod + Send>(
    cx: &Cx,
    w: &Windows,
    x: &[T],
    out: &mut [O],
    call: impl Fn(&Indirect<'_, T>, usize, MatMut<'_, O>) + Sync,
) {
    let work = out.len() * w.taps;
    cx.threads.chunks(work, w.kc, out, |start, out| {
        let first = start / w.kc;
        for (range, base, offsets) in w.calls(first, first + out.len() / w.kc) {
            let rows = Indirect { base: &x[base..], offsets, taps: w.taps, kc: w.kc, pad: &[] };
            let band = &mut out[(range.start - first) * w.kc..(range.end - first) * w.kc];
            call(&rows, range.start % w.rows, MatMut::new(band, range.len(), w.kc, w.kc));
        }
    });
}

/// The greatest element of each window.
pub(crate) struct Max {
    pub(crate) windows: Windows,
    pub(crate) element: MaxElement,
}

/// The elements that [`Max`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaxElement {
    F32,
    Bf16,
    U8,
    I8,
}

impl Work for Max {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let k: Kernels = cx.kernels;
        let w = &self.windows;
        match self.element {
            MaxElement::F32 => bands(cx, w, io.input(0), io.output(), |a, _, out| pool::max_f32(k, a, out)),
            MaxElement::Bf16 => bands(cx, w, io.input(0), io.output(), |a, _, out| pool::max_bf16(k, a, out)),
            MaxElement::U8 => bands(cx, w, io.input(0), io.output(), |a, _, out| pool::max_u8(k, a, out)),
            MaxElement::I8 => bands(cx, w, io.input(0), io.output(), |a, _, out| pool::max_i8(k, a, out)),
        }
        Ok(())
    }
}

/// The average of each window, in `f32` or in bytes.
pub(crate) struct Average {
    pub(crate) windows: Windows,
    /// For each output pixel of the batch, what the window's sum is divided by.
    pub(crate) divisors: Vec<f32>,
    /// Encodings of input and output, when they are bytes.
    pub(crate) bytes: Option<[Affine; 2]>,
}

impl Work for Average {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (k, w) = (cx.kernels, &self.windows);
        // Calls begin anywhere in an image and may span several, all with the same divisors.
        let divisors = |first: usize, rows: usize| &self.divisors[first..first + rows];
        match self.bytes {
            None => bands(cx, w, io.input(0), io.output(), |a, first, out| {
                pool::average_f32(k, a, divisors(first, a.rows()), out);
            }),
            Some([input, output]) => {
                let quant = Quant::new(output.scale, output.zero_point);
                bands(cx, w, io.input(0), io.output(), |a, first, out| {
                    pool::average_u8(k, a, divisors(first, a.rows()), dequant(input), out, quant);
                });
            }
        }
        Ok(())
    }
}

/// The elements that [`GlobalAverage`] averages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum MeanElement {
    F32,
    /// With an average in `f32`.
    Bf16,
    /// Bytes, with the encodings of input and output.
    Bytes([Affine; 2]),
}

/// The average of each image, per channel.
pub(crate) struct GlobalAverage {
    pub(crate) pixels: usize,
    pub(crate) channels: usize,
    pub(crate) element: MeanElement,
}

impl Work for GlobalAverage {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (pixels, channels) = (self.pixels, self.channels);
        match self.element {
            MeanElement::Bf16 => {
                let (x, out) = (io.input::<u16>(0), io.output::<f32>());
                for (x, out) in x.chunks_exact(pixels * channels).zip(out.chunks_exact_mut(channels)) {
                    pool::global_average_bf16(cx.kernels, x, pixels, channels, out);
                }
            }
            MeanElement::F32 => {
                let (x, out) = (io.input::<f32>(0), io.output::<f32>());
                for (x, out) in x.chunks_exact(pixels * channels).zip(out.chunks_exact_mut(channels)) {
                    pool::global_average_f32(cx.kernels, x, pixels, channels, out);
                }
            }
            MeanElement::Bytes([input, output]) => {
                let quant = Quant::new(output.scale, output.zero_point);
                let (x, out) = (io.input::<u8>(0), io.output::<u8>());
                for (x, out) in x.chunks_exact(pixels * channels).zip(out.chunks_exact_mut(channels)) {
                    pool::global_average_u8(cx.kernels, x, pixels, channels, dequant(input), out, quant);
                }
            }
        }
        Ok(())
    }
}
