//! Reductions over axes: one table row per function.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sora_tensor::{DType, Tensor};

use super::{BinaryKind, UnaryKind, attrs, for_each_index, room, strides};
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

/// Which element types a reduction takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Domain {
    /// Floating point only.
    Float,
    /// Floating point and integers.
    Number,
    /// Everything.
    Any,
}

impl Domain {
    fn holds(self, dtype: DType) -> bool {
        match self {
            Domain::Float => dtype.is_float(),
            Domain::Number => dtype != DType::Bool,
            Domain::Any => true,
        }
    }

    /// A representative sample of dtypes for test cases.
    fn sample(self) -> &'static [DType] {
        match self {
            Domain::Float => &[DType::F32, DType::F32, DType::F64],
            Domain::Number => &[DType::F32, DType::F32, DType::I64, DType::I32],
            Domain::Any => &[DType::F32, DType::F32, DType::I64, DType::U8, DType::Bool],
        }
    }
}

struct Row {
    name: &'static str,
    domain: Domain,
    quant: QuantRule,
    float: fn(&[f64]) -> f64,
    int: fn(&[i128]) -> i128,
}

macro_rules! reduce {
    ($($(#[$doc:meta])* $name:ident($domain:ident, $quant:ident, $float:expr, $int:expr);)*) => {
        /// A function from the elements along the reduced axes to one element.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum ReduceKind { $($(#[$doc])* $name),* }

        impl ReduceKind {
            /// Every function, in table order.
            pub const ALL: &[ReduceKind] = &[$(ReduceKind::$name),*];

            fn row(self) -> Row {
                match self { $(ReduceKind::$name => Row {
                    name: concat!("Reduce", stringify!($name)),
                    domain: Domain::$domain, quant: QuantRule::$quant, float: $float, int: $int,
                }),* }
            }
        }
    };
}

/// Never called: the row's domain holds no integers.
fn no_int(_: &[i128]) -> i128 {
    0
}

/// The greatest element, NaN if there is one, negative infinity for none.
fn max(v: &[f64]) -> f64 {
    v.iter().fold(f64::NEG_INFINITY, |a, &b| if a.is_nan() || a > b { a } else { b })
}

reduce! {
    /// Sum of magnitudes.
    L1(Number, Float, |v| v.iter().map(|x| x.abs()).sum(), |v| {
        v.iter().map(|x| x.abs()).fold(0, i128::wrapping_add)
    });
    /// Square root of the sum of squares.
    L2(Float, Float, |v| v.iter().map(|x| x * x).sum::<f64>().sqrt(), no_int);
    /// Natural logarithm of the sum.
    LogSum(Float, Float, |v| v.iter().sum::<f64>().ln(), no_int);
    /// Natural logarithm of the sum of exponentials.
    LogSumExp(Float, Float, |v| {
        let max = max(v);
        if max.is_infinite() { max } else { v.iter().map(|x| (x - max).exp()).sum::<f64>().ln() + max }
    }, no_int);
    /// Greatest element; of none, the least value of the type.
    Max(Any, Passthrough, max, |v| v.iter().copied().max().unwrap_or(i128::MIN));
    /// Arithmetic mean; integers truncate towards zero, and the mean of none is 0 or NaN.
    Mean(Number, Arithmetic, |v| v.iter().sum::<f64>() / v.len() as f64, |v| {
        let count = i128::try_from(v.len()).unwrap_or(i128::MAX);
        v.iter().sum::<i128>().checked_div(count).unwrap_or(0)
    });
    /// Least element; of none, the greatest value of the type.
    Min(Any, Passthrough, |v| -max(&v.iter().map(|x| -x).collect::<Vec<_>>()), |v| {
        v.iter().copied().min().unwrap_or(i128::MAX)
    });
    /// Product.
    Prod(Number, Float, |v| v.iter().product(), |v| v.iter().copied().fold(1, i128::wrapping_mul));
    /// Sum.
    Sum(Number, Float, |v| v.iter().sum(), |v| v.iter().copied().fold(0, i128::wrapping_add));
    /// Sum of squares.
    SumSquare(Number, Float, |v| v.iter().map(|x| x * x).sum(), |v| {
        v.iter().map(|x| x.wrapping_mul(*x)).fold(0, i128::wrapping_add)
    });
}

impl ReduceKind {
    /// The function's name, that of the ONNX operator.
    pub fn name(self) -> &'static str {
        self.row().name
    }
}

attrs! {
    /// Reduces axes to one element each. Integers wrap. Source: the ONNX operators named Reduce….
    pub struct Reduce {
        /// Which function.
        kind: ReduceKind,
        /// The axes to reduce, without repeats; negative ones count from the end; empty means all.
        axes: Vec<i64>,
        /// Whether reduced axes stay, with extent 1.
        keep_dims: bool,
    }
}

impl Reduce {
    /// For each axis of a tensor of this rank, whether it is reduced.
    ///
    /// # Errors
    /// [`Mismatch`] when an axis is outside the tensor or given twice.
    pub fn reduced(&self, rank: usize) -> Result<Vec<bool>, Mismatch> {
        let mut reduced = vec![self.axes.is_empty(); rank];
        for &axis in &self.axes {
            let resolved = resolve_axis(axis, rank)?;
            ensure!(!reduced[resolved], "axis {axis} is given twice in {:?}", self.axes);
            reduced[resolved] = true;
        }
        Ok(reduced)
    }
}

impl OpDef for Reduce {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        ensure!(self.kind.row().domain.holds(x.dtype), "{} does not take {x}", self.kind.name());
        let reduced = self.reduced(x.rank())?;
        let shape =
            x.shape.iter().zip(reduced).filter_map(|(dim, reduced)| match (reduced, self.keep_dims) {
                (false, _) => Some(dim.clone()),
                (true, true) => Some(Dim::from(1usize)),
                (true, false) => None,
            });
        Ok(vec![TensorType { dtype: x.dtype, shape: shape.collect() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (x, row) = (cx.get(0)?, self.kind.row());
        let reduced = self.reduced(x.rank())?;
        if shape.contains(&0) {
            return Ok(vec![Tensor::zeros(dtype, &shape)?]);
        }
        Ok(vec![if dtype.is_float() {
            Tensor::from_f64s(dtype, &shape, &gather(x.shape(), &reduced, &x.to_f64s(), row.float)?)?
        } else {
            // The extremes of no element are those of i128 and would wrap.
            let (low, high) = dtype.int_range().unwrap_or((0, 1));
            let clamp = matches!(self.kind, ReduceKind::Max | ReduceKind::Min);
            let reduce = |v: &[i128]| if clamp { (row.int)(v).clamp(low, high) } else { (row.int)(v) };
            Tensor::from_i128s(dtype, &shape, &gather(x.shape(), &reduced, &x.to_i128s(), reduce)?)?
        }])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (x, y, dy) = (cx.input(0)?, cx.output(0)?, cx.grad()?);
        let shape = cx.shape(x)?;
        let reduced = self.reduced(shape.len())?;
        let kept: Vec<usize> =
            shape.iter().zip(&reduced).map(|(&d, &reduced)| if reduced { 1 } else { d }).collect();
        let (y, dy) = (cx.reshape(y, &kept)?, cx.reshape(dy, &kept)?);
        let dx = match self.kind {
            ReduceKind::Sum => dy,
            ReduceKind::Mean => {
                let count: usize = shape.iter().zip(&reduced).filter(|(_, r)| **r).map(|(&d, _)| d).product();
                cx.times(dy, 1.0 / count.max(1) as f64)?
            }
            ReduceKind::L1 => {
                let sign = cx.unary(UnaryKind::Sign, x)?;
                cx.mul(dy, sign)?
            }
            ReduceKind::L2 => {
                let slope = cx.div(dy, y)?;
                cx.mul(x, slope)?
            }
            ReduceKind::LogSum => {
                let sum = cx.unary(UnaryKind::Exp, y)?;
                cx.div(dy, sum)?
            }
            ReduceKind::LogSumExp => {
                let below = cx.sub(x, y)?;
                let share = cx.unary(UnaryKind::Exp, below)?;
                cx.mul(dy, share)?
            }
            // Equal extremes share the gradient.
            ReduceKind::Max | ReduceKind::Min => {
                let dtype = cx.dtype(x);
                let chosen = cx.binary(BinaryKind::Equal, x, y)?;
                let chosen = cx.cast(chosen, dtype)?;
                let count = cx.sum_to(chosen, &kept)?;
                let share = cx.div(dy, count)?;
                cx.mul(chosen, share)?
            }
            ReduceKind::Prod => return Err(Mismatch::new("has no gradient")),
            ReduceKind::SumSquare => {
                let twice = cx.times(dy, 2.0)?;
                cx.mul(x, twice)?
            }
        };
        Ok(vec![Some(cx.expand(dx, &shape)?)])
    }

    fn quant(&self) -> QuantRule {
        self.kind.row().quant
    }

    fn label(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(self.kind.name()))
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let reduced = self.reduced(cx.ty(0)?.rank())?;
        let mut to = 0;
        for (axis, reduced) in reduced.into_iter().enumerate() {
            if !reduced {
                cx.same(0, axis, 0, to);
            }
            to += usize::from(!reduced || self.keep_dims);
        }
        Ok(())
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for &kind in ReduceKind::ALL {
            for &dtype in kind.row().domain.sample() {
                let rank = g.size(1, 4);
                let signed = |axis: usize| i64::try_from(axis).unwrap_or(0);
                let from_end = if g.flag() { signed(rank) } else { 0 };
                let chosen: Vec<i64> = match g.size(0, 2) {
                    0 => Vec::new(),
                    1 => vec![signed(rank - 1)],
                    _ => (0..rank).filter(|_| g.flag()).map(signed).collect(),
                };
                let axes = chosen.into_iter().map(|axis| axis - from_end).collect();
                let shape = g.shape(rank);
                let x = match (kind, dtype) {
                    (ReduceKind::LogSum, _) => g.uniform(dtype, &shape, 0.1, 3.0),
                    (ReduceKind::Prod, _) => g.uniform(dtype, &shape, 0.8, 1.2),
                    _ => g.tensor(dtype, &shape),
                };
                cases.push(Case::new(Reduce { kind, axes, keep_dims: g.flag() }, [Arg::Var(x)]));
            }
        }
        // A global pool over a feature map.
        let x = g.var(&[2, 24, 7, 7]);
        cases.push(Case::new(Reduce { kind: ReduceKind::Mean, axes: vec![2, 3], keep_dims: true }, [x]));
        cases
    }
}

/// Applies `reduce` to the elements along the reduced axes, for each index of the others.
fn gather<T: Copy>(
    shape: &[usize],
    reduced: &[bool],
    values: &[T],
    reduce: impl Fn(&[T]) -> T,
) -> Result<Vec<T>, Mismatch> {
    let strides = strides(shape);
    let split = |which: bool| -> (Vec<usize>, Vec<usize>) {
        let axes = (0..shape.len()).filter(|&axis| reduced[axis] == which);
        axes.map(|axis| (shape[axis], strides[axis])).unzip()
    };
    let ((kept, kept_strides), (along, along_strides)) = (split(false), split(true));
    let offset = |index: &[usize], strides: &[usize]| -> usize {
        index.iter().zip(strides).map(|(i, stride)| i * stride).sum()
    };
    let mut out = room(&kept)?;
    let mut offsets = Vec::new();
    for_each_index(&along, |index| offsets.push(offset(index, &along_strides)));
    let mut row = Vec::new();
    for_each_index(&kept, |index| {
        let first = offset(index, &kept_strides);
        row.clear();
        row.extend(offsets.iter().map(|offset| values[first + offset]));
        out.push(reduce(&row));
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduce(kind: ReduceKind, axes: &[i64], keep_dims: bool, x: &Tensor) -> Result<Tensor, Mismatch> {
        let op = Reduce { kind, axes: axes.to_vec(), keep_dims };
        op.eval(&EvalCx { inputs: &[Some(x)] }).map(|mut outputs| outputs.remove(0))
    }

    #[test]
    fn axes_choose_the_elements() {
        let x = Tensor::from_slice(&[2, 3], &[1i64, 2, 3, 4, 5, 6]).unwrap();
        let sum = |axes: &[i64], keep| reduce(ReduceKind::Sum, axes, keep, &x);
        assert_eq!(sum(&[0], false), Ok(Tensor::vector(&[5i64, 7, 9])));
        assert_eq!(sum(&[-1], true), Ok(Tensor::from_slice(&[2, 1], &[6i64, 15]).unwrap()));
        assert_eq!(sum(&[], false), Ok(Tensor::scalar(21i64)));
        assert_eq!(reduce(ReduceKind::Mean, &[1], false, &x), Ok(Tensor::vector(&[2i64, 5])));
        assert!(sum(&[1, -1], false).is_err());
        assert!(sum(&[i64::MIN], false).is_err());
        assert!(reduce(ReduceKind::L2, &[0], false, &x).is_err());
    }

    #[test]
    fn every_function_on_the_same_elements() {
        let x = Tensor::vector(&[1f64, -2., 4.]);
        let expected = [
            (ReduceKind::L1, 7.0),
            (ReduceKind::L2, 21f64.sqrt()),
            (ReduceKind::LogSum, 3f64.ln()),
            (ReduceKind::LogSumExp, (1f64.exp() + (-2f64).exp() + 4f64.exp()).ln()),
            (ReduceKind::Max, 4.0),
            (ReduceKind::Mean, 1.0),
            (ReduceKind::Min, -2.0),
            (ReduceKind::Prod, -8.0),
            (ReduceKind::Sum, 3.0),
            (ReduceKind::SumSquare, 21.0),
        ];
        assert_eq!(expected.map(|(kind, _)| kind), ReduceKind::ALL);
        for (kind, value) in expected {
            let found = reduce(kind, &[], false, &x).unwrap().to_f64s()[0];
            assert!((found - value).abs() < 1e-12, "{kind:?}: {found}, expected {value}");
        }
    }

    #[test]
    fn no_elements_give_the_neutral_one() {
        let none = |dtype| Tensor::zeros(dtype, &[0, 2]).unwrap();
        let check = |kind, dtype, expected: f64| {
            assert_eq!(reduce(kind, &[0], false, &none(dtype)).unwrap().to_f64s(), [expected; 2]);
        };
        check(ReduceKind::Sum, DType::F32, 0.0);
        check(ReduceKind::Prod, DType::F32, 1.0);
        check(ReduceKind::Max, DType::F32, f64::NEG_INFINITY);
        check(ReduceKind::Min, DType::U8, 255.0);
        check(ReduceKind::Max, DType::I8, -128.0);
        check(ReduceKind::LogSumExp, DType::F32, f64::NEG_INFINITY);
        assert!(reduce(ReduceKind::Sum, &[1], false, &none(DType::F32)).unwrap().is_empty());
        let wide = Tensor::zeros(DType::F32, &[0, 1 << 40, 1 << 40]).unwrap();
        assert!(reduce(ReduceKind::Sum, &[2], true, &wide).unwrap().is_empty());
        assert!(reduce(ReduceKind::Sum, &[0], true, &wide).is_err());
    }
}
