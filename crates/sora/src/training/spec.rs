//! Layers as a TOML file writes them.

use serde::Deserialize;
use sora_ir::ValueId;

use crate::layers::{
    Activation, AvgPool1d, AvgPool2d, BatchNorm, BatchNorm2d, Conv1d, Conv2d, Conv2dTranspose, Dense,
    Dropout, Embedding, Flatten, GlobalAvgPool1d, GlobalAvgPool2d, GlobalMaxPool1d, Gru, Layer, LayerError,
    LayerNorm, Lstm, Masking, MaxPool1d, MaxPool2d, MultiHeadAttention, Network, Padding, Penalized, Penalty,
    Positions, Reshape, Residual, Samples, SeparableConv2d, SimpleRnn, TransformerEncoderLayer,
};

/// A layer: `{ layer = "conv2d", filters = 32, kernel = 3, activation = "relu" }`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "layer", rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerSpec {
    /// Rows of a table of vectors in place of their numbers.
    Embedding {
        /// Rows of the table.
        rows: usize,
        /// Elements of a row.
        units: usize,
        /// Whether row 0 is padding: steps behind the last other row do not count.
        #[serde(default = "yes")]
        mask: bool,
    },
    /// Steps at the end of a sequence that are all 0 do not count.
    Masking {},
    /// A learned vector for each step is added to it.
    Positions {},
    /// A convolution of images.
    Conv2d(Convolution),
    /// A convolution along the steps of sequences.
    Conv1d(Convolution),
    /// A convolution of each channel by itself, and one of 1×1.
    SeparableConv2d(Convolution),
    /// A transposed convolution of images, which makes them larger.
    Conv2dTranspose(Convolution),
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
        /// Factor of the sum of the weights' sizes in the loss.
        #[serde(default)]
        l1: f64,
        /// Factor of the sum of their squares.
        #[serde(default)]
        l2: f64,
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
    /// The greatest value of each window of a sequence.
    MaxPool1d {
        /// Extent and step of the window.
        size: usize,
    },
    /// The mean of each window of a sequence.
    AvgPool1d {
        /// Extent and step of the window.
        size: usize,
    },
    /// The greatest value of each channel over the steps that count.
    GlobalMaxPool1d {},
    /// The mean of each channel over the steps that count.
    GlobalAvgPool1d {},
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
    /// Batch normalization over the last axis.
    BatchNorm {
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
    /// Attention and two dense layers, each with a sum and a layer normalization behind it.
    TransformerEncoder {
        /// Parts that attention compares steps by; they divide the channels.
        heads: usize,
        /// Width between the dense layers.
        units: usize,
        /// Share of elements dropped before each sum.
        #[serde(default)]
        dropout: f64,
        /// Added to the variance.
        #[serde(default = "epsilon")]
        epsilon: f32,
    },
    /// The sum of what two lists of layers give.
    Residual {
        /// The layers.
        layers: Vec<LayerSpec>,
        /// The layers on the way past them; none pass on what they read.
        #[serde(default)]
        shortcut: Vec<LayerSpec>,
        /// Function of the sum.
        activation: Option<Activation>,
    },
    /// A product with weights, and biases.
    Dense {
        /// Elements of the result.
        units: usize,
        /// Whether it gets biases.
        #[serde(default = "yes")]
        bias: bool,
        /// Function behind it.
        activation: Option<Activation>,
        /// Factor of the sum of the weights' sizes in the loss.
        #[serde(default)]
        l1: f64,
        /// Factor of the sum of their squares.
        #[serde(default)]
        l2: f64,
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

/// A convolution, of stride 1 and without padding unless said.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Convolution {
    /// Output channels.
    pub filters: usize,
    /// Extent of the window, for images as high as wide.
    pub kernel: usize,
    /// Step of the window.
    #[serde(default = "one")]
    pub strides: usize,
    /// What surrounds its input.
    #[serde(default)]
    pub padding: Padding,
    /// Whether channels get a bias.
    #[serde(default = "yes")]
    pub bias: bool,
    /// Function behind it.
    pub activation: Option<Activation>,
    /// Factor of the sum of the weights' sizes in the loss.
    #[serde(default)]
    pub l1: f64,
    /// Factor of the sum of their squares.
    #[serde(default)]
    pub l2: f64,
}

/// A recurrent layer over sequences of steps, channels.
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
    /// Factor of the sum of the weights' sizes in the loss.
    #[serde(default)]
    pub l1: f64,
    /// Factor of the sum of their squares.
    #[serde(default)]
    pub l2: f64,
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
    /// The layer, and the function behind it.
    pub fn layers(&self) -> Vec<Box<dyn Layer>> {
        fn of(layer: impl Layer + 'static) -> Box<dyn Layer> {
            Box::new(layer)
        }
        let list = |specs: &[LayerSpec]| specs.iter().flat_map(LayerSpec::layers).collect::<Vec<_>>();
        let priced = |layer: Box<dyn Layer>, l1: f64, l2: f64| match [l1, l2] {
            [0.0, 0.0] => layer,
            _ => of(Penalized::new(layer, Penalty { l1, l2 })),
        };
        macro_rules! convolution {
            ($layer:ident, $spec:ident) => {{
                let layer = $layer::new($spec.filters, $spec.kernel);
                let layer = layer.strides($spec.strides).padding($spec.padding);
                let layer = of(if $spec.bias { layer } else { layer.without_bias() });
                (priced(layer, $spec.l1, $spec.l2), $spec.activation)
            }};
        }
        macro_rules! recurrent {
            ($layer:ident, $spec:ident) => {{
                let layer = $layer::new($spec.units).levels($spec.levels);
                let layer = if $spec.bidirectional { layer.bidirectional() } else { layer };
                let layer = of(if $spec.sequences { layer } else { layer.last() });
                (priced(layer, $spec.l1, $spec.l2), None)
            }};
        }
        let (layer, function) = match self {
            LayerSpec::Embedding { rows, units, mask } => {
                let layer = Embedding::new(*rows, *units);
                (of(if *mask { layer.masked() } else { layer }), None)
            }
            LayerSpec::Masking {} => (of(Masking), None),
            LayerSpec::Positions {} => (of(Positions), None),
            LayerSpec::Conv2d(spec) => convolution!(Conv2d, spec),
            LayerSpec::Conv1d(spec) => convolution!(Conv1d, spec),
            LayerSpec::SeparableConv2d(spec) => convolution!(SeparableConv2d, spec),
            LayerSpec::Conv2dTranspose(spec) => convolution!(Conv2dTranspose, spec),
            LayerSpec::DepthwiseConv2d { kernel, strides, padding, bias, activation, l1, l2 } => {
                let layer = Conv2d::depthwise(*kernel).strides(*strides).padding(*padding);
                (priced(of(if *bias { layer } else { layer.without_bias() }), *l1, *l2), *activation)
            }
            LayerSpec::MaxPool1d { size } => (of(MaxPool1d::new(*size)), None),
            LayerSpec::AvgPool1d { size } => (of(AvgPool1d::new(*size)), None),
            LayerSpec::GlobalMaxPool1d {} => (of(GlobalMaxPool1d), None),
            LayerSpec::MaxPool2d { size } => (of(MaxPool2d::new(*size)), None),
            LayerSpec::AvgPool2d { size } => (of(AvgPool2d::new(*size)), None),
            LayerSpec::GlobalAvgPool1d {} => (of(GlobalAvgPool1d), None),
            LayerSpec::GlobalAvgPool2d {} => (of(GlobalAvgPool2d), None),
            LayerSpec::BatchNorm { epsilon, activation } => (of(BatchNorm::new(*epsilon)), *activation),
            LayerSpec::BatchNorm2d { epsilon, activation } => (of(BatchNorm2d::new(*epsilon)), *activation),
            LayerSpec::LayerNorm { epsilon } => (of(LayerNorm::new(*epsilon)), None),
            LayerSpec::Flatten {} => (of(Flatten), None),
            LayerSpec::Reshape { shape } => (of(Reshape(shape.clone())), None),
            LayerSpec::Lstm(spec) => recurrent!(Lstm, spec),
            LayerSpec::Gru(spec) => recurrent!(Gru, spec),
            LayerSpec::SimpleRnn(spec) => recurrent!(SimpleRnn, spec),
            LayerSpec::TransformerEncoder { heads, units, dropout, epsilon } => {
                let (attention, epsilon) = (MultiHeadAttention::new(*heads), *epsilon);
                let (feed_forward, dropout) = (*units, *dropout);
                (of(TransformerEncoderLayer { attention, feed_forward, epsilon, dropout }), None)
            }
            LayerSpec::Residual { layers, shortcut, activation } => {
                let layer = Residual::new(list(layers)).shortcut(list(shortcut));
                (of(layer), *activation)
            }
            LayerSpec::Dense { units, bias, activation, l1, l2 } => {
                let layer = Dense::new(*units);
                (priced(of(if *bias { layer } else { layer.without_bias() }), *l1, *l2), *activation)
            }
            LayerSpec::Dropout { rate } => (of(Dropout::new(*rate)), None),
            LayerSpec::Activation { function } => (of(*function), None),
        };
        std::iter::once(layer).chain(function.map(of)).collect()
    }

    /// Adds the layer to a network.
    ///
    /// # Errors
    /// As [`Layer::build`].
    pub fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        self.layers().iter().try_fold(x, |x, layer| net.layer(x, layer.as_ref()))
    }

    /// What typical values of an input are that this layer reads.
    pub fn samples(&self) -> Samples {
        match self {
            LayerSpec::Embedding { rows, .. } => {
                Samples::Index { below: i64::try_from(*rows).unwrap_or(i64::MAX) }
            }
            _ => Samples::UNIT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The type of what a network of these layers gives, over sequences of 6 steps of 4 channels, of 6 words, or over images
    /// of 3×9×8.
    fn result(text: &str) -> Result<String, String> {
        #[derive(Deserialize)]
        struct List {
            layers: Vec<LayerSpec>,
        }
        let List { layers } = toml::from_str(&format!("layers = [{text}]")).map_err(|e| e.to_string())?;
        let mut net = Network::new("test", 1);
        let samples = layers[0].samples();
        let words = matches!(samples, Samples::Index { .. });
        let shape: &[usize] = match words {
            true => &[6],
            false if text.contains("2d") => &[3, 9, 8],
            false => &[6, 4],
        };
        let x = net.input("x", shape, samples);
        let y = layers.iter().try_fold(x, |x, layer| layer.build(&mut net, x)).map_err(|e| e.to_string())?;
        let counts = if net.lengths(y).is_some() { ", counted" } else { "" };
        Ok(format!("{}{counts}", net.ty(y)))
    }

    #[test]
    fn layers_give_the_shapes_of_the_field_and_know_which_steps_count() {
        const EMBEDDING: &str = r#"{ layer = "embedding", rows = 9, units = 4 }"#;
        for (layers, expected) in [
            ("EMBEDDING", "f32[batch,6,4], counted"),
            (r#"{ layer = "embedding", rows = 9, units = 4, mask = false }"#, "f32[batch,6,4]"),
            (r#"EMBEDDING, { layer = "lstm", units = 3 }"#, "f32[batch,3]"),
            (r#"EMBEDDING, { layer = "gru", units = 3, sequences = true }"#, "f32[batch,6,3], counted"),
            (r#"EMBEDDING, { layer = "global_avg_pool1d" }"#, "f32[batch,4]"),
            (r#"{ layer = "masking" }, { layer = "dropout", rate = 0.1 }"#, "f32[batch,6,4], counted"),
            (r#"{ layer = "positions" }"#, "f32[batch,6,4]"),
            (r#"EMBEDDING, { layer = "global_max_pool1d" }"#, "f32[batch,4]"),
            (r#"EMBEDDING, { layer = "conv1d", filters = 5, kernel = 3 }"#, "f32[batch,4,5]"),
            (
                r#"EMBEDDING, { layer = "conv1d", filters = 5, kernel = 4, padding = "same" }"#,
                "f32[batch,6,5], counted",
            ),
            (
                r#"{ layer = "conv1d", filters = 5, kernel = 3, strides = 4, padding = "same", bias = false }"#,
                "f32[batch,2,5]",
            ),
            (r#"EMBEDDING, { layer = "batch_norm", activation = "relu" }"#, "f32[batch,6,4], counted"),
            (r#"{ layer = "max_pool1d", size = 2 }, { layer = "avg_pool1d", size = 2 }"#, "f32[batch,1,4]"),
            (
                r#"{ layer = "separable_conv2d", filters = 5, kernel = 3, strides = 2, padding = "same" }"#,
                "f32[batch,5,5,4]",
            ),
            (
                r#"{ layer = "conv2d_transpose", filters = 5, kernel = 3, strides = 2, padding = "same" }"#,
                "f32[batch,5,18,16]",
            ),
            (r#"{ layer = "conv2d_transpose", filters = 5, kernel = 2, strides = 3 }"#, "f32[batch,5,27,24]"),
            (
                r#"{ layer = "conv2d_transpose", filters = 5, kernel = 4, strides = 3, activation = "relu" }"#,
                "f32[batch,5,28,25]",
            ),
            (
                r#"EMBEDDING, { layer = "positions" }, { layer = "transformer_encoder", heads = 2, units = 7, dropout = 0.1 }"#,
                "f32[batch,6,4], counted",
            ),
            (
                r#"EMBEDDING, { layer = "residual", layers = [{ layer = "dense", units = 5 }],
                shortcut = [{ layer = "dense", units = 5 }], activation = "relu" }"#,
                "f32[batch,6,5], counted",
            ),
        ] {
            assert_eq!(result(&layers.replace("EMBEDDING", EMBEDDING)).unwrap(), expected, "{layers}");
        }
        let error = result(r#"{ layer = "residual", layers = [{ layer = "dense", units = 5 }] }"#);
        assert!(error.unwrap_err().contains("the shortcut f32[batch,6,4]"));
        let negative = result(r#"{ layer = "lstm", units = 3, l1 = -1.0 }"#).unwrap_err();
        assert!(negative.contains("lstm") && negative.contains("-1"), "{negative}");
        assert!(result(r#"{ layer = "positions", units = 3 }"#).unwrap_err().contains("units"));
        for layer in [
            r#"{ layer = "conv1d", filters = 5, kernel = 0, padding = "same" }"#,
            r#"{ layer = "conv1d", filters = 5, kernel = 3, strides = 0, padding = "same" }"#,
            r#"{ layer = "conv1d", filters = 5, kernel = 9 }"#,
            r#"{ layer = "conv2d_transpose", filters = 5, kernel = 0 }"#,
            r#"{ layer = "conv2d_transpose", filters = 5, kernel = 3, strides = 0, padding = "same" }"#,
            r#"{ layer = "separable_conv2d", filters = 5, kernel = 3, strides = 0 }"#,
            r#"{ layer = "max_pool1d", size = 0 }"#,
            r#"{ layer = "avg_pool1d", size = 7 }"#,
            r#"{ layer = "transformer_encoder", heads = 3, units = 5 }"#,
            r#"{ layer = "dense", units = 3 }, { layer = "embedding", rows = 9, units = 3 }"#,
        ] {
            assert!(result(layer).is_err(), "{layer}");
        }
    }
}
