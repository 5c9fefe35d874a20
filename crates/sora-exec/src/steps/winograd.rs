//! Convolutions of 3×3 windows by Winograd's algorithm.

use std::ops::Range;
use std::sync::Arc;

use sora_kernels::{
    Activation, EpilogueF32, Images, Kernels, MatMut, PackedWinograd, Residual, winograd_f32,
};

use super::{Cx, Io, Work};

/// `activation(conv(images, weights) + bias + residual)`.
///
/// Inputs: channels-last images, then the residual. Outputs: channels-last images, and scratch memory
/// of [`Winograd::scratch_len`] elements.
pub(crate) struct Winograd {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    pub(crate) input: [usize; 2],
    pub(crate) pad: [usize; 2],
    pub(crate) output: [usize; 2],
    pub(crate) packed: Arc<PackedWinograd>,
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) residual: bool,
    pub(crate) activation: Activation,
    /// Multiply-adds in all, for the decision to split.
    pub(crate) macs: usize,
}

/// Tiles below which work is split between columns, each part transforming the whole input.
const FEW_TILES: usize = 64;

/// Rows of tiles, and columns of the result.
type Part = (Range<usize>, Range<usize>);

impl Winograd {
    /// Elements of scratch memory that a run on this many threads needs.
    pub(crate) fn scratch_len(&self, threads: usize) -> usize {
        let needed = |parts| self.parts(parts).iter().map(|(rows, _)| self.scratch_of(rows)).sum::<usize>();
        needed(1).max(needed(threads))
    }

    fn scratch_of(&self, rows: &Range<usize>) -> usize {
        self.packed.scratch_len(rows.len() * self.output[1].div_ceil(self.packed.edge().pixels()))
    }

    /// At most `parts` parts of nearly equal size.
    fn parts(&self, parts: usize) -> Vec<Part> {
        let (n, granule, edge) = (self.packed.n(), self.packed.col_granule(), self.packed.edge());
        let rows = self.view(&[]).tile_rows(edge);
        let panels = n.div_ceil(granule);
        let few = rows * self.output[1].div_ceil(edge.pixels()) < FEW_TILES;
        let cut = |extent: usize| {
            let parts = parts.clamp(1, extent.max(1));
            (0..parts).map(move |i| i * extent / parts..(i + 1) * extent / parts)
        };
        if few && panels >= parts {
            let columns = |p: Range<usize>| p.start * granule..(p.end * granule).min(n);
            return cut(panels).map(|p| (0..rows, columns(p))).collect();
        }
        cut(rows).map(|rows| (rows, 0..n)).collect()
    }

    fn view<'a>(&self, data: &'a [f32]) -> Images<'a> {
        let &Winograd { images, input, channels, pad, output, .. } = self;
        Images { data, images, input, channels, pad, output }
    }

    fn part(
        &self,
        kernels: Kernels,
        x: &Images,
        residual: &[f32],
        (rows, columns): Part,
        scratch: &mut [f32],
        out: MatMut<f32>,
    ) {
        let ld = self.packed.n();
        let skip = x.first_pixel(self.packed.edge(), rows.start) * ld;
        let residual = self.residual.then(|| Residual::F32 { data: &residual[skip..], ld });
        let epilogue = EpilogueF32 { bias: self.bias.as_deref(), residual, activation: self.activation };
        winograd_f32(kernels, x, rows, &self.packed, columns.start, &epilogue, scratch, out);
    }
}

impl Work for Winograd {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let x = self.view(io.input(0));
        let residual = if self.residual { io.input::<f32>(1) } else { &[] };
        let (n, pixels) = (self.packed.n(), self.images * self.output[0] * self.output[1]);
        let mut out = MatMut::new(io.output_at(0), pixels, n, n);
        let mut scratch = io.output_at::<f32>(1);
        let parts = cx.threads.parts(self.macs);
        if parts == 1 {
            let rows = x.tile_rows(self.packed.edge());
            self.part(cx.kernels, &x, residual, (0..rows, 0..n), scratch, out);
            return Ok(());
        }
        let mut work = Vec::with_capacity(parts);
        for (rows, columns) in self.parts(parts) {
            // Parts follow each other either downwards or to the right.
            let [start, end] = [rows.start, rows.end].map(|r| x.first_pixel(self.packed.edge(), r));
            let (mine, rest) = match columns.len() == n {
                true => out.split_at_row(end - start),
                false => out.split_at_col(columns.len()),
            };
            let (memory, others) = scratch.split_at_mut(self.scratch_of(&rows));
            work.push(((rows, columns), memory, mine));
            (out, scratch) = (rest, others);
        }
        cx.threads.each(work, |(part, scratch, out)| {
            self.part(cx.kernels, &x, residual, part, scratch, out);
        });
        Ok(())
    }

    fn weight_bytes(&self) -> usize {
        self.packed.bytes()
    }
}
