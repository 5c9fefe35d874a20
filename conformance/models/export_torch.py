"""Writes the `torch_*.onnx` files beside this script: small networks as PyTorch exports them, with random weights.

    python export_torch.py [NAME]…        (packages: .ci/python/models/torch.txt)

Each network is written twice: by the exporter that traces (`torch_NAME.onnx`), and by the one that captures a program
(`torch_NAME_dynamo.onnx`). What PyTorch computes is compared with what onnxruntime makes of the file. The networks are
written here and the weights are drawn from a fixed seed, so the files are under this repository's own licence. Each
names, in its metadata, the values of its open extents that `cargo xtask models` runs it with.
"""

import inspect
import pathlib
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

HERE = pathlib.Path(__file__).parent


def conv(inputs, outputs, kernel=3, stride=1, groups=1, activation=nn.ReLU):
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.body = nn.Sequential(conv(inputs, width, 1), conv(width, width, 3, stride), conv(width, 2 * width, 1, activation=None))
        same = inputs == 2 * width and stride == 1
        self.short = nn.Identity() if same else conv(inputs, 2 * width, 1, stride, activation=None)

    def forward(self, x):
        return F.relu(self.body(x) + self.short(x))


class ResNet(nn.Module):
    """Bottlenecks with projections, pictures of any size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 12, 7, 2), nn.MaxPool2d(3, 2, 1))
        rows = [(12, 8, 1), (16, 8, 1), (16, 16, 2), (32, 16, 1), (32, 24, 2)]
        self.blocks = nn.Sequential(*(Bottleneck(*row) for row in rows))
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)
        return self.head(torch.flatten(x, 1))


class SqueezeExcite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fewer, self.more = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x):
        return F.hardsigmoid(self.more(F.relu(self.fewer(self.pool(x))))) * x


class InvertedResidual(nn.Module):
    def __init__(self, inputs, expanded, outputs, kernel, stride, squeeze, activation):
        super().__init__()
        layers = [conv(inputs, expanded, 1, activation=activation)] if expanded != inputs else []
        layers.append(conv(expanded, expanded, kernel, stride, expanded, activation))
        layers += [SqueezeExcite(expanded)] if squeeze else []
        self.body = nn.Sequential(*layers, conv(expanded, outputs, 1, activation=None))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.body(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """MobileNetV3: inverted residuals with squeeze-and-excitation and hard-swish."""

    def __init__(self):
        super().__init__()
        rows = [(8, 8, 8, 3, 2, True, nn.ReLU), (8, 32, 12, 3, 2, False, nn.ReLU), (12, 36, 12, 3, 1, False, nn.ReLU),
                (12, 40, 16, 5, 2, True, nn.Hardswish), (16, 64, 16, 5, 1, True, nn.Hardswish)]
        layers = [conv(3, 8, 3, 2, activation=nn.Hardswish), *(InvertedResidual(*row) for row in rows)]
        self.features = nn.Sequential(*layers, conv(16, 64, 1, activation=nn.Hardswish))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(64, 64), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(64, 10))

    def forward(self, x):
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


class PreNorm(nn.Module):
    """An encoder that normalizes before attention and before the two products."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches of 8×8, a class token, and learned positions that are resampled to the picture's size."""

    def __init__(self, width=30):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, width, 4, 4))
        self.blocks = nn.Sequential(PreNorm(width, 3), PreNorm(width, 3))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 10)

    def forward(self, x):
        x = self.patches(x)
        x = x + F.interpolate(self.positions, size=x.shape[2:], mode="bicubic", align_corners=False)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.head(self.norm(self.blocks(x))[:, 0])


class PostNorm(nn.Module):
    """An encoder that normalizes after each residual."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, mask):
        batch, words, width = x.shape
        split = lambda layer: layer(x).view(batch, words, self.heads, width // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(self.query), split(self.key), split(self.value), attn_mask=mask)
        x = self.norm1(x + self.out(y.transpose(1, 2).reshape(batch, words, width)))
        return self.norm2(x + self.down(F.gelu(self.up(x), approximate="tanh")))


class Bert(nn.Module):
    """Post-norm encoders over words, masked where the second input is 0; every word's vector, and the first's pooled."""

    def __init__(self, width=36):
        super().__init__()
        self.words, self.positions = nn.Embedding(100, width), nn.Embedding(64, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList([PostNorm(width, 3), PostNorm(width, 3)])
        self.pooler = nn.Linear(width, width)

    def forward(self, input_ids, attention_mask):
        places = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        x = self.norm(self.words(input_ids) + self.positions(places))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -1e4
        for block in self.blocks:
            x = block(x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


class Tagger(nn.Module):
    """A bidirectional LSTM; packed, of two layers, by how many ids are not below 20.

    The exporter that captures a program writes a step for each word, and cannot pack.
    """

    def __init__(self, packed):
        super().__init__()
        self.packed = packed
        self.words = nn.Embedding(100, 20)
        self.lstm = nn.LSTM(20, 20, num_layers=2 if packed else 1, bidirectional=True, batch_first=True)
        self.head = nn.Linear(40, 7)

    def forward(self, x):
        words = self.words(x)
        if self.packed:
            lengths = (x >= 20).sum(1).clamp(min=1)
            packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
            y, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        else:
            y, _ = self.lstm(words)
        return F.softmax(self.head(y), -1)


class UNet(nn.Module):
    """An encoder and a decoder with skips: upsampled by interpolation and by transposed convolution."""

    def __init__(self):
        super().__init__()
        double = lambda inputs, width: nn.Sequential(conv(inputs, width, activation=nn.SiLU), conv(width, width, activation=nn.LeakyReLU))
        self.downs = nn.ModuleList([double(1, 8), double(8, 12), double(12, 16)])
        self.middle = double(16, 16)
        self.ups = nn.ModuleList([nn.ConvTranspose2d(16, 12, 2, 2), nn.ConvTranspose2d(12, 12, 3, 2, 1, 1)])
        self.doubles = nn.ModuleList([double(28, 12), double(24, 12), double(20, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for i, double in enumerate(self.doubles):
            skip = skips.pop()
            if i < 2:  # A row or column may be missing where an odd extent was halved.
                x = self.ups[i](x)
                x = F.pad(x, [0, skip.shape[3] - x.shape[3], 0, skip.shape[2] - x.shape[2]])
            else:
                x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=True)
            x = double(torch.cat([skip, x], dim=1))
        return torch.sigmoid(self.head(x))


PICTURE = {0: "batch", 2: "height", 3: "width"}
WORDS = {0: "batch", 1: "words"}


def pictures(channels, side):
    return (torch.randn(3, channels, side, side + 8),)


def words(inputs, count=11):
    return (torch.randint(1, 100, (3, count)), *(torch.randint(0, 2, (3, count)) for _ in range(inputs - 1)))


BATCH = {0: "batch"}
SIZES = "1x64x64 2x96x80 3x33x47"

# Network, example inputs, and of each exporter: opset, names of the extents that it keeps open, their values in runs.
# Tracing fixes how many patches MultiheadAttention sees; the other exporter writes an LSTM step by step.
MODELS = {
    "resnet": (ResNet, pictures(3, 64), (9, PICTURE, SIZES), (18, PICTURE, SIZES)),
    "mobilenet": (MobileNet, pictures(3, 64), (14, PICTURE, SIZES), (20, PICTURE, SIZES)),
    "vit": (ViT, pictures(3, 48), (17, BATCH, "1 2 5"), (18, PICTURE, "1x32x32 2x48x64 3x40x24")),
    "bert": (Bert, words(2), (14, WORDS, "1x12 3x7 2x33"), (21, WORDS, "1x12 3x7 2x33")),
    "tagger": (Tagger, words(1, 6), (13, WORDS, "1x9 4x5 2x30"), (18, BATCH, "1 4 2")),
    "unet": (UNet, pictures(1, 48), (11, PICTURE, "1x32x32 2x64x48 1x41x53"), (18, PICTURE, "1x32x32 2x64x48 1x41x53")),
}


def build(name, packed):
    torch.manual_seed(11)
    network = MODELS[name][0]
    model = (network(packed) if network is Tagger else network()).eval()
    for module in model.modules():  # Every weight takes part, the statistics of batches too.
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.05)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.05)
            module.running_var.uniform_(0.7, 1.3)
    return model


def export(name, dynamo):
    _, inputs, traced, captured = MODELS[name]
    opset, extents, sizes = captured if dynamo else traced
    model = build(name, packed=not dynamo)
    entries = list(inspect.signature(model.forward).parameters)
    path = HERE / f"torch_{name}{'_dynamo' if dynamo else ''}.onnx"
    with torch.no_grad():
        expected = model(*inputs)
        if dynamo:
            options = {"dynamo": True, "dynamic_shapes": tuple(extents for _ in entries), "external_data": False}
        else:
            options = {"dynamo": False, "dynamic_axes": {entry: extents for entry in entries}}
        torch.onnx.export(model, inputs, path, input_names=entries, opset_version=opset, verbose=False, **options)
    result = onnx.load(path)
    for node in [*result.graph.node, *(node for function in result.functions for node in function.node)]:
        del node.metadata_props[:]  # Where in which file the exporter met the node.
    for value in [*result.graph.input, *result.graph.output, *result.graph.value_info, *result.graph.initializer]:
        del value.metadata_props[:]
    del result.metadata_props[:], result.graph.metadata_props[:]
    result.metadata_props.append(onnx.StringStringEntryProto(key="sizes", value=sizes))
    onnx.save(result, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {entry: value.numpy() for entry, value in zip(entries, inputs)})
    for ours, theirs in zip(expected if isinstance(expected, tuple) else [expected], found, strict=True):
        theirs = theirs[:, : ours.shape[1]]  # The file pads to the longest row, PyTorch to the longest sentence.
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)
    operators = sorted({node.op_type for node in result.graph.node})
    print(path.name, path.stat().st_size, "bytes;", len(result.graph.node), "nodes:", *operators, flush=True)


warnings.simplefilter("ignore")
for wanted in sys.argv[1:] or MODELS:
    export(wanted, dynamo=False)
    export(wanted, dynamo=True)
