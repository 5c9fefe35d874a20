//! Steps over images that run as one, a few lines at a time: what lies between them stays in the cache.
//!
//! Each step but the last writes its lines to a ring that holds no more than the next one reads. A thread takes
//! some lines of the result and asks backwards for what they need, so that threads share nothing; each computes
//! the few lines again that windows of two threads have in common. Known as line buffering, or fusion by depth.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use smallvec::SmallVec;
use sora_kernels::Kernels;
use sora_tensor::{ALIGNMENT, Buffer};

use super::depthwise::by_image;
use super::{Cx, Io, Work};

/// How lines of a step's result follow from lines of its first input, for each image of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lines {
    pub(crate) images: usize,
    /// Lines of an input image, and bytes of a line.
    pub(crate) input: [usize; 2],
    /// Lines of an output image, and bytes of a line.
    pub(crate) output: [usize; 2],
    /// Which lines a line is computed from; `None` where an image must be there as a whole.
    pub(crate) reach: Option<Reach>,
}

/// The window of lines that a line of the result is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Lines of padding before the first.
    pub(crate) pad: usize,
}

impl Reach {
    /// Each line from the same one.
    pub(crate) const SAME: Reach = Reach { kernel: 1, stride: 1, pad: 0 };
}

impl Lines {
    /// The lines of the input that lines of the result are computed from.
    fn needs(&self, lines: &Range<usize>) -> Range<usize> {
        let height = self.input[0];
        let Some(Reach { kernel, stride, pad }) = self.reach else { return 0..height };
        if lines.is_empty() {
            return 0..0;
        }
        let end = ((lines.end - 1) * stride + kernel).saturating_sub(pad).min(height);
        (lines.start * stride).saturating_sub(pad).min(end)..end
    }
}

/// A part of the work that a step computes line by line.
pub(crate) struct Strip<'a> {
    pub(crate) image: usize,
    /// Line `y` of the image's first input is line `y % slots` of `x`.
    pub(crate) x: &'a [u8],
    pub(crate) slots: usize,
    /// The other inputs, of all images.
    pub(crate) others: &'a [&'a [u8]],
    /// Lines of the result.
    pub(crate) lines: Range<usize>,
}

/// Bytes of rings that leave room in the second-level cache for weights and what passes by.
const RINGS: usize = 256 * 1024;

/// Bytes of weights, all of which are read for every few lines.
const WEIGHTS: usize = 256 * 1024;

/// Most lines of the result at a time.
const BAND: usize = 8;

/// How steps that follow one another run as one: how much of each result is kept.
#[derive(Clone)]
pub(crate) struct Plan {
    steps: Vec<Lines>,
    /// Lines of the last result at a time.
    band: usize,
    /// By step but the last: lines of its ring.
    slots: Vec<usize>,
    /// By step but the last: where its ring begins; then the end of the last one.
    starts: Vec<usize>,
}

impl Plan {
    fn with_band(steps: &[Lines], band: usize) -> Option<Plan> {
        let (last, before) = steps.split_last()?;
        let mut count = band.min(last.output[0]);
        let mut slots = vec![0; before.len()];
        for (i, slots) in slots.iter_mut().enumerate().rev() {
            let Reach { kernel, stride, .. } = steps[i + 1].reach?;
            count = ((count - 1) * stride + kernel).min(steps[i].output[0]);
            *slots = count;
        }
        let mut starts = vec![0];
        for (step, slots) in before.iter().zip(&slots) {
            let end = starts.last()? + slots * step.output[1];
            starts.push(end.next_multiple_of(ALIGNMENT));
        }
        Some(Plan { steps: steps.to_vec(), band, slots, starts })
    }

    fn bytes(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The plan with the most lines at a time whose rings stay in cache. `None` where none does, where weights of
    /// so many bytes do not, or a step but the first needs whole images.
    pub(crate) fn new(steps: &[Lines], weight_bytes: usize) -> Option<Plan> {
        if weight_bytes > WEIGHTS {
            return None;
        }
        let plans = (1..=BAND).map_while(|band| Plan::with_band(steps, band));
        plans.take_while(|plan| plan.bytes() <= RINGS).last()
    }
}

struct Stage {
    work: Box<dyn Work>,
    /// Which inputs of the region are the step's others.
    others: Range<usize>,
}

/// Steps of which each computes line by line what the one before it gives.
///
/// Inputs: the first step's first, then the others of all steps. Output: the last step's.
pub(crate) struct Region {
    stages: Vec<Stage>,
    plan: Plan,
    /// Multiply-adds in all, for the decision to split.
    macs: usize,
    /// Rings of threads that ran before.
    idle: Mutex<Vec<Buffer>>,
}

impl Region {
    /// The steps of the plan as one, each with its number of other inputs.
    pub(crate) fn new(plan: Plan, steps: Vec<(Box<dyn Work>, usize)>, macs: usize) -> Region {
        let mut next = 1;
        let stage = |(work, others): (Box<dyn Work>, usize)| {
            next += others;
            Stage { work, others: next - others..next }
        };
        let stages = steps.into_iter().map(stage).collect();
        Region { stages, plan, macs, idle: Mutex::default() }
    }

    /// Lines and bytes of a line of the result.
    fn output(&self) -> [usize; 2] {
        self.plan.steps.last().map_or([0; 2], |step| step.output)
    }

    /// Computes lines of the result of one image.
    fn image(
        &self,
        kernels: Kernels,
        ins: &[&[u8]],
        image: usize,
        lines: Range<usize>,
        out: &mut [u8],
        rings: &mut [u8],
    ) {
        let Plan { steps, band, slots, starts } = &self.plan;
        let row = self.output()[1];
        // By step: the lines to compute now, behind those computed before.
        let mut todos: SmallVec<[Range<usize>; 8]> = steps.iter().map(|_| 0..0).collect();
        for first in lines.clone().step_by(*band) {
            let mut need = first..lines.end.min(first + band);
            let to = &mut out[(first - lines.start) * row..][..need.len() * row];
            for (todo, step) in todos.iter_mut().zip(steps).rev() {
                let begin = todo.end.max(need.start);
                *todo = begin..need.end.max(begin);
                need = step.needs(&need);
            }
            for (i, (stage, lines)) in self.stages.iter().zip(steps).enumerate() {
                let todo = todos[i].clone();
                let others = &ins[stage.others.clone()];
                let (before, after) = rings.split_at_mut(starts[i]);
                let [height, line] = lines.input;
                let (x, from) = match (i.checked_sub(1), lines.reach) {
                    (Some(source), _) => (&before[starts[source]..][..slots[source] * line], slots[source]),
                    (None, Some(_)) => (&ins[0][image * height * line..][..height * line], height),
                    (None, None) => (&ins[0][image * height * line..], height),
                };
                let strip = |lines| Strip { image, x, slots: from, others, lines };
                let Some(&slots) = slots.get(i) else {
                    stage.work.run_lines(kernels, strip(todo), &mut *to);
                    break;
                };
                let line = lines.output[1];
                let mut start = todo.start;
                while start < todo.end {
                    let end = todo.end.min((start / slots + 1) * slots);
                    let ring = &mut after[start % slots * line..][..(end - start) * line];
                    stage.work.run_lines(kernels, strip(start..end), ring);
                    start = end;
                }
            }
        }
    }
}

impl Work for Region {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let out = io.output::<u8>();
        let [height, row] = self.output();
        cx.threads.chunks(self.macs, row, out, |start, out| {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut rings = idle.unwrap_or_else(|| Buffer::zeroed(self.plan.bytes()));
            for (image, lines, at) in by_image(start / row, out.len() / row, height) {
                let out = &mut out[at * row..][..lines.len() * row];
                self.image(cx.kernels, &io.ins, image, lines, out, rings.bytes_mut());
            }
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(rings);
        });
        Ok(())
    }

    fn weight_bytes(&self) -> usize {
        self.stages.iter().map(|stage| stage.work.weight_bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;
    use crate::threads::Threads;

    /// Bytes, each the sum of a window of lines, of its column, and of what others say.
    struct Sums {
        lines: Lines,
        residual: bool,
    }

    impl Sums {
        fn line(&self, line: usize, at: impl Fn(usize) -> u8) -> u8 {
            let Reach { kernel, stride, pad } = self.lines.reach.unwrap_or(Reach::SAME);
            let sum = |sum: u8, i: usize| match (line * stride + i).checked_sub(pad) {
                Some(y) if y < self.lines.input[0] => sum.wrapping_mul(3).wrapping_add(at(y)),
                _ => sum.wrapping_mul(3).wrapping_add(7),
            };
            (0..kernel).fold(0, sum)
        }
    }

    impl Work for Sums {
        fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
            let out = io.output::<u8>();
            let [height, row] = self.lines.output;
            let len = self.lines.input[0] * self.lines.input[1];
            for (image, out) in out.chunks_exact_mut(height * row).enumerate() {
                let x = &io.ins[0][image * len..];
                let (slots, others) = (self.lines.input[0], &io.ins[1..]);
                self.run_lines(cx.kernels, Strip { image, x, slots, others, lines: 0..height }, out);
            }
            Ok(())
        }

        fn lines(&self) -> Option<Lines> {
            Some(self.lines)
        }

        fn run_lines(&self, _: Kernels, strip: Strip<'_>, out: &mut [u8]) {
            let Lines { input: [_, from], output: [height, row], .. } = self.lines;
            for (y, out) in strip.lines.clone().zip(out.chunks_exact_mut(row)) {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = self.line(y, |y| strip.x[y % strip.slots * from + i % from]).wrapping_add(i as u8);
                    if self.residual {
                        let at = (strip.image * height + y) * row + i;
                        *out = out.wrapping_add(strip.others[0][at]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_region_is_its_steps_one_after_the_other() {
        let mut rng = Rng::with_seed(71);
        let kernels = Kernels::best();
        let mut bands = [0; BAND + 1];
        for round in 0..150 {
            let images = rng.usize(1..4);
            let mut from = [rng.usize(1..30), rng.usize(1..500)];
            let mut steps = Vec::new();
            for i in 0..rng.usize(2..6) {
                let reach = Reach { kernel: rng.usize(1..6), stride: rng.usize(1..4), pad: rng.usize(0..4) };
                let reach = if i > 0 || rng.bool() { Some(reach) } else { None };
                let height = match reach {
                    // The last windows may hang over the end.
                    Some(r) => (from[0] + r.pad).div_ceil(r.stride),
                    None => from[0],
                };
                let output = [height, *rng.choice(&[3, 500, 4000, 20_000]).unwrap() + rng.usize(0..40)];
                let lines = Lines { images, input: from, output, reach };
                steps.push(Sums { lines, residual: rng.u8(0..3) == 0 });
                from = output;
            }
            let mut x: Vec<u8> =
                (0..images * steps[0].lines.input.iter().product::<usize>()).map(|_| rng.u8(..)).collect();
            let mut ins = vec![x.clone()];
            let mut boxes: Vec<(Box<dyn Work>, usize)> = Vec::new();
            let one = Threads::default();
            for step in steps {
                let mut out = vec![0; images * step.lines.output.iter().product::<usize>()];
                let residual: Vec<u8> = out.iter().map(|_| rng.u8(..)).collect();
                let given = Io {
                    ins: [&x[..], &residual[..]].into_iter().take(1 + usize::from(step.residual)).collect(),
                    outs: [&mut out[..]].into_iter().collect(),
                };
                step.run(&Cx { kernels, threads: &one }, given).unwrap();
                ins.extend(step.residual.then_some(residual));
                let others = usize::from(step.residual);
                boxes.push((Box::new(step), others));
                x = out;
            }
            let lines: Vec<Lines> = boxes.iter().filter_map(|(work, _)| work.lines()).collect();
            let Some(plan) = Plan::new(&lines, 0) else { continue };
            let region = Region::new(plan, boxes, usize::MAX);
            bands[region.plan.band] += 1;
            for count in [1, 2] {
                let threads = Threads::new(count).unwrap();
                let mut out = vec![0; x.len()];
                let ins = ins.iter().map(|x| &x[..]).collect();
                let io = Io { ins, outs: [&mut out[..]].into_iter().collect() };
                region.run(&Cx { kernels, threads: &threads }, io).unwrap();
                assert!(out == x, "{round}");
            }
        }
        assert!(bands[BAND] > 20 && bands.iter().filter(|&&n| n > 0).count() > 4, "{bands:?}");
    }

    #[test]
    fn steps_join_while_lines_and_weights_are_few() {
        let lines = |width, reach| Lines { images: 1, input: [50, width], output: [50, width], reach };
        let window = Some(Reach { kernel: 3, stride: 1, pad: 1 });
        let joins = |steps: &[Lines], weights| Plan::new(steps, weights).is_some();
        assert!(joins(&[lines(1000, None), lines(1000, window)], 1000));
        assert!(!joins(&[lines(1000, None), lines(1000, window)], WEIGHTS + 1));
        assert!(!joins(&[lines(RINGS / 3 + 1, None), lines(RINGS / 3 + 1, window)], 1000));
        assert!(!joins(&[lines(1000, window), lines(1000, None)], 1000));
    }
}
