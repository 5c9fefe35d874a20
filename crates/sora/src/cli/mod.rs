//! The command line: one file per command, and what they share.

mod args;
mod bench;
mod compress;
mod convert;
mod diff;
mod evaluate;
mod explain;
mod goals;
mod inspect;
mod latency_table;
mod pareto;
mod progress;
mod robust;
mod run;
mod shapes;
mod sparsity;
mod support;
mod train;
mod tune;
mod zoo;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use serde_json::{Value, json};
use sora::exec::{Options, Tuning};
use sora::tensor::Tensor;
use sora::{Failure, check_writable, load_tuning};

use args::{Cli, Command, Engine};

/// Runs the command line: exit status 0 done, 1 failed, 2 wrong usage.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.command.json();
    progress::watch_interrupts();
    let result = match &cli.command {
        Command::Inspect(args) => inspect::inspect(args),
        Command::Run(args) => run::run(args),
        Command::Evaluate(args) => evaluate::evaluate(args),
        Command::Compress(args) => compress::compress(args),
        Command::Explain(args) => explain::explain(args),
        Command::Train(args) => train::train(args),
        Command::FineTune(args) => train::fine_tune(args),
        Command::Bench(args) => bench::bench(args),
        Command::Convert(args) => convert::convert(args),
        Command::Zoo(args) => zoo::zoo(args),
    };
    match result {
        Ok(output) => match writeln!(std::io::stdout(), "{}", output.trim_end()) {
            // A reader that has seen enough closes the pipe: that is no failure.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                tell(&Failure::io("print the result", Path::new("standard output"), &error));
                ExitCode::FAILURE
            }
            _ => ExitCode::SUCCESS,
        },
        Err(failure) if json => {
            let _ = writeln!(std::io::stdout(), "{}", json!({ "error": failure }));
            ExitCode::FAILURE
        }
        Err(failure) => {
            tell(&failure);
            ExitCode::FAILURE
        }
    }
}

/// Prints a failure to standard error; when even that is closed, the exit status remains.
fn tell(failure: &Failure) {
    let Failure { what, place, hint } = failure;
    let _ = writeln!(std::io::stderr(), "error: {what}\n  where: {place}\n  to do: {hint}");
}

/// Checks that `output` can be written and is none of the files that the command reads.
fn check_output(output: &Path, inputs: &[&Path]) -> Result<(), Failure> {
    check_writable(output)?;
    let same =
        |input: &&Path| matches!((input.canonicalize(), output.canonicalize()), (Ok(a), Ok(b)) if a == b);
    match inputs.iter().any(same) {
        false => Ok(()),
        true => Err(Failure::new(
            "The output would overwrite a file that the command reads.",
            output.display().to_string(),
            "Give the output another name.",
        )),
    }
}

/// What a command prints on success.
type Printed = Result<String, Failure>;

impl Engine {
    /// The options, with the tuning file where it was made for them.
    fn options(&self) -> Result<Options, Failure> {
        let mut options = self.untuned();
        let named = || std::env::var_os("SORA_TUNE").filter(|file| !file.is_empty()).map(PathBuf::from);
        if let Some(file) = self.tuning.clone().or_else(named) {
            let tuning = load_tuning(&file)?;
            let here = Tuning::machine_for(&options).map_err(engine_failure(&file))?;
            match tuning.machine == here {
                true => options.tuning = Some(Arc::new(tuning)),
                false => warn(&[format!(
                    "the tuning file {} is ignored: it is for {}, this is {here}",
                    file.display(),
                    tuning.machine
                )]),
            }
        }
        Ok(options)
    }

    fn untuned(&self) -> Options {
        Options {
            threads: usize::from(self.parallel.threads),
            precision: self.precision,
            ..Options::default()
        }
    }
}

/// A failure to run a model.
fn engine_failure(model: &Path) -> impl Fn(sora::exec::ExecError) -> Failure + '_ {
    move |error| {
        let hint = match &error {
            sora::exec::ExecError::Isa(_) => "Unset SORA_ISA or set it to one of those.",
            _ => "Compare with what `sora inspect` shows of the model's inputs.",
        };
        Failure::new(format!("Cannot run the model: {error}"), model.display().to_string(), hint)
    }
}

/// Named tensors as the bytes of an .npz file.
fn npz_bytes(path: &Path, tensors: &[(String, Tensor)]) -> Result<Vec<u8>, Failure> {
    let arrays: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = std::io::Cursor::new(Vec::new());
    sora::data::npz::write(&mut bytes, &arrays).map_err(|e| Failure::io("write the file", path, &e))?;
    Ok(bytes.into_inner())
}

/// Prints what the import noticed to standard error.
fn warn(warnings: &[String]) {
    for warning in warnings {
        let _ = writeln!(std::io::stderr(), "note: {warning}");
    }
}

/// A JSON object on one line.
fn one_line(value: &Value) -> String {
    value.to_string()
}

/// Bytes as people read them.
fn human_bytes(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// A count as people read it.
fn human_count(count: u64) -> String {
    match count {
        0..=9_999 => count.to_string(),
        10_000..=999_999 => format!("{:.1} k", count as f64 / 1e3),
        1_000_000..=999_999_999 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} G", count as f64 / 1e9),
    }
}
