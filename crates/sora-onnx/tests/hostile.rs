//! Broken and hostile files: always an error that says what, never a panic or a hang.

use prost::Message;
use sora_ir::ops::{Conv, MaxPool, Reshape, Softmax};
use sora_ir::{Dim, Graph, TensorType};
use sora_onnx::{ExportOptions, NodeIssue, OnnxError, check, from_bytes, load, to_bytes};
use sora_tensor::{DType, Tensor};

/// Messages with just the fields that the tests below need.
mod onnx {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Model {
        #[prost(int64, tag = "1")]
        pub(super) ir_version: i64,
        #[prost(message, optional, tag = "7")]
        pub(super) graph: Option<GraphProto>,
        #[prost(message, repeated, tag = "8")]
        pub(super) opset_import: Vec<Opset>,
        #[prost(message, repeated, tag = "25")]
        pub(super) functions: Vec<Function>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Opset {
        #[prost(string, tag = "1")]
        pub(super) domain: String,
        #[prost(int64, tag = "2")]
        pub(super) version: i64,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct GraphProto {
        #[prost(message, repeated, tag = "1")]
        pub(super) node: Vec<Node>,
        #[prost(message, repeated, tag = "5")]
        pub(super) initializer: Vec<Tensor>,
        #[prost(message, repeated, tag = "11")]
        pub(super) input: Vec<Info>,
        #[prost(message, repeated, tag = "12")]
        pub(super) output: Vec<Info>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Node {
        #[prost(string, repeated, tag = "1")]
        pub(super) input: Vec<String>,
        #[prost(string, repeated, tag = "2")]
        pub(super) output: Vec<String>,
        #[prost(string, tag = "3")]
        pub(super) name: String,
        #[prost(string, tag = "4")]
        pub(super) op_type: String,
        #[prost(message, repeated, tag = "5")]
        pub(super) attribute: Vec<Attribute>,
        #[prost(string, tag = "7")]
        pub(super) domain: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Attribute {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(float, optional, tag = "2")]
        pub(super) f: Option<f32>,
        #[prost(int64, optional, tag = "3")]
        pub(super) i: Option<i64>,
        #[prost(message, optional, boxed, tag = "6")]
        pub(super) g: Option<Box<GraphProto>>,
        #[prost(int64, repeated, tag = "8")]
        pub(super) ints: Vec<i64>,
        #[prost(string, tag = "21")]
        pub(super) ref_attr_name: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Tensor {
        #[prost(int64, repeated, tag = "1")]
        pub(super) dims: Vec<i64>,
        #[prost(int32, tag = "2")]
        pub(super) data_type: i32,
        #[prost(float, repeated, tag = "4")]
        pub(super) float_data: Vec<f32>,
        #[prost(int32, repeated, tag = "5")]
        pub(super) int32_data: Vec<i32>,
        #[prost(int64, repeated, tag = "7")]
        pub(super) int64_data: Vec<i64>,
        #[prost(string, tag = "8")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "13")]
        pub(super) external_data: Vec<Entry>,
        #[prost(int32, tag = "14")]
        pub(super) data_location: i32,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Entry {
        #[prost(string, tag = "1")]
        pub(super) key: String,
        #[prost(string, tag = "2")]
        pub(super) value: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Info {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(message, optional, tag = "2")]
        pub(super) ty: Option<Type>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Type {
        #[prost(message, optional, tag = "1")]
        pub(super) tensor: Option<TensorType>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct TensorType {
        #[prost(int32, tag = "1")]
        pub(super) elem: i32,
        #[prost(message, optional, tag = "2")]
        pub(super) shape: Option<Shape>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Shape {
        #[prost(message, repeated, tag = "1")]
        pub(super) dim: Vec<DimProto>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct DimProto {
        #[prost(int64, optional, tag = "1")]
        pub(super) value: Option<i64>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Function {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, repeated, tag = "4")]
        pub(super) input: Vec<String>,
        #[prost(string, repeated, tag = "5")]
        pub(super) output: Vec<String>,
        #[prost(message, repeated, tag = "7")]
        pub(super) node: Vec<Node>,
        #[prost(string, tag = "10")]
        pub(super) domain: String,
    }
}

fn own(names: &[&str]) -> Vec<String> {
    names.iter().map(|&n| n.to_owned()).collect()
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> onnx::Node {
    let name = format!("{op}-{}", outputs.join("-"));
    onnx::Node { op_type: op.into(), input: own(inputs), output: own(outputs), name, ..Default::default() }
}

fn info(name: &str, shape: &[i64]) -> onnx::Info {
    let dim = shape.iter().map(|&v| onnx::DimProto { value: Some(v) }).collect();
    let tensor = onnx::TensorType { elem: 1, shape: Some(onnx::Shape { dim }) };
    onnx::Info { name: name.into(), ty: Some(onnx::Type { tensor: Some(tensor) }) }
}

/// A model of `nodes` with the input `x`, f32[2,3], and the given outputs.
fn model(nodes: Vec<onnx::Node>, outputs: &[&str]) -> onnx::Model {
    let output = outputs.iter().map(|&name| onnx::Info { name: name.into(), ty: None }).collect();
    let graph =
        onnx::GraphProto { node: nodes, initializer: vec![], input: vec![info("x", &[2, 3])], output };
    let opset = onnx::Opset { domain: String::new(), version: 17 };
    onnx::Model { ir_version: 8, graph: Some(graph), opset_import: vec![opset], functions: vec![] }
}

fn issues(model: &onnx::Model) -> Vec<NodeIssue> {
    match from_bytes(model.encode_to_vec(), None) {
        Ok(_) => Vec::new(),
        Err(OnnxError::Nodes(issues)) => issues,
        Err(other) => panic!("{other}"),
    }
}

/// The only issue; its printed form must hold all of `parts`.
fn refused(model: &onnx::Model, parts: &[&str]) {
    let found = issues(model);
    let [issue] = found.as_slice() else { panic!("expected one issue, found {found:?}") };
    let text = issue.to_string();
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn all_issues_come_at_once_and_none_twice() {
    let mut broken = model(
        vec![
            node("NoSuchOperator", &["x"], &["a"]),
            node("Relu", &["a"], &["b"]),
            node("StringNormalizer", &["b"], &["c"]),
            node("MatMul", &["x", "x"], &["d"]),
            node("Add", &["d", "c"], &["e"]),
        ],
        &["e"],
    );
    broken.graph.as_mut().unwrap().node[3].name = String::new();
    let found = issues(&broken);
    let names: Vec<&str> = found.iter().map(|issue| issue.node.as_str()).collect();
    assert_eq!(names, ["NoSuchOperator-a", "StringNormalizer-c", "MatMul_3"], "{found:?}");
    assert!(found[1].hint.contains("text processing") && found[2].why.contains("f32[2,3]"));
    let text = OnnxError::Nodes(found).to_string();
    assert!(text.contains("NoSuchOperator-a") && text.contains("MatMul_3"), "{text}");
}

#[test]
fn issues_in_bodies_of_all_branches_and_behind_other_issues_are_listed_too() {
    let body = |op: &str| {
        let graph = onnx::GraphProto {
            node: vec![node(op, &["x"], &["r"])],
            output: vec![onnx::Info { name: "r".into(), ty: None }],
            ..Default::default()
        };
        Some(Box::new(graph))
    };
    let branch =
        |name: &str, op: &str| onnx::Attribute { name: name.into(), g: body(op), ..Default::default() };
    let condition = |input: &str, output: &str, ops: [&str; 2]| onnx::Node {
        attribute: vec![branch("then_branch", ops[0]), branch("else_branch", ops[1])],
        ..node("If", &[input], &[output])
    };
    let nodes = vec![
        node("ReduceMax", &["x"], &["most"]),
        node("Cast", &["most"], &["flag"]),
        condition("flag", "y", ["NoSuch", "NorThis"]),
        node("Unknown", &["x"], &["lost"]),
        condition("lost", "z", ["Relu", "Hidden"]),
    ];
    let mut nodes = nodes;
    nodes[0].attribute.push(onnx::Attribute { name: "keepdims".into(), i: Some(0), ..Default::default() });
    nodes[1].attribute.push(onnx::Attribute { name: "to".into(), i: Some(9), ..Default::default() });
    let found = issues(&model(nodes, &["y", "z"]));
    let names: Vec<&str> = found.iter().map(|issue| issue.node.as_str()).collect();
    let inside = ["If-y/then_branch/NoSuch-r", "If-y/else_branch/NorThis-r", "If-y", "Unknown-lost"];
    assert_eq!(names, [&inside[..], &["If-z/else_branch/Hidden-r"]].concat(), "{found:?}");
    assert!(found.iter().all(|issue| !issue.hint.is_empty()));
}

#[test]
fn issues_name_the_attribute_that_is_to_blame() {
    let mut broken = model(vec![node("Cast", &["x"], &["y"])], &["y"]);
    let to = onnx::Attribute { name: "to".into(), i: Some(8), ..Default::default() };
    broken.graph.as_mut().unwrap().node[0].attribute.push(to);
    let shuffled = onnx::Attribute { name: "axis".into(), i: Some(7), ..Default::default() };
    broken
        .graph
        .as_mut()
        .unwrap()
        .node
        .push(onnx::Node { attribute: vec![shuffled], ..node("Flatten", &["x"], &["z"]) });
    let found = issues(&broken);
    let named: Vec<&str> = found.iter().map(|issue| issue.attribute.as_str()).collect();
    assert_eq!(named, ["to", "axis"], "{found:?}");
}

#[test]
fn inconsistent_graphs_are_refused_by_name() {
    refused(&model(vec![node("Relu", &["nowhere"], &["y"])], &["y"]), &["Relu-y", "nowhere"]);
    refused(&model(vec![node("Relu", &["x"], &["y"])], &["z"]), &["Output", "`z`"]);
    refused(
        &model(vec![node("Relu", &["x"], &["y"]), node("Abs", &["x"], &["y"])], &["y"]),
        &["Abs-y", "twice"],
    );
    refused(&model(vec![node("Relu", &["x"], &["x"])], &["x"]), &["own output"]);
    let cycle = vec![node("Add", &["x", "b"], &["a"]), node("Relu", &["a"], &["b"])];
    refused(&model(cycle, &["b"]), &["own output"]);
    refused(&model(vec![node("Relu", &["x"], &["y"])], &[]), &["no outputs"]);
    refused(&model(vec![node("Relu", &[], &["y"])], &["y"]), &["Relu-y", "missing"]);
    refused(&model(vec![node("Relu", &["x"], &["y", "more"])], &["y", "more"]), &["output 1", "more"]);
    assert!(issues(&model(vec![node("Relu", &["x"], &["y", "more"])], &["y"])).is_empty());
    // Order in the file does not matter.
    let unsorted = vec![node("Relu", &["a"], &["b"]), node("Abs", &["x"], &["a"])];
    assert!(issues(&model(unsorted, &["b"])).is_empty());
}

#[test]
fn broken_initializers_and_inputs_are_refused_by_name() {
    let with = |tensor: onnx::Tensor| {
        let mut model = model(vec![node("Add", &["x", "w"], &["y"])], &["y"]);
        model.graph.as_mut().unwrap().initializer.push(onnx::Tensor { name: "w".into(), ..tensor });
        model
    };
    let floats = |dims: &[i64], n: usize| onnx::Tensor {
        dims: dims.to_vec(),
        data_type: 1,
        float_data: vec![1.0; n],
        ..Default::default()
    };
    assert!(issues(&with(floats(&[2, 3], 6))).is_empty());
    refused(&with(floats(&[2, 3], 5)), &["Initializer `w`", "6 elements, found 5"]);
    refused(&with(floats(&[-2, 3], 6)), &["`w`", "negative"]);
    refused(&with(floats(&[i64::MAX, i64::MAX], 6)), &["`w`", "too large"]);
    refused(&with(onnx::Tensor { data_type: 8, ..floats(&[1], 0) }), &["`w`", "string"]);
    for location in ["/etc/passwd", "../secret", "a/../../secret", "", "C:\\x\\..\\..\\y"] {
        let entry = onnx::Entry { key: "location".into(), value: location.into() };
        let tensor = onnx::Tensor { external_data: vec![entry], data_location: 1, ..floats(&[2, 3], 0) };
        let bytes = with(tensor).encode_to_vec();
        let error = from_bytes(bytes, Some(std::path::Path::new("/tmp"))).unwrap_err().to_string();
        assert!(error.contains("`w`"), "{location}: {error}");
    }
    let mut model = model(vec![node("Relu", &["x"], &["y"])], &["y"]);
    model.graph.as_mut().unwrap().input = vec![info("x", &[-7])];
    refused(&model, &["Input `x`", "-7"]);
    model.graph.as_mut().unwrap().input = vec![onnx::Info { name: "x".into(), ty: None }];
    refused(&model, &["Input `x`", "not a tensor"]);
}

#[test]
fn files_of_other_kinds_and_versions_are_named() {
    let message = |bytes: &[u8]| from_bytes(bytes.to_vec(), None).unwrap_err().to_string();
    assert!(message(b"").contains("empty"));
    assert!(message(b"PK\x03\x04rest").contains("zip"));
    assert!(message(b"\x89HDF\r\n\x1a\n").contains("HDF5"));
    assert!(message(b"not a model").contains("not a valid ONNX model"));
    let mut old = model(vec![node("Relu", &["x"], &["y"])], &["y"]);
    old.opset_import[0].version = 0;
    assert!(message(&old.encode_to_vec()).contains("opset 0"));
    old.opset_import[0].version = 99;
    assert_eq!(from_bytes(old.encode_to_vec(), None).unwrap().warnings.len(), 1);
    assert!(load("/nonexistent.onnx").unwrap_err().to_string().contains("/nonexistent.onnx"));
    assert!(check("/nonexistent.onnx").is_err());
}

#[test]
fn deep_nesting_and_endless_functions_are_refused() {
    let mut graph = onnx::GraphProto::default();
    for _ in 0..150 {
        let attribute =
            onnx::Attribute { name: "body".into(), g: Some(Box::new(graph)), ..Default::default() };
        let node = onnx::Node { op_type: "Loop".into(), attribute: vec![attribute], ..Default::default() };
        graph = onnx::GraphProto { node: vec![node], ..Default::default() };
    }
    let deep = onnx::Model { graph: Some(graph), ..Default::default() };
    assert!(matches!(from_bytes(deep.encode_to_vec(), None), Err(OnnxError::NotOnnx(_))));

    let call = |output: &str| onnx::Node { domain: "own".into(), ..node("F", &["x"], &[output]) };
    let mut endless = model(vec![call("y")], &["y"]);
    endless.functions.push(onnx::Function {
        name: "F".into(),
        domain: "own".into(),
        input: own(&["x"]),
        output: own(&["y"]),
        node: vec![call("a"), call("y")],
    });
    refused(&endless, &["nested too deeply"]);
}

#[test]
fn long_names_and_nested_bodies_do_not_multiply() {
    let long = "n".repeat(1 << 20);
    let info = |name: &str| onnx::Info { name: name.into(), ty: None };
    let branch = |nodes: Vec<onnx::Node>, output: &str| onnx::GraphProto {
        node: nodes,
        output: vec![info(output)],
        ..Default::default()
    };
    let both = |body: &onnx::GraphProto, name: &str| {
        let attribute = |side: &str, body: onnx::GraphProto| onnx::Attribute {
            name: side.into(),
            g: Some(Box::new(body)),
            ..Default::default()
        };
        let short = branch(vec![node("Abs", &["x"], &["short"])], "short");
        let attribute = vec![attribute("then_branch", body.clone()), attribute("else_branch", short)];
        onnx::Node { name: name.into(), attribute, ..node("If", &["go"], &["y"]) }
    };
    let choice = |nodes: Vec<onnx::Node>| {
        let mut model = model(nodes, &["y"]);
        let mut go = info("go");
        go.ty = Some(onnx::Type {
            tensor: Some(onnx::TensorType { elem: 9, shape: Some(onnx::Shape::default()) }),
        });
        model.graph.as_mut().unwrap().input.push(go);
        model
    };
    // Nodes of a body are called after the node that it belongs to.
    let chain = |count: usize| {
        let name = |i: usize| if i == 0 { "x".to_owned() } else { format!("v{i}") };
        (0..count)
            .map(move |i| onnx::Node { name: String::new(), ..node("Relu", &[&name(i)], &[&name(i + 1)]) })
    };
    let body = branch(chain(2000).collect(), "v2000");
    assert!(issues(&choice(vec![both(&body, &long)])).is_empty());
    // Each body is a string in that of the next one.
    let mut body = branch(chain(200).collect(), "v200");
    for _ in 0..12 {
        body = branch(vec![both(&body, "")], "y");
    }
    let found = issues(&choice(body.node));
    assert!(found.iter().any(|issue| issue.why.contains("levels deep")), "{found:?}");

    // What a function is given stands wherever it is read.
    let function = |node: Vec<onnx::Node>| onnx::Function {
        name: "F".into(),
        domain: "own".into(),
        input: own(&["in"]),
        output: own(&["out"]),
        node,
    };
    let call = |name: &str, input: &str| onnx::Node {
        domain: "own".into(),
        name: name.into(),
        ..node("F", &[input], &["y"])
    };
    let inner = |count: usize| (0..count).map(|i| node("Abs", &["in"], &[&format!("o{i}")]));
    let last = || node("Abs", &["in"], &["out"]);
    let mut wide = model(vec![call(&long, "x")], &["y"]);
    wide.functions.push(function(inner(5000).chain([last()]).collect()));
    assert!(issues(&wide).is_empty());
    let graph = wide.graph.as_mut().unwrap();
    graph.node = vec![node("Abs", &["x"], &[&long]), call("call", &long)];
    refused(&wide, &["too large"]);
}

/// What makes much of little. Where that does not fit into memory, evaluation says so.
#[test]
fn huge_results_are_errors() {
    let huge = 1i64 << 42;
    let int64 = |name: &str, values: &[i64]| onnx::Tensor {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: 7,
        int64_data: values.to_vec(),
        ..Default::default()
    };
    let scalar = |name: &str, value: i64| onnx::Tensor { dims: vec![], ..int64(name, &[value]) };
    let ints = |name: &str, ints: &[i64]| onnx::Attribute {
        name: name.into(),
        ints: ints.to_vec(),
        ..Default::default()
    };
    let cases: Vec<(onnx::Node, Vec<onnx::Tensor>)> = vec![
        (node("ConstantOfShape", &["s"], &["y"]), vec![int64("s", &[huge])]),
        (node("ConstantOfShape", &["s"], &["y"]), vec![int64("s", &[1 << 31, 1 << 31, 1 << 31])]),
        (node("Expand", &["x", "s"], &["y"]), vec![int64("s", &[huge, 2, 3])]),
        (node("Tile", &["x", "s"], &["y"]), vec![int64("s", &[huge, 1])]),
        (node("Range", &["a", "b", "c"], &["y"]), vec![scalar("a", 0), scalar("b", huge), scalar("c", 1)]),
        (node("Pad", &["x", "s"], &["y"]), vec![int64("s", &[0, huge, 0, 0])]),
        (node("Resize", &["x", "", "", "s"], &["y"]), vec![int64("s", &[2, huge])]),
        (node("Gather", &["x", "i"], &["y"]), vec![onnx::Tensor { dims: vec![0, huge], ..int64("i", &[]) }]),
        (
            onnx::Node { attribute: vec![ints("shape", &[huge])], ..node("RandomUniform", &[], &["y"]) },
            vec![],
        ),
        (
            onnx::Node { attribute: vec![ints("axes", &[0; 5000])], ..node("Unsqueeze", &["x"], &["y"]) },
            vec![],
        ),
    ];
    for (node, initializers) in cases {
        let op = node.op_type.clone();
        let mut model = model(vec![node], &["y"]);
        model.graph.as_mut().unwrap().initializer = initializers;
        let Ok(imported) = from_bytes(model.encode_to_vec(), None) else { continue };
        let x = Tensor::from_slice(&[2, 3], &[1f32; 6]).unwrap();
        let run = sora_ir::evaluate(&imported.graph, &[("x", &x)]);
        assert!(run.is_err() || run.is_ok_and(|y| y[0].len() < 100), "{op}");
    }
}

#[test]
fn functions_are_inlined_with_their_attributes() {
    let reference =
        onnx::Attribute { name: "alpha".into(), ref_attr_name: "slope".into(), ..Default::default() };
    let body = onnx::Node { attribute: vec![reference], ..node("LeakyRelu", &["in"], &["inner"]) };
    let slope = onnx::Attribute { name: "slope".into(), f: Some(0.25), ..Default::default() };
    let call = onnx::Node {
        domain: "own".into(),
        name: "call".into(),
        attribute: vec![slope],
        ..node("F", &["x"], &["y"])
    };
    let mut model = model(vec![call], &["y"]);
    model.functions.push(onnx::Function {
        name: "F".into(),
        domain: "own".into(),
        input: own(&["in"]),
        output: own(&["out"]),
        node: vec![body, node("Neg", &["inner"], &["out"])],
    });
    let graph = from_bytes(model.encode_to_vec(), None).unwrap().graph;
    let x = Tensor::from_slice(&[2, 3], &[-4f32, -2.0, 0.0, 1.0, 2.0, 3.0]).unwrap();
    let y = sora_ir::evaluate(&graph, &[("x", &x)]).unwrap();
    assert_eq!(y[0].to_f32s(), [1.0, 0.5, -0.0, -1.0, -2.0, -3.0]);
    assert!(graph.find("call/inner").is_some());
}

#[test]
fn hostile_attributes_are_refused() {
    for value in [i64::MIN, -1, 0, i64::from(i32::MAX), i64::MAX] {
        for op in ["MaxPool", "AveragePool", "Conv", "ConvTranspose"] {
            for name in
                ["kernel_shape", "strides", "pads", "dilations", "group", "output_padding", "output_shape"]
            {
                let ints = vec![value; if name == "pads" { 4 } else { 2 }];
                let attribute =
                    onnx::Attribute { name: name.into(), i: Some(value), ints, ..Default::default() };
                let one = onnx::Node { attribute: vec![attribute], ..node(op, &["x", "w"], &["y"]) };
                let mut model = model(vec![one], &["y"]);
                let graph = model.graph.as_mut().unwrap();
                graph.input = vec![info("x", &[1, 2, 5, 5]), info("w", &[2, 2, 3, 3])];
                issues(&model);
            }
        }
        for op in [
            "Concat",
            "Softmax",
            "Flatten",
            "Split",
            "Gather",
            "ArgMax",
            "Unsqueeze",
            "Transpose",
            "DepthToSpace",
        ] {
            for name in ["axis", "axes", "perm", "split", "blocksize", "num_outputs"] {
                let attribute = onnx::Attribute {
                    name: name.into(),
                    i: Some(value),
                    ints: vec![value; 2],
                    ..Default::default()
                };
                let one = onnx::Node { attribute: vec![attribute], ..node(op, &["x", "x"], &["y", "z"]) };
                issues(&model(vec![one], &["y"]));
            }
        }
    }
}

#[test]
fn chains_that_double_do_not_explode() {
    for op in ["Mul", "Add", "Concat"] {
        let axis = onnx::Attribute { name: "axis".into(), i: Some(0), ..Default::default() };
        let mut nodes = vec![node("Shape", &["x"], &["s0"])];
        for i in 0..60 {
            let (from, to) = (format!("s{i}"), format!("s{}", i + 1));
            nodes.push(onnx::Node { attribute: vec![axis.clone()], ..node(op, &[&from, &from], &[&to]) });
        }
        nodes.push(node("Reshape", &["x", "s60"], &["y"]));
        let mut model = model(nodes, &["y"]);
        let shape = onnx::Shape { dim: vec![onnx::DimProto { value: None }; 3] };
        let tensor = onnx::TensorType { elem: 1, shape: Some(shape) };
        model.graph.as_mut().unwrap().input[0].ty = Some(onnx::Type { tensor: Some(tensor) });
        drop(from_bytes(model.encode_to_vec(), None));
    }
}

/// A small network with most kinds of fields.
fn sample() -> Vec<u8> {
    let mut graph = Graph::new("net");
    let shape = vec![Dim::symbol("N"), Dim::from(1i64), Dim::from(6i64), Dim::from(6i64)];
    let x = graph.input("x", TensorType { dtype: DType::F32, shape });
    let w = graph.constant("w", Tensor::from_slice(&[2, 1, 3, 3], &[0.5f32; 18]).unwrap());
    let b = graph.constant("b", Tensor::vector(&[1f32, 2.0]));
    let y = graph.op("conv", Conv::new(2), [x, w, b]).unwrap();
    let pool = MaxPool {
        kernel: vec![2, 2],
        strides: vec![2, 2],
        pads: vec![0; 4],
        dilations: vec![1; 2],
        ceil_mode: false,
    };
    let y = graph.op("pool", pool, [y]).unwrap();
    let shape = graph.constant("shape", Tensor::vector(&[0i64, -1]));
    let y = graph.op("flat", Reshape { allow_zero: false }, [y, shape]).unwrap();
    let y = graph.op("soft", Softmax { axis: -1, log: false }, [y]).unwrap();
    graph.output("y", y);
    to_bytes(&graph, &ExportOptions::default()).unwrap()
}

#[test]
fn truncation_at_every_byte_is_an_error_or_a_smaller_model() {
    let bytes = sample();
    assert!(from_bytes(bytes.clone(), None).is_ok());
    for end in 0..bytes.len() {
        // Some cuts end between two fields, so that a model remains; none may panic.
        drop(from_bytes(bytes[..end].to_vec(), None));
    }
    assert!(from_bytes(bytes[..bytes.len() / 2].to_vec(), None).is_err());
}

#[test]
fn flipped_bytes_do_not_panic() {
    let bytes = sample();
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..20_000 {
        let mut broken = bytes.clone();
        for _ in 0..rng.usize(1..=4) {
            let at = rng.usize(0..broken.len());
            broken[at] = rng.u8(..);
        }
        drop(from_bytes(broken, None));
    }
}
