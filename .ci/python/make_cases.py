"""Writes small ONNX models with inputs and onnxruntime's outputs, for Sora to be compared with.

    python make_cases.py FOLDER [--only NAME …]

For each case: NAME.onnx, and NAME.npz with the inputs under their names and the outputs under "out:" + name.
onnxruntime runs without graph optimizations, so that quantized models mean what their operators say.
"""

import argparse
import collections
import json
import logging
import pathlib

import numpy as np
import onnx
import onnxruntime

import cases_contrib
import cases_quantized
import cases_sequence
import cases_vision

CASES = cases_vision.CASES + cases_sequence.CASES + cases_quantized.CASES + cases_contrib.CASES
EXTERNAL_ABOVE = 256  # bytes


def write(net, folder):
    """Saves the model, runs it from the file and saves its inputs and outputs; returns a summary."""
    path = folder / f"{net.name}.onnx"
    model = net.model()
    if getattr(net, "external", False):
        data = f"{net.name}.data"
        (folder / data).unlink(missing_ok=True)  # onnx appends to it
        onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=EXTERNAL_ABOVE)
    else:
        onnx.save(model, path)

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, net.feeds)))
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            raise SystemExit(f"{net.name}: output {name} is not finite")
        if value.dtype == np.float32 and value.std() < 1e-4:
            raise SystemExit(f"{net.name}: output {name} is constant, so it would show no error")
    np.savez(folder / f"{net.name}.npz", **net.feeds, **{f"out:{name}": value for name, value in outputs.items()})

    ops = collections.Counter(f"{n.domain}.{n.op_type}".lstrip(".") for n in model.graph.node)
    shapes = {name: list(value.shape) for name, value in outputs.items()}
    return {"case": net.name, "opset": net.opset, "ops": dict(sorted(ops.items())), "outputs": shapes}


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("folder", type=pathlib.Path)
    args.add_argument("--only", nargs="+", choices=[c.__name__ for c in CASES])
    args = args.parse_args()
    logging.disable(logging.WARNING)  # the quantizer recommends preprocessing
    args.folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if not args.only or case.__name__ in args.only:
            print(json.dumps(write(case(), args.folder)))


if __name__ == "__main__":
    main()
