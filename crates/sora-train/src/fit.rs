//! Trains over a data set.

use std::sync::Arc;
use std::time::Instant;

use sora_data::{Batch, DataError, Dataset, Loader, Preprocess};
use sora_exec::{Options, Program};
use sora_ir::Graph;
use sora_tensor::Tensor;

use crate::checkpoint::{Checkpoint, Progress};
use crate::compiled::Compiled;
use crate::figures::{Epoch, Figures, Sums};
use crate::head::{Head, target_name};
use crate::operands::{borrowed, inputs, targets};
use crate::schedule::Schedule;
use crate::step::evaluation;
use crate::swa::{average, averaged};
use crate::{Outcome, Teacher, TrainError, Trainer};

/// How long and how fast to train.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Passes over the samples.
    pub epochs: u32,
    /// The learning rate.
    pub rate: f64,
    /// How it changes.
    pub schedule: Schedule,
    /// Epochs to wait for a better validation before training ends; the best weights are kept then. `None`: the last
    /// ones are.
    pub patience: Option<u32>,
    /// The first epoch, from 0, behind which weights go into their mean, which is then the result.
    pub swa: Option<u32>,
    /// Steps between checkpoints inside an epoch; there is one behind every epoch.
    pub save_every: Option<u64>,
    /// Who else tells the classes of samples. The loss must take probabilities of classes.
    pub teacher: Option<Arc<Teacher>>,
    /// What the training was asked to do, in words that change when it is another one.
    pub name: String,
}

/// Samples to look at behind every epoch.
#[derive(Clone, Debug)]
pub struct Samples<'a> {
    /// The data set.
    pub data: &'a Dataset,
    /// Which of its samples.
    pub indices: Vec<usize>,
    /// How they become inputs.
    pub preprocess: &'a Preprocess,
}

/// Looks on while a training runs.
pub trait Watch {
    /// Called behind every step of an epoch, counted from 0, with the figures so far.
    fn step(&mut self, _epoch: u32, _step: u64, _steps: u64, _so_far: &Epoch) {}

    /// Called for a sample that was left out of its batch.
    fn skipped(&mut self, _why: &DataError) {}

    /// Called behind every epoch, counted from 0.
    fn epoch(&mut self, _epoch: u32, _figures: &Epoch) {}

    /// Keeps a checkpoint.
    ///
    /// # Errors
    /// What keeps it from being kept; the training ends with it.
    fn save(&mut self, _checkpoint: &Checkpoint) -> Result<(), String> {
        Ok(())
    }

    /// Whether to end behind this step, with a checkpoint.
    fn stops(&self) -> bool {
        false
    }
}

/// A training that ended.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The weights to use: those of the best epoch with [`Plan::patience`], else the last ones.
    pub state: Vec<(String, Tensor)>,
    /// How far it came.
    pub progress: Progress,
    /// Whether it ended before its time because [`Watch::stops`].
    pub stopped: bool,
}

/// States that a training keeps besides its own.
#[derive(Clone, Debug, Default)]
struct Kept {
    /// That of the best epoch so far, where one is looked for; behind the last epoch, what the training gives.
    best: Vec<(String, Tensor)>,
    /// The mean of the weights, where it is taken.
    mean: Vec<(String, Tensor)>,
}

/// Trains until the epochs are over, validation stops getting better, or `watch` says so.
///
/// With `from`, continues where that checkpoint was made, bit for bit as if there had been no interruption: on as many
/// threads, with the same plan and data.
///
/// # Errors
/// [`TrainError::Checkpoint`] when `from` belongs to another training or one cannot be kept, [`TrainError::Diverged`] when
/// the loss is no number, [`TrainError::Network`] when the data does not fit the loss, and what steps give.
pub fn fit(
    trainer: &mut Trainer,
    plan: &Plan,
    train: &Loader,
    validation: Option<&Samples>,
    from: Option<Checkpoint>,
    watch: &mut dyn Watch,
) -> Result<Fitted, TrainError> {
    let steps = train.steps() as u64;
    let mut progress = Progress { plan: plan.name.clone(), ..Progress::default() };
    let mut kept = Kept::default();
    if let Some(checkpoint) = from {
        if checkpoint.progress.plan != plan.name {
            let why = "it was made with another configuration".to_owned();
            return Err(TrainError::Checkpoint(why));
        }
        trainer.set_state(&checkpoint.state)?;
        (progress, kept) = (checkpoint.progress, Kept { best: checkpoint.best, mean: checkpoint.mean });
    }
    let before = progress.seconds;
    let begun = Instant::now();
    let heads = trainer.heads().to_vec();
    let outputs = names(trainer.graph(), &heads)?;
    let mut stopped = false;
    while progress.epoch < plan.epochs && !ended(plan, &progress) && !stopped {
        let epoch_begun = Instant::now();
        let mut sums = Sums::of_bits(&progress.sums, heads.len());
        let mut figures = Epoch::default();
        let mut before_trouble = (progress.batch, trainer.state()?);
        for batch in train.epoch(progress.epoch, progress.batch as usize) {
            let batch = batch?;
            if progress.batch - before_trouble.0 >= REPLAYED {
                before_trouble = (progress.batch, trainer.state()?);
            }
            batch.skipped.iter().for_each(|why| watch.skipped(why));
            if batch.len == 0 {
                progress.batch += 1;
                continue;
            }
            let rate = rate(plan, steps, &progress, progress.batch);
            prune(trainer, plan, steps, &progress)?;
            let batch = taught(plan, batch)?;
            let outcome = take_step(trainer, &batch, rate)?;
            if !outcome.loss.is_finite() {
                trainer.set_state(&before_trouble.1)?;
                let first = trouble(trainer, plan, train, &progress, before_trouble.0)?;
                let step = u64::from(progress.epoch) * steps + progress.batch + 1;
                return Err(TrainError::Diverged { step, loss: outcome.loss, first });
            }
            sums.add(&outcome, batch.len);
            progress.batch += 1;
            progress.sums = sums.to_bits();
            progress.seconds = before + begun.elapsed().as_secs_f64();
            figures = Epoch::of(&sums.figures(), &outputs, rate, epoch_begun.elapsed().as_secs_f64());
            watch.step(progress.epoch, progress.batch, steps, &figures);
            stopped = watch.stops();
            let due = plan.save_every.is_some_and(|every| progress.batch.is_multiple_of(every.max(1)));
            if stopped || due {
                save(trainer, &progress, &kept, watch)?;
            }
            if stopped {
                break;
            }
        }
        if progress.batch < steps {
            break;
        }
        if let Some(from) = plan.swa.filter(|&from| progress.epoch >= from) {
            average(&mut kept.mean, trainer, &trainer.state()?, progress.epoch - from)?;
        }
        if let Some(samples) = validation {
            let mut state = trainer.state()?;
            // The last epoch is judged by what the training gives.
            let gives = plan.swa.is_some() && progress.epoch + 1 == plan.epochs;
            if gives {
                state = averaged(trainer, train, state, &kept.mean, plan.epochs)?;
            }
            let found = assess(&trainer.graph_of(&state), &heads, samples, trainer.options())?;
            figures.validated(&found, &outputs);
            let loss = found.loss + trainer.penalty_of(&state);
            figures.validation_loss = Some(loss);
            plan.schedule.watch(loss, &mut progress.plateau);
            let ahead =
                |best: u32| progress.history.get(best as usize).is_none_or(|best| figures.is_better(best));
            if plan.patience.is_some() && progress.best.is_none_or(ahead) {
                (progress.best, kept.best) = (Some(progress.epoch), state);
            } else if gives {
                kept.best = state;
            }
        }
        figures.seconds = epoch_begun.elapsed().as_secs_f64();
        watch.epoch(progress.epoch, &figures);
        progress.history.push(figures);
        (progress.epoch, progress.batch, progress.sums) = (progress.epoch + 1, 0, Vec::new());
        progress.seconds = before + begun.elapsed().as_secs_f64();
        save(trainer, &progress, &kept, watch)?;
    }
    let state = match plan.swa {
        _ if stopped => trainer.state()?,
        _ if !kept.best.is_empty() => kept.best,
        Some(_) => averaged(trainer, train, trainer.state()?, &kept.mean, plan.epochs)?,
        None => trainer.state()?,
    };
    Ok(Fitted { state, progress, stopped })
}

/// The learning rate of a batch of the epoch that `progress` stands in, where an epoch has `steps` of them.
fn rate(plan: &Plan, steps: u64, progress: &Progress, batch: u64) -> f64 {
    let step = u64::from(progress.epoch) * steps + batch;
    plan.schedule.rate(plan.rate, step, steps * u64::from(plan.epochs), &progress.plateau)
}

/// Prunes what is due before the step that `progress` stands at.
fn prune(trainer: &mut Trainer, plan: &Plan, steps: u64, progress: &Progress) -> Result<(), TrainError> {
    let Some(pruning) = trainer.recipe().pruning else { return Ok(()) };
    let (step, all) = (u64::from(progress.epoch) * steps + progress.batch, steps * u64::from(plan.epochs));
    match pruning.due(step, all) {
        Some(share) => trainer.prune(share, pruning.exchanged(step, all)),
        None => Ok(()),
    }
}

/// The batch with the targets of a teacher, if there is one.
fn taught(plan: &Plan, mut batch: Batch) -> Result<Batch, TrainError> {
    if let Some(teacher) = &plan.teacher {
        teacher.teach(&mut batch)?;
    }
    Ok(batch)
}

fn take_step(trainer: &mut Trainer, batch: &Batch, rate: f64) -> Result<Outcome, TrainError> {
    let targets = targets(trainer.graph(), batch, trainer.heads())?;
    let inputs = inputs(trainer.graph(), batch);
    trainer.step(batch.len, &borrowed(&inputs), &targets, rate)
}

/// What is first not finite in the step that `progress` stands at, whose loss is none: found by taking the steps from batch `from`
/// on again, before which the trainer stands.
fn trouble(
    trainer: &mut Trainer,
    plan: &Plan,
    train: &Loader,
    progress: &Progress,
    from: u64,
) -> Result<String, TrainError> {
    for (at, batch) in (from..).zip(train.epoch(progress.epoch, from as usize)) {
        let batch = batch?;
        if at == progress.batch {
            let batch = taught(plan, batch)?;
            let targets = targets(trainer.graph(), &batch, trainer.heads())?;
            let inputs = inputs(trainer.graph(), &batch);
            return trainer.first_non_finite(batch.len, &borrowed(&inputs), &targets);
        }
        if batch.len > 0 {
            let batch = taught(plan, batch)?;
            take_step(trainer, &batch, rate(plan, train.steps() as u64, progress, at))?;
        }
    }
    Ok("in a batch that is there no more".to_owned())
}

/// Steps that are taken again, at most, to find out why a loss is not finite.
const REPLAYED: u64 = 200;

/// The names of the outputs that are trained.
fn names(graph: &Graph, heads: &[Head]) -> Result<Vec<String>, TrainError> {
    heads.iter().map(|head| Ok(head.output(graph)?.0.to_owned())).collect()
}

/// Whether validation has waited long enough.
fn ended(plan: &Plan, progress: &Progress) -> bool {
    let waited = progress.best.map(|best| progress.epoch.saturating_sub(best + 1));
    plan.patience.zip(waited).is_some_and(|(patience, waited)| waited >= patience)
}

fn save(
    trainer: &Trainer,
    progress: &Progress,
    kept: &Kept,
    watch: &mut dyn Watch,
) -> Result<(), TrainError> {
    let Kept { best, mean } = kept.clone();
    let checkpoint = Checkpoint { state: trainer.state()?, best, mean, progress: progress.clone() };
    watch.save(&checkpoint).map_err(TrainError::Checkpoint)
}

/// What a network in the form of inference comes to on samples.
///
/// # Errors
/// As [`fit`].
pub fn assess(
    graph: &Graph,
    heads: &[Head],
    samples: &Samples,
    options: &Options,
) -> Result<Figures, TrainError> {
    const BATCH: usize = 256;
    let mut sums = Sums::new(heads.len());
    let mut compiled = Compiled::default();
    let names: Vec<String> = (0..heads.len()).map(target_name).collect();
    for batch in samples.data.batches(&samples.indices, BATCH, samples.preprocess) {
        let batch = batch?;
        let (program, arena) = compiled
            .of(batch.len, || Ok(Program::compile(&evaluation(graph, batch.len, heads)?, &[], options)?))?;
        let (inputs, targets) = (inputs(graph, &batch), targets(graph, &batch, heads)?);
        let mut given = borrowed(&inputs);
        given.extend(names.iter().map(String::as_str).zip(&targets));
        sums.add(&Outcome::of(&program.run(arena, &given)?, heads.len()), batch.len);
    }
    Ok(sums.figures())
}
