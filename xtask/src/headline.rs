//! Networks compressed by Sora and by others: accuracy, size and latency in one table; see `.ci/python/headline`.
//!
//! Everything lies below `target/headline`. What is there already is not made again; latencies are measured anew each time.

use std::path::Path;

use crate::python::{Packages, environment};
use crate::shell::{Outcome, cargo, program, root, text};

/// A row: where the network and the data come from.
struct Row {
    name: &'static str,
    model: Model,
    /// Folder below `examples`.
    example: &'static str,
    test: &'static str,
    /// What Sora may train on while it compresses.
    train: Option<&'static str>,
}

enum Model {
    /// A file of the example.
    File(&'static str),
    /// What the example's `train.toml` trains.
    Trained,
    /// A network of the zoo, whose weights are random: compared with itself on the example's pictures at 224 pixels.
    Zoo(&'static str),
}

const ROWS: &[Row] = &[
    Row {
        name: "clothes",
        model: Model::File("model.onnx"),
        example: "fashion-mnist",
        test: "test",
        train: Some("train"),
    },
    trained("pictures", "test", "train"),
    trained("commands", "test", "train"),
    trained("sentiment", "test.jsonl", "train.jsonl"),
    zoo("mobilenet_v2"),
    zoo("resnet50"),
];

const fn trained(name: &'static str, test: &'static str, train: &'static str) -> Row {
    Row { name, model: Model::Trained, example: name, test, train: Some(train) }
}

const fn zoo(name: &'static str) -> Row {
    Row { name, model: Model::Zoo(name), example: "pictures", test: "test", train: None }
}

/// Samples of each half that networks of the zoo are compared on.
const FIDELITY: &str = "150";

/// Makes and measures the rows that are named, by default all, and prints the table of all that have been measured.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    if let Some(unknown) = arguments.iter().find(|name| ROWS.iter().all(|row| row.name != **name)) {
        let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        return Err(format!("there is no row `{unknown}`: {}", known.join(", ")));
    }
    let python = environment(
        "peers/runtimes-env",
        &[Packages::Whole("peers/runtimes.txt"), Packages::Alone("peers/runtimes-alone.txt")],
    )?;
    let built = ["build", "--release", "--locked", "-p", "sora", "--bin", "sora"];
    cargo(&[&built[..], &["--example", "worker", "--example", "prepared"]].concat()).run()?;
    let home = text(&root().join("target/headline"));
    for row in ROWS.iter().filter(|row| arguments.is_empty() || arguments.iter().any(|name| name == row.name))
    {
        measure(row, &python, &home)?;
    }
    println!("{}", program(&python, &[".ci/python/headline/report.py", &home]).output()?);
    Ok(())
}

fn measure(row: &Row, python: &Path, home: &str) -> Outcome {
    let release = root().join("target/release");
    let sora = release.join("sora");
    let example = root().join("examples").join(row.example);
    let (test, train) = (example.join(row.test), row.train.map(|name| example.join(name)));
    if !test.exists() || train.as_ref().is_some_and(|train| !train.exists()) {
        program(example.join("fetch.sh"), &[]).run()?;
    }
    let folder = Path::new(home).join(row.name);
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let model = match row.model {
        Model::File(name) => example.join(name),
        Model::Trained | Model::Zoo(_) => folder.join("model.onnx"),
    };
    if !model.exists() {
        let (config, out) = (text(&example.join("train.toml")), text(&model));
        let words = match row.model {
            Model::Zoo(name) => vec!["zoo", name, "-o", &out],
            _ => vec!["train", config.as_str(), "-o", &out, "--threads", "1"],
        };
        program(&sora, &words).run()?;
    }
    let (model, test, release) = (text(&model), text(&test), text(&release));
    let mut words = vec![".ci/python/headline/headline.py", row.name, "--home", home, "--programs", &release];
    words.extend(["--model", model.as_str(), "--data", test.as_str()]);
    let train = train.map(|train| text(&train));
    words.extend(train.iter().flat_map(|train| ["--train", train.as_str()]));
    if let Model::Zoo(_) = row.model {
        words.extend([
            "--preprocess",
            "resize=224x224,scale=1/255,mean=0.5,std=0.25",
            "--fidelity",
            FIDELITY,
        ]);
    }
    program(python, &words).run()
}
