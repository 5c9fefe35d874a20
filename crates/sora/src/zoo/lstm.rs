//! A recurrent network that gives 64 values for each of 100 steps.

use crate::layers::{Dense, LayerError, Lstm, Network, Samples};

pub(super) fn lstm(net: &mut Network) -> Result<(), LayerError> {
    let x = net.input("x", &[100, 40], Samples::UNIT);
    let y = net.sequence(x, &[&Lstm::new(256).levels(2), &Dense::new(64)])?;
    net.output("y", y);
    Ok(())
}
