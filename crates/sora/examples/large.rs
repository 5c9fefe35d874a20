//! Writes a network whose weights exceed the 2 GB of an ONNX file: `large FILE.onnx [LAYERS [WIDTH]]`.
//!
//! Dense layers of equal width with ReLU between them, 12 of 8192 units by default: 3.2 GB. Weights are random in the range
//! that keeps the variance of values (He et al. 2015), and computed where they are written, so that this needs the memory
//! of one layer.

use sora::Failure;
use sora::ir::ops::{Binary, BinaryKind, MatMul, Unary, UnaryKind};
use sora::ir::{Dim, Graph, TensorType};
use sora::onnx::{self, ExportOptions};
use sora::tensor::{DType, Tensor};

/// The 64 random bits at a position: SplitMix64 (Steele et al. 2014).
fn random(position: u64) -> u64 {
    let mixed = position.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A tensor of random numbers below `limit` in magnitude, the same for the same `seed`.
fn uniform(seed: u64, shape: &[usize], limit: f32) -> Result<Tensor, sora::tensor::TensorError> {
    Tensor::computed(DType::F32, shape, move |bytes| {
        let (numbers, _) = bytes.as_chunks_mut::<4>();
        for (position, number) in (seed << 32..).zip(numbers) {
            // 24 bits fill the mantissa of a number from -1 to 1.
            let unit = (random(position) >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
            *number = (unit * limit).to_le_bytes();
        }
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or("usage: large FILE.onnx [LAYERS [WIDTH]]")?;
    let number = |at: usize, default| arguments.get(at).map_or(Ok(default), |n| n.parse::<usize>());
    let (layers, width) = (number(1, 12)?, number(2, 8192)?);
    let mut graph = Graph::new("large");
    let shape = vec![Dim::symbol("batch"), Dim::from(width)];
    let mut x = graph.input("x", TensorType { dtype: DType::F32, shape });
    for (layer, seed) in (0..layers).zip(1..) {
        let (weights, bias) = (
            uniform(2 * seed, &[width, width], (6.0 / width as f32).sqrt())?,
            uniform(2 * seed + 1, &[width], 0.1)?,
        );
        let weights = graph.constant(&format!("layer{layer}.weight"), weights);
        let bias = graph.constant(&format!("layer{layer}.bias"), bias);
        x = graph.op(&format!("layer{layer}"), MatMul {}, [x, weights])?;
        x = graph.op(&format!("layer{layer}.sum"), Binary { kind: BinaryKind::Add }, [x, bias])?;
        if layer + 1 < layers {
            x = graph.op(&format!("layer{layer}.relu"), Unary { kind: UnaryKind::Relu }, [x])?;
        }
    }
    graph.output("y", x);
    onnx::save(&graph, path, &ExportOptions::default())
        .map_err(|e| Failure::new(e.to_string(), path, "Free some space or write elsewhere."))?;
    Ok(())
}
