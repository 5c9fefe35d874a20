//! Batch normalization in training.

use sora_ir::ops::{BatchNorm, Op, ReduceKind, UnaryKind};
use sora_ir::{Graph, Mismatch, Node, Real, ValueId, Writer};

use crate::TrainError;
use crate::network::Trainable;
use crate::step::of_batch;

/// Writes what the network's running statistics would be if they followed one batch of `batch` samples alone: an output for
/// each of them, under the name of its parameter. Weights are those of the graph, and nothing is dropped.
///
/// # Errors
/// As [`crate::training_step`].
pub(crate) fn moments_graph(network: &Trainable, batch: usize) -> Result<Graph, TrainError> {
    let mut graph = of_batch(&network.graph, batch)?;
    let statistics: Vec<ValueId> =
        network.parameters.iter().filter(|p| !p.trainable).map(|p| p.value).collect();
    let moments = batch_statistics(&mut graph, &|value| statistics.contains(&value))?;
    graph.set_outputs(Vec::new());
    for (running, moment) in moments {
        let name = graph.value(running).name.clone();
        graph.rename(running, &format!("{name}/running"));
        graph.output(&name, moment);
    }
    Ok(graph)
}

/// Gives every batch normalization whose mean and variance follow training those of its batch. Returns the running ones,
/// each with that of the batch.
///
/// The variance is that of the population, in the running average too, as in Keras. Source: Ioffe & Szegedy 2015.
pub(crate) fn batch_statistics(
    graph: &mut Graph,
    is_statistic: &dyn Fn(ValueId) -> bool,
) -> Result<Vec<(ValueId, ValueId)>, Mismatch> {
    let mut moments = Vec::new();
    let nodes: Vec<_> = graph.nodes().map(|(id, node)| (id, node.clone())).collect();
    for (id, node) in nodes {
        let Node { op: Op::BatchNorm(BatchNorm { epsilon: Real(epsilon) }), inputs, outputs, name } = node
        else {
            continue;
        };
        let (&[Some(x), Some(scale), Some(bias), Some(mean), Some(variance)], &[y]) =
            (&inputs[..], &outputs[..])
        else {
            continue;
        };
        if !is_statistic(mean) || !is_statistic(variance) {
            continue;
        }
        let mut w = Writer::new(graph, format!("{name}/batch"));
        let shape = w.shape(x)?;
        let mut line = vec![1; shape.len()];
        line[1] = shape[1];
        let axes: Vec<usize> = (0..shape.len()).filter(|&axis| axis != 1).collect();
        let middle = w.reduce(ReduceKind::Mean, x, &axes)?;
        let centred = w.sub(x, middle)?;
        let squared = w.mul(centred, centred)?;
        let spread = w.reduce(ReduceKind::Mean, squared, &axes)?;
        let bounded = w.plus(spread, f64::from(epsilon))?;
        let deviation = w.unary(UnaryKind::Sqrt, bounded)?;
        let scale = w.reshape(scale, &line)?;
        let bias = w.reshape(bias, &line)?;
        let slope = w.div(scale, deviation)?;
        let scaled = w.mul(centred, slope)?;
        let result = w.add(scaled, bias)?;
        for (running, moment) in [(mean, middle), (variance, spread)] {
            moments.push((running, w.reshape(moment, &shape[1..2])?));
        }
        graph.replace_uses(y, result);
        graph.remove(id);
    }
    Ok(moments)
}
