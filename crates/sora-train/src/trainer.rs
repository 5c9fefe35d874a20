//! Runs training steps.

use std::collections::HashMap;

use sora_exec::{Arena, Options, Profile, Program};
use sora_ir::{Graph, evaluate};
use sora_tensor::Tensor;

use crate::TrainError;
use crate::head::{Head, target_name};
use crate::network::{Parameter, Trainable};
use crate::penalty;
use crate::pruning::{MASK, masked, masks};
use crate::regrowth::{MEANS, exchange};
use crate::statistics::moments_graph;
use crate::step::{AVERAGE, CORRECT, LOSS, RATE, Recipe, STEP, training_step};

/// What a step found, before it changed the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The loss of the batch.
    pub loss: f64,
    /// What each head came to.
    pub heads: Vec<HeadOutcome>,
}

/// What a head of the network came to on a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadOutcome {
    /// Its own loss.
    pub loss: f64,
    /// Samples predicted right, where the loss knows what that means.
    pub correct: Option<f64>,
}

impl Outcome {
    /// What a graph of [`training_step`] or [`crate::evaluation`] gave.
    pub(crate) fn of(outputs: &[(String, Tensor)], heads: usize) -> Self {
        let find = |name: &str| {
            outputs.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.to_f64s().first().copied())
        };
        let loss = find(LOSS).unwrap_or(f64::NAN);
        let head = |i: usize| HeadOutcome {
            loss: find(&format!("{LOSS}/{i}")).unwrap_or(loss),
            correct: find(&format!("{CORRECT}/{i}")),
        };
        Outcome { loss, heads: (0..heads).map(head).collect() }
    }
}

/// A network in training: its programs, one for each size of a batch, and its state.
pub struct Trainer {
    network: Trainable,
    recipe: Recipe,
    options: Options,
    /// By size of the batch. All have the same states.
    programs: HashMap<usize, (Program, Arena)>,
    /// The size whose arena holds the state; the others' are out of date.
    current: usize,
}

impl Trainer {
    /// Compiles the step for batches of `batch` samples.
    ///
    /// # Errors
    /// As [`training_step`] and [`Program::with_state`].
    pub fn new(
        network: Trainable,
        batch: usize,
        recipe: Recipe,
        options: Options,
    ) -> Result<Self, TrainError> {
        let mut trainer = Trainer { network, recipe, options, programs: HashMap::new(), current: batch };
        let step = training_step(&trainer.network, batch, &trainer.recipe)?;
        let program = Program::with_state(&step.graph, &step.states, &trainer.options)?;
        let mut arena = program.arena()?;
        for (state, tensor) in step.states.iter().zip(&step.initial) {
            program.set_state(&mut arena, &state.input, tensor)?;
        }
        trainer.programs.insert(batch, (program, arena));
        Ok(trainer)
    }

    /// Takes a step: inputs of the network by name, and what each head is compared with, for a batch of any size.
    ///
    /// # Errors
    /// As [`Program::run`]; for the first batch of a size, as [`Trainer::new`].
    pub fn step(
        &mut self,
        batch: usize,
        inputs: &[(&str, &Tensor)],
        targets: &[Tensor],
        rate: f64,
    ) -> Result<Outcome, TrainError> {
        Ok(self.run(batch, inputs, targets, rate, false)?.0)
    }

    /// As [`Trainer::step`], and measures the steps of the program.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_profiled(
        &mut self,
        batch: usize,
        inputs: &[(&str, &Tensor)],
        targets: &[Tensor],
        rate: f64,
    ) -> Result<(Outcome, Profile), TrainError> {
        self.run(batch, inputs, targets, rate, true)
    }

    fn run(
        &mut self,
        batch: usize,
        inputs: &[(&str, &Tensor)],
        targets: &[Tensor],
        rate: f64,
        profiled: bool,
    ) -> Result<(Outcome, Profile), TrainError> {
        let rate = Tensor::scalar(rate as f32);
        let heads = self.recipe.heads.len();
        let names: Vec<String> = (0..heads).map(target_name).collect();
        let mut given = inputs.to_vec();
        given.extend(names.iter().map(String::as_str).zip(targets));
        given.push((RATE, &rate));
        let (program, arena) = self.program(batch)?;
        let (outputs, profile) = match profiled {
            true => program.run_profiled(arena, &given)?,
            false => (program.run(arena, &given)?, Profile::default()),
        };
        Ok((Outcome::of(&outputs, heads), profile))
    }

    /// The first value, in the order of the network, that a step on this batch would find not finite: a parameter, or the result of
    /// a node.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn first_non_finite(
        &self,
        batch: usize,
        inputs: &[(&str, &Tensor)],
        targets: &[Tensor],
    ) -> Result<String, TrainError> {
        let bad =
            |tensor: &Tensor| tensor.dtype().is_float() && tensor.to_f64s().iter().any(|x| !x.is_finite());
        let state = self.state()?;
        let is_parameter = |name: &str| self.network.parameters.iter().any(|p| p.name == name);
        if let Some((name, _)) = state.iter().find(|(name, tensor)| is_parameter(name) && bad(tensor)) {
            return Ok(format!("parameter `{name}`, whose gradient overflowed in a step before"));
        }
        let step = training_step(&self.network, batch, &self.recipe)?;
        let mut graph = step.graph;
        let rate = Tensor::scalar(0f32);
        let names: Vec<String> = (0..targets.len()).map(target_name).collect();
        let mut given = inputs.to_vec();
        given.extend(names.iter().map(String::as_str).zip(targets));
        given.push((RATE, &rate));
        given.extend(state.iter().map(|(name, tensor)| (name.as_str(), tensor)));
        let loss = graph.outputs().first().map(|output| output.value);
        let mut places = Vec::new();
        graph.set_outputs(Vec::new());
        for id in graph.order()? {
            let Some(node) = graph.node(id) else { continue };
            let last = node.outputs.iter().any(|&output| Some(output) == loss);
            for &output in &node.outputs {
                places.push((format!("node `{}` ({})", node.name, node.op.label()), output));
            }
            if last {
                break;
            }
        }
        for (i, (_, output)) in places.iter().enumerate() {
            graph.output(&format!("at {i}"), *output);
        }
        let found = evaluate(&graph, &given)?;
        let none = || "nothing when it is computed again in another order".to_owned();
        Ok(found.iter().position(bad).map_or_else(none, |at| places[at].0.clone()))
    }

    /// The program for batches of this size, with the state.
    fn program(&mut self, batch: usize) -> Result<&mut (Program, Arena), TrainError> {
        if !self.programs.contains_key(&batch) {
            let step = training_step(&self.network, batch, &self.recipe)?;
            let program = Program::with_state(&step.graph, &step.states, &self.options)?;
            let arena = program.arena()?;
            self.programs.insert(batch, (program, arena));
        }
        if self.current != batch {
            let state = self.state()?;
            self.current = batch;
            self.set_state(&state)?;
        }
        self.programs.get_mut(&batch).ok_or_else(|| TrainError::Network("no program".to_owned()))
    }

    /// Everything that steps change, by name: parameters, the optimizer's slots, the number of steps.
    ///
    /// # Errors
    /// [`TrainError::Exec`] when memory does not suffice.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        let Some((program, arena)) = self.programs.get(&self.current) else { return Ok(Vec::new()) };
        let read = |port: &sora_exec::Port| Ok((port.name.clone(), program.state(arena, &port.name)?));
        program.states().iter().map(read).collect()
    }

    /// Replaces everything that steps change.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when a tensor is missing, [`TrainError::Exec`] when one does not fit.
    pub fn set_state(&mut self, state: &[(String, Tensor)]) -> Result<(), TrainError> {
        let Some((program, arena)) = self.programs.get_mut(&self.current) else { return Ok(()) };
        for port in program.states() {
            let found = state.iter().find(|(name, _)| *name == port.name);
            let missing = || TrainError::Checkpoint(format!("it has no `{}`", port.name));
            program.set_state(arena, &port.name, &found.ok_or_else(missing)?.1)?;
        }
        Ok(())
    }

    /// Prunes weights until this share of them is 0, by the scope of [`Recipe::pruning`]; without that, does nothing. Of the weights of
    /// each layer that are left, the share `exchanged` then makes room for others, as [`Pruning::regrow`](crate::Pruning::regrow) says.
    ///
    /// # Errors
    /// [`TrainError::Network`] where weights are to be exchanged and the optimizer keeps no mean of gradients; as [`Trainer::state`] and [`Trainer::set_state`].
    pub fn prune(&mut self, share: f64, exchanged: f64) -> Result<(), TrainError> {
        let Some(pruning) = self.recipe.pruning else { return Ok(()) };
        let mut state = self.state()?;
        let masked: Vec<String> =
            state.iter().filter_map(|(name, _)| Some(name.strip_suffix(MASK)?.to_owned())).collect();
        let find = |name: &String| state.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor);
        let weights: Vec<&Tensor> = masked.iter().filter_map(find).collect();
        let mut new = masks(&weights, share, pruning.scope)?;
        if exchanged > 0.0 {
            for ((name, weight), mask) in masked.iter().zip(&weights).zip(&mut new) {
                let mean = MEANS.iter().find_map(|slot| find(&format!("{name}/{slot}")));
                let none = || {
                    TrainError::Network(
                        "regrowth takes an optimizer that keeps a mean of gradients, as adam".to_owned(),
                    )
                };
                *mask = exchange(weight, mask, mean.ok_or_else(none)?, exchanged)?;
            }
        }
        for (name, mask) in masked.iter().zip(new) {
            let own = state.iter_mut().filter(|(known, _)| known.strip_suffix(MASK) == Some(name));
            own.for_each(|(_, kept)| *kept = mask.clone());
        }
        self.set_state(&state)
    }

    /// What becomes of weights on the way.
    pub(crate) fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Steps taken so far.
    ///
    /// # Errors
    /// As [`Trainer::state`].
    pub fn steps(&self) -> Result<u64, TrainError> {
        let Some((program, arena)) = self.programs.get(&self.current) else { return Ok(0) };
        let step = program.state(arena, STEP)?.to_i64s();
        Ok(step.first().map_or(0, |&step| step.unsigned_abs()))
    }

    /// The network in the form of inference with the parameters of a state, averaged ones where there are.
    pub fn graph_of(&self, state: &[(String, Tensor)]) -> Graph {
        let mut graph = self.network_of(state).graph;
        // What the old constants held is not kept.
        let _ = graph.compact();
        graph
    }

    /// As [`Trainer::graph_of`], with what can be trained further.
    fn network_of(&self, state: &[(String, Tensor)]) -> Trainable {
        let mut network = self.network.clone();
        for Parameter { name, value, .. } in &mut network.parameters {
            if let Some(tensor) = result_in(state, name) {
                network.graph.rename(*value, "");
                // A mean of weights may hold what was pruned since.
                let mask = state.iter().find(|(known, _)| known.strip_suffix(MASK) == Some(name));
                let tensor = mask.and_then(|(_, mask)| masked(tensor, mask).ok()).unwrap_or(tensor.clone());
                let new = network.graph.constant(name, tensor);
                network.graph.replace_uses(*value, new);
                *value = new;
            }
        }
        network
    }

    /// The program that gives the statistics of batch normalization for a batch alone, with the weights of a state: none where the
    /// network has none.
    pub(crate) fn moments(&self, state: &[(String, Tensor)], batch: usize) -> Result<Program, TrainError> {
        Ok(Program::compile(&moments_graph(&self.network_of(state), batch)?, &[], &self.options)?)
    }

    /// What the size of the parameters of a state adds to the loss, averaged ones where there are.
    pub(crate) fn penalty_of(&self, state: &[(String, Tensor)]) -> f64 {
        penalty::total(&self.network.parameters, |name| result_in(state, name))
    }

    /// The program for the size of batch that it was made for.
    pub fn compiled(&self) -> Option<&Program> {
        self.programs.get(&self.current).map(|(program, _)| program)
    }

    /// The network in the form of inference, as it was given.
    pub fn graph(&self) -> &Graph {
        &self.network.graph
    }

    /// Whether training moves a parameter of this name along its gradient.
    pub(crate) fn trains(&self, name: &str) -> bool {
        self.network.parameters.iter().any(|parameter| parameter.name == name && parameter.trainable)
    }

    /// What is trained.
    pub fn heads(&self) -> &[Head] {
        &self.recipe.heads
    }

    /// How programs are compiled.
    pub fn options(&self) -> &Options {
        &self.options
    }
}

/// A parameter of a state, averaged if it is.
fn result_in<'a>(state: &'a [(String, Tensor)], name: &str) -> Option<&'a Tensor> {
    let find = |name: &str| state.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor);
    find(&format!("{name}{AVERAGE}")).or_else(|| find(name))
}
