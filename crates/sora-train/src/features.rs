//! Learning what the hidden layers of a trained network compute, beside what it predicts.
//!
//! Source: Romero et al. 2015 (FitNets), without their regressor: only what both networks have in the same shape is compared.

use std::collections::BTreeMap;

use sora_data::Batch;
use sora_exec::Session;
use sora_ir::ops::{Binary, BinaryKind, Op, Reduce, ReduceKind};
use sora_ir::{Graph, Node, ValueId};

use crate::head::Head;
use crate::loss::Loss;
use crate::operands::{borrowed, inputs};
use crate::{Teacher, TrainError};

/// A hidden activation that a teacher tells.
#[derive(Clone, Debug)]
pub(crate) struct Feature {
    /// The value's name, in both networks.
    name: String,
    /// The variance of its elements.
    variance: f64,
}

/// What an output is called that gives the activation of this name.
fn output_name(feature: &str) -> String {
    format!("feature/{feature}")
}

/// The graph with its first output and these values.
fn telling<'a>(graph: &Graph, names: impl IntoIterator<Item = &'a String>) -> Graph {
    let mut graph = graph.clone();
    graph.set_outputs(graph.outputs().iter().take(1).cloned().collect());
    for name in names {
        if let Some(value) = graph.find(name) {
            graph.output(&output_name(name), value);
        }
    }
    graph
}

impl Teacher {
    /// Also tells the hidden activations at the ends of its blocks: sums of two branches, what pools take, and what the last product
    /// or convolution takes. Their variances are those over the samples of `seen`; what does not vary is left out.
    ///
    /// # Errors
    /// [`TrainError::Exec`] when the batch does not fit the network.
    pub fn with_features(mut self, seen: &Batch) -> Result<Self, TrainError> {
        let names: Vec<String> =
            ends(&self.graph)?.iter().map(|&v| self.graph.value(v).name.clone()).collect();
        let options = self.session.options().clone();
        let all = Session::new(telling(&self.graph, &names), options.clone())?;
        let outputs = all.run(&borrowed(&inputs(&self.graph, seen)))?;
        let variance = |name: &String| {
            let tensor = outputs.iter().find(|(output, _)| *output == output_name(name)).map(|(_, t)| t)?;
            let values = tensor.to_f64s();
            let count = values.len().max(1) as f64;
            let mean = values.iter().sum::<f64>() / count;
            let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
            (variance.is_finite() && variance > f64::from(f32::EPSILON))
                .then(|| Feature { name: name.clone(), variance })
        };
        self.features = names.iter().filter_map(variance).collect();
        self.graph = telling(&self.graph, self.features.iter().map(|feature| &feature.name));
        self.session = Session::new(self.graph.clone(), options)?;
        Ok(self)
    }

    /// Makes the features that `student` has under the same name and in the same shape outputs of it, behind those that it has. Gives
    /// the heads that learn them: the mean over all features of their mean squared errors in shares of the teacher's variance, `weight`
    /// times.
    ///
    /// # Errors
    /// None but those of [`Loss::new`].
    pub fn feature_heads(&self, student: &mut Graph, weight: f64) -> Result<Vec<Head>, TrainError> {
        let extents =
            |graph: &Graph, value: ValueId| graph.ty(value).shape.iter().skip(1).cloned().collect::<Vec<_>>();
        let shared = |feature: &&Feature| {
            let [taught, own] = [self.graph.find(&feature.name), student.find(&feature.name)];
            taught.zip(own).is_some_and(|(taught, own)| {
                student.producer(own).is_some() && extents(&self.graph, taught) == extents(student, own)
            })
        };
        let shared: Vec<&Feature> = self.features.iter().filter(shared).collect();
        let share = weight / shared.len().max(1) as f64;
        let mut heads = Vec::new();
        for Feature { name, variance } in shared {
            let Some(value) = student.find(name) else { continue };
            student.output(&output_name(name), value);
            let loss = Loss::new("mean_squared_error", &BTreeMap::new())?;
            heads.push(Head {
                output: Some(output_name(name)),
                target: Some(output_name(name)),
                weight: share / variance,
                ..Head::new(loss)
            });
        }
        Ok(heads)
    }
}

/// The ends of blocks, in the order of the network: values of f32 whose first axis is the sample and whose other extents are known.
fn ends(graph: &Graph) -> Result<Vec<ValueId>, TrainError> {
    let sample = graph.inputs().first().and_then(|&input| graph.ty(input).shape.first());
    let told = |value: ValueId| {
        let ty = graph.ty(value);
        ty.dtype.is_float()
            && ty.rank() > 1
            && ty.shape.first() == sample
            && ty.shape[1..].iter().all(|extent| extent.known().is_some())
            && graph.producer(value).is_some()
    };
    let first = |node: &Node| node.inputs.first().copied().flatten();
    let mut found = Vec::new();
    let mut last = None;
    for id in graph.order()? {
        let Some(node) = graph.node(id) else { continue };
        let second = node.inputs.get(1).copied().flatten();
        let end = match &node.op {
            Op::Binary(Binary { kind: BinaryKind::Add }) => {
                let same = first(node)
                    .zip(second)
                    .is_some_and(|(a, b)| told(a) && told(b) && graph.ty(a).shape == graph.ty(b).shape);
                if same { node.outputs.first().copied() } else { None }
            }
            Op::MaxPool(_) | Op::AveragePool(_) | Op::Reduce(Reduce { kind: ReduceKind::Mean, .. }) => {
                first(node)
            }
            Op::MatMul(_) | Op::Conv(_) if second.is_some_and(|v| graph.const_value(v).is_some()) => {
                last = first(node);
                None
            }
            _ => None,
        };
        found.extend(end);
    }
    found.extend(last);
    let mut ends: Vec<ValueId> = Vec::new();
    for value in found {
        if told(value) && !ends.contains(&value) {
            ends.push(value);
        }
    }
    Ok(ends)
}
