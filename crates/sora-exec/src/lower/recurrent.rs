//! Recurrent layers over whole sequences.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use sora_ir::ops::{RecurrentGrad, RnnActivation};
use sora_ir::{Node, NodeId, Op, ValueId};
use sora_kernels::{Activation, Kernels, PackedBf16, PackedF32, PackedI8, bf16};
use sora_tensor::{DType, Tensor};

use super::Lowering;
use super::layout::{Layout, numbers};
use super::weights::ByteWeights;
use crate::steps::dynamic::RowBytes;
use crate::steps::recurrent::{Cell, Direction, Live, Matrix, Recurrent, Share, scratch, share_of};
use crate::steps::recurrent_grad::RecurrentGrad as BackSteps;

/// Inputs of all recurrent operators, by position.
const BIAS: usize = 3;
const LENGTHS: usize = 4;
const STATES: usize = 5;
const PEEPHOLES: usize = 7;

/// The weights of all directions, one row for each gate of each unit.
enum Values<'a> {
    Real(Tensor),
    /// To be rounded.
    Bf16(Tensor),
    Bytes(ByteWeights),
    /// Known at run time only.
    Live(&'a [f32]),
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

impl Drop for Values<'_> {
    fn drop(&mut self) {
        if let Values::Real(values) | Values::Bf16(values) = self {
            values.release();
        }
    }
}

impl Values<'_> {
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
            Values::Live(values) => {
                let values = rows.of(values, depth);
                Matrix::Real(PackedF32::from_strided(kernels, shape, &values, 0, strides, |w| w))
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

/// The weights of a layer.
struct Weights<'a> {
    w: &'a Values<'a>,
    r: &'a Values<'a>,
    bias: Option<&'a [f32]>,
    peepholes: Option<&'a [f32]>,
}

impl Weights<'_> {
    /// Those of direction `d`, packed for shares of `each` units.
    fn direction(
        &self,
        kernels: Kernels,
        (d, reverse): (usize, bool),
        (cell, features, hidden, each): (Cell, usize, usize, usize),
    ) -> Direction {
        let gates = cell.gates() * hidden;
        let share = |first: usize| {
            let units = each.min(hidden - first);
            let all = Rows { first, gates: cell.gates(), units, hidden };
            let rows = Rows { first: d * gates + first, ..all };
            let (mut bias, mut of_state) = match self.bias {
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
            let state = |gates| self.r.packed(kernels, &rows.gates(gates), hidden, None);
            let peephole =
                |p: &[f32]| Rows { gates: 3, ..all }.of(&p[d * 3 * hidden..][..3 * hidden], 1).into_owned();
            Share {
                units,
                input: self.w.packed(kernels, &rows, features, Some(&bias)),
                state: state(0..early),
                candidate: (!late.is_empty()).then(|| state(late)),
                bias,
                candidate_bias,
                peephole: self.peepholes.map(peephole),
            }
        };
        Direction { reverse, shares: (0..hidden).step_by(each.max(1)).map(share).collect() }
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
        // Bytes meet bytes: X as it comes, the state as the layer says.
        let quantize_state = match &node.op {
            Op::Lstm(op) => op.quantize_state,
            Op::Gru(op) => op.quantize_state,
            _ => false,
        };
        let real = |slot: usize| {
            let tensor = self.constant(input(slot)?).filter(|t| t.dtype() == DType::F32)?;
            Some(if self.multiplies_bf16() { Values::Bf16(tensor) } else { Values::Real(tensor) })
        };
        let vector = |slot: usize| match input(slot) {
            Some(v) => self.constant_f32(v).map(Some),
            None => Some(None),
        };
        let dynamic = self.dynamic(x);
        let w = dynamic.and_then(|_| self.byte_lines(input(1)?)).map(Values::Bytes).or_else(|| real(1));
        let r = if quantize_state { self.byte_lines(input(2)?).map(Values::Bytes) } else { real(2) };
        let peepholes = if cell == Cell::Lstm { vector(PEEPHOLES) } else { Some(None) };
        let known = (|| Some((w?, r?, vector(BIAS)?, peepholes?)))();
        if known.is_none() && quantize_state {
            return None;
        }

        let states: Vec<_> = (0..cell.states()).map(|s| input(STATES + s)).collect();
        let mut reads = match (&known, dynamic) {
            (Some((Values::Bytes(_), ..)), Some(dynamic)) => dynamic.reads().to_vec(),
            (Some((Values::Bf16(_), ..)), _) => vec![self.rounded(x, Layout::Plain)?],
            _ => vec![self.plain(x)?],
        };
        for given in lengths.into_iter().chain(states.iter().copied().flatten()) {
            reads.push(self.plain(given)?);
        }
        let (each, kernels) = (share_of(cell, batch, hidden, self.threads), self.kernels);
        let (has_lengths, initial) =
            (lengths.is_some(), states.iter().map(Option::is_some).collect::<Vec<_>>());
        let layer = move |weights: &Weights| {
            let direction =
                |d| weights.direction(kernels, (d, order.reverses(d)), (cell, features, hidden, each));
            let directions = (0..order.count()).map(direction).collect();
            let (lengths, initial) = (has_lengths, initial.clone());
            Recurrent { cell, steps, batch, features, hidden, directions, lengths, initial }
        };
        let mut writes: Vec<_> = node.outputs.iter().map(|&v| self.fresh(v, DType::F32)).collect();
        writes.push(self.build.arena(scratch(cell, [steps, batch, hidden, each]) * size_of::<f32>()));
        let dtype = match &known {
            Some((_, Values::Bf16(_), ..)) => "bf16",
            Some((_, Values::Bytes(_), ..)) => "dynamic",
            _ => "f32",
        };
        let kind = if known.is_some() { "" } else { "live_" };
        let kernel = format!("{kind}{}.{dtype}", node.op.name().to_lowercase());
        let info = self.info(&kernel, &[id], node.outputs.first().copied(), DType::F32);
        match known {
            Some((w, r, bias, peepholes)) => {
                let (bias, peepholes) = (bias.as_deref(), peepholes.as_deref());
                let work = layer(&Weights { w: &w, r: &r, bias, peepholes });
                self.build.step(info, work, &reads, &writes);
            }
            None => {
                let peepholes = input(PEEPHOLES).filter(|_| cell == Cell::Lstm);
                let weights = [input(1), input(2), input(BIAS), peepholes];
                for v in weights.into_iter().flatten() {
                    reads.push(self.plain(v)?);
                }
                let make = move |given: &[&[f32]]| {
                    let mut given = given.iter().copied();
                    let [w, r, bias, peepholes] = weights.map(|v| v.and_then(|_| given.next()));
                    let (w, r) = (Values::Live(w.unwrap_or_default()), Values::Live(r.unwrap_or_default()));
                    layer(&Weights { w: &w, r: &r, bias, peepholes })
                };
                let weights = weights.into_iter().flatten().count();
                self.build.step(info, Live { weights, make: Box::new(make) }, &reads, &writes);
            }
        }
        for (&v, &buf) in node.outputs.iter().zip(&writes) {
            self.define_exact(v, buf, Layout::Plain);
        }
        Some(())
    }

    /// What flows back through the steps of a recurrent layer.
    pub(crate) fn recurrent_grad(&mut self, op: &RecurrentGrad, id: NodeId, node: &Node) -> Option<()> {
        let input = |slot: usize| node.inputs.get(slot).copied().flatten();
        let (p, h) = (input(0)?, input(3)?);
        let (&[steps, batch, _], &[.., hidden]) = (&self.shape(p)[..], &self.shape(h)[..]) else {
            return None;
        };
        if self.dtype(p) != DType::F32 || batch * hidden == 0 {
            return None;
        }
        let given = [5, 6, 7, 8].map(|slot| input(slot).is_some());
        let reads = node.inputs.iter().flatten().map(|&v| self.plain(v)).collect::<Option<Vec<_>>>()?;
        let work = BackSteps { cell: op.cell, reverse: op.reverse, steps, batch, hidden, given };
        let mut writes: Vec<_> = node.outputs.iter().map(|&v| self.fresh(v, DType::F32)).collect();
        writes.push(self.build.arena(work.scratch() * size_of::<f32>()));
        let info = self.info("recurrent_grad.f32", &[id], node.outputs.first().copied(), DType::F32);
        self.build.step(info, work, &reads, &writes);
        for (&v, &buf) in node.outputs.iter().zip(&writes) {
            self.define_exact(v, buf, Layout::Plain);
        }
        Some(())
    }
}
