//! Transposes that merge, vanish, or move into constants.

use sora_ir::case::Gen;
use sora_ir::ops::{DequantizeLinear, MatMul, Reshape, Transpose};
use sora_ir::{Dim, EvalCx, Graph, IrError, Node, Op, ValueId};
use sora_tensor::{DType, Tensor};

use super::Rule;
use super::reshape::{replace_by_reshape, reshape_node};
use super::sample::Sketch;
use crate::view::{input, output};
use crate::{Patch, View};

pub(crate) const MERGE_TRANSPOSES: Rule = Rule {
    name: "merge_transposes",
    doc: "A Transpose of a Transpose is one Transpose, or nothing where they are inverse.",
    exact: true,
    apply: merge_transposes,
    sample: sample_two_transposes,
    near_misses: &[miss_reshape_between],
};

pub(crate) const TRANSPOSE_TO_RESHAPE: Rule = Rule {
    name: "transpose_to_reshape",
    doc: "A Transpose that moves only axes of extent 1 is a Reshape.",
    exact: true,
    apply: transpose_to_reshape,
    sample: sample_unit_axes,
    near_misses: &[miss_symbolic_axis],
};

pub(crate) const TRANSPOSE_DEQUANTIZED_CONSTANT: Rule = Rule {
    name: "transpose_dequantized_constant",
    doc: "A Transpose of a dequantized constant transposes the constant, which stays quantized.",
    exact: true,
    apply: transpose_dequantized_constant,
    sample: sample_dequantized,
    near_misses: &[miss_shared_dequantized],
};

pub(crate) const PERMUTE_WEIGHTS_OF_FLATTENED: Rule = Rule {
    name: "permute_weights_of_flattened",
    doc: "Where a Transpose is flattened into the rows of a constant matrix, the rows are permuted instead.",
    exact: false,
    apply: permute_weights_of_flattened,
    sample: sample_flattened,
    near_misses: &[miss_flattened_batch, miss_flattened_shared],
};

/// The permutation that undoes `perm`.
pub(crate) fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; perm.len()];
    for (to, &from) in perm.iter().enumerate() {
        inverse[from] = to;
    }
    inverse
}

/// A constant with its axes in another order.
pub(crate) fn transposed(tensor: &Tensor, perm: &[usize]) -> Option<Tensor> {
    let op = Op::from(Transpose { perm: perm.to_vec() });
    op.eval(&EvalCx { inputs: &[Some(tensor)] }).ok()?.pop()
}

fn merge_transposes(view: &View, node: &Node) -> Option<Patch> {
    let Op::Transpose(second) = &node.op else { return None };
    let (first, before) = view.made_by::<Transpose>(input(node, 0)?)?;
    let (x, y) = (input(before, 0)?, output(node)?);
    let perm: Vec<usize> = second.perm.iter().map(|&i| first.perm.get(i).copied()).collect::<Option<_>>()?;
    if perm.is_sorted() {
        return Some(Patch::forward(y, x));
    }
    Some(Patch::one(y, &node.name, Transpose { perm }, [x]))
}

fn transpose_to_reshape(view: &View, node: &Node) -> Option<Patch> {
    let Op::Transpose(Transpose { perm }) = &node.op else { return None };
    let x = input(node, 0)?;
    let moving = perm.iter().filter(|&&axis| view.ty(x).shape[axis].constant() != Some(1));
    moving.is_sorted().then(|| replace_by_reshape(view, node, x))?
}

fn transpose_dequantized_constant(view: &View, node: &Node) -> Option<Patch> {
    let Op::Transpose(Transpose { perm }) = &node.op else { return None };
    let (op, dequantize) = view.made_only_by::<DequantizeLinear>(input(node, 0)?)?;
    let integers = view.constant(input(dequantize, 0)?)?;
    let scale_rank = view.ty(input(dequantize, 1)?).rank();
    let axis = match scale_rank {
        0 => op.axis,
        1 => {
            let axis = sora_ir::resolve_axis(op.axis, perm.len()).ok()?;
            i64::try_from(inverse(perm)[axis]).ok()?
        }
        _ => return None,
    };
    let mut patch = Patch::new();
    let name = &view.graph.value(input(dequantize, 0)?).name;
    let constant = patch.constant(name, transposed(integers, perm)?);
    let rest = dequantize.inputs.iter().skip(1).map(|v| v.map(Into::into));
    let moved = DequantizeLinear { axis };
    let y = patch.node_with_optional(&dequantize.name, moved, [Some(constant)].into_iter().chain(rest));
    Some(patch.replace(output(node)?, y))
}

fn permute_weights_of_flattened(view: &View, node: &Node) -> Option<Patch> {
    let Op::MatMul(_) = node.op else { return None };
    let (flat, w) = (input(node, 0)?, input(node, 1)?);
    let weights = view.constant(w).filter(|_| view.single_use(w))?;
    let &[k, n] = weights.shape() else { return None };
    let (_, reshape) = view.made_only_by::<Reshape>(flat)?;
    let (Transpose { perm }, before) = view.made_only_by::<Transpose>(input(reshape, 0)?)?;
    let x = input(before, 0)?;

    // The last axis of the flat value must be a suffix of the axes in which all that move are.
    let same = perm.iter().enumerate().take_while(|(i, axis)| i == *axis).count();
    let suffix = |first: usize| -> Option<Vec<usize>> {
        let extents: Vec<usize> = view.ty(x).shape[first..].iter().map(Dim::known).collect::<Option<_>>()?;
        (sora_tensor::element_count(&extents) == Some(k)).then_some(extents)
    };
    let (fixed, moving) = (0..=same).find_map(|first| Some((first, suffix(first)?)))?;
    (k > 0 && view.ty(flat).shape.last().and_then(Dim::known) == Some(k)).then_some(())?;

    let order: Vec<usize> = perm[fixed..].iter().map(|&axis| axis - fixed).collect();
    let rows: Vec<usize> = order.iter().map(|&axis| moving[axis]).chain([n]).collect();
    let back: Vec<usize> = inverse(&order).into_iter().chain([order.len()]).collect();
    let permuted = transposed(&weights.reshape(&rows).ok()?, &back)?.reshape(&[k, n]).ok()?;

    let mut patch = Patch::new();
    let (from, to) = (&view.ty(x).shape, &view.ty(flat).shape);
    let flat = reshape_node(&mut patch, &reshape.name, x.into(), from, to)?;
    let permuted = patch.constant(&view.graph.value(w).name, permuted);
    let y = patch.node(&node.name, MatMul {}, [flat, permuted]);
    Some(patch.replace(output(node)?, y))
}

fn sample_two_transposes(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let shape = s.rng.shape(3);
    let x = s.batched(&shape);
    let first = s.permutation(4);
    let second = if s.rng.flag() { inverse(&first) } else { s.permutation(4) };
    let inner = s.transpose(&first, x)?;
    if s.rng.flag() {
        s.also(inner);
    }
    let y = s.transpose(&second, inner)?;
    s.done(y)
}

fn miss_reshape_between(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.input(&[2, 6]);
    let first = s.transpose(&[1, 0], x)?;
    let target = s.integers(&[3, 4]);
    let middle = s.op(Reshape { allow_zero: false }, [first, target])?;
    let y = s.transpose(&[1, 0], middle)?;
    s.done(y)
}

fn sample_unit_axes(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (a, b) = (s.rng.size(2, 5), s.rng.size(2, 5));
    let x = s.batched(&[1, a, 1, b]);
    let perm = s.rng.pick(&[[0, 2, 1, 3, 4], [1, 0, 2, 4, 3], [0, 2, 4, 1, 3]]);
    let y = s.transpose(&perm, x)?;
    s.done(y)
}

fn miss_symbolic_axis(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.shaped(["N", "M"].map(Dim::symbol));
    let y = s.transpose(&[1, 0], x)?;
    s.done(y)
}

/// A dequantized constant of shape `[3, 4]`, per tensor or per axis.
fn dequantized(s: &mut Sketch) -> Result<ValueId, IrError> {
    let integers = s.rng.tensor(DType::I8, &[3, 4]);
    let integers = s.constant(integers);
    let (axis, shape): (i64, &[usize]) = s.rng.pick(&[(1, &[][..]), (0, &[3]), (1, &[4]), (-1, &[4])]);
    let scale = s.between(shape, 0.01, 0.1);
    let mut inputs = vec![integers, scale];
    if s.rng.flag() {
        let zero = s.rng.tensor(DType::I8, shape);
        inputs.push(s.constant(zero));
    }
    s.op(DequantizeLinear { axis }, inputs)
}

fn sample_dequantized(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let w = dequantized(&mut s)?;
    let w = s.transpose(&[1, 0], w)?;
    let x = s.batched(&[4]);
    let y = s.op(MatMul {}, [x, w])?;
    s.done(y)
}

fn miss_shared_dequantized(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let w = dequantized(&mut s)?;
    s.also(w);
    let y = s.transpose(&[1, 0], w)?;
    s.done(y)
}

fn sample_flattened(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let shape: Vec<usize> = (0..3).map(|_| s.rng.size(1, 4)).collect();
    let (k, n) = (shape.iter().product(), s.rng.size(1, 4));
    let (x, w) = (s.batched(&shape), s.weights(&[k, n]));
    let perm: Vec<usize> = [0].into_iter().chain(s.permutation(3).into_iter().map(|axis| axis + 1)).collect();
    let moved = s.transpose(&perm, x)?;
    let target = s.integers(&[-1, i64::try_from(k).unwrap_or(1)]);
    let flat = s.op(Reshape { allow_zero: false }, [moved, target])?;
    let y = s.op(MatMul {}, [flat, w])?;
    s.done(y)
}

fn miss_flattened_batch(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, w) = (s.input(&[2, 3, 4]), s.weights(&[6, 2]));
    let moved = s.transpose(&[2, 1, 0], x)?;
    let target = s.integers(&[4, 6]);
    let flat = s.op(Reshape { allow_zero: false }, [moved, target])?;
    let y = s.op(MatMul {}, [flat, w])?;
    s.done(y)
}

fn miss_flattened_shared(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, w) = (s.input(&[2, 3, 4]), s.weights(&[12, 2]));
    let moved = s.transpose(&[0, 2, 1], x)?;
    let target = s.integers(&[2, 12]);
    let flat = s.op(Reshape { allow_zero: false }, [moved, target])?;
    s.also(flat);
    let y = s.op(MatMul {}, [flat, w])?;
    s.done(y)
}
