//! What gates are before their nonlinearity: products with constants, and constants.

use sora_ir::ops::{BinaryKind, UnaryKind};
use sora_ir::{Op, ValueId, resolve_axis};
use sora_tensor::Tensor;

use super::steps::{Sequence, Steps};
use crate::Term;
use crate::view::input;

/// Values that are looked at to understand a cell, at most.
const MOST_VISITS: usize = 4000;

/// Bounds of a Slice this far out mean the end of the axis.
const FAR: i64 = i32::MAX as i64;

/// The left side of a product: `[batch, depth]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Operand {
    /// A slice of a sequence.
    Slice(Sequence),
    /// A value of the body.
    Value(ValueId),
}

/// Columns of a product with a constant.
#[derive(Clone, Copy)]
pub(super) struct Product<'s> {
    pub(super) operand: Operand,
    pub(super) depth: usize,
    /// `[rows, columns]`, and where the product begins in it.
    matrix: &'s Tensor,
    row: usize,
    column: usize,
}

/// The sum of products and constants, `[batch, width]`, times a sign.
#[derive(Clone)]
pub(super) struct Affine<'s> {
    pub(super) width: usize,
    pub(super) products: Vec<Product<'s>>,
    /// Vectors, or single numbers, and where the columns begin in them.
    constants: Vec<(&'s Tensor, usize)>,
    sign: f64,
}

impl<'s> Affine<'s> {
    pub(super) fn negated(self) -> Self {
        Affine { sign: -self.sign, ..self }
    }

    fn plus(mut self, other: Affine<'s>) -> Self {
        self.products.extend(other.products);
        self.constants.extend(other.constants);
        self
    }

    fn columns(mut self, first: usize, width: usize) -> Option<Self> {
        (first + width <= self.width).then_some(())?;
        self.products.iter_mut().for_each(|product| product.column += first);
        self.constants.iter_mut().for_each(|(_, at)| *at += first);
        Some(Affine { width, ..self })
    }

    /// Adds the weights of one operand to `[width, depth]`.
    pub(super) fn weights(&self, operand: Operand, depth: usize, out: &mut [f64]) {
        for product in self.products.iter().filter(|product| product.operand == operand) {
            let (values, columns) = (product.matrix.to_f64s(), product.matrix.shape()[1]);
            for (unit, row) in out.chunks_exact_mut(depth).enumerate() {
                for (k, slot) in row.iter_mut().enumerate() {
                    *slot += self.sign * values[(product.row + k) * columns + product.column + unit];
                }
            }
        }
    }

    /// Adds the constants to `[width]`.
    pub(super) fn bias(&self, out: &mut [f64]) {
        for (vector, first) in &self.constants {
            let values = vector.to_f64s();
            for (unit, slot) in out.iter_mut().enumerate() {
                *slot += self.sign * if values.len() == 1 { values[0] } else { values[first + unit] };
            }
        }
    }
}

impl Steps<'_> {
    /// The columns of a value of the body, `[batch, columns]`.
    pub(super) fn width(&self, value: ValueId) -> Option<usize> {
        match self.body.ty(value).shape.as_slice() {
            [_, width] => width.known(),
            _ => None,
        }
    }

    /// A value as a sum of products and constants.
    pub(super) fn affine(&self, value: ValueId) -> Option<Affine<'_>> {
        self.visits.set(self.visits.get() + 1);
        (self.visits.get() < MOST_VISITS).then_some(())?;
        let width = self.width(value).filter(|_| self.body.ty(value).dtype.is_float())?;
        if let Some(&sequence) = self.slices.get(&value) {
            return self.multiplied_before(sequence, width);
        }
        let (_, node, slot) = self.body.producer(value)?;
        let found = match &node.op {
            Op::Unary(op) if op.kind == UnaryKind::Identity => self.affine(input(node, 0)?),
            Op::MatMul(_) => self.product(input(node, 0)?, input(node, 1)?),
            Op::Binary(op) if op.kind == BinaryKind::Add => {
                let (a, b) = (input(node, 0)?, input(node, 1)?);
                match (self.vector(a, width), self.vector(b, width)) {
                    (None, None) => Some(self.affine(a)?.plus(self.affine(b)?)),
                    (Some(constant), None) => Some(self.affine(b)?.plus(constant)),
                    (None, Some(constant)) => Some(self.affine(a)?.plus(constant)),
                    _ => None,
                }
            }
            Op::Split(op) => {
                let x = input(node, 0)?;
                (resolve_axis(op.axis, 2) == Ok(1)).then_some(())?;
                let before = node.outputs.get(..slot)?.iter().map(|&v| self.width(v));
                self.affine(x)?.columns(before.sum::<Option<usize>>()?, width)
            }
            Op::Slice(_) => {
                let x = input(node, 0)?;
                let first = self.first_column(node, self.width(x)?)?;
                self.affine(x)?.columns(first, width)
            }
            _ => None,
        };
        found.filter(|affine| affine.width == width)
    }

    /// A constant that is added to every row of `width` columns.
    fn vector(&self, value: ValueId, width: usize) -> Option<Affine<'_>> {
        self.constant(value).and_then(|vector| constant_row(vector, width))
    }

    /// The first column that a Slice of whole columns takes.
    fn first_column(&self, node: &sora_ir::Node, width: usize) -> Option<usize> {
        let list = |slot: usize| self.constant(input(node, slot)?).map(Tensor::to_i64s);
        let (starts, ends) = (list(1)?, list(2)?);
        let axes = if input(node, 3).is_some() { list(3)? } else { (0..).take(starts.len()).collect() };
        let steps = if input(node, 4).is_some() { list(4)? } else { vec![1; starts.len()] };
        let mut first = 0;
        for (((&start, &end), &axis), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
            (step == 1).then_some(())?;
            match resolve_axis(axis, 2).ok()? {
                0 => (start == 0 && end >= FAR).then_some(())?,
                _ if start < 0 => first = width.checked_sub(usize::try_from(start.checked_neg()?).ok()?)?,
                _ => first = usize::try_from(start).ok()?,
            }
        }
        Some(first)
    }

    /// The product of a slice, a state, or several of them side by side, with a constant matrix.
    fn product(&self, left: ValueId, right: ValueId) -> Option<Affine<'_>> {
        let matrix = self.constant(right)?;
        let &[rows, width] = matrix.shape() else { return None };
        let (mut row, mut products) = (0, Vec::new());
        for value in self.side_by_side(left) {
            let depth = self.width(value)?;
            let slice = self.slices.get(&value).copied();
            let operand = slice.map_or(Operand::Value(value), Operand::Slice);
            products.push(Product { operand, depth, matrix, row, column: 0 });
            row += depth;
        }
        (row == rows).then_some(Affine { width, products, constants: Vec::new(), sign: 1.0 })
    }

    /// The values that are joined along the columns.
    fn side_by_side(&self, value: ValueId) -> Vec<ValueId> {
        match self.body.producer(value) {
            Some((_, node, _)) if !self.slices.contains_key(&value) => match &node.op {
                Op::Concat(op) if resolve_axis(op.axis, self.body.ty(value).rank()) == Ok(1) => {
                    node.inputs.iter().flatten().copied().collect()
                }
                _ => vec![value],
            },
            _ => vec![value],
        }
    }

    /// A slice of a product that was computed for all steps in front of the loop.
    fn multiplied_before(&self, sequence: Sequence, width: usize) -> Option<Affine<'_>> {
        let Term::Old(whole) = sequence.values else { return None };
        let graph = self.view.graph;
        let (_, node, _) = graph.producer(whole)?;
        let (product, constants) = match &node.op {
            Op::Binary(op) if op.kind == BinaryKind::Add => {
                let (a, b) = (input(node, 0)?, input(node, 1)?);
                let row = |v| self.view.constant(v).and_then(|vector| constant_row(vector, width));
                let (product, added) = row(b).map(|row| (a, row)).or(row(a).map(|row| (b, row)))?;
                (graph.producer(product)?.1, added.constants)
            }
            _ => (node, Vec::new()),
        };
        let Op::MatMul(_) = product.op else { return None };
        let (x, matrix) = (input(product, 0)?, self.view.constant(input(product, 1)?)?);
        let depth = graph.ty(x).shape.last()?.known()?;
        (graph.ty(x).rank() == 3 && matrix.shape() == [depth, width]).then_some(())?;
        let operand = Operand::Slice(Sequence { values: Term::Old(x), ..sequence });
        let products = vec![Product { operand, depth, matrix, row: 0, column: 0 }];
        Some(Affine { width, products, constants, sign: 1.0 })
    }
}

/// A constant that is added to every row of `width` columns.
fn constant_row(vector: &Tensor, width: usize) -> Option<Affine<'_>> {
    let row = vector.len() == 1 || vector.len() == width && vector.shape().last() == Some(&width);
    let constants = vec![(vector, 0)];
    row.then_some(Affine { width, products: Vec::new(), constants, sign: 1.0 })
}
