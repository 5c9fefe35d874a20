"""Products, windows, reductions and normalizations."""

import numpy as np

from .builder import F32, F64, Unsteady
from .elementwise import I64
from .movement import axis_of

REDUCTIONS = "ReduceSum ReduceMean ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp ReduceProd".split()


def matmul(g):
    dtype = g.pick([F32, F32, F32, F32, F64])
    x = g.value([1, 2, 2, 3, 3, 4], dtype)
    depth = g.dims(x)[-1]
    width = g.pick([1, 2, 3, 5, 8, 16, 17, 33])
    lead = g.dims(x)[g.size(0, max(0, g.rank(x) - 2)) : -2]
    lead = [n if g.chance(0.7) else 1 for n in lead]
    right = g.pick([[depth, width], [depth, width], [*lead, depth, width], [depth]])
    y = g.const(g.numbers(right, dtype)) if g.chance(0.6) else g.fresh_value(right, dtype)
    product = g.op("MatMul", x, y)
    if right != [depth] and g.chance(0.5):
        g.op("Add", product, g.const(g.numbers([width], dtype)))


def matmul_transposed(g):
    """With a factor that is transposed before, sometimes shared."""
    x = g.value([2, 3, 4])
    perm = [*range(g.rank(x) - 2), g.rank(x) - 1, g.rank(x) - 2]
    y = g.op("Transpose", x, perm=perm)
    g.op("MatMul", *((x, y) if g.chance(0.5) else (y, x)))


def gemm(g):
    x = g.value([2])
    transposed, other = g.size(0, 1), g.size(0, 1)
    rows, depth = g.dims(x)[::-1] if transposed else g.dims(x)
    width = g.pick([1, 3, 4, 8, 10, 17])
    y = g.fresh_value([width, depth] if other else [depth, width])
    bias = [g.const(g.numbers(g.pick([[width], [1, width], [rows, 1], [], [rows, width]])))] if g.chance(0.7) else []
    numbers = {"alpha": g.pick([1.0, 0.5]), "beta": g.pick([1.0, 2.0])} if g.chance(0.3) else {}
    g.op("Gemm", x, y, *bias, transA=transposed, transB=other, **numbers)


def einsum(g):
    x = g.value([3])
    b, i, j = g.dims(x)
    k = g.size(1, 5)
    equation, shape = g.pick([("bij,jk->bik", [j, k]), ("bij,bkj->bik", [b, k, j]), ("bij,bij->b", [b, i, j]), ("bij,i->bj", [i]),
                              ("bij,jk->kbi", [j, k]), ("bij,bjk->bi", [b, j, k])])
    g.op("Einsum", x, g.fresh_value(shape), equation=equation)


def window(g, dims, kernel=(1, 3)):
    """Attributes of a window over extents `dims` that fits at least once."""
    sizes = [min(n, g.size(*kernel)) for n in dims]
    attributes = {"kernel_shape": sizes}
    if g.chance(0.5):
        attributes["strides"] = [g.size(1, 3) for _ in dims]
    if g.chance(0.2):
        attributes["auto_pad"] = g.pick(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif g.chance(0.6):
        begin, end = ([g.size(0, k // 2) for k in sizes] for _ in range(2))
        attributes["pads"] = [*begin, *(begin if g.chance(0.6) else end)]
    return attributes


def conv(g, x=None, spatial=None, **given):
    x = x or g.image(spatial or g.pick([1, 2, 2, 2, 2, 3]))
    channels, *dims = g.dims(x)[1:]
    attributes = window(g, dims)
    if g.chance(0.2) and all(n > 2 * (k - 1) for n, k in zip(dims, attributes["kernel_shape"])):
        attributes["dilations"] = [2 if "auto_pad" not in attributes else 1] * len(dims)
    group = g.pick([1, 1, channels, g.pick([d for d in range(1, channels + 1) if channels % d == 0])])
    out = group * g.size(1, max(1, 12 // group))
    weights = [g.const(g.noise(out, channels // group, *attributes["kernel_shape"], scale=0.5))]
    if g.chance(0.6):
        weights.append(g.const(g.noise(out)))
    return g.op("Conv", x, *weights, group=group, **attributes, **given)


def conv_transpose(g):
    x = g.image(g.pick([1, 2, 2]))
    channels, *dims = g.dims(x)[1:]
    sizes = [g.size(1, 3) for _ in dims]
    strides = [g.size(1, 2) for _ in dims]
    group = g.pick([1, 1, channels])
    weight = g.const(g.noise(channels, g.size(1, 4), *sizes, scale=0.5))
    attributes = {"kernel_shape": sizes, "strides": strides, "group": group}
    if g.chance(0.5):
        begin = [g.size(0, min(1, n - 1)) for n in sizes]
        attributes["pads"] = [*begin, *(g.size(0, n - 1 - b) for n, b in zip(sizes, begin))]
    if g.chance(0.3):
        attributes["output_padding"] = [g.size(0, s - 1) for s in strides]
    g.op("ConvTranspose", x, weight, **attributes)


def pool(g):
    x = g.image(g.pick([1, 2, 2, 2, 3]))
    kind = g.pick(["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"])
    if kind.startswith("Global"):
        g.op(kind, x)
        return
    attributes = window(g, g.dims(x)[2:], (2, 3))
    # onnxruntime 1.22 takes how far it counts padding behind from another axis.
    if kind == "AveragePool" and "auto_pad" not in attributes and len(set(attributes.get("pads", []))) < 2:
        attributes["count_include_pad"] = g.size(0, 1)
    # A rounded-up extent may reach beyond the padding: onnxruntime 1.22 counts that as padding, and ONNX's shape inference
    # counts windows that begin there.
    inside = all(s <= k for s, k in zip(attributes.get("strides", []), attributes["kernel_shape"]))
    plain = "auto_pad" not in attributes and "pads" not in attributes and not attributes.get("count_include_pad")
    if kind != "LpPool" and inside and plain and g.chance(0.5):
        attributes["ceil_mode"] = 1
    g.op(kind, x, **attributes)


def batch_norm(g):
    x = g.value([2, 3, 4], where=lambda a: a.shape[1] > 0)
    g.batch_norm(x, g.dims(x)[1])


def steady(g, x, axes):
    """Refuses means far from zero: onnxruntime takes the variance as a difference of squares, which cancels."""
    mean, deviation = np.abs(g.array(x).mean(axes)), g.array(x).std(axes)
    if (mean > 3 * deviation).any():
        raise Unsteady


def other_norms(g):
    kind = g.pick(["InstanceNormalization", "LpNormalization", "LRN", "LayerNormalization", "LayerNormalization"])
    if kind == "InstanceNormalization":
        x = g.image()
        steady(g, x, (2, 3))
        g.op(kind, x, *(g.const(g.noise(g.dims(x)[1])) for _ in range(2)))
    elif kind == "LpNormalization":
        x = g.op("Add", g.value([2, 3]), g.scalar(0.3))
        g.op(kind, x, axis=axis_of(g, x), p=g.pick([1, 2]))
    elif kind == "LRN":
        g.op(kind, g.image(), size=3, alpha=0.1, beta=0.75, bias=1.0)
    elif g.opset >= 17:
        x = g.value([2, 3, 4], where=lambda a: a.shape[-1] > 1)
        axis = g.pick([-1, -1, g.rank(x) - 2])
        shape = g.dims(x)[axis:]
        steady(g, x, tuple(range(axis, 0)) if axis < 0 else tuple(range(axis, g.rank(x))))
        g.op(kind, x, g.const(1 + g.noise(*shape, scale=0.3)), *([g.const(g.noise(*shape))] if g.chance(0.7) else []), axis=axis)


def softmax(g):
    x = g.value(range(1, 5))
    g.op(g.pick(["Softmax", "Softmax", "LogSoftmax", "Hardmax"]), x, axis=axis_of(g, x))


def reduce(g):
    x = g.value(range(1, 5))
    kind = g.pick(REDUCTIONS)
    axes = [int(a) for a in g.rng.choice(g.rank(x), g.size(1, g.rank(x)), replace=False)]
    axes = [a - g.rank(x) if g.chance(0.3) else a for a in axes]
    g.with_axes(kind, x, axes, since=13 if kind == "ReduceSum" else 18, keepdims=g.size(0, 1))


def reduce_whole(g):
    x = g.value(range(1, 4), dtype=g.pick([F32, I64]))
    g.op(g.pick(["ReduceSum", "ReduceMax", "ReduceMin"]), x, keepdims=g.size(0, 1))


def arg(g):
    x = g.value(range(1, 5), dtype=g.pick([F32, F32, I64]))
    # An integer tie is decided by the attribute; `select_last_index` of onnxruntime is for f32 too.
    g.op(g.pick(["ArgMax", "ArgMin"]), x, axis=axis_of(g, x), keepdims=g.size(0, 1), select_last_index=g.pick([0, 0, 1]))


def top_k(g):
    x = g.value(range(1, 4), dtype=g.pick([F32, F32, I64]))
    axis = axis_of(g, x)
    k = g.size(1, g.dims(x)[axis])
    g.op("TopK", x, g.ints(k), n=2, axis=axis, largest=g.size(0, 1))


def resize(g):
    x = g.image()
    n, c, *dims = g.dims(x)
    mode = g.pick(["nearest", "linear", "cubic"])
    where = g.pick(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
    attributes = {"mode": mode, "coordinate_transformation_mode": where}
    if mode == "nearest":
        attributes["nearest_mode"] = g.pick(["floor", "ceil", "round_prefer_floor"])
    # ONNX's test data and onnxruntime differ in whether corners are those of the whole extent or of what a scale makes
    # of it, and in where `pytorch_half_pixel` finds the only element of an extent.
    fewest = 2 if where == "pytorch_half_pixel" else 1
    if g.chance(0.5):
        scales = [g.pick([1, 2, 2, 3, 0.5] if n % 2 == 0 and n > 2 else [1, 2, 3]) for n in dims]
        if min(dims) >= fewest:
            g.op("Resize", x, "", g.floats(1, 1, *scales), **attributes)
    else:
        g.op("Resize", x, "", "", g.ints(n, c, *(g.size(fewest, 11) for _ in dims)), **attributes)


def grid_sample(g):
    if g.opset < 17:
        return
    x = g.image()
    grid = g.feed(g.rng.uniform(-1.2, 1.2, (g.dims(x)[0], g.size(1, 4), g.size(1, 4), 2)).astype(np.float32))
    mode = "linear" if g.opset >= 20 else "bilinear"
    padding = g.pick(["zeros", "border", "reflection"])
    g.op("GridSample", x, grid, mode=mode, padding_mode=padding, align_corners=g.size(0, 1))


def recurrent(g):
    x = g.value([3], where=lambda a: a.size < 600 and np.abs(a).max() < 20)
    time, batch, width = g.dims(x)
    kind, gates = g.pick([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    hidden = g.pick([1, 3, 4, 8])
    direction = g.pick(["forward", "reverse", "bidirectional"])
    d = 2 if direction == "bidirectional" else 1
    weights = [g.const(g.noise(d, gates * hidden, n, scale=0.5)) for n in (width, hidden)]
    bias = g.const(g.noise(d, 2 * gates * hidden, scale=0.3)) if g.chance(0.7) else ""
    lengths = g.const(g.rng.integers(1, time + 1, batch).astype(np.int32)) if g.chance(0.2) else ""
    initial = [g.const(g.noise(d, batch, hidden)) for _ in range(2 if kind == "LSTM" else 1)] if g.chance(0.4) else []
    extra = {"linear_before_reset": g.size(0, 1)} if kind == "GRU" else {}
    outs = g.op(kind, x, *weights, bias, lengths, *initial, n=3 if kind == "LSTM" else 2, hidden_size=hidden,
                direction=direction, **extra)
    if g.chance(0.6):
        y = g.op("Transpose", outs[0], perm=[0, 2, 1, 3])
        g.op("Reshape", y, g.ints(0, 0, -1))


ROWS = [
    *(matmul, matmul, matmul, matmul_transposed, gemm, gemm, einsum, conv, conv, conv, conv_transpose, pool, pool, batch_norm),
    *(other_norms, other_norms, softmax, softmax, reduce, reduce, reduce, reduce_whole, arg, top_k, resize, grid_sample),
    *(recurrent,),
]
