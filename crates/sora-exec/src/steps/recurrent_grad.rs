//! Backpropagation through time. Sequences are independent of each other, so threads share the batch.

use sora_ir::ops::{Cell, RnnActivation};
use sora_kernels::recurrent_grad::{Slope, gru_back, lstm_back, lstm_gates, rnn_back};
use sora_kernels::{ARows, Dense, EpilogueF32, Kernels, MatMut, Output, PackedF32, gemm_f32};

use super::recurrent::check_lengths;
use super::{Cx, Io, Work};

/// [`RecurrentGrad`](struct@sora_ir::ops::RecurrentGrad): its inputs and outputs, and as a last output scratch of
/// [`RecurrentGrad::scratch`].
pub(crate) struct RecurrentGrad {
    pub(crate) cell: Cell,
    pub(crate) reverse: bool,
    pub(crate) steps: usize,
    pub(crate) batch: usize,
    pub(crate) hidden: usize,
    /// Whether lengths, the initial c, and the gradients of the final h and c are given.
    pub(crate) given: [bool; 4],
}

/// Some sequences of the batch at work, with what is written for them.
struct Part<'a> {
    first: usize,
    rows: usize,
    /// By step.
    ds: Vec<&'a mut [f32]>,
    dp: Vec<&'a mut [f32]>,
    dh: &'a mut [f32],
    dc: &'a mut [f32],
    /// c before each step and behind the last one, then what a step passes on through the weights.
    scratch: &'a mut [f32],
}

/// What is read for the whole batch.
struct Given<'a> {
    p: &'a [f32],
    s: &'a [f32],
    r: &'a PackedF32,
    h: &'a [f32],
    dy: &'a [f32],
    lengths: Option<&'a [i32]>,
}

impl RecurrentGrad {
    /// Elements of `f32` for a sequence.
    fn scratch_row(&self) -> usize {
        self.hidden * (1 + if self.cell == Cell::Lstm { self.steps + 1 } else { 0 })
    }

    /// Elements of `f32`.
    pub(crate) fn scratch(&self) -> usize {
        self.batch * self.scratch_row()
    }

    /// The step that comes `n`-th.
    fn step(&self, n: usize) -> usize {
        if self.reverse { self.steps - 1 - n } else { n }
    }

    fn part(&self, k: Kernels, given: &Given, part: Part) {
        let Part { first, rows, mut ds, mut dp, dh, dc, scratch } = part;
        let (hidden, columns) = (self.hidden, self.hidden * self.cell.gates());
        let (passed, cs) = scratch.split_at_mut(rows * hidden);
        let has = |t: usize, row: usize| {
            given.lengths.is_none_or(|lengths| usize::try_from(lengths[first + row]).is_ok_and(|n| t < n))
        };
        let wide = |t: usize, row: usize| (t * self.batch + first + row) * columns..;
        let narrow = |t: usize, row: usize| (t * self.batch + first + row) * hidden..;
        let of = |row: usize, width: usize| row * width..(row + 1) * width;
        if self.cell == Cell::Lstm {
            for n in 0..self.steps {
                let t = self.step(n);
                let (before, next) = cs[n * rows * hidden..].split_at_mut(rows * hidden);
                for row in 0..rows {
                    let (c, next) = (&before[of(row, hidden)], &mut next[of(row, hidden)]);
                    match has(t, row) {
                        false => next.copy_from_slice(c),
                        true => {
                            let [p, s] = [given.p, given.s].map(|x| &x[wide(t, row)][..columns]);
                            lstm_gates(k, p, s, c, &mut ds[t][of(row, columns)], next);
                        }
                    }
                }
            }
        }
        for n in (0..self.steps).rev() {
            let t = self.step(n);
            let ds = &mut *ds[t];
            for row in 0..rows {
                let gates = &mut ds[of(row, columns)];
                if !has(t, row) {
                    gates.fill(0.0);
                    dp.get_mut(t).into_iter().for_each(|dp| dp[of(row, columns)].fill(0.0));
                    continue;
                }
                let dh = &mut dh[of(row, hidden)];
                dh.iter_mut().zip(&given.dy[narrow(t, row)]).for_each(|(sum, dy)| *sum += dy);
                let [p, s] = [given.p, given.s].map(|x| &x[wide(t, row)][..columns]);
                match self.cell {
                    Cell::Lstm => {
                        let at = |n: usize| &cs[(n * rows + row) * hidden..][..hidden];
                        lstm_back(k, at(n), at(n + 1), dh, gates, &mut dc[of(row, hidden)]);
                        dh.fill(0.0);
                    }
                    Cell::Gru => {
                        let h = &given.h[narrow(t, row)][..hidden];
                        gru_back(k, p, s, h, dh, gates, &mut dp[t][of(row, columns)]);
                    }
                    Cell::Rnn(activation) => {
                        let slope = match activation {
                            RnnActivation::Tanh => Slope::Tanh,
                            RnnActivation::Relu => Slope::Relu,
                            RnnActivation::Sigmoid => Slope::Sigmoid,
                        };
                        rnn_back(k, slope, p, s, dh, gates);
                        dh.fill(0.0);
                    }
                }
            }
            let a = ARows::Dense(Dense { data: &*ds, rows, stride: columns, k: columns });
            let out = Output::F32(MatMut::new(passed, rows, hidden, hidden));
            gemm_f32(k, &a, given.r, 0, &EpilogueF32::default(), out);
            dh.iter_mut().zip(&*passed).for_each(|(sum, passed)| *sum += passed);
        }
    }
}

/// Takes the first elements off.
fn take<'a>(from: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    from.split_off_mut(..len).unwrap_or_default()
}

impl Work for RecurrentGrad {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (hidden, columns, lstm) = (self.hidden, self.hidden * self.cell.gates(), self.cell == Cell::Lstm);
        let mut next = 5;
        let mut optional = |given: bool| {
            next += usize::from(given);
            given.then_some(next - 1)
        };
        let [lengths, initial_c, final_h, final_c] = self.given.map(&mut optional);
        let lengths = lengths.map(|at| io.input::<i32>(at));
        check_lengths(lengths, self.steps)?;
        let r = PackedF32::from_kn(cx.kernels, io.input(2), columns, hidden, hidden);
        let (p, s, h, dy) = (io.input(0), io.input(1), io.input(3), io.input(4));
        let given = Given { p, s, r: &r, h, dy, lengths };
        let [initial_c, final_h, final_c] =
            [initial_c, final_h, final_c].map(|at| at.map(|at| io.input::<f32>(at)));
        let copy = |to: &mut [f32], from: Option<&[f32]>| match from {
            Some(from) => to.copy_from_slice(from),
            None => to.fill(0.0),
        };
        let (ds, dh) = (io.output::<f32>(), io.output_at::<f32>(1));
        let mut none: [&mut [f32]; 2] = Default::default();
        let (dc, dp, scratch) = match self.cell {
            Cell::Lstm => (io.output_at(2), core::mem::take(&mut none[0]), io.output_at::<f32>(3)),
            Cell::Gru => (core::mem::take(&mut none[0]), io.output_at(2), io.output_at(3)),
            Cell::Rnn(_) => (core::mem::take(&mut none[0]), core::mem::take(&mut none[1]), io.output_at(2)),
        };
        copy(dh, final_h);
        copy(dc, final_c.filter(|_| lstm));

        let parts = cx.threads.parts(self.steps * self.batch * columns * hidden).min(self.batch.max(1));
        let each = self.batch.div_ceil(parts).max(1);
        let mut shared = Vec::with_capacity(parts);
        let (mut dh, mut dc, mut scratch) = (dh, dc, scratch);
        for first in (0..self.batch).step_by(each) {
            let rows = each.min(self.batch - first);
            let scratch = take(&mut scratch, rows * self.scratch_row());
            if lstm {
                let c = &mut scratch[rows * hidden..][..rows * hidden];
                copy(c, initial_c.map(|c| &c[first * hidden..][..rows * hidden]));
            }
            let dh = take(&mut dh, rows * hidden);
            let dc = if lstm { take(&mut dc, rows * hidden) } else { Default::default() };
            shared.push(Part { first, rows, ds: Vec::new(), dp: Vec::new(), dh, dc, scratch });
        }
        for ds in ds.chunks_exact_mut((self.batch * columns).max(1)) {
            shared.iter_mut().zip(ds.chunks_mut(each * columns)).for_each(|(part, ds)| part.ds.push(ds));
        }
        for dp in dp.chunks_exact_mut((self.batch * columns).max(1)) {
            shared.iter_mut().zip(dp.chunks_mut(each * columns)).for_each(|(part, dp)| part.dp.push(dp));
        }
        cx.threads.each(shared, |part| self.part(cx.kernels, &given, part));
        Ok(())
    }
}
