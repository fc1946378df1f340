"""One token a byte of UTF-8: nothing to train, nothing unknown."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from fastllm.tokenizers.base import END_OF_TEXT, Tokenizer, check_texts, utf8


class ByteTokenizer(Tokenizer):
    """Ids are bytes; 256 is the end of a text.

    Example:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode("é").tolist()
        [195, 169]
        >>> tokenizer.decode([104, 105, 256])
        'hi<|endoftext|>'
    """

    kind = "bytes"
    end_of_text = 256
    special_tokens = {END_OF_TEXT: end_of_text}  # noqa: RUF012

    @classmethod
    def train(cls, texts: Iterable[str]) -> "ByteTokenizer":
        """Return the tokenizer, which is the same for all texts; they are not read."""
        check_texts(texts)
        return cls()

    @property
    def vocab_size(self) -> int:
        """257."""
        return 257

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The 256 bytes, and the name of the end of a text."""
        return [*(bytes([value]) for value in range(256)), END_OF_TEXT.encode()]

    def _encode(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.int64)

    def to_json(self) -> dict:
        """Return nothing: all are the same."""
        return {}

    @classmethod
    def from_json(cls, stored: dict, folder: Path) -> "ByteTokenizer":
        """Return the tokenizer."""
        return cls()
