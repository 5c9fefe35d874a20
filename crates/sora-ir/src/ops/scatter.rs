//! What the operators that write elements at computed places share.

use serde::{Deserialize, Serialize};
use sora_tensor::{DType, Tensor};

use super::BinaryKind;
use super::movement::signed;
use crate::case::Gen;
use crate::{GradCx, Gradients, Mismatch, Op, TensorType, ensure};

/// How an update meets the element that is at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reduction {
    /// It replaces the element; of several updates of one place the last stays.
    Replace,
    /// Sum.
    Add,
    /// Product.
    Mul,
    /// The greater; NaN if either is.
    Max,
    /// The lesser; NaN if either is.
    Min,
}

impl Reduction {
    /// Every reduction.
    pub const ALL: [Reduction; 5] =
        [Reduction::Replace, Reduction::Add, Reduction::Mul, Reduction::Max, Reduction::Min];

    /// Checks that updates can be combined with the data.
    ///
    /// # Errors
    /// [`Mismatch`] naming the types.
    pub(super) fn check(self, data: &TensorType, updates: &TensorType) -> Result<(), Mismatch> {
        ensure!(data.dtype == updates.dtype, "data {data} and updates {updates} differ in dtype");
        ensure!(self == Reduction::Replace || data.dtype != DType::Bool, "{self:?} does not take {data}");
        Ok(())
    }

    /// The gradients of the data and the updates of a scatter: `scatter` writes updates into data at `indices`, `gather`
    /// reads from there.
    pub(super) fn gradients(self, cx: &mut GradCx, scatter: Op, gather: Op) -> Gradients {
        let (indices, updates, dy) = (cx.input(1)?, cx.input(2)?, cx.grad()?);
        let read = cx.op(gather.clone(), [dy, indices])?;
        match self {
            Reduction::Add => Ok(vec![Some(dy), None, Some(read)]),
            Reduction::Replace => {
                let zeros = cx.zeros_like(updates)?;
                let data = cx.op(scatter.clone(), [dy, indices, zeros])?;
                // Every update leaves its number: those that find another one have been overwritten.
                let (extents, places) = (cx.shape(updates)?, cx.shape(dy)?);
                let numbers: Vec<i64> = (0..extents.iter().product::<usize>()).map(signed).collect();
                let numbers = cx.list(&numbers);
                let numbers = cx.reshape(numbers, &extents)?;
                let nowhere = cx.zeros(DType::I64, &places)?;
                let last = cx.op(scatter, [nowhere, indices, numbers])?;
                let last = cx.op(gather, [last, indices])?;
                let stayed = cx.binary(BinaryKind::Equal, last, numbers)?;
                Ok(vec![Some(data), None, Some(cx.keep(stayed, read)?)])
            }
            other => Err(Mismatch::new(format!("has no gradient where updates meet by {other:?}"))),
        }
    }

    fn float(self, old: f64, new: f64) -> f64 {
        match self {
            Reduction::Replace => new,
            Reduction::Add => old + new,
            Reduction::Mul => old * new,
            Reduction::Max => {
                if old.is_nan() || old > new {
                    old
                } else {
                    new
                }
            }
            Reduction::Min => {
                if old.is_nan() || old < new {
                    old
                } else {
                    new
                }
            }
        }
    }

    fn int(self, old: i128, new: i128) -> i128 {
        match self {
            Reduction::Replace => new,
            Reduction::Add => old.wrapping_add(new),
            Reduction::Mul => old.wrapping_mul(new),
            Reduction::Max => old.max(new),
            Reduction::Min => old.min(new),
        }
    }

    /// The data with runs of `run` elements updated in order. A pair is the offset of a run in the data and of its update.
    ///
    /// # Errors
    /// [`Mismatch`] when memory does not suffice.
    pub(super) fn apply(
        self,
        data: &Tensor,
        updates: &Tensor,
        run: usize,
        pairs: &[(usize, usize)],
    ) -> Result<Tensor, Mismatch> {
        if self == Reduction::Replace {
            let mut out = data.clone();
            let size = data.dtype().size();
            let bytes = out.bytes_mut();
            for &(to, from) in pairs {
                bytes[to * size..(to + run) * size]
                    .copy_from_slice(&updates.bytes()[from * size..(from + run) * size]);
            }
            return Ok(out);
        }
        let runs = pairs.iter().flat_map(|&(to, from)| (0..run).map(move |i| (to + i, from + i)));
        Ok(if data.dtype().is_float() {
            let (mut out, updates) = (data.to_f64s(), updates.to_f64s());
            runs.for_each(|(to, from)| out[to] = self.float(out[to], updates[from]));
            Tensor::from_f64s(data.dtype(), data.shape(), &out)?
        } else {
            // Wrapping at 128 bits and then at the width is wrapping at the width.
            let (mut out, updates) = (data.to_i128s(), updates.to_i128s());
            runs.for_each(|(to, from)| out[to] = self.int(out[to], updates[from]));
            Tensor::from_i128s(data.dtype(), data.shape(), &out)?
        })
    }

    /// A reduction and a dtype that it takes, for a test case.
    pub(super) fn any(g: &mut Gen) -> (Reduction, DType) {
        let numbers = [DType::F32, DType::F32, DType::I64, DType::I32, DType::U8];
        match g.pick(&Reduction::ALL) {
            Reduction::Replace => (Reduction::Replace, super::movement::any_dtype(g)),
            other => (other, g.pick(&numbers)),
        }
    }
}
