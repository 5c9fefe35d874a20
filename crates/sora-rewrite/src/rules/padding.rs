//! Padding that windows do themselves.

use sora_ir::case::Gen;
use sora_ir::ops::{AveragePool, Conv, MaxPool, Pad, PadMode};
use sora_ir::{Graph, IrError, Node, Op, ValueId, resolve_axis};

use super::Rule;
use super::sample::Sketch;
use crate::view::{input, output};
use crate::{Patch, View};

pub(crate) const FOLD_PAD_INTO_WINDOW: Rule = Rule {
    name: "fold_pad_into_window",
    doc: "A Pad around the spatial axes becomes the padding of the convolution or pool after it.",
    exact: true,
    apply: fold_pad_into_window,
    sample: sample_pad,
    near_misses: &[
        miss_pad_of_ones,
        miss_pad_of_channels,
        miss_cropping_pad,
        miss_average_that_skips_pads,
        miss_maximum_with_zeros,
    ],
};

fn fold_pad_into_window(view: &View, node: &Node) -> Option<Patch> {
    let (op, pad) = view.made_by::<Pad>(input(node, 0)?)?;
    let x = input(pad, 0)?;
    // What a window takes for its own padding: it adds nothing to a sum and is no maximum.
    let neutral = match (&node.op, view.ty(x).dtype.int_range()) {
        (Op::MaxPool(_), None) => f64::NEG_INFINITY,
        (Op::MaxPool(_), Some((least, _))) => least as f64,
        _ => 0.0,
    };
    let fill = input(pad, 2).map_or(Some(0.0), |value| view.scalar(value));
    (op.mode == PadMode::Constant && fill == Some(neutral)).then_some(())?;
    let around = spatial(view, pad, view.ty(x).rank())?;
    let sum = |pads: &[usize]| -> Option<Vec<usize>> {
        (pads.len() == around.len()).then(|| pads.iter().zip(&around).map(|(a, b)| a + b).collect())
    };
    let op: Op = match &node.op {
        Op::Conv(conv) => Conv { pads: sum(&conv.pads)?, ..conv.clone() }.into(),
        Op::AveragePool(pool) => {
            // Zeros from Pad are counted by the average; its own padding must be, too, to be merged with them.
            let counted = pool.count_include_pad || pool.pads.iter().all(|&p| p == 0);
            (counted && !pool.ceil_mode).then_some(())?;
            AveragePool { pads: sum(&pool.pads)?, count_include_pad: true, ..pool.clone() }.into()
        }
        Op::MaxPool(pool) if !pool.ceil_mode => MaxPool { pads: sum(&pool.pads)?, ..pool.clone() }.into(),
        _ => return None,
    };
    let mut patch = Patch::new();
    let inputs = [Some(x)].into_iter().chain(node.inputs.iter().skip(1).copied());
    let y = patch.node_with_optional(&node.name, op, inputs.map(|v| v.map(Into::into)));
    Some(patch.replace(output(node)?, y))
}

/// How much comes before and after each spatial axis, if that is all that `pad` adds.
fn spatial(view: &View, pad: &Node, rank: usize) -> Option<Vec<usize>> {
    (rank > 2).then_some(())?;
    let pads = view.integers(input(pad, 1)?)?;
    let axes: Vec<usize> = match input(pad, 3) {
        Some(axes) => {
            let axes = view.integers(axes)?.into_iter().map(|axis| resolve_axis(axis, rank).ok());
            axes.collect::<Option<_>>()?
        }
        None => (0..rank).collect(),
    };
    let (begins, ends) = pads.split_at_checked(axes.len()).filter(|(a, b)| a.len() == b.len())?;
    let spatial = rank - 2;
    let mut around = vec![0; 2 * spatial];
    for ((axis, &begin), &end) in axes.into_iter().zip(begins).zip(ends) {
        match axis.checked_sub(2) {
            Some(i) => {
                around[i] += usize::try_from(begin).ok()?;
                around[spatial + i] += usize::try_from(end).ok()?;
            }
            None => (begin == 0 && end == 0).then_some(())?,
        }
    }
    Some(around)
}

fn padded(s: &mut Sketch, pads: &[i64], value: Option<f64>) -> Result<ValueId, IrError> {
    let x = s.batched(&[2, 5, 5]);
    let pads = s.integers(pads);
    let value = value.map(|v| s.scalar_of_rank_0(v));
    s.op(Pad { mode: PadMode::Constant }, [Some(x), Some(pads)].into_iter().chain(value.map(Some)))
}

fn pool(s: &mut Sketch) -> AveragePool {
    let own = s.rng.flag();
    AveragePool {
        kernel: vec![3, 2],
        strides: vec![s.rng.size(1, 2), 1],
        pads: if own { vec![1, 0, 1, 1] } else { vec![0; 4] },
        dilations: vec![1, 1],
        ceil_mode: false,
        count_include_pad: own || s.rng.flag(),
    }
}

fn maximum(s: &mut Sketch) -> MaxPool {
    let AveragePool { kernel, strides, pads, dilations, ceil_mode, .. } = pool(s);
    MaxPool { kernel, strides, pads, dilations, ceil_mode }
}

fn conv(s: &mut Sketch, x: ValueId, channels: usize) -> Result<ValueId, IrError> {
    let w = s.weights(&[3, channels, 2, 3]);
    let pads = (0..4).map(|_| s.rng.size(0, 1)).collect();
    s.op(Conv { pads, strides: vec![1, 2], ..Conv::new(2) }, [x, w])
}

fn sample_pad(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let around: Vec<i64> = (0..4).map(|_| s.rng.pick(&[0i64, 1, 2])).collect();
    let around = if around == [0; 4] { vec![1; 4] } else { around };
    let around = [0, 0, around[0], around[1], 0, 0, around[2], around[3]];
    let value = s.rng.flag().then_some(0.0);
    let y = match s.rng.size(0, 2) {
        0 => {
            let x = padded(&mut s, &around, value)?;
            conv(&mut s, x, 2)?
        }
        1 => {
            let x = padded(&mut s, &around, value)?;
            let pool = pool(&mut s);
            s.op(pool, [x])?
        }
        _ => {
            let x = padded(&mut s, &around, Some(f64::NEG_INFINITY))?;
            let pool = maximum(&mut s);
            s.op(pool, [x])?
        }
    };
    s.done(y)
}

fn miss_pad_of_ones(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = padded(&mut s, &[0, 0, 1, 1, 0, 0, 1, 1], Some(1.0))?;
    let y = conv(&mut s, x, 2)?;
    s.done(y)
}

fn miss_pad_of_channels(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = padded(&mut s, &[0, 1, 1, 1, 0, 0, 1, 1], None)?;
    let y = conv(&mut s, x, 3)?;
    s.done(y)
}

fn miss_cropping_pad(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = padded(&mut s, &[0, 0, 1, -1, 0, 0, 1, 1], None)?;
    let y = conv(&mut s, x, 2)?;
    s.done(y)
}

fn miss_average_that_skips_pads(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = padded(&mut s, &[0, 0, 1, 1, 0, 0, 1, 1], None)?;
    let pool = AveragePool { pads: vec![1, 0, 1, 1], count_include_pad: false, ..pool(&mut s) };
    let y = s.op(pool, [x])?;
    s.done(y)
}

fn miss_maximum_with_zeros(rng: &mut Gen) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let x = padded(&mut s, &[0, 0, 1, 1, 0, 0, 1, 1], None)?;
    let pool = maximum(&mut s);
    let y = s.op(pool, [x])?;
    s.done(y)
}
