//! `canary THREADS` prints how many million rounds of dependent-free arithmetic a second that many threads do together:
//! the same number as long as nobody else uses the machine and its clock stays.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: u32 = 20_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let threads: usize = std::env::args().nth(1).ok_or("usage: canary THREADS")?.parse()?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut lanes = [1.0f32; 32];
                let (factor, term) = black_box((0.999_9f32, 0.1f32));
                for _ in 0..ROUNDS {
                    lanes.iter_mut().for_each(|lane| *lane = *lane * factor + term);
                }
                black_box(lanes);
            });
        }
    });
    println!("{:.1}", f64::from(ROUNDS) * threads as f64 / start.elapsed().as_secs_f64() / 1e6);
    Ok(())
}
