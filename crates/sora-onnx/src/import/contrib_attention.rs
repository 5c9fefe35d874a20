//! The attention operators of onnxruntime's domain.

use sora_ir::ops::{BinaryKind, GatherElements, MatMul};
use sora_ir::{Dim, ValueId};
use sora_tensor::DType;

use super::attention::{Heads, Window, appended, join, masked, split};
use super::node::{Built, NodeCx, size};
use super::quant::{Scale, real};
use super::rotary::rotated;
use super::rows::{Row, microsoft};
use crate::error::Refusal;

pub(super) const ROWS: &[Row] = &[
    microsoft("Attention", |cx| {
        let (x, weights) = (cx.input(0)?, cx.input(1)?);
        let slots = Slots { bias: cx.opt(2), mask: cx.opt(3), past: cx.opt(4), added: cx.opt(5) };
        if cx.opt(6).is_some() {
            return Err(Refusal::new("a past that shares its memory with the present is not supported"));
        }
        packed(cx, x, weights, slots)
    }),
    microsoft("GroupQueryAttention", grouped),
    microsoft("MultiHeadAttention", multi_head),
    // Inputs: X and W as bytes, the bias, their scales, the mask, their zero points, the past.
    microsoft("QAttention", |cx| {
        let by = |cx: &NodeCx, scale, zero| {
            Ok::<_, Refusal>(Scale { scale: cx.input(scale)?, zero_point: cx.opt(zero) })
        };
        let (x_by, w_by) = (by(cx, 3, 6)?, by(cx, 4, 7)?);
        let x = real(cx, cx.input(0)?, x_by, 0)?;
        let weights = real(cx, cx.input(1)?, w_by, 1)?;
        let slots = Slots { bias: cx.opt(2), mask: cx.opt(5), past: cx.opt(8), added: None };
        packed(cx, x, weights, slots)
    }),
];

/// Optional inputs of attention over one input.
struct Slots {
    /// `[3·H]`.
    bias: Option<ValueId>,
    mask: Option<ValueId>,
    /// Keys and values `[2, B, N, P, D]`.
    past: Option<ValueId>,
    /// Added to the products.
    added: Option<ValueId>,
}

fn heads_of(cx: &NodeCx) -> Result<usize, Refusal> {
    match size(cx.int("num_heads", 0), "num_heads")? {
        0 => Err(Refusal::new("num_heads is missing")),
        heads => Ok(heads),
    }
}

/// Queries, keys and values are one product of X `[B, S, I]` with weights `[I, Hq + Hk + Hv]`.
fn packed(cx: &mut NodeCx, x: ValueId, weights: ValueId, slots: Slots) -> Built {
    cx.only_int("do_rotary", 0)?;
    cx.only_int("past_present_share_buffer", 0)?;
    let heads = heads_of(cx)?;
    let Some(width) = cx.ty(weights).shape.last().and_then(Dim::known) else {
        return Err(Refusal::new("the width of its weights is not known"));
    };
    let sizes = cx.sizes("qkv_hidden_sizes", vec![width / 3; 3])?;
    let mut all = cx.step("projected", MatMul {}, [x, weights])?;
    if let Some(bias) = slots.bias {
        all = cx.binary(BinaryKind::Add, all, bias)?;
    }
    let parts = cx.parts(all, -1, &sizes)?;
    let &[q, k, v] = &parts[..] else { return Err(Refusal::new("qkv_hidden_sizes must list three sizes")) };
    let [q, k, v] = [split(cx, q, heads)?, split(cx, k, heads)?, split(cx, v, heads)?];
    let mut past = [None; 2];
    if let Some(both) = slots.past {
        let halves = cx.parts(both, 0, &[1, 1])?;
        for (past, half) in past.iter_mut().zip(halves) {
            *past = Some(cx.squeeze(half, &[0])?);
        }
    }
    let [result, keys, values] = self_attention(cx, [q, k, v], past, slots.mask, slots.added)?;
    let mut outputs = vec![result];
    if cx.reads(1) {
        let both = [cx.unsqueeze(keys, &[0])?, cx.unsqueeze(values, &[0])?];
        outputs.push(cx.concat(both, 0)?);
    }
    Ok(outputs)
}

/// The result `[B, S, N·D]`, and all keys and values.
fn self_attention(
    cx: &mut NodeCx,
    [queries, keys, values]: [ValueId; 3],
    [past_keys, past_values]: [Option<ValueId>; 2],
    mask: Option<ValueId>,
    added: Option<ValueId>,
) -> Result<[ValueId; 3], Refusal> {
    let (keys, values) = (appended(cx, past_keys, keys)?, appended(cx, past_values, values)?);
    let dtype = cx.dtype(queries);
    let mut bias = None;
    if let Some(mask) = mask {
        let conditions = visible(cx, mask, queries, keys)?;
        let closed = f64::from(cx.float("mask_filter_value", -10000.0));
        bias = masked(cx, conditions, None, dtype, closed)?;
    }
    if cx.flag("unidirectional", false) {
        let offset = match past_keys {
            Some(past) => cx.extent(past, 2)?,
            None => cx.make_ints("offset", &[0]),
        };
        let window = Window { offset, left: None, right: Some(0) };
        let conditions = window.conditions(cx, queries, keys)?;
        bias = masked(cx, conditions, bias, dtype, f64::NEG_INFINITY)?;
    }
    if let Some(added) = added {
        bias = Some(match bias {
            Some(bias) => cx.binary(BinaryKind::Add, bias, added)?,
            None => added,
        });
    }
    // The attribute's 0 stands for the usual scale.
    let scale = Some(cx.float("scale", 0.0)).filter(|&scale| scale != 0.0);
    let heads = Heads { queries, keys, values, scale, cap: 0.0, bias, guarded: false, precision: dtype };
    let (result, _) = heads.build(cx, None)?;
    Ok([join(cx, result)?, keys, values])
}

/// Where a mask lets queries see keys: the ends of the sequences `[B]`, their ends and then their starts `[2·B]`, or
/// numbers that are positive there, `[B, T]` or `[B, S, T]`.
fn visible(cx: &mut NodeCx, mask: ValueId, queries: ValueId, keys: ValueId) -> Result<Vec<ValueId>, Refusal> {
    let ty = cx.ty(mask).clone();
    let batch = cx.ty(queries).shape.first().cloned().unwrap_or(Dim::from(1usize));
    let refused = || Refusal::new(format!("its mask {ty} is not supported for a batch of {batch}"));
    match ty.shape.as_slice() {
        [ends] => {
            let twice = *ends == batch.clone() * Dim::from(2usize);
            if !twice && *ends != batch {
                return Err(refused());
            }
            let wide = cx.cast(mask, DType::I64)?;
            let columns = cx.extent(keys, 2)?;
            let columns = cx.count_to(columns)?;
            let rows = cx.reshape(wide, &[if twice { 2 } else { 1 }, -1, 1, 1, 1])?;
            let kinds = [BinaryKind::Less, BinaryKind::GreaterOrEqual];
            let mut conditions = Vec::new();
            for (i, kind) in (0..if twice { 2 } else { 1 }).zip(kinds) {
                let bound = cx.cut(rows, 0, [i, i + 1, 1])?;
                let bound = cx.squeeze(bound, &[0])?;
                conditions.push(cx.binary(kind, columns, bound)?);
            }
            Ok(conditions)
        }
        [_, _] | [_, _, _] => {
            let zero = cx.scalar("zero", ty.dtype, 0.0);
            let shown = match ty.dtype {
                DType::Bool => mask,
                _ => cx.binary(BinaryKind::Greater, mask, zero)?,
            };
            let axes: &[i64] = if ty.rank() == 2 { &[1, 2] } else { &[1] };
            Ok(vec![cx.unsqueeze(shown, axes)?])
        }
        _ => Err(refused()),
    }
}

/// Part `index` of an axis, without that axis.
fn member(cx: &mut NodeCx, x: ValueId, axis: i64, index: i64) -> Result<ValueId, Refusal> {
    let part = cx.cut(x, axis, [index, index + 1, 1])?;
    cx.squeeze(part, &[axis])
}

/// Queries `[B, S, H]`, or everything as `[B, S, N, 3, D]`; keys `[B, T, H]`, keys and values `[B, T, N, 2, D]`, or
/// keys as heads `[B, N, T, D]`, to which no bias is added.
fn multi_head(cx: &mut NodeCx) -> Built {
    let heads = heads_of(cx)?;
    if cx.opt(8).is_some() || cx.opt(9).is_some() {
        return Err(Refusal::new("a past that shares its memory with the present is not supported"));
    }
    let query = cx.input(0)?;
    let flat = |cx: &mut NodeCx, x| cx.reshape(x, &[0, 0, -1]);
    let mut all = Vec::new();
    match (cx.rank(query), cx.opt(1), cx.opt(2)) {
        (5, None, None) => {
            for index in 0..3 {
                let part = member(cx, query, 3, index)?;
                all.push(flat(cx, part)?);
            }
        }
        (3, Some(both), None) if cx.rank(both) == 5 => {
            all.push(query);
            for index in 0..2 {
                let part = member(cx, both, 3, index)?;
                all.push(flat(cx, part)?);
            }
        }
        (3, Some(key), Some(value)) => all.extend([query, key, value]),
        _ => return Err(Refusal::new(format!("its query {} comes without keys or values", cx.ty(query)))),
    }
    if let Some(bias) = cx.opt(3) {
        let width = |cx: &NodeCx, x: ValueId| match cx.ty(x).shape.as_slice() {
            [_, _, width] => width.known(),
            [_, heads, _, width] => Some(heads.known()? * width.known()?),
            _ => None,
        };
        let sizes: Option<Vec<usize>> = all.iter().map(|&x| width(cx, x)).collect();
        let sizes = sizes.ok_or_else(|| Refusal::new("the widths of its inputs are not known"))?;
        let biases = cx.parts(bias, 0, &sizes)?;
        for (x, bias) in all.iter_mut().zip(biases) {
            if cx.rank(*x) == 3 {
                *x = cx.binary(BinaryKind::Add, *x, bias)?;
            }
        }
    }
    for x in &mut all {
        if cx.rank(*x) != 4 {
            *x = split(cx, *x, heads)?;
        }
    }
    let &[q, k, v] = &all[..] else { return Err(Refusal::new("its keys or values are missing")) };
    let past = [cx.opt(6), cx.opt(7)];
    Ok(self_attention(cx, [q, k, v], past, cx.opt(4), cx.opt(5))?.to_vec())
}

/// Causal attention with fewer heads of keys. Inputs: queries `[B, S, N·D]`, or everything side by side; keys and values
/// `[B, S, M·D]`; past ones `[B, M, P, D]`; the last place of each sequence `[B]`; the length of the longest; cosines and
/// sines; places; what is added to the products.
///
/// A sequence's new keys follow its past ones, of which it may have fewer than P.
fn grouped(cx: &mut NodeCx) -> Built {
    let (n, m) = (heads_of(cx)?, size(cx.int("kv_num_heads", 0), "kv_num_heads")?);
    cx.only_int("smooth_softmax", 0)?;
    if cx.opt(11).is_some() || m == 0 {
        return Err(Refusal::new(format!("{m} heads of keys, or a head sink, are not supported")));
    }
    let query = cx.input(0)?;
    let [q, k, v] = match (cx.opt(1), cx.opt(2)) {
        (Some(key), Some(value)) => [query, key, value],
        _ => {
            let width = cx.ty(query).shape.last().and_then(Dim::known).unwrap_or(0);
            let depth = width / n.saturating_add(2 * m);
            let parts = cx.parts(query, -1, &[n * depth, m * depth, m * depth])?;
            let &[q, k, v] = &parts[..] else { return Err(Refusal::new("its input is incomplete")) };
            [q, k, v]
        }
    };
    let [mut queries, mut keys, values] = [split(cx, q, n)?, split(cx, k, m)?, split(cx, v, m)?];
    // How many keys each sequence has already.
    let last = cx.cast(cx.input(5)?, DType::I64)?;
    let last = cx.reshape(last, &[-1, 1])?;
    let steps = cx.extent(queries, 2)?;
    let end = cx.with(BinaryKind::Add, last, 1.0)?;
    let before = cx.binary(BinaryKind::Sub, end, steps)?;
    let zero = cx.make_ints("zero", &[0]);
    let before = cx.binary(BinaryKind::Max, before, zero)?;
    if cx.flag("do_rotary", false) {
        let (cos, sin) = (cx.input(7)?, cx.input(8)?);
        let places = match cx.opt(9) {
            Some(places) => places,
            None => {
                let counting = cx.count_to(steps)?;
                cx.binary(BinaryKind::Add, before, counting)?
            }
        };
        let turn = [cx.gather(cos, places, 0)?, cx.gather(sin, places, 0)?];
        let interleaved = cx.flag("rotary_interleaved", false);
        queries = rotated(cx, queries, 1, turn, interleaved)?;
        keys = rotated(cx, keys, 1, turn, interleaved)?;
    }
    let mut all = [keys, values];
    for (all, past) in all.iter_mut().zip([cx.opt(3), cx.opt(4)]) {
        *all = continued(cx, past, *all, before)?;
    }
    let [keys, values] = all;
    let offset = cx.reshape(before, &[-1, 1, 1, 1])?;
    let left = Some(cx.int("local_window_size", -1)).filter(|&size| size >= 0);
    let conditions = Window { offset, left, right: Some(0) }.conditions(cx, queries, keys)?;
    let dtype = cx.dtype(queries);
    let bias = masked(cx, conditions, cx.opt(10), dtype, f64::NEG_INFINITY)?;
    let scale = Some(cx.float("scale", 0.0)).filter(|&scale| scale != 0.0);
    let cap = cx.float("softcap", 0.0);
    let heads = Heads { queries, keys, values, scale, cap, bias, guarded: false, precision: dtype };
    let (result, _) = heads.build(cx, None)?;
    Ok(vec![join(cx, result)?, keys, values])
}

/// New keys `[B, M, S, D]` behind the first `before[b]` of the past ones.
fn continued(
    cx: &mut NodeCx,
    past: Option<ValueId>,
    new: ValueId,
    before: ValueId,
) -> Result<ValueId, Refusal> {
    let Some(past) = past else { return Ok(new) };
    let both = cx.concat([past, new], 2)?;
    let (room, total) = (cx.extent(past, 2)?, cx.extent(both, 2)?);
    let places = cx.count_to(total)?;
    let gap = cx.binary(BinaryKind::Sub, room, before)?;
    let behind = cx.binary(BinaryKind::Add, places, gap)?;
    let is_past = cx.binary(BinaryKind::Less, places, before)?;
    let index = cx.select(is_past, places, behind)?;
    let one = cx.make_ints("one", &[1]);
    let end = cx.binary(BinaryKind::Sub, total, one)?;
    let index = cx.binary(BinaryKind::Min, index, end)?;
    let index = cx.unsqueeze(index, &[1, 3])?;
    let shape = cx.shape_of(both)?;
    let index = cx.expand(index, shape)?;
    cx.step("continued", GatherElements { axis: 2 }, [both, index])
}
