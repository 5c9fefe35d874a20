//! Measuring a network: accuracy on samples, latency against another network, error and time of each layer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sora_data::{Classification, ClassificationSummary, Dataset, Interval, PerClass, Preprocess};
use sora_exec::{Options, Profile, Session};
use sora_ir::{Graph, ValueId};
use sora_tensor::Tensor;

use crate::explain::LayerTimes;
use crate::feed::{Fed, Feed, head};
use crate::layers::Network;
use crate::placement::Placement;
use crate::quantize::{dequantize_name, quantize_name};
use crate::range::decibels;
use crate::{CompressError, Progress};

/// What a network achieves on labelled samples.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Number of samples.
    pub samples: usize,
    /// Part of the samples whose highest score is the label's.
    pub accuracy: f64,
    /// Wilson interval of the accuracy.
    pub ci95: Interval,
    /// Part of the samples whose label is among the five highest scores; only beyond five classes.
    pub top5: Option<f64>,
    /// Wilson interval of `top5`.
    pub top5_ci95: Option<Interval>,
    /// Mean of the F1 scores of the classes that occur.
    pub macro_f1: f64,
    /// Area under the ROC curve, of more than two classes their mean; only [`evaluate`] finds it.
    pub auc: Option<f64>,
    /// Counts by class.
    pub per_class: Vec<PerClass>,
    /// Samples by class, then by predicted class; empty beyond 256 classes.
    pub confusion: Vec<Vec<usize>>,
    /// Whether each sample was right, in order.
    #[serde(skip)]
    pub correct: Vec<bool>,
}

impl Evaluation {
    fn of(count: &Classification) -> Self {
        let summary = count.summary();
        let ClassificationSummary { samples, accuracy, top5, top5_ci95, macro_f1, auc, .. } = summary;
        Evaluation {
            samples,
            accuracy,
            ci95: summary.accuracy_ci95,
            top5,
            top5_ci95,
            macro_f1,
            auc,
            per_class: summary.per_class,
            confusion: summary.confusion,
            correct: count.correct().to_vec(),
        }
    }
}

/// Batch size of [`evaluate`].
pub(crate) const EVALUATION_BATCH: usize = 64;

/// Measures `graph` on the samples `indices`, all of them by default: the highest score of its first output against the
/// label. One score a sample is the probability of class 1 of two.
///
/// # Errors
/// A [`CompressError`] when the data has no labels, does not fit the network or has labels out of range, when the
/// network has no scores of classes, or when the caller cancels.
pub fn evaluate(
    graph: &Graph,
    data: &Dataset,
    preprocess: &Preprocess,
    indices: Option<&[usize]>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Evaluation, CompressError> {
    let Some(labels) = data.labels() else {
        return Err(CompressError::Unlabelled { place: data.place().to_owned() });
    };
    let feed = Feed::new(graph, data, preprocess)?;
    let session = Session::new(graph.clone(), options.clone())?;
    let every: Vec<usize>;
    let indices = match indices {
        Some(indices) => indices,
        None => {
            every = (0..data.len()).collect();
            &every
        }
    };
    progress.stage("Evaluating", Some(indices.len() as u64));
    let new = |classes| Classification::new(classes).with_auc();
    counted(&session, &feed, indices, labels, EVALUATION_BATCH, progress, new)
}

/// Runs the sessions over the samples and calls `visit` with the number of each, its scores of a batch and the samples it holds.
pub(crate) fn predict<const N: usize>(
    sessions: [&Session; N],
    feed: &Feed,
    indices: &[usize],
    batch: usize,
    progress: &dyn Progress,
    mut visit: impl FnMut(usize, &Tensor, &[usize]) -> Result<(), CompressError>,
) -> Result<(), CompressError> {
    let mut left = indices;
    for fed in feed.batches(indices, batch) {
        if progress.cancelled() {
            return Err(CompressError::Cancelled);
        }
        let fed = fed?;
        let (now, later) = left.split_at(fed.len.min(left.len()));
        left = later;
        for (number, session) in sessions.iter().enumerate() {
            let outputs = session.run(&fed.refs())?;
            if let Some((name, scores)) = outputs.first() {
                let scores = head(scores, fed.len)?;
                let fits = scores.rank() >= 2 && scores.shape().first() == Some(&fed.len);
                if !fits || !scores.dtype().is_float() {
                    let found = sora_ir::TensorType::of(&scores).to_string();
                    return Err(CompressError::Output { output: name.clone(), found });
                }
                visit(number, &both_classes(scores)?, now)?;
            }
            progress.advance(fed.len as u64);
        }
    }
    Ok(())
}

/// The scores of two classes where there is one probability a sample, that of the second class.
fn both_classes(scores: Tensor) -> Result<Tensor, CompressError> {
    let samples = scores.shape().first().copied().unwrap_or(0);
    let values = scores.to_f32s();
    if scores.len() != samples || !values.iter().all(|p| (0.0..=1.0).contains(p)) {
        return Ok(scores);
    }
    let both: Vec<f32> = values.iter().flat_map(|&p| [1.0 - p, p]).collect();
    Ok(Tensor::from_slice(&[samples, 2], &both)?)
}

/// The accuracy on the samples `indices`; `labels` are those of all samples.
pub(crate) fn score(
    session: &Session,
    feed: &Feed,
    indices: &[usize],
    labels: &[usize],
    batch: usize,
    progress: &dyn Progress,
) -> Result<Evaluation, CompressError> {
    counted(session, feed, indices, labels, batch, progress, Classification::new)
}

/// As [`score`], by what `new` makes for the number of classes.
fn counted(
    session: &Session,
    feed: &Feed,
    indices: &[usize],
    labels: &[usize],
    batch: usize,
    progress: &dyn Progress,
    new: impl Fn(usize) -> Classification,
) -> Result<Evaluation, CompressError> {
    let mut count: Option<Classification> = None;
    predict([session], feed, indices, batch, progress, |_, scores, samples| {
        let classes = scores.shape().iter().skip(1).product();
        if count.is_none() && feed.data().labels().is_some() {
            feed.data().check_labels(classes)?;
        }
        let wanted: Vec<usize> = samples.iter().filter_map(|&i| labels.get(i).copied()).collect();
        Ok(count.get_or_insert_with(|| new(classes)).add(scores, &wanted)?)
    })?;
    Ok(Evaluation::of(&count.unwrap_or_else(|| Classification::new(0))))
}

/// Whether each session is right on each of the samples `indices`, which are read once.
pub(crate) fn correct<const N: usize>(
    sessions: [&Session; N],
    feed: &Feed,
    indices: &[usize],
    labels: &[usize],
    batch: usize,
    progress: &dyn Progress,
) -> Result<[Vec<bool>; N], CompressError> {
    let mut counts = [const { None::<Classification> }; N];
    predict(sessions, feed, indices, batch, progress, |number, scores, samples| {
        let classes = scores.shape().iter().skip(1).product();
        let wanted: Vec<usize> = samples.iter().filter_map(|&i| labels.get(i).copied()).collect();
        Ok(counts[number].get_or_insert_with(|| Classification::new(classes)).add(scores, &wanted)?)
    })?;
    Ok(counts.map(|count| count.map_or(Vec::new(), |count| count.correct().to_vec())))
}

/// The class of highest score for every sample of the dataset that is in `indices`, 0 for the others: what stands
/// in for labels where there are none.
pub(crate) fn predicted_labels(
    session: &Session,
    feed: &Feed,
    indices: &[usize],
    batch: usize,
    progress: &dyn Progress,
) -> Result<Vec<usize>, CompressError> {
    let mut labels = vec![0; feed.data().len()];
    predict([session], feed, indices, batch, progress, |_, scores, samples| {
        let classes = scores.shape().iter().skip(1).product::<usize>().max(1);
        for (row, &sample) in scores.to_f32s().chunks_exact(classes).zip(samples) {
            // The first of equal scores, as the count of right predictions has it.
            let best = row.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
            labels[sample] = best.map_or(0, |(class, _)| class);
        }
        Ok(())
    })?;
    Ok(labels)
}

/// How long one run takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Median, in ms.
    pub median_ms: f64,
    /// 90th percentile, in ms.
    pub p90_ms: f64,
}

/// Limits of a timing: at least and at most so many rounds, and in between no longer than this.
const ROUNDS: (usize, usize) = (15, 300);
const PATIENCE: Duration = Duration::from_millis(1500);

/// Calls `round` until the timing limits are reached, after a few calls whose result is dropped.
fn repeat<T>(
    progress: &dyn Progress,
    mut round: impl FnMut() -> Result<T, CompressError>,
) -> Result<Vec<T>, CompressError> {
    for _ in 0..3 {
        round()?;
    }
    let start = Instant::now();
    let mut results = Vec::new();
    while results.len() < ROUNDS.0 || (results.len() < ROUNDS.1 && start.elapsed() < PATIENCE) {
        if progress.cancelled() {
            return Err(CompressError::Cancelled);
        }
        results.push(round()?);
    }
    Ok(results)
}

/// Latencies of two networks on one input, taken in turns so that both meet the same disturbances.
pub(crate) fn latencies(
    sessions: [&Session; 2],
    fed: &Fed,
    progress: &dyn Progress,
) -> Result<[Latency; 2], CompressError> {
    let inputs = fed.refs();
    let rounds = repeat(progress, || {
        let mut ms = [0.0; 2];
        for (session, ms) in sessions.iter().zip(&mut ms) {
            let start = Instant::now();
            session.run(&inputs)?;
            *ms = start.elapsed().as_secs_f64() * 1e3;
        }
        Ok(ms)
    })?;
    Ok([0, 1].map(|i| {
        let mut ms: Vec<f64> = rounds.iter().map(|r| r[i]).collect();
        Latency { median_ms: quantile(&mut ms, 0.5), p90_ms: quantile(&mut ms, 0.9) }
    }))
}

/// The value below which `fraction` of `values` lie.
pub(crate) fn quantile(values: &mut [f64], fraction: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (fraction * values.len().saturating_sub(1) as f64).round() as usize;
    values.get(at).copied().unwrap_or(0.0)
}

/// Time of each layer before and after.
#[derive(Serialize, Deserialize)]
pub(crate) struct LayerProfile {
    /// Medians, by layer.
    pub(crate) times: Vec<LayerTimes>,
    /// By layer: by how much the lower quartile in the compressed network exceeds the median in the original one,
    /// in ms. What is positive is slower beyond the noise of a single run.
    pub(crate) excess: Vec<f64>,
}

/// Times every layer of both networks, taken in turns. Steps are booked on the layer of the nodes that they
/// compute; conversions on the layer that needs them.
pub(crate) fn profile(
    network: &Network,
    placement: &Placement,
    sessions: [&Session; 2],
    fed: &Fed,
    progress: &dyn Progress,
) -> Result<LayerProfile, CompressError> {
    let owners = owners(network, placement);
    let inputs = fed.refs();
    let rounds = repeat(progress, || {
        let mut both = [Vec::new(), Vec::new()];
        for (session, times) in sessions.iter().zip(&mut both) {
            *times = book(network, &owners, &session.run_profiled(&inputs)?.1);
        }
        Ok(both)
    })?;
    let mut profile = LayerProfile { times: Vec::new(), excess: Vec::new() };
    for layer in 0..network.layers.len() {
        let series = |i: usize| rounds.iter().filter_map(|r| r[i][layer]).collect::<Vec<f64>>();
        let [mut before, mut after] = [series(0), series(1)];
        let median = |ms: &mut Vec<f64>| (!ms.is_empty()).then(|| quantile(ms, 0.5));
        let times = LayerTimes { before: median(&mut before), after: median(&mut after) };
        let fast_after = quantile(&mut after, 0.25);
        profile.excess.push(times.before.map_or(0.0, |before| fast_after - before));
        profile.times.push(times);
    }
    Ok(profile)
}

/// The layer of each node, by name, in the original and in the quantized graph.
fn owners(network: &Network, placement: &Placement) -> HashMap<String, usize> {
    let graph = &network.graph;
    let own = graph.nodes().filter_map(|(id, node)| Some((node.name.clone(), network.layer_of(id)?)));
    let mut owners: HashMap<String, usize> = own.collect();
    for &value in placement.choices.keys() {
        if let Some(owner) = placement.owner(network, value) {
            let name = &graph.value(value).name;
            owners.insert(quantize_name(name), owner);
            owners.insert(dequantize_name(name), owner);
        }
    }
    owners
}

/// Time of each layer in one profile, in ms; `None` where no step was booked. A conversion, which computes no
/// node, belongs to what follows it.
fn book(network: &Network, owners: &HashMap<String, usize>, profile: &Profile) -> Vec<Option<f64>> {
    let mut times: Vec<Option<f64>> = vec![None; network.layers.len()];
    let (mut pending, mut last) = (0.0, None);
    for step in &profile.steps {
        pending += step.nanoseconds as f64 / 1e6;
        let found: Vec<usize> = step.step.nodes.iter().filter_map(|n| owners.get(n).copied()).collect();
        // A step that spans layers is that of its weights.
        let linear = found.iter().copied().find(|&i| network.layers[i].has_weights());
        if let Some(owner) = linear.or(found.first().copied()) {
            *times[owner].get_or_insert(0.0) += std::mem::take(&mut pending);
            last = Some(owner);
        }
    }
    if let Some(last) = last.filter(|_| pending > 0.0) {
        *times[last].get_or_insert(0.0) += pending;
    }
    times
}

/// Error of each layer's output, as noise over signal.
pub(crate) type Noise = HashMap<ValueId, f64>;

/// Compares the outputs of all layers in `network` and `compressed` on the samples `indices`.
pub(crate) fn noise(
    network: &Network,
    placement: &Placement,
    compressed: &Graph,
    feed: &Feed,
    indices: &[usize],
    exec: &Options,
    progress: &dyn Progress,
) -> Result<Noise, CompressError> {
    let by_name: HashMap<&str, ValueId> = compressed.values().map(|(id, v)| (v.name.as_str(), id)).collect();
    let mut pairs: Vec<(ValueId, ValueId)> = Vec::new();
    for (index, layer) in network.layers.iter().enumerate().filter(|(_, l)| l.runs()) {
        for &value in layer.outputs.iter().filter(|&&v| network.graph.ty(v).dtype == sora_tensor::DType::F32)
        {
            let name = &network.graph.value(value).name;
            let rounded = placement.int8[index] && placement.choices.contains_key(&value);
            let rounded = rounded.then(|| by_name.get(dequantize_name(name).as_str())).flatten();
            if let Some(&other) = rounded.or(by_name.get(name.as_str())) {
                pairs.push((value, other));
            }
        }
    }
    let (ours, theirs): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
    let reference = Session::watching(network.graph.clone(), ours, exec.clone())?;
    let session = Session::watching(compressed.clone(), theirs, exec.clone())?;
    let mut sums = vec![(0.0, 0.0); pairs.len()];
    // Small batches: all outputs of both networks are held at once.
    for fed in feed.batches(indices, 4) {
        if progress.cancelled() {
            return Err(CompressError::Cancelled);
        }
        let fed = fed?;
        let mut exact = Vec::with_capacity(pairs.len());
        reference.run_observed(&fed.refs(), &mut |_, tensor| exact.push(tensor.clone()))?;
        let mut at = 0;
        session.run_observed(&fed.refs(), &mut |_, tensor| {
            if let (Some(exact), Some(sum)) = (exact.get(at), sums.get_mut(at)) {
                for (a, b) in exact.to_f32s().into_iter().zip(tensor.to_f32s()) {
                    let (a, b) = (f64::from(a), f64::from(b));
                    *sum = (sum.0 + a * a, sum.1 + (a - b) * (a - b));
                }
            }
            at += 1;
        })?;
    }
    let ratio =
        |(signal, noise): (f64, f64)| if noise > 0.0 { noise / signal.max(f64::MIN_POSITIVE) } else { 0.0 };
    Ok(pairs.into_iter().zip(sums).map(|((value, _), sum)| (value, ratio(sum))).collect())
}

/// Noise over signal in dB of signal over noise.
pub(crate) fn in_decibels(noise: &Noise) -> HashMap<ValueId, f64> {
    noise.iter().map(|(&value, &ratio)| (value, decibels(1.0, ratio))).collect()
}
