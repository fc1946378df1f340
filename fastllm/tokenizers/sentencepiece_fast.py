"""The ids of lossless sentencepiece models, sooner than the library gives them for a whole text.

Line ends are byte tokens and no piece crosses one; so texts can be cut at line ends, and joined there, without changing
any ids. It is faster: byte-pair merging keeps a heap of the whole text, and each call, and each list, costs as much as
many characters. Unigram models whose sums of scores are rounded have no texts joined (see unigram_scores.py).

The library takes a U+2581 for a space, so it is cut out, and the ids of its bytes are put in its place.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, count
from typing import Any

import numpy as np

from fastllm.errors import UserValueError
from fastllm.tokenizers import huggingface
from fastllm.tokenizers.base import EncodedBatch, utf8
from fastllm.tokenizers.sentencepiece_probe import Probe

_SPACE = huggingface.SPACE
_WHOLE = re.compile(r"(?s:.+)")
_CUT = "\ud800"  # marks cuts: half of a UTF-16 pair, which no text that can be encoded has
_WORD_END = re.compile(r"(?<=[^ ])(?= )")
_WORDS_TOGETHER = 1 << 20  # characters whose words are looked up together: bounds what they take
_WORDS_REPEAT = 4000  # characters from which on looking words up costs less than encoding them again
_A_THREAD = 50_000  # characters that take a thread ten times as long as it takes to start


class FastEncoder:
    """Encodes with a lossless model.

    Args:
        processor: the library's SentencePieceProcessor.
        probe: what its model is like.
    """

    def __init__(self, processor: Any, probe: Probe) -> None:
        self._processor, self._probe = processor, probe
        self._cut = _WHOLE if probe.crosses_lines else re.compile(rf"(?s:.{{0,{probe.short}}})\n|[^\n]+\n?")

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, int64.

        Raises:
            UserError: text has a lone surrogate.
        """
        if len(text) <= self._probe.short and _SPACE not in text:
            if not text.isascii():
                utf8(text)
            return np.array(self._processor.encode(text), dtype=np.int64)
        if self._probe.in_words and len(text) > _WORDS_REPEAT and _SPACE not in text:
            utf8(text)
            return np.concatenate(list(map(self._encode_words, _blocks(text))))
        chunks = self._chunks(text)
        if (several := threads(chunks)) > 1:
            arrays = self._processor.encode(chunks, num_threads=several, return_type="numpy")
        else:  # one by one, as starting even one thread of the library's costs as much as 500 characters
            arrays = [self._processor.encode(chunk, return_type="numpy") for chunk in chunks]
        return self._join(chunks, arrays)

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """Return the ids of each text, as encode would.

        Raises:
            UserError: a text has a lone surrogate.
        """
        if self._probe.joins:
            return self._encode_joined(texts)
        chunked = [self._chunks(text) for text in texts]
        batch = self._encode_each(list(chain.from_iterable(chunked)))
        return EncodedBatch(batch.ids, np.diff(batch.bounds[np.cumsum([0, *map(len, chunked)])]))

    def sample(self, text: str, **draws: Any) -> np.ndarray:
        """Return the ids of a segmentation that the library draws, int64; draws are its options."""
        # One by one in this thread: a list is shared out to fresh threads, whose generators all start from the seed.
        chunks = self._chunks(text)
        return self._join(chunks, [self._processor.encode(chunk, return_type="numpy", **draws) for chunk in chunks])

    def _chunks(self, text: str) -> list[str]:
        """Cut text where no piece can cross."""
        utf8(text)
        if len(text) <= self._probe.short and _SPACE not in text:
            return [text]
        if _SPACE in text:
            return [chunk for part in re.split(f"({_SPACE})", text) for chunk in self._cut.findall(part)]
        return self._cut.findall(text)

    def _encode_words(self, text: str) -> np.ndarray:
        """Encode each different word once, however often it occurs."""
        words = _words(text)
        place: dict[str, int] = defaultdict(count().__next__)  # of each among the different ones
        places = np.fromiter(map(place.__getitem__, words), np.int64, len(words))
        each = self._encode_each(list(place))
        lengths = np.diff(each.bounds)[places]
        ends = lengths.cumsum()
        return each.ids[np.arange(ends[-1]) + np.repeat(each.bounds[places] - ends + lengths, lengths)]

    def _encode_joined(self, texts: Sequence[str]) -> EncodedBatch:
        """Encode all texts as one that is cut at line ends, as the library's list for each of them takes longer.

        A text that does not end a line is given a line end, and what that becomes is left out.
        """
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        text, ends = "".join(texts), lengths.cumsum()
        points = np.frombuffer(f"\0{text}".encode("utf-32-le", "surrogatepass"), np.uint32)
        is_line_end = points == ord("\n")
        is_open = ~is_line_end.take(ends) | (lengths == 0)
        if is_open.any():
            text = "".join([one + "\n" if add else one for one, add in zip(texts, is_open.tolist(), strict=True)])
        try:
            ids = self.encode(text)
        except UserValueError:
            for one in texts:
                utf8(one)  # says where in which
            raise
        lines = np.searchsorted(np.flatnonzero(is_line_end), ends, side="right") + is_open.cumsum()
        (line_end,) = self._probe.line_end
        last = np.flatnonzero(ids == line_end)[lines - 1]
        if is_open.any():
            ids = np.delete(ids, last[is_open])
        return EncodedBatch(ids, np.diff(last, prepend=-1) - is_open)

    def _encode_each(self, chunks: list[str]) -> EncodedBatch:
        """Return the ids of each chunk, of which the library makes a list, for few ids quicker than an array."""
        lists = self._spelt(chunks, self._processor.encode(chunks, num_threads=threads(chunks)))
        return EncodedBatch(np.fromiter(chain.from_iterable(lists), np.int64), map(len, lists))

    def _join(self, chunks: list[str], parts: list) -> np.ndarray:
        none = np.empty(0, np.int64)  # an empty text has no chunk
        return np.concatenate([none, *self._spelt(chunks, parts)])

    def _spelt(self, chunks: list[str], parts: list) -> list:
        """Put its bytes in the place of the space that the library has taken each U+2581 for."""
        if _SPACE not in chunks:
            return parts
        return [self._probe.bar if chunk == _SPACE else ids for chunk, ids in zip(chunks, parts, strict=True)]


def threads(chunks: Sequence[str]) -> int:
    """Return how many threads encode chunks soonest."""
    return max(1, min(sum(map(len, chunks)) // _A_THREAD, len(chunks), os.cpu_count() or 1))


def _words(text: str) -> list[str]:
    """Cut text before line ends, and before spaces that follow something else."""
    return text.replace(" ", f"{_CUT} ").replace(f" {_CUT}", " ").replace("\n", f"{_CUT}\n").split(_CUT)


def _blocks(text: str) -> Iterator[str]:
    """Cut text between words."""
    start = 0
    while start < len(text):
        cut = _WORD_END.search(text, start + _WORDS_TOGETHER)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end
