//! What the tests of the command share.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The workspace's folder, where the README's commands run.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A file of the example.
pub(crate) fn example(name: &str) -> String {
    root().join("examples/fashion-mnist").join(name).display().to_string()
}

/// The command in the workspace's folder.
pub(crate) fn sora(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sora"));
    command.args(arguments).current_dir(root()).env_remove("SORA_ISA").env_remove("SORA_TUNE");
    command
}

/// What the command printed, having succeeded.
pub(crate) fn succeed(arguments: &[&str]) -> String {
    let output = sora(arguments).output().unwrap();
    let (printed, errors) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {printed}{errors}");
    printed
}

/// The one JSON object that the command printed.
pub(crate) fn succeed_json(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(arguments)).unwrap()
}

/// What the command wrote to standard error, having failed as the contract says: status 1, what, where and what
/// to do, and no panic.
pub(crate) fn fail(arguments: &[&str]) -> String {
    check_failure(&sora(arguments).output().unwrap(), &format!("{arguments:?}"))
}

/// See [`fail`].
pub(crate) fn check_failure(output: &Output, what: &str) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{what}: {errors}");
    assert!(!errors.contains("panicked"), "{what}: {errors}");
    for part in ["error: ", "\n  where: ", "\n  to do: "] {
        assert!(errors.contains(part), "{what}: no `{part}` in {errors}");
    }
    errors
}

/// The names of the files in a folder.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A latency table for `--for` of a machine on which all layers of a model take half the time in 8 bits, written to `folder`: with
/// it, no choice depends on the times of the machine at hand.
pub(crate) fn fast_bytes(model: &str, folder: &Path) -> String {
    let file = folder.join("fast-bytes.toml").display().to_string();
    succeed_json(&["bench", model, "--table", "-o", &file, "--json"]);
    let mut times: toml::Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    let real = times["f32"].as_table().unwrap().clone();
    for format in ["int8", "int8-by-rows"] {
        let known = times[format].as_table_mut().unwrap();
        known.iter_mut().for_each(|(shape, ms)| *ms = (real[shape].as_float().unwrap() / 2.0).into());
    }
    std::fs::write(&file, times.to_string()).unwrap();
    file
}
