//! Changes of shape that keep the elements in order.

use sora_ir::case::Gen;
use sora_ir::ops::{
    BinaryKind, Concat, Expand, Flatten, Gather, Reshape, Shape, Squeeze, Transpose, Unsqueeze,
};
use sora_ir::{Dim, Graph, IrError, Node, Op, TensorType, ValueId};
use sora_tensor::Tensor;

use super::Rule;
use super::sample::Sketch;
use crate::view::{input, output};
use crate::{Patch, Term, View};

pub(crate) const CANONICALIZE_RESHAPE: Rule = Rule {
    name: "canonicalize_reshape",
    doc: "Squeeze, Unsqueeze and Flatten become Reshape where the shapes can be written down.",
    exact: true,
    apply: canonicalize_reshape,
    sample: sample_shape_change,
    near_misses: &[miss_two_symbols],
};

pub(crate) const FIX_RESHAPE_TARGET: Rule = Rule {
    name: "fix_reshape_target",
    doc: "A Reshape whose target is computed from shapes gets a constant target of copied and inferred dimensions.",
    exact: true,
    apply: fix_reshape_target,
    sample: sample_computed_target,
    near_misses: &[miss_swapped_symbols],
};

pub(crate) const MERGE_RESHAPES: Rule = Rule {
    name: "merge_reshapes",
    doc: "A Reshape of a Reshape reads the first one's input.",
    exact: true,
    apply: merge_reshapes,
    sample: sample_two_reshapes,
    near_misses: &[miss_transpose_between],
};

pub(crate) const DROP_EXPAND: Rule = Rule {
    name: "drop_expand",
    doc: "An Expand before an elementwise operator goes where that operator broadcasts to the same shape itself.",
    exact: true,
    apply: drop_expand,
    sample: sample_expand,
    near_misses: &[miss_needed_expand],
};

/// Adds a Reshape of `x` from one shape to another; `None` when the target cannot be written with copied
/// dimensions and one inferred one.
pub(crate) fn reshape_node(patch: &mut Patch, name: &str, x: Term, from: &[Dim], to: &[Dim]) -> Option<Term> {
    let mut inferred = 0;
    let target = to.iter().enumerate().map(|(i, dim)| match dim.constant() {
        Some(extent) => (extent > 0).then_some(extent),
        None if from.get(i) == Some(dim) => Some(0),
        None => {
            inferred += 1;
            Some(-1)
        }
    });
    let target: Vec<i64> = target.collect::<Option<_>>()?;
    (inferred <= 1).then_some(())?;
    let target = patch.constant(&format!("{name}.shape"), Tensor::vector(&target));
    Some(patch.node(name, Reshape { allow_zero: false }, [x, target]))
}

/// Replaces the value of `node` by a Reshape of `x`.
pub(crate) fn replace_by_reshape(view: &View, node: &Node, x: ValueId) -> Option<Patch> {
    let y = output(node)?;
    let mut patch = Patch::new();
    let new = reshape_node(&mut patch, &node.name, x.into(), &view.ty(x).shape, &view.ty(y).shape)?;
    Some(patch.replace(y, new))
}

fn canonicalize_reshape(view: &View, node: &Node) -> Option<Patch> {
    let shape_change = matches!(node.op, Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Flatten(_));
    shape_change.then(|| replace_by_reshape(view, node, input(node, 0)?))?
}

fn fix_reshape_target(view: &View, node: &Node) -> Option<Patch> {
    let Op::Reshape(_) = node.op else { return None };
    let target = input(node, 1)?;
    let computed = view.constant(target).is_none() && view.graph.value(target).content.is_some();
    computed.then(|| replace_by_reshape(view, node, input(node, 0)?))?
}

fn merge_reshapes(view: &View, node: &Node) -> Option<Patch> {
    let Op::Reshape(_) = node.op else { return None };
    let (_, first) = view.made_by::<Reshape>(input(node, 0)?)?;
    replace_by_reshape(view, node, input(first, 0)?)
}

fn drop_expand(view: &View, node: &Node) -> Option<Patch> {
    let Op::Binary(_) = node.op else { return None };
    let y = output(node)?;
    for slot in 0..2 {
        let Some((_, expand)) = view.made_by::<Expand>(input(node, slot)?) else { continue };
        let mut inputs = node.inputs.clone();
        inputs[slot] = input(expand, 0);
        let same = |types: Vec<TensorType>| types.first() == Some(view.ty(y));
        if view.graph.infer(&node.name, &node.op, &inputs).is_ok_and(|(types, _)| same(types)) {
            return Some(Patch::one(y, &node.name, node.op.clone(), inputs.into_iter().flatten()));
        }
    }
    None
}

fn sample_shape_change(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (a, b) = (s.rng.size(2, 4), s.rng.size(2, 4));
    let x = s.batched(&[a, 1, b, 1]);
    let y = match s.rng.size(0, 3) {
        0 => s.op(Squeeze { axes: vec![-1, 2] }, [x])?,
        1 => s.op(Unsqueeze { axes: vec![0, -1] }, [x])?,
        2 => s.op(Flatten { axis: 1 }, [x])?,
        _ => s.op(Flatten { axis: -3 }, [x])?,
    };
    s.done(y)
}

fn miss_two_symbols(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.shaped(["N", "M"].map(Dim::symbol));
    let y = s.op(Unsqueeze { axes: vec![0] }, [x])?;
    s.done(y)
}

/// `x` reshaped to its first extent and `-1`, as exporters with a symbolic batch write it.
fn sample_computed_target(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.shaped([Dim::symbol("N"), Dim::from(3usize), Dim::from(4usize)]);
    let shape = s.op(Shape { start: 0, end: None }, [x])?;
    let first = s.integers(&[0]);
    let batch = s.op(Gather { axis: 0 }, [shape, first])?;
    let rest = s.rng.pick(&[vec![-1], vec![12], vec![-1, 2], vec![2, 6]]);
    let rest = s.integers(&rest);
    let target = s.op(Concat { axis: 0 }, [batch, rest])?;
    let y = s.op(Reshape { allow_zero: false }, [x, target])?;
    s.done(y)
}

fn miss_swapped_symbols(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.shaped(["N", "M"].map(Dim::symbol));
    let (first, second) =
        (s.op(Shape { start: 0, end: Some(1) }, [x])?, s.op(Shape { start: 1, end: None }, [x])?);
    let target = s.op(Concat { axis: 0 }, [second, first])?;
    let y = s.op(Reshape { allow_zero: false }, [x, target])?;
    s.done(y)
}

fn sample_two_reshapes(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[2, 3, 4]);
    let targets: [&[i64]; 4] = [&[0, -1], &[-1, 6, 4], &[-1, 3, 2, 4], &[0, 12, 2]];
    let first = s.rng.pick(&targets);
    let first = s.integers(first);
    let inner = s.op(Reshape { allow_zero: false }, [x, first])?;
    let second = s.integers(&[-1, 8, 3]);
    let y = s.op(Reshape { allow_zero: false }, [inner, second])?;
    if s.rng.flag() {
        s.also(inner);
    }
    s.done(y)
}

fn miss_transpose_between(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.input(&[4, 6]);
    let (first, second) = (s.integers(&[6, 4]), s.integers(&[24]));
    let inner = s.op(Reshape { allow_zero: false }, [x, first])?;
    let moved = s.op(Transpose { perm: vec![1, 0] }, [inner])?;
    let y = s.op(Reshape { allow_zero: false }, [moved, second])?;
    s.done(y)
}

fn sample_expand(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, z) = (s.input(&[3, 1]), s.batched(&[3, 4]));
    let target = s.integers(&[3, 4]);
    let wide = s.op(Expand {}, [x, target])?;
    let kind = s.rng.pick(&[BinaryKind::Add, BinaryKind::Mul, BinaryKind::Sub]);
    let y = s.either(kind, wide, z)?;
    s.done(y)
}

fn miss_needed_expand(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (x, z) = (s.input(&[3, 1]), s.input(&[1, 1]));
    let target = s.integers(&[3, 4]);
    let wide = s.op(Expand {}, [x, target])?;
    let y = s.binary(BinaryKind::Add, wide, z)?;
    s.done(y)
}
