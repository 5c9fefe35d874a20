//! Activation functions.

use serde::Deserialize;
use sora_ir::ops::{self, ActivationKind, Softmax, Unary, UnaryKind};
use sora_ir::{Real, ValueId};

use super::{Layer, LayerError, Network};

/// A function of each element; [`Activation::Softmax`] of each row. Configurations name it as the layer is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `max(0, x)`
    Relu,
    /// `min(max(0, x), 6)`. Source: Howard et al. 2017, MobileNets.
    Relu6,
    /// `x · sigmoid(x)`, also called swish.
    Silu,
    /// `x · min(max(0, x/6 + 1/2), 1)`
    HardSwish,
    /// `x · Φ(x)`, Φ the normal distribution function.
    Gelu,
    /// Logistic function.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// Shares of one along the last axis.
    Softmax,
}

impl Layer for Activation {
    fn name(&self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::Relu6 => "relu6",
            Activation::Silu => "silu",
            Activation::HardSwish => "hard_swish",
            Activation::Gelu => "gelu",
            Activation::Sigmoid => "sigmoid",
            Activation::Tanh => "tanh",
            Activation::Softmax => "softmax",
        }
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let kind = match self {
            Activation::Relu => UnaryKind::Relu,
            Activation::Silu => UnaryKind::Silu,
            Activation::HardSwish => UnaryKind::HardSwish,
            Activation::Gelu => UnaryKind::Gelu,
            Activation::Sigmoid => UnaryKind::Sigmoid,
            Activation::Tanh => UnaryKind::Tanh,
            Activation::Relu6 => {
                let clip = ops::Activation { kind: ActivationKind::Clip, alpha: Real(0.0), beta: Real(6.0) };
                return net.op("", clip, [x]);
            }
            Activation::Softmax => return net.op("", Softmax { axis: -1, log: false }, [x]),
        };
        net.op("", Unary { kind }, [x])
    }

    fn keeps_steps(&self) -> bool {
        true
    }
}
