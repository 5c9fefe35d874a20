//! Running other programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Success, or one sentence on what failed.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// A whole text file.
pub(crate) fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A program to run in the workspace's folder; its output is shown unless it is asked for.
pub(crate) struct Program(Command);

/// `program` with `arguments`.
pub(crate) fn program(program: impl AsRef<OsStr>, arguments: &[&str]) -> Program {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root()).env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
    Program(command)
}

/// Cargo with `arguments`.
pub(crate) fn cargo(arguments: &[&str]) -> Program {
    program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), arguments)
}

/// Cargo, running a test of conformance with the feature that it needs. It asks for the whole workspace, whose tests then share
/// what is built: dependencies of one package alone would have other features, and be built once more.
pub(crate) fn conformance(feature: &str, test: &str) -> Program {
    let feature = format!("sora-conformance/{feature}");
    cargo(&["test", "--workspace", "--locked", "--features", &feature, "--test", test, "--", "--nocapture"])
}

/// The program as the tests of the workspace build it.
pub(crate) fn tested_sora() -> Outcome<PathBuf> {
    cargo(&["test", "--workspace", "--locked", "--no-run", "--test", "readme"]).run()?;
    Ok(root().join("target/debug/sora"))
}

impl Program {
    /// Sets a variable of the program's environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Runs it.
    pub(crate) fn run(mut self) -> Outcome {
        eprintln!("$ {}", self.shown());
        let status = self.0.status().map_err(|e| format!("cannot start `{}`: {e}", self.shown()))?;
        if status.success() { Ok(()) } else { Err(format!("`{}` failed: {status}", self.shown())) }
    }

    /// Starts it, its output unseen.
    pub(crate) fn start(mut self) -> Outcome<Child> {
        eprintln!("$ {}", self.shown());
        self.0.stdout(Stdio::null()).spawn().map_err(|e| format!("cannot start `{}`: {e}", self.shown()))
    }

    /// Runs it and returns what it printed to standard output.
    pub(crate) fn output(mut self) -> Outcome<String> {
        eprintln!("$ {}", self.shown());
        let output = self
            .0
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| format!("cannot start `{}`: {e}", self.shown()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(text) } else { Err(format!("`{}` failed: {text}", self.shown())) }
    }

    fn shown(&self) -> String {
        let words = std::iter::once(self.0.get_program()).chain(self.0.get_args());
        words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

/// An empty folder below `target/`.
pub(crate) fn folder(name: &str) -> Outcome<PathBuf> {
    let path = root().join("target").join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}
