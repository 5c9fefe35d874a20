//! The verifier: what must hold for every graph between passes.

use std::collections::HashSet;

use crate::{Def, Graph, IrError};

/// Checks a graph: there is an order of execution, every used value is defined once by what it claims,
/// declared types are the inferred ones, and names of inputs and of outputs are unique.
/// A graph that verifies can be run by [`crate::evaluate`].
///
/// # Errors
/// The first inconsistency found.
pub fn verify(graph: &Graph) -> Result<(), IrError> {
    let defined_by_nodes: HashSet<_> = graph.nodes().flat_map(|(_, n)| n.outputs.iter().copied()).collect();
    for output in graph.outputs() {
        let value = graph.value(output.value);
        if value.def == Def::Removed {
            return Err(IrError::Dangling(value.name.clone()));
        }
    }
    for id in graph.order()? {
        let Some(node) = graph.node(id) else { continue };
        node.op.bodies().into_iter().try_for_each(|body| verify(body.graph()))?;
        let (types, _) = graph.infer(&node.name, &node.op, &node.inputs)?;
        if types.len() != node.outputs.len() {
            let (expected, found) = (types.len(), node.outputs.len());
            return Err(IrError::OutputCount { node: node.name.clone(), expected, found });
        }
        for (slot, (&output, inferred)) in node.outputs.iter().zip(&types).enumerate() {
            let value = graph.value(output);
            if value.def != Def::Node(id, slot) {
                return Err(IrError::Dangling(value.name.clone()));
            }
            if value.ty != *inferred {
                let (declared, inferred) = (value.ty.to_string(), inferred.to_string());
                return Err(IrError::Type { value: value.name.clone(), declared, inferred });
            }
        }
    }
    for (id, value) in graph.values() {
        match &value.def {
            Def::Const(tensor) if crate::TensorType::of(tensor) != value.ty => {
                let (declared, inferred) = (value.ty.to_string(), crate::TensorType::of(tensor).to_string());
                return Err(IrError::Type { value: value.name.clone(), declared, inferred });
            }
            Def::Node(..) if !defined_by_nodes.contains(&id) => {
                return Err(IrError::Dangling(value.name.clone()));
            }
            _ => {}
        }
    }
    unique(graph.inputs().iter().map(|&id| graph.value(id).name.as_str()))?;
    unique(graph.outputs().iter().map(|o| o.name.as_str()))
}

fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), IrError> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(IrError::DuplicateName(name.to_owned()));
        }
    }
    Ok(())
}
