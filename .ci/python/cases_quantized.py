"""Models whose weights are stored in a special way: quantized by onnxruntime's own tools, half precision, external."""

import pathlib
import tempfile

import numpy as np
import onnx
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from net import Net


def small_cnn(name):
    """A float CNN with a residual and a MatMul head."""
    n = Net(name)
    x = n.image(4, 3, 16, 16)
    x = n.op("Relu", n.conv(x, 3, 16, 3, pads=[1] * 4, strides=[2, 2]))
    y = n.op("Relu", n.conv(x, 16, 16, 3, pads=[1] * 4, group=16))
    y = n.conv(y, 16, 16, 1)
    x = n.op("Relu", n.op("Add", x, y))
    x = n.op("Relu", n.conv(n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 16, 24, 3))
    x = n.op("Reshape", n.op("GlobalAveragePool", x), n.ints(0, -1))
    n.op("Add", n.op("MatMul", x, n.weight(24, 10, fan_in=24)), n.bias(10), out="logits")
    n.output("logits", "N", 10)
    return n


class Noise(CalibrationDataReader):
    """Sixteen batches of the same distribution as the network's input."""

    def __init__(self, net):
        ((name, like),) = net.feeds.items()
        self.batches = iter([{name: net.noise(*like.shape)} for _ in range(16)])

    def get_next(self):
        return next(self.batches, None)


def through_files(net, quantize):
    """`net` with the model that quantize(source path, target path) makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = (str(pathlib.Path(folder, name)) for name in ("float.onnx", "quantized.onnx"))
        onnx.save(net.model(), source)
        quantize(source, target)
        model = onnx.load(target)
    net.model = lambda: model
    return net


# Weights have 7 bits: on processors without a dot-product instruction onnxruntime saturates sums of two products.


def static(name, quant_format):
    net = small_cnn(name)
    return through_files(net, lambda source, target: quantize_static(
        source, target, Noise(net), quant_format=quant_format, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=True))


def quantized_qdq():
    """QuantizeLinear/DequantizeLinear around float operators; u8 activations, i8 weights per channel."""
    return static("quantized_qdq", QuantFormat.QDQ)


def quantized_qoperator():
    """The same as QLinear operators, some of them in the domain com.microsoft."""
    return static("quantized_qoperator", QuantFormat.QOperator)


def quantized_dynamic():
    """Activations quantized at run time: DynamicQuantizeLinear, MatMulInteger."""
    n = Net("quantized_dynamic")
    x = n.image(3, 5, 32)
    x = n.op("Relu", n.op("Add", n.op("MatMul", x, n.weight(32, 48, fan_in=32)), n.bias(48)))
    n.op("Add", n.op("MatMul", x, n.weight(48, 8, fan_in=48)), n.bias(8), out="logits")
    n.output("logits", "N", 5, 8)
    return through_files(n, lambda source, target: quantize_dynamic(
        source, target, weight_type=QuantType.QInt8, reduce_range=True))


def quantized_dynamic_lstm():
    """An LSTM with one sequence, whose input and state are quantized at run time: DynamicQuantizeLSTM."""
    n = Net("quantized_dynamic_lstm")
    x = n.op("Transpose", n.image(1, 9, 16), perm=[1, 0, 2])
    w, r = (n.const(n.noise(1, 4 * 24, width, scale=0.3), "weight") for width in (16, 24))
    y = n.op("LSTM", x, w, r, n.const(n.noise(1, 8 * 24, scale=0.1), "bias"), hidden_size=24)
    n.op("Squeeze", y, n.ints(1), out="states")
    n.output("states", 9, "N", 24)
    return through_files(n, lambda source, target: quantize_dynamic(
        source, target, per_channel=True, weight_type=QuantType.QInt8, reduce_range=True))


def float16_weights():
    """Weights stored in half precision, cast to float before use."""
    n = Net("float16_weights")
    stored = lambda *shape: n.const(n.noise(*shape, scale=0.3).astype(np.float16), "half")
    half = lambda *shape: n.op("Cast", stored(*shape), to=TensorProto.FLOAT)
    x = n.image(2, 3, 10, 10)
    x = n.op("Relu", n.op("Conv", x, half(8, 3, 3, 3), half(8), kernel_shape=[3, 3], strides=[2, 2]))
    x = n.op("Flatten", x)
    n.op("Gemm", x, half(6, 128), half(6), transB=1, out="logits")
    n.output("logits", "N", 6)
    return n


def external_data():
    """Large tensors in a file beside the model, small ones inside it."""
    n = small_cnn("external_data")
    n.external = True
    return n


CASES = [quantized_qdq, quantized_qoperator, quantized_dynamic, quantized_dynamic_lstm, float16_weights, external_data]
