"""Text to token ids and back."""

from pathlib import Path

from fastllm.tokenizers import base
from fastllm.tokenizers.base import Tokenizer
from fastllm.tokenizers.character import CharacterTokenizer

KINDS: dict[str, type[Tokenizer]] = {CharacterTokenizer.kind: CharacterTokenizer}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read the tokenizer stored in folder, of whatever kind.

    Raises:
        UserError: folder/tokenizer.json is missing, damaged or of an unknown kind.
    """
    return base.load(Path(folder), KINDS)


__all__ = ["CharacterTokenizer", "Tokenizer", "load_tokenizer"]
