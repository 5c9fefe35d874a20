//! The method of static post-training quantization: writes a placement into the graph as explicit
//! QuantizeLinear and DequantizeLinear.
//!
//! Source: B. Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
//! inference", CVPR 2018; weights per channel and symmetric, activations per tensor and asymmetric.

use std::collections::{BTreeMap, HashMap};

use sora_ir::ops::{DequantizeLinear, QuantizeLinear};
use sora_ir::{Graph, NodeId, ValueId};
use sora_tensor::{DType, Tensor};

use crate::CompressError;
use crate::layers::{Linear, Network};
use crate::method::{Cx, Method, Request, Statistic};
use crate::placement::{Placement, Plan};
use crate::range::Affine;
use crate::weights::{self, QuantizedWeights};

/// The row of this method.
pub(crate) const QUANTIZATION: Method = Method {
    name: "quantization",
    about: "8-bit weights per channel and activations per tensor, by observed ranges",
    observe,
    apply,
};

/// Name of the node that quantizes the value of this name.
pub(crate) fn quantize_name(value: &str) -> String {
    format!("{value}_quantize")
}

/// Name of the node that makes the value of this name real again.
pub(crate) fn dequantize_name(value: &str) -> String {
    format!("{value}_dequantize")
}

fn observe(network: &Network) -> Vec<Request> {
    let everything = Placement::without_ranges(network, &Plan::default());
    let values = everything.sources.keys();
    values.map(|&value| Request { value, statistic: Statistic::Histogram }).collect()
}

fn apply(cx: &Cx, mut graph: Graph) -> Result<Graph, CompressError> {
    let (network, placement) = (cx.network, cx.placement);
    let mut real: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    let mut parameters: HashMap<(u32, u8), (ValueId, ValueId)> = HashMap::new();
    for (&value, choice) in &placement.choices {
        let Affine { scale, zero_point } = choice.affine;
        let name = graph.value(value).name.clone();
        let (scale, zero) = *parameters.entry((scale.to_bits(), zero_point)).or_insert_with(|| {
            let scale_name = graph.fresh_name(&format!("{name}_scale"));
            let scale = graph.constant(&scale_name, Tensor::scalar(scale));
            let zero_name = graph.fresh_name(&format!("{name}_zero_point"));
            (scale, graph.constant(&zero_name, Tensor::scalar(zero_point)))
        });
        let quantize = QuantizeLinear { axis: 1, to: DType::U8 };
        let levels = graph.op(&quantize_name(&name), quantize, [value, scale, zero])?;
        let dequantize = DequantizeLinear { axis: 1 };
        real.insert(value, graph.op(&dequantize_name(&name), dequantize, [levels, scale, zero])?);
    }
    redirect(network, placement, &real, &mut graph);
    for (index, layer) in network.layers.iter().enumerate() {
        let (Some(linear), true) = (layer.linear(), placement.int8[index]) else { continue };
        let input = layer.reads.first().and_then(|v| placement.choices.get(v));
        if let (Some(input), Some(&first)) = (input, layer.nodes.first()) {
            quantize_constants(cx, &mut graph, (index, first, linear), input.affine.scale)?;
        }
    }
    graph.compact()?;
    Ok(graph)
}

/// Makes the readers of quantized values read what is left of them after rounding: all readers when an 8-bit
/// layer computes the value, so that it exists in 8 bits only; else only those that compute in 8 bits.
fn redirect(network: &Network, placement: &Placement, real: &BTreeMap<ValueId, ValueId>, graph: &mut Graph) {
    let made_int8 = |v: ValueId| network.producer(v).is_some_and(|p| placement.int8[p]);
    for (id, node) in network.graph.nodes() {
        let Some(reader) = network.layer_of(id) else { continue };
        for (slot, value) in node.inputs.iter().enumerate() {
            let Some((value, &rounded)) = value.and_then(|v| Some((v, real.get(&v)?))) else { continue };
            // Within a layer nothing is rounded.
            let inside = network.producer(value) == Some(reader);
            if !inside && (made_int8(value) || placement.reads_int8(network, reader, value)) {
                graph.set_input(id, slot, rounded);
            }
        }
    }
    let mut outputs = graph.outputs().to_vec();
    for output in &mut outputs {
        if let Some(&rounded) = real.get(&output.value).filter(|_| made_int8(output.value)) {
            output.value = rounded;
        }
    }
    graph.set_outputs(outputs);
}

/// Weights to `i8`, bias to `i32`, each behind a DequantizeLinear. A convolution without a bias gets one of zeros,
/// which costs its kernel nothing and takes corrections.
fn quantize_constants(
    cx: &Cx,
    graph: &mut Graph,
    (index, first, linear): (usize, NodeId, &Linear),
    input_scale: f32,
) -> Result<(), CompressError> {
    let Some(exact) = graph.const_value(linear.weight).cloned() else { return Ok(()) };
    let bias = linear.bias.map(|(node, slot)| {
        let value = graph.node(node).and_then(|n| n.inputs.get(slot).copied().flatten());
        let tensor = value.and_then(|v| graph.const_value(v)).cloned();
        (node, slot, value, tensor)
    });
    let channels = exact.shape().get(linear.axis).copied().unwrap_or(1);
    let exact_bias = bias.as_ref().and_then(|(.., tensor)| tensor.as_ref()).map(Tensor::to_f32s);
    let mut least = vec![0f32; channels];
    if let Some(exact_bias) = &exact_bias {
        for (i, scale) in weights::least_scales(exact_bias, input_scale).into_iter().enumerate() {
            least[i % channels] = least[i % channels].max(scale);
        }
    }
    let quantized = cx.weights(index, &exact, linear.axis, &least)?;
    let (name, scales) = (graph.value(linear.weight).name.clone(), quantized.scales.clone());
    let real = quantize_channels(graph, linear.weight, quantized, linear.axis)?;
    graph.set_input(first, 1, real);

    let Some((node, slot, value, tensor)) = bias else { return Ok(()) };
    let (exact_bias, shape, name) = match (exact_bias, tensor, value) {
        (Some(exact), Some(tensor), Some(value)) => {
            (exact, tensor.shape().to_vec(), graph.value(value).name.clone())
        }
        _ => {
            let outputs = graph.node(first).and_then(|n| n.outputs.first().copied());
            let outputs = outputs.and_then(|v| graph.ty(v).shape.get(1)?.known()).unwrap_or(channels);
            (vec![0.0; outputs], vec![outputs], format!("{name}_bias"))
        }
    };
    let (levels, units) = weights::quantize_bias(&exact_bias, input_scale, &scales);
    let levels = Tensor::from_slice(&shape, &levels)?;
    let axis = i64::try_from(shape.len().saturating_sub(1)).unwrap_or(0);
    let real = dequantized(graph, &name, levels, &units, None, axis)?;
    set_or_append(graph, node, slot, real)
}

/// Adds integers in the place of a constant, with the node that makes them real and one scale for each channel along `axis`.
pub(crate) fn quantize_channels(
    graph: &mut Graph,
    weight: ValueId,
    quantized: QuantizedWeights,
    axis: usize,
) -> Result<ValueId, CompressError> {
    let name = graph.value(weight).name.clone();
    let zeros = Tensor::zeros(DType::I8, &[quantized.scales.len()])?;
    let axis = i64::try_from(axis).unwrap_or(0);
    dequantized(graph, &name, quantized.values, &quantized.scales, Some(zeros), axis)
}

/// Adds an integer constant and the node that makes it real.
fn dequantized(
    graph: &mut Graph,
    name: &str,
    levels: Tensor,
    scales: &[f32],
    zero_points: Option<Tensor>,
    axis: i64,
) -> Result<ValueId, CompressError> {
    let levels_name = graph.fresh_name(&format!("{name}_{}", levels.dtype()));
    let levels = graph.constant(&levels_name, levels);
    let scale_name = graph.fresh_name(&format!("{name}_scale"));
    let scale = graph.constant(&scale_name, Tensor::vector(scales));
    let mut inputs = vec![Some(levels), Some(scale)];
    if let Some(zero_points) = zero_points {
        let zero_name = graph.fresh_name(&format!("{name}_zero_point"));
        inputs.push(Some(graph.constant(&zero_name, zero_points)));
    }
    let node_name = graph.fresh_name(&dequantize_name(name));
    Ok(graph.op(&node_name, DequantizeLinear { axis }, inputs)?)
}

/// Sets an input that the node may not have had.
fn set_or_append(graph: &mut Graph, id: NodeId, slot: usize, value: ValueId) -> Result<(), CompressError> {
    let Some(node) = graph.node(id).cloned() else { return Ok(()) };
    if slot < node.inputs.len() {
        graph.set_input(id, slot, value);
        return Ok(());
    }
    let mut inputs = node.inputs.clone();
    inputs.resize(slot + 1, None);
    inputs[slot] = Some(value);
    let made = graph.add(&node.name, node.op, inputs)?;
    for (&old, new) in node.outputs.iter().zip(made) {
        let name = graph.value(old).name.clone();
        graph.replace_uses(old, new);
        graph.rename(new, &name);
    }
    graph.remove(id);
    Ok(())
}
