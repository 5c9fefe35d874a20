//! Layers whose activations are quantized as they come, in the integer operators that runtimes have for them.
//!
//! A product of such a value and constant bytes is written as MatMulInteger, an LSTM that rounds its state as
//! onnxruntime's DynamicQuantizeLSTM, which quantizes X as a whole even where the graph does so by rows. Rows of a
//! constant table are dequantized behind the Gather that takes them, so that no runtime makes all of the table real.
//! Everything else stays real numbers behind DequantizeLinear.

use std::collections::HashSet;

use sora_ir::{Graph, IrError, Node, Op, ValueId, resolve_axis};
use sora_tensor::{DType, Tensor};

use super::node::{NodeWriter, int};
use crate::error::OnnxError;
use crate::proto::AttributeProto;
use crate::tensor::code_of;

/// A value from DynamicQuantizeLinear and back.
struct Rounded {
    /// What was quantized.
    exact: ValueId,
    bytes: ValueId,
    scale: ValueId,
    zero_point: ValueId,
    /// Whether each row has a scale of its own.
    rows: bool,
}

/// Constant bytes behind a DequantizeLinear.
struct Bytes<'g> {
    bytes: ValueId,
    tensor: &'g Tensor,
    scale: ValueId,
    scales: &'g Tensor,
    zero_points: Option<&'g Tensor>,
    /// The resolved axis of the scale.
    axis: usize,
}

fn input(node: &Node, slot: usize) -> Option<ValueId> {
    node.inputs.get(slot).copied().flatten()
}

fn rounded(graph: &Graph, value: ValueId) -> Option<Rounded> {
    let (_, node, _) = graph.producer(value).filter(|(_, n, _)| matches!(n.op, Op::DequantizeLinear(_)))?;
    let (bytes, scale, zero_point) = (input(node, 0)?, input(node, 1)?, input(node, 2)?);
    let (_, quantize, _) = graph.producer(bytes)?;
    let Op::DynamicQuantizeLinear(op) = &quantize.op else { return None };
    let own = quantize.outputs == [bytes, scale, zero_point];
    own.then_some(Rounded { exact: input(quantize, 0)?, bytes, scale, zero_point, rows: op.rows })
}

fn constant_bytes(graph: &Graph, value: ValueId) -> Option<Bytes<'_>> {
    let (_, node, _) = graph.producer(value)?;
    let Op::DequantizeLinear(op) = &node.op else { return None };
    let (bytes, scale) = (input(node, 0)?, input(node, 1)?);
    let (tensor, scales) = (graph.const_value(bytes)?, graph.const_value(scale)?);
    let zero_points = match input(node, 2) {
        Some(zero) => Some(graph.const_value(zero)?),
        None => None,
    };
    let axis = resolve_axis(op.axis, tensor.rank()).ok()?;
    let fits = matches!(tensor.dtype(), DType::I8 | DType::U8) && scales.dtype() == DType::F32;
    fits.then_some(Bytes { bytes, tensor, scale, scales, zero_points, axis })
}

/// The operands of a MatMul that MatMulInteger computes.
fn product_operands<'g>(graph: &'g Graph, node: &Node) -> Option<(Rounded, Bytes<'g>)> {
    let Op::MatMul(_) = node.op else { return None };
    let (a, b) = (rounded(graph, input(node, 0)?)?, constant_bytes(graph, input(node, 1)?)?);
    let by_column = b.scales.rank() == 0 || b.scales.rank() == 1 && b.axis == 1;
    let symmetric = b.zero_points.is_none_or(|zeros| zeros.to_i64s().iter().all(|&z| z == 0));
    (b.tensor.rank() == 2 && by_column && (symmetric || !a.rows)).then_some((a, b))
}

/// X and the matrices of an LSTM that DynamicQuantizeLSTM computes.
fn lstm_operands<'g>(graph: &'g Graph, node: &Node) -> Option<(Rounded, [Bytes<'g>; 2])> {
    let Op::Lstm(op) = &node.op else { return None };
    let x = rounded(graph, input(node, 0)?).filter(|_| op.quantize_state)?;
    let lines = |slot| {
        let bytes = constant_bytes(graph, input(node, slot)?)?;
        let by_line = bytes.scales.rank() == 3 && bytes.axis == 2 && bytes.scales.shape().last() == Some(&1);
        (bytes.tensor.rank() == 3 && by_line).then_some(bytes)
    };
    Some((x, [lines(1)?, lines(2)?]))
}

/// The table whose rows a Gather takes before they are dequantized.
fn table_operand<'g>(graph: &'g Graph, node: &Node) -> Option<Bytes<'g>> {
    let Op::Gather(op) = &node.op else { return None };
    let table = constant_bytes(graph, input(node, 0)?)?;
    let by_column = table.tensor.rank() == 2 && table.scales.rank() == 1 && table.axis == 1;
    (by_column && resolve_axis(op.axis, 2) == Ok(0)).then_some(table)
}

/// The values that the file needs when nodes are written as this module does.
///
/// # Errors
/// [`IrError`] when the graph has a cycle.
pub(super) fn needed(graph: &Graph) -> Result<HashSet<ValueId>, IrError> {
    let mut needed: HashSet<ValueId> = graph.outputs().iter().map(|output| output.value).collect();
    for id in graph.order()?.into_iter().rev() {
        let Some(node) = graph.node(id) else { continue };
        let conversion = matches!(node.op, Op::DequantizeLinear(_) | Op::DynamicQuantizeLinear(_));
        if conversion && !node.outputs.iter().any(|v| needed.contains(v)) {
            continue;
        }
        if let Some((a, b)) = product_operands(graph, node) {
            needed.extend([a.bytes, a.scale, a.zero_point, b.bytes, b.scale]);
        } else if let Some((x, _)) = lstm_operands(graph, node) {
            needed.insert(x.exact);
            needed.extend(node.inputs.iter().skip(3).flatten());
        } else if let Some(table) = table_operand(graph, node) {
            needed.extend([Some(table.bytes), Some(table.scale), input(node, 1)].into_iter().flatten());
        } else {
            needed.extend(node.inputs.iter().flatten());
        }
    }
    Ok(needed)
}

/// Writes a Gather from a dequantized table as a DequantizeLinear of what it takes from the bytes; whether that is what it does.
pub(super) fn rows(w: &mut NodeWriter) -> Result<bool, OnnxError> {
    let Some(table) = table_operand(w.writer.graph, w.node) else { return Ok(false) };
    let names = [table.bytes, table.scale].map(|v| w.writer.name(v));
    let [bytes, scale] = names;
    let inputs = vec![bytes, w.input(1)];
    let rows = w.step("Gather", inputs, vec![int("axis", 0)]);
    // Runtimes recognize quantized values by an explicit zero point.
    let zeros = match table.zero_points {
        Some(zeros) => zeros.clone(),
        None => {
            Tensor::zeros(table.tensor.dtype(), table.scales.shape()).map_err(|e| w.refuse(e.to_string()))?
        }
    };
    let zeros = w.constant("zero_point", zeros);
    w.write_with("DequantizeLinear", vec![rows, scale, zeros], vec![int("axis", -1)]);
    Ok(true)
}

/// Writes a MatMul as MatMulInteger; whether its operands allow that.
pub(super) fn product(w: &mut NodeWriter) -> Result<bool, OnnxError> {
    let graph = w.writer.graph;
    let Some((a, b)) = product_operands(graph, w.node) else { return Ok(false) };
    let to_f32 = || vec![int("to", i64::from(code_of(DType::F32)))];
    let [x, scale, zero_point, bytes, scales] =
        [a.bytes, a.scale, a.zero_point, b.bytes, b.scale].map(|v| w.writer.name(v));
    let mut inputs = vec![x, bytes];
    if !a.rows {
        inputs.push(zero_point.clone());
        if let Some(zeros) = b.zero_points {
            inputs.push(w.constant("zero_points", zeros.clone()));
        }
    }
    let sums = w.step("MatMulInteger", inputs, Vec::new());
    let mut real = w.step("Cast", vec![sums], to_f32());
    if a.rows {
        // MatMulInteger of onnxruntime has one zero point for all rows: what those of the rows add is taken off.
        let columns = b.tensor.shape().last().copied().unwrap_or(0);
        let mut column_sums = vec![0f32; columns];
        for row in b.tensor.to_f32s().chunks_exact(columns.max(1)) {
            column_sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
        }
        let column_sums = w.constant("column_sums", Tensor::vector(&column_sums));
        let zero_point = w.step("Cast", vec![zero_point], to_f32());
        let shift = w.step("Mul", vec![zero_point, column_sums], Vec::new());
        real = w.step("Sub", vec![real, shift], Vec::new());
    }
    let both = w.step("Mul", vec![scale, scales], Vec::new());
    w.write_with("Mul", vec![real, both], Vec::new());
    Ok(true)
}

/// Writes an LSTM as DynamicQuantizeLSTM; whether its operands allow that.
pub(super) fn lstm(w: &mut NodeWriter, attributes: &[AttributeProto]) -> Result<bool, OnnxError> {
    let graph = w.writer.graph;
    let Some((x, matrices)) = lstm_operands(graph, w.node) else { return Ok(false) };
    let mut inputs: Vec<String> =
        (0..8).map(|slot| if slot < 3 { String::new() } else { w.input(slot) }).collect();
    let x = w.writer.name(x.exact);
    let mut parameters = Vec::new();
    let mut first = vec![x];
    for (name, matrix) in ["W", "R"].into_iter().zip(matrices) {
        let bytes = matrix.tensor;
        let &[directions, rows, depth] = bytes.shape() else { return Ok(false) };
        let values = bytes.to_f64s();
        let mut columns = Vec::with_capacity(values.len());
        for lines in values.chunks_exact((rows * depth).max(1)) {
            columns.extend((0..rows * depth).filter_map(|i| lines.get(i % rows * depth + i / rows)));
        }
        let refuse =
            |e: sora_tensor::TensorError| OnnxError::Export { node: w.node.name.clone(), why: e.to_string() };
        let columns =
            Tensor::from_f64s(bytes.dtype(), &[directions, depth, rows], &columns).map_err(refuse)?;
        let scales = matrix.scales.reshape(&[directions, rows]).map_err(refuse)?;
        let zeros = match matrix.zero_points {
            Some(zeros) => zeros.reshape(&[directions, rows]),
            None => Tensor::zeros(bytes.dtype(), &[directions, rows]),
        };
        let zeros = zeros.map_err(refuse)?;
        first.push(w.constant(name, columns));
        parameters.push(w.constant(&format!("{name}_scale"), scales));
        parameters.push(w.constant(&format!("{name}_zero_point"), zeros));
    }
    let given = first.len();
    inputs.splice(..given, first);
    inputs.extend(parameters);
    w.write_with("DynamicQuantizeLSTM", inputs, attributes.to_vec());
    w.of_domain(super::MICROSOFT);
    Ok(true)
}
