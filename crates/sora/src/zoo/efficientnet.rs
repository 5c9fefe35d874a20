//! EfficientNet-B0 for pictures of 0..255, which it normalizes itself. Source: Tan & Le 2019.

use sora_ir::ValueId;

use crate::layers::{
    Activation, BatchNorm2d, Conv2d, Initializer, LayerError, Network, Normalization, Padding, Samples,
    SqueezeExcite,
};

const NORM: fn() -> BatchNorm2d = || BatchNorm2d::new(1e-3);
const SILU: Activation = Activation::Silu;
const INIT: Initializer = Initializer::HeNormal;

/// Kernel, blocks, filters, expansion and stride of each stage.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (3, 1, 16, 1, 1),
    (3, 2, 24, 6, 2),
    (5, 2, 40, 6, 2),
    (3, 3, 80, 6, 2),
    (5, 3, 112, 6, 1),
    (5, 4, 192, 6, 2),
    (3, 1, 320, 6, 1),
];

pub(super) fn efficientnet_b0(net: &mut Network) -> Result<(), LayerError> {
    let x = net.input("x", &[3, 224, 224], Samples::Normal { mean: 120.0, std: 60.0 });
    let normalization =
        Normalization { scale: 1.0 / 255.0, mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] };
    let mut x = net.sequence(x, &[&normalization, &same(Conv2d::new(32, 3)).strides(2), &NORM(), &SILU])?;
    for (stage, (kernel, blocks, filters, expansion, stride)) in STAGES.into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if block == 0 { stride } else { 1 };
            x = net.scope(&format!("stage{stage}.{block}"), |net| {
                mb_conv(net, x, kernel, filters, expansion, stride)
            })?;
        }
    }
    let x = net.sequence(x, &[&same(Conv2d::new(1280, 1)), &NORM(), &SILU])?;
    super::classify(net, x, 1000)
}

fn same(conv: Conv2d) -> Conv2d {
    conv.padding(Padding::Same).without_bias().init(INIT)
}

/// An inverted residual with squeeze-excite, which reduces to a quarter of the block's input.
fn mb_conv(
    net: &mut Network,
    x: ValueId,
    kernel: usize,
    filters: usize,
    expansion: usize,
    stride: usize,
) -> Result<ValueId, LayerError> {
    let channels = net.channels(x)?;
    let mut y = x;
    if expansion > 1 {
        y = net.sequence(y, &[&same(Conv2d::new(expansion * channels, 1)), &NORM(), &SILU])?;
    }
    let filter = same(Conv2d::depthwise(kernel)).strides(stride);
    let excite = SqueezeExcite { reduced: (channels / 4).max(1), activation: SILU, init: INIT };
    let y = net.sequence(y, &[&filter, &NORM(), &SILU, &excite])?;
    let y = net.sequence(y, &[&same(Conv2d::new(filters, 1)), &NORM()])?;
    if stride == 1 && channels == filters { net.add(x, y) } else { Ok(y) }
}
