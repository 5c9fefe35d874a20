"""Times all runtimes in turn: each is a process that stays alive with one model, and every round gives each a slice.

    python measure.py MODELS RESULTS.json --programs FOLDER --worker SORA_WORKER [--filter PATTERN]…

A canary before and after each cell shows whether others used the machine. Cells already measured are skipped, unless
they were disturbed.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import select
import statistics
import subprocess
import sys
import tempfile

import plan
from results import CALM, Results

# How the environment keeps a runtime to an older instruction set; those that are missing take no such advice.
RESTRICTIONS = {"avx2": {"sora": {"SORA_ISA": "avx2"}, "openvino": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}}
# What processors have beyond it: where there is none of this, nothing can use more.
BEYOND = {"avx2": {"avx_vnni", "avx512f"}}

# Extra starts of these, to compare the time to the first result.
STARTED_OFTEN = ("Sora", "onnxruntime")
STARTS = 3


def bound(threads):
    """Binds a new process to the last processors that this one may use."""
    processors = sorted(os.sched_getaffinity(0))[-threads:]
    return lambda: os.sched_setaffinity(0, processors)


class Worker:
    """A process that holds one model ready, on as many processors as it has threads."""

    def __init__(self, command, threads, environment):
        self.errors = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            text=True, bufsize=1, env={**os.environ, **environment}, preexec_fn=bound(threads))
        self.loaded = self.read(180)

    def read(self, timeout):
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.process.kill()
            self.errors.seek(0)
            raise RuntimeError(("ended: " if ready else "timeout: ") + self.errors.read()[-600:])
        return json.loads(line)

    def run(self, seconds):
        self.process.stdin.write(f"{seconds}\n")
        return self.read(60 + 20 * seconds)

    def close(self):
        try:
            self.process.stdin.close()
            self.process.wait(5)
        except Exception:  # It has nothing left to do but to end.
            self.process.kill()


class Bench:
    def __init__(self, args):
        self.args = args
        self.restrictions = RESTRICTIONS.get(args.restrict_isa, {})

    def start(self, program, path, cell):
        if program == "sora":
            command = [self.args.worker, path, cell.threads, cell.batch, cell.precision]
        elif program in ("rten", "tract"):
            command = [self.args.programs / program, path, cell.threads]
        else:
            here = pathlib.Path(__file__).with_name("worker.py")
            command = [sys.executable, here, program, cell.precision, path, cell.threads]
        return Worker(command, cell.threads, self.restrictions.get(program, {}))

    def canary(self, threads):
        printed = subprocess.run(
            [self.args.programs / "canary", str(threads)], capture_output=True, text=True, check=True,
            preexec_fn=bound(threads))
        return float(printed.stdout)

    def measure(self, cell):
        canary = [self.canary(cell.threads)]
        found, workers = {}, {}
        for name, program, form in cell.runtimes():
            path = plan.path(self.args.models, cell.network, cell.batch, form)
            if not path.exists():
                found[name] = {"error": f"{path.name} could not be made"}
                continue
            often = cell.batch == cell.threads == 1 and name.split()[0] in STARTED_OFTEN
            try:
                starts = []
                for _ in range(STARTS if often else 1):
                    if name in workers:
                        workers.pop(name).close()
                    workers[name] = self.start(program, path, cell)
                    starts.append(workers[name].loaded)
                found[name] = {"starts": starts, "medians": [], "least": []}
            except Exception as error:  # One runtime that cannot load a model stops no other.
                found[name] = {"error": str(error)}
        for _ in range(self.args.rounds):
            for name, worker in list(workers.items()):
                try:
                    times = worker.run(self.args.seconds)
                    found[name]["medians"].append(times["med"])
                    found[name]["least"].append(times["min"])
                except Exception as error:
                    found[name] = {"error": str(error)}
                    workers.pop(name).close()
        for worker in workers.values():
            worker.close()
        canary.append(self.canary(cell.threads))
        for entry in found.values():
            if entry.get("medians"):
                entry["ms"] = statistics.median(entry["medians"])
        return {"threads": cell.threads, "canary": canary, "runtimes": found}


def machine(args):
    """What the report says of where it was measured."""
    model = "unknown processor"
    flags = ""
    with open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() in ("flags", "Features"):
                flags = value.split()
                break
    interesting = ["avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimddp", "i8mm", "bf16"]
    packages = ["onnxruntime", "openvino", "nncf", "ai-edge-litert", "ncnn", "mnn"]
    programs = json.loads(args.versions) if args.versions else {}
    held = args.restrict_isa is None or not BEYOND[args.restrict_isa] & set(flags)
    return {
        "processor": model,
        "features": [flag for flag in interesting if flag in flags],
        "processors": os.cpu_count(),
        "system": platform.system() + " " + platform.machine(),
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in packages} | programs,
        "restricted": args.restrict_isa,
        "cannot": [] if held else sorted({program for rows in plan.RUNTIMES.values() for _, program, _ in rows}
                                         - set(RESTRICTIONS[args.restrict_isa])),
        "rounds": args.rounds,
        "seconds": args.seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan.arguments(parser)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="folder of rten, tract and canary")
    parser.add_argument("--worker", type=pathlib.Path, required=True, help="Sora's worker")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.25, help="length of a slice")
    parser.add_argument("--restrict-isa", choices=sorted(RESTRICTIONS))
    parser.add_argument("--versions", help="versions of the other programs, as JSON")
    args = parser.parse_args()
    results, bench = Results(args.results), Bench(args)
    results.data["machine"] = machine(args)
    for cell in plan.cells(args.filter):
        if cell.threads > len(os.sched_getaffinity(0)):
            print(f"{cell.key}  skipped: needs {cell.threads} processors", flush=True)
            continue
        old = results["cells"].get(cell.key)
        if old and results.calm(old) >= CALM:
            continue
        new = bench.measure(cell)
        results["cells"][cell.key] = new
        results.save()
        times = (f"{name} {entry['ms']:.4g}" if "ms" in entry else f"{name} –" for name, entry in
                 new["runtimes"].items())
        print(f"{cell.key}  {', '.join(times)}  (calm {results.calm(new):.2f})", flush=True)


if __name__ == "__main__":
    main()
