"""One token a byte of UTF-8: nothing to train, nothing unknown."""

import contextlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from fastllm.tokenizers import huggingface
from fastllm.tokenizers.base import END_OF_TEXT, FEW, EncodedBatch, Tokenizer, check_texts, utf8


def spelling() -> dict[int, str]:
    """Return the character that GPT-2's files spell each byte with: itself if Latin-1 prints it, else U+0100 and on."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) if byte in printed else chr(0x100 + others.index(byte)) for byte in range(256)}


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
        return np.frombuffer(text.encode() if text.isascii() else utf8(text), np.uint8).astype(np.int64)

    def _encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        encoded = list(map(utf8, texts))
        return EncodedBatch(np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(np.int64), map(len, encoded))

    def _decode(self, ids: Sequence[int] | np.ndarray) -> str:
        if len(ids) <= FEW:
            with contextlib.suppress(ValueError):  # one is 256, or wrong
                return bytes(ids.tolist() if isinstance(ids, np.ndarray) else list(ids)).decode("utf-8", "replace")
        return super()._decode(ids)

    def _joined_bytes(self, ids: np.ndarray) -> bytes:
        """Without the table, where there is no end of a text."""
        return ids.astype(np.uint8).tobytes() if ids.max(initial=0) < 256 else super()._joined_bytes(ids)

    def token_names(self) -> dict[str, int]:
        """Return the ids of the characters that spell the bytes, and of the end of a text."""
        return {character: byte for byte, character in spelling().items()} | self.special_tokens

    def huggingface(self) -> dict:
        """Return bytes without merges."""
        vocab = {name: id for name, id in self.token_names().items() if name not in self.special_tokens}
        model = huggingface.byte_pair_model(vocab)
        return {"pre_tokenizer": huggingface.BYTES, "model": model, "decoder": huggingface.BYTES}

    def to_json(self) -> dict:
        """Return nothing: all are the same."""
        return {}

    @classmethod
    def from_json(cls, stored: dict, folder: Path) -> "ByteTokenizer":
        """Return the tokenizer."""
        return cls()
