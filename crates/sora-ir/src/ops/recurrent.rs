//! What the recurrent operators share: their weights' layout, directions and time steps.

use sora_tensor::{DType, Tensor};

use super::dynamic_quantize_linear::rounded;
use super::rnn::Direction;
use super::room;
use crate::case::{Arg, Gen};
use crate::{Along, Dim, EvalCx, InferCx, Mismatch, Operand, TensorType, TieCx, ensure};

/// The layout of a recurrent operator. Inputs, with T steps, B sequences, I features, D directions, G gates and
/// H = `hidden`: X `[T, B, I]`, W `[D, G·H, I]`, R `[D, G·H, H]`, then optional: bias `[D, 2·G·H]` (of W, then of
/// R), sequence lengths i32 `[B]`, initial states `[D, B, H]`, peephole weights `[D, peepholes·H]`.
/// Outputs: Y `[T, D, B, H]`, zero past a sequence's length, and each final state `[D, B, H]`, that after the
/// sequence's last step; an empty sequence keeps its initial states.
pub(crate) struct Recurrent {
    pub(crate) hidden: usize,
    pub(crate) direction: Direction,
    pub(crate) gates: usize,
    /// State vectors of a cell, the first of which is its output.
    pub(crate) states: usize,
    /// Peephole vectors; with none there is no such input.
    pub(crate) peepholes: usize,
    /// Whether the state's part has its left operand rounded as one row of DynamicQuantizeLinear.
    pub(crate) quantize_state: bool,
}

/// The weights of one direction.
pub(crate) struct Weights<'a> {
    w: &'a [f64],
    r: &'a [f64],
    bias: Option<&'a [f64]>,
    peepholes: Option<&'a [f64]>,
    hidden: usize,
    features: usize,
    gates: usize,
    quantize_state: bool,
}

impl Weights<'_> {
    /// `W x + bias` of one gate.
    pub(crate) fn input(&self, gate: usize, x: &[f64]) -> Vec<f64> {
        self.affine(self.w, self.features, gate, 0, x)
    }

    /// `R h + bias` of one gate, h perhaps rounded.
    pub(crate) fn state(&self, gate: usize, h: &[f64]) -> Vec<f64> {
        match self.quantize_state {
            true => self.affine(self.r, self.hidden, gate, self.gates, &rounded(h)),
            false => self.affine(self.r, self.hidden, gate, self.gates, h),
        }
    }

    /// `W x + R h + biases` of one gate.
    pub(crate) fn both(&self, gate: usize, x: &[f64], h: &[f64]) -> Vec<f64> {
        self.input(gate, x).into_iter().zip(self.state(gate, h)).map(|(a, b)| a + b).collect()
    }

    /// The element of a peephole vector; 0 where the operator has none.
    pub(crate) fn peephole(&self, vector: usize, element: usize) -> f64 {
        self.peepholes.map_or(0.0, |p| p[vector * self.hidden + element])
    }

    fn affine(&self, matrix: &[f64], columns: usize, gate: usize, first_bias: usize, v: &[f64]) -> Vec<f64> {
        (0..self.hidden)
            .map(|i| {
                let row = &matrix[(gate * self.hidden + i) * columns..][..columns];
                let bias = self.bias.map_or(0.0, |b| b[(first_bias + gate) * self.hidden + i]);
                bias + row.iter().zip(v).map(|(w, v)| w * v).sum::<f64>()
            })
            .collect()
    }
}

impl Recurrent {
    const LENGTHS: usize = 4;
    const FIRST_STATE: usize = 5;

    fn peephole_input(&self) -> usize {
        Self::FIRST_STATE + self.states
    }

    /// Output types: Y, then the final states.
    pub(crate) fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(3..=self.peephole_input() + usize::from(self.peepholes > 0))?;
        let x = cx.ty(0)?;
        ensure!(x.dtype.is_float() && x.rank() == 3, "X must be floats of rank 3, found {x}");
        ensure!(self.hidden > 0, "the hidden size must be positive");
        let [steps, batch, features] = [0, 1, 2].map(|axis| x.shape[axis].clone());
        let hidden = Dim::from(self.hidden);
        let directions = Dim::from(self.direction.count());
        let gates = hidden.clone() * Dim::from(self.gates);
        let expect = |index: usize, name: &str, dtype: DType, shape: &[&Dim]| match cx.opt(index) {
            None if index < 3 => Err(Mismatch::new(format!("{name} is missing"))),
            None => Ok(()),
            Some(ty) => {
                let expected = TensorType { dtype, shape: shape.iter().map(|&d| d.clone()).collect() };
                ensure!(expected.accepts(ty), "{name} must be {expected} for X {x}, found {ty}");
                Ok(())
            }
        };
        let twice = gates.clone() * Dim::from(2usize);
        expect(1, "W", x.dtype, &[&directions, &gates, &features])?;
        expect(2, "R", x.dtype, &[&directions, &gates, &hidden])?;
        expect(3, "the bias", x.dtype, &[&directions, &twice])?;
        expect(Self::LENGTHS, "sequence lengths", DType::I32, &[&batch])?;
        for state in 0..self.states {
            expect(Self::FIRST_STATE + state, "an initial state", x.dtype, &[&directions, &batch, &hidden])?;
        }
        if self.peepholes > 0 {
            let peepholes = hidden.clone() * Dim::from(self.peepholes);
            expect(self.peephole_input(), "the peepholes", x.dtype, &[&directions, &peepholes])?;
        }
        let state = [directions.clone(), batch.clone(), hidden.clone()].to_vec();
        let mut types = vec![TensorType { dtype: x.dtype, shape: vec![steps, directions, batch, hidden] }];
        types.extend((0..self.states).map(|_| TensorType { dtype: x.dtype, shape: state.clone() }));
        Ok(types)
    }

    /// Ties the hidden units, in all directions at once, and the features.
    pub(crate) fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        ensure!(!self.quantize_state, "rounds its state by the greatest of all units");
        cx.tie([Along::input(1, 2).summed(), Along::input(0, 2).summed()]);
        let state = (0..self.states).map(|state| Along::input(Self::FIRST_STATE + state, 2));
        let finals = (0..self.states).map(|state| Along::output(2).of(Operand::Output(1 + state)));
        let peepholes =
            (self.peepholes > 0).then(|| Along::input(self.peephole_input(), 1).repeats(self.peepholes));
        let weights = [
            Along::output(3),
            Along::input(1, 1).repeats(self.gates),
            Along::input(2, 1).repeats(self.gates),
            Along::input(2, 2).summed(),
            Along::input(3, 1).repeats(2 * self.gates),
        ];
        cx.tie(weights.into_iter().chain(state).chain(finals).chain(peepholes));
        Ok(())
    }

    /// The hidden units that are left of `hidden`.
    pub(crate) fn narrowed(hidden: usize, outputs: &[&TensorType]) -> usize {
        outputs.first().and_then(|y| y.shape.get(3)?.known()).unwrap_or(hidden)
    }

    /// The steps of each sequence: all, unless lengths are given.
    pub(crate) fn lengths(
        given: Option<&Tensor>,
        steps: usize,
        batch: usize,
    ) -> Result<Vec<usize>, Mismatch> {
        let Some(given) = given else { return Ok(vec![steps; batch]) };
        let of = |length: i64| usize::try_from(length).ok().filter(|&length| length <= steps);
        let lengths = given.to_i64s();
        let found: Option<Vec<usize>> = lengths.iter().map(|&length| of(length)).collect();
        found.ok_or_else(|| Mismatch::new(format!("sequence lengths {lengths:?} must lie in 0..={steps}")))
    }

    /// Runs `cell` over every step of every sequence in each direction. It gets the weights, the features of the
    /// step, and the states to update.
    pub(crate) fn eval(
        &self,
        cx: &EvalCx,
        cell: impl Fn(&Weights, &[f64], &mut [Vec<f64>]),
    ) -> Result<Vec<Tensor>, Mismatch> {
        let (x, directions, hidden) = (cx.get(0)?, self.direction.count(), self.hidden);
        let &[steps, batch, features] = x.shape() else {
            return Err(Mismatch::new("X must have rank 3"));
        };
        let mut finals = (0..self.states)
            .map(|_| room(&[directions, batch, hidden]))
            .collect::<Result<Vec<Vec<f64>>, Mismatch>>()?;
        let lengths = Self::lengths(cx.opt(Self::LENGTHS), steps, batch)?;
        let (xs, w, r) = (x.to_f64s(), cx.get(1)?.to_f64s(), cx.get(2)?.to_f64s());
        let bias = cx.opt(3).map(Tensor::to_f64s);
        let peepholes = cx.opt(self.peephole_input()).map(Tensor::to_f64s);
        let initial: Vec<Option<Vec<f64>>> =
            (0..self.states).map(|s| cx.opt(Self::FIRST_STATE + s).map(Tensor::to_f64s)).collect();

        let mut y = Tensor::zeros(DType::F64, &[steps, directions, batch, hidden])?;
        let out = y.as_mut_slice::<f64>()?;
        for d in 0..directions {
            let weights = Weights {
                w: part(&w, d, directions),
                r: part(&r, d, directions),
                bias: bias.as_ref().map(|b| part(b, d, directions)),
                peepholes: peepholes.as_ref().map(|p| part(p, d, directions)),
                hidden,
                features,
                gates: self.gates,
                quantize_state: self.quantize_state,
            };
            for (b, &length) in lengths.iter().enumerate() {
                let row = d * batch + b;
                let state_of = |initial: &Option<Vec<f64>>| match initial {
                    Some(values) => values[row * hidden..][..hidden].to_vec(),
                    None => vec![0.0; hidden],
                };
                let mut states: Vec<Vec<f64>> = initial.iter().map(state_of).collect();
                for step in 0..length {
                    let t = if self.direction.reverses(d) { length - 1 - step } else { step };
                    cell(&weights, &xs[(t * batch + b) * features..][..features], &mut states);
                    out[(t * directions * batch + row) * hidden..][..hidden].copy_from_slice(&states[0]);
                }
                finals.iter_mut().zip(states).for_each(|(all, state)| all.extend(state));
            }
        }
        let mut results = vec![y.cast(x.dtype())];
        for state in finals {
            results.push(Tensor::from_f64s(x.dtype(), &[directions, batch, hidden], &state)?);
        }
        Ok(results)
    }

    /// Multiply-adds: both matrices once for every step of every sequence.
    pub(crate) fn macs(&self, inputs: &[Option<&TensorType>]) -> Dim {
        let Some(x) = inputs.first().copied().flatten() else { return Dim::from(0usize) };
        let [steps, batch, features] = x.shape.as_slice() else { return Dim::from(0usize) };
        let hidden = Dim::from(self.hidden);
        let rows = hidden.clone() * Dim::from(self.gates) * Dim::from(self.direction.count());
        steps.clone() * batch.clone() * rows * (features.clone() + hidden)
    }

    /// Random inputs, with each optional one present or not.
    pub(crate) fn inputs(&self, g: &mut Gen) -> Vec<Arg> {
        let (steps, batch, features) = (g.size(1, 5), g.size(1, 3), g.size(1, 9));
        let (d, hidden) = (self.direction.count(), self.hidden);
        let weights = |g: &mut Gen, shape: &[usize]| Arg::Const(g.uniform(DType::F32, shape, -0.7, 0.7));
        let maybe = |g: &mut Gen, arg: Arg| if g.flag() { arg } else { Arg::Absent };
        let mut inputs = vec![
            g.var(&[steps, batch, features]),
            weights(g, &[d, self.gates * hidden, features]),
            weights(g, &[d, self.gates * hidden, hidden]),
        ];
        let bias = weights(g, &[d, 2 * self.gates * hidden]);
        inputs.push(maybe(g, bias));
        let lengths: Vec<i32> = (0..batch).map(|_| i32::try_from(g.size(1, steps)).unwrap_or(1)).collect();
        inputs.push(maybe(g, Arg::Var(Tensor::vector(&lengths))));
        for _ in 0..self.states {
            let state = g.var(&[d, batch, hidden]);
            inputs.push(maybe(g, state));
        }
        if self.peepholes > 0 {
            let peepholes = weights(g, &[d, self.peepholes * hidden]);
            inputs.push(maybe(g, peepholes));
        }
        inputs
    }
}

/// The `index`-th of `count` equal parts.
fn part(values: &[f64], index: usize, count: usize) -> &[f64] {
    let len = values.len() / count;
    &values[index * len..][..len]
}

/// The tolerance of a case: a state next to a rounding boundary may fall on the other side of it, a 255th of the
/// state's range, and moves the gates by that times a weight.
pub(crate) fn rounding(quantize_state: bool) -> f64 {
    if quantize_state { 2e-2 } else { 2e-5 }
}

/// The logistic function.
pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
