//! Export and import again: every operator's cases give the same results, names stay, files appear whole.

use sora_ir::case::Gen;
use sora_ir::ops::{
    Binary, BinaryKind, Conv, DequantizeLinear, Direction, DynamicQuantizeLinear, Gather, If, Lstm, MatMul,
    Unary, UnaryKind,
};
use sora_ir::{Dim, Graph, Op, Subgraph, TensorType, evaluate, verify};
use sora_onnx::{About, ExportOptions, from_bytes, load, save, to_bytes};
use sora_tensor::{DType, Tensor};

/// Operators that ONNX writes as several, which round in between.
fn composite(op: &Op) -> bool {
    matches!(
        op,
        Op::Unary(Unary { kind: UnaryKind::Silu })
            | Op::Binary(Binary { kind: BinaryKind::Mod })
            | Op::LayerNorm(_)
            | Op::QuantizeLinear(_)
    )
}

#[test]
fn every_operator_survives_a_round_trip() {
    let mut failures = Vec::new();
    // ONNX has no gradients.
    for name in Op::NAMES.iter().filter(|&&name| name != "RecurrentGrad") {
        let mut gen_ = Gen::new(5);
        for case in (0..6).flat_map(|_| Op::cases(name, &mut gen_)).collect::<Vec<_>>() {
            let (graph, given) = case.graph().unwrap();
            let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, t)| (name.as_str(), t)).collect();
            let check = || -> Result<(), String> {
                let bytes = to_bytes(&graph, &ExportOptions::default()).map_err(|e| e.to_string())?;
                let again = from_bytes(bytes, None).map_err(|e| e.to_string())?;
                verify(&again.graph).map_err(|e| e.to_string())?;
                let expected = evaluate(&graph, &given).map_err(|e| e.to_string())?;
                let found = evaluate(&again.graph, &given).map_err(|e| e.to_string())?;
                let names = |g: &Graph| g.outputs().iter().map(|o| o.name.clone()).collect::<Vec<_>>();
                if names(&graph) != names(&again.graph) {
                    return Err("the outputs' names differ".to_owned());
                }
                for (a, b) in expected.iter().zip(&found) {
                    if !(a == b || composite(&case.op) && close(a, b)) {
                        return Err(format!("expected {a:?}, found {b:?}"));
                    }
                }
                Ok(())
            };
            if let Err(e) = check() {
                failures.push(format!("{case:?}: {e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    let step = match a.dtype() {
        DType::F16 => 2e-3,
        DType::BF16 => 2e-2,
        _ => 1e-5,
    };
    a.shape() == b.shape()
        && a.dtype() == b.dtype()
        && a.to_f64s().iter().zip(b.to_f64s()).all(|(x, y)| (x - y).abs() <= step * x.abs().max(1.0))
}

fn network() -> Graph {
    let mut graph = Graph::new("net");
    let x = graph.input(
        "x",
        TensorType {
            dtype: DType::F32,
            shape: vec![Dim::symbol("N"), Dim::from(3i64), Dim::from(8i64), Dim::from(8i64)],
        },
    );
    let w = graph.constant("w", Tensor::from_slice(&[4, 3, 3, 3], &vec![0.5f32; 108]).unwrap());
    let y = graph.op("conv", Conv::new(2), [x, w]).unwrap();
    let z = graph.op("relu", Unary { kind: UnaryKind::Relu }, [y]).unwrap();
    graph.output("result", z);
    graph.output("same", z);
    graph.output("input", x);
    graph.output("weights", w);
    graph
}

#[test]
fn names_symbols_and_metadata_stay() {
    let about = About {
        producer: "tool".into(),
        producer_version: "2".into(),
        domain: "org.example".into(),
        version: 7,
        doc: "a model".into(),
        graph_doc: "a graph".into(),
        value_docs: vec![("x".into(), "pictures".into()), ("result".into(), "a class".into())],
    };
    let metadata = vec![("key".into(), "value".into())];
    let options = ExportOptions { about, metadata, ..ExportOptions::default() };
    let again = from_bytes(to_bytes(&network(), &options).unwrap(), None).unwrap();
    assert_eq!(again.opset, 17);
    assert_eq!(again.metadata, options.metadata);
    assert_eq!(again.about, options.about);
    let outputs: Vec<&str> = again.graph.outputs().iter().map(|o| o.name.as_str()).collect();
    assert_eq!(outputs, ["result", "same", "input", "weights"]);
    let nodes: Vec<&str> = again.graph.nodes().map(|(_, n)| n.name.as_str()).collect();
    assert_eq!(nodes, ["conv", "relu"]);
    assert!(again.graph.find("w").is_some() && again.graph.find("conv").is_some());
    assert_eq!(again.graph.ty(again.graph.inputs()[0]).to_string(), "f32[N,3,8,8]");
}

#[test]
fn names_of_nodes_in_bodies_stay() {
    let branch = |name: &str, kind: UnaryKind| {
        let mut body = Graph::new("branch");
        let x = body.input("x", TensorType::new(DType::F32, [2usize]));
        let y = body.op(name, Unary { kind }, [x]).unwrap();
        body.output("y", y);
        Subgraph::new(body).unwrap()
    };
    let mut graph = Graph::new("branches");
    let flag = graph.input("flag", TensorType::new(DType::Bool, [0usize; 0]));
    let x = graph.input("x", TensorType::new(DType::F32, [2usize]));
    let op =
        If { then_branch: branch("left", UnaryKind::Relu), else_branch: branch("right", UnaryKind::Neg) };
    let y = graph.op("choice", op, [flag, x]).unwrap();
    graph.output("y", y);
    for _ in 0..3 {
        graph = from_bytes(to_bytes(&graph, &ExportOptions::default()).unwrap(), None).unwrap().graph;
        let (_, choice) = graph.nodes().next().unwrap();
        let bodies = choice.op.bodies();
        let names = bodies.iter().flat_map(|body| body.graph().nodes()).map(|(_, node)| node.name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["choice/then_branch/left", "choice/else_branch/right"]);
    }
}

#[test]
fn external_data_is_written_mapped_and_confined() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.onnx");
    let options = ExportOptions { external_above: Some(100), ..ExportOptions::default() };
    save(&network(), &path, &options).unwrap();
    assert_eq!(std::fs::metadata(folder.path().join("net.onnx.data")).unwrap().len(), 432);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "a temporary file was left");
    let graph = load(&path).unwrap().graph;
    assert_eq!(
        graph.const_value(graph.find("w").unwrap()),
        network().const_value(network().find("w").unwrap())
    );

    // Without a folder, cut short, or moved to where a link leads out of the folder, it is refused.
    let refused = |result: Result<sora_onnx::Imported, sora_onnx::OnnxError>, part: &str| {
        let message = result.expect_err("it must be refused").to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(from_bytes(std::fs::read(&path).unwrap(), None), "no folder");
    let data = folder.path().join("net.onnx.data");
    let bytes = std::fs::read(&data).unwrap();
    std::fs::write(&data, &bytes[..100]).unwrap();
    refused(load(&path), "outside of");
    std::fs::remove_file(&data).unwrap();
    refused(load(&path), "put the file beside");
    #[cfg(unix)]
    {
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("secret"), &bytes).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("secret"), &data).unwrap();
        refused(load(&path), "outside of the model's folder");
    }
}

#[test]
fn an_opset_that_is_too_old_for_a_node_is_refused_by_name() {
    let mut graph = Graph::new("gelu");
    let x = graph.input("x", TensorType::new(DType::F32, [2usize]));
    let y = graph.op("activation", Unary { kind: UnaryKind::Gelu }, [x]).unwrap();
    graph.output("y", y);
    let old = ExportOptions { opset: Some(17), ..ExportOptions::default() };
    assert!(to_bytes(&graph, &old).unwrap_err().to_string().contains("activation"));
    assert_eq!(from_bytes(to_bytes(&graph, &ExportOptions::default()).unwrap(), None).unwrap().opset, 20);
    for opset in 17..=sora_onnx::MAX_OPSET {
        let options = ExportOptions { opset: Some(opset), ..ExportOptions::default() };
        assert_eq!(from_bytes(to_bytes(&network(), &options).unwrap(), None).unwrap().opset, opset);
    }
}

/// Runtimes fuse a quantized layer whose weights have an explicit zero point of their own type, and whose 32-bit
/// bias has none or zeros.
#[test]
fn quantized_weights_get_explicit_zero_points() {
    let mut graph = Graph::new("quantized");
    let x = graph.input("x", TensorType::new(DType::F32, [1usize, 2, 5, 5]));
    let weights =
        graph.constant("weights", Tensor::from_slice(&[3, 2, 1, 1], &[1i8, -2, 3, -4, 5, -6]).unwrap());
    let bias = graph.constant("bias", Tensor::vector(&[100i32, -200, 300]));
    let scales = graph.constant("scales", Tensor::vector(&[0.1f32, 0.2, 0.3]));
    let w = graph.op("w", DequantizeLinear { axis: 0 }, [weights, scales]).unwrap();
    let b = graph.op("b", DequantizeLinear { axis: 0 }, [bias, scales]).unwrap();
    let y = graph.op("conv", Conv::new(2), [x, w, b]).unwrap();
    graph.output("y", y);
    let again = from_bytes(to_bytes(&graph, &ExportOptions::default()).unwrap(), None).unwrap().graph;
    let types = |name: &str| -> Vec<String> {
        let (_, node) = again.nodes().find(|(_, node)| node.name == name).unwrap();
        node.inputs.iter().flatten().map(|&id| again.ty(id).to_string()).collect()
    };
    assert_eq!(types("w"), ["i8[3,2,1,1]", "f32[3]", "i8[3]"]);
    assert_eq!(types("b"), ["i32[3]", "f32[3]"]);
}

#[test]
fn an_unwritable_place_is_an_error_with_its_path() {
    let error = save(&network(), "/nonexistent/net.onnx", &ExportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/net.onnx"), "{error}");
}

/// Products and an LSTM whose activations are quantized as they come: written in integer operators, without the
/// conversions that those do themselves.
#[test]
fn dynamic_quantization_is_written_in_integers() {
    let mut g = Gen::new(3);
    for rows in [false, true] {
        let mut graph = Graph::new("dynamic");
        let x = g.uniform(DType::F32, &[4, 2, 6], -1.0, 2.0);
        let input = graph.input("x", TensorType::of(&x));
        let quantized = graph.add("q", DynamicQuantizeLinear { rows }, [input]).unwrap();
        let real = graph.op("dq", DequantizeLinear { axis: -1 }, quantized).unwrap();
        let mut bytes = |graph: &mut Graph, name: &str, shape: &[usize], scale: &[usize], axis| {
            let q = graph.constant(&format!("{name}.q"), g.tensor(DType::I8, shape));
            let s = graph.constant(&format!("{name}.s"), g.uniform(DType::F32, scale, 0.001, 0.01));
            graph.op(name, DequantizeLinear { axis }, [q, s]).unwrap()
        };
        let w = bytes(&mut graph, "w", &[6, 5], &[5], 1);
        let product = graph.op("product", MatMul {}, [real, w]).unwrap();
        graph.output("product", product);
        let w = bytes(&mut graph, "lw", &[1, 12, 6], &[1, 12, 1], 2);
        let r = bytes(&mut graph, "lr", &[1, 12, 3], &[1, 12, 1], 2);
        let lstm = Lstm { hidden: 3, direction: Direction::Forward, quantize_state: true };
        let outputs = graph.add("lstm", lstm, [real, w, r]).unwrap();
        graph.output("state", outputs[1]);

        let written = to_bytes(&graph, &ExportOptions::default()).unwrap();
        let holds = |text: &str| written.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(holds("MatMulInteger") && holds("DynamicQuantizeLSTM") && !holds("DequantizeLinear"));
        let again = from_bytes(written.clone(), None).unwrap().graph;
        let expected = evaluate(&graph, &[("x", &x)]).unwrap();
        let found = evaluate(&again, &[("x", &x)]).unwrap();
        assert!(close(&expected[0], &found[0]), "{:?} {:?}", expected[0], found[0]);
        // By rows or as a whole, X is rounded by at most a 255th of its range.
        let bound = if rows { 2e-2 } else { 1e-6 };
        for (a, b) in expected[1].to_f64s().iter().zip(found[1].to_f64s()) {
            assert!((a - b).abs() <= bound, "{a} {b}");
        }
    }
}

/// Rows of a table of bytes are dequantized behind the Gather: other runtimes would make all of the table real.
#[test]
fn tables_are_dequantized_row_by_row() {
    let mut g = Gen::new(4);
    for zero_points in [false, true] {
        let mut graph = Graph::new("words");
        let x = g.uniform(DType::I64, &[3, 4], 0.0, 10.0);
        let input = graph.input("x", TensorType::of(&x));
        let levels = graph.constant("levels", g.tensor(DType::I8, &[10, 5]));
        let mut inputs = vec![levels, graph.constant("scales", g.uniform(DType::F32, &[5], 0.01, 0.1))];
        if zero_points {
            inputs.push(graph.constant("zeros", g.uniform(DType::I8, &[5], -9.0, 9.0)));
        }
        let table = graph.op("table", DequantizeLinear { axis: 1 }, inputs).unwrap();
        let rows = graph.op("rows", Gather { axis: 0 }, [table, input]).unwrap();
        graph.output("rows", rows);
        let again = from_bytes(to_bytes(&graph, &ExportOptions::default()).unwrap(), None).unwrap().graph;
        let types: Vec<String> = again
            .nodes()
            .flat_map(|(_, node)| node.outputs.iter().map(|&id| again.ty(id).to_string()))
            .collect();
        assert_eq!(types, ["i8[3,4,5]", "f32[3,4,5]"]);
        assert_eq!(evaluate(&graph, &[("x", &x)]).unwrap(), evaluate(&again, &[("x", &x)]).unwrap());
    }
}
