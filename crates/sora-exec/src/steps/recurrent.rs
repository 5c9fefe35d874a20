//! Recurrent layers: the input's part of all steps as one product, then step by step the state's part.
//!
//! The hidden units are divided into shares, each with its own columns of the weights. Threads that take some shares
//! each keep these weights in caches of their own; between steps they exchange nothing but the state.

use sora_kernels::{
    ARows, Activation, Binary, Dense, Dequant, EpilogueF32, Kernels, MatMut, Output, PackedBf16, PackedF32,
    Rhs, Unary, bf16, elementwise, gemm_bf16, gemm_f32, gemv_bf16, gemv_f32, gemv_u8i8, quantize, recurrent,
};
use sora_threads::{Board, Columns};

use super::dynamic::{RowBytes, of_rows};
use super::{Cx, Io, Work};

/// Multiply-adds of a share and a step, below which meeting after the step takes as long.
const LEAST_SHARE: usize = 16_000;

/// Shares are of multiples of so many units: what they write lies on different cache lines.
const UNITS: usize = 16;

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

/// A matrix of weights.
pub(crate) enum Matrix {
    Real(PackedF32),
    /// For a left operand that is rounded to bf16, or comes so.
    Bf16(PackedBf16),
    /// For a left operand that is quantized row by row, or comes so.
    Bytes(RowBytes),
}

impl Matrix {
    fn bytes(&self) -> usize {
        match self {
            Matrix::Real(packed) => packed.bytes(),
            Matrix::Bf16(packed) => packed.bytes(),
            Matrix::Bytes(weights) => weights.packed.bytes(),
        }
    }
}

/// The weights of some hidden units, consecutive ones, of one direction.
pub(crate) struct Share {
    pub(crate) units: usize,
    /// `[input, gates * units]`.
    pub(crate) input: Matrix,
    /// Added with the input's part: all biases, but for [`Cell::GruAfter`] that of the candidate's recurrent part.
    pub(crate) bias: Vec<f32>,
    /// `[hidden, gates * units]`, the candidate's columns left out for [`Cell::GruBefore`].
    pub(crate) state: Matrix,
    /// Columns of the candidate for [`Cell::GruBefore`].
    pub(crate) candidate: Option<Matrix>,
    /// `[units]`, for [`Cell::GruAfter`].
    pub(crate) candidate_bias: Vec<f32>,
    /// `[3 * units]`, for [`Cell::Lstm`].
    pub(crate) peephole: Option<Vec<f32>>,
}

/// The weights of one direction.
pub(crate) struct Direction {
    pub(crate) reverse: bool,
    /// Each of [`share_of`] units, but for the last one.
    pub(crate) shares: Vec<Share>,
}

/// Hidden units of a share, for so many threads: all of them where sharing a step cannot gain.
pub(crate) fn share_of(cell: Cell, batch: usize, hidden: usize, threads: usize) -> usize {
    let most = (batch * cell.gates() * hidden * hidden / LEAST_SHARE).clamp(1, threads);
    hidden.div_ceil(most).next_multiple_of(if most > 1 { UNITS } else { 1 }).min(hidden)
}

/// Lengths of the parts of the scratch of a share of some units, in `f32` elements: the five of [`Part`], those of [`Rounding`].
fn extents(cell: Cell, [steps, batch, hidden]: [usize; 3], units: usize) -> [usize; 9] {
    let (columns, states) = (cell.gates() * units, batch * units);
    let words = |bytes: usize| bytes.div_ceil(size_of::<f32>());
    [
        steps * batch * columns,
        batch * columns,
        states,
        states,
        states,
        columns,
        batch * hidden,
        batch,
        words(batch),
    ]
}

/// Scratch of a layer with shares of `each` units, in `f32` elements: a second board, then that of the shares.
pub(crate) fn scratch(cell: Cell, [steps, batch, hidden, each]: [usize; 4]) -> usize {
    let units = (0..hidden).step_by(each.max(1)).map(|first| each.min(hidden - first));
    let share = |units| extents(cell, [steps, batch, hidden], units).iter().sum::<usize>();
    batch * hidden + units.map(share).sum::<usize>()
}

/// A recurrent layer.
///
/// Inputs: X `[steps, batch, features]` in the type of the input's matrix, bytes with scales and zero points; then the lengths of
/// the sequences, i32 `[batch]`, and the initial states `[directions, batch, hidden]`, those that are given.
/// Outputs: Y `[steps, directions, batch, hidden]`, the final states, and [`scratch`].
pub(crate) struct Recurrent {
    pub(crate) cell: Cell,
    pub(crate) steps: usize,
    pub(crate) batch: usize,
    pub(crate) features: usize,
    pub(crate) hidden: usize,
    pub(crate) directions: Vec<Direction>,
    /// Whether sequences have lengths of their own.
    pub(crate) lengths: bool,
    /// Which initial states are given.
    pub(crate) initial: Vec<bool>,
}

/// The features of all steps.
#[derive(Clone, Copy)]
enum Features<'a> {
    Real(&'a [f32]),
    Bf16(&'a [u16]),
    Bytes(&'a [u8], (&'a [f32], &'a [u8])),
}

/// A batch of sequences.
#[derive(Clone, Copy)]
struct Sequences<'a> {
    features: Features<'a>,
    /// All steps where there are none. The state stays at steps past a sequence's length, which come first in a direction that
    /// reverses.
    lengths: Option<&'a [i32]>,
}

impl Sequences<'_> {
    /// Whether a sequence has a step.
    fn has(&self, sequence: usize, step: usize) -> bool {
        self.lengths.is_none_or(|lengths| usize::try_from(lengths[sequence]).is_ok_and(|n| step < n))
    }

    /// The first of `batch` sequences, up to the last one that has a step.
    fn until(&self, step: usize, batch: usize) -> usize {
        (0..batch).rfind(|&sequence| self.has(sequence, step)).map_or(0, |last| last + 1)
    }
}

/// Refuses lengths of sequences that have more than `steps`, or less than none.
///
/// # Errors
/// A sentence that says so.
pub(super) fn check_lengths(lengths: Option<&[i32]>, steps: usize) -> Result<(), String> {
    let fits = |&length: &i32| usize::try_from(length).is_ok_and(|length| length <= steps);
    match lengths.filter(|lengths| !lengths.iter().all(fits)) {
        Some(lengths) => Err(format!("sequence lengths {lengths:?} must lie in 0..={steps}")),
        None => Ok(()),
    }
}

/// Memory for what lies between a state and its products.
struct Rounding<'a> {
    sums: &'a mut [i32],
    rounded: &'a mut [f32],
    scales: &'a mut [f32],
    zero_points: &'a mut [u8],
}

/// A share at work.
struct Part<'a> {
    share: &'a Share,
    x: Sequences<'a>,
    /// The share's first unit.
    first: usize,
    /// The input's part of all steps, `[steps, batch, gates * units]`.
    inputs: &'a mut [f32],
    /// The state's part of one step, `[batch, gates * units]`.
    sums: &'a mut [f32],
    /// The state and the cell's (for [`Cell::GruBefore`], the update gate), `[batch, units]`.
    h: &'a mut [f32],
    c: &'a mut [f32],
    /// `[batch, units]`, for what [`Cell::GruBefore`] resets.
    reset: &'a mut [f32],
    rounding: Rounding<'a>,
    /// Where the state of every step goes; only the first share has it.
    y: Option<&'a mut [f32]>,
}

impl Recurrent {
    /// The input's part of all steps.
    fn inputs(&self, cx: &Cx, share: &Share, x: Features, out: &mut [f32]) {
        let (columns, features) = (self.cell.gates() * share.units, self.features);
        cx.threads.chunks(out.len() * features, columns, out, |start, out| {
            let (first, rows) = (start / columns, out.len() / columns);
            let part = first * features..(first + rows) * features;
            let out = Output::F32(MatMut::new(out, rows, columns, columns));
            let epilogue = EpilogueF32 { bias: Some(&share.bias), ..EpilogueF32::default() };
            match (&share.input, x) {
                (Matrix::Bf16(b), Features::Bf16(x)) => {
                    let a = Dense { data: &x[part], rows, stride: features, k: features };
                    gemm_bf16(cx.kernels, &ARows::Dense(a), b, 0, &epilogue, out);
                }
                (Matrix::Real(b), Features::Real(x)) => {
                    let a = Dense { data: &x[part], rows, stride: features, k: features };
                    gemm_f32(cx.kernels, &ARows::Dense(a), b, 0, &epilogue, out);
                }
                (Matrix::Bytes(b), Features::Bytes(x, params)) => {
                    let (params, plain) = (of_rows(params, first, rows), (None, Activation::None));
                    b.multiply(cx.kernels, &x[part], params, 0, plain, out);
                }
                _ => unreachable!("the input's matrix is of the type of the features"),
            }
        });
    }

    /// `out = state · matrix`, the state `[rows, hidden]`. One row walks the matrix the other way at every step
    /// and so finds a part of it in the nearest cache.
    fn product(
        &self,
        k: Kernels,
        state: &[f32],
        matrix: &Matrix,
        step: usize,
        rounding: &mut Rounding,
        out: &mut [f32],
    ) {
        let (hidden, backwards) = (self.hidden, step % 2 == 1);
        let rows = state.len() / hidden;
        if rows == 0 {
            return;
        }
        let columns = out.len() / rows;
        match matrix {
            Matrix::Real(b) if rows == 1 => gemv_f32(k, state, b, 0, backwards, out),
            Matrix::Real(b) => {
                let a = ARows::Dense(Dense { data: state, rows, stride: hidden, k: hidden });
                let out = Output::F32(MatMut::new(out, rows, columns, columns));
                gemm_f32(k, &a, b, 0, &EpilogueF32::default(), out);
            }
            Matrix::Bf16(b) => {
                let halves = &mut bytemuck::cast_slice_mut(rounding.rounded)[..state.len()];
                bf16::round_all(k, state, halves);
                if rows == 1 {
                    return gemv_bf16(k, halves, b, 0, backwards, out);
                }
                let a = ARows::Dense(Dense { data: &*halves, rows, stride: hidden, k: hidden });
                let out = Output::F32(MatMut::new(out, rows, columns, columns));
                gemm_bf16(k, &a, b, 0, &EpilogueF32::default(), out);
            }
            Matrix::Bytes(b) => {
                let Rounding { sums, rounded, scales, zero_points } = rounding;
                let (scales, zero_points) = (&mut scales[..rows], &mut zero_points[..rows]);
                let bytes = &mut bytemuck::cast_slice_mut(rounded)[..state.len()];
                quantize::dynamic_rows_u8(k, state, hidden, bytes, scales, zero_points);
                if let (&[scale], &[zero_point]) = (&scales[..], &zero_points[..]) {
                    let (sums, left) =
                        (&mut sums[..columns], Dequant { scale, zero_point: i32::from(zero_point) });
                    gemv_u8i8(k, bytes, &b.packed, 0, backwards, sums);
                    quantize::dequantize_sums(k, sums, left, b.packed.col_sums(), &b.scale, out);
                } else {
                    let out = Output::F32(MatMut::new(out, rows, columns, columns));
                    b.multiply(k, bytes, (scales, zero_points), 0, (None, Activation::None), out);
                }
            }
        }
    }

    /// Rounds per step, in each of which all shares need the other shares' results of the one before.
    fn rounds(&self) -> usize {
        if self.cell == Cell::GruBefore { 2 } else { 1 }
    }

    /// The step that comes `n`-th in a direction.
    fn step(&self, direction: &Direction, n: usize) -> usize {
        if direction.reverse { self.steps - 1 - n } else { n }
    }

    /// One round of a share: `state` is what all have written in the round before, `out` what this one writes.
    fn round(
        &self,
        k: Kernels,
        d: usize,
        part: &mut Part,
        round: usize,
        state: &[f32],
        mut out: Columns<f32>,
    ) {
        let (direction, n) = (&self.directions[d], round / self.rounds());
        let (step, second) = (self.step(direction, n), round % self.rounds() == 1);
        if let Some(y) = part.y.as_deref_mut().filter(|_| n > 0 && !second) {
            self.store(d, n - 1, part.x, state, y);
        }
        let Part { share, x, inputs, sums, h, c, reset, rounding, .. } = part;
        let (batch, units, columns) = (self.batch, share.units, self.cell.gates() * share.units);
        let inputs = &inputs[step * batch * columns..][..batch * columns];
        let rows = x.until(step, batch);
        let state = &state[..rows * self.hidden];
        let at = |row: usize, width: usize| row * width..(row + 1) * width;
        let rows = 0..rows;
        let active = rows.clone().filter(|&row| x.has(row, step));
        let written: &mut [f32] = match self.cell {
            Cell::Lstm => {
                self.product(k, state, &share.state, n, rounding, &mut sums[..rows.len() * columns]);
                for row in active {
                    let (gates, units) = (at(row, columns), at(row, units));
                    let (c, h) = (&mut c[units.clone()], &mut h[units]);
                    let peephole = share.peephole.as_deref();
                    recurrent::lstm_step(k, &inputs[gates.clone()], &sums[gates], peephole, c, h);
                }
                h
            }
            Cell::GruAfter => {
                self.product(k, state, &share.state, n, rounding, &mut sums[..rows.len() * columns]);
                for row in active {
                    let (gates, h) = (at(row, columns), &mut h[at(row, units)]);
                    recurrent::gru_step(k, &inputs[gates.clone()], &sums[gates], &share.candidate_bias, h);
                }
                h
            }
            Cell::GruBefore if !second => {
                let two = 2 * units;
                self.product(k, state, &share.state, n, rounding, &mut sums[..rows.len() * two]);
                for row in active {
                    let (x, gates, units) = (&inputs[at(row, columns)], &sums[at(row, two)], at(row, units));
                    let (rh, z) = (&mut reset[units.clone()], &mut c[units.clone()]);
                    recurrent::gru_reset(k, x, gates, &h[units], rh, z);
                }
                reset
            }
            Cell::GruBefore => {
                if let Some(candidate) = &share.candidate {
                    self.product(k, state, candidate, n, rounding, &mut sums[..rows.len() * units]);
                    for row in active {
                        let (x, units) = (&inputs[at(row, columns)][2 * units..], at(row, units));
                        recurrent::gru_finish(k, x, &sums[units.clone()], &c[units.clone()], &mut h[units]);
                    }
                }
                h
            }
            Cell::Rnn(activation) => {
                self.product(k, state, &share.state, n, rounding, &mut sums[..rows.len() * columns]);
                for units in active.map(|row| at(row, units)) {
                    let (x, h) = (Rhs::Same(&inputs[units.clone()]), &mut h[units.clone()]);
                    elementwise::binary(k, Binary::Add, &sums[units], x, h);
                    elementwise::unary_inplace(k, Unary::Activation(activation), h);
                }
                h
            }
        };
        for (b, written) in written.chunks_exact(units).enumerate() {
            out.row(b).copy_from_slice(written);
        }
    }

    /// Copies the state after the `n`-th step into Y, zeros for the sequences that do not have it.
    fn store(&self, d: usize, n: usize, x: Sequences, state: &[f32], y: &mut [f32]) {
        let step = self.step(&self.directions[d], n);
        let y = &mut y[(step * self.directions.len() + d) * state.len()..][..state.len()];
        y.copy_from_slice(state);
        for (row, y) in y.chunks_exact_mut(self.hidden).enumerate() {
            if !x.has(row, step) {
                y.fill(0.0);
            }
        }
    }

    /// Runs a direction from the state `h` and the cell's, `c`, and leaves there the final ones.
    fn direction(
        &self,
        cx: &Cx,
        d: usize,
        x: Sequences,
        y: &mut [f32],
        [h, c]: [&mut [f32]; 2],
        mut scratch: &mut [f32],
    ) {
        let (direction, hidden) = (&self.directions[d], self.hidden);
        let mut take = |len: usize| scratch.split_off_mut(..len).unwrap_or_default();
        let board = take(self.batch * hidden);
        let mut first = 0;
        let mut y = Some(y);
        let mut parts: Vec<Part> = Vec::with_capacity(direction.shares.len());
        for share in &direction.shares {
            let [inputs, sums, own_h, own_c, reset, integers, rounded, scales, zero_points] =
                extents(self.cell, [self.steps, self.batch, hidden], share.units).map(&mut take);
            let copy = |own: &mut [f32], all: &[f32]| {
                for (own, all) in own.chunks_exact_mut(share.units).zip(all.chunks_exact(hidden)) {
                    own.copy_from_slice(&all[first..][..share.units]);
                }
            };
            copy(own_h, h);
            copy(own_c, c);
            let rounding = Rounding {
                sums: bytemuck::cast_slice_mut(integers),
                rounded,
                scales,
                zero_points: &mut bytemuck::cast_slice_mut(zero_points)[..self.batch],
            };
            let y = y.take();
            parts.push(Part { share, x, first, inputs, sums, h: own_h, c: own_c, reset, rounding, y });
            first += share.units;
        }
        let share = direction.shares.first().map_or(0, |share| share.units);
        let rounds = self.steps * self.rounds();
        let boards = Board { even: &mut *h, odd: &mut *board, rows: self.batch, share };
        cx.threads.in_step(&mut parts, boards, rounds, |part, round, state, out| {
            if round == 0 {
                self.inputs(cx, part.share, x.features, part.inputs);
            }
            self.round(cx.kernels, d, part, round, state, out);
        });
        if rounds % 2 == 1 {
            h.copy_from_slice(board);
        }
        for part in parts {
            for (own, all) in part.c.chunks_exact(part.share.units).zip(c.chunks_exact_mut(hidden)) {
                all[part.first..][..part.share.units].copy_from_slice(own);
            }
            if let Some(y) = part.y.filter(|_| self.steps > 0) {
                self.store(d, self.steps - 1, x, h, y);
            }
        }
    }
}

impl Work for Recurrent {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (features, mut input) = match self.directions[0].shares[0].input {
            Matrix::Real(_) => (Features::Real(io.input(0)), 0),
            Matrix::Bf16(_) => (Features::Bf16(io.input(0)), 0),
            Matrix::Bytes(_) => (Features::Bytes(io.input(0), (io.input(1), io.input(2))), 2),
        };
        let lengths = self.lengths.then(|| io.input::<i32>(input + 1));
        input += usize::from(self.lengths);
        check_lengths(lengths, self.steps)?;
        let x = Sequences { features, lengths };
        let y = io.output::<f32>();
        let h = io.output_at::<f32>(1);
        let states = self.cell.states();
        let mut none = [];
        let c = if states == 2 { io.output_at::<f32>(2) } else { &mut none[..] };
        let scratch = io.output_at::<f32>(1 + states);
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
        let matrices =
            |s: &Share| s.input.bytes() + s.state.bytes() + s.candidate.as_ref().map_or(0, Matrix::bytes);
        self.directions.iter().flat_map(|d| &d.shares).map(matrices).sum()
    }
}

/// A recurrent layer whose weights are known at run time only: the last inputs, which are packed in every run.
pub(crate) struct Live {
    pub(crate) weights: usize,
    /// The layer with these weights.
    pub(crate) make: Box<Make>,
}

type Make = dyn Fn(&[&[f32]]) -> Recurrent + Send + Sync;

impl Work for Live {
    fn run(&self, cx: &Cx, io: Io) -> Result<(), String> {
        let first = io.ins.len() - self.weights;
        let weights: Vec<&[f32]> = (first..io.ins.len()).map(|input| io.input(input)).collect();
        (self.make)(&weights).run(cx, io)
    }
}
