//! Convolutions of bytes with 3×3 windows by Winograd's algorithm.

use std::sync::Arc;

use sora_kernels::{Activation, ByteImages, Kernels, MatMut, Output, PackedWinogradI8, Quant, winograd_u8i8};

use super::gemm::{Columns, Finish, ResidualKind, Store, residual_from};
use super::{Cx, Io, Work};

/// `store(activation(conv(images, weights) + bias + residual))`.
///
/// Inputs: channels-last images, then the residual. Outputs: channels-last images, and scratch memory
/// of [`WinogradBytes::scratch_len`] elements.
pub(crate) struct WinogradBytes {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    pub(crate) input: [usize; 2],
    pub(crate) pad: [usize; 2],
    pub(crate) zero: u8,
    pub(crate) output: [usize; 2],
    pub(crate) packed: Arc<PackedWinogradI8>,
    pub(crate) columns: Columns,
    pub(crate) residual: Option<ResidualKind>,
    pub(crate) activation: Activation,
    pub(crate) store: Store,
    /// Multiply-adds in all, for the decision to split.
    pub(crate) macs: usize,
}

impl WinogradBytes {
    fn view<'a>(&self, data: &'a [u8]) -> ByteImages<'a> {
        let &WinogradBytes { images, input, channels, pad, zero, output, .. } = self;
        ByteImages { data, images, input, channels, pad, zero, output }
    }

    /// Elements of scratch memory that a part of `1/parts` of the rows of tiles needs.
    fn scratch_of(&self, parts: usize) -> usize {
        let x = self.view(&[]);
        self.packed.scratch_len(x.tile_rows().div_ceil(parts) * x.across())
    }

    /// Elements of scratch memory that a run on at most this many threads needs.
    pub(crate) fn scratch_len(&self, threads: usize) -> usize {
        (1..=threads.max(1)).map(|parts| parts * self.scratch_of(parts)).max().unwrap_or(0)
    }

    fn rows(
        &self,
        kernels: Kernels,
        x: &ByteImages,
        residual: &[u8],
        rows: std::ops::Range<usize>,
        scratch: &mut [i32],
        out: Output,
    ) {
        let ld = self.columns.scale.len();
        let first = x.first_pixel(rows.start) * ld;
        let residual = self.residual.map(|kind| residual_from(kind, residual, first, ld));
        let epilogue = self.columns.finished(Finish { residual, activation: self.activation });
        winograd_u8i8(kernels, x, rows, &self.packed, &epilogue, scratch, out);
    }
}

impl Work for WinogradBytes {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let x = self.view(io.input(0));
        let residual = if self.residual.is_some() { io.ins[1] } else { &[] };
        let (n, pixels) = (self.columns.scale.len(), self.images * self.output[0] * self.output[1]);
        let mut out = match self.store {
            Store::Real => Output::F32(MatMut::new(io.output_at(0), pixels, n, n)),
            Store::Bf16 => Output::Bf16(MatMut::new(io.output_at(0), pixels, n, n)),
            Store::Bytes(a) => {
                Output::U8(MatMut::new(io.output_at(0), pixels, n, n), Quant::new(a.scale, a.zero_point))
            }
        };
        let scratch = io.output_at::<i32>(1);
        let total = x.tile_rows();
        let parts = cx.threads.parts(self.macs).min(total).max(1);
        if parts == 1 {
            self.rows(cx.kernels, &x, residual, 0..total, scratch, out);
            return Ok(());
        }
        let mut work = Vec::with_capacity(parts);
        for (i, memory) in scratch.chunks_exact_mut(self.scratch_of(parts)).take(parts).enumerate() {
            let rows = i * total / parts..(i + 1) * total / parts;
            let (mine, rest) = out.split_at_row(x.first_pixel(rows.end) - x.first_pixel(rows.start));
            work.push((rows, memory, mine));
            out = rest;
        }
        cx.threads.each(work, |(rows, scratch, out)| {
            self.rows(cx.kernels, &x, residual, rows, scratch, out);
        });
        Ok(())
    }

    fn weight_bytes(&self) -> usize {
        self.packed.bytes()
    }
}
