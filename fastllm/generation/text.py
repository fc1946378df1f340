"""Generation at the level of text: prompts and stops are strings, and what comes out is text."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastllm.errors import UserValueError
from fastllm.generation.context import check_count, checked_prompt
from fastllm.generation.decoding import Generation, Track, run, seeds_of, stop_ids
from fastllm.generation.sampling import Sampling
from fastllm.generation.stopping import StopMatcher
from fastllm.models import GPT
from fastllm.tokenizers import Tokenizer

Stop = str | int | Sequence[int]


class _TextTrack:
    """One text on its way: a Track whose tokens become text up to a stop string."""

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, prompt: str, sampling: Sampling, seed: int, stop: Sequence[Stop]
    ) -> None:
        if not prompt:
            raise UserValueError("generate: 'prompt' must not be empty")
        ids = checked_prompt(model, tokenizer.encode(prompt).tolist())
        tokens = stop_ids(model, [s for s in stop if not isinstance(s, str)])
        self._decoder = tokenizer.streaming_decoder()
        for token in ids:  # what follows is a continuation: its first space is no text's start
            self._decoder.push(token)
        self._stops = StopMatcher([s for s in stop if isinstance(s, str)], "")
        self.text = ""
        self.track = Track(ids, sampling, seed, tokens, tokenizer.vocab_size, self._watch)

    def _watch(self, token: int) -> bool:
        self.text += self._stops.push(self._decoder.push(token))
        return self._stops.stopped

    def finish(self) -> None:
        if not self._stops.stopped:
            self.text += self._stops.push(self._decoder.finish())
        self.text += self._stops.finish()


def _text_tracks(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    stop: Stop | Sequence[Stop],
    seed: int | Sequence[int] | None,
    sampling: dict[str, Any],
) -> list[_TextTrack]:
    check_count(max_new_tokens)
    model.check_tokenizer(tokenizer, "generate")
    stops = [stop] if isinstance(stop, str | int) else stop
    how, seeds = Sampling(**sampling), seeds_of(seed, len(prompts))
    return [_TextTrack(model, tokenizer, p, how, s, stops) for p, s in zip(prompts, seeds, strict=True)]


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    *,
    stop: Stop | Sequence[Stop] = (),
    seed: int | None = None,
    **sampling,
) -> Iterator[str]:
    """Yield the text that continues a prompt, piece by piece, each as soon as it is known.

    Args:
        model, max_new_tokens, seed, sampling: as of :func:`generate`.
        tokenizer: the model's.
        prompt: not empty.
        stop: strings, tokens or sequences of tokens that end the text; they are not yielded.

    Raises:
        UserError: as generate does, or the tokenizer does not know a character of the prompt.
    """
    (track,) = _text_tracks(model, tokenizer, [prompt], max_new_tokens, stop, seed, sampling)
    return _stream(model, track, max_new_tokens)


def _stream(model: GPT, track: _TextTrack, max_new_tokens: int) -> Iterator[str]:
    given = 0
    for _ in run(model, [track.track], max_new_tokens):
        if len(track.text) > given:
            yield track.text[given:]
            given = len(track.text)
    track.finish()
    if len(track.text) > given:
        yield track.text[given:]


def generate_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    stop: Stop | Sequence[Stop] = (),
    seed: int | Sequence[int] | None = None,
    **sampling,
) -> list[Generation]:
    """Continue many texts together; each result is the one its prompt and seed give alone.

    Args:
        model, max_new_tokens, seed, sampling: as of :func:`generate_batch`.
        tokenizer: the model's.
        prompts: texts, none empty.
        stop: strings, tokens or sequences of tokens that end a text; they are cut off.

    Returns:
        A :class:`Generation` a prompt, with its text; where a stop string ended it, ids go to the token it ended in.

    Raises:
        UserError: as stream_text does.
    """
    if isinstance(prompts, str):
        raise UserValueError("generate: 'prompts' must be a list of texts, got one text")
    tracks = _text_tracks(model, tokenizer, prompts, max_new_tokens, stop, seed, sampling)
    for _ in run(model, [track.track for track in tracks], max_new_tokens):
        pass
    for track in tracks:
        track.finish()
    return [track.track.result(track.text) for track in tracks]
