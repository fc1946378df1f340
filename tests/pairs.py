"""Pairs of sentences that can be learnt: words and their order reversed, and numbers spelled out."""

import random

from fastllm.data import PairsOf, ParallelOptions, prepare_parallel

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()  # noqa: SIM905
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
WORDS = "Ofen Haus Baum rot blau gehen laufen klein Wald Katze".split()  # noqa: SIM905
THEIRS = "oven house tree red blue walk run small wood cat".split()  # noqa: SIM905


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
