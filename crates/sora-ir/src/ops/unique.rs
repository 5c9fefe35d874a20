//! The different elements or slices of a tensor.

use std::cmp::Ordering;

use sora_tensor::{DType, Tensor};

use super::movement::{MAX_RANK, either_end, offset, signed};
use super::{attrs, for_each_index, product, strides};
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// The different slices of a tensor along an axis, or its different elements as a list, each once. Further outputs,
    /// lists of `i64`: where each occurs first, which of them each slice of the input is, and how often each occurs.
    /// NaNs are equal to each other and above every number. Source: ONNX Unique.
    pub struct Unique {
        /// The axis of the slices, negative from the end; none for elements.
        axis: Option<i64>,
        /// Whether they are sorted, slices by their elements in row-major order; else they are as they occur first.
        sorted: bool,
    }
}

/// The elements as numbers that order like them.
enum Keys {
    Floats(Vec<f64>),
    Ints(Vec<i128>),
}

impl Keys {
    fn compare(&self, a: usize, b: usize) -> Ordering {
        match self {
            Keys::Floats(v) => v[a].partial_cmp(&v[b]).unwrap_or(v[a].is_nan().cmp(&v[b].is_nan())),
            Keys::Ints(v) => v[a].cmp(&v[b]),
        }
    }
}

impl OpDef for Unique {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        ensure!(x.rank() <= MAX_RANK, "a rank of {} is above the limit of {MAX_RANK}", x.rank());
        let axis = self.axis.map(|axis| resolve_axis(axis, x.rank())).transpose()?;
        let count = cx.unknown(axis.unwrap_or(0));
        let (mut shape, all) = match axis {
            Some(axis) => (x.shape.clone(), x.shape[axis].clone()),
            None => (vec![count.clone()], product(&x.shape)),
        };
        shape[axis.unwrap_or(0)] = count.clone();
        let list = |extent: &Dim| TensorType { dtype: DType::I64, shape: vec![extent.clone()] };
        Ok(vec![TensorType { dtype: x.dtype, shape }, list(&count), list(&all), list(&count)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        let flat = match self.axis {
            Some(_) => x.clone(),
            None => x.reshape(&[x.len()])?,
        };
        let axis = resolve_axis(self.axis.unwrap_or(0), flat.rank())?;
        let (extent, steps) = (flat.shape()[axis], strides(flat.shape()));
        let keys = match x.dtype().is_float() {
            true => Keys::Floats(x.to_f64s()),
            false => Keys::Ints(x.to_i128s()),
        };
        // Offsets of a slice's elements from its start.
        let mut slice = Vec::new();
        let mut slice_shape = flat.shape().to_vec();
        slice_shape[axis] = 1;
        // Without slices, their shape may be as large as it likes.
        if extent > 0 {
            for_each_index(&slice_shape, |index| slice.push(offset(index, &steps)));
        }
        let start = |i: usize| i * steps[axis];
        let compare = |&a: &usize, &b: &usize| {
            let pairs = slice.iter().map(|at| keys.compare(start(a) + at, start(b) + at));
            pairs.into_iter().find(|&order| order != Ordering::Equal).unwrap_or(Ordering::Equal)
        };
        let mut order: Vec<usize> = (0..extent).collect();
        order.sort_by(compare);
        // The sort is stable: each group begins with its first occurrence.
        let mut groups: Vec<Vec<usize>> =
            order.chunk_by(|a, b| compare(a, b).is_eq()).map(<[usize]>::to_vec).collect();
        if !self.sorted {
            groups.sort_by_key(|group| group[0]);
        }
        let mut inverse = vec![0i64; extent];
        for (at, group) in groups.iter().enumerate() {
            group.iter().for_each(|&i| inverse[i] = signed(at));
        }
        let firsts: Vec<i64> = groups.iter().map(|group| signed(group[0])).collect();
        let counts: Vec<i64> = groups.iter().map(|group| signed(group.len())).collect();
        let gather = super::Gather { axis: signed(axis) };
        let indices = Tensor::vector(&firsts);
        let mut outputs = gather.eval(&EvalCx { inputs: &[Some(&flat), Some(&indices)] })?;
        outputs.extend([indices, Tensor::vector(&inverse), Tensor::vector(&counts)]);
        Ok(outputs)
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for dtype in [DType::F32, DType::F32, DType::I64, DType::U8, DType::Bool, DType::BF16] {
            let rank = g.size(1, 3);
            let shape = g.shape(rank);
            let few = g.uniform(DType::I32, &shape, 0.0, 2.5).cast(dtype);
            let axis = g.size(0, rank - 1);
            let axis = g.flag().then(|| either_end(g, axis, rank));
            cases.push(Case::new(Unique { axis, sorted: g.flag() }, [Arg::Var(few)]));
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unique(axis: Option<i64>, sorted: bool, x: &Tensor) -> Vec<Vec<f64>> {
        let outputs = Unique { axis, sorted }.eval(&EvalCx { inputs: &[Some(x)] }).unwrap();
        outputs.iter().map(Tensor::to_f64s).collect()
    }

    #[test]
    fn elements_sorted_or_as_they_come() {
        let x = Tensor::vector(&[2f32, 1.0, 1.0, 3.0, 4.0, 3.0]);
        let sorted = unique(None, true, &x);
        assert_eq!(sorted[0], [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(
            sorted[1..],
            [vec![1.0, 0.0, 3.0, 4.0], vec![1., 0., 0., 2., 3., 2.], vec![2., 1., 2., 1.]]
        );
        let found = unique(None, false, &x);
        assert_eq!(found[0], [2.0, 1.0, 3.0, 4.0]);
        assert_eq!(
            found[1..],
            [vec![0.0, 1.0, 3.0, 4.0], vec![0., 1., 1., 2., 3., 2.], vec![1., 2., 2., 1.]]
        );
        let nans = unique(None, true, &Tensor::vector(&[f32::NAN, 1.0, f32::NAN]));
        assert_eq!((nans[0].len(), &nans[3]), (2, &vec![1.0, 2.0]));
        assert_eq!(unique(None, true, &Tensor::vector::<i64>(&[])), vec![Vec::<f64>::new(); 4]);
        let empty = Tensor::zeros(DType::F32, &[0, 1 << 60]).unwrap();
        assert_eq!(unique(Some(0), true, &empty), vec![Vec::<f64>::new(); 4]);
    }

    #[test]
    fn slices_are_compared_as_a_whole() {
        let x = Tensor::from_slice(&[3, 3], &[1i64, 0, 0, 1, 0, 0, 2, 3, 4]).unwrap();
        assert_eq!(unique(Some(0), true, &x)[0], [1., 0., 0., 2., 3., 4.]);
        assert_eq!(unique(Some(0), true, &x)[2], [0., 0., 1.]);
        let columns = unique(Some(-1), true, &x);
        assert_eq!(columns[0], [0., 0., 1., 0., 0., 1., 3., 4., 2.]);
        assert_eq!(columns[1], [1., 2., 0.]);
    }
}
