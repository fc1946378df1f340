"""Which pairs are left out of training data, why, and how that is told."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from fastllm.data.parallel.sources import Pair, short

_EXAMPLES = 3  # of each reason
_ALIKE = 0.2  # share of pairs whose sides are equal from which on something is probably wrong
_LENIENT = 10  # tokens by which sides may differ whatever their ratio: short sentences vary
_COMMON = 200  # words by which a language is known
REASONS = {
    "empty": "one side is empty",
    "identical": "both sides are the same",
    "duplicate": "the pair was there before",
    "held out": "the source is in validation or test too",
    "too long": "one side has more tokens than max_tokens",
    "ratio": "one side has more tokens than max_ratio times the other",
    "unknown": "a side has characters that the vocabulary lacks",
}


@dataclass
class Report:
    """What was left out: by reason a count and a few examples.

    Args:
        kept: pairs that stay.
        counts: pairs that do not, by reason.
        examples: where they stand and their texts, shortened.
    """

    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, pair: Pair) -> None:
        """Count a pair that is left out."""
        self.counts[reason] += 1
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
    if pair.source == pair.target and any(character.isalpha() for character in pair.source):
        return "identical"
    return None


def length_fault(source: int, target: int, max_tokens: int, max_ratio: float) -> str | None:
    """Return why the numbers of a pair's tokens are wrong, by a name of REASONS; None if they are not."""
    shorter, longer = sorted((source, target))
    if longer > max_tokens:
        return "too long"
    if longer > max_ratio * shorter and longer - shorter > _LENIENT:
        return "ratio"
    return None


def key(*texts: str) -> bytes:
    """Return eight bytes that texts are known by; white space and case do not count."""
    normal = "\0".join(" ".join(text.casefold().split()) for text in texts)
    return hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def likeness(pairs: Iterable[Pair]) -> str | None:
    """Return a warning if the target looks like the source."""
    equal = count = 0
    for pair in pairs:
        count += 1
        equal += pair.source == pair.target
    if count and equal > _ALIKE * count:
        share = f"{equal / count:.0%}"
        return f"{share} of the pairs have the same text on both sides: is the target another language than the source?"
    return None


class Languages:
    """Tells whether a set of pairs has its sides the wrong way round, by the commonest words of the training pairs."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        words: tuple[Counter[str], Counter[str]] = Counter(), Counter()
        for pair in pairs:
            for side, text in zip(words, (pair.source, pair.target), strict=True):
                side.update(text.casefold().split())
        both = words[0].keys() & words[1].keys()
        self._words = [{w for w, _ in side.most_common(_COMMON) if w not in both} for side in words]

    def swapped(self, pairs: Iterable[Pair]) -> bool:
        """Return whether pairs' sources look like the training targets, and their targets like its sources."""
        right = wrong = 0
        for pair in pairs:
            source, target = pair.source.casefold().split(), pair.target.casefold().split()
            right += sum(w in self._words[0] for w in source) + sum(w in self._words[1] for w in target)
            wrong += sum(w in self._words[1] for w in source) + sum(w in self._words[0] for w in target)
        return wrong > 10 and wrong > 3 * right
