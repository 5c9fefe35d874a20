//! A graph lowered for concrete input shapes, ready to run.

use std::ops::Range;
use std::time::Instant;

use smallvec::SmallVec;
use sora_ir::{Graph, TensorType};
use sora_kernels::{Isa, Kernels};
use sora_tensor::Tensor;

use crate::arena::Cut;
use crate::given::{Give, Given, failed};
use crate::interpret::Interpreter;
use crate::profile::StepTime;
use crate::programs::Setting;
use crate::sharing::{Course, Sharing};
use crate::staged::Staged;
use crate::steps::{Cx, Io, Work};
use crate::threads::Threads;
use crate::{Arena, ExecError, Options, Precision, Profile, StepInfo, lower};

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
/// Any number of threads may run a program at once, each with its own [`Arena`]. The results of a program's run depend on its
/// inputs only: with several threads ([`Options::threads`]), the first runs find out which steps gain by sharing
/// them, and how a step is shared changes its time, not its values.
pub struct Program {
    kernels: Kernels,
    precision: Precision,
    threads: Threads,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    states: Vec<Port>,
    infos: Vec<StepInfo>,
    body: Body,
}

/// Stages of a graph, and bodies in bodies, that are compiled; deeper ones run on the reference evaluator, lest a
/// hostile file exhausts the stack.
pub(crate) const DEEPEST: usize = 48;

/// A tensor that a program keeps between runs: an input of the graph, and the output that replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Name of the input.
    pub input: String,
    /// Name of the output.
    pub next: String,
}

impl State {
    /// The positions of input and output in a graph.
    fn positions(&self, graph: &Graph) -> Result<[usize; 2], ExecError> {
        let input = graph.inputs().iter().position(|&id| graph.value(id).name == self.input);
        let next = graph.outputs().iter().position(|output| output.name == self.next);
        let (Some(input), Some(next)) = (input, next) else {
            let why = format!("there is no such input or no output `{}`", self.next);
            return Err(ExecError::State { name: self.input.clone(), why });
        };
        let (old, new) = (graph.ty(graph.inputs()[input]), graph.ty(graph.outputs()[next].value));
        match old == new && old.known_len().is_some() {
            true => Ok([input, next]),
            false => {
                let why = format!("{old} cannot be replaced by {new}");
                Err(ExecError::State { name: self.input.clone(), why })
            }
        }
    }
}

enum Body {
    /// With the shapes of the outputs, and which steps the threads share.
    Lowered(Lowered, Vec<Vec<usize>>, Sharing),
    Staged(Box<Staged>),
    Interpreted(Interpreter),
}

/// What lowering produces.
pub(crate) struct Lowered {
    pub(crate) steps: Vec<Step>,
    pub(crate) infos: Vec<StepInfo>,
    pub(crate) constants: Vec<Tensor>,
    pub(crate) outputs: Vec<Operand>,
    pub(crate) arena_bytes: usize,
    /// Where the tensors lie that are kept between runs.
    pub(crate) states: Vec<Range<usize>>,
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
    /// Where shapes depend on data, the program is compiled in stages: what follows is planned when a run knows the
    /// shapes, and kept for the next run that has the same. With [`Options::reference_only`], it runs on the reference
    /// evaluator.
    ///
    /// # Errors
    /// [`ExecError::Isa`] for an instruction set that does not run here, [`ExecError::Ir`] when the graph does
    /// not take these shapes, [`ExecError::Rewrite`] when an optimization fails.
    pub fn compile(
        graph: &Graph,
        shapes: &[(&str, Vec<usize>)],
        options: &Options,
    ) -> Result<Program, ExecError> {
        Self::compile_on(graph, shapes, &Setting::new(graph, options)?)
    }

    /// As [`Program::compile`], on threads that already run, with weights of `graph` that may be packed already.
    pub(crate) fn compile_on(
        graph: &Graph,
        shapes: &[(&str, Vec<usize>)],
        setting: &Setting,
    ) -> Result<Program, ExecError> {
        let shapes: Vec<(&str, &[usize])> = shapes.iter().map(|(n, s)| (*n, s.as_slice())).collect();
        Self::plan(graph.specialize(&shapes)?, &[], setting)
    }

    /// As [`Program::compile`], of a graph with concrete shapes, some of whose inputs stay in the arena: no caller gives
    /// them, and when a run ends, the output that belongs to each has replaced it ([`Program::state`],
    /// [`Program::set_state`]). Where nothing reads the old tensor after the new one is written, both share memory. In
    /// a new arena they are zeros.
    ///
    /// # Errors
    /// As [`Program::compile`]; [`ExecError::State`] when a state names no input and output of one type.
    pub fn with_state(graph: &Graph, states: &[State], options: &Options) -> Result<Program, ExecError> {
        Self::plan(graph.specialize(&[])?, states, &Setting::new(graph, options)?)
    }

    /// As [`Program::with_state`], on threads that already run, with weights that may be packed already.
    pub(crate) fn plan(mut graph: Graph, states: &[State], setting: &Setting) -> Result<Program, ExecError> {
        let Setting { options, kernels, threads, .. } = setting;
        if options.optimize && !options.reference_only {
            lower::optimize(&mut graph, options)?;
        }
        graph.compact()?;
        let port = |name: &str, id| Port { name: name.to_owned(), ty: graph.ty(id).clone() };
        let kept = states.iter().map(|state| state.positions(&graph)).collect::<Result<Vec<_>, _>>()?;
        let given = |side: usize, i: usize| kept.iter().all(|positions| positions[side] != i);
        let all_inputs: Vec<Port> =
            graph.inputs().iter().map(|&id| port(&graph.value(id).name, id)).collect();
        let states: Vec<Port> = kept.iter().map(|&[input, _]| all_inputs[input].clone()).collect();
        let numbered = all_inputs.into_iter().enumerate();
        let inputs = numbered.filter(|(i, _)| given(0, *i)).map(|(_, port)| port).collect();
        let outputs = graph.outputs().iter().enumerate().filter(|(i, _)| given(1, *i));
        let outputs: Vec<Port> = outputs.map(|(_, o)| port(&o.name, o.value)).collect();
        let concrete = lower::has_concrete_shapes(&graph);
        if let Some(state) = states.first().filter(|_| options.reference_only || !concrete) {
            let why = "a program with state needs kernels and shapes that do not depend on data".to_owned();
            return Err(ExecError::State { name: state.name.clone(), why });
        }
        let (body, infos) = if options.reference_only || !concrete && setting.depth > DEEPEST {
            let interpreter = Interpreter::new(graph)?;
            let infos = interpreter.steps();
            (Body::Interpreted(interpreter), infos)
        } else if !concrete {
            let staged = Staged::new(&graph, setting)?;
            let infos = staged.steps();
            (Body::Staged(Box::new(staged)), infos)
        } else {
            let mut lowered = lower::lower(&graph, &kept, setting)?;
            let infos = std::mem::take(&mut lowered.infos);
            let shapes = outputs.iter().map(|port| port.ty.known_shape().unwrap_or_default()).collect();
            let sharing = match threads.count() {
                1 => Sharing::decided(vec![false; infos.len()].into()),
                _ => Sharing::undecided(infos.len()),
            };
            (Body::Lowered(lowered, shapes, sharing), infos)
        };
        let (threads, precision) = (threads.clone(), options.precision);
        Ok(Program { kernels: *kernels, precision, threads, inputs, outputs, states, infos, body })
    }

    /// The inputs, in the graph's order.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The outputs, in the graph's order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// The inputs of the graph that stay in the arena.
    pub fn states(&self) -> &[Port] {
        &self.states
    }

    /// A tensor that stays in the arena, as it is now.
    ///
    /// # Errors
    /// [`ExecError::UnknownInput`] for a name that is no state.
    pub fn state(&self, arena: &Arena, name: &str) -> Result<Tensor, ExecError> {
        let (port, range) = self.find_state(name)?;
        let shape = port.ty.known_shape().unwrap_or_default();
        let bytes = arena.bytes().get(range).unwrap_or_default();
        Given::Bytes { dtype: port.ty.dtype, shape: &shape, bytes }.tensor().map_err(failed(name))
    }

    /// Replaces a tensor that stays in the arena.
    ///
    /// # Errors
    /// [`ExecError::UnknownInput`] for a name that is no state, [`ExecError::Input`] for a tensor of another type.
    pub fn set_state(&self, arena: &mut Arena, name: &str, tensor: &Tensor) -> Result<(), ExecError> {
        let (port, range) = self.find_state(name)?;
        let found = TensorType::of(tensor);
        let bytes = arena.bytes_mut().get_mut(range);
        match bytes.filter(|bytes| found == port.ty && bytes.len() == tensor.byte_len()) {
            Some(bytes) => bytes.copy_from_slice(tensor.bytes()),
            None => {
                let (name, expected) = (name.to_owned(), port.ty.to_string());
                return Err(ExecError::Input { name, expected, found: found.to_string() });
            }
        }
        Ok(())
    }

    fn find_state(&self, name: &str) -> Result<(&Port, Range<usize>), ExecError> {
        let ranges = match &self.body {
            Body::Lowered(lowered, ..) => &lowered.states[..],
            Body::Staged(_) | Body::Interpreted(_) => &[],
        };
        let found = self.states.iter().zip(ranges).find(|(port, _)| port.name == name);
        found.map(|(port, range)| (port, range.clone())).ok_or_else(|| {
            let names: Vec<&str> = self.states.iter().map(|port| port.name.as_str()).collect();
            ExecError::UnknownInput { name: name.to_owned(), inputs: names.join(", ") }
        })
    }

    /// The steps in order of execution. What can only be compiled when a run knows the shapes is listed node by node,
    /// as `later:Op`; [`Program::run_profiled`] tells the steps it became.
    pub fn steps(&self) -> &[StepInfo] {
        &self.infos
    }

    /// Bytes that the intermediate tensors of one run share.
    pub fn arena_bytes(&self) -> usize {
        match &self.body {
            Body::Lowered(lowered, ..) => lowered.arena_bytes,
            Body::Staged(_) | Body::Interpreted(_) => 0,
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
        match &self.body {
            Body::Lowered(.., sharing) => matches!(sharing.course(), Course::Decided(_)),
            Body::Staged(_) | Body::Interpreted(_) => true,
        }
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
        self.collect(arena, inputs, None)
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
        let mut profile = Profile::default();
        let outputs = self.collect(arena, inputs, Some(&mut profile))?;
        Ok((outputs, profile))
    }

    fn collect(
        &self,
        arena: &mut Arena,
        inputs: &[(&str, &Tensor)],
        profile: Option<&mut Profile>,
    ) -> Result<Vec<(String, Tensor)>, ExecError> {
        let given = self.bind(inputs)?;
        let mut outputs = Vec::with_capacity(self.outputs.len());
        self.execute(arena, &given, profile, &mut |i, value| {
            let name = &self.outputs[i].name;
            outputs.push((name.clone(), value.tensor().map_err(failed(name))?));
            Ok(())
        })?;
        Ok(outputs)
    }

    /// Runs the program on inputs by position, of the right types, and gives the outputs in order.
    pub(crate) fn execute(
        &self,
        arena: &mut Arena,
        inputs: &[Given],
        profile: Option<&mut Profile>,
        give: &mut Give,
    ) -> Result<(), ExecError> {
        match &self.body {
            Body::Lowered(lowered, shapes, sharing) => {
                self.run_steps(lowered, sharing, arena, inputs, profile)?;
                for (i, (operand, port)) in lowered.outputs.iter().zip(&self.outputs).enumerate() {
                    let (dtype, shape) = (port.ty.dtype, shapes[i].as_slice());
                    match operand {
                        Operand::Arena(range) => {
                            give(i, Given::Bytes { dtype, shape, bytes: &arena.bytes()[range.clone()] })?;
                        }
                        Operand::Input(n) => match inputs[*n] {
                            Given::Tensor(tensor) => {
                                let tensor =
                                    tensor.reshape(shape).map_err(|e| failed(&port.name)(e.to_string()))?;
                                give(i, Given::Tensor(&tensor))?;
                            }
                            Given::Bytes { bytes, .. } => give(i, Given::Bytes { dtype, shape, bytes })?,
                        },
                        Operand::Constant(n) => {
                            let bytes = lowered.constants[*n].bytes();
                            give(i, Given::Bytes { dtype, shape, bytes })?;
                        }
                        // Steps alone read in place.
                        Operand::InPlace => {}
                    }
                }
                Ok(())
            }
            Body::Staged(staged) => staged.run(inputs, profile, give),
            Body::Interpreted(interpreter) => {
                let tensors = inputs.iter().zip(&self.inputs);
                let tensors = tensors.map(|(given, port)| given.tensor().map_err(failed(&port.name)));
                let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
                let named: Vec<_> = self.inputs.iter().map(|p| p.name.as_str()).zip(&tensors).collect();
                let mut times = vec![0; self.infos.len()];
                let outputs = interpreter.run(&named, profile.is_some().then_some(&mut times))?;
                self.record(profile, &times);
                outputs.iter().enumerate().try_for_each(|(i, tensor)| give(i, Given::Tensor(tensor)))
            }
        }
    }

    /// Adds the steps with their times to a profile.
    fn record(&self, profile: Option<&mut Profile>, times: &[u64]) {
        let step = |(info, &nanoseconds): (&StepInfo, &u64)| StepTime { step: info.clone(), nanoseconds };
        if let Some(profile) = profile {
            profile.steps.extend(self.infos.iter().zip(times).map(step));
        }
    }

    fn run_steps(
        &self,
        lowered: &Lowered,
        sharing: &Sharing,
        arena: &mut Arena,
        inputs: &[Given],
        profile: Option<&mut Profile>,
    ) -> Result<(), ExecError> {
        if arena.len() < lowered.arena_bytes {
            *arena = self.arena()?;
        }
        let course = sharing.course();
        let mut times = Vec::new();
        let timed = profile.is_some() || matches!(course, Course::Trial(_));
        if timed {
            times.resize(lowered.steps.len(), 0);
        }
        let alone = Threads::default();
        let _attention = self.threads.attend(matches!(course, Course::Trial(_)) || sharing.any());
        for (i, step) in lowered.steps.iter().enumerate() {
            let start = timed.then(Instant::now);
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
            step.work.run(&cx, Io { ins, outs: cut.outputs }).map_err(failed(&self.infos[i].name))?;
            if let Some(start) = start {
                times[i] = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            }
        }
        if let Course::Trial(attempt) = course {
            attempt.end(&times);
        }
        self.record(profile, &times);
        Ok(())
    }

    /// The given tensors in the order of the program's inputs.
    fn bind<'t>(&self, given: &[(&str, &'t Tensor)]) -> Result<SmallVec<[Given<'t>; 4]>, ExecError> {
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
                true => Ok(Given::Tensor(tensor)),
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
