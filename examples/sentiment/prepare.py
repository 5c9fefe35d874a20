"""Writes train.jsonl and test.jsonl, a sentence a line as {"text": ..., "label": "negative" or "positive"}, from the
source archive of vaderSentiment that is given.

The label is the sign of the mean rating; sentences whose mean is 0 are left out. Which side a sentence is on follows from
a hash of its letters, so that it is the same everywhere and repeated sentences are on one side.
"""

import hashlib
import io
import json
import pathlib
import sys
import tarfile

SENTENCES = 10605


def sentences(archive):
    """Ratings from -4 to 4 and the sentences."""
    with tarfile.open(archive) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz").read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as resources:
        text = resources.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").read().decode()
    for line in text.splitlines():
        _, rating, sentence = line.split("\t")
        yield float(rating), sentence.strip()


def main():
    rated = list(sentences(sys.argv[1]))
    assert len(rated) == SENTENCES, len(rated)
    sides = {"train": [], "test": []}
    for rating, sentence in rated:
        letters = "".join(c for c in sentence.lower() if c.isalnum())
        side = "test" if hashlib.sha256(letters.encode()).digest()[0] % 5 == 0 else "train"
        if rating != 0:
            sides[side].append({"text": sentence, "label": "positive" if rating > 0 else "negative"})
    for side, lines in sides.items():
        text = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines)
        pathlib.Path(f"{side}.jsonl").write_text(text)
        positive = sum(line["label"] == "positive" for line in lines)
        print(f"{side}.jsonl: {len(lines)} sentences, {positive} of them positive")


if __name__ == "__main__":
    main()
