//! Penalties of weights.

use sora_ir::ValueId;
use sora_train::Penalty;

use super::{Layer, LayerError, Network};

/// A layer whose weights, not its biases and scales, add `l1 · Σ|w| + l2 · Σw²` to the loss that training makes small.
pub struct Penalized {
    layer: Box<dyn Layer>,
    penalty: Penalty,
}

impl Penalized {
    /// The layer with what the size of its weights costs.
    pub fn new(layer: Box<dyn Layer>, penalty: Penalty) -> Self {
        Penalized { layer, penalty }
    }
}

impl Layer for Penalized {
    fn name(&self) -> &'static str {
        self.layer.name()
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let Penalty { l1, l2 } = self.penalty;
        if !(l1 >= 0.0 && l2 >= 0.0 && (l1 + l2).is_finite()) {
            return Err(net.refuse(format!("penalties are at least 0, found l1 = {l1} and l2 = {l2}")));
        }
        let before = net.parameters.len();
        let y = self.layer.build(net, x)?;
        for parameter in net.parameters.iter_mut().skip(before) {
            let own = parameter.name.rsplit('.').next().unwrap_or_default();
            if own.starts_with("weight") && net.graph.ty(parameter.value).rank() > 1 {
                parameter.penalty = self.penalty;
            }
        }
        Ok(y)
    }

    fn keeps_steps(&self) -> bool {
        self.layer.keeps_steps()
    }
}
