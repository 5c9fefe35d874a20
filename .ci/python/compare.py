"""Reference outputs and latency of onnxruntime, and the agreement of two sets of outputs.

    python compare.py logits MODEL.onnx --data DIR --out ref.npz
    python compare.py outputs MODEL.onnx --inputs JSON --out NAME
    python compare.py agree sora.npz ref.npz --rel 1e-4
    python compare.py latency MODEL.onnx

A set is FILE.npz or FILE.npz:NAME; without NAME it is the array `out`, else the only array of floats not called `x`.
"""

import argparse
import gzip
import json
import pathlib
import struct
import sys
import time

import numpy as np


def read_idx(path):
    """The array of unsigned bytes in a gzipped IDX file."""
    raw = gzip.decompress(path.read_bytes())
    zero, kind, rank = struct.unpack_from(">HBB", raw)
    if zero != 0 or kind != 8:
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{rank}I", raw, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def find(folder, ending):
    found = sorted(folder.glob(f"*{ending}"))
    if len(found) != 1:
        raise SystemExit(f"{folder}: expected one file *{ending}, found {len(found)}")
    return found[0]


def sample_shape(declared, height, width):
    """The shape of one grey picture as the model's input wants it; symbolic dimensions match any size.
    With one channel NHWC, NCHW and flat inputs hold the same numbers in the same order."""
    for shape in [(height, width, 1), (1, height, width), (height, width), (height * width,)]:
        if len(shape) == len(declared) and all(d == s for d, s in zip(declared, shape) if isinstance(d, int)):
            return shape
    raise SystemExit(f"the model's input {declared} does not take a grey picture of {height}x{width}")


def logits(args):
    import onnxruntime

    pictures = read_idx(find(args.data, "-images-idx3-ubyte.gz"))[: args.limit]
    labels = read_idx(find(args.data, "-labels-idx1-ubyte.gz"))[: args.limit]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    # Without this, sums of two products of u8 and i8 saturate on x86-64 processors without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(args.model), options, providers=["CPUExecutionProvider"])
    entry, result = session.get_inputs()[0], session.get_outputs()[0]
    shape = sample_shape(entry.shape[1:], *pictures.shape[1:])
    x = pictures.reshape(-1, *shape).astype(np.float32) / np.float32(255)
    fixed = isinstance(entry.shape[0], int)
    batch = entry.shape[0] if fixed else args.batch
    if fixed and len(x) % batch:
        raise SystemExit(f"{len(x)} pictures do not divide into the model's fixed batches of {batch}")
    starts = range(0, len(x), batch)
    out = np.concatenate([session.run([result.name], {entry.name: x[i : i + batch]})[0] for i in starts])
    y = labels.astype(np.int64)
    np.savez(args.out, x=x, y=y, out=out)
    accuracy = float(np.mean(out.argmax(-1) == y))
    print(json.dumps({"samples": len(x), "accuracy": accuracy, "input": entry.name, "output": result.name}))
    return 0


def outputs(args):
    """Writes NAME-INPUT.npy for two samples and NAME-onnxruntime.npz, and prints the former as `INPUT=FILE`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(args.model), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {}
    described = {entry["name"]: entry for entry in json.loads(args.inputs)}
    for entry in session.get_inputs():
        shape = [extent if isinstance(extent, int) else 2 for extent in entry.shape]
        like = described[entry.name]
        normal = lambda: rng.normal(like["mean"], like["std"], shape).astype(np.float32)
        feeds[entry.name] = rng.integers(0, like["below"], shape) if "below" in like else normal()
        path = f"{args.out}-{entry.name}.npy"
        np.save(path, feeds[entry.name])
        print(f"{entry.name}={path}")
    names = [result.name for result in session.get_outputs()]
    np.savez(f"{args.out}-onnxruntime.npz", **dict(zip(names, session.run(names, feeds))))
    return 0


def latency(args):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(str(args.model), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {}
    for entry in session.get_inputs():
        shape = [extent if isinstance(extent, int) else 1 for extent in entry.shape]
        feeds[entry.name] = rng.random(shape, dtype=np.float32)
    times = []
    start = time.perf_counter()
    while (now := time.perf_counter()) < start + 1.1 * args.seconds or not times:
        session.run(None, feeds)
        # The first tenth of the time warms up.
        if now > start + 0.1 * args.seconds:
            times.append(time.perf_counter() - now)
    print(json.dumps({"median_ms": 1e3 * float(np.median(times)), "runs": len(times), "threads": args.threads}))
    return 0


def select(text):
    """The array that `FILE.npz[:NAME]` or `FILE.npy` means, in double precision."""
    path, _, name = text.partition(".npz:")
    stored = np.load(path + ".npz" if name else path)
    if isinstance(stored, np.ndarray):
        return stored.astype(np.float64)
    names = [k for k in stored.files if k != "x" and stored[k].dtype.kind == "f"]
    name = name or ("out" if "out" in names else names[0] if len(names) == 1 else "")
    if name not in stored.files:
        raise SystemExit(f"{text}: say which array with :NAME, one of {', '.join(stored.files)}")
    return stored[name].astype(np.float64)


def agree(args):
    a, b = select(args.a), select(args.b)
    if a.shape != b.shape or b.ndim < 2 or b.size == 0:
        raise SystemExit(f"cannot compare shapes {list(a.shape)} and {list(b.shape)}")
    finite = bool(np.isfinite(a).all() and np.isfinite(b).all())
    error = float(np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(np.float64).tiny)) if finite else None
    agreement = float(np.mean(a.argmax(-1) == b.argmax(-1)))
    ok = finite and agreement >= args.min_agreement and (args.rel is None or error <= args.rel)
    print(json.dumps({"samples": len(b), "relative_error": error, "agreement": agreement, "ok": ok}))
    return 0 if ok else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("logits", help="run onnxruntime on an IDX pair and keep inputs, labels and outputs")
    command.add_argument("model", type=pathlib.Path)
    command.add_argument("--data", type=pathlib.Path, required=True)
    command.add_argument("--out", type=pathlib.Path, required=True)
    command.add_argument("--limit", type=int)
    command.add_argument("--batch", type=int, default=250)
    command.add_argument("--threads", type=int, default=2)
    command.set_defaults(run=logits)

    command = commands.add_parser("outputs", help="run onnxruntime on random samples and keep inputs and outputs")
    command.add_argument("model", type=pathlib.Path)
    command.add_argument("--inputs", required=True, help="what `sora zoo --json` says of the model's inputs")
    command.add_argument("--out", required=True)
    command.set_defaults(run=outputs)

    command = commands.add_parser("agree", help="exit 1 unless A agrees with the reference B")
    command.add_argument("a")
    command.add_argument("b")
    command.add_argument("--rel", type=float, help="bound of max|a-b| / max|b|; absent, only agreement is checked")
    command.add_argument("--min-agreement", type=float, default=0.995, help="bound of equal top-1 (default 0.995)")
    command.set_defaults(run=agree)

    command = commands.add_parser("latency", help="the median time of one sample in onnxruntime")
    command.add_argument("model", type=pathlib.Path)
    command.add_argument("--seconds", type=float, default=1.0)
    command.add_argument("--threads", type=int, default=1)
    command.set_defaults(run=latency)

    args = parser.parse_args()
    sys.exit(args.run(args))


if __name__ == "__main__":
    main()
