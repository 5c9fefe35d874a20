//! How well a classifier does.

use serde::{Deserialize, Serialize};
use sora_tensor::Tensor;

use super::{Auc, Interval, wilson};
use crate::{DataError, ErrorKind};

const TOP: usize = 5;

/// The most classes that a confusion matrix is kept of.
const MATRIX: usize = 256;

/// Counts right and wrong predictions of classes, batch by batch.
#[derive(Clone, Debug)]
pub struct Classification {
    correct: Vec<bool>,
    /// By number of classes whose score is higher: samples.
    ranks: Vec<usize>,
    per_class: Vec<PerClass>,
    /// By class, then by predicted class; empty beyond [`MATRIX`] classes.
    confusion: Vec<Vec<usize>>,
    auc: Option<Auc>,
}

/// The samples of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerClass {
    /// Samples of this class that were predicted right.
    pub correct: usize,
    /// Samples of this class.
    pub total: usize,
    /// Samples that were predicted to be of this class.
    pub predicted: usize,
}

impl PerClass {
    /// The share of the samples predicted to be of this class that are; 0 without any.
    pub fn precision(&self) -> f64 {
        self.correct as f64 / self.predicted.max(1) as f64
    }

    /// The share of the samples of this class that were predicted right; 0 without any.
    pub fn recall(&self) -> f64 {
        self.correct as f64 / self.total.max(1) as f64
    }

    /// The harmonic mean of precision and recall. Source: van Rijsbergen 1979.
    pub fn f1(&self) -> f64 {
        2.0 * self.correct as f64 / (self.predicted + self.total).max(1) as f64
    }
}

/// What a [`Classification`] found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassificationSummary {
    /// Number of samples.
    pub samples: usize,
    /// Part of the samples whose highest score is the label's.
    pub accuracy: f64,
    /// Wilson interval of `accuracy`.
    pub accuracy_ci95: Interval,
    /// Part of the samples whose label is among the five highest scores; only beyond five classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top5: Option<f64>,
    /// Wilson interval of `top5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top5_ci95: Option<Interval>,
    /// The mean of [`PerClass::f1`] over the classes that occur, in the labels or among the predictions.
    pub macro_f1: f64,
    /// What [`Auc::value`] says, where [`Classification::with_auc`] asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auc: Option<f64>,
    /// Counts by class.
    pub per_class: Vec<PerClass>,
    /// Samples by class (rows), and by the class they were predicted to be of (columns); empty beyond 256 classes.
    pub confusion: Vec<Vec<usize>>,
}

impl Classification {
    /// A count over `classes` classes.
    pub fn new(classes: usize) -> Self {
        Classification {
            correct: Vec::new(),
            ranks: vec![0; classes],
            per_class: vec![PerClass::default(); classes],
            confusion: if classes <= MATRIX { vec![vec![0; classes]; classes] } else { Vec::new() },
            auc: None,
        }
    }

    /// Finds the area under the ROC curve, too, which takes the memory of all scores.
    #[must_use]
    pub fn with_auc(self) -> Self {
        Classification { auc: Some(Auc::new(self.per_class.len())), ..self }
    }

    /// Adds a batch: scores (logits or probabilities) `[samples, classes]`, trailing axes of extent 1 allowed.
    /// Of equal scores the first class wins; a NaN among a sample's scores counts as wrong.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] when the scores are of another shape, [`ErrorKind::Label`] when a label is out of
    /// range. Nothing is added then.
    pub fn add(&mut self, scores: &Tensor, labels: &[usize]) -> Result<(), DataError> {
        let classes = self.per_class.len();
        let shape = scores.shape();
        let fits = shape.first() == Some(&labels.len())
            && shape.get(1..).map(|s| s.iter().product()) == Some(classes);
        if !fits || classes < 2 {
            let (n, hint) = (labels.len(), "classification needs one score for each class, at least two");
            let what =
                format!("the model's output has shape {shape:?}, for {n} samples of {classes} classes");
            return Err(DataError::new(ErrorKind::Mismatch, what, "the model's output", hint));
        }
        if let Some(label) = labels.iter().find(|&&l| l >= classes) {
            let what = format!("the label {label} is out of range: there are {classes} classes");
            let hint = "labels count from 0; give the data that the model was trained for";
            return Err(DataError::new(ErrorKind::Label, what, "the labels", hint));
        }
        let values = scores.to_f32s();
        for (row, &label) in values.chunks_exact(classes).zip(labels) {
            let rank = rank(row, label);
            let correct = rank == Some(0);
            rank.into_iter().for_each(|rank| self.ranks[rank] += 1);
            self.per_class[label].total += 1;
            self.per_class[label].correct += usize::from(correct);
            self.correct.push(correct);
            if let Some(predicted) = predicted(row) {
                self.per_class[predicted].predicted += 1;
                self.confusion.iter_mut().skip(label).take(1).for_each(|row| row[predicted] += 1);
            }
        }
        if let Some(auc) = &mut self.auc {
            auc.add(&values, labels);
        }
        Ok(())
    }

    /// Whether each sample was predicted right, in the order added: for [`crate::paired_drop`].
    pub fn correct(&self) -> &[bool] {
        &self.correct
    }

    /// The number of samples added.
    pub fn samples(&self) -> usize {
        self.correct.len()
    }

    /// Part of the samples predicted right; zero without samples.
    pub fn accuracy(&self) -> f64 {
        let correct: usize = self.per_class.iter().map(|c| c.correct).sum();
        correct as f64 / self.samples().max(1) as f64
    }

    /// Part of the samples whose label is among the `k` highest scores; zero without samples.
    pub fn top(&self, k: usize) -> f64 {
        self.hits(k) as f64 / self.samples().max(1) as f64
    }

    fn hits(&self, k: usize) -> usize {
        self.ranks.iter().take(k).sum()
    }

    /// The mean of [`PerClass::f1`] over the classes that occur, in the labels or among the predictions.
    fn macro_f1(&self) -> f64 {
        let occur = self.per_class.iter().filter(|class| class.total + class.predicted > 0);
        let (sum, count) = occur.fold((0.0, 0), |(sum, count), class| (sum + class.f1(), count + 1));
        sum / f64::from(count.max(1))
    }

    /// Everything found so far.
    pub fn summary(&self) -> ClassificationSummary {
        let samples = self.samples();
        let correct = self.per_class.iter().map(|c| c.correct).sum();
        let many = self.per_class.len() > TOP;
        ClassificationSummary {
            samples,
            accuracy: self.accuracy(),
            accuracy_ci95: wilson(correct, samples),
            top5: many.then(|| self.top(TOP)),
            top5_ci95: many.then(|| wilson(self.hits(TOP), samples)),
            macro_f1: self.macro_f1(),
            auc: self.auc.as_ref().and_then(Auc::value),
            per_class: self.per_class.clone(),
            confusion: self.confusion.clone(),
        }
    }
}

/// The number of classes that come before `label`; `None` when a score is NaN.
fn rank(scores: &[f32], label: usize) -> Option<usize> {
    if scores.iter().any(|s| s.is_nan()) {
        return None;
    }
    let own = scores[label];
    Some(scores.iter().enumerate().filter(|&(i, &s)| s > own || (s == own && i < label)).count())
}

/// The first class of the highest score; `None` when a score is NaN.
fn predicted(scores: &[f32]) -> Option<usize> {
    let greater = |best: usize, class: usize| if scores[class] > scores[best] { class } else { best };
    (!scores.iter().any(|s| s.is_nan())).then(|| (0..scores.len()).fold(0, greater))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_and_top5_count_ranks() {
        let mut rng = fastrand::Rng::with_seed(5);
        let (n, classes) = (200, 8);
        let scores: Vec<f32> = (0..n * classes).map(|_| rng.u32(0..6) as f32).collect();
        let labels: Vec<usize> = (0..n).map(|_| rng.usize(0..classes)).collect();
        let (mut top1, mut top5) = (0, 0);
        for (row, &label) in scores.chunks(classes).zip(&labels) {
            let mut order: Vec<usize> = (0..classes).collect();
            order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap());
            top1 += usize::from(order[0] == label);
            top5 += usize::from(order[..5].contains(&label));
        }
        let mut count = Classification::new(classes);
        let half = n / 2;
        let part = |rows: std::ops::Range<usize>| {
            let shape = [rows.len(), classes, 1, 1];
            Tensor::from_slice(&shape, &scores[rows.start * classes..rows.end * classes]).unwrap()
        };
        count.add(&part(0..half), &labels[..half]).unwrap();
        count.add(&part(half..n), &labels[half..]).unwrap();
        let summary = count.summary();
        assert_eq!((summary.samples, summary.accuracy), (n, top1 as f64 / n as f64));
        assert_eq!(summary.top5, Some(top5 as f64 / n as f64));
        assert_eq!(summary.per_class.iter().map(|c| c.total).sum::<usize>(), n);
        assert_eq!(count.correct().iter().filter(|&&c| c).count(), top1);
    }

    #[test]
    fn wrong_shapes_and_labels_are_errors_and_nan_is_wrong() {
        let mut count = Classification::new(3);
        let scores = Tensor::from_slice(&[1, 3], &[f32::NAN, 1.0, 0.0]).unwrap();
        assert_eq!(count.add(&scores, &[3]).unwrap_err().kind, ErrorKind::Label);
        assert_eq!(count.add(&scores, &[0, 1]).unwrap_err().kind, ErrorKind::Mismatch);
        count.add(&scores, &[1]).unwrap();
        assert_eq!((count.samples(), count.accuracy(), count.summary().top5), (1, 0.0, None));
    }

    /// Predictions 0 0 1 1 1 2 of classes 0 1 1 1 2 0: by hand, and as scikit-learn defines its macro average.
    #[test]
    fn precision_recall_and_confusion_are_counted_by_class() {
        let mut count = Classification::new(4).with_auc();
        let predictions = [0usize, 0, 1, 1, 1, 2];
        let rows = predictions.iter().flat_map(|&p| (0..4).map(move |c| if c == p { 2.0f32 } else { 0.0 }));
        let scores = Tensor::from_slice(&[6, 4], &rows.collect::<Vec<_>>()).unwrap();
        count.add(&scores, &[0, 1, 1, 1, 2, 0]).unwrap();
        let summary = count.summary();
        assert_eq!(summary.confusion, [[1, 0, 1, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]);
        let of = |class: usize| {
            let class = summary.per_class[class];
            [class.precision(), class.recall(), class.f1()]
        };
        assert_eq!(of(0), [0.5, 0.5, 0.5]);
        assert_eq!(of(1), [2.0 / 3.0; 3]);
        assert_eq!(of(2), [0.0; 3]);
        // Class 3 does not occur.
        assert!((summary.macro_f1 - (0.5 + 2.0 / 3.0) / 3.0).abs() < 1e-12);
        assert!(summary.auc.is_some());
        // Labels behind one greater score: the equal ones before them come first.
        assert_eq!([count.top(1), count.top(2), count.top(3), count.top(4)], [0.5, 5.0 / 6.0, 1.0, 1.0]);
    }

    /// `-0.0` equals 0, though its bits are smaller.
    #[test]
    fn right_predictions_are_on_the_diagonal() {
        let mut rng = fastrand::Rng::with_seed(2);
        let values = [0.0, -0.0, 1.0, -1.0, 0.0, 1.0, -0.0, f32::NAN];
        let scores: Vec<f32> = (0..600).map(|_| values[rng.usize(0..values.len())]).collect();
        let labels: Vec<usize> = (0..200).map(|_| rng.usize(0..3)).collect();
        let mut count = Classification::new(3);
        count.add(&Tensor::from_slice(&[200, 3], &scores).unwrap(), &labels).unwrap();
        let summary = count.summary();
        for (class, counts) in summary.per_class.iter().enumerate() {
            assert_eq!(summary.confusion[class][class], counts.correct);
            assert_eq!(summary.confusion.iter().map(|row| row[class]).sum::<usize>(), counts.predicted);
        }
    }
}
