//! Recurrent layers with other options than the core operators have, as loops over the steps.

use sora_ir::ops::{
    Activation, ActivationKind, Binary, BinaryKind, Direction, MatMul, Scan, Slice, Unary, UnaryKind, Where,
};
use sora_ir::{Dim, Graph, Op, Real, Subgraph, TensorType, ValueId};
use sora_tensor::{DType, Tensor};

use super::node::{Built, NodeCx, first};
use crate::error::Refusal;
use crate::tensor::signed;

/// What a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Rnn,
    Gru { linear_before_reset: bool },
    Lstm { input_forget: bool },
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Rnn => 1,
            Cell::Gru { .. } => 3,
            Cell::Lstm { .. } => 4,
        }
    }

    fn states(self) -> usize {
        if matches!(self, Cell::Lstm { .. }) { 2 } else { 1 }
    }

    /// The names of the nonlinearities of one direction.
    pub(super) fn usual(self) -> &'static [&'static str] {
        match self {
            Cell::Rnn => &["tanh"],
            Cell::Gru { .. } => &["sigmoid", "tanh"],
            Cell::Lstm { .. } => &["sigmoid", "tanh", "tanh"],
        }
    }
}

/// A nonlinearity with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Function {
    pub(super) name: String,
    alpha: f32,
    beta: f32,
}

/// The nonlinearities of all directions, as the node gives them. Parameters are used up in order by those that have any.
pub(super) fn functions(cx: &NodeCx, cell: Cell, directions: usize) -> Result<Vec<Function>, Refusal> {
    let given: Vec<String> = cx.texts("activations").iter().map(|name| name.to_lowercase()).collect();
    let usual: Vec<String> = cell.usual().iter().map(|&name| name.to_owned()).collect();
    let names = if given.is_empty() { usual } else { given };
    let list = |name| cx.attribute(name).map_or(&[][..], |a| &a.floats).iter().copied();
    let (mut alphas, mut betas) = (list("activation_alpha"), list("activation_beta"));
    let mut functions = Vec::new();
    for name in names.iter().cycle().take(directions * cell.usual().len()) {
        let (alpha, beta) = match name.as_str() {
            "tanh" | "sigmoid" | "relu" | "softsign" | "softplus" => (None, None),
            "leakyrelu" => (Some(0.01), None),
            "thresholdedrelu" | "elu" => (Some(1.0), None),
            "affine" => (Some(1.0), Some(0.0)),
            "scaledtanh" => (Some(1.0), Some(1.0)),
            "hardsigmoid" => (Some(0.2), Some(0.5)),
            other => return Err(Refusal::new(format!("the activation `{other}` is not known"))),
        };
        functions.push(Function {
            name: name.clone(),
            alpha: alpha.map_or(0.0, |usual| alphas.next().unwrap_or(usual)),
            beta: beta.map_or(0.0, |usual| betas.next().unwrap_or(usual)),
        });
    }
    Ok(functions)
}

/// Inputs of a layer in the order of the core operators, with X `[T, B, I]`.
const LENGTHS: usize = 4;
const FIRST_STATE: usize = 5;
const PEEPHOLES: usize = 7;

/// Builds the layer: Y `[T, D, B, H]`, then the final states `[D, B, H]`.
pub(super) fn unrolled(
    cx: &mut NodeCx,
    cell: Cell,
    direction: Direction,
    hidden: usize,
    functions: &[Function],
    inputs: &[Option<ValueId>],
) -> Built {
    let mut sequences = Vec::new();
    let mut finals = vec![Vec::new(); cell.states()];
    for (d, functions) in functions.chunks(cell.usual().len()).enumerate() {
        let reverse = direction.reverses(d);
        let mut outputs = one_direction(cx, cell, d, reverse, hidden, functions, inputs)?.into_iter();
        for (all, state) in finals.iter_mut().zip(outputs.by_ref()) {
            all.push(cx.unsqueeze(state, &[0])?);
        }
        for sequence in outputs {
            sequences.push(cx.unsqueeze(sequence, &[1])?);
        }
    }
    let mut results = vec![cx.concat(sequences, 1)?];
    for state in finals {
        results.push(cx.concat(state, 0)?);
    }
    Ok(results)
}

/// One direction: the final states `[B, H]`, then the outputs of all steps `[T, B, H]`.
fn one_direction(
    cx: &mut NodeCx,
    cell: Cell,
    d: usize,
    reverse: bool,
    hidden: usize,
    functions: &[Function],
    inputs: &[Option<ValueId>],
) -> Built {
    let input = |index: usize| inputs.get(index).copied().flatten();
    let needed =
        |index: usize| input(index).ok_or_else(|| Refusal::new(format!("its input {index} is missing")));
    let (x, w, r) = (needed(0)?, needed(1)?, needed(2)?);
    if hidden == 0 || [x, w, r].iter().any(|&v| cx.rank(v) != 3) {
        return Err(Refusal::new(format!("X {} and its weights do not make a layer", cx.ty(x))));
    }
    let (dtype, wide) = (cx.dtype(x), cell.gates().saturating_mul(hidden));
    // The part of a direction, without that axis.
    let own = |cx: &mut NodeCx, value| {
        let part = cx.cut(value, 0, [signed(d), signed(d) + 1, 1])?;
        cx.squeeze(part, &[0])
    };
    let (w, r) = (own(cx, w)?, own(cx, r)?);
    let (w, r) = (cx.transpose(w, &[1, 0])?, cx.transpose(r, &[1, 0])?);
    let mut projected = cx.step("projected", MatMul {}, [x, w])?;
    let biases = match input(3) {
        None => None,
        Some(bias) => {
            let bias = own(cx, bias)?;
            let both = cx.parts(bias, 0, &[wide, wide])?;
            let &[of_w, of_r] = &both[..] else { return Err(Refusal::new("its bias is incomplete")) };
            projected = cx.binary(BinaryKind::Add, projected, of_w)?;
            Some(of_r)
        }
    };
    let batch = cx.ty(x).shape.get(1).cloned().unwrap_or(Dim::from(1usize));
    let mut given = Vec::new();
    for state in 0..cell.states() {
        given.push(match input(FIRST_STATE + state) {
            Some(initial) => own(cx, initial)?,
            None => {
                let (extent, width) = (cx.extent(x, 1)?, cx.make_ints("hidden", &[signed(hidden)]));
                let shape = cx.concat([extent, width], 0)?;
                let zero = cx.scalar("zero", dtype, 0.0);
                cx.expand(zero, shape)?
            }
        });
    }
    given.push(projected);
    let lengths = input(LENGTHS);
    if let Some(lengths) = lengths {
        let steps = cx.extent(x, 0)?;
        given.push(cx.count_to(steps)?);
        let lengths = cx.cast(lengths, DType::I64)?;
        given.push(cx.unsqueeze(lengths, &[1])?);
    }
    let sequences = if lengths.is_some() { 2 } else { 1 };
    let mut captured = vec![Some(r), biases];
    captured.push(match (cell, input(PEEPHOLES)) {
        (Cell::Lstm { .. }, Some(peepholes)) => Some(own(cx, peepholes)?),
        _ => None,
    });

    let mut graph = Graph::new("step");
    let mut body =
        Body { graph: &mut graph, dtype, hidden, clip: cx.attribute("clip").map(|_| cx.float("clip", 0.0)) };
    let state = TensorType { dtype, shape: vec![batch.clone(), Dim::from(hidden)] };
    let states: Vec<ValueId> =
        (0..cell.states()).map(|i| body.input(&format!("state{i}"), state.clone())).collect();
    let gates = body.input("x", TensorType { dtype, shape: vec![batch.clone(), Dim::from(wide)] });
    let alive = match lengths {
        None => None,
        Some(_) => {
            let step = body.input("step", TensorType::new(DType::I64, [0usize; 0]));
            let lengths = TensorType { dtype: DType::I64, shape: vec![batch, Dim::from(1usize)] };
            let lengths = body.input("lengths", lengths);
            Some(body.binary(BinaryKind::Less, step, lengths)?)
        }
    };
    let mut constants = Vec::new();
    for (i, value) in captured.iter().enumerate() {
        constants.push(value.map(|value| body.input(&format!("weight{i}"), cx.ty(value).clone())));
    }
    let &[Some(r), bias, peepholes] = &constants[..] else { return Err(Refusal::new("it has no weights")) };
    let new = body.cell(cell, functions, gates, &states, Weights { r, bias, peepholes })?;
    let mut outputs = Vec::new();
    for (&new, &old) in new.iter().zip(&states) {
        outputs.push(match alive {
            None => new,
            Some(alive) => body.op(Where {}, [alive, new, old])?,
        });
    }
    // What comes behind the end of a sequence is zero.
    let written = match (new.first(), alive) {
        (Some(&h), None) => h,
        (Some(&h), Some(alive)) => {
            let zero = body.number(0.0);
            body.op(Where {}, [alive, h, zero])?
        }
        (None, _) => return Err(Refusal::new("it has no state")),
    };
    outputs.push(written);
    for (i, output) in outputs.into_iter().enumerate() {
        graph.output(&format!("y{i}"), output);
    }
    let body = Subgraph::new(graph).map_err(|e| Refusal::new(e.0))?;
    let op = Scan {
        body,
        states: cell.states(),
        input_axes: vec![0; sequences],
        input_reverse: vec![reverse; sequences],
        output_axes: vec![0],
        output_reverse: vec![reverse],
    };
    cx.steps("steps", op, given.into_iter().chain(captured.into_iter().flatten()))
}

/// What meets the states: R `[H, G·H]`, its bias `[G·H]` and the peepholes `[3·H]`.
struct Weights {
    r: ValueId,
    bias: Option<ValueId>,
    peepholes: Option<ValueId>,
}

/// A step under construction.
struct Body<'a> {
    graph: &'a mut Graph,
    dtype: DType,
    hidden: usize,
    clip: Option<f32>,
}

impl Body<'_> {
    fn input(&mut self, name: &str, ty: TensorType) -> ValueId {
        self.graph.input(name, ty)
    }

    fn op(
        &mut self,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = ValueId>,
    ) -> Result<ValueId, Refusal> {
        let op = op.into();
        let name = self.graph.fresh_name(&op.label().to_lowercase());
        first(self.graph.add(&name, op, inputs)?)
    }

    fn binary(&mut self, kind: BinaryKind, a: ValueId, b: ValueId) -> Result<ValueId, Refusal> {
        self.op(Binary { kind }, [a, b])
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        let name = self.graph.fresh_name("constant");
        self.graph.constant(&name, tensor)
    }

    fn number(&mut self, value: f64) -> ValueId {
        self.constant(Tensor::scalar(value).cast(self.dtype))
    }

    /// Gates `from..to` of the last axis.
    fn gates(&mut self, x: ValueId, from: usize, to: usize) -> Result<ValueId, Refusal> {
        let bounds = [from, to].map(|gate| signed(gate.saturating_mul(self.hidden)));
        let [start, end, axis] = [bounds[0], bounds[1], -1].map(|v| self.constant(Tensor::vector(&[v])));
        self.op(Slice {}, [x, start, end, axis])
    }

    fn activation(
        &mut self,
        kind: ActivationKind,
        x: ValueId,
        alpha: f32,
        beta: f32,
    ) -> Result<ValueId, Refusal> {
        self.op(Activation { kind, alpha: Real(alpha), beta: Real(beta) }, [x])
    }

    /// A nonlinearity of a value that is first kept within the bounds.
    fn apply(&mut self, function: Option<&Function>, x: ValueId) -> Result<ValueId, Refusal> {
        let function = function.ok_or_else(|| Refusal::new("it has too few activations"))?;
        let x = match self.clip {
            Some(clip) => self.activation(ActivationKind::Clip, x, -clip, clip)?,
            None => x,
        };
        self.unbounded(function, x)
    }

    fn unbounded(&mut self, function: &Function, x: ValueId) -> Result<ValueId, Refusal> {
        let Function { name, alpha, beta } = function;
        let (alpha, beta) = (*alpha, *beta);
        let kind = match name.as_str() {
            "tanh" => UnaryKind::Tanh,
            "sigmoid" => UnaryKind::Sigmoid,
            "relu" => UnaryKind::Relu,
            "softsign" => UnaryKind::Softsign,
            "softplus" => UnaryKind::Softplus,
            "leakyrelu" => return self.activation(ActivationKind::LeakyRelu, x, alpha, 0.0),
            "thresholdedrelu" => return self.activation(ActivationKind::ThresholdedRelu, x, alpha, 0.0),
            "elu" => return self.activation(ActivationKind::Elu, x, alpha, 0.0),
            "hardsigmoid" => return self.activation(ActivationKind::HardSigmoid, x, alpha, beta),
            "scaledtanh" => {
                let (alpha, beta) = (self.number(f64::from(alpha)), self.number(f64::from(beta)));
                let inner = self.binary(BinaryKind::Mul, x, beta)?;
                let bent = self.op(Unary { kind: UnaryKind::Tanh }, [inner])?;
                return self.binary(BinaryKind::Mul, bent, alpha);
            }
            _ => {
                let (alpha, beta) = (self.number(f64::from(alpha)), self.number(f64::from(beta)));
                let scaled = self.binary(BinaryKind::Mul, x, alpha)?;
                return self.binary(BinaryKind::Add, scaled, beta);
            }
        };
        self.op(Unary { kind }, [x])
    }

    /// The new states for the projected input `[B, G·H]` and the old ones `[B, H]`.
    fn cell(
        &mut self,
        cell: Cell,
        functions: &[Function],
        x: ValueId,
        states: &[ValueId],
        weights: Weights,
    ) -> Result<Vec<ValueId>, Refusal> {
        let (f, g) = (functions.first(), functions.get(1));
        let &[h, ..] = states else { return Err(Refusal::new("it has no state")) };
        let meet = |body: &mut Self, h, r, bias: Option<ValueId>| {
            let product = body.op(MatMul {}, [h, r])?;
            match bias {
                Some(bias) => body.binary(BinaryKind::Add, product, bias),
                None => Ok(product),
            }
        };
        match cell {
            Cell::Rnn => {
                let state = meet(self, h, weights.r, weights.bias)?;
                let sum = self.binary(BinaryKind::Add, x, state)?;
                Ok(vec![self.apply(f, sum)?])
            }
            Cell::Gru { linear_before_reset } => {
                let part = |body: &mut Self, from, to| {
                    let bias = weights.bias.map(|bias| body.gates(bias, from, to)).transpose()?;
                    Ok::<_, Refusal>((body.gates(weights.r, from, to)?, bias))
                };
                let ((r_gates, b_gates), (r_new, b_new)) = (part(self, 0, 2)?, part(self, 2, 3)?);
                let state = meet(self, h, r_gates, b_gates)?;
                let from_x = self.gates(x, 0, 2)?;
                let sums = self.binary(BinaryKind::Add, from_x, state)?;
                let open = self.apply(f, sums)?;
                let (z, reset) = (self.gates(open, 0, 1)?, self.gates(open, 1, 2)?);
                let recurrent = match linear_before_reset {
                    true => {
                        let state = meet(self, h, r_new, b_new)?;
                        self.binary(BinaryKind::Mul, reset, state)?
                    }
                    false => {
                        let kept = self.binary(BinaryKind::Mul, reset, h)?;
                        meet(self, kept, r_new, b_new)?
                    }
                };
                let from_x = self.gates(x, 2, 3)?;
                let sum = self.binary(BinaryKind::Add, from_x, recurrent)?;
                let new = self.apply(g, sum)?;
                let one = self.number(1.0);
                let rest = self.binary(BinaryKind::Sub, one, z)?;
                let [new, old] =
                    [self.binary(BinaryKind::Mul, rest, new)?, self.binary(BinaryKind::Mul, z, h)?];
                Ok(vec![self.binary(BinaryKind::Add, new, old)?])
            }
            Cell::Lstm { input_forget } => {
                let &[_, c] = states else { return Err(Refusal::new("it has no cell")) };
                let state = meet(self, h, weights.r, weights.bias)?;
                let sums = self.binary(BinaryKind::Add, x, state)?;
                let gate = |body: &mut Self, index: usize, vector: usize, c| {
                    let sum = body.gates(sums, index, index + 1)?;
                    let sum = match weights.peepholes {
                        None => sum,
                        Some(peepholes) => {
                            let peephole = body.gates(peepholes, vector, vector + 1)?;
                            let seen = body.binary(BinaryKind::Mul, peephole, c)?;
                            body.binary(BinaryKind::Add, sum, seen)?
                        }
                    };
                    body.apply(f, sum)
                };
                let input = gate(self, 0, 0, c)?;
                let forget = match input_forget {
                    true => {
                        let one = self.number(1.0);
                        self.binary(BinaryKind::Sub, one, input)?
                    }
                    false => gate(self, 2, 2, c)?,
                };
                let candidate = self.gates(sums, 3, 4)?;
                let candidate = self.apply(g, candidate)?;
                let [kept, added] = [
                    self.binary(BinaryKind::Mul, forget, c)?,
                    self.binary(BinaryKind::Mul, input, candidate)?,
                ];
                let c = self.binary(BinaryKind::Add, kept, added)?;
                let output = gate(self, 1, 1, c)?;
                let shown = self.apply(functions.get(2), c)?;
                Ok(vec![self.binary(BinaryKind::Mul, output, shown)?, c])
            }
        }
    }
}
