//! The protocol between `cargo xtask peers` and a program that holds one model ready: see `serve`.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

/// What the command line said: `PROGRAM MODEL THREADS`.
pub struct Args {
    /// The model's file.
    pub model: String,
    /// Threads to run it with.
    pub threads: usize,
}

impl Args {
    /// Reads the command line.
    pub fn parse() -> Result<Args, Box<dyn Error>> {
        let args: Vec<String> = std::env::args().collect();
        let [_, model, threads] = &args[..] else { return Err("usage: PROGRAM MODEL THREADS".into()) };
        Ok(Args { model: model.clone(), threads: threads.parse()? })
    }
}

/// When loading began, and what memory the process held then.
pub struct Start {
    time: Instant,
    megabytes: f64,
}

impl Start {
    /// Now.
    pub fn now() -> Start {
        Start { time: Instant::now(), megabytes: megabytes("VmRSS:") }
    }
}

/// Runs once and prints one JSON line about loading; then, for each line with a number of seconds on standard input,
/// runs that long and prints the median and the least time of a run in milliseconds.
pub fn serve(
    start: &Start,
    mut run: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let load_ms = milliseconds(start.time);
    run()?;
    let first_ms = milliseconds(start.time);
    println!(
        "{{\"load_ms\":{load_ms:.3},\"load_first_ms\":{first_ms:.3},\"memory_mb\":{:.2}}}",
        megabytes("VmHWM:") - start.megabytes
    );
    for line in std::io::stdin().lock().lines() {
        let seconds: f64 = line?.trim().parse()?;
        run()?;
        let (mut times, begun) = (Vec::new(), Instant::now());
        while times.len() < 2 || begun.elapsed().as_secs_f64() < seconds {
            let start = Instant::now();
            run()?;
            times.push(milliseconds(start));
        }
        times.sort_by(f64::total_cmp);
        let (median, least) = (times[times.len() / 2], times[0]);
        println!("{{\"med\":{median:.5},\"min\":{least:.5},\"n\":{}}}", times.len());
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// The elements of an input: floats in -1..1; of integers, ones for a mask and small indices otherwise.
pub fn floats(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// As [`floats`], for the integer input of this name.
pub fn integers(name: &str, count: usize) -> Vec<i64> {
    let index = |i: usize| (i as i64 * 37) % 8000;
    (0..count).map(|i| if name.contains("mask") { 1 } else { index(i) }).collect()
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// A row of the process's status in units of 2²⁰ bytes; 0 where the system does not tell.
fn megabytes(row: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|line| line.strip_prefix(row));
    found.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
