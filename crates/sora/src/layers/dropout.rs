//! Dropout.

use sora_ir::ValueId;
use sora_ir::ops::{Unary, UnaryKind};

use super::{Layer, LayerError, Network};

/// Passes its input on; training sets a share of its elements to 0 and lets the others grow, so that their sum stays the
/// same on average. Source: Srivastava et al. 2014.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    rate: f64,
}

impl Dropout {
    /// Drops elements with this probability, which is at least 0 and below 1.
    pub fn new(rate: f64) -> Self {
        Dropout { rate }
    }
}

impl Layer for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        if !(0.0..1.0).contains(&self.rate) {
            return Err(net.refuse(format!("the rate {} is not at least 0 and below 1", self.rate)));
        }
        let y = net.op("", Unary { kind: UnaryKind::Identity }, [x])?;
        net.drop_out(y, self.rate);
        Ok(y)
    }

    fn keeps_steps(&self) -> bool {
        true
    }
}
