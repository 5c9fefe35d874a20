//! How well a model does, with intervals.

mod auc;
mod classification;
mod edits;
mod interval;

pub use auc::Auc;
pub use classification::{Classification, ClassificationSummary, PerClass};
pub use edits::{ErrorRate, edits};
pub use interval::{Drop, Interval, paired_drop, wilson};
