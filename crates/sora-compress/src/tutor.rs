//! Trainings on the way of a compression: the original network teaches what it has become.
//!
//! Source: Hinton et al. 2015.

use std::collections::BTreeMap;
use std::sync::Arc;

use sora_data::{Dataset, Loader, LoaderOptions, Preprocess};
use sora_exec::Options as ExecOptions;
use sora_ir::Graph;
use sora_train::{
    Checkpoint, Epoch, Fitted, Loss, Optimizer, Plan, Pruning, Recipe, Schedule, Teacher, Trainable, Trainer,
    Watch, fit,
};

use crate::journal::{Journal, fingerprint};
use crate::{CompressError, Progress};

/// What to train with, and how long.
#[derive(Clone, Debug)]
pub struct Training {
    /// The samples, as the network was or might have been trained with. Without labels, the original network tells them.
    pub data: Dataset,
    /// Passes over them behind each step.
    pub epochs: u32,
    /// Samples of a step of training.
    pub batch: usize,
    /// Learning rate of Adam; it falls along a cosine each time.
    pub rate: f64,
}

/// The share of what is learnt that the original network tells, where there are labels.
const TAUGHT: f64 = 0.5;

/// Steps between checkpoints inside an epoch.
const SAVED: u64 = 200;

/// Trains what the original network has become.
pub(crate) struct Tutor<'a> {
    pub(crate) training: &'a Training,
    pub(crate) preprocess: &'a Preprocess,
    pub(crate) exec: &'a ExecOptions,
    pub(crate) seed: u64,
    pub(crate) journal: Option<&'a Journal>,
    pub(crate) progress: &'a dyn Progress,
    teacher: Arc<Teacher>,
}

impl<'a> Tutor<'a> {
    pub(crate) fn new(
        original: &Graph,
        training: &'a Training,
        preprocess: &'a Preprocess,
        (exec, seed): (&'a ExecOptions, u64),
        journal: Option<&'a Journal>,
        progress: &'a dyn Progress,
    ) -> Result<Self, CompressError> {
        let share = if training.data.labels().is_some() { TAUGHT } else { 1.0 };
        let teacher = Arc::new(Teacher::new(original.clone(), share, exec.clone())?);
        Ok(Tutor { training, preprocess, exec, seed, journal, progress, teacher })
    }

    /// The network after a training, which prunes on the way from its beginning to `pruned_by`, as shares of all steps. What the
    /// journal knows of the same training is not done again.
    pub(crate) fn teach(
        &self,
        network: Trainable,
        pruning: Option<Pruning>,
        stage: &str,
    ) -> Result<Graph, CompressError> {
        let Training { data, epochs, batch, rate } = self.training;
        let (none, seed) = (BTreeMap::new(), self.seed);
        let indices: Vec<usize> = (0..data.len()).collect();
        let loading = LoaderOptions { batch: *batch, seed, ..LoaderOptions::default() };
        let loader = Loader::new(data, &indices, None, self.preprocess, loading)?;
        let all = loader.steps() as u64 * u64::from(*epochs);
        let pruning = pruning.map(|pruning| Pruning { every: times(&pruning, all), ..pruning });
        let recipe = Recipe {
            pruning,
            seed,
            ..Recipe::new(Loss::new("categorical_crossentropy", &none)?, Optimizer::new("adam", &none)?)
        };
        let trained: Vec<_> = network.parameters.iter().map(|p| (&p.name, p.gradient)).collect();
        let name = match self.journal {
            Some(_) => fingerprint(
                &network.graph,
                &format!("{epochs} {batch} {rate} {seed} {pruning:?} {trained:?}"),
            ),
            None => String::new(),
        };
        let plan = Plan {
            epochs: *epochs,
            rate: *rate,
            schedule: Schedule::new("cosine", &none)?,
            patience: None,
            swa: None,
            save_every: self.journal.map(|_| SAVED),
            teacher: Some(Arc::clone(&self.teacher)),
            name: name.clone(),
        };
        let from = self.journal.map(|journal| journal.training(&name)).transpose()?.flatten();
        self.progress.stage(stage, Some(all));
        if let Some(Checkpoint { progress, .. }) = &from {
            self.progress.advance(u64::from(progress.epoch) * loader.steps() as u64 + progress.batch);
        }
        let mut trainer = Trainer::new(network, *batch, recipe, self.exec.clone())?;
        let mut watch = Watching { name, tutor: self };
        let Fitted { state, stopped, .. } = fit(&mut trainer, &plan, &loader, None, from, &mut watch)?;
        match stopped {
            true => Err(CompressError::Cancelled),
            false => Ok(trainer.graph_of(&state)),
        }
    }
}

/// Times at which a training prunes.
const TIMES: u64 = 20;

/// The steps between two of them.
fn times(pruning: &Pruning, all: u64) -> u64 {
    ((pruning.end * all as f64) as u64 / TIMES).max(1)
}

struct Watching<'a> {
    name: String,
    tutor: &'a Tutor<'a>,
}

impl Watch for Watching<'_> {
    fn step(&mut self, _epoch: u32, _step: u64, _steps: u64, _so_far: &Epoch) {
        self.tutor.progress.advance(1);
    }

    fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), String> {
        match self.tutor.journal {
            Some(journal) => journal.keep(&self.name, checkpoint),
            None => Ok(()),
        }
    }

    fn stops(&self) -> bool {
        self.tutor.progress.cancelled()
    }
}
