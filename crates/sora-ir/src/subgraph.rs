//! Graphs inside of operators: the bodies of control flow.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sora_tensor::Tensor;

use crate::{Dim, Graph, InferCx, IrError, Mismatch, TensorType, ValueId, evaluate, text};

/// The type of an input, and its elements where they are small integers that are known.
pub(crate) type Given = (TensorType, Option<Vec<Dim>>);

/// A graph as an attribute of an operator: what a branch or a loop computes.
///
/// A body is closed: whatever it needs of the graph around it comes in by its inputs, so that every pass sees what it
/// depends on. It knows its own inputs and outputs by position. Two bodies are equal when their text forms are.
#[derive(Clone)]
pub struct Subgraph(Arc<(Graph, String)>);

impl Subgraph {
    /// `graph` as a body.
    ///
    /// # Errors
    /// [`Mismatch`] when the graph is inconsistent.
    pub fn new(mut graph: Graph) -> Result<Self, Mismatch> {
        let broken = |e: &dyn fmt::Display| Mismatch::new(format!("its body: {e}"));
        graph.compact().map_err(|e| broken(&e))?;
        // Printing numbers values in the order of the text: after one round the numbers stay.
        let graph = text::parse(&text::print(&graph)).map_err(|e| broken(&e))?;
        let text = text::print(&graph);
        Ok(Subgraph(Arc::new((graph, text))))
    }

    /// A body with inputs of these types, written by `build`, which gives the outputs.
    ///
    /// # Panics
    /// When `build` fails: for bodies written in code.
    pub(crate) fn build(
        name: &str,
        inputs: &[TensorType],
        build: impl FnOnce(&mut Graph, &[ValueId]) -> Result<Vec<ValueId>, IrError>,
    ) -> Self {
        let mut graph = Graph::new(name);
        let ids: Vec<_> =
            inputs.iter().enumerate().map(|(i, ty)| graph.input(&format!("x{i}"), ty.clone())).collect();
        let outputs = build(&mut graph, &ids).expect("a body written in code is valid");
        outputs.into_iter().enumerate().for_each(|(i, value)| graph.output(&format!("y{i}"), value));
        Subgraph::new(graph).expect("a body written in code is valid")
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.0.0
    }

    /// The number of inputs.
    pub fn inputs(&self) -> usize {
        self.graph().inputs().len()
    }

    /// The number of outputs.
    pub fn outputs(&self) -> usize {
        self.graph().outputs().len()
    }

    /// The declared type of an input.
    ///
    /// # Errors
    /// [`Mismatch`] when there is no such input.
    pub fn input_type(&self, index: usize) -> Result<&TensorType, Mismatch> {
        let id = self
            .graph()
            .inputs()
            .get(index)
            .ok_or_else(|| Mismatch::new(format!("its body has no input {index}")))?;
        Ok(self.graph().ty(*id))
    }

    /// The graph for inputs of these types, with the elements of those that are small integers where known.
    ///
    /// # Errors
    /// [`Mismatch`] when the number of inputs differs or a node of the body refuses the types.
    pub fn typed(&self, inputs: &[(TensorType, Option<Vec<Dim>>)]) -> Result<Graph, Mismatch> {
        self.graph().with_input_types(inputs).map_err(|e| Mismatch::new(format!("its body: {e}")))
    }

    /// The types of the outputs for inputs of these types.
    ///
    /// # Errors
    /// As [`Subgraph::typed`].
    pub(crate) fn infer(&self, inputs: &[Given]) -> Result<Vec<TensorType>, Mismatch> {
        let graph = self.typed(inputs)?;
        Ok(graph.outputs().iter().map(|output| graph.ty(output.value).clone()).collect())
    }

    /// The outputs for these inputs, by position.
    ///
    /// # Errors
    /// [`Mismatch`] when an input does not fit or a node cannot run.
    pub fn eval(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Mismatch> {
        let graph = self.graph();
        let names = graph.inputs().iter().map(|&id: &ValueId| graph.value(id).name.as_str());
        let typed: Vec<_> = inputs.iter().map(|t| (TensorType::of(t), None)).collect();
        let given: Vec<(&str, &Tensor)> = names.zip(inputs).collect();
        evaluate(&self.typed(&typed)?, &given).map_err(|e| Mismatch::new(format!("its body: {e}")))
    }
}

impl fmt::Debug for Subgraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.1)
    }
}

impl PartialEq for Subgraph {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.1 == other.0.1
    }
}

impl Eq for Subgraph {}

impl Hash for Subgraph {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.1.hash(state);
    }
}

/// The text form, a string.
impl Serialize for Subgraph {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.1)
    }
}

impl<'de> Deserialize<'de> for Subgraph {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let graph = text::parse(&text).map_err(serde::de::Error::custom)?;
        Subgraph::new(graph).map_err(|e| serde::de::Error::custom(e.0))
    }
}

/// The inputs of an operator from `from` on, as a body takes them.
///
/// # Errors
/// [`Mismatch`] when one is absent.
pub(crate) fn arguments(cx: &InferCx, from: usize) -> Result<Vec<Given>, Mismatch> {
    (from..cx.types.len()).map(|i| Ok((cx.ty(i)?.clone(), cx.content(i).map(<[Dim]>::to_vec)))).collect()
}

/// The type that both may be: equal extents stay, others are unknown.
///
/// # Errors
/// [`Mismatch`] when dtype or rank differ.
pub(crate) fn join(
    a: &TensorType,
    b: &TensorType,
    unknown: impl Fn(usize) -> Dim,
) -> Result<TensorType, Mismatch> {
    if a.dtype != b.dtype || a.rank() != b.rank() {
        return Err(Mismatch::new(format!("{a} and {b} differ in more than extents")));
    }
    let extents = a.shape.iter().zip(&b.shape).enumerate();
    let shape = extents.map(|(axis, (x, y))| if x == y { x.clone() } else { unknown(axis) });
    Ok(TensorType { dtype: a.dtype, shape: shape.collect() })
}

/// A type seen from outside of a body: extents in symbols that are not among those of `known` are unknown.
pub(crate) fn outside(
    ty: TensorType,
    known: &BTreeSet<String>,
    unknown: impl Fn(usize) -> Dim,
) -> TensorType {
    let shape = ty.shape.into_iter().enumerate().map(|(axis, dim)| {
        let mut symbols = BTreeSet::new();
        dim.symbols(&mut symbols);
        if symbols.is_subset(known) { dim } else { unknown(axis) }
    });
    TensorType { dtype: ty.dtype, shape: shape.collect() }
}

/// The symbols in the types of an operator's inputs.
pub(crate) fn symbols(cx: &InferCx) -> BTreeSet<String> {
    let mut symbols = BTreeSet::new();
    let dims = cx.types.iter().flatten().flat_map(|ty| &ty.shape);
    let contents = cx.contents.iter().flatten().flatten();
    dims.chain(contents).for_each(|dim| dim.symbols(&mut symbols));
    symbols
}
