//! Maximum pooling, and the windows that all pools slide.

use sora_tensor::{DType, Tensor};

use super::{BinaryKind, MaxPoolIndices, Reduction, ScatterElements, attrs, for_each_index};
use crate::case::{Arg, Case, Gen};
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

attrs! {
    /// The greatest element of each window: `[N, C, D1…Dn] → [N, C, E1…En]`. Padding never wins; a window of
    /// padding alone gives the least value of the type. NaN wins over every number. Source: ONNX MaxPool.
    pub struct MaxPool {
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
    }
}

/// Limit of kernel extents, strides, pads and dilations: no product of two of them overflows.
pub(crate) const LARGEST: usize = 1 << 30;

/// The extent that `kernel` elements at distance `dilation` cover.
pub(crate) fn span(kernel: &Dim, dilation: usize) -> Dim {
    (kernel.clone() - Dim::from(1usize)) * Dim::from(dilation) + Dim::from(1usize)
}

/// The attributes of a pool's sliding window, one element per spatial axis.
pub(crate) struct Window<'a> {
    pub(crate) kernel: &'a [usize],
    pub(crate) strides: &'a [usize],
    pub(crate) pads: &'a [usize],
    pub(crate) dilations: &'a [usize],
    pub(crate) ceil_mode: bool,
}

/// What a window covers along one axis.
struct Cover {
    /// The first position inside the input.
    first: usize,
    /// How many of the window's elements lie inside the input.
    inside: usize,
    /// How many lie inside the input or its padding; fewer than the kernel's where the window overhangs.
    padded: usize,
}

impl Window<'_> {
    /// The output shape for an input of type `x`.
    pub(crate) fn infer(&self, x: &TensorType) -> Result<Vec<Dim>, Mismatch> {
        let rank = self.kernel.len();
        ensure!(x.rank() == rank + 2, "a window of {rank} axes slides over rank {}, found {x}", rank + 2);
        ensure!(
            self.strides.len() == rank && self.dilations.len() == rank && self.pads.len() == 2 * rank,
            "{} strides, {} dilations and {} pads do not fit a window of {rank} axes",
            self.strides.len(),
            self.dilations.len(),
            self.pads.len()
        );
        let lists = [self.kernel, self.strides, self.dilations];
        ensure!(
            lists.iter().all(|list| list.iter().all(|v| (1..=LARGEST).contains(v)))
                && self.pads.iter().all(|&v| v <= LARGEST),
            "kernel {:?}, strides {:?} and dilations {:?} must be positive, and with pads {:?} at most {LARGEST}",
            self.kernel,
            self.strides,
            self.dilations,
            self.pads
        );
        let spatial = (0..rank).map(|i| self.extent(i, &x.shape[2 + i]));
        Ok([x.shape[0].clone(), x.shape[1].clone()].into_iter().chain(spatial).collect())
    }

    /// The output extent of one axis. With `ceil_mode` it is the lesser of `ceil((input + pads - span) / stride)`
    /// and the last step that starts before the padding after the input, plus one; which of the two is the lesser
    /// does not depend on the input.
    fn extent(&self, axis: usize, input: &Dim) -> Dim {
        let (before, after) = (self.pads[axis], self.pads[self.kernel.len() + axis]);
        let (span, stride) = ((self.kernel[axis] - 1) * self.dilations[axis] + 1, self.strides[axis]);
        let padded = input.clone() + Dim::from(before);
        let last_start = match self.ceil_mode {
            false => padded + Dim::from(after) - Dim::from(span),
            true => padded - Dim::from(1usize) - Dim::from(span.saturating_sub(after + stride)),
        };
        last_start.floor_div(i64::try_from(stride).unwrap_or(i64::MAX)) + Dim::from(1usize)
    }

    fn cover(&self, axis: usize, extent: usize, step: usize) -> Cover {
        let (before, after) = (self.pads[axis], self.pads[self.kernel.len() + axis]);
        let start = step.saturating_mul(self.strides[axis]);
        // The number of the window's elements below `end`, counted from the start of the padding.
        let below =
            |end: usize| end.saturating_sub(start).div_ceil(self.dilations[axis]).min(self.kernel[axis]);
        let outside = below(before);
        let first = (start + outside * self.dilations[axis]).saturating_sub(before);
        let input_end = before.saturating_add(extent);
        Cover { first, inside: below(input_end) - outside, padded: below(input_end.saturating_add(after)) }
    }

    /// Whether some window, of as many steps along each axis, covers no element of an input of `extents`.
    fn misses(&self, extents: &[usize], steps: &[usize]) -> bool {
        let mut axes = steps.iter().zip(extents).enumerate();
        axes.any(|(axis, (&steps, &extent))| {
            (0..steps).any(|step| self.cover(axis, extent, step).inside == 0)
        })
    }

    /// Calls `visit` with the positions inside an input of `extents` that the window at `steps` covers, in row-major
    /// order; gives the number of those inside the input or its padding.
    pub(crate) fn visit(&self, extents: &[usize], steps: &[usize], mut visit: impl FnMut(&[usize])) -> f64 {
        let covers: Vec<Cover> =
            steps.iter().enumerate().map(|(axis, &step)| self.cover(axis, extents[axis], step)).collect();
        let counts: Vec<usize> = covers.iter().map(|c| c.inside).collect();
        let mut at = vec![0; steps.len()];
        for_each_index(&counts, |tap| {
            for (axis, position) in at.iter_mut().enumerate() {
                *position = covers[axis].first + tap[axis] * self.dilations[axis];
            }
            visit(&at);
        });
        covers.iter().map(|c| c.padded as f64).product()
    }

    /// Reduces each window to one element, in `f64`. `reduce` gets the elements inside the input and the number
    /// of those inside the input or its padding.
    pub(crate) fn reduce(
        &self,
        x: &Tensor,
        shape: &[usize],
        reduce: impl Fn(&[f64], f64) -> f64,
    ) -> Result<Tensor, Mismatch> {
        let mut result = Tensor::zeros(DType::F64, shape)?;
        if result.is_empty() {
            return Ok(result.cast(x.dtype()));
        }
        let (dtype, values, extents) = (x.dtype(), x.to_f64s(), &x.shape()[2..]);
        let plane: usize = extents.iter().product();
        let mut out = result.as_mut_slice::<f64>()?.iter_mut();
        let mut seen = Vec::new();
        for_each_index(shape, |index| {
            let (channel, steps) = (index[0] * shape[1] + index[1], &index[2..]);
            seen.clear();
            let padded = self.visit(extents, steps, |at| {
                let offset = at.iter().zip(extents).fold(0, |offset, (i, extent)| offset * extent + i);
                seen.push(values[channel * plane + offset]);
            });
            if let Some(out) = out.next() {
                *out = reduce(&seen, padded);
            }
        });
        Ok(result.cast(dtype))
    }

    /// A random window over `rank` spatial axes of extent 5 or more.
    pub(crate) fn random(g: &mut Gen, rank: usize) -> (Vec<usize>, Vec<usize>, Vec<usize>, Vec<usize>) {
        let list = |g: &mut Gen, n: usize, low, high| (0..n).map(|_| g.size(low, high)).collect::<Vec<_>>();
        let kernel = list(g, rank, 1, 3);
        let pads = (0..2 * rank).map(|i| g.size(0, kernel[i % rank] - 1)).collect();
        let dilations = if g.flag() { vec![1; rank] } else { list(g, rank, 1, 2) };
        (kernel, list(g, rank, 1, 3), pads, dilations)
    }
}

impl MaxPool {
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

impl OpDef for MaxPool {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        ensure!(
            x.dtype.is_float() || matches!(x.dtype, DType::I8 | DType::U8),
            "takes floats, i8 or u8, found {x}"
        );
        Ok(vec![TensorType { dtype: x.dtype, shape: self.window().infer(x)? }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let least = dtype.int_range().map_or(f64::NEG_INFINITY, |(low, _)| low as f64);
        let greater = |a: f64, &b: &f64| if a.is_nan() || a > b { a } else { b };
        let pooled = self.window().reduce(cx.get(0)?, &shape, |seen, _| seen.iter().fold(least, greater))?;
        Ok(vec![pooled])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (x, dy) = (cx.input(0)?, cx.grad()?);
        let (shape, steps) = (cx.shape(x)?, cx.shape(dy)?);
        let positions = MaxPoolIndices {
            kernel: self.kernel.clone(),
            strides: self.strides.clone(),
            pads: self.pads.clone(),
            dilations: self.dilations.clone(),
            ceil_mode: self.ceil_mode,
            column_major: false,
        };
        let mut positions = cx.op(positions, [x])?;
        let mut sent = dy;
        if self.window().misses(&shape[2..], &steps[2..]) {
            let inside = cx.compare(positions, BinaryKind::GreaterOrEqual, 0.0)?;
            sent = cx.keep(inside, dy)?;
            positions = cx.keep(inside, positions)?;
        }
        let (count, total) = (steps.iter().product(), shape.iter().product());
        let (positions, sent) = (cx.reshape(positions, &[count])?, cx.reshape(sent, &[count])?);
        let dtype = cx.dtype(x);
        let zeros = cx.zeros(dtype, &[total])?;
        let sum = cx.op(ScatterElements { axis: 0, reduction: Reduction::Add }, [zeros, positions, sent])?;
        Ok(vec![Some(cx.reshape(sum, &shape)?)])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        cx.same_axes(|axis| axis >= 2)
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let dtypes = [DType::F32, DType::F32, DType::F32, DType::U8, DType::I8, DType::F16];
        let ranks = [2, 2, 1, 2, 2, 3];
        let mut cases = Vec::new();
        for (dtype, rank) in dtypes.into_iter().zip(ranks) {
            for ceil_mode in [false, true] {
                let (kernel, strides, pads, dilations) = Window::random(g, rank);
                let op = MaxPool { kernel, strides, pads, dilations, ceil_mode };
                let mut shape = vec![g.size(1, 2), g.size(1, 20)];
                shape.extend((0..rank).map(|_| g.size(5, 9)));
                cases.push(Case::new(op, [Arg::Var(g.tensor(dtype, &shape))]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(op: &MaxPool, x: &Tensor) -> Result<Tensor, Mismatch> {
        op.eval(&EvalCx { inputs: &[Some(x)] }).map(|mut outputs| outputs.remove(0))
    }

    fn op(kernel: usize, stride: usize, pads: [usize; 2], dilation: usize, ceil_mode: bool) -> MaxPool {
        MaxPool {
            kernel: vec![kernel],
            strides: vec![stride],
            pads: pads.to_vec(),
            dilations: vec![dilation],
            ceil_mode,
        }
    }

    #[test]
    fn windows_step_pad_and_overhang() {
        let x = Tensor::from_slice(&[1, 1, 6], &[-5f32, -1., -2., -9., -3., -4.]).unwrap();
        let check = |op: MaxPool, expected: &[f32]| {
            assert_eq!(pool(&op, &x).unwrap().to_f32s(), expected, "{op:?}");
        };
        check(op(3, 2, [0, 0], 1, false), &[-1., -2.]);
        check(op(3, 2, [0, 0], 1, true), &[-1., -2., -3.]);
        check(op(3, 2, [1, 1], 1, false), &[-1., -1., -3.]);
        check(op(2, 1, [0, 0], 3, false), &[-5., -1., -2.]);
        // A window that would start in the padding after the input is not there.
        check(op(2, 3, [0, 1], 1, true), &[-1., -3.]);
        check(op(1, 4, [0, 3], 1, true), &[-5., -3.]);
        check(op(2, 6, [1, 1], 1, true), &[-5., -4.]);
    }

    /// The extent of ceil mode against the rule as ONNX states it, for padding less than the window.
    #[test]
    fn ceil_mode_keeps_windows_that_start_before_the_last_padding() {
        let mut g = Gen::new(3);
        for _ in 0..2000 {
            let (kernel, stride, dilation) = (g.size(1, 5), g.size(1, 6), g.size(1, 3));
            let span = (kernel - 1) * dilation + 1;
            let (pads, input) = ([g.size(0, span - 1), g.size(0, span - 1)], g.size(1, 12));
            let Some(room) = (input + pads[0] + pads[1]).checked_sub(span) else { continue };
            let mut expected = room.div_ceil(stride) + 1;
            if (expected - 1) * stride >= input + pads[0] {
                expected -= 1;
            }
            let found = op(kernel, stride, pads, dilation, true).window().extent(0, &Dim::from(input));
            assert_eq!(found, Dim::from(expected), "{kernel} {stride} {dilation} {pads:?} {input}");
        }
    }

    #[test]
    fn hostile_attributes_are_refused() {
        let x = Tensor::from_slice(&[1, 1, 3], &[1u8, 7, 3]).unwrap();
        let huge = usize::MAX;
        for op in [
            op(0, 1, [0, 0], 1, false),
            op(2, 0, [0, 0], 1, false),
            op(2, 1, [huge, huge], 1, true),
            op(huge, huge, [0, 0], huge, false),
            op(9, 1, [0, 0], 1, false),
        ] {
            assert!(pool(&op, &x).is_err(), "{op:?}");
        }
        // A huge window costs no more than the input that it covers.
        let wide = op(LARGEST, LARGEST, [LARGEST - 1, 2], 1, false);
        assert_eq!(pool(&wide, &x).unwrap().to_f64s(), [1.0]);
    }
}
