"""The vocabularies of Marian models (OPUS-MT), in the files of transformers' MarianTokenizer.

Each language has a sentencepiece model that cuts its texts into pieces; their ids are in a list apart, which both
languages share, or of which each has its own. The list may have more: `>>de<<`, which in front of a source says the
language to translate into.
"""

import base64
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastllm.errors import UserError
from fastllm.tokenizers import huggingface
from fastllm.tokenizers.base import Tokenizer, utf8
from fastllm.tokenizers.sentencepiece import SentencePieceTokenizer, load_processor
from fastllm.tokenizers.sentencepiece_training import library
from fastllm.tokenizers.storage import read_file, read_json

MODELS = {"source": "source.spm", "target": "target.spm"}
VOCABULARY, TARGET_VOCABULARY = "vocab.json", "target_vocab.json"
_END, _PAD, _UNKNOWN = "</s>", "<pad>", "<unk>"
_LANGUAGE = re.compile(r">>.+<<")
# A ModelProto has its normalizer_spec as field 3, and that has add_dummy_prefix as field 3; what comes later in a
# message of protobuf is merged into what came before.
_SPACE_IN_FRONT = b"\x1a\x02\x18\x01"
_FOR_UNKNOWN = " \u2047 "  # what sentencepiece writes


class MarianTokenizer(Tokenizer):
    """One language of a Marian model. What the vocabulary lacks becomes the id of `<unk>`, as the model learnt it.

    Args:
        model: the bytes of its sentencepiece model.
        pieces: by their ids.

    Attributes:
        pad: the id of `<pad>`, with which the model begins a target.

    Raises:
        UserError: model is damaged, or pieces lack `</s>`, `<unk>` or `<pad>`.
    """

    kind = "marian"

    def __init__(self, model: bytes, pieces: Sequence[str]) -> None:
        self._model, self._processor, self._pieces = bytes(model), load_processor(model), list(pieces)
        self._ids = {piece: id for id, piece in enumerate(self._pieces)}
        for name in (_END, _UNKNOWN, _PAD):
            if name not in self._ids:
                raise UserError(f"a Marian vocabulary must have '{name}', got {len(self._ids)} pieces without it")
        self.end_of_text, self.pad, self._unknown = (self._ids[name] for name in (_END, _PAD, _UNKNOWN))
        named = (piece for piece in self._pieces if piece in (_END, _PAD) or _LANGUAGE.fullmatch(piece))
        self.special_tokens = {piece: self._ids[piece] for piece in named}
        # Characters that sentencepiece does not know are a piece together, which may spell the name of a special token.
        self._plain = {piece: id for piece, id in self._ids.items() if piece not in self.special_tokens}

    @classmethod
    def from_folder(cls, folder: str | Path, side: str) -> "MarianTokenizer":
        """Read the "source" or "target" of a folder.

        Raises:
            UserError: a file is missing or damaged.
        """
        folder = Path(folder)
        apart = side == "target" and (folder / TARGET_VOCABULARY).is_file()
        path = folder / (TARGET_VOCABULARY if apart else VOCABULARY)
        ids = read_json(path)
        pieces = sorted(ids, key=ids.__getitem__) if all(isinstance(id, int) for id in ids.values()) else []
        if not pieces or [ids[piece] for piece in pieces] != list(range(len(pieces))):
            raise UserError(f"{path} is damaged: it must have a piece for each id from 0 on")
        try:
            return cls(read_file(folder / MODELS[side]), pieces)
        except UserError as error:
            raise UserError(f"{folder / MODELS[side]} and {path.name}: {error}") from error

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return len(self._pieces)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The pieces with their spaces."""
        pieces = [piece.replace(huggingface.SPACE, " ") for piece in self._pieces]
        pieces[self._unknown] = _FOR_UNKNOWN
        return [piece.encode() for piece in pieces]

    def _encode(self, text: str) -> np.ndarray:
        return self._numbered(text)

    def sample(self, text: str, alpha: float = 0.1, seed: int | None = None) -> np.ndarray:
        """Return the ids of one of text's segmentations, drawn at random; as SentencePieceTokenizer.sample."""
        if seed is not None:
            library().set_random_generator_seed(seed)
        return self._numbered(text, enable_sampling=True, alpha=alpha, nbest_size=-1)

    def _numbered(self, text: str, **draws: Any) -> np.ndarray:
        utf8(text)
        pieces = self._processor.encode(text, out_type=str, **draws)
        return np.array([self._plain.get(piece, self._unknown) for piece in pieces], dtype=np.int64)

    def token_names(self) -> dict[str, int]:
        """Return the ids of the pieces."""
        return dict(self._ids)

    def to_json(self) -> dict:
        """Return the sentencepiece model and the pieces."""
        return {"model": base64.b64encode(self._model).decode(), "pieces": self._pieces}

    @classmethod
    def from_json(cls, stored: dict, folder: Path) -> "MarianTokenizer":
        """Make the tokenizer of what to_json returned."""
        return cls(base64.b64decode(stored["model"]), stored["pieces"])

    def __reduce__(self) -> tuple:
        return type(self), (self._model, self._pieces), self.carried()


class Side(NamedTuple):
    """What the files of a tokenizer say of one language."""

    model: bytes  # of sentencepiece; it puts a space in front of each text
    names: dict[str, int]
    end: str
    unknown: str
    pad: str


def side_of(tokenizer: Tokenizer) -> Side | None:
    """Return one language of a translation as transformers' MarianTokenizer has it; None for a kind that it cannot be.

    A model of ours has no `<pad>`: the token that ends a text stands for it.
    """
    if isinstance(tokenizer, MarianTokenizer):
        return Side(tokenizer._model, tokenizer.token_names(), _END, _UNKNOWN, _PAD)
    if isinstance(tokenizer, SentencePieceTokenizer):
        sp = tokenizer._processor
        end, unknown = sp.id_to_piece(sp.eos_id()), sp.id_to_piece(sp.unk_id())
        return Side(tokenizer._model + _SPACE_IN_FRONT, tokenizer.token_names(), end, unknown, end)
    return None


def folder_files(source: Side, target: Side, model_max_length: int | None) -> dict[str, bytes]:
    """Return the files that transformers' MarianTokenizer reads, by name."""
    apart = source.names != target.names
    settings: dict[str, Any] = {
        "tokenizer_class": "MarianTokenizer", "eos_token": target.end, "unk_token": target.unknown,
        "pad_token": target.pad, "separate_vocabs": apart,
    }  # fmt: skip
    if model_max_length is not None:
        settings["model_max_length"] = model_max_length
    written = {VOCABULARY: source.names, huggingface.CONFIG: settings}
    if apart:
        written[TARGET_VOCABULARY] = target.names
    models = {MODELS["source"]: source.model, MODELS["target"]: target.model}
    return models | {
        name: (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode() for name, content in written.items()
    }
