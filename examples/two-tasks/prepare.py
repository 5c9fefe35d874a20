"""Writes train.npz and test.npz from the three unpacked packages that are given: `picture` f32[N, 3, 32, 32] from 0 to 1,
`name` i64[N, 12], the first words of the name and the keywords, and the classes `group` and `subgroup`, i64[N].

Emoji and halves are those of ../pictures, but all groups take part. words.txt, groups.txt and subgroups.txt hold what the
numbers stand for. Words that the training half has once are unknown (1), 0 stands behind the end.
"""

import collections
import pathlib
import re
import sys

import numpy as np

sys.path.insert(0, "../pictures")
import emoji

WORDS = 12
# Emoji of the training half that a subgroup needs to take part.
ENOUGH = 8


def split(one):
    return re.findall(r"[a-z0-9]+", one.words.lower())[:WORDS]


def main():
    all = emoji.read(*sys.argv[1:])
    sizes = collections.Counter(one.subgroup for one in all if emoji.side(one) == "train")
    all = [one for one in all if sizes[one.subgroup] >= ENOUGH]
    counts = collections.Counter(word for one in all if emoji.side(one) == "train" for word in split(one))
    words = ["", "?"] + sorted(word for word, count in counts.items() if count > 1)
    groups, subgroups = (sorted({getattr(one, name) for one in all}) for name in ["group", "subgroup"])
    numbers = {word: at for at, word in enumerate(words)}
    for name, lines in [("words", words), ("groups", groups), ("subgroups", subgroups)]:
        pathlib.Path(f"{name}.txt").write_text("\n".join(lines) + "\n")
    for half in ["train", "test"]:
        arrays = collections.defaultdict(list)
        for one in all:
            if emoji.side(one) != half:
                continue
            tokens = [numbers.get(word, 1) for word in split(one)]
            for picture in one.pictures.values():
                arrays["picture"].append(picture.transpose(2, 0, 1).astype(np.float32) / 255)
                arrays["name"].append(tokens + [0] * (WORDS - len(tokens)))
                arrays["group"].append(groups.index(one.group))
                arrays["subgroup"].append(subgroups.index(one.subgroup))
        np.savez(f"{half}.npz", **{name: np.array(rows) for name, rows in arrays.items()})
        count = len(arrays["group"])
        print(f"{half}.npz: {count} pictures of {len(groups)} groups and {len(subgroups)} subgroups, {len(words)} words")


if __name__ == "__main__":
    main()
