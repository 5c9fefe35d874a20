//! The method for layers whose activations are quantized as they come: recurrent layers, whose state has no fixed
//! place to observe, and products that a fixed range costs too much accuracy. Every row of activations, a token or
//! a time step, is quantized over its own range, so nothing is observed; weights are symmetric, one scale for each
//! output channel.

use std::collections::HashMap;

use sora_ir::ops::{DequantizeLinear, DynamicQuantizeLinear, Op};
use sora_ir::{Graph, NodeId, ValueId};
use sora_tensor::{DType, Tensor};

use crate::CompressError;
use crate::layers::Role;
use crate::method::{Cx, Method};
use crate::quantize::{dequantize_name, quantize_channels, quantize_name};
use crate::weights;

/// The row of this method.
pub(crate) const DYNAMIC_QUANTIZATION: Method = Method {
    name: "dynamic quantization",
    about: "8-bit weights per channel; activations by rows, over the range that each has when it comes",
    observe: |_| Vec::new(),
    apply,
};

fn apply(cx: &Cx, mut graph: Graph) -> Result<Graph, CompressError> {
    let mut rounded: HashMap<ValueId, ValueId> = HashMap::new();
    for (index, layer) in cx.network.layers.iter().enumerate().filter(|(i, _)| cx.placement.dynamic[*i]) {
        let Some(&first) = layer.nodes.first() else { continue };
        let bits = cx.placement.bits[index];
        // Methods before this one may have given the node another place.
        let Some(id) = cx.counterpart(&graph, first) else { continue };
        // So may they have given the values.
        let input = |graph: &Graph, slot: usize| graph.node(id)?.inputs.get(slot).copied().flatten();
        let Some(x) = input(&graph, 0) else { continue };
        let real = match rounded.get(&x) {
            Some(&real) => real,
            None => round_rows(&mut graph, x)?,
        };
        rounded.insert(x, real);
        graph.set_input(id, 0, real);
        match &cx.network.layers[index].role {
            Role::Linear(linear) => {
                let Some(weight) = input(&graph, 1) else { continue };
                let Some(exact) = graph.const_value(weight).cloned() else { continue };
                let quantized = cx.weights(index, &exact, linear.axis, &[])?;
                let real = quantize_channels(&mut graph, weight, quantized, linear.axis)?;
                graph.set_input(id, 1, real);
            }
            Role::Recurrent(_) => {
                for slot in [1, 2] {
                    let Some(matrix) = input(&graph, slot) else { continue };
                    let real = quantize_rows(&mut graph, matrix, bits)?;
                    graph.set_input(id, slot, real);
                }
                round_state(&mut graph, id)?;
            }
            _ => {}
        }
    }
    graph.compact()?;
    Ok(graph)
}

/// A value rounded to 8 bits row by row.
fn round_rows(graph: &mut Graph, x: ValueId) -> Result<ValueId, CompressError> {
    let name = graph.value(x).name.clone();
    let quantize = graph.fresh_name(&format!("{}_rows", quantize_name(&name)));
    let quantized = graph.add(&quantize, DynamicQuantizeLinear { rows: true }, [x])?;
    let dequantize = graph.fresh_name(&format!("{}_rows", dequantize_name(&name)));
    Ok(graph.op(&dequantize, DequantizeLinear { axis: -1 }, quantized)?)
}

/// Weights `[D, rows, columns]` in `i8`, one scale for each row.
pub(crate) fn quantize_rows(graph: &mut Graph, weight: ValueId, bits: u32) -> Result<ValueId, CompressError> {
    let Some(exact) = graph.const_value(weight).cloned() else { return Ok(weight) };
    let name = graph.value(weight).name.clone();
    let mut shape = exact.shape().to_vec();
    let columns = shape.last_mut().map_or(1, |last| std::mem::replace(last, 1));
    let lines = exact.reshape(&[exact.len() / columns.max(1), columns])?;
    let quantized = weights::quantize(&lines, 0, &[], bits)?;
    let levels = quantized.values.reshape(exact.shape())?;
    let mut constant = |part: &str, tensor: Tensor| {
        let name = graph.fresh_name(&format!("{name}_{part}"));
        graph.constant(&name, tensor)
    };
    let levels = constant("i8", levels);
    let scale = constant("scale", Tensor::from_slice(&shape, &quantized.scales)?);
    let zeros = constant("zero_point", Tensor::zeros(DType::I8, &shape)?);
    let node = graph.fresh_name(&dequantize_name(&name));
    Ok(graph.op(&node, DequantizeLinear { axis: -1 }, [levels, scale, zeros])?)
}

/// Lets a recurrent layer round its state.
fn round_state(graph: &mut Graph, id: NodeId) -> Result<(), CompressError> {
    let Some(node) = graph.node(id).cloned() else { return Ok(()) };
    let mut op = node.op.clone();
    match &mut op {
        Op::Lstm(lstm) => lstm.quantize_state = true,
        Op::Gru(gru) => gru.quantize_state = true,
        _ => return Ok(()),
    }
    let made = graph.add(&node.name, op, node.inputs.clone())?;
    for (&old, new) in node.outputs.iter().zip(made) {
        let name = graph.value(old).name.clone();
        graph.replace_uses(old, new);
        graph.rename(new, &name);
    }
    graph.remove(id);
    Ok(())
}
