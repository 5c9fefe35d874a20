//! Recurrent layers with constant weights over whole sequences.

use sora_ir::ops::{Direction as Order, RnnActivation};
use sora_ir::{Node, NodeId, Op};
use sora_kernels::{Activation, PackedF32};
use sora_tensor::DType;

use super::Lowering;
use super::layout::Layout;
use crate::steps::recurrent::{Cell, Direction, Recurrent};

/// Inputs of all recurrent operators, by position.
const BIAS: usize = 3;
const LENGTHS: usize = 4;
const STATES: usize = 5;
const PEEPHOLES: usize = 7;

impl Lowering<'_> {
    pub(crate) fn recurrent(&mut self, id: NodeId, node: &Node) -> Option<()> {
        let (cell, hidden, order) = match &node.op {
            Op::Lstm(op) => (Cell::Lstm, op.hidden, op.direction),
            Op::Gru(op) if op.linear_before_reset => (Cell::GruAfter, op.hidden, op.direction),
            Op::Gru(op) => (Cell::GruBefore, op.hidden, op.direction),
            Op::Rnn(op) => {
                let activation = match op.activation {
                    RnnActivation::Tanh => Activation::Tanh,
                    RnnActivation::Relu => Activation::Relu,
                    RnnActivation::Sigmoid => Activation::Sigmoid,
                };
                (Cell::Rnn(activation), op.hidden, op.direction)
            }
            _ => return None,
        };
        let input = |slot: usize| node.inputs.get(slot).copied().flatten();
        let x = input(0)?;
        let &[steps, batch, features] = &self.shape(x)[..] else { return None };
        if self.dtype(x) != DType::F32 {
            return None;
        }
        if let Some(lengths) = input(LENGTHS) {
            let all = self.constant(lengths)?.to_i64s().iter().all(|&n| usize::try_from(n) == Ok(steps));
            all.then_some(())?;
        }
        let numbers = |slot: usize| match input(slot) {
            Some(v) => self.constant_f32(v).map(Some),
            None => Some(None),
        };
        let (w, r) = (numbers(1)??, numbers(2)??);
        let bias = numbers(BIAS)?;
        let peepholes = if cell == Cell::Lstm { numbers(PEEPHOLES)? } else { None };

        let gates = cell.gates() * hidden;
        let reversed: &[bool] = match order {
            Order::Forward => &[false],
            Order::Reverse => &[true],
            Order::Bidirectional => &[false, true],
        };
        let kernels = self.kernels;
        let directions = reversed.iter().enumerate().map(|(d, &reverse)| {
            let w = &w[d * gates * features..][..gates * features];
            let r = &r[d * gates * hidden..][..gates * hidden];
            let (of_input, of_state) = match &bias {
                Some(bias) => bias[d * 2 * gates..][..2 * gates].split_at(gates),
                None => (&[][..], &[][..]),
            };
            let filled = |bias: &[f32]| if bias.is_empty() { vec![0.0; gates] } else { bias.to_vec() };
            let (of_input, of_state) = (filled(of_input), filled(of_state));
            // Only a GRU uses the two parts' sums apart.
            let apart = matches!(cell, Cell::GruAfter | Cell::GruBefore);
            let input_bias = match apart {
                true => of_input,
                false => of_input.iter().zip(&of_state).map(|(a, b)| a + b).collect(),
            };
            let early = if cell == Cell::GruBefore { 2 * hidden } else { gates };
            Direction {
                reverse,
                input: PackedF32::from_nk(kernels, w, features, gates, features),
                input_bias,
                state: PackedF32::from_nk(kernels, &r[..early * hidden], hidden, early, hidden),
                state_bias: apart.then(|| of_state[..early].to_vec()),
                candidate: (early < gates).then(|| {
                    let packed = PackedF32::from_nk(kernels, &r[early * hidden..], hidden, hidden, hidden);
                    (packed, of_state[early..].to_vec())
                }),
                peephole: peepholes.as_ref().map(|p| p[d * 3 * hidden..][..3 * hidden].to_vec()),
            }
        });
        let directions = directions.collect();
        let states: Vec<_> = (0..cell.states()).map(|s| input(STATES + s)).collect();
        let initial = states.iter().map(Option::is_some).collect();
        let work = Recurrent { cell, steps, batch, features, hidden, directions, initial };

        let mut reads = vec![self.plain(x)?];
        for state in states.into_iter().flatten() {
            reads.push(self.plain(state)?);
        }
        let mut writes: Vec<_> = node.outputs.iter().map(|&v| self.fresh(v, DType::F32)).collect();
        writes.push(self.build.arena(work.scratch() * size_of::<f32>()));
        let kernel = format!("{}.f32", node.op.name().to_lowercase());
        let info = self.info(&kernel, &[id], node.outputs.first().copied(), DType::F32);
        self.build.step(info, work, &reads, &writes);
        for (&v, &buf) in node.outputs.iter().zip(&writes) {
            self.define_exact(v, buf, Layout::Plain);
        }
        Some(())
    }
}
