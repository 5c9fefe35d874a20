//! The graph language of Sora.
//!
//! A [`Graph`] connects typed [`Value`]s by [`Op`]erators. Each operator is one file in [`ops`], which knows its
//! shapes, its reference evaluation, its cost, how it may be quantized, and how to make random instances of
//! itself for tests. This crate knows no kernel, no file format and no thread.
#![forbid(unsafe_code)]

pub mod case;
mod dim;
mod error;
mod eval;
mod grad;
mod graph;
mod op;
pub mod ops;
mod subgraph;
pub mod text;
mod ties;
mod types;
mod verify;
mod writer;

pub use dim::Dim;
pub use error::IrError;
pub use eval::{evaluate, evaluate_with};
pub use grad::{GradCx, Gradients};
pub use graph::{Def, Graph, Node, NodeId, Output, Value, ValueId};
pub use op::{EvalCx, InferCx, Mismatch, OpDef, QuantRule, broadcast, resolve_axis};
pub use ops::Op;
pub use subgraph::Subgraph;
pub use ties::{Along, Choices, Operand, Tie, TieCx};
pub use types::{Real, TensorType};
pub use verify::verify;
pub use writer::Writer;
