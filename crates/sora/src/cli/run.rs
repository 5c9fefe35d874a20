//! `sora run`.

use std::path::Path;

use sora::ir::TensorType;
use sora::tensor::Tensor;
use sora::{Failure, Model, data, write_atomically};

use super::args::Run;
use super::{Printed, check_output, engine_failure, npz_bytes, progress, warn};

pub(super) fn run(args: &Run) -> Printed {
    check_output(&args.output, &[&args.model])?;
    let model = Model::load(&args.model)?;
    warn(&model.warnings);
    let mut inputs: Vec<(String, Tensor)> = Vec::new();
    for argument in &args.inputs {
        let (name, file) = argument.split_once('=').ok_or_else(|| {
            Failure::new(
                "An input is given as NAME=FILE.npy.",
                format!("--input {argument}"),
                inputs_of(&model),
            )
        })?;
        check_output(&args.output, &[Path::new(file)])?;
        inputs.push((name.to_owned(), data::npy::read(Path::new(file))?));
    }
    check_inputs(&model, &inputs)?;
    let session = model.session(args.engine.options()?).map_err(engine_failure(&args.model))?;
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    progress::check()?;
    let outputs = session.run(&given).map_err(engine_failure(&args.model))?;
    progress::check()?;
    write_atomically(&args.output, &npz_bytes(&args.output, &outputs)?)?;
    let lines: Vec<String> =
        outputs.iter().map(|(name, tensor)| format!("{name}: {}", TensorType::of(tensor))).collect();
    Ok(lines.join("\n"))
}

/// Every input present once, known by name, and of a type that the model takes.
fn check_inputs(model: &Model, given: &[(String, Tensor)]) -> Result<(), Failure> {
    let wrong = |what: String, name: &str| Failure::new(what, format!("--input {name}=…"), inputs_of(model));
    for (name, tensor) in given {
        let id = model.graph.inputs().iter().find(|&&id| model.graph.value(id).name == *name);
        let Some(&id) = id else {
            return Err(wrong("The model has no input of this name.".to_owned(), name));
        };
        let (expected, found) = (model.graph.ty(id), TensorType::of(tensor));
        if !expected.accepts(&found) {
            return Err(wrong(format!("The model takes {expected} here, the file holds {found}."), name));
        }
        if given.iter().filter(|(other, _)| other == name).count() > 1 {
            return Err(wrong("The input is given twice.".to_owned(), name));
        }
    }
    for &id in model.graph.inputs() {
        let name = &model.graph.value(id).name;
        if given.iter().all(|(given, _)| given != name) {
            return Err(wrong("The input is missing.".to_owned(), name));
        }
    }
    Ok(())
}

fn inputs_of(model: &Model) -> String {
    let inputs = model.graph.inputs().iter().map(|&id| model.graph.value(id));
    let list: Vec<String> = inputs.map(|v| format!("{}: {}", v.name, v.ty)).collect();
    format!("The model's inputs are {}.", list.join(", "))
}
