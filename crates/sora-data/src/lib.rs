//! Datasets, preprocessing, batching, splits and metrics.
//!
//! [`Dataset::open`] reads folders of pictures and sounds, `.npz`, CSV and IDX, [`Texts`] JSONL and CSV of texts; a [`Preprocess`] describes how its samples
//! become a model's input, and [`Dataset::batches`] makes them; for training, a [`Loader`] shuffles them anew in every
//! epoch. [`Dataset::corrupted`] makes them worse in ways of the world. [`split()`] divides a dataset reproducibly, and
//! [`Classification`], [`paired_drop`] and [`Agreement`] measure what a model does with it.
//!
//! All files are treated as hostile: sizes are checked before memory is taken, and everything that is wrong
//! with them is one [`DataError`] that says what, where, and what to do.
#![forbid(unsafe_code)]

mod agreement;
mod augment;
mod batches;
mod cache;
mod corrupt;
mod dataset;
mod error;
mod folder;
mod idx;
mod loader;
mod make;
mod metrics;
pub mod npy;
pub mod npz;
mod order;
mod parquet;
mod picture;
mod preprocess;
mod random;
mod resample;
mod settings;
mod sound;
mod split;
mod stream;
mod table;
mod text;

pub use agreement::{Agreement, AgreementSummary};
pub use augment::{AUGMENTATIONS, Augmentation, AugmentationRow};
pub use batches::{Batch, Batches};
pub use corrupt::{CORRUPTIONS, Corruption, CorruptionRow, SEVERITIES};
pub use dataset::{Dataset, LabelColumn, OpenOptions, SampleKind};
pub use error::{DataError, ErrorKind};
pub use loader::{Loader, LoaderOptions};
pub use metrics::{
    Auc, Classification, ClassificationSummary, Drop, ErrorRate, Interval, PerClass, edits, paired_drop,
    wilson,
};
pub use order::Order;
pub use preprocess::{Color, Filter, Layout, Output, Preprocess, Resize, Scale, Size};
pub use settings::{Setting, Settings, nearest, setting, suggestion};
pub use sound::{FEATURES, FeatureRow, Sound};
pub use split::{Split, SplitOptions, split};
pub use text::{PADDING, TextInput, TextOptions, Texts, Tokenizer, UNKNOWN};

/// Rounds to f32.
fn narrow(value: f64) -> f32 {
    value as f32
}

/// A count as a number; exact below 2⁵³.
fn real(count: usize) -> f64 {
    count as f64
}
