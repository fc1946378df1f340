"""One token a character: the article's first tokenizer."""

from collections.abc import Sequence

import numpy as np

from fastllm.errors import UserError
from fastllm.tokenizers.base import Tokenizer

_SHOWN = 5  # unknown characters that an error names


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


class CharacterTokenizer(Tokenizer):
    """Ids are positions in the sorted list of the characters that occur.

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
            raise UserError("CharacterTokenizer: 'characters' must not be empty")
        # One entry a code point, -1 where the vocabulary has none; 4.4 MB at the most.
        self._ids = np.full(int(self._points[-1]) + 1, -1, dtype=np.int32)
        self._ids[self._points] = np.arange(len(self._points))

    @property
    def vocab_size(self) -> int:
        """The number of different characters."""
        return len(self._points)

    @property
    def characters(self) -> str:
        """The vocabulary, in the order of ids."""
        return self._points.tobytes().decode("utf-32-le", "surrogatepass")

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of text's characters, int64; unknown characters are a UserError that shows them."""
        points = _code_points(text)
        known = points < len(self._ids)
        ids = self._ids[np.where(known, points, 0)]
        unknown = ~known | (ids < 0)
        if unknown.any():
            raise UserError(self._describe(text, np.flatnonzero(unknown)))
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
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise UserError(f"ids must be in [0, {self.vocab_size}), got {ids.min()} to {ids.max()}")
        return self._points[ids].tobytes().decode("utf-32-le", "surrogatepass")

    def to_json(self) -> dict:
        """Return the vocabulary."""
        return {"characters": self.characters}

    @classmethod
    def from_json(cls, stored: dict) -> "CharacterTokenizer":
        """Make the tokenizer of a stored vocabulary."""
        if not isinstance(stored.get("characters"), str):
            raise UserError("tokenizer.json: 'characters' must be a text")
        return cls(stored["characters"])
