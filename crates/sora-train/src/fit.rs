//! Trains over a data set.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use sora_data::{Batch, DataError, Dataset, Loader, Preprocess};
use sora_exec::{Options, Program};
use sora_ir::Graph;
use sora_tensor::Tensor;

use crate::checkpoint::{Checkpoint, Progress};
use crate::loss::{Link, Loss, Target};
use crate::schedule::Schedule;
use crate::step::{CORRECT, LOSS, TARGET, evaluation};
use crate::{TrainError, Trainer};

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
    /// Steps between checkpoints inside an epoch; there is one behind every epoch.
    pub save_every: Option<u64>,
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

/// What an epoch came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// Mean loss over its samples, each before the step that it was part of.
    pub loss: f64,
    /// Share of right predictions, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean loss on the validation samples behind the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Share of right predictions, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
    /// Learning rate of its last step.
    pub rate: f64,
    /// Seconds of training and validation.
    pub seconds: f64,
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

/// Sums over the samples seen.
#[derive(Clone, Copy, Default)]
struct Sums {
    loss: f64,
    correct: f64,
    samples: f64,
}

impl Sums {
    fn add(&mut self, loss: f64, correct: Option<f64>, samples: usize) {
        self.loss += loss * samples as f64;
        self.correct += correct.unwrap_or(f64::NAN);
        self.samples += samples as f64;
    }

    fn loss(&self) -> f64 {
        self.loss / self.samples.max(1.0)
    }

    fn accuracy(&self) -> Option<f64> {
        Some(self.correct / self.samples.max(1.0)).filter(|accuracy| !accuracy.is_nan())
    }
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
    let total = steps * u64::from(plan.epochs);
    let mut progress = Progress { plan: plan.name.clone(), ..Progress::default() };
    let mut best = None;
    if let Some(checkpoint) = from {
        if checkpoint.progress.plan != plan.name {
            let why = "it was made with another configuration".to_owned();
            return Err(TrainError::Checkpoint(why));
        }
        trainer.set_state(&checkpoint.state)?;
        (progress, best) = (checkpoint.progress, checkpoint.best);
    }
    let before = progress.seconds;
    let begun = Instant::now();
    let loss = trainer.loss().clone();
    let mut stopped = false;
    while progress.epoch < plan.epochs && !ended(plan, &progress) && !stopped {
        let epoch_begun = Instant::now();
        let [loss_sum, correct, samples] = progress.sums.map(f64::from_bits);
        let mut sums = Sums { loss: loss_sum, correct, samples };
        let mut figures = Epoch::default();
        for batch in train.epoch(progress.epoch, progress.batch as usize) {
            let batch = batch?;
            batch.skipped.iter().for_each(|why| watch.skipped(why));
            if batch.len == 0 {
                progress.batch += 1;
                continue;
            }
            let step = u64::from(progress.epoch) * steps + progress.batch;
            let rate = plan.rate * plan.schedule.share(step, total);
            let (inputs, target) = operands(trainer.graph(), &batch, &loss)?;
            let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), *t)).collect();
            let outcome = trainer.step(batch.len, &inputs, &target, rate)?;
            if !outcome.loss.is_finite() {
                return Err(TrainError::Diverged { step: step + 1, loss: outcome.loss });
            }
            sums.add(outcome.loss, outcome.correct, batch.len);
            progress.batch += 1;
            progress.sums = [sums.loss, sums.correct, sums.samples].map(f64::to_bits);
            progress.seconds = before + begun.elapsed().as_secs_f64();
            figures = Epoch {
                loss: sums.loss(),
                accuracy: sums.accuracy(),
                rate,
                seconds: epoch_begun.elapsed().as_secs_f64(),
                ..Epoch::default()
            };
            watch.step(progress.epoch, progress.batch, steps, &figures);
            stopped = watch.stops();
            let due = plan.save_every.is_some_and(|every| progress.batch.is_multiple_of(every.max(1)));
            if stopped || due {
                save(trainer, &progress, best.as_ref(), watch)?;
            }
            if stopped {
                break;
            }
        }
        if progress.batch < steps {
            break;
        }
        if let Some(samples) = validation {
            let state = trainer.state()?;
            let found = validate(&trainer.graph_of(&state), samples, &loss, trainer.options())?;
            (figures.validation_loss, figures.validation_accuracy) = (Some(found.loss()), found.accuracy());
            let ahead =
                |best: u32| progress.history.get(best as usize).is_none_or(|best| better(&figures, best));
            if plan.patience.is_some() && progress.best.is_none_or(ahead) {
                (progress.best, best) = (Some(progress.epoch), Some(state));
            }
        }
        figures.seconds = epoch_begun.elapsed().as_secs_f64();
        watch.epoch(progress.epoch, &figures);
        progress.history.push(figures);
        (progress.epoch, progress.batch, progress.sums) = (progress.epoch + 1, 0, [0; 3]);
        progress.seconds = before + begun.elapsed().as_secs_f64();
        save(trainer, &progress, best.as_ref(), watch)?;
    }
    let state = match best {
        Some(best) if !stopped => best,
        _ => trainer.state()?,
    };
    Ok(Fitted { state, progress, stopped })
}

/// Whether validation has waited long enough.
fn ended(plan: &Plan, progress: &Progress) -> bool {
    let waited = progress.best.map(|best| progress.epoch.saturating_sub(best + 1));
    plan.patience.zip(waited).is_some_and(|(patience, waited)| waited >= patience)
}

/// Whether an epoch predicts more right than another one, or where nobody counts that, has a smaller loss.
fn better(figures: &Epoch, than: &Epoch) -> bool {
    match (figures.validation_accuracy, than.validation_accuracy) {
        (Some(new), Some(old)) => new > old,
        _ => figures.validation_loss < than.validation_loss,
    }
}

fn save(
    trainer: &Trainer,
    progress: &Progress,
    best: Option<&Vec<(String, Tensor)>>,
    watch: &mut dyn Watch,
) -> Result<(), TrainError> {
    let checkpoint = Checkpoint { state: trainer.state()?, best: best.cloned(), progress: progress.clone() };
    watch.save(&checkpoint).map_err(TrainError::Checkpoint)
}

type Operands<'a> = (Vec<(String, &'a Tensor)>, Tensor);

/// The inputs of the network by name, and what the loss compares with.
fn operands<'a>(graph: &Graph, batch: &'a Batch, loss: &Loss) -> Result<Operands<'a>, TrainError> {
    let only = graph.inputs().first().map(|&id| graph.value(id).name.clone()).unwrap_or_default();
    let inputs =
        batch.inputs.iter().map(|(name, tensor)| (name.clone().unwrap_or_else(|| only.clone()), tensor));
    if batch.labels.len() != batch.len {
        return Err(TrainError::Network("the data has no labels to train with".to_owned()));
    }
    let output = graph.outputs().first();
    let classes = output.and_then(|output| graph.ty(output.value).shape.get(1)?.known());
    if let Some(&label) = batch.labels.iter().find(|&&label| classes.is_some_and(|classes| label >= classes))
    {
        return Err(TrainError::Class { label, classes: classes.unwrap_or(0) });
    }
    let target = match (loss.row.target, loss.row.from, &batch.targets) {
        (Target::Class, _, None) => {
            Tensor::vector(&batch.labels.iter().map(|&label| label as i64).collect::<Vec<i64>>())
        }
        (Target::Same, Link::Softmax, Some(mixed)) => mixed.clone(),
        (Target::Same, Link::Softmax, None) => {
            let classes = classes.unwrap_or(0);
            let mut rows = vec![0f32; batch.len * classes];
            for (row, &label) in rows.chunks_mut(classes.max(1)).zip(&batch.labels) {
                row.iter_mut().skip(label).take(1).for_each(|x| *x = 1.0);
            }
            Tensor::from_slice(&[batch.len, classes], &rows).map_err(sora_ir::Mismatch::from)?
        }
        (Target::Class, _, Some(_)) => {
            let why = "mixed samples have probabilities of classes: they need `categorical_crossentropy`";
            return Err(TrainError::Network(why.to_owned()));
        }
        _ => {
            let why = format!("the data gives classes, which `{}` cannot compare with", loss.row.name);
            return Err(TrainError::Network(why));
        }
    };
    Ok((inputs.collect(), target))
}

/// The loss and the right predictions of a network in the form of inference.
fn validate(graph: &Graph, samples: &Samples, loss: &Loss, options: &Options) -> Result<Sums, TrainError> {
    const BATCH: usize = 256;
    let mut sums = Sums::default();
    let mut compiled: Option<(usize, Program, sora_exec::Arena)> = None;
    for batch in samples.data.batches(&samples.indices, BATCH, samples.preprocess) {
        let batch = batch?;
        if compiled.as_ref().is_none_or(|(size, ..)| *size != batch.len) {
            let program = Program::compile(&evaluation(graph, batch.len, loss)?, &[], options)?;
            let arena = program.arena()?;
            compiled = Some((batch.len, program, arena));
        }
        let Some((_, program, arena)) = &mut compiled else { continue };
        let (inputs, target) = operands(graph, &batch, loss)?;
        let mut given: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), *t)).collect();
        given.push((TARGET, &target));
        let outputs = program.run(arena, &given)?;
        let find = |name: &str| outputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.to_f64s()[0]);
        sums.add(find(LOSS).unwrap_or(f64::NAN), find(CORRECT), batch.len);
    }
    Ok(sums)
}
