//! The rules as data: one row each, with a generator of graphs that the rule must rewrite.

mod activation;
mod affine;
mod arithmetic;
mod gelu;
mod late;
mod layer_norm;
mod no_op;
mod padding;
mod product;
mod quantized;
mod recurrent;
mod reshape;
mod sample;
#[cfg(test)]
mod tests;
mod transpose;
mod transpose_push;

use sora_ir::case::Gen;
use sora_ir::{Graph, IrError, Node};

use crate::{Patch, View};

/// Makes a random graph.
pub type Sample = fn(&mut Gen) -> Result<Graph, IrError>;

/// A rewrite of one pattern.
pub struct Rule {
    /// Name in reports.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub doc: &'static str,
    /// Whether both sides give equal elements; otherwise they differ by rounding.
    pub exact: bool,
    /// The change, if the pattern ends at this node and the rewrite is sound and pays off.
    pub apply: fn(&View, &Node) -> Option<Patch>,
    /// A graph on which the rule fires.
    pub sample: Sample,
    /// Graphs close to the pattern on which it must not fire.
    pub near_misses: &'static [Sample],
}

/// Every rule, in the order in which they are tried at a node.
pub static RULES: &[Rule] = &[
    no_op::REMOVE_NO_OP,
    no_op::REMOVE_INVERSE_PAIR,
    quantized::SCALE_INTEGER_PRODUCT,
    quantized::DEQUANTIZE_TABLE,
    arithmetic::REMOVE_NEUTRAL_OPERAND,
    arithmetic::SUBTRACT_TO_ADD,
    arithmetic::DIVIDE_TO_MULTIPLY,
    arithmetic::MERGE_CONSTANT_OPERANDS,
    arithmetic::SQUARE_TO_PRODUCT,
    arithmetic::SQUARE_ROOT_OF_POWER,
    late::SETTLE_LATE_AXES,
    reshape::CANONICALIZE_RESHAPE,
    reshape::FIX_RESHAPE_TARGET,
    reshape::MERGE_RESHAPES,
    reshape::DROP_EXPAND,
    transpose::MERGE_TRANSPOSES,
    transpose::TRANSPOSE_TO_RESHAPE,
    transpose::TRANSPOSE_DEQUANTIZED_CONSTANT,
    transpose::PERMUTE_WEIGHTS_OF_FLATTENED,
    transpose_push::PUSH_TRANSPOSE_THROUGH_ELEMENTWISE,
    transpose_push::PUSH_TRANSPOSE_THROUGH_BINARY,
    transpose_push::PUSH_TRANSPOSE_THROUGH_AXIS,
    transpose_push::PUSH_TRANSPOSE_THROUGH_CONCAT,
    padding::FOLD_PAD_INTO_WINDOW,
    affine::BATCH_NORM_TO_AFFINE,
    affine::FOLD_SCALE_INTO_WEIGHTS,
    affine::FOLD_SHIFT_INTO_BIAS,
    affine::FOLD_INPUT_SCALE_INTO_WEIGHTS,
    affine::FOLD_SCALE_BEHIND_SHIFT,
    activation::MINIMUM_TO_CLIP,
    activation::MERGE_CLIPS,
    activation::CLIP_TO_RELU,
    activation::FUSE_SILU,
    activation::FUSE_HARD_SWISH,
    gelu::FUSE_GELU,
    gelu::FUSE_GELU_TANH,
    layer_norm::FUSE_LAYER_NORM,
    layer_norm::FOLD_INTO_LAYER_NORM,
    recurrent::FUSE_CELLS,
];
