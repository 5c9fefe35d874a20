//! What `sora compress` is to achieve: the greatest drop, bounds on time and size.

use std::sync::Arc;

use sora::compress::{Bound, FileSize};
use sora::data::Preprocess;
use sora::ir::{Node, Op};
use sora::{Draft, Measurement, Model, Recipe, RecipeLayer};

use super::args::Compress;
use super::compress::metadata;
use super::human_bytes;

/// The greatest drop of accuracy: none of its own where time or size is what counts or there are several results, except that training needs one.
pub(super) fn max_drop(args: &Compress) -> f64 {
    let bounded = args.max_latency.is_some() || args.max_size.is_some() || args.pareto.is_some();
    args.max_drop.unwrap_or(if bounded && args.train.is_none() { 1.0 } else { 0.01 })
}

/// The most bytes that the file may have.
pub(super) fn max_bytes(args: &Compress, model: &Model) -> Option<u64> {
    args.max_size.map(|bound| match bound {
        Bound::Value(bytes) => bytes as u64,
        Bound::Share(share) => (share * model.bytes as f64) as u64,
    })
}

/// What was asked for, in words.
pub(super) fn budget(args: &Compress) -> String {
    let share = |share: f64, what: &str| format!("{:.1} % of the {what}", 100.0 * share);
    let latency = args.max_latency.map(|bound| match bound {
        Bound::Value(ms) => format!("{ms} ms"),
        Bound::Share(part) => share(part, "time"),
    });
    let size = args.max_size.map(|bound| match bound {
        Bound::Value(bytes) => human_bytes(bytes as u64),
        Bound::Share(part) => share(part, "size"),
    });
    let drop = max_drop(args);
    let drop = (drop < 1.0 || args.max_drop.is_some()).then(|| format!("{:.2} points", 100.0 * drop));
    let all: Vec<String> = drop.into_iter().chain(latency).chain(size).collect();
    if all.is_empty() { "any drop".to_owned() } else { all.join(", ") }
}

/// Counts the bytes of the first output for a network, with what else it will hold, whose length is about known.
pub(super) fn file_size(args: &Compress, model: &Model, preprocess: &Preprocess) -> FileSize {
    /// Letters of a reason.
    const REASON: usize = 100;
    let path = args.output.first().cloned().unwrap_or_default();
    let measured =
        Measurement { samples: 10_000, accuracy: 0.123_45, ci95: [0.123_45; 2], original_accuracy: 0.123_45 };
    let recipe = Recipe { max_drop: max_drop(args), seed: args.seed, layers: Vec::new() };
    let metadata = metadata(model, preprocess, None, measured, recipe);
    FileSize(Arc::new(move |graph| {
        let converts = |node: &Node| matches!(node.op, Op::QuantizeLinear(_) | Op::DequantizeLinear(_));
        let layer = |node: &Node| RecipeLayer {
            name: node.name.clone(),
            precision: "int8".to_owned(),
            reason: "x".repeat(REASON),
        };
        let mut metadata = metadata.clone();
        if let Some(recipe) = &mut metadata.recipe {
            recipe.layers =
                graph.nodes().map(|(_, node)| node).filter(|node| !converts(node)).map(layer).collect();
        }
        let result = Model { metadata, ..Model::of(graph.clone()) };
        result.drafts(&path).map_or(u64::MAX, |files| files.iter().map(Draft::len).sum())
    }))
}
