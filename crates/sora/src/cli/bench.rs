//! `sora bench`.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use sora::exec::{Arithmetic, ExecError, Level, Options, Peaks, Profile, Rate, Session, StepTime, Use};
use sora::ir::TensorType;
use sora::tensor::{DType, Tensor};
use sora::{Failure, Model};

use super::args::Bench;
use super::latency_table::latency_table;
use super::shapes::{check_names, given};
use super::sparsity::sparsity;
use super::tune::tune;
use super::{Printed, engine_failure, one_line, progress, warn};
use sora::table;

pub(super) fn bench(args: &Bench) -> Printed {
    if let (true, Some(model), Some(output)) = (args.tune, &args.model, &args.output) {
        return tune(model, output, args);
    }
    if let (true, Some(model), Some(output)) = (args.table, &args.model, &args.output) {
        return latency_table(model, output, args);
    }
    if let Some(output) = &args.output {
        let hint = "Add --table or --tune, or leave out --output.";
        return Err(Failure::new("There is nothing to write to a file.", output.display().to_string(), hint));
    }
    if args.sparsity {
        return sparsity(args);
    }
    let options = args.engine.options()?;
    let peaks = match args.peak || args.profile {
        true => Some(Peaks::measure(&options).map_err(engine_failure(Path::new("--peak")))?),
        false => None,
    };
    let shown = peaks.as_ref().filter(|_| args.peak);
    let (mut object, mut text) = match &args.model {
        Some(model) => bench_model(model, args, options, peaks.as_ref())?,
        None => (json!({}), String::new()),
    };
    if let Some(peaks) = shown {
        object["peak"] = peaks_json(peaks);
        let gap = if text.is_empty() { "" } else { "\n" };
        text += gap;
        text += &peaks_table(peaks);
    }
    Ok(if args.json { one_line(&object) } else { text })
}

/// Times a model: as one JSON object, and as text.
fn bench_model(
    path: &Path,
    args: &Bench,
    options: Options,
    peaks: Option<&Peaks>,
) -> Result<(serde_json::Value, String), Failure> {
    let start = Instant::now();
    let model = Model::load(path)?;
    warn(&model.warnings);
    let inputs = random_inputs(&model, args)?;
    let failed = engine_failure(path);
    let session = model.session(options).map_err(&failed)?;
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    session.run(&given).map_err(&failed)?;
    let load_ms = milliseconds(start.elapsed());

    let (times, profiles) = measure(&session, &given, args, &failed)?;
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    let (median, p90, min) = (at(0.5), at(0.9), at(0.0));
    let isa = session.isa().to_string();
    let steps = merge(&profiles, peaks);
    let mut object = json!({
        "median_ms": median, "p90_ms": p90, "min_ms": min, "runs": times.len(), "load_ms": load_ms,
        "peak_rss_mb": peak_rss_mb(), "threads": args.engine.parallel.threads, "isa": isa,
        "precision": args.engine.precision.to_string(),
    });
    if args.profile {
        object["profile"] = steps.iter().map(Step::json).collect();
    }
    let mut text = format!(
        "median {median:.4} ms, 90 % below {p90:.4} ms, least {min:.4} ms over {} runs\n\
         load to first result {load_ms:.1} ms, {} thread(s), {isa}, {}\n",
        times.len(),
        args.engine.parallel.threads,
        args.engine.precision,
    );
    if args.profile {
        let total: f64 = steps.iter().map(|s| s.milliseconds).sum();
        let rows: Vec<Vec<String>> = steps.iter().map(|step| step.row(total)).collect();
        text += "\n";
        text += &table(&["step", "kernel", "shape", "ms", "share", "rate", "of peak"], &rows);
    }
    Ok((object, text))
}

/// Sorted times in milliseconds, and the profiles if asked for. Warms up for a tenth of the time.
fn measure(
    session: &Session,
    given: &[(&str, &Tensor)],
    args: &Bench,
    failed: &impl Fn(ExecError) -> Failure,
) -> Result<(Vec<f64>, Vec<Profile>), Failure> {
    const MOST_RUNS: usize = 1_000_000;
    let warm_until = Instant::now() + Duration::from_secs_f64(args.seconds / 10.0);
    while Instant::now() < warm_until {
        session.run(given).map_err(failed)?;
    }
    let mut times = Vec::new();
    let until = Instant::now() + Duration::from_secs_f64(args.seconds);
    while times.is_empty() || (Instant::now() < until && times.len() < MOST_RUNS) {
        let start = Instant::now();
        session.run(given).map_err(failed)?;
        times.push(milliseconds(start.elapsed()));
        progress::check()?;
    }
    times.sort_by(f64::total_cmp);
    let mut profiles = Vec::new();
    let rounds = if args.profile { 50.min(times.len()) } else { 0 };
    for _ in 0..rounds {
        profiles.push(session.run_profiled(given).map_err(failed)?.1);
    }
    Ok((times, profiles))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

struct Step {
    name: String,
    kernel: String,
    shape: String,
    macs: u64,
    bytes: u64,
    milliseconds: f64,
    usage: Option<Use>,
}

impl Step {
    fn json(&self) -> serde_json::Value {
        let mut object = json!({
            "step": self.name, "kernel": self.kernel, "shape": self.shape, "macs": self.macs,
            "bytes": self.bytes, "ms": self.milliseconds,
        });
        if let Some(usage) = self.usage {
            let key = match usage.unit {
                "B" => "gb_per_s",
                "OP" => "gop_per_s",
                _ => "gflop_per_s",
            };
            object[key] = json!(usage.rate);
            object["peak_percent"] = json!(100.0 * usage.share);
        }
        object
    }

    fn row(&self, total: f64) -> Vec<String> {
        let rate = self.usage.map_or(String::new(), |u| format!("{:.1} G{}/s", u.rate, u.unit));
        let percent = self.usage.map_or(String::new(), |u| format!("{:.0} %", 100.0 * u.share));
        let share = format!("{:.1} %", 100.0 * self.milliseconds / total.max(1e-12));
        let time = format!("{:.4}", self.milliseconds);
        vec![self.name.clone(), self.kernel.clone(), self.shape.clone(), time, share, rate, percent]
    }
}

/// The median time of each step over all profiles.
fn merge(profiles: &[Profile], peaks: Option<&Peaks>) -> Vec<Step> {
    let Some(first) = profiles.first() else { return Vec::new() };
    let step = |(i, StepTime { step, .. }): (usize, &StepTime)| {
        let mut times: Vec<u64> =
            profiles.iter().filter_map(|p| p.steps.get(i)).map(|s| s.nanoseconds).collect();
        times.sort_unstable();
        let median = StepTime { step: step.clone(), nanoseconds: times[times.len() / 2] };
        let shape: Vec<String> = step.shape.iter().map(ToString::to_string).collect();
        Step {
            name: step.name.clone(),
            kernel: step.described_kernel(),
            shape: shape.join("×"),
            macs: step.macs,
            bytes: step.bytes,
            milliseconds: median.nanoseconds as f64 / 1e6,
            usage: peaks.map(|peaks| peaks.usage(&median)),
        }
    };
    first.steps.iter().enumerate().map(step).collect()
}

/// Multiply-adds as operations, two each; `int8` has no floating point.
fn peaks_json(peaks: &Peaks) -> serde_json::Value {
    let rate = |rate: &Rate, factor: f64| json!({"one": factor * rate.one, "all": factor * rate.all});
    let products: serde_json::Map<String, serde_json::Value> =
        peaks.products.iter().map(|(a, r)| (format!("{}_gop_per_s", a.name()), rate(r, 2.0))).collect();
    let level = |l: &Level| json!({"level": l.name, "bytes": l.bytes, "gb_per_s": rate(&l.read, 1.0)});
    let mut object = json!({
        "isa": peaks.isa.to_string(), "threads": peaks.threads,
        "memory": peaks.memory.iter().map(level).collect::<Vec<_>>(), "hand_off_ns": peaks.hand_off,
    });
    if let Some(object) = object.as_object_mut() {
        object.extend(products);
    }
    object
}

fn peaks_table(peaks: &Peaks) -> String {
    let row = |name: String, unit: &str, rate: &Rate, factor: f64| {
        let cell = |rate: f64| format!("{:.1} {unit}", factor * rate);
        vec![name, cell(rate.one), cell(rate.all)]
    };
    let product = |(arithmetic, rate): &(Arithmetic, Rate)| {
        let unit = if *arithmetic == Arithmetic::I8 { "GOP/s" } else { "GFLOP/s" };
        row(arithmetic.name().to_owned(), unit, rate, 2.0)
    };
    let size = |bytes: usize| match bytes >> 20 {
        0 => format!(", {} KiB", bytes >> 10),
        mebibytes => format!(", {mebibytes} MiB"),
    };
    let level = |level: &Level| {
        let name = format!("read from {}{}", level.name, level.bytes.map_or(String::new(), size));
        row(name, "GB/s", &level.read, 1.0)
    };
    let rows: Vec<_> = peaks.products.iter().map(product).chain(peaks.memory.iter().map(level)).collect();
    let all = format!("{} threads", peaks.threads);
    let mut text = table(&[peaks.isa.name(), "1 thread", &all], &rows);
    if let Some(nanoseconds) = peaks.hand_off {
        text += &format!("hand-off to all threads and back: {nanoseconds:.0} ns\n");
    }
    text
}

/// Random values for every input: floats in -1..1, integers 0, which is a valid index everywhere.
pub(super) fn random_inputs(model: &Model, args: &Bench) -> Result<Vec<(String, Tensor)>, Failure> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    };
    check_names(model, &args.shapes)?;
    let inputs = model.graph.inputs().iter().map(|&id| {
        let value = model.graph.value(id);
        let shape = input_shape(&value.name, &value.ty, args)?;
        let failed = |e: sora::tensor::TensorError| {
            Failure::new(e.to_string(), value.name.clone(), "Give a smaller --shape or --batch.")
        };
        let zeros = Tensor::zeros(value.ty.dtype, &shape).map_err(failed)?;
        let tensor = match value.ty.dtype.is_float() || value.ty.dtype == DType::U8 {
            true => {
                let scale = if value.ty.dtype.is_float() { 1.0 } else { 127.0 };
                let values: Vec<f64> = (0..zeros.len()).map(|_| uniform() * scale).collect();
                Tensor::from_f64s(value.ty.dtype, &shape, &values).map_err(failed)?
            }
            false => zeros,
        };
        Ok((value.name.clone(), tensor))
    });
    inputs.collect()
}

fn input_shape(name: &str, ty: &TensorType, args: &Bench) -> Result<Vec<usize>, Failure> {
    if let Some(shape) = given(&args.shapes, name, ty)? {
        return Ok(shape);
    }
    let batch = args.batch as usize;
    let extents = ty.shape.iter().enumerate().map(|(axis, dim)| match dim.known() {
        Some(extent) => Ok(extent),
        None if axis == 0 => Ok(batch),
        None => Err(Failure::new(
            format!("The model leaves extent {axis} of this input open: {ty}."),
            name,
            format!("Add --shape {name}=…, extents joined by x."),
        )),
    });
    extents.collect()
}

/// The most memory the process has held, in megabytes; `None` where the system does not tell.
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<f64>().ok().map(|kb| kb * 1024.0 / 1e6)
}
