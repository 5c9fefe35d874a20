//! Pruning with training in the loop: halves the weights again and again, as long as those that are left can learn what the network
//! did.
//!
//! Sources: iterative magnitude pruning, Han et al. 2015; the learning rate begins anew each time, Renda et al. 2020; the original network
//! teaches, Hinton et al. 2015.

use std::collections::BTreeMap;
use std::sync::Arc;

use sora_data::{Dataset, Drop, Loader, LoaderOptions, Preprocess, paired_drop};
use sora_exec::{Options as ExecOptions, Session};
use sora_ir::Graph;
use sora_train::{
    Epoch, FineTuning, Fitted, Loss, Optimizer, Plan, Pruning, PruningScope, Recipe, Schedule, Teacher,
    Trainable, Trainer, Watch, fit,
};

use crate::feed::Feed;
use crate::measure;
use crate::search::SearchStep;
use crate::{CompressError, Options, Progress};

/// What to train with, and how long.
#[derive(Clone, Debug)]
pub struct Training {
    /// The samples, as the network was or might have been trained with. Without labels, the original network tells them.
    pub data: Dataset,
    /// Passes over them each time that weights have been pruned.
    pub epochs: u32,
    /// Samples of a step.
    pub batch: usize,
    /// Learning rate of Adam; it falls along a cosine each time.
    pub rate: f64,
}

/// The share of what is learnt that the original network tells, where there are labels.
const TAUGHT: f64 = 0.5;

/// The share of the weights that are left each time.
const HALF: f64 = 0.5;

/// The least share of weights that is tried.
const LEAST: f64 = 1.0 / 512.0;

/// The share of all steps behind which a training prunes no more.
const PRUNED_BY: f64 = 0.4;

/// Times at which a training prunes.
const TIMES: u64 = 20;

/// How far a network may be pruned, and who says so.
pub(crate) struct Sparsifying<'a> {
    pub(crate) training: &'a Training,
    pub(crate) preprocess: &'a Preprocess,
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
}

impl Sparsifying<'_> {
    /// The network with the fewest weights whose drop and its standard error are within the budget, and the shares of weights on the way
    /// to it: none where half of them are too few.
    pub(crate) fn search(
        &self,
        original: &Graph,
        steps: &mut Vec<SearchStep>,
    ) -> Result<(Graph, Vec<f64>), CompressError> {
        let teacher = self.teacher(original)?;
        let (mut kept, mut densities) = (original.clone(), Vec::new());
        let mut factor = HALF;
        loop {
            let density = densities.last().copied().unwrap_or(1.0);
            let next = density * factor;
            if next < LEAST {
                break;
            }
            let (pruned, drop) = self.step(&kept, &teacher, [density, next])?;
            // A network that was trained again errs elsewhere, so its drop is known less well than that of a quantized one.
            let fits = drop.likely() <= self.options.max_drop;
            let what = format!(
                "trained with {} of the weights: the drop is {:.2} points, {}",
                percent(next),
                100.0 * drop.drop,
                if fits { "which is kept" } else { "too much" }
            );
            steps.push(SearchStep { stage: "prune", what, layers: Vec::new(), drop: drop.drop });
            if fits {
                kept = pruned;
                densities.push(next);
            }
            match (fits, factor == HALF) {
                (true, true) => {}
                // Where half is too little, seven tenths may do.
                (false, true) => factor = HALF.sqrt(),
                (_, false) => break,
            }
        }
        Ok((kept, densities))
    }

    /// The network pruned to these shares of its weights, one after the other.
    pub(crate) fn follow(&self, original: &Graph, densities: &[f64]) -> Result<Graph, CompressError> {
        let teacher = self.teacher(original)?;
        let mut from = 1.0;
        densities.iter().try_fold(original.clone(), |graph, &to| {
            if !(to > 0.0 && to <= from) {
                let what = format!("a recipe cannot leave {to} of the weights where {from} are left");
                return Err(CompressError::Option { what });
            }
            self.train(&graph, &teacher, [std::mem::replace(&mut from, to), to])
        })
    }

    fn teacher(&self, original: &Graph) -> Result<Arc<Teacher>, CompressError> {
        let share = if self.training.data.labels().is_some() { TAUGHT } else { 1.0 };
        Ok(Arc::new(Teacher::new(original.clone(), share, self.exec.clone())?))
    }

    /// The network pruned from one share of its weights to another, and the drop that is left.
    fn step(
        &self,
        graph: &Graph,
        teacher: &Arc<Teacher>,
        shares: [f64; 2],
    ) -> Result<(Graph, Drop), CompressError> {
        let pruned = self.train(graph, teacher, shares)?;
        let session = Session::new(pruned.clone(), self.exec.clone())?;
        let (samples, batch) = (self.decision, self.options.batch);
        self.progress.stage("Measuring the pruned network", Some(samples.len() as u64));
        let after = measure::score(&session, self.feed, samples, self.labels, batch, self.progress)?;
        Ok((pruned, paired_drop(self.before, &after.correct)?))
    }

    /// The network after a training on the way from one share of weights to another.
    fn train(
        &self,
        graph: &Graph,
        teacher: &Arc<Teacher>,
        [from, to]: [f64; 2],
    ) -> Result<Graph, CompressError> {
        let Training { data, epochs, batch, rate } = self.training;
        let (none, seed) = (BTreeMap::new(), self.options.seed);
        let tuning =
            FineTuning { freeze: Vec::new(), rate: 1.0, batch_statistics: false, classes: None, seed };
        let network = Trainable::imported(graph.clone(), &tuning)?;
        let indices: Vec<usize> = (0..data.len()).collect();
        let loading = LoaderOptions { batch: *batch, seed, ..LoaderOptions::default() };
        let loader = Loader::new(data, &indices, None, self.preprocess, loading)?;
        let all = loader.steps() as u64 * u64::from(*epochs);
        let pruning = Pruning {
            sparsity: 1.0 - to,
            initial: 1.0 - from,
            begin: 0.0,
            end: PRUNED_BY,
            every: ((PRUNED_BY * all as f64) as u64 / TIMES).max(1),
            scope: PruningScope::Lamp,
        };
        let recipe = Recipe {
            pruning: Some(pruning),
            seed,
            ..Recipe::new(Loss::new("categorical_crossentropy", &none)?, Optimizer::new("adam", &none)?)
        };
        let plan = Plan {
            epochs: *epochs,
            rate: *rate,
            schedule: Schedule::new("cosine", &none)?,
            patience: None,
            swa: None,
            save_every: None,
            teacher: Some(Arc::clone(teacher)),
            name: String::new(),
        };
        self.progress.stage(&format!("Training with {} of the weights", percent(to)), Some(all));
        let mut trainer = Trainer::new(network, *batch, recipe, self.exec.clone())?;
        let mut watch = Watching { progress: self.progress };
        let Fitted { state, stopped, .. } = fit(&mut trainer, &plan, &loader, None, None, &mut watch)?;
        match stopped {
            true => Err(CompressError::Cancelled),
            false => Ok(trainer.graph_of(&state)),
        }
    }
}

/// A share in words.
fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share).replace(".0 ", " ")
}

struct Watching<'a> {
    progress: &'a dyn Progress,
}

impl Watch for Watching<'_> {
    fn step(&mut self, _epoch: u32, _step: u64, _steps: u64, _so_far: &Epoch) {
        self.progress.advance(1);
    }

    fn stops(&self) -> bool {
        self.progress.cancelled()
    }
}
