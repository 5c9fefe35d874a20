//! Times of layers by their shape, measured on one machine to choose for it on another.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sora_data::{Dataset, Preprocess};
use sora_exec::{Options as ExecOptions, Session, Tuning};
use sora_ir::{Graph, Op};
use sora_tensor::Tensor;

use crate::calibrate::calibrate;
use crate::explain::LayerTimes;
use crate::feed::{Fed, Feed};
use crate::layers::{Layer, Network};
use crate::measure::{self, LayerProfile};
use crate::method::{self, Cx, Observations, requests};
use crate::placement::{Placement, Plan, Ranges};
use crate::{CompressError, Progress};

/// Times of layers in ms, by what [`LatencyTable::measure`] calls their shape: operator, attributes and extents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencyTable {
    /// What it was measured on.
    pub machine: String,
    /// In single precision.
    pub f32: BTreeMap<String, f64>,
    /// In 8 bits, with fixed ranges; of recurrent layers, ranges by rows; of tables, read from bytes.
    pub int8: BTreeMap<String, f64>,
    /// Of products in 8 bits, ranges by rows as they come.
    #[serde(default, rename = "int8-by-rows")]
    pub by_rows: BTreeMap<String, f64>,
}

impl LatencyTable {
    /// Times all layers of a network for inputs of the shapes of these, in each of their formats.
    ///
    /// # Errors
    /// A [`CompressError`] when the network cannot run on these inputs or when the caller cancels.
    pub fn measure(
        graph: &Graph,
        inputs: &[(String, Tensor)],
        exec: &ExecOptions,
        progress: &dyn Progress,
    ) -> Result<LatencyTable, CompressError> {
        let mut graph = graph.clone();
        sora_rewrite::optimize(&mut graph, &sora_rewrite::Options::default())?;
        let network = Network::new(graph)?;
        let observations = observe(&network, inputs, exec, progress)?;
        let ranges = Ranges::new(observations.histograms.clone());
        let fed = Fed { inputs: inputs.to_vec(), len: 1 };
        let shapes = shapes(&network, &fed)?;
        let reference = Session::new(network.graph.clone(), exec.clone())?;
        progress.stage("Timing layers", None);
        let timed = |plan: &Plan| -> Result<Vec<LayerTimes>, CompressError> {
            let placement = Placement::new(&network, plan, &ranges);
            let cx =
                Cx { network: &network, placement: &placement, observations: &observations, rounding: None };
            let session = Session::new(method::apply(&cx)?, exec.clone())?;
            Ok(measure::profile(&network, &placement, [&reference, &session], &fed, progress)?.times)
        };
        let by_shape = |times: &[LayerTimes], of: fn(&LayerTimes) -> Option<f64>| {
            let each = shapes.iter().zip(times).enumerate();
            let seen = each.filter(|(index, _)| network.layers[*index].runs());
            // Of layers of one shape, the slower: what they take together is not to be promised too low.
            seen.fold(BTreeMap::new(), |mut known: BTreeMap<String, f64>, (_, (shape, times))| {
                let time = known.entry(shape.clone()).or_default();
                *time = time.max(of(times).unwrap_or(0.0));
                known
            })
        };
        let everything = timed(&Plan::default())?;
        let mut table = LatencyTable {
            machine: Tuning::machine_for(exec)?,
            f32: by_shape(&everything, |times| times.before),
            int8: by_shape(&everything, |times| times.after),
            by_rows: BTreeMap::new(),
        };
        let products: Vec<usize> =
            (0..network.layers.len()).filter(|&i| network.layers[i].by_rows()).collect();
        if !products.is_empty() {
            let plan = Plan { dynamic: products.iter().copied().collect(), ..Plan::default() };
            let rows = timed(&plan)?;
            let time = |&i: &usize| (shapes[i].clone(), rows[i].after.unwrap_or(0.0));
            table.by_rows = products.iter().map(time).collect();
        }
        Ok(table)
    }

    /// One in which everything takes half the time in 8 bits, of the shapes that one sample gives.
    #[cfg(test)]
    pub(crate) fn of_fast_bytes(graph: &Graph, data: &Dataset) -> LatencyTable {
        let mut graph = graph.clone();
        sora_rewrite::optimize(&mut graph, &sora_rewrite::Options::default()).unwrap();
        let network = Network::new(graph).unwrap();
        let preprocess = Preprocess::default();
        let feed = Feed::new(&network.graph, data, &preprocess).unwrap();
        let sample = feed.batches(&[0], 1).next().unwrap().unwrap();
        let known = |ms| shapes(&network, &sample).unwrap().into_iter().map(|shape| (shape, ms)).collect();
        LatencyTable { machine: "test".to_owned(), f32: known(1.0), int8: known(0.5), by_rows: known(0.5) }
    }

    /// The times of a network's layers, in single precision and as `placement` has them.
    ///
    /// # Errors
    /// [`CompressError::Option`] naming the layers that the table has no time for.
    pub(crate) fn times(
        &self,
        network: &Network,
        placement: &Placement,
        sample: &Fed,
    ) -> Result<Vec<LayerTimes>, CompressError> {
        let mut missing = Vec::new();
        let mut times = Vec::with_capacity(network.layers.len());
        for (index, shape) in shapes(network, sample)?.iter().enumerate() {
            let format = match () {
                () if placement.dynamic[index] && network.layers[index].by_rows() => &self.by_rows,
                () if placement.runs_bytes(network, index) => &self.int8,
                () => &self.f32,
            };
            let (before, after) = (self.f32.get(shape).copied(), format.get(shape).copied());
            let layer = &network.layers[index];
            if layer.runs() && (before.is_none() || after.is_none()) {
                missing.push(format!("`{}` ({shape})", layer.name));
            }
            times.push(LayerTimes { before, after });
        }
        match missing.is_empty() {
            true => Ok(times),
            false => Err(CompressError::Option {
                what: format!(
                    "the latency table of {} has no time for {}: it is of another model or of other shapes",
                    self.machine,
                    missing.join(", ")
                ),
            }),
        }
    }

    /// As a profile that was measured.
    pub(crate) fn profile(
        &self,
        network: &Network,
        placement: &Placement,
        sample: &Fed,
    ) -> Result<LayerProfile, CompressError> {
        let times = self.times(network, placement, sample)?;
        let excess = |t: &LayerTimes| t.after.unwrap_or(0.0) - t.before.unwrap_or(0.0);
        Ok(LayerProfile { excess: times.iter().map(excess).collect(), times })
    }

    /// The time of one run in ms, in single precision and as `placement` has it.
    pub(crate) fn sums(
        &self,
        network: &Network,
        placement: &Placement,
        sample: &Fed,
    ) -> Result<[f64; 2], CompressError> {
        let times = self.times(network, placement, sample)?;
        let sum = |of: fn(&LayerTimes) -> Option<f64>| times.iter().filter_map(of).sum();
        Ok([sum(|times| times.before), sum(|times| times.after)])
    }
}

/// What is observed on the inputs alone, so that quantization has ranges: times do not depend on them.
fn observe(
    network: &Network,
    inputs: &[(String, Tensor)],
    exec: &ExecOptions,
    progress: &dyn Progress,
) -> Result<Observations, CompressError> {
    let wanted = requests(network);
    if wanted.is_empty() {
        return Ok(Observations::default());
    }
    let arrays = inputs.iter().map(|(name, tensor)| (Some(name.clone()), tensor.clone())).collect();
    let data = Dataset::from_arrays(arrays, None)?;
    let feed = Feed::new(&network.graph, &data, &Preprocess::default())?;
    let samples: Vec<usize> = (0..data.len()).collect();
    calibrate(network, &feed, &samples, &wanted, data.len().max(1), exec, progress)
}

/// For each layer: its nodes with their attributes, and the extents of what it reads and gives for this sample.
fn shapes(network: &Network, sample: &Fed) -> Result<Vec<String>, CompressError> {
    let given: Vec<(&str, &[usize])> = sample.inputs.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
    let graph = network.graph.specialize(&given)?;
    let extents = |value: &sora_ir::ValueId| graph.ty(*value).to_string();
    let shape = |layer: &Layer| {
        let nodes = layer.nodes.iter().filter_map(|&id| network.graph.node(id));
        let ops: Vec<String> = nodes.clone().map(|node| described(&node.op)).collect();
        let first = nodes.clone().next();
        let reads = first.iter().flat_map(|node| node.inputs.iter().flatten()).map(extents);
        let gives = layer.outputs.iter().map(extents);
        let [reads, gives] = [reads.collect::<Vec<_>>(), gives.collect()].map(|types| types.join(", "));
        format!("{} ({reads}) -> {gives}", ops.join(" + "))
    };
    Ok(network.layers.iter().map(shape).collect())
}

/// An operator with its attributes.
fn described(op: &Op) -> String {
    let tagged = serde_json::to_value(op).unwrap_or_default();
    let attributes =
        tagged.as_object().and_then(|object| object.values().next()).cloned().unwrap_or_default();
    match attributes.as_object().is_none_or(serde_json::Map::is_empty) {
        true => op.label().into_owned(),
        false => format!("{} {attributes}", op.label()),
    }
}
