//! What an importer sees of its node, and how it adds to the graph.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use sora_ir::ops::{Binary, BinaryKind, Cast, Range, Reshape, Transpose, Unary, UnaryKind, Unsqueeze};
use sora_ir::{Dim, Graph, Op, TensorType, ValueId, resolve_axis};
use sora_tensor::{DType, Tensor};

use super::function::{Calls, Functions};
use super::rows::Reader;
use super::slot::Slot;
use crate::error::{NodeIssue, Refusal};
use crate::names::Names;
use crate::proto::{AttributeProto, NodeProto, TensorProto};
use crate::source::External;
use crate::tensor::{self, signed};

/// What an importer gives: the node's outputs in order. It may leave out trailing ones that it cannot compute.
pub(super) type Built = Result<Vec<ValueId>, Refusal>;

/// As [`Built`], of operators whose outputs may be sequences or optional.
pub(super) type BuiltSlots = Result<Vec<Slot>, Refusal>;

/// One node of the file.
pub(super) struct NodeCx<'a> {
    pub(super) graph: &'a mut Graph,
    pub(super) names: &'a mut Names,
    pub(super) external: &'a mut External,
    pub(super) node: &'a NodeProto,
    /// Name of the node, made up if the file has none.
    pub(super) name: &'a str,
    /// Opset of the default domain.
    pub(super) opset: i64,
    /// The tensors among the inputs.
    pub(super) inputs: Vec<Option<ValueId>>,
    /// What the inputs are.
    pub(super) slots: Vec<Slot>,
    /// For each output: whether anything reads it.
    pub(super) outputs: Vec<bool>,
    /// What the names of the graph stand for: bodies use them.
    pub(super) scope: &'a HashMap<String, Slot>,
    /// Problems found in bodies.
    pub(super) issues: &'a mut Vec<NodeIssue>,
    /// How many bodies this node is in.
    pub(super) depth: usize,
    /// Nodes that unrolling may still add.
    pub(super) budget: &'a mut usize,
    /// The functions of the model.
    pub(super) functions: &'a Rc<Functions>,
    /// What calls of functions may still add.
    pub(super) calls: &'a mut Calls,
}

/// Reading.
impl NodeCx<'_> {
    /// What the outputs of this node are.
    pub(super) fn read(&mut self, reader: Reader) -> BuiltSlots {
        let slots = match reader {
            Reader::Slots(import) => import(self)?,
            Reader::Tensors(import) => {
                let sequence = |slot: &Slot| matches!(slot, Slot::List(_) | Slot::Stack(_));
                if let Some(index) = self.slots.iter().position(sequence) {
                    return Err(Refusal::new(format!("its input {index} is a sequence, not a tensor")));
                }
                import(self)?.into_iter().map(Slot::Value).collect()
            }
        };
        let settle = |slot| match slot {
            Slot::Value(value) => Slot::Value(self.settled(value)),
            other => other,
        };
        Ok(slots.into_iter().map(settle).collect())
    }
}

/// Attributes.
impl<'a> NodeCx<'a> {
    pub(super) fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.node.attribute.iter().find(|a| a.name == name)
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |a| a.i.unwrap_or(0))
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> bool {
        self.int(name, i64::from(default)) != 0
    }

    pub(super) fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).map_or(default, |a| a.f.unwrap_or(0.0))
    }

    pub(super) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }

    pub(super) fn text(&self, name: &str, default: &'a str) -> Cow<'a, str> {
        match self.attribute(name) {
            Some(a) => String::from_utf8_lossy(a.s.as_deref().unwrap_or_default()),
            None => Cow::Borrowed(default),
        }
    }

    /// A list of texts; empty when absent.
    pub(super) fn texts(&self, name: &str) -> Vec<Cow<'a, str>> {
        let strings = self.attribute(name).map_or(&[][..], |a| &a.strings);
        strings.iter().map(|s| String::from_utf8_lossy(s)).collect()
    }

    pub(super) fn tensor(&mut self, proto: &TensorProto) -> Result<Tensor, Refusal> {
        tensor::from_proto(proto, self.external)
    }

    /// The element type whose code an attribute gives.
    pub(super) fn dtype_named_by(&self, name: &str, default: i64) -> Result<DType, Refusal> {
        let code = self.int(name, default);
        tensor::dtype_of(code).map_err(|r| Refusal { why: format!("{name}={code}: {}", r.why), ..r })
    }

    /// A list of sizes; `default` when absent.
    pub(super) fn sizes(&self, name: &str, default: Vec<usize>) -> Result<Vec<usize>, Refusal> {
        match self.ints(name) {
            Some(values) => values.iter().map(|&v| size(v, name)).collect(),
            None => Ok(default),
        }
    }

    /// Refuses the node when an attribute has another value than the only supported one.
    pub(super) fn only_int(&self, name: &str, supported: i64) -> Result<(), Refusal> {
        match self.int(name, supported) {
            value if value == supported => Ok(()),
            value => Err(Refusal::new(format!("{name}={value} is not supported"))),
        }
    }
}

/// A size from a file: not negative, and small enough that sums of a few do not overflow.
pub(super) fn size(value: i64, what: &str) -> Result<usize, Refusal> {
    let size = u32::try_from(value).ok().filter(|&v| i32::try_from(v).is_ok());
    size.and_then(|v| usize::try_from(v).ok())
        .ok_or_else(|| Refusal::new(format!("{what} has the value {value}, which is out of range")))
}

/// A count, an extent or a position as a real number; infinite where it is far out of range.
pub(super) fn real(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// Inputs.
impl NodeCx<'_> {
    pub(super) fn input(&self, index: usize) -> Result<ValueId, Refusal> {
        self.opt(index).ok_or_else(|| Refusal::new(format!("its input {index} is missing")))
    }

    pub(super) fn opt(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }

    /// All inputs, none of which may be absent; at least one.
    pub(super) fn all_inputs(&self) -> Result<Vec<ValueId>, Refusal> {
        (0..self.inputs.len().max(1)).map(|i| self.input(i)).collect()
    }

    /// The first `count` inputs as they are, absent ones included.
    pub(super) fn inputs_to(&self, count: usize) -> Vec<Option<ValueId>> {
        let mut inputs: Vec<_> = (0..count).map(|i| self.opt(i)).collect();
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        inputs
    }

    pub(super) fn ty(&self, value: ValueId) -> &TensorType {
        self.graph.ty(value)
    }

    pub(super) fn rank(&self, value: ValueId) -> usize {
        self.ty(value).rank()
    }

    pub(super) fn dtype(&self, value: ValueId) -> DType {
        self.ty(value).dtype
    }

    pub(super) fn axis(&self, axis: i64, value: ValueId) -> Result<usize, Refusal> {
        resolve_axis(axis, self.rank(value)).map_err(|e| Refusal::new(e.0))
    }

    /// The tensor of a value that does not depend on the model's inputs.
    pub(super) fn constant(&self, value: ValueId) -> Option<Tensor> {
        fold(self.graph, value, &mut 64)
    }

    /// A few integers that depend on constants only as a constant, any other value as it is: shapes that follow
    /// from such integers must be known when the next node is read.
    pub(super) fn settled(&mut self, value: ValueId) -> ValueId {
        const FEW: usize = 64;
        let computed = self.graph.producer(value).is_some() && self.graph.value(value).content.is_none();
        let few = self.dtype(value).is_int() && self.ty(value).known_len().is_some_and(|len| len <= FEW);
        let constant = if computed && few { self.constant(value) } else { None };
        match constant {
            Some(tensor) => self.make("value", tensor),
            None => value,
        }
    }

    /// The elements of an integer value that does not depend on the model's inputs.
    pub(super) fn known_ints(&self, value: ValueId) -> Option<Vec<i64>> {
        let content = self.graph.value(value).content.as_ref();
        if let Some(known) = content.and_then(|content| content.iter().map(Dim::constant).collect()) {
            return Some(known);
        }
        self.constant(value).filter(|t| t.dtype().is_int()).map(|t| t.to_i64s())
    }

    /// The one truth value of a tensor that does not depend on the model's inputs.
    pub(super) fn known_flag(&self, value: ValueId) -> Option<bool> {
        match self.constant(value)?.to_i64s().as_slice() {
            &[flag] => Some(flag != 0),
            _ => None,
        }
    }

    /// What became an input in opset `since`, when it is computed while the model runs.
    pub(super) fn late(&self, input: usize, since: i64) -> Option<ValueId> {
        self.opt(input).filter(|&value| self.opset >= since && self.known_ints(value).is_none())
    }

    /// What moved from an attribute to an input in opset `since`: the integers of either; `None` when absent.
    pub(super) fn ints_at(&self, name: &str, input: usize, since: i64) -> Result<Option<Vec<i64>>, Refusal> {
        if self.opset < since {
            return Ok(self.ints(name).map(<[i64]>::to_vec));
        }
        let Some(value) = self.opt(input) else { return Ok(None) };
        let known = self.known_ints(value);
        known.map(Some).ok_or_else(|| {
            Refusal::new(format!("`{name}` is computed while the model runs"))
                .hint("export the model with constant parameters, or simplify it with onnxsim")
        })
    }
}

/// Evaluates the nodes that a small value depends on, if all of that is constant. `budget` bounds the number of
/// evaluations, since a hostile graph may reach one node by exponentially many ways.
fn fold(graph: &Graph, value: ValueId, budget: &mut usize) -> Option<Tensor> {
    const LARGEST: usize = 4096;
    if let Some(tensor) = graph.const_value(value) {
        return Some(tensor.clone());
    }
    let small = graph.ty(value).known_len().is_some_and(|len| len <= LARGEST);
    *budget = budget.checked_sub(1).filter(|_| small)?;
    let (_, node, slot) = graph.producer(value)?;
    // How long a loop runs is not known.
    if !node.op.bodies().is_empty() {
        return None;
    }
    let mut inputs = Vec::new();
    for input in &node.inputs {
        inputs.push(match input {
            Some(id) => Some(fold(graph, *id, budget)?),
            None => None,
        });
    }
    let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
    let outputs = node.op.eval(&sora_ir::EvalCx { inputs: &inputs }).ok()?;
    outputs.into_iter().nth(slot)
}

/// Building.
impl NodeCx<'_> {
    /// Adds the node itself: it gets the file's name, and its outputs provisional ones.
    pub(super) fn add(
        &mut self,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = impl Into<Option<ValueId>>>,
    ) -> Built {
        let values = self.graph.add(self.name, op, inputs)?;
        for &value in &values {
            let name = self.names.fresh(&self.graph.value(value).name);
            self.graph.rename(value, &name);
        }
        Ok(values)
    }

    /// Adds the node itself, with one output.
    pub(super) fn op(
        &mut self,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = impl Into<Option<ValueId>>>,
    ) -> Result<ValueId, Refusal> {
        first(self.add(op, inputs)?)
    }

    /// Adds a part of the node, of one output, named after the node.
    pub(super) fn step(
        &mut self,
        part: &str,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = impl Into<Option<ValueId>>>,
    ) -> Result<ValueId, Refusal> {
        first(self.steps(part, op, inputs)?)
    }

    /// As [`NodeCx::step`], with several outputs.
    pub(super) fn steps(
        &mut self,
        part: &str,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = impl Into<Option<ValueId>>>,
    ) -> Built {
        let name = self.names.fresh(&format!("{}/{part}", self.name));
        Ok(self.graph.add(&name, op, inputs)?)
    }

    /// Adds a constant, named after the node.
    pub(super) fn make(&mut self, part: &str, tensor: Tensor) -> ValueId {
        let name = self.names.fresh(&format!("{}/{part}", self.name));
        self.graph.constant(&name, tensor)
    }

    /// A one-dimensional integer constant.
    pub(super) fn make_ints(&mut self, part: &str, values: &[i64]) -> ValueId {
        self.make(part, Tensor::vector(values))
    }

    /// A constant of rank 0.
    pub(super) fn scalar(&mut self, part: &str, dtype: DType, value: f64) -> ValueId {
        self.make(part, Tensor::scalar(value).cast(dtype))
    }

    pub(super) fn unary(&mut self, kind: UnaryKind, x: ValueId) -> Result<ValueId, Refusal> {
        self.step(&kind.name().to_lowercase(), Unary { kind }, [x])
    }

    pub(super) fn binary(&mut self, kind: BinaryKind, a: ValueId, b: ValueId) -> Result<ValueId, Refusal> {
        self.step(&kind.name().to_lowercase(), Binary { kind }, [a, b])
    }

    /// The value in another dtype; the value itself when it has that dtype.
    pub(super) fn cast(&mut self, value: ValueId, to: DType) -> Result<ValueId, Refusal> {
        match self.dtype(value) == to {
            true => Ok(value),
            false => self.step("cast", Cast { to }, [value]),
        }
    }

    /// The value under a constant shape, in which 0 keeps an extent and -1 is inferred.
    pub(super) fn reshape(&mut self, value: ValueId, shape: &[i64]) -> Result<ValueId, Refusal> {
        let shape = self.make_ints("shape", shape);
        self.step("reshape", Reshape { allow_zero: false }, [value, shape])
    }

    /// The extents of a value, a constant where they are known.
    pub(super) fn shape_of(&mut self, value: ValueId) -> Result<ValueId, Refusal> {
        match self.ty(value).known_shape() {
            Some(known) => {
                let known: Vec<i64> = known.into_iter().map(signed).collect();
                Ok(self.make_ints("shape", &known))
            }
            None => self.step("shape", sora_ir::ops::Shape { start: 0, end: None }, [value]),
        }
    }

    /// One extent of a value as a list of one element, a constant where it is known.
    pub(super) fn extent(&mut self, value: ValueId, axis: usize) -> Result<ValueId, Refusal> {
        match self.ty(value).shape.get(axis).and_then(Dim::known) {
            Some(known) => Ok(self.make_ints("extent", &[signed(known)])),
            None => {
                let start = signed(axis);
                let op = sora_ir::ops::Shape { start, end: Some(start.saturating_add(1)) };
                self.step("extent", op, [value])
            }
        }
    }

    /// The list 0, 1, 2, … before a limit, an `i64` of one element.
    pub(super) fn count_to(&mut self, limit: ValueId) -> Result<ValueId, Refusal> {
        let (zero, one) = (self.make_ints("zero", &[0]), self.make_ints("one", &[1]));
        self.step("count", Range {}, [zero, limit, one])
    }

    /// The value under the shape of `like`.
    pub(super) fn reshape_like(&mut self, value: ValueId, like: ValueId) -> Result<ValueId, Refusal> {
        let shape = self.shape_of(like)?;
        self.step("reshape", Reshape { allow_zero: true }, [value, shape])
    }

    /// The value with further axes of extent 1 at these places of the result.
    pub(super) fn unsqueeze(&mut self, value: ValueId, axes: &[i64]) -> Result<ValueId, Refusal> {
        self.step("unsqueeze", Unsqueeze { axes: axes.to_vec() }, [value])
    }

    pub(super) fn transpose(&mut self, value: ValueId, perm: &[usize]) -> Result<ValueId, Refusal> {
        self.step("transpose", Transpose { perm: perm.to_vec() }, [value])
    }

    /// Whether anything reads an output.
    pub(super) fn reads(&self, output: usize) -> bool {
        self.outputs.get(output).copied().unwrap_or(false)
    }
}

/// The first output.
pub(super) fn first(values: Vec<ValueId>) -> Result<ValueId, Refusal> {
    values.into_iter().next().ok_or_else(|| Refusal::new("it has no output"))
}
