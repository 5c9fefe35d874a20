//! The one error of this crate: what is wrong, where, and what to do about it.

use std::io;
use std::path::Path;

/// The broad class of a [`DataError`], for callers that react to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The file or folder does not exist.
    Missing,
    /// The operating system refused to read it.
    Io,
    /// The bytes do not follow the file's format, or end too early.
    Malformed,
    /// More memory would be needed than [`OpenOptions::max_bytes`](crate::OpenOptions::max_bytes) allows.
    TooLarge,
    /// There is no sample, or there are too few.
    Empty,
    /// A label is missing, not an integer, out of range, or there are too few or too many of them.
    Label,
    /// A value is NaN or infinite.
    NotFinite,
    /// The samples do not fit the model, the preprocessing, or each other.
    Mismatch,
    /// The request itself cannot be understood or carried out.
    Usage,
}

/// Why data could not be read, prepared or split.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (in {where_}); {hint}")]
pub struct DataError {
    /// The broad class.
    pub kind: ErrorKind,
    /// What is wrong, in one clause.
    pub what: String,
    /// The file, and where it helps the line, column or sample.
    pub where_: String,
    /// What to do about it.
    pub hint: String,
}

impl DataError {
    pub(crate) fn new(
        kind: ErrorKind,
        what: impl Into<String>,
        where_: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        DataError { kind, what: what.into(), where_: where_.into(), hint: hint.into() }
    }

    /// A file that the operating system did not let us read.
    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        let (kind, what, hint) = match error.kind() {
            io::ErrorKind::NotFound => (
                ErrorKind::Missing,
                "there is no such file or folder".to_owned(),
                "check the path; relative paths start at the current folder",
            ),
            io::ErrorKind::PermissionDenied => (
                ErrorKind::Io,
                "reading is not permitted".to_owned(),
                "check the permissions of the file and of the folders above it",
            ),
            _ => (ErrorKind::Io, format!("reading failed: {error}"), "check the file and its disk"),
        };
        Self::new(kind, what, path.display().to_string(), hint)
    }

    /// A compressed or delimited stream that broke while it was read.
    pub(crate) fn stream(where_: &str, error: &io::Error) -> Self {
        let what = match error.kind() {
            io::ErrorKind::UnexpectedEof => "the file ends too early".to_owned(),
            _ => format!("the file is broken: {error}"),
        };
        Self::new(ErrorKind::Malformed, what, where_, "copy or download the file again")
    }

    /// Bytes that do not follow the format.
    pub(crate) fn malformed(what: impl Into<String>, where_: &str) -> Self {
        Self::new(ErrorKind::Malformed, what, where_, "copy, download or export the file again")
    }

    /// The same error with `hint` in place of the hint it had.
    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        DataError { hint: hint.into(), ..self }
    }
}
