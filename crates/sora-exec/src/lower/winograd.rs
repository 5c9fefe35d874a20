//! Chooses Winograd's algorithm for convolutions, and its tile.

use sora_kernels::{PackedWinograd, TileEdge};
use sora_tensor::{DType, Tensor};

use super::Lowering;
use super::build::Buf;
use super::chain::Chain;
use super::layout::{Layout, numbers};
use crate::steps::gemm::ResidualKind;
use crate::steps::window::Geometry;
use crate::steps::winograd::Winograd;

/// A dense convolution of two-dimensional images.
pub(super) struct Dense<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) images: usize,
    pub(super) channels: usize,
    pub(super) n: usize,
}

/// Bytes of weights that stay in cache from run to run, beside those of other layers.
const CACHED: usize = 256 * 1024;
/// Multiply-adds in the time that a byte of weights takes from memory.
const BYTE: usize = 3;
/// Multiply-adds in the time that an element of a tile takes to be transformed, there or back.
const TRANSFORM: usize = 12;

impl Dense<'_> {
    /// The tile that promises to be faster than the direct convolution, if one does.
    fn edge(&self) -> Option<TileEdge> {
        let g = self.geometry;
        let same = |values: &[usize], value| values.iter().all(|&v| v == value);
        let suits = g.kernel == [3, 3] && same(&g.strides, 1) && same(&g.dilations, 1);
        if !suits || self.channels < 16 || self.n < 16 {
            return None;
        }
        let products = |positions: usize, elements: usize| {
            let arithmetic = positions * elements * self.channels * self.n;
            let bytes = 4 * elements * self.channels * self.n;
            arithmetic.max(bytes.saturating_sub(CACHED) * BYTE)
        };
        let direct = products(self.images * g.outputs(), g.taps());
        let cost = |edge: TileEdge| {
            let tiles: usize =
                self.images * g.output.iter().map(|o| o.div_ceil(edge.pixels())).product::<usize>();
            let elements = edge.elements();
            products(tiles, elements) + tiles * elements * (self.channels + self.n) * TRANSFORM
        };
        let best = [TileEdge::Four, TileEdge::Two].into_iter().min_by_key(|&edge| cost(edge))?;
        (cost(best) < direct).then_some(best)
    }
}

impl Lowering<'_> {
    /// Emits a convolution by Winograd's algorithm; `None` where that does not apply or not pay.
    pub(super) fn winograd(
        &mut self,
        conv: &Dense,
        x: Buf,
        constant: &Tensor,
        bias: Option<&[f32]>,
        chain: &Chain,
    ) -> Option<()> {
        let edge = conv.edge()?;
        let g = conv.geometry;
        let (&[height, width], &[top, left], &[down, across]) = (&g.input[..], &g.pads[..], &g.output[..])
        else {
            return None;
        };
        let layout = Layout::Last(conv.n);
        let residual = self.residual(chain, layout)?;
        if chain.quantize.is_some() || matches!(residual, Some((_, ResidualKind::Bytes(_)))) {
            return None;
        }
        let shape = (edge, conv.channels, conv.n);
        let packed = self.weights.get(constant, "OIHW", shape, || {
            let weights: Vec<f32> = numbers(constant).iter().map(|&w| f32::from_ne_bytes(w)).collect();
            PackedWinograd::pack(self.kernels, edge, conv.channels, conv.n, &weights)
        });
        let (out, _, dtype) = self.store(chain, layout);
        let info = self.info("winograd.f32", &chain.nodes, Some(chain.result), dtype);
        let work = Winograd {
            images: conv.images,
            channels: conv.channels,
            input: [height, width],
            pad: [top, left],
            output: [down, across],
            packed,
            bias: bias.map(<[f32]>::to_vec),
            residual: residual.is_some(),
            activation: chain.activation,
            macs: usize::try_from(info.macs).unwrap_or(usize::MAX),
        };
        let scratch = self.build.arena(work.scratch_len(self.threads) * DType::F32.size());
        let reads: Vec<Buf> = [x].into_iter().chain(residual.map(|r| r.0)).collect();
        self.build.step(info, work, &reads, &[out, scratch]);
        Some(())
    }
}
