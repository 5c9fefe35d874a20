//! Runs graphs: lowers a [`sora_ir::Graph`] to a [`Program`] of kernel steps and executes it.
//!
//! The graph says what, the program says how. [`Program::compile`] fixes the input shapes, picks layouts and
//! kernels by pattern, packs weights once and lays every intermediate tensor out in one arena by lifetimes.
//! [`Session`] keeps programs per input shape and is what most callers want. Anything without a fast kernel
//! runs on the reference evaluator, visible as `reference:…` in [`Program::steps`] and [`Profile`]. Where shapes
//! depend on data, the rest of the graph is compiled once they are known; bodies of control flow, when they first run.
//!
//! ```
//! use sora_exec::{Options, Session};
//! use sora_ir::{Graph, TensorType, ops::{Unary, UnaryKind}};
//! use sora_tensor::{DType, Tensor};
//!
//! let mut graph = Graph::new("relu");
//! let x = graph.input("x", TensorType::new(DType::F32, [2usize]));
//! let y = graph.op("y", Unary { kind: UnaryKind::Relu }, [x])?;
//! graph.output("y", y);
//! let session = Session::new(graph, Options::default())?;
//! let outputs = session.run(&[("x", &Tensor::vector(&[-1.0f32, 2.0]))])?;
//! assert_eq!(outputs[0].1.to_f32s(), [0.0, 2.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod arena;
mod control;
mod error;
mod frontier;
mod given;
mod interpret;
mod lower;
mod options;
mod peak;
mod plan;
mod profile;
mod program;
mod programs;
mod session;
mod sharing;
mod staged;
mod steps;
mod threads;
mod tuning;
mod weights;

pub use arena::Arena;
pub use error::ExecError;
pub use options::{Options, Precision, zero_block};
pub use peak::{Level, Peaks, Rate, Use};
pub use profile::{Profile, StepInfo, StepTime};
pub use program::{Port, Program, State};
pub use session::{Session, with_outputs};
pub use sora_kernels::Isa;
pub use sora_kernels::peak::Arithmetic;
pub use tuning::{Choice, Found, Tuned, Tuning, tune};
pub use weights::{PackedPart, PackedWeights};
