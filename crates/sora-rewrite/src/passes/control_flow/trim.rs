//! Drops what bodies take and give in vain.

use sora_ir::{Graph, Op, ValueId};
use sora_tensor::{Bool, Tensor};

use super::Outcome;
use super::parts::{Parts, Source, needed, rebuilt};

/// Elements of constants that are copied into bodies: scalars, shapes and axes, not weights.
const SMALL: usize = 64;

/// Leaves out carried values that do not change or that nothing needs, outputs that nobody reads, captures that are
/// not used or come twice; makes small constants part of the bodies, as the condition, which is known inside. Gives what
/// becomes of each output, and what was done; `None` when there is nothing to do.
pub(super) fn trim(graph: &Graph, parts: &mut Parts, read: &[bool]) -> Option<(Vec<Outcome>, String)> {
    let (carried, first, given) = (parts.carried, parts.first_input, parts.first_output);
    let value = |body: &Graph, output: usize| body.outputs().get(output).map(|o| o.value);
    let initial = |k: usize| parts.leading.get(first + k).copied().flatten();
    let unchanged: Vec<bool> = (0..carried)
        .map(|k| {
            let Some((body, after)) = parts.bodies.first().and_then(|b| Some((b, value(b, given + k)?)))
            else {
                return false;
            };
            let constant = body.const_value(after);
            body.inputs().get(first + k) == Some(&after)
                || constant.is_some() && constant == initial(k).and_then(|v| graph.const_value(v))
        })
        .collect();
    // What every branch passes through from outside.
    let passed = |output: usize| -> Option<ValueId> {
        if !matches!(parts.op, Op::If(_)) {
            return None;
        }
        let outer = parts.bodies.iter().map(|body| {
            let after = value(body, output)?;
            let position = body.inputs().iter().position(|&input| input == after)?;
            parts.captures.get(position).copied()
        });
        let mut outer = outer.collect::<Option<Vec<_>>>()?.into_iter();
        let one = outer.next()?;
        outer.all(|other| other == one).then_some(one)
    };

    let outputs = parts.bodies.first()?.outputs().len();
    let mut kept: Vec<bool> = (0..outputs)
        .map(|output| match output.checked_sub(given) {
            None => true,
            Some(k) => {
                read.get(k).copied().unwrap_or(false)
                    && !unchanged.get(k).copied().unwrap_or(false)
                    && passed(output).is_none()
            }
        })
        .collect();
    let used = |kept: &[bool]| {
        let outputs = || kept.iter().enumerate().filter(|(_, kept)| **kept).map(|(i, _)| i);
        let mut used = vec![false; parts.formals + parts.captures.len()];
        for body in &parts.bodies {
            let needed = needed(body, outputs());
            used.iter_mut().zip(body.inputs()).for_each(|(used, id)| *used |= needed.contains(id));
        }
        used
    };
    let used = loop {
        let used = used(&kept);
        let more = (0..carried).find(|&k| used[first + k] && !unchanged[k] && !kept[given + k]);
        match more {
            Some(k) => kept[given + k] = true,
            None => break used,
        }
    };

    let mut outcomes = Vec::new();
    let mut position = 0;
    for (output, &kept) in kept.iter().enumerate().skip(given) {
        let k = output - given;
        let constant = unchanged.get(k).copied().unwrap_or(false);
        outcomes.push(match (kept, passed(output)) {
            (true, _) => {
                position += 1;
                Outcome::New(position - 1)
            }
            (false, Some(value)) => Outcome::Old(value),
            (false, None) if constant => Outcome::Old(initial(k)?),
            (false, None) => Outcome::Dead,
        });
    }
    if position == 0 {
        // All of it goes; a loop that never ends is not one that does.
        return None;
    }

    let is_if = matches!(parts.op, Op::If(_));
    let sequences = first + carried..parts.formals;
    let mut captures: Vec<ValueId> = Vec::new();
    let mut capture = |value: ValueId| {
        if !captures.contains(&value) {
            captures.push(value);
        }
        Source::Capture(value)
    };
    let (mut leading, mut dropped) = (Vec::new(), Vec::new());
    let mut sources = Vec::new();
    if is_if {
        leading.clone_from(&parts.leading);
    }
    for (index, &used) in used.iter().enumerate().take(parts.formals) {
        let operand = parts.leading.get(index).copied().flatten();
        let state = index.checked_sub(first).filter(|&k| k < carried);
        let source = match state {
            Some(k) if unchanged[k] && !used => Source::Unused,
            Some(k) if unchanged[k] => capture(operand?),
            Some(k) if !kept[given + k] => Source::Unused,
            // Inside of a loop the condition holds.
            None if matches!(parts.op, Op::Loop(_)) && index == 1 && used => {
                let id = parts.bodies.first()?.inputs().get(1).copied()?;
                let rank = parts.bodies.first()?.ty(id).rank();
                Source::Known(Tensor::scalar(Bool::from(true)).reshape(&vec![1; rank]).ok()?)
            }
            None if sequences.contains(&index) && index > sequences.start && !used => Source::Unused,
            _ => Source::Formal,
        };
        match source {
            Source::Formal | Source::Known(_) => leading.push(operand),
            _ => dropped.push(index),
        }
        sources.push(source);
    }
    for (index, &value) in parts.captures.iter().enumerate() {
        let constant = graph.const_value(value).filter(|t| t.len() <= SMALL);
        sources.push(match (used[parts.formals + index], constant) {
            (false, _) => Source::Unused,
            (true, Some(tensor)) => Source::Const(tensor.clone()),
            // A branch knows the condition.
            (true, None) if is_if && parts.leading.first() == Some(&Some(value)) => {
                Source::Known(Tensor::scalar(0f32))
            }
            (true, None) => capture(value),
        });
    }
    let flags = sources.iter().filter(|s| matches!(s, Source::Known(_))).count();
    let removed =
        parts.formals + parts.captures.len() - (leading.len() - usize::from(is_if)) - captures.len();
    let gone = kept.iter().filter(|kept| !**kept).count();
    let known = if is_if { 0 } else { flags };
    if removed + gone + known == 0 {
        return None;
    }
    let outputs: Vec<usize> = kept.iter().enumerate().filter(|(_, kept)| **kept).map(|(i, _)| i).collect();
    let mut bodies = Vec::new();
    for (number, body) in parts.bodies.iter().enumerate() {
        let mut own = sources.clone();
        if is_if {
            for (source, &id) in own.iter_mut().zip(body.inputs()) {
                if let Source::Known(_) = source {
                    let flag = Tensor::scalar(Bool::from(number == 0));
                    *source = Source::Const(flag.reshape(&vec![1; body.ty(id).rank()]).ok()?);
                }
            }
        }
        bodies.push(rebuilt(body, &own, &captures, &outputs).ok()?);
    }
    if let Op::Scan(scan) = &mut parts.op {
        let keep = |index: usize| !dropped.contains(&(carried + index));
        let stays = |index: usize| kept[carried + index];
        scan.input_axes = filtered(&scan.input_axes, keep);
        scan.input_reverse = filtered(&scan.input_reverse, keep);
        scan.output_axes = filtered(&scan.output_axes, stays);
        scan.output_reverse = filtered(&scan.output_reverse, stays);
    }
    parts.carried = (0..carried).filter(|&k| kept[given + k]).count();
    parts.formals = if is_if { 0 } else { leading.len() };
    (parts.leading, parts.captures, parts.bodies) = (leading, captures, bodies);
    Some((outcomes, format!("{removed} inputs and {gone} outputs of its body are not needed")))
}

fn filtered<T: Clone>(list: &[T], keep: impl Fn(usize) -> bool) -> Vec<T> {
    list.iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, v)| v.clone()).collect()
}
