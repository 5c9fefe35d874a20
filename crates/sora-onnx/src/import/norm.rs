//! Normalizations.

use sora_ir::ops::{
    AveragePool, BatchNorm, Binary, BinaryKind, LayerNorm, Reduce, ReduceKind, Squeeze, Unary, UnaryKind,
    Unsqueeze,
};
use sora_ir::{Real, ValueId};

use super::node::{Built, NodeCx, size};
use super::rows::{Row, microsoft, onnx};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[
    onnx("BatchNormalization", batch_norm),
    onnx("GroupNormalization", group_norm),
    onnx("InstanceNormalization", instance_norm),
    onnx("LayerNormalization", layer_norm),
    onnx("LRN", local_response),
    onnx("LpNormalization", lp_norm),
    onnx("MeanVarianceNormalization", mean_variance),
    onnx("RMSNormalization", |cx| rms_node(cx, 1e-5)),
    // onnxruntime writes it in the default domain, too.
    onnx("SimplifiedLayerNormalization", |cx| rms_node(cx, 1e-5)),
    microsoft("SimplifiedLayerNormalization", |cx| rms_node(cx, 1e-5)),
    microsoft("SkipLayerNormalization", |cx| skip_norm(cx, false)),
    microsoft("SkipSimplifiedLayerNormalization", |cx| skip_norm(cx, true)),
];

/// In training mode, which before opset 14 means that other outputs than the first are used, the statistics are those
/// of the input, and those given move towards them. `spatial = 0`, before opset 9, has statistics per element.
fn batch_norm(cx: &mut NodeCx) -> Built {
    let epsilon = Real(cx.float("epsilon", 1e-5));
    if !cx.flag("spatial", true) {
        return norm_of_elements(cx, epsilon);
    }
    let used = (1..5).any(|output| cx.reads(output));
    let training =
        if cx.opset < 14 { used && !cx.flag("is_test", false) } else { cx.flag("training_mode", false) };
    if !training {
        return cx.add(BatchNorm { epsilon }, cx.inputs_to(5));
    }
    let (x, scale, bias) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let old = [cx.input(3)?, cx.input(4)?];
    let axes: Vec<i64> = (0..signed(cx.rank(x))).filter(|&axis| axis != 1).collect();
    let precise = cx.cast(x, cx.dtype(old[0]))?;
    let [mean, variance] = moments(cx, precise, &axes)?;
    let [mean, variance] = [cx.squeeze(mean, &axes)?, cx.squeeze(variance, &axes)?];
    let y = cx.op(BatchNorm { epsilon }, [x, scale, bias, mean, variance])?;
    let momentum = cx.float("momentum", 0.9);
    let mut outputs = vec![y];
    for (old, new) in old.into_iter().zip([mean, variance]) {
        let kept = super::math::scaled(cx, old, momentum, "momentum")?;
        let moved = super::math::scaled(cx, new, 1.0 - momentum, "rest")?;
        outputs.push(cx.binary(BinaryKind::Add, kept, moved)?);
    }
    outputs.extend([mean, variance]);
    Ok(outputs)
}

/// `(x - mean) / sqrt(variance + epsilon) · scale + bias` with parameters of the shape of a sample.
fn norm_of_elements(cx: &mut NodeCx, epsilon: Real) -> Built {
    let [x, scale, bias] = [cx.input(0)?, cx.input(1)?, cx.input(2)?];
    let [mean, variance] = [cx.input(3)?, cx.input(4)?];
    let centred = cx.binary(BinaryKind::Sub, x, mean)?;
    let shifted = cx.with(BinaryKind::Add, variance, f64::from(epsilon.0))?;
    let deviation = cx.unary(UnaryKind::Sqrt, shifted)?;
    let normal = cx.binary(BinaryKind::Div, centred, deviation)?;
    let scaled = cx.binary(BinaryKind::Mul, normal, scale)?;
    cx.add(Binary { kind: BinaryKind::Add }, [scaled, bias])
}

/// Mean and variance over axes, which stay with the extent one.
fn moments(cx: &mut NodeCx, x: ValueId, axes: &[i64]) -> Result<[ValueId; 2], Refusal> {
    let mean = cx.reduced(ReduceKind::Mean, x, axes, true)?;
    let centred = cx.binary(BinaryKind::Sub, x, mean)?;
    let square = cx.binary(BinaryKind::Mul, centred, centred)?;
    Ok([mean, cx.reduced(ReduceKind::Mean, square, axes, true)?])
}

/// Its outputs 1 and 2 are the mean and the inverse of the deviation, in the precision of `stash_type`.
fn layer_norm(cx: &mut NodeCx) -> Built {
    let (axis, epsilon) = (cx.int("axis", -1), Real(cx.float("epsilon", 1e-5)));
    let mut outputs = cx.add(LayerNorm { axis, epsilon }, cx.inputs_to(3))?;
    if cx.reads(1) || cx.reads(2) {
        let x = cx.cast(cx.input(0)?, cx.dtype_named_by("stash_type", 1)?)?;
        outputs.extend(statistics(cx, x, axis, epsilon)?);
    }
    Ok(outputs)
}

/// The mean, and one over the deviation, over the axes from `axis` on.
fn statistics(cx: &mut NodeCx, x: ValueId, axis: i64, epsilon: Real) -> Result<[ValueId; 2], Refusal> {
    let axes: Vec<i64> = (signed(cx.axis(axis, x)?)..signed(cx.rank(x))).collect();
    let [mean, variance] = moments(cx, x, &axes)?;
    let shifted = cx.with(BinaryKind::Add, variance, f64::from(epsilon.0))?;
    let deviation = cx.unary(UnaryKind::Sqrt, shifted)?;
    Ok([mean, cx.unary(UnaryKind::Reciprocal, deviation)?])
}

/// `(x - mean) / (deviation + 1e-9)` over axes.
fn mean_variance(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let axes = cx.ints("axes").unwrap_or(&[0, 2, 3]);
    let [mean, variance] = moments(cx, x, axes)?;
    let centred = cx.binary(BinaryKind::Sub, x, mean)?;
    let deviation = cx.unary(UnaryKind::Sqrt, variance)?;
    let divisor = cx.with(BinaryKind::Add, deviation, 1e-9)?;
    cx.add(Binary { kind: BinaryKind::Div }, [centred, divisor])
}

/// A vector with one element per channel, shaped to broadcast over the spatial axes of `x`.
fn per_channel(cx: &mut NodeCx, vector: ValueId, x: ValueId) -> Result<ValueId, Refusal> {
    let axes: Vec<i64> = (1..signed(cx.rank(x)) - 1).collect();
    match axes.is_empty() {
        true => Ok(vector),
        false => cx.step("unsqueeze", Unsqueeze { axes }, [vector]),
    }
}

/// Normalizes each of `groups` runs of channels of each sample; the result has the shape of `x`.
fn grouped(cx: &mut NodeCx, x: ValueId, groups: Option<usize>) -> Result<ValueId, Refusal> {
    let epsilon = Real(cx.float("epsilon", 1e-5));
    if cx.rank(x) < 3 && groups.is_none() || cx.rank(x) < 2 {
        return Err(Refusal::new(format!("its input {} has no spatial axis", cx.ty(x))));
    }
    let flat = cx.reshape(x, &[0, groups.map_or(0, signed), -1])?;
    let normal = cx.step("normalize", LayerNorm { axis: -1, epsilon }, [flat])?;
    cx.reshape_like(normal, x)
}

fn instance_norm(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let normal = grouped(cx, x, None)?;
    affine(cx, normal, x)
}

/// Scale and bias, which are inputs 1 and 2, per channel.
fn affine(cx: &mut NodeCx, normal: ValueId, x: ValueId) -> Built {
    let (scale, bias) = (cx.input(1)?, cx.input(2)?);
    let scale = per_channel(cx, scale, x)?;
    let bias = per_channel(cx, bias, x)?;
    let scaled = cx.binary(BinaryKind::Mul, normal, scale)?;
    cx.add(Binary { kind: BinaryKind::Add }, [scaled, bias])
}

/// Scale and bias are per group before opset 21 and per channel since.
fn group_norm(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let groups = size(cx.int("num_groups", 0), "num_groups")?;
    let channels = cx.ty(x).shape.get(1).and_then(sora_ir::Dim::known);
    let Some(channels) = channels.filter(|c| groups > 0 && c % groups == 0) else {
        return Err(Refusal::new(format!("its input {} does not split into {groups} groups", cx.ty(x))));
    };
    if cx.opset >= 21 || groups == channels {
        let normal = grouped(cx, x, Some(groups))?;
        return affine(cx, normal, x);
    }
    let epsilon = Real(cx.float("epsilon", 1e-5));
    let flat = cx.reshape(x, &[0, signed(groups), -1])?;
    let normal = cx.step("normalize", LayerNorm { axis: -1, epsilon }, [flat])?;
    let (scale, bias) = (cx.input(1)?, cx.input(2)?);
    let scale = per_channel(cx, scale, flat)?;
    let bias = per_channel(cx, bias, flat)?;
    let scaled = cx.binary(BinaryKind::Mul, normal, scale)?;
    let shifted = cx.op(Binary { kind: BinaryKind::Add }, [scaled, bias])?;
    Ok(vec![cx.reshape_like(shifted, x)?])
}

/// `x / (bias + alpha · mean of x² over a window of channels)^beta`: the mean is a pooling with the channels as
/// a spatial axis, in which the border counts as zeros.
fn local_response(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let window = size(cx.int("size", 0), "size")?;
    if window == 0 || rank < 3 {
        return Err(Refusal::new(format!("size={window} does not fit its input {}", cx.ty(x))));
    }
    let dtype = cx.dtype(x);
    let ones = rank - 2;
    let along = |channels: usize, others: usize| [vec![channels], vec![others; ones]].concat();
    let square = cx.binary(BinaryKind::Mul, x, x)?;
    let planes = cx.step("planes", Unsqueeze { axes: vec![1] }, [square])?;
    let pool = AveragePool {
        kernel: along(window, 1),
        strides: vec![1; rank - 1],
        pads: [along((window - 1) / 2, 0), along(window / 2, 0)].concat(),
        dilations: vec![1; rank - 1],
        ceil_mode: false,
        count_include_pad: true,
    };
    let mean = cx.step("mean", pool, [planes])?;
    let mean = cx.step("squeeze", Squeeze { axes: vec![1] }, [mean])?;
    let mean = super::math::scaled(cx, mean, cx.float("alpha", 1e-4), "alpha")?;
    let bias = cx.scalar("bias", dtype, f64::from(cx.float("bias", 1.0)));
    let base = cx.binary(BinaryKind::Add, mean, bias)?;
    let beta = cx.scalar("beta", dtype, f64::from(cx.float("beta", 0.75)));
    let divisor = cx.binary(BinaryKind::Pow, base, beta)?;
    cx.add(Binary { kind: BinaryKind::Div }, [x, divisor])
}

fn lp_norm(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let kind = match cx.int("p", 2) {
        1 => ReduceKind::L1,
        2 => ReduceKind::L2,
        p => return Err(Refusal::new(format!("p={p} is not supported"))),
    };
    let norm = cx.step("norm", Reduce { kind, axes: vec![cx.int("axis", -1)], keep_dims: true }, [x])?;
    // Zeros stay.
    let (zero, one) = (cx.scalar("zero", cx.dtype(x), 0.0), cx.scalar("one", cx.dtype(x), 1.0));
    let none = cx.binary(BinaryKind::Equal, norm, zero)?;
    let norm = cx.select(none, one, norm)?;
    cx.add(Binary { kind: BinaryKind::Div }, [x, norm])
}

fn rms_node(cx: &mut NodeCx, epsilon: f32) -> Built {
    let x = cx.input(0)?;
    let scale = cx.input(1)?;
    let normal = rms(cx, x, epsilon)?;
    cx.add(Binary { kind: BinaryKind::Mul }, [normal, scale])
}

/// `x / sqrt(mean(x²) + epsilon)` over the axes from `axis` on.
fn rms(cx: &mut NodeCx, x: ValueId, epsilon: f32) -> Result<ValueId, Refusal> {
    let from = signed(cx.axis(cx.int("axis", -1), x)?);
    let axes = (from..signed(cx.rank(x))).collect();
    let square = cx.binary(BinaryKind::Mul, x, x)?;
    let mean = cx.step("mean", Reduce { kind: ReduceKind::Mean, axes, keep_dims: true }, [square])?;
    let epsilon = cx.scalar("epsilon", cx.dtype(x), f64::from(cx.float("epsilon", epsilon)));
    let shifted = cx.binary(BinaryKind::Add, mean, epsilon)?;
    let root = cx.step("root", Unary { kind: UnaryKind::Sqrt }, [shifted])?;
    cx.binary(BinaryKind::Div, x, root)
}

/// Normalizes `input + skip [+ bias]`; that sum is output 3. Inputs: input, skip, gamma, then beta unless
/// `simplified`, then the bias.
fn skip_norm(cx: &mut NodeCx, simplified: bool) -> Built {
    let (input, skip, gamma) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (beta, bias) = if simplified { (None, cx.opt(3)) } else { (cx.opt(3), cx.opt(4)) };
    let mut sum = cx.binary(BinaryKind::Add, input, skip)?;
    if let Some(bias) = bias {
        sum = cx.binary(BinaryKind::Add, sum, bias)?;
    }
    let epsilon = cx.float("epsilon", 1e-12);
    let normal = if simplified {
        let normal = rms(cx, sum, epsilon)?;
        cx.op(Binary { kind: BinaryKind::Mul }, [normal, gamma])?
    } else {
        let op = LayerNorm { axis: -1, epsilon: Real(epsilon) };
        cx.op(op, [Some(vec![sum, gamma]), beta.map(|b| vec![b])].into_iter().flatten().flatten())?
    };
    let [mean, inverse] = match cx.reads(1) || cx.reads(2) {
        true => statistics(cx, sum, -1, Real(epsilon))?,
        false => [normal; 2],
    };
    Ok(vec![normal, mean, inverse, sum])
}
