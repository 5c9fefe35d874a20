//! A loop over the slices of its inputs.

use sora_tensor::Tensor;

use super::loop_::stack;
use super::movement::assemble;
use super::{Binary, BinaryKind, attrs, strides};
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::subgraph::{Subgraph, arguments, join, outside, symbols};
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// Runs a body on each slice of its inputs in turn. Inputs: the initial states, the sequences, then what the body
    /// takes besides. The body takes the states, one slice of each sequence without its axis, and the rest; it gives the
    /// states and the slices of the outputs. Outputs: the states at the end, whose types stay, then the sequences of
    /// slices. Source: ONNX Scan (opset 9), with captured values as inputs.
    pub struct Scan {
        /// What one step computes.
        body: Subgraph,
        /// The number of states.
        states: usize,
        /// For each sequence, the axis it is sliced along; may be negative.
        input_axes: Vec<i64>,
        /// For each sequence, whether it is read from the end.
        input_reverse: Vec<bool>,
        /// For each sequence of the outputs, the axis that its slices are stacked along; may be negative.
        output_axes: Vec<i64>,
        /// For each sequence of the outputs, whether it is written from the end.
        output_reverse: Vec<bool>,
    }
}

impl Scan {
    /// The axis of sequence `index` of the inputs.
    fn axis(&self, index: usize, rank: usize) -> Result<usize, Mismatch> {
        resolve_axis(self.input_axes[index], rank)
    }
}

impl OpDef for Scan {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        let sequences = self.input_axes.len();
        let consistent = self.input_reverse.len() == sequences
            && sequences > 0
            && self.output_axes.len() == self.output_reverse.len()
            && self.body.outputs() == self.states + self.output_axes.len()
            && self.body.inputs() == cx.types.len()
            && cx.types.len() >= self.states + sequences;
        ensure!(
            consistent,
            "its body has {} inputs and {} outputs, for {} inputs, {} states, {sequences} sequences, {} outputs of slices",
            self.body.inputs(),
            self.body.outputs(),
            cx.types.len(),
            self.states,
            self.output_axes.len()
        );
        let mut given = arguments(cx, 0)?;
        let mut steps: Option<Dim> = None;
        for (i, (ty, content)) in given.iter_mut().enumerate().skip(self.states).take(sequences) {
            *content = None;
            let axis = self.axis(i - self.states, ty.rank())?;
            let extent = ty.shape.remove(axis);
            steps = Some(match steps {
                None => extent,
                Some(steps) => steps.unify(&extent).ok_or_else(|| {
                    Mismatch::new(format!("its sequences have {steps} and {extent} slices"))
                })?,
            });
        }
        given.iter_mut().take(self.states).for_each(|(_, content)| *content = None);
        let outputs = self.body.infer(&given)?;
        let known = symbols(cx);
        let mut types = Vec::new();
        for (slot, ty) in outputs.into_iter().enumerate() {
            let unknown = |axis| cx.unknown_at(slot, axis);
            match slot.checked_sub(self.states) {
                None => {
                    let before = &given[slot].0;
                    let after = join(before, &ty, unknown)?;
                    ensure!(
                        before.accepts(&after),
                        "state {slot} is {before} before a step and {ty} after it"
                    );
                    types.push(before.clone());
                }
                Some(output) => {
                    let mut ty = outside(ty, &known, unknown);
                    let axis = resolve_axis(self.output_axes[output], ty.rank() + 1)?;
                    ty.shape.insert(axis, steps.clone().unwrap_or_else(|| unknown(axis)));
                    types.push(ty);
                }
            }
        }
        Ok(types)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let inputs = (0..cx.inputs.len()).map(|i| cx.get(i).cloned()).collect::<Result<Vec<_>, _>>()?;
        let (states, rest) = inputs.split_at(self.states);
        let (sequences, captured) = rest.split_at(self.input_axes.len());
        let mut states = states.to_vec();
        let axes = sequences.iter().enumerate().map(|(i, s)| self.axis(i, s.rank()));
        let axes = axes.collect::<Result<Vec<_>, _>>()?;
        let steps = sequences.first().zip(axes.first()).map_or(0, |(s, &axis)| s.shape()[axis]);
        let mut outputs: Vec<Vec<Tensor>> = vec![Vec::new(); self.output_axes.len()];
        for step in 0..steps {
            let mut given = std::mem::take(&mut states);
            for (i, (sequence, &axis)) in sequences.iter().zip(&axes).enumerate() {
                let at = if self.input_reverse[i] { steps - 1 - step } else { step };
                given.push(slice(sequence, axis, at)?);
            }
            given.extend_from_slice(captured);
            let mut results = self.body.eval(&given)?.into_iter();
            states = results.by_ref().take(self.states).collect();
            outputs.iter_mut().zip(results).for_each(|(slices, value)| slices.push(value));
        }
        let types = cx.infer(self)?;
        let mut results = states;
        for (i, mut slices) in outputs.into_iter().enumerate() {
            if self.output_reverse[i] {
                slices.reverse();
            }
            let ty = &types[self.states + i];
            let axis = resolve_axis(self.output_axes[i], ty.rank())?;
            // Stacked along the first axis, then moved to its place.
            let mut first = ty.clone();
            let extent = first.shape.remove(axis);
            first.shape.insert(0, extent);
            results.push(moved(&stack(&slices, &first)?, axis)?);
        }
        Ok(results)
    }

    fn bodies(&self) -> Vec<&Subgraph> {
        vec![&self.body]
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for _ in 0..4 {
            let slice = g.shape(2);
            let ty = TensorType::new(sora_tensor::DType::F32, slice.iter().copied());
            let body = Subgraph::build("body", &[ty.clone(), ty.clone(), ty], |graph, x| {
                let product = graph.op("product", Binary { kind: BinaryKind::Mul }, [x[1], x[2]])?;
                let sum = graph.op("sum", Binary { kind: BinaryKind::Add }, [x[0], product])?;
                Ok(vec![sum, sum])
            });
            let axis = g.size(0, 2);
            let mut shape = slice.clone();
            shape.insert(axis, g.size(1, 5));
            let signed =
                |axis: usize, back: bool| i64::try_from(axis).unwrap_or(0) - if back { 3 } else { 0 };
            let scan = Scan {
                body,
                states: 1,
                input_axes: vec![signed(axis, g.flag())],
                input_reverse: vec![g.flag()],
                output_axes: vec![signed(g.size(0, 2), g.flag())],
                output_reverse: vec![g.flag()],
            };
            cases.push(Case::new(
                scan,
                [g.var(&slice), g.var(&shape), Arg::Const(g.tensor(sora_tensor::DType::F32, &slice))],
            ));
        }
        cases
    }
}

/// The slice at `at` along an axis, without the axis.
fn slice(x: &Tensor, axis: usize, at: usize) -> Result<Tensor, Mismatch> {
    let mut shape = x.shape().to_vec();
    shape.remove(axis);
    let strides = strides(x.shape());
    assemble(x.dtype(), &shape, axis, |index| {
        let outer: usize = index.iter().zip(&strides).map(|(i, stride)| i * stride).sum();
        Some((x, outer + at * strides[axis]))
    })
}

/// The tensor with its first axis moved to `axis`.
fn moved(x: &Tensor, axis: usize) -> Result<Tensor, Mismatch> {
    let mut shape = x.shape().to_vec();
    let steps = shape.remove(0);
    shape.insert(axis, steps);
    let strides = strides(x.shape());
    assemble(x.dtype(), &shape, axis + 1, |index| {
        let outer: usize = index[..axis].iter().zip(&strides[1..]).map(|(i, stride)| i * stride).sum();
        Some((x, outer + index[axis] * strides[0]))
    })
}
