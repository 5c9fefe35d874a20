"""Writes train.jsonl and test.jsonl, a mail a line as {"text": ..., "label": "ham" or "spam"}, from the unpacked package
that is given.

The text is the subject and the body as it was sent: text parts with their transfer encoding undone, markup and quotations
included, no other header. Mails whose words are alike up to case, digits, addresses and markup, or that start with the
same 300 letters, are on the same side; which one follows from a hash of them, so that it is the same everywhere.
"""

import email
import email.header
import email.message
import hashlib
import html
import json
import pathlib
import re
import sys

MAILS = 6046


def decoded(content, charset):
    try:
        return content.decode(charset or "latin-1", "replace")
    except LookupError:
        return content.decode("latin-1")


def subject(mail):
    try:
        parts = email.header.decode_header(mail["Subject"] or "")
    except email.errors.HeaderParseError:
        return str(mail["Subject"])
    return "".join(part if isinstance(part, str) else decoded(part, charset) for part, charset in parts)


def body(mail):
    parts = (part for part in mail.walk() if part.get_content_maintype() == "text")
    return "\n".join(decoded(part.get_payload(decode=True) or b"", part.get_content_charset()) for part in parts)


def key(text):
    """What near-duplicates have in common: the first letters of what a reader sees."""
    seen = html.unescape(re.sub(r"<[^>]*>", " ", text)).lower()
    words = (word for word in seen.split() if "@" not in word and "://" not in word)
    letters = "".join(c for c in "".join(words) if c.isalpha())[:300]
    return letters or text


def main():
    data = pathlib.Path(sys.argv[1]) / "data"
    sides, count = {"train": [], "test": []}, 0
    for path in sorted(data.glob("*/*.txt")):
        mail = email.message_from_bytes(path.read_bytes())
        content = body(mail)
        text = f"{subject(mail)}\n{content}".strip()
        label = "spam" if path.parent.name.startswith("spam") else "ham"
        side = "test" if hashlib.sha256(key(content).encode()).digest()[0] % 5 == 0 else "train"
        sides[side].append({"text": text, "label": label})
        count += 1
    assert count == MAILS, count
    for side, mails in sides.items():
        lines = [json.dumps(mail, ensure_ascii=True) + "\n" for mail in mails]
        pathlib.Path(f"{side}.jsonl").write_text("".join(lines))
        spam = sum(mail["label"] == "spam" for mail in mails)
        print(f"{side}.jsonl: {len(mails)} mails, {spam} of them spam")


if __name__ == "__main__":
    main()
