//! What a search found, in a form that reproduces it, and that people write.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sora_data::{Augmentation, suggestion};

use crate::CompressError;
use crate::explain::Reason;
use crate::ladder::RUNGS;
use crate::layers::{Network, Role};
use crate::placement::Plan;
use crate::reduce::Reduction;
use crate::search::LEAST_BITS;
use crate::weights::BITS;

/// Every choice of a compression. With the same model, data and seed, on as many threads, it gives the same weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Seed of the division of the data and of trainings.
    #[serde(default)]
    pub seed: u64,
    /// Bits of the levels of quantized weights, 3 to 8, where `bits` does not say otherwise.
    #[serde(default = "bits")]
    pub weight_bits: u32,
    /// Rungs of the quantization ladder that are used, by name; they are applied in the order of the ladder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rungs: Vec<String>,
    /// What is trained on the way; needs samples to train on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Trainings>,
    /// The format of layers, by name. What is not named is as far in 8 bits as its operator and its neighbours allow.
    #[serde(default)]
    pub layers: BTreeMap<String, Format>,
    /// Bits of the levels of the weights of layers, by name, where they differ from `weight_bits`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bits: BTreeMap<String, u32>,
    /// Percent of the weights of layers that are made zero without training, by name, 1 to 99; the others make up for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub zeros: BTreeMap<String, u32>,
}

/// Trainings one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trainings {
    /// Passes over the samples each time.
    pub epochs: u32,
    /// Samples of a step.
    pub batch: usize,
    /// Learning rate of Adam.
    pub rate: f64,
    /// [`Training::features`](crate::Training::features).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub features: f64,
    /// [`Training::average`](crate::Training::average).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub average: f64,
    /// [`Training::swa`](crate::Training::swa).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub swa: u32,
    /// Random changes of the samples, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub augment: Vec<Augmentation>,
    /// What comes before each of them.
    #[serde(default)]
    pub steps: Vec<Reduction>,
    /// Whether the quantized network is trained in the end, behind its roundings.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quantized: bool,
}

/// What a layer computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Single precision.
    F32,
    /// 8-bit integers of fixed ranges; of recurrent layers, ranges by rows.
    Int8,
    /// 8-bit integers, the ranges of activations found row by row as they come.
    Int8ByRows,
    /// Single precision on weights that are stored as 8-bit integers; the form of tables.
    Int8Weights,
}

impl Format {
    /// The name that recipes and reports give it.
    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::Int8 => "int8",
            Format::Int8ByRows => "int8-by-rows",
            Format::Int8Weights => "int8-weights",
        }
    }
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

fn bits() -> u32 {
    BITS
}

impl Recipe {
    /// What a plan for a network says, where it says more than the default. Layers with weights are all named.
    pub(crate) fn of(network: &Network, plan: &Plan, seed: u64, training: Option<Trainings>) -> Self {
        let format = |(index, layer): (usize, &crate::layers::Layer)| {
            let format = plan.format(network, index);
            let told = layer.has_weights() || format != Format::Int8;
            (told && !matches!(layer.role, Role::Float(_))).then(|| (layer.name.clone(), format))
        };
        let layers = network.layers.iter().enumerate().filter_map(format).collect();
        let quantized = |index: &usize| {
            let layer = &network.layers[*index];
            layer.has_weights() && !plan.kept.contains_key(index)
        };
        let own = |index: usize| {
            (network.layers[index].name.clone(), plan.bits.get(&index).copied().unwrap_or(BITS))
        };
        let mut bits: BTreeMap<String, u32> = (0..network.layers.len()).filter(quantized).map(own).collect();
        let having = |wanted: u32| bits.values().filter(|bits| **bits == wanted).count();
        let weight_bits = (LEAST_BITS..=BITS).max_by_key(|&wanted| having(wanted)).unwrap_or(BITS);
        bits.retain(|_, bits| *bits != weight_bits);
        let rungs = plan.rungs.iter().map(|&rung| RUNGS[rung].name.to_owned()).collect();
        let zeros = plan.zeros.iter().map(|(&index, &percent)| (network.layers[index].name.clone(), percent));
        Recipe { seed, weight_bits, rungs, training, layers, bits, zeros: zeros.collect() }
    }

    /// The plan for a network.
    ///
    /// # Errors
    /// [`CompressError::Option`] for a layer that the network does not have, or that has no such format.
    pub(crate) fn plan(&self, network: &Network) -> Result<Plan, CompressError> {
        let refused = |what: String| Err(CompressError::Option { what });
        if let Some(bits) =
            self.bits.values().chain([&self.weight_bits]).find(|b| !(LEAST_BITS..=BITS).contains(b))
        {
            return refused(format!(
                "the recipe's weights cannot have {bits} bits: give {LEAST_BITS} to {BITS}"
            ));
        }
        let named = |name: &String| {
            network.layers.iter().position(|layer| layer.name == *name).ok_or_else(|| {
                let names: Vec<&str> = network.layers.iter().map(|layer| layer.name.as_str()).collect();
                let near = suggestion(name, &names);
                let what =
                    format!("the recipe names the layer `{name}`, which the model does not have: {near}");
                CompressError::Option { what }
            })
        };
        let mut plan = Plan::default();
        for name in &self.rungs {
            let Some(index) = RUNGS.iter().position(|rung| rung.name == name) else {
                let names: Vec<&str> = RUNGS.iter().map(|rung| rung.name).collect();
                let near = suggestion(name, &names);
                return refused(format!(
                    "the recipe names the rung `{name}`, which the ladder does not have: {near}"
                ));
            };
            plan.rungs.insert(index);
        }
        let weighted = (0..network.layers.len()).filter(|&index| network.layers[index].has_weights());
        plan.bits.extend(weighted.map(|index| (index, self.weight_bits)));
        for (name, &bits) in &self.bits {
            plan.bits.insert(named(name)?, bits);
        }
        for (name, &percent) in &self.zeros {
            let index = named(name)?;
            if !(1..100).contains(&percent) {
                return refused(format!("the recipe wants {percent} % zeros in `{name}`: give 1 to 99"));
            }
            if network.layers[index].linear().is_none() {
                return refused(format!(
                    "the recipe wants zeros in `{name}`: it is no product with constant weights"
                ));
            }
            plan.zeros.insert(index, percent);
        }
        for (name, format) in &self.layers {
            let index = named(name)?;
            match (format, &network.layers[index].role) {
                (Format::F32, _) => drop(plan.kept.insert(index, Reason::Prescribed)),
                (_, Role::Float(reason)) => {
                    return refused(format!("the recipe wants `{name}` in 8 bits: {}", reason.words()));
                }
                (Format::Int8Weights, _) if network.layers[index].has_weights() => {
                    plan.weights_only.insert(index, Reason::Prescribed);
                }
                (Format::Int8Weights, _) => {
                    return refused(format!(
                        "the recipe wants the weights of `{name}` in 8 bits: it has none"
                    ));
                }
                (_, Role::Table(_)) => {
                    return refused(format!(
                        "the recipe wants `{name}` to compute in 8 bits: it reads a table, which may be in `int8-weights` or `f32`"
                    ));
                }
                (Format::Int8, _) => {}
                (Format::Int8ByRows, _) if network.layers[index].op == "MatMul" => {
                    plan.dynamic.insert(index);
                }
                (Format::Int8ByRows, _) => {
                    return refused(format!(
                        "the recipe wants rows of `{name}` quantized as they come: it is no product"
                    ));
                }
            }
        }
        Ok(plan)
    }
}
