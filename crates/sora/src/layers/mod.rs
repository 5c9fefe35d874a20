//! Networks written as code: layers that add themselves to a [`Graph`](sora_ir::Graph).
//!
//! A [`Network`] is built by calling layers on values, as in the functional style of Keras; shapes leave out the
//! batch, which every input has in front. Weights come from a seed, and each parameter's from its own name, so that
//! changing one layer does not change the others.
//!
//! ```
//! use sora::layers::{Activation, Conv2d, Dense, Flatten, MaxPool2d, Network, Samples};
//!
//! let mut net = Network::new("digits", 0);
//! let x = net.input("x", &[1, 28, 28], Samples::UNIT);
//! let x = net.sequence(x, &[&Conv2d::new(32, 3), &Activation::Relu, &MaxPool2d::new(2), &Flatten])?;
//! let y = net.sequence(x, &[&Dense::new(10), &Activation::Softmax])?;
//! net.output("y", y);
//! let graph = net.into_graph();
//! assert_eq!(graph.ty(graph.outputs()[0].value).to_string(), "f32[batch,10]");
//! # Ok::<(), sora::layers::LayerError>(())
//! ```

mod activation;
mod attention;
mod conv;
mod conv1d;
mod conv_transpose;
mod dense;
mod dropout;
mod embedding;
mod init;
mod network;
mod norm;
mod observe;
mod penalized;
mod pool;
mod recurrent;
mod residual;
mod shape;
mod squeeze_excite;
mod steps;
mod summary;

pub use activation::Activation;
pub use attention::{MultiHeadAttention, TransformerEncoderLayer, attention_mask};
pub use conv::{Conv2d, Padding, Pair, SeparableConv2d};
pub use conv_transpose::Conv2dTranspose;
pub use conv1d::Conv1d;
pub use dense::Dense;
pub use dropout::Dropout;
pub use embedding::{Embedding, Positions};
pub use init::{Distribution, Initializer};
pub use network::{Network, Samples};
pub use norm::{BatchNorm, BatchNorm2d, LayerNorm, Normalization};
pub use penalized::Penalized;
pub use pool::{
    AvgPool1d, AvgPool2d, GlobalAvgPool1d, GlobalAvgPool2d, GlobalMaxPool1d, MaxPool1d, MaxPool2d,
};
pub use recurrent::{Gru, Lstm, SimpleRnn};
pub use residual::Residual;
pub use shape::{Flatten, Reshape};
pub use sora_train::{Parameter, Penalty};
pub use squeeze_excite::SqueezeExcite;
pub use steps::Masking;
pub use summary::{LayerSummary, Summary};

use sora_exec::ExecError;
use sora_ir::{IrError, ValueId};

/// A part of a network with one input and one result.
pub trait Layer {
    /// What a network calls the layer, such as `conv2d`; further ones are numbered.
    fn name(&self) -> &'static str;

    /// Adds the layer to `net`, reading `x`, and returns its result. Called inside a scope of its own, so that the
    /// names it gives are local; [`Network::layer`] does so.
    ///
    /// # Errors
    /// [`LayerError`] when the layer does not take values of `x`'s type.
    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError>;

    /// Whether each step of a sequence stays where it is, so that those that count are the same in the result.
    fn keeps_steps(&self) -> bool {
        false
    }
}

/// Why a layer could not be added to a network.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LayerError {
    /// An operator refuses its inputs; names the node and the types.
    #[error(transparent)]
    Ir(#[from] IrError),
    /// The layer does not fit what it reads.
    #[error("layer `{layer}`: {why}")]
    Layer {
        /// Full name of the layer.
        layer: String,
        /// What does not fit.
        why: String,
    },
    /// The network could not be run on samples to find the statistics of a layer.
    #[error("layer `{layer}`: running the network so far: {why}")]
    Run {
        /// Full name of the layer.
        layer: String,
        /// The engine's reason.
        why: ExecError,
    },
}
