//! A network as the quantizer sees it: layers, each of them the nodes that one kernel computes together.

use std::collections::HashSet;

use sora_ir::ops::{
    Activation, ActivationKind, Binary, BinaryKind, Conv, ConvTranspose, Gather, Op, Unary, UnaryKind,
};
use sora_ir::{Graph, IrError, Node, NodeId, QuantRule, ValueId};
use sora_tensor::DType;

use crate::explain::Reason;

/// What the quantizer may do with a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// Multiplies activations by constant weights, then perhaps adds a bias and a residual and activates.
    Linear(Linear),
    /// Multiplies activations and its own state by constant weights, inputs 1 and 2 of its node.
    Recurrent([ValueId; 2]),
    /// Takes rows of a constant table, input 0 of its node, by integers.
    Table(ValueId),
    /// Moves values of one input.
    Passthrough,
    /// Moves values of several inputs, which share one scale with the output.
    Unify,
    /// Computes on several operands, each of its own scale.
    Arithmetic,
    /// A function of one operand.
    Lut,
    /// Stays in floating point.
    Float(Reason),
}

/// The constants of a linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Constant weights, input 1 of the first node.
    pub weight: ValueId,
    /// Axis of the weights that holds output channels.
    pub axis: usize,
    /// Node and slot that read the bias; the slot may be absent.
    pub bias: Option<(NodeId, usize)>,
    /// The other operand of an addition that belongs to the layer.
    pub residual: Option<ValueId>,
    /// Axis of the activations that holds input channels.
    pub input_axis: usize,
}

/// Nodes that are quantized, or not, together.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Name of its first node.
    pub name: String,
    /// Operator of its first node.
    pub op: String,
    /// Its nodes in order of execution.
    pub nodes: Vec<NodeId>,
    /// The floating-point activations that it reads; that of a linear layer first, then its residual.
    pub reads: Vec<ValueId>,
    /// What its last node computes.
    pub outputs: Vec<ValueId>,
    /// What may be done with it.
    pub role: Role,
}

impl Layer {
    /// The constants of a linear layer.
    pub fn linear(&self) -> Option<&Linear> {
        match &self.role {
            Role::Linear(linear) => Some(linear),
            _ => None,
        }
    }

    /// The constants that may be stored as integers, each with the axis of its channels.
    pub fn weights(&self) -> Vec<(ValueId, usize)> {
        match &self.role {
            Role::Linear(linear) => vec![(linear.weight, linear.axis)],
            Role::Recurrent(matrices) => matrices.iter().map(|&w| (w, 1)).collect(),
            Role::Table(table) => vec![(*table, 1)],
            _ => Vec::new(),
        }
    }

    /// Whether its activations may be quantized by rows in place of a fixed range.
    pub fn by_rows(&self) -> bool {
        self.op == "MatMul" && self.linear().is_some()
    }

    /// Whether it multiplies by constant weights, or reads them as a table.
    pub fn has_weights(&self) -> bool {
        matches!(self.role, Role::Linear(_) | Role::Recurrent(_) | Role::Table(_))
    }

    /// Whether it reads a constant table, which has no activations to quantize.
    pub fn is_table(&self) -> bool {
        matches!(self.role, Role::Table(_))
    }

    /// Whether it computes on activations, or reads a table, when the network runs.
    pub fn runs(&self) -> bool {
        !self.reads.is_empty() || self.is_table()
    }
}

/// An optimized floating-point graph divided into layers.
#[derive(Clone, Debug)]
pub struct Network {
    /// The graph; its nodes have unique names.
    pub graph: Graph,
    /// The layers in order of execution of their first nodes.
    pub layers: Vec<Layer>,
    /// For each node, by its index: its layer.
    layer_of: Vec<Option<usize>>,
}

impl Network {
    /// Divides `graph`, which is compacted first.
    ///
    /// # Errors
    /// [`IrError`] when the graph is inconsistent.
    pub fn new(mut graph: Graph) -> Result<Self, IrError> {
        graph.compact()?;
        let graph = with_unique_names(graph)?;
        let order = graph.order()?;
        let mut position = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, id)| position[id.index()] = at);
        let mut grower = Grower { uses: graph.uses(), graph: &graph, position, taken: HashSet::new() };
        let mut layers: Vec<Layer> = Vec::new();
        for &id in &order {
            if let Some(node) = graph.node(id).filter(|_| !grower.taken.contains(&id)) {
                layers.push(grower.layer(id, node));
            }
        }
        let mut layer_of = vec![None; order.len()];
        for (index, layer) in layers.iter().enumerate() {
            layer.nodes.iter().for_each(|id| layer_of[id.index()] = Some(index));
        }
        Ok(Network { graph, layers, layer_of })
    }

    /// The layer that a node belongs to.
    pub fn layer_of(&self, node: NodeId) -> Option<usize> {
        self.layer_of.get(node.index()).copied().flatten()
    }

    /// The layer that computes a value; `None` for inputs and constants.
    pub fn producer(&self, value: ValueId) -> Option<usize> {
        self.graph.producer(value).and_then(|(id, ..)| self.layer_of(id))
    }
}

/// Gives nodes without a name the name of their output, and repeated names a number: profiles and plans speak of
/// layers by name.
fn with_unique_names(graph: Graph) -> Result<Graph, IrError> {
    let mut seen = HashSet::new();
    if graph.nodes().all(|(_, n)| !n.name.is_empty() && seen.insert(n.name.as_str())) {
        return Ok(graph);
    }
    let mut named = Graph::new(&graph.name);
    let mut map: Vec<Option<ValueId>> = vec![None; graph.values().count()];
    for &id in graph.inputs() {
        let value = graph.value(id);
        map[id.index()] = Some(named.input(&value.name, value.ty.clone()));
    }
    for (id, value) in graph.values() {
        if let Some(tensor) = graph.const_value(id) {
            map[id.index()] = Some(named.constant(&value.name, tensor.clone()));
        }
    }
    let mut names: HashSet<String> = HashSet::new();
    for id in graph.order()? {
        let Some(node) = graph.node(id) else { continue };
        let output = node.outputs.first().map(|&v| graph.value(v).name.clone()).unwrap_or_default();
        let base = if node.name.is_empty() { output } else { node.name.clone() };
        let numbered = (2u64..).map(|n| format!("{base}_{n}"));
        let free = std::iter::once(base.clone()).chain(numbered).find(|name| !names.contains(name));
        let name = free.unwrap_or_default();
        names.insert(name.clone());
        let inputs: Vec<_> = node.inputs.iter().map(|v| v.and_then(|v| map[v.index()])).collect();
        let outputs = named.add(&name, node.op.clone(), inputs)?;
        for (&old, new) in node.outputs.iter().zip(outputs) {
            named.rename(new, &graph.value(old).name);
            map[old.index()] = Some(new);
        }
    }
    for output in graph.outputs() {
        if let Some(value) = map[output.value.index()] {
            named.output(&output.name, value);
        }
    }
    Ok(named)
}

/// Grows a layer from its first node.
struct Grower<'a> {
    graph: &'a Graph,
    uses: Vec<Vec<NodeId>>,
    position: Vec<usize>,
    taken: HashSet<NodeId>,
}

impl Grower<'_> {
    fn layer(&mut self, id: NodeId, node: &Node) -> Layer {
        let role = self.role(id, node);
        let mut layer = Layer {
            name: node.name.clone(),
            op: node.op.label().into_owned(),
            nodes: vec![id],
            reads: self.activations(node).collect(),
            outputs: node.outputs.clone(),
            role,
        };
        if let Role::Linear(linear) = &mut layer.role {
            layer.reads.truncate(1);
            self.take_bias(linear, &mut layer.nodes, &mut layer.outputs);
            self.take_residual(linear, id, &mut layer.nodes, &mut layer.outputs);
            layer.reads.extend(linear.residual);
            self.take_activation(&mut layer.nodes, &mut layer.outputs);
        }
        self.taken.extend(layer.nodes.iter().copied());
        layer
    }

    /// The inputs of a node that are `f32` and no constants.
    fn activations<'n>(&'n self, node: &'n Node) -> impl Iterator<Item = ValueId> + 'n {
        node.inputs.iter().flatten().copied().filter(|&v| self.is_activation(v))
    }

    fn is_activation(&self, value: ValueId) -> bool {
        self.graph.ty(value).dtype == DType::F32 && self.graph.const_value(value).is_none()
    }

    fn role(&self, id: NodeId, node: &Node) -> Role {
        let rule = node.op.quant();
        let first = node.inputs.first().copied().flatten();
        let f32_out = node.outputs.iter().all(|&v| self.graph.ty(v).dtype == DType::F32);
        if let (Op::Gather(gather), Some(table), true) = (&node.op, first, f32_out)
            && let Some(role) = self.table(gather, table)
        {
            return role;
        }
        match rule {
            QuantRule::Float => Role::Float(Reason::NoInt8Form),
            _ if !f32_out || first.is_none() => Role::Float(Reason::NotF32),
            QuantRule::Linear { weight_axis } => self.linear(id, node, weight_axis),
            QuantRule::Recurrent => self.recurrent(node),
            _ if !first.is_some_and(|v| self.is_activation(v)) => Role::Float(Reason::ConstantOperand),
            QuantRule::Passthrough => Role::Passthrough,
            QuantRule::Lut => Role::Lut,
            _ if self.activations(node).count() < node.inputs.len() => Role::Float(Reason::ConstantOperand),
            QuantRule::Unify => Role::Unify,
            QuantRule::Arithmetic => Role::Arithmetic,
        }
    }

    /// What a Gather is that reads a constant, or one that came quantized.
    fn table(&self, gather: &Gather, table: ValueId) -> Option<Role> {
        let Some(tensor) = self.graph.const_value(table) else {
            let (_, node, _) = self.graph.producer(table)?;
            let levels = node.inputs.first().copied().flatten()?;
            let came = matches!(node.op, Op::DequantizeLinear(_)) && self.graph.const_value(levels).is_some();
            return came.then_some(Role::Float(Reason::AlreadyQuantized));
        };
        let by_rows = tensor.rank() == 2 && !tensor.is_empty() && matches!(gather.axis, 0 | -2);
        let only = self.uses[table.index()].len() == 1;
        Some(match (by_rows, only) {
            (true, true) => Role::Table(table),
            (true, false) => Role::Float(Reason::SharedTable),
            (false, _) => Role::Float(Reason::ConstantOperand),
        })
    }

    fn recurrent(&self, node: &Node) -> Role {
        let input = |slot: usize| node.inputs.get(slot).copied().flatten();
        let (Some(x), Some(w), Some(r)) = (input(0), input(1), input(2)) else {
            return Role::Float(Reason::NotF32);
        };
        let weights = |v: ValueId| self.graph.const_value(v).is_some_and(|t| !t.is_empty());
        match (weights(w) && weights(r), self.is_activation(x)) {
            (true, true) => Role::Recurrent([w, r]),
            (true, false) => Role::Float(Reason::ConstantOperand),
            (false, _) => Role::Float(Reason::WeightsComputed),
        }
    }

    fn linear(&self, id: NodeId, node: &Node, weight_axis: isize) -> Role {
        let input = |slot: usize| node.inputs.get(slot).copied().flatten();
        let (Some(x), Some(weight)) = (input(0), input(1)) else { return Role::Float(Reason::NotF32) };
        let Some(tensor) = self.graph.const_value(weight) else {
            let dequantized =
                |(_, node, _): (NodeId, &Node, usize)| matches!(node.op, Op::DequantizeLinear(_));
            let quantized = self.graph.producer(weight).is_some_and(dequantized);
            return Role::Float(if quantized { Reason::AlreadyQuantized } else { Reason::WeightsComputed });
        };
        if tensor.dtype() != DType::F32 {
            return Role::Float(Reason::NotF32);
        }
        let rank = tensor.rank();
        let axis =
            if weight_axis < 0 { rank.checked_add_signed(weight_axis) } else { weight_axis.try_into().ok() };
        let Some(axis) = axis.filter(|_| rank >= 2 && !tensor.is_empty() && self.is_activation(x)) else {
            return Role::Float(Reason::ConstantOperand);
        };
        let bias_input = input(2);
        if bias_input.is_some_and(|b| self.graph.const_value(b).is_none()) {
            return Role::Float(Reason::WeightsComputed);
        }
        let has_bias = matches!(node.op, Op::Conv(Conv { .. }) | Op::ConvTranspose(ConvTranspose { .. }));
        let input_axis = if has_bias { 1 } else { self.graph.ty(x).rank().saturating_sub(1) };
        let bias = has_bias.then_some((id, 2));
        Role::Linear(Linear { weight, axis, bias, residual: None, input_axis })
    }

    /// The only reader of a value that is no result of the graph.
    fn only_reader(&self, value: ValueId) -> Option<(NodeId, &Node)> {
        let [id] = self.uses[value.index()][..] else { return None };
        let is_output = self.graph.outputs().iter().any(|o| o.value == value);
        let node = self.graph.node(id).filter(|_| !is_output && !self.taken.contains(&id))?;
        Some((id, node))
    }

    /// An addition of `[…, 1, features]` behind a product is its bias.
    fn take_bias(&self, linear: &mut Linear, nodes: &mut Vec<NodeId>, outputs: &mut Vec<ValueId>) {
        let [product] = outputs[..] else { return };
        let Some((id, node)) = self.only_reader(product).filter(|_| linear.bias.is_none()) else { return };
        let Op::Binary(Binary { kind: BinaryKind::Add }) = node.op else { return };
        let Some(slot) = node.inputs.iter().position(|&v| v != Some(product)) else { return };
        let Some(bias) = node.inputs[slot].and_then(|v| self.graph.const_value(v)) else { return };
        let features =
            self.graph.const_value(linear.weight).and_then(|w| w.shape().get(linear.axis).copied());
        let same = self.graph.ty(product) == self.graph.ty(node.outputs[0]);
        if same && bias.shape().last().copied() == features && Some(bias.len()) == features {
            linear.bias = Some((id, slot));
            nodes.push(id);
            *outputs = node.outputs.clone();
        }
    }

    /// An addition of a value that is there before the layer starts.
    fn take_residual(
        &self,
        linear: &mut Linear,
        first: NodeId,
        nodes: &mut Vec<NodeId>,
        outputs: &mut Vec<ValueId>,
    ) {
        let [sum] = outputs[..] else { return };
        let Some((id, node)) = self.only_reader(sum) else { return };
        let Op::Binary(Binary { kind: BinaryKind::Add }) = node.op else { return };
        let other = node.inputs.iter().flatten().copied().find(|&v| v != sum);
        let Some(other) = other.filter(|&v| self.is_activation(v)) else { return };
        let same = self.graph.ty(other) == self.graph.ty(sum)
            && self.graph.ty(sum) == self.graph.ty(node.outputs[0]);
        let earlier = match self.graph.producer(other) {
            Some((producer, ..)) => self.position[producer.index()] < self.position[first.index()],
            None => true,
        };
        if same && earlier {
            linear.residual = Some(other);
            nodes.push(id);
            *outputs = node.outputs.clone();
        }
    }

    /// An activation that kernels compute before they store.
    fn take_activation(&self, nodes: &mut Vec<NodeId>, outputs: &mut Vec<ValueId>) {
        let [value] = outputs[..] else { return };
        if let Some((id, node)) = self.only_reader(value).filter(|(_, node)| is_fusible(&node.op)) {
            nodes.push(id);
            *outputs = node.outputs.clone();
        }
    }
}

/// Whether kernels of linear layers can apply the function before they store.
fn is_fusible(op: &Op) -> bool {
    use {ActivationKind as A, UnaryKind as U};
    match op {
        Op::Unary(Unary { kind }) => {
            matches!(kind, U::Relu | U::HardSwish | U::Sigmoid | U::Tanh | U::Silu | U::Gelu)
        }
        Op::Activation(Activation { kind, .. }) => matches!(kind, A::Clip | A::LeakyRelu | A::HardSigmoid),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Net;

    fn names(network: &Network) -> Vec<Vec<&str>> {
        let name = |&id: &NodeId| network.graph.node(id).map_or("", |n| n.name.as_str());
        network.layers.iter().map(|l| l.nodes.iter().map(name).collect()).collect()
    }

    #[test]
    fn bias_residual_and_activation_join_their_layer() {
        let (mut net, x) = Net::new(1, &[3, 8, 8]);
        let a = net.conv("a", x, 4);
        let a = net.relu("a.relu", a);
        let b = net.conv("b", a, 4);
        let side = net.conv("side", a, 4);
        let sum = net.add("sum", side, b);
        let sum = net.relu("sum.relu", sum);
        let flat = net.flatten("flat", sum, 256);
        let y = net.dense("y", flat, 5);
        let y = net.softmax("softmax", y);
        let network = Network::new(net.done(y)).unwrap();
        assert_eq!(
            names(&network),
            [
                vec!["a", "a.relu"],
                vec!["b"],
                vec!["side", "sum", "sum.relu"],
                vec!["flat"],
                vec!["y", "y.add"],
                vec!["softmax"],
            ]
        );
        let side = &network.layers[2];
        assert_eq!(side.linear().unwrap().residual, network.graph.find("b"));
        assert_eq!(side.reads.len(), 2);
        assert_eq!(network.layers[4].linear().unwrap().axis, 1);
        assert_eq!(network.layers[5].role, Role::Float(Reason::NoInt8Form));
        assert_eq!(network.producer(network.graph.find("sum").unwrap()), Some(2));
    }

    #[test]
    fn values_that_others_read_end_a_layer() {
        let (mut net, x) = Net::new(2, &[3, 8, 8]);
        let a = net.conv("a", x, 4);
        let b = net.relu("b", a);
        let c = net.add("c", a, b);
        let network = Network::new(net.done(c)).unwrap();
        assert_eq!(names(&network), [vec!["a"], vec!["b"], vec!["c"]]);
        assert_eq!(network.layers[1].role, Role::Lut);
        assert_eq!(network.layers[2].role, Role::Arithmetic);
    }

    #[test]
    fn names_become_unique() {
        let (mut net, x) = Net::new(3, &[3, 8, 8]);
        let a = net.relu("same", x);
        net.graph.rename(a, "first");
        let b = net.relu("same", a);
        net.graph.rename(b, "second");
        let network = Network::new(net.done(b)).unwrap();
        assert_eq!(names(&network), [["same"], ["same_2"]]);
        assert!(network.graph.find("second").is_some());
    }
}
