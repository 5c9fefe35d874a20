"""Writes the `keras_*.onnx` files beside this script: small networks as tf2onnx exports them, with random weights.

    python export_keras.py [NAME]…        (packages: .ci/python/peers/keras.txt)

The networks are written here and the weights are drawn from a fixed seed, so the files are under this repository's own
licence. Each names, in its metadata, the values of its open extents that `cargo xtask models` runs it with.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from keras import layers, ops

HERE = pathlib.Path(__file__).parent


def norm(x, activation="relu"):
    return layers.Activation(activation)(layers.BatchNormalization()(x))


def resnet():
    """Bottlenecks with projections, pictures of any size."""
    def block(x, width, stride):
        y = norm(layers.Conv2D(width, 1, use_bias=False)(x))
        y = norm(layers.Conv2D(width, 3, stride, "same", use_bias=False)(y))
        y = layers.BatchNormalization()(layers.Conv2D(2 * width, 1, use_bias=False)(y))
        if x.shape[-1] != 2 * width or stride != 1:
            x = layers.BatchNormalization()(layers.Conv2D(2 * width, 1, strides=stride, use_bias=False)(x))
        return layers.ReLU()(x + y)

    x = entry = keras.Input((None, None, 3))
    x = norm(layers.Conv2D(12, 7, 2, "same", use_bias=False)(x))
    x = layers.MaxPooling2D(3, 2, "same")(x)
    for width, stride in [(8, 1), (8, 1), (16, 2), (16, 1), (32, 2)]:
        x = block(x, width, stride)
    x = layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(entry, x)


def mobilenet():
    """Inverted residuals with squeeze-and-excitation and hard-swish, as MobileNetV3."""
    def hard_swish(x):
        return x * layers.ReLU(6.0)(x + 3.0) / 6.0

    def block(x, expanded, width, kernel, stride, squeeze, activation):
        y = activation(layers.BatchNormalization()(layers.Conv2D(expanded, 1, use_bias=False)(x)))
        y = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False)(y)
        y = activation(layers.BatchNormalization()(y))
        if squeeze:
            s = layers.GlobalAveragePooling2D(keepdims=True)(y)
            s = layers.ReLU()(layers.Conv2D(expanded // 4, 1)(s))
            y = y * (layers.ReLU(6.0)(layers.Conv2D(expanded, 1)(s) + 3.0) / 6.0)
        y = layers.BatchNormalization()(layers.Conv2D(width, 1, use_bias=False)(y))
        return x + y if stride == 1 and x.shape[-1] == width else y

    x = entry = keras.Input((None, None, 3))
    x = hard_swish(layers.BatchNormalization()(layers.Conv2D(8, 3, 2, "same", use_bias=False)(x)))
    rows = [(16, 8, 3, 1, False, layers.ReLU()), (32, 12, 3, 2, True, layers.ReLU()),
            (48, 12, 5, 1, True, hard_swish), (48, 24, 5, 2, True, hard_swish), (96, 24, 5, 1, True, hard_swish)]
    for row in rows:
        x = block(x, *row)
    x = hard_swish(layers.Conv2D(96, 1)(x))
    return keras.Model(entry, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


class Attention(layers.Layer):
    """Heads over all positions; a layer, so that the number of positions may stay open."""

    def __init__(self, heads, width):
        super().__init__()
        self.heads, self.width = heads, width
        self.query, self.key, self.value, self.out = (layers.Dense(width) for _ in range(4))

    def call(self, x, mask=None):
        words, each = ops.shape(x)[1], self.width // self.heads
        split = lambda x: ops.transpose(ops.reshape(x, (-1, words, self.heads, each)), (0, 2, 1, 3))
        query, key, value = (split(layer(x)) for layer in (self.query, self.key, self.value))
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / float(np.sqrt(each))
        if mask is not None:
            scores = scores + mask
        context = ops.transpose(ops.matmul(ops.softmax(scores), value), (0, 2, 1, 3))
        return self.out(ops.reshape(context, (-1, words, self.width)))

    def compute_output_shape(self, x_shape, mask_shape=None):
        return x_shape


def gelu(x):
    return 0.5 * x * (1.0 + ops.erf(x / float(np.sqrt(2.0))))  # What Keras itself writes has no ONNX operator.


def vit():
    """Patches of 8×8, a class token and learned positions; pre-norm encoders with gelu."""
    width, side = 48, 48
    x = entry = keras.Input((side, side, 3))
    x = layers.Conv2D(width, 8, 8)(x)
    x = layers.Reshape((-1, width))(x)
    token = layers.Embedding(1, width)(ops.cast(ops.zeros_like(x[:, :1, 0]), "int32"))
    x = ops.concatenate([token, x], axis=1)
    x = x + layers.Embedding(37, width)(ops.arange(37))
    for _ in range(2):
        x = x + Attention(4, width)(layers.LayerNormalization(epsilon=1e-6)(x))
        y = layers.Dense(2 * width)(layers.LayerNormalization(epsilon=1e-6)(x))
        x = x + layers.Dense(width)(gelu(y))
    return keras.Model(entry, layers.Dense(10)(layers.LayerNormalization(epsilon=1e-6)(x)[:, 0]))


def bert():
    """Post-norm encoders over any number of words; ids below 20 count as padding."""
    width = 48
    x = entry = keras.Input((None,), dtype="int32")
    mask = ops.where(ops.less(entry, 20), -1e4, 0.0)[:, None, None, :]
    positions = ops.cumsum(ops.ones_like(entry), axis=1) - 1
    x = layers.Embedding(100, width)(entry) + layers.Embedding(64, width)(positions)
    x = layers.LayerNormalization(epsilon=1e-12)(x)
    for _ in range(2):
        x = layers.LayerNormalization(epsilon=1e-12)(x + Attention(4, width)(x, mask))
        y = layers.Dense(width)(ops.gelu(layers.Dense(2 * width)(x), approximate=True))
        x = layers.LayerNormalization(epsilon=1e-12)(x + y)
    return keras.Model(entry, x)


def tagger():
    """A bidirectional LSTM and a GRU over any number of words."""
    x = entry = keras.Input((None,), dtype="int32")
    x = layers.Embedding(100, 24)(x)
    x = layers.Bidirectional(layers.LSTM(24, return_sequences=True))(x)
    x = layers.GRU(24, return_sequences=True)(x)
    return keras.Model(entry, layers.Dense(7, activation="softmax")(x))


class Cell(layers.Layer):
    """An LSTM cell of its own making: one product of features and state side by side, gates in an order of its own."""

    def __init__(self, units):
        super().__init__()
        self.units, self.state_size, self.output_size = units, [units, units], units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1] + self.units, 4 * self.units), name="kernel")
        self.bias = self.add_weight(shape=(4 * self.units,), name="bias")

    def call(self, x, states, training=False):
        h, c = states
        i, g, f, o = ops.split(ops.matmul(ops.concatenate([x, h], axis=1), self.kernel) + self.bias, 4, axis=1)
        c = ops.sigmoid(f + 1.0) * c + ops.sigmoid(i) * ops.tanh(g)
        h = ops.tanh(c) * ops.sigmoid(o)
        return h, [h, c]


def cells():
    """Recurrent layers that tf2onnx leaves as loops: plain, a custom cell, two cells in one loop, and a last state."""
    x = entry = keras.Input((None,), dtype="int32")
    x = layers.Embedding(100, 24)(x)
    x = layers.SimpleRNN(24, return_sequences=True)(x)
    x = layers.RNN(Cell(24), return_sequences=True)(x)
    x = layers.RNN(layers.StackedRNNCells([layers.LSTMCell(20), layers.GRUCell(16)]), return_sequences=True)(x)
    x = layers.GRU(24, reset_after=False)(x)
    return keras.Model(entry, layers.Dense(7, activation="softmax")(x))


class Upsample(layers.Layer):
    """Twice the height and the width, which may be open."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def call(self, x):
        return tf.image.resize(x, 2 * tf.shape(x)[1:3], self.method)

    def compute_output_shape(self, shape):
        return (shape[0], *(extent and 2 * extent for extent in shape[1:3]), shape[3])


def unet():
    """An encoder and a decoder with skips, upsampled by interpolation and by transposed convolution."""
    def double(x, width):
        for _ in range(2):
            x = norm(layers.Conv2D(width, 3, padding="same", use_bias=False)(x), "leaky_relu")
        return x

    x = entry = keras.Input((None, None, 1))
    skips = []
    for width in (8, 12, 16):
        x = double(x, width)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = double(x, 24)
    ups = [Upsample("bilinear"), Upsample("nearest"), layers.Conv2DTranspose(8, 3, 2, "same")]
    for up, skip in zip(ups, reversed(skips)):
        x = double(ops.concatenate([up(x), skip], axis=-1), skip.shape[-1])
    return keras.Model(entry, layers.Conv2D(2, 1, activation="sigmoid")(x))


# Network, opset, values of its open extents in the order of the input's shape.
MODELS = {
    "resnet": (resnet, 13, "1x64x64 2x96x80 3x33x47"),
    "mobilenet": (mobilenet, 17, "1x64x64 2x96x80 3x33x47"),
    "vit": (vit, 15, "1 2 5"),
    "bert": (bert, 18, "1x12 3x7 2x33"),
    "tagger": (tagger, 16, "1x9 4x5 2x30"),
    "cells": (cells, 17, "1x9 4x5 2x30"),
    "unet": (unet, 12, "1x32x32 2x64x48 1x96x96"),
}


def export(name):
    build, opset, sizes = MODELS[name]
    keras.utils.set_random_seed(11)
    model = build()
    rng = np.random.default_rng(11)
    for weight in model.weights:  # Every weight takes part, the statistics of batches too.
        kind = weight.path.rsplit("/", 1)[-1]
        if kind in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.7, 1.3, weight.shape))
        elif kind in ("beta", "moving_mean", "bias"):
            weight.assign(rng.normal(0.0, 0.05, weight.shape))
    entry = model.inputs[0]
    signature = tf.TensorSpec(entry.shape, entry.dtype, name="x")
    function = tf.function(lambda x: model(x, training=False), input_signature=[signature])
    pictures = ["x:0", "x"] if len(entry.shape) == 4 else None
    result, _ = tf2onnx.convert.from_function(function, [signature], opset=opset, inputs_as_nchw=pictures)
    result.metadata_props.append(onnx.StringStringEntryProto(key="sizes", value=sizes))
    onnx.save(result, HERE / f"keras_{name}.onnx")
    print(name, len(result.graph.node), "nodes", (HERE / f"keras_{name}.onnx").stat().st_size, "bytes")


for wanted in sys.argv[1:] or MODELS:
    export(wanted)
