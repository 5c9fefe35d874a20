//! A graph that is run again and again, on inputs of any shape it accepts.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use sora_ir::{Graph, Output, ValueId};
use sora_kernels::Isa;
use sora_tensor::Tensor;

use crate::threads::Threads;
use crate::weights::{PackedWeights, WeightStore};
use crate::{Arena, ExecError, Options, Profile, Program};

/// Programs kept per session; the least recently used one makes room.
const PROGRAMS: usize = 8;

/// A graph with the programs compiled for the input shapes seen last.
///
/// Any number of threads may share a session; each run takes its own arena.
pub struct Session {
    graph: Graph,
    options: Options,
    isa: Isa,
    threads: Threads,
    weights: WeightStore,
    /// Values that [`Session::run_observed`] reports; they follow the graph's own outputs.
    watched: Vec<ValueId>,
    /// Most recently used first.
    cache: Mutex<Vec<Arc<Entry>>>,
}

struct Entry {
    shapes: Vec<Vec<usize>>,
    program: Arc<Program>,
    idle: Mutex<Vec<Arena>>,
}

/// The outputs of a run, by name.
type Outputs = Vec<(String, Tensor)>;

impl Session {
    /// A session for `graph`. Programs are compiled when the first input of a shape arrives.
    ///
    /// # Errors
    /// [`ExecError::Isa`] for an instruction set that does not run here, [`ExecError::Threads`] when threads
    /// cannot be started.
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
        let kernels = options.kernels()?;
        let threads = Threads::new(options.threads)?;
        let weights = WeightStore::new(&graph, kernels, saved);
        let cache = Mutex::new(Vec::new());
        Ok(Session { graph, options, isa: kernels.isa(), threads, weights, watched, cache })
    }

    /// The weights as the programs compiled so far read them, to be kept in a file.
    pub fn packed_weights(&self) -> PackedWeights {
        self.weights.save()
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
        Ok(Arc::clone(&self.entry(shapes)?.program))
    }

    /// Runs the graph on `inputs`, given by name, and returns its outputs with their names in order.
    ///
    /// # Errors
    /// As [`Program::compile`] and [`Program::run`].
    pub fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Outputs, ExecError> {
        let mut outputs = self.with_arena(inputs, |program, arena| program.run(arena, inputs))?;
        outputs.truncate(self.graph.outputs().len());
        Ok(outputs)
    }

    /// As [`Session::run`], and measures every step.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_profiled(&self, inputs: &[(&str, &Tensor)]) -> Result<(Outputs, Profile), ExecError> {
        let (mut outputs, profile) =
            self.with_arena(inputs, |program, arena| program.run_profiled(arena, inputs))?;
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
        let mut outputs = self.with_arena(inputs, |program, arena| program.run(arena, inputs))?;
        let watched = outputs.split_off(self.graph.outputs().len());
        for (&value, (_, tensor)) in self.watched.iter().zip(&watched) {
            observe(value, tensor);
        }
        Ok(outputs)
    }

    fn with_arena<T>(
        &self,
        inputs: &[(&str, &Tensor)],
        run: impl FnOnce(&Program, &mut Arena) -> Result<T, ExecError>,
    ) -> Result<T, ExecError> {
        let entry = self.entry_for(inputs)?;
        let idle = entry.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut arena = match idle {
            Some(arena) => arena,
            None => entry.program.arena()?,
        };
        let result = run(&entry.program, &mut arena);
        entry.idle.lock().unwrap_or_else(PoisonError::into_inner).push(arena);
        result
    }

    /// The entry whose shapes are those of `inputs`, without touching the heap when it exists.
    fn entry_for(&self, inputs: &[(&str, &Tensor)]) -> Result<Arc<Entry>, ExecError> {
        let of = |name: &str| inputs.iter().find(|(given, _)| *given == name).map(|(_, t)| t.shape());
        let names = || self.graph.inputs().iter().map(|&id| self.graph.value(id).name.as_str());
        {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = |entry: &Arc<Entry>| {
                names().zip(&entry.shapes).all(|(name, shape)| of(name) == Some(shape.as_slice()))
            };
            if let Some(found) = cache.iter().position(fits) {
                cache[..=found].rotate_right(1);
                return Ok(Arc::clone(&cache[0]));
            }
        }
        for &id in self.graph.inputs() {
            let value = self.graph.value(id);
            if of(&value.name).is_none() {
                return Err(ExecError::MissingInput {
                    name: value.name.clone(),
                    expected: value.ty.to_string(),
                });
            }
        }
        let shapes: Vec<_> = names().filter_map(|name| Some((name, of(name)?.to_vec()))).collect();
        self.entry(&shapes)
    }

    fn entry(&self, shapes: &[(&str, Vec<usize>)]) -> Result<Arc<Entry>, ExecError> {
        let given = |id: &ValueId| {
            let value = self.graph.value(*id);
            let shape = shapes.iter().find(|(name, _)| *name == value.name).map(|(_, s)| s.clone());
            shape.or_else(|| value.ty.known_shape()).unwrap_or_default()
        };
        let key: Vec<Vec<usize>> = self.graph.inputs().iter().map(given).collect();
        {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = cache.iter().position(|entry| entry.shapes == key) {
                cache[..=found].rotate_right(1);
                return Ok(Arc::clone(&cache[0]));
            }
        }
        // Compiled outside the lock: others go on running meanwhile, and at worst a program is made twice.
        let watched;
        let graph = match self.watched.is_empty() {
            true => &self.graph,
            false => {
                watched = with_outputs(&self.graph, &self.watched);
                &watched
            }
        };
        let program = Program::compile_on(graph, shapes, &self.options, self.threads.clone(), &self.weights)?;
        let entry = Arc::new(Entry { shapes: key, program: Arc::new(program), idle: Mutex::default() });
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.insert(0, Arc::clone(&entry));
        cache.truncate(PROGRAMS);
        Ok(entry)
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
