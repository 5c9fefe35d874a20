"""One network compressed by Sora and by others: accuracy, size and latency, on one machine and in one run.

    python headline.py ROW --home FOLDER --model MODEL --data DATA --programs FOLDER [--train DATA] [--augment FILE] [--preprocess SPEC]
        [--fidelity N]

The data is divided as `sora compress` does it: on one half everybody calibrates and decides, on the other accuracy is measured. With
--fidelity what the original says in onnxruntime stands in for labels, on N samples. Files are made once and stay in FOLDER/ROW; latency is
measured anew each time, by all in turn. The result goes to FOLDER/ROW/result.json.
"""

import argparse
import datetime
import json
import logging
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "peers"))
from convert import Converter, command  # noqa: E402
from make import make  # noqa: E402
from measure import Worker  # noqa: E402

# What Sora is asked for: speed, and files as small as half of that budget allows.
FAST = ("--max-drop", "0.01")
SMALL = ("--max-drop", "0.005", "--prefer", "size")
CALIBRATION = 300
ROUNDS = 21
SECONDS = 0.15
# Name, file, program that times it.
VARIANTS = [
    ("onnxruntime f32", "f32.onnx", "onnxruntime"),
    ("onnxruntime int8", "ort-int8.onnx", "onnxruntime"),
    ("OpenVINO f32", "f32.onnx", "openvino"),
    ("OpenVINO + NNCF int8", "ov-int8.xml", "openvino"),
    ("Sora f32", "f32.onnx", "sora"),
    ("Sora int8", "sora-int8.sora", "sora"),
    ("Sora int8, by size", "sora-int8-small.sora", "sora"),
    ("Sora full", "sora-full.sora", "sora"),
    ("Sora full, by size", "sora-small.sora", "sora"),
]


class Row:
    def __init__(self, args):
        self.args = args
        self.home = args.home / args.row
        self.home.mkdir(parents=True, exist_ok=True)
        self.sora, self.prepared, self.worker = (
            args.programs / name for name in ("sora", "examples/prepared", "examples/worker"))

    def path(self, name):
        return self.home / name

    def make_all(self):
        make(self.path("f32.onnx"), self.one_at_a_time)
        if self.args.fidelity:
            make(self.path("given.npz"), self.labelled)
        make(self.path("samples.npz"), lambda to: self.prepare(*self.given(), to))
        make(self.path("ort-int8.onnx"), self.onnxruntime)
        make(self.path("ov-int8.xml"), self.openvino)
        make(self.path("sora-int8.sora"), lambda to: self.compress(to, *FAST))
        make(self.path("sora-int8-small.sora"), lambda to: self.compress(to, *SMALL))
        if self.args.train:
            train = ["--train", self.args.train, *(["--augment", self.args.augment] if self.args.augment else [])]
            make(self.path("sora-full.sora"), lambda to: self.compress(to, *train, *FAST))
            make(self.path("sora-small.sora"), lambda to: self.compress(to, *train, *SMALL))

    def given(self):
        """The data that Sora gets, and how samples become inputs, if something is to be said."""
        if self.args.fidelity:
            return self.path("given.npz"), "none"
        return self.args.data, self.args.preprocess

    def one_at_a_time(self, to):
        """The model with a batch of one sample, which all converters and runtimes take."""
        model = onnx.load(self.args.model)
        weights = {tensor.name for tensor in model.graph.initializer}
        for value in model.graph.input:
            if value.name not in weights:
                value.type.tensor_type.shape.dim[0].dim_value = 1
        for value in model.graph.output:
            value.type.tensor_type.shape.dim[0].dim_value = 1
        del model.graph.value_info[:]
        onnx.save(model, to)

    def prepare(self, data, preprocess, to):
        # Its name has to end as the one that it gets.
        command(self.prepared, self.args.model, data, to, *([preprocess] if preprocess else []))

    def labelled(self, to):
        """Some samples with what the original says of them."""
        self.prepare(self.args.data, self.args.preprocess, to)
        with np.load(to) as arrays:
            x = arrays["x"]
        x = x[np.random.default_rng(0).permutation(len(x))[:self.args.fidelity]]
        y = np.argmax(self.scores("onnxruntime", "f32.onnx", x), 1)
        with open(to, "wb") as file:
            np.savez(file, x=x, y=y.astype(np.int64))

    def samples(self, for_report):
        with np.load(self.path("samples.npz")) as arrays:
            chosen = (arrays["part"] == 2) == for_report
            return arrays["x"][chosen], arrays["y"][chosen]

    def feeds(self):
        """Samples for calibration, one at a time."""
        entry = onnx.load(self.path("f32.onnx")).graph.input[0]
        kind = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        return [{entry.name: sample[None].astype(kind)} for sample in self.samples(False)[0][:CALIBRATION]]

    def onnxruntime(self, to):
        Converter.quantized(self.path("f32.onnx"), to, self.feeds())

    def openvino(self, to):
        import nncf
        import openvino

        nncf.set_log_level(logging.ERROR)
        model = openvino.Core().read_model(self.path("f32.onnx"))
        feeds = self.feeds()
        quantized = nncf.quantize(
            model, nncf.Dataset(feeds), subset_size=len(feeds), preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU)
        final = self.path("ov-int8.xml")
        openvino.save_model(quantized, final, compress_to_fp16=False)
        final.replace(to)

    def compress(self, to, *more):
        data, preprocess = self.given()
        words = [self.sora, "compress", self.args.model, "--data", data, *(["--preprocess", preprocess] if preprocess else []),
                 "-o", to, "--json", *more]
        printed = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        if printed.returncode:
            raise RuntimeError(printed.stdout[-2000:] + printed.stderr[-2000:])
        self.path(to.name.removeprefix("making.") + ".json").write_text(printed.stdout)

    def scores(self, program, name, x):
        if program == "onnxruntime":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(self.path(name)), providers=["CPUExecutionProvider"])
            entry = session.get_inputs()[0]
            kind = np.int64 if entry.type == "tensor(int64)" else np.float32
            run = lambda sample: session.run(None, {entry.name: sample})[0]
        else:
            import openvino

            request = openvino.Core().compile_model(self.path(name), "CPU").create_infer_request()
            kind = request.model_inputs[0].get_element_type().to_dtype()
            run = lambda sample: request.infer([sample])[0]
        return np.concatenate([np.array(run(sample[None].astype(kind))) for sample in x])

    def accuracy(self, program, name):
        x, y = self.samples(True)
        if program == "sora":
            with tempfile.TemporaryDirectory() as folder:
                report = pathlib.Path(folder, "report.npz")
                np.savez(report, x=x, y=y)
                printed = command(self.sora, "evaluate", self.path(name), "--data", report, "--preprocess", "none", "--json")
            return json.loads(printed)["metrics"]["accuracy"]
        return float(np.mean(np.argmax(self.scores(program, name, x), 1) == y))

    def size(self, name):
        path = self.path(name)
        return sum(part.stat().st_size for part in (path, path.with_suffix(".bin")) if part.exists())

    def times(self, variants):
        workers = {}
        for name, file, program in variants:
            if program == "sora":
                words = [self.worker, self.path(file), 1, 1, "f32"]
            else:
                here = pathlib.Path(__file__).parents[1] / "peers/worker.py"
                words = [sys.executable, here, program, "f32", self.path(file), 1]
            workers[name] = Worker(words, 1, {})
        medians = {name: [] for name in workers}
        for _ in range(ROUNDS):
            for name, worker in workers.items():
                medians[name].append(worker.run(SECONDS)["med"])
        for worker in workers.values():
            worker.close()
        # The calmest slice of each: what disturbs a machine only makes it slower.
        return {name: min(found) for name, found in medians.items()}

    def measure(self):
        variants = [variant for variant in VARIANTS if self.path(variant[1]).exists()]
        known = self.path("accuracy.json")
        if not known.exists():
            known.write_text(json.dumps({name: self.accuracy(program, file) for name, file, program in variants}))
        accuracy, times = json.loads(known.read_text()), self.times(variants)
        result = {
            "row": self.args.row, "date": datetime.date.today().isoformat(), "fidelity": bool(self.args.fidelity),
            "samples": len(self.samples(True)[1]),
            "variants": [{"name": name, "accuracy": accuracy[name], "bytes": self.size(file), "ms": times[name]}
                         for name, file, _ in variants],
        }
        self.path("result.json").write_text(json.dumps(result, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row")
    for name in ("--home", "--model", "--data", "--programs"):
        parser.add_argument(name, type=pathlib.Path, required=True)
    parser.add_argument("--train", type=pathlib.Path)
    parser.add_argument("--augment", type=pathlib.Path)
    parser.add_argument("--preprocess")
    parser.add_argument("--fidelity", type=int, default=0, metavar="N", help="compare with the original, on N samples")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    row = Row(args)
    row.make_all()
    row.measure()


if __name__ == "__main__":
    main()
