//! Collects steps over named buffers, then places the buffers in one arena.

use smallvec::SmallVec;
use sora_tensor::Tensor;

use crate::StepInfo;
use crate::plan::{Lifetime, place};
use crate::program::{Lowered, Operand, Step};
use crate::steps::Work;

/// A tensor in memory, as steps see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buf(usize);

enum Place {
    Arena,
    Input(usize),
    Constant(usize),
}

struct Draft {
    work: Box<dyn Work>,
    reads: Vec<Buf>,
    writes: Vec<Buf>,
    /// The first output may take the memory of the first input.
    in_place: bool,
}

/// A program under construction.
#[derive(Default)]
pub(crate) struct Builder {
    places: Vec<(Place, usize)>,
    constants: Vec<Tensor>,
    drafts: Vec<Draft>,
    infos: Vec<StepInfo>,
}

impl Builder {
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
        let bytes = tensor.bytes().len();
        self.constants.push(tensor);
        self.place(Place::Constant(self.constants.len() - 1), bytes)
    }

    /// Appends a step.
    pub(crate) fn step(&mut self, info: StepInfo, work: impl Work + 'static, reads: &[Buf], writes: &[Buf]) {
        let info = StepInfo { weight_bytes: work.weight_bytes(), ..info };
        self.infos.push(info);
        let (reads, writes) = (reads.to_vec(), writes.to_vec());
        self.drafts.push(Draft { work: Box::new(work), reads, writes, in_place: false });
    }

    /// Appends a step whose first output may overwrite its first input, if nothing reads that afterwards.
    pub(crate) fn step_in_place(
        &mut self,
        info: StepInfo,
        work: impl Work + 'static,
        reads: &[Buf],
        writes: &[Buf],
    ) {
        self.step(info, work, reads, writes);
        if let Some(draft) = self.drafts.last_mut() {
            draft.in_place = true;
        }
    }

    /// Plans the arena.
    pub(crate) fn finish(self, outputs: &[Buf]) -> Lowered {
        let Builder { places, constants, drafts, infos } = self;
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
        for (i, draft) in drafts.iter().enumerate() {
            let (true, Some(read), Some(write)) = (draft.in_place, draft.reads.first(), draft.writes.first())
            else {
                continue;
            };
            let owner = root[read.0];
            let free = matches!(places[owner].0, Place::Arena)
                && last[owner] == i
                && places[owner].1 == places[write.0].1
                && draft.reads[1..].iter().all(|other| root[other.0] != owner);
            if free {
                root[write.0] = owner;
                last[owner] = last[write.0];
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
        }
    }
}
