//! Which elements of a graph's values can only be removed together, and which must stay: a union of sets.

use sora_ir::ops::{Op, Shape};
use sora_ir::{Along, Choices, Def, Graph, Node, NodeId, Operand, Tie, ValueId};

use super::{Axis, extents};

/// Why elements must stay.
#[derive(Clone, Debug)]
enum Held {
    /// They are of an input of the network.
    Input(ValueId),
    /// They are of an output of the network, by position.
    Output(usize),
    /// A node needs all of an axis.
    Axis(NodeId, Operand, usize),
    /// A node says why.
    Refused(NodeId, String),
    /// A node multiplies activations by activations along them, and sums.
    Product(NodeId),
    /// A node computes with their number.
    Extent(NodeId),
}

/// A product that a unit ends in: what is summed, by what weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) node: NodeId,
    /// The input that holds the weights, and their axis.
    pub(super) weight: (usize, ValueId, usize),
    /// What they meet, and its axis.
    pub(super) input: Axis,
}

/// A node that multiplies by weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub(super) node: NodeId,
    /// What makes its outputs: a constant, and its axis.
    pub(super) weight: Axis,
    /// Its first output, and the axis that they make.
    pub(super) output: Axis,
}

/// The elements along all axes of known extent, in sets.
pub(super) struct Atoms<'g> {
    graph: &'g Graph,
    /// For each value and axis: the number of the first element, and the extent.
    first: Vec<Vec<Option<(u32, usize)>>>,
    parent: Vec<u32>,
    /// For the root of each set: the number of a reason, plus one; 0 for none.
    held: Vec<u32>,
    reasons: Vec<Held>,
    pub(super) products: Vec<Product>,
    pub(super) layers: Vec<Layer>,
    /// Nodes that read weights and let nothing be removed.
    pub(super) refusing: Vec<NodeId>,
}

impl<'g> Atoms<'g> {
    pub(super) fn new(graph: &'g Graph, order: &[NodeId]) -> Self {
        let mut atoms = Atoms {
            graph,
            first: Vec::new(),
            parent: Vec::new(),
            held: Vec::new(),
            reasons: Vec::new(),
            products: Vec::new(),
            layers: Vec::new(),
            refusing: Vec::new(),
        };
        for (_, value) in graph.values() {
            let shape = if value.def == Def::Removed { &[][..] } else { &value.ty.shape };
            let axes = shape.iter().map(|dim| atoms.allocate(dim.known()?)).collect();
            atoms.first.push(axes);
        }
        for &input in graph.inputs() {
            atoms.hold_value(input, &Held::Input(input));
        }
        for (i, output) in graph.outputs().iter().enumerate() {
            atoms.hold_value(output.value, &Held::Output(i));
        }
        let (uses, mut open) = (graph.uses(), Vec::new());
        for &id in order {
            let Some(node) = graph.node(id) else { continue };
            if let Op::Shape(shape) = &node.op {
                atoms.list(node, shape, &uses);
                continue;
            }
            match graph.ties(node) {
                Ok(choices) => atoms.tie(id, node, choices, &mut open),
                Err(why) => atoms.refuse(id, node, why.0),
            }
        }
        // What the rest of the network forbids decides which axis carries the units where several could.
        for (id, alternatives) in open {
            atoms.choose(id, alternatives);
        }
        atoms
    }

    /// Elements of one axis; `None` when there are more than can be numbered.
    fn allocate(&mut self, extent: usize) -> Option<(u32, usize)> {
        let first = u32::try_from(self.parent.len()).ok()?;
        let end = first.checked_add(u32::try_from(extent).ok()?)?;
        self.parent.extend(first..end);
        self.held.resize(self.parent.len(), 0);
        Some((first, extent))
    }

    fn value(node: &Node, operand: Operand) -> Option<ValueId> {
        match operand {
            Operand::Input(index) => node.inputs.get(index).copied().flatten(),
            Operand::Output(index) => node.outputs.get(index).copied(),
        }
    }

    /// The elements along an axis.
    pub(super) fn axis(&self, value: ValueId, axis: usize) -> std::ops::Range<u32> {
        let found = self.first.get(value.index()).and_then(|axes| axes.get(axis).copied().flatten());
        found.map_or(0..0, |(first, extent)| first..first + u32::try_from(extent).unwrap_or(0))
    }

    /// All axes with their elements.
    pub(super) fn axes(&self) -> impl Iterator<Item = (ValueId, usize, std::ops::Range<u32>)> + use<'_, 'g> {
        self.graph.values().flat_map(move |(id, _)| {
            let axes = self.first.get(id.index()).map_or(0, Vec::len);
            (0..axes).map(move |axis| (id, axis, self.axis(id, axis)))
        })
    }

    fn find(&mut self, atom: u32) -> u32 {
        let mut at = atom;
        while self.parent[at as usize] != at {
            let next = self.parent[at as usize];
            self.parent[at as usize] = self.parent[next as usize];
            at = next;
        }
        at
    }

    /// The set of an element, unless it must stay.
    pub(super) fn removable(&mut self, atom: u32) -> Option<u32> {
        let root = self.find(atom);
        (self.held[root as usize] == 0).then_some(root)
    }

    fn union(&mut self, a: u32, b: u32) {
        let (a, b) = (self.find(a), self.find(b));
        if a != b {
            let held = [self.held[a as usize], self.held[b as usize]];
            self.parent[b as usize] = a;
            self.held[a as usize] = if held[0] > 0 { held[0] } else { held[1] };
        }
    }

    fn hold(&mut self, atoms: impl IntoIterator<Item = u32>, why: &Held) {
        let mut reason = None;
        for atom in atoms {
            let root = self.find(atom);
            if self.held[root as usize] == 0 {
                let number = *reason.get_or_insert_with(|| {
                    self.reasons.push(why.clone());
                    u32::try_from(self.reasons.len()).unwrap_or(u32::MAX)
                });
                self.held[root as usize] = number;
            }
        }
    }

    fn hold_value(&mut self, value: ValueId, why: &Held) {
        for axis in 0..self.graph.ty(value).rank() {
            self.hold(self.axis(value, axis), why);
        }
    }

    /// Holds the axes whose extents a node lists, where more than the shapes of other values follow from them.
    fn list(&mut self, node: &Node, shape: &Shape, uses: &[Vec<NodeId>]) {
        let (Some(Some(value)), Some(&list)) = (node.inputs.first().copied(), node.outputs.first()) else {
            return;
        };
        for (at, axis) in shape.axes(self.graph.ty(value).rank()).enumerate() {
            if let Some(reader) = extents::reader(self.graph, uses, list, at) {
                self.hold(self.axis(value, axis), &Held::Extent(reader));
            }
        }
    }

    fn refuse(&mut self, id: NodeId, node: &Node, why: String) {
        let why = Held::Refused(id, why);
        for &value in node.inputs.iter().flatten().chain(&node.outputs) {
            self.hold_value(value, &why);
        }
        let weights = |&value: &ValueId| self.graph.const_value(value).is_some_and(|t| t.rank() > 1);
        if node.inputs.iter().flatten().any(weights) || !node.op.bodies().is_empty() {
            self.refusing.push(id);
        }
    }

    fn tie(&mut self, id: NodeId, node: &Node, choices: Choices, open: &mut Vec<(NodeId, Vec<Tie>)>) {
        let inputs = (0..node.inputs.len()).map(Operand::Input);
        for operand in inputs.chain((0..node.outputs.len()).map(Operand::Output)) {
            let Some(value) = Self::value(node, operand) else { continue };
            for axis in 0..self.graph.ty(value).rank() {
                let elements = self.axis(value, axis);
                let mut tied = vec![false; elements.len()];
                for tie in choices.iter().flatten() {
                    let here = tie.along.iter().filter(|a| a.operand == operand && a.axis == axis);
                    here.flat_map(|a| (0..tie.units).flat_map(|unit| a.positions(unit, tie.units)))
                        .for_each(|at| tied[at] = true);
                }
                let untied = elements.zip(tied).filter(|(_, tied)| !tied).map(|(atom, _)| atom);
                self.hold(untied.collect::<Vec<_>>(), &Held::Axis(id, operand, axis));
            }
        }
        self.layer(id, node, &choices);
        for alternatives in choices {
            match alternatives.as_slice() {
                [tie] => self.unite(id, node, tie),
                _ => open.push((id, alternatives)),
            }
        }
    }

    /// Notes what makes the outputs of a node that multiplies by weights.
    fn layer(&mut self, id: NodeId, node: &Node, choices: &Choices) {
        let types: Vec<_> = node.inputs.iter().map(|v| v.map(|v| self.graph.ty(v))).collect();
        let outputs: Vec<_> = node.outputs.iter().map(|&v| self.graph.ty(v)).collect();
        if node.op.macs(&types, &outputs).constant() == Some(0) {
            return;
        }
        for tie in choices.iter().flatten() {
            let output = tie.along.iter().find(|a| a.operand == Operand::Output(0));
            let weight = tie.along.iter().filter(|a| !a.summed).find_map(|a| {
                let value = Self::value(node, a.operand)?;
                (self.graph.const_value(value)?.rank() > 1).then_some((value, a.axis))
            });
            if let (Some(output), Some(weight), Some(&first)) = (output, weight, node.outputs.first()) {
                self.layers.push(Layer { node: id, weight, output: (first, output.axis) });
            }
        }
    }

    fn atoms_of(&self, node: &Node, along: &Along, unit: usize, units: usize) -> Vec<u32> {
        let axis = Self::value(node, along.operand).map_or(0..0, |value| self.axis(value, along.axis));
        let number = |at: usize| Some(axis.start + u32::try_from(at).ok()?);
        along.positions(unit, units).filter_map(number).collect()
    }

    fn unite(&mut self, id: NodeId, node: &Node, tie: &Tie) {
        for unit in 0..tie.units {
            let all = tie.along.iter().flat_map(|a| self.atoms_of(node, a, unit, tie.units));
            let all: Vec<u32> = all.collect();
            all.windows(2).for_each(|pair| self.union(pair[0], pair[1]));
        }
        self.product(id, node, tie);
    }

    /// Notes the weights that a tie's units end in; without weights there, the units must stay.
    fn product(&mut self, id: NodeId, node: &Node, tie: &Tie) {
        let value = |along: &Along| Self::value(node, along.operand);
        let is_weight =
            |along: &&Along| value(along).is_some_and(|value| self.graph.const_value(value).is_some());
        let summed: Vec<&Along> = tie.along.iter().filter(|a| a.summed).collect();
        if summed.is_empty() {
            return;
        }
        let weight = summed.iter().copied().find(is_weight);
        let others = summed.iter().copied().filter(|&a| Some(a) != weight);
        let input = others.chain(tie.along.iter().filter(|a| a.operand == Operand::Output(0))).next();
        let found = weight.zip(input).and_then(|(weight, input)| {
            let Operand::Input(slot) = weight.operand else { return None };
            Some(Product {
                node: id,
                weight: (slot, value(weight)?, weight.axis),
                input: (value(input)?, input.axis),
            })
        });
        match found {
            Some(product) => self.products.push(product),
            None => {
                for along in summed {
                    let units = (0..tie.units).flat_map(|unit| self.atoms_of(node, along, unit, tie.units));
                    self.hold(units.collect::<Vec<_>>(), &Held::Product(id));
                }
            }
        }
    }

    /// Takes the first alternative that leaves something to remove, and holds the axes of the others.
    fn choose(&mut self, id: NodeId, alternatives: Vec<Tie>) {
        let graph = self.graph;
        let Some(node) = graph.node(id) else { return };
        let free = |atoms: &mut Self, tie: &Tie| {
            let units = (0..tie.units).filter(|&unit| {
                let all = tie.along.iter().flat_map(|a| atoms.atoms_of(node, a, unit, tie.units));
                all.collect::<Vec<_>>().into_iter().all(|atom| atoms.removable(atom).is_some())
            });
            tie.units > 1 && units.count() > 0
        };
        let chosen = alternatives.iter().position(|tie| free(self, tie));
        let mentioned = |tie: &Tie, along: &Along| {
            tie.along.iter().any(|a| (a.operand, a.axis) == (along.operand, along.axis))
        };
        for along in alternatives.iter().flat_map(|tie| &tie.along) {
            let holds = chosen.is_some_and(|at| mentioned(&alternatives[at], along));
            if let (Some(value), false) = (Self::value(node, along.operand), holds) {
                let axis = self.axis(value, along.axis);
                self.hold(axis, &Held::Axis(id, along.operand, along.axis));
            }
        }
        if let Some(tie) = chosen.map(|at| &alternatives[at]) {
            self.unite(id, node, tie);
        }
    }

    /// Why an element must stay; `None` when it need not.
    pub(super) fn reason(&mut self, atom: u32) -> Option<String> {
        let root = self.find(atom);
        let held = self.reasons.get((self.held[root as usize] as usize).checked_sub(1)?)?;
        let node = |id: &NodeId| {
            let name = |node: &Node| format!("node `{}` ({})", node.name, Op::label(&node.op));
            self.graph.node(*id).map_or_else(String::new, name)
        };
        Some(match held {
            Held::Input(value) => format!("`{}` is an input of the network", self.graph.value(*value).name),
            Held::Output(at) => {
                let name = self.graph.outputs().get(*at).map_or("", |output| &output.name);
                format!("`{name}` is an output of the network")
            }
            Held::Axis(id, Operand::Input(i), axis) => {
                format!("{} needs all of axis {axis} of its input {i}", node(id))
            }
            Held::Axis(id, Operand::Output(i), axis) => {
                format!("{} makes axis {axis} of its output {i} as a whole", node(id))
            }
            Held::Refused(id, why) => format!("{} {why}", node(id)),
            Held::Extent(id) => format!("{} computes with the extent", node(id)),
            Held::Product(id) => format!("{} multiplies it by what is no weight", node(id)),
        })
    }
}
