//! Transposition.

use sora_tensor::Tensor;

use super::movement::{any_var, assemble, leading, offset};
use super::{attrs, strides};
use crate::case::{Case, Gen};
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

attrs! {
    /// The axes in another order: axis `i` of the result is axis `perm[i]` of the input.
    /// Source: ONNX Transpose.
    pub struct Transpose {
        /// A permutation of all axes.
        perm: Vec<usize>,
    }
}

impl OpDef for Transpose {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        let mut sorted = self.perm.clone();
        sorted.sort_unstable();
        ensure!(sorted.into_iter().eq(0..x.rank()), "{:?} is no permutation of the axes of {x}", self.perm);
        Ok(vec![TensorType {
            dtype: x.dtype,
            shape: self.perm.iter().map(|&axis| x.shape[axis].clone()).collect(),
        }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let x = cx.get(0)?;
        let visited = leading(shape.len(), |axis| self.perm[axis] != axis);
        let from = strides(x.shape());
        let steps: Vec<usize> = self.perm.iter().map(|&axis| from[axis]).collect();
        Ok(vec![assemble(dtype, &shape, visited, |index| Some((x, offset(index, &steps))))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let dy = cx.grad()?;
        let mut back = vec![0; self.perm.len()];
        self.perm.iter().enumerate().for_each(|(i, &axis)| back[axis] = i);
        Ok(vec![Some(cx.transpose(dy, &back)?)])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        cx.content(0).map(<[Dim]>::to_vec)
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        self.perm.iter().enumerate().for_each(|(to, &from)| cx.same(0, from, 0, to));
        Ok(())
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in 0..=5 {
            for _ in 0..3 {
                let shape = g.shape(rank);
                let mut perm: Vec<usize> = (0..rank).collect();
                for at in (1..rank).rev() {
                    perm.swap(at, g.size(0, at));
                }
                cases.push(Case::new(Transpose { perm }, [any_var(g, &shape)]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::{iota, run};
    use super::*;

    #[test]
    fn axes_move() {
        let y = run(Transpose { perm: vec![1, 0, 2] }, &[&iota(&[2, 3, 2])]).unwrap();
        assert_eq!(y.shape(), [3, 2, 2]);
        assert_eq!(y.to_i64s(), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        assert_eq!(
            run(Transpose { perm: vec![1, 0] }, &[&iota(&[2, 3])]).unwrap().to_i64s(),
            [0, 3, 1, 4, 2, 5]
        );
    }

    #[test]
    fn only_permutations_are_taken() {
        for perm in [vec![0], vec![0, 0], vec![1, 2], vec![0, usize::MAX]] {
            assert!(run(Transpose { perm }, &[&iota(&[2, 3])]).is_err());
        }
        // Empty tensors may have extents whose product overflows.
        let empty = Tensor::zeros(sora_tensor::DType::F32, &[0, 1 << 40, 1 << 40]).unwrap();
        assert!(run(Transpose { perm: vec![0, 2, 1] }, &[&empty]).is_ok());
    }
}
