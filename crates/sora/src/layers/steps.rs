//! Which steps of sequences count.

use sora_ir::ValueId;
use sora_ir::ops::{Binary, BinaryKind, Cast, Reduce, ReduceKind, Transpose, Unary, UnaryKind, Unsqueeze};
use sora_tensor::{DType, Tensor};

use super::{Layer, LayerError, Network};

impl Network {
    /// How many steps of each sequence of `x`, `[N, T, …]`, count: i32 `[N]`, at least 1. `None`: all.
    ///
    /// [`Masking`] and a masked [`Embedding`](super::Embedding) find out, layers that keep the steps hand it on
    /// ([`Layer::keeps_steps`]), and recurrent layers, attention and pooling over all steps leave out the others. It is
    /// computed in the graph, from what the steps hold.
    pub fn lengths(&self, x: ValueId) -> Option<ValueId> {
        self.lengths.get(&x).copied()
    }

    /// Says how many steps of each sequence of `x` count.
    pub fn set_lengths(&mut self, x: ValueId, lengths: ValueId) {
        self.lengths.insert(x, lengths);
    }

    /// The number of steps and channels of sequences `[N, T, C]`, which `x` must be.
    ///
    /// # Errors
    /// [`LayerError::Layer`] for values of another rank or with symbolic extents.
    pub fn steps(&self, x: ValueId) -> Result<[usize; 2], LayerError> {
        match self.ty(x).rank() {
            3 => Ok([self.extent(x, 1)?, self.extent(x, 2)?]),
            _ => Err(self.refuse(format!("expected sequences [N, T, C], found {}", self.ty(x)))),
        }
    }

    /// Runs `build` on sequences `[N, T, C]` as `[N, C, T]`, which convolutions and pooling slide along, and turns its result
    /// back.
    pub(super) fn channels_first(
        &mut self,
        x: ValueId,
        build: impl FnOnce(&mut Network, ValueId) -> Result<ValueId, LayerError>,
    ) -> Result<ValueId, LayerError> {
        let turn = || Transpose { perm: vec![0, 2, 1] };
        let x = self.op("channels_first", turn(), [x])?;
        let y = build(self, x)?;
        self.op("channels_last", turn(), [y])
    }

    /// Counts the steps of `x` up to the last one that `present`, bool `[N, T]`, has; the first one always counts.
    pub(super) fn count_steps(&mut self, x: ValueId, present: ValueId) -> Result<(), LayerError> {
        if self.ty(present).rank() != 2 {
            return Err(self.refuse(format!("only sequences have steps to count, found {}", self.ty(x))));
        }
        let steps = i32::try_from(self.extent(present, 1)?).unwrap_or(i32::MAX);
        let places = self.constant("places", Tensor::vector(&(1..=steps).collect::<Vec<i32>>()));
        let present = self.op("cast", Cast { to: DType::I32 }, [present])?;
        let present = self.op("mul", Binary { kind: BinaryKind::Mul }, [present, places])?;
        let last = Reduce { kind: ReduceKind::Max, axes: vec![1], keep_dims: false };
        let last = self.op("last", last, [present])?;
        let one = self.constant("one", Tensor::scalar(1i32));
        let lengths = self.op("lengths", Binary { kind: BinaryKind::Max }, [last, one])?;
        self.set_lengths(x, lengths);
        Ok(())
    }

    /// Which of `steps` steps are below `lengths`: bool `[N, T]`.
    pub(super) fn counted(&mut self, lengths: ValueId, steps: usize) -> Result<ValueId, LayerError> {
        self.scope("counted", |net| {
            let steps = i32::try_from(steps).unwrap_or(i32::MAX);
            let places = net.constant("places", Tensor::vector(&(0..steps).collect::<Vec<i32>>()));
            let lengths = net.op("unsqueeze", Unsqueeze { axes: vec![1] }, [lengths])?;
            net.op("", Binary { kind: BinaryKind::Less }, [places, lengths])
        })
    }
}

/// Sequences `[N, T, C]` as they are; steps at their end whose channels are all 0 do not count
/// ([`Network::lengths`]).
#[derive(Clone, Copy, Debug)]
pub struct Masking;

impl Layer for Masking {
    fn name(&self) -> &'static str {
        "masking"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        net.steps(x)?;
        let size = net.op("abs", Unary { kind: UnaryKind::Abs }, [x])?;
        let greatest = Reduce { kind: ReduceKind::Max, axes: vec![2], keep_dims: false };
        let greatest = net.op("greatest", greatest, [size])?;
        let present = net.op("present", Cast { to: DType::Bool }, [greatest])?;
        let y = net.op("", Unary { kind: UnaryKind::Identity }, [x])?;
        net.count_steps(y, present)?;
        Ok(y)
    }
}
