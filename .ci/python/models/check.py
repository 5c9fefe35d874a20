"""Runs the models in Sora and in onnxruntime, compares what they give and how long they take, and prints a table.

    python check.py SORA REPLAY [--only NAME]… [--seconds S] [--json FILE]

Each model is run at several shapes, on one and on two threads, as it is and as Sora exports it. The status is 1 where a
model that is not listed as failing differs, or one that is listed does not.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime

import catalog

TOLERANCE = 1e-4
THREADS = (1, 2)


class Wrong(Exception):
    """A model that does not do what it has to."""


class Sora:
    """A model that Sora holds ready."""

    def __init__(self, replay, path, folder):
        self.process = subprocess.Popen(
            [replay, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.inputs, self.outputs = (str(pathlib.Path(folder, name)) for name in ("in.npz", "out.npz"))
        self.loaded = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with status {self.process.wait()}"}
        if "error" in answer:
            raise Wrong(answer["error"])
        return answer

    def ask(self, feeds, threads, **options):
        np.savez(self.inputs, **feeds)
        request = {"inputs": self.inputs, "outputs": self.outputs, "threads": threads, **options}
        self.process.stdin.write(json.dumps(request) + "\n")
        return self.answer()

    def run(self, feeds, threads):
        self.ask(feeds, threads)
        with np.load(self.outputs) as stored:
            return {name: stored[name] for name in stored.files}

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Reference:
    """A model that onnxruntime holds ready."""

    def __init__(self, path, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_outputs()]

    def run(self, feeds):
        return dict(zip(self.names, self.session.run(None, feeds)))

    def time(self, feeds, seconds):
        times, begun = [], time.perf_counter()
        while not times or time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            self.session.run(None, feeds)
            times.append(time.perf_counter() - start)
        return 1e3 * float(np.median(times))


def steps(case, run):
    """The outputs of each step, and the inputs that it had."""
    results, carried = [], {}
    for step in case.steps:
        feeds = {**step, **carried}
        outputs = run(feeds)
        carried = {entry: outputs[result] for result, entry in case.carry.items()}
        results.append((feeds, outputs))
    return results


def distance(found, expected, where):
    """The norm of the difference over that of what is expected; other than floats have to be equal."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise Wrong(f"{where} is {found.dtype}{found.shape}, not {expected.dtype}{expected.shape}")
    if not np.issubdtype(expected.dtype, np.floating):
        if not np.array_equal(found, expected):
            raise Wrong(f"{where} differs")
        return 0.0
    expected = expected.astype(np.float64)
    if not np.isfinite(found).all():
        raise Wrong(f"{where} is not finite")
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-12))


def compare(model, case, found, expected, how):
    """The largest distance of any output at any step."""
    worst = 0.0
    for number, ((_, ours), (_, theirs)) in enumerate(zip(found, expected)):
        where = f"{how}, {case.label}, step {number}"
        if list(ours) != list(theirs):
            raise Wrong(f"{where}: outputs {list(ours)} instead of {list(theirs)}")
        worst = max(worst, *(distance(ours[name], theirs[name], f"{where}: {name}") for name in theirs))
        if worst > TOLERANCE:
            raise Wrong(f"{where}: off by {worst:.1e}")
        decisions = [model.decide(list(outputs.values())) for outputs in (ours, theirs)]
        if not np.array_equal(*decisions):
            raise Wrong(f"{where}: decides otherwise")
    return worst


def declared(values):
    """Names, types and named extents of inputs or outputs."""
    def extent(dim):
        return dim.dim_value if dim.dim_value > 0 else dim.dim_param

    types = [value.type.tensor_type for value in values]
    return [(value.name, kind.elem_type, [extent(dim) for dim in kind.shape.dim]) for value, kind in zip(values, types)]


def nodes(graph):
    """The nodes of a graph and of those in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


# Operators whose nodes people know by their names: they have weights, and no pass of the import removes them.
LAYERS = {"Conv", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "RNN"}
# What a file says of itself.
ABOUT = ("producer_name", "producer_version", "domain", "model_version", "doc_string")


def kept(before, after):
    """Refuses an exported model that lost names, extents, metadata or operators."""
    before, after = onnx.load(before), onnx.load(after)
    onnx.checker.check_model(after)
    (ours, theirs) = (declared(model.graph.input) for model in (after, before))
    for (name, kind, extents), (wanted, other, expected) in zip(ours, theirs, strict=True):
        # An extent without a name, or with a character that names none, may get one.
        open_extent = lambda extent: extent in ("", "?")
        same = len(extents) == len(expected) and all(
            a == b or open_extent(b) for a, b in zip(extents, expected))
        if (name, kind) != (wanted, other) or not same:
            raise Wrong(f"input {wanted}: {expected} became {name}: {extents}")
    for (name, kind, _), (wanted, other, _) in zip(
            declared(after.graph.output), declared(before.graph.output), strict=True):
        if (name, kind) != (wanted, other):
            raise Wrong(f"output {wanted} became {name}")
    lost = {(p.key, p.value) for p in before.metadata_props} - {(p.key, p.value) for p in after.metadata_props}
    if lost:
        raise Wrong(f"metadata {sorted(key for key, _ in lost)} is lost")
    for name in ABOUT:
        if getattr(before, name) != getattr(after, name):
            raise Wrong(f"{name} {getattr(before, name)!r} became {getattr(after, name)!r}")
    if (before.graph.name, before.graph.doc_string) != (after.graph.name, after.graph.doc_string):
        raise Wrong(f"graph {before.graph.name} became {after.graph.name}, or lost its documentation")
    # Names of a branch that is always taken get the name of its node in front.
    known = {part for node in nodes(after.graph) for part in (node.name, node.name.rsplit("_branch/", 1)[-1])}
    lost = [node.name for node in nodes(before.graph) if node.op_type in LAYERS and node.name and node.name not in known]
    if lost:
        raise Wrong(f"layers {lost} are lost")
    matrices = {init.name for init in before.graph.initializer if len(init.dims) > 1}
    read = {name for node in nodes(before.graph) for name in node.input}
    lost = (matrices & read) - {init.name for init in after.graph.initializer}
    if lost:
        raise Wrong(f"weights {sorted(lost)} are lost")
    opset = [max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) for model in (before, after)]
    if opset[1] < opset[0]:
        raise Wrong(f"opset {opset[0]} became {opset[1]}")


def check(model, args, folder):
    """One row of the table."""
    sora = Sora(args.replay, model.path, folder)
    row = {"model": model.name, "nodes": sora.loaded["nodes"], "load_ms": sora.loaded["load_ms"], "cases": []}
    exported = pathlib.Path(folder, "exported.onnx")
    done = subprocess.run([args.sora, "convert", model.path, exported], capture_output=True, text=True)
    if done.returncode:
        raise Wrong(f"export: {done.stderr.strip()}")
    kept(model.path, exported)
    again, exported = Reference(exported, 1), Sora(args.replay, exported, folder)
    references = {threads: Reference(model.path, threads) for threads in THREADS}
    for case in model.cases():
        expected = steps(case, references[1].run)
        result = {"shape": case.label, "error": 0.0, "decisions": len(expected)}
        for threads in THREADS:
            found = steps(case, lambda feeds: sora.run(feeds, threads))
            result["error"] = max(result["error"], compare(model, case, found, expected, f"{threads} threads"))
        compare(model, case, steps(case, again.run), expected, "exported, in onnxruntime")
        compare(model, case, steps(case, lambda feeds: exported.run(feeds, 1)), expected, "exported, in Sora")
        feeds = expected[len(expected) // 2][0]
        for threads in THREADS:
            ours, theirs = [], []
            for _ in range(3 if args.seconds else 0):  # In turns, so that both meet the same machine.
                ours.append(sora.ask(feeds, threads, seconds=args.seconds)["ms"])
                theirs.append(references[threads].time(feeds, args.seconds))
            if ours:
                result[f"t{threads}"] = [min(ours), min(theirs)]
        result["kernels"] = sora.ask(feeds, 1, seconds=0.0, profile=True)["kernels"]
        row["cases"].append(result)
    sora.close()
    exported.close()
    return row


def table(rows):
    """The rows in Markdown, one line a shape."""
    yield "| model | nodes | shape | error | 1 thread: Sora, onnxruntime, ratio | 2 threads | on the reference evaluator |"
    yield "|---|--:|---|--:|--:|--:|---|"
    for row in rows:
        for case in row["cases"]:
            times = []
            for threads in THREADS:
                ours, theirs = case.get(f"t{threads}", (0.0, 0.0))
                times.append(f"{ours:.3f}, {theirs:.3f}, {ours / theirs:.2f}" if theirs else "")
            slow = [(ms, kernel.split(":", 1)[1]) for kernel, ms in case["kernels"].items() if kernel.startswith("reference:")]
            total = sum(case["kernels"].values())
            slow = ", ".join(f"{kernel} {100 * ms / total:.0f} %" for ms, kernel in sorted(slow, reverse=True))
            yield (f"| {row['model']} | {row['nodes']} | {case['shape']} | {case['error']:.1e} | {times[0]} | {times[1]} "
                   f"| {slow} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sora", help="the command")
    parser.add_argument("replay", help="the example of the same name")
    parser.add_argument("--only", action="append", help="part of a model's name")
    parser.add_argument("--seconds", type=float, default=0.2, help="of each of three slices of time; 0 measures none")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()
    rows, wrong = [], []
    for model in catalog.listed():
        if args.only and not any(part in model.name for part in args.only):
            continue
        reason = catalog.KNOWN.get(model.name)
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.append(check(model, args, folder))
                print(f"{model.name}: {len(rows[-1]['cases'])} shapes agree", flush=True)
                if reason:
                    wrong.append(f"{model.name} passes, and is listed as failing: {reason}")
            except Wrong as why:
                print(f"{model.name}: {why}", flush=True)
                if not reason:
                    wrong.append(f"{model.name}: {why}")
    print("\n".join(table(rows)))
    for name, reason in catalog.KNOWN.items():
        print(f"not yet: {name}: {reason}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
