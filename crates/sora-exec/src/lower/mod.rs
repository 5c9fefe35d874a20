//! Lowers a graph with concrete shapes to steps.
//!
//! Nodes are visited in order of execution. Each asks for its inputs in the form it likes best (see
//! [`layout`]) and defines its outputs in the form it gives; conversions arise only where the two differ, so
//! channels-last regions and byte regions grow by themselves. A quantized value is never dequantized unless a
//! node asks for its real numbers. Nodes that one kernel can do together form a [`chain::Chain`], emitted
//! where its last node stands.

mod attention;
mod bf16;
mod build;
pub(crate) mod chain;
mod control;
mod conv;
mod depthwise;
mod dynamic;
mod elementwise;
mod gradient;
pub(crate) mod layout;
mod live;
mod matmul;
mod movement;
mod norm;
mod pool;
mod quant;
mod recurrent;
mod regions;
mod resize;
mod select;
mod sparse;
mod tape;
mod weights;
mod winograd;

use std::collections::{HashMap, HashSet};

use sora_ir::{Graph, Node, NodeId, Op, ValueId};
use sora_kernels::Kernels;
use sora_tensor::{DType, Tensor};

use crate::program::Lowered;
use crate::programs::Setting;
use crate::steps::movement::View;
use crate::steps::reference::{Argument, Reference};
use crate::weights::WeightStore;
use crate::{Choice, ExecError, Options, Precision, StepInfo, Tuning};
use build::{Buf, Builder};
use chain::{Chain, Fusion};
use layout::{Form, Layout};
use quant::ByteFunction;

/// The state of lowering one graph.
pub(crate) struct Lowering<'g> {
    graph: &'g Graph,
    kernels: Kernels,
    precision: Precision,
    /// Threads that will share the work of a step.
    threads: usize,
    weights: &'g WeightStore,
    setting: &'g Setting,
    tuning: Option<&'g Tuning>,
    /// By node: what was chosen for the step that begins with it.
    choices: HashMap<NodeId, Choice>,
    build: Builder,
    /// By value: the forms it exists in so far.
    forms: Vec<Vec<Form>>,
    /// Transposes that exist only as a view of another value, until someone asks for their elements.
    views: HashMap<ValueId, (ValueId, View)>,
    /// By buffer of bytes that a table made: from which bytes, and how.
    byte_functions: HashMap<Buf, ByteFunction>,
    /// Values quantized over ranges found at run time.
    dynamics: HashMap<ValueId, dynamic::Dynamic>,
    /// By value: the nodes that read it.
    uses: Vec<Vec<NodeId>>,
    /// By value: whether it is a result.
    is_output: Vec<bool>,
    /// Nodes that a chain computes: no second one may claim them.
    claimed: HashSet<NodeId>,
}

/// Optimizes a graph of concrete shapes before lowering.
pub(crate) fn optimize(graph: &mut Graph, options: &Options) -> Result<(), ExecError> {
    let without = options.without.clone();
    let options = sora_rewrite::Options { without, ..sora_rewrite::Options::default() };
    sora_rewrite::optimize(graph, &options).map_err(|e| ExecError::Rewrite(e.to_string()))?;
    Ok(())
}

/// Whether every shape is known: what lowering needs.
pub(crate) fn has_concrete_shapes(graph: &Graph) -> bool {
    let read = graph.nodes().flat_map(|(_, n)| n.inputs.iter().flatten().chain(&n.outputs));
    let ends = graph.outputs().iter().map(|o| &o.value).chain(graph.inputs());
    read.chain(ends).all(|&id| graph.ty(id).known_len().is_some())
}

/// Lowers a graph for which [`has_concrete_shapes`] holds. `kept`: the positions of the inputs that stay in the arena,
/// and of the outputs that replace them.
pub(crate) fn lower(graph: &Graph, kept: &[[usize; 2]], setting: &Setting) -> Result<Lowered, ExecError> {
    let Setting { options, kernels, threads, weights, .. } = setting;
    let (kernels, precision, threads) = (*kernels, options.precision, threads.count());
    let tuning = match &options.tuning {
        Some(tuning) if tuning.machine == Tuning::machine_for(options)? => Some(&**tuning),
        _ => None,
    };
    let count = graph.values().count();
    let mut is_output = vec![false; count];
    graph.outputs().iter().for_each(|o| is_output[o.value.index()] = true);
    let forms = vec![Vec::new(); count];
    let build = Builder::new(kernels);
    let (uses, claimed) = (graph.uses(), HashSet::new());
    let (views, dynamics, byte_functions) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut lowering = Lowering {
        graph,
        kernels,
        precision,
        threads,
        weights,
        setting,
        tuning,
        choices: HashMap::new(),
        build,
        forms,
        views,
        dynamics,
        byte_functions,
        uses,
        is_output,
        claimed,
    };

    let mut states = vec![None; kept.len()];
    let mut given = 0;
    for (n, &id) in graph.inputs().iter().enumerate() {
        let bytes = lowering.len(id) * lowering.dtype(id).size();
        let buf = match kept.iter().position(|positions| positions[0] == n) {
            Some(state) => *states[state].insert(lowering.build.arena(bytes)),
            None => {
                given += 1;
                lowering.build.input(given - 1, bytes)
            }
        };
        lowering.define_exact(id, buf, Layout::Plain);
    }
    let mut pending: HashMap<NodeId, Chain> = HashMap::new();
    for id in graph.order()? {
        let Some(node) = graph.node(id) else { continue };
        if let Some(chain) = pending.remove(&id) {
            lowering.emit_chain(&chain)?;
        } else if !lowering.claimed.contains(&id) {
            let chain = if lowering.is_filled(node) { lowering.start(id, node) } else { None };
            let filled =
                |chain| if lowering.all_filled(&chain) { Some(chain) } else { Chain::alone(id, node) };
            match chain.and_then(filled) {
                Some(chain) if chain.nodes.len() > 1 => {
                    lowering.claimed.extend(&chain.nodes);
                    if let Some(&tail) = chain.nodes.last() {
                        pending.insert(tail, chain);
                    }
                }
                Some(chain) => lowering.emit_chain(&chain)?,
                None => lowering.emit(id, node)?,
            }
        }
    }
    let dangling = |name: &str| ExecError::Ir(sora_ir::IrError::Dangling(name.to_owned()));
    let mut outputs = Vec::new();
    for output in graph.outputs() {
        outputs.push(lowering.plain(output.value).ok_or_else(|| dangling(&output.name))?);
    }
    let next = |(old, positions): (&Option<Buf>, &[usize; 2])| Some((*old.as_ref()?, outputs[positions[1]]));
    let states: Vec<_> = states.iter().zip(kept).filter_map(next).collect();
    let given = |i: &usize| kept.iter().all(|positions| positions[1] != *i);
    let outputs: Vec<Buf> = (0..outputs.len()).filter(given).map(|i| outputs[i]).collect();
    Ok(lowering.build.finish(&outputs, &states))
}

impl Lowering<'_> {
    /// Whether a node neither reads nor makes a tensor without elements, which kernels do not expect.
    fn is_filled(&self, node: &Node) -> bool {
        let filled = |&id: &ValueId| self.len(id) > 0 || self.graph.const_value(id).is_some();
        node.inputs.iter().flatten().all(filled) && node.outputs.iter().all(filled)
    }

    fn all_filled(&self, chain: &Chain) -> bool {
        chain.nodes.iter().all(|&id| self.graph.node(id).is_some_and(|node| self.is_filled(node)))
    }

    /// The chain that begins at a node, where its kernel can fuse anything.
    fn start(&self, id: NodeId, node: &Node) -> Option<Chain> {
        match &node.op {
            Op::Conv(_) | Op::ConvTranspose(_) => self.chain(id, Fusion::Product { axis: 1 }),
            Op::MatMul(_) => self.attention_chain(id).or_else(|| {
                let rank = self.graph.ty(*node.outputs.first()?).rank();
                self.chain(id, Fusion::Product { axis: rank.saturating_sub(1) })
            }),
            Op::Binary(_) | Op::AveragePool(_) | Op::Reduce(_) => self.chain(id, Fusion::Quantization),
            Op::Unary(_) | Op::Activation(_) => self.table_chain(id),
            _ => None,
        }
    }

    /// Emits a chain as one step, or its nodes one by one where no kernel does the whole.
    fn emit_chain(&mut self, chain: &Chain) -> Result<(), ExecError> {
        if self.fused(chain).is_some() {
            return Ok(());
        }
        for &id in &chain.nodes {
            let Some(node) = self.graph.node(id) else { continue };
            match (Chain::alone(id, node), chain.nodes.len()) {
                (_, 1) => self.reference(id, node)?,
                (Some(alone), _) if self.start(id, node).is_some() => self.emit_chain(&alone)?,
                _ => self.emit(id, node)?,
            }
        }
        Ok(())
    }

    /// Emits a chain as one step, if a kernel does the whole.
    fn fused(&mut self, chain: &Chain) -> Option<()> {
        let head = self.graph.node(*chain.nodes.first()?)?;
        match &head.op {
            Op::Conv(op) => {
                let id = *chain.nodes.first()?;
                self.correlation(op, id, head, chain).or_else(|| self.conv(op, head, chain))
            }
            Op::ConvTranspose(op) => self.conv_transpose(op, head, chain),
            Op::MatMul(_) => self.matmul(head, chain),
            Op::Binary(op) => self.binary(op.kind, head, chain),
            Op::AveragePool(op) => self.average_pool(op, head, chain),
            Op::Reduce(op) => self.reduce(op, head, chain),
            Op::Unary(_) | Op::Activation(_) => self.unary(head, chain),
            _ => None,
        }
    }

    /// Emits a node that is no head of chains.
    fn emit(&mut self, id: NodeId, node: &Node) -> Result<(), ExecError> {
        let done = match &node.op {
            Op::If(_) | Op::Loop(_) | Op::Scan(_) => self.control(id, node),
            _ if !self.is_filled(node) => None,
            Op::QuantizeLinear(_) => self.quantize(id, node),
            Op::DequantizeLinear(_) => self.dequantize(node).or_else(|| self.dynamic_dequantize(node)),
            Op::DynamicQuantizeLinear(op) => self.dynamic_quantize(op, id, node),
            Op::MaxPool(op) => self.max_pool(op, id, node),
            Op::BatchNorm(op) => self.batch_norm(op, id, node),
            Op::Softmax(op) => self.softmax(op, id, node),
            Op::LayerNorm(op) => self.layer_norm(op, id, node),
            Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => self.reshape(node),
            Op::Transpose(op) => self.transpose(op, id, node),
            Op::Slice(_) => self.slice(id, node),
            Op::Split(op) => self.split(op, id, node),
            Op::Concat(op) => self.concat(op, id, node),
            Op::Expand(_) => self.expand(id, node),
            Op::Tile(_) => self.tile(id, node),
            Op::Random(op) => self.random(op, id, node),
            Op::Where(_) => self.gate(id, node).or_else(|| self.choose(id, node)),
            Op::Cast(_) => self.cast(id, node),
            Op::ArgReduce(op) => self.arg_reduce(op, id, node),
            Op::Gather(op) => self.gather(op, id, node),
            Op::TopK(op) => self.top_k(op, id, node),
            Op::ScatterElements(op) => {
                self.scatter(op, id, node).or_else(|| self.scatter_elements(op, id, node))
            }
            Op::ScatterNd(op) => self.scatter_nd(op, id, node),
            Op::Pad(op) => self.pad(op, id, node),
            Op::Resize(op) => self.resize(op, id, node),
            Op::Lstm(_) | Op::Gru(_) | Op::Rnn(_) => self.recurrent(id, node),
            Op::RecurrentGrad(op) => self.recurrent_grad(op, id, node),
            _ => None,
        };
        if done.is_some() { Ok(()) } else { self.reference(id, node) }
    }

    /// Emits a node as a call of the reference evaluator.
    fn reference(&mut self, id: NodeId, node: &Node) -> Result<(), ExecError> {
        let (arguments, reads) = self.arguments(node)?;
        let writes: Vec<_> = node.outputs.iter().map(|&v| self.fresh(v, self.dtype(v))).collect();
        let kernel = format!("reference:{}", node.op.label());
        let result = node.outputs.first().copied();
        let info = self.info(&kernel, &[id], result, result.map_or(DType::F32, |v| self.dtype(v)));
        self.build.step(info, Reference { op: node.op.clone(), arguments }, &reads, &writes);
        for (&v, buf) in node.outputs.iter().zip(writes) {
            self.define_exact(v, buf, Layout::Plain);
        }
        Ok(())
    }

    /// The inputs of a node as the evaluator takes them, and where those lie that are no constants.
    fn arguments(&mut self, node: &Node) -> Result<(Vec<Argument>, Vec<Buf>), ExecError> {
        let (mut arguments, mut reads) = (Vec::new(), Vec::new());
        for input in &node.inputs {
            arguments.push(match input {
                None => Argument::Absent,
                Some(v) => match self.constant(*v) {
                    Some(tensor) => Argument::Constant(tensor),
                    None => {
                        let name = || self.graph.value(*v).name.clone();
                        let dangling = ExecError::Ir(sora_ir::IrError::Dangling(name()));
                        reads.push(self.plain(*v).ok_or(dangling)?);
                        Argument::Given(self.dtype(*v), self.shape(*v))
                    }
                },
            });
        }
        Ok((arguments, reads))
    }

    /// Which of several alternatives a chain's step takes: the one measured to be fastest, else by their costs, that
    /// which the weights are packed for where it will do.
    fn choose_kernel(
        &mut self,
        chain: &Chain,
        constant: &Tensor,
        key: String,
        alternatives: &'static [&'static str],
        costs: &[usize],
    ) -> usize {
        let name = self.tuning.and_then(|tuning| tuning.choices.get(&key));
        let measured = name.and_then(|name| alternatives.iter().position(|a| a == name));
        let taken = measured.unwrap_or_else(|| self.weights.prefer(constant, costs));
        if let Some(&head) = chain.nodes.first() {
            self.choices.insert(head, Choice { key, taken: alternatives[taken], alternatives });
        }
        taken
    }

    /// Takes the first alternative after all, as the one chosen does not apply.
    fn choose_first(&mut self, chain: &Chain) {
        if let Some(choice) = chain.nodes.first().and_then(|head| self.choices.get_mut(head)) {
            choice.taken = choice.alternatives[0];
        }
    }

    /// Describes a step that computes `nodes`, the last of which defines `result`.
    fn info(&self, kernel: &str, nodes: &[NodeId], result: Option<ValueId>, dtype: DType) -> StepInfo {
        let choice = nodes.first().and_then(|head| self.choices.get(head));
        let nodes: Vec<&Node> = nodes.iter().filter_map(|&id| self.graph.node(id)).collect();
        let macs = |node: &&Node| {
            let inputs: Vec<_> = node.inputs.iter().map(|i| i.map(|i| self.graph.ty(i))).collect();
            let outputs: Vec<_> = node.outputs.iter().map(|&o| self.graph.ty(o)).collect();
            node.op.macs(&inputs, &outputs).known().unwrap_or(0) as u64
        };
        StepInfo {
            name: nodes.last().map_or(String::new(), |n| n.name.clone()),
            kernel: kernel.to_owned(),
            macs: nodes.iter().map(macs).sum(),
            nodes: nodes.iter().map(|n| n.name.clone()).collect(),
            shape: result.map_or(Vec::new(), |v| self.shape(v)),
            dtype,
            weight_bytes: 0,
            bytes: 0,
            zeros: None,
            choice: choice.cloned(),
        }
    }

    /// Describes a conversion of a value between forms.
    fn conversion(&self, v: ValueId, kernel: &str, dtype: DType) -> StepInfo {
        let name = self.graph.value(v).name.clone();
        StepInfo { name, ..self.info(kernel, &[], Some(v), dtype) }
    }
}
