//! Runs `If`, `Loop` and `Scan`: their bodies are graphs with programs of their own.

use std::sync::OnceLock;

use smallvec::SmallVec;
use sora_ir::ops::{Loop, Scan};
use sora_ir::{Dim, EvalCx, Graph, Op, OpDef, Subgraph, TensorType, resolve_axis};
use sora_tensor::{Bool, Buffer, DType, Tensor};

use crate::ExecError;
use crate::given::{Give, Given, failed};
use crate::program::DEEPEST;
use crate::programs::{Programs, Setting};
use crate::steps::reference::Argument;

/// The inputs of a node by position; `None` for an absent one.
pub(crate) type Inputs<'i, 'a> = &'i [Option<Given<'a>>];

/// A control-flow operator with its bodies.
pub(crate) struct Control {
    kind: Kind,
    name: String,
}

enum Kind {
    /// Without a branch that no input of these shapes can take, but with why.
    If(Box<[Result<Body, String>; 2]>),
    Loop(Loop, Body),
    Scan(Scan, Body),
}

/// A body whose constant inputs are part of it.
struct Body {
    graph: Graph,
    setting: Setting,
    /// Compiled when the body first runs: many a branch never does.
    programs: OnceLock<Programs>,
    /// By input of the graph: which input of the body as written it is.
    takes: Vec<usize>,
}

/// An input of a body.
enum Bound {
    Constant(Tensor),
    Open(TensorType),
}

impl Control {
    /// The operator of a node with these arguments, whose outputs have these types. `None` for other operators, and
    /// where a body does not fit the arguments.
    pub(crate) fn new(
        name: &str,
        op: &Op,
        arguments: &[Argument],
        outputs: &[TensorType],
        setting: &Setting,
    ) -> Option<Self> {
        let bound = |argument: &Argument| match argument {
            Argument::Constant(tensor) => Some(Bound::Constant(tensor.clone())),
            Argument::Given(dtype, shape) => {
                Some(Bound::Open(TensorType::new(*dtype, shape.iter().copied())))
            }
            Argument::Absent => None,
        };
        let rest = |from: usize| arguments.get(from..)?.iter().map(bound).collect::<Option<Vec<_>>>();
        if setting.depth > DEEPEST {
            return None;
        }
        let kind = match op {
            Op::If(op) => {
                let given = rest(1)?;
                let branches =
                    [&op.else_branch, &op.then_branch].map(|body| Body::new(body, &given, setting));
                // As in inference, one branch that fits is enough.
                if branches.iter().all(Result::is_err) {
                    return None;
                }
                Kind::If(Box::new(branches))
            }
            Op::Loop(op) => {
                let ones = |i: usize| Some(vec![1; op.body.input_type(i).ok()?.rank()]);
                let condition = Tensor::scalar(Bool::from(true)).reshape(&ones(1)?).ok()?;
                let mut inputs =
                    vec![Bound::Open(TensorType::new(DType::I64, ones(0)?)), Bound::Constant(condition)];
                inputs.extend(rest(2)?);
                for (i, (input, ty)) in inputs.iter_mut().skip(2).zip(outputs).take(op.carried).enumerate() {
                    *input = Bound::Open(changing(ty, i));
                }
                Kind::Loop(op.clone(), Body::new(&op.body, &inputs, setting).ok()?)
            }
            Op::Scan(op) => {
                let mut inputs = rest(0)?;
                for (input, ty) in inputs.iter_mut().zip(outputs).take(op.states) {
                    *input = Bound::Open(ty.clone());
                }
                for (i, input) in inputs.iter_mut().skip(op.states).take(op.input_axes.len()).enumerate() {
                    let mut ty = match &*input {
                        Bound::Constant(tensor) => TensorType::of(tensor),
                        Bound::Open(ty) => ty.clone(),
                    };
                    ty.shape.remove(resolve_axis(op.input_axes[i], ty.rank()).ok()?);
                    *input = Bound::Open(ty);
                }
                Kind::Scan(op.clone(), Body::new(&op.body, &inputs, setting).ok()?)
            }
            _ => return None,
        };
        Some(Control { kind, name: name.to_owned() })
    }

    /// What profiles call it.
    pub(crate) fn kernel(&self) -> &'static str {
        match self.kind {
            Kind::If(_) => "if",
            Kind::Loop(..) => "loop",
            Kind::Scan(..) => "scan",
        }
    }

    /// Runs the operator on all inputs of its node and gives its outputs in order.
    ///
    /// # Errors
    /// What a body's program returns, [`ExecError::Step`] for inputs that the operator does not take.
    pub(crate) fn run(&self, inputs: Inputs, give: &mut Give) -> Result<(), ExecError> {
        let failed = failed(&self.name);
        match &self.kind {
            Kind::If(branches) => {
                let [otherwise, then] = &**branches;
                let condition = is_true(required(inputs, 0).map_err(&failed)?).map_err(&failed)?;
                let body = if condition { then } else { otherwise };
                let body = body.as_ref().map_err(|why| failed(format!("its body: {why}")))?;
                let given = body.inputs(|i| required(inputs, i + 1)).map_err(&failed)?;
                body.run(&given, give)
            }
            Kind::Loop(op, body) => self.run_loop(op, body, inputs, give),
            Kind::Scan(op, body) => self.run_scan(op, body, inputs, give),
        }
    }

    fn run_loop(&self, op: &Loop, body: &Body, inputs: Inputs, give: &mut Give) -> Result<(), ExecError> {
        let failed = failed(&self.name);
        let trips = match inputs.first().copied().flatten() {
            Some(trips) => {
                first_i64(trips).ok_or_else(|| failed("has no number of iterations".to_owned()))?
            }
            None => i64::MAX,
        };
        let mut go_on = match inputs.get(1).copied().flatten() {
            Some(begin) => is_true(begin).map_err(&failed)?,
            None => true,
        };
        let held = body.held(inputs, 2 + op.carried).map_err(&failed)?;
        let inputs = &held.given(inputs)[..];
        // The number of the iteration has as many axes as the body declares, all of one element.
        let ones = vec![1; op.body.input_type(0).map_or(0, TensorType::rank)];
        let mut carried: Vec<Option<Tensor>> = vec![None; op.carried];
        // The values of the iteration before the last, whose memory takes the next ones.
        let mut spare = carried.clone();
        let mut stacks: Vec<Stack> = Vec::new();
        stacks.resize_with(op.body.outputs().saturating_sub(1 + op.carried), Stack::default);
        let mut trip = 0;
        while go_on && trip < trips {
            let number = Aligned(trip.to_ne_bytes());
            let given = body.inputs(|i| match i {
                0 => Ok(Given::Bytes { dtype: DType::I64, shape: &ones, bytes: &number.0 }),
                _ => match carried.get(i - 2) {
                    Some(Some(value)) => Ok(Given::Tensor(value)),
                    _ => required(inputs, i),
                },
            });
            body.run(&given.map_err(&failed)?, &mut |i, value| {
                match i.checked_sub(1) {
                    None => go_on = is_true(value).map_err(&failed)?,
                    Some(i) if i < op.carried => {
                        spare[i] = Some(value.tensor_in(spare[i].take()).map_err(&failed)?);
                    }
                    Some(i) => stacks[i - op.carried].push(value).map_err(&failed)?,
                }
                Ok(())
            })?;
            std::mem::swap(&mut carried, &mut spare);
            trip += 1;
        }
        for (i, value) in carried.iter().enumerate() {
            let value =
                value.as_ref().map_or_else(|| required(inputs, 2 + i), |value| Ok(Given::Tensor(value)));
            give(i, value.map_err(&failed)?)?;
        }
        for (i, stack) in stacks.into_iter().enumerate() {
            let stack = match stack.count {
                0 => empty(op, inputs, op.carried + i),
                _ => stack.tensor(),
            };
            give(op.carried + i, Given::Tensor(&stack.map_err(&failed)?))?;
        }
        Ok(())
    }

    fn run_scan(&self, op: &Scan, body: &Body, inputs: Inputs, give: &mut Give) -> Result<(), ExecError> {
        let failed = failed(&self.name);
        let held = body.held(inputs, op.states + op.input_axes.len()).map_err(&failed)?;
        let inputs = &held.given(inputs)[..];
        let sequences = inputs.iter().skip(op.states).zip(&op.input_axes).zip(&op.input_reverse);
        let sequences = sequences.map(|((input, &axis), &reverse)| {
            let sequence = (*input).ok_or_else(|| "a sequence is missing".to_owned())?;
            Sequence::new(sequence, axis, reverse)
        });
        let mut sequences = sequences.collect::<Result<Vec<_>, _>>().map_err(&failed)?;
        let steps = sequences.first().map_or(0, |sequence| sequence.steps);
        let mut states: Vec<Option<Tensor>> = vec![None; op.states];
        let mut spare = states.clone();
        let mut outputs: Vec<Option<Slices>> = Vec::new();
        outputs.resize_with(op.output_axes.len(), || None);
        for step in 0..steps {
            sequences.iter_mut().for_each(|sequence| sequence.cut(step));
            let given = body.inputs(|i| match (states.get(i), i.checked_sub(op.states)) {
                (Some(Some(state)), _) => Ok(Given::Tensor(state)),
                (None, Some(i)) if i < sequences.len() => Ok(sequences[i].slice(step)),
                _ => required(inputs, i),
            });
            body.run(&given.map_err(&failed)?, &mut |i, value| {
                match i.checked_sub(op.states) {
                    None => spare[i] = Some(value.tensor_in(spare[i].take()).map_err(&failed)?),
                    Some(i) => {
                        let slices = match &mut outputs[i] {
                            Some(slices) => slices,
                            none => {
                                none.insert(Slices::new(value, op.output_axes[i], steps).map_err(&failed)?)
                            }
                        };
                        let at = if op.output_reverse[i] { steps - 1 - step } else { step };
                        slices.put(value, at).map_err(&failed)?;
                    }
                }
                Ok(())
            })?;
            std::mem::swap(&mut states, &mut spare);
        }
        for (i, state) in states.iter().enumerate() {
            let state = state.as_ref().map_or_else(|| required(inputs, i), |state| Ok(Given::Tensor(state)));
            give(i, state.map_err(&failed)?)?;
        }
        for (i, slices) in outputs.into_iter().enumerate() {
            let tensor = match slices {
                Some(slices) => slices.tensor(),
                None => empty(op, inputs, op.states + i),
            };
            give(op.states + i, Given::Tensor(&tensor.map_err(&failed)?))?;
        }
        Ok(())
    }
}

impl Body {
    /// # Errors
    /// Why the body does not take such inputs.
    fn new(body: &Subgraph, inputs: &[Bound], setting: &Setting) -> Result<Self, String> {
        let source = body.graph();
        let uses = source.uses();
        let (mut graph, mut takes) = (Graph::new(&source.name), Vec::new());
        let mut values = Vec::with_capacity(inputs.len());
        for (i, (&id, bound)) in source.inputs().iter().zip(inputs).enumerate() {
            let name = &source.value(id).name;
            let used = !uses[id.index()].is_empty() || source.outputs().iter().any(|o| o.value == id);
            values.push(match bound {
                Bound::Constant(tensor) => graph.constant(name, tensor.clone()),
                Bound::Open(ty) if used => {
                    takes.push(i);
                    graph.input(name, ty.clone())
                }
                // Nobody reads it.
                Bound::Open(_) => graph.constant(name, Tensor::scalar(0u8)),
            });
        }
        let outputs = graph.splice(source, &values, &mut str::to_owned).map_err(|e| e.to_string())?;
        for (output, value) in source.outputs().iter().zip(outputs) {
            graph.output(&output.name, value);
        }
        Ok(Body { graph, setting: setting.clone(), programs: OnceLock::new(), takes })
    }

    /// The inputs of the program, from those of the body as written.
    fn inputs<'a>(
        &self,
        find: impl FnMut(usize) -> Result<Given<'a>, String>,
    ) -> Result<SmallVec<[Given<'a>; 8]>, String> {
        self.takes.iter().copied().map(find).collect()
    }

    /// What the body captures, the inputs of the node from `from` on, as tensors.
    fn held(&self, inputs: Inputs, from: usize) -> Result<Held, String> {
        let hold = |(i, given): (usize, &Option<Given>)| match given {
            Some(given @ Given::Bytes { .. }) if i >= from && self.takes.contains(&i) => {
                given.tensor().map(Some)
            }
            _ => Ok(None),
        };
        inputs.iter().enumerate().map(hold).collect::<Result<_, _>>().map(Held)
    }

    fn run(&self, inputs: &[Given], give: &mut Give) -> Result<(), ExecError> {
        let programs = match self.programs.get() {
            Some(programs) => programs,
            None => {
                let programs = Programs::new(self.graph.clone(), self.setting.clone())?;
                self.programs.get_or_init(|| programs)
            }
        };
        programs.run(inputs, None, give)
    }
}

/// Tensors in place of bytes, which a stage of a body would copy in every iteration.
struct Held(SmallVec<[Option<Tensor>; 8]>);

impl Held {
    fn given<'h>(&'h self, inputs: Inputs<'_, 'h>) -> SmallVec<[Option<Given<'h>>; 8]> {
        let held = self.0.iter().map(Option::as_ref);
        inputs.iter().zip(held).map(|(given, held)| held.map(Given::Tensor).or(*given)).collect()
    }
}

/// The bytes of a number, aligned for it.
#[repr(align(8))]
struct Aligned([u8; 8]);

/// A type of a carried value: extents that change get symbols of their own, for a symbol is one extent.
fn changing(ty: &TensorType, value: usize) -> TensorType {
    let open = |(axis, dim): (usize, &Dim)| match dim.known() {
        Some(extent) => Dim::from(extent),
        None => Dim::symbol(&format!("?carried{value}.{axis}")),
    };
    TensorType { dtype: ty.dtype, shape: ty.shape.iter().enumerate().map(open).collect() }
}

fn required<'a>(inputs: Inputs<'_, 'a>, index: usize) -> Result<Given<'a>, String> {
    inputs.get(index).copied().flatten().ok_or_else(|| format!("input {index} is missing"))
}

fn is_true(value: Given) -> Result<bool, String> {
    match value.bytes() {
        [byte] => Ok(*byte != 0),
        other => Err(format!("takes one truth value, found {}", other.len())),
    }
}

fn first_i64(value: Given) -> Option<i64> {
    value.bytes().first_chunk().map(|bytes| i64::from_ne_bytes(*bytes))
}

/// The output of an operator that never ran its body: extents that only running it would tell are 0.
fn empty(op: &impl OpDef, inputs: Inputs, output: usize) -> Result<Tensor, String> {
    let tensors = inputs.iter().map(|input| input.map(|given| given.tensor()).transpose());
    let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
    let tensors: Vec<_> = tensors.iter().map(Option::as_ref).collect();
    let types = EvalCx { inputs: &tensors }.infer(op).map_err(|e| e.0)?;
    let ty = types.get(output).ok_or_else(|| format!("has no output {output}"))?;
    let shape = ty.shape.iter().map(|dim| dim.known().unwrap_or(0));
    Tensor::zeros(ty.dtype, &shape.collect::<Vec<_>>()).map_err(|e| e.to_string())
}

/// Values of one shape, one behind the other.
#[derive(Default)]
struct Stack {
    /// Dtype and shape of each.
    ty: Option<(DType, Vec<usize>)>,
    bytes: Vec<u8>,
    count: usize,
}

impl Stack {
    fn push(&mut self, value: Given) -> Result<(), String> {
        let (_, shape) = self.ty.get_or_insert_with(|| (value.dtype(), value.shape().to_vec()));
        if shape != value.shape() {
            return Err("the values to be stacked differ in shape between iterations".to_owned());
        }
        let bytes = value.bytes();
        self.bytes.try_reserve(bytes.len()).map_err(|e| e.to_string())?;
        self.bytes.extend_from_slice(bytes);
        self.count += 1;
        Ok(())
    }

    fn tensor(self) -> Result<Tensor, String> {
        let (dtype, mut shape) = self.ty.unwrap_or((DType::F32, Vec::new()));
        shape.insert(0, self.count);
        Given::Bytes { dtype, shape: &shape, bytes: &self.bytes }.tensor()
    }
}

/// A tensor of which a loop reads slice after slice.
struct Sequence<'a> {
    tensor: Given<'a>,
    /// Blocks before the axis, extent of the axis, bytes of a block behind it.
    outer: usize,
    steps: usize,
    inner: usize,
    reverse: bool,
    /// The shape of a slice.
    shape: Vec<usize>,
    /// The present slice, where its elements do not lie together.
    gathered: Option<Buffer>,
}

impl<'a> Sequence<'a> {
    fn new(tensor: Given<'a>, axis: i64, reverse: bool) -> Result<Self, String> {
        let mut shape = tensor.shape().to_vec();
        let axis = resolve_axis(axis, shape.len()).map_err(|e| e.0)?;
        let outer = shape[..axis].iter().product();
        let inner = shape[axis + 1..].iter().product::<usize>() * tensor.dtype().size();
        let steps = shape.remove(axis);
        let gathered = (outer > 1).then(|| Buffer::zeroed(outer * inner));
        Ok(Sequence { tensor, outer, steps, inner, reverse, shape, gathered })
    }

    fn at(&self, step: usize) -> usize {
        if self.reverse { self.steps - 1 - step } else { step }
    }

    /// Brings the slice of a step together, where it does not lie so.
    fn cut(&mut self, step: usize) {
        let (at, inner) = (self.at(step), self.inner);
        let Some(gathered) = &mut self.gathered else { return };
        let bytes = self.tensor.bytes();
        for block in 0..self.outer {
            let from = (block * self.steps + at) * inner;
            gathered.bytes_mut()[block * inner..(block + 1) * inner]
                .copy_from_slice(&bytes[from..from + inner]);
        }
    }

    fn slice<'s>(&'s self, step: usize) -> Given<'s>
    where
        'a: 's,
    {
        let (dtype, shape) = (self.tensor.dtype(), self.shape.as_slice());
        let bytes = match &self.gathered {
            Some(gathered) => gathered,
            None if self.outer == 0 => &[][..],
            None => &self.tensor.bytes()[self.at(step) * self.inner..][..self.inner],
        };
        Given::Bytes { dtype, shape, bytes }
    }
}

/// A tensor of which a loop writes slice after slice.
struct Slices {
    dtype: DType,
    /// The shape of a slice.
    slice: Vec<usize>,
    shape: Vec<usize>,
    outer: usize,
    steps: usize,
    inner: usize,
    bytes: Buffer,
}

impl Slices {
    fn new(first: Given, axis: i64, steps: usize) -> Result<Self, String> {
        let (dtype, slice) = (first.dtype(), first.shape().to_vec());
        let axis = resolve_axis(axis, slice.len() + 1).map_err(|e| e.0)?;
        let mut shape = slice.clone();
        shape.insert(axis, steps);
        let outer = slice[..axis].iter().product();
        let inner = slice[axis..].iter().product::<usize>() * dtype.size();
        let size = first.bytes().len().checked_mul(steps).ok_or("the slices overflow memory")?;
        let bytes =
            Buffer::try_zeroed(size).ok_or_else(|| format!("{size} bytes are more than there is memory"))?;
        Ok(Slices { dtype, slice, shape, outer, steps, inner, bytes })
    }

    fn put(&mut self, value: Given, at: usize) -> Result<(), String> {
        if value.shape() != self.slice {
            return Err("the values to be stacked differ in shape between iterations".to_owned());
        }
        let (bytes, inner) = (value.bytes(), self.inner);
        let all = self.bytes.bytes_mut();
        for block in 0..self.outer {
            let to = (block * self.steps + at) * inner;
            all[to..to + inner].copy_from_slice(&bytes[block * inner..(block + 1) * inner]);
        }
        Ok(())
    }

    fn tensor(self) -> Result<Tensor, String> {
        Tensor::new(self.dtype, &self.shape, self.bytes).map_err(|e| e.to_string())
    }
}
