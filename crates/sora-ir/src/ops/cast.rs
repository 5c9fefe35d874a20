//! Conversion between dtypes.

use sora_tensor::{DType, Tensor};

use super::attrs;
use crate::case::{Arg, Case, Gen};
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, TensorType, TieCx};

attrs! {
    /// The same values in another dtype, narrowed as [`Tensor::cast`] says: floats truncate towards zero and
    /// saturate, integers wrap, truth is what is not zero. Source: ONNX Cast.
    pub struct Cast {
        /// Dtype of the result.
        to: DType,
    }
}

impl OpDef for Cast {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        Ok(vec![TensorType { dtype: self.to, shape: cx.ty(0)?.shape.clone() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        Ok(vec![cx.get(0)?.cast(self.to)])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (dtype, dy) = (cx.dtype(cx.input(0)?), cx.grad()?);
        Ok(vec![Some(cx.cast(dy, dtype)?)])
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        let (low, high) = self.to.int_range()?;
        let content = cx.content(0)?;
        let fits = |dim: &Dim| dim.constant().is_none_or(|v| (low..=high).contains(&i128::from(v)));
        // Extents are taken to fit the wider types, which exporters use for them.
        let wide = self.to.size() >= 4 || content.iter().all(|dim| dim.constant().is_some());
        (wide && content.iter().all(fits)).then(|| content.to_vec())
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        cx.same_axes(|_| false)
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for from in DType::all() {
            for to in DType::all() {
                // What a conversion does beyond the range of the target depends on the hardware, so that
                // cases stay inside it.
                let (low, high) = to
                    .int_range()
                    .map_or((-100.0, 100.0), |(low, high)| (low.max(-100) as f64, high.min(100) as f64));
                // Powers of two are positive, and a value may become twice as large.
                let powers = [from, to].contains(&DType::F8E8M0);
                let (low, high) = if powers { (0.0, high / 2.0) } else { (low, high) };
                let rank = g.size(0, 3);
                let shape = g.shape(rank);
                let x = match from {
                    DType::Bool => g.tensor(from, &shape),
                    _ => g.uniform(from, &shape, low, high),
                };
                cases.push(Case::new(Cast { to }, [Arg::Var(x)]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::run;
    use super::*;

    #[test]
    fn narrowing_truncates_and_saturates() {
        let x = Tensor::vector(&[-1.9f32, 0.5, 300.0, f32::NAN]);
        assert_eq!(run(Cast { to: DType::U8 }, &[&x]).unwrap().to_i64s(), [0, 0, 255, 0]);
        assert_eq!(run(Cast { to: DType::I8 }, &[&x]).unwrap().to_i64s(), [-1, 0, 127, 0]);
        assert_eq!(run(Cast { to: DType::Bool }, &[&x]).unwrap().to_i64s(), [1, 1, 1, 1]);
        assert_eq!(
            run(Cast { to: DType::Bool }, &[&Tensor::vector(&[256i64, 0])]).unwrap().to_i64s(),
            [1, 0]
        );
    }
}
