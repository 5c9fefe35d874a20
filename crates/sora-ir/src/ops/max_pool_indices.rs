//! Where the maxima of pooling windows are.

use sora_tensor::{DType, Tensor};

use super::max_pool::Window;
use super::movement::signed;
use super::{attrs, for_each_index, room};
use crate::case::{Arg, Case, Gen};
use crate::{EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// The positions of the elements that `MaxPool` gives, as `i64` offsets into the whole input: the first of equal
    /// ones, -1 for a window of padding alone. Source: the second output of ONNX MaxPool.
    pub struct MaxPoolIndices {
        /// Extent of the window along each spatial axis.
        kernel: Vec<usize>,
        /// Step of the window along each spatial axis.
        strides: Vec<usize>,
        /// Padding before each spatial axis, then after each: `[b1…bn, e1…en]`.
        pads: Vec<usize>,
        /// Distance of the window's elements along each spatial axis.
        dilations: Vec<usize>,
        /// Whether the last window may overhang the padded input, as in `MaxPool`.
        ceil_mode: bool,
        /// Whether offsets within a channel count along the first spatial axis first.
        column_major: bool,
    }
}

impl MaxPoolIndices {
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

impl OpDef for MaxPoolIndices {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        ensure!(
            x.dtype.is_float() || matches!(x.dtype, DType::I8 | DType::U8),
            "takes floats, i8 or u8, found {x}"
        );
        Ok(vec![TensorType { dtype: DType::I64, shape: self.window().infer(x)? }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (_, shape) = cx.output(self)?;
        let x = cx.get(0)?;
        let (values, extents) = (x.to_f64s(), &x.shape()[2..]);
        let plane: usize = extents.iter().product();
        let mut out: Vec<i64> = room(&shape)?;
        for_each_index(&shape, |index| {
            let channel = (index[0] * shape[1] + index[1]) * plane;
            let mut best: Option<(f64, usize)> = None;
            self.window().visit(extents, &index[2..], |at| {
                let row_major = at.iter().zip(extents).fold(0, |offset, (i, extent)| offset * extent + i);
                let value = values[channel + row_major];
                if best.is_none_or(|(greatest, _)| value > greatest || value.is_nan() && !greatest.is_nan()) {
                    let column_major =
                        at.iter().zip(extents).rev().fold(0, |offset, (i, extent)| offset * extent + i);
                    best = Some((value, if self.column_major { column_major } else { row_major }));
                }
            });
            out.push(best.map_or(-1, |(_, offset)| signed(channel + offset)));
        });
        Ok(vec![Tensor::from_slice(&shape, &out)?])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for (dtype, rank) in [(DType::F32, 2), (DType::F32, 1), (DType::U8, 2), (DType::F32, 3)] {
            for ceil_mode in [false, true] {
                let (kernel, strides, pads, dilations) = Window::random(g, rank);
                let op =
                    MaxPoolIndices { kernel, strides, pads, dilations, ceil_mode, column_major: g.flag() };
                let mut shape = vec![g.size(1, 2), g.size(1, 5)];
                shape.extend((0..rank).map(|_| g.size(5, 9)));
                cases.push(Case::new(op, [Arg::Var(g.tensor(dtype, &shape))]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::MaxPool;
    use super::super::movement::run;
    use super::*;

    /// The elements at the positions are what `MaxPool` gives.
    #[test]
    fn positions_hold_the_maxima() {
        let mut g = Gen::new(8);
        for _ in 0..50 {
            let (kernel, strides, pads, dilations) = Window::random(&mut g, 2);
            let shape = [2, 2, g.size(5, 9), g.size(5, 9)];
            let x = g.uniform(DType::F32, &shape, -1.0, 1.0);
            let pool = MaxPool {
                kernel: kernel.clone(),
                strides: strides.clone(),
                pads: pads.clone(),
                dilations: dilations.clone(),
                ceil_mode: false,
            };
            let op =
                MaxPoolIndices { kernel, strides, pads, dilations, ceil_mode: false, column_major: false };
            let (maxima, at) =
                (run(pool, &[&x]).unwrap().to_f32s(), run(op.clone(), &[&x]).unwrap().to_i64s());
            let values = x.to_f32s();
            for (maximum, at) in maxima.iter().zip(&at) {
                match usize::try_from(*at) {
                    Ok(at) => assert_eq!(values[at], *maximum),
                    Err(_) => assert_eq!(*maximum, f32::NEG_INFINITY),
                }
            }
            let columns = run(MaxPoolIndices { column_major: true, ..op }, &[&x]).unwrap().to_i64s();
            let (height, width) = (signed(x.shape()[2]), signed(x.shape()[3]));
            for (row, column) in at.iter().zip(columns).filter(|(at, _)| **at >= 0) {
                let (plane, inside) = (row / (height * width), row % (height * width));
                assert_eq!(column, plane * height * width + inside % width * height + inside / width);
            }
        }
    }
}
