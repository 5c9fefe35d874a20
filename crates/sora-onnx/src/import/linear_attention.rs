//! Attention with a state instead of a softmax, and the convolution that such networks have beside it.

use sora_ir::ops::{Binary, BinaryKind, Conv, MatMul, Scan, Squeeze, Unary, UnaryKind, Unsqueeze};
use sora_ir::{Dim, Graph, Op, Subgraph, TensorType, ValueId};
use sora_tensor::DType;

use super::node::{Built, NodeCx, first, real, size};
use super::rows::{Row, onnx};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] =
    &[onnx("CausalConvWithState", causal_conv), onnx("LinearAttention", linear_attention)];

/// A convolution by channels of the input behind the state, which is the end of what came before it, or zeros.
fn causal_conv(cx: &mut NodeCx) -> Built {
    let (x, weight) = (cx.input(0)?, cx.input(1)?);
    let extents = cx.ty(weight).known_shape().unwrap_or_default();
    let &[channels, 1, kernel] = &extents[..] else {
        return Err(Refusal::new(format!("its weights {} are not [channels, 1, k]", cx.ty(weight))));
    };
    let past = match cx.opt(3) {
        Some(past) => past,
        None => {
            let zero = cx.scalar("zero", cx.dtype(x), 0.0);
            let (batch, rest) = (
                cx.extent(x, 0)?,
                cx.make_ints("rest", &[signed(channels), signed(kernel.saturating_sub(1))]),
            );
            let shape = cx.concat([batch, rest], 0)?;
            cx.expand(zero, shape)?
        }
    };
    let all = cx.concat([past, x], 2)?;
    let conv = Conv { strides: vec![1], pads: vec![0, 0], dilations: vec![1], group: channels };
    let mut y = cx.step("conv", conv, [Some(all), Some(weight), cx.opt(2)].into_iter().flatten())?;
    match cx.text("activation", "none").as_ref() {
        "none" => {}
        "silu" | "swish" => y = cx.unary(UnaryKind::Silu, y)?,
        other => return Err(Refusal::new(format!("activation=`{other}` is not known"))),
    }
    // The last k - 1 places start where the input's length ends.
    let length = cx.extent(x, 2)?;
    let [end, axis] = [i64::MAX, 2].map(|v| cx.make_ints("bound", &[v]));
    let present = cx.step("present", sora_ir::ops::Slice {}, [all, length, end, axis])?;
    Ok(vec![y, present])
}

/// `[B, T, N·D]` as `[B, N, T, D]` in f32.
fn split(cx: &mut NodeCx, x: ValueId, heads: usize) -> Result<ValueId, Refusal> {
    let apart = super::attention::split(cx, x, heads)?;
    cx.cast(apart, DType::F32)
}

/// A state `[B, M, D, E]` that each step decays (g), corrects (β) and adds `k ⊗ v` to, and that queries read:
/// `S ← exp(g)·S`, `v ← β·(v - Sᵀk)`, `S ← S + k ⊗ v`, `o = scale · Sᵀq`. N heads of queries share M states in turn.
fn linear_attention(cx: &mut NodeCx) -> Built {
    let [q, k, v] = [cx.input(0)?, cx.input(1)?, cx.input(2)?];
    let heads = |name| size(cx.int(name, 0), name);
    let (n, m) = (heads("q_num_heads")?, heads("kv_num_heads")?);
    if m == 0 || n % m != 0 {
        return Err(Refusal::new(format!("{n} heads of queries do not share {m} heads of keys")));
    }
    let (gated, corrected) = match cx.text("update_rule", "gated_delta").as_ref() {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(Refusal::new(format!("update_rule=`{other}` is not known"))),
    };
    let dtype = cx.dtype(q);
    let queries = split(cx, q, n)?;
    let [keys, values] = [split(cx, k, m)?, split(cx, v, m)?];
    // [B, N, T, D] to [B, M, N/M, T, D].
    use super::shape::{Part, reshape_by, same};
    let parts = [same(0), Part::Number(m), Part::Number(n / m), same(2), same(3)];
    let queries = reshape_by(cx, queries, &parts)?;
    let depth = |cx: &NodeCx, x: ValueId| cx.ty(x).shape.last().and_then(Dim::known);
    let (Some(dk), Some(dv)) = (depth(cx, keys), depth(cx, values)) else {
        return Err(Refusal::new("the sizes of its heads are not known"));
    };
    let state_dtype = cx.opt(3).map_or(dtype, |state| cx.dtype(state));
    let state = match cx.opt(3) {
        Some(state) => cx.cast(state, DType::F32)?,
        None => {
            let zero = cx.scalar("zero", DType::F32, 0.0);
            let batch = cx.extent(q, 0)?;
            let rest = cx.make_ints("rest", &[signed(m), signed(dk), signed(dv)]);
            let shape = cx.concat([batch, rest], 0)?;
            cx.expand(zero, shape)?
        }
    };
    let mut sequences = vec![(queries, 3i64), (keys, 2), (values, 2)];
    if gated {
        let decay = cx.opt(4).ok_or_else(|| Refusal::new("its decay is missing"))?;
        sequences.push((split(cx, decay, m)?, 2));
    }
    if corrected {
        let rate = cx.opt(5).ok_or_else(|| Refusal::new("its beta is missing"))?;
        let rates = if depth(cx, rate) == Some(1) { 1 } else { m };
        sequences.push((split(cx, rate, rates)?, 2));
    }

    let mut graph = Graph::new("step");
    let mut given = vec![graph.input("state", cx.ty(state).clone())];
    for (i, &(value, axis)) in sequences.iter().enumerate() {
        let mut ty: TensorType = cx.ty(value).clone();
        ty.shape.remove(cx.axis(axis, value)?);
        given.push(graph.input(&format!("x{i}"), ty));
    }
    let outputs = step(&mut graph, &given, gated, corrected)?;
    for (i, output) in outputs.into_iter().enumerate() {
        graph.output(&format!("y{i}"), output);
    }
    let count = sequences.len();
    let op = Scan {
        body: Subgraph::new(graph).map_err(|e| Refusal::new(e.0))?,
        states: 1,
        input_axes: sequences.iter().map(|&(_, axis)| axis).collect(),
        input_reverse: vec![false; count],
        output_axes: vec![1],
        output_reverse: vec![false],
    };
    let inputs: Vec<ValueId> = std::iter::once(state).chain(sequences.iter().map(|&(v, _)| v)).collect();
    let results = cx.steps("steps", op, inputs)?;
    let &[state, read] = &results[..] else { return Err(Refusal::new("it has no output")) };
    let scale = match cx.float("scale", 0.0) {
        0.0 => real(dk.max(1)).sqrt().recip(),
        scale => f64::from(scale),
    };
    let scaled = cx.with(BinaryKind::Mul, read, scale)?;
    let joined = cx.reshape(scaled, &[0, 0, -1])?;
    Ok(vec![cx.cast(joined, dtype)?, cx.cast(state, state_dtype)?])
}

/// One step on the state `[B, M, D, E]`, q `[B, M, N/M, D]`, k `[B, M, D]`, v `[B, M, E]`, then g and β where they are.
fn step(graph: &mut Graph, given: &[ValueId], gated: bool, corrected: bool) -> Result<Vec<ValueId>, Refusal> {
    let mut add = |op: Op, inputs: &[ValueId]| -> Result<ValueId, Refusal> {
        let name = graph.fresh_name(&op.label().to_lowercase());
        first(graph.add(&name, op, inputs.iter().copied())?)
    };
    let binary = |kind| Op::from(Binary { kind });
    let axis = |at: i64| Op::from(Unsqueeze { axes: vec![at] });
    let (&[mut state, q, k, mut v], rest) =
        given.split_first_chunk::<4>().ok_or_else(|| Refusal::new("no state"))?;
    let mut rest = rest.iter().copied();
    if let Some(g) = rest.next().filter(|_| gated) {
        let factor = add(Unary { kind: UnaryKind::Exp }.into(), &[g])?;
        let factor = add(axis(-1), &[factor])?;
        state = add(binary(BinaryKind::Mul), &[state, factor])?;
    }
    if corrected {
        let rate = given.last().copied().ok_or_else(|| Refusal::new("no rate"))?;
        let row = add(axis(2), &[k])?;
        let known = add(MatMul {}.into(), &[row, state])?;
        let known = add(Squeeze { axes: vec![2] }.into(), &[known])?;
        let error = add(binary(BinaryKind::Sub), &[v, known])?;
        v = add(binary(BinaryKind::Mul), &[error, rate])?;
    }
    let (column, row) = (add(axis(-1), &[k])?, add(axis(2), &[v])?);
    let outer = add(binary(BinaryKind::Mul), &[column, row])?;
    let state = add(binary(BinaryKind::Add), &[state, outer])?;
    let read = add(MatMul {}.into(), &[q, state])?;
    Ok(vec![state, read])
}
