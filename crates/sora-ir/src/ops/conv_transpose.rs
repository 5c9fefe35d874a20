//! Transposed convolution.

use sora_tensor::{DType, Tensor};

use super::max_pool::{LARGEST, span};
use super::movement::signed;
use super::sliding_grad::{Sliding, channel_sums};
use super::{Conv, attrs, for_each_index, product};
use crate::case::{Arg, Case, Gen};
use crate::{Along, Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, TensorType, TieCx, ensure};

attrs! {
    /// N-d transposed convolution: the gradient of `Conv` with respect to its input. An input `[N, C, D1…Dn]`,
    /// weights `[C, M/group, K1…Kn]` and an optional bias `[M]` give `[N, M, E1…En]`,
    /// `Ei = (Di - 1)·stride + output_padding + (Ki - 1)·dilation + 1 - pads`. Source: ONNX ConvTranspose.
    pub struct ConvTranspose {
        /// Distance in the output of neighbours in the input, along each spatial axis.
        strides: Vec<usize>,
        /// Elements cut off before each spatial axis, then after each: `[b1…bn, e1…en]`.
        pads: Vec<usize>,
        /// Distance of the window's elements along each spatial axis.
        dilations: Vec<usize>,
        /// Elements added after each spatial axis; no window reaches them, except where `pads` cut less.
        output_padding: Vec<usize>,
        /// Number of groups that input and output channels are split into.
        group: usize,
    }
}

impl OpDef for ConvTranspose {
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
            self.pads.len() == 2 * rank
                && self.dilations.len() == rank
                && self.output_padding.len() == rank
                && self.group > 0
                && self.strides.iter().chain(&self.dilations).all(|&v| v > 0),
            "{self:?} must have {rank} dilations and output paddings, {} pads, and positive strides, dilations \
             and group",
            2 * rank
        );
        let lists = [&self.strides, &self.pads, &self.dilations, &self.output_padding];
        ensure!(
            lists.iter().all(|list| list.iter().all(|&v| v <= LARGEST)),
            "{self:?} exceeds the limit of {LARGEST}"
        );
        ensure!(
            x.dtype.is_float() && x.dtype == w.dtype,
            "input {x} and weights {w} must be the same float type"
        );
        ensure!(
            x.shape[1].compatible(&w.shape[0]),
            "input {x} has {} channels, weights {w} take {}",
            x.shape[1],
            w.shape[0]
        );
        if let Some(c) = w.shape[0].known() {
            ensure!(c % self.group == 0, "{c} input channels do not split into {} groups", self.group);
        }
        let channels = w.shape[1].clone() * Dim::from(self.group);
        if let Some(b) = cx.opt(2) {
            ensure!(
                b.dtype == x.dtype && b.rank() == 1 && b.shape[0].compatible(&channels),
                "bias {b} does not fit the {channels} output channels of weights {w}"
            );
        }
        let spatial = (0..rank).map(|i| {
            let spread = (x.shape[2 + i].clone() - Dim::from(1usize)) * Dim::from(self.strides[i]);
            let cut = Dim::from(self.pads[i] + self.pads[rank + i]);
            spread + Dim::from(self.output_padding[i]) + span(&w.shape[2 + i], self.dilations[i]) - cut
        });
        let shape = [x.shape[0].clone(), channels].into_iter().chain(spatial).collect();
        Ok(vec![TensorType { dtype: x.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (x, w) = (cx.get(0)?, cx.get(1)?);
        let (xs, ws) = (x.to_f64s(), w.to_f64s());
        let mut result = Tensor::zeros(DType::F64, &shape)?;
        if result.is_empty() {
            return Ok(vec![result.cast(dtype)]);
        }
        let out = result.as_mut_slice::<f64>()?;
        let plane: usize = shape[2..].iter().product();
        if let Some(bias) = cx.opt(2) {
            let bias = bias.to_f64s();
            for (i, channel) in out.chunks_exact_mut(plane).enumerate() {
                channel.fill(bias[i % bias.len()]);
            }
        }
        let (per_group_in, per_group_out) = (x.shape()[1] / self.group, w.shape()[1]);
        let taps = &w.shape()[2..];
        let taps_len: usize = taps.iter().product();
        let mut inputs = xs.iter();
        for_each_index(x.shape(), |index| {
            let (n, c, value) = (index[0], index[1], inputs.next().copied().unwrap_or(0.0));
            let first_out = c / per_group_in * per_group_out;
            let mut tap_at = 0;
            for_each_index(taps, |tap| {
                let weight = c * per_group_out * taps_len + tap_at;
                tap_at += 1;
                let mut offset = 0;
                for (axis, &k) in tap.iter().enumerate() {
                    let extent = shape[2 + axis];
                    let at = index[2 + axis] * self.strides[axis] + k * self.dilations[axis];
                    match at.checked_sub(self.pads[axis]) {
                        Some(at) if at < extent => offset = offset * extent + at,
                        _ => return,
                    }
                }
                for m in 0..per_group_out {
                    out[(n * shape[1] + first_out + m) * plane + offset] += value * ws[weight + m * taps_len];
                }
            });
        });
        Ok(vec![result.cast(dtype)])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (x, w, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let kernel = cx.shape(w)?;
        let mut grads = vec![None; 3];
        // The result is what the windows of a convolution of dy would read; x takes the place of its result.
        if cx.wants(0) {
            let (input, output) = (cx.shape(x)?, cx.shape(dy)?);
            let mut cut = vec![0; output.len()];
            let mut pads = self.pads.clone();
            let rank = self.strides.len();
            for axis in 0..rank {
                let span = (kernel[2 + axis] - 1) * self.dilations[axis] + 1;
                let read = (input[2 + axis] - 1) * self.strides[axis] + span;
                let given = output[2 + axis] + self.pads[axis];
                pads[rank + axis] = read.saturating_sub(given);
                cut[2 + axis] = -signed(given.saturating_sub(read));
            }
            let read = cx.pad(dy, &vec![0; output.len()], &cut)?;
            let (strides, dilations) = (self.strides.clone(), self.dilations.clone());
            grads[0] = Some(cx.op(Conv { strides, pads, dilations, group: self.group }, [read, w])?);
        }
        if cx.wants(1) {
            let (strides, pads, dilations) = (&self.strides, &self.pads, &self.dilations);
            let sliding = Sliding { strides, pads, dilations, group: self.group };
            grads[1] = Some(sliding.correlate(cx, dy, x, &kernel[2..])?);
        }
        if cx.wants(2) {
            grads[2] = Some(channel_sums(cx, dy)?);
        }
        Ok(grads)
    }

    fn macs(&self, inputs: &[Option<&TensorType>], _: &[&TensorType]) -> Dim {
        match (inputs.first().copied().flatten(), inputs.get(1).copied().flatten()) {
            (Some(x), Some(w)) => product(&x.shape) * product(&w.shape[1..]),
            _ => Dim::from(0usize),
        }
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let (input, weight) = (Along::input(0, 1).summed(), Along::input(1, 0).summed());
        cx.tie([weight.repeats(self.group), input.repeats(self.group)]);
        cx.tie([
            Along::input(1, 1),
            Along::input(2, 0).repeats(self.group),
            Along::output(1).repeats(self.group),
        ]);
        Ok(())
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in [1, 2, 2, 2, 3] {
            for group in [1, 1, g.size(2, 3)] {
                let list =
                    |g: &mut Gen, n: usize, low, high| (0..n).map(|_| g.size(low, high)).collect::<Vec<_>>();
                let strides = list(g, rank, 1, 3);
                let dilations = list(g, rank, 1, 2);
                let op = ConvTranspose {
                    pads: list(g, 2 * rank, 0, 1),
                    output_padding: (0..rank).map(|i| g.size(0, strides[i] - 1)).collect(),
                    strides,
                    dilations,
                    group,
                };
                let (channels, per_group_out) = (group * g.size(1, 4), g.size(1, 5));
                let x = [vec![g.size(1, 2), channels], list(g, rank, 2, 5)].concat();
                let w = [vec![channels, per_group_out], list(g, rank, 1, 3)].concat();
                let bias = if g.flag() { g.weights(&[group * per_group_out]) } else { Arg::Absent };
                cases.push(Case::new(op, [g.var(&x), g.weights(&w), bias]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Conv;

    /// `<conv(x), y> = <x, conv_transpose(y)>` for every x and y: what being the transpose means.
    #[test]
    fn is_the_adjoint_of_convolution() {
        let mut g = Gen::new(5);
        for _ in 0..40 {
            let group = g.size(1, 3);
            let (m, c) = (group * g.size(1, 3), group * g.size(1, 3));
            let conv = Conv {
                strides: vec![g.size(1, 3), g.size(1, 3)],
                pads: (0..4).map(|_| g.size(0, 2)).collect(),
                dilations: vec![g.size(1, 2), g.size(1, 2)],
                group,
            };
            let kernel = [g.size(2, 3), g.size(2, 3)];
            let spatial = [g.size(5, 9), g.size(5, 9)];
            let x = g.uniform(DType::F64, &[2, c, spatial[0], spatial[1]], -1.0, 1.0);
            let w = g.uniform(DType::F64, &[m, c / group, kernel[0], kernel[1]], -1.0, 1.0);
            let y = conv.eval(&EvalCx { inputs: &[Some(&x), Some(&w)] }).unwrap().remove(0);
            let dy = g.uniform(DType::F64, y.shape(), -1.0, 1.0);
            let extent = |i: usize| {
                let padded = x.shape()[2 + i] + conv.pads[i] + conv.pads[2 + i];
                (padded - (kernel[i] - 1) * conv.dilations[i] - 1) % conv.strides[i]
            };
            let transpose = ConvTranspose {
                output_padding: vec![extent(0), extent(1)],
                strides: conv.strides.clone(),
                pads: conv.pads.clone(),
                dilations: conv.dilations.clone(),
                group,
            };
            let dx = transpose.eval(&EvalCx { inputs: &[Some(&dy), Some(&w)] }).unwrap().remove(0);
            assert_eq!(dx.shape(), x.shape());
            let dot = |a: &Tensor, b: &Tensor| -> f64 {
                a.to_f64s().iter().zip(b.to_f64s()).map(|(a, b)| a * b).sum()
            };
            assert!((dot(&y, &dy) - dot(&x, &dx)).abs() < 1e-9);
        }
    }

    #[test]
    fn hostile_attributes_are_refused() {
        let x = Tensor::zeros(DType::F32, &[1, 1, 3]).unwrap();
        let w = Tensor::zeros(DType::F32, &[1, 1, 2]).unwrap();
        let good = ConvTranspose {
            strides: vec![1],
            pads: vec![0, 0],
            dilations: vec![1],
            output_padding: vec![0],
            group: 1,
        };
        let bad = [
            ConvTranspose { strides: vec![0], ..good.clone() },
            ConvTranspose { strides: vec![usize::MAX], ..good.clone() },
            ConvTranspose { pads: vec![usize::MAX, 1], ..good.clone() },
            ConvTranspose { pads: vec![9, 9], ..good.clone() },
            ConvTranspose { output_padding: vec![], ..good.clone() },
            ConvTranspose { group: 0, ..good.clone() },
        ];
        let eval = |op: &ConvTranspose| op.eval(&EvalCx { inputs: &[Some(&x), Some(&w)] });
        assert!(eval(&good).is_ok());
        for op in bad {
            assert!(eval(&op).is_err(), "{op:?}");
        }
    }
}
