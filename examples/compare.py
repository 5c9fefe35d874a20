"""Trains the network of an example in Keras as its configuration says, and prints the accuracy on the test half:

    python compare.py vowels/train.toml --seed 1

It reads the same TOML file as `sora train`: data, layers, loss, optimizer, schedule, epochs. The weights start from other
random numbers, and the validation part is another one of the same size; otherwise both do the same work. Options and
augmentations that no example uses are refused. Needs the packages of .ci/python/peers/keras.txt.
"""

import argparse
import collections
import gzip
import json
import math
import os
import pathlib
import re
import struct
import time
import tomllib
import wave

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers


# Data: inputs and targets by name.


def words(text):
    """Words as Sora's tokenizer has them."""
    return re.findall(r"(?:[^\W_]|')+|[^\w\s]|_", text.lower())


def texts(path, settings, vocabulary, classes):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if not vocabulary:
        counts = collections.Counter(word for line in lines for word in words(line["text"]))
        kept = sorted(counts, key=lambda word: (-counts[word], word))[: settings["vocabulary"] - 2]
        vocabulary.update((word, at + 2) for at, word in enumerate(kept))
        classes.extend(sorted({line["label"] for line in lines}))
    x = np.zeros((len(lines), settings["length"]), np.int64)
    for row, line in zip(x, lines):
        tokens = [vocabulary.get(word, 1) for word in words(line["text"])][: settings["length"]] or [1]
        row[: len(tokens)] = tokens
    return {"x": x}, {"y": np.array([classes.index(line["label"]) for line in lines])}


def log_mel(sound, rate=16000, frame=400, hop=160, mels=40, low=20, high=0):
    weights = tf.signal.linear_to_mel_weight_matrix(
        int(mels), 2 ** math.ceil(math.log2(frame)) // 2 + 1, rate, low, high or rate / 2
    )
    magnitudes = tf.abs(tf.signal.stft(sound, int(frame), int(hop)))
    return np.log(magnitudes.numpy() @ weights.numpy() + 1e-6)


def sounds(path, preprocess):
    name, *settings = preprocess["sound"].split(":")
    settings = {key: float(value) for key, value in (setting.split("=") for setting in settings)}
    if name != "log_mel":
        raise SystemExit(f"no example uses `{name}`")
    x, y = [], []
    for at, folder in enumerate(sorted(path.iterdir())):
        for file in sorted(folder.glob("*.wav")):
            with wave.open(str(file)) as sound:
                samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / np.float32(32768)
            x.append(log_mel(samples.astype(np.float32), **settings))
            y.append(at)
    return np.stack(x), np.array(y)


def idx(path):
    """An array of bytes in the format of MNIST: two zeros, a type, the number of axes, their lengths."""
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def pictures(path):
    if images := list(path.glob("*images-idx3-ubyte.gz")):
        return idx(images[0]), idx(next(path.glob("*labels-idx1-ubyte.gz")))
    x, y = [], []
    for at, folder in enumerate(sorted(path.iterdir())):
        for file in sorted(folder.glob("*.png")):
            x.append(tf.io.decode_png(file.read_bytes(), 3).numpy())
            y.append(at)
    return np.stack(x).transpose(0, 3, 1, 2), np.array(y)


def load(config, folder):
    """Training and test half: inputs by name, pictures still u8, and targets by name."""
    data = config["data"]
    preprocess = dict(part.split("=", 1) for part in data.get("preprocess", "").split(",") if part)
    vocabulary, classes, halves = {}, [], []
    targets = {output.get("target", "y") for output in config.get("outputs", [{}])}
    for half in ["train", "test"]:
        path = folder / data[half]
        if path.suffix == ".npz":
            arrays = dict(np.load(path))
            y = {name: arrays.pop(name) for name in targets}
            halves.append((arrays, y))
        elif path.suffix == ".jsonl":
            halves.append(texts(path, data["text"], vocabulary, classes))
        else:
            x, y = sounds(path, preprocess) if "sound" in preprocess else pictures(path)
            halves.append(({"x": x.reshape(-1, *config["network"]["input"])}, {"y": y}))
    for x, _ in halves:
        for name, array in x.items():
            if array.dtype == np.uint8 and not data.get("augment"):
                array = array.astype(np.float32) / 255
            elif array.dtype == np.float32 and ("mean" in preprocess or "std" in preprocess):
                array = (array - float(preprocess.get("mean", 0))) / float(preprocess.get("std", 1))
            x[name] = array
    return halves


def augmented(x, steps, random):
    """Pictures u8[N, C, H, W] changed at random, as f32 from 0 to 1."""
    x = x.copy()
    height, width = x.shape[2:]
    for step in steps:
        chosen = random.random(len(x)) < step.get("probability", 0.5 if "flip" in step["name"] else 1)
        match step["name"]:
            case "horizontal_flip":
                x[chosen] = x[chosen, ..., ::-1]
            case "random_crop":
                pad = step.get("padding", 4)
                wide = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=step.get("fill", 0))
                for one, down, right in zip(range(len(x)), *random.integers(0, 2 * pad + 1, (2, len(x)))):
                    x[one] = wide[one, :, down : down + height, right : right + width]
            case "cutout":
                size = step.get("size", 8)
                for one in np.flatnonzero(chosen):
                    top, left = (int(random.integers(side)) - size // 2 for side in (height, width))
                    x[one, :, max(top, 0) : top + size, max(left, 0) : left + size] = step.get("fill", 0)
            case name:
                raise SystemExit(f"no example uses `{name}`")
    return x.astype(np.float32) / 255


class Batches(keras.utils.PyDataset):
    """Shuffled batches of augmented pictures."""

    def __init__(self, x, y, batch, steps, seed):
        super().__init__()
        self.x, self.y, self.batch, self.steps, self.random = x, y, batch, steps, np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return -(-len(self.order) // self.batch)

    def __getitem__(self, at):
        chosen = self.order[at * self.batch : (at + 1) * self.batch]
        x = {name: augmented(array[chosen], self.steps, self.random) for name, array in self.x.items()}
        return x, {name: array[chosen] for name, array in self.y.items()}

    def on_epoch_end(self):
        self.order = self.random.permutation(len(next(iter(self.x.values()))))


# Networks.


class Positions(layers.Layer):
    """Adds learned positions."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def build(self, shape):
        self.rows = self.add_weight(shape=shape[1:], initializer="uniform", name="positions")

    def call(self, x):
        return x + self.rows


def penalty(spec):
    return keras.regularizers.L1L2(spec.get("l1", 0), spec.get("l2", 0)) if "l1" in spec or "l2" in spec else None


def recurrent(kind, x, spec):
    for level in range(spec.get("levels", 1)):
        sequences = spec.get("sequences", False) or level + 1 < spec.get("levels", 1)
        layer = kind(spec["units"], return_sequences=sequences, kernel_regularizer=penalty(spec))
        x = (layers.Bidirectional(layer) if spec.get("bidirectional") else layer)(x)
    return x


def attention(x, spec):
    """A transformer's encoder block, normalized behind each half (Vaswani et al. 2017; Devlin et al. 2018)."""
    rate, width, epsilon = spec.get("dropout", 0.0), x.shape[-1], spec.get("epsilon", 1e-3)
    seen = layers.MultiHeadAttention(spec["heads"], width // spec["heads"])(x, x)
    x = layers.LayerNormalization(epsilon=epsilon)(layers.Add()([x, layers.Dropout(rate)(seen)]))
    wide = layers.Dense(width)(layers.Dense(spec["units"], "gelu")(x))
    return layers.LayerNormalization(epsilon=epsilon)(layers.Add()([x, layers.Dropout(rate)(wide)]))


def channels_last(x):
    return layers.Permute((2, 3, 1))(x)


def apply(x, spec, momentum):
    """One layer of a configuration."""
    function = spec.get("activation")
    bias, epsilon = spec.get("bias", True), spec.get("epsilon", 1e-3)
    window = {"strides": spec.get("strides", 1), "padding": spec.get("padding", "valid"), "use_bias": bias}
    match spec["layer"]:
        case "conv2d":
            x = layers.Conv2D(spec["filters"], spec["kernel"], kernel_regularizer=penalty(spec), **window)(x)
        case "depthwise_conv2d":
            x = layers.DepthwiseConv2D(spec["kernel"], **window)(x)
        case "separable_conv2d":
            x = layers.SeparableConv2D(spec["filters"], spec["kernel"], **window)(x)
        case "conv1d":
            x = layers.Conv1D(spec["filters"], spec["kernel"], kernel_regularizer=penalty(spec), **window)(x)
        case "max_pool2d":
            x = layers.MaxPooling2D(spec["size"])(x)
        case "avg_pool2d":
            x = layers.AveragePooling2D(spec["size"])(x)
        case "max_pool1d":
            x = layers.MaxPooling1D(spec["size"])(x)
        case "global_avg_pool2d":
            x = layers.GlobalAveragePooling2D()(x)
        case "global_avg_pool1d":
            x = layers.GlobalAveragePooling1D()(x)
        case "global_max_pool1d":
            x = layers.GlobalMaxPooling1D()(x)
        case "batch_norm2d" | "batch_norm":
            x = layers.BatchNormalization(momentum=momentum, epsilon=epsilon)(x)
        case "layer_norm":
            x = layers.LayerNormalization(epsilon=epsilon)(x)
        case "flatten":
            x = layers.Flatten()(x)
        case "reshape":
            x = layers.Reshape(spec["shape"])(x)
        case "lstm" | "gru" | "simple_rnn":
            kind = {"lstm": layers.LSTM, "gru": layers.GRU, "simple_rnn": layers.SimpleRNN}[spec["layer"]]
            x = recurrent(kind, x, spec)
        case "dense":
            x = layers.Dense(spec["units"], use_bias=bias, kernel_regularizer=penalty(spec))(x)
        case "dropout":
            x = layers.Dropout(spec["rate"])(x)
        case "activation":
            function = spec["function"]
        case "embedding":
            x = layers.Embedding(spec["rows"], spec["units"], mask_zero=spec.get("mask", True))(x)
        case "masking":
            x = layers.Masking(0.0)(x)
        case "positions":
            x = Positions()(x)
        case "transformer_encoder":
            x = attention(x, spec)
        case "residual":
            x = layers.Add()([run(x, spec[way], momentum) if way in spec else x for way in ("layers", "shortcut")])
        case name:
            raise SystemExit(f"no example uses `{name}`")
    return layers.Activation(function)(x) if function else x


def run(x, specs, momentum):
    for spec in specs:
        x = apply(x, spec, momentum)
    return x


def built(config, shapes):
    """The network: a Keras model from inputs to outputs by name."""
    network = config["network"]
    inputs = network.get("inputs") or {"x": network["input"]}
    parts = network.get("parts") or [{"name": "y", "from": "x", "layers": network["layers"]}]
    outputs = config.get("outputs") or [{"part": parts[-1]["name"]}]
    values, starts = {}, {}
    for name, shape in inputs.items():
        starts[name] = keras.Input(shape, name=name, dtype="int64" if shapes[name].dtype == np.int64 else "float32")
        values[name] = channels_last(starts[name]) if len(shape) == 3 else starts[name]
    for part in parts:
        froms = part["from"] if isinstance(part["from"], list) else [part["from"]]
        x = values[froms[0]] if len(froms) == 1 else layers.Concatenate()([values[name] for name in froms])
        values[part["name"]] = run(x, part["layers"], config["training"].get("batch_norm_momentum", 0.99))
    return keras.Model(starts, {output.get("target", "y"): values[output["part"]] for output in outputs})


# Training.


def ctc(y, x):
    """Connectionist temporal classification of softmax outputs; the blank is the last class."""
    lengths = tf.reduce_sum(tf.cast(y >= 0, tf.int32), 1)
    steps = tf.fill([tf.shape(x)[0]], tf.shape(x)[1])
    logits = tf.transpose(tf.math.log(x + 1e-7), [1, 0, 2])
    return tf.nn.ctc_loss(tf.cast(tf.maximum(y, 0), tf.int32), logits, lengths, steps, blank_index=-1)


def strings(x):
    """The most likely string of each sample: the best class of each step, without repetitions and blanks."""
    blank = x.shape[-1] - 1
    best = x.argmax(-1)
    return [[int(c) for c, before in zip(row, [blank, *row]) if c not in (before, blank)] for row in best]


def loss(spec, classes):
    smoothing = spec.get("label_smoothing", 0.0)
    match spec["name"]:
        case "ctc":
            return ctc
        case "sparse_categorical_crossentropy" if smoothing:
            whole = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
            return lambda y, x: whole(tf.one_hot(tf.cast(tf.reshape(y, [-1]), tf.int32), classes), x)
        case "sparse_categorical_crossentropy":
            return "sparse_categorical_crossentropy"
        case name:
            raise SystemExit(f"no example uses `{name}`")


class Cosine(keras.optimizers.schedules.LearningRateSchedule):
    """A linear rise over the share `warmup` of all steps, then half a cosine down to the share `final` of the rate."""

    def __init__(self, rate, steps, warmup=0.0, final=0.0):
        self.rate, self.steps, self.warmup, self.final = rate, steps, warmup * steps, final

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        at = (step - self.warmup) / max(self.steps - self.warmup, 1)
        fall = self.final + (1 - self.final) * 0.5 * (1 + tf.cos(math.pi * at))
        return self.rate * tf.where(step < self.warmup, (step + 1) / max(self.warmup, 1), fall)


def optimizer(config, steps):
    spec = dict(config["optimizer"])
    name, rate = spec.pop("name"), spec.pop("rate")
    schedule = dict(config.get("schedule", {"name": "constant"}))
    match schedule.pop("name"):
        case "constant" if not schedule:
            pass
        case "cosine":
            rate = Cosine(rate, steps, **schedule)
        case other:
            raise SystemExit(f"no example uses `{other}` like this")
    renamed = {"beta1": "beta_1", "beta2": "beta_2", "decay": "weight_decay", "weight_decay": "weight_decay"}
    spec = {renamed.get(key, key): value for key, value in spec.items()}
    training = config["training"]
    average = training.get("average")
    kind = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW, "rmsprop": keras.optimizers.RMSprop}[name]
    return kind(rate, global_clipnorm=training.get("clip_norm"), use_ema=average is not None,
                ema_momentum=average or 0.99, **spec)


def figures(model, x, y):
    """The accuracy of each target; of strings, the share that is right as a whole, and the share of wrong labels."""
    found = model.predict(x, batch_size=256, verbose=0)
    result = {}
    for name, truth in y.items():
        if truth.ndim == 1:
            result[name] = float(np.mean(found[name].argmax(-1) == truth))
        else:
            wanted = [[int(c) for c in row if c >= 0] for row in truth]
            said = strings(found[name])
            result[name] = float(np.mean([a == b for a, b in zip(said, wanted)]))
            result[f"{name} label errors"] = sum(map(distance, said, wanted)) / sum(map(len, wanted))
    return result


def distance(a, b):
    """The edits from one string to another."""
    row = list(range(len(b) + 1))
    for i, c in enumerate(a):
        before, row[0] = row[0], i + 1
        for j, d in enumerate(b):
            before, row[j + 1] = row[j + 1], min(row[j] + 1, row[j + 1] + 1, before + (c != d))
    return row[-1]


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("config", type=pathlib.Path)
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--validation", type=float, help="keep this share of the training half and report it, not the test")
    args.add_argument("--epochs", type=int)
    args.add_argument("--verbose", action="store_true")
    args = args.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(args.seed)

    config = tomllib.loads(args.config.read_text())
    (x, y), test = load(config, args.config.parent)
    share = config["data"].get("validation") or 0.0

    def split(share, x, y):
        kept = round(share * len(next(iter(y.values()))))
        order = np.random.default_rng(args.seed).permutation(len(next(iter(y.values()))))
        pick = lambda arrays, part: {name: array[part] for name, array in arrays.items()}
        return [(pick(x, part), pick(y, part)) for part in (order[kept:], order[:kept])]

    if args.validation:
        (x, y), test = split(args.validation, x, y)
    (x, y), held = split(share, x, y)
    count = len(next(iter(y.values())))

    training = config["training"]
    epochs, batch = args.epochs or training["epochs"], training["batch"]
    model = built(config, x)
    outputs = config.get("outputs") or [{}]
    named = {output.get("target", "y"): output for output in outputs}
    losses = {
        name: loss(output.get("loss", config.get("loss", {"name": "sparse_categorical_crossentropy"})),
                   model.output[name].shape[-1])
        for name, output in named.items()
    }
    weights = {name: output.get("weight", 1.0) for name, output in named.items()}
    metrics = {name: [] if array.ndim > 1 else ["accuracy"] for name, array in y.items()}
    model.compile(optimizer(config, epochs * -(-count // batch)), losses, loss_weights=weights, metrics=metrics,
                  jit_compile=False)
    callbacks = []
    if "early_stopping" in config:
        callbacks.append(keras.callbacks.EarlyStopping(
            "val_accuracy", mode="max", patience=config["early_stopping"]["patience"], restore_best_weights=True))
    begun = time.time()
    steps = config["data"].get("augment")
    plain = {name: array.astype(np.float32) / 255 if array.dtype == np.uint8 else array for name, array in held[0].items()}
    options = {"epochs": epochs, "callbacks": callbacks, "verbose": 2 if args.verbose else 0}
    if share:
        options["validation_data"] = (plain, held[1])
    if steps:
        model.fit(Batches(x, y, batch, steps, args.seed), **options)
    else:
        model.fit(x, y, batch_size=batch, **options)
    seconds = time.time() - begun
    plain = {name: array.astype(np.float32) / 255 if array.dtype == np.uint8 else array for name, array in test[0].items()}
    found = figures(model, plain, test[1])
    parts = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
    what = "validation" if args.validation else "test"
    print(f"{args.config} seed {args.seed}: {what} accuracy {parts}; {model.count_params()} parameters, {seconds:.1f} s")


if __name__ == "__main__":
    main()
