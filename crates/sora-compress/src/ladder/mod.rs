//! The quantization ladder: what is tried, rung by rung, before layers are given back to single precision.

mod adaround;
mod base;
mod equalize;
mod gptq;
mod grams;
mod rounding;
mod seams;
mod smooth;
#[cfg(test)]
mod tests;

pub use rounding::{Lines, Rounding};

pub(crate) use base::{Base, Bases, Calibration};
#[cfg(test)]
pub(crate) use gptq::tests::problem;
pub(crate) use gptq::{by_energy, feedback};
pub(crate) use grams::Grams;
pub(crate) use rounding::{descend, dot, squared_error};

use std::collections::HashMap;
use std::rc::Rc;

use serde::Serialize;
use sora_ir::ValueId;

use adaround::ADAROUND;
use equalize::EQUALIZATION;
use gptq::GPTQ;
use smooth::SMOOTHING;

use crate::CompressError;
use crate::layers::{Layer, Network};
use crate::measure;
use crate::method::{Observations, Request, Statistic};
use crate::search::{Candidate, Search, SearchStep};

/// What a rung does.
#[derive(Clone, Copy)]
pub enum Change {
    /// Rewrites constants of the network in single precision, by what calibration saw of it, so that it computes the same and its
    /// values are easier to round. `None` where there is nothing to rewrite.
    Network(fn(&Network, &Observations) -> Result<Option<Network>, CompressError>),
    /// Chooses the levels of the weights of a product, which come as the nearest ones or as the rungs before have left them.
    Rounding(fn(&mut Lines)),
}

/// One rung of the ladder.
pub struct Rung {
    /// Name in reports and recipes.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub about: &'static str,
    /// The paper that it comes from.
    pub source: &'static str,
    /// What it does.
    pub change: Change,
}

impl Rung {
    /// Whether it chooses levels of weights; else it rewrites the network in single precision.
    pub fn rounds(&self) -> bool {
        matches!(self.change, Change::Rounding(_))
    }
}

/// The rungs in the order in which they are climbed and applied. Below all of them stand static ranges and corrected biases
/// ([`METHODS`](crate::method::METHODS)), above them precision that is given back.
pub static RUNGS: &[Rung] = &[EQUALIZATION, SMOOTHING, GPTQ, ADAROUND];

/// What a rung did when it was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RungTrial {
    /// Its name.
    pub rung: &'static str,
    /// The drop of the metric on the samples for decisions without and with it, as fractions.
    pub drop: [f64; 2],
    /// Whether it was kept: it lowered the drop.
    pub kept: bool,
    /// What it did to the output of each layer that is in 8 bits.
    pub layers: Vec<LayerTrial>,
}

/// What a rung did to a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerTrial {
    /// The layer's name.
    pub layer: String,
    /// Signal to noise of its output without and with the rung, in dB.
    pub sqnr_db: [f64; 2],
}

/// What rungs want to know about a network: the channels of what linear layers multiply.
pub(crate) fn observe(network: &Network) -> Vec<Request> {
    let request = |layer: &Layer| {
        let statistic = Statistic::Channels { axis: layer.linear()?.input_axis };
        Some(Request { value: *layer.reads.first()?, statistic })
    };
    network.layers.iter().filter_map(request).collect()
}

impl Search<'_> {
    /// Climbs the ladder until the drop is within the budget. Each rung is measured on the samples for decisions, and stays where it
    /// lowers the drop and the file does not exceed its bound.
    pub(crate) fn climb(
        &self,
        mut current: Candidate,
        steps: &mut Vec<SearchStep>,
    ) -> Result<(Candidate, Vec<RungTrial>), CompressError> {
        let mut trials = Vec::new();
        let mut step = |what: String, drop: f64| {
            steps.push(SearchStep { stage: "ladder", what, layers: Vec::new(), drop });
        };
        for (index, rung) in RUNGS.iter().enumerate() {
            if current.drop <= self.options.max_drop {
                break;
            }
            if current.plan.rungs.contains(&index) {
                continue;
            }
            self.progress.stage("Climbing the quantization ladder", None);
            let mut plan = current.plan.clone();
            plan.rungs.insert(index);
            let bases = [self.bases.of(&current.plan)?, self.bases.of(&plan)?];
            if !rung.rounds() && Rc::ptr_eq(&bases[0], &bases[1]) {
                step(format!("{}: finds nothing to do in this network", rung.name), current.drop);
                continue;
            }
            let next = self.candidate(plan)?;
            let fits = self.small_enough(&next);
            let kept = fits && next.drop < current.drop;
            let what = format!(
                "{}: the drop goes from {:.2} to {:.2} points{}{}",
                rung.name,
                100.0 * current.drop,
                100.0 * next.drop,
                if fits { "" } else { " beyond the bound on size" },
                if kept { "" } else { ", so it is not used" }
            );
            let layers = self.layer_trials(&current, &next)?;
            trials.push(RungTrial { rung: rung.name, drop: [current.drop, next.drop], kept, layers });
            if kept {
                current = next;
            }
            step(what, current.drop);
        }
        Ok((current, trials))
    }

    fn layer_trials(&self, without: &Candidate, with: &Candidate) -> Result<Vec<LayerTrial>, CompressError> {
        let decibels = |candidate| -> Result<HashMap<ValueId, f64>, CompressError> {
            Ok(measure::in_decibels(&self.noise(candidate)?))
        };
        let [without, with_it] = [decibels(without)?, decibels(with)?];
        let trial = |(index, layer): (usize, &Layer)| {
            let at: ValueId = *layer.outputs.first()?;
            let sqnr_db = [*without.get(&at)?, *with_it.get(&at)?];
            let told = with.placement.in_bytes(index) && sqnr_db.iter().all(|db| db.is_finite());
            told.then(|| LayerTrial { layer: layer.name.clone(), sqnr_db })
        };
        Ok(self.network.layers.iter().enumerate().filter_map(trial).collect())
    }
}
