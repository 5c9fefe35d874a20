//! Attention whose products and weights go through graphs of the file.

use sora_ir::ops::{MatMul, Softmax};
use sora_ir::{Dim, ValueId};
use sora_tensor::DType;

use super::attention::products;
use super::body::Capture;
use super::node::{Built, NodeCx};
use super::rows::{Row, preview};
use super::slot::Slot;
use crate::error::Refusal;
use crate::tensor::{dtype_of, signed};

pub(super) const ROWS: &[Row] = &[preview("FlexAttention", flex_attention)];

/// `p(softmax(s(scale · Q·Kᵀ))) · V` for heads `[B, N, S, D]`, with the graphs s and p in the attributes `score_mod` and
/// `prob_mod`. Heads of keys serve several of queries in turn.
fn flex_attention(cx: &mut NodeCx) -> Built {
    let [q, mut k, mut v] = [cx.input(0)?, cx.input(1)?, cx.input(2)?];
    let types = [q, k, v].map(|x| cx.ty(x));
    if types.iter().any(|ty| ty.rank() != 4) {
        let [q, k, v] = types;
        return Err(Refusal::new(format!("its inputs {q}, {k} and {v} must have rank 4")));
    }
    let [n, m, same] = types.map(|ty| ty.shape.get(1).and_then(Dim::known));
    let (Some(n), Some(m @ 1..)) = (n, m) else {
        return Err(Refusal::new("its numbers of heads are not known"));
    };
    if same != Some(m) || n % m != 0 {
        let [_, k, v] = types;
        return Err(Refusal::new(format!("{n} heads of queries do not share the heads of {k} and {v}")));
    }
    if n != m {
        let served: Vec<i64> = (0..n).map(|head| signed(head / (n / m))).collect();
        let served = cx.make_ints("heads", &served);
        [k, v] = [cx.gather(k, served, 1)?, cx.gather(v, served, 1)?];
    }
    let dtype = cx.dtype(q);
    let precision = match cx.int("softmax_precision", 0) {
        0 if dtype == DType::F64 => DType::F64,
        0 => DType::F32,
        code => dtype_of(code)?,
    };
    let scale = cx.attribute("scale").map(|_| cx.float("scale", 0.0));
    let scores = products(cx, q, k, scale)?;
    let scores = cx.cast(scores, precision)?;
    let scores = changed(cx, "score_mod", scores)?;
    let weights = cx.step("softmax", Softmax { axis: -1, log: false }, [scores])?;
    let weights = changed(cx, "prob_mod", weights)?;
    let values = cx.cast(v, precision)?;
    let result = cx.step("result", MatMul {}, [weights, values])?;
    Ok(vec![cx.cast(result, dtype)?])
}

/// What the graph in an attribute makes of its one input, if there is such a graph; the type stays.
fn changed(cx: &mut NodeCx, name: &str, x: ValueId) -> Result<ValueId, Refusal> {
    if cx.attribute(name).is_none() {
        return Ok(x);
    }
    let body = cx.body(name)?;
    let ([input], [_]) = (&body.proto.input[..], &body.proto.output[..]) else {
        return Err(Refusal::new(format!("its {name} must have one input and one output")));
    };
    let mut captures = body.free_in(cx);
    captures.push(Capture { name: input.name.clone(), slot: Slot::Value(x) });
    let outputs = cx.inline(name, &body, &captures)?;
    let &[Slot::Value(result)] = &outputs[..] else {
        return Err(Refusal::new(format!("its {name} gives no tensor")));
    };
    let (found, given) = (cx.ty(result), cx.ty(x));
    match found.accepts(given) {
        true => Ok(result),
        false => Err(Refusal::new(format!("its {name} makes {found} of {given}"))),
    }
}
