//! How well scores separate the samples of a class from the others.

/// The area under the curve of true over false positives, from the scores of all samples. Source: Hanley & McNeil 1982.
#[derive(Clone, Debug)]
pub struct Auc {
    classes: usize,
    /// Probabilities, sample by sample.
    scores: Vec<f32>,
    labels: Vec<usize>,
    /// Whether there were more scores than are kept.
    full: bool,
}

/// The most scores that are kept: 64 MB.
const LARGEST: usize = 1 << 24;

impl Auc {
    /// Of scores of `classes` classes.
    pub fn new(classes: usize) -> Self {
        Auc { classes, scores: Vec::new(), labels: Vec::new(), full: false }
    }

    /// Adds rows of scores, one for each class. Rows that are no probabilities are taken for logits.
    pub(super) fn add(&mut self, scores: &[f32], labels: &[usize]) {
        self.full |= self.scores.len() + scores.len() > LARGEST;
        if self.full {
            return;
        }
        for row in scores.chunks_exact(self.classes.max(1)) {
            let sum: f32 = row.iter().sum();
            let probabilities = row.iter().all(|p| (0.0..=1.0).contains(p)) && (sum - 1.0).abs() < 1e-2;
            match probabilities {
                true => self.scores.extend(row),
                false => {
                    let most = row.iter().copied().fold(f32::MIN, f32::max);
                    let powers: Vec<f32> = row.iter().map(|x| (x - most).exp()).collect();
                    let sum: f32 = powers.iter().sum();
                    self.scores.extend(powers.iter().map(|p| p / sum));
                }
            }
        }
        self.labels.extend(labels);
    }

    /// How likely a sample of a class has a higher score for it than one of another class: of two classes for the second
    /// one, else the mean over all classes that some samples are of and others are not. `None` without such a class,
    /// when a score is no number, and beyond 16 million scores.
    pub fn value(&self) -> Option<f64> {
        if self.full || self.scores.iter().any(|s| s.is_nan()) {
            return None;
        }
        let classes = if self.classes == 2 { 1..2 } else { 0..self.classes };
        let areas: Vec<f64> = classes.filter_map(|class| self.of_class(class)).collect();
        (!areas.is_empty()).then(|| areas.iter().sum::<f64>() / areas.len() as f64)
    }

    /// That of one class against all others; equal scores count half.
    fn of_class(&self, class: usize) -> Option<f64> {
        let own = self.scores.iter().skip(class).step_by(self.classes);
        let mut sorted: Vec<(f32, bool)> =
            own.copied().zip(self.labels.iter().map(|&label| label == class)).collect();
        sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (mut below, mut wins) = (0.0, 0.0);
        for equal in sorted.chunk_by(|a, b| a.0 == b.0) {
            let positives = equal.iter().filter(|(_, positive)| *positive).count() as f64;
            let negatives = equal.len() as f64 - positives;
            wins += positives * (below + negatives / 2.0);
            below += negatives;
        }
        let pairs = (sorted.len() as f64 - below) * below;
        (pairs > 0.0).then(|| wins / pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auc(classes: usize, rows: &[f32], labels: &[usize]) -> Option<f64> {
        let mut auc = Auc::new(classes);
        let half = labels.len() / 2;
        auc.add(&rows[..half * classes], &labels[..half]);
        auc.add(&rows[half * classes..], &labels[half..]);
        auc.value()
    }

    /// Positives 0.8, 0.4, 0.4 and negatives 0.1, 0.4, 0.6: of nine pairs 3 + (1 + ½) + (1 + ½) are won.
    #[test]
    fn pairs_are_won_and_equal_scores_share() {
        let p = [0.8f32, 0.1, 0.4, 0.4, 0.6, 0.4];
        let rows: Vec<f32> = p.iter().flat_map(|&p| [1.0 - p, p]).collect();
        assert_eq!(auc(2, &rows, &[1, 0, 1, 0, 0, 1]), Some(6.0 / 9.0));
        // The same as logits.
        let logits: Vec<f32> = p.iter().flat_map(|&p| [0.5, (p / (1.0 - p)).ln() + 0.5]).collect();
        assert!((auc(2, &logits, &[1, 0, 1, 0, 0, 1]).unwrap() - 6.0 / 9.0).abs() < 1e-12);
        assert_eq!(auc(2, &rows[..4], &[1, 1]), None);
    }

    /// There is no sample of class 2.
    #[test]
    fn classes_against_the_others_are_averaged() {
        // Class 0 has 0.7 against 0.5 and 0.3, class 1 0.3 and 0.25 against 0.2.
        let rows = [0.7f32, 0.2, 0.1, 0.5, 0.3, 0.2, 0.3, 0.25, 0.45];
        assert_eq!(auc(3, &rows, &[0, 1, 1]), Some((1.0 + 1.0) / 2.0));
        let rows = [0.6f32, 0.3, 0.1, 0.5, 0.2, 0.3, 0.3, 0.25, 0.45];
        // Class 1 has 0.2 and 0.25 against 0.3.
        assert_eq!(auc(3, &rows, &[0, 1, 1]), Some((1.0 + 0.0) / 2.0));
        assert_eq!(auc(3, &[0.1, f32::NAN, 0.2, 0.5, 0.3, 0.2], &[0, 1]), None);
    }

    /// Every pair is looked at.
    #[test]
    fn the_area_is_the_share_of_pairs() {
        let mut rng = fastrand::Rng::with_seed(4);
        let p: Vec<f32> = (0..300).map(|_| rng.u32(0..40) as f32 / 40.0).collect();
        let labels: Vec<usize> = (0..300).map(|_| rng.usize(0..2)).collect();
        let rows: Vec<f32> = p.iter().flat_map(|&p| [1.0 - p, p]).collect();
        let (mut wins, mut pairs) = (0.0, 0.0);
        for (a, _) in p.iter().zip(&labels).filter(|(_, label)| **label == 1) {
            for (b, _) in p.iter().zip(&labels).filter(|(_, label)| **label == 0) {
                wins += if a > b {
                    1.0
                } else if a == b {
                    0.5
                } else {
                    0.0
                };
                pairs += 1.0;
            }
        }
        assert!((auc(2, &rows, &labels).unwrap() - wins / pairs).abs() < 1e-12);
    }
}
