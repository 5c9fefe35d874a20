//! Arithmetic sequences.

use sora_tensor::{DType, Element, Tensor, with_element};

use super::attrs;
use super::movement::{MAX_CONTENT, is_single, numbers, signed};
use crate::case::{Arg, Case, Gen};
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// The list `start, start + delta, …` of the numbers before `limit`. Inputs: start, limit, delta, scalars
    /// of one dtype. Source: ONNX Range.
    pub struct Range {}
}

/// Dtypes that sequences have; extents of unsigned ones would wrap.
const DTYPES: [DType; 7] =
    [DType::I64, DType::F32, DType::I32, DType::F64, DType::I16, DType::F16, DType::BF16];

/// The number of elements where it is known.
fn extent(cx: &InferCx) -> Result<Option<Dim>, Mismatch> {
    if cx.ty(0)?.dtype.is_float() {
        let constant = |index| cx.constant(index).and_then(|t| t.to_f64s().first().copied());
        let (Some(start), Some(limit), Some(delta)) = (constant(0), constant(1), constant(2)) else {
            return Ok(None);
        };
        let count = ((limit - start) / delta).ceil();
        ensure!(count.is_finite(), "{start} to {limit} by {delta} is not a finite range");
        return Ok(Some(Dim::from(count.max(0.0) as i64)));
    }
    let content = |index| cx.content(index).and_then(|c| c.first());
    let (Some(start), Some(limit), Some(delta)) = (content(0), content(1), content(2)) else {
        return Ok(None);
    };
    let Some(delta) = delta.constant() else { return Ok(None) };
    ensure!(delta != 0, "a range cannot step by 0");
    let (from, to) = if delta > 0 { (start, limit) } else { (limit, start) };
    let count = (to.clone() - from.clone()).ceil_div(delta.saturating_abs());
    Ok(Some(if count.constant().is_some_and(|n| n < 0) { Dim::from(0usize) } else { count }))
}

impl OpDef for Range {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(3..=3)?;
        let first = cx.ty(0)?;
        ensure!(DTYPES.contains(&first.dtype), "a range has no elements of {}", first.dtype);
        for index in 0..3 {
            let ty = cx.ty(index)?;
            ensure!(ty.dtype == first.dtype, "bounds {first} and {ty} differ in dtype");
            ensure!(is_single(ty), "input {index} must be a scalar, found {ty}");
        }
        let extent = extent(cx)?.unwrap_or_else(|| cx.unknown(0));
        Ok(vec![TensorType { dtype: first.dtype, shape: vec![extent] }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (start, delta) = (cx.get(0)?, cx.get(2)?);
        // Allocating first refuses extents that memory does not hold.
        let mut out = Tensor::zeros(dtype, &shape)?;
        with_element!(dtype, T => {
            let (start, delta) = (start.as_slice::<T>()?[0], delta.as_slice::<T>()?[0]);
            for (i, value) in out.as_mut_slice::<T>()?.iter_mut().enumerate() {
                *value = match dtype.is_float() {
                    true => T::from_f64(start.to_f64() + i as f64 * delta.to_f64()),
                    false => T::from_i128(start.to_i128() + i as i128 * delta.to_i128()),
                };
            }
        });
        Ok(vec![out])
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        let count = extent(cx).ok()??.known().filter(|&n| n <= MAX_CONTENT)?;
        let (start, delta) = (cx.content(0)?.first()?, *numbers(cx, 2)?.first()?);
        Some((0..count).map(|i| start.clone() + Dim::from(signed(i).saturating_mul(delta))).collect())
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for dtype in DTYPES {
            for _ in 0..4 {
                let start = g.real(-9.0, 9.0).round();
                let (limit, delta) = (start + g.real(-1.0, 20.0).round(), g.size(1, 3) as f64);
                let sign = if g.flag() { 1.0 } else { -1.0 };
                let shape: &[usize] = if g.flag() { &[] } else { &[1] };
                let inputs = [sign * start, sign * limit, sign * delta]
                    .map(|value| Arg::Const(Tensor::from_f64s(dtype, shape, &[value]).expect("one element")));
                cases.push(Case::new(Range {}, inputs));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::run;
    use super::super::{Gather, Shape};
    use super::*;
    use crate::Graph;

    fn range<T: Element>(start: T, limit: T, delta: T) -> Result<Vec<f64>, Mismatch> {
        let inputs = [start, limit, delta].map(Tensor::scalar);
        Ok(run(Range {}, &inputs.each_ref())?.to_f64s())
    }

    #[test]
    fn the_limit_is_excluded() {
        assert_eq!(range(0i64, 5, 2).unwrap(), [0.0, 2.0, 4.0]);
        assert_eq!(range(5i32, 0, -3).unwrap(), [5.0, 2.0]);
        assert!(range(5i64, 0, 1).unwrap().is_empty());
        assert_eq!(range(0f32, 1.0, 0.4).unwrap().len(), 3);
        assert!(range(0f32, -1.0, 0.5).unwrap().is_empty());
    }

    #[test]
    fn endless_ranges_are_refused() {
        assert!(range(0i64, 5, 0).is_err());
        assert!(range(i64::MIN, i64::MAX, 1).is_err());
        assert!(range(0f32, 5.0, 0.0).is_err());
        assert!(range(0f32, f32::INFINITY, 1.0).is_err());
        assert!(range(0f32, f32::NAN, 1.0).is_err());
        assert!(range(0f64, 1e300, 1.0).is_err());
        assert!(range(0u8, 5, 1).is_err());
    }

    /// Position indices: `arange(x.shape[1])`.
    #[test]
    fn symbolic_limits_become_extents() {
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::new(DType::I64, [Dim::symbol("N"), Dim::symbol("T")]));
        let shape = g.op("shape", Shape { start: 0, end: None }, [x]).unwrap();
        let [zero, one] = [0i64, 1].map(|v| g.constant("c", Tensor::scalar(v)));
        let length = g.op("length", Gather { axis: 0 }, [shape, one]).unwrap();
        let positions = g.op("positions", Range {}, [zero, length, one]).unwrap();
        assert_eq!(g.ty(positions).shape, [Dim::symbol("T")]);
    }
}
