//! Running the network built so far on its random samples.

use std::collections::BTreeSet;

use sora_exec::{ExecError, Options, Session};
use sora_ir::{Graph, TensorType, ValueId};
use sora_tensor::Tensor;

use super::{LayerError, Network};

impl Network {
    /// The value of `x` on the samples of the inputs. It is kept, so that the next call computes only what lies
    /// between.
    pub(super) fn observe(&mut self, x: ValueId) -> Result<Tensor, LayerError> {
        if let Some(tensor) = self.observed.get(&x) {
            return Ok(tensor.clone());
        }
        let failed = |why: ExecError| LayerError::Run { layer: self.path().to_owned(), why };
        let (graph, known) = self.between(x)?;
        // The instruction set that every machine has: the same seed gives the same statistics everywhere.
        let options = Options { isa: Some(sora_exec::Isa::Portable), ..Options::default() };
        let session = Session::new(graph, options).map_err(failed)?;
        let inputs: Vec<(&str, &Tensor)> =
            known.iter().map(|&id| (self.graph.value(id).name.as_str(), &self.observed[&id])).collect();
        let (_, tensor) = session.run(&inputs).map_err(failed)?.remove(0);
        self.observed.insert(x, tensor.clone());
        Ok(tensor)
    }

    /// The part of the network that computes `x` from values that are known, which are its inputs.
    fn between(&self, x: ValueId) -> Result<(Graph, Vec<ValueId>), LayerError> {
        let (mut needed, mut known, mut constants) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut open = vec![x];
        while let Some(id) = open.pop() {
            if self.observed.contains_key(&id) {
                known.insert(id);
            } else if let Some((node, content, _)) = self.graph.producer(id) {
                if needed.insert(node) {
                    open.extend(content.inputs.iter().flatten());
                }
            } else {
                constants.insert(id);
            }
        }
        let mut part = Graph::new(&self.graph.name);
        let mut map = std::collections::HashMap::new();
        for &id in &known {
            map.insert(id, part.input(&self.graph.value(id).name, TensorType::of(&self.observed[&id])));
        }
        for id in constants {
            if let Some(tensor) = self.graph.const_value(id) {
                map.insert(id, part.constant(&self.graph.value(id).name, tensor.clone()));
            }
        }
        // Nodes were added after what they read, so that the order of their ids is one of execution.
        for node in needed.into_iter().filter_map(|id| self.graph.node(id)) {
            let inputs = node.inputs.iter().map(|input| input.and_then(|id| map.get(&id).copied()));
            let outputs = part.add(&node.name, node.op.clone(), inputs.collect::<Vec<_>>())?;
            map.extend(node.outputs.iter().copied().zip(outputs));
        }
        part.output("x", map[&x]);
        Ok((part, known.into_iter().collect()))
    }
}
