"""Whether sides of pairs are what they should be: told by the commonest words and characters of some pairs."""

from collections import Counter
from collections.abc import Iterable

from fastllm.data.parallel.sources import Pair

_SAMPLE = 2000  # pairs of each file
_FILES = 100  # so many are looked at
_COMMON = 200  # words and characters by which a language is known
_ALIKE = 0.6  # the share of common words from which on two sides are probably of one language; it is 0.1 of German and
# English, and about 0.5 of Danish and Norwegian
_ENOUGH = 50  # different words: with fewer, nothing is said
_SURE = 10  # features of the wrong side that are needed to say that sides are swapped


class Samples:
    """The first pairs of each file."""

    def __init__(self) -> None:
        self._of: dict[str, list[Pair]] = {}
        self._pairs: Counter[str] = Counter()

    def add(self, pair: Pair, name: str | None = None) -> None:
        """Look at a pair; name is of its file, if not the one that it says."""
        name = name or pair.where.rsplit(",", 1)[0]
        self._pairs[name] += 1
        if name in self._of or len(self._of) < _FILES:
            sample = self._of.setdefault(name, [])
            if len(sample) < _SAMPLE and pair.source and pair.target:
                sample.append(pair)

    def warnings(self) -> list[str]:
        """Return what may be a mistake, in sentences."""
        if not any(self._of.values()):
            return []
        first = max((name for name in self._of if self._of[name]), key=self._pairs.__getitem__)
        told = []
        if (share := alike(self._of[first])) >= _ALIKE:
            told.append(
                f"the target looks like the source in {first}: of the commonest words {share:.0%} are the same; is it "
                "in another language?"
            )
        languages = Languages(self._of[first])
        for name, pairs in self._of.items():
            if name != first and languages.swapped(pairs):
                told.append(
                    f"the languages seem to be swapped in {name}: its sources look like the targets of {first}, and "
                    "its targets like the sources"
                )
        return told


def alike(pairs: Iterable[Pair]) -> float:
    """Return the share of the commonest words that both sides have; 0 if there are too few words to say."""
    common = []
    for texts in zip(*((pair.source, pair.target) for pair in pairs if pair.source != pair.target), strict=True):
        words = Counter(word for text in texts for word in text.casefold().split() if any(map(str.isalpha, word)))
        if len(words) < _ENOUGH:
            return 0.0
        common.append({word for word, _ in words.most_common(_COMMON // 2)})
    return len(common[0] & common[1]) / min(map(len, common)) if common else 0.0


class Languages:
    """The languages of pairs' sides, by what is common on one side and not on the other.

    Args:
        pairs: of which both are known.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        counts: tuple[Counter[str], Counter[str]] = Counter(), Counter()
        for pair in pairs:
            for side, text in zip(counts, (pair.source, pair.target), strict=True):
                side.update(_features(text))
        self._own = [
            {feature for feature, _ in side.most_common(_COMMON) if 10 * other[feature] < side[feature]}
            for side, other in (counts, counts[::-1])
        ]

    def swapped(self, pairs: Iterable[Pair]) -> bool:
        """Return whether pairs' sources look like the known targets, and their targets like the known sources."""
        right = wrong = 0
        for pair in pairs:
            source, target = _features(pair.source), _features(pair.target)
            right += len(source & self._own[0]) + len(target & self._own[1])
            wrong += len(source & self._own[1]) + len(target & self._own[0])
        return wrong > _SURE and wrong > 3 * right


def _features(text: str) -> set[str]:
    """Return words, and characters for languages that do not part words."""
    text = text.casefold()
    return {*text.split(), *text}
