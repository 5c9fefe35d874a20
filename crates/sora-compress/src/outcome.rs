//! The whole job, and what it gives back.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use sora_data::{Dataset, Drop, Interval, Preprocess, Split, SplitOptions, paired_drop, split};
use sora_exec::{Options as ExecOptions, Session};
use sora_ir::{Graph, QuantRule, ValueId};

use crate::bounds::Bounded;
use crate::explain::{self, LayerReport, LayerTimes, Reason};
use crate::feed::Feed;
use crate::journal::Journal;
use crate::ladder::{Bases, Calibration, RUNGS, RungTrial};
use crate::layers::{Network, Role};
use crate::measure::{self, Evaluation, Latency};
use crate::method::METHODS;
use crate::placement::{Placement, Plan};
use crate::recipe::{Recipe, Trainings};
use crate::reduce::{Reducing, Reduction};
use crate::robust::{Grid, Judge, Robustness};
use crate::search::{Candidate, Search, SearchStep, quoted};
use crate::sensitivity::Sensitivity;
use crate::tutor::{Training, Tutor};
use crate::{CompressError, Options, Prefer, Progress, prune};

/// What a network achieves and costs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Part of the report samples that are predicted right; see [`Outcome::metric`].
    pub accuracy: f64,
    /// Wilson interval of the accuracy.
    pub ci95: Interval,
    /// Part of the samples whose label is among the five highest scores; only beyond five classes.
    pub top5: Option<f64>,
    /// Median latency of one run at batch 1, or the network's own batch, in ms.
    pub median_ms: f64,
    /// 90th percentile of the latency, in ms.
    pub p90_ms: f64,
    /// Bytes of all constants.
    pub weight_bytes: usize,
}

/// Numbers of samples in the parts of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SplitSizes {
    /// Samples on which ranges were observed.
    pub calibration: usize,
    /// Samples on which decisions were measured.
    pub decision: usize,
    /// Samples that no decision saw.
    pub report: usize,
}

/// What [`compress`] gives back.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The compressed network: QuantizeLinear and DequantizeLinear around floating-point operators.
    #[serde(skip)]
    pub graph: Graph,
    /// The original network, optimized.
    #[serde(skip)]
    pub baseline: Graph,
    /// Whether the drop is within the budget, both where decisions were made and on the unseen samples; so the drop on corrupted samples, where it has
    /// one.
    pub met: bool,
    /// What accuracy means here: `accuracy` against labels, or `agreement` with the original network where the
    /// data has no labels.
    pub metric: &'static str,
    /// The original network.
    pub before: Measured,
    /// The compressed network.
    pub after: Measured,
    /// How much accuracy was lost on the report samples, with its interval.
    pub drop: Drop,
    /// The drop on the samples for decisions, as a fraction.
    pub decision_drop: f64,
    /// What happened to each layer.
    pub layers: Vec<LayerReport>,
    /// What the search did.
    pub steps: Vec<SearchStep>,
    /// Names of the methods that were applied, in order, and then of the rungs of the ladder.
    pub methods: Vec<&'static str>,
    /// The rungs of the ladder that were tried, and what each did.
    pub rungs: Vec<RungTrial>,
    /// What graph optimization did to both networks before anything else.
    #[serde(skip)]
    pub rewrites: sora_rewrite::Report,
    /// Instruction set that times were taken with.
    #[serde(skip)]
    pub isa: sora_kernels::Isa,
    /// Sizes of the parts of the data.
    pub split: SplitSizes,
    /// Samples for decisions that layers were tried on one by one; 0 where they were not.
    pub tried_samples: usize,
    /// What gives the same result without a search.
    pub recipe: Recipe,
    /// Both networks on corrupted report samples, where [`Options::robust`] asks for it.
    pub robustness: Option<Robustness>,
    /// What the reader should know: why the budget was not met, or why nothing was quantized.
    pub note: Option<String>,
}

/// Samples on which the outputs of layers are compared.
const PROBES: usize = 64;

/// Compresses `graph`: with [`Options::training`] prunes its weights as far as the budget allows, then quantizes it as far as
/// budget and machine allow.
///
/// `data` is divided reproducibly into samples for calibration, for decisions and for the report. Apart from
/// decisions by measured time, the result depends only on the arguments.
///
/// # Errors
/// A [`CompressError`] for weights or activations that are NaN, data that does not fit the network or is too little
/// to divide, labels out of range, options that make no sense, or when the caller cancels. A budget that cannot be
/// met is no error: [`Outcome::met`] says so.
pub fn compress(
    graph: &Graph,
    data: &Dataset,
    preprocess: &Preprocess,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Outcome, CompressError> {
    prepared(graph, data, preprocess, options, progress, |mut job| {
        let found = find(&job.search, &mut job.steps)?;
        job.outcome(found)
    })
}

/// Networks that trade drop, size and time against each other: at most `count`, none of which beats another in all three on the samples
/// for decisions, by drop, least first. None drops more than [`Options::max_drop`] there, nor exceeds the bounds, if any does not.
///
/// # Errors
/// As [`compress`].
pub fn pareto(
    graph: &Graph,
    data: &Dataset,
    preprocess: &Preprocess,
    options: &Options,
    count: usize,
    progress: &dyn Progress,
) -> Result<Vec<Outcome>, CompressError> {
    prepared(graph, data, preprocess, options, progress, |mut job| {
        let first = job.search.candidate(Plan::default())?;
        let sensitivity = job.search.tried(&first)?;
        let found = job.search.unbeaten(&sensitivity, count, &mut job.steps)?;
        let outcome = |chosen: Candidate| {
            let within = chosen.drop <= options.max_drop;
            let sensitivity = sensitivity.clone();
            job.outcome(Found { sensitivity, ..Found::only(chosen, within) })
        };
        found.into_iter().map(outcome).collect()
    })
}

/// Everything that is known before a search.
struct Job<'a> {
    search: Search<'a>,
    graph: &'a Graph,
    /// The original network, optimized.
    baseline: &'a Graph,
    parts: &'a Split,
    labelled: bool,
    /// The original network on the samples for the report.
    before: Evaluation,
    steps: Vec<SearchStep>,
    /// How the network was made smaller before anything was quantized.
    reductions: Vec<Reduction>,
    rewrites: sora_rewrite::Report,
    /// By name of a node: what forbids taking channels from it.
    forbidden: HashMap<String, String>,
}

/// Measures the original, trains where that is asked for, calibrates, and lets `act` go on.
fn prepared<T>(
    graph: &Graph,
    data: &Dataset,
    preprocess: &Preprocess,
    options: &Options,
    progress: &dyn Progress,
    act: impl FnOnce(Job) -> Result<T, CompressError>,
) -> Result<T, CompressError> {
    check(graph, options)?;
    progress.stage("Optimizing the graph", None);
    let mut optimized = graph.clone();
    let rewrites = sora_rewrite::optimize(&mut optimized, &sora_rewrite::Options::default())?;
    let mut network = Network::new(optimized)?;
    let feed = Feed::new(&network.graph, data, preprocess)?;
    let parts =
        split(data.len(), data.labels(), &SplitOptions { seed: options.seed, ..SplitOptions::default() })?;
    let exec = ExecOptions { isa: options.isa, threads: options.threads, ..ExecOptions::default() };
    let baseline = network.graph.clone();
    let original = Session::new(baseline.clone(), exec.clone())?;

    let predicted: Vec<usize>;
    let labels = match data.labels() {
        Some(labels) => labels,
        None => {
            let both = [parts.decision.as_slice(), &parts.report].concat();
            progress.stage("Recording the original's predictions", Some(both.len() as u64));
            predicted = measure::predicted_labels(&original, &feed, &both, options.batch, progress)?;
            &predicted
        }
    };
    progress.stage("Measuring the original", Some((parts.decision.len() + parts.report.len()) as u64));
    let score =
        |samples: &[usize]| measure::score(&original, &feed, samples, labels, options.batch, progress);
    let before = score(&parts.decision)?;
    let report_before = score(&parts.report)?;

    let judge = Judge::new(
        options.robust.as_ref(),
        &network.graph,
        &original,
        (data, preprocess),
        (&parts.decision, labels),
        (options.seed, options.batch),
        progress,
    )?;

    let mut steps = Vec::new();
    let mut reductions = Vec::new();
    let journal =
        options.checkpoint.as_deref().map(|folder| Journal::open(folder, graph, (data, preprocess), options));
    let journal = journal.transpose()?;
    let tutor = options.training.as_ref().map(|training| {
        Tutor::new(&baseline, training, preprocess, (&exec, options.seed), journal.as_ref(), progress)
    });
    let tutor = tutor.transpose()?;
    if let Some(tutor) = &tutor {
        let reducing = Reducing {
            tutor,
            feed: &feed,
            options,
            exec: &exec,
            progress,
            labels,
            decision: &parts.decision,
            before: &before.correct,
            judge: judge.as_ref(),
        };
        let followed = options.recipe.as_ref().map(|recipe| &recipe.training);
        let (reduced, taken) = match followed {
            Some(None) => (baseline.clone(), Vec::new()),
            Some(Some(trainings)) => (reducing.follow(&baseline, &trainings.steps)?, trainings.steps.clone()),
            None => reducing.search(&baseline, &mut steps)?,
        };
        network = Network::new(reduced)?;
        reductions = taken;
    }
    let network = network;
    let forbidden = match narrowed(options) {
        true => prune::groups(&network.graph)?.forbidden.into_iter().map(|f| (f.layer, f.why)).collect(),
        false => HashMap::new(),
    };
    // What layers are compared with: the pruned network before it is quantized.
    let reference = Session::new(network.graph.clone(), exec.clone())?;

    let calibration =
        Calibration { feed: &feed, samples: &parts.calibration, batch: options.batch, exec: &exec, progress };
    let bases = Bases::new(&network, calibration)?;
    let Some(sample) = feed.batches(&parts.decision[..1], 1).next().transpose()? else {
        return Err(CompressError::Option { what: "there is no sample to time".to_owned() });
    };
    let stride = parts.calibration.len().div_ceil(PROBES).max(1);
    let probes: Vec<usize> = parts.calibration.iter().copied().step_by(stride).collect();
    let search = Search {
        network: &network,
        bases: &bases,
        feed: &feed,
        options,
        exec: &exec,
        progress,
        journal: journal.as_ref(),
        tutor: tutor.as_ref(),
        labels,
        decision: &parts.decision,
        before: &before.correct,
        judge: judge.as_ref(),
        probes: &probes,
        reference: &reference,
        original: &original,
        sample: &sample,
    };
    act(Job {
        search,
        graph,
        baseline: &baseline,
        parts: &parts,
        labelled: data.labels().is_some(),
        before: report_before,
        steps,
        reductions,
        rewrites,
        forbidden,
    })
}

/// Whether channels are taken out where they may be.
fn narrowed(options: &Options) -> bool {
    options.training.is_some() && options.recipe.is_none() && options.prefer == Prefer::Latency
}

impl Job<'_> {
    /// Measures what was found, on samples that no decision saw.
    fn outcome(&self, found: Found) -> Result<Outcome, CompressError> {
        let Search { network, options, exec, progress, feed, .. } = self.search;
        let Found { chosen, within, given_up, missed, sensitivity, rungs } = found;
        progress.stage("Measuring the result", Some(self.parts.report.len() as u64));
        let session = Session::new(chosen.graph.clone(), exec.clone())?;
        let after =
            measure::score(&session, feed, &self.parts.report, self.search.labels, options.batch, progress)?;
        let drop = paired_drop(&self.before.correct, &after.correct)?;
        let sqnr: HashMap<ValueId, f64> = match chosen.placement.is_empty() {
            true => HashMap::new(),
            false => measure::in_decibels(&self.search.noise(&chosen)?),
        };
        let times: Vec<LayerTimes> = self.search.profile(&chosen.placement, &session)?.times;
        let [latency_before, latency_after] = self.search.latencies(&chosen.placement, &session)?;
        let robustness = options.robust.as_ref().map(|robust| {
            let (data, preprocess, report) = (feed.data(), feed.preprocess(), &self.parts.report);
            let grid = Grid::new(self.baseline, data, preprocess, report, robust.samples, options.seed)?;
            let sessions = [self.search.original, &session];
            grid.compare(sessions, self.search.labels, robust, options.batch, progress)
        });
        let robustness = robustness.transpose()?;
        let known = explain::Found { sqnr, times, sensitivity: &sensitivity, forbidden: &self.forbidden };
        let made = self.search.bases.of(&chosen.plan)?;
        let layers = explain::layers(&made.network, &chosen.placement, &chosen.plan, &known);
        let trainings = options.training.as_ref().filter(|_| !self.reductions.is_empty() || chosen.trained);
        let trainings = trainings.map(|training| Trainings {
            epochs: training.epochs,
            batch: training.batch,
            rate: training.rate,
            features: training.features,
            average: training.average,
            swa: training.swa,
            augment: training.augment.clone(),
            steps: self.reductions.clone(),
            quantized: chosen.trained,
        });
        let recipe = Recipe::of(network, &chosen.plan, options.seed, trainings);
        let both = [latency_before.median_ms, latency_after.median_ms];
        let exceeded = options.exceeded(both, options.bytes(&chosen.graph));
        let met = within
            && drop.drop <= options.max_drop
            && exceeded.is_none()
            && robustness.as_ref().is_none_or(Robustness::met);
        let of_bounds = match (missed, exceeded) {
            (None, Some(exceeded)) => Some(format!(
                "the bounds were met when the network was chosen, but in the end {exceeded}: measured anew it may do"
            )),
            (missed, _) => missed,
        };
        let note = of_bounds.or_else(|| note(network, &chosen, options, within, &given_up, &drop));
        Ok(Outcome {
            met,
            metric: if self.labelled { "accuracy" } else { "agreement" },
            before: measured(&self.before, latency_before, weight_bytes(self.graph)),
            after: measured(&after, latency_after, weight_bytes(&chosen.graph)),
            drop,
            decision_drop: chosen.drop,
            layers,
            steps: self.steps.clone(),
            methods: METHODS
                .iter()
                .map(|m| m.name)
                .chain(chosen.plan.rungs.iter().map(|&r| RUNGS[r].name))
                .collect(),
            rungs,
            rewrites: self.rewrites.clone(),
            isa: session.isa(),
            split: SplitSizes {
                calibration: self.parts.calibration.len(),
                decision: self.parts.decision.len(),
                report: self.parts.report.len(),
            },
            tried_samples: sensitivity.samples,
            recipe,
            note: note.or_else(|| robustness.as_ref().and_then(fragile)),
            robustness,
            graph: chosen.graph,
            baseline: self.baseline.clone(),
        })
    }
}

/// Refuses options and weights with which no result would mean anything.
fn check(graph: &Graph, options: &Options) -> Result<(), CompressError> {
    if options.recipe.as_ref().is_some_and(|recipe| recipe.training.is_some()) && options.training.is_none() {
        let what = "the recipe trains on the way: give samples to train on, with --train".to_owned();
        return Err(CompressError::Option { what });
    }
    options.training.as_ref().map_or(Ok(()), Training::check)?;
    if options.max_drop.is_nan() {
        return Err(CompressError::Option { what: "the greatest drop is not a number".to_owned() });
    }
    // Masks may hold infinities; operands of products may not.
    let products = graph.nodes().filter(|(_, n)| matches!(n.op.quant(), QuantRule::Linear { .. }));
    let operands: HashSet<ValueId> = products.flat_map(|(_, n)| n.inputs.iter().flatten().copied()).collect();
    for (id, value) in graph.values() {
        let Some(tensor) = graph.const_value(id).filter(|t| t.dtype().is_float()) else { continue };
        let broken = |v: &f32| v.is_nan() || (v.is_infinite() && operands.contains(&id));
        let count = tensor.to_f32s().iter().filter(|v| broken(v)).count();
        if count > 0 {
            let (constant, of) = (value.name.clone(), tensor.len());
            return Err(CompressError::NonFiniteWeights { constant, count, of });
        }
    }
    Ok(())
}

/// What the search settled on.
struct Found {
    chosen: Candidate,
    /// Whether the drop on the samples for decisions is within the budget.
    within: bool,
    /// Names of the layers whose precision was given back in vain.
    given_up: Vec<String>,
    /// Why no network is within the bounds on time and size, where none is.
    missed: Option<String>,
    /// What was tried with each layer alone.
    sensitivity: Sensitivity,
    /// The rungs that were tried.
    rungs: Vec<RungTrial>,
}

impl Found {
    /// A network, and nothing else to tell.
    fn only(chosen: Candidate, within: bool) -> Self {
        let sensitivity = Sensitivity::default();
        Found { chosen, within, given_up: Vec::new(), missed: None, sensitivity, rungs: Vec::new() }
    }
}

fn find(search: &Search, steps: &mut Vec<SearchStep>) -> Result<Found, CompressError> {
    let (network, options) = (search.network, search.options);
    search.progress.stage("Quantizing", None);
    if let Some(recipe) = &options.recipe {
        let mut chosen = search.candidate(recipe.plan(network)?)?;
        if let (true, Some(tutor)) = (recipe.training.as_ref().is_some_and(|t| t.quantized), search.tutor) {
            chosen = search.trained(&chosen, tutor)?;
        }
        let within = chosen.drop <= options.max_drop;
        let what = format!("followed the recipe: the drop is {:.2} points", 100.0 * chosen.drop);
        steps.push(SearchStep { stage: "recipe", what, layers: Vec::new(), drop: chosen.drop });
        return Ok(Found::only(chosen, within));
    }
    let first = search.candidate(Plan::default())?;
    if options.is_bounded() {
        let sensitivity = search.tried(&first)?;
        let Bounded { candidate, missed, rungs } = search.meet(&sensitivity, steps)?;
        let within = missed.is_none() && candidate.drop <= options.max_drop;
        return Ok(Found { missed, sensitivity, rungs, ..Found::only(candidate, within) });
    }
    if first.placement.is_empty() {
        let within = first.drop <= options.max_drop;
        return Ok(Found::only(first, within));
    }
    let sensitivity = search.tried(&first)?;
    let int8 = (0..network.layers.len()).filter(|&i| first.placement.stores_bytes(i)).count();
    let (drop, budget) = (100.0 * first.drop, 100.0 * options.max_drop);
    let what = format!("quantized {int8} layers: the drop is {drop:.2} points, the budget {budget:.2}");
    steps.push(SearchStep { stage: "quantize", what, layers: Vec::new(), drop: first.drop });

    let (first, rungs) = search.climb(first, steps)?;
    if let (true, Some(tutor)) = (first.drop > options.max_drop, search.tutor) {
        // What is not faster goes first: a network that was trained keeps its plan.
        search.progress.stage("Finding layers that are not faster", None);
        let fitting = search.fit_latency(first.clone(), steps)?;
        if !fitting.placement.is_empty()
            && let Some(mut trained) = search.try_trained(&fitting, tutor, steps)?
            && trained.likely <= options.max_drop
        {
            if options.fewer_bits {
                search.progress.stage("Finding how coarse weights may be", None);
                trained = search.coarsen(trained, steps)?;
            }
            return Ok(Found { sensitivity, rungs, ..Found::only(trained, true) });
        }
    }
    search.progress.stage("Finding layers that cost accuracy", None);
    let (last, nearest) = search.fit_accuracy(first, steps)?;
    if last.drop > options.max_drop || last.placement.is_empty() {
        let costly = |(&layer, reason): (&usize, &Reason)| {
            matches!(reason, Reason::CostsAccuracy { .. }).then_some(layer)
        };
        let layers: Vec<usize> = last.plan.kept.iter().filter_map(costly).collect();
        let given_up = search.names(&layers);
        search.progress.stage("Finding layers that are not faster", None);
        let nearest = search.fit_latency(nearest, steps)?;
        // What is slow goes too, and with it perhaps the rest of the drop.
        let within = nearest.drop <= options.max_drop;
        return Ok(Found { given_up, sensitivity, rungs, ..Found::only(nearest, within) });
    }
    search.progress.stage("Finding layers that are not faster", None);
    let mut chosen = search.fit_latency(last, steps)?;
    if chosen.drop > options.max_drop {
        // Giving layers back moved roundings around; rare, and once more is enough.
        let (last, nearest) = search.fit_accuracy(chosen, steps)?;
        chosen = if last.drop <= options.max_drop { last } else { nearest };
    }
    let within = chosen.drop <= options.max_drop;
    if within && options.fewer_bits {
        search.progress.stage("Finding how coarse weights may be", None);
        chosen = search.coarsen(chosen, steps)?;
        chosen = search.refine(chosen, &sensitivity, steps)?;
    }
    Ok(Found { sensitivity, rungs, ..Found::only(chosen, within) })
}

/// What the reader should know beyond the figures.
fn note(
    network: &Network,
    chosen: &Candidate,
    options: &Options,
    within: bool,
    given_up: &[String],
    drop: &Drop,
) -> Option<String> {
    let budget = 100.0 * options.max_drop;
    let everything = Placement::without_ranges(network, &Plan::default());
    if everything.is_empty() {
        let came = network.layers.iter().any(|l| l.role == Role::Float(Reason::AlreadyQuantized));
        let note = match came {
            true => "this network is quantized already; it was only optimized",
            false => "no layer of this network can be quantized, so it stays in f32, optimized",
        };
        return Some(note.to_owned());
    }
    if !within && options.is_bounded() {
        return Some(format!(
            "within the bounds on time and size, the network of least drop loses {:.2} points on the decision samples, more than the \
             budget of {budget:.2}",
            100.0 * chosen.drop
        ));
    }
    if !within {
        let names = if given_up.is_empty() { "none".to_owned() } else { quoted(given_up) };
        let drop = 100.0 * chosen.drop;
        let (budgets, misses) = match options.robust.as_ref().and_then(|robust| robust.max_drop) {
            // The drop that counts is that of the budget which is missed by more.
            Some(corrupted) => (
                format!(
                    "the budgets of {budget:.2} points and of {:.2} on corrupted samples",
                    100.0 * corrupted
                ),
                format!("exceeds one of them by {:.2}", drop - budget),
            ),
            None => (format!("the budget of {budget:.2} points"), format!("loses {drop:.2}")),
        };
        return Some(format!(
            "{budgets} cannot be met: on the decision samples the nearest result that is still quantized {misses} points. Giving \
             precision back to these layers did not suffice: {names}"
        ));
    }
    if drop.drop > options.max_drop {
        return Some(format!(
            "the drop was {:.2} points on the decision samples, within the budget of {budget:.2}, but is {:.2} on the \
             unseen ones: give more data, or a tighter budget",
            100.0 * chosen.drop,
            100.0 * drop.drop
        ));
    }
    if chosen.placement.is_empty() && options.is_bounded() {
        return Some("the network is within the bounds in f32, optimized".to_owned());
    }
    if chosen.placement.is_empty() && !given_up.is_empty() {
        return Some(format!(
            "no layer in 8 bits is both faster on this machine and within the budget of {budget:.2} points, so the \
             network stays in f32, optimized; what cost accuracy: {}",
            quoted(given_up)
        ));
    }
    if chosen.placement.is_empty() {
        return Some(
            "no layer is faster in 8 bits on this machine, so the network stays in f32, optimized".to_owned(),
        );
    }
    None
}

/// What the reader should know where corrupted samples lose more than they may.
fn fragile(robustness: &Robustness) -> Option<String> {
    let (drop, most) = (robustness.drop?, robustness.max_drop?);
    (drop > most).then(|| {
        format!(
            "the mean drop on corrupted samples was within the budget of {:.2} points where decisions were made, but is {:.2} on the unseen ones: \
             give more data, or a tighter budget",
            100.0 * most,
            100.0 * drop
        )
    })
}

fn measured(evaluation: &Evaluation, latency: Latency, weight_bytes: usize) -> Measured {
    let Evaluation { accuracy, ci95, top5, .. } = *evaluation;
    let Latency { median_ms, p90_ms } = latency;
    Measured { accuracy, ci95, top5, median_ms, p90_ms, weight_bytes }
}

/// Bytes of the constants that something reads.
pub(crate) fn weight_bytes(graph: &Graph) -> usize {
    let uses = graph.uses();
    let is_output = |id: ValueId| graph.outputs().iter().any(|o| o.value == id);
    let used = graph.values().filter(|(id, _)| !uses[id.index()].is_empty() || is_output(*id));
    used.filter_map(|(id, _)| graph.const_value(id)).map(|t| t.byte_len()).sum()
}
