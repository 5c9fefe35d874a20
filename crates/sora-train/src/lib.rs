//! Training on the graph language of inference.
//!
//! [`differentiate`] writes the gradients of a value into the graph that computes it. [`training_step`] writes a whole step:
//! forward, loss, backward and update, whose weights are inputs and outputs. What results is a graph like any other: it is
//! optimized, compiled and run by the same engine, which keeps the weights where they lie ([`sora_exec::State`]).
//! [`Trainer`] runs steps, [`fit`] does so over a data set, with validation, early stopping and checkpoints.
//! Losses, optimizers and schedules are rows of tables ([`LOSSES`], [`OPTIMIZERS`], [`SCHEDULES`]).
#![forbid(unsafe_code)]

mod autodiff;
mod checkpoint;
mod compiled;
mod ctc;
mod decode;
mod error;
mod features;
mod figures;
mod fit;
mod head;
mod imported;
mod loss;
mod network;
mod operands;
mod optimizer;
mod penalty;
mod precision;
mod pruning;
mod quantized;
mod regrowth;
mod schedule;
mod statistics;
mod step;
mod swa;
mod table;
mod teacher;
mod trainer;

pub use autodiff::differentiate;
pub use checkpoint::{Checkpoint, Progress};
pub use decode::{best_path, label_error_rate};
pub use error::TrainError;
pub use figures::{Epoch, Figures, HeadEpoch, HeadFigures};
pub use fit::{Fitted, Plan, Samples, Watch, assess, fit};
pub use head::Head;
pub use imported::FineTuning;
pub use loss::{LOSSES, Link, Loss, LossRow, Target};
pub use network::{Dropout, Parameter, Trainable};
pub use optimizer::{OPTIMIZERS, Optimizer, OptimizerRow};
pub use penalty::Penalty;
pub use precision::MixedPrecision;
pub use pruning::{Pruning, PruningScope, masks, zeros};
pub use quantized::{Levels, with_integers};
pub use schedule::{SCHEDULES, Schedule, ScheduleRow};
pub use step::{Recipe, StepGraph, evaluation, training_step};
pub use teacher::Teacher;
pub use trainer::{HeadOutcome, Outcome, Trainer};
