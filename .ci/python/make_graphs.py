"""Writes random ONNX models with inputs and what onnxruntime makes of them, for Sora to be compared with.

    python make_graphs.py FOLDER --seed SEED --count COUNT

For each seed from SEED on: graph_SEED.onnx, and graph_SEED.npz with the inputs under their names, the outputs under
"out:" + name and how far each may be off under "tolerance:" + name. A seed always gives the same model.
"""

import argparse
import collections
import pathlib

import numpy as np
import onnxruntime

from graphs import control, elementwise, layers, movement, patterns
from graphs.builder import Graph, Unsteady, session

FAMILIES = [elementwise.ROWS] * 4 + [movement.ROWS] * 3 + [layers.ROWS] * 3 + [patterns.ROWS] * 3 + [control.ROWS]


def build(seed):
    g = Graph(seed)
    wanted = g.size(3, 25)
    while sum(node.op_type != "Constant" for node in g.nodes) < wanted:
        row = g.pick(g.pick(FAMILIES))
        mark = g.mark()
        try:
            row(g)
        except Unsteady:
            g.restore(mark)
        except Exception as e:
            raise SystemExit(f"seed {seed}: {row.__name__}: {e}") from e
    g.finish()
    return g


def write(seed, folder):
    """Builds a graph, runs it as a whole and saves all; returns its operators."""
    g = build(seed)
    # Each node ran; of some, onnx 1.18 infers a shape that they do not have.
    model = g.model(full_check=False)
    runner = session(model)
    names = [output.name for output in runner.get_outputs()]
    found = dict(zip(names, runner.run(names, g.feeds)))
    for name, value in found.items():
        expected, bound = g.array(name), g.tolerance(name)
        if value.shape != expected.shape or np.abs(value.astype(float) - expected.astype(float)).max(initial=0) > bound:
            raise SystemExit(f"seed {seed}: onnxruntime gives {name} otherwise when it runs node by node")
    (folder / f"{g.name}.onnx").write_bytes(model.SerializeToString())
    results = {f"out:{name}": value for name, value in found.items()}
    bounds = {f"tolerance:{name}": np.float64(g.tolerance(name)) for name in names}
    np.savez(folder / f"{g.name}.npz", **g.feeds, **results, **bounds)
    return [node.op_type for node in g.nodes]


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("folder", type=pathlib.Path)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--count", type=int, default=300)
    args = args.parse_args()
    onnxruntime.set_default_logger_severity(4)
    args.folder.mkdir(parents=True, exist_ok=True)
    counts = collections.Counter()
    for seed in range(args.seed, args.seed + args.count):
        counts.update(write(seed, args.folder))
    print(f"{args.count} graphs of {counts.total()} nodes, {len(counts)} operators")


if __name__ == "__main__":
    main()
