//! What a network consists of, layer by layer.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;

use serde::Serialize;
use sora_ir::ValueId;
use sora_tensor::Tensor;

use super::Network;
use crate::table;

/// A layer as [`Network::layer`] added it, outside of all others.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) reads: ValueId,
    pub(super) gives: ValueId,
    /// Where its parameters lie in the network's list.
    pub(super) parameters: Range<usize>,
}

/// A network layer by layer; [`Display`](fmt::Display) writes it as a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Inputs, then layers in the order they were added.
    pub layers: Vec<LayerSummary>,
    /// Elements of all parameters that training moves along their gradient.
    pub trainable: usize,
    /// Elements of all others, such as running statistics.
    pub fixed: usize,
}

/// A row of a [`Summary`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerSummary {
    /// Full name.
    pub name: String,
    /// What [`Layer::name`](super::Layer::name) says, or `input`.
    pub kind: String,
    /// The type of its result.
    pub output: String,
    /// Elements of its parameters.
    pub parameters: usize,
    /// The layers and inputs that it reads.
    pub from: Vec<String>,
}

impl Network {
    /// The inputs and layers so far. A layer inside of another one is part of that.
    pub fn summary(&self) -> Summary {
        let mut known: HashMap<ValueId, &str> = HashMap::new();
        let mut layers = Vec::new();
        for &value in self.graph.inputs() {
            let name = &self.graph.value(value).name;
            known.insert(value, name);
            let (kind, output) = ("input".to_owned(), self.ty(value).to_string());
            layers.push(LayerSummary { name: name.clone(), kind, output, parameters: 0, from: Vec::new() });
        }
        for layer in &self.layers {
            let parameters = self.parameters[layer.parameters.clone()].iter();
            layers.push(LayerSummary {
                name: layer.name.clone(),
                kind: layer.kind.to_owned(),
                output: self.ty(layer.gives).to_string(),
                parameters: parameters.filter_map(|p| self.graph.const_value(p.value)).map(Tensor::len).sum(),
                from: self.sources(layer.reads, &known),
            });
            known.insert(layer.gives, &layer.name);
        }
        let trainable = self.count(true);
        Summary { layers, trainable, fixed: self.count(false) - trainable }
    }

    /// The names of what `value` comes from: of itself, or of the nearest layers and inputs before it.
    fn sources(&self, value: ValueId, known: &HashMap<ValueId, &str>) -> Vec<String> {
        let (mut open, mut seen, mut found) = (vec![value], BTreeSet::new(), Vec::new());
        while let Some(value) = open.pop() {
            match (known.get(&value), self.graph.producer(value)) {
                (Some(&name), _) => found.push(name.to_owned()),
                (None, Some((_, node, _))) if seen.insert(value) => {
                    open.extend(node.inputs.iter().rev().flatten());
                }
                _ => {}
            }
        }
        found
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let row = |layer: &LayerSummary| {
            let name = format!("{} ({})", layer.name, layer.kind);
            vec![name, layer.output.clone(), grouped(layer.parameters), layer.from.join(", ")]
        };
        let rows: Vec<Vec<String>> = self.layers.iter().map(row).collect();
        f.write_str(&table(&["layer", "output", "parameters", "reads"], &rows))?;
        let (trainable, fixed) = (grouped(self.trainable), grouped(self.fixed));
        let all = grouped(self.trainable + self.fixed);
        write!(f, "{all} parameters: {trainable} trainable, {fixed} fixed")
    }
}

/// A number with its digits in groups of three.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}
