//! Per-channel scales and shifts around convolutions and matrix products, folded into weights and biases.

use sora_ir::case::Gen;
use sora_ir::ops::{BatchNorm, Binary, BinaryKind, Conv, ConvTranspose, MatMul};
use sora_ir::{Graph, IrError, Node, Op, ValueId};
use sora_tensor::{DType, Tensor};

use super::Rule;
use super::sample::Sketch;
use crate::view::{input, output};
use crate::{Patch, Term, View};

pub(crate) const BATCH_NORM_TO_AFFINE: Rule = Rule {
    name: "batch_norm_to_affine",
    doc: "A batch normalization with constant statistics is a product and a sum per channel.",
    exact: false,
    apply: batch_norm_to_affine,
    sample: sample_batch_norm,
    near_misses: &[miss_batch_norm_of_variable_scale],
};

pub(crate) const FOLD_SCALE_INTO_WEIGHTS: Rule = Rule {
    name: "fold_scale_into_weights",
    doc: "A product or quotient by a constant per output channel goes into the weights and bias before it.",
    exact: false,
    apply: fold_scale_into_weights,
    sample: sample_scale,
    near_misses: &[miss_scale_along_width, miss_scale_of_shared_result, miss_scale_of_shared_weights],
};

pub(crate) const FOLD_SHIFT_INTO_BIAS: Rule = Rule {
    name: "fold_shift_into_bias",
    doc: "A sum with a constant per output channel becomes the bias of the convolution before it.",
    exact: false,
    apply: fold_shift_into_bias,
    sample: sample_shift,
    near_misses: &[miss_shift_along_width, miss_shift_of_shared_result],
};

pub(crate) const FOLD_INPUT_SCALE_INTO_WEIGHTS: Rule = Rule {
    name: "fold_input_scale_into_weights",
    doc: "A product or quotient by a constant per input channel goes into the weights after it.",
    exact: false,
    apply: fold_input_scale_into_weights,
    sample: sample_input_scale,
    near_misses: &[miss_input_scale_along_width],
};

pub(crate) const FOLD_SCALE_BEHIND_SHIFT: Rule = Rule {
    name: "fold_scale_behind_shift",
    doc: "(x·W + c)·s is x·(W·s) + c·s, the scale per column going into the constant matrix W.",
    exact: false,
    apply: fold_scale_behind_shift,
    sample: sample_scale_after_shift,
    near_misses: &[miss_scale_after_shift_of_input],
};

/// A convolution or matrix product with constant weights and constant or absent bias.
struct Linear<'a> {
    node: &'a Node,
    x: ValueId,
    weights: &'a Tensor,
    bias: Option<&'a Tensor>,
    /// Names of weights and bias.
    names: (String, String),
    /// Number of input channels.
    inputs: usize,
    /// Number of output channels.
    outputs: usize,
    /// Axis of the channels, counted from the start, in an input and a result of the node.
    axes: (usize, usize),
}

impl<'a> Linear<'a> {
    /// The linear node, unless another reader needs its weights as they are.
    fn of(view: &View<'a>, node: &'a Node) -> Option<Self> {
        let (x, w) = (input(node, 0)?, input(node, 1)?);
        let weights = view.constant(w).filter(|t| t.dtype().is_float() && view.single_use(w))?;
        let bias = match input(node, 2) {
            Some(bias) => Some(view.constant(bias)?),
            None => None,
        };
        let last = |value: ValueId| view.ty(value).rank().checked_sub(1);
        let (inputs, outputs, axes) = match (&node.op, weights.shape()) {
            (Op::Conv(conv), &[m, c, ..]) => (c * conv.group, m, (1, 1)),
            (Op::ConvTranspose(conv), &[c, m, ..]) => (c, m * conv.group, (1, 1)),
            (Op::MatMul(_), &[k, n]) => (k, n, (last(x)?, last(output(node)?)?)),
            _ => return None,
        };
        let names = (view.graph.value(w).name.clone(), bias_name(view, node));
        Some(Linear { node, x, weights, bias, names, inputs, outputs, axes })
    }

    /// The linear node that makes `value` and nothing else.
    fn behind(view: &View<'a>, value: ValueId) -> Option<Self> {
        let (_, node, _) = view.graph.producer(value)?;
        Self::of(view, node).filter(|_| view.single_use(value))
    }

    /// The weights times a factor per channel of one side; `None` if that might overflow.
    fn scaled_weights(&self, side: Side, factors: Vec<f64>) -> Option<Tensor> {
        let shape = self.weights.shape();
        let group = match &self.node.op {
            Op::Conv(conv) => conv.group,
            Op::ConvTranspose(conv) => conv.group,
            _ => 1,
        };
        let first = if matches!(self.node.op, Op::Conv(_)) { Side::Output } else { Side::Input };
        let scaling = Scaling {
            factors,
            each_row: side == first,
            group_rows: (shape[0] / group).max(1),
            columns: shape[1],
            taps: shape[2..].iter().product(),
        };
        if self.weights.dtype() != DType::F32 {
            let factor = |i: usize| {
                let row = i / (scaling.columns * scaling.taps);
                let factors = scaling.of_row(row);
                factors[i / scaling.taps % scaling.columns % factors.len()]
            };
            let values = self.weights.to_f64s().into_iter().enumerate().map(|(i, w)| w * factor(i));
            return finite(self.weights, shape, values);
        }
        // Large networks are mostly such weights: their products are computed when somebody packs them.
        let weights = self.weights.detached();
        let most = scaling.factors.iter().fold(0.0, |most: f64, factor| most.max(factor.abs()));
        let bounded = scaling.factors.iter().all(|factor| factor.is_finite())
            && ((f64::from(largest(&weights)) * most) as f32).is_finite();
        let compute = move |to: &mut [u8]| {
            let weights = weights.detached();
            scaling.apply(weights.raw().as_chunks().0, to.as_chunks_mut().0);
            weights.release();
        };
        bounded.then(|| Tensor::computed(DType::F32, shape, compute).ok())?
    }

    /// Adds the node again with other weights and bias.
    fn rebuild(&self, patch: &mut Patch, x: ValueId, weights: Tensor, bias: Option<Tensor>) -> Term {
        let weights = patch.constant(&self.names.0, weights);
        let bias = bias.map(|bias| patch.constant(&self.names.1, bias));
        let inputs = [Some(x.into()), Some(weights), bias];
        let count = if bias.is_some() { 3 } else { 2 };
        patch.node_with_optional(&self.node.name, self.node.op.clone(), inputs.into_iter().take(count))
    }
}

/// Which channels of a linear node have factors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

/// Factors for weights `[rows, columns, taps]`, one for each row or one for each column.
struct Scaling {
    factors: Vec<f64>,
    each_row: bool,
    /// Rows that share the factors of the columns; those of other groups follow.
    group_rows: usize,
    columns: usize,
    taps: usize,
}

impl Scaling {
    /// The factors of a row: one in all, or one per column.
    fn of_row(&self, row: usize) -> &[f64] {
        match self.each_row {
            true => &self.factors[row..=row],
            false => &self.factors[row / self.group_rows * self.columns..][..self.columns],
        }
    }

    fn apply(&self, from: &[[u8; 4]], to: &mut [[u8; 4]]) {
        let scale = |to: &mut [u8; 4], from: &[u8; 4], factor: f64| {
            *to = ((f64::from(f32::from_ne_bytes(*from)) * factor) as f32).to_ne_bytes();
        };
        let row_len = (self.columns * self.taps).max(1);
        for (row, (to, from)) in to.chunks_exact_mut(row_len).zip(from.chunks_exact(row_len)).enumerate() {
            match (self.of_row(row), self.taps) {
                (&[factor], _) => to.iter_mut().zip(from).for_each(|(to, from)| scale(to, from, factor)),
                (factors, 1) => {
                    to.iter_mut().zip(from).zip(factors).for_each(|((to, from), &f)| scale(to, from, f));
                }
                (factors, taps) => {
                    let pieces = to.chunks_exact_mut(taps).zip(from.chunks_exact(taps));
                    for ((to, from), &factor) in pieces.zip(factors) {
                        to.iter_mut().zip(from).for_each(|(to, from)| scale(to, from, factor));
                    }
                }
            }
        }
    }
}

/// The largest magnitude in an `f32` tensor; no finite number if one of them is none.
fn largest(tensor: &Tensor) -> f32 {
    const MAGNITUDE: u32 = 0x7fff_ffff;
    let magnitude = |n: &[u8; 4]| u32::from_ne_bytes(*n) & MAGNITUDE;
    f32::from_bits(tensor.raw().as_chunks().0.iter().map(magnitude).max().unwrap_or(0))
}

/// The name of a linear node's bias: its own if it has one.
fn bias_name(view: &View, node: &Node) -> String {
    match input(node, 2) {
        Some(bias) => view.graph.value(bias).name.clone(),
        None => format!("{}.bias", node.name),
    }
}

/// A tensor of the dtype of `like`, unless a value is not a finite number there.
fn finite(like: &Tensor, shape: &[usize], values: impl Iterator<Item = f64>) -> Option<Tensor> {
    let tensor = Tensor::from_f64s(like.dtype(), shape, &values.collect::<Vec<_>>()).ok()?;
    tensor.to_f64s().iter().all(|v| v.is_finite()).then_some(tensor)
}

/// One element per channel if `tensor`, broadcast to `rank` dimensions, varies along `axis` at most.
fn per_channel(tensor: &Tensor, rank: usize, axis: usize, channels: usize) -> Option<Vec<f64>> {
    let skipped = rank.checked_sub(tensor.rank())?;
    let along_axis_only = tensor.shape().iter().enumerate().all(|(i, &d)| d == 1 || i + skipped == axis);
    let values = tensor.to_f64s();
    match values.len() {
        _ if !along_axis_only => None,
        1 => Some(vec![values[0]; channels]),
        n => (n == channels).then_some(values),
    }
}

/// The variable and the constant operand of a binary node, and which slot the constant has.
fn constant_operand<'a>(view: &View<'a>, node: &Node) -> Option<(ValueId, &'a Tensor, usize)> {
    let (a, b) = (input(node, 0)?, input(node, 1)?);
    match (view.constant(a), view.constant(b)) {
        (None, Some(c)) => Some((a, c, 1)),
        (Some(c), None) => Some((b, c, 0)),
        _ => None,
    }
}

/// `x` and its factor per channel if `node` is `x·c` or `x/c`.
fn scale_of(view: &View, node: &Node, axis: usize, channels: usize) -> Option<(ValueId, Vec<f64>)> {
    let Op::Binary(Binary { kind }) = node.op else { return None };
    let (x, c, slot) = constant_operand(view, node)?;
    let c = per_channel(c, view.ty(x).rank(), axis, channels)?;
    match (kind, slot) {
        (BinaryKind::Mul, _) => Some((x, c)),
        (BinaryKind::Div, 1) => Some((x, c.into_iter().map(f64::recip).collect())),
        _ => None,
    }
}

fn batch_norm_to_affine(view: &View, node: &Node) -> Option<Patch> {
    let Op::BatchNorm(BatchNorm { epsilon }) = &node.op else { return None };
    let x = input(node, 0)?;
    let parameter = |slot| view.constant(input(node, slot)?);
    let (scale, bias, mean, variance) = (parameter(1)?, parameter(2)?, parameter(3)?, parameter(4)?);
    let channels = scale.len();
    let rank = view.ty(x).rank();
    let shape: Vec<usize> =
        [channels].into_iter().chain(std::iter::repeat_n(1, rank.checked_sub(2)?)).collect();
    let (s, b, m, v) = (scale.to_f64s(), bias.to_f64s(), mean.to_f64s(), variance.to_f64s());
    let factors: Vec<f64> = (0..channels).map(|i| s[i] / (v[i] + f64::from(epsilon.0)).sqrt()).collect();
    let shifts = (0..channels).map(|i| b[i] - m[i] * factors[i]);

    let dtype_of = Tensor::zeros(view.ty(x).dtype, &[]).ok()?;
    let mut patch = Patch::new();
    let name = &node.name;
    let shift = patch.constant(&format!("{name}.shift"), finite(&dtype_of, &shape, shifts)?);
    let factor = patch.constant(&format!("{name}.scale"), finite(&dtype_of, &shape, factors.into_iter())?);
    let scaled = patch.node(&format!("{name}.mul"), Binary { kind: BinaryKind::Mul }, [x.into(), factor]);
    let shifted = patch.node(name, Binary { kind: BinaryKind::Add }, [scaled, shift]);
    Some(patch.replace(output(node)?, shifted))
}

fn fold_scale_into_weights(view: &View, node: &Node) -> Option<Patch> {
    let Op::Binary(_) = node.op else { return None };
    let (y, ..) = constant_operand(view, node)?;
    let linear = Linear::behind(view, y)?;
    let (_, factors) = scale_of(view, node, linear.axes.1, linear.outputs)?;
    let bias = match linear.bias {
        Some(bias) => {
            Some(finite(bias, bias.shape(), bias.to_f64s().iter().zip(&factors).map(|(b, s)| b * s))?)
        }
        None => None,
    };
    let weights = linear.scaled_weights(Side::Output, factors)?;
    let mut patch = Patch::new();
    let folded = linear.rebuild(&mut patch, linear.x, weights, bias);
    Some(patch.replace(output(node)?, folded))
}

fn fold_shift_into_bias(view: &View, node: &Node) -> Option<Patch> {
    let Op::Binary(Binary { kind: BinaryKind::Add }) = node.op else { return None };
    let (y, c, _) = constant_operand(view, node)?;
    let (_, linear, _) = view.graph.producer(y).filter(|_| view.single_use(y))?;
    let channels = match (&linear.op, view.ty(y).shape.get(1)?.known()) {
        (Op::Conv(_) | Op::ConvTranspose(_), Some(channels)) => channels,
        _ => return None,
    };
    let mut shifts = per_channel(c, view.ty(y).rank(), 1, channels)?;
    if let Some(bias) = input(linear, 2) {
        let bias = view.constant(bias)?.to_f64s();
        shifts.iter_mut().zip(bias).for_each(|(shift, b)| *shift += b);
    }
    let mut patch = Patch::new();
    let bias = finite(c, &[channels], shifts.into_iter())?;
    let bias = patch.constant(&bias_name(view, linear), bias);
    let (x, w) = (input(linear, 0)?, input(linear, 1)?);
    let biased = patch.node(&linear.name, linear.op.clone(), [x.into(), w.into(), bias]);
    Some(patch.replace(output(node)?, biased))
}

fn fold_input_scale_into_weights(view: &View, node: &Node) -> Option<Patch> {
    let linear = Linear::of(view, node)?;
    let (_, before) = view.made_only_by::<Binary>(linear.x)?;
    let (x, factors) = scale_of(view, before, linear.axes.0, linear.inputs)?;
    if view.ty(x) != view.ty(linear.x) {
        return None;
    }
    let weights = linear.scaled_weights(Side::Input, factors)?;
    let mut patch = Patch::new();
    let folded = linear.rebuild(&mut patch, x, weights, linear.bias.cloned());
    Some(patch.replace(output(node)?, folded))
}

fn fold_scale_behind_shift(view: &View, node: &Node) -> Option<Patch> {
    let Op::Binary(Binary { kind: BinaryKind::Mul | BinaryKind::Div }) = node.op else { return None };
    let (sum, ..) = constant_operand(view, node)?;
    let (_, add) = view.made_only_by::<Binary>(sum).filter(|(op, _)| op.kind == BinaryKind::Add)?;
    let (product, shift, _) = constant_operand(view, add)?;
    let linear = Linear::behind(view, product)?;
    let (_, factors) = scale_of(view, node, linear.axes.1, linear.outputs)?;
    let shifts = per_channel(shift, view.ty(product).rank(), linear.axes.1, linear.outputs)?;

    // The shift of a convolution is its bias, which another rule makes of it.
    matches!(linear.node.op, Op::MatMul(_)).then_some(())?;
    let shifts = shifts.iter().zip(&factors).map(|(c, s)| c * s);
    let mut patch = Patch::new();
    let shift = patch.constant(&format!("{}.shift", add.name), finite(shift, &[linear.outputs], shifts)?);
    let weights = linear.scaled_weights(Side::Output, factors)?;
    let scaled = linear.rebuild(&mut patch, linear.x, weights, None);
    let shifted = patch.node(&add.name, Binary { kind: BinaryKind::Add }, [scaled, shift]);
    Some(patch.replace(output(node)?, shifted))
}

/// A random linear node: its result, its numbers of input and output channels, and the axis of the latter.
struct Layer {
    y: ValueId,
    channels: usize,
    rank: usize,
    axis: usize,
}

impl Layer {
    fn channel_shape(&self) -> Vec<usize> {
        let mut shape = vec![1; self.rank - self.axis];
        shape[0] = self.channels;
        shape
    }
}

/// Sizes of a random convolution.
fn conv_sizes(s: &mut Sketch) -> (usize, usize, usize, Vec<usize>) {
    let group = s.rng.size(1, 2);
    let (per_in, per_out) = (s.rng.size(1, 3), s.rng.size(1, 3));
    let rank = s.rng.size(1, 2);
    let kernel = (0..rank).map(|_| s.rng.size(1, 3)).collect();
    (group, per_in, per_out, kernel)
}

fn conv_after(
    s: &mut Sketch,
    x: impl FnOnce(&mut Sketch, &[usize]) -> Result<ValueId, IrError>,
    transposed: bool,
) -> Result<Layer, IrError> {
    let (group, per_in, per_out, kernel) = conv_sizes(s);
    let rank = kernel.len();
    let mut shape = vec![group * per_in];
    shape.extend((0..rank).map(|_| s.rng.size(3, 5)));
    let x = x(s, &shape)?;
    let plain = Conv { group, ..Conv::new(rank) };
    let lead = if transposed { [group * per_in, per_out] } else { [group * per_out, per_in] };
    let shape: Vec<usize> = lead.into_iter().chain(kernel).collect();
    let mut inputs = vec![x, s.weights(&shape)];
    if s.rng.flag() {
        inputs.push(s.weights(&[group * per_out]));
    }
    let Conv { strides, pads, dilations, group } = plain;
    let y = if transposed {
        let output_padding = vec![0; rank];
        s.op(ConvTranspose { strides, pads, dilations, output_padding, group }, inputs)?
    } else {
        let pads = pads.iter().map(|_| s.rng.size(0, 1)).collect();
        s.op(Conv { strides, pads, dilations, group }, inputs)?
    };
    Ok(Layer { y, channels: group * per_out, rank: rank + 2, axis: 1 })
}

fn matmul_after(
    s: &mut Sketch,
    x: impl FnOnce(&mut Sketch, &[usize]) -> Result<ValueId, IrError>,
) -> Result<Layer, IrError> {
    let (k, n) = (s.rng.size(1, 5), s.rng.size(2, 5));
    let shape = if s.rng.flag() { vec![k] } else { vec![s.rng.size(1, 3), k] };
    let x = x(s, &shape)?;
    let w = s.weights(&[k, n]);
    let rank = shape.len() + 1;
    Ok(Layer { y: s.op(MatMul {}, [x, w])?, channels: n, rank, axis: rank - 1 })
}

fn plain_input(s: &mut Sketch, shape: &[usize]) -> Result<ValueId, IrError> {
    Ok(s.batched(shape))
}

fn sample_batch_norm(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let rank = s.rng.size(1, 3);
    let shape = s.rng.shape(rank);
    let x = s.batched(&shape);
    let c = shape[0];
    let (scale, bias, mean) = (s.weights(&[c]), s.weights(&[c]), s.weights(&[c]));
    let variance = s.between(&[c], 0.1, 2.0);
    let y = s.op(BatchNorm { epsilon: 1e-5.into() }, [x, scale, bias, mean, variance])?;
    s.done(y)
}

fn miss_batch_norm_of_variable_scale(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[3, 4]);
    let (scale, bias, mean) = (s.input(&[3]), s.weights(&[3]), s.weights(&[3]));
    let variance = s.between(&[3], 0.1, 2.0);
    let y = s.op(BatchNorm { epsilon: 1e-5.into() }, [x, scale, bias, mean, variance])?;
    s.done(y)
}

fn any_layer(s: &mut Sketch) -> Result<Layer, IrError> {
    match s.rng.size(0, 2) {
        0 => conv_after(s, plain_input, false),
        1 => conv_after(s, plain_input, true),
        _ => matmul_after(s, plain_input),
    }
}

fn scaled(s: &mut Sketch, x: ValueId, shape: &[usize]) -> Result<ValueId, IrError> {
    let c = if s.rng.size(0, 3) == 0 { s.scalar(0.37) } else { s.between(shape, 0.5, 2.0) };
    if s.rng.flag() { s.binary(BinaryKind::Div, x, c) } else { s.either(BinaryKind::Mul, x, c) }
}

fn sample_scale(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let layer = any_layer(&mut s)?;
    let y = scaled(&mut s, layer.y, &layer.channel_shape())?;
    s.done(y)
}

fn miss_scale_along_width(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, w) = (s.batched(&[2, 3, 3]), s.weights(&[3, 2, 1, 1]));
    let y = s.op(Conv::new(2), [x, w])?;
    let c = s.weights(&[3]);
    let y = s.binary(BinaryKind::Mul, y, c)?;
    s.done(y)
}

fn miss_scale_of_shared_result(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let layer = any_layer(&mut s)?;
    let y = scaled(&mut s, layer.y, &layer.channel_shape())?;
    s.also(layer.y);
    s.done(y)
}

fn miss_scale_of_shared_weights(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (a, b, w) = (s.batched(&[3]), s.batched(&[3]), s.weights(&[3, 4]));
    let (y, z) = (s.op(MatMul {}, [a, w])?, s.op(MatMul {}, [b, w])?);
    s.also(z);
    let y = scaled(&mut s, y, &[4])?;
    s.done(y)
}

fn sample_shift(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let transposed = s.rng.flag();
    let layer = conv_after(&mut s, plain_input, transposed)?;
    let c = if s.rng.size(0, 3) == 0 { s.scalar(0.37) } else { s.weights(&layer.channel_shape()) };
    let y = s.either(BinaryKind::Add, layer.y, c)?;
    s.done(y)
}

fn miss_shift_along_width(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, w) = (s.batched(&[2, 3, 3]), s.weights(&[3, 2, 1, 1]));
    let y = s.op(Conv::new(2), [x, w])?;
    let c = s.weights(&[3]);
    let y = s.binary(BinaryKind::Add, y, c)?;
    s.done(y)
}

fn miss_shift_of_shared_result(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let layer = conv_after(&mut s, plain_input, false)?;
    let c = s.weights(&layer.channel_shape());
    let y = s.binary(BinaryKind::Add, layer.y, c)?;
    s.also(layer.y);
    s.done(y)
}

fn scaled_image(s: &mut Sketch, shape: &[usize]) -> Result<ValueId, IrError> {
    let x = s.batched(shape);
    let mut channels = vec![1; shape.len()];
    channels[0] = shape[0];
    scaled(s, x, &channels)
}

fn scaled_rows(s: &mut Sketch, shape: &[usize]) -> Result<ValueId, IrError> {
    let x = s.batched(shape);
    scaled(s, x, &shape[shape.len() - 1..])
}

fn sample_input_scale(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let layer = match s.rng.size(0, 2) {
        0 => conv_after(&mut s, scaled_image, false)?,
        1 => conv_after(&mut s, scaled_image, true)?,
        _ => matmul_after(&mut s, scaled_rows)?,
    };
    s.done(layer.y)
}

fn miss_input_scale_along_width(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, w, c) = (s.batched(&[3, 3, 3]), s.weights(&[3, 3, 1, 1]), s.weights(&[3]));
    let scaled = s.binary(BinaryKind::Mul, x, c)?;
    let y = s.op(Conv::new(2), [scaled, w])?;
    s.done(y)
}

fn sample_scale_after_shift(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let layer = matmul_after(&mut s, plain_input)?;
    let c = s.weights(&layer.channel_shape());
    let sum = s.either(BinaryKind::Add, layer.y, c)?;
    let y = scaled(&mut s, sum, &layer.channel_shape())?;
    s.done(y)
}

fn miss_scale_after_shift_of_input(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, c) = (s.batched(&[4]), s.weights(&[4]));
    let sum = s.binary(BinaryKind::Add, x, c)?;
    let y = scaled(&mut s, sum, &[4])?;
    s.done(y)
}
