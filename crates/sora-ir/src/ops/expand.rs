//! Broadcasting to a shape.

use sora_tensor::Tensor;

use super::attrs;
use super::movement::{MAX_CONTENT, any_dtype, assemble, described_rank, leading, list, signed};
use crate::case::{Arg, Case, Gen};
use crate::op::broadcast;
use crate::{
    Along, Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, Operand, QuantRule, TensorType, TieCx,
    ensure,
};

attrs! {
    /// The first input repeated along axes of extent one until it has the shape that it and the list in the
    /// second input broadcast to by NumPy's rule. Source: ONNX Expand.
    pub struct Expand {}
}

impl OpDef for Expand {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=2)?;
        let (x, rank) = (cx.ty(0)?, described_rank(cx, 1)?.max(cx.ty(0)?.rank()));
        let shape = match cx.content(1) {
            Some(wanted) => {
                let negative = wanted.iter().any(|d| d.constant().is_some_and(|v| v < 0));
                ensure!(!negative, "cannot expand {x} to the negative extent in {wanted:?}");
                broadcast(&x.shape, wanted)?
            }
            // An extent above one is its own result whatever the list says.
            None => (0..rank)
                .map(|axis| match (axis + x.rank()).checked_sub(rank).map(|i| &x.shape[i]) {
                    Some(dim) if dim.known().is_some_and(|d| d != 1) => dim.clone(),
                    _ => cx.unknown(axis),
                })
                .collect(),
        };
        Ok(vec![TensorType { dtype: x.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let x = cx.get(0)?;
        if x.len() == 1 {
            // One element everywhere: constants of a shape are often large.
            let mut out = Tensor::zeros(dtype, &shape)?;
            out.bytes_mut().chunks_exact_mut(dtype.size()).for_each(|to| to.copy_from_slice(x.bytes()));
            return Ok(vec![out]);
        }
        // Missing leading axes count as ones, which always repeat.
        let missing = shape.len() - x.rank();
        let same = |axis: usize| axis >= missing && x.shape()[axis - missing] == shape[axis];
        let visited = leading(shape.len(), |axis| !same(axis));
        let run: usize = shape[visited..].iter().fold(1, |n, &d| n.saturating_mul(d));
        let outer = &x.shape()[..visited.saturating_sub(missing)];
        Ok(vec![assemble(dtype, &shape, visited, |index| {
            Some((x, super::broadcast_offset(index, outer).saturating_mul(run)))
        })?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let dy = cx.grad()?;
        Ok(vec![Some(cx.sum_to_input(dy, 0)?)])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        let content = cx.content(0)?;
        let ty = self.infer(cx).ok()?.pop()?;
        let len = ty.known_len().filter(|&len| ty.rank() <= 1 && len <= MAX_CONTENT)?;
        match content {
            [only] => Some(vec![only.clone(); len]),
            _ => (len == content.len()).then(|| content.to_vec()),
        }
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        ensure!(cx.content(1).is_some(), "expands to a shape that is not known");
        let (rank, own) = (cx.out(0)?.rank(), cx.ty(0)?.rank());
        for axis in 0..rank {
            let from = (axis + own).checked_sub(rank);
            match from.filter(|&from| cx.extent(Operand::Input(0), from) != Some(1)) {
                Some(from) => cx.same(0, from, 0, axis),
                // Copies of one element: as many as are asked for.
                None => cx.tie([Along::output(axis)]),
            }
        }
        Ok(())
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in 0..=4 {
            for _ in 0..4 {
                let wanted = g.shape(rank);
                let from = g.size(0, rank);
                let x: Vec<usize> = wanted[from..].iter().map(|&d| if g.flag() { 1 } else { d }).collect();
                // The list may have ones, and fewer axes than the input, where the input has the extent.
                let keep = g.size(0, from);
                let asked = wanted[keep * usize::from(from == rank)..].iter().enumerate();
                let skipped = keep * usize::from(from == rank);
                let asked = asked.map(|(i, &d)| {
                    let own = (i + skipped).checked_sub(from).is_some_and(|i| x[i] == d);
                    if own && g.flag() { 1 } else { signed(d) }
                });
                let asked: Vec<i64> = asked.collect();
                let dtype = any_dtype(g);
                let x = g.tensor(dtype, &x);
                let x = if g.size(0, 3) == 0 { Arg::Const(x) } else { Arg::Var(x) };
                cases.push(Case::new(Expand {}, [x, list(asked)]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use sora_tensor::DType;

    use super::super::movement::{iota, run};
    use super::*;
    use crate::Graph;

    #[test]
    fn ones_repeat() {
        let expand = |shape: &[usize], to: &[i64]| run(Expand {}, &[&iota(shape), &Tensor::vector(to)]);
        assert_eq!(expand(&[2, 1], &[2, 2]).unwrap().to_i64s(), [0, 0, 1, 1]);
        assert_eq!(expand(&[2], &[2, 1]).unwrap().to_i64s(), [0, 1, 0, 1]);
        assert_eq!(expand(&[3, 1], &[2, 1, 1]).unwrap().to_i64s(), [0, 1, 2, 0, 1, 2]);
        assert_eq!(expand(&[2, 3], &[1]).unwrap(), iota(&[2, 3]));
        assert_eq!(expand(&[], &[0]).unwrap().shape(), [0]);
        assert!(expand(&[2], &[3]).is_err());
        assert!(expand(&[2], &[-1]).is_err());
        assert!(expand(&[1], &[i64::MAX, i64::MAX]).is_err());
    }

    #[test]
    fn known_extents_survive_an_unknown_shape() {
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::new(DType::F32, [1usize, 3]));
        let to = g.input("to", TensorType::new(DType::I64, [3usize]));
        let y = g.op("y", Expand {}, [x, to]).unwrap();
        assert_eq!(g.ty(y).shape[2], Dim::from(3usize));
        assert_eq!(g.ty(y).rank(), 3);
    }
}
