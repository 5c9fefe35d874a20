//! Layers as a TOML file writes them.

use serde::Deserialize;
use sora_ir::ValueId;

use crate::layers::{
    Activation, AvgPool2d, BatchNorm2d, Conv2d, Dense, Dropout, Flatten, GlobalAvgPool2d, Gru, LayerError,
    LayerNorm, Lstm, MaxPool2d, Network, Padding, Reshape, SimpleRnn,
};

/// A layer: `{ layer = "conv2d", filters = 32, kernel = 3, activation = "relu" }`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "layer", rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerSpec {
    /// A convolution of images, of stride 1 and without padding unless said.
    Conv2d {
        /// Output channels.
        filters: usize,
        /// Extent of the window, as high as wide.
        kernel: usize,
        /// Step of the window.
        #[serde(default = "one")]
        strides: usize,
        /// What surrounds the image.
        #[serde(default)]
        padding: Padding,
        /// Whether channels get a bias.
        #[serde(default = "yes")]
        bias: bool,
        /// Function behind it.
        activation: Option<Activation>,
    },
    /// A convolution of each channel by itself.
    DepthwiseConv2d {
        /// Extent of the window, as high as wide.
        kernel: usize,
        /// Step of the window.
        #[serde(default = "one")]
        strides: usize,
        /// What surrounds the image.
        #[serde(default)]
        padding: Padding,
        /// Whether channels get a bias.
        #[serde(default = "yes")]
        bias: bool,
        /// Function behind it.
        activation: Option<Activation>,
    },
    /// The greatest value of each window.
    MaxPool2d {
        /// Extent and step of the window.
        size: usize,
    },
    /// The mean of each window.
    AvgPool2d {
        /// Extent and step of the window.
        size: usize,
    },
    /// The mean of each channel.
    GlobalAvgPool2d {},
    /// Batch normalization of images.
    BatchNorm2d {
        /// Added to the variance.
        #[serde(default = "epsilon")]
        epsilon: f32,
        /// Function behind it.
        activation: Option<Activation>,
    },
    /// Layer normalization over the last axis.
    LayerNorm {
        /// Added to the variance.
        #[serde(default = "epsilon")]
        epsilon: f32,
    },
    /// All elements of a sample as one row.
    Flatten {},
    /// The elements of a sample in another shape.
    Reshape {
        /// Its extents; one may be -1: what is left.
        shape: Vec<i64>,
    },
    /// Long short-term memory.
    Lstm(Recurrent),
    /// Gated recurrent units.
    Gru(Recurrent),
    /// Plain recurrent units.
    SimpleRnn(Recurrent),
    /// A product with weights, and biases.
    Dense {
        /// Elements of the result.
        units: usize,
        /// Whether it gets biases.
        #[serde(default = "yes")]
        bias: bool,
        /// Function behind it.
        activation: Option<Activation>,
    },
    /// Drops elements at random in training.
    Dropout {
        /// The share dropped.
        rate: f64,
    },
    /// A function of every element.
    Activation {
        /// Which.
        function: Activation,
    },
}

/// A recurrent layer over sequences of steps, channels.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recurrent {
    /// Elements of the state.
    pub units: usize,
    /// How many are stacked.
    #[serde(default = "one")]
    pub levels: usize,
    /// Whether a second set of units reads sequences backwards.
    #[serde(default)]
    pub bidirectional: bool,
    /// Whether the state of every step is given, instead of the last one.
    #[serde(default)]
    pub sequences: bool,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn epsilon() -> f32 {
    1e-3
}

impl LayerSpec {
    /// Adds the layer to a network.
    ///
    /// # Errors
    /// As [`crate::layers::Layer::build`].
    pub fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let convolution = |layer: Conv2d, strides, padding, bias| {
            let layer = layer.strides(strides).padding(padding);
            if bias { layer } else { layer.without_bias() }
        };
        macro_rules! recurrent {
            ($layer:ident, $spec:ident) => {{
                let layer = $layer::new($spec.units).levels($spec.levels);
                let layer = if $spec.bidirectional { layer.bidirectional() } else { layer };
                (net.layer(x, &if $spec.sequences { layer } else { layer.last() })?, None)
            }};
        }
        let (y, function) = match self {
            LayerSpec::Conv2d { filters, kernel, strides, padding, bias, activation } => {
                let layer = convolution(Conv2d::new(*filters, *kernel), *strides, *padding, *bias);
                (net.layer(x, &layer)?, *activation)
            }
            LayerSpec::DepthwiseConv2d { kernel, strides, padding, bias, activation } => {
                let layer = convolution(Conv2d::depthwise(*kernel), *strides, *padding, *bias);
                (net.layer(x, &layer)?, *activation)
            }
            LayerSpec::MaxPool2d { size } => (net.layer(x, &MaxPool2d::new(*size))?, None),
            LayerSpec::AvgPool2d { size } => (net.layer(x, &AvgPool2d::new(*size))?, None),
            LayerSpec::GlobalAvgPool2d {} => (net.layer(x, &GlobalAvgPool2d)?, None),
            LayerSpec::BatchNorm2d { epsilon, activation } => {
                (net.layer(x, &BatchNorm2d::new(*epsilon))?, *activation)
            }
            LayerSpec::LayerNorm { epsilon } => (net.layer(x, &LayerNorm::new(*epsilon))?, None),
            LayerSpec::Flatten {} => (net.layer(x, &Flatten)?, None),
            LayerSpec::Reshape { shape } => (net.layer(x, &Reshape(shape.clone()))?, None),
            LayerSpec::Lstm(spec) => recurrent!(Lstm, spec),
            LayerSpec::Gru(spec) => recurrent!(Gru, spec),
            LayerSpec::SimpleRnn(spec) => recurrent!(SimpleRnn, spec),
            LayerSpec::Dense { units, bias, activation } => {
                let layer = Dense::new(*units);
                (net.layer(x, &if *bias { layer } else { layer.without_bias() })?, *activation)
            }
            LayerSpec::Dropout { rate } => (net.layer(x, &Dropout::new(*rate))?, None),
            LayerSpec::Activation { function } => (x, Some(*function)),
        };
        match function {
            Some(function) => net.layer(y, &function),
            None => Ok(y),
        }
    }
}
