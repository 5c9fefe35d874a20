"""A small builder of ONNX models with seeded random weights."""

import zlib

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

DTYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.bool_): TensorProto.BOOL,
}
IR_OF_OPSET = {7: 3, 11: 6, 13: 7, 17: 8, 19: 9, 21: 10}


class Net:
    """One graph under construction. Values are known by their names; `feeds` holds the inputs to run it with."""

    def __init__(self, name, opset=17):
        self.name, self.opset, self.ir = name, opset, IR_OF_OPSET[opset]
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.nodes, self.inputs, self.outputs, self.constants, self.feeds = [], [], [], [], {}
        self.count = 0

    def fresh(self, prefix):
        self.count += 1
        return f"{prefix}_{self.count}"

    def input(self, name, shape, array):
        """A graph input of `shape` (strings are symbolic dimensions), fed with `array` in the case."""
        self.inputs.append(helper.make_tensor_value_info(name, DTYPES[array.dtype], shape))
        self.feeds[name] = array
        return name

    def image(self, *shape, name="x"):
        """A float input with a symbolic batch axis, fed with normal noise of `shape`."""
        return self.input(name, ["N", *shape[1:]], self.noise(*shape))

    def noise(self, *shape, scale=1.0):
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def const(self, array, prefix="const"):
        name = self.fresh(prefix)
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def ints(self, *values):
        return self.const(np.array(values, np.int64))

    def floats(self, *values):
        return self.const(np.array(values, np.float32))

    def scalar(self, value):
        return self.const(np.array(value, np.float32))

    def weight(self, *shape, fan_in=None):
        """Random weights that keep the variance of a rectified signal."""
        fan_in = fan_in or int(np.prod(shape[1:])) or 1
        return self.const(self.noise(*shape, scale=np.sqrt(2.0 / fan_in)), "weight")

    def bias(self, n):
        return self.const(self.noise(n, scale=0.1), "bias")

    def op(self, kind, *inputs, out=None, n=1, domain="", **attributes):
        """Adds a node and returns its output's name, or a list of `n` names. An absent optional input is ""."""
        outs = out if isinstance(out, list) else [out] if out else [self.fresh(kind.lower()) for _ in range(n)]
        self.nodes.append(helper.make_node(kind, inputs, outs, self.fresh(f"node_{kind}"), domain=domain, **attributes))
        return outs if len(outs) > 1 else outs[0]

    def conv(self, x, cin, cout, kernel, group=1, bias=True, **attributes):
        kernel = list(kernel) if isinstance(kernel, (list, tuple)) else [kernel, kernel]
        params = [self.weight(cout, cin // group, *kernel)] + ([self.bias(cout)] if bias else [])
        return self.op("Conv", x, *params, kernel_shape=kernel, group=group, **attributes)

    def batch_norm(self, x, channels, **attributes):
        """BatchNormalization with statistics that are far from the identity."""
        positive = lambda: self.const(self.rng.uniform(0.5, 1.5, channels).astype(np.float32), "bn")
        scale, shift, mean, variance = positive(), self.bias(channels), self.bias(channels), positive()
        return self.op("BatchNormalization", x, scale, shift, mean, variance, **attributes)

    def gelu(self, x):
        """x/2 · (1 + erf(x/√2)), spelled out as exporters do."""
        e = self.op("Erf", self.op("Div", x, self.scalar(np.sqrt(2.0))))
        return self.op("Mul", self.op("Mul", x, self.op("Add", e, self.scalar(1.0))), self.scalar(0.5))

    def output(self, name, *shape, dtype=TensorProto.FLOAT):
        self.outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def model(self, full_check=True):
        """The checked model, in full with its shapes. Before IR version 4 every initializer must be a graph input too."""
        inputs = list(self.inputs)
        if self.ir < 4:
            inputs += [helper.make_tensor_value_info(c.name, c.data_type, list(c.dims)) for c in self.constants]
        graph = helper.make_graph(self.nodes, self.name, inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted({n.domain for n in self.nodes} - {""})]
        model = helper.make_model(graph, ir_version=self.ir, opset_imports=opsets, producer_name="make_cases")
        checker.check_model(model, full_check=full_check)
        return model
