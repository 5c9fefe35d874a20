//! `sora inspect`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sora::exec::{Options, Program};
use sora::format::Stored;
use sora::ir::{Def, Dim, Graph, QuantRule, TensorType};
use sora::tensor::{DType, Tensor};
use sora::{Failure, Kind, Model, format, onnx, rewrite};

use super::args::Inspect;
use super::diff;
use super::shapes::or_one;
use super::support;
use super::{Printed, human_bytes, human_count, one_line, warn};
use sora::table;

pub(super) fn inspect(args: &Inspect) -> Printed {
    if let Some(old) = &args.diff {
        return diff::diff(old, &args.model, args.json);
    }
    let unsupported = Model::unsupported(&args.model)?;
    if !unsupported.is_empty() {
        return Ok(report_unsupported(args, &unsupported));
    }
    let model = Model::load(&args.model)?;
    warn(&model.warnings);
    let shapes = or_one(&model, &args.shapes)?;
    let session = model.clone().session(Options::default());
    let program = session.and_then(|session| session.program(&shapes));
    let memory = program.as_deref().ok().map(Memory::of);
    let stored = match Kind::of(&args.model)? {
        Kind::Sora => format::stored(&args.model)?,
        _ => Stored::new(),
    };
    let summary = Summary { memory, stored, ..Summary::of(&model.graph) };
    if args.json {
        let mut object = summary.json(&model);
        if let (true, Value::Object(object)) = (args.support, &mut object) {
            object.insert("support".to_owned(), support::as_json(&model, program.as_deref()));
        }
        return Ok(one_line(&object));
    }
    let mut text = summary.text(&model);
    if args.support {
        text += &format!("\n{}", support::text(&model, program.as_deref()));
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
            .map(|i| json!({"node": i.node, "op": i.op, "attribute": i.attribute, "why": i.why, "hint": i.hint}))
            .collect();
        return one_line(&json!({
            "nodes": null, "parameters": null, "macs": null, "bytes": null,
            "inputs": null, "outputs": null, "unsupported": list,
        }));
    }
    let row = |i: &onnx::NodeIssue| {
        vec![i.node.clone(), i.op.clone(), i.attribute.clone(), i.why.clone(), i.hint.clone()]
    };
    let rows: Vec<Vec<String>> = issues.iter().map(row).collect();
    let count = issues.len();
    let head = ["node", "operator", "attribute", "why", "what to do"];
    format!("{count} nodes of this model are not supported:\n{}", table(&head, &rows))
}

/// What can be counted without running the model.
pub(super) struct Summary {
    pub(super) nodes: usize,
    pub(super) parameters: u64,
    pub(super) weight_bytes: u64,
    /// Multiply-adds with symbolic extents taken as 1.
    pub(super) macs: u64,
    operators: BTreeMap<String, (usize, u64)>,
    quantized: usize,
    quantizable: usize,
    /// Share of zeros among the weights of layers.
    zeros: f64,
    /// Memory of a program that runs it.
    memory: Option<Memory>,
    /// Nothing but for `.sora` files.
    stored: Stored,
}

/// What running the model takes on this machine.
struct Memory {
    /// Intermediate tensors of one run.
    arena: usize,
    /// Weights as kernels read them.
    weights: usize,
}

impl Memory {
    fn of(program: &Program) -> Memory {
        Memory { arena: program.arena_bytes(), weights: program.weight_bytes() }
    }
}

impl Summary {
    pub(super) fn of(graph: &Graph) -> Self {
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
            stored: Stored::new(),
        };
        let (mut zeros, mut weights) = (0u64, 0u64);
        summary.add(graph, &mut zeros, &mut weights);
        summary.zeros = zeros as f64 / weights.max(1) as f64;
        summary
    }

    /// Counts a graph and the bodies in it, each as if it ran once.
    fn add(&mut self, graph: &Graph, zeros: &mut u64, weights: &mut u64) {
        for (_, node) in graph.nodes() {
            self.nodes += 1;
            let inputs: Vec<Option<&TensorType>> =
                node.inputs.iter().map(|id| id.map(|id| graph.ty(id))).collect();
            let outputs: Vec<&TensorType> = node.outputs.iter().map(|&id| graph.ty(id)).collect();
            let macs = at_batch_one(&node.op.macs(&inputs, &outputs));
            self.macs += macs;
            let entry = self.operators.entry(node.op.label().into_owned()).or_default();
            *entry = (entry.0 + 1, entry.1 + macs);
            if let (QuantRule::Linear { .. }, Some(&Some(weight))) = (node.op.quant(), node.inputs.get(1)) {
                let integer =
                    graph.producer(weight).is_some_and(|(_, n, _)| n.op.name() == "DequantizeLinear");
                self.quantizable += 1;
                self.quantized += usize::from(integer);
                let stored = match graph.producer(weight) {
                    Some((_, producer, _)) if integer => producer.inputs.first().copied().flatten(),
                    _ => Some(weight),
                };
                if let Some(tensor) = stored.and_then(|id| graph.const_value(id)) {
                    *weights += tensor.len() as u64;
                    *zeros += count_zeros(tensor);
                }
            }
            for body in node.op.bodies() {
                self.add(body.graph(), zeros, weights);
            }
        }
        for (_, value) in graph.values() {
            if let Def::Const(tensor) = &value.def {
                self.parameters += tensor.len() as u64;
                self.weight_bytes += tensor.byte_len() as u64;
            }
        }
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
        let stored = |(&(dtype, coding), &(bytes, elements)): (&(DType, format::Coding), &(u64, u64))| {
            json!({
                "dtype": dtype.to_string(), "coding": coding.name(), "bytes": bytes, "decoded_bytes": elements,
            })
        };
        let stored: Vec<Value> = self.stored.iter().map(stored).collect();
        json!({
            "nodes": self.nodes, "parameters": self.parameters, "macs": self.macs, "bytes": model.bytes,
            "weight_bytes": self.weight_bytes, "stored": stored, "operators": operators,
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
        if !self.stored.is_empty() {
            let part = |(&(dtype, coding), &(bytes, elements)): (&(DType, format::Coding), &(u64, u64))| {
                let bytes = human_bytes(bytes);
                match coding {
                    format::Coding::Raw => format!("{dtype} {bytes}"),
                    _ => format!("{dtype} coded by {} {bytes} of {}", coding.name(), human_bytes(elements)),
                }
            };
            let parts: Vec<String> = self.stored.iter().map(part).collect();
            text += &format!("  stored  {}\n", parts.join(", "));
        }
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

/// The zeros of a tensor. Those of `f32` and of bytes are counted where they lie, as large weights are of these.
pub(super) fn count_zeros(tensor: &Tensor) -> u64 {
    let zeros = match tensor.dtype() {
        DType::F32 => {
            let (numbers, _) = tensor.raw().as_chunks::<4>();
            numbers.iter().filter(|&&n| f32::from_ne_bytes(n) == 0.0).count()
        }
        DType::I8 | DType::U8 => tensor.raw().iter().filter(|&&byte| byte == 0).count(),
        _ => tensor.to_f64s().iter().filter(|&&v| v == 0.0).count(),
    };
    tensor.release();
    zeros as u64
}

fn dim_json(dim: &Dim) -> Value {
    dim.known().map_or_else(|| Value::from(dim.to_string()), Value::from)
}

fn at_batch_one(macs: &Dim) -> u64 {
    macs.eval(&|_| Some(1)).and_then(|v| u64::try_from(v).ok()).unwrap_or(0)
}
