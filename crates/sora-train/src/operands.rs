//! What a batch gives to a step.

use sora_data::Batch;
use sora_ir::{Dim, Graph};
use sora_tensor::{Tensor, TensorError};

use crate::TrainError;
use crate::head::Head;
use crate::loss::{Link, Target};

/// The inputs of the network by name; arrays of the data that are none are left out.
pub(crate) fn inputs<'a>(graph: &Graph, batch: &'a Batch) -> Vec<(String, &'a Tensor)> {
    let known: Vec<&String> = graph.inputs().iter().map(|&id| &graph.value(id).name).collect();
    let only = known.first().copied().cloned().unwrap_or_default();
    let named = |(name, tensor): &'a (Option<String>, Tensor)| (name.clone().unwrap_or(only.clone()), tensor);
    batch.inputs.iter().map(named).filter(|(name, _)| known.contains(&name)).collect()
}

/// The inputs as a program takes them.
pub(crate) fn borrowed<'a>(inputs: &'a [(String, &'a Tensor)]) -> Vec<(&'a str, &'a Tensor)> {
    inputs.iter().map(|(name, tensor)| (name.as_str(), *tensor)).collect()
}

/// What each head is compared with.
pub(crate) fn targets(graph: &Graph, batch: &Batch, heads: &[Head]) -> Result<Vec<Tensor>, TrainError> {
    heads.iter().map(|head| target(graph, batch, head)).collect()
}

fn target(graph: &Graph, batch: &Batch, head: &Head) -> Result<Tensor, TrainError> {
    let row = head.loss.row;
    let mixed = batch.mixed.as_ref().filter(|_| head.target.is_none());
    if let (Target::Same, Link::Softmax, Some(mixed)) = (row.target, row.from, mixed) {
        return Ok(mixed.clone());
    }
    let ty = graph.ty(head.output(graph)?.1);
    let classes = |axis: usize| ty.shape.get(axis).and_then(Dim::known).unwrap_or(0);
    let given = match &head.target {
        Some(name) => batch.targets.iter().find(|(known, _)| known == name).map(|(_, target)| target.clone()),
        None if batch.labels.len() == batch.len => {
            let labels: Vec<i64> = batch.labels.iter().map(|&label| label as i64).collect();
            Some(Tensor::vector(&labels))
        }
        None => None,
    };
    let given = given.ok_or_else(|| {
        let what = head.target.as_ref().map_or("labels".to_owned(), |name| format!("array `{name}`"));
        TrainError::Network(format!("the data has no {what} to train with"))
    })?;
    let cannot =
        |what: String| Err(TrainError::Network(format!("{what}, which `{}` cannot compare with", row.name)));
    let other_shape = || cannot(format!("the data gives targets of shape {:?}", given.shape()));
    let one_each = given.len() == batch.len;
    match (row.target, row.from, mixed) {
        (Target::Class, _, Some(_)) => {
            let why = "mixed samples have probabilities of classes: they need `categorical_crossentropy`";
            Err(TrainError::Network(why.to_owned()))
        }
        (Target::Class, _, None) if one_each => Ok(Tensor::vector(&class_numbers(&given, classes(1))?)),
        (Target::Same, Link::Softmax, None) if one_each => {
            let classes = classes(1);
            let numbers = class_numbers(&given, classes)?;
            let mut rows = vec![0f32; batch.len * classes];
            for (row, &label) in rows.chunks_mut(classes.max(1)).zip(&numbers) {
                row.iter_mut().skip(label as usize).take(1).for_each(|x| *x = 1.0);
            }
            tensor(Tensor::from_slice(&[batch.len, classes], &rows))
        }
        (Target::Sequence, ..) if given.shape() == [batch.len, head.labels] => {
            // The last class is the blank, and -1 fills up.
            let last = classes(2) as f64 - 2.0;
            let is_label = |x: &f64| x.fract() == 0.0 && (-1.0..=last).contains(x);
            match given.to_f64s().iter().find(|x| !is_label(x)) {
                Some(label) => cannot(format!("{label} is none of the labels 0 to {last}")),
                None => tensor(Tensor::from_slice(given.shape(), &given.to_i64s())),
            }
        }
        (Target::Same, from, None) => {
            let shape = ty.shape.iter().skip(1).map(Dim::known).collect::<Option<Vec<usize>>>();
            let shape = [&[batch.len], shape.unwrap_or_default().as_slice()].concat();
            // A class is a number only where there is one probability or sign.
            let is_number = head.target.is_some() || matches!(from, Link::Sigmoid | Link::Sign);
            match shape.iter().product::<usize>() == given.len() {
                true if is_number => tensor(Tensor::from_f64s(ty.dtype, &shape, &given.to_f64s())),
                _ if head.target.is_none() => cannot("the data gives classes".to_owned()),
                _ => other_shape(),
            }
        }
        _ => other_shape(),
    }
}

/// Numbers of classes, all of which there are.
fn class_numbers(given: &Tensor, classes: usize) -> Result<Vec<i64>, TrainError> {
    for label in given.to_f64s() {
        if label.fract() != 0.0 || label < 0.0 {
            return Err(TrainError::Network(format!("{label} is no class number")));
        }
        if label >= classes as f64 {
            return Err(TrainError::Class { label: label as usize, classes });
        }
    }
    Ok(given.to_i64s())
}

fn tensor(made: Result<Tensor, TensorError>) -> Result<Tensor, TrainError> {
    Ok(made.map_err(sora_ir::Mismatch::from)?)
}
