"""From ONNX to what each runtime takes, quantized where it is to be.

    python convert.py MODELS --sora SORA [--filter PATTERN]…
"""

import argparse
import importlib.util
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import onnx

import plan
import samples
from make import make


def command(*words, **options):
    """Runs a program quietly; what it printed is part of the error when it fails."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=900, **options)
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    return done.stdout


class Converter:
    """The recipes, by form; each writes the file `to` of one network and batch."""

    def __init__(self, models, sora):
        self.models, self.sora = models, sora

    def path(self, network, batch, form):
        return plan.path(self.models, network, batch, form)

    def batches(self, network, batch, count):
        """`count` batches of samples."""
        rng = np.random.default_rng(3)
        described = samples.describe(self.models, network)
        model = onnx.load(self.path(network, batch, "f32.onnx"))
        return [samples.draw(described, model, rng) for _ in range(count)]

    # f32.onnx

    def write(self, network, batch, to):
        """From the zoo, or by cleaning up what Keras exported."""
        if network.endswith(plan.KERAS):
            return self.simplify(self.path(network, batch, "raw.onnx"), to)
        printed = command(self.sora, "zoo", network, "-o", to, "--batch", batch, "--json")
        inputs = json.dumps(json.loads(printed)["inputs"])
        (self.models / f"{network}.inputs.json").write_text(inputs)

    def simplify(self, source, to):
        import onnxsim

        model, same = onnxsim.simplify(onnx.load(source))
        if not same:
            raise RuntimeError("the simplified model computes something else")
        graph = model.graph
        used = {name for node in graph.node for name in node.input}
        for value in [value for value in graph.input if value.name not in used]:
            graph.input.remove(value)
        # Names that every converter takes.
        renamed = {graph.input[0].name: "x", graph.output[0].name: "y"}

        def name(text):
            return renamed.get(text, text.replace(":", "_").replace("/", "_").replace(";", "_"))

        for node in graph.node:
            node.name = name(node.name)
            node.input[:] = [name(text) for text in node.input]
            node.output[:] = [name(text) for text in node.output]
        for value in [*graph.initializer, *graph.input, *graph.output]:
            value.name = name(value.name)
        del graph.value_info[:]
        onnx.checker.check_model(model)
        onnx.save(model, to)

    # Sora's own

    def packed(self, network, batch, to, form):
        """What Sora keeps for this machine beside a model."""
        command(self.sora, "convert", "--pack", self.path(network, batch, form), to)

    # onnxruntime's quantization

    def static(self, network, batch, to):
        batches = self.batches(network, batch, 8 if batch == 1 else 1)
        self.quantized(self.path(network, batch, "f32.onnx"), to, batches, network in plan.SEQUENCES)

    @staticmethod
    def quantized(source, to, batches, weighted_products_only=False):
        """QDQ with u8 activations and i8 weights per channel: the other choice, i8 activations, is slower in
        onnxruntime on x86-64."""
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self, batches):
                self.batches = iter(batches)

            def get_next(self):
                return next(self.batches, None)

        with tempfile.TemporaryDirectory() as folder:
            prepared = pathlib.Path(folder, "prepared.onnx")
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            chosen = Converter.weighted_products(prepared) if weighted_products_only else {}
            quantize_static(
                str(prepared), str(to), Reader(batches),
                quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8, **chosen)

    @staticmethod
    def weighted_products(path):
        """In a transformer only products with weights: those inside of attention lose more than they gain."""
        graph = onnx.load(path).graph
        constants = {tensor.name for tensor in graph.initializer}
        products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
        inside = [node.name for node in products if not constants.intersection(node.input)]
        return {"op_types_to_quantize": ["MatMul", "Gemm"], "nodes_to_exclude": inside}

    def dynamic(self, network, batch, to):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        source = self.path(network, batch, "f32.onnx")
        quantize_dynamic(str(source), str(to), per_channel=True, weight_type=QuantType.QInt8)

    # OpenVINO

    def openvino(self, network, batch, to):
        import nncf
        import openvino

        nncf.set_log_level(logging.ERROR)
        model = openvino.Core().read_model(self.path(network, batch, "f32.onnx"))
        batches = self.batches(network, batch, 8 if batch == 1 else 1)
        quantized = nncf.quantize(
            model, nncf.Dataset(batches), subset_size=len(batches), preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            model_type=nncf.ModelType.TRANSFORMER if network == "minilm" else None)
        # The weights' file is named after the description's: write it where it stays, the description last.
        final = self.path(network, batch, "int8.xml")
        openvino.save_model(quantized, final, compress_to_fp16=False)
        os.replace(final, to)

    # MNN

    def mnn(self, network, batch, to, *options):
        # The converter's own command wants to install and report things; the library under it does not.
        run = "import sys, MNN, _tools; _tools.mnnconvert(sys.argv)"
        source = self.path(network, batch, "f32.onnx")
        command(sys.executable, "-c", run, "-f", "ONNX", "--modelFile", source, "--MNNModel", to, "--bizCode", "sora",
                *options)

    # ncnn

    def ncnn(self, network, batch, to):
        """Writes the description of the inputs to `to`, and the network beside its final place."""
        # Only the program of the package is used; importing the package would need PyTorch.
        program = pathlib.Path(importlib.util.find_spec("pnnx").submodule_search_locations[0], "pnnx")
        model = onnx.load(self.path(network, batch, "f32.onnx"))
        if network == "minilm":
            without_mask(model)
        for node in model.graph.node:
            if node.op_type == "Gather" and node.attribute and node.attribute[0].i == 0:
                del node.attribute[:]  # The converter knows an embedding only when the default axis is not written.
        shapes = []
        for value in model.graph.input:
            tensor = value.type.tensor_type
            kind = "i64" if tensor.elem_type == onnx.TensorProto.INT64 else "f32"
            shapes.append(([extent.dim_value for extent in tensor.shape.dim], kind))
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(model, f"{folder}/m.onnx")
            given = ",".join("[" + ",".join(map(str, shape)) + "]" + kind for shape, kind in shapes)
            command(program, "m.onnx", f"inputshape={given}", "fp16=0", cwd=folder)
            text = pathlib.Path(folder, "m.ncnn.param").read_text()
            unknown = {line.split()[0] for line in text.splitlines()[2:] if "." in line.split()[0]}
            if unknown:
                raise RuntimeError(f"ncnn has no {unknown}")
            final = str(self.path(network, batch, "f32.ncnn"))
            for ending in ("param", "bin"):
                shutil.copy(f"{folder}/m.ncnn.{ending}", f"{final}.{ending}")
        inputs = [{"name": f"in{i}", "shape": shape[1:], "integers": kind == "i64"} for i, (shape, kind)
                  in enumerate(shapes)]
        to.write_text(json.dumps({"inputs": inputs, "output": "out0"}))

    RECIPES = {
        "f32.onnx": write,
        "int8.onnx": static,
        "dynamic.onnx": dynamic,
        "int8.xml": openvino,
        "f32.mnn": mnn,
        "int8.mnn": lambda self, network, batch, to: self.mnn(network, batch, to, "--weightQuantBits", "8"),
        "f32.ncnn": ncnn,
        "f32.sora": lambda self, network, batch, to: self.packed(network, batch, to, "f32.onnx"),
        "int8.sora": lambda self, network, batch, to: self.packed(network, batch, to, "int8.onnx"),
    }


def without_mask(model):
    """Removes the attention mask, which hides nothing and which ncnn cannot cast."""
    graph = model.graph
    masked = {"mask"}
    for node in list(graph.node):
        if not masked & set(node.input):
            continue
        if node.op_type == "Add":  # The scores: what is added disappears.
            node.op_type = "Identity"
            node.input[:] = [name for name in node.input if name not in masked]
        else:
            masked.update(node.output)
            graph.node.remove(node)
    for value in [value for value in graph.input if value.name == "mask"]:
        graph.input.remove(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan.arguments(parser)
    parser.add_argument("--sora", required=True, help="the command")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    converter = Converter(args.models, args.sora)
    wanted = plan.files(args.models, args.filter)
    needed = {(network, batch) for _, network, batch, form in wanted}
    for network, batch in sorted(needed):  # Everything else is made from these.
        make(converter.path(network, batch, "f32.onnx"), lambda to: converter.write(network, batch, to))
    for path, network, batch, form in wanted:
        recipe = Converter.RECIPES.get(form)
        if recipe:
            make(path, lambda to: recipe(converter, network, batch, to))


if __name__ == "__main__":
    main()
