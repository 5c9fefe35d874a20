//! What a gradient rule sees of its node, and the graph that it writes the gradient into.

use std::ops::{Deref, DerefMut};

use crate::{Graph, Mismatch, Node, ValueId, Writer};

/// What [`OpDef::grad`](crate::OpDef::grad) gives: the gradient of each input, `None` where there is none.
pub type Gradients = Result<Vec<Option<ValueId>>, Mismatch>;

/// A node, the gradients of its outputs, and the graph to write those of its inputs into.
///
/// All shapes are concrete: a gradient's graph is made for the shapes that it runs on.
pub struct GradCx<'a> {
    writer: Writer<'a>,
    node: &'a Node,
    grads: &'a [Option<ValueId>],
    wanted: &'a [bool],
}

impl<'a> GradCx<'a> {
    /// The context of `node`, a node of `graph`, where `grads` are the gradients of its outputs and `wanted` says of
    /// which inputs gradients are asked for.
    pub fn new(
        graph: &'a mut Graph,
        node: &'a Node,
        grads: &'a [Option<ValueId>],
        wanted: &'a [bool],
    ) -> Self {
        GradCx { writer: Writer::new(graph, format!("{}/grad", node.name)), node, grads, wanted }
    }

    /// The number of inputs, absent ones included.
    pub fn arity(&self) -> usize {
        self.node.inputs.len()
    }

    /// A required input.
    ///
    /// # Errors
    /// [`Mismatch`] when the input is absent.
    pub fn input(&self, index: usize) -> Result<ValueId, Mismatch> {
        self.opt(index).ok_or_else(|| Mismatch::new(format!("input {index} is missing")))
    }

    /// An optional input.
    pub fn opt(&self, index: usize) -> Option<ValueId> {
        self.node.inputs.get(index).copied().flatten()
    }

    /// An output of the node.
    ///
    /// # Errors
    /// [`Mismatch`] when there is no such output.
    pub fn output(&self, index: usize) -> Result<ValueId, Mismatch> {
        let output = self.node.outputs.get(index).copied();
        output.ok_or_else(|| Mismatch::new(format!("output {index} is missing")))
    }

    /// The gradient of the first output; zeros where only others have one.
    ///
    /// # Errors
    /// [`Mismatch`] when there is no output.
    pub fn grad(&mut self) -> Result<ValueId, Mismatch> {
        self.grad_of(0)
    }

    /// The gradient of an output; zeros where it has none.
    ///
    /// # Errors
    /// [`Mismatch`] when there is no such output.
    pub fn grad_of(&mut self, output: usize) -> Result<ValueId, Mismatch> {
        match self.grads.get(output).copied().flatten() {
            Some(grad) => Ok(grad),
            None => {
                let like = self.output(output)?;
                self.zeros_like(like)
            }
        }
    }

    /// Whether the gradient of an input is asked for; what else a rule gives is thrown away.
    pub fn wants(&self, index: usize) -> bool {
        self.wanted.get(index).copied().unwrap_or(false)
    }

    /// Refuses a gradient that the rule does not have.
    ///
    /// # Errors
    /// [`Mismatch`] when the gradient of this input is asked for.
    pub fn refuse(&self, index: usize, what: &str) -> Result<(), Mismatch> {
        match self.wants(index) {
            true => Err(Mismatch::new(format!("has no gradient with respect to {what} (input {index})"))),
            false => Ok(()),
        }
    }

    /// The sum of `x` over the axes along which input `index` was repeated to the shape of `x`.
    ///
    /// # Errors
    /// As [`Writer::sum_to`].
    pub fn sum_to_input(&mut self, x: ValueId, index: usize) -> Result<ValueId, Mismatch> {
        let shape = self.shape(self.input(index)?)?;
        self.sum_to(x, &shape)
    }
}

impl<'a> Deref for GradCx<'a> {
    type Target = Writer<'a>;

    fn deref(&self) -> &Writer<'a> {
        &self.writer
    }
}

impl<'a> DerefMut for GradCx<'a> {
    fn deref_mut(&mut self) -> &mut Writer<'a> {
        &mut self.writer
    }
}
