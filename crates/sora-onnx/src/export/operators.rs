//! How each core operator is written.

use sora_ir::ops::{
    Activation, ActivationKind, Binary, BinaryKind, Direction, Distribution, Late, LateOp, LayerNorm, Pad,
    PadMode, QuantizeLinear, Random, Reduce, ReduceKind, Reduction, Rnn, RnnActivation, ScatterElements,
    ScatterNd, Split, Unary, UnaryKind,
};
use sora_ir::{Dim, Graph, Node, Op, TensorType, resolve_axis};
use sora_tensor::{DType, Tensor, element_count};

use super::node::{NodeWriter, flag, float, int, integers, sizes, text, texts};
use super::{control, function, integer, quantize, vision};
use crate::error::OnnxError;
use crate::proto::AttributeProto;
use crate::tensor::{code_of, signed};

/// The oldest opset that has what a node is written as, and its types.
pub(super) fn since(graph: &Graph, node: &Node) -> i64 {
    let values = node.inputs.iter().flatten().chain(&node.outputs);
    let types = values.map(|&value| type_since(graph.ty(value).dtype)).max().unwrap_or(1);
    operator_since(graph, node).max(types)
}

/// The oldest opset that has an element type.
fn type_since(dtype: DType) -> i64 {
    match dtype {
        DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ => 19,
        DType::I4 | DType::U4 => 21,
        DType::F4E2M1 => 23,
        DType::F8E8M0 => 24,
        DType::I2 | DType::U2 => 25,
        _ => 1,
    }
}

fn operator_since(graph: &Graph, node: &Node) -> i64 {
    let ty = |index: usize| node.inputs.get(index).copied().flatten().map(|id| graph.ty(id));
    match &node.op {
        Op::Unary(Unary { kind: UnaryKind::Gelu | UnaryKind::GeluTanh }) => 20,
        Op::Binary(Binary { kind: BinaryKind::And | BinaryKind::Or | BinaryKind::Xor }) => {
            if ty(0).is_some_and(|ty| ty.dtype == DType::Bool) { 7 } else { 18 }
        }
        // Shifts of signed integers.
        Op::Binary(Binary { kind: BinaryKind::ShiftLeft | BinaryKind::ShiftRight }) => {
            let signed = ty(0).and_then(|ty| ty.dtype.int_range()).is_some_and(|(low, _)| low < 0);
            if signed { 28 } else { 11 }
        }
        Op::BitCast(_) | Op::CumProd(_) => 26,
        Op::ScatterElements(ScatterElements { reduction, .. }) | Op::ScatterNd(ScatterNd { reduction }) => {
            match reduction {
                Reduction::Replace => 13,
                Reduction::Add | Reduction::Mul => 16,
                Reduction::Max | Reduction::Min => 18,
            }
        }
        Op::Pad(Pad { mode: PadMode::Wrap }) => 19,
        Op::Pad(_) if ty(3).is_some() => 18,
        // Older versions count the padding of an overhanging window differently.
        Op::AveragePool(pool) if pool.ceil_mode || pool.dilations.iter().any(|&d| d != 1) => 19,
        Op::Late(Late { op: LateOp::Reduce { kind, .. } }) if *kind != ReduceKind::Sum => 18,
        Op::Split(split) if needs_num_outputs(split, ty(0)) => 18,
        Op::Resize(op) => vision::resize_since(op),
        Op::GridSample(_) => 20,
        Op::RoiAlign(_) => 16,
        op if !op.bodies().is_empty() => {
            let bodies = op.bodies().into_iter().map(|body| body.graph());
            bodies.flat_map(|g| g.nodes().map(|(_, node)| since(g, node))).max().unwrap_or(1)
        }
        Op::QuantizeLinear(QuantizeLinear { to, .. }) => quantize::since(*to, ty(1)),
        Op::DequantizeLinear(_) => quantize::since(ty(0).map_or(DType::U8, |ty| ty.dtype), ty(1)),
        _ => 1,
    }
}

/// Whether the parts are equal except perhaps the last, and their extents are not known.
fn needs_num_outputs(split: &Split, x: Option<&TensorType>) -> bool {
    split.sizes.is_empty() && parts(split, x).is_none()
}

/// The extents of a split's parts, where they are numbers.
fn parts(split: &Split, x: Option<&TensorType>) -> Option<Vec<i64>> {
    if !split.sizes.is_empty() {
        return Some(split.sizes.iter().copied().map(signed).collect());
    }
    let x = x?;
    let extent = x.shape.get(resolve_axis(split.axis, x.rank()).ok()?)?.known()?;
    let part = extent.div_ceil(split.outputs.max(1));
    let sizes = (0..split.outputs).map(|i| signed(part.min(extent.saturating_sub(part * i))));
    Some(sizes.collect())
}

/// Writes one node.
pub(super) fn write(w: &mut NodeWriter) -> Result<(), OnnxError> {
    let node = w.node;
    match &node.op {
        Op::Activation(op) => activation(w, op),
        Op::ArgReduce(op) => {
            let name = if op.largest { "ArgMax" } else { "ArgMin" };
            let attributes = vec![
                int("axis", op.axis),
                flag("keepdims", op.keep_dims),
                flag("select_last_index", op.select_last),
            ];
            w.write(name, attributes);
        }
        Op::AveragePool(op) => {
            let mut attributes = vec![
                sizes("kernel_shape", &op.kernel),
                sizes("strides", &op.strides),
                sizes("pads", &op.pads),
                flag("ceil_mode", op.ceil_mode),
                flag("count_include_pad", op.count_include_pad),
            ];
            if w.writer.opset >= 19 {
                attributes.push(sizes("dilations", &op.dilations));
            }
            w.write("AveragePool", attributes);
        }
        Op::BatchNorm(op) => w.write("BatchNormalization", vec![float("epsilon", op.epsilon.0)]),
        Op::Binary(op) => binary(w, op.kind),
        Op::BitCast(op) => w.write("BitCast", vec![int("to", i64::from(code_of(op.to)))]),
        Op::Cast(op) => w.write("Cast", vec![int("to", i64::from(code_of(op.to)))]),
        Op::CastFloat8(op) => w.write("Cast", quantize::cast_float8(op)),
        Op::Concat(op) => w.write("Concat", vec![int("axis", op.axis)]),
        Op::Conv(op) => {
            let mut attributes = vec![
                sizes("strides", &op.strides),
                sizes("pads", &op.pads),
                sizes("dilations", &op.dilations),
                int("group", signed(op.group)),
            ];
            attributes.extend(kernel_shape(w).map(|kernel| sizes("kernel_shape", &kernel)));
            w.write("Conv", attributes);
        }
        Op::ConvTranspose(op) => {
            let mut attributes = vec![
                sizes("strides", &op.strides),
                sizes("pads", &op.pads),
                sizes("dilations", &op.dilations),
                sizes("output_padding", &op.output_padding),
                int("group", signed(op.group)),
            ];
            attributes.extend(kernel_shape(w).map(|kernel| sizes("kernel_shape", &kernel)));
            w.write("ConvTranspose", attributes);
        }
        Op::CumProd(op) => {
            w.write("CumProd", vec![flag("exclusive", op.exclusive), flag("reverse", op.reverse)])
        }
        Op::CumSum(op) => {
            w.write("CumSum", vec![flag("exclusive", op.exclusive), flag("reverse", op.reverse)])
        }
        Op::DequantizeLinear(op) => quantize::dequantize(w, op)?,
        Op::Det(_) => w.write("Det", Vec::new()),
        Op::DynamicQuantizeLinear(op) if op.rows => w.call(function::DYNAMIC_QUANTIZE_ROWS, Vec::new()),
        Op::DynamicQuantizeLinear(_) => w.write("DynamicQuantizeLinear", Vec::new()),
        Op::Expand(_) => w.write("Expand", Vec::new()),
        Op::Flatten(op) => w.write("Flatten", vec![int("axis", op.axis)]),
        Op::Gather(_) if integer::rows(w)? => {}
        Op::Gather(op) => w.write("Gather", vec![int("axis", op.axis)]),
        Op::GatherElements(op) => w.write("GatherElements", vec![int("axis", op.axis)]),
        Op::GatherNd(op) => w.write("GatherND", vec![int("batch_dims", signed(op.batch_dims))]),
        Op::GridSample(op) => vision::grid_sample(w, op),
        Op::Gru(op) => {
            let attributes = vec![
                int("hidden_size", signed(op.hidden)),
                direction(op.direction),
                flag("linear_before_reset", op.linear_before_reset),
            ];
            match op.quantize_state {
                true => w.call(function::GRU, attributes),
                false => w.write("GRU", attributes),
            }
        }
        Op::If(op) => return control::if_(w, op),
        Op::Late(op) => late(w, &op.op),
        Op::LayerNorm(op) => layer_norm(w, op)?,
        Op::Lstm(op) => {
            let attributes = vec![int("hidden_size", signed(op.hidden)), direction(op.direction)];
            match op.quantize_state {
                true if integer::lstm(w, &attributes)? => {}
                true => w.call(function::LSTM, attributes),
                false => w.write("LSTM", attributes),
            }
        }
        Op::Loop(op) => return control::loop_(w, op),
        Op::MatMul(_) if integer::product(w)? => {}
        Op::MatMul(_) => w.write("MatMul", Vec::new()),
        Op::MaxPool(op) => {
            let attributes = vec![
                sizes("kernel_shape", &op.kernel),
                sizes("strides", &op.strides),
                sizes("pads", &op.pads),
                sizes("dilations", &op.dilations),
                flag("ceil_mode", op.ceil_mode),
            ];
            w.write("MaxPool", attributes);
        }
        Op::MaxPoolIndices(op) => vision::max_pool_indices(w, op),
        Op::MaxRoiPool(op) => {
            let shape = sizes("pooled_shape", &[op.height, op.width]);
            w.write("MaxRoiPool", vec![shape, float("spatial_scale", op.scale.0)]);
        }
        Op::NonMaxSuppression(op) => {
            w.write("NonMaxSuppression", vec![flag("center_point_box", op.center)]);
        }
        Op::NonZero(_) => w.write("NonZero", Vec::new()),
        Op::OneHot(op) => w.write("OneHot", vec![int("axis", op.axis)]),
        Op::Pad(op) => {
            let mode = match op.mode {
                PadMode::Constant => "constant",
                PadMode::Edge => "edge",
                PadMode::Reflect => "reflect",
                PadMode::Wrap => "wrap",
            };
            w.write("Pad", vec![text("mode", mode)]);
        }
        Op::QuantizeLinear(op) => quantize::quantize(w, op)?,
        Op::Random(op) => random(w, op)?,
        Op::Range(_) => range(w),
        Op::RecurrentGrad(_) => return Err(w.refuse("ONNX has no gradients")),
        Op::Reduce(op) => reduce(w, op),
        Op::Reshape(op) => {
            w.write("Reshape", if op.allow_zero { vec![flag("allowzero", true)] } else { vec![] })
        }
        Op::Resize(op) => vision::resize(w, op),
        Op::Rnn(op) => rnn(w, op),
        Op::RoiAlign(op) => vision::roi_align(w, op),
        Op::Scan(op) => return control::scan(w, op),
        Op::ScatterElements(op) => {
            w.write("ScatterElements", [vec![int("axis", op.axis)], reduction(op.reduction)].concat())
        }
        Op::ScatterNd(op) => w.write("ScatterND", reduction(op.reduction)),
        Op::Shape(op) => {
            let start = (op.start != 0).then(|| int("start", op.start));
            w.write("Shape", start.into_iter().chain(op.end.map(|end| int("end", end))).collect());
        }
        Op::Slice(_) => w.write("Slice", Vec::new()),
        Op::Softmax(op) => {
            w.write(if op.log { "LogSoftmax" } else { "Softmax" }, vec![int("axis", op.axis)]);
        }
        Op::Split(op) => split(w, op),
        Op::Squeeze(op) if op.axes.is_empty() => w.write("Squeeze", Vec::new()),
        Op::Squeeze(op) => with_axes(w, "Squeeze", &op.axes),
        Op::Tile(_) => w.write("Tile", Vec::new()),
        Op::TopK(op) => w.write("TopK", vec![int("axis", op.axis), flag("largest", op.largest)]),
        Op::Transpose(op) => w.write("Transpose", vec![sizes("perm", &op.perm)]),
        Op::Trilu(op) => w.write("Trilu", vec![flag("upper", op.upper)]),
        Op::Unary(op) => unary(w, op.kind),
        Op::Unique(op) => {
            let axis = op.axis.map(|axis| int("axis", axis));
            w.write("Unique", axis.into_iter().chain([flag("sorted", op.sorted)]).collect());
        }
        Op::Unsqueeze(op) => with_axes(w, "Unsqueeze", &op.axes),
        Op::Where(_) => w.write("Where", Vec::new()),
    }
    Ok(())
}

fn late(w: &mut NodeWriter, op: &LateOp) {
    match op {
        LateOp::Reduce { kind, keep_dims, none_if_empty } => {
            let attributes = vec![flag("keepdims", *keep_dims), flag("noop_with_empty_axes", *none_if_empty)];
            w.write(kind.name(), attributes);
        }
        LateOp::Split { axis, .. } => w.write("Split", vec![int("axis", *axis)]),
        LateOp::Squeeze => w.write("Squeeze", Vec::new()),
        LateOp::Unsqueeze => w.write("Unsqueeze", Vec::new()),
    }
}

/// Nothing where updates replace: older opsets have no such attribute.
fn reduction(reduction: Reduction) -> Vec<AttributeProto> {
    let name = match reduction {
        Reduction::Replace => return Vec::new(),
        Reduction::Add => "add",
        Reduction::Mul => "mul",
        Reduction::Max => "max",
        Reduction::Min => "min",
    };
    vec![text("reduction", name)]
}

/// ONNX takes the shape of another tensor where it is not an attribute.
fn random(w: &mut NodeWriter, op: &Random) -> Result<(), OnnxError> {
    if w.ty(1).is_some() {
        return Err(w.refuse("ONNX has no random numbers that follow from an input"));
    }
    let name = match op.from {
        Distribution::Uniform => "RandomUniformLike",
        Distribution::Normal => "RandomNormalLike",
    };
    let shape = w.input(0);
    let like = w.step("ConstantOfShape", vec![shape], Vec::new());
    let attributes = vec![int("dtype", i64::from(code_of(op.dtype))), float("seed", op.seed.0)];
    w.write_with(name, vec![like], attributes);
    Ok(())
}

fn with_axes(w: &mut NodeWriter, op: &str, axes: &[i64]) {
    let inputs = vec![w.input(0), w.ints("axes", axes)];
    w.write_with(op, inputs, Vec::new());
}

/// The spatial extents of the weights, where they are numbers.
fn kernel_shape(w: &NodeWriter) -> Option<Vec<usize>> {
    w.ty(1)?.shape.get(2..)?.iter().map(Dim::known).collect()
}

fn direction(direction: Direction) -> AttributeProto {
    let name = match direction {
        Direction::Forward => "forward",
        Direction::Reverse => "reverse",
        Direction::Bidirectional => "bidirectional",
    };
    text("direction", name)
}

fn rnn(w: &mut NodeWriter, op: &Rnn) {
    let activation = match op.activation {
        RnnActivation::Tanh => "Tanh",
        RnnActivation::Relu => "Relu",
        RnnActivation::Sigmoid => "Sigmoid",
    };
    let both = if op.direction == Direction::Bidirectional { 2 } else { 1 };
    let attributes = vec![
        int("hidden_size", signed(op.hidden)),
        direction(op.direction),
        texts("activations", &vec![activation; both]),
    ];
    w.write("RNN", attributes);
}

fn activation(w: &mut NodeWriter, op: &Activation) {
    let (alpha, beta) = (op.alpha.0, op.beta.0);
    let one = |name: &str, w: &mut NodeWriter| w.write(name, vec![float("alpha", alpha)]);
    match op.kind {
        ActivationKind::Celu => one("Celu", w),
        ActivationKind::Elu => one("Elu", w),
        ActivationKind::LeakyRelu => one("LeakyRelu", w),
        ActivationKind::ThresholdedRelu => one("ThresholdedRelu", w),
        ActivationKind::HardSigmoid => {
            w.write("HardSigmoid", vec![float("alpha", alpha), float("beta", beta)])
        }
        ActivationKind::Selu => w.write("Selu", vec![float("alpha", alpha), float("gamma", beta)]),
        ActivationKind::Clip => {
            let dtype = w.ty(0).map_or(DType::F32, |ty| ty.dtype);
            let bound = |w: &mut NodeWriter, part: &str, value: f32| match value.is_infinite() {
                true => String::new(),
                false => w.constant(part, Tensor::scalar(value).cast(dtype)),
            };
            let mut inputs = vec![w.input(0), bound(w, "min", alpha), bound(w, "max", beta)];
            while inputs.last().is_some_and(String::is_empty) {
                inputs.pop();
            }
            w.write_with("Clip", inputs, Vec::new());
        }
    }
}

fn unary(w: &mut NodeWriter, kind: UnaryKind) {
    match kind {
        UnaryKind::GeluTanh => w.write("Gelu", vec![text("approximate", "tanh")]),
        UnaryKind::Silu => {
            let x = w.input(0);
            let gate = w.step("Sigmoid", vec![x.clone()], Vec::new());
            w.write_with("Mul", vec![x, gate], Vec::new());
        }
        // All others have ONNX's names.
        other => w.write(other.name(), Vec::new()),
    }
}

fn binary(w: &mut NodeWriter, kind: BinaryKind) {
    let float = w.ty(0).is_some_and(|ty| ty.dtype.is_float());
    let truth = w.ty(0).is_some_and(|ty| ty.dtype == DType::Bool);
    match kind {
        BinaryKind::Fmod => w.write("Mod", vec![flag("fmod", true)]),
        // ONNX has this remainder for integers only; the other one plus b where their signs differ is the same.
        BinaryKind::Mod if float => {
            let (a, b) = (w.input(0), w.input(1));
            let dtype = w.ty(0).map_or(DType::F32, |ty| ty.dtype);
            let zero = w.constant("zero", Tensor::scalar(0f32).cast(dtype));
            let rest = w.step("Mod", vec![a, b.clone()], vec![flag("fmod", true)]);
            let signs = w.step("Mul", vec![rest.clone(), b.clone()], Vec::new());
            let differ = w.step("Less", vec![signs, zero], Vec::new());
            let moved = w.step("Add", vec![rest.clone(), b], Vec::new());
            w.write_with("Where", vec![differ, moved, rest], Vec::new());
        }
        BinaryKind::And | BinaryKind::Or | BinaryKind::Xor if !truth => {
            w.write(&format!("Bitwise{}", kind.name()), Vec::new());
        }
        BinaryKind::ShiftLeft => w.write("BitShift", vec![text("direction", "LEFT")]),
        BinaryKind::ShiftRight => w.write("BitShift", vec![text("direction", "RIGHT")]),
        other => w.write(other.name(), Vec::new()),
    }
}

/// The pooling operator that is this reduction over all spatial axes: runtimes have faster and quantized forms of it.
fn global_pool(w: &NodeWriter, op: &Reduce) -> Option<&'static str> {
    let name = match op.kind {
        ReduceKind::Mean => "GlobalAveragePool",
        ReduceKind::Max => "GlobalMaxPool",
        _ => return None,
    };
    let x = w.ty(0)?;
    let spatial = op.axes.iter().copied().eq(2..signed(x.rank()));
    (op.keep_dims && spatial && x.rank() > 2 && x.dtype.is_float()).then_some(name)
}

/// The axes are an input since opset 13 for ReduceSum and since 18 for the others.
fn reduce(w: &mut NodeWriter, op: &Reduce) {
    if let Some(name) = global_pool(w, op) {
        w.write(name, Vec::new());
        return;
    }
    let keep = flag("keepdims", op.keep_dims);
    let name = op.kind.name();
    if op.axes.is_empty() {
        w.write(name, vec![keep]);
    } else if w.writer.opset >= 18 || op.kind == ReduceKind::Sum {
        let inputs = vec![w.input(0), w.ints("axes", &op.axes)];
        w.write_with(name, inputs, vec![keep]);
    } else {
        w.write(name, vec![integers("axes", &op.axes), keep]);
    }
}

/// ONNX takes scalars only, the graph also lists of one element.
fn range(w: &mut NodeWriter) {
    let scalar = |w: &mut NodeWriter, index: usize| {
        let value = w.input(index);
        match w.ty(index).map_or(0, TensorType::rank) {
            0 => value,
            _ => w.step("Squeeze", vec![value], Vec::new()),
        }
    };
    let inputs = (0..3).map(|index| scalar(w, index)).collect();
    w.write_with("Range", inputs, Vec::new());
}

fn split(w: &mut NodeWriter, op: &Split) {
    let axis = int("axis", op.axis);
    match parts(op, w.ty(0)) {
        Some(sizes) => {
            let inputs = vec![w.input(0), w.ints("split", &sizes)];
            w.write_with("Split", inputs, vec![axis]);
        }
        None => w.write("Split", vec![axis, int("num_outputs", signed(op.outputs))]),
    }
}

/// A scale of ones is stored up to this size, and computed while the model runs above it.
const MOST_ONES: usize = 1 << 20;

/// ONNX requires a scale of the normalized axes' shape; one that broadcasts is applied separately.
fn layer_norm(w: &mut NodeWriter, op: &LayerNorm) -> Result<(), OnnxError> {
    let attributes = vec![int("axis", op.axis), float("epsilon", op.epsilon.0)];
    let x = w.ty(0).ok_or_else(|| w.refuse("it has no input"))?;
    let axis = resolve_axis(op.axis, x.rank()).map_err(|e| w.refuse(e.0))?;
    let normalized = x.shape.get(axis..).unwrap_or_default();
    let fits = |p: Option<&TensorType>| p.is_none_or(|p| p.shape == normalized);
    if w.ty(1).is_some() && fits(w.ty(1)) && fits(w.ty(2)) {
        w.write("LayerNormalization", attributes);
        return Ok(());
    }
    let one = Tensor::scalar(1f32).cast(x.dtype);
    let known: Option<Vec<usize>> = normalized.iter().map(Dim::known).collect();
    let count = known.as_deref().and_then(element_count).filter(|&count| count <= MOST_ONES);
    let ones = match (known, count) {
        (Some(shape), Some(count)) => {
            let ones =
                Tensor::from_f64s(x.dtype, &shape, &vec![1.0; count]).map_err(|e| w.refuse(e.to_string()))?;
            w.constant("scale", ones)
        }
        _ => {
            let x = w.input(0);
            let shape = w.step("Shape", vec![x], vec![int("start", signed(axis))]);
            let one = w.constant("one", one);
            w.step("Expand", vec![one, shape], Vec::new())
        }
    };
    let x = w.input(0);
    let mut parts = vec![("LayerNormalization", ones, attributes)];
    for (index, op) in [(1, "Mul"), (2, "Add")] {
        let operand = w.input(index);
        if !operand.is_empty() {
            parts.push((op, operand, Vec::new()));
        }
    }
    let last = parts.len() - 1;
    let mut value = x;
    for (i, (op, operand, attributes)) in parts.into_iter().enumerate() {
        match i == last {
            true => w.write_with(op, vec![std::mem::take(&mut value), operand], attributes),
            false => value = w.step(op, vec![value, operand], attributes),
        }
    }
    Ok(())
}
