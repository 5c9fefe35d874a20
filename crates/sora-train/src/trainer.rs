//! Runs training steps.

use std::collections::HashMap;

use sora_exec::{Arena, Options, Profile, Program};
use sora_ir::Graph;
use sora_tensor::Tensor;

use crate::network::Trainable;
use crate::step::{AVERAGE, CORRECT, LOSS, RATE, Recipe, STEP, TARGET, training_step};
use crate::{Loss, TrainError};

/// What a step found, before it changed the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The loss of the batch.
    pub loss: f64,
    /// Samples predicted right, where the loss knows what that means.
    pub correct: Option<f64>,
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

    /// Takes a step: inputs of the network by name, and what the loss compares with, for a batch of any size.
    ///
    /// # Errors
    /// As [`Program::run`]; for the first batch of a size, as [`Trainer::new`].
    pub fn step(
        &mut self,
        batch: usize,
        inputs: &[(&str, &Tensor)],
        target: &Tensor,
        rate: f64,
    ) -> Result<Outcome, TrainError> {
        Ok(self.run(batch, inputs, target, rate, false)?.0)
    }

    /// As [`Trainer::step`], and measures the steps of the program.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_profiled(
        &mut self,
        batch: usize,
        inputs: &[(&str, &Tensor)],
        target: &Tensor,
        rate: f64,
    ) -> Result<(Outcome, Profile), TrainError> {
        self.run(batch, inputs, target, rate, true)
    }

    fn run(
        &mut self,
        batch: usize,
        inputs: &[(&str, &Tensor)],
        target: &Tensor,
        rate: f64,
        profiled: bool,
    ) -> Result<(Outcome, Profile), TrainError> {
        let rate = Tensor::scalar(rate as f32);
        let mut given = inputs.to_vec();
        given.extend([(TARGET, target), (RATE, &rate)]);
        let (program, arena) = self.program(batch)?;
        let (outputs, profile) = match profiled {
            true => program.run_profiled(arena, &given)?,
            false => (program.run(arena, &given)?, Profile::default()),
        };
        let find = |name: &str| {
            outputs.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.to_f64s().first().copied())
        };
        let outcome = Outcome { loss: find(LOSS).unwrap_or(f64::NAN), correct: find(CORRECT) };
        Ok((outcome, profile))
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
        let mut graph = self.network.graph.clone();
        let find = |name: &str| state.iter().find(|(known, _)| known == name);
        for parameter in &self.network.parameters {
            let averaged = find(&format!("{}{AVERAGE}", parameter.name));
            if let Some((_, tensor)) = averaged.or_else(|| find(&parameter.name)) {
                graph.rename(parameter.value, "");
                let value = graph.constant(&parameter.name, tensor.clone());
                graph.replace_uses(parameter.value, value);
            }
        }
        // What the old constants held is not kept.
        let _ = graph.compact();
        graph
    }

    /// The program for the size of batch that it was made for.
    pub fn compiled(&self) -> Option<&Program> {
        self.programs.get(&self.current).map(|(program, _)| program)
    }

    /// The network in the form of inference, as it was given.
    pub fn graph(&self) -> &Graph {
        &self.network.graph
    }

    /// What becomes small.
    pub fn loss(&self) -> &Loss {
        &self.recipe.loss
    }

    /// How programs are compiled.
    pub fn options(&self) -> &Options {
        &self.options
    }
}
