"""Reading a data folder: token ids and documents' beginnings, memory-mapped and checked."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastllm.data.discovery import MANIFEST
from fastllm.data.documents import shown
from fastllm.data.pieces import SPLITS
from fastllm.data.preparation import VERSION
from fastllm.data.shards import STARTS
from fastllm.errors import UserError
from fastllm.files import previous, sha256
from fastllm.tokenizers import Tokenizer, load_tokenizer


class Split:
    """The tokens of a split: a sequence of ids in several arrays, and the documents in it.

    Args:
        shards: the ids, in order; all but the last of one size.
        starts: where each document begins, rising from 0; the default is one document.
        characters: of the text.
        bytes: of the text in UTF-8, for bits per byte.

    Example:
        >>> split = Split([np.array([5, 6, 7]), np.array([8, 9])], starts=np.array([0, 2]))
        >>> split.read(1, 4), split.segments(1, 4)
        (array([6, 7, 8]), array([0, 1, 1]))
    """

    def __init__(
        self, shards: list[np.ndarray], starts: np.ndarray | None = None, characters: int = 0, bytes: int = 0
    ) -> None:
        self._shards = shards
        self._size = len(shards[0]) if shards else 0
        self._length = sum(len(shard) for shard in shards)
        self.starts = np.zeros(1, dtype=STARTS) if starts is None else starts
        self.characters, self.bytes = characters, bytes

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the ids [start, stop), int64."""
        ids = np.empty(stop - start, dtype=np.int64)
        position = start
        while position < stop:
            shard, offset = divmod(position, self._size)
            part = self._shards[shard][offset : offset + stop - position]
            ids[position - start : position - start + len(part)] = part
            position += len(part)
        return ids

    def segments(self, start: int, stop: int) -> np.ndarray:
        """Return the number of each document of the ids [start, stop), counted from the first's; int64."""
        first, last = np.searchsorted(self.starts, [start, stop - 1], side="right")
        begins = np.zeros(stop - start, dtype=np.int64)
        begins[np.asarray(self.starts[first:last]) - start] = 1
        return begins.cumsum()


class DataFolder:
    """A folder that prepare wrote: its manifest, and files that are mapped and checked.

    Args:
        folder: where it is.
        what: what is expected of it, for a message.
        command: what makes one.

    Attributes:
        folder: the same, or what prepare was about to replace, if it was killed between its two renames.
        manifest: what the folder says of itself.

    Raises:
        UserError: the folder is missing, or its manifest is missing or damaged.
    """

    def __init__(self, folder: str | Path, what: str, command: str) -> None:
        self.folder, self._command = Path(folder), command
        if not self.folder.exists() and previous(self.folder).exists():
            self.folder = previous(self.folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            why = f"it has no {MANIFEST}" if self.folder.exists() else "it does not exist"
            raise UserError(f"{shown(self.folder)} is not a {what} ({why}): make one with `{command}`")
        with self.damage_told():
            self.manifest: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))

    @contextmanager
    def damage_told(self) -> Iterator[None]:
        """Tell what goes wrong in reading the manifest as a sentence about it."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            damaged = shown(self.folder / MANIFEST)
            raise UserError(f"{damaged} is damaged ({error}): run `{self._command}` again") from error

    def require_version(self, version: int) -> None:
        """Raise UserError if another version wrote the folder."""
        if self.manifest["version"] != version:
            raise UserError(
                f"{shown(self.folder / MANIFEST)}: 'version' must be {version}, got {self.manifest['version']}: "
                f"run `{self._command}` again"
            )

    def open_split(self, entry: dict) -> Split:
        """Return the tokens that an entry of the manifest describes."""
        dtype = np.dtype(self.manifest["dtype"])
        shards = [self._map(shard["file"], dtype, shard["tokens"]) for shard in entry["shards"]]
        starts = self._map(entry["starts"], STARTS, entry["documents"])
        return Split(shards, starts, entry["characters"], entry["bytes"])

    def _map(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        path, expected = self.folder / name, count * dtype.itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            damage = f"expected {expected} bytes, got {size}"
            raise UserError(f"{shown(path)} is damaged: {damage}: run `{self._command}` again")
        return np.memmap(path, dtype=dtype, mode="r") if count else np.zeros(0, dtype)

    def verify(self) -> None:
        """Compare all files with the manifest's checksums.

        Raises:
            UserError: a file is damaged.
        """
        for name, expected in self.manifest["files"].items():
            if not (self.folder / name).is_file() or sha256(self.folder / name) != expected:
                raise UserError(f"{shown(self.folder / name)} is damaged: run `{self._command}` again")


class TokenData(DataFolder):
    """The data folder of language models.

    Args:
        folder: where `fastllm prepare` wrote.

    Raises:
        UserError: the folder is missing, incomplete, damaged, of another kind or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "data folder", "fastllm prepare")
        if self.manifest.get("kind") == "parallel":
            raise UserError(
                f"{shown(self.folder)} has pairs of sentences, which translation models learn from: train with "
                "--model transformer"
            )
        with self.damage_told():
            self.require_version(VERSION)
            self._splits = {name: self.open_split(self.manifest["splits"][name]) for name in SPLITS}
        self.tokenizer: Tokenizer = load_tokenizer(self.folder)

    def split(self, name: str, context_length: int) -> Split:
        """Return "train" or "val".

        Raises:
            UserError: the split is shorter than one context and the token after it.
        """
        split = self._splits[name]
        if len(split) < context_length + 1:
            raise UserError(
                f"{shown(self.folder)}: the split '{name}' has {len(split)} tokens, but a context of {context_length} "
                f"needs at least {context_length + 1}: use more text or a smaller context_length"
            )
        return split
