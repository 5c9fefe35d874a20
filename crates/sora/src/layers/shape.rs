//! Layers that only rearrange.

use sora_ir::{ValueId, ops};
use sora_tensor::Tensor;

use super::{Layer, LayerError, Network};

/// Everything behind the batch as one axis.
#[derive(Clone, Copy, Debug)]
pub struct Flatten;

impl Layer for Flatten {
    fn name(&self) -> &'static str {
        "flatten"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        net.op("", ops::Flatten { axis: 1 }, [x])
    }
}

/// The same elements in another shape behind the batch; one extent may be -1: what is left.
#[derive(Clone, Debug)]
pub struct Reshape(
    /// Extents behind the batch.
    pub Vec<i64>,
);

impl Layer for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        // An extent of 0 is that of the input: the batch.
        let shape = [&[0], self.0.as_slice()].concat();
        let shape = net.constant("shape", Tensor::vector(&shape));
        net.op("", ops::Reshape { allow_zero: false }, [x, shape])
    }
}
