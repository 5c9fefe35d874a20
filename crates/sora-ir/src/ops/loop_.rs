//! A loop with carried values.

use sora_tensor::{Bool, DType, Tensor};

use super::if_::{is_true, truth};
use super::movement::assemble;
use super::{Binary, BinaryKind, Cast, Unary, UnaryKind, attrs};
use crate::case::{Arg, Case, Gen};
use crate::subgraph::{Subgraph, arguments, join, outside, symbols};
use crate::{EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// Runs a body again and again. Inputs: the greatest number of iterations, an optional i64; whether to begin, an
    /// optional truth value; the initial carried values; then what the body takes besides.
    ///
    /// The body takes the number of the iteration, the condition, the carried values and the rest, and gives whether to
    /// go on, the carried values, and values that are stacked along a new first axis, one a iteration. Outputs: the
    /// carried values at the end, then the stacks. Source: ONNX Loop, with captured values as inputs.
    pub struct Loop {
        /// What one iteration computes.
        body: Subgraph,
        /// The number of carried values.
        carried: usize,
    }
}

impl Loop {
    /// The body's input and output types, with extents of carried values that change between iterations unknown.
    fn settle(&self, cx: &InferCx) -> Result<(Vec<TensorType>, Vec<TensorType>), Mismatch> {
        let mut given =
            vec![(self.body.input_type(0)?.clone(), None), (self.body.input_type(1)?.clone(), None)];
        given.extend(arguments(cx, 2)?);
        for (_, content) in given.iter_mut().skip(2).take(self.carried) {
            *content = None;
        }
        loop {
            let outputs = self.body.infer(&given)?;
            let mut settled = true;
            let carried = given.iter_mut().skip(2).zip(outputs.iter().skip(1)).take(self.carried);
            for (slot, ((ty, _), after)) in carried.enumerate() {
                let joined = join(ty, after, |axis| cx.unknown_at(slot, axis));
                let joined = joined
                    .map_err(|e| Mismatch::new(format!("carried value {slot} before and after: {}", e.0)))?;
                settled &= joined == *ty;
                *ty = joined;
            }
            if settled {
                return Ok((given.into_iter().map(|(ty, _)| ty).collect(), outputs));
            }
        }
    }
}

impl OpDef for Loop {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        if let Some(trips) = cx.opt(0) {
            let one = trips.shape.iter().all(|d| d.constant().is_none_or(|n| n == 1));
            ensure!(
                trips.dtype == DType::I64 && one,
                "the number of iterations must be one i64, found {trips}"
            );
        }
        if let Some(begin) = cx.opt(1) {
            truth(begin, "condition")?;
        }
        let (takes, gives) = (self.body.inputs(), self.body.outputs());
        ensure!(
            takes == cx.types.len().max(2) && takes >= 2 + self.carried && gives > self.carried,
            "its body has {takes} inputs and {gives} outputs, for {} inputs with {} carried values",
            cx.types.len(),
            self.carried
        );
        let ((inputs, outputs), known) = (self.settle(cx)?, symbols(cx));
        truth(&outputs[0], "first output of its body")?;
        let carried = inputs.into_iter().skip(2).take(self.carried);
        let stacks = outputs.into_iter().enumerate().skip(1 + self.carried).map(|(i, ty)| {
            let ty = outside(ty, &known, |axis| cx.unknown_at(i - 1, axis + 1));
            let shape = std::iter::once(cx.unknown_at(i - 1, 0)).chain(ty.shape).collect();
            TensorType { dtype: ty.dtype, shape }
        });
        Ok(carried.chain(stacks).collect())
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let trips = match cx.opt(0) {
            Some(trips) => {
                *trips.to_i64s().first().ok_or_else(|| Mismatch::new("has no number of iterations"))?
            }
            None => i64::MAX,
        };
        let mut go_on = cx.opt(1).map_or(Ok(true), is_true)?;
        let rest = (2..cx.inputs.len()).map(|i| cx.get(i).cloned()).collect::<Result<Vec<_>, _>>()?;
        let (mut carried, captured) = (rest[..self.carried].to_vec(), &rest[self.carried..]);
        let mut stacks: Vec<Vec<Tensor>> = vec![Vec::new(); self.body.outputs() - 1 - self.carried];
        let shaped = |value: Tensor, index: usize| -> Result<Tensor, Mismatch> {
            Ok(value.reshape(&vec![1; self.body.input_type(index)?.rank()])?)
        };
        let mut trip = 0;
        while go_on && trip < trips {
            let mut inputs =
                vec![shaped(Tensor::scalar(trip), 0)?, shaped(Tensor::scalar(Bool::from(true)), 1)?];
            inputs.append(&mut carried);
            inputs.extend_from_slice(captured);
            let mut outputs = self.body.eval(&inputs)?.into_iter();
            go_on = is_true(&outputs.next().ok_or_else(|| Mismatch::new("its body has no output"))?)?;
            carried = outputs.by_ref().take(self.carried).collect();
            stacks.iter_mut().zip(outputs).for_each(|(stack, value)| stack.push(value));
            trip += 1;
        }
        let types = cx.infer(self)?;
        let stacks =
            stacks.into_iter().zip(types.into_iter().skip(self.carried)).map(|(s, ty)| stack(&s, &ty));
        carried.into_iter().map(Ok).chain(stacks).collect()
    }

    fn bodies(&self) -> Vec<&Subgraph> {
        vec![&self.body]
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for with_trips in [true, true, false] {
            let shape = g.shape(2);
            let ty = TensorType::new(DType::F32, shape.iter().copied());
            let flag = TensorType::new(DType::Bool, [0usize; 0]);
            let number = TensorType::new(DType::I64, [0usize; 0]);
            // The sum of f(x) over the iterations, and every partial sum; it goes on while the number is below a bound.
            let body =
                Subgraph::build("body", &[number.clone(), flag, ty.clone(), ty, number], |graph, x| {
                    let scaled = graph.op("scaled", Cast { to: DType::F32 }, [x[0]])?;
                    let term = graph.op("term", Binary { kind: BinaryKind::Mul }, [x[3], scaled])?;
                    let term = graph.op("bounded", Unary { kind: UnaryKind::Tanh }, [term])?;
                    let sum = graph.op("sum", Binary { kind: BinaryKind::Add }, [x[2], term])?;
                    let go_on = graph.op("go_on", Binary { kind: BinaryKind::Less }, [x[0], x[4]])?;
                    Ok(vec![go_on, sum, sum])
                });
            let trips = Arg::Var(Tensor::scalar(i64::try_from(g.size(0, 5)).unwrap_or(0)));
            let trips = if with_trips { trips } else { Arg::Absent };
            let bound = Arg::Var(Tensor::scalar(i64::try_from(g.size(0, 5)).unwrap_or(0)));
            let inputs = [trips, Arg::Absent, g.var(&shape), g.var(&shape), bound];
            cases.push(Case::new(Loop { body, carried: 1 }, inputs));
        }
        cases
    }
}

/// Tensors of one shape along a new first axis; `ty` says what an empty stack holds.
pub(crate) fn stack(parts: &[Tensor], ty: &TensorType) -> Result<Tensor, Mismatch> {
    let inner = match parts.first() {
        Some(first) => first.shape().to_vec(),
        None => ty.shape.iter().skip(1).map(|d| d.known().unwrap_or(0)).collect(),
    };
    let fits = parts.iter().all(|part| part.shape() == inner);
    ensure!(fits, "the values to be stacked differ in shape between iterations");
    let shape: Vec<usize> = std::iter::once(parts.len()).chain(inner).collect();
    assemble(ty.dtype, &shape, 1, |index| Some((&parts[index[0]], 0)))
}
