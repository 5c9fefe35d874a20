"""Writes train.npz and test.npz from the wheel of aeon that is given: x f32[N, 29, 12], zeros behind the end, and y."""

import sys
import zipfile

import numpy as np

STEPS, CHANNELS, SPEAKERS = 29, 12, 9


def read(wheel, part):
    """Utterances [N, STEPS, CHANNELS] and speakers [N] of a .ts file: channels apart by colons, the speaker last."""
    text = wheel.read(f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts").decode()
    lines = text[text.index("@data") :].split("\n")[1:]
    x, y = [], []
    for line in filter(None, map(str.strip, lines)):
        *channels, speaker = line.split(":")
        steps = np.array([channel.split(",") for channel in channels], np.float32).T
        assert steps.shape[1] == CHANNELS and 7 <= len(steps) <= STEPS, steps.shape
        x.append(np.pad(steps, ((0, STEPS - len(steps)), (0, 0))))
        y.append(int(speaker) - 1)
    return np.stack(x), np.array(y, np.int64)


def main():
    wheel = zipfile.ZipFile(sys.argv[1])
    for part, count in [("train", 270), ("test", 370)]:
        x, y = read(wheel, part.upper())
        assert len(x) == count and set(y) == set(range(SPEAKERS)), (part, len(x))
        np.savez(f"{part}.npz", x=x, y=y)
        print(f"{part}.npz: {count} utterances of {SPEAKERS} speakers, {x.shape[1:]}")


if __name__ == "__main__":
    main()
