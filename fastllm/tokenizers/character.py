"""One token a character: the article's first tokenizer."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from fastllm.errors import UserError, UserValueError
from fastllm.tokenizers import huggingface
from fastllm.tokenizers.base import StreamingDecoder, Tokenizer, check_texts

_SHOWN = 5  # unknown characters that an error names


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
        self._points = np.unique(_code_points(characters))
        if not len(self._points):
            raise UserValueError("CharacterTokenizer: 'characters' must not be empty")
        # One entry a code point, -1 where the vocabulary has none; 4.4 MB at the most.
        self._ids = np.full(int(self._points[-1]) + 1, -1, dtype=np.int32)
        self._ids[self._points] = np.arange(len(self._points))

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
        points = _code_points(text)
        known = points < len(self._ids)
        ids = self._ids[np.where(known, points, 0)]
        unknown = ~known | (ids < 0)
        if unknown.any():
            raise UserValueError(self._describe(text, np.flatnonzero(unknown)))
        return ids.astype(np.int64)

    def _describe(self, text: str, positions: np.ndarray) -> str:
        different = list(dict.fromkeys(text[i] for i in positions[:10_000]))
        shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in different[:_SHOWN])
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        return (
            f"the text has characters that the vocabulary of {self.vocab_size} has not: {shown}{more}, "
            f"the first at position {positions[0]}"
        )

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the characters of ids."""
        return self._points[self._check(ids)].tobytes().decode("utf-32-le", "surrogatepass")

    def streaming_decoder(self) -> StreamingDecoder:
        """Return a decoder of ids that come one at a time; a token is a whole character, so nothing waits."""
        return _CharacterDecoder(self)

    def huggingface(self) -> dict:
        """Return characters without merges."""
        vocab = {character: id for id, character in enumerate(self.characters)}
        return {"model": huggingface.byte_pair_model(vocab), "decoder": huggingface.FUSE}

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
        return self._tokenizer.decode([id])
