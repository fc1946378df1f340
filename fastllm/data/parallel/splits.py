"""Which split each pair is of: found out in one reading of everything, and the same in those that follow."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from fastllm.data.holdout import choose
from fastllm.data.parallel.filters import REASONS, key, text_fault
from fastllm.data.parallel.languages import Samples
from fastllm.data.parallel.sources import Corpus, Pair
from fastllm.errors import UserError, UserValueError

SPLITS = ("train", "val", "test")
_FEW_DOCUMENTS = 20  # with fewer, blocks of neighbouring pairs are held out
_BLOCKS = 200  # of a corpus without documents; of a small one fewer, so that each has _LEAST_BLOCK pairs
_LEAST_BLOCK = 10
_SMALL = 20  # blocks that even a corpus of a few pairs has, if they are of one pair

Told = Callable[[int, int], None]  # (pairs so far, of how many)


class Splits:
    """The pairs of a corpus, and of those that are named for validation and test, by split.

    Args:
        corpus: what to train on.
        named: other corpora by their split's name.
        shares: of corpus, in [0, 1), for the splits that are not named; whole documents, drawn at random, or blocks of
            neighbouring pairs where there are few documents, so that near-repeats stay together.
        seed: of the draw.
        reverse: whether both directions are trained: then targets are sources too.
        told: is told how far a reading is.

    Attributes:
        total: pairs in all corpora.
        trained: pairs of corpus.
        how: what is held out for "val" and "test", in words.
        tags: of the pairs.
        samples: some pairs of each file, to know languages by.

    Raises:
        UserError: there are no pairs, or so few that none would be left.
    """

    def __init__(
        self, corpus: Corpus, named: dict[str, Corpus], shares: dict[str, float], seed: int, *,
        reverse: bool = False, told: Told = lambda done, of: None,
    ) -> None:  # fmt: skip
        self._corpus, self.named, self._reverse = corpus, named, reverse
        self.samples, self.tags = Samples(), set[str]()
        self._held_out: tuple[set[bytes], set[bytes]] = set(), set()
        documents: Counter[int] = Counter()  # pairs of use in each
        of_use = bytearray()  # a byte for each pair
        faults: Counter[str | None] = Counter()
        for pair in corpus.pairs():
            fault = text_fault(pair)
            faults[fault] += 1
            documents[pair.document] += fault is None
            of_use.append(fault is None)
            self.tags |= {*pair.tags}
            self.samples.add(pair)
            told(len(of_use), 0)
        self.total = self.trained = len(of_use)
        if not self.trained:
            raise UserValueError(f"prepare parallel: there are no pairs in {', '.join(corpus.names)}")
        if not faults[None]:
            why = "; ".join(f"of {count:,} {REASONS[fault]}" for fault, count in faults.items() if fault)
            raise UserError(f"prepare parallel: none of {self.trained:,} pairs is of use: {why}")
        small = max(1, min(_LEAST_BLOCK, self.trained // _SMALL))
        self._block = 0 if len(documents) >= _FEW_DOCUMENTS else max(small, self.trained // _BLOCKS)
        blocks = Counter(number // self._block for number in np.flatnonzero(of_use).tolist()) if self._block else {}
        units = {unit: count for unit, count in (blocks or documents).items() if count}
        self._split_of: dict[int, str] = {}
        self.how: dict[str, str] = {}
        for name in SPLITS[1:]:
            if name in named:
                self.how[name] = f"all of {', '.join(named[name].names)}"
            else:
                self.how[name] = self._draw(name, shares.get(name, 0.0), seed, units)
        self._read_held_out(told)

    def _draw(self, name: str, share: float, seed: int, units: dict[int, int]) -> str:
        """Choose which documents or blocks, of so many pairs each, are held out for a split; say how."""
        if not share:
            return "none"
        order = np.random.Generator(np.random.PCG64((seed, SPLITS.index(name)))).permutation(sorted(units)).tolist()
        free = [unit for unit in order if unit not in self._split_of]
        if len(free) < 2:
            raise UserError(
                f"prepare parallel: {self.trained} pairs are too few to hold some out for {name}: use more, or name "
                f"files with --{name}_source and --{name}_target, or --{name}_pairs"
            )
        sizes = [units[unit] for unit in free]
        chosen = choose(sizes, min(share * sum(units.values()) / sum(sizes), 1.0), keep=True)
        self._split_of |= {free[place]: name for place in chosen}
        what = f"blocks of {self._block} neighbouring pairs" if self._block > 1 else "single pairs"
        what = what if self._block else "whole documents"
        return f"{sum(sizes[place] for place in chosen):,} pairs, {what} drawn with the seed {seed}"

    def _read_held_out(self, told: Told) -> None:
        """Take down what training pairs must not have."""
        for split, pair in self:
            if split == "train":
                continue
            if split in self.named:
                if unknown := {*pair.tags} - self.tags:
                    raise UserError(
                        f"prepare parallel: {pair.where} has the tag '{min(unknown)}', which no training pair has"
                    )
                self.total += 1
                self.samples.add(pair, f"the files for {split}")
                told(self.total, 0)
            self._held_out[0].add(key(pair.source))
            if self._reverse:
                self._held_out[1].add(key(pair.target))

    def __iter__(self) -> Iterator[tuple[str, Pair]]:
        """Yield every pair with the name of its split.

        Raises:
            UserError: the files are not what they were.
        """
        number = -1
        for number, pair in enumerate(self._corpus.pairs()):
            yield self._split_of.get(number // self._block if self._block else pair.document, "train"), pair
        if number + 1 != self.trained:
            raise UserError("prepare parallel: the files changed between two readings; run it again")
        for name, corpus in self.named.items():
            yield from ((name, pair) for pair in corpus.pairs())

    def is_held_out(self, pair: Pair) -> bool:
        """Return whether a sentence that would be learnt from, as a source, is one of validation or test."""
        sources, targets = self._held_out
        return key(pair.source) in sources or (self._reverse and key(pair.target) in targets)
