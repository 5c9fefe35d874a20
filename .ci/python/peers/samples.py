"""Random inputs of a network, as its description says: what `sora zoo --json` prints as `inputs`."""

import json

import numpy as np


def describe(models, network):
    return json.loads((models / f"{network}.inputs.json").read_text())


def draw(described, model, rng):
    """One batch of inputs by name for an ONNX model with fixed extents; masks hide nothing."""
    feeds = {}
    entries = {entry["name"]: entry for entry in described}
    for value in model.graph.input:
        like = entries[value.name]
        shape = [extent.dim_value for extent in value.type.tensor_type.shape.dim]
        if value.name == "mask":
            feeds[value.name] = np.ones(shape, np.int64)
        elif "below" in like:
            feeds[value.name] = rng.integers(0, like["below"], shape)
        else:
            feeds[value.name] = rng.normal(like["mean"], like["std"], shape).astype(np.float32)
    return feeds
