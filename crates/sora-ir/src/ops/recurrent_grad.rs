//! What flows back through the steps of a recurrent layer.

use serde::{Deserialize, Serialize};
use sora_tensor::{DType, Tensor};

use super::attrs;
use super::recurrent::{Recurrent, sigmoid};
use super::rnn::{Direction, RnnActivation};
use crate::case::{Arg, Case, Gen};
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, TensorType, Writer, ensure};

/// The cell of a recurrent layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cell {
    /// That of [`Lstm`](struct@super::Lstm), without peepholes.
    Lstm,
    /// That of [`Gru`](struct@super::Gru) that resets behind the product.
    Gru,
    /// That of [`Rnn`](struct@super::Rnn).
    Rnn(RnnActivation),
}

impl Cell {
    /// Gates for each element of the state.
    pub fn gates(self) -> usize {
        match self {
            Cell::Lstm => 4,
            Cell::Gru => 3,
            Cell::Rnn(_) => 1,
        }
    }
}

attrs! {
    /// Backpropagation through time of one direction of a recurrent layer, from what its products came to. With G
    /// gates and H elements of the state:
    ///
    /// Inputs: the input's part P `[T, B, G·H]` (`W x + bias`), the state's part S `[T, B, G·H]` (`R h + bias`), R
    /// `[G·H, H]`, the h that each step began with `[T, B, H]`, the gradient of every h `[T, B, H]`; optional: lengths
    /// i32 `[B]`, the initial c `[B, H]` of an LSTM, the gradients of the final h and c `[B, H]`.
    /// Outputs: the gradients of S `[T, B, G·H]`, zero past a sequence's length, and of the initial h `[B, H]`; of an LSTM
    /// then that of the initial c `[B, H]`, of a GRU that of P. Elsewhere that of P is the same as that of S.
    /// Source: Werbos 1990.
    pub struct RecurrentGrad {
        /// The cell.
        cell: Cell,
        /// Whether the layer begins with a sequence's last step.
        reverse: bool,
    }
}

const LENGTHS: usize = 5;
const INITIAL_C: usize = 6;
const FINAL_H: usize = 7;
const FINAL_C: usize = 8;

/// One step of one sequence, as vectors over the elements of the state.
struct Step<'a> {
    /// The parts of the input and the state, gate by gate.
    parts: [&'a [f64]; 2],
    /// h and c before the step.
    before: [&'a [f64]; 2],
}

impl Step<'_> {
    /// A gate's sum of one element.
    fn sum(&self, gate: usize, k: usize) -> f64 {
        let at = gate * self.before[0].len() + k;
        self.parts[0][at] + self.parts[1][at]
    }

    /// Input, output, forget gate and candidate of an LSTM.
    fn lstm(&self, k: usize) -> [f64; 4] {
        let [i, o, f] = [0, 1, 2].map(|gate| sigmoid(self.sum(gate, k)));
        [i, o, f, self.sum(3, k).tanh()]
    }

    /// The cell's c behind the step.
    fn next_c(&self, k: usize) -> f64 {
        let [i, _, f, g] = self.lstm(k);
        f * self.before[1][k] + i * g
    }
}

impl RecurrentGrad {
    /// Writes the gradients of S and P of one step, and replaces those of h and c behind it by what the step itself
    /// passes to those before it, beside R.
    fn step(&self, step: &Step, dh: &mut [f64], dc: &mut [f64], ds: &mut [f64], dp: &mut [f64]) {
        let hidden = dh.len();
        for k in 0..hidden {
            let d = dh[k];
            let mut gates = [0.0; 4];
            let mut of_input = None;
            match self.cell {
                Cell::Lstm => {
                    let [i, o, f, g] = step.lstm(k);
                    let t = step.next_c(k).tanh();
                    let of_c = dc[k] + d * o * (1.0 - t * t);
                    gates = [
                        of_c * g * i * (1.0 - i),
                        d * t * o * (1.0 - o),
                        of_c * step.before[1][k] * f * (1.0 - f),
                        of_c * i * (1.0 - g * g),
                    ];
                    (dh[k], dc[k]) = (0.0, of_c * f);
                }
                Cell::Gru => {
                    let [z, r] = [0, 1].map(|gate| sigmoid(step.sum(gate, k)));
                    let [p, s] = step.parts.map(|part| part[2 * hidden + k]);
                    let n = (p + r * s).tanh();
                    let of_n = d * (1.0 - z) * (1.0 - n * n);
                    gates[0] = d * (step.before[0][k] - n) * z * (1.0 - z);
                    gates[1] = of_n * s * r * (1.0 - r);
                    gates[2] = of_n * r;
                    of_input = Some(of_n);
                    dh[k] = d * z;
                }
                Cell::Rnn(activation) => {
                    let x = step.sum(0, k);
                    gates[0] = d * match activation {
                        RnnActivation::Tanh => 1.0 - x.tanh() * x.tanh(),
                        RnnActivation::Relu => f64::from(u8::from(x > 0.0)),
                        RnnActivation::Sigmoid => sigmoid(x) * (1.0 - sigmoid(x)),
                    };
                    dh[k] = 0.0;
                }
            }
            for (gate, &value) in gates[..self.cell.gates()].iter().enumerate() {
                ds[gate * hidden + k] = value;
                dp[gate * hidden + k] = value;
            }
            of_input.into_iter().for_each(|value| dp[2 * hidden + k] = value);
        }
    }
}

impl OpDef for RecurrentGrad {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(5..=9)?;
        let (p, r) = (cx.ty(0)?.clone(), cx.ty(2)?);
        ensure!(p.dtype.is_float() && p.rank() == 3, "P must be floats of rank 3, found {p}");
        ensure!(r.rank() == 2, "R must have rank 2, found {r}");
        let (steps, batch, hidden) = (p.shape[0].clone(), p.shape[1].clone(), r.shape[1].clone());
        let gates = hidden.clone() * Dim::from(self.cell.gates());
        let sums = TensorType::new(p.dtype, [steps.clone(), batch.clone(), gates.clone()]);
        let states = TensorType::new(p.dtype, [steps, batch.clone(), hidden.clone()]);
        let state = TensorType::new(p.dtype, [batch.clone(), hidden.clone()]);
        let lengths = TensorType::new(DType::I32, [batch]);
        let matrix = TensorType::new(p.dtype, [gates, hidden]);
        let expected = [&sums, &sums, &matrix, &states, &states, &lengths, &state, &state, &state]
            .into_iter()
            .enumerate();
        for (index, expected) in expected {
            match cx.opt(index) {
                Some(ty) => ensure!(expected.accepts(ty), "input {index} must be {expected}, found {ty}"),
                None => ensure!(index >= LENGTHS, "input {index} is missing"),
            }
        }
        let lstm = self.cell == Cell::Lstm;
        ensure!(lstm || cx.opt(INITIAL_C).or(cx.opt(FINAL_C)).is_none(), "only an LSTM has a c");
        Ok(match self.cell {
            Cell::Lstm => vec![sums, state.clone(), state],
            Cell::Gru => vec![sums.clone(), state, sums],
            Cell::Rnn(_) => vec![sums, state],
        })
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let &[steps, batch, columns] = cx.get(0)?.shape() else {
            return Err(Mismatch::new("P must have rank 3"));
        };
        let hidden = columns / self.cell.gates();
        let reals = |index: usize| cx.opt(index).map(Tensor::to_f64s);
        let given = |index: usize| reals(index).ok_or_else(|| Mismatch::new("an input is missing"));
        let [p, s, r, h, dy] = [given(0)?, given(1)?, given(2)?, given(3)?, given(4)?];
        let lengths = Recurrent::lengths(cx.opt(LENGTHS), steps, batch)?;
        let dtype = cx.get(0)?.dtype();
        let mut ds = vec![0.0; steps * batch * columns];
        let mut dp = ds.clone();
        let (mut dh0, mut dc0) = (Vec::new(), Vec::new());
        for (b, &length) in lengths.iter().enumerate() {
            let state = |index| {
                let all = reals(index);
                all.map_or_else(|| vec![0.0; hidden], |all| all[b * hidden..][..hidden].to_vec())
            };
            let order = |n: usize| if self.reverse { length - 1 - n } else { n };
            let wide = |n: usize| (order(n) * batch + b) * columns..(order(n) * batch + b + 1) * columns;
            let narrow = |n: usize| (order(n) * batch + b) * hidden..(order(n) * batch + b + 1) * hidden;
            let mut cs = vec![state(INITIAL_C)];
            for n in 0..length {
                let parts = [&p[wide(n)], &s[wide(n)]];
                let step = Step { parts, before: [&h[narrow(n)], &cs[n]] };
                let lstm = self.cell == Cell::Lstm;
                let next = (0..hidden).map(|k| if lstm { step.next_c(k) } else { 0.0 }).collect();
                cs.push(next);
            }
            let (mut dh, mut dc) = (state(FINAL_H), state(FINAL_C));
            for n in (0..length).rev() {
                dh.iter_mut().zip(&dy[narrow(n)]).for_each(|(a, b)| *a += b);
                let parts = [&p[wide(n)], &s[wide(n)]];
                let step = Step { parts, before: [&h[narrow(n)], &cs[n]] };
                self.step(&step, &mut dh, &mut dc, &mut ds[wide(n)], &mut dp[wide(n)]);
                for (row, d) in r.chunks_exact(hidden.max(1)).zip(&ds[wide(n)]) {
                    dh.iter_mut().zip(row).for_each(|(a, r)| *a += d * r);
                }
            }
            dh0.extend(dh);
            dc0.extend(dc);
        }
        let sums = |values: &[f64]| Tensor::from_f64s(dtype, &[steps, batch, columns], values);
        let state = |values: &[f64]| Tensor::from_f64s(dtype, &[batch, hidden], values);
        Ok(match self.cell {
            Cell::Lstm => vec![sums(&ds)?, state(&dh0)?, state(&dc0)?],
            Cell::Gru => vec![sums(&ds)?, state(&dh0)?, sums(&dp)?],
            Cell::Rnn(_) => vec![sums(&ds)?, state(&dh0)?],
        })
    }

    fn macs(&self, inputs: &[Option<&TensorType>], _: &[&TensorType]) -> Dim {
        let hidden = inputs.get(2).copied().flatten().and_then(|r| r.shape.last().cloned());
        let p = inputs.first().copied().flatten().map(|p| super::product(&p.shape));
        p.zip(hidden).map_or(Dim::from(0usize), |(p, hidden)| p * hidden)
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let activations = [RnnActivation::Tanh, RnnActivation::Relu, RnnActivation::Sigmoid];
        let cells = [Cell::Lstm, Cell::Lstm, Cell::Gru, Cell::Gru].into_iter();
        let case = |(i, cell): (usize, Cell)| {
            let op = RecurrentGrad { cell, reverse: i % 2 == 1 };
            let (steps, batch, hidden) = (g.size(1, 5), g.size(1, 5), g.size(1, 20));
            let columns = hidden * cell.gates();
            let weights = g.uniform(DType::F32, &[columns, hidden], -0.7, 0.7);
            let mut inputs = vec![
                g.var(&[steps, batch, columns]),
                g.var(&[steps, batch, columns]),
                if g.flag() { Arg::Const(weights) } else { Arg::Var(weights) },
                g.var(&[steps, batch, hidden]),
                g.var(&[steps, batch, hidden]),
            ];
            let lengths: Vec<i32> =
                (0..batch).map(|_| i32::try_from(g.size(0, steps)).unwrap_or(1)).collect();
            inputs.push(if g.flag() { Arg::Var(Tensor::vector(&lengths)) } else { Arg::Absent });
            for of_c in [true, false, true] {
                let state = g.var(&[batch, hidden]);
                let given = g.flag() && (!of_c || cell == Cell::Lstm);
                inputs.push(if given { state } else { Arg::Absent });
            }
            Case::new(op, inputs).with_tolerance(2e-5)
        };
        cells.chain(activations.map(Cell::Rnn)).enumerate().map(case).collect()
    }
}

/// The gradient rule of the recurrent operators: the products of all steps at once from the states that the layer gave,
/// then [`RecurrentGrad`], then the gradients of these products.
pub(super) fn rule(cx: &mut GradCx, cell: Cell, direction: Direction) -> Gradients {
    let arity = cx.arity();
    let (x, w, r, y) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.output(0)?);
    let (bias, lengths, initial_h) = (cx.opt(3), cx.opt(4), cx.opt(5));
    let initial_c = cx.opt(6).filter(|_| cell == Cell::Lstm);
    let [steps, batch, features] = cx.shape(x)?[..] else {
        return Err(Mismatch::new("X must have rank 3"));
    };
    let hidden = cx.shape(r)?[2];
    let (rows, columns) = (steps * batch, cell.gates() * hidden);
    let outputs = if cell == Cell::Lstm { 3 } else { 2 };
    let grads = (0..outputs).map(|i| cx.grad_of(i)).collect::<Result<Vec<_>, Mismatch>>()?;
    let matrix = cx.reshape(x, &[rows, features])?;
    let mut total = None;
    // By input: one part for each direction.
    let mut parts: Vec<Vec<crate::ValueId>> = vec![Vec::new(); arity];
    for d in 0..direction.count() {
        let reverse = direction.reverses(d);
        let part = |w: &mut Writer, v: crate::ValueId, shape: &[usize]| -> Result<crate::ValueId, Mismatch> {
            let part = w.part(v, 0, d, 1)?;
            w.reshape(part, shape)
        };
        let wd = part(cx, w, &[columns, features])?;
        let rd = part(cx, r, &[columns, hidden])?;
        let h0 = initial_h.map(|h| part(cx, h, &[1, batch, hidden])).transpose()?;
        let states = cx.part(y, 1, d, 1)?;
        let states = cx.reshape(states, &[steps, batch, hidden])?;
        // Past a sequence's end there are zeros, which the last step of a reversed one begins with.
        let dtype = cx.dtype(y);
        let first = h0.map_or_else(|| cx.zeros(dtype, &[1, batch, hidden]), Ok)?;
        let rest = cx.part(states, 0, usize::from(reverse), steps.saturating_sub(1))?;
        let order = if reverse { [rest, first] } else { [first, rest] };
        let mut before = cx.op(super::Concat { axis: 0 }, order)?;
        if let (true, Some(lengths), Some(h0)) = (reverse, lengths, h0) {
            // A reversed sequence begins at its own last step.
            let last = cx.plus(lengths, -1.0)?;
            let last = cx.reshape(last, &[1, batch, 1])?;
            let places: Vec<f64> = (0..steps).map(|t| t as f64).collect();
            let places = Tensor::from_f64s(cx.dtype(last), &[steps, 1, 1], &places)?;
            let places = cx.constant(places);
            let begins = cx.binary(super::BinaryKind::Equal, places, last)?;
            before = cx.select(begins, h0, before)?;
        }
        let flat = cx.reshape(before, &[rows, hidden])?;
        let product = |cx: &mut GradCx, a, weights, second: usize| -> Result<crate::ValueId, Mismatch> {
            let turned = cx.transpose_matrices(weights)?;
            let mut sums = cx.mat_mul(a, turned)?;
            if let Some(bias) = bias {
                let bias = part(cx, bias, &[2, columns])?;
                let bias = cx.part(bias, 0, second, 1)?;
                sums = cx.add(sums, bias)?;
            }
            cx.reshape(sums, &[steps, batch, columns])
        };
        let of_input = product(cx, matrix, wd, 0)?;
        let of_state = product(cx, flat, rd, 1)?;
        let dy = cx.part(grads[0], 1, d, 1)?;
        let dy = cx.reshape(dy, &[steps, batch, hidden])?;
        let c0 = initial_c.map(|c| part(cx, c, &[batch, hidden])).transpose()?;
        let ends = grads[1..].iter().map(|&end| part(cx, end, &[batch, hidden]).map(Some));
        let ends = ends.collect::<Result<Vec<_>, Mismatch>>()?;
        let given = [Some(of_input), Some(of_state), Some(rd), Some(before), Some(dy), lengths, c0];
        let found = cx.ops(RecurrentGrad { cell, reverse }, given.into_iter().chain(ends))?;
        let ds = cx.reshape(found[0], &[rows, columns])?;
        let dp = if cell == Cell::Gru { cx.reshape(found[2], &[rows, columns])? } else { ds };

        let dx = cx.mat_mul(dp, wd)?;
        total = Some(match total {
            None => dx,
            Some(other) => cx.add(other, dx)?,
        });
        let [of_input, of_state] = [dp, ds].map(|d| cx.transpose_matrices(d));
        let (dw, dr) = (cx.mat_mul(of_input?, matrix)?, cx.mat_mul(of_state?, flat)?);
        parts[1].push(cx.reshape(dw, &[1, columns, features])?);
        parts[2].push(cx.reshape(dr, &[1, columns, hidden])?);
        if bias.is_some() {
            let sums = [cx.sum_to(dp, &[1, columns])?, cx.sum_to(ds, &[1, columns])?];
            parts[3].push(cx.op(super::Concat { axis: 1 }, sums)?);
        }
        for (input, given, output) in [(5, initial_h, 1), (6, initial_c, 2)] {
            if given.is_some() {
                parts[input].push(cx.reshape(found[output], &[1, batch, hidden])?);
            }
        }
    }
    let mut result = vec![None; arity];
    result[0] = total.map(|total| cx.reshape(total, &[steps, batch, features])).transpose()?;
    for (result, parts) in result.iter_mut().zip(parts) {
        match parts[..] {
            [] => {}
            [only] => *result = Some(only),
            _ => *result = Some(cx.op(super::Concat { axis: 0 }, parts)?),
        }
    }
    Ok(result)
}
