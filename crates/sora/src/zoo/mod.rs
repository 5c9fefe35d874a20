//! Standard networks with seeded weights, for measuring speed, size and numeric error without training anything.
//!
//! The weights are random, but values stay in range at every depth (see [`Network::as_trained`]); what such a network
//! says of a picture means nothing. Images are `[batch, channels, height, width]`.

mod cnn32;
mod ds_cnn;
mod efficientnet;
mod lstm;
mod minilm;
mod mobilenet;
mod resnet;

use sora_ir::ValueId;

use crate::layers::{Activation, Dense, Flatten, GlobalAvgPool2d, LayerError, Network};

/// A network of the zoo.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What the command line calls it.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    build: fn(&mut Network) -> Result<(), LayerError>,
}

/// Every network of the zoo.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "resnet50",
        about: "picture classifier, 224×224×3, residual blocks, 3.9 G multiply-adds (He et al. 2015)",
        build: resnet::resnet50,
    },
    Entry {
        name: "mobilenet_v2",
        about: "picture classifier, 224×224×3, inverted residuals, 0.3 G multiply-adds (Sandler et al. 2018)",
        build: mobilenet::mobilenet_v2,
    },
    Entry {
        name: "efficientnet_b0",
        about: "picture classifier, 224×224×3, squeeze-excite and swish, 0.4 G multiply-adds (Tan & Le 2019)",
        build: efficientnet::efficientnet_b0,
    },
    Entry {
        name: "minilm",
        about: "transformer encoder, 128 tokens, 6 layers of width 384 (after Wang et al. 2020)",
        build: minilm::minilm,
    },
    Entry {
        name: "lstm",
        about: "two LSTM levels of 256 units over 100 steps of 40 values",
        build: lstm::lstm,
    },
    Entry {
        name: "ds_cnn",
        about: "keyword spotter, 49×10 features, depthwise separable (Zhang et al. 2017)",
        build: ds_cnn::ds_cnn,
    },
    Entry {
        name: "cnn32",
        about: "picture classifier, 32×32×3, two convolutions and two dense layers",
        build: cnn32::cnn32,
    },
];

impl Entry {
    /// The network of this name.
    pub fn find(name: &str) -> Option<&'static Entry> {
        ENTRIES.iter().find(|entry| entry.name == name)
    }

    /// The network with the weights of `seed`; the first extent of its inputs and outputs is the symbol `batch`.
    ///
    /// # Errors
    /// [`LayerError`] when it cannot be run to find the statistics of its normalizations, for want of memory.
    pub fn network(&self, seed: u64) -> Result<Network, LayerError> {
        let mut net = Network::as_trained(self.name, seed);
        (self.build)(&mut net)?;
        Ok(net)
    }
}

/// The head of an image classifier: the mean of each channel, a dense layer, and shares of one.
fn classify(net: &mut Network, x: ValueId, classes: usize) -> Result<(), LayerError> {
    let head = net.sequence(x, &[&GlobalAvgPool2d, &Flatten, &Dense::new(classes), &Activation::Softmax])?;
    net.output("y", head);
    Ok(())
}
