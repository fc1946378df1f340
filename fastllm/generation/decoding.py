"""Sampling from a language model, one sequence or many. Knows nothing of tokenizers or text: ids in, ids out."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from numbers import Integral
from operator import index

import torch
from torch import Tensor

from fastllm.errors import UserValueError
from fastllm.generation.context import Generator, check_count, check_vocabulary, checked_prompt, in_eval_mode
from fastllm.generation.sampling import Sampling
from fastllm.generation.stopping import StopMatcher

# B sequences, V vocabulary

_CACHE_BYTES, _MOST_TOGETHER = 2**30, 64  # bounds of a batch: what its keys and values take, and its sequences


@dataclass
class Generation:
    """What was generated after one prompt.

    Args:
        ids: the new tokens, without the stop sequence.
        logprobs: the log-probability of each, in nats, as the model gave it (before temperature and filters), among the
            tokens that the tokenizer, or `vocabulary`, has.
        finish: why it ended: "stop" or "length".
        text: the new text, where there was a tokenizer; a stop string and what follows it is cut off.
    """

    ids: list[int]
    logprobs: list[float] = field(repr=False)
    finish: str
    text: str | None = None


class Track:
    """One sequence on its way.

    Args:
        prompt: its ids.
        sampling: how its tokens are drawn.
        seed: of its own generator.
        stop: sequences of ids that end it.
        vocabulary: draw among the first so many tokens only.
        watch: is told every token that is known not to belong to a stop sequence; True ends the sequence.
    """

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        seed: int,
        stop: Sequence[Sequence[int]] = (),
        vocabulary: int | None = None,
        watch: Callable[[int], bool] = lambda token: False,
    ) -> None:
        self.prompt, self.sampling, self.vocabulary, self.watch = prompt, sampling, vocabulary, watch
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn: list[int] = []
        self._seen = set(prompt)
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish: str | None = None
        self._stops = StopMatcher([list(ids) for ids in stop], [])

    def take(self, logits: Tensor) -> None:
        """Draw the next token from logits (V,)."""
        token, logprob = self.sampling.draw(logits[: self.vocabulary], self.generator, self._seen)
        self.drawn.append(token)
        self._seen.add(token)
        self.logprobs.append(logprob)
        self._release(self._stops.push([token]))
        if self._stops.stopped:
            self.finish = "stop"

    def end(self) -> None:
        """Let go of what was held back: no more tokens are wanted."""
        if self.finish is None:
            self._release(self._stops.finish())
            self.finish = self.finish or "length"

    def _release(self, tokens: list[int]) -> None:
        for token in tokens:
            self.ids.append(token)
            if self.watch(token):
                self.finish = "stop"
                return

    def result(self, text: str | None = None) -> Generation:
        """Return what was generated."""
        return Generation(self.ids, self.logprobs[: len(self.ids)], self.finish or "length", text)


def run(model: Generator, tracks: Sequence[Track], max_new_tokens: int) -> Iterator[None]:
    """Continue sequences together, a token each a step; yields after every step. Those that ended leave the batch."""
    with in_eval_mode(model):
        active = list(tracks)
        prompts = [track.prompt for track in active]
        context = model.start(prompts, max_new_tokens) if prompts and max_new_tokens else None
        for step in range(max_new_tokens):
            if context is None or not active:
                break
            for track, logits in zip(active, context.logits.float().cpu(), strict=True):
                track.take(logits)
                if step == max_new_tokens - 1:
                    track.end()
            yield
            going = [row for row, track in enumerate(active) if track.finish is None]
            if not going:
                return
            if len(going) < len(active):
                context.keep(going)
                active = [active[row] for row in going]
            context.push([track.drawn[-1] for track in active])


def generate(
    model: Generator,
    prompt: Sequence[int] | Tensor,
    max_new_tokens: int,
    *,
    stop: Iterable[int | Sequence[int]] = (),
    seed: int | None = None,
    vocabulary: int | None = None,
    **sampling,
) -> Iterator[int]:
    """Yield new token ids of one sequence, each as soon as it is known.

    Keys and values are cached. When a sequence has context_length tokens, its last context_length // 2 stay and the
    others are forgotten; of a prompt longer than context_length the last context_length tokens are seen.

    Args:
        model: a decoder, such as GPT or Llama; it is put into eval mode while it runs and back afterwards.
        prompt: (T,) ids, at least one.
        max_new_tokens: how many to yield at most.
        stop: tokens, or sequences of tokens, that end it; they are not yielded.
        seed: makes the draws repeatable; None draws one from torch's global generator.
        vocabulary: draw among the first so many tokens only: those that a tokenizer has (its vocab_size), of a model
            whose vocabulary is padded to a rounder number.
        sampling: temperature, top_k, top_p, min_p, repetition_penalty, as of :class:`Sampling`.

    Raises:
        UserError: the prompt is empty or has ids outside the vocabulary, or an argument is out of range.

    Example:
        >>> from fastllm.models import GPT, GPTConfig
        >>> model = GPT(GPTConfig.preset("shakespeare"))
        >>> len(list(generate(model, [1, 2, 3], 5, top_k=10, seed=0)))
        5
    """
    check_count("max_new_tokens", max_new_tokens, 0)
    check_vocabulary(model, vocabulary)
    how, stops = Sampling(**sampling), stop_ids(model, stop)
    track = Track(checked_prompt(model, prompt), how, seeds_of(seed, 1)[0], stops, vocabulary)
    return _stream(model, track, max_new_tokens)


def _stream(model: Generator, track: Track, max_new_tokens: int) -> Iterator[int]:
    given = 0
    for _ in run(model, [track], max_new_tokens):
        yield from track.ids[given:]
        given = len(track.ids)


def generate_batch(
    model: Generator,
    prompts: Iterable[Sequence[int] | Tensor],
    max_new_tokens: int,
    *,
    stop: Iterable[int | Sequence[int]] = (),
    seed: int | Iterable[int] | None = None,
    vocabulary: int | None = None,
    batch_size: int | None = None,
    **sampling,
) -> list[Generation]:
    """Continue many prompts, of any lengths, together. Each result is the one its prompt and seed give alone.

    On the CPU equal bit for bit in float32: every kernel gives a row the same bits in any batch, and every sequence
    draws from a generator of its own, so batch_size changes time and memory alone. On CUDA matrix products are
    cuBLAS's, which adds up in another order for another batch: logits differ in their last bits, and so may a token
    whose number falls within those of another's share.

    Args:
        model, max_new_tokens, stop, vocabulary, sampling: as of :func:`generate`.
        prompts: sequences of ids; the same one several times gives several samples.
        seed: one per prompt; a single number gives prompt i seed + i; None draws them from torch's global generator.
        batch_size: how many are continued at a time; by default as many as take a gigabyte for keys and values, and no
            more than 64.

    Returns:
        A :class:`Generation` a prompt, in their order.

    Raises:
        UserError: as generate does, or there are not as many seeds as prompts.
    """
    check_count("max_new_tokens", max_new_tokens, 0)
    check_vocabulary(model, vocabulary)
    checked = [checked_prompt(model, prompt) for prompt in prompts]
    how, stops, seeds = Sampling(**sampling), stop_ids(model, stop), seeds_of(seed, len(checked))
    results = []
    for part in batches(model, checked, max_new_tokens, batch_size):
        tracks = [Track(ids, how, one, stops, vocabulary) for ids, one in zip(checked[part], seeds[part], strict=True)]
        for _ in run(model, tracks, max_new_tokens):
            pass
        results += [track.result() for track in tracks]
    return results


def batches(
    model: Generator, prompts: Sequence[Sized], max_new_tokens: int, batch_size: int | None, num_beams: int = 1
) -> list[slice]:
    """Return which prompts are continued together.

    Args:
        prompts: sequences of ids, whose lengths say what a batch takes.
        max_new_tokens: how many tokens come to each.
        batch_size: as of :func:`generate_batch`.
        num_beams: how many sequences a prompt is.

    Raises:
        UserError: batch_size is under 1.
    """
    if batch_size is None:
        longest = max(map(len, prompts), default=0) + max_new_tokens
        batch_size = max(1, min(_CACHE_BYTES // max(1, model.sequence_bytes(longest)), _MOST_TOGETHER))
    check_count("batch_size", batch_size, 1)
    together = max(1, batch_size // num_beams)
    return [slice(start, start + together) for start in range(0, len(prompts), together)]


def stop_ids(model: Generator, stop: Iterable[int | Sequence[int]]) -> list[list[int]]:
    """Return stops as sequences of ids; one outside the vocabulary is a UserError."""
    try:
        given = [stop] if isinstance(stop, bytes) else list(stop)
        if any(isinstance(ids, bytes) for ids in given):  # a text that is not decoded, and no sequence of tokens
            raise TypeError
        stops = [[int(ids)] if isinstance(ids, int | Integral) else list(map(index, ids)) for ids in given]
    except TypeError:
        raise TypeError(f"generate: 'stop' must be a list of tokens and sequences of tokens, got {stop!r}") from None
    vocabulary = model.vocab_size
    wrong = [token for ids in stops for token in ids if not 0 <= token < vocabulary]
    if wrong:
        raise UserValueError(f"generate: 'stop' must have ids in [0, {vocabulary}), got {wrong[0]}")
    return stops


def seeds_of(seed: int | Iterable[int] | None, count: int) -> list[int]:
    """Return a seed a sequence."""
    if seed is None:
        return torch.randint(2**62, (count,)).tolist()
    try:
        seeds = [int(seed) + i for i in range(count)] if isinstance(seed, int | Integral) else list(map(index, seed))
    except TypeError:
        raise TypeError(f"generate: 'seed' must be a whole number, or one for each prompt, got {seed!r}") from None
    if len(seeds) != count:
        raise UserValueError(
            f"generate: 'seed' must be a number, or one for each of the {count} prompts, got {len(seeds)}"
        )
    if not all(0 <= one < 2**63 for one in seeds):
        raise UserValueError(f"generate: 'seed' must be in [0, 2^63), got {seed}")
    return seeds
