"""Prints what has been measured as tables in Markdown: python report.py FOLDER"""

import json
import pathlib
import sys


def size(count):
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def main():
    results = [json.loads(path.read_text()) for path in sorted(pathlib.Path(sys.argv[1]).glob("*/result.json"))]
    print("| network | | accuracy | file | latency, ms | × smaller | × faster |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    goals = []
    for result in results:
        variants = {entry["name"]: entry for entry in result["variants"]}
        base = variants["onnxruntime f32"]
        for entry in result["variants"]:
            print(f"| {result['row']} | {entry['name']} | {100 * entry['accuracy']:.2f} % | {size(entry['bytes'])} | {entry['ms']:.4f} "
                  f"| {base['bytes'] / entry['bytes']:.1f} | {base['ms'] / entry['ms']:.2f} |")
        peers = [entry["ms"] for name, entry in variants.items() if "int8" in name and "Sora" not in name]
        best = variants.get("Sora full") or variants["Sora int8"]
        figures = [100 * (base["accuracy"] - best["accuracy"]), base["bytes"] / best["bytes"], base["ms"] / best["ms"],
                   min(peers, default=float("nan")) / best["ms"]]
        met = [figures[0] <= 1, figures[1] >= 10, figures[2] >= 4, figures[3] >= 1.5]
        shown = [f"{figure:.2f}{' ✓' if fits else ''}" for figure, fits in zip(figures, met)]
        goals.append(f"| {result['row']} | {best['name']} | {' | '.join(shown)} |")
    print("\n| network | | points lost (≤ 1) | × smaller (≥ 10) | × faster than onnxruntime f32 (≥ 4) | × faster than the best other int8 (≥ 1.5) |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    print("\n".join(goals))


if __name__ == "__main__":
    main()
