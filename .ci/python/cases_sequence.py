"""Transformer encoders and recurrent networks."""

import numpy as np
from onnx import TensorProto

from net import Net

TOKENS, WIDTH, HEADS, VOCABULARY = 7, 24, 4, 50


def embed(n):
    """Token and position embeddings of ids [N,T]; the case runs two sentences, the second one shorter."""
    ids = n.input("ids", ["N", "T"], n.rng.integers(0, VOCABULARY, (2, TOKENS)).astype(np.int64))
    mask = n.input("mask", ["N", "T"], np.array([[1] * TOKENS, [1] * (TOKENS - 3) + [0] * 3], np.int64))
    tokens = n.op("Gather", n.const(n.noise(VOCABULARY, WIDTH), "embedding"), ids, axis=0)
    table = n.const(n.noise(1, 16, WIDTH, scale=0.2), "positions")
    length = n.op("Gather", n.op("Shape", ids), n.ints(1), axis=0)
    positions = n.op("Slice", table, n.ints(0), length, n.ints(1))
    return n.op("Add", tokens, positions), mask


def linear(n, x, cin, cout):
    return n.op("Add", n.op("MatMul", x, n.const(n.noise(cin, cout, scale=cin**-0.5), "weight")), n.bias(cout))


def attention(n, x, visible):
    """Multi-head self-attention; `visible` is a boolean [N,1,1,T]."""
    split = n.ints(0, 0, HEADS, WIDTH // HEADS)
    heads = [n.op("Reshape", linear(n, x, WIDTH, WIDTH), split) for _ in range(3)]
    q, v = (n.op("Transpose", h, perm=[0, 2, 1, 3]) for h in (heads[0], heads[2]))
    k = n.op("Transpose", heads[1], perm=[0, 2, 3, 1])
    scores = n.op("Div", n.op("MatMul", q, k), n.scalar(np.sqrt(WIDTH / HEADS)))
    scores = n.op("Where", visible, scores, n.scalar(np.finfo(np.float32).min))
    mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1 if n.opset >= 13 else 3), v)
    mixed = n.op("Reshape", n.op("Transpose", mixed, perm=[0, 2, 1, 3]), n.ints(0, -1, WIDTH))
    return linear(n, mixed, WIDTH, WIDTH)


def encoder(n, x, visible, norm):
    """Two layers, normalized after each residual."""
    for _ in range(2):
        x = norm(n.op("Add", x, attention(n, x, visible)))
        x = norm(n.op("Add", x, linear(n, n.gelu(linear(n, x, WIDTH, 48)), 48, WIDTH)))
    return x


def transformer():
    """The operators of today: LayerNormalization, axes as inputs."""
    n = Net("transformer")
    x, mask = embed(n)
    visible = n.op("Cast", n.op("Unsqueeze", mask, n.ints(1, 2)), to=TensorProto.BOOL)
    scale = lambda: n.const(n.rng.uniform(0.5, 1.5, WIDTH).astype(np.float32), "scale")
    norm = lambda v: n.op("LayerNormalization", v, scale(), n.bias(WIDTH), axis=-1, epsilon=1e-5)
    x = encoder(n, norm(x), visible, norm)
    first = n.op("Gather", x, n.const(np.int64(0)), axis=1, out="first")
    n.op("Gemm", n.op("Tanh", first), n.weight(3, WIDTH), n.bias(3), transB=1, out="logits")
    n.output("first", "N", WIDTH)
    n.output("logits", "N", 3)
    return n


def transformer_opset11():
    """The same network as older exporters wrote it: normalization spelled out, axes as attributes."""
    n = Net("transformer_opset11", opset=11)

    def norm(v):
        centred = n.op("Sub", v, n.op("ReduceMean", v, axes=[-1], keepdims=1))
        variance = n.op("ReduceMean", n.op("Pow", centred, n.scalar(2.0)), axes=[-1], keepdims=1)
        x = n.op("Div", centred, n.op("Sqrt", n.op("Add", variance, n.scalar(1e-5))))
        scale = n.const(n.rng.uniform(0.5, 1.5, WIDTH).astype(np.float32), "scale")
        return n.op("Add", n.op("Mul", x, scale), n.bias(WIDTH))

    x, mask = embed(n)
    wide = n.op("Unsqueeze", n.op("Unsqueeze", mask, axes=[1]), axes=[2])
    visible = n.op("Not", n.op("Equal", wide, n.const(np.int64(0))))
    x = n.op("Dropout", encoder(n, norm(x), visible, norm), ratio=0.1)
    # Mean over the visible tokens, then a head of two parts.
    weight = n.op("Cast", n.op("Unsqueeze", mask, axes=[2]), to=TensorProto.FLOAT)
    total = n.op("ReduceSum", n.op("Mul", x, weight), axes=[1], keepdims=1)
    mean = n.op("Squeeze", n.op("Div", total, n.op("ReduceSum", weight, axes=[1], keepdims=1)), axes=[1])
    left, right = n.op("Split", mean, axis=1, split=[16, 8], n=2)
    n.op("Concat", n.op("MatMul", left, n.weight(16, 3)), n.op("ReduceMax", right, axes=[1]), axis=1, out="logits")
    n.output("logits", "N", 4)
    return n


def recurrent(n, kind, gates, x, width, hidden, directions, *states, n_out=2, **attributes):
    """A recurrent layer with random weights; `states` are sequence_lens, initial_h, …"""
    scale = hidden**-0.5
    w = n.const(n.noise(directions, gates * hidden, width, scale=scale), "w")
    r = n.const(n.noise(directions, gates * hidden, hidden, scale=scale), "r")
    b = n.const(n.noise(directions, 2 * gates * hidden, scale=0.2), "b")
    direction = {1: "forward", 2: "bidirectional"}[directions]
    attributes.setdefault("direction", direction)
    return n.op(kind, x, w, r, b, *states, n=n_out, hidden_size=hidden, **attributes)


def lstm():
    """Two bidirectional layers, batch first, as PyTorch writes them: zero states built from the batch size."""
    n = Net("lstm")
    x = n.input("x", ["N", "T", 6], n.noise(3, 5, 6))
    rows = n.op("Unsqueeze", n.op("Gather", n.op("Shape", x), n.const(np.int64(0)), axis=0), n.ints(0))
    zeros = n.op("Expand", n.scalar(0.0), n.op("Concat", n.ints(2), rows, n.ints(8), axis=0))
    x = n.op("Transpose", x, perm=[1, 0, 2])
    for width in (6, 16):
        y, h, c = recurrent(n, "LSTM", 4, x, width, 8, 2, "", zeros, zeros, n_out=3)
        x = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(0, 0, -1))
    n.op("Transpose", x, perm=[1, 0, 2], out="states")
    pick = lambda state, direction: n.op("Gather", state, n.const(np.int64(direction)), axis=0)
    last = n.op("Add", pick(h, 0), pick(c, -1))
    n.op("Gemm", last, n.weight(3, 8), n.bias(3), transB=1, out="logits")
    n.output("states", "N", "T", 16)
    n.output("logits", "N", 3)
    return n


def lstm_lengths():
    """Initial states and sequences of different lengths, in both directions and in reverse alone."""
    n = Net("lstm_lengths")
    x = n.input("x", ["T", "N", 5], n.noise(6, 3, 5))
    lengths = n.input("lengths", ["N"], np.array([6, 2, 4], np.int32))
    states = [n.input(name, [2, "N", 7], n.noise(2, 3, 7, scale=0.5)) for name in ("h0", "c0")]
    w = [n.const(n.noise(2, 28, width, scale=0.4)) for width in (5, 7)]
    n.op("LSTM", x, *w, "", lengths, *states, hidden_size=7, direction="bidirectional", out=["y", "h", "c"])
    one = [n.op("Slice", s, n.ints(0), n.ints(1), n.ints(0)) for s in states]
    n.op("LSTM", x, *(n.const(n.noise(1, 28, width, scale=0.4)) for width in (5, 7)), "", lengths, *one,
         hidden_size=7, direction="reverse", out=["", "h_reverse"])
    n.output("y", "T", 2, "N", 7)
    n.output("h", 2, "N", 7)
    n.output("c", 2, "N", 7)
    n.output("h_reverse", 1, "N", 7)
    return n


def gru():
    """Both places of the reset gate: the paper's (linear_before_reset 0) and the one that cuDNN made common (1)."""
    n = Net("gru")
    x = n.input("x", ["T", "N", 5], n.noise(6, 3, 5))
    lengths = n.input("lengths", ["N"], np.array([3, 6, 1], np.int32))
    h0 = n.input("h0", [2, "N", 8], n.noise(2, 3, 8, scale=0.5))
    y, h_paper = recurrent(n, "GRU", 3, x, 5, 8, 2, lengths, h0, linear_before_reset=0)
    _, h_after = recurrent(n, "GRU", 3, x, 5, 8, 2, "", h0, linear_before_reset=1)
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(0, 0, -1))
    y, _ = recurrent(n, "GRU", 3, y, 16, 4, 1, linear_before_reset=1)
    n.op("Squeeze", y, n.ints(1), out="y")
    n.op("Concat", h_paper, h_after, axis=0, out="h")
    n.output("y", "T", "N", 4)
    n.output("h", 4, "N", 8)
    return n


def rnn():
    """Plain recurrence: tanh in both directions from initial states and lengths, and a rectified one in reverse."""
    n = Net("rnn")
    x = n.input("x", ["T", "N", 4], n.noise(5, 2, 4))
    lengths = n.input("lengths", ["N"], np.array([5, 3], np.int32))
    h0 = n.input("h0", [2, "N", 6], n.noise(2, 2, 6, scale=0.5))
    y, h = recurrent(n, "RNN", 1, x, 4, 6, 2, lengths, h0)
    y2, _ = recurrent(n, "RNN", 1, x, 4, 6, 1, direction="reverse", activations=["Relu"])
    n.op("Concat", y, y2, axis=1, out="y")
    n.op("Identity", h, out="h")
    n.output("y", "T", 3, "N", 6)
    n.output("h", 2, "N", 6)
    return n


CASES = [transformer, transformer_opset11, lstm, lstm_lengths, gru, rnn]
