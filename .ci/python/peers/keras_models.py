"""The networks as Keras has them, with random weights: LiteRT models, and ONNX files for everybody else.

    python keras_models.py MODELS [--filter PATTERN]…
"""

import argparse
import functools
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import plan
from make import make

WORDS, WIDTH, HEADS, FEED_FORWARD, ENCODERS, VOCABULARY = 128, 384, 12, 1536, 6, 8192


def cnn32():
    return keras.Sequential([
        keras.Input((32, 32, 3)),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dense(10, activation="softmax"),
    ])


def ds_cnn():
    def block(x, layer):
        return layers.ReLU()(layers.BatchNormalization()(layer(x)))

    x = entry = keras.Input((49, 10, 1))
    x = block(x, layers.Conv2D(64, (10, 4), strides=2, padding="same", use_bias=False))
    for _ in range(4):
        x = block(x, layers.DepthwiseConv2D(3, padding="same", use_bias=False))
        x = block(x, layers.Conv2D(64, 1, use_bias=False))
    return keras.Model(entry, layers.Dense(12, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def application(build):
    return lambda: build(weights=None, input_shape=(224, 224, 3))


def lstm():
    x = entry = keras.Input((100, 40))
    for _ in range(2):
        x = layers.LSTM(256, return_sequences=True)(x)
    return keras.Model(entry, layers.Dense(64)(x))


def minilm():
    def normalize(x):
        return layers.LayerNormalization(epsilon=1e-12)(x)

    def heads(x, axes):
        return ops.transpose(ops.reshape(x, (-1, WORDS, HEADS, WIDTH // HEADS)), axes)

    entry = keras.Input((WORDS,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH)(entry) + layers.Embedding(WORDS, WIDTH)(ops.arange(WORDS))
    x = normalize(x)
    for _ in range(ENCODERS):
        query, key, value = (layers.Dense(WIDTH)(x) for _ in range(3))
        scores = ops.matmul(heads(query, (0, 2, 1, 3)), heads(key, (0, 2, 3, 1))) / float(np.sqrt(WIDTH // HEADS))
        context = ops.matmul(ops.softmax(scores), heads(value, (0, 2, 1, 3)))
        context = ops.reshape(ops.transpose(context, (0, 2, 1, 3)), (-1, WORDS, WIDTH))
        x = normalize(x + layers.Dense(WIDTH)(context))
        x = normalize(x + layers.Dense(WIDTH)(ops.gelu(layers.Dense(FEED_FORWARD)(x), approximate=False)))
    return keras.Model(entry, x)


BUILDERS = {
    "cnn32": cnn32,
    "ds_cnn": ds_cnn,
    "mobilenet_v2": application(keras.applications.MobileNetV2),
    "resnet50": application(keras.applications.ResNet50),
    "efficientnet_b0": application(keras.applications.EfficientNetB0),
    "minilm": minilm,
    "lstm": lstm,
}

# Mean and standard deviation of an input's values: EfficientNet takes pictures of 0..255.
UNIT = (0.0, 1.0)
SPREAD = {"efficientnet_b0": (120.0, 60.0)}


class Network:
    """A model whose batch statistics are those of random samples, so that values stay in range at every depth."""

    def __init__(self, name):
        keras.utils.set_random_seed(7)
        self.name = name
        self.rng = np.random.default_rng(0)
        self.model = BUILDERS[name]()
        self.shape = self.model.input_shape[1:]
        self.dtype = tf.int32 if name == "minilm" else tf.float32
        self.mean, self.std = SPREAD.get(name, UNIT)
        norms = [layer for layer in self.leaves(self.model) if isinstance(layer, layers.BatchNormalization)]
        for norm in norms:
            norm.gamma.assign(self.rng.uniform(0.7, 1.3, norm.gamma.shape))
            norm.beta.assign(self.rng.normal(0.0, 0.05, norm.beta.shape))
            norm.momentum = 0.0  # One pass in training mode leaves the statistics of its batch.
        if norms:
            self.model(self.samples(8), training=True)

    def leaves(self, layer):
        inside = getattr(layer, "layers", None)
        return [leaf for part in inside for leaf in self.leaves(part)] if inside else [layer]

    def samples(self, count):
        shape = (count, *self.shape)
        if self.dtype == tf.int32:
            return self.rng.integers(0, VOCABULARY, shape).astype(np.int32)
        return self.rng.normal(self.mean, self.std, shape).astype(np.float32)

    def function(self, batch):
        signature = tf.TensorSpec((batch, *self.shape), self.dtype, name="x")
        return tf.function(lambda x: self.model(x, training=False), input_signature=[signature]), signature

    def tflite(self, batch, quantized, path):
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        function, _ = self.function(batch)
        frozen = convert_variables_to_constants_v2(function.get_concrete_function())
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
        if quantized:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            # Its calibrator crashes on recurrent layers; sequences keep float activations.
            if self.name not in plan.SEQUENCES:
                count = 8 if batch == 1 else 1
                converter.representative_dataset = lambda: ([self.samples(batch)] for _ in range(count))
        path.write_bytes(converter.convert())

    def onnx(self, batch, path):
        import tf2onnx

        function, signature = self.function(batch)
        tf2onnx.convert.from_function(
            function, [signature], opset=17, inputs_as_nchw=["x:0", "x"], output_path=str(path))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan.arguments(parser)
    args = parser.parse_args()
    network = functools.cache(Network)
    for path, name, batch, form in plan.files(args.models, args.filter):
        base = name.removesuffix(plan.KERAS)
        if form.endswith("tflite"):
            make(path, lambda to: network(base).tflite(batch, form.startswith("int8"), to))
        elif name != base:
            mean, std = SPREAD.get(base, UNIT)
            inputs = json.dumps([{"name": "x", "mean": mean, "std": std}])
            make(args.models / f"{name}.inputs.json", lambda to: to.write_text(inputs))
            make(plan.path(args.models, name, batch, "raw.onnx"), lambda to: network(base).onnx(batch, to))


if __name__ == "__main__":
    main()
