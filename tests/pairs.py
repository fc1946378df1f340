"""Pairs of sentences: words and their order reversed, numbers spelled out, made-up words; and files of them."""

import random

from fastllm.data import PairsOf, ParallelOptions, prepare_parallel

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()  # noqa: SIM905
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
WORDS = "Ofen Haus Baum rot blau gehen laufen klein Wald Katze".split()  # noqa: SIM905
THEIRS = "oven house tree red blue walk run small wood cat".split()  # noqa: SIM905
# A language pair of made-up words, enough of them for a vocabulary.
_RANDOM = random.Random(17)
_SYLLABLES = ["ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru"]
GERMAN = sorted({"".join(_RANDOM.choices(_SYLLABLES, k=3)) + "en" for _ in range(120)})
ENGLISH = {word: f"{word[:2]}th{word[2:5]}" for word in GERMAN}


def spelled(n):
    """Return an English number below a million."""
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10] + (f"-{_ONES[n % 10]}" if n % 10 else "")
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if n >= size:
            rest = n % size
            return f"{spelled(n // size)} {name}" + ((" and " if size == 100 else " ") + spelled(rest) if rest else "")
    raise AssertionError


def numbers(count, below=1_000_000, seed=0):
    """Return pairs of numbers in digits and in words."""
    draw = random.Random(seed)
    chosen = draw.sample(range(below), count)
    return [(str(n), spelled(n)) for n in chosen]


def reversed_words(count, seed=0, longest=7, shortest=1):
    """Return pairs of German words and their translations the other way round."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(count):
        chosen = draw.sample(range(len(WORDS)), draw.randint(shortest, longest))
        pairs.append((" ".join(WORDS[i] for i in chosen), " ".join(THEIRS[i] for i in reversed(chosen))))
    return pairs


def prepared(folder, pairs, **options):
    """Write a data folder of pairs; return its path."""
    settings = {"vocab_size": 300, "val_share": 0.1, **options}
    prepare_parallel(PairsOf(pairs), folder, options=ParallelOptions(**settings))
    return folder


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
