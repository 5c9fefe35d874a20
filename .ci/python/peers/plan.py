"""What is measured: networks, cells, runtimes, and the files that each needs.

Every file of a model lies in the folder of models as NETWORK.bBATCH.FORM. The networks are those of `sora zoo`, and
those that Keras exports under the same names with `-keras` added.
"""

import dataclasses
import fnmatch
import pathlib

IMAGES = ["cnn32", "ds_cnn", "mobilenet_v2", "resnet50", "efficientnet_b0"]
SEQUENCES = ["minilm", "lstm"]
KERAS = "-keras"
NETWORKS = IMAGES + SEQUENCES + [name + KERAS for name in IMAGES]

# Runtimes by precision: the name in the report, the program that runs it, and the form of the file that it takes.
# Names that begin alike are variants of one runtime, of which the report shows the fastest.
RUNTIMES = {
    "f32": [
        ("Sora", "sora", "f32.onnx"),
        ("Sora packed", "sora", "f32.sora"),
        ("onnxruntime", "onnxruntime", "f32.onnx"),
        ("OpenVINO", "openvino", "f32.onnx"),
        ("LiteRT", "litert", "f32.tflite"),
        ("ncnn", "ncnn", "f32.ncnn"),
        ("MNN", "mnn", "f32.mnn"),
        ("tract", "tract", "f32.onnx"),
        ("rten", "rten", "f32.onnx"),
    ],
    "int8": [
        ("Sora", "sora", "int8.onnx"),
        ("Sora dynamic", "sora", "dynamic.onnx"),
        ("Sora packed", "sora", "int8.sora"),
        ("onnxruntime", "onnxruntime", "int8.onnx"),
        ("onnxruntime dynamic", "onnxruntime", "dynamic.onnx"),
        ("OpenVINO", "openvino", "int8.xml"),
        ("LiteRT", "litert", "int8.tflite"),
        ("MNN", "mnn", "int8.mnn"),
        ("tract", "tract", "int8.onnx"),
        ("tract dynamic", "tract", "dynamic.onnx"),
        ("rten", "rten", "int8.onnx"),
        ("rten dynamic", "rten", "dynamic.onnx"),
    ],
    "bf16": [
        ("Sora", "sora", "f32.onnx"),
        ("OpenVINO", "openvino", "f32.onnx"),
        ("ncnn", "ncnn", "f32.ncnn"),
        ("MNN", "mnn", "f32.mnn"),
    ],
}

COLUMNS = ["Sora", "onnxruntime", "OpenVINO", "LiteRT", "ncnn", "MNN", "tract", "rten"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One comparison: every runtime on one network in one setting."""

    network: str
    batch: int
    precision: str
    threads: int

    @property
    def key(self):
        return f"{self.network}:b{self.batch}:{self.precision}:t{self.threads}"

    def runtimes(self):
        """The rows of RUNTIMES that have a model of this network."""
        rows = [row for row in RUNTIMES[self.precision] if exists(self.network, self.batch, row[2])]
        # Packed files differ in how they start, which one setting tells.
        return [row for row in rows if not row[2].endswith(".sora") or self.batch == self.threads == 1]


def exists(network, batch, form):
    """Whether there can be such a file."""
    if form.endswith("ncnn"):
        return batch == 1  # ncnn has no batch.
    if form.startswith("dynamic"):
        return network in SEQUENCES
    if form in ("int8.onnx", "int8.sora"):
        return network != "lstm"  # onnxruntime quantizes recurrent layers dynamically only.
    return True


def cells(filters):
    """The cells that one of the patterns matches; all for no pattern."""
    every = (
        Cell(network, batch, precision, threads)
        for network in NETWORKS
        for batch in ([1] if network in SEQUENCES else [1, 8])
        for precision in RUNTIMES
        for threads in (1, 2)
    )
    return [cell for cell in every if not filters or any(fnmatch.fnmatch(cell.key, f) for f in filters)]


def twin(network):
    """The network of Keras with the same layers, whose LiteRT models serve both."""
    return network.removesuffix(KERAS) + KERAS


def path(models, network, batch, form):
    """Where a file lies. LiteRT's come from Keras, whatever the other runtimes read."""
    name = twin(network) if form.endswith("tflite") else network
    return pathlib.Path(models) / f"{name}.b{batch}.{form}"


def files(models, filters):
    """Every file that the cells need, each once, with what it is made for: `(path, network, batch, form)`."""
    found = {}
    for cell in cells(filters):
        for _, _, form in cell.runtimes():
            where = path(models, cell.network, cell.batch, form)
            found.setdefault(where, (where, cell.network, cell.batch, form))
    return list(found.values())


def arguments(parser):
    """Adds what every script takes."""
    parser.add_argument("models", type=pathlib.Path, help="folder of the models")
    parser.add_argument("--filter", action="append", default=[], help="NETWORK:bBATCH:PRECISION:tTHREADS, * matches")
