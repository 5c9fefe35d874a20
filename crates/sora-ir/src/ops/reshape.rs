//! Reshape.

use sora_tensor::{Tensor, element_count};

use super::movement::{any_var, described_rank, list, signed};
use super::{attrs, product};
use crate::case::{Case, Gen};
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

attrs! {
    /// The same elements, row-major, under the shape that the second input lists. One extent may be -1: what
    /// the number of elements leaves. An extent of 0 is that of the first input at the same axis.
    /// Source: ONNX Reshape.
    pub struct Reshape {
        /// Whether an extent of 0 means 0 instead.
        allow_zero: bool,
    }
}

impl Reshape {
    fn resolve(&self, cx: &InferCx, x: &TensorType, wanted: &[Dim]) -> Result<Vec<Dim>, Mismatch> {
        let (mut shape, mut open) = (Vec::with_capacity(wanted.len()), None);
        for (axis, dim) in wanted.iter().enumerate() {
            shape.push(match dim.constant() {
                Some(0) if !self.allow_zero => x.shape.get(axis).cloned().ok_or_else(|| {
                    Mismatch::new(format!("shape {wanted:?} copies axis {axis}, which {x} does not have"))
                })?,
                Some(-1) => {
                    ensure!(open.is_none(), "shape {wanted:?} has more than one -1");
                    open = Some(axis);
                    Dim::from(1usize)
                }
                Some(v) if v < 0 => {
                    return Err(Mismatch::new(format!("shape {wanted:?} has the extent {v}")));
                }
                _ => dim.clone(),
            });
        }
        // Equal extents on both sides cancel: what is left divides even where a product of sums would not.
        let (mut from, mut to) = (x.shape.clone(), shape.clone());
        to.retain(|dim| match from.iter().position(|d| d == dim) {
            Some(at) => {
                from.swap_remove(at);
                false
            }
            None => true,
        });
        let (from, to) = (product(&from), product(&to));
        let refused = || Mismatch::new(format!("{x} does not fill the shape {wanted:?}"));
        match (open, from.constant(), to.constant()) {
            (Some(_), _, Some(0)) => return Err(refused()),
            (Some(_), Some(a), Some(b)) if a % b != 0 => return Err(refused()),
            (Some(axis), _, Some(by)) if by > 0 => shape[axis] = from.floor_div(by),
            (Some(axis), ..) => shape[axis] = from.exact_div(&to).unwrap_or_else(|| cx.unknown(axis)),
            (None, Some(a), Some(b)) if a != b => {
                let empty = |dims: &[Dim]| product(dims).constant() == Some(0);
                ensure!(empty(&x.shape) && empty(&shape), "{}", refused());
            }
            (None, ..) => {}
        }
        let ty = TensorType { dtype: x.dtype, shape };
        if let (Some(a), Some(b)) = (x.known_shape(), ty.known_shape()) {
            ensure!(element_count(&a) == element_count(&b), "{}", refused());
        }
        Ok(ty.shape)
    }
}

impl OpDef for Reshape {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=2)?;
        let (x, rank) = (cx.ty(0)?, described_rank(cx, 1)?);
        let shape = match cx.content(1) {
            Some(wanted) => self.resolve(cx, x, wanted)?,
            None => (0..rank).map(|axis| cx.unknown(axis)).collect(),
        };
        Ok(vec![TensorType { dtype: x.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (_, shape) = cx.output(self)?;
        Ok(vec![cx.get(0)?.reshape(&shape)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (shape, dy) = (cx.shape(cx.input(0)?)?, cx.grad()?);
        Ok(vec![Some(cx.reshape(dy, &shape)?)])
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        let rank = described_rank(cx, 1).ok()?;
        (rank <= 1).then(|| cx.content(0).map(<[Dim]>::to_vec))?
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        cx.reshaped()
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in 0..=4 {
            for form in 0..4 {
                let shape = g.shape(rank);
                let mut wanted: Vec<i64> = match form {
                    // All in one, some merged, the order turned round, and with an extent of one.
                    0 => vec![signed(shape.iter().product())],
                    1 => {
                        let at = g.size(0, rank);
                        let merged = [&shape[..at], &[shape[at..].iter().product()]].concat();
                        merged.into_iter().map(signed).collect()
                    }
                    2 => shape.iter().rev().map(|&d| signed(d)).collect(),
                    _ => shape.iter().map(|&d| signed(d)).chain([1]).collect(),
                };
                let allow_zero = g.flag();
                if let (Some(first), false, true) =
                    (wanted.first_mut(), allow_zero, form % 2 == 1 && rank > 1)
                {
                    // Both forms keep the first extent unless everything was merged into it.
                    if *first == signed(shape[0]) {
                        *first = 0;
                    }
                }
                if g.flag() && !wanted.is_empty() {
                    let at = g.size(0, wanted.len() - 1);
                    wanted[at] = -1;
                }
                cases.push(Case::new(Reshape { allow_zero }, [any_var(g, &shape), list(wanted)]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use sora_tensor::DType;

    use super::super::movement::{iota, run};
    use super::super::{Binary, BinaryKind, Cast, Concat, Gather, Shape, Slice, Unsqueeze};
    use super::*;
    use crate::{Graph, ValueId};

    fn dims(text: &str) -> Vec<Dim> {
        text.split(' ').map(|d| Dim::parse(d).unwrap()).collect()
    }

    fn reshaped(from: &str, to: &[i64]) -> Result<Vec<Dim>, crate::IrError> {
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::new(DType::F32, dims(from)));
        let shape = g.constant("shape", Tensor::vector(to));
        let y = g.op("y", Reshape { allow_zero: false }, [x, shape])?;
        Ok(g.ty(y).shape.clone())
    }

    #[test]
    fn symbolic_shapes_resolve() {
        assert_eq!(reshaped("N 3 4", &[0, -1]).unwrap(), dims("N 12"));
        assert_eq!(reshaped("N 3 4", &[-1, 12]).unwrap(), dims("N 12"));
        assert_eq!(reshaped("N H+1 W-1 6", &[0, 0, -1, 3]).unwrap(), dims("N H+1 2*W-2 3"));
        assert_eq!(reshaped("N 64", &[-1, 128]).unwrap(), dims("(64*N)/128 128"));
        assert_eq!(reshaped("N 12", &[1, 3, 4]).unwrap(), dims("1 3 4"));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (from, to) in [
            ("N 3 4", &[0, 13][..]),
            ("2 3", &[4, -1]),
            ("2 3", &[-1, -1]),
            ("2 3", &[-2, 3]),
            ("2 3", &[2, 3, 0]),
            ("2 3", &[7]),
            ("0 3", &[-1, 0, 0]),
        ] {
            assert!(reshaped(from, to).is_err(), "{from} {to:?}");
        }
        let zero = Reshape { allow_zero: true };
        assert_eq!(run(zero, &[&iota(&[0, 3]), &Tensor::vector(&[7i64, 0])]).unwrap().shape(), [7, 0]);
    }

    fn vector(g: &mut Graph, values: &[i64]) -> ValueId {
        g.constant("c", Tensor::vector(values))
    }

    /// What exporters write for `x.view(x.shape[0], -1)`: Shape → Gather → Unsqueeze → Concat → Reshape.
    #[test]
    fn the_dynamic_flatten_chain_keeps_the_batch() {
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::new(DType::F32, dims("N C H W")));
        let shape = g.op("shape", Shape { start: 0, end: None }, [x]).unwrap();
        let zero = g.constant("zero", Tensor::scalar(0i64));
        let batch = g.op("batch", Gather { axis: 0 }, [shape, zero]).unwrap();
        let batch = g.op("list", Unsqueeze { axes: vec![0] }, [batch]).unwrap();
        let rest = vector(&mut g, &[-1]);
        let wanted = g.op("wanted", Concat { axis: 0 }, [batch, rest]).unwrap();
        let y = g.op("y", Reshape { allow_zero: false }, [x, wanted]).unwrap();
        assert_eq!(g.ty(y).shape, dims("N C*H*W"));
        g.output("y", y);
        let fixed = g.specialize(&[("x", &[2, 3, 4, 5])]).unwrap();
        assert_eq!(fixed.ty(y).shape, dims("2 60"));
    }

    /// Multi-head attention: the last axis splits by a computed extent, a slice of the shape is kept.
    #[test]
    fn arithmetic_on_shapes_propagates() {
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::new(DType::F32, dims("N T 64")));
        let shape = g.op("shape", Shape { start: 0, end: None }, [x]).unwrap();
        let (zero, two, three) = (vector(&mut g, &[0]), vector(&mut g, &[2]), vector(&mut g, &[3]));
        let head = g.op("head", Slice {}, [shape, zero, two]).unwrap();
        let last = g.op("last", Slice {}, [shape, two, three]).unwrap();
        let eight = vector(&mut g, &[8]);
        let width = g.op("width", Binary { kind: BinaryKind::Div }, [last, eight]).unwrap();
        let wanted = g.op("wanted", Concat { axis: 0 }, [head, eight, width]).unwrap();
        let wanted = g.op("cast", Cast { to: DType::I64 }, [wanted]).unwrap();
        let y = g.op("y", Reshape { allow_zero: false }, [x, wanted]).unwrap();
        assert_eq!(g.ty(y).shape, dims("N T 8 8"));
    }

    #[test]
    fn an_unknown_shape_keeps_its_rank() {
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::new(DType::F32, [6usize]));
        let shape = g.input("shape", TensorType::new(DType::I64, [2usize]));
        let y = g.op("y", Reshape { allow_zero: false }, [x, shape]).unwrap();
        assert_eq!(g.ty(y).rank(), 2);
        let huge = g.input("huge", TensorType::new(DType::I64, [1usize << 40]));
        assert!(g.op("z", Reshape { allow_zero: false }, [x, huge]).is_err());
    }
}
