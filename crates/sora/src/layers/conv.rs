//! Convolution of images.

use serde::Deserialize;
use sora_ir::ValueId;
use sora_ir::ops::Conv;

use super::{Initializer, Layer, LayerError, Network};

/// A height and a width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair(
    /// Height.
    pub usize,
    /// Width.
    pub usize,
);

impl From<usize> for Pair {
    fn from(both: usize) -> Self {
        Pair(both, both)
    }
}

impl From<(usize, usize)> for Pair {
    fn from((height, width): (usize, usize)) -> Self {
        Pair(height, width)
    }
}

impl Pair {
    pub(super) fn list(self) -> Vec<usize> {
        vec![self.0, self.1]
    }
}

/// Rows and columns added around an image before a window slides over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// None.
    #[default]
    Valid,
    /// As many as make the result `ceil(extent / stride)`, the odd one at the end.
    Same,
    /// So many on every side; configurations do not have it.
    #[serde(skip)]
    Each(usize),
}

impl Padding {
    /// The padding `[top, left, bottom, right]` of images `x` for a window.
    pub(super) fn pads(
        self,
        net: &Network,
        x: ValueId,
        kernel: Pair,
        strides: Pair,
    ) -> Result<Vec<usize>, LayerError> {
        let (top, bottom) = self.along(net, x, 2, kernel.0, strides.0)?;
        let (left, right) = self.along(net, x, 3, kernel.1, strides.1)?;
        Ok(vec![top, left, bottom, right])
    }

    /// The padding before and behind one axis of `x`.
    pub(super) fn along(
        self,
        net: &Network,
        x: ValueId,
        axis: usize,
        kernel: usize,
        stride: usize,
    ) -> Result<(usize, usize), LayerError> {
        check_window(net, kernel, stride)?;
        Ok(match self {
            Padding::Valid => (0, 0),
            Padding::Each(n) => (n, n),
            Padding::Same if stride == 1 => halves(kernel.saturating_sub(1)),
            Padding::Same => {
                let extent = net.extent(x, axis)?;
                let covered = (extent.div_ceil(stride).max(1) - 1) * stride + kernel;
                halves(covered.saturating_sub(extent))
            }
        })
    }
}

/// Refuses windows without extent and those that do not move.
pub(super) fn check_window(net: &Network, kernel: usize, stride: usize) -> Result<(), LayerError> {
    match kernel.min(stride) {
        0 => Err(net.refuse(format!("a window of {kernel} with step {stride}; both are at least 1"))),
        _ => Ok(()),
    }
}

pub(super) fn halves(total: usize) -> (usize, usize) {
    (total / 2, total - total / 2)
}

/// A convolution of images `[N, C, H, W]`. Parameters: `weight` `[filters, C / groups, kernel]` and, unless
/// [`Conv2d::without_bias`], `bias` `[filters]`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// `None`: one for each channel.
    filters: Option<usize>,
    kernel: Pair,
    strides: Pair,
    padding: Padding,
    groups: usize,
    bias: bool,
    init: Initializer,
}

impl Conv2d {
    /// A convolution with stride 1, no padding, one group, biases and Glorot's uniform weights.
    pub fn new(filters: usize, kernel: impl Into<Pair>) -> Self {
        Conv2d {
            filters: Some(filters),
            kernel: kernel.into(),
            strides: Pair(1, 1),
            padding: Padding::Valid,
            groups: 1,
            bias: true,
            init: Initializer::GlorotUniform,
        }
    }

    /// A depthwise convolution: each channel has a filter of its own and sees no other.
    pub fn depthwise(kernel: impl Into<Pair>) -> Self {
        Conv2d { filters: None, ..Self::new(0, kernel) }
    }

    /// Step of the window.
    #[must_use]
    pub fn strides(self, strides: impl Into<Pair>) -> Self {
        Conv2d { strides: strides.into(), ..self }
    }

    /// What surrounds the image.
    #[must_use]
    pub fn padding(self, padding: Padding) -> Self {
        Conv2d { padding, ..self }
    }

    /// Groups that channels and filters are split into.
    #[must_use]
    pub fn groups(self, groups: usize) -> Self {
        Conv2d { groups, ..self }
    }

    /// Leaves out the bias, as before a batch normalization.
    #[must_use]
    pub fn without_bias(self) -> Self {
        Conv2d { bias: false, ..self }
    }

    /// How the weights begin.
    #[must_use]
    pub fn init(self, init: Initializer) -> Self {
        Conv2d { init, ..self }
    }
}

impl Layer for Conv2d {
    fn name(&self) -> &'static str {
        if self.filters.is_some() { "conv2d" } else { "depthwise_conv2d" }
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let channels = net.channels(x)?;
        let (filters, groups) = match self.filters {
            Some(filters) => (filters, self.groups.max(1)),
            None => (channels, channels),
        };
        if !channels.is_multiple_of(groups) || !filters.is_multiple_of(groups) {
            let why = format!("{groups} groups divide not both {channels} channels and {filters} filters");
            return Err(net.refuse(why));
        }
        let Pair(height, width) = self.kernel;
        let fan_in = channels / groups * height * width;
        let fan_out = filters / groups * height * width;
        let shape = [filters, channels / groups, height, width];
        let pads = self.padding.pads(net, x, self.kernel, self.strides)?;
        let weight = net.parameter("weight", &shape, self.init.distribution(fan_in, fan_out));
        let bias = self.bias.then(|| net.bias("bias", filters));
        let op = Conv { strides: self.strides.list(), pads, group: groups, ..Conv::new(2) };
        net.op("", op, [Some(x), Some(weight), bias])
    }
}

/// A depthwise convolution without a bias, and a 1×1 convolution of its result: far fewer weights than a dense one.
/// Source: Chollet 2016.
#[derive(Clone, Debug)]
pub struct SeparableConv2d {
    depthwise: Conv2d,
    pointwise: Conv2d,
}

impl SeparableConv2d {
    /// With stride 1, no padding, biases and Glorot's uniform weights.
    pub fn new(filters: usize, kernel: impl Into<Pair>) -> Self {
        SeparableConv2d {
            depthwise: Conv2d::depthwise(kernel).without_bias(),
            pointwise: Conv2d::new(filters, 1),
        }
    }

    /// Step of the window.
    #[must_use]
    pub fn strides(self, strides: impl Into<Pair>) -> Self {
        SeparableConv2d { depthwise: self.depthwise.strides(strides), ..self }
    }

    /// What surrounds the image.
    #[must_use]
    pub fn padding(self, padding: Padding) -> Self {
        SeparableConv2d { depthwise: self.depthwise.padding(padding), ..self }
    }

    /// Leaves out the bias.
    #[must_use]
    pub fn without_bias(self) -> Self {
        SeparableConv2d { pointwise: self.pointwise.without_bias(), ..self }
    }
}

impl Layer for SeparableConv2d {
    fn name(&self) -> &'static str {
        "separable_conv2d"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        net.sequence(x, &[&self.depthwise, &self.pointwise])
    }
}
