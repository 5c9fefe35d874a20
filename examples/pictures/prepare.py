"""Writes train/CLASS/*.png and test/CLASS/*.png from the three unpacked packages that are given.

A class is several of Unicode's subgroups. No drawing of an emoji of the test half, by any set, nor one of its variants
or of an emoji that looks like it, is in the other.
"""

import collections
import pathlib
import shutil
import sys

from PIL import Image

import emoji

# Subgroups start with one of these. Left out is what is no clear kind of thing: hands, clocks, the sky, events, clothes.
CLASSES = {
    "faces": ["face-", "cat-face", "monkey-face"],
    "people": ["person", "family"],
    "animals": ["animal-"],
    "plants": ["plant-", "food-fruit", "food-vegetable"],
    "food": ["food-prepared", "food-asian", "food-sweet", "drink", "dishware"],
    "vehicles": ["transport-ground", "transport-water", "transport-air"],
    "places": ["place-", "hotel"],
    "objects": ["tool", "household", "office", "writing", "lock", "computer", "phone", "musical-instrument", "science",
                "medical", "light & video", "book-paper"],
    "symbols": ["transport-sign", "warning", "arrow", "religion", "zodiac", "av-symbol", "math", "punctuation",
                "other-symbol", "keycap", "alphanum", "geometric"],
    "flags": ["country-flag", "subdivision-flag"],
}


def named(one):
    """The class of an emoji, if it has one."""
    return next((name for name, starts in CLASSES.items() if one.subgroup.startswith(tuple(starts))), None)


def main():
    counts = collections.Counter()
    for half in ["train", "test"]:
        shutil.rmtree(half, ignore_errors=True)
        for name in CLASSES:
            pathlib.Path(half, name).mkdir(parents=True)
    for one in emoji.read(*sys.argv[1:]):
        if name := named(one):
            half = emoji.side(one)
            for set, picture in one.pictures.items():
                Image.fromarray(picture).save(f"{half}/{name}/{one.code.lower()}-{set}.png")
                counts[half, name] += 1
    for half in ["train", "test"]:
        parts = ", ".join(f"{counts[half, name]} {name}" for name in CLASSES)
        print(f"{half}: {sum(counts[half, name] for name in CLASSES)} pictures ({parts})")


if __name__ == "__main__":
    main()
