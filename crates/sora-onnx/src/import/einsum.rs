//! Einsum as diagonals, sums, and products of two operands at a time.

use sora_ir::ValueId;
use sora_ir::ops::{BinaryKind, Concat, GatherNd, MatMul, Reduce, ReduceKind, Reshape};
use sora_tensor::Tensor;

use super::node::{Built, NodeCx};
use super::rows::{Row, onnx};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[onnx("Einsum", einsum)];

/// What an axis is called: a letter of the equation, or the position from the end among the axes of an ellipsis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Ellipsis(usize),
    Letter(char),
}

/// An operand with what its axes are called.
struct Operand {
    value: ValueId,
    labels: Vec<Label>,
}

/// A term of an equation: the letters before and after its ellipsis, if it has one.
fn parse(term: &str) -> Result<(Vec<Label>, Option<Vec<Label>>), Refusal> {
    let letters = |part: &str| {
        let letter = |c: char| match c.is_ascii_alphabetic() {
            true => Ok(Label::Letter(c)),
            false => Err(Refusal::new(format!("`{c}` has no meaning in its equation"))),
        };
        part.chars().map(letter).collect::<Result<Vec<_>, _>>()
    };
    match term.split_once("...") {
        Some((before, after)) => Ok((letters(before)?, Some(letters(after)?))),
        None => Ok((letters(term)?, None)),
    }
}

/// The labels of `count` axes of an ellipsis, first axis first.
fn ellipsis(count: usize) -> impl Iterator<Item = Label> {
    (0..count).rev().map(Label::Ellipsis)
}

/// The inputs and the labels of the result.
fn read(cx: &NodeCx) -> Result<(Vec<Operand>, Vec<Label>), Refusal> {
    let equation: String = cx.text("equation", "").chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation.as_str(), None),
    };
    let inputs = cx.all_inputs()?;
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != inputs.len() {
        return Err(Refusal::new(format!(
            "`{equation}` has {} terms for {} inputs",
            terms.len(),
            inputs.len()
        )));
    }
    let (mut operands, mut widest) = (Vec::new(), 0);
    for (term, value) in terms.into_iter().zip(inputs) {
        let (before, after) = parse(term)?;
        let given = before.len() + after.as_ref().map_or(0, Vec::len);
        let spare = cx.rank(value).checked_sub(given).filter(|&spare| spare == 0 || after.is_some());
        let spare = spare
            .ok_or_else(|| Refusal::new(format!("`{term}` does not name the axes of {}", cx.ty(value))))?;
        widest = widest.max(spare);
        let labels = before.into_iter().chain(ellipsis(spare)).chain(after.unwrap_or_default()).collect();
        operands.push(Operand { value, labels });
    }
    let all = || operands.iter().flat_map(|operand| &operand.labels);
    let result: Vec<Label> = match right {
        Some(term) => {
            let (before, after) = parse(term)?;
            let spare = if after.is_some() { widest } else { 0 };
            before.into_iter().chain(ellipsis(spare)).chain(after.unwrap_or_default()).collect()
        }
        None => {
            let once = |label: &Label| all().filter(|other| *other == label).count() == 1;
            let mut letters: Vec<Label> =
                all().filter(|l| matches!(l, Label::Letter(_)) && once(l)).copied().collect();
            letters.sort_unstable();
            ellipsis(widest).chain(letters).collect()
        }
    };
    let dropped = all().any(|label| matches!(label, Label::Ellipsis(_)) && !result.contains(label));
    let unknown = result.iter().any(|label| all().all(|other| other != label));
    let twice = result.iter().enumerate().any(|(i, label)| result.iter().skip(i + 1).any(|l| l == label));
    match dropped || unknown || twice {
        true => Err(Refusal::new(format!("the result of `{equation}` does not follow from its terms"))),
        false => Ok((operands, result)),
    }
}

fn einsum(cx: &mut NodeCx) -> Built {
    let (operands, result) = read(cx)?;
    let mut rest = operands.into_iter();
    let Some(mut product) = rest.next() else { return Err(Refusal::new("it has no input")) };
    loop {
        // What is needed further on; everything else is summed as soon as it can be.
        let needed: Vec<Label> =
            result.iter().chain(rest.as_slice().iter().flat_map(|o| &o.labels)).copied().collect();
        product = distinct(cx, product)?;
        product = summed(cx, product, &needed)?;
        let Some(next) = rest.next() else { break };
        let next = distinct(cx, next)?;
        let later: Vec<Label> =
            result.iter().chain(rest.as_slice().iter().flat_map(|o| &o.labels)).copied().collect();
        let here: Vec<Label> = later.iter().chain(&product.labels).copied().collect();
        let next = summed(cx, next, &here)?;
        product = multiplied(cx, product, next, &later)?;
    }
    Ok(vec![ordered(cx, product, &result)?.value])
}

/// The operand with the axes in this order.
fn ordered(cx: &mut NodeCx, operand: Operand, labels: &[Label]) -> Result<Operand, Refusal> {
    let perm: Vec<usize> =
        labels.iter().filter_map(|label| operand.labels.iter().position(|l| l == label)).collect();
    if perm.iter().copied().eq(0..operand.labels.len()) {
        return Ok(operand);
    }
    Ok(Operand { value: cx.transpose(operand.value, &perm)?, labels: labels.to_vec() })
}

/// The operand with the diagonal of axes that have one label as one axis.
fn distinct(cx: &mut NodeCx, mut operand: Operand) -> Result<Operand, Refusal> {
    let repeated = |labels: &[Label]| {
        let pair = |(i, label)| Some((i, i + 1 + labels.get(i + 1..)?.iter().position(|l| l == label)?));
        labels.iter().enumerate().find_map(pair)
    };
    while let Some((first, second)) = repeated(&operand.labels) {
        let others = (0..operand.labels.len()).filter(|&axis| axis != first && axis != second);
        let perm: Vec<usize> = [first, second].into_iter().chain(others).collect();
        let mut labels: Vec<Label> =
            perm.iter().filter_map(|&axis| operand.labels.get(axis).copied()).collect();
        labels.remove(0);
        let pairs = cx.transpose(operand.value, &perm)?;
        let extent = cx.extent(pairs, 0)?;
        let places = cx.count_to(extent)?;
        let places = cx.unsqueeze(places, &[1])?;
        let places = cx.step("places", Concat { axis: 1 }, [places, places])?;
        let value = cx.step("diagonal", GatherNd { batch_dims: 0 }, [pairs, places])?;
        operand = Operand { value, labels };
    }
    Ok(operand)
}

/// The operand summed over the axes that nothing needs.
fn summed(cx: &mut NodeCx, operand: Operand, needed: &[Label]) -> Result<Operand, Refusal> {
    let (kept, lost): (Vec<_>, Vec<_>) =
        operand.labels.into_iter().enumerate().partition(|(_, label)| needed.contains(label));
    let axes: Vec<i64> = lost.into_iter().map(|(axis, _)| signed(axis)).collect();
    let labels = kept.into_iter().map(|(_, label)| label).collect();
    let value = match axes.is_empty() {
        true => operand.value,
        false => cx.step("sum", Reduce { kind: ReduceKind::Sum, axes, keep_dims: false }, [operand.value])?,
    };
    Ok(Operand { value, labels })
}

/// The product of two operands, summed over the axes of both that are not needed later.
fn multiplied(cx: &mut NodeCx, a: Operand, b: Operand, later: &[Label]) -> Result<Operand, Refusal> {
    let shared = |label: &&Label| b.labels.contains(label);
    let (both, only_a): (Vec<Label>, Vec<Label>) = a.labels.iter().partition(shared);
    let (batch, inner): (Vec<Label>, Vec<Label>) = both.into_iter().partition(|label| later.contains(label));
    let only_b: Vec<Label> = b.labels.iter().filter(|label| !a.labels.contains(label)).copied().collect();
    let labels = [batch.clone(), only_a.clone(), only_b.clone()].concat();
    if inner.is_empty() {
        let (a, b) = (aligned(cx, a, &labels)?, aligned(cx, b, &labels)?);
        return Ok(Operand { value: cx.binary(BinaryKind::Mul, a, b)?, labels });
    }
    let a = ordered(cx, a, &[batch.clone(), only_a.clone(), inner.clone()].concat())?;
    let b = ordered(cx, b, &[batch.clone(), inner.clone(), only_b.clone()].concat())?;
    let (shared, rows, terms, columns) = (batch.len(), only_a.len(), inner.len(), only_b.len());
    let left = merged(cx, a.value, shared, rows, terms)?;
    let right = merged(cx, b.value, shared, terms, columns)?;
    let product = cx.step("matmul", MatMul {}, [left, right])?;
    if (rows, columns) == (1, 1) {
        return Ok(Operand { value: product, labels });
    }
    let mut extents = Vec::new();
    for axis in 0..shared {
        extents.push(cx.extent(product, axis)?);
    }
    for axis in shared..shared + rows {
        extents.push(cx.extent(a.value, axis)?);
    }
    for axis in shared + terms..shared + terms + columns {
        extents.push(cx.extent(b.value, axis)?);
    }
    Ok(Operand { value: reshaped(cx, product, extents)?, labels })
}

/// The value with the axes in this order, and one of extent 1 for every label that it does not have.
fn aligned(cx: &mut NodeCx, operand: Operand, labels: &[Label]) -> Result<ValueId, Refusal> {
    let own: Vec<Label> = labels.iter().filter(|label| operand.labels.contains(label)).copied().collect();
    let missing = labels.iter().enumerate().filter(|(_, label)| !own.contains(label));
    let missing: Vec<i64> = missing.map(|(axis, _)| signed(axis)).collect();
    let operand = ordered(cx, operand, &own)?;
    if missing.is_empty() { Ok(operand.value) } else { cx.unsqueeze(operand.value, &missing) }
}

/// The value with the `first` axes after the `batch` ones as one, and the `second` axes after those as one.
fn merged(
    cx: &mut NodeCx,
    x: ValueId,
    batch: usize,
    first: usize,
    second: usize,
) -> Result<ValueId, Refusal> {
    if (first, second) == (1, 1) {
        return Ok(x);
    }
    let mut extents = Vec::new();
    for axis in 0..batch {
        extents.push(cx.extent(x, axis)?);
    }
    for (from, count) in [(batch, first), (batch + first, second)] {
        let mut product = None;
        for axis in from..from + count {
            let extent = cx.extent(x, axis)?;
            product = Some(match product {
                Some(so_far) => cx.binary(BinaryKind::Mul, so_far, extent)?,
                None => extent,
            });
        }
        extents.push(product.unwrap_or_else(|| cx.make_ints("one", &[1])));
    }
    reshaped(cx, x, extents)
}

/// The value under a shape of these extents.
fn reshaped(cx: &mut NodeCx, x: ValueId, extents: Vec<ValueId>) -> Result<ValueId, Refusal> {
    let shape = match extents.is_empty() {
        true => cx.make("shape", Tensor::vector::<i64>(&[])),
        false => cx.step("shape", Concat { axis: 0 }, extents)?,
    };
    cx.step("reshape", Reshape { allow_zero: true }, [x, shape])
}
