//! ResNet-50 as Keras has it: the first convolution of a block strides, and convolutions have biases.
//! Source: He et al. 2015.

use sora_ir::ValueId;

use crate::layers::{Activation, BatchNorm2d, Conv2d, LayerError, MaxPool2d, Network, Padding, Samples};

const NORM: fn() -> BatchNorm2d = || BatchNorm2d::new(1.001e-5);
const RELU: Activation = Activation::Relu;

/// Filters, blocks and stride of each stage.
const STAGES: [(usize, usize, usize); 4] = [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)];

pub(super) fn resnet50(net: &mut Network) -> Result<(), LayerError> {
    let x = net.input("x", &[3, 224, 224], Samples::UNIT);
    let stem = Conv2d::new(64, 7).strides(2).padding(Padding::Each(3));
    let pool = MaxPool2d::new(3).strides(2).padding(Padding::Each(1));
    let mut x = net.sequence(x, &[&stem, &NORM(), &RELU, &pool])?;
    for (stage, (filters, blocks, stride)) in STAGES.into_iter().enumerate() {
        for block in 0..blocks {
            let stride = (block == 0).then_some(stride);
            x =
                net.scope(&format!("layer{}.{block}", stage + 1), |net| bottleneck(net, x, filters, stride))?;
        }
    }
    super::classify(net, x, 1000)
}

/// 1×1, 3×3 and 1×1 convolutions beside a shortcut, which the first block of a stage, with a `stride`, projects.
fn bottleneck(
    net: &mut Network,
    x: ValueId,
    filters: usize,
    stride: Option<usize>,
) -> Result<ValueId, LayerError> {
    let strides = stride.unwrap_or(1);
    let shortcut = match stride {
        Some(_) => net.scope("shortcut", |net| {
            net.sequence(x, &[&Conv2d::new(4 * filters, 1).strides(strides), &NORM()])
        })?,
        None => x,
    };
    let y = net.sequence(x, &[&Conv2d::new(filters, 1).strides(strides), &NORM(), &RELU])?;
    let y = net.sequence(y, &[&Conv2d::new(filters, 3).padding(Padding::Same), &NORM(), &RELU])?;
    let y = net.sequence(y, &[&Conv2d::new(4 * filters, 1), &NORM()])?;
    let sum = net.add(shortcut, y)?;
    net.layer(sum, &RELU)
}
