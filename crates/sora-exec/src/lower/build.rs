//! Collects steps over named buffers, then places the buffers in one arena.

use smallvec::SmallVec;
use sora_kernels::Kernels;
use sora_tensor::{Buffer, DType, Tensor};

use super::regions::join;
use super::tape;
use crate::StepInfo;
use crate::plan::{Lifetime, place};
use crate::program::{Lowered, Operand, Step};
use crate::steps::movement::{CopyView, View};
use crate::steps::{Cx, Io, Work};
use crate::threads::Threads;

/// A tensor in memory, as steps see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Buf(pub(super) usize);

enum Place {
    Arena,
    Input(usize),
    Constant(usize),
}

/// A step over named buffers.
pub(super) struct Draft {
    pub(super) work: Box<dyn Work>,
    pub(super) reads: Vec<Buf>,
    pub(super) writes: Vec<Buf>,
    /// Outputs that may take the memory of an input, by their positions.
    pub(super) in_place: Vec<(usize, usize)>,
}

/// Bytes that steps on constants, which are run once when the program is compiled, may make in any program; for each byte
/// of its constants, some more.
const FOLD_LIMIT: usize = 64 << 20;
const FOLD_FACTOR: usize = 8;

/// Multiply-adds up to which a step on constants is run when the program is compiled, less than a second.
const FOLD_MACS: u64 = 1 << 32;

/// A program under construction.
pub(crate) struct Builder {
    kernels: Kernels,
    places: Vec<(Place, usize)>,
    constants: Vec<Tensor>,
    /// Bytes that steps on constants may still make.
    fold_budget: usize,
    drafts: Vec<Draft>,
    infos: Vec<StepInfo>,
}

impl Builder {
    /// A program without steps.
    pub(crate) fn new(kernels: Kernels) -> Self {
        let (places, constants, drafts, infos) = Default::default();
        Builder { kernels, places, constants, fold_budget: FOLD_LIMIT, drafts, infos }
    }

    fn place(&mut self, place: Place, bytes: usize) -> Buf {
        self.places.push((place, bytes));
        Buf(self.places.len() - 1)
    }

    /// A new tensor of the arena, written by one step.
    pub(crate) fn arena(&mut self, bytes: usize) -> Buf {
        self.place(Place::Arena, bytes)
    }

    /// The n-th input of the program.
    pub(crate) fn input(&mut self, n: usize, bytes: usize) -> Buf {
        self.place(Place::Input(n), bytes)
    }

    /// A constant.
    pub(crate) fn constant(&mut self, tensor: Tensor) -> Buf {
        let bytes = tensor.byte_len();
        self.fold_budget = self.fold_budget.saturating_add(bytes.saturating_mul(FOLD_FACTOR));
        self.constants.push(tensor);
        self.place(Place::Constant(self.constants.len() - 1), bytes)
    }

    /// Appends a step.
    pub(crate) fn step(&mut self, info: StepInfo, work: impl Work + 'static, reads: &[Buf], writes: &[Buf]) {
        if info.macs <= FOLD_MACS && self.fold(&work, reads, writes).is_some() {
            return;
        }
        let weight_bytes = work.weight_bytes();
        let operands: usize = reads.iter().chain(writes).map(|buf| self.places[buf.0].1).sum();
        let bytes = (operands + weight_bytes) as u64;
        let info = StepInfo { weight_bytes, bytes, zeros: work.zeros(), ..info };
        self.infos.push(info);
        let (reads, writes) = (reads.to_vec(), writes.to_vec());
        self.drafts.push(Draft { work: Box::new(work), reads, writes, in_place: Vec::new() });
    }

    /// Appends a step whose first output may overwrite its first input, if nothing reads that afterwards.
    pub(crate) fn step_in_place(
        &mut self,
        info: StepInfo,
        work: impl Work + 'static,
        reads: &[Buf],
        writes: &[Buf],
    ) {
        let before = self.drafts.len();
        self.step(info, work, reads, writes);
        if let Some(draft) = self.drafts.get_mut(before) {
            draft.in_place = vec![(0, 0)];
        }
    }

    /// Runs a step whose inputs are all constants now, which makes constants of its outputs.
    fn fold(&mut self, work: &impl Work, reads: &[Buf], writes: &[Buf]) -> Option<()> {
        let size: usize = writes.iter().map(|buf| self.places[buf.0].1).sum();
        let constant = |buf: &Buf| matches!(self.places[buf.0].0, Place::Constant(_));
        if reads.is_empty() || size > self.fold_budget || !reads.iter().all(constant) {
            return None;
        }
        let mut buffers: Vec<Buffer> =
            writes.iter().map(|buf| Buffer::try_zeroed(self.places[buf.0].1)).collect::<Option<_>>()?;
        let bytes = |buf: &Buf| match self.places[buf.0].0 {
            Place::Constant(n) => self.constants[n].bytes(),
            _ => &[],
        };
        let ins = reads.iter().map(bytes).collect();
        let threads = Threads::new(1).ok()?;
        let outs = buffers.iter_mut().map(Buffer::bytes_mut).collect();
        work.run(&Cx { kernels: self.kernels, threads: &threads }, Io { ins, outs }).ok()?;
        self.fold_budget -= size;
        for (buf, buffer) in writes.iter().zip(buffers) {
            let len = buffer.len();
            self.constants.push(Tensor::new(DType::U8, &[len], buffer).ok()?);
            self.places[buf.0].0 = Place::Constant(self.constants.len() - 1);
        }
        Some(())
    }

    /// Plans the arena. `states`: tensors of the arena that no step writes, with those that replace them.
    pub(crate) fn finish(self, outputs: &[Buf], states: &[(Buf, Buf)]) -> Lowered {
        let Builder { mut places, mut constants, drafts, infos, .. } = self;
        let results: Vec<Buf> = outputs.iter().copied().chain(states.iter().map(|&(_, new)| new)).collect();
        let (drafts, infos) = needed(drafts, infos, places.len(), &results);
        let sizes: Vec<usize> = places.iter().map(|&(_, bytes)| bytes).collect();
        let (mut drafts, mut infos) = join(drafts, infos, &sizes, &results);
        if !states.is_empty() {
            (drafts, infos) = tape::join(drafts, infos, &sizes, &results, states);
        }
        let (moved, outputs) = replace(&mut places, &mut drafts, &mut infos, outputs, states);
        let outputs = &outputs[..];
        keep_used(&mut places, &mut constants, &drafts, outputs);
        let mut first = vec![0; places.len()];
        let mut last = vec![0; places.len()];
        for (i, draft) in drafts.iter().enumerate() {
            for write in &draft.writes {
                (first[write.0], last[write.0]) = (i, i);
            }
            draft.reads.iter().for_each(|read| last[read.0] = i);
        }
        outputs.iter().for_each(|output| last[output.0] = drafts.len());

        // `root[b]`: the buffer whose memory `b` uses.
        let mut root: Vec<usize> = (0..places.len()).collect();
        for (&(old, _), &new) in states.iter().zip(&moved) {
            (root[new.0], first[old.0], last[old.0]) = (old.0, 0, drafts.len());
        }
        for (i, draft) in drafts.iter().enumerate() {
            for &(write, read) in &draft.in_place {
                let (write, owner) = (draft.writes[write], root[draft.reads[read].0]);
                let mut others = draft.reads.iter().enumerate().filter(|&(other, _)| other != read);
                let free = root[write.0] == write.0
                    && matches!(places[owner].0, Place::Arena)
                    && last[owner] == i
                    && places[owner].1 == places[write.0].1
                    && others.all(|(_, other)| root[other.0] != owner);
                if free {
                    root[write.0] = owner;
                    last[owner] = last[write.0];
                }
            }
        }
        let owners: Vec<usize> =
            (0..places.len()).filter(|&b| root[b] == b && matches!(places[b].0, Place::Arena)).collect();
        let lifetimes: Vec<Lifetime> =
            owners.iter().map(|&b| Lifetime { bytes: places[b].1, first: first[b], last: last[b] }).collect();
        let (offsets, arena_bytes) = place(&lifetimes);
        let mut offset = vec![0; places.len()];
        owners.iter().zip(offsets).for_each(|(&b, at)| offset[b] = at);

        let range = |b: Buf| offset[root[b.0]]..offset[root[b.0]] + places[b.0].1;
        let operand = |b: Buf| match places[b.0].0 {
            Place::Arena => Operand::Arena(range(b)),
            Place::Input(n) => Operand::Input(n),
            Place::Constant(n) => Operand::Constant(n),
        };
        let steps = drafts.into_iter().map(|draft| {
            let taken = |read: &Buf| draft.writes.iter().any(|write| root[write.0] == root[read.0]);
            let reads: SmallVec<_> = draft
                .reads
                .iter()
                .map(|read| if taken(read) { Operand::InPlace } else { operand(*read) })
                .collect();
            let writes = draft.writes.iter().map(|&write| range(write)).collect();
            Step { work: draft.work, reads, writes }
        });
        Lowered {
            steps: steps.collect(),
            infos,
            constants,
            outputs: outputs.iter().map(|&b| operand(b)).collect(),
            arena_bytes,
            states: states.iter().map(|&(old, _)| range(old)).collect(),
        }
    }
}

/// Gives what replaces each state: a tensor that may lie where the old one does, as nothing reads that any more when it
/// is written. Where a step cannot write it there, a copy behind all steps does. Also gives the outputs, which no state
/// overwrites.
fn replace(
    places: &mut Vec<(Place, usize)>,
    drafts: &mut Vec<Draft>,
    infos: &mut Vec<StepInfo>,
    outputs: &[Buf],
    states: &[(Buf, Buf)],
) -> (Vec<Buf>, Vec<Buf>) {
    let is_old = |buf: &Buf| states.iter().any(|(old, _)| old == buf);
    let is_result = |buf: &Buf| outputs.contains(buf) || states.iter().any(|(_, new)| new == buf);
    let (mut moved, mut copied) = (Vec::new(), Vec::new());
    for &(old, new) in states {
        let writer = drafts.iter().position(|draft| draft.writes.contains(&new));
        let last_read = drafts.iter().rposition(|draft| draft.reads.contains(&old));
        let free = writer.is_some_and(|writer| {
            let Draft { reads, writes, in_place, .. } = &drafts[writer];
            let over = in_place.iter().any(|&(write, read)| {
                let mut others = reads.iter().enumerate().filter(|&(other, _)| other != read);
                writes[write] == new && reads[read] == old && others.all(|(_, other)| *other != old)
            });
            last_read.is_none_or(|read| read < writer || read == writer && over)
        });
        let whole = if new == old || free && !is_result(&old) && !moved.contains(&new) {
            new
        } else {
            copied.push((moved.len(), new));
            old
        };
        moved.push(whole);
    }
    let mut copy = |from: Buf| {
        let bytes = places[from.0].1;
        places.push((Place::Arena, bytes));
        let to = Buf(places.len() - 1);
        let view = View { start: 0, shape: vec![bytes], strides: vec![1] };
        let (name, kernel) = ("state".to_owned(), "copy".to_owned());
        let (dtype, shape, bytes) = (DType::U8, vec![bytes], 2 * bytes as u64);
        let (nodes, zeros, choice) = (Vec::new(), None, None);
        let (macs, weight_bytes) = (0, 0);
        infos.push(StepInfo { name, kernel, nodes, shape, dtype, macs, weight_bytes, bytes, zeros, choice });
        let (work, reads, writes) = (Box::new(CopyView { view, size: 1 }), vec![from], vec![to]);
        drafts.push(Draft { work, reads, writes, in_place: Vec::new() });
        to
    };
    let outputs = outputs.iter().map(|&output| if is_old(&output) { copy(output) } else { output }).collect();
    // One state that replaces another is put aside before any is overwritten.
    let aside: Vec<_> =
        copied.iter().map(|&(state, new)| (state, if is_old(&new) { copy(new) } else { new })).collect();
    aside.into_iter().for_each(|(state, from)| moved[state] = copy(from));
    (moved, outputs)
}

/// Drops the steps whose results nobody reads: others have been fused with what they compute.
fn needed(
    drafts: Vec<Draft>,
    infos: Vec<StepInfo>,
    buffers: usize,
    outputs: &[Buf],
) -> (Vec<Draft>, Vec<StepInfo>) {
    let mut read = vec![false; buffers];
    outputs.iter().for_each(|buf| read[buf.0] = true);
    let mut steps: Vec<_> = drafts.into_iter().zip(infos).rev().collect();
    steps.retain(|(draft, _)| {
        let needed = draft.writes.iter().any(|buf| read[buf.0]);
        if needed {
            draft.reads.iter().for_each(|buf| read[buf.0] = true);
        }
        needed
    });
    steps.into_iter().rev().unzip()
}

/// Drops the constants that neither a step reads nor the caller gets.
fn keep_used(places: &mut [(Place, usize)], constants: &mut Vec<Tensor>, drafts: &[Draft], outputs: &[Buf]) {
    let mut kept = Vec::new();
    let mut position = vec![None; constants.len()];
    for buf in drafts.iter().flat_map(|d| &d.reads).chain(outputs) {
        let Place::Constant(n) = places[buf.0].0 else { continue };
        position[n].get_or_insert_with(|| {
            kept.push(constants[n].clone());
            kept.len() - 1
        });
    }
    for (place, _) in places.iter_mut() {
        if let Place::Constant(n) = place {
            // Nobody asks where an unused constant lies.
            *n = position[*n].unwrap_or(0);
        }
    }
    *constants = kept;
}
