//! Cells of recurrent layers, as their equations are written.

use sora_ir::ops::{BinaryKind, Direction, Gru, Lstm, Rnn, RnnActivation, UnaryKind};
use sora_ir::{Op, ValueId};

use super::affine::{Affine, Operand, Product};
use super::steps::{Sequence, State, Steps};

/// What the equations of a cell say.
pub(super) struct Cell<'s> {
    kind: Kind,
    /// By number, the states that the cell updates, the hidden one first.
    pub(super) states: Vec<usize>,
    /// In the order of the core operator.
    pub(super) gates: Vec<Gate<'s>>,
}

enum Kind {
    Lstm,
    Gru { linear_before_reset: bool },
    Rnn(RnnActivation),
}

/// A gate, before its nonlinearity.
pub(super) struct Gate<'s> {
    pub(super) sum: Affine<'s>,
    /// What stands for the state in it.
    pub(super) state: ValueId,
    /// What is multiplied by the reset gate and then added.
    pub(super) reset: Option<Affine<'s>>,
}

impl Gate<'_> {
    pub(super) fn products(&self) -> impl Iterator<Item = &Product<'_>> {
        self.sum.products.iter().chain(self.reset.iter().flat_map(|reset| &reset.products))
    }
}

impl Cell<'_> {
    /// The core operator.
    pub(super) fn op(&self, hidden: usize, direction: Direction) -> Op {
        match self.kind {
            Kind::Lstm => Lstm { hidden, direction, quantize_state: false }.into(),
            Kind::Gru { linear_before_reset } => {
                Gru { hidden, direction, linear_before_reset, quantize_state: false }.into()
            }
            Kind::Rnn(activation) => Rnn { hidden, direction, activation }.into(),
        }
    }

    /// The sequence that the cell reads, and its features; `None` where it reads several, or anything but its state.
    pub(super) fn sequence(&self) -> Option<(Sequence, usize)> {
        let mut found = None;
        for gate in &self.gates {
            for product in gate.products() {
                match product.operand {
                    Operand::Slice(sequence) => {
                        let read = (sequence, product.depth);
                        (*found.get_or_insert(read) == read).then_some(())?;
                    }
                    Operand::Value(value) => (value == gate.state).then_some(())?,
                }
            }
        }
        found
    }
}

impl Steps<'_> {
    /// The cell whose hidden state this is, with what it carries besides.
    pub(super) fn cell(&self, hidden: usize, free: &[usize]) -> Option<Cell<'_>> {
        let others = free.iter().filter(|&&other| other != hidden);
        let lstm = others.filter_map(|&cell| self.lstm(hidden, cell)).next();
        lstm.or_else(|| self.gru(hidden)).or_else(|| self.rnn(hidden))
    }

    fn gate(&self, value: ValueId, state: ValueId) -> Option<Gate<'_>> {
        Some(Gate { sum: self.affine(value)?, state, reset: None })
    }

    /// The argument of a function, and the other factor, for each way to read a product so.
    fn factors(&self, product: ValueId, kind: UnaryKind) -> impl Iterator<Item = (ValueId, ValueId)> {
        let factors = self.binary(product, BinaryKind::Mul);
        let ways = factors.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]);
        ways.filter_map(move |(a, b)| Some((self.unary(a, kind)?, b)))
    }

    /// `c' = σ(f) · c + σ(i) · tanh(g)`, `h' = σ(o) · tanh(c')`.
    fn lstm(&self, hidden: usize, cell: usize) -> Option<Cell<'_>> {
        let (h, c): (&State, &State) = (self.states.get(hidden)?, self.states.get(cell)?);
        let mut outputs = self.factors(h.after, UnaryKind::Sigmoid);
        let (output, _) = outputs.find(|&(_, of)| self.unary(of, UnaryKind::Tanh) == Some(c.after))?;
        let (a, b) = self.binary(c.after, BinaryKind::Add)?;
        let (input, forget, candidate) = [(a, b), (b, a)].into_iter().find_map(|(kept, new)| {
            let (forget, _) = self.factors(kept, UnaryKind::Sigmoid).find(|&(_, of)| of == c.before)?;
            let mut news = self.factors(new, UnaryKind::Sigmoid);
            let (input, candidate) =
                news.find_map(|(gate, of)| Some((gate, self.unary(of, UnaryKind::Tanh)?)))?;
            Some((input, forget, candidate))
        })?;
        let gates = [input, output, forget, candidate].map(|gate| self.gate(gate, h.before));
        let gates = gates.into_iter().collect::<Option<_>>()?;
        Some(Cell { kind: Kind::Lstm, states: vec![hidden, cell], gates })
    }

    /// `h' = (1 - σ(z)) · n + σ(z) · h`, the weights of n and h perhaps exchanged.
    fn gru(&self, hidden: usize) -> Option<Cell<'_>> {
        let h = self.states.get(hidden)?;
        let (a, b) = self.binary(h.after, BinaryKind::Add)?;
        let blends = [(a, b), (b, a)].into_iter().flat_map(|(a, b)| self.blends(a, b));
        let (z, candidate, negated) = blends.into_iter().find_map(|(z, first, second)| match () {
            () if second == h.before => Some((z, first, false)),
            () if first == h.before => Some((z, second, true)),
            () => None,
        })?;
        let mut z = self.gate(z, h.before)?;
        if negated {
            z.sum = z.sum.negated();
        }
        let candidate = self.unary(candidate, UnaryKind::Tanh)?;
        let (kind, r, n) =
            self.reset_before(candidate, h.before).or_else(|| self.reset_after(candidate, h.before))?;
        let gates = vec![z, self.gate(r, h.before)?, n];
        Some(Cell { kind, states: vec![hidden], gates })
    }

    /// The readings of `a + b` as `(1 - σ(z)) · x + σ(z) · y`: z, x, y.
    fn blends(&self, a: ValueId, b: ValueId) -> Vec<(ValueId, ValueId, ValueId)> {
        let mut found = Vec::new();
        let one = |v: ValueId| self.constant(v).is_some_and(|t| t.len() == 1 && t.to_f64s() == [1.0]);
        for (z, y) in self.factors(b, UnaryKind::Sigmoid) {
            // x + σ(z) · (y - x)
            if let Some((y, x)) = self.binary(y, BinaryKind::Sub)
                && x == a
            {
                found.push((z, x, y));
            }
            let Some((p, q)) = self.binary(a, BinaryKind::Mul) else { continue };
            for (rest, x) in [(p, q), (q, p)] {
                let of_z = self.binary(rest, BinaryKind::Sub).filter(|&(unit, _)| one(unit));
                if of_z.and_then(|(_, gate)| self.unary(gate, UnaryKind::Sigmoid)) == Some(z) {
                    found.push((z, x, y));
                }
            }
        }
        found
    }

    /// A candidate `W x + R (σ(r) · h)`.
    fn reset_before(&self, candidate: ValueId, h: ValueId) -> Option<(Kind, ValueId, Gate<'_>)> {
        let sum = self.affine(candidate)?;
        let (state, r) = sum.products.iter().find_map(|product| {
            let Operand::Value(state) = product.operand else { return None };
            let (r, _) = self.factors(state, UnaryKind::Sigmoid).find(|&(_, of)| of == h)?;
            Some((state, r))
        })?;
        Some((Kind::Gru { linear_before_reset: false }, r, Gate { sum, state, reset: None }))
    }

    /// A candidate `W x + σ(r) · (R h + bias)`.
    fn reset_after(&self, candidate: ValueId, h: ValueId) -> Option<(Kind, ValueId, Gate<'_>)> {
        let (a, b) = self.binary(candidate, BinaryKind::Add)?;
        let of = |operand| matches!(operand, Operand::Value(value) if value == h);
        [(a, b), (b, a)].into_iter().find_map(|(x, product)| {
            let sum = self.affine(x).filter(|sum| !sum.products.iter().any(|p| of(p.operand)))?;
            let mut ways = self.factors(product, UnaryKind::Sigmoid);
            let (r, reset) = ways.find_map(|(r, rest)| Some((r, self.affine(rest)?)))?;
            reset.products.iter().all(|p| of(p.operand)).then_some(())?;
            let gate = Gate { sum, state: h, reset: Some(reset) };
            Some((Kind::Gru { linear_before_reset: true }, r, gate))
        })
    }

    /// `h' = f(W x + R h)`.
    fn rnn(&self, hidden: usize) -> Option<Cell<'_>> {
        let h = self.states.get(hidden)?;
        let functions = [
            (UnaryKind::Tanh, RnnActivation::Tanh),
            (UnaryKind::Relu, RnnActivation::Relu),
            (UnaryKind::Sigmoid, RnnActivation::Sigmoid),
        ];
        let (sum, activation) =
            functions.into_iter().find_map(|(kind, f)| Some((self.unary(h.after, kind)?, f)))?;
        let gates = vec![self.gate(sum, h.before)?];
        Some(Cell { kind: Kind::Rnn(activation), states: vec![hidden], gates })
    }
}
