//! Recurrent layers: the input's part of all steps as one product, then step by step the state's part.

use sora_kernels::{
    ARows, Activation, Binary, Dense, Dequant, EpilogueF32, Kernels, MatMut, Output, PackedF32, Rhs, Unary,
    elementwise, gemm_f32, gemv_f32, gemv_u8i8, quantize, recurrent,
};

use super::dynamic::{RowBytes, of_rows};
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

/// A matrix of weights.
pub(crate) enum Matrix {
    Real(PackedF32),
    /// For a left operand that is quantized row by row, or comes so.
    Bytes(RowBytes),
}

impl Matrix {
    fn bytes(&self) -> usize {
        match self {
            Matrix::Real(packed) => packed.bytes(),
            Matrix::Bytes(weights) => weights.packed.bytes(),
        }
    }
}

/// The weights of one direction.
pub(crate) struct Direction {
    pub(crate) reverse: bool,
    /// `[input, gates * hidden]`.
    pub(crate) input: Matrix,
    /// Added with the input's part: all biases, but for [`Cell::GruAfter`] that of the candidate's recurrent part.
    pub(crate) bias: Vec<f32>,
    /// `[hidden, gates * hidden]`, the candidate's columns left out for [`Cell::GruBefore`].
    pub(crate) state: Matrix,
    /// Columns of the candidate for [`Cell::GruBefore`].
    pub(crate) candidate: Option<Matrix>,
    /// `[hidden]`, for [`Cell::GruAfter`].
    pub(crate) candidate_bias: Vec<f32>,
    /// `[3 * hidden]`, for [`Cell::Lstm`].
    pub(crate) peephole: Option<Vec<f32>>,
}

/// A recurrent layer.
///
/// Inputs: X `[steps, batch, features]`, as bytes with scales and zero points if the input's matrix is of bytes;
/// then the initial states that are given, `[directions, batch, hidden]`.
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

/// The features of all steps.
#[derive(Clone, Copy)]
enum Features<'a> {
    Real(&'a [f32]),
    Bytes(&'a [u8], (&'a [f32], &'a [u8])),
}

/// Memory for what lies between a state and its products.
struct Rounding<'a> {
    sums: &'a mut [i32],
    bytes: &'a mut [u8],
    scales: &'a mut [f32],
    zero_points: &'a mut [u8],
}

impl Recurrent {
    fn columns(&self) -> usize {
        self.cell.gates() * self.hidden
    }

    /// Lengths of the parts of the scratch, in `f32` elements: the input's part of all steps and the state's part
    /// of one, two vectors, and the parts of [`Rounding`].
    fn parts(&self) -> [usize; 8] {
        let (columns, states) = (self.columns(), self.batch * self.hidden);
        let rows = self.steps * self.batch;
        let words = |bytes: usize| bytes.div_ceil(size_of::<f32>());
        [
            rows * columns,
            self.batch * columns,
            states,
            states,
            columns,
            words(states),
            self.batch,
            words(self.batch),
        ]
    }

    /// Scratch, in `f32` elements.
    pub(crate) fn scratch(&self) -> usize {
        self.parts().iter().sum()
    }

    /// The input's part of all steps.
    fn inputs(&self, cx: &Cx, direction: &Direction, x: Features, out: &mut [f32]) {
        let (columns, features) = (self.columns(), self.features);
        cx.threads.chunks(out.len() * features, columns, out, |start, out| {
            let (first, rows) = (start / columns, out.len() / columns);
            let part = first * features..(first + rows) * features;
            let out = Output::F32(MatMut::new(out, rows, columns, columns));
            match (&direction.input, x) {
                (Matrix::Real(b), Features::Real(x)) => {
                    let bias = Some(&direction.bias[..]);
                    let a = Dense { data: &x[part], rows, stride: features, k: features };
                    let epilogue = EpilogueF32 { bias, ..EpilogueF32::default() };
                    gemm_f32(cx.kernels, &ARows::Dense(a), b, 0, &epilogue, out);
                }
                (Matrix::Bytes(b), Features::Bytes(x, params)) => {
                    let (params, plain) = (of_rows(params, first, rows), (None, Activation::None));
                    b.multiply(cx.kernels, &x[part], params, 0, plain, out);
                }
                _ => unreachable!("the input's matrix is of bytes where the features are"),
            }
        });
    }

    /// `out = state · matrix`, the state `[batch, hidden]`. One row walks the matrix the other way at every step
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
        let columns = out.len() / self.batch;
        match matrix {
            Matrix::Real(b) if self.batch == 1 => gemv_f32(k, state, b, 0, backwards, out),
            Matrix::Real(b) => {
                let a = ARows::Dense(Dense { data: state, rows: self.batch, stride: hidden, k: hidden });
                let out = Output::F32(MatMut::new(out, self.batch, columns, columns));
                gemm_f32(k, &a, b, 0, &EpilogueF32::default(), out);
            }
            Matrix::Bytes(b) => {
                let Rounding { sums, bytes, scales, zero_points } = rounding;
                quantize::dynamic_rows_u8(k, state, hidden, bytes, scales, zero_points);
                if let (&[scale], &[zero_point]) = (&scales[..], &zero_points[..]) {
                    let (sums, left) =
                        (&mut sums[..columns], Dequant { scale, zero_point: i32::from(zero_point) });
                    gemv_u8i8(k, bytes, &b.packed, 0, backwards, sums);
                    quantize::dequantize_sums(k, sums, left, b.packed.col_sums(), &b.scale, out);
                } else {
                    let out = Output::F32(MatMut::new(out, self.batch, columns, columns));
                    b.multiply(k, bytes, (scales, zero_points), 0, (None, Activation::None), out);
                }
            }
        }
    }

    fn direction(
        &self,
        cx: &Cx,
        d: usize,
        x: Features,
        y: &mut [f32],
        states: [&mut [f32]; 2],
        mut scratch: &mut [f32],
    ) {
        let (direction, k) = (&self.directions[d], cx.kernels);
        let (batch, hidden, columns) = (self.batch, self.hidden, self.columns());
        let [inputs, sums, first, second, integers, bytes, scales, zero_points] =
            self.parts().map(|len| scratch.split_off_mut(..len).unwrap_or_default());
        let rounding = &mut Rounding {
            sums: bytemuck::cast_slice_mut(integers),
            bytes: &mut bytemuck::cast_slice_mut(bytes)[..batch * hidden],
            scales,
            zero_points: &mut bytemuck::cast_slice_mut(zero_points)[..batch],
        };
        self.inputs(cx, direction, x, inputs);
        let [h, c] = states;
        for step in 0..self.steps {
            let t = if direction.reverse { self.steps - 1 - step } else { step };
            let inputs = &inputs[t * batch * columns..][..batch * columns];
            let rows = inputs.chunks_exact(columns);
            match self.cell {
                Cell::Lstm => {
                    self.product(k, h, &direction.state, step, rounding, sums);
                    let states = c.chunks_exact_mut(hidden).zip(h.chunks_exact_mut(hidden));
                    for ((x, sums), (c, h)) in rows.zip(sums.chunks_exact(columns)).zip(states) {
                        recurrent::lstm_step(k, x, sums, direction.peephole.as_deref(), c, h);
                    }
                }
                Cell::GruAfter => {
                    self.product(k, h, &direction.state, step, rounding, sums);
                    let states = h.chunks_exact_mut(hidden);
                    for ((x, sums), h) in rows.zip(sums.chunks_exact(columns)).zip(states) {
                        recurrent::gru_step(k, x, sums, &direction.candidate_bias, h);
                    }
                }
                Cell::GruBefore => {
                    let Some(candidate) = &direction.candidate else { continue };
                    let two = 2 * hidden;
                    let gates = &mut sums[..batch * two];
                    self.product(k, h, &direction.state, step, rounding, gates);
                    let vectors = first.chunks_exact_mut(hidden).zip(second.chunks_exact_mut(hidden));
                    let gates = gates.chunks_exact(two).zip(h.chunks_exact(hidden));
                    for ((x, (gates, h)), (rh, z)) in rows.zip(gates).zip(vectors) {
                        recurrent::gru_reset(k, x, gates, h, rh, z);
                    }
                    let sums = &mut sums[..batch * hidden];
                    self.product(k, first, candidate, step, rounding, sums);
                    let sums = sums.chunks_exact(hidden).zip(second.chunks_exact(hidden));
                    let rows = inputs.chunks_exact(columns).zip(h.chunks_exact_mut(hidden));
                    for ((x, h), (sums, z)) in rows.zip(sums) {
                        recurrent::gru_finish(k, &x[two..], sums, z, h);
                    }
                }
                Cell::Rnn(activation) => {
                    self.product(k, h, &direction.state, step, rounding, sums);
                    elementwise::binary(k, Binary::Add, sums, Rhs::Same(inputs), h);
                    elementwise::unary_inplace(k, Unary::Activation(activation), h);
                }
            }
            let row = (t * self.directions.len() + d) * batch * hidden;
            y[row..row + batch * hidden].copy_from_slice(h);
        }
    }
}

impl Work for Recurrent {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, mut input) = match self.directions[0].input {
            Matrix::Real(_) => (Features::Real(io.input(0)), 0),
            Matrix::Bytes(_) => (Features::Bytes(io.input(0), (io.input(1), io.input(2))), 2),
        };
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
            |d: &Direction| d.input.bytes() + d.state.bytes() + d.candidate.as_ref().map_or(0, Matrix::bytes);
        self.directions.iter().map(matrices).sum()
    }
}
