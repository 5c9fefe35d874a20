//! Tuning files: kernel choices measured on one machine, as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sora_exec::Tuning;

use crate::{Failure, write_atomically};

/// Version of the format.
const VERSION: u64 = 1;

#[derive(Serialize, Deserialize)]
struct File {
    sora_tuning: u64,
    machine: String,
    choices: BTreeMap<String, String>,
}

/// Writes kernel choices to a file, whole or not at all.
///
/// # Errors
/// As [`write_atomically`].
pub fn save_tuning(path: &Path, tuning: &Tuning) -> Result<(), Failure> {
    let Tuning { machine, choices } = tuning.clone();
    let file = File { sora_tuning: VERSION, machine, choices };
    let mut text = serde_json::to_string_pretty(&file).unwrap_or_default();
    text.push('\n');
    write_atomically(path, text.as_bytes())
}

/// Reads kernel choices. Those of another version of the format come without choices, for a machine that is none.
///
/// # Errors
/// [`Failure`] when the file cannot be read or is no whole tuning file.
pub fn load_tuning(path: &Path) -> Result<Tuning, Failure> {
    let bytes = std::fs::read(path).map_err(|e| Failure::io("read the tuning file", path, &e))?;
    let damaged = |e: serde_json::Error| {
        let hint = "Write it anew with `sora bench MODEL --tune -o FILE`, or do without it.";
        Failure::new(
            format!("This is no tuning file, or a damaged one: {e}."),
            path.display().to_string(),
            hint,
        )
    };
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(damaged)?;
    if let Some(version) = value["sora_tuning"].as_u64().filter(|&v| v != VERSION) {
        return Ok(Tuning { machine: format!("version {version} of tuning files"), ..Tuning::default() });
    }
    let File { machine, choices, .. } = serde_json::from_value(value).map_err(damaged)?;
    Ok(Tuning { machine, choices })
}
