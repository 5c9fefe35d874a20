//! Sora makes trained neural networks small and fast.
//!
//! [`Model`] reads and writes networks; [`compress`](sora_compress::compress) makes them smaller and faster inside
//! an accuracy budget; [`exec::Session`] runs them; [`layers`] writes new ones and [`zoo`] has the standard ones. The
//! crates underneath are re-exported as modules.
//!
//! ```no_run
//! use sora::{Model, compress, data, exec};
//!
//! let mut model = Model::load("model.onnx")?;
//! let samples = data::Dataset::open("pictures", &data::OpenOptions::default())?;
//! let preprocess = model.preprocess_for(&samples, None)?;
//! let options = compress::Options { max_drop: 0.01, ..Default::default() };
//! let outcome = compress::compress(&model.graph, &samples, &preprocess, &options, &compress::Silent)?;
//! model.graph = outcome.graph;
//! model.save("model.sora")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod error;
pub mod format;
pub mod layers;
mod metadata;
mod model;
pub mod report;
mod table;
pub mod training;
mod tuning;
mod write;
pub mod zoo;

pub use error::Failure;
pub use metadata::{Measurement, Metadata, Onnx, Recipe, RecipeLayer};
pub use model::{Kind, Model};
pub use sora_compress as compress;
pub use sora_data as data;
pub use sora_exec as exec;
pub use sora_ir as ir;
pub use sora_onnx as onnx;
pub use sora_rewrite as rewrite;
pub use sora_tensor as tensor;
pub use sora_train as train;
pub use table::table;
pub use tuning::{load_tuning, save_tuning};
pub use write::{Draft, check_writable, write_atomically, write_together};
