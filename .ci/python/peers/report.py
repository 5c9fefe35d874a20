"""The measurements as the Markdown that docs/PERFORMANCE.md holds.

    python report.py RESULTS.json
"""

import argparse
import math
import statistics
import textwrap

import plan
from results import CALM, Results

TITLES = {
    "f32": "f32",
    "int8": "int8, static where a runtime can, else dynamic",
    "bf16": "bf16, where a runtime has it",
}
LIMIT = 1.05
GEOMETRIC = statistics.geometric_mean


def runtime_of(name):
    return name.removesuffix(" dynamic").removesuffix(" packed")


def number(value, digits=3):
    """With so many significant digits and no exponent."""
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{places}f}"


def row(cells):
    return "| " + " | ".join(cells) + " |"


def heading(columns):
    return [row(columns), row(["---"] + ["---:"] * (len(columns) - 1))]


class Report:
    def __init__(self, results):
        self.results = results
        self.machine = results["machine"]
        restricted = self.machine.get("restricted")
        # Runtimes that used instructions Sora was denied are shown, not compared with.
        self.free = set(self.machine.get("cannot", [])) if restricted else set()
        self.cells = [cell for cell in plan.cells([]) if cell.key in results["cells"]]

    def times(self, cell):
        """Milliseconds by runtime, of its fastest variant."""
        best = {}
        for name, entry in self.results["cells"][cell.key]["runtimes"].items():
            if "ms" in entry:
                runtime = runtime_of(name)
                best[runtime] = min(entry["ms"], best.get(runtime, math.inf))
        return best

    def unrestricted(self, runtime):
        return runtime.lower() in self.free

    def ratio(self, cell):
        """Ours over the fastest peer's; `None` when either is missing."""
        times = self.times(cell)
        peers = [ms for name, ms in times.items() if name != "Sora" and not self.unrestricted(name)]
        return times["Sora"] / min(peers) if peers and "Sora" in times else None

    def text(self):
        lines = self.origin()
        for precision in plan.RUNTIMES:
            cells = [cell for cell in self.cells if cell.precision == precision]
            if cells:
                lines += self.table(precision, cells)
        lines += self.threads() + self.start()
        # Only tables have lines that cannot be broken.
        wrapped = (line if line.startswith("|") else textwrap.fill(line, 120) for line in lines)
        return "\n".join(wrapped).rstrip() + "\n"

    def origin(self):
        machine = self.machine
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        lines = [
            f"Measured on {machine['date']} on {machine['processors']} cores of {machine['processor']} "
            f"({', '.join(machine['features'])}), {machine['system']}; medians of {machine['rounds']} slices of "
            f"{machine['seconds']} s each, all runtimes in turn, in milliseconds for the whole batch. {versions}.",
            "",
        ]
        if machine.get("restricted"):
            names = [name for name in plan.COLUMNS if self.unrestricted(name)]
            lines += [
                f"Restricted to {machine['restricted']}: Sora and OpenVINO. Nothing restricts {', '.join(names)} (marked *), "
                "which used all that the machine has; the ratio leaves them out."
                if names else f"The machine has nothing beyond {machine['restricted']}, so that all are held to it.",
                "",
            ]
        return lines

    def table(self, precision, cells):
        columns = [name for name in plan.COLUMNS if any(name in self.times(cell) for cell in cells)]
        marked = [name + "*" if self.unrestricted(name) else name for name in columns]
        lines = [f"### {TITLES[precision]}", ""]
        lines += heading(["network", "batch", "threads", *marked, "Sora ÷ fastest"])
        for cell in cells:
            times = self.times(cell)
            fastest = min((ms for name, ms in times.items() if name != "Sora"), default=None)
            shown = [
                "–" if name not in times else f"**{number(times[name])}**" if times[name] == fastest
                else number(times[name])
                for name in columns
            ]
            ratio = self.ratio(cell)
            disturbed = self.results.calm(self.results["cells"][cell.key]) < CALM
            mark = " (disturbed)" if disturbed else ""
            lines.append(row([cell.network, str(cell.batch), str(cell.threads), *shown,
                              "–" if ratio is None else f"{ratio:.2f}{mark}"]))
        return lines + ["", self.summary(cells), ""]

    def summary(self, cells):
        ratios = {cell: self.ratio(cell) for cell in cells}
        ratios = {cell: ratio for cell, ratio in ratios.items() if ratio is not None}
        if not ratios:
            return "No cell with both Sora and a peer."
        groups = {
            "the zoo's": lambda cell: not cell.network.endswith(plan.KERAS),
            "Keras exports": lambda cell: cell.network.endswith(plan.KERAS),
            "batch 1": lambda cell: cell.batch == 1,
            "batch 8": lambda cell: cell.batch == 8,
            "1 thread": lambda cell: cell.threads == 1,
            "2 threads": lambda cell: cell.threads == 2,
        }
        parts = []
        for name, belongs in groups.items():
            chosen = [ratio for cell, ratio in ratios.items() if belongs(cell)]
            if chosen:
                parts.append(f"{name} {GEOMETRIC(chosen):.2f}")
        above = sorted(((ratio, cell) for cell, ratio in ratios.items() if ratio > LIMIT), key=lambda x: -x[0])
        named = ", ".join(f"{cell.network} batch {cell.batch} on {cell.threads} ({ratio:.2f})" for ratio, cell in above)
        return (f"Geometric mean of Sora ÷ fastest: **{GEOMETRIC(ratios.values()):.2f}** over {len(ratios)} cells "
                f"({', '.join(parts)}). Above {LIMIT}: {named or 'none'}.")

    def threads(self):
        """How much a second thread and 8 bits gain."""
        lines = []
        for network in plan.NETWORKS:
            def ms(precision, threads):
                cell = plan.Cell(network, 1, precision, threads)
                return self.times(cell).get("Sora") if cell.key in self.results["cells"] else None

            gains = [self.quotient(ms(p, 1), ms(p, 2)) for p in plan.RUNTIMES]
            smaller = [self.quotient(ms(p, t), ms("f32", t)) for p in ("int8", "bf16") for t in (1, 2)]
            if any(cell != "–" for cell in gains + smaller):
                lines.append(row([network, *gains, *smaller]))
        if not lines:
            return []
        columns = ["network"] + [f"{p}: 1 ÷ 2 threads" for p in plan.RUNTIMES]
        columns += [f"{p} ÷ f32, {t} thread{'s' * (t > 1)}" for p in ("int8", "bf16") for t in (1, 2)]
        return ["### What a second thread and fewer bits gain in Sora, batch 1", "", *heading(columns), *lines, ""]

    @staticmethod
    def quotient(a, b):
        return "–" if not a or not b else f"{a / b:.2f}"

    def start(self):
        """Error, time to the first result, and memory."""
        lines = []
        for cell in self.cells:
            if cell.batch != 1 or cell.threads != 1:
                continue
            runtimes = self.results["cells"][cell.key]["runtimes"]
            for name in ("Sora", "Sora packed", "Sora dynamic"):
                theirs = name.removesuffix(" packed").replace("Sora", "onnxruntime")
                starts = [runtimes.get(n, {}).get("starts") for n in (name, theirs)]
                if not starts[0]:
                    continue
                first, memory = (
                    [min(start[key] for start in of) if of else None for of in starts]
                    for key in ("load_first_ms", "memory_mb"))
                errors = [self.results["errors"].get(f"{cell.network}:{cell.precision}:{n}") for n in (name, theirs)]
                shown = ["–" if error is None else f"{error:.1e}" for error in errors]
                precision = cell.precision + name.removeprefix("Sora")
                lines.append(row([cell.network, precision, *shown, *self.pair(*first), *self.pair(*memory)]))
        if not lines:
            return []
        columns = ["network", "precision", "relative error, Sora", "onnxruntime", "first result, Sora", "onnxruntime", "ratio",
                   "peak memory, Sora", "onnxruntime", "ratio"]
        return [
            "### Same function, start and memory",
            "",
            "Relative error: norm of the difference to onnxruntime's f32 outputs over the norm of those. First result: from the file on "
            "disk to the first output, ms, the least of three starts. Memory: the most that the process held above what it held "
            "before loading, MiB. Packed: a `.sora` file that `sora convert --pack` wrote on this machine.",
            "",
            *heading(columns), *lines, "",
        ]

    def pair(self, ours, theirs):
        return [number(value) if value else "–" for value in (ours, theirs)] + [self.quotient(ours, theirs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    print(Report(Results(parser.parse_args().results)).text(), end="")


if __name__ == "__main__":
    main()
