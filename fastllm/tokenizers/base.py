"""The interface of every tokenizer, and how one is stored beside a model."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastllm.errors import UserError
from fastllm.files import write_json

FILE = "tokenizer.json"


class Tokenizer(ABC):
    """Text to token ids and back, without loss."""

    kind: str  # the name under which a stored tokenizer finds its class again

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of tokens; ids are 0, .., vocab_size - 1."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Return the ids of text, int64.

        Raises:
            UserError: the vocabulary has no token for a part of text.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids."""

    @abstractmethod
    def to_json(self) -> dict:
        """Return what from_json needs to make this tokenizer again."""

    @classmethod
    @abstractmethod
    def from_json(cls, stored: dict) -> "Tokenizer":
        """Make a tokenizer of what to_json returned."""

    def save(self, folder: Path) -> None:
        """Write folder/tokenizer.json."""
        write_json(folder / FILE, {"kind": self.kind, **self.to_json()})


def load(folder: Path, kinds: dict[str, type[Tokenizer]]) -> Tokenizer:
    """Read folder/tokenizer.json.

    Raises:
        UserError: the file is missing, damaged, or of a kind this version does not know.
    """
    path = folder / FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        kind = stored["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged ({error})") from error
    if kind not in kinds:
        raise UserError(f"{path}: 'kind' must be one of {', '.join(kinds)}, got {kind!r}")
    return kinds[kind].from_json(stored)
