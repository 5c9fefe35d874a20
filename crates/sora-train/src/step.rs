//! A training step as one graph: forward, loss, backward, update.

use sora_exec::State;
use sora_ir::ops::{BatchNorm, BinaryKind, Distribution, Op, Random, ReduceKind, Unary, UnaryKind};
use sora_ir::{Graph, Mismatch, Node, Real, TensorType, ValueId, Writer};
use sora_tensor::{DType, Tensor};

use crate::loss::{Link, Loss, Target};
use crate::network::Trainable;
use crate::optimizer::{Optimizer, Update, clip};
use crate::{TrainError, differentiate};

/// How a network is trained.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What becomes small.
    pub loss: Loss,
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
}

/// Names of the step's own inputs and outputs. Parameters and slots keep their names as states.
pub(crate) const TARGET: &str = "train/target";
pub(crate) const RATE: &str = "train/rate";
pub(crate) const STEP: &str = "train/step";
pub(crate) const LOSS: &str = "train/loss";
pub(crate) const CORRECT: &str = "train/correct";

/// What the name of a state that is a parameter's moving average ends with.
pub(crate) const AVERAGE: &str = "/average";

/// The graph of a step for batches of one size.
pub struct StepGraph {
    /// Inputs: those of the network, `train/target` ([`Target`]), the learning rate `train/rate`, and every state. Outputs:
    /// `train/loss`, perhaps `train/correct` (samples predicted right), and what replaces every state.
    pub graph: Graph,
    /// Parameters, slots of the optimizer (`WEIGHT/SLOT`), and `train/step`, the steps taken so far.
    pub states: Vec<State>,
    /// What the states begin with, in their order.
    pub initial: Vec<Tensor>,
}

/// Writes the step of `network` for batches of `batch` samples: every symbolic first extent of an input.
///
/// The network is taken as in training: batch normalization with the statistics of the batch, which running averages
/// follow, and dropout from random numbers that follow from seed and step. The result is taken before a final `Softmax`
/// or `Sigmoid` that belongs to the loss ([`Link`]).
///
/// # Errors
/// [`TrainError::Network`] when result and loss do not fit or nothing is trainable, [`TrainError::NotDifferentiable`] for
/// an operator without a gradient.
pub fn training_step(network: &Trainable, batch: usize, recipe: &Recipe) -> Result<StepGraph, TrainError> {
    let mut graph = of_batch(&network.graph, batch)?;
    let mut step = StepGraph { graph: Graph::new(""), states: Vec::new(), initial: Vec::new() };
    let mut inputs = Vec::new();
    for parameter in &network.parameters {
        let Some(tensor) = graph.const_value(parameter.value).cloned() else { continue };
        graph.rename(parameter.value, &format!("{}/initial", parameter.name));
        let input = graph.input(&parameter.name, TensorType::of(&tensor));
        graph.replace_uses(parameter.value, input);
        step.initial.push(tensor);
        inputs.push(input);
    }
    let number = |dtype| TensorType::new(dtype, [0usize; 0]);
    let taken = graph.input(STEP, number(DType::I64));
    let rate = graph.input(RATE, number(DType::F32));
    let is_statistic = |value: ValueId| {
        inputs.iter().zip(&network.parameters).any(|(&input, p)| input == value && !p.trainable)
    };
    let moments = batch_statistics(&mut graph, &is_statistic)?;
    drop_out(&mut graph, network, taken, recipe.seed)?;
    let y = result(&graph, recipe.loss.row.from)?;
    let target = target(&mut graph, &recipe.loss, y);

    let mut w = Writer::new(&mut graph, "train/loss");
    let loss = recipe.loss.write(&mut w, y, target)?;
    let correct = recipe.loss.correct(&mut w, y, target)?;
    let trained: Vec<usize> = (0..inputs.len()).filter(|&i| network.parameters[i].trainable).collect();
    if trained.is_empty() {
        return Err(TrainError::Network("the network has no parameter to train".to_owned()));
    }
    let wrt: Vec<ValueId> = trained.iter().map(|&i| inputs[i]).collect();
    let mut gradients = differentiate(&mut graph, loss, &wrt)?;

    let mut w = Writer::new(&mut graph, "train/update");
    if let Some(limit) = recipe.clip {
        clip(&mut w, &mut gradients, limit)?;
    }
    let one = w.constant(Tensor::scalar(1i64));
    let next_step = w.add(taken, one)?;
    let now = w.cast(next_step, DType::F32)?;
    let mut next = inputs.clone();
    let mut slots = Vec::new();
    for (&i, gradient) in trained.iter().zip(gradients) {
        let (weight, name) = (inputs[i], &network.parameters[i].name);
        let ty = w.graph.ty(weight).clone();
        let mut old = Vec::new();
        for (slot, (suffix, _)) in recipe.optimizer.row.slots.iter().enumerate() {
            old.push(w.graph.input(&format!("{name}/{suffix}"), ty.clone()));
            let shape = w.shape(weight)?;
            let count = shape.iter().product();
            let values = vec![recipe.optimizer.initial(slot); count];
            step.initial.push(Tensor::from_f64s(ty.dtype, &shape, &values).map_err(Mismatch::from)?);
        }
        let share = network.parameters[i].rate;
        let rate = if share == 1.0 { rate } else { w.times(rate, share)? };
        let update = Update { weight, gradient, rate, step: now, slots: &old, decays: ty.rank() > 1 };
        let (new, kept) = recipe.optimizer.write(&mut w, &update)?;
        next[i] = new;
        slots.extend(old.into_iter().zip(kept));
        if let Some(decay) = recipe.average {
            let average = w.graph.input(&format!("{name}{AVERAGE}"), ty);
            step.initial.push(step.initial[i].clone());
            slots.push((average, moving(&mut w, average, new, now, decay)?));
        }
    }
    for (running, moment) in moments {
        let kept = w.times(running, recipe.momentum)?;
        let new = w.times(moment, 1.0 - recipe.momentum)?;
        let followed = w.add(kept, new)?;
        inputs
            .iter()
            .zip(&mut next)
            .filter(|(input, _)| **input == running)
            .for_each(|(_, next)| *next = followed);
    }
    graph.set_outputs(Vec::new());
    graph.output(LOSS, loss);
    correct.into_iter().for_each(|correct| graph.output(CORRECT, correct));
    step.initial.push(Tensor::scalar(0i64));
    for (old, new) in inputs.into_iter().zip(next).chain(slots).chain([(taken, next_step)]) {
        let input = graph.value(old).name.clone();
        let state = State { next: format!("{input}/next"), input };
        graph.output(&state.next, new);
        step.states.push(state);
    }
    step.graph = graph;
    Ok(step)
}

/// Writes the network with these parameters in the form of inference, with the loss of batches of `batch` samples as the
/// output `train/loss`, and `train/correct` as [`training_step`] has it.
///
/// # Errors
/// As [`training_step`].
pub fn evaluation(network: &Graph, batch: usize, loss: &Loss) -> Result<Graph, TrainError> {
    let mut graph = of_batch(network, batch)?;
    let y = result(&graph, loss.row.from)?;
    let target = target(&mut graph, loss, y);
    let mut w = Writer::new(&mut graph, "train/loss");
    let value = loss.write(&mut w, y, target)?;
    let correct = loss.correct(&mut w, y, target)?;
    graph.set_outputs(Vec::new());
    graph.output(LOSS, value);
    correct.into_iter().for_each(|correct| graph.output(CORRECT, correct));
    Ok(graph)
}

/// The graph for inputs whose symbolic first extent is `batch`.
fn of_batch(graph: &Graph, batch: usize) -> Result<Graph, TrainError> {
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

/// What the loss takes: the first output, before the function at its end that belongs to the loss.
fn result(graph: &Graph, link: Link) -> Result<ValueId, TrainError> {
    let output = graph.outputs().first();
    let y = output.ok_or_else(|| TrainError::Network("the network has no output".to_owned()))?.value;
    let Some((_, node, _)) = graph.producer(y) else { return Ok(y) };
    let before = node.inputs.first().copied().flatten();
    Ok(match (&node.op, link) {
        (Op::Softmax(op), Link::Softmax) if !op.log => before.unwrap_or(y),
        (Op::Unary(Unary { kind: UnaryKind::Sigmoid }), Link::Sigmoid) => before.unwrap_or(y),
        _ => y,
    })
}

fn target(graph: &mut Graph, loss: &Loss, y: ValueId) -> ValueId {
    let mut ty = graph.ty(y).clone();
    if loss.row.target == Target::Class {
        ty = TensorType { dtype: DType::I64, shape: ty.shape[..ty.shape.len().min(1)].to_vec() };
    }
    graph.input(TARGET, ty)
}

/// Gives every batch normalization whose mean and variance follow training those of its batch. Returns the running ones,
/// each with that of the batch.
///
/// The variance is that of the population, in the running average too, as in Keras. Source: Ioffe & Szegedy 2015.
fn batch_statistics(
    graph: &mut Graph,
    is_statistic: &dyn Fn(ValueId) -> bool,
) -> Result<Vec<(ValueId, ValueId)>, Mismatch> {
    let mut moments = Vec::new();
    let nodes: Vec<_> = graph.nodes().map(|(id, node)| (id, node.clone())).collect();
    for (id, node) in nodes {
        let Node { op: Op::BatchNorm(BatchNorm { epsilon: Real(epsilon) }), inputs, outputs, name } = node
        else {
            continue;
        };
        let (&[Some(x), Some(scale), Some(bias), Some(mean), Some(variance)], &[y]) =
            (&inputs[..], &outputs[..])
        else {
            continue;
        };
        if !is_statistic(mean) || !is_statistic(variance) {
            continue;
        }
        let mut w = Writer::new(graph, format!("{name}/batch"));
        let shape = w.shape(x)?;
        let mut line = vec![1; shape.len()];
        line[1] = shape[1];
        let axes: Vec<usize> = (0..shape.len()).filter(|&axis| axis != 1).collect();
        let middle = w.reduce(ReduceKind::Mean, x, &axes)?;
        let centred = w.sub(x, middle)?;
        let squared = w.mul(centred, centred)?;
        let spread = w.reduce(ReduceKind::Mean, squared, &axes)?;
        let bounded = w.plus(spread, f64::from(epsilon))?;
        let deviation = w.unary(UnaryKind::Sqrt, bounded)?;
        let scale = w.reshape(scale, &line)?;
        let bias = w.reshape(bias, &line)?;
        let slope = w.div(scale, deviation)?;
        let scaled = w.mul(centred, slope)?;
        let result = w.add(scaled, bias)?;
        for (running, moment) in [(mean, middle), (variance, spread)] {
            moments.push((running, w.reshape(moment, &shape[1..2])?));
        }
        graph.replace_uses(y, result);
        graph.remove(id);
    }
    Ok(moments)
}

/// Drops elements where the network says so.
fn drop_out(graph: &mut Graph, network: &Trainable, step: ValueId, seed: u64) -> Result<(), Mismatch> {
    for (i, dropout) in network.dropouts.iter().enumerate() {
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
