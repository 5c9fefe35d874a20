//! Writing slices by coordinates.

use sora_tensor::Tensor;

use super::gather_nd::{any_coordinates, coordinate_len, resolve_coordinates};
use super::{GatherNd, Reduction, attrs};
use crate::case::{Arg, Case, Gen};
use crate::{EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// The data (input 0) with slices replaced by the updates (input 2): each line of the integer indices (input 1)
    /// holds the leading coordinates of a slice, negative ones counted from the end. The updates have the leading axes
    /// of the indices and then those of a slice. Source: ONNX ScatterND.
    pub struct ScatterNd {
        /// How an update meets what is there; updates apply in row-major order.
        reduction: Reduction,
    }
}

impl OpDef for ScatterNd {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(3..=3)?;
        let (x, indices, updates) = (cx.ty(0)?, cx.ty(1)?, cx.ty(2)?);
        self.reduction.check(x, updates)?;
        let taken = coordinate_len(indices, x, 0)?;
        let lines = indices.shape.split_last().map_or(&[][..], |(_, lines)| lines);
        let expected = [lines, &x.shape[taken..]].concat();
        let fits = expected.len() == updates.rank()
            && expected.iter().zip(&updates.shape).all(|(a, b)| a.compatible(b));
        ensure!(fits, "updates {updates} do not fit data {x} at indices {indices}");
        Ok(vec![x.clone()])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        cx.infer(self)?;
        let (x, indices, updates) = (cx.get(0)?, cx.get(1)?, cx.get(2)?);
        let (offsets, run) = resolve_coordinates(x, indices, 0)?;
        let pairs: Vec<_> = offsets.into_iter().enumerate().map(|(line, to)| (to, line * run)).collect();
        Ok(vec![self.reduction.apply(x, updates, run, &pairs)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        self.reduction.gradients(cx, self.clone().into(), GatherNd { batch_dims: 0 }.into())
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in [1, 2, 2, 3, 4] {
            let (shape, taken) = (g.shape(rank), g.size(1, rank));
            let index_rank = g.size(0, 2);
            let lines = g.shape(index_rank);
            let indices = any_coordinates(g, &lines, &shape[..taken]);
            let (reduction, dtype) = Reduction::any(g);
            let updates = g.tensor(dtype, &[&lines[..], &shape[taken..]].concat());
            let x = Arg::Var(g.tensor(dtype, &shape));
            cases.push(Case::new(ScatterNd { reduction }, [x, indices, Arg::Var(updates)]));
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::{iota, run};
    use super::*;
    use sora_tensor::DType;

    #[test]
    fn slices_and_elements_are_written() {
        let indices = Tensor::from_slice(&[2, 1], &[-1i64, 0]).unwrap();
        let updates = Tensor::from_slice(&[2, 2], &[10i64, 20, 30, 40]).unwrap();
        let scatter =
            |reduction| run(ScatterNd { reduction }, &[&iota(&[3, 2]), &indices, &updates]).unwrap();
        assert_eq!(scatter(Reduction::Replace).to_i64s(), [30, 40, 2, 3, 10, 20]);
        assert_eq!(scatter(Reduction::Add).to_i64s(), [30, 41, 2, 3, 14, 25]);
        let (at, one) = (Tensor::vector(&[1i32, 1]), Tensor::scalar(9i64));
        let op = ScatterNd { reduction: Reduction::Replace };
        assert_eq!(run(op, &[&iota(&[2, 2]), &at, &one]).unwrap().to_i64s(), [0, 1, 2, 9]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let op = ScatterNd { reduction: Reduction::Replace };
        let wrong = |indices: &[usize], v: i64, updates: &[usize]| {
            let indices = Tensor::from_slice(indices, &vec![v; indices.iter().product()]).unwrap();
            run(op.clone(), &[&iota(&[2, 3]), &indices, &iota(updates)]).is_err()
        };
        assert!(wrong(&[1, 3], 0, &[1]) && wrong(&[], 0, &[]));
        assert!(wrong(&[1, 1], 2, &[1, 3]) && wrong(&[1, 1], -3, &[1, 3]) && wrong(&[1, 1], 0, &[1, 2]));
        let truth = Tensor::zeros(DType::Bool, &[2]).unwrap();
        let add = ScatterNd { reduction: Reduction::Add };
        let at = Tensor::from_slice(&[1, 1], &[0i64]).unwrap();
        assert!(run(add, &[&truth, &at, &Tensor::zeros(DType::Bool, &[1]).unwrap()]).is_err());
    }
}
