//! `sora explain`: one layer of a model, with the distributions of its weights and activations.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use sora::compress::histogram::Histogram;
use sora::ir::{Graph, Node, Op, ValueId, evaluate};
use sora::report::Tried;
use sora::tensor::{DType, Tensor};
use sora::{Failure, Model, compress, data};

use super::args::{Data, Explain};
use super::evaluate::{compression_failure, open};
use super::progress::Bars;
use super::{Printed, human_count, one_line, warn};

pub(super) fn explain(args: &Explain) -> Printed {
    let model = Model::load(&args.model)?;
    warn(&model.warnings);
    let graph = &model.graph;
    let node = find(args, &model)?;
    let mut shown = Vec::new();
    let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
    for &input in &inputs {
        if let Some((stored, real)) = weights(graph, input) {
            let mut spread = Histogram::new();
            spread.add(&real.to_f32s());
            let stored = format!("{} {:?}", stored.dtype(), stored.shape());
            shown.push(Shown { role: "weights", name: graph.value(input).name.clone(), stored, spread });
        }
    }
    let is_activation = |&&v: &&ValueId| graph.ty(v).dtype == DType::F32 && weights(graph, v).is_none();
    let roles = inputs.iter().filter(is_activation).map(|&v| ("input", v));
    let roles: Vec<(&str, ValueId)> = roles.chain(node.outputs.iter().map(|&v| ("output", v))).collect();
    if let Some(data) = &args.data {
        let (data, preprocess) =
            open(&model, &Data { data: data.clone(), preprocess: args.preprocess.clone() })?;
        let values: Vec<ValueId> = roles.iter().map(|(_, value)| *value).collect();
        let samples = (args.samples as usize).min(data.len());
        let options = sora::exec::Options::default();
        let bars = Bars::new();
        let spreads = compress::distributions(graph, &values, &data, &preprocess, samples, &options, &bars);
        drop(bars);
        for ((role, value), spread) in roles.iter().zip(spreads.map_err(|e| compression_failure(&e))?) {
            let (name, stored) = (graph.value(*value).name.clone(), graph.ty(*value).to_string());
            shown.push(Shown { role, name, stored, spread });
        }
    }
    let choice = model.metadata.recipe.as_ref().and_then(|r| r.layers.iter().find(|l| l.name == args.layer));
    let reported = args.report.as_deref().map(|path| reported(path, &args.layer)).transpose()?;
    if args.json {
        let ports = |role: &str| -> Vec<Value> {
            let of_role = roles.iter().filter(|(own, _)| *own == role);
            let port = |(_, v): &(&str, ValueId)| json!({"name": graph.value(*v).name, "type": graph.ty(*v).to_string()});
            of_role.map(port).collect()
        };
        let (tried, not_pruned) = reported.map(|layer| (layer.tried, layer.not_pruned)).unwrap_or_default();
        return Ok(one_line(&json!({
            "tried": tried, "not_pruned": not_pruned,
            "layer": node.name, "op": node.op.label(), "inputs": ports("input"), "outputs": ports("output"),
            "precision": choice.map(|c| &c.precision), "reason": choice.map(|c| &c.reason),
            "distributions": shown.iter().map(Shown::json).collect::<Vec<_>>(),
        })));
    }
    let mut text = format!("{} ({})\n", node.name, node.op.label());
    for (role, value) in &roles {
        text += &format!("  {role:<8}{}: {}\n", graph.value(*value).name, graph.ty(*value));
    }
    match choice {
        Some(choice) => text += &format!("  {}: {}\n", choice.precision, choice.reason),
        None if model.metadata.recipe.is_none() => {
            text += "  as it came: `sora compress` did not make this file\n"
        }
        None => {}
    }
    if let Some(layer) = &reported {
        text.extend(layer.not_pruned.iter().map(|why| format!("  not pruned: {why}\n")));
        text.extend(layer.tried.iter().map(|tried| format!("  alone in {}\n", tried.words())));
    }
    text.extend(shown.iter().map(Shown::text));
    if args.data.is_none() {
        text += "\nWith --data, the distributions of what it reads and gives are shown as well.\n";
    }
    Ok(text)
}

/// What a report says of a layer.
#[derive(Deserialize)]
struct Reported {
    name: String,
    tried: Vec<Tried>,
    not_pruned: Option<String>,
}

/// What the report or the JSON of a compression says of a layer.
fn reported(path: &Path, layer: &str) -> Result<Reported, Failure> {
    #[derive(Deserialize)]
    struct Layers {
        layers: Vec<Reported>,
    }
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io("read the report", path, &e))?;
    // A report holds its figures as JSON once more.
    let json = text.split_once("id=\"report\">").map_or(text.as_str(), |(_, rest)| rest);
    let json = json.split_once("</script>").map_or(json, |(json, _)| json);
    let place = path.display().to_string();
    let Layers { layers } = serde_json::from_str(json).map_err(|error| {
        let hint = "`sora compress` writes such files with --report and, to standard output, with --json.";
        Failure::new(format!("This is no report of a compression: {error}."), place.clone(), hint)
    })?;
    let names: Vec<String> = layers.iter().map(|layer| layer.name.clone()).collect();
    layers.into_iter().find(|known| known.name == layer).ok_or_else(|| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Failure::new(format!("The report has no layer `{layer}`."), place, data::suggestion(layer, &names))
    })
}

/// The node of this name.
fn find<'m>(args: &Explain, model: &'m Model) -> Result<&'m Node, Failure> {
    let nodes = || model.graph.nodes().map(|(_, node)| node);
    nodes().find(|node| node.name == args.layer).ok_or_else(|| {
        let layers =
            nodes().filter(|node| !matches!(node.op, Op::QuantizeLinear(_) | Op::DequantizeLinear(_)));
        let names: Vec<&str> = layers.map(|node| node.name.as_str()).collect();
        let within: Vec<&str> = names.iter().copied().filter(|name| name.contains(&args.layer)).collect();
        let hint = match within.as_slice() {
            [] => data::suggestion(&args.layer, &names),
            _ => format!("There are {}.", within.join(", ")),
        };
        Failure::new(format!("There is no layer `{}`.", args.layer), args.model.display().to_string(), hint)
    })
}

/// A constant as it is stored, and the numbers that it stands for; also one behind a `DequantizeLinear`.
pub(super) fn weights(graph: &Graph, value: ValueId) -> Option<(&Tensor, Tensor)> {
    if let Some(tensor) = graph.const_value(value) {
        return tensor.dtype().is_float().then(|| (tensor, tensor.clone()));
    }
    let (_, node, _) =
        graph.producer(value).filter(|(_, node, _)| matches!(node.op, Op::DequantizeLinear(_)))?;
    let mut alone = Graph::new("weights");
    let mut inputs = Vec::new();
    for input in &node.inputs {
        let mut constant =
            |v: &ValueId| Some(alone.constant(&graph.value(*v).name, graph.const_value(*v)?.clone()));
        inputs.push(match input {
            Some(v) => Some(constant(v)?),
            None => None,
        });
    }
    let real = *alone.add("real", node.op.clone(), inputs).ok()?.first()?;
    alone.output("real", real);
    let stored = graph.const_value(node.inputs.first().copied().flatten()?)?;
    Some((stored, evaluate(&alone, &[]).ok()?.into_iter().next()?))
}

/// The distribution of the elements of a tensor.
struct Shown {
    role: &'static str,
    name: String,
    /// Type and shape.
    stored: String,
    spread: Histogram,
}

/// Lines of a drawn distribution.
const LINES: usize = 16;

impl Shown {
    /// Equal parts of the range: lower edge and count of each.
    fn lines(&self) -> Vec<(f64, u64)> {
        let Some((low, high)) = self.spread.extremes() else { return Vec::new() };
        let (low, high) = (f64::from(low), f64::from(high));
        let width = ((high - low) / LINES as f64).max(f64::MIN_POSITIVE);
        let count = if high > low { LINES } else { 1 };
        let mut lines: Vec<(f64, u64)> = (0..count).map(|i| (low + i as f64 * width, 0)).collect();
        let mut add = |value: f64, count: u64| {
            let at = (((value - low) / width).max(0.0) as usize).min(lines.len() - 1);
            lines[at].1 += count;
        };
        let half = self.spread.width() / 2.0;
        self.spread.bins().for_each(|(edge, count)| add(edge + half, count));
        if self.spread.zeros() > 0 {
            add(0.0, self.spread.zeros());
        }
        lines
    }

    fn zeros(&self) -> f64 {
        self.spread.zeros() as f64 / self.spread.total().max(1) as f64
    }

    fn json(&self) -> Value {
        let extremes = self.spread.extremes().map(|(low, high)| [low, high]);
        json!({
            "role": self.role, "name": self.name, "type": self.stored, "elements": self.spread.total(),
            "zeros": self.zeros(), "extremes": extremes, "nonfinite": self.spread.nonfinite(),
            "histogram": self.lines().iter().map(|(edge, count)| json!({"from": edge, "count": count})).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let mut text = format!(
            "\n{} {} ({}): {} elements, {:.1} % zeros\n",
            self.role,
            self.name,
            self.stored,
            human_count(self.spread.total()),
            100.0 * self.zeros()
        );
        if self.spread.nonfinite() > 0 {
            text += &format!("  {} are NaN or infinite\n", self.spread.nonfinite());
        }
        let lines = self.lines();
        let most = lines.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
        for (edge, count) in lines {
            let share = 100.0 * count as f64 / self.spread.total().max(1) as f64;
            let bar = "█".repeat((40 * count).div_ceil(most) as usize);
            text += &format!("  {edge:>11.4} {share:>6.2} % {bar}\n");
        }
        text
    }
}
