//! Which elements along the axes of an operator's operands can only be removed together.

use std::ops::Deref;

use crate::{Dim, InferCx, Mismatch, TensorType};

/// An operand of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operand {
    /// An input, by position.
    Input(usize),
    /// An output, by position.
    Output(usize),
}

/// How the units of a [`Tie`] lie along one axis of an operand: from `start` on, `repeats` times after each other, a
/// run of `width` elements for each unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Along {
    /// The operand.
    pub operand: Operand,
    /// Its axis.
    pub axis: usize,
    /// The first element.
    pub start: usize,
    /// How often the units follow each other: gates of a recurrent layer, groups of a convolution.
    pub repeats: usize,
    /// Elements of a unit that stand side by side: pixels of a channel in a flattened picture.
    pub width: usize,
    /// Whether the operator multiplies these elements by those of another operand and sums over the units: there the
    /// unit ends, and without weights it contributes nothing.
    pub summed: bool,
}

impl Along {
    /// The elements of an axis of an input, one a unit.
    pub fn input(index: usize, axis: usize) -> Self {
        Along { operand: Operand::Input(index), axis, start: 0, repeats: 1, width: 1, summed: false }
    }

    /// The elements of an axis of the first output, one a unit.
    pub fn output(axis: usize) -> Self {
        Along { operand: Operand::Output(0), ..Self::input(0, axis) }
    }

    /// The same, of an operand.
    pub fn of(self, operand: Operand) -> Self {
        Along { operand, ..self }
    }

    /// The same, from an element on.
    pub fn from(self, start: usize) -> Self {
        Along { start, ..self }
    }

    /// The units so often after each other.
    pub fn repeats(self, repeats: usize) -> Self {
        Along { repeats, ..self }
    }

    /// So many elements a unit.
    pub fn width(self, width: usize) -> Self {
        Along { width, ..self }
    }

    /// Elements that are multiplied by others and summed.
    pub fn summed(self) -> Self {
        Along { summed: true, ..self }
    }

    /// The positions of a unit among `units`.
    pub fn positions(&self, unit: usize, units: usize) -> impl Iterator<Item = usize> + use<> {
        let Along { start, repeats, width, .. } = *self;
        (0..repeats).flat_map(move |r| (0..width).map(move |w| start + (r * units + unit) * width + w))
    }
}

/// Elements of several axes that stand and fall together, in units: removing one unit everywhere leaves a network
/// that computes the same as with the unit's outgoing weights at zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tie {
    /// The number of units.
    pub units: usize,
    /// Where they lie.
    pub along: Vec<Along>,
}

/// Ties of a node: of each inner list, exactly one holds. Elements that the ones which hold do not mention cannot be
/// removed.
pub type Choices = Vec<Vec<Tie>>;

/// What [`OpDef::ties`](crate::OpDef::ties) sees of a node, and where it says what is tied.
pub struct TieCx<'a> {
    inputs: InferCx<'a>,
    outputs: Vec<&'a TensorType>,
    choices: Choices,
}

impl<'a> Deref for TieCx<'a> {
    type Target = InferCx<'a>;

    fn deref(&self) -> &InferCx<'a> {
        &self.inputs
    }
}

impl<'a> TieCx<'a> {
    pub(crate) fn new(inputs: InferCx<'a>, outputs: Vec<&'a TensorType>) -> Self {
        TieCx { inputs, outputs, choices: Vec::new() }
    }

    pub(crate) fn finish(self) -> Choices {
        self.choices
    }

    /// The type of an output.
    ///
    /// # Errors
    /// [`Mismatch`] when there is no such output.
    pub fn out(&self, index: usize) -> Result<&'a TensorType, Mismatch> {
        let output = self.outputs.get(index).copied();
        output.ok_or_else(|| Mismatch::new(format!("output {index} is missing")))
    }

    /// The number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// The extent of an operand's axis, where it is known.
    pub fn extent(&self, operand: Operand, axis: usize) -> Option<usize> {
        let ty = match operand {
            Operand::Input(index) => self.opt(index),
            Operand::Output(index) => self.outputs.get(index).copied(),
        };
        ty?.shape.get(axis)?.known()
    }

    /// Ties the units of these axes, the first of which they fill; those of absent operands do not count. Nothing is
    /// tied, so that all elements stay, where an extent is not known or does not fit.
    pub fn tie(&mut self, along: impl IntoIterator<Item = Along>) {
        if let Some(tie) = self.tied(along) {
            self.choices.push(vec![tie]);
        }
    }

    /// As [`TieCx::tie`], of which exactly one holds.
    pub fn tie_one_of(&mut self, alternatives: impl IntoIterator<Item = Vec<Along>>) {
        let ties: Vec<Tie> = alternatives.into_iter().filter_map(|along| self.tied(along)).collect();
        if !ties.is_empty() {
            self.choices.push(ties);
        }
    }

    fn tied(&self, along: impl IntoIterator<Item = Along>) -> Option<Tie> {
        let there = |a: &Along| match a.operand {
            Operand::Input(index) => self.opt(index).is_some(),
            Operand::Output(index) => index < self.outputs.len(),
        };
        let along: Vec<Along> = along.into_iter().filter(there).collect();
        let first = along.first()?;
        let units = self.extent(first.operand, first.axis)?.checked_div(first.repeats * first.width)?;
        let fits = |a: &Along| {
            let extent = self.extent(a.operand, a.axis);
            extent.is_some_and(|extent| a.start + a.repeats * units * a.width <= extent)
        };
        (units > 0 && along.iter().all(fits)).then_some(Tie { units, along })
    }

    /// Ties an axis of an input to one of an output, element by element.
    pub fn same(&mut self, input: usize, input_axis: usize, output: usize, output_axis: usize) {
        let (input, output) =
            (Along::input(input, input_axis), Along::output(output_axis).of(Operand::Output(output)));
        if self.extent(input.operand, input.axis) == self.extent(output.operand, output.axis) {
            self.tie([input, output]);
        }
    }

    /// Ties each axis of the first input that is not `changed` to the same axis of every output.
    ///
    /// # Errors
    /// [`Mismatch`] when there is no input.
    pub fn same_axes(&mut self, changed: impl Fn(usize) -> bool) -> Result<(), Mismatch> {
        for axis in (0..self.ty(0)?.rank()).filter(|&axis| !changed(axis)) {
            let outputs = 0..self.outputs.len();
            let along = outputs.map(|i| Along::output(axis).of(Operand::Output(i)));
            let along: Vec<Along> = std::iter::once(Along::input(0, axis)).chain(along).collect();
            let extent = self.extent(Operand::Input(0), axis);
            if along.iter().all(|a| self.extent(a.operand, axis) == extent) {
                self.tie(along);
            }
        }
        Ok(())
    }

    /// Ties the axes of operands that broadcast by NumPy's rule to those of the first output.
    ///
    /// # Errors
    /// [`Mismatch`] when there is no output.
    pub fn broadcast(&mut self) -> Result<(), Mismatch> {
        let rank = self.out(0)?.rank();
        for axis in 0..rank {
            let extent = self.extent(Operand::Output(0), axis);
            let aligned = |(i, ty): (usize, &Option<&TensorType>)| {
                let own = (axis + (*ty)?.rank()).checked_sub(rank)?;
                (self.extent(Operand::Input(i), own) == extent).then(|| Along::input(i, own))
            };
            let inputs: Vec<Along> = self.types.iter().enumerate().filter_map(aligned).collect();
            self.tie(std::iter::once(Along::output(axis)).chain(inputs));
        }
        Ok(())
    }

    /// Ties the axes of the first input to those of the first output, which has the same elements, row-major, under
    /// another shape. Where an axis became several, or several became one, one of them carries the units.
    ///
    /// # Errors
    /// [`Mismatch`] when an operand is missing.
    pub fn reshaped(&mut self) -> Result<(), Mismatch> {
        let (from, to) = (&self.ty(0)?.shape, &self.out(0)?.shape);
        let (mut first, mut last) = ((0, 0), (from.len(), to.len()));
        while let Some((i, j)) = same_product(from[first.0..].iter(), to[first.1..].iter()) {
            self.regrouped(first.0..first.0 + i, first.1..first.1 + j);
            first = (first.0 + i, first.1 + j);
        }
        let rest = |last: (usize, usize)| {
            same_product(from[first.0..last.0].iter().rev(), to[first.1..last.1].iter().rev())
        };
        while let Some((i, j)) = rest(last) {
            self.regrouped(last.0 - i..last.0, last.1 - j..last.1);
            last = (last.0 - i, last.1 - j);
        }
        Ok(())
    }

    fn regrouped(&mut self, from: std::ops::Range<usize>, to: std::ops::Range<usize>) {
        let wide = |operand: Operand, axes: std::ops::Range<usize>| -> Vec<usize> {
            axes.filter(|&axis| self.extent(operand, axis) != Some(1)).collect()
        };
        let (input, output) = (Operand::Input(0), Operand::Output(0));
        let (from, to) = (wide(input, from), wide(output, to));
        let (whole, part, parts) = match (from.as_slice(), to.as_slice()) {
            (&[a], &[b]) => return self.same(0, a, 0, b),
            (&[a], parts) => (Along::input(0, a), output, parts),
            (parts, &[b]) => (Along::output(b), input, parts),
            _ => return,
        };
        let extents: Option<Vec<usize>> = parts.iter().map(|&axis| self.extent(part, axis)).collect();
        let Some(extents) = extents else { return };
        let alternatives = parts.iter().enumerate().map(|(i, &axis)| {
            let (before, after) = (&extents[..i], &extents[i + 1..]);
            let whole = whole.repeats(before.iter().product()).width(after.iter().product());
            vec![whole, Along::output(axis).of(part)]
        });
        self.tie_one_of(alternatives.collect::<Vec<_>>());
    }
}

/// The fewest leading extents of both shapes that have the same product.
fn same_product<'d>(
    a: impl Iterator<Item = &'d Dim> + Clone,
    b: impl Iterator<Item = &'d Dim> + Clone,
) -> Option<(usize, usize)> {
    /// More axes than networks merge at once.
    const MOST: usize = 8;
    let products = |dims: &mut dyn Iterator<Item = &'d Dim>| -> Vec<Dim> {
        let times = |product: &mut Dim, dim: &Dim| {
            *product = product.clone() * dim.clone();
            Some(product.clone())
        };
        dims.take(MOST).scan(Dim::from(1usize), times).collect()
    };
    let (a, b) = (products(&mut a.clone()), products(&mut b.clone()));
    let pairs = (0..a.len() + b.len()).flat_map(|sum| (0..=sum).map(move |i| (i, sum - i)));
    let mut pairs = pairs.filter(|&(i, j)| i < a.len() && j < b.len());
    pairs.find(|&(i, j)| a[i] == b[j]).map(|(i, j)| (i + 1, j + 1))
}

#[cfg(test)]
mod tests {
    use sora_tensor::Tensor;

    use super::*;
    use crate::case::Gen;
    use crate::ops::Op;
    use crate::{Def, EvalCx, Graph, ValueId};

    /// The tensor without some positions of an axis, or with zeros there.
    fn without(tensor: &Tensor, axis: usize, gone: &[usize], zero: bool) -> Tensor {
        let (extent, values) = (tensor.shape()[axis], tensor.to_f64s());
        let inner: usize = tensor.shape()[axis + 1..].iter().product();
        let at = |i: usize| gone.contains(&(i / inner % extent));
        let mut shape = tensor.shape().to_vec();
        let values: Vec<f64> = match zero {
            true => (0..values.len()).map(|i| if at(i) { 0.0 } else { values[i] }).collect(),
            false => {
                shape[axis] -= gone.len();
                (0..values.len()).filter(|&i| !at(i)).map(|i| values[i]).collect()
            }
        };
        Tensor::from_f64s(tensor.dtype(), &shape, &values).unwrap()
    }

    /// Whatever an operator ties: without a unit of its operands it gives its outputs without the unit, and where units
    /// are summed over, what it gives with zeros in their place.
    #[test]
    fn operators_keep_what_they_promise() {
        let mut checked = std::collections::BTreeMap::new();
        for name in Op::NAMES {
            let mut g = Gen::new(21);
            for case in (0..12).flat_map(|_| Op::cases(name, &mut g)).collect::<Vec<_>>() {
                let (graph, given) = case.graph().unwrap();
                let (_, node) = graph.nodes().next().unwrap();
                let tensor = |id: ValueId| match &graph.value(id).def {
                    Def::Const(tensor) => tensor.clone(),
                    _ => given.iter().find(|(n, _)| *n == graph.value(id).name).unwrap().1.clone(),
                };
                let inputs: Vec<Option<Tensor>> = node.inputs.iter().map(|v| v.map(tensor)).collect();
                for tie in graph.ties(node).into_iter().flatten().flatten().filter(|tie| tie.units > 1) {
                    let tied = check(&graph, &case.op, &inputs, &tie, g.size(0, tie.units - 1));
                    assert_eq!(tied, Ok(()), "{case:?}: {tie:?}");
                    *checked.entry(*name).or_insert(0) += 1;
                }
            }
        }
        for name in ["Conv", "ConvTranspose", "MatMul", "Lstm", "Gru", "Rnn", "Concat", "Reshape", "Resize"] {
            assert!(checked.get(name).is_some_and(|n| *n > 10), "{name}: {checked:?}");
        }
    }

    fn check(
        graph: &Graph,
        op: &Op,
        inputs: &[Option<Tensor>],
        tie: &Tie,
        unit: usize,
    ) -> Result<(), String> {
        let (mut silent, mut cut) = (inputs.to_vec(), inputs.to_vec());
        let along = |operand: Operand| tie.along.iter().filter(move |a| a.operand == operand);
        let gone = |a: &Along| a.positions(unit, tie.units).collect::<Vec<_>>();
        let summed = tie.along.iter().find(|a| a.summed);
        for (i, (silent, cut)) in silent.iter_mut().zip(&mut cut).enumerate() {
            for a in along(Operand::Input(i)) {
                *cut = cut.as_ref().map(|t| without(t, a.axis, &gone(a), false));
                if Some(a) == summed {
                    *silent = silent.as_ref().map(|t| without(t, a.axis, &gone(a), true));
                }
            }
        }
        let eval = |op: &Op, inputs: &[Option<Tensor>]| {
            let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
            op.eval(&EvalCx { inputs: &inputs }).map_err(|e| e.0)
        };
        let mut expected = eval(op, &silent)?;
        for (i, output) in expected.iter_mut().enumerate() {
            for a in along(Operand::Output(i)) {
                *output = without(output, a.axis, &gone(a), false);
            }
        }
        let types: Vec<Option<TensorType>> = cut.iter().map(|t| t.as_ref().map(TensorType::of)).collect();
        let outputs: Vec<TensorType> = expected.iter().map(TensorType::of).collect();
        let types: Vec<Option<&TensorType>> = types.iter().map(Option::as_ref).collect();
        let narrowed = op.narrowed(&types, &outputs.iter().collect::<Vec<_>>());
        // Lists of extents are not the operator's.
        let list = match op {
            Op::Reshape(_) | Op::Expand(_) => Some(1),
            Op::Resize(_) => Some(3),
            _ => None,
        };
        if let Some(Some(tensor)) = list.and_then(|slot| cut.get_mut(slot)) {
            let shape = expected[0].shape();
            if tensor.len() <= shape.len() {
                let extents: Vec<f64> =
                    shape[shape.len() - tensor.len()..].iter().map(|&d| d as f64).collect();
                let changed = !matches!(op, Op::Resize(r) if !r.axes.is_empty());
                if changed {
                    *tensor = Tensor::from_f64s(tensor.dtype(), tensor.shape(), &extents).unwrap();
                }
            }
        }
        let found = eval(&narrowed, &cut)?;
        for (a, b) in found.iter().zip(&expected) {
            let same = |(a, b): (f64, f64)| {
                (a - b).abs() <= 1e-4 * b.abs().max(1.0) || a.is_nan() && b.is_nan() || a == b
            };
            if a.shape() != b.shape() || !a.to_f64s().into_iter().zip(b.to_f64s()).all(same) {
                return Err(format!("{} gives {:?}, expected {:?}", graph.name, a.to_f64s(), b.to_f64s()));
            }
        }
        Ok(())
    }
}
