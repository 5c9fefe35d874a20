//! A graph that is run again and again, on inputs of any shape it accepts.

use std::collections::HashSet;
use std::sync::Arc;

use sora_ir::{Graph, Output, ValueId};
use sora_kernels::Isa;
use sora_tensor::Tensor;

use crate::programs::{Entry, Programs, Setting, Shapes};
use crate::{ExecError, Options, PackedWeights, Profile, Program};

/// A graph with the programs compiled for the input shapes seen last, at most eight.
///
/// The graph is optimized once; a program for new shapes costs no more than planning it. Where several algorithms compute
/// a layer, it keeps the one that its weights were packed for first, unless another one promises to take half the time:
/// the last digits of real numbers may depend on the shapes that came before. Any number of threads may share a session;
/// each run takes its own arena.
pub struct Session {
    graph: Graph,
    options: Arc<Options>,
    isa: Isa,
    /// Values that [`Session::run_observed`] reports; they follow the graph's own outputs.
    watched: Vec<ValueId>,
    programs: Programs,
}

/// The outputs of a run, by name.
type Outputs = Vec<(String, Tensor)>;

impl Session {
    /// A session for `graph`. Programs are compiled when the first input of a shape arrives.
    ///
    /// # Errors
    /// [`ExecError::Isa`] for an instruction set that does not run here, [`ExecError::Threads`] when threads
    /// cannot be started, [`ExecError::Rewrite`] when an optimization fails.
    pub fn new(graph: Graph, options: Options) -> Result<Self, ExecError> {
        Self::watching(graph, Vec::new(), options)
    }

    /// A session whose [`Session::run_observed`] reports the values `watched` of `graph`. They are computed as
    /// extra outputs, at the speed of kernels, but never returned as outputs.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn watching(graph: Graph, watched: Vec<ValueId>, options: Options) -> Result<Self, ExecError> {
        Self::build(graph, watched, options, None)
    }

    /// A session whose weights are packed already, wherever they were packed for the kernels that `options` ask
    /// for; others are packed as in [`Session::new`].
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn with_weights(graph: Graph, weights: PackedWeights, options: Options) -> Result<Self, ExecError> {
        Self::build(graph, Vec::new(), options, Some(weights))
    }

    fn build(
        graph: Graph,
        watched: Vec<ValueId>,
        options: Options,
        saved: Option<PackedWeights>,
    ) -> Result<Self, ExecError> {
        let options = Arc::new(options);
        let setting = Setting::with(&graph, Arc::clone(&options), saved)?;
        let isa = setting.kernels.isa();
        // What optimizing reads of mapped constants must not stay in memory with the graph as given.
        let own = with_outputs(&graph.specialize(&[])?, &watched);
        let programs = Programs::new(own, setting)?;
        Ok(Session { graph, options, isa, watched, programs })
    }

    /// The weights as the programs compiled so far read them, to be kept in a file.
    pub fn packed_weights(&self) -> PackedWeights {
        self.programs.weights().save()
    }

    /// The graph as given.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The options as given.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The instruction set of the kernels.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The program for inputs of these shapes, compiled on first use. Inputs left out keep their declared shape.
    ///
    /// # Errors
    /// As [`Program::compile`].
    pub fn program(&self, shapes: &[(&str, Vec<usize>)]) -> Result<Arc<Program>, ExecError> {
        let declared: Vec<_> =
            self.graph.inputs().iter().map(|&id| self.graph.ty(id).known_shape()).collect();
        let given = |(&id, declared): (&ValueId, &'_ Option<Vec<usize>>)| {
            let name = &self.graph.value(id).name;
            shapes
                .iter()
                .find(|(given, _)| given == name)
                .map(|(_, shape)| shape.clone())
                .or(declared.clone())
        };
        let shapes: Vec<_> = self.graph.inputs().iter().zip(&declared).map(given).collect();
        let shapes: Shapes = shapes.iter().map(Option::as_deref).collect();
        Ok(Arc::clone(&self.programs.entry(&shapes)?.program))
    }

    /// Runs the graph on `inputs`, given by name, and returns its outputs with their names in order.
    ///
    /// # Errors
    /// As [`Program::compile`] and [`Program::run`].
    pub fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Outputs, ExecError> {
        let mut outputs = self.entry(inputs)?.with_arena(|program, arena| program.run(arena, inputs))?;
        outputs.truncate(self.graph.outputs().len());
        Ok(outputs)
    }

    /// As [`Session::run`], and measures every step.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_profiled(&self, inputs: &[(&str, &Tensor)]) -> Result<(Outputs, Profile), ExecError> {
        let entry = self.entry(inputs)?;
        let (mut outputs, profile) =
            entry.with_arena(|program, arena| program.run_profiled(arena, inputs))?;
        outputs.truncate(self.graph.outputs().len());
        Ok((outputs, profile))
    }

    /// As [`Session::run`], and calls `observe` with every watched value (see [`Session::watching`]) in its
    /// logical shape.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_observed(
        &self,
        inputs: &[(&str, &Tensor)],
        observe: &mut dyn FnMut(ValueId, &Tensor),
    ) -> Result<Outputs, ExecError> {
        let mut outputs = self.entry(inputs)?.with_arena(|program, arena| program.run(arena, inputs))?;
        let watched = outputs.split_off(self.graph.outputs().len());
        for (&value, (_, tensor)) in self.watched.iter().zip(&watched) {
            observe(value, tensor);
        }
        Ok(outputs)
    }

    /// The program whose shapes are those of `inputs`, without touching the heap when it exists.
    fn entry(&self, inputs: &[(&str, &Tensor)]) -> Result<Arc<Entry>, ExecError> {
        let shape = |&id: &ValueId| {
            let value = self.graph.value(id);
            let found = inputs.iter().find(|(name, _)| *name == value.name);
            let missing =
                || ExecError::MissingInput { name: value.name.clone(), expected: value.ty.to_string() };
            found.map(|(_, tensor)| Some(tensor.shape())).ok_or_else(missing)
        };
        let shapes = self.graph.inputs().iter().map(shape).collect::<Result<Shapes, _>>()?;
        self.programs.entry(&shapes)
    }
}

/// A copy of `graph` with `values` as extra outputs behind its own, named after the values.
pub fn with_outputs(graph: &Graph, values: &[ValueId]) -> Graph {
    let mut graph = graph.clone();
    let mut taken: HashSet<String> = graph.outputs().iter().map(|o| o.name.clone()).collect();
    let mut outputs = graph.outputs().to_vec();
    for &value in values {
        let mut name = graph.value(value).name.clone();
        while !taken.insert(name.clone()) {
            name.push('\'');
        }
        outputs.push(Output { name, value });
    }
    graph.set_outputs(outputs);
    graph
}
