"""One token a character: the article's first tokenizer."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from fastllm.errors import UserError, UserValueError, check_type, describe
from fastllm.tokenizers import huggingface
from fastllm.tokenizers.base import EncodedBatch, StreamingDecoder, Tokenizer, as_ids, check_texts

_SHOWN = 5  # unknown characters that an error names
_NO_CHARACTER = 0x110000  # is after the last code point


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


class CharacterTokenizer(Tokenizer):
    """Ids are positions in the sorted list of the characters that occur; lone surrogates count as characters.

    Args:
        characters: the vocabulary; sorted and freed of repeats here.

    Example:
        >>> tokenizer = CharacterTokenizer("hello")
        >>> tokenizer.decode(tokenizer.encode("hole"))
        'hole'
    """

    kind = "characters"

    def __init__(self, characters: str) -> None:
        check_type("CharacterTokenizer", "characters", characters, str)
        self._points = np.unique(_code_points(characters))
        if not len(self._points):
            raise UserValueError("CharacterTokenizer: 'characters' must not be empty")
        # One entry a code point, -1 where the vocabulary has none; the last one is for all that follow. 9 MB at most.
        self._ids = np.full(int(self._points[-1]) + 2, -1, dtype=np.int64)
        self._ids[self._points] = np.arange(len(self._points))
        # So that ids which are none find no character: as many too large ones, which negative ones wrap around to.
        self._points_of = np.append(self._points, np.full_like(self._points, _NO_CHARACTER))

    @classmethod
    def train(cls, texts: Iterable[str]) -> "CharacterTokenizer":
        """Return the tokenizer of all characters that occur in texts.

        Raises:
            UserError: texts have no character.
        """
        characters: set[str] = set()
        for text in check_texts(texts):
            characters.update(text)
        if not characters:
            raise UserValueError("train: the texts have no character")
        return cls("".join(characters))

    @property
    def vocab_size(self) -> int:
        """The number of different characters."""
        return len(self._points)

    @property
    def characters(self) -> str:
        """The vocabulary, in the order of ids."""
        return self._points.tobytes().decode("utf-32-le", "surrogatepass")

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The characters; a lone surrogate has three bytes, which UTF-8 does not allow."""
        return [character.encode("utf-8", "surrogatepass") for character in self.characters]

    def _encode(self, text: str) -> np.ndarray:
        ids = self._ids.take(_code_points(text), mode="clip")
        if ids.size and ids.min() < 0:
            raise UserValueError(self._describe(text, np.flatnonzero(ids < 0)))
        return ids

    def _encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        try:
            return EncodedBatch(self._encode("".join(texts)), map(len, texts))
        except UserValueError:
            return super()._encode_batch(texts)  # says where in which text

    def _describe(self, text: str, positions: np.ndarray) -> str:
        different = list(dict.fromkeys(text[i] for i in positions[:10_000]))
        shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in different[:_SHOWN])
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        return (
            f"the text has characters that are not in the vocabulary of {self.vocab_size} tokens: {shown}{more}, "
            f"the first at position {positions[0]}"
        )

    def _decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = as_ids(ids)
        try:
            points = self._points_of.take(ids)
            return points.tobytes().decode("utf-32-le", "surrogatepass")
        except (IndexError, UnicodeDecodeError):
            self._check(ids)
            raise

    def _decode_batch(self, batch: EncodedBatch) -> list[str]:
        text = self._decode(batch.ids)
        return [text[start:end] for start, end in pairwise(batch.bounds.tolist())]

    def streaming_decoder(self) -> StreamingDecoder:
        """Return a decoder of ids that come one at a time; a token is a whole character, so nothing waits."""
        return _CharacterDecoder(self)

    def token_names(self) -> dict[str, int]:
        """Return the ids of the characters."""
        return {character: id for id, character in enumerate(self.characters)}

    def huggingface(self) -> dict:
        """Return characters without merges."""
        return {"model": huggingface.byte_pair_model(self.token_names()), "decoder": huggingface.FUSE}

    def to_json(self) -> dict:
        """Return the vocabulary; as numbers where it has lone surrogates, which a UTF-8 file could not hold."""
        surrogates = (self._points >= 0xD800) & (self._points < 0xE000)
        return {"code_points": self._points.tolist()} if surrogates.any() else {"characters": self.characters}

    @classmethod
    def from_json(cls, stored: dict, folder: Path) -> "CharacterTokenizer":
        """Make the tokenizer of a stored vocabulary."""
        characters = stored.get("characters", "")
        if "code_points" in stored:
            characters = "".join(map(chr, stored["code_points"]))
        if not isinstance(characters, str) or not characters:
            raise UserError(f"{folder}: the tokenizer's 'characters' must be a text that is not empty")
        return cls(characters)


class _CharacterDecoder(StreamingDecoder):
    """Gives lone surrogates as they are, which UTF-8 could not."""

    def push(self, id: int) -> str:
        try:
            return self._tokenizer._decode([id])
        except TypeError as error:
            raise TypeError(f"push: 'id' must be a whole number, got {describe(id)}") from error
