//! Applies patches to a graph, keeping the use counts and names of a sweep up to date.

use std::collections::HashSet;

use sora_ir::{Def, Dim, Graph, IrError, NodeId, TensorType, ValueId};

use crate::patch::{Step, Term};
use crate::view::Uses;
use crate::{Patch, View};

/// A graph under change.
pub(crate) struct Editor<'a> {
    graph: &'a mut Graph,
    uses: Uses,
    names: HashSet<String>,
}

/// What an applied patch did.
pub(crate) struct Applied {
    /// Nodes that now are in the graph.
    pub(crate) added: Vec<NodeId>,
    /// Labels of what went and of what came, such as `Conv, Mul → Conv`.
    pub(crate) detail: String,
}

impl<'a> Editor<'a> {
    pub(crate) fn new(graph: &'a mut Graph) -> Self {
        let names = graph.values().map(|(_, value)| value.name.clone()).collect();
        Editor { uses: Uses::of(graph), names, graph }
    }

    pub(crate) fn view(&self) -> View<'_> {
        View { graph: self.graph, uses: &self.uses }
    }

    /// The nodes that read a value.
    pub(crate) fn readers(&self, value: ValueId) -> &[NodeId] {
        &self.uses.readers[value.index()]
    }

    /// Applies `patch`; `None` when the graph refuses it and stays as it was.
    ///
    /// # Errors
    /// When types that became more definite contradict a reader further down: the graph was inconsistent.
    pub(crate) fn apply(&mut self, patch: &Patch) -> Result<Option<Applied>, IrError> {
        let mut terms = Vec::with_capacity(patch.steps.len());
        let mut added = Vec::new();
        for step in &patch.steps {
            match self.add(step, &terms) {
                Some((values, node)) => {
                    terms.extend(values);
                    added.extend(node);
                }
                None => {
                    self.undo(&added);
                    return Ok(None);
                }
            }
        }
        let replacements: Vec<_> =
            patch.replacements.iter().map(|&(old, new)| (old, resolve(new, &terms))).collect();
        let fits = |&(old, new): &(ValueId, ValueId)| {
            let (old, new) = (self.graph.value(old), self.graph.value(new));
            refines(&new.ty, &old.ty) && (old.content.is_none() || new.content.is_some())
        };
        if !replacements.iter().all(fits) {
            self.undo(&added);
            return Ok(None);
        }

        let mut sharper = false;
        let (mut removed, mut renamed) = (Vec::new(), Vec::new());
        for (&(old, new), (_, term)) in replacements.iter().zip(&patch.replacements) {
            // Types of readers may depend on the type, the elements and on whether they are constant.
            let (from, to) = (self.graph.value(old), self.graph.value(new));
            sharper |= to.ty != from.ty || to.content != from.content || matches!(to.def, Def::Const(_));
            self.uses.replace(self.graph, old, new);
            if matches!(term, Term::New(_)) {
                renamed.push((new, self.graph.value(old).name.clone()));
            }
            self.remove_dead(old, &mut removed);
        }
        self.name_added(&terms, &renamed);
        if sharper {
            self.graph.infer_all()?;
        }
        added.retain(|&id| self.graph.node(id).is_some());
        let label = |id: &NodeId| self.graph.node(*id).map(|n| n.op.label().into_owned());
        let came: Vec<String> = added.iter().filter_map(label).collect();
        removed.reverse();
        let came = if came.is_empty() { "nothing".to_owned() } else { came.join(", ") };
        Ok(Some(Applied { added, detail: format!("{} → {came}", removed.join(", ")) }))
    }

    fn add(&mut self, step: &Step, terms: &[ValueId]) -> Option<(Vec<ValueId>, Option<NodeId>)> {
        let (values, node) = match step {
            Step::Constant { name, tensor } => (vec![self.graph.constant(name, tensor.clone())], None),
            Step::Node { name, op, inputs, outputs } => {
                let inputs: Vec<_> = inputs.iter().map(|term| term.map(|t| resolve(t, terms))).collect();
                let values = self.graph.add(name, op.clone(), inputs.iter().copied()).ok()?;
                let (id, ..) = self.graph.producer(*values.first()?)?;
                if values.len() < *outputs {
                    self.graph.remove(id);
                    return None;
                }
                for input in inputs.into_iter().flatten() {
                    self.uses.readers[input.index()].push(id);
                }
                (values, Some(id))
            }
        };
        let count = values.iter().map(|value| value.index() + 1).max()?;
        self.uses.grow(count);
        Some((values, node))
    }

    /// Gives replacements the names of what they replace, and other new values names that nothing has.
    fn name_added(&mut self, added: &[ValueId], renamed: &[(ValueId, String)]) {
        for (value, name) in renamed {
            self.graph.rename(*value, name);
            self.names.insert(name.clone());
        }
        for &value in added.iter().filter(|value| renamed.iter().all(|(other, _)| other != *value)) {
            let base = self.graph.value(value).name.clone();
            let numbered = (1usize..).map(|i| format!("{base}_{i}"));
            let mut names = std::iter::once(base.clone()).chain(numbered);
            let name = names.find(|name| !self.names.contains(name)).unwrap_or(base);
            self.graph.rename(value, &name);
            self.names.insert(name);
        }
    }

    fn undo(&mut self, added: &[NodeId]) {
        for &id in added.iter().rev() {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: NodeId) {
        let Some(node) = self.graph.node(id) else { return };
        for input in node.inputs.iter().flatten() {
            self.uses.readers[input.index()].retain(|&reader| reader != id);
        }
        self.graph.remove(id);
    }

    /// Removes the producer of `value`, and what only it needed, if nothing reads them any more.
    fn remove_dead(&mut self, value: ValueId, removed: &mut Vec<String>) {
        let mut stack = vec![value];
        while let Some(value) = stack.pop() {
            let Some((id, node, _)) = self.graph.producer(value) else { continue };
            if node.outputs.iter().any(|&output| self.uses.count(output) > 0) {
                continue;
            }
            let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
            removed.push(node.op.label().into_owned());
            for output in &node.outputs {
                self.names.remove(&self.graph.value(*output).name);
            }
            self.remove(id);
            for &input in &inputs {
                if self.uses.count(input) == 0 && self.graph.const_value(input).is_some() {
                    self.names.remove(&self.graph.value(input).name);
                }
            }
            stack.extend(inputs);
        }
    }
}

fn resolve(term: Term, terms: &[ValueId]) -> ValueId {
    match term {
        Term::Old(value) => value,
        Term::New(step) => terms[step],
    }
}

/// Whether a value of type `new` may replace one of type `old` without losing knowledge: every dimension is the
/// same expression, has become a number, or was one that inference could not know.
fn refines(new: &TensorType, old: &TensorType) -> bool {
    let known = |(new, old): (&Dim, &Dim)| new == old || new.constant().is_some() || old.is_unknown();
    old.accepts(new) && new.shape.iter().zip(&old.shape).all(known)
}
