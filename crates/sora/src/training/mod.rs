//! Trainings that a TOML file describes.
//!
//! [`Config::load`] reads the file, and [`Config::prepare`] makes of it what [`sora_train::fit`] takes.

mod config;
mod spec;

pub use config::{
    Checkpoints, Config, Data, Imported, Named, NetworkSpec, OptimizerSpec, Prepared, Schedule, Stopping,
    Training,
};
pub use spec::{Convolution, LayerSpec, Recurrent};
