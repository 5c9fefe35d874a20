//! Kernel choices measured on a machine, where the cost model would only estimate.
//!
//! Some steps can be done by several algorithms whose order of speed no formula tells exactly. Lowering asks a
//! [`Tuning`] first and its cost model otherwise; [`tune`] makes one, by running the network with each alternative.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sora_ir::Graph;
use sora_tensor::Tensor;

use crate::programs::Setting;
use crate::{Arena, ExecError, Options, PackedWeights, Profile, Program};

/// Kernels for steps, measured on one machine. Programs for another machine, instruction set or number of threads
/// ignore it, and so do steps that it does not name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// What it was measured on; see [`Tuning::machine_for`].
    pub machine: String,
    /// By [`Choice::key`]: one of the [`Choice::alternatives`].
    pub choices: BTreeMap<String, String>,
}

impl Tuning {
    /// Names the version, kernels, processor and number of threads of programs compiled with these options.
    ///
    /// # Errors
    /// [`ExecError::Isa`] for an instruction set that does not run here.
    pub fn machine_for(options: &Options) -> Result<String, ExecError> {
        let packing = PackedWeights::packing_for(options)?;
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let processor = model.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
        Ok(format!("{packing}, {} thread(s), {processor}", options.threads))
    }
}

/// One of several ways to compute a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The kind of step and its extents: equal keys, equal work.
    pub key: String,
    /// What the step does.
    pub taken: &'static str,
    /// What it could do; some may turn out not to apply.
    pub alternatives: &'static [&'static str],
}

/// What [`tune`] found.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// What to use: without choices where they do not make the network faster.
    pub tuning: Tuning,
    /// The steps for which another alternative than the cost model's was faster.
    pub found: Vec<Found>,
    /// Least times of the whole network in nanoseconds, by the cost model and with everything found; `None` where
    /// nothing was found.
    pub network: Option<[u64; 2]>,
}

/// An alternative that was faster than the cost model's.
#[derive(Clone, Debug)]
pub struct Found {
    /// See [`Choice::key`].
    pub key: String,
    /// Steps with this key.
    pub steps: usize,
    /// The cost model's alternative, and the faster one.
    pub alternatives: [&'static str; 2],
    /// Least times of one run of these steps, in nanoseconds, by either.
    pub nanoseconds: [u64; 2],
}

/// Share of its time that a step must gain: less is noise.
const MARGIN: f64 = 0.03;
/// Runs of each program, and of each pair of programs, at least.
const ROUNDS: usize = 5;
const PAIRS: usize = 15;

/// Measures the alternatives of the steps of `graph` on these inputs, for about `time` (and compiling), or until
/// `stop` says so.
///
/// The network runs in turn as the cost model wants it and with each alternative throughout; of every step the
/// least time counts. What was faster is then taken together and the whole network measured against the cost
/// model's, in pairs: unless it wins so many pairs as chance gives once in forty cases, no choice is kept.
///
/// # Errors
/// As [`Program::compile`] and [`Program::run`].
pub fn tune(
    graph: &Graph,
    inputs: &[(&str, &Tensor)],
    options: &Options,
    time: Duration,
    stop: &dyn Fn() -> bool,
) -> Result<Tuned, ExecError> {
    let machine = Tuning::machine_for(options)?;
    let setting = Setting::new(graph, options)?;
    let shapes: Vec<(&str, Vec<usize>)> = inputs.iter().map(|(n, t)| (*n, t.shape().to_vec())).collect();
    let candidate = |choices: BTreeMap<String, String>| {
        let tuning = Some(Arc::new(Tuning { machine: machine.clone(), choices }));
        let options = Options { tuning, ..options.clone() };
        let setting = Setting { options: Arc::new(options), ..setting.clone() };
        let program = Program::compile_on(graph, &shapes, &setting)?;
        Candidate::new(program, inputs)
    };

    let mut plain = candidate(BTreeMap::new())?;
    let steps = plain.program.steps().iter().filter_map(|step| step.choice.clone());
    let choices: BTreeMap<String, Choice> = steps.map(|c| (c.key.clone(), c)).collect();
    let most = choices.values().map(|c| c.alternatives.len()).max().unwrap_or(0);
    let mut others = Vec::new();
    for i in 0..most {
        let forced = |c: &Choice| c.alternatives[i.min(c.alternatives.len() - 1)].to_owned();
        others.push(candidate(choices.iter().map(|(key, c)| (key.clone(), forced(c))).collect())?);
    }
    let until = Instant::now() + time / 2;
    for round in 0.. {
        if stop() || others.is_empty() || (round >= ROUNDS && Instant::now() >= until) {
            break;
        }
        plain.profile(inputs)?;
        others.iter_mut().try_for_each(|other| other.profile(inputs))?;
    }

    let mut found = Vec::new();
    for choice in choices.values() {
        let (steps, before) = plain.time_of(&choice.key, choice.taken);
        let gains = |other: &Candidate| {
            let differs = choice.alternatives.iter().filter(|&&name| name != choice.taken);
            let times = differs.map(|&name| (name, other.time_of(&choice.key, name)));
            times.filter(|(_, (n, _))| *n == steps).map(|(name, (_, ns))| (ns, name)).min()
        };
        if let Some((after, name)) = others.iter().filter_map(gains).min()
            && (after as f64) < before as f64 * (1.0 - MARGIN)
        {
            let (alternatives, nanoseconds) = ([choice.taken, name], [before, after]);
            found.push(Found { key: choice.key.clone(), steps, alternatives, nanoseconds });
        }
    }
    drop(others);
    let mut tuning = Tuning { machine: machine.clone(), ..Tuning::default() };
    if found.is_empty() || stop() {
        return Ok(Tuned { tuning, found, network: None });
    }
    let name = |f: &Found| (f.key.clone(), f.alternatives[1].to_owned());
    let kept: BTreeMap<String, String> = found.iter().map(name).collect();
    let mut tuned = candidate(kept.clone())?;
    let (faster, network) = compare(&mut plain, &mut tuned, inputs, time / 2, stop)?;
    if faster {
        tuning.choices = kept;
    }
    Ok(Tuned { tuning, found, network: Some(network) })
}

/// A program to be measured.
struct Candidate {
    program: Program,
    arena: Arena,
    /// The least time of each step so far.
    least: Option<Profile>,
}

impl Candidate {
    /// Runs the program until it is warm and knows which steps its threads share.
    fn new(program: Program, inputs: &[(&str, &Tensor)]) -> Result<Self, ExecError> {
        let mut arena = program.arena()?;
        for _ in 0..2 {
            program.run(&mut arena, inputs)?;
        }
        while !program.is_settled() {
            program.run(&mut arena, inputs)?;
        }
        Ok(Candidate { program, arena, least: None })
    }

    fn profile(&mut self, inputs: &[(&str, &Tensor)]) -> Result<(), ExecError> {
        let profile = self.program.run_profiled(&mut self.arena, inputs)?.1;
        match &mut self.least {
            Some(least) => least.keep_fastest(&profile),
            None => self.least = Some(profile),
        }
        Ok(())
    }

    /// Nanoseconds of one run.
    fn time(&mut self, inputs: &[(&str, &Tensor)]) -> Result<u64, ExecError> {
        let start = Instant::now();
        self.program.run(&mut self.arena, inputs)?;
        Ok(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Number and time of the steps with this key that take this alternative.
    fn time_of(&self, key: &str, taken: &str) -> (usize, u64) {
        let chosen = |choice: &Choice| choice.key == key && choice.taken == taken;
        let steps = self.least.iter().flat_map(|profile| &profile.steps);
        let times = steps.filter(|s| s.step.choice.as_ref().is_some_and(chosen)).map(|s| s.nanoseconds);
        times.fold((0, 0), |(n, sum), time| (n + 1, sum + time))
    }
}

/// Whether `b` is faster than `a` beyond noise, and the least time of each.
fn compare(
    a: &mut Candidate,
    b: &mut Candidate,
    inputs: &[(&str, &Tensor)],
    time: Duration,
    stop: &dyn Fn() -> bool,
) -> Result<(bool, [u64; 2]), ExecError> {
    let until = Instant::now() + time;
    let (mut pairs, mut wins, mut least) = (0usize, 0usize, [u64::MAX; 2]);
    while !stop() && (pairs < PAIRS || Instant::now() < until) {
        let [x, y] = if pairs.is_multiple_of(2) {
            [a.time(inputs)?, b.time(inputs)?]
        } else {
            let y = b.time(inputs)?;
            [a.time(inputs)?, y]
        };
        pairs += 1;
        wins += usize::from(y < x);
        least = [least[0].min(x), least[1].min(y)];
    }
    // Two standard deviations of fair coins above their mean.
    let chance = pairs as f64 / 2.0 + (pairs as f64).sqrt();
    Ok((pairs > 0 && wins as f64 > chance && least[1] < least[0], least))
}
