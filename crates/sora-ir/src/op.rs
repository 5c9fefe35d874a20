//! What an operator is: the trait each file in `ops/` implements, and the contexts its methods see.

use std::borrow::Cow;
use std::fmt;
use std::hash::Hash;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sora_tensor::{DType, Tensor, TensorError};

use crate::case::{Case, Gen};
use crate::{Dim, GradCx, Gradients, Subgraph, TensorType, TieCx};

/// Everything Sora knows about one operator. One file in `ops/` implements it, one line in `ops!` lists it.
pub trait OpDef: Clone + Eq + Hash + fmt::Debug + Serialize + DeserializeOwned {
    /// Output types from input types; refuses what [`OpDef::eval`] could not run.
    ///
    /// # Errors
    /// [`Mismatch`] naming both sides.
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch>;

    /// Naive evaluation on concrete tensors: the oracle for kernels, the constant folder and the fallback.
    ///
    /// # Errors
    /// [`Mismatch`] when the inputs do not fit the operator.
    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch>;

    /// Random valid instances for the conformance suite.
    fn cases(g: &mut Gen) -> Vec<Case>;

    /// Multiply-adds of one evaluation, given input and output types; 0 for data movement and elementwise work.
    fn macs(&self, _inputs: &[Option<&TensorType>], _outputs: &[&TensorType]) -> Dim {
        Dim::from(0usize)
    }

    /// Writes the gradients of the inputs, given those of the outputs. Only inputs of floats have gradients, and the levels between
    /// QuantizeLinear and DequantizeLinear; of those that are not wanted the rule may give any.
    ///
    /// # Errors
    /// [`Mismatch`] where the operator is not differentiable, which is the default.
    fn grad(&self, _cx: &mut GradCx) -> Gradients {
        Err(Mismatch::new("has no gradient"))
    }

    /// How the quantizer may treat the operator.
    fn quant(&self) -> QuantRule {
        QuantRule::Float
    }

    /// The elements of the first output where it is a small integer tensor computed from shapes.
    fn content(&self, _cx: &InferCx) -> Option<Vec<Dim>> {
        None
    }

    /// Says which elements along the axes of its operands can only be removed together. All others must stay.
    ///
    /// # Errors
    /// [`Mismatch`] where all must stay, which is the default.
    fn ties(&self, _cx: &mut TieCx) -> Result<(), Mismatch> {
        Err(Mismatch::new("needs every element of its operands"))
    }

    /// The operator for these operands, from which elements were removed as [`OpDef::ties`] says.
    fn narrowed(&self, _inputs: &[Option<&TensorType>], _outputs: &[&TensorType]) -> Self {
        self.clone()
    }

    /// The graphs inside of the operator: branches, loop bodies.
    fn bodies(&self) -> Vec<&Subgraph> {
        Vec::new()
    }

    /// The name people know: the variant's name unless the operator is a family of rows.
    fn label(&self) -> Option<Cow<'static, str>> {
        None
    }
}

/// What the quantizer may do with an operator. Graphs stay in the one canonical form, Quantize and
/// Dequantize around float operators; the rule says where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantRule {
    /// Stays in floating point.
    Float,
    /// Multiplies activations (input 0) by weights (input 1, output channels on `weight_axis`, counted
    /// from the end when negative) and adds an optional bias (input 2).
    Linear {
        /// Axis of the weight that holds output channels.
        weight_axis: isize,
    },
    /// Multiplies activations (input 0) and its own state by weights (inputs 1 and 2): both are quantized as they
    /// come, the state by the attribute `quantize_state`.
    Recurrent,
    /// Moves values of input 0 without computing: the output keeps the scale of the input.
    Passthrough,
    /// Moves values of several inputs: all inputs and the output share one scale.
    Unify,
    /// Combines operands arithmetically: each has its own scale, the output is requantized.
    Arithmetic,
    /// A function of one operand, element by element: a table in 8 bits.
    Lut,
}

/// Why types or tensors do not fit an operator: a sentence that names both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch(pub String);

impl Mismatch {
    /// A mismatch with this explanation.
    pub fn new(why: impl Into<String>) -> Self {
        Mismatch(why.into())
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<TensorError> for Mismatch {
    fn from(error: TensorError) -> Self {
        Mismatch(error.to_string())
    }
}

/// Fails with a [`Mismatch`] unless a condition holds: `ensure!(a == b, "…{a}…{b}")`.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err($crate::Mismatch::new(format!($($message)*)));
        }
    };
}

/// What [`OpDef::infer`] sees of a node.
pub struct InferCx<'a> {
    /// The node's name, for naming dimensions that cannot be known.
    pub node: &'a str,
    /// Input types; `None` for an absent optional input.
    pub types: Vec<Option<&'a TensorType>>,
    /// Input values where they are constants.
    pub constants: Vec<Option<&'a Tensor>>,
    /// Input elements where they are small integers computed from shapes.
    pub contents: Vec<Option<Vec<Dim>>>,
}

impl<'a> InferCx<'a> {
    /// The type of a required input.
    ///
    /// # Errors
    /// [`Mismatch`] when the input is absent.
    pub fn ty(&self, index: usize) -> Result<&'a TensorType, Mismatch> {
        self.opt(index).ok_or_else(|| Mismatch::new(format!("input {index} is missing")))
    }

    /// The type of an optional input.
    pub fn opt(&self, index: usize) -> Option<&'a TensorType> {
        self.types.get(index).copied().flatten()
    }

    /// The value of an input when it is a constant.
    pub fn constant(&self, index: usize) -> Option<&'a Tensor> {
        self.constants.get(index).copied().flatten()
    }

    /// The elements of a small integer input, where known, possibly symbolic.
    pub fn content(&self, index: usize) -> Option<&[Dim]> {
        self.contents.get(index)?.as_deref()
    }

    /// A dimension that inference cannot know; the same call gives the same symbol.
    pub fn unknown(&self, axis: usize) -> Dim {
        Dim::unknown(&format!("{}.{axis}", self.node.replace('\'', "")))
    }

    /// As [`InferCx::unknown`], of another output than the first.
    pub fn unknown_at(&self, output: usize, axis: usize) -> Dim {
        match output {
            0 => self.unknown(axis),
            _ => Dim::unknown(&format!("{}:{output}.{axis}", self.node.replace('\'', ""))),
        }
    }

    /// Checks the number of inputs.
    ///
    /// # Errors
    /// [`Mismatch`] unless it lies in `range`.
    pub fn arity(&self, range: std::ops::RangeInclusive<usize>) -> Result<(), Mismatch> {
        let n = self.types.len();
        ensure!(range.contains(&n), "takes {} to {} inputs, found {n}", range.start(), range.end());
        Ok(())
    }
}

/// The concrete inputs of [`OpDef::eval`].
pub struct EvalCx<'a> {
    /// Input tensors; `None` for an absent optional input.
    pub inputs: &'a [Option<&'a Tensor>],
}

impl<'a> EvalCx<'a> {
    /// A required input.
    ///
    /// # Errors
    /// [`Mismatch`] when the input is absent.
    pub fn get(&self, index: usize) -> Result<&'a Tensor, Mismatch> {
        self.opt(index).ok_or_else(|| Mismatch::new(format!("input {index} is missing")))
    }

    /// An optional input.
    pub fn opt(&self, index: usize) -> Option<&'a Tensor> {
        self.inputs.get(index).copied().flatten()
    }

    /// The output types that [`OpDef::infer`] gives for these tensors: concrete evaluation needs no
    /// second shape rule.
    ///
    /// # Errors
    /// Whatever `infer` refuses.
    pub fn infer(&self, op: &impl OpDef) -> Result<Vec<TensorType>, Mismatch> {
        infer_concrete(self.inputs, |cx| op.infer(cx))
    }

    /// The first output's type of [`EvalCx::infer`] as dtype and concrete shape.
    ///
    /// # Errors
    /// Whatever `infer` refuses, or a shape that stays symbolic.
    pub fn output(&self, op: &impl OpDef) -> Result<(DType, Vec<usize>), Mismatch> {
        let types = self.infer(op)?;
        let ty = types.first().ok_or_else(|| Mismatch::new("has no output"))?;
        let shape =
            ty.known_shape().ok_or_else(|| Mismatch::new(format!("output shape of {ty} is not known")))?;
        Ok((ty.dtype, shape))
    }
}

/// Runs shape inference as if every input were a constant.
pub(crate) fn infer_concrete<T>(
    inputs: &[Option<&Tensor>],
    infer: impl FnOnce(&InferCx) -> Result<T, Mismatch>,
) -> Result<T, Mismatch> {
    let types: Vec<_> = inputs.iter().map(|t| t.map(TensorType::of)).collect();
    infer(&InferCx {
        node: "",
        types: types.iter().map(Option::as_ref).collect(),
        constants: inputs.to_vec(),
        contents: inputs.iter().map(|t| t.and_then(content_of)).collect(),
    })
}

/// The elements of a constant small enough to take part in shape arithmetic.
pub(crate) fn content_of(tensor: &Tensor) -> Option<Vec<Dim>> {
    const LARGEST: usize = 64;
    let small = tensor.dtype().is_int() && tensor.rank() <= 1 && tensor.len() <= LARGEST;
    small.then(|| tensor.to_i64s().into_iter().map(Dim::from).collect())
}

/// Resolves an axis that may count from the end.
///
/// # Errors
/// [`Mismatch`] when it is outside `-rank..rank`.
pub fn resolve_axis(axis: i64, rank: usize) -> Result<usize, Mismatch> {
    let signed = i64::try_from(rank).unwrap_or(i64::MAX);
    let resolved = if axis < 0 { axis.saturating_add(signed) } else { axis };
    match usize::try_from(resolved) {
        Ok(resolved) if resolved < rank => Ok(resolved),
        _ => Err(Mismatch::new(format!("axis {axis} is outside a tensor of rank {rank}"))),
    }
}

/// The shape that two shapes broadcast to under NumPy's rule.
///
/// # Errors
/// [`Mismatch`] naming both shapes.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, Mismatch> {
    let rank = a.len().max(b.len());
    let at = |shape: &[Dim], i: usize| match (i + shape.len()).checked_sub(rank) {
        Some(j) => shape[j].clone(),
        None => Dim::from(1usize),
    };
    (0..rank)
        .map(|i| {
            let both = at(a, i).broadcast(&at(b, i));
            both.ok_or_else(|| Mismatch::new(format!("cannot broadcast {a:?} with {b:?}")))
        })
        .collect()
}
