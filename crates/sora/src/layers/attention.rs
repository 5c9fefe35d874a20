//! Attention and the transformer's layer.

use sora_ir::ValueId;
use sora_ir::ops::{Binary, BinaryKind, Cast, MatMul, Softmax, Transpose, Unsqueeze};
use sora_tensor::{DType, Tensor};

use super::{Activation, Dense, Dropout, Layer, LayerError, LayerNorm, Network, Reshape};

/// What [`MultiHeadAttention::mask`] takes, from i64 or bool `[N, S]` with 1 where there is a word and 0 where there is none:
/// f32 `[N, 1, 1, S]`, 0 and -10,000, to be added to the scores.
///
/// # Errors
/// [`LayerError::Ir`] for a mask of another shape.
pub fn attention_mask(net: &mut Network, mask: ValueId) -> Result<ValueId, LayerError> {
    net.scope("attention_mask", |net| {
        let (one, far) = (net.constant("one", Tensor::scalar(1f32)), Tensor::scalar(-10_000f32));
        let far = net.constant("far", far);
        let mask = net.op("cast", Cast { to: DType::F32 }, [mask])?;
        let mask = net.op("unsqueeze", Unsqueeze { axes: vec![1, 2] }, [mask])?;
        let absent = net.op("sub", Binary { kind: BinaryKind::Sub }, [one, mask])?;
        net.op("", Binary { kind: BinaryKind::Mul }, [absent, far])
    })
}

/// Self-attention of sequences `[N, S, C]`: `softmax(Q · Kᵀ / √(C / heads) + mask) · V` for each head, between dense
/// layers C → C named `query`, `key`, `value` and `output`. Source: Vaswani et al. 2017.
#[derive(Clone, Copy, Debug)]
pub struct MultiHeadAttention {
    heads: usize,
    mask: Option<ValueId>,
}

impl MultiHeadAttention {
    /// Attention to every word that counts ([`Network::lengths`]).
    pub fn new(heads: usize) -> Self {
        MultiHeadAttention { heads, mask: None }
    }

    /// Adds `mask`, of a shape that broadcasts to `[N, heads, S, S]`, to the scores; see [`attention_mask`].
    #[must_use]
    pub fn mask(self, mask: ValueId) -> Self {
        MultiHeadAttention { mask: Some(mask), ..self }
    }
}

impl Layer for MultiHeadAttention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let [words, width] = net.steps(x)?;
        if self.heads == 0 || !width.is_multiple_of(self.heads) {
            return Err(net.refuse(format!("{} heads do not divide the width {width}", self.heads)));
        }
        let long = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let per_head = width / self.heads;
        let split = Reshape(vec![long(words), long(self.heads), long(per_head)]);
        let mut head = |name: &str, perm: Vec<usize>| {
            net.scope(name, |net| {
                let x = net.sequence(x, &[&Dense::new(width), &split])?;
                net.op("transpose", Transpose { perm }, [x])
            })
        };
        let query = head("query", vec![0, 2, 1, 3])?;
        let key = head("key", vec![0, 2, 3, 1])?;
        let value = head("value", vec![0, 2, 1, 3])?;
        let scores = net.op("scores", MatMul {}, [query, key])?;
        let norm = net.constant("norm", Tensor::scalar((per_head as f32).sqrt()));
        let mut scores = net.op("div", Binary { kind: BinaryKind::Div }, [scores, norm])?;
        let mask = match (self.mask, net.lengths(x)) {
            (None, Some(lengths)) => {
                let counted = net.counted(lengths, words)?;
                Some(attention_mask(net, counted)?)
            }
            (mask, _) => mask,
        };
        if let Some(mask) = mask {
            scores = net.op("masked", Binary { kind: BinaryKind::Add }, [scores, mask])?;
        }
        let shares = net.op("softmax", Softmax { axis: -1, log: false }, [scores])?;
        let context = net.op("context", MatMul {}, [shares, value])?;
        let context = net.op("transpose", Transpose { perm: vec![0, 2, 1, 3] }, [context])?;
        let context = net.layer(context, &Reshape(vec![long(words), long(width)]))?;
        net.scope("output", |net| net.layer(context, &Dense::new(width)))
    }

    fn keeps_steps(&self) -> bool {
        true
    }
}

/// Attention and two dense layers with GELU between, each followed by a residual sum and a layer normalization.
/// Source: Vaswani et al. 2017; Devlin et al. 2018.
#[derive(Clone, Copy, Debug)]
pub struct TransformerEncoderLayer {
    /// The attention.
    pub attention: MultiHeadAttention,
    /// Width between the dense layers.
    pub feed_forward: usize,
    /// Added to variances in the layer normalizations.
    pub epsilon: f32,
    /// Share of the elements that training drops of what attention and dense layers give, before each sum.
    pub dropout: f64,
}

impl Layer for TransformerEncoderLayer {
    fn name(&self) -> &'static str {
        "encoder"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let [_, width] = net.steps(x)?;
        let norm = LayerNorm::new(self.epsilon);
        let join = |net: &mut Network, x: ValueId, part: ValueId| {
            let part = if self.dropout > 0.0 { net.layer(part, &Dropout::new(self.dropout))? } else { part };
            let sum = net.add(x, part)?;
            net.layer(sum, &norm)
        };
        let attended = net.layer(x, &self.attention)?;
        let x = join(net, x, attended)?;
        let fed =
            net.sequence(x, &[&Dense::new(self.feed_forward), &Activation::Gelu, &Dense::new(width)])?;
        join(net, x, fed)
    }

    fn keeps_steps(&self) -> bool {
        true
    }
}
