//! Other runtimes timed beside Sora on the zoo's networks and on Keras exports.
//!
//! Everything lies below `target/peers`: environments, programs, models, measurements. What is there already is not made
//! or measured again, so that the task can be interrupted, and extended to further cells.

use std::path::{Path, PathBuf};

use crate::python::{Packages, environment};
use crate::shell::{Outcome, cargo, program, read, root, text};

const USAGE: &str = "usage: cargo xtask peers [--filter NETWORK:bBATCH:PRECISION:tTHREADS]… [--rounds N] \
    [--seconds S] [--models DIR] [--restrict-isa avx2] [--report-only] [--write]";

/// What the command line asked for.
struct Options {
    /// Patterns of cells, `--filter` and pattern in turn; none means all cells.
    filters: Vec<String>,
    rounds: String,
    seconds: String,
    /// Folder of the models, which are made where they are missing.
    models: PathBuf,
    /// Instruction set that Sora and the peers that can be are held to.
    restricted: Option<String>,
    /// Measures nothing, and reports what has been measured.
    report_only: bool,
    /// Puts the tables into the documentation.
    write: bool,
}

impl Options {
    fn parse(arguments: &[String]) -> Outcome<Options> {
        let mut options = Options {
            filters: Vec::new(),
            rounds: "5".to_owned(),
            seconds: "0.25".to_owned(),
            models: home().join("models"),
            restricted: None,
            report_only: false,
            write: false,
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().cloned().ok_or(format!("{word} needs a value\n{USAGE}"));
            match word.as_str() {
                "--filter" => options.filters.extend(["--filter".to_owned(), value()?]),
                "--rounds" => options.rounds = value()?,
                "--seconds" => options.seconds = value()?,
                "--models" => options.models = std::path::absolute(value()?).map_err(|e| e.to_string())?,
                "--restrict-isa" => options.restricted = Some(value()?),
                "--report-only" => options.report_only = true,
                "--write" => options.write = true,
                _ => return Err(format!("{word}?\n{USAGE}")),
            }
        }
        Ok(options)
    }

    /// The measurements' file; restricted ones are a table of their own.
    fn results(&self) -> PathBuf {
        home().join(match &self.restricted {
            Some(isa) => format!("results-{isa}.json"),
            None => "results.json".to_owned(),
        })
    }
}

/// Builds what is missing, measures what has not been measured, and prints the tables.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let options = Options::parse(arguments)?;
    let runtimes = environment(
        "peers/runtimes-env",
        &[Packages::Whole("peers/runtimes.txt"), Packages::Alone("peers/runtimes-alone.txt")],
    )?;
    if !options.report_only {
        measure(&options, &runtimes)?;
    }
    let report = script(&runtimes, "report.py", &[&text(&options.results())]).output()?;
    println!("{report}");
    if options.write { write(&report, options.restricted.as_deref()) } else { Ok(()) }
}

fn measure(options: &Options, runtimes: &Path) -> Outcome {
    cargo(&["build", "--release", "--locked", "-p", "sora", "--bin", "sora", "--example", "worker"]).run()?;
    let programs = home().join("programs");
    let (manifest, folder) = (text(&root().join("xtask/peers/Cargo.toml")), text(&programs));
    cargo(&["build", "--release", "--locked", "--manifest-path", &manifest, "--target-dir", &folder])
        .run()?;
    let keras = environment("peers/keras-env", &[Packages::Whole("peers/keras.txt")])?;

    let release = root().join("target/release");
    let (sora, worker) = (text(&release.join("sora")), text(&release.join("examples/worker")));
    let (models, results) = (text(&options.models), text(&options.results()));
    let filters: Vec<&str> = options.filters.iter().map(String::as_str).collect();
    let isa: Vec<&str> = options.restricted.iter().flat_map(|isa| ["--restrict-isa", isa.as_str()]).collect();
    let call = |python: &Path, name: &str, words: &[&str]| {
        script(python, name, &[&[models.as_str()], words, &filters].concat()).run()
    };
    call(&keras, "keras_models.py", &[])?;
    call(runtimes, "convert.py", &["--sora", &sora])?;
    let programs = text(&programs.join("release"));
    let versions = format!("{{\"tract\": \"{}\", \"rten\": \"{}\"}}", locked("tract-onnx")?, locked("rten")?);
    let timing = ["--programs", &programs, "--worker", &worker, "--versions", &versions];
    let slices = ["--rounds", &options.rounds, "--seconds", &options.seconds];
    call(runtimes, "measure.py", &[&[results.as_str()], &timing[..], &slices, &isa].concat())?;
    call(runtimes, "errors.py", &[&[results.as_str(), "--sora", &sora], &isa[..]].concat())
}

/// One of the scripts with these arguments.
fn script(python: &Path, name: &str, words: &[&str]) -> crate::shell::Program {
    let path = format!(".ci/python/peers/{name}");
    program(python, &[&[path.as_str()], words].concat())
}

/// The version of a package that the peers' programs are locked to.
fn locked(package: &str) -> Outcome<String> {
    let lock = read(&root().join("xtask/peers/Cargo.lock"))?;
    let entry = format!("name = \"{package}\"\nversion = \"");
    let version = lock.split_once(&entry).and_then(|(_, rest)| rest.split('"').next());
    version.map(str::to_owned).ok_or(format!("xtask/peers/Cargo.lock has no {package}"))
}

/// Replaces what stands between the marks of these tables in the documentation.
fn write(report: &str, restricted: Option<&str>) -> Outcome {
    let path = root().join("docs/PERFORMANCE.md");
    let page = read(&path)?;
    let name = restricted.map_or("peers".to_owned(), |isa| format!("peers {isa}"));
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let parts = page.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = parts.ok_or(format!("{} has no marks {begin}", path.display()))?;
    std::fs::write(&path, format!("{before}{begin}\n{report}\n{end}{after}"))
        .map_err(|e| format!("{}: {e}", path.display()))
}

fn home() -> PathBuf {
    root().join("target/peers")
}
