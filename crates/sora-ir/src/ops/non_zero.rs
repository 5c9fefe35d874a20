//! Where elements are not zero.

use sora_tensor::{DType, Tensor};

use super::movement::{any_var, signed};
use super::{attrs, for_each_index};
use crate::case::{Arg, Case, Gen};
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, TensorType};

attrs! {
    /// The coordinates of the elements that are not zero, in row-major order: an `i64` matrix with a line for each axis
    /// and a column for each such element. A tensor of rank 0 counts as a list of one. Source: ONNX NonZero.
    pub struct NonZero {}
}

/// For each element, in row-major order, whether it is not zero.
fn marks(x: &Tensor) -> Vec<bool> {
    match x.dtype().is_float() {
        true => x.to_f64s().into_iter().map(|v| v != 0.0).collect(),
        false => x.to_i128s().into_iter().map(|v| v != 0).collect(),
    }
}

impl OpDef for NonZero {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        let count = match cx.constant(0) {
            Some(constant) => Dim::from(marks(constant).into_iter().filter(|&mark| mark).count()),
            None => cx.unknown(1),
        };
        Ok(vec![TensorType { dtype: DType::I64, shape: vec![Dim::from(x.rank().max(1)), count] }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        let shape = if x.rank() == 0 { &[1][..] } else { x.shape() };
        let mut lines: Vec<Vec<i64>> = vec![Vec::new(); shape.len()];
        let mut marks = marks(x).into_iter();
        for_each_index(shape, |index| {
            if marks.next() == Some(true) {
                lines.iter_mut().zip(index).for_each(|(line, &i)| line.push(signed(i)));
            }
        });
        let count = lines.first().map_or(0, Vec::len);
        Ok(vec![Tensor::from_slice(&[shape.len(), count], &lines.concat())?])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in 0..=4 {
            let shape = g.shape(rank);
            let sparse = g.uniform(DType::I32, &shape, -2.0, 2.0);
            let dtype = g.pick(&[DType::F32, DType::Bool, DType::I64, DType::I8]);
            let sparse = sparse.cast(dtype);
            cases.push(Case::new(NonZero {}, [if g.flag() { Arg::Const(sparse) } else { Arg::Var(sparse) }]));
            cases.push(Case::new(NonZero {}, [any_var(g, &shape)]));
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::{iota, run};
    use super::*;

    #[test]
    fn coordinates_are_lines() {
        let found = run(NonZero {}, &[&Tensor::from_slice(&[2, 2], &[1f32, 0.0, f32::NAN, 3.0]).unwrap()]);
        let found = found.unwrap();
        assert_eq!((found.shape(), found.to_i64s()), (&[2, 3][..], vec![0, 1, 1, 0, 0, 1]));
        assert_eq!(run(NonZero {}, &[&iota(&[0, 3])]).unwrap().shape(), [2, 0]);
        assert_eq!(run(NonZero {}, &[&Tensor::scalar(0i64)]).unwrap().shape(), [1, 0]);
        assert_eq!(run(NonZero {}, &[&Tensor::scalar(-7i64)]).unwrap().to_i64s(), [0]);
    }
}
