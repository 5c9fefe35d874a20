//! Nodes that do nothing, alone or in pairs.

use sora_ir::case::Gen;
use sora_ir::ops::{
    BinaryKind, Cast, Concat, Expand, Pad, PadMode, Reshape, Slice, Squeeze, Tile, Transpose, Unary,
    UnaryKind, Unsqueeze,
};
use sora_ir::{Dim, Graph, IrError, Node, Op};
use sora_tensor::DType;

use super::Rule;
use super::sample::Sketch;
use crate::view::{input, output};
use crate::{Patch, View};

pub(crate) const REMOVE_NO_OP: Rule = Rule {
    name: "remove_no_op",
    doc: "A node that gives its input unchanged, such as a Cast to the same type or a Slice of everything, goes.",
    exact: true,
    apply: remove_no_op,
    sample: sample_no_op,
    near_misses: &[miss_reversing_slice, miss_shifting_pad, miss_square_transpose],
};

pub(crate) const REMOVE_INVERSE_PAIR: Rule = Rule {
    name: "remove_inverse_pair",
    doc: "Two negations in a row cancel, and so do two changes of shape that end with the shape they began with.",
    exact: true,
    apply: remove_inverse_pair,
    sample: sample_inverse_pair,
    near_misses: &[miss_negation_of_magnitude, miss_other_shape],
};

fn remove_no_op(view: &View, node: &Node) -> Option<Patch> {
    let (x, y) = (input(node, 0)?, output(node)?);
    if view.ty(x) != view.ty(y) {
        return None;
    }
    let all = |slot, holds: fn(&i64) -> bool| {
        input(node, slot).is_none_or(|v| view.integers(v).is_some_and(|values| values.iter().all(holds)))
    };
    let nothing_happens = match &node.op {
        Op::Unary(Unary { kind: UnaryKind::Identity }) => true,
        // Row-major order stays and so do the extents.
        Op::Cast(_) | Op::Reshape(_) | Op::Expand(_) | Op::Tile(_) | Op::Split(_) => true,
        Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Flatten(_) => true,
        // A forward walk that ends with as many elements as there are skips none.
        Op::Slice(_) => all(4, |&step| step > 0),
        Op::Concat(_) => node.inputs.len() == 1,
        Op::Transpose(Transpose { perm }) => perm.is_sorted(),
        Op::Pad(_) => all(1, |&pad| pad == 0),
        _ => false,
    };
    nothing_happens.then(|| Patch::forward(y, x))
}

fn remove_inverse_pair(view: &View, node: &Node) -> Option<Patch> {
    let (_, before, _) = view.graph.producer(input(node, 0)?)?;
    let (x, y) = (input(before, 0)?, output(node)?);
    let negation = matches!(node.op, Op::Unary(Unary { kind: UnaryKind::Neg | UnaryKind::Not }));
    // Row-major order stays throughout, so equal shapes mean equal elements.
    let reshapes = [node, before]
        .iter()
        .all(|node| matches!(node.op, Op::Reshape(_) | Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Flatten(_)));
    let cancel = (negation && node.op == before.op) || (reshapes && view.ty(x) == view.ty(y));
    cancel.then(|| Patch::forward(y, x))
}

fn sample_no_op(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let shape = s.rng.shape(3);
    let dims: Vec<i64> = shape.iter().map(|&d| i64::try_from(d).unwrap_or(1)).collect();
    let x = s.input(&shape);
    let y = match s.rng.size(0, 8) {
        0 => s.unary(UnaryKind::Identity, x)?,
        1 => s.op(Cast { to: DType::F32 }, [x])?,
        2 => {
            let target = s.integers(&[0, -1, dims[2]]);
            s.op(Reshape { allow_zero: false }, [x, target])?
        }
        3 => {
            let target = s.integers(&[1, dims[1], 1]);
            s.op(Expand {}, [x, target])?
        }
        4 => {
            let (starts, ends, axes) =
                (s.integers(&[0, 0]), s.integers(&[i64::MAX, dims[1]]), s.integers(&[-1, 1]));
            s.op(Slice {}, [x, starts, ends, axes])?
        }
        5 => s.op(Concat { axis: 1 }, [x])?,
        6 => {
            let ones = s.integers(&[1, 1, 1]);
            s.op(Tile {}, [x, ones])?
        }
        7 => {
            let zeros = s.integers(&[0; 6]);
            s.op(Pad { mode: PadMode::Constant }, [x, zeros])?
        }
        _ => s.transpose(&[0, 1, 2], x)?,
    };
    s.done(y)
}

fn miss_reversing_slice(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.input(&[4]);
    let (starts, ends) = (s.integers(&[-1]), s.integers(&[-9]));
    let (axes, steps) = (s.integers(&[0]), s.integers(&[-1]));
    let y = s.op(Slice {}, [x, starts, ends, axes, steps])?;
    s.done(y)
}

fn miss_shifting_pad(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.input(&[4]);
    let pads = s.integers(&[1, -1]);
    let y = s.op(Pad { mode: PadMode::Constant }, [x, pads])?;
    s.done(y)
}

fn miss_square_transpose(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.input(&[3, 3]);
    let y = s.transpose(&[1, 0], x)?;
    s.done(y)
}

fn sample_inverse_pair(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.shaped(["N", "M"].map(Dim::symbol));
    let y = match s.rng.size(0, 2) {
        0 => {
            let once = s.unary(UnaryKind::Neg, x)?;
            s.unary(UnaryKind::Neg, once)?
        }
        1 => {
            let truth = s.binary(BinaryKind::Less, x, x)?;
            let once = s.unary(UnaryKind::Not, truth)?;
            s.unary(UnaryKind::Not, once)?
        }
        _ => {
            let once = s.op(Unsqueeze { axes: vec![1, 0] }, [x])?;
            s.op(Squeeze { axes: vec![0, 1] }, [once])?
        }
    };
    s.done(y)
}

fn miss_other_shape(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.input(&[3, 1, 3]);
    let once = s.op(Squeeze { axes: vec![1] }, [x])?;
    let y = s.op(Unsqueeze { axes: vec![0] }, [once])?;
    s.done(y)
}

fn miss_negation_of_magnitude(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = s.batched(&[3]);
    let magnitude = s.unary(UnaryKind::Abs, x)?;
    let y = s.unary(UnaryKind::Neg, magnitude)?;
    s.done(y)
}
