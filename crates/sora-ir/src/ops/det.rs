//! Determinants.

use sora_tensor::{DType, Tensor};

use super::attrs;
use crate::case::{Arg, Case, Gen};
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// The determinant of each square matrix that the last two axes hold. Source: ONNX Det.
    pub struct Det {}
}

/// Gaussian elimination with the largest pivot of each column.
fn determinant(matrix: &mut [f64], n: usize) -> f64 {
    let mut det = 1.0;
    for column in 0..n {
        let size = |row: usize| matrix[row * n + column].abs();
        let pivot = (column..n).max_by(|&a, &b| size(a).total_cmp(&size(b))).unwrap_or(column);
        if pivot != column {
            (0..n).for_each(|i| matrix.swap(pivot * n + i, column * n + i));
            det = -det;
        }
        let head = matrix[column * n + column];
        det *= head;
        if head == 0.0 {
            return det;
        }
        for row in column + 1..n {
            let factor = matrix[row * n + column] / head;
            for i in column..n {
                matrix[row * n + i] -= factor * matrix[column * n + i];
            }
        }
    }
    det
}

impl OpDef for Det {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        ensure!(x.dtype.is_float(), "takes floats, found {x}");
        let Some((batch, [rows, columns])) = x.shape.split_last_chunk::<2>() else {
            return Err(Mismatch::new(format!("takes square matrices, found {x}")));
        };
        ensure!(rows.compatible(columns), "takes square matrices, found {x}");
        Ok(vec![TensorType { dtype: x.dtype, shape: batch.to_vec() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (x, (dtype, shape)) = (cx.get(0)?, cx.output(self)?);
        let n = x.shape().last().copied().unwrap_or(0);
        let mut matrices = x.to_f64s();
        let dets = match n {
            // The empty product.
            0 => {
                let mut ones = super::room(&shape)?;
                ones.resize(shape.iter().product(), 1.0);
                ones
            }
            _ => matrices.chunks_exact_mut(n * n).map(|matrix| determinant(matrix, n)).collect(),
        };
        Ok(vec![Tensor::from_f64s(dtype, &shape, &dets)?])
    }

    fn macs(&self, inputs: &[Option<&TensorType>], outputs: &[&TensorType]) -> Dim {
        let n = inputs.first().copied().flatten().and_then(|x| x.shape.last().cloned());
        let n = n.unwrap_or_else(|| Dim::from(0usize));
        let matrices = outputs.first().map_or(Dim::from(0usize), |y| super::product(&y.shape));
        (n.clone() * n.clone() * n * matrices).floor_div(3)
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let case = |&dtype: &DType| {
            let (rank, n) = (g.size(0, 2), g.size(1, 5));
            let shape = [&g.shape(rank)[..], &[n, n]].concat();
            Case::new(Det {}, [Arg::Var(g.tensor(dtype, &shape))]).with_tolerance(1e-4)
        };
        [DType::F32, DType::F32, DType::F64, DType::F16].iter().map(case).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::run;
    use super::*;

    #[test]
    fn determinants_of_known_matrices() {
        let x = Tensor::from_slice(&[3, 2, 2], &[1f64, 2., 3., 4., 0., 1., 1., 0., 2., 4., 1., 2.]).unwrap();
        assert_eq!(run(Det {}, &[&x]).unwrap().to_f64s(), [-2.0, -1.0, 0.0]);
        let empty = Tensor::zeros(DType::F32, &[2, 0, 0]).unwrap();
        assert_eq!(run(Det {}, &[&empty]).unwrap().to_f64s(), [1.0, 1.0]);
        assert!(run(Det {}, &[&Tensor::zeros(DType::F32, &[2, 3]).unwrap()]).is_err());
    }
}
