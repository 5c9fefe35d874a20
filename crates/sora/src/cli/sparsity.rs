//! `sora bench --sparsity`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sora::exec::{Arena, ExecError, Options, Program, Tuning, zero_block};
use sora::ir::ops::{Conv, DequantizeLinear, MatMul, QuantizeLinear};
use sora::ir::{Graph, Op, TensorType};
use sora::tensor::{DType, Tensor};
use sora::{Failure, table};

use super::args::Bench;
use super::{Printed, one_line, progress};

/// Shares of zeros in percent.
const SHARES: [usize; 6] = [50, 60, 70, 80, 90, 95];

/// What is multiplied, and where the zeros are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pattern {
    /// Reals, zeros anywhere.
    Scattered,
    /// Bytes, zeros in blocks of so many columns and depths.
    Blocks([usize; 2]),
}

impl Pattern {
    fn arithmetic(self) -> &'static str {
        match self {
            Pattern::Scattered => "f32",
            Pattern::Blocks(_) => "int8",
        }
    }

    fn name(self) -> String {
        match self {
            Pattern::Scattered => "zeros anywhere".to_owned(),
            Pattern::Blocks([columns, depths]) => format!("zeros in blocks of {columns}×{depths}"),
        }
    }
}

/// What a layer does.
#[derive(Clone, Copy)]
enum Kind {
    /// Pixels along each side of the image, and of the window.
    Conv { side: usize, window: usize, stride: usize },
    /// Rows of the left operand.
    Linear { rows: usize },
}

/// A layer of a known network.
struct Layer {
    network: &'static str,
    kind: Kind,
    /// Input and output channels.
    channels: [usize; 2],
}

const fn conv(network: &'static str, side: usize, window: usize, channels: [usize; 2]) -> Layer {
    Layer { network, kind: Kind::Conv { side, window, stride: 1 }, channels }
}

const fn linear(network: &'static str, rows: usize, channels: [usize; 2]) -> Layer {
    Layer { network, kind: Kind::Linear { rows }, channels }
}

const LAYERS: &[Layer] = &[
    conv("ResNet-50", 56, 1, [64, 64]),
    conv("ResNet-50", 56, 1, [64, 256]),
    conv("ResNet-50", 28, 1, [512, 128]),
    conv("ResNet-50", 14, 1, [256, 1024]),
    conv("ResNet-50", 7, 1, [2048, 512]),
    conv("ResNet-50", 28, 3, [128, 128]),
    conv("ResNet-50", 14, 3, [256, 256]),
    Layer { network: "ResNet-50", kind: Kind::Conv { side: 28, window: 3, stride: 2 }, channels: [256, 256] },
    conv("MobileNetV2", 56, 1, [24, 144]),
    conv("MobileNetV2", 28, 1, [192, 32]),
    conv("MobileNetV2", 14, 1, [64, 384]),
    conv("MobileNetV2", 7, 1, [960, 160]),
    linear("MiniLM", 128, [384, 384]),
    linear("MiniLM", 128, [384, 1536]),
    linear("MiniLM", 128, [1536, 384]),
    linear("ResNet-50", 1, [2048, 1000]),
    linear("VGG-16", 1, [4096, 4096]),
];

impl Layer {
    fn name(&self) -> String {
        let [from, to] = self.channels;
        match self.kind {
            Kind::Conv { side, window, stride } => {
                let stride = if stride == 1 { String::new() } else { format!("/{stride}") };
                format!("{} {window}×{window}{stride} conv {from}→{to} at {side}×{side}", self.network)
            }
            Kind::Linear { rows } => format!("{} linear {from}→{to}, {rows} row(s)", self.network),
        }
    }

    /// The layer as a graph, with weights of which a share in percent is zero.
    fn graph(&self, pattern: Pattern, zeros: usize, random: &mut Random) -> Result<Graph, Failure> {
        let [from, to] = self.channels;
        let (op, input, weights): (Op, Vec<usize>, Vec<usize>) = match self.kind {
            Kind::Conv { side, window, stride } => {
                let op = Conv { pads: vec![window / 2; 4], strides: vec![stride; 2], ..Conv::new(2) };
                (op.into(), vec![1, from, side, side], vec![to, from, window, window])
            }
            Kind::Linear { rows } => (MatMul {}.into(), vec![rows, from], vec![from, to]),
        };
        let len: usize = weights.iter().product();
        let [columns, depths] = if let Pattern::Blocks(block) = pattern { block } else { [1, 1] };
        // Blocks of a column's depths in the order of packed weights: pixels of the window, then channels.
        let across = (len / to).div_ceil(depths);
        let block = |i: usize| {
            let (column, depth) = match self.kind {
                Kind::Linear { .. } => (i % to, i / to),
                Kind::Conv { window, .. } => {
                    let (taps, within) = (window * window, i % (len / to));
                    (i / (len / to), within % taps * from + within / taps)
                }
            };
            column / columns * across + depth / depths
        };
        let blocks = to.div_ceil(columns) * across;
        let mut kept = vec![true; blocks];
        random.some(blocks * zeros / 100, blocks).into_iter().for_each(|at| kept[at] = false);
        let values: Vec<f32> =
            (0..len).map(|i| if kept[block(i)] { 0.1 + random.unit() } else { 0.0 }).collect();

        let mut graph = Graph::new("layer");
        let x = graph.input("x", TensorType::new(DType::F32, input));
        if pattern == Pattern::Scattered {
            let w = graph.constant("w", Tensor::from_slice(&weights, &values).map_err(failed)?);
            let y = graph.op("y", op, [x, w]).map_err(failed)?;
            graph.output("y", y);
            return Ok(graph);
        }
        // Everything between quantization and dequantization, as in a quantized network.
        let bytes: Vec<i8> = values.iter().map(|w| (w * 100.0) as i8).collect();
        let [step, unit] = [1.0 / 255.0f32, 1.0 / 100.0].map(Tensor::scalar);
        let (step, unit) = (graph.constant("step", step), graph.constant("unit", unit));
        let zero = graph.constant("zero", Tensor::scalar(128u8));
        let w = graph.constant("q", Tensor::from_slice(&weights, &bytes).map_err(failed)?);
        let w = graph.op("w", DequantizeLinear { axis: 0 }, [w, unit]).map_err(failed)?;
        let rounds = QuantizeLinear { axis: 1, to: DType::U8 };
        let q = graph.op("qx", rounds.clone(), [x, step, zero]).map_err(failed)?;
        let x = graph.op("dx", DequantizeLinear { axis: 1 }, [q, step, zero]).map_err(failed)?;
        let y = graph.op("y", op, [x, w]).map_err(failed)?;
        let q = graph.op("qy", rounds, [y, step, zero]).map_err(failed)?;
        let y = graph.op("dy", DequantizeLinear { axis: 1 }, [q, step, zero]).map_err(failed)?;
        graph.output("y", y);
        Ok(graph)
    }

    fn input(&self, random: &mut Random) -> Result<Tensor, Failure> {
        let shape = match self.kind {
            Kind::Conv { side, .. } => vec![1, self.channels[0], side, side],
            Kind::Linear { rows } => vec![rows, self.channels[0]],
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.unit() - 0.5).collect();
        Tensor::from_slice(&shape, &values).map_err(failed)
    }
}

/// Numbers that are the same in every run (PCG's generator of congruences).
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    /// So many different numbers below `n`.
    fn some(&mut self, count: usize, n: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        for at in 0..count {
            let left = n - at;
            all.swap(at, at + ((f64::from(self.unit()) * left as f64) as usize).min(left - 1));
        }
        all.truncate(count);
        all
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(error.to_string(), "--sparsity", "Unset SORA_ISA and SORA_TUNE.")
}

/// A compiled layer, and the least time of its product.
struct Timed {
    program: Program,
    arena: Arena,
    nanoseconds: u64,
}

impl Timed {
    fn new(graph: &Graph, x: &Tensor, options: &Options) -> Result<Self, ExecError> {
        let program = Program::compile(graph, &[("x", x.shape().to_vec())], options)?;
        let arena = program.arena()?;
        Ok(Timed { program, arena, nanoseconds: u64::MAX })
    }

    /// Runs some times in a row, so that caches hold what they do inside of a network.
    fn run(&mut self, x: &Tensor) -> Result<(), ExecError> {
        for _ in 0..3 {
            self.run_once(x)?;
        }
        Ok(())
    }

    fn run_once(&mut self, x: &Tensor) -> Result<(), ExecError> {
        let (_, profile) = self.program.run_profiled(&mut self.arena, &[("x", x)])?;
        let time = profile.steps.iter().filter(|t| t.step.macs > 0).map(|t| t.nanoseconds).sum();
        self.nanoseconds = self.nanoseconds.min(time);
        Ok(())
    }

    /// Whether zeros are skipped.
    fn is_sparse(&self) -> bool {
        self.program.steps().iter().any(|step| step.zeros.is_some())
    }
}

/// How much faster a layer is at one of the [`SHARES`].
struct Gain {
    /// Dense time ÷ time without zeros.
    ratio: f64,
    /// Whether zeros are skipped unless something else was measured for the layer.
    chosen: bool,
}

/// Measures a layer without and with zeros in turn, for about so long in all; the dense time in milliseconds first.
fn measure(
    layer: &Layer,
    pattern: Pattern,
    options: &Options,
    time: Duration,
) -> Result<(f64, Vec<Gain>), Failure> {
    let mut random = Random(1);
    let x = layer.input(&mut random)?;
    let mut dense = Timed::new(&layer.graph(pattern, 0, &mut random)?, &x, options).map_err(failed)?;
    let mut others = Vec::new();
    for share in SHARES {
        let graph = layer.graph(pattern, share, &mut random)?;
        let usual = Timed::new(&graph, &x, options).map_err(failed)?;
        let choices = usual.program.steps().iter().filter_map(|step| step.choice.as_ref());
        let sparse: BTreeMap<_, _> = choices.map(|c| (c.key.clone(), "sparse".to_owned())).collect();
        let machine = Tuning::machine_for(options).map_err(failed)?;
        let tuning = Some(Arc::new(Tuning { machine, choices: sparse }));
        let forced = Timed::new(&graph, &x, &Options { tuning, ..options.clone() }).map_err(failed)?;
        others.push((usual.is_sparse(), forced));
    }
    // Each against the dense one just before and after.
    let until = Instant::now() + time;
    let mut least = vec![u64::MAX; others.len()];
    for round in 0.. {
        if round >= ROUNDS && Instant::now() >= until {
            break;
        }
        for ((_, other), least) in others.iter_mut().zip(&mut least) {
            dense.run(&x).map_err(failed)?;
            other.run(&x).map_err(failed)?;
            *least = other.nanoseconds;
        }
        progress::check()?;
    }
    let base = dense.nanoseconds as f64;
    let gain = |((chosen, _), ns): (&(bool, Timed), u64)| Gain { ratio: base / ns as f64, chosen: *chosen };
    Ok((base / 1e6, others.iter().zip(least).map(gain).collect()))
}

/// Rounds of each layer, at least.
const ROUNDS: usize = 7;

/// The share of zeros in percent from which on a layer is faster, between the measured ones; `None` where it never is.
fn break_even(gains: &[Gain]) -> Option<f64> {
    let slow = gains.iter().rposition(|gain| gain.ratio < 1.0);
    let Some(slow) = slow else { return Some(SHARES[0] as f64) };
    let fast = gains.get(slow + 1)?;
    let [low, high] = [SHARES[slow], SHARES[slow + 1]].map(|share| share as f64);
    Some(low + (high - low) * (1.0 - gains[slow].ratio) / (fast.ratio - gains[slow].ratio))
}

/// Times layers of known networks with more and more zeros.
pub(super) fn sparsity(args: &Bench) -> Printed {
    let options = args.engine.untuned();
    let blocks = Pattern::Blocks(zero_block(&options).map_err(failed)?);
    let time = Duration::from_secs_f64(args.seconds / (2 * LAYERS.len()) as f64);
    let (mut text, mut layers) = (String::new(), Vec::new());
    for pattern in [Pattern::Scattered, blocks] {
        let mut rows = Vec::new();
        for layer in LAYERS {
            let (dense, gains) = measure(layer, pattern, &options, time)?;
            rows.push(row(layer, dense, &gains));
            layers.push(json!({
                "layer": layer.name(), "arithmetic": pattern.arithmetic(), "pattern": pattern.name(),
                "dense_ms": dense, "break_even_percent": break_even(&gains),
                "gains": SHARES.iter().zip(&gains).map(|(share, gain)| {
                    json!({"zeros_percent": share, "ratio": gain.ratio, "chosen": gain.chosen})
                }).collect::<Vec<Value>>(),
            }));
        }
        let first = format!("{}, {}", pattern.arithmetic(), pattern.name());
        let shares = SHARES.map(|share| format!("{share} %"));
        let mut headings = vec![first.as_str(), "dense ms"];
        headings.extend(shares.iter().map(String::as_str));
        headings.push("pays from");
        text += &format!("\n{}", table(&headings, &rows));
    }
    Ok(match args.json {
        true => one_line(&json!({"threads": args.engine.parallel.threads, "sparsity": layers})),
        false => format!(
            "Dense time ÷ time without zeros, by the share of zeros; – where the dense kernel runs all the same.\n{text}"
        ),
    })
}

fn row(layer: &Layer, dense: f64, gains: &[Gain]) -> Vec<String> {
    let [first, last] = [SHARES[0], SHARES[SHARES.len() - 1]];
    let pays = match break_even(gains) {
        None => format!("> {last} %"),
        Some(from) if from <= first as f64 => format!("≤ {first} %"),
        Some(from) => format!("{from:.0} %"),
    };
    let gains = gains.iter().map(|gain| format!("{:.2}{}", gain.ratio, if gain.chosen { "" } else { " –" }));
    [layer.name(), format!("{dense:.4}")].into_iter().chain(gains).chain([pays]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_pay_from_where_they_stay_faster() {
        let at = |ratios: [f64; 6]| {
            let gains: Vec<_> = ratios.into_iter().map(|ratio| Gain { ratio, chosen: false }).collect();
            break_even(&gains)
        };
        assert_eq!(at([0.5, 0.6, 0.8, 1.2, 2.0, 3.0]), Some(75.0));
        assert_eq!(at([1.1, 0.9, 0.8, 1.2, 2.0, 3.0]), Some(75.0));
        assert_eq!(at([1.1, 1.2, 1.3, 1.5, 2.0, 3.0]), Some(50.0));
        assert_eq!(at([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), None);
    }

    /// Exactly the share of zeros that is asked for, in whole blocks.
    #[test]
    fn layers_have_the_zeros_asked_for() {
        let layer = conv("test", 3, 3, [8, 32]);
        for (pattern, name) in [(Pattern::Scattered, "w"), (Pattern::Blocks([16, 4]), "q")] {
            let graph = layer.graph(pattern, 50, &mut Random(3)).unwrap();
            let (_, value) = graph.values().find(|(_, value)| value.name == name).unwrap();
            let sora::ir::Def::Const(w) = &value.def else { panic!("{name} is a constant") };
            let w = w.to_f64s();
            assert_eq!(w.iter().filter(|&&w| w == 0.0).count(), w.len() / 2);
            let zero = |n: usize, c: usize, tap: usize| w[(n * 8 + c) * 9 + tap] == 0.0;
            let whole = (0..9).all(|tap| (0..32).all(|n| zero(n, 1, tap) == zero(n / 16 * 16, 0, tap)));
            assert_eq!(whole, pattern != Pattern::Scattered);
        }
    }
}
