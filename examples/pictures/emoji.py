"""Emoji of three open sets as small pictures, in families that belong together."""

import csv
import dataclasses
import hashlib
import io
import json
import pathlib

import numpy as np
import resvg_py
from PIL import Image

SIDE = 32
SETS = ["google", "twitter", "openmoji"]
# Mean difference of two pictures' values, of 255, below which they are drawings of the same thing.
ALIKE = 8.0
# What variants differ in: skin tones, hair, genders, the direction they look in, and how they are shown.
DROPPED = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF", "1F9B0", "1F9B1", "1F9B2", "1F9B3"}
DROPPED |= {"2640", "2642", "200D", "FE0F", "27A1"}
SAME = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2", "1F474": "1F9D3", "1F475": "1F9D3"}


@dataclasses.dataclass
class Emoji:
    """One emoji: Unicode's name, words about it, group and subgroup, and its pictures u8[SIDE, SIDE, 3] by set."""

    code: str
    name: str
    words: str
    group: str
    subgroup: str
    pictures: dict
    family: str = ""


def on_white(picture):
    """The picture on white, SIDE pixels wide and high."""
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return np.asarray(white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def rendered(path):
    data = resvg_py.svg_to_bytes(svg_path=str(path), width=2 * SIDE, height=2 * SIDE, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(data)))


def read(google, twitter, openmoji):
    """All emoji of the unpacked packages, without their variants of skin tone, in Unicode's order."""
    with open(pathlib.Path(openmoji) / "data/openmoji.csv", newline="") as file:
        drawn = {row["hexcode"]: row for row in csv.DictReader(file)}
    entries = json.loads((pathlib.Path(google) / "emoji.json").read_text())
    emoji = []
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        code = entry["unified"]
        row = drawn.get(code) or drawn.get(code.replace("-FE0F", ""))
        if row is None or entry["category"] == "Component":
            continue
        pictures = {
            name: on_white(Image.open(pathlib.Path(folder) / f"img/{name}/64" / entry["image"]))
            for name, folder in [("google", google), ("twitter", twitter)]
            if entry[f"has_img_{name}"]
        }
        pictures["openmoji"] = on_white(rendered(pathlib.Path(openmoji) / f"color/svg/{row['hexcode']}.svg"))
        words = f"{row['annotation']} {row['tags']}"
        emoji.append(Emoji(code, row["annotation"], words, entry["category"], entry["subcategory"], pictures))
    join(emoji)
    return emoji


def join(emoji):
    """Gives emoji that are variants of another, or look like it in any set, the same family."""
    parents = list(range(len(emoji)))

    def root(at):
        while parents[at] != at:
            at = parents[at]
        return at

    first = {}
    for at, one in enumerate(emoji):
        parts = [SAME.get(part, part) for part in one.code.split("-") if part not in DROPPED]
        parents[root(at)] = root(first.setdefault("-".join(parts) or one.code, at))
    for name in SETS:
        having = [at for at, one in enumerate(emoji) if name in one.pictures]
        all = np.stack([emoji[at].pictures[name] for at in having]).reshape(len(having), -1).astype(np.int16)
        for i, at in enumerate(having):
            difference = np.abs(all[i + 1 :] - all[i]).mean(1)
            for j in np.flatnonzero(difference < ALIKE):
                parents[root(at)] = root(having[i + 1 + j])
    for at, one in enumerate(emoji):
        one.family = emoji[root(at)].code


def side(one):
    """`test` for about a fifth of the families, else `train`."""
    return "test" if hashlib.sha256(one.family.encode()).digest()[0] % 5 == 0 else "train"
