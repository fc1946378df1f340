"""Beam search: the likeliest sequences, as far as a beam of them can tell."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from numbers import Real

import torch
from torch import Tensor

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
        num_beams: K, how many unfinished sequences are followed, and the most that are returned.
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
    check_type("beam_search", "alpha", alpha, Real)
    if not math.isfinite(alpha):
        raise UserValueError(f"beam_search: 'alpha' must be finite, got {alpha}")
    if length_penalty not in LENGTH_PENALTIES:
        raise UserValueError(
            f"beam_search: 'length_penalty' must be one of {', '.join(LENGTH_PENALTIES)}, got '{length_penalty}'"
        )
    stops = stop_ids(model, stop)
    if any(len(ids) != 1 for ids in stops):
        raise UserValueError(f"beam_search: 'stop' must be single tokens, got {stops}")
    penalty = LENGTH_PENALTIES[length_penalty]
    searches = [
        _Search(num_beams, {ids[0] for ids in stops}, lambda length: penalty(length, alpha), max_new_tokens)
        for _ in checked
    ]
    if searches:
        with in_eval_mode(model):
            _run(model.start(checked, max_new_tokens, num_beams * len(checked)), searches, vocabulary)
    return [search.finished for search in searches]


def _run(context: DecoderState, searches: "Sequence[_Search]", vocabulary: int | None) -> None:
    """Search until all are settled: the rows of each one's unfinished sequences follow those of the one before."""
    going = list(searches)
    for length in count(1):
        logprobs = context.logits[:, :vocabulary].double().log_softmax(-1).cpu()  # the one wait of a step on CUDA
        rows = logprobs.split([len(search.alive) for search in going])
        starts = accumulate(map(len, rows), initial=0)
        for search, own in zip(going, rows, strict=True):
            search.extend(own, length)
        kept = [(search, start) for search, start in zip(going, starts, strict=False) if not search.settled(length)]
        if not kept:
            return
        context.keep([start + parent for search, start in kept for parent in search.parents])
        context.push([beam.ids[-1] for search, _ in kept for beam in search.alive])
        going = [search for search, _ in kept]


class _Search:
    """The unfinished sequences that continue a prompt, and the best finished ones."""

    def __init__(self, num_beams: int, stops: set[int], penalty: Callable[[int], float], longest: int) -> None:
        self.num_beams, self.stops, self.penalty, self.longest = num_beams, stops, penalty, longest
        self.alive = [Beam()]
        self.finished: list[Beam] = []  # the best first
        self.parents: list[int] = []  # of the alive ones, in the step before

    def extend(self, logprobs: Tensor, length: int) -> None:
        """Give every unfinished sequence its next tokens; logprobs (K, V), float64."""
        totals = torch.tensor([[beam.logprob] for beam in self.alive], dtype=torch.float64) + logprobs
        if not totals.max().isfinite():
            raise UserError("beam_search: the model's logits are not finite: its weights are damaged or diverged")
        # As many that K unfinished ones are among them, even if every stop of every beam comes first.
        most = min(self.num_beams + len(self.alive) * len(self.stops), totals.numel())
        values, places = totals.flatten().topk(most)
        vocabulary, before = totals.size(1), self.alive
        self.alive, self.parents = [], []
        for logprob, place in zip(values.tolist(), places.tolist(), strict=True):
            parent, token = divmod(place, vocabulary)
            score = logprob / self.penalty(length)
            if token in self.stops:
                self.finished.append(Beam(before[parent].ids, logprob, score, "stop"))
            elif len(self.alive) < self.num_beams:
                self.alive.append(Beam([*before[parent].ids, token], logprob, score))
                self.parents.append(parent)
        if length == self.longest:
            self.finished += self.alive
        self.finished = sorted(self.finished, key=lambda beam: -beam.score)[: self.num_beams]

    def settled(self, length: int) -> bool:
        """Whether no unfinished sequence can still come among the best."""
        if length == self.longest or not self.alive:
            return True
        if len(self.finished) < self.num_beams:
            return False
        # A log-probability only falls, so none can do better than keep it to where the penalty is kindest.
        kindest = max(self.penalty(length + 1), self.penalty(self.longest))
        return self.alive[0].logprob / kindest <= self.finished[-1].score
