//! Functions that a model defines itself: calls are replaced by their bodies, in every graph where they are.

use std::collections::HashMap;

use super::rows::{self, SORA};
use crate::error::{NodeIssue, Refusal};
use crate::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto};

/// Calls inside of calls that are followed; more means that a function calls itself.
const DEEPEST: usize = 32;
/// Nodes after inlining: far more than any real model, few enough to fit into memory.
pub(super) const MOST_NODES: usize = 1_000_000;

/// The functions of a model, by domain, name and overload, with the opset of the default domain that each is written in.
#[derive(Default)]
pub(super) struct Functions(HashMap<(String, String, String), (FunctionProto, i64)>);

impl Functions {
    /// `opset` is that of functions that do not say one.
    pub(super) fn of(functions: Vec<FunctionProto>, opset: i64) -> Self {
        let entry = |f: FunctionProto| {
            let own = f.opset_import.iter().filter(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
            let opset = own.map(|o| o.version).max().unwrap_or(opset);
            ((f.domain.clone(), f.name.clone(), f.overload.clone()), (f, opset))
        };
        Functions(functions.into_iter().map(entry).collect())
    }

    /// The function that a node calls. What has a row is read by it.
    fn called(&self, node: &NodeProto) -> Option<&(FunctionProto, i64)> {
        if self.0.is_empty() || has_row(node) {
            return None;
        }
        self.0.get(&(node.domain.clone(), node.op_type.clone(), node.overload.clone()))
    }
}

/// The nodes of a graph of `opset` with every call replaced by the function's nodes, each with the opset that it is
/// written in. Inner values and nodes are named after the call. At most `budget` nodes are added, which it lowers.
pub(super) fn inline(
    nodes: Vec<NodeProto>,
    functions: &Functions,
    opset: i64,
    budget: &mut usize,
) -> Result<Vec<(NodeProto, i64)>, NodeIssue> {
    let mut done = Vec::with_capacity(nodes.len());
    let mut open: Vec<(NodeProto, i64, usize)> =
        nodes.into_iter().rev().map(|node| (node, opset, 0)).collect();
    let mut calls = 0usize;
    while let Some((node, opset, depth)) = open.pop() {
        let Some((function, version)) = functions.called(&node) else {
            done.push((node, opset));
            continue;
        };
        let left = budget.checked_sub(function.node.len());
        let (Some(left), true) = (left, depth < DEEPEST) else {
            let refusal = Refusal::new("calls of functions are nested too deeply");
            return Err(refusal.at(&node.name, &node.op_type));
        };
        *budget = left;
        calls += 1;
        let body = body_of(&node, function, calls);
        open.extend(body.into_iter().rev().map(|node| (node, *version, depth + 1)));
    }
    Ok(done)
}

fn has_row(node: &NodeProto) -> bool {
    node.domain == SORA && rows::find(&node.domain, &node.op_type).is_ok()
}

/// The nodes of one call.
fn body_of(call: &NodeProto, function: &FunctionProto, number: usize) -> Vec<NodeProto> {
    let prefix = match call.name.is_empty() {
        true => format!("{}_{number}", function.name),
        false => call.name.clone(),
    };
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
