//! Fully connected layers.

use sora_ir::ValueId;
use sora_ir::ops::{Binary, BinaryKind, MatMul};

use super::{Initializer, Layer, LayerError, Network};

/// `x · weight + bias` along the last axis, of extent C. Parameters: `weight` `[C, units]` and, unless
/// [`Dense::without_bias`], `bias` `[units]`.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    units: usize,
    bias: bool,
    init: Initializer,
}

impl Dense {
    /// A layer with biases and Glorot's uniform weights.
    pub fn new(units: usize) -> Self {
        Dense { units, bias: true, init: Initializer::GlorotUniform }
    }

    /// Leaves out the bias.
    #[must_use]
    pub fn without_bias(self) -> Self {
        Dense { bias: false, ..self }
    }

    /// How the weights begin.
    #[must_use]
    pub fn init(self, init: Initializer) -> Self {
        Dense { init, ..self }
    }
}

impl Layer for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let inputs = net.extent(x, net.ty(x).rank().wrapping_sub(1))?;
        let values = self.init.distribution(inputs, self.units);
        let weight = net.parameter("weight", &[inputs, self.units], values);
        let y = net.op("", MatMul {}, [x, weight])?;
        if !self.bias {
            return Ok(y);
        }
        let bias = net.bias("bias", self.units);
        net.op("add", Binary { kind: BinaryKind::Add }, [y, bias])
    }

    fn keeps_steps(&self) -> bool {
        true
    }
}
