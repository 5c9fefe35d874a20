//! Average pooling.

use sora_tensor::{DType, Tensor};

use super::max_pool::Window;
use super::sliding_grad::Sliding;
use super::{attrs, for_each_index};
use crate::case::{Arg, Case, Gen};
use crate::{EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

attrs! {
    /// The mean of each window: `[N, C, D1…Dn] → [N, C, E1…En]`. It divides by the number of elements inside the
    /// input; a window of padding alone gives 0. Source: ONNX AveragePool.
    pub struct AveragePool {
        /// Extent of the window along each spatial axis.
        kernel: Vec<usize>,
        /// Step of the window along each spatial axis.
        strides: Vec<usize>,
        /// Padding before each spatial axis, then after each: `[b1…bn, e1…en]`.
        pads: Vec<usize>,
        /// Distance of the window's elements along each spatial axis.
        dilations: Vec<usize>,
        /// Whether the last window may overhang the padded input. It must start inside the input or the padding
        /// before it.
        ceil_mode: bool,
        /// Whether padding counts in the divisor; what overhangs the padding never does.
        count_include_pad: bool,
    }
}

impl AveragePool {
    fn window(&self) -> Window<'_> {
        Window {
            kernel: &self.kernel,
            strides: &self.strides,
            pads: &self.pads,
            dilations: &self.dilations,
            ceil_mode: self.ceil_mode,
        }
    }
}

impl OpDef for AveragePool {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        ensure!(x.dtype.is_float(), "takes floats, found {x}");
        Ok(vec![TensorType { dtype: x.dtype, shape: self.window().infer(x)? }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (_, shape) = cx.output(self)?;
        let mean = |seen: &[f64], padded: f64| {
            let count = if self.count_include_pad { padded } else { seen.len() as f64 };
            seen.iter().sum::<f64>() / count.max(1.0)
        };
        Ok(vec![self.window().reduce(cx.get(0)?, &shape, mean)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (x, dy) = (cx.input(0)?, cx.grad()?);
        let (shape, steps) = (cx.shape(x)?, cx.shape(dy)?);
        let (window, extents, channels) = (self.window(), &shape[2..], shape[1]);
        let mut shares = Vec::new();
        for_each_index(&steps[2..], |at| {
            let mut inside = 0usize;
            let padded = window.visit(extents, at, |_| inside += 1);
            let count = if self.count_include_pad { padded } else { inside as f64 };
            shares.push(1.0 / count.max(1.0));
        });
        let dtype = cx.dtype(dy);
        let shares = cx.constant(Tensor::from_f64s(dtype, &[&[1, 1], &steps[2..]].concat(), &shares)?);
        let shared = cx.mul(dy, shares)?;
        let taps = [&[channels, 1], &self.kernel[..]].concat();
        let ones = vec![1.0; taps.iter().product()];
        let ones = cx.constant(Tensor::from_f64s(dtype, &taps, &ones)?);
        let (strides, pads, dilations) = (&self.strides, &self.pads, &self.dilations);
        let sliding = Sliding { strides, pads, dilations, group: channels };
        Ok(vec![Some(sliding.spread(cx, shared, ones, extents)?)])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Arithmetic
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        cx.same_axes(|axis| axis >= 2)
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in [1, 2, 2, 3] {
            for (ceil_mode, count_include_pad) in [(false, false), (false, true), (true, false), (true, true)]
            {
                let (kernel, strides, pads, dilations) = Window::random(g, rank);
                let op = AveragePool { kernel, strides, pads, dilations, ceil_mode, count_include_pad };
                let mut shape = vec![g.size(1, 2), g.size(1, 20)];
                shape.extend((0..rank).map(|_| g.size(5, 9)));
                cases.push(Case::new(op, [Arg::Var(g.tensor(DType::F32, &shape))]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divisor_counts_the_input_and_on_request_the_padding() {
        let x = Tensor::from_slice(&[1, 1, 4], &[6f32, 12., 18., 24.]).unwrap();
        let check = |stride, pads: [usize; 2], dilation, ceil_mode, count_include_pad, expected: &[f32]| {
            let op = AveragePool {
                kernel: vec![3],
                strides: vec![stride],
                pads: pads.to_vec(),
                dilations: vec![dilation],
                ceil_mode,
                count_include_pad,
            };
            let y = op.eval(&EvalCx { inputs: &[Some(&x)] }).unwrap().remove(0);
            assert_eq!(y.to_f32s(), expected, "{op:?}");
        };
        check(1, [0, 0], 1, false, false, &[12., 18.]);
        check(1, [1, 1], 1, false, false, &[9., 12., 18., 21.]);
        check(1, [1, 1], 1, false, true, &[6., 12., 18., 14.]);
        // The last window holds 18, 24 and one overhanging element, which no divisor counts.
        check(2, [0, 0], 1, true, false, &[12., 21.]);
        check(2, [0, 0], 1, true, true, &[12., 21.]);
        // The last window holds 24, one padding element and one that overhangs.
        check(2, [1, 1], 1, true, true, &[6., 18., 12.]);
        check(3, [0, 1], 1, true, true, &[12., 12.]);
        check(1, [2, 2], 2, false, false, &[12., 18., 12., 18.]);
        check(1, [2, 2], 2, false, true, &[8., 12., 8., 12.]);
    }
}
