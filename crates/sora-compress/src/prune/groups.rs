//! Groups of units that may be removed, and the layers of which nothing may.

use std::collections::HashMap;

use sora_ir::{Dim, Graph, IrError, NodeId, TensorType, ValueId};

use super::atoms::{Atoms, Layer};

/// An axis of a value.
pub type Axis = (ValueId, usize);

/// What can be removed from a graph.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    /// Groups of units; within one, each unit may be removed by itself.
    pub groups: Vec<Group>,
    /// Layers whose outputs must all stay.
    pub forbidden: Vec<Forbidden>,
}

/// Units that lie along the same axes: channels, heads, recurrent units.
#[derive(Clone, Debug)]
pub struct Group {
    /// The nodes whose weights make the units, by name; in order of execution.
    pub layers: Vec<String>,
    /// The axes that the units lie along.
    pub axes: Vec<Axis>,
    /// For each unit and axis, in the order of `axes`: the unit's positions, ascending.
    pub units: Vec<Vec<Vec<usize>>>,
    /// The products that the units end in.
    pub sinks: Vec<Sink>,
    /// Elements of a unit in the output of its first layer: 1 for a channel, more for a head.
    pub width: usize,
    /// Multiply-adds that removing one unit saves, with extents that are open taken as 1.
    pub macs: f64,
}

/// A product that units end in: with these weights at zero, they contribute nothing to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sink {
    /// The node.
    pub node: NodeId,
    /// The input that holds the weights.
    pub slot: usize,
    /// The weights, a constant, and their axis that is summed over.
    pub weight: Axis,
    /// What they multiply, and its axis.
    pub input: Axis,
}

/// A layer whose outputs must all stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// Name of the node.
    pub layer: String,
    /// What needs them, a clause that names the node, input or output.
    pub why: String,
}

impl Group {
    /// The positions of a unit along an axis; none when it does not lie there.
    pub fn positions(&self, unit: usize, axis: Axis) -> &[usize] {
        let at = self.axes.iter().position(|&a| a == axis);
        at.and_then(|at| self.units.get(unit)?.get(at)).map_or(&[], Vec::as_slice)
    }
}

/// Finds what can be removed from `graph`. Weights must be constants, not computed from constants: fold the graph first.
///
/// # Errors
/// [`IrError`] when the graph has no order of execution.
pub fn groups(graph: &Graph) -> Result<Groups, IrError> {
    let order = graph.order()?;
    let mut atoms = Atoms::new(graph, &order);
    let mut groups = collect(graph, &mut atoms);
    for product in &atoms.products {
        let (slot, value, axis) = product.weight;
        let sink = Sink { node: product.node, slot, weight: (value, axis), input: product.input };
        groups.iter_mut().filter(|g| g.axes.contains(&sink.weight)).for_each(|g| g.sinks.push(sink));
    }
    let mut forbidden = Vec::new();
    let layers = std::mem::take(&mut atoms.layers);
    for Layer { node, weight, output } in layers {
        let Some(node) = graph.node(node) else { continue };
        let mut free = false;
        for group in groups.iter_mut().filter(|g| g.axes.contains(&weight) && !g.sinks.is_empty()) {
            free = true;
            if group.layers.is_empty() {
                group.width = group.positions(0, output).len().max(1);
            }
            group.layers.push(node.name.clone());
        }
        if !free {
            let first = atoms.axis(weight.0, weight.1).next();
            let why = first.and_then(|atom| atoms.reason(atom));
            let why = why.unwrap_or_else(|| "it has one unit".to_owned());
            forbidden.push(Forbidden { layer: node.name.clone(), why });
        }
    }
    for id in std::mem::take(&mut atoms.refusing) {
        let Some(node) = graph.node(id) else { continue };
        let first = node.outputs.iter().flat_map(|&v| atoms.axis(v, 0)).next();
        let why = first.and_then(|atom| atoms.reason(atom));
        let why = why.unwrap_or_else(|| format!("node `{}` needs all of its operands", node.name));
        forbidden.push(Forbidden { layer: node.name.clone(), why });
    }
    groups.retain(|group| !group.sinks.is_empty() && !group.layers.is_empty());
    let readers = readers(graph);
    for group in &mut groups {
        group.macs = saving(graph, &readers, group);
    }
    Ok(Groups { groups, forbidden })
}

/// The sets of elements that may be removed, grouped by the axes that they lie along.
fn collect(graph: &Graph, atoms: &mut Atoms) -> Vec<Group> {
    let axes: Vec<(ValueId, usize, std::ops::Range<u32>)> =
        atoms.axes().filter(|(value, ..)| graph.ty(*value).rank() > 0).collect();
    // Each set as positions along axes, in order of its first element.
    let mut number: HashMap<u32, usize> = HashMap::new();
    let mut sets: Vec<Vec<(usize, Vec<usize>)>> = Vec::new();
    for (at, (_, _, elements)) in axes.iter().enumerate() {
        for (position, atom) in elements.clone().enumerate() {
            let Some(root) = atoms.removable(atom) else { continue };
            let set = *number.entry(root).or_insert_with(|| {
                sets.push(Vec::new());
                sets.len() - 1
            });
            match sets[set].last_mut() {
                Some((axis, positions)) if *axis == at => positions.push(position),
                _ => sets[set].push((at, vec![position])),
            }
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut known: HashMap<Vec<(usize, usize)>, usize> = HashMap::new();
    for set in sets {
        let lies = set.iter().map(|(axis, positions)| (*axis, positions.len())).collect();
        let group = *known.entry(lies).or_insert_with(|| {
            let axes = set.iter().map(|(at, _)| (axes[*at].0, axes[*at].1)).collect();
            let (layers, units, sinks) = (Vec::new(), Vec::new(), Vec::new());
            groups.push(Group { layers, axes, units, sinks, width: 1, macs: 0.0 });
            groups.len() - 1
        });
        groups[group].units.push(set.into_iter().map(|(_, positions)| positions).collect());
    }
    groups.retain(|group| group.units.len() > 1);
    groups
}

/// For each value, by its index: the nodes that read or compute it.
fn readers(graph: &Graph) -> Vec<Vec<NodeId>> {
    let mut readers = vec![Vec::new(); graph.values().count()];
    for (id, node) in graph.nodes() {
        for value in node.inputs.iter().flatten().chain(&node.outputs) {
            readers[value.index()].push(id);
        }
    }
    readers
}

fn saving(graph: &Graph, readers: &[Vec<NodeId>], group: &Group) -> f64 {
    let mut nodes: Vec<NodeId> =
        group.axes.iter().flat_map(|(value, _)| &readers[value.index()]).copied().collect();
    nodes.sort_unstable();
    nodes.dedup();
    let less = |value: ValueId| -> TensorType {
        let mut ty = graph.ty(value).clone();
        for (at, (_, axis)) in group.axes.iter().enumerate().filter(|(_, (v, _))| *v == value) {
            ty.shape[*axis] = ty.shape[*axis].clone() - Dim::from(group.units[0][at].len());
        }
        ty
    };
    let macs = |id: &NodeId| {
        let Some(node) = graph.node(*id) else { return 0.0 };
        let number = |types: &dyn Fn(ValueId) -> TensorType| {
            let inputs: Vec<_> = node.inputs.iter().map(|v| v.map(types)).collect();
            let outputs: Vec<_> = node.outputs.iter().map(|&v| types(v)).collect();
            let inputs: Vec<_> = inputs.iter().map(Option::as_ref).collect();
            let outputs: Vec<_> = outputs.iter().collect();
            let op = node.op.narrowed(&inputs, &outputs);
            op.macs(&inputs, &outputs).eval(&|_| Some(1)).unwrap_or(0) as f64
        };
        number(&|value| graph.ty(value).clone()) - number(&less)
    };
    nodes.iter().map(macs).sum()
}
