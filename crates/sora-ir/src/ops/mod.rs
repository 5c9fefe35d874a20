//! The operators, one file each; the list in `ops!` is the only place that names them all.

mod activation;
mod arg_reduce;
mod average_pool;
mod batch_norm;
mod bit_cast;
mod cast;
mod cast_float8;
mod concat;
mod conv;
mod conv_transpose;
mod cum_prod;
mod cum_sum;
mod dequantize_linear;
mod det;
mod dynamic_quantize_linear;
mod elementwise;
mod elementwise_grad;
mod expand;
mod flatten;
mod gather;
mod gather_elements;
mod gather_nd;
mod grid_sample;
mod gru;
mod if_;
mod late;
mod layer_norm;
mod loop_;
mod lstm;
mod mat_mul;
mod max_pool;
mod max_pool_indices;
mod max_roi_pool;
pub(crate) mod movement;
mod non_max_suppression;
mod non_zero;
mod one_hot;
mod pad;
mod quantize_linear;
mod random;
mod range;
mod recurrent;
mod recurrent_grad;
mod reduce;
mod resample;
mod reshape;
mod resize;
mod rnn;
mod roi_align;
mod scan;
mod scatter;
mod scatter_elements;
mod scatter_nd;
mod shape;
mod slice;
mod sliding_grad;
mod softmax;
mod split;
mod squeeze;
mod tile;
mod top_k;
mod transpose;
mod trilu;
mod unique;
mod unsqueeze;
mod where_;

pub use activation::{Activation, ActivationKind};
pub use arg_reduce::ArgReduce;
pub use average_pool::AveragePool;
pub use batch_norm::BatchNorm;
pub use bit_cast::BitCast;
pub use cast::Cast;
pub use cast_float8::CastFloat8;
pub use concat::Concat;
pub use conv::Conv;
pub use conv_transpose::ConvTranspose;
pub use cum_prod::CumProd;
pub use cum_sum::CumSum;
pub use dequantize_linear::DequantizeLinear;
pub use det::Det;
pub use dynamic_quantize_linear::DynamicQuantizeLinear;
pub use elementwise::{Binary, BinaryKind, Unary, UnaryKind};
pub use expand::Expand;
pub use flatten::Flatten;
pub use gather::Gather;
pub use gather_elements::GatherElements;
pub use gather_nd::GatherNd;
pub use grid_sample::{GridSample, Outside};
pub use gru::Gru;
pub use if_::If;
pub use late::{Late, LateOp};
pub use layer_norm::LayerNorm;
pub use loop_::Loop;
pub use lstm::Lstm;
pub use mat_mul::MatMul;
pub use max_pool::MaxPool;
pub use max_pool_indices::MaxPoolIndices;
pub use max_roi_pool::MaxRoiPool;
pub use non_max_suppression::NonMaxSuppression;
pub use non_zero::NonZero;
pub use one_hot::OneHot;
pub use pad::{Pad, PadMode};
pub use quantize_linear::QuantizeLinear;
pub use random::{Distribution, Random};
pub use range::Range;
pub use recurrent_grad::{Cell, RecurrentGrad};
pub use reduce::{Reduce, ReduceKind};
pub use resample::{Coordinates, Interpolation, Rounding, Taps};
pub use reshape::Reshape;
pub use resize::{Aspect, Resize};
pub use rnn::{Direction, Rnn, RnnActivation};
pub use roi_align::RoiAlign;
pub use scan::Scan;
pub use scatter::Reduction;
pub use scatter_elements::ScatterElements;
pub use scatter_nd::ScatterNd;
pub use shape::Shape;
pub use slice::Slice;
pub use softmax::Softmax;
pub use split::Split;
pub use squeeze::Squeeze;
pub use tile::Tile;
pub use top_k::TopK;
pub use transpose::Transpose;
pub use trilu::Trilu;
pub use unique::Unique;
pub use unsqueeze::Unsqueeze;
pub use where_::Where;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sora_tensor::Tensor;

use crate::case::{Case, Gen};
use crate::{
    Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, Subgraph, TensorType, TieCx, ensure,
};

/// Declares an operator's attributes: a plain struct with the derives that every operator needs.
macro_rules! attrs {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty),* }
    };
}
pub(crate) use attrs;

macro_rules! ops {
    ($($name:ident),* $(,)?) => {
        /// Any operator with its attributes.
        #[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Op { $(#[doc = concat!("See [`", stringify!($name), "`](struct@", stringify!($name), ").")] $name($name)),* }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Self { Op::$name(op) }
        })*

        impl Op {
            /// The names of all operators.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// The operator's name.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$name(_) => stringify!($name)),* }
            }

            /// The name people know: that of the row for a family such as `Unary`, else [`Op::name`].
            pub fn label(&self) -> Cow<'static, str> {
                match self { $(Op::$name(op) => op.label().unwrap_or(Cow::Borrowed(stringify!($name)))),* }
            }

            /// See [`OpDef::infer`].
            ///
            /// # Errors
            /// [`Mismatch`] naming both sides.
            pub fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
                match self { $(Op::$name(op) => op.infer(cx)),* }
            }

            /// See [`OpDef::eval`]. Inputs are checked by [`OpDef::infer`] first.
            ///
            /// # Errors
            /// [`Mismatch`] when the inputs do not fit the operator.
            pub fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
                match self { $(Op::$name(op) => { cx.infer(op)?; op.eval(cx) }),* }
            }

            /// See [`OpDef::macs`].
            pub fn macs(&self, inputs: &[Option<&TensorType>], outputs: &[&TensorType]) -> Dim {
                match self { $(Op::$name(op) => op.macs(inputs, outputs)),* }
            }

            /// See [`OpDef::grad`].
            ///
            /// # Errors
            /// [`Mismatch`] where the operator is not differentiable.
            pub fn grad(&self, cx: &mut GradCx) -> Gradients {
                match self { $(Op::$name(op) => op.grad(cx)),* }
            }

            /// See [`OpDef::quant`].
            pub fn quant(&self) -> QuantRule {
                match self { $(Op::$name(op) => op.quant()),* }
            }

            /// See [`OpDef::content`].
            pub fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
                match self { $(Op::$name(op) => op.content(cx)),* }
            }

            /// See [`OpDef::ties`].
            ///
            /// # Errors
            /// [`Mismatch`] where every element must stay.
            pub fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
                match self { $(Op::$name(op) => op.ties(cx)),* }
            }

            /// See [`OpDef::narrowed`].
            #[must_use]
            pub fn narrowed(&self, inputs: &[Option<&TensorType>], outputs: &[&TensorType]) -> Op {
                match self { $(Op::$name(op) => Op::$name(op.narrowed(inputs, outputs))),* }
            }

            /// See [`OpDef::bodies`].
            pub fn bodies(&self) -> Vec<&Subgraph> {
                match self { $(Op::$name(op) => op.bodies()),* }
            }

            /// Random valid instances of the operator called `name`; empty for an unknown name.
            pub fn cases(name: &str, g: &mut Gen) -> Vec<Case> {
                match name { $(stringify!($name) => $name::cases(g),)* _ => Vec::new() }
            }
        }
    };
}

ops! {
    Activation,
    ArgReduce,
    AveragePool,
    BatchNorm,
    Binary,
    BitCast,
    Cast,
    CastFloat8,
    Concat,
    Conv,
    ConvTranspose,
    CumProd,
    CumSum,
    DequantizeLinear,
    Det,
    DynamicQuantizeLinear,
    Expand,
    Flatten,
    Gather,
    GatherElements,
    GatherNd,
    GridSample,
    Gru,
    If,
    Late,
    LayerNorm,
    Loop,
    Lstm,
    MatMul,
    MaxPool,
    MaxPoolIndices,
    MaxRoiPool,
    NonMaxSuppression,
    NonZero,
    OneHot,
    Pad,
    QuantizeLinear,
    Random,
    Range,
    RecurrentGrad,
    Reduce,
    Reshape,
    Resize,
    Rnn,
    RoiAlign,
    Scan,
    ScatterElements,
    ScatterNd,
    Shape,
    Slice,
    Softmax,
    Split,
    Squeeze,
    Tile,
    TopK,
    Transpose,
    Trilu,
    Unary,
    Unique,
    Unsqueeze,
    Where,
}

/// Product of extents.
pub(crate) fn product(dims: &[Dim]) -> Dim {
    dims.iter().cloned().fold(Dim::from(1usize), |a, b| a * b)
}

/// An empty vector with room for the elements of `shape`, which an empty tensor can make as large as it likes.
///
/// # Errors
/// [`Mismatch`] when memory does not suffice.
pub(crate) fn room<T>(shape: &[usize]) -> Result<Vec<T>, Mismatch> {
    let mut elements = Vec::new();
    let fits = sora_tensor::element_count(shape).is_some_and(|n| elements.try_reserve_exact(n).is_ok());
    ensure!(fits, "an output of shape {shape:?} does not fit in memory");
    Ok(elements)
}

/// Row-major strides in elements; those of an empty tensor, which nothing addresses, saturate.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = usize::saturating_mul(strides[axis], shape[axis]);
    }
    strides
}

/// Calls `visit` with every index of `shape` in row-major order.
pub(crate) fn for_each_index(shape: &[usize], mut visit: impl FnMut(&[usize])) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0; shape.len()];
    loop {
        visit(&index);
        let Some(axis) = (0..shape.len()).rev().find(|&axis| index[axis] + 1 < shape[axis]) else { return };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

/// Offset of `index`, an index of a broadcast result, in an operand of `shape`.
pub(crate) fn broadcast_offset(index: &[usize], shape: &[usize]) -> usize {
    let skip = index.len() - shape.len();
    shape
        .iter()
        .zip(&index[skip..])
        .fold(0, |offset, (&extent, &i)| offset * extent + if extent == 1 { 0 } else { i })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{evaluate, text, verify};

    /// Every operator has cases; on each, inference predicts what evaluation gives, and the text form
    /// parses back.
    #[test]
    fn inference_agrees_with_evaluation() {
        for name in Op::NAMES {
            let mut g = Gen::new(11);
            let cases: Vec<Case> = (0..8).flat_map(|_| Op::cases(name, &mut g)).collect();
            assert!(!cases.is_empty(), "{name} has no cases");
            for case in cases {
                assert_eq!(case.op.name(), *name);
                let (graph, given) = case.graph().unwrap_or_else(|e| panic!("{e}\n{case:?}"));
                verify(&graph).unwrap();
                let printed = text::print(&graph);
                assert_eq!(text::print(&text::parse(&printed).unwrap()), printed);
                let given: Vec<_> = given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
                let results = evaluate(&graph, &given).unwrap_or_else(|e| panic!("{e}\n{case:?}"));
                for (output, result) in graph.outputs().iter().zip(&results) {
                    let ty = graph.ty(output.value);
                    assert!(
                        ty.accepts(&TensorType::of(result)),
                        "{case:?}: inferred {ty}, evaluated {result:?}"
                    );
                }
            }
        }
    }
}
