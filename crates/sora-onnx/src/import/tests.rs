//! What the official cases do not have: sequences whose length is not known while the file is read, and calls of
//! functions inside of bodies.

use prost::Message;
use sora_ir::{Dim, Graph, evaluate};
use sora_tensor::{DType, Tensor};

use crate::proto::{
    AttributeProto, DimensionProto, Extent, FunctionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::{OnnxError, from_bytes, tensor};

fn own(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn node(op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let op_type = op.to_owned();
    NodeProto { op_type, input: own(inputs), output: own(outputs), attribute, ..NodeProto::default() }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), i: Some(value), ..AttributeProto::default() }
}

fn graph_of(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto { name: name.to_owned(), g: Some(Box::new(graph)), ..AttributeProto::default() }
}

/// An extent that is a name or a number.
fn info(name: &str, dtype: DType, shape: &[&str]) -> ValueInfoProto {
    let dim = |extent: &&str| {
        let value = extent.parse().map_or(Extent::Param((*extent).to_owned()), Extent::Value);
        DimensionProto { value: Some(value) }
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let tensor_type = Some(TensorTypeProto { elem_type: tensor::code_of(dtype), shape: Some(shape) });
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { tensor_type, ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

/// A name without a type.
fn untyped(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() }
}

fn graph(nodes: Vec<NodeProto>, input: Vec<ValueInfoProto>, outputs: &[&str]) -> GraphProto {
    let output = outputs.iter().map(|name| untyped(name)).collect();
    GraphProto { node: nodes, input, output, ..GraphProto::default() }
}

fn import(graph: GraphProto) -> Result<Graph, OnnxError> {
    import_with(graph, Vec::new())
}

fn opset(version: i64) -> Vec<OperatorSetIdProto> {
    vec![OperatorSetIdProto { domain: String::new(), version }]
}

fn import_with(graph: GraphProto, functions: Vec<FunctionProto>) -> Result<Graph, OnnxError> {
    let model = ModelProto {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: opset(17),
        functions,
        ..ModelProto::default()
    };
    from_bytes(model.encode_to_vec(), None).map(|imported| imported.graph)
}

fn refused(graph: GraphProto, part: &str) {
    let error = import(graph).expect_err("it is refused").to_string();
    assert!(error.contains(part), "{error}");
}

fn matrix(rows: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * 2).map(|i| i as f32).collect();
    Tensor::vector(&values).reshape(&[rows, 2]).unwrap()
}

/// `for i in range(n): list.append(x * i)`, the list used in every way.
fn appending(appended: NodeProto) -> GraphProto {
    let body = graph(
        vec![
            node("Cast", &["i"], &["scale"], vec![int("to", 1)]),
            appended,
            node("SequenceInsert", &["list", "term"], &["longer"], vec![]),
            node("Identity", &["go"], &["goes"], vec![]),
        ],
        vec![info("i", DType::I64, &[]), info("go", DType::Bool, &[]), untyped("list")],
        &["goes", "longer"],
    );
    graph(
        vec![
            node("SequenceEmpty", &[], &["empty"], vec![]),
            node("Loop", &["n", "", "empty"], &["terms"], vec![graph_of("body", body)]),
            node("ConcatFromSequence", &["terms"], &["rows"], vec![int("axis", 0)]),
            node("ConcatFromSequence", &["terms"], &["columns"], vec![int("axis", -1)]),
            node("ConcatFromSequence", &["terms"], &["stack"], vec![int("axis", 1), int("new_axis", 1)]),
            node("SequenceLength", &["terms"], &["length"], vec![]),
            node("SequenceAt", &["terms", "at"], &["one"], vec![]),
            node("SequenceErase", &["terms"], &["fewer"], vec![]),
            node("SequenceInsert", &["fewer", "x"], &["other"], vec![]),
            node("ConcatFromSequence", &["other"], &["others"], vec![int("axis", 0)]),
        ],
        vec![info("x", DType::F32, &["N", "2"]), info("n", DType::I64, &[]), info("at", DType::I64, &[])],
        &["rows", "columns", "stack", "length", "one", "others"],
    )
}

#[test]
fn a_loop_that_appends_gives_a_stack() {
    let graph = import(appending(node("Mul", &["x", "scale"], &["term"], vec![]))).unwrap();
    let (x, n, at) = (matrix(3), Tensor::scalar(2i64), Tensor::scalar(-1i64));
    let outputs = evaluate(&graph, &[("x", &x), ("n", &n), ("at", &at)]).unwrap();
    let found: Vec<(Vec<usize>, Vec<f64>)> =
        outputs.iter().map(|t| (t.shape().to_vec(), t.to_f64s())).collect();
    let (zeros, ones) = (vec![0.0; 6], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(found[0], (vec![6, 2], [zeros.clone(), ones.clone()].concat()));
    let columns = vec![0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 2.0, 3.0, 0.0, 0.0, 4.0, 5.0];
    assert_eq!(found[1], (vec![3, 4], columns.clone()));
    assert_eq!(found[2], (vec![3, 2, 2], columns));
    assert_eq!(found[3], (vec![], vec![2.0]));
    assert_eq!(found[4], (vec![3, 2], ones.clone()));
    assert_eq!(found[5], (vec![6, 2], [zeros, ones].concat()));
}

#[test]
fn tensors_that_grow_are_not_stacked() {
    let ends = node("Slice", &["x", "from", "to"], &["term"], vec![]);
    let mut model = appending(ends);
    let body = model.node[1].attribute[0].g.as_mut().unwrap();
    body.node.insert(0, node("Unsqueeze", &["i", "axis"], &["to"], vec![]));
    model.input.extend([info("from", DType::I64, &["1"]), info("axis", DType::I64, &["1"])]);
    model.initializer.push(crate::proto::TensorProto {
        dims: vec![1],
        data_type: tensor::code_of(DType::I64),
        int64_data: vec![0],
        name: "axis".to_owned(),
        ..Default::default()
    });
    refused(model, "may differ in shape between iterations");
}

#[test]
fn parts_of_an_unknown_number_are_mapped_by_a_scan() {
    let body = graph(
        vec![node("Add", &["part", "bias"], &["sum"], vec![])],
        vec![info("part", DType::F32, &["2"]), info("bias", DType::F32, &["2"])],
        &["sum"],
    );
    let model = graph(
        vec![
            node("SplitToSequence", &["x"], &["parts"], vec![int("keepdims", 0)]),
            node("SequenceMap", &["parts", "b"], &["sums"], vec![graph_of("body", body)]),
            node("ConcatFromSequence", &["sums"], &["y"], vec![int("axis", 0), int("new_axis", 1)]),
        ],
        vec![info("x", DType::F32, &["N", "2"]), info("b", DType::F32, &["2"])],
        &["y"],
    );
    let graph = import(model).unwrap();
    let outputs = evaluate(&graph, &[("x", &matrix(2)), ("b", &Tensor::vector(&[1f32, 10.0]))]).unwrap();
    assert_eq!((outputs[0].shape(), outputs[0].to_f64s()), (&[2, 2][..], vec![1.0, 11.0, 3.0, 13.0]));
    let y = graph.outputs()[0].value;
    assert_eq!(graph.ty(y).shape[0], Dim::symbol("N"));
}

#[test]
fn what_cannot_be_resolved_says_why() {
    let uneven = |nodes: Vec<NodeProto>, outputs: &[&str]| {
        let inputs = vec![
            info("x", DType::F32, &["1", "2"]),
            info("y", DType::F32, &["3", "2"]),
            info("at", DType::I64, &[]),
            info("flag", DType::Bool, &[]),
        ];
        graph(nodes, inputs, outputs)
    };
    let pair = node("SequenceConstruct", &["x", "y"], &["pair"], vec![]);
    let at = node("SequenceAt", &["pair", "at"], &["z"], vec![]);
    refused(uneven(vec![pair.clone(), at], &["z"]), "the elements differ in shape");
    let relu = node("Relu", &["pair"], &["z"], vec![]);
    refused(uneven(vec![pair, relu], &["z"]), "is a sequence, not a tensor");
    let branch =
        |inputs: &[&str]| graph(vec![node("SequenceConstruct", inputs, &["s"], vec![])], vec![], &["s"]);
    let branches =
        vec![graph_of("then_branch", branch(&["x"])), graph_of("else_branch", branch(&["x", "y"]))];
    let fork = node("If", &["flag"], &["z"], branches);
    refused(uneven(vec![fork], &["z"]), "a sequence of 1 in one branch and a sequence of 2 in the other");
    let absent =
        vec![node("Optional", &[], &["none"], vec![]), node("OptionalGetElement", &["none"], &["z"], vec![])];
    refused(uneven(absent, &["z"]), "missing or absent");
}

fn call(name: &str, overload: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let (domain, overload) = ("own".to_owned(), overload.to_owned());
    NodeProto { domain, overload, ..node(name, inputs, outputs, vec![]) }
}

fn function(name: &str, overload: &str, version: i64, nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: name.to_owned(),
        domain: "own".to_owned(),
        overload: overload.to_owned(),
        input: own(&["a"]),
        output: own(&["b"]),
        node: nodes,
        opset_import: opset(version),
        ..FunctionProto::default()
    }
}

/// A branch calls a function, whose branch calls the other overload of a second one, which is written in an old opset.
#[test]
fn functions_are_called_in_bodies_by_overload_and_in_their_own_opset() {
    let ints = |name: &str, values: &[i64]| AttributeProto {
        name: name.to_owned(),
        ints: values.to_vec(),
        ..AttributeProto::default()
    };
    // Axes are an attribute in opset 11.
    let sum = |axis| node("ReduceSum", &["a"], &["b"], vec![ints("axes", &[axis]), int("keepdims", 1)]);
    let branch = |nodes, outputs: &[&str]| graph(nodes, vec![], outputs);
    let fork = |then: GraphProto, other: GraphProto| {
        vec![graph_of("then_branch", then), graph_of("else_branch", other)]
    };
    let inner = fork(
        branch(vec![call("G", "rows", &["a"], &["s"]), node("Add", &["s", "shift"], &["t"], vec![])], &["t"]),
        branch(vec![call("G", "columns", &["a"], &["t"])], &["t"]),
    );
    let functions = vec![
        function("G", "rows", 11, vec![sum(0)]),
        function("G", "columns", 11, vec![sum(1)]),
        function(
            "F",
            "",
            17,
            vec![
                node("ReduceMax", &["a"], &["max"], vec![int("keepdims", 0)]),
                node("Neg", &["a"], &["shift"], vec![]),
                node("Cast", &["max"], &["flag"], vec![int("to", 9)]),
                node("If", &["flag"], &["b"], inner),
            ],
        ),
    ];
    let outer = fork(
        branch(vec![call("F", "", &["x"], &["z"])], &["z"]),
        branch(vec![node("Identity", &["x"], &["z"], vec![])], &["z"]),
    );
    let model = graph(
        vec![node("If", &["go"], &["y"], outer)],
        vec![info("go", DType::Bool, &[]), info("x", DType::F32, &["2", "2"])],
        &["y"],
    );
    let graph = import_with(model, functions).unwrap();
    let run = |x: &[f32; 4]| {
        let x = Tensor::vector(x).reshape(&[2, 2]).unwrap();
        let go = Tensor::scalar(sora_tensor::Bool::from(true));
        let y = evaluate(&graph, &[("go", &go), ("x", &x)]).unwrap().remove(0);
        (y.shape().to_vec(), y.to_f64s())
    };
    assert_eq!(run(&[1.0, 2.0, 3.0, 4.0]), (vec![2, 2], vec![3.0, 4.0, 1.0, 2.0]));
    assert_eq!(run(&[-1.0, -2.0, -3.0, 0.0]), (vec![2, 1], vec![-3.0, -3.0]));
}
