"""A small language pair for tests: sentences of made-up words, and their translations word by word."""

import random

_RANDOM = random.Random(17)
_SYLLABLES = ["ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru"]
GERMAN = sorted({"".join(_RANDOM.choices(_SYLLABLES, k=3)) + "en" for _ in range(120)})
ENGLISH = {word: f"{word[:2]}th{word[2:5]}" for word in GERMAN}


def sentence_pairs(count, seed=0, shortest=3, longest=12):
    """Return so many different sentences with their translations."""
    draw = random.Random(seed)
    found = {}
    while len(found) < count:
        words = draw.choices(GERMAN, k=draw.randint(shortest, longest))
        found[" ".join(words) + " ."] = " ".join(ENGLISH[word] for word in words) + " ."
    return list(found.items())


def write_lines(path, texts):
    """Write a text a line."""
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def write_pairs(folder, pairs, name="train"):
    """Write both sides of pairs into files of lines, and return these."""
    sides = zip(("de", "en"), zip(*pairs, strict=True), strict=True)
    return tuple(write_lines(folder / f"{name}.{language}", texts) for language, texts in sides)
