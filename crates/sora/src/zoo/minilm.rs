//! A small transformer encoder with the extents of all-MiniLM-L6, except for a smaller vocabulary.
//! Source: Wang et al. 2020, MiniLM.

use crate::layers::{
    Distribution, Embedding, LayerError, LayerNorm, MultiHeadAttention, Network, Samples,
    TransformerEncoderLayer, attention_mask,
};

const WORDS: usize = 128;
const WIDTH: usize = 384;
const HEADS: usize = 12;
const FEED_FORWARD: usize = 1536;
const LAYERS: usize = 6;
const VOCABULARY: usize = 8192;
const EPSILON: f32 = 1e-12;

pub(super) fn minilm(net: &mut Network) -> Result<(), LayerError> {
    let ids = net.input("ids", &[WORDS], Samples::Index { below: VOCABULARY as i64 });
    let mask = net.input("mask", &[WORDS], Samples::Index { below: 2 });
    let words = net.layer(ids, &Embedding::new(VOCABULARY, WIDTH))?;
    let positions = Distribution::Normal { mean: 0.0, std: 0.02 };
    let positions = net.parameter("positions", &[1, WORDS, WIDTH], positions);
    let sum = net.add(words, positions)?;
    let mut x = net.layer(sum, &LayerNorm::new(EPSILON))?;
    let mask = attention_mask(net, mask)?;
    let encoder = TransformerEncoderLayer {
        attention: MultiHeadAttention::new(HEADS).mask(mask),
        feed_forward: FEED_FORWARD,
        epsilon: EPSILON,
        dropout: 0.0,
    };
    for _ in 0..LAYERS {
        x = net.layer(x, &encoder)?;
    }
    net.output("y", x);
    Ok(())
}
