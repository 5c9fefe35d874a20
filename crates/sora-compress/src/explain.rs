//! Saying what happened to each layer, and why.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sora_ir::{NodeId, Op, ValueId};

use crate::layers::{Network, Role};
use crate::placement::{Placement, Plan};
use crate::sensitivity::{Alternative, Sensitivity};

/// The number format of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 8-bit integers with 32-bit sums.
    Int8,
    /// Single precision on weights that are stored as 8-bit integers.
    Int8Weights,
    /// Single precision.
    F32,
}

/// Why a layer has its precision.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum Reason {
    /// Quantized, and nothing spoke against it.
    WithinBudget,
    /// Quantized, its activations by rows as they come.
    ByRows,
    /// Follows the quantized layer next to it.
    BetweenQuantized,
    /// A table of integers, whose rows become real as they are read.
    Table,
    /// Computes in single precision on weights that are stored as integers.
    WeightsOnly {
        /// Why it does not compute in 8 bits.
        because: Box<Reason>,
    },
    /// A table that other nodes read, too.
    SharedTable,
    /// The operator has no 8-bit form.
    NoInt8Form,
    /// Its neighbours are not quantized, so converting would cost more than it saves.
    NotBetweenQuantized,
    /// The model came with this layer quantized.
    AlreadyQuantized,
    /// The operand that would be quantized per channel is computed when the network runs.
    WeightsComputed,
    /// One operand is a constant, for which there is no 8-bit form.
    ConstantOperand,
    /// Works on other types than `f32`.
    NotF32,
    /// Quantizing it cost too much accuracy.
    CostsAccuracy {
        /// How far the metric's drop fell when it was given back, as a fraction.
        regained: f64,
    },
    /// The bounds are met without it in 8 bits.
    NotNeeded {
        /// Signal to noise at the network's output, in dB, with it alone in 8 bits.
        output_sqnr_db: f64,
    },
    /// The recipe says so.
    Prescribed,
    /// Its 8-bit kernel was not faster.
    NotFaster {
        /// Time in 8 bits over time in single precision.
        ratio: f64,
    },
    /// With it in 8 bits the network as a whole was slower.
    NetworkNotFaster {
        /// Time of the network over its time in single precision.
        ratio: f64,
    },
}

/// How words about a layer in single precision begin.
const KEPT: &str = "kept in f32: ";

impl Reason {
    /// The reason as a sentence.
    pub fn words(&self) -> String {
        match self {
            Reason::WithinBudget => "quantized: accuracy stays within the budget".to_owned(),
            Reason::ByRows => {
                "quantized: activations by rows as they come, accuracy stays within the budget".to_owned()
            }
            Reason::BetweenQuantized => "follows the quantized layers next to it".to_owned(),
            Reason::Table => "weights only: rows of the table become real as they are read".to_owned(),
            Reason::WeightsOnly { because } => {
                let because = because.words();
                format!("weights only: {}", because.strip_prefix(KEPT).unwrap_or(&because))
            }
            Reason::SharedTable => "kept in f32: other nodes read its table, too".to_owned(),
            Reason::NoInt8Form => "this operator has no 8-bit form".to_owned(),
            Reason::NotBetweenQuantized => {
                "its neighbours are not quantized, so converting would cost more than it saves".to_owned()
            }
            Reason::AlreadyQuantized => "the model came with this layer quantized".to_owned(),
            Reason::WeightsComputed => {
                "both operands are computed at run time, there are no weights to quantize".to_owned()
            }
            Reason::ConstantOperand => {
                "one of its operands is a constant, which has no 8-bit form here".to_owned()
            }
            Reason::NotF32 => "does not work on f32 values".to_owned(),
            Reason::NotNeeded { output_sqnr_db } => format!(
                "kept in f32: with the layers in int8 that were chosen it need not be (alone it leaves {output_sqnr_db:.1} dB at the output)"
            ),
            Reason::Prescribed => "kept in f32: the recipe says so".to_owned(),
            Reason::CostsAccuracy { regained } if *regained <= 0.0 => {
                "kept in f32: given back on the way to the accuracy budget".to_owned()
            }
            Reason::CostsAccuracy { regained } => format!(
                "kept in f32: giving its precision back won {:.2} points of the metric",
                100.0 * regained
            ),
            Reason::NetworkNotFaster { ratio } => format!(
                "kept in f32: with it in int8 the network as a whole takes {ratio:.2} times as long, for the conversions"
            ),
            Reason::NotFaster { ratio } => {
                format!("kept in f32: int8 kernel not faster at this shape (takes {ratio:.2} times as long)")
            }
        }
    }
}

/// What happened to one layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Name of its first node, as the user's file has it.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Names of all nodes that are computed together with it.
    pub nodes: Vec<String>,
    /// Number format that it computes in.
    pub precision: Precision,
    /// Signal to noise of its output against the original network, in dB; `None` when nothing differs or it was
    /// not measured.
    pub sqnr_db: Option<f64>,
    /// Bits of the levels of its weights, where they are quantized.
    pub weight_bits: Option<u32>,
    /// Why it has its precision, in words.
    pub reason: String,
    /// The same for programs.
    pub reason_code: Reason,
    /// Median time of one run in the original network, in ms, where a kernel was attributed to the layer.
    pub ms_before: Option<f64>,
    /// Median time of one run in the compressed network, in ms.
    pub ms_after: Option<f64>,
    /// Bytes of its constants before.
    pub bytes_before: usize,
    /// Bytes of its constants after.
    pub bytes_after: usize,
    /// The share of its weights that is 0; `None` for layers without weights.
    pub zeros: Option<f64>,
    /// How the range of its output was chosen, where the output is quantized.
    pub range: Option<&'static str>,
    /// Signal to noise that this range was expected to leave on its own, in dB.
    pub range_sqnr_db: Option<f64>,
    /// The formats that the search tried, this one among them; none where there was no search, or nothing to choose from.
    pub alternatives: Vec<Alternative>,
    /// Where channels were to be taken out: what forbids taking them from this layer, a clause that names the node, input or output.
    pub not_pruned: Option<String>,
}

/// Figures about one layer that were measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerTimes {
    /// ms in the original network.
    pub before: Option<f64>,
    /// ms in the compressed network.
    pub after: Option<f64>,
}

/// What was found out about layers, for their reports.
pub(crate) struct Found<'a> {
    /// Signal to noise of outputs in dB.
    pub(crate) sqnr: HashMap<ValueId, f64>,
    /// Times by layer.
    pub(crate) times: Vec<LayerTimes>,
    /// What was tried.
    pub(crate) sensitivity: &'a Sensitivity,
    /// By name of a node: what forbids taking channels from it.
    pub(crate) forbidden: &'a HashMap<String, String>,
}

/// Why a layer was given zeros, behind their percent.
const ZEROS: &str = "of its weights were made zero, which the others make up for: the file is smaller so";

/// The reports of all layers that compute on activations.
pub(crate) fn layers(
    network: &Network,
    placement: &Placement,
    plan: &Plan,
    Found { sqnr, times, sensitivity, forbidden }: &Found,
) -> Vec<LayerReport> {
    let graph = &network.graph;
    // Conversions that came with the model are part of what they convert.
    let converts = |&id: &NodeId| {
        let op = graph.node(id).map(|n| &n.op);
        matches!(op, Some(Op::QuantizeLinear(_) | Op::DequantizeLinear(_)))
    };
    let visible = |&index: &usize| {
        let layer = &network.layers[index];
        layer.runs() && !layer.nodes.iter().all(converts)
    };
    let report = |index: usize| {
        let layer = &network.layers[index];
        let (int8, stored) = (placement.in_bytes(index), placement.stores_bytes(index));
        let reason = match (&layer.role, plan.kept.get(&index), plan.weights_only.get(&index)) {
            (Role::Float(reason), ..) | (_, Some(reason), _) => reason.clone(),
            (Role::Table(_), ..) => Reason::Table,
            (_, None, Some(reason)) => Reason::WeightsOnly { because: Box::new(reason.clone()) },
            _ if placement.dynamic[index] => Reason::ByRows,
            (Role::Linear(_), ..) => Reason::WithinBudget,
            _ if int8 => Reason::BetweenQuantized,
            _ => Reason::NotBetweenQuantized,
        };
        let came = layer.role == Role::Float(Reason::AlreadyQuantized);
        let (before, after) = bytes(network, index, stored);
        let time = times.get(index).copied().unwrap_or_default();
        let output = layer.outputs.first().copied();
        let choice = output.and_then(|v| placement.choices.get(&v));
        let nodes: Vec<String> =
            layer.nodes.iter().filter_map(|&id| Some(graph.node(id)?.name.clone())).collect();
        LayerReport {
            name: layer.name.clone(),
            op: layer.op.clone(),
            alternatives: sensitivity.alternatives(index),
            not_pruned: nodes.iter().find_map(|name| forbidden.get(name).cloned()),
            nodes,
            precision: match placement.weights_only[index] {
                true => Precision::Int8Weights,
                false if int8 || came => Precision::Int8,
                false => Precision::F32,
            },
            sqnr_db: output.and_then(|v| sqnr.get(&v)).copied().filter(|db| db.is_finite()),
            weight_bits: (stored && layer.has_weights()).then_some(placement.bits[index]),
            reason: match plan.zeros.get(&index) {
                Some(percent) => format!("{}; {percent} % {ZEROS}", reason.words()),
                None => reason.words(),
            },
            reason_code: reason,
            ms_before: time.before,
            ms_after: time.after,
            bytes_before: before,
            bytes_after: after,
            zeros: zeros(network, index),
            range: choice.filter(|_| int8).map(|c| c.method),
            range_sqnr_db: choice.filter(|_| int8).map(|c| c.sqnr_db).filter(|db| db.is_finite()),
        }
    };
    (0..network.layers.len()).filter(visible).map(report).collect()
}

/// The share of a layer's weights that is 0.
fn zeros(network: &Network, index: usize) -> Option<f64> {
    let weights = network.layers[index].weights();
    let tensors = weights.iter().filter_map(|&(w, _)| network.graph.const_value(w));
    let (zeros, all) = tensors.fold((0, 0), |(zeros, all), tensor| {
        (zeros + tensor.to_f32s().iter().filter(|w| **w == 0.0).count(), all + tensor.len())
    });
    (all > 0).then(|| zeros as f64 / all as f64)
}

/// Bytes of the constants that a layer reads, in `f32` and as it is now.
fn bytes(network: &Network, index: usize, stored: bool) -> (usize, usize) {
    let (graph, layer) = (&network.graph, &network.layers[index]);
    let nodes = layer.nodes.iter().filter_map(|&id| graph.node(id));
    let constants = nodes.flat_map(|n| n.inputs.iter().flatten()).filter_map(|&v| graph.const_value(v));
    let before: usize = constants.map(|t| t.byte_len()).sum();
    let weights = layer.weights().into_iter().filter(|_| stored);
    let after = weights.fold(before, |bytes, (w, axis)| match graph.const_value(w) {
        // A byte each, and per channel the weights' scale and zero point.
        Some(w) => bytes - w.byte_len() + w.len() + 5 * w.shape().get(axis).copied().unwrap_or(0),
        None => bytes,
    });
    (before, after)
}
