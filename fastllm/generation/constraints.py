"""Phrases that a beam search's sequences must have.

Of the unfinished sequences, some are kept for each number of phrase tokens that they have got so far, so that those
which follow a phrase are not crowded out by likelier ones that do not (Post and Vilar, "Fast lexically constrained
decoding with dynamic beam allocation", 2018).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastllm.generation.beam import Beam, Candidates, Search

Phrase = tuple[tuple[int, ...], ...]  # spellings of one phrase, each a sequence of ids


class Progress(NamedTuple):
    """How far a sequence is with its phrases."""

    met: frozenset[int] = frozenset()  # numbers of phrases that it has
    begun: tuple[int, ...] = ()  # the last tokens, which some spelling of a phrase that it lacks begins with

    def after(self, token: int, phrases: Sequence[Phrase]) -> "Progress":
        """Return how far it is with one token more."""
        begun = (*self.begun, token)
        while begun:
            for number, phrase in enumerate(phrases):
                if number not in self.met and begun in phrase:
                    return Progress(self.met | {number})
            if any(self._begins(begun, phrase) for number, phrase in enumerate(phrases) if number not in self.met):
                return Progress(self.met, begun)
            begun = begun[1:]
        return Progress(self.met)

    @staticmethod
    def _begins(begun: tuple[int, ...], phrase: Phrase) -> bool:
        return any(spelling[: len(begun)] == begun for spelling in phrase)

    def wanted(self, phrases: Sequence[Phrase]) -> list[int]:
        """Return the tokens that bring it further."""
        found: dict[int, None] = {}
        for number, phrase in enumerate(phrases):
            if number in self.met:
                continue
            for spelling in phrase:
                found[spelling[0]] = None
                if self.begun and spelling[: len(self.begun)] == self.begun:
                    found[spelling[len(self.begun)]] = None
        return list(found)

    def tokens(self, phrases: Sequence[Phrase]) -> int:
        """Return how many tokens of phrases it has; a whole one counts as its longest spelling, more than any part."""
        return len(self.begun) + sum(max(map(len, phrases[number])) for number in self.met)


class ConstrainedSearch(Search):
    """A search whose sequences end only when they have all phrases, or are as long as they may be.

    Args:
        num_beams, stops, penalty, longest: as of Search.
        phrases: each one or several sequences of ids, one of which must be there; phrases do not overlap.
    """

    def __init__(
        self, num_beams: int, stops: set[int], penalty: Callable[[int], float], longest: int,
        phrases: Sequence[Phrase],
    ) -> None:  # fmt: skip
        super().__init__(num_beams, stops, penalty, longest)
        self.phrases = phrases
        self._progress: dict[tuple[int, ...], Progress] = {(): Progress()}  # of each unfinished sequence

    def extend(self, found: Candidates, length: int) -> None:
        """Give every unfinished sequence its next token, and forget how far those are that are no more."""
        super().extend(found, length)
        alive = {tuple(beam.ids) for beam in self.alive}
        self._progress = {ids: progress for ids, progress in self._progress.items() if ids in alive}

    def _has_all(self, beam: Beam) -> bool:
        return len(self._progress[tuple(beam.ids)].met) == len(self.phrases)

    def _rank(self, beam: Beam) -> tuple[float, ...]:
        """Put those that have all phrases first, whatever the others' scores."""
        return (float(beam.finish != "stop" and not self._has_all(beam)), -beam.score)

    def _choose(self, before: list[Beam], found: Candidates) -> list[tuple[float, int, int]]:
        """Return the best ways on: by turns one of each number of tokens got, those that have got most first."""
        ways: dict[tuple[int, int], float] = {}
        for parent, beam in enumerate(before):
            progress = self._progress[tuple(beam.ids)]
            own = dict(zip(found.tokens[parent], found.logprobs[parent], strict=True))
            for token in progress.wanted(self.phrases):
                own.setdefault(token, found.logprob(parent, token))
            complete = self._has_all(beam)
            for token, logprob in own.items():
                if complete or token not in self.stops:
                    ways[parent, token] = beam.logprob + logprob
        banks: dict[int, list[tuple[float, int, int]]] = {}
        for (parent, token), logprob in ways.items():
            ids = tuple(before[parent].ids)
            progress = self._progress[ids].after(token, self.phrases)
            self._progress[(*ids, token)] = progress
            banks.setdefault(progress.tokens(self.phrases), []).append((logprob, parent, token))
        for bank in banks.values():
            bank.sort(key=lambda way: (-way[0], way[1], way[2]))
        ordered = [banks[got] for got in sorted(banks, reverse=True)]
        chosen = [bank[turn] for turn in range(max(map(len, ordered))) for bank in ordered if turn < len(bank)]
        unfinished = 0
        for place, (_, _, token) in enumerate(chosen):
            unfinished += token not in self.stops
            if unfinished == self.num_beams:
                chosen = chosen[: place + 1]
                break
        return sorted(chosen, key=lambda way: (-way[0], way[1], way[2]))
