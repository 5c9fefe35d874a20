//! Operators that are compositions, against naive computations of what ONNX says, with fixed and with symbolic extents.

use std::collections::BTreeMap;
use std::slice::from_ref;

use prost::bytes::Bytes;
use sora_ir::evaluate;
use sora_tensor::{DType, Tensor};

use super::*;
use crate::proto::{
    AttributeProto, DimensionProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TensorTypeProto,
    TypeProto,
};

enum Attr<'a> {
    Int(i64),
    Ints(&'a [i64]),
    Floats(&'a [f32]),
    Text(&'a str),
    Texts(&'a [&'a str]),
}

fn attribute(name: &str, value: &Attr) -> AttributeProto {
    let mut attribute = AttributeProto { name: name.to_owned(), ..Default::default() };
    match value {
        Attr::Int(v) => attribute.i = Some(*v),
        Attr::Ints(v) => attribute.ints = v.to_vec(),
        Attr::Floats(v) => attribute.floats = v.to_vec(),
        Attr::Text(v) => attribute.s = Some(Bytes::copy_from_slice(v.as_bytes())),
        Attr::Texts(v) => {
            attribute.strings = v.iter().map(|v| Bytes::copy_from_slice(v.as_bytes())).collect()
        }
    }
    attribute
}

fn info(name: &str, tensor: &Tensor, symbolic: bool) -> ValueInfoProto {
    // Extents of one and two stay numbers, as those of parts and of what broadcasts do in real models.
    let dim = |&extent: &usize| match symbolic && extent > 2 {
        true => Extent::Param(format!("d{extent}")),
        false => Extent::Value(extent as i64),
    };
    let dim = tensor.shape().iter().map(|d| DimensionProto { value: Some(dim(d)) }).collect();
    let ty =
        TensorTypeProto { elem_type: tensor::code_of(tensor.dtype()), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { tensor_type: Some(ty), ..Default::default() }),
        ..ValueInfoProto::default()
    }
}

/// A model of one node: its variable inputs, then its constant ones.
struct Model<'a> {
    op: &'a str,
    domain: &'a str,
    attributes: &'a [(&'a str, Attr<'a>)],
    variable: &'a [Tensor],
    constant: &'a [Tensor],
    symbolic: bool,
}

impl Model<'_> {
    fn import(&self) -> Result<Graph, OnnxError> {
        let inputs: Vec<String> = (0..self.variable.len()).map(|i| format!("x{i}")).collect();
        let constants: Vec<String> = (0..self.constant.len()).map(|i| format!("c{i}")).collect();
        let node = NodeProto {
            input: [inputs.clone(), constants.clone()].concat(),
            output: vec!["y".to_owned()],
            op_type: self.op.to_owned(),
            domain: self.domain.to_owned(),
            attribute: self.attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            ..Default::default()
        };
        let initializer = constants.iter().zip(self.constant);
        let initializer = initializer.map(|(name, tensor)| TensorProto {
            raw_data: Some(tensor::raw_bytes(tensor)),
            ..tensor::header(name, tensor)
        });
        let graph = GraphProto {
            node: vec![node],
            input: inputs.iter().zip(self.variable).map(|(n, t)| info(n, t, self.symbolic)).collect(),
            initializer: initializer.collect(),
            output: vec![ValueInfoProto { name: "y".to_owned(), ..ValueInfoProto::default() }],
            ..Default::default()
        };
        let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
        let model = ModelProto {
            graph: Some(graph),
            opset_import: vec![opset("", 20), opset("ai.onnx.ml", 3)],
            ..Default::default()
        };
        import(model, &mut External::new(None), &ImportOptions::default()).map(|imported| imported.graph)
    }

    fn run(&self) -> Tensor {
        let graph = self.import().unwrap_or_else(|e| panic!("{}: {e}", self.op));
        sora_ir::verify(&graph).unwrap();
        let names: Vec<String> = (0..self.variable.len()).map(|i| format!("x{i}")).collect();
        let given: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(self.variable).collect();
        evaluate(&graph, &given).unwrap_or_else(|e| panic!("{}: {e}", self.op)).remove(0)
    }
}

fn run(op: &str, attributes: &[(&str, Attr)], variable: &[Tensor], constant: &[Tensor]) -> Tensor {
    Model { op, domain: "", attributes, variable, constant, symbolic: false }.run()
}

fn numbers(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = fastrand::Rng::with_seed(seed);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.f64() - 0.5).collect();
    Tensor::from_f64s(DType::F64, shape, &values).unwrap()
}

fn assert_near(found: &Tensor, shape: &[usize], expected: &[f64], what: &str) {
    assert_eq!(found.shape(), shape, "{what}");
    for (found, expected) in found.to_f64s().into_iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{what}: {found} instead of {expected}");
    }
}

/// The sum of products over all assignments of indices to letters; an ellipsis is written as digits, last axis 0.
fn naive_einsum(terms: &[&str], result: &str, operands: &[Tensor]) -> (Vec<usize>, Vec<f64>) {
    let mut extents = BTreeMap::new();
    for (term, operand) in terms.iter().zip(operands) {
        for (letter, &extent) in term.chars().zip(operand.shape()) {
            let known = extents.entry(letter).or_insert(extent);
            *known = extent.max(*known);
        }
    }
    let letters: Vec<char> = extents.keys().copied().collect();
    let all: Vec<usize> = extents.values().copied().collect();
    let offset = |term: &str, shape: &[usize], index: &[usize]| {
        let at = |letter: char| index[letters.iter().position(|&l| l == letter).unwrap()];
        let places = term.chars().zip(shape).map(|(l, &d)| (if d == 1 { 0 } else { at(l) }, d));
        places.fold(0, |offset, (i, d)| offset * d + i)
    };
    let shape: Vec<usize> = result.chars().map(|letter| extents[&letter]).collect();
    let mut sums = vec![0.0; shape.iter().product()];
    let values: Vec<Vec<f64>> = operands.iter().map(Tensor::to_f64s).collect();
    for flat in 0..all.iter().product::<usize>() {
        let mut rest = flat;
        let mut index: Vec<usize> = all
            .iter()
            .rev()
            .map(|&d| {
                let i = rest % d;
                rest /= d;
                i
            })
            .collect();
        index.reverse();
        let product: f64 = (terms.iter().zip(operands).zip(&values))
            .map(|((term, operand), values)| values[offset(term, operand.shape(), &index)])
            .product();
        sums[offset(result, &shape, &index)] += product;
    }
    (shape, sums)
}

#[test]
fn einsum_is_a_sum_of_products() {
    /// The equation, the terms of its inputs and of its output, the inputs' shapes.
    type Equation = (&'static str, &'static [&'static str], &'static str, &'static [&'static [usize]]);
    let cases: &[Equation] = &[
        ("ij,jk->ik", &["ij", "jk"], "ik", &[&[2, 3], &[3, 4]]),
        ("bij, bjk", &["bij", "bjk"], "ik", &[&[5, 2, 3], &[5, 3, 4]]),
        ("bhqd,bhkd->bhqk", &["bhqd", "bhkd"], "bhqk", &[&[2, 3, 4, 5], &[2, 3, 6, 5]]),
        ("bqhd,bkhd->bhqk", &["bqhd", "bkhd"], "bhqk", &[&[2, 4, 3, 5], &[2, 6, 3, 5]]),
        ("...ij,...jk->...ik", &["10ij", "0jk"], "10ik", &[&[2, 3, 4, 5], &[3, 5, 2]]),
        ("...ij,j...->i...", &["0ij", "j0"], "i0", &[&[2, 3, 4], &[4, 2]]),
        ("i...->...", &["i10"], "10", &[&[2, 3, 4]]),
        ("ii->i", &["ii"], "i", &[&[4, 4]]),
        ("ii", &["ii"], "", &[&[4, 4]]),
        ("iji->j", &["iji"], "j", &[&[3, 2, 3]]),
        ("...ii->...i", &["0ii"], "0i", &[&[3, 5, 5]]),
        ("ij,ij->", &["ij", "ij"], "", &[&[2, 3], &[2, 3]]),
        ("ij,ij->ji", &["ij", "ij"], "ji", &[&[2, 3], &[2, 3]]),
        ("i,j->ji", &["i", "j"], "ji", &[&[2], &[3]]),
        (",i->i", &["", "i"], "i", &[&[], &[3]]),
        ("ijk,jkl->il", &["ijk", "jkl"], "il", &[&[2, 3, 4], &[3, 4, 5]]),
        ("aij,bij->ab", &["aij", "bij"], "ab", &[&[2, 3, 4], &[5, 3, 4]]),
        ("abij,jkcd->kcdabi", &["abij", "jkcd"], "kcdabi", &[&[2, 2, 3, 4], &[4, 2, 3, 2]]),
        ("ij,jk,kl->il", &["ij", "jk", "kl"], "il", &[&[2, 3], &[3, 4], &[4, 5]]),
        ("ij,k,jk->i", &["ij", "k", "jk"], "i", &[&[2, 3], &[4], &[3, 4]]),
        ("bA", &["bA"], "Ab", &[&[2, 3]]),
    ];
    for (equation, terms, result, shapes) in cases {
        let operands: Vec<Tensor> =
            shapes.iter().zip(1..).map(|(shape, seed)| numbers(seed, shape)).collect();
        let (shape, expected) = naive_einsum(terms, result, &operands);
        for symbolic in [false, true] {
            let attributes = &[("equation", Attr::Text(equation))];
            let model =
                Model { op: "Einsum", domain: "", attributes, variable: &operands, constant: &[], symbolic };
            assert_near(&model.run(), &shape, &expected, equation);
        }
    }
}

#[test]
fn einsum_refuses_what_has_no_meaning() {
    for equation in ["ij->k", "ij->ii", "i->i", "ijk", "ij,jk->ik", "i1", ""] {
        let x = [numbers(1, &[2, 2])];
        let attributes = &[("equation", Attr::Text(equation))];
        let model =
            Model { op: "Einsum", domain: "", attributes, variable: &x, constant: &[], symbolic: false };
        assert!(model.import().is_err(), "{equation}");
    }
}

/// The spectrum of a signal of complex numbers.
fn naive_dft(signal: &[[f64; 2]], sign: f64) -> Vec<[f64; 2]> {
    let n = signal.len();
    let bin = |k: usize| {
        signal.iter().enumerate().fold([0.0, 0.0], |sum, (t, x)| {
            let (sin, cos) = (sign * std::f64::consts::TAU * (k * t) as f64 / n as f64).sin_cos();
            [sum[0] + x[0] * cos - x[1] * sin, sum[1] + x[0] * sin + x[1] * cos]
        })
    };
    (0..n).map(bin).collect()
}

#[test]
fn transforms_of_any_length_are_sums_of_waves_and_have_inverses() {
    for (length, n) in [(6, 6), (7, 7), (5, 8), (8, 5), (1, 1)] {
        let x = numbers(3, &[2, length, 3, 2]);
        let size = Tensor::scalar(n as i64);
        let found = run("DFT", &[], from_ref(&x), &[size.clone(), Tensor::scalar(1i64)]);
        assert_eq!(found.shape(), [2, n, 3, 2]);
        let (values, found_values) = (x.to_f64s(), found.to_f64s());
        for (batch, column) in [(0, 0), (1, 2)] {
            let at = |t: usize, extent: usize| ((batch * extent + t) * 3 + column) * 2;
            let signal: Vec<[f64; 2]> =
                (0..n)
                    .map(|t| {
                        if t < length { [values[at(t, length)], values[at(t, length) + 1]] } else { [0.0; 2] }
                    })
                    .collect();
            for (k, expected) in naive_dft(&signal, -1.0).into_iter().enumerate() {
                let f = &found_values[at(k, n)..];
                assert!((f[0] - expected[0]).abs() + (f[1] - expected[1]).abs() < 1e-9, "{length} {n}");
            }
        }
        let inverse = [("inverse", Attr::Int(1))];
        let back = run("DFT", &inverse, &[found], &[size.clone(), Tensor::scalar(-3i64)]);
        if length == n {
            assert_near(&back, x.shape(), &values, "inverse");
        }
        let real = numbers(4, &[2, n, 1]);
        let one_sided = [("onesided", Attr::Int(1))];
        let half = run("DFT", &one_sided, from_ref(&real), from_ref(&size));
        assert_eq!(half.shape(), [2, n / 2 + 1, 2]);
        let both = [("onesided", Attr::Int(1)), ("inverse", Attr::Int(1))];
        assert_near(&run("DFT", &both, &[half], &[size]), real.shape(), &real.to_f64s(), "one-sided inverse");
    }
}

#[test]
fn frames_of_a_signal_of_any_length_are_windowed_and_transformed() {
    for (parts, one_sided) in [(1, 1), (2, 0)] {
        let (signal, window) = (numbers(5, &[2, 23, parts]), numbers(6, &[8]));
        let (attributes, step) = ([("onesided", Attr::Int(one_sided))], Tensor::scalar(3i64));
        let constant = [step, window.clone()];
        let variable = [signal.clone()];
        let model = Model {
            op: "STFT",
            domain: "",
            attributes: &attributes,
            variable: &variable,
            constant: &constant,
            symbolic: true,
        };
        let found = model.run();
        let bins = if one_sided == 1 { 5 } else { 8 };
        assert_eq!(found.shape(), [2, 6, bins, 2]);
        let (signal, window, found) = (signal.to_f64s(), window.to_f64s(), found.to_f64s());
        for frame in 0..6 {
            let point = |t: usize| {
                let at = (23 + frame * 3 + t) * parts;
                [signal[at] * window[t], if parts == 2 { signal[at + 1] * window[t] } else { 0.0 }]
            };
            let expected = naive_dft(&(0..8).map(point).collect::<Vec<_>>(), -1.0);
            for (k, bin) in expected.into_iter().take(bins).enumerate() {
                let at = ((6 + frame) * bins + k) * 2;
                assert!((found[at] - bin[0]).abs() + (found[at + 1] - bin[1]).abs() < 1e-9, "{frame} {k}");
            }
        }
    }
}

#[test]
fn n_grams_are_counted_and_weighted() {
    let weights = [2.0, 3.0, 0.5];
    let count = |mode: &str, skips: i64, tokens: &[i64]| {
        let attributes = [
            ("mode", Attr::Text(mode)),
            ("max_skip_count", Attr::Int(skips)),
            ("min_gram_length", Attr::Int(1)),
            ("max_gram_length", Attr::Int(2)),
            // 7 alone, then 7 8 and 8 7.
            ("pool_int64s", Attr::Ints(&[7, 7, 8, 8, 7])),
            ("ngram_counts", Attr::Ints(&[0, 1])),
            ("ngram_indexes", Attr::Ints(&[2, 0, 1])),
            ("weights", Attr::Floats(&weights)),
        ];
        let variable = [Tensor::vector(tokens)];
        let model = |symbolic| Model {
            op: "TfIdfVectorizer",
            domain: "",
            attributes: &attributes,
            variable: &variable,
            constant: &[],
            symbolic,
        };
        let (fixed, symbolic) = (model(false).run(), model(true).run());
        assert_eq!(fixed, symbolic);
        fixed.to_f64s()
    };
    assert_eq!(count("TF", 0, &[7, 8, 7, 7, 8]), [2.0, 1.0, 3.0]);
    assert_eq!(count("TF", 1, &[7, 8, 7, 7, 8]), [3.0, 2.0, 3.0]);
    assert_eq!(count("IDF", 0, &[7, 8, 7, 7, 8]), [2.0, 3.0, 0.5]);
    assert_eq!(count("TFIDF", 0, &[7, 8, 7, 7, 8]), [4.0, 3.0, 1.5]);
    assert_eq!(count("TF", 5, &[7]), [0.0, 0.0, 1.0]);
    assert_eq!(count("TF", 5, &[]), [0.0; 3]);
}

#[test]
fn labels_of_numbers_are_looked_up() {
    let attributes = [
        ("keys_floats", Attr::Floats(&[1.5, f32::NAN, 2.0, 1.5])),
        ("values_int64s", Attr::Ints(&[10, 20, 30, 40])),
        ("default_int64", Attr::Int(-7)),
    ];
    let x = Tensor::from_slice(&[2, 2], &[2f32, f32::NAN, 1.5, 3.0]).unwrap();
    let (op, domain, constant) = ("LabelEncoder", "ai.onnx.ml", &[][..]);
    let found = Model { op, domain, attributes: &attributes, variable: &[x], constant, symbolic: true }.run();
    assert_eq!((found.shape(), found.to_i64s()), (&[2, 2][..], vec![30, 20, 40, -7]));
}

/// Two trees: `x0 <= 1 ? (x1 > 5 ? A : B) : C`, and one leaf.
#[test]
fn trees_are_walked_and_their_leaves_added() {
    let forest = |aggregate: &str, x: &[f32]| {
        let attributes = [
            ("nodes_treeids", Attr::Ints(&[0, 0, 0, 0, 0, 3])),
            ("nodes_nodeids", Attr::Ints(&[0, 1, 2, 3, 4, 0])),
            ("nodes_featureids", Attr::Ints(&[0, 1, 0, 0, 0, 0])),
            ("nodes_values", Attr::Floats(&[1.0, 5.0, 0.0, 0.0, 0.0, 0.0])),
            ("nodes_modes", Attr::Texts(&["BRANCH_LEQ", "BRANCH_GT", "LEAF", "LEAF", "LEAF", "LEAF"])),
            ("nodes_truenodeids", Attr::Ints(&[1, 2, 0, 0, 0, 0])),
            ("nodes_falsenodeids", Attr::Ints(&[4, 3, 0, 0, 0, 0])),
            ("nodes_missing_value_tracks_true", Attr::Ints(&[1, 0, 0, 0, 0, 0])),
            ("target_treeids", Attr::Ints(&[0, 0, 0, 0, 3])),
            ("target_nodeids", Attr::Ints(&[2, 3, 4, 4, 0])),
            ("target_ids", Attr::Ints(&[0, 1, 0, 1, 1])),
            ("target_weights", Attr::Floats(&[1.0, 2.0, 4.0, 8.0, 100.0])),
            ("base_values", Attr::Floats(&[0.5, 0.25])),
            ("n_targets", Attr::Int(2)),
            ("aggregate_function", Attr::Text(aggregate)),
        ];
        let variable = [Tensor::from_slice(&[x.len() / 2, 2], x).unwrap()];
        let (op, domain) = ("TreeEnsembleRegressor", "ai.onnx.ml");
        let model = Model {
            op,
            domain,
            attributes: &attributes,
            variable: &variable,
            constant: &[],
            symbolic: false,
        };
        model.run().to_f64s()
    };
    // Above the first threshold; below it and above the second; missing, then below; missing twice.
    let x = [2.0, 9.0, 1.0, 9.0, f32::NAN, 5.0, f32::NAN, f32::NAN];
    let sums = [4.5, 108.25, 1.5, 100.25, 0.5, 102.25, 0.5, 102.25];
    assert_eq!(forest("SUM", &x), sums);
    let means = [2.5, 54.25, 1.0, 50.25, 0.5, 51.25, 0.5, 51.25];
    assert_eq!(forest("AVERAGE", &x), means);
    assert_eq!(forest("MAX", &x[..2]), [4.5, 100.25]);
    assert_eq!(forest("MIN", &x[..2]), [4.5, 8.25]);
}

#[test]
fn random_numbers_follow_from_the_seed_and_have_their_distribution() {
    let draw = |op: &str, attributes: &[(&str, Attr)], x: &[f32]| {
        run(op, attributes, &[Tensor::from_slice(&[1, x.len()], x).unwrap()], &[]).to_f64s()
    };
    let probabilities = vec![0.25; 4000];
    let hits = draw("Bernoulli", &[], &probabilities);
    let share = hits.iter().sum::<f64>() / 4000.0;
    assert!((share - 0.25).abs() < 0.03 && hits == draw("Bernoulli", &[], &probabilities), "{share}");
    // Probabilities 1/2, 1/4, 1/4 as logarithms that are not normalized.
    let classes = draw("Multinomial", &[("sample_size", Attr::Int(4000))], &[2f32.ln(), 0.0, 0.0]);
    let shares: Vec<f64> =
        (0..3).map(|c| classes.iter().filter(|&&v| v == f64::from(c)).count() as f64 / 4000.0).collect();
    assert!((shares[0] - 0.5).abs() < 0.03 && (shares[1] - 0.25).abs() < 0.03, "{shares:?}");
}

#[test]
fn auto_pad_of_open_extents_pads_as_for_known_ones() {
    let ops = [
        ("Conv", None),
        ("MaxPool", None),
        ("LpPool", None),
        ("AveragePool", Some(0)),
        ("AveragePool", Some(1)),
    ];
    // Window, strides, dilations: with what is left over, without, and with steps beyond the window.
    let windows: [[&[i64]; 3]; 4] = [
        [&[3, 4], &[2, 2], &[1, 1]],
        [&[2, 3], &[2, 3], &[1, 2]],
        [&[1, 5], &[2, 1], &[1, 1]],
        [&[2, 2], &[3, 4], &[1, 1]],
    ];
    for (op, counted) in ops {
        for [kernel, strides, dilations] in windows {
            for side in ["SAME_UPPER", "SAME_LOWER"] {
                for extents in [[7, 6], [8, 9], [5, 11]] {
                    let mut attributes = vec![
                        ("auto_pad", Attr::Text(side)),
                        ("kernel_shape", Attr::Ints(kernel)),
                        ("strides", Attr::Ints(strides)),
                        ("dilations", Attr::Ints(dilations)),
                    ];
                    attributes.extend(counted.map(|v| ("count_include_pad", Attr::Int(v))));
                    let weights = [3, 2, kernel[0] as usize, kernel[1] as usize];
                    let constant = if op == "Conv" { vec![numbers(2, &weights)] } else { Vec::new() };
                    let variable = [numbers(1, &[2, 2, extents[0], extents[1]])];
                    let model = |symbolic| Model {
                        op,
                        domain: "",
                        attributes: &attributes,
                        variable: &variable,
                        constant: &constant,
                        symbolic,
                    };
                    let what = format!("{op} {kernel:?} {strides:?} {side} {extents:?}");
                    let expected = model(false).run();
                    assert_near(&model(true).run(), expected.shape(), &expected.to_f64s(), &what);
                    if strides[0] > kernel[0] && kernel[0] > 1 {
                        continue;
                    }
                    let graph = model(true).import().unwrap();
                    let rows = sora_ir::Dim::symbol(&format!("d{}", extents[0])).ceil_div(strides[0]);
                    assert_eq!(graph.ty(graph.outputs()[0].value).shape[2], rows, "{what}");
                }
            }
        }
    }
}
