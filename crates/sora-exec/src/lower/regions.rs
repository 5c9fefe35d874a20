//! Joins steps over images that follow one another, where what lies between them would leave the cache.

use super::build::{Buf, Draft};
use crate::StepInfo;
use crate::steps::region::{Lines, Plan, Region};

/// Bytes of a result that do not stay in the second-level cache until the next step reads them.
const FAR: usize = 512 * 1024;

/// Turns chains of steps into regions, the largest tensors first. A chain goes through results that one step reads,
/// as its first input. `sizes`: bytes of each buffer.
pub(super) fn join(
    drafts: Vec<Draft>,
    infos: Vec<StepInfo>,
    sizes: &[usize],
    outputs: &[Buf],
) -> (Vec<Draft>, Vec<StepInfo>) {
    let mut readers = vec![0; sizes.len()];
    drafts.iter().flat_map(|draft| &draft.reads).chain(outputs).for_each(|buf| readers[buf.0] += 1);
    let mut writer = vec![None; sizes.len()];
    let mut links = Vec::new();
    for (i, draft) in drafts.iter().enumerate() {
        draft.writes.iter().for_each(|buf| writer[buf.0] = Some(i));
        let Some(&Buf(between)) = draft.reads.first() else { continue };
        let Some(source) = writer[between] else { continue };
        if readers[between] == 1 && sizes[between] > FAR && follows(&drafts[source], draft) {
            links.push((sizes[between], source, i));
        }
    }
    links.sort_by_key(|&(bytes, source, _)| (std::cmp::Reverse(bytes), source));

    let mut chains: Vec<(Vec<usize>, Option<Plan>)> = (0..drafts.len()).map(|i| (vec![i], None)).collect();
    // By step: where its chain is, which is at the chain's last step.
    let mut at: Vec<usize> = (0..drafts.len()).collect();
    for (_, source, next) in links {
        let joined = [&chains[at[source]].0[..], &chains[at[next]].0].concat();
        let lines: Vec<Lines> = joined.iter().filter_map(|&i| drafts[i].work.lines()).collect();
        let unchosen = joined.iter().all(|&i| infos[i].choice.is_none());
        let plan = Plan::new(&lines, joined.iter().map(|&i| infos[i].weight_bytes).sum());
        if let Some(plan) = plan.filter(|_| unchosen) {
            let last = at[next];
            chains[at[source]].0.clear();
            joined.iter().for_each(|&i| at[i] = last);
            chains[last] = (joined, Some(plan));
        }
    }
    let mut steps: Vec<_> = drafts.into_iter().zip(infos).map(Some).collect();
    let (mut drafts, mut infos) = (Vec::new(), Vec::new());
    for (chain, plan) in chains {
        let mut chain: Vec<_> = chain.iter().filter_map(|&i| steps[i].take()).collect();
        if let Some(plan) = plan {
            chain = as_one(chain, plan, sizes).into_iter().collect();
        }
        for (draft, info) in chain {
            drafts.push(draft);
            infos.push(info);
        }
    }
    (drafts, infos)
}

/// Whether a step computes its lines from those that another one gives.
fn follows(source: &Draft, next: &Draft) -> bool {
    let (Some(from), Some(to)) = (source.work.lines(), next.work.lines()) else { return false };
    let alone = |draft: &Draft| draft.writes.len() == 1 && draft.in_place.is_empty();
    let fits = (from.images, from.output) == (to.images, to.input) && to.reach.is_some();
    fits && alone(source) && alone(next) && source.writes.first() == next.reads.first()
}

/// One step that does what the steps of a chain do.
fn as_one(mut chain: Vec<(Draft, StepInfo)>, plan: Plan, sizes: &[usize]) -> Option<(Draft, StepInfo)> {
    let (last, last_info) = chain.pop()?;
    let writes = last.writes.clone();
    let mut info = StepInfo { macs: 0, weight_bytes: 0, zeros: None, nodes: Vec::new(), ..last_info.clone() };
    let (mut kernels, mut reads, mut works) = (Vec::new(), Vec::new(), Vec::new());
    for (draft, step) in chain.into_iter().chain([(last, last_info)]) {
        // The first input of the others is what lies between.
        let given = &draft.reads[usize::from(!works.is_empty())..];
        reads.extend_from_slice(given);
        works.push((draft.work, draft.reads.len() - 1));
        info.macs += step.macs;
        info.weight_bytes += step.weight_bytes;
        info.nodes.extend(step.nodes);
        kernels.push(step.kernel);
    }
    info.kernel = kernels.join("+");
    let operands: usize = reads.iter().chain(&writes).map(|buf| sizes[buf.0]).sum();
    info.bytes = (operands + info.weight_bytes) as u64;
    let work = Box::new(Region::new(plan, works, usize::try_from(info.macs).unwrap_or(usize::MAX)));
    Some((Draft { work, reads, writes, in_place: Vec::new() }, info))
}
