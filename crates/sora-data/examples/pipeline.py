"""What `pipeline.rs` measures, with tf.data: prints the pictures a second of the best epoch."""

import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import tensorflow as tf

folder, workers = sys.argv[1], int(sys.argv[2])
tf.config.threading.set_inter_op_parallelism_threads(workers)
tf.config.threading.set_intra_op_parallelism_threads(1)

paths = sorted(str(path) for path in pathlib.Path(folder).glob("*/*.png"))
labels = [int(pathlib.Path(path).parent.name[len("class"):]) for path in paths]


def prepare(path, label):
    picture = tf.io.decode_png(tf.io.read_file(path), channels=3)
    picture.set_shape([32, 32, 3])
    picture = tf.image.random_flip_left_right(picture)
    picture = tf.image.random_crop(tf.pad(picture, [[4, 4], [4, 4], [0, 0]]), [32, 32, 3])
    picture = tf.image.convert_image_dtype(picture, tf.float32)
    picture = tf.image.random_brightness(picture, 0.2)
    picture = tf.image.random_contrast(picture, 0.8, 1.2)
    picture = tf.image.random_saturation(picture, 0.8, 1.2)
    return (tf.clip_by_value(picture, 0.0, 1.0) - 0.5) / 0.25, label


data = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths), seed=1)
data = data.map(prepare, num_parallel_calls=workers).batch(32).prefetch(2 * workers)
options = tf.data.Options()
options.threading.private_threadpool_size = workers
options.threading.max_intra_op_parallelism = 1
data = data.with_options(options)

best = 0.0
for _ in range(5):
    begun, samples = time.perf_counter(), 0
    for pictures, _ in data:
        samples += int(pictures.shape[0])
    best = max(best, samples / (time.perf_counter() - begun))
print(f"{best:.0f}")
