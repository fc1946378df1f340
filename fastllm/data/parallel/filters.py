"""Which pairs are left out of training data, why, and how that is told."""

import hashlib
import re
from collections import Counter

from fastllm.data.parallel.sources import Pair, short

_EXAMPLES = 3  # of each reason
_HALF = re.compile("[\ud800-\udfff]")
_LENIENT = 10  # tokens by which sides may differ whatever their ratio: short sentences vary
REASONS = {
    "empty": "one side is empty",
    "surrogate": "a side has half of a UTF-16 pair, which is no character",
    "identical": "both sides are the same",
    "held out": "the source is in validation or test too",
    "duplicate": "the pair was there before",
    "too long": "one side has more tokens than max_tokens",
    "too short": "one side has fewer tokens than min_tokens",
    "ratio": "one side has more tokens than max_ratio times the other",
    "unknown": "a side has characters that the vocabulary lacks",
}


class Report:
    """What was left out.

    Attributes:
        counts: pairs by reason.
        of_split: pairs by split.
        examples: by reason, where the first few stand and their texts, shortened.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.of_split: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def drop(self, reason: str, pair: Pair, split: str) -> None:
        """Count a pair that is left out; reason is a name of REASONS."""
        self.counts[reason] += 1
        self.of_split[split] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(f"{pair.where}: '{short(pair.source)}' | '{short(pair.target)}'")

    def counted(self) -> list[str]:
        """Return how many were left out for each reason, in words."""
        return [f"{self.counts[reason]:,} because {why}" for reason, why in REASONS.items() if self.counts[reason]]

    def to_json(self) -> dict:
        """Return the report for a manifest."""
        return {
            reason: {"pairs": self.counts[reason], "examples": self.examples[reason]}
            for reason in REASONS
            if self.counts[reason]
        }


def text_fault(pair: Pair) -> str | None:
    """Return why a pair's texts are no use, by a name of REASONS; None if they are."""
    if not pair.source or not pair.target:
        return "empty"
    if any(not text.isascii() and _HALF.search(text) for text in (pair.source, pair.target)):
        return "surrogate"
    if pair.source == pair.target and any(character.isalpha() for character in pair.source):
        return "identical"
    return None


def length_fault(source: int, target: int, max_tokens: int, min_tokens: int, max_ratio: float) -> str | None:
    """Return why the numbers of a pair's tokens are wrong, by a name of REASONS; None if they are not.

    The token that ends a sentence counts, except for min_tokens.
    """
    shorter, longer = sorted((source, target))
    if longer > max_tokens:
        return "too long"
    if shorter - 1 < min_tokens:
        return "too short"
    if longer > max_ratio * shorter and longer - shorter > _LENIENT:
        return "ratio"
    return None


def key(text: str) -> bytes:
    """Return eight bytes that a text is known by; white space and case do not count."""
    return exact_key(" ".join(text.casefold().split()))


def exact_key(*texts: str) -> bytes:
    """Return eight bytes that texts are known by together."""
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
