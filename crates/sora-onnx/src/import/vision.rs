//! Operators of computer vision: resizing, sampling, regions and boxes.

use sora_ir::ops::{
    Aspect, BinaryKind, Concat, Conv, ConvTranspose, Coordinates, Gather, GridSample, Interpolation,
    MaxRoiPool, NonMaxSuppression, Outside, Pad, PadMode, Range, Resize, RoiAlign, Rounding, Shape,
    Unsqueeze,
};
use sora_ir::{Real, ValueId};
use sora_tensor::{DType, Tensor};

use super::conv::conv_of;
use super::node::{Built, NodeCx, real, size};
use super::rows::{Row, onnx};
use super::window::spatial;
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[
    onnx("AffineGrid", affine_grid),
    onnx("CenterCropPad", center_crop_pad),
    onnx("Col2Im", col2im),
    onnx("DeformConv", deform_conv),
    onnx("GridSample", grid_sample),
    onnx("MaxRoiPool", |cx| {
        let (height, width) = match cx.sizes("pooled_shape", Vec::new())?[..] {
            [height, width] => (height, width),
            _ => return Err(Refusal::new("its pooled_shape must be height and width")),
        };
        let op = MaxRoiPool { height, width, scale: Real(cx.float("spatial_scale", 1.0)) };
        cx.add(op, cx.inputs_to(2))
    }),
    onnx("NonMaxSuppression", |cx| {
        cx.add(NonMaxSuppression { center: cx.flag("center_point_box", false) }, cx.inputs_to(5))
    }),
    onnx("Resize", resize),
    onnx("RoiAlign", roi_align),
    onnx("Upsample", |cx| {
        let x = cx.input(0)?;
        let scales = match cx.opset {
            ..9 => scale_attribute(cx)?,
            _ => cx.input(1)?,
        };
        let op = simple_resize(cx, Some(scales))?;
        cx.add(op, [Some(x), None, Some(scales)])
    }),
];

/// `mode`, whose names have changed.
fn interpolation(cx: &NodeCx, default: &'static str) -> Result<Interpolation, Refusal> {
    match cx.text("mode", default).as_ref() {
        "nearest" => Ok(Interpolation::Nearest),
        "linear" | "bilinear" => Ok(Interpolation::Linear),
        "cubic" | "bicubic" => Ok(Interpolation::Cubic),
        other => Err(Refusal::new(format!("mode=`{other}` is not known"))),
    }
}

/// The scales of Upsample while they were an attribute; the oldest version has those of height and width alone.
fn scale_attribute(cx: &mut NodeCx) -> Result<ValueId, Refusal> {
    let scales = match cx.attribute("scales") {
        Some(scales) => scales.floats.clone(),
        None => vec![1.0, 1.0, cx.float("height_scale", 1.0), cx.float("width_scale", 1.0)],
    };
    Ok(cx.make("scales", Tensor::vector(&scales)))
}

/// Upsample, and Resize of opset 10: first elements coincide. The nearest element is the one before, and after where
/// the tensor shrinks.
fn simple_resize(cx: &NodeCx, scales: Option<ValueId>) -> Result<Resize, Refusal> {
    let known = scales.and_then(|scales| cx.constant(scales)).map(|t| t.to_f32s()).unwrap_or_default();
    let (shrinks, grows) = (known.iter().any(|&s| s < 1.0), known.iter().any(|&s| s > 1.0));
    let op = Resize::new(interpolation(cx, "nearest")?, Coordinates::Asymmetric);
    if shrinks && grows && op.interpolation == Interpolation::Nearest {
        return Err(
            Refusal::new("it shrinks some axes and grows others").hint("export with opset 11 or later")
        );
    }
    Ok(Resize { rounding: if shrinks { Rounding::Ceil } else { Rounding::Floor }, ..op })
}

fn resize(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    if cx.opset < 11 {
        let scales = cx.input(1)?;
        let op = simple_resize(cx, Some(scales))?;
        return cx.add(op, [Some(x), None, Some(scales)]);
    }
    // Absent inputs may also be written as empty tensors.
    let given = |index: usize| cx.opt(index).filter(|&value| cx.ty(value).known_len() != Some(0));
    let (scales, sizes) = (given(2), given(3));
    let mut rounding = match cx.text("nearest_mode", "round_prefer_floor").as_ref() {
        "round_prefer_floor" | "" => Rounding::PreferFloor,
        "round_prefer_ceil" => Rounding::PreferCeil,
        "floor" => Rounding::Floor,
        "ceil" => Rounding::Ceil,
        other => return Err(Refusal::new(format!("nearest_mode=`{other}` is not known"))),
    };
    let interpolation = interpolation(cx, "nearest")?;
    let coordinates = match cx.text("coordinate_transformation_mode", "half_pixel").as_ref() {
        "half_pixel" => Coordinates::HalfPixel,
        "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
        "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
        "align_corners" => Coordinates::AlignCorners,
        "asymmetric" => Coordinates::Asymmetric,
        "tf_crop_and_resize" => Coordinates::CropAndResize,
        // (x + ½) / scale without the last half, which makes rounding down the same as rounding to the nearest.
        "tf_half_pixel_for_nn" if interpolation == Interpolation::Nearest && rounding == Rounding::Floor => {
            rounding = Rounding::PreferCeil;
            Coordinates::HalfPixel
        }
        other => {
            return Err(Refusal::new(format!("coordinate_transformation_mode=`{other}` is not supported")));
        }
    };
    let region = (coordinates == Coordinates::CropAndResize).then(|| given(1)).flatten();
    let aspect = match cx.text("keep_aspect_ratio_policy", "stretch").as_ref() {
        _ if sizes.is_none() => Aspect::Stretch,
        "stretch" => Aspect::Stretch,
        "not_larger" => Aspect::NotLarger,
        "not_smaller" => Aspect::NotSmaller,
        other => return Err(Refusal::new(format!("keep_aspect_ratio_policy=`{other}` is not known"))),
    };
    let op = Resize {
        interpolation,
        coordinates,
        rounding,
        axes: cx.ints("axes").map(<[i64]>::to_vec).unwrap_or_default(),
        antialias: cx.flag("antialias", false) && interpolation != Interpolation::Nearest,
        coefficient: Real(cx.float("cubic_coeff_a", -0.75)),
        exclude_outside: cx.flag("exclude_outside", false),
        extrapolation: Real(cx.float("extrapolation_value", 0.0)),
        aspect,
    };
    let mut inputs = vec![Some(x), region, scales];
    inputs.extend(sizes.map(Some));
    cx.add(op, inputs)
}

fn grid_sample(cx: &mut NodeCx) -> Built {
    let outside = match cx.text("padding_mode", "zeros").as_ref() {
        "zeros" => Outside::Zeros,
        "border" => Outside::Border,
        "reflection" => Outside::Reflection,
        other => return Err(Refusal::new(format!("padding_mode=`{other}` is not known"))),
    };
    let interpolation = interpolation(cx, "linear")?;
    let op = GridSample { interpolation, outside, align_corners: cx.flag("align_corners", false) };
    cx.add(op, cx.inputs_to(2))
}

fn roi_align(cx: &mut NodeCx) -> Built {
    let max = match cx.text("mode", "avg").as_ref() {
        "avg" => false,
        "max" => true,
        other => return Err(Refusal::new(format!("mode=`{other}` is not known"))),
    };
    let default = if cx.opset < 16 { "output_half_pixel" } else { "half_pixel" };
    let half_pixel = match cx.text("coordinate_transformation_mode", default).as_ref() {
        "half_pixel" => true,
        "output_half_pixel" => false,
        other => return Err(Refusal::new(format!("coordinate_transformation_mode=`{other}` is not known"))),
    };
    let op = RoiAlign {
        height: size(cx.int("output_height", 1), "output_height")?,
        width: size(cx.int("output_width", 1), "output_width")?,
        samples: size(cx.int("sampling_ratio", 0).max(0), "sampling_ratio")?,
        scale: Real(cx.float("spatial_scale", 1.0)),
        max,
        half_pixel,
    };
    cx.add(op, cx.inputs_to(3))
}

/// `theta[:, :, k]` times the coordinates along axis k of the image, summed: each factor broadcasts over the grid.
fn affine_grid(cx: &mut NodeCx) -> Built {
    let (theta, sizes) = (cx.input(0)?, cx.input(1)?);
    let align_corners = cx.flag("align_corners", false);
    let (ty, dtype) = (cx.ty(theta).clone(), cx.dtype(theta));
    let axes = match (ty.rank(), ty.shape.get(1).and_then(sora_ir::Dim::known)) {
        (3, Some(axes @ 1..=3)) => axes,
        _ => return Err(Refusal::new(format!("theta must be [N, 2, 3] or [N, 3, 4], found {ty}"))),
    };
    let column = |cx: &mut NodeCx, column: usize| {
        let index = cx.make("column", Tensor::scalar(signed(column)));
        let part = cx.step("part", Gather { axis: 2 }, [theta, index])?;
        cx.step("unsqueeze", Unsqueeze { axes: (1..=signed(axes)).collect() }, [part])
    };
    let mut grid = column(cx, axes)?;
    for axis in 0..axes {
        let index = cx.make("axis", Tensor::scalar(signed(axis + 2)));
        let extent = cx.step("extent", Gather { axis: 0 }, [sizes, index])?;
        let (zero, one) = (cx.scalar("zero", DType::I64, 0.0), cx.scalar("one", DType::I64, 1.0));
        let steps = cx.step("range", Range {}, [zero, extent, one])?;
        let steps = cx.cast(steps, dtype)?;
        let extent = cx.cast(extent, dtype)?;
        let (one, two) = (cx.scalar("one", dtype, 1.0), cx.scalar("two", dtype, 2.0));
        let twice = cx.binary(BinaryKind::Mul, steps, two)?;
        // Centres of elements lie half an element inside of the borders, or on them.
        let (above, below) = match align_corners {
            false => (cx.binary(BinaryKind::Add, twice, one)?, extent),
            true => {
                let gaps = cx.binary(BinaryKind::Sub, extent, one)?;
                (twice, cx.binary(BinaryKind::Max, gaps, one)?)
            }
        };
        let along = cx.binary(BinaryKind::Div, above, below)?;
        let along = cx.binary(BinaryKind::Sub, along, one)?;
        let mut shape = vec![1; axes + 1 - axis];
        if let Some(first) = shape.first_mut() {
            *first = -1;
        }
        let along = cx.reshape(along, &shape)?;
        // Positions list the last axis first.
        let factor = column(cx, axes - 1 - axis)?;
        let product = cx.binary(BinaryKind::Mul, factor, along)?;
        grid = cx.binary(BinaryKind::Add, grid, product)?;
    }
    Ok(vec![grid])
}

/// A pad that adds half of what is missing before each axis, the larger half after; less than nothing crops.
fn center_crop_pad(cx: &mut NodeCx) -> Built {
    let (x, target) = (cx.input(0)?, cx.input(1)?);
    let rank = signed(cx.rank(x));
    let axes = cx.ints("axes").map(<[i64]>::to_vec).unwrap_or_else(|| (0..rank).collect());
    let resolved = axes.iter().map(|&axis| cx.axis(axis, x)).collect::<Result<Vec<_>, _>>()?;
    let extents: Option<Vec<i64>> =
        resolved.iter().map(|&axis| cx.ty(x).shape.get(axis).and_then(sora_ir::Dim::constant)).collect();
    let pads = match (extents, cx.known_ints(target)) {
        (Some(extents), Some(target)) => {
            let missing: Vec<i64> = target.iter().zip(&extents).map(|(t, e)| t.saturating_sub(*e)).collect();
            let before = missing.iter().map(|m| m / 2);
            let pads: Vec<i64> = before.chain(missing.iter().map(|m| m - m / 2)).collect();
            cx.make_ints("pads", &pads)
        }
        _ => {
            let shape = cx.step("shape", Shape { start: 0, end: None }, [x])?;
            let indices: Vec<i64> = resolved.iter().copied().map(signed).collect();
            let indices = cx.make_ints("axes", &indices);
            let extents = cx.step("extents", Gather { axis: 0 }, [shape, indices])?;
            let target = cx.cast(target, DType::I64)?;
            let missing = cx.binary(BinaryKind::Sub, target, extents)?;
            let two = cx.scalar("two", DType::I64, 2.0);
            let before = cx.binary(BinaryKind::Div, missing, two)?;
            let after = cx.binary(BinaryKind::Sub, missing, before)?;
            cx.step("pads", Concat { axis: 0 }, [before, after])?
        }
    };
    let axes = cx.make_ints("axes", &axes);
    cx.add(Pad { mode: PadMode::Constant }, [Some(x), Some(pads), None, Some(axes)])
}

/// A transposed convolution of each channel by itself, whose weights put every element of a block in its place.
fn col2im(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let known = |index: usize, name: &str| {
        let value = cx.input(index)?;
        let known = cx.known_ints(value).ok_or_else(|| {
            Refusal::new(format!("`{name}` is computed while the model runs"))
                .hint("export the model with constant parameters, or simplify it with onnxsim")
        })?;
        known.into_iter().map(|v| size(v, name)).collect::<Result<Vec<_>, _>>()
    };
    let (image, block) = (known(1, "image_shape")?, known(2, "block_shape")?);
    let axes = image.len();
    let strides = cx.sizes("strides", vec![1; axes])?;
    let dilations = cx.sizes("dilations", vec![1; axes])?;
    let pads = cx.sizes("pads", vec![0; 2 * axes])?;
    let lists = [&block, &strides, &dilations];
    if lists.iter().any(|list| list.len() != axes || list.contains(&0)) || pads.len() != 2 * axes || axes == 0
    {
        return Err(Refusal::new(format!(
            "blocks {block:?}, strides {strides:?}, dilations {dilations:?} and pads {pads:?} do not fit an image \
             {image:?}"
        )));
    }
    let (mut blocks, mut output_padding) = (Vec::new(), Vec::new());
    let (befores, afters) = pads.split_at(axes);
    let geometry =
        image.iter().zip(&block).zip(strides.iter().zip(&dilations)).zip(befores.iter().zip(afters));
    for (((&extent, &block), (&stride, &dilation)), (&before, &after)) in geometry {
        let span = (block - 1).saturating_mul(dilation) + 1;
        let room = (extent + before + after).checked_sub(span);
        let room =
            room.ok_or_else(|| Refusal::new(format!("a block of {span} exceeds the image {image:?}")))?;
        blocks.push(signed(room / stride + 1));
        output_padding.push(room % stride);
    }
    const LARGEST: usize = 1 << 12;
    let count = block.iter().try_fold(1usize, |n, &b| n.checked_mul(b)).filter(|&n| n <= LARGEST);
    let count =
        count.ok_or_else(|| Refusal::new(format!("its block {block:?} is above {LARGEST} elements")))?;
    let ty = cx.ty(x).clone();
    let columns = ty.shape.get(1).and_then(sora_ir::Dim::known).filter(|c| ty.rank() == 3 && c % count == 0);
    let Some(columns) = columns else {
        return Err(Refusal::new(format!("its input {ty} must be [N, C·{count}, L]")));
    };
    let single = cx.reshape(x, &[vec![-1, signed(count)], blocks].concat())?;
    let mut identity = vec![0f32; count * count];
    identity.iter_mut().step_by(count + 1).for_each(|v| *v = 1.0);
    let shape = [vec![count, 1], block].concat();
    let weights = Tensor::from_slice(&shape, &identity).map_err(|e| Refusal::new(e.to_string()))?;
    let weights = cx.make("blocks", weights.cast(ty.dtype));
    let op = ConvTranspose { strides, pads, dilations, output_padding, group: 1 };
    let image_values = cx.step("overlap", op, [single, weights])?;
    let image: Vec<i64> = image.into_iter().map(signed).collect();
    Ok(vec![cx.reshape(image_values, &[vec![-1, signed(columns / count)], image].concat())?])
}

/// Samples the image where each element of each window lies, then multiplies as a convolution of one element does.
fn deform_conv(cx: &mut NodeCx) -> Built {
    let (x, weights, offset) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (conv, _) = conv_of(cx, x, weights)?;
    let groups = size(cx.int("offset_group", 1), "offset_group")?;
    let axes = spatial(cx, x)?.len();
    let numbers = |cx: &NodeCx, value: ValueId, what: &str| {
        cx.ty(value)
            .known_shape()
            .or_else(|| {
                let rest: Option<Vec<usize>> =
                    cx.ty(value).shape.get(1..)?.iter().map(sora_ir::Dim::known).collect();
                Some([vec![0], rest?].concat())
            })
            .ok_or_else(|| {
                Refusal::new(format!("it needs the extents of its {what} {} as numbers", cx.ty(value)))
                    .hint("fix the input's height and width when exporting the model")
            })
    };
    let (image, kernel, grid) =
        (numbers(cx, x, "input")?, numbers(cx, weights, "weights")?, numbers(cx, offset, "offsets")?);
    let (extents, kernel) = (image.get(2..).unwrap_or_default(), kernel.get(1..).unwrap_or_default());
    let (per_group, kernel) =
        kernel.split_first().ok_or_else(|| Refusal::new("its weights have no channels"))?;
    let (channels, outputs) =
        (image.get(1).copied().unwrap_or(0), grid.get(2..).unwrap_or_default().to_vec());
    let taps: usize = kernel.iter().product();
    let points: usize = outputs.iter().product();
    let fits = groups > 0
        && channels % groups == 0
        && outputs.len() == axes
        && grid.get(1) == Some(&(groups * taps * axes))
        && points > 0;
    if !fits {
        let (x, offset) = (cx.ty(x), cx.ty(offset));
        return Err(Refusal::new(format!(
            "offsets {offset} do not fit an input {x} and {groups} offset groups"
        )));
    }
    // Where the elements of the windows lie without offsets, as [taps, axes, outputs…].
    let mut positions = Vec::with_capacity(taps * axes * points);
    for tap in 0..taps {
        for axis in 0..axes {
            let along = |list: &[usize], flat: usize| {
                let inner: usize = list.get(axis + 1..).unwrap_or_default().iter().product();
                flat / inner.max(1) % list.get(axis).copied().unwrap_or(1).max(1)
            };
            let at = |list: &[usize]| list.get(axis).copied().unwrap_or(0);
            for point in 0..points {
                let forward =
                    along(&outputs, point) * at(&conv.strides) + along(kernel, tap) * at(&conv.dilations);
                positions.push(real(forward) - real(at(&conv.pads)));
            }
        }
    }
    let dtype = cx.dtype(x);
    let table = |shape: &[usize], values: &[f64]| {
        Tensor::from_f64s(dtype, shape, values).map_err(|e| Refusal::new(e.to_string()))
    };
    let table_shape = [vec![1, taps, axes], outputs.clone()].concat();
    let base = table(&table_shape, &positions)?;
    let base = cx.make("positions", base);
    let dims = |list: &[usize]| list.iter().copied().map(signed).collect::<Vec<i64>>();
    let offset = cx.reshape(offset, &[vec![-1], dims(&[&[taps, axes], &outputs[..]].concat())].concat())?;
    let pixels = cx.binary(BinaryKind::Add, offset, base)?;
    // Positions are in the last axis of a grid, the image's last axis first.
    let reversed: Vec<i64> = (0..signed(axes)).rev().collect();
    let reversed = cx.make_ints("reversed", &reversed);
    let pixels = cx.step("reverse", Gather { axis: 2 }, [pixels, reversed])?;
    let perm: Vec<usize> = [0, 1].into_iter().chain(3..3 + axes).chain([2]).collect();
    let pixels = cx.transpose(pixels, &perm)?;
    // From elements to the borders -1 and 1.
    let last_first: Vec<f64> = extents.iter().rev().map(|&e| real(e)).collect();
    let factor = table(&[axes], &last_first.iter().map(|e| 2.0 / e).collect::<Vec<_>>())?;
    let shift = table(&[axes], &last_first.iter().map(|e| 1.0 / e - 1.0).collect::<Vec<_>>())?;
    let (factor, shift) = (cx.make("factor", factor), cx.make("shift", shift));
    let scaled = cx.binary(BinaryKind::Mul, pixels, factor)?;
    let grid = cx.binary(BinaryKind::Add, scaled, shift)?;
    let first = outputs.first().copied().unwrap_or(1);
    let rest = dims(outputs.get(1..).unwrap_or_default());
    let flat = [vec![signed(taps * first)], rest].concat();
    let grid = cx.reshape(grid, &[vec![-1], flat.clone(), vec![signed(axes)]].concat())?;
    let parts = cx.reshape(x, &[vec![-1, signed(channels / groups)], dims(extents)].concat())?;
    let op =
        GridSample { interpolation: Interpolation::Linear, outside: Outside::Zeros, align_corners: false };
    let mut sampled = cx.step("sample", op, [parts, grid])?;
    if let Some(mask) = cx.opt(4) {
        let mask = cx.reshape(mask, &[vec![-1, 1], flat].concat())?;
        sampled = cx.binary(BinaryKind::Mul, sampled, mask)?;
    }
    let columns = cx.reshape(sampled, &[vec![-1, signed(channels * taps)], dims(&outputs)].concat())?;
    let shape = [vec![-1, signed(per_group * taps)], vec![1; axes]].concat();
    let weights = cx.reshape(weights, &shape)?;
    let op = Conv { group: conv.group, ..Conv::new(axes) };
    cx.add(op, [Some(columns), Some(weights), cx.opt(3)])
}
