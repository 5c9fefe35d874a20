//! Trainings on the way of a compression: the original network teaches what it has become.
//!
//! Sources: predictions, Hinton et al. 2015; hidden activations, Romero et al. 2015; means of weights on the way, Polyak & Juditsky 1992,
//! Izmailov et al. 2018.

use std::collections::BTreeMap;
use std::sync::Arc;

use sora_data::{Augmentation, Dataset, Loader, LoaderOptions, Preprocess};
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
    /// What a mean squared error of hidden activations as large as their variance in the original adds to the loss; 0: they are not
    /// compared.
    pub features: f64,
    /// The share that a moving average of the weights, which is then the result, keeps in a step; 0: the last weights are the result.
    pub average: f64,
    /// So many last epochs give the mean of their weights (SWA), with statistics of batch normalization that are theirs; below 2: the last
    /// weights are the result.
    pub swa: u32,
    /// Random changes of the samples, in order.
    pub augment: Vec<Augmentation>,
}

impl Training {
    /// With nothing but predictions, and the last weights as the result.
    pub fn new(data: Dataset, epochs: u32, batch: usize, rate: f64) -> Self {
        Training { data, epochs, batch, rate, features: 0.0, average: 0.0, swa: 0, augment: Vec::new() }
    }

    /// Passes over so many samples behind a step where nothing else is said: two, or as many as make 500 steps of training.
    pub fn epochs(samples: usize, batch: usize) -> u32 {
        let steps = samples.div_ceil(batch.max(1)).max(1);
        u32::try_from(500usize.div_ceil(steps)).unwrap_or(u32::MAX).max(2)
    }

    /// Refuses numbers that mean nothing.
    pub(crate) fn check(&self) -> Result<(), CompressError> {
        let Training { epochs, features, average, swa, .. } = self;
        let what = match () {
            () if !(features.is_finite() && *features >= 0.0) => {
                format!("hidden activations cannot weigh {features} in the loss: give 0 or more")
            }
            () if !(0.0..1.0).contains(average) => {
                format!("a moving average cannot keep {average} of itself in a step: give 0 to less than 1")
            }
            () if swa > epochs => format!("of {epochs} epochs, the last {swa} cannot be averaged"),
            () if *swa > 1 && *average > 0.0 => {
                "weights are averaged over steps or over epochs: give `average` or `swa`".to_owned()
            }
            () => return Ok(()),
        };
        Err(CompressError::Option { what })
    }
}

/// The share of what is learnt that the original network tells, where there are labels.
const TAUGHT: f64 = 0.5;

/// Samples over which the variances of hidden activations are taken.
const SEEN: usize = 256;

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
        let mut teacher = Teacher::new(original.clone(), share, exec.clone())?;
        if training.features > 0.0 {
            let count = training.data.len();
            let seen: Vec<usize> = (0..count).step_by((count / SEEN).max(1)).take(SEEN).collect();
            teacher = teacher.with_features(&training.data.batch(&seen, preprocess)?)?;
        }
        let teacher = Arc::new(teacher);
        Ok(Tutor { training, preprocess, exec, seed, journal, progress, teacher })
    }

    /// The network after a training, which prunes on the way from its beginning to `pruned_by`, as shares of all steps. What the
    /// journal knows of the same training is not done again.
    pub(crate) fn teach(
        &self,
        mut network: Trainable,
        pruning: Option<Pruning>,
        stage: &str,
    ) -> Result<Graph, CompressError> {
        let Training { data, epochs, batch, rate, features, average, swa, augment } = self.training;
        let (none, seed) = (BTreeMap::new(), self.seed);
        let indices: Vec<usize> = (0..data.len()).collect();
        let loading =
            LoaderOptions { batch: *batch, seed, augment: augment.clone(), ..LoaderOptions::default() };
        let loader = Loader::new(data, &indices, None, self.preprocess, loading)?;
        let all = loader.steps() as u64 * u64::from(*epochs);
        let pruning = pruning.map(|pruning| Pruning { every: times(&pruning, all), ..pruning });
        let mut recipe = Recipe {
            pruning,
            seed,
            average: (*average > 0.0).then_some(*average),
            ..Recipe::new(Loss::new("categorical_crossentropy", &none)?, Optimizer::new("adam", &none)?)
        };
        let outputs = network.graph.outputs().len();
        recipe.heads.extend(self.teacher.feature_heads(&mut network.graph, *features)?);
        let trained: Vec<_> = network.parameters.iter().map(|p| (&p.name, p.gradient)).collect();
        let name = match self.journal {
            Some(_) => fingerprint(
                &network.graph,
                &format!(
                    "{epochs} {batch} {rate} {features} {average} {swa} {augment:?} {seed} {pruning:?} {trained:?}"
                ),
            ),
            None => String::new(),
        };
        let plan = Plan {
            epochs: *epochs,
            rate: *rate,
            schedule: Schedule::new("cosine", &none)?,
            patience: None,
            swa: (*swa > 1).then(|| epochs - swa),
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
            false => {
                let mut graph = trainer.graph_of(&state);
                graph.set_outputs(graph.outputs()[..outputs].to_vec());
                Ok(graph)
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_samples_are_seen_more_often() {
        let epochs = [60_000, 16_000, 3_609, 64, 1].map(|samples| Training::epochs(samples, 64));
        assert_eq!(epochs, [2, 2, 9, 500, 500]);
    }
}
