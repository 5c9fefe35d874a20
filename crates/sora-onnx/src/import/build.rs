//! Short forms for the steps that compositions are made of.

use sora_ir::ValueId;
use sora_ir::ops::{BinaryKind, Concat, Expand, Gather, Reduce, ReduceKind, Slice, Squeeze, Where};

use super::node::NodeCx;
use crate::error::Refusal;
use crate::tensor::signed;

impl NodeCx<'_> {
    /// The value without axes of extent one.
    pub(super) fn squeeze(&mut self, x: ValueId, axes: &[i64]) -> Result<ValueId, Refusal> {
        self.step("squeeze", Squeeze { axes: axes.to_vec() }, [x])
    }

    /// Where a condition holds one value, elsewhere the other.
    pub(super) fn select(
        &mut self,
        condition: ValueId,
        then: ValueId,
        otherwise: ValueId,
    ) -> Result<ValueId, Refusal> {
        self.step("select", Where {}, [condition, then, otherwise])
    }

    /// A reduction over some axes, over all of them when none are given.
    pub(super) fn reduced(
        &mut self,
        kind: ReduceKind,
        x: ValueId,
        axes: &[i64],
        keep_dims: bool,
    ) -> Result<ValueId, Refusal> {
        self.step("reduce", Reduce { kind, axes: axes.to_vec(), keep_dims }, [x])
    }

    /// Values side by side along an axis.
    pub(super) fn concat(
        &mut self,
        parts: impl IntoIterator<Item = ValueId>,
        axis: i64,
    ) -> Result<ValueId, Refusal> {
        self.step("concat", Concat { axis }, parts)
    }

    /// Every `step`-th element of an axis from `start` to before `end`.
    pub(super) fn cut(
        &mut self,
        x: ValueId,
        axis: i64,
        [start, end, step]: [i64; 3],
    ) -> Result<ValueId, Refusal> {
        let [start, end, axis, step] = [start, end, axis, step].map(|v| self.make_ints("bound", &[v]));
        self.step("cut", Slice {}, [x, start, end, axis, step])
    }

    /// Parts of an axis, which have these extents together.
    pub(super) fn parts(&mut self, x: ValueId, axis: i64, sizes: &[usize]) -> Result<Vec<ValueId>, Refusal> {
        let all = self.ty(x).shape.get(self.axis(axis, x)?).and_then(sora_ir::Dim::known);
        if all.is_some_and(|all| all != sizes.iter().fold(0, |sum, &size| size.saturating_add(sum))) {
            return Err(Refusal::new(format!("{} does not split into parts of {sizes:?}", self.ty(x))));
        }
        let mut start = 0i64;
        let mut parts = Vec::new();
        for &size in sizes {
            let end = start.saturating_add(signed(size));
            parts.push(self.cut(x, axis, [start, end, 1])?);
            start = end;
        }
        Ok(parts)
    }

    /// The value repeated to the shape in a list of integers.
    pub(super) fn expand(&mut self, x: ValueId, shape: ValueId) -> Result<ValueId, Refusal> {
        self.step("expand", Expand {}, [x, shape])
    }

    /// The elements of an axis at these places.
    pub(super) fn gather(&mut self, x: ValueId, indices: ValueId, axis: i64) -> Result<ValueId, Refusal> {
        self.step("gather", Gather { axis }, [x, indices])
    }

    /// The value with a number on the right of an operator of two operands.
    pub(super) fn with(&mut self, kind: BinaryKind, x: ValueId, number: f64) -> Result<ValueId, Refusal> {
        let number = self.scalar("number", self.dtype(x), number);
        self.binary(kind, x, number)
    }
}
