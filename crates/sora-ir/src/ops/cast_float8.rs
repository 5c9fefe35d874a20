//! Conversion to an 8-bit float that says what becomes of values which have no neighbour there.

use sora_tensor::{DType, Element, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, PowerRounding, Tensor};

use super::attrs;
use crate::case::{Arg, Case, Gen};
use crate::{EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// Floats as floats of 8 bits, rounded to nearest even: Cast with choices that it does not have.
    /// Source: ONNX Cast with `saturate` and `round_mode`.
    pub struct CastFloat8 {
        /// Dtype of the result: one of the 8-bit floats.
        to: DType,
        /// Whether values beyond the range become its ends; otherwise infinity, or NaN where there is none.
        saturate: bool,
        /// Which power of two a value becomes; counts for f8e8m0 only.
        rounding: PowerRounding,
    }
}

const FLOATS: [DType; 5] =
    [DType::F8E4M3FN, DType::F8E4M3FNUZ, DType::F8E5M2, DType::F8E5M2FNUZ, DType::F8E8M0];

fn convert<T: Element>(x: &Tensor, narrow: impl Fn(f64) -> T) -> Result<Vec<Tensor>, Mismatch> {
    let values: Vec<T> = x.to_f64s().into_iter().map(narrow).collect();
    Ok(vec![Tensor::from_slice(x.shape(), &values)?])
}

impl OpDef for CastFloat8 {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        ensure!(x.dtype.is_float(), "takes floats, found {x}");
        ensure!(FLOATS.contains(&self.to), "{} is none of the 8-bit floats {FLOATS:?}", self.to);
        Ok(vec![TensorType { dtype: self.to, shape: x.shape.clone() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        match self.to {
            DType::F8E8M0 => convert(x, |v| F8E8M0::rounded(v, self.saturate, self.rounding)),
            to if self.saturate => Ok(vec![x.cast(to)]),
            DType::F8E4M3FN => convert(x, F8E4M3FN::from_f64_unsaturated),
            DType::F8E4M3FNUZ => convert(x, F8E4M3FNUZ::from_f64_unsaturated),
            DType::F8E5M2 => convert(x, F8E5M2::from_f64_unsaturated),
            DType::F8E5M2FNUZ => convert(x, F8E5M2FNUZ::from_f64_unsaturated),
            to => Err(Mismatch::new(format!("{to} is no 8-bit float"))),
        }
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for to in FLOATS {
            for rounding in [PowerRounding::Up, PowerRounding::Down, PowerRounding::Nearest] {
                for from in [DType::F32, DType::F16] {
                    let shape = g.shape(2);
                    let low = if to == DType::F8E8M0 { 0.0 } else { -1000.0 };
                    let x = g.uniform(from, &shape, low, 1000.0);
                    let op = CastFloat8 { to, saturate: g.flag(), rounding };
                    cases.push(Case::new(op, [Arg::Var(x)]));
                }
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
    fn beyond_the_range_lies_its_end_or_no_number() {
        let x = Tensor::vector(&[1e6f32, f32::NEG_INFINITY, 1.0]);
        let cast = |to, saturate| {
            let op = CastFloat8 { to, saturate, rounding: PowerRounding::Up };
            run(op, &[&x]).unwrap().to_f64s()
        };
        assert_eq!(cast(DType::F8E4M3FN, true), [448.0, -448.0, 1.0]);
        assert_eq!(cast(DType::F8E5M2, false), [f64::INFINITY, f64::NEG_INFINITY, 1.0]);
        assert!(cast(DType::F8E4M3FN, false)[0].is_nan());
        assert!(
            EvalCx { inputs: &[Some(&x)] }
                .infer(&CastFloat8 { to: DType::F16, saturate: true, rounding: PowerRounding::Up })
                .is_err()
        );
    }
}
