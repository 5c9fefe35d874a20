//! Random recurrent layers as loops, and loops that are almost such layers.

use sora_ir::case::Gen;
use sora_ir::ops::{
    Binary, BinaryKind, Cast, Concat, Gather, Loop, MatMul, Scan, Shape, Slice, Split, Unary, UnaryKind,
};
use sora_ir::{Dim, Graph, IrError, Op, Subgraph, TensorType, ValueId};
use sora_tensor::{Bool, DType, Tensor};

/// What keeps a loop from being a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    OutputGateOfCell,
    OldCell,
    TwoGates,
    GivenWeights,
    StackedCell,
    EarlyEnd,
    Part,
    TwoSequences,
    TurnedAround,
}

macro_rules! samples {
    ($($(#[$doc:meta])* $name:ident: $fault:ident;)*) => {
        $($(#[$doc])* pub(super) fn $name(g: &mut Gen) -> Result<Graph, IrError> {
            Drawing::new(g, Fault::$fault).graph()
        })*
    };
}

samples! {
    /// One layer or two, as Scan or as Loop.
    layers: None;
    /// An LSTM whose output gate sees the cell.
    miss_output_gate_of_cell: OutputGateOfCell;
    /// An LSTM whose output is that of the cell before the step.
    miss_old_cell: OldCell;
    /// A GRU whose weights of candidate and state do not add up to one.
    miss_two_gates: TwoGates;
    /// Weights that are an input.
    miss_given_weights: GivenWeights;
    /// All values of the cell, which a layer does not give.
    miss_stacked_cell: StackedCell;
    /// A loop that may end before the sequence does.
    miss_early_end: EarlyEnd;
    /// A loop over the beginning of a sequence.
    miss_part: Part;
    /// Gates of different sequences.
    miss_two_sequences: TwoSequences;
    /// Results in the other order than what is read.
    miss_turned_around: TurnedAround;
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Lstm,
    GruBefore,
    GruAfter,
    Rnn,
}

/// A loop under construction.
struct Drawing<'a> {
    g: &'a mut Gen,
    fault: Fault,
    outer: Graph,
    body: Graph,
    /// What the body takes besides its formal inputs.
    captured: Vec<ValueId>,
    count: usize,
}

impl<'a> Drawing<'a> {
    fn new(g: &'a mut Gen, fault: Fault) -> Self {
        let (outer, body) = (Graph::new("sample"), Graph::new("body"));
        Drawing { g, fault, outer, body, captured: Vec::new(), count: 0 }
    }

    fn name(&mut self, base: &str) -> String {
        self.count += 1;
        format!("{base}{}", self.count)
    }

    /// A node of the body.
    fn op<I: Into<Option<ValueId>>>(
        &mut self,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = I>,
    ) -> Result<ValueId, IrError> {
        let name = self.name("n");
        self.body.op(&name, op, inputs)
    }

    fn unary(&mut self, kind: UnaryKind, x: ValueId) -> Result<ValueId, IrError> {
        self.op(Unary { kind }, [x])
    }

    /// A function of two, its operands in either order if it commutes.
    fn binary(&mut self, kind: BinaryKind, a: ValueId, b: ValueId) -> Result<ValueId, IrError> {
        let commutes = matches!(kind, BinaryKind::Add | BinaryKind::Mul | BinaryKind::And);
        let (a, b) = if commutes && self.g.flag() { (b, a) } else { (a, b) };
        self.op(Binary { kind }, [a, b])
    }

    /// A constant of the body, or of the graph around it.
    fn constant(&mut self, tensor: Tensor) -> ValueId {
        let name = self.name("c");
        if self.g.flag() {
            return self.body.constant(&name, tensor);
        }
        let value = self.outer.constant(&name, tensor);
        self.capture(value)
    }

    fn capture(&mut self, value: ValueId) -> ValueId {
        let name = self.name("captured");
        self.captured.push(value);
        self.body.input(&name, self.outer.ty(value).clone())
    }

    fn weights(&mut self, shape: &[usize]) -> ValueId {
        let tensor = self.g.uniform(DType::F32, shape, -0.9, 0.9);
        self.constant(tensor)
    }

    fn product(&mut self, x: ValueId, w: ValueId) -> Result<ValueId, IrError> {
        self.op(MatMul {}, [x, w])
    }

    /// A vector is added, or nothing.
    fn biased(&mut self, x: ValueId, width: usize) -> Result<ValueId, IrError> {
        let shape = self.g.pick(&[vec![width], vec![1, width], vec![1], vec![]]);
        if shape.is_empty() {
            return Ok(x);
        }
        let bias = self.weights(&shape);
        self.binary(BinaryKind::Add, x, bias)
    }

    /// So many different sums of products of the operands, each of `hidden` columns.
    fn sums(
        &mut self,
        operands: &[(ValueId, usize)],
        count: usize,
        hidden: usize,
    ) -> Result<Vec<ValueId>, IrError> {
        let way = self.g.size(0, 2);
        let width = if way == 0 { hidden } else { count * hidden };
        let mut sums = Vec::new();
        while sums.len() < count {
            let mut sum = if way == 1 {
                let joined = self.op(Concat { axis: 1 }, operands.iter().map(|&(x, _)| x))?;
                let depth = operands.iter().map(|&(_, depth)| depth).sum();
                let w = self.weights(&[depth, width]);
                self.product(joined, w)?
            } else {
                let mut sum: Option<ValueId> = None;
                for &(x, depth) in operands {
                    let w = self.weights(&[depth, width]);
                    let product = self.product(x, w)?;
                    let product = self.biased(product, width)?;
                    sum = Some(match sum {
                        Some(sum) => self.binary(BinaryKind::Add, sum, product)?,
                        None => product,
                    });
                }
                sum.expect("one operand at least")
            };
            sum = self.biased(sum, width)?;
            match way {
                0 => sums.push(sum),
                _ => sums = self.cut(sum, count, hidden)?,
            }
        }
        for i in (1..sums.len()).rev() {
            sums.swap(i, self.g.size(0, i));
        }
        Ok(sums)
    }

    /// The columns of each gate.
    fn cut(&mut self, x: ValueId, count: usize, hidden: usize) -> Result<Vec<ValueId>, IrError> {
        let axis = self.g.pick(&[1, -1]);
        if self.g.flag() {
            let sizes = if self.g.flag() { vec![hidden; count] } else { Vec::new() };
            let name = self.name("split");
            return self.body.add(&name, Split { axis, outputs: count, sizes }, [x]);
        }
        let number = |n: usize| i64::try_from(n).expect("a small number");
        let mut parts = Vec::new();
        for i in 0..count {
            let end = if i + 1 == count { i64::MAX } else { number((i + 1) * hidden) };
            let whole = self.g.flag();
            let list = |value: i64, of_rows: i64| if whole { vec![of_rows, value] } else { vec![value] };
            let lists = [list(number(i * hidden), 0), list(end, i64::from(i32::MAX)), list(axis, 0)];
            let mut inputs = vec![x];
            for list in lists {
                inputs.push(self.constant(Tensor::vector(&list)));
            }
            parts.push(self.op(Slice {}, inputs)?);
        }
        Ok(parts)
    }

    /// The states of a cell after a step.
    fn cell(
        &mut self,
        kind: Kind,
        x: &[(ValueId, usize)],
        before: &[ValueId],
        hidden: usize,
    ) -> Result<Vec<ValueId>, IrError> {
        use BinaryKind::{Add, Mul, Sub};
        use UnaryKind::{Sigmoid, Tanh};
        let h = (before[0], hidden);
        let both = [x, &[h]].concat();
        match kind {
            Kind::Rnn => {
                let f = self.g.pick(&[Tanh, UnaryKind::Relu, Sigmoid]);
                let sum = self.sums(&both, 1, hidden)?[0];
                Ok(vec![self.unary(f, sum)?])
            }
            Kind::Lstm => {
                let mut gates = self.sums(&both, 4, hidden)?;
                if self.fault == Fault::OutputGateOfCell {
                    gates[0] = self.binary(Add, gates[0], before[1])?;
                }
                let [o, i, f] = [gates[0], gates[1], gates[2]].map(|gate| self.unary(Sigmoid, gate));
                let (g, old) = (self.unary(Tanh, gates[3])?, before[1]);
                let (new, kept) = (self.binary(Mul, i?, g)?, self.binary(Mul, f?, old)?);
                let c = self.binary(Add, new, kept)?;
                let bounded = self.unary(Tanh, if self.fault == Fault::OldCell { old } else { c })?;
                Ok(vec![self.binary(Mul, o?, bounded)?, c])
            }
            Kind::GruBefore | Kind::GruAfter => {
                let gates = self.sums(&both, 2, hidden)?;
                let (z, r) = (self.unary(Sigmoid, gates[0])?, self.unary(Sigmoid, gates[1])?);
                let sum = if kind == Kind::GruBefore {
                    let reset = self.binary(Mul, r, h.0)?;
                    self.sums(&[x, &[(reset, hidden)]].concat(), 1, hidden)?[0]
                } else {
                    let (of_x, of_h) = (self.sums(x, 1, hidden)?[0], self.sums(&[h], 1, hidden)?[0]);
                    let reset = self.binary(Mul, r, of_h)?;
                    self.binary(Add, of_x, reset)?
                };
                let n = self.unary(Tanh, sum)?;
                let (first, second) = if self.g.flag() { (n, h.0) } else { (h.0, n) };
                let other = if self.fault == Fault::TwoGates { r } else { z };
                if self.fault != Fault::TwoGates && self.g.flag() {
                    let difference = self.binary(Sub, second, first)?;
                    let moved = self.binary(Mul, z, difference)?;
                    return Ok(vec![self.binary(Add, first, moved)?]);
                }
                let one = self.constant(Tensor::scalar(1f32));
                let rest = self.binary(Sub, one, z)?;
                let (a, b) = (self.binary(Mul, rest, first)?, self.binary(Mul, other, second)?);
                Ok(vec![self.binary(Add, a, b)?])
            }
        }
    }

    fn graph(mut self) -> Result<Graph, IrError> {
        let kind = match self.fault {
            Fault::OutputGateOfCell | Fault::OldCell | Fault::StackedCell => Kind::Lstm,
            Fault::TwoGates => self.g.pick(&[Kind::GruBefore, Kind::GruAfter]),
            _ => self.g.pick(&[Kind::Lstm, Kind::GruBefore, Kind::GruAfter, Kind::Rnn]),
        };
        let mut kinds = vec![kind];
        if self.fault == Fault::None && self.g.flag() {
            kinds.push(self.g.pick(&[Kind::Lstm, Kind::GruBefore, Kind::GruAfter, Kind::Rnn]));
        }
        let counted = match self.fault {
            Fault::EarlyEnd | Fault::Part => true,
            Fault::TurnedAround => false,
            _ => self.g.flag(),
        };
        let batch = if self.g.flag() { Dim::symbol("N") } else { Dim::from(self.g.size(1, 3)) };
        let open = self.g.flag() || matches!(self.fault, Fault::Part | Fault::EarlyEnd);
        let all = if open { Dim::symbol("T") } else { Dim::from(self.g.size(1, 4)) };
        let features = self.g.size(1, 4);
        let axis = self.g.size(0, 1);
        let mut shape = vec![batch.clone(), Dim::from(features)];
        shape.insert(axis, all);
        let sequences = if self.fault == Fault::TwoSequences { 2 } else { 1 };
        let whole: Vec<ValueId> = (0..sequences)
            .map(|i| self.outer.input(&format!("x{i}"), TensorType::new(DType::F32, shape.clone())))
            .collect();
        // The initial states, with the extent of each, by cell.
        let (mut initial, mut extents) = (Vec::new(), Vec::new());
        for (i, kind) in kinds.iter().enumerate() {
            let (hidden, states) = (self.g.size(1, 4), if *kind == Kind::Lstm { 2 } else { 1 });
            let ty = TensorType::new(DType::F32, [batch.clone(), Dim::from(hidden)]);
            for state in 0..states {
                initial.push(self.outer.input(&format!("h{i}{state}"), ty.clone()));
            }
            extents.push((hidden, states));
        }
        let signed = i64::try_from(axis).expect("a small number");
        if counted {
            self.counted(&kinds, &whole, signed, &initial, &extents)
        } else {
            self.scan(&kinds, &whole, signed, &initial, &extents)
        }
    }

    /// The states after a step in which the cells read slices.
    fn step(
        &mut self,
        kinds: &[Kind],
        slices: &[ValueId],
        states: &[ValueId],
        extents: &[(usize, usize)],
    ) -> Result<Vec<ValueId>, IrError> {
        let features = |drawing: &Self, v: ValueId| {
            drawing.body.ty(v).shape.last().and_then(Dim::known).expect("a known extent")
        };
        let mut x: Vec<_> = slices.iter().map(|&slice| (slice, features(self, slice))).collect();
        let (mut states, mut after) = (states, Vec::new());
        for (&kind, &(hidden, count)) in kinds.iter().zip(extents) {
            let (own, rest) = states.split_at(count);
            let mut given = self.cell(kind, &x, own, hidden)?;
            if self.fault == Fault::GivenWeights {
                let ty = TensorType::new(DType::F32, [hidden, hidden]);
                let w = self.outer.input("weights", ty);
                let w = self.capture(w);
                given[0] = self.product(given[0], w)?;
            }
            (x, states) = (vec![(given[0], hidden)], rest);
            after.extend(given);
        }
        Ok(after)
    }

    fn scan(
        mut self,
        kinds: &[Kind],
        whole: &[ValueId],
        axis: i64,
        initial: &[ValueId],
        extents: &[(usize, usize)],
    ) -> Result<Graph, IrError> {
        let formal = |body: &mut Graph, i: usize, ty: TensorType| body.input(&format!("formal{i}"), ty);
        let mut states = Vec::new();
        for &value in initial {
            let ty = self.outer.ty(value).clone();
            states.push(formal(&mut self.body, states.len(), ty));
        }
        let mut slices = Vec::new();
        for &value in whole {
            let mut ty = self.outer.ty(value).clone();
            ty.shape.remove(usize::try_from(axis).expect("an axis"));
            slices.push(formal(&mut self.body, states.len() + slices.len(), ty));
        }
        let after = self.step(kinds, &slices, &states, extents)?;
        let stacked = after[after.len() - extents[extents.len() - 1].1];
        let stacked = if self.fault == Fault::StackedCell { after[1] } else { stacked };
        for &value in after.iter().chain([&stacked]) {
            let name = self.name("y");
            self.body.output(&name, value);
        }
        let reverse = self.g.flag();
        let op = Scan {
            body: Subgraph::new(self.body.clone()).map_err(|e| IrError::Unknown(e.0))?,
            states: initial.len(),
            input_axes: vec![self.g.pick(&[axis, axis - 3]); whole.len()],
            input_reverse: vec![reverse; whole.len()],
            output_axes: vec![self.g.pick(&[0, 1, -2, -3])],
            output_reverse: vec![reverse != (self.fault == Fault::TurnedAround)],
        };
        let inputs: Vec<ValueId> = [initial, whole, &self.captured].concat();
        self.finish(op.into(), inputs.into_iter().map(Some).collect(), initial.len())
    }

    fn counted(
        mut self,
        kinds: &[Kind],
        whole: &[ValueId],
        axis: i64,
        initial: &[ValueId],
        extents: &[(usize, usize)],
    ) -> Result<Graph, IrError> {
        let shape = self.outer.op("shape", Shape { start: 0, end: None }, [whole[0]])?;
        let at = self.outer.constant("at", Tensor::scalar(axis));
        let all = self.outer.op("all", Gather { axis: 0 }, [shape, at])?;
        let trips =
            if self.fault == Fault::Part { self.outer.constant("one", Tensor::scalar(1i64)) } else { all };

        let of = |dtype| TensorType::new(dtype, [0usize; 0]);
        let number = self.body.input("number", of(DType::I64));
        let flag = self.body.input("flag", of(DType::Bool));
        let counter = self.g.flag().then(|| self.body.input("counter", of(DType::I32)));
        let mut states = Vec::new();
        for &value in initial {
            let ty = self.outer.ty(value).clone();
            states.push(self.body.input(&format!("formal{}", states.len()), ty));
        }
        let mut slices = Vec::new();
        for &value in whole {
            let x = self.capture(value);
            let at = counter.filter(|_| self.g.flag()).unwrap_or(number);
            slices.push(self.op(Gather { axis }, [x, at])?);
        }
        let after = self.step(kinds, &slices, &states, extents)?;
        let next = match counter {
            Some(counter) => {
                let one = self.constant(Tensor::scalar(1i32));
                Some(self.binary(BinaryKind::Add, counter, one)?)
            }
            None => None,
        };
        let condition = self.condition(number, flag, next, all)?;
        let stacked = after[after.len() - extents[extents.len() - 1].1];
        let stacked = if self.fault == Fault::StackedCell { after[1] } else { stacked };
        for value in [condition].into_iter().chain(next).chain(after).chain([stacked]) {
            let name = self.name("y");
            self.body.output(&name, value);
        }
        let carried = initial.len() + usize::from(next.is_some());
        let body = Subgraph::new(self.body.clone()).map_err(|e| IrError::Unknown(e.0))?;
        let mut inputs = vec![Some(trips), self.begin(all)?];
        if next.is_some() {
            inputs.push(Some(self.outer.constant("zero", Tensor::scalar(0i32))));
        }
        inputs.extend(initial.iter().chain(&self.captured).map(|&v| Some(v)));
        self.finish(Loop { body, carried }.into(), inputs, initial.len())
    }

    /// Whether to go on, as exporters write it.
    fn condition(
        &mut self,
        number: ValueId,
        flag: ValueId,
        next: Option<ValueId>,
        all: ValueId,
    ) -> Result<ValueId, IrError> {
        let one = self.constant(Tensor::scalar(1i64));
        if self.fault == Fault::EarlyEnd {
            return self.binary(BinaryKind::Less, number, one);
        }
        match self.g.size(0, 3) {
            0 => Ok(flag),
            1 => Ok(self.constant(Tensor::scalar(Bool::from(true)))),
            2 => {
                let (after, all) = (self.binary(BinaryKind::Add, number, one)?, self.capture(all));
                self.binary(BinaryKind::Less, after, all)
            }
            _ => {
                let all = self.capture(all);
                let mut parts = Vec::new();
                for count in [Some(number), next].into_iter().flatten() {
                    let [low, high] = [count, all].map(|v| self.op(Cast { to: DType::F32 }, [v]));
                    parts.push(self.binary(BinaryKind::Less, low?, high?)?);
                }
                let [first, last] = [parts[0], parts[parts.len() - 1]];
                self.binary(BinaryKind::And, first, last)
            }
        }
    }

    /// Whether to begin.
    fn begin(&mut self, all: ValueId) -> Result<Option<ValueId>, IrError> {
        Ok(match self.g.size(0, 2) {
            0 => None,
            1 => Some(self.outer.constant("begin", Tensor::scalar(Bool::from(true)))),
            _ => {
                let zero = self.outer.constant("none", Tensor::scalar(0f32));
                let all = self.outer.op("steps", Cast { to: DType::F32 }, [all])?;
                Some(self.outer.op("begin", Binary { kind: BinaryKind::Less }, [zero, all])?)
            }
        })
    }

    /// The graph, whose results are the sequence and some of the final states.
    fn finish(mut self, op: Op, inputs: Vec<Option<ValueId>>, states: usize) -> Result<Graph, IrError> {
        let outputs = self.outer.add("layer", op, inputs)?;
        let (rest, stacked) = outputs.split_at(outputs.len() - 1);
        self.outer.output("y", stacked[0]);
        for (i, &state) in rest[rest.len() - states..].iter().enumerate() {
            if self.g.flag() {
                self.outer.output(&format!("final{i}"), state);
            }
        }
        Ok(self.outer)
    }
}
