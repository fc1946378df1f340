"""The tokenizers of a translation: one for the source, one for the target, or one vocabulary for both.

A sentence is encoded with a space in front, so that a word has the same ids at its beginning as inside; decoding takes
the space off again, so texts come back as they were. Source and target end in a token of their own; a target begins
with the token that ends one, as fairseq has it, or with another that the model was trained with.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastllm.errors import UserError, UserValueError, check_type
from fastllm.tokenizers.base import EXPORTED_FILE, EncodedBatch, Tokenizer
from fastllm.tokenizers.marian import MarianTokenizer, folder_files, side_of
from fastllm.tokenizers.sentencepiece import SentencePieceTokenizer
from fastllm.tokenizers.storage import read_json, write_bytes

_SIDES: dict[str, type[Tokenizer]] = {side.kind: side for side in (SentencePieceTokenizer, MarianTokenizer)}
_CONFIG = "config.json"
MAX_SEED = 2**31 - 1  # sentencepiece's seeds


class PairTokenizer(Tokenizer):
    """Both sides of a translation. As a Tokenizer it is the target's.

    Args:
        source: of source texts.
        target: of target texts; None is source, one vocabulary for both.
        start: the id that the decoder begins a target with; None is the id that ends one.

    Attributes:
        source, target: the tokenizers.
        start, end: the ids that begin and end a target.
        source_end: the id that ends a source.
        tags: special tokens that may stand in front of a source, such as "<2de>" for a direction or "<news>" for a
            domain; in the midst of a text their names are text.

    Raises:
        UserError: a side has no token that ends a text.
    """

    kind = "pair"

    def __init__(self, source: Tokenizer, target: Tokenizer | None = None, start: int | None = None) -> None:
        self.source, self.target = source, source if target is None else target
        for name, side in (("source", self.source), ("target", self.target)):
            if side.end_of_text is None:
                raise UserError(f"PairTokenizer: '{name}' must have a token that ends a text; {side.kind} has none")
        assert self.target.end_of_text is not None
        self.end = self.end_of_text = self.target.end_of_text
        self.start = self.end if start is None else start
        self.special_tokens = self.target.special_tokens
        if not 0 <= self.start < self.target.vocab_size:
            raise UserValueError(
                f"PairTokenizer: 'start' must be in [0, {self.target.vocab_size}), the target's tokens, got {start}"
            )

    @property
    def source_end(self) -> int:
        """The id that ends a source."""
        assert self.source.end_of_text is not None
        return self.source.end_of_text

    @property
    def tags(self) -> tuple[str, ...]:
        """Special tokens that may stand in front of a source."""
        others = (self.source_end, *self.never)
        return tuple(name for name, id in self.source.special_tokens.items() if id not in others)

    @property
    def never(self) -> tuple[int, ...]:
        """Ids that no target has: the one that begins it, where that is not the one that ends it."""
        return () if self.start == self.end else (self.start,)

    @property
    def first_token(self) -> int:
        """The id that begins a target."""
        return self.start

    @property
    def joint(self) -> bool:
        """Whether both sides have one vocabulary."""
        return self.source is self.target

    @property
    def vocab_size(self) -> int:
        """The number of the target's tokens."""
        return self.target.vocab_size

    @property
    def source_vocab_size(self) -> int:
        """The number of the source's tokens."""
        return self.source.vocab_size

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id of the target stands for."""
        return self.target.token_bytes

    def _encode(self, text: str) -> np.ndarray:
        return self.target._encode(text)

    def _encode_batch(self, texts: Any) -> EncodedBatch:
        return self.target._encode_batch(texts)

    def token_names(self) -> dict[str, int]:
        """Return the ids of the target's tokens by name."""
        return self.target.token_names()

    # --- sentences ----------------------------------------------------------------------------------------------------

    def encode_source(self, text: str, *, alpha: float = 0.0, seed: int | None = None) -> np.ndarray:
        """Return the ids of a source, int64, with the token that ends it.

        Args:
            text: a sentence, perhaps with tags in front.
            alpha: above 0 draws a segmentation, see SentencePieceTokenizer.sample.
            seed: of the draw.

        Raises:
            UserError: the vocabulary has no token for a part of text.
            TypeError: text is not a str.
        """
        check_type("encode_source", "text", text, str)
        tags, rest = self.split_tags(text)
        return np.concatenate(
            [np.array(tags, dtype=np.int64), _sentence(self.source, rest, alpha, seed), [self.source_end]]
        )

    def encode_target(self, text: str, *, alpha: float = 0.0, seed: int | None = None) -> np.ndarray:
        """Return the ids of a target, int64, with the token that ends it and without the one that begins it."""
        check_type("encode_target", "text", text, str)
        return np.append(_sentence(self.target, text, alpha, seed), self.end)

    def split_tags(self, text: str) -> tuple[list[int], str]:
        """Return the ids of the tags in front of a text, and what comes after them."""
        ids = []
        while found := next((tag for tag in self.tags if text.startswith(tag)), None):
            ids.append(self.source.special_tokens[found])
            text = text[len(found) :].removeprefix(" ")
        return ids, text

    def decode_target(self, ids: Any) -> str:
        """Return the text of a target's ids, up to the first token that ends it; one that begins it is left out."""
        listed = [int(id) for id in ids]
        if listed[:1] == [self.start]:
            listed = listed[1:]
        if self.end in listed:
            listed = listed[: listed.index(self.end)]
        return self.target.decode(listed).removeprefix(" ")

    def decode_source(self, ids: Any) -> str:
        """Return the text of a source's ids, its tags in front."""
        listed = [int(id) for id in ids]
        if self.source_end in listed:
            listed = listed[: listed.index(self.source_end)]
        names = {id: name for name, id in self.source.special_tokens.items()}
        tags = 0
        while tags < len(listed) and listed[tags] in names:
            tags += 1
        text = self.source.decode(listed[tags:]).removeprefix(" ")
        return " ".join([*(names[id] for id in listed[:tags]), *([text] if text else [])])

    # --- files --------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict:
        """Return both sides, whole, and the id that begins a target."""
        sides = {"source": _side_to_json(self.source)}
        if not self.joint:
            sides["target"] = _side_to_json(self.target)
        return {**sides, "start": self.start}

    @classmethod
    def from_json(cls, stored: dict, folder: Path) -> "PairTokenizer":
        """Make the pair of what to_json returned."""
        source = _side_from_json(stored["source"], folder)
        target = _side_from_json(stored["target"], folder) if "target" in stored else None
        return cls(source, target, stored["start"])

    @classmethod
    def from_folder(cls, folder: Path) -> "PairTokenizer":
        """Read the files of transformers' MarianTokenizer, and what the model's config.json begins a target with.

        Raises:
            UserError: a file is missing or damaged.
        """
        source, target = (MarianTokenizer.from_folder(folder, side) for side in ("source", "target"))
        config = read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
        start = config.get("decoder_start_token_id", target.pad)
        check_type(f"{folder / _CONFIG}", "decoder_start_token_id", start, int)
        return cls(source, target, start)

    def save_huggingface(self, folder: str | Path, model_max_length: int | None = None) -> None:
        """Write the files of transformers' MarianTokenizer, which load_tokenizer reads too.

        Args:
            folder: is made if missing.
            model_max_length: how many tokens the model takes; transformers truncates to it.

        Raises:
            UserError: a side is of a kind that MarianTokenizer cannot be.
        """
        sides = [side_of(side) for side in (self.source, self.target)]
        source, target = sides
        if source is None or target is None:
            raise UserError(f"save_huggingface: transformers has no tokenizer for a pair of {self.target.kind}")
        for name, content in folder_files(source, target, model_max_length).items():
            write_bytes(Path(folder) / name, content)
        if not isinstance(self.source, MarianTokenizer):
            self.save(folder, EXPORTED_FILE)  # as it is: without loss, with its tags

    def __reduce__(self) -> tuple:
        return type(self), (self.source, None if self.joint else self.target, self.start)


def _sentence(tokenizer: Tokenizer, text: str, alpha: float, seed: int | None) -> np.ndarray:
    spaced = text if isinstance(tokenizer, MarianTokenizer) else f" {text}"  # the former puts it there itself
    if alpha > 0:
        return tokenizer.sample(spaced, alpha, seed)  # type: ignore[attr-defined]
    return tokenizer.encode(spaced)


def _side_to_json(side: Tokenizer) -> dict:
    return {"kind": side.kind, **side.to_embed(), **side.carried()}


def _side_from_json(stored: dict, folder: Path) -> Tokenizer:
    own = dict(stored)
    side = _SIDES[own.pop("kind")].from_json(own, folder)
    side.carry(own)
    return side
