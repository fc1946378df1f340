"""Generation at the level of text: prompts and stops are strings, and what comes out is text."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from fastllm.errors import UserValueError, check_type, describe
from fastllm.generation.context import Generator, check_count, checked_prompt
from fastllm.generation.decoding import Generation, Track, batches, run, seeds_of, stop_ids
from fastllm.generation.sampling import Sampling
from fastllm.generation.stopping import StopMatcher
from fastllm.tokenizers import Tokenizer

Stop = str | int | Sequence[int]


class TextGenerator(Generator, Protocol):
    """A Generator that knows which tokenizers can be its own, and how many tokens it sees at once."""

    @property
    def context_length(self) -> int:
        """The most tokens that it sees at once."""

    def check_tokenizer(self, tokenizer: Tokenizer, where: object) -> None:
        """Raise UserValueError if a tokenizer has more tokens than the model; where begins the message."""


class _TextTrack:
    """One text on its way: a Track whose tokens become text up to a stop string."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: Sampling,
        stop_tokens: Sequence[Sequence[int]],
        stop_strings: Sequence[str],
        ids: list[int],
        seed: int,
    ) -> None:
        self._decoder = tokenizer.streaming_decoder()
        for token in ids:  # what follows is a continuation: its first space is no text's start
            self._decoder.push(token)
        self._stops = StopMatcher(stop_strings, "")
        self.text = ""
        self.track = Track(ids, sampling, seed, stop_tokens, tokenizer.vocab_size, self._watch)

    def _watch(self, token: int) -> bool:
        self.text += self._stops.push(self._decoder.push(token))
        return self._stops.stopped

    def finish(self) -> None:
        if not self._stops.stopped:
            self.text += self._stops.push(self._decoder.finish())
        self.text += self._stops.finish()


def _text_tracks(
    model: TextGenerator,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    max_new_tokens: int,
    stop: Stop | Iterable[Stop],
    seed: int | Iterable[int] | None,
    sampling: dict[str, Any],
) -> tuple[list[list[int]], Callable[[list[int], int], _TextTrack], list[int]]:
    """Check all that a user gave; return each prompt's ids, what makes a track of ids and a seed, and the seeds."""
    check_count("max_new_tokens", max_new_tokens, 0)
    check_type("generate", "tokenizer", tokenizer, Tokenizer)
    model.check_tokenizer(tokenizer, "generate")
    how, seeds = Sampling(**sampling), seeds_of(seed, len(prompts))
    if isinstance(stop, bytes) or not isinstance(stop, int | Iterable):
        raise TypeError(f"generate: 'stop' must be texts, tokens or sequences of tokens, got {stop!r}")
    stops = [stop] if isinstance(stop, str | int) else list(stop)  # an iterator can be read but once
    strings = [one for one in stops if isinstance(one, str)]
    StopMatcher(strings, "")  # or a wrong stop would be told when the first track is made
    tokens = stop_ids(model, [one for one in stops if not isinstance(one, str)])
    if tokenizer.end_of_text is not None:  # what a model writes after it belongs to another text
        tokens.append([tokenizer.end_of_text])
    encoded = [prompt if isinstance(prompt, list) else tokenizer.encode(prompt).tolist() for prompt in prompts]
    encoded = [checked_prompt(model, ids) for ids in encoded]
    return encoded, lambda ids, one: _TextTrack(tokenizer, how, tokens, strings, ids, one), seeds


def _not_empty(prompt: str) -> str:
    if not isinstance(prompt, str):
        raise TypeError(f"generate: 'prompt' must be a text, got {prompt!r}: generate and generate_batch take ids")
    if not prompt:
        raise UserValueError("generate: 'prompt' must not be empty")
    return prompt


def stream_text(
    model: TextGenerator,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    *,
    stop: Stop | Iterable[Stop] = (),
    seed: int | None = None,
    **sampling,
) -> Iterator[str]:
    """Yield the text that continues a prompt, piece by piece, each as soon as it is known.

    It ends at the tokenizer's end-of-text token too, where there is one.

    Args:
        model, max_new_tokens, seed, sampling: as of :func:`generate`.
        tokenizer: the model's.
        prompt: not empty.
        stop: strings, tokens or sequences of tokens that end the text; they are not yielded.

    Raises:
        UserError: as generate does, or the tokenizer does not know a character of the prompt.
    """
    (ids,), make, (one,) = _text_tracks(
        model, tokenizer, [_not_empty(prompt)], max_new_tokens, stop, seed, sampling
    )  # fmt: skip
    return _stream(model, make(ids, one), max_new_tokens)


def stream_ids(
    model: TextGenerator,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    stop: Stop | Iterable[Stop] = (),
    seed: int | None = None,
    **sampling,
) -> Iterator[str]:
    """Yield the text that continues ids, such as Tokenizer.encode_chat gives; else as :func:`stream_text`."""
    (ids,), make, (one,) = _text_tracks(model, tokenizer, [list(prompt)], max_new_tokens, stop, seed, sampling)
    return _stream(model, make(ids, one), max_new_tokens)


def _stream(model: TextGenerator, track: _TextTrack, max_new_tokens: int) -> Iterator[str]:
    given = 0
    for _ in run(model, [track.track], max_new_tokens):
        if len(track.text) > given:
            yield track.text[given:]
            given = len(track.text)
    track.finish()
    if len(track.text) > given:
        yield track.text[given:]


def generate_text(
    model: TextGenerator,
    tokenizer: Tokenizer,
    prompts: Iterable[str],
    max_new_tokens: int,
    *,
    stop: Stop | Iterable[Stop] = (),
    seed: int | Iterable[int] | None = None,
    batch_size: int | None = None,
    **sampling,
) -> list[Generation]:
    """Continue many texts together; each result is the one its prompt and seed give alone.

    A text ends at the tokenizer's end-of-text token too, where there is one.

    Args:
        model, max_new_tokens, seed, batch_size, sampling: as of :func:`generate_batch`.
        tokenizer: the model's.
        prompts: texts, none empty.
        stop: strings, tokens or sequences of tokens that end a text; they are cut off.

    Returns:
        A :class:`Generation` a prompt, with its text; where a stop string ended it, ids go to the token it ended in.

    Raises:
        UserError: as stream_text does.
    """
    return list(
        iterate_texts(
            model, tokenizer, prompts, max_new_tokens, stop=stop, seed=seed, batch_size=batch_size, **sampling
        )
    )


def iterate_texts(
    model: TextGenerator,
    tokenizer: Tokenizer,
    prompts: Iterable[str],
    max_new_tokens: int,
    *,
    stop: Stop | Iterable[Stop] = (),
    seed: int | Iterable[int] | None = None,
    batch_size: int | None = None,
    **sampling,
) -> Iterator[Generation]:
    """Yield what :func:`generate_text` returns, in its order, a batch as soon as it is done. All is checked at once."""
    if isinstance(prompts, str):
        raise UserValueError("generate: 'prompts' must be a list of texts, got one text")
    if not isinstance(prompts, Iterable):
        raise TypeError(f"generate: 'prompts' must be a list of texts, got {describe(prompts)}")
    texts = list(map(_not_empty, prompts))
    encoded, make, seeds = _text_tracks(model, tokenizer, texts, max_new_tokens, stop, seed, sampling)
    parts = batches(model, encoded, max_new_tokens, batch_size)
    return _iterate(model, ((make, encoded[part], seeds[part]) for part in parts), max_new_tokens)


def _iterate(
    model: TextGenerator,
    parts: Iterable[tuple[Callable[[list[int], int], _TextTrack], list[list[int]], list[int]]],
    max_new_tokens: int,
) -> Iterator[Generation]:
    for make, encoded, seeds in parts:
        tracks = list(map(make, encoded, seeds))
        for _ in run(model, [track.track for track in tracks], max_new_tokens):
            pass
        for track in tracks:
            track.finish()
            yield track.track.result(track.text)
