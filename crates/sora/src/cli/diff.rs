//! `sora inspect --diff`: what one model has otherwise than another.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Value, json};
use sora::compress::range::decibels;
use sora::ir::{Graph, Node, Op};
use sora::tensor::Tensor;
use sora::{Failure, Model, rewrite, table};

use super::explain::weights;
use super::inspect::{Summary, count_zeros};
use super::{Printed, human_bytes, human_count, one_line, warn};

/// Compares the model at `new` with the one at `old`.
pub(super) fn diff(old: &Path, new: &Path, json: bool) -> Printed {
    let load = |path: &Path| -> Result<Model, Failure> {
        let model = Model::load(path)?;
        warn(&model.warnings);
        Ok(model)
    };
    let (before, after) = (load(old)?, load(new)?);
    let difference = Difference {
        sizes: [sizes(&before), sizes(&after)],
        inputs: changes(&inputs(&before.graph), &inputs(&after.graph)),
        outputs: changes(&outputs(&before.graph), &outputs(&after.graph)),
        nodes: nodes(&before.graph, &after.graph),
        weights: pairs(&optimized(before.graph, old)?, &optimized(after.graph, new)?),
    };
    Ok(match json {
        true => one_line(&difference.json()),
        false => format!("{} → {}\n{}", old.display(), new.display(), difference.text()),
    })
}

/// Networks are optimized before they are compressed: only in that form do the weights of both stand for the same.
fn optimized(mut graph: Graph, path: &Path) -> Result<Graph, Failure> {
    let done = rewrite::optimize(&mut graph, &rewrite::Options::default());
    done.map_err(|e| {
        let what = format!("Optimizing failed: {e}");
        Failure::new(what, path.display().to_string(), "Report this as a defect.")
    })?;
    Ok(graph)
}

struct Difference {
    sizes: [BTreeMap<&'static str, u64>; 2],
    inputs: Vec<Change>,
    outputs: Vec<Change>,
    nodes: Vec<Change>,
    weights: Vec<Pair>,
}

/// What is under a name in either model; different.
struct Change {
    name: String,
    before: Option<String>,
    after: Option<String>,
}

/// How much a model takes, in the order of the alphabet.
fn sizes(model: &Model) -> BTreeMap<&'static str, u64> {
    let summary = Summary::of(&model.graph);
    BTreeMap::from([
        ("bytes", model.bytes),
        ("macs", summary.macs),
        ("nodes", summary.nodes as u64),
        ("parameters", summary.parameters),
        ("weight_bytes", summary.weight_bytes),
    ])
}

fn inputs(graph: &Graph) -> Vec<(String, String)> {
    graph.inputs().iter().map(|&id| (graph.value(id).name.clone(), graph.ty(id).to_string())).collect()
}

fn outputs(graph: &Graph) -> Vec<(String, String)> {
    graph.outputs().iter().map(|o| (o.name.clone(), graph.ty(o.value).to_string())).collect()
}

/// What differs between named things, in their order: those that were there, then new ones.
fn changes(before: &[(String, String)], after: &[(String, String)]) -> Vec<Change> {
    let map = |of: &[(String, String)]| -> HashMap<String, String> { of.iter().cloned().collect() };
    let (old, new) = (map(before), map(after));
    let added = after.iter().filter(|(name, _)| !old.contains_key(name));
    let all = before.iter().chain(added).map(|(name, _)| Change {
        name: name.clone(),
        before: old.get(name).cloned(),
        after: new.get(name).cloned(),
    });
    all.filter(|change| change.before != change.after).collect()
}

/// The nodes that differ in their operator, its attributes, or the types of what they give.
fn nodes(before: &Graph, after: &Graph) -> Vec<Change> {
    let described = |graph: &Graph| -> Vec<(String, String)> {
        let describe = |node: &Node| {
            let types: Vec<String> = node.outputs.iter().map(|&v| graph.ty(v).to_string()).collect();
            (node.name.clone(), format!("{} {}", node.op.label(), types.join(", ")))
        };
        graph.nodes().map(|(_, node)| describe(node)).collect()
    };
    let (mut old, mut new) = (described(before), described(after));
    let operators = |graph: &Graph| -> HashMap<String, Op> {
        graph.nodes().map(|(_, node)| (node.name.clone(), node.op.clone())).collect()
    };
    // What the labels do not say is said where it is the difference.
    let (old_operators, new_operators) = (operators(before), operators(after));
    let explain = |name: &str, at: &mut String, operators: &HashMap<String, Op>| {
        if let (Some(a), Some(b)) = (old_operators.get(name), new_operators.get(name))
            && a != b
            && a.label() == b.label()
        {
            let attributes = serde_json::to_string(&operators[name]).unwrap_or_default();
            *at += &format!(" {attributes}");
        }
    };
    old.iter_mut().for_each(|(name, at)| explain(name, at, &old_operators));
    new.iter_mut().for_each(|(name, at)| explain(name, at, &new_operators));
    changes(&old, &new)
}

/// Weights that both models have: the same input of the node of the same name.
struct Pair {
    node: String,
    input: usize,
    before: Side,
    after: Side,
    /// Both hold the same numbers.
    equal: bool,
    /// Of the numbers that the new weights stand for; `None` where their shape is another one.
    sqnr_db: Option<f64>,
}

/// Weights as one model stores them.
struct Side {
    dtype: String,
    shape: Vec<usize>,
    /// In memory.
    bytes: u64,
    zeros: f64,
}

impl Side {
    fn of(stored: &Tensor) -> Self {
        Side {
            dtype: stored.dtype().to_string(),
            shape: stored.shape().to_vec(),
            bytes: stored.byte_len() as u64,
            zeros: count_zeros(stored) as f64 / stored.len().max(1) as f64,
        }
    }
}

fn pairs(before: &Graph, after: &Graph) -> Vec<Pair> {
    let is_layer = |node: &Node| !matches!(node.op, Op::QuantizeLinear(_) | Op::DequantizeLinear(_));
    let by_name: HashMap<&str, &Node> =
        after.nodes().map(|(_, node)| node).filter(|n| is_layer(n)).map(|n| (n.name.as_str(), n)).collect();
    let mut pairs = Vec::new();
    for (_, node) in before.nodes().filter(|(_, node)| is_layer(node)) {
        let Some(other) = by_name.get(node.name.as_str()) else { continue };
        for (input, (&a, &b)) in node.inputs.iter().zip(&other.inputs).enumerate() {
            let old = a.and_then(|v| weights(before, v));
            let new = b.and_then(|v| weights(after, v));
            let (Some((old, real)), Some((new, approximate))) = (old, new) else { continue };
            let (equal, sqnr_db) = compare(&real, &approximate);
            let (node, before, after) = (node.name.clone(), Side::of(old), Side::of(new));
            pairs.push(Pair { node, input, before, after, equal, sqnr_db });
        }
    }
    pairs
}

/// Whether two tensors hold the same numbers, and the signal-to-noise ratio of the second one in dB.
fn compare(real: &Tensor, approximate: &Tensor) -> (bool, Option<f64>) {
    if real.shape() != approximate.shape() {
        return (false, None);
    }
    let (mut signal, mut noise) = (0.0, 0.0);
    for (a, b) in real.to_f32s().into_iter().zip(approximate.to_f32s()) {
        let (a, b) = (f64::from(a), f64::from(b));
        signal += a * a;
        noise += (a - b) * (a - b);
    }
    (noise == 0.0, Some(decibels(signal, noise)))
}

impl Difference {
    fn json(&self) -> Value {
        let changes = |changes: &[Change]| -> Vec<Value> {
            let one = |c: &Change| json!({"name": c.name, "before": c.before, "after": c.after});
            changes.iter().map(one).collect()
        };
        let side = |side: &Side| json!({"dtype": side.dtype, "shape": side.shape, "bytes": side.bytes, "zeros": side.zeros});
        let pair = |pair: &Pair| {
            json!({
                "node": pair.node, "input": pair.input, "before": side(&pair.before), "after": side(&pair.after),
                "equal": pair.equal, "sqnr_db": pair.sqnr_db.filter(|db| db.is_finite()),
            })
        };
        json!({
            "before": self.sizes[0], "after": self.sizes[1], "inputs": changes(&self.inputs),
            "outputs": changes(&self.outputs), "nodes": changes(&self.nodes),
            "weights": self.weights.iter().map(pair).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let labels = [
            ("bytes", "file"),
            ("weight_bytes", "weights"),
            ("parameters", "parameters"),
            ("macs", "multiply-adds"),
            ("nodes", "nodes"),
        ];
        for (key, label) in labels {
            let shown = |n: u64| if key.ends_with("bytes") { human_bytes(n) } else { human_count(n) };
            let [before, after] = [self.sizes[0][key], self.sizes[1][key]];
            let ratio = after as f64 / before.max(1) as f64;
            text += &format!("  {label:<14}{} → {} ({ratio:.2}×)\n", shown(before), shown(after));
        }
        for (what, changes) in [("inputs", &self.inputs), ("outputs", &self.outputs), ("nodes", &self.nodes)]
        {
            if changes.is_empty() {
                text += &format!("\nThe {what} are the same.\n");
                continue;
            }
            let count = |is: fn(&Change) -> bool| changes.iter().filter(|c| is(c)).count();
            let (added, removed) = (count(|c| c.before.is_none()), count(|c| c.after.is_none()));
            let changed = changes.len() - added - removed;
            text += &format!("\n{what}: {added} added, {removed} removed, {changed} changed\n");
            text.extend(changes.iter().map(|c| match (&c.before, &c.after) {
                (None, Some(after)) => format!("  + {}: {after}\n", c.name),
                (Some(before), None) => format!("  - {}: {before}\n", c.name),
                (before, after) => format!(
                    "  ~ {}: {} → {}\n",
                    c.name,
                    before.as_deref().unwrap_or_default(),
                    after.as_deref().unwrap_or_default()
                ),
            }));
        }
        let row = |pair: &Pair| {
            let (a, b) = (&pair.before, &pair.after);
            let arrow = |a: String, b: String| if a == b { a } else { format!("{a} → {b}") };
            vec![
                format!("{} #{}", pair.node, pair.input),
                arrow(a.dtype.clone(), b.dtype.clone()),
                arrow(format!("{:?}", a.shape), format!("{:?}", b.shape)),
                arrow(human_bytes(a.bytes), human_bytes(b.bytes)),
                arrow(format!("{:.1} %", 100.0 * a.zeros), format!("{:.1} %", 100.0 * b.zeros)),
                match pair.sqnr_db {
                    _ if pair.equal => "equal".to_owned(),
                    Some(db) => format!("{db:.1}"),
                    None => "–".to_owned(),
                },
            ]
        };
        let rows: Vec<Vec<String>> = self.weights.iter().map(row).collect();
        let head = ["weights (node #input)", "dtype", "shape", "bytes", "zeros", "SQNR dB"];
        match rows.is_empty() {
            true => text + "\nNo node of the same name has weights in both.\n",
            false => text + "\n" + &table(&head, &rows),
        }
    }
}
