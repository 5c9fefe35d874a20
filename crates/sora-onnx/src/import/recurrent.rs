//! Recurrent layers.

use sora_ir::ops::{Direction, Gru, Lstm, Rnn, RnnActivation};
use sora_ir::{Dim, Op, ValueId};
use sora_tensor::{Buffer, Tensor};

use super::cells::{self, Cell, Function};
use super::node::{Built, NodeCx, size};
use super::quant::{Scale, real, rounded};
use super::rows::{Row, microsoft, onnx, sora};
use crate::error::Refusal;

pub(super) const ROWS: &[Row] = &[
    onnx("LSTM", |cx| lstm(cx, false)),
    sora("LSTM", |cx| lstm(cx, true)),
    onnx("GRU", |cx| gru(cx, false)),
    sora("GRU", |cx| gru(cx, true)),
    onnx("RNN", rnn),
    microsoft("DynamicQuantizeLSTM", dynamic_lstm),
];

fn lstm(cx: &mut NodeCx, quantize_state: bool) -> Built {
    let (hidden, direction) = (hidden(cx)?, direction(cx)?);
    let cell = Cell::Lstm { input_forget: cx.flag("input_forget", false) };
    layer(cx, cell, hidden, direction, Lstm { hidden, direction, quantize_state }.into(), 8)
}

fn gru(cx: &mut NodeCx, quantize_state: bool) -> Built {
    let (hidden, direction) = (hidden(cx)?, direction(cx)?);
    let linear_before_reset = cx.flag("linear_before_reset", false);
    let op = Gru { hidden, direction, linear_before_reset, quantize_state };
    layer(cx, Cell::Gru { linear_before_reset }, hidden, direction, op.into(), 6)
}

/// Inputs: those of LSTM, with W `[D, I, 4H]` and R `[D, H, 4H]` as bytes, then scale and zero point of W and of R,
/// `[D]` or `[D, 4H]`.
///
/// onnxruntime quantizes X as a whole and the states of a batch together. X is kept so; each sequence's state gets
/// a range of its own, which lies within that of the batch: the same for one sequence, never coarser for more.
fn dynamic_lstm(cx: &mut NodeCx) -> Built {
    let (hidden, direction) = (size(cx.int("hidden_size", 0), "hidden_size")?, direction(cx)?);
    let cell = Cell::Lstm { input_forget: cx.flag("input_forget", false) };
    let op = Op::from(Lstm { hidden, direction, quantize_state: true });
    let functions = cells::functions(cx, cell, direction.count())?;
    if !is_core(cx, cell, &op, &functions) {
        return Err(Refusal::new("its states cannot be quantized under these activations")
            .hint("use the model's unquantized form"));
    }
    for (matrix, scale) in [(1, 8), (2, 10)] {
        let real = real_rows(cx, cx.input(matrix)?, cx.input(scale)?, cx.opt(scale + 1))?;
        put(cx, matrix, real);
    }
    let x = cx.input(0)?;
    let x = rounded(cx, x)?;
    put(cx, 0, x);
    layer(cx, cell, hidden, direction, op, 8)
}

/// Replaces an input that is there.
fn put(cx: &mut NodeCx, slot: usize, value: ValueId) {
    cx.inputs.iter_mut().skip(slot).take(1).for_each(|input| *input = Some(value));
}

/// Bytes `[D, K, N]` by scales `[D]` or `[D, N]`, as real numbers `[D, N, K]`.
fn real_rows(
    cx: &mut NodeCx,
    bytes: ValueId,
    scale: ValueId,
    zero_point: Option<ValueId>,
) -> Result<ValueId, Refusal> {
    let constant = |cx: &mut NodeCx, value: ValueId, what: &str| {
        cx.constant(value).ok_or_else(|| Refusal::new(format!("its {what} is not constant")))
    };
    let bytes = constant(cx, bytes, "weight")?;
    let &[directions, depth, columns] = bytes.shape() else {
        return Err(Refusal::new(format!("its weights have the shape {:?}", bytes.shape())));
    };
    if bytes.is_empty() {
        return Err(Refusal::new("its weights are empty"));
    }
    // By direction, row and line.
    let spread = |cx: &mut NodeCx, part: &str, tensor: Tensor| {
        let each = match tensor.len() {
            len if len == directions * columns => 1,
            len if len == directions => columns,
            _ => return Err(Refusal::new(format!("its {part} has the shape {:?}", tensor.shape()))),
        };
        let values: Vec<f64> =
            tensor.to_f64s().into_iter().flat_map(|v| std::iter::repeat_n(v, each)).collect();
        let tensor = Tensor::from_f64s(tensor.dtype(), &[directions, columns, 1], &values);
        Ok(cx.make(part, tensor.map_err(|e| Refusal::new(e.to_string()))?))
    };
    let scale = constant(cx, scale, "scale")?;
    let scale = spread(cx, "scale", scale)?;
    let zero_point = match zero_point {
        Some(zero_point) => {
            let zero_point = constant(cx, zero_point, "zero point")?;
            Some(spread(cx, "zero_point", zero_point)?)
        }
        None => None,
    };
    if bytes.dtype().size() != 1 {
        return Err(Refusal::new(format!("its weights are {}, not bytes", bytes.dtype())));
    }
    let mut rows = Vec::with_capacity(bytes.len());
    for matrix in bytes.raw().chunks_exact((depth * columns).max(1)) {
        rows.extend((0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns)));
    }
    let rows = Tensor::new(bytes.dtype(), &[directions, columns, depth], Buffer::copy_of(&rows));
    let rows = cx.make("rows", rows.map_err(|e| Refusal::new(e.to_string()))?);
    real(cx, rows, Scale { scale, zero_point }, 2)
}

/// The core operator has one of three functions in all directions.
fn rnn(cx: &mut NodeCx) -> Built {
    let (hidden, direction) = (hidden(cx)?, direction(cx)?);
    let activation = match cx.texts("activations").first().map(|name| name.to_lowercase()).as_deref() {
        Some("relu") => RnnActivation::Relu,
        Some("sigmoid") => RnnActivation::Sigmoid,
        _ => RnnActivation::Tanh,
    };
    layer(cx, Cell::Rnn, hidden, direction, Rnn { hidden, direction, activation }.into(), 6)
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

/// Whether the node's options are those of a core operator.
fn is_core(cx: &NodeCx, cell: Cell, op: &Op, functions: &[Function]) -> bool {
    let names = functions.iter().map(|f| f.name.as_str());
    let usual = match op {
        Op::Rnn(Rnn { activation: RnnActivation::Relu, .. }) => &["relu"],
        Op::Rnn(Rnn { activation: RnnActivation::Sigmoid, .. }) => &["sigmoid"],
        _ => cell.usual(),
    };
    let forget = matches!(cell, Cell::Lstm { input_forget: true });
    cx.attribute("clip").is_none() && !forget && names.eq(usual.iter().copied().cycle().take(functions.len()))
}

/// Adds the layer, as the core operator where that has the node's options. With layout 1, the batch comes first in
/// everything but the weights.
fn layer(cx: &mut NodeCx, cell: Cell, hidden: usize, direction: Direction, op: Op, inputs: usize) -> Built {
    let functions = cells::functions(cx, cell, direction.count())?;
    let core = is_core(cx, cell, &op, &functions);
    let add = |cx: &mut NodeCx, inputs: Vec<Option<ValueId>>| match core {
        true => cx.add(op, inputs),
        false => cells::unrolled(cx, cell, direction, hidden, &functions, &inputs),
    };
    let mut inputs = cx.inputs_to(inputs);
    if !cx.flag("layout", false) {
        return add(cx, inputs);
    }
    // X, the initial state and the initial cell.
    for slot in [0, 5, 6] {
        if let Some(Some(value)) = inputs.get_mut(slot) {
            *value = swapped(cx, *value)?;
        }
    }
    let outputs = add(cx, inputs)?;
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
