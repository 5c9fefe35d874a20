//! A graph in which shapes depend on data, in stages.
//!
//! What has known shapes is a program as any other, and runs first. Then come the nodes at the frontier: their inputs
//! are there, their outputs have the shapes that the data give them. With these shapes the rest is a graph like the one
//! at the beginning, smaller by a stage; its programs are kept by the shapes, so that a run like one before it only runs.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Instant;

use smallvec::SmallVec;
use sora_ir::{Graph, NodeId, ValueId};
use sora_tensor::Tensor;

use crate::frontier::Pending;
use crate::given::{Give, Given, failed};
use crate::profile::StepTime;
use crate::programs::{Entry, Programs, Setting};
use crate::steps::reference::Argument;
use crate::{ExecError, Profile, Program, StepInfo};

/// A stage, and the graph that remains behind it.
///
/// Values that pass between the parts have slots: first the inputs, then the outputs of the head, then those of the
/// frontier.
pub(crate) struct Staged {
    inputs: usize,
    /// What has known shapes, with the slots of its inputs.
    head: Option<(Entry, Vec<usize>)>,
    /// With where its arguments come from.
    frontier: Vec<(Pending, Vec<Source>)>,
    /// What comes after, with the slots of its inputs.
    rest: Option<(Programs, Vec<usize>)>,
    outputs: Vec<Source>,
    /// Values that have slots.
    slots: usize,
    /// One step for each node of the rest.
    later: Vec<StepInfo>,
}

/// The values that have slots.
#[derive(Default)]
struct Slots(HashMap<ValueId, usize>);

impl Slots {
    fn add(&mut self, values: &[ValueId]) {
        for &id in values {
            self.0.insert(id, self.0.len());
        }
    }

    fn of(&self, graph: &Graph, id: ValueId) -> Result<usize, ExecError> {
        let dangling = || sora_ir::IrError::Dangling(graph.value(id).name.clone());
        Ok(*self.0.get(&id).ok_or_else(dangling)?)
    }
}

/// Where a value comes from.
enum Source {
    Slot(usize),
    Constant(Tensor),
    /// The n-th output of the rest.
    Rest(usize),
    Absent,
}

impl Staged {
    /// Cuts a graph into head, frontier and rest, and compiles the head.
    ///
    /// # Errors
    /// As [`Program::compile`].
    pub(crate) fn new(graph: &Graph, setting: &Setting) -> Result<Self, ExecError> {
        let known = |id: &ValueId| graph.ty(*id).known_len().is_some();
        let (mut head, mut frontier, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        let mut late: HashSet<ValueId> = HashSet::new();
        for id in graph.order()? {
            let Some(node) = graph.node(id) else { continue };
            let inputs = || node.inputs.iter().flatten();
            let begins = inputs().all(|i| !late.contains(i) && known(i));
            if begins && node.outputs.iter().all(known) {
                head.push(id);
                continue;
            }
            late.extend(&node.outputs);
            if begins { &mut frontier } else { &mut rest }.push(id);
        }

        let inputs = graph.inputs();
        let mut slots = Slots::default();
        slots.add(inputs);
        let made = |nodes: &[NodeId]| -> BTreeSet<ValueId> {
            nodes.iter().filter_map(|&id| graph.node(id)).flat_map(|node| node.outputs.clone()).collect()
        };
        // Of what the head computes, the others read or return this.
        let others = frontier.iter().chain(&rest).filter_map(|&id| graph.node(id));
        let read: BTreeSet<ValueId> = others
            .flat_map(|node| node.inputs.iter().flatten().copied())
            .chain(graph.outputs().iter().map(|output| output.value))
            .collect();
        let handed: Vec<ValueId> = made(&head).intersection(&read).copied().collect();
        let head = match handed.is_empty() {
            true => None,
            false => {
                let (part, takes) = extract(graph, &head, &handed)?;
                let takes = takes.iter().map(|&id| slots.of(graph, id)).collect::<Result<_, _>>()?;
                Some((Entry::new(Program::plan(part, &[], setting)?), takes))
            }
        };
        slots.add(&handed);

        let source = |slots: &Slots, id: ValueId| match graph.const_value(id) {
            Some(tensor) => Ok(Source::Constant(tensor.clone())),
            None => slots.of(graph, id).map(Source::Slot),
        };
        let mut pending = Vec::new();
        for node in frontier.iter().filter_map(|&id| graph.node(id)) {
            let arguments = node.inputs.iter().map(|input| match input {
                Some(id) => source(&slots, *id),
                None => Ok(Source::Absent),
            });
            let arguments = arguments.collect::<Result<Vec<_>, ExecError>>()?;
            let known = node.inputs.iter().zip(&arguments).map(|(input, source)| match (input, source) {
                (_, Source::Constant(tensor)) => Argument::Constant(tensor.clone()),
                (Some(id), _) => {
                    let ty = graph.ty(*id);
                    Argument::Given(ty.dtype, ty.known_shape().unwrap_or_default())
                }
                (None, _) => Argument::Absent,
            });
            let known: Vec<Argument> = known.collect();
            pending.push((Pending::new(graph, node, &known, setting), arguments));
        }
        for node in frontier.iter().filter_map(|&id| graph.node(id)) {
            slots.add(&node.outputs);
        }

        let (from_rest, mut results) = (made(&rest), Vec::new());
        let outputs = graph.outputs().iter().map(|output| match from_rest.contains(&output.value) {
            true => {
                results.push(output.value);
                Ok(Source::Rest(results.len() - 1))
            }
            false => source(&slots, output.value),
        });
        let outputs = outputs.collect::<Result<Vec<_>, ExecError>>()?;
        let later = rest.iter().filter_map(|&id| graph.node(id));
        let later =
            later.map(|node| StepInfo::of(graph, node, &format!("later:{}", node.op.label()))).collect();
        let rest = match results.is_empty() {
            true => None,
            false => {
                let (part, takes) = extract(graph, &rest, &results)?;
                let takes = takes.iter().map(|&id| slots.of(graph, id)).collect::<Result<_, _>>()?;
                Some((Programs::of(part, setting.inside()), takes))
            }
        };
        let slots = slots.0.len();
        Ok(Staged { inputs: inputs.len(), head, frontier: pending, rest, outputs, slots, later })
    }

    /// The steps of the head and of the frontier, and the nodes of the rest.
    pub(crate) fn steps(&self) -> Vec<StepInfo> {
        let head = self.head.iter().flat_map(|(entry, _)| entry.program.steps().iter());
        let frontier = self.frontier.iter().map(|(pending, _)| pending.info());
        head.chain(frontier).chain(&self.later).cloned().collect()
    }

    /// Runs stage and rest on inputs by position, and gives the outputs in order.
    ///
    /// # Errors
    /// As [`Program::compile`] and [`Program::run`].
    pub(crate) fn run(
        &self,
        inputs: &[Given],
        mut profile: Option<&mut Profile>,
        give: &mut Give,
    ) -> Result<(), ExecError> {
        let mut made: Vec<Tensor> = Vec::with_capacity(self.slots - self.inputs);
        if let Some((entry, takes)) = &self.head {
            let given: SmallVec<[Given; 8]> = takes.iter().map(|&slot| inputs[slot]).collect();
            entry.with_arena(|program, arena| {
                program.execute(arena, &given, profile.as_deref_mut(), &mut |i, value| {
                    made.push(value.tensor().map_err(failed(&program.outputs()[i].name))?);
                    Ok(())
                })
            })?;
        }
        for (pending, arguments) in &self.frontier {
            let start = Instant::now();
            let given = arguments.iter().map(|source| match source {
                Source::Slot(slot) => Some(self.find(inputs, &made, *slot)),
                Source::Constant(tensor) => Some(Given::Tensor(tensor)),
                Source::Rest(_) | Source::Absent => None,
            });
            let given: SmallVec<[Option<Given>; 8]> = given.collect();
            let (results, kernel) = pending.run(&given)?;
            drop(given);
            if let Some(profile) = profile.as_deref_mut() {
                let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                let info = pending.info().clone();
                let shape = results.first().map_or(Vec::new(), |tensor| tensor.shape().to_vec());
                let kernel = kernel.unwrap_or(info.kernel);
                profile.steps.push(StepTime { step: StepInfo { shape, kernel, ..info }, nanoseconds });
            }
            made.extend(results);
        }
        let mut last = Vec::new();
        if let Some((programs, takes)) = &self.rest {
            let given: SmallVec<[Given; 8]> =
                takes.iter().map(|&slot| self.find(inputs, &made, slot)).collect();
            programs.run(&given, profile, &mut |i, value| {
                last.push(value.tensor().map_err(failed(&programs.graph().outputs()[i].name))?);
                Ok(())
            })?;
        }
        for (i, output) in self.outputs.iter().enumerate() {
            match output {
                Source::Slot(slot) => give(i, self.find(inputs, &made, *slot))?,
                Source::Constant(tensor) => give(i, Given::Tensor(tensor))?,
                Source::Rest(n) => give(i, Given::Tensor(&last[*n]))?,
                Source::Absent => {}
            }
        }
        Ok(())
    }

    fn find<'a>(&self, inputs: &[Given<'a>], made: &'a [Tensor], slot: usize) -> Given<'a> {
        match slot.checked_sub(self.inputs) {
            None => inputs[slot],
            Some(n) => Given::Tensor(&made[n]),
        }
    }
}

/// The graph of some nodes of a graph, in order, that computes `outputs`; and which values of the whole its inputs are.
fn extract(graph: &Graph, nodes: &[NodeId], outputs: &[ValueId]) -> Result<(Graph, Vec<ValueId>), ExecError> {
    let mut part = Graph::new(&graph.name);
    let (mut inputs, mut names) = (Vec::new(), HashSet::new());
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for node in nodes.iter().filter_map(|&id| graph.node(id)) {
        for &id in node.inputs.iter().flatten().filter(|id| !map.contains_key(id)).collect::<BTreeSet<_>>() {
            let value = graph.value(id);
            let new = match graph.const_value(id) {
                Some(tensor) => part.constant(&value.name, tensor.clone()),
                None => {
                    let mut name = value.name.clone();
                    while !names.insert(name.clone()) {
                        name.push('\'');
                    }
                    inputs.push(id);
                    part.input(&name, value.ty.clone())
                }
            };
            map.insert(id, new);
        }
        let given = node.inputs.iter().map(|id| id.and_then(|id| map.get(&id).copied()));
        let results = part.add(&node.name, node.op.clone(), given.collect::<Vec<_>>())?;
        for (&old, new) in node.outputs.iter().zip(results) {
            part.rename(new, &graph.value(old).name);
            map.insert(old, new);
        }
    }
    let mut names = HashSet::new();
    for id in outputs {
        if let Some(&value) = map.get(id) {
            // Several outputs may be one value, but have names of their own.
            let mut name = graph.value(*id).name.clone();
            while !names.insert(name.clone()) {
                name.push('\'');
            }
            part.output(&name, value);
        }
    }
    Ok((part, inputs))
}
