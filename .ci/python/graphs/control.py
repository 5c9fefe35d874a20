"""Branches and loops, with small bodies that also read what is around them."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


class Body:
    """The graph inside of a node."""

    def __init__(self, g):
        self.g, self.nodes, self.constants = g, [], []

    def op(self, kind, *inputs, **attributes):
        out = self.g.fresh("inner")
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def const(self, array):
        name = self.g.fresh("inner_const")
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def chain(self, x, shape, steps):
        """Some nodes on `x` that keep its shape and do not let it grow."""
        for _ in range(steps):
            kind = self.g.pick(["Relu", "Tanh", "Sigmoid", "Neg", "outer", "constant"])
            if kind == "outer":
                x = self.op("Add", x, self.g.fresh_value(shape[self.g.size(0, len(shape)) :]))
                x = self.op("Tanh", x)
            elif kind == "constant":
                x = self.op("Mul", x, self.const(np.float32(self.g.pick([0.5, -0.7]))))
            else:
                x = self.op(kind, x)
        return x

    def graph(self, inputs, outputs):
        info = lambda name, dtype, shape: helper.make_tensor_value_info(name, dtype, shape)
        return helper.make_graph(self.nodes, self.g.fresh("body"), [info(*i) for i in inputs], [info(*o) for o in outputs],
                                 self.constants)


def small(g, ranks=(1, 2, 3)):
    return g.value(ranks, where=lambda a: a.size < 300)


def branch(g):
    x = small(g)
    condition = g.pick(["feed", "computed", "constant"])
    if condition == "computed":
        total = g.op("ReduceSum", x, keepdims=0)
        condition = g.op("Greater", total, g.scalar(g.pick([0.0, 1.0])))
    else:
        flag = np.array(g.chance(0.5))
        condition = g.feed(flag) if condition == "feed" else g.const(flag)
    bodies = {}
    for side in ("then_branch", "else_branch"):
        body = Body(g)
        y = body.chain(body.op("Identity", x), g.dims(x), g.size(0, 3))
        bodies[side] = body.graph([], [(y, FLOAT, None)])
    g.op("If", condition, **bodies)


def loop(g):
    """A carried value, and what each round adds to a stack."""
    x = small(g)
    body = Body(g)
    i, go_on, carried = g.fresh("i"), g.fresh("go_on"), g.fresh("carried")
    y = body.chain(body.op("Identity", carried), g.dims(x), g.size(1, 3))
    stop = body.op("Identity", go_on) if g.chance(0.6) else body.op("Less", i, body.const(np.int64(2)))
    outputs = [(stop, TensorProto.BOOL, []), (y, FLOAT, g.dims(x))]
    stacked = g.chance(0.5)
    if stacked:
        outputs.append((body.op("Add", carried, body.op("Cast", i, to=FLOAT)), FLOAT, g.dims(x)))
    inner = body.graph([(i, TensorProto.INT64, []), (go_on, TensorProto.BOOL, []), (carried, FLOAT, g.dims(x))], outputs)
    trips = np.array(g.size(0 if not stacked else 1, 5), np.int64)
    trips = g.const(trips) if g.chance(0.7) else g.feed(trips)
    g.op("Loop", trips, g.const(np.array(True)) if g.chance(0.7) else "", x, n=1 + stacked, body=inner)


def scan(g):
    x = small(g, [2, 3])
    shape = g.dims(x)[1:]
    body = Body(g)
    state, row = g.fresh("state"), g.fresh("row")
    y = body.chain(body.op("Add", state, row), shape, g.size(0, 2))
    y = body.op("Tanh", y)
    z = body.op("Mul", y, row)
    inner = body.graph([(state, FLOAT, shape), (row, FLOAT, shape)], [(y, FLOAT, shape), (z, FLOAT, shape)])
    directions = {"scan_input_directions": [1]} if g.chance(0.3) else {}
    g.op("Scan", g.fresh_value(shape), x, n=2, body=inner, num_scan_inputs=1, **directions)


ROWS = [branch, loop, scan]
