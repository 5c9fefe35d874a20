"""How far Sora's outputs are from onnxruntime's in f32, as the norm of the difference over the norm of the outputs.

    python errors.py MODELS RESULTS.json --sora SORA [--filter PATTERN]…
"""

import argparse
import os
import pathlib
import subprocess
import tempfile

import numpy as np
import onnx
import onnxruntime

import plan
import samples
from results import Results


def reference(path, feeds):
    """The first output of a model in onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def sora(command, path, feeds, precision, environment):
    """The first output of a model in Sora."""
    with tempfile.TemporaryDirectory() as folder:
        words = [command, "run", str(path), "--output", f"{folder}/out.npz"]
        for name, array in feeds.items():
            np.save(f"{folder}/{name}.npy", array)
            words += ["--input", f"{name}={folder}/{name}.npy"]
        if precision == "bf16":
            words += ["--precision", "bf16"]
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})
        if done.returncode:
            raise RuntimeError(done.stderr[-600:])
        stored = np.load(f"{folder}/out.npz")
        return stored[stored.files[0]]


def distance(found, expected):
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan.arguments(parser)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--sora", required=True, help="the command")
    parser.add_argument("--restrict-isa")
    args = parser.parse_args()
    environment = {"SORA_ISA": args.restrict_isa} if args.restrict_isa else {}
    results = Results(args.results)
    for cell in plan.cells(args.filter):
        if cell.batch != 1 or cell.threads != 1:
            continue
        origin = plan.path(args.models, cell.network, 1, "f32.onnx")
        if not origin.exists():
            continue
        model = onnx.load(origin)
        feeds = samples.draw(samples.describe(args.models, cell.network), model, np.random.default_rng(11))
        expected = reference(origin, feeds)
        for name, program, form in cell.runtimes():
            path = plan.path(args.models, cell.network, 1, form)
            if program not in ("sora", "onnxruntime") or not path.exists():
                continue
            if program == "onnxruntime" and cell.precision == "f32":
                continue
            key = f"{cell.network}:{cell.precision}:{name}"
            try:
                found = reference(path, feeds) if program == "onnxruntime" else sora(
                    args.sora, path, feeds, cell.precision, environment)
                results["errors"][key] = distance(found, expected)
                print(f"{key}  {results['errors'][key]:.2g}", flush=True)
            except Exception as error:
                results["errors"].pop(key, None)
                print(f"{key}  FAILED: {error}", flush=True)
    results.save()


if __name__ == "__main__":
    main()
