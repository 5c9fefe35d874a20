//! Networks as a TOML file writes them.

use std::collections::BTreeMap;

use serde::Deserialize;
use sora_data::suggestion;
use sora_ir::ValueId;
use sora_ir::ops::Concat;

use super::spec::LayerSpec;
use crate::layers::{LayerError, Network, Samples};

/// A network: a list of layers, or parts with names that read inputs and one another.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Shape of a sample, without the batch: channels first for images.
    pub input: Option<Vec<usize>>,
    /// The layers that read it, in order.
    #[serde(default)]
    pub layers: Vec<LayerSpec>,
    /// Several inputs: the shape of each by its name.
    #[serde(default)]
    pub inputs: BTreeMap<String, Vec<usize>>,
    /// Parts of the network, each behind those that it reads.
    #[serde(default)]
    pub parts: Vec<Part>,
}

/// A part of a network: layers in order.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Name that other parts and outputs call it by.
    pub name: String,
    /// What it reads: an input or a part before it, or several of them beside each other along their last axis.
    pub from: Sources,
    /// The layers; none: what it reads.
    #[serde(default)]
    pub layers: Vec<LayerSpec>,
}

/// What a part reads.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Sources {
    /// One input or part.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// What is wrong with a network, and what to do about it.
type Refusal = (String, String);

impl NetworkSpec {
    /// The network with these parts as its outputs; without any, the last one. A single list of layers reads the input `x` and is
    /// the part `y`.
    ///
    /// # Errors
    /// What does not fit, with its layer, and what to do.
    pub fn build(&self, seed: u64, outputs: &[&str]) -> Result<Network, Refusal> {
        let refused = |what: &str, hint: &str| (what.to_owned(), hint.to_owned());
        let one = Part { name: "y".into(), from: Sources::One("x".into()), layers: self.layers.clone() };
        let (inputs, parts) = match (&self.input, self.inputs.is_empty() && self.parts.is_empty()) {
            (Some(shape), true) => (BTreeMap::from([("x".to_owned(), shape.clone())]), vec![one]),
            (None, false) if self.layers.is_empty() => (self.inputs.clone(), self.parts.clone()),
            _ => {
                let hint = "Give [network] `input` and `layers`, or [network.inputs] and [[network.parts]].";
                return Err(refused("the network is neither one list of layers nor parts", hint));
            }
        };
        let mut net = Network::new("trained", seed);
        let mut values: Vec<(String, ValueId)> = Vec::new();
        for (name, shape) in inputs {
            let readers = parts.iter().filter(|part| part.from.names().contains(&name.as_str()));
            let samples = readers.filter_map(|part| part.layers.first()).map(LayerSpec::samples).next();
            let samples = samples.unwrap_or(Samples::UNIT);
            let value = net.input(&name, &shape, samples);
            values.push((name, value));
        }
        for part in &parts {
            let x = part.reads(&mut net, &values)?;
            let several = parts.len() > 1;
            let y = match several {
                true => net.scope(&part.name, |net| part.build(net, x)),
                false => part.build(&mut net, x),
            }?;
            if values.iter().any(|(name, _)| *name == part.name) {
                let what = format!("there are two parts or inputs `{}`", part.name);
                return Err((what, "Give each part a name of its own.".to_owned()));
            }
            values.push((part.name.clone(), y));
        }
        let last = parts.last().map(|part| part.name.as_str());
        let wanted: Vec<&str> =
            if outputs.is_empty() { last.into_iter().collect() } else { outputs.to_vec() };
        for name in wanted {
            let value = find(&values, name)?;
            net.output(name, value);
        }
        Ok(net)
    }
}

impl Sources {
    fn names(&self) -> Vec<&str> {
        match self {
            Sources::One(name) => vec![name],
            Sources::Several(names) => names.iter().map(String::as_str).collect(),
        }
    }
}

impl Part {
    /// What it reads, as one value.
    fn reads(&self, net: &mut Network, values: &[(String, ValueId)]) -> Result<ValueId, Refusal> {
        let found = self.from.names().into_iter().map(|name| find(values, name));
        let found = found.collect::<Result<Vec<_>, _>>()?;
        match found.as_slice() {
            [] => Err((format!("part `{}` reads nothing", self.name), "Say what it reads in `from`.".into())),
            [one] => Ok(*one),
            several => {
                let joined = net.op(&format!("{}.concat", self.name), Concat { axis: -1 }, several.to_vec());
                let joined = joined.map_err(|error| {
                    let what = format!("part `{}`: {error}", self.name);
                    (what, "Values beside each other differ in their last axis only.".into())
                })?;
                if let Some(lengths) = several.iter().find_map(|&value| net.lengths(value)) {
                    net.set_lengths(joined, lengths);
                }
                Ok(joined)
            }
        }
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, Refusal> {
        let refused = |(i, error): (usize, LayerError)| {
            let of =
                if self.name == "y" { "the network".to_owned() } else { format!("part `{}`", self.name) };
            (format!("layer {} of {of}: {error}", i + 1), "Correct the layers in [network].".to_owned())
        };
        let mut layers = self.layers.iter().enumerate();
        layers.try_fold(x, |x, (i, layer)| layer.build(net, x).map_err(|error| refused((i, error))))
    }
}

fn find(values: &[(String, ValueId)], name: &str) -> Result<ValueId, Refusal> {
    let found = values.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let known: Vec<&str> = values.iter().map(|(name, _)| name.as_str()).collect();
        (format!("there is no part or input `{name}` before it is read"), suggestion(name, &known))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps that do not count in one of the parts beside each other do not count in what reads both.
    #[test]
    fn parts_beside_each_other_keep_which_steps_count() {
        let text = r#"
            inputs = { words = [6], marks = [6, 2] }
            parts = [
                { name = "read", from = "words", layers = [{ layer = "embedding", rows = 9, units = 4 }] },
                { name = "both", from = ["marks", "read"] },
            ]
        "#;
        let spec: NetworkSpec = toml::from_str(text).unwrap();
        let net = spec.build(1, &[]).unwrap();
        let both = net.graph().outputs()[0].value;
        assert_eq!(net.ty(both).to_string(), "f32[batch,6,6]");
        assert!(net.lengths(both).is_some());
    }
}
