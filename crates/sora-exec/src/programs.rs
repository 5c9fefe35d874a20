//! A graph's programs, one for each of the input shapes seen last.

use std::sync::{Arc, Mutex, PoisonError};

use smallvec::SmallVec;
use sora_ir::Graph;
use sora_kernels::Kernels;

use crate::given::{Give, Given};
use crate::threads::Threads;
use crate::weights::{PackedWeights, WeightStore};
use crate::{Arena, ExecError, Options, Profile, Program, lower};

/// Programs kept for a graph, by how deep it lies in others: the bodies of control flow, and what is compiled when the
/// shapes are known that depend on data. Each program of a graph keeps programs of those inside, hence fewer there.
const KEPT: [usize; 3] = [8, 4, 2];

/// The shape of each input; `None` as the graph declares it.
pub(crate) type Shapes<'s> = SmallVec<[Option<&'s [usize]>; 8]>;

/// What all programs of a session share.
#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) options: Arc<Options>,
    pub(crate) kernels: Kernels,
    pub(crate) threads: Threads,
    pub(crate) weights: Arc<WeightStore>,
    /// How many graphs lie around this one.
    pub(crate) depth: usize,
}

impl Setting {
    /// A setting of its own for `graph`.
    ///
    /// # Errors
    /// As [`crate::Session::new`].
    pub(crate) fn new(graph: &Graph, options: &Options) -> Result<Self, ExecError> {
        Self::with(graph, Arc::new(options.clone()), None)
    }

    /// As [`Setting::new`], with weights that may be packed already.
    pub(crate) fn with(
        graph: &Graph,
        options: Arc<Options>,
        saved: Option<PackedWeights>,
    ) -> Result<Self, ExecError> {
        let kernels = options.kernels()?;
        let threads = Threads::new(options.threads)?;
        let weights = Arc::new(WeightStore::new(graph, kernels, saved));
        Ok(Setting { options, kernels, threads, weights, depth: 0 })
    }

    /// Programs to keep for a graph.
    pub(crate) fn kept(&self) -> usize {
        KEPT.get(self.depth).copied().unwrap_or(1)
    }

    /// The setting of graphs inside.
    pub(crate) fn inside(&self) -> Self {
        Setting { depth: self.depth + 1, ..self.clone() }
    }
}

/// A graph, optimized once for all shapes, with programs for the shapes seen last. Any number of threads may share it.
pub(crate) struct Programs {
    graph: Graph,
    setting: Setting,
    /// Most recently used first.
    cache: Mutex<Vec<Arc<Entry>>>,
}

pub(crate) struct Entry {
    shapes: Vec<Option<Vec<usize>>>,
    pub(crate) program: Arc<Program>,
    idle: Mutex<Vec<Arena>>,
}

impl Entry {
    pub(crate) fn new(program: Program) -> Self {
        Entry { shapes: Vec::new(), program: Arc::new(program), idle: Mutex::default() }
    }

    /// Calls `run` with memory that no other run uses.
    pub(crate) fn with_arena<T>(
        &self,
        run: impl FnOnce(&Program, &mut Arena) -> Result<T, ExecError>,
    ) -> Result<T, ExecError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut arena = match idle {
            Some(arena) => arena,
            None => self.program.arena()?,
        };
        let result = run(&self.program, &mut arena);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(arena);
        result
    }
}

impl Programs {
    /// Optimizes `graph` as far as it goes without concrete shapes.
    ///
    /// # Errors
    /// [`ExecError::Rewrite`] when an optimization fails.
    pub(crate) fn new(mut graph: Graph, setting: Setting) -> Result<Self, ExecError> {
        if setting.options.optimize && !setting.options.reference_only {
            lower::optimize(&mut graph, &setting.options)?;
            graph.compact()?;
        }
        Ok(Self::of(graph, setting))
    }

    /// Takes `graph` as it is.
    pub(crate) fn of(graph: Graph, mut setting: Setting) -> Self {
        setting.weights = Arc::new(WeightStore::inside(&graph, setting.weights));
        Programs { graph, setting, cache: Mutex::default() }
    }

    /// The graph, optimized.
    pub(crate) fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The store of the packed weights.
    pub(crate) fn weights(&self) -> &WeightStore {
        &self.setting.weights
    }

    /// The program for inputs of these shapes, compiled when it is not kept.
    ///
    /// # Errors
    /// As [`Program::compile`].
    pub(crate) fn entry(&self, shapes: &Shapes) -> Result<Arc<Entry>, ExecError> {
        {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let same = |entry: &Arc<Entry>| {
                entry.shapes.len() == shapes.len()
                    && entry.shapes.iter().zip(shapes).all(|(kept, given)| kept.as_deref() == *given)
            };
            if let Some(found) = cache.iter().position(same) {
                cache[..=found].rotate_right(1);
                return Ok(Arc::clone(&cache[0]));
            }
        }
        // Compiled outside the lock: others go on running meanwhile, and at worst a program is made twice.
        let names = self.graph.inputs().iter().map(|&id| self.graph.value(id).name.as_str());
        let named: Vec<_> = names.zip(shapes).filter_map(|(name, &shape)| Some((name, shape?))).collect();
        let program = Program::plan(self.graph.specialize(&named)?, &[], &self.setting)?;
        let shapes = shapes.iter().map(|shape| shape.map(<[usize]>::to_vec)).collect();
        let entry = Arc::new(Entry { shapes, ..Entry::new(program) });
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.insert(0, Arc::clone(&entry));
        cache.truncate(self.setting.kept());
        Ok(entry)
    }

    /// Runs the graph on inputs by position.
    ///
    /// # Errors
    /// As [`Program::compile`] and [`Program::run`].
    pub(crate) fn run(
        &self,
        inputs: &[Given],
        profile: Option<&mut Profile>,
        give: &mut Give,
    ) -> Result<(), ExecError> {
        let shapes = inputs.iter().map(|given| Some(given.shape())).collect();
        self.entry(&shapes)?.with_arena(|program, arena| program.execute(arena, inputs, profile, give))
    }
}

#[cfg(test)]
mod tests {
    use sora_ir::ops::{Unary, UnaryKind};
    use sora_ir::{Dim, TensorType};
    use sora_tensor::{DType, Tensor};

    use super::*;

    #[test]
    fn few_programs_are_kept_and_fewer_inside_of_others() {
        let mut graph = Graph::new("relu");
        let x = graph.input("x", TensorType { dtype: DType::F32, shape: vec![Dim::symbol("n")] });
        let y = graph.op("y", Unary { kind: UnaryKind::Relu }, [x]).unwrap();
        graph.output("y", y);
        let mut setting = Setting::new(&graph, &Options::default()).unwrap();
        for kept in [8, 4, 2, 1, 1] {
            let programs = Programs::new(graph.clone(), setting.clone()).unwrap();
            for n in 1..30usize {
                let input = Tensor::zeros(DType::F32, &[n]).unwrap();
                let mut shapes = Vec::new();
                let give = &mut |_: usize, value: Given<'_>| {
                    shapes.push(value.shape().to_vec());
                    Ok(())
                };
                programs.run(&[Given::Tensor(&input)], None, give).unwrap();
                assert_eq!(shapes, [[n]]);
                let cache = programs.cache.lock().unwrap();
                assert_eq!(cache.len(), kept.min(n));
                assert_eq!(cache[0].shapes, [Some(vec![n])]);
                assert_eq!(cache[0].idle.lock().unwrap().len(), 1);
            }
            setting = setting.inside();
        }
    }
}
