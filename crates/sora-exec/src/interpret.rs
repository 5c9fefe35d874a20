//! Runs a whole graph on the reference evaluator.

use std::time::Instant;

use sora_ir::{Graph, NodeId};
use sora_tensor::Tensor;

use crate::{ExecError, StepInfo};

/// A graph and its nodes in order of evaluation.
pub(crate) struct Interpreter {
    graph: Graph,
    order: Vec<NodeId>,
}

impl Interpreter {
    pub(crate) fn new(graph: Graph) -> Result<Self, ExecError> {
        let order = graph.order()?;
        Ok(Interpreter { graph, order })
    }

    /// One step per node.
    pub(crate) fn steps(&self) -> Vec<StepInfo> {
        let nodes = self.order.iter().filter_map(|&id| self.graph.node(id));
        nodes.map(|node| StepInfo::of(&self.graph, node, &format!("reference:{}", node.op.label()))).collect()
    }

    /// Evaluates the graph; `times`, one slot per step, receives nanoseconds.
    pub(crate) fn run(
        &self,
        inputs: &[(&str, &Tensor)],
        mut times: Option<&mut [u64]>,
    ) -> Result<Vec<Tensor>, ExecError> {
        let mut last = Instant::now();
        let mut step = 0;
        let outputs = sora_ir::evaluate_with(&self.graph, inputs, |value, _| {
            let Some(times) = times.as_deref_mut() else { return };
            // A node reports each of its outputs; the first report carries its time.
            if self.graph.producer(value).is_some_and(|(_, _, slot)| slot == 0) {
                if let Some(time) = times.get_mut(step) {
                    *time = u64::try_from(last.elapsed().as_nanos()).unwrap_or(u64::MAX);
                }
                step += 1;
                last = Instant::now();
            }
        })?;
        Ok(outputs)
    }
}
