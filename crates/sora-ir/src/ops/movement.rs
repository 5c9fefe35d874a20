//! What the operators that move elements without computing share.

use sora_tensor::{DType, Tensor};

use super::{for_each_index, strides};
use crate::case::{Arg, Gen};
use crate::op::resolve_axis;
use crate::{Dim, InferCx, Mismatch, TensorType, ensure};

/// The highest rank that an operator may give: far above what networks have, and low enough that a hostile
/// file cannot make shapes grow without bound.
pub(crate) const MAX_RANK: usize = 64;

/// The longest list of elements that shape arithmetic follows.
pub(crate) const MAX_CONTENT: usize = 64;

/// A tensor put together from runs of others of the same dtype.
///
/// For every index of the first `visited` axes, in row-major order, `source` names a tensor and the offset in
/// elements where the run over the remaining axes starts; `None` leaves the run zero.
///
/// # Errors
/// [`Mismatch`] when memory does not suffice for the result.
pub(crate) fn assemble<'a>(
    dtype: DType,
    shape: &[usize],
    visited: usize,
    mut source: impl FnMut(&[usize]) -> Option<(&'a Tensor, usize)>,
) -> Result<Tensor, Mismatch> {
    let mut out = Tensor::zeros(dtype, shape)?;
    if out.is_empty() {
        return Ok(out);
    }
    let (outer, inner) = shape.split_at(visited);
    let run = inner.iter().product::<usize>() * dtype.size();
    let mut runs = out.bytes_mut().chunks_exact_mut(run);
    for_each_index(outer, |index| {
        if let (Some(target), Some((tensor, offset))) = (runs.next(), source(index)) {
            let start = offset * dtype.size();
            target.copy_from_slice(&tensor.bytes()[start..start + run]);
        }
    });
    Ok(out)
}

/// The offset of `index` under these strides, which may be more than the index has axes.
pub(crate) fn offset(index: &[usize], strides: &[usize]) -> usize {
    index.iter().zip(strides).map(|(i, stride)| i * stride).sum()
}

/// As [`assemble`] from one tensor, whose offset is that of `index` in `x` for a mapping that keeps the rank.
pub(crate) fn remap(
    x: &Tensor,
    shape: &[usize],
    visited: usize,
    map: impl Fn(usize, usize) -> usize,
) -> Result<Tensor, Mismatch> {
    let strides = strides(x.shape());
    assemble(x.dtype(), shape, visited, |index| {
        let at = index.iter().zip(&strides).enumerate().map(|(axis, (&i, stride))| map(axis, i) * stride);
        Some((x, at.sum()))
    })
}

/// The number of leading axes up to the last one for which `moved` holds: the rest are copied in runs.
pub(crate) fn leading(rank: usize, moved: impl Fn(usize) -> bool) -> usize {
    (0..rank).rev().find(|&axis| moved(axis)).map_or(0, |axis| axis + 1)
}

/// The extent of an input that lists integers.
///
/// # Errors
/// [`Mismatch`] unless the input is there, of integers, and of rank 1.
pub(crate) fn list_extent<'a>(cx: &InferCx<'a>, index: usize) -> Result<&'a Dim, Mismatch> {
    let ty = cx.ty(index)?;
    ensure!(ty.dtype.is_int() && ty.rank() == 1, "input {index} must be a list of integers, found {ty}");
    Ok(&ty.shape[0])
}

/// The rank that a list of extents describes.
///
/// # Errors
/// [`Mismatch`] when it is not known or above [`MAX_RANK`], or the input is no list.
pub(crate) fn described_rank(cx: &InferCx, index: usize) -> Result<usize, Mismatch> {
    let extent = list_extent(cx, index)?;
    match extent.known() {
        Some(rank) if rank <= MAX_RANK => Ok(rank),
        Some(rank) => Err(Mismatch::new(format!("a rank of {rank} is above the limit of {MAX_RANK}"))),
        None => {
            Err(Mismatch::new(format!("input {index} has {extent} elements, which leaves the rank open")))
        }
    }
}

/// The elements of an integer input where all are numbers.
pub(crate) fn numbers(cx: &InferCx, index: usize) -> Option<Vec<i64>> {
    cx.content(index)?.iter().map(Dim::constant).collect()
}

/// Whether a tensor of this type has, or may have, exactly one element.
pub(crate) fn is_single(ty: &TensorType) -> bool {
    ty.shape.iter().all(|dim| dim.compatible(&Dim::from(1usize)))
}

/// Resolves axes, of which none may occur twice.
///
/// # Errors
/// [`Mismatch`] naming the axis.
pub(crate) fn distinct_axes(axes: &[i64], rank: usize) -> Result<Vec<usize>, Mismatch> {
    let mut seen = vec![false; rank];
    let resolve = |&axis: &i64| {
        let resolved = resolve_axis(axis, rank)?;
        ensure!(!std::mem::replace(&mut seen[resolved], true), "axis {axis} occurs twice");
        Ok(resolved)
    };
    axes.iter().map(resolve).collect()
}

/// A dtype for a test case: every one now and then, `f32` most often.
pub(crate) fn any_dtype(g: &mut Gen) -> DType {
    let all: Vec<DType> = DType::all().collect();
    if g.flag() { DType::F32 } else { g.pick(&all) }
}

/// A variable input of any dtype.
pub(crate) fn any_var(g: &mut Gen, shape: &[usize]) -> Arg {
    let dtype = any_dtype(g);
    Arg::Var(g.tensor(dtype, shape))
}

/// A constant list of integers.
pub(crate) fn list(values: impl IntoIterator<Item = i64>) -> Arg {
    Arg::Const(Tensor::vector(&values.into_iter().collect::<Vec<i64>>()))
}

/// A number that fits `i64`.
pub(crate) fn signed(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// `axis` of a tensor of `rank`, counted from either end.
pub(crate) fn either_end(g: &mut Gen, axis: usize, rank: usize) -> i64 {
    signed(axis) - if g.flag() { signed(rank) } else { 0 }
}

/// Checks and evaluates an operator on concrete tensors.
#[cfg(test)]
pub(crate) fn run(op: impl Into<crate::Op>, inputs: &[&Tensor]) -> Result<Tensor, Mismatch> {
    let inputs: Vec<_> = inputs.iter().map(|&t| Some(t)).collect();
    Ok(op.into().eval(&crate::EvalCx { inputs: &inputs })?.remove(0))
}

/// The `i64` tensor 0, 1, 2, … of a shape.
#[cfg(test)]
pub(crate) fn iota(shape: &[usize]) -> Tensor {
    // The extents of an empty tensor may be as large as they like.
    let count = if shape.contains(&0) { 0 } else { shape.iter().product() };
    let values: Vec<i64> = (0..signed(count)).collect();
    Tensor::from_slice(shape, &values).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Case;
    use crate::{EvalCx, Graph, Op};

    /// Inference on symbolic extents says nothing that the same inference on numbers contradicts.
    #[test]
    fn symbolic_inference_agrees_with_numbers() {
        let mut g = Gen::new(5);
        for name in Op::NAMES {
            let cases: Vec<Case> = (0..20).flat_map(|_| Op::cases(name, &mut g)).collect();
            for case in cases.into_iter().filter(stays_inside) {
                let (exact, _) = case.graph().unwrap();
                let mut graph = Graph::new("symbolic");
                let value = |(i, arg): (usize, &Arg)| match arg {
                    Arg::Var(tensor) => Some(graph.input(&format!("x{i}"), symbolic(tensor))),
                    Arg::Const(tensor) => Some(graph.constant(&format!("c{i}"), tensor.clone())),
                    Arg::Absent => None,
                };
                let inputs: Vec<_> = case.inputs.iter().enumerate().map(value).collect();
                let outputs = graph.add("node", case.op.clone(), inputs);
                let outputs = outputs.unwrap_or_else(|e| panic!("{e}\n{case:?}"));
                for (output, exact_output) in outputs.into_iter().zip(exact.outputs()) {
                    let (ty, exact) = (graph.ty(output), exact.ty(exact_output.value));
                    assert_eq!((ty.dtype, ty.rank()), (exact.dtype, exact.rank()), "{case:?}");
                    for (dim, exact) in ty.shape.iter().zip(&exact.shape) {
                        let bound = dim.eval(&|symbol| symbol.strip_prefix('d')?.parse().ok());
                        assert!(
                            bound.is_none() || exact.constant().is_none() || bound == exact.constant(),
                            "{dim} is {exact} in {case:?}"
                        );
                    }
                }
            }
        }
    }

    /// The type of `tensor` with every extent but one replaced by a symbol that names it. The length of a list of
    /// integers decides ranks, which must be known.
    fn symbolic(tensor: &Tensor) -> TensorType {
        if tensor.dtype().is_int() && tensor.rank() == 1 {
            return TensorType::of(tensor);
        }
        let dim = |&d: &usize| if d == 1 { Dim::from(1usize) } else { Dim::symbol(&format!("d{d}")) };
        TensorType { dtype: tensor.dtype(), shape: tensor.shape().iter().map(dim).collect() }
    }

    /// Whether a slice is one whose bounds lie within the axis, which symbolic inference takes for granted.
    fn stays_inside(case: &Case) -> bool {
        let ends = case.inputs.get(2).and_then(Arg::tensor).map(Tensor::to_i64s);
        case.op.name() != "Slice" || ends.is_some_and(|e| e.iter().all(|&e| e == i64::MAX || e == i64::MIN))
    }

    /// Cases whose integer lists are replaced by extremes are evaluated or refused.
    #[test]
    fn hostile_lists_do_not_panic() {
        let mut g = Gen::new(6);
        let extremes = [i64::MIN, -(1 << 62), -3, -2, -1, 0, 1, 2, 3, 1 << 62, i64::MAX];
        let names = ["Reshape", "Slice", "Gather", "GatherElements", "Expand", "Tile", "Pad"];
        for name in names
            .into_iter()
            .chain(["Range", "OneHot", "Trilu", "Concat", "Split", "Where", "GatherNd", "Random"])
        {
            for _ in 0..40 {
                for case in Op::cases(name, &mut g) {
                    let spoil = |(i, arg): (usize, &Arg)| {
                        let tensor = arg.tensor()?;
                        if i == 0 && name != "Range" || !tensor.dtype().is_int() || g.flag() {
                            return Some(tensor.clone());
                        }
                        let len = (tensor.len() + g.size(0, 2)).saturating_sub(g.size(0, 2));
                        let values: Vec<i64> = (0..len).map(|_| g.pick(&extremes)).collect();
                        let list = Tensor::vector(&values);
                        list.reshape(tensor.shape()).ok().or(Some(list))
                    };
                    let inputs: Vec<Option<Tensor>> = case.inputs.iter().enumerate().map(spoil).collect();
                    let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
                    let types: Vec<_> = inputs.iter().map(|t| t.map(symbolic)).collect();
                    let mut constants = inputs.clone();
                    constants[0] = None;
                    let cx = InferCx {
                        node: "node",
                        types: types.iter().map(Option::as_ref).collect(),
                        contents: constants.iter().map(|t| t.and_then(crate::op::content_of)).collect(),
                        constants,
                    };
                    let _ = (case.op.infer(&cx), case.op.content(&cx));
                    let _ = case.op.eval(&EvalCx { inputs: &inputs });
                }
            }
        }
    }
}
