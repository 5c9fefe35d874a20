//! Fourier transforms, windows and filter banks. A transform of a known length is a product with a constant matrix.

use std::f64::consts::{LN_10, TAU};

use sora_ir::ValueId;
use sora_ir::ops::{Binary, BinaryKind, Cast, Conv, MatMul, Slice, UnaryKind, Where};
use sora_tensor::{DType, Tensor};

use super::node::{Built, NodeCx, real, size};
use super::rows::{Row, onnx};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[
    onnx("BlackmanWindow", |cx| window(cx, &[0.42, -0.5, 0.08])),
    onnx("DFT", dft),
    onnx("HammingWindow", |cx| window(cx, &[25.0 / 46.0, -21.0 / 46.0])),
    onnx("HannWindow", |cx| window(cx, &[0.5, -0.5])),
    onnx("MelWeightMatrix", mel_weight_matrix),
    onnx("STFT", stft),
];

/// The most elements of a matrix that is made for a transform.
const MOST: usize = 1 << 25;

/// A transform of `length` points, of which `given` come in and `wanted` go out. Points are complex numbers (two) or real
/// ones (one), side by side.
struct Transform {
    length: usize,
    given: usize,
    given_parts: usize,
    wanted: usize,
    wanted_parts: usize,
    inverse: bool,
    /// Of an inverse transform: the points that come in stand for those of the other half, too.
    halved: bool,
}

impl Transform {
    /// Rows and columns of the matrix.
    fn sides(&self) -> [usize; 2] {
        [self.given.saturating_mul(self.given_parts), self.wanted.saturating_mul(self.wanted_parts)]
    }

    /// The matrix, `[given · parts, wanted · parts]`, that a row of points is multiplied by.
    fn matrix(&self) -> Result<Vec<f64>, Refusal> {
        let [rows, columns] = self.sides();
        if rows.checked_mul(columns).is_none_or(|n| n > MOST) {
            return Err(Refusal::new(format!("a transform of {} points is too long", self.length)));
        }
        let mut matrix = Vec::with_capacity(rows * columns);
        let length = real(self.length);
        let (sign, scale) = if self.inverse { (1.0, 1.0 / length) } else { (-1.0, 1.0) };
        for from in 0..self.given {
            // Every point but the first, and the middle one of an even length, has a twin.
            let twin = self.halved && from != 0 && 2 * from != self.length;
            let scale = if twin { 2.0 * scale } else { scale };
            for part in 0..self.given_parts {
                for to in 0..self.wanted {
                    let angle = TAU * real((from * to) % self.length) / length;
                    let (cos, sin) = (scale * angle.cos(), scale * sign * angle.sin());
                    // i (cos + i sin) = -sin + i cos
                    let number = if part == 0 { [cos, sin] } else { [-sin, cos] };
                    matrix.extend(number.into_iter().take(self.wanted_parts));
                }
            }
        }
        Ok(matrix)
    }

    /// The matrix as a constant.
    fn constant(&self, cx: &mut NodeCx, dtype: DType) -> Result<ValueId, Refusal> {
        let matrix = Tensor::from_f64s(dtype, &self.sides(), &self.matrix()?);
        let matrix = matrix.map_err(|e| Refusal::new(e.to_string()))?;
        Ok(cx.make("transform", matrix))
    }
}

/// The number that a scalar input has, if it is there; it must not depend on the model's inputs.
fn number(cx: &NodeCx, index: usize, name: &str) -> Result<Option<i64>, Refusal> {
    let Some(value) = cx.opt(index) else { return Ok(None) };
    let known = cx.known_ints(value).and_then(|known| known.first().copied());
    known.map(Some).ok_or_else(|| {
        Refusal::new(format!("`{name}` is computed while the model runs"))
            .hint("export the model with constant parameters, or simplify it with onnxsim")
    })
}

/// The extent of an axis, which must be known.
fn known_extent(cx: &NodeCx, x: ValueId, axis: usize) -> Result<usize, Refusal> {
    let known = cx.ty(x).shape.get(axis).and_then(sora_ir::Dim::known);
    known.ok_or_else(|| {
        Refusal::new(format!("axis {axis} of its input {} has no fixed extent", cx.ty(x)))
            .hint("export the model with a fixed length of the signal")
    })
}

/// How many numbers a point has: 1 if real, 2 if complex.
fn parts(cx: &NodeCx, x: ValueId) -> Result<usize, Refusal> {
    match cx.ty(x).shape.last().and_then(sora_ir::Dim::known) {
        Some(parts @ 1..=2) if cx.rank(x) >= 2 => Ok(parts),
        _ => Err(Refusal::new(format!("the last axis of its input {} is not one or two numbers", cx.ty(x)))),
    }
}

/// The axis became an input in opset 20.
fn dft(cx: &mut NodeCx) -> Built {
    let mut x = cx.input(0)?;
    let (rank, parts) = (cx.rank(x), parts(cx, x)?);
    let axis = match cx.opset < 20 {
        true => cx.int("axis", 1),
        false => number(cx, 2, "axis")?.unwrap_or(-2),
    };
    let axis = cx.axis(axis, x)?;
    if axis + 1 == rank {
        return Err(Refusal::new("its axis is that of the real and imaginary parts"));
    }
    let (inverse, one_sided) = (cx.flag("inverse", false), cx.flag("onesided", false));
    let extent = known_extent(cx, x, axis)?;
    let length = match number(cx, 1, "dft_length")? {
        Some(length) => size(length, "dft_length")?,
        None if inverse && one_sided => extent.saturating_sub(1).saturating_mul(2),
        None => extent,
    };
    if length == 0 || (inverse && one_sided && parts != 2) {
        return Err(Refusal::new(format!("it cannot make {length} points of {}", cx.ty(x))));
    }
    let half = length / 2 + 1;
    let most = if inverse && one_sided { half } else { length };
    let transform = Transform {
        length,
        // Points that are missing count as zeros.
        given: extent.min(most),
        given_parts: parts,
        wanted: if one_sided && !inverse { half } else { length },
        wanted_parts: if one_sided && inverse { 1 } else { 2 },
        inverse,
        halved: inverse && one_sided,
    };
    if extent > most {
        let [start, end, along] = [0, signed(most), signed(axis)].map(|v| cx.make_ints("bound", &[v]));
        x = cx.step("slice", Slice {}, [x, start, end, along])?;
    }
    // The axis and the parts come last, as one.
    let mut perm: Vec<usize> = (0..rank).filter(|&a| a != axis && a + 1 != rank).collect();
    perm.extend([axis, rank - 1]);
    let moved = cx.transpose(x, &perm)?;
    let keep = vec![0; rank - 2];
    let matrix = transform.constant(cx, cx.dtype(x))?;
    let flat = cx.reshape(moved, &[keep.clone(), vec![signed(transform.given * parts)]].concat())?;
    let product = cx.op(MatMul {}, [flat, matrix])?;
    let points = [signed(transform.wanted), signed(transform.wanted_parts)];
    let product = cx.reshape(product, &[&keep[..], &points].concat())?;
    let back: Vec<usize> = (0..rank).filter_map(|axis| perm.iter().position(|&from| from == axis)).collect();
    Ok(vec![cx.transpose(product, &back)?])
}

/// A convolution of the signal, whose parts are channels, by the rows of the transform times the window.
fn stft(cx: &mut NodeCx) -> Built {
    let signal = cx.input(0)?;
    let (parts, dtype) = (parts(cx, signal)?, cx.dtype(signal));
    if cx.rank(signal) != 3 {
        return Err(Refusal::new(format!("its input {} is not batch, length and parts", cx.ty(signal))));
    }
    let missing = || Refusal::new("its frame_step is missing");
    let step = size(number(cx, 1, "frame_step")?.ok_or_else(missing)?, "frame_step")?;
    let length = match (number(cx, 3, "frame_length")?, cx.opt(2)) {
        (Some(length), _) => size(length, "frame_length")?,
        (None, Some(window)) => known_extent(cx, window, 0)?,
        (None, None) => known_extent(cx, signal, 1)?,
    };
    if step == 0 || length == 0 {
        return Err(Refusal::new(format!("it has frames of {length} at steps of {step}")));
    }
    let wanted = if cx.flag("onesided", true) { length / 2 + 1 } else { length };
    let transform = Transform {
        length,
        given: length,
        given_parts: parts,
        wanted,
        wanted_parts: 2,
        inverse: false,
        halved: false,
    };
    let matrix = transform.constant(cx, dtype)?;
    // [length · parts, outputs] as the weights [outputs, parts, length] of a convolution.
    let matrix = cx.reshape(matrix, &[signed(length), signed(parts), -1])?;
    let mut weights = cx.transpose(matrix, &[2, 1, 0])?;
    if let Some(window) = cx.opt(2) {
        weights = cx.binary(BinaryKind::Mul, weights, window)?;
    }
    let weights = cx.constant(weights).map_or(weights, |known| cx.make("weights", known));
    let channels = cx.transpose(signal, &[0, 2, 1])?;
    let conv = Conv { strides: vec![step], pads: vec![0, 0], dilations: vec![1], group: 1 };
    let frames = cx.op(conv, [channels, weights])?;
    let frames = cx.transpose(frames, &[0, 2, 1])?;
    Ok(vec![cx.reshape(frames, &[0, 0, signed(wanted), 2])?])
}

/// A sum of cosines of the multiples of one angle, of which each element is a step further.
fn window(cx: &mut NodeCx, factors: &[f64]) -> Built {
    let to = cx.dtype_named_by("output_datatype", 1)?;
    let count = cx.input(0)?;
    let count = cx.cast(count, DType::I64)?;
    let places = cx.count_to(count)?;
    let places = cx.cast(places, DType::F64)?;
    let mut period = cx.cast(count, DType::F64)?;
    if !cx.flag("periodic", true) {
        let one = cx.scalar("one", DType::F64, 1.0);
        let less = cx.binary(BinaryKind::Sub, period, one)?;
        // A window of one element has no step.
        period = cx.binary(BinaryKind::Max, less, one)?;
    }
    let turn = cx.scalar("turn", DType::F64, TAU);
    let step = cx.binary(BinaryKind::Div, turn, period)?;
    let angle = cx.binary(BinaryKind::Mul, places, step)?;
    let mut sum = cx.scalar("term", DType::F64, factors.first().copied().unwrap_or(0.0));
    for (multiple, &factor) in factors.iter().enumerate().skip(1) {
        let multiple = cx.scalar("multiple", DType::F64, real(multiple));
        let angle = cx.binary(BinaryKind::Mul, angle, multiple)?;
        let cosine = cx.unary(UnaryKind::Cos, angle)?;
        let factor = cx.scalar("factor", DType::F64, factor);
        let term = cx.binary(BinaryKind::Mul, cosine, factor)?;
        sum = cx.binary(BinaryKind::Add, sum, term)?;
    }
    cx.add(Cast { to }, [sum])
}

/// Triangles over the bins of a spectrum, whose corners lie at even steps of the mel scale, `2595 log10(1 + f / 700)`
/// (O'Shaughnessy 1987), at the bins below.
fn mel_weight_matrix(cx: &mut NodeCx) -> Built {
    let to = cx.dtype_named_by("output_datatype", 1)?;
    let [bins, length] = [cx.input(0)?, cx.input(1)?];
    let bins = cx.cast(bins, DType::I64)?;
    let mut inputs = Vec::new();
    for index in 1..5 {
        let input = cx.input(index)?;
        inputs.push(cx.cast(input, DType::F64)?);
    }
    let [points, rate, low, high] = inputs[..] else { return Err(Refusal::new("it takes five inputs")) };
    let c = |cx: &mut NodeCx, value: f64| cx.scalar("number", DType::F64, value);
    let mel = |cx: &mut NodeCx, hertz: ValueId| {
        let (one, corner, factor) = (c(cx, 1.0), c(cx, 700.0), c(cx, 2595.0 / LN_10));
        let ratio = cx.binary(BinaryKind::Div, hertz, corner)?;
        let ratio = cx.binary(BinaryKind::Add, ratio, one)?;
        let log = cx.unary(UnaryKind::Log, ratio)?;
        cx.binary(BinaryKind::Mul, log, factor)
    };
    let (low, high) = (mel(cx, low)?, mel(cx, high)?);
    let two = cx.make("two", Tensor::scalar(2i64));
    let corners = cx.binary(BinaryKind::Add, bins, two)?;
    let count = cx.cast(corners, DType::F64)?;
    let span = cx.binary(BinaryKind::Sub, high, low)?;
    let step = cx.binary(BinaryKind::Div, span, count)?;
    let places = cx.count_to(corners)?;
    let places = cx.cast(places, DType::F64)?;
    let raised = cx.binary(BinaryKind::Mul, places, step)?;
    let mels = cx.binary(BinaryKind::Add, raised, low)?;
    // Back to hertz, and from there to bins.
    let (ten, scale, one, corner) = (c(cx, 10.0), c(cx, 2595.0), c(cx, 1.0), c(cx, 700.0));
    let exponent = cx.binary(BinaryKind::Div, mels, scale)?;
    let power = cx.binary(BinaryKind::Pow, ten, exponent)?;
    let less = cx.binary(BinaryKind::Sub, power, one)?;
    let hertz = cx.binary(BinaryKind::Mul, less, corner)?;
    let width = cx.binary(BinaryKind::Add, points, one)?;
    let wide = cx.binary(BinaryKind::Mul, hertz, width)?;
    let bin = cx.binary(BinaryKind::Div, wide, rate)?;
    let corners = cx.unary(UnaryKind::Floor, bin)?;
    let part = |cx: &mut NodeCx, start: i64, end: i64| {
        let [start, end] = [start, end].map(|v| cx.make_ints("bound", &[v]));
        cx.step("slice", Slice {}, [corners, start, end])
    };
    let (left, centre, right) = (part(cx, 0, -2)?, part(cx, 1, -1)?, part(cx, 2, i64::MAX)?);
    // Rows are the bins of the spectrum.
    let length = cx.cast(length, DType::I64)?;
    let half = cx.binary(BinaryKind::Div, length, two)?;
    let one_more = cx.make("one", Tensor::scalar(1i64));
    let rows = cx.binary(BinaryKind::Add, half, one_more)?;
    let rows = cx.count_to(rows)?;
    let rows = cx.cast(rows, DType::F64)?;
    let rows = cx.unsqueeze(rows, &[1])?;
    let zero = c(cx, 0.0);
    let rise = cx.binary(BinaryKind::Sub, centre, left)?;
    let steep = cx.binary(BinaryKind::Equal, rise, zero)?;
    let climbed = cx.binary(BinaryKind::Sub, rows, left)?;
    let slope = cx.binary(BinaryKind::Div, climbed, rise)?;
    let up = cx.step("up", Where {}, [steep, one, slope])?;
    let fall = cx.binary(BinaryKind::Sub, right, centre)?;
    let left_over = cx.binary(BinaryKind::Sub, right, rows)?;
    let down = cx.binary(BinaryKind::Div, left_over, fall)?;
    let inside = |cx: &mut NodeCx, from: ValueId, kind: BinaryKind, to: ValueId| {
        let after = cx.binary(BinaryKind::GreaterOrEqual, rows, from)?;
        let before = cx.binary(kind, rows, to)?;
        cx.step("inside", Binary { kind: BinaryKind::And }, [after, before])
    };
    let rising = inside(cx, left, BinaryKind::LessOrEqual, centre)?;
    let falling = inside(cx, centre, BinaryKind::Less, right)?;
    let up = cx.step("rising", Where {}, [rising, up, zero])?;
    let both = cx.step("falling", Where {}, [falling, down, up])?;
    cx.add(Cast { to }, [both])
}
