//! Nodes whose inputs are there and whose shapes the data decide.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use smallvec::SmallVec;
use sora_ir::{EvalCx, Graph, Node, Op, TensorType};
use sora_tensor::Tensor;

use crate::control::Control;
use crate::given::{Given, failed};
use crate::programs::{Programs, Setting, Shapes};
use crate::steps::reference::Argument;
use crate::{ExecError, StepInfo};

/// Elements of a result from which on compiling a node for the values of its small inputs pays, should the values not
/// come again: some 20 microseconds of the reference evaluator.
const WORTH_COMPILING: usize = 4096;

/// Elements of an input up to which it may be what decides the shape.
const SMALL: usize = 64;

/// A node at the frontier of a stage.
pub(crate) struct Pending {
    call: Call,
    outputs: usize,
    info: StepInfo,
}

enum Call {
    Control(Box<Control>),
    Node { op: Op, shaping: Option<Box<Shaping>> },
}

/// The programs of a node for values of the inputs that decide its shape.
struct Shaping {
    setting: Setting,
    /// The small inputs that are no constants.
    small: Vec<usize>,
    /// The other inputs that are no constants.
    open: Vec<usize>,
    /// Most recently used first.
    cache: Mutex<Vec<Arc<Shaped>>>,
    /// The node has no kernel, or its shape depends on more than the small inputs.
    futile: AtomicBool,
}

struct Shaped {
    values: Vec<Tensor>,
    programs: Programs,
}

impl Pending {
    /// A node with what is known of its arguments.
    pub(crate) fn new(graph: &Graph, node: &Node, arguments: &[Argument], setting: &Setting) -> Self {
        let types: Vec<TensorType> = node.outputs.iter().map(|&id| graph.ty(id).clone()).collect();
        let control = Control::new(&node.name, &node.op, arguments, &types, &setting.inside());
        let (call, kernel) = match control {
            Some(control) => {
                let kernel = control.kernel().to_owned();
                (Call::Control(Box::new(control)), kernel)
            }
            None => {
                let shaping = Shaping::new(arguments, setting).map(Box::new);
                (Call::Node { op: node.op.clone(), shaping }, format!("reference:{}", node.op.label()))
            }
        };
        Pending { call, outputs: types.len(), info: StepInfo::of(graph, node, &kernel) }
    }

    /// The step, as far as it is known before a run.
    pub(crate) fn info(&self) -> &StepInfo {
        &self.info
    }

    /// Computes the outputs, and names the kernel where it is another than [`Pending::info`] says.
    ///
    /// # Errors
    /// [`ExecError::Step`] when the node does not take these values.
    pub(crate) fn run(&self, given: &[Option<Given>]) -> Result<(Vec<Tensor>, Option<String>), ExecError> {
        let failed = failed(&self.info.name);
        let mut kernel = None;
        let mut results = Vec::with_capacity(self.outputs);
        match &self.call {
            Call::Control(control) => control.run(given, &mut |_, value| {
                results.push(value.tensor().map_err(&failed)?);
                Ok(())
            })?,
            Call::Node { op, shaping } => {
                let tensors = given.iter().map(|given| given.map(|given| given.tensor()).transpose());
                let tensors = tensors.collect::<Result<Vec<_>, _>>().map_err(&failed)?;
                let inputs: Vec<_> = tensors.iter().map(Option::as_ref).collect();
                let shaped = shaping.as_ref().and_then(|shaping| shaping.find(&self.info.name, op, &inputs));
                if let (Some(shaping), Some(shaped)) = (shaping, shaped) {
                    let open: SmallVec<[Given; 8]> = shaping.open.iter().filter_map(|&i| given[i]).collect();
                    let shapes: Shapes = open.iter().map(|given| Some(given.shape())).collect();
                    let entry = shaped.programs.entry(&shapes)?;
                    kernel = entry.program.steps().last().map(|step| step.kernel.clone());
                    shaped.programs.run(&open, None, &mut |_, value| {
                        results.push(value.tensor().map_err(&failed)?);
                        Ok(())
                    })?;
                } else {
                    results = op.eval(&EvalCx { inputs: &inputs }).map_err(|why| failed(why.0))?;
                }
            }
        }
        match results.len() == self.outputs {
            true => Ok((results, kernel)),
            false => Err(failed(format!("gave {} outputs instead of {}", results.len(), self.outputs))),
        }
    }
}

impl Shaping {
    fn new(arguments: &[Argument], setting: &Setting) -> Option<Self> {
        let small = |argument: &Argument| match argument {
            Argument::Given(_, shape) => Some(shape.len() <= 1 && shape.iter().product::<usize>() <= SMALL),
            Argument::Constant(_) | Argument::Absent => None,
        };
        let those = |wanted| {
            let positions = arguments.iter().enumerate().filter(move |(_, a)| small(a) == Some(wanted));
            positions.map(|(i, _)| i).collect::<Vec<_>>()
        };
        let (small, open) = (those(true), those(false));
        let (cache, futile) = Default::default();
        // Where all inputs are small, the reference is as fast.
        (!small.is_empty() && !open.is_empty()).then(|| Shaping {
            setting: setting.inside(),
            small,
            open,
            cache,
            futile,
        })
    }

    /// Programs of the node for these values of the small inputs, where they are worth it.
    fn find(&self, name: &str, op: &Op, inputs: &[Option<&Tensor>]) -> Option<Arc<Shaped>> {
        if self.futile.load(Ordering::Relaxed) {
            return None;
        }
        let values = || self.small.iter().filter_map(|&i| inputs[i]);
        {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = cache.iter().position(|shaped| shaped.values.iter().eq(values())) {
                cache[..=found].rotate_right(1);
                return Some(Arc::clone(&cache[0]));
            }
        }
        let mut graph = Graph::new(name);
        let mut arguments = Vec::with_capacity(inputs.len());
        for (i, input) in inputs.iter().enumerate() {
            arguments.push(input.map(|tensor| match self.open.contains(&i) {
                true => graph.input(&format!("x{i}"), TensorType::of(tensor)),
                false => graph.constant(&format!("x{i}"), tensor.clone()),
            }));
        }
        // What the node does not take, the evaluator says better.
        let outputs = graph.add(name, op.clone(), arguments).ok()?;
        let lengths = outputs.iter().map(|&id| graph.ty(id).known_len()).collect::<Option<Vec<_>>>();
        let Some(lengths) = lengths else {
            self.futile.store(true, Ordering::Relaxed);
            return None;
        };
        if lengths.iter().sum::<usize>() < WORTH_COMPILING {
            return None;
        }
        outputs.into_iter().enumerate().for_each(|(i, id)| graph.output(&format!("y{i}"), id));
        let programs = Programs::of(graph, self.setting.clone());
        let shapes: Shapes = self.open.iter().map(|&i| inputs[i].map(Tensor::shape)).collect();
        let entry = programs.entry(&shapes).ok()?;
        let steps = entry.program.steps();
        // A view costs the evaluator nothing either.
        if steps.is_empty() || steps.iter().any(|step| step.kernel.starts_with("reference:")) {
            self.futile.store(true, Ordering::Relaxed);
            return None;
        }
        let shaped = Shaped { values: values().cloned().collect(), programs };
        let shaped = Arc::new(shaped);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.insert(0, Arc::clone(&shaped));
        cache.truncate(self.setting.kept());
        Some(shaped)
    }
}
