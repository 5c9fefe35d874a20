//! Functions that a model defines itself: calls are replaced by their bodies, in every graph where they are.

use std::collections::HashMap;

use prost::Message;

use super::rows::{self, SORA};
use crate::error::{NodeIssue, Refusal};
use crate::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto};

/// Calls inside of calls that are followed; more means that a function calls itself.
const DEEPEST: usize = 32;
/// The longest name of a call that names of values and nodes in it begin with.
const LONGEST: usize = 256;

/// What calls may still add to a model: far more than any real one does, little enough to fit into memory.
#[derive(Clone, Copy)]
pub(super) struct Calls {
    nodes: usize,
    bytes: usize,
}

impl Calls {
    /// For a file whose functions take so many bytes.
    pub(super) fn of(functions: &[FunctionProto]) -> Self {
        let bytes: usize = functions.iter().map(Message::encoded_len).sum();
        Calls { nodes: 1_000_000, bytes: bytes.saturating_mul(64).saturating_add(256 << 20) }
    }

    /// What is left after a call of a function; `None` when it is too much.
    fn after(self, function: &FunctionProto, bytes: usize) -> Option<Self> {
        let nodes = self.nodes.checked_sub(function.node.len())?;
        Some(Calls { nodes, bytes: self.bytes.checked_sub(bytes)? })
    }
}

/// A function, with what its calls need.
struct Known {
    function: FunctionProto,
    /// The opset of the default domain that it is written in.
    opset: i64,
    /// What each call takes: bytes as in the file, names, and attributes of the caller.
    bytes: usize,
    names: usize,
    references: usize,
}

impl Known {
    /// The bytes that a call adds, where names begin with `prefix`.
    fn added(&self, call: &NodeProto, prefix: &str) -> usize {
        let names = call.input.iter().chain(&call.output).map(String::len);
        let name = names.max().unwrap_or(0).max(prefix.len());
        let attributes = call.attribute.iter().map(Message::encoded_len).max().unwrap_or(0);
        let named = self.names.saturating_mul(name);
        self.bytes.saturating_add(named).saturating_add(self.references.saturating_mul(attributes))
    }
}

/// The names of values and nodes in some nodes, and the attributes that they take from a caller.
fn count(nodes: &[NodeProto]) -> (usize, usize) {
    let one = |(names, references): (usize, usize), node: &NodeProto| {
        let inner = node.attribute.iter().filter_map(|a| a.g.as_deref()).map(|graph| {
            let (names, references) = count(&graph.node);
            (names + graph.input.len() + graph.output.len() + graph.initializer.len(), references)
        });
        let own = node.input.len() + node.output.len() + 1;
        let taken = node.attribute.iter().filter(|a| !a.ref_attr_name.is_empty()).count();
        inner.fold((names + own, references + taken), |sum, more| (sum.0 + more.0, sum.1 + more.1))
    };
    nodes.iter().fold((0, 0), one)
}

/// The functions of a model, by domain, name and overload.
#[derive(Default)]
pub(super) struct Functions(HashMap<(String, String, String), Known>);

impl Functions {
    /// `opset` is that of functions that do not say one.
    pub(super) fn of(functions: Vec<FunctionProto>, opset: i64) -> Self {
        let entry = |f: FunctionProto| {
            let own = f.opset_import.iter().filter(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
            let opset = own.map(|o| o.version).max().unwrap_or(opset);
            let key = (f.domain.clone(), f.name.clone(), f.overload.clone());
            let (names, references) = count(&f.node);
            (key, Known { bytes: f.encoded_len(), names, references, opset, function: f })
        };
        Functions(functions.into_iter().map(entry).collect())
    }

    /// The function that a node calls. What has a row is read by it.
    fn called(&self, node: &NodeProto) -> Option<&Known> {
        if self.0.is_empty() || has_row(node) {
            return None;
        }
        self.0.get(&(node.domain.clone(), node.op_type.clone(), node.overload.clone()))
    }
}

/// The nodes of a graph of `opset` with every call replaced by the function's nodes, each with the opset that it is
/// written in. Inner values and nodes are named after the call. What is added lowers `budget`.
pub(super) fn inline(
    nodes: Vec<NodeProto>,
    functions: &Functions,
    opset: i64,
    budget: &mut Calls,
) -> Result<Vec<(NodeProto, i64)>, NodeIssue> {
    let mut done = Vec::with_capacity(nodes.len());
    let mut open: Vec<(NodeProto, i64, usize)> =
        nodes.into_iter().rev().map(|node| (node, opset, 0)).collect();
    let mut calls = 0usize;
    while let Some((node, opset, depth)) = open.pop() {
        let Some(known) = functions.called(&node) else {
            done.push((node, opset));
            continue;
        };
        calls += 1;
        let prefix = match node.name.len() {
            1..=LONGEST => node.name.clone(),
            _ => format!("{:.LONGEST$}_{calls}", known.function.name),
        };
        let left = budget.after(&known.function, known.added(&node, &prefix));
        *budget = match left {
            _ if depth == DEEPEST => Err("calls of functions are nested too deeply"),
            None => Err("calls of functions make the model too large"),
            Some(left) => Ok(left),
        }
        .map_err(|why| Refusal::new(why).at(&node.name, &node.op_type))?;
        let body = body_of(&node, &known.function, prefix);
        open.extend(body.into_iter().rev().map(|node| (node, known.opset, depth + 1)));
    }
    Ok(done)
}

fn has_row(node: &NodeProto) -> bool {
    node.domain == SORA && rows::find(&node.domain, &node.op_type).is_ok()
}

/// The nodes of one call, whose names begin with `prefix`.
fn body_of(call: &NodeProto, function: &FunctionProto, prefix: String) -> Vec<NodeProto> {
    // Absent arguments become absent inputs; results that the caller drops keep an inner name.
    let mut names: HashMap<&str, String> = HashMap::new();
    for (i, formal) in function.input.iter().enumerate() {
        names.insert(formal, call.input.get(i).cloned().unwrap_or_default());
    }
    let mut aliases = Vec::new();
    for (formal, actual) in function.output.iter().zip(&call.output).filter(|(_, actual)| !actual.is_empty())
    {
        match names.get(formal.as_str()) {
            // An output that is an input, or the same output twice.
            Some(source) => aliases.push(NodeProto {
                op_type: "Identity".to_owned(),
                input: vec![source.clone()],
                output: vec![actual.clone()],
                ..NodeProto::default()
            }),
            None => {
                names.insert(formal, actual.clone());
            }
        }
    }
    let call = Call { call, function, names, prefix };
    function.node.iter().map(|inner| call.node(inner)).chain(aliases).collect()
}

/// How the parts of a function read at a place where it is called.
struct Call<'a> {
    call: &'a NodeProto,
    function: &'a FunctionProto,
    /// What formal names stand for.
    names: HashMap<&'a str, String>,
    /// What other names begin with.
    prefix: String,
}

impl Call<'_> {
    fn name(&self, name: &String) -> String {
        match self.names.get(name.as_str()) {
            _ if name.is_empty() => String::new(),
            Some(outer) => outer.clone(),
            None => format!("{}/{name}", self.prefix),
        }
    }

    fn node(&self, inner: &NodeProto) -> NodeProto {
        let attribute = |a| {
            let mut bound = bound(a, self.call, self.function)?;
            // A graph that the caller gives sees the caller's names.
            if a.ref_attr_name.is_empty() {
                bound.g = bound.g.map(|graph| Box::new(self.graph(&graph)));
            }
            Some(bound)
        };
        let prefix = &self.prefix;
        NodeProto {
            input: inner.input.iter().map(|name| self.name(name)).collect(),
            output: inner.output.iter().map(|name| self.name(name)).collect(),
            name: if inner.name.is_empty() { String::new() } else { format!("{prefix}/{}", inner.name) },
            attribute: inner.attribute.iter().filter_map(attribute).collect(),
            op_type: inner.op_type.clone(),
            domain: inner.domain.clone(),
            overload: inner.overload.clone(),
        }
    }

    /// A graph inside of the function: all of its names, since it sees those of the function.
    fn graph(&self, graph: &GraphProto) -> GraphProto {
        let mut graph = graph.clone();
        for info in graph.input.iter_mut().chain(&mut graph.output) {
            info.name = self.name(&info.name);
        }
        for initializer in &mut graph.initializer {
            initializer.name = self.name(&initializer.name);
        }
        graph.node = graph.node.iter().map(|inner| self.node(inner)).collect();
        graph
    }
}

/// An attribute with a reference to the caller's attribute resolved; `None` when the caller leaves it out and
/// the function has no default.
fn bound(attribute: &AttributeProto, call: &NodeProto, function: &FunctionProto) -> Option<AttributeProto> {
    if attribute.ref_attr_name.is_empty() {
        return Some(attribute.clone());
    }
    let mut given = call.attribute.iter().chain(&function.attribute_proto);
    let found = given.find(|a| a.name == attribute.ref_attr_name)?;
    Some(AttributeProto { name: attribute.name.clone(), ..found.clone() })
}
