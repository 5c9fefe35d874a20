//! Joins functions of elements, so that what lies between them never leaves the nearest cache.

use std::collections::HashMap;

use super::build::{Buf, Draft};
use crate::StepInfo;
use crate::steps::tape::{Function, Instruction, Source, Tape};

/// Bytes from which joining gains.
const LEAST: usize = 4096;

/// Functions of one step: their slots should stay in the nearest cache.
const MOST: usize = 48;

/// Turns functions of tensors of one length into one step each time, at the place where the first other step reads one of
/// their results. `states`: tensors with those that may lie in their place.
pub(super) fn join(
    drafts: Vec<Draft>,
    infos: Vec<StepInfo>,
    sizes: &[usize],
    results: &[Buf],
    states: &[(Buf, Buf)],
) -> (Vec<Draft>, Vec<StepInfo>) {
    let mut readers: Vec<usize> = vec![0; sizes.len()];
    drafts.iter().flat_map(|draft| &draft.reads).chain(results).for_each(|buf| readers[buf.0] += 1);
    let mut out = Vec::new();
    // By bytes of the tensors.
    let mut open: HashMap<usize, Vec<(Draft, StepInfo, Function)>> = HashMap::new();
    for (draft, info) in drafts.into_iter().zip(infos) {
        let bytes = draft.writes.first().map_or(0, |buf| sizes[buf.0]);
        let function = draft.work.function().filter(|_| bytes >= LEAST && draft.writes.len() == 1);
        // What another step reads must be there.
        let mut due: Vec<usize> =
            open.keys().copied().filter(|&b| function.is_none() || b != bytes).collect();
        due.sort_unstable();
        for other in due {
            let written =
                |(member, ..): &(Draft, StepInfo, Function)| draft.reads.contains(&member.writes[0]);
            if open[&other].iter().any(written) {
                close(open.remove(&other).unwrap_or_default(), &readers, states, &mut out);
            }
        }
        match function {
            Some(function) => {
                let group = open.entry(bytes).or_default();
                group.push((draft, info, function));
                if group.len() == MOST {
                    close(open.remove(&bytes).unwrap_or_default(), &readers, states, &mut out);
                }
            }
            None => out.push((draft, info)),
        }
    }
    // None reads what another one writes, or that would have been closed.
    let mut rest: Vec<_> = open.into_iter().collect();
    rest.sort_unstable_by_key(|(bytes, _)| *bytes);
    rest.into_iter().for_each(|(_, group)| close(group, &readers, states, &mut out));
    out.into_iter().unzip()
}

fn close(
    group: Vec<(Draft, StepInfo, Function)>,
    readers: &[usize],
    states: &[(Buf, Buf)],
    out: &mut Vec<(Draft, StepInfo)>,
) {
    if group.len() < 2 {
        return out.extend(group.into_iter().map(|(draft, info, _)| (draft, info)));
    }
    // Readers of each result inside of the group.
    let mut inside: HashMap<Buf, usize> = group.iter().map(|(draft, ..)| (draft.writes[0], 0)).collect();
    for read in group.iter().flat_map(|(draft, ..)| &draft.reads) {
        inside.entry(*read).and_modify(|count| *count += 1);
    }
    let (mut code, mut reads, mut writes, mut results) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut slot_of, mut idle, mut slots) = (HashMap::new(), Vec::new(), 0);
    for (draft, _, function) in &group {
        let mut operands = [Source::Input(0); 2];
        let mut dying = Vec::new();
        for (operand, read) in operands.iter_mut().zip(&draft.reads) {
            *operand = match slot_of.get(read) {
                Some(&slot) => {
                    let left = inside.get_mut(read).map_or(0, |left| {
                        *left -= 1;
                        *left
                    });
                    if left == 0 && !writes.contains(read) {
                        dying.push(slot);
                    }
                    Source::Slot(slot)
                }
                None => {
                    let at = reads.iter().position(|known| known == read).unwrap_or(reads.len());
                    if at == reads.len() {
                        reads.push(*read);
                    }
                    Source::Input(at)
                }
            };
        }
        let over = dying.iter().position(|&slot| operands[0] == Source::Slot(slot));
        let over = over.filter(|_| draft.reads.len() < 2 || operands[0] != operands[1]);
        let to = match over {
            Some(at) => dying.swap_remove(at),
            None => idle.pop().unwrap_or_else(|| {
                slots += 1;
                slots - 1
            }),
        };
        dying.dedup();
        idle.extend(dying);
        code.push(Instruction { function: *function, operands, to });
        let write = draft.writes[0];
        slot_of.insert(write, to);
        if readers[write.0] > inside[&write] {
            writes.push(write);
            results.push(to);
        }
    }
    let paired = |(output, write): (usize, &Buf)| {
        let (old, _) = states.iter().find(|(_, new)| new == write)?;
        Some((output, reads.iter().position(|read| read == old)?))
    };
    let in_place: Vec<(usize, usize)> = writes.iter().enumerate().filter_map(paired).collect();
    let infos = group.iter().map(|(_, info, _)| info);
    let info = StepInfo {
        kernel: "tape.f32".to_owned(),
        nodes: infos.clone().flat_map(|info| info.nodes.clone()).collect(),
        macs: infos.clone().map(|info| info.macs).sum(),
        bytes: (reads.len() + writes.len()) as u64
            * infos.clone().map(|info| info.shape.iter().product::<usize>()).max().unwrap_or(0) as u64
            * 4,
        ..group[group.len() - 1].1.clone()
    };
    let work = Box::new(Tape { code, slots, results, in_place: in_place.clone() });
    out.push((Draft { work, reads, writes, in_place }, info));
}
