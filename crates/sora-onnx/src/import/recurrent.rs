//! Recurrent layers.

use sora_ir::ops::{Direction, Gru, Lstm, Rnn, RnnActivation};
use sora_ir::{Dim, Op, ValueId};

use super::node::{Built, NodeCx, size};
use super::rows::{Row, onnx};
use crate::error::Refusal;

pub(super) const ROWS: &[Row] = &[onnx("LSTM", lstm), onnx("GRU", gru), onnx("RNN", rnn)];

fn lstm(cx: &mut NodeCx) -> Built {
    cx.only_int("input_forget", 0)?;
    activations(cx, &["sigmoid", "tanh", "tanh"])?;
    let op = Lstm { hidden: hidden(cx)?, direction: direction(cx)? };
    layer(cx, op.into(), 8)
}

fn gru(cx: &mut NodeCx) -> Built {
    activations(cx, &["sigmoid", "tanh"])?;
    let op = Gru {
        hidden: hidden(cx)?,
        direction: direction(cx)?,
        linear_before_reset: cx.flag("linear_before_reset", false),
    };
    layer(cx, op.into(), 6)
}

fn rnn(cx: &mut NodeCx) -> Built {
    let names = cx.texts("activations");
    let activation = match names.first().map(|name| name.to_lowercase()).as_deref() {
        None | Some("tanh") => RnnActivation::Tanh,
        Some("relu") => RnnActivation::Relu,
        Some("sigmoid") => RnnActivation::Sigmoid,
        Some(other) => return Err(Refusal::new(format!("the activation `{other}` is not supported"))),
    };
    if names.iter().any(|name| Some(name.to_lowercase()) != names.first().map(|n| n.to_lowercase())) {
        return Err(Refusal::new(format!("the activations {names:?} differ between the directions")));
    }
    let op = Rnn { hidden: hidden(cx)?, direction: direction(cx)?, activation };
    layer(cx, op.into(), 6)
}

fn direction(cx: &NodeCx) -> Result<Direction, Refusal> {
    match cx.text("direction", "forward").as_ref() {
        "forward" => Ok(Direction::Forward),
        "reverse" => Ok(Direction::Reverse),
        "bidirectional" => Ok(Direction::Bidirectional),
        other => Err(Refusal::new(format!("direction=`{other}` is not known"))),
    }
}

/// The attribute, or the last extent of the recurrent weights.
fn hidden(cx: &NodeCx) -> Result<usize, Refusal> {
    if cx.attribute("hidden_size").is_some() {
        return size(cx.int("hidden_size", 0), "hidden_size");
    }
    let weights = cx.ty(cx.input(2)?);
    let last = weights.shape.last().and_then(Dim::known);
    last.ok_or_else(|| Refusal::new(format!("hidden_size is missing, and the weights are {weights}")))
}

/// Refuses other activations than the usual ones, which each direction repeats.
fn activations(cx: &NodeCx, usual: &[&str]) -> Result<(), Refusal> {
    let names = cx.texts("activations");
    match names.iter().zip(usual.iter().cycle()).find(|(name, usual)| name.to_lowercase() != **usual) {
        Some((name, _)) => Err(Refusal::new(format!("the activation `{name}` is not supported"))),
        None => Ok(()),
    }
}

/// Adds the layer. With layout 1, the batch comes first in everything but the weights.
fn layer(cx: &mut NodeCx, op: Op, inputs: usize) -> Built {
    for name in ["clip", "activation_alpha", "activation_beta"] {
        cx.without(name)?;
    }
    let mut inputs = cx.inputs_to(inputs);
    if !cx.flag("layout", false) {
        return cx.add(op, inputs);
    }
    // X, the initial state and the initial cell.
    for slot in [0, 5, 6] {
        if let Some(Some(value)) = inputs.get_mut(slot) {
            *value = swapped(cx, *value)?;
        }
    }
    let outputs = cx.add(op, inputs)?;
    let mut moved = Vec::new();
    for (slot, &value) in outputs.iter().enumerate() {
        // Y is [time, direction, batch, hidden] and becomes [batch, time, direction, hidden].
        moved.push(match (cx.reads(slot), slot) {
            (false, _) => value,
            (true, 0) => cx.transpose(value, &[2, 0, 1, 3])?,
            (true, _) => swapped(cx, value)?,
        });
    }
    Ok(moved)
}

fn swapped(cx: &mut NodeCx, value: ValueId) -> Result<ValueId, Refusal> {
    match cx.rank(value) {
        3 => cx.transpose(value, &[1, 0, 2]),
        _ => Err(Refusal::new(format!("its input or output {} must have rank 3", cx.ty(value)))),
    }
}
