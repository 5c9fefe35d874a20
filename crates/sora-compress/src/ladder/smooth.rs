//! The rung of SmoothQuant: channels that stand out behind a normalization, or any multiplication by a constant for each channel, are
//! made smaller there and larger by the weights of all products that read them.
//!
//! With ranges `a` of channels and `w` of the weights that read them, channels are divided by `a^α / w^(1-α)`; of a few α, each value
//! gets the one of least expected error.
//!
//! Source: G. Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large language models", ICML 2023.

use super::seams;
use super::{Change, Rung};
use crate::CompressError;
use crate::layers::Network;
use crate::method::Observations;

/// The row of this rung.
pub(crate) const SMOOTHING: Rung = Rung {
    name: "SmoothQuant",
    about: "moves outliers of channels from activations into the weights that read them",
    source: "Xiao et al. 2022",
    change: Change::Network(smooth),
};

fn smooth(network: &Network, seen: &Observations) -> Result<Option<Network>, CompressError> {
    seams::scaled(network, seen, &seams::behind_scales(network))
}
