"""Nodes that work element by element, with broadcasting."""

import numpy as np
from onnx import TensorProto, helper

from .builder import F32, F64

I32, I64, BOOL = (np.dtype(t) for t in (np.int32, np.int64, np.bool_))
FLOATS = [F32, F32, F32, F32, F64]
PLAIN = "Relu Sigmoid Tanh Erf Neg Abs Softplus Softsign Sin Cos Atan Identity Reciprocal".split()
MORE = "Exp Sqrt Log Floor Ceil Round Sign Asinh Sinh Cosh Tan Elu Selu Celu HardSigmoid".split()
SHAPED = "LeakyRelu ThresholdedRelu Shrink HardSwish Mish Gelu".split()


def unary(g):
    kind = g.pick(PLAIN)
    # onnxruntime has these for f32 only.
    dtype = F32 if kind in ("Erf", "Softplus", "Softsign", "Atan", "Cos") else g.pick(FLOATS)
    g.op(kind, g.value(dtype=dtype))


def unary_more(g):
    kind = g.pick(MORE)
    x = g.value()
    if kind in ("Sqrt", "Log"):
        x = g.op("Add", g.op("Abs", x), g.scalar(g.pick([0.1, 1.0])))
    elif kind in ("Exp", "Sinh", "Cosh"):
        x = g.op("Min", x, g.scalar(3))
    attributes = {}
    if kind in ("Elu", "Celu", "HardSigmoid") and g.chance(0.5):
        attributes = {"alpha": g.pick([0.1, 0.3, 1.5])}
    g.op(kind, x, **attributes)


def unary_shaped(g):
    kind = g.pick(SHAPED)
    x = g.value()
    since = {"HardSwish": 14, "Mish": 18, "Gelu": 20}
    if g.opset < since.get(kind, 0):
        kind = "LeakyRelu"
    attributes = {
        "LeakyRelu": {"alpha": g.pick([0.01, 0.3, 1.7, -0.5])},
        "ThresholdedRelu": {"alpha": 0.7},
        "Shrink": {"lambd": 0.6, "bias": g.pick([0.0, 0.3])},
        "Gelu": {"approximate": g.pick(["none", "tanh"])},
    }
    g.op(kind, x, **attributes.get(kind, {}))


def pair(g, x, other):
    """The two in either order."""
    return (x, other) if g.chance(0.6) else (other, x)


def binary(g):
    x = g.value(dtype=g.pick(FLOATS))
    y = x if g.chance(0.1) else g.like(x)
    g.op(g.pick(["Add", "Add", "Sub", "Mul", "Mul", "Min", "Max"]), *pair(g, x, y))


def outer(g):
    """Operands that both grow."""
    x = g.value([1, 2, 3], where=lambda a: a.size <= 200)
    column = g.op("Unsqueeze", x, g.ints(-1))
    g.op(g.pick(["Add", "Mul", "Sub"]), *pair(g, column, g.fresh_value([g.size(2, 5)])))


def quotient(g):
    x = g.value()
    y = g.op("Add", g.op("Abs", g.like(x)), g.scalar(g.pick([0.5, 1.0])))
    g.op("Div", x, y)


def by_number(g):
    """Arithmetic with one number, which rules fold and fuse."""
    x = g.value()
    for _ in range(g.size(1, 3)):
        kind = g.pick(["Add", "Sub", "Mul", "Div"])
        number = float(g.pick([0.5, 2.0, -1.0, 1.0, 3.0, 0.125, 1 / 3]))
        number = g.scalar(number) if g.chance(0.7) else g.floats(number)
        x = g.op(kind, x, number) if kind == "Div" else g.op(kind, *pair(g, x, number))


def by_channel(g):
    """An affine function of each channel, as of normalizations that were unfolded."""
    x = g.image()
    column = lambda: g.const(g.noise(g.dims(x)[1], 1, 1, scale=0.7))
    for kind in g.pick([["Mul", "Add"], ["Add", "Mul"], ["Mul"], ["Add"], ["Sub", "Mul"]]):
        x = g.op(kind, *((x, column()) if kind == "Sub" else pair(g, x, column())))


def power(g):
    exponent = g.pick([2.0, 3.0, 0.5, 1.0, -1.0, 1.5])
    x = g.value()
    if exponent not in (2.0, 3.0, 1.0):
        x = g.op("Add", g.op("Abs", x), g.scalar(0.5))
    g.op("Pow", x, g.scalar(exponent))


def variadic(g):
    x = g.value()
    others = [g.like(x) for _ in range(g.size(0, 3))]
    g.op(g.pick(["Sum", "Mean", "Max", "Min"]), x, *others)


def prelu(g):
    x = g.value([2, 3, 4])
    slope = [g.pick([1, g.dims(x)[1]])] + [1] * (g.rank(x) - 2) if g.rank(x) > 2 else [g.dims(x)[1]]
    g.op("PRelu", x, g.const(g.noise(*slope)))


def clip(g):
    x = g.value()
    low, high = g.pick([(-0.5, 0.5), (0.0, 6.0), (-1.0, None), (None, 0.7), (0.0, None)])
    bound = lambda b: "" if b is None else g.scalar(b)
    g.op("Clip", x, bound(low), *([bound(high)] if high is not None else []))


def whole(g):
    """Arithmetic of integers."""
    dtype = g.pick([I32, I64])
    x = g.value(dtype=dtype)
    kind = g.pick(["Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Max", "Min", "Sign"])
    if kind in ("Neg", "Abs", "Sign"):
        g.op(kind, x)
    elif kind in ("Div", "Mod"):
        divisor = g.numbers(g.dims(x)[g.size(0, g.rank(x)) :], dtype)
        g.op(kind, x, g.const(np.where(divisor == 0, 3, divisor).astype(dtype)))
    else:
        g.op(kind, *pair(g, x, g.like(x)))


def comparison(g):
    dtype = g.pick([F32, F32, I32, I64])
    x = g.value(dtype=dtype)
    kinds = ["Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal"]
    g.op(g.pick(kinds), *pair(g, x, g.like(x)))


def logic(g):
    x = g.value(dtype=BOOL)
    kind = g.pick(["And", "Or", "Xor", "Not"])
    g.op(kind, x) if kind == "Not" else g.op(kind, x, g.like(x))


def where(g):
    dtype = g.pick([F32, F32, I64])
    x = g.value(dtype=dtype)
    condition = g.like(x, BOOL)
    g.op("Where", condition, *pair(g, x, g.like(x)))


def cast(g):
    source = g.pick([F32, F32, F64, I32, I64, BOOL])
    x = g.value(dtype=source)
    to = g.pick([F32, F32, F64, I32, I64, BOOL])
    y = g.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(to))
    if source == F32 and to == F64 and g.chance(0.7):
        g.op("Cast", g.op("Mul", y, g.const(np.array(0.5))), to=TensorProto.FLOAT)


def half(g):
    """There and back, as mixed precision leaves it."""
    g.op("Cast", g.op("Cast", g.value(), to=TensorProto.FLOAT16), to=TensorProto.FLOAT)


def cumulative(g):
    x = g.value([1, 2, 3])
    axis = g.const(np.array(g.size(-g.rank(x), g.rank(x) - 1), np.int64))
    g.op("CumSum", x, axis, exclusive=g.size(0, 1), reverse=g.size(0, 1))


ROWS = [
    *(unary, unary, unary_more, unary_shaped, binary, binary, binary, outer, quotient, by_number, by_number, by_channel),
    *(power, variadic, prelu, clip, clip, whole, comparison, logic, where, cast, cast, half, cumulative),
]
