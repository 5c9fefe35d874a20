//! What further input shapes cost a session: planning, and no weight is read or packed once more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sora_exec::{Options, Session};
use sora_ir::ops::{Conv, DequantizeLinear, MatMul, QuantizeLinear};
use sora_ir::{Dim, Graph, TensorType, ValueId, evaluate};
use sora_tensor::{DType, Tensor};

const CHANNELS: usize = 128;

/// A constant, and how often its elements were asked for by somebody who did not have them.
fn counted(dtype: DType, shape: &[usize]) -> (Tensor, Arc<AtomicUsize>) {
    let reads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reads);
    let tensor = Tensor::computed(dtype, shape, move |bytes| {
        count.fetch_add(1, Ordering::Relaxed);
        match dtype {
            DType::F32 => {
                let (numbers, _) = bytes.as_chunks_mut::<4>();
                let values = (0..).map(|i| (i as f32).sin() / 16.0);
                numbers.iter_mut().zip(values).for_each(|(number, v)| *number = v.to_ne_bytes());
            }
            // Around the zero point.
            _ => {
                let zero = if dtype == DType::U8 { 128 } else { 0u8 };
                let values = (0u32..).map(|i| zero.wrapping_add((i * 7 % 61) as u8).wrapping_sub(30));
                bytes.iter_mut().zip(values).for_each(|(byte, v)| *byte = v);
            }
        }
    });
    (tensor.unwrap(), reads)
}

fn images(graph: &mut Graph) -> ValueId {
    let shape = vec![Dim::symbol("batch"), Dim::from(CHANNELS), Dim::symbol("height"), Dim::from(7usize)];
    graph.input("x", TensorType { dtype: DType::F32, shape })
}

fn convolve(graph: &mut Graph, x: ValueId, w: ValueId) {
    let y = graph.op("conv", Conv { pads: vec![1; 4], ..Conv::new(2) }, [x, w]).unwrap();
    graph.output("y", y);
}

/// A convolution of real numbers.
fn reals() -> (Graph, Arc<AtomicUsize>) {
    let mut graph = Graph::new("reals");
    let x = images(&mut graph);
    let (weights, reads) = counted(DType::F32, &[CHANNELS, CHANNELS, 3, 3]);
    let w = graph.constant("w", weights);
    convolve(&mut graph, x, w);
    (graph, reads)
}

/// A convolution of bytes by bytes, the weights as signed or as unsigned ones around 128.
fn bytes(dtype: DType) -> (Graph, Arc<AtomicUsize>) {
    let mut graph = Graph::new("bytes");
    let x = images(&mut graph);
    let scale = graph.constant("scale", Tensor::scalar(0.01f32));
    let zero = graph.constant("zero", Tensor::scalar(128u8));
    let quantize = QuantizeLinear { axis: 1, to: DType::U8 };
    let x = graph.op("quantized", quantize, [x, scale, zero]).unwrap();
    let dequantize = || DequantizeLinear { axis: 0 };
    let x = graph.op("dequantized", dequantize(), [x, scale, zero]).unwrap();
    let (weights, reads) = counted(dtype, &[CHANNELS, CHANNELS, 3, 3]);
    let w = graph.constant("w", weights);
    let inputs = if dtype == DType::U8 { vec![w, scale, zero] } else { vec![w, scale] };
    let w = graph.op("weights", dequantize(), inputs).unwrap();
    convolve(&mut graph, x, w);
    (graph, reads)
}

#[test]
fn weights_are_packed_once_for_all_shapes() {
    for (graph, reads) in [reals(), bytes(DType::I8), bytes(DType::U8)] {
        let name = graph.name.clone();
        let session = Session::new(graph, Options::default()).unwrap();
        let program = |batch: usize, height: usize| {
            session.program(&[("x", vec![batch, CHANNELS, height, 7])]).unwrap();
        };
        program(1, 7);
        let once = (reads.load(Ordering::Relaxed), session.packed_weights().entries.len());
        for (batch, height) in [(2, 7), (4, 7), (8, 7), (1, 9), (1, 4)] {
            program(batch, height);
            let now = (reads.load(Ordering::Relaxed), session.packed_weights().entries.len());
            assert_eq!(now, once, "{name}: reads and packed weights at batch {batch}, height {height}");
        }
    }
}

#[test]
fn a_tile_that_is_packed_serves_shapes_that_would_choose_another_one() {
    let (graph, _) = reals();
    let keys = |session: &Session| session.packed_weights().entries.into_keys().collect::<Vec<_>>();
    let session = || Session::new(graph.clone(), Options::default()).unwrap();
    let (first, fresh) = (session(), session());
    let shape = |batch: usize| [("x", vec![batch, CHANNELS, 7, 7])];
    first.program(&shape(1)).unwrap();
    fresh.program(&shape(4)).unwrap();
    assert_ne!(keys(&first), keys(&fresh), "the shapes do not choose different tiles: choose others");

    let values: Vec<f32> = (0..4 * CHANNELS * 49).map(|i| (i as f32 * 0.3).cos()).collect();
    let x = Tensor::from_slice(&[4, CHANNELS, 7, 7], &values).unwrap();
    let expected = evaluate(&graph, &[("x", &x)]).unwrap()[0].to_f64s();
    for session in [&first, &fresh] {
        let found = session.run(&[("x", &x)]).unwrap()[0].1.to_f64s();
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() < 2e-4, "{a} for {b}");
        }
    }
    assert_eq!(keys(&first).len(), 1);
}

#[test]
fn products_of_matrices_read_their_weights_once() {
    let mut graph = Graph::new("product");
    let shape = vec![Dim::symbol("rows"), Dim::from(64usize)];
    let x = graph.input("x", TensorType { dtype: DType::F32, shape });
    let (weights, reads) = counted(DType::F32, &[64, 48]);
    let w = graph.constant("w", weights);
    let y = graph.op("y", MatMul {}, [x, w]).unwrap();
    graph.output("y", y);
    let session = Session::new(graph, Options::default()).unwrap();
    session.program(&[("x", vec![1, 64])]).unwrap();
    let once = reads.load(Ordering::Relaxed);
    (2..6).for_each(|rows| drop(session.program(&[("x", vec![rows, 64])]).unwrap()));
    assert_eq!(reads.load(Ordering::Relaxed), once);
}
