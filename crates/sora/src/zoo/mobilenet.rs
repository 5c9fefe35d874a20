//! MobileNetV2 of width 1.0. Source: Sandler et al. 2018.

use sora_ir::ValueId;

use crate::layers::{Activation, BatchNorm2d, Conv2d, LayerError, Network, Padding, Samples};

const NORM: fn() -> BatchNorm2d = || BatchNorm2d::new(1e-3);
const RELU6: Activation = Activation::Relu6;

/// Expansion, filters, blocks and stride of each stage.
const STAGES: [(usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];

pub(super) fn mobilenet_v2(net: &mut Network) -> Result<(), LayerError> {
    let x = net.input("x", &[3, 224, 224], Samples::UNIT);
    let mut x = net.sequence(x, &[&same(Conv2d::new(32, 3)).strides(2), &NORM(), &RELU6])?;
    for (stage, (expansion, filters, blocks, stride)) in STAGES.into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if block == 0 { stride } else { 1 };
            x = net.scope(&format!("stage{stage}.{block}"), |net| {
                inverted_residual(net, x, expansion, filters, stride)
            })?;
        }
    }
    let x = net.sequence(x, &[&same(Conv2d::new(1280, 1)), &NORM(), &RELU6])?;
    super::classify(net, x, 1000)
}

fn same(conv: Conv2d) -> Conv2d {
    conv.padding(Padding::Same).without_bias()
}

/// Expands the channels, filters each, and projects them down; a shortcut where the shape stays.
fn inverted_residual(
    net: &mut Network,
    x: ValueId,
    expansion: usize,
    filters: usize,
    stride: usize,
) -> Result<ValueId, LayerError> {
    let channels = net.channels(x)?;
    let mut y = x;
    if expansion > 1 {
        y = net.sequence(y, &[&same(Conv2d::new(expansion * channels, 1)), &NORM(), &RELU6])?;
    }
    let y = net.sequence(y, &[&same(Conv2d::depthwise(3)).strides(stride), &NORM(), &RELU6])?;
    let y = net.sequence(y, &[&same(Conv2d::new(filters, 1)), &NORM()])?;
    if stride == 1 && channels == filters { net.add(x, y) } else { Ok(y) }
}
