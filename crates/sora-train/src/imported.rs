//! What training changes in a graph that comes from elsewhere.

use sora_ir::ops::{BinaryKind, Conv, Op, Softmax, Unary, UnaryKind};
use sora_ir::{Graph, Node, NodeId, ValueId};
use sora_tensor::{DType, Tensor};

use crate::network::{Parameter, Trainable};
use crate::{Penalty, TrainError};

/// How much of a network that was trained before is trained again.
#[derive(Clone, Debug, PartialEq)]
pub struct FineTuning {
    /// Parameters that stay: names, in which `*` stands for any letters.
    pub freeze: Vec<String>,
    /// The learning rate of all parameters but those of a new head, as a share.
    pub rate: f64,
    /// Whether batch normalization takes the statistics of each batch, which the running ones then follow. Otherwise it
    /// keeps those it has.
    pub batch_statistics: bool,
    /// Classes of a new last layer in place of the old one.
    pub classes: Option<usize>,
    /// What the new layer's weights follow from.
    pub seed: u64,
}

/// What a constant is to a node that reads it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Training moves it.
    Weight,
    /// Training follows it.
    Statistic,
    /// What the result is to its readers.
    Passed,
    /// Training leaves it.
    Fixed,
}

impl Trainable {
    /// The float constants of a graph that act as weights: of convolutions, products, tables, normalization and recurrent
    /// layers, and what is added to or multiplied with a computed value. Single numbers, and what scales an input of the
    /// network, stay.
    ///
    /// # Errors
    /// [`TrainError::Network`] when nothing is left to train, a pattern names no parameter, or the last layer cannot be
    /// replaced.
    pub fn imported(mut graph: Graph, tuning: &FineTuning) -> Result<Self, TrainError> {
        // Loops hide weights; recurrent layers and iterations do not.
        if graph.nodes().any(|(_, node)| !node.op.bodies().is_empty()) {
            let written = sora_rewrite::write_out_control_flow(&mut graph);
            written.map_err(|e| TrainError::Network(e.to_string()))?;
        }
        let head = match tuning.classes {
            Some(classes) => new_head(&mut graph, classes, tuning.seed)?,
            None => Vec::new(),
        };
        let mut parameters = weights(&graph, tuning, &head);
        for pattern in &tuning.freeze {
            let before = parameters.len();
            parameters.retain(|parameter| !matches(pattern, &parameter.name));
            if parameters.len() == before {
                let names: Vec<&str> = parameters.iter().take(5).map(|p| p.name.as_str()).collect();
                let why = format!("no parameter matches `{pattern}`; there are {}, …", names.join(", "));
                return Err(TrainError::Network(why));
            }
        }
        if !parameters.iter().any(|parameter| parameter.trainable) {
            let why = "the model has no float weights left to train; a quantized model cannot be trained";
            return Err(TrainError::Network(why.to_owned()));
        }
        Ok(Trainable { graph, parameters, dropouts: Vec::new() })
    }
}

/// The float constants of a graph that act as weights, and those that training follows; `head` are those of a new last layer.
pub(crate) fn weights(graph: &Graph, tuning: &FineTuning, head: &[ValueId]) -> Vec<Parameter> {
    let uses = graph.uses();
    let mut parameters = Vec::new();
    for (value, described) in graph.values() {
        let Some(tensor) = graph.const_value(value).filter(|t| t.dtype() == DType::F32 && t.len() > 1) else {
            continue;
        };
        let role = role(graph, &uses, value);
        let trainable = role == Role::Weight;
        let followed = role == Role::Statistic && tuning.batch_statistics;
        if !trainable && !followed {
            continue;
        }
        if tensor.to_f32s().iter().any(|x| !x.is_finite()) {
            continue;
        }
        let rate = if head.contains(&value) { 1.0 } else { tuning.rate };
        let (name, penalty) = (described.name.clone(), Penalty::default());
        parameters.push(Parameter { name, value, trainable, rate, gradient: 1.0, penalty });
    }
    parameters
}

/// What a constant is to those who read it: a weight to any of them makes it one.
fn role(graph: &Graph, uses: &[Vec<NodeId>], value: ValueId) -> Role {
    let mut found = Role::Fixed;
    for node in uses[value.index()].iter().filter_map(|&id| graph.node(id)) {
        for (slot, _) in node.inputs.iter().enumerate().filter(|(_, input)| **input == Some(value)) {
            let role = match reads(graph, node, slot) {
                Role::Passed => node.outputs.first().map_or(Role::Fixed, |&y| role(graph, uses, y)),
                role => role,
            };
            if found == Role::Fixed || role == Role::Weight {
                found = role;
            }
        }
    }
    found
}

/// What the input of a node is to it.
fn reads(graph: &Graph, node: &Node, slot: usize) -> Role {
    let is_input =
        |other: usize| node.inputs.get(other).copied().flatten().is_some_and(|v| graph.inputs().contains(&v));
    match (&node.op, slot) {
        (Op::Transpose(_) | Op::Reshape(_) | Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Expand(_), 0) => {
            Role::Passed
        }
        (Op::Conv(_) | Op::ConvTranspose(_) | Op::LayerNorm(_), 1 | 2) => Role::Weight,
        (Op::Lstm(_) | Op::Gru(_) | Op::Rnn(_), 1..=3) => Role::Weight,
        (Op::BatchNorm(_), 1 | 2) => Role::Weight,
        (Op::BatchNorm(_), 3 | 4) => Role::Statistic,
        (Op::MatMul(_), _) | (Op::Gather(_), 0) => Role::Weight,
        (Op::Binary(op), _) => {
            let moves =
                matches!(op.kind, BinaryKind::Add | BinaryKind::Sub | BinaryKind::Mul | BinaryKind::Div);
            if moves && !is_input(1 - slot) { Role::Weight } else { Role::Fixed }
        }
        _ => Role::Fixed,
    }
}

/// Puts new weights into the last product or convolution, so that the first output has `classes` elements along the axis of
/// its channels; gives the new constants.
fn new_head(graph: &mut Graph, classes: usize, seed: u64) -> Result<Vec<ValueId>, TrainError> {
    let refused = |why: String| TrainError::Network(format!("the last layer cannot be replaced: {why}"));
    let output = graph.outputs().first().ok_or_else(|| refused("there is no output".to_owned()))?;
    let mut at = output.value;
    // One logistic output becomes a distribution over classes.
    let logistic = graph
        .producer(at)
        .filter(|(_, node, _)| matches!(node.op, Op::Unary(Unary { kind: UnaryKind::Sigmoid })));
    if let Some((id, x)) =
        logistic.and_then(|(id, node, _)| Some((id, node.inputs.first().copied().flatten()?)))
    {
        let softmax = graph.op("head.softmax", Softmax { axis: -1, log: false }, [x])?;
        graph.replace_uses(at, softmax);
        graph.remove(id);
        at = softmax;
    }
    // Inputs to exchange: node, slot, the axis of the old constant that counts classes, and whether it holds weights or biases.
    let mut old: Vec<(NodeId, usize, usize, bool)> = Vec::new();
    let rank = |graph: &Graph, v: ValueId| graph.ty(v).rank();
    loop {
        let Some((id, node, _)) = graph.producer(at) else {
            return Err(refused("no product with weights leads to the output".to_owned()));
        };
        let constant = |slot: usize| {
            let v = node.inputs.get(slot).copied().flatten()?;
            graph.const_value(v).map(|_| v)
        };
        let first = node.inputs.first().copied().flatten();
        at = match &node.op {
            Op::Softmax(_) | Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) => first,
            Op::Unary(op) if op.kind == UnaryKind::Identity => first,
            Op::Binary(op) if op.kind == BinaryKind::Add => {
                let slot = if constant(1).is_some() { 1 } else { 0 };
                let Some(bias) = constant(slot) else {
                    return Err(refused(format!("`{}` adds two computed values", node.name)));
                };
                old.push((id, slot, rank(graph, bias).saturating_sub(1), false));
                node.inputs.get(1 - slot).copied().flatten()
            }
            Op::MatMul(_) => {
                let weights = node.inputs.get(1).copied().flatten();
                let turned =
                    weights.and_then(|v| graph.producer(v)).and_then(|(id, node, _)| match &node.op {
                        Op::Transpose(op) if op.perm == [1, 0] => Some((id, 0, 0, true)),
                        _ => None,
                    });
                let plain = constant(1).filter(|&v| rank(graph, v) == 2).map(|_| (id, 1, 1, true));
                let found = plain.or(turned);
                old.push(found.ok_or_else(|| refused(format!("`{}` has no constant weights", node.name)))?);
                break;
            }
            Op::Conv(Conv { group: 1, .. }) if constant(1).is_some() => {
                old.push((id, 1, 0, true));
                constant(2).into_iter().for_each(|_| old.push((id, 2, 0, false)));
                break;
            }
            op => return Err(refused(format!("`{}` ({}) comes behind it", node.name, op.name()))),
        }
        .ok_or_else(|| refused(format!("`{}` has no input", node.name)))?;
    }
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut new = Vec::new();
    for (id, slot, axis, weights) in old {
        let value = graph.node(id).and_then(|node| node.inputs.get(slot).copied().flatten());
        let Some(tensor) = value.and_then(|v| graph.const_value(v)) else {
            return Err(refused("its weights are computed".to_owned()));
        };
        let mut shape = tensor.shape().to_vec();
        let Some(extent) = shape.get_mut(axis) else {
            return Err(refused("its bias is a single number".to_owned()));
        };
        *extent = classes;
        let count: usize = shape.iter().product();
        // Glorot & Bengio 2010; biases are zeros.
        let limit =
            if weights { (6.0 * classes as f32 / (count + classes * classes) as f32).sqrt() } else { 0.0 };
        let values: Vec<f32> = (0..count).map(|_| limit * (2.0 * rng.f32() - 1.0)).collect();
        let tensor = Tensor::from_slice(&shape, &values).map_err(sora_ir::Mismatch::from)?;
        let name = graph.fresh_name(if weights { "head.weight" } else { "head.bias" });
        let constant = graph.constant(&name, tensor);
        graph.set_input(id, slot, constant);
        new.push(constant);
    }
    graph.infer_all().map_err(|e| refused(e.to_string()))?;
    Ok(new)
}

/// Whether a name is what a pattern says, in which `*` stands for any letters.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            (0..=name.len()).filter(|&at| name.is_char_boundary(at)).any(|at| matches(rest, &name[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_whole_names() {
        for (pattern, name, expected) in [
            ("conv1.weight", "conv1.weight", true),
            ("conv1", "conv1.weight", false),
            ("conv*", "conv1.weight", true),
            ("*.bias", "conv1.weight", false),
            ("*1*weight", "conv1.weight", true),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
