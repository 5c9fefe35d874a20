//! Writing nodes into a graph whose shapes are concrete, with names that are made up.

use sora_tensor::{DType, Tensor};

use crate::op::resolve_axis;
use crate::ops::movement::signed;
use crate::ops::{
    Binary, BinaryKind, Cast, Expand, MatMul, Pad, PadMode, Reduce, ReduceKind, Reshape, Slice, Transpose,
    Unary, UnaryKind, Where,
};
use crate::{Graph, Mismatch, Op, ValueId};

/// Writes nodes into a graph. All shapes are concrete; names are a prefix with a number.
pub struct Writer<'a> {
    /// The graph.
    pub graph: &'a mut Graph,
    prefix: String,
    count: usize,
}

impl<'a> Writer<'a> {
    /// Writes into `graph` under names that begin with `prefix`.
    pub fn new(graph: &'a mut Graph, prefix: impl Into<String>) -> Self {
        Writer { graph, prefix: prefix.into(), count: 0 }
    }

    /// The shape of a value.
    ///
    /// # Errors
    /// [`Mismatch`] where it is not concrete.
    pub fn shape(&self, value: ValueId) -> Result<Vec<usize>, Mismatch> {
        let ty = self.graph.ty(value);
        ty.known_shape().ok_or_else(|| Mismatch::new(format!("gradients need concrete shapes, found {ty}")))
    }

    /// The dtype of a value.
    pub fn dtype(&self, value: ValueId) -> DType {
        self.graph.ty(value).dtype
    }

    /// The elements of a list of integers.
    ///
    /// # Errors
    /// [`Mismatch`] where they are computed from data.
    pub fn numbers(&self, value: ValueId) -> Result<Vec<i64>, Mismatch> {
        if let Some(tensor) = self.graph.const_value(value) {
            return Ok(tensor.to_i64s());
        }
        let content = self.graph.value(value).content.as_ref();
        let numbers = content.and_then(|dims| dims.iter().map(crate::Dim::constant).collect());
        numbers.ok_or_else(|| {
            let name = &self.graph.value(value).name;
            Mismatch::new(format!("the gradient needs the elements of `{name}` to be known beforehand"))
        })
    }

    /// Adds a node of one output.
    ///
    /// # Errors
    /// [`Mismatch`] when the operator refuses its inputs.
    pub fn op(
        &mut self,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = impl Into<Option<ValueId>>>,
    ) -> Result<ValueId, Mismatch> {
        let outputs = self.ops(op, inputs)?;
        outputs.first().copied().ok_or_else(|| Mismatch::new("the operator has no output"))
    }

    /// Adds a node.
    ///
    /// # Errors
    /// [`Mismatch`] when the operator refuses its inputs.
    pub fn ops(
        &mut self,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = impl Into<Option<ValueId>>>,
    ) -> Result<Vec<ValueId>, Mismatch> {
        let name = self.name();
        self.graph.add(&name, op, inputs).map_err(|e| Mismatch::new(e.to_string()))
    }

    /// Adds a constant.
    pub fn constant(&mut self, tensor: Tensor) -> ValueId {
        let name = self.name();
        self.graph.constant(&name, tensor)
    }

    /// A list of integers.
    pub fn list(&mut self, elements: &[i64]) -> ValueId {
        self.constant(Tensor::vector(elements))
    }

    /// A list of extents.
    pub fn extents(&mut self, extents: &[usize]) -> ValueId {
        self.list(&extents.iter().map(|&e| signed(e)).collect::<Vec<_>>())
    }

    /// A number of the dtype of `like`, of rank 0.
    ///
    /// # Errors
    /// [`Mismatch`] when the number is not one of the dtype.
    pub fn number(&mut self, number: f64, like: ValueId) -> Result<ValueId, Mismatch> {
        let tensor = Tensor::from_f64s(self.dtype(like), &[], &[number])?;
        Ok(self.constant(tensor))
    }

    /// Zeros of a shape.
    ///
    /// # Errors
    /// [`Mismatch`] when memory does not suffice.
    pub fn zeros(&mut self, dtype: DType, shape: &[usize]) -> Result<ValueId, Mismatch> {
        let zero = self.constant(Tensor::zeros(dtype, &[])?);
        self.expand(zero, shape)
    }

    /// Zeros of the type of a value.
    ///
    /// # Errors
    /// As [`Writer::zeros`].
    pub fn zeros_like(&mut self, value: ValueId) -> Result<ValueId, Mismatch> {
        let shape = self.shape(value)?;
        self.zeros(self.dtype(value), &shape)
    }

    /// A function of two values, which broadcast.
    ///
    /// # Errors
    /// [`Mismatch`] when their types do not fit.
    pub fn binary(&mut self, kind: BinaryKind, a: ValueId, b: ValueId) -> Result<ValueId, Mismatch> {
        self.op(Binary { kind }, [a, b])
    }

    /// `a + b`.
    ///
    /// # Errors
    /// As [`Writer::binary`].
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, Mismatch> {
        self.binary(BinaryKind::Add, a, b)
    }

    /// `a - b`.
    ///
    /// # Errors
    /// As [`Writer::binary`].
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, Mismatch> {
        self.binary(BinaryKind::Sub, a, b)
    }

    /// `a · b`.
    ///
    /// # Errors
    /// As [`Writer::binary`].
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, Mismatch> {
        self.binary(BinaryKind::Mul, a, b)
    }

    /// `a / b`.
    ///
    /// # Errors
    /// As [`Writer::binary`].
    pub fn div(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, Mismatch> {
        self.binary(BinaryKind::Div, a, b)
    }

    /// `a · b` for a number `b`.
    ///
    /// # Errors
    /// As [`Writer::binary`].
    pub fn times(&mut self, a: ValueId, b: f64) -> Result<ValueId, Mismatch> {
        let b = self.number(b, a)?;
        self.mul(a, b)
    }

    /// `a + b` for a number `b`.
    ///
    /// # Errors
    /// As [`Writer::binary`].
    pub fn plus(&mut self, a: ValueId, b: f64) -> Result<ValueId, Mismatch> {
        let b = self.number(b, a)?;
        self.add(a, b)
    }

    /// A function of one value.
    ///
    /// # Errors
    /// [`Mismatch`] when the value's dtype does not fit.
    pub fn unary(&mut self, kind: UnaryKind, x: ValueId) -> Result<ValueId, Mismatch> {
        self.op(Unary { kind }, [x])
    }

    /// Compares every element with a number.
    ///
    /// # Errors
    /// As [`Writer::binary`].
    pub fn compare(&mut self, x: ValueId, kind: BinaryKind, number: f64) -> Result<ValueId, Mismatch> {
        let number = self.number(number, x)?;
        self.binary(kind, x, number)
    }

    /// `a` where `condition` holds, else `b`.
    ///
    /// # Errors
    /// [`Mismatch`] when the types do not fit.
    pub fn select(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> Result<ValueId, Mismatch> {
        self.op(Where {}, [condition, a, b])
    }

    /// `a` where `condition` holds, else 0.
    ///
    /// # Errors
    /// As [`Writer::select`].
    pub fn keep(&mut self, condition: ValueId, a: ValueId) -> Result<ValueId, Mismatch> {
        let zero = self.number(0.0, a)?;
        self.select(condition, a, zero)
    }

    /// The value in another dtype.
    ///
    /// # Errors
    /// [`Mismatch`] when there is no such conversion.
    pub fn cast(&mut self, x: ValueId, to: DType) -> Result<ValueId, Mismatch> {
        if self.dtype(x) == to { Ok(x) } else { self.op(Cast { to }, [x]) }
    }

    /// A reduction over `axes`, which stay with extent 1.
    ///
    /// # Errors
    /// [`Mismatch`] when an axis is outside.
    pub fn reduce(&mut self, kind: ReduceKind, x: ValueId, axes: &[usize]) -> Result<ValueId, Mismatch> {
        if axes.is_empty() {
            return Ok(x);
        }
        let axes = axes.iter().map(|&a| signed(a)).collect();
        self.op(Reduce { kind, axes, keep_dims: true }, [x])
    }

    /// Sums over the axes along which a tensor of `shape` was repeated to the shape of `x`.
    ///
    /// # Errors
    /// [`Mismatch`] when the shapes do not fit.
    pub fn sum_to(&mut self, x: ValueId, shape: &[usize]) -> Result<ValueId, Mismatch> {
        let from = self.shape(x)?;
        if from == shape {
            return Ok(x);
        }
        let lead = from.len().saturating_sub(shape.len());
        let repeated = |&axis: &usize| axis < lead || (shape[axis - lead] == 1 && from[axis] != 1);
        let axes: Vec<usize> = (0..from.len()).filter(repeated).collect();
        let sum = self.reduce(ReduceKind::Sum, x, &axes)?;
        self.reshape(sum, shape)
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`Mismatch`] when their number differs.
    pub fn reshape(&mut self, x: ValueId, shape: &[usize]) -> Result<ValueId, Mismatch> {
        if self.shape(x)? == shape {
            return Ok(x);
        }
        let list = self.extents(shape);
        self.op(Reshape { allow_zero: true }, [x, list])
    }

    /// The value repeated to a shape.
    ///
    /// # Errors
    /// [`Mismatch`] when it does not broadcast to it.
    pub fn expand(&mut self, x: ValueId, shape: &[usize]) -> Result<ValueId, Mismatch> {
        if self.shape(x)? == shape {
            return Ok(x);
        }
        let list = self.extents(shape);
        self.op(Expand {}, [x, list])
    }

    /// The axes in another order.
    ///
    /// # Errors
    /// [`Mismatch`] unless `perm` is a permutation of them.
    pub fn transpose(&mut self, x: ValueId, perm: &[usize]) -> Result<ValueId, Mismatch> {
        if perm.iter().enumerate().all(|(i, &axis)| i == axis) {
            return Ok(x);
        }
        self.op(Transpose { perm: perm.to_vec() }, [x])
    }

    /// The last two axes exchanged.
    ///
    /// # Errors
    /// [`Mismatch`] when there are fewer.
    pub fn transpose_matrices(&mut self, x: ValueId) -> Result<ValueId, Mismatch> {
        let rank = self.shape(x)?.len();
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank.saturating_sub(2), rank.saturating_sub(1));
        self.transpose(x, &perm)
    }

    /// A product of matrices.
    ///
    /// # Errors
    /// [`Mismatch`] when they do not fit.
    pub fn mat_mul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, Mismatch> {
        self.op(MatMul {}, [a, b])
    }

    /// The first elements along the axes from `first` on, as many as `extents` says.
    ///
    /// # Errors
    /// [`Mismatch`] when there are fewer axes.
    pub fn take(&mut self, x: ValueId, first: usize, extents: &[usize]) -> Result<ValueId, Mismatch> {
        if self.shape(x)?.get(first..) == Some(extents) {
            return Ok(x);
        }
        let axes: Vec<i64> = (first..first + extents.len()).map(signed).collect();
        let (starts, ends) = (self.list(&vec![0; extents.len()]), self.extents(extents));
        let axes = self.list(&axes);
        self.op(Slice {}, [x, starts, ends, axes])
    }

    /// `count` elements along an axis, from `first` on.
    ///
    /// # Errors
    /// [`Mismatch`] when there is no such axis.
    pub fn part(&mut self, x: ValueId, axis: usize, first: usize, count: usize) -> Result<ValueId, Mismatch> {
        if self.shape(x)?.get(axis) == Some(&count) {
            return Ok(x);
        }
        let [start, end, axis] = [first, first + count, axis].map(|n| self.extents(&[n]));
        self.op(Slice {}, [x, start, end, axis])
    }

    /// Zeros added before and after each axis; negative numbers cut off.
    ///
    /// # Errors
    /// [`Mismatch`] unless there are two per axis.
    pub fn pad(&mut self, x: ValueId, before: &[i64], after: &[i64]) -> Result<ValueId, Mismatch> {
        if before.iter().chain(after).all(|&n| n == 0) {
            return Ok(x);
        }
        let pads = self.list(&[before, after].concat());
        self.op(Pad { mode: PadMode::Constant }, [x, pads])
    }

    /// What lies along an axis of `x` as the scale of a QuantizeLinear does, in a shape that meets `x` element by element: one number,
    /// or one for each index of `axis`, which counts from the end when negative.
    ///
    /// # Errors
    /// [`Mismatch`] for blocks of several lines.
    pub fn along(&mut self, line: ValueId, x: ValueId, axis: i64) -> Result<ValueId, Mismatch> {
        let (shape, of) = (self.shape(line)?, self.shape(x)?);
        match shape.iter().product::<usize>() {
            1 => self.reshape(line, &[]),
            _ if shape.len() == of.len() => {
                let fits = shape.iter().zip(&of).all(|(a, b)| *a == 1 || a == b);
                crate::ensure!(fits, "blocks {shape:?} of {of:?} have no gradient");
                Ok(line)
            }
            count => {
                let mut lined = vec![1; of.len()];
                lined[resolve_axis(axis, of.len())?] = count;
                self.reshape(line, &lined)
            }
        }
    }

    /// The sum of the elements of `x` that meet each number of `line`, which lies as [`Writer::along`] says, in the shape of `line`.
    ///
    /// # Errors
    /// As [`Writer::along`].
    pub fn sum_to_line(&mut self, x: ValueId, line: ValueId, axis: i64) -> Result<ValueId, Mismatch> {
        let met = self.along(line, x, axis)?;
        let (met, shape) = (self.shape(met)?, self.shape(line)?);
        let sum = self.sum_to(x, &met)?;
        self.reshape(sum, &shape)
    }

    fn name(&mut self) -> String {
        self.count += 1;
        format!("{}/{}", self.prefix, self.count)
    }
}
