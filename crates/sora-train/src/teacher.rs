//! Learning from the predictions of a trained network.

use std::fmt;

use sora_data::Batch;
use sora_exec::{Options, Session};
use sora_ir::ops::{Op, Softmax};
use sora_ir::{Graph, Mismatch};
use sora_tensor::Tensor;

use crate::TrainError;
use crate::features::Feature;
use crate::operands::{borrowed, inputs};

/// A trained network whose probabilities of classes another one learns to give. Source: Hinton et al. 2015, at temperature 1, where
/// the mean of both cross-entropies is that of the mean of both targets.
pub struct Teacher {
    /// Its first output are probabilities of classes, the others the features.
    pub(crate) graph: Graph,
    pub(crate) session: Session,
    share: f64,
    pub(crate) features: Vec<Feature>,
}

impl Teacher {
    /// The first output of `graph`, probabilities or logits of classes, makes up `share` of what is learnt; the rest are labels.
    ///
    /// # Errors
    /// [`TrainError::Network`] for a network that does not tell classes, [`TrainError::Exec`] when it cannot be compiled.
    pub fn new(mut graph: Graph, share: f64, options: Options) -> Result<Self, TrainError> {
        let no_classes =
            || TrainError::Network("a teacher tells classes: its first output is [N, classes]".to_owned());
        let output = graph.outputs().first().cloned().ok_or_else(no_classes)?;
        if graph.ty(output.value).rank() != 2
            || graph.ty(output.value).shape[1].known().is_some_and(|c| c < 2)
        {
            return Err(no_classes());
        }
        let is_probability = |node: &sora_ir::Node| matches!(&node.op, Op::Softmax(op) if !op.log);
        if !graph.producer(output.value).is_some_and(|(_, node, _)| is_probability(node)) {
            let name = graph.fresh_name("teacher/softmax");
            let softmax = graph.op(&name, Softmax { axis: -1, log: false }, [output.value]);
            let value = softmax.map_err(|e| TrainError::Network(e.to_string()))?;
            let mut outputs = graph.outputs().to_vec();
            outputs[0].value = value;
            graph.set_outputs(outputs);
        }
        let session = Session::new(graph.clone(), options)?;
        Ok(Teacher { graph, session, share, features: Vec::new() })
    }

    /// Gives the samples of a batch the targets that they are compared with: [`Batch::mixed`], and features in [`Batch::targets`].
    ///
    /// # Errors
    /// [`TrainError::Exec`] when the batch does not fit the network.
    pub(crate) fn teach(&self, batch: &mut Batch) -> Result<(), TrainError> {
        let outputs = self.session.run(&borrowed(&inputs(&self.graph, batch)))?;
        let mut outputs = outputs.into_iter();
        let Some((_, taught)) = outputs.next() else { return Ok(()) };
        if !self.features.is_empty() {
            batch.targets.extend(outputs);
        }
        let classes = taught.shape().get(1).copied().unwrap_or(0).max(1);
        let mut targets = taught.to_f32s();
        let truth = match (&batch.mixed, batch.labels.len() == batch.len) {
            (Some(mixed), _) => Some(mixed.to_f32s()),
            (None, true) => {
                let mut rows = vec![0f32; targets.len()];
                for (row, &label) in rows.chunks_mut(classes).zip(&batch.labels) {
                    let class = row.get_mut(label).ok_or(TrainError::Class { label, classes })?;
                    *class = 1.0;
                }
                Some(rows)
            }
            (None, false) => None,
        };
        if let Some(truth) = truth {
            let share = self.share as f32;
            targets
                .iter_mut()
                .zip(truth)
                .for_each(|(taught, truth)| *taught = share * *taught + (1.0 - share) * truth);
        }
        batch.mixed = Some(Tensor::from_slice(taught.shape(), &targets).map_err(Mismatch::from)?);
        Ok(())
    }
}

impl fmt::Debug for Teacher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Teacher").field("graph", &self.graph.name).field("share", &self.share).finish()
    }
}
