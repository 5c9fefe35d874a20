//! What can go wrong, in words for the person who asked.

use sora_data::DataError;
use sora_exec::ExecError;
use sora_ir::IrError;
use sora_rewrite::RewriteError;
use sora_tensor::TensorError;
use sora_train::TrainError;

/// Why a network could not be compressed or evaluated. Names are those of the user's file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{} (in {}); {}", self.what(), self.where_(), self.hint())]
pub enum CompressError {
    /// The data cannot be read, or does not fit the network.
    Data(#[from] DataError),
    /// A graph could not be compiled or run.
    Exec(#[from] ExecError),
    /// A graph is inconsistent.
    Ir(#[from] IrError),
    /// A graph could not be optimized.
    Rewrite(#[from] RewriteError),
    /// A constant could not be made: it is of another type than declared, or too large.
    Tensor(#[from] TensorError),
    /// A constant of the network holds NaN or infinity.
    NonFiniteWeights {
        /// The constant.
        constant: String,
        /// How many of its elements.
        count: usize,
        /// Number of its elements.
        of: usize,
    },
    /// A value of the network was NaN or infinite on calibration samples.
    NonFiniteActivations {
        /// The value.
        value: String,
        /// How many elements in all.
        count: u64,
    },
    /// The data does not give an input of the network.
    MissingInput {
        /// The input.
        input: String,
        /// Its type.
        expected: String,
        /// What the data gives.
        found: Vec<String>,
    },
    /// Samples do not fit an input of the network.
    Input {
        /// The input.
        input: String,
        /// Its type.
        expected: String,
        /// Type of the prepared batch.
        found: String,
    },
    /// The output is no scores of classes.
    Output {
        /// The output.
        output: String,
        /// What it is.
        found: String,
    },
    /// An evaluation needs labels.
    Unlabelled {
        /// The data.
        place: String,
    },
    /// An option makes no sense.
    Option {
        /// What is wrong.
        what: String,
    },
    /// The network cannot be trained, or not on this data.
    Train(TrainError),
    /// Trainings cannot be kept in this folder, or are not those of this compression.
    Journal {
        /// The folder.
        folder: String,
        /// Why not.
        why: String,
    },
    /// The caller asked to stop.
    Cancelled,
}

impl From<TrainError> for CompressError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Data(error) => error.into(),
            error => CompressError::Train(error),
        }
    }
}

impl CompressError {
    /// What is wrong, in one clause.
    pub fn what(&self) -> String {
        match self {
            Self::Data(e) => e.what.clone(),
            Self::Exec(e) => e.to_string(),
            Self::Ir(e) => e.to_string(),
            Self::Rewrite(e) => e.to_string(),
            Self::Tensor(e) => e.to_string(),
            Self::NonFiniteWeights { count, of, .. } => {
                format!("{count} of {of} weights are NaN or infinite")
            }
            Self::NonFiniteActivations { count, .. } => {
                format!("{count} elements became NaN or infinite on calibration samples")
            }
            Self::MissingInput { input, expected, found } => {
                format!(
                    "the model takes the input `{input}` ({expected}), the data gives {}",
                    found.join(", ")
                )
            }
            Self::Input { input, expected, found } => {
                format!("input `{input}` takes {expected}, the prepared samples are {found}")
            }
            Self::Output { found, .. } => format!("the output is {found}, not one score for each class"),
            Self::Unlabelled { .. } => "the data has no labels to compare with".to_owned(),
            Self::Option { what } => what.clone(),
            Self::Train(e) => e.to_string(),
            Self::Journal { why, .. } => format!("checkpoints of this compression cannot lie here: {why}"),
            Self::Cancelled => "stopped before the work was done".to_owned(),
        }
    }

    /// Where: the file, node, value or input.
    pub fn where_(&self) -> String {
        match self {
            Self::Data(e) => e.where_.clone(),
            Self::Exec(_) | Self::Ir(_) | Self::Rewrite(_) | Self::Tensor(_) => "the model".to_owned(),
            Self::NonFiniteWeights { constant, .. } => format!("constant `{constant}` of the model"),
            Self::NonFiniteActivations { value, .. } => format!("value `{value}` of the model"),
            Self::MissingInput { .. } => "the data".to_owned(),
            Self::Input { input, .. } => format!("input `{input}` of the model"),
            Self::Output { output, .. } => format!("output `{output}` of the model"),
            Self::Unlabelled { place } => place.clone(),
            Self::Option { .. } => "the options".to_owned(),
            Self::Train(_) => "the training inside of the compression".to_owned(),
            Self::Journal { folder, .. } => folder.clone(),
            Self::Cancelled => "this run".to_owned(),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        let hint = match self {
            Self::Data(e) => return e.hint.clone(),
            Self::Exec(ExecError::Isa(_)) => "choose an instruction set that this machine has",
            Self::Exec(_) | Self::Ir(_) => {
                "check that the model runs on these inputs, for example with `sora run`"
            }
            Self::Rewrite(_) => "this is a fault in Sora: report it with the model",
            Self::Tensor(_) => "check the model's weights",
            Self::NonFiniteWeights { .. } => {
                "train or export the model again: no result of it can be trusted"
            }
            Self::NonFiniteActivations { .. } => {
                "check that the preprocessing is the one that the model was trained with"
            }
            Self::MissingInput { .. } => "name the arrays of the data as the model names its inputs",
            Self::Input { .. } => "describe the preprocessing that the model was trained with",
            Self::Output { .. } => "give a classifier whose first output is [samples, classes]",
            Self::Unlabelled { .. } => {
                "give labels: a folder per class, `y` in an .npz, or a label column in a .csv"
            }
            Self::Option { .. } => "correct the option",
            Self::Train(TrainError::Diverged { .. }) => "give a lower --rate",
            Self::Journal { .. } => "give another folder, or remove this one to begin anew",
            Self::Train(_) => "leave out --train to compress without training",
            Self::Cancelled => "start it again",
        };
        hint.to_owned()
    }
}
