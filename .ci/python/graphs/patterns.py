"""Groups of nodes as exporters write them, which runtimes fuse."""

import numpy as np
from onnx import TensorProto

from .layers import conv, window
from .movement import shuffle


def activation(g, x):
    kind = g.pick(["Relu", "Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "silu", "hard_swish", "none"])
    if kind == "Clip":
        return g.op("Clip", x, g.scalar(0), g.scalar(6))
    if kind == "silu":
        return g.op("Mul", x, g.op("Sigmoid", x))
    if kind == "hard_swish":
        gate = g.op("Clip", g.op("Add", x, g.scalar(3)), g.scalar(0), g.scalar(6))
        return g.op("Div", g.op("Mul", x, gate), g.scalar(6))
    return x if kind == "none" else g.op(kind, x)


def conv_block(g):
    y = conv(g)
    if g.chance(0.6):
        y = g.batch_norm(y, g.dims(y)[1])
    activation(g, y)


def residual(g):
    """Two convolutions that keep the shape, and what went in."""
    x = g.image()
    channels = g.dims(x)[1]
    middle = g.pick([channels, 2 * channels, 4])
    y = activation(g, g.conv(x, channels, middle, g.pick([1, 3]), auto_pad="SAME_UPPER"))
    y = g.conv(y, middle, channels, 3, pads=[1] * 4, bias=g.chance(0.5))
    if g.chance(0.5):
        y = g.batch_norm(y, channels)
    other = x if g.chance(0.7) else activation(g, x)
    activation(g, g.op("Add", *((y, other) if g.chance(0.5) else (other, y))))


def separable(g):
    x = g.image()
    channels, *dims = g.dims(x)[1:]
    y = g.conv(x, channels, channels, 3, group=channels, strides=[g.size(1, 2)] * 2, pads=[1] * 4)
    y = activation(g, y)
    g.conv(y, channels, g.size(1, 16), 1)


def padded_conv(g):
    x = g.image()
    pads = g.ints(0, 0, g.size(0, 2), 1, 0, 0, 1, g.size(0, 2))
    conv(g, g.op("Pad", x, pads))


def squeeze_excite(g):
    x = g.image()
    c = g.dims(x)[1]
    y = g.op("GlobalAveragePool", x) if g.chance(0.5) else g.with_axes("ReduceMean", x, [2, 3], since=18, keepdims=1)
    y = g.op("Relu", g.conv(y, c, 3, 1))
    gate = g.op(g.pick(["Sigmoid", "HardSigmoid"]), g.conv(y, 3, c, 1))
    g.op("Mul", *((x, gate) if g.chance(0.5) else (gate, x)))


def channels_last(g):
    """A convolution between transpositions, as converters from NHWC leave it."""
    draw = lambda: [g.batch, g.size(3, 8), g.size(3, 8), g.size(1, 9)]
    x = g.value([4], where=lambda a: a.shape[1] > 2 and a.shape[2] > 2, shape=draw)
    y = conv(g, g.op("Transpose", x, perm=[0, 3, 1, 2]))
    y = activation(g, y)
    y = g.op("Transpose", y, perm=[0, 2, 3, 1])
    g.op("Add", y, g.const(g.noise(g.dims(y)[-1])))


def gelu(g):
    x = g.value(range(1, 5))
    if g.chance(0.5):
        half, erf = g.scalar(0.5), g.op("Erf", g.op("Div", x, g.scalar(np.sqrt(2.0))))
        g.op("Mul", g.op("Mul", x, half), g.op("Add", erf, g.scalar(1)))
    else:
        cube = g.op("Pow", x, g.scalar(3)) if g.chance(0.5) else g.op("Mul", g.op("Mul", x, x), x)
        inner = g.op("Mul", g.op("Add", x, g.op("Mul", cube, g.scalar(0.044715))), g.scalar(np.sqrt(2 / np.pi)))
        g.op("Mul", g.op("Mul", g.scalar(0.5), x), g.op("Add", g.op("Tanh", inner), g.scalar(1)))


def layer_norm(g):
    """Spelled out; sometimes without the mean, sometimes the variance another way."""
    x = g.value([2, 3, 4], where=lambda a: a.shape[-1] > 2)
    mean = lambda v: g.with_axes("ReduceMean", v, [-1], since=18, keepdims=1)
    centred = g.op("Sub", x, mean(x)) if g.chance(0.8) else x
    square = g.op("Pow", centred, g.scalar(2)) if g.chance(0.6) else g.op("Mul", centred, centred)
    deviation = g.op("Sqrt", g.op("Add", mean(square), g.scalar(g.pick([1e-5, 1e-2, 1e-1]))))
    y = g.op("Div", centred, deviation) if g.chance(0.7) else g.op("Mul", centred, g.op("Reciprocal", deviation))
    width = g.dims(x)[-1]
    if g.chance(0.8):
        y = g.op("Mul", y, g.const(1 + g.noise(width, scale=0.3)))
    if g.chance(0.8):
        g.op("Add", y, g.const(g.noise(width)))


def attention(g):
    """Scaled products of heads, with or without a mask."""
    heads, depth = g.pick([1, 2, 3]), g.pick([2, 4, 5])
    width = heads * depth
    x = g.value([3], where=lambda a: a.size < 800, shape=lambda: [g.batch, g.size(1, 6), g.size(2, 8)])
    def split(name):
        y = g.op("MatMul", x, g.weight(g.dims(x)[-1], width))
        if g.chance(0.5):
            y = g.op("Add", y, g.bias(width))
        y = g.op("Reshape", y, g.ints(0, 0, heads, depth))
        return g.op("Transpose", y, perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3])
    q, k, v = split("q"), split("k"), split("v")
    if g.chance(0.3):
        q = g.op("Mul", q, g.scalar(0.5))
        scores = g.op("MatMul", q, k)
    else:
        scores = g.op("Div", g.op("MatMul", q, k), g.scalar(np.sqrt(depth)))
    if g.chance(0.5):
        time = g.dims(x)[1]
        mask = np.where(np.tri(time), 0, -10).astype(np.float32)
        scores = g.op("Add", scores, g.const(mask) if g.chance(0.5) else g.feed(mask))
    y = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, width))
    if g.dims(x)[-1] == width or g.chance(0.5):
        y = g.op("MatMul", y, g.weight(width, g.dims(x)[-1]))
        g.op("Add", x, y)


def perceptron(g):
    x = g.value([2, 3], where=lambda a: a.size < 1000)
    for _ in range(g.size(1, 3)):
        width = g.pick([1, 4, 7, 16, 20])
        y = g.op("MatMul", x, g.weight(g.dims(x)[-1], width))
        x = activation(g, g.op("Add", y, g.bias(width)) if g.chance(0.8) else y)


# Quantization.

def zero(g, dtype):
    low, high = (0, 255) if dtype == np.uint8 else (-20, 20)
    return np.array(0 if g.chance(0.4) else g.rng.integers(low, high + 1), dtype)


def quantized(g, x):
    """`x` rounded to 8 bits and back."""
    dtype = g.pick([np.uint8, np.int8])
    largest = float(np.abs(g.array(x)).max(initial=0)) or 1.0
    scale = g.scalar(g.rng.uniform(0.7, 1.2) * largest / 127)
    point = zero(g, dtype) if dtype == np.int8 or not g.chance(0.5) else np.array(128, np.uint8)
    rest = [scale, g.const(point)]
    return g.op("DequantizeLinear", g.op("QuantizeLinear", x, *rest), *rest)


def quantized_weight(g, array, axis, x):
    """A constant of 8 bits, dequantized: by channels or as a whole; and a bias, of real numbers or in steps of its
    products with `x`.

    Seven bits: onnxruntime adds products of unsigned and signed bytes in 16 bits where the processor has no VNNI.
    """
    weights = g.const(np.clip(np.round(array * 25), -64, 63).astype(np.int8))
    scale = np.array(0.04, np.float32) if axis is None else g.rng.uniform(0.02, 0.06, array.shape[axis]).astype(np.float32)
    step = g.array(next(node for node in g.nodes if x in node.output).input[1]) * scale
    along = {} if axis is None else {"axis": axis}
    weights = g.op("DequantizeLinear", weights, g.const(scale), g.const(np.zeros(scale.shape, np.int8)), **along)
    if g.chance(0.4):
        return [weights]
    width = array.shape[axis or 0] if array.ndim > 2 else array.shape[1]
    if g.chance(0.4):
        return [weights, g.const(g.noise(width))]
    bias = g.const(g.rng.integers(-500, 500, width).astype(np.int32))
    return [weights, g.op("DequantizeLinear", bias, g.const(step), axis=0)]


def quantized_conv(g):
    x = g.image()
    channels, *dims = g.dims(x)[1:]
    attributes = window(g, dims)
    group = g.pick([1, 1, channels])
    out = group * g.size(1, max(1, 9 // group))
    y = quantized(g, x)
    weights = quantized_weight(g, g.noise(out, channels // group, *attributes["kernel_shape"]), g.pick([0, 0, None]), y)
    y = g.op("Conv", y, *weights, group=group, **attributes)
    if g.chance(0.5):
        y = g.op("Relu", y)
    y = quantized(g, y)
    if g.dims(y) == g.dims(x) and g.chance(0.7):
        quantized(g, g.op("Add", y, quantized(g, x)))


def quantized_product(g):
    x = g.value([2, 3], where=lambda a: a.size < 1000)
    width = g.size(1, 17)
    y = quantized(g, x)
    weight, *bias = quantized_weight(g, g.noise(g.dims(x)[-1], width), g.pick([1, None]), y)
    if g.rank(x) == 2 and g.chance(0.4):
        y = g.op("Gemm", y, weight, *bias)
    else:
        y = g.op("MatMul", y, weight)
        y = g.op("Add", y, *bias) if bias else y
    quantized(g, activation(g, y))


def quantized_moves(g):
    """What keeps bytes as they are, or reads them from a table."""
    x = quantized(g, g.image())
    kind = g.pick(["MaxPool", "Transpose", "Reshape", "Concat", "Sigmoid", "AveragePool", "GlobalAveragePool", "Mul"])
    if kind in ("MaxPool", "AveragePool"):
        y = g.op(kind, x, **window(g, g.dims(x)[2:], (2, 2)))
    elif kind == "Transpose":
        y = g.op(kind, x, perm=[0, 2, 3, 1])
    elif kind == "Reshape":
        y = g.op(kind, x, g.ints(0, -1))
    elif kind in ("Concat", "Mul"):
        y = g.op(kind, x, quantized(g, x), **({"axis": 1} if kind == "Concat" else {}))
    else:
        y = g.op(kind, x)
    quantized(g, y)


def dynamic(g):
    """Quantized as values come."""
    x = g.value([2, 3], where=lambda a: a.size < 1000)
    y, scale, point = g.op("DynamicQuantizeLinear", x, n=3)
    weights = g.const(g.rng.integers(-64, 64, (g.dims(x)[-1], g.size(1, 9))).astype(np.int8))
    y = g.op("Cast", g.op("MatMulInteger", y, weights, point), to=TensorProto.FLOAT)
    g.op("Mul", y, g.op("Mul", scale, g.scalar(0.02)))


def quantized_operators(g):
    """The older form: operators on bytes."""
    x = g.value([2], where=lambda a: a.size < 1000)
    dtype = g.pick([np.uint8, np.int8])
    largest = float(np.abs(g.array(x)).max(initial=0)) or 1.0
    scale, point = g.scalar(g.rng.uniform(0.8, 1.2) * largest / 127), g.const(zero(g, dtype))
    q = g.op("QuantizeLinear", x, scale, point)
    width = g.size(1, 9)
    weights = g.const(g.rng.integers(-64, 64, (g.dims(x)[-1], width)).astype(np.int8))
    # No simple multiple of the inputs' scales, which would put products in the middle between two steps.
    out = g.scalar(g.rng.uniform(0.6, 1.0) * largest * g.dims(x)[-1] / 127), g.const(zero(g, dtype))
    y = g.op("QLinearMatMul", q, scale, point, weights, g.scalar(0.02), g.const(np.int8(0)), *out)
    g.op("DequantizeLinear", y, *out)


ROWS = [
    *(conv_block, conv_block, residual, residual, separable, padded_conv, squeeze_excite, channels_last, gelu, layer_norm),
    *(attention, perceptron, shuffle, quantized_conv, quantized_conv, quantized_product, quantized_moves, dynamic),
    *(quantized_operators,),
]
