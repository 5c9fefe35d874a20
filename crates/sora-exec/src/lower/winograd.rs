//! Chooses Winograd's algorithm for convolutions, and its tile.

use std::cell::LazyCell;

use sora_kernels::{Isa, Kernels, PackedWinograd, PackedWinogradI8, TileEdge};
use sora_tensor::{DType, Tensor};

use super::Lowering;
use super::build::Buf;
use super::chain::Chain;
use super::layout::{Affine, Layout, numbers};
use super::weights::ByteWeights;
use crate::steps::gemm::Columns;
use crate::steps::window::Geometry;
use crate::steps::winograd::Winograd;
use crate::steps::winograd_bytes::WinogradBytes;
use crate::weights::cheapest;

/// A dense convolution of two-dimensional images.
pub(super) struct Dense<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) images: usize,
    pub(super) channels: usize,
    pub(super) n: usize,
}

/// Ways to convolve, as a [`crate::Tuning`] names them; the first always applies.
const REALS: [&str; 3] = ["direct", "winograd2", "winograd4"];

/// Bytes of weights that stay in cache from run to run, beside those of other layers.
const CACHED: usize = 256 * 1024;
/// Multiply-adds in the time that a byte of weights takes from memory.
const BYTE: usize = 3;
/// Multiply-adds in the time that an element of a tile takes to be transformed, there or back.
const TRANSFORM: usize = 12;

impl Dense<'_> {
    /// Whether the algorithm applies, to enough channels to gain.
    pub(super) fn suits(&self) -> bool {
        let g = self.geometry;
        let same = |values: &[usize], value| values.iter().all(|&v| v == value);
        let suits = g.kernel == [3, 3] && same(&g.strides, 1) && same(&g.dilations, 1);
        suits && self.channels >= 16 && self.n >= 16
    }

    /// What a measured choice is found by; the arithmetic tells apart what the extents do not.
    pub(super) fn key(&self, arithmetic: &str) -> String {
        let extents = |axes: &[usize]| axes.iter().map(|e| format!("x{e}")).collect::<String>();
        let (input, output) = (extents(&self.geometry.input), extents(&self.geometry.output));
        format!("conv3x3.{arithmetic} {}x{}{input} to {}{output}", self.images, self.channels, self.n)
    }

    /// What the ways of [`REALS`] cost; `speed` is that of the direct convolution's multiply-adds, in those of f32.
    pub(super) fn costs(&self, speed: usize) -> [usize; 3] {
        let g = self.geometry;
        // The weights of direct products in fewer bytes stay in caches where those of tiles do not.
        let byte = BYTE * speed;
        let products = |positions: usize, elements: usize| {
            let arithmetic = positions * elements * self.channels * self.n;
            let bytes = 4 * elements * self.channels * self.n;
            arithmetic.max(bytes.saturating_sub(CACHED) * byte)
        };
        let direct = products(self.images * g.outputs(), g.taps());
        let cost = |edge: TileEdge| {
            let tiles: usize =
                self.images * g.output.iter().map(|o| o.div_ceil(edge.pixels())).product::<usize>();
            let elements = edge.elements();
            products(tiles, elements) + tiles * elements * (self.channels + self.n) * TRANSFORM
        };
        // The model is rough: where values have to become f32 and rounded again, only a clear gain counts.
        let direct = if speed == 1 { direct } else { direct / speed / 8 * 7 };
        [direct, cost(TileEdge::Two), cost(TileEdge::Four)]
    }

    /// What direct products and Winograd's algorithm cost, in direct multiply-adds. With VNNI, direct products take half as many
    /// instructions as those of 16 bits; without, as many.
    pub(super) fn costs_in_bytes(&self, kernels: Kernels) -> [usize; 2] {
        let (product, byte, transform) = match kernels.isa() {
            isa if isa.includes(Isa::Avx512Vnni) => (2, 40, 16),
            isa if isa.includes(Isa::Avx512) => (1, 16, 12),
            _ => (1, 8, 8),
        };
        let g = self.geometry;
        let elements = TileEdge::Four.elements();
        let tiles: usize =
            self.images * g.output.iter().map(|o| o.div_ceil(TileEdge::Four.pixels())).product::<usize>();
        let matrix = self.channels * self.n;
        let direct = self.images * g.outputs() * g.taps() * matrix;
        let weights = (2 * elements * matrix).saturating_sub(CACHED) * byte;
        let products = tiles * elements * matrix * product;
        // The model is rough: only a clear gain counts.
        [direct / 8 * 7, products + weights + tiles * elements * (self.channels + self.n) * transform]
    }
}

impl Lowering<'_> {
    /// How fast direct products of reals are, in multiply-adds of f32.
    fn direct_speed(&self) -> usize {
        if self.multiplies_bf16() && self.kernels.isa().includes(Isa::Avx512Bf16) { 2 } else { 1 }
    }

    /// Whether a convolution of reals will run by Winograd's algorithm, unless its weights are packed for another way
    /// or that was measured to be faster.
    pub(super) fn promises_winograd(&self, conv: &Dense) -> bool {
        conv.suits() && cheapest(&conv.costs(self.direct_speed())) > 0
    }

    /// The tile by which a convolution of reals runs by Winograd's algorithm; `None` where that does not apply or not
    /// pay.
    pub(super) fn winograd_edge(
        &mut self,
        conv: &Dense,
        constant: &Tensor,
        chain: &Chain,
    ) -> Option<TileEdge> {
        if !conv.suits() {
            return None;
        }
        let (edges, costs) =
            ([None, Some(TileEdge::Two), Some(TileEdge::Four)], conv.costs(self.direct_speed()));
        let arithmetic = if self.multiplies_bf16() { "bf16" } else { "f32" };
        edges[self.choose_kernel(chain, constant, conv.key(arithmetic), &REALS, &costs)]
    }

    /// Emits a convolution by Winograd's algorithm, in f32 in any precision: a rounded product would lose more digits
    /// there than directly. `None` where it does not apply.
    pub(super) fn winograd(
        &mut self,
        conv: &Dense,
        edge: TileEdge,
        x: Buf,
        constant: &Tensor,
        bias: Option<&[f32]>,
        chain: &Chain,
    ) -> Option<()> {
        let g = conv.geometry;
        let (&[height, width], &[top, left], &[down, across]) = (&g.input[..], &g.pads[..], &g.output[..])
        else {
            return None;
        };
        let layout = Layout::Last(conv.n);
        let bytes = chain.residual.is_some_and(|v| self.affine(v).is_some());
        if chain.quantize.is_some() || chain.rounded.is_some() || bytes {
            return None;
        }
        let residual = match chain.residual {
            Some(v) => Some(self.exact(v, layout)?),
            None => None,
        };
        let shape = (edge, conv.channels, conv.n);
        let packed = self.weights.get(constant, "OIHW", shape, || {
            let (weights, convert) = (numbers(constant), f32::from_ne_bytes);
            PackedWinograd::pack(self.kernels, edge, conv.channels, conv.n, weights, convert)
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
        let reads: Vec<Buf> = [x].into_iter().chain(residual).collect();
        self.build.step(info, work, &reads, &[out, scratch]);
        Some(())
    }

    /// Emits a convolution of bytes by Winograd's algorithm; `None` where that does not apply.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn winograd_bytes(
        &mut self,
        conv: &Dense,
        x: Buf,
        input: Affine,
        (weights, index): (&ByteWeights, impl Fn(usize, usize, usize) -> usize),
        columns: &Columns,
        chain: &Chain,
    ) -> Option<()> {
        let g = conv.geometry;
        let (&[height, width], &[top, left], &[down, across]) = (&g.input[..], &g.pads[..], &g.output[..])
        else {
            return None;
        };
        let zero = u8::try_from(input.zero_point).ok()?;
        let order = weights.order("winograd OIHW");
        let packed = self.weights.share(weights.source(), &order, || {
            // Where there is no such kernel, nothing is read.
            let values = LazyCell::new(|| weights.values());
            PackedWinogradI8::pack(self.kernels, conv.channels, conv.n, |n, c, tap| values[index(n, c, tap)])
        })?;
        let layout = Layout::Last(conv.n);
        let residual = self.residual(chain, layout)?;
        let (out, store, dtype) = self.store(chain, layout);
        let info = self.info("winograd.u8i8", &chain.nodes, Some(chain.result), dtype);
        let work = WinogradBytes {
            images: conv.images,
            channels: conv.channels,
            input: [height, width],
            pad: [top, left],
            zero,
            output: [down, across],
            columns: columns.clone().with_zeros(packed.col_sums(), input.zero_point),
            packed,
            residual: residual.map(|r| r.1),
            activation: chain.activation,
            store,
            macs: usize::try_from(info.macs).unwrap_or(usize::MAX),
        };
        let scratch = self.build.arena(work.scratch_len(self.threads) * DType::I32.size());
        let reads: Vec<Buf> = [x].into_iter().chain(residual.map(|r| r.0)).collect();
        self.build.step(info, work, &reads, &[out, scratch]);
        Some(())
    }
}
