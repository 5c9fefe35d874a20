//! Training on the graph language of inference.
//!
//! [`differentiate`] writes the gradients of a value into the graph that computes it. What results is a graph like any
//! other: it is optimized, compiled and run by the same engine.
#![forbid(unsafe_code)]

mod autodiff;
mod error;

pub use autodiff::differentiate;
pub use error::TrainError;
