//! The loop: quantize everything, and give precision back where the data says that it is needed.

use std::collections::BTreeSet;

use serde::Serialize;
use sora_data::paired_drop;
use sora_exec::{Options as ExecOptions, Session};
use sora_ir::Graph;

use crate::explain::Reason;
use crate::feed::{Fed, Feed};
use crate::journal::Journal;
use crate::ladder::{Bases, RUNGS, Rounding};
use crate::layers::Network;
use crate::measure::{self, Latency, LayerProfile, Noise};
use crate::method::{self, Cx};
use crate::placement::{Placement, Plan};
use crate::robust::{Judge, counting};
use crate::tutor::Tutor;
use crate::weights::BITS;
use crate::{CompressError, Options, Prefer, Progress};

/// One thing that the search did.
#[derive(Clone, Debug, Serialize)]
pub struct SearchStep {
    /// `reduce`, `quantize`, `ladder`, `train`, `accuracy`, `latency` or `size`; `recipe` where there was no search.
    pub stage: &'static str,
    /// What was done, in words.
    pub what: String,
    /// The layers that were given back.
    pub layers: Vec<String>,
    /// The drop of the metric afterwards on the samples for decisions, as a fraction.
    pub drop: f64,
}

/// A quantized network with what it costs.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) plan: Plan,
    pub(crate) placement: Placement,
    pub(crate) graph: Graph,
    /// Drop of the metric on the samples for decisions; with a budget for corrupted ones, the drop that counts.
    pub(crate) drop: f64,
    /// The drop and its standard error.
    pub(crate) likely: f64,
    /// Whether it was trained behind its roundings, so that the plan alone does not tell its weights.
    pub(crate) trained: bool,
}

/// What the search works with.
pub(crate) struct Search<'a> {
    pub(crate) network: &'a Network,
    /// The same network as rungs of the ladder rewrite it.
    pub(crate) bases: &'a Bases<'a>,
    pub(crate) feed: &'a Feed,
    pub(crate) options: &'a Options,
    pub(crate) exec: &'a ExecOptions,
    pub(crate) progress: &'a dyn Progress,
    /// Keeps the times that decisions are made by, if there is one.
    pub(crate) journal: Option<&'a Journal>,
    /// Who trains, where there are samples for it.
    pub(crate) tutor: Option<&'a Tutor<'a>>,
    /// Class of every sample.
    pub(crate) labels: &'a [usize],
    /// Samples for decisions.
    pub(crate) decision: &'a [usize],
    /// Whether the original network is right on each of them.
    pub(crate) before: &'a [bool],
    /// Judges corrupted samples, too, where they have a budget.
    pub(crate) judge: Option<&'a Judge<'a>>,
    /// Samples on which layer outputs are compared.
    pub(crate) probes: &'a [usize],
    /// The network before it is quantized, and one batch to time.
    pub(crate) reference: &'a Session,
    /// The network before anything was taken from it.
    pub(crate) original: &'a Session,
    pub(crate) sample: &'a Fed,
}

/// Suspects whose precision is given back on trial, one at a time.
const TRIALS: usize = 3;

/// Most samples of a trial; what is accepted is measured on all.
const TRIAL_SAMPLES: usize = 2048;

/// Rounds after which several layers are given back at once: a network that needs more will need many.
const SINGLE_ROUNDS: usize = 8;

/// The fewest bits of a weight that are tried.
pub(crate) const LEAST_BITS: u32 = 3;

/// An 8-bit layer is slower when it exceeds its time before by this part, and by this many ms: either row suffices,
/// as less time is needed to tell a gross difference from noise.
pub(crate) const SLOWER: [(f64, f64); 2] = [(0.05, 0.002), (1.0, 0.0005)];

impl Search<'_> {
    /// The network quantized under `plan`, measured on all samples for decisions.
    pub(crate) fn candidate(&self, plan: Plan) -> Result<Candidate, CompressError> {
        let (placement, graph) = self.quantized(&plan)?;
        self.judged(plan, placement, graph)
    }

    /// A network quantized under `plan`, measured on all samples for decisions.
    pub(crate) fn judged(
        &self,
        plan: Plan,
        placement: Placement,
        graph: Graph,
    ) -> Result<Candidate, CompressError> {
        let [drop, likely] = self.drop(&graph, self.decision, self.before)?;
        Ok(Candidate { plan, placement, graph, drop, likely, trained: false })
    }

    /// At most so many samples for decisions, evenly taken, and whether the original network is right on each.
    pub(crate) fn some(&self, most: usize) -> (Vec<usize>, Vec<bool>) {
        let stride = self.decision.len().div_ceil(most).max(1);
        let samples = self.decision.iter().copied().step_by(stride).collect();
        (samples, self.before.iter().copied().step_by(stride).collect())
    }

    /// The layers with weights that have an 8-bit form.
    pub(crate) fn quantizable(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.network.layers.len()).filter(|&layer| self.network.layers[layer].has_weights())
    }

    /// Those of them whose weights are in 8 bits.
    pub(crate) fn weights_in_bytes<'s>(
        &'s self,
        placement: &'s Placement,
    ) -> impl Iterator<Item = usize> + 's {
        self.quantizable().filter(|&layer| placement.stores_bytes(layer))
    }

    /// The drop that counts, alone and with its standard error.
    fn drop(&self, graph: &Graph, samples: &[usize], before: &[bool]) -> Result<[f64; 2], CompressError> {
        let session = Session::new(graph.clone(), self.exec.clone())?;
        let batch = self.options.batch;
        let after = measure::score(&session, self.feed, samples, self.labels, batch, self.progress)?;
        let drop = paired_drop(before, &after.correct)?;
        counting(self.judge, &drop, self.options.max_drop, &session, self.progress)
    }

    pub(crate) fn quantized(&self, plan: &Plan) -> Result<(Placement, Graph), CompressError> {
        let base = self.bases.of(plan)?;
        let placement = Placement::new(&base.network, plan, &base.ranges);
        let rungs: Vec<usize> = plan.rungs.iter().copied().filter(|&rung| RUNGS[rung].rounds()).collect();
        let rounding = match rungs.is_empty() {
            true => None,
            false => Some(Rounding::new(base.grams(&self.bases.calibration)?, &rungs, Some(&base.chosen))),
        };
        let (network, observations) = (&base.network, &base.observations);
        let graph =
            method::apply(&Cx { network, placement: &placement, observations, rounding: rounding.as_ref() })?;
        Ok((placement, graph))
    }

    /// Gives precision back until the drop is within the budget. Returns the last candidate, which may hold
    /// nothing in 8 bits any more, and the one of least drop that does.
    pub(crate) fn fit_accuracy(
        &self,
        mut current: Candidate,
        steps: &mut Vec<SearchStep>,
    ) -> Result<(Candidate, Candidate), CompressError> {
        let mut nearest = current.clone();
        let mut rounds = 0;
        while current.drop > self.options.max_drop {
            let suspects = self.suspects(&current)?;
            if suspects.is_empty() {
                break;
            }
            let (layers, regained) = match rounds < SINGLE_ROUNDS {
                true => self.try_suspects(&current, &suspects)?,
                false => (suspects[..suspects.len().div_ceil(4)].to_vec(), None),
            };
            let mut plan = current.plan.clone();
            for &layer in &layers {
                let regained = regained.unwrap_or(0.0);
                plan = plan.relieving(self.network, layer, Reason::CostsAccuracy { regained });
            }
            let next = self.candidate(plan)?;
            let won = current.drop - next.drop;
            let mut next = next;
            for layer in &layers {
                let Plan { kept, weights_only, .. } = &mut next.plan;
                if let Some(reason) = kept.get_mut(layer).or(weights_only.get_mut(layer)) {
                    *reason = Reason::CostsAccuracy { regained: won };
                }
            }
            let names = self.names(&layers);
            let what = format!(
                "the drop of {:.2} points exceeds the budget of {:.2}: made {} more exact, {:.2} points remain",
                100.0 * current.drop,
                100.0 * self.options.max_drop,
                quoted(&names),
                100.0 * next.drop
            );
            steps.push(SearchStep { stage: "accuracy", what, layers: names, drop: next.drop });
            current = next;
            rounds += 1;
            if !current.placement.is_empty() && current.drop < nearest.drop {
                nearest = current.clone();
            }
        }
        if current.drop <= self.options.max_drop && !current.placement.is_empty() {
            nearest = current.clone();
        }
        Ok((current, nearest))
    }

    /// The 8-bit layers with weights, those that add most noise first: the error of a layer's output less the
    /// greatest error among its inputs, each relative to its signal.
    fn suspects(&self, candidate: &Candidate) -> Result<Vec<usize>, CompressError> {
        let noise = self.noise(candidate)?;
        let at = |v: &sora_ir::ValueId| noise.get(v).copied().unwrap_or(0.0);
        let added = |index: usize| {
            let layer = &self.network.layers[index];
            let inherited = layer.reads.iter().map(at).fold(0.0, f64::max);
            layer.outputs.iter().map(at).fold(0.0, f64::max) - inherited
        };
        let int8 = self.weights_in_bytes(&candidate.placement);
        let mut suspects: Vec<(usize, f64)> = int8.map(|i| (i, added(i))).collect();
        suspects.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        Ok(suspects.into_iter().map(|(i, _)| i).collect())
    }

    /// Measures the metric with each of the first suspects given back. The best of them; all of them when none
    /// alone helps.
    fn try_suspects(
        &self,
        current: &Candidate,
        suspects: &[usize],
    ) -> Result<(Vec<usize>, Option<f64>), CompressError> {
        let (samples, before) = self.some(TRIAL_SAMPLES);
        let start = match samples.len() == self.decision.len() {
            true => current.drop,
            false => self.drop(&current.graph, &samples, &before)?[0],
        };
        let tried = &suspects[..suspects.len().min(TRIALS)];
        let mut best: Option<(usize, f64)> = None;
        for &layer in tried {
            let reason = Reason::CostsAccuracy { regained: 0.0 };
            let (_, graph) = self.quantized(&current.plan.relieving(self.network, layer, reason))?;
            let [drop, _] = self.drop(&graph, &samples, &before)?;
            if drop < start && best.is_none_or(|(_, least)| drop < least) {
                best = Some((layer, drop));
            }
        }
        Ok(match best {
            Some((layer, drop)) => (vec![layer], Some(start - drop)),
            None => (tried.to_vec(), None),
        })
    }

    /// Lets every layer that measures slower than before compute in single precision again; its weights stay in 8 bits. With
    /// [`Prefer::Size`] that is all, and tables stay as they are; else the network on the way stays that is fastest as a whole, since
    /// layers that are timed one by one do not show what they cost together.
    pub(crate) fn fit_latency(
        &self,
        mut current: Candidate,
        steps: &mut Vec<SearchStep>,
    ) -> Result<Candidate, CompressError> {
        let by_size = self.options.prefer == Prefer::Size;
        let mut fastest: Option<(f64, Candidate)> = None;
        // Where nothing runs in 8 bits any more, the network is as fast as it was.
        let mut whole = 1.0;
        // Each round gives back at least one layer.
        for _ in 0..=self.network.layers.len() {
            let mut layers = 0..self.network.layers.len();
            if !layers.any(|layer| current.placement.runs_bytes(self.network, layer)) {
                whole = 1.0;
                break;
            }
            let session = Session::new(current.graph.clone(), self.exec.clone())?;
            if !by_size {
                let ratio = || self.latency(&current.placement, &session);
                whole = Journal::measured(self.journal, &current.graph, "latency", ratio)?;
                let fits = current.drop <= self.options.max_drop;
                if fits && fastest.as_ref().is_none_or(|(least, _)| whole < *least) {
                    fastest = Some((whole, current.clone()));
                }
            }
            let profile = self.deciding_profile(&current.placement, &current.graph, &session)?;
            let mut slower = self.slower(&current, &profile);
            let mut what = "measured slower in int8 than in f32";
            if by_size {
                slower.retain(|(layer, _)| !self.network.layers[*layer].is_table());
            } else if slower.is_empty() {
                slower = self.least_gaining_if_all_is_slower(&current, &profile, whole);
                what = "no layer alone was slower in int8, but the network was";
            }
            if slower.is_empty() {
                break;
            }
            let mut plan = current.plan.clone();
            let layers: Vec<usize> = slower.iter().map(|s| s.0).collect();
            for (layer, reason) in slower {
                plan = plan.without_kernel(self.network, layer, reason);
            }
            current = self.candidate(plan)?;
            let names = self.names(&layers);
            let what = format!("{what}: {} in f32 again, but for stored weights", quoted(&names));
            steps.push(SearchStep { stage: "latency", what, layers: names, drop: current.drop });
        }
        let faster = fastest.filter(|(least, _)| least * (1.0 + SLOWER[0].0) < whole);
        let Some((least, candidate)) = faster else { return Ok(current) };
        let again = |&layer: &usize| {
            let in_bytes = |of: &Candidate| of.placement.in_bytes(layer);
            self.network.layers[layer].has_weights() && in_bytes(&candidate) && !in_bytes(&current)
        };
        let again: Vec<usize> = (0..self.network.layers.len()).filter(again).collect();
        let layers = self.names(&again);
        let what = format!(
            "as a whole the network took {least:.2} of its time before with {} in int8, {whole:.2} without: took them again",
            quoted(&layers)
        );
        steps.push(SearchStep { stage: "latency", what, layers, drop: candidate.drop });
        Ok(candidate)
    }

    /// Takes bits from the levels of all quantized weights, as long as the drop and its standard error are within the budget. Where
    /// the nearest levels lose too much, rungs that choose better ones are climbed, and then the network is trained, if it may be.
    pub(crate) fn coarsen(
        &self,
        mut current: Candidate,
        steps: &mut Vec<SearchStep>,
    ) -> Result<Candidate, CompressError> {
        if current.placement.is_empty() {
            return Ok(current);
        }
        for bits in (LEAST_BITS..BITS).rev() {
            let mut plan = current.plan.clone();
            plan.bits = self.weights_in_bytes(&current.placement).map(|layer| (layer, bits)).collect();
            let left = |rung: &usize| RUNGS[*rung].rounds() && !plan.rungs.contains(rung);
            let left: Vec<usize> = (0..RUNGS.len()).filter(left).collect();
            let mut best: Option<Candidate> = None;
            for rung in std::iter::once(None).chain(left.into_iter().map(Some)) {
                plan.rungs.extend(rung);
                let next = self.candidate(plan.clone())?;
                let fits = next.likely <= self.options.max_drop;
                let verdict = verdict(fits);
                let by = rung.map_or(String::new(), |rung| format!(" by {}", RUNGS[rung].name));
                let drop = 100.0 * next.drop;
                let what = format!(
                    "weights of {bits} bits in the file{by}: the drop is {drop:.2} points, {verdict}"
                );
                steps.push(SearchStep { stage: "size", what, layers: Vec::new(), drop: next.drop });
                if best.as_ref().is_none_or(|best| next.likely < best.likely) {
                    best = Some(next);
                }
                if fits {
                    break;
                }
            }
            let Some(mut next) = best else { break };
            if let (true, Some(tutor)) = (next.likely > self.options.max_drop, self.tutor)
                && let Some(trained) = self.try_trained(&next, tutor, steps)?
            {
                next = trained;
            }
            if next.likely > self.options.max_drop {
                break;
            }
            current = next;
        }
        Ok(current)
    }

    /// The time of a network as a share of the original's.
    fn latency(&self, placement: &Placement, session: &Session) -> Result<f64, CompressError> {
        if let Some(table) = &self.options.table {
            let [before, after] = table.sums(self.network, placement, self.sample)?;
            return Ok(after / before.max(1e-9));
        }
        let [before, after] = measure::latencies([self.reference, session], self.sample, self.progress)?;
        Ok(after.median_ms / before.median_ms.max(1e-6))
    }

    /// The time of one run of the original, optimized, and of a network, in ms; a table has no percentiles.
    pub(crate) fn latencies(
        &self,
        placement: &Placement,
        session: &Session,
    ) -> Result<[Latency; 2], CompressError> {
        match &self.options.table {
            Some(table) => {
                let sums = table.sums(self.network, placement, self.sample)?;
                Ok(sums.map(|ms| Latency { median_ms: ms, p90_ms: ms }))
            }
            None => measure::latencies([self.original, session], self.sample, self.progress),
        }
    }

    /// The 8-bit layers that take longer than before beyond noise. A floating-point layer that got slower because
    /// it now rounds what it stores is counted against the layer that wants it rounded.
    fn slower(&self, candidate: &Candidate, profile: &LayerProfile) -> Vec<(usize, Reason)> {
        let Candidate { placement, .. } = candidate;
        let mut excess = profile.excess.clone();
        for &value in placement.choices.keys() {
            let producer = self.network.producer(value).filter(|&i| !placement.int8[i]);
            if let (Some(producer), Some(owner)) = (producer, placement.owner(self.network, value)) {
                excess[owner] += profile.excess[producer].max(0.0);
            }
        }
        let reason = |index: usize| {
            let before = profile.times[index].before?;
            let slower = SLOWER.iter().any(|&(part, ms)| excess[index] > part * before && excess[index] > ms);
            let ratio = 1.0 + excess[index] / before.max(1e-6);
            slower.then_some((index, Reason::NotFaster { ratio }))
        };
        let int8 = (0..self.network.layers.len()).filter(|&i| placement.runs_bytes(self.network, i));
        int8.filter_map(reason).collect()
    }

    /// When no layer alone is slower but the network is: the third of its 8-bit layers with weights that gain
    /// least.
    fn least_gaining_if_all_is_slower(
        &self,
        candidate: &Candidate,
        profile: &LayerProfile,
        whole: f64,
    ) -> Vec<(usize, Reason)> {
        if whole <= 1.0 + SLOWER[0].0 {
            return Vec::new();
        }
        let gain = |i: usize| {
            let times = profile.times[i];
            times.before.unwrap_or(0.0) - times.after.unwrap_or(0.0)
        };
        let linear = self.quantizable().filter(|&i| candidate.placement.runs_bytes(self.network, i));
        let mut linear: Vec<usize> = linear.collect();
        linear.sort_by(|&a, &b| gain(a).total_cmp(&gain(b)));
        linear.truncate(linear.len().div_ceil(3));
        linear.into_iter().map(|i| (i, Reason::NetworkNotFaster { ratio: whole })).collect()
    }

    /// The times of a network's layers, as decisions see them: once the journal knows them, they stay.
    pub(crate) fn deciding_profile(
        &self,
        placement: &Placement,
        graph: &Graph,
        session: &Session,
    ) -> Result<LayerProfile, CompressError> {
        Journal::measured(self.journal, graph, "layers", || self.profile(placement, session))
    }

    /// As [`Search::latencies`], as decisions see them.
    pub(crate) fn deciding_latencies(
        &self,
        placement: &Placement,
        graph: &Graph,
        session: &Session,
    ) -> Result<[Latency; 2], CompressError> {
        Journal::measured(self.journal, graph, "latencies", || self.latencies(placement, session))
    }

    /// The times of all layers, before and in this network.
    pub(crate) fn profile(
        &self,
        placement: &Placement,
        session: &Session,
    ) -> Result<LayerProfile, CompressError> {
        if let Some(table) = &self.options.table {
            return table.profile(self.network, placement, self.sample);
        }
        let sessions = [self.reference, session];
        measure::profile(self.network, placement, sessions, self.sample, self.progress)
    }

    /// The error of each layer's output, against the network in single precision that the candidate was made of.
    pub(crate) fn noise(&self, candidate: &Candidate) -> Result<Noise, CompressError> {
        let Candidate { placement, graph, .. } = candidate;
        let base = self.bases.of(&candidate.plan)?;
        measure::noise(&base.network, placement, graph, self.feed, self.probes, self.exec, self.progress)
    }

    pub(crate) fn names(&self, layers: &[usize]) -> Vec<String> {
        let unique: BTreeSet<usize> = layers.iter().copied().collect();
        unique.into_iter().map(|i| self.network.layers[i].name.clone()).collect()
    }
}

/// Whether a drop is within the budget, in words.
pub(crate) fn verdict(fits: bool) -> &'static str {
    if fits { "within the budget" } else { "too much" }
}

/// Names in a sentence.
pub(crate) fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
