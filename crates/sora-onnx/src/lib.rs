//! ONNX files to and from Sora graphs.
//!
//! [`load`] reads a file, with weights in other files memory-mapped; [`save`] writes one. Import covers opset 1
//! to the newest: every operator is one row of a table, a short function that builds core operators. Quantized
//! forms become QuantizeLinear and DequantizeLinear around float operators. A model that cannot be imported
//! gives all the reasons at once, in [`OnnxError::Nodes`].
//!
//! Files are hostile input: no panic, no read outside of the model's folder.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

mod about;
mod error;
mod export;
mod import;
mod names;
mod proto;
mod source;
mod stored;
mod tensor;

pub use about::About;
pub use error::{NodeIssue, OnnxError};
pub use export::{Export, ExportOptions, save, to_bytes};
pub use import::{
    ImportOptions, Imported, MAX_OPSET, MIN_OPSET, check, from_bytes, load, load_with, operators,
};
pub use stored::{Interface, Stored, StoredKind, interface, read_stored};
