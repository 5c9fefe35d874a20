//! Making a network smaller with training in the loop: it gets narrower, then weights become 0, step by step, as long as what is left
//! can learn what the network did.
//!
//! Sources: iterative pruning, Han et al. 2015; the learning rate begins anew each time, Renda et al. 2020.

use serde::{Deserialize, Serialize};
use sora_data::{Drop, paired_drop};
use sora_exec::{Options as ExecOptions, Session};
use sora_ir::Graph;
use sora_train::{FineTuning, Pruning, PruningScope, Trainable};

use crate::feed::Feed;
use crate::journal::Journal;
use crate::robust::{Judge, counting};
use crate::search::SearchStep;
use crate::tutor::Tutor;
use crate::{CompressError, Options, Prefer, Progress, measure, prune};

/// A step that makes a network smaller, which a training makes up for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Channels, heads and recurrent units are taken out until this share of the multiply-adds that they cost is left.
    Narrow(f64),
    /// Weights of least magnitude become 0 until this share of them is left.
    Sparse(f64),
}

impl Reduction {
    fn words(self) -> String {
        match self {
            Reduction::Narrow(share) => format!("without {} of what channels cost", percent(1.0 - share)),
            Reduction::Sparse(share) => format!("with {} of the weights", percent(share)),
        }
    }
}

/// Steps of one kind: first long ones, then one that is shorter.
struct Ladder {
    /// The step by a factor from where this share of the weights is left.
    step: fn(f64, f64) -> Reduction,
    factors: [f64; 2],
}

/// The ladders in their order: first fewer channels, which makes all that follows faster; then fewer weights.
const LADDERS: [Ladder; 2] = [
    Ladder { step: |_, factor| Reduction::Narrow(factor), factors: [0.7, 0.85] },
    Ladder { step: |density, factor| Reduction::Sparse(density * factor), factors: [0.5, 0.7] },
];

/// Where nothing goes of what channels cost, a step leaves less of it, down to a share below this one.
const LEAST_NARROW: f64 = 0.3;

/// The least share of weights that is tried, and of the units of each group.
const LEAST: f64 = 1.0 / 512.0;
const LEAST_UNITS: f64 = 0.125;

/// The time of a narrower network, as a share of that before, below which it is worth its loss.
const FASTER: f64 = 0.98;

/// Samples by which units are judged and made up for: a dense layer sees one position of each.
const OBSERVED: usize = 2048;

/// The share of all steps behind which a training prunes no more.
const PRUNED_BY: f64 = 0.4;

/// A network on the way.
struct Reduced {
    graph: Graph,
    /// The share of its weights that are not 0 by pruning.
    density: f64,
}

/// How far a network may be reduced, and who says so.
pub(crate) struct Reducing<'a> {
    pub(crate) tutor: &'a Tutor<'a>,
    pub(crate) feed: &'a Feed,
    pub(crate) options: &'a Options,
    pub(crate) exec: &'a ExecOptions,
    pub(crate) progress: &'a dyn Progress,
    /// Class of every sample.
    pub(crate) labels: &'a [usize],
    /// Samples for decisions.
    pub(crate) decision: &'a [usize],
    /// Whether the original network is right on each of them.
    pub(crate) before: &'a [bool],
    /// Judges corrupted samples, too, where they have a budget.
    pub(crate) judge: Option<&'a Judge<'a>>,
}

impl Reducing<'_> {
    /// The smallest network on the way down the ladders whose drop and its standard error are within the budget, and the steps to it.
    /// Where size is preferred, no channels are taken out: the same loss of accuracy lets more single weights go.
    pub(crate) fn search(
        &self,
        original: &Graph,
        steps: &mut Vec<SearchStep>,
    ) -> Result<(Graph, Vec<Reduction>), CompressError> {
        let (mut found, mut taken) = (Reduced { graph: original.clone(), density: 1.0 }, Vec::new());
        let skipped = usize::from(self.options.prefer == Prefer::Size);
        for Ladder { step, factors: [long, short] } in &LADDERS[skipped..] {
            let mut attempt = |mut factor: f64, least: f64| -> Result<bool, CompressError> {
                let mut reduction = step(found.density, factor);
                let mut smaller = self.apply(&found, reduction)?;
                // Where a vector of channels is more than what is to go, more may be one.
                while smaller.is_none() && matches!(reduction, Reduction::Narrow(share) if share > least) {
                    factor *= factor;
                    reduction = step(found.density, factor);
                    smaller = self.apply(&found, reduction)?;
                }
                let Some(smaller) = smaller else {
                    steps.extend(self.why_not(&found.graph, reduction)?);
                    return Ok(false);
                };
                let (fits, judged) = self.judge(&found, &smaller, reduction)?;
                steps.push(judged);
                if fits {
                    found = smaller;
                    taken.push(reduction);
                }
                Ok(fits)
            };
            while attempt(*long, LEAST_NARROW)? {}
            attempt(*short, *short)?;
        }
        Ok((found.graph, taken))
    }

    /// The network after these steps.
    pub(crate) fn follow(&self, original: &Graph, reductions: &[Reduction]) -> Result<Graph, CompressError> {
        let mut found = Reduced { graph: original.clone(), density: 1.0 };
        for &reduction in reductions {
            let (Reduction::Narrow(share) | Reduction::Sparse(share)) = reduction;
            let most = if matches!(reduction, Reduction::Sparse(_)) { found.density } else { 1.0 };
            if !(share > 0.0 && share <= most) {
                let what = format!("a recipe cannot leave the share {share} where there is {most}");
                return Err(CompressError::Option { what });
            }
            if let Some(smaller) = self.apply(&found, reduction)? {
                found = smaller;
            }
        }
        Ok(found.graph)
    }

    /// The network after a step and a training; `None` when there is nothing left to take.
    fn apply(&self, from: &Reduced, reduction: Reduction) -> Result<Option<Reduced>, CompressError> {
        let stage = format!("Training {}", reduction.words());
        match reduction {
            Reduction::Narrow(share) => {
                let Some(narrower) = self.narrower(&from.graph, share)? else { return Ok(None) };
                let graph = self.train(&narrower, [from.density; 2], &stage)?;
                Ok(Some(Reduced { graph, density: from.density }))
            }
            Reduction::Sparse(share) if share < LEAST => Ok(None),
            Reduction::Sparse(share) => {
                let graph = self.train(&from.graph, [from.density, share], &stage)?;
                Ok(Some(Reduced { graph, density: share }))
            }
        }
    }

    /// The network without the units that matter least for what they cost; `None` where none may go.
    fn narrower(&self, graph: &Graph, share: f64) -> Result<Option<Graph>, CompressError> {
        let Tutor { training, preprocess, .. } = self.tutor;
        let data = &training.data;
        let stride = (data.len() / OBSERVED).max(1);
        let samples: Vec<usize> = (0..data.len()).step_by(stride).take(OBSERVED).collect();
        let groups = prune::groups(graph)?;
        let seen = prune::observe(graph, &groups, (data, preprocess), &samples, self.exec, self.progress)?;
        let scores = prune::importance(graph, &groups, Some(&seen));
        let keep = prune::by_saving(&groups, &scores, 1.0 - share, LEAST_UNITS, prune::LANES);
        if keep.iter().flatten().all(|&keep| keep) {
            return Ok(None);
        }
        let (choice, data) = ((&groups, &keep[..]), (data, *preprocess));
        prune::without(graph, choice, &seen, data, &samples, self.exec, self.progress).map(Some)
    }

    /// Why no channel can be taken out of a network, where that is so: the first layers of which nothing may go.
    fn why_not(&self, graph: &Graph, reduction: Reduction) -> Result<Option<SearchStep>, CompressError> {
        let Reduction::Narrow(_) = reduction else { return Ok(None) };
        let groups = prune::groups(graph)?;
        let why = |forbidden: &prune::Forbidden| format!("`{}`: {}", forbidden.layer, forbidden.why);
        let reasons: Vec<String> = groups.forbidden.iter().take(3).map(why).collect();
        let whole = groups.groups.is_empty() && !reasons.is_empty();
        let what = format!("no channel can be taken out: {}", reasons.join("; "));
        let layers = groups.forbidden.into_iter().map(|forbidden| forbidden.layer).collect();
        Ok(whole.then_some(SearchStep { stage: "reduce", what, layers, drop: 0.0 }))
    }

    /// Whether a network may take the place of the one before, with what to say about it.
    fn judge(
        &self,
        before: &Reduced,
        after: &Reduced,
        reduction: Reduction,
    ) -> Result<(bool, SearchStep), CompressError> {
        let session = Session::new(after.graph.clone(), self.exec.clone())?;
        let (samples, batch) = (self.decision, self.options.batch);
        self.progress.stage("Measuring the smaller network", Some(samples.len() as u64));
        let score = measure::score(&session, self.feed, samples, self.labels, batch, self.progress)?;
        let drop: Drop = paired_drop(self.before, &score.correct)?;
        let [drop, likely] = counting(self.judge, &drop, self.options.max_drop, &session, self.progress)?;
        // A network that was trained again errs elsewhere, so its drop is known less well than that of a quantized one.
        let within = likely <= self.options.max_drop;
        let (mut fits, mut verdict) = (within, if within { "which is kept" } else { "too much" }.to_owned());
        if let (true, Reduction::Narrow(_)) = (within, reduction) {
            let ratio = || self.ratio(&before.graph, &session);
            let ratio = Journal::measured(self.tutor.journal, &after.graph, "ratio", ratio)?;
            fits = ratio < FASTER;
            verdict = format!("{verdict}; it takes {ratio:.2} of the time");
            if !fits {
                verdict = format!("but it takes {ratio:.2} of the time: not worth it");
            }
        }
        let what =
            format!("trained {}: the drop is {:.2} points, {verdict}", reduction.words(), 100.0 * drop);
        Ok((fits, SearchStep { stage: "reduce", what, layers: Vec::new(), drop }))
    }

    /// The time of a session as a share of that of a graph.
    fn ratio(&self, before: &Graph, after: &Session) -> Result<f64, CompressError> {
        let before = Session::new(before.clone(), self.exec.clone())?;
        let sample = self.feed.batches(self.decision.get(..1).unwrap_or_default(), 1).next().transpose()?;
        let Some(sample) = sample else { return Ok(1.0) };
        let [before, after] = measure::latencies([&before, after], &sample, self.progress)?;
        Ok(after.median_ms / before.median_ms.max(1e-6))
    }

    /// The network after a training on the way from one share of weights to another.
    fn train(&self, graph: &Graph, [from, to]: [f64; 2], stage: &str) -> Result<Graph, CompressError> {
        let seed = self.tutor.seed;
        let tuning =
            FineTuning { freeze: Vec::new(), rate: 1.0, batch_statistics: false, classes: None, seed };
        let network = Trainable::imported(graph.clone(), &tuning)?;
        let pruning = Pruning {
            sparsity: 1.0 - to,
            initial: 1.0 - from,
            begin: 0.0,
            end: PRUNED_BY,
            every: 1,
            scope: PruningScope::Lamp,
            regrow: 0.0,
        };
        self.tutor.teach(network, (to < 1.0).then_some(pruning), stage)
    }
}

/// A share in words.
fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use sora_data::Preprocess;

    use crate::testing::{Net, Silent};
    use crate::tests::{SHAPE, dataset, with_classifier};
    use crate::{Options, Training, compress};

    /// Of 16 units, 8 are the fewest that go, and more than what a step is to take.
    #[test]
    fn where_a_vector_of_channels_is_too_much_a_greater_step_is_tried() {
        let (mut net, x) = Net::new(71, &SHAPE);
        let flat = net.flatten("flat", x, 192);
        let hidden = net.dense("hidden", flat, 16);
        let hidden = net.relu("relu", hidden);
        let graph = with_classifier(net, hidden, 16);
        let data = dataset(600, 1.0, true);
        let training = Some(Training::new(data.clone(), 1, 64, 1e-3));
        let options = Options { max_drop: 1.0, training, ..Options::default() };
        let outcome = compress(&graph, &data, &Preprocess::default(), &options, &Silent).unwrap();
        let narrower: Vec<&str> =
            outcome.steps.iter().map(|step| &step.what[..]).filter(|what| what.contains("cost")).collect();
        assert!(narrower.iter().any(|what| what.contains("without 51")), "{:?}", outcome.steps);
    }
}
