//! Rotary position embeddings.

use sora_ir::ops::BinaryKind;
use sora_ir::{Dim, ValueId};
use sora_tensor::DType;

use super::node::{Built, NodeCx, size};
use super::rows::{Row, microsoft, onnx};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] =
    &[onnx("RotaryEmbedding", rotary), microsoft("RotaryEmbedding", microsoft_rotary)];

/// Inputs: X, cosines and sines, positions. Without positions, cosines and sines are those of each place, `[B, S, R/2]`.
fn rotary(cx: &mut NodeCx) -> Built {
    let (x, cos, sin) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let [cos, sin] = match cx.opt(3) {
        None => [cos, sin],
        Some(positions) => [cx.gather(cos, positions, 0)?, cx.gather(sin, positions, 0)?],
    };
    whole(cx, x, cos, sin)
}

/// Inputs: X, positions `[B, S]` or that of the first place `[1]`, cosines and sines `[P, R/2]`.
fn microsoft_rotary(cx: &mut NodeCx) -> Built {
    let (x, positions) = (cx.input(0)?, cx.input(1)?);
    cx.only_int("is_packed_batching", 0)?;
    if cx.float("scale", 1.0) != 1.0 {
        return Err(Refusal::new("a scale other than 1 is not supported"));
    }
    let (cos, sin) = (cx.input(2)?, cx.input(3)?);
    let positions = match cx.rank(positions) {
        1 => {
            let steps = cx.extent(x, if cx.rank(x) == 4 { 2 } else { 1 })?;
            let steps = cx.count_to(steps)?;
            let first = cx.cast(positions, DType::I64)?;
            let places = cx.binary(BinaryKind::Add, steps, first)?;
            cx.unsqueeze(places, &[0])?
        }
        _ => positions,
    };
    let [cos, sin] = [cx.gather(cos, positions, 0)?, cx.gather(sin, positions, 0)?];
    whole(cx, x, cos, sin)
}

/// The node for cosines and sines `[B, S, R/2]`: X is `[B, N, S, D]` or `[B, S, N·D]`.
fn whole(cx: &mut NodeCx, x: ValueId, cos: ValueId, sin: ValueId) -> Built {
    let interleaved = cx.flag("interleaved", false);
    let turning = cx.int("rotary_embedding_dim", 0);
    let half = signed(width(cx, cos, "cosines")?);
    // Tables may be wider than what turns.
    let [cos, sin] = match turning > 0 && turning / 2 < half {
        true => [cx.cut(cos, -1, [0, turning / 2, 1])?, cx.cut(sin, -1, [0, turning / 2, 1])?],
        false => [cos, sin],
    };
    if cx.rank(x) == 4 {
        return Ok(vec![rotated(cx, x, 1, [cos, sin], interleaved)?]);
    }
    let heads = match (size(cx.int("num_heads", 0), "num_heads")?, width(cx, cos, "cosines")?) {
        (0, half) if half > 0 && cx.int("rotary_embedding_dim", 0) == 0 => {
            width(cx, x, "input")? / (2 * half)
        }
        (heads, _) => heads,
    };
    if heads == 0 || cx.rank(x) != 3 {
        return Err(Refusal::new(format!("its input {} does not split into {heads} heads", cx.ty(x))));
    }
    let apart = cx.reshape(x, &[0, 0, signed(heads), -1])?;
    let turned = rotated(cx, apart, 2, [cos, sin], interleaved)?;
    Ok(vec![cx.reshape_like(turned, x)?])
}

/// The last extent.
fn width(cx: &NodeCx, x: ValueId, what: &str) -> Result<usize, Refusal> {
    let known = cx.ty(x).shape.last().and_then(Dim::known);
    known.ok_or_else(|| Refusal::new(format!("the width of its {what} {} is not known", cx.ty(x))))
}

/// Turns the first R elements of the last axis of X, of rank 4, in pairs `(a, b)` to `(a·cos - b·sin, a·sin + b·cos)`:
/// pairs of neighbours if `interleaved`, else of the two halves. Cosines and sines are `[B, S, R/2]`; `heads` is the
/// axis of X that they do not have.
pub(super) fn rotated(
    cx: &mut NodeCx,
    x: ValueId,
    heads: i64,
    turn: [ValueId; 2],
    interleaved: bool,
) -> Result<ValueId, Refusal> {
    let [cos, sin] = turn;
    let (all, half) = (signed(width(cx, x, "heads")?), signed(width(cx, cos, "cosines")?));
    let turning = half.saturating_mul(2);
    if turning > all || cx.rank(cos) != 3 || cx.rank(sin) != 3 {
        return Err(Refusal::new(format!("its cosines {} do not fit heads of {all}", cx.ty(cos))));
    }
    let dtype = cx.dtype(x);
    let [cos, sin] = [cx.unsqueeze(cos, &[heads])?, cx.unsqueeze(sin, &[heads])?];
    let [cos, sin] = [cx.cast(cos, dtype)?, cx.cast(sin, dtype)?];
    let (a, b) = match interleaved {
        true => (cx.cut(x, -1, [0, turning, 2])?, cx.cut(x, -1, [1, turning, 2])?),
        false => (cx.cut(x, -1, [0, half, 1])?, cx.cut(x, -1, [half, turning, 1])?),
    };
    let mut product = |p, q| cx.binary(BinaryKind::Mul, p, q);
    let [ac, bs, as_, bc] = [product(a, cos)?, product(b, sin)?, product(a, sin)?, product(b, cos)?];
    let (real, imaginary) = (cx.binary(BinaryKind::Sub, ac, bs)?, cx.binary(BinaryKind::Add, as_, bc)?);
    let mut parts = match interleaved {
        false => vec![real, imaginary],
        true => {
            let pairs = [cx.unsqueeze(real, &[-1])?, cx.unsqueeze(imaginary, &[-1])?];
            let pairs = cx.concat(pairs, -1)?;
            vec![cx.reshape(pairs, &[0, 0, 0, turning])?]
        }
    };
    if turning < all {
        parts.push(cx.cut(x, -1, [turning, all, 1])?);
    }
    match parts[..] {
        [whole] => Ok(whole),
        _ => cx.concat(parts, -1),
    }
}
