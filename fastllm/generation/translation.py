"""Translation: texts in, texts out, by an encoder-decoder and a beam search.

What a text's translation is depends on nothing but the text and the settings: not on the texts beside it, nor on how
they are put into batches, nor on how many of the best are asked for; on the CPU, in float32, bit for bit, for any
number of threads.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from torch import Tensor

from fastllm.errors import UserError, UserValueError, check_type, describe
from fastllm.generation.beam import Beam, Search, penalty_of, run
from fastllm.generation.constraints import ConstrainedSearch, Phrase
from fastllm.generation.context import Generator, check_count, in_eval_mode
from fastllm.generation.segments import Part, sentences, split_text
from fastllm.tokenizers import PairTokenizer, Tokenizer

_MOST_TOGETHER = 64  # texts
_REPEATS, _LONGEST_REPEAT = 4, 8  # of a run of words that counts as a loop; words in it
_TARGET_RATIO, _TARGET_MORE = 2, 16  # a target has at most so many times the source's tokens, and so many more
# What must survive a translation as it is: {0}, {name}, %s, %1$d, <b>, </a>, addresses.
PLACEHOLDERS = re.compile(
    r"\{[\w.:!]*\}|%(?:\d+\$)?[sdif]\b|%\d+|\$\{\w+\}|</?[A-Za-z][^<>]*>|https?://[^\s<>\"]*[\w/]|[\w.+-]+@[\w-]+\.[\w.-]*\w"
)


class Translator(Protocol):
    """What translation needs of a model: models.Transformer has it."""

    training: bool

    @property
    def context_length(self) -> int:
        """The most tokens of a source, and of a target."""

    def check_tokenizer(self, tokenizer: Any, where: object) -> None:
        """Raise UserValueError if a tokenizer is not the model's."""

    def reading(self, sources: Sequence[Sequence[int]]) -> Generator:
        """Return what continues targets, given their sources."""

    def cross_attention(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], layer: int = -1
    ) -> list[Tensor]:
        """Return where each target's tokens look."""

    def train(self, mode: bool = True) -> object:
        """Choose training or eval mode."""


@dataclass
class Alignment:
    """Where a translation looks while it is written.

    Args:
        source: the source's tokens, as texts; the last is its end.
        target: the translation's, its end among them.
        weights: (target, source), of which rows sum to 1: the mean over the heads of a layer of the decoder.
    """

    source: list[str]
    target: list[str]
    weights: Tensor = field(repr=False)


@dataclass
class Translation:
    """A translated text.

    Args:
        text: the translation.
        source: what was translated.
        score: its log-probability over the length penalty; of a text that was cut, the sum over its parts.
        logprob: the log-probability, in nats, the sum over all tokens.
        ids: the target's tokens, without its end; of a text that was cut, those of its parts in a row.
        parts: into how many parts the text was cut; 1 if it was not.
        faults: what is probably wrong with it: "empty", "loop: ..", "length" or "missing: ..".
        n_best: this and the next best ones, the best first, as many as were asked for.
        alignments: of each part, where they were asked for.
    """

    text: str
    source: str
    score: float = 0.0
    logprob: float = 0.0
    ids: list[int] = field(default_factory=list)
    parts: int = 1
    faults: tuple[str, ...] = ()
    n_best: "list[Translation]" = field(default_factory=list, repr=False)
    alignments: list[Alignment] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class _Settings:
    tokenizer: PairTokenizer
    num_beams: int
    n_best: int
    length_penalty: str
    alpha: float
    max_length: int | None
    glossary: Mapping[str, str]
    keep_placeholders: bool
    longest: int
    split_sentences: bool
    batch_tokens: int
    alignments: bool


@dataclass
class _Segment:
    """A part of a text on its way."""

    text: str
    ids: list[int]
    prefix: list[int]
    longest: int  # new tokens at most
    found: list[Beam] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def translate(model: Translator, tokenizer: PairTokenizer, texts: Iterable[str], **options: Any) -> list[Translation]:
    """Translate texts.

    Args:
        model: an encoder-decoder, such as models.load gives of a translation run; it is put into eval mode while it
            runs and back afterwards.
        tokenizer: the model's, a pair.
        texts: a list of texts, of any lengths. Lines are translated apart, and what is longer than the model takes is
            cut as :mod:`fastllm.generation.segments` says. An empty text stays empty.
        options: num_beams=4: unfinished translations that are followed, 1 is greedy; n_best=1: how many of the best are
            given, at most num_beams; length_penalty="gnmt" or "power", and alpha=0.6: as of
            :func:`fastllm.generation.beam_search`; max_length: tokens of a part's translation, by default 2 of each of
            the source and 16 more; prefix: what each translation begins with, a text or one for each of texts;
            glossary: a mapping of phrases to what must be in the translation where they are in a text;
            keep_placeholders=True: {0}, %s, tags and addresses of a text must be in its translation; longest: tokens of
            a source that is translated at once, by default the model's context_length; split_sentences=False: translate
            each sentence of a text apart even if it is short enough; batch_tokens=4096: tokens of sources that are read
            together, which changes the speed alone; alignments=False: say where translations look.

    Returns:
        A :class:`Translation` for each text, in their order.

    Raises:
        UserError: an option is out of range, the tokenizer is not the model's or lacks a character, or a phrase cannot
            be spelled.
        TypeError: texts are not texts, or an option is of a wrong type.

    Example:
        >>> translate(model, tokenizer, ["ein Haus", "zwei Häuser"], num_beams=8)[1].text  # doctest: +SKIP
        'two houses'
    """
    return list(iterate_translations(model, tokenizer, texts, **options))


def iterate_translations(
    model: Translator,
    tokenizer: PairTokenizer,
    texts: Iterable[str],
    *,
    num_beams: int = 4,
    n_best: int = 1,
    length_penalty: str = "gnmt",
    alpha: float = 0.6,
    max_length: int | None = None,
    prefix: str | Sequence[str] = "",
    glossary: Mapping[str, str] | None = None,
    keep_placeholders: bool = True,
    longest: int | None = None,
    split_sentences: bool = False,
    batch_tokens: int = 4096,
    alignments: bool = False,
) -> Iterator[Translation]:
    """Yield what :func:`translate` returns, in its order, each as soon as it and those before are done.

    All is checked before the first is yielded.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"translate: 'texts' must be a list of texts, got {describe(texts)}; put one text in a list")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"translate: 'texts' must be a list of texts, got {describe(text)} at position {number}")
    check_type("translate", "tokenizer", tokenizer, PairTokenizer)
    model.check_tokenizer(tokenizer, "translate")
    for name, value in (("num_beams", num_beams), ("n_best", n_best), ("batch_tokens", batch_tokens)):
        check_count(name, value, 1)
    if n_best > num_beams:
        raise UserValueError(f"translate: 'n_best' must be at most num_beams ({num_beams}), got {n_best}")
    penalty_of("translate", length_penalty, alpha)
    room = model.context_length
    for name, limit in (("max_length", max_length), ("longest", longest)):
        if limit is not None:
            check_count(name, limit, 1)
            if limit > room:
                raise UserValueError(f"translate: '{name}' must be at most the model's {room} tokens, got {limit}")
    prefixes = [prefix] * len(texts) if isinstance(prefix, str) else list(prefix)
    if len(prefixes) != len(texts) or not all(isinstance(one, str) for one in prefixes):
        raise UserValueError(
            f"translate: 'prefix' must be a text, or one for each of the {len(texts)} texts, got {describe(prefix)}"
        )
    settings = _Settings(
        tokenizer, num_beams, n_best, length_penalty, alpha, max_length, dict(glossary or {}), keep_placeholders,
        longest or room, split_sentences, batch_tokens, alignments,
    )  # fmt: skip
    for phrase, wanted in settings.glossary.items():
        check_type("translate", "glossary", phrase, str)
        check_type("translate", "glossary", wanted, str)
        if not phrase.strip() or not wanted.strip():
            raise UserValueError("translate: 'glossary' must not have an empty phrase")
        _spellings(tokenizer, wanted)
    cut = [_segments(settings, room, text, own) for text, own in zip(texts, prefixes, strict=True)]
    return _iterate(model, settings, texts, cut)


# --- cutting and joining ----------------------------------------------------------------------------------------------

_Pieces = list[tuple["_Segment | None", str]]  # a part, or None where there is nothing to translate; what follows it


def _segments(settings: _Settings, room: int, text: str, prefix: str) -> _Pieces:
    """Cut a text into segments and what stands between them."""
    pieces: _Pieces = []
    tokenizer = settings.tokenizer
    for line in re.split(r"(\n)", text):
        stripped = line.strip()
        if not stripped:
            pieces.append((None, line))
            continue
        begin = line.index(stripped)
        if begin:
            pieces.append((None, line[:begin]))
        tags = stripped[: len(stripped) - len(tokenizer.split_tags(stripped)[1])]
        for part in _parts(settings, stripped, tags):
            ids = tokenizer.encode_source(part.text).tolist()
            own = _prefix_ids(tokenizer, prefix, room)
            prefix = ""
            wanted = settings.max_length or _TARGET_RATIO * len(ids) + _TARGET_MORE
            pieces.append((_Segment(part.text, ids, own, max(1, min(wanted, room - len(own)))), part.space))
        pieces.append((None, line[begin + len(stripped) :]))
    return pieces


def _parts(settings: _Settings, text: str, tags: str) -> list[Part]:
    """Cut a line; tags that stand in front of it stand in front of each part."""

    def fits(part: str) -> bool:
        return len(settings.tokenizer.encode_source(tags + part)) <= settings.longest

    bare = text[len(tags) :]
    parts = sentences(bare) if settings.split_sentences else [Part(bare, "")]
    cut = [piece for part in parts for piece in _with_space(split_text(part.text, fits), part.space)]
    return [Part(tags + part.text, part.space) for part in cut]


def _with_space(parts: list[Part], space: str) -> list[Part]:
    return [*parts[:-1], Part(parts[-1].text, parts[-1].space + space)]


def _prefix_ids(tokenizer: PairTokenizer, prefix: str, room: int) -> list[int]:
    """Return what a target begins with: its start token and a prefix."""
    ids = tokenizer.encode_target(prefix)[:-1].tolist() if prefix else []
    if len(ids) + 2 > room:
        raise UserValueError(
            f"translate: 'prefix' must have at most {room - 2} tokens for this model, got {len(ids)} in '{prefix[:40]}'"
        )
    return [tokenizer.start, *ids]


# --- searching --------------------------------------------------------------------------------------------------------


def _iterate(model: Translator, settings: _Settings, texts: list[str], cut: list[_Pieces]) -> Iterator[Translation]:
    owners = [(number, piece) for number, pieces in enumerate(cut) for piece, _ in pieces if piece is not None]
    waiting = [sum(piece is not None for piece, _ in pieces) for pieces in cut]
    given = 0
    for batch in _batches([segment for _, segment in owners], settings.batch_tokens):
        segments = [owners[index][1] for index in batch]
        _translate(model, settings, segments)
        for index in batch:
            waiting[owners[index][0]] -= 1
        while given < len(texts) and not waiting[given]:
            yield _joined(model, settings, texts[given], cut[given])
            given += 1
    while given < len(texts):
        yield _joined(model, settings, texts[given], cut[given])
        given += 1


def _batches(segments: list[_Segment], batch_tokens: int) -> Iterator[list[int]]:
    """Yield numbers of segments that are translated together: of nearly one length, from the shortest on.

    Within a window of many batches only, so that the first texts of many are done early.
    """
    window = 16 * _MOST_TOGETHER
    for first in range(0, len(segments), window):
        order = sorted(range(first, min(first + window, len(segments))), key=lambda i: len(segments[i].ids))
        batch: list[int] = []
        for index in order:
            if batch and (len(batch) == _MOST_TOGETHER or (len(batch) + 1) * len(segments[index].ids) > batch_tokens):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def _translate(model: Translator, settings: _Settings, segments: list[_Segment]) -> None:
    """Find the translations of segments; again, with constraints, of those that lack what they must have."""
    _search(model, settings, segments, [()] * len(segments))
    again, phrases = [], []
    for segment in segments:
        wanted = _wanted(settings, segment.text)
        if lacking := _lacking(_decode(settings, segment, segment.found[0]), wanted):
            again.append(segment)
            phrases.append(tuple(_spellings(settings.tokenizer, one) for one in wanted))
            segment.missing = lacking
    if not again:
        return
    before = [segment.found for segment in again]
    _search(model, settings, again, phrases)
    for segment, plain in zip(again, before, strict=True):
        lacking = _lacking(_decode(settings, segment, segment.found[0]), _wanted(settings, segment.text))
        if len(lacking) < len(segment.missing):
            segment.missing = lacking
        else:  # what was found by force is no better
            segment.found = plain


def _search(
    model: Translator, settings: _Settings, segments: list[_Segment], phrases: Sequence[tuple[Phrase, ...]]
) -> None:
    penalty = penalty_of("translate", settings.length_penalty, settings.alpha)
    searches = []
    for segment, own in zip(segments, phrases, strict=True):
        common = settings.num_beams, {settings.tokenizer.end}, penalty, segment.longest
        searches.append(ConstrainedSearch(*common, own) if own else Search(*common))
    reader = model.reading([segment.ids for segment in segments])
    with in_eval_mode(reader):
        state = reader.start(
            [segment.prefix for segment in segments], max(segment.longest for segment in segments),
            settings.num_beams * len(segments),
        )  # fmt: skip
        run(state, searches, settings.tokenizer.vocab_size, settings.tokenizer.never)
    for segment, search in zip(segments, searches, strict=True):
        segment.found = search.finished


def _wanted(settings: _Settings, text: str) -> list[str]:
    """Return what a text's translation must have: phrases of the glossary, placeholders as often as they are there."""
    found = [wanted for phrase, wanted in settings.glossary.items() if _has_phrase(text, phrase)]
    if settings.keep_placeholders:
        _, bare = settings.tokenizer.split_tags(text)
        found += PLACEHOLDERS.findall(bare)
    return found


def _has_phrase(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def _lacking(text: str, wanted: list[str]) -> list[str]:
    """Return what a translation lacks; what must be there twice lacks once."""
    lacking = []
    for one, group in groupby(sorted(wanted)):
        lacking += [one] * (len(list(group)) - text.count(one))
    return lacking


def _spellings(tokenizer: PairTokenizer, phrase: str) -> Phrase:
    """Return the ids of a phrase, inside a sentence and at the beginning of a word."""
    try:
        found = {tuple(tokenizer.target.encode(text).tolist()) for text in (phrase, f" {phrase}")}
    except UserError as error:
        raise UserValueError(f"translate: '{phrase}' cannot be spelled with the model's vocabulary: {error}") from error
    return tuple(sorted(found))


# --- results ----------------------------------------------------------------------------------------------------------


def _decode(settings: _Settings, segment: _Segment, beam: Beam) -> str:
    return settings.tokenizer.decode_target([*segment.prefix, *beam.ids])


def _joined(model: Translator, settings: _Settings, source: str, pieces: _Pieces) -> Translation:
    """Return a text's translation, put together of its parts'; of the n best, the i-th best of each part."""
    segments = [segment for segment, _ in pieces if segment is not None]
    if not segments:
        empty = Translation(source, source, parts=0)
        empty.n_best = [empty]
        return empty
    several = [_assembled(settings, source, pieces, segments, rank) for rank in range(settings.n_best)]
    best = several[0]
    best.n_best = several
    best.alignments = [_aligned(model, settings, segment) for segment in segments] if settings.alignments else []
    return best


def _assembled(settings: _Settings, source: str, pieces: _Pieces, segments: list[_Segment], rank: int) -> Translation:
    beams = {id(segment): segment.found[min(rank, len(segment.found) - 1)] for segment in segments}
    text, faults = "", []
    for segment, space in pieces:
        if segment is None:
            text += space
            continue
        own = _decode(settings, segment, beams[id(segment)])
        faults += _faults(segment, own, beams[id(segment)])
        text += own + space
    found = list(beams.values())
    return Translation(
        text, source, sum(beam.score for beam in found), sum(beam.logprob for beam in found),
        [token for segment in segments for token in [*segment.prefix[1:], *beams[id(segment)].ids]], len(segments),
        tuple(dict.fromkeys(faults)),
    )  # fmt: skip


def _faults(segment: _Segment, text: str, beam: Beam) -> list[str]:
    """Return what is probably wrong with a part's translation."""
    faults = []
    if not text.strip():
        faults.append("empty")
    if (repeated := loop(text)) and not loop(segment.text):
        faults.append(f"loop: '{repeated}'")
    if beam.finish == "length":
        faults.append("length")
    return faults + [f"missing: '{one}'" for one in segment.missing]


def loop(text: str) -> str:
    """Return the words that a text has four times in a row, or more often; "" if there are none."""
    words = text.split()
    for size in range(1, _LONGEST_REPEAT + 1):
        for start in range(len(words) - _REPEATS * size + 1):
            run = words[start : start + size]
            if all(words[start + i * size : start + (i + 1) * size] == run for i in range(1, _REPEATS)):
                return " ".join(run)
    return ""


def _aligned(model: Translator, settings: _Settings, segment: _Segment) -> Alignment:
    tokenizer = settings.tokenizer
    written = [*segment.prefix, *segment.found[0].ids]
    (weights,) = model.cross_attention([segment.ids], [written])
    return Alignment(
        _names(tokenizer.source, segment.ids), _names(tokenizer.target, [*written[1:], tokenizer.end]), weights
    )


def _names(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token_bytes[id].decode("utf-8", "replace") for id in ids]
