//! From an ONNX model to a graph.
//!
//! The driver orders the nodes, hands each to its row of the operator table, and collects every failure. Outputs
//! of a failed node count as poisoned: nodes that need them are skipped without a report of their own.

mod attention;
mod body;
mod build;
mod cast;
mod cells;
#[cfg(test)]
mod compositions;
mod constant;
mod contrib;
mod contrib_attention;
mod control;
mod conv;
mod einsum;
mod elementwise;
mod flex_attention;
mod function;
mod index;
mod linear_attention;
mod loss;
mod math;
mod ml;
mod nbits;
mod ngram;
mod node;
mod norm;
mod order;
mod quant;
mod quantize;
mod random;
mod recurrent;
mod rotary;
mod rows;
mod sequence;
mod shape;
mod signal;
mod slot;
#[cfg(test)]
mod tests;
mod training;
mod tree;
mod vision;
mod window;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;

use sora_ir::{Dim, Graph, TensorType, ValueId};
use sora_tensor::Tensor;

use crate::About;
use crate::error::{NodeIssue, OnnxError, Refusal};
use crate::names::Names;
use crate::proto::{Extent, GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::source::{self, External};
use crate::tensor;
use function::{Calls, Functions};
use node::NodeCx;
use slot::Slot;

pub(crate) use rows::SORA;
pub use rows::operators;

/// The oldest opset of the default domain that can be imported.
pub const MIN_OPSET: i64 = 1;
/// The newest opset of the default domain whose operators are known; later ones are tried with a warning.
pub const MAX_OPSET: i64 = 25;

/// A model that was read.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The network. Its inputs, outputs, values and nodes have the names of the file.
    pub graph: Graph,
    /// Opset of the default domain.
    pub opset: i64,
    /// Version of the file's format.
    pub ir_version: i64,
    /// What the file says of itself.
    pub about: About,
    /// The file's metadata, in its order.
    pub metadata: Vec<(String, String)>,
    /// Remarks on what was read leniently.
    pub warnings: Vec<String>,
}

/// What is known of a model before it is read.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Inputs that are always given these tensors: they become constants. Needed where the structure of the graph
    /// depends on an input, such as the axes of a reduction.
    pub fixed: Vec<(String, Tensor)>,
    /// Inputs that are sequences, with the types of their elements: a graph has tensors only, so element `i` of `NAME`
    /// becomes the input `NAME.i`, or a constant when that name is among the fixed ones.
    pub sequences: Vec<(String, Vec<TensorType>)>,
    /// Optional inputs that are not given. Others are taken to be there.
    pub absent: Vec<String>,
}

/// Reads a model from a file; weights stay memory-mapped. External data is looked for in the file's folder only.
///
/// # Errors
/// [`OnnxError::Nodes`] with every node, initializer and input that is broken or unsupported; other variants
/// when the file as a whole is unreadable.
pub fn load(path: impl AsRef<Path>) -> Result<Imported, OnnxError> {
    load_with(path, &ImportOptions::default())
}

/// As [`load`], with what is known of the model's inputs.
///
/// # Errors
/// As [`load`].
pub fn load_with(path: impl AsRef<Path>, options: &ImportOptions) -> Result<Imported, OnnxError> {
    let path = path.as_ref();
    let (model, file) = source::read_model(path)?;
    // The parent of a plain file name is empty, and an empty path is no folder.
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    import(model, &mut External::new(Some(folder)).beside(file), options)
}

/// Reads a model from memory; external data is looked for in `folder`, and refused without one.
///
/// # Errors
/// As [`load`].
pub fn from_bytes(bytes: Vec<u8>, folder: Option<&Path>) -> Result<Imported, OnnxError> {
    import(source::decode(bytes.into())?, &mut External::new(folder), &ImportOptions::default())
}

/// Everything in a file that cannot be imported; empty when [`load`] succeeds.
///
/// # Errors
/// As [`load`] when the file as a whole is unreadable.
pub fn check(path: impl AsRef<Path>) -> Result<Vec<NodeIssue>, OnnxError> {
    match load(path) {
        Ok(_) => Ok(Vec::new()),
        Err(OnnxError::Nodes(issues)) => Ok(issues),
        Err(other) => Err(other),
    }
}

fn import(
    model: ModelProto,
    external: &mut External,
    options: &ImportOptions,
) -> Result<Imported, OnnxError> {
    let mut warnings = Vec::new();
    let about = About::of(&model);
    let opset = default_opset(&model, &mut warnings)?;
    let proto = model.graph.unwrap_or_default();
    let calls = Calls::of(&model.functions);
    let functions = Rc::new(Functions::of(model.functions, opset));
    let mut importer = Importer::new(&proto, opset, functions, calls);
    importer.initializers(&proto, external);
    importer.inputs(&proto, options);
    importer.nodes(&proto, external);
    importer.outputs(&proto);
    if !importer.issues.is_empty() {
        return Err(OnnxError::Nodes(importer.issues));
    }
    let mut graph = importer.graph;
    graph.compact()?;
    warnings.append(&mut importer.warnings);
    Ok(Imported {
        graph,
        opset,
        ir_version: model.ir_version.unwrap_or(0),
        about,
        metadata: model.metadata_props.into_iter().map(|p| (p.key, p.value)).collect(),
        warnings,
    })
}

/// The opset of the default domain, checked.
fn default_opset(model: &ModelProto, warnings: &mut Vec<String>) -> Result<i64, OnnxError> {
    let versions = model.opset_import.iter().filter(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
    let opset = match versions.map(|o| o.version).max() {
        Some(version) => version,
        // A model of other domains only may leave it out.
        None if !model.opset_import.is_empty() => MAX_OPSET,
        None => return Err(OnnxError::Version("it does not say which opset it uses".to_owned())),
    };
    if opset < MIN_OPSET {
        return Err(OnnxError::Version(format!(
            "it uses opset {opset}, which does not exist; Sora reads {MIN_OPSET} and later"
        )));
    }
    if opset > MAX_OPSET {
        warnings.push(format!("opset {opset} is newer than {MAX_OPSET}, the newest one that is known"));
    }
    Ok(opset)
}

/// Nodes by which unrolling may grow a graph.
const MOST_UNROLLED: usize = 20_000;

struct Importer {
    graph: Graph,
    opset: i64,
    slots: HashMap<String, Slot>,
    /// Values that already carry the name that the file gives them.
    named: HashSet<ValueId>,
    names: Names,
    issues: Vec<NodeIssue>,
    warnings: Vec<String>,
    /// What names of nodes begin with, inside of a body.
    prefix: String,
    /// How many bodies the graph is in.
    depth: usize,
    /// Nodes that unrolling may still add.
    budget: usize,
    functions: Rc<Functions>,
    /// What calls of functions may still add.
    calls: Calls,
}

impl Importer {
    fn new(proto: &GraphProto, opset: i64, functions: Rc<Functions>, calls: Calls) -> Self {
        Importer {
            graph: Graph::new(&proto.name),
            opset,
            slots: HashMap::new(),
            named: HashSet::new(),
            names: Names::default(),
            issues: Vec::new(),
            warnings: Vec::new(),
            prefix: String::new(),
            depth: 0,
            budget: MOST_UNROLLED,
            functions,
            calls,
        }
    }

    /// Makes `name` stand for `slot`; a second definition is an issue.
    fn define(&mut self, name: &str, slot: Slot, node: &str, op: &str) {
        self.named.extend(slot.values());
        if self.slots.insert(name.to_owned(), slot).is_some() {
            let why = format!("the name `{name}` is defined twice");
            self.issues.push(Refusal::new(why).at(node, op));
        }
    }

    fn initializers(&mut self, proto: &GraphProto, external: &mut External) {
        for sparse in &proto.sparse_initializer {
            let name = sparse.values.as_ref().map_or("", |v| v.name.as_str());
            let refusal =
                Refusal::new("sparse initializers are not supported").hint("store it as a dense tensor");
            self.issues.push(refusal.at(name, "Initializer"));
            self.define(name, Slot::Poisoned, name, "Initializer");
        }
        for init in &proto.initializer {
            self.names.reserve(&init.name);
            let slot = match tensor::from_proto(init, external) {
                Ok(tensor) => Slot::Value(self.graph.constant(&init.name, tensor)),
                Err(refusal) => {
                    self.issues.push(refusal.at(&init.name, "Initializer"));
                    Slot::Poisoned
                }
            };
            self.define(&init.name, slot, &init.name, "Initializer");
        }
    }

    /// Before version 4 of the format, initializers had to be inputs as well: they stay constants.
    fn inputs(&mut self, proto: &GraphProto, options: &ImportOptions) {
        let constants: HashSet<&str> = proto.initializer.iter().map(|init| init.name.as_str()).collect();
        for info in proto.input.iter().filter(|info| !constants.contains(info.name.as_str())) {
            self.names.reserve(&info.name);
            let slot = self.input(info, options).unwrap_or_else(|refusal| {
                self.issues.push(refusal.at(&info.name, "Input"));
                Slot::Poisoned
            });
            self.define(&info.name, slot, &info.name, "Input");
        }
    }

    fn input(&mut self, info: &ValueInfoProto, options: &ImportOptions) -> Result<Slot, Refusal> {
        let name = &info.name;
        let declared = info.r#type.as_ref();
        let optional = declared.and_then(|ty| ty.optional_type.as_ref());
        if optional.is_some() && options.absent.contains(name) {
            return Ok(Slot::Absent);
        }
        let inner = optional.map_or(declared, |optional| optional.elem_type.as_deref());
        if inner.is_some_and(|ty| ty.sequence_type.is_some()) {
            let given = options.sequences.iter().find(|(other, _)| other == name);
            let (_, types) = given.ok_or_else(|| {
                Refusal::new("it is a sequence, whose length is not given")
                    .hint("give the types of its elements, in ImportOptions::sequences")
            })?;
            let elements = types.iter().enumerate();
            let values = elements.map(|(i, ty)| {
                let name = self.names.fresh(&format!("{name}.{i}"));
                self.tensor_input(&name, ty.clone(), options)
            });
            return Ok(Slot::List(values.collect::<Result<_, _>>()?));
        }
        let ty = self.input_type(&ValueInfoProto { r#type: inner.cloned(), ..info.clone() })?;
        Ok(Slot::Value(self.tensor_input(name, ty, options)?))
    }

    fn tensor_input(
        &mut self,
        name: &str,
        ty: TensorType,
        options: &ImportOptions,
    ) -> Result<ValueId, Refusal> {
        match options.fixed.iter().find(|(other, _)| other == name) {
            Some((_, tensor)) if !ty.accepts(&TensorType::of(tensor)) => {
                let of = TensorType::of(tensor);
                Err(Refusal::new(format!("it is {ty}, and cannot be fixed to a tensor {of}")))
            }
            Some((_, tensor)) => Ok(self.graph.constant(name, tensor.clone())),
            None => Ok(self.graph.input(name, ty)),
        }
    }

    fn input_type(&mut self, info: &ValueInfoProto) -> Result<TensorType, Refusal> {
        let tensor = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
        let tensor = tensor.ok_or_else(|| Refusal::new("it is not a tensor; maps are not supported"))?;
        let dtype = tensor::dtype_of(i64::from(tensor.elem_type))?;
        let shape = tensor.shape.as_ref().ok_or_else(|| {
            Refusal::new("its shape is not given").hint("export the model with the input's rank known")
        })?;
        let mut dims = Vec::new();
        for (axis, dim) in shape.dim.iter().enumerate() {
            let unknown = || Dim::symbol(&format!("?{}.{axis}", info.name.replace('\'', "")));
            dims.push(match &dim.value {
                None => unknown(),
                // Exporters call every unknown extent `?`: equal names do not mean equal extents.
                Some(Extent::Param(name)) if matches!(name.as_str(), "" | "?") => unknown(),
                Some(Extent::Param(name)) => symbol(name),
                // Some exporters write -1 for an unknown extent.
                Some(Extent::Value(-1)) => {
                    self.warnings.push(format!("input `{}` has the extent -1, read as unknown", info.name));
                    unknown()
                }
                Some(Extent::Value(v)) if *v < 0 => {
                    return Err(Refusal::new(format!("it has the negative extent {v}")));
                }
                Some(Extent::Value(v)) => Dim::from(*v),
            });
        }
        Ok(TensorType { dtype, shape: dims })
    }

    fn nodes(&mut self, proto: &GraphProto, external: &mut External) {
        let functions = Rc::clone(&self.functions);
        let inlined = function::inline(proto.node.clone(), &functions, self.opset, &mut self.calls);
        let (nodes, opsets): (Vec<NodeProto>, Vec<i64>) = match inlined {
            Ok(nodes) => nodes.into_iter().unzip(),
            Err(issue) => {
                self.issues.push(issue);
                for output in &proto.output {
                    self.slots.entry(output.name.clone()).or_insert(Slot::Poisoned);
                }
                return;
            }
        };
        let nodes = nodes.as_slice();
        for name in nodes.iter().flat_map(|n| &n.output) {
            self.names.reserve(name);
        }
        let inner: Vec<String> = nodes.iter().flat_map(body::captured).collect();
        let used: HashSet<&str> = nodes
            .iter()
            .flat_map(|n| &n.input)
            .chain(&inner)
            .chain(proto.output.iter().map(|o| &o.name))
            .map(String::as_str)
            .collect();
        let mut node_names = Names::default();
        for node in nodes {
            node_names.reserve(&node.name);
            self.names.reserve(&node.name);
        }
        let mut seen = HashSet::new();
        let order = order::order(nodes);
        for node in order.stuck.iter().filter_map(|&index| nodes.get(index)) {
            for output in &node.output {
                self.slots.entry(output.clone()).or_insert(Slot::Poisoned);
            }
        }
        for index in order.sorted {
            let (Some(node), Some(&opset)) = (nodes.get(index), opsets.get(index)) else { continue };
            let plain = format!("{}{}", self.prefix, node_name(node, index));
            let name = if seen.insert(plain.clone()) { plain } else { node_names.fresh(&plain) };
            self.node(node, opset, &name, &used, external);
        }
        let cyclic: HashSet<usize> = order.cyclic.into_iter().collect();
        for index in order.stuck {
            let Some(node) = nodes.get(index) else { continue };
            let refusal = match cyclic.contains(&index) {
                true => Some(Refusal::new("it depends on its own output")),
                false => rows::find(&node.domain, &node.op_type).err(),
            };
            self.issues.extend(refusal.map(|refusal| refusal.at(&node_name(node, index), &label(node))));
        }
    }

    fn node(
        &mut self,
        node: &NodeProto,
        opset: i64,
        name: &str,
        used: &HashSet<&str>,
        external: &mut External,
    ) {
        let op = label(node);
        let captured = body::captured(node);
        let mut poisoned = captured.iter().any(|name| matches!(self.slots.get(name), Some(Slot::Poisoned)));
        let mut slots = Vec::new();
        for input in &node.input {
            slots.push(match (input.as_str(), self.slots.get(input)) {
                ("", _) => Slot::Absent,
                (_, Some(slot)) => slot.clone(),
                (_, None) => {
                    let why = format!("its input `{input}` is defined by no node, initializer or input");
                    self.issues.push(Refusal::new(why).at(name, &op));
                    self.slots.insert(input.clone(), Slot::Poisoned);
                    Slot::Poisoned
                }
            });
        }
        poisoned |= slots.iter().any(|slot| matches!(slot, Slot::Poisoned));
        // A node of unknown kind is reported even when its inputs are poisoned: its support does not depend on them.
        let row = match rows::find(&node.domain, &node.op_type) {
            Ok(row) => Some(row),
            Err(refusal) => {
                self.issues.push(refusal.at(name, &op));
                None
            }
        };
        if row.is_none() || poisoned {
            self.unknown_inside(node, opset, name);
        }
        let built = match (row, poisoned) {
            (Some(row), false) => {
                let tensor = |slot: &Slot| if let Slot::Value(id) = slot { Some(*id) } else { None };
                let mut cx = NodeCx {
                    graph: &mut self.graph,
                    names: &mut self.names,
                    external,
                    node,
                    name,
                    opset,
                    functions: &self.functions,
                    calls: &mut self.calls,
                    inputs: slots.iter().map(tensor).collect(),
                    slots,
                    outputs: node.output.iter().map(|o| used.contains(o.as_str())).collect(),
                    scope: &self.slots,
                    issues: &mut self.issues,
                    depth: self.depth,
                    budget: &mut self.budget,
                };
                match cx.read(row) {
                    Ok(slots) => Some(slots),
                    Err(refusal) => {
                        self.issues.push(refusal.of(node, name, &op));
                        None
                    }
                }
            }
            _ => None,
        };
        for (index, output) in node.output.iter().enumerate().filter(|(_, output)| !output.is_empty()) {
            let slot = match built.as_ref().map(|slots| slots.get(index)) {
                Some(Some(slot)) => {
                    self.rename(slot, output);
                    slot.clone()
                }
                Some(None) if used.contains(output.as_str()) => {
                    let why = format!("its output {index} (`{output}`) is not supported");
                    self.issues.push(Refusal::new(why).at(name, &op));
                    Slot::Poisoned
                }
                Some(None) | None => Slot::Poisoned,
            };
            self.define(output, slot, name, &op);
        }
    }

    /// Reports the operators of unknown kind in the bodies of a node that is not read itself.
    fn unknown_inside(&mut self, node: &NodeProto, opset: i64, name: &str) {
        let functions = Rc::clone(&self.functions);
        for attribute in &node.attribute {
            let Some(body) = &attribute.g else { continue };
            let Ok(nodes) = function::inline(body.node.clone(), &functions, opset, &mut self.calls) else {
                continue;
            };
            for (index, (inner, opset)) in nodes.iter().enumerate() {
                let name = format!("{name}/{}/{}", attribute.name, node_name(inner, index));
                let refusal = rows::find(&inner.domain, &inner.op_type).err();
                self.issues.extend(refusal.map(|refusal| refusal.at(&name, &label(inner))));
                self.unknown_inside(inner, *opset, &name);
            }
        }
    }

    /// Gives the values of a slot the name that the file has for it, unless they have one.
    fn rename(&mut self, slot: &Slot, name: &str) {
        for (i, &id) in slot.values().iter().enumerate().filter(|(_, id)| !self.named.contains(*id)) {
            match slot {
                Slot::List(_) => {
                    let name = self.names.fresh(&format!("{name}.{i}"));
                    self.graph.rename(id, &name);
                }
                _ => self.graph.rename(id, name),
            }
        }
    }

    /// Declares the outputs and tells what they are. A sequence gives an output for each element.
    fn outputs(&mut self, proto: &GraphProto) -> Vec<Slot> {
        let mut seen = HashSet::new();
        if proto.output.is_empty() {
            self.issues.push(Refusal::new("the model has no outputs").at(&proto.name, "Graph"));
        }
        let mut slots = Vec::new();
        for output in &proto.output {
            let name = &output.name;
            if !seen.insert(name.as_str()) {
                self.issues.push(Refusal::new("it is listed twice").at(name, "Output"));
            }
            let slot = self.slots.get(name).cloned().unwrap_or_else(|| {
                let refusal = Refusal::new("no node, initializer or input defines it");
                self.issues.push(refusal.at(name, "Output"));
                Slot::Poisoned
            });
            match &slot {
                Slot::List(list) => {
                    for (i, &id) in list.iter().enumerate() {
                        self.graph.output(&format!("{name}.{i}"), id);
                    }
                }
                slot => slot.values().iter().for_each(|&id| self.graph.output(name, id)),
            }
            if self.depth == 0 && matches!(slot, Slot::Stack(_)) {
                let why =
                    "is a sequence whose length is not known, given as one tensor along a new first axis";
                self.warnings.push(format!("output `{name}` {why}"));
            }
            slots.push(slot);
        }
        slots
    }
}

/// The file's name of a node, or one made of its operator and position.
fn node_name(node: &NodeProto, index: usize) -> String {
    match node.name.is_empty() {
        true => format!("{}_{index}", node.op_type),
        false => node.name.clone(),
    }
}

/// The operator as people write it.
fn label(node: &NodeProto) -> String {
    match node.domain.as_str() {
        "" | "ai.onnx" => node.op_type.clone(),
        domain => format!("{domain}.{}", node.op_type),
    }
}

/// A dimension's parameter: a symbol, unless it is an expression that an export printed.
fn symbol(name: &str) -> Dim {
    match Dim::parse(name) {
        Some(dim) if dim.constant().is_none() => dim,
        _ => Dim::symbol(&name.replace('\'', "")),
    }
}
