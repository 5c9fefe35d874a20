//! Functions of one or two tensors, element by element.

use sora_kernels::elementwise::{self, Rhs};
use sora_kernels::{Activation, Kernels, Quant, bf16, quantize};

use super::quantize::dequant;
use super::tape::Function;
use super::{Cx, Io, Work};
use crate::lower::layout::Affine;
use crate::threads::MOVE_COST;

/// A function of every element.
pub(crate) struct Unary {
    pub(crate) op: elementwise::Unary,
}

impl Work for Unary {
    fn function(&self) -> Option<Function> {
        Some(Function::Unary(self.op))
    }

    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, out) = (io.input::<f32>(0), io.output::<f32>());
        cx.threads.chunks(out.len() * MOVE_COST, 64, out, |start, out| match x.is_empty() {
            true => elementwise::unary_inplace(cx.kernels, self.op, out),
            false => elementwise::unary(cx.kernels, self.op, &x[start..][..out.len()], out),
        });
        Ok(())
    }
}

/// How the right operand of a binary function repeats along the left one: over blocks of `block` elements
/// of the left operand, the n-th of which starts at `starts[n]` of the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broadcast {
    pub(crate) block: usize,
    pub(crate) starts: Vec<usize>,
    pub(crate) pattern: Pattern,
}

/// How the right operand repeats within a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Not at all.
    Same,
    /// One element for the block.
    Scalar,
    /// A row of this many elements, again and again.
    Row(usize),
    /// Each element as often as this.
    Column(usize),
}

impl Broadcast {
    /// Two operands of the same length.
    pub(crate) fn same(len: usize) -> Self {
        Broadcast { block: len, starts: vec![0], pattern: Pattern::Same }
    }

    fn rhs<'a, T: Copy>(&self, b: &'a [T], n: usize) -> Rhs<'a, T> {
        let b = &b[self.starts[n]..];
        match self.pattern {
            Pattern::Same => Rhs::Same(&b[..self.block]),
            Pattern::Scalar => Rhs::Scalar(b[0]),
            Pattern::Row(len) => Rhs::Row(&b[..len]),
            Pattern::Column(period) => Rhs::Column { values: &b[..self.block / period], period },
        }
    }

    /// Calls `run` on the pieces of `out` with the first element of each and its right operand.
    pub(super) fn each<T: Copy + Sync, O: Send>(
        &self,
        cx: &Cx,
        b: &[T],
        out: &mut [O],
        run: impl Fn(usize, Rhs<'_, T>, &mut [O]) + Sync,
    ) {
        let work = out.len() * MOVE_COST;
        if self.starts.len() > 1 || cx.threads.parts(work) == 1 {
            return cx.threads.chunks(work, self.block, out, |start, out| {
                for (n, out) in out.chunks_mut(self.block.max(1)).enumerate() {
                    let n = start / self.block.max(1) + n;
                    run(n * self.block, self.rhs(b, n), out);
                }
            });
        }
        let granule = match self.pattern {
            Pattern::Same | Pattern::Scalar => 64,
            Pattern::Row(len) => len,
            Pattern::Column(period) => period,
        };
        cx.threads.chunks(work, granule, out, |start, out| {
            let rhs = match self.rhs(b, 0) {
                Rhs::Same(b) => Rhs::Same(&b[start..][..out.len()]),
                Rhs::Column { values, period } => {
                    Rhs::Column { values: &values[start / period..][..out.len() / period], period }
                }
                other => other,
            };
            run(start, rhs, out);
        });
    }
}

/// A function of two `f32` tensors; the left one has the result's shape.
pub(crate) struct Binary {
    pub(crate) op: elementwise::Binary,
    pub(crate) broadcast: Broadcast,
}

impl Work for Binary {
    fn function(&self) -> Option<Function> {
        match (self.broadcast.pattern, &self.broadcast.starts[..]) {
            (Pattern::Same, [0]) => Some(Function::Binary(self.op)),
            (Pattern::Scalar, [0]) => Some(Function::Scaled(self.op)),
            _ => None,
        }
    }

    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (a, b, out) = (io.input::<f32>(0), io.input::<f32>(1), io.output::<f32>());
        self.broadcast.each(cx, b, out, |start, rhs, out| match a.is_empty() {
            true => elementwise::binary_inplace(cx.kernels, self.op, out, rhs),
            false => elementwise::binary(cx.kernels, self.op, &a[start..][..out.len()], rhs, out),
        });
        Ok(())
    }
}

/// The channels of bf16 images `[n][pixels][channels]` by one `f32` factor each, of each image.
pub(crate) struct ScaleColumns {
    pub(crate) channels: usize,
    pub(crate) pixels: usize,
}

impl Work for ScaleColumns {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (a, by, out) = (io.input::<u16>(0), io.input::<f32>(1), io.output::<u16>());
        let work = out.len() * MOVE_COST;
        cx.threads.chunks(work, self.channels, out, |start, out| {
            let mut at = start;
            while at < start + out.len() {
                // Up to where the image ends.
                let image = at / (self.channels * self.pixels);
                let end = (start + out.len()).min((image + 1) * self.channels * self.pixels);
                let by = &by[image * self.channels..][..self.channels];
                bf16::scale_columns(cx.kernels, &a[at..end], by, &mut out[at - start..end - start]);
                at = end;
            }
        });
        Ok(())
    }
}

/// A function of two tensors of bytes; the left one has the result's shape.
pub(crate) struct BinaryBytes {
    pub(crate) op: elementwise::Binary,
    pub(crate) broadcast: Broadcast,
    pub(crate) operands: [Affine; 2],
    pub(crate) activation: Activation,
    pub(crate) result: Affine,
}

impl BinaryBytes {
    /// The function of operands in memory.
    pub(crate) fn apply(&self, kernels: Kernels, a: &[u8], b: Rhs<'_, u8>, out: &mut [u8]) {
        let [da, db] = self.operands.map(dequant);
        let quant = Quant::new(self.result.scale, self.result.zero_point);
        quantize::binary_u8(kernels, self.op, a, da, b, db, self.activation, out, quant);
    }
}

impl Work for BinaryBytes {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (a, b, out) = (io.input::<u8>(0), io.input::<u8>(1), io.output::<u8>());
        self.broadcast.each(cx, b, out, |start, rhs, out| {
            self.apply(cx.kernels, &a[start..][..out.len()], rhs, out);
        });
        Ok(())
    }
}
