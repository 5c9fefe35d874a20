//! The graph: values, nodes, and the operations that keep both consistent.

use std::collections::{BTreeMap, HashMap};

use sora_tensor::Tensor;

use crate::op::content_of;
use crate::{Choices, Dim, InferCx, IrError, Mismatch, Op, TensorType, TieCx};

/// Identifies a value of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(u32);

/// Identifies a node of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl ValueId {
    /// Position in [`Graph::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl NodeId {
    /// Position in the graph's node table; ids of removed nodes are not reused.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Def {
    /// Given by the caller.
    Input,
    /// Part of the graph.
    Const(Tensor),
    /// The n-th output of a node.
    Node(NodeId, usize),
    /// Nothing: its node was removed. No live node may use it.
    Removed,
}

/// A tensor that flows through the graph.
#[derive(Clone, Debug)]
pub struct Value {
    /// Name, as the user's file has it.
    pub name: String,
    /// Dtype and symbolic shape.
    pub ty: TensorType,
    /// Where it comes from.
    pub def: Def,
    /// The elements, where they are small integers computed from shapes.
    pub content: Option<Vec<Dim>>,
}

/// One application of an operator.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name, as the user's file has it.
    pub name: String,
    /// Operator with its attributes.
    pub op: Op,
    /// Inputs; `None` for an absent optional one.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs, all defined by this node.
    pub outputs: Vec<ValueId>,
}

/// A result of the graph. The name is the graph's contract with its caller and survives every rewrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Name that callers ask for.
    pub name: String,
    /// Value that they get.
    pub value: ValueId,
}

/// A network: typed values connected by operators, in static single assignment.
///
/// Nodes may be added and removed in any order; [`Graph::order`] gives an order of execution.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Name of the network.
    pub name: String,
    values: Vec<Value>,
    nodes: Vec<Option<Node>>,
    inputs: Vec<ValueId>,
    outputs: Vec<Output>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Graph { name: name.to_owned(), ..Self::default() }
    }

    /// Adds an input.
    pub fn input(&mut self, name: &str, ty: TensorType) -> ValueId {
        let id = self.push_value(name, ty, Def::Input, None);
        self.inputs.push(id);
        id
    }

    /// Adds a constant.
    pub fn constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let content = content_of(&tensor);
        self.push_value(name, TensorType::of(&tensor), Def::Const(tensor), content)
    }

    /// Adds a node and infers its outputs, which are named after it.
    ///
    /// # Errors
    /// [`IrError::Infer`] with the node's name and input types when the operator refuses them.
    pub fn add(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = impl Into<Option<ValueId>>>,
    ) -> Result<Vec<ValueId>, IrError> {
        let op = op.into();
        let inputs: Vec<_> = inputs.into_iter().map(Into::into).collect();
        let (types, content) = self.infer(name, &op, &inputs)?;
        let node = NodeId(index(self.nodes.len()));
        let many = types.len() > 1;
        let outputs = types.into_iter().enumerate().map(|(i, ty)| {
            let name = if many { format!("{name}.{i}") } else { name.to_owned() };
            let content = if i == 0 { content.clone() } else { None };
            self.push_value(&name, ty, Def::Node(node, i), content)
        });
        let outputs: Vec<_> = outputs.collect();
        self.nodes.push(Some(Node { name: name.to_owned(), op, inputs, outputs: outputs.clone() }));
        Ok(outputs)
    }

    /// Adds a node of one output; see [`Graph::add`].
    ///
    /// # Errors
    /// As [`Graph::add`].
    pub fn op(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = impl Into<Option<ValueId>>>,
    ) -> Result<ValueId, IrError> {
        let outputs = self.add(name, op, inputs)?;
        outputs.first().copied().ok_or_else(|| IrError::Unknown(format!("output of `{name}`")))
    }

    /// Declares a result.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.outputs.push(Output { name: name.to_owned(), value });
    }

    /// The inputs, in the caller's order.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// The results, in the caller's order.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// Replaces the list of results.
    pub fn set_outputs(&mut self, outputs: Vec<Output>) {
        self.outputs = outputs;
    }

    /// A value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// All values with their ids, dead ones included.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().map(|(i, v)| (ValueId(index(i)), v))
    }

    /// The type of a value.
    pub fn ty(&self, id: ValueId) -> &TensorType {
        &self.value(id).ty
    }

    /// The tensor of a constant; `None` for other values.
    pub fn const_value(&self, id: ValueId) -> Option<&Tensor> {
        match &self.value(id).def {
            Def::Const(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// Replaces the tensor of a constant by one of the same type, for all its readers.
    ///
    /// # Errors
    /// [`IrError::Type`] for another type, or a value that is no constant.
    pub fn set_const(&mut self, id: ValueId, tensor: Tensor) -> Result<(), IrError> {
        let value = &mut self.values[id.index()];
        match &mut value.def {
            Def::Const(old) if TensorType::of(&tensor) == value.ty => {
                value.content = content_of(&tensor);
                *old = tensor;
                Ok(())
            }
            _ => Err(IrError::Type {
                value: value.name.clone(),
                declared: value.ty.to_string(),
                inferred: TensorType::of(&tensor).to_string(),
            }),
        }
    }

    /// Makes the copies of mapped constants that working on this graph may need die with it.
    fn detach_constants(&mut self) {
        for value in &mut self.values {
            if let Def::Const(tensor) = &mut value.def {
                *tensor = tensor.detached();
            }
        }
    }

    /// Adds the nodes of `body` with `inputs` in place of its inputs, by position, and gives what its outputs are.
    /// Values and nodes get the names that `name` makes of theirs.
    ///
    /// # Errors
    /// [`IrError::Unknown`] for too few inputs, [`IrError::Infer`] when a node refuses the types, [`IrError::Cycle`]
    /// when the body has no order.
    pub fn splice(
        &mut self,
        body: &Graph,
        inputs: &[ValueId],
        name: &mut dyn FnMut(&str) -> String,
    ) -> Result<Vec<ValueId>, IrError> {
        let mut map: HashMap<ValueId, ValueId> =
            body.inputs.iter().copied().zip(inputs.iter().copied()).collect();
        for (id, value) in body.values() {
            if let Def::Const(tensor) = &value.def {
                map.insert(id, self.constant(&name(&value.name), tensor.clone()));
            }
        }
        let missing = |id: ValueId| IrError::Unknown(format!("value for `{}`", body.value(id).name));
        for id in body.order()? {
            let Some(node) = body.node(id) else { continue };
            let find = |id: &ValueId| map.get(id).copied().ok_or_else(|| missing(*id));
            let inputs = node.inputs.iter().map(|id| id.as_ref().map(find).transpose());
            let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
            let outputs = self.add(&name(&node.name), node.op.clone(), inputs)?;
            for (&old, new) in node.outputs.iter().zip(outputs) {
                self.rename(new, &name(&body.value(old).name));
                map.insert(old, new);
            }
        }
        body.outputs.iter().map(|o| map.get(&o.value).copied().ok_or_else(|| missing(o.value))).collect()
    }

    /// Renames a value.
    pub fn rename(&mut self, id: ValueId, name: &str) {
        self.values[id.index()].name = name.to_owned();
    }

    /// A node; `None` once removed.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index())?.as_ref()
    }

    /// The live nodes with their ids, in order of insertion.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(i, n)| Some((NodeId(index(i)), n.as_ref()?)))
    }

    /// The node that computes a value, with the output's position.
    pub fn producer(&self, id: ValueId) -> Option<(NodeId, &Node, usize)> {
        match self.value(id).def {
            Def::Node(node, slot) => Some((node, self.node(node)?, slot)),
            _ => None,
        }
    }

    /// For each value, by its index: the live nodes that read it, once per reading input.
    pub fn uses(&self) -> Vec<Vec<NodeId>> {
        let mut uses = vec![Vec::new(); self.values.len()];
        for (id, node) in self.nodes() {
            for input in node.inputs.iter().flatten() {
                uses[input.index()].push(id);
            }
        }
        uses
    }

    /// The value of this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.values().find(|(_, v)| v.name == name && v.def != Def::Removed).map(|(id, _)| id)
    }

    /// Makes every reader and result that uses `old` use `new`. Looks at all nodes.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        for node in self.nodes.iter_mut().flatten() {
            for input in node.inputs.iter_mut().filter(|input| **input == Some(old)) {
                *input = Some(new);
            }
        }
        for output in self.outputs.iter_mut().filter(|output| output.value == old) {
            output.value = new;
        }
    }

    /// Makes the inputs of one node that are `old` be `new`.
    pub fn redirect(&mut self, node: NodeId, old: ValueId, new: ValueId) {
        let inputs = self.nodes[node.index()].iter_mut().flat_map(|node| &mut node.inputs);
        inputs.filter(|input| **input == Some(old)).for_each(|input| *input = Some(new));
    }

    /// Makes the result at a position be `value`.
    pub fn set_output(&mut self, position: usize, value: ValueId) {
        if let Some(output) = self.outputs.get_mut(position) {
            output.value = value;
        }
    }

    /// Replaces one input of a node.
    pub fn set_input(&mut self, node: NodeId, slot: usize, value: ValueId) {
        if let Some(input) = self.nodes[node.index()].as_mut().and_then(|n| n.inputs.get_mut(slot)) {
            *input = Some(value);
        }
    }

    /// Removes a node; its outputs must have no readers left.
    pub fn remove(&mut self, id: NodeId) {
        if let Some(node) = self.nodes[id.index()].take() {
            for output in node.outputs {
                self.values[output.index()].def = Def::Removed;
            }
        }
    }

    /// The live nodes in an order in which every node follows the producers of its inputs; among those
    /// ready, insertion order.
    ///
    /// # Errors
    /// [`IrError::Cycle`] naming a node on a cycle, or [`IrError::Dangling`] naming a value that no node defines.
    pub fn order(&self) -> Result<Vec<NodeId>, IrError> {
        let mut missing: Vec<usize> = vec![0; self.nodes.len()];
        for (id, node) in self.nodes() {
            for &input in node.inputs.iter().flatten() {
                match &self.values[input.index()].def {
                    Def::Node(..) => missing[id.index()] += 1,
                    Def::Removed => return Err(IrError::Dangling(self.value(input).name.clone())),
                    Def::Input | Def::Const(_) => {}
                }
            }
        }
        let uses = self.uses();
        let ready = self.nodes().map(|(id, _)| id).filter(|id| missing[id.index()] == 0);
        let mut ready: std::collections::BTreeSet<NodeId> = ready.collect();
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(id) = ready.pop_first() {
            order.push(id);
            for output in self.node(id).map_or(&[][..], |n| &n.outputs) {
                for &user in &uses[output.index()] {
                    missing[user.index()] -= 1;
                    if missing[user.index()] == 0 {
                        ready.insert(user);
                    }
                }
            }
        }
        match self.nodes().find(|(id, _)| missing[id.index()] > 0) {
            Some((_, node)) => Err(IrError::Cycle(node.name.clone())),
            None => Ok(order),
        }
    }

    /// Types and content of a node's outputs, without adding it.
    ///
    /// # Errors
    /// [`IrError::Infer`] when the operator refuses the inputs.
    pub fn infer(
        &self,
        name: &str,
        op: &Op,
        inputs: &[Option<ValueId>],
    ) -> Result<(Vec<TensorType>, Option<Vec<Dim>>), IrError> {
        let cx = self.given(name, inputs);
        let refuse = |why: String| {
            let show = |ty: &Option<&TensorType>| ty.map_or("absent".to_owned(), ToString::to_string);
            let inputs = cx.types.iter().map(show).collect();
            IrError::Infer { node: name.to_owned(), op: op.label().into_owned(), inputs, why }
        };
        let types = op.infer(&cx).map_err(|m| refuse(m.0))?;
        let negative = |ty: &&TensorType| ty.shape.iter().any(|d| d.constant().is_some_and(|v| v < 0));
        if let Some(ty) = types.iter().find(negative) {
            return Err(refuse(format!(
                "the output would have the negative extent in {ty}: the input is too small"
            )));
        }
        let content = op.content(&cx);
        Ok((types, content))
    }

    fn given<'a>(&'a self, node: &'a str, inputs: &[Option<ValueId>]) -> InferCx<'a> {
        let value = |id: &Option<ValueId>| id.map(|id| self.value(id));
        InferCx {
            node,
            types: inputs.iter().map(|id| value(id).map(|v| &v.ty)).collect(),
            constants: inputs.iter().map(|id| id.and_then(|id| self.const_value(id))).collect(),
            contents: inputs.iter().map(|id| value(id).and_then(|v| v.content.clone())).collect(),
        }
    }

    /// Which elements along the axes of a node's operands can only be removed together; see
    /// [`OpDef::ties`](crate::OpDef::ties).
    ///
    /// # Errors
    /// [`Mismatch`] where all must stay.
    pub fn ties(&self, node: &Node) -> Result<Choices, Mismatch> {
        let outputs = node.outputs.iter().map(|&id| self.ty(id)).collect();
        let mut cx = TieCx::new(self.given(&node.name, &node.inputs), outputs);
        node.op.ties(&mut cx)?;
        Ok(cx.finish())
    }

    /// A copy whose inputs have these concrete shapes, with every type inferred anew.
    ///
    /// # Errors
    /// [`IrError::Unknown`] for a name that is no input, [`IrError::InputShape`] for a shape that the input
    /// does not accept, [`IrError::Infer`] where a node refuses the shapes.
    pub fn specialize(&self, shapes: &[(&str, &[usize])]) -> Result<Graph, IrError> {
        let mut graph = self.clone();
        graph.detach_constants();
        let mut symbols: HashMap<String, usize> = HashMap::new();
        for &(name, shape) in shapes {
            let id = self.inputs.iter().copied().find(|&id| self.value(id).name == name);
            let id = id.ok_or_else(|| IrError::Unknown(format!("input `{name}`")))?;
            let wanted = self.ty(id);
            let given = TensorType::new(wanted.dtype, shape.iter().copied());
            let refused = || IrError::InputShape {
                input: name.to_owned(),
                expected: wanted.to_string(),
                found: format!("{shape:?}"),
            };
            if !wanted.accepts(&given) {
                return Err(refused());
            }
            for (dim, &extent) in wanted.shape.iter().zip(shape) {
                if let Some(symbol) = dim.as_symbol() {
                    // The same symbol in two inputs means the same extent.
                    if *symbols.entry(symbol.to_owned()).or_insert(extent) != extent {
                        return Err(refused());
                    }
                }
            }
            graph.values[id.index()].ty = given;
        }
        for &id in &self.inputs {
            let ty = &mut graph.values[id.index()].ty;
            for dim in &mut ty.shape {
                if let Some(bound) = dim.eval(&|name| symbols.get(name).copied()) {
                    *dim = Dim::from(bound);
                }
            }
        }
        graph.infer_all()?;
        Ok(graph)
    }

    /// A copy whose inputs have these types, by position, with every type inferred anew; elements of small integer
    /// inputs take part in shape arithmetic where they are given.
    ///
    /// # Errors
    /// [`IrError::Unknown`] for another number of inputs, [`IrError::InputShape`] for a type of another dtype or rank,
    /// [`IrError::Infer`] where a node refuses the types.
    pub fn with_input_types(&self, types: &[(TensorType, Option<Vec<Dim>>)]) -> Result<Graph, IrError> {
        if types.len() != self.inputs.len() {
            return Err(IrError::Unknown(format!("input {}: there are {}", types.len(), self.inputs.len())));
        }
        let mut graph = self.clone();
        for (&id, (ty, content)) in self.inputs.iter().zip(types) {
            let value = &mut graph.values[id.index()];
            if value.ty.dtype != ty.dtype || value.ty.rank() != ty.rank() {
                let (expected, found) = (value.ty.to_string(), ty.to_string());
                return Err(IrError::InputShape { input: value.name.clone(), expected, found });
            }
            value.ty = ty.clone();
            value.content.clone_from(content);
        }
        graph.infer_all()?;
        Ok(graph)
    }

    /// Infers every type anew from the inputs and constants.
    ///
    /// # Errors
    /// [`IrError::Infer`] where a node refuses its inputs, [`IrError::Cycle`] when there is no order.
    pub fn infer_all(&mut self) -> Result<(), IrError> {
        for id in self.order()? {
            let Some(node) = self.node(id) else { continue };
            let (types, content) = self.infer(&node.name, &node.op, &node.inputs)?;
            let outputs = node.outputs.clone();
            if outputs.len() != types.len() {
                return Err(IrError::OutputCount {
                    node: node.name.clone(),
                    expected: types.len(),
                    found: outputs.len(),
                });
            }
            for (i, (output, ty)) in outputs.into_iter().zip(types).enumerate() {
                let value = &mut self.values[output.index()];
                value.ty = ty;
                value.content = if i == 0 { content.clone() } else { None };
            }
        }
        Ok(())
    }

    /// Drops nodes and values that no result depends on, and numbers the rest in order of execution.
    /// Inputs stay. Ids of before are invalid afterwards.
    ///
    /// # Errors
    /// As [`Graph::order`].
    pub fn compact(&mut self) -> Result<(), IrError> {
        let order = self.order()?;
        let mut live = vec![false; self.values.len()];
        for output in &self.outputs {
            live[output.value.index()] = true;
        }
        let mut kept = Vec::new();
        for &id in order.iter().rev() {
            let Some(node) = self.node(id) else { continue };
            if node.outputs.iter().any(|o| live[o.index()]) {
                node.inputs.iter().flatten().for_each(|i| live[i.index()] = true);
                kept.push(id);
            }
        }
        let mut fresh = Graph::new(&self.name);
        let mut map: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        for &id in &self.inputs {
            let value = self.value(id).clone();
            let new = fresh.push_value(&value.name, value.ty, Def::Input, value.content);
            fresh.inputs.push(new);
            map.insert(id, new);
        }
        let copy_const = |fresh: &mut Graph, map: &mut BTreeMap<ValueId, ValueId>, id: ValueId| {
            if let (Def::Const(_), false) = (&self.value(id).def, map.contains_key(&id)) {
                fresh.values.push(self.value(id).clone());
                map.insert(id, ValueId(index(fresh.values.len() - 1)));
            }
        };
        for &id in kept.iter().rev() {
            let Some(node) = self.node(id) else { continue };
            node.inputs.iter().flatten().for_each(|&i| copy_const(&mut fresh, &mut map, i));
            let new_id = NodeId(index(fresh.nodes.len()));
            let mut node = node.clone();
            for input in node.inputs.iter_mut().flatten() {
                *input = map[input];
            }
            for (slot, output) in node.outputs.iter_mut().enumerate() {
                let value = Value { def: Def::Node(new_id, slot), ..self.value(*output).clone() };
                fresh.values.push(value);
                let new = ValueId(index(fresh.values.len() - 1));
                map.insert(*output, new);
                *output = new;
            }
            fresh.nodes.push(Some(node));
        }
        for output in &self.outputs {
            copy_const(&mut fresh, &mut map, output.value);
            fresh.output(&output.name, map[&output.value]);
        }
        *self = fresh;
        Ok(())
    }

    /// A value name that is not taken, starting with `base`.
    pub fn fresh_name(&self, base: &str) -> String {
        let taken: std::collections::HashSet<&str> = self.values.iter().map(|v| v.name.as_str()).collect();
        if !taken.contains(base) {
            return base.to_owned();
        }
        let numbered = (1usize..).map(|i| format!("{base}_{i}"));
        numbered.into_iter().find(|name| !taken.contains(name.as_str())).unwrap_or_default()
    }

    fn push_value(&mut self, name: &str, ty: TensorType, def: Def, content: Option<Vec<Dim>>) -> ValueId {
        self.values.push(Value { name: name.to_owned(), ty, def, content });
        ValueId(index(self.values.len() - 1))
    }
}

fn index(n: usize) -> u32 {
    u32::try_from(n).expect("a graph has fewer than 2^32 nodes and values")
}
