//! The last rung of the ladder: the quantized network itself learns what the original did, integers and scales and all.
//!
//! Sources: quantization-aware training, Jacob et al. 2018; learnt scales, Esser et al. 2020 (LSQ), both in [`Trainable::quantized`];
//! the original teaches, Mishra & Marr 2018 (Apprentice).

use std::collections::{BTreeSet, HashMap};

use sora_ir::ValueId;
use sora_train::{Levels, Pruning, PruningScope, TrainError, Trainable, with_integers, zeros};

use crate::CompressError;
use crate::quantize::dequantize_name;
use crate::search::{Candidate, Search, SearchStep, verdict};
use crate::tutor::Tutor;

impl Search<'_> {
    /// The candidate after a training behind its roundings; weights that are 0 by pruning stay so.
    pub(crate) fn trained(&self, candidate: &Candidate, tutor: &Tutor) -> Result<Candidate, CompressError> {
        let Candidate { placement, graph, .. } = candidate;
        let network = Trainable::quantized(graph.clone(), &self.known(candidate)?)?;
        let share = zeros(&network);
        let pruning = Pruning {
            sparsity: share,
            initial: share,
            begin: 0.0,
            end: 1.0,
            every: 1,
            scope: PruningScope::Global,
            regrow: 0.0,
        };
        let stage = format!("Training with weights of {} bits", self.bits(candidate));
        let trained = tutor.teach(network, (share > 0.0).then_some(pruning), &stage)?;
        let found = self.judged(candidate.plan.clone(), placement.clone(), with_integers(trained)?)?;
        Ok(Candidate { trained: true, ..found })
    }

    /// As [`Search::trained`], with what to say about it; `None` where the network cannot be trained.
    pub(crate) fn try_trained(
        &self,
        candidate: &Candidate,
        tutor: &Tutor,
        steps: &mut Vec<SearchStep>,
    ) -> Result<Option<Candidate>, CompressError> {
        let bits = self.bits(candidate);
        let say = |what: String, drop: f64| SearchStep { stage: "train", what, layers: Vec::new(), drop };
        match self.trained(candidate, tutor) {
            Ok(trained) => {
                let verdict = verdict(trained.likely <= self.options.max_drop);
                let (before, after) = (100.0 * candidate.drop, 100.0 * trained.drop);
                let what = format!(
                    "trained with weights of {bits} bits and learnt scales: the drop is {after:.2} points instead of \
                     {before:.2}, {verdict}"
                );
                steps.push(say(what, trained.drop));
                Ok(Some(trained))
            }
            Err(CompressError::Train(why @ TrainError::NotDifferentiable { .. })) => {
                steps.push(say(format!("cannot be trained as it is quantized: {why}"), candidate.drop));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The bits of quantized weights, in words.
    fn bits(&self, candidate: &Candidate) -> String {
        let Candidate { placement, .. } = candidate;
        let bits: BTreeSet<u32> =
            self.weights_in_bytes(placement).map(|layer| placement.bits[layer]).collect();
        bits.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
    }

    /// What quantized weights and biases were, by the names of what they are now.
    fn known(&self, candidate: &Candidate) -> Result<HashMap<String, Levels>, CompressError> {
        let base = self.bases.of(&candidate.plan)?;
        let graph = &base.network.graph;
        let layers =
            self.network.layers.iter().enumerate().filter(|(i, _)| candidate.placement.stores_bytes(*i));
        let constants = layers.flat_map(|(index, layer)| {
            let bias = layer.linear().and_then(|linear| linear.bias);
            let bias = bias.and_then(|(node, slot)| graph.node(node)?.inputs.get(slot).copied()?);
            let values = layer.weights().into_iter().map(|(weight, _)| weight).chain(bias);
            values.map(move |value| (value, candidate.placement.bits[index]))
        });
        let named = |(v, bits): (ValueId, u32)| {
            let real = graph.const_value(v)?.clone();
            Some((dequantize_name(&graph.value(v).name), Levels { real: Some(real), bits }))
        };
        Ok(constants.filter_map(named).collect())
    }
}
