//! Control flow: operators with graphs inside. What carries sequences or optional values is unrolled while it is read,
//! or becomes a loop over tensors.

use std::collections::BTreeSet;

use sora_ir::ops::{Concat, If, Loop, Scan};
use sora_ir::{Graph, Subgraph, TensorType, ValueId};
use sora_tensor::{Bool, DType, Tensor};

use super::body::{Body, Capture, captured, values_of};
use super::node::{Built, BuiltSlots, NodeCx};
use super::rows::{Row, onnx_slots};
use super::slot::Slot;
use crate::error::Refusal;
use crate::proto::NodeProto;

pub(super) const ROWS: &[Row] = &[onnx_slots("If", if_), onnx_slots("Loop", loop_), onnx_slots("Scan", scan)];

/// Only the branch that is taken needs to be importable when the condition is known.
fn if_(cx: &mut NodeCx) -> BuiltSlots {
    let condition = cx.input(0)?;
    let (a, b) = (cx.body("then_branch")?, cx.body("else_branch")?);
    let taken = match cx.known_flag(condition) {
        Some(value) => Some(if value { "then_branch" } else { "else_branch" }),
        None => conditional_squeeze(&a, &b),
    };
    if let Some(name) = taken {
        let branch = cx.body(name)?;
        let captures = branch.free_in(cx);
        return cx.inline(name, &branch, &captures);
    }
    let mut captures = a.free_in(cx);
    captures.extend(b.free_in(cx).into_iter().filter(|c| !a.free.contains(&c.name)));
    // Both are read before either is refused: all problems belong into one list.
    let both = [("then_branch", &a), ("else_branch", &b)];
    let [one, other] = both.map(|(name, body)| cx.graph_of(name, &body.proto, &[], &captures));
    let ((then_branch, outputs), (else_branch, others)) = (one?, other?);
    let mut pairs = outputs.iter().zip(&others);
    if let Some((one, other)) = pairs.find(|(one, other)| !one.same_form(other)) {
        let (one, other) = (one.describe(), other.describe());
        let why = format!("an output is {one} in one branch and {other} in the other");
        return Err(Refusal::new(why).hint("fix the input that the condition depends on"));
    }
    let body = |graph: Graph| Subgraph::new(graph).map_err(|e| Refusal::new(e.0));
    let op = If { then_branch: body(then_branch)?, else_branch: body(else_branch)? };
    let inputs = std::iter::once(condition).chain(values_of(&captures));
    let mut values = cx.add(op, inputs.collect::<Vec<_>>())?.into_iter();
    Ok(outputs.iter().map(|slot| slot.with(&mut values)).collect())
}

/// The branch of `if extent == 1 { Squeeze } else { Identity }`, which exporters write for a squeeze of an open extent.
/// Its result would have one rank or another, so that nothing could follow; the squeeze alone refuses other extents.
fn conditional_squeeze(then_branch: &Body, else_branch: &Body) -> Option<&'static str> {
    let operators = |body: &Body| {
        let nodes = body.proto.node.iter().filter(|node| node.op_type != "Constant");
        nodes.map(|node| (node.op_type.clone(), node.input.first().cloned())).collect::<Vec<_>>()
    };
    let (then_nodes, else_nodes) = (operators(then_branch), operators(else_branch));
    let ([(a, from)], [(b, other)]) = (&then_nodes[..], &else_nodes[..]) else { return None };
    match (a.as_str(), b.as_str()) {
        _ if from != other => None,
        ("Squeeze", "Identity") => Some("then_branch"),
        ("Identity", "Squeeze") => Some("else_branch"),
        _ => None,
    }
}

fn loop_(cx: &mut NodeCx) -> BuiltSlots {
    let body = cx.body("body")?;
    let initial: Vec<Slot> = cx.slots.iter().skip(2).cloned().collect();
    if body.proto.input.len() != initial.len() + 2 || body.proto.output.len() <= initial.len() {
        let (takes, gives) = (body.proto.input.len(), body.proto.output.len());
        let why = format!("its body has {takes} inputs and {gives} outputs, for {} values", initial.len());
        return Err(Refusal::new(why));
    }
    let captures = body.free_in(cx);
    let tensors = initial.iter().all(|slot| matches!(slot, Slot::Value(_)));
    let uneven = |slot: &Slot| matches!(slot, Slot::List(list) if !cx.stackable(list));
    if (!tensors || captures.iter().any(|c| uneven(&c.slot)))
        && let Some(slots) = unroll(cx, &body, &initial, &captures)?
    {
        return Ok(slots);
    }
    if !tensors {
        return append(cx, body, &initial);
    }
    let initial = initial.iter().flat_map(Slot::values).copied().collect();
    Ok(run_loop(cx, &body, initial, &captures)?.into_iter().map(Slot::Value).collect())
}

/// A loop whose carried values are tensors.
fn run_loop(cx: &mut NodeCx, body: &Body, initial: Vec<ValueId>, captures: &[Capture]) -> Built {
    let scalar = |dtype| TensorType::new(dtype, [0usize; 0]);
    let mut formals = vec![scalar(DType::I64), scalar(DType::Bool)];
    formals.extend(initial.iter().map(|&v| cx.vague(v)));
    let carried = initial.len();
    let body = cx.subgraph("body", &body.proto, &formals, captures)?;
    let inputs = [cx.opt(0), cx.opt(1)].into_iter().chain(initial.into_iter().map(Some));
    let inputs = inputs.chain(values_of(captures).into_iter().map(Some));
    cx.add(Loop { body, carried }, inputs.collect::<Vec<_>>())
}

/// The iterations one after the other, where their number is known, and small enough; `None` otherwise.
fn unroll(
    cx: &mut NodeCx,
    body: &Body,
    initial: &[Slot],
    captures: &[Capture],
) -> Result<Option<Vec<Slot>>, Refusal> {
    let trips = match cx.opt(0).map(|trips| cx.known_ints(trips)) {
        None => i64::MAX,
        Some(known) => match known.as_deref() {
            Some(&[trips]) => trips,
            _ => return Ok(None),
        },
    };
    let Some(mut go_on) = cx.opt(1).map_or(Some(true), |begin| cx.known_flag(begin)) else {
        return Ok(None);
    };
    let mut carried = initial.to_vec();
    let mut stacks = vec![Vec::new(); body.proto.output.len() - 1 - carried.len()];
    let mut trip = 0;
    while go_on && trip < trips {
        let Some(left) = cx.budget.checked_sub(body.size() + 1) else { return Ok(None) };
        *cx.budget = left;
        let iteration = formal(cx, body, 0, Tensor::scalar(trip))?;
        let condition = formal(cx, body, 1, Tensor::scalar(Bool::from(true)))?;
        let names = body.proto.input.iter().map(|info| info.name.clone());
        let given = [iteration, condition].into_iter().chain(std::mem::take(&mut carried));
        let given = names.zip(given).map(|(name, slot)| Capture { name, slot });
        let given: Vec<Capture> = captures.iter().cloned().chain(given).collect();
        let mut outputs = cx.inline("body", body, &given)?.into_iter();
        match outputs.next() {
            Some(Slot::Value(condition)) => match cx.known_flag(condition) {
                Some(flag) => go_on = flag,
                None => return Ok(None),
            },
            _ => return Err(Refusal::new("its body gives no condition")),
        }
        carried = outputs.by_ref().take(initial.len()).collect();
        stacks.iter_mut().zip(outputs).for_each(|(stack, slot)| stack.extend_from_slice(slot.values()));
        trip += 1;
    }
    if trip == 0 && !stacks.is_empty() {
        return Ok(None);
    }
    for stack in stacks {
        let stack = cx.stack(&stack)?;
        carried.push(Slot::Value(stack));
    }
    Ok(Some(carried))
}

/// A formal input of a body that is known, in the rank that the body declares.
fn formal(cx: &mut NodeCx, body: &Body, index: usize, scalar: Tensor) -> Result<Slot, Refusal> {
    let ty = body.proto.input.get(index).and_then(|info| info.r#type.as_ref()?.tensor_type.as_ref());
    let rank = ty.and_then(|ty| ty.shape.as_ref()).map_or(0, |shape| shape.dim.len());
    let tensor = scalar.reshape(&vec![1; rank]).map_err(|e| Refusal::new(e.to_string()))?;
    Ok(Slot::Value(cx.make("formal", tensor)))
}

/// A loop that runs for an unknown time and appends to sequences, or passes them on as they are: what it appends is
/// stacked.
fn append(cx: &mut NodeCx, mut body: Body, initial: &[Slot]) -> BuiltSlots {
    let formals = body.proto.input.split_off(2);
    let stacks = body.proto.output.split_off(1 + initial.len());
    let results = body.proto.output.split_off(1);
    let (mut tensors, mut given, mut appended) = (Vec::new(), Vec::new(), Vec::new());
    for ((slot, formal), result) in initial.iter().zip(formals).zip(results) {
        if let Slot::Value(value) = slot {
            tensors.push(*value);
            body.proto.input.push(formal);
            body.proto.output.push(result);
            continue;
        }
        match carried_sequence(&mut body.proto.node, &formal.name, &result.name) {
            Some(true) if !matches!(slot, Slot::Absent) => appended.push(Some(result)),
            Some(false) => appended.push(None),
            _ => {
                let why = format!("its body changes the sequence `{}` by more than appending", formal.name);
                return Err(Refusal::new(why).hint("fix the input that the number of iterations depends on"));
            }
        }
        given.push(Capture { name: formal.name, slot: slot.clone() });
    }
    let (carried, plain) = (tensors.len(), tensors.len() + stacks.len());
    body.proto.output.extend(stacks.into_iter().chain(appended.iter().flatten().cloned()));
    given.extend(body.free_in(cx));
    let mut known = BTreeSet::new();
    for &value in tensors.iter().chain(&values_of(&given)) {
        cx.ty(value).shape.iter().for_each(|dim| dim.symbols(&mut known));
    }
    let results = run_loop(cx, &body, tensors, &given)?;
    let mut tensors = results.iter().take(carried);
    let (mut kinds, mut stacks) = (appended.iter(), results.iter().skip(plain));
    let mut slots = Vec::new();
    for slot in initial {
        let appends = !matches!(slot, Slot::Value(_)) && kinds.next().is_some_and(Option::is_some);
        let result = match slot {
            Slot::Value(_) => tensors.next(),
            _ if appends => stacks.next(),
            _ => {
                slots.push(slot.clone());
                continue;
            }
        };
        let &result = result.ok_or_else(|| Refusal::new("its body has too few outputs"))?;
        slots.push(match slot {
            Slot::Value(_) => Slot::Value(result),
            before => appended_to(cx, before, result, &known)?,
        });
    }
    slots.extend(results.iter().take(plain).skip(carried).copied().map(Slot::Value));
    Ok(slots)
}

/// A sequence with the tensors of a stack, whose shape is in symbols that are `known` before the loop, behind it.
fn appended_to(
    cx: &mut NodeCx,
    before: &Slot,
    stack: ValueId,
    known: &BTreeSet<String>,
) -> Result<Slot, Refusal> {
    let mut used = BTreeSet::new();
    cx.ty(stack).shape.iter().skip(1).for_each(|dim| dim.symbols(&mut used));
    if !used.is_subset(known) {
        let why = "the tensors that its body appends to a sequence may differ in shape between iterations";
        return Err(Refusal::new(why).hint("fix the input that the number of iterations depends on"));
    }
    match before {
        Slot::List(list) if list.is_empty() => Ok(Slot::Stack(stack)),
        before => {
            let before = cx.stacked(before)?;
            Ok(Slot::Stack(cx.step("append", Concat { axis: 0 }, [before, stack])?))
        }
    }
}

/// What a body does with a sequence: `Some(true)` when it appends one tensor and does nothing else, in which case the
/// sequence is replaced by that tensor, under the output's name; `Some(false)` when it leaves it as it is.
fn carried_sequence(nodes: &mut [NodeProto], input: &str, output: &str) -> Option<bool> {
    let reads = |node: &NodeProto, name: &str| {
        node.input.iter().filter(|i| *i == name).count() + usize::from(captured(node).contains(name))
    };
    let mut source = output.to_owned();
    while let Some(node) = nodes.iter().find(|n| n.op_type == "Identity" && n.output.contains(&source)) {
        source.clone_from(node.input.first()?);
    }
    if source == input {
        return Some(false);
    }
    let alone = nodes.iter().map(|n| reads(n, input)).sum::<usize>() == 1
        && nodes.iter().all(|n| reads(n, output) == 0);
    let insert =
        nodes.iter_mut().find(|n| n.op_type == "SequenceInsert" && n.output.iter().any(|o| o == output))?;
    let at_end = insert.input.get(2).is_none_or(String::is_empty);
    match insert.input.as_slice() {
        [sequence, tensor, ..] if sequence == input && alone && at_end => {
            let tensor = tensor.clone();
            insert.op_type = "Identity".to_owned();
            insert.input = vec![tensor];
            Some(true)
        }
        _ => None,
    }
}

/// What a Scan of any version says of its sequences.
struct Sequences {
    states: usize,
    input_axes: Vec<i64>,
    input_reverse: Vec<bool>,
    output_axes: Vec<i64>,
    output_reverse: Vec<bool>,
}

impl Sequences {
    fn of(cx: &NodeCx, inputs: usize, body: &Body) -> Result<Sequences, Refusal> {
        let sequences = usize::try_from(cx.int("num_scan_inputs", 0)).unwrap_or(0);
        let Some(states) = inputs.checked_sub(sequences) else {
            return Err(Refusal::new(format!("num_scan_inputs is {sequences}, of {inputs} inputs")));
        };
        let Some(outputs) = body.proto.output.len().checked_sub(states) else {
            let why = format!("its body has {} outputs for {states} states", body.proto.output.len());
            return Err(Refusal::new(why));
        };
        let numbers = |name: &str, count: usize| match cx.ints(name) {
            None => Ok(vec![0; count]),
            Some(values) if values.len() == count => Ok(values.to_vec()),
            Some(values) => Err(Refusal::new(format!("{name} lists {} values, not {count}", values.len()))),
        };
        let flags =
            |name, count| Ok::<_, Refusal>(numbers(name, count)?.into_iter().map(|v| v != 0).collect());
        // Version 8 had one list of directions, for the inputs.
        let directions = if cx.opset < 9 { "directions" } else { "scan_input_directions" };
        Ok(Sequences {
            states,
            input_axes: numbers("scan_input_axes", sequences)?,
            input_reverse: flags(directions, sequences)?,
            output_axes: numbers("scan_output_axes", outputs)?,
            output_reverse: flags("scan_output_directions", outputs)?,
        })
    }

    fn scan(self, body: Subgraph) -> Scan {
        let Sequences { states, input_axes, input_reverse, output_axes, output_reverse } = self;
        Scan { body, states, input_axes, input_reverse, output_axes, output_reverse }
    }
}

fn scan(cx: &mut NodeCx) -> BuiltSlots {
    let body = cx.body("body")?;
    let captures = body.free_in(cx);
    let values = match cx.opset < 9 {
        true => scan_batches(cx, &body, &captures)?,
        false => {
            let inputs = cx.all_inputs()?;
            let sequences = Sequences::of(cx, inputs.len(), &body)?;
            let mut formals = Vec::new();
            for (i, &value) in inputs.iter().enumerate() {
                let states = sequences.states;
                let mut ty = if i < states { cx.vague(value) } else { cx.ty(value).clone() };
                if let Some(&axis) = i.checked_sub(states).and_then(|i| sequences.input_axes.get(i)) {
                    ty.shape.remove(cx.axis(axis, value)?);
                }
                formals.push(ty);
            }
            let op = sequences.scan(cx.subgraph("body", &body.proto, &formals, &captures)?);
            cx.add(op, inputs.into_iter().chain(values_of(&captures)).collect::<Vec<_>>())?
        }
    };
    Ok(values.into_iter().map(Slot::Value).collect())
}

/// Version 8 has a batch in front of everything: a scan over the batch around the scan over the sequences.
fn scan_batches(cx: &mut NodeCx, body: &Body, captures: &[Capture]) -> Built {
    if cx.opt(0).is_some() {
        return Err(Refusal::new("lengths of sequences in Scan of opset 8 are not supported")
            .hint("convert the model to opset 9 or later"));
    }
    let inputs = (1..cx.inputs.len()).map(|i| cx.input(i)).collect::<Result<Vec<_>, _>>()?;
    let sequences = Sequences::of(cx, inputs.len(), body)?;
    let mut graph = Graph::new("batch");
    let (mut formals, mut given) = (Vec::new(), Vec::new());
    for (i, &value) in inputs.iter().enumerate() {
        let mut ty = cx.ty(value).clone();
        let axes = if i < sequences.states { 1 } else { 2 };
        if ty.rank() < axes {
            return Err(Refusal::new(format!("its input {} is {ty}, without a batch of sequences", i + 1)));
        }
        ty.shape.remove(0);
        given.push(graph.input(&format!("x{i}"), ty.clone()));
        if axes == 2 {
            ty.shape.remove(0);
        }
        formals.push(ty);
    }
    for (i, value) in values_of(captures).into_iter().enumerate() {
        given.push(graph.input(&format!("c{i}"), cx.ty(value).clone()));
    }
    let inner = sequences.scan(cx.subgraph("body", &body.proto, &formals, captures)?);
    for (i, value) in graph.add("scan", inner, given)?.into_iter().enumerate() {
        graph.output(&format!("y{i}"), value);
    }
    let outputs = graph.outputs().len();
    let batch = Scan {
        body: Subgraph::new(graph).map_err(|e| Refusal::new(e.0))?,
        states: 0,
        input_axes: vec![0; inputs.len()],
        input_reverse: vec![false; inputs.len()],
        output_axes: vec![0; outputs],
        output_reverse: vec![false; outputs],
    };
    cx.add(batch, inputs.into_iter().chain(values_of(captures)).collect::<Vec<_>>())
}
