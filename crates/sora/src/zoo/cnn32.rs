//! A small network for pictures of 32×32.

use crate::layers::{Activation, Conv2d, Dense, Flatten, LayerError, MaxPool2d, Network, Samples};

pub(super) fn cnn32(net: &mut Network) -> Result<(), LayerError> {
    let x = net.input("x", &[3, 32, 32], Samples::UNIT);
    let relu = Activation::Relu;
    let x = net.sequence(
        x,
        &[
            &Conv2d::new(32, 3),
            &relu,
            &MaxPool2d::new(2),
            &Conv2d::new(64, 3),
            &relu,
            &MaxPool2d::new(2),
            &Flatten,
            &Dense::new(128),
            &relu,
            &Dense::new(10),
            &Activation::Softmax,
        ],
    )?;
    net.output("y", x);
    Ok(())
}
