"""Nodes that move elements, and arithmetic of shapes."""

import numpy as np
from onnx import TensorProto, numpy_helper

from .builder import F32, Unsteady
from .elementwise import BOOL, I32, I64

ANY = [F32, F32, F32, F32, I64, I32, BOOL]


def anything(g, ranks=range(1, 5)):
    return g.value(ranks, dtype=g.pick(ANY))


def axis_of(g, x):
    return g.size(-g.rank(x), g.rank(x) - 1)


def transpose(g):
    x = anything(g, range(2, 6))
    for _ in range(g.pick([1, 1, 2])):
        x = g.op("Transpose", x, perm=[int(i) for i in g.rng.permutation(g.rank(x))])


def factors(g, n, parts):
    """Random extents with the product `n`."""
    extents = [1] * parts
    for prime in (p for p in (2, 3, 5, 7, 17) for _ in range(12)):
        if n % prime == 0:
            n //= prime
            extents[g.size(0, parts - 1)] *= prime
    extents[g.size(0, parts - 1)] *= n
    return extents


def reshape(g):
    x = anything(g, range(0, 6))
    way = g.pick(["free", "infer", "keep", "flat"])
    shape = factors(g, g.array(x).size, g.size(1, 4))
    if way == "infer":
        shape[g.size(0, len(shape) - 1)] = -1
    elif way == "keep" and g.rank(x) > 1:
        shape = [0, *factors(g, int(np.prod(g.dims(x)[1:])), g.size(1, 3))]
        if g.chance(0.5):
            shape[1] = -1
    elif way == "flat" and g.rank(x) > 0:
        g.op("Flatten", x, axis=g.size(-g.rank(x), g.rank(x)))
        return
    g.op("Reshape", x, g.ints(*shape))


def reshape_by_shape(g):
    """As exporters write it: extents are read, calculated with and put together."""
    x = g.value(range(2, 5))
    shape = g.op("Shape", x)
    cut = g.size(1, g.rank(x) - 1)
    if g.chance(0.5):
        kept = g.op("Slice", shape, g.ints(0), g.ints(cut), g.ints(0))
        y = g.op("Reshape", x, g.op("Concat", kept, g.ints(-1), axis=0))
    else:
        extents = [g.op("Gather", shape, g.const(np.array(i, np.int64))) for i in range(g.rank(x))]
        merged = g.op("Mul", *extents[cut - 1 : cut + 1])
        parts = [*extents[: cut - 1], merged, *extents[cut + 1 :]]
        y = g.op("Reshape", x, g.op("Concat", *(g.op("Unsqueeze", p, g.ints(0)) for p in parts), axis=0))
    if g.chance(0.5):
        g.op("Reshape", g.op(g.pick(["Relu", "Tanh", "Neg"]), y), shape)


def squeeze(g):
    x = anything(g, range(0, 5))
    count = g.size(1, 2)
    out = g.rank(x) + count
    axes = sorted(int(a) for a in g.rng.choice(out, count, replace=False))
    y = g.with_axes("Unsqueeze", x, axes if g.chance(0.5) else [a - out for a in axes])
    if g.chance(0.5):
        ones = [i for i, n in enumerate(g.dims(y)) if n == 1]
        g.with_axes("Squeeze", y, ones[: g.size(1, len(ones))])


def concat(g):
    x = anything(g)
    axis = axis_of(g, x)
    fits = lambda a: a.size < 3000 and all(m == n for i, (m, n) in enumerate(zip(a.shape, g.dims(x))) if i != axis % g.rank(x))
    # Values of which the rank fits but no extent does would be made anew forever.
    extent = lambda: [g.size(1, 5) if i == axis % g.rank(x) else n for i, n in enumerate(g.dims(x))]
    parts = [g.value([g.rank(x)], g.array(x).dtype, fits, extent) for _ in range(g.size(0, 3))]
    parts.insert(g.size(0, len(parts)), x)
    g.op("Concat", *parts, axis=axis)


def split(g):
    x = g.value(range(1, 5), dtype=g.pick([F32, F32, I64]), where=lambda a: max(a.shape) > 1)
    axis = int(np.argmax(g.dims(x)))
    total, parts = g.dims(x)[axis], []
    while total:
        parts.append(min(total, g.size(1, max(1, g.dims(x)[axis] // 2))))
        total -= parts[-1]
    if g.opset >= 18 and g.chance(0.3):
        outs = g.op("Split", x, n=2, num_outputs=2, axis=axis)
    else:
        outs = g.op("Split", x, g.ints(*parts), n=len(parts), axis=axis - g.rank(x) if g.chance(0.3) else axis)
    if isinstance(outs, list) and g.chance(0.4):
        # Together again, in another order.
        g.op("Concat", *(outs[i] for i in g.rng.permutation(len(outs))), axis=axis)


def slice_(g):
    x = anything(g)
    axes = sorted(int(a) for a in g.rng.choice(g.rank(x), g.size(1, g.rank(x)), replace=False))
    starts, ends, steps = [], [], []
    for axis in axes:
        n = g.dims(x)[axis]
        step = g.pick([1, 1, 1, 2, 3, -1, -2])
        low = g.size(0, n - 1)
        high = g.size(low + 1, n)
        if step > 0:
            start, end = g.pick([(low, high), (low, 2**31), (low - n, high), (low, high)])
        else:
            start, end = g.pick([(high - 1, low - 1 if low else -n - 1), (-1, -(2**31)), (n + 5, -n - 1)])
        starts, ends, steps = [*starts, start], [*ends, end], [*steps, step]
    inputs = [g.ints(*starts), g.ints(*ends), g.ints(*axes)]
    g.op("Slice", x, *inputs, *([g.ints(*steps)] if any(s != 1 for s in steps) or g.chance(0.5) else []))


def indices(g, n, shape):
    low = -n if g.chance(0.3) else 0
    return g.rng.integers(low, n, shape).astype(g.pick([I64, I64, I32]))


def gather(g):
    x = anything(g)
    axis = axis_of(g, x)
    shape = g.shape(g.pick([0, 0, 1, 1, 2]), 12)
    chosen = indices(g, g.dims(x)[axis], shape)
    g.op("Gather", x, g.const(chosen) if g.chance(0.7) else g.feed(chosen), axis=axis)


def gather_elements(g):
    x = anything(g)
    axis = g.size(0, g.rank(x) - 1)
    shape = [g.size(1, n) if i != axis else g.size(1, 6) for i, n in enumerate(g.dims(x))]
    g.op("GatherElements", x, g.const(indices(g, g.dims(x)[axis], shape)), axis=axis)


def gather_nd(g):
    x = anything(g)
    depth = g.size(1, g.rank(x))
    count = g.size(1, 5)
    columns = [g.rng.integers(-n, n, (count, 1)) for n in g.dims(x)[:depth]]
    g.op("GatherND", x, g.const(np.concatenate(columns, 1).astype(np.int64)))


def scatter_elements(g):
    x = g.value(range(1, 4))
    axis = g.size(0, g.rank(x) - 1)
    # Without duplicates: which of them counts is left open.
    shape = [g.size(1, n) for n in g.dims(x)]
    order = np.argsort(g.rng.random(g.dims(x)), axis)[tuple(slice(0, n) for n in shape)]
    kwargs = {"reduction": g.pick(["none", "add", "mul"])} if g.opset >= 16 else {}
    g.op("ScatterElements", x, g.const(order.astype(np.int64)), g.fresh_value(shape), axis=axis, **kwargs)


def scatter_nd(g):
    x = g.value(range(1, 4))
    count = g.size(1, g.dims(x)[0])
    rows = g.rng.permutation(g.dims(x)[0])[:count].reshape(-1, 1).astype(np.int64)
    kwargs = {"reduction": g.pick(["none", "add", "mul"])} if g.opset >= 16 else {}
    g.op("ScatterND", x, g.const(rows), g.fresh_value([count, *g.dims(x)[1:]]), **kwargs)


def expand(g):
    x = anything(g, range(0, 4))
    target = [n if n > 1 or g.chance(0.5) else g.size(1, 4) for n in g.dims(x)]
    asked = [1 if g.chance(0.3) else n for n in target]
    lead = [g.size(1, 3)] if g.chance(0.4) else []
    g.op("Expand", x, g.ints(*lead, *asked))


def tile(g):
    x = anything(g, range(1, 4))
    g.op("Tile", x, g.ints(*(g.pick([1, 1, 2, 3]) for _ in g.dims(x))))


def pad(g):
    x = g.value(range(1, 5), where=lambda a: min(a.shape) > 1)
    mode = g.pick(["constant", "constant", "reflect", "edge"])
    amount = lambda n: g.size(0, 2) if mode != "reflect" else g.size(0, min(2, n - 1))
    begin, end = ([amount(n) for n in g.dims(x)] for _ in range(2))
    if mode == "constant" and g.chance(0.3):
        # Negative amounts crop.
        begin[-1] = -1
    value = [g.scalar(g.pick([0.0, 1.5]))] if mode == "constant" and g.chance(0.5) else []
    g.op("Pad", x, g.ints(*begin, *end), *value, mode=mode)


def blocks(g):
    if g.chance(0.5):
        x = g.image(channels=lambda c: c % 4 == 0)
        g.op("DepthToSpace", x, blocksize=2, mode=g.pick(["DCR", "CRD"]))
    else:
        x = g.image()
        height, width = (n // 2 * 2 for n in g.dims(x)[2:])
        cropped = g.op("Slice", x, g.ints(0, 0), g.ints(height, width), g.ints(2, 3))
        g.op("SpaceToDepth", cropped, blocksize=2)


def shuffle(g):
    """Channels in another order: a reshape, a transposition, a reshape."""
    x = g.image(channels=lambda c: c % 2 == 0)
    n, c, *rest = g.dims(x)
    y = g.op("Transpose", g.op("Reshape", x, g.ints(0, 2, c // 2, *rest)), perm=[0, 2, 1, 3, 4])
    g.op("Reshape", y, g.ints(0, -1, *rest))


def reverse(g):
    x = g.value([2, 3, 4])
    time, batch = g.pick([(0, 1), (1, 0)])
    lengths = g.rng.integers(1, g.dims(x)[time] + 1, g.dims(x)[batch]).astype(np.int64)
    g.op("ReverseSequence", x, g.const(lengths), time_axis=time, batch_axis=batch)


def triangle(g):
    if g.opset < 14:
        raise Unsteady
    x = g.value([2, 3, 4])
    g.op("Trilu", x, *([g.const(np.array(g.size(-2, 2), np.int64))] if g.chance(0.6) else []), upper=g.size(0, 1))


def one_hot(g):
    x = g.value([1, 2], dtype=I64, where=lambda a: a.size < 200)
    values = g.const(np.array(g.pick([[0, 1], [-1, 2]]), np.float32))
    g.op("OneHot", x, g.const(np.array(g.size(2, 7), np.int64)), values, axis=g.pick([-1, 0]))


def filled(g):
    x = anything(g, range(1, 4))
    value = np.array([g.pick([0.0, 1.0, 2.5])], np.float32)
    y = g.op("ConstantOfShape", g.op("Shape", x), value=numpy_helper.from_array(value))
    g.op("Add", y, g.like(y))


def data_dependent(g):
    """Extents that are known when the values are."""
    kind = g.pick(["NonZero", "Compress", "Unique"])
    if kind == "NonZero":
        g.op("NonZero", g.value([1, 2, 3], dtype=g.pick([BOOL, I64])))
    elif kind == "Compress":
        x = g.value([1, 2, 3])
        keep = g.rng.random(g.dims(x)[0]) < 0.6
        keep[0] = True
        g.op("Compress", x, g.feed(keep), axis=0)
    else:
        g.op("Unique", g.value([1, 2], dtype=I64), n=4, sorted=1)


def count_up(g):
    x = g.value(range(1, 4), where=lambda a: a.size < 300)
    extent = g.op("Gather", g.op("Shape", x), g.const(np.array(-1, np.int64)))
    start, step = (g.const(np.array(v, np.int64)) for v in (0, 1))
    numbers = g.op("Cast", g.op("Range", start, extent, step), to=TensorProto.FLOAT)
    g.op(g.pick(["Add", "Mul"]), x, numbers)


ROWS = [
    *(transpose, transpose, reshape, reshape, reshape_by_shape, squeeze, concat, concat, split, slice_, slice_, gather),
    *(gather_elements, gather_nd, scatter_elements, scatter_nd, expand, tile, pad, pad, blocks, shuffle, reverse, triangle),
    *(one_hot, filled, data_dependent, count_up),
]
