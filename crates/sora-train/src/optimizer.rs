//! How weights follow their gradients.

use std::collections::BTreeMap;

use sora_data::{Setting, Settings, setting};
use sora_ir::ops::{BinaryKind, Reduce, ReduceKind, UnaryKind};
use sora_ir::{Mismatch, ValueId, Writer};

use crate::TrainError;
use crate::table::find;

/// What an update reads.
pub(crate) struct Update<'a> {
    /// The weights.
    pub(crate) weight: ValueId,
    /// Their gradient.
    pub(crate) gradient: ValueId,
    /// The learning rate, a number.
    pub(crate) rate: ValueId,
    /// The number of this step, from 1, as `f32`.
    pub(crate) step: ValueId,
    /// Tensors like the weights that the optimizer keeps.
    pub(crate) slots: &'a [ValueId],
    /// Whether the weights may shrink by themselves.
    pub(crate) decays: bool,
}

/// The weights and the slots behind a step.
type Updated = Result<(ValueId, Vec<ValueId>), Mismatch>;

/// An optimizer: a row of [`OPTIMIZERS`].
#[derive(Debug)]
pub struct OptimizerRow {
    /// Name.
    pub name: &'static str,
    /// Numbers it takes.
    pub settings: &'static [Setting],
    /// The tensors that it keeps for each parameter, and the setting that they begin with; else zeros.
    pub slots: &'static [(&'static str, Option<&'static str>)],
    update: fn(&mut Writer, &Update, &Settings) -> Updated,
}

const EPSILON: Setting = setting("epsilon", 1e-7, 0.0, 1.0);
const BETAS: [Setting; 2] = [setting("beta1", 0.9, 0.0, 1.0), setting("beta2", 0.999, 0.0, 1.0)];

/// All optimizers, with `w` the weights, `g` the gradient and `η` the learning rate.
pub const OPTIMIZERS: &[OptimizerRow] = &[
    OptimizerRow {
        name: "sgd",
        settings: &[],
        slots: &[],
        update: |w, u, _| {
            let move_ = w.mul(u.gradient, u.rate)?;
            Ok((w.sub(u.weight, move_)?, Vec::new()))
        },
    },
    OptimizerRow {
        // v ← μ v − η g, w ← w + v. Source: Polyak 1964, as Keras writes it.
        name: "momentum",
        settings: &[setting("momentum", 0.9, 0.0, 1.0)],
        slots: &[("velocity", None)],
        update: |w, u, s| {
            let velocity = velocity(w, u, s)?;
            Ok((w.add(u.weight, velocity)?, vec![velocity]))
        },
    },
    OptimizerRow {
        // v ← μ v − η g, w ← w + μ v − η g. Source: Sutskever et al. 2013.
        name: "nesterov",
        settings: &[setting("momentum", 0.9, 0.0, 1.0)],
        slots: &[("velocity", None)],
        update: |w, u, s| {
            let velocity = velocity(w, u, s)?;
            let (ahead, fall) = (w.times(velocity, s.get("momentum"))?, w.mul(u.gradient, u.rate)?);
            let move_ = w.sub(ahead, fall)?;
            Ok((w.add(u.weight, move_)?, vec![velocity]))
        },
    },
    OptimizerRow {
        name: "adam",
        settings: &[BETAS[0], BETAS[1], EPSILON],
        slots: &[("mean", None), ("square", None)],
        update: adam,
    },
    OptimizerRow {
        // Adam beside w ← w − η λ w. Source: Loshchilov & Hutter 2019.
        name: "adamw",
        settings: &[BETAS[0], BETAS[1], EPSILON, setting("weight_decay", 0.004, 0.0, 1.0)],
        slots: &[("mean", None), ("square", None)],
        update: |w, u, s| {
            if !u.decays {
                return adam(w, u, s);
            }
            let share = w.times(u.rate, -s.get("weight_decay"))?;
            let kept = w.plus(share, 1.0)?;
            let weight = w.mul(u.weight, kept)?;
            adam(w, &Update { weight, ..*u }, s)
        },
    },
    OptimizerRow {
        // s ← ρ s + (1 − ρ) g², v ← μ v + g / (√s + ε), w ← w − η v. Source: Tieleman & Hinton 2012.
        name: "rmsprop",
        settings: &[setting("rho", 0.9, 0.0, 1.0), setting("momentum", 0.0, 0.0, 1.0), EPSILON],
        slots: &[("square", None), ("velocity", None)],
        update: |w, u, s| {
            let squared = w.mul(u.gradient, u.gradient)?;
            let square = average(w, u.slots[0], squared, s.get("rho"))?;
            let scaled = scaled(w, u.gradient, square, s)?;
            let before = w.times(u.slots[1], s.get("momentum"))?;
            let velocity = w.add(before, scaled)?;
            let move_ = w.mul(velocity, u.rate)?;
            Ok((w.sub(u.weight, move_)?, vec![square, velocity]))
        },
    },
    OptimizerRow {
        // s ← s + g², w ← w − η g / (√s + ε). Source: Duchi, Hazan & Singer 2011.
        name: "adagrad",
        settings: &[setting("initial", 0.1, 0.0, 1e6), EPSILON],
        slots: &[("square", Some("initial"))],
        update: |w, u, s| {
            let squared = w.mul(u.gradient, u.gradient)?;
            let square = w.add(u.slots[0], squared)?;
            let scaled = scaled(w, u.gradient, square, s)?;
            let move_ = w.mul(scaled, u.rate)?;
            Ok((w.sub(u.weight, move_)?, vec![square]))
        },
    },
];

/// `μ v − η g`
fn velocity(w: &mut Writer, u: &Update, s: &Settings) -> Result<ValueId, Mismatch> {
    let kept = w.times(u.slots[0], s.get("momentum"))?;
    let fall = w.mul(u.gradient, u.rate)?;
    w.sub(kept, fall)
}

/// `share · old + (1 − share) · new`
fn average(w: &mut Writer, old: ValueId, new: ValueId, share: f64) -> Result<ValueId, Mismatch> {
    let old = w.times(old, share)?;
    let new = w.times(new, 1.0 - share)?;
    w.add(old, new)
}

/// `x / (√square + ε)`
fn scaled(w: &mut Writer, x: ValueId, square: ValueId, s: &Settings) -> Result<ValueId, Mismatch> {
    let root = w.unary(UnaryKind::Sqrt, square)?;
    let bounded = w.plus(root, s.get("epsilon"))?;
    w.div(x, bounded)
}

/// m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², w ← w − η m̂ / (√v̂ + ε) with m̂ = m / (1 − β₁ᵗ) and v̂ likewise.
/// Source: Kingma & Ba 2015, algorithm 1.
fn adam(w: &mut Writer, u: &Update, s: &Settings) -> Updated {
    let mean = average(w, u.slots[0], u.gradient, s.get("beta1"))?;
    let squared = w.mul(u.gradient, u.gradient)?;
    let square = average(w, u.slots[1], squared, s.get("beta2"))?;
    let mut rest = |name: &str| {
        let beta = w.number(s.get(name), u.step)?;
        let power = w.binary(BinaryKind::Pow, beta, u.step)?;
        let one = w.number(1.0, power)?;
        w.sub(one, power)
    };
    let (first, second) = (rest("beta1")?, rest("beta2")?);
    // √v̂ = √v / √(1 − β₂ᵗ), and the numbers are put together before they meet tensors.
    let root = w.unary(UnaryKind::Sqrt, second)?;
    let rate = w.div(u.rate, first)?;
    let spread = w.unary(UnaryKind::Sqrt, square)?;
    let spread = w.div(spread, root)?;
    let spread = w.plus(spread, s.get("epsilon"))?;
    let move_ = w.div(mean, spread)?;
    let move_ = w.mul(move_, rate)?;
    Ok((w.sub(u.weight, move_)?, vec![mean, square]))
}

/// An optimizer with its numbers.
#[derive(Clone, Debug)]
pub struct Optimizer {
    /// The row.
    pub row: &'static OptimizerRow,
    settings: Settings,
}

impl Optimizer {
    /// The optimizer of this name.
    ///
    /// # Errors
    /// [`TrainError::Unknown`], or [`TrainError::Data`] for a setting that it does not take, with what is near.
    pub fn new(name: &str, given: &BTreeMap<String, f64>) -> Result<Self, TrainError> {
        let row = find("optimizer", OPTIMIZERS, |row| row.name, name)?;
        Ok(Optimizer { row, settings: Settings::new(name, row.settings, given)? })
    }

    /// What the elements of a slot begin with.
    pub(crate) fn initial(&self, slot: usize) -> f64 {
        self.row.slots[slot].1.map_or(0.0, |name| self.settings.get(name))
    }

    pub(crate) fn write(&self, w: &mut Writer, update: &Update) -> Updated {
        (self.row.update)(w, update, &self.settings)
    }
}

/// Scales gradients together so that their norm, over all elements of all, is at most `limit`: by `limit / max(norm,
/// limit)`. Source: Pascanu, Mikolov & Bengio 2013.
pub(crate) fn clip(w: &mut Writer, gradients: &mut [ValueId], limit: f64) -> Result<(), Mismatch> {
    let mut total = None;
    for &gradient in gradients.iter() {
        let sum =
            w.op(Reduce { kind: ReduceKind::SumSquare, axes: Vec::new(), keep_dims: false }, [gradient])?;
        total = Some(match total {
            None => sum,
            Some(before) => w.add(before, sum)?,
        });
    }
    let Some(total) = total else { return Ok(()) };
    let norm = w.unary(UnaryKind::Sqrt, total)?;
    let limit = w.number(limit, norm)?;
    let bounded = w.binary(BinaryKind::Max, norm, limit)?;
    let factor = w.div(limit, bounded)?;
    for gradient in gradients {
        *gradient = w.mul(*gradient, factor)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sora_ir::{Graph, TensorType, evaluate};
    use sora_tensor::{DType, Tensor};

    use super::*;

    /// The weights after steps with these gradients, from w = 1 and rate 0.1.
    fn run(name: &str, settings: &[(&str, f64)], gradients: &[f32]) -> Vec<f64> {
        let given: BTreeMap<String, f64> = settings.iter().map(|&(n, v)| (n.to_owned(), v)).collect();
        let optimizer = Optimizer::new(name, &given).unwrap();
        let mut graph = Graph::new("update");
        let number = || TensorType::new(DType::F32, [0usize; 0]);
        let names = ["weight", "gradient", "rate", "step"];
        let [weight, gradient, rate, step] = names.map(|name| graph.input(name, number()));
        let slots: Vec<ValueId> =
            (0..optimizer.row.slots.len()).map(|i| graph.input(&format!("slot{i}"), number())).collect();
        let update = Update { weight, gradient, rate, step, slots: &slots, decays: true };
        let (next, kept) = optimizer.write(&mut Writer::new(&mut graph, "update"), &update).unwrap();
        graph.output("weight", next);
        kept.iter().enumerate().for_each(|(i, &slot)| graph.output(&format!("slot{i}"), slot));
        let mut state = vec![Tensor::scalar(1.0f32)];
        state.extend((0..slots.len()).map(|i| Tensor::scalar(optimizer.initial(i) as f32)));
        let mut seen = Vec::new();
        for (t, &g) in gradients.iter().enumerate() {
            let slot_names: Vec<String> = (0..slots.len()).map(|i| format!("slot{i}")).collect();
            let (g, rate, t) = (Tensor::scalar(g), Tensor::scalar(0.1f32), Tensor::scalar((t + 1) as f32));
            let mut given = vec![("weight", &state[0]), ("gradient", &g), ("rate", &rate), ("step", &t)];
            given.extend(slot_names.iter().map(String::as_str).zip(&state[1..]));
            let next = evaluate(&graph, &given).unwrap();
            seen.push(next[0].to_f64s()[0]);
            state = next;
        }
        seen
    }

    fn near(found: &[f64], expected: &[f64]) {
        let close = found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6);
        assert!(close && found.len() == expected.len(), "{found:?} instead of {expected:?}");
    }

    const G: [f32; 3] = [1.0, -0.5, 2.0];

    /// By hand, from w = 1 with rate 0.1 and gradients 1, −0.5, 2.
    #[test]
    fn steps_downhill() {
        near(&run("sgd", &[], &G), &[0.9, 0.95, 0.75]);
        // v: −0.1, −0.09 + 0.05 = −0.04, −0.036 − 0.2 = −0.236.
        near(&run("momentum", &[], &G), &[0.9, 0.86, 0.624]);
        // w + 0.9 v − 0.1 g: −0.19, −0.036 + 0.05, −0.2124 − 0.2.
        near(&run("nesterov", &[], &G), &[0.81, 0.824, 0.4116]);
        near(&run("momentum", &[("momentum", 0.5)], &G), &[0.9, 0.9, 0.7]);
    }

    /// An independent computation of Adam's algorithm 1 in `f64`.
    #[test]
    fn adam_is_algorithm_1() {
        let reference = |decay: f64| {
            let (mut w, mut m, mut v) = (1.0f64, 0.0, 0.0);
            let step = |(t, &g): (usize, &f32)| {
                let g = f64::from(g);
                m = 0.9 * m + 0.1 * g;
                v = 0.999 * v + 0.001 * g * g;
                let (unbiased_m, unbiased_v) =
                    (m / (1.0 - 0.9f64.powi(t as i32 + 1)), v / (1.0 - 0.999f64.powi(t as i32 + 1)));
                w = w - 0.1 * decay * w - 0.1 * unbiased_m / (unbiased_v.sqrt() + 1e-7);
                w
            };
            G.iter().enumerate().map(step).collect::<Vec<f64>>()
        };
        let plain = reference(0.0);
        // The first step has the size of the rate, whatever the gradient.
        near(&plain[..1], &[0.9]);
        let close = |found: Vec<f64>, expected: Vec<f64>| {
            assert!(found.iter().zip(&expected).all(|(f, e)| (f - e).abs() < 2e-5), "{found:?} {expected:?}");
        };
        close(run("adam", &[], &G), plain);
        close(run("adamw", &[("weight_decay", 0.1)], &G), reference(0.1));
    }

    #[test]
    fn scaled_steps_are_what_the_formulas_say() {
        // s: 0.1, 0.115, 0.5035; g/√s: 3.162278, −1.474420, 2.818579.
        near(&run("rmsprop", &[("epsilon", 0.0)], &G), &[0.6837722, 0.8312142, 0.5493563]);
        let slow = run("rmsprop", &[("epsilon", 0.0), ("momentum", 0.5)], &G);
        // v: 3.162278, 0.106719, 2.871939.
        near(&slow, &[0.6837722, 0.6731003, 0.3859064]);
        // s: 1.1, 1.35, 5.35.
        near(&run("adagrad", &[("epsilon", 0.0)], &G), &[0.9046537, 0.9476869, 0.8612193]);
    }

    #[test]
    fn clipping_scales_all_gradients_by_their_common_norm() {
        for (limit, factor) in [(10.0, 1.0), (1.0, 0.2)] {
            let mut graph = Graph::new("clip");
            let a = graph.constant("a", Tensor::vector(&[3f32, 0.0]));
            let b = graph.constant("b", Tensor::vector(&[-4f32]));
            let mut gradients = [a, b];
            clip(&mut Writer::new(&mut graph, "clip"), &mut gradients, limit).unwrap();
            graph.output("a", gradients[0]);
            graph.output("b", gradients[1]);
            let found = evaluate(&graph, &[]).unwrap();
            near(&found[0].to_f64s(), &[3.0 * factor, 0.0]);
            near(&found[1].to_f64s(), &[-4.0 * factor]);
        }
    }
}
