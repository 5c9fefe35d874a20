//! Tables of vectors: of words, and of places in a sequence.

use sora_ir::ValueId;
use sora_ir::ops::{Cast, Gather};
use sora_tensor::DType;

use super::{Distribution, Layer, LayerError, Network};

/// The rows of a table that indices name. Parameter: `weight` `[count, width]`.
#[derive(Clone, Copy, Debug)]
pub struct Embedding {
    count: usize,
    width: usize,
    masked: bool,
}

impl Embedding {
    /// A table of `count` rows of `width` elements, normal of standard deviation 0.05.
    pub fn new(count: usize, width: usize) -> Self {
        Embedding { count, width, masked: false }
    }

    /// Takes the index 0 for padding: of sequences `[N, T]`, steps behind the last other index do not count
    /// ([`Network::lengths`]).
    #[must_use]
    pub fn masked(self) -> Self {
        Embedding { masked: true, ..self }
    }
}

impl Layer for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        if net.ty(x).dtype.is_float() {
            return Err(net.refuse(format!("expected numbers of rows (integers), found {}", net.ty(x))));
        }
        let values = Distribution::Normal { mean: 0.0, std: 0.05 };
        let weight = net.parameter("weight", &[self.count, self.width], values);
        let y = net.op("", Gather { axis: 0 }, [weight, x])?;
        if self.masked {
            let present = net.op("present", Cast { to: DType::Bool }, [x])?;
            net.count_steps(y, present)?;
        }
        Ok(y)
    }
}

/// Adds a learned vector to each step of sequences `[N, T, C]`, which tells it from the others. Parameter: `weight`
/// `[T, C]`. Source: Gehring et al. 2017.
#[derive(Clone, Copy, Debug)]
pub struct Positions;

impl Layer for Positions {
    fn name(&self) -> &'static str {
        "positions"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let [steps, width] = net.steps(x)?;
        let values = Distribution::Normal { mean: 0.0, std: 0.02 };
        let weight = net.parameter("weight", &[steps, width], values);
        net.add(x, weight)
    }

    fn keeps_steps(&self) -> bool {
        true
    }
}
