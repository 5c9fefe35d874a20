//! What a network is trained to tell, and what becomes small.

use sora_ir::ops::{ArgReduce, BinaryKind, Op, Reduce, ReduceKind, Unary, UnaryKind};
use sora_ir::{Graph, Mismatch, TensorType, ValueId, Writer};
use sora_tensor::DType;

use crate::TrainError;
use crate::loss::{Link, Loss, Target};

/// An output of the network in training.
#[derive(Clone, Debug)]
pub struct Head {
    /// Its name; `None`: the first output.
    pub output: Option<String>,
    /// What its result is compared with, as the data calls it; `None`: the class of the sample.
    pub target: Option<String>,
    /// How.
    pub loss: Loss,
    /// Its share of the loss of the network, which is the sum over all heads.
    pub weight: f64,
    /// Labels of the longest sequence, for losses of [`Target::Sequence`].
    pub labels: usize,
}

impl Head {
    /// The first output, compared with the class of each sample.
    pub fn new(loss: Loss) -> Self {
        Head { output: None, target: None, loss, weight: 1.0, labels: 0 }
    }

    /// The output's name in `graph`, and its value.
    ///
    /// # Errors
    /// [`TrainError::Network`] when there is no such output.
    pub(crate) fn output<'g>(&self, graph: &'g Graph) -> Result<(&'g str, ValueId), TrainError> {
        let mut outputs = graph.outputs().iter();
        let found = match &self.output {
            Some(name) => outputs.find(|output| output.name == *name),
            None => outputs.next(),
        };
        let name =
            self.output.as_deref().map_or("no output".to_owned(), |name| format!("no output `{name}`"));
        let found = found.ok_or_else(|| TrainError::Network(format!("the network has {name}")))?;
        Ok((&found.name, found.value))
    }
}

/// What is written for the heads of a network.
pub(crate) struct Written {
    /// The loss of the network: a number.
    pub(crate) loss: ValueId,
    /// For each head, its own loss, and samples predicted right where that has a meaning.
    pub(crate) heads: Vec<(ValueId, Option<ValueId>)>,
}

/// The input that a head is compared with.
pub(crate) fn target_name(head: usize) -> String {
    format!("train/target/{head}")
}

/// Writes the losses. What they compare with becomes the inputs [`target_name`].
pub(crate) fn write(graph: &mut Graph, heads: &[Head]) -> Result<Written, TrainError> {
    let mut sum = None;
    let mut written = Vec::new();
    for (i, head) in heads.iter().enumerate() {
        let loss = &head.loss;
        let y = result(graph, head)?;
        let (ty, dtype) = (graph.ty(y).clone(), DType::I64);
        let samples = ty.shape.iter().take(1).cloned();
        let ty = match loss.row.target {
            Target::Same => ty,
            Target::Class => TensorType { dtype, shape: samples.collect() },
            Target::Sequence => TensorType { dtype, shape: samples.chain([head.labels.into()]).collect() },
        };
        let target = graph.input(&target_name(i), ty);
        let mut w = Writer::new(graph, format!("train/loss/{i}"));
        let value = loss.write(&mut w, y, target)?;
        let correct = correct(&mut w, loss, y, target)?;
        let share = if head.weight == 1.0 { value } else { w.times(value, head.weight)? };
        sum = Some(match sum {
            Some(sum) => w.add(sum, share)?,
            None => share,
        });
        written.push((value, correct));
    }
    let loss = sum.ok_or_else(|| TrainError::Network("nothing says what to train".to_owned()))?;
    Ok(Written { loss, heads: written })
}

/// What the loss takes: the output, before the function at its end that belongs to the loss.
fn result(graph: &Graph, head: &Head) -> Result<ValueId, TrainError> {
    let (_, y) = head.output(graph)?;
    let Some((_, node, _)) = graph.producer(y) else { return Ok(y) };
    let before = node.inputs.first().copied().flatten();
    Ok(match (&node.op, head.loss.row.from) {
        (Op::Softmax(op), Link::Softmax) if !op.log => before.unwrap_or(y),
        (Op::Unary(Unary { kind: UnaryKind::Sigmoid }), Link::Sigmoid) => before.unwrap_or(y),
        _ => y,
    })
}

/// How many samples are predicted right, as `f32`; `None` where a loss has no notion of it.
fn correct(w: &mut Writer, loss: &Loss, y: ValueId, target: ValueId) -> Result<Option<ValueId>, Mismatch> {
    let greatest = |w: &mut Writer, x| {
        w.op(ArgReduce { axis: 1, keep_dims: false, largest: true, select_last: false }, [x])
    };
    let hit = match (loss.row.target, loss.row.from) {
        (Target::Class, _) => {
            let found = greatest(w, y)?;
            w.binary(BinaryKind::Equal, found, target)?
        }
        (Target::Same, Link::Softmax) => {
            let (found, target) = (greatest(w, y)?, greatest(w, target)?);
            w.binary(BinaryKind::Equal, found, target)?
        }
        // One number a sample: a logit, whose probability is over one half where it is positive, or a sign.
        (Target::Same, Link::Sigmoid | Link::Sign) if w.shape(y)?[1..].iter().product::<usize>() == 1 => {
            let found = w.compare(y, BinaryKind::Greater, 0.0)?;
            let expected = w.compare(target, BinaryKind::Greater, 0.5)?;
            w.binary(BinaryKind::Equal, found, expected)?
        }
        _ => return Ok(None),
    };
    let hit = w.cast(hit, DType::F32)?;
    let sum = w.op(Reduce { kind: ReduceKind::Sum, axes: Vec::new(), keep_dims: false }, [hit])?;
    Ok(Some(sum))
}
