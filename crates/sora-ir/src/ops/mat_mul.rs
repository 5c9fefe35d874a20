//! Matrix product.

use sora_tensor::{DType, Tensor};

use super::{attrs, broadcast_offset, for_each_index, product, room};
use crate::case::{Arg, Case, Gen};
use crate::op::broadcast;
use crate::{
    Along, Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, Operand, QuantRule, TensorType, TieCx,
    ensure,
};

attrs! {
    /// Matrix product `[…, M, K] × […, K, N] → […, M, N]` of two operands of one number type. Leading axes
    /// broadcast; an operand of rank 1 is a row on the left, a column on the right, and its axis is dropped from
    /// the result, as in NumPy's `matmul`. Integers wrap. Source: ONNX MatMul.
    pub struct MatMul {}
}

/// Shapes of the operands as stacks of matrices: leading axes, then rows and columns.
struct Stacks<'a, D> {
    left: &'a [D],
    right: &'a [D],
    m: Option<&'a D>,
    k: [&'a D; 2],
    n: Option<&'a D>,
}

/// Splits two operand shapes; `None` when one has rank 0. A missing `m` or `n` is a dropped axis of one.
fn stacks<'a, D>(a: &'a [D], b: &'a [D]) -> Option<Stacks<'a, D>> {
    let (left, m, ka) = match a {
        [] => return None,
        [k] => (&a[..0], None, k),
        [left @ .., m, k] => (left, Some(m), k),
    };
    let (right, kb, n) = match b {
        [] => return None,
        [k] => (&b[..0], k, None),
        [right @ .., k, n] => (right, k, Some(n)),
    };
    Some(Stacks { left, right, m, k: [ka, kb], n })
}

impl OpDef for MatMul {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=2)?;
        let (a, b) = (cx.ty(0)?, cx.ty(1)?);
        ensure!(a.dtype == b.dtype && a.dtype != DType::Bool, "{a} and {b} must be one number type");
        let Some(s) = stacks(&a.shape, &b.shape) else {
            return Err(Mismatch::new(format!("{a} and {b} must have at least one axis")));
        };
        ensure!(s.k[0].compatible(s.k[1]), "{a} has {} columns, {b} has {} rows", s.k[0], s.k[1]);
        let mut shape = broadcast(s.left, s.right)?;
        shape.extend(s.m.into_iter().chain(s.n).cloned());
        Ok(vec![TensorType { dtype: a.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (a, b) = (cx.get(0)?, cx.get(1)?);
        Ok(vec![if dtype.is_float() {
            let out = multiply(a, &a.to_f64s(), b, &b.to_f64s(), &shape, |sum, x, y| sum + x * y)?;
            Tensor::from_f64s(dtype, &shape, &out)?
        } else {
            let wrapping = |sum: i128, x: i128, y: i128| sum.wrapping_add(x.wrapping_mul(y));
            let out = multiply(a, &a.to_i128s(), b, &b.to_i128s(), &shape, wrapping)?;
            Tensor::from_i128s(dtype, &shape, &out)?
        }])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (a, b, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let (a_shape, b_shape) = (cx.shape(a)?, cx.shape(b)?);
        // Vectors as matrices of one row or column.
        let matrix = |shape: &[usize], row: bool| match (shape, row) {
            (&[k], true) => vec![1, k],
            (&[k], false) => vec![k, 1],
            _ => shape.to_vec(),
        };
        let (a_matrix, b_matrix) = (matrix(&a_shape, true), matrix(&b_shape, false));
        let (a, b) = (cx.reshape(a, &a_matrix)?, cx.reshape(b, &b_matrix)?);
        let mut dy_shape = cx.shape(dy)?;
        if a_shape.len() == 1 {
            dy_shape.insert(dy_shape.len() - usize::from(b_shape.len() > 1), 1);
        }
        if b_shape.len() == 1 {
            dy_shape.push(1);
        }
        let dy = cx.reshape(dy, &dy_shape)?;
        let mut grads = vec![None, None];
        if cx.wants(0) {
            let turned = cx.transpose_matrices(b)?;
            let da = cx.mat_mul(dy, turned)?;
            let da = cx.sum_to(da, &a_matrix)?;
            grads[0] = Some(cx.reshape(da, &a_shape)?);
        }
        if cx.wants(1) {
            let db = match b_matrix.len() {
                // One matrix for all: the stacks on the left are one tall matrix.
                2 => {
                    let (rows, k, n) =
                        (a_matrix[..a_matrix.len() - 1].iter().product(), b_matrix[0], b_matrix[1]);
                    let left = cx.reshape(a, &[rows, k])?;
                    let right = cx.reshape(dy, &[rows, n])?;
                    let turned = cx.transpose_matrices(left)?;
                    cx.mat_mul(turned, right)?
                }
                _ => {
                    let turned = cx.transpose_matrices(a)?;
                    let db = cx.mat_mul(turned, dy)?;
                    cx.sum_to(db, &b_matrix)?
                }
            };
            grads[1] = Some(cx.reshape(db, &b_shape)?);
        }
        Ok(grads)
    }

    fn macs(&self, inputs: &[Option<&TensorType>], outputs: &[&TensorType]) -> Dim {
        match (inputs.first().copied().flatten().and_then(|a| a.shape.last()), outputs.first()) {
            (Some(k), Some(y)) => product(&y.shape) * k.clone(),
            _ => Dim::from(0usize),
        }
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Linear { weight_axis: -1 }
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let (a, b, y) = (cx.ty(0)?.rank(), cx.ty(1)?.rank(), cx.out(0)?.rank());
        let (columns, rows) = (a - 1, b.saturating_sub(2));
        cx.tie([Along::input(0, columns).summed(), Along::input(1, rows).summed()]);
        if b > 1 {
            cx.same(1, b - 1, 0, y - 1);
        }
        if a > 1 {
            cx.same(0, a - 2, 0, y - 1 - usize::from(b > 1));
        }
        let stacks = y - usize::from(a > 1) - usize::from(b > 1);
        for axis in 0..stacks {
            let aligned = |(index, rank): (usize, usize)| {
                let own = (axis + rank.saturating_sub(2)).checked_sub(stacks)?;
                let same = cx.extent(Operand::Input(index), own) == cx.extent(Operand::Output(0), axis);
                same.then(|| Along::input(index, own))
            };
            let operands: Vec<Along> = [(0, a), (1, b)].into_iter().filter_map(aligned).collect();
            cx.tie(std::iter::once(Along::output(axis)).chain(operands));
        }
        Ok(())
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut add = |g: &mut Gen, dtype: DType, a: &[usize], b: &[usize], weights: bool| {
            let (a, b) = (g.tensor(dtype, a), g.tensor(dtype, b));
            let b = if weights { Arg::Const(b) } else { Arg::Var(b) };
            cases.push(Case::new(MatMul {}, [Arg::Var(a), b]));
        };
        let extents = |g: &mut Gen| (g.size(1, 20), g.size(1, 70), g.size(1, 40));
        for dtype in [DType::F32, DType::F32, DType::F32, DType::F64, DType::I32, DType::I64] {
            let (m, k, n) = extents(g);
            let weights = g.flag();
            add(g, dtype, &[m, k], &[k, n], weights);
        }
        // A dense layer on one row, on a sequence, and stacks with every way to broadcast.
        let (m, k, n) = extents(g);
        let (p, q) = (g.size(1, 3), g.size(1, 4));
        add(g, DType::F32, &[1, k], &[k, n], true);
        add(g, DType::F32, &[p, m, k], &[k, n], true);
        add(g, DType::F32, &[p, q, m, k], &[p, q, k, n], false);
        add(g, DType::F32, &[p, 1, m, k], &[q, k, n], false);
        add(g, DType::F32, &[m, k], &[p, k, n], true);
        add(g, DType::F32, &[k], &[k], false);
        add(g, DType::F32, &[k], &[p, k, n], false);
        add(g, DType::F32, &[p, m, k], &[k], true);
        cases
    }
}

/// Multiplies matrix by matrix, each row of the result as a sum of scaled rows of `b`.
fn multiply<T: Copy + Default>(
    a: &Tensor,
    x: &[T],
    b: &Tensor,
    y: &[T],
    shape: &[usize],
    add_product: impl Fn(T, T, T) -> T,
) -> Result<Vec<T>, Mismatch> {
    let mut out = room(shape)?;
    out.resize(shape.iter().product(), T::default());
    let Some(s) = stacks(a.shape(), b.shape()) else { return Ok(out) };
    let (m, k, n) = (s.m.map_or(1, |&m| m), *s.k[0], s.n.map_or(1, |&n| n));
    if out.is_empty() || k == 0 {
        return Ok(out);
    }
    let batch = &shape[..shape.len() - usize::from(s.m.is_some()) - usize::from(s.n.is_some())];
    let mut results = out.chunks_exact_mut(m * n);
    for_each_index(batch, |index| {
        let x = &x[broadcast_offset(index, s.left) * m * k..][..m * k];
        let y = &y[broadcast_offset(index, s.right) * k * n..][..k * n];
        let rows = results.next().into_iter().flat_map(|result| result.chunks_exact_mut(n));
        for (row, x) in rows.zip(x.chunks_exact(k)) {
            for (&x, y) in x.iter().zip(y.chunks_exact(n)) {
                row.iter_mut().zip(y).for_each(|(sum, &y)| *sum = add_product(*sum, x, y));
            }
        }
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor, Mismatch> {
        let inputs = [Some(a), Some(b)];
        let cx = EvalCx { inputs: &inputs };
        MatMul {}.eval(&cx).map(|mut outputs| outputs.remove(0))
    }

    #[test]
    fn stacks_broadcast_and_vectors_drop_their_axis() {
        let a = Tensor::from_slice(&[2, 1, 2], &[1i64, 2, 3, 4]).unwrap();
        let b = Tensor::from_slice(&[2, 2], &[5i64, 6, 7, 8]).unwrap();
        let expected = Tensor::from_slice(&[2, 1, 2], &[19i64, 22, 43, 50]).unwrap();
        assert_eq!(matmul(&a, &b), Ok(expected));
        let v = Tensor::vector(&[10i64, 1]);
        assert_eq!(matmul(&v, &b), Ok(Tensor::vector(&[57i64, 68])));
        assert_eq!(matmul(&b, &v), Ok(Tensor::vector(&[56i64, 78])));
        assert_eq!(matmul(&v, &v), Ok(Tensor::scalar(101i64)));
        assert!(matmul(&b, &Tensor::vector(&[1i64, 2, 3])).is_err());
    }

    #[test]
    fn integers_wrap_and_empty_sums_are_zero() {
        let v = Tensor::vector(&[u64::MAX, u64::MAX]);
        assert_eq!(matmul(&v, &v), Ok(Tensor::scalar(2u64)));
        let a = Tensor::zeros(DType::F32, &[2, 0]).unwrap();
        let b = Tensor::zeros(DType::F32, &[0, 3]).unwrap();
        assert_eq!(matmul(&a, &b), Ok(Tensor::zeros(DType::F32, &[2, 3]).unwrap()));
        // Operands without elements can ask for any result.
        let huge = 1 << 40;
        let a = Tensor::zeros(DType::F32, &[huge, 0]).unwrap();
        let b = Tensor::zeros(DType::F32, &[0, huge]).unwrap();
        assert!(matmul(&a, &b).is_err());
    }
}
