//! Holds one model ready and times it on request: what `cargo xtask peers` runs beside other runtimes.
//!
//! `worker MODEL THREADS [BATCH [PRECISION]]` prints one JSON line about loading; then, for each line with a number of
//! seconds on standard input, runs the model that long and prints the median and the least time of a run. `f32` and
//! `int8` compute as the model's file says.

use std::io::{BufRead, Write};
use std::time::Instant;

use sora::Model;
use sora::exec::{Options, Precision};
use sora::tensor::Tensor;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, threads, rest @ ..] = &args[..] else {
        return Err("usage: worker MODEL THREADS [BATCH [PRECISION]]".into());
    };
    let batch: usize = rest.first().map_or(Ok(1), |b| b.parse())?;
    let precision = match rest.get(1).map(String::as_str) {
        None | Some("int8") => Precision::F32,
        Some(other) => other.parse()?,
    };
    let before = memory_mb("VmRSS:");
    let start = Instant::now();
    let model = Model::load(path)?;
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let mut inputs = Vec::new();
    for &id in model.graph.inputs() {
        let value = model.graph.value(id);
        let shape: Vec<usize> = value.ty.shape.iter().map(|d| d.known().unwrap_or(batch)).collect();
        let count = shape.iter().product();
        let float = value.ty.dtype.is_float();
        let number = |r: u32| if float { f64::from(r) / f64::from(1 << 23) - 1.0 } else { f64::from(r % 2) };
        let values: Vec<f64> = (0..count).map(|_| number(random())).collect();
        inputs.push((value.name.clone(), Tensor::from_f64s(value.ty.dtype, &shape, &values)?));
    }
    let options = Options { threads: threads.parse()?, precision, ..Options::default() };
    let session = model.session(options)?;
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let milliseconds = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let load_ms = milliseconds(start);
    session.run(&given)?;
    let load_first_ms = milliseconds(start);
    let peak = memory_mb("VmHWM:");
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{{\"load_ms\":{load_ms:.3},\"load_first_ms\":{load_first_ms:.3},\"hwm_mb\":{peak:.2},\"memory_mb\":{:.2}}}",
        peak - before
    )?;
    for line in std::io::stdin().lock().lines() {
        let seconds: f64 = line?.trim().parse()?;
        session.run(&given)?;
        let (mut times, begun) = (Vec::new(), Instant::now());
        while times.len() < 2 || begun.elapsed().as_secs_f64() < seconds {
            let start = Instant::now();
            session.run(&given)?;
            times.push(milliseconds(start));
        }
        times.sort_by(f64::total_cmp);
        let (median, least) = (times[times.len() / 2], times[0]);
        writeln!(out, "{{\"med\":{median:.5},\"min\":{least:.5},\"n\":{}}}", times.len())?;
    }
    Ok(())
}

/// A row of the process's status in units of 2²⁰ bytes, such as the most memory it has held; 0 where the system does not
/// tell.
fn memory_mb(row: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = status.lines().find_map(|l| l.strip_prefix(row));
    value.and_then(|v| v.trim().trim_end_matches("kB").trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
