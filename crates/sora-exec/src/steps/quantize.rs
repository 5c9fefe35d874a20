//! Between real numbers and bytes or bf16.

use sora_kernels::{Dequant, bf16, quantize};

use super::{Cx, Io, Work};
use crate::lower::layout::Affine;
use crate::threads::MOVE_COST;

/// `f32` to unsigned bytes.
pub(crate) struct Quantize {
    pub(crate) affine: Affine,
}

impl Work for Quantize {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, out) = (io.input::<f32>(0), io.output::<u8>());
        let Affine { scale, zero_point } = self.affine;
        cx.threads.chunks(x.len() * MOVE_COST, 64, out, |start, out| {
            quantize::quantize_u8(cx.kernels, &x[start..][..out.len()], scale, zero_point, out);
        });
        Ok(())
    }
}

/// Unsigned bytes to `f32`.
pub(crate) struct Dequantize {
    pub(crate) affine: Affine,
}

impl Work for Dequantize {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, out) = (io.input::<u8>(0), io.output::<f32>());
        let input = dequant(self.affine);
        cx.threads.chunks(x.len() * MOVE_COST, 64, out, |start, out| {
            quantize::dequantize_u8(cx.kernels, &x[start..][..out.len()], input, out);
        });
        Ok(())
    }
}

/// `f32` to the nearest bf16.
pub(crate) struct RoundBf16;

impl Work for RoundBf16 {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, out) = (io.input::<f32>(0), io.output::<u16>());
        cx.threads.chunks(x.len() * MOVE_COST, 64, out, |start, out| {
            bf16::round_all(cx.kernels, &x[start..][..out.len()], out);
        });
        Ok(())
    }
}

/// bf16 to `f32`.
pub(crate) struct WidenBf16;

impl Work for WidenBf16 {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, out) = (io.input::<u16>(0), io.output::<f32>());
        cx.threads.chunks(x.len() * MOVE_COST, 64, out, |start, out| {
            bf16::widen_all(cx.kernels, &x[start..][..out.len()], out);
        });
        Ok(())
    }
}

/// Signed bytes to those plus 128 as unsigned bytes, and back: both flip the upper bit.
pub(crate) struct Flip;

impl Work for Flip {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, out) = (io.input::<i8>(0), io.output::<u8>());
        quantize::i8_to_u8(cx.kernels, x, out);
        Ok(())
    }
}

/// A function of bytes, as a table.
pub(crate) struct Table {
    pub(crate) table: Box<[u8; 256]>,
}

impl Work for Table {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, out) = (io.input::<u8>(0), io.output::<u8>());
        if x.is_empty() {
            cx.threads.chunks(out.len() * MOVE_COST, 64, out, |_, out| {
                quantize::lut_u8_inplace(cx.kernels, out, &self.table);
            });
        } else {
            cx.threads.chunks(out.len() * MOVE_COST, 64, out, |start, out| {
                quantize::lut_u8(cx.kernels, &x[start..][..out.len()], &self.table, out);
            });
        }
        Ok(())
    }
}

/// The kernels' name for an affine encoding.
pub(crate) fn dequant(affine: Affine) -> Dequant {
    Dequant { scale: affine.scale, zero_point: affine.zero_point }
}
