"""Operators of onnxruntime's own domain, and recurrent layers with unusual options: one case an operator, an output a variant."""

import numpy as np
from onnx import TensorProto

from net import Net

B, S, N, D = 2, 6, 4, 16
H = N * D
MS = "com.microsoft"


def contrib(name, build, dtype=TensorProto.FLOAT):
    """A case whose outputs are what `build` returns."""

    def make():
        n = Net(name)
        for i, value in enumerate(build(n)):
            n.op("Flatten", value, axis=1, out=f"y{i}")  # so that all have one rank to declare
            n.output(f"y{i}", f"rows{i}", f"columns{i}", dtype=dtype)
        return n

    make.__name__ = name
    return make


def tokens(n, name="x", length=S, width=H):
    return n.input(name, ["B", "T" + name, width], n.noise(B, length, width))


def cache(n, name, length, heads=N):
    return n.input(name, ["B", heads, "P", D], n.noise(B, heads, length, D))


def bytes_of(n, *shape, dtype=np.uint8):
    info = np.iinfo(dtype)
    return n.rng.integers(info.min, info.max + 1, shape).astype(dtype)


def number(n, value, dtype):
    return n.const(np.array(value, dtype))


def gelus(n):
    x, bias = tokens(n), n.bias(H)
    yield n.op("Gelu", x, domain=MS)
    yield n.op("BiasGelu", x, bias, domain=MS)
    yield n.op("FastGelu", x, domain=MS)
    yield n.op("FastGelu", x, bias, domain=MS)
    yield n.op("QuickGelu", x, domain=MS)
    yield n.op("QuickGelu", x, alpha=0.7, domain=MS)


def products(n):
    x = n.input("x", ["B", 3, 5], n.noise(4, 3, 5))
    y = n.input("y", ["B", 5, 7], n.noise(4, 5, 7))
    yield n.op("FusedMatMul", x, y, alpha=0.3, domain=MS)
    yield n.op("FusedMatMul", x, n.op("Transpose", y, perm=[0, 2, 1]), transB=1, domain=MS)
    yield n.op("FusedMatMul", n.op("Transpose", x, perm=[0, 2, 1]), y, transA=1, alpha=2.0, domain=MS)
    yield n.op("FusedMatMul", n.op("Transpose", x, perm=[1, 0, 2]), y, transBatchA=1, domain=MS)
    yield n.op("FusedMatMul", n.op("Transpose", x, perm=[2, 0, 1]), y, transA=1, transBatchA=1, domain=MS)
    yield n.op("FusedMatMul", x, n.op("Transpose", y, perm=[1, 0, 2]), transBatchB=1, domain=MS)
    a = n.input("a", ["M", 5], n.noise(3, 5))
    for activation in ["Relu", "LeakyRelu", "Tanh", "Sigmoid"]:
        yield n.op("FusedGemm", a, n.weight(5, 7), n.bias(7), alpha=0.5, beta=2.0, activation=activation,
                   activation_alpha=0.2, domain=MS)


def convolutions(n):
    x = n.input("x", ["B", 3, 9, 9], n.noise(2, 3, 9, 9))
    w, b, z = n.weight(4, 3, 3, 3), n.bias(4), n.input("z", ["B", 4, 9, 9], n.noise(2, 4, 9, 9))
    shape = dict(kernel_shape=[3, 3], pads=[1] * 4, domain=MS)
    yield n.op("FusedConv", x, w, b, activation="Relu", **shape)
    yield n.op("FusedConv", x, w, b, z, activation="Relu", **shape)
    yield n.op("FusedConv", x, w, b, activation="LeakyRelu", activation_params=[0.3], **shape)
    yield n.op("FusedConv", x, w, "", activation="Clip", activation_params=[-0.2, 0.7], **shape)
    yield n.op("FusedConv", x, w, b, activation="HardSigmoid", activation_params=[0.3, 0.4], **shape)


def norms(n):
    x, skip = tokens(n), tokens(n, "skip")
    gamma, beta, bias = n.const(n.noise(H) + 1), n.bias(H), n.bias(H)
    yield from n.op("SkipLayerNormalization", x, skip, gamma, beta, bias, epsilon=1e-5, n=4, domain=MS)[::3]
    yield n.op("SkipLayerNormalization", x, n.const(n.noise(1, S, H)), gamma, domain=MS)
    yield from n.op("SkipSimplifiedLayerNormalization", x, skip, gamma, bias, n=4, domain=MS)[::3]
    yield from n.op("LayerNormalization", x, gamma, beta, axis=-1, n=3)


def embeddings(n):
    ids = lambda name, high: n.input(name, ["B", "T"], n.rng.integers(0, high, (B, S)).astype(np.int32))
    tables = [n.const(n.noise(rows, H)) for rows in (20, 10, 2)]
    gamma, beta = n.const(n.noise(H) + 1), n.bias(H)
    words, segments, places = ids("words", 20), ids("segments", 2), ids("places", 10)
    mask = n.input("mask", ["B", "T"], np.array([[1] * S, [1] * (S - 2) + [0] * 2], np.int32))
    sums, counts, raw = n.op("EmbedLayerNormalization", words, segments, *tables, gamma, beta, mask, n=3,
                             mask_index_type=1, domain=MS)
    yield from [sums, n.op("Cast", counts, to=TensorProto.FLOAT), raw]
    yield n.op("EmbedLayerNormalization", words, "", *tables[:2], "", gamma, beta, "", places, n=2, epsilon=1e-3,
               domain=MS)[0]


def attention(n):
    x = tokens(n)
    w, b = n.const(n.noise(H, 3 * H, scale=0.2)), n.bias(3 * H)
    plain = dict(num_heads=N, domain=MS)
    yield n.op("Attention", x, w, b, **plain)
    mask = n.input("mask", ["B", "Tx"], np.array([[1] * S, [1] * (S - 2) + [0] * 2], np.int32))
    yield n.op("Attention", x, w, b, mask, **plain)
    yield n.op("Attention", x, w, b, mask, mask_filter_value=-3.0, unidirectional=1, scale=0.5, **plain)
    ends = n.input("ends", ["B"], np.array([S, S - 3], np.int32))
    yield n.op("Attention", x, w, b, ends, **plain)
    both = n.const(np.array([S, S - 1, 1, 0], np.int32))
    fixed = n.input("fixed", [B, "Tf", H], n.noise(B, S, H))
    yield n.op("Attention", fixed, w, b, both, **plain)
    square = n.input("square", ["B", "Tx", "Tx"], n.rng.integers(0, 2, (B, S, S)).astype(np.int32))
    yield n.op("Attention", x, w, b, square, **plain)
    added = n.input("added", [1, N, "Tx", "Tx"], n.noise(1, N, S, S))
    yield n.op("Attention", x, w, b, mask, "", added, **plain)
    past = n.input("past", [2, "B", N, "P", D], n.noise(2, B, N, 3, D))
    yield from n.op("Attention", x, w, b, "", past, unidirectional=1, n=2, **plain)
    narrow = n.const(n.noise(H, 2 * H + 32, scale=0.2))
    yield n.op("Attention", x, narrow, n.bias(2 * H + 32), qkv_hidden_sizes=[H, H, 32], **plain)


def multi_head_attention(n):
    q, k, v = tokens(n, "q"), tokens(n, "k", 5), tokens(n, "v", 5)
    bias = n.bias(3 * H)
    plain = dict(num_heads=N, domain=MS)
    yield n.op("MultiHeadAttention", q, k, v, **plain)
    yield n.op("MultiHeadAttention", q, k, v, bias, scale=0.4, **plain)
    mask = n.input("mask", ["B", "Tk"], np.array([[1] * 5, [1] * 3 + [0] * 2], np.int32))
    yield n.op("MultiHeadAttention", q, k, v, bias, mask, **plain)
    added = n.input("added", ["B", N, "Tq", "Tk"], n.noise(B, N, S, 5))
    yield n.op("MultiHeadAttention", q, k, v, "", "", added, **plain)
    heads = [n.input(f"{name}_heads", ["B", N, "P", D], n.noise(B, N, 3, D)) for name in "kv"]
    yield n.op("MultiHeadAttention", q, *heads, **plain)
    past = [cache(n, f"past_{name}", 3) for name in "kv"]
    yield from n.op("MultiHeadAttention", q, q, q, "", "", "", *past, n=3, unidirectional=1, **plain)


def rotary(n):
    x, four = tokens(n), n.input("four", ["B", N, "T4", D], n.noise(B, N, S, D))
    angles = n.rng.uniform(0, 6, (20, D // 2)).astype(np.float32)
    table = n.const(np.cos(angles)), n.const(np.sin(angles))
    half = n.const(np.cos(angles[:, :2])), n.const(np.sin(angles[:, :2]))
    places = n.input("places", ["B", "Tx"], n.rng.integers(0, 20, (B, S)).astype(np.int64))
    first = n.const(np.array([3], np.int64))
    yield n.op("RotaryEmbedding", x, places, *table, domain=MS)
    yield n.op("RotaryEmbedding", x, first, *table, interleaved=1, domain=MS)
    yield n.op("RotaryEmbedding", four, first, *table, domain=MS)
    yield n.op("RotaryEmbedding", x, places, *half, num_heads=N, rotary_embedding_dim=4, domain=MS)


def grouped_query_attention(n):
    m = 2
    angles = n.rng.uniform(0, 6, (20, D // 2)).astype(np.float32)
    table = n.const(np.cos(angles)), n.const(np.sin(angles))
    plain = dict(num_heads=N, kv_num_heads=m, n=3, domain=MS)
    prompt = [tokens(n, "q"), *(tokens(n, name, S, m * D) for name in "kv")]
    lengths = lambda *values: n.const(np.array(values, np.int32))
    empty = [n.input(f"empty_{name}", ["B", m, "E", D], n.noise(B, m, 0, D)) for name in "kv"]
    yield from n.op("GroupQueryAttention", *prompt, *empty, lengths(S - 1, S - 1), lengths(S), **plain)
    yield n.op("GroupQueryAttention", *prompt, *empty, lengths(S - 1, S - 1), lengths(S), *table, do_rotary=1,
               softcap=2.0, scale=0.5, **plain)[0]
    token = [n.input(f"{name}1", ["B", 1, width], n.noise(B, 1, width))
             for name, width in (("q", H), ("k", m * D), ("v", m * D))]
    past = [cache(n, f"past_{name}", 5, m) for name in "kv"]
    yield from n.op("GroupQueryAttention", *token, *past, lengths(5, 5), lengths(6), *table, do_rotary=1,
                    rotary_interleaved=1, **plain)
    yield n.op("GroupQueryAttention", *token, *past, lengths(5, 3), lengths(6), **plain)[0]
    yield n.op("GroupQueryAttention", *prompt, *empty, lengths(S - 1, S - 1), lengths(S), local_window_size=2,
               **plain)[0]


def mat_mul_nbits(n):
    def one(bits, k, columns, block, points):
        blocks = -(-k // block)
        x = n.input(f"x{bits}{k}{points}", ["B", "T", k], n.noise(B, S, k))
        b = n.const(bytes_of(n, columns, blocks, block * bits // 8))
        scales = n.const(n.rng.uniform(0.01, 0.1, columns * blocks).astype(np.float32))
        zeros = {"none": [], "packed": [n.const(bytes_of(n, columns * -(-blocks * bits // 8)))],
                 "float": [n.const(n.rng.uniform(6, 9, columns * blocks).astype(np.float32))]}[points]
        return n.op("MatMulNBits", x, b, scales, *zeros, K=k, N=columns, bits=bits, block_size=block, domain=MS)

    yield one(4, 64, 10, 32, "none")
    yield one(4, 96, 10, 32, "packed")
    yield one(4, 40, 6, 16, "packed")
    yield one(4, 64, 6, 16, "float")


def quantized(n):
    f, u = np.float32, np.uint8
    a, b = (n.input(name, ["B", 4, 6, 6], bytes_of(n, 2, 4, 6, 6)) for name in "ab")
    by = lambda scale, zero: (number(n, scale, f), number(n, zero, u))
    one, two, out = by(0.05, 120), by(0.03, 100), by(0.06, 130)
    q = lambda kind, *inputs, **attributes: n.op(kind, *inputs, domain=MS, **attributes)
    yield q("QLinearAdd", a, *one, b, *two, *out)
    yield q("QLinearMul", a, *one, b, *two, *out)
    yield q("QLinearConcat", *out, a, *one, b, *two, axis=1)
    yield q("QLinearAveragePool", a, *one, *out, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    yield q("QLinearGlobalAveragePool", a, *one, *out)
    yield q("QLinearSigmoid", a, *one, *by(1 / 256, 0))
    yield q("QLinearLeakyRelu", a, *one, *out, alpha=0.2)
    yield q("QLinearSoftmax", a, *one, *by(1 / 256, 0), axis=-1, opset=13)


def quantized_products(n):
    f, u = np.float32, np.uint8
    m = n.input("m", ["M", 5], bytes_of(n, 3, 5))
    x = n.input("x", ["M", 5], n.noise(3, 5))
    w = bytes_of(n, 5, 7)
    s, z = number(n, 0.02, f), number(n, 120, u)
    columns = n.const(n.rng.uniform(0.01, 0.05, 7).astype(f)), n.const(bytes_of(n, 7))
    bias = n.const(n.rng.integers(-500, 500, 7).astype(np.int32))
    q = lambda kind, *inputs, **attributes: n.op(kind, *inputs, domain=MS, **attributes)
    yield q("QGemm", m, s, z, n.const(w.T.copy()), s, z, bias, transB=1, alpha=1.0)
    short = q("QGemm", m, s, z, n.const(w), *columns, "", number(n, 0.1, f), z)
    yield n.op("Cast", short, to=TensorProto.FLOAT)
    yield q("DynamicQuantizeMatMul", x, n.const(w), s, z, n.bias(7))
    yield q("MatMulIntegerToFloat", m, n.const(w), s, s, z, z, n.bias(7))
    # 7 bits: without a dot-product instruction onnxruntime saturates sums of two products.
    weights = n.const(bytes_of(n, H, 3 * H, dtype=np.int8) // 2)
    tokens = n.input("tokens", ["B", "T", H], bytes_of(n, B, S, H))
    mask = n.input("mask", ["B"], np.array([S, S - 2], np.int32))
    yield q("QAttention", tokens, weights, n.bias(3 * H), number(n, 0.01, f), number(n, 0.003, f), mask, z,
            number(n, 3, np.int8), num_heads=N)


def recurrent(n):
    """Every nonlinearity, bounds, coupled gates, lengths, in every direction."""
    steps, features, hidden = 5, 3, 4
    x = n.input("x", ["T", "B", features], n.noise(steps, B, features))
    lengths = n.const(np.array([steps, 3], np.int32))

    def layer(kind, gates, direction, lens=True, peepholes=False, **attributes):
        d = 2 if direction == "bidirectional" else 1
        w, r = n.const(n.noise(d, gates * hidden, features, scale=0.6)), n.const(n.noise(d, gates * hidden, hidden, scale=0.6))
        b = n.const(n.noise(d, 2 * gates * hidden, scale=0.3))
        state = lambda: n.const(n.noise(d, B, hidden))
        inputs = [x, w, r, b, lengths if lens else "", state()]
        if kind == "LSTM":
            inputs += [state()] + ([n.const(n.noise(d, 3 * hidden, scale=0.4))] if peepholes else [])
        outputs = 3 if kind == "LSTM" else 2
        return n.op(kind, *inputs, hidden_size=hidden, direction=direction, n=outputs, **attributes)

    yield from layer("RNN", 1, "bidirectional", activations=["Affine", "Elu"], activation_alpha=[0.5, 0.7],
                     activation_beta=[0.1, 0.0], clip=0.8)
    yield from layer("RNN", 1, "reverse", activations=["ThresholdedRelu"], activation_alpha=[0.2],
                     activation_beta=[0.0])
    yield from layer("RNN", 1, "forward", lens=False, activations=["Softplus"])
    yield from layer("GRU", 3, "bidirectional", activations=["HardSigmoid", "Softsign", "Sigmoid", "LeakyRelu"],
                     activation_alpha=[0.3, 0.05], activation_beta=[0.4])
    yield from layer("GRU", 3, "reverse", lens=False, linear_before_reset=1, clip=0.6)
    yield from layer("LSTM", 4, "bidirectional", activations=["Sigmoid", "Relu", "Tanh", "HardSigmoid", "ScaledTanh", "Tanh"],
                     activation_alpha=[0.3, 0.9], activation_beta=[0.4, 1.1])
    yield from layer("LSTM", 4, "forward", peepholes=True, clip=0.7)
    yield from layer("LSTM", 4, "reverse", lens=False, input_forget=1)


FAMILIES = [gelus, products, convolutions, norms, embeddings, attention, multi_head_attention, rotary,
            grouped_query_attention, mat_mul_nbits]
CASES = [contrib(f"contrib_{build.__name__}", build) for build in FAMILIES]
CASES.append(contrib("quantized_elements", quantized, TensorProto.UINT8))
CASES.append(contrib("quantized_products", quantized_products))
CASES.append(contrib("recurrent_options", recurrent))
