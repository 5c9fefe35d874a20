"""The training step that `cargo run --example training_step` measures, by TensorFlow: a compiled step on a fixed batch."""

import json
import os
import resource
import sys
import time

network, batch, threads, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "peers"))
import keras_models

tf.config.threading.set_intra_op_parallelism_threads(threads)
tf.config.threading.set_inter_op_parallelism_threads(threads)

model = {
    "cnn32": keras_models.cnn32,
    "lstm": keras_models.lstm,
    "mobilenet_v2": lambda: keras.applications.MobileNetV2(input_shape=(96, 96, 3), weights=None),
}[network]()

random = np.random.default_rng(0)
x = tf.constant(random.standard_normal((batch, *model.input_shape[1:]), dtype=np.float32))
if len(model.output_shape) > 2:
    y, loss_of = tf.constant(random.standard_normal((batch, *model.output_shape[1:]), dtype=np.float32)), keras.losses.MeanSquaredError()
else:
    y, loss_of = tf.constant(random.integers(0, model.output_shape[-1], batch)), keras.losses.SparseCategoricalCrossentropy()
optimizer = keras.optimizers.Adam()
optimizer.build(model.trainable_variables)


@tf.function
def step():
    with tf.GradientTape() as tape:
        loss = loss_of(y, model(x, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    return loss


for _ in range(3):
    step().numpy()
times, begun = [], time.perf_counter()
while len(times) < 5 or time.perf_counter() - begun < seconds:
    start = time.perf_counter()
    step().numpy()
    times.append((time.perf_counter() - start) * 1e3)
times.sort()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"least_ms": times[0], "median_ms": times[len(times) // 2], "peak_mb": peak}))
