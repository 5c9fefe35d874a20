"""A graph that is run while it is built: as it is, and twice shaken by errors as rounding makes them.

The difference of the runs says how far apart two correct runtimes may be, for every value on its own (the method of
Vignes: "A stochastic arithmetic for reliable scientific computation", 1993). A choice that hangs on it, such as an element
near the middle of two integers that are rounded to, is not made: it raises `Unsteady`.
"""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from net import DTYPES, IR_OF_OPSET, Net

DTYPES = {**DTYPES, np.dtype(np.int8): TensorProto.INT8, np.dtype(np.float64): TensorProto.DOUBLE}
F32 = np.dtype(np.float32)
F64 = np.dtype(np.float64)
F16 = np.dtype(np.float16)
SIZES = [1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17]

# The largest element that is followed, and the largest error relative to it.
MOST = 1e5
UNSTEADY = 2.0**-10
# A shake relative to the largest element, some 50 units in the last place, or to SMALL where all are less: what subtracts
# from 1 inside has no smaller error. What only moves elements adds none.
SHAKE = {F32: 2.0**-18, F64: 2.0**-44, F16: 2.0**-11}
SMALL = 2.0**-4
EXACT = {
    *("Identity Reshape Flatten Squeeze Unsqueeze Transpose Concat Split Slice Gather GatherElements GatherND Expand".split()),
    *("Tile Pad DepthToSpace SpaceToDepth ReverseSequence ScatterElements ScatterND Trilu Where Compress TopK".split()),
    *("Relu Neg Abs Max Min Clip MaxPool GlobalMaxPool ReduceMax ReduceMin Sign Floor Ceil Round Constant".split()),
    *("ConstantOfShape Cast Hardmax OneHot Unique".split()),
}
# What jumps: run again with its inputs moved to either side by all that they may be off.
STEPS = {
    *("QuantizeLinear DynamicQuantizeLinear Floor Ceil Round Sign Cast Less Greater LessOrEqual GreaterOrEqual Equal".split()),
    *("ArgMax ArgMin TopK Hardmax ThresholdedRelu Shrink NonZero Unique GridSample Resize".split()),
}


class Unsteady(Exception):
    """What was chosen cannot be compared."""


def options():
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


OPTIONS = options()


def session(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), OPTIONS, providers=["CPUExecutionProvider"])


def captured(node):
    """The names that the bodies of a node take from the graph around it."""
    found = []
    for body in (a.g for a in node.attribute if a.HasField("g")):
        own = {value.name for value in [*body.input, *body.initializer]} | {o for n in body.node for o in n.output}
        used = [i for n in body.node for i in [*n.input, *captured(n)]] + [o.name for o in body.output]
        found += [name for name in used if name and name not in own]
    return found


class Graph(Net):
    """A random graph. Every value is known by its name, and may be an input of what follows."""

    def __init__(self, seed):
        super().__init__(f"graph_{seed}")
        self.opset = int(self.rng.choice([13, 17, 17, 21]))
        self.ir = IR_OF_OPSET[self.opset]
        self.open = self.pick(["none", "batch", "batch", "all"])  # which extents of inputs the model leaves open
        self.batch = int(self.rng.integers(1, 5))
        self.values, self.fixed, self.pool = {}, set(), []

    # Choices.

    def pick(self, options):
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p):
        return self.rng.random() < p

    def size(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def shape(self, rank, most=1500):
        while True:
            shape = [self.pick(SIZES) for _ in range(rank)]
            if rank > 1 and self.chance(0.5):
                shape[0] = self.batch
            if np.prod(shape, dtype=int) <= most:
                return shape

    # Values.

    def array(self, name):
        return self.values[name][0]

    def rank(self, name):
        return self.array(name).ndim

    def dims(self, name):
        return list(self.array(name).shape)

    def numbers(self, shape, dtype=F32):
        """Elements of an input or a constant: noise, or numbers with many ties and zeros."""
        dtype = np.dtype(dtype)
        if dtype == np.bool_:
            return self.rng.random(shape) < 0.5
        if dtype.kind in "iu":
            low = 0 if dtype.kind == "u" else -9
            return self.rng.integers(low, 10, shape).astype(dtype)
        if self.chance(0.2):
            return (self.rng.integers(-6, 7, shape) / 4).astype(dtype)
        return (self.rng.standard_normal(shape) * self.pick([0.3, 1, 1, 1, 3])).astype(dtype)

    def feed(self, array):
        """A new input."""
        array = np.asarray(array)
        name = self.fresh("x")
        shape = list(array.shape)
        if self.open == "all":
            shape = [f"{name}_{axis}" for axis in range(len(shape))]
        elif self.open == "batch" and shape and shape[0] == self.batch:
            shape[0] = "N"
        self.inputs.append(helper.make_tensor_value_info(name, DTYPES[array.dtype], shape))
        self.feeds[name] = array
        self.values[name] = (array, array, array)
        self.pool.append(name)
        return name

    def const(self, array, prefix="const"):
        """A constant: an initializer or a node."""
        array = np.asarray(array)
        if self.chance(0.15):
            name = super().op("Constant", value=numpy_helper.from_array(array))
        else:
            name = super().const(array, prefix)
        self.values[name] = (array, array, array)
        self.fixed.add(name)
        return name

    def fresh_value(self, shape, dtype=F32):
        array = self.numbers(shape, dtype)
        return self.const(array) if self.chance(0.25) else self.feed(array)

    def value(self, ranks=range(0, 6), dtype=F32, where=lambda array: True, shape=None):
        """A value of the graph, sooner a late one, or a new one if there is none (or sometimes)."""
        fits = lambda a: a.dtype == dtype and a.ndim in ranks and a.size and where(a)
        fitting = [name for name in self.pool if fits(self.array(name))]
        if fitting and self.chance(0.9):
            late = fitting[-3:] if self.chance(0.7) else fitting
            return self.pick(late)
        shape = shape or (lambda: self.shape(self.pick(list(ranks))))
        while True:
            array = self.numbers(shape(), dtype)
            if where(array):
                return self.const(array) if self.chance(0.1) else self.feed(array)

    def image(self, spatial=2, channels=lambda c: True):
        """A value N×C×…."""
        extent = lambda: self.size(3, 9 if spatial < 3 else 5)
        draw = lambda: [self.batch, self.pick([c for c in range(1, 17) if channels(c)]), *(extent() for _ in range(spatial))]
        return self.value([spatial + 2], where=lambda a: channels(a.shape[1]) and a.size <= 4096, shape=draw)

    def like(self, name, dtype=None):
        """A value that broadcasts with `name`."""
        dims, dtype = self.dims(name), dtype or self.array(name).dtype
        suits = lambda a: a.ndim <= len(dims) and all(m in (1, n) for m, n in zip(a.shape[::-1], dims[::-1]))
        if self.chance(0.5):
            return self.value(dtype=dtype, where=suits, shape=lambda: dims)
        kept = dims[self.size(0, len(dims)) :]
        return self.fresh_value([d if self.chance(0.6) else 1 for d in kept], dtype)

    # Nodes.

    def op(self, kind, *inputs, n=1, domain="", **attributes):
        outs = super().op(kind, *inputs, n=n, domain=domain, **attributes)
        names = outs if isinstance(outs, list) else [outs]
        self.run(self.nodes[-1], kind)
        self.pool += names
        return outs

    def with_axes(self, kind, x, axes, since=13, **attributes):
        """A node whose axes were an attribute before opset `since`."""
        if self.opset < since:
            return self.op(kind, x, axes=axes, **attributes)
        return self.op(kind, x, self.ints(*axes), **attributes)

    def run(self, node, kind):
        """Computes the outputs of a node, in each way."""
        names = list(dict.fromkeys([i for i in node.input if i] + captured(node)))
        given = [name for name in names if name not in self.fixed]
        constants = [numpy_helper.from_array(self.array(name), name) for name in names if name in self.fixed]
        info = lambda n, a: helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        infos = [info(name, self.array(name)) for name in given]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "node", infos, outputs, constants)
        runner = session(helper.make_model(graph, ir_version=self.ir, opset_imports=self.opsets([node])))
        plain = runner.run(None, {name: self.array(name) for name in given})
        # The error of a sum is that of a sum of other terms, which may be large where the sum is not.
        inexact = kind not in EXACT and kind not in STEPS
        nudged = lambda a: self.shake(a, 2.0**-3) if inexact else a
        ways = zip(*(self.values[name][1:] for name in given))
        shaken = [runner.run(None, {n: nudged(a) for n, a in zip(given, way)}) for way in ways]
        for i, (name, a) in enumerate(zip(node.output, plain)):
            a = np.asarray(a)
            self.values[name] = (a, *(self.checked(a, np.asarray(b[i]), kind) for b in shaken or [plain, plain]))
        for signs in self.rng.choice([-1, 1], (3, len(given))) if kind in STEPS else []:
            moved = {name: self.moved(name, sign) for name, sign in zip(given, signs)}
            for way in (1, -1):
                feeds = {name: np.asarray(self.array(name) + way * by, self.array(name).dtype) for name, by in moved.items()}
                for a, b in zip(plain, runner.run(None, feeds)):
                    self.checked(np.asarray(a), np.asarray(b), kind)

    def shake(self, a, share=1.0):
        """An array with an error as rounding makes it, or a share of that."""
        if a.dtype not in SHAKE:
            return a
        by = share * SHAKE[a.dtype] * max(SMALL, float(np.abs(a).max(initial=0)))
        if not np.isfinite(by):
            raise Unsteady
        return np.asarray(a + self.rng.uniform(-by, by, a.shape), a.dtype)

    def moved(self, name, sign):
        """As far as a value may be off, on one side or at random."""
        by = self.deviation(name)
        a = self.array(name)
        if not by:
            return np.zeros_like(a)
        return by * (sign if self.chance(0.5) else self.rng.choice([-1, 1], a.shape))

    def deviation(self, name):
        """How far the computed elements of a value may be off."""
        plain, *shaken = self.values[name]
        if plain.dtype.kind != "f":
            return 0.0
        plain = plain.astype(np.float64)
        return 4 * max(np.abs(plain - other.astype(np.float64)).max(initial=0) for other in shaken)

    def checked(self, a, b, kind):
        """The shaken array of a computed one."""
        if a.shape != b.shape or a.size > 20_000:
            raise Unsteady
        if a.dtype.kind != "f":
            if not np.array_equal(a, b) or (a.dtype.kind in "iu" and a.size and np.abs(a.astype(np.int64)).max() > 2**20):
                raise Unsteady
            return b
        if not np.isfinite(a).all():
            raise Unsteady
        largest = float(np.abs(a).max(initial=0))
        if kind not in EXACT or a.dtype == F16:
            b = self.shake(b)
        if largest > MOST or not np.abs(a - b).max(initial=0) <= UNSTEADY * max(SMALL, largest):
            raise Unsteady
        return np.asarray(b)

    def mark(self):
        """What `restore` goes back to."""
        return [len(list_) for list_ in (self.nodes, self.inputs, self.constants, self.pool)], set(self.values)

    def restore(self, mark):
        lengths, known = mark
        for list_, length in zip((self.nodes, self.inputs, self.constants, self.pool), lengths):
            del list_[length:]
        for name in set(self.values) - known:
            del self.values[name]
            self.fixed.discard(name)
            self.feeds.pop(name, None)

    def opsets(self, nodes):
        domains = sorted({n.domain for n in nodes} - {""})
        return [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]

    def finish(self):
        """Declares as outputs what nothing reads, and a few others."""
        read = {i for n in self.nodes for i in [*n.input, *captured(n)]}
        for name in dict.fromkeys(o for n in self.nodes if n.op_type != "Constant" for o in n.output):
            if name not in read or self.chance(0.1):
                array = self.array(name)
                extents = [f"{name}_{axis}" for axis in range(array.ndim)]
                self.output(name, *extents, dtype=helper.np_dtype_to_tensor_dtype(array.dtype))

    def tolerance(self, name):
        """How far another runtime may be from the computed elements of a value."""
        a = self.array(name)
        if a.dtype.kind != "f":
            return 0.0
        return 2 * self.deviation(name) + 1e-5 * float(np.abs(a.astype(np.float64)).max(initial=0))
