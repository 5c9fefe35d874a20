//! Sequences and optional values. A graph has tensors only: what these operators do is resolved while the file is read.

use sora_ir::ops::{
    Binary, BinaryKind, Concat, Gather, Reshape, Scan, Shape, Slice, Split, Squeeze, Unsqueeze,
};
use sora_ir::{TensorType, ValueId};
use sora_tensor::{Bool, Tensor};

use super::body::{Capture, values_of};
use super::node::{BuiltSlots, NodeCx, size};
use super::rows::{Row, onnx_slots};
use super::slot::Slot;
use crate::error::Refusal;
use crate::proto::GraphProto;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[
    onnx_slots("ConcatFromSequence", concat),
    onnx_slots("Identity", |cx| Ok(vec![cx.slot(0)?])),
    onnx_slots("Optional", |cx| Ok(vec![cx.slots.first().cloned().unwrap_or(Slot::Absent)])),
    onnx_slots("OptionalGetElement", |cx| Ok(vec![cx.slot(0)?])),
    onnx_slots("OptionalHasElement", |cx| {
        let there = !matches!(cx.slots.first(), None | Some(Slot::Absent));
        Ok(vec![Slot::Value(cx.make("there", Tensor::scalar(Bool::from(there))))])
    }),
    onnx_slots("SequenceAt", at),
    onnx_slots("SequenceConstruct", |cx| Ok(vec![Slot::List(cx.all_inputs()?)])),
    onnx_slots("SequenceEmpty", |_| Ok(vec![Slot::List(Vec::new())])),
    onnx_slots("SequenceErase", erase),
    onnx_slots("SequenceInsert", insert),
    onnx_slots("SequenceLength", length),
    onnx_slots("SequenceMap", map),
    onnx_slots("SplitToSequence", split),
];

/// Sequences.
impl NodeCx<'_> {
    /// What an input is, which must be there.
    fn slot(&self, index: usize) -> Result<Slot, Refusal> {
        match self.slots.get(index) {
            None | Some(Slot::Absent | Slot::Poisoned) => {
                Err(Refusal::new(format!("its input {index} is missing or absent")))
            }
            Some(slot) => Ok(slot.clone()),
        }
    }

    /// An input that is a sequence.
    fn sequence(&self, index: usize) -> Result<Slot, Refusal> {
        match self.slot(index)? {
            slot @ (Slot::List(_) | Slot::Stack(_)) => Ok(slot),
            other => Err(Refusal::new(format!("its input {index} is {}, not a sequence", other.describe()))),
        }
    }

    /// Whether tensors have one shape, so that they can be one tensor.
    pub(super) fn stackable(&self, list: &[ValueId]) -> bool {
        list.iter().zip(list.iter().skip(1)).all(|(&a, &b)| self.ty(a) == self.ty(b))
    }

    /// Tensors of one shape along a new first axis.
    pub(super) fn stack(&mut self, list: &[ValueId]) -> Result<ValueId, Refusal> {
        if list.is_empty() {
            return Err(Refusal::new("an empty sequence has no type"));
        }
        let mut parts = Vec::new();
        for &value in list {
            parts.push(self.step("element", Unsqueeze { axes: vec![0] }, [value])?);
        }
        self.step("stack", Concat { axis: 0 }, parts)
    }

    /// A sequence as one tensor, along a new first axis.
    pub(super) fn stacked(&mut self, slot: &Slot) -> Result<ValueId, Refusal> {
        match slot {
            Slot::Stack(value) => Ok(*value),
            Slot::List(list) if self.stackable(list) => self.stack(list),
            _ => Err(Refusal::new(
                "the position is computed while the model runs, and the elements differ in shape",
            )
            .hint("fix the input that the position depends on")),
        }
    }

    /// The position that an input gives, if it is known: one integer.
    fn position(&self, index: usize) -> Option<i64> {
        match self.known_ints(self.opt(index)?).as_deref() {
            Some(&[position]) => Some(position),
            _ => None,
        }
    }
}

/// A position in a list of `length`, counted from the end when negative; `last` is the greatest one allowed.
fn resolve(position: i64, length: usize, last: usize) -> Result<usize, Refusal> {
    let resolved = if position < 0 { position.saturating_add(signed(length)) } else { position };
    let inside = usize::try_from(resolved).ok().filter(|&at| at <= last);
    inside.ok_or_else(|| Refusal::new(format!("position {position} is outside of a sequence of {length}")))
}

const COMPUTED: &str = "the position is computed while the model runs";
const FIX: &str = "fix the input that the position depends on";

fn at(cx: &mut NodeCx) -> BuiltSlots {
    let sequence = cx.sequence(0)?;
    let index = cx.input(1)?;
    if let (Slot::List(list), Some(position)) = (&sequence, cx.position(1)) {
        let last = list.len().checked_sub(1).ok_or_else(|| Refusal::new("the sequence is empty"))?;
        let found = list.get(resolve(position, list.len(), last)?);
        return Ok(found.map(|&value| Slot::Value(value)).into_iter().collect());
    }
    let stack = cx.stacked(&sequence)?;
    let index = if cx.rank(index) == 0 { index } else { cx.reshape(index, &[])? };
    Ok(vec![Slot::Value(cx.op(Gather { axis: 0 }, [stack, index])?)])
}

fn insert(cx: &mut NodeCx) -> BuiltSlots {
    let (sequence, value) = (cx.sequence(0)?, cx.input(1)?);
    let at_end = cx.opt(2).is_none();
    match (sequence, cx.position(2)) {
        (Slot::List(mut list), position) if at_end || position.is_some() => {
            let length = list.len();
            list.insert(position.map_or(Ok(length), |position| resolve(position, length, length))?, value);
            Ok(vec![Slot::List(list)])
        }
        (Slot::Stack(stack), position) if at_end || position == Some(0) => {
            let element = cx.step("element", Unsqueeze { axes: vec![0] }, [value])?;
            let parts = if at_end { [stack, element] } else { [element, stack] };
            Ok(vec![Slot::Stack(cx.op(Concat { axis: 0 }, parts)?)])
        }
        _ => Err(Refusal::new(COMPUTED).hint(FIX)),
    }
}

fn erase(cx: &mut NodeCx) -> BuiltSlots {
    let sequence = cx.sequence(0)?;
    let position = if cx.opt(1).is_none() { Some(-1) } else { cx.position(1) };
    match (sequence, position) {
        (Slot::List(mut list), Some(position)) => {
            let last = list.len().checked_sub(1).ok_or_else(|| Refusal::new("the sequence is empty"))?;
            list.remove(resolve(position, list.len(), last)?);
            Ok(vec![Slot::List(list)])
        }
        (Slot::Stack(stack), Some(position @ (0 | -1))) => {
            let bounds = if position == 0 { [1, i64::MAX] } else { [0, -1] };
            let [start, end, axis] = [bounds[0], bounds[1], 0].map(|v| cx.make_ints("bound", &[v]));
            Ok(vec![Slot::Stack(cx.op(Slice {}, [stack, start, end, axis])?)])
        }
        _ => Err(Refusal::new(COMPUTED).hint(FIX)),
    }
}

fn length(cx: &mut NodeCx) -> BuiltSlots {
    let length = match cx.sequence(0)? {
        Slot::Stack(stack) => {
            let shape = cx.step("shape", Shape { start: 0, end: Some(1) }, [stack])?;
            cx.op(Squeeze { axes: vec![0] }, [shape])?
        }
        list => cx.make("length", Tensor::scalar(signed(list.values().len()))),
    };
    Ok(vec![Slot::Value(length)])
}

fn concat(cx: &mut NodeCx) -> BuiltSlots {
    let new_axis = cx.flag("new_axis", false);
    let axis = cx.attribute("axis").ok_or_else(|| Refusal::new("its axis is missing"))?.i.unwrap_or(0);
    let joined = match cx.sequence(0)? {
        Slot::Stack(stack) => {
            let inner = cx.rank(stack) - usize::from(!new_axis);
            let axis = sora_ir::resolve_axis(axis, inner).map_err(|e| Refusal::new(e.0))?;
            let mut perm: Vec<usize> = (1..cx.rank(stack)).collect();
            perm.insert(axis, 0);
            let moved = cx.transpose(stack, &perm)?;
            if new_axis { moved } else { merge(cx, moved, axis)? }
        }
        list => {
            let mut parts = list.values().to_vec();
            if parts.is_empty() {
                return Err(Refusal::new("an empty sequence has no type"));
            }
            if new_axis {
                for part in &mut parts {
                    *part = cx.step("element", Unsqueeze { axes: vec![axis] }, [*part])?;
                }
            }
            cx.op(Concat { axis }, parts)?
        }
    };
    Ok(vec![Slot::Value(joined)])
}

/// The tensor with axis `axis` and the one behind it as one.
fn merge(cx: &mut NodeCx, x: ValueId, axis: usize) -> Result<ValueId, Refusal> {
    let at = signed(axis);
    let mut extents = |start: i64, end: Option<i64>| cx.step("shape", Shape { start, end }, [x]);
    let parts = [
        extents(0, Some(at))?,
        extents(at, Some(at + 1))?,
        extents(at + 1, Some(at + 2))?,
        extents(at + 2, None)?,
    ];
    let [before, outer, inner, after] = parts;
    let product = cx.step("product", Binary { kind: BinaryKind::Mul }, [outer, inner])?;
    let shape = cx.step("shape", Concat { axis: 0 }, [before, product, after])?;
    cx.op(Reshape { allow_zero: true }, [x, shape])
}

fn split(cx: &mut NodeCx) -> BuiltSlots {
    let x = cx.input(0)?;
    let axis = cx.axis(cx.int("axis", 0), x)?;
    let extent = cx.ty(x).shape.get(axis).and_then(sora_ir::Dim::known);
    let keep = cx.flag("keepdims", true) || cx.opt(1).is_some();
    let sizes = match (cx.opt(1), extent) {
        (None, Some(extent)) => vec![1; extent],
        // Parts of extent 1, whatever their number.
        (None, None) => {
            let mut perm: Vec<usize> = (0..cx.rank(x)).collect();
            perm.remove(axis);
            perm.insert(0, axis);
            let stack = cx.transpose(x, &perm)?;
            let axes = vec![signed(axis + 1)];
            let stack = if keep { cx.step("keep", Unsqueeze { axes }, [stack])? } else { stack };
            return Ok(vec![Slot::Stack(stack)]);
        }
        (Some(split), extent) => {
            let known = cx.known_ints(split).ok_or_else(|| {
                Refusal::new("the sizes of the parts are computed while the model runs")
                    .hint("fix the input that they depend on")
            })?;
            match (cx.rank(split), known.as_slice(), extent) {
                (0, &[part], Some(extent)) if part > 0 => {
                    let part = size(part, "split")?;
                    let full = vec![part; extent / part];
                    let rest = (extent % part > 0).then_some(extent % part);
                    full.into_iter().chain(rest).collect()
                }
                (0, ..) => {
                    return Err(Refusal::new("the number of parts is not known")
                        .hint("export the model with a known extent of the axis that is split"));
                }
                (_, sizes, _) => sizes.iter().map(|&v| size(v, "split")).collect::<Result<Vec<_>, _>>()?,
            }
        }
    };
    if sizes.is_empty() {
        return Ok(vec![Slot::List(Vec::new())]);
    }
    let mut parts = cx.add(Split { axis: signed(axis), outputs: sizes.len(), sizes }, [x])?;
    if !keep {
        for part in &mut parts {
            *part = cx.step("squeeze", Squeeze { axes: vec![signed(axis)] }, [*part])?;
        }
    }
    Ok(vec![Slot::List(parts)])
}

/// The body on each element in turn: once for each of a known number, or a Scan without states.
fn map(cx: &mut NodeCx) -> BuiltSlots {
    let body = cx.body("body")?;
    let captures = body.free_in(cx);
    let first = cx.sequence(0)?;
    let names: Vec<String> = body.proto.input.iter().map(|info| info.name.clone()).collect();
    if names.len() != cx.slots.len() {
        let why = format!("its body has {} inputs, for {}", names.len(), cx.slots.len());
        return Err(Refusal::new(why));
    }
    let all_lists = !cx.slots.iter().any(|slot| matches!(slot, Slot::Stack(_)));
    let mut outputs = vec![Vec::new(); body.proto.output.len()];
    if all_lists {
        for i in 0..first.values().len() {
            let left = cx.budget.checked_sub(body.size() + 1);
            *cx.budget =
                left.ok_or_else(|| Refusal::new("its body has too many nodes for so many elements"))?;
            let mut given = captures.clone();
            for (name, slot) in names.iter().zip(&cx.slots) {
                let slot = match slot {
                    Slot::List(list) => list.get(i).map(|&value| Slot::Value(value)),
                    other => Some(other.clone()),
                };
                let slot = slot.ok_or_else(|| Refusal::new("its sequences differ in length"))?;
                given.push(Capture { name: name.clone(), slot });
            }
            let results = cx.inline("body", &body, &given)?;
            outputs.iter_mut().zip(results).for_each(|(list, slot)| list.extend_from_slice(slot.values()));
        }
        return Ok(outputs.into_iter().map(Slot::List).collect());
    }
    let (mut sequences, mut formals, mut given) = (Vec::new(), Vec::new(), captures);
    let mut proto = GraphProto { input: Vec::new(), ..body.proto.clone() };
    for (slot, info) in cx.slots.clone().iter().zip(&body.proto.input) {
        if let Slot::Value(_) = slot {
            given.push(Capture { name: info.name.clone(), slot: slot.clone() });
            continue;
        }
        let stack = cx.stacked(slot)?;
        let TensorType { dtype, shape } = cx.ty(stack).clone();
        formals.push(TensorType { dtype, shape: shape.into_iter().skip(1).collect() });
        sequences.push(stack);
        proto.input.push(info.clone());
    }
    let body = cx.subgraph("body", &proto, &formals, &given)?;
    let (inputs, count) = (sequences.len(), outputs.len());
    let op = Scan {
        body,
        states: 0,
        input_axes: vec![0; inputs],
        input_reverse: vec![false; inputs],
        output_axes: vec![0; count],
        output_reverse: vec![false; count],
    };
    let stacks = cx.add(op, sequences.into_iter().chain(values_of(&given)).collect::<Vec<_>>())?;
    Ok(stacks.into_iter().map(Slot::Stack).collect())
}
