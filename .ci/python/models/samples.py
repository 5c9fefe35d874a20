"""Real inputs: pictures of text, speech, files and sentences, as the models' own packages prepare them."""

import io
import pathlib
import subprocess
import unicodedata
import wave

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = pathlib.Path("/usr/share/fonts/truetype/dejavu")

SENTENCES = [
    "A model must load, run and match, or say in full what is missing.",
    "The network has to be read and executed exactly, otherwise an error explains why.",
    "It rained all day, so we stayed inside and played chess.",
    "Because of the bad weather the children played board games at home.",
    "Quantization replaces floating-point weights by small integers.",
    "The bakery on the corner sells fresh bread every morning.",
]


def line(text, height, slant=0.0, size=0.7, font="DejaVuSans.ttf"):
    """A grey-on-white picture of one line of text, `height` pixels high."""
    face = ImageFont.truetype(str(FONTS / font), int(height * size))
    width = int(face.getlength(text)) + height // 2
    picture = Image.new("RGB", (width, height), (250, 248, 240))
    ImageDraw.Draw(picture).text((height // 4, height // 10), text, fill=(30, 30, 60), font=face)
    return picture.rotate(slant, fillcolor=(250, 248, 240)) if slant else picture


def page(width, height):
    """A picture of a page with lines in several sizes and directions."""
    picture = Image.new("RGB", (width, height), (245, 245, 250))
    top = 10
    for i, text in enumerate(SENTENCES * 8):
        size = 18 + 8 * (i % 3)
        if top + 2 * size > height:
            break
        picture.paste(line(text, 2 * size, slant=(0, 0, 1.5)[i % 3], size=0.5), (12 + 9 * i, top))
        top += 2 * size + 6
    return picture


def planes(picture, width, height):
    """A picture as an array 1×3×height×width of values from -1 to 1."""
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    return ((resized / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]


def strip(texts, width, height=48, **options):
    """Lines of text, each scaled to `height` and padded with zeros to `width`."""
    batch = np.zeros((len(texts), 3, height, width), np.float32)
    for i, text in enumerate(texts):
        picture = line(text, 64, **options)
        scaled = min(width, round(picture.width * height / picture.height))
        batch[i, :, :, :scaled] = planes(picture, scaled, height)[0]
    return batch


def speech(text, rate, voice="en"):
    """Spoken text between two pauses, as samples from -1 to 1 at `rate` samples a second."""
    spoken = subprocess.run(["espeak-ng", "-v", voice, "--stdout", text], capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        own = file.getframerate()
        values = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float64) / 32768
    times = np.arange(int(len(values) * rate / own)) * own / rate
    values = np.interp(times, np.arange(len(values)), values)
    noise = np.random.default_rng(5).normal(0.0, 1e-3, len(values) + rate)
    noise[rate // 2 : rate // 2 + len(values)] += values
    return noise.astype(np.float32)


def frames(samples, rate):
    """Pieces of 32 ms, each after the last 4 ms of the piece before it: frames×(context + samples)."""
    size, context = (512, 64) if rate == 16000 else (256, 32)
    padded = np.concatenate([np.zeros(context, np.float32), samples])
    return np.stack([padded[i : i + context + size] for i in range(0, len(samples) - size, size)])


def file_bytes(path, each=1024, block=4096, padding=256):
    """The first and the last bytes of a file without the white space around it, padded to 2 × `each`."""
    content = pathlib.Path(path).read_bytes()
    first = list(content[:block].lstrip()[:each])
    last = list(content[-block:].rstrip()[-each:])
    first += [padding] * (each - len(first))
    return np.array(first + [padding] * (each - len(last)) + last, np.int32)


class WordPieces:
    """The tokenizer of lower-case BERT models."""

    def __init__(self, vocabulary):
        words = pathlib.Path(vocabulary).read_text(encoding="utf-8").splitlines()
        self.ids = {word: i for i, word in enumerate(words)}

    def words(self, text):
        text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        spaced = "".join(f" {c} " if unicodedata.category(c).startswith("P") else c for c in text)
        return spaced.split()

    def pieces(self, word):
        begin, found = 0, []
        while begin < len(word):
            for end in range(len(word), begin, -1):
                piece = ("##" if begin else "") + word[begin:end]
                if piece in self.ids:
                    break
            else:
                return [self.ids["[UNK]"]]
            found.append(self.ids[piece])
            begin = end
        return found

    def batch(self, texts):
        """Ids and mask, texts×longest."""
        rows = [[piece for word in self.words(text) for piece in self.pieces(word)] for text in texts]
        rows = [[self.ids["[CLS]"], *row, self.ids["[SEP]"]] for row in rows]
        longest = max(map(len, rows))
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask
