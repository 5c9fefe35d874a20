//! Networks within bounds on time and size, and those that no other beats: choices over what each layer costs, verified by measuring.

use std::collections::{BTreeMap, BTreeSet};

use sora_exec::Session;

use crate::choose::{Cost, Point, front};
use crate::explain::Reason;
use crate::ladder::RungTrial;
use crate::placement::{Placement, Plan};
use crate::refine::{cost_of, untimed, with_rounding};
use crate::search::{Candidate, SLOWER, Search, SearchStep, quoted};
use crate::sensitivity::{Offer, Sensitivity};
use crate::{Bound, CompressError, Prefer};

/// A network that was built and measured.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    pub(crate) candidate: Candidate,
    /// Time of one run in ms.
    pub(crate) ms: f64,
    /// Bytes of the file.
    pub(crate) bytes: f64,
    /// What was chosen for each layer with weights.
    offers: BTreeMap<usize, Offer>,
}

/// What a network may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    ms: f64,
    bytes: f64,
}

impl Limits {
    /// By what factor the figures exceed the limits; at most 1 where they do not.
    fn excess(&self, ms: f64, bytes: f64) -> f64 {
        (ms / self.ms).max(bytes / self.bytes)
    }
}

/// What the search within bounds settled on.
pub(crate) struct Bounded {
    pub(crate) candidate: Candidate,
    /// Why no network meets the bounds, and which layers are to blame; `None` where one does.
    pub(crate) missed: Option<String>,
    /// The rungs that were tried.
    pub(crate) rungs: Vec<RungTrial>,
}

/// Choices that are verified on the way to a bound: each corrects what the next one is expected to take.
const ROUNDS: usize = 8;

/// The share of a bound on time that a choice is expected to take at most, so that it holds when it is measured, and once more.
const MARGIN: f64 = 0.97;

/// Layers that are named as to blame.
const BLAMED: usize = 3;

/// Times that differ by less count as equal.
const SAME_TIME: f64 = 0.03;

/// The front of a network's choices with what their picks stand for.
struct Choices {
    offers: BTreeMap<usize, Vec<Offer>>,
    points: Vec<Point>,
    /// Rungs of the ladder that all of them are climbed with.
    rungs: BTreeSet<usize>,
    /// What the network takes beside its layers with weights.
    rest: Cost,
    /// Time of the original in ms, and of the network with nothing in 8 bits.
    original: f64,
    plain: f64,
}

impl Choices {
    /// What a point is expected to take.
    fn expected(&self, point: &Point) -> Cost {
        point.cost + self.rest
    }

    /// What a point gives each layer.
    fn picked(&self, point: &Point) -> BTreeMap<usize, Offer> {
        self.offers.iter().zip(&point.picks).map(|((&layer, own), &pick)| (layer, own[pick])).collect()
    }
}

impl Search<'_> {
    /// The network of least drop within the bounds, or the nearest to them.
    pub(crate) fn meet(
        &self,
        sensitivity: &Sensitivity,
        steps: &mut Vec<SearchStep>,
    ) -> Result<Bounded, CompressError> {
        self.progress.stage("Choosing within the bounds", None);
        let mut choices = self.choices(sensitivity)?;
        let limits = self.limits(choices.original);
        let mut verified = self.approach(&mut choices, limits, sensitivity, steps)?;
        let gains = |v: &&Verified| v.candidate.drop > 0.0 || limits.excess(v.ms, v.bytes) > 1.0;
        let zeros = self.options.max_bytes.is_some();
        if let Some(best) = best(&verified, limits).filter(gains).filter(|_| zeros)
            && let Some(mut choices) = self.choices_with_zeros(&choices, best, sensitivity)?
        {
            verified.extend(self.approach(&mut choices, limits, sensitivity, steps)?);
        }
        let Some(best) = best(&verified, limits) else {
            let what = "there is no choice to make".to_owned();
            return Err(CompressError::Option { what });
        };
        let candidate = best.candidate.clone();
        if limits.excess(best.ms, best.bytes) > 1.0 {
            let missed = Some(self.blame(best, limits)?);
            return Ok(Bounded { candidate, missed, rungs: Vec::new() });
        }
        // What loses too much in these formats loses less by the ladder, which costs no time, and by training.
        let (mut candidate, rungs) = self.climb(candidate, steps)?;
        if candidate.drop > self.options.max_drop
            && let Some(tutor) = self.tutor
            && let Some(trained) = self.try_trained(&candidate, tutor, steps)?
            && trained.drop < candidate.drop
            && self.small_enough(&trained)
        {
            candidate = trained;
        }
        Ok(Bounded { candidate, missed: None, rungs })
    }

    /// Whether the file is within the bound on its size, if there is one.
    pub(crate) fn small_enough(&self, candidate: &Candidate) -> bool {
        self.options.max_bytes.is_none_or(|most| self.options.bytes(&candidate.graph) <= most)
    }

    /// The choices that are expected to lose least within the limits, or to be nearest to them, each verified and with it what the next
    /// one is expected to take.
    fn approach(
        &self,
        choices: &mut Choices,
        limits: Limits,
        sensitivity: &Sensitivity,
        steps: &mut Vec<SearchStep>,
    ) -> Result<Vec<Verified>, CompressError> {
        let margin = if self.options.max_latency.is_some() { MARGIN } else { 1.0 };
        let mut verified: Vec<Verified> = Vec::new();
        for _ in 0..ROUNDS {
            let excess = |point: &Point| {
                let Cost { ms, bytes, .. } = choices.expected(point);
                limits.excess(ms / margin, bytes)
            };
            // By noise, least first.
            let fitting = choices.points.iter().find(|point| excess(point) <= 1.0);
            let nearest = || choices.points.iter().min_by(|a, b| excess(a).total_cmp(&excess(b)));
            let Some(point) = fitting.or_else(nearest).cloned() else { break };
            if verified.iter().any(|known| known.offers == choices.picked(&point)) {
                break;
            }
            let expected = choices.expected(&point);
            let found = self.verify(choices, &point, sensitivity)?;
            choices.rest.ms = (choices.rest.ms + found.ms - expected.ms).max(0.0);
            choices.rest.bytes = (choices.rest.bytes + found.bytes - expected.bytes).max(0.0);
            let fits = limits.excess(found.ms, found.bytes) <= 1.0;
            steps.push(self.told(&found, if fits { "within the bounds" } else { "beyond the bounds" }));
            verified.push(found);
        }
        Ok(verified)
    }

    /// The choices of bits and of zeros together with the formats of `found`; `None` where files do not get smaller by them, or what
    /// is left is trained instead.
    fn choices_with_zeros(
        &self,
        without: &Choices,
        found: &Verified,
        sensitivity: &Sensitivity,
    ) -> Result<Option<Choices>, CompressError> {
        let Verified { candidate, ms, bytes, offers: chosen } = found;
        let coded = self.options.fewer_bits && self.tutor.is_none();
        let stored = |layer: &usize| candidate.placement.stores_bytes(*layer);
        if !coded || !chosen.keys().any(stored) {
            return Ok(None);
        }
        let mut offers = self.in_formats_of(candidate, sensitivity)?;
        let rungs = with_rounding(&candidate.plan.rungs);
        self.with_zeros(candidate, &rungs, sensitivity, &mut offers)?;
        let kept = chosen.iter().filter(|(layer, _)| !stored(layer));
        offers.extend(kept.map(|(&layer, &offer)| (layer, vec![untimed(offer)])));
        let now = cost_of(&offers, candidate);
        // Times are those of the formats, which stay.
        let rest = Cost { noise: 0.0, ms: *ms, bytes: (bytes - now.bytes).max(0.0) };
        let points = front_of(&offers);
        Ok(Some(Choices { offers, points, rungs, rest, original: without.original, plain: without.plain }))
    }

    /// Why bounds were missed: what the nearest network takes, and what in it takes most.
    fn blame(&self, nearest: &Verified, limits: Limits) -> Result<String, CompressError> {
        let Verified { candidate, ms, bytes, offers } = nearest;
        let too_slow = ms / limits.ms >= bytes / limits.bytes;
        let mut by: Vec<(usize, f64)> = match too_slow {
            true => {
                let session = Session::new(candidate.graph.clone(), self.exec.clone())?;
                let times = self.profile(&candidate.placement, &session)?.times;
                times.iter().enumerate().map(|(layer, times)| (layer, times.after.unwrap_or(0.0))).collect()
            }
            false => offers.iter().map(|(&layer, offer)| (layer, offer.cost.bytes)).collect(),
        };
        by.sort_by(|a, b| b.1.total_cmp(&a.1));
        by.truncate(BLAMED);
        let told = |&(layer, cost): &(usize, f64)| {
            let cost = if too_slow { format!("{cost:.4} ms") } else { format!("{cost:.0} bytes") };
            format!("`{}` ({cost})", self.network.layers[layer].name)
        };
        let layers = by.iter().map(told).collect::<Vec<_>>().join(", ");
        let (bound, takes) = match too_slow {
            true => (format!("{:.4} ms", limits.ms), format!("{ms:.4} ms")),
            false => (format!("{:.0} bytes", limits.bytes), format!("{bytes:.0} bytes")),
        };
        let drop = 100.0 * candidate.drop;
        Ok(format!(
            "the bound of {bound} cannot be met: the nearest network takes {takes} and loses {drop:.2} points on the decision samples. \
             Most of it is in {layers}"
        ))
    }

    /// Networks of which none beats another in drop, bytes and time, at most `count` of them, by drop: the extremes, and those
    /// farthest from each other.
    pub(crate) fn unbeaten(
        &self,
        sensitivity: &Sensitivity,
        count: usize,
        steps: &mut Vec<SearchStep>,
    ) -> Result<Vec<Candidate>, CompressError> {
        let choices = self.choices(sensitivity)?;
        let mut verified = self.spread(&choices, count, sensitivity)?;
        let smallest = verified.iter().min_by(|a, b| a.bytes.total_cmp(&b.bytes));
        if let Some(smallest) = smallest
            && let Some(choices) = self.choices_with_zeros(&choices, smallest, sensitivity)?
        {
            verified.extend(self.spread(&choices, count, sensitivity)?);
        }
        let limits = self.limits(choices.original);
        let allowed =
            |v: &Verified| limits.excess(v.ms, v.bytes) <= 1.0 && v.candidate.drop <= self.options.max_drop;
        if verified.iter().any(allowed) {
            verified.retain(allowed);
        }
        let beaten = |v: &Verified| verified.iter().any(|other| other.beats(v));
        let mut left: Vec<Verified> = verified.iter().filter(|v| !beaten(v)).cloned().collect();
        left.sort_by(|a, b| a.candidate.drop.total_cmp(&b.candidate.drop).then(b.bytes.total_cmp(&a.bytes)));
        let mut kept = farthest(&left, count);
        kept.sort_unstable();
        let kept: Vec<Verified> = kept.into_iter().map(|at| left[at].clone()).collect();
        steps.extend(kept.iter().map(|found| self.told(found, "which no other one beats")));
        Ok(kept.into_iter().map(|v| v.candidate).collect())
    }

    /// Networks along the front, twice as many levels of noise as are wanted, measured.
    fn spread(
        &self,
        choices: &Choices,
        count: usize,
        sensitivity: &Sensitivity,
    ) -> Result<Vec<Verified>, CompressError> {
        let wanted = spread(&choices.points, 2 * count);
        self.progress.stage("Measuring choices", Some(wanted.len() as u64));
        let measured = wanted.into_iter().map(|point| {
            let found = self.verify(choices, point, sensitivity)?;
            self.progress.advance(1);
            Ok(found)
        });
        measured.collect()
    }

    fn limits(&self, original: f64) -> Limits {
        let asked = self.options.max_latency.map(|bound| match bound {
            Bound::Value(ms) => ms,
            Bound::Share(share) => share * original,
        });
        let as_given = match self.options.prefer {
            Prefer::Latency => original * (1.0 + SLOWER[0].0),
            Prefer::Size => f64::INFINITY,
        };
        let ms = asked.map_or(as_given, |asked| asked.min(as_given));
        Limits { ms, bytes: self.options.max_bytes.map_or(f64::INFINITY, |bytes| bytes as f64) }
    }

    fn choices(&self, sensitivity: &Sensitivity) -> Result<Choices, CompressError> {
        let mut offers = self.offers(sensitivity)?;
        // What is real is the first of each layer's formats.
        let real = |offers: &BTreeMap<usize, Vec<Offer>>| {
            let first = offers.values().filter_map(|own| own.first());
            first.fold(Cost::default(), |sum, offer| sum + offer.cost)
        };
        let nothing = Placement::without_ranges(self.network, &self.plain());
        let both = self.deciding_latencies(&nothing, &self.network.graph, self.reference)?;
        let [original, reference] = both.map(|latency| latency.median_ms);
        let plain = if self.options.training.is_some() { reference } else { original };
        // Layers that were timed one by one, by a machine that had more to do, cannot take longer than all of them together.
        let slowed = (plain / real(&offers).ms.max(f64::MIN_POSITIVE)).min(1.0);
        offers.values_mut().flatten().for_each(|offer| offer.cost.ms *= slowed);
        let (bytes, real) = (self.options.bytes(&self.network.graph) as f64, real(&offers));
        let rest = Cost { noise: 0.0, ms: (plain - real.ms).max(0.0), bytes: (bytes - real.bytes).max(0.0) };
        self.progress.stage("Choosing formats", None);
        let rungs = BTreeSet::new();
        Ok(Choices { points: front_of(&offers), offers, rungs, rest, original, plain })
    }

    /// The plan with nothing in 8 bits.
    fn plain(&self) -> Plan {
        let all = 0..self.network.layers.len();
        Plan { kept: all.map(|layer| (layer, Reason::Prescribed)).collect(), ..Plan::default() }
    }

    fn verify(
        &self,
        choices: &Choices,
        point: &Point,
        sensitivity: &Sensitivity,
    ) -> Result<Verified, CompressError> {
        let mut plan = Plan { rungs: choices.rungs.clone(), ..Plan::default() };
        let offers = choices.picked(point);
        for (&layer, offer) in &offers {
            let reason =
                Reason::NotNeeded { output_sqnr_db: sensitivity.output_sqnr_db(layer).unwrap_or(0.0) };
            plan.set(layer, offer.format, offer.bits, reason);
            plan.set_zeros(layer, offer.zeros);
        }
        let candidate = self.candidate(plan)?;
        let session = Session::new(candidate.graph.clone(), self.exec.clone())?;
        let ms = match candidate.placement.is_empty() {
            // Two timings of one network would differ by chance.
            true => choices.plain,
            false => {
                let both = self.deciding_latencies(&candidate.placement, &candidate.graph, &session)?;
                let [before, after] = both.map(|latency| latency.median_ms);
                // In times of the original: the machine may be slower now than it was.
                choices.original * after / before.max(1e-9)
            }
        };
        let bytes = self.options.bytes(&candidate.graph) as f64;
        Ok(Verified { candidate, ms, bytes, offers })
    }

    fn told(&self, found: &Verified, verdict: &str) -> SearchStep {
        let Verified { candidate, ms, bytes, .. } = found;
        let layers: Vec<usize> = self.weights_in_bytes(&candidate.placement).collect();
        let names = self.names(&layers);
        let which = if names.is_empty() { "nothing".to_owned() } else { quoted(&names) };
        let what = format!(
            "chose {which} in int8: {ms:.4} ms, {bytes:.0} bytes, the drop is {:.2} points, {verdict}",
            100.0 * candidate.drop
        );
        SearchStep { stage: "choose", what, layers: names, drop: candidate.drop }
    }
}

/// Points of the front: for levels of noise between the least and the most, the fastest and the smallest.
fn spread(points: &[Point], levels: usize) -> Vec<&Point> {
    let noise: Vec<f64> = points.iter().map(|p| p.cost.noise).filter(|&noise| noise > 0.0).collect();
    let (Some(&low), Some(&high)) = (noise.first(), noise.last()) else { return points.iter().collect() };
    let step = (high / low).powf(1.0 / levels.saturating_sub(1).max(1) as f64);
    let levels = (0..levels).map(|i| low * step.powi(i32::try_from(i).unwrap_or(0)) * (1.0 + 1e-9));
    let mut wanted: Vec<usize> = vec![0];
    for level in levels {
        for of in [|c: &Cost| c.ms, |c: &Cost| c.bytes] {
            let within = (0..points.len()).filter(|&i| points[i].cost.noise <= level);
            wanted.extend(within.min_by(|&a, &b| of(&points[a].cost).total_cmp(&of(&points[b].cost))));
        }
    }
    wanted.sort_unstable();
    wanted.dedup();
    wanted.into_iter().map(|at| &points[at]).collect()
}

/// The one of least drop within the limits, or the nearest to them.
fn best(verified: &[Verified], limits: Limits) -> Option<&Verified> {
    let over = |v: &Verified| limits.excess(v.ms, v.bytes).max(1.0);
    let drop = |v: &Verified| v.candidate.drop;
    verified.iter().min_by(|a, b| over(a).total_cmp(&over(b)).then(drop(a).total_cmp(&drop(b))))
}

/// The choices between offers that no other one beats.
pub(crate) fn front_of(offers: &BTreeMap<usize, Vec<Offer>>) -> Vec<Point> {
    let costs: Vec<Vec<Cost>> = offers.values().map(|own| own.iter().map(|o| o.cost).collect()).collect();
    front(&costs)
}

impl Verified {
    /// Whether this one is at least as good in everything, and better in something.
    fn beats(&self, other: &Verified) -> bool {
        let (a, b) = (self.candidate.drop, other.candidate.drop);
        let as_good = a <= b && self.bytes <= other.bytes && self.ms <= other.ms * (1.0 + SAME_TIME);
        as_good && (a < b || self.bytes < other.bytes || self.ms < other.ms * (1.0 - SAME_TIME))
    }

    fn figures(&self) -> [f64; 3] {
        [self.candidate.drop, self.bytes, self.ms]
    }
}

/// At most `count` of these: those of least drop, bytes and time, then again and again the one that is farthest from all taken.
fn farthest(points: &[Verified], count: usize) -> Vec<usize> {
    let all: Vec<[f64; 3]> = points.iter().map(Verified::figures).collect();
    let range = |axis: usize| {
        let values = all.iter().map(|figures| figures[axis]);
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        (high - low).max(1e-12)
    };
    let ranges = [0, 1, 2].map(range);
    let apart = |a: usize, b: usize| -> f64 {
        (0..3).map(|axis| ((all[a][axis] - all[b][axis]) / ranges[axis]).powi(2)).sum()
    };
    let least = |axis: usize| (0..all.len()).min_by(|&a, &b| all[a][axis].total_cmp(&all[b][axis]));
    let mut kept: Vec<usize> = Vec::new();
    for at in (0..3).filter_map(least) {
        if !kept.contains(&at) {
            kept.push(at);
        }
    }
    kept.truncate(count);
    while kept.len() < count {
        let left = (0..all.len()).filter(|at| !kept.contains(at));
        let distance = |at: usize| kept.iter().map(|&k| apart(at, k)).fold(f64::MAX, f64::min);
        let Some(next) = left.max_by(|&a, &b| distance(a).total_cmp(&distance(b))) else { break };
        kept.push(next);
    }
    kept
}
