//! The reference evaluator: slow, safe, and right by definition.

use sora_tensor::Tensor;

use crate::{Def, EvalCx, Graph, IrError, TensorType, ValueId};

/// Runs `graph` on `inputs`, given by name, and returns its outputs in order.
///
/// # Errors
/// [`IrError::Unknown`] for a missing input, [`IrError::InputShape`] for one that does not fit,
/// [`IrError::Eval`] where an operator cannot run.
pub fn evaluate(graph: &Graph, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, IrError> {
    evaluate_with(graph, inputs, |_, _| {})
}

/// As [`evaluate`], and calls `observe` with every value that a node computes.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_with(
    graph: &Graph,
    inputs: &[(&str, &Tensor)],
    mut observe: impl FnMut(ValueId, &Tensor),
) -> Result<Vec<Tensor>, IrError> {
    let mut slots: Vec<Option<Tensor>> = vec![None; graph.values().count()];
    for &id in graph.inputs() {
        let value = graph.value(id);
        let given = inputs.iter().find(|(name, _)| *name == value.name);
        let (_, tensor) = given.ok_or_else(|| IrError::Unknown(format!("input `{}`", value.name)))?;
        if !value.ty.accepts(&TensorType::of(tensor)) {
            let (expected, found) = (value.ty.to_string(), TensorType::of(tensor).to_string());
            return Err(IrError::InputShape { input: value.name.clone(), expected, found });
        }
        slots[id.index()] = Some((*tensor).clone());
    }
    let order = graph.order()?;
    let mut readers = vec![0usize; slots.len()];
    graph.nodes().flat_map(|(_, n)| n.inputs.iter().flatten()).for_each(|id| readers[id.index()] += 1);
    graph.outputs().iter().for_each(|o| readers[o.value.index()] += 1);

    for id in order {
        let Some(node) = graph.node(id) else { continue };
        let args: Vec<_> = node.inputs.iter().map(|id| id.and_then(|id| read(graph, &slots, id))).collect();
        let results = node.op.eval(&EvalCx { inputs: &args }).map_err(|why| IrError::Eval {
            node: node.name.clone(),
            op: node.op.label().into_owned(),
            why: why.0,
        })?;
        for (&output, result) in node.outputs.iter().zip(results) {
            observe(output, &result);
            slots[output.index()] = Some(result);
        }
        for input in node.inputs.iter().flatten() {
            readers[input.index()] -= 1;
            if readers[input.index()] == 0 {
                slots[input.index()] = None;
            }
        }
    }
    let result = |value: ValueId| {
        read(graph, &slots, value).cloned().ok_or_else(|| IrError::Dangling(graph.value(value).name.clone()))
    };
    graph.outputs().iter().map(|o| result(o.value)).collect()
}

fn read<'a>(graph: &'a Graph, slots: &'a [Option<Tensor>], id: ValueId) -> Option<&'a Tensor> {
    match &graph.value(id).def {
        Def::Const(tensor) => Some(tensor),
        _ => slots[id.index()].as_ref(),
    }
}
