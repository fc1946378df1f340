"""Beam search: the likeliest sequences, as far as a beam of them can tell."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from numbers import Real

import torch
from torch import Tensor

from fastllm import ops
from fastllm.errors import UserError, UserValueError, check_type
from fastllm.generation.context import (
    DecoderState,
    Generator,
    check_count,
    check_vocabulary,
    checked_prompt,
    in_eval_mode,
)
from fastllm.generation.decoding import stop_ids

# P prompts, K beams, V vocabulary, l new tokens of a sequence

LENGTH_PENALTIES: dict[str, Callable[[int, float], float]] = {
    "gnmt": lambda length, alpha: ((5 + length) / 6) ** alpha,
    "power": lambda length, alpha: length**alpha,
}


@dataclass
class Beam:
    """One found sequence.

    Args:
        ids: the new tokens, without the one that stopped it.
        logprob: the sum of the log-probabilities of all new tokens, of the stopping one too.
        score: logprob over the length penalty; the length counts the stopping token too.
        finish: why it ended: "stop" or "length".
    """

    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    score: float = 0.0
    finish: str = "length"


def beam_search(
    model: Generator,
    prompt: Sequence[int] | Tensor,
    max_new_tokens: int,
    *,
    num_beams: int = 4,
    stop: Iterable[int | Sequence[int]] = (),
    length_penalty: str = "gnmt",
    alpha: float = 0.0,
    vocabulary: int | None = None,
) -> list[Beam]:
    """Return the best sequences that continue a prompt, the best first.

    With as many beams as there are sequences the search is exhaustive, and what it finds is the best there is.

    Args:
        model, prompt, max_new_tokens: as of :func:`fastllm.generation.generate`; at least one token.
        num_beams: K, how many unfinished sequences are followed, and the most that are returned; 1 is greedy and ends
            at the first stop.
        stop: single tokens that end a sequence.
        length_penalty: what a sequence's log-probability is divided by, with l its number of new tokens: "gnmt",
            ((5 + l) / 6)^alpha (Wu et al., "Google's neural machine translation system", 2016), or "power", l^alpha;
            both go by this name elsewhere.
        alpha: 0 is no penalty; more favours longer sequences.
        vocabulary: search among the first so many tokens only: those that a tokenizer has, of a model with more.

    Raises:
        UserError: the prompt is empty or has ids outside the vocabulary, or an argument is out of range.
    """
    return beam_search_batch(
        model, [prompt], max_new_tokens, num_beams=num_beams, stop=stop, length_penalty=length_penalty, alpha=alpha,
        vocabulary=vocabulary,
    )[0]  # fmt: skip


def beam_search_batch(
    model: Generator,
    prompts: Iterable[Sequence[int] | Tensor],
    max_new_tokens: int,
    *,
    num_beams: int = 4,
    stop: Iterable[int | Sequence[int]] = (),
    length_penalty: str = "gnmt",
    alpha: float = 0.0,
    vocabulary: int | None = None,
) -> list[list[Beam]]:
    """Search for many prompts, of any lengths, together: P num_beams sequences a step. Each finds what it finds alone.

    On the CPU equal bit for bit in float32, as for :func:`fastllm.generation.generate_batch`.

    Args:
        prompts: P sequences of ids.
        model, max_new_tokens, num_beams, stop, length_penalty, alpha, vocabulary: as of :func:`beam_search`.

    Returns:
        A list of :class:`Beam`, the best first, for each prompt, in their order.

    Raises:
        UserError: as beam_search does.
    """
    checked = [checked_prompt(model, prompt) for prompt in prompts]
    check_count("max_new_tokens", max_new_tokens, 1)
    check_vocabulary(model, vocabulary)
    check_count("num_beams", num_beams, 1)
    penalty = penalty_of("beam_search", length_penalty, alpha)
    stops = stop_ids(model, stop)
    if any(len(ids) != 1 for ids in stops):
        raise UserValueError(f"beam_search: 'stop' must be single tokens, got {stops}")
    searches = [Search(num_beams, {ids[0] for ids in stops}, penalty, max_new_tokens) for _ in checked]
    if searches:
        with in_eval_mode(model):
            run(model.start(checked, max_new_tokens, num_beams * len(checked)), searches, vocabulary)
    return [search.finished for search in searches]


def penalty_of(function: str, length_penalty: str, alpha: float) -> Callable[[int], float]:
    """Return what a sequence's log-probability is divided by, of its length.

    Raises:
        UserError: there is no such penalty, or alpha is not finite; function begins the message.
    """
    check_type(function, "alpha", alpha, Real)
    if not math.isfinite(alpha):
        raise UserValueError(f"{function}: 'alpha' must be finite, got {alpha}")
    if length_penalty not in LENGTH_PENALTIES:
        raise UserValueError(
            f"{function}: 'length_penalty' must be one of {', '.join(LENGTH_PENALTIES)}, got '{length_penalty}'"
        )
    penalty = LENGTH_PENALTIES[length_penalty]
    return lambda length: penalty(length, alpha)


@dataclass
class Candidates:
    """The likeliest next tokens of some rows.

    Args:
        tokens: of each row, the likeliest first.
        logprobs: theirs, float64.
        logprob: gives that of any token of a row.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    logprob: Callable[[int, int], float]

    def of(self, rows: range) -> "Candidates":
        """Return those of some rows."""
        chosen = slice(rows.start, rows.stop)
        return Candidates(
            self.tokens[chosen], self.logprobs[chosen], lambda row, token: self.logprob(rows.start + row, token)
        )


def candidates(logits: Tensor, most: int, never: Sequence[int] = ()) -> Candidates:
    """Return the `most` likeliest tokens of each row of logits (R, V), but for some that are never taken.

    What a row gets is the same bit for bit whatever the others are, and for any number of threads: its log-sum-exp is
    the cross-entropy kernel's, where torch's own would add up a lone row in as many parts as there are threads.

    Raises:
        UserError: the logits are not finite.
    """
    logits = logits.float().contiguous()
    open_to_choice = logits
    if never:  # their share of the probability stays theirs
        open_to_choice = logits.index_fill(1, torch.tensor(never, device=logits.device), -torch.inf)
    values, tokens = open_to_choice.topk(min(most, logits.size(1) - len(never)))
    sums = (ops.cross_entropy(logits, tokens[:, 0], reduction="none").double() + values[:, 0].double()).cpu()
    if not bool(sums.isfinite().all()):
        raise UserError("beam_search: the model's logits are not finite: its weights are damaged or diverged")
    logprobs = values.double().cpu() - sums[:, None]
    return Candidates(
        tokens.tolist(), logprobs.tolist(), lambda row, token: float(logits[row, token].double().cpu() - sums[row])
    )


def run(context: DecoderState, searches: "Sequence[Search]", vocabulary: int | None, never: Sequence[int] = ()) -> None:
    """Search until all are settled: the rows of each one's unfinished sequences follow those of the one before.

    Args:
        context: the sequences.
        searches: one for each of them.
        vocabulary: as of beam_search.
        never: tokens that no sequence gets.
    """
    going = list(searches)
    most = max(search.num_beams + len(search.stops) for search in going)
    for length in count(1):
        found = candidates(context.logits[:, :vocabulary], most, never)
        kept, start = [], 0
        for search in going:
            rows = range(start, start + len(search.alive))
            search.extend(found.of(rows), length)
            if not search.settled(length):
                kept.append((search, start))
            start = rows.stop
        if not kept:
            return
        context.keep([start + parent for search, start in kept for parent in search.parents])
        context.push([beam.ids[-1] for search, _ in kept for beam in search.alive])
        going = [search for search, _ in kept]


class Search:
    """The unfinished sequences that continue a prompt, and the best finished ones.

    Args:
        num_beams: K; 1 is greedy and ends at the first stop.
        stops: tokens that end a sequence.
        penalty: what a log-probability is divided by, of a sequence's length.
        longest: new tokens at most.
    """

    def __init__(self, num_beams: int, stops: set[int], penalty: Callable[[int], float], longest: int) -> None:
        self.num_beams, self.stops, self.penalty, self.longest = num_beams, stops, penalty, longest
        self.alive = [Beam()]
        self.finished: list[Beam] = []  # the best first
        self.parents: list[int] = []  # of the alive ones, in the step before

    def extend(self, found: Candidates, length: int) -> None:
        """Give every unfinished sequence its next token; found are those that its row may have."""
        before, self.alive, self.parents = self.alive, [], []
        for logprob, parent, token in self._choose(before, found):
            score = logprob / self.penalty(length)
            if token in self.stops:
                self._finish(Beam(before[parent].ids, logprob, score, "stop"))
            elif len(self.alive) < self.num_beams:
                self.alive.append(Beam([*before[parent].ids, token], logprob, score))
                self.parents.append(parent)
            if self.num_beams == 1:  # greedy: a stop that is only the second best ends nothing
                break
        if length == self.longest:
            for beam in self.alive:
                self._finish(beam)

    def _choose(self, before: list[Beam], found: Candidates) -> list[tuple[float, int, int]]:
        """Return (log-probability, sequence, token) of the best ways on, the best first; ties by sequence, token."""
        ways = [
            (beam.logprob + logprob, parent, token)
            for parent, beam in enumerate(before)
            for logprob, token in zip(found.logprobs[parent], found.tokens[parent], strict=True)
        ]
        ways.sort(key=lambda way: (-way[0], way[1], way[2]))
        # As many that K unfinished ones are among them, even if every stop of every beam comes first.
        return ways[: self.num_beams + len(before) * len(self.stops)]

    def _finish(self, beam: Beam) -> None:
        self.finished = sorted([*self.finished, beam], key=self._rank)[: self.num_beams]

    def _rank(self, beam: Beam) -> tuple[float, ...]:
        """Return what finished sequences are sorted by, the best first."""
        return (-beam.score,)

    def settled(self, length: int) -> bool:
        """Whether no unfinished sequence can still come among the best."""
        if length == self.longest or not self.alive:
            return True
        if len(self.finished) < self.num_beams:
            return False
        # A log-probability only falls, so none can do better than keep it to where the penalty is kindest.
        kindest = max(self.penalty(length + 1), self.penalty(self.longest))
        return self.alive[0].logprob / kindest <= self.finished[-1].score
