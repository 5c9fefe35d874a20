//! A graph lowered for concrete input shapes, ready to run.

use std::ops::Range;
use std::time::Instant;

use smallvec::SmallVec;
use sora_ir::{Graph, TensorType};
use sora_kernels::{Isa, Kernels};
use sora_tensor::{Buffer, Tensor};

use crate::arena::Cut;
use crate::interpret::Interpreter;
use crate::profile::StepTime;
use crate::sharing::{Course, Sharing};
use crate::steps::{Cx, Io, Work};
use crate::threads::Threads;
use crate::weights::WeightStore;
use crate::{Arena, ExecError, Options, Precision, Profile, StepInfo, Tuning, lower};

/// An input or output of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name in the graph.
    pub name: String,
    /// Dtype and shape; the shape of an output is symbolic where it depends on data.
    pub ty: TensorType,
}

/// A graph lowered for concrete input shapes: kernel steps over one arena.
///
/// Any number of threads may run a program at once, each with its own [`Arena`]. The results of a run depend on its
/// inputs only: with several threads ([`Options::threads`]), the first runs find out which steps gain by sharing
/// them, and how a step is shared changes its time, not its values.
pub struct Program {
    kernels: Kernels,
    precision: Precision,
    threads: Threads,
    sharing: Sharing,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    infos: Vec<StepInfo>,
    body: Body,
}

enum Body {
    Lowered(Lowered),
    Interpreted(Interpreter),
}

/// What lowering produces.
pub(crate) struct Lowered {
    pub(crate) steps: Vec<Step>,
    pub(crate) infos: Vec<StepInfo>,
    pub(crate) constants: Vec<Tensor>,
    pub(crate) outputs: Vec<Operand>,
    pub(crate) arena_bytes: usize,
}

/// A kernel call with its operands.
pub(crate) struct Step {
    pub(crate) work: Box<dyn Work>,
    pub(crate) reads: SmallVec<[Operand; 4]>,
    pub(crate) writes: SmallVec<[Range<usize>; 2]>,
}

/// Where a step finds an input.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    /// Bytes of the arena.
    Arena(Range<usize>),
    /// The n-th input of the program.
    Input(usize),
    /// The n-th constant.
    Constant(usize),
    /// In the memory of the step's first output, which the step overwrites.
    InPlace,
}

impl Program {
    /// Lowers `graph` for inputs of these shapes: specializes, optimizes, picks kernels, packs weights, plans
    /// the arena. Inputs left out keep their declared shape.
    ///
    /// Where shapes depend on data, or with [`Options::reference_only`], the program runs on the reference
    /// evaluator instead.
    ///
    /// # Errors
    /// [`ExecError::Isa`] for an instruction set that does not run here, [`ExecError::Ir`] when the graph does
    /// not take these shapes, [`ExecError::Rewrite`] when an optimization fails.
    pub fn compile(
        graph: &Graph,
        shapes: &[(&str, Vec<usize>)],
        options: &Options,
    ) -> Result<Program, ExecError> {
        let weights = WeightStore::new(graph, options.kernels()?, None);
        Self::compile_on(graph, shapes, options, Threads::new(options.threads)?, &weights)
    }

    /// As [`Program::compile`], on threads that already run, with weights of `graph` that may be packed already.
    pub(crate) fn compile_on(
        graph: &Graph,
        shapes: &[(&str, Vec<usize>)],
        options: &Options,
        threads: Threads,
        weights: &WeightStore,
    ) -> Result<Program, ExecError> {
        let kernels = options.kernels()?;
        let shapes: Vec<(&str, &[usize])> = shapes.iter().map(|(n, s)| (*n, s.as_slice())).collect();
        let mut graph = graph.specialize(&shapes)?;
        if options.optimize && !options.reference_only {
            lower::optimize(&mut graph)?;
        }
        graph.compact()?;
        let port = |name: &str, id| Port { name: name.to_owned(), ty: graph.ty(id).clone() };
        let inputs = graph.inputs().iter().map(|&id| port(&graph.value(id).name, id)).collect();
        let outputs = graph.outputs().iter().map(|o| port(&o.name, o.value)).collect();
        let (body, infos) = if options.reference_only || !lower::has_concrete_shapes(&graph) {
            let interpreter = Interpreter::new(graph)?;
            let infos = interpreter.steps();
            (Body::Interpreted(interpreter), infos)
        } else {
            let here = match &options.tuning {
                Some(tuning) if tuning.machine == Tuning::machine_for(options)? => Some(&**tuning),
                _ => None,
            };
            let mut lowered =
                lower::lower(&graph, kernels, options.precision, threads.count(), weights, here)?;
            let infos = std::mem::take(&mut lowered.infos);
            (Body::Lowered(lowered), infos)
        };
        let sharing = match threads.count() {
            1 => Sharing::decided(vec![false; infos.len()].into()),
            _ => Sharing::undecided(infos.len()),
        };
        Ok(Program { kernels, precision: options.precision, threads, sharing, inputs, outputs, infos, body })
    }

    /// The inputs, in the graph's order.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The outputs, in the graph's order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// The steps in order of execution.
    pub fn steps(&self) -> &[StepInfo] {
        &self.infos
    }

    /// Bytes that the intermediate tensors of one run share.
    pub fn arena_bytes(&self) -> usize {
        match &self.body {
            Body::Lowered(lowered) => lowered.arena_bytes,
            Body::Interpreted(_) => 0,
        }
    }

    /// Bytes of packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.infos.iter().map(|s| s.weight_bytes).sum()
    }

    /// The instruction set of the kernels.
    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }

    /// What products of real operands multiply.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Threads that share the work of a run.
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// Whether it is decided which steps the threads share.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.sharing.course(), Course::Decided(_))
    }

    /// Memory for one run at a time.
    ///
    /// # Errors
    /// [`ExecError::Memory`] when there is not enough.
    pub fn arena(&self) -> Result<Arena, ExecError> {
        Arena::new(self.arena_bytes())
    }

    /// Runs the program on `inputs`, given by name, and returns the outputs with their names in order.
    ///
    /// # Errors
    /// [`ExecError::MissingInput`], [`ExecError::UnknownInput`] or [`ExecError::Input`] when the inputs do not
    /// fit, [`ExecError::Step`] when a step refuses their values.
    pub fn run(
        &self,
        arena: &mut Arena,
        inputs: &[(&str, &Tensor)],
    ) -> Result<Vec<(String, Tensor)>, ExecError> {
        self.execute(arena, inputs, None)
    }

    /// As [`Program::run`], and measures every step.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn run_profiled(
        &self,
        arena: &mut Arena,
        inputs: &[(&str, &Tensor)],
    ) -> Result<(Vec<(String, Tensor)>, Profile), ExecError> {
        let mut times = vec![0; self.infos.len()];
        let outputs = self.execute(arena, inputs, Some(&mut times))?;
        let step = |(info, &nanoseconds): (&StepInfo, &u64)| StepTime { step: info.clone(), nanoseconds };
        Ok((outputs, Profile { steps: self.infos.iter().zip(&times).map(step).collect() }))
    }

    fn execute(
        &self,
        arena: &mut Arena,
        inputs: &[(&str, &Tensor)],
        times: Option<&mut [u64]>,
    ) -> Result<Vec<(String, Tensor)>, ExecError> {
        let given = self.bind(inputs)?;
        let tensors = match &self.body {
            Body::Lowered(lowered) => self.run_steps(lowered, arena, &given, times)?,
            Body::Interpreted(interpreter) => {
                let named: Vec<_> = self.inputs.iter().map(|p| p.name.as_str()).zip(given).collect();
                interpreter.run(&named, times)?
            }
        };
        Ok(self.outputs.iter().map(|p| p.name.clone()).zip(tensors).collect())
    }

    fn run_steps(
        &self,
        lowered: &Lowered,
        arena: &mut Arena,
        inputs: &[&Tensor],
        times: Option<&mut [u64]>,
    ) -> Result<Vec<Tensor>, ExecError> {
        if arena.len() < lowered.arena_bytes {
            *arena = self.arena()?;
        }
        let course = self.sharing.course();
        let mut own = Vec::new();
        let mut times = match (times, &course) {
            (None, Course::Trial(_)) => {
                own.resize(lowered.steps.len(), 0);
                Some(&mut own[..])
            }
            (times, _) => times,
        };
        let alone = Threads::default();
        let _attention = self.threads.attend(matches!(course, Course::Trial(_)) || self.sharing.any());
        for (i, step) in lowered.steps.iter().enumerate() {
            let start = times.is_some().then(Instant::now);
            let threads = if course.shares(i) { &self.threads } else { &alone };
            let cx = Cx { kernels: self.kernels, threads };
            let cut = Cut::new(arena.bytes_mut(), &step.writes);
            let find = |operand: &Operand| match operand {
                Operand::Arena(range) => cut.input(range),
                Operand::Input(n) => inputs[*n].bytes(),
                Operand::Constant(n) => lowered.constants[*n].bytes(),
                Operand::InPlace => &[],
            };
            let ins = step.reads.iter().map(find).collect();
            step.work
                .run(&cx, Io { ins, outs: cut.outputs })
                .map_err(|why| ExecError::Step { step: self.infos[i].name.clone(), why })?;
            if let (Some(times), Some(start)) = (times.as_deref_mut(), start) {
                times[i] = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            }
        }
        if let (Course::Trial(attempt), Some(times)) = (course, times) {
            attempt.end(times);
        }
        let copied = |dtype, shape: &[usize], bytes: &[u8]| Tensor::new(dtype, shape, Buffer::copy_of(bytes));
        let output = |(operand, port): (&Operand, &Port)| {
            let shape = port.ty.known_shape().unwrap_or_default();
            let tensor = match operand {
                Operand::Arena(range) => copied(port.ty.dtype, &shape, &arena.bytes()[range.clone()]),
                Operand::Input(n) => inputs[*n].reshape(&shape),
                Operand::Constant(n) => copied(port.ty.dtype, &shape, lowered.constants[*n].bytes()),
                Operand::InPlace => Tensor::zeros(port.ty.dtype, &shape),
            };
            tensor.map_err(|e| ExecError::Step { step: port.name.clone(), why: e.to_string() })
        };
        lowered.outputs.iter().zip(&self.outputs).map(output).collect()
    }

    /// The given tensors in the order of the program's inputs.
    fn bind<'t>(&self, given: &[(&str, &'t Tensor)]) -> Result<SmallVec<[&'t Tensor; 4]>, ExecError> {
        if let Some((name, _)) = given.iter().find(|(name, _)| self.inputs.iter().all(|p| p.name != *name)) {
            let inputs = self.inputs.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(ExecError::UnknownInput { name: (*name).to_owned(), inputs });
        }
        let find = |port: &Port| {
            let expected = || port.ty.to_string();
            let found = given.iter().find(|(name, _)| *name == port.name);
            let Some(&(_, tensor)) = found else {
                return Err(ExecError::MissingInput { name: port.name.clone(), expected: expected() });
            };
            let same = |(dim, &extent): (&sora_ir::Dim, &usize)| dim.known().is_none_or(|d| d == extent);
            let fits = port.ty.dtype == tensor.dtype()
                && port.ty.rank() == tensor.rank()
                && port.ty.shape.iter().zip(tensor.shape()).all(same);
            match fits {
                true => Ok(tensor),
                false => Err(ExecError::Input {
                    name: port.name.clone(),
                    expected: expected(),
                    found: TensorType::of(tensor).to_string(),
                }),
            }
        };
        self.inputs.iter().map(find).collect()
    }
}
