//! Quantization-aware training: what is trained is the quantized network itself, whose integers follow weights behind them.
//!
//! The network stays in its one form, QuantizeLinear and DequantizeLinear around float operators. A constant of integers becomes
//! real weights that a QuantizeLinear rounds in each step exactly as it is rounded in the end, so training meets the integers
//! that are deployed. Scales are learnt, too; zero points stay. Sources: Jacob et al. 2018; Esser et al. 2020 (LSQ).

use std::collections::HashMap;

use sora_ir::ops::{Binary, BinaryKind, DequantizeLinear, Op, QuantizeLinear, UnaryKind};
use sora_ir::{Dim, EvalCx, Graph, Mismatch, Node, NodeId, ValueId, Writer, resolve_axis};
use sora_tensor::{DType, Tensor};

use crate::imported::{FineTuning, weights};
use crate::network::{Parameter, Trainable};
use crate::{Penalty, TrainError};

/// The least share of what it began with that a scale may become.
const LEAST: f32 = 1.0 / 64.0;

/// How far from its level a weight may begin, in steps: near enough for each to be rounded to the level that it had.
const INSIDE: f64 = 0.498;

/// Integers beyond this are no floats, so that limits there make no difference.
const EXACT: i128 = 1 << 24;

/// What is known of quantized weights beyond their levels.
#[derive(Clone, Debug)]
pub struct Levels {
    /// What they were before they were rounded.
    pub real: Option<Tensor>,
    /// Bits of the levels, from 2 to 8: they lie between `±(2^(bits − 1) − 1)`.
    pub bits: u32,
}

impl Trainable {
    /// A quantized network, to be trained as such. It begins with the integers that it has.
    ///
    /// Trained are the float weights that it still has, and of DequantizeLinear over constants
    /// - `i8` without zero points: the weights behind the levels. They begin with what `known` says under the name of the dequantized
    ///   value, as near as rounds to the same level, and have 8 bits where it says nothing;
    /// - `i32` that are added to a product of dequantized values: the bias, whose unit is the product of both scales;
    /// - and all other constant scales, as a share of what they begin with, so that steps are as large for all. Their gradients
    ///   have LSQ's factor `1 / √(elements · greatest level)`, elements being those that share the scale in one sample.
    ///
    /// # Errors
    /// [`TrainError`] when the graph is inconsistent.
    pub fn quantized(graph: Graph, known: &HashMap<String, Levels>) -> Result<Self, TrainError> {
        let tuning =
            FineTuning { freeze: Vec::new(), rate: 1.0, batch_statistics: false, classes: None, seed: 0 };
        let parameters = weights(&graph, &tuning, &[]);
        let mut opened = Opened { graph, parameters, known, first: HashMap::new() };
        for step in [Opened::scale, Opened::weight, Opened::bias] {
            let ids: Vec<NodeId> = opened.graph.nodes().map(|(id, _)| id).collect();
            for id in ids {
                if let Some(node) = opened.graph.node(id).cloned() {
                    step(&mut opened, id, &node)?;
                }
            }
        }
        Ok(Trainable { graph: opened.graph, parameters: opened.parameters, dropouts: Vec::new() })
    }
}

/// A network whose integers become weights again, one after the other.
struct Opened<'a> {
    graph: Graph,
    parameters: Vec<Parameter>,
    known: &'a HashMap<String, Levels>,
    /// By a scale that is learnt: what it begins with.
    first: HashMap<ValueId, Tensor>,
}

impl Opened<'_> {
    /// Makes the scale of a quantization something learnt.
    fn scale(&mut self, _: NodeId, node: &Node) -> Result<(), TrainError> {
        let greatest = self.greatest(node);
        let graph = &mut self.graph;
        let (&[Some(x), Some(scale), ..], true) =
            (&node.inputs[..], matches!(node.op, Op::QuantizeLinear(_) | Op::DequantizeLinear(_)))
        else {
            return Ok(());
        };
        let levels = match &node.op {
            Op::QuantizeLinear(QuantizeLinear { to, .. }) => *to,
            _ => graph.ty(x).dtype,
        };
        let Some(first) = graph.const_value(scale).filter(|s| s.dtype() == DType::F32).cloned() else {
            return Ok(());
        };
        let Some((low, high)) = levels.int_range().filter(|_| levels != DType::I32) else { return Ok(()) };
        let (elements, span) = match graph.const_value(x) {
            Some(levels) => (levels.len() / first.len().max(1), greatest),
            None => (graph.ty(x).shape.iter().skip(1).filter_map(Dim::known).product(), (high - low) as f64),
        };
        let name = graph.value(scale).name.clone();
        graph.rename(scale, &format!("{name}/first"));
        let ones = Tensor::from_slice(first.shape(), &vec![1f32; first.len()]).map_err(Mismatch::from)?;
        let share = graph.constant(&format!("{name}/share"), ones);
        let least = graph.constant(&format!("{name}/least"), Tensor::scalar(LEAST));
        let bounded =
            graph.op(&format!("{name}/bounded"), Binary { kind: BinaryKind::Max }, [share, least])?;
        let learnt = graph.op(&name, Binary { kind: BinaryKind::Mul }, [scale, bounded])?;
        graph.replace_uses(scale, learnt);
        if let Some(id) = graph.producer(learnt).map(|(id, ..)| id) {
            graph.set_input(id, 0, scale);
        }
        self.first.insert(learnt, first);
        let gradient = 1.0 / (elements.max(1) as f64 * span).sqrt();
        self.learn(share, gradient);
        Ok(())
    }

    /// Puts real weights and their rounding in the place of constant levels.
    fn weight(&mut self, id: NodeId, node: &Node) -> Result<(), TrainError> {
        let Some((axis, levels, scale)) = self.levels(node, DType::I8) else { return Ok(()) };
        let zero_points = node.inputs.get(2).copied().flatten();
        let zero = |v| self.graph.const_value(v).is_some_and(|t| t.to_f64s().iter().all(|&z| z == 0.0));
        let (Some(first), true) = (self.first.get(&scale).cloned(), zero_points.is_none_or(zero)) else {
            return Ok(());
        };
        let Some(real) = self.begin(node, &levels, &first, axis)? else { return Ok(()) };
        let (name, greatest) = (self.take_name(node), self.greatest(node));
        let weight = self.graph.constant(&format!("{name}/real"), real);
        self.learn(weight, 1.0);
        let mut w = Writer::new(&mut self.graph, format!("{name}/bounds"));
        let line = w.along(scale, weight, axis)?;
        let high = w.times(line, greatest)?;
        let low = w.unary(UnaryKind::Neg, high)?;
        let above = w.binary(BinaryKind::Max, weight, low)?;
        let bounded = w.binary(BinaryKind::Min, above, high)?;
        let inputs = [Some(bounded), Some(scale), zero_points];
        let inputs = inputs.into_iter().take(if zero_points.is_some() { 3 } else { 2 });
        let rounded = self.graph.op(&name, QuantizeLinear { axis, to: DType::I8 }, inputs)?;
        self.graph.set_input(id, 0, rounded);
        Ok(())
    }

    /// Puts a real bias and its rounding, in units of the product that it is added to, in the place of constant levels.
    fn bias(&mut self, id: NodeId, node: &Node) -> Result<(), TrainError> {
        let Some((axis, levels, units)) = self.levels(node, DType::I32) else { return Ok(()) };
        let Some(first) = self.graph.const_value(units).cloned() else { return Ok(()) };
        let Some([input, weight]) = node.outputs.first().and_then(|&y| self.scales_of_product(y)) else {
            return Ok(());
        };
        let [inputs, channels] = [input, weight].map(|v| self.graph.ty(v).known_len().unwrap_or(0));
        if inputs != 1 || channels == 0 || levels.len() % channels != 0 || first.len() != levels.len() {
            return Ok(());
        }
        let Some(real) = self.begin(node, &levels, &first, axis)? else { return Ok(()) };
        let name = self.take_name(node);
        let bias = self.graph.constant(&format!("{name}/real"), real);
        self.learn(bias, 1.0);
        let units_name = self.graph.value(units).name.clone();
        self.graph.rename(units, &format!("{units_name}/first"));
        let mut w = Writer::new(&mut self.graph, format!("{units_name}/product"));
        let (input, weight) = (w.reshape(input, &[])?, w.reshape(weight, &[channels])?);
        let product = w.mul(input, weight)?;
        let repeated = w.expand(product, &[levels.len() / channels, channels])?;
        let units = w.reshape(repeated, first.shape())?;
        self.graph.rename(units, &units_name);
        let rounded = self.graph.op(&name, QuantizeLinear { axis, to: DType::I32 }, [bias, units])?;
        self.graph.set_input(id, 0, rounded);
        self.graph.set_input(id, 1, units);
        Ok(())
    }

    /// Axis, constant levels of this type, and scale of a DequantizeLinear.
    fn levels(&self, node: &Node, dtype: DType) -> Option<(i64, Tensor, ValueId)> {
        let Op::DequantizeLinear(DequantizeLinear { axis }) = node.op else { return None };
        let levels = self.graph.const_value(node.inputs.first().copied()??)?;
        (levels.dtype() == dtype).then(|| Some((axis, levels.clone(), node.inputs.get(1).copied()??)))?
    }

    fn known(&self, node: &Node) -> Option<&Levels> {
        self.known.get(&self.graph.value(*node.outputs.first()?).name)
    }

    /// The greatest level of the weights that a node dequantizes.
    fn greatest(&self, node: &Node) -> f64 {
        let bits = self.known(node).map_or(8, |known| known.bits.clamp(2, 8));
        f64::from((1i32 << (bits - 1)) - 1)
    }

    /// What weights begin with: what they were before they were rounded, as near as rounds to these levels. `None` where scales lie
    /// in blocks.
    fn begin(
        &self,
        node: &Node,
        levels: &Tensor,
        scale: &Tensor,
        axis: i64,
    ) -> Result<Option<Tensor>, TrainError> {
        let (shape, scales) = (levels.shape(), scale.to_f32s());
        let (mut extent, mut inner) = (1, 1);
        if scale.len() != 1 {
            let axis = resolve_axis(axis, shape.len())?;
            (extent, inner) = (shape[axis], shape[axis + 1..].iter().product());
            if scale.rank() != 1 || scale.len() != extent {
                return Ok(None);
            }
        }
        let exact =
            self.known(node).and_then(|known| known.real.as_ref()).filter(|t| t.len() == levels.len());
        let exact = exact.map(Tensor::to_f32s);
        let real = |(i, &level): (usize, &f64)| {
            let step = f64::from(scales[i / inner % extent]);
            let real = exact.as_ref().map_or(level * step, |exact| f64::from(exact[i]));
            real.clamp((level - INSIDE) * step, (level + INSIDE) * step) as f32
        };
        let values: Vec<f32> = levels.to_f64s().iter().enumerate().map(real).collect();
        Ok(Some(Tensor::from_slice(shape, &values).map_err(Mismatch::from)?))
    }

    /// The scales of both operands of the product that a bias is added to.
    fn scales_of_product(&self, bias: ValueId) -> Option<[ValueId; 2]> {
        let graph = &self.graph;
        let (_, reader) = graph.nodes().find(|(_, node)| node.inputs.contains(&Some(bias)))?;
        let product = match &reader.op {
            Op::Conv(_) | Op::ConvTranspose(_) => reader,
            Op::Binary(op) if op.kind == BinaryKind::Add => {
                let other = reader.inputs.iter().flatten().find(|&&v| v != bias)?;
                let (_, node, _) = graph.producer(*other)?;
                matches!(node.op, Op::MatMul(_) | Op::Conv(_) | Op::ConvTranspose(_)).then_some(node)?
            }
            _ => return None,
        };
        let scale = |slot: usize| {
            let (_, node, _) = graph.producer(product.inputs.get(slot).copied()??)?;
            matches!(node.op, Op::DequantizeLinear(_)).then(|| node.inputs.get(1).copied()?)?
        };
        Some([scale(0)?, scale(1)?])
    }

    /// Takes the name from the levels of a DequantizeLinear, for those that come in their place.
    fn take_name(&mut self, node: &Node) -> String {
        let Some(levels) = node.inputs.first().copied().flatten() else { return String::new() };
        let name = self.graph.value(levels).name.clone();
        self.graph.rename(levels, &format!("{name}/first"));
        name
    }

    fn learn(&mut self, value: ValueId, gradient: f64) {
        let name = self.graph.value(value).name.clone();
        let penalty = Penalty::default();
        self.parameters.push(Parameter { name, value, trainable: true, rate: 1.0, gradient, penalty });
    }
}

/// The quantized network that a trained one is: nodes of constants become constants, all but DequantizeLinear, whose constants are
/// what is stored.
///
/// # Errors
/// [`TrainError`] when the graph is inconsistent.
pub fn with_integers(mut graph: Graph) -> Result<Graph, TrainError> {
    for id in graph.order()? {
        let Some(node) = graph.node(id).cloned() else { continue };
        if matches!(node.op, Op::DequantizeLinear(_))
            || !node.op.bodies().is_empty()
            || node.inputs.is_empty()
        {
            continue;
        }
        let constant = |input: &Option<ValueId>| match input {
            Some(value) => graph.const_value(*value).map(Some),
            None => Some(None),
        };
        let Some(inputs) = node.inputs.iter().map(constant).collect::<Option<Vec<_>>>() else { continue };
        let results = node.op.eval(&EvalCx { inputs: &inputs })?;
        for (&old, tensor) in node.outputs.iter().zip(results) {
            let name = graph.value(old).name.clone();
            let new = graph.constant(&name, tensor);
            graph.replace_uses(old, new);
        }
        graph.remove(id);
    }
    graph.compact()?;
    Ok(graph)
}

/// Writes each QuantizeLinear with the DequantizeLinear behind it as arithmetic on floats, to the same bits: integers take a way through
/// memory that training does not need.
pub(crate) fn write_roundings(graph: &mut Graph) -> Result<(), Mismatch> {
    let nodes: Vec<(NodeId, Node)> = graph.nodes().map(|(id, node)| (id, node.clone())).collect();
    for (id, node) in nodes {
        let (Op::DequantizeLinear(DequantizeLinear { axis }), &[Some(levels), Some(scale), ..], &[y]) =
            (&node.op, &node.inputs[..], &node.outputs[..])
        else {
            continue;
        };
        let Some((_, before, _)) = graph.producer(levels) else { continue };
        let (Op::QuantizeLinear(QuantizeLinear { to, .. }), &[Some(x), by, ..]) =
            (&before.op, &before.inputs[..])
        else {
            continue;
        };
        let zero_points = [&node, before].map(|node| node.inputs.get(2).copied().flatten());
        let (Some((low, high)), true) =
            (to.int_range(), by == Some(scale) && zero_points[0] == zero_points[1])
        else {
            continue;
        };
        if graph.ty(x).dtype != DType::F32 {
            continue;
        }
        let mut w = Writer::new(graph, format!("{}/rounded", node.name));
        let line = w.along(scale, x, *axis)?;
        let quotient = w.div(x, line)?;
        let mut rounded = w.unary(UnaryKind::Round, quotient)?;
        if high - low < EXACT {
            for (limit, kind) in [(low, BinaryKind::Max), (high, BinaryKind::Min)] {
                let mut limit = w.number(limit as f64, x)?;
                if let Some(zero_point) = zero_points[0] {
                    let zero_point = w.cast(zero_point, DType::F32)?;
                    let zero_point = w.along(zero_point, x, *axis)?;
                    limit = w.sub(limit, zero_point)?;
                }
                rounded = w.binary(kind, rounded, limit)?;
            }
        }
        let real = w.mul(rounded, line)?;
        graph.replace_uses(y, real);
        graph.remove(id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sora_exec::{Options, Session};
    use sora_ir::ops::{Conv, Flatten, MatMul, Reduce, ReduceKind, Unary};
    use sora_ir::{TensorType, evaluate};

    use super::*;
    use crate::step::of_batch;
    use crate::{Loss, Optimizer, Recipe, Trainer, differentiate};

    const BATCH: usize = 8;

    fn random(rng: &mut fastrand::Rng, shape: &[usize], size: f32) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| size * (2.0 * rng.f32() - 1.0)).collect();
        Tensor::from_slice(shape, &values).unwrap()
    }

    /// The value behind rounding to bytes with this scale.
    fn activation(graph: &mut Graph, x: ValueId, name: &str, scale: f32, zero_point: u8) -> ValueId {
        let scale = graph.constant(&format!("{name}_scale"), Tensor::scalar(scale));
        let zero = graph.constant(&format!("{name}_zero"), Tensor::scalar(zero_point));
        let quantize = QuantizeLinear { axis: 1, to: DType::U8 };
        let levels = graph.op(&format!("{name}_q"), quantize, [x, scale, zero]).unwrap();
        graph.op(&format!("{name}_dq"), DequantizeLinear { axis: 1 }, [levels, scale, zero]).unwrap()
    }

    fn constant(graph: &mut Graph, name: &str, levels: Tensor, scales: &[f32], axis: i64) -> ValueId {
        let levels = graph.constant(&format!("{name}_levels"), levels);
        let scale = graph.constant(&format!("{name}_scale"), Tensor::vector(scales));
        graph.op(&format!("{name}_dq"), DequantizeLinear { axis }, [levels, scale]).unwrap()
    }

    /// A convolution and a dense layer with `bits` of weights; scales are powers of two, or any.
    fn network(seed: u64, bits: u32, powers: bool) -> Graph {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut scale = |power: i32| {
            let any = if powers { 1.0 } else { 0.8 + 0.4 * rng.f32() };
            2f32.powi(power) * any
        };
        let greatest = (1i32 << (bits - 1)) - 1;
        let coarse = -6 + (8 - bits as i32);
        let (s0, s1, s2) = (scale(-7), scale(-5), scale(-4));
        let (w1, w2): (Vec<f32>, Vec<f32>) =
            ((0..4).map(|_| scale(coarse)).collect(), (0..3).map(|_| scale(coarse)).collect());
        let mut levels = |shape: &[usize], most: i32| {
            let values: Vec<i32> = (0..shape.iter().product()).map(|_| rng.i32(-most..=most)).collect();
            Tensor::from_slice(shape, &values).unwrap()
        };
        let mut g = Graph::new("g");
        let shape = vec![Dim::symbol("n"), Dim::from(2usize), Dim::from(5usize), Dim::from(5usize)];
        let x = g.input("x", TensorType { dtype: DType::F32, shape });
        let x = activation(&mut g, x, "x", s0, 128);
        let kernel = levels(&[4, 2, 3, 3], greatest).cast(DType::I8);
        let kernel = constant(&mut g, "conv.weight", kernel, &w1, 0);
        let units: Vec<f32> = w1.iter().map(|w| s0 * w).collect();
        let bias = constant(&mut g, "conv.bias", levels(&[4], 900), &units, 0);
        let conv = Conv { strides: vec![1, 1], pads: vec![1; 4], dilations: vec![1, 1], group: 1 };
        let y = g.op("conv", conv, [x, kernel, bias]).unwrap();
        let y = g.op("relu", Unary { kind: UnaryKind::Relu }, [y]).unwrap();
        let y = activation(&mut g, y, "relu", s1, 0);
        let y = g.op("flat", Flatten { axis: 1 }, [y]).unwrap();
        let y = activation(&mut g, y, "flat", s2, 0);
        let weight = constant(&mut g, "dense.weight", levels(&[100, 3], greatest).cast(DType::I8), &w2, 1);
        let y = g.op("dense", MatMul {}, [y, weight]).unwrap();
        let units: Vec<f32> = w2.iter().map(|w| s2 * w).collect();
        let bias = constant(&mut g, "dense.bias", levels(&[3], 900), &units, 0);
        let y = g.op("y", Binary { kind: BinaryKind::Add }, [y, bias]).unwrap();
        g.output("y", y);
        g
    }

    fn constants(graph: &Graph) -> BTreeMap<String, Tensor> {
        let named =
            graph.values().filter_map(|(id, v)| Some((v.name.clone(), graph.const_value(id)?.clone())));
        named.collect()
    }

    /// By the formulas of Esser et al. 2020, equations 3 and 5.
    #[test]
    fn gradients_are_straight_through_and_those_of_a_learnt_step_size() {
        let mut rng = fastrand::Rng::with_seed(1);
        for case in 0..200 {
            let (channels, each) = (rng.usize(1..4), rng.usize(1..6));
            let shape = [2, channels, each];
            let by_channel = rng.bool();
            let count = if by_channel { channels } else { 1 };
            let scales: Vec<f32> = (0..count).map(|_| 0.02 + rng.f32()).collect();
            let zeros: Vec<i8> = (0..count).map(|_| rng.i8(-20..20)).collect();
            let x = random(&mut rng, &shape, 150.0);
            let dy = random(&mut rng, &shape, 1.0);
            let mut graph = Graph::new("g");
            let given_x = graph.input("x", TensorType::of(&x));
            let line = if by_channel { vec![count] } else { vec![] };
            let scale_tensor = Tensor::from_slice(&line, &scales).unwrap();
            let scale = graph.input("scale", TensorType::of(&scale_tensor));
            let zero = graph.constant("zero", Tensor::from_slice(&line, &zeros).unwrap());
            let quantize = QuantizeLinear { axis: 1, to: DType::I8 };
            let levels = graph.op("q", quantize, [given_x, scale, zero]).unwrap();
            let y = graph.op("dq", DequantizeLinear { axis: 1 }, [levels, scale, zero]).unwrap();
            let weights = graph.constant("dy", dy.clone());
            let product = graph.op("p", Binary { kind: BinaryKind::Mul }, [y, weights]).unwrap();
            let sum = Reduce { kind: ReduceKind::Sum, axes: Vec::new(), keep_dims: false };
            let loss = graph.op("loss", sum, [product]).unwrap();
            let found = differentiate(&mut graph, loss, &[given_x, scale]).unwrap();
            graph.output("y", y);
            found.iter().enumerate().for_each(|(i, &v)| graph.output(&format!("d{i}"), v));
            let given = [("x", &x), ("scale", &scale_tensor)];
            let mut arithmetic = graph.clone();
            write_roundings(&mut arithmetic).unwrap();
            assert!(!arithmetic.nodes().any(|(_, node)| matches!(node.op, Op::DequantizeLinear(_))));
            let [before, after] = [&graph, &arithmetic].map(|graph| evaluate(graph, &given).unwrap());
            assert_eq!(before[0].to_f32s(), after[0].to_f32s(), "{case}");

            let mut expected = vec![0f64; count];
            for (i, (&x, &dy)) in x.to_f32s().iter().zip(&dy.to_f32s()).enumerate() {
                let at = if by_channel { i / each % channels } else { 0 };
                let (low, high) = (-128.0 - f32::from(zeros[at]), 127.0 - f32::from(zeros[at]));
                let v = x / scales[at];
                let inside = v > low && v < high;
                let slope = if inside { v.round_ties_even() - v } else { v.clamp(low, high) };
                expected[at] += f64::from(dy * slope);
                let dx = if inside { f64::from(dy) } else { 0.0 };
                for results in [&before, &after] {
                    assert!((results[1].to_f64s()[i] - dx).abs() < 1e-6, "{case}");
                }
            }
            for results in [&before, &after] {
                for (found, expected) in results[2].to_f64s().iter().zip(&expected) {
                    assert!(
                        (found - expected).abs() < 1e-3 * expected.abs().max(1.0),
                        "{case}: {found} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn training_begins_with_the_integers_that_there_are() {
        let mut rng = fastrand::Rng::with_seed(2);
        for bits in [3, 5, 8] {
            let graph = network(u64::from(bits), bits, false);
            // What the weights were is close for some and far off for others.
            let exact: HashMap<String, Levels> = [
                ("conv.weight_dq", vec![4, 2, 3, 3]),
                ("dense.weight_dq", vec![100, 3]),
                ("dense.bias_dq", vec![3]),
            ]
            .map(|(name, shape)| {
                (name.to_owned(), Levels { real: Some(random(&mut rng, &shape, 1.0)), bits })
            })
            .into();
            let network = Trainable::quantized(graph.clone(), &exact).unwrap();
            let names: Vec<&str> = network.parameters.iter().map(|p| p.name.as_str()).collect();
            for name in ["x_scale/share", "conv.weight_levels/real", "dense.bias_levels/real"] {
                assert!(names.contains(&name), "{names:?}");
            }
            // Five scales, two layers.
            assert_eq!(names.len(), 5 + 4);
            let share = network.parameters.iter().find(|p| p.name == "relu_scale/share").unwrap();
            assert!((share.gradient - 1.0 / (100.0f64 * 255.0).sqrt()).abs() < 1e-9);
            assert_eq!(constants(&with_integers(network.graph).unwrap()), constants(&graph));
        }
    }

    fn trained(graph: &Graph, bits: u32, steps: usize, rate: f64) -> (Vec<f64>, Trainer, Tensor) {
        let mut rng = fastrand::Rng::with_seed(3);
        let known =
            ["conv.weight_dq", "dense.weight_dq"].map(|name| (name.to_owned(), Levels { real: None, bits }));
        let network = Trainable::quantized(graph.clone(), &known.into()).unwrap();
        let none = BTreeMap::new();
        let loss = Loss::new("sparse_categorical_crossentropy", &none).unwrap();
        let recipe = Recipe::new(loss, Optimizer::new("adam", &none).unwrap());
        let mut trainer = Trainer::new(network, BATCH, recipe, Options::default()).unwrap();
        let x = random(&mut rng, &[BATCH, 2, 5, 5], 0.9);
        let classes: Vec<i64> = (0..BATCH as i64).map(|i| i % 3).collect();
        let classes = [Tensor::vector(&classes)];
        let losses = (0..steps).map(|_| trainer.step(BATCH, &[("x", &x)], &classes, rate).unwrap().loss);
        (losses.collect(), trainer, x)
    }

    /// The results of a network in training, and of what is deployed of it.
    fn both(trainer: &Trainer, x: &Tensor) -> [Vec<f32>; 2] {
        let graph = trainer.graph_of(&trainer.state().unwrap());
        let mut training = of_batch(&graph, BATCH).unwrap();
        write_roundings(&mut training).unwrap();
        let deployed = Session::new(with_integers(graph).unwrap(), Options::default()).unwrap();
        let found = evaluate(&training, &[("x", x)]).unwrap();
        [found[0].to_f32s(), deployed.run(&[("x", x)]).unwrap()[0].1.to_f32s()]
    }

    #[test]
    fn what_is_trained_is_what_is_deployed() {
        for bits in [3, 4, 8] {
            // All sums are exact where scales are powers of two, in floats as in integers.
            let (_, trainer, x) = trained(&network(5, bits, true), bits, 0, 0.0);
            let [training, deployed] = both(&trainer, &x);
            assert_eq!(training, deployed);
            // Else they are rounded in another order, which decides a level now and then.
            let (losses, trainer, x) = trained(&network(6, bits, false), bits, 60, 0.02);
            let last = losses.last().unwrap();
            assert!(*last < 0.5 * losses[0], "{bits}: {losses:?}");
            let [training, deployed] = both(&trainer, &x);
            let most = training.iter().fold(0f32, |most, y| most.max(y.abs()));
            let apart = training.iter().zip(&deployed).fold(0f32, |apart, (a, b)| apart.max((a - b).abs()));
            assert!(apart <= 0.01 * most, "{bits}: {apart} of {most}");
            // Learnt levels stay in their range, scales positive.
            let graph = with_integers(trainer.graph_of(&trainer.state().unwrap())).unwrap();
            for (name, tensor) in constants(&graph) {
                let values = tensor.to_f64s();
                match tensor.dtype() {
                    DType::I8 => assert!(values.iter().all(|v| v.abs() <= f64::from((1 << (bits - 1)) - 1))),
                    DType::F32 => assert!(values.iter().all(|v| *v > 0.0), "{name}"),
                    _ => {}
                }
            }
            assert_ne!(constants(&graph), constants(&network(6, bits, false)));
        }
    }
}
