//! TfIdfVectorizer over tokens that are numbers: every n-gram of the pool is compared with every window of the input.

use std::collections::{BTreeMap, HashSet};

use sora_ir::ValueId;
use sora_ir::ops::{BinaryKind, Concat, Expand, Gather, Reduce, ReduceKind, Reduction, ScatterElements};
use sora_tensor::{DType, Tensor};

use super::node::{Built, NodeCx, size};
use super::rows::{Row, onnx};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[onnx("TfIdfVectorizer", tf_idf)];

/// The most tokens that are skipped: each number of them is a pass of its own.
const MOST_SKIPS: usize = 256;

/// The n-grams of one length, with the columns of the result that count them.
#[derive(Default)]
struct Grams {
    tokens: Vec<Vec<i64>>,
    columns: Vec<i64>,
}

/// The n-grams of each length that counts. The same n-gram given twice counts where it comes first.
fn pool(cx: &NodeCx) -> Result<BTreeMap<usize, Grams>, Refusal> {
    let list = |name: &str| cx.ints(name).ok_or_else(|| Refusal::new(format!("its {name} are missing")));
    let (pool, starts, columns) = (list("pool_int64s")?, list("ngram_counts")?, list("ngram_indexes")?);
    let (shortest, longest) = (cx.int("min_gram_length", 1), cx.int("max_gram_length", 1));
    let starts = starts.iter().map(|&v| size(v, "ngram_counts")).collect::<Result<Vec<_>, _>>()?;
    let (mut lengths, mut known, mut seen) = (BTreeMap::<usize, Grams>::new(), HashSet::new(), 0);
    for (i, &start) in starts.iter().enumerate() {
        let (length, end) = (i + 1, starts.get(i + 1).copied().unwrap_or(pool.len()));
        let tokens = pool.get(start..end).filter(|tokens| tokens.len() % length == 0);
        let tokens = tokens.ok_or_else(|| Refusal::new("its ngram_counts do not divide its pool"))?;
        let counts = (shortest..=longest).contains(&signed(length));
        for gram in tokens.chunks_exact(length) {
            let column = columns.get(seen).copied().filter(|&column| column >= 0);
            let column = column.ok_or_else(|| Refusal::new("its ngram_indexes do not fit its pool"))?;
            seen += 1;
            if counts && known.insert(gram) {
                let grams = lengths.entry(length).or_default();
                grams.tokens.push(gram.to_vec());
                grams.columns.push(column);
            }
        }
    }
    Ok(lengths)
}

fn tf_idf(cx: &mut NodeCx) -> Built {
    if cx.attribute("pool_strings").is_some() {
        return Err(Refusal::new("its n-grams are of text")
            .hint("cut the text processing off the model and run it in your program"));
    }
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    if !(1..=2).contains(&rank) || !cx.dtype(x).is_int() {
        return Err(Refusal::new(format!("its input {} is not one or several lists of integers", cx.ty(x))));
    }
    // Nothing is as far apart as the list is long.
    let longest = cx.ty(x).shape.last().and_then(sora_ir::Dim::known).unwrap_or(usize::MAX);
    let skips = size(cx.int("max_skip_count", 0), "max_skip_count")?.min(longest);
    if skips > MOST_SKIPS {
        return Err(Refusal::new(format!("max_skip_count={skips} is above the limit of {MOST_SKIPS}")));
    }
    let columns = cx.ints("ngram_indexes").unwrap_or_default();
    let width = size(columns.iter().copied().max().unwrap_or(0), "ngram_indexes")? + 1;
    let x = cx.cast(x, DType::I64)?;
    let lengths = pool(cx)?;
    let mut counts = zeros(cx, x, width)?;
    for (length, grams) in lengths {
        // A single token has nothing to skip.
        let distances = if length == 1 { 1..=1 } else { 1..=skips + 1 };
        let mut found = None;
        for distance in distances {
            let hits = hits(cx, x, &grams, distance)?;
            found = Some(match found {
                Some(so_far) => cx.binary(BinaryKind::Add, so_far, hits)?,
                None => hits,
            });
        }
        let Some(found) = found else { continue };
        let shape = cx.shape_of(found)?;
        let columns = cx.make_ints("columns", &grams.columns);
        let columns = cx.step("columns", Expand {}, [columns, shape])?;
        let op = ScatterElements { axis: -1, reduction: Reduction::Add };
        counts = cx.step("counts", op, [counts, columns, found])?;
    }
    weighted(cx, counts, width)
}

/// A count of zero for every column.
fn zeros(cx: &mut NodeCx, x: ValueId, width: usize) -> Result<ValueId, Refusal> {
    let zero = cx.scalar("zero", DType::F32, 0.0);
    let width = cx.make_ints("width", &[signed(width)]);
    let shape = match cx.rank(x) {
        1 => width,
        _ => {
            let rows = cx.extent(x, 0)?;
            cx.step("shape", Concat { axis: 0 }, [rows, width])?
        }
    };
    cx.step("zeros", Expand {}, [zero, shape])
}

/// How often each n-gram occurs with its tokens this far apart.
fn hits(cx: &mut NodeCx, x: ValueId, grams: &Grams, distance: usize) -> Result<ValueId, Refusal> {
    let axis = cx.rank(x) - 1;
    let length = grams.tokens.first().map_or(1, Vec::len);
    let reach = distance.saturating_mul(length - 1);
    // The windows that begin far enough from the end.
    let extent = cx.extent(x, axis)?;
    let (reach, none) = (cx.make_ints("reach", &[signed(reach)]), cx.make_ints("none", &[0]));
    let windows = cx.binary(BinaryKind::Sub, extent, reach)?;
    let windows = cx.binary(BinaryKind::Max, windows, none)?;
    let starts = cx.count_to(windows)?;
    let starts = cx.unsqueeze(starts, &[1])?;
    let offsets: Vec<i64> = (0..length).map(|place| signed(place.saturating_mul(distance))).collect();
    let offsets = cx.make_ints("offsets", &offsets);
    let places = cx.binary(BinaryKind::Add, starts, offsets)?;
    let tokens = cx.step("tokens", Gather { axis: signed(axis) }, [x, places])?;
    let tokens = cx.unsqueeze(tokens, &[-2])?;
    let wanted = Tensor::from_slice(&[grams.tokens.len(), length], &grams.tokens.concat());
    let wanted = cx.make("grams", wanted.map_err(|e| Refusal::new(e.to_string()))?);
    // [windows, n-grams, tokens]: where all tokens are equal, summed over the windows.
    let equal = cx.binary(BinaryKind::Equal, tokens, wanted)?;
    let equal = cx.cast(equal, DType::F32)?;
    let all = Reduce { kind: ReduceKind::Min, axes: vec![-1], keep_dims: false };
    let hits = cx.step("hits", all, [equal])?;
    let sum = Reduce { kind: ReduceKind::Sum, axes: vec![signed(axis)], keep_dims: false };
    cx.step("count", sum, [hits])
}

fn weighted(cx: &mut NodeCx, counts: ValueId, width: usize) -> Built {
    let mode = cx.text("mode", "");
    let counts = match mode.as_ref() {
        "TF" => return Ok(vec![counts]),
        "TFIDF" => counts,
        "IDF" => {
            let one = cx.scalar("one", DType::F32, 1.0);
            cx.binary(BinaryKind::Min, counts, one)?
        }
        other => return Err(Refusal::new(format!("mode=`{other}` is not known"))),
    };
    // Weights are in the order of the columns.
    match cx.attribute("weights").map(|a| a.floats.as_slice()).filter(|weights| !weights.is_empty()) {
        None => Ok(vec![counts]),
        Some(weights) if weights.len() == width => {
            let weights = cx.make("weights", Tensor::vector(weights));
            Ok(vec![cx.binary(BinaryKind::Mul, counts, weights)?])
        }
        Some(weights) => Err(Refusal::new(format!("it has {} weights for {width} columns", weights.len()))),
    }
}
