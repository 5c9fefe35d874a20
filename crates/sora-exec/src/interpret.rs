//! Runs a graph on the reference evaluator: the whole program when asked for, or when shapes depend on data.

use std::time::Instant;

use sora_ir::{Graph, NodeId};
use sora_tensor::{DType, Tensor};

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
        self.order.iter().filter_map(|&id| self.graph.node(id)).map(|node| self.step(node)).collect()
    }

    fn step(&self, node: &sora_ir::Node) -> StepInfo {
        let types: Vec<_> = node.inputs.iter().map(|i| i.map(|i| self.graph.ty(i))).collect();
        let outputs: Vec<_> = node.outputs.iter().map(|&o| self.graph.ty(o)).collect();
        let bytes = |ty: &&sora_ir::TensorType| Some((ty.known_len()? * ty.dtype.size()) as u64);
        StepInfo {
            name: node.name.clone(),
            kernel: format!("reference:{}", node.op.label()),
            nodes: vec![node.name.clone()],
            shape: outputs.first().and_then(|ty| ty.known_shape()).unwrap_or_default(),
            dtype: outputs.first().map_or(DType::F32, |ty| ty.dtype),
            macs: node.op.macs(&types, &outputs).known().unwrap_or(0) as u64,
            weight_bytes: 0,
            bytes: types.iter().flatten().chain(&outputs).filter_map(bytes).sum(),
            choice: None,
        }
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
