//! Recurrent layers with constant weights over whole sequences.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use sora_ir::ops::{Direction as Order, RnnActivation};
use sora_ir::{Node, NodeId, Op, ValueId};
use sora_kernels::{Activation, Kernels, PackedBf16, PackedF32, PackedI8, bf16};
use sora_tensor::{DType, Tensor};

use super::Lowering;
use super::layout::{Layout, numbers};
use super::weights::ByteWeights;
use crate::steps::dynamic::RowBytes;
use crate::steps::recurrent::{Cell, Direction, Matrix, Recurrent, Share, share_of};

/// Inputs of all recurrent operators, by position.
const BIAS: usize = 3;
const LENGTHS: usize = 4;
const STATES: usize = 5;
const PEEPHOLES: usize = 7;

/// The weights of all directions, one row for each gate of each unit.
enum Values {
    Real(Tensor),
    /// To be rounded.
    Bf16(Tensor),
    Bytes(ByteWeights),
}

/// The rows that some units have in a matrix with rows for each gate of each unit.
#[derive(Clone)]
struct Rows {
    /// The first gate's row of the first unit.
    first: usize,
    gates: usize,
    units: usize,
    /// Rows from gate to gate: all units.
    hidden: usize,
}

impl Rows {
    fn len(&self) -> usize {
        self.gates * self.units
    }

    /// The rows of each gate.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.gates).map(|gate| self.first + gate * self.hidden..).map(|r| r.start..r.start + self.units)
    }

    /// These rows of a matrix with rows of `depth` elements.
    fn of<'a, T: Copy>(&self, values: &'a [T], depth: usize) -> Cow<'a, [T]> {
        if self.units == self.hidden || self.gates == 1 {
            return Cow::Borrowed(&values[self.first * depth..][..self.len() * depth]);
        }
        self.ranges().flat_map(|rows| &values[rows.start * depth..rows.end * depth]).copied().collect()
    }

    /// The same units' rows of other gates.
    fn gates(&self, gates: Range<usize>) -> Rows {
        Rows { first: self.first + gates.start * self.hidden, gates: gates.len(), ..*self }
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        if let Values::Real(values) | Values::Bf16(values) = self {
            values.release();
        }
    }
}

impl Values {
    /// Some rows of `depth` elements as columns; a bias is kept beside bytes.
    fn packed(&self, kernels: Kernels, rows: &Rows, depth: usize, bias: Option<&[f32]>) -> Matrix {
        let n = rows.len();
        let (shape, strides) = ((1, depth, n), [depth, 1, 0]);
        match self {
            Values::Real(values) => {
                let (values, number) = (rows.of(numbers(values), depth), f32::from_ne_bytes);
                Matrix::Real(PackedF32::from_strided(kernels, shape, &values, 0, strides, number))
            }
            Values::Bf16(values) => {
                let (values, round) =
                    (rows.of(numbers(values), depth), |w| bf16::round(f32::from_ne_bytes(w)));
                Matrix::Bf16(PackedBf16::from_strided(kernels, shape, &values, 0, strides, round))
            }
            Values::Bytes(bytes) => Matrix::Bytes(RowBytes {
                packed: Arc::new(PackedI8::from_nk(
                    kernels,
                    &rows.of(bytes.values(), depth),
                    depth,
                    n,
                    depth,
                )),
                scale: rows.ranges().flatten().map(|row| bytes.scale(row)).collect(),
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
        if self.dtype(x) != DType::F32 || batch * hidden == 0 {
            return None;
        }
        let all_steps = |lengths: &ValueId| {
            let known = self.constant(*lengths);
            known.is_some_and(|t| t.to_i64s().iter().all(|&n| usize::try_from(n) == Ok(steps)))
        };
        let lengths = input(LENGTHS).filter(|lengths| !all_steps(lengths));
        let vector = |slot: usize| match input(slot) {
            Some(v) => self.constant_f32(v).map(Some),
            None => Some(None),
        };
        let reals = |slot: usize| self.constant(input(slot)?).filter(|t| t.dtype() == DType::F32);
        // Bytes meet bytes: X as it comes, the state as the layer says.
        let quantize_state = match &node.op {
            Op::Lstm(op) => op.quantize_state,
            Op::Gru(op) => op.quantize_state,
            _ => false,
        };
        let real = if self.multiplies_bf16() { Values::Bf16 } else { Values::Real };
        let dynamic = self.dynamic(x);
        let w = match dynamic.and_then(|_| self.byte_lines(input(1)?)) {
            Some(bytes) => Values::Bytes(bytes),
            None => real(reals(1)?),
        };
        let r = match quantize_state {
            true => Values::Bytes(self.byte_lines(input(2)?)?),
            false => real(reals(2)?),
        };
        let bias = vector(BIAS)?;
        let peepholes = if cell == Cell::Lstm { vector(PEEPHOLES)? } else { None };

        let gates = cell.gates() * hidden;
        let reversed: &[bool] = match order {
            Order::Forward => &[false],
            Order::Reverse => &[true],
            Order::Bidirectional => &[false, true],
        };
        let kernels = self.kernels;
        let each = share_of(cell, batch, hidden, self.threads);
        let share = |d: usize, first: usize| {
            let units = each.min(hidden - first);
            let all = Rows { first, gates: cell.gates(), units, hidden };
            let rows = Rows { first: d * gates + first, ..all };
            let (mut bias, mut of_state) = match &bias {
                Some(bias) => {
                    let (input, state) = bias[d * 2 * gates..][..2 * gates].split_at(gates);
                    (all.of(input, 1).into_owned(), all.of(state, 1).into_owned())
                }
                None => (vec![0.0; rows.len()], vec![0.0; rows.len()]),
            };
            let candidate_bias =
                if cell == Cell::GruAfter { of_state.split_off(2 * units) } else { Vec::new() };
            bias.iter_mut().zip(of_state).for_each(|(b, s)| *b += s);
            let early = if cell == Cell::GruBefore { 2 } else { cell.gates() };
            let late = early..cell.gates();
            Share {
                units,
                input: w.packed(kernels, &rows, features, Some(&bias)),
                state: r.packed(kernels, &rows.gates(0..early), hidden, None),
                candidate: (!late.is_empty()).then(|| r.packed(kernels, &rows.gates(late), hidden, None)),
                bias,
                candidate_bias,
                peephole: peepholes
                    .as_ref()
                    .map(|p| Rows { gates: 3, ..all }.of(&p[d * 3 * hidden..][..3 * hidden], 1).into_owned()),
            }
        };
        let directions = reversed.iter().enumerate().map(|(d, &reverse)| {
            let shares = (0..hidden).step_by(each.max(1)).map(|first| share(d, first)).collect();
            Direction { reverse, shares }
        });
        let directions = directions.collect();
        let states: Vec<_> = (0..cell.states()).map(|s| input(STATES + s)).collect();
        let initial = states.iter().map(Option::is_some).collect();
        let work = Recurrent {
            cell,
            steps,
            batch,
            features,
            hidden,
            directions,
            lengths: lengths.is_some(),
            initial,
        };

        let mut reads = match (&w, dynamic) {
            (Values::Bytes(_), Some(dynamic)) => dynamic.reads().to_vec(),
            (Values::Bf16(_), _) => vec![self.rounded(x, Layout::Plain)?],
            _ => vec![self.plain(x)?],
        };
        for given in lengths.into_iter().chain(states.into_iter().flatten()) {
            reads.push(self.plain(given)?);
        }
        let mut writes: Vec<_> = node.outputs.iter().map(|&v| self.fresh(v, DType::F32)).collect();
        writes.push(self.build.arena(work.scratch() * size_of::<f32>()));
        let dtype = match &r {
            Values::Real(_) => "f32",
            Values::Bf16(_) => "bf16",
            Values::Bytes(_) => "dynamic",
        };
        let kernel = format!("{}.{dtype}", node.op.name().to_lowercase());
        let info = self.info(&kernel, &[id], node.outputs.first().copied(), DType::F32);
        self.build.step(info, work, &reads, &writes);
        for (&v, &buf) in node.outputs.iter().zip(&writes) {
            self.define_exact(v, buf, Layout::Plain);
        }
        Some(())
    }
}
