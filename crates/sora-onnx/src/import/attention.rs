//! Attention, as two products with a softmax between them, which the engine finds and runs as one step.

use sora_ir::ops::{BinaryKind, MatMul, Pad, PadMode, ReduceKind, Softmax, UnaryKind};
use sora_ir::{Dim, ValueId};
use sora_tensor::DType;

use super::math::transposed;
use super::node::{Built, NodeCx, real, size};
use super::rows::{Row, onnx};
use super::shape::{Part, reshape_by, same};
use crate::error::Refusal;
use crate::tensor::{dtype_of, signed};

pub(super) const ROWS: &[Row] = &[onnx("Attention", attention)];

/// Attention of N heads over batches: `softmax(cap(scale · Q·Kᵀ) + bias) · V`.
pub(super) struct Heads {
    /// `[B, N, S, D]`.
    pub(super) queries: ValueId,
    /// `[B, M, T, D]`, where M divides N: each head of these serves N/M heads of queries in turn.
    pub(super) keys: ValueId,
    /// `[B, M, T, Dv]`.
    pub(super) values: ValueId,
    /// Factor of the products; `1/sqrt(D)` when absent.
    pub(super) scale: Option<f32>,
    /// Products go through `cap · tanh(x / cap)`; not where it is 0.
    pub(super) cap: f32,
    /// What is added to them, broadcasting to `[B, N, S, T]`.
    pub(super) bias: Option<ValueId>,
    /// Whether a row of the bias can be minus infinity throughout: its result is zero.
    pub(super) guarded: bool,
    /// Dtype in which the softmax is computed.
    pub(super) precision: DType,
}

/// A place in the computation of [`Heads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Product,
    Capped,
    Biased,
    Weights,
}

impl Heads {
    /// The result `[B, N, S, Dv]`, and what it is at a stage, `[B, N, S, T]`, if that is asked for.
    pub(super) fn build(
        self,
        cx: &mut NodeCx,
        stage: Option<Stage>,
    ) -> Result<(ValueId, Option<ValueId>), Refusal> {
        let extent = |cx: &NodeCx, x, axis: usize| cx.ty(x).shape.get(axis).and_then(Dim::known);
        let (heads, sources) = (extent(cx, self.queries, 1), extent(cx, self.keys, 1));
        let (Some(heads), Some(sources)) = (heads, sources) else {
            return Err(Refusal::new("its numbers of heads are not known"));
        };
        if sources == 0 || heads % sources != 0 {
            return Err(Refusal::new(format!(
                "{heads} heads of queries do not share {sources} heads of keys"
            )));
        }
        // One head of keys broadcasts by itself; several get an axis for the queries that share one.
        let grouped = sources != heads && sources != 1;
        let (mut queries, mut keys, mut values, mut bias) = (self.queries, self.keys, self.values, self.bias);
        if grouped {
            let [outer, inner] = [Part::Number(sources), Part::Number(heads / sources)];
            queries = reshape_by(cx, queries, &[same(0), outer, inner, same(2), same(3)])?;
            [keys, values] = [cx.unsqueeze(keys, &[2])?, cx.unsqueeze(values, &[2])?];
            bias = match bias {
                None => None,
                Some(bias) => Some(split_heads(cx, bias, outer, inner)?),
            };
        }
        let mut scores = products(cx, queries, keys, self.scale)?;
        let dtype = cx.dtype(queries);
        let product = scores;
        if self.cap > 0.0 {
            let small = cx.with(BinaryKind::Div, scores, f64::from(self.cap))?;
            let bent = cx.unary(UnaryKind::Tanh, small)?;
            scores = cx.with(BinaryKind::Mul, bent, f64::from(self.cap))?;
        }
        let capped = scores;
        // A row that attends to nothing is computed as one that attends to all, and then put to zero.
        let mut dead = None;
        let open = match bias {
            Some(bias) if self.guarded => {
                let most = cx.reduced(ReduceKind::Max, bias, &[-1], true)?;
                let infinite = cx.with(BinaryKind::Equal, most, f64::NEG_INFINITY)?;
                dead = Some(infinite);
                let zero = cx.scalar("zero", dtype, 0.0);
                Some(cx.select(infinite, zero, bias)?)
            }
            other => other,
        };
        if let Some(open) = open {
            scores = cx.binary(BinaryKind::Add, scores, open)?;
        }
        let precise = cx.cast(scores, self.precision)?;
        let soft = cx.step("softmax", Softmax { axis: -1, log: false }, [precise])?;
        let weights = cx.cast(soft, dtype)?;
        let mut result = cx.step("result", MatMul {}, [weights, values])?;
        let alive = |cx: &mut NodeCx, x: ValueId| match dead {
            None => Ok(x),
            Some(dead) => {
                let zero = cx.scalar("zero", dtype, 0.0);
                cx.select(dead, zero, x)
            }
        };
        result = alive(cx, result)?;
        let seen = match stage {
            None => None,
            Some(Stage::Product) => Some(product),
            Some(Stage::Capped) => Some(capped),
            Some(Stage::Biased) => Some(match bias {
                None => capped,
                Some(bias) => cx.binary(BinaryKind::Add, capped, bias)?,
            }),
            Some(Stage::Weights) => Some(alive(cx, weights)?),
        };
        if !grouped {
            return Ok((result, seen));
        }
        let joined =
            |cx: &mut NodeCx, x| reshape_by(cx, x, &[same(0), Part::Number(heads), same(3), same(4)]);
        let seen = match seen {
            None => None,
            Some(seen) => Some(joined(cx, seen)?),
        };
        Ok((joined(cx, result)?, seen))
    }
}

/// `scale · Q·Kᵀ` of heads `[…, S, D]` and `[…, T, D]`; the scale is `1/sqrt(D)` when it is absent.
pub(super) fn products(
    cx: &mut NodeCx,
    mut queries: ValueId,
    mut keys: ValueId,
    scale: Option<f32>,
) -> Result<ValueId, Refusal> {
    let scale = match (scale, cx.ty(queries).shape.last().and_then(Dim::known)) {
        (Some(scale), _) => f64::from(scale),
        (None, Some(depth)) => real(depth.max(1)).sqrt().recip(),
        (None, None) => return Err(Refusal::new("the size of its heads is not known")),
    };
    // Products of short floats overflow sooner when they are scaled later.
    let late = matches!(cx.dtype(queries), DType::F32 | DType::F64) || scale < 0.0;
    if !late {
        queries = cx.with(BinaryKind::Mul, queries, scale.sqrt())?;
        keys = cx.with(BinaryKind::Mul, keys, scale.sqrt())?;
    }
    let keys = transposed(cx, keys)?;
    let scores = cx.step("scores", MatMul {}, [queries, keys])?;
    if late && scale != 1.0 { cx.with(BinaryKind::Mul, scores, scale) } else { Ok(scores) }
}

/// The axis of heads of a bias, if it has one, as two.
fn split_heads(cx: &mut NodeCx, bias: ValueId, outer: Part, inner: Part) -> Result<ValueId, Refusal> {
    let ty = cx.ty(bias);
    let Some(axis) = ty.rank().checked_sub(3) else { return Ok(bias) };
    match ty.shape.get(axis).and_then(Dim::known) {
        None => Err(Refusal::new(format!("the number of heads of its mask {ty} is not known"))),
        Some(1) => cx.unsqueeze(bias, &[signed(axis)]),
        Some(_) => {
            let mut parts: Vec<Part> = (0..ty.rank()).map(same).collect();
            parts.splice(axis..=axis, [outer, inner]);
            reshape_by(cx, bias, &parts)
        }
    }
}

/// `[B, S, N·D]` as `[B, N, S, D]`.
pub(super) fn split(cx: &mut NodeCx, x: ValueId, heads: usize) -> Result<ValueId, Refusal> {
    let ty = cx.ty(x);
    let even = heads > 0 && ty.shape.get(2).and_then(Dim::known).is_none_or(|width| width % heads == 0);
    if ty.rank() != 3 || !even {
        return Err(Refusal::new(format!("its input {ty} does not split into {heads} heads")));
    }
    let apart = cx.reshape(x, &[0, 0, signed(heads), -1])?;
    cx.transpose(apart, &[0, 2, 1, 3])
}

/// `[B, N, S, D]` as `[B, S, N·D]`.
pub(super) fn join(cx: &mut NodeCx, x: ValueId) -> Result<ValueId, Refusal> {
    let side_by_side = cx.transpose(x, &[0, 2, 1, 3])?;
    cx.reshape(side_by_side, &[0, 0, -1])
}

/// Which keys a query attends to: places are counted from the first key.
pub(super) struct Window {
    /// The place of the first query, broadcasting to `[B, 1, S, T]`; integers.
    pub(super) offset: ValueId,
    /// How far before its own place a query sees.
    pub(super) left: Option<i64>,
    /// How far behind its own place a query sees.
    pub(super) right: Option<i64>,
}

impl Window {
    /// The conditions on `[S, T]`, or with the axes that the offset has.
    pub(super) fn conditions(
        &self,
        cx: &mut NodeCx,
        queries: ValueId,
        keys: ValueId,
    ) -> Result<Vec<ValueId>, Refusal> {
        let rows = cx.extent(queries, 2)?;
        let rows = cx.count_to(rows)?;
        let rows = cx.unsqueeze(rows, &[1])?;
        let columns = cx.extent(keys, 2)?;
        let columns = cx.count_to(columns)?;
        let places = cx.binary(BinaryKind::Add, rows, self.offset)?;
        let mut conditions = Vec::new();
        let bounds =
            [(self.left, -1i64, BinaryKind::GreaterOrEqual), (self.right, 1, BinaryKind::LessOrEqual)];
        for (bound, sign, kind) in bounds {
            if let Some(distance) = bound {
                let distance = cx.make_ints("distance", &[distance.saturating_mul(sign)]);
                let bound = cx.binary(BinaryKind::Add, places, distance)?;
                conditions.push(cx.binary(kind, columns, bound)?);
            }
        }
        Ok(conditions)
    }
}

/// What is added to the products: a bias where all conditions hold, minus infinity elsewhere.
pub(super) fn masked(
    cx: &mut NodeCx,
    conditions: Vec<ValueId>,
    bias: Option<ValueId>,
    dtype: DType,
    closed: f64,
) -> Result<Option<ValueId>, Refusal> {
    let mut all = None;
    for condition in conditions {
        all = Some(match all {
            None => condition,
            Some(all) => cx.binary(BinaryKind::And, all, condition)?,
        });
    }
    let Some(all) = all else { return Ok(bias) };
    let closed = cx.scalar("closed", dtype, closed);
    let open = match bias {
        Some(bias) => bias,
        None => cx.scalar("open", dtype, 0.0),
    };
    Ok(Some(cx.select(all, open, closed)?))
}

/// The present keys or values: the past ones, if any, and behind them the new ones.
pub(super) fn appended(cx: &mut NodeCx, past: Option<ValueId>, new: ValueId) -> Result<ValueId, Refusal> {
    match past {
        None => Ok(new),
        Some(past) => cx.concat([past, new], 2),
    }
}

/// As opset 25 has it, of which earlier ones are a part: releases of ONNX corrected their meaning to this.
fn attention(cx: &mut NodeCx) -> Built {
    let [q, k, v] = [cx.input(0)?, cx.input(1)?, cx.input(2)?];
    let flat = cx.rank(q) == 3;
    let heads = |cx: &NodeCx, name| size(cx.int(name, 0), name);
    let [queries, keys, values] = match flat {
        false => [q, k, v],
        true => {
            let (n, m) = (heads(cx, "q_num_heads")?, heads(cx, "kv_num_heads")?);
            [split(cx, q, n)?, split(cx, k, m)?, split(cx, v, m)?]
        }
    };
    for x in [queries, keys, values] {
        if cx.rank(x) != 4 {
            return Err(Refusal::new(format!("its input {} must have rank 3 or 4", cx.ty(x))));
        }
    }
    let (past_keys, lengths) = (cx.opt(4), cx.opt(6));
    let keys = appended(cx, past_keys, keys)?;
    let values = appended(cx, cx.opt(5), values)?;
    let dtype = cx.dtype(queries);

    let (mut conditions, mut bias) = (Vec::new(), None);
    if let Some(mask) = cx.opt(3) {
        let mask = padded(cx, mask, keys, lengths.is_some())?;
        match cx.dtype(mask) {
            DType::Bool => conditions.push(mask),
            _ => bias = Some(cx.cast(mask, dtype)?),
        }
    }
    let bound = |cx: &NodeCx, name| match cx.int(name, -1) {
        -1 => Ok(None),
        0.. => Ok(Some(cx.int(name, -1))),
        other => Err(Refusal::new(format!("{name}={other} is not known"))),
    };
    let (left, mut right) = (bound(cx, "left_window_size")?, bound(cx, "right_window_size")?);
    if cx.flag("is_causal", false) {
        right = Some(0);
    }
    // A query without a past always sees a key when it sees all before it.
    let guarded = cx.opt(3).is_some() || lengths.is_some() || left.is_some();
    if left.is_some() || right.is_some() {
        let offset = match (past_keys, lengths) {
            (Some(past), _) => cx.extent(past, 2)?,
            (None, Some(lengths)) => {
                let lengths = per_sample(cx, lengths)?;
                let rows = cx.extent(queries, 2)?;
                cx.binary(BinaryKind::Sub, lengths, rows)?
            }
            (None, None) => cx.make_ints("offset", &[0]),
        };
        conditions.extend(Window { offset, left, right }.conditions(cx, queries, keys)?);
    }
    if let Some(lengths) = lengths {
        let lengths = per_sample(cx, lengths)?;
        let columns = cx.extent(keys, 2)?;
        let columns = cx.count_to(columns)?;
        conditions.push(cx.binary(BinaryKind::Less, columns, lengths)?);
    }
    let bias = masked(cx, conditions, bias, dtype, f64::NEG_INFINITY)?;

    let stages = [Stage::Product, Stage::Capped, Stage::Biased, Stage::Weights];
    let stage = match usize::try_from(cx.int("qk_matmul_output_mode", 0)).ok().and_then(|i| stages.get(i)) {
        Some(&stage) => cx.reads(3).then_some(stage),
        None => return Err(Refusal::new("its qk_matmul_output_mode is not known")),
    };
    let precision = match cx.int("softmax_precision", 0) {
        0 => dtype,
        code => dtype_of(code)?,
    };
    let scale = cx.attribute("scale").map(|_| cx.float("scale", 0.0));
    let cap = cx.float("softcap", 0.0);
    let heads = Heads { queries, keys, values, scale, cap, bias, guarded, precision };
    let (result, seen) = heads.build(cx, stage)?;
    let result = if flat { join(cx, result)? } else { result };
    Ok([result, keys, values].into_iter().chain(seen).collect())
}

/// `[B]` integers as `[B, 1, 1, 1]` of i64.
fn per_sample(cx: &mut NodeCx, x: ValueId) -> Result<ValueId, Refusal> {
    let wide = cx.cast(x, DType::I64)?;
    cx.reshape(wide, &[-1, 1, 1, 1])
}

/// A mask whose last axis is shorter than the keys' closes the keys behind it. `dynamic` tells whether that may be so
/// where the extents are not known.
fn padded(cx: &mut NodeCx, mask: ValueId, keys: ValueId, dynamic: bool) -> Result<ValueId, Refusal> {
    let last = |dims: &[Dim], at: usize| dims.get(at).cloned();
    let rank = cx.rank(mask);
    let Some(axis) = rank.checked_sub(1) else { return Ok(mask) };
    let (have, need) = (last(&cx.ty(mask).shape, axis), last(&cx.ty(keys).shape, 2));
    let (Some(have), Some(need)) = (have, need) else { return Ok(mask) };
    let missing = need.clone() - have.clone();
    let last = match (missing.constant(), have.constant()) {
        (Some(0), _) => return Ok(mask),
        (_, Some(1)) if cx.opset < 24 => return Ok(mask),
        (Some(missing), _) => cx.make_ints("missing", &[missing]),
        (None, _) if dynamic => {
            let [need, have] = [cx.extent(keys, 2)?, cx.extent(mask, axis)?];
            cx.binary(BinaryKind::Sub, need, have)?
        }
        (None, _) => return Ok(mask),
    };
    let none = cx.make_ints("none", &vec![0; 2 * rank - 1]);
    let pads = cx.concat([none, last], 0)?;
    let dtype = cx.dtype(mask);
    let closed = cx.scalar("closed", dtype, if dtype == DType::Bool { 0.0 } else { f64::NEG_INFINITY });
    cx.step("pad", Pad { mode: PadMode::Constant }, [mask, pads, closed])
}
