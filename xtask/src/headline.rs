//! Networks compressed by Sora and by others: accuracy, size and latency in one table; see `.ci/python/headline`.
//!
//! Everything lies below `target/headline`. What is there already is not made again; latencies are measured anew each time.

use std::path::Path;

use crate::models;
use crate::python::{Packages, environment};
use crate::shell::{Outcome, cargo, program, root, text};

/// A row: where the network and the data come from.
struct Row {
    name: &'static str,
    model: Model,
    /// Folder below `examples`, where the data does not come with the network.
    example: &'static str,
    test: &'static str,
    /// What Sora may train on while it compresses.
    train: Option<&'static str>,
    /// How a sample becomes an input, where neither network nor example say so.
    preprocess: Option<&'static str>,
}

enum Model {
    /// A file of the example.
    File(&'static str),
    /// What the example's `train.toml` trains.
    Trained,
    /// A network of the zoo, whose weights are random: compared with itself on the example's pictures at 224 pixels.
    Zoo(&'static str),
    /// A network of a package that this script below `.ci/python` takes out, and draws the data for.
    Package(&'static str),
}

const ROWS: &[Row] = &[
    Row {
        name: "clothes",
        model: Model::File("model.onnx"),
        example: "fashion-mnist",
        test: "test",
        train: Some("train"),
        preprocess: None,
    },
    trained("pictures", "test", "train"),
    trained("commands", "test", "train"),
    trained("sentiment", "test.jsonl", "train.jsonl"),
    Row {
        name: "ppocr_direction",
        model: Model::Package("headline/ocr.py"),
        example: "",
        test: "test",
        train: None,
        preprocess: Some("scale=1/255,mean=0.5,std=0.5"),
    },
    zoo("mobilenet_v2"),
    zoo("resnet50"),
];

const fn trained(name: &'static str, test: &'static str, train: &'static str) -> Row {
    Row { name, model: Model::Trained, example: name, test, train: Some(train), preprocess: None }
}

const fn zoo(name: &'static str) -> Row {
    let preprocess = Some("resize=224x224,scale=1/255,mean=0.5,std=0.25");
    Row { name, model: Model::Zoo(name), example: "pictures", test: "test", train: None, preprocess }
}

/// Samples that networks of the zoo are compared on.
const FIDELITY: &str = "300";

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
    let folder = Path::new(home).join(row.name);
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let example = root().join("examples").join(row.example);
    let source = if let Model::Package(_) = row.model { &folder } else { &example };
    let (test, train) = (source.join(row.test), row.train.map(|name| source.join(name)));
    let model = if let Model::File(name) = row.model { source.join(name) } else { folder.join("model.onnx") };
    let (out, config) = (text(&model), text(&example.join("train.toml")));
    match row.model {
        Model::Package(_) => {}
        _ if test.exists() && train.as_ref().is_none_or(|train| train.exists()) => {}
        _ => program(example.join("fetch.sh"), &[]).run()?,
    }
    match row.model {
        _ if model.exists() => {}
        Model::File(_) => return Err(format!("{out} is missing")),
        Model::Trained => program(&sora, &["train", &config, "-o", &out, "--threads", "1"]).run()?,
        Model::Zoo(name) => program(&sora, &["zoo", name, "-o", &out]).run()?,
        // Writes the network last.
        Model::Package(script) => {
            program(models::python()?, &[&format!(".ci/python/{script}"), &text(&folder)]).run()?;
        }
    }
    let (test, release) = (text(&test), text(&release));
    let mut words = vec![".ci/python/headline/headline.py", row.name, "--home", home, "--programs", &release];
    words.extend(["--model", out.as_str(), "--data", test.as_str()]);
    let train = train.map(|train| text(&train));
    words.extend(train.iter().flat_map(|train| ["--train", train.as_str()]));
    if let Model::Trained = row.model {
        words.extend(["--augment", &config]);
    }
    words.extend(row.preprocess.iter().flat_map(|preprocess| ["--preprocess", preprocess]));
    if let Model::Zoo(_) = row.model {
        words.extend(["--fidelity", FIDELITY]);
    }
    program(python, &words).run()
}
