//! Steps of optimizers, for models that carry their own training (ai.onnx.preview.training).

use sora_ir::ValueId;
use sora_ir::ops::{BinaryKind, Cast, UnaryKind, Where};

use super::node::{Built, NodeCx};
use super::rows::{Row, optimizer};
use crate::error::Refusal;

pub(super) const ROWS: &[Row] = &[
    optimizer("Adagrad", |cx| each(cx, 1, adagrad)),
    optimizer("Adam", |cx| each(cx, 2, adam)),
    optimizer("Momentum", |cx| each(cx, 1, momentum)),
];

use BinaryKind::{Add, Div, Mul, Sub};

/// One tensor that is trained.
struct Step {
    /// Learning rate, in the dtype of `x`.
    rate: ValueId,
    /// How often the tensor was updated, in the dtype of `x`.
    count: ValueId,
    x: ValueId,
    /// The gradient with that of the regularization.
    gradient: ValueId,
    /// What the optimizer keeps between steps.
    state: Vec<ValueId>,
}

impl Step {
    /// An attribute as a scalar.
    fn number(&self, cx: &mut NodeCx, value: f32) -> ValueId {
        cx.scalar("number", cx.dtype(self.x), f64::from(value))
    }

    fn state(&self, index: usize) -> Result<ValueId, Refusal> {
        self.state.get(index).copied().ok_or_else(|| Refusal::new("its state is missing"))
    }

    /// One of two values by whether this is not the first update.
    fn unless_first(&self, cx: &mut NodeCx, later: ValueId, first: ValueId) -> Result<ValueId, Refusal> {
        let zero = self.number(cx, 0.0);
        let begun = cx.binary(BinaryKind::Greater, self.count, zero)?;
        cx.step("where", Where {}, [begun, later, first])
    }
}

/// `x · a + y · b`.
fn blend(cx: &mut NodeCx, x: ValueId, a: ValueId, y: ValueId, b: ValueId) -> Result<ValueId, Refusal> {
    let (x, y) = (cx.binary(Mul, x, a)?, cx.binary(Mul, y, b)?);
    cx.binary(Add, x, y)
}

/// The inputs are rate, count, then all tensors, all gradients, and all of each state; the outputs are all tensors and all
/// of each state.
fn each(
    cx: &mut NodeCx,
    states: usize,
    update: fn(&mut NodeCx, &Step) -> Result<Vec<ValueId>, Refusal>,
) -> Built {
    let inputs = cx.all_inputs()?;
    let (Some((&[rate, count], tensors)), group) = (inputs.split_first_chunk::<2>(), states + 2) else {
        return Err(Refusal::new("its inputs are missing"));
    };
    if tensors.is_empty() || tensors.len() % group != 0 {
        return Err(Refusal::new(format!("{} inputs are not {group} for each tensor", tensors.len())));
    }
    let number = tensors.len() / group;
    let mut results: Vec<Vec<ValueId>> = vec![Vec::new(); states + 1];
    for index in 0..number {
        let own: Vec<ValueId> = tensors.iter().copied().skip(index).step_by(number).collect();
        let Some((&[x, gradient], state)) = own.split_first_chunk::<2>() else { continue };
        let dtype = cx.dtype(x);
        let (rate, count) = (cx.cast(rate, dtype)?, cx.step("count", Cast { to: dtype }, [count])?);
        let norm = cx.scalar("norm", dtype, f64::from(cx.float("norm_coefficient", 0.0)));
        let pull = cx.binary(Mul, x, norm)?;
        let gradient = cx.binary(Add, pull, gradient)?;
        let updated = update(cx, &Step { rate, count, x, gradient, state: state.to_vec() })?;
        results.iter_mut().zip(updated).for_each(|(all, one)| all.push(one));
    }
    Ok(results.concat())
}

/// Duchi et al. 2011.
fn adagrad(cx: &mut NodeCx, step: &Step) -> Result<Vec<ValueId>, Refusal> {
    let one = step.number(cx, 1.0);
    let decay = step.number(cx, cx.float("decay_factor", 0.0));
    let slowed = blend(cx, step.count, decay, one, one)?;
    let rate = cx.binary(Div, step.rate, slowed)?;
    let squares = blend(cx, step.gradient, step.gradient, step.state(0)?, one)?;
    let moved = against_root(cx, step, squares, step.gradient, rate, 1e-6)?;
    Ok(vec![moved, squares])
}

/// `x - rate · direction / (√squares + epsilon)`.
fn against_root(
    cx: &mut NodeCx,
    step: &Step,
    squares: ValueId,
    direction: ValueId,
    rate: ValueId,
    epsilon: f32,
) -> Result<ValueId, Refusal> {
    let epsilon = step.number(cx, cx.float("epsilon", epsilon));
    let root = cx.unary(UnaryKind::Sqrt, squares)?;
    let root = cx.binary(Add, root, epsilon)?;
    let direction = cx.binary(Div, direction, root)?;
    let change = cx.binary(Mul, rate, direction)?;
    cx.binary(Sub, step.x, change)
}

/// Kingma & Ba 2014.
fn adam(cx: &mut NodeCx, step: &Step) -> Result<Vec<ValueId>, Refusal> {
    let (alpha, beta) = (cx.float("alpha", 0.9), cx.float("beta", 0.999));
    let [a, b, one] = [alpha, beta, 1.0].map(|v| step.number(cx, v));
    let (rest_a, rest_b) = (cx.binary(Sub, one, a)?, cx.binary(Sub, one, b)?);
    let speed = blend(cx, step.state(0)?, a, step.gradient, rest_a)?;
    let square = cx.binary(Mul, step.gradient, step.gradient)?;
    let squares = blend(cx, step.state(1)?, b, square, rest_b)?;
    // What the averages lack while they are young.
    let lack = |cx: &mut NodeCx, base: ValueId| {
        let power = cx.binary(BinaryKind::Pow, base, step.count)?;
        cx.binary(Sub, one, power)
    };
    let (lack_a, lack_b) = (lack(cx, a)?, lack(cx, b)?);
    let lack_b = cx.unary(UnaryKind::Sqrt, lack_b)?;
    let raised = cx.binary(Mul, step.rate, lack_b)?;
    let raised = cx.binary(Div, raised, lack_a)?;
    let rate = step.unless_first(cx, raised, step.rate)?;
    let moved = against_root(cx, step, squares, speed, rate, 1e-6)?;
    let post = step.number(cx, cx.float("norm_coefficient_post", 0.0));
    let kept = cx.binary(Sub, one, post)?;
    Ok(vec![cx.binary(Mul, moved, kept)?, speed, squares])
}

/// Polyak 1964; with `nesterov`, Nesterov 1983.
fn momentum(cx: &mut NodeCx, step: &Step) -> Result<Vec<ValueId>, Refusal> {
    let [alpha, beta, one] = [cx.float("alpha", 0.0), cx.float("beta", 0.0), 1.0].map(|v| step.number(cx, v));
    let beta = step.unless_first(cx, beta, one)?;
    let speed = blend(cx, step.state(0)?, alpha, step.gradient, beta)?;
    let direction = match cx.text("mode", "standard").as_ref() {
        "standard" => speed,
        "nesterov" => blend(cx, speed, alpha, step.gradient, one)?,
        other => return Err(Refusal::new(format!("mode=`{other}` is not known"))),
    };
    let change = cx.binary(Mul, step.rate, direction)?;
    Ok(vec![cx.binary(Sub, step.x, change)?, speed])
}
