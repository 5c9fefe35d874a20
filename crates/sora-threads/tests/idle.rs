//! A pool without jobs must not keep cores busy. Alone in its process, whose processor time it reads.
#![cfg(not(loom))]

use std::time::{Duration, Instant};

use sora_threads::Pool;

#[test]
fn idle_helpers_sleep() {
    let Some(before) = processor_ticks() else { return };
    let pool = Pool::new(4).unwrap();
    pool.each(&mut [(); 4], |()| ());
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(400));
    let passed = start.elapsed().as_millis();
    // A tick is 10 ms on Linux. Three helpers that did not sleep would need up to three times the time passed.
    let spent = u128::from(processor_ticks().unwrap_or(before) - before) * 10;
    assert!(spent < passed / 4, "{spent} ms of processor time in {passed} ms of idleness");
    drop(pool);
}

/// Processor time of this process in ticks; `None` where the system does not tell.
fn processor_ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}
