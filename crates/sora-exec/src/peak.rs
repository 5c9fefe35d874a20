//! What this machine can do at best, measured, and how close a step comes to it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sora_kernels::peak::{Arithmetic, multiply_add, read};
use sora_kernels::{Isa, Kernels};

use crate::threads::Threads;
use crate::{ExecError, Options, StepTime};

/// How long one attempt at a rate takes, and how many there are: the best counts.
const ATTEMPT: Duration = Duration::from_millis(2);
const ATTEMPTS: usize = 6;

/// Measured peaks of one instruction set.
#[derive(Clone, Debug, PartialEq)]
pub struct Peaks {
    /// The instruction set.
    pub isa: Isa,
    /// Threads that [`Rate::all`] means.
    pub threads: usize,
    /// Multiply-adds per nanosecond (10⁹ per second), by arithmetic that the instruction set has.
    pub products: Vec<(Arithmetic, Rate)>,
    /// Levels of memory, the nearest first.
    pub memory: Vec<Level>,
    /// Time to hand a job to all helpers and back, in nanoseconds; `None` with one thread.
    pub hand_off: Option<f64>,
}

/// A rate on one thread, and on all of them together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// On one thread.
    pub one: f64,
    /// On all threads.
    pub all: f64,
}

/// A level of memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// `L1`, `L2`, `L3` or `DRAM`.
    pub name: &'static str,
    /// Its size in bytes, as the system tells or else as is common; `None` for the last.
    pub bytes: Option<usize>,
    /// Bytes read per nanosecond (10⁹ per second), each thread reading memory of its own.
    pub read: Rate,
}

/// How much a step does per time, and which share of the peak that is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Use {
    /// In 10⁹ of `unit` per second.
    pub rate: f64,
    /// `FLOP` (two per multiply-add), `OP` (the same for integers) or `B` (bytes read and written).
    pub unit: &'static str,
    /// Share of the peak of that arithmetic, or of the nearest level of memory that holds what the step reads and
    /// writes. Above 1 where an algorithm saves arithmetic (Winograd), since products count as in the direct one.
    pub share: f64,
}

impl Peaks {
    /// Measures for the instruction set and the threads of `options`; takes a fraction of a second.
    ///
    /// # Errors
    /// [`ExecError::Isa`] or [`ExecError::Threads`] when there are no such kernels or threads.
    pub fn measure(options: &Options) -> Result<Peaks, ExecError> {
        let kernels = options.kernels()?;
        let threads = Threads::new(options.threads)?;
        let products = Arithmetic::ALL.into_iter().filter_map(|arithmetic| {
            let rounds = 2_000;
            let per_call = multiply_add(kernels, arithmetic, 1)? * rounds;
            let call = |_: usize| {
                multiply_add(kernels, arithmetic, rounds);
            };
            Some((arithmetic, rate(&threads, per_call as f64, &call)))
        });
        Ok(Peaks {
            isa: kernels.isa(),
            threads: threads.count(),
            products: products.collect(),
            memory: memory(kernels, &threads),
            hand_off: hand_off(&threads),
        })
    }

    /// What a step does per time, beside the peak of all threads.
    pub fn usage(&self, step: &StepTime) -> Use {
        let nanoseconds = step.nanoseconds.max(1) as f64;
        let arithmetic = step.step.arithmetic().filter(|_| step.step.macs > 0);
        let peak = arithmetic.and_then(|a| Some((a, self.products.iter().find(|(b, _)| a == *b)?.1)));
        match peak {
            Some((arithmetic, peak)) => {
                let rate = step.step.macs as f64 / nanoseconds;
                let unit = if arithmetic == Arithmetic::I8 { "OP" } else { "FLOP" };
                Use { rate: 2.0 * rate, unit, share: rate / peak.all }
            }
            None => {
                let rate = step.step.bytes as f64 / nanoseconds;
                let holds = |level: &&Level| level.bytes.is_none_or(|size| step.step.bytes <= size as u64);
                let peak = self.memory.iter().find(holds).map_or(f64::INFINITY, |level| level.read.all);
                Use { rate, unit: "B", share: rate / peak }
            }
        }
    }
}

/// The best rate of `amount` per call, on one thread and on all at once; `call` gets the number of its thread.
fn rate(threads: &Threads, amount: f64, call: &(impl Fn(usize) + Sync)) -> Rate {
    let attempt = |thread: usize| {
        let (mut calls, begun) = (0u32, Instant::now());
        while calls == 0 || begun.elapsed() < ATTEMPT {
            call(thread);
            calls += 1;
        }
        f64::from(calls) * amount / begun.elapsed().as_nanos() as f64
    };
    let best = |attempts: &dyn Fn() -> f64| (0..ATTEMPTS).map(|_| attempts()).fold(0.0, f64::max);
    let one = best(&|| attempt(0));
    let all = match threads.count() {
        1 => one,
        _ => best(&|| {
            let sum = Mutex::new(0.0);
            together(threads, |thread| {
                let rate = attempt(thread);
                *sum.lock().unwrap_or_else(PoisonError::into_inner) += rate;
            });
            sum.into_inner().unwrap_or_else(PoisonError::into_inner)
        }),
    };
    Rate { one, all }
}

/// Calls `run` on every thread, when all are there.
fn together(threads: &Threads, run: impl Fn(usize) + Sync) {
    let (count, here) = (threads.count(), AtomicUsize::new(0));
    threads.each(0..count, |thread| {
        here.fetch_add(1, Ordering::AcqRel);
        while here.load(Ordering::Acquire) < count {
            std::hint::spin_loop();
        }
        run(thread);
    });
}

/// The median time of a job in which every thread takes part and does nothing.
fn hand_off(threads: &Threads) -> Option<f64> {
    if threads.count() == 1 {
        return None;
    }
    let once = |_| {
        let begun = Instant::now();
        together(threads, |_| {});
        begun.elapsed().as_nanos() as f64
    };
    let mut times: Vec<f64> = (0..2_000).map(once).collect();
    times.sort_by(f64::total_cmp);
    Some(times[times.len() / 2])
}

fn memory(kernels: Kernels, threads: &Threads) -> Vec<Level> {
    let sizes = cache_sizes();
    let last = *sizes.iter().max().unwrap_or(&0);
    // Half of a cache, which is sure to stay there; for a shared one, half of everyone's part.
    let shared = |i: usize| if i == 2 { threads.count() } else { 1 };
    let cached = sizes.into_iter().enumerate().map(|(i, size)| (Some(size), size / 2 / shared(i)));
    let beyond = (4 * last).clamp(64 << 20, 256 << 20) / threads.count();
    let levels = cached.chain([(None, beyond)]);
    let level = |(name, (bytes, used)): (&'static str, (Option<usize>, usize))| {
        let data: Vec<Vec<u64>> =
            (0..threads.count()).map(|thread| vec![thread as u64 + 1; used / size_of::<u64>()]).collect();
        let times = ((1 << 20) / used.max(1)).max(1);
        let call = |thread: usize| {
            std::hint::black_box(read(kernels, &data[thread], times));
        };
        Level { name, bytes, read: rate(threads, (used * times) as f64, &call) }
    };
    ["L1", "L2", "L3", "DRAM"].into_iter().zip(levels).map(level).collect()
}

/// Sizes of the data caches of the first core in bytes: as Linux tells, else common ones.
fn cache_sizes() -> [usize; 3] {
    let mut sizes = [32 << 10, 1 << 20, 16 << 20];
    for index in 0..8 {
        let read = |what: &str| {
            let file = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{what}");
            std::fs::read_to_string(file).ok().map(|text| text.trim().to_owned())
        };
        let level = read("level").and_then(|text| text.parse::<usize>().ok());
        let size = read("size").and_then(|text| text.strip_suffix('K')?.parse::<usize>().ok());
        let data = read("type").is_some_and(|kind| kind != "Instruction");
        if let (Some(level @ 1..=3), Some(size @ 1..), true) = (level, size, data) {
            sizes[level - 1] = size << 10;
        }
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StepInfo;
    use sora_tensor::DType;

    fn step(kernel: &str, macs: u64, bytes: u64) -> StepTime {
        let (name, nodes, shape) = Default::default();
        let step = StepInfo {
            name,
            kernel: kernel.to_owned(),
            nodes,
            shape,
            dtype: DType::F32,
            macs,
            weight_bytes: 0,
            bytes,
            zeros: None,
            choice: None,
        };
        StepTime { step, nanoseconds: 1000 }
    }

    #[test]
    fn steps_are_compared_with_the_peak_of_what_they_do() {
        let rate = |all| Rate { one: all / 2.0, all };
        let level = |name, bytes, all| Level { name, bytes, read: rate(all) };
        let peaks = Peaks {
            isa: Isa::Portable,
            threads: 2,
            products: vec![(Arithmetic::F32, rate(100.0)), (Arithmetic::I8, rate(400.0))],
            memory: vec![level("L1", Some(1000), 50.0), level("DRAM", None, 10.0)],
            hand_off: None,
        };
        let usage = |kernel, macs, bytes| peaks.usage(&step(kernel, macs, bytes));
        assert_eq!(usage("conv.f32", 50_000, 10), Use { rate: 100.0, unit: "FLOP", share: 0.5 });
        assert_eq!(usage("conv.u8i8", 50_000, 10), Use { rate: 100.0, unit: "OP", share: 0.125 });
        assert_eq!(usage("maxpool.f32", 0, 1000), Use { rate: 1.0, unit: "B", share: 0.02 });
        assert_eq!(usage("concat", 0, 2000), Use { rate: 2.0, unit: "B", share: 0.2 });
        // No peak of this arithmetic: the memory's counts.
        assert_eq!(usage("conv.bf16", 50_000, 1000).unit, "B");
    }

    #[test]
    fn peaks_are_positive() {
        let peaks = Peaks::measure(&Options::default()).unwrap();
        assert!(peaks.products.len() >= 2 && peaks.memory.len() == 4 && peaks.hand_off.is_none());
        let rates = peaks.products.iter().map(|p| p.1).chain(peaks.memory.iter().map(|l| l.read));
        assert!(rates.into_iter().all(|r| r.one > 0.0 && r.all == r.one));
    }
}
