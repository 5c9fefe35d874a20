//! The rung of cross-layer equalization: channels between two layers with weights are scaled to like ranges, and scaled back by the
//! weights of the second layer.
//!
//! What lies between may be a ReLU, leaky or not, and pools; depthwise convolutions are layers like others, so chains of them are
//! equalized from end to end. `Clip`, which a scale moves against its bound, is passed by channels only that stay below half of the
//! bound on the calibration samples, before and after: for those the network computes the same up to twice of what was seen.
//! Weights have a scale for each output already, so that it is the observed range of the channel that is balanced against the weights
//! that read it, in the measure of least expected error.
//!
//! Source: M. Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019, section 4.1.

use super::seams;
use super::{Change, Rung};
use crate::CompressError;
use crate::layers::Network;
use crate::method::Observations;

/// The row of this rung.
pub(crate) const EQUALIZATION: Rung = Rung {
    name: "cross-layer equalization",
    about: "scales the channels between two layers to like ranges",
    source: "Nagel et al. 2019",
    change: Change::Network(equalize),
};

fn equalize(network: &Network, seen: &Observations) -> Result<Option<Network>, CompressError> {
    seams::scaled(network, seen, &seams::behind_products(network))
}
