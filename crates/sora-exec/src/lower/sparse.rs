//! Chooses products that skip the zeros of their weights.

use std::sync::Arc;

use sora_kernels::{PackedI8, Saved, SparseF32, SparseI8, TileEdge, sparse_blocks_cost, sparse_cost};
use sora_tensor::Tensor;

use super::Lowering;
use super::chain::Chain;
use super::conv::Convolution;
use super::layout::numbers;
use super::weights::ByteWeights;
use crate::steps::gemm::SparseReal;

/// Ways to multiply, as a [`crate::Tuning`] names them.
const WAYS: [&str; 2] = ["direct", "sparse"];
/// Those of convolutions that Winograd's algorithm does, too.
const CONVOLUTIONS: [&str; 4] = ["direct", "winograd2", "winograd4", "sparse"];

const BYTE_CONVOLUTIONS: [&str; 3] = ["direct", "winograd", "sparse"];

/// Of so many weights, one may differ from zero: with more, skipping the others pays nowhere.
const LEAST: usize = 2;

/// Multiply-adds in the time that a weight takes which is read for a single row.
const LONELY: usize = 4;

/// How a convolution is computed; bytes have one tile of Winograd's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Winograd(TileEdge),
    Sparse,
}

/// A product whose zeros may be skipped.
pub(super) struct Zeros {
    /// What the product costs without them, in multiply-adds of the dense one.
    cost: usize,
    /// Their share in percent.
    percent: usize,
}

impl Lowering<'_> {
    /// The zeros of weights that `rows` rows are multiplied by; `None` where skipping them is out of the question.
    pub(super) fn zeros(&self, constant: &Tensor, rows: usize, [depth, n]: [usize; 2]) -> Option<Zeros> {
        if self.multiplies_bf16() || depth * n == 0 {
            return None;
        }
        let count =
            |tensor: &Tensor| numbers(tensor).iter().filter(|&&w| f32::from_ne_bytes(w) != 0.0).count();
        let nonzeros = self.weights.nonzeros(constant, SparseF32::KIND, count)?;
        let cost = sparse_cost(self.kernels, rows, [depth, n], nonzeros);
        let percent = 100 * (depth * n).saturating_sub(nonzeros) / (depth * n);
        (LEAST * nonzeros <= depth * n).then_some(Zeros { cost, percent })
    }

    /// Whether a product of `rows` rows is computed without the zeros of its weights.
    pub(super) fn skips_zeros(
        &mut self,
        constant: &Tensor,
        rows: usize,
        [depth, n]: [usize; 2],
        chain: &Chain,
    ) -> bool {
        let Some(zeros) = self.zeros(constant, rows, [depth, n]) else { return false };
        let key = format!("product.f32 {rows}x{depth}x{n} {} % zeros", zeros.percent);
        let costs = [direct(rows, depth * n), zeros.cost];
        self.choose_kernel(chain, constant, key, &WAYS, &costs) == 1
    }

    /// The way that a convolution of reals takes.
    pub(super) fn way(&mut self, c: &Convolution, constant: &Tensor, chain: &Chain) -> Way {
        let rows = c.images * c.geometry.outputs();
        let [channels, n] = c.channels;
        let depth = c.geometry.taps() * channels;
        let zeros = match c.groups {
            1 => self.zeros(constant, rows, [depth, n]),
            _ => None,
        };
        let winograd = c.dense().filter(|dense| dense.suits());
        let Some(Zeros { cost, percent }) = zeros else {
            let edge = winograd.and_then(|dense| self.winograd_edge(&dense, constant, chain));
            return edge.map_or(Way::Direct, Way::Winograd);
        };
        let Some(dense) = winograd else {
            let extents = |axes: &[usize]| axes.iter().map(|e| format!("x{e}")).collect::<String>();
            let (kernel, output) = (extents(&c.geometry.kernel), extents(&c.geometry.output));
            let key = format!("conv{kernel}.f32 {}x{channels} to {n}{output} {percent} % zeros", c.images);
            return match self.choose_kernel(chain, constant, key, &WAYS, &[direct(rows, depth * n), cost]) {
                0 => Way::Direct,
                _ => Way::Sparse,
            };
        };
        let key = format!("{} {percent} % zeros", dense.key("f32"));
        let [direct, two, four] = dense.costs(1);
        match self.choose_kernel(chain, constant, key, &CONVOLUTIONS, &[direct, two, four, cost]) {
            0 => Way::Direct,
            1 => Way::Winograd(TileEdge::Two),
            2 => Way::Winograd(TileEdge::Four),
            _ => Way::Sparse,
        }
    }

    /// The weights of a product without their zeros; `value` gives an element by depth and column.
    pub(super) fn sparse(
        &self,
        constant: &Tensor,
        order: &str,
        (taps, kc, n): (usize, usize, usize),
        bias: Option<Vec<f32>>,
        value: impl Fn(usize, usize) -> f32,
    ) -> SparseReal {
        let pack = || SparseF32::pack(self.kernels, taps, kc, n, value);
        SparseReal { packed: self.weights.get(constant, order, (taps, kc, n), pack), bias }
    }
}

impl Lowering<'_> {
    /// The weights of a product of bytes without blocks of zeros; `None` where too few blocks are zero.
    pub(super) fn sparse_bytes(
        &self,
        weights: &ByteWeights,
        order: &str,
        pack: impl FnOnce() -> PackedI8,
    ) -> Option<Arc<SparseI8>> {
        let source = weights.source();
        let count = |_: &Tensor| weights.values().iter().filter(|&&w| w != 0).count();
        // No file holds them: those of a constant that a file holds packed are dense.
        if LEAST * self.weights.nonzeros(source, "", count)? > source.len() {
            return None;
        }
        self.weights.share(source, &format!("blocks {order}"), || {
            let sparse = SparseI8::of(&pack());
            let [kept, all] = sparse.blocks();
            (LEAST * kept <= all).then_some(sparse)
        })
    }

    /// Whether a product of `rows` rows of bytes is computed without blocks of zeros.
    pub(super) fn skips_blocks(
        &mut self,
        constant: &Tensor,
        rows: usize,
        depth: usize,
        sparse: &SparseI8,
        chain: &Chain,
    ) -> bool {
        let key = format!("product.u8i8 {rows}x{depth}x{} {} % zeros", sparse.n(), percent(sparse));
        let costs = [rows * depth * sparse.n(), sparse_blocks_cost(rows, sparse)];
        self.choose_kernel(chain, constant, key, &WAYS, &costs) == 1
    }

    /// The way that a convolution of bytes takes, one group.
    pub(super) fn byte_way(
        &mut self,
        c: &Convolution,
        constant: &Tensor,
        sparse: Option<&SparseI8>,
        chain: &Chain,
    ) -> Way {
        let rows = c.images * c.geometry.outputs();
        let depth = c.geometry.taps() * c.channels[0];
        let (ways, costs, key): (&'static [&'static str], Vec<usize>, String) =
            match (c.dense().filter(|dense| dense.suits()), sparse) {
                (Some(dense), None) => {
                    (&BYTE_CONVOLUTIONS[..2], dense.costs_in_bytes(self.kernels).to_vec(), dense.key("u8i8"))
                }
                (Some(dense), Some(sparse)) => {
                    let mut costs = dense.costs_in_bytes(self.kernels).to_vec();
                    // Against direct products, Winograd's are taken for slower than they are.
                    if costs[1] < costs[0] {
                        costs[1] = costs[1] / 7 * 4;
                    }
                    costs.push(sparse_blocks_cost(rows, sparse));
                    let key = format!("{} {} % zeros", dense.key("u8i8"), percent(sparse));
                    (&BYTE_CONVOLUTIONS, costs, key)
                }
                (None, Some(sparse)) => {
                    let skips = self.skips_blocks(constant, rows, depth, sparse, chain);
                    return if skips { Way::Sparse } else { Way::Direct };
                }
                (None, None) => return Way::Direct,
            };
        match self.choose_kernel(chain, constant, key, ways, &costs) {
            0 => Way::Direct,
            1 => Way::Winograd(TileEdge::Four),
            _ => Way::Sparse,
        }
    }
}

/// The share of blocks that are zero.
pub(super) fn percent(sparse: &SparseI8) -> usize {
    let [kept, all] = sparse.blocks();
    100 * (all - kept) / all.max(1)
}

/// What a dense product costs. A single row waits for the weights.
fn direct(rows: usize, elements: usize) -> usize {
    rows.max(LONELY) * elements
}
