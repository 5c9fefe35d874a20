//! What a training came to so far.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{HeadOutcome, Outcome};

/// What an epoch came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// Mean loss over its samples, each before the step that it was part of.
    pub loss: f64,
    /// Share of right predictions, likewise; of several heads, their mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean loss on the validation samples behind the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Share of right predictions, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
    /// The same of each head by its output's name, where there are several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub heads: BTreeMap<String, HeadEpoch>,
    /// Learning rate of its last step.
    pub rate: f64,
    /// Seconds of training and validation.
    pub seconds: f64,
}

/// What an epoch came to for one head, as [`Epoch`] has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadEpoch {
    /// Mean loss.
    pub loss: f64,
    /// Share of right predictions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean loss on the validation samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Share of right predictions, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
}

/// What a network comes to on samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// The mean loss.
    pub loss: f64,
    /// The share of right predictions; of several heads, their mean. `None` where a loss has no notion of it.
    pub accuracy: Option<f64>,
    /// The same of each head.
    pub heads: Vec<HeadFigures>,
}

/// What one head of a network comes to on samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HeadFigures {
    /// The mean of its own loss.
    pub loss: f64,
    /// The share of right predictions.
    pub accuracy: Option<f64>,
}

impl Epoch {
    /// The figures of training, for these outputs.
    pub(crate) fn of(figures: &Figures, outputs: &[String], rate: f64, seconds: f64) -> Self {
        let (loss, accuracy) = (figures.loss, figures.accuracy);
        let head = |(name, head): (&String, &HeadFigures)| {
            let (loss, accuracy) = (head.loss, head.accuracy);
            (name.clone(), HeadEpoch { loss, accuracy, ..HeadEpoch::default() })
        };
        let several = outputs.len() > 1;
        let heads = outputs.iter().zip(&figures.heads).filter(|_| several).map(head).collect();
        Epoch { loss, accuracy, heads, rate, seconds, ..Epoch::default() }
    }

    /// Adds those of validation.
    pub(crate) fn validated(&mut self, figures: &Figures, outputs: &[String]) {
        (self.validation_loss, self.validation_accuracy) = (Some(figures.loss), figures.accuracy);
        for (name, found) in outputs.iter().zip(&figures.heads) {
            if let Some(head) = self.heads.get_mut(name) {
                (head.validation_loss, head.validation_accuracy) = (Some(found.loss), found.accuracy);
            }
        }
    }

    /// Whether it predicts more right than another one, or where nobody counts that, has a smaller loss.
    pub(crate) fn is_better(&self, than: &Epoch) -> bool {
        match (self.validation_accuracy, than.validation_accuracy) {
            (Some(new), Some(old)) => new > old,
            _ => self.validation_loss < than.validation_loss,
        }
    }
}

/// Sums over the samples seen.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    loss: f64,
    samples: f64,
    heads: Vec<HeadOutcome>,
}

impl Sums {
    pub(crate) fn new(heads: usize) -> Self {
        Sums { loss: 0.0, samples: 0.0, heads: vec![HeadOutcome { loss: 0.0, correct: Some(0.0) }; heads] }
    }

    pub(crate) fn add(&mut self, outcome: &Outcome, samples: usize) {
        let count = samples as f64;
        self.loss += outcome.loss * count;
        self.samples += count;
        for (sum, head) in self.heads.iter_mut().zip(&outcome.heads) {
            sum.loss += head.loss * count;
            sum.correct = sum.correct.zip(head.correct).map(|(sum, correct)| sum + correct);
        }
    }

    /// The sums as bits of `f64`, since text may round.
    pub(crate) fn to_bits(&self) -> Vec<u64> {
        let heads = self.heads.iter().flat_map(|head| [head.loss, head.correct.unwrap_or(f64::NAN)]);
        [self.loss, self.samples].into_iter().chain(heads).map(f64::to_bits).collect()
    }

    /// What [`Sums::to_bits`] gave; without it, sums of nothing.
    pub(crate) fn of_bits(bits: &[u64], heads: usize) -> Self {
        let numbers: Vec<f64> = bits.iter().copied().map(f64::from_bits).collect();
        match numbers.as_slice() {
            [loss, samples, rest @ ..] if rest.len() == 2 * heads => {
                let head = |pair: &[f64]| HeadOutcome {
                    loss: pair[0],
                    correct: Some(pair[1]).filter(|correct| !correct.is_nan()),
                };
                Sums { loss: *loss, samples: *samples, heads: rest.chunks_exact(2).map(head).collect() }
            }
            _ => Sums::new(heads),
        }
    }

    pub(crate) fn figures(&self) -> Figures {
        let count = self.samples.max(1.0);
        let of = |head: &HeadOutcome| HeadFigures {
            loss: head.loss / count,
            accuracy: head.correct.map(|correct| correct / count),
        };
        let heads: Vec<HeadFigures> = self.heads.iter().map(of).collect();
        let accuracies: Option<Vec<f64>> = heads.iter().map(|head| head.accuracy).collect();
        let accuracy = accuracies.map(|all| all.iter().sum::<f64>() / all.len().max(1) as f64);
        Figures { loss: self.loss / count, accuracy, heads }
    }
}
