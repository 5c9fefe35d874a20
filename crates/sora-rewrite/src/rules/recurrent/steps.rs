//! A loop over the slices of sequences, however it is written: as Scan, or as Loop that counts.

use std::cell::Cell as Counter;
use std::collections::HashMap;

use sora_ir::ops::{Binary, BinaryKind, Cast, Gather, Loop, Scan, Unary, UnaryKind};
use sora_ir::{Dim, Graph, Node, Op, TensorType, ValueId, resolve_axis};
use sora_tensor::{DType, Tensor};

use crate::view::input;
use crate::{Term, View};

/// Nodes of a body that are looked at, at most: cells are small.
const MOST_NODES: usize = 256;

/// Values that are looked at to understand a condition, at most.
const MOST_VISITS: usize = 500;

/// A sequence whose slices a loop reads one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sequence {
    /// The whole.
    pub(super) values: Term,
    /// The axis of the steps.
    pub(super) axis: usize,
    /// Whether the last step comes first.
    pub(super) reverse: bool,
}

/// What a loop carries from step to step.
pub(super) struct State {
    /// In the body, before and after a step.
    pub(super) before: ValueId,
    pub(super) after: ValueId,
    /// Around the body, before the first step and after the last one.
    pub(super) initial: ValueId,
    pub(super) result: ValueId,
}

/// A sequence that a loop writes slice by slice.
pub(super) struct Stack {
    /// In the body, one slice.
    pub(super) slice: ValueId,
    pub(super) axis: usize,
    pub(super) reverse: bool,
    /// Around the body, the whole.
    pub(super) result: ValueId,
}

/// A loop over the slices of sequences.
pub(super) struct Steps<'a> {
    pub(super) view: View<'a>,
    pub(super) body: Graph,
    pub(super) states: Vec<State>,
    pub(super) stacks: Vec<Stack>,
    /// Slices, by what stands for them in the body.
    pub(super) slices: HashMap<ValueId, Sequence>,
    /// Values of the graph around the body, by what stands for them in it.
    captures: HashMap<ValueId, ValueId>,
    /// Values that have been looked at.
    pub(super) visits: Counter<usize>,
}

impl<'a> Steps<'a> {
    /// The steps of a Scan, or of a Loop that takes the slices of a sequence in order until the last one.
    pub(super) fn of(view: &View<'a>, node: &Node) -> Option<Self> {
        match &node.op {
            Op::Scan(op) => Self::of_scan(view, node, op),
            Op::Loop(op) => Self::of_loop(view, node, op),
            _ => None,
        }
    }

    fn new(view: &View<'a>, body: Graph, captures: &[ValueId], formals: usize) -> Option<Self> {
        (body.nodes().count() <= MOST_NODES).then_some(())?;
        let captures = body.inputs().iter().skip(formals).copied().zip(captures.iter().copied()).collect();
        let (states, stacks, slices) = Default::default();
        Some(Steps { view: *view, body, states, stacks, slices, captures, visits: Counter::new(0) })
    }

    fn of_scan(view: &View<'a>, node: &Node, op: &Scan) -> Option<Self> {
        let given: Vec<ValueId> = node.inputs.iter().copied().collect::<Option<_>>()?;
        let (states, rest) = given.split_at_checked(op.states)?;
        let (sequences, captures) = rest.split_at_checked(op.input_axes.len())?;
        let mut types: Vec<_> = states.iter().map(|&v| (view.ty(v).clone(), None)).collect();
        let mut slices = Vec::new();
        for ((&values, &axis), &reverse) in sequences.iter().zip(&op.input_axes).zip(&op.input_reverse) {
            let mut ty = view.ty(values).clone();
            let axis = resolve_axis(axis, ty.rank()).ok()?;
            ty.shape.remove(axis);
            types.push((ty, None));
            slices.push(Sequence { values: values.into(), axis, reverse });
        }
        types.extend(captures.iter().map(|&v| typed(view, v)));
        let body = op.body.typed(&types).ok()?;
        let mut steps = Self::new(view, body, captures, states.len() + sequences.len())?;
        let (inputs, outputs) = (steps.body.inputs().to_vec(), steps.body.outputs().to_vec());
        for (i, &initial) in states.iter().enumerate() {
            let (before, after, result) = (*inputs.get(i)?, outputs.get(i)?.value, *node.outputs.get(i)?);
            steps.states.push(State { before, after, initial, result });
        }
        steps.slices = inputs.into_iter().skip(states.len()).zip(slices).collect();
        for (i, (&axis, &reverse)) in op.output_axes.iter().zip(&op.output_reverse).enumerate() {
            let (slice, result) = (outputs.get(op.states + i)?.value, *node.outputs.get(op.states + i)?);
            let axis = resolve_axis(axis, steps.body.ty(slice).rank() + 1).ok()?;
            steps.stacks.push(Stack { slice, axis, reverse, result });
        }
        Some(steps)
    }

    fn of_loop(view: &View<'a>, node: &Node, op: &Loop) -> Option<Self> {
        let operand = |slot: usize| node.inputs.get(slot).copied().flatten();
        let [all]: [Dim; 1] = view.graph.value(operand(0)?).content.clone()?.try_into().ok()?;
        let given: Vec<ValueId> = (2..node.inputs.len()).map(operand).collect::<Option<_>>()?;
        let (carried, captures) = given.split_at_checked(op.carried)?;
        let mut types = Vec::new();
        for formal in 0..2 {
            types.push((op.body.input_type(formal).ok()?.clone(), None));
        }
        types.extend(carried.iter().map(|&v| (view.ty(v).clone(), None)));
        types.extend(captures.iter().map(|&v| typed(view, v)));
        let body = op.body.typed(&types).ok()?;
        let mut steps = Self::new(view, body, captures, 2 + carried.len())?;
        let (inputs, outputs) = (steps.body.inputs().to_vec(), steps.body.outputs().to_vec());
        let (&number, &flag, condition) = (inputs.first()?, inputs.get(1)?, outputs.first()?.value);
        let mut numbers = vec![number];
        for (i, &initial) in carried.iter().enumerate() {
            let (before, after, result) =
                (*inputs.get(2 + i)?, outputs.get(1 + i)?.value, *node.outputs.get(i)?);
            if steps.counts(before, after) && view.scalar(initial) == Some(0.0) {
                (view.uses.count(result) == 0).then_some(())?;
                numbers.push(before);
            } else {
                (steps.body.ty(before) == steps.body.ty(after)).then_some(())?;
                steps.states.push(State { before, after, initial, result });
            }
        }
        for (i, &result) in node.outputs.iter().enumerate().skip(op.carried) {
            let slice = outputs.get(1 + i)?.value;
            steps.stacks.push(Stack { slice, axis: 0, reverse: false, result });
        }

        let around =
            Count { graph: view.graph, all: &all, fewest: 1, numbers: &[], flag: None, around: None };
        let visits = Counter::new(0);
        let begins = operand(1).is_none_or(|begin| around.holds(begin, &visits));
        let inside = Count {
            graph: &steps.body,
            all: &all,
            fewest: 2,
            numbers: &numbers,
            flag: Some(flag),
            around: Some((&around, &steps.captures)),
        };
        (begins && inside.holds(condition, &visits)).then_some(())?;
        for (_, inner) in steps.body.nodes() {
            let Op::Gather(Gather { axis }) = inner.op else { continue };
            let (Some(x), Some(at), &[slice]) = (input(inner, 0), input(inner, 1), &inner.outputs[..]) else {
                continue;
            };
            let (Some(&values), true) = (steps.captures.get(&x), numbers.contains(&at)) else { continue };
            let ty = view.ty(values);
            let axis = resolve_axis(axis, ty.rank()).ok()?;
            (ty.shape.get(axis) == Some(&all) && steps.body.ty(at).rank() == 0).then_some(())?;
            steps.slices.insert(slice, Sequence { values: values.into(), axis, reverse: false });
        }
        Some(steps)
    }

    /// Whether a carried value grows by one at every step.
    fn counts(&self, before: ValueId, after: ValueId) -> bool {
        let one = |v| self.constant(v).is_some_and(|t| t.len() == 1 && t.to_i64s() == [1]);
        let int = self.body.ty(before).dtype.is_int() && self.body.ty(before).rank() == 0;
        int && self
            .binary(after, BinaryKind::Add)
            .is_some_and(|(a, b)| a == before && one(b) || b == before && one(a))
    }

    /// A constant of the body or of the graph around it.
    pub(super) fn constant(&self, value: ValueId) -> Option<&Tensor> {
        match self.captures.get(&value) {
            Some(&outer) => self.view.constant(outer),
            None => self.body.const_value(value),
        }
    }

    /// The operands of this function of two.
    pub(super) fn binary(&self, value: ValueId, kind: BinaryKind) -> Option<(ValueId, ValueId)> {
        let (_, node, _) = self.body.producer(value)?;
        let fits = matches!(&node.op, Op::Binary(op) if op.kind == kind);
        fits.then_some((input(node, 0)?, input(node, 1)?))
    }

    /// The operand of this function.
    pub(super) fn unary(&self, value: ValueId, kind: UnaryKind) -> Option<ValueId> {
        let (_, node, _) = self.body.producer(value)?;
        matches!(&node.op, Op::Unary(op) if op.kind == kind).then_some(input(node, 0)?)
    }
}

/// The type of a value, and its elements where they are known.
fn typed(view: &View, value: ValueId) -> (TensorType, Option<Vec<Dim>>) {
    (view.ty(value).clone(), view.graph.value(value).content.clone())
}

/// `step · n + all · N + constant`, n the number of the step and N how many there are.
#[derive(Clone, Copy)]
struct Linear {
    step: i64,
    all: i64,
    constant: i64,
}

impl Linear {
    fn plus(self, other: Linear, sign: i64) -> Option<Linear> {
        let sum = |a: i64, b: i64| a.checked_add(b.checked_mul(sign)?);
        Some(Linear {
            step: sum(self.step, other.step)?,
            all: sum(self.all, other.all)?,
            constant: sum(self.constant, other.constant)?,
        })
    }
}

/// What is known about counting in a graph: in the one around a loop that it has `fewest` steps, in its body that another
/// step follows. Counts that are compared as `f32` are taken to be exact, which they are up to 2²⁴.
struct Count<'a> {
    graph: &'a Graph,
    /// How many steps there are.
    all: &'a Dim,
    fewest: i64,
    /// The number of the step.
    numbers: &'a [ValueId],
    /// What is true.
    flag: Option<ValueId>,
    /// The graph around, and its values by what stands for them.
    around: Option<(&'a Count<'a>, &'a HashMap<ValueId, ValueId>)>,
}

impl Count<'_> {
    fn visit(visits: &Counter<usize>) -> Option<()> {
        visits.set(visits.get() + 1);
        (visits.get() < MOST_VISITS).then_some(())
    }

    /// Whether a truth value is true.
    fn holds(&self, value: ValueId, visits: &Counter<usize>) -> bool {
        if Self::visit(visits).is_none() {
            return false;
        }
        if self.flag == Some(value) {
            return true;
        }
        if let Some((around, captures)) = self.around
            && let Some(&outer) = captures.get(&value)
        {
            return around.holds(outer, visits);
        }
        if let Some(known) = self.graph.const_value(value) {
            return known.to_i64s() == [1];
        }
        let Some((_, node, _)) = self.graph.producer(value) else { return false };
        let positive = |low: Option<ValueId>, high: Option<ValueId>, least: i64| {
            let difference = || self.linear(high?, visits)?.plus(self.linear(low?, visits)?, -1);
            difference().and_then(|d| self.least(d)).is_some_and(|value| value >= least)
        };
        let (a, b) = (input(node, 0), input(node, 1));
        match &node.op {
            Op::Unary(Unary { kind: UnaryKind::Identity }) => a.is_some_and(|a| self.holds(a, visits)),
            Op::Binary(Binary { kind }) => match kind {
                BinaryKind::And => [a, b].into_iter().all(|v| v.is_some_and(|v| self.holds(v, visits))),
                BinaryKind::Less => positive(a, b, 1),
                BinaryKind::LessOrEqual => positive(a, b, 0),
                BinaryKind::Greater => positive(b, a, 1),
                BinaryKind::GreaterOrEqual => positive(b, a, 0),
                _ => false,
            },
            _ => false,
        }
    }

    fn linear(&self, value: ValueId, visits: &Counter<usize>) -> Option<Linear> {
        Self::visit(visits)?;
        let constant = |constant: i64| Linear { step: 0, all: 0, constant };
        if self.numbers.contains(&value) {
            return Some(Linear { step: 1, ..constant(0) });
        }
        if let Some((around, captures)) = self.around
            && let Some(&outer) = captures.get(&value)
        {
            return around.linear(outer, visits);
        }
        if let Some([count]) = self.graph.value(value).content.as_deref() {
            return match count.constant() {
                Some(number) => Some(constant(number)),
                None => (count == self.all).then_some(Linear { all: 1, ..constant(0) }),
            };
        }
        if let Some(known) = self.graph.const_value(value) {
            let [number]: [f64; 1] = known.to_f64s().try_into().ok()?;
            let whole = number.fract() == 0.0 && number.abs() < f64::from(1 << 24);
            #[allow(clippy::cast_possible_truncation, reason = "whole and small")]
            return whole.then_some(constant(number as i64));
        }
        let (_, node, _) = self.graph.producer(value)?;
        let operand = |slot: usize| self.linear(input(node, slot)?, visits);
        match &node.op {
            Op::Cast(Cast { to: DType::I32 | DType::I64 | DType::F32 | DType::F64 }) => operand(0),
            Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Reshape(_) => operand(0),
            Op::Unary(Unary { kind: UnaryKind::Identity }) => operand(0),
            Op::Binary(Binary { kind: BinaryKind::Add }) => operand(0)?.plus(operand(1)?, 1),
            Op::Binary(Binary { kind: BinaryKind::Sub }) => operand(0)?.plus(operand(1)?, -1),
            _ => None,
        }
    }

    /// The least that a count may be, at any step but the last.
    fn least(&self, count: Linear) -> Option<i64> {
        let (all, constant) = match count.step {
            0 => (count.all, count.constant),
            // The step is N - 2 at most.
            -1 => (count.all.checked_sub(1)?, count.constant.checked_add(2)?),
            _ => return None,
        };
        let steps = match self.all.constant() {
            Some(steps) => steps,
            None => (all >= 0).then_some(self.fewest)?,
        };
        all.checked_mul(steps)?.checked_add(constant)
    }
}
