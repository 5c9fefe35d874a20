//! Quantization over the range that the values have when they come.

use sora_tensor::{DType, Tensor};

use super::attrs;
use crate::case::{Arg, Case, Gen};
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// `u8` over the range of the values themselves, widened to hold 0: with `low = min(x, 0)` and
    /// `high = max(x, 0)`, the scale is `(high - low) / 255` (1 where that is 0), the zero point
    /// `round(-low / scale)`, and the result `saturate(round(x / scale) + zero point)`, halves rounded to even,
    /// everything computed in `f32`.
    ///
    /// Input: x `f32`. Outputs: the integers; scale (`f32`) and zero point (`u8`), each one element, or with `rows`
    /// of the shape of x with 1 for the last extent. Source: ONNX DynamicQuantizeLinear, which has no `rows`.
    pub struct DynamicQuantizeLinear {
        /// Whether each row along the last axis has a range of its own: closer where rows differ, as the tokens of
        /// a text do, and independent of what else is in the batch. Needs rank 1 at least.
        rows: bool,
    }
}

/// Scale and zero point of values.
pub(crate) fn scale_of(values: &[f32]) -> (f32, u8) {
    let low = values.iter().fold(0.0f32, |m, &v| m.min(v));
    let high = values.iter().fold(0.0f32, |m, &v| m.max(v));
    let scale = (high - low) / 255.0;
    let scale = if scale == 0.0 { 1.0 } else { scale };
    let zero_point = (-low / scale).clamp(0.0, 255.0).round_ties_even();
    // A cast of a float saturates, and makes 0 of NaN.
    (scale, zero_point as u8)
}

fn quantize(value: f32, (scale, zero_point): (f32, u8)) -> u8 {
    let rounded = (value / scale).round_ties_even() as i64;
    rounded.saturating_add(i64::from(zero_point)).clamp(0, 255) as u8
}

/// The values as they are after quantization and back, as one row.
pub(crate) fn rounded(values: &[f64]) -> Vec<f64> {
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let by = scale_of(&values);
    let real = |v: &f32| f64::from((f32::from(quantize(*v, by)) - f32::from(by.1)) * by.0);
    values.iter().map(real).collect()
}

impl OpDef for DynamicQuantizeLinear {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        ensure!(x.dtype == DType::F32, "x must be f32, found {x}");
        let mut shape = Vec::new();
        if self.rows {
            shape = x.shape.clone();
            let last = shape.last_mut().ok_or_else(|| Mismatch::new("a scalar has no rows"))?;
            *last = Dim::from(1usize);
        }
        Ok(vec![
            TensorType { dtype: DType::U8, shape: x.shape.clone() },
            TensorType { dtype: DType::F32, shape: shape.clone() },
            TensorType { dtype: DType::U8, shape },
        ])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        let mut shape = Vec::new();
        let mut row = x.len();
        if self.rows {
            shape = x.shape().to_vec();
            let last = shape.last_mut().ok_or_else(|| Mismatch::new("a scalar has no rows"))?;
            row = std::mem::replace(last, 1);
        }
        let values = x.to_f32s();
        let (mut q, mut scales, mut zero_points) = (Vec::with_capacity(values.len()), Vec::new(), Vec::new());
        for r in 0..shape.iter().product() {
            let row = &values[r * row..][..row];
            let by = scale_of(row);
            q.extend(row.iter().map(|&v| quantize(v, by)));
            scales.push(by.0);
            zero_points.push(by.1);
        }
        Ok(vec![
            Tensor::from_slice(x.shape(), &q)?,
            Tensor::from_slice(&shape, &scales)?,
            Tensor::from_slice(&shape, &zero_points)?,
        ])
    }

    /// Straight through the rounding, as in QuantizeLinear; nothing saturates, and the range is taken as it is.
    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (scale, dy) = (cx.output(1)?, cx.grad()?);
        Ok(vec![Some(cx.div(dy, scale)?)])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rows in [false, true] {
            for (low, high) in [(-3.0, 5.0), (0.5, 2.0), (-7.0, -1.0), (0.0, 0.0)] {
                let rank = g.size(usize::from(rows), 3);
                let mut shape = g.shape(rank);
                if let Some(last) = shape.last_mut() {
                    *last = g.size(1, 90);
                }
                let x = g.uniform(DType::F32, &shape, low, high);
                cases.push(Case::new(DynamicQuantizeLinear { rows }, [Arg::Var(x)]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the ONNX specification, as a whole and by rows.
    #[test]
    fn ranges_hold_zero() {
        let x = Tensor::from_slice(&[2, 3], &[0f32, 2., -3., -2.5, 1.34, 0.5]).unwrap();
        let run = |rows| {
            let out = DynamicQuantizeLinear { rows }.eval(&EvalCx { inputs: &[Some(&x)] }).unwrap();
            (out[0].to_i64s(), out[1].to_f32s(), out[2].to_i64s())
        };
        assert_eq!(run(false), (vec![153, 255, 0, 26, 221, 179], vec![5.0 / 255.0], vec![153]));
        let (_, scales, zero_points) = run(true);
        assert_eq!(scales, [5.0 / 255.0, (1.34 + 2.5) / 255.0]);
        assert_eq!(zero_points, [153, 166]);
    }

    #[test]
    fn zeros_have_scale_one() {
        assert_eq!(scale_of(&[0.0, 0.0]), (1.0, 0));
        assert_eq!(rounded(&[0.0, -0.0]), [0.0, 0.0]);
        let values = [0.3, -1.0, 0.999];
        for (value, rounded) in values.iter().zip(rounded(&values)) {
            assert!((value - rounded).abs() <= 0.5 * 1.999 / 255.0 + 1e-6);
        }
    }
}
