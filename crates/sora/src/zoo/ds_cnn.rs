//! Depthwise separable network for keywords in 49 frames of 10 features. Source: Zhang et al. 2017, Hello Edge.

use crate::layers::{Activation, BatchNorm2d, Conv2d, LayerError, Network, Padding, Samples};

pub(super) fn ds_cnn(net: &mut Network) -> Result<(), LayerError> {
    let x = net.input("x", &[1, 49, 10], Samples::UNIT);
    let (norm, relu) = (BatchNorm2d::new(1e-3), Activation::Relu);
    let same = |conv: Conv2d| conv.padding(Padding::Same).without_bias();
    let mut x = net.sequence(x, &[&same(Conv2d::new(64, (10, 4)).strides(2)), &norm, &relu])?;
    for block in 0..4 {
        x = net.scope(&format!("block{block}"), |net| {
            let x = net.sequence(x, &[&same(Conv2d::depthwise(3)), &norm, &relu])?;
            net.sequence(x, &[&same(Conv2d::new(64, 1)), &norm, &relu])
        })?;
    }
    super::classify(net, x, 12)
}
