//! Functions that a model defines itself: calls are replaced by their bodies.

use std::collections::HashMap;

use super::rows::{self, SORA};
use crate::error::{NodeIssue, Refusal};
use crate::proto::{AttributeProto, FunctionProto, NodeProto};

/// Calls inside of calls that are followed; more means that a function calls itself.
const DEEPEST: usize = 32;
/// Nodes after inlining: far more than any real model, few enough to fit into memory.
const MOST_NODES: usize = 1_000_000;

/// The nodes with every call of one of `functions` replaced by the function's nodes. Inner values and nodes are
/// named after the call.
pub(super) fn inline(
    nodes: Vec<NodeProto>,
    functions: &[FunctionProto],
) -> Result<Vec<NodeProto>, NodeIssue> {
    if functions.is_empty() {
        return Ok(nodes);
    }
    let key = |f: &'_ FunctionProto| (f.domain.clone(), f.name.clone(), f.overload.clone());
    let table: HashMap<_, &FunctionProto> = functions.iter().map(|f| (key(f), f)).collect();
    let mut done = Vec::new();
    let mut open: Vec<(NodeProto, usize)> = nodes.into_iter().rev().map(|node| (node, 0)).collect();
    let mut calls = 0usize;
    while let Some((node, depth)) = open.pop() {
        let called = (node.domain.clone(), node.op_type.clone(), node.overload.clone());
        // What has a row is read by it.
        let Some(function) = table.get(&called).filter(|_| !has_row(&node)) else {
            done.push(node);
            continue;
        };
        if depth >= DEEPEST || done.len() + open.len() + function.node.len() > MOST_NODES {
            let refusal = Refusal::new("calls of functions are nested too deeply");
            return Err(refusal.at(&node.name, &node.op_type));
        }
        calls += 1;
        let body = body_of(&node, function, calls);
        open.extend(body.into_iter().rev().map(|node| (node, depth + 1)));
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
    let rename = |name: &String| match names.get(name.as_str()) {
        _ if name.is_empty() => String::new(),
        Some(outer) => outer.clone(),
        None => format!("{prefix}/{name}"),
    };
    let body = function.node.iter().map(|inner| NodeProto {
        input: inner.input.iter().map(rename).collect(),
        output: inner.output.iter().map(rename).collect(),
        name: if inner.name.is_empty() { String::new() } else { format!("{prefix}/{}", inner.name) },
        attribute: inner.attribute.iter().filter_map(|a| bound(a, call, function)).collect(),
        op_type: inner.op_type.clone(),
        domain: inner.domain.clone(),
        overload: inner.overload.clone(),
    });
    body.chain(aliases).collect()
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
