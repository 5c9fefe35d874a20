//! The last step towards a small file: how many bits the levels of weights have, and how many weights are zero, layer by layer.
//!
//! What a choice does to a layer's own output is computed from the second moments of its inputs: weights are pruned and rounded as
//! they will be, and their error goes through the moments. What that is at the network's output follows from one trial of each
//! layer, since noise passes on in proportion while it is small. Dynamic programming finds the choices that no other one beats in noise
//! and bytes, and measuring finds the one of them that the budget allows.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::CompressError;
use crate::bounds::front_of;
use crate::choose::Cost;
use crate::ladder::{Base, Grams, RUNGS, Rounding, squared_error};
use crate::recipe::Format;
use crate::search::{Candidate, LEAST_BITS, Search, SearchStep, verdict};
use crate::sensitivity::{FEW, Offer, Sensitivity, coded_bytes, real};
use crate::weights::{self, BITS};

/// Most times that a choice is verified.
const HALVINGS: usize = 7;

/// Percents of zeros that are tried with each layer, the most telling ones first.
const ZEROS: [u32; 7] = [50, 70, 60, 80, 30, 40, 90];

/// Multiply-adds for rounding each layer in every way, from which on fewer ways are tried: some minutes of one core.
const WORK: f64 = 5e11;

impl Search<'_> {
    /// Takes bits from the levels of weights layer by layer, and then, where nothing is trained, makes weights zero, as that makes the
    /// file smaller than that of `current` within the budget.
    pub(crate) fn refine(
        &self,
        current: Candidate,
        sensitivity: &Sensitivity,
        steps: &mut Vec<SearchStep>,
    ) -> Result<Candidate, CompressError> {
        let mut offers = self.in_formats_of(&current, sensitivity)?;
        let rungs = current.plan.rungs.clone();
        let current = self.settle(current, offers.clone(), &rungs, steps)?;
        if self.tutor.is_some() {
            return Ok(current);
        }
        let rungs = with_rounding(&rungs);
        self.with_zeros(&current, &rungs, sensitivity, &mut offers)?;
        self.settle(current, offers, &rungs, steps)
    }

    /// The offers of the layers that are stored as integers, in the formats that they have; their times do not differ.
    pub(crate) fn in_formats_of(
        &self,
        current: &Candidate,
        sensitivity: &Sensitivity,
    ) -> Result<BTreeMap<usize, Vec<Offer>>, CompressError> {
        let mut offers = self.offers(sensitivity)?;
        offers.retain(|&layer, _| current.placement.stores_bytes(layer));
        for (&layer, own) in &mut offers {
            own.retain(|offer| offer.format == current.plan.format(self.network, layer));
            own.iter_mut().for_each(|offer| *offer = untimed(*offer));
        }
        Ok(offers)
    }

    /// The smallest network within the budget that is found among the choices between offers no other one beats.
    fn settle(
        &self,
        mut current: Candidate,
        mut offers: BTreeMap<usize, Vec<Offer>>,
        rungs: &BTreeSet<usize>,
        steps: &mut Vec<SearchStep>,
    ) -> Result<Candidate, CompressError> {
        offers.retain(|_, own| !own.is_empty());
        let now = cost_of(&offers, &current);
        let mut points = front_of(&offers);
        points.retain(|point| point.cost.bytes < now.bytes);
        // The more noise, the fewer bytes: half by half to the last one that is within the budget.
        for _ in 0..HALVINGS {
            let Some(point) = points.get(points.len() / 2).cloned() else { break };
            let mut plan = current.plan.clone();
            plan.rungs.clone_from(rungs);
            plan.zeros.clear();
            let picked: Vec<Offer> =
                offers.values().zip(&point.picks).map(|(own, &pick)| own[pick]).collect();
            for (&layer, offer) in offers.keys().zip(&picked) {
                plan.bits.insert(layer, offer.bits);
                plan.set_zeros(layer, offer.zeros);
            }
            let next = self.candidate(plan)?;
            let smaller = self.options.file_size.is_none()
                || self.options.bytes(&next.graph) < self.options.bytes(&current.graph);
            let within = next.likely <= self.options.max_drop;
            let drop = 100.0 * next.drop;
            let verdict = if smaller { verdict(within) } else { "but the file gets no smaller" };
            let used = used(&picked);
            let what = format!(
                "{used} by layer, {:.0} bytes for {:.0}: the drop is {drop:.2} points, {verdict}",
                point.cost.bytes, now.bytes,
            );
            steps.push(SearchStep { stage: "size", what, layers: Vec::new(), drop: next.drop });
            let half = points.len() / 2;
            if within {
                points.drain(..=half);
            } else {
                points.truncate(half);
            }
            if within && smaller {
                current = next;
            }
        }
        Ok(current)
    }

    /// Replaces the offers of products by those of all bits and percents of zeros together.
    pub(crate) fn with_zeros(
        &self,
        current: &Candidate,
        rungs: &BTreeSet<usize>,
        sensitivity: &Sensitivity,
        offers: &mut BTreeMap<usize, Vec<Offer>>,
    ) -> Result<(), CompressError> {
        let base = self.bases.of(&current.plan)?;
        let grams = base.grams(&self.bases.calibration)?;
        // One bit more than there are may pay for zeros elsewhere.
        let bits = |layer: usize| LEAST_BITS..=(current.placement.bits[layer] + 1).min(BITS);
        let work = |layer: usize| {
            let once: f64 = grams.parts(layer).map(|part| part.len() as f64 * part.depth as f64).sum();
            4.0 * once * bits(layer).count() as f64
        };
        let each: f64 = offers.keys().map(|&layer| work(layer)).sum();
        let tried = ((WORK / each.max(1.0)) as usize).clamp(2, 1 + ZEROS.len());
        let zeros: Vec<u32> = std::iter::once(0).chain(ZEROS).take(tried).collect();
        self.progress.stage("Making weights zero", Some((offers.len() * zeros.len()) as u64));
        let rounding: Vec<usize> = rungs.iter().copied().filter(|&rung| RUNGS[rung].rounds()).collect();
        for (&layer, own) in offers.iter_mut() {
            let format = current.plan.format(self.network, layer);
            let Some(noise) = Noise::of(&base, &grams, (layer, format), sensitivity)? else { continue };
            own.clear();
            for &zeros in &zeros {
                if self.progress.cancelled() {
                    return Err(CompressError::Cancelled);
                }
                let exact = match zeros {
                    0 => noise.exact.clone(),
                    _ => base.pruned(layer, zeros, &self.bases.calibration)?,
                };
                for bits in bits(layer) {
                    let nearest = weights::quantize(&exact, noise.axis, &[], bits)?;
                    let rounding = Rounding::new(Rc::clone(&grams), &rounding, None);
                    let found = rounding.choose(layer, &exact, nearest, bits)?;
                    let noise = noise.with(&grams, &real(&found, noise.axis))?;
                    let cost = Cost { noise, ms: 0.0, bytes: coded_bytes(&found) };
                    own.push(Offer { format, bits, zeros, cost });
                }
                self.progress.advance(1);
            }
        }
        Ok(())
    }
}

/// An offer of which time is not asked.
pub(crate) fn untimed(offer: Offer) -> Offer {
    Offer { cost: Cost { ms: 0.0, ..offer.cost }, ..offer }
}

/// These rungs, and all that choose levels of weights.
pub(crate) fn with_rounding(rungs: &BTreeSet<usize>) -> BTreeSet<usize> {
    let rounding = (0..RUNGS.len()).filter(|&rung| RUNGS[rung].rounds());
    rungs.iter().copied().chain(rounding).collect()
}

/// What a network without zeros costs by these offers.
pub(crate) fn cost_of(offers: &BTreeMap<usize, Vec<Offer>>, current: &Candidate) -> Cost {
    offers.iter().fold(Cost::default(), |sum, (&layer, own)| {
        let same = |offer: &&Offer| offer.bits == current.placement.bits[layer] && offer.zeros == 0;
        own.iter().find(same).map_or(sum, |offer| sum + offer.cost)
    })
}

/// What errors of a layer's weights do at the network's output.
struct Noise {
    layer: usize,
    exact: sora_tensor::Tensor,
    /// The axis of its channels.
    axis: usize,
    /// Noise at the output without errors of weights, and what a squared error of the layer's own output adds.
    least: f64,
    slope: f64,
}

impl Noise {
    /// `None` for a layer that is no product, or was not tried with few bits.
    fn of(
        base: &Base,
        grams: &Grams,
        (layer, format): (usize, Format),
        sensitivity: &Sensitivity,
    ) -> Result<Option<Self>, CompressError> {
        let known = || {
            let linear = base.network.layers[layer].linear()?;
            let exact = base.network.graph.const_value(linear.weight)?.clone();
            grams.parts(layer).next()?;
            let tried = |format, bits| sensitivity.noise(layer, format, bits);
            let noise = [tried(Format::Int8, BITS)?, tried(Format::Int8, FEW)?, tried(format, BITS)?];
            Some((exact, linear.axis, noise))
        };
        let Some((exact, axis, [whole, few, least])) = known() else { return Ok(None) };
        let mut noise = Noise { layer, exact, axis, least: 0.0, slope: 1.0 };
        let nearest = |bits| weights::quantize(&noise.exact, axis, &[], bits);
        let errors = [BITS, FEW].map(|bits| noise.with(grams, &real(&nearest(bits)?, axis)));
        let [fine, coarse] = errors;
        let (fine, coarse) = (fine?, coarse?);
        noise.slope = (few - whole).max(0.0) / (coarse - fine).max(f64::MIN_POSITIVE);
        noise.least = (least - noise.slope * fine).max(0.0);
        Ok(Some(noise))
    }

    /// With these weights.
    fn with(&self, grams: &Grams, found: &[f32]) -> Result<f64, CompressError> {
        let exact = self.exact.as_slice::<f32>()?;
        let error = grams.parts(self.layer).map(|part| {
            let of = |weights: &[f32]| -> Vec<f64> {
                (0..part.len()).map(|at| f64::from(weights[part.place(at)])).collect()
            };
            squared_error(&part.gram(), &of(exact), &of(found))
        });
        Ok(self.least + self.slope * error.sum::<f64>())
    }
}

/// Bits and zeros of these offers, in words.
fn used(offers: &[Offer]) -> String {
    let all = |of: fn(&Offer) -> u32| {
        let values: BTreeSet<u32> = offers.iter().map(of).collect();
        values.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
    };
    let bits = all(|offer| offer.bits);
    match offers.iter().any(|offer| offer.zeros > 0) {
        true => format!("weights of {bits} bits, {} % of them zero", all(|offer| offer.zeros)),
        false => format!("weights of {bits} bits"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sora_data::{Dataset, Preprocess};
    use sora_ir::Graph;
    use sora_tensor::DType;

    use super::*;
    use crate::testing::Silent;
    use crate::tests::{cnn, dataset};
    use crate::{FileSize, Options, Outcome, Prefer, compress, pareto};

    /// What a coded file would have of the levels of weights, by their entropy.
    fn coded(graph: &Graph) -> u64 {
        let levels = graph.values().filter_map(|(id, _)| graph.const_value(id));
        let levels = levels.filter(|tensor| tensor.dtype() == DType::I8 && tensor.rank() > 1);
        levels
            .map(|tensor| {
                coded_bytes(&weights::QuantizedWeights { values: tensor.clone(), scales: Vec::new() })
            })
            .sum::<f64>() as u64
    }

    fn run(data: &Dataset, size: fn(&Graph) -> u64, recipe: Option<crate::Recipe>) -> Outcome {
        let options = Options {
            max_drop: 0.05,
            prefer: Prefer::Size,
            fewer_bits: true,
            file_size: Some(FileSize(Arc::new(size))),
            recipe,
            ..Options::default()
        };
        compress(&cnn(), data, &Preprocess::default(), &options, &Silent).unwrap()
    }

    #[test]
    fn zeros_make_files_smaller_within_the_budget() {
        let data = dataset(900, 1.0, true);
        let outcome = run(&data, coded, None);
        assert!(outcome.decision_drop <= 0.05 && !outcome.recipe.zeros.is_empty(), "{:?}", outcome.steps);
        for layer in outcome.layers.iter().filter(|layer| outcome.recipe.zeros.contains_key(&layer.name)) {
            let percent = f64::from(outcome.recipe.zeros[&layer.name]);
            assert!((100.0 * layer.zeros.unwrap() - percent).abs() < 4.0, "{layer:?}");
            assert!(layer.reason.contains("made zero"), "{}", layer.reason);
            // No rung has made anything of a zero.
            let levels = outcome.graph.find(&format!("{}.w_i8", layer.name)).unwrap();
            let levels = outcome.graph.const_value(levels).unwrap().to_i64s();
            let zeros = levels.iter().filter(|level| **level == 0).count() as f64 / levels.len() as f64;
            assert!(zeros >= layer.zeros.unwrap(), "{}", layer.name);
        }
        let again = run(&data, coded, Some(outcome.recipe.clone()));
        assert_eq!(sora_ir::text::print(&again.graph), sora_ir::text::print(&outcome.graph));
        let mut dense = outcome.recipe.clone();
        dense.zeros.clear();
        assert!(coded(&outcome.graph) < coded(&run(&data, coded, Some(dense)).graph));
        // Where files do not get smaller by it, there are none.
        assert!(run(&data, |_| 1000, None).recipe.zeros.is_empty());
    }

    /// A file of levels as they are coded, and everything else as it is.
    fn whole(graph: &Graph) -> u64 {
        let all: usize =
            graph.values().filter_map(|(id, _)| graph.const_value(id)).map(|t| t.byte_len()).sum();
        let levels = graph.values().filter_map(|(id, _)| graph.const_value(id));
        let levels = levels.filter(|tensor| tensor.dtype() == DType::I8 && tensor.rank() > 1);
        (all - levels.map(|t| t.byte_len()).sum::<usize>()) as u64 + coded(graph)
    }

    #[test]
    fn zeros_meet_a_bound_on_size_that_bits_do_not() {
        let data = dataset(900, 1.0, true);
        let options = |max_bytes| Options {
            max_drop: 1.0,
            max_bytes,
            prefer: Prefer::Size,
            fewer_bits: true,
            file_size: Some(FileSize(Arc::new(whole))),
            ..Options::default()
        };
        let run =
            |options: &Options| compress(&cnn(), &data, &Preprocess::default(), options, &Silent).unwrap();
        let coarsest = serde_json::from_str(&format!("{{\"weight_bits\": {LEAST_BITS}}}")).unwrap();
        let coarse = run(&Options { recipe: Some(coarsest), ..options(None) });
        let bound = whole(&coarse.graph) * 9 / 10;
        let found = run(&options(Some(bound)));
        assert!(found.met && whole(&found.graph) <= bound, "{:?} {:?}", found.note, found.steps);
        assert!(!found.recipe.zeros.is_empty() && found.decision_drop < 0.3, "{:?}", found.steps);
    }

    #[test]
    fn fronts_go_on_with_zeros_where_bits_end() {
        let data = dataset(900, 1.0, true);
        let options = |fewer_bits| Options {
            max_drop: 1.0,
            prefer: Prefer::Size,
            fewer_bits,
            file_size: Some(FileSize(Arc::new(whole))),
            ..Options::default()
        };
        let front = pareto(&cnn(), &data, &Preprocess::default(), &options(true), 5, &Silent).unwrap();
        let coarsest = serde_json::from_str(&format!("{{\"weight_bits\": {LEAST_BITS}}}")).unwrap();
        let options = Options { recipe: Some(coarsest), ..options(true) };
        let coarse = compress(&cnn(), &data, &Preprocess::default(), &options, &Silent).unwrap();
        let beyond = |outcome: &&Outcome| whole(&outcome.graph) < whole(&coarse.graph);
        let told =
            |outcome: &Outcome| (outcome.decision_drop, whole(&outcome.graph), outcome.recipe.zeros.clone());
        assert!(
            front.iter().filter(beyond).any(|o| !o.recipe.zeros.is_empty()),
            "{:?}",
            front.iter().map(told).collect::<Vec<_>>()
        );
    }

    #[test]
    fn zeros_that_a_recipe_cannot_have_are_named() {
        let data = dataset(120, 1.0, true);
        for (name, percent) in [("head", 100), ("pool", 50), ("nothing", 50)] {
            let mut recipe = run(&data, |_| 1000, None).recipe;
            recipe.zeros.insert(name.to_owned(), percent);
            let options = Options { recipe: Some(recipe), ..Options::default() };
            let error = compress(&cnn(), &data, &Preprocess::default(), &options, &Silent).unwrap_err();
            assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
        }
    }
}
