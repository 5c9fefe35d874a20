//! Convolution.

use sora_tensor::{DType, Tensor};

use super::sliding_grad::{Sliding, channel_sums};
use super::{attrs, for_each_index, product, room};
use crate::case::{Arg, Case, Gen};
use crate::{
    Along, Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure,
};

attrs! {
    /// N-d convolution (cross-correlation) of an input `[N, C, D1…Dn]` with weights `[M, C/group, K1…Kn]` and an
    /// optional bias `[M]`; the result is `[N, M, E1…En]`, `Ei = (Di + pads - (Ki-1)·dilation - 1) / stride + 1`.
    /// Source: ONNX Conv.
    pub struct Conv {
        /// Step of the window along each spatial axis.
        strides: Vec<usize>,
        /// Zeros before each spatial axis, then after each: `[b1…bn, e1…en]`.
        pads: Vec<usize>,
        /// Distance of the window's elements along each spatial axis.
        dilations: Vec<usize>,
        /// Number of groups that input and output channels are split into.
        group: usize,
    }
}

/// The extent of a sliding window's output: `floor((input + pads - span) / stride) + 1`.
pub(crate) fn window_extent(input: &Dim, pads: usize, kernel: &Dim, dilation: usize, stride: usize) -> Dim {
    let one = Dim::from(1usize);
    let span = (kernel.clone() - one.clone()) * Dim::from(dilation) + one.clone();
    let stride = i64::try_from(stride).unwrap_or(i64::MAX);
    (input.clone() + Dim::from(pads) - span).floor_div(stride) + one
}

impl Conv {
    /// A convolution of `rank` spatial axes with stride 1, no padding, no dilation and one group.
    pub fn new(rank: usize) -> Self {
        Conv { strides: vec![1; rank], pads: vec![0; 2 * rank], dilations: vec![1; rank], group: 1 }
    }

    fn sliding(&self) -> Sliding<'_> {
        Sliding { strides: &self.strides, pads: &self.pads, dilations: &self.dilations, group: self.group }
    }
}

impl OpDef for Conv {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=3)?;
        let (x, w) = (cx.ty(0)?, cx.ty(1)?);
        let rank = self.strides.len();
        ensure!(
            x.rank() == rank + 2 && w.rank() == rank + 2,
            "input {x} and weights {w} must have rank {}",
            rank + 2
        );
        ensure!(
            self.pads.len() == 2 * rank && self.dilations.len() == rank,
            "{} pads and {} dilations do not fit {rank} strides",
            self.pads.len(),
            self.dilations.len()
        );
        ensure!(
            x.dtype.is_float() && x.dtype == w.dtype,
            "input {x} and weights {w} must be the same float type"
        );
        ensure!(
            self.group > 0 && self.strides.iter().chain(&self.dilations).all(|&v| v > 0),
            "group, strides and dilations must be positive: {self:?}"
        );
        let channels = w.shape[1].clone() * Dim::from(self.group);
        ensure!(
            x.shape[1].compatible(&channels),
            "input {x} has {} channels, weights {w} in {} groups take {channels}",
            x.shape[1],
            self.group
        );
        if let Some(m) = w.shape[0].known() {
            ensure!(m % self.group == 0, "{m} output channels do not split into {} groups", self.group);
        }
        if let Some(b) = cx.opt(2) {
            ensure!(
                b.dtype == x.dtype && b.rank() == 1 && b.shape[0].compatible(&w.shape[0]),
                "bias {b} does not fit weights {w}"
            );
        }
        let spatial = (0..rank).map(|i| {
            let pads = self.pads[i].saturating_add(self.pads[rank + i]);
            window_extent(&x.shape[2 + i], pads, &w.shape[2 + i], self.dilations[i], self.strides[i])
        });
        let shape: Vec<Dim> = [x.shape[0].clone(), w.shape[0].clone()].into_iter().chain(spatial).collect();
        Ok(vec![TensorType { dtype: x.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (x, w) = (cx.get(0)?, cx.get(1)?);
        let bias = cx.opt(2).map(Tensor::to_f64s);
        let (xs, ws) = (x.to_f64s(), w.to_f64s());
        let (per_group_in, per_group_out) = (w.shape()[1], w.shape()[0] / self.group);
        let kernel = &w.shape()[2..];
        let mut out = room(&shape)?;
        for_each_index(&shape, |index| {
            let (n, m) = (index[0], index[1]);
            let mut sum = bias.as_ref().map_or(0.0, |b| b[m]);
            for c in 0..per_group_in {
                let channel = m / per_group_out * per_group_in + c;
                for_each_index(kernel, |tap| {
                    let mut xi = n * x.shape()[1] + channel;
                    let mut wi = m * per_group_in + c;
                    for (axis, &k) in tap.iter().enumerate() {
                        let extent = x.shape()[2 + axis];
                        let at = index[2 + axis] * self.strides[axis] + k * self.dilations[axis];
                        match at.checked_sub(self.pads[axis]) {
                            Some(at) if at < extent => xi = xi * extent + at,
                            _ => return,
                        }
                        wi = wi * kernel[axis] + k;
                    }
                    sum += xs[xi] * ws[wi];
                });
            }
            out.push(sum);
        });
        Ok(vec![Tensor::from_f64s(dtype, &shape, &out)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (x, w, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let (extents, kernel) = (cx.shape(x)?, cx.shape(w)?);
        let mut grads = vec![None; 3];
        if cx.wants(0) {
            grads[0] = Some(self.sliding().spread(cx, dy, w, &extents[2..])?);
        }
        if cx.wants(1) {
            grads[1] = Some(self.sliding().correlate(cx, x, dy, &kernel[2..])?);
        }
        if cx.wants(2) {
            grads[2] = Some(channel_sums(cx, dy)?);
        }
        Ok(grads)
    }

    fn macs(&self, inputs: &[Option<&TensorType>], outputs: &[&TensorType]) -> Dim {
        match (inputs.get(1).copied().flatten(), outputs.first()) {
            (Some(w), Some(y)) => product(&y.shape) * product(&w.shape[1..]),
            _ => Dim::from(0usize),
        }
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Linear { weight_axis: 0 }
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let w = cx.ty(1)?;
        let outputs = [Along::input(1, 0), Along::input(2, 0), Along::output(1)];
        if let (Some(m), Some(1), true) = (w.shape[0].known(), w.shape[1].known(), self.group > 1) {
            // Each channel has filters of its own.
            let filters = outputs.map(|along| along.width(m / self.group));
            cx.tie(std::iter::once(Along::input(0, 1)).chain(filters));
        } else {
            cx.tie([Along::input(1, 1).summed(), Along::input(0, 1).repeats(self.group).summed()]);
            cx.tie(outputs.map(|along| along.repeats(self.group)));
        }
        Ok(())
    }

    fn narrowed(&self, inputs: &[Option<&TensorType>], _: &[&TensorType]) -> Self {
        let channels = |index: usize| inputs.get(index).copied().flatten()?.shape.get(1)?.known();
        match (channels(0), channels(1)) {
            (Some(channels), Some(1)) => Conv { group: channels, ..self.clone() },
            _ => self.clone(),
        }
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        // Dense, grouped and depthwise; 1-d to 3-d; strides, dilations and lopsided padding.
        let mut cases = Vec::new();
        for rank in [1, 2, 2, 2, 2, 3] {
            for groups in ["dense", "grouped", "depthwise"] {
                let (group, per_in, per_out) = match groups {
                    "dense" => (1, g.size(1, 9), g.size(1, 40)),
                    "grouped" => (g.size(2, 3), g.size(1, 5), g.size(1, 20)),
                    _ => (g.size(2, 40), 1, 1),
                };
                let list =
                    |g: &mut Gen, n: usize, low, high| (0..n).map(|_| g.size(low, high)).collect::<Vec<_>>();
                let kernel = list(g, rank, 1, 3);
                let op = Conv {
                    strides: list(g, rank, 1, 2),
                    pads: list(g, 2 * rank, 0, 2),
                    dilations: list(g, rank, 1, 2),
                    group,
                };
                let spatial = list(g, rank, 5, 9);
                let x = [vec![g.size(1, 2), group * per_in], spatial].concat();
                let w = [vec![group * per_out, per_in], kernel].concat();
                let bias = match g.flag() {
                    true => Arg::Const(g.tensor(DType::F32, &[group * per_out])),
                    false => Arg::Absent,
                };
                let weights = if g.size(0, 5) == 0 { g.var(&w) } else { g.weights(&w) };
                cases.push(Case::new(op, [g.var(&x), weights, bias]));
            }
        }
        cases
    }
}
