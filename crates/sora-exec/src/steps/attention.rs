//! Scaled dot-product attention: the scores of some queries never leave the cache.

use std::sync::{Mutex, PoisonError};

use sora_kernels::{ARows, Dense, EpilogueF32, Kernels, MatMut, Output, PackedF32, Quant, gemm_f32, rows};
use sora_tensor::Buffer;

use super::gemm::Store;
use super::matmul::Right;
use super::{Cx, Io, Work};

/// Where the operands of one head start.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) values: usize,
    pub(crate) mask: usize,
}

/// `softmax(factor · Q·Kᵀ + mask) · V` for each head.
///
/// Inputs: queries, keys, values, then the mask. Output: `[heads / side][queries][side][width]`.
pub(crate) struct Attention {
    /// Queries, depth of a query, keys, width of a value.
    pub(crate) extents: [usize; 4],
    /// Distance between queries.
    pub(crate) query_step: usize,
    /// `[depth, keys]`.
    pub(crate) keys: Right,
    /// `[keys, width]`.
    pub(crate) values: Right,
    /// Distance between the mask's rows, if there is a mask.
    pub(crate) mask_step: Option<usize>,
    pub(crate) factor: f32,
    pub(crate) heads: Vec<Head>,
    /// Heads that lie side by side in the result.
    pub(crate) side: usize,
    pub(crate) store: Store,
    /// Memory of threads that ran before.
    pub(crate) idle: Mutex<Vec<Scratch>>,
}

/// The packed operands of one head, and scores.
pub(crate) struct Scratch {
    keys: PackedF32,
    values: PackedF32,
    /// A buffer, because those start on a cache line.
    scores: Buffer,
}

/// Bytes of scores at a time.
const SCORE_BYTES: usize = 32 * 1024;

/// Part of one head.
struct Task<'a> {
    head: usize,
    /// First query.
    first: usize,
    out: Output<'a>,
}

impl Attention {
    /// Multiply-adds of all heads.
    fn macs(&self) -> usize {
        let [queries, depth, keys, width] = self.extents;
        self.heads.len() * queries * keys * (depth + width)
    }

    /// The heads' places in the result, cut further where there are fewer than `parts`.
    fn tasks<'a>(&self, parts: usize, io: &mut Io<'a>) -> Vec<Task<'a>> {
        let [queries, _, _, width] = self.extents;
        let (row, parts) = (self.side * width, parts.div_ceil(self.heads.len()));
        let block = queries * row;
        let blocks: Vec<Output<'a>> = match self.store {
            Store::Real => io
                .output::<f32>()
                .chunks_exact_mut(block)
                .map(|out| Output::F32(MatMut::new(out, queries, row, row)))
                .collect(),
            Store::Bf16 => io
                .output::<u16>()
                .chunks_exact_mut(block)
                .map(|out| Output::Bf16(MatMut::new(out, queries, row, row)))
                .collect(),
            Store::Bytes(a) => io
                .output::<u8>()
                .chunks_exact_mut(block)
                .map(|out| Output::U8(MatMut::new(out, queries, row, row), Quant::new(a.scale, a.zero_point)))
                .collect(),
        };
        let heads = blocks.into_iter().flat_map(|block| block.split_cols(self.side, width));
        let cut = |(head, (_, out)): (usize, (usize, Output<'a>))| {
            out.split_rows(parts).into_iter().map(move |(first, out)| Task { head, first, out })
        };
        heads.enumerate().flat_map(cut).collect()
    }

    fn run_tasks<'a>(&self, kernels: Kernels, tasks: impl Iterator<Item = Task<'a>>, ins: &[&[f32]; 4]) {
        let [_, depth, keys, width] = self.extents;
        let [q, k, v, mask] = ins;
        let step = (SCORE_BYTES / (size_of::<f32>() * keys)).max(8);
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut scratch = idle.unwrap_or_else(|| Scratch {
            keys: PackedF32::pack(kernels, 1, depth, keys, |_, _| 0.0),
            values: PackedF32::pack(kernels, 1, keys, width, |_, _| 0.0),
            scores: Buffer::zeroed(step * keys * size_of::<f32>()),
        });
        let Scratch { keys: packed_keys, values: packed_values, scores } = &mut scratch;
        let scores: &mut [f32] = bytemuck::cast_slice_mut(scores.bytes_mut());
        let mut packed = None;
        for Task { head, first, mut out } in tasks {
            let at = self.heads[head];
            if packed != Some((at.keys, at.values)) {
                self.keys.pack(packed_keys, &k[at.keys..], depth, keys);
                self.values.pack(packed_values, &v[at.values..], keys, width);
                packed = Some((at.keys, at.values));
            }
            let count = out.rows();
            for done in (0..count).step_by(step) {
                let (some, row) = (step.min(count - done), first + done);
                let scores = &mut scores[..some * keys];
                let data = &q[at.queries + row * self.query_step..];
                let queries = ARows::Dense(Dense { data, rows: some, stride: self.query_step, k: depth });
                let to = Output::F32(MatMut::new(scores, some, keys, keys));
                gemm_f32(kernels, &queries, packed_keys, 0, &EpilogueF32::default(), to);
                let (mask, mask_step) = match self.mask_step {
                    Some(step) => (&mask[at.mask + row * step..], step),
                    None => (&[][..], 0),
                };
                rows::softmax_scores(kernels, scores, keys, self.factor, mask, mask_step);
                let weights = ARows::Dense(Dense { data: scores, rows: some, stride: keys, k: keys });
                let (_, rest) = out.reborrow().split_at_row(done);
                let (to, _) = rest.split_at_row(some);
                gemm_f32(kernels, &weights, packed_values, 0, &EpilogueF32::default(), to);
            }
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
    }
}

impl Work for Attention {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let mask = if self.mask_step.is_some() { io.input(3) } else { &[][..] };
        let ins = [io.input(0), io.input(1), io.input(2), mask];
        let parts = cx.threads.parts(self.macs());
        let mut tasks = self.tasks(parts, &mut io);
        let each = tasks.len().div_ceil(parts);
        let mut shares = Vec::with_capacity(parts);
        while tasks.len() > each {
            shares.push(tasks.split_off(tasks.len() - each));
        }
        shares.push(tasks);
        cx.threads.each(shares, |share| self.run_tasks(cx.kernels, share.into_iter(), &ins));
        Ok(())
    }
}
