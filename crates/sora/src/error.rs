//! The one error of the facade: what went wrong, where, and what to do.

use std::fmt;
use std::path::Path;

use serde::Serialize;

/// A failure as a user needs it told: one paragraph, or the same three parts as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What went wrong.
    pub what: String,
    /// The file, node, sample or option it went wrong at.
    #[serde(rename = "where")]
    pub place: String,
    /// What to do about it.
    pub hint: String,
}

impl Failure {
    /// A failure of these three parts.
    pub fn new(what: impl Into<String>, place: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure { what: sentence(what.into()), place: place.into(), hint: sentence(hint.into()) }
    }

    /// An error of the operating system at `path`, with a hint that fits its kind.
    pub fn io(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        let hint = match error.kind() {
            Kind::NotFound => "Check the path for typing errors.",
            Kind::PermissionDenied => "Check the permissions of the file and of its folder.",
            Kind::StorageFull | Kind::QuotaExceeded => {
                "Free some space or write elsewhere; nothing was left behind."
            }
            Kind::IsADirectory => "Give the path of a file, not of a folder.",
            Kind::ReadOnlyFilesystem => "Write to another place.",
            _ => "See whether the file and its disk are in order.",
        };
        Failure::new(format!("Cannot {doing}: {error}."), path.display().to_string(), hint)
    }
}

/// With a capital and a full stop, whatever the library underneath wrote.
fn sentence(text: String) -> String {
    let mut chars = text.trim().chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    let whole = first + chars.as_str();
    if whole.ends_with(['.', '!', '?', ':']) || whole.is_empty() { whole } else { whole + "." }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at {}) {}", self.what, self.place, self.hint)
    }
}

impl std::error::Error for Failure {}
