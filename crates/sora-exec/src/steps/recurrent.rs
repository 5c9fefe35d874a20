//! Recurrent layers: the input's part of all steps as one product, then step by step the state's part.

use sora_kernels::{
    ARows, Activation, Dense, EpilogueF32, Kernels, MatMut, Output, PackedF32, Residual, gemm_f32, recurrent,
};

use super::{Cx, Io, Work};

/// The cell of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cell {
    Lstm,
    /// Resets after the product with the state.
    GruAfter,
    /// Resets before the product with the state.
    GruBefore,
    Rnn(Activation),
}

impl Cell {
    /// Gates per hidden unit.
    pub(crate) fn gates(self) -> usize {
        match self {
            Cell::Lstm => 4,
            Cell::GruAfter | Cell::GruBefore => 3,
            Cell::Rnn(_) => 1,
        }
    }

    /// State vectors.
    pub(crate) fn states(self) -> usize {
        if self == Cell::Lstm { 2 } else { 1 }
    }
}

/// The weights of one direction.
pub(crate) struct Direction {
    pub(crate) reverse: bool,
    /// `[input, gates * hidden]`.
    pub(crate) input: PackedF32,
    /// Added with the input's part.
    pub(crate) input_bias: Vec<f32>,
    /// `[hidden, gates * hidden]`, the candidate's columns left out for [`Cell::GruBefore`].
    pub(crate) state: PackedF32,
    /// Added with the state's part.
    pub(crate) state_bias: Option<Vec<f32>>,
    /// Columns and biases of the candidate for [`Cell::GruBefore`].
    pub(crate) candidate: Option<(PackedF32, Vec<f32>)>,
    /// `[3 * hidden]`, for [`Cell::Lstm`].
    pub(crate) peephole: Option<Vec<f32>>,
}

/// A recurrent layer.
///
/// Inputs: X `[steps, batch, features]`, then the initial states that are given, `[directions, batch, hidden]`.
/// Outputs: Y `[steps, directions, batch, hidden]`, the final states, and scratch of [`Recurrent::scratch`].
pub(crate) struct Recurrent {
    pub(crate) cell: Cell,
    pub(crate) steps: usize,
    pub(crate) batch: usize,
    pub(crate) features: usize,
    pub(crate) hidden: usize,
    pub(crate) directions: Vec<Direction>,
    /// Which initial states are given.
    pub(crate) initial: Vec<bool>,
}

impl Recurrent {
    /// Scratch, in `f32` elements: input parts of all steps, state part of one, and two vectors.
    pub(crate) fn scratch(&self) -> usize {
        let gates = self.cell.gates() * self.hidden;
        self.steps * self.batch * gates + self.batch * gates + 2 * self.batch * self.hidden
    }

    fn direction(
        &self,
        cx: &Cx,
        d: usize,
        x: &[f32],
        y: &mut [f32],
        states: [&mut [f32]; 2],
        scratch: &mut [f32],
    ) {
        let (direction, k) = (&self.directions[d], cx.kernels);
        let (batch, hidden, gates) = (self.batch, self.hidden, self.cell.gates() * self.hidden);
        let (inputs, rest) = scratch.split_at_mut(self.steps * batch * gates);
        let (sums, rest) = rest.split_at_mut(batch * gates);
        let (first, second) = rest.split_at_mut(batch * hidden);
        let bias = Some(&direction.input_bias[..]);
        cx.threads.chunks(inputs.len() * self.features, gates, inputs, |start, inputs| {
            let rows = inputs.len() / gates;
            let x = &x[start / gates * self.features..][..rows * self.features];
            let epilogue = EpilogueF32 { bias, ..EpilogueF32::default() };
            product(k, x, &direction.input, &epilogue, inputs);
        });
        let [h, c] = states;
        for step in 0..self.steps {
            let t = if direction.reverse { self.steps - 1 - step } else { step };
            let inputs = &inputs[t * batch * gates..][..batch * gates];
            let residual = Some(Residual::F32 { data: inputs, ld: gates });
            let bias = direction.state_bias.as_deref();
            match self.cell {
                Cell::Lstm => {
                    let epilogue = EpilogueF32 { bias, residual, activation: Activation::None };
                    product(k, h, &direction.state, &epilogue, sums);
                    for b in 0..batch {
                        let unit = b * hidden..(b + 1) * hidden;
                        let gates = &sums[b * gates..][..gates];
                        let (c, h) = (&mut c[unit.clone()], &mut h[unit]);
                        recurrent::lstm_step(k, gates, direction.peephole.as_deref(), c, h);
                    }
                }
                Cell::GruAfter => {
                    product(k, h, &direction.state, &EpilogueF32 { bias, ..EpilogueF32::default() }, sums);
                    for b in 0..batch {
                        let row = b * gates..(b + 1) * gates;
                        let h = &mut h[b * hidden..(b + 1) * hidden];
                        recurrent::gru_step(k, &inputs[row.clone()], &sums[row], h);
                    }
                }
                Cell::GruBefore => {
                    let Some((candidate, candidate_bias)) = &direction.candidate else { continue };
                    let two = 2 * hidden;
                    let sums = &mut sums[..batch * two];
                    product(k, h, &direction.state, &EpilogueF32 { bias, ..EpilogueF32::default() }, sums);
                    for b in 0..batch {
                        let unit = b * hidden..(b + 1) * hidden;
                        let (rh, z) = (&mut first[unit.clone()], &mut second[unit.clone()]);
                        recurrent::gru_reset(
                            k,
                            &inputs[b * gates..],
                            &sums[b * two..][..two],
                            &h[unit],
                            rh,
                            z,
                        );
                    }
                    let sums = &mut sums[..batch * hidden];
                    let epilogue = EpilogueF32 { bias: Some(candidate_bias), ..EpilogueF32::default() };
                    product(k, first, candidate, &epilogue, sums);
                    for b in 0..batch {
                        let unit = b * hidden..(b + 1) * hidden;
                        let x = &inputs[b * gates + two..][..hidden];
                        recurrent::gru_finish(k, x, &sums[unit.clone()], &second[unit.clone()], &mut h[unit]);
                    }
                }
                Cell::Rnn(activation) => {
                    product(k, h, &direction.state, &EpilogueF32 { bias, residual, activation }, first);
                    h.copy_from_slice(first);
                }
            }
            let row = (t * self.directions.len() + d) * batch * hidden;
            y[row..row + batch * hidden].copy_from_slice(h);
        }
    }
}

/// `out = epilogue(a · b)` with contiguous rows.
fn product(k: Kernels, a: &[f32], b: &PackedF32, epilogue: &EpilogueF32<'_>, out: &mut [f32]) {
    let (n, depth) = (b.n(), b.kc());
    let rows = out.len() / n;
    let a = ARows::Dense(Dense { data: a, rows, stride: depth, k: depth });
    gemm_f32(k, &a, b, 0, epilogue, Output::F32(MatMut::new(out, rows, n, n)));
}

impl Work for Recurrent {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let x = io.input::<f32>(0);
        let y = io.output::<f32>();
        let h = io.output_at::<f32>(1);
        let states = self.cell.states();
        let mut none = [];
        let c = if states == 2 { io.output_at::<f32>(2) } else { &mut none[..] };
        let scratch = io.output_at::<f32>(1 + states);
        let mut input = 0;
        for (state, &given) in [&mut *h, &mut *c].into_iter().zip(&self.initial) {
            input += usize::from(given);
            match given {
                true => state.copy_from_slice(io.input(input)),
                false => state.fill(0.0),
            }
        }
        let size = self.batch * self.hidden;
        for d in 0..self.directions.len() {
            let h = &mut h[d * size..(d + 1) * size];
            let c = if states == 2 { &mut c[d * size..(d + 1) * size] } else { &mut c[..] };
            self.direction(cx, d, x, y, [h, c], scratch);
        }
        Ok(())
    }

    fn weight_bytes(&self) -> usize {
        let candidate = |d: &Direction| d.candidate.as_ref().map_or(0, |(packed, _)| packed.bytes());
        self.directions.iter().map(|d| d.input.bytes() + d.state.bytes() + candidate(d)).sum()
    }
}
