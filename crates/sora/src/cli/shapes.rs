//! Shapes of inputs as the command line gives them: `NAME=1x3x224x224`.

use sora::ir::TensorType;
use sora::{Failure, Model};

/// Refuses shapes of inputs that the model does not have.
pub(super) fn check_names(model: &Model, shapes: &[String]) -> Result<(), Failure> {
    let names: Vec<&String> = model.graph.inputs().iter().map(|&id| &model.graph.value(id).name).collect();
    for shape in shapes {
        let place = format!("--shape {shape}");
        let Some((name, _)) = shape.split_once('=') else {
            return Err(Failure::new(
                "A shape needs the name of its input.",
                place,
                "Write NAME=1x3x224x224.",
            ));
        };
        if names.iter().all(|n| *n != name) {
            let hint = format!("The model's inputs are {names:?}.");
            return Err(Failure::new("There is no such input.", place, hint));
        }
    }
    Ok(())
}

/// The shape that is given for an input of this name and type, if one is.
pub(super) fn given(shapes: &[String], name: &str, ty: &TensorType) -> Result<Option<Vec<usize>>, Failure> {
    let given = shapes.iter().find_map(|s| s.split_once('=').filter(|(n, _)| *n == name));
    let Some((_, text)) = given else { return Ok(None) };
    let place = format!("--shape {name}={text}");
    let shape: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
    let shape =
        shape.map_err(|_| Failure::new("A shape is extents joined by x.", &place, "Write 1x3x224x224."))?;
    match ty.accepts(&TensorType::new(ty.dtype, shape.iter().copied())) {
        true => Ok(Some(shape)),
        false => {
            let what = format!("The model takes {ty} here.");
            Err(Failure::new(what, place, "Give extents that agree with it."))
        }
    }
}

/// The shapes of all inputs, by name: those that are given, else open extents taken as 1.
pub(super) fn or_one<'m>(model: &'m Model, shapes: &[String]) -> Result<Vec<(&'m str, Vec<usize>)>, Failure> {
    check_names(model, shapes)?;
    let all = model.graph.inputs().iter().zip(model.shapes_at_one());
    all.map(|(&id, (name, at_one))| Ok((name, given(shapes, name, model.graph.ty(id))?.unwrap_or(at_one))))
        .collect()
}
