//! Trainings that a TOML file describes.
//!
//! [`Config::load`] reads the file, and [`Config::prepare`] makes of it what [`sora_train::fit`] takes.

mod config;
mod network;
mod spec;

pub use config::{
    Checkpoints, Config, Data, Imported, Named, OptimizerSpec, OutputSpec, Prepared, Schedule, Stopping,
    TextSpec, Training, open_options,
};
pub use network::{NetworkSpec, Part, Sources};
pub use spec::{Convolution, LayerSpec, Recurrent};
