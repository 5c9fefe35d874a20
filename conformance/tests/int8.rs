//! Quantized graphs: within one step of the float reference of the same graph, and the same integers on every
//! ISA and number of threads.

use sora_conformance::{all_cases, engines, reference, run};
use sora_ir::case::{Arg, Case, Gen};
use sora_ir::ops::{Binary, BinaryKind, Conv, DequantizeLinear, MatMul, QuantizeLinear};
use sora_ir::{Graph, QuantRule, TensorType, ValueId};
use sora_tensor::{DType, Tensor};

/// Scale and zero point that cover `values` and zero in `u8`.
fn affine(values: &[f64]) -> (f32, u8) {
    let low = values.iter().fold(0.0f64, |m, &v| m.min(v));
    let high = values.iter().fold(0.0f64, |m, &v| m.max(v));
    let scale = ((high - low) / 255.0).max(1e-6);
    (scale as f32, (-low / scale).round().clamp(0.0, 255.0) as u8)
}

fn quantize(graph: &mut Graph, x: ValueId, (scale, zero): (f32, u8), name: &str) -> ValueId {
    let scale = graph.constant(&format!("{name}.scale"), Tensor::scalar(scale));
    let zero = graph.constant(&format!("{name}.zero"), Tensor::scalar(zero));
    let op = QuantizeLinear { axis: 0, to: DType::U8 };
    let q = graph.op(&format!("{name}.q"), op, [x, scale, zero]).unwrap();
    graph.op(&format!("{name}.dq"), DequantizeLinear { axis: 0 }, [q, scale, zero]).unwrap()
}

/// Weights in `i8`, one scale for each slice along `axis`, dequantized.
fn quantize_weights(graph: &mut Graph, tensor: &Tensor, axis: usize, name: &str) -> (ValueId, Vec<f32>) {
    let (shape, values) = (tensor.shape(), tensor.to_f64s());
    let inner: usize = shape[axis + 1..].iter().product();
    let channel = |i: usize| i / inner % shape[axis];
    let mut largest = vec![1e-6f64; shape[axis]];
    values.iter().enumerate().for_each(|(i, v)| largest[channel(i)] = largest[channel(i)].max(v.abs()));
    let scales: Vec<f32> = largest.iter().map(|m| (m / 127.0) as f32).collect();
    let integers: Vec<i8> = values
        .iter()
        .enumerate()
        .map(|(i, v)| (v / f64::from(scales[channel(i)])).round().clamp(-127.0, 127.0) as i8)
        .collect();
    let q = graph.constant(&format!("{name}.w"), Tensor::from_slice(shape, &integers).unwrap());
    let s = graph.constant(&format!("{name}.ws"), Tensor::vector(&scales));
    let z = graph.constant(&format!("{name}.wz"), Tensor::vector(&vec![0i8; scales.len()]));
    let op = DequantizeLinear { axis: axis as i64 };
    (graph.op(&format!("{name}.wdq"), op, [q, s, z]).unwrap(), scales)
}

/// A case in canonical quantized form.
struct Quantized {
    graph: Graph,
    given: Vec<(String, Tensor)>,
    /// The scale of the output.
    step: f32,
}

/// The case in canonical quantized form, perhaps but for the bias; `None` where the quantizer would not touch it.
fn quantized(case: &Case, real_bias: bool) -> Option<Quantized> {
    let rule = case.op.quant();
    let f32s =
        case.inputs.iter().filter_map(Arg::tensor).all(|t| t.dtype() == DType::F32 || !t.dtype().is_float());
    let data_is_float = case.inputs.first()?.tensor()?.dtype() == DType::F32;
    // Products of two run-time operands stay in floating point.
    let linear = matches!(rule, QuantRule::Linear { .. });
    let has_weights = matches!(case.inputs.get(1), Some(Arg::Const(_)));
    if matches!(rule, QuantRule::Float | QuantRule::Recurrent)
        || !f32s
        || !data_is_float
        || linear && !has_weights
    {
        return None;
    }
    let (plain, given) = case.graph().ok()?;
    let expected = reference(&plain, &given);
    let mut graph = Graph::new("int8");
    let mut inputs = Vec::new();
    let mut scales = Vec::new();
    for (i, arg) in case.inputs.iter().enumerate() {
        let name = format!("x{i}");
        let weight = linear && i > 0;
        inputs.push(match arg {
            Arg::Absent => None,
            Arg::Const(t) if weight && i == 1 && t.dtype() == DType::F32 => {
                let QuantRule::Linear { weight_axis } = rule else { return None };
                let axis = usize::try_from(weight_axis).unwrap_or(t.rank().checked_sub(1)?);
                let (id, channel_scales) = quantize_weights(&mut graph, t, axis, &name);
                scales = channel_scales;
                Some(id)
            }
            Arg::Const(t) if weight && i == 2 && !scales.is_empty() && !real_bias => {
                // The bias at the scale of the accumulator, as the canonical form has it.
                let x_scale = affine(&case.inputs[0].tensor()?.to_f64s()).0;
                let bias_scales: Vec<f32> = scales.iter().map(|s| s * x_scale).collect();
                let bias: Vec<i32> = t
                    .to_f64s()
                    .iter()
                    .zip(&bias_scales)
                    .map(|(b, s)| (b / f64::from(*s)).round() as i32)
                    .collect();
                let b = graph.constant("bias", Tensor::vector(&bias));
                let s = graph.constant("bias.s", Tensor::vector(&bias_scales));
                Some(graph.op("bias.dq", DequantizeLinear { axis: 0 }, [b, s]).unwrap())
            }
            Arg::Const(t) => Some(graph.constant(&name, t.clone())),
            Arg::Var(t) if t.dtype() == DType::F32 => {
                let x = graph.input(&name, TensorType::of(t));
                Some(quantize(&mut graph, x, affine(&t.to_f64s()), &name))
            }
            Arg::Var(t) => Some(graph.input(&name, TensorType::of(t))),
        });
    }
    let outputs = graph.add("node", case.op.clone(), inputs).ok()?;
    let params = match rule {
        QuantRule::Passthrough => affine(&case.inputs[0].tensor()?.to_f64s()),
        _ => affine(&expected[0].to_f64s()),
    };
    for (i, &output) in outputs.iter().enumerate() {
        let y = quantize(&mut graph, output, params, &format!("y{i}"));
        graph.output(&format!("y{i}"), y);
    }
    Some(Quantized { graph, given, step: params.0 })
}

#[test]
fn integers_are_within_one_step_and_equal_on_every_engine() {
    let mut count = 0;
    for (seed, case) in all_cases() {
        let real_bias = count % 2 == 0;
        let Some(Quantized { graph, given, step }) = quantized(&case, real_bias) else { continue };
        let expected = reference(&graph, &given);
        let mut first: Option<Vec<Tensor>> = None;
        for options in engines() {
            let found = run(&graph, &given, &options);
            for (found, expected) in found.iter().zip(&expected) {
                let bound = f64::from(step) * 1.01;
                for (f, e) in found.to_f64s().iter().zip(expected.to_f64s()) {
                    let near = (f - e).abs() <= bound;
                    assert!(near, "seed {seed}, {options:?}, {:?}: {f} for {e}, step {step}", case.op);
                }
            }
            match &first {
                None => first = Some(found),
                Some(first) => {
                    assert!(*first == found, "seed {seed}, {options:?}: other integers\n{case:?}")
                }
            }
        }
        count += 1;
    }
    assert!(count > 200, "only {count} cases were quantized");
}

/// A bias that is no multiple of the product's step is added as it is. All numbers are multiples of powers of two, so
/// that the reference is exact.
#[test]
fn a_bias_between_the_steps_is_not_rounded() {
    let mut g = Gen::new(4);
    // Shape of the input, of the weights, and groups; `None` for a matrix product.
    let layers: [(&[usize], &[usize], Option<usize>); 7] = [
        (&[3, 5, 7, 6], &[9, 5, 1, 1], Some(1)),
        (&[1, 20, 9, 8], &[40, 20, 3, 3], Some(1)),
        (&[2, 3, 9, 8], &[35, 3, 3, 3], Some(1)),
        (&[1, 12, 7, 7], &[24, 4, 3, 3], Some(3)),
        (&[1, 35, 8, 9], &[35, 1, 3, 3], Some(35)),
        (&[6, 11], &[11, 37], None),
        (&[2, 4, 16], &[16, 8], None),
    ];
    for (x_shape, w_shape, group) in layers {
        let mut multiples = |shape: &[usize], of: f32, most: f64| -> Vec<f32> {
            let counts = g.uniform(DType::F32, shape, -most, most).to_f64s();
            counts.iter().map(|count| count.round() as f32 * of).collect()
        };
        let n = if group.is_some() { w_shape[0] } else { w_shape[1] };
        let given = multiples(x_shape, 0.25, 40.0);
        let weights: Vec<i8> = multiples(w_shape, 1.0, 3.0).into_iter().map(|w| w as i8).collect();
        let bias = multiples(&[n], 1.0 / 64.0, 99.0);

        let mut graph = Graph::new("bias");
        let given = Tensor::from_slice(x_shape, &given).unwrap();
        let x = graph.input("x", TensorType::of(&given));
        let x = quantize(&mut graph, x, (0.5, 128), "x");
        let w = graph.constant("w", Tensor::from_slice(w_shape, &weights).unwrap());
        let scale = graph.constant("w.scale", Tensor::scalar(0.5f32));
        let w = graph.op("w.dq", DequantizeLinear { axis: 0 }, [w, scale]).unwrap();
        let bias = graph.constant("bias", Tensor::vector(&bias));
        let y = match group {
            Some(group) => {
                let pads = vec![(w_shape[2] - 1) / 2; 2];
                let conv = Conv {
                    strides: vec![1; 2],
                    pads: [&pads[..], &pads].concat(),
                    dilations: vec![1; 2],
                    group,
                };
                graph.op("conv", conv, [x, w, bias]).unwrap()
            }
            None => {
                let product = graph.op("product", MatMul {}, [x, w]).unwrap();
                graph.op("sum", Binary { kind: BinaryKind::Add }, [product, bias]).unwrap()
            }
        };
        let y = quantize(&mut graph, y, (0.0625, 128), "y");
        graph.output("y", y);
        let given = vec![("x".to_owned(), given)];
        let expected = reference(&graph, &given);
        for options in engines() {
            assert!(run(&graph, &given, &options) == expected, "{w_shape:?}, {options:?}");
        }
    }
}
