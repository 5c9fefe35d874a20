//! Transposed convolution of images.

use sora_ir::ValueId;
use sora_ir::ops::ConvTranspose;

use super::conv::{check_window, halves};
use super::{Initializer, Layer, LayerError, Network, Padding, Pair};

/// The transposed convolution of images `[N, C, H, W]`, which makes them larger: each pixel adds its filters' windows to
/// the result, `strides` apart. Its extents are `H · stride` with [`Padding::Same`], and with [`Padding::Valid`]
/// `max(kernel - stride, 0)` more. Parameters: `weight` `[C, filters, kernel]` and, unless
/// [`Conv2dTranspose::without_bias`], `bias` `[filters]`. Source: Zeiler et al. 2010.
#[derive(Clone, Copy, Debug)]
pub struct Conv2dTranspose {
    filters: usize,
    kernel: Pair,
    strides: Pair,
    padding: Padding,
    bias: bool,
    init: Initializer,
}

impl Conv2dTranspose {
    /// With stride 1, no padding, biases and Glorot's uniform weights.
    pub fn new(filters: usize, kernel: impl Into<Pair>) -> Self {
        let (padding, init) = (Padding::Valid, Initializer::GlorotUniform);
        Conv2dTranspose { filters, kernel: kernel.into(), strides: Pair(1, 1), padding, bias: true, init }
    }

    /// Distance of neighbouring pixels in the result.
    #[must_use]
    pub fn strides(self, strides: impl Into<Pair>) -> Self {
        Conv2dTranspose { strides: strides.into(), ..self }
    }

    /// What is cut off around the result.
    #[must_use]
    pub fn padding(self, padding: Padding) -> Self {
        Conv2dTranspose { padding, ..self }
    }

    /// Leaves out the bias.
    #[must_use]
    pub fn without_bias(self) -> Self {
        Conv2dTranspose { bias: false, ..self }
    }

    /// How the weights begin.
    #[must_use]
    pub fn init(self, init: Initializer) -> Self {
        Conv2dTranspose { init, ..self }
    }
}

impl Layer for Conv2dTranspose {
    fn name(&self) -> &'static str {
        "conv2d_transpose"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let channels = net.channels(x)?;
        let Pair(height, width) = self.kernel;
        check_window(net, height.min(width), self.strides.0.min(self.strides.1))?;
        let cut = |kernel: usize, stride: usize| match self.padding {
            Padding::Valid => (0, 0),
            Padding::Each(n) => (n, n),
            Padding::Same => halves(kernel.saturating_sub(stride)),
        };
        let ((top, bottom), (left, right)) = (cut(height, self.strides.0), cut(width, self.strides.1));
        let values = self.init.distribution(channels * height * width, self.filters * height * width);
        let weight = net.parameter("weight", &[channels, self.filters, height, width], values);
        let bias = self.bias.then(|| net.bias("bias", self.filters));
        let op = ConvTranspose {
            strides: self.strides.list(),
            pads: vec![top, left, bottom, right],
            dilations: vec![1, 1],
            output_padding: vec![self.strides.0.saturating_sub(height), self.strides.1.saturating_sub(width)],
            group: 1,
        };
        net.op("", op, [Some(x), Some(weight), bias])
    }
}
