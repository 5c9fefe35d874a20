//! Recurrent layers with constant weights over whole sequences.

use std::ops::Range;
use std::sync::Arc;

use sora_ir::ops::{Direction as Order, RnnActivation};
use sora_ir::{Node, NodeId, Op};
use sora_kernels::{Activation, Kernels, PackedF32, PackedI8};
use sora_tensor::DType;

use super::Lowering;
use super::layout::Layout;
use super::weights::ByteWeights;
use crate::steps::dynamic::RowBytes;
use crate::steps::recurrent::{Cell, Direction, Matrix, Recurrent};

/// Inputs of all recurrent operators, by position.
const BIAS: usize = 3;
const LENGTHS: usize = 4;
const STATES: usize = 5;
const PEEPHOLES: usize = 7;

/// The weights of all directions, one row for each gate of each unit.
enum Values {
    Real(Vec<f32>),
    Bytes(ByteWeights),
}

impl Values {
    /// Some rows of `depth` elements as columns; a bias is kept beside bytes.
    fn packed(&self, kernels: Kernels, rows: Range<usize>, depth: usize, bias: Option<&[f32]>) -> Matrix {
        let (at, n) = (rows.start * depth, rows.len());
        match self {
            Values::Real(values) => Matrix::Real(PackedF32::from_nk(kernels, &values[at..], depth, n, depth)),
            Values::Bytes(bytes) => Matrix::Bytes(RowBytes {
                packed: Arc::new(PackedI8::from_nk(kernels, &bytes.values()[at..], depth, n, depth)),
                scale: rows.map(|row| bytes.scale(row)).collect(),
                bias: bias.map(<[f32]>::to_vec),
            }),
        }
    }
}

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
        // Bytes meet bytes: X as it comes, the state as the layer says.
        let quantize_state = match &node.op {
            Op::Lstm(op) => op.quantize_state,
            Op::Gru(op) => op.quantize_state,
            _ => false,
        };
        let dynamic = self.dynamic(x);
        let w = match dynamic.and_then(|_| self.byte_lines(input(1)?)) {
            Some(bytes) => Values::Bytes(bytes),
            None => Values::Real(numbers(1)??),
        };
        let r = match quantize_state {
            true => Values::Bytes(self.byte_lines(input(2)?)?),
            false => Values::Real(numbers(2)??),
        };
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
            let mut bias = match &bias {
                Some(bias) => bias[d * 2 * gates..][..2 * gates].to_vec(),
                None => vec![0.0; 2 * gates],
            };
            let mut of_state = bias.split_off(gates);
            let candidate_bias =
                if cell == Cell::GruAfter { of_state.split_off(2 * hidden) } else { Vec::new() };
            bias.iter_mut().zip(of_state).for_each(|(b, s)| *b += s);
            let early = if cell == Cell::GruBefore { 2 * hidden } else { gates };
            let first = d * gates;
            Direction {
                reverse,
                input: w.packed(kernels, first..first + gates, features, Some(&bias)),
                state: r.packed(kernels, first..first + early, hidden, None),
                candidate: (early < gates)
                    .then(|| r.packed(kernels, first + early..first + gates, hidden, None)),
                bias,
                candidate_bias,
                peephole: peepholes.as_ref().map(|p| p[d * 3 * hidden..][..3 * hidden].to_vec()),
            }
        });
        let directions = directions.collect();
        let states: Vec<_> = (0..cell.states()).map(|s| input(STATES + s)).collect();
        let initial = states.iter().map(Option::is_some).collect();
        let work = Recurrent { cell, steps, batch, features, hidden, directions, initial };

        let mut reads = match (&w, dynamic) {
            (Values::Bytes(_), Some(dynamic)) => dynamic.reads().to_vec(),
            _ => vec![self.plain(x)?],
        };
        for state in states.into_iter().flatten() {
            reads.push(self.plain(state)?);
        }
        let mut writes: Vec<_> = node.outputs.iter().map(|&v| self.fresh(v, DType::F32)).collect();
        writes.push(self.build.arena(work.scratch() * size_of::<f32>()));
        let dtype = if quantize_state { "dynamic" } else { "f32" };
        let kernel = format!("{}.{dtype}", node.op.name().to_lowercase());
        let info = self.info(&kernel, &[id], node.outputs.first().copied(), DType::F32);
        self.build.step(info, work, &reads, &writes);
        for (&v, &buf) in node.outputs.iter().zip(&writes) {
            self.define_exact(v, buf, Layout::Plain);
        }
        Some(())
    }
}
