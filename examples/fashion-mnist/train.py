"""Trains the example network in Keras on Fashion-MNIST and exports it to ONNX.

    python train.py --data DIR --out model.onnx

DIR holds the four gzipped IDX files under their standard names; the default is where Debian's package
dataset-fashion-mnist puts them. Only the 60,000 training pictures are used for training; the 10,000
test pictures serve only to print the accuracy of Keras and of onnxruntime after the export.
"""

import argparse
import gzip
import os
import pathlib
import struct

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import onnxruntime
import tensorflow as tf
import tf2onnx

SEED = 2024
OPSET = 17


def read_idx(path):
    """The array of unsigned bytes in a gzipped IDX file."""
    raw = gzip.decompress(path.read_bytes())
    zero, kind, rank = struct.unpack_from(">HBB", raw)
    if zero != 0 or kind != 8:
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{rank}I", raw, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load(folder, part):
    """Pictures [N,28,28,1] scaled to [0,1] and labels [N] of `part` ("train" or "t10k")."""
    x = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    y = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    return x[..., None].astype(np.float32) / np.float32(255), y.astype(np.int64)


def build():
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input((28, 28, 1), name="image"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ],
        name="fashion_mnist",
    )


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--data", type=pathlib.Path, default="/usr/share/datasets/fashion-mnist")
    args.add_argument("--out", type=pathlib.Path, default="model.onnx")
    args.add_argument("--epochs", type=int, default=20)
    args.add_argument("--batch", type=int, default=128)
    args.add_argument("--threads", type=int, default=2)
    args = args.parse_args()

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()

    x, y = load(args.data, "train")
    model = build()
    model.summary()
    steps = args.epochs * -(-len(x) // args.batch)
    rate = tf.keras.optimizers.schedules.CosineDecay(1e-3, steps)
    model.compile(tf.keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(x, y, batch_size=args.batch, epochs=args.epochs, verbose=2)

    signature = [tf.TensorSpec((None, 28, 28, 1), tf.float32, name="image")]
    tf2onnx.convert.from_keras(model, signature, opset=OPSET, output_path=str(args.out))

    x, y = load(args.data, "t10k")
    keras = model.predict(x, batch_size=500, verbose=0)
    session = onnxruntime.InferenceSession(str(args.out), providers=["CPUExecutionProvider"])
    onnx = session.run(None, {session.get_inputs()[0].name: x})[0]
    print(f"test accuracy: keras {np.mean(keras.argmax(1) == y):.4f}, onnxruntime {np.mean(onnx.argmax(1) == y):.4f}")
    print(f"largest difference of a probability: {np.abs(keras - onnx).max():.2e}")


if __name__ == "__main__":
    main()
