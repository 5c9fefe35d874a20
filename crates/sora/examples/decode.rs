//! Measures how fast the weights of a `.sora` file are decoded, and how small they are: `decode [MEGABYTES]`.
//!
//! Each kind of weights is written as a file in memory and read from it, 16 MB of elements by default. Times are those of
//! the first access to weights that lie coded, memory for them included; the least of several counts. The order-0 entropy
//! of weights is that of their elements; of the sparse floats, that of which ones are zero and of each byte of the others.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use sora::ir::Graph;
use sora::tensor::{Buffer, DType, Tensor};
use sora::{Metadata, format, table};

/// The sum of four uniform numbers, scaled to a variance of 1: close to a normal distribution.
fn normal(rng: &mut fastrand::Rng) -> f64 {
    (0..4).map(|_| rng.f64() - 0.5).sum::<f64>() * 3f64.sqrt()
}

/// Bits of all symbols together, each coded by how often it occurs.
fn entropy<T: Eq + Hash>(symbols: impl Iterator<Item = T>) -> f64 {
    let mut counts: HashMap<T, f64> = HashMap::new();
    symbols.for_each(|symbol| *counts.entry(symbol).or_default() += 1.0);
    let sum: f64 = counts.values().sum();
    counts.values().map(|count| -count * (count / sum).log2()).sum()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let megabytes = std::env::args().nth(1).map_or(Ok(16), |n| n.parse::<usize>())?;
    let len = megabytes * 1_000_000;
    let rng = &mut fastrand::Rng::with_seed(1);
    // 31 steps of each side of the distribution's 4 standard deviations: weights in 8 bits by their largest.
    let step = |value: f64| (value * 127.0 / 4.0).round().clamp(-127.0, 127.0) as i8;
    let sparse = |rng: &mut fastrand::Rng| if rng.f64() < 0.1 { normal(rng) } else { 0.0 };
    let dense_bytes: Vec<i8> = (0..len).map(|_| step(normal(rng))).collect();
    let sparse_bytes: Vec<i8> = (0..len).map(|_| step(sparse(rng))).collect();
    let sparse_floats: Vec<f32> = (0..len / 4).map(|_| sparse(rng) as f32 * 0.05).collect();
    let clustered: Vec<f32> =
        (0..len / 4).map(|_| (normal(rng) * 6.0).round().clamp(-16.0, 15.0) as f32 * 0.01).collect();

    let set = || sparse_floats.iter().filter(|&&v| v != 0.0);
    let bytes: f64 = (0..4).map(|p| entropy(set().map(|v| v.to_le_bytes()[p]))).sum();
    let kinds = [
        ("i8, normal", Tensor::vector(&dense_bytes), entropy(dense_bytes.iter())),
        ("i8, 90 % zeros", Tensor::vector(&sparse_bytes), entropy(sparse_bytes.iter())),
        (
            "f32, 90 % zeros",
            Tensor::vector(&sparse_floats),
            bytes + entropy(sparse_floats.iter().map(|&v| v != 0.0)),
        ),
        ("f32, 32 values", Tensor::vector(&clustered), entropy(clustered.iter().map(|v| v.to_bits()))),
    ];
    let mut rows = Vec::new();
    for (name, weights, entropy) in kinds {
        let mut graph = Graph::new(name);
        let x = graph.constant("weights", weights.clone());
        graph.output("y", x);
        let start = Instant::now();
        let file = format::to_bytes(&graph, &Metadata::default(), None)?;
        let written = start.elapsed();
        let (read, ..) = format::read_bytes(Buffer::copy_of(&file))?;
        let (_, coded) =
            read.values().find_map(|(id, v)| Some((v, read.const_value(id)?))).ok_or("no weights")?;
        let mut least = Duration::MAX;
        for _ in 0..10 {
            let start = Instant::now();
            let decoded = coded.detached();
            std::hint::black_box(decoded.raw());
            least = least.min(start.elapsed());
            assert!(decoded == weights, "{name}: other weights than were written");
        }
        let raw = weights.byte_len() as f64;
        let size = match weights.dtype() {
            DType::F32 => 4.0,
            _ => 1.0,
        };
        rows.push(vec![
            name.to_owned(),
            format!("{:.3}", entropy / raw * size),
            format!("{:.3}", file.len() as f64 * 8.0 / raw * size),
            format!("{:.1} %", 100.0 * file.len() as f64 / raw),
            format!("{:.0}", raw / least.as_secs_f64() / 1e6),
            format!("{:.0}", raw / written.as_secs_f64() / 1e6),
        ]);
    }
    let head = ["weights", "entropy, bits each", "file, bits each", "of raw", "decoded MB/s", "written MB/s"];
    println!("{}", table(&head, &rows));
    Ok(())
}
