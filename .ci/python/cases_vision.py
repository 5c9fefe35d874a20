"""Convolutional and fully connected networks in the shapes that exporters give them."""

import numpy as np
from onnx import TensorProto

from net import Net


def resnet():
    """Two basic blocks, the second one strided with a projection; batch norms not folded."""
    n = Net("resnet")
    x = n.image(2, 3, 32, 32)
    x = n.op("Relu", n.batch_norm(n.conv(x, 3, 16, 7, bias=False, strides=[2, 2], pads=[3] * 4), 16, epsilon=1e-5))
    x = n.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)

    def block(x, cin, cout, stride):
        y = n.conv(x, cin, cout, 3, bias=False, strides=[stride] * 2, pads=[1] * 4)
        y = n.op("Relu", n.batch_norm(y, cout))
        y = n.batch_norm(n.conv(y, cout, cout, 3, bias=False, pads=[1] * 4), cout, epsilon=1e-3)
        if stride != 1:
            x = n.batch_norm(n.conv(x, cin, cout, 1, bias=False, strides=[stride] * 2), cout)
        return n.op("Relu", n.op("Add", y, x))

    x = block(block(x, 16, 16, 1), 16, 32, 2)
    x = n.op("Flatten", n.op("GlobalAveragePool", x), axis=1)
    n.op("Gemm", x, n.weight(10, 32), n.bias(10), transB=1, out="logits")
    n.output("logits", "N", 10)
    return n


def mobilenet():
    """Inverted residuals: depthwise convolutions, ReLU6 as Clip, hard swish in two forms, squeeze-excite."""
    n = Net("mobilenet")
    zero, three, six = n.scalar(0), n.scalar(3), n.scalar(6)
    x = n.image(2, 3, 24, 24)
    x = n.op("HardSwish", n.batch_norm(n.conv(x, 3, 8, 3, bias=False, strides=[2, 2], pads=[1] * 4), 8))

    def excite(x, c):
        s = n.op("Relu", n.conv(n.op("GlobalAveragePool", x), c, c // 4, 1))
        return n.op("Mul", x, n.op("HardSigmoid", n.conv(s, c // 4, c, 1), alpha=1 / 6, beta=0.5))

    def spelled_hard_swish(x):
        return n.op("Div", n.op("Mul", x, n.op("Clip", n.op("Add", x, three), zero, six)), six)

    def inverted(x, c, expand, kernel, activation):
        y = activation(n.batch_norm(n.conv(x, c, expand, 1, bias=False), expand))
        y = n.conv(y, expand, expand, kernel, group=expand, bias=False, pads=[kernel // 2] * 4)
        y = excite(activation(n.batch_norm(y, expand)), expand)
        return n.op("Add", x, n.batch_norm(n.conv(y, expand, c, 1, bias=False), c))

    x = inverted(x, 8, 24, 3, lambda v: n.op("Clip", v, zero, six))
    x = inverted(x, 8, 32, 5, lambda v: n.op("HardSwish", v))
    x = inverted(x, 8, 16, 3, spelled_hard_swish)
    x = n.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    n.op("Gemm", x, n.weight(7, 8), n.bias(7), transB=1, out="logits")
    n.output("logits", "N", 7)
    return n


def conv_variants():
    """Dilated, grouped, strided, asymmetrically padded, and the auto_pad forms; odd sizes on purpose."""
    n = Net("conv_variants")
    x = n.image(2, 6, 17, 14)
    forms = {
        "dilated": dict(kernel=3, dilations=[2, 3], pads=[2, 3, 2, 3]),
        "grouped": dict(kernel=3, group=3, pads=[1] * 4),
        "asymmetric": dict(kernel=(4, 3), strides=[2, 1], pads=[0, 2, 3, 1]),
        "same_upper": dict(kernel=(4, 3), strides=[2, 3], auto_pad="SAME_UPPER"),
        "same_lower": dict(kernel=(4, 3), strides=[2, 3], auto_pad="SAME_LOWER"),
        "valid": dict(kernel=(5, 2), strides=[3, 2], auto_pad="VALID"),
        "depth_multiplier": dict(kernel=3, group=6, strides=[2, 2], pads=[1] * 4),
        "everything": dict(kernel=(3, 2), group=2, strides=[2, 3], dilations=[3, 2], pads=[4, 0, 1, 3], bias=False),
    }
    for name, form in forms.items():
        n.op("Relu", n.conv(x, 6, 12, **form), out=name)
        n.output(name, "N", 12, None, None)
    return n


def conv1d():
    """A waveform classifier: strided and dilated 1-d convolutions, PRelu, LeakyRelu, 1-d pooling."""
    n = Net("conv1d")
    x = n.image(3, 1, 200)
    x = n.op("PRelu", n.conv(x, 1, 8, [16], strides=[4], pads=[7, 8]), n.const(n.noise(8, 1, scale=0.3)))
    x = n.op("MaxPool", x, kernel_shape=[3], strides=[2])
    x = n.op("LeakyRelu", n.batch_norm(n.conv(x, 8, 16, [3], dilations=[2], pads=[2, 2]), 16), alpha=0.2)
    x = n.op("AveragePool", x, kernel_shape=[4], strides=[4], pads=[1, 2])
    x = n.op("Flatten", n.op("GlobalMaxPool", n.op("Elu", n.conv(x, 16, 16, [3], group=4))))
    n.op("LogSoftmax", n.op("Gemm", x, n.weight(5, 16), n.bias(5), transB=1), axis=-1, out="log_probabilities")
    n.output("log_probabilities", "N", 5)
    return n


def conv3d():
    """A clip of a video: 3-d convolution and pooling."""
    n = Net("conv3d")
    x = n.image(2, 2, 6, 10, 9)
    x = n.op("Relu", n.conv(x, 2, 6, [3, 3, 3], pads=[1] * 6, strides=[1, 2, 2]))
    x = n.op("MaxPool", x, kernel_shape=[2, 2, 2], strides=[2, 2, 2])
    x = n.op("Flatten", n.op("GlobalAveragePool", n.conv(x, 6, 8, [1, 2, 1])))
    n.op("Gemm", x, n.weight(8, 4), out="logits")
    n.output("logits", "N", 4)
    return n


def pooling():
    """Both divisors of average pooling, ceil_mode, dilation, auto_pad and global pools, one output each.

    ceil_mode together with count_include_pad is left out: where a window overhangs the padding, onnxruntime
    divides by the whole kernel and the ONNX specification by the part inside the padding.
    """
    n = Net("pooling", opset=19)
    x = n.image(2, 3, 13, 11)
    shape = dict(kernel_shape=[3, 4], strides=[2, 3])
    forms = {
        "average": ("AveragePool", dict(pads=[1, 2, 1, 1])),
        "average_with_pad": ("AveragePool", dict(pads=[1, 2, 1, 1], count_include_pad=1)),
        "average_ceil": ("AveragePool", dict(pads=[1, 1, 0, 1], ceil_mode=1)),
        "average_same": ("AveragePool", dict(auto_pad="SAME_UPPER")),
        "max": ("MaxPool", dict(pads=[1, 2, 1, 1])),
        "max_ceil": ("MaxPool", dict(pads=[1, 1, 0, 1], ceil_mode=1)),
        "max_dilated": ("MaxPool", dict(dilations=[2, 1])),
        "max_same": ("MaxPool", dict(auto_pad="SAME_LOWER")),
    }
    for name, (kind, form) in forms.items():
        n.op(kind, x, out=name, **shape, **form)
        n.output(name, "N", 3, None, None)
    n.op("Concat", n.op("GlobalAveragePool", x), n.op("GlobalMaxPool", x), axis=1, out="global")
    n.output("global", "N", 6, 1, 1)
    return n


def mlp():
    """Gemm in its forms (transposes, alpha, beta, broadcast or absent bias) between smooth activations."""
    n = Net("mlp")
    x = n.image(4, 20)
    x = n.op("Tanh", n.op("Gemm", x, n.weight(32, 20), n.bias(32), transB=1, alpha=0.5, beta=2.0))
    x = n.op("Sigmoid", n.op("Gemm", x, n.weight(32, 24), n.const(n.noise(1, 24)), beta=0.25))
    x = n.op("Selu", n.op("Gemm", x, n.weight(16, 24), transB=1, alpha=1.5))
    x = n.op("Softplus", n.op("Gemm", x, n.weight(16, 16), n.scalar(0.3), transB=1))
    x = n.op("Add", n.op("MatMul", x, n.weight(16, 9)), n.bias(9))
    n.op("Softmax", x, axis=-1, out="probabilities")
    left = n.op("Gemm", x, x, n.scalar(0.1), transA=1, alpha=0.1, out="gram")
    n.op("ArgMax", left, axis=1, keepdims=0, out="winner")
    n.output("probabilities", "N", 9)
    n.output("gram", 9, 9)
    n.output("winner", 9, dtype=TensorProto.INT64)
    return n


def nhwc():
    """What a Keras export looks like: channels-last input, transposes around convolutions, a Reshape to [-1, K]."""
    n = Net("nhwc", opset=13)
    x = n.op("Transpose", n.image(3, 12, 12, 2), perm=[0, 3, 1, 2])
    x = n.op("MaxPool", n.op("Relu", n.conv(x, 2, 8, 3)), kernel_shape=[2, 2], strides=[2, 2], auto_pad="VALID")
    x = n.op("Transpose", x, perm=[0, 2, 3, 1])
    x = n.op("Transpose", n.op("Mul", x, n.const(n.noise(8))), perm=[0, 3, 1, 2])
    x = n.op("Transpose", n.op("Relu", n.conv(x, 8, 8, 3, auto_pad="SAME_UPPER", strides=[2, 2])), perm=[0, 2, 3, 1])
    x = n.op("Reshape", x, n.ints(-1, 72))
    x = n.op("Add", n.op("MatMul", x, n.weight(72, 6, fan_in=72)), n.bias(6))
    n.op("Softmax", x, out="probabilities")
    n.output("probabilities", "N", 6)
    return n


def dynamic_flatten():
    """Flattening as PyTorch writes x.view(x.size(0), -1): Shape, Gather, Unsqueeze, Concat, Reshape."""
    n = Net("dynamic_flatten", opset=13)
    x = n.input("x", ["N", 3, "H", "W"], n.noise(3, 3, 9, 7))
    x = n.op("Relu", n.conv(x, 3, 4, 3))
    x = n.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    rows = n.op("Unsqueeze", n.op("Gather", n.op("Shape", x), n.const(np.int64(0)), axis=0), n.ints(0))
    x = n.op("Reshape", x, n.op("Concat", rows, n.ints(-1), axis=0))
    n.op("Gemm", x, n.weight(5, 24), n.bias(5), transB=1, out="logits")
    n.output("logits", "N", 5)
    return n


def opset7():
    """An old export: initializers listed as inputs, parameters as attributes (Clip, Pad, Slice), 2-D Softmax."""
    n = Net("opset7", opset=7)
    x = n.image(2, 3, 12, 12)
    x = n.op("Pad", x, pads=[0, 0, 1, 2, 0, 0, 1, 0], mode="constant", value=0.5)
    x = n.op("Clip", n.batch_norm(n.conv(x, 3, 8, 3), 8), min=0.0, max=6.0)
    x = n.op("LRN", x, size=3, alpha=1e-2, beta=0.75, bias=1.0)
    x = n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    left = n.op("Slice", x, axes=[1], starts=[0], ends=[4])
    right = n.op("Slice", x, axes=[1], starts=[-4], ends=[9999])
    x = n.op("Dropout", n.op("Sum", left, right, n.op("Max", left, right)), ratio=0.5)
    n.op("Softmax", x, axis=1, out="attention")
    x = n.op("Squeeze", n.op("GlobalAveragePool", x), axes=[2, 3])
    n.op("Gemm", x, n.weight(4, 5), n.bias(5), out="logits")
    n.op("Unsqueeze", "logits", axes=[0, 2], out="wide")
    n.output("attention", "N", 4, None, None)
    n.output("logits", "N", 5)
    n.output("wide", 1, "N", 1, 5)
    return n


CASES = [resnet, mobilenet, conv_variants, conv1d, conv3d, pooling, mlp, nhwc, dynamic_flatten, opset7]
