//! Recurrent layers that are written out as a loop.

mod affine;
mod cells;
mod sample;
mod steps;

use sora_ir::ops::{Direction, Squeeze, Transpose, Unsqueeze};
use sora_ir::{Node, Op, ValueId};
use sora_tensor::{DType, Tensor};

use super::Rule;
use crate::{Patch, Term, View};
use affine::Operand;
use cells::Cell;
use steps::{Sequence, Steps};

pub(crate) const FUSE_CELLS: Rule = Rule {
    name: "fuse_cells",
    doc: "A loop over the steps of a sequence whose states are those of LSTM, GRU and RNN cells with constant weights is these \
          layers, one behind the other.",
    exact: false,
    apply: fuse_cells,
    sample: sample::layers,
    near_misses: &[
        sample::miss_output_gate_of_cell,
        sample::miss_old_cell,
        sample::miss_two_gates,
        sample::miss_given_weights,
        sample::miss_stacked_cell,
        sample::miss_early_end,
        sample::miss_part,
        sample::miss_two_sequences,
        sample::miss_turned_around,
    ],
};

fn fuse_cells(view: &View, node: &Node) -> Option<Patch> {
    let (Op::Loop(_) | Op::Scan(_)) = node.op else { return None };
    let mut steps = Steps::of(view, node)?;
    let batch = steps.states.first().and_then(|state| steps.body.ty(state.before).shape.first())?;
    let same = |&value: &ValueId| steps.body.ty(value).shape.first() == Some(batch);
    (steps.slices.keys().all(same) && steps.states.iter().all(|state| same(&state.before))).then_some(())?;

    let mut patch = Patch::new();
    let mut results: Vec<(ValueId, Term)> = Vec::new();
    let mut free: Vec<usize> = (0..steps.states.len()).collect();
    // A cell that reads what another one gives is found after it.
    loop {
        let read = |&hidden: &usize| {
            let cell = steps.cell(hidden, &free)?;
            Some((cell.sequence()?, cell))
        };
        let Some(((sequence, features), cell)) = free.iter().find_map(read) else { break };
        let layer = Layer { steps: &steps, sequence, features, cell };
        let name =
            if results.is_empty() { node.name.clone() } else { format!("{}.{}", node.name, results.len()) };
        let (y, finals) = layer.add(&mut patch, &name)?;
        let taken = layer.cell.states;
        results.extend(taken.iter().map(|&state| steps.states[state].result).zip(finals));
        free.retain(|state| !taken.contains(state));
        let sequence = Sequence { values: y, axis: 0, reverse: sequence.reverse };
        steps.slices.insert(steps.states[*taken.first()?].after, sequence);
    }
    for stack in &steps.stacks {
        if view.uses.count(stack.result) == 0 {
            continue;
        }
        let sequence = steps.slices.get(&stack.slice).filter(|found| found.reverse == stack.reverse)?;
        let rank = steps.body.ty(stack.slice).rank() + 1;
        results.push((stack.result, moved(&mut patch, &node.name, *sequence, rank, stack.axis)));
    }
    let read = |&&(result, _): &&(ValueId, Term)| view.uses.count(result) > 0;
    let covered =
        |&result: &ValueId| view.uses.count(result) == 0 || results.iter().any(|&(known, _)| known == result);
    (node.outputs.iter().all(covered) && free.len() < steps.states.len()).then_some(())?;
    let replaced = results.iter().filter(read);
    Some(replaced.fold(patch, |patch, &(result, value)| patch.replace(result, value)))
}

/// The sequence with its steps on another axis.
fn moved(patch: &mut Patch, name: &str, sequence: Sequence, rank: usize, axis: usize) -> Term {
    if sequence.axis == axis {
        return sequence.values;
    }
    let mut perm: Vec<usize> = (0..rank).filter(|&other| other != sequence.axis).collect();
    perm.insert(axis, sequence.axis);
    patch.node(&format!("{name}.steps"), Transpose { perm }, [sequence.values])
}

/// A cell and what it reads at every step.
struct Layer<'s> {
    steps: &'s Steps<'s>,
    sequence: Sequence,
    features: usize,
    cell: Cell<'s>,
}

impl Layer<'_> {
    /// Adds the layer; gives its states at all steps, `[steps, batch, hidden]`, and those at the end.
    fn add(&self, patch: &mut Patch, name: &str) -> Option<(Term, Vec<Term>)> {
        let Layer { steps, sequence, features, cell } = self;
        let states = || cell.states.iter().filter_map(|&state| steps.states.get(state));
        let first = states().next()?;
        let (hidden, dtype) = (steps.width(first.before)?, steps.body.ty(first.before).dtype);
        // The layers' kernels are for this type.
        (dtype == DType::F32).then_some(())?;
        let alike = states().all(|state| steps.body.ty(state.before) == steps.body.ty(first.before));
        let sums = || cell.gates.iter().flat_map(|gate| [Some(&gate.sum), gate.reset.as_ref()]).flatten();
        (alike && hidden > 0 && sequence.axis < 2 && sums().all(|sum| sum.width == hidden)).then_some(())?;

        let rows = cell.gates.len() * hidden;
        let (mut w, mut r) = (vec![0.0; rows * features], vec![0.0; rows * hidden]);
        let mut bias = vec![0.0; 2 * rows];
        for (i, gate) in cell.gates.iter().enumerate() {
            let units = |depth: usize| i * hidden * depth..(i + 1) * hidden * depth;
            gate.sum.weights(Operand::Slice(*sequence), *features, &mut w[units(*features)]);
            gate.sum.bias(&mut bias[units(1)]);
            for sum in [Some(&gate.sum), gate.reset.as_ref()].into_iter().flatten() {
                sum.weights(Operand::Value(gate.state), hidden, &mut r[units(hidden)]);
            }
            if let Some(reset) = &gate.reset {
                reset.bias(&mut bias[rows..][units(1)]);
            }
        }
        let x = moved(patch, name, *sequence, 3, 0);
        let mut inputs = vec![Some(x)];
        for (what, shape, values) in [
            ("w", vec![1, rows, *features], w),
            ("r", vec![1, rows, hidden], r),
            ("bias", vec![1, 2 * rows], bias),
        ] {
            let tensor = Tensor::from_f64s(dtype, &shape, &values).ok()?;
            inputs.push(Some(patch.constant(&format!("{name}.{what}"), tensor)));
        }
        inputs.push(None);
        for state in states() {
            let initial = Unsqueeze { axes: vec![0] };
            inputs.push(Some(patch.node(&format!("{name}.initial"), initial, [state.initial])));
        }
        let direction = if sequence.reverse { Direction::Reverse } else { Direction::Forward };
        let op = cell.op(hidden, direction);
        let given = patch.node_with_outputs(name, op, inputs, 1 + cell.states.len());
        let (&y, finals) = given.split_first()?;
        let y = patch.node(&format!("{name}.y"), Squeeze { axes: vec![1] }, [y]);
        let last = |&state: &Term| patch.node(&format!("{name}.last"), Squeeze { axes: vec![0] }, [state]);
        Some((y, finals.iter().map(last).collect()))
    }
}
