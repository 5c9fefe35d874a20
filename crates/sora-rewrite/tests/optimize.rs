//! Whole small networks before and after, in text form.

use sora_ir::{Graph, text};
use sora_rewrite::{Options, Report, optimize};

/// Optimizes the network that `text` describes; prints it without the elements of larger constants.
fn optimized(source: &str) -> (Graph, Report, String) {
    let mut graph = text::parse(source).unwrap();
    let report = optimize(&mut graph, &Options { check: true, ..Options::default() }).unwrap();
    let printed = text::print_elided(&graph, 4);
    (graph, report, printed)
}

/// A convolution, a batch normalization and an activation in three parts, as PyTorch exports them.
const CONV_BATCH_NORM: &str = r#"graph "conv-bn"
input %0 "image" f32[N,1,4,4]
const %1 "conv.weight" f32[2,1,1,1] = [1,2]
const %2 "bn.weight" f32[2] = [2,4]
const %3 "bn.bias" f32[2] = [1,1]
const %4 "bn.mean" f32[2] = [0.5,0]
const %5 "bn.var" f32[2] = [1,4]
const %6 "zero" f32[] = [0]
const %7 "six" f32[] = [6]
%8 "/conv/out" f32[N,2,4,4] = Conv "/conv" (%0, %1) {"strides":[1,1],"pads":[0,0,0,0],"dilations":[1,1],"group":1}
%9 "/bn/out" f32[N,2,4,4] = BatchNorm "/bn" (%8, %2, %3, %4, %5) {"epsilon":0}
%10 "/max/out" f32[N,2,4,4] = Binary "/max" (%9, %6) {"kind":"Max"}
%11 "/min/out" f32[N,2,4,4] = Binary "/min" (%10, %7) {"kind":"Min"}
output "y" %11
"#;

#[test]
fn batch_norm_goes_into_the_convolution_which_keeps_its_name() {
    let (_, report, printed) = optimized(CONV_BATCH_NORM);
    insta::assert_snapshot!(printed, @r#"
    graph "conv-bn"
    input %0 "image" f32[N,1,4,4]
    const %1 "conv.weight" f32[2,1,1,1] = [2,4]
    const %2 "/conv.bias" f32[2] = [0,1]
    %3 "/bn/out" f32[N,2,4,4] = Conv "/conv" (%0, %1, %2) {"strides":[1,1],"pads":[0,0,0,0],"dilations":[1,1],"group":1}
    %4 "/min/out" f32[N,2,4,4] = Activation "/min" (%3) {"kind":"Clip","alpha":0.0,"beta":6.0}
    output "y" %4
    "#);
    insta::assert_snapshot!(report, @"
         2 × minimum_to_clip
         1 × batch_norm_to_affine
         1 × clip_to_relu
         1 × fold_scale_into_weights
         1 × fold_shift_into_bias
         1 × merge_clips

    batch_norm_to_affine at `/bn`: BatchNorm → Mul, Add
    fold_scale_into_weights at `/bn.mul`: Conv, Mul → Conv
    fold_shift_into_bias at `/bn`: Conv, Add → Conv
    minimum_to_clip at `/max`: Max → Clip
    clip_to_relu at `/max`: Clip → Relu
    minimum_to_clip at `/min`: Min → Clip
    merge_clips at `/min`: Relu, Clip → Clip
    ");
}

/// A network in NHWC whose convolutions are NCHW, flattened in NHWC order, as Keras exports it.
const CHANNELS_LAST: &str = r#"graph "nhwc"
input %0 "image" f32[N,4,4,1]
const %1 "conv1.weight" f32[2,1,3,3] = [1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9]
const %2 "conv1.bias" f32[2] = [1,-1]
const %3 "conv2.weight" f32[2,2,1,1] = [1,2,3,4]
const %4 "target" i64[2] = [-1,8]
const %5 "dense.weight" f32[8,2] = [0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]
const %6 "dense.bias" f32[2] = [1,2]
%7 "nchw1" f32[N,1,4,4] = Transpose "to1" (%0) {"perm":[0,3,1,2]}
%8 "c1" f32[N,2,2,2] = Conv "conv1" (%7, %1) {"strides":[1,1],"pads":[0,0,0,0],"dilations":[1,1],"group":1}
%9 "nhwc1" f32[N,2,2,2] = Transpose "from1" (%8) {"perm":[0,2,3,1]}
%10 "b1" f32[N,2,2,2] = Binary "bias1" (%9, %2) {"kind":"Add"}
%11 "r1" f32[N,2,2,2] = Unary "relu1" (%10) {"kind":"Relu"}
%12 "nchw2" f32[N,2,2,2] = Transpose "to2" (%11) {"perm":[0,3,1,2]}
%13 "c2" f32[N,2,2,2] = Conv "conv2" (%12, %3) {"strides":[1,1],"pads":[0,0,0,0],"dilations":[1,1],"group":1}
%14 "nhwc2" f32[N,2,2,2] = Transpose "from2" (%13) {"perm":[0,2,3,1]}
%15 "r2" f32[N,2,2,2] = Unary "relu2" (%14) {"kind":"Relu"}
%16 "flat" f32[N,8] = Reshape "flatten" (%15, %4) {"allow_zero":false}
%17 "product" f32[N,2] = MatMul "dense" (%16, %5) {}
%18 "logits" f32[N,2] = Binary "dense.add" (%17, %6) {"kind":"Add"}
output "logits" %18
"#;

#[test]
fn transposes_of_a_channels_last_network_vanish() {
    let (graph, _, printed) = optimized(CHANNELS_LAST);
    assert!(graph.nodes().all(|(_, node)| node.op.name() != "Transpose"), "{printed}");
    insta::assert_snapshot!(printed, @r#"
    graph "nhwc"
    input %0 "image" f32[N,4,4,1]
    const %1 "to1.shape" i64[4] = [0,1,4,4]
    const %3 "conv1.weight" f32[2,1,3,3] = …
    const %4 "conv1.bias" f32[2] = [1,-1]
    const %7 "conv2.weight" f32[2,2,1,1] = [1,2,3,4]
    const %10 "flatten.shape" i64[2] = [0,8]
    const %12 "dense.weight" f32[8,2] = …
    const %14 "dense.bias" f32[2] = [1,2]
    %2 "nchw1" f32[N,1,4,4] = Reshape "to1" (%0, %1) {"allow_zero":false}
    %5 "bias1" f32[N,2,2,2] = Conv "conv1" (%2, %3, %4) {"strides":[1,1],"pads":[0,0,0,0],"dilations":[1,1],"group":1}
    %6 "relu1" f32[N,2,2,2] = Unary "relu1" (%5) {"kind":"Relu"}
    %8 "c2" f32[N,2,2,2] = Conv "conv2" (%6, %7) {"strides":[1,1],"pads":[0,0,0,0],"dilations":[1,1],"group":1}
    %9 "relu2" f32[N,2,2,2] = Unary "relu2" (%8) {"kind":"Relu"}
    %11 "flatten" f32[N,8] = Reshape "flatten" (%9, %10) {"allow_zero":false}
    %13 "product" f32[N,2] = MatMul "dense" (%11, %12) {}
    %15 "logits" f32[N,2] = Binary "dense.add" (%13, %14) {"kind":"Add"}
    output "logits" %15
    "#);
}

/// Every node reads one of two inputs through layers that can be pushed, merged and folded: thousands of changes.
#[test]
fn a_thousand_layers_settle() {
    use sora_ir::TensorType;
    use sora_ir::ops::{Binary, BinaryKind, Transpose, Unary, UnaryKind};
    use sora_tensor::{DType, Tensor};

    let mut graph = Graph::new("deep");
    let mut x = graph.input("x", TensorType::new(DType::F32, [2usize, 3]));
    for i in 0..1000 {
        let c = graph.constant(&format!("c{i}"), Tensor::scalar(i as f32));
        x = graph.op(&format!("t{i}"), Transpose { perm: vec![1, 0] }, [x]).unwrap();
        x = graph.op(&format!("r{i}"), Unary { kind: UnaryKind::Relu }, [x]).unwrap();
        x = graph.op(&format!("a{i}"), Binary { kind: BinaryKind::Add }, [x, c]).unwrap();
    }
    graph.output("y", x);
    optimize(&mut graph, &Options { check: false, ..Options::default() }).unwrap();
    sora_ir::verify(&graph).unwrap();
    // x + 0 goes, and Relu of a value that Relu made and to which nothing negative was added stays as it is.
    assert!(graph.nodes().all(|(_, node)| node.op.name() != "Transpose"));
    assert_eq!(graph.nodes().count(), 2000 - 2);
}
