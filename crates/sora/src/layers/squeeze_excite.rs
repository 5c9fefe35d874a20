//! Channel attention.

use sora_ir::ValueId;
use sora_ir::ops::{Binary, BinaryKind};

use super::{Activation, Conv2d, GlobalAvgPool2d, Initializer, Layer, LayerError, Network};

/// Scales each channel of images `[N, C, H, W]` by a share that two 1×1 convolutions, C → `reduced` → C, compute from
/// the means of all channels. Source: Hu et al. 2017.
#[derive(Clone, Copy, Debug)]
pub struct SqueezeExcite {
    /// Channels between the convolutions.
    pub reduced: usize,
    /// Function between the convolutions.
    pub activation: Activation,
    /// How the weights begin.
    pub init: Initializer,
}

impl Layer for SqueezeExcite {
    fn name(&self) -> &'static str {
        "squeeze_excite"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let channels = net.channels(x)?;
        let conv = |filters| Conv2d::new(filters, 1).init(self.init);
        let (reduce, expand) = (conv(self.reduced), conv(channels));
        let shares =
            net.sequence(x, &[&GlobalAvgPool2d, &reduce, &self.activation, &expand, &Activation::Sigmoid])?;
        net.op("", Binary { kind: BinaryKind::Mul }, [x, shares])
    }
}
