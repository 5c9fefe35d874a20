//! Removes what no result depends on.

use std::collections::HashSet;

use sora_ir::{Graph, IrError};

use crate::Report;

/// Drops unused nodes and constants and numbers the rest in order of execution.
pub(crate) fn eliminate_dead_code(graph: &mut Graph, report: &mut Report) -> Result<(), IrError> {
    let nodes = |graph: &Graph| -> Vec<(String, String)> {
        graph.nodes().map(|(_, node)| (node.name.clone(), node.op.label().into_owned())).collect()
    };
    let before = nodes(graph);
    graph.compact()?;
    if graph.nodes().count() < before.len() {
        let kept: HashSet<_> = nodes(graph).into_iter().collect();
        for dead in before.iter().filter(|node| !kept.contains(node)) {
            report.push("eliminate_dead_code", &dead.0, format!("{} is not used", dead.1));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sora_ir::ops::{Unary, UnaryKind};
    use sora_ir::{TensorType, verify};
    use sora_tensor::{DType, Tensor};

    use super::*;

    #[test]
    fn keeps_inputs_and_what_results_need() {
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::new(DType::F32, [2usize]));
        g.input("unused", TensorType::new(DType::F32, [2usize]));
        g.constant("lost", Tensor::scalar(1f32));
        let y = g.op("kept", Unary { kind: UnaryKind::Relu }, [x]).unwrap();
        g.op("dead", Unary { kind: UnaryKind::Neg }, [y]).unwrap();
        g.output("y", y);
        let mut report = Report::default();
        eliminate_dead_code(&mut g, &mut report).unwrap();
        verify(&g).unwrap();
        assert_eq!((g.inputs().len(), g.nodes().count(), g.values().count()), (2, 1, 3));
        assert_eq!(report.fired.len(), 1);
        assert_eq!(
            (report.fired[0].node.as_str(), report.fired[0].detail.as_str()),
            ("dead", "Neg is not used")
        );
    }
}
