//! What training makes small.

use sora_data::{Setting, Settings, setting};
use sora_ir::ops::{BinaryKind, Reduce, ReduceKind, Softmax, UnaryKind};
use sora_ir::{Mismatch, ValueId, Writer};
use sora_tensor::{DType, Tensor};

use crate::TrainError;
use crate::ctc::ctc;
use crate::table::find;

/// What a loss compares the network's result with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The number of a class for each sample, `i64[N]`, where the result is `[N, classes]`.
    Class,
    /// A tensor of the result's type.
    Same,
    /// The numbers of classes in their order, `i64[N, L]`, behind whose last one -1 fills up, where the result is
    /// `[N, T, classes]`.
    Sequence,
}

/// A loss: a row of [`LOSSES`].
#[derive(Debug)]
pub struct LossRow {
    /// Name.
    pub name: &'static str,
    /// Numbers it takes.
    pub settings: &'static [Setting],
    /// What it compares with.
    pub target: Target,
    /// Function at the end of the network that belongs to the loss: it takes what goes into that.
    pub from: Link,
    build: fn(&mut Writer, [ValueId; 2], &Loss) -> Result<ValueId, Mismatch>,
}

impl LossRow {
    /// Whether the class of a sample is all that it needs to be told.
    pub fn takes_classes(&self) -> bool {
        self.target == Target::Class || self.target == Target::Same && self.from != Link::Identity
    }
}

/// The function between what a network computes and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// None: values are what they are.
    Identity,
    /// Probabilities of classes that exclude each other.
    Softmax,
    /// Probabilities of classes by themselves.
    Sigmoid,
    /// Signs: above 0 is the second of two classes.
    Sign,
}

const SMOOTHING: &[Setting] = &[setting("label_smoothing", 0.0, 0.0, 1.0)];

/// All losses. Each gives one number: the mean over the samples, for those of [`Target::Same`] over all elements.
/// Cross-entropies take logits; with label smoothing ε, targets are mixed with ε of all classes alike (Szegedy et al.
/// 2016), for binary ones with ε of one half.
pub const LOSSES: &[LossRow] = &[
    LossRow {
        name: "sparse_categorical_crossentropy",
        settings: SMOOTHING,
        target: Target::Class,
        from: Link::Softmax,
        build: |w, [y, class], loss| {
            let shape = w.shape(y)?;
            let classes: Vec<i64> = (0..).take(shape[1]).collect();
            let classes = w.constant(Tensor::from_slice(&[1, shape[1]], &classes)?);
            let class = w.reshape(class, &[shape[0], 1])?;
            let hit = w.binary(BinaryKind::Equal, class, classes)?;
            let target = w.cast(hit, DType::F32)?;
            categorical(w, [y, target], loss)
        },
    },
    LossRow {
        name: "categorical_crossentropy",
        settings: SMOOTHING,
        target: Target::Same,
        from: Link::Softmax,
        build: categorical,
    },
    LossRow {
        name: "binary_crossentropy",
        settings: SMOOTHING,
        target: Target::Same,
        from: Link::Sigmoid,
        // −t ln σ(y) − (1 − t) ln(1 − σ(y)) = ln(1 + eʸ) − t y, which does not overflow.
        build: |w, [y, target], loss| {
            let smoothing = loss.settings.get("label_smoothing");
            let target = mixed(w, target, smoothing, 0.5)?;
            let first = w.unary(UnaryKind::Softplus, y)?;
            let second = w.mul(y, target)?;
            let each = w.sub(first, second)?;
            mean(w, each)
        },
    },
    LossRow {
        // Σ t ln(t / softmax(y)), where 0 ln 0 = 0. Source: Kullback & Leibler 1951.
        name: "kl_divergence",
        settings: &[],
        target: Target::Same,
        from: Link::Softmax,
        build: |w, [y, target], loss| {
            let least = w.number(f64::from(f32::MIN_POSITIVE), target)?;
            let bounded = w.binary(BinaryKind::Max, target, least)?;
            let wanted = w.unary(UnaryKind::Log, bounded)?;
            let log = w.op(Softmax { axis: 1, log: true }, [y])?;
            let apart = w.sub(log, wanted)?;
            let each = w.mul(apart, target)?;
            by_sample(w, each, target, loss)
        },
    },
    LossRow {
        // max(0, 1 − t y), where t is 1 for targets above 0, else −1. Source: Cortes & Vapnik 1995.
        name: "hinge",
        settings: &[],
        target: Target::Same,
        from: Link::Sign,
        build: |w, [y, target], _| {
            let above = w.compare(target, BinaryKind::Greater, 0.0)?;
            let (up, down) = (w.number(1.0, y)?, w.number(-1.0, y)?);
            let sign = w.select(above, up, down)?;
            let right = w.mul(sign, y)?;
            let left = w.sub(up, right)?;
            let each = w.unary(UnaryKind::Relu, left)?;
            mean(w, each)
        },
    },
    LossRow {
        name: "ctc",
        settings: &[],
        target: Target::Sequence,
        from: Link::Softmax,
        build: |w, [y, labels], _| ctc(w, y, labels),
    },
    LossRow {
        name: "mean_squared_error",
        settings: &[],
        target: Target::Same,
        from: Link::Identity,
        build: |w, [y, target], _| {
            let error = w.sub(y, target)?;
            let squared = w.mul(error, error)?;
            mean(w, squared)
        },
    },
    LossRow {
        name: "mean_absolute_error",
        settings: &[],
        target: Target::Same,
        from: Link::Identity,
        build: |w, [y, target], _| {
            let error = w.sub(y, target)?;
            let size = w.unary(UnaryKind::Abs, error)?;
            mean(w, size)
        },
    },
    LossRow {
        // e²/2 up to |e| = δ, then δ (|e| − δ/2). Source: Huber 1964.
        name: "huber",
        settings: &[setting("delta", 1.0, 1e-12, 1e12)],
        target: Target::Same,
        from: Link::Identity,
        build: |w, [y, target], loss| {
            let error = w.sub(y, target)?;
            let size = w.unary(UnaryKind::Abs, error)?;
            let delta = w.number(loss.settings.get("delta"), size)?;
            // With b = min(|e|, δ): b (|e| − b/2).
            let bounded = w.binary(BinaryKind::Min, size, delta)?;
            let half = w.times(bounded, 0.5)?;
            let rest = w.sub(size, half)?;
            let each = w.mul(bounded, rest)?;
            mean(w, each)
        },
    },
];

fn categorical(w: &mut Writer, [y, given]: [ValueId; 2], loss: &Loss) -> Result<ValueId, Mismatch> {
    let shape = w.shape(y)?;
    let target = mixed(w, given, loss.settings.get("label_smoothing"), 1.0 / shape[1] as f64)?;
    let log = w.op(Softmax { axis: 1, log: true }, [y])?;
    let each = w.mul(log, target)?;
    by_sample(w, each, given, loss)
}

/// The mean over the samples of what `each` sums up to over the classes, with the sign reversed, and times the weight of the
/// sample's class in `given`.
fn by_sample(w: &mut Writer, mut each: ValueId, given: ValueId, loss: &Loss) -> Result<ValueId, Mismatch> {
    let shape = w.shape(each)?;
    if let Some(weights) = &loss.class_weights {
        if weights.len() != shape[1] || shape.len() != 2 {
            let (found, name) = (weights.len(), loss.row.name);
            return Err(Mismatch::new(format!(
                "{name}: {found} weights for the classes of a result {shape:?}"
            )));
        }
        let weights = w.constant(Tensor::from_f64s(DType::F32, &[1, weights.len()], weights)?);
        let own = w.mul(given, weights)?;
        let own = w.reduce(ReduceKind::Sum, own, &[1])?;
        each = w.mul(each, own)?;
    }
    let sum = w.op(Reduce { kind: ReduceKind::Sum, axes: Vec::new(), keep_dims: false }, [each])?;
    let samples = (shape.iter().product::<usize>() / shape[1]) as f64;
    w.times(sum, -1.0 / samples)
}

/// `(1 − share) · target + share · with`
fn mixed(w: &mut Writer, target: ValueId, share: f64, with: f64) -> Result<ValueId, Mismatch> {
    if share == 0.0 {
        return Ok(target);
    }
    let target = w.times(target, 1.0 - share)?;
    w.plus(target, share * with)
}

fn mean(w: &mut Writer, x: ValueId) -> Result<ValueId, Mismatch> {
    w.op(Reduce { kind: ReduceKind::Mean, axes: Vec::new(), keep_dims: false }, [x])
}

/// A loss with its numbers.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The row.
    pub row: &'static LossRow,
    settings: Settings,
    class_weights: Option<Vec<f64>>,
}

impl Loss {
    /// The loss of this name.
    ///
    /// # Errors
    /// [`TrainError::Unknown`], or [`TrainError::Data`] for a setting that it does not take, with what is near.
    pub fn new(name: &str, given: &std::collections::BTreeMap<String, f64>) -> Result<Self, TrainError> {
        let row = find("loss", LOSSES, |row| row.name, name)?;
        Ok(Loss { row, settings: Settings::new(name, row.settings, given)?, class_weights: None })
    }

    /// What the loss of a sample counts, by its class, instead of 1. The mean is still over the number of samples, as in Keras.
    ///
    /// # Errors
    /// [`TrainError::Network`] for a loss that knows no classes, and for numbers that are negative or none.
    pub fn with_class_weights(self, weights: &[f64]) -> Result<Self, TrainError> {
        if self.row.from != Link::Softmax || self.row.target == Target::Sequence {
            return Err(TrainError::Network(format!("`{}` has no weights of classes", self.row.name)));
        }
        if let Some(weight) = weights.iter().find(|&&weight| !(weight >= 0.0 && weight.is_finite())) {
            return Err(TrainError::Network(format!("{weight} cannot be the weight of a class")));
        }
        Ok(Loss { class_weights: Some(weights.to_vec()), ..self })
    }

    /// Writes the loss of what the network computes, before [`LossRow::from`].
    ///
    /// # Errors
    /// [`Mismatch`] when result and target do not fit.
    pub fn write(&self, w: &mut Writer, y: ValueId, target: ValueId) -> Result<ValueId, Mismatch> {
        let (given, expected) = (w.shape(target)?, w.shape(y)?);
        let fits = match self.row.target {
            Target::Class => expected.len() == 2 && given == expected[..1],
            Target::Sequence => {
                expected.len() == 3 && given.len() == 2 && given[0] == expected[0] && given[1] > 0
            }
            Target::Same => given == expected && (self.row.from != Link::Softmax || given.len() >= 2),
        };
        match fits {
            true => (self.row.build)(w, [y, target], self),
            false => {
                let name = self.row.name;
                Err(Mismatch::new(format!("{name} cannot compare a result {expected:?} with {given:?}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sora_ir::{Graph, TensorType, evaluate};

    use super::*;

    /// The loss of a result `[2, 3]`, and its gradient.
    fn value(name: &str, settings: &[(&str, f64)], y: &[f32], target: &Tensor) -> (f64, Vec<f64>) {
        let given: BTreeMap<String, f64> = settings.iter().map(|&(n, v)| (n.to_owned(), v)).collect();
        let loss = Loss::new(name, &given).unwrap();
        let mut graph = Graph::new("loss");
        let y = Tensor::from_slice(&[2, y.len() / 2], y).unwrap();
        let (a, b) = (graph.input("y", TensorType::of(&y)), graph.input("t", TensorType::of(target)));
        let value = loss.write(&mut Writer::new(&mut graph, "loss"), a, b).unwrap();
        let gradient = crate::differentiate(&mut graph, value, &[a]).unwrap()[0];
        graph.output("loss", value);
        graph.output("gradient", gradient);
        let found = evaluate(&graph, &[("y", &y), ("t", target)]).unwrap();
        (found[0].to_f64s()[0], found[1].to_f64s())
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6 * expected.abs().max(1.0), "{found} instead of {expected}");
    }

    const LOGITS: [f32; 6] = [2.0, 1.0, 0.1, -1.0, 0.5, 0.5];

    /// By hand: ln(e² + e + e^0.1) = 2.4170300, ln(e⁻¹ + 2 e^0.5) = 1.2986746.
    #[test]
    fn cross_entropies_are_what_the_formula_says() {
        let (first, second) = (2.417_030_0, (-1f64).exp().ln_1p_sum(2.0 * 0.5f64.exp()));
        let classes = Tensor::vector(&[0i64, 2]);
        let (loss, gradient) = value("sparse_categorical_crossentropy", &[], &LOGITS, &classes);
        near(loss, ((first - 2.0) + (second - 0.5)) / 2.0);
        // (softmax − target) / samples
        near(gradient[0], ((2.0 - first).exp() - 1.0) / 2.0);
        near(gradient[4], (0.5 - second).exp() / 2.0);
        let rows = Tensor::from_slice(&[2, 3], &[1.0f32, 0.0, 0.0, 0.0, 0.0, 1.0]).unwrap();
        near(value("categorical_crossentropy", &[], &LOGITS, &rows).0, loss);
        // ε = 0.3 spreads 0.1 on each class: the mean of the logits takes its share.
        let smooth = |log: f64, right: f64, sum: f64| log - 0.7 * right - 0.1 * sum;
        let expected = (smooth(first, 2.0, 3.1) + smooth(second, 0.5, 0.0)) / 2.0;
        let settings = [("label_smoothing", 0.3)];
        near(value("sparse_categorical_crossentropy", &settings, &LOGITS, &classes).0, expected);
        near(value("categorical_crossentropy", &settings, &LOGITS, &rows).0, expected);
    }

    trait LnSum {
        fn ln_1p_sum(self, other: f64) -> f64;
    }

    impl LnSum for f64 {
        fn ln_1p_sum(self, other: f64) -> f64 {
            (self + other).ln()
        }
    }

    #[test]
    fn binary_cross_entropy_is_what_the_formula_says_and_does_not_overflow() {
        let target = Tensor::from_slice(&[2, 2], &[1.0f32, 0.0, 1.0, 0.0]).unwrap();
        let y = [0.3f32, -1.2, 200.0, 150.0];
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let expected =
            (-sigmoid(0.3f32.into()).ln() - (1.0 - sigmoid((-1.2f32).into())).ln() + 0.0 + 150.0) / 4.0;
        near(value("binary_crossentropy", &[], &y, &target).0, expected);
        let (_, gradient) = value("binary_crossentropy", &[], &y, &target);
        near(gradient[0], (sigmoid(0.3f32.into()) - 1.0) / 4.0);
        // ε = 0.2: targets 0.9 and 0.1; each logit loses 0.1 or gains it.
        let smoothed = value("binary_crossentropy", &[("label_smoothing", 0.2)], &y, &target).0;
        let shift = 0.1 * (0.3 + 1.2 + 200.0 - 150.0) / 4.0;
        assert!((smoothed - (expected + shift)).abs() < 1e-5);
    }

    /// The divergence is the cross-entropy less the entropy of what is wanted.
    #[test]
    fn divergence_and_hinge_are_what_the_formulas_say() {
        let rows = Tensor::from_slice(&[2, 3], &[0.7f32, 0.2, 0.1, 0.0, 0.0, 1.0]).unwrap();
        let entropy = -(0.7 * 0.7f64.ln() + 0.2 * 0.2f64.ln() + 0.1 * 0.1f64.ln()) / 2.0;
        let (cross, slope) = value("categorical_crossentropy", &[], &LOGITS, &rows);
        let (divergence, gradient) = value("kl_divergence", &[], &LOGITS, &rows);
        near(divergence, cross - entropy);
        gradient.iter().zip(slope).for_each(|(&found, expected)| near(found, expected));
        // Signs 1, −1, 1, −1: 1 − 0.25, nothing, 1 + 2, 1 + 0.5.
        let y = [0.25f32, -3.0, -2.0, 0.5];
        for given in [[1.0f32, 0.0, 1.0, 0.0], [1.0, -1.0, 1.0, -1.0]] {
            let target = Tensor::from_slice(&[2, 2], &given).unwrap();
            let (hinge, gradient) = value("hinge", &[], &y, &target);
            near(hinge, (0.75 + 3.0 + 1.5) / 4.0);
            assert_eq!(gradient, [-0.25, 0.0, -0.25, 0.25]);
        }
    }

    #[test]
    fn distances_are_what_the_formulas_say() {
        let (y, target) =
            ([0.0f32, 3.0, -1.0, 0.5], Tensor::from_slice(&[2, 2], &[0.5f32, 0.0, 1.0, 0.5]).unwrap());
        // Errors −0.5, 3, −2, 0.
        near(value("mean_squared_error", &[], &y, &target).0, (0.25 + 9.0 + 4.0) / 4.0);
        near(value("mean_absolute_error", &[], &y, &target).0, 5.5 / 4.0);
        let (huber, gradient) = value("huber", &[("delta", 2.0)], &y, &target);
        near(huber, (0.125 + 2.0 * (3.0 - 1.0) + 2.0) / 4.0);
        assert_eq!(gradient[0], -0.125);
        assert_eq!(gradient[1], 0.5);
    }

    #[test]
    fn misfits_are_refused() {
        let mut graph = Graph::new("g");
        let y = graph.input("y", TensorType::new(DType::F32, [2usize, 3]));
        let t = graph.input("t", TensorType::new(DType::I64, [3usize]));
        let loss = Loss::new("sparse_categorical_crossentropy", &BTreeMap::new()).unwrap();
        let error = loss.write(&mut Writer::new(&mut graph, "loss"), y, t).unwrap_err();
        assert!(error.0.contains("[2, 3]") && error.0.contains("[3]"), "{}", error.0);
        let error = Loss::new("sparse_crossentropy", &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("loss"), "{error}");
    }
}
