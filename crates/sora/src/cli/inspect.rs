//! `sora inspect`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sora::exec::{Options, Program};
use sora::ir::{Def, Dim, Graph, QuantRule, TensorType};
use sora::{Failure, Model, onnx, rewrite};

use super::args::Inspect;
use super::support;
use super::table::table;
use super::{Printed, human_bytes, human_count, one_line, warn};

pub(super) fn inspect(args: &Inspect) -> Printed {
    let unsupported = Model::unsupported(&args.model)?;
    if !unsupported.is_empty() {
        return Ok(report_unsupported(args, &unsupported));
    }
    let model = Model::load(&args.model)?;
    warn(&model.warnings);
    let summary = Summary { memory: Memory::of(&model), ..Summary::of(&model.graph) };
    if args.json {
        let mut object = summary.json(&model);
        if let (true, Value::Object(object)) = (args.support, &mut object) {
            object.insert("support".to_owned(), support::as_json(&model));
        }
        return Ok(one_line(&object));
    }
    let mut text = summary.text(&model);
    if args.support {
        text += &format!("\n{}", support::text(&model));
    }
    if args.explain {
        let mut graph = model.graph.clone();
        let report = rewrite::optimize(&mut graph, &rewrite::Options::default()).map_err(|e| {
            Failure::new(
                format!("Optimizing failed: {e}"),
                args.model.display().to_string(),
                "Report this as a defect.",
            )
        })?;
        text += &format!("\nGraph optimization\n{report}\n");
    }
    Ok(text)
}

fn report_unsupported(args: &Inspect, issues: &[onnx::NodeIssue]) -> String {
    if args.json {
        let list: Vec<Value> = issues
            .iter()
            .map(|i| json!({"node": i.node, "op": i.op, "why": format!("{} {}", i.why, i.hint)}))
            .collect();
        return one_line(&json!({
            "nodes": null, "parameters": null, "macs": null, "bytes": null,
            "inputs": null, "outputs": null, "unsupported": list,
        }));
    }
    let rows: Vec<Vec<String>> =
        issues.iter().map(|i| vec![i.node.clone(), i.op.clone(), format!("{} {}", i.why, i.hint)]).collect();
    let count = issues.len();
    format!("{count} nodes of this model are not supported:\n{}", table(&["node", "operator", "why"], &rows))
}

/// What can be counted without running the model.
struct Summary {
    nodes: usize,
    parameters: u64,
    weight_bytes: u64,
    /// Multiply-adds with symbolic extents taken as 1.
    macs: u64,
    operators: BTreeMap<String, (usize, u64)>,
    quantized: usize,
    quantizable: usize,
    /// Share of zeros among the weights of layers.
    zeros: f64,
    /// Memory of a program that runs it.
    memory: Option<Memory>,
}

/// What running the model takes on this machine, open extents taken as 1.
struct Memory {
    /// Intermediate tensors of one run.
    arena: usize,
    /// Weights as kernels read them.
    weights: usize,
}

impl Memory {
    /// `None` where the extents do not fit, or the model has none that can be compiled.
    fn of(model: &Model) -> Option<Memory> {
        let program = Program::compile(&model.graph, &model.shapes_at_one(), &Options::default()).ok()?;
        Some(Memory { arena: program.arena_bytes(), weights: program.weight_bytes() })
    }
}

impl Summary {
    fn of(graph: &Graph) -> Self {
        let mut summary = Summary {
            nodes: 0,
            parameters: 0,
            weight_bytes: 0,
            macs: 0,
            operators: BTreeMap::new(),
            quantized: 0,
            quantizable: 0,
            zeros: 0.0,
            memory: None,
        };
        let (mut zeros, mut weights) = (0u64, 0u64);
        for (_, node) in graph.nodes() {
            summary.nodes += 1;
            let inputs: Vec<Option<&TensorType>> =
                node.inputs.iter().map(|id| id.map(|id| graph.ty(id))).collect();
            let outputs: Vec<&TensorType> = node.outputs.iter().map(|&id| graph.ty(id)).collect();
            let macs = at_batch_one(&node.op.macs(&inputs, &outputs));
            summary.macs += macs;
            let entry = summary.operators.entry(node.op.label().into_owned()).or_default();
            *entry = (entry.0 + 1, entry.1 + macs);
            if let (QuantRule::Linear { .. }, Some(&Some(weight))) = (node.op.quant(), node.inputs.get(1)) {
                let integer =
                    graph.producer(weight).is_some_and(|(_, n, _)| n.op.name() == "DequantizeLinear");
                summary.quantizable += 1;
                summary.quantized += usize::from(integer);
                let stored = match graph.producer(weight) {
                    Some((_, producer, _)) if integer => producer.inputs.first().copied().flatten(),
                    _ => Some(weight),
                };
                if let Some(tensor) = stored.and_then(|id| graph.const_value(id)) {
                    weights += tensor.len() as u64;
                    zeros += tensor.to_f64s().iter().filter(|&&v| v == 0.0).count() as u64;
                }
            }
        }
        for (_, value) in graph.values() {
            if let Def::Const(tensor) = &value.def {
                summary.parameters += tensor.len() as u64;
                summary.weight_bytes += tensor.byte_len() as u64;
            }
        }
        summary.zeros = zeros as f64 / weights.max(1) as f64;
        summary
    }

    fn json(&self, model: &Model) -> Value {
        let graph = &model.graph;
        let describe = |name: &str, ty: &TensorType| {
            let shape: Vec<Value> = ty.shape.iter().map(dim_json).collect();
            json!({"name": name, "dtype": ty.dtype.to_string(), "shape": shape})
        };
        let inputs: Vec<Value> =
            graph.inputs().iter().map(|&id| describe(&graph.value(id).name, graph.ty(id))).collect();
        let outputs: Vec<Value> =
            graph.outputs().iter().map(|o| describe(&o.name, graph.ty(o.value))).collect();
        let operators: BTreeMap<&String, usize> = self.operators.iter().map(|(k, v)| (k, v.0)).collect();
        json!({
            "nodes": self.nodes, "parameters": self.parameters, "macs": self.macs, "bytes": model.bytes,
            "weight_bytes": self.weight_bytes, "operators": operators,
            "layers": self.quantizable, "quantized_layers": self.quantized, "zero_weights": self.zeros,
            "inputs": inputs, "outputs": outputs, "unsupported": [],
            "arena_bytes": self.memory.as_ref().map(|m| m.arena),
            "packed_weight_bytes": self.memory.as_ref().map(|m| m.weights),
            "metadata": model.metadata,
        })
    }

    fn text(&self, model: &Model) -> String {
        let graph = &model.graph;
        let mut text = format!("{}\n", graph.name);
        for &id in graph.inputs() {
            text += &format!("  input   {}: {}\n", graph.value(id).name, graph.ty(id));
        }
        for output in graph.outputs() {
            text += &format!("  output  {}: {}\n", output.name, graph.ty(output.value));
        }
        text += &format!(
            "  {} nodes, {} parameters, {} multiply-adds (open extents taken as 1), file {}, weights {}\n",
            self.nodes,
            human_count(self.parameters),
            human_count(self.macs),
            human_bytes(model.bytes),
            human_bytes(self.weight_bytes),
        );
        text += &format!(
            "  {} of {} layers with integer weights; {:.1} % of the layers' weights are zero\n",
            self.quantized,
            self.quantizable,
            100.0 * self.zeros
        );
        if let Some(memory) = &self.memory {
            text += &format!(
                "  a run takes {} for intermediate tensors, and {} of packed weights that runs share\n",
                human_bytes(memory.arena as u64),
                human_bytes(memory.weights as u64)
            );
        }
        if let Some(preprocess) = &model.metadata.preprocess {
            text += &format!("  preprocessing  {preprocess}\n");
        }
        if let Some(measured) = &model.metadata.measured {
            text += &format!(
                "  measured  accuracy {:.2} % on {} samples (original {:.2} %)\n",
                100.0 * measured.accuracy,
                measured.samples,
                100.0 * measured.original_accuracy
            );
        }
        let rows: Vec<Vec<String>> = self
            .operators
            .iter()
            .map(|(name, (count, macs))| vec![name.clone(), count.to_string(), human_count(*macs)])
            .collect();
        text + "\n" + &table(&["operator", "nodes", "multiply-adds"], &rows)
    }
}

fn dim_json(dim: &Dim) -> Value {
    dim.known().map_or_else(|| Value::from(dim.to_string()), Value::from)
}

fn at_batch_one(macs: &Dim) -> u64 {
    macs.eval(&|_| Some(1)).and_then(|v| u64::try_from(v).ok()).unwrap_or(0)
}
