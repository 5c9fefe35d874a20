//! A training step as one graph: forward, loss, backward, update.

use sora_exec::State;
use sora_ir::ops::{BinaryKind, Distribution, Random, Reduce, ReduceKind, UnaryKind};
use sora_ir::{Graph, Mismatch, Real, TensorType, ValueId, Writer};
use sora_rewrite::write_out_control_flow;
use sora_tensor::{DType, Tensor};

use crate::head::{Head, Written, write};
use crate::loss::Loss;
use crate::network::{Dropout, Trainable};
use crate::optimizer::{Optimizer, Update, clip};
use crate::penalty::penalized;
use crate::precision::{MixedPrecision, round_operands};
use crate::pruning::{MASK, Pruning, prunable, whole};
use crate::quantized::write_roundings;
use crate::statistics::batch_statistics;
use crate::{TrainError, differentiate};

/// How a network is trained.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What becomes small.
    pub heads: Vec<Head>,
    /// How.
    pub optimizer: Optimizer,
    /// The largest norm that all gradients together may have.
    pub clip: Option<f64>,
    /// The share of a running statistic that one step keeps.
    pub momentum: f64,
    /// What dropout follows from.
    pub seed: u64,
    /// The share that an exponential moving average of the weights keeps in one step. It is what validation and the result
    /// then use. In the first steps t the share is `(1 + t) / (10 + t)`, if that is less. Source: Polyak & Juditsky 1992.
    pub average: Option<f64>,
    /// Steps whose gradients are averaged before weights change; 1: each changes them.
    pub accumulate: u32,
    /// The precision of products.
    pub precision: MixedPrecision,
    /// The weights that become 0 on the way.
    pub pruning: Option<Pruning>,
}

impl Recipe {
    /// Trains the first output to tell the class of each sample, in f32, without any of what else there is.
    pub fn new(loss: Loss, optimizer: Optimizer) -> Self {
        Recipe {
            heads: vec![Head::new(loss)],
            optimizer,
            clip: None,
            momentum: 0.99,
            seed: 0,
            average: None,
            accumulate: 1,
            precision: MixedPrecision::F32,
            pruning: None,
        }
    }
}

/// Names of the step's own inputs and outputs. Parameters and slots keep their names as states.
pub(crate) const RATE: &str = "train/rate";
pub(crate) const STEP: &str = "train/step";
pub(crate) const LOSS: &str = "train/loss";
pub(crate) const CORRECT: &str = "train/correct";
const SCALE: &str = "train/scale";
const FINITE: &str = "train/finite steps";

/// What the name of a state that is a parameter's moving average ends with.
pub(crate) const AVERAGE: &str = "/average";

/// The scale of the loss that training in f16 begins with, and the steps after which it is doubled.
const FIRST_SCALE: f32 = 32_768.0;
const STEPS_TO_DOUBLE: f64 = 2000.0;

/// The graph of a step for batches of one size.
pub struct StepGraph {
    /// Inputs: those of the network, `train/target/I` for the head I ([`Target`](crate::Target)), the learning rate `train/rate`,
    /// and every state. Outputs: `train/loss`; of several heads `train/loss/I`; of those that know it, `train/correct/I`
    /// (samples predicted right); and what replaces every state.
    pub graph: Graph,
    /// Parameters, slots of the optimizer (`WEIGHT/SLOT`), masks of pruned weights (`WEIGHT/mask`), and `train/step`, the steps taken so far.
    pub states: Vec<State>,
    /// What the states begin with, in their order.
    pub initial: Vec<Tensor>,
}

/// States under construction: each with what replaces it and what it begins with.
#[derive(Default)]
struct States(Vec<(ValueId, ValueId, Tensor)>);

impl States {
    /// Adds an input that is a state and begins with `initial`; until [`States::replace`] it stays as it is.
    fn add(&mut self, graph: &mut Graph, name: &str, initial: Tensor) -> ValueId {
        let input = graph.input(name, TensorType::of(&initial));
        self.0.push((input, input, initial));
        input
    }

    fn replace(&mut self, state: ValueId, by: ValueId) {
        self.0.iter_mut().filter(|(input, ..)| *input == state).for_each(|(_, next, _)| *next = by);
    }

    /// What a state begins with.
    fn initial(&self, state: ValueId) -> Tensor {
        let found = self.0.iter().find(|(input, ..)| *input == state);
        found.map_or_else(|| Tensor::scalar(0f32), |(_, _, initial)| initial.clone())
    }

    /// The step whose graph gives what replaces every state.
    fn into_step(self, mut graph: Graph) -> StepGraph {
        let (mut states, mut initial) = (Vec::new(), Vec::new());
        for (input, next, begin) in self.0 {
            let input = graph.value(input).name.clone();
            let state = State { next: format!("{input}/next"), input };
            graph.output(&state.next, next);
            states.push(state);
            initial.push(begin);
        }
        StepGraph { graph, states, initial }
    }
}

/// Writes the step of `network` for batches of `batch` samples: every symbolic first extent of an input.
///
/// The network is taken as in training: batch normalization with the statistics of the batch, which running averages
/// follow, and dropout from random numbers that follow from seed and step. A result is taken before a final `Softmax`
/// or `Sigmoid` that belongs to its loss ([`Link`](crate::Link)).
///
/// # Errors
/// [`TrainError::Network`] when result and loss do not fit or nothing is trainable, [`TrainError::NotDifferentiable`] for
/// an operator without a gradient.
pub fn training_step(network: &Trainable, batch: usize, recipe: &Recipe) -> Result<StepGraph, TrainError> {
    let (network, initial) = with_inputs(network, batch)?;
    let Trainable { mut graph, parameters, dropouts } = network;
    let inputs: Vec<ValueId> = parameters.iter().map(|parameter| parameter.value).collect();
    let mut states = States::default();
    inputs.iter().zip(initial).for_each(|(&input, tensor)| states.0.push((input, input, tensor)));
    let rate = graph.input(RATE, TensorType::new(DType::F32, [0usize; 0]));
    let taken = states.add(&mut graph, STEP, Tensor::scalar(0i64));
    let is_statistic =
        |value: ValueId| inputs.iter().zip(&parameters).any(|(&input, p)| input == value && !p.trainable);
    let moments = batch_statistics(&mut graph, &is_statistic)?;
    drop_out(&mut graph, &dropouts, taken, recipe.seed)?;
    let Written { loss, heads } = write(&mut graph, &recipe.heads)?;

    let loss = penalized(&mut Writer::new(&mut graph, "train/penalty"), loss, &parameters, &inputs)?;
    let trained: Vec<usize> = (0..inputs.len()).filter(|&i| parameters[i].trainable).collect();
    if trained.is_empty() {
        return Err(TrainError::Network("the network has no parameter to train".to_owned()));
    }
    let pruned = match recipe.pruning {
        Some(_) => prunable(&graph, &parameters, &inputs),
        None => vec![false; inputs.len()],
    };
    let wrt: Vec<ValueId> = trained.iter().map(|&i| inputs[i]).collect();
    let scale = match recipe.precision {
        MixedPrecision::F16 => Some(states.add(&mut graph, SCALE, Tensor::scalar(FIRST_SCALE))),
        _ => None,
    };
    let scaled = match scale {
        Some(scale) => Writer::new(&mut graph, "train/scaled").mul(loss, scale)?,
        None => loss,
    };
    let mut gradients = differentiate(&mut graph, scaled, &wrt)?;
    write_roundings(&mut graph)?;
    round_operands(&mut graph, recipe.precision)?;

    let mut w = Writer::new(&mut graph, "train/update");
    let finite = match scale {
        Some(scale) => Some(unscale(&mut w, &mut states, &mut gradients, scale)?),
        None => None,
    };
    for (gradient, &i) in gradients.iter_mut().zip(&trained) {
        if parameters[i].gradient != 1.0 {
            *gradient = w.times(*gradient, parameters[i].gradient)?;
        }
    }
    let one = w.constant(Tensor::scalar(1i64));
    let next_step = w.add(taken, one)?;
    states.replace(taken, next_step);
    // How many steps have changed the weights with this one, and whether this one does, where not all do.
    let (mut updates, mut changes) = (next_step, finite);
    if recipe.accumulate > 1 {
        let count = w.constant(Tensor::scalar(i64::from(recipe.accumulate)));
        let rest = w.binary(BinaryKind::Mod, next_step, count)?;
        let due = w.compare(rest, BinaryKind::Equal, 0.0)?;
        for (gradient, &i) in gradients.iter_mut().zip(&trained) {
            let name = format!("{}/accumulated", parameters[i].name);
            let zeros = Tensor::zeros(w.dtype(*gradient), &w.shape(*gradient)?).map_err(Mismatch::from)?;
            let before = states.add(w.graph, &name, zeros);
            let part = w.times(*gradient, 1.0 / f64::from(recipe.accumulate))?;
            let sum = w.add(before, part)?;
            let kept = gated(&mut w, finite, sum, before)?;
            let zero = w.number(0.0, kept)?;
            let kept = w.select(due, zero, kept)?;
            states.replace(before, kept);
            *gradient = sum;
        }
        let before = w.binary(BinaryKind::Div, taken, count)?;
        updates = w.add(before, one)?;
        changes = Some(if let Some(finite) = finite { w.binary(BinaryKind::And, finite, due)? } else { due });
    }
    if let Some(limit) = recipe.clip {
        clip(&mut w, &mut gradients, limit)?;
    }
    let now = w.cast(updates, DType::F32)?;
    for (&i, gradient) in trained.iter().zip(gradients) {
        let (weight, parameter) = (inputs[i], &parameters[i]);
        let (shape, dtype) = (w.shape(weight)?, w.dtype(weight));
        let mut old = Vec::new();
        for (slot, (suffix, _)) in recipe.optimizer.row.slots.iter().enumerate() {
            let values = vec![recipe.optimizer.initial(slot); shape.iter().product()];
            let initial = Tensor::from_f64s(dtype, &shape, &values).map_err(Mismatch::from)?;
            old.push(states.add(w.graph, &format!("{}/{suffix}", parameter.name), initial));
        }
        let rate = if parameter.rate == 1.0 { rate } else { w.times(rate, parameter.rate)? };
        let update = Update { weight, gradient, rate, step: now, slots: &old, decays: shape.len() > 1 };
        let (mut new, kept) = recipe.optimizer.write(&mut w, &update)?;
        if pruned[i] {
            let mask = states.add(w.graph, &format!("{}{MASK}", parameter.name), whole(dtype, &shape)?);
            new = w.mul(new, mask)?;
        }
        let mut replaced: Vec<(ValueId, ValueId)> = old.into_iter().zip(kept).collect();
        replaced.push((weight, new));
        if let Some(decay) = recipe.average {
            let initial = states.initial(weight);
            let average = states.add(w.graph, &format!("{}{AVERAGE}", parameter.name), initial);
            replaced.push((average, moving(&mut w, average, new, now, decay)?));
        }
        for (old, new) in replaced {
            let new = gated(&mut w, changes, new, old)?;
            states.replace(old, new);
        }
    }
    for (running, moment) in moments {
        let kept = w.times(running, recipe.momentum)?;
        let new = w.times(moment, 1.0 - recipe.momentum)?;
        let followed = w.add(kept, new)?;
        let followed = gated(&mut w, finite, followed, running)?;
        states.replace(running, followed);
    }
    put_out(&mut graph, loss, &heads);
    Ok(states.into_step(graph))
}

/// Divides gradients by the scale of the loss, and lets the scale follow them. Whether all of them are finite.
fn unscale(
    w: &mut Writer,
    states: &mut States,
    gradients: &mut [ValueId],
    scale: ValueId,
) -> Result<ValueId, Mismatch> {
    let one = w.number(1.0, scale)?;
    let share = w.div(one, scale)?;
    let mut size = None;
    for gradient in gradients {
        *gradient = w.mul(*gradient, share)?;
        let own = w.unary(UnaryKind::Abs, *gradient)?;
        let own = w.op(Reduce { kind: ReduceKind::Sum, axes: Vec::new(), keep_dims: false }, [own])?;
        size = Some(if let Some(size) = size { w.add(size, own)? } else { own });
    }
    // Neither infinity nor NaN is less.
    let finite = w.compare(size.unwrap_or(one), BinaryKind::Less, f32::MAX.into())?;
    let steps = states.add(w.graph, FINITE, Tensor::scalar(0f32));
    let more = w.plus(steps, 1.0)?;
    let enough = w.compare(more, BinaryKind::GreaterOrEqual, STEPS_TO_DOUBLE)?;
    let [twice, half] = [w.times(scale, 2.0)?, w.times(scale, 0.5)?];
    let (most, least) = (w.number(2f64.powi(24), scale)?, w.number(1.0, scale)?);
    let [twice, half] = [w.binary(BinaryKind::Min, twice, most)?, w.binary(BinaryKind::Max, half, least)?];
    let grown = w.select(enough, twice, scale)?;
    let next = w.select(finite, grown, half)?;
    states.replace(scale, next);
    let zero = w.number(0.0, more)?;
    let more = w.select(enough, zero, more)?;
    let more = w.select(finite, more, zero)?;
    states.replace(steps, more);
    Ok(finite)
}

/// `new` where the gate is open or there is none, else `old`.
fn gated(w: &mut Writer, gate: Option<ValueId>, new: ValueId, old: ValueId) -> Result<ValueId, Mismatch> {
    gate.map_or(Ok(new), |gate| w.select(gate, new, old))
}

/// Makes losses and right predictions the graph's outputs.
fn put_out(graph: &mut Graph, loss: ValueId, heads: &[(ValueId, Option<ValueId>)]) {
    graph.set_outputs(Vec::new());
    graph.output(LOSS, loss);
    for (i, (own, correct)) in heads.iter().enumerate() {
        if heads.len() > 1 {
            graph.output(&format!("{LOSS}/{i}"), *own);
        }
        correct.iter().for_each(|&correct| graph.output(&format!("{CORRECT}/{i}"), correct));
    }
}

/// Writes the network with these parameters in the form of inference, with losses and right predictions as
/// [`training_step`] has them as its outputs.
///
/// # Errors
/// As [`training_step`].
pub fn evaluation(network: &Graph, batch: usize, heads: &[Head]) -> Result<Graph, TrainError> {
    let mut graph = of_batch(network, batch)?;
    settle(&mut graph)?;
    let Written { loss, heads } = write(&mut graph, heads)?;
    put_out(&mut graph, loss, &heads);
    Ok(graph)
}

/// The graph for inputs whose symbolic first extent is `batch`.
pub(crate) fn of_batch(graph: &Graph, batch: usize) -> Result<Graph, TrainError> {
    let shape = |&id: &ValueId| {
        let value = graph.value(id);
        let extents = value.ty.shape.iter().enumerate();
        let extents = extents.map(|(axis, dim)| dim.known().or((axis == 0).then_some(batch)));
        let open = || TrainError::OpenShape { value: value.name.clone(), ty: value.ty.to_string() };
        Ok((value.name.clone(), extents.collect::<Option<Vec<usize>>>().ok_or_else(open)?))
    };
    let shapes = graph.inputs().iter().map(shape).collect::<Result<Vec<_>, TrainError>>()?;
    let shapes: Vec<_> = shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    Ok(graph.specialize(&shapes)?)
}

/// The network for batches of this size, with inputs instead of its parameters, and what these begin with.
fn with_inputs(network: &Trainable, batch: usize) -> Result<(Trainable, Vec<Tensor>), TrainError> {
    let mut network = Trainable { graph: of_batch(&network.graph, batch)?, ..network.clone() };
    let Trainable { graph, parameters, dropouts } = &mut network;
    let mut initial = Vec::new();
    parameters.retain_mut(|parameter| {
        let Some(tensor) = graph.const_value(parameter.value).cloned() else { return false };
        graph.rename(parameter.value, &format!("{}/initial", parameter.name));
        let input = graph.input(&parameter.name, TensorType::of(&tensor));
        graph.replace_uses(parameter.value, input);
        parameter.value = input;
        initial.push(tensor);
        true
    });
    let names: Vec<String> = dropouts.iter().map(|d| graph.value(d.value).name.clone()).collect();
    if settle(graph)? {
        let find = |name: &str| graph.find(name);
        for parameter in parameters {
            parameter.value = find(&parameter.name).unwrap_or(parameter.value);
        }
        let found = dropouts.iter().zip(&names);
        *dropouts =
            found.filter_map(|(d, name)| Some(Dropout { value: find(name)?, rate: d.rate })).collect();
    }
    Ok((network, initial))
}

/// Writes out what gradients cannot go through, control flow and shapes that are computed, and tells whether there was any: values
/// are others then, under the names of before.
fn settle(graph: &mut Graph) -> Result<bool, TrainError> {
    let bodies = graph.nodes().any(|(_, node)| !node.op.bodies().is_empty());
    let unsettled = bodies || graph.values().any(|(_, value)| value.ty.known_shape().is_none());
    if unsettled {
        write_out_control_flow(graph).map_err(|e| TrainError::Network(e.to_string()))?;
    }
    Ok(unsettled)
}

/// The average of weights behind a step: `average + (1 − share) · (weight − average)`.
fn moving(
    w: &mut Writer,
    average: ValueId,
    weight: ValueId,
    now: ValueId,
    decay: f64,
) -> Result<ValueId, Mismatch> {
    let (above, below) = (w.plus(now, 1.0)?, w.plus(now, 10.0)?);
    let early = w.div(above, below)?;
    let most = w.number(decay, early)?;
    let share = w.binary(BinaryKind::Min, early, most)?;
    let one = w.number(1.0, share)?;
    let rest = w.sub(one, share)?;
    let distance = w.sub(weight, average)?;
    let moved = w.mul(distance, rest)?;
    w.add(average, moved)
}

/// Drops elements where the network says so.
fn drop_out(graph: &mut Graph, dropouts: &[Dropout], step: ValueId, seed: u64) -> Result<(), Mismatch> {
    for (i, dropout) in dropouts.iter().enumerate() {
        if dropout.rate <= 0.0 {
            continue;
        }
        let Some((id, node, _)) = graph.producer(dropout.value) else { continue };
        let (name, x) = (node.name.clone(), node.inputs.first().copied().flatten());
        let Some(x) = x else { continue };
        let mut w = Writer::new(graph, format!("{name}/dropout"));
        let extents = w.shape(x)?;
        let extents = w.extents(&extents);
        // Seeds are floats, of which this many follow each other exactly.
        let seed =
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_add(i as u64) % (1 << 24);
        let random = Random { from: Distribution::Uniform, dtype: DType::F32, seed: Real(seed as f32) };
        let random = w.op(random, [extents, step])?;
        let grown = w.times(x, 1.0 / (1.0 - dropout.rate))?;
        let kept = w.compare(random, BinaryKind::Greater, dropout.rate)?;
        let result = w.keep(kept, grown)?;
        graph.replace_uses(dropout.value, result);
        graph.remove(id);
    }
    Ok(())
}
