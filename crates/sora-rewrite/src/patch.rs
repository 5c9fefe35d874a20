//! A change of a graph as data: nodes to add, and values that they replace.

use sora_ir::{Op, ValueId};
use sora_tensor::Tensor;

/// An operand of a [`Patch`]: a value of the graph, or one that the patch adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// A value of the graph.
    Old(ValueId),
    /// The n-th value that the patch adds.
    New(usize),
}

impl From<ValueId> for Term {
    fn from(value: ValueId) -> Self {
        Term::Old(value)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Constant { name: String, tensor: Tensor },
    Node { name: String, op: Op, inputs: Vec<Option<Term>>, outputs: usize },
}

/// What a rule wants changed. The graph checks types when it applies the patch, and refuses it as a whole when a
/// node cannot be inferred or a replacement would be known less definitely than what it replaces.
#[derive(Clone, Debug, Default)]
pub struct Patch {
    pub(crate) steps: Vec<Step>,
    /// Values that the steps add.
    added: usize,
    pub(crate) replacements: Vec<(ValueId, Term)>,
}

impl Patch {
    /// A patch that adds nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A patch that only replaces `old` by `new`.
    pub fn forward(old: ValueId, new: ValueId) -> Self {
        Self::new().replace(old, new)
    }

    /// A patch that replaces `old` by one new node.
    pub fn one(
        old: ValueId,
        name: &str,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = impl Into<Term>>,
    ) -> Self {
        let mut patch = Self::new();
        let new = patch.node(name, op, inputs);
        patch.replace(old, new)
    }

    /// Adds a constant.
    pub fn constant(&mut self, name: &str, tensor: Tensor) -> Term {
        self.push(Step::Constant { name: name.to_owned(), tensor }, 1)
    }

    /// Adds a node of one output.
    pub fn node(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = impl Into<Term>>,
    ) -> Term {
        self.node_with_optional(name, op, inputs.into_iter().map(|input| Some(input.into())))
    }

    /// Adds a node of one output, some of whose inputs may be absent.
    pub fn node_with_optional(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = Option<Term>>,
    ) -> Term {
        let inputs = inputs.into_iter().collect();
        self.push(Step::Node { name: name.to_owned(), op: op.into(), inputs, outputs: 1 }, 1)
    }

    /// Adds a node of so many outputs, some of whose inputs may be absent.
    pub fn node_with_outputs(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = Option<Term>>,
        outputs: usize,
    ) -> Vec<Term> {
        let (first, inputs) = (self.added, inputs.into_iter().collect());
        self.push(Step::Node { name: name.to_owned(), op: op.into(), inputs, outputs }, outputs);
        (first..self.added).map(Term::New).collect()
    }

    /// Replaces a value, whose name goes to `new` if the patch adds it.
    pub fn replace(mut self, old: ValueId, new: impl Into<Term>) -> Self {
        self.replacements.push((old, new.into()));
        self
    }

    fn push(&mut self, step: Step, values: usize) -> Term {
        self.steps.push(step);
        self.added += values;
        Term::New(self.added - values)
    }
}
