//! The method of fast bias correction: rounding weights shifts the mean of a layer's outputs; the bias takes the
//! shift back.
//!
//! With weights `W` rounded to `W + E`, the mean output moves by `E · mean(x)`. The mean of each input channel is
//! observed in the calibration run of all methods, on the floating-point network, so no further run is needed; at
//! the padded border of a convolution it is an approximation.
//! Source: M. Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019,
//! section 4.2, with observed in place of derived means.

use sora_ir::ops::Op;
use sora_ir::{Graph, NodeId, ValueId};
use sora_tensor::Tensor;

use crate::CompressError;
use crate::layers::{Layer, Linear, Network};
use crate::method::{Cx, Method, Request, Statistic};
use crate::weights::{QuantizedWeights, mean_shift};

/// The row of this method.
pub(crate) const BIAS_CORRECTION: Method = Method {
    name: "bias correction",
    about: "takes the shift of mean outputs that rounding weights causes back in the bias",
    observe,
    apply,
};

fn observe(network: &Network) -> Vec<Request> {
    let request = |layer: &Layer| {
        let linear = layer.linear().filter(|l| l.bias.is_some())?;
        let statistic = Statistic::Channels { axis: linear.input_axis };
        Some(Request { value: *layer.reads.first()?, statistic })
    };
    network.layers.iter().filter_map(request).collect()
}

fn apply(cx: &Cx, mut graph: Graph) -> Result<Graph, CompressError> {
    for (index, layer) in cx.network.layers.iter().enumerate() {
        let (Some(linear), true) = (layer.linear(), cx.placement.int8[index]) else { continue };
        let read = layer.reads.first().map(|&v| (v, linear.input_axis));
        let channels = read.and_then(|read| cx.observations.channels.get(&read));
        if let Some(channels) = channels {
            correct(cx, layer, linear, &channels.means, &mut graph)?;
        }
    }
    graph.compact()?;
    Ok(graph)
}

fn correct(
    cx: &Cx,
    layer: &Layer,
    linear: &Linear,
    means: &[f64],
    graph: &mut Graph,
) -> Result<(), CompressError> {
    let counterpart = |id: NodeId| cx.counterpart(graph, id);
    let network = cx.network;
    let found = || {
        let (bias_node, slot) = linear.bias?;
        let first = counterpart(*layer.nodes.first()?)?;
        let weights = constants(graph, first, 1)?;
        let bias = constants(graph, counterpart(bias_node)?, slot)?;
        Some((
            network.graph.const_value(linear.weight)?,
            &network.graph.node(*layer.nodes.first()?)?.op,
            weights,
            bias,
        ))
    };
    let Some((exact, op, weights, bias)) = found() else { return Ok(()) };
    let Some(mean_at) = input_channel(op, exact.shape(), linear.axis) else { return Ok(()) };
    if (0..exact.len()).any(|i| mean_at(i) >= means.len()) {
        return Ok(());
    }
    let quantized = QuantizedWeights { values: weights.levels, scales: weights.scales };
    let shift = mean_shift(exact, &quantized, linear.axis, |i| means[mean_at(i)])?;
    let corrected = bias.levels.as_slice::<i32>()?.iter().zip(&shift).zip(&bias.scales);
    let corrected: Vec<i32> = corrected
        .map(|((&level, shift), &unit)| (f64::from(level) - shift / f64::from(unit)).round() as i32)
        .collect();
    let tensor = Tensor::from_slice(bias.levels.shape(), &corrected)?;
    let name = graph.fresh_name(&format!("{}_corrected", graph.value(bias.levels_value).name));
    let value = graph.constant(&name, tensor);
    graph.set_input(bias.dequantize, 0, value);
    Ok(())
}

/// An integer constant behind a DequantizeLinear.
struct Constants {
    dequantize: NodeId,
    levels_value: ValueId,
    levels: Tensor,
    scales: Vec<f32>,
}

fn constants(graph: &Graph, node: NodeId, slot: usize) -> Option<Constants> {
    let value = graph.node(node)?.inputs.get(slot).copied().flatten()?;
    let (dequantize, node, _) = graph.producer(value)?;
    let levels_value = node.inputs.first().copied().flatten()?;
    let levels = graph.const_value(levels_value)?.clone();
    let scales = graph.const_value(node.inputs.get(1).copied().flatten()?)?.to_f32s();
    Some(Constants { dequantize, levels_value, levels, scales })
}

/// The input channel that the weight at a position multiplies; `None` for operators where it is not one.
pub(crate) fn input_channel(op: &Op, shape: &[usize], axis: usize) -> Option<Box<dyn Fn(usize) -> usize>> {
    match (op, shape) {
        (Op::Conv(conv), [outputs, per_group, kernel @ ..]) => {
            let (taps, per_group): (usize, usize) = (kernel.iter().product(), *per_group);
            let group_outputs = outputs.checked_div(conv.group).filter(|&n| n > 0)?;
            let size = taps * per_group;
            (size > 0).then(|| -> Box<dyn Fn(usize) -> usize> {
                Box::new(move |i| i / size / group_outputs * per_group + i / taps % per_group)
            })
        }
        (Op::MatMul(_), &[depth, outputs]) if axis == 1 && depth * outputs > 0 => {
            Some(Box::new(move |i| i / outputs))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use sora_data::{Dataset, Preprocess};
    use sora_exec::Options;
    use sora_ir::ops::Conv;
    use sora_ir::{evaluate, verify};
    use sora_tensor::DType;

    use super::*;
    use crate::calibrate::calibrate;
    use crate::feed::Feed;
    use crate::method::{METHODS, requests};
    use crate::placement::{Placement, Plan, Ranges};
    use crate::testing::{Net, Silent};

    /// Sums by output channel (axis 1) of the difference of two tensors.
    fn shifts(a: &Tensor, b: &Tensor) -> Vec<f64> {
        let inner: usize = a.shape()[2..].iter().product();
        let mut sums = vec![0.0; a.shape()[1]];
        for (i, (a, b)) in a.to_f64s().iter().zip(b.to_f64s()).enumerate() {
            let channel = i / inner % sums.len();
            sums[channel] += b - a;
        }
        sums
    }

    fn power(values: &[f64]) -> f64 {
        values.iter().map(|v| v * v).sum()
    }

    /// Convolutions in groups and without a bias, and a product with one: correction brings the mean of what they
    /// compute near that of the original.
    #[test]
    fn mean_outputs_return() {
        let (mut net, x) = Net::new(31, &[4, 9, 9]);
        let w = net.random.tensor(&[6, 2, 3, 3], 1.0);
        let w = net.graph.constant("w", w);
        let a = net.op("a", Conv { group: 2, ..Conv::new(2) }, &[x, w]);
        let flat = net.flatten("flat", a, 294);
        let y = net.dense("y", flat, 5);
        let mut values = net.random.tensor(&[40, 4, 9, 9], 0.3);
        // Channels of very different means, so that errors of weights do not average out.
        for (i, v) in values.as_mut_slice::<f32>().unwrap().iter_mut().enumerate() {
            *v += 2.0 * (1 + i / 81 % 4) as f32;
        }
        let network = Network::new(net.done(y)).unwrap();
        let data = Dataset::from_arrays(vec![(None, values.clone())], None).unwrap();
        let feed = Feed::new(&network.graph, &data, &Preprocess::default()).unwrap();
        let samples: Vec<usize> = (0..40).collect();
        let wanted = requests(&network);
        let exec = Options::default();
        let observations = calibrate(&network, &feed, &samples, &wanted, 16, &exec, &Silent).unwrap();
        let ranges = Ranges::new(observations.histograms.clone());
        let placement = Placement::new(&network, &Plan::default(), &ranges);
        let cx = Cx { network: &network, placement: &placement, observations: &observations, rounding: None };
        let plain = (METHODS[0].apply)(&cx, network.graph.clone()).unwrap();
        let corrected = (METHODS[1].apply)(&cx, plain.clone()).unwrap();
        verify(&plain).unwrap();
        verify(&corrected).unwrap();

        let watch = |graph: &Graph| {
            let mut graph = graph.clone();
            let value = graph.find("a").unwrap();
            assert_eq!(graph.ty(value).dtype, DType::F32);
            graph.output("watched", value);
            let outputs = evaluate(&graph, &[("x", &values)]).unwrap();
            let by_name: HashMap<String, Tensor> =
                graph.outputs().iter().map(|o| o.name.clone()).zip(outputs).collect();
            by_name
        };
        let (exact, before, after) = (watch(&network.graph), watch(&plain), watch(&corrected));
        for name in ["watched", "y"] {
            let (before, after) = (shifts(&exact[name], &before[name]), shifts(&exact[name], &after[name]));
            assert!(power(&after) < 0.1 * power(&before), "{name}: {before:?} → {after:?}");
        }
    }
}
