//! The method for weights that are integers only where they are stored, while their layer computes in single precision: tables,
//! whose rows become real as they are read, and layers whose 8-bit kernel is not faster or rounds activations at too high a price.
//! Weights of products, convolutions and recurrent layers become real once, when the network is loaded; what gains is the file.
//!
//! A table has a scale for each column. Where files are coded by the entropy of their levels, steps of one width are within a
//! quarter of a bit of the best there is, which scales by rows, four bytes for each of many short rows, are not.
//! Sources: H. Guan et al., "Post-training 4-bit quantization on embedding tables", 2019, there by rows and without coding;
//! steps of one width before a code: H. Gish and J. Pierce, "Asymptotically efficient quantizing", 1968; weights alone:
//! E. Frantar et al., "GPTQ", 2022.

use sora_ir::Graph;

use crate::CompressError;
use crate::dynamic::quantize_rows;
use crate::layers::Role;
use crate::method::{Cx, Method};
use crate::quantize::quantize_channels;
use crate::weights;

/// The row of this method.
pub(crate) const WEIGHTS_ONLY: Method = Method {
    name: "weights only",
    about: "8-bit weights of tables by column and of other layers by channel, beside activations in single precision",
    observe: |_| Vec::new(),
    apply,
};

fn apply(cx: &Cx, mut graph: Graph) -> Result<Graph, CompressError> {
    for (index, layer) in cx.network.layers.iter().enumerate().filter(|(i, _)| cx.placement.weights_only[*i])
    {
        let id = layer.nodes.first().and_then(|&first| cx.counterpart(&graph, first));
        let Some((id, node)) = id.and_then(|id| Some((id, graph.node(id)?.clone()))) else { continue };
        let slots: &[usize] = match &layer.role {
            Role::Table(_) => &[0],
            Role::Linear(_) => &[1],
            Role::Recurrent(_) => &[1, 2],
            _ => continue,
        };
        for &slot in slots {
            let Some(weight) = node.inputs.get(slot).copied().flatten() else { continue };
            let Some(exact) = graph.const_value(weight).cloned() else { continue };
            let bits = cx.placement.bits[index];
            let real = match &layer.role {
                Role::Linear(linear) => {
                    let quantized = cx.weights(index, &exact, linear.axis, &[])?;
                    quantize_channels(&mut graph, weight, quantized, linear.axis)?
                }
                Role::Table(_) => {
                    quantize_channels(&mut graph, weight, weights::quantize(&exact, 1, &[], bits)?, 1)?
                }
                _ => quantize_rows(&mut graph, weight, bits)?,
            };
            graph.set_input(id, slot, real);
        }
    }
    graph.compact()?;
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sora_data::{Dataset, Preprocess};
    use sora_ir::ops::{Direction, Gather, Gru, MatMul, Reduce, ReduceKind, Transpose};
    use sora_ir::{Dim, Graph, TensorType, evaluate};
    use sora_tensor::{DType, Tensor};

    use crate::explain::{Precision, Reason};
    use crate::layers::{Network, Role};
    use crate::method::{self, Cx, Observations};
    use crate::placement::{Placement, Plan};
    use crate::testing::{Net, Random, Silent};
    use crate::{Format, Options, Outcome, Prefer, compress};

    const WORDS: usize = 600;
    const WIDTH: usize = 12;
    const STEPS: usize = 7;

    /// A network on words `[batch, 7]`, with its table.
    fn words(seed: u64) -> (Net, sora_ir::ValueId) {
        let mut graph = Graph::new("words");
        let x = graph.input("x", TensorType::new(DType::I64, [Dim::symbol("batch"), STEPS.into()]));
        let mut net = Net { graph, random: Random::new(seed) };
        let table = net.random.tensor(&[WORDS, WIDTH], 1.0);
        let table = net.graph.constant("table", table);
        let rows = net.op("embedding", Gather { axis: 0 }, &[table, x]);
        (net, rows)
    }

    /// A table, a recurrent layer and a product.
    fn recurrent(seed: u64) -> Graph {
        let (mut net, rows) = words(seed);
        let steps = net.op("steps", Transpose { perm: vec![1, 0, 2] }, &[rows]);
        let mut matrix = |name: &str, shape: &[usize]| {
            let tensor = net.random.tensor(shape, 0.4);
            net.graph.constant(name, tensor)
        };
        let (w, r) = (matrix("w", &[1, 15, WIDTH]), matrix("r", &[1, 15, 5]));
        let gru = Gru {
            hidden: 5,
            direction: Direction::Forward,
            linear_before_reset: true,
            quantize_state: false,
        };
        let outputs = net.graph.add("gru", gru, [steps, w, r]).unwrap();
        let state = net.op("last", sora_ir::ops::Squeeze { axes: vec![0] }, &[outputs[1]]);
        let w = net.random.tensor(&[5, 3], 0.6);
        let w = net.graph.constant("head.w", w);
        let y = net.op("head", MatMul {}, &[state, w]);
        net.done(y)
    }

    fn indices(random: &mut Random, batch: usize) -> Tensor {
        let values: Vec<i64> =
            (0..batch * STEPS).map(|_| random.below(2 * WORDS) as i64 - WORDS as i64).collect();
        Tensor::from_slice(&[batch, STEPS], &values).unwrap()
    }

    #[test]
    fn every_kind_of_weights_is_stored_as_integers_and_computed_on_in_f32() {
        let mut random = Random::new(7);
        for seed in 0..6 {
            let network = Network::new(recurrent(seed)).unwrap();
            let index = |name: &str| network.layers.iter().position(|l| l.name == name).unwrap();
            assert!(network.layers[index("embedding")].is_table());
            let mut plan = Plan::default();
            for name in ["gru", "head"] {
                plan = plan.without_kernel(&network, index(name), Reason::Prescribed);
            }
            let placement = Placement::without_ranges(&network, &plan);
            assert!(placement.sources.is_empty() && !placement.is_empty());
            let observations = Observations::default();
            let cx =
                Cx { network: &network, placement: &placement, observations: &observations, rounding: None };
            let graph = method::apply(&cx).unwrap();
            sora_ir::verify(&graph).unwrap();
            let of = |dtype: DType| {
                let tensors = graph.values().filter_map(|(id, _)| graph.const_value(id));
                tensors.filter(|t| t.dtype() == dtype && t.rank() > 1).map(Tensor::len).max()
            };
            assert_eq!(of(DType::I8), Some(WORDS * WIDTH));
            // What is left of f32 are scales.
            assert!(of(DType::F32).is_none_or(|most| most <= 15));
            assert!(
                !graph
                    .nodes()
                    .any(|(_, n)| matches!(n.op.name(), "QuantizeLinear" | "DynamicQuantizeLinear"))
            );

            let x = indices(&mut random, 4);
            let exact = evaluate(&network.graph, &[("x", &x)]).unwrap();
            let rounded = evaluate(&graph, &[("x", &x)]).unwrap();
            let session = sora_exec::Session::new(graph, sora_exec::Options::default()).unwrap();
            let fast = session.run(&[("x", &x)]).unwrap();
            let both = rounded[0].to_f32s().into_iter().zip(fast[0].1.to_f32s());
            for (exact, (rounded, fast)) in exact[0].to_f32s().iter().zip(both) {
                assert!((exact - rounded).abs() < 0.05, "{exact} {rounded}");
                assert!((rounded - fast).abs() < 1e-5, "{rounded} {fast}");
            }
        }
    }

    /// Bags of words: the class is told by the sum of what each word says for it.
    fn bags(prefer: Prefer, recipe: Option<crate::Recipe>, max_drop: f64) -> Outcome {
        let (mut net, rows) = words(3);
        let mean =
            net.op("mean", Reduce { kind: ReduceKind::Mean, axes: vec![1], keep_dims: false }, &[rows]);
        let w = net.random.tensor(&[WIDTH, 4], 1.0);
        let w = net.graph.constant("head.w", w);
        let y = net.op("head", MatMul {}, &[mean, w]);
        let graph = net.done(y);
        let x = indices(&mut Random::new(9), 500);
        let scores = evaluate(&graph, &[("x", &x)]).unwrap()[0].to_f32s();
        let best = |row: &[f32]| (0..4).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let labels = scores.chunks(4).map(best).collect();
        let data = Dataset::from_arrays(vec![(None, x)], Some(labels)).unwrap();
        let fewer_bits = prefer == Prefer::Size;
        let options = Options { max_drop, prefer, fewer_bits, recipe, ..Options::default() };
        compress(&graph, &data, &Preprocess::default(), &options, &Silent).unwrap()
    }

    #[test]
    fn tables_are_layers_like_any_other() {
        let outcome = bags(Prefer::Size, None, 0.1);
        assert!(outcome.met, "{:?} {:?}", outcome.note, outcome.steps);
        let layer = outcome.layers.iter().find(|l| l.name == "embedding").unwrap();
        assert_eq!((layer.precision, &layer.reason_code), (Precision::Int8Weights, &Reason::Table));
        assert!(layer.reason.starts_with("weights only: ") && layer.sqnr_db.unwrap() > 8.0, "{layer:?}");
        assert!(layer.bytes_after * 3 < layer.bytes_before && layer.ms_after.is_some(), "{layer:?}");
        assert!(layer.weight_bits.unwrap() < 8, "{layer:?}");
        let tried: Vec<Format> = layer.alternatives.iter().map(|a| a.format).collect();
        assert_eq!(tried, [Format::F32, Format::Int8Weights, Format::Int8Weights]);
        assert_eq!(outcome.recipe.layers["embedding"], Format::Int8Weights);

        // The recipe makes the same network again.
        let again = bags(Prefer::Size, Some(outcome.recipe.clone()), 0.1);
        let print = |outcome: &Outcome| sora_ir::text::print(&outcome.graph);
        assert_eq!(print(&outcome), print(&again));

        // A table that a budget leaves no room for is given back, and a recipe says so, too.
        let layers = BTreeMap::from([("embedding".to_owned(), Format::F32)]);
        let kept = bags(Prefer::Size, Some(crate::Recipe { layers, ..outcome.recipe }), 0.1);
        let layer = kept.layers.iter().find(|l| l.name == "embedding").unwrap();
        assert_eq!((layer.precision, &layer.reason_code), (Precision::F32, &Reason::Prescribed));
        assert_eq!(layer.bytes_after, layer.bytes_before);
    }

    #[test]
    fn a_table_that_others_read_is_left_alone() {
        let (mut net, rows) = words(4);
        let table = net.graph.find("table").unwrap();
        let turned = net.op("turned", Transpose { perm: vec![1, 0] }, &[table]);
        let y = net.op("tied", MatMul {}, &[rows, turned]);
        let network = Network::new(net.done(y)).unwrap();
        let layer = network.layers.iter().find(|l| l.name == "embedding").unwrap();
        assert_eq!(layer.role, Role::Float(Reason::SharedTable));
    }
}
