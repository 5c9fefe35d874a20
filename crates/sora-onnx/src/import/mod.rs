//! From an ONNX model to a graph.
//!
//! The driver orders the nodes, hands each to its row of the operator table, and collects every failure. Outputs
//! of a failed node count as poisoned: nodes that need them are skipped without a report of their own.

mod cast;
mod constant;
mod contrib;
mod control;
mod conv;
mod elementwise;
mod function;
mod index;
mod math;
mod node;
mod norm;
mod order;
mod quant;
mod quantize;
mod random;
mod recurrent;
mod rows;
mod shape;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use sora_ir::{Dim, Graph, TensorType, ValueId};
use sora_tensor::Tensor;

use crate::error::{NodeIssue, OnnxError, Refusal};
use crate::names::Names;
use crate::proto::{Extent, GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::source::{self, External};
use crate::tensor;
use node::NodeCx;

pub(crate) use rows::SORA;

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
    /// Tool that wrote the file, with its version; may be empty.
    pub producer: String,
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
    let opset = default_opset(&model, &mut warnings)?;
    let proto = model.graph.unwrap_or_default();
    let nodes = function::inline(proto.node, &model.functions);
    let proto = GraphProto { node: Vec::new(), ..proto };
    let mut importer = Importer::new(&proto, opset);
    importer.initializers(&proto, external);
    importer.inputs(&proto, &options.fixed);
    match nodes {
        Ok(nodes) => {
            importer.nodes(&nodes, &proto, external);
            importer.outputs(&proto);
        }
        Err(issue) => importer.issues.push(issue),
    }
    if !importer.issues.is_empty() {
        return Err(OnnxError::Nodes(importer.issues));
    }
    let mut graph = importer.graph;
    graph.compact()?;
    warnings.append(&mut importer.warnings);
    let producer = format!("{} {}", model.producer_name, model.producer_version);
    Ok(Imported {
        graph,
        opset,
        ir_version: model.ir_version.unwrap_or(0),
        producer: producer.trim().to_owned(),
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

/// What a name of the file stands for.
#[derive(Clone, Copy)]
enum Slot {
    Value(ValueId),
    /// It could not be imported, which has been reported.
    Poisoned,
}

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
}

impl Importer {
    fn new(proto: &GraphProto, opset: i64) -> Self {
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
        }
    }

    /// Makes `name` stand for `slot`; a second definition is an issue.
    fn define(&mut self, name: &str, slot: Slot, node: &str, op: &str) {
        if let Slot::Value(id) = slot {
            self.named.insert(id);
        }
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
    fn inputs(&mut self, proto: &GraphProto, fixed: &[(String, Tensor)]) {
        let constants: HashSet<&str> = proto.initializer.iter().map(|init| init.name.as_str()).collect();
        for info in proto.input.iter().filter(|info| !constants.contains(info.name.as_str())) {
            self.names.reserve(&info.name);
            let fixed = fixed.iter().find(|(name, _)| *name == info.name).map(|(_, tensor)| tensor);
            let slot = match (self.input_type(info), fixed) {
                (Ok(ty), Some(tensor)) if !ty.accepts(&TensorType::of(tensor)) => {
                    let why =
                        format!("it is {ty}, and cannot be fixed to a tensor {}", TensorType::of(tensor));
                    self.issues.push(Refusal::new(why).at(&info.name, "Input"));
                    Slot::Poisoned
                }
                (Ok(_), Some(tensor)) => Slot::Value(self.graph.constant(&info.name, tensor.clone())),
                (Ok(ty), None) => Slot::Value(self.graph.input(&info.name, ty)),
                (Err(refusal), _) => {
                    self.issues.push(refusal.at(&info.name, "Input"));
                    Slot::Poisoned
                }
            };
            self.define(&info.name, slot, &info.name, "Input");
        }
    }

    fn input_type(&mut self, info: &ValueInfoProto) -> Result<TensorType, Refusal> {
        let tensor = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
        let tensor =
            tensor.ok_or_else(|| Refusal::new("it is not a tensor; sequences and maps are not supported"))?;
        let dtype = tensor::dtype_of(i64::from(tensor.elem_type))?;
        let shape = tensor.shape.as_ref().ok_or_else(|| {
            Refusal::new("its shape is not given").hint("export the model with the input's rank known")
        })?;
        let mut dims = Vec::new();
        for (axis, dim) in shape.dim.iter().enumerate() {
            let unknown = || Dim::symbol(&format!("?{}.{axis}", info.name.replace('\'', "")));
            dims.push(match &dim.value {
                None => unknown(),
                Some(Extent::Param(name)) if name.is_empty() => unknown(),
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

    fn nodes(&mut self, nodes: &[NodeProto], proto: &GraphProto, external: &mut External) {
        for name in nodes.iter().flat_map(|n| &n.output) {
            self.names.reserve(name);
        }
        let inner: Vec<String> = nodes.iter().flat_map(control::captured).collect();
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
            let Some(node) = nodes.get(index) else { continue };
            let plain = format!("{}{}", self.prefix, node_name(node, index));
            let name = if seen.insert(plain.clone()) { plain } else { node_names.fresh(&plain) };
            self.node(node, &name, &used, external);
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

    fn node(&mut self, node: &NodeProto, name: &str, used: &HashSet<&str>, external: &mut External) {
        let op = label(node);
        let mut poisoned = false;
        let mut inputs = Vec::new();
        for input in &node.input {
            inputs.push(match (input.as_str(), self.slots.get(input)) {
                ("", _) => None,
                (_, Some(Slot::Value(id))) => Some(*id),
                (_, Some(Slot::Poisoned)) => {
                    poisoned = true;
                    None
                }
                (_, None) => {
                    let why = format!("its input `{input}` is defined by no node, initializer or input");
                    self.issues.push(Refusal::new(why).at(name, &op));
                    self.slots.insert(input.clone(), Slot::Poisoned);
                    poisoned = true;
                    None
                }
            });
        }
        // A node of unknown kind is reported even when its inputs are poisoned: its support does not depend on them.
        let row = match rows::find(&node.domain, &node.op_type) {
            Ok(row) => Some(row),
            Err(refusal) => {
                self.issues.push(refusal.at(name, &op));
                None
            }
        };
        let built = match (row, poisoned) {
            (Some(row), false) => {
                let mut cx = NodeCx {
                    graph: &mut self.graph,
                    names: &mut self.names,
                    external,
                    node,
                    name,
                    opset: self.opset,
                    inputs,
                    outputs: node.output.iter().map(|o| used.contains(o.as_str())).collect(),
                    scope: &self.slots,
                    issues: &mut self.issues,
                    depth: self.depth,
                };
                match row(&mut cx) {
                    Ok(values) => Some(values.into_iter().map(|value| cx.settled(value)).collect::<Vec<_>>()),
                    Err(refusal) => {
                        self.issues.push(refusal.at(name, &op));
                        None
                    }
                }
            }
            _ => None,
        };
        for (slot, output) in node.output.iter().enumerate().filter(|(_, output)| !output.is_empty()) {
            let value = built.as_ref().map(|values| values.get(slot).copied());
            let slot = match value {
                Some(Some(id)) => {
                    if !self.named.contains(&id) {
                        self.graph.rename(id, output);
                    }
                    Slot::Value(id)
                }
                Some(None) if used.contains(output.as_str()) => {
                    let why = format!("its output {slot} (`{output}`) is not supported");
                    self.issues.push(Refusal::new(why).at(name, &op));
                    Slot::Poisoned
                }
                Some(None) | None => Slot::Poisoned,
            };
            self.define(output, slot, name, &op);
        }
    }

    fn outputs(&mut self, proto: &GraphProto) {
        let mut seen = HashSet::new();
        if proto.output.is_empty() {
            self.issues.push(Refusal::new("the model has no outputs").at(&proto.name, "Graph"));
        }
        for output in &proto.output {
            if !seen.insert(output.name.as_str()) {
                self.issues.push(Refusal::new("it is listed twice").at(&output.name, "Output"));
            }
            match self.slots.get(&output.name) {
                Some(Slot::Value(id)) => self.graph.output(&output.name, *id),
                Some(Slot::Poisoned) => {}
                None => {
                    let refusal = Refusal::new("no node, initializer or input defines it");
                    self.issues.push(refusal.at(&output.name, "Output"));
                }
            }
        }
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
