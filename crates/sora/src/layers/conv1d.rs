//! Convolution of sequences.

use sora_ir::ValueId;
use sora_ir::ops::Conv;

use super::{Initializer, Layer, LayerError, Network, Padding};

/// A convolution along the steps of sequences `[N, T, C]`, which gives `[N, T′, filters]`. Parameters: `weight`
/// `[filters, C, kernel]` and, unless [`Conv1d::without_bias`], `bias` `[filters]`.
#[derive(Clone, Copy, Debug)]
pub struct Conv1d {
    filters: usize,
    kernel: usize,
    strides: usize,
    padding: Padding,
    bias: bool,
    init: Initializer,
}

impl Conv1d {
    /// A convolution with stride 1, no padding, biases and Glorot's uniform weights.
    pub fn new(filters: usize, kernel: usize) -> Self {
        let (padding, init) = (Padding::Valid, Initializer::GlorotUniform);
        Conv1d { filters, kernel, strides: 1, padding, bias: true, init }
    }

    /// Step of the window.
    #[must_use]
    pub fn strides(self, strides: usize) -> Self {
        Conv1d { strides, ..self }
    }

    /// Steps of zeros added at both ends.
    #[must_use]
    pub fn padding(self, padding: Padding) -> Self {
        Conv1d { padding, ..self }
    }

    /// Leaves out the bias, as before a batch normalization.
    #[must_use]
    pub fn without_bias(self) -> Self {
        Conv1d { bias: false, ..self }
    }

    /// How the weights begin.
    #[must_use]
    pub fn init(self, init: Initializer) -> Self {
        Conv1d { init, ..self }
    }
}

impl Layer for Conv1d {
    fn name(&self) -> &'static str {
        "conv1d"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let [_, channels] = net.steps(x)?;
        let Conv1d { filters, kernel, strides, padding, bias, init } = *self;
        let (before, behind) = padding.along(net, x, 1, kernel, strides)?;
        let values = init.distribution(channels * kernel, filters * kernel);
        let weight = net.parameter("weight", &[filters, channels, kernel], values);
        let bias = bias.then(|| net.bias("bias", filters));
        let op = Conv { strides: vec![strides], pads: vec![before, behind], ..Conv::new(1) };
        net.channels_first(x, |net, x| net.op("", op, [Some(x), Some(weight), bias]))
    }

    fn keeps_steps(&self) -> bool {
        self.strides == 1 && self.padding == Padding::Same
    }
}
