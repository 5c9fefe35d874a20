"""Writes the node cases that the installed onnx holds as code, in the layout of its stored ones.

usage: onnx_cases.py OUT
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases


def message(value, type_proto):
    """The stored form of a value: of a tensor, a sequence or an optional, as its type says."""
    kind = type_proto.WhichOneof("value")
    if isinstance(value, onnx.TensorProto):
        return value
    if kind == "optional_type":
        return numpy_helper.from_optional(value)
    if kind == "sequence_type":
        return numpy_helper.from_list(value)
    return numpy_helper.from_array(np.asarray(value))


def main():
    out = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    cases = collect_testcases(None)
    for case in cases:
        if case.model is None:
            continue
        folder = out / case.name
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(case.model.SerializeToString())
        graph = case.model.graph
        for number, (inputs, outputs) in enumerate(case.data_sets):
            data = folder / f"test_data_set_{number}"
            data.mkdir()
            for prefix, values, infos in (("input", inputs, graph.input), ("output", outputs, graph.output)):
                for index, (value, info) in enumerate(zip(values, infos)):
                    stored = message(value, info.type).SerializeToString()
                    (data / f"{prefix}_{index}.pb").write_bytes(stored)
    print(f"{len(cases)} cases of onnx {onnx.__version__}")


main()
