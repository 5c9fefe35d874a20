//! The same bits as another dtype.

use sora_tensor::{Buffer, DType, Tensor};

use super::attrs;
use crate::case::{Arg, Case, Gen};
use crate::{EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// The bits of each element as an element of another dtype of the same width. Source: ONNX BitCast.
    pub struct BitCast {
        /// Dtype of the result; truth values, which not all bits are, and elements narrower than a byte have no others.
        to: DType,
    }
}

impl OpDef for BitCast {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        let fits = self.to == x.dtype
            || self.to.bits() == x.dtype.bits() && x.dtype.bits() >= 8 && self.to != DType::Bool;
        ensure!(fits, "the bits of {x} are not those of {}", self.to);
        Ok(vec![TensorType { dtype: self.to, shape: x.shape.clone() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        Ok(vec![Tensor::new(self.to, x.shape(), Buffer::copy_of(x.bytes()))?])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        let pairs = [
            (DType::F32, DType::I32),
            (DType::F64, DType::U64),
            (DType::BF16, DType::I16),
            (DType::F16, DType::U16),
            (DType::I8, DType::U8),
            (DType::U32, DType::I32),
        ];
        for (a, b) in pairs {
            let rank = g.size(0, 3);
            let shape = g.shape(rank);
            let x = g.tensor(a, &shape);
            // The way back begins with bits that are numbers.
            let bits = Tensor::new(b, &shape, Buffer::copy_of(x.bytes())).expect("as many bytes");
            cases.push(Case::new(BitCast { to: b }, [Arg::Var(x)]));
            cases.push(Case::new(BitCast { to: a }, [Arg::Var(bits)]));
        }
        cases.push(Case::new(BitCast { to: DType::U8 }, [Arg::Var(g.tensor(DType::Bool, &[5]))]));
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::run;
    use super::*;

    #[test]
    fn bits_stay_and_widths_must_agree() {
        let one = Tensor::vector(&[1f32, -0.0]);
        assert_eq!(run(BitCast { to: DType::U32 }, &[&one]).unwrap().to_i64s(), [0x3f80_0000, 0x8000_0000]);
        assert_eq!(
            run(BitCast { to: DType::F32 }, &[&Tensor::vector(&[1i32 << 30])]).unwrap().to_f64s(),
            [2.0]
        );
        assert!(run(BitCast { to: DType::F64 }, &[&one]).is_err());
        assert!(run(BitCast { to: DType::Bool }, &[&Tensor::vector(&[7u8])]).is_err());
    }
}
